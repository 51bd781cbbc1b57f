"""Real sockets: every option, who gets in, what the two shells do at the edges."""

import contextlib
import os
import socket as plain_socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from posthouse import keys, limits, transport, zap
from posthouse.errors import ConfigError
from posthouse.keys import ClientKeys, ServerKeys
from posthouse.transport import (
    OPTIONS,
    Inbound,
    Line,
    Listener,
    Trouble,
    open_dealer,
    open_router,
)

Until = Callable[..., Any]

MASTER = keys.generate()
AGENT = keys.generate()
DEPLOY = keys.generate()
STRANGER = keys.generate()
PRINCIPALS = {
    keys.public_bytes(AGENT.public): "agent:b",
    keys.public_bytes(DEPLOY.public): "client:deploy",
}
# libzmq does not tell these; test_send_outcomes and test_nobody_takes_over_a_routing_id show them.
UNREADABLE = {"ROUTER_MANDATORY", "ROUTER_HANDOVER"}


def as_client(pair: keys.KeyPair, server: str = MASTER.public) -> ClientKeys:
    return ClientKeys(pair.public, pair.secret, server)


def zeros(count: int) -> bytes:
    return bytes(count)


@pytest.fixture
def gate(context: transport.Context) -> Iterator[zap.Gate]:
    with zap.Gate(context, PRINCIPALS) as made:
        yield made


@pytest.fixture
def listen(context: transport.Context) -> Iterator[Callable[..., Listener]]:
    made: list[Listener] = []

    def start(endpoint: str = "tcp://127.0.0.1:*", **options: Any) -> Listener:
        options.setdefault("role", "agents")
        options.setdefault("keys", ServerKeys(MASTER.secret))
        made.append(open_router(context, endpoint, **options))
        return made[-1]

    yield start
    for listener in made:
        listener.close()


@pytest.fixture
def dial() -> Iterator[Callable[..., Line]]:
    made: list[Line] = []

    def start(endpoint: str, pair: keys.KeyPair | None = None, **options: Any) -> Line:
        given = as_client(pair) if pair else None
        line = Line(endpoint, keys=given, **options)
        made.append(line)
        line.redial()
        return line

    yield start
    for line in made:
        line.close()


def heard(listener: Listener, line: Line) -> Callable[[], list[Inbound]]:
    def look() -> list[Inbound]:
        line.receive()  # sends what waits for the connection
        return listener.receive()

    return look


# --- options ---


@pytest.mark.parametrize("role", ["agents", "clients"])
@pytest.mark.parametrize("keyed", [True, False])
def test_every_option_of_a_listener_is_set(
    listen: Callable[..., Listener], folder: Path, role: str, keyed: bool
) -> None:
    listener = (
        listen(role=role) if keyed else listen(f"ipc://{folder}/master", role=role, keys=None)
    )
    for option in OPTIONS[role]:
        if option.name not in UNREADABLE:
            found = listener.socket.getsockopt(getattr(zmq, option.name))
            assert found == option.value, option
    assert listener.socket.getsockopt(zmq.MECHANISM) == (zmq.CURVE if keyed else zmq.NULL)
    if keyed:
        assert listener.socket.getsockopt(zmq.ZAP_DOMAIN) == b"posthouse"
        assert listener.socket.getsockopt(zmq.ZAP_ENFORCE_DOMAIN) == 1
        assert listener.socket.getsockopt(zmq.CURVE_SERVER) == 1


def test_every_option_of_a_dealer_is_set(context: transport.Context) -> None:
    socket = open_dealer(context, "tcp://127.0.0.1:9", keys=as_client(AGENT), entropy=os.urandom)
    for option in OPTIONS["dealer"]:
        found = socket.getsockopt(getattr(zmq, option.name))
        if isinstance(option.value, range):
            assert found in option.value, option
        else:
            assert found == option.value, option
    assert socket.getsockopt(zmq.MECHANISM) == zmq.CURVE
    assert socket.getsockopt(zmq.ROUTING_ID) == b""


