"""The tree of errors: codes, statuses and what a caller is told."""

from __future__ import annotations

import json

import pytest
from modelworks.kit import errors
from modelworks.kit.errors import (
    Forbidden,
    InvalidInput,
    ModelworksError,
    RateLimited,
    StoreUnavailable,
    Unauthenticated,
    Unavailable,
)

TABLE = [
    ("ModelworksError", "internal", 500, False),
    ("InvalidInput", "invalid-input", 400, False),
    ("Unauthenticated", "unauthenticated", 401, False),
    ("Forbidden", "forbidden", 403, False),
    ("NotFound", "not-found", 404, False),
    ("Conflict", "conflict", 409, False),
    ("VersionConflict", "version-conflict", 412, False),
    ("TooLarge", "too-large", 413, False),
    ("RateLimited", "rate-limited", 429, True),
    ("DeadlineExceeded", "deadline-exceeded", 504, False),
    ("Unavailable", "unavailable", 503, True),
    ("StoreUnavailable", "store-unavailable", 503, True),
]


@pytest.mark.parametrize(("name", "code", "status", "transient"), TABLE)
def test_error_has_the_code_and_status_that_clients_rely_on(name: str, code: str, status: int, transient: bool) -> None:
    kind: type[ModelworksError] = getattr(errors, name)

    assert (kind.code, kind.status, kind.transient) == (code, status, transient)
    assert issubclass(kind, ModelworksError)


def test_table_has_every_error_of_the_tree() -> None:
    kinds = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}

    assert kinds == {name for name, *_ in TABLE}


def test_tree_is_drawn_in_the_modules_docstring() -> None:
    for name, _, status, _ in TABLE[1:-1]:
        assert f"{name} ({status}" in str(errors.__doc__)


def test_message_and_data_are_kept_apart() -> None:
    error = InvalidInput("name 'x y' has a space: use '-'", field="name")

    assert str(error) == error.message == "name 'x y' has a space: use '-'"
    assert error.data == {"field": "name"}


def test_store_that_is_away_is_unavailable() -> None:
    assert issubclass(StoreUnavailable, Unavailable)


def test_missing_token_gets_a_challenge_without_an_error_code() -> None:
    """RFC 6750 section 3: no error code when no token was presented."""
    assert (
        Unauthenticated("no token", reason="token-missing").headers["WWW-Authenticate"] == 'Bearer realm="modelworks"'
    )


def test_wrong_token_gets_a_challenge_with_an_error_code() -> None:
    assert 'error="invalid_token"' in Unauthenticated("expired").headers["WWW-Authenticate"]


def test_missing_scope_gets_a_challenge_and_missing_permission_does_not() -> None:
    scope = Forbidden("no", action="a:b", resource="Suite:x", reason="scope-missing")
    policy = Forbidden("no", action="a:b", resource="Suite:x", policy="sha")

    assert 'error="insufficient_scope"' in scope.headers["WWW-Authenticate"]
    assert policy.headers == {}
    assert policy.data == {"action": "a:b", "resource": "Suite:x"}


def test_rate_limit_says_when_to_come_back() -> None:
    error = RateLimited("slow down", retry_after_seconds=7)

    assert error.headers == {"Retry-After": "7"}
    assert json.dumps(error.data) == '{"retry_after_seconds": 7}'


def test_headers_of_one_error_are_its_own() -> None:
    first, second = InvalidInput("a"), InvalidInput("b")
    first.headers["X"] = "1"

    assert second.headers == {}
