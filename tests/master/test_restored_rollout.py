"""Rollouts and a restore: whose backup was taken before, within, or after one."""

from dataclasses import replace

import pytest

from posthouse.messages import Apply, Declared, Start, Started, Stop
from posthouse.spec import BackgroundWorker
from posthouse.states import WorkerState
from posthouse_master.store.base import first_number
from posthouse_master.store.memory import MemoryDisk

TIMELINE = 1_700_000_000
NAMES = ("x", "y", "z")


def copied(disk: MemoryDisk) -> MemoryDisk:
    kept = ("specs", "states", "slots", "events", "hosts", "groups", "requests")
    return replace(disk, held_by=None, **{name: dict(getattr(disk, name)) for name in kept})


class Shop:
    """Three workers of one declaration on host a, whose processes are a table; host b is idle."""

    def __init__(self, town):
        self.town = town
        self.a, self.b = town.host("a"), town.host("b")
        self.running = {}

    def apply(self, content):
        workers = [
            Declared(
                spec=BackgroundWorker(
                    name=name, main="acme.jobs:main", host="a", main_arg=content
                ).to_wire()
            )
            for name in NAMES
        ]
        return self.town.client().ask(Apply, source="shop", workers=workers)

    def obey(self, *, ready=True):
        """Host a does what it is told; how many STOPs were under way at a time, at the most."""
        stops_max = 0
        while self.a.inbox:
            stops = self.a.take(Stop)
            stops_max = max(stops_max, len(stops))
            for stop in stops:
                self.a.end(self.running.pop(stop.token), stop.reason, code=0)
            for start in self.a.take(Start):
                self.running[start.token] = start
                self.a.say(Started(worker=self.a.running(start, ready=ready)))
        return stops_max

    def contents(self):
        return {s.spec["name"]: s.spec["main_arg"] for s in self.running.values()}

    def restore(self, backup, *hosts):
        town = self.town
        town.store.close()
        town.disk = copied(backup)
        first = first_number(TIMELINE)
        town.disk.timeline, town.disk.epoch = TIMELINE, first
        town.disk.counters = replace(backup.counters, token=first, recovery="known")
        for peer in town.peers.values():
            peer.link = None
        town.peers.clear()
        town._start()
        for name in hosts or ("a", "b"):
            self.back(name)

    def back(self, name):
        host = self.town.agent(name)
        host.open(settle=False)
        running = self.running.values() if name == "a" else ()
        host.settle(running=[host.running(s, name=s.spec["name"], ready=True) for s in running])
        setattr(self, name, host)


@pytest.fixture
def shop(town):
    shop = Shop(town)
    shop.apply("old")
    shop.obey()
    assert set(shop.contents().values()) == {"old"}
    return shop


def everywhere(content):
    return dict.fromkeys(NAMES, content)


def test_a_rollout_goes_on_where_the_backup_has_it(shop):
    shop.apply("new")  # one has been asked to stop
    shop.restore(copied(shop.town.disk))
    assert shop.obey() == 1, "one at a time, as before"
    assert shop.contents() == everywhere("new")


def test_a_rollout_that_was_over_before_the_disk_was_lost_is_not_made_again(shop):
    shop.apply("new")
    backup = copied(shop.town.disk)
    shop.obey()
    tokens = set(shop.running)
    shop.restore(backup)
    assert shop.obey() == 0 and set(shop.running) == tokens
    assert shop.apply("new").unchanged == 3
    assert shop.obey() == 0


def test_nobody_is_stopped_for_a_rollout_before_he_could_be_started_again(shop):
    """After a restore nothing is started before all hosts are back."""
    shop.apply("new")
    backup = copied(shop.town.disk)
    started = shop.a.take(Stop)
    assert len(started) == 1
    backup.states.update(  # the moment before, in which nobody was asked yet
        {key: replace(row, stopping=None, stop_by="") for key, row in backup.states.items()}
    )
    shop.restore(backup, "a")
    shop.town.pass_time(5)
    assert shop.obey() == 0 and shop.contents() == everywhere("old")
    status = shop.town.client().status("x")
    assert "all hosts are back" in status.reason, status.reason
    shop.back("b")
    assert shop.obey() == 1 and shop.contents() == everywhere("new")


@pytest.mark.parametrize("content", ["old", "new", "newest"])
def test_a_deployment_that_the_backup_does_not_have_is_replaced_at_somebodys_word(shop, content):
    """What runs is none of the revisions in the registry: it runs on, its status tells so, and no
    apply takes it for what is declared."""
    backup = copied(shop.town.disk)
    shop.apply("new")
    shop.obey()
    tokens = set(shop.running)
    shop.restore(backup)
    shop.town.pass_time(60)
    assert shop.obey() == 0 and set(shop.running) == tokens
    status = shop.town.client().status("x")
    assert (status.state, status.revision, status.running_revision) == (WorkerState.STARTED, 1, 2)
    assert "revision 2" in status.reason and "`posthouse apply`" in status.reason
    shop.town.crash()
    shop.back("a")
    shop.back("b")
    answer = shop.apply(content)
    assert (answer.updated, answer.unchanged) == (3, 0)
    assert shop.obey() == 1 and shop.contents() == everywhere(content)
    assert not tokens & set(shop.running)
    assert shop.town.client().status("x").revision == 3, "no revision is given twice"
    assert shop.apply(content).unchanged == 3


def test_one_that_ends_before_that_is_started_as_the_registry_has_it(shop):
    backup = copied(shop.town.disk)
    shop.apply("new")
    shop.obey()
    shop.restore(backup)
    token, start = shop.running.popitem()
    shop.a.end(start, code=1)
    shop.town.pass_time(10)
    shop.obey()
    name = start.spec["name"]
    assert shop.contents()[name] == "old"
    status = shop.town.client().status(name)
    assert (status.revision, status.running_revision) == (1, 1) and token not in shop.running
    answer = shop.apply("old")
    assert (answer.updated, answer.unchanged) == (2, 1)
