"""Where a cluster in one folder keeps what: `posthouse up`, and `--dir` of master and agent.

Owns: the names in such a folder. Must not know: what the daemons do there. Invariant: master,
agents, clients and the clean-up of `up` all take the names from here.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from posthouse import paths

__all__ = ["Layout"]


@dataclass(frozen=True, slots=True)
class Layout:
    """`run` holds sockets and locks (its path must be short), `state` the registry and the logs."""

    run: Path
    state: Path

    @classmethod
    def at(cls, folder: str | None) -> "Layout":
        """Everything in one folder; without one, the user's own folders."""
        if folder is None:
            return cls(paths.local_dir(), paths.state_dir())
        path = Path(os.path.abspath(folder))  # noqa: PTH100 - resolve() would follow links
        return cls(path, path)

    @property
    def clients(self) -> str:
        return paths.ipc_endpoint(self.run / "clients.sock")

    @property
    def agents(self) -> str:
        return paths.ipc_endpoint(self.run / "agents.sock")

    @property
    def registry(self) -> Path:
        return self.state / "master"

    def host(self, name: str) -> Path:
        """The runtime folder of a host."""
        return self.run / "hosts" / name

    def logs(self, name: str) -> Path:
        """The output of a host's workers."""
        return self.state / "logs" / name
