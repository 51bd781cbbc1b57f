"""CORE: the shared memory of one warden: segments, crash domains, seats at queues.

Owns: which segments there are, who may have them, who has mapped one, when a domain is reset. Must
not know: descriptors, memory, processes, clocks. Invariant: a worker is a member of its domain from
the first segment that it was given until its process is reaped, and nobody is given a segment of
an epoch while a member of the epoch before may still live.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from posthouse import limits
from posthouse.states import SHMEM_ACCESS

__all__ = [
    "AnswerMemory",
    "Domains",
    "DropSegment",
    "Give",
    "MakeSegment",
    "MemoryEffect",
    "crash_domain",
    "refusal",
]

_ROLES: Final = ("sender", "receiver")
_SHMEM: Final = int(SHMEM_ACCESS)


@dataclass(frozen=True, slots=True)
class Give:
    """A descriptor beside an answer: "segment" and its number, or "latch" or "pidfd" and a
    token."""

    what: str
    which: int


@dataclass(frozen=True, slots=True)
class MakeSegment:
    """Memory of exactly this size for good. What it cannot have is missing in the answer."""

    number: int
    size: int
    name: str = ""  # for people


@dataclass(frozen=True, slots=True)
class DropSegment:
    """No more descriptors of it are given; the kernel frees it when nobody has it mapped."""

    number: int


@dataclass(frozen=True, slots=True)
class AnswerMemory:
    """To the worker's memory line, with descriptors; `wake`: set its latch too."""

    token: int
    message: dict[str, Any]
    gives: tuple[Give, ...] = ()
    wake: bool = False


MemoryEffect = MakeSegment | DropSegment | AnswerMemory


@dataclass(slots=True)
class _Segment:
    number: int
    size: int
    handle: int
    key: str = ""  # of a struct or a named one; these stay
    maker: int = 0  # the token that reserves and fills it; 0: it may be had by all
    fresh: bool = False  # it was requested, and nobody has asked for it yet: who does is its maker
    pinned: bool = False
    holders: set[int] = field(default_factory=set)
    seats: dict[tuple[int, str], int] = field(default_factory=dict)  # (offset, role) -> token


@dataclass(slots=True)
class _Domain:
    name: str
    epoch: int
    locks: int = 0  # the number of the memory that its locks are kept on, once it is needed
    members: set[int] = field(default_factory=set)
    segments: dict[int, _Segment] = field(default_factory=dict)
    requested: dict[str, tuple[int, str]] = field(default_factory=dict)  # key -> size, library
    cause: str = ""  # of the reset that is under way
    resets: list[float] = field(default_factory=list)  # boot_s of those within the window
    waiting: list[tuple[int, dict[str, Any]]] = field(default_factory=list)

    def named(self, key: str) -> _Segment | None:
        return next((s for s in self.segments.values() if s.key == key), None)

    def by_handle(self, handle: object) -> _Segment | None:
        return next((s for s in self.segments.values() if s.handle == handle), None)


def crash_domain(spec: dict[str, Any]) -> str:
    """The crash domain of a worker with SHMEM_ACCESS; empty for one that has none."""
    flags = spec.get("flags", 0)
    if not isinstance(flags, int) or not flags & _SHMEM:
        return ""
    return str(spec.get("crash_domain") or "default")


