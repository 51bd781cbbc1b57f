"""A worker that pays, twice written: `careless` pays twice when it dies at the wrong moment.

posthouse never runs two of it at a time, and that is not enough: a payment that is on its way goes
on when its sender is dead. `careful` has the bank compare tokens.
"""

from collections.abc import Generator
from typing import Any, Protocol

from posthouse_testing import SimulatedWorker


class Bank(Protocol):
    """Another company's service. What is sent to it arrives later, whoever is dead by then."""

    last: int  # the number of the last payment that has arrived

    def pay(self, number: int, sender: str, token: int | None = None) -> None: ...
    def begin(self, token: int) -> int: ...


def careless(me: SimulatedWorker, bank: Bank) -> Generator[Any, Any, None]:
    """It asks what has arrived. What its dead predecessor had sent has not, and comes later."""
    me.unblock_signals()
    number = bank.last + 1
    while True:
        bank.pay(number, str(me))
        while bank.last < number:
            yield me.sleep(0.1)
        number += 1
        yield me.latch.wait(timeout=0.2)


def careful(me: SimulatedWorker, bank: Bank) -> Generator[Any, Any, None]:
    """From `begin` on the bank refuses what comes with an older token."""
    me.unblock_signals()
    number = bank.begin(me.token) + 1
    while True:
        bank.pay(number, str(me), me.token)
        while bank.last < number:
            yield me.sleep(0.1)
        number += 1
        yield me.latch.wait(timeout=0.2)
