"""A host's view and what its processes use, in Prometheus' words.

Owns: metric names, their help and labels. Must not know: HTTP, the core.
Invariant: base units, a fixed set of labels, none that grows without end (no pid), and no series
twice: workers of one name are added up.
"""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from posthouse import limits
from posthouse.records import WorkerUse
from posthouse_agent import usage
from posthouse_agent.effects import MeasureUse
from posthouse_agent.view import HostView

__all__ = ["expose"]

Rows = Iterable[tuple[tuple[str, ...], float]]


def expose(view: HostView, runtime_dir: str, accept: str) -> tuple[bytes, str]:
    """The body of /metrics and its content type, in the format that the reader accepts. Looks at
    /proc: not for a thread that has something else to do."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Once(view, runtime_dir))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


class _Once(Collector):
    def __init__(self, view: HostView, runtime_dir: str) -> None:
        self._view = view
        self._runtime_dir = runtime_dir

    def collect(self) -> Iterator[Metric]:
        view = self._view
        measured = usage.measure(MeasureUse(0, tuple(w for _, w in view.workers), more=False))
        host = measured.host
        yield _gauge("build_info", "The agent's version.", [((view.version,), 1.0)], ("version",))
        yield _gauge("host_cpus", "Processors.", [((), host.cpus)])
        yield _counter("host_cpu_busy_seconds", "Processor time spent.", [((), host.busy_s)])
        yield _gauge("host_load1", "Runnable processes, mean of a minute.", [((), host.load)])
        yield _gauge("host_memory_bytes", "Memory.", [((), host.memory_bytes)])
        yield _gauge(
            "host_memory_available_bytes",
            "Memory that can be had without swapping.",
            [((), host.available_bytes)],
        )
        yield from _link(view)
        yield from _wardens(view, self._runtime_dir)
        yield from _workers(view, measured.workers)


def _gauge(name: str, text: str, rows: Rows, labels: tuple[str, ...] = ()) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"posthouse_{name}", text, labels=labels)
    for values, value in rows:
        family.add_metric(values, value)
    return family


def _counter(name: str, text: str, rows: Rows, labels: tuple[str, ...] = ()) -> CounterMetricFamily:
    family = CounterMetricFamily(f"posthouse_{name}", text, labels=labels)
    for values, value in rows:
        family.add_metric(values, value)
    return family


def _link(view: HostView) -> Iterator[Metric]:
    yield _gauge("link_up", "1 if there is a session with the master.", [((), float(view.session))])
    yield _counter("link_sessions", "Sessions of this agent process.", [((), view.sessions)])
    if view.granted_unix_s is not None:
        yield _gauge(
            "link_last_grant_timestamp_seconds",
            "When the renewal was asked for that the master granted last.",
            [((), view.granted_unix_s)],
        )


def _wardens(view: HostView, runtime_dir: str) -> Iterator[Metric]:
    ready = [((w.kind,), float(bool(w.pid) and w.complete)) for w in view.wardens]
    yield _gauge("warden_up", "1 if this warden has told all it runs.", ready, ("kind",))
    sizes = [((w.kind,), _size(f"{runtime_dir}/{w.kind}/journal")) for w in view.wardens]
    yield _gauge("journal_bytes", "A warden's journal on disk.", sizes, ("kind",))
    yield _gauge(
        "unconfirmed_exits", "Ends that the master does not have yet.", [((), view.unconfirmed)]
    )
    used: list[tuple[tuple[str, ...], float]] = []
    shares: list[tuple[tuple[str, ...], float]] = []
    for process, pid in [("agent", os.getpid()), *((w.kind, w.pid) for w in view.wardens if w.pid)]:
        try:
            times = psutil.Process(pid).cpu_times()
        except psutil.Error:
            continue
        label = process if process == "agent" else f"warden:{process}"
        used.append(((label,), times.user + times.system))
        if (pss := usage.pss_bytes(pid)) is not None:
            shares.append(((label,), pss))
    labels = ("process",)
    yield _counter("daemon_cpu_seconds", "Processor time of agent and wardens.", used, labels)
    yield _gauge("daemon_pss_bytes", "Their share of memory.", shares, labels)


@dataclass(slots=True)
class _Sums:
    running: int = 0
    cpu_s: float = 0.0
    rss: int = 0
    pss: int | None = None
    descriptors: int | None = None
    threads: int = 0

    def add(self, use: WorkerUse) -> None:
        self.running += 1
        self.cpu_s += use.cpu_s
        self.rss += use.rss_bytes
        self.threads += use.threads
        if use.pss_bytes is not None:
            self.pss = (self.pss or 0) + use.pss_bytes
        if use.descriptors is not None:
            self.descriptors = (self.descriptors or 0) + use.descriptors


def _workers(view: HostView, uses: Iterable[WorkerUse]) -> Iterator[Metric]:
    names = {worker.token: name for name, worker in view.workers}
    sums: dict[tuple[str, str], _Sums] = defaultdict(_Sums)
    unlisted = 0
    for use in uses:
        at = (names[use.token], view.host)
        if at not in sums and len(sums) >= limits.metrics_workers_max:
            unlisted += 1
        else:
            sums[at].add(use)
    free = max(0, view.slots - len(view.workers) - view.starting)
    states = {"running": len(view.workers), "starting": view.starting, "free": free}
    slots = [((state,), float(count)) for state, count in states.items()]
    yield _gauge("host_slots", "max_worker_processes of this host.", slots, ("state",))
    labels = ("worker", "host")
    rows = [(at, one) for at, one in sorted(sums.items())]
    yield _gauge(
        "worker_processes", "Processes that run.", [(at, s.running) for at, s in rows], labels
    )
    yield _counter(
        "worker_cpu_seconds", "Processor time.", [(at, s.cpu_s) for at, s in rows], labels
    )
    yield _gauge(
        "worker_resident_memory_bytes",
        "Resident memory, what is shared included.",
        [(at, s.rss) for at, s in rows],
        labels,
    )
    yield _gauge(
        "worker_pss_bytes",
        "Share of memory: what workers have in common is divided among them.",
        [(at, s.pss) for at, s in rows if s.pss is not None],
        labels,
    )
    yield _gauge(
        "worker_open_fds",
        "Open descriptors.",
        [(at, s.descriptors) for at, s in rows if s.descriptors is not None],
        labels,
    )
    yield _gauge("worker_threads", "Threads.", [(at, s.threads) for at, s in rows], labels)
    yield _gauge(
        "host_workers_unlisted",
        "Workers whose names are too many for series of their own.",
        [((), unlisted)],
    )


def _size(path: str) -> float:
    try:
        return float(Path(path).stat().st_size)
    except OSError:
        return 0.0
