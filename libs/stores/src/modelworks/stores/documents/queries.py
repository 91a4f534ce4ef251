"""Checks a query against the declared fields, and binds its cursor to it, the same for both adapters."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from modelworks.kit.errors import InvalidInput
from modelworks.stores.documents.fields import VALUES_MAX, Fields, Value, check_value, words
from modelworks.stores.documents.port import FieldType, Filter, Query, Sort

LIMIT_MAX = 1000
FACET_VALUES_MAX = 50
_FILTERS_MAX = 50
_CURSOR_CHARACTERS_MAX = 8_192

_OPERATIONS = {
    FieldType.KEYWORD: {"eq", "in", "gt", "gte", "lt", "lte", "prefix", "exists"},
    FieldType.TIME: {"eq", "in", "gt", "gte", "lt", "lte", "exists"},
    FieldType.INTEGER: {"eq", "in", "gt", "gte", "lt", "lte", "exists"},
    FieldType.FLOAT: {"eq", "in", "gt", "gte", "lt", "lte", "exists"},
    FieldType.BOOLEAN: {"eq", "in", "exists"},
}


@dataclass(frozen=True, slots=True)
class Position:
    """Behind which hit a page starts."""

    key: Value | None
    """Its sort value or score; None when it has none, or the order is by id alone."""
    id: str


@dataclass(frozen=True, slots=True)
class Checked:
    """A query that fits its collection."""

    filters: Sequence[Filter]
    words: Sequence[str]
    text_fields: Sequence[str]
    sort: Sort | None
    limit: int
    after: Position | None
    facets: Sequence[str]
    binding: str = field(repr=False)
    """Names the query in its cursors."""

    @property
    def by_score(self) -> bool:
        """Relevance is the order."""
        return self.sort is None and bool(self.words)

    def cursor(self, key: Value | None, id: str) -> str:
        """The cursor of a page that ends with this hit."""
        text = json.dumps([self.binding, key, id], ensure_ascii=False, separators=(",", ":"))
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def check_query(collection: str, fields: Fields, query: Query, facets: Sequence[str]) -> Checked:
    """The query, when it fits.

    Raises:
        InvalidInput: it does not; the message says where.
    """
    if isinstance(query.limit, bool) or not 1 <= query.limit <= LIMIT_MAX:
        raise InvalidInput(f"limit {query.limit} is out of bounds: give 1 to {LIMIT_MAX}")
    if len(query.filters) > _FILTERS_MAX:
        raise InvalidInput(f"the query has {len(query.filters)} filters: {_FILTERS_MAX} at most")
    filters = [_check_filter(collection, fields, each) for each in query.filters]
    found = words(query.text)
    text_fields = [path for path, kind in fields.items() if kind is FieldType.TEXT]
    if found and not text_fields:
        raise InvalidInput(f"{collection} has no text fields to search for words in: filter instead")
    sort = query.sort
    if sort is not None and _kind(collection, fields, sort.path) is FieldType.TEXT:
        raise InvalidInput(f"cannot sort by {sort.path!r}: it is a text field")
    for path in facets:
        if _kind(collection, fields, path) is not FieldType.KEYWORD:
            raise InvalidInput(f"cannot count values of {path!r}: it is no keyword field")
    binding = _bind(collection, filters, found, sort)
    checked = Checked(filters, found, text_fields, sort, query.limit, None, tuple(facets), binding)
    if query.cursor is None:
        return checked
    after = _position(query.cursor, checked, fields)
    return Checked(filters, found, text_fields, sort, query.limit, after, tuple(facets), binding)


def _kind(collection: str, fields: Fields, path: str) -> FieldType:
    kind = fields.get(path)
    if kind is None:
        known = ", ".join(sorted(fields)) or "none"
        raise InvalidInput(f"{collection} has no indexed field {path[:200]!r}: it has {known}")
    return kind


def _check_filter(collection: str, fields: Fields, given: Filter) -> Filter:
    kind = _kind(collection, fields, given.path)
    if kind is FieldType.TEXT:
        raise InvalidInput(f"cannot filter by {given.path!r}: it is a text field, search for its words")
    if given.op not in _OPERATIONS[kind]:
        raise InvalidInput(f"cannot filter {kind} field {given.path!r} by {given.op!r}")
    if given.op == "exists":
        if not isinstance(given.value, bool):
            raise InvalidInput(f"filter 'exists' on {given.path!r} needs true or false")
        return given
    if given.op == "in":
        values = given.value
        if isinstance(values, (str, bytes)) or not isinstance(values, (Sequence, set, frozenset)):
            raise InvalidInput(f"filter 'in' on {given.path!r} needs a list")
        if len(values) > VALUES_MAX:
            raise InvalidInput(f"filter 'in' on {given.path!r} has {len(values)} values: {VALUES_MAX} at most")
        checked = sorted(_check_operand(given.path, kind, value) for value in values)
        return Filter(given.path, "in", checked)
    return Filter(given.path, given.op, _check_operand(given.path, kind, given.value))


def _check_operand(path: str, kind: FieldType, value: Any) -> Any:
    checked = check_value(path, kind, value)
    if isinstance(checked, str):
        try:
            checked.encode()
        except UnicodeEncodeError as error:
            raise InvalidInput(f"filter on {path!r} holds half of a surrogate pair: it is not text") from error
    return checked


def _bind(collection: str, filters: Sequence[Filter], found: Sequence[str], sort: Sort | None) -> str:
    """The limit is not part of it: pages may differ in length."""
    said = [
        collection,
        [[each.path, each.op, each.value] for each in filters],
        list(found),
        [sort.path, sort.descending] if sort else None,
    ]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:24]


def _position(cursor: str, query: Checked, fields: Fields) -> Position:
    refused = InvalidInput("the cursor is not one of this query: start again without it")
    if len(cursor) > _CURSOR_CHARACTERS_MAX:
        raise refused
    try:
        binding, key, id = json.loads(base64.urlsafe_b64decode(cursor.encode() + b"=" * (-len(cursor) % 4)))
    except (binascii.Error, ValueError, TypeError, RecursionError) as error:
        raise refused from error
    if binding != query.binding or not isinstance(id, str):
        raise refused
    try:
        id.encode()
        if query.sort is not None:
            key = None if key is None else check_value(query.sort.path, fields[query.sort.path], key)
        elif query.by_score:
            key = check_value("score", FieldType.FLOAT, key)
        elif key is not None:
            raise refused
    except (InvalidInput, UnicodeEncodeError) as error:
        raise refused from error
    return Position(key, id)
