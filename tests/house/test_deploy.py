"""deploy/: the sample configurations are read by the real reader, the units by systemd's own."""

import re
import shutil
import subprocess
from configparser import ConfigParser
from pathlib import Path

import pytest

from posthouse import config
from posthouse.settings import AgentSettings, ClientSettings, MasterSettings

LOADERS = {
    "master": config.load_master,
    "agent": config.load_agent,
    "client": config.load_client,
}
BINARIES = "/opt/posthouse/bin"


@pytest.fixture(scope="session")
def deploy(root: Path) -> Path:
    return root / "deploy"


@pytest.fixture(scope="session")
def units(deploy: Path) -> dict[str, ConfigParser]:
    found = {}
    for path in sorted((deploy / "systemd").glob("*.service")):
        # Not strict: some keys of a unit may stand several times.
        parser = ConfigParser(interpolation=None, strict=False, delimiters=("=",))
        parser.optionxform = str  # type: ignore[assignment,method-assign]
        parser.read(path)
        found[path.stem] = parser
    return found


# --- sample configurations ---


def test_the_sample_of_the_master_is_read(deploy: Path) -> None:
    settings = config.load_master(str(deploy / "master.toml"), environ={}).settings
    assert settings == MasterSettings(
        state_dir="/var/lib/posthouse",
        listen_agents="ipc:///run/posthouse/agents.sock",
        listen_clients="ipc:///run/posthouse/clients.sock",
        workers=(),
        preload_libraries=(),
    )


def test_the_sample_of_the_agent_is_read(deploy: Path) -> None:
    settings = config.load_agent(str(deploy / "agent.toml"), environ={}).settings
    assert isinstance(settings, AgentSettings)
    assert (settings.host, settings.modules, settings.allow_exec) == ("b", ("acme.*",), False)
    assert settings.start_wardens is False
    (runtime,) = settings.runtimes
    assert (runtime.name, runtime.path) == ("default", ("/opt/acme/lib",))


def test_the_sample_of_the_client_is_read(deploy: Path) -> None:
    settings = config.load_client(str(deploy / "client.toml"), environ={}).settings
    assert settings == ClientSettings(master="ipc:///run/posthouse/clients.sock")


@pytest.mark.parametrize("kind", LOADERS)
def test_a_sample_shows_every_key_with_its_default(kind: str, deploy: Path, tmp_path: Path) -> None:
    """What is commented out is valid too, and is the default where the comment says so."""
    text = (deploy / f"{kind}.toml").read_text()
    keys = [key.name for key in config.KEYS[kind]]
    if kind == "agent":
        keys += [key.name for key in config.KEYS["runtime"] if key.name != "env"]
    for key in keys:
        assert re.search(rf"^(# )?{key} = ", text, re.MULTILINE), key

    opened = tmp_path / "opened.toml"
    lines: dict[str, str] = {}
    for number, line in enumerate(text.splitlines()):
        shown = re.match(r"# ([a-z_]+) = ", line)
        name = shown[1] if shown else line.split(" = ")[0] if " = " in line else f"#{number}"
        # A commented line gives way to the one that is in force.
        if not shown or (name not in lines and not re.search(rf"^{name} = ", text, re.MULTILINE)):
            lines[name] = line.removeprefix("# ") if shown else line
    opened.write_text("\n".join(lines.values()))
    loaded = LOADERS[kind](str(opened), environ={})
    assert {k for k, origin in loaded.origins.items() if origin.kind == "default"} == set()

    examples = {"key_file", "master_key", "principals_file", "labels", "users", "http", "agent_dir"}
    examples |= {"lease"}  # its default follows from the machines
    plain = LOADERS[kind](str(deploy / f"{kind}.toml"), environ={})
    for key in config.KEYS[kind]:
        if plain.origins[key.name].kind == "default" and key.name not in examples:
            shown_value = getattr(loaded.settings, key.target)
            assert shown_value == getattr(plain.settings, key.target), key.name


def test_the_samples_agree_with_the_units(deploy: Path, units: dict[str, ConfigParser]) -> None:
    """Agent and warden must mean the same folders, and systemd must have made them."""
    settings = config.load_agent(str(deploy / "agent.toml"), environ={}).settings
    warden = units["posthouse-warden"]["Service"]
    assert f"--runtime-dir {settings.runtime_dir} " in warden["ExecStart"]
    assert f"--log-dir {settings.log_dir} " in warden["ExecStart"]
    for unit in ("posthouse-warden", "posthouse-agent"):
        service = units[unit]["Service"]
        assert settings.runtime_dir == "/run/" + service["RuntimeDirectory"]
        assert settings.log_dir == "/var/log/" + service["LogsDirectory"]
    master = config.load_master(str(deploy / "master.toml"), environ={}).settings
    service = units["posthouse-master"]["Service"]
    assert master.state_dir == "/var/lib/" + service["StateDirectory"]
    assert master.listen_agents.startswith(f"ipc:///run/{service['RuntimeDirectory']}/")


