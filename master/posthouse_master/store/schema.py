"""The tables of the SQLite registry: how a row lies on the disk, and whether it is still itself.

Owns: the names of tables, the SQL that is made from the row classes, the sum of each row. Must not
know: files, locks, transactions, what a row means.

Invariant: a row that is read is the row that was written. SQLite finds pages that do not fit
together, not a bit that has turned in a name or a number; so each row carries a sum over all its
values and the name of its table.
"""

import sqlite3
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from types import UnionType
from typing import Any, Final, NamedTuple, get_args, get_origin, get_type_hints

import msgspec

from posthouse_master.store.base import (
    Counters,
    DropGroup,
    DropHost,
    DropRegistration,
    DropRequests,
    EventRow,
    GroupRow,
    HostRow,
    Op,
    PutCounters,
    PutEvent,
    PutGroup,
    PutHost,
    PutRegistration,
    PutRequest,
    PutSlot,
    PutState,
    RequestRow,
    SpecRow,
    StateRow,
    Term,
    TrimEvents,
)

__all__ = [
    "ROWS",
    "VERSION",
    "Damaged",
    "Head",
    "apply",
    "create",
    "is_current",
    "one_head",
    "read",
    "read_head",
    "read_older",
    "write",
]

VERSION: Final = 2
"""Of the schema. It rises with each released version that changes a row class."""


class Damaged(Exception):
    """A row is not what was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The one row of `term`."""

    registry: str
    timeline: int
    epoch: int
    token: int = 0
    sequence: int = 0
    trimmed_to: int = 0
    dropped_to: int = 0
    commits: int = 0  # made in this registry, ever
    recovery: str = ""

    @property
    def term(self) -> Term:
        return Term(registry=self.registry, timeline=self.timeline, epoch=self.epoch)

    @property
    def counters(self) -> Counters:
        return Counters(
            token=self.token,
            sequence=self.sequence,
            trimmed_to=self.trimmed_to,
            dropped_to=self.dropped_to,
            recovery=self.recovery,
        )


class _Table(NamedTuple):
    name: str
    key: tuple[str, ...]
    order: str
    first: str = ""  # a column that no row class has
    last: str = ""


_TABLES: Final[dict[type[Any], _Table]] = {
    Head: _Table("term", ("one",), "one", first="one INTEGER PRIMARY KEY CHECK (one = 1)"),
    SpecRow: _Table("specs", ("slot", "generation"), "slot, generation"),
    StateRow: _Table(
        "states",
        ("slot", "generation"),
        "slot, generation",
        last="FOREIGN KEY (slot, generation) REFERENCES specs ON DELETE CASCADE",
    ),
    PutSlot: _Table("slots", ("slot",), "slot"),
    EventRow: _Table("events", ("sequence",), "sequence"),
    HostRow: _Table("hosts", ("name",), "name"),
    GroupRow: _Table("groups", ("name",), "name"),
    RequestRow: _Table(
        "requests", ("principal", "request"), "place", first="place INTEGER PRIMARY KEY"
    ),
}
ROWS: Final = tuple(row for row in _TABLES if row is not Head)
_PUTS: Final = (PutRegistration, PutState, PutEvent, PutHost, PutGroup, PutRequest)
_SQL_TYPES: Final = {int: "INTEGER", bool: "INTEGER", float: "REAL", bytes: "BLOB"}

_encode = msgspec.msgpack.Encoder().encode


class _Column(NamedTuple):
    name: str
    kind: type[Any]
    optional: bool

    @property
    def sql(self) -> str:
        return f'"{self.name}" {_SQL_TYPES.get(self.kind, "TEXT")}' + (
            "" if self.optional else " NOT NULL"
        )


def _columns_of(row: type[Any]) -> tuple[_Column, ...]:
    hints = get_type_hints(row)
    found = []
    for field in fields(row):
        kind = hints[field.name]
        optional = get_origin(kind) is UnionType
        if optional:
            (kind,) = (each for each in get_args(kind) if each is not type(None))
        found.append(_Column(field.name, kind, optional))
    return tuple(found)


_COLUMNS: Final = {row: _columns_of(row) for row in _TABLES}


