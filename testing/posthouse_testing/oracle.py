"""Who ran at the same time, and what was done twice: asked of nobody but those who do it.

Owns: holders of things that only one may hold, deeds that may be done once, their history. Must not
know: posthouse, whether time is real. Invariant: standard library only; a broken rule is recorded
before it is raised, so that whoever swallows the error does not hide it.
"""

from collections import deque
from collections.abc import Callable, Hashable
from types import TracebackType
from typing import Self

__all__ = ["DoubleRun", "Exclusive", "Hold", "Once"]

LINES_MAX = 200  # of a history that are kept: the last ones, and an error shows how it came to be


def _nowhere(_text: str) -> None:
    """Nobody writes it down."""


class DoubleRun(AssertionError):
    """Two held at once what only one may hold, or something was done twice. Says who, and when."""


class Hold:
    """One holder, until `release`; a context manager."""

    def __init__(self, of: "Exclusive", who: str) -> None:
        self._of = of
        self.who = who
        self.held = True

    def __repr__(self) -> str:
        return f"<Hold {self._of.name} by {self.who}{'' if self.held else ', released'}>"

    def release(self, how: str = "releases it") -> None:
        """It is held no longer. A second time does nothing."""
        if self.held:
            self.held = False
            self._of.released(self, how)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


class Exclusive:
    """What only one may hold at a time; `take` fails the test when somebody else holds it.

    >>> pen = Exclusive("pen", lambda: 0.0)
    >>> first = pen.take("anna")
    >>> pen.take("bert")
    Traceback (most recent call last):
        ...
    posthouse_testing.oracle.DoubleRun: pen is held twice: by bert while anna holds it
         0.000 s  anna takes it
         0.000 s  bert takes it
    >>> first.release()
    """

    def __init__(
        self, name: str, now: Callable[[], float], log: Callable[[str], None] = _nowhere
    ) -> None:
        self.name = name
        self.broken: list[DoubleRun] = []
        self.taken = 0  # times
        self._now = now
        self._log = log
        self._holds: list[Hold] = []
        self._lines: deque[str] = deque(maxlen=LINES_MAX)

    def __repr__(self) -> str:
        return f"<Exclusive {self.name} held by {', '.join(self.holders) or 'nobody'}>"

    @property
    def holders(self) -> list[str]:
        return [hold.who for hold in self._holds]

    @property
    def history(self) -> list[str]:
        """Who took and released it, and when."""
        return list(self._lines)

    def take(self, who: str) -> Hold:
        """Hold it from now on. Raises DoubleRun."""
        __tracebackhide__ = True
        others = self.holders
        hold = Hold(self, who)
        self._holds.append(hold)
        self.taken += 1
        self._note(f"{who} takes it")
        if others:
            what = f"{self.name} is held twice: by {who} while {' and '.join(others)} holds it"
            self.broken.append(DoubleRun("\n".join((what, *self._lines))))
            raise self.broken[-1]
        return hold

    def released(self, hold: Hold, how: str) -> None:
        """For Hold."""
        self._holds.remove(hold)
        self._note(f"{hold.who} {how}")

    def _note(self, text: str) -> None:
        self._lines.append(f"{self._now():10.3f} s  {text}")
        self._log(f"{self.name}: {text}")


class Once:
    """What may be done once for each key; `done` fails the test at the second time.

    >>> paid = Once("payment", lambda: 1.0)
    >>> paid.done(7, "anna")
    >>> paid.done(7, "bert")
    Traceback (most recent call last):
        ...
    posthouse_testing.oracle.DoubleRun: payment 7 was done twice
         1.000 s  by anna
         1.000 s  by bert
    """

    def __init__(
        self, name: str, now: Callable[[], float], log: Callable[[str], None] = _nowhere
    ) -> None:
        self.name = name
        self.broken: list[DoubleRun] = []
        self._now = now
        self._log = log
        self._done: dict[Hashable, list[str]] = {}

    def __len__(self) -> int:
        return len(self._done)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._done

    def done(self, key: Hashable, who: str) -> None:
        """It is done now. Raises DoubleRun."""
        __tracebackhide__ = True
        lines = self._done.setdefault(key, [])
        lines.append(f"{self._now():10.3f} s  by {who}")
        self._log(f"{self.name} {key} is done by {who}")
        if len(lines) > 1:
            what = f"{self.name} {key} was done {'twice' if len(lines) == 2 else 'again'}"
            self.broken.append(DoubleRun("\n".join((what, *lines[-LINES_MAX:]))))
            raise self.broken[-1]