# --- units ---


def test_systemd_accepts_the_units(deploy: Path, tmp_path: Path) -> None:
    """With our binaries' folder exchanged for one that exists here."""
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("no systemd-analyze on this machine")
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for name in ("posthouse", "python"):
        (binaries / name).write_text("#!/bin/sh\n")
        (binaries / name).chmod(0o755)
    copies = []
    for path in sorted((deploy / "systemd").glob("posthouse-*.*")):
        text = path.read_text()
        assert BINARIES in text or path.suffix == ".path"
        copy = tmp_path / path.name
        copy.write_text(text.replace(BINARIES, str(binaries)))
        copies.append(str(copy))
    assert len(copies) == 5
    done = subprocess.run(
        [tool, "verify", "--man=no", *copies], capture_output=True, text=True, timeout=30
    )
    # systemd-analyze also reports defects of the machine's own units; ours are named.
    ours = [line for line in done.stderr.splitlines() if "posthouse" in line]
    assert ours == [], done.stderr


def test_stopping_the_agent_touches_nothing(units: dict[str, ConfigParser]) -> None:
    agent = units["posthouse-agent"]["Service"]
    assert agent["KillMode"] == "process"
    assert agent["RuntimeDirectoryPreserve"] == "yes", "it is the warden's folder"
    for unit in units.values():
        for key in ("BindsTo", "PartOf"):
            assert "posthouse-agent.service" not in unit["Unit"].get(key, "")


def test_the_agent_never_starts_before_the_warden(units: dict[str, ConfigParser]) -> None:
    """Else it would start one of its own, in its own control group."""
    unit = units["posthouse-agent"]["Unit"]
    assert "posthouse-warden.service" in unit["After"].split()
    assert "posthouse-warden.service" in unit["Requires"].split()
    assert units["posthouse-warden"]["Service"]["Type"] == "notify"


@pytest.mark.parametrize("name", ["posthouse-warden", "posthouse-warden@"])
def test_the_warden_ends_its_workers_itself(name: str, units: dict[str, ConfigParser]) -> None:
    warden = units[name]["Service"]
    assert (warden["Delegate"], warden["OOMPolicy"], warden["KillMode"]) == (
        "yes",
        "continue",
        "mixed",
    )
    assert warden["RuntimeDirectoryPreserve"] == "yes", "exit records outlive the warden"
    assert warden["TimeoutStopSec"] != "0"


def test_the_kept_warden_is_started_when_the_agent_asks_for_it(
    units: dict[str, ConfigParser], deploy: Path
) -> None:
    settings = config.load_agent(str(deploy / "agent.toml"), environ={}).settings
    path = ConfigParser(interpolation=None)
    path.read(deploy / "systemd/posthouse-warden@.path")
    assert path["Path"]["PathExists"] == f"{settings.runtime_dir}/%i/wanted"
    assert path["Path"]["Unit"] == "posthouse-warden@%i.service"
    for kind in ("kept", "tree"):
        wanted = f"posthouse-warden@{kind}.path"
        assert wanted in units["posthouse-agent"]["Unit"]["Wants"].split()
    fenced = (deploy / "systemd/posthouse-warden.service").read_text().partition("[Service]")[2]
    other = (deploy / "systemd/posthouse-warden@.service").read_text().partition("[Service]")[2]
    notify = other[other.index("# A tree's main") : other.index("ExecStart=")]
    assert "NotifyAccess=all" in notify  # its main process is not the warden
    assert (
        other.replace(notify, "").strip()
        == fenced.replace("--kind fenced", "--kind %i").partition("[Install]")[0].strip()
    )


def test_the_units_run_as_nobody_special(units: dict[str, ConfigParser], deploy: Path) -> None:
    sysusers = (deploy / "systemd/posthouse.sysusers").read_text()
    for unit in units.values():
        user = unit["Service"]["User"]
        assert re.search(rf"^u {user} ", sysusers, re.MULTILINE)
    master = units["posthouse-master"]["Service"]
    for key, value in {
        "NoNewPrivileges": "yes",
        "ProtectSystem": "strict",
        "ProtectHome": "yes",
        "PrivateTmp": "yes",
        "CapabilityBoundingSet": "",
        "SystemCallFilter": "@system-service",
    }.items():
        assert master[key] == value
    assert (
        "#LoadCredential=master.key:" in (deploy / "systemd/posthouse-master.service").read_text()
    )
