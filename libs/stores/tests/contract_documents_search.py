"""What every document store finds: filters, text, order, pages, facets. Part of `contract_documents`."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Mapping
from typing import Any, Protocol

import pytest
from modelworks.kit.errors import InvalidInput
from modelworks.stores import Documents, Field, FieldType, Filter, Page, Query, Schema, Sort

KEYWORD, TEXT, INTEGER, FLOAT, BOOLEAN, TIME = (
    FieldType.KEYWORD,
    FieldType.TEXT,
    FieldType.INTEGER,
    FieldType.FLOAT,
    FieldType.BOOLEAN,
    FieldType.TIME,
)

FIELDS = (
    Field("status", KEYWORD),
    Field("tags", KEYWORD),
    Field("card.license", KEYWORD),
    Field("files.path", KEYWORD),
    Field("title", TEXT),
    Field("card.description", TEXT),
    Field("size_bytes", INTEGER),
    Field("score", FLOAT),
    Field("private", BOOLEAN),
    Field("created_at", TIME),
    Field("_pending.since", TIME),
)


class OpenDocuments(Protocol):
    """Opens a store on the same data each time, as another process would; all are closed after the test."""

    def __call__(self) -> Documents: ...


def ids(page: Page) -> list[str]:
    return [hit.document.id for hit in page.hits]


def at(second: int, microsecond: int = 0) -> str:
    return f"2026-01-01T00:00:{second:02}.{microsecond:06}Z"


class SearchContract:
    @pytest.fixture
    def collection(self) -> str:
        """A collection that no other test uses: a real server is shared."""
        return f"t-{uuid.uuid4().hex}"

    @pytest.fixture
    async def documents(self, open_documents: OpenDocuments, collection: str) -> Documents:
        documents = open_documents()
        await documents.ensure(Schema(collection, FIELDS))
        return documents

    async def fill(self, documents: Documents, collection: str, bodies: Mapping[str, Mapping[str, Any]]) -> None:
        assert await documents.create_many(collection, list(bodies.items())) == []
        await documents.refresh(collection)

    async def found(
        self, documents: Documents, collection: str, *filters: Filter, text: str = "", sort: Sort | None = None
    ) -> list[str]:
        page = await documents.search(collection, Query(filters=filters, text=text, sort=sort))
        assert page.total == len(page.hits)
        return ids(page)

    # Filters

    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            (Filter("status", "eq", "Open"), ["a"]),
            (Filter("status", "eq", "open"), ["b"]),
            (Filter("status", "eq", "OPEN"), []),
            (Filter("status", "in", ["Open", "closed", "x"]), ["a", "c"]),
            (Filter("status", "in", []), []),
            (Filter("status", "prefix", "o"), ["b"]),
            (Filter("status", "prefix", ""), ["a", "b", "c"]),
            (Filter("status", "prefix", "%"), []),
            (Filter("status", "prefix", "*"), []),
            (Filter("status", "gte", "c"), ["b", "c"]),
            (Filter("status", "exists", True), ["a", "b", "c"]),
            (Filter("status", "exists", False), ["d"]),
            (Filter("tags", "eq", "x"), ["a", "b"]),
            (Filter("tags", "eq", "y"), ["b"]),
            (Filter("tags", "in", ["y", "z"]), ["b", "c"]),
            (Filter("tags", "prefix", "z"), ["c"]),
            (Filter("tags", "exists", False), ["d"]),
            (Filter("card.license", "eq", "Apache-2.0 \"quoted\" OR 1=1"), ["c"]),
            (Filter("files.path", "eq", "model.onnx"), ["a", "b"]),
            (Filter("size_bytes", "eq", 10), ["a"]),
            (Filter("size_bytes", "gt", 10), ["b", "c"]),
            (Filter("size_bytes", "gte", 10), ["a", "b", "c"]),
            (Filter("size_bytes", "lt", 20), ["a", "d"]),
            (Filter("size_bytes", "lte", 20), ["a", "b", "d"]),
            (Filter("size_bytes", "in", [20, 2**53 + 1]), ["b", "c"]),
            (Filter("size_bytes", "eq", 2**53), []),
            (Filter("score", "eq", 0.5), ["a"]),
            (Filter("score", "eq", 2), ["b"]),
            (Filter("score", "lt", 2), ["a", "c"]),
            (Filter("private", "eq", True), ["a"]),
            (Filter("private", "eq", False), ["b"]),
            (Filter("private", "in", [True, False]), ["a", "b"]),
            (Filter("private", "exists", False), ["c", "d"]),
            (Filter("created_at", "gt", at(1, 1)), ["b", "c"]),
            (Filter("created_at", "gte", at(1, 1)), ["a", "b", "c"]),
            (Filter("created_at", "lt", at(1, 2)), ["a"]),
            (Filter("created_at", "eq", at(1, 2)), ["b"]),
            (Filter("_pending.since", "lt", at(30)), ["d"]),
            (Filter("_pending.since", "exists", True), ["d"]),
        ],
    )  # fmt: skip
    async def test_a_filter_finds_what_it_says(
        self, documents: Documents, collection: str, given: Filter, expected: list[str]
    ) -> None:
        await self.fill(
            documents,
            collection,
            {
                "a": {"status": "Open", "tags": ["x"], "size_bytes": 10, "score": 0.5, "private": True,
                      "created_at": at(1, 1), "files": [{"path": "model.onnx", "n": 1}, {"path": "card.md"}]},
                "b": {"status": "open", "tags": ["x", "y", "x"], "size_bytes": 20, "score": 2, "private": False,
                      "created_at": at(1, 2), "files": {"path": "model.onnx"}},
                "c": {"status": "closed", "tags": ["zebra", "z"], "size_bytes": 2**53 + 1, "score": -1e300,
                      "created_at": at(59), "card": {"license": "Apache-2.0 \"quoted\" OR 1=1"}},
                "d": {"status": None, "tags": [], "size_bytes": -5, "_pending": {"since": at(20), "events": [1]}},
            },
        )  # fmt: skip

        assert await self.found(documents, collection, given) == expected

    async def test_all_filters_must_hold(self, documents: Documents, collection: str) -> None:
        await self.fill(
            documents,
            collection,
            {f"{s}{n}": {"status": s, "size_bytes": n, "tags": [s, str(n)]} for s in "ab" for n in range(4)},
        )

        found = await self.found(
            documents,
            collection,
            Filter("status", "eq", "a"),
            Filter("size_bytes", "gte", 1),
            Filter("tags", "eq", "2"),
        )
        between = await self.found(
            documents,
            collection,
            Filter("size_bytes", "gt", 0),
            Filter("size_bytes", "lte", 2),
            Filter("status", "eq", "b"),
        )

        assert found == ["a2"]
        assert between == ["b1", "b2"]

    async def test_a_keyword_beyond_its_bound_is_kept_but_not_found(
        self, documents: Documents, collection: str
    ) -> None:
        longest, longer = "🚀" * 1000, "x" * 1001
        await self.fill(documents, collection, {"a": {"status": longest}, "b": {"status": longer}})

        assert await self.found(documents, collection, Filter("status", "eq", longest)) == ["a"]
        assert await self.found(documents, collection, Filter("status", "eq", longer)) == []
        assert await self.found(documents, collection, Filter("status", "exists", True)) == ["a"]
        assert (await documents.get(collection, "b")).body == {"status": longer}  # type: ignore[union-attr]

    async def test_search_follows_saves_and_deletes(self, documents: Documents, collection: str) -> None:
        saved = await documents.save(collection, "a", {"tags": ["x", "y"], "title": "one two"}, expected=None)
        saved = await documents.save(
            collection, "a", {"tags": ["y", "z"], "title": "two three"}, expected=saved.version
        )
        await documents.refresh(collection)

        assert await self.found(documents, collection, Filter("tags", "eq", "x")) == []
        assert await self.found(documents, collection, Filter("tags", "eq", "z")) == ["a"]
        assert await self.found(documents, collection, text="one") == []
        assert await self.found(documents, collection, text="three") == ["a"]
        (hit,) = (await documents.search(collection, Query())).hits
        assert hit.document == saved
        assert hit.score is None

        await documents.delete(collection, "a", expected=saved.version)
        await documents.refresh(collection)
        assert await self.found(documents, collection) == []
        assert await self.found(documents, collection, text="three") == []
        assert await self.found(documents, collection, Filter("tags", "eq", "z")) == []

    # Text

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("quick", ["a", "b"]),
            ("QUICK", ["a", "b"]),
            ("quick fox", ["a"]),
            ("fox quick", ["a"]),
            ("quick licensed", ["b"]),
            ("quic", []),
            ("quick nothing", []),
            ("minilm", ["c"]),
            ("all-MiniLM-L6-v2", ["c"]),
            ("l6", ["c"]),
            ("resnet_50.onnx", ["d"]),
            ("50", ["d"]),
            ("étude", ["d"]),
            ("ÉTUDE", ["d"]),
            ("e\u0301tude", ["d"]),
            ("etude", []),
            ("STRASSE", ["d"]),
            ("模型", ["e"]),
            ("大型", ["e"]),
            ("小", []),
            ("", ["a", "b", "c", "d", "e"]),
            ("  \n ", ["a", "b", "c", "d", "e"]),
            ("!?*", ["a", "b", "c", "d", "e"]),
            ("quick OR nothing", []),
            ("quick AND fox", []),
            ("quick NOT fox", []),
            ("-fox", ["a"]),
            ("\"quick\" (fox)", ["a"]),
            ("qu*", []),
            ("title:quick", []),
            ("fox~2", []),
            ("quick\" OR \"x", []),
            ("/.*/", ["a", "b", "c", "d", "e"]),
            ("near(quick fox)", []),
        ],
    )  # fmt: skip
    async def test_text_finds_documents_with_all_words_whole(
        self, documents: Documents, collection: str, text: str, expected: list[str]
    ) -> None:
        await self.fill(
            documents,
            collection,
            {
                "a": {"title": "The Quick brown fox", "status": "nothing"},
                "b": {"title": "quick, quicker", "card": {"description": "Licensed to all."}},
                "c": {"title": "gt/all-MiniLM-L6-v2"},
                "d": {"title": "resnet_50.onnx", "card": {"description": "Étude an der Straße"}},
                "e": {"title": "大型語言模型"},
            },
        )

        # By relevance the order is the engine's own.
        assert sorted(await self.found(documents, collection, text=text)) == expected

    async def test_relevance_orders_by_how_often_a_word_occurs(self, documents: Documents, collection: str) -> None:
        await self.fill(
            documents,
            collection,
            {
                "a": {"title": "one two three four five six seven eight nine ten fox"},
                "b": {"title": "fox fox fox"},
                "c": {"title": "a fox and some other words here"},
                **{f"x{n}": {"title": f"filler {n}"} for n in range(20)},
            },
        )

        page = await documents.search(collection, Query(text="fox"))

        assert ids(page) == ["b", "c", "a"]
        scores = [hit.score for hit in page.hits]
        assert all(score is not None for score in scores)
        assert scores == sorted(scores, reverse=True)  # type: ignore[type-var]

    async def test_text_and_filters_and_sort_work_together(self, documents: Documents, collection: str) -> None:
        await self.fill(
            documents,
            collection,
            {f"d{n}": {"title": "fox" if n % 2 else "dog", "size_bytes": -n, "status": str(n % 3)} for n in range(12)},
        )

        found = await self.found(
            documents, collection, Filter("status", "in", ["0", "1"]), text="FOX", sort=Sort("size_bytes")
        )

        assert found == ["d9", "d7", "d3", "d1"]

    async def test_too_many_words_are_refused(self, documents: Documents, collection: str) -> None:
        with pytest.raises(InvalidInput, match="100 words"):
            await documents.search(collection, Query(text=" ".join(f"w{n}" for n in range(101))))
        with pytest.raises(InvalidInput, match="too long"):
            await documents.search(collection, Query(text="x" * 10_001))

    # Order and pages

    @pytest.mark.parametrize(
        ("sort", "expected"),
        [
            (None, ["a", "b", "c", "d", "é"]),
            (Sort("size_bytes"), ["b", "c", "a", "d", "é"]),
            (Sort("size_bytes", descending=True), ["a", "b", "c", "d", "é"]),
            (Sort("score"), ["a", "d", "c", "b", "é"]),
            (Sort("score", descending=True), ["b", "c", "d", "a", "é"]),
            (Sort("created_at"), ["d", "c", "a", "b", "é"]),
            (Sort("created_at", descending=True), ["a", "c", "d", "b", "é"]),
            (Sort("status"), ["c", "é", "b", "d", "a"]),
            (Sort("status", descending=True), ["d", "b", "é", "c", "a"]),
            (Sort("private"), ["b", "a", "d", "c", "é"]),
            (Sort("private", descending=True), ["a", "d", "b", "c", "é"]),
            (Sort("tags"), ["a", "d", "b", "c", "é"]),
            (Sort("tags", descending=True), ["d", "b", "a", "c", "é"]),
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("limit", [1, 2, 4, 5])
    async def test_pages_follow_the_order_with_missing_values_last_and_ties_by_id(
        self, documents: Documents, collection: str, sort: Sort | None, limit: int, expected: list[str]
    ) -> None:
        await self.fill(
            documents,
            collection,
            {
                "d": {"score": 0.30000000000000004, "created_at": at(1, 1), "status": "z", "private": True, "tags": ["b", "z"]},
                "c": {"score": 1e300, "size_bytes": 2**53 + 1, "created_at": at(1, 2), "status": "B"},
                "b": {"score": 1.7e308, "size_bytes": 2**53 + 1, "status": "b", "private": False, "tags": ["c", "d"]},
                "a": {"score": 0.3, "size_bytes": 2**53 + 2, "created_at": at(1, 3), "private": True, "tags": ["a", "cc"]},
                "é": {"status": "C"},
            },
        )  # fmt: skip

        seen, cursor = [], None
        while True:
            page = await documents.search(collection, Query(sort=sort, limit=limit, cursor=cursor))
            assert page.total == 5
            assert len(page.hits) <= limit
            seen += ids(page)
            cursor = page.cursor
            if cursor is None:
                break

        assert seen == expected

    async def test_deep_pages_neither_miss_nor_repeat(self, documents: Documents, collection: str) -> None:
        total = 1500
        await self.fill(
            documents,
            collection,
            {
                f"d{n:04}": {"size_bytes": n % 7, "created_at": at(n % 3), "title": "word " * (n % 5 + 1)}
                for n in range(total)
            },
        )
        for query in (
            Query(limit=97),
            Query(sort=Sort("size_bytes", descending=True), limit=97),
            Query(sort=Sort("created_at"), limit=1000),
            Query(text="word", limit=211),
        ):
            seen: list[str] = []
            cursor = None
            while True:
                page = await documents.search(
                    collection, Query(text=query.text, sort=query.sort, limit=query.limit, cursor=cursor)
                )
                assert page.total == total
                seen += ids(page)
                cursor = page.cursor
                if cursor is None:
                    break

            assert len(seen) == total
            assert len(set(seen)) == total

    async def test_a_page_may_have_another_length_than_the_one_before(
        self, documents: Documents, collection: str
    ) -> None:
        await self.fill(documents, collection, {f"d{n}": {"size_bytes": n} for n in range(6)})
        first = await documents.search(collection, Query(sort=Sort("size_bytes"), limit=2))

        second = await documents.search(collection, Query(sort=Sort("size_bytes"), limit=50, cursor=first.cursor))

        assert ids(second) == ["d2", "d3", "d4", "d5"]
        assert second.cursor is None

    async def test_what_is_saved_between_pages_does_not_shift_them(self, documents: Documents, collection: str) -> None:
        await self.fill(documents, collection, {f"d{n}": {"size_bytes": n} for n in range(1, 5)})
        first = await documents.search(collection, Query(sort=Sort("size_bytes"), limit=2))
        await documents.save(collection, "early", {"size_bytes": 0}, expected=None)
        await documents.refresh(collection)

        second = await documents.search(collection, Query(sort=Sort("size_bytes"), limit=2, cursor=first.cursor))

        assert (ids(first), ids(second)) == (["d1", "d2"], ["d3", "d4"])

    async def test_a_cursor_of_another_query_is_refused(self, documents: Documents, collection: str) -> None:
        await self.fill(documents, collection, {f"d{n}": {"size_bytes": n, "title": "fox"} for n in range(5)})
        query = Query(sort=Sort("size_bytes"), limit=2)
        cursor = (await documents.search(collection, query)).cursor
        assert cursor is not None
        decoded = json.loads(base64.urlsafe_b64decode(cursor + "=="))

        def forged(*parts: Any) -> str:
            return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode()

        others = [
            Query(cursor=cursor),
            Query(sort=Sort("size_bytes", descending=True), cursor=cursor),
            Query(sort=Sort("score"), cursor=cursor),
            Query(sort=Sort("size_bytes"), text="fox", cursor=cursor),
            Query(sort=Sort("size_bytes"), filters=(Filter("size_bytes", "gte", 0),), cursor=cursor),
            *(
                Query(sort=Sort("size_bytes"), cursor=wrong)
                for wrong in (
                    "", "x", "!!!", "é", cursor[:-3], "A" * 10_000, forged(decoded[0], "text", "d1"),
                    forged(decoded[0], 1, 5), forged(decoded[0], {"a": 1}, "d1"), forged(decoded[0], 1),
                    base64.urlsafe_b64encode(b"[" * 5000).decode(),
                )
            ),
        ]  # fmt: skip
        for other in others:
            with pytest.raises(InvalidInput, match="cursor"):
                await documents.search(collection, other)
        assert ids(await documents.search(collection, Query(sort=Sort("size_bytes"), cursor=cursor))) == [
            "d2",
            "d3",
            "d4",
        ]

    @pytest.mark.parametrize("limit", [0, -1, 1001, True])
    async def test_a_limit_out_of_bounds_is_refused(self, documents: Documents, collection: str, limit: int) -> None:
        with pytest.raises(InvalidInput, match="limit"):
            await documents.search(collection, Query(limit=limit))

    @pytest.mark.parametrize(
        "wrong",
        [
            Filter("unknown", "eq", "x"), Filter("title", "eq", "x"), Filter("status", "eq", 1), Filter("status", "in", "abc"),
            Filter("status", "in", [1]), Filter("status", "exists", "yes"), Filter("status", "like", "x"),  # type: ignore[arg-type]
            Filter("size_bytes", "prefix", "1"), Filter("size_bytes", "eq", "1"), Filter("size_bytes", "eq", 1.5),
            Filter("size_bytes", "eq", None), Filter("private", "gt", False), Filter("private", "eq", 1),
            Filter("created_at", "lt", "2026"), Filter("created_at", "prefix", "2026"), Filter("score", "lt", float("nan")),
            Filter("status", "eq", "\ud800"), Filter("status", "in", [str(n) for n in range(1001)]), Filter("_id", "eq", "x"),
        ],
    )  # fmt: skip
    async def test_a_wrong_filter_is_refused(self, documents: Documents, collection: str, wrong: Filter) -> None:
        with pytest.raises(InvalidInput):
            await documents.search(collection, Query(filters=(wrong,)))

    async def test_a_wrong_sort_or_facet_is_refused(self, documents: Documents, collection: str) -> None:
        for path in ("unknown", "title", "_score", 'x" DESC --'):
            with pytest.raises(InvalidInput):
                await documents.search(collection, Query(sort=Sort(path)))
        for path in ("unknown", "title", "size_bytes"):
            with pytest.raises(InvalidInput):
                await documents.search(collection, Query(), facets=[path])

    # Facets

    async def test_facets_count_values_over_all_hits(self, documents: Documents, collection: str) -> None:
        await self.fill(
            documents,
            collection,
            {
                f"d{n}": {"status": "even" if n % 2 == 0 else "odd", "tags": ["all", "all", f"t{n % 3}"], "size_bytes": n,
                          "title": "fox"}
                for n in range(9)
            },
        )  # fmt: skip

        page = await documents.search(
            collection,
            Query(filters=(Filter("size_bytes", "lt", 8),), limit=1),
            facets=["status", "tags", "card.license"],
        )
        by_text = await documents.search(collection, Query(text="fox", limit=1), facets=["status"])

        assert page.facets == {
            "status": {"even": 4, "odd": 4},
            "tags": {"all": 8, "t0": 3, "t1": 3, "t2": 2},
            "card.license": {},
        }
        assert list(page.facets["tags"]) == ["all", "t0", "t1", "t2"]
        assert by_text.facets == {"status": {"even": 5, "odd": 4}}
        assert len(page.hits) == 1

    async def test_a_facet_has_the_fifty_most_frequent_values(self, documents: Documents, collection: str) -> None:
        bodies = {f"d{n:03}": {"tags": [f"t{m:03}" for m in range(n, 60)]} for n in range(60)}
        await self.fill(documents, collection, bodies)

        page = await documents.search(collection, Query(limit=1), facets=["tags"])

        assert len(page.facets["tags"]) == 50
        assert next(iter(page.facets["tags"].items())) == ("t059", 60)
        assert page.facets["tags"]["t010"] == 11
        assert "t009" not in page.facets["tags"]
