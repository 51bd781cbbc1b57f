"""Machines as network namespaces: one for the master, one for each host, a cable to each.

Owns: namespaces, cables, what is cut. Must not know: processes, posthouse. Invariant: what is made
here is gone after `close`, whatever became of those who used it.

A direction is cut without a sound by a wrong hardware address for the other end: its kernel then
drops every frame, nobody is told, and no packet filter is needed. `unplug` takes the cable away,
which both kernels notice.
"""

import ctypes
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

Result = TypeVar("Result")
PORT = 7420
_NOBODY = "02:00:00:00:00:99"
_CLONE_NEWNET = 0x40000000


class CannotHere(Exception):
    """This machine cannot do it; says why."""


def ip(*words: str) -> str:
    ran = subprocess.run(["ip", *words], capture_output=True, text=True)
    if ran.returncode:
        raise CannotHere(f"ip {' '.join(words)}: {ran.stderr.strip()}")
    return ran.stdout


def _remove_orphans() -> None:
    """Namespaces of a run that was killed."""
    for line in ip("netns", "list").splitlines():
        found = re.fullmatch(r"phf(\d+)\w+", line.split()[0])
        if found and not os.path.exists(f"/proc/{found[1]}"):
            subprocess.run(["ip", "netns", "del", found[0]])


class Network:
    """The master is 10.78.N.1 to host number N, which is 10.78.N.2."""

    def __init__(self, hosts: Iterable[str]) -> None:
        if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("nsenter") is None:
            raise CannotHere("network namespaces need root, iproute2 and nsenter")
        _remove_orphans()
        mark = f"phf{os.getpid()}"
        self.hosts = list(hosts)
        self._made: list[str] = []
        self._names = {"": f"{mark}m"} | {host: f"{mark}{host}" for host in self.hosts}
        try:
            for name in self._names.values():
                ip("netns", "add", name)
                self._made.append(name)
                ip("-n", name, "link", "set", "lo", "up")
            for number, host in enumerate(self.hosts, 1):
                names = (self._names[""], self._names[host])
                ends = (f"to-{host}"[:15], "cable")
                ip("link", "add", ends[0], "netns", names[0], "type", "veth",
                   "peer", "name", ends[1], "netns", names[1])  # fmt: skip
                for side, (name, end) in enumerate(zip(names, ends, strict=True), 1):
                    ip("-n", name, "addr", "add", f"10.78.{number}.{side}/24", "dev", end)
                    ip("-n", name, "link", "set", end, "up")
        except BaseException:
            self.close()
            raise

    def master_of(self, host: str) -> str:
        """The master's address, seen from a host."""
        return f"10.78.{self.hosts.index(host) + 1}.1"

    def enter(self, host: str) -> list[str]:
        """What a command begins with that runs there; "": on the master's machine. Nothing but the
        network is another one: `ip netns exec` would hide the cgroups."""
        return ["nsenter", f"--net=/var/run/netns/{self._names[host]}"]

    def within(self, host: str, make: Callable[[], Result]) -> Result:
        """What `make` makes there; a socket stays where it was made."""
        made: list[Result] = []
        failed: list[BaseException] = []

        def run() -> None:
            try:
                space = os.open(f"/var/run/netns/{self._names[host]}", os.O_RDONLY)
                if ctypes.CDLL(None, use_errno=True).setns(space, _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
                os.close(space)
                made.append(make())
            except BaseException as error:  # noqa: BLE001 - it is raised below
                failed.append(error)

        thread = threading.Thread(target=run)  # a thread of its own: its namespace ends with it
        thread.start()
        thread.join()
        if failed:
            raise failed[0]
        return made[0]

    def cut(self, host: str, direction: str) -> None:
        """Drop everything `to` the host, `from` it, or `both`, without a sound."""
        number = self.hosts.index(host) + 1
        ends = {"to": ("", f"to-{host}"[:15], 2), "from": (host, "cable", 1)}
        for way, (side, device, peer) in ends.items():
            if direction in (way, "both"):
                ip("-n", self._names[side], "neigh", "replace", f"10.78.{number}.{peer}",
                   "lladdr", _NOBODY, "dev", device, "nud", "permanent")  # fmt: skip

    def unplug(self, host: str) -> None:
        """Take the cable out: whoever sends is told at once that there is no network."""
        ip("-n", self._names[host], "link", "set", "cable", "down")

    def heal(self, host: str) -> None:
        """The cable is whole."""
        number = self.hosts.index(host) + 1
        for side, device, peer in (("", f"to-{host}"[:15], 2), (host, "cable", 1)):
            name, address = self._names[side], f"10.78.{number}.{peer}"
            ip("-n", name, "link", "set", device, "up")
            if "PERMANENT" in ip("-n", name, "neigh", "show", address, "dev", device):
                ip("-n", name, "neigh", "del", address, "dev", device)

    def close(self) -> None:
        for name in self._made:
            subprocess.run(["ip", "netns", "del", name], check=True)
        self._made = []

    def left(self) -> list[str]:
        """Namespaces of ours that are still there."""
        here = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
        return sorted({line.split()[0] for line in here.splitlines()} & set(self._names.values()))
