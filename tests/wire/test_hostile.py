"""A real master with keys, and peers that want to harm it: others go on being served, within a
bounded memory. Each attack is held while a worker lives its whole life on a host of the master.

What strangers cost is bounded by `limits.hostile_bytes_max`. Who has a key can make libzmq hold the
frames of a message that he never ends, as many as he likes; they are gone with his connection.
"""

import contextlib
import itertools
import os
import resource
import signal
import socket
import ssl
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

import posthouse
from posthouse import BackgroundWorker, EventKind, keys, limits
from posthouse.errors import PosthouseError, TimedOut, Unreachable
from posthouse.settings import ClientSettings
from posthouse_testing.cluster import Daemon, LocalCluster
from posthouse_testing.sweep import sweep

IDLE = 1_000
FLOOD_FRAMES = 100_000
UNFINISHED_BYTES = 48 * 1024 * 1024
DEADLINE_S = 60.0
numbers = itertools.count(1)


class House:
    """A master with keys over TCP, and host b."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.agents, self.clients = (f"tcp://127.0.0.1:{port}" for port in free_ports(2))
        self.pairs: dict[str, keys.KeyPair] = {}
        for name in ("master:main", "agent:b", "agent:b-new", "client:good", "client:evil"):
            self.key(name)
        self.principals("agent:b", "client:good", "client:evil")
        public = self.pairs["master:main"].public
        (folder / "master.toml").write_text(
            f'state_dir = "{folder}/master"\nlisten_agents = "{self.agents}"\n'
            f'listen_clients = "{self.clients}"\nkey_file = "{folder}/master-main.key"\n'
            f'principals_file = "{folder}/principals.toml"\n'
        )
        (folder / "agent.toml").write_text(
            f'host = "b"\nmaster = "{self.agents}"\nruntime_dir = "{folder}/hosts/b"\n'
            f'log_dir = "{folder}/log"\nkey_file = "{folder}/agent-b.key"\nallow_exec = true\n'
            f'master_key = "{public}"\n'
        )
        self.master, self.agent = (
            Daemon(
                verb,
                [sys.executable, "-m", "posthouse_cli", verb, "--config", f"{folder}/{verb}.toml"],
                folder / f"{verb}.log",
                os.environ,
            )
            for verb in ("master", "agent")
        )

    def key(self, name: str) -> None:
        pair = keys.generate()
        file = self.folder / f"{name.replace(':', '-')}.key"
        file.unlink(missing_ok=True)
        keys.write_pair(str(file), pair, name)
        self.pairs[name] = pair

    def principals(self, *names: str, **more: str) -> None:
        """Who is let in; `more`: a principal with the key of another name."""
        given = {name: name for name in names} | more
        lines = [f'"{name}" = "{self.pairs[key].public}"' for name, key in given.items()]
        (self.folder / "principals.toml").write_text("[principals]\n" + "\n".join(lines) + "\n")

    def hup(self) -> None:
        """The master reads the principals anew."""
        before = len(self.master.log.read_bytes())
        self.master.signal(signal.SIGHUP)
        until(lambda: b"principals.read" in self.master.log.read_bytes()[before:])

    def settings(self, name: str) -> ClientSettings:
        return ClientSettings(
            master=self.clients,
            key_file=str(self.folder / f"{name.replace(':', '-')}.key"),
            master_key=self.pairs["master:main"].public,
        )

    def connect(self, name: str = "client:good") -> posthouse.Cluster:
        return posthouse.connect(settings=self.settings(name), timeout=DEADLINE_S)

    def evil(self, context: Any) -> Any:
        """A socket of somebody who has a key."""
        made = context.socket(zmq.DEALER)
        made.linger = 0
        pair = self.pairs["client:evil"]
        made.curve_publickey = pair.public.encode()
        made.curve_secretkey = pair.secret.encode()
        made.curve_serverkey = self.pairs["master:main"].public.encode()
        made.connect(self.clients)
        return made


def serve(cluster: posthouse.Cluster) -> None:
    """A worker's whole life; its events are all there, in their order."""
    name = f"w-{next(numbers)}"
    record = BackgroundWorker(name=name, main="posthouse.exec", main_arg=["sleep", "600"])
    handle = cluster.register(record, timeout=DEADLINE_S)
    assert handle.wait_for_startup(timeout=DEADLINE_S).host == "b"
    handle.terminate(timeout=DEADLINE_S)
    assert handle.wait_until_unregistered(timeout=DEADLINE_S).final
    history = handle.events(after=posthouse.Cursor(cluster.timeline, 0), timeout=DEADLINE_S)
    assert [event.kind for event in history] == [
        EventKind.REGISTERED,
        EventKind.STARTING,
        EventKind.STARTED,
        EventKind.STOP_REQUESTED,
        EventKind.EXITED,
        EventKind.UNREGISTERED,
    ]


def resident_bytes(daemon: Daemon) -> int:
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


def until(look: Callable[[], Any]) -> Any:
    end = time.monotonic() + DEADLINE_S
    while not (found := look()):
        assert time.monotonic() < end, f"still {found!r}"
        time.sleep(0.01)
    return found


