"""Random real kills in a row, of every role, and then the verdict of the oracle.

    python tests/faults/kills.py [KILLS] [--seed N]

Each kill is a SIGKILL, of a worker, warden, zygote, agent or master, or of several at once; what
was killed is started again after a random while, and the next kill comes after another. One host is
on a cable, one behind a proxy whose connections break now and then. Exit 0: no overlap, no event
lost or doubled, nothing left behind. It prints what was done, and what the processes use.
"""

import argparse
import contextlib
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from faulting.field import Field, eventually
from faulting.measure import Use, slope, use_of
from faulting.oracle import TERMINAL

from posthouse import BackgroundWorker, Cluster, Event
from posthouse.errors import PosthouseError

STEADY, CHURNING = 3, 2  # workers of each host
ROLES = ("worker",) * 8 + ("warden",) * 4 + ("agent",) * 4 + ("zygote",) * 2 + ("master",) * 3
SAMPLE = 10  # kills between two moments at which everything is whole again


class Kills:
    def __init__(self, field: Field, client: Cluster, seed: int) -> None:
        self.field = field
        self.client = client
        self.dice = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.events: list[Event] = []
        self.samples: list[tuple[int, dict[str, Use]]] = []
        self.daemons = [field.master, *(field.agent(host) for host in field.hosts)]
        self._cursor = client.cursor()
        self.handles = [
            client.register(
                BackgroundWorker(
                    name=f"{host}.{kind}{number}",
                    main=f"fault_jobs:{kind}",
                    main_arg=str(field.oracle.folder),
                    host=host,
                    restart_time=0.1 if kind == "steady" else 0.5,
                    stop_grace_s=1.0,
                )
            )
            for host in field.hosts
            for kind, count in (("steady", STEADY), ("fail", CHURNING))
            for number in range(count)
        ]

    def read(self) -> None:
        with contextlib.suppress(PosthouseError):  # the master is away: later
            for event in self.client.events(after=self._cursor, follow=False, timeout=2):
                self._cursor = event.cursor
                assert event.kind != "trimmed", "the log was read too seldom"
                self.events.append(event)

    def kill(self) -> None:
        role = self.dice.choice(ROLES)
        host = self.dice.choice(list(self.field.hosts))
        if role == "worker":
            pids = [hold.pid for hold in self.field.oracle.living(f"{host}.")]
            pids = self.dice.sample(pids, min(len(pids), self.dice.choice((1, 1, 1, 5))))
        else:
            pids = self.field.pids_of(role if role == "master" else f"{role}:{host}")
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for daemon in self.daemons if pids else ():
            if daemon.alive and daemon.pid in pids:
                daemon.wait()
        self.done[role] += bool(pids)
        if self.dice.random() < 0.1:
            self.field.proxies["b"].break_all()
            self.done["connection broken"] += 1

    def restart_some(self, *, everything: bool = False) -> None:
        for daemon in self.daemons:
            if not daemon.alive and (everything or self.dice.random() < 0.7):
                daemon.start()

    def whole(self, number: int) -> None:
        """Everybody runs again; what they use then is comparable."""
        self.restart_some(everything=True)
        self.field.wait_for_hosts()
        steady = [handle for handle in self.handles if ".steady" in handle.name]
        for handle in steady:
            eventually(lambda h=handle: h.status(timeout=20).ready, lambda h=handle: h.explain())
        self.read()
        roles = {"master": [self.field.master.pid]}
        for role in ("agent", "warden", "zygote"):
            roles[role] = [p for h in self.field.hosts for p in self.field.pids_of(f"{role}:{h}")]
        roles["all"] = [who.pid for who in self.field.processes()]
        roles["this client"] = [os.getpid()]
        self.samples.append((number, {name: use_of(pids) for name, pids in roles.items()}))

    @property
    def kills(self) -> int:
        return sum(self.done[role] for role in set(ROLES))

    def run(self, kills: int) -> None:
        while (number := self.kills) < kills:
            self.kill()
            if self.kills == number:
                continue  # nobody of that role ran
            time.sleep(self.dice.choice((0.0, 0.01, 0.1, 0.3, 0.6)))
            self.restart_some()
            self.read()
            if number % SAMPLE == SAMPLE - 1:
                self.whole(number)
                if number % 100 == 99:
                    print(f"  {number + 1} kills, {len(self.events)} events", flush=True)
                    assert not self.field.oracle.overlaps, self.field.oracle.overlaps
        self.whole(kills)
        for handle in self.handles:
            handle.terminate(timeout=20)
        for handle in self.handles:
            handle.wait_until_unregistered(timeout=30)
        eventually(lambda: not self.field.oracle.living())
        self.read()


def report(kills: Kills, seconds: float) -> None:
    ends = Counter(event.exit.cause if event.exit else event.kind for event in kills.events
                   if event.kind in TERMINAL)  # fmt: skip
    print(f"kills: {dict(kills.done)}")
    print(f"incarnations that held: {len(kills.field.oracle.holds)}; ends told: {dict(ends)}")
    print(f"overlaps: {len(kills.field.oracle.overlaps)}; {seconds:.0f} s")
    for role in kills.samples[0][1]:
        first, last = kills.samples[0][1][role], kills.samples[-1][1][role]
        parts = [f"{role:12}"]
        for what in ("processes", "rss_kib", "fds", "threads"):
            points = [(float(n), float(getattr(use[role], what))) for n, use in kills.samples]
            parts.append(f"{what} {getattr(first, what)} -> {getattr(last, what)}"
                         f" ({slope(points) * 100:+.2f} per 100 kills,"
                         f" {slope(points, 0.5) * 100:+.2f} in the second half)")  # fmt: skip
        print("  ".join(parts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kills", type=int, nargs="?", default=1000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    begun_s = time.monotonic()
    field = Field({"a": "wire", "b": "proxy"})
    with field, field.connect() as client:
        kills = Kills(field, client, options.seed)
        kills.run(options.kills)
        problems = field.oracle.problems("", kills.events)
        report(kills, time.monotonic() - begun_s)
    problems += [f"left: {what}" for what in field.left()]
    print("\n".join(problems) or "no problem")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
