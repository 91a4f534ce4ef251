"""How a collection lies in OpenSearch: its mapping, a document as it is indexed, a query as it is asked. No network here.

An indexed document has its declared fields under their own names, so that a person finds them in Dashboards, and beside
them `@document`: the id (for order), the words of all text fields (split as the SQLite adapter splits them, so that both
find the same), and the body itself, which OpenSearch keeps and does not look into.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from modelworks.stores.documents.fields import Fields, Value, extract, text_words
from modelworks.stores.documents.port import FieldType, Filter
from modelworks.stores.documents.queries import FACET_VALUES_MAX, Checked

ID = "@document.id"
WORDS = "@document.words"
BODY = "@document.body"
TOTAL = "total"

_RANGES = frozenset({"gt", "gte", "lt", "lte"})
_TYPES: Mapping[FieldType, Mapping[str, Any]] = {
    # The bound of 1000 characters is kept by `fields.extract`; this one counts UTF-16 units.
    FieldType.KEYWORD: {"type": "keyword", "ignore_above": 2000},
    FieldType.TEXT: {"type": "text"},
    FieldType.INTEGER: {"type": "long"},
    FieldType.FLOAT: {"type": "double"},
    FieldType.BOOLEAN: {"type": "boolean"},
    # A date has milliseconds: good for Dashboards. The text has all six digits: that is what we compare.
    FieldType.TIME: {"type": "date", "format": "strict_date_optional_time", "fields": {"exact": {"type": "keyword"}}},
}
_BACK = {mapping["type"]: kind for kind, mapping in _TYPES.items()}


def index_body(alias: str, fields: Fields) -> dict[str, Any]:
    """The request that makes an index of a collection, with its alias."""
    return {
        "settings": {
            # None on one node, one on more: a copy that cannot be placed would keep the cluster yellow.
            "auto_expand_replicas": "0-1",
            "analysis": {"analyzer": {"words": {"type": "custom", "tokenizer": "whitespace"}}},
        },
        "mappings": {
            "dynamic": False,
            # The words can be made again from the body.
            "_source": {"excludes": [WORDS]},
            **mapping_body(fields, indexed=fields),
        },
        "aliases": {alias: {"is_write_index": True}},
    }


def mapping_body(fields: Fields, *, indexed: Fields) -> dict[str, Any]:
    """Properties of the fields. `indexed`: those that all stored documents have been indexed with."""
    properties: dict[str, Any] = {
        "@document": {
            "properties": {
                "id": {"type": "keyword"},
                "words": {"type": "text", "analyzer": "words"},
                "body": {"type": "object", "enabled": False},
            }
        }
    }
    for path, kind in fields.items():
        at = properties
        *parents, name = path.split(".")
        for parent in parents:
            at = at.setdefault(parent, {"properties": {}})["properties"]
        at[name] = dict(_TYPES[kind])
    return {"properties": properties, "_meta": {"indexed": sorted(indexed)}}


def fields_of(mapping: Mapping[str, Any]) -> tuple[dict[str, FieldType], set[str]]:
    """The declared fields of a stored mapping, and those that all documents have been indexed with."""

    def walk(properties: Mapping[str, Any], prefix: str) -> None:
        for name, described in properties.items():
            if "properties" in described:
                walk(described["properties"], f"{prefix}{name}.")
            elif described.get("type") in _BACK:
                fields[f"{prefix}{name}"] = _BACK[described["type"]]

    fields: dict[str, FieldType] = {}
    properties = {name: each for name, each in mapping.get("properties", {}).items() if name != "@document"}
    walk(properties, "")
    return fields, set(mapping.get("_meta", {}).get("indexed", ()))


def document_text(fields: Fields, id: str, text: str, body: Mapping[str, Any]) -> str:
    """A document as it is indexed, as JSON. `text` is the body as JSON.

    Raises:
        InvalidInput: a declared field has a value of another type.
    """
    values, keywords = extract(fields, body)
    indexed: dict[str, Any] = {}
    # One keyword reads better alone than as a list of one; OpenSearch takes both.
    single = {path: found[0] if len(found) == 1 else found for path, found in keywords.items()}
    for path, value in {**values, **single}.items():
        at = indexed
        *parents, name = path.split(".")
        for parent in parents:
            at = at.setdefault(parent, {})
        at[name] = value
    beside = json.dumps({"id": id, "words": " ".join(text_words(fields, values))}, ensure_ascii=False)
    named = json.dumps(indexed, ensure_ascii=False)
    document = f'"@document":{beside[:-1]},"body":{text}}}'
    return f"{{{document}}}" if named == "{}" else f"{named[:-1]},{document}}}"


def search_body(fields: Fields, query: Checked) -> dict[str, Any]:
    """The search request of a page: one hit more than the limit tells whether there is another."""
    asked: dict[str, Any] = {"filter": [_condition(fields, each) for each in query.filters]}
    if query.words:
        asked["must"] = [{"match": {WORDS: {"query": " ".join(query.words), "operator": "and"}}}]
    body: dict[str, Any] = {
        "query": {"bool": asked},
        "size": query.limit + 1,
        "track_total_hits": True,
        "track_scores": bool(query.words),
        "seq_no_primary_term": True,
        "_source": [BODY, *([query.sort.path] if query.sort else [])],
        "sort": _order(fields, query),
        "aggs": {
            f"facet:{path}": {
                "terms": {
                    "field": path, "size": FACET_VALUES_MAX, "shard_size": FACET_VALUES_MAX * 20,
                    "order": [{"_count": "desc"}, {"_key": "asc"}],
                }
            }
            for path in query.facets
        },
    }  # fmt: skip
    if query.after is not None:
        _continue(fields, query, body)
    return body


def sort_key(fields: Fields, query: Checked, hit: Mapping[str, Any]) -> Value | None:
    """The value that a hit was sorted by: what a cursor behind it needs."""
    if query.by_score:
        return float(hit["_score"])
    if query.sort is None:
        return None
    kind = fields[query.sort.path]
    if kind in (FieldType.KEYWORD, FieldType.TIME):
        value: str | None = hit["sort"][0]
        return value
    # Of a missing number the sort value is the type's greatest, which may also be a number that is there.
    at: Any = hit["_source"]
    for name in query.sort.path.split("."):
        at = at.get(name) if isinstance(at, Mapping) else None
    return float(at) if kind is FieldType.FLOAT and at is not None else at


def _order(fields: Fields, query: Checked) -> list[dict[str, Any]]:
    by_id = {ID: {"order": "asc"}}
    if query.by_score:
        return [{"_score": {"order": "desc"}}, by_id]
    if query.sort is None:
        return [by_id]
    order = "desc" if query.sort.descending else "asc"
    return [{_exact(fields, query.sort.path): {"order": order, "missing": "_last"}}, by_id]


def _continue(fields: Fields, query: Checked, body: dict[str, Any]) -> None:
    assert query.after is not None
    key = query.after.key
    if key is not None:
        # A boolean is sorted as 0 and 1, and only taken back as such.
        body["search_after"] = [int(key) if isinstance(key, bool) else key, query.after.id]
    elif query.sort is None:
        body["search_after"] = [query.after.id]
    else:
        # Among the documents without a value, which come last; a null cannot be searched after. A filter behind the
        # query leaves the facets alone, but not the total, so that is counted beside them.
        body["sort"] = [{ID: {"order": "asc"}}]
        body["search_after"] = [query.after.id]
        body["post_filter"] = {"bool": {"must_not": [{"exists": {"field": _exact(fields, query.sort.path)}}]}}
        body["aggs"][TOTAL] = {"filter": {"match_all": {}}}


def _exact(fields: Fields, path: str) -> str:
    return f"{path}.exact" if fields[path] is FieldType.TIME else path


def _condition(fields: Fields, given: Filter) -> dict[str, Any]:
    name = _exact(fields, given.path)
    if given.op == "exists":
        exists = {"exists": {"field": name}}
        return exists if given.value else {"bool": {"must_not": [exists]}}
    if given.op == "in":
        return {"terms": {name: list(given.value)}}
    if given.op in _RANGES:
        return {"range": {name: {given.op: given.value}}}
    if given.op == "prefix":
        return {"prefix": {name: {"value": given.value}}}
    return {"term": {name: {"value": given.value}}}
