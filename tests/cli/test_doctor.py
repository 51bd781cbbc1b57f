"""`posthouse doctor`: findings with a verdict each, and an exit status that follows from them."""

import ctypes
import errno
import json
import os
import re
import resource
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import zmq

from posthouse import keys, limits
from posthouse.settings import MasterSettings
from posthouse_agent import cgroups
from posthouse_cli import health


@pytest.fixture
def examined(bare, tmp_path):
    """The findings by check, where everything of ours is in a folder of the test's."""

    def read(*kinds, status=0, **variables):
        places = {
            "POSTHOUSE_DIR": f"{tmp_path}/run",
            "POSTHOUSE_STATE_DIR": f"{tmp_path}/state",
            "POSTHOUSE_LOG_DIR": f"{tmp_path}/logs",
            "POSTHOUSE_HOST": "b",
        }
        ran = bare("doctor", *kinds, "--json", status=status, **(places | variables))
        found = {}
        for row in map(json.loads, ran.stdout.splitlines()):
            assert tuple(row) == ("check", "verdict", "what", "hint")
            assert row["verdict"] in ("ok", "warn", "bad") and row["what"]
            found[row["check"]] = row
        return found

    return read


def test_a_good_machine_has_nothing_bad(examined, tmp_path):
    found = examined()
    assert {"python", "libzmq", "clock", "fences", "cgroups"} <= set(found)
    assert {"master.descriptors", "master.worst_cases", "agent.processes"} <= set(found)
    assert "CURVE" in found["libzmq"]["what"]
    assert not list(tmp_path.iterdir()), "it made something"


def test_for_people_it_sums_up(bare, tmp_path):
    ran = bare("doctor", "client", POSTHOUSE_DIR=str(tmp_path))
    assert "\tlibzmq\t" in ran.stdout
    assert "0 bad" in ran.stderr
    quiet = bare("doctor", "client", "-q", POSTHOUSE_DIR=str(tmp_path))
    assert "\tlibzmq\t" not in quiet.stdout
    assert "warn\tclient.master" in quiet.stdout


def test_a_key_that_others_may_read_is_bad(examined, tmp_path):
    file = tmp_path / "m.key"
    keys.write_pair(str(file), keys.generate(), "master:main")
    good = examined("master", POSTHOUSE_KEY_FILE=str(file))
    assert good["master.key_file"]["verdict"] == "ok"
    file.chmod(0o644)
    bad = examined("master", status=1, POSTHOUSE_KEY_FILE=str(file))["master.key_file"]
    assert bad["verdict"] == "bad" and "0644" in bad["what"] and bad["hint"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: (path.mkdir(), path.chmod(0o755)), "has mode 0755, wider than 0700"),
        (lambda path: path.write_text(""), "is no folder"),
        (lambda path: path.symlink_to("/"), "is no folder"),
    ],
)
def test_a_folder_that_is_not_ours_alone_is_bad(examined, tmp_path, make, words):
    make(tmp_path / "state")
    found = examined("master", status=1)["master.state_dir"]
    assert found["verdict"] == "bad" and words in found["what"]


def test_few_descriptors_are_warned_of(examined, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = examined("agent", POSTHOUSE_MAX_WORKER_PROCESSES=str(hard))
    told = found["agent.descriptors"]
    assert told["verdict"] == "warn" and str(2 * hard)[:2] in told["what"]
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (soft, hard)


def test_tcp_without_a_key_is_bad(examined, tmp_path):
    there = {"POSTHOUSE_LISTEN_AGENTS": "tcp://0.0.0.0:7000"}
    assert examined("master", status=1, **there)["master.keys"]["verdict"] == "bad"


def test_a_file_with_a_typo_is_a_finding_not_an_end(examined, tmp_path):
    file = tmp_path / "master.toml"
    file.write_text("leese = 1\n")
    found = examined("master", status=1, POSTHOUSE_CONFIG=str(tmp_path))
    assert f"{file}:1: unknown key 'leese'" in found["master.config"]["what"]
    assert found["libzmq"]["verdict"] == "ok"


def test_a_runtime_that_is_not_there_is_bad(examined, tmp_path):
    python = f"{tmp_path}/none/python"
    found = examined("agent", status=1, POSTHOUSE_RUNTIME__OLD__PYTHON=python)
    assert found["agent.runtime.old"]["verdict"] == "bad"
    assert os.path.exists(python) is False


def test_unknown_kind_is_wrong_usage(bare):
    assert "'hosts' is none of" in bare("doctor", "hosts", status=2).stderr


# --- each check, failing ---


def verdict(kinds, **checks):
    """What one check finds where the machine is another one than this."""
    found = {one.check: one for one in health.examine(kinds)}
    return found[checks["of"]]


CLOCKS = {
    5: ("warn", "not synchronised"),
    0: ("ok", "synchronised"),
    None: ("ok", "cannot be asked"),
}


@pytest.mark.parametrize("state", CLOCKS)
def test_the_clock_by_the_kernels_word(monkeypatch, state):
    kernel = SimpleNamespace(adjtimex=lambda _: state) if state is not None else object()
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: kernel)
    word, words = CLOCKS[state]
    found = verdict(("client",), of="clock")
    assert found.verdict == word and words in found.what


def test_a_clock_of_before_posthouse_is_bad(monkeypatch):
    monkeypatch.setattr(health.time, "time", lambda: 0.0)
    assert verdict(("client",), of="clock").verdict == "bad"


