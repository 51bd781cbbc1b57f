"""An agent and a client written from docs/reference/protocol.md alone, against a real master.

Nothing of posthouse is imported here: pyzmq, msgpack and the standard library, as a program in
another language would have them. If this file has to learn something that the page does not say,
the page is wrong.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq
from zmq.utils import z85

HELLO, WELCOME, REFUSED, RENEW, GRANT, ACK, UNSUPPORTED, GOODBYE = range(1, 9)
INVENTORY, STARTED, START_FAILED, READY, EXITED, STOP_DONE, LOG_CHUNK = range(10, 17)
START, STOP, SIGNAL, SET_LATCH, READ_LOG = range(20, 25)
REGISTER, TERMINATE, SIGNAL_WORKER, LATCH_WORKER, SHUTDOWN = range(30, 35)
GET_STATUS, LIST_WORKERS, LIST_HOSTS, EXPLAIN, READ_OUTPUT = range(40, 45)
SUBSCRIBE, CREDIT, UNSUBSCRIBE = range(45, 48)
HOLD, RELEASE, RESTART = range(35, 38)
APPLY, REGISTER_GROUP, GET_STACKS = 50, 51, 54
REGISTERED, DONE, STATUS_REPLY, WORKERS_PAGE, HOSTS_PAGE, EXPLAINED = range(60, 66)
OUTPUT, SUBSCRIBED, FAILED, EVENTS, CURSOR_TOO_OLD = range(66, 71)
UNSEQUENCED = {HELLO, WELCOME, REFUSED, RENEW, GRANT, ACK, UNSUPPORTED}
NOBODY = bytes(16)
DEADLINE_S = 30.0


class Stranger:
    """One peer and its present session."""

    def __init__(
        self, context: Any, endpoint: str, role: str, keys: Any = None, **hello: Any
    ) -> None:
        self.context = context
        self.endpoint = endpoint
        self.hello = {"role": role, **hello}
        self.keys = keys
        self.socket: Any = None
        self.granted: list[int] = []
        self.renewing = True

    # --- sockets and frames ---

    def connect(self) -> None:
        self.close()
        self.socket = self.context.socket(zmq.DEALER)
        for option, value in (
            (zmq.LINGER, 0), (zmq.IMMEDIATE, 1), (zmq.HEARTBEAT_IVL, 2000),
            (zmq.HEARTBEAT_TIMEOUT, 6000), (zmq.HEARTBEAT_TTL, 6000), (zmq.MAXMSGSIZE, 262144),
        ):  # fmt: skip
            self.socket.setsockopt(option, value)
        if self.keys is not None:
            public, secret, server = self.keys
            self.socket.curve_publickey, self.socket.curve_secretkey = public, secret
            self.socket.curve_serverkey = server
        self.socket.connect(self.endpoint)

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close(0)
            self.socket = None

    def raw(self, kind: int, sequence: int, acknowledged: int, body: dict[str, Any]) -> None:
        frame = [kind, self.session, self.epoch, sequence, acknowledged, body]
        if kind in (RENEW, ACK) and not self.socket.poll(0, zmq.POLLOUT):
            return  # the master has gone; these may be lost
        assert self.socket.poll(int(DEADLINE_S * 1000), zmq.POLLOUT), "no connection"
        self.socket.send(msgpack.packb(frame))

    # --- the session ---

    def open(self) -> dict[str, Any]:
        """HELLO until WELCOME."""
        end = time.monotonic() + DEADLINE_S
        while True:
            answer = self.greet()
            if answer[0] == WELCOME:
                break
            assert time.monotonic() < end, answer
            time.sleep(max(0.05, answer[1].get("retry_after_s", 0.0)))
        body = answer[1]
        assert body["protocol"] == 0
        self.session, self.epoch = body["session"], body["epoch"]
        self.sent = self.received = self.told = 0
        self.kept: deque[tuple[int, int, dict[str, Any]]] = deque()
        self.inbox: deque[tuple[int, dict[str, Any]]] = deque()
        self.renewed_s = 0.0
        self.over: dict[str, Any] | None = None
        self.turn(0)
        return body

    def greet(self) -> tuple[int, dict[str, Any]]:
        self.connect()
        self.session, self.epoch = NOBODY, 0
        nonce = os.urandom(16)
        self.raw(HELLO, 0, 0, {"nonce": nonce, **self.hello})
        while self.socket.poll(int(DEADLINE_S * 1000)):
            kind, _session, _epoch, sequence, _ack, body = msgpack.unpackb(self.socket.recv())
            if kind in (WELCOME, REFUSED) and body.get("nonce", b"") in (nonce, b""):
                assert sequence == 0
                return kind, body
        pytest.fail("no answer to HELLO")

    def send(self, kind: int, **body: Any) -> None:
        assert kind not in UNSEQUENCED
        self.sent += 1
        self.kept.append((self.sent, kind, body))
        self.told = self.received
        self.raw(kind, self.sent, self.received, body)

    def turn(self, wait_ms: int = 20) -> None:
        """Renew, receive what there is, acknowledge it."""
        if self.renewing and time.monotonic() - self.renewed_s > 0.5:
            self.renewed_s = time.monotonic()
            stamp = int(time.clock_gettime(time.CLOCK_BOOTTIME) * 1e6)
            self.raw(RENEW, 0, 0, {"stamp": stamp})
        while self.socket.poll(wait_ms):
            wait_ms = 0
            self.take(msgpack.unpackb(self.socket.recv()))
        if self.told < self.received and self.over is None:
            self.told = self.received
            self.raw(ACK, 0, self.received, {})

    def take(self, frame: list[Any]) -> None:
        kind, session, epoch, sequence, acknowledged, body = frame
        if (session, epoch) != (self.session, self.epoch):
            return
        while self.kept and self.kept[0][0] <= acknowledged:
            self.kept.popleft()
        if kind == GRANT:
            self.granted.append(body["stamp"])
        elif kind == REFUSED:
            self.over = body
        elif kind == UNSUPPORTED:
            self.inbox.append((kind, body))
        elif sequence == self.received + 1:
            self.received = sequence
            self.inbox.append((kind, body))

    def wait(self, look: Callable[[], Any]) -> Any:
        end = time.monotonic() + DEADLINE_S
        while not (found := look()):
            assert time.monotonic() < end, f"nothing after {DEADLINE_S} s; {self.over}"
            self.turn()
        return found

    def next(self, *kinds: int) -> dict[str, Any]:
        """The next sequenced message, which is of one of these kinds."""
        self.wait(lambda: self.inbox)
        kind, body = self.inbox.popleft()
        assert kind in kinds, (kind, body)
        return {"kind": kind, **body} if len(kinds) > 1 else body

    def ask(self, kind: int, answer: int, request: bytes = b"", **body: Any) -> dict[str, Any]:
        request = request or os.urandom(16)
        self.send(kind, request=request, **body)
        found = self.next(answer)
        assert found["request"] == request
        return found

    def settled(self) -> None:
        """Everything that was sent is acknowledged: by a master, that is, durable."""
        self.wait(lambda: not self.kept)


class Agent(Stranger):
    """A host without processes: it only says that it has some."""

    def __init__(self, context: Any, endpoint: str, host: str, keys: Any = None) -> None:
        self.running: dict[int, dict[str, Any]] = {}
        self.exits: dict[int, dict[str, Any]] = {}
        self.pid = 1000
        super().__init__(
            context, endpoint, "agent", keys, host=host, machine_id="m", boot_id="boot-1",
            agent_instance=os.urandom(16).hex(),
            wardens=[{"kind": "fenced", "instance": os.urandom(16).hex()}],
            runtimes=["default"], modules=["*"], slots=10, fences=["process"],
        )  # fmt: skip

    def join(self) -> dict[str, Any]:
        welcome = self.open()
        listed = list(self.running.values())
        self.send(INVENTORY, page=0, last=False, running=listed)
        exits = list(self.exits.values())
        seen = max([*self.running, *self.exits], default=0)
        self.send(INVENTORY, page=1, last=True, exits=exits, highest_token=seen)
        self.settled()
        self.exits.clear()
        return welcome

    def start(self) -> dict[str, Any]:
        """Obey the next START."""
        order = self.next(START)
        self.pid += 1
        names = ("registry", "slot", "generation", "incarnation", "token", "revision")
        worker = {name: order[name] for name in names}
        worker |= {"pid": self.pid, "pid_start": 1, "started_unix_s": time.time()}
        self.running[order["token"]] = worker
        self.send(STARTED, worker=worker)
        return order

    def exit(self, token: int, told: bool = True, **facts: Any) -> None:
        worker = self.running.pop(token)
        names = ("registry", "slot", "generation", "incarnation", "token")
        stop = facts.pop("stop", None)
        self.exits[token] = {name: worker[name] for name in names} | {"facts": facts}
        if stop is not None:
            self.exits[token]["stop"] = stop
        if told:
            self.send(EXITED, worker=self.exits[token])
            self.settled()
            del self.exits[token]


class Master:
    """A real one, in a process of its own."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.log = folder / "master.log"
        self.settings = {
            "state_dir": str(folder / "state"),
            "listen_agents": f"ipc://{folder}/agents.sock",
            "listen_clients": f"ipc://{folder}/clients.sock",
            "log_format": "json",
            **settings,
        }
        (folder / "state").mkdir(mode=0o700, exist_ok=True)
        self.process: subprocess.Popen[bytes] | None = None
        self.ready: dict[str, Any] = {}

    def start(self) -> dict[str, Any]:
        code = (
            "import sys, json; from posthouse.settings import MasterSettings;"
            "from posthouse_master.daemon import run;"
            "sys.exit(run(MasterSettings(**json.loads(sys.argv[1]))))"
        )
        begun = len(self.log.read_text()) if self.log.exists() else 0
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code, json.dumps(self.settings)], stderr=log
            )
        end = time.monotonic() + DEADLINE_S
        while True:
            for line in self.log.read_text()[begun:].splitlines(keepends=True):
                if '"master.ready"' in line and line.endswith("\n"):
                    self.ready = json.loads(line)
                    return self.ready
            assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()
            time.sleep(0.02)

    def end(self, number: int = signal.SIGKILL) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(DEADLINE_S)


