"""How long faults are felt: a host that is lost, 500 agents that come back at once, a master that
is started again beside 1,000 workers.

uv run python bench/faults.py [loss] [agents] [restart] [--agents 500] [--workers 1000]

`loss` needs root (network namespaces). The agents of `agents` are agent cores on real sockets with
keys, in four processes, and their wardens and workers are made up; master and client are real.
"""

import argparse
import multiprocessing
import os
import socket
import statistics
import sys
import time
from multiprocessing.synchronize import Event as Flag
from pathlib import Path
from typing import Any

import zmq
from noise import machine, probe

import posthouse
from posthouse import BackgroundWorker, Cluster, Cursor, keys, transport
from posthouse.errors import PosthouseError
from posthouse.settings import ClientSettings
from posthouse_agent import facts
from posthouse_agent.effects import Tick
from posthouse_testing.cluster import LocalCluster

HERE = Path(__file__).resolve().parent
SHARDS = 4

sys.path.insert(0, str(HERE.parent / "tests" / "faults"))


# --- a host that is lost ---


def loss(times: int) -> None:
    from faulting.field import Field, eventually

    with Field({"a": "wire", "b": "proxy"}) as field, field.connect() as client:

        def reachable() -> bool:
            return next(host.reachable for host in client.hosts() if host.name == "a")

        for direction in ("both", "from", "to"):
            taken = []
            for number in range(times):
                time.sleep(0.37 * (number % 3))  # at any moment between two renewals
                field.network.cut("a", direction)
                begun_s = time.monotonic()
                eventually(lambda: not reachable())
                taken.append(time.monotonic() - begun_s)
                field.network.heal("a")
                eventually(reachable)
            print(f"  cut {direction:5} seen after {statistics.median(taken):.2f} s "
                  f"(median of {times}), {max(taken):.2f} at the most")  # fmt: skip


# --- many agents ---


def shard(numbers: range, endpoint: str, pairs: list[keys.ClientKeys], end: Flag) -> None:
    from faulting.made_up import Host

    context = transport.new_context()
    poller = zmq.Poller()
    hosts = [
        Host(f"h{number}", endpoint, poller, pair=pairs[number], context=context)
        for number in numbers
    ]
    for host in hosts:
        host.feed(Tick())
    while not end.is_set():
        wake_s = min(host.core.wake_s for host in hosts) - facts.instant().boot_s
        poller.poll(max(1, min(50, int(wake_s * 1000))))
        for host in hosts:
            host.turn()
    os._exit(0)


