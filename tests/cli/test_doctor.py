"""`posthouse doctor`: findings with a verdict each, and an exit status that follows from them."""

import json
import os
import resource

import pytest

from posthouse import keys


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
