"""Plays one row of the table: its steps, then the way back to a whole cluster, then the verdict.

Owns: what each word of a step does, and the comparison of the oracle with the event log. Must not
know: any single row. Invariant: a row passes only if the oracle saw no two holders, every worker
runs again, each incarnation was told once from start to end, and ended as the row says.
"""

import os
import re
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from faulting.field import PATIENCE_S, Field, alive, eventually
from faulting.oracle import TERMINAL
from posthouse import BackgroundWorker, Cluster, Event, EventKind, Handle
from posthouse.errors import PosthouseError


@dataclass(frozen=True)
class Row:
    """One scenario. workers: "name@host" or "name@host:function", all up and ready before the
    first step. steps: one a line, see the methods of Play. ends: how each worker's incarnations
    end, as a regular expression over the words of `end_of`, but for the last one of a worker that
    the row has not terminated itself.
    """

    name: str
    steps: str
    workers: str = "w@a"
    ends: dict[str, str] = field(default_factory=dict)
    slow: bool = True


def end_of(event: Event) -> str:
    """An end in a word."""
    if event.kind is EventKind.START_FAILED:
        return "start_failed"
    assert event.exit is not None
    if event.stop is not None:
        return str(event.stop)
    if event.exit.oom:
        return "oom"
    if event.exit.signal is not None:
        return signal.Signals(event.exit.signal).name
    return f"exit{event.exit.code}" if event.exit.code is not None else event.exit.cause