@pytest.fixture
def context() -> Iterator[Any]:
    made: Any = zmq.Context()
    yield made
    made.term()


@pytest.fixture(scope="module")
def house() -> Iterator[Callable[..., Master]]:
    """Starts masters, each in a folder of its own."""
    made: list[Master] = []

    def start(**settings: Any) -> Master:
        made.append(Master(Path(tempfile.mkdtemp(prefix="ph", dir="/tmp")), **settings))
        made[-1].start()
        return made[-1]

    yield start
    for master in made:
        master.end()
        shutil.rmtree(master.folder)


@pytest.fixture(scope="module")
def shared(house: Callable[..., Master]) -> Master:
    """One for all tests that leave it alive; each has its own host and worker."""
    return house()


@pytest.fixture
def own(house: Callable[..., Master]) -> Master:
    """One that may be killed."""
    return house()


@pytest.fixture
def host() -> str:
    return f"h{os.urandom(4).hex()}"


@pytest.fixture
def spec(host: str) -> dict[str, Any]:
    return {"name": f"w-{host}", "main": "acme.work:main", "restart_time": 0.0, "host": host}


@pytest.fixture
def master(request: pytest.FixtureRequest) -> Master:
    """The test's own one if it asks for it."""
    found: Master = request.getfixturevalue("own" if "own" in request.fixturenames else "shared")
    return found