def free_ports(count: int) -> list[int]:
    """Ports that nobody has. Another process may take one first; then the master says so."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with contextlib.ExitStack() as ending:
        folder = Path(tempfile.mkdtemp(prefix="ph", dir="/tmp"))
        made = House(folder)
        ending.callback(lambda: sweep(folder))
        for daemon in (made.master, made.agent):
            ending.callback(daemon.close)
            daemon.start()
        with made.connect() as cluster:
            serve(cluster)
        yield made


@pytest.fixture
def many() -> Iterator[None]:
    """Descriptors for a thousand connections."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] < 2 * IDLE + 200:
        pytest.skip(f"RLIMIT_NOFILE is {before[1]}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


# --- attacks: each is a context in which it goes on ---


def plain(endpoint: str) -> socket.socket:
    made = socket.create_connection(("127.0.0.1", int(endpoint.rpartition(":")[2])))
    made.setblocking(False)
    return made


@contextlib.contextmanager
def strangers(house: House, count: int, words: list[bytes]) -> Iterator[None]:
    """Connections without a key, to both endpoints, each of which says one of these."""
    with contextlib.ExitStack() as stack:
        for number in range(count):
            endpoint = (house.agents, house.clients)[number % 2]
            connection = stack.enter_context(plain(endpoint))
            with contextlib.suppress(ConnectionError):
                connection.sendall(words[number % len(words)])
        yield


def tls_hello() -> bytes:
    outgoing = ssl.MemoryBIO()
    made = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="x")
    with contextlib.suppress(ssl.SSLWantReadError):
        made.do_handshake()
    return outgoing.read()


GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + bytes(32)
HALVES = [
    GREETING[:1],
    GREETING[:11],
    GREETING[:40],
    GREETING,
    GREETING + b"\x04\xc8\x05HELLO",  # a command of 200 bytes, of which six have come
    GREETING + b"\x06" + (2**40).to_bytes(8) + b"\x05HELLO",  # and one of a terabyte
]
FOREIGN = [
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    tls_hello(),
    b"SSH-2.0-OpenSSH_9.6\r\n",
    os.urandom(4_096),
    b"\xff" * 4_096,
    b"\0" * 4_096,
]


@contextlib.contextmanager
def idle(house: House) -> Iterator[None]:
    with strangers(house, IDLE, [b""]):
        yield


@contextlib.contextmanager
def idle_with_a_key(house: House) -> Iterator[None]:
    context: Any = zmq.Context()
    context.max_sockets = IDLE + 16
    made: list[Any] = []
    try:
        made.extend(house.evil(context) for _ in range(IDLE))
        # The last one gets an answer, so the handshakes before it have been begun.
        made[-1].send(b"x")
        assert made[-1].poll(int(DEADLINE_S * 1000)), "nobody answers"
        yield
    finally:
        for each in made:
            each.close(0)
        context.term()


@contextlib.contextmanager
def foreign(house: House) -> Iterator[None]:
    with strangers(house, 120, FOREIGN):
        yield


@contextlib.contextmanager
def half_said(house: House) -> Iterator[None]:
    """Slow loris: the handshake is begun, and goes on byte by byte, without an end."""
    done = threading.Event()

    def trickle() -> None:
        with contextlib.ExitStack() as stack:
            slow = [stack.enter_context(plain(house.clients)) for _ in range(20)]
            for byte in itertools.cycle(GREETING[:20]):
                for connection in slow:
                    with contextlib.suppress(OSError):
                        connection.send(bytes((byte,)))
                if done.wait(0.05):
                    return

    thread = threading.Thread(target=trickle)
    thread.start()
    try:
        with strangers(house, 120, HALVES):
            yield
    finally:
        done.set()
        thread.join()


@contextlib.contextmanager
def flood(house: House) -> Iterator[None]:
    """Frames that are none of ours, as fast as they go; the answers are read by nobody."""
    context: Any = zmq.Context()
    done = threading.Event()
    sent = [0]

    def run() -> None:
        made = house.evil(context)
        frame = os.urandom(1_000)
        while not done.is_set() and sent[0] < FLOOD_FRAMES:
            if made.poll(100, zmq.POLLOUT):
                made.send(frame, zmq.DONTWAIT)
                sent[0] += 1
        made.close(0)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        until(lambda: sent[0] > 1_000)
        yield
    finally:
        done.set()
        thread.join()
        context.term()


ATTACKS = [idle, idle_with_a_key, foreign, half_said, flood]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_others_are_served_within_bounded_memory(
    house: House, many: None, attack: Callable[[House], contextlib.AbstractContextManager[None]]
) -> None:
    with house.connect() as cluster:
        before = resident_bytes(house.master)
        with attack(house):
            serve(cluster)
            during = resident_bytes(house.master)
            with house.connect() as late:  # a new one gets in, too
                serve(late)
        serve(cluster)
        after = resident_bytes(house.master)
    print(f"{attack.__name__}: {before:,} before, {during:,} during, {after:,} after")
    assert max(during, after) - before <= limits.hostile_bytes_max
    assert house.master.alive


