"""Default places, and folders that are ours alone."""

import os
import stat
import sys
from pathlib import Path

import pytest

from posthouse import paths
from posthouse.errors import ConfigError


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    for name in ("POSTHOUSE_DIR", "XDG_RUNTIME_DIR", "XDG_STATE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return monkeypatch


def as_user(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: number)


def test_the_local_folder_is_the_named_one(plain: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plain.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    plain.setenv("POSTHOUSE_DIR", "/srv/ph")
    assert paths.local_dir() == Path("/srv/ph")
    assert paths.clients_endpoint() == "ipc:///srv/ph/clients.sock"
    assert paths.agents_endpoint() == "ipc:///srv/ph/agents.sock"


def test_a_relative_folder_is_refused(plain: pytest.MonkeyPatch) -> None:
    plain.setenv("POSTHOUSE_DIR", "ph")
    with pytest.raises(ConfigError, match="POSTHOUSE_DIR is 'ph': must be an absolute path"):
        paths.local_dir()


def test_the_local_folder_of_a_login_session(plain: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plain.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert paths.local_dir() == tmp_path / "posthouse"


@pytest.mark.parametrize("named", ["missing", "", "relative"])
def test_a_session_folder_that_is_not_there_is_passed_over(
    named: str, plain: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    as_user(plain, 1000)
    plain.setenv("XDG_RUNTIME_DIR", str(tmp_path / "missing") if named == "missing" else named)
    assert paths.local_dir().name == "posthouse-1000"


def test_roots_folders(plain: pytest.MonkeyPatch) -> None:
    as_user(plain, 0)
    assert paths.local_dir() == Path("/run/posthouse")
    assert paths.state_dir() == Path("/var/lib/posthouse")
    assert paths.host_runtime_dir("b") == Path("/run/posthouse/hosts/b")
    assert paths.host_log_dir("b") == Path("/var/log/posthouse/b")


def test_a_users_folders(plain: pytest.MonkeyPatch, tmp_path: Path) -> None:
    as_user(plain, 1000)
    home = tmp_path / "home"
    assert paths.state_dir() == home / ".local/state/posthouse"
    assert paths.host_log_dir("b") == home / ".local/state/posthouse/logs/b"
    assert paths.config_file("client") == home / ".config/posthouse/client.toml"
    assert paths.config_file("master") == Path("/etc/posthouse/master.toml")
    plain.setenv("XDG_STATE_HOME", "/state")
    plain.setenv("XDG_CONFIG_HOME", "relative: passed over, as its specification asks")
    assert paths.state_dir() == Path("/state/posthouse")
    assert paths.config_file("client") == home / ".config/posthouse/client.toml"


def test_where_users_have_no_numbers(plain: pytest.MonkeyPatch) -> None:
    plain.setattr(sys, "platform", "win32")
    assert paths.local_dir().name == "posthouse"


def test_a_socket_path_that_is_too_long_is_refused() -> None:
    assert paths.ipc_endpoint("/" + "x" * 106)
    with pytest.raises(ConfigError, match="has 108 bytes: must be at most 107") as caught:
        paths.ipc_endpoint("/" + "x" * 107)
    assert "POSTHOUSE_DIR" in caught.value.hint


# --- private_dir ---


def test_a_missing_parent_can_be_a_private_folder_itself(tmp_path: Path) -> None:
    """`posthouse up` makes a folder inside the one that a master's registry would be in."""
    before = os.umask(0o022)
    try:
        paths.private_dir(tmp_path / "posthouse" / "up")
    finally:
        os.umask(before)
    assert paths.private_dir(tmp_path / "posthouse") == tmp_path / "posthouse"


def test_a_private_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    before = os.umask(0o277)  # whatever the umask
    try:
        made = paths.private_dir(tmp_path / "b", mode=0o750)
    finally:
        os.umask(before)
    assert stat.S_IMODE(made.stat().st_mode) == 0o750
    assert paths.private_dir(tmp_path / "b/c/d") == tmp_path / "b/c/d"
    assert stat.S_IMODE((tmp_path / "b/c/d").stat().st_mode) == 0o700
    assert paths.private_dir(tmp_path / "b/c/d") == tmp_path / "b/c/d"


def test_a_narrower_mode_is_accepted_and_a_wider_one_refused(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    folder.mkdir(mode=0o700)
    paths.private_dir(folder, mode=0o750)
    folder.chmod(0o750)
    with pytest.raises(ConfigError, match="has mode 0750, wider than 0700") as caught:
        paths.private_dir(folder)
    assert caught.value.hint == f"chmod 700 {folder}"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750, "only looked at"


def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "target")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for name in ("link", "dangling"):
        with pytest.raises(ConfigError, match="is a symbolic link"):
            paths.private_dir(tmp_path / name)
    assert not (tmp_path / "nothing").exists()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be made or opened as a folder: Not a dir"):
        paths.private_dir(tmp_path / "file")
    with pytest.raises(ConfigError, match="cannot be made or opened as a folder: File exists"):
        paths.private_dir(tmp_path / "file" / "below")
    with pytest.raises(ConfigError, match="must be an absolute path"):
        paths.private_dir("relative")


def test_a_folder_that_anybody_may_replace_is_refused(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    (shared / "below").mkdir(parents=True)
    shared.chmod(0o777)
    with pytest.raises(ConfigError, match=f"lies in {shared}, where anybody may replace it"):
        paths.private_dir(shared / "below" / "mine")
    shared.chmod(0o1777)  # as /tmp: others cannot rename what is ours
    paths.private_dir(shared / "below" / "mine")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_another_users_folder_is_refused(tmp_path: Path) -> None:
    folder = paths.private_dir(tmp_path / "x")
    os.chown(folder, 12345, 12345)
    with pytest.raises(ConfigError, match="belongs to user 12345"):
        paths.private_dir(folder)
    with pytest.raises(ConfigError, match=f"lies in {folder} of user 12345"):
        paths.private_dir(folder / "below")
