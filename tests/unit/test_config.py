"""Files, environment and flags: what is accepted, who wins, and how a refusal reads."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posthouse import config, limits, paths
from posthouse.errors import ConfigError
from posthouse.settings import (
    AgentSettings,
    ClientSettings,
    DatabaseSettings,
    MasterSettings,
    RuntimeSettings,
)
from posthouse.worker_tables import BadWorker, DeclaredWorker

Write = Callable[[str], str]
LOADERS: dict[str, Callable[..., config.Loaded[Any]]] = {
    "master": config.load_master,
    "agent": config.load_agent,
    "client": config.load_client,
}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(text: str) -> str:
        path = tmp_path / "x.toml"
        path.write_text(text)
        return str(path)

    return write_file


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No file and no variable of this machine takes part."""
    for name in [name for name in os.environ if name.startswith("POSTHOUSE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(paths, "config_file", lambda kind: tmp_path / f"default-{kind}.toml")


def refused(kind: str, file: str | None, environ: Any = None, **flags: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        LOADERS[kind](file, environ=environ or {}, flags=flags)
    return str(caught.value).replace(f"{file}:", "FILE:")


# --- keys and settings agree ---


@pytest.mark.parametrize(
    ("kind", "record", "elsewhere"),
    [
        ("master", MasterSettings, {key.target for key in config.KEYS["cluster"]} | {"workers"}),
        ("agent", AgentSettings, {"runtimes", "databases"}),
        ("client", ClientSettings, set()),
        ("runtime", RuntimeSettings, {"name"}),
        ("databases", DatabaseSettings, {"name"}),
    ],
)
def test_every_setting_has_a_key(kind: str, record: type[Any], elsewhere: set[str]) -> None:
    targets = [key.target for key in config.KEYS[kind]]
    assert len(targets) == len(set(targets))
    assert set(targets) | elsewhere == {f.name for f in dataclasses.fields(record)}


# --- static registrations ---


def test_an_absent_file_does_not_say_that_there_are_no_workers(write: Write) -> None:
    none = config.load_master(environ={}).settings
    assert (none.workers, none.preload_libraries) == (None, None)
    empty = config.load_master(write(""), environ={}).settings
    assert (empty.workers, empty.preload_libraries) == ((), ())
    named = config.load_master(environ={"POSTHOUSE_PRELOAD_LIBRARIES": "acme.jobs,beat"}).settings
    assert (named.workers, named.preload_libraries) == (None, ("acme.jobs", "beat"))


def test_the_tables_of_a_file_are_its_workers_and_a_bad_one_stops_nobody(write: Write) -> None:
    file = write(
        'preload_timeout = "2s"\n[[worker]]\nname = "a"\nmain = "m:f"\n'
        '[[worker]]\nname = "b"\nmain = "m:f"\nnice = 99\n'
    )
    settings = config.load_master(file, environ={}).settings
    good, bad = settings.workers or ()
    assert isinstance(good, DeclaredWorker)
    assert (good.worker.name, good.where) == ("a", f"{file}:2")
    assert isinstance(bad, BadWorker)
    assert (bad.name, bad.where) == ("b", f"{file}:8")
    assert settings.preload_timeout_s == 2.0


# --- precedence and origin ---


def test_a_flag_wins_over_the_environment_over_the_file_over_the_default(write: Write) -> None:
    file = write('# first\nlease = "40s"\nmax_worker_processes = 7\n')
    environ = {"POSTHOUSE_LEASE": "50s"}

    loaded = config.load_master(file, environ=environ, flags={"lease": "1m"})
    assert loaded.settings.lease_s == 60.0
    assert str(loaded.origins["lease"]) == "--lease"

    loaded = config.load_master(file, environ=environ, flags={"lease": None})
    assert loaded.settings.lease_s == 50.0
    assert str(loaded.origins["lease"]) == "POSTHOUSE_LEASE"

    loaded = config.load_master(file, environ={})
    assert loaded.settings.lease_s == 40.0
    assert str(loaded.origins["lease"]) == f"{file}:2"
    assert str(loaded.origins["max_worker_processes"]) == f"{file}:3"
    assert str(loaded.origins["insecure"]) == "default"


def test_without_a_file_the_defaults_hold() -> None:
    loaded = config.load_master(environ={})
    assert loaded.settings == MasterSettings(
        state_dir=str(paths.state_dir()),
        listen_agents=paths.agents_endpoint(),
        listen_clients=paths.clients_endpoint(),
    )
    assert {str(origin) for origin in loaded.origins.values()} == {"default"}
    agent = config.load_agent(environ={}, flags={"host": "b"}).settings
    assert agent.runtime_dir == str(paths.host_runtime_dir("b"))
    assert agent.log_dir == str(paths.host_log_dir("b"))
    assert agent.runtimes == (RuntimeSettings(name="default"),)
    assert config.load_client(environ={}).settings.master == paths.clients_endpoint()


def test_the_default_file_is_read_if_it_is_there(tmp_path: Path) -> None:
    (tmp_path / "default-client.toml").write_text('timeout = "250ms"')
    assert config.load_client(environ={}).settings.timeout_s == 0.25
    (tmp_path / "client.toml").write_text('timeout = "2m"')
    environ = {"POSTHOUSE_CONFIG": str(tmp_path)}
    assert config.load_client(environ=environ).settings.timeout_s == 120.0


def test_posthouse_config_means_the_same_to_every_kind(tmp_path: Path) -> None:
    """A folder with a file for each: what a master reads is nothing to its clients and agents."""
    (tmp_path / "master.toml").write_text("max_worker_processes = 7")
    environ = {"POSTHOUSE_CONFIG": str(tmp_path)}
    assert config.load_master(environ=environ).settings.max_worker_processes == 7
    assert config.load_agent(environ=environ, flags={"host": "b"}).settings.labels == ()
    assert config.load_client(environ=environ).settings.master == paths.clients_endpoint()
    environ = {"POSTHOUSE_CONFIG": str(tmp_path / "master.toml")}
    for kind in ("master", "agent", "client"):
        assert "must be a folder, in which master.toml" in refused(kind, None, environ)
    assert config.load_master(str(tmp_path / "master.toml"), environ=environ)


def test_a_file_that_was_asked_for_must_be_there(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.toml")
    assert refused("master", missing) == f"{missing} does not exist"
    assert "must be a folder" in refused("master", None, {"POSTHOUSE_CONFIG": missing})
    assert refused("master", str(tmp_path)) == f"{tmp_path} is not a file"


def test_the_process_environment_is_the_default_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTHOUSE_MASTER", "tcp://m.example:1")
    assert config.load_client().settings.master == "tcp://m.example:1"


def test_values_of_the_environment(tmp_path: Path) -> None:
    loaded = config.load_agent(
        environ={
            "POSTHOUSE_HOST": "b",
            "POSTHOUSE_LOG": "json",
            "POSTHOUSE_ALLOW_EXEC": "true",
            "POSTHOUSE_START_WARDENS": "0",
            "POSTHOUSE_LABELS": "disk=ssd, zone=a",
            "POSTHOUSE_MODULES": "",
            "POSTHOUSE_MAX_WORKER_PROCESSES": "12",
            "POSTHOUSE_RUNTIME__SLIM__PATH": "/a,/b",
            "POSTHOUSE_RUNTIME__DEFAULT__PYTHON": "/usr/bin/python3",
        }
    )
    agent = loaded.settings
    assert (agent.host, agent.log_format, agent.allow_exec) == ("b", "json", True)
    assert (agent.start_wardens, agent.labels) == (False, ("disk=ssd", "zone=a"))
    assert (agent.modules, agent.max_worker_processes) == ((), 12)
    assert agent.runtimes == (
        RuntimeSettings(name="default", python="/usr/bin/python3"),
        RuntimeSettings(name="slim", path=("/a", "/b")),
    )
    assert str(loaded.origins["runtime.slim.path"]) == "POSTHOUSE_RUNTIME__SLIM__PATH"
    assert loaded.warnings == ()


def test_an_unknown_variable_is_told_about_not_refused() -> None:
    """Workers and other programs share the environment."""
    environ = {"POSTHOUSE_MASTR": "x", "POSTHOUSE_DIR": "/p", "POSTHOUSE_LEASE": "9s", "OTHER": "x"}
    loaded = config.load_client(environ=environ)
    assert loaded.warnings == ("POSTHOUSE_MASTR is unknown; did you mean 'POSTHOUSE_MASTER'?",)


def test_runtimes_of_a_file(write: Write) -> None:
    file = write(
        '[runtime.default]\npreload = ["acme.models"]\n\n'
        '[runtime.gpu]\npython = "/opt/gpu/bin/python"\nenv = { A = "1" }\n'
    )
    agent = config.load_agent(file, environ={}).settings
    assert agent.runtimes == (
        RuntimeSettings(name="default", preload=("acme.models",)),
        RuntimeSettings(name="gpu", python="/opt/gpu/bin/python", env={"A": "1"}),
    )


def test_databases_of_a_file(write: Write) -> None:
    """Of the file alone: workers inherit the environment."""
    file = write(
        '[databases.app]\nurl = "postgresql://me:pw@db/app"\nmaintenance = true\n'
        '[databases.local]\nurl = "sqlite:///var/lib/app.db"\n'
    )
    loaded = config.load_agent(file, environ={"POSTHOUSE_DATABASES__APP__URL": "sqlite:///x"})
    assert loaded.settings.databases == (
        DatabaseSettings(name="app", url="postgresql://me:pw@db/app", maintenance=True),
        DatabaseSettings(name="local", url="sqlite:///var/lib/app.db"),
    )
    assert "pw" not in repr(loaded.settings)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            '[databases.app]\nurl = "mysql://me:pw@db/app"',
            "FILE:2: databases.app.url is (not shown)",
        ),
        ('[databases.app]\nurl = "sqlite://app.db"', "FILE:2: databases.app.url is (not shown)"),
        ('[databases.app]\nurl = "sqlite:///"', "FILE:2: databases.app.url is (not shown)"),
        ("[databases.app]\nmaintenance = true", "FILE:1: databases.app has no url"),
        ('[databases.app]\nurk = "postgresql://pw@db"', "FILE:2: unknown key 'databases.app.urk'"),
        ('databases = "pw"', "FILE:1: databases is (not shown): must be at most 32 tables"),
        ('[databases]\napp = "pw"', "FILE:2: databases.app is (not shown): must be a table"),
        ('[databases."a b"]\nurl = "sqlite:///a"', "databases.a b is 'a b': must be a name"),
        (
            "".join(
                f'[databases.{n}]\nurl = "sqlite:///pw"\nmaintenance = true\n' for n in ("a", "b")
            ),
            "FILE:4: databases.b is the maintenance database, and so is databases.a",
        ),
        (
            "".join(f'[databases.d{n}]\nurl = "sqlite:///{"x" * 900}"\n' for n in range(20)),
            "must be names and URLs of at most 16384 bytes",
        ),
    ],
)
def test_databases_are_refused_without_showing_what_they_hold(
    write: Write, text: str, said: str
) -> None:
    told = refused("agent", write(text))
    assert said in told
    assert "pw" not in told


# --- refusals ---


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("master", "\nleese = 1", "FILE:2: unknown key 'leese'; did you mean 'lease'?"),
        ("master", "[extra]\na = 1", "FILE:1: unknown key 'extra'"),
        ("agent", "\n\nqqq = 1", "FILE:3: unknown key 'qqq'"),
        (
            "agent",
            '[runtime.x]\n\n"pyhton" = 1',
            "FILE:3: unknown key 'runtime.x.pyhton'; did you mean 'python'?",
        ),
        ("client", "runtime = 1", "FILE:1: unknown key 'runtime'"),
        ("agent", "preload_libraries = []", "FILE:1: unknown key 'preload_libraries'"),
        (
            "master",
            'lease = "30s"\n\n[[worker]]\nname = "w"\nmian = "m:f"',
            "FILE:5: unknown key 'mian' of a worker; did you mean 'main'?",
        ),
        ("master", "worker = 1", "FILE:1: worker must be tables [[worker]]"),
        (
            "master",
            'preload_libraries = ["a", "a"]',
            "FILE:1: preload_libraries is ['a', 'a']: must be a list without repetitions",
        ),
        (
            "master",
            'preload_libraries = ["acme.*"]',
            (
                "FILE:1: preload_libraries is ['acme.*']: must be a list, each entry a module, "
                'as "pkg.mod", at most 96 bytes'
            ),
        ),
    ],
)
def test_unknown_keys_are_refused_with_their_place(
    kind: str, text: str, message: str, write: Write
) -> None:
    assert refused(kind, write(text)) == message