@pytest.fixture
def peers(context: Any, master: Master) -> Iterator[Callable[..., Any]]:
    """Makes peers and closes them; shows what the master said where the test fails."""
    begun = len(master.log.read_text())
    made: list[Stranger] = []

    def make(cls: type[Stranger], *given: Any, **more: Any) -> Stranger:
        made.append(cls(context, *given, **more))
        return made[-1]

    yield make
    for one in made:
        one.close()
    print(master.log.read_text()[begun:])


@pytest.fixture
def client(peers: Callable[..., Any], master: Master) -> Stranger:
    made: Stranger = peers(Stranger, master.settings["listen_clients"], "client")
    return made


@pytest.fixture
def agent(peers: Callable[..., Any], master: Master, host: str) -> Agent:
    made: Agent = peers(Agent, master.settings["listen_agents"], host)
    return made


def rows(client: Stranger, subscription: int, *kinds: str) -> list[dict[str, Any]]:
    """The next rows of a subscription, which are of these kinds."""
    found: list[dict[str, Any]] = []
    while len(found) < len(kinds):
        events = client.next(EVENTS)
        assert events["subscription"] == subscription
        found += events["events"]  # none in the first page of one who has seen all
        assert not found or events["sequence"] >= found[-1]["sequence"]
    assert [row["kind"] for row in found] == list(kinds)
    places = [row["sequence"] for row in found]
    assert places == sorted(set(places))
    return found


def listed(client: Stranger, **more: Any) -> list[str]:
    workers = client.ask(LIST_WORKERS, WORKERS_PAGE, **more)["workers"]
    return [worker["spec"]["name"] for worker in workers]


