"""A host whose agent is a real core on a real socket, and whose warden and workers are made up.

For what only numbers show: hundreds of hosts, or starts and ends by the hundred a second, without
a process for each of them. To the master it is a host like any other.
"""

import os
import time
from typing import Any

import zmq

from posthouse import keys, transport
from posthouse.settings import AgentSettings
from posthouse_agent import facts, orders
from posthouse_agent.core import AgentCore
from posthouse_agent.effects import (
    ConnectionBroken,
    Frame,
    Give,
    HostFacts,
    Input,
    NeedWarden,
    Redial,
    Reported,
    Tick,
    Transmit,
    WardenUp,
)


class Host:
    """`mortal`: each worker exits with 1 as soon as it is started."""

    def __init__(
        self,
        name: str,
        endpoint: str,
        poller: zmq.Poller,
        *,
        pair: keys.ClientKeys | None = None,
        context: Any = None,
        mortal: bool = False,
    ) -> None:
        self.line = transport.Line(endpoint, keys=pair, context=context)
        self.line.watch(poller)
        self.mortal = mortal
        settings = AgentSettings(
            host=name, master=endpoint, runtime_dir="/nowhere", log_dir="/nowhere",
            modules=("*",),
        )  # fmt: skip
        mine = facts.host_facts()
        made_up = HostFacts(
            boot_id=mine.boot_id, machine_id=mine.machine_id, instance=os.urandom(16).hex()
        )
        self.boot_id = mine.boot_id
        self.core = AgentCore(settings, made_up, os.urandom)
        self.pid = 100_000

    def feed(self, event: Input) -> None:
        waiting = [event]
        while waiting:
            for effect in self.core.handle(waiting.pop(0), facts.instant()):
                match effect:
                    case Transmit(frame):
                        self.line.transmit(frame)
                    case Redial():
                        self.line.redial()
                    case NeedWarden(kind):
                        waiting.append(WardenUp(kind))
                    case Give(kind, order):
                        waiting += [Reported(kind, report) for report in self.answer(kind, order)]

    def answer(self, kind: str, order: Any) -> list[Any]:
        match order:
            case orders.Attach():
                attached = orders.Attached(
                    instance=os.urandom(16).hex(), kind=kind, boot_id=self.boot_id, pid=self.pid,
                    highest_token=0,
                )  # fmt: skip
                return [attached, orders.SnapshotEnd(running=0, exits=0)]
            case orders.StartWorker():
                forked = orders.Forked(
                    token=order.token, registry=order.registry, slot=order.slot,
                    generation=order.generation, incarnation=order.incarnation,
                    revision=order.revision, pid=self.pid, pid_start=1, started_unix_s=time.time(),
                )  # fmt: skip
                return [forked, *([self.ended(order)] if self.mortal else [])]
            case orders.RenewLease():
                return [orders.Leased(stamp=order.stamp)]
        return []

    def ended(self, order: orders.StartWorker) -> orders.Ended:
        now_s = time.time()
        return orders.Ended(
            token=order.token, registry=order.registry, slot=order.slot,
            generation=order.generation, incarnation=order.incarnation, revision=order.revision,
            facts={"cause": "exited", "code": 1, "pid": self.pid, "started_unix_s": now_s,
                   "ended_unix_s": now_s, "runtime_s": 0.0},
        )  # fmt: skip

    def turn(self) -> None:
        for frame in self.line.receive():
            self.feed(Frame(frame))
        if (trouble := self.line.trouble()) is not None:
            self.feed(ConnectionBroken(*trouble))
        if self.core.wake_s <= facts.instant().boot_s:
            self.feed(Tick())
