"""What a document and its indexed fields may be: read out of the body once, here, so that both adapters index the same."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from unicodedata import normalize

from modelworks.kit.errors import InvalidInput, TooLarge
from modelworks.stores.documents.port import FieldType, Schema

BODY_BYTES_MAX = 4 * 1024 * 1024
ID_BYTES_MAX = 512
"""OpenSearch's own bound."""
KEYWORD_CHARACTERS_MAX = 1000
VALUES_MAX = 1000
"""Of one KEYWORD list."""
FIELDS_MAX = 100

Fields = Mapping[str, FieldType]
"""Path to type."""
Value = str | int | float | bool
"""An indexed value that is not a KEYWORD."""

_SEARCH_WORDS_MAX = 100
_SEARCH_CHARACTERS_MAX = 10_000

_COLLECTION = re.compile(r"[a-z][a-z0-9-]{0,99}", re.ASCII)
_PATH = re.compile(r"[A-Za-z0-9_@-]+(\.[A-Za-z0-9_@-]+)*", re.ASCII)
_TIME = re.compile(r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])T([01]\d|2[0-3]):[0-5]\d:[0-5]\d\.\d{6}Z", re.ASCII)
# Chinese and Japanese are written without spaces: each of their characters is a word.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+")


def check_schema(schema: Schema) -> dict[str, FieldType]:
    """The schema's fields by path.

    Raises:
        InvalidInput: a name is malformed, a path is declared twice, or one runs through another.
    """
    check_collection(schema.collection)
    fields: dict[str, FieldType] = {}
    for declared in schema.fields:
        if not _PATH.fullmatch(declared.path) or len(declared.path) > 200 or declared.path.startswith("@document"):
            raise InvalidInput(f"field {declared.path[:200]!r} is malformed: use names of A-Z a-z 0-9 _ @ - with dots")
        if fields.get(declared.path, declared.type) != declared.type:
            raise InvalidInput(f"field {declared.path!r} of {schema.collection} is declared with two types")
        fields[declared.path] = FieldType(declared.type)
    if len(fields) > FIELDS_MAX:
        raise InvalidInput(f"{schema.collection} declares {len(fields)} fields: {FIELDS_MAX} at most")
    return fields


def merge(collection: str, stored: Fields, wanted: Fields) -> dict[str, FieldType]:
    """The stored fields and the new ones.

    Raises:
        InvalidInput: one is stored with another type, or lies inside another.
    """
    for path, kind in wanted.items():
        if stored.get(path, kind) != kind:
            raise InvalidInput(
                f"field {path!r} of {collection} is {stored[path]}, not {kind}: give the new field another name"
            )
    merged = {**stored, **wanted}
    for path in merged:
        parents = path.split(".")[:-1]
        for depth in range(1, len(parents) + 1):
            parent = ".".join(parents[:depth])
            if parent in merged:
                raise InvalidInput(f"field {path!r} of {collection} lies inside field {parent!r}: declare one of them")
    return merged


def check_collection(collection: str) -> str:
    """The name, when it is one; raises InvalidInput."""
    if not _COLLECTION.fullmatch(collection):
        raise InvalidInput(f"collection {collection[:100]!r} is malformed: use a-z 0-9 -, a letter first")
    return collection


def check_id(id: str) -> str:
    """The id, when it is one; raises InvalidInput."""
    if not id or len(_utf8(id, "id")) > ID_BYTES_MAX:
        raise InvalidInput(f"document id {id[:60]!r} is malformed: give 1 to {ID_BYTES_MAX} bytes")
    return id


def encode(body: Mapping[str, Any]) -> str:
    """The body as JSON.

    Raises:
        InvalidInput: it is not JSON.
        TooLarge: it has more than 4 MiB.
    """
    if not isinstance(body, Mapping):
        raise InvalidInput(f"a document is a JSON object, not {type(body).__name__}")
    try:
        text = json.dumps(dict(body), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"the document is not JSON: {error}") from error
    size_bytes = len(_utf8(text, "the document"))
    if size_bytes > BODY_BYTES_MAX:
        raise TooLarge(f"the document has {size_bytes} bytes as JSON, more than {BODY_BYTES_MAX}: keep it as an object")
    return text