def test_a_life(client: Stranger, agent: Agent, spec: dict[str, Any]) -> None:
    welcome = client.open()
    assert (welcome["principal"], welcome["timeline"]) == ("client:local", 1)
    assert client.ask(REGISTER, FAILED, spec=spec)["code"] == "unknown_host"

    assert agent.join()["principal"] == f"agent:{spec['host']}"
    hosts = {host["name"]: host for host in client.ask(LIST_HOSTS, HOSTS_PAGE)["hosts"]}
    assert hosts[spec["host"]]["reachable"] is True
    assert hosts[spec["host"]]["slots"] == 10

    registered = client.ask(REGISTER, REGISTERED, spec=spec)
    handle = registered["handle"]
    ref = f"{handle['registry']}:{handle['slot']}.{handle['generation']}"
    order = agent.start()
    assert (order["spec"], order["incarnation"]) == (spec, 1)

    place = {"timeline": registered["timeline"], "sequence": registered["sequence"] - 1}
    subscribed = client.ask(SUBSCRIBE, SUBSCRIBED, subscription=9, ref=ref, credit=64, **place)
    assert subscribed["sequence"] == place["sequence"]
    first, starting, started = rows(client, 9, "registered", "starting", "started")
    assert first["sequence"] == registered["sequence"]
    assert (starting["token"], started["pid"]) == (order["token"], agent.pid)

    status = client.ask(GET_STATUS, STATUS_REPLY, ref=spec["name"])["status"]
    assert (status["state"], status["host"], status["pid"]) == ("started", spec["host"], agent.pid)

    # kill -9: told with its cause, and started again under a higher token.
    agent.exit(order["token"], cause="signaled", signal=9, pid=agent.pid)
    again = agent.start()
    assert again["token"] > order["token"]
    assert again["incarnation"] == 2
    exited, *_ = rows(client, 9, "exited", "starting", "started")
    assert (exited["exit"]["signal"], exited["restart_in_s"]) == (9, 0.0)

    agent.send(READY, **{n: again[n] for n in ("slot", "generation", "incarnation", "token")})
    rows(client, 9, "ready")

    assert "changed" not in client.ask(TERMINATE, DONE, ref=ref)  # its default: true
    stop = agent.next(STOP)
    assert (stop["token"], stop["reason"], stop["signal"], stop["grace_s"]) == (
        again["token"], "terminate", 15, 5.0,
    )  # fmt: skip
    agent.exit(again["token"], cause="exited", code=0, stop="terminate")
    *_, last = rows(client, 9, "stop_requested", "exited", "unregistered")
    assert last["final"] is True
    status = client.ask(GET_STATUS, STATUS_REPLY, ref=ref)["status"]
    assert (status["state"], status["final"]) == ("stopped", True)
    assert spec["name"] not in listed(client)
    assert spec["name"] in listed(client, retired=True)


def test_a_master_that_is_killed(
    client: Stranger, agent: Agent, own: Master, spec: dict[str, Any]
) -> None:
    client.open()
    agent.join()
    registered = client.ask(REGISTER, REGISTERED, spec=spec)
    token = agent.start()["token"]
    client.ask(SUBSCRIBE, SUBSCRIBED, subscription=1, ref=spec["name"], credit=64)
    *_, started = rows(client, 1, "registered", "starting", "started")
    agent.settled()

    own.end()
    agent.exit(token, told=False, cause="exited", code=1)
    ready = own.start()

    # Frames of the old session reach the new master on the same socket: void, and said so.
    stale = client.epoch
    client.send(LIST_HOSTS, request=os.urandom(16))
    client.wait(lambda: client.over)
    assert client.over is not None
    assert client.over["code"] == "stale_session"

    assert client.open()["epoch"] == ready["epoch"] > stale
    status = client.ask(GET_STATUS, STATUS_REPLY, ref=spec["name"])["status"]
    assert (status["state"], status["reachable"]) == ("started", False)
    place = {"timeline": started["timeline"], "sequence": started["sequence"]}
    client.ask(SUBSCRIBE, SUBSCRIBED, subscription=1, ref=spec["name"], credit=64, **place)
    agent.join()
    later = agent.start()
    assert later["token"] > token
    exited, *_ = rows(client, 1, "exited", "starting", "started")
    assert exited["exit"]["code"] == 1
    assert exited["sequence"] > started["sequence"]
    assert registered["handle"]["slot"] == later["slot"]


