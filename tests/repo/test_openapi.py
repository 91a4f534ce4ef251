"""The committed OpenAPI documents are those of the code."""

from __future__ import annotations

import difflib

import pytest

from tests.repo.openapi import FOLDER, documents


@pytest.fixture(scope="module")
def generated() -> dict[str, str]:
    return documents()


def test_openapi_documents_are_up_to_date(generated: dict[str, str]) -> None:
    for name, text in generated.items():
        committed = (FOLDER / name).read_text("utf-8") if (FOLDER / name).exists() else ""
        change = "\n".join(
            difflib.unified_diff(committed.splitlines(), text.splitlines(), name, "generated", lineterm="", n=1)
        )
        assert committed == text, f"run `make contracts` and review the change:\n{change[:3000]}"


def test_no_openapi_document_is_left_over(generated: dict[str, str]) -> None:
    assert {path.name for path in FOLDER.glob("*.yaml")} == set(generated)
