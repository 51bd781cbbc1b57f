"""Health and metrics of a real host over HTTP."""

import json
import os
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from posthouse import BackgroundWorker, limits
from posthouse.config import load_agent
from posthouse.errors import ConfigError
from posthouse_agent.metrics import expose
from posthouse_agent.view import HostView, WardenView
from posthouse_agent.web import Server
from posthouse_testing.cluster import LocalCluster

HERE = Path(__file__).parent
Eventually = Callable[..., Any]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def port() -> int:
    return _free_port()


@pytest.fixture(scope="module")
def house(port: int) -> Iterator[LocalCluster]:
    env = {"POSTHOUSE_HOST_HTTP": f"127.0.0.1:{port}"}
    with LocalCluster(hosts=("a",), path=[HERE / "workers"], env=env) as cluster:
        yield cluster


def _get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def _readyz(port: int) -> tuple[int, str] | None:
    try:
        return _get(port, "/readyz")
    except urllib.error.URLError:
        return None  # the new agent does not listen yet


def _ready(port: int) -> bool:
    return (_readyz(port) or (0, ""))[0] == 200


def _samples(text: str) -> dict[tuple[str, ...], float]:
    found: dict[tuple[str, ...], float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, *(f"{k}={v}" for k, v in sorted(sample.labels.items())))
            assert key not in found
            found[key] = sample.value
    return found


def test_a_hosts_metrics_are_its_workers_processes(house: LocalCluster, port: int) -> None:
    with house.connect() as client:
        shared = [
            client.register(
                BackgroundWorker(
                    name="twin", unique=False, main="agent_jobs:steady", main_arg=f"{house.dir}/t"
                )
            )
            for _ in range(2)
        ]
        pids = [handle.wait_for_ready(timeout=20).pid for handle in shared]
        status, text = _get(port, "/metrics")
        assert status == 200
        found = _samples(text)
        twin = ("host=a", "worker=twin")
        assert found["posthouse_worker_processes", *twin] == 2
        assert found["posthouse_worker_threads", *twin] == 2
        processes = [psutil.Process(pid) for pid in pids]
        fds = sum(process.num_fds() for process in processes)
        assert found["posthouse_worker_open_fds", *twin] == fds
        resident = found["posthouse_worker_resident_memory_bytes", *twin]
        assert 0 < found["posthouse_worker_pss_bytes", *twin] < resident
        assert found["posthouse_worker_cpu_seconds_total", *twin] >= 0
        assert found["posthouse_host_memory_bytes",] == psutil.virtual_memory().total
        assert found["posthouse_host_cpus",] == psutil.cpu_count()
        assert found["posthouse_host_slots", "state=running"] == 2
        assert found["posthouse_link_up",] == 1
        assert found["posthouse_link_sessions_total",] >= 1
        assert found["posthouse_warden_up", "kind=fenced"] == 1
        assert found["posthouse_journal_bytes", "kind=fenced"] > 0
        assert found["posthouse_daemon_pss_bytes", "process=agent"] > 0
        assert found["posthouse_daemon_pss_bytes", "process=warden:fenced"] > 0
        for handle in shared:
            handle.terminate()
            handle.wait_until_unregistered(timeout=20)
        assert ("posthouse_worker_processes", *twin) not in _samples(_get(port, "/metrics")[1])


def test_names_of_workers_outlive_the_agent(
    house: LocalCluster, port: int, eventually: Eventually
) -> None:
    with house.connect() as client:
        spec = BackgroundWorker(name="kept", main="agent_jobs:steady", main_arg=f"{house.dir}/k")
        handle = client.register(spec)
        handle.wait_for_startup(timeout=20)
        house.agent("a").kill()
        house.start_host("a")
        eventually(lambda: _ready(port))
        found = _samples(_get(port, "/metrics")[1])
        assert found["posthouse_worker_processes", "host=a", "worker=kept"] == 1
        handle.terminate()
        handle.wait_until_unregistered(timeout=20)