def test_the_reconnect_interval_is_drawn_from_the_given_entropy(context: transport.Context) -> None:
    drawn = {
        open_dealer(
            context,
            "tcp://127.0.0.1:9",
            keys=as_client(AGENT),
            entropy=lambda n, seed=seed: (seed).to_bytes(n),
        ).getsockopt(zmq.RECONNECT_IVL)
        for seed in (0, 1, 400, 401)
    }
    assert drawn == {100, 101, 500}


def test_every_option_gives_its_reason() -> None:
    for options in OPTIONS.values():
        assert len({option.name for option in options}) == len(options)
        assert all(option.why for option in options)


# --- who gets in ---


def test_a_known_key_is_admitted_and_named(
    gate: zap.Gate, listen: Callable[..., Listener], dial: Callable[..., Line], until: Until
) -> None:
    agents, clients = listen(role="agents"), listen(role="clients")
    b, deploy = dial(agents.endpoint, AGENT), dial(clients.endpoint, DEPLOY)
    b.transmit(b"from b")
    deploy.transmit(b"from deploy")
    (at_agents,) = until(heard(agents, b))
    (at_clients,) = until(heard(clients, deploy))
    assert (at_agents.user_id, at_agents.frame) == ("agent:b", b"from b")
    assert (at_clients.user_id, at_clients.frame) == ("client:deploy", b"from deploy")
    assert agents.send(at_agents.routing_id, b"to b") == "sent"
    assert until(b.receive) == [b"to b"]


def test_an_unknown_key_is_refused(
    gate: zap.Gate, listen: Callable[..., Listener], dial: Callable[..., Line], until: Until
) -> None:
    listener = listen()
    stranger = dial(listener.endpoint, STRANGER)
    stranger.transmit(b"let me in")
    assert until(stranger.trouble) == Trouble("the master does not accept our key")
    assert stranger.receive() == []
    assert listener.receive() == []
    assert stranger.pending == 1


def test_without_a_handler_nobody_gets_in(
    listen: Callable[..., Listener], dial: Callable[..., Line], until: Until
) -> None:
    listener = listen()
    line = dial(listener.endpoint, AGENT)
    line.transmit(b"hello")
    assert until(line.trouble)
    assert listener.receive() == []
    assert line.pending == 1


def test_when_the_handler_ends_nobody_new_gets_in(
    gate: zap.Gate, listen: Callable[..., Listener], dial: Callable[..., Line], until: Until
) -> None:
    listener = listen()
    early, late = dial(listener.endpoint, AGENT), None
    early.transmit(b"early")
    assert until(heard(listener, early))
    gate.close()
    assert not gate.alive
    late = dial(listener.endpoint, DEPLOY)
    late.transmit(b"late")
    assert until(late.trouble)
    assert listener.receive() == []


def test_a_key_enrolled_late_gets_in_on_a_fresh_socket(
    gate: zap.Gate, listen: Callable[..., Listener], dial: Callable[..., Line], until: Until
) -> None:
    listener = listen()
    line = dial(listener.endpoint, STRANGER)
    line.transmit(b"too early")
    until(line.trouble)
    gate.add(keys.public_bytes(STRANGER.public), "viewer:grafana")
    line.redial()
    line.transmit(b"now")
    (inbound,) = until(heard(listener, line))
    assert (inbound.user_id, inbound.frame) == ("viewer:grafana", b"now")


def test_a_removed_key_gets_in_no_more(
    gate: zap.Gate, listen: Callable[..., Listener], dial: Callable[..., Line], until: Until
) -> None:
    listener = listen()
    line = dial(listener.endpoint, AGENT)
    line.transmit(b"once")
    until(heard(listener, line))
    gate.remove(keys.public_bytes(AGENT.public))
    assert ("agent:b", AGENT.public) not in gate.entries
    assert "client:deploy" in {who for who, _ in gate.entries}
    line.redial()
    line.transmit(b"again")
    assert until(line.trouble) == Trouble("the master does not accept our key")


