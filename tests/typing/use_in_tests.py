"""Programs for the type checkers: what authors of tests write. Never run; see use.py."""

from collections.abc import Generator
from typing import Any, assert_type

from posthouse import BackgroundWorker, Event, Handle
from posthouse_testing import (
    DoubleRun,
    Exclusive,
    MakeCluster,
    MakeRealCluster,
    Once,
    RealCluster,
    SimulatedWorker,
    VirtualCluster,
    VirtualProcess,
)
from posthouse_testing.inside import exclusive, run


def body(me: SimulatedWorker) -> Generator[Any, Any, None]:
    assert_type(me.token, int)
    with me.exclusive("shard"):
        yield me.latch.wait(timeout=1)
        yield me.sleep(0.5)
        yield


class Body:
    def __init__(self, me: SimulatedWorker) -> None:
        self.me = me

    def run(self) -> Generator[Any, Any, None]:
        yield self.me.sleep(1)


def virtual(posthouse_cluster: MakeCluster) -> None:
    cluster = posthouse_cluster(hosts=["a", "b"], seed=7, lease_s=10)
    assert_type(cluster, VirtualCluster)
    posthouse_cluster(3)
    posthouse_cluster(lease=10)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    cluster.worker("app:body")(body)
    cluster.worker("app:Body")(Body)

    @cluster.worker("app:other")
    def other(me: SimulatedWorker) -> Generator[Any, Any, None]:
        yield me.sleep(1)

    handle = cluster.register(BackgroundWorker(name="w", main="app:body"))
    assert_type(handle, Handle)
    assert_type(cluster.events(handle), list[Event])
    assert_type(cluster.running(), list[VirtualProcess])
    assert_type(cluster.exclusive("shard"), Exclusive)
    assert_type(cluster.once("payment"), Once)
    cluster.kill(handle)
    cluster.kill(cluster.running()[0])
    cluster.kill("master", down_s=3)
    cluster.pause("agent:a", 20)
    cluster.cut("a", to_master=False)
    cluster.run_until(lambda: cluster.running(handle), timeout=60)
    cluster.chaos(60, rate=1, kinds=["cable cut"])
    print(other, DoubleRun)


def real(posthouse_real_cluster: MakeRealCluster) -> None:
    cluster = posthouse_real_cluster(["a"], lease_s=5, path=["src"])
    assert_type(cluster, RealCluster)
    assert_type(cluster.client.register(BackgroundWorker(name="w", main="app:main")), Handle)
    with cluster.stopped("warden:a"):
        cluster.cut("a")


def main(_arg: None) -> None:
    with exclusive("shard"):
        run(body)