def test_health_says_why_not(house: LocalCluster, port: int, eventually: Eventually) -> None:
    assert _get(port, "/livez") == (200, '{"live": true, "host": "a"}\n')
    ready = {"ready": True, "reasons": [], "host": "a", "workers": 0}
    eventually(lambda: json.loads(_get(port, "/readyz")[1]) == ready)
    house.master.kill()
    try:
        eventually(lambda: _get(port, "/readyz")[0] == 503)
        assert _get(port, "/livez")[0] == 200
        reasons = json.loads(_get(port, "/readyz")[1])["reasons"]
        assert any("no session with the master (ipc://" in reason for reason in reasons)
        assert _samples(_get(port, "/metrics")[1])["posthouse_link_up",] == 0
    finally:
        house.master.start()
        house.wait_for_hosts()
    eventually(lambda: _ready(port))


def test_a_host_without_its_warden_is_not_ready(
    house: LocalCluster, port: int, eventually: Eventually
) -> None:
    eventually(lambda: _ready(port))
    warden = house.warden_pid("a")
    os.kill(warden, signal.SIGSTOP)
    agent = house.agent("a")
    agent.kill()
    house.start_host("a")
    try:
        answer = eventually(lambda: _readyz(port))
        assert answer[0] == 503
        reasons = json.loads(answer[1])["reasons"]
        assert "there is no fenced warden (yet)" in reasons
    finally:
        os.kill(warden, signal.SIGCONT)
    eventually(lambda: _ready(port))


# --- the server by itself ---


VIEW = HostView(
    host="a", version="1", at_unix_s=0.0, session=False, told=False, lost="gone", sessions=0,
    granted_unix_s=None, slots=1, starting=0, unconfirmed=0, workers=(),
    wardens=(WardenView(kind="fenced", pid=0, complete=False),),
)  # fmt: skip


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Server, int]]:
    """A server whose loop does not answer, and that has no patience."""
    monkeypatch.setattr(limits, "host_web_s", 1.0)
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    server = Server(listening, "/nowhere")
    yield server, port
    server.close()


def test_a_loop_that_hangs_is_not_alive(served: tuple[Server, int]) -> None:
    _, port = served
    for path in ("/livez", "/metrics"):
        status, text = _get(port, path)
        assert status == 503
        assert json.loads(text)["reasons"] == ["the agent's loop does not answer"]


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"404"),
        (b"POST /livez HTTP/1.1\r\n\r\n", b"405"),
        (b"\x16\x03\x01\r\n\r\n", b"400"),
        (b"GET /livez\r\n\r\n", b"400"),
        (b"GET /livez HTTP/1.1\r\nX: ".ljust(limits.host_web_request_bytes_max, b"x"), b"400"),
    ],
)
def test_requests_that_are_not_served(
    served: tuple[Server, int], request_: bytes, status: bytes
) -> None:
    with socket.create_connection(("127.0.0.1", served[1]), timeout=20) as caller:
        caller.sendall(request_)
        assert caller.recv(64).startswith(b"HTTP/1.1 " + status)


def test_callers_that_say_nothing_are_let_go_and_bounded(served: tuple[Server, int]) -> None:
    callers = [
        socket.create_connection(("127.0.0.1", served[1]), timeout=20)
        for _ in range(2 * limits.host_web_connections_max)
    ]
    for caller in callers:
        with caller:
            assert caller.recv(1) == b""
    assert _get(served[1], "/livez")[0] == 503  # served again


def test_a_view_without_anything_is_said() -> None:
    body, kind = expose(VIEW, "/nowhere", "application/openmetrics-text")
    assert kind.startswith("application/openmetrics-text")
    assert b"posthouse_link_up 0.0" in body
    assert b"posthouse_journal_bytes" in body
    assert VIEW.not_ready == ["there is no fenced warden (yet)", "gone"]


def test_health_and_metrics_are_on_loopback_only() -> None:
    loaded = load_agent(environ={"POSTHOUSE_HOST_HTTP": "127.0.0.1:7461"}, flags={"host": "a"})
    assert loaded.settings.http == "127.0.0.1:7461"
    with pytest.raises(ConfigError, match="only loopback"):
        load_agent(environ={"POSTHOUSE_HOST_HTTP": "0.0.0.0:7461"}, flags={"host": "a"})
