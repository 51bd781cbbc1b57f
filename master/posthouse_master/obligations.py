"""CORE: what a host cannot truthfully say, given what this registry has drawn.

Owns: the contradictions between a host's word and the registry. Must not know: the fields of a word
by themselves (said), what a true word leads to (hosts). Invariant: a message is judged whole before
any of it counts, so one that is refused has changed nothing.
"""

from collections.abc import Iterable
from typing import Any

from posthouse.errors import BadFrame
from posthouse.messages import Exit, Inventory, Running
from posthouse_master.registry import Registry

__all__ = ["check_drawn", "check_page", "check_word"]


def check_page(registry: Registry, host: str, page: Inventory) -> None:
    """A page of the inventory. Raises BadFrame."""
    entries: list[Running | Exit] = [*page.running, *page.exits]
    for entry in entries:
        check_word(registry, host, entry)
    if len({entry.token for entry in entries}) < len(entries):
        raise BadFrame("an inventory page that lists one token twice")


def check_drawn(drawn: int, tokens: Iterable[int]) -> None:
    """None of these tokens is above the highest one drawn. Raises BadFrame."""
    told = max(tokens, default=0)
    if told > drawn:
        raise BadFrame(f"token {told} was never drawn, the highest one is {drawn}")


def check_word(registry: Registry, host: str, word: Any) -> None:
    """A token is drawn for one incarnation on one host. Raises BadFrame."""
    registration = registry.get(word.slot, word.generation)
    if registration is None:
        return
    drawn = (registration.token, *registration.after)
    if word.token not in drawn:
        return
    if registration.host and registration.host != host:
        raise BadFrame(
            f"token {word.token} of {registration.name!r} was drawn for host "
            f"{registration.host}, not for {host}"
        )
    wanted = registration.incarnation + drawn.index(word.token)
    incarnation = getattr(word, "incarnation", wanted)
    if incarnation != wanted:
        raise BadFrame(
            f"token {word.token} of {registration.name!r} is incarnation {wanted}, "
            f"not {incarnation}"
        )