def test_an_old_python_and_an_old_libzmq_are_bad(monkeypatch):
    monkeypatch.setattr(health.sys, "version_info", (3, 10))
    assert verdict(("client",), of="python").verdict == "bad"
    monkeypatch.setattr(zmq, "zmq_version_info", lambda: (4, 2, 5))
    assert verdict(("client",), of="libzmq").verdict == "bad"
    monkeypatch.setattr(zmq, "zmq_version_info", lambda: (4, 3, 5))
    monkeypatch.setattr(zmq, "has", lambda _: False)
    found = verdict(("client",), of="libzmq")
    assert found.verdict == "warn" and "no CURVE" in found.what
    monkeypatch.setitem(sys.modules, "zmq", None)
    assert verdict(("client",), of="libzmq").verdict == "bad"


def test_fences_need_linux_and_its_pidfd(monkeypatch):
    def none(_pid):
        raise OSError(errno.ENOSYS, "none")

    monkeypatch.setattr(os, "pidfd_open", none)
    found = verdict(("agent",), of="fences")
    assert found.verdict == "bad" and "ENOSYS" in found.what and found.hint
    monkeypatch.setattr(health.sys, "platform", "darwin")
    assert "no fences" in verdict(("agent",), of="fences").what


@pytest.mark.parametrize(("own", "words"), [(None, "no cgroup"), ("/proc", "may not be written")])
def test_without_a_cgroup_of_its_own_it_warns(monkeypatch, own, words):
    monkeypatch.setattr(cgroups, "own_folder", lambda _: own)
    monkeypatch.setattr(os, "access", lambda *_: False)
    found = verdict(("agent",), of="cgroups")
    assert found.verdict == "warn" and words in found.what


def test_few_processes_and_a_full_disk(examined, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (5, 5))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1))
    found = examined(status=1)
    assert found["agent.processes"]["verdict"] == "warn"
    assert found["master.descriptors"]["verdict"] == "warn"
    assert found["master.disk"]["verdict"] == found["agent.disk"]["verdict"] == "bad"


def test_a_folder_of_somebody_else_and_one_that_cannot_be_made(examined, tmp_path, monkeypatch):
    (tmp_path / "state").mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    found = examined("master", status=1)["master.state_dir"]
    assert found["verdict"] == "bad" and "this one is 4711" in found["what"]
    monkeypatch.setattr(os, "access", lambda *_: False)
    (tmp_path / "state").rmdir()
    assert "may not be written" in examined("master", status=1)["master.state_dir"]["what"]


def test_what_an_agent_may_run_and_where_a_client_goes(examined, tmp_path):
    found = examined("agent")
    assert found["agent.modules"]["verdict"] == "warn"
    path = f"{tmp_path}/none"
    there = {"POSTHOUSE_MODULES": "acme.*", "POSTHOUSE_RUNTIME__DEFAULT__PATH": path}
    found = examined("agent", **there)
    assert "agent.modules" not in found
    assert found["agent.runtime.default"]["what"] == f"{path} is no folder"
    assert examined("client")["client.master"]["verdict"] == "warn"
    bad = examined("client", status=1, POSTHOUSE_MASTER="tcp://10.0.0.1:1")
    assert bad["client.keys"]["verdict"] == "bad"


def test_keys_that_do_not_fit(examined, tmp_path):
    file = tmp_path / "principals.toml"
    file.write_text("[principal]\n")
    keys.write_pair(f"{tmp_path}/m.key", keys.generate(), "master:main")
    there = {"POSTHOUSE_KEY_FILE": f"{tmp_path}/m.key", "POSTHOUSE_PRINCIPALS_FILE": str(file)}
    assert examined("master", status=1, **there)["master.principals_file"]["verdict"] == "bad"
    none = {"POSTHOUSE_KEY_FILE": f"{tmp_path}/none.key"}
    for kind in ("agent", "client"):
        assert examined(kind, status=1, **none)[f"{kind}.key_file"]["verdict"] == "bad"


def master_settings(**values):
    return MasterSettings(
        state_dir="/s", listen_agents="ipc:///a", listen_clients="ipc:///c", **values
    )


def test_the_worst_cases_follow_from_settings_and_bounds(monkeypatch):
    """They are computed: another bound, or setting, is another sentence."""
    settings = master_settings()
    before = health.worst_cases(settings)
    for values in ({"lease_s": 60.0}, {"handover_s": 60.0}, {"mass_loss_wait_s": 60.0}):
        assert health.worst_cases(master_settings(**values)) != before
    assert any("after 32 s" in each for each in health.worst_cases(master_settings(lease_s=30.0)))
    for bound in ("silence_s", "master_silence_s", "dial_backoff_s_max", "unkillable_s"):
        monkeypatch.setattr(limits, bound, 3600.0)
        assert health.worst_cases(settings) != before
        before = health.worst_cases(settings)


def test_every_check_has_a_test_in_which_it_does_not_pass():
    """By the names that the checks have in the source; parts of names that are made are skipped."""
    source = Path(health.__file__).read_text()
    checks = set(
        re.findall(
            r'"((?:master|agent|client)\.[a-z_]+|python|libzmq|clock|fences|cgroups)"', source
        )
    )
    tested = Path(__file__).read_text()
    alike = {
        "agent.runtime_dir",
        "agent.log_dir",
        "agent.keys",
        "agent.key_file",
        "client.key_file",
    }
    assert {c for c in checks - alike - {"master.worst_cases"} if c not in tested} == set()
