"""CURVE keys and principals: who is who, and the files that say so.

Owns: key pairs, key files, the principals file, the spelling of a principal. Must not know:
sockets, the ZAP handler. Invariant: a secret key that anybody else could have read or replaced is
never used; every refusal names the file, what was found and the rule.

A key file is TOML with two strings, `public` and `secret` (Z85, 40 characters each). The
principals file is TOML with one table:

    [principals]
    "agent:b" = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID"
    "client:deploy" = ["(the old key)", "(the new key)"]   # two keys: while one replaces the other
"""

import os
import re
import stat
import struct
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import zmq
from zmq.utils import z85

from posthouse import limits
from posthouse.errors import ConfigError

__all__ = [
    "ROLES",
    "ClientKeys",
    "KeyPair",
    "ServerKeys",
    "check_principal",
    "client_keys",
    "generate",
    "load_pair",
    "load_principals",
    "parse_principals",
    "public_bytes",
    "server_keys",
    "split_principal",
    "write_pair",
]

ROLES: Final = ("agent", "client", "viewer")

_KEY = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._+@-]{{0,{limits.label_bytes_max - 1}}}")


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A principal's keys in Z85."""

    public: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ServerKeys:
    """What a listening socket needs."""

    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ClientKeys:
    """What a dialling socket needs: its own pair and the master's public key."""

    public: str
    secret: str = field(repr=False)
    server: str


def generate() -> KeyPair:
    """A new pair, from the system's random numbers."""
    public, secret = zmq.curve_keypair()
    return KeyPair(public.decode(), secret.decode())


def public_bytes(key: str, what: str = "public key") -> bytes:
    """The 32 bytes of a Z85 key. Raises ConfigError."""
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise ConfigError(f"{what}: must be 40 characters of Z85")
    try:
        raw: bytes = z85.decode(key)
    except (ValueError, KeyError, OverflowError, struct.error) as error:
        raise ConfigError(f"{what}: must be 40 characters of Z85") from error
    return raw


def split_principal(principal: str) -> tuple[str, str]:
    """(role, name) of "role:name". Raises ConfigError.

    >>> split_principal("agent:b")
    ('agent', 'b')
    """
    check_principal(principal)
    role, _, name = principal.partition(":")
    return role, name


def check_principal(
    principal: str, where: str = "principal", roles: tuple[str, ...] = ROLES
) -> None:
    """Raises ConfigError unless it is "role:name" with a known role and a plain name."""
    role, _, name = principal.partition(":")
    if role not in roles or not _NAME.fullmatch(name):
        raise ConfigError(
            f"{where}: {principal[:80]!r} must be role:name; the role one of {', '.join(roles)}, "
            f"the name 1 to {limits.label_bytes_max} letters, digits and . _ + @ -"
        )


# --- files ---


def write_pair(path: str, pair: KeyPair, principal: str) -> str:
    """Write the key file (mode 0600) and `path`.pub, which holds the line for the principals file;
    of a "master:name", the line for agent.toml and client.toml.

    Returns the path of the latter. Raises ConfigError; existing files are never overwritten.
    """
    check_principal(principal, roles=("master", *ROLES))
    secret = (
        f"# posthouse: the secret key of {principal}. Not to be copied or shown to anybody.\n"
        f'public = "{pair.public}"\nsecret = "{pair.secret}"\n'
    )
    _write_new(path, secret, 0o600)
    public_path = f"{path}.pub"
    key = "master_key" if principal.startswith("master:") else f'"{principal}"'
    _write_new(public_path, f'{key} = "{pair.public}"\n', 0o644)
    return public_path


def load_pair(path: str) -> KeyPair:
    """The pair in a key file. Raises ConfigError if it is anything but a good key kept secret."""
    values = _toml(path, _read(path, secret=True))
    keys = {}
    for name in ("public", "secret"):
        if name not in values:
            raise ConfigError(f"{path}: has no {name!r}: must be a key file with public and secret")
        public_bytes(values[name], f"{path}: {name}")
        keys[name] = values[name]
    if set(values) != {"public", "secret"}:
        raise ConfigError(f"{path}: must hold public and secret, and nothing else")
    if _public_of(keys["secret"]) != keys["public"]:
        swapped = _public_of(keys["public"]) == keys["secret"]
        raise ConfigError(
            f"{path}: public and secret are swapped"
            if swapped
            else f"{path}: public is not the public key of secret"
        )
    return KeyPair(keys["public"], keys["secret"])