class Served(LocalCluster):
    """A master without hosts, that listens with keys on TCP."""

    def __init__(self, agents: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe_socket:
            self.endpoint = f"tcp://127.0.0.1:{probe_socket.getsockname()[1]}"
        super().__init__(hosts=())
        self.master.argv += ["--listen-agents", self.endpoint]
        self.pairs = [keys.generate() for _ in range(agents)]
        self.keys = self.dir / "keys"

    def start(self) -> None:
        self.dir.mkdir(mode=0o700, exist_ok=True)
        self.keys.mkdir(mode=0o700)
        master, client = keys.generate(), keys.generate()
        keys.write_pair(str(self.keys / "master"), master, "master:main")
        keys.write_pair(str(self.keys / "client"), client, "client:me")
        lines = ["[principals]", f'"client:me" = "{client.public}"']
        lines += [f'"agent:h{n}" = "{pair.public}"' for n, pair in enumerate(self.pairs)]
        (self.keys / "principals.toml").write_text("\n".join([*lines, ""]))
        self.master.argv[self.master.argv.index("--config") + 1] = str(self.keys / "master.toml")
        (self.keys / "master.toml").write_text(
            f'key_file = "{self.keys}/master"\nprincipals_file = "{self.keys}/principals.toml"\n'
        )
        self.public = master.public
        super().start()

    def connect(self, **options: Any) -> Cluster:
        settings = ClientSettings(
            master=self.clients, key_file=str(self.keys / "client"), master_key=self.public
        )
        return posthouse.connect(settings=settings, **options)


def until_up(client: Cluster, count: int, span_s: float = 60.0) -> float:
    """Seconds until so many hosts are reachable."""
    begun_s = time.monotonic()
    up = 0
    while up < count:
        assert time.monotonic() - begun_s < span_s, f"{up} of {count} are there"
        try:
            up = sum(host.reachable for host in client.hosts(timeout=5))
        except PosthouseError:
            continue
        time.sleep(0.02)
    return time.monotonic() - begun_s


def agents(count: int) -> None:
    fork = multiprocessing.get_context("fork")
    end = fork.Event()
    with Served(count) as cluster:
        pairs = [keys.ClientKeys(p.public, p.secret, cluster.public) for p in cluster.pairs]
        shards = [
            fork.Process(
                target=shard, args=(range(first, count, SHARDS), cluster.endpoint, pairs, end)
            )
            for first in range(SHARDS)
        ]  # fmt: skip
        for process in shards:
            process.start()
        try:
            with cluster.connect() as client:
                print(f"  {count} hosts for the first time: {until_up(client, count):.2f} s")
                for number in range(count):
                    client.register(
                        BackgroundWorker(name=f"w{number}", main="m:f", host=f"h{number}")
                    )
                deadline_s = time.monotonic() + 60
                while sum(i.status.state == "started" for i in client.workers()) < count:
                    assert time.monotonic() < deadline_s, "not all are started"
                cursor = client.cursor()
                for _ in range(3):
                    cluster.master.kill()
                    begun_s = time.monotonic()
                    cluster.master.start()
                    until_up(client, count)
                    took_s = time.monotonic() - begun_s
                    states = [(i.status.state, i.status.incarnation) for i in client.workers()]
                    touched = len(states) - states.count(("started", 1))
                    print(f"  master killed, all back after {took_s:.2f} s; touched: {touched}")
                lost = count_events(client, cursor)
                print(f"  events since then: {lost}")
        finally:
            end.set()
            for process in shards:
                process.join(20)


def count_events(client: Cluster, cursor: Cursor) -> dict[str, int]:
    found: dict[str, int] = {}
    for event in client.events(after=cursor, follow=False):
        what = f"{event.kind} ({event.reason})"
        found[what] = found.get(what, 0) + 1
    return found


# --- a master beside many workers ---


def restart(count: int) -> None:
    with (
        LocalCluster(hosts=("a",), path=[HERE], timeout=60) as cluster,
        cluster.connect() as client,
    ):
        begun_s = time.monotonic()
        client.register_group(BackgroundWorker(name="w", main="storm_jobs:idle"), count)
        while sum(i.status.state == "started" for i in client.workers()) < count:
            assert time.monotonic() - begun_s < 300, "not all are started"
            time.sleep(0.2)
        print(f"  {count} workers started in {time.monotonic() - begun_s:.1f} s")
        before = {i.status.name: i.status.pid for i in client.workers()}
        for how in ("KILL", "TERM", "KILL"):
            cursor = client.cursor()
            (cluster.master.kill if how == "KILL" else cluster.master.terminate)()
            begun_s = time.monotonic()
            cluster.master.start()
            until_up(client, 1)
            seen_s = time.monotonic() - begun_s
            while not all(i.status.reachable for i in client.workers()):
                assert time.monotonic() - begun_s < 60
            known_s = time.monotonic() - begun_s
            client.handle("w:0").signal("KILL")  # it decides again: an exit is told and acted on
            for event in client.handle("w:0").events(after=cursor, timeout=60):
                if event.kind == "exited":
                    break
            caught_s = time.monotonic() - begun_s
            client.handle("w:0").wait_for_startup(timeout=60)
            while client.status("w:0").state != "started":
                assert time.monotonic() - begun_s < 90
            after = {i.status.name: i.status.pid for i in client.workers()}
            touched = sum(after[name] != before[name] for name in before if name != "w:0")
            before = after
            print(
                f"  {how}: host back after {seen_s:.2f} s, all workers known after "
                f"{known_s:.2f} s, a kill is told after {caught_s:.2f} s; touched: {touched}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", default=["loss", "agents", "restart"])
    parser.add_argument("--agents", type=int, default=500)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--times", type=int, default=10)
    options = parser.parse_args()
    print(machine(), probe(), sep="; ", flush=True)
    for what in options.what:
        print(what, flush=True)
        match what:
            case "loss":
                loss(options.times)
            case "agents":
                agents(options.agents)
            case "restart":
                restart(options.workers)
    print(probe())


if __name__ == "__main__":
    main()
