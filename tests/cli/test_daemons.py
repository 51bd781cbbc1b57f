"""`posthouse master` and `posthouse agent`: from a file alone, and what they refuse."""

import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from posthouse_testing import sweep
from posthouse_testing.cluster import LocalCluster, command

PATIENCE_S = 20.0


@pytest.fixture
def folder():
    path = Path(tempfile.mkdtemp(prefix="ph", dir="/tmp"))
    guard = sweep.start_guard(path)
    yield path
    guard.stdin.close()
    guard.wait()
    shutil.rmtree(path, ignore_errors=True)


def refused(*arguments, status, **options):
    ran = subprocess.run(
        [*command(), *arguments], capture_output=True, text=True, timeout=PATIENCE_S, **options
    )
    assert ran.returncode == status, ran
    assert "Traceback" not in ran.stderr
    return ran.stderr


def test_from_files_alone(folder):
    """Flags are only shorter: everything may stand in the files."""
    (folder / "master.toml").write_text(
        f"""
        state_dir = "{folder}/master"
        listen_agents = "ipc://{folder}/agents.sock"
        listen_clients = "ipc://{folder}/clients.sock"
        """
    )
    (folder / "agent.toml").write_text(
        f"""
        host = "h1"
        master = "ipc://{folder}/agents.sock"
        runtime_dir = "{folder}/hosts/h1"
        log_dir = "{folder}/logs/h1"
        labels = ["disk=ssd"]
        modules = ["jobs"]
        [runtime.default]
        path = ["{Path(__file__).parent / "workers"}"]
        """
    )
    (folder / "hosts").mkdir(mode=0o700)
    (folder / "logs").mkdir(mode=0o700)
    daemons = [
        subprocess.Popen(
            [*command(), kind, "--config", str(folder / f"{kind}.toml")],
            stderr=subprocess.DEVNULL,
        )
        for kind in ("master", "agent")
    ]
    try:
        at = ["--master", f"ipc://{folder}/clients.sock"]
        deadline_s = time.monotonic() + PATIENCE_S
        hosts = ""
        while "h1\treachable" not in hosts:
            assert time.monotonic() < deadline_s, hosts
            hosts = subprocess.run(
                [*command(), *at, "hosts"], capture_output=True, text=True, check=False
            ).stdout
        assert "disk=ssd" in hosts
        run = [*command(), *at, "run", "jobs:leave", "--arg", "0", "--label", "disk=ssd"]
        ran = subprocess.run(run, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
        assert "exited with code 0" in ran.stdout
        told = refused(
            *at, "run", "os:getpid", "--name", "other", "--wait", "--timeout", "1", status=5
        )
        assert "goes on" in told
        why = refused(*at, "pid", "other", status=3)
        assert "os" in why and "h1" in why
    finally:
        for daemon in daemons:
            daemon.terminate()
            assert daemon.wait(PATIENCE_S) == 0


def test_a_typo_in_a_file_is_told_with_its_line_and_the_nearest_key(folder):
    file = folder / "master.toml"
    file.write_text("\nstate_dri = '/x'\n")
    told = refused("master", "--config", str(file), status=2)
    assert f"{file}:2" in told and "state_dir" in told
    assert "no-such" in refused("agent", "--config", f"{folder}/no-such.toml", status=2)


def test_a_second_master_and_a_second_agent_are_refused():
    with LocalCluster(["a"]) as cluster:
        told = refused("master", "--dir", str(cluster.dir), status=1)
        assert str(cluster.master.pid) in told or "another" in told
        told = refused("agent", "--dir", str(cluster.dir), "--host", "a", status=1)
        assert str(cluster.agent("a").pid) in told
        assert cluster.run("hosts").stdout.startswith("a\treachable")


def test_a_folder_that_others_may_write_is_refused(folder):
    folder.chmod(0o777)
    told = refused("master", "--dir", str(folder), status=2)
    folder.chmod(0o700)
    assert str(folder) in told and "chmod" in told


def test_a_path_too_long_for_a_socket_is_refused(tmp_path):
    told = refused("master", "--dir", str(tmp_path / ("x" * 100)), status=2)
    assert "shorter" in told
