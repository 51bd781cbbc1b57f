"""A picture and the shell's counts in Prometheus' words.

Owns: metric names, their help and labels; docs name the same. Must not know: HTTP, the core.
Invariant: base units, a fixed set of labels, and no label that grows without end (no pid).
"""

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from posthouse_master.web.meter import BOUNDS_S, Durations, Meter
from posthouse_master.web.picture import Picture

__all__ = ["expose"]


def expose(picture: Picture, meter: Meter, accept: str) -> tuple[bytes, str]:
    """The body of /metrics and its content type, in the format that the reader accepts."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Once(picture, meter))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


class _Once(Collector):
    def __init__(self, picture: Picture, meter: Meter) -> None:
        self._picture = picture
        self._meter = meter

    def collect(self) -> Iterator[Metric]:
        yield from _cluster(self._picture)
        yield from _workers(self._picture)
        yield from _process(self._meter)


Rows = Iterable[tuple[tuple[str, ...], float]]


def _gauge(name: str, text: str, labels: tuple[str, ...], rows: Rows) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"posthouse_{name}", text, labels=labels)
    for values, value in rows:
        family.add_metric(values, value)
    return family


def _counter(name: str, text: str, labels: tuple[str, ...], rows: Rows) -> CounterMetricFamily:
    family = CounterMetricFamily(f"posthouse_{name}", text, labels=labels)
    for values, value in rows:
        family.add_metric(values, value)
    return family


def _histogram(name: str, text: str, durations: Durations) -> HistogramMetricFamily:
    buckets: list[tuple[str, float]] = []
    total = 0
    counts = list(durations.counts)
    for bound, count in zip((*map(str, BOUNDS_S), "+Inf"), counts, strict=True):
        total += count
        buckets.append((bound, total))
    family = HistogramMetricFamily(f"posthouse_{name}", text)
    family.add_metric([], buckets, durations.sum_s)
    return family


def _cluster(picture: Picture) -> Iterator[Metric]:
    yield _gauge("build_info", "The master's version.", ("version",), [((picture.version,), 1.0)])
    yield _gauge("epoch", "The master's term.", (), [((), picture.epoch)])
    yield _gauge(
        "slots", "Slots of max_worker_processes by the state of what is in them.", ("state",),
        [((state,), count) for state, count in picture.slots.items()],
    )  # fmt: skip
    yield _gauge(
        "agent_up", "1 if the host's agent is heard.", ("host",),
        [((host.name,), float(host.up)) for host in picture.hosts],
    )  # fmt: skip
    yield _gauge(
        "agent_last_heartbeat_timestamp_seconds", "When the host's agent was heard last.",
        ("host",), [((h.name,), h.heard_unix_s) for h in picture.hosts if h.heard_unix_s],
    )  # fmt: skip
    yield _gauge(
        "sessions", "Open sessions.", ("role",),
        [((role,), count) for role, count in picture.sessions.items()],
    )  # fmt: skip
    yield _counter(
        "link_resumes", "Sessions of agents that followed an earlier one.", (),
        [((), picture.resumes)],
    )  # fmt: skip
    yield _counter("events", "Rows written to the event log.", (), [((), picture.events)])


def _workers(picture: Picture) -> Iterator[Metric]:
    labels = ("worker", "host")
    points = [((point.name, point.host), point) for point in picture.workers]
    yield _gauge(
        "worker_up", "Processes that run.", labels, [(at, point.up) for at, point in points]
    )
    yield _counter(
        "worker_starts", "Starts of the live registrations.", labels,
        [(at, point.starts) for at, point in points],
    )  # fmt: skip
    yield _gauge(
        "worker_start_time_seconds", "When the process was started.", labels,
        [(at, point.started_unix_s) for at, point in points if point.up],
    )  # fmt: skip
    yield _gauge(
        "worker_restart_delay_seconds", "The delay that a stopped worker waits.", labels,
        [(at, point.restart_delay_s) for at, point in points if point.restart_delay_s],
    )  # fmt: skip
    yield _gauge(
        "workers_unlisted", "Live registrations whose names are too many for series of their own.",
        (), [((), picture.unlisted)],
    )  # fmt: skip
    yield _counter(
        "worker_exits", "Ends of incarnations since this master began.", ("reason",),
        [((reason,), count) for reason, count in picture.exits.items()],
    )  # fmt: skip


def _process(meter: Meter) -> Iterator[Metric]:
    frames = sorted(meter.frames.copy().items())
    yield _counter(
        "link_frames", "Frames received and sent.", ("direction", "type"),
        [(at, count) for at, count in frames],
    )  # fmt: skip
    yield _histogram("store_commit_seconds", "Transactions of the registry.", meter.commits)
    yield _histogram(
        "notify_latency_seconds",
        "From the input that changed something to the event on the wire.",
        meter.notifications,
    )
