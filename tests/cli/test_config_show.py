"""`posthouse config show`: what is in force, where it is from, and as a file that reads back."""

import json
from pathlib import Path

import pytest

from posthouse import config
from posthouse_cli import settled

KEY = "k" * 40


@pytest.fixture
def shown(bare):
    """The rows of --json by key."""

    def read(*arguments, **variables):
        ran = bare("config", "show", *arguments, "--json", **variables)
        return {row["key"]: row for row in map(json.loads, ran.stdout.splitlines())}

    return read


def test_each_value_says_where_it_came_from(shown, bare, tmp_path):
    file = tmp_path / "agent.toml"
    file.write_text('host = "b"\n\nmodules = ["acme.*"]\n[runtime.old]\npath = ["/opt/old"]\n')
    rows = shown("agent", "--config", file, POSTHOUSE_LABELS="gpu,eu")
    assert (rows["host"]["text"], rows["host"]["where"]) == ('"b"', f"{file}:1")
    assert (rows["modules"]["text"], rows["modules"]["where"]) == ('["acme.*"]', f"{file}:3")
    assert (rows["labels"]["text"], rows["labels"]["where"]) == (
        '["gpu", "eu"]',
        "POSTHOUSE_LABELS",
    )
    assert rows["allow_exec"]["origin"] == "default"
    assert rows["runtime.old.path"]["where"] == f"{file}:5"
    lines = bare("config", "show", "agent", "--config", file, "--origin").stdout.splitlines()
    assert f'agent\thost\t"b"\t{file}:1' in lines
    assert "agent\tallow_exec\tfalse\tdefault" in lines


def test_a_flag_wins_and_is_named(bare):
    ran = bare(
        "--master",
        "ipc:///x.sock",
        "config",
        "show",
        "client",
        "--origin",
        POSTHOUSE_MASTER="ipc:///y.sock",
    )
    assert 'client\tmaster\t"ipc:///x.sock"\t--master' in ran.stdout


@pytest.mark.parametrize("kind", ["master", "agent", "client"])
def test_what_is_shown_reads_back_as_the_same_settings(environment, bare, tmp_path, kind):
    first = bare("config", "show", kind).stdout
    file = tmp_path / f"{kind}.toml"
    file.write_text(first)
    same = bare("config", "show", kind, "--config", file).stdout
    assert same.replace("preload_libraries = []", "# preload_libraries is not set") == first
    with environment():
        again = settled.load(kind, str(file)).settings
        before = settled.load(kind).settings
    if kind == "master":  # a file that is there says that no workers are declared
        assert (before.workers, again.workers) == (None, ())
        return
    assert again == before


@pytest.mark.parametrize("kind", ["master", "agent", "client"])
def test_all_keys_are_shown(shown, kind):
    keys = {key.name for key in config.KEYS[kind]}
    assert keys <= set(shown(kind))


def test_a_password_is_not_shown(bare, tmp_path):
    file = tmp_path / "m.toml"
    file.write_text('[cluster]\nfollow = "postgresql://u:hush@db/x"\n')
    for options in ([], ["--origin"], ["--json"]):
        ran = bare("config", "show", "master", "--config", file, *options)
        assert "hush" not in ran.stdout + ran.stderr
        assert "shown" in ran.stdout


def test_a_typo_is_told_with_file_line_and_the_nearest(bare, tmp_path):
    file = tmp_path / "m.toml"
    file.write_text('insecure = false\nleese = "5s"\n')
    ran = bare("config", "show", "master", "--config", file, status=2)
    assert ran.stdout == ""
    assert f"{file}:2: unknown key 'leese'; did you mean 'lease'?" in ran.stderr


def test_one_bad_file_does_not_hide_the_others(bare, tmp_path):
    file = tmp_path / "client.toml"
    file.write_text("timeout = 5\n")
    ran = bare("config", "show", status=2, POSTHOUSE_CONFIG=str(tmp_path))
    assert (
        "client: " in ran.stderr and "timeout is 5: must be a duration with its unit" in ran.stderr
    )


def test_up_shows_the_file_of_this_folder(shown, bare, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "there is no posthouse.toml" in bare("config", "show", "up", status=2).stderr
    Path("posthouse.toml").write_text('preload_timeout = "0.5m"\n')
    assert shown("up")["preload_timeout"]["text"] == '"30s"'


def test_unknown_kind_is_wrong_usage(bare):
    assert "'hosts' is none of master" in bare("config", "show", "hosts", status=2).stderr
    assert "which kind" in bare("config", "show", "--config", "x", status=2).stderr


# What each key may be given in the environment; completeness is checked below.
TEXTS = {
    "state_dir": "/srv/s",
    "listen_agents": "ipc:///srv/a",
    "listen_clients": "ipc:///srv/c",
    "key_file": "/srv/k",
    "principals_file": "/srv/p",
    "insecure": "true",
    "lease": "20s",
    "handover": "5m",
    "mass_loss_wait": "1m",
    "max_worker_processes": "7",
    "max_worker_processes_per_host": "7",
    "http": "127.0.0.1:8080",
    "preload_libraries": "acme",
    "preload_path": "/srv/lib",
    "preload_timeout": "3s",
    "log_format": "json",
    "cluster.follow": "postgresql://u@h/d",
    "host": "b",
    "master": "ipc:///srv/m",
    "runtime_dir": "/srv/r",
    "log_dir": "/srv/l",
    "log_total": "2GiB",
    "master_key": KEY,
    "labels": "gpu",
    "modules": "acme.*",
    "allow_exec": "1",
    "users": "acme",
    "cgroups": "off",
    "start_wardens": "0",
    "timeout": "2s",
    "agent_dir": "/srv/r",
    "runtime.default.python": "/usr/bin/python3",
    "runtime.default.path": "/srv/lib",
    "runtime.default.env": "A=1,B=x=y",
    "runtime.default.preload": "acme",
}


@pytest.mark.parametrize("kind", ["master", "agent", "client"])
def test_every_key_may_come_from_the_environment(shown, environment, kind):
    with environment():
        keys = settled.load(kind).origins
    variables = {}
    for dotted in keys:
        *path, name = dotted.split(".")
        known = {key.name: key for key in config.KEYS[path[0] if path else kind]}
        table = "__".join(path).upper()
        variable = f"POSTHOUSE_{table}__{name.upper()}" if path else known[name].environment
        variables[variable] = TEXTS[dotted]
    rows = shown(kind, **variables)
    assert {row["origin"] for row in rows.values()} == {"environment"}
    assert set(rows) == set(keys)
