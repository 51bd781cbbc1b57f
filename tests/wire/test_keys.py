"""Key files and the principals file: only good keys that were kept secret are used."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from posthouse import keys
from posthouse.errors import ConfigError
from posthouse.keys import KeyPair


@pytest.fixture
def pair() -> KeyPair:
    return keys.generate()


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    def make(text: str | bytes, mode: int = 0o600, name: str = "key") -> str:
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        path.chmod(mode)
        return str(path)

    return make


def key_text(public: str, secret: str) -> str:
    return f'public = "{public}"\nsecret = "{secret}"\n'


def test_a_pair_that_was_written_is_read_back(tmp_path: Path, pair: KeyPair) -> None:
    path = str(tmp_path / "b.key")
    before = os.umask(0)
    try:
        public_path = keys.write_pair(path, pair, "agent:b")
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(public_path).st_mode) == 0o644
    assert keys.load_pair(path) == pair
    assert keys.server_keys(path).secret == pair.secret
    assert pair.secret not in Path(public_path).read_text()
    # The public file is a line of the principals file.
    principals = tmp_path / "principals.toml"
    principals.write_text("[principals]\n" + Path(public_path).read_text())
    principals.chmod(0o644)
    assert keys.load_principals(str(principals)) == {keys.public_bytes(pair.public): "agent:b"}


def test_secrets_are_not_shown(pair: KeyPair) -> None:
    server = keys.ServerKeys(pair.secret)
    client = keys.ClientKeys(pair.public, pair.secret, pair.public)
    for shown in (repr(pair), repr(server), repr(client), str(pair)):
        assert pair.secret not in shown


def test_a_key_file_is_never_overwritten(tmp_path: Path, pair: KeyPair) -> None:
    path = str(tmp_path / "b.key")
    keys.write_pair(path, pair, "agent:b")
    with pytest.raises(ConfigError, match="File exists"):
        keys.write_pair(path, keys.generate(), "agent:b")
    assert keys.load_pair(path) == pair


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o660, 0o606, 0o677, 0o610])
def test_a_key_that_others_can_touch_is_refused(
    write: Callable[..., str], pair: KeyPair, mode: int
) -> None:
    path = write(key_text(pair.public, pair.secret), mode)
    with pytest.raises(ConfigError) as refused:
        keys.load_pair(path)
    for part in (path, f"{mode:04o}", "must be 0600"):
        assert part in str(refused.value)
    assert pair.secret not in str(refused.value)


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_key_kept_secret_is_used(write: Callable[..., str], pair: KeyPair, mode: int) -> None:
    assert keys.load_pair(write(key_text(pair.public, pair.secret), mode)) == pair


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_key_as_systemd_hands_it_over(write: Callable[..., str], pair: KeyPair) -> None:
    path = write(key_text(pair.public, pair.secret), 0o440)
    os.chown(path, 0, 0)
    assert keys.load_pair(path) == pair
    os.chown(path, 0, 12345)
    with pytest.raises(ConfigError, match="has mode 0440"):
        keys.load_pair(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_key_of_somebody_else_is_refused(write: Callable[..., str], pair: KeyPair) -> None:
    path = write(key_text(pair.public, pair.secret))
    os.chown(path, 12345, 12345)
    with pytest.raises(ConfigError, match="belongs to user 12345"):
        keys.load_pair(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        (" \n\n", "is empty"),
        ("not toml at all", "Expected"),
        (b"\xff\xfe", "UTF-8"),
        ('public = "{public}"\n', "has no 'secret'"),
        ('secret = "{secret}"\n', "has no 'public'"),
        ('public = "{secret}"\nsecret = "{public}"\n', "public and secret are swapped"),
        ('public = "{public}"\nsecret = "{other}"\n', "not the public key of secret"),
        ('public = "{public}"\nsecret = ""\n', "secret: must be 40 characters of Z85"),
        ('public = "{public}"\nsecret = 7\n', "secret: must be 40 characters of Z85"),
        ('public = "short"\nsecret = "{secret}"\n', "public: must be 40 characters of Z85"),
        ('public = "{public}"\nsecret = "{secret}"\nmore = 1\n', "and nothing else"),
        ("x" * (1024 * 1024 + 1), "at most"),
    ],
)
def test_files_that_are_no_key(
    write: Callable[..., str], pair: KeyPair, text: str | bytes, message: str
) -> None:
    if isinstance(text, str):
        for name, value in (
            ("public", pair.public),
            ("secret", pair.secret),
            ("other", keys.generate().secret),
        ):
            text = text.replace("{" + name + "}", value)
    path = write(text)
    with pytest.raises(ConfigError, match=message) as refused:
        keys.load_pair(path)
    assert path in str(refused.value)
    assert pair.secret not in str(refused.value)


def test_things_that_are_no_file(tmp_path: Path, write: Callable[..., str], pair: KeyPair) -> None:
    real = write(key_text(pair.public, pair.secret), name="real")
    (tmp_path / "link").symlink_to(real)
    os.mkfifo(tmp_path / "fifo", 0o600)
    (tmp_path / "folder").mkdir(mode=0o700)
    for name, message in (
        ("link", "cannot be read"),
        ("missing", "cannot be read"),
        ("fifo", "must be a regular file"),  # and opening it does not hang
        ("folder", "must be a regular file"),
    ):
        with pytest.raises(ConfigError, match=message):
            keys.load_pair(str(tmp_path / name))


def test_a_dialling_key_needs_the_masters(write: Callable[..., str], pair: KeyPair) -> None:
    path = write(key_text(pair.public, pair.secret))
    master = keys.generate()
    assert keys.client_keys(path, master.public) == keys.ClientKeys(
        pair.public, pair.secret, master.public
    )
    for wrong, message in ((None, "master's public key"), ("", "master's public"), ("xyz", "Z85")):
        with pytest.raises(ConfigError, match=message):
            keys.client_keys(path, wrong)


# --- principals ---


def test_two_keys_while_one_replaces_the_other(write: Callable[..., str]) -> None:
    old, new, other = (keys.generate().public for _ in range(3))
    path = write(
        f'[principals]\n"agent:b" = ["{old}", "{new}"]\n"viewer:grafana" = "{other}"\n', 0o644
    )
    assert keys.load_principals(path) == {
        keys.public_bytes(old): "agent:b",
        keys.public_bytes(new): "agent:b",
        keys.public_bytes(other): "viewer:grafana",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("[people]\n", r"the table \[principals\]"),
        ("principals = 1\n", r"the table \[principals\]"),
        ('[principals]\n"agent:b" = "{a}"\n[more]\n', "and nothing else"),
        ('[principals]\n"agent:b" = "{a}"\n"client:x" = "{a}"\n', "agent:b has the same key"),
        ('[principals]\n"agent:b" = ["{a}", "{a}"]\n', "agent:b has the same key"),
        ('[principals]\n"agent:b" = []\n', "must have 1 to 2 keys"),
        ('[principals]\n"agent:b" = ["{a}", "{b}", "{c}"]\n', "must have 1 to 2 keys"),
        ('[principals]\n"agent:b" = 5\n', "40 characters of Z85"),
        ('[principals]\n"root:b" = "{a}"\n', "must be role:name"),
        ('[principals]\n"agent" = "{a}"\n', "must be role:name"),
        ('[principals]\n"agent:" = "{a}"\n', "must be role:name"),
        ('[principals]\n"agent:a b" = "{a}"\n', "must be role:name"),
        ('[principals]\n"agent:a:b" = "{a}"\n', "must be role:name"),
        ('[principals]\n"agent:../b" = "{a}"\n', "must be role:name"),
        ('[principals]\n"agent:b\\n" = "{a}"\n', "must be role:name"),
        ('[principals]\n"Agent:b" = "{a}"\n', "must be role:name"),
        ('[principals]\n"agent:' + "x" * 65 + '" = "{a}"\n', "must be role:name"),
    ],
)
def test_principals_files_that_are_refused(
    write: Callable[..., str], text: str, message: str
) -> None:
    for name in ("a", "b", "c"):
        text = text.replace("{" + name + "}", keys.generate().public)
    path = write(text, 0o644)
    with pytest.raises(ConfigError, match=message) as refused:
        keys.load_principals(path)
    assert path in str(refused.value)


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
def test_a_principals_file_that_others_can_write_is_refused(
    write: Callable[..., str], mode: int
) -> None:
    path = write(f'[principals]\n"agent:b" = "{keys.generate().public}"\n', mode)
    with pytest.raises(ConfigError, match="writable by its owner alone"):
        keys.load_principals(path)


def test_split_principal() -> None:
    assert keys.split_principal("client:deploy.2-x@y+z_") == ("client", "deploy.2-x@y+z_")
    for wrong in ("", ":", "client", "client:", ":b", "client:-x", "client:" + "é", "x:y"):
        with pytest.raises(ConfigError):
            keys.split_principal(wrong)


@pytest.mark.parametrize(
    "key", ["", "x" * 39, "x" * 41, "~" * 40, '"' * 40, "é" * 40, "#" * 40, b"x" * 40, None]
)
def test_what_is_no_key(key: object) -> None:
    with pytest.raises(ConfigError, match="Z85"):
        keys.public_bytes(key)  # type: ignore[arg-type]
