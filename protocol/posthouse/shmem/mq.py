"""A queue of messages in shared memory, from one sender to one receiver (K10-K19).

Owns: the ring, the framing, the waits, what either end sees of the other's end. Must not know: who
the two are, what the messages mean. Invariant: each end believes only its own position, which it
keeps for itself; the other's is read once, and checked, before anything rests on it.

Layout, in words of 8 bytes: magic, bytes of the ring, written (in all), read (in all), sender
left, receiver left, two spare ones; then the ring. A message is its length (8 bytes) and its bytes,
padded to 8.

Differences from shm_mq: what is sent is visible at once (K15), and every wait may have a timeout
(K12). An end that was killed is seen by a descriptor of its process (K19).
"""

import os
import time
from contextlib import suppress
from typing import Any, Final, Self

from posthouse import limits, worker
from posthouse.errors import TimedOut, UsageError
from posthouse.shmem.line import Peer, line
from posthouse.shmem.segments import Region, Segment
from posthouse.shmem.wrong import Corrupt, Detached
from posthouse.states import WorkerState

__all__ = ["Queue"]

_MAGIC: Final = 0x706F73742D6D7131  # "post-mq1"
_HEAD_BYTES: Final = 64
_RING, _WRITTEN, _READ, _LEFT = 1, 2, 3, {"sender": 4, "receiver": 5}
_OTHER: Final = {"sender": "receiver", "receiver": "sender"}