def test_a_request_has_one_effect(
    client: Stranger, agent: Agent, own: Master, spec: dict[str, Any]
) -> None:
    client.open()
    agent.join()
    request = os.urandom(16)
    first = client.ask(REGISTER, REGISTERED, request, spec=spec)
    assert client.ask(REGISTER, REGISTERED, request, spec=spec) == first
    other = client.ask(REGISTER, FAILED, request, spec={**spec, "name": "other"})
    assert other["code"] == "request_conflict"
    taken = client.ask(REGISTER, FAILED, spec=spec)
    assert taken["code"] == "already_registered"
    assert taken["detail"]["handle"].endswith(f":{first['handle']['slot']}.1")
    own.end()
    own.start()
    client.open()
    assert client.ask(REGISTER, REGISTERED, request, spec=spec) == first
    assert listed(client) == [spec["name"]]


def test_refusals_name_what_is_wrong(client: Stranger, spec: dict[str, Any]) -> None:
    client.open()
    for change, field in (
        ({"name": ""}, "name"),
        ({"name": "a/b"}, "name"),
        ({"restart_time": -2.0}, "restart_time"),
        ({"flags": 2}, "flags"),
        ({"main": "os._exit"}, "main"),
        ({"colour": "red"}, "colour"),
    ):
        failed = client.ask(REGISTER, FAILED, spec={**spec, **change})
        assert (failed["code"], failed["detail"]["field"]) == ("invalid_field", field)
        assert failed["detail"]["rule"]
    assert client.ask(TERMINATE, FAILED, ref="nobody")["code"] == "no_such_worker"


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"GET / HTTP/1.1",
        msgpack.packb([LIST_HOSTS]),
        msgpack.packb([LIST_HOSTS, NOBODY, True, 1, 0, {}]),
        msgpack.packb([LIST_HOSTS, NOBODY, 1, 1, 0, {"request": "text"}]),
        msgpack.packb([HELLO, NOBODY, 0, 0, 0, {"role": "client"}]),
        msgpack.packb([START, NOBODY, 0, 0, 0, {}]),
        msgpack.packb([ACK, NOBODY, 0, 0, 0, {"x": msgpack.ExtType(1, b"")}]),
    ],
)
def test_a_bad_frame_costs_the_session(client: Stranger, frame: bytes) -> None:
    client.open()
    client.socket.send(frame)
    client.wait(lambda: client.over)
    assert client.over is not None
    assert client.over["code"] == "bad_frame"
    client.send(LIST_HOSTS, request=os.urandom(16))
    client.over = None
    client.wait(lambda: client.over)
    assert client.over["code"] == "stale_session"
    client.open()
    client.ask(LIST_HOSTS, HOSTS_PAGE)


def test_two_parts_are_a_bad_frame(client: Stranger) -> None:
    client.open()
    client.socket.send_multipart(
        [b"", msgpack.packb([ACK, client.session, client.epoch, 0, 0, {}])]
    )
    client.wait(lambda: client.over)
    assert client.over is not None
    assert client.over["code"] == "bad_frame"


def test_rules_of_the_link(client: Stranger) -> None:
    client.open()
    # A number that is not the next one is not taken; the one that fills the gap is.
    request, later = os.urandom(16), os.urandom(16)
    client.raw(LIST_WORKERS, 2, 0, {"request": later})
    client.raw(LIST_HOSTS, 1, 0, {"request": request})
    client.raw(LIST_WORKERS, 2, 0, {"request": later})
    client.raw(LIST_HOSTS, 1, 0, {"request": request})  # a repetition: no second answer
    assert client.next(HOSTS_PAGE)["request"] == request
    assert client.next(WORKERS_PAGE)["request"] == later
    client.sent = 2
    client.ask(LIST_HOSTS, HOSTS_PAGE)
    # What was never sent cannot be acknowledged.
    client.raw(ACK, 0, 99, {})
    client.wait(lambda: client.over)
    assert client.over is not None
    assert client.over["code"] == "bad_frame"


def test_an_answer_that_is_not_acknowledged_comes_again(client: Stranger) -> None:
    client.open()
    request = os.urandom(16)
    client.raw(LIST_HOSTS, 1, 0, {"request": request})
    seen: list[list[Any]] = []
    end = time.monotonic() + DEADLINE_S
    while len(seen) < 3 and time.monotonic() < end:
        client.raw(RENEW, 0, 0, {"stamp": 1})
        if client.socket.poll(200):
            frame = msgpack.unpackb(client.socket.recv())
            if frame[0] == HOSTS_PAGE:
                seen.append(frame)
    assert len(seen) == 3
    assert {frame[3] for frame in seen} == {1}
    assert seen[0] == seen[1] == seen[2]