def test_a_client_without_a_key_is_refused(
    gate: zap.Gate,
    context: transport.Context,
    listen: Callable[..., Listener],
    dial: Callable[..., Line],
    until: Until,
) -> None:
    listener = listen()
    line = dial(listener.endpoint, insecure=True)
    line.transmit(b"no key")
    assert until(line.trouble)
    assert listener.receive() == []


def test_a_plain_password_is_refused(
    gate: zap.Gate, context: transport.Context, listen: Callable[..., Listener], until: Until
) -> None:
    listener = listen()
    socket = context.socket(zmq.DEALER)
    socket.plain_username, socket.plain_password = b"agent:b", b"secret"
    monitor = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
    socket.connect(listener.endpoint)
    assert until(lambda: monitor.poll(0))
    assert listener.receive() == []
    socket.disable_monitor()


def test_a_master_with_another_key_is_not_trusted(
    gate: zap.Gate, listen: Callable[..., Listener], until: Until
) -> None:
    listener = listen()
    line = Line(listener.endpoint, keys=as_client(AGENT, server=STRANGER.public))
    line.redial()
    line.transmit(b"secret")
    assert until(line.trouble)
    assert line.pending == 1
    line.close()


def test_keys_work_over_a_unix_socket(
    gate: zap.Gate,
    listen: Callable[..., Listener],
    dial: Callable[..., Line],
    until: Until,
    folder: Path,
) -> None:
    listener = listen(f"ipc://{folder}/master")
    line = dial(listener.endpoint, AGENT)
    line.transmit(b"x")
    assert until(heard(listener, line))[0].user_id == "agent:b"


def test_one_gate_for_a_context(context: transport.Context, gate: zap.Gate) -> None:
    with pytest.raises(ConfigError, match="handler already"):
        zap.Gate(context, {})
    assert gate.alive


def test_the_gate_survives_nonsense(
    gate: zap.Gate,
    context: transport.Context,
    listen: Callable[..., Listener],
    dial: Callable[..., Line],
    until: Until,
) -> None:
    request = context.socket(zmq.REQ)
    request.connect(zap.ENDPOINT)
    for parts in ([b""], [b"1.0"], [b"1.0", b"7", b"posthouse", b"", b"", b"CURVE", b"short"]):
        request.send_multipart(parts)
        assert request.recv_multipart()[2] == b"400"
    listener = listen()
    line = dial(listener.endpoint, AGENT)
    line.transmit(b"still here")
    assert until(heard(listener, line))


KEY = keys.public_bytes(AGENT.public)


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        ([b"1.0", b"1", b"posthouse", b"127.0.0.1", b"", b"CURVE", KEY], b"200"),
        ([b"1.0", b"1", b"other", b"127.0.0.1", b"", b"CURVE", KEY], b"400"),
        ([b"1.0", b"1", b"", b"127.0.0.1", b"", b"CURVE", KEY], b"400"),
        ([b"2.0", b"1", b"posthouse", b"127.0.0.1", b"", b"CURVE", KEY], b"400"),
        ([b"1.0", b"1", b"posthouse", b"127.0.0.1", b"", b"NULL"], b"400"),
        ([b"1.0", b"1", b"posthouse", b"127.0.0.1", b"", b"NULL", KEY], b"400"),
        ([b"1.0", b"1", b"posthouse", b"127.0.0.1", b"", b"PLAIN", b"agent:b", b"pw"], b"400"),
        ([b"1.0", b"1", b"posthouse", b"127.0.0.1", b"", b"CURVE", b""], b"400"),
        ([b"1.0", b"1", b"posthouse", b"127.0.0.1", b"", b"CURVE", KEY[:31]], b"400"),
        ([b"1.0", b"1", b"posthouse", b"127.0.0.1", b"", b"CURVE", KEY + b"\0"], b"400"),
        ([b"1.0", b"1", b"posthouse", b"127.0.0.1", b"", b"CURVE", KEY, b""], b"400"),
        ([], b"400"),
    ],
)
def test_gate_answers(parts: list[bytes], status: bytes) -> None:
    reply = zap.answer(parts, PRINCIPALS)
    assert reply[0] == b"1.0"
    assert reply[2] == status
    assert reply[4] == (f"agent:b {AGENT.public}".encode() if status == b"200" else b"")
    assert len(reply) == 6