class Queue:
    """One end. `Queue.create` lays it out; then each side calls `as_sender` or `as_receiver`."""

    MIN_BYTES: Final = _HEAD_BYTES + 8

    def __init__(self, region: Region, role: str, peer: Peer | None, *, gone: bool) -> None:
        self._region = region
        self._words = region.view()[: region.size & ~7].cast("Q")
        self._size = _ring_bytes(region)
        if self._words[0] != _MAGIC or self._words[_RING] != self._size:
            raise Corrupt("there is no queue of this size here")
        self._ring = region.view()[_HEAD_BYTES : _HEAD_BYTES + self._size]
        self._role = role
        self._peer = peer
        self._gone = gone  # the other end has left, or will never come
        self._handle: worker.WorkerHandle | None = None
        self._at = 0  # written, or read, by this end
        self._seen = 0  # the other end's position as it was last read
        self._length: int | None = None  # of the message that has begun
        self._done = 0  # bytes of it that are through, its length included
        self._parts = bytearray()
        self._lent = 0  # bytes of the ring that the last message handed out still occupies
        self._over = False
        region.segment.on_detach(self._on_detach)

    def __repr__(self) -> str:
        return f"<Queue {self._role} at {self._region.offset} ring={self._size}>"

    # --- making one ---

    @staticmethod
    def create(region: Region) -> Region:
        """Lay out an empty queue over the region [shm_mq_create]. Raises UsageError."""
        if region.offset % 8:
            raise UsageError(f"offset is {region.offset}: must be a multiple of 8")
        if region.size < Queue.MIN_BYTES:
            raise UsageError(f"a queue of {region.size} bytes: must be at least {Queue.MIN_BYTES}")
        words = region.view()[:_HEAD_BYTES].cast("Q")
        for at in range(8):
            words[at] = 0
        words[_RING] = _ring_bytes(region)
        words[0] = _MAGIC
        return region

    @classmethod
    def as_sender(cls, region: Region, handle: "worker.WorkerHandle | None" = None) -> "Queue":
        """Be its only sender [shm_mq_set_sender, shm_mq_attach]. With the handle of the worker
        that is to receive, its end before it has come counts as detached. Raises RefusedError if
        there has been a sender, Corrupt."""
        return cls._sit(region, "sender", handle)

    @classmethod
    def as_receiver(cls, region: Region, handle: "worker.WorkerHandle | None" = None) -> "Queue":
        """Be its only receiver [shm_mq_set_receiver, shm_mq_attach]; as `as_sender`."""
        return cls._sit(region, "receiver", handle)

    @classmethod
    def _sit(cls, region: Region, role: str, handle: "worker.WorkerHandle | None") -> "Queue":
        if region.size < cls.MIN_BYTES or region.offset % 8:
            raise Corrupt("there is no queue here")
        number, offset = region.segment.number, region.offset
        answer, fds = line().ask("sit", number=number, offset=offset, role=role)
        told = answer.get("peer", 0)
        peer = Peer(told, *fds) if len(fds) == 2 else None
        queue = cls(region, role, peer, gone=told == -1)
        queue._handle = handle
        return queue

    # --- sending ---

    def send(self, data: Any, *, wait: bool = True, timeout: float | None = None) -> bool:
        """Send the bytes of a buffer. False, only without `wait`: it could not be finished; go on
        with the very same bytes later, or detach (K14). Raises Detached at once when the receiver
        is gone, TimedOut (then too it may have begun), UsageError."""
        self._need("sender")
        view = memoryview(data).cast("B")
        length = len(view)
        if length > limits.queue_message_bytes_max:
            raise UsageError(
                f"a message of {length} bytes: at most {limits.queue_message_bytes_max}"
            )
        if self._length is None:
            self._length, self._done = length, 0
        elif self._length != length:
            raise UsageError(
                f"a message of {self._length} bytes was begun, and {length} bytes do not finish it"
            )
        deadline_s = None if timeout is None else time.monotonic() + timeout
        with _Waiting() as waiting:
            while not self._push(view, length):
                if not wait:
                    return False
                self._sleep(waiting, deadline_s)
        self._length = None
        return True

    def _push(self, view: memoryview, length: int) -> bool:
        """Put as much of the message into the ring as fits. Whether all of it is in."""
        if self._peer_left():
            raise Detached("the receiver of the queue is gone")
        total = 8 + _padded(length)
        before = self._done
        while self._done < total:
            room = self._size - self._used(self._at, self._other(_READ))
            if room == 0:
                break
            start = self._at % self._size
            if self._done == 0:
                self._words[_HEAD_BYTES // 8 + start // 8] = length
                step = 8
            else:
                from_byte = self._done - 8
                step = min(room, self._size - start, total - self._done)
                part = view[from_byte : from_byte + step]
                self._ring[start : start + len(part)] = part
            self._at += step
            self._done += step
            self._words[_WRITTEN] = self._at  # after the bytes: the other end reads up to here
        if self._done != before:
            self._wake()
        return self._done == total

    # --- receiving ---

    def receive(self, *, wait: bool = True, timeout: float | None = None) -> memoryview | None:
        """The next message, readable until the next call: it may stand in the ring itself (K16).
        None, only without `wait`: there is none that is whole. Raises Detached when the sender is
        gone and everything whole has been received (K13); TimedOut; Corrupt."""
        self._need("receiver")
        self._give_back()
        deadline_s = None if timeout is None else time.monotonic() + timeout
        with _Waiting() as waiting:
            while (message := self._pull()) is None:
                if self._peer_left() and (message := self._pull()) is None:
                    raise Detached("the sender of the queue is gone")
                if message is not None:
                    break
                if not wait:
                    return None
                self._sleep(waiting, deadline_s)
        return message

    def _pull(self) -> memoryview | None:
        """A whole message, or what there is of it taken out of the ring."""
        there = self._used(self._other(_WRITTEN), self._at)
        if self._length is None:
            if there < 8:
                return None
            length = self._words[_HEAD_BYTES // 8 + self._at % self._size // 8]
            if length > limits.queue_message_bytes_max:
                raise Corrupt(f"a message of {length} bytes in a queue")
            start = (self._at + 8) % self._size
            whole = 8 + _padded(length)
            if there >= whole and start + length <= self._size:
                self._lent = whole
                return self._ring[start : start + length].toreadonly()
            self._length, self._done, self._parts = length, 8, bytearray()
            self._consume(8)
            there -= 8
        total = 8 + _padded(self._length)
        while there and self._done < total:
            start = self._at % self._size
            step = min(there, self._size - start, total - self._done)
            wanted = min(step, self._length - len(self._parts))
            self._parts += self._ring[start : start + wanted]
            self._done += step
            there -= step
            self._consume(step)
        if self._done < total:
            return None
        self._length = None
        return memoryview(self._parts).toreadonly()

    def _give_back(self) -> None:
        if self._lent:
            step, self._lent = self._lent, 0
            self._consume(step)

    def _consume(self, count: int) -> None:
        self._at += count
        self._words[_READ] = self._at
        self._wake()

    # --- ends ---

    def detach(self) -> None:
        """Leave for good; the other end is told [shm_mq_detach]."""
        self._region.segment.cancel_on_detach(self._on_detach)
        self._on_detach(self._region.segment)

    def peer_attached(self) -> bool:
        """Whether the other end has come."""
        return self._find_peer() is not None

    def wait_for_attach(self, *, timeout: float | None = None) -> None:
        """Until the other end has come [shm_mq_wait_for_attach]. Raises Detached if it never will,
        TimedOut."""
        deadline_s = None if timeout is None else time.monotonic() + timeout
        with _Waiting() as waiting:
            while self._find_peer() is None:
                if self._peer_left():
                    raise Detached(f"the {_OTHER[self._role]} of the queue has never come")
                self._sleep(waiting, deadline_s)

    def _on_detach(self, _: Segment) -> None:
        if self._over:
            return
        self._give_back()
        self._over = True
        self._words[_LEFT[self._role]] = 1
        self._wake()
        peer, self._peer = self._peer, None
        if peer is not None:
            os.close(peer.latch_fd)
            os.close(peer.pidfd)
        self._words.release()
        with suppress(BufferError):  # a message that was handed out
            self._ring.release()

    def _need(self, role: str) -> None:
        if self._role != role:
            raise UsageError(f"this end of the queue is its {self._role}")
        if self._over:
            raise UsageError("this end of the queue has been detached")

    def _find_peer(self) -> Peer | None:
        if self._peer is None and not self._gone:
            there = line()
            key = (self._region.segment.number, self._region.offset, _OTHER[self._role])
            if key not in there.peers:
                there.pump()
            self._peer = there.peers.pop(key, None)
        return self._peer

    def _peer_left(self) -> bool:
        """Whether the other end has detached, or died."""
        if self._gone:
            return True
        if self._words[_LEFT[_OTHER[self._role]]]:
            self._gone = True
        elif (peer := self._find_peer()) is not None:
            self._gone = bool(worker.latch.readable(peer.pidfd))
        return self._gone

    # --- positions ---

    def _other(self, word: int) -> int:
        """The other end's position, which never falls."""
        position = self._words[word]
        if position < self._seen:
            raise Corrupt("a position of a queue has fallen")
        self._seen = position
        return position

    def _used(self, written: int, read: int) -> int:
        used = written - read
        if not 0 <= used <= self._size or used % 8:
            raise Corrupt(f"a queue of {self._size} bytes with {used} in use")
        return used

    # --- waiting ---

    def _wake(self) -> None:
        if (peer := self._find_peer()) is not None:
            with suppress(BlockingIOError):
                os.eventfd_write(peer.latch_fd, 1)

    def _sleep(self, waiting: "_Waiting", deadline_s: float | None) -> None:
        """Until something may have changed. Raises TimedOut."""
        left_s = None if deadline_s is None else deadline_s - time.monotonic()
        if left_s is not None and left_s <= 0:
            raise TimedOut(f"{self!r}: the other end was not ready in time")
        if waiting.first():
            return  # look once more, now that the latch is reset
        fds = [line().fileno()]
        if self._peer is not None:
            fds.append(self._peer.pidfd)
        elif self._handle is not None:
            if self._handle.status().state is WorkerState.STOPPED and self._find_peer() is None:
                self._gone = True
                return
            left_s = min(limits.queue_look_s, limits.queue_look_s if left_s is None else left_s)
        waiting.wait(left_s, fds)


class _Waiting:
    """By the process's latch, set again at the end: it may have been set for others (L8)."""

    def __init__(self) -> None:
        self._swallowed = False
        self._clear = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._swallowed:
            worker.latch.set()

    def first(self) -> bool:
        """Reset the latch. Whether that is news: then look before waiting (L3)."""
        if self._clear:
            return False
        self._clear = True
        if worker.latch.is_set():
            worker.latch.reset()
            self._swallowed = True
        return True

    def wait(self, timeout: float | None, fds: list[int]) -> None:
        causes = worker.latch.wait(
            worker.LATCH_SET,
            worker.SOCKET_READABLE,
            worker.POSTMASTER_DEATH,
            timeout=timeout,
            sockets=fds,
        )
        if worker.LATCH_SET in causes:
            self._clear = False
        if worker.SOCKET_READABLE in causes:
            line().pump()
        if worker.POSTMASTER_DEATH in causes:
            raise SystemExit(1)


def _ring_bytes(region: Region) -> int:
    return (region.size - _HEAD_BYTES) & ~7


def _padded(length: int) -> int:
    return (length + 7) & ~7
