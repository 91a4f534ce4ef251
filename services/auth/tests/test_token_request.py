"""How strictly the token endpoint reads."""

from __future__ import annotations

import base64
from typing import Any
from urllib.parse import quote_plus

import pytest
from modelworks.auth.token_request import OAuthRefusal, RawRequest, ascii_text, parse

FORM = "application/x-www-form-urlencoded"
GRANT = b"grant_type=client_credentials"
POSTED = GRANT + b"&client_id=alice&client_secret=s3cret"


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


def raw(body: bytes = GRANT, *authorization: str, content_type: str = FORM, query: str = "") -> RawRequest:
    return RawRequest(authorization, content_type, query, body, "192.0.2.1")


def test_credentials_by_basic() -> None:
    request = parse(raw(GRANT + b"&scope=a+b", basic("alice:s3cret")))

    assert (request.client_id, request.secret, request.method) == ("alice", "s3cret", "client_secret_basic")
    assert request.parameters == {"grant_type": "client_credentials", "scope": "a b"}


def test_credentials_in_the_body_are_no_parameters() -> None:
    request = parse(raw(POSTED))

    assert (request.client_id, request.secret, request.method) == ("alice", "s3cret", "client_secret_post")
    assert request.parameters == {"grant_type": "client_credentials"}


def test_basic_credentials_are_form_decoded() -> None:
    request = parse(raw(GRANT, basic(f"{quote_plus('al:ice')}:{quote_plus('a+b %ü:')}")))

    assert (request.client_id, request.secret) == ("al:ice", "a+b %ü:")


def test_same_client_id_in_header_and_body_is_accepted() -> None:
    assert parse(raw(GRANT + b"&client_id=alice", basic("alice:s3cret"))).client_id == "alice"


def test_parameter_without_value_counts_as_not_sent() -> None:
    assert "scope" not in parse(raw(POSTED + b"&scope=")).parameters


def test_content_type_may_name_its_charset() -> None:
    assert parse(raw(POSTED, content_type="Application/X-WWW-Form-URLEncoded; charset=UTF-8")).client_id == "alice"


@pytest.mark.parametrize(
    ("request_", "error", "claimed"),
    {
        "no content type": (raw(POSTED, content_type=""), "invalid_request", "unknown"),
        "JSON": (raw(b"{}", content_type="application/json"), "invalid_request", "unknown"),
        "multipart": (raw(b"", content_type="multipart/form-data; boundary=x"), "invalid_request", "unknown"),
        "JSON with basic": (raw(b"{}", basic("alice:x"), content_type="text/plain"), "invalid_request", "alice"),
        "parameters in the URL": (raw(POSTED, query="client_id=alice"), "invalid_request", "unknown"),
        "parameter twice": (raw(POSTED + b"&scope=a&scope=b"), "invalid_request", "unknown"),
        "client_id twice": (raw(POSTED + b"&client_id=bob"), "invalid_request", "unknown"),
        "empty parameter twice": (raw(POSTED + b"&scope=&scope="), "invalid_request", "unknown"),
        "resource twice": (raw(POSTED + b"&resource=api&resource=kafka"), "invalid_target", "unknown"),
        "secret twice": (raw(POSTED, basic("alice:s3cret")), "invalid_request", "alice"),
        "two clients": (raw(GRANT + b"&client_id=bob", basic("alice:x")), "invalid_request", "alice"),
        "two Authorization headers": (raw(GRANT, basic("a:b"), basic("a:b")), "invalid_request", "unknown"),
        "no grant type": (raw(b"client_id=alice&client_secret=x"), "invalid_request", "alice"),
        "empty grant type": (raw(b"grant_type=&client_id=alice&client_secret=x"), "invalid_request", "alice"),
        "empty body": (raw(b"", basic("alice:x")), "invalid_request", "alice"),
        "not ASCII": (raw(b"grant_type=\xff\xfe"), "invalid_request", "unknown"),
        "not UTF-8 behind the percent": (raw(POSTED + b"&scope=%ff%fe"), "invalid_request", "unknown"),
        "no form at all": (raw(b"hello"), "invalid_request", "unknown"),
        "33 parameters": (raw(b"&".join(b"p%d=1" % n for n in range(33))), "invalid_request", "unknown"),
        "no credentials": (raw(GRANT), "invalid_client", "unknown"),
        "no secret": (raw(GRANT + b"&client_id=alice"), "invalid_client", "alice"),
        "empty secret": (raw(GRANT, basic("alice:")), "invalid_client", "alice"),
        "empty id": (raw(GRANT, basic(":x")), "invalid_client", "unknown"),
        "bearer": (raw(GRANT, "Bearer abc"), "invalid_client", "unknown"),
        "basic without anything": (raw(GRANT, "Basic "), "invalid_client", "unknown"),
        "basic without colon": (raw(GRANT, basic("alice")), "invalid_client", "unknown"),
        "basic not base64": (raw(GRANT, "Basic !!!!"), "invalid_client", "unknown"),
        "basic not UTF-8": (raw(GRANT, "Basic " + base64.b64encode(b"\xff:\xff").decode()), "invalid_client", "unknown"),
        "basic not UTF-8 behind the percent": (raw(GRANT, basic("%ff:x")), "invalid_client", "unknown"),
        "id of 201 characters": (raw(GRANT, basic("a" * 201 + ":x")), "invalid_client", "a" * 200),
        "secret of 257 characters": (raw(GRANT, basic("alice:" + "x" * 257)), "invalid_client", "alice"),
    }.values(),
    ids=lambda value: None,
)  # fmt: skip
def test_malformed_request_is_refused_in_oauths_words(request_: RawRequest, error: str, claimed: str) -> None:
    with pytest.raises(OAuthRefusal) as refused:
        parse(request_)

    assert (refused.value.error, refused.value.client_id) == (error, claimed)
    assert refused.value.status == (401 if error == "invalid_client" else 400)
    assert ("WWW-Authenticate" in refused.value.headers) == (error == "invalid_client")
    assert ascii_text(refused.value.message) == refused.value.message


def test_secrets_are_not_shown_in_logs() -> None:
    request: Any = parse(raw(POSTED))

    assert "s3cret" not in repr(request)
    assert "s3cret" not in repr(raw(POSTED))


def test_error_text_keeps_to_the_characters_of_the_rfc() -> None:
    assert ascii_text('a"b\\c\nd\u00e9') == "a?b?c?d?"
