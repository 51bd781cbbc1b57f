"""The fields of a message or a record: their types and defaults in words.

Owns: how a declared type is told. Must not know: which messages there are. Invariant: a type
without a word is an error.
"""

import re
from typing import Any

import msgspec
from msgspec import inspect as types

from pages.notes import Notes, Unfit, prose, shown, table
from posthouse import states

__all__ = ["fields_table", "section", "wire_name"]


def wire_name(cls: type[Any]) -> str:
    """START_FAILED of StartFailed."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).upper()


def number(value: float) -> str:
    return {2**63 - 1: "2^63-1", 2**31 - 1: "2^31-1"}.get(int(value), f"{value:.15g}")


def kind_of(found: types.Type) -> str:
    """A declared type in words."""
    match found:
        case types.IntType(ge=low, le=high):
            return f"integer {number(low or 0)} to {number(high or 0)}"
        case types.StrType(min_length=low, max_length=high):
            if low == high:
                return f"text of {high}"
            return f"text, {low} to {high}" if low else f"text, at most {high}"
        case types.BytesType(min_length=low, max_length=high):
            return f"{high} bytes" if low == high else f"at most {high} bytes"
        case types.EnumType(cls=states.EventKind):
            return "[EventKind](#following-the-log)"
        case types.EnumType(cls=cls):
            return f"[{cls.__name__}](#enumerations)"
        case types.StructType(cls=cls):
            return f"[{cls.__name__}](#{cls.__name__.lower()})"
        case types.ListType(item_type=item, max_length=high):
            return f"array of at most {high}: {kind_of(item)}"
        case types.FloatType() | types.BoolType() | types.DictType():
            return {types.FloatType: "number", types.BoolType: "boolean"}.get(type(found), "map")
        case types.UnionType(types=union):
            inner = [one for one in union if not isinstance(one, types.NoneType)]
            return " or ".join(kind_of(one) for one in inner) + " or nil"
    raise Unfit(f"no word for {found}")


def default_of(field: types.Field) -> str:
    if field.required:
        return "required"
    value = field.default
    if value is msgspec.UNSET or value is msgspec.NODEFAULT:
        value = field.default_factory()
    return shown(value)


def fields_table(cls: type[Any], notes: Notes) -> str:
    info = types.type_info(cls)
    assert isinstance(info, types.StructType)
    rows = [
        (
            f"`{field.encode_name}`",
            kind_of(field.type),
            default_of(field),
            notes.field(cls, field.encode_name),
        )
        for field in info.fields
    ]
    return table(("field", "type", "default", ""), rows) if rows else "No fields."


def section(cls: type[Any], title: str, notes: Notes) -> str:
    return f"#### {title}\n\n{prose(cls)}\n\n{fields_table(cls, notes)}\n"