class _Refused(Exception):
    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Domains:
    """All crash domains under one warden."""

    def __init__(self, entropy: Callable[[int], bytes]) -> None:
        self._entropy = entropy
        self._domains: dict[str, _Domain] = {}
        self._next_number = 1
        self._epoch = 1  # with which a domain begins: above that of any that was forgotten

    def members(self, name: str) -> frozenset[int]:
        """Who is reset with this domain."""
        domain = self._domains.get(name)
        return frozenset(domain.members) if domain is not None else frozenset()

    def facts(self, name: str) -> dict[str, Any]:
        """Of the reset that is under way: fields of ExitFacts."""
        domain = self._domains.get(name)
        if domain is None or not domain.cause:
            return {}
        return {
            "crash_domain": name,
            "domain_epoch": domain.epoch + 1,
            "domain_cause": domain.cause,
            "domain_resets": len(domain.resets),
        }

    # --- what is there before anybody asks ---

    def request(
        self, name: str, structs: list[dict[str, Any]], boot_s: float
    ) -> list[MemoryEffect]:
        """K1: these structures are to be in the domain, now and in each epoch. What is there with
        another size keeps it until the next one, and so does what is no longer requested."""
        if not structs and name not in self._domains:
            return []
        domain, effects = self._domain(name, boot_s)
        if domain is None:
            return effects
        domain.requested = {f"struct:{s['name']}": (s["size"], s["library"]) for s in structs}
        return effects if domain.cause else effects + self._make_requested(domain)

    def _make_requested(self, domain: _Domain) -> list[MemoryEffect]:
        """Those that are missing. Where there is no room, whoever asks for it is told."""
        effects: list[MemoryEffect] = []
        for key, (size, _) in domain.requested.items():
            if domain.named(key) is None:
                with suppress(_Refused):
                    segment = self._new(domain, 0, size, key)
                    segment.fresh = True
                    effects.append(MakeSegment(segment.number, size, key))
        return effects

    def _domain(self, name: str, boot_s: float) -> tuple[_Domain | None, list[MemoryEffect]]:
        """The one of that name, made if need be; None if there are too many."""
        domain = self._domains.get(name)
        effects: list[MemoryEffect] = []
        if domain is None and len(self._domains) >= limits.domains_max:
            effects += self._forget_empty(boot_s)
        if domain is None and len(self._domains) < limits.domains_max:
            domain = self._domains[name] = _Domain(name, self._epoch)
        return domain, effects

    # --- what workers ask ---

    def asked(
        self, token: int, name: str, message: dict[str, Any], boot_s: float
    ) -> list[MemoryEffect]:
        """A message of a worker's memory line; it may be anything."""
        domain, effects = self._domain(name, boot_s)
        if domain is None:
            text = f"this host has {len(self._domains)} crash domains (limit {limits.domains_max})"
            return [*effects, refusal(token, message, "too_many_segments", text)]
        if domain.cause:
            if token in domain.members:
                return effects  # it is being ended
            return effects + self._wait(domain, token, message)
        return effects + self._ask(domain, token, message)

    def failed(self, name: str, number: int) -> list[MemoryEffect]:
        """The memory of a segment could not be had: who asks again may have it."""
        domain = self._domains.get(name)
        if domain is None:
            return []
        if number == domain.locks:
            domain.locks = 0
        domain.segments.pop(number, None)
        return [] if domain.cause else self._resume(domain)

    def _wait(self, domain: _Domain, token: int, message: dict[str, Any]) -> list[MemoryEffect]:
        if sum(1 for waiting, _ in domain.waiting if waiting == token) >= limits.memory_asks_max:
            return [refusal(token, message, "refused", "too many unanswered questions")]
        domain.waiting.append((token, message))
        return []

    def _ask(self, domain: _Domain, token: int, message: dict[str, Any]) -> list[MemoryEffect]:
        try:
            match message.get("op"):
                case "named":
                    return self._named(domain, token, message)
                case "create":
                    return self._create(domain, token, message)
                case "attach":
                    return self._attach(domain, token, message)
                case "locks":
                    if token not in domain.members:
                        raise _Refused("refused", "no segment is attached")
                    return self._locks(domain, token, message)
                case "made" | "failed" | "detach" | "pin" | "unpin" as op:
                    return self._change(domain, token, message, op)
                case "sit":
                    return self._sit(domain, token, message)
                case op:
                    raise _Refused("unsupported", f"this warden does not know {str(op)[:64]!r}")
        except _Refused as refused:
            return [refusal(token, message, refused.code, str(refused))]

    def _locks(self, domain: _Domain, token: int, message: dict[str, Any]) -> list[MemoryEffect]:
        effects: list[MemoryEffect] = []
        if not domain.locks:
            domain.locks = self._number()
            effects.append(MakeSegment(domain.locks, 0))
        return [*effects, AnswerMemory(token, _reply(message), (Give("segment", domain.locks),))]

    def _named(self, domain: _Domain, token: int, message: dict[str, Any]) -> list[MemoryEffect]:
        key, size = message.get("key"), message.get("size")
        # A lone surrogate is not printable, and cannot be encoded either.
        shown = isinstance(key, str) and key.isprintable()
        if not shown or not 0 < len(str(key).encode()) <= limits.segment_key_bytes_max:
            raise _Refused("bad_request", "key is no name")
        key = str(key)
        segment = domain.named(key)
        if segment is None:
            segment = self._new(domain, token, size, key)
            return [
                MakeSegment(segment.number, segment.size, key),
                *self._give(domain, segment, token, message, found=False),
            ]
        if segment.size != size:
            _, library = domain.requested.get(key, (0, ""))
            whose = f", requested by library {library}" if library else ""
            text = f"{key!r} exists with {segment.size} bytes{whose}, not {size}"
            raise _Refused("size_mismatch", text)
        if segment.maker and segment.maker != token:
            return self._wait(domain, token, message)  # until it may be had, or has no maker
        if segment.fresh:
            segment.fresh, segment.maker = False, token
            return self._give(domain, segment, token, message, found=False)
        return self._give(domain, segment, token, message, found=True)

    def _create(self, domain: _Domain, token: int, message: dict[str, Any]) -> list[MemoryEffect]:
        segment = self._new(domain, token, message.get("size"), "")
        return [
            MakeSegment(segment.number, segment.size),
            *self._give(domain, segment, token, message, found=False),
        ]

    def _attach(self, domain: _Domain, token: int, message: dict[str, Any]) -> list[MemoryEffect]:
        segment = domain.by_handle(message.get("handle"))
        if segment is None or segment.maker not in (0, token):
            return [AnswerMemory(token, _reply(message) | {"number": 0})]
        return self._give(domain, segment, token, message, found=True)

    def _change(
        self, domain: _Domain, token: int, message: dict[str, Any], op: str
    ) -> list[MemoryEffect]:
        segment = (
            domain.by_handle(message["handle"])
            if op == "unpin" and "handle" in message
            else _at(domain, message.get("number"))
        )
        if segment is None or (op != "unpin" and token not in segment.holders):
            raise _Refused("refused", "no such segment, or it is not attached")
        answer = AnswerMemory(token, _reply(message))
        effects: list[MemoryEffect] = []
        match op:
            case "made" if segment.maker == token:
                segment.maker = 0
                effects = self._resume(domain)
            case "failed" if segment.maker == token:
                effects = [*self._drop(domain, segment), *self._resume(domain)]
            case "pin" | "unpin":
                if segment.pinned is (op == "pin"):
                    raise _Refused(
                        "refused", f"the segment is {'' if op == 'pin' else 'not '}pinned"
                    )
                segment.pinned = op == "pin"
            case "detach":
                segment.holders.discard(token)
        return [answer, *effects, *self._drop_if_left(domain, segment)]

    def _sit(self, domain: _Domain, token: int, message: dict[str, Any]) -> list[MemoryEffect]:
        """K10: one sender, one receiver, each for good. Each is given the other's latch, and the
        descriptor that tells of its death."""
        segment = _at(domain, message.get("number"))
        offset, role = message.get("offset"), message.get("role")
        if segment is None or token not in segment.holders:
            raise _Refused("refused", "no such segment, or it is not attached")
        if role not in _ROLES or type(offset) is not int or not 0 <= offset < segment.size:
            raise _Refused("bad_request", "no such seat")
        if len(segment.seats) >= limits.segment_seats_max:
            raise _Refused("refused", "too many queues in one segment")
        if (offset, role) in segment.seats:
            raise _Refused("seat_taken", f"the {role} of this queue is set already")
        segment.seats[offset, str(role)] = token
        other = _ROLES[role == _ROLES[0]]
        peer = segment.seats.get((offset, other))
        seat = {"number": segment.number, "offset": offset}
        if peer is None:
            return [AnswerMemory(token, _reply(message) | {"peer": 0})]
        if peer not in segment.holders:  # it has come and gone
            return [AnswerMemory(token, _reply(message) | {"peer": -1})]
        told = {"op": "peer", **seat, "role": role, "peer": token}
        return [  # in this order: what the newcomer does finds the other one knowing whom to wake
            AnswerMemory(peer, told, _ends(token), wake=True),
            AnswerMemory(token, _reply(message) | {"peer": peer}, _ends(peer)),
        ]

    # --- the table ---

    def _number(self) -> int:
        self._next_number += 1
        return self._next_number - 1

    def _new(self, domain: _Domain, token: int, size: object, key: str) -> _Segment:
        if type(size) is not int or not 0 < size <= limits.segment_bytes_max:
            raise _Refused(
                "bad_request", f"size is {size!r}: must be 1 to {limits.segment_bytes_max} bytes"
            )
        if len(domain.segments) >= limits.domain_segments_max:
            raise _Refused(
                "too_many_segments",
                f"crash domain {domain.name!r} has {len(domain.segments)} segments "
                f"(limit {limits.domain_segments_max})",
            )
        taken = sum(s.size for s in domain.segments.values())
        if taken + size > limits.domain_bytes_max:
            raise _Refused(
                "too_many_segments",
                f"crash domain {domain.name!r} has {taken} bytes of segments, and {size} more "
                f"are above its limit of {limits.domain_bytes_max}",
            )
        handle = 0
        while handle == 0 or domain.by_handle(handle) is not None:
            handle = int.from_bytes(self._entropy(8), "big") >> 1
        segment = _Segment(self._number(), size, handle, key, maker=token)
        domain.segments[segment.number] = segment
        return segment

    def _give(
        self,
        domain: _Domain,
        segment: _Segment,
        token: int,
        message: dict[str, Any],
        *,
        found: bool,
    ) -> list[MemoryEffect]:
        domain.members.add(token)
        segment.holders.add(token)
        told = _reply(message) | {
            "number": segment.number,
            "size": segment.size,
            "handle": segment.handle,
            "found": found,
            "epoch": domain.epoch,
        }
        return [AnswerMemory(token, told, (Give("segment", segment.number),))]

    def _drop(self, domain: _Domain, segment: _Segment) -> list[MemoryEffect]:
        if domain.segments.pop(segment.number, None) is None:
            return []
        return [DropSegment(segment.number), *self._make_requested(domain)]

    def _drop_if_left(self, domain: _Domain, segment: _Segment) -> list[MemoryEffect]:
        if segment.key or segment.pinned or segment.holders:
            return []
        return self._drop(domain, segment)

    def _resume(self, domain: _Domain) -> list[MemoryEffect]:
        """Ask again what had to wait."""
        waiting, domain.waiting = domain.waiting, []
        return [
            effect for token, message in waiting for effect in self._ask(domain, token, message)
        ]

    # --- ends ---

    def crashed(self, token: int, name: str, cause: str, boot_s: float) -> frozenset[int]:
        """A member died so that its memory is not to be trusted: who must end with it. The reset
        begins; it is over when `ended` has heard of all of them."""
        domain = self._domains[name]
        first = boot_s - limits.domain_window_s
        domain.resets = [s for s in domain.resets if s > first][-limits.domain_resets_max :]
        domain.resets.append(boot_s)
        domain.cause = cause
        return frozenset(domain.members - {token})

    def ended(self, token: int, name: str) -> list[MemoryEffect]:
        """The process is gone."""
        domain = self._domains.get(name)
        if domain is None:
            return []
        domain.members.discard(token)
        domain.waiting = [(t, m) for t, m in domain.waiting if t != token]
        if domain.cause:
            return [] if domain.members else self._begin_epoch(domain)
        effects: list[MemoryEffect] = []
        for segment in list(domain.segments.values()):
            segment.holders.discard(token)
            if segment.maker == token:  # nobody has seen it but whoever made it
                effects += self._drop(domain, segment)
            else:
                effects += self._drop_if_left(domain, segment)
        return effects + self._resume(domain)

    def _forget_empty(self, boot_s: float) -> list[MemoryEffect]:
        """Room for others: of who has no member, no segment and no reset that still counts, nothing
        is missed but its name."""
        first = boot_s - limits.domain_window_s
        effects: list[MemoryEffect] = []
        for domain in list(self._domains.values()):
            counts = domain.resets and domain.resets[-1] > first
            if domain.members or domain.segments or domain.waiting or domain.cause or counts:
                continue
            del self._domains[domain.name]
            self._epoch = max(self._epoch, domain.epoch + 1)
            effects += [DropSegment(domain.locks)] if domain.locks else []
        return effects

    def _begin_epoch(self, domain: _Domain) -> list[MemoryEffect]:
        """K2: everything is made anew, of zeros; no descriptor of the old is given any more."""
        effects: list[MemoryEffect] = [DropSegment(number) for number in domain.segments]
        effects += [DropSegment(domain.locks)] if domain.locks else []
        domain.segments.clear()
        domain.cause = ""
        domain.epoch += 1
        domain.locks = 0
        return effects + self._make_requested(domain) + self._resume(domain)


def _at(domain: _Domain, number: object) -> _Segment | None:
    return domain.segments.get(number) if type(number) is int else None


def _ends(token: int) -> tuple[Give, ...]:
    return (Give("latch", token), Give("pidfd", token))


def _reply(message: dict[str, Any]) -> dict[str, Any]:
    number = message.get("id")
    return {"op": "reply", "id": number if isinstance(number, int) else 0}


def refusal(token: int, message: dict[str, Any], code: str, text: str) -> AnswerMemory:
    """The answer that there is no memory, and why."""
    return AnswerMemory(token, _reply(message) | {"error": {"code": code, "message": text}})
