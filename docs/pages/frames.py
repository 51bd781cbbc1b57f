"""Frames of tests/wire/golden, byte by byte, as worked examples.

Owns: taking a frame apart. Must not know: the messages. Invariant: every byte is told.
"""

from collections.abc import Callable, Iterator

from pages.notes import ROOT, Notes, Tables, Unfit

__all__ = ["TABLES"]

GOLDEN = ROOT / "tests" / "wire" / "golden"


def golden(name: str) -> bytes:
    lines = (GOLDEN / f"{name}.hex").read_text().splitlines()
    return bytes.fromhex("".join(line for line in lines if not line.startswith("#")))


def walk(data: bytes, at: int, role: str, depth: int) -> Iterator[tuple[int, int, str]]:
    """(from, to, meaning) of each msgpack head or scalar. Only what the examples contain."""
    byte = data[at]
    sized = {0xC4: (1, "bytes"), 0xD9: (1, "text"), 0xDE: (2, "map"), 0xDC: (2, "array")}
    ints = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}
    if byte < 0x80:
        yield at, at + 1, f"{role}: {byte}"
        return
    if byte in ints:
        end = at + 1 + ints[byte]
        yield at, end, f"{role}: {int.from_bytes(data[at + 1 : end])}"
        return
    if byte in sized:
        width, what = sized[byte]
        count, head = int.from_bytes(data[at + 1 : at + 1 + width]), 1 + width
    elif 0x80 <= byte < 0x90:
        what, count, head = "map", byte & 0x0F, 1
    elif 0x90 <= byte < 0xA0:
        what, count, head = "array", byte & 0x0F, 1
    elif 0xA0 <= byte < 0xC0:
        what, count, head = "text", byte & 0x1F, 1
    else:
        raise Unfit(f"byte {byte:#x} in an example")
    start = at + head
    if what in ("bytes", "text"):
        raw = data[start : start + count]
        value = f'"{raw.decode()}"' if what == "text" else f"{count} bytes"
        yield at, start + count, f"{role}: {value}"
        return
    yield at, start, f"{role}: {what} of {count}"
    envelope = ("kind", "session", "epoch", "sequence", "acknowledged", "body")
    for index in range(count * (2 if what == "map" else 1)):
        inner = envelope[index] if depth == 0 else ("field", "value")[index % 2]
        last = start
        for found in walk(data, start, inner, depth + 1):
            yield found
            last = max(last, found[1])
        start = last


def example(name: str) -> Callable[[Notes], str]:
    def make(_notes: Notes) -> str:
        data = golden(name)
        lines = []
        for start, end, meaning in walk(data, 0, "frame", 0):
            chunk = data[start:end].hex()
            while len(chunk) > 40:
                lines.append(chunk[:40])
                chunk = chunk[40:]
            lines.append(f"{chunk:<42}{meaning}")
        if lines[-1].split(None, 1)[0] != data[-len(lines[-1].split()[0]) // 2 :].hex():
            raise Unfit(f"{name} was not read to its end")
        return "```text\n" + "\n".join(lines) + "\n```"

    return make


TABLES: Tables = {"hello": example("hello.client"), "welcome": example("welcome")}
