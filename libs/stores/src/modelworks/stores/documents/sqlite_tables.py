"""The tables of one collection in SQLite, and the statements that write and search them.

    docs:<c>      a document: id, body as JSON, version, and a column a single-valued field ("v:<path>"); a keyword
                  field has its least and greatest value there ("min:", "max:"), for sorting
    keywords:<c>  each value of each keyword field, for filters and counts
    words:<c>     the words of all text fields together (FTS5, which only splits at spaces here)

Names come from checked schemas and are quoted; values are always bound.
"""

# ruff: noqa: S608 (see above: only names that were checked are put into statements)

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modelworks.stores.documents.fields import Fields, Value, extract, text_words
from modelworks.stores.documents.port import FieldType, Filter
from modelworks.stores.documents.queries import FACET_VALUES_MAX, Checked

_COMPARISONS = {"eq": "=", "gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
_SQL_TYPES = {FieldType.INTEGER: "INTEGER", FieldType.BOOLEAN: "INTEGER", FieldType.FLOAT: "REAL"}


@dataclass(frozen=True, slots=True)
class Row:
    """A hit as it is stored."""

    id: str
    body: str
    version: int
    key: Value | None
    """Its sort value or score."""
    score: float | None


class Tables:
    """One collection as it was declared; a new one is made when fields are added."""

    def __init__(self, collection: str, fields: Fields) -> None:
        self.collection = collection
        self.fields = fields
        self._docs, self._keywords, self._words = (f'"{kind}:{collection}"' for kind in ("docs", "keywords", "words"))
        self._has_text = FieldType.TEXT in fields.values()
        self._keyword = [path for path, kind in fields.items() if kind is FieldType.KEYWORD]
        self._single = [path for path, kind in fields.items() if kind not in (FieldType.KEYWORD, FieldType.TEXT)]
        columns = [f'"v:{path}"' for path in self._single]
        columns += [f'"{end}:{path}"' for path in self._keyword for end in ("min", "max")]
        names = ["id", "body", "version", *columns]
        marks = ", ".join("?" * len(names))
        self._insert = f"INSERT INTO {self._docs} ({', '.join(names)}) VALUES ({marks}) ON CONFLICT (id) DO NOTHING"
        sets = ", ".join(f"{name} = ?" for name in ["body", "version", *columns])
        self._update = f"UPDATE {self._docs} SET {sets} WHERE id = ? AND version = ?"

    # Making and changing

    def create(self, db: sqlite3.Connection, stored: Fields | None) -> None:
        """Make the tables, or add what `stored` lacks and index the documents that are there."""
        columns = {"body": "TEXT NOT NULL", "version": "INTEGER NOT NULL"} if stored is None else {}
        fresh = {path: kind for path, kind in self.fields.items() if stored is None or path not in stored}
        for path, kind in fresh.items():
            if kind is FieldType.KEYWORD:
                columns |= {f"min:{path}": "TEXT", f"max:{path}": "TEXT"}
            elif kind is not FieldType.TEXT:
                columns[f"v:{path}"] = _SQL_TYPES.get(kind, "TEXT")
        if stored is None:
            described = "".join(f', "{name}" {sql}' for name, sql in columns.items())
            db.execute(f"CREATE TABLE {self._docs} (doc INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE{described})")
            db.execute(
                f"CREATE TABLE {self._keywords} (field TEXT NOT NULL, value TEXT NOT NULL, doc INTEGER NOT NULL, "
                "PRIMARY KEY (field, value, doc)) WITHOUT ROWID"
            )
            db.execute(f'CREATE INDEX "keywords:{self.collection}:doc" ON {self._keywords} (doc)')
        else:
            for name, sql in columns.items():
                db.execute(f'ALTER TABLE {self._docs} ADD COLUMN "{name}" {sql}')
        for path, kind in fresh.items():
            if kind not in (FieldType.KEYWORD, FieldType.TEXT):
                db.execute(f'CREATE INDEX "v:{self.collection}:{path}" ON {self._docs} ("v:{path}", id)')
        if self._has_text:
            db.execute(f"CREATE VIRTUAL TABLE IF NOT EXISTS {self._words} USING fts5(words, tokenize = 'ascii')")
        if stored is not None:
            self._index_again(db)

    def _index_again(self, db: sqlite3.Connection) -> None:
        last = ""
        while rows := db.execute(
            f"SELECT id, body, version FROM {self._docs} WHERE id > ? ORDER BY id LIMIT 200",
            (last,),
        ).fetchall():
            for id, text, version in rows:
                self.update(db, id, text, json.loads(text), version, version)
            last = rows[-1][0]

    def insert(self, db: sqlite3.Connection, id: str, text: str, body: Mapping[str, Any], version: int) -> bool:
        """Store a new document; False when the id is taken. Raises InvalidInput for a value of another type."""
        values, keywords = extract(self.fields, body)
        done = db.execute(self._insert, [id, text, version, *self._row(values, keywords)])
        if done.rowcount != 1:
            return False
        doc = done.lastrowid
        assert doc is not None
        self._write_keywords(db, doc, {(path, value) for path, found in keywords.items() for value in found})
        self._write_words(db, doc, values)
        return True

    def update(
        self, db: sqlite3.Connection, id: str, text: str, body: Mapping[str, Any], version: int, expected: int
    ) -> bool:
        """Replace a document; False when it has another version, or is gone."""
        values, keywords = extract(self.fields, body)
        done = db.execute(self._update, [text, version, *self._row(values, keywords), id, expected])
        if done.rowcount != 1:
            return False
        (doc,) = db.execute(f"SELECT doc FROM {self._docs} WHERE id = ?", (id,)).fetchone()
        wanted = {(path, value) for path, found in keywords.items() for value in found}
        stored = set(db.execute(f"SELECT field, value FROM {self._keywords} WHERE doc = ?", (doc,)))
        db.executemany(
            f"DELETE FROM {self._keywords} WHERE field = ? AND value = ? AND doc = ?",
            [(*pair, doc) for pair in stored - wanted],
        )
        self._write_keywords(db, doc, wanted - stored)
        self._write_words(db, doc, values)
        return True

    def delete(self, db: sqlite3.Connection, id: str, expected: int) -> bool:
        """Remove a document; False when it has another version, or is gone."""
        row = db.execute(f"SELECT doc FROM {self._docs} WHERE id = ? AND version = ?", (id, expected)).fetchone()
        if row is None:
            return False
        db.execute(f"DELETE FROM {self._docs} WHERE doc = ?", row)
        db.execute(f"DELETE FROM {self._keywords} WHERE doc = ?", row)
        if self._has_text:
            db.execute(f"DELETE FROM {self._words} WHERE rowid = ?", row)
        return True

    def _row(self, values: Mapping[str, Value], keywords: Mapping[str, Sequence[str]]) -> list[Value | None]:
        row: list[Value | None] = [values.get(path) for path in self._single]
        for path in self._keyword:
            # By code point, which is SQLite's order (and OpenSearch's): bytes of UTF-8.
            found = keywords.get(path)
            row += [min(found), max(found)] if found else [None, None]
        return row

    def _write_keywords(self, db: sqlite3.Connection, doc: int, pairs: set[tuple[str, str]]) -> None:
        db.executemany(f"INSERT INTO {self._keywords} VALUES (?, ?, ?)", [(*pair, doc) for pair in pairs])

    def _write_words(self, db: sqlite3.Connection, doc: int, values: Mapping[str, Value]) -> None:
        if not self._has_text:
            return
        wanted = " ".join(text_words(self.fields, values))
        # Most saves change a status and no text: reading is far cheaper than indexing again.
        stored = db.execute(f"SELECT words FROM {self._words} WHERE rowid = ?", (doc,)).fetchone()
        if stored == (wanted,):
            return
        if stored is not None:
            db.execute(f"DELETE FROM {self._words} WHERE rowid = ?", (doc,))
        db.execute(f"INSERT INTO {self._words} (rowid, words) VALUES (?, ?)", (doc, wanted))

    # Reading

    def get(self, db: sqlite3.Connection, id: str) -> tuple[str, int] | None:
        """Body and version."""
        row: tuple[str, int] | None = db.execute(
            f"SELECT body, version FROM {self._docs} WHERE id = ?",
            (id,),
        ).fetchone()
        return row

    def search(self, db: sqlite3.Connection, query: Checked) -> tuple[list[Row], int, dict[str, dict[str, int]]]:
        """At most `limit` + 1 hits, the count of all, and the facets, in one view of the database."""
        where, bound = self._where(query)
        head, head_bound = self._head(query)
        db.execute("BEGIN")
        try:
            rows = self._page(db, query, where, bound)
            source = f"{head} SELECT count(*) FROM {self._docs} AS d{self._join(query)} WHERE {where}"
            (total,) = db.execute(source, [*head_bound, *bound]).fetchone()
            facets = {}
            for path in query.facets:
                counted = db.execute(
                    f"{head} SELECT k.value, count(*) AS n FROM {self._docs} AS d{self._join(query)} "
                    f"JOIN {self._keywords} AS k ON k.doc = d.doc AND k.field = ? WHERE {where} "
                    f"GROUP BY k.value ORDER BY n DESC, k.value LIMIT {FACET_VALUES_MAX}",
                    [*head_bound, path, *bound],
                )
                facets[path] = dict(counted.fetchall())
        finally:
            db.execute("COMMIT")
        return rows, total, facets

    def _head(self, query: Checked) -> tuple[str, list[Any]]:
        if not query.words:
            return "", []
        # Each word is an FTS5 string: nothing in it is read as syntax. All must occur.
        match = " ".join(f'"{word}"' for word in query.words)
        found = f"SELECT rowid AS doc, -bm25({self._words}) AS score FROM {self._words} WHERE {self._words} MATCH ?"
        return f"WITH found AS MATERIALIZED ({found})", [match]

    @staticmethod
    def _join(query: Checked) -> str:
        return " JOIN found ON found.doc = d.doc" if query.words else ""

    def _page(self, db: sqlite3.Connection, query: Checked, where: str, bound: list[Any]) -> list[Row]:
        if query.sort is None:
            return self._select(db, query, where, bound, key="found.score" if query.by_score else None, descending=True)
        end = "max" if query.sort.descending else "min"
        prefix = end if self.fields[query.sort.path] is FieldType.KEYWORD else "v"
        key = f'd."{prefix}:{query.sort.path}"'
        rows: list[Row] = []
        # Documents with a value, in its order, and then those without, by id: two scans that both use an index.
        if query.after is None or query.after.key is not None:
            with_value = f"{where} AND {key} IS NOT NULL"
            rows = self._select(db, query, with_value, bound, key=key, descending=query.sort.descending)
        if len(rows) <= query.limit:
            room = query.limit + 1 - len(rows)
            after_id = query.after.id if query.after is not None and query.after.key is None else ""
            without = f"{where} AND {key} IS NULL AND d.id > ?"
            rows += self._select(db, query, without, [*bound, after_id], key=None, room=room, continued=False)
        return rows

    def _select(
        self,
        db: sqlite3.Connection,
        query: Checked,
        where: str,
        bound: Sequence[Any],
        *,
        key: str | None,
        descending: bool = False,
        room: int | None = None,
        continued: bool = True,
    ) -> list[Row]:
        """Hits in order of `key`, ties by id; `continued`: behind the query's position."""
        head, head_bound = self._head(query)
        bound = list(bound)
        if query.after is not None and continued:
            if key is None:
                where += " AND d.id > ?"
                bound.append(query.after.id)
            else:
                # The first condition is what an index can seek to; the second drops the rest of the tie.
                less, at_most = ("<", "<=") if descending else (">", ">=")
                where += f" AND {key} {at_most} ? AND ({key} {less} ? OR d.id > ?)"
                bound += [query.after.key, query.after.key, query.after.id]
        order = "d.id" if key is None else f"{key} {'DESC' if descending else 'ASC'}, d.id"
        score = "found.score" if query.words else "NULL"
        rows = db.execute(
            f"{head} SELECT d.id, d.body, d.version, {key or 'NULL'}, {score} FROM {self._docs} AS d{self._join(query)} "
            f"WHERE {where} ORDER BY {order} LIMIT ?",
            [*head_bound, *bound, room or query.limit + 1],
        )
        boolean = query.sort is not None and self.fields[query.sort.path] is FieldType.BOOLEAN
        return [
            Row(id, body, version, bool(value) if boolean and value is not None else value, score)
            for id, body, version, value, score in rows
        ]

    def _where(self, query: Checked) -> tuple[str, list[Any]]:
        conditions, bound = ["1"], []
        for each in query.filters:
            keyword = self.fields[each.path] is FieldType.KEYWORD
            condition, values = self._keyword_condition(each) if keyword else self._condition(each)
            conditions.append(condition)
            bound += values
        return " AND ".join(conditions), bound

    @staticmethod
    def _condition(given: Filter) -> tuple[str, list[Any]]:
        column = f'd."v:{given.path}"'
        if given.op == "exists":
            return f"{column} IS {'NOT ' if given.value else ''}NULL", []
        if given.op == "in":
            return f"{column} IN ({', '.join('?' * len(given.value))})", list(given.value)
        return f"{column} {_COMPARISONS[given.op]} ?", [given.value]

    def _keyword_condition(self, given: Filter) -> tuple[str, list[Any]]:
        select = f"SELECT doc FROM {self._keywords} WHERE field = ?"
        if given.op == "exists":
            return f'd."min:{given.path}" IS {"NOT " if given.value else ""}NULL', []
        if given.op == "in":
            marks = ", ".join("?" * len(given.value))
            return f"d.doc IN ({select} AND value IN ({marks}))", [given.path, *given.value]
        if given.op == "prefix":
            # `value >= prefix` is for the index; the rest says what is meant without any pattern language.
            start: str = given.value
            condition = f"d.doc IN ({select} AND value >= ? AND substr(value, 1, ?) = ?)"
            return condition, [given.path, start, len(start), start]
        return f"d.doc IN ({select} AND value {_COMPARISONS[given.op]} ?)", [given.path, given.value]