def test_an_unknown_kind_is_unsupported(client: Stranger) -> None:
    client.open()
    client.send(999, anything=[1, 2])
    assert client.next(UNSUPPORTED) == {"kind": 999}
    client.settled()
    client.raw(998, 0, 0, {})  # outside the sequence: ignored
    client.ask(LIST_HOSTS, HOSTS_PAGE)


def test_grants_come_after_the_last_page(agent: Agent) -> None:
    agent.open()
    agent.send(INVENTORY, page=0, last=False)
    agent.wait(lambda: not agent.kept)
    agent.renewed_s = 0.0
    agent.turn(200)
    assert agent.granted == []
    agent.send(INVENTORY, page=1, last=True)
    agent.wait(lambda: agent.granted)


def test_silence_ends_a_session(client: Stranger) -> None:
    client.open()
    client.renewing = False
    client.wait(lambda: client.over)
    assert client.over is not None
    assert client.over["code"] == "stale_session"


def test_one_agent_for_a_host(peers: Callable[..., Any], agent: Agent, host: str) -> None:
    agent.join()
    twin = peers(Agent, agent.endpoint, host)
    kind, refused = twin.greet()
    assert (kind, refused["code"]) == (REFUSED, "host_taken")
    # The same warden: the agent was started again.
    twin.hello["wardens"] = agent.hello["wardens"]
    twin.join()


def test_a_foreign_registry_is_refused(agent: Agent) -> None:
    agent.hello["registry"] = "f" * 32
    kind, refused = agent.greet()
    assert (kind, refused["code"]) == (REFUSED, "foreign_registry")


def test_no_common_version(client: Stranger) -> None:
    client.hello |= {"protocol_min": 1, "protocol_max": 5}
    kind, refused = client.greet()
    assert (kind, refused["code"]) == (REFUSED, "protocol")


def test_a_stop_for_what_should_not_run(
    client: Stranger, agent: Agent, spec: dict[str, Any]
) -> None:
    client.open()
    unknown = {
        "registry": agent.open()["registry"], "slot": 70_007, "generation": 1, "incarnation": 1,
        "token": 500, "revision": 1, "pid": 77, "pid_start": 1, "started_unix_s": 1.0,
    }  # fmt: skip
    agent.running[500] = unknown
    agent.join()
    stop = agent.next(STOP)
    assert (stop["token"], stop["reason"]) == (500, "unknown")
    agent.send(STOP_DONE, slot=70_007, generation=1, token=500)
    # Tokens go on beyond every one that a host has seen.
    agent.running.clear()
    agent.open()
    agent.send(INVENTORY, page=0, last=True, highest_token=10**6)
    client.ask(REGISTER, REGISTERED, spec=spec)
    assert agent.start()["token"] > 10**6


def test_credit(client: Stranger, agent: Agent, spec: dict[str, Any]) -> None:
    client.open()
    agent.join()
    client.ask(REGISTER, REGISTERED, spec=spec)
    agent.start()
    agent.settled()
    client.ask(SUBSCRIBE, SUBSCRIBED, subscription=1, ref=spec["name"], credit=2)
    rows(client, 1, "registered", "starting")
    client.ask(LIST_HOSTS, HOSTS_PAGE)  # and no third row before it
    client.send(CREDIT, subscription=1, credit=1)
    rows(client, 1, "started")
    client.send(UNSUBSCRIBE, subscription=1)
    client.ask(SUBSCRIBE, SUBSCRIBED, subscription=2, timeline=1, sequence=10**6)
    assert client.next(CURSOR_TOO_OLD)["subscription"] == 2
    client.ask(SUBSCRIBE, SUBSCRIBED, subscription=3, timeline=7, sequence=1)
    assert client.next(CURSOR_TOO_OLD)["subscription"] == 3


def test_output_is_relayed(client: Stranger, agent: Agent, spec: dict[str, Any]) -> None:
    client.open()
    agent.join()
    client.ask(REGISTER, REGISTERED, spec=spec)
    agent.start()
    agent.settled()
    request = os.urandom(16)
    client.send(READ_OUTPUT, request=request, ref=spec["name"])
    client.turn()
    read = agent.next(READ_LOG)
    assert (read["offset"], read["limit"]) == (-1, 65536)
    agent.send(LOG_CHUNK, read=read["read"], offset=0, data=b"hello\n", size=6)
    output = client.next(OUTPUT)
    assert (output["request"], output["data"], output["host"]) == (
        request, b"hello\n", spec["host"],
    )  # fmt: skip