def test_nobody_takes_over_a_routing_id(
    gate: zap.Gate, context: transport.Context, listen: Callable[..., Listener], until: Until
) -> None:
    listener = listen()

    def raw(pair: keys.KeyPair) -> zmq.Socket[bytes]:
        socket = context.socket(zmq.DEALER)
        socket.curve_publickey, socket.curve_secretkey = pair.public.encode(), pair.secret.encode()
        socket.curve_serverkey = MASTER.public.encode()
        socket.routing_id = b"wanted"
        socket.connect(listener.endpoint)
        return socket

    owner = raw(AGENT)
    owner.send(b"mine")
    assert until(listener.receive)[0].routing_id == b"wanted"
    thief = raw(DEPLOY)
    monitor = thief.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
    until(lambda: monitor.poll(0))
    thief.send(b"now mine")
    assert listener.send(b"wanted", b"for the owner") == "sent"
    assert owner.recv() == b"for the owner"
    assert thief.poll(100) == 0
    assert listener.receive() == []
    thief.disable_monitor()


# --- addresses ---


@pytest.mark.parametrize(
    ("endpoint", "message"),
    [
        ("ipc://@posthouse", "abstract"),
        ("ipc://relative/path", "absolute path"),
        ("ipc://*", "absolute path"),
        ("ipc:///", "absolute path"),
        ("ipc:///tmp/" + "x" * 108, "at most 107 bytes"),
        ("inproc://posthouse", "must be ipc:///absolute/path or tcp://host:port"),
        ("udp://127.0.0.1:7400", "must be ipc:///absolute/path or tcp://host:port"),
        ("tcp://127.0.0.1", "must be ipc:///absolute/path or tcp://host:port"),
        ("tcp://:7400", "must be ipc:///absolute/path or tcp://host:port"),
        ("/run/posthouse/master", "must be ipc:///absolute/path or tcp://host:port"),
        ("", "must be ipc:///absolute/path or tcp://host:port"),
        ("tcp://127.0.0.1:7400", "TCP needs CURVE keys"),
    ],
)
def test_addresses_that_are_refused(
    context: transport.Context, endpoint: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        open_router(context, endpoint, role="agents", keys=None)
    with pytest.raises(ConfigError, match=message):
        open_dealer(context, endpoint, keys=None, entropy=zeros)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "*", "192.0.2.7", "[::]", "example.org", "[2001:db8::1]"]
)
def test_without_keys_only_loopback(context: transport.Context, host: str) -> None:
    with pytest.raises(ConfigError, match="only a loopback address"):
        open_router(context, f"tcp://{host}:*", role="agents", keys=None, insecure=True)
    with pytest.raises(ConfigError, match="only a loopback address"):
        open_dealer(context, f"tcp://{host}:7400", keys=None, entropy=zeros, insecure=True)