def _names(row: type[Any]) -> str:
    return ", ".join(f'"{column.name}"' for column in _COLUMNS[row])


def _create(row: type[Any]) -> str:
    table = _TABLES[row]
    parts = [table.first, *(column.sql for column in _COLUMNS[row]), "sum INTEGER NOT NULL"]
    keyed = "PRIMARY KEY" if not table.first else "UNIQUE" if row is RequestRow else ""
    if keyed:
        parts.append(f"{keyed} ({', '.join(table.key)})")
    parts.append(table.last)
    body = ",\n    ".join(part for part in parts if part)
    return f"CREATE TABLE {table.name} (\n    {body}\n) STRICT"


def _upsert(row: type[Any]) -> str:
    table = _TABLES[row]
    columns = _COLUMNS[row]
    one = ("one", "1, ") if row is Head else ("", "")
    names = ", ".join(part for part in (one[0], _names(row), "sum") if part)
    marks = one[1] + ", ".join("?" * (len(columns) + 1))
    insert = f"INSERT INTO {table.name} ({names}) VALUES ({marks})"  # noqa: S608 - our own names
    if row is EventRow:  # an event is written once; a second one would be a defect
        return insert
    changed = [column.name for column in columns if column.name not in table.key]
    sets = ", ".join(f'"{name}" = excluded."{name}"' for name in (*changed, "sum"))
    return f"{insert} ON CONFLICT ({', '.join(table.key)}) DO UPDATE SET {sets}"


_CREATE: Final = {_TABLES[row].name: _create(row) for row in _TABLES}
_UPSERT: Final = {row: _upsert(row) for row in _TABLES}


_SELECT_HEAD: Final = f"SELECT {_names(Head)}, sum FROM term"  # noqa: S608 - our own names
_HEAD_NAMES: Final = [column.name for column in _COLUMNS[Head]]


def create(database: sqlite3.Connection) -> None:
    """Make the tables, empty."""
    for sql in _CREATE.values():
        database.execute(sql)


def is_current(database: sqlite3.Connection) -> bool:
    """Whether the tables are those of this version; else they are of an older one, or damaged."""
    return dict(database.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'table'")) == (
        _CREATE
    )


# --- rows ---


def write(database: sqlite3.Connection, row: Any) -> None:
    """Put a row, with its sum."""
    kind = type(row)
    values = list(_VALUES[kind](row))
    for place, convert in _WRITERS[kind]:  # as the column gives it back: the sum is over that
        if values[place] is not None:
            values[place] = convert(values[place])
    values.append(_sum(kind, values))
    database.execute(_UPSERT[kind], values)


def read(database: sqlite3.Connection, row: type[Any]) -> Iterator[Any]:
    """All rows of a table, in their order. Raises Damaged."""
    table = _TABLES[row]
    names = [column.name for column in _COLUMNS[row]]
    texts = [place for place, column in enumerate(_COLUMNS[row]) if column.kind is str]
    same: dict[str, str] = {}  # one object for a principal or a host that stands in every row
    sql = f"SELECT {_names(row)}, sum FROM {table.name} ORDER BY {table.order}"  # noqa: S608
    for *values, found in database.execute(sql):
        if found != _sum(row, values):
            raise Damaged(f"a row of {table.name} is not what was written: {_key(row, values)}")
        for place in texts:
            values[place] = same.setdefault(values[place], values[place])
        for place, kind in _READERS[row]:
            if values[place] is not None:
                values[place] = kind(values[place])
        yield row(**dict(zip(names, values, strict=True)))


def read_head(database: sqlite3.Connection) -> Head:
    """Raises Damaged. In every transaction, so without the generality of `read`."""
    found = database.execute(_SELECT_HEAD).fetchone()
    if found is None:
        raise Damaged("it has no term")
    *values, total = found
    if total != _sum(Head, values):
        raise Damaged("the row of term is not what was written")
    return Head(**dict(zip(_HEAD_NAMES, values, strict=True)))


def one_head(rows: Sequence[Any]) -> Head:
    """The head among rows, which have exactly one. Raises Damaged."""
    found = [row for row in rows if isinstance(row, Head)]
    if len(found) != 1:
        raise Damaged("it has no term")
    return found[0]


