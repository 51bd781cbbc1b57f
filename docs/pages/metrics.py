"""The tables of metrics.md, from what master and agent really expose.

Owns: a made-up cluster that has one of everything. Must not know: any metric. Invariant: every
family is told, with the labels that its samples have; a label without a note is an error.
"""

import os
from collections.abc import Iterator

from prometheus_client.parser import text_string_to_metric_families as families

from pages.notes import Notes, Tables, table
from posthouse.messages import Running
from posthouse_agent import metrics as agent
from posthouse_agent import procfs
from posthouse_agent.view import HostView, WardenView
from posthouse_master.web import metrics as master
from posthouse_master.web.meter import Meter
from posthouse_master.web.picture import HostPoint, Picture, WorkerPoint

__all__ = ["TABLES"]

TEXT = "text/plain"


def master_text() -> str:
    worker = WorkerPoint("w", "a", up=1, starts=2, started_unix_s=1.0, restart_delay_s=1.0)
    picture = Picture(
        at_unix_s=1.0, epoch=1, version="0", phase="running", phase_detail="", reports=(),
        slots={"started": 1}, workers=(worker,), unlisted=0, hosts=(HostPoint("a", True, 1.0),),
        exits={"signal": 1}, sessions={"agent": 1}, resumes=0, events=1, not_ready=(),
    )  # fmt: skip
    meter = Meter()
    meter.frame("in", b"\x96\x01")
    return master.expose(picture, meter, TEXT)[0].decode()


def agent_text() -> str:
    me = procfs.read(os.getpid())
    assert me is not None
    running = Running(
        registry="0" * 32, slot=0, generation=1, incarnation=1, token=1, revision=1,
        pid=me.pid, pid_start=me.start, started_unix_s=1.0,
    )  # fmt: skip
    view = HostView(
        host="a", version="0", at_unix_s=1.0, session=True, told=True, lost="", sessions=1,
        granted_unix_s=1.0, slots=1, starting=0, unconfirmed=0, workers=(("w", running),),
        wardens=(WardenView(kind="fenced", pid=os.getpid(), complete=True),),
    )  # fmt: skip
    return agent.expose(view, "/nonexistent", TEXT)[0].decode()


def rows(text: str) -> Iterator[tuple[str, str, tuple[str, ...], str]]:
    """Name as it is scraped, type, labels, meaning."""
    for family in families(text):
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = {label: None for sample in family.samples for label in sample.labels}
        yield (
            name,
            family.type,
            tuple(label for label in labels if label != "le"),
            family.documentation,
        )


def metrics(text: str) -> str:
    told = [
        (f"`{name}`", kind, ", ".join(f"`{label}`" for label in labels), meaning)
        for name, kind, labels, meaning in rows(text)
    ]
    return table(("metric", "type", "labels", ""), told)


def labels(notes: Notes) -> str:
    used = sorted({label for text in (master_text(), agent_text()) for row in rows(text)
                   for label in row[2]})  # fmt: skip
    return table(("label", ""), [(f"`{label}`", notes.of("labels", label)) for label in used])


TABLES: Tables = {
    "metrics_master": lambda _: metrics(master_text()),
    "metrics_agent": lambda _: metrics(agent_text()),
    "metrics_labels": labels,
}