def test_insecure_loopback(
    listen: Callable[..., Listener], dial: Callable[..., Line], until: Until
) -> None:
    listener = listen("tcp://127.0.0.1:*", keys=None, insecure=True)
    line = dial(listener.endpoint, insecure=True)
    line.transmit(b"x")
    (inbound,) = until(heard(listener, line))
    assert (inbound.user_id, inbound.frame) == (None, b"x")


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o707, 0o710 | 0o001, 0o777, 0o720])
def test_a_folder_that_others_can_enter_is_refused(
    context: transport.Context, folder: Path, mode: int
) -> None:
    folder.chmod(mode)
    for start in (
        lambda: open_router(context, f"ipc://{folder}/m", role="agents", keys=None),
        lambda: open_router(
            context, f"ipc://{folder}/m", role="agents", keys=ServerKeys(MASTER.secret)
        ),
        lambda: open_dealer(context, f"ipc://{folder}/m", keys=None, entropy=zeros),
    ):
        with pytest.raises(ConfigError) as refused:
            start()
        for part in (str(folder), f"{mode:04o}", "0700 or 0750"):
            assert part in str(refused.value)
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_somebody_else_is_refused(context: transport.Context, folder: Path) -> None:
    os.chown(folder, 12345, 12345)
    for start in (
        lambda: open_router(context, f"ipc://{folder}/m", role="agents", keys=None),
        lambda: open_dealer(context, f"ipc://{folder}/m", keys=None, entropy=zeros),
    ):
        with pytest.raises(ConfigError, match="belongs to user 12345"):
            start()


def test_a_folder_that_is_a_link_or_missing(context: transport.Context, folder: Path) -> None:
    (folder / "real").mkdir(mode=0o700)
    (folder / "link").symlink_to(folder / "real")
    for name in ("link", "missing"):
        with pytest.raises(ConfigError, match="cannot hold a socket"):
            open_router(context, f"ipc://{folder}/{name}/m", role="agents", keys=None)
    with pytest.raises(ConfigError, match="cannot be reached"):
        open_dealer(context, f"ipc://{folder}/link/m", keys=None, entropy=zeros)
    open_dealer(context, f"ipc://{folder}/missing/m", keys=None, entropy=zeros).close(0)


@pytest.mark.parametrize(("folder_mode", "socket_mode"), [(0o700, 0o600), (0o750, 0o660)])
def test_the_mode_of_a_unix_socket(
    listen: Callable[..., Listener], folder: Path, folder_mode: int, socket_mode: int
) -> None:
    folder.chmod(folder_mode)
    listen(f"ipc://{folder}/master", keys=None)
    assert stat.S_IMODE((folder / "master").stat().st_mode) == socket_mode


def test_a_path_is_not_stolen(
    context: transport.Context, listen: Callable[..., Listener], folder: Path
) -> None:
    endpoint = f"ipc://{folder}/master"
    listener = listen(endpoint, keys=None)
    with pytest.raises(ConfigError, match="another process listens there"):
        open_router(context, endpoint, role="clients", keys=None)
    listener.close()
    listen(endpoint, keys=None)