@pytest.mark.parametrize(
    ("kind", "line", "message"),
    [
        ("master", "lease = 30", 'lease is 30: must be a duration with its unit, as "5s", "250ms"'),
        ("master", 'lease = "30"', "lease is '30': must be a duration with its unit"),
        ("master", 'lease = "-5s"', "lease is '-5s': must be a duration with its unit"),
        ("master", 'lease = "5 weeks"', "lease is '5 weeks': must be a duration with its unit"),
        ("master", 'lease = "1s"', "lease is '1s': must be from 5s to 3600s"),
        ("master", 'insecure = "yes"', "insecure is 'yes': must be true or false"),
        ("master", "insecure = 1", "insecure is 1: must be true or false"),
        ("master", "max_worker_processes = true", "must be a whole number from 0 to 100000"),
        ("master", "max_worker_processes = 8.0", "must be a whole number from 0 to 100000"),
        ("master", "max_worker_processes = 100001", "must be a whole number from 0 to 100000"),
        ("master", 'state_dir = "here"', "state_dir is 'here': must be an absolute path"),
        ("master", 'state_dir = ""', "state_dir is '': must be text"),
        ("master", "state_dir = 1", "state_dir is 1: must be text"),
        ("master", 'log_format = "xml"', "must be one of auto, console, json"),
        ("master", 'listen_agents = "m:1"', "ipc:///absolute/path or tcp://address:port"),
        ("master", 'listen_agents = "ipc://x"', "ipc:///absolute/path or tcp://address:port"),
        ("master", 'listen_agents = "ipc:///x/"', "ipc:///absolute/path or tcp://address:port"),
        ("master", 'listen_agents = "tcp://m"', "ipc:///absolute/path or tcp://address:port"),
        ("master", 'listen_agents = "tcp://m:0"', "ipc:///absolute/path or tcp://address:port"),
        ("master", 'listen_agents = "tcp://m:65536"', "ipc:///absolute/path or tcp://address"),
        ("master", 'listen_agents = "ipc:///' + "x" * 107 + '"', "a socket path of at most 107"),
        ("agent", 'host = "a b"', "host is 'a b': must be a name of letters, digits and . _ -"),
        ("agent", 'host = "../a"', "must be a name of letters"),
        ("agent", 'host = "' + "h" * 65 + '"', "at most 64 bytes"),
        ("agent", 'master_key = "short"', "must be a public key of 40 characters (Z85)"),
        ("agent", 'labels = "ssd"', "labels is 'ssd': must be a list"),
        ("agent", "labels = [1]", "labels is [1]: must be a list, each entry text"),
        ("agent", 'labels = ["a b"]', "must be a list, each entry a label"),
        ("agent", 'modules = ["a.*.b"]', 'each entry "pkg.mod", "pkg.*" or "*"'),
        ("agent", f"labels = {['x'] * 33}", "must be a list of at most 32"),
        ("agent", "runtime = 1", "runtime is 1: must be at most 64 tables [runtime.NAME]"),
        ("agent", "runtime.x = 1", "runtime.x is 1: must be a table [runtime.NAME]"),
        ("agent", 'runtime."a b" = {}', "runtime.a b is 'a b': must be a name of letters"),
        ("agent", 'runtime.x.env = ["A=1"]', "runtime.x.env is ['A=1']: must be a table"),
        ("agent", "runtime.x.env = {A = 1}", "runtime.x.env is {'A': 1}: must be a table"),
        ("agent", 'runtime.x.path = ["lib"]', "each entry an absolute path"),
        ("client", 'timeout = "0s"', "timeout is '0s': must be from 0.001s to 86400s"),
    ],
)
def test_wrong_values_are_refused_with_place_value_and_rule(
    kind: str, line: str, message: str, write: Write
) -> None:
    told = refused(kind, write(f"# a comment\n{line}\n"))
    assert told.startswith("FILE:2: ")
    assert message in told


