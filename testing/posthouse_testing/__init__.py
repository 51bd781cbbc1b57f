"""Tests of your own workers: a cluster on virtual time, one of real processes, faults for both.

Owns: the public names of the kit; pytest finds the fixtures by itself (plugin). Must not know:
anything, until a name is used. Invariant: importing this package loads neither pytest nor anything
that a worker's environment may lack.

    def test_the_shard_has_one_owner(posthouse_cluster):
        cluster = posthouse_cluster(hosts=["a", "b"], lease_s=10)

        @cluster.worker("myapp:consume")
        def consume(me):
            me.unblock_signals()
            with me.exclusive("shard"):
                while True:
                    yield me.latch.wait(timeout=1)

        cluster.register(BackgroundWorker(name="c", main="myapp:consume"))
        cluster.chaos(60)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from posthouse_testing.oracle import DoubleRun, Exclusive, Hold, Once
    from posthouse_testing.plugin import MakeCluster, MakeRealCluster
    from posthouse_testing.real import RealCluster
    from posthouse_testing.virtual.cluster import VirtualCluster
    from posthouse_testing.virtual.faults import CHAOS
    from posthouse_testing.virtual.process import VirtualProcess
    from posthouse_testing.virtual.worker import SimulatedHandle, SimulatedLatch, SimulatedWorker

__all__ = [
    "CHAOS",
    "DoubleRun",
    "Exclusive",
    "Hold",
    "MakeCluster",
    "MakeRealCluster",
    "Once",
    "RealCluster",
    "SimulatedHandle",
    "SimulatedLatch",
    "SimulatedWorker",
    "VirtualCluster",
    "VirtualProcess",
]

_MODULE_OF: Final = {
    "CHAOS": "virtual.faults",
    "DoubleRun": "oracle",
    "Exclusive": "oracle",
    "Hold": "oracle",
    "MakeCluster": "plugin",
    "MakeRealCluster": "plugin",
    "Once": "oracle",
    "RealCluster": "real",
    "SimulatedHandle": "virtual.worker",
    "SimulatedLatch": "virtual.worker",
    "SimulatedWorker": "virtual.worker",
    "VirtualCluster": "virtual.cluster",
    "VirtualProcess": "virtual.process",
}


def __getattr__(name: str) -> Any:
    """Called at the first use of each name; loads its module."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'posthouse_testing' has no attribute {name!r}")
    value = getattr(import_module(f"posthouse_testing.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