def test_a_path_left_by_a_killed_process_is_taken_over(
    listen: Callable[..., Listener], dial: Callable[..., Line], until: Until, folder: Path
) -> None:
    endpoint = f"ipc://{folder}/master"
    code = (
        "import sys, time; from posthouse import transport as t;"
        f"l = t.open_router(t.new_context(), {endpoint!r}, role='agents', keys=None);"
        "print('up', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"up\n"
    with pytest.raises(ConfigError, match="another process listens there"):
        listen(endpoint, keys=None)
    child.kill()
    child.wait()
    child.stdout.close()
    assert (folder / "master").exists()
    listener = listen(endpoint, keys=None)
    line = dial(endpoint)
    line.transmit(b"x")
    assert until(heard(listener, line))


def test_a_taken_port_is_an_error(listen: Callable[..., Listener]) -> None:
    taken = listen()
    with pytest.raises(ConfigError, match="cannot be listened on"):
        listen(taken.endpoint)


# --- the listening shell ---


@pytest.fixture
def pair(
    listen: Callable[..., Listener], dial: Callable[..., Line], folder: Path
) -> tuple[Listener, Line]:
    listener = listen(f"ipc://{folder}/master", keys=None)
    return listener, dial(listener.endpoint)


def raw_dealer(context: transport.Context, endpoint: str, rcvhwm: int = 1_000) -> zmq.Socket[bytes]:
    socket = context.socket(zmq.DEALER)
    socket.rcvhwm = rcvhwm
    socket.connect(endpoint)
    return socket


def test_messages_of_a_wrong_number_of_frames(
    context: transport.Context, listen: Callable[..., Listener], folder: Path, until: Until
) -> None:
    listener = listen(f"ipc://{folder}/master", keys=None)
    dealer = raw_dealer(context, listener.endpoint)
    for parts in ([b"good"], [b"", b"delimited"], [b"x"] * 5, [b"x"] * 10_000, [b""], [b"good"]):
        dealer.send_multipart(parts)
    found: list[Inbound] = []
    until(lambda: found.extend(listener.receive()) or len(found) == 6)
    assert [(i.frame, i.malformed) for i in found] == [
        (b"good", ""),
        (b"", "a message of 2 frames"),
        (b"", "a message of 5 frames"),
        (b"", "a message of 10000 frames"),
        (b"", ""),
        (b"good", ""),
    ]
    assert len({i.routing_id for i in found}) == 1


def test_messages_of_a_wrong_number_of_frames_with_keys(
    gate: zap.Gate, context: transport.Context, listen: Callable[..., Listener], until: Until
) -> None:
    listener = listen()
    dealer = open_dealer(context, listener.endpoint, keys=as_client(AGENT), entropy=os.urandom)
    until(lambda: dealer.poll(0, zmq.POLLOUT))
    dealer.send_multipart([b"a", b"b", b"c"])
    dealer.send(b"good")
    found: list[Inbound] = []
    until(lambda: found.extend(listener.receive()) or len(found) == 2)
    assert found[0].malformed == "a message of 3 frames"
    assert found[0].user_id == "agent:b"
    assert found[1][1:] == ("agent:b", b"good", "", AGENT.public)


def test_a_router_that_sends_no_frame_at_all(
    context: transport.Context, listen: Callable[..., Listener], folder: Path, until: Until
) -> None:
    # A REQ peer sends an empty delimiter first; a probing peer sends an empty message at once.
    listener = listen(f"ipc://{folder}/master", keys=None)
    request = context.socket(zmq.REQ)
    request.connect(listener.endpoint)
    request.send(b"hello")
    assert until(listener.receive)[0].malformed == "a message of 2 frames"
    probing = context.socket(zmq.DEALER)
    probing.setsockopt(zmq.PROBE_ROUTER, 1)
    probing.connect(listener.endpoint)
    (inbound,) = until(listener.receive)
    assert (inbound.frame, inbound.malformed) == (b"", "")  # no message of the catalogue is empty


def test_receive_takes_at_most_so_many(pair: tuple[Listener, Line], until: Until) -> None:
    listener, line = pair
    for number in range(7):
        line.transmit(b"%d" % number)
    until(lambda: line.receive() == [] and line.pending == 0)
    found: list[bytes] = []
    until(
        lambda: (
            (got := listener.receive(3)) is not None
            and len(got) <= 3
            and not found.extend(i.frame for i in got)
            and len(found) == 7
        )
    )
    assert found == [b"%d" % number for number in range(7)]


def test_send_outcomes(
    context: transport.Context, listen: Callable[..., Listener], folder: Path, until: Until
) -> None:
    listener = listen(f"ipc://{folder}/master", keys=None)
    assert listener.send(b"nobody", b"x") == "gone"
    dealer = raw_dealer(context, listener.endpoint)
    dealer.send(b"here")
    (inbound,) = until(listener.receive)
    # The peer does not read: its queue, the socket's buffers and our own queue fill up.
    frame = b"x" * 20_000
    sent = 0
    while (outcome := listener.send(inbound.routing_id, frame)) == "sent":
        sent += 1
        assert sent < 100_000
    assert outcome == "full"
    # Nothing of what was taken is lost, and order holds; then there is room again.
    for _ in range(sent):
        assert dealer.recv() == frame
    assert until(lambda: listener.send(inbound.routing_id, b"last") == "sent")
    assert dealer.recv() == b"last"
    dealer.close(0)
    assert until(lambda: listener.send(inbound.routing_id, b"x") == "gone")


def test_a_whole_outbox_fits_into_the_queue_of_a_peer_that_is_busy(
    context: transport.Context, listen: Callable[..., Listener], folder: Path, until: Until
) -> None:
    """A program that watches 600 workers at once is answered 1,200 times before it reads."""
    listener = listen(f"ipc://{folder}/master", keys=None)
    dealer = raw_dealer(context, listener.endpoint, rcvhwm=1)
    dealer.send(b"here")
    (inbound,) = until(listener.receive)
    count = limits.outbox_messages_max * 3 // 2
    frame = bytes(limits.outbox_bytes_max // limits.outbox_messages_max)
    assert [listener.send(inbound.routing_id, frame) for _ in range(count)] == ["sent"] * count


def test_a_peer_that_sends_too_large_a_frame_is_cut_off(
    pair: tuple[Listener, Line], until: Until
) -> None:
    listener, line = pair
    line.transmit(b"x" * limits.agent_frame_bytes_max)
    assert len(until(heard(listener, line))[0].frame) == limits.agent_frame_bytes_max
    line.transmit(b"x" * (limits.agent_frame_bytes_max + 1))
    assert until(line.trouble) == Trouble("disconnected")
    assert listener.receive() == []


def test_a_listener_survives_what_is_no_zeromq(
    listen: Callable[..., Listener], gate: zap.Gate, dial: Callable[..., Line], until: Until
) -> None:
    listener = listen()
    port = int(listener.endpoint.rpartition(":")[2])
    for garbage in (
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
        b"\xff" * 64,
        b"",
    ):
        with plain_socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(garbage)
    line = dial(listener.endpoint, AGENT)
    line.transmit(b"x")
    assert until(heard(listener, line))[0].frame == b"x"


# --- the dialling shell ---


def test_frames_wait_for_the_connection(
    listen: Callable[..., Listener], dial: Callable[..., Line], folder: Path, until: Until
) -> None:
    line = dial(f"ipc://{folder}/master")
    for number in range(5):
        line.transmit(b"%d" % number)
    assert line.pending == 5
    listener = listen(line.endpoint, keys=None)
    found: list[Inbound] = []
    until(lambda: found.extend(heard(listener, line)()) or len(found) == 5)
    assert [i.frame for i in found] == [b"0", b"1", b"2", b"3", b"4"]
    assert line.pending == 0


def test_what_waited_is_gone_after_a_redial(
    listen: Callable[..., Listener], dial: Callable[..., Line], folder: Path, until: Until
) -> None:
    line = dial(f"ipc://{folder}/master")
    line.transmit(b"for an old master")
    line.redial()
    line.transmit(b"for the new one")
    listener = listen(line.endpoint, keys=None)
    assert [i.frame for i in until(heard(listener, line))] == [b"for the new one"]


def test_what_waits_is_bounded_by_count(dial: Callable[..., Line], folder: Path) -> None:
    line = dial(f"ipc://{folder}/master")
    for _ in range(limits.line_frames_max + 10):
        line.transmit(b"x")
    assert (line.pending, line.dropped) == (limits.line_frames_max, 10)


def test_what_waits_is_bounded_by_bytes(dial: Callable[..., Line], folder: Path) -> None:
    line = dial(f"ipc://{folder}/master")
    half = bytes(limits.line_bytes_max // 2)
    for _ in range(3):
        line.transmit(half)
    line.transmit(b"x")
    assert (line.pending, line.dropped) == (2, 2)


def test_every_redial_is_another_peer(pair: tuple[Listener, Line], until: Until) -> None:
    listener, line = pair
    seen = set()
    for _ in range(3):
        line.redial()
        line.transmit(b"x")
        seen.add(until(heard(listener, line))[0].routing_id)
    assert len(seen) == 3


def test_a_line_wakes_the_poller(pair: tuple[Listener, Line], until: Until) -> None:
    listener, line = pair
    poller = zmq.Poller()
    line.watch(poller)

    def round_trip() -> None:
        line.transmit(b"ping")
        found: list[bytes] = []

        def step() -> bool:
            poller.poll(20)
            found.extend(line.receive())
            for inbound in listener.receive():
                listener.send(inbound.routing_id, b"pong")
            return found == [b"pong"]

        until(step)
        # Nothing waits to be written: a poll sleeps instead of spinning on POLLOUT.
        assert poller.poll(20) == []

    round_trip()
    line.redial()
    round_trip()
    listener.close()
    assert until(lambda: poller.poll(20) and line.trouble()) == Trouble("disconnected")
    line.close()
    assert poller.sockets == []


def test_a_master_that_sends_several_parts(pair: tuple[Listener, Line], until: Until) -> None:
    listener, line = pair
    line.transmit(b"x")
    (inbound,) = until(heard(listener, line))
    listener.socket.send_multipart([inbound.routing_id, b"a", b"b"])
    listener.send(inbound.routing_id, b"good")
    found: list[bytes] = []
    until(lambda: found.extend(line.receive()) or len(found) == 2)
    assert found == [b"", b"good"]  # the empty frame is no message: the session ends


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_redialling_leaks_nothing(pair: tuple[Listener, Line], until: Until) -> None:
    listener, line = pair
    poller = zmq.Poller()
    line.watch(poller)

    def round_trip() -> None:
        line.redial()
        line.transmit(b"x")
        until(heard(listener, line))

    round_trip()
    before = descriptors()
    for _ in range(50):
        round_trip()
    # Closed sockets go when their reaper comes round.
    until(lambda: descriptors() <= before + 5)
    assert len(poller.sockets) == 2


def test_a_line_waits_for_somebody_to_listen_and_says_so(
    listen: Callable[..., Listener], folder: Path, until: Until
) -> None:
    line = Line(f"ipc://{folder}/master")
    line.redial()
    line.transmit(b"hello")
    for _ in range(2):
        assert until(line.trouble) == Trouble("nobody listens there", retried=True)
    listener = listen(f"ipc://{folder}/master", keys=None)
    (inbound,) = until(heard(listener, line))
    assert inbound.frame == b"hello"
    while line.trouble():
        pass
    listener.close()
    assert until(line.trouble) == Trouble("disconnected")
    line.close()


def test_the_last_words_leave_before_a_line_closes(
    listen: Callable[..., Listener], folder: Path, until: Until
) -> None:
    listener = listen(f"ipc://{folder}/master", keys=None)
    line = Line(listener.endpoint)
    line.redial()
    line.transmit(b"hello")
    until(heard(listener, line))
    line.transmit(b"goodbye")
    line.close(goodbye_ms=5_000)
    assert until(listener.receive)[0].frame == b"goodbye"


def test_a_half_open_handshake_is_given_up(
    gate: zap.Gate, listen: Callable[..., Listener], until: Until
) -> None:
    # Without a time limit anybody could hold a descriptor for ever without a key.
    port = int(listen().endpoint.rpartition(":")[2])
    with plain_socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"\xff\0\0\0\0\0\0\0\x01\x7f")  # the beginning of a greeting
        connection.settimeout(20.0)
        with contextlib.suppress(ConnectionResetError):
            while connection.recv(1024):
                pass  # the master's own greeting; then the end


def test_a_line_that_never_dialled(folder: Path) -> None:
    line = Line(f"ipc://{folder}/master")
    line.transmit(b"x")
    assert (line.receive(), line.trouble(), line.pending, line.socket) == ([], None, 0, None)
    line.close()
