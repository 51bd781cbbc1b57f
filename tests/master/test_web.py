"""Health and metrics of a real master over HTTP."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from posthouse.config import load_master
from posthouse.errors import ConfigError


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _master(port: int) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="ph", dir="/tmp") as folder:
        code = (
            "import sys; from posthouse_master.daemon import run; "
            "from posthouse.settings import MasterSettings as M; d, port = sys.argv[1:]; "
            "sys.exit(run(M(state_dir=d + '/s', listen_agents='ipc://' + d + '/a', "
            "listen_clients='ipc://' + d + '/c', http='127.0.0.1:' + port, log_format='json')))"
        )
        Path(folder).chmod(0o700)
        process = subprocess.Popen(
            [sys.executable, "-c", code, folder, str(port)],
            stderr=subprocess.PIPE,
            env=dict(os.environ),
        )
        assert process.stderr is not None
        try:
            said = [line := process.stderr.readline()]
            while line and b"master.ready" not in line:
                said.append(line := process.stderr.readline())
            assert line, said
            yield folder
        finally:
            process.terminate()
            process.communicate(timeout=20)
        assert process.returncode == 0


def _get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_health_and_metrics_of_a_running_master() -> None:
    from posthouse import BackgroundWorker, connect

    port = _port()
    with _master(port) as folder:
        assert _get(port, "/livez") == (200, '{"live": true, "epoch": 1}\n')
        assert json.loads(_get(port, "/readyz")[1]) == {
            "ready": True,
            "reasons": [],
            "phase": "running",
            "phase_detail": "",
            "reports": [],
        }
        with connect(f"ipc://{folder}/c", timeout=20) as cluster:
            for index in range(3):
                cluster.register(BackgroundWorker(name=f"w{index}", main="m:f", labels=("none",)))
            twins = [
                cluster.register(
                    BackgroundWorker(name="twin", main="m:f", labels=("none",), unique=False)
                )
                for _ in range(2)
            ]
            status, text = _get(port, "/metrics")
            assert status == 200
            found = {
                (sample.name, tuple(sorted(sample.labels.items()))): sample.value
                for family in text_string_to_metric_families(text)
                for sample in family.samples
            }
            assert found["posthouse_slots", (("state", "not_yet_started"),)] == 5
            assert found["posthouse_worker_up", (("host", ""), ("worker", "twin"))] == 0
            assert found["posthouse_sessions", (("role", "client"),)] == 1
            assert found["posthouse_epoch", ()] == 1
            registers = (("direction", "in"), ("type", "Register"))
            assert found["posthouse_link_frames_total", registers] == 5
            assert found["posthouse_store_commit_seconds_count", ()] >= 5
            assert found["posthouse_events_total", ()] == 5
            assert _get(port, "/nothing")[0] == 404
            assert len({twin.id for twin in twins}) == 2


def test_a_port_that_is_taken_is_refused_with_its_name() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        from posthouse.loopback import bind

        with pytest.raises(ConfigError, match=f"http is '{address}'"):
            bind(address)


@pytest.mark.parametrize("address", ["0.0.0.0:80", "10.0.0.1:80", "127.0.0.1", "127.0.0.1:99999"])
def test_only_loopback_is_served(address: str, tmp_path: Path) -> None:
    file = tmp_path / "master.toml"
    file.write_text(f'http = "{address}"\n')
    with pytest.raises(ConfigError, match=r"master.toml:1: http is .*loopback"):
        load_master(file)


def test_a_picture_is_painted_in_slices() -> None:
    """100,000 registrations must not hold the loop up: SLICE of them at a time."""
    from posthouse.ids import Instant
    from posthouse_master.core import MasterCore, MasterPolicy
    from posthouse_master.registry import Registration
    from posthouse_master.store.memory import MemoryDisk, MemoryStore
    from posthouse_master.web.picture import SLICE, paint

    store = MemoryStore(MemoryDisk("0" * 32))
    store.begin_term()
    now = Instant(1.0, 1.0)
    core = MasterCore(store.load(), MasterPolicy(), bytes, now)
    from posthouse.spec import BackgroundWorker

    for index in range(SLICE * 2 + 1):
        slot, generation = core.registry.take_slot()
        spec = BackgroundWorker(name=f"w{index}", main="m:f")
        registration = Registration(
            slot=slot, generation=generation, revision=1, name=spec.name,
            packed=str(index).encode(), pinned="", registered_unix_s=0.0,
        )  # fmt: skip
        core.registry.add(registration, spec)
    steps = list(paint(core, now, "v"))
    assert steps[:-1] == [None, None]
    assert steps[-1] is not None
    assert steps[-1].slots["not_yet_started"] == len(steps[-1].workers) == SLICE * 2 + 1


def test_metrics_are_bounded_and_say_what_they_leave_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """100,000 names would be a page of 30 MB that takes the loop's interpreter for seconds."""
    from posthouse import limits
    from posthouse.ids import Instant
    from posthouse.spec import BackgroundWorker
    from posthouse_master.core import MasterCore, MasterPolicy
    from posthouse_master.registry import Registration
    from posthouse_master.store.memory import MemoryDisk, MemoryStore
    from posthouse_master.web.meter import Meter
    from posthouse_master.web.metrics import expose
    from posthouse_master.web.picture import paint

    monkeypatch.setattr(limits, "metrics_workers_max", 3)
    store = MemoryStore(MemoryDisk("0" * 32))
    store.begin_term()
    now = Instant(1.0, 1.0)
    core = MasterCore(store.load(), MasterPolicy(), bytes, now)
    for name in ("w0", "w1", "w2", "w3", "w4", "w1"):
        slot, generation = core.registry.take_slot()
        spec = BackgroundWorker(name=name, main="m:f", unique=False)
        registration = Registration(
            slot=slot, generation=generation, revision=1, name=name,
            packed=str(slot).encode(), pinned="", registered_unix_s=0.0,
        )  # fmt: skip
        core.registry.add(registration, spec)
    *_, picture = paint(core, now, "v")
    assert picture is not None
    body, _ = expose(picture, Meter(), "")
    samples = [
        sample
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    ]
    named = [s.labels["worker"] for s in samples if s.name == "posthouse_worker_starts_total"]
    assert named == ["w0", "w1", "w2"]
    assert [s.value for s in samples if s.name == "posthouse_workers_unlisted"] == [2]
    waiting = {"state": "not_yet_started"}
    assert [s.value for s in samples if s.labels == waiting] == [6]


def test_a_cluster_that_shuts_down_is_not_ready_and_says_why() -> None:
    from posthouse.ids import Instant
    from posthouse.states import Phase
    from posthouse_master.core import MasterCore, MasterPolicy
    from posthouse_master.store.memory import MemoryDisk, MemoryStore
    from posthouse_master.web.picture import paint

    store = MemoryStore(MemoryDisk("0" * 32))
    store.begin_term()
    now = Instant(1.0, 1.0)
    core = MasterCore(store.load(), MasterPolicy(), bytes, now)
    (before,) = paint(core, now, "v")
    core.starter.phase = Phase.STOPPING
    (after,) = paint(core, now, "v")
    assert before is not None
    assert after is not None
    assert before.not_ready == ()
    assert after.not_ready == ("the cluster is shutting down",)
