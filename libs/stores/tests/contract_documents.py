"""What every document store does. Each adapter's test module subclasses `DocumentsContract` and gives `open_documents`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from modelworks.kit.errors import InvalidInput, TooLarge, VersionConflict
from modelworks.stores import Document, Documents, Field, Filter, Query, Schema

pytest.register_assert_rewrite("libs.stores.tests.contract_documents_search")

from libs.stores.tests.contract_documents_search import (  # noqa: E402
    FIELDS,
    INTEGER,
    KEYWORD,
    TEXT,
    OpenDocuments,
    SearchContract,
    ids,
)

__all__ = ["DocumentsContract", "OpenDocuments", "ids"]


class DocumentsContract(SearchContract):
    # By id

    async def test_what_was_saved_is_read_back(self, documents: Documents, collection: str) -> None:
        body = {
            "status": "new", "nested": {"a": [1, 2.5, None, True, {"b": "ü\u0000\"'"}]}, "": 1, "a..b": {".": []},
            "large": 2**80, "size_bytes": -(2**63), "null": None, "title": None, "tags": [],
        }  # fmt: skip

        saved = await documents.save(collection, "one", body, expected=None)

        assert saved.id == "one"
        assert saved.body == body
        assert await documents.get(collection, "one") == saved
        assert await documents.get(collection, "two") is None

    @pytest.mark.parametrize(
        "id",
        [
            "a",
            "namespace/name",
            "../x",
            ".",
            "..",
            "_all",
            "ü 漢字 🚀",
            "a?b=c&d#e%2F",
            "'; DROP TABLE x; --",
            "*",
            "i" * 512,
        ],
    )
    async def test_any_text_is_an_id(self, documents: Documents, collection: str, id: str) -> None:
        saved = await documents.save(collection, id, {"status": "x"}, expected=None)
        await documents.refresh(collection)

        assert await documents.get(collection, id) == saved
        assert await self.found(documents, collection) == [id]
        again = await documents.save(collection, id, {"status": "y"}, expected=saved.version)
        await documents.delete(collection, id, expected=again.version)
        assert await documents.get(collection, id) is None

    @pytest.mark.parametrize("id", ["", "i" * 513, "ü" * 257, "\ud800"])
    async def test_a_malformed_id_is_refused(self, documents: Documents, collection: str, id: str) -> None:
        with pytest.raises(InvalidInput):
            await documents.save(collection, id, {}, expected=None)
        with pytest.raises(InvalidInput):
            await documents.get(collection, id)
        with pytest.raises(InvalidInput):
            await documents.create_many(collection, [(id, {})])

    async def test_a_document_is_created_once(self, documents: Documents, collection: str) -> None:
        first = await documents.save(collection, "a", {"n": 1}, expected=None)

        with pytest.raises(VersionConflict):
            await documents.save(collection, "a", {"n": 2}, expected=None)
        assert await documents.get(collection, "a") == first

    async def test_a_save_needs_the_newest_version(self, documents: Documents, collection: str) -> None:
        first = await documents.save(collection, "a", {"n": 1}, expected=None)
        second = await documents.save(collection, "a", {"n": 2}, expected=first.version)

        assert second.version != first.version
        for stale in (first.version, "", "0", "999999", "999999:1", "x", "-1:-1", "1:1:1", "٣"):
            with pytest.raises(VersionConflict):
                await documents.save(collection, "a", {"n": 3}, expected=stale)
            with pytest.raises(VersionConflict):
                await documents.delete(collection, "a", expected=stale)
        assert await documents.get(collection, "a") == second

    async def test_saving_what_is_not_there_is_a_conflict(self, documents: Documents, collection: str) -> None:
        saved = await documents.save(collection, "a", {}, expected=None)

        with pytest.raises(VersionConflict):
            await documents.save(collection, "b", {}, expected=saved.version)
        with pytest.raises(VersionConflict):
            await documents.delete(collection, "b", expected=saved.version)
        assert await documents.get(collection, "b") is None

    async def test_a_document_made_again_does_not_take_the_old_version(
        self, documents: Documents, collection: str
    ) -> None:
        """INVARIANT: a writer that slept through delete and create must not win; would break with counts from 1."""
        old = await documents.save(collection, "a", {"n": 1}, expected=None)
        await documents.delete(collection, "a", expected=old.version)
        new = await documents.save(collection, "a", {"n": 2}, expected=None)

        with pytest.raises(VersionConflict):
            await documents.save(collection, "a", {"n": 3}, expected=old.version)
        assert await documents.get(collection, "a") == new

    async def test_of_fifty_concurrent_saves_exactly_one_wins_each_round(
        self, open_documents: OpenDocuments, documents: Documents, collection: str
    ) -> None:
        stores = [documents, open_documents()]
        current = await documents.save(collection, "a", {"n": -1}, expected=None)
        for round_number in range(5):
            outcomes = await asyncio.gather(
                *(
                    stores[n % 2].save(collection, "a", {"round": round_number, "n": n}, expected=current.version)
                    for n in range(50)
                ),
                return_exceptions=True,
            )

            winners = [each for each in outcomes if isinstance(each, Document)]
            assert len(winners) == 1
            assert sum(isinstance(each, VersionConflict) for each in outcomes) == 49
            current = winners[0]
            assert await documents.get(collection, "a") == current

    async def test_of_fifty_concurrent_creates_exactly_one_wins(self, documents: Documents, collection: str) -> None:
        outcomes = await asyncio.gather(
            *(documents.save(collection, "a", {"n": n}, expected=None) for n in range(50)), return_exceptions=True
        )

        (winner,) = [each for each in outcomes if isinstance(each, Document)]
        assert sum(isinstance(each, VersionConflict) for each in outcomes) == 49
        assert await documents.get(collection, "a") == winner

    async def test_concurrent_saves_of_different_documents_all_succeed(
        self, documents: Documents, collection: str
    ) -> None:
        await asyncio.gather(*(documents.save(collection, f"d{n}", {"n": n}, expected=None) for n in range(100)))

        read = await asyncio.gather(*(documents.get(collection, f"d{n}") for n in range(100)))
        assert [document.body["n"] for document in read if document] == list(range(100))

    async def test_documents_survive_another_opening(
        self, open_documents: OpenDocuments, documents: Documents, collection: str
    ) -> None:
        saved = await documents.save(collection, "a", {"status": "x"}, expected=None)
        await documents.refresh(collection)
        await documents.close()

        again = open_documents()

        assert await again.get(collection, "a") == saved
        # Without `ensure`: the fields are known from the store.
        assert await self.found(again, collection, Filter("status", "eq", "x")) == ["a"]
        await again.save(collection, "a", {"status": "y"}, expected=saved.version)

    async def test_a_saved_document_shares_nothing_with_the_callers_body(
        self, documents: Documents, collection: str
    ) -> None:
        body: dict[str, Any] = {"tags": ["a"]}
        saved = await documents.save(collection, "a", body, expected=None)
        body["tags"].append("b")

        assert saved.body == {"tags": ["a"]}

    # Refused bodies

    @pytest.mark.parametrize(
        "body",
        [
            {"status": 1}, {"status": ["a", 1]}, {"status": {"a": 1}}, {"tags": [["a"], [2]]}, {"card": {"license": True}},
            {"title": 1}, {"title": ["a", "b"]}, {"size_bytes": "1"}, {"size_bytes": 1.0}, {"size_bytes": True},
            {"size_bytes": [1]}, {"size_bytes": 2**63}, {"score": "1"}, {"score": True}, {"score": 10**400},
            {"private": 0}, {"private": "true"}, {"created_at": "2026-01-01T00:00:00Z"}, {"created_at": 5},
            {"created_at": "2026-01-01T00:00:00.000000+00:00"}, {"created_at": "2026-13-01T00:00:00.000000Z"},
            {"created_at": "2026-01-01T00:00:00.000000Z\n"}, {"_pending": {"since": "now"}},
            {"tags": [str(n) for n in range(1001)]},
        ],
    )  # fmt: skip
    async def test_a_value_of_another_type_is_refused(
        self, documents: Documents, collection: str, body: dict[str, Any]
    ) -> None:
        kept = await documents.save(collection, "kept", {"status": "x"}, expected=None)

        with pytest.raises(InvalidInput, match="field"):
            await documents.save(collection, "a", body, expected=None)
        with pytest.raises(InvalidInput, match="field"):
            await documents.save(collection, "kept", body, expected=kept.version)
        with pytest.raises(InvalidInput, match="field"):
            await documents.create_many(collection, [("a", body)])

        assert await documents.get(collection, "a") is None
        assert await documents.get(collection, "kept") == kept

    @pytest.mark.parametrize(
        "body",
        [{"x": float("nan")}, {"x": float("inf")}, {"x": b"bytes"}, {"x": {1, 2}}, {"x": "\ud800"}, {"\udfff": 1}],
    )
    async def test_what_is_not_json_is_refused(
        self, documents: Documents, collection: str, body: dict[str, Any]
    ) -> None:
        with pytest.raises(InvalidInput):
            await documents.save(collection, "a", body, expected=None)

        assert await documents.get(collection, "a") is None

    async def test_a_body_of_four_mebibytes_fits_and_one_byte_more_does_not(
        self, documents: Documents, collection: str
    ) -> None:
        fitting = {"x": "y" * (4 * 1024 * 1024 - len('{"x":""}'))}

        saved = await documents.save(collection, "a", fitting, expected=None)

        assert saved.body == fitting
        assert await documents.get(collection, "a") == saved
        with pytest.raises(TooLarge, match="4194305"):
            await documents.save(collection, "a", {"x": fitting["x"] + "y"}, expected=saved.version)
        with pytest.raises(TooLarge):
            await documents.create_many(collection, [("b", {"x": fitting["x"] + "y"})])

    # Bulk

    async def test_create_many_leaves_what_exists(self, documents: Documents, collection: str) -> None:
        kept = await documents.save(collection, "d7", {"n": "old"}, expected=None)

        existed = await documents.create_many(collection, [(f"d{n}", {"n": n}) for n in range(10)])

        assert list(existed) == ["d7"]
        assert await documents.get(collection, "d7") == kept
        assert (await documents.get(collection, "d9")).body == {"n": 9}  # type: ignore[union-attr]

    async def test_create_many_takes_the_first_of_two_with_one_id(self, documents: Documents, collection: str) -> None:
        existed = await documents.create_many(collection, [("a", {"n": 1}), ("a", {"n": 2})])

        assert list(existed) == ["a"]
        assert (await documents.get(collection, "a")).body == {"n": 1}  # type: ignore[union-attr]
        assert await documents.create_many(collection, []) == []

    async def test_a_created_document_can_be_saved(self, documents: Documents, collection: str) -> None:
        await documents.create_many(collection, [("a", {"n": 1})])
        created = await documents.get(collection, "a")
        assert created is not None

        await documents.save(collection, "a", {"n": 2}, expected=created.version)

    # Schemas

    async def test_ensure_again_changes_nothing(
        self, open_documents: OpenDocuments, documents: Documents, collection: str
    ) -> None:
        saved = await documents.save(collection, "a", {"status": "x"}, expected=None)

        await asyncio.gather(*(store.ensure(Schema(collection, FIELDS)) for store in [documents, open_documents()] * 3))

        assert await documents.get(collection, "a") == saved

    async def test_of_many_who_make_a_collection_all_succeed(
        self, open_documents: OpenDocuments, collection: str
    ) -> None:
        stores = [open_documents() for _ in range(4)]

        await asyncio.gather(*(store.ensure(Schema(collection, FIELDS)) for store in stores * 2))

        saved = await stores[0].save(collection, "a", {"status": "x"}, expected=None)
        assert await stores[3].get(collection, "a") == saved

    async def test_added_fields_are_found_in_documents_that_were_there(
        self, open_documents: OpenDocuments, collection: str
    ) -> None:
        documents = open_documents()
        await documents.ensure(Schema(collection, (Field("status", KEYWORD),)))
        body = {"status": "x", "title": "quick fox", "tags": ["a", "b"], "size_bytes": 5}
        await self.fill(documents, collection, {f"d{n:03}": body for n in range(300)})

        await documents.ensure(
            Schema(collection, (Field("title", TEXT), Field("tags", KEYWORD), Field("size_bytes", INTEGER)))
        )
        await documents.refresh(collection)

        for query in (
            Query(text="fox"),
            Query(filters=(Filter("tags", "eq", "b"),)),
            Query(filters=(Filter("size_bytes", "eq", 5), Filter("status", "eq", "x"))),
        ):
            assert (await documents.search(collection, query)).total == 300
        kept = await documents.get(collection, "d000")
        assert kept is not None
        assert kept.body == body
        await documents.save(collection, "d000", {"status": "y", "size_bytes": 6}, expected=kept.version)

    async def test_a_field_keeps_its_type(self, documents: Documents, collection: str) -> None:
        with pytest.raises(InvalidInput, match="status"):
            await documents.ensure(Schema(collection, (Field("status", INTEGER), Field("new", KEYWORD))))

        with pytest.raises(InvalidInput, match="new"):
            await documents.search(collection, Query(filters=(Filter("new", "exists", True),)))

    @pytest.mark.parametrize(
        "name", ["", ".", "a.", ".a", "a..b", 'a"b', "a b", "a'b", "@document.body", "ü", "status.x"]
    )
    async def test_a_malformed_field_is_refused(self, documents: Documents, collection: str, name: str) -> None:
        with pytest.raises(InvalidInput, match="field"):
            await documents.ensure(Schema(collection, (Field(name, KEYWORD),)))

    @pytest.mark.parametrize("name", ["", "A", "1a", "a_b", "a b", "../a", "a" * 101, 'a"', "_all", "*"])
    async def test_a_malformed_collection_is_refused(self, documents: Documents, name: str) -> None:
        with pytest.raises(InvalidInput, match="collection"):
            await documents.ensure(Schema(name, FIELDS))
        with pytest.raises(InvalidInput, match="collection"):
            await documents.get(name, "a")

    async def test_an_unknown_collection_is_refused_and_not_made(self, documents: Documents, collection: str) -> None:
        unknown = collection + "-x"
        attempts: Sequence[Any] = (
            lambda: documents.get(unknown, "a"),
            lambda: documents.save(unknown, "a", {}, expected=None),
            lambda: documents.create_many(unknown, [("a", {})]),
            lambda: documents.search(unknown, Query()),
        )
        for attempt in [*attempts, *attempts]:
            with pytest.raises(InvalidInput, match="ensure"):
                await attempt()

    async def test_a_collection_without_text_fields_refuses_text(
        self, open_documents: OpenDocuments, collection: str
    ) -> None:
        documents = open_documents()
        await documents.ensure(Schema(collection, (Field("status", KEYWORD),)))

        with pytest.raises(InvalidInput, match="no text fields"):
            await documents.search(collection, Query(text="x"))
        assert (await documents.search(collection, Query(text="  "))).total == 0

    async def test_a_collection_may_have_no_fields(self, open_documents: OpenDocuments, collection: str) -> None:
        documents = open_documents()
        await documents.ensure(Schema(collection, ()))
        saved = await documents.save(collection, "a", {"x": 1}, expected=None)
        await documents.save(collection, "a", {"x": 2}, expected=saved.version)
        await documents.refresh(collection)

        assert await self.found(documents, collection) == ["a"]

    async def test_check_passes(self, documents: Documents) -> None:
        await documents.check()