def test_shutdown(client: Stranger, agent: Agent, own: Master, spec: dict[str, Any]) -> None:
    client.open()
    agent.join()
    client.ask(REGISTER, REGISTERED, spec=spec)
    token = agent.start()["token"]
    agent.settled()
    request = os.urandom(16)
    client.send(SHUTDOWN, request=request, mode="fast")
    client.turn()
    stop = agent.next(STOP)
    assert (stop["token"], stop["reason"]) == (token, "shutdown")
    agent.running.pop(token)
    worker = {n: stop[n] for n in ("registry", "slot", "generation", "token")}
    facts = {"cause": "signaled", "signal": 15}
    agent.send(EXITED, worker={**worker, "incarnation": 1, "facts": facts, "stop": "shutdown"})
    done = client.next(DONE)
    assert done["request"] == request
    assert "fast shutdown" in done["message"]
    client.turn()  # the master ends when this is acknowledged
    assert own.end(0) == 0
    own.start()
    client.open()
    assert listed(client) == [spec["name"]]


@pytest.mark.parametrize("gone", ["stale", "retired"])
def test_what_is_asked_of_a_worker_that_is_gone(
    client: Stranger, agent: Agent, spec: dict[str, Any], gone: str
) -> None:
    client.open()
    ref = "0" * 32 + ":1.1"  # of another registry
    if gone == "retired":
        agent.join()
        handle = client.ask(REGISTER, REGISTERED, spec=spec)["handle"]
        ref = f"{handle['registry']}:{handle['slot']}.{handle['generation']}"
        agent.exit(agent.start()["token"], cause="exited", code=0)
    told = client.ask(GET_STATUS, STATUS_REPLY, ref=ref)
    assert (told["status"]["state"], told["status"]["final"]) == ("stopped", True)
    assert bool(told.get("spec")) == (gone == "retired")
    assert client.ask(TERMINATE, DONE, ref=ref)["changed"] is False
    for kind in (SIGNAL_WORKER, LATCH_WORKER, GET_STACKS):
        more = {"signal": 1} if kind == SIGNAL_WORKER else {}
        assert client.ask(kind, FAILED, ref=ref, **more)["code"] == "not_running"
    for kind in (HOLD, RELEASE, RESTART):
        assert client.ask(kind, FAILED, ref=ref)["code"] == "no_such_worker"
    assert client.ask(EXPLAIN, EXPLAINED, ref=ref)["reason"]
    if gone == "stale":
        assert client.ask(READ_OUTPUT, FAILED, ref=ref)["code"] == "not_running"
    client.ask(SUBSCRIBE, SUBSCRIBED, subscription=3, ref=ref, sequence=0, credit=64)
    if gone == "stale":
        assert client.next(CURSOR_TOO_OLD)["subscription"] == 3
    else:
        rows(client, 3, "registered", "starting", "started", "exited", "unregistered")


def test_tokens_that_do_not_fit(client: Stranger, agent: Agent, spec: dict[str, Any]) -> None:
    client.open()
    agent.join()
    client.ask(REGISTER, REGISTERED, spec=spec)
    client.ask(SUBSCRIBE, SUBSCRIBED, subscription=4, ref=spec["name"], sequence=0, credit=64)
    first = agent.start()["token"]
    worker = agent.running[first]
    agent.send(STARTED, worker={**worker, "ready": True})  # again: only `ready` is taken from it
    rows(client, 4, "registered", "starting", "started", "ready")
    agent.exit(first, cause="signaled", signal=9)
    agent.start()
    rows(client, 4, "exited", "starting", "started")

    agent.send(STARTED, worker=worker)  # of a token that is not the present one
    stop = agent.next(STOP)
    assert (stop["token"], stop["reason"]) == (first, "unknown")
    second = max(agent.running)
    names = ("slot", "generation")
    agent.send(STOP_DONE, token=second, **{n: worker[n] for n in names})  # ended unseen
    (exited,) = rows(client, 4, "exited")
    assert exited["exit"]["cause"] == "warden_died"
    client.ask(LIST_HOSTS, HOSTS_PAGE)
    assert not agent.inbox, "started while a process of it may run"
    agent.running.clear()
    agent.send(STOP_DONE, token=first, **{n: worker[n] for n in names})
    third = agent.start()["token"]
    assert third > second

    # Never arrived, as far as the host knows: another token is drawn.
    agent.exit(third, cause="signaled", signal=9)
    order = agent.next(START)
    agent.send(STOP_DONE, token=order["token"], **{n: order[n] for n in names})
    assert agent.start()["token"] > order["token"]


