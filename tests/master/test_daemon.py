"""The master as a process: real sockets, a real registry, real signals."""

import contextlib
import json
import os
import re
import select
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from posthouse import keys
from posthouse.dial import Delivered, DialEffect, Dialler, Lost, Opened, Redial, Rejected, Transmit
from posthouse.link import LinkFull
from posthouse.messages import (
    Done,
    GetStatus,
    Goodbye,
    Hello,
    Inventory,
    ListWorkers,
    Message,
    Register,
    Registered,
    Running,
    Shutdown,
    Start,
    Started,
    Stop,
    Terminate,
    WardenRef,
)
from posthouse.spec import BackgroundWorker
from posthouse.states import ShutdownMode
from posthouse.transport import Line, new_context, open_dealer
from posthouse_master.store import schema
from posthouse_master.store.base import SpecRow

RUN = """
import sys, json
from posthouse.settings import MasterSettings
from posthouse_master.daemon import run
sys.exit(run(MasterSettings(**json.loads(sys.argv[1]))))
"""


def boot_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Master:
    """One master process after the other on one folder."""

    def __init__(self, folder: Path) -> None:
        self.settings: dict[str, Any] = {
            "state_dir": str(folder / "state"),
            "listen_agents": f"ipc://{folder}/agents",
            "listen_clients": f"ipc://{folder}/clients",
        }
        self.process: subprocess.Popen[str] | None = None
        self.ready: dict[str, Any] = {}

    def launch(self, env: dict[str, str] | None = None, **settings: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", RUN, json.dumps(self.settings | settings)],
            stderr=subprocess.PIPE,
            env=os.environ | (env or {}),
            text=True,
        )

    def start(self, **settings: Any) -> "Master":
        self.process = self.launch(**settings)
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        assert line.startswith("{"), line + self.process.stderr.read()
        self.ready = json.loads(line)
        assert self.ready["event"] == "master.ready"
        return self

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.communicate()
        self.process = None

    def refused(self, **settings: Any) -> str:
        """Another one that does not come up; what it says."""
        other = self.launch(**settings)
        _, said = other.communicate(timeout=30)
        assert other.returncode == 1, said
        return said

    def end(self) -> tuple[int, str]:
        assert self.process is not None
        process, self.process = self.process, None
        process.terminate()
        _, rest = process.communicate(timeout=30)
        return process.returncode, rest


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="ph", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def master(folder: Path) -> Iterator[Master]:
    found = Master(folder)
    yield found
    if found.process is not None:
        found.kill()


class Caller:
    """A dialler on a real socket, driven until something is true."""

    def __init__(self, endpoint: str, key: keys.ClientKeys | None = None, **hello: Any) -> None:
        values = {"role": "client"} | hello
        self.dialler = Dialler(lambda nonce: Hello(nonce=nonce, **values), os.urandom)
        self.line = Line(endpoint, keys=key)
        self.inbox: list[Message] = []
        self.lost: list[str] = []
        self.rejected: list[str] = []

    def close(self) -> None:
        self.line.close()

    def until(self, true: Callable[[], Any], seconds: float = 20.0) -> Any:
        """Let frames flow until it is true; what it is then."""
        end_s = boot_s() + seconds
        while True:
            self.carry(self.dialler.tick(boot_s()))
            trouble = self.line.trouble()  # what came before it is read first
            for frame in self.line.receive():
                self.carry(self.dialler.receive(frame, boot_s()))
            if trouble:
                self.carry(self.dialler.broken(trouble.reason, boot_s(), retried=trouble.retried))
            found = true()
            if found:
                return found
            assert boot_s() < end_s, f"never: inbox {self.inbox[-3:]} lost {self.lost}"
            socket_ = self.line.socket
            if socket_ is not None:
                socket_.poll(10)

    def carry(self, effects: list[DialEffect]) -> None:
        for effect in effects:
            match effect:
                case Redial():
                    self.line.redial()
                case Transmit(frame):
                    self.line.transmit(frame)
                case Delivered(message):
                    self.inbox.append(message)
                case Lost(reason):
                    self.lost.append(reason)
                case Rejected(refused):
                    self.rejected.append(refused.code)
                case Opened(welcome):
                    self.welcome = welcome

    def open(self) -> "Caller":
        self.until(lambda: self.dialler.open)
        return self

    def say(self, message: Message) -> None:
        self.carry([self.dialler.send(message, boot_s())])

    def one(self, kind: type[Any]) -> Any:
        """The next message of this kind, taken."""
        self.until(lambda: any(isinstance(message, kind) for message in self.inbox))
        found = next(message for message in self.inbox if isinstance(message, kind))
        self.inbox.remove(found)
        return found

    def ask(self, message: Any) -> Any:
        self.say(message)

        def answer() -> Any:
            return [m for m in self.inbox if getattr(m, "request", b"") == message.request]

        [found] = self.until(answer)
        self.inbox.remove(found)
        return found

    def insist(self, asked: dict[bytes, Message], count: int) -> dict[bytes, Message]:
        """At least so many answers to what was asked. A busy master may say nothing for so long
        that the session is lost: then what has no answer is asked again, as clients do."""
        found: dict[bytes, Message] = {}
        while len(found) < count:
            self.until(lambda: self.inbox or self.lost)
            found |= {message.request: message for message in self.inbox}
            self.inbox.clear()
            if self.lost:
                self.lost.clear()
                self.open()
                for request in asked.keys() - found.keys():
                    self.say(asked[request])
        return found


