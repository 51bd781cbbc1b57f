"""Keys from the command line, and a cluster over TCP that lets only their holders in."""

import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import posthouse
from posthouse import BackgroundWorker, keys
from posthouse.errors import ConfigError, NotPermitted, TimedOut, Unreachable
from posthouse.settings import ClientSettings
from posthouse_cli.main import main
from posthouse_testing.cluster import Daemon
from posthouse_testing.sweep import sweep


def test_keygen_writes_two_files_and_never_over_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["keygen", "agent:b"]) == 0
    said = capsys.readouterr()
    pair = keys.load_pair(str(tmp_path / "agent-b.key"))
    assert said.out == f"{pair.public}\n"
    assert pair.secret not in said.err
    assert (tmp_path / "agent-b.key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "agent-b.key.pub").read_text() == f'"agent:b" = "{pair.public}"\n'
    assert main(["keygen", "agent:b"]) != 0
    assert "agent-b.key" in capsys.readouterr().err
    assert main(["keygen", "master:main", "-o", "m.key"]) == 0
    assert (tmp_path / "m.key.pub").read_text().startswith('master_key = "')


@pytest.mark.parametrize("principal", ["b", "root:b", "agent:", "agent:../b", "agent:b c"])
def test_a_bad_principal_is_refused_by_rule(
    principal: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["keygen", principal]) == 2
    assert "role:name" in capsys.readouterr().err


def free_ports(count: int) -> list[int]:
    """Ports that nobody has. Another process may take one first; then the master says so."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="ph", dir="/tmp"))
    try:
        yield made
    finally:
        assert sweep(made)
        shutil.rmtree(made)


def test_a_cluster_over_tcp_lets_in_who_has_a_key(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    agents, clients = (f"tcp://127.0.0.1:{port}" for port in free_ports(2))
    for principal in ("master:main", "agent:b", "client:deploy", "viewer:graph", "client:stranger"):
        assert main(["keygen", principal, "-o", str(folder / f"{principal[:9]}.key")]) == 0
    known = [
        (folder / f"{name}.key.pub").read_text() for name in ("agent:b", "client:de", "viewer:gr")
    ]
    (folder / "principals.toml").write_text("[principals]\n" + "".join(known))
    master_key = (folder / "master:ma.key.pub").read_text()
    (folder / "master.toml").write_text(
        f'state_dir = "{folder}/master"\nlisten_agents = "{agents}"\nlisten_clients = "{clients}"\n'
        f'key_file = "{folder}/master:ma.key"\nprincipals_file = "{folder}/principals.toml"\n'
    )
    (folder / "agent.toml").write_text(
        f'host = "b"\nmaster = "{agents}"\nruntime_dir = "{folder}/hosts/b"\n'
        f'log_dir = "{folder}/log"\nkey_file = "{folder}/agent:b.key"\nallow_exec = true\n'
        + master_key
    )
    capsys.readouterr()
    daemons = [
        Daemon(verb, [sys.executable, "-m", "posthouse_cli", verb, "--config", str(file)],
               folder / f"{verb}.log", os.environ)
        for verb, file in (("master", folder / "master.toml"), ("agent", folder / "agent.toml"))
    ]  # fmt: skip
    try:
        for daemon in daemons:
            daemon.start()
        public = master_key.split(chr(34))[1]

        def settings(name: str) -> ClientSettings:
            key_file = str(folder / f"{name}.key")
            return ClientSettings(master=clients, key_file=key_file, master_key=public)

        with posthouse.connect(settings=settings("client:de"), timeout=30) as cluster:
            assert cluster.principal == "client:deploy"
            events = cluster.events(after=posthouse.Cursor(cluster.timeline, 0), timeout=30)
            assert next(e for e in events if e.kind is posthouse.EventKind.HOST_UP).host == "b"
            record = BackgroundWorker(name="w", main="posthouse.exec", main_arg=["sleep", "60"])
            handle = cluster.register(record)
            assert handle.wait_for_startup(timeout=30).host == "b"
            with posthouse.connect(settings=settings("viewer:gr"), timeout=30) as viewer:
                assert viewer.handle("w").status().pid == handle.pid()
                with pytest.raises(NotPermitted):
                    viewer.handle("w").terminate()
            handle.terminate()
            assert handle.wait_until_unregistered(timeout=30).final
        with pytest.raises(Unreachable):
            posthouse.connect(settings=settings("client:st"), timeout=1.5)
        with pytest.raises(ConfigError, match="TCP needs CURVE keys"):
            posthouse.connect(clients, timeout=1.5)
    finally:
        for daemon in reversed(daemons):
            daemon.close()


def test_hup_lets_in_late_keys_and_puts_out_revoked_ones(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """(The CURVE handshake tells nobody why it fails: to them the master is not reachable.)

    One principal changes its key, another loses it, a third one comes; a file with an error
    changes nothing. The master goes on, and so does who keeps his key."""
    agents, clients = (f"tcp://127.0.0.1:{port}" for port in free_ports(2))
    names = (
        "master:main",
        "client:stays",
        "client:goes",
        "client:old",
        "client:new",
        "client:late",
    )
    for name in names:
        assert main(["keygen", name, "-o", str(folder / f"{name[7:]}.key")]) == 0
    public = {name: keys.load_pair(str(folder / f"{name[7:]}.key")).public for name in names}
    capsys.readouterr()

    def principals(**given: str) -> None:
        lines = [f'"client:{who}" = "{public["client:" + key]}"' for who, key in given.items()]
        (folder / "principals.toml").write_text("[principals]\n" + "\n".join(lines) + "\n")

    principals(stays="stays", goes="goes", turns="old")
    (folder / "master.toml").write_text(
        f'state_dir = "{folder}/master"\nlisten_agents = "{agents}"\nlisten_clients = "{clients}"\n'
        f'key_file = "{folder}/main.key"\nprincipals_file = "{folder}/principals.toml"\n'
    )

    def connect(name: str, timeout: float = 30) -> posthouse.Cluster:
        key_file = str(folder / f"{name}.key")
        settings = ClientSettings(
            master=clients, key_file=key_file, master_key=public["master:main"]
        )
        return posthouse.connect(settings=settings, timeout=timeout)

    def told(words: str) -> None:
        """HUP, and the line of its log that answers it."""
        before = len(master.log.read_bytes())
        master.signal(signal.SIGHUP)
        deadline_s = time.monotonic() + 30
        while words.encode() not in master.log.read_bytes()[before:]:
            assert time.monotonic() < deadline_s, master.last_words()
            time.sleep(0.01)

    argv = [sys.executable, "-m", "posthouse_cli", "master", "--config", f"{folder}/master.toml"]
    master = Daemon("master", argv, folder / "master.log", os.environ)
    try:
        master.start()
        with connect("stays") as stays, connect("goes") as goes, connect("old") as old:
            assert old.principal == "client:turns"
            (folder / "principals.toml").write_text("[principals]\nclient = 1\n")
            told("principals.kept")
            assert goes.workers(timeout=30) == []

            principals(stays="stays", turns="new", late="late")
            told("principals.read")
            for lost in (goes, old):
                # What is asked before the client has seen its connection end is never answered.
                with pytest.raises((Unreachable, TimedOut)):
                    lost.workers(timeout=1.5)
                with pytest.raises(Unreachable):
                    lost.workers(timeout=1.5)
            assert stays.workers(timeout=30) == []
            with connect("new") as new, connect("late") as late:
                assert (new.principal, late.principal) == ("client:turns", "client:late")

            principals(stays="stays", turns="old")
            told("principals.read")
            with connect("old") as again:
                assert again.principal == "client:turns"
            assert stays.workers(timeout=30) == []
    finally:
        master.close()


FOREIGN = {
    # what is foreign: (key of the client, whose public key it takes for the master's)
    "its own key": ("stranger", "main"),
    "the master's key": ("known", "stranger"),
    "the master's key, which is its own": ("known", "known"),
}


def test_a_good_key_that_nobody_knows_leads_nowhere_and_says_so(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client is told that no master answers (4), an agent's log what libzmq knows of it. No
    secret is shown, and the master lets the others in as before."""
    agents, clients = (f"tcp://127.0.0.1:{port}" for port in free_ports(2))
    who = {"main": "master:main", "known": "client:known", "stranger": "agent:b"}
    for name, principal in who.items():
        assert main(["keygen", principal, "-o", str(folder / f"{name}.key")]) == 0
    pairs = {name: keys.load_pair(str(folder / f"{name}.key")) for name in who}
    (folder / "principals.toml").write_text(
        f'[principals]\n"client:known" = "{pairs["known"].public}"\n'
    )
    env = {
        **os.environ,
        "POSTHOUSE_KEY_FILE": f"{folder}/main.key",
        "POSTHOUSE_PRINCIPALS_FILE": f"{folder}/principals.toml",
    }
    argv = [sys.executable, "-m", "posthouse_cli", "master", "--dir", str(folder)]
    argv += ["--listen-agents", agents, "--listen-clients", clients]
    master = Daemon("master", argv, folder / "master.log", env)
    argv = [sys.executable, "-m", "posthouse_cli", "agent", "--dir", str(folder), "--host", "b"]
    env = {
        **os.environ,
        "POSTHOUSE_KEY_FILE": f"{folder}/stranger.key",
        "POSTHOUSE_MASTER_KEY": pairs["main"].public,
    }
    agent = Daemon("agent", [*argv, "--master", agents], folder / "agent.log", env)
    monkeypatch.setenv("POSTHOUSE_MASTER", clients)

    def ps(name: str, server: str, timeout: str) -> int:
        monkeypatch.setenv("POSTHOUSE_KEY_FILE", f"{folder}/{name}.key")
        monkeypatch.setenv("POSTHOUSE_MASTER_KEY", pairs[server].public)
        return main(["ps", "--timeout", timeout])

    try:
        master.start()
        agent.start()
        assert ps("known", "main", "30s") == 0
        capsys.readouterr()
        for name, server in FOREIGN.values():
            assert ps(name, server, "1s") == 4
            said = capsys.readouterr()
            assert said.out == "" and clients in said.err
            assert not any(pair.secret in said.err for pair in pairs.values())
        deadline_s = time.monotonic() + 30
        while "the master does not accept our key" not in agent.log.read_text():
            assert agent.alive and time.monotonic() < deadline_s, agent.last_words()
            time.sleep(0.02)
        assert ps("known", "main", "30s") == 0
    finally:
        agent.close()
        master.close()