def test_a_host_and_a_client_are_put_out_and_let_in_again_under_load(house: House) -> None:
    """Others register without a break meanwhile; the worker of the host that is put out runs on."""
    registered: list[str] = []
    enough = threading.Event()
    errors: list[PosthouseError] = []

    def load() -> None:
        try:
            with house.connect() as cluster:
                while not enough.is_set():
                    name = f"load-{len(registered)}"
                    record = BackgroundWorker(name=name, main="a:b", labels=("none-has-it",))
                    cluster.register(record, timeout=DEADLINE_S).terminate(timeout=DEADLINE_S)
                    registered.append(name)
        except PosthouseError as error:
            errors.append(error)

    def goes_on() -> None:
        so_far = len(registered)
        until(lambda: errors or len(registered) > so_far + 3)
        assert not errors

    thread = threading.Thread(target=load)
    thread.start()
    try:
        with house.connect() as good, house.connect("client:evil") as evil:
            record = BackgroundWorker(name="kept", main="posthouse.exec", main_arg=["sleep", "600"])
            pid = good.register(record).wait_for_startup(timeout=DEADLINE_S).pid
            goes_on()
            house.principals("client:good")
            house.hup()
            with pytest.raises((Unreachable, TimedOut)):
                evil.workers(timeout=1.5)
            until(lambda: not good.hosts(timeout=DEADLINE_S)[0].reachable)
            goes_on()
            assert Path(f"/proc/{pid}").exists(), "nobody has ended it"
            status = good.handle("kept").status()
            assert (status.pid, status.reachable) == (pid, False)

            house.principals("agent:b", "client:good", "client:evil")
            house.hup()
            until(lambda: good.hosts(timeout=DEADLINE_S)[0].reachable)
            assert good.handle("kept").wait_for_startup(timeout=DEADLINE_S).pid == pid
            with house.connect("client:evil") as again:
                assert again.principal == "client:evil"
            goes_on()
            good.handle("kept").terminate()
    finally:
        enough.set()
        thread.join(DEADLINE_S)
    assert not errors


# --- without keys, over the Unix socket: what libzmq's own sockets never send ---


class Raw:
    """ZMTP 3.1 by hand, as far as the handshake of a DEALER."""

    def __init__(self, endpoint: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(DEADLINE_S)
        self.socket.connect(endpoint.removeprefix("ipc://"))
        self.socket.sendall(GREETING.replace(b"CURVE", b"NULL\0"))
        ready = b"\x05READY\x0bSocket-Type" + (6).to_bytes(4) + b"DEALER"
        self.socket.sendall(b"\x04" + bytes((len(ready),)) + ready)
        greeting = 0
        while greeting < len(GREETING):
            greeting += len(self.socket.recv(len(GREETING) - greeting))
        assert self.socket.recv(1) == b"\x04", "no READY in answer"

    def frame(self, content: bytes, *, size: int = 0, more: bool = False) -> None:
        self.socket.sendall(bytes((2 | more,)) + (size or len(content)).to_bytes(8) + content)


@pytest.fixture
def open_house() -> Iterator[LocalCluster]:
    with LocalCluster(hosts=("b",)) as cluster:
        yield cluster


def test_a_message_without_an_end_is_gone_with_its_connection(open_house: LocalCluster) -> None:
    """Three times 48 MiB: they do not add up."""
    sent = 0
    with open_house.connect() as cluster:
        serve(cluster)
        before = resident_bytes(open_house.master)
        for _ in range(3):
            raw = Raw(open_house.clients)
            for _ in range(UNFINISHED_BYTES // 65_536):
                raw.frame(bytes(65_536), more=True)
                sent += 65_536
            serve(cluster)
            during = resident_bytes(open_house.master)
            assert during - before >= UNFINISHED_BYTES // 2, "they are held, all of them"
            raw.socket.close()
            serve(cluster)
        after = resident_bytes(open_house.master)
    print(f"unfinished: {before:,} before, {after:,} after {sent:,}")
    assert sent > 2 * limits.hostile_bytes_max
    assert after - before <= limits.hostile_bytes_max


@pytest.mark.parametrize("size", [limits.client_frame_bytes_max, 2**40, 2**63 - 1])
def test_half_a_frame_and_one_that_never_fits(open_house: LocalCluster, size: int) -> None:
    """The first is waited for; the others end the connection before a byte of them is kept."""
    with open_house.connect() as cluster:
        before = resident_bytes(open_house.master)
        many = [Raw(open_house.clients) for _ in range(50)]
        for raw in many:
            raw.frame(b"half", size=size)
        serve(cluster)
        if size > limits.client_frame_bytes_max:
            for raw in many:
                with contextlib.suppress(ConnectionError):
                    while raw.socket.recv(4_096):
                        pass  # what the master had said before, and the end
        for raw in many:
            raw.socket.close()
        serve(cluster)
        assert resident_bytes(open_house.master) - before <= limits.hostile_bytes_max
