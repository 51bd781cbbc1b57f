"""Workers that register workers: through the channel, with real signals."""

import json
import time

import pytest

from posthouse import BackgroundWorker, EventKind
from posthouse.errors import RefusedError

DEADLINE_S = 60.0


@pytest.fixture
def client(cluster):
    with cluster.connect() as connected:
        yield connected


def until(check):
    deadline_s = time.monotonic() + DEADLINE_S
    while not (found := check()):
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    return found


def boss(posthouse, name, main="jobs:boss", **arg):
    arg = {"prefix": name, **arg}
    posthouse(
        *("run", main, "--name", name, "--on", "a", "--detach", "--arg"),
        json.dumps(arg if main == "jobs:boss" else f"{name}-0"),
    )

    def said():
        return posthouse("logs", name, status=None).stdout.splitlines()

    return said


def end(client, name, count):
    for number in range(count):
        client.handle(f"{name}-{number}").terminate()


def test_d1_a_worker_registers_waits_for_and_terminates_another(client, posthouse, name):
    """PostgreSQL: allowed from any backend or another background worker. So here, without ZeroMQ or
    any third party in the worker, and `by` says which process of which worker it was."""
    said = boss(posthouse, name, terminates=True)
    lines = until(lambda: "refused already_registered" in (found := said()) and found)
    assert lines[1].startswith("sees started ")
    assert lines[3:] == [
        "terminates True",
        "gone True",
        "again False",
        "refused already_registered",
    ]
    (registered, *_) = client.handle(f"{name}-0").events(follow=False)
    handle = client.handle(name).id
    assert registered.by.startswith(f"worker:{name}/{handle.slot}.{handle.generation}/")


def test_n1_n4_l8_a_registrant_gets_sigusr1_and_its_latch_is_set(client, posthouse, name):
    """PostgreSQL: SIGUSR1 at start and exit; a worker without DATABASE_CONNECTION ignores it, and
    waits for ever (N4). Healed: the default handler of every worker sets the latch. Who swallows a
    set latch while waiting for something else must set it again (L8): waits here never take it."""
    said = boss(posthouse, name, notify=True)
    assert until(lambda: [line for line in said() if line.startswith("woken")]) == ["woken True"]
    until(lambda: "latch True" in said())
    end(client, name, 1)


def test_a_deadly_default_is_looked_at_before_each_signal(client, posthouse, name):
    said = boss(posthouse, name, main="jobs:deadly")
    until(lambda: "lives" in said())
    end(client, name, 1)
    client.handle(f"{name}-0").wait_until_unregistered(timeout=DEADLINE_S)
    status = client.handle(name).status()
    assert (status.state.value, status.incarnation) == ("started", 1)


def test_f17_who_cannot_be_signalled_is_told_so(client):
    """PostgreSQL: any pid, silently dropped if it is no child. Here: refused, with what to do."""
    with pytest.raises(RefusedError, match="no handler for SIGUSR1, which would end it") as refused:
        client.register(BackgroundWorker(name="n", main="jobs:idle", notify=True))
    assert "handles, events and waits" in refused.value.hint


def test_each_registration_has_one_effect_though_agent_and_master_are_killed(
    cluster, client, posthouse, name
):
    said = boss(posthouse, name, helpers=6)
    for number, daemon in ((1, cluster.agent("a")), (3, cluster.master), (4, cluster.agent("a"))):
        until(lambda at=number: f"registers {at}" in said())
        daemon.restart()
    until(lambda: len([line for line in said() if line.startswith("sees")]) == 6)
    assert not [line for line in said() if "Error" in line]
    assert client.handle(name).status().incarnation == 1
    for number in range(6):
        events = list(client.handle(f"{name}-{number}").events(follow=False))
        assert [e.kind for e in events].count(EventKind.REGISTERED) == 1
    names = [info.status.name for info in client.workers(retired=True)]
    assert sorted(n for n in names if n.startswith(f"{name}-")) == [f"{name}-{n}" for n in range(6)]
    end(client, name, 6)