def server_keys(path: str) -> ServerKeys:
    """A master's keys from its key file. Raises ConfigError."""
    return ServerKeys(load_pair(path).secret)


def client_keys(path: str, server: str | None) -> ClientKeys:
    """An agent's or a client's keys, with the master's public key. Raises ConfigError."""
    pair = load_pair(path)
    if not server:
        raise ConfigError(f"{path}: a key is of no use without the master's public key")
    public_bytes(server, "the master's public key")
    return ClientKeys(pair.public, pair.secret, server)


def load_principals(path: str) -> dict[bytes, str]:
    """Public key (32 bytes) to "role:name". Raises ConfigError."""
    return parse_principals(_toml(path, _read(path, secret=False)), path)


def parse_principals(values: Mapping[str, Any], where: str) -> dict[bytes, str]:
    """The same, from a table that has been read. Raises ConfigError."""
    table = values.get("principals")
    if set(values) != {"principals"} or not isinstance(table, dict):
        raise ConfigError(f"{where}: must hold the table [principals], and nothing else")
    found: dict[bytes, str] = {}
    for principal, given in table.items():
        check_principal(principal, where)
        keys = given if isinstance(given, list) else [given]
        if not 1 <= len(keys) <= limits.keys_per_principal_max:
            raise ConfigError(
                f"{where}: {principal}: must have 1 to {limits.keys_per_principal_max} keys"
            )
        for key in keys:
            raw = public_bytes(key, f"{where}: {principal}")
            if raw in found:
                raise ConfigError(f"{where}: {principal}: {found[raw]} has the same key")
            found[raw] = principal
    return found


def _public_of(secret: str) -> str:
    return zmq.curve_public(secret.encode()).decode()


def _write_new(path: str, text: str, mode: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        descriptor = os.open(path, flags, mode)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        if sys.platform != "win32":
            os.fchmod(file.fileno(), mode)  # whatever the umask
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _read(path: str, *, secret: bool) -> str:
    # The checks are made on the open descriptor: a path could be exchanged between two calls.
    flags = os.O_RDONLY
    if sys.platform != "win32":
        flags |= os.O_NOFOLLOW | os.O_NONBLOCK  # no link to another's file; no FIFO to hang in
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        _check_file(path, os.fstat(descriptor), secret=secret)
    except ConfigError:
        os.close(descriptor)
        raise
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(limits.config_bytes_max + 1)
    if not data.strip():
        raise ConfigError(f"{path}: is empty")
    if len(data) > limits.config_bytes_max:
        raise ConfigError(f"{path}: must be at most {limits.config_bytes_max} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: must be UTF-8 text") from None


def _check_file(path: str, found: os.stat_result, *, secret: bool) -> None:
    mode = stat.S_IMODE(found.st_mode)
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(f"{path}: must be a regular file")
    if sys.platform == "win32":
        return  # no owners and modes of this kind
    if found.st_uid not in (os.geteuid(), 0):
        raise ConfigError(
            f"{path}: belongs to user {found.st_uid}: must belong to user {os.geteuid()} or root"
        )
    # systemd hands credentials over as root:root with the reader in an ACL, whose mask stat shows
    # in the place of the group's bits.
    credential = found.st_uid == 0 and found.st_gid == 0 and mode & 0o077 == 0o040
    if secret and mode & 0o077 and not credential:
        raise ConfigError(f"{path}: has mode {mode:04o}: must be 0600, readable by its owner alone")
    if not secret and mode & 0o022:
        raise ConfigError(f"{path}: has mode {mode:04o}: must be writable by its owner alone")


def _toml(path: str, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: {error}") from None