def test_wrong_values_elsewhere_name_their_place() -> None:
    told = refused("master", None, {"POSTHOUSE_LEASE": "soon"})
    assert told.startswith("POSTHOUSE_LEASE: lease is 'soon': must be a duration")
    told = refused("master", None, {"POSTHOUSE_MAX_WORKER_PROCESSES": "many"})
    assert told.startswith("POSTHOUSE_MAX_WORKER_PROCESSES: max_worker_processes is 'many'")
    told = refused("master", None, listen_agents="nowhere")
    assert told.startswith("--listen-agents: listen_agents is 'nowhere': must be ipc:///")
    told = refused("agent", None, {"POSTHOUSE_RUNTIME__X__PATH": "lib"})
    assert told.startswith("POSTHOUSE_RUNTIME__X__PATH: runtime.x.path is 'lib'")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a = 1\nb = = 2\n", "FILE:2: Invalid value"),
        (b"a = 1\na = 2\n", "FILE:2: Cannot overwrite a value"),
        (b"a = 1\n[x\n", "FILE:2: "),
        (b'a = "\n', "FILE:1: "),
        (b"a = 1\n\nb = '\xff'\n", "FILE:3: not UTF-8"),
        (b"a = " + b"[" * 100_000, "FILE: nested too deep"),
        (b"#" * (limits.config_bytes_max + 1), "FILE has more than 1048576 bytes"),
    ],
)
def test_what_is_no_toml_is_refused_with_its_line(
    data: bytes, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "x.toml"
    file.write_bytes(data)
    told = refused("master", str(file)).replace(str(file), "FILE")
    assert told.startswith(message)


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert refused("client", str(tmp_path / "fifo")).endswith("is not a file")


def test_lines_are_found_in_every_form_of_toml(write: Write) -> None:
    file = write(
        "\n".join(
            [
                'host = "b"',
                "labels = [",
                '  "a",  # lease = 1',
                "]",
                'master = """',
                'host = "not here"',
                'ipc:///x"""',
            ]
        )
    )
    loaded = config.load_agent
    with pytest.raises(ConfigError, match=r":5: master is"):
        loaded(file, environ={})
    file = write('a.b = 1\n"lo\'g_format" = 2\n')
    with pytest.raises(ConfigError, match=r":1: unknown key 'a'"):
        loaded(file, environ={})
    file = write("[ runtime . 'x' ]\n\n  path   = 1\n")
    with pytest.raises(ConfigError, match=r":3: runtime\.x\.path is 1"):
        loaded(file, environ={})
    file = write("[runtime]\nx.path = 1\n")
    with pytest.raises(ConfigError, match=r":2: runtime\.x\.path is 1"):
        loaded(file, environ={})
    file = write("runtime = { x = { path = 1 } }\n")
    with pytest.raises(ConfigError, match=r":1: runtime\.x\.path is 1"):
        loaded(file, environ={})


def test_a_path_may_begin_in_the_home_folder(write: Write, monkeypatch: Any) -> None:
    monkeypatch.setenv("HOME", "/home/u")
    file = write('key_file = "~/keys/../client.key"')
    assert config.load_client(file, environ={}).settings.key_file == "/home/u/client.key"
    assert "must be an absolute path" in refused("client", write('key_file = "~root/x"'))


def test_a_machine_without_a_usable_name_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import platform

    monkeypatch.setattr(platform, "node", lambda: "b.example.org")
    assert config.load_agent(environ={}).settings.host == "b"
    monkeypatch.setattr(platform, "node", lambda: "")
    with pytest.raises(ConfigError, match="this machine calls itself ''"):
        config.load_agent(environ={})


# --- durations and sizes ---


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5s", 5), ("250ms", 0.25), ("2m", 120), ("1.5h", 5400), ("1 d", 86400), ("10us", 1e-5)],
)
def test_durations(text: str, seconds: float) -> None:
    assert config.parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "size"),
    [("0B", 0), ("1kB", 1000), ("1KiB", 1024), ("16 MiB", 16 * 2**20), ("1.5GB", 1_500_000_000)],
)
def test_sizes(text: str, size: int) -> None:
    assert config.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "5", "s", "-5s", "5 S", "1e3s", "5s5", "٣s", "1" * 20 + "s"])