class Play:
    """One row on a field. `mark` makes its workers' names its own."""

    def __init__(self, cluster: Field, client: Cluster, row: Row, mark: str) -> None:
        self.field = cluster
        self.client = client
        self.row = row
        self.mark = mark
        self.handles: dict[str, Handle] = {}
        self.retired: list[Handle] = []
        self.events: list[Event] = []
        self._cursor = client.cursor(timeout=20)
        self._asked: list[threading.Thread] = []
        self._answers: list[str] = []
        self._children: list[int] = []

    def run(self) -> None:
        for word in self.row.workers.split():
            self.do_register(word)
        for name in self.handles:
            self.do_runs(name, "1")
        for line in filter(None, (line.strip() for line in self.row.steps.splitlines())):
            verb, *words = line.split()
            step: Callable[..., None] = getattr(self, f"do_{verb}")
            try:
                step(*words)
            except AssertionError as error:
                raise AssertionError(f"at step {line!r}: {error}") from error
        self.finish()
        self.judge()

    def finish(self) -> None:
        """All faults end; then everybody has to run, and to end when it is asked to."""
        self.field.make_whole()
        for thread in self._asked:
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), "a call is not answered"
        assert not self._answers, self._answers
        for name, handle in self.handles.items():
            eventually(lambda n=name: self._is_ready(n), lambda n=name: self._why(n))
            handle.terminate(timeout=20)
        for handle in (*self.handles.values(), *self.retired):
            handle.wait_until_unregistered(timeout=PATIENCE_S)
        eventually(lambda: not self.field.oracle.living(self.mark), self._living)
        self.read()

    def _is_ready(self, name: str) -> bool:
        """The process that holds now is the one that status tells of: until a host that was away
        has told what became of its workers, the master goes by what it knew."""
        status = self.handles[name].status(timeout=20)
        holding = [h.pid for h in self.field.oracle.living(self.mark) if h.name == status.name]
        return status.ready and status.reachable and holding == [status.pid]

    def judge(self) -> None:
        problems = self.field.oracle.problems(self.mark, self.events)
        assert not problems, "\n".join([*problems, *map(str, self.events)])
        for name in {w.partition("@")[0] for w in self.row.workers.split()} | set(self.row.ends):
            ends = self._ends(name)
            if name in self.handles:
                assert ends[-1:] == ["terminate"], (name, ends)
                ends.pop()
            wanted = self.row.ends.get(name, "")
            assert re.fullmatch(wanted, " ".join(ends)), (name, ends, wanted)
        assert not [pid for pid in self._children if alive(pid)], "what a worker started is left"

    def _ends(self, name: str) -> list[str]:
        mine = [event for event in self.events if event.name == self.mark + name]
        return [end_of(event) for event in mine if event.kind in TERMINAL]

    def read(self) -> None:
        """What the log has told until now."""
        for event in self.client.events(after=self._cursor, follow=False, timeout=20):
            self._cursor = event.cursor
            self.events.append(event)

    def close(self) -> None:
        """Somehow, after a failure."""
        for handle in self.handles.values():
            handle.terminate(timeout=20)

    def _why(self, name: str) -> str:
        try:
            return f"{self.handles[name].explain(timeout=5)} {self.handles[name].status(timeout=5)}"
        except PosthouseError as error:
            return str(error)

    def _living(self) -> str:
        return str(self.field.oracle.living(self.mark))

    def _pids(self, target: str) -> list[int]:
        if target in self.handles:
            pids = [
                h.pid for h in self.field.oracle.living(self.mark) if h.name == self.mark + target
            ]
        else:
            pids = self.field.pids_of(target)
        assert pids, f"no {target} runs"
        return pids

    def _host_is(self, host: str, reachable: bool) -> bool:
        try:
            known = {info.name: info.reachable for info in self.client.hosts(timeout=3)}
        except PosthouseError:
            return False
        return known[host] is reachable

    # --- the words: workers ---

    def do_register(self, word: str) -> None:
        name, _, rest = word.partition("@")
        host, _, function = rest.partition(":")
        record = BackgroundWorker(
            name=self.mark + name,
            main=f"fault_jobs:{function or 'steady'}",
            main_arg=str(self.field.oracle.folder),
            host=host,
            restart_time=0.1,
            stop_grace_s=1.0,
        )
        self.handles[name] = self.client.register(record, timeout=PATIENCE_S)

    def do_runs(self, name: str, incarnation: str) -> None:
        """The oracle has seen that incarnation, or a later one, hold."""
        eventually(
            lambda: any(h.incarnation >= int(incarnation) and not h.ended
                        for h in self.field.oracle.of(self.mark + name)),
            lambda: f"{self.field.oracle.of(self.mark + name)} {self._why(name)}",
        )  # fmt: skip

    def do_gone(self, name: str) -> None:
        eventually(lambda: not any(h.name == self.mark + name
                                   for h in self.field.oracle.living(self.mark)))  # fmt: skip

    def do_lives(self, name: str, incarnation: str) -> None:
        """That very incarnation holds now: nothing has touched it."""
        now = [h for h in self.field.oracle.living(self.mark) if h.name == self.mark + name]
        assert [h.incarnation for h in now] == [int(incarnation)], now

    def do_told(self, name: str, end: str) -> None:
        """The log tells such an end."""

        def is_told() -> bool:
            try:
                self.read()
            except PosthouseError:
                return False
            return end in self._ends(name)

        eventually(is_told, lambda: self._why(name))

    def do_latch(self, name: str) -> None:
        self.handles[name].set_latch(timeout=20)

    def do_ask(self, verb: str, name: str) -> None:
        """A call in a thread of its own, which has to succeed before the row ends; terminate takes
        the worker out of those that have to run again."""
        handle = self.handles[name]

        def call() -> None:
            try:
                getattr(handle, verb)(timeout=PATIENCE_S)
            except PosthouseError as error:
                self._answers.append(f"{verb} {name}: {error}")

        self._asked.append(threading.Thread(target=call))
        self._asked[-1].start()
        if verb == "terminate":
            self.retired.append(self.handles.pop(name))

    def do_asked(self) -> None:
        """Those calls are answered by now."""
        for thread in self._asked:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()

    def do_child(self, name: str) -> None:
        """Remember what it has started, to look for it at the end."""
        (pid,) = self._pids(name)
        self._children += eventually(lambda: _children_of(pid))

    # --- processes ---

    def do_kill(self, target: str) -> None:
        for pid in self._pids(target):
            os.kill(pid, signal.SIGKILL)
        if target == "master" or target.startswith("agent:"):
            self.field.daemon(target).wait()

    def do_stop(self, target: str) -> None:
        for pid in self._pids(target):
            os.kill(pid, signal.SIGSTOP)

    def do_cont(self, target: str) -> None:
        for pid in self._pids(target):
            os.kill(pid, signal.SIGCONT)

    def do_term(self, target: str) -> None:
        for pid in self._pids(target):
            os.kill(pid, signal.SIGTERM)
        if target == "master" or target.startswith("agent:"):
            self.field.daemon(target).wait()

    def do_start(self, target: str) -> None:
        self.field.daemon(target).start()

    def do_vanished(self, target: str) -> None:
        eventually(lambda: not self.field.pids_of(target))

    # --- the network ---

    def do_cut(self, host: str, direction: str) -> None:
        self.field.network.cut(host, direction)

    def do_unplug(self, host: str) -> None:
        self.field.network.unplug(host)

    def do_heal(self, host: str) -> None:
        self.field.network.heal(host)

    def do_proxy(self, host: str, *mode: str) -> None:
        self.field.proxies[host].set(" ".join(mode))

    def do_break(self, host: str, after: str = "0") -> None:
        """Break its connection after so many more bytes."""
        if int(after):
            self.field.proxies[host].cut(int(after))
        else:
            self.field.proxies[host].break_all()

    def do_halve(self, host: str) -> None:
        self.field.proxies[host].half_open()

    def do_lost(self, host: str) -> None:
        eventually(lambda: self._host_is(host, False))

    def do_back(self, host: str) -> None:
        eventually(lambda: self._host_is(host, True))

    def do_sleep(self, seconds: str) -> None:
        """Where a fault has to last, and nothing tells that it has."""
        time.sleep(float(seconds))

    # --- room and time ---

    def do_full(self, what: str, more: str = "0") -> None:
        """No room: processes:a, memory:a, files:TARGET, runtime:a or registry (disks)."""
        kind, _, host = what.partition(":")
        match kind:
            case "processes":
                self.field.limit_processes(host)
            case "memory":
                self.field.limit_memory(host, int(more))
            case "files":
                self.field.limit_files(host, int(more))
            case _:
                self.field.fill(what)

    def do_free(self, what: str) -> None:
        kind, _, host = what.partition(":")
        if kind in ("processes", "memory"):
            self.field.unlimit(host)
        elif kind == "files":
            self.field.unlimit_files(host)
        else:
            self.field.empty(what)

    def do_clock(self, target: str, offset_s: str) -> None:
        self.field.set_clock(target, int(offset_s))


def _children_of(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(word) for word in file.read().split()]