def _real(value: float) -> float:
    return float(value) + 0.0  # SQLite keeps no negative zero


_AS_READ: Final[dict[type[Any], Callable[[Any], Any]]] = {bool: int, float: _real}
_WRITERS: Final = {
    row: tuple(
        (place, _AS_READ[column.kind])
        for place, column in enumerate(columns)
        if column.kind in _AS_READ
    )
    for row, columns in _COLUMNS.items()
}
_VALUES: Final = {
    row: attrgetter(*(column.name for column in columns)) for row, columns in _COLUMNS.items()
}


# Columns that SQLite gives back as another type: bool and enums.
_READERS: Final = {
    row: tuple(
        (place, column.kind)
        for place, column in enumerate(columns)
        if column.kind not in (int, float, bytes, str)
    )
    for row, columns in _COLUMNS.items()
}


def _sum(row: type[Any], values: Sequence[Any]) -> int:
    return zlib.crc32(_encode((_TABLES[row].name, *values)))


def _key(row: type[Any], values: Sequence[Any]) -> str:
    named = zip((column.name for column in _COLUMNS[row]), values, strict=True)
    key = _TABLES[row].key
    return ", ".join(f"{name} {value!r}"[:80] for name, value in named if name in key)


# --- operations ---


def apply(database: sqlite3.Connection, head: Head, op: Op) -> Head:
    """Carry out an operation; the head as it is after it, not yet written."""
    if isinstance(op, _PUTS):
        write(database, op.row)
        return head
    match op:
        case PutSlot():
            write(database, op)
        case DropRegistration(slot, generation):
            database.execute(
                "DELETE FROM specs WHERE slot = ? AND generation = ?", (slot, generation)
            )
        case TrimEvents(sequences):
            database.executemany(
                "DELETE FROM events WHERE sequence = ?", [(sequence,) for sequence in sequences]
            )
        case DropHost(name):
            database.execute("DELETE FROM hosts WHERE name = ?", (name,))
        case DropGroup(name):
            database.execute("DELETE FROM groups WHERE name = ?", (name,))
        case DropRequests(keys):
            database.executemany("DELETE FROM requests WHERE principal = ? AND request = ?", keys)
        case PutCounters(row):
            return replace(
                head,
                token=row.token,
                sequence=row.sequence,
                trimmed_to=row.trimmed_to,
                dropped_to=row.dropped_to,
                recovery=row.recovery,
            )
    return head


# --- older schemas ---


def read_older(database: sqlite3.Connection) -> Iterator[Any]:
    """The rows of an older schema as rows of this one, the head first. What a row of old did not
    have is as in a row class by default: TypeError if it has none. What it has and no row class
    knows is not of an older schema: Damaged."""
    found = database.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
    tables = {str(name) for (name,) in found}
    if unknown := sorted(tables - {table.name for table in _TABLES.values()}):
        raise Damaged(f"it has tables that no schema up to {VERSION} has: {unknown}"[:500])
    for row in _TABLES:
        table = _TABLES[row]
        there = [column[1] for column in database.execute(f"PRAGMA table_info({table.name})")]
        if not there and table.name not in tables:
            continue  # a table that came later
        own = table.first.partition(" ")[0]
        names = [name for name in there if name not in (own, "sum")]
        kinds = {column.name: column.kind for column in _COLUMNS[row]}
        unknown = [name for name in names if name not in kinds]
        if not there or unknown:
            raise Damaged(f"{table.name} has what no schema up to {VERSION} has: {unknown}"[:500])
        listed = ", ".join(f'"{name}"' for name in names)
        summed = "sum" if "sum" in there else "NULL"  # not before schema 2
        sql = f"SELECT {listed}, {summed} FROM {table.name} ORDER BY {table.order}"  # noqa: S608
        for *values, found in database.execute(sql):
            if found is not None and found != _sum(row, values):
                raise Damaged(f"a row of {table.name} is not what was written: {values[:2]}"[:200])
            yield row(
                **{
                    name: value if value is None else kinds[name](value)
                    for name, value in zip(names, values, strict=True)
                }
            )
