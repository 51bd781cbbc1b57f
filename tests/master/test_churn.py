"""Starts and ends without end, and clients that come and go: nothing of a master grows by them.

tests/faults/churn.py looks at the memory of a real one; here every table of the core is counted.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from posthouse.messages import Goodbye, Start, Started

WORKERS = 3
ROUND_S = 0.5
PERIOD = 17  # rounds: three rows a life, and a stream is trimmed by 17 rows at a time


def inside(thing: Any) -> Iterator[tuple[str, Any]]:
    """What it holds, each with the name of its place; entries of a table share one."""
    if type(thing).__module__.startswith("posthouse"):
        slots = [name for cls in type(thing).__mro__ for name in getattr(cls, "__slots__", ())]
        names = [*slots, *getattr(thing, "__dict__", ())]
        yield from ((f".{name}", getattr(thing, name, None)) for name in names)
    elif isinstance(thing, dict):
        yield from (("[]", each) for each in list(thing.values()))
    elif hasattr(thing, "__iter__") and hasattr(thing, "__len__"):
        yield from (("[]", each) for each in list(thing))


def sizes(root: Any) -> Counter[str]:
    """How much there is at each place below it."""
    found: Counter[str] = Counter()
    seen, waiting = {id(root)}, [("core", root)]
    while waiting:
        place, thing = waiting.pop()
        for name, each in inside(thing):
            if name.endswith("[]"):
                found[place] += 1
            if id(each) not in seen and not isinstance(each, int | float | str | bytes | type):
                seen.add(id(each))
                waiting.append((place + name, each))
    return found


def live(town: Any, host: Any, client: Any, rounds: int) -> None:
    """So many lives of each worker; a client comes, follows and goes in each."""
    for _ in range(rounds):
        town.boot_s += ROUND_S
        town.unix_s += ROUND_S
        town.tick()
        for start in host.take(Start):
            host.say(Started(worker=host.running(start)))
            host.end(start, code=1)
        guest = town.client()
        guest.follow("w0")
        guest.say(Goodbye(reason="seen enough"))
        del town.peers[guest.peer]
        for peer in (host, client):
            peer.renew()
            peer.acknowledge()
            peer.grants.clear()
    town.tick()


def test_no_table_of_a_master_grows_by_starts_ends_and_sessions(town):
    client, host = town.client(), town.host("b")
    for number in range(WORKERS):
        client.register(f"w{number}", restart_time=0, restart_budget=(1000, 1.0))
    live(town, host, client, PERIOD * 12)
    before, disk = sizes(town.core), sizes(town.disk)
    assert town.core.log.trims, "streams are full by now"
    live(town, host, client, PERIOD * 30)
    assert sizes(town.core) - before == Counter()
    assert sizes(town.disk) - disk == Counter()
    assert len(before) > 30
    assert before["core.log._rows"] > 700, "the walk has seen it"


def test_a_crash_domain_of_a_host_is_forgotten_with_its_last_member(town):
    client, host = town.client(), town.host("b")
    client.register("w", flags=1, crash_domain="of its own")
    start = host.run()
    assert sizes(town.core)["core.registry._domains"] == 1
    host.end(start, code=0)
    assert sizes(town.core)["core.registry._domains"] == 0
