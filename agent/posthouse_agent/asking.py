"""CORE: what workers ask the master, and what it answers them.

Owns: the two forms, the channel's and the wire's. Must not know: sessions, who may ask what (the
master). Invariant: nothing is kept: a worker whose question or answer is lost asks again, under
the same request id, and the master remembers what it did.
"""

from typing import Any, Final

import msgspec

from posthouse import codec
from posthouse.errors import PosthouseError
from posthouse.messages import (
    KIND_OF,
    Failed,
    GetStatus,
    LatchWorker,
    Register,
    Reply,
    Request,
    Running,
    Terminate,
    WorkerAnswer,
    WorkerAsks,
)

__all__ = ["answer", "ask"]

_ASKED: Final[dict[str, type[Request]]] = {
    "register": Register,
    "status": GetStatus,
    "terminate": Terminate,
    "set_latch": LatchWorker,
}


def ask(worker: Running, message: dict[str, Any]) -> WorkerAsks | dict[str, Any]:
    """What to send to the master, or the error to answer at once."""
    kind = _ASKED.get(str(message.get("what")))
    fields, call = message.get("fields"), message.get("id")
    if kind is None or not isinstance(fields, dict) or not isinstance(call, int):
        return {"code": "unsupported", "message": f"no worker asks for {message.get('what')!r}"}
    try:
        request = msgspec.convert({**fields, "request": message.get("request")}, type=kind)
        body = codec.encode_body(request)
        return msgspec.convert(
            {
                "slot": worker.slot,
                "generation": worker.generation,
                "token": worker.token,
                "call": call,
                "kind": KIND_OF[kind],
                "body": body,
            },
            type=WorkerAsks,
        )
    except (msgspec.ValidationError, PosthouseError) as error:
        return {"code": "bad_request", "message": str(error)}


def answer(message: WorkerAnswer) -> dict[str, Any]:
    """The channel's form of a reply."""
    reply = codec.decode_body(message.kind, message.body)
    assert isinstance(reply, Reply)
    told: dict[str, Any] = {"op": "reply", "id": message.call}
    if isinstance(reply, Failed):
        error = {"code": reply.code, "message": reply.message, "hint": reply.hint}
        return told | {"error": error | {"detail": reply.detail}}
    return told | {"answer": msgspec.to_builtins(reply, builtin_types=(bytes,))}
