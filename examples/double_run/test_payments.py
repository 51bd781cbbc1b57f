"""One test of both workers, on virtual time: `pytest test_payments.py`. One is meant to fail."""

import pytest
from payments import careful, careless

from posthouse import BackgroundWorker
from posthouse_testing import MakeCluster, VirtualCluster


class SlowBank:
    """Bank, in the world of the test. Most payments are quick; some nights are not."""

    def __init__(self, cluster: VirtualCluster) -> None:
        self.last = 0
        self._newest = 0  # token
        self._cluster = cluster
        self._paid = cluster.once("payment")

    def begin(self, token: int) -> int:
        self._newest = max(self._newest, token)
        return self.last

    def pay(self, number: int, sender: str, token: int | None = None) -> None:
        delay_s = self._cluster.world.random.choice((0.05, 0.05, 0.05, 3.0))
        self._cluster.after(delay_s, self._arrives, number, sender, token)

    def _arrives(self, number: int, sender: str, token: int | None) -> None:
        if token is not None and token < self._newest:
            return  # a dead one's
        self._paid.done(number, sender)
        self.last = number


def play(cluster: VirtualCluster, main: str) -> None:
    """A minute of faults, and time to recover from them."""
    bank = SlowBank(cluster)
    cluster.worker("payments:careless")(lambda me: careless(me, bank))
    cluster.worker("payments:careful")(lambda me: careful(me, bank))
    cluster.register(BackgroundWorker(name="payments", main=main, restart_time=0.5))
    cluster.chaos(60)
    paid = bank.last
    cluster.run(60)
    assert bank.last > paid, "it gets on"


@pytest.mark.posthouse_seeds(100)
def test_careless(posthouse_cluster: MakeCluster) -> None:
    play(posthouse_cluster(hosts=["a", "b"]), "payments:careless")


@pytest.mark.posthouse_seeds(100)
def test_careful(posthouse_cluster: MakeCluster) -> None:
    play(posthouse_cluster(hosts=["a", "b"]), "payments:careful")
