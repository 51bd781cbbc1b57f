"""The least that a start can cost here: bare pyzmq, one SQLite commit, one fork, and nothing else.

Owns: the four processes client (the caller), master, agent and warden of a system without any
features. No checks, no logs, no restarts: a floor, and no design.

    client --DEALER/ROUTER--> master (commit, FULL) --> agent --SEQPACKET--> warden (fork)
    client <-- registered --'  client <-- started, pid <-- agent <------------'
"""

import gc
import os
import socket
import sqlite3
import struct
import time
from multiprocessing import get_context
from pathlib import Path

import zmq

_SPEC = b"s" * 200
_ROW = b"r" * 200


def database(folder: str) -> sqlite3.Connection:
    """As the master's: WAL, FULL."""
    made = sqlite3.connect(f"{folder}/floor.sqlite", isolation_level=None)
    made.execute("PRAGMA locking_mode = EXCLUSIVE")
    made.execute("PRAGMA journal_mode = WAL")
    made.execute("PRAGMA synchronous = FULL")
    made.execute("CREATE TABLE rows (number INTEGER PRIMARY KEY, body BLOB)")
    return made


def commit(made: sqlite3.Connection, rows: int) -> None:
    made.execute("BEGIN IMMEDIATE")
    for _ in range(rows):
        made.execute("INSERT INTO rows (body) VALUES (?)", (_ROW,))
    made.execute("COMMIT")


def _master(folder: str) -> None:
    made = database(folder)
    context = zmq.Context()
    clients = context.socket(zmq.ROUTER)
    clients.bind(f"ipc://{folder}/floor-clients")
    agents = context.socket(zmq.ROUTER)
    agents.bind(f"ipc://{folder}/floor-agents")
    poller = zmq.Poller()
    poller.register(clients, zmq.POLLIN)
    poller.register(agents, zmq.POLLIN)
    agent, _ = agents.recv_multipart()
    client = b""
    while True:
        ready = dict(poller.poll())
        if clients in ready:
            client, frame = clients.recv_multipart()
            if not frame:
                agents.send_multipart((agent, b""))
                time.sleep(0.2)
                context.destroy(0)
                return
            if frame[:1] == b"e":
                clients.send_multipart((client, frame))
                continue
            commit(made, 4)
            agents.send_multipart((agent, frame))
            clients.send_multipart((client, b"registered"))
        if agents in ready:
            _, frame = agents.recv_multipart()
            clients.send_multipart((client, frame))


def _agent(folder: str, warden: socket.socket) -> None:
    context = zmq.Context()
    master = context.socket(zmq.DEALER)
    master.connect(f"ipc://{folder}/floor-agents")
    master.send(b"hello")
    poller = zmq.Poller()
    poller.register(master, zmq.POLLIN)
    poller.register(warden.fileno(), zmq.POLLIN)
    while True:
        ready = dict(poller.poll())
        if master in ready:
            frame = master.recv()
            warden.send(frame or b"end")
            if not frame:
                break
        if warden.fileno() in ready:
            master.send(warden.recv(4096))
    context.destroy(0)


def _load_warden() -> None:
    """What posthouse's warden has loaded when it forks."""
    import posthouse_agent.warden  # noqa: F401

    gc.collect()
    gc.freeze()


def _child(fifo: str, number: int) -> None:
    entered_s = time.monotonic()
    fd = os.open(fifo, os.O_WRONLY)
    os.write(fd, struct.pack("=Qd", number, entered_s))
    os._exit(0)


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _warden(folder: str, agent: socket.socket) -> None:
    """`e`: echo. `f`: fork, say pid. Numbers follow."""
    _load_warden()
    fifo = f"{folder}/fifo"
    agent.send(b"ready")
    while True:
        data = agent.recv(4096)
        if data == b"end":
            return
        if data[:1] == b"e":
            agent.send(data)
            continue
        (number,) = struct.unpack_from("=Q", data, 1)
        begun_s = time.monotonic()
        pid = os.fork()
        if pid == 0:
            _child(fifo, number)
        agent.send(struct.pack("=Qdd", pid, begun_s, time.monotonic()))
        _reap()


class Floor:
    """The processes, and their costs in seconds. One thread."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        own = Path(folder) / "own"
        own.mkdir()
        self._database = database(str(own))
        spawn = get_context("spawn")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._direct, direct = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._processes = [
            spawn.Process(target=_warden, args=(folder, direct)),
            spawn.Process(target=_warden, args=(folder, theirs)),
            spawn.Process(target=_master, args=(folder,)),
            spawn.Process(target=_agent, args=(folder, ours)),
        ]
        for process in self._processes:
            process.start()
        assert self._direct.recv(64) == b"ready"
        self._context = zmq.Context()
        self._client = self._context.socket(zmq.DEALER)
        self._client.connect(f"ipc://{folder}/floor-clients")
        for end in (ours, theirs, direct):
            end.close()
        time.sleep(1.0)  # until the agent has said hello

    def round_trip(self) -> float:
        begun_s = time.monotonic()
        self._client.send(b"e" + _SPEC)
        self._client.recv()
        return time.monotonic() - begun_s

    def packets(self) -> float:
        begun_s = time.monotonic()
        self._direct.send(b"e" + _SPEC)
        self._direct.recv(4096)
        return time.monotonic() - begun_s

    def commit(self) -> float:
        begun_s = time.monotonic()
        commit(self._database, 4)
        return time.monotonic() - begun_s

    def fork(self, number: int) -> tuple[float, float]:
        """When the fork began; how long until it had returned."""
        self._direct.send(b"f" + struct.pack("=Q", number))
        _, begun_s, ended_s = struct.unpack("=Qdd", self._direct.recv(64))
        return begun_s, ended_s - begun_s

    def start(self, number: int) -> tuple[float, float, float]:
        """The whole chain: when it began; how long until registered, and until started."""
        begun_s = time.monotonic()
        self._client.send(b"f" + struct.pack("=Q", number) + _SPEC)
        assert self._client.recv() == b"registered"
        registered_s = time.monotonic() - begun_s
        self._client.recv()
        return begun_s, registered_s, time.monotonic() - begun_s

    def close(self) -> None:
        self._client.send(b"")
        self._direct.send(b"end")
        for process in self._processes:
            process.join(5)
            if process.is_alive():
                process.kill()
        self._context.destroy(0)
