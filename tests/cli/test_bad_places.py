"""Bad names by every way in, a typo in each kind of file, values one byte too large, full slots,
and places where no socket or folder can be: each refused in words."""

import os
import signal
import subprocess
import time

import msgpack
import pytest

from posthouse import BackgroundWorker, keys, limits
from posthouse.errors import ConfigError, InvalidField
from posthouse_testing.cluster import Daemon, LocalCluster, command

NAMES = {
    "empty": "",
    "NUL": "a\0b",
    "newline": "a\nb",
    "too long": "x" * 97,
    "97 bytes in fewer letters": "é" * 48 + "x",
    "right to left": "a\u202eb",
    "a path": "../etc",
    "a slash": "a/b",
    "an option": "-a",
    "spaces at its end": "a ",
    "a surrogate": "a\udce9",
    "an escape code": "\x1b[31ma",
}


@pytest.mark.parametrize("what", NAMES)
def test_an_odd_name_is_refused_by_every_way_in(posthouse, objects, tmp_path, what):
    """Command, file and client say the same of it, and none of it drives a terminal."""
    odd = NAMES[what]
    before = len(objects("ps", "-a"))
    ran = posthouse("register", "--name", odd, "--main", "jobs:idle", status=1)
    assert ran.stderr.startswith("posthouse: name is ")
    with pytest.raises(InvalidField) as refused:
        BackgroundWorker(name=odd, main="jobs:idle").check()
    assert refused.value.message in ran.stderr
    if what != "a surrogate":  # of which TOML knows nothing
        file = tmp_path / "w.toml"
        text = "".join(f"\\u{ord(c):04x}" for c in odd)
        file.write_text(f'[[worker]]\nmain = "jobs:idle"\nname = "{text}"\n')
        told = posthouse("apply", "-f", str(file), status=2).stderr
        assert f"{file}:3" in told and "name is " in told
    for said in (ran.stderr, str(refused.value)):
        assert all(c.isprintable() for c in said.replace("\n", ""))
    assert len(objects("ps", "-a")) == before


TYPOS = {
    # a kind of file: (its text, how it is read, words of the refusal; FILE is filled in)
    "master.toml": ('insecure = true\nprincipal_file = "/x"\n', "master", "principals_file"),
    "its [cluster]": ('[cluster]\nfolow = "postgresql://db/x"\n', "master", "follow"),
    "its [[worker]]": ('[[worker]]\nnmae = "w"\n', "worker", "name"),
    "its [databases]": ('[databases.x]\nurll = "sqlite:///x"\n', "agent", "url"),
    "agent.toml": ('host = "b"\nmoduls = ["x"]\n', "agent", "modules"),
    "its [runtime]": ('[runtime.x]\npreloads = ["m"]\n', "agent", "preload"),
    "client.toml": ('\ntimout = "5s"\n', "client", "timeout"),
    "posthouse.toml": ('preload_library = ["x"]\n', "up", "preload_libraries"),
    "workers.toml": ('\n[[worker]]\nname = "w"\nrestart_tiem = 1\n', "apply", "restart_time"),
    "its own keys": ('sorce = "shop"\n', "apply", "source"),
}


@pytest.mark.parametrize("kind", TYPOS)
def test_a_typo_is_told_with_file_line_and_the_nearest(posthouse, bare, tmp_path, kind):
    text, read, nearest = TYPOS[kind]
    file = tmp_path / "typo.toml"
    file.write_text(text)
    line = len(text.strip("\n").splitlines()) + text.index(text.strip("\n")[0])
    if read == "apply" or read == "worker":
        told = posthouse("apply", "-f", str(file), status=2).stderr
    else:
        told = bare("config", "show", read, "--config", str(file), status=2).stderr
    assert f"{file}:{line}: " in told
    assert f"did you mean '{nearest}'?" in told


PRINCIPALS = {
    "another table": ("[principal]\n", "must hold the table [principals]"),
    "no role": ('[principals]\n"b" = "x"\n', "role:name"),
    "a short key": ('[principals]\n"client:x" = "short"\n', "40 characters"),
    "no key at all": ('[principals]\n"client:x" = []\n', "1 to "),
}


@pytest.mark.parametrize("what", PRINCIPALS)
def test_a_bad_file_of_principals_names_the_file_and_the_rule(tmp_path, what):
    text, words = PRINCIPALS[what]
    file = tmp_path / "principals.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as refused:
        keys.load_principals(str(file))
    assert str(file) in refused.value.message and words in str(refused.value)


