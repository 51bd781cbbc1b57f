"""CORE: the front door: who may open a session, the link of each, and how sessions end.

Owns: the table of sessions, HELLO and WELCOME, REFUSED, silence, the backlog of a full link. Must
not know: what travels in a session, hosts, registrations.

Invariant: a frame counts only in the session that it names, and only from the peer (endpoint,
routing id, user) that opened it; on a keyed socket role and name come from the key alone.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from posthouse import codec, limits
from posthouse.codec import NO_SESSION, Envelope
from posthouse.link import Link, LinkFull
from posthouse.messages import (
    PROTOCOL_MAX,
    PROTOCOL_MIN,
    Goodbye,
    Hello,
    Message,
    Refused,
    Welcome,
)
from posthouse_master.effects import Peer
from posthouse_master.store.base import Term
from posthouse_master.timers import Timers
from posthouse_master.turn import Turn

__all__ = ["Admission", "FrontDoor", "Session", "TimerKey"]

TimerKey = tuple[str, object]

_ENDPOINT_OF: Final = {"agent": "agents", "client": "clients", "viewer": "clients"}
_TOO_MANY_RETRY_S: Final = 5.0  # a full table empties as peers fall silent


@dataclass(slots=True, eq=False)
class Session:
    """One open session. Written by FrontDoor; `host` is used for agents only."""

    identity: bytes
    peer: Peer
    role: str  # agent | client | viewer
    principal: str
    link: Link
    host: str = ""
    agent_instance: str = ""
    wardens: frozenset[str] = frozenset()  # instances
    notify_key: bytes = b""  # with which its agent marks its word for processes of its host
    backlog: deque[Message] = field(default_factory=deque)  # waits for room in the link

    def __repr__(self) -> str:
        return f"Session({self.identity.hex()[:8]} {self.principal})"


@dataclass(frozen=True, slots=True)
class Admission:
    """Who a HELLO comes from."""

    role: str
    name: str
    principal: str


class FrontDoor:
    """All sessions of one term."""

    def __init__(
        self,
        term: Term,
        version: str,
        timers: Timers[TimerKey],
        entropy: Callable[[int], bytes],
    ) -> None:
        self.term = term
        self.instance = entropy(16).hex()  # which process: copies of a registry have equal epochs
        self._version = version
        self._timers = timers
        self._entropy = entropy
        self._sessions: dict[bytes, Session] = {}
        self._of_peer: dict[Peer, Session] = {}
        self._revoked: frozenset[tuple[str, str]] = frozenset()

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._sessions.values()))

    def count_by_role(self) -> dict[str, int]:
        """Open sessions of agents, clients and viewers."""
        return Counter(session.role for session in self._sessions.values())

    def __repr__(self) -> str:
        return f"FrontDoor({len(self._sessions)} sessions)"

    # --- finding ---

    def get(self, identity: bytes) -> Session | None:
        return self._sessions.get(identity)

    def of_peer(self, peer: Peer) -> Session | None:
        return self._of_peer.get(peer)

    def match(self, peer: Peer, envelope: Envelope) -> Session | None:
        """The session that a frame belongs to."""
        session = self._sessions.get(envelope.session)
        if session is None or session.peer != peer or envelope.epoch != self.term.epoch:
            return None
        return session

    # --- keys that are taken away ---

    def revoke(self, entries: frozenset[tuple[str, str]]) -> list[Session]:
        """These keys open no sessions; returns the sessions that they have, for their end."""
        self._revoked = entries
        return [session for session in self if self.revoked(session.peer)]

    def revoked(self, peer: Peer) -> bool:
        return (peer.user, peer.key) in self._revoked

    # --- opening ---

    def judge(self, peer: Peer, hello: Hello) -> Admission | Refused:
        """Who says HELLO, or why there will be no session."""
        if hello.protocol_min > PROTOCOL_MAX or hello.protocol_max < PROTOCOL_MIN:
            return self._no(
                hello,
                "protocol",
                f"this master speaks protocol {PROTOCOL_MIN} to {PROTOCOL_MAX}, "
                f"the peer {hello.protocol_min} to {hello.protocol_max}",
                "upgrade the master first, then agents and clients",
            )
        found = _who(peer, hello)
        if self.revoked(peer):
            found = "this key is no longer among the master's principals"
        if isinstance(found, str):
            return self._no(hello, "not_permitted", found)
        if found.role == "agent" and hello.registry not in ("", self.term.registry):
            return self._no(
                hello,
                "foreign_registry",
                f"the host belongs to registry {hello.registry}, this is {self.term.registry}",
                "point the agent at its own master, or give it a fresh runtime folder",
            )
        if found.role == "agent" and hello.registry and hello.epoch > self.term.epoch:
            return self._no(
                hello,
                "older_epoch",
                f"the host has seen epoch {hello.epoch}, this master is of {self.term.epoch}",
                "another master leads, or this registry is an old copy: a backup is to be put in "
                "place by `posthouse restore`",
            )
        same = (hello.registry, hello.epoch) == (self.term.registry, self.term.epoch)
        if found.role == "agent" and same and hello.master not in ("", self.instance):
            return self._no(
                hello,
                "copied_registry",
                f"the host has obeyed another master of epoch {hello.epoch}: one of them runs on a "
                "copy of the registry",
                "end the wrong one; a copy is to be put in place by `posthouse restore`",
            )
        if len(self._sessions) >= limits.peers_max and peer not in self._of_peer:
            message = f"this master has {limits.peers_max} sessions already"
            return self._no(hello, "too_many_peers", message, retry_after_s=_TOO_MANY_RETRY_S)
        return found

    def open(
        self,
        turn: Turn,
        peer: Peer,
        hello: Hello,
        admission: Admission,
        lease_s: float = 0.0,
    ) -> Session:
        """A new session; the peer hears WELCOME. The caller has ended what it replaces."""
        now_s = turn.now.boot_s
        identity = self._entropy(limits.session_bytes)
        assert identity not in self._sessions
        session = Session(
            identity=identity,
            peer=peer,
            role=admission.role,
            principal=admission.principal,
            link=Link(identity, self.term.epoch, now_s),
            host=admission.name if admission.role == "agent" else "",
            agent_instance=hello.agent_instance,
            wardens=frozenset(warden.instance for warden in hello.wardens),
            notify_key=hello.notify_key,
        )
        self._sessions[identity] = self._of_peer[peer] = session
        self._timers.set(("silence", identity), now_s + limits.silence_s)
        welcome = Welcome(
            nonce=hello.nonce,
            session=identity,
            epoch=self.term.epoch,
            timeline=self.term.timeline,
            registry=self.term.registry,
            protocol=min(hello.protocol_max, PROTOCOL_MAX),
            principal=admission.principal,
            master=self.instance,
            version=self._version,
            lease_s=lease_s,
        )
        turn.send(peer, session.link.loose(welcome))
        turn.note("session.opened", principal=session.principal, session=identity.hex()[:8])
        return session

    # --- ending ---

    def close(self, turn: Turn, session: Session, code: str, message: str) -> None:
        """End it. With a code, the peer is told; "" where it knows or cannot be reached."""
        if self._sessions.pop(session.identity, None) is None:
            return
        if self._of_peer.get(session.peer) is session:
            del self._of_peer[session.peer]
        self._timers.cancel(("silence", session.identity))
        self._timers.cancel(("link", session.identity))
        if code:
            turn.send(session.peer, session.link.loose(Refused(code=code, message=message)))
        turn.note(
            "session.ended",
            principal=session.principal,
            session=session.identity.hex()[:8],
            reason=message,
        )

    def say_goodbye(self, turn: Turn, reason: str) -> None:
        """To everybody: the process ends on purpose."""
        for session in self._sessions.values():
            if session.link.room > 0:
                frame = session.link.send(Goodbye(reason=reason), turn.now.boot_s)
                turn.send(session.peer, frame)

    def refuse(self, turn: Turn, peer: Peer, refused: Refused) -> None:
        """Answer a HELLO, or a frame that no session can be told for, with REFUSED."""
        turn.send(peer, codec.encode(Envelope(NO_SESSION, 0, 0, 0, refused)))

    def refuse_stale(self, turn: Turn, peer: Peer, envelope: Envelope) -> None:
        """The frame names a session that is not, or no longer, this peer's. The answer carries
        the frame's own session and epoch, because a dialler heeds no other."""
        refused = Refused(code="stale_session", message="no such session here: say HELLO")
        turn.send(peer, codec.encode(Envelope(envelope.session, envelope.epoch, 0, 0, refused)))

    # --- using ---

    def silent(self, identity: bytes, now_s: float) -> Session | None:
        """The session whose silence timer came up, if it has been silent that long."""
        session = self._sessions.get(identity)
        if session is None:
            return None
        due_s = session.link.heard_s + limits.silence_s
        if now_s < due_s:
            self._timers.set(("silence", identity), due_s)
            return None
        return session

    def send(self, turn: Turn, session: Session, message: Message) -> bool:
        """Put a message into the session. A full link ends it: False."""
        try:
            frame = session.link.send(message, turn.now.boot_s)
        except LinkFull:
            turn.broken.append((session.identity, "it acknowledges nothing any more"))
            return False
        turn.send(session.peer, frame)
        self.wind(session)
        return True

    def command(self, turn: Turn, session: Session, message: Message) -> None:
        """Send to an agent; what its link has no room for follows in order as room is made. If too
        much of it waits, the session ends: the next inventory tells what is still to do."""
        if not session.backlog and session.link.room > 0:
            self.send(turn, session, message)
        elif len(session.backlog) < limits.commands_waiting_max:
            session.backlog.append(message)
        else:
            turn.broken.append((session.identity, "too many commands wait for it"))

    def answer(self, turn: Turn, session: Session, message: Message) -> None:
        """Send to a client. One that asks faster than it acknowledges gets its answers in order, as
        room is made; one that lets too many of them wait loses its session."""
        if not session.backlog and session.link.room > 0:
            self.send(turn, session, message)
        elif len(session.backlog) < limits.answers_waiting_max:
            session.backlog.append(message)
        else:
            turn.broken.append((session.identity, "it asks and acknowledges nothing any more"))

    def drain(self, turn: Turn, session: Session) -> None:
        """Send of the backlog what the link has room for."""
        while session.backlog and session.link.room > 0:
            self.send(turn, session, session.backlog.popleft())

    def link_due(self, turn: Turn, identity: bytes) -> None:
        """A repetition or a bare acknowledgement of the session may be due."""
        session = self._sessions.get(identity)
        if session is None:
            return
        for frame in session.link.due(turn.now.boot_s):
            turn.send(session.peer, frame)
        # Counted by what was sent in vain and not by the clock: while this master was stopped, or
        # busy, nobody could acknowledge anything to it.
        if session.link.repetitions > limits.repetitions_max:
            why = f"heard, and acknowledges nothing: sent again {limits.repetitions_max} times"
            turn.broken.append((identity, why))
        self.wind(session)

    def wind(self, session: Session) -> None:
        """Keep the session's timer in step with its link."""
        wake_s = session.link.wake_s
        if wake_s is not None:
            self._timers.set(("link", session.identity), wake_s)

    def _no(
        self, hello: Hello, code: str, message: str, hint: str = "", retry_after_s: float = 0.0
    ) -> Refused:
        return Refused(
            code=code, message=message, hint=hint, retry_after_s=retry_after_s, nonce=hello.nonce
        )


def _who(peer: Peer, hello: Hello) -> Admission | str:
    """Role and name of the peer, or why it has none."""
    if peer.user is not None:
        role, _, name = peer.user.partition(":")
        if hello.role != ("client" if role == "viewer" else role):
            return f"the key is that of {peer.user}, the HELLO says {hello.role}"
    else:
        role = hello.role
        name = hello.host if role == "agent" else "local"
        if role == "viewer":
            return "a viewer needs a key"
    if _ENDPOINT_OF.get(role) != peer.endpoint:
        return f"role {role!r} is not served on the endpoint of the {peer.endpoint}"
    plain = name.isascii() and name.isprintable() and not set(" /\\:") & set(name)
    if not plain or not 0 < len(name) <= limits.label_bytes_max:
        return f"name {name!r}: must be 1 to {limits.label_bytes_max} printable characters"
    return Admission(role, name, f"{role}:{name}")
