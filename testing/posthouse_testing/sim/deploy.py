"""Simulated deployments: declarations that are drawn, cut into parts, sent until they are answered.

Owns: what is declared, and the way of one declaration after the other through one client. Must not
know: what the master makes of them (declared.py judges that), frames.

Invariant: as with the real client, a lost upload is sent again from its beginning under another
upload id and the same request id, so it has one effect however often it is sent.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from posthouse.errors import PosthouseError, ShuttingDown, UploadLost
from posthouse.messages import Applied, Apply, Declared, DeclarePart, Reply, Request
from posthouse.spec import BackgroundWorker
from posthouse.states import NEVER_RESTART, Every
from posthouse_testing.sim.declared import Declarations
from posthouse_testing.sim.world import World

__all__ = ["SOURCES", "Deployer"]

SOURCES = ("shop", "farm")
_NAMES = ("d1", "d2", "d3", "d4", "d5")
_GROUPS = ("g", "h")  # numbered; "e-SOURCE" has a member on each host
_READY = ("d1", "d2", "g")  # they say ready
_BAD = {"main_arg": {"bad": True}}  # ends at once, whenever it is started


@dataclass(slots=True, eq=False)
class _Deployment:
    apply: Apply
    workers: list[Declared]
    last: bool  # the one that has to succeed, with fewer workers if need be
    parts: list[list[Declared]] = field(default_factory=list)
    upload: bytes = b""


@dataclass(slots=True, eq=False)
class Deployer:
    """Deploys through one client. `ask` is the client's."""

    world: World
    declared: Declarations
    hosts: list[str]
    ask: Callable[[Request], None]
    _line: deque[_Deployment] = field(default_factory=deque)

    @property
    def busy(self) -> bool:
        return bool(self._line)

    # --- what is declared ---

    def deploy(self) -> None:
        """A declaration of one of the sources, whatever it was before."""
        random = self.world.random
        source = random.choice(SOURCES)
        names = [name for name in _NAMES if random.random() < 0.6]
        workers = [self._entry(name) for name in names]
        workers += [
            self._entry(group, random.randint(1, 3)) for group in _GROUPS if random.random() < 0.2
        ]
        if random.random() < 0.2:
            workers.append(self._entry(f"e-{source}", Every.HOST))
        if random.random() < 0.1:
            workers.append(self._entry(f"w{random.randint(1, 12)}"))  # somebody may have it
        self._begin(source, workers)

    def deploy_well(self, source: str) -> None:
        """The last declaration of a source: what it has, with content that runs."""
        found = self.declared.newest.get(source)
        workers = [] if found is None else list(found.workers)
        good = [Declared(spec=_mended(entry.spec), replicas=entry.replicas) for entry in workers]
        self._begin(source, good, last=True)

    def withdraw(self, source: str) -> None:
        """Nothing is declared any more."""
        self._begin(source, [], last=True)

    def _entry(self, name: str, replicas: Any = None) -> Declared:
        random = self.world.random
        restart_s = random.choice((0, 0.3, 1.0, NEVER_RESTART))
        worker = BackgroundWorker(
            name=name,
            main="acme.jobs:main",
            # Now and then a revision forgets to say ready, and is waited for in vain.
            main_arg={"ready": name in _READY and random.random() < 0.85},
            nice=random.randint(0, 2),
            restart_time=restart_s,
            stop_grace_s=random.choice((0.0, 0.3)),
            host=random.choice((None, None, None, *self.hosts)) if replicas is None else None,
        )
        spec = worker.to_wire()
        if restart_s != NEVER_RESTART and random.random() < 0.15:
            spec |= _BAD
        return Declared(spec=spec, replicas=replicas)

    # --- the way of a declaration ---

    def _begin(self, source: str, workers: list[Declared], *, last: bool = False) -> None:
        random = self.world.random
        apply = Apply(
            request=self.world.entropy(16),
            source=source,
            prune=last or random.random() < 0.8,
            max_unavailable=4 if last else random.choice((1, 1, 2, 3)),
            dry_run=not last and random.random() < 0.1,
        )
        self._line.append(_Deployment(apply, workers, last))
        if len(self._line) == 1:
            self._send()

    def _send(self) -> None:
        """The first in the line, from its beginning."""
        deployment = self._line[0]
        workers, size = deployment.workers, self.world.random.choice((1, 2, 100))
        deployment.parts = [workers[at : at + size] for at in range(0, len(workers), size)] or [[]]
        deployment.upload = self.world.entropy(16) if len(deployment.parts) > 1 else b""
        self.declared.asked[deployment.apply.request] = (deployment.apply, tuple(workers))
        self._part(0)

    def _part(self, number: int) -> None:
        deployment = self._line[0]
        workers, upload = deployment.parts[number], deployment.upload
        if number == len(deployment.parts) - 1:
            self.ask(msgspec.structs.replace(deployment.apply, workers=workers, upload=upload))
            return
        self.ask(
            DeclarePart(request=self.world.entropy(16), upload=upload, part=number, workers=workers)
        )

    def answered(self, request: Request, outcome: Reply | PosthouseError) -> None:
        """The client has an answer to one of its requests."""
        deployment = self._line[0]
        if isinstance(request, DeclarePart) and not isinstance(outcome, PosthouseError):
            self._part(request.part + 1)
        elif isinstance(request, DeclarePart) or isinstance(outcome, UploadLost):
            self.world.figures["declarations sent again"] += 1
            self.world.after(self.world.random.uniform(0.0, 0.5), self._send)
        elif deployment.last and not isinstance(outcome, Applied):
            if not isinstance(outcome, ShuttingDown):
                deployment.workers = deployment.workers[:-1]
            again = msgspec.structs.replace(deployment.apply, request=self.world.entropy(16))
            deployment.apply = again
            self.world.after(0.5, self._send)
        else:
            self._line.popleft()
            if self._line:
                self._send()


def _mended(spec: dict[str, Any]) -> dict[str, Any]:
    return spec | {"main_arg": {"ready": spec["name"] in _READY}}