@pytest.fixture
def call() -> Iterator[Callable[..., Caller]]:
    callers: list[Caller] = []

    def make(endpoint: str, key: keys.ClientKeys | None = None, **hello: Any) -> Caller:
        callers.append(Caller(endpoint, key, **hello))
        return callers[-1]

    yield make
    for caller in callers:
        caller.close()


def register(name: str) -> Register:
    spec = BackgroundWorker(name=name, main="acme.jobs:main", restart_time=1)
    return Register(request=os.urandom(16), spec=spec.to_wire())


def host_hello(name: str = "b") -> dict[str, Any]:
    return {
        "role": "agent",
        "host": name,
        "boot_id": "boot-1",
        "agent_instance": name * 32,
        "wardens": [WardenRef(kind="fenced", instance=name * 32)],
        "runtimes": ["default"],
        "modules": ["acme.*"],
        "fences": ["process"],
        "slots": 100,
    }


def running(start: Start) -> Running:
    return Running(
        registry=start.registry,
        slot=start.slot,
        generation=start.generation,
        incarnation=start.incarnation,
        token=start.token,
        revision=start.revision,
        pid=4711,
        pid_start=1,
        started_unix_s=1.0,
    )


def test_kill_9_loses_nothing_that_was_acknowledged(master, call):
    master.start()
    client = call(master.ready["clients"]).open()
    asked: dict[bytes, Register] = {}
    with contextlib.suppress(LinkFull):
        for number in range(400):
            message = register(f"w{number}")
            client.say(message)
            asked[message.request] = message
    told = client.insist(asked, 30)
    master.kill()  # with most requests on their way
    assert all(isinstance(answer, Registered) for answer in told.values())
    epoch = master.ready["epoch"]
    master.start()
    assert master.ready["epoch"] == epoch + 1
    client.until(lambda: client.lost)
    client.open()
    kept = {}
    place, more = (-1, 0), True
    while more:
        page = client.ask(ListWorkers(request=os.urandom(16), slot=place[0], generation=place[1]))
        kept |= {info.status.name: info.status.handle for info in page.workers}
        last = page.workers[-1].status.handle
        place, more = (last.slot, last.generation), page.more
    for answer in told.values():
        assert kept[answer.name] == answer.handle
    # Whoever heard nothing asks again with the same id: one effect, whatever had happened.
    for request, message in list(asked.items())[::7]:
        answer, name = client.ask(message), message.spec["name"]
        assert isinstance(answer, Registered), answer
        assert answer.name == name
        if request in told:
            assert answer == told[request]
        elif name in kept:
            assert answer.handle == kept[name]


def commits(master: Master) -> int:
    with urllib.request.urlopen(f"http://{master.settings['http']}/metrics", timeout=20) as reply:
        text = reply.read().decode()
    found = re.search(r"^posthouse_store_commit_seconds_count (\S+)$", text, re.MULTILINE)
    assert found is not None
    return int(float(found[1]))


