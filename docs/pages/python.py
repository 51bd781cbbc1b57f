"""The page of the Python API: every public name with its signature and docstring, from the sources.

Owns: how a function, a record, a class and a constant are told. Must not know: any name; the
modules say in `__all__` what is public. Invariant: every name is told, once, as the source has it.
"""

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from enum import Enum
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from pages.notes import Notes, Tables, Unfit
from posthouse.errors import PosthouseError

__all__ = ["TABLES"]

# The modules that an application imports; aio as soon as it is there.
MODULES = ("posthouse", "posthouse.aio", "posthouse.worker", "posthouse.shmem", "posthouse.exec")
MODULES += ("posthouse_testing", "posthouse_testing.inside")
# Classes without a public name of their own, which the calls of a module give.
GIVEN = {
    "posthouse.worker": ("posthouse.spi", ("Session", "Result", "Plan", "Cursor", "Notification"))
}
# The bounds of the wire are in protocol.md; here the plain type says enough.
PLAIN = {"Word": "str", "Text": "str", "Name": "str", "Int": "int", "Pid": "int", "Finite": "float"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(inspect.getsource(importlib.import_module(module)))


def home(module: ModuleType, name: str) -> tuple[str, str]:
    """Where a public name is defined: the module, and its name there."""
    value = getattr(module, name)
    owner = getattr(value, "__module__", None)
    if inspect.isclass(value) or inspect.isfunction(value):
        return str(owner), value.__name__
    for node in tree(module.__name__).body:  # a constant that came from elsewhere
        if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
            return str(node.module), name
        if isinstance(node, ast.If):
            for inner in node.body:
                if isinstance(inner, ast.ImportFrom) and name in [a.name for a in inner.names]:
                    return str(inner.module), name
    return module.__name__, name


def plain(annotation: ast.expr | None) -> str:
    """An annotation without the bounds of the wire."""
    if annotation is None:
        return ""
    text = ast.unparse(annotation)
    text = re.sub(r"Annotated\[(.+?), Meta\(.*?\)\]", r"\1", text)
    text = re.sub(r"^'(.*)'$", r"\1", text)
    return re.sub(r"\b\w+\b", lambda found: PLAIN.get(found[0], found[0]), text)


def signature(node: Function, name: str) -> str:
    given = ast.parse(ast.unparse(node)).body[0]
    assert isinstance(given, Function)
    if given.args.args and given.args.args[0].arg in ("self", "cls"):
        del given.args.args[0]
    returns = plain(given.returns)
    line = f"{name}({ast.unparse(given.args)})" + (f" -> {returns}" if returns else "")
    line = ("await " if isinstance(node, ast.AsyncFunctionDef) else "") + line
    return "\n".join(textwrap.wrap(line, 96, subsequent_indent="    ", break_long_words=False))


def decorators(node: Function) -> set[str]:
    return {ast.unparse(one).rpartition(".")[2] for one in node.decorator_list}


def doc(node: Function | ast.ClassDef, indent: str) -> str:
    return textwrap.indent(ast.get_docstring(node) or "", indent)


def members(node: ast.ClassDef, module: str) -> Iterator[str]:
    """Fields and values, then properties and methods; those of our own base classes too."""
    yield from fields(node)
    for base in node.bases:
        found = getattr(importlib.import_module(module), ast.unparse(base).split("[")[0], None)
        if inspect.isclass(found) and found.__module__.startswith("posthouse"):
            yield from members(definition(found.__module__, found.__name__), found.__module__)
    for part in node.body:
        if not isinstance(part, Function) or part.name.startswith("_"):
            continue
        marks = decorators(part)
        if marks & {"overload", "setter"}:
            continue
        line = part.name if marks & {"property", "cached_property"} else signature(part, part.name)
        if line == part.name and (returns := plain(part.returns)):
            line += f": {returns}"
        yield "\n" + textwrap.indent(line, "    ")
        if ast.get_docstring(part):
            yield doc(part, "        ")


def fields(node: ast.ClassDef) -> Iterator[str]:
    found = []
    for part in node.body:
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
            value = "" if part.value is None else f" = {default(part.value)}"
            name = f"{part.target.id}: {plain(part.annotation)}"
        elif isinstance(part, ast.Assign) and isinstance(part.targets[0], ast.Name):
            name, value = part.targets[0].id, f" = {ast.unparse(part.value)}"
        else:
            continue
        if not name.startswith("_"):
            found.append(f"    {name}{value}")
    if found:
        yield "\n" + "\n".join(found)


def default(value: ast.expr) -> str:
    text = ast.unparse(value)
    return "{}" if text == "field(default_factory=dict)" else text


def definition(module: str, name: str) -> ast.ClassDef:
    for node in tree(module).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return node
    raise Unfit(f"{module} has no class {name}")


def constant(module: str, name: str) -> str:
    """Its value, and the text below it."""
    body = tree(module).body
    for node, after in zip(body, [*body[1:], None], strict=True):
        target = node.target if isinstance(node, ast.AnnAssign) else None
        if isinstance(node, ast.Assign):
            target = node.targets[0]
        if isinstance(target, ast.Name) and target.id == name:
            value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
            told = f"{name} = {ast.unparse(value)}" if value is not None else name
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                told += "\n" + textwrap.indent(inspect.cleandoc(str(after.value.value)), "    ")
            return told
    raise Unfit(f"{module} has no {name}")


def told(module: ModuleType, name: str) -> str:
    """One name, as text."""
    value = getattr(module, name)
    where, inner = home(module, name)
    if inspect.isclass(value):
        node = definition(where, inner)
        bases = [base for base in map(ast.unparse, node.bases) if not base.startswith("msgspec")]
        shown = f"class {name}" + (f"({', '.join(bases)})" if bases else "")
        return "\n".join(filter(None, (shown, doc(node, "    "), *members(node, where))))
    if inspect.isfunction(value):
        for node in tree(where).body:
            if isinstance(node, Function) and node.name == inner:
                return f"{signature(node, name)}\n{doc(node, '    ')}".rstrip()
        raise Unfit(f"{where} has no function {inner}")
    return constant(where, inner)


def section(module_name: str) -> Iterator[str]:
    module = importlib.import_module(module_name)
    short = module_name.partition(".")[2]
    yield f"## {module_name}"
    yield f"```text\n{inspect.getdoc(module)}\n```"
    wrong: list[str] = []
    values: list[str] = []
    for name in module.__all__:
        value: Any = getattr(module, name)
        if inspect.isclass(value) and issubclass(value, PosthouseError):
            wrong.append(f"[{name}](errors.md#codes-of-failed)")
        elif inspect.ismodule(value):
            continue  # it has its own section
        elif inspect.isclass(value) or inspect.isfunction(value):
            head = ("class " if inspect.isclass(value) else "") + f"{short}.{name}".lstrip(".")
            yield f"### {head}\n\n```text\n{told(module, name)}\n```"
        else:
            values.append(told(module, name))
            if type(value).__module__.startswith("posthouse") and not isinstance(value, Enum):
                node = definition(type(value).__module__, type(value).__name__)
                body = "\n".join((doc(node, "    "), *members(node, type(value).__module__)))
                yield f"### {short}.{name}\n\n```text\n{name}\n{body}\n```"
    owner, given = GIVEN.get(module_name, ("", ()))
    for name in given:
        yield f"### class {owner.partition('.')[2]}.{name}"
        yield f"```text\n{told(importlib.import_module(owner), name)}\n```"
    if values:
        yield f"### Constants of {module_name}\n\n```text\n" + "\n".join(values) + "\n```"
    if wrong:
        yield f"### Errors of {module_name}\n\n" + ", ".join(wrong) + "."


def python(_notes: Notes) -> str:
    there = [name for name in MODULES if find_spec(name) is not None]
    return "\n\n".join(part for name in there for part in section(name))


TABLES: Tables = {"python": python}
