"""CORE: the answers to requests that changed something, so that a retry has one effect.

Owns: remembered results, by principal and request id. Must not know: what was asked.
Invariant: within what is kept, one request id has one body, one effect and one answer.
"""

from collections import OrderedDict
from hashlib import sha256

import msgspec

from posthouse import codec, limits
from posthouse.errors import RequestConflict
from posthouse.messages import KIND_OF, KINDS, Message, Reply, Request
from posthouse_master.store.base import DropRequests, PutRequest, RequestRow
from posthouse_master.turn import Turn

__all__ = ["RequestBook"]

_FORGET_AT_ONCE = 64  # rows a turn forgets at most: no turn pays for a day's worth


class RequestBook:
    """Oldest first; bounded by number and by age.

    Ages are reckoned on the clock that does not jump, and anew for each master: a wall clock that
    is put right by a day or by fifty years must not make a retry into a second request.
    """

    def __init__(self) -> None:
        self._rows: OrderedDict[tuple[str, bytes], RequestRow] = OrderedDict()
        self._since_s: dict[tuple[str, bytes], float] = {}
        self._begun_s: float | None = None  # age 0 of the rows of earlier masters

    def __len__(self) -> int:
        return len(self._rows)

    def restore(self, row: RequestRow) -> None:
        self._rows[row.principal, row.request] = row

    def recall(self, principal: str, message: Request) -> Reply | None:
        """The answer that this request got, if it is known. Raises RequestConflict."""
        row = self._rows.get((principal, message.request))
        if row is None:
            return None
        if row.digest != _digest(message):
            raise RequestConflict(
                "this request id was used for another request",
                hint="every request needs an id of its own, drawn at random",
            )
        answer: Message = msgspec.msgpack.decode(row.result, type=KINDS[row.kind])
        assert isinstance(answer, Reply)
        return answer

    def remember(self, turn: Turn, principal: str, message: Request, answer: Reply) -> None:
        """Keep the answer, in the transaction of the effect."""
        row = RequestRow(
            principal=principal,
            request=message.request,
            digest=_digest(message),
            kind=KIND_OF[type(answer)],
            result=codec.encode_body(answer),
            at_unix_s=turn.now.unix_s,
        )
        self._rows[principal, message.request] = row
        self._since_s[principal, message.request] = turn.now.boot_s
        turn.persist(PutRequest(row))
        self._forget(turn)

    def _forget(self, turn: Turn) -> None:
        now_s = turn.now.boot_s
        if self._begun_s is None:
            self._begun_s = now_s
        gone: list[tuple[str, bytes]] = []
        while self._rows and len(gone) < _FORGET_AT_ONCE:
            key = next(iter(self._rows))
            old = self._since_s.get(key, self._begun_s) < now_s - limits.requests_kept_s
            if not old and len(self._rows) <= limits.requests_kept_max:
                break
            del self._rows[key]
            self._since_s.pop(key, None)
            gone.append(key)
        if gone:
            turn.persist(DropRequests(tuple(gone)))


def _digest(message: Request) -> bytes:
    # The record that was understood, not the frame: unknown fields and spellings do not count.
    return sha256(KIND_OF[type(message)].to_bytes(2) + codec.encode_body(message)).digest()
