"""Everything on one machine, in the foreground: what `posthouse up` does.

Owns: the master and agent processes of one folder, their logs on the screen, their end, and the
end of what a killed predecessor left. Must not know: how they work. Invariant: it only ever ends
processes that an `up` of this folder started, which they prove by a descriptor that they hold.

1. `up.lock` is locked by the running `up`; a second one is refused.
2. `up.children` is held open by every process that it starts: a later `up` finds them by it.
3. A host's folder holds the mark `of-up`: the wardens in it, which are nobody's children, are ours.
4. Of what was deleted the kernel still knows who has it open: so the others are found, too.
"""

import contextlib
import fcntl
import glob
import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import click

import posthouse
from posthouse import config, limits, paths
from posthouse.errors import PosthouseError, RefusedError, TimedOut
from posthouse.settings import DatabaseSettings
from posthouse_cli.layout import Layout
from posthouse_testing import sweep
from posthouse_testing.cluster import command
from posthouse_testing.sweep import ProcessId

__all__ = ["Declared", "House"]

_COLOURS: Final = (36, 33, 35, 32, 34, 96, 93, 95)
_TAIL_S: Final = 0.1  # the logs are looked at this often: a person reads them
_RETRY_S: Final = 1.0  # an agent or master that ended is started again after this
_READY_S: Final = 30.0
_WARDEN_S: Final = 15.0  # it gives each worker its grace, 5 s unless the registration says more
_ENDING: Final = frozenset((signal.SIGINT, signal.SIGTERM, signal.SIGHUP))