def extract(fields: Fields, body: Mapping[str, Any]) -> tuple[dict[str, Value], dict[str, Sequence[str]]]:
    """The values to index: of single-valued fields by path, and of KEYWORD fields, which may have several.

    None, absent and an empty list are the same: no value.

    Raises:
        InvalidInput: a value is of another type than its field.
    """
    values: dict[str, Value] = {}
    keywords: dict[str, Sequence[str]] = {}
    for path, kind in fields.items():
        found = list(_at(body, path.split(".")))
        if kind is FieldType.KEYWORD:
            strings = _keywords(path, found)
            if strings:
                keywords[path] = strings
        elif found:
            if len(found) > 1 or isinstance(found[0], list):
                raise InvalidInput(f"field {path!r} is {kind} and has a list: only keyword fields may")
            values[path] = check_value(path, kind, found[0])
    return values, keywords


def check_value(path: str, kind: FieldType, value: Any) -> Value:
    """The value as it is indexed: floats are floats.

    Raises:
        InvalidInput: it is not of the field's type.
    """
    match kind, value:
        case (FieldType.BOOLEAN, bool()):
            return value
        case (FieldType.INTEGER, int()) if not isinstance(value, bool) and -(2**63) <= value < 2**63:
            return value
        case (FieldType.FLOAT, int() | float()) if not isinstance(value, bool):
            return _float(path, value)
        case (FieldType.TIME, str()) if _TIME.fullmatch(value):
            return value
        case (FieldType.KEYWORD | FieldType.TEXT, str()):
            return value
    expected = "time as YYYY-MM-DDTHH:MM:SS.ffffffZ" if kind is FieldType.TIME else str(kind)
    raise InvalidInput(f"field {path!r} has {_shown(value)}, which is no {expected}", field=path)


def words(text: str) -> list[str]:
    """The different words of a text that a user typed.

    Raises:
        InvalidInput: there are too many.
    """
    found = list(dict.fromkeys(_split(text))) if len(text) <= _SEARCH_CHARACTERS_MAX else []
    if len(text) > _SEARCH_CHARACTERS_MAX or len(found) > _SEARCH_WORDS_MAX:
        raise InvalidInput(
            f"the search text is too long: give at most {_SEARCH_WORDS_MAX} words, {_SEARCH_CHARACTERS_MAX} characters"
        )
    return found


def text_words(fields: Fields, values: Mapping[str, Value]) -> list[str]:
    """All words of a document's TEXT fields, repeated as they are: what is searched."""
    found: list[str] = []
    for path, kind in fields.items():
        if kind is FieldType.TEXT and path in values:
            found += _split(str(values[path]))
    return found


def _split(text: str) -> list[str]:
    """Runs of letters and digits without regard to case or to the form of a character (é, full width)."""
    return _WORD.findall(text.lower() if text.isascii() else normalize("NFKC", text).casefold())


def _at(value: Any, path: Sequence[str]) -> Iterable[Any]:
    """What lies at a path; through a list of objects, in each of them."""
    if isinstance(value, list) and path:
        for item in value:
            yield from _at(item, path)
    elif not path:
        if value is not None and value != []:
            yield value
    elif isinstance(value, Mapping) and path[0] in value:
        yield from _at(value[path[0]], path[1:])


def _keywords(path: str, found: Iterable[Any]) -> list[str]:
    flat: dict[str, None] = {}
    for item in found:
        for value in item if isinstance(item, list) else [item]:
            if not isinstance(value, str):
                raise InvalidInput(f"field {path!r} has {_shown(value)}, which is no keyword", field=path)
            if len(value) <= KEYWORD_CHARACTERS_MAX:
                flat[value] = None
    if len(flat) > VALUES_MAX:
        raise InvalidInput(f"field {path!r} has {len(flat)} values: {VALUES_MAX} at most are indexed")
    return list(flat)


def _float(path: str, value: int | float) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InvalidInput(f"field {path!r} has {_shown(value)}, which is no finite float", field=path)
    return number


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "..."


def _utf8(text: str, what: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(f"{what} holds half of a surrogate pair: it is not text") from error