def test_d7_what_came_meanwhile_is_taken_in_one_round(master, call):
    """PostgreSQL's signal says only that all slots are to be looked at, so that many registrations
    are seen in one look. Kept in effect: what has come is taken together, and made durable by few
    commits, each of which answers all that it holds."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        master.settings["http"] = f"127.0.0.1:{free.getsockname()[1]}"
    master.start()
    client = call(master.ready["clients"]).open()
    before, count = commits(master), 300
    asked = {(message := register(f"w{number}")).request: message for number in range(count)}
    master.process.send_signal(signal.SIGSTOP)
    for message in asked.values():
        client.say(message)
    master.process.send_signal(signal.SIGCONT)
    answers = client.insist(asked, count)
    assert answers.keys() == asked.keys()
    assert all(isinstance(answer, Registered) for answer in answers.values())
    assert 1 <= commits(master) - before <= count // 3


def test_a_start_that_left_was_durable_before(master, call):
    master.start()
    host = call(master.ready["agents"], **host_hello()).open()
    host.say(Inventory(page=0, last=True))
    client = call(master.ready["clients"]).open()
    client.ask(register("w"))
    start = host.one(Start)
    master.kill()  # no STARTED was sent, nothing was acknowledged
    master.start()
    host.until(lambda: host.lost)
    host.open()
    host.say(Inventory(page=0, last=True, running=[running(start)]))
    client.until(lambda: client.lost)
    client.open()

    def started() -> bool:
        status = client.ask(GetStatus(request=os.urandom(16), ref="w")).status
        host.until(lambda: True)
        return status.state == "started" and status.token == start.token

    client.until(started)
    assert not [m for m in host.inbox if isinstance(m, Start | Stop)]


def test_a_master_whose_registry_is_gone_ends_though_it_has_nothing_to_write(master, call, folder):
    """It grants without writing anything, so no commit would ever tell it."""
    master.start()
    host = call(master.ready["agents"], **host_hello()).open()
    host.say(Inventory(page=0, last=True))
    call(master.ready["clients"]).open()  # what a host's arrival led to is written by now
    (folder / "state" / "registry.sqlite").rename(folder / "elsewhere")
    host.until(lambda: host.lost)
    _, said = master.process.communicate(timeout=30)
    assert "was removed or replaced while it was open" in said
    assert master.process.returncode == 1
    (folder / "elsewhere").rename(folder / "state" / "registry.sqlite")
    master.start()
    host.until(lambda: host.dialler.open)


def test_nobody_takes_the_place_of_a_master_that_is_stopped(master, call):
    """Its locks are the kernel's, and end with the process alone: so there is no master that comes
    to itself again and has been deposed."""
    master.start()
    client = call(master.ready["clients"]).open()
    master.process.send_signal(signal.SIGSTOP)
    assert "another master has this registry open" in master.refused()
    state_dir = Path(master.settings["state_dir"])
    for lock in (*state_dir.glob("*.lock"), *state_dir.parent.glob("*.lock")):
        lock.unlink()
    assert "another master has this registry open" in master.refused()
    master.process.send_signal(signal.SIGCONT)
    # It is the one that ends: the next master would look for the mark in the file that is gone.
    client.until(lambda: client.lost)
    assert master.process.wait(30) == 1


def test_sigterm_ends_the_master_with_a_goodbye_and_it_comes_back(master, call):
    master.start()
    host = call(master.ready["agents"], **host_hello()).open()
    host.say(Inventory(page=0, last=True))
    client = call(master.ready["clients"]).open()
    client.ask(register("w"))
    start = host.one(Start)
    host.say(Started(worker=running(start)))
    status, rest = master.end()
    assert status == 0
    last = json.loads(rest.splitlines()[-1])
    assert (last["event"], last["reason"]) == ("master.ended", "SIGTERM")
    for peer in (host, client):
        peer.until(lambda peer=peer: peer.lost)
        # A connection that closes may take along what was not read from it yet.
        assert "goodbye" in peer.lost[0] or "disconnected" in peer.lost[0]
    assert not [m for m in host.inbox if isinstance(m, Stop)]
    master.start()
    client.open()
    assert client.ask(GetStatus(request=os.urandom(16), ref="w")).status.name == "w"


def test_a_second_master_on_the_same_registry_is_refused(master, folder):
    master.start()
    said = master.refused(
        listen_agents=f"ipc://{folder}/other-a", listen_clients=f"ipc://{folder}/other-c"
    )
    assert "another master has this registry open" in said
    assert "Traceback" not in said


def test_a_socket_that_is_taken_is_refused(master, folder):
    master.start()
    said = master.refused(state_dir=str(folder / "other"))
    assert "another process listens there" in said
    assert "Traceback" not in said


def test_a_folder_that_others_may_enter_is_refused(master, folder):
    folder.chmod(0o755)
    said = master.refused()
    assert "must have mode 0700 or 0750" in said
    assert f"chmod 0700 {folder}" in said
    folder.chmod(0o700)


def test_tcp_without_keys_is_refused(master):
    assert "TCP needs CURVE keys" in master.refused(listen_agents="tcp://127.0.0.1:*")
    assert "needs principals_file" in master.refused(key_file="/nowhere")


def test_a_damaged_registry_is_refused_and_left_alone(master, folder):
    master.start()
    master.end()
    path = folder / "state" / "registry.sqlite"
    path.write_bytes(path.read_bytes()[:5000])
    said = master.refused()
    assert "is damaged" in said
    assert "Traceback" not in said
    assert path.stat().st_size == 5000


def test_a_registry_row_that_cannot_be_read_is_refused(master, folder, call):
    master.start()
    call(master.ready["clients"]).open().ask(register("w"))
    master.end()
    database = sqlite3.connect(folder / "state" / "registry.sqlite")
    (spec,) = schema.read(database, SpecRow)
    schema.write(database, replace(spec, spec=b"\xc1"))
    database.commit()
    database.close()
    said = master.refused()
    assert "a row cannot be read" in said
    assert "Traceback" not in said


def test_bytes_that_are_no_frames_do_not_end_the_process(master, call):
    master.start()
    context = new_context()
    for endpoint in (master.ready["agents"], master.ready["clients"]):
        stranger = open_dealer(context, endpoint, keys=None, entropy=os.urandom)
        for data in (b"", b"\xc1", os.urandom(500), b"\x96" + b"\xff" * 100_000):
            stranger.send(data)
        stranger.send_multipart([b"a", b"b", b"c"])
        assert stranger.poll(20_000), "it is told"
        stranger.close(0)
    context.term()
    client = call(master.ready["clients"]).open()
    assert isinstance(client.ask(register("w")), Registered)
    status, rest = master.end()
    assert status == 0
    assert '"peer.bad_frame"' in rest


def test_keys_say_who_is_who(master, folder, call):
    pairs = {name: keys.generate() for name in ("master", "agent:b", "client:x", "viewer:v", "no")}
    keys.write_pair(str(folder / "master.key"), pairs["master"], "client:master")
    principals = folder / "principals.toml"
    lines = [f'"{n}" = "{pairs[n].public}"' for n in ("agent:b", "client:x", "viewer:v")]
    principals.write_text("[principals]\n" + "\n".join(lines) + "\n")
    master.start(
        key_file=str(folder / "master.key"),
        principals_file=str(principals),
        listen_agents="tcp://127.0.0.1:*",
        listen_clients="tcp://127.0.0.1:*",
    )

    def key(name: str) -> keys.ClientKeys:
        return keys.ClientKeys(pairs[name].public, pairs[name].secret, pairs["master"].public)

    liar = host_hello() | {"host": "another"}
    host = call(master.ready["agents"], key("agent:b"), **liar).open()
    assert host.welcome.principal == "agent:b"
    client = call(master.ready["clients"], key("client:x")).open()
    assert isinstance(client.ask(register("w")), Registered)
    viewer = call(master.ready["clients"], key("viewer:v")).open()
    assert viewer.ask(register("v")).code == "not_permitted"
    assert viewer.ask(GetStatus(request=os.urandom(16), ref="w")).status.name == "w"
    wrong = call(master.ready["agents"], key("client:x"), **host_hello())
    wrong.until(lambda: wrong.rejected)
    assert wrong.rejected[0] == "not_permitted"
    stranger = call(master.ready["clients"], key("no"))
    with pytest.raises(AssertionError, match="never"):
        stranger.until(lambda: stranger.dialler.open, seconds=1.5)


def test_systemd_is_told(master, folder):
    notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notified.bind(str(folder / "notify"))
    notified.settimeout(20)
    master.process = master.launch(env={"NOTIFY_SOCKET": str(folder / "notify")})
    assert notified.recv(4096).startswith(b"READY=1")
    master.end()
    assert notified.recv(4096).startswith(b"STOPPING=1")
    notified.close()


def test_an_idle_master_sleeps(master, call):
    """It must not spin on a socket or a timer: processor time, not the clock, is looked at."""
    master.start()
    client = call(master.ready["clients"]).open()
    client.ask(register("w"))
    client.say(Goodbye(reason="done"))
    assert master.process is not None
    descriptor = os.pidfd_open(master.process.pid)
    assert not select.select([descriptor], [], [], 1.0)[0]
    before = processor_ticks(master.process.pid)
    assert not select.select([descriptor], [], [], 1.5)[0]
    os.close(descriptor)
    assert processor_ticks(master.process.pid) - before < 30  # of 150


def processor_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_sigint_ends_it_as_well(master):
    master.start()
    assert master.process is not None
    master.process.send_signal(signal.SIGINT)
    _, rest = master.process.communicate(timeout=30)
    assert master.process.returncode == 0
    assert '"SIGINT"' in rest
    master.process = None


def test_shutdown_is_answered_before_the_process_ends(master, call):
    master.start()
    client = call(master.ready["clients"]).open()
    client.ask(register("w"))
    done = client.ask(Shutdown(request=os.urandom(16), mode=ShutdownMode.FAST))
    assert isinstance(done, Done)
    assert master.process is not None
    _, rest = master.process.communicate(timeout=30)
    assert master.process.returncode == 0
    assert "fast shutdown" in rest
    master.start()
    client.open()
    assert not client.ask(GetStatus(request=os.urandom(16), ref="w")).status.final
    assert client.ask(Terminate(request=os.urandom(16), ref="w")).changed