@dataclass(slots=True)
class _Part:
    """One child process, the file with its log, and how much of that is on the screen."""

    name: str
    argv: list[str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    shown: int = 0
    rest: bytes = b""
    again_s: float = field(default=0.0)


@dataclass(frozen=True, slots=True)
class Declared:
    """The file that says which workers are to be there; the master's own. Without one nothing is
    said: what another folder's file has declared here stays."""

    file: str = ""
    preload_path: tuple[str, ...] = ()
    preload_s: float = 0.0
    databases: tuple[DatabaseSettings, ...] = ()


class _Stop(Exception):
    """A signal asked for the end."""


class House:
    """`run()` returns when everything that it started has ended."""

    def __init__(
        self,
        layout: Layout,
        hosts: Iterable[str],
        *,
        path: Iterable[str],
        declared: "Declared | None" = None,
        say: Callable[[str], None],
        colors: bool = False,
    ) -> None:
        self.layout = layout
        self.hosts = tuple(hosts)
        self._say = say
        self._colors = colors
        self._parts: list[_Part] = []
        self._children = self._awake = -1
        self._selector: selectors.BaseSelector
        self._config = layout.run / "config" / "agent.toml"  # ours: none of the machine's is read
        base = command()
        common = [f"--config={self._config}", "--log-format=console"]
        folders = [os.path.abspath(folder) for folder in path]  # noqa: PTH100
        declared = declared or Declared()
        self._ready_s = _READY_S + declared.preload_s
        self._databases = [
            f"[databases.{json.dumps(database.name)}]\nurl = {json.dumps(database.url)}\n"
            f"maintenance = {json.dumps(database.maintenance)}"
            for database in declared.databases
        ]
        # Not --dir: with two folders (sockets here, registry there) each place is named.
        flags = [*self._master_flags(), "--log-format=console"]
        flags += [f"--config={declared.file}"] if declared.file else []
        flags += [f"--preload-path={folder}" for folder in (*folders, *declared.preload_path)]
        self._add("master", [*base, "master", *flags])
        import_path = [f"--path={folder}" for folder in folders]
        for host in self.hosts:
            flags = [*self._agent_flags(host), "--module=*", "--allow-exec", *import_path, *common]
            self._add(host, [*base, "agent", *flags])

    def run(self, ready: Iterable[str]) -> int:
        """Start, say `ready` when every host is up, and go on until a signal comes."""
        for folder in (self.layout.run, self.layout.state, self._config.parent):
            paths.private_dir(folder)
        self._write_config()
        for host in self.hosts:  # before folders are named after them
            config.load_agent(str(self._config), flags={"host": host}, environ={})
        with self._only_one():
            self.clean_up()
            with self._woken_by_signals() as awake, selectors.DefaultSelector() as selector:
                self._selector, self._awake = selector, awake
                selector.register(awake, selectors.EVENT_READ)
                try:
                    return self._run(ready)
                finally:
                    self._end()

    def _write_config(self) -> None:
        """What hosts are told by no flag, because the URLs of databases may hold passwords."""
        lines = ["# `posthouse up` says everything else by flags.", *self._databases]
        self._config.unlink(missing_ok=True)
        self._config.touch(mode=0o600)
        self._config.write_text("\n".join(lines) + "\n")

    @contextlib.contextmanager
    def _woken_by_signals(self) -> Iterator[int]:
        """A descriptor from which the numbers of the signals that came can be read."""
        awake, wake = os.pipe()
        os.set_blocking(wake, False)
        previous = signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        handlers = {
            number: signal.signal(number, lambda *_: None) for number in (*_ENDING, signal.SIGCHLD)
        }
        try:
            yield awake
        finally:
            signal.set_wakeup_fd(previous)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            os.close(awake)
            os.close(wake)

    def clean_up(self) -> None:
        """End what an earlier `up` of this folder left behind, if it was killed."""
        agents_and_master = self._children_left()
        wardens = self._wardens()
        if not agents_and_master and not wardens:
            return
        pids = ", ".join(str(who.pid) for who in (*agents_and_master, *wardens))
        self._tell(f"an earlier `posthouse up` was killed; ending what it left: {pids}")
        # Agents before wardens: an agent starts a warden that it misses.
        sweep.end_all(agents_and_master, term_s=3.0)
        sweep.end_all(self._wardens(), term_s=_WARDEN_S)
        left = self._children_left() + self._wardens()
        if left:
            raise RefusedError(
                f"cannot end what an earlier `posthouse up` left: {left}",
                hint="end these processes yourself, or choose another folder with --dir",
            )

    def _children_left(self) -> list[ProcessId]:
        path = self.layout.run / "up.children"
        return sweep.holders(path) + sweep.holders_of_deleted(self._name_of(path))

    def _name_of(self, path: Path) -> str:
        """As sweep.holders_of_deleted() takes it."""
        return glob.escape(os.path.realpath(path))

    def _wardens(self) -> list[ProcessId]:
        hosts = self._name_of(self.layout.run / "hosts")
        found = sweep.holders_of_deleted(f"{hosts}/*/warden.lock")
        for mark in self.layout.run.glob("hosts/*/of-up"):
            for lock in mark.parent.glob("*/warden.lock"):
                found += sweep.holders(lock)
        return found

    @contextlib.contextmanager
    def _only_one(self) -> Iterator[None]:
        path = self.layout.run / "up.lock"
        other = sweep.holders_of_deleted(self._name_of(path))
        if other:
            raise RefusedError(
                f"a `posthouse up` is running in {self.layout.run}, whose files were deleted: "
                f"process {other[0].pid}",
                hint="end it with Ctrl-C, or give this one its own folder with --dir",
            )
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RefusedError(
                    f"a `posthouse up` is running in {self.layout.run} already",
                    hint="end it with Ctrl-C, or give this one its own folder with --dir",
                ) from None
            self._children = os.open(
                self.layout.run / "up.children", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
            try:
                yield
            finally:
                os.close(self._children)
        finally:
            os.close(lock)

    # --- running ---

    def _run(self, ready: Iterable[str]) -> int:
        try:
            self._start_all()
            for line in ready:
                self._tell(line)
            while True:
                self._turn(_TAIL_S)
        except _Stop:
            return 0
        except PosthouseError as error:
            self._show_logs()
            self._tell(str(error))
            return error.exit_status

    def _start_all(self) -> None:
        for host in self.hosts:
            paths.private_dir(self.layout.host(host).parent)
            paths.private_dir(self.layout.host(host)).joinpath("of-up").touch()
        for part in self._parts:
            self._start(part)
        waiting = set(self.hosts)
        deadline_s = time.monotonic() + self._ready_s
        while waiting:
            if time.monotonic() > deadline_s:
                raise RefusedError(
                    f"not up after {self._ready_s:g} s: {', '.join(sorted(waiting))}",
                    hint=f"the logs are in {self.layout.state}",
                )
            self._turn(0.02, first=True)
            with contextlib.suppress(PosthouseError):
                # Short, so that a part which fails at its start is noticed at once.
                waiting -= self._reachable(timeout_s=0.5)

    def _reachable(self, timeout_s: float) -> set[str]:
        with posthouse.connect(self.layout.clients, timeout=timeout_s) as cluster:
            return {host.name for host in cluster.hosts(timeout=timeout_s) if host.reachable}

    def _turn(self, patience_s: float, *, first: bool = False) -> None:
        """Wait a moment; show new log lines; see to children that ended. Raises _Stop."""
        if self._asked_to_end(patience_s):
            raise _Stop
        self._show_logs()
        for part in self._parts:
            assert part.process is not None
            code = part.process.poll()
            if code is None:
                continue
            if first:
                raise RefusedError(
                    f"{part.name} ended with status {code} before it was up",
                    hint=f"its log is {part.log}",
                )
            if part is self._parts[0] and code == 0:
                self._tell("the cluster was shut down")
                raise _Stop
            if not part.again_s:
                self._tell(f"{part.name} ended with status {code}; starting it again")
                part.again_s = time.monotonic() + _RETRY_S
            elif time.monotonic() >= part.again_s:
                part.again_s = 0.0
                self._start(part)

    def _asked_to_end(self, patience_s: float) -> bool:
        """Whether a signal that ends us has come, or comes within this time."""
        asked = False
        for _ in self._selector.select(patience_s):
            asked = bool(set(os.read(self._awake, 4096)) & _ENDING)
        return asked

    # --- the end ---

    def _end(self) -> None:
        """Fast shutdown: workers get TERM, then KILL after their grace; then everything ends."""
        self._tell("shutting down (again Ctrl-C: at once)")
        hurry = self._shut_workers_down()
        for part in self._parts[1:]:
            self._finish(part)
        # The warden's end is that of its workers, and a killed one takes them with it.
        sweep.end_all(self._wardens(), term_s=0.0 if hurry else _WARDEN_S)
        self._finish(self._parts[0])
        self._show_logs()
        self._tell("everything has ended; registrations are kept for the next `posthouse up`")

    def _shut_workers_down(self) -> bool:
        """Until the master says that it is done, which ends it. True if somebody could not wait."""
        master, request_id = self._parts[0].process, os.urandom(limits.request_id_bytes)
        if master is None or master.poll() is not None:
            return False
        try:
            with posthouse.connect(self.layout.clients) as cluster:
                while master.poll() is None:
                    with contextlib.suppress(TimedOut):
                        # One request, asked again with its id: so we look at signals meanwhile.
                        cluster.shutdown("fast", timeout=_TAIL_S, request_id=request_id)
                        break
                    if self._asked_to_end(0):
                        return True
                    self._show_logs()
        except PosthouseError as error:
            self._tell(f"{error.message}; the wardens end the workers")
        return False

    def _finish(self, part: _Part) -> None:
        process = part.process
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            process.wait(5.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    # --- parts ---

    def _add(self, name: str, argv: list[str]) -> None:
        log = "master" if not self._parts else f"agent-{name}"
        self._parts.append(_Part(name, argv, self.layout.state / f"{log}.log"))

    def _start(self, part: _Part) -> None:
        if part.process is None and part.log.exists():
            part.log.replace(part.log.with_suffix(".log.old"))
        with part.log.open("ab") as log:
            part.process = subprocess.Popen(
                part.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us; we end them in order
                pass_fds=(self._children,),
                env={
                    # What this user has set for his clients is not meant for these.
                    **{k: v for k, v in os.environ.items() if not k.startswith("POSTHOUSE_")},
                    "PYTHONUNBUFFERED": "1",
                    # There is no master.toml in it: one that does not exist declares nothing.
                    **(
                        {"POSTHOUSE_CONFIG": str(self._config.parent)}
                        if part.name == "master"
                        else {}
                    ),
                },
            )

    def _show_logs(self) -> None:
        width = max(len(part.name) for part in self._parts)
        for number, part in enumerate(self._parts):
            try:
                with part.log.open("rb") as log:
                    log.seek(part.shown)
                    new = log.read(1 << 20)
            except FileNotFoundError:
                continue
            part.shown += len(new)
            *lines, part.rest = (part.rest + new).split(b"\n")
            for line in lines:
                prefix = f"{part.name:{width}} |"
                if self._colors:
                    prefix = f"\x1b[{_COLOURS[number % len(_COLOURS)]}m{prefix}\x1b[0m"
                self._show(f"{prefix} {line.decode(errors='replace')}")

    def _show(self, line: str) -> None:
        with contextlib.suppress(OSError):  # the terminal may be gone; we have processes to end
            click.echo(line)

    def _tell(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._say(text)

    def _master_flags(self) -> list[str]:
        return [
            f"--listen-clients={self.layout.clients}",
            f"--listen-agents={self.layout.agents}",
            f"--state-dir={self.layout.registry}",
        ]

    def _agent_flags(self, host: str) -> list[str]:
        return [
            f"--host={host}",
            f"--master={self.layout.agents}",
            f"--runtime-dir={self.layout.host(host)}",
            f"--log-dir={self.layout.logs(host)}",
            f"--clients={self.layout.clients}",
        ]