def test_people_read_the_rule_and_programs_the_field(
    client: Stranger, agent: Agent, spec: dict[str, Any]
) -> None:
    client.open()
    agent.join()
    failed = client.ask(REGISTER, FAILED, spec={**spec, "notify": True})
    assert (failed["code"], failed["detail"]["field"]) == ("refused", "notify")
    assert failed["detail"]["value"] == "True"
    failed = client.ask(REGISTER, FAILED, spec={**spec, "restart_time": -2.0})
    assert (failed["code"], failed["detail"]["field"]) == ("invalid_field", "restart_time")


def test_what_a_shutdown_refuses(
    client: Stranger, agent: Agent, own: Master, spec: dict[str, Any]
) -> None:
    client.open()
    agent.join()
    client.ask(REGISTER, REGISTERED, spec=spec)
    agent.start()
    agent.settled()
    client.send(SHUTDOWN, request=os.urandom(16), mode="smart")
    other = {**spec, "name": "other"}
    refused = [
        (REGISTER, {"spec": other}),
        (REGISTER_GROUP, {"spec": other, "replicas": 2}),
        (APPLY, {"source": "x", "workers": [{"spec": other}], "dry_run": True}),
    ]
    for kind, body in refused:
        assert client.ask(kind, FAILED, **body)["code"] == "shutting_down"
    client.ask(GET_STATUS, STATUS_REPLY, ref=spec["name"])
    client.ask(HOLD, DONE, ref=spec["name"])


# --- with keys ---


@pytest.fixture
def pairs() -> dict[str, tuple[bytes, bytes]]:
    names = ("master", "agent:b", "client:deploy", "viewer:grafana", "stranger")
    return {name: zmq.curve_keypair() for name in names}


@pytest.fixture
def own_keyed(
    house: Callable[..., Master], tmp_path: Path, pairs: dict[str, tuple[bytes, bytes]]
) -> Master:
    public, secret = (key.decode() for key in pairs["master"])
    (tmp_path / "key").write_text(f'public = "{public}"\nsecret = "{secret}"\n')
    (tmp_path / "key").chmod(0o600)
    known = [f'"{name}" = "{pairs[name][0].decode()}"' for name in pairs if ":" in name]
    (tmp_path / "principals").write_text("\n".join(["[principals]", *known]))
    (tmp_path / "principals").chmod(0o644)
    return house(
        listen_agents="tcp://127.0.0.1:*",
        listen_clients="tcp://127.0.0.1:*",
        key_file=str(tmp_path / "key"),
        principals_file=str(tmp_path / "principals"),
    )


def test_role_and_name_come_from_the_key(
    own_keyed: Master,
    peers: Callable[..., Any],
    pairs: dict[str, tuple[bytes, bytes]],
    spec: dict[str, Any],
) -> None:
    server = pairs["master"][0]
    assert len(z85.decode(server)) == 32
    agents, clients = own_keyed.ready["agents"], own_keyed.ready["clients"]

    def peer(name: str, endpoint: str, role: str) -> Stranger:
        made: Stranger = peers(Stranger, endpoint, role, (*pairs[name], server))
        return made

    b = peers(Agent, agents, "not-b", (*pairs["agent:b"], server))
    assert b.join()["principal"] == "agent:b"
    deploy = peer("client:deploy", clients, "client")
    assert deploy.open()["principal"] == "client:deploy"
    assert [h["name"] for h in deploy.ask(LIST_HOSTS, HOSTS_PAGE)["hosts"]] == ["b"]
    deploy.ask(REGISTER, REGISTERED, spec={**spec, "host": "b", "main_arg": {"secret": 1}})

    viewer = peer("viewer:grafana", clients, "client")
    assert viewer.open()["principal"] == "viewer:grafana"
    assert "main_arg" not in viewer.ask(GET_STATUS, STATUS_REPLY, ref=spec["name"])["spec"]
    assert viewer.ask(TERMINATE, FAILED, ref=spec["name"])["code"] == "not_permitted"

    for name, endpoint, role in (
        ("client:deploy", clients, "agent"),
        ("client:deploy", agents, "client"),
        ("agent:b", clients, "agent"),
        ("viewer:grafana", clients, "viewer"),
    ):
        kind, refused = peer(name, endpoint, role).greet()
        assert (kind, refused["code"]) == (REFUSED, "not_permitted"), (name, role)

    nobody = peer("stranger", clients, "client")
    nobody.connect()
    monitor = nobody.socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
    assert monitor.poll(int(DEADLINE_S * 1000))
    nobody.socket.disable_monitor()
    monitor.close(0)
