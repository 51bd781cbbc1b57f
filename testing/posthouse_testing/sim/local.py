"""The Unix socket between a simulated agent and its warden.

Owns: the orders and reports on their way. Must not know: what they mean.
Invariant: as with SOCK_SEQPACKET, messages arrive whole and in order, and what was sent can be read
after the sender is gone; but not after the reader has closed its end.
"""

from posthouse_agent import effects as agent_effects
from posthouse_agent import orders
from posthouse_testing.sim.node import Node
from posthouse_testing.sim.world import World

__all__ = ["LocalSocket", "name_of"]


class LocalSocket:
    """One SOCK_SEQPACKET connection. What was sent can be read after the sender is gone."""

    def __init__(self, world: World, agent: Node, warden: Node, kind: str) -> None:
        self.world = world
        self.kind = kind
        self.agent = agent
        self.warden = warden
        self.void = False  # the warden has closed it: what is unread is never read
        self.left = False  # the agent has
        self._to_warden_s = 0.0
        self._to_agent_s = 0.0

    def order(self, order: orders.Order) -> None:
        data = orders.pack(order)
        self._to_warden_s = self._later(self._to_warden_s)
        self.world.at(self._to_warden_s, self._at_warden, data)

    def report(self, report: orders.Report) -> None:
        data = orders.pack(report)
        self._to_agent_s = self._later(self._to_agent_s)
        self.world.at(self._to_agent_s, self._at_agent, data)

    def agent_ended(self) -> None:
        """The agent's end closed."""
        self.left = True
        self._to_warden_s = self._later(self._to_warden_s)
        self.world.at(self._to_warden_s, self._at_warden, None)

    def warden_ended(self) -> None:
        """The warden's end closed, by its death or because a newer agent attached."""
        self.void = True
        self._to_agent_s = self._later(self._to_agent_s)
        self.world.at(self._to_agent_s, self._at_agent, None)

    def _later(self, last_s: float) -> float:
        return max(last_s, self.world.now_s + self.world.random.uniform(0.0001, 0.002))

    def _at_warden(self, data: bytes | None) -> None:
        if not self.void:
            self.warden.submit((self, orders.unpack(data) if data is not None else None))

    def _at_agent(self, data: bytes | None) -> None:
        if self.left:
            return
        if data is None:
            self.left = True
            self.agent.submit(
                agent_effects.WardenGone(self.kind, "the warden closed the connection")
            )
        else:
            self.agent.submit(agent_effects.Reported(self.kind, orders.unpack(data)))


def name_of(record: orders.Order | orders.Report) -> str:
    """An order or report in short, for the trace."""
    tokens = getattr(record, "token", None) or getattr(record, "tokens", "")
    return f"{type(record).__name__} {tokens}".rstrip()
