"""CORE: an agent's word for a process of its host that wants SIGUSR1: what it names, what it bears.

Owns: the mark, and the text under which such a process is kept. Must not know: processes, sockets,
who asks. Invariant: only who has the key of the agent's session can make a mark that fits, so
nobody has a signal sent to a process that did not ask that very agent itself.
"""

import hmac
from hashlib import blake2b

from posthouse.records import Registrant

__all__ = ["bears_mark", "marked", "read", "text"]

_MARK_BYTES = 16


def marked(key: bytes, host: str, boot_id: str, pid: int, pid_start: int) -> Registrant:
    """The agent's word, with its mark.

    >>> word = marked(bytes(32), "b", "3e1d", 4242, 99)
    >>> bears_mark(word, bytes(32)), bears_mark(word, b"another key")
    (True, False)
    """
    mark = _mark(key, host, boot_id, pid, pid_start)
    return Registrant(host=host, boot_id=boot_id, pid=pid, pid_start=pid_start, mark=mark)


def bears_mark(word: Registrant, key: bytes) -> bool:
    """Whether it was given by the agent with this key; without a key by nobody."""
    expected = _mark(key, word.host, word.boot_id, word.pid, word.pid_start)
    return bool(key) and hmac.compare_digest(expected, word.mark)


def text(word: Registrant) -> str:
    """Which process it is, without the mark, which is of no use to the agent's successor.

    >>> text(marked(bytes(32), "b", "3e1d", 4242, 99))
    'b/3e1d/4242/99'
    """
    return f"{word.host}/{word.boot_id}/{word.pid}/{word.pid_start}"


def read(text: str) -> tuple[str, str, int, int]:
    """The inverse of text(): host, boot, pid and start."""
    host, boot_id, pid, pid_start = text.split("/")
    return host, boot_id, int(pid), int(pid_start)


def _mark(key: bytes, host: str, boot_id: str, pid: int, pid_start: int) -> bytes:
    words = f"{host}\n{boot_id}\n{pid}\n{pid_start}".encode()
    return blake2b(words, key=key, digest_size=_MARK_BYTES).digest()