def test_no_durations(text: str) -> None:
    with pytest.raises(ValueError, match="must be a duration with its unit"):
        config.parse_duration(text)


@pytest.mark.parametrize("text", ["", "5", "KB", "1kb", "1.5B", "0.1KiB"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="must be a"):
        config.parse_size(text)


keys = st.sampled_from([key.name for key in config.KEYS["agent"]] + ["runtime", "worker", "x"])
tomlish = st.recursive(
    st.booleans() | st.integers(-5, 10**6) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)


def _as_toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return (
            '"' + "".join(f"\\U{ord(c):08x}" for c in value if not 0xD800 <= ord(c) < 0xE000) + '"'
        )
    if isinstance(value, list):
        return "[" + ", ".join(map(_as_toml, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {_as_toml(v)}" for k, v in value.items()) + "}"
    return repr(value)


@settings(deadline=None, database=None, max_examples=200)
@given(st.dictionaries(keys, tomlish, max_size=4))
def test_any_file_is_read_or_refused(tmp_path_factory: Any, values: dict[str, Any]) -> None:
    file = tmp_path_factory.getbasetemp() / "any.toml"
    file.write_text("\n".join(f"{k} = {_as_toml(v)}" for k, v in values.items()))
    try:
        loaded = config.load_agent(str(file), environ={}, flags={"host": "b"})
    except ConfigError as error:
        assert str(error).startswith(str(file))
    else:
        assert isinstance(loaded.settings, AgentSettings)


# --- [cluster] ---


def test_the_phase_is_the_masters_own_unless_a_server_is_followed(write: Write) -> None:
    assert config.load_master(write("")).settings.follow is None
    url = "postgresql://u:topsecret@db/x"
    loaded = config.load_master(write(f'[cluster]\nfollow = "{url}"\n'))
    assert loaded.settings.follow == url
    assert str(loaded.origins["cluster.follow"]).endswith("x.toml:2")
    assert "topsecret" not in repr(loaded.settings)
    loaded = config.load_master(environ={"POSTHOUSE_CLUSTER__FOLLOW": url})
    assert (loaded.settings.follow, loaded.warnings) == (url, ())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('folow = "x"', "x.toml:2: unknown key 'cluster.folow'; did you mean 'follow'?"),
        (
            'follow = "mysql://u:topsecret@db/x"',
            "x.toml:2: cluster.follow is '(not shown)': must be postgresql://user@host:port/dbname",
        ),
    ],
)
def test_wrong_servers_are_refused(write: Write, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load_master(write(f"[cluster]\n{text}\n"))
    assert says in caught.value.message
    assert "topsecret" not in f"{caught.value} {caught.value.detail}"


def test_cluster_is_a_table(write: Write) -> None:
    with pytest.raises(ConfigError, match=r"must be a table \[cluster\]"):
        config.load_master(write('cluster = "embedded"'))
