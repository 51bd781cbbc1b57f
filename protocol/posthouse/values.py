"""msgpack values in pure Python: a deep copy, an exact packed size, and the path of what is wrong.

Owns: which Python values may travel in `main_arg`. Must not know: msgpack itself (this runs in
processes that load the standard library only). Invariant: the copy shares nothing mutable with
the original, so later edits by the caller have no effect (F18).
"""

from typing import Any

from posthouse import limits
from posthouse.errors import InvalidField

__all__ = ["SECRETS", "Shown", "copy_value", "packed_size", "shorten", "sized"]

SECRETS = frozenset(("main_arg", "extra", "env"))
"""Fields of a registration that are never shown."""


def copy_value(field: str, value: Any) -> Any:
    """A deep copy made of None, bool, int, float, str, bytes, list and dict with str keys.

    Raises InvalidField that names the path of the offending part.

    >>> copy_value("main_arg", {"topics": ("a", "b")})
    {'topics': ['a', 'b']}
    """
    return _Copier(field).copy(field, value, 1)


class _Copier:
    """Counts the parts as it goes: a part takes a byte at least, so a value that could not be
    accepted is refused before all of it has been copied."""

    def __init__(self, field: str) -> None:
        self._field = field
        self._left = limits.main_arg_bytes_max

    def copy(self, path: str, value: Any, depth: int) -> Any:
        self._left -= 1
        if self._left < 0:
            parts = f"more than {limits.main_arg_bytes_max} parts"
            raise _refusal(self._field, parts, f"at most {limits.main_arg_bytes_max} bytes")
        if isinstance(value, list | tuple | dict):
            if depth > limits.value_depth_max:
                raise _bad(path, value, f"nested at most {limits.value_depth_max} deep")
            if isinstance(value, dict):
                return self._map(path, value, depth)
            if len(value) > limits.array_items_max:
                raise _bad(path, value, f"at most {limits.array_items_max} items")
            return [self.copy(f"{path}[{i}]", item, depth + 1) for i, item in enumerate(value)]
        return _scalar(path, value)

    def _map(self, path: str, value: dict[Any, Any], depth: int) -> dict[str, Any]:
        if len(value) > limits.map_items_max:
            raise _bad(path, value, f"at most {limits.map_items_max} keys")
        copied = {}
        for key, item in value.items():
            if not isinstance(key, str):
                raise _bad(f"{path} key", key, "map keys are strings")
            name = _text(f"{path} key", key)
            copied[name] = self.copy(f"{path}.{name}", item, depth + 1)
        return copied


def _scalar(path: str, value: Any) -> Any:
    # A subclass is brought back to its base: it could carry anything, and would not come back.
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, int):
        if not -(2**63) <= value <= limits.int_max:
            raise _bad(path, value, "an integer of 64 bits")
        return int.__int__(value)
    if isinstance(value, str):
        return _text(path, value)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    raise _bad(path, value, "None, bool, int, float, str, bytes, list or dict")


def _text(path: str, value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _bad(path, value, "text that UTF-8 can carry") from None
    return str.__str__(value)


def _bad(path: str, value: Any, rule: str) -> InvalidField:
    return _refusal(path, sized(value), rule)


def _refusal(path: str, shown: str, rule: str) -> InvalidField:
    return InvalidField(
        f"{path} is {shown}: must be {rule}", field=path, value=shown, rule=f"must be {rule}"
    )


class Shown(str):
    """A phrase in the place of a value: shown without quotes."""

    __slots__ = ()
    __repr__ = str.__str__


def sized(value: Any) -> str:
    """What a value is, without what it holds: it may be a secret.

    >>> sized(b"secret"), sized(["a"]), sized(7)
    (bytes of 6, list of 1, 7)
    """
    if isinstance(value, str | bytes | bytearray | memoryview | list | tuple | dict):
        return Shown(f"{type(value).__name__} of {len(value)}")
    return Shown(shorten(value))


def shorten(value: Any) -> str:
    """A repr that fits into an error message, whatever the value is."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - somebody else's __repr__
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 80 else f"{text[:60]}... ({type(value).__name__})"


def packed_size(value: Any) -> int:
    """Exact number of bytes of `value` (as copy_value returns it) in msgpack.

    >>> packed_size({"a": [1, 300, -200, "x", b"yz", 1.5, None]})
    27
    """
    if value is None or isinstance(value, bool):
        return 1
    if isinstance(value, int):
        return _int_size(value)
    if isinstance(value, float):
        return 9
    if isinstance(value, str):
        length = len(value.encode())
        return length + (1 if length < 32 else 2 if length < 256 else 3 if length < 65536 else 5)
    if isinstance(value, bytes):
        length = len(value)
        return length + (2 if length < 256 else 3 if length < 65536 else 5)
    head = 1 if len(value) < 16 else 3 if len(value) < 65536 else 5
    if isinstance(value, dict):
        return head + sum(packed_size(k) + packed_size(v) for k, v in value.items())
    return head + sum(packed_size(item) for item in value)


def _int_size(value: int) -> int:
    if -32 <= value < 128:
        return 1
    if value >= 0:
        bounds = ((2**8, 2), (2**16, 3), (2**32, 5))
        return next((size for bound, size in bounds if value < bound), 9)
    bounds = ((-(2**7), 2), (-(2**15), 3), (-(2**31), 5))
    return next((size for bound, size in bounds if value >= bound), 9)