# --- values ---


def test_main_arg_at_its_bound_and_one_byte_beyond(posthouse, name):
    """The bound is that of what is sent: three bytes before a text of this length."""
    text = "x" * (limits.main_arg_bytes_max - 3)
    assert len(msgpack.packb(text)) == limits.main_arg_bytes_max
    BackgroundWorker(name=name, main="jobs:idle", main_arg=text).check()
    with pytest.raises(InvalidField, match=r"main_arg.*65537"):
        BackgroundWorker(name=name, main="jobs:idle", main_arg=text + "x").check()
    spec = ["register", "--name", name, "--main", "jobs:idle", "--label", "no=where"]
    posthouse(*spec, "--main-arg", f'"{text}"')
    posthouse("terminate", name)
    told = posthouse(*spec, "--main-arg", f'"{text}x"', status=1).stderr
    assert "main_arg" in told and "65537" in told


@pytest.mark.parametrize(
    "value", [object(), {1: "a"}, {"a": {1, 2}}, 2**64, "\udce9", lambda: None, [b""] * 5000]
)
def test_what_no_message_can_carry_is_refused_by_name_and_never_pickled(name, value):
    with pytest.raises(InvalidField, match="main_arg"):
        BackgroundWorker(name=name, main="jobs:idle", main_arg=value).check()


def test_a_library_that_ends_the_process_as_it_is_imported(posthouse, name):
    """It is its own exit, by its own word: the rules of the exit apply, and the log says where."""
    posthouse("register", "--name", name, "--main", "leaves:f", "--restart-time", "1h")
    posthouse("wait", name, "--for", "exit", "--timeout", "60")
    assert "exited with code 3" in posthouse("status", name, status=3).stdout
    assert "[E3: " in posthouse("why", name).stdout


def test_full_slots_name_the_limit_its_value_and_who_holds_them(tmp_path):
    env = {**os.environ, "POSTHOUSE_MAX_WORKER_PROCESSES": "2"}
    with LocalCluster(hosts=("a",), env=env) as small, small.connect() as client:
        for number in (1, 2):
            client.register(
                BackgroundWorker(
                    name=f"holder-{number}", main="posthouse.exec", main_arg=["sleep", "600"]
                )
            )
        argv = [*command(), "register", "--name", "third", "--main", "m:f"]
        ran = subprocess.run(
            argv, env=small.command_env(), capture_output=True, text=True, timeout=60
        )
    assert ran.returncode == 1
    for words in ("2", "holder-1", "max_worker_processes"):
        assert words in ran.stderr, ran.stderr


# --- places ---


@pytest.fixture
def daemon(tmp_path):
    started = []

    def start(*arguments, **env):
        name = f"d{len(started)}"
        made = Daemon(
            name, [*command(), *arguments], tmp_path / f"{name}.log", {**os.environ, **env}
        )
        made.start()
        started.append(made)
        return made

    yield start
    for each in started:
        each.close()


def ends(daemon, status):
    assert daemon.wait(60) == status, daemon.last_words()
    said = daemon.last_words(50)
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize("verb", ["master", "agent"])
def test_a_folder_whose_sockets_paths_would_be_too_long(daemon, verb):
    said = ends(daemon(verb, "--dir", "/tmp/" + "x" * 110), 2)
    assert f"must be at most {limits.socket_path_bytes_max}" in said


@pytest.mark.parametrize("verb", ["master", "agent"])
def test_a_folder_that_cannot_be_made(daemon, tmp_path, verb):
    (tmp_path / "file").write_text("")
    said = ends(daemon(verb, "--dir", str(tmp_path / "file" / "d")), 2)
    assert str(tmp_path / "file") in said


def test_the_folder_of_a_master_that_runs(daemon, tmp_path):
    first = daemon("master", "--dir", str(tmp_path / "d"))
    deadline_s = time.monotonic() + 60
    while "master.ready" not in first.last_words():
        assert first.alive and time.monotonic() < deadline_s
        time.sleep(0.02)
    said = ends(daemon("master", "--dir", str(tmp_path / "d")), 1)
    assert "another" in said
    assert first.alive
    first.signal(signal.SIGTERM)
    assert first.wait(60) == 0
