"""The first code of a zygote: find posthouse for it, whatever interpreter this is.

Run by its path: `PYTHON .../boot.py SOCKET WARDEN_PID FOLDER_OF_POSTHOUSE`. Owns: where the
zygote's modules come from. Must not know: what a zygote does. Invariant: runs on any Python from
3.6, so that an old one is refused with its version; nothing of the folders beside this file gets
into the path of an application, whose environment need not have posthouse at all.
"""

import importlib.util
import json
import os
import socket
import sys
from types import ModuleType

_OLDEST = (3, 11)


def _refuse(line: socket.socket, reason: str) -> None:
    message = {"op": "refused", "code": "runtime_unusable", "reason": reason, "retry": False}
    line.sendall(json.dumps(message).encode())
    os._exit(1)


def _borrow(name: str, folder: str) -> None:
    """The host's own copy of one package."""
    path = f"{folder}/__init__.py"
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=[folder])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


def _zygote(line: socket.socket, posthouse: str) -> ModuleType:
    try:
        from posthouse_agent import zygote
    except ModuleNotFoundError as error:
        if error.name not in ("posthouse", "posthouse_agent"):
            raise
        _borrow("posthouse", posthouse)
        _borrow("posthouse_agent", os.path.dirname(os.path.abspath(__file__)))
        from posthouse_agent import zygote
    except ImportError:
        if "posthouse_agent" not in sys.modules:
            raise
        from posthouse import __version__

        _refuse(
            line,
            f"posthouse {__version__} in the environment of {sys.executable} is too old: install "
            "this host's version there, or none",
        )
    return zygote


def _boot() -> None:
    if not getattr(sys.flags, "safe_path", False):
        del sys.path[0]  # the folder of this file
    line = socket.socket(fileno=int(sys.argv[1]))
    line.set_inheritable(False)
    if sys.version_info < _OLDEST:
        found, oldest = ("{}.{}".format(*version[:2]) for version in (sys.version_info, _OLDEST))
        _refuse(line, f"{sys.executable} is Python {found}: posthouse needs {oldest} or newer")
    try:
        zygote = _zygote(line, sys.argv[3])
    except Exception as error:  # noqa: BLE001 - told to the warden, whatever it is
        _refuse(line, f"posthouse cannot be loaded: {type(error).__name__}: {error}")
    zygote.serve(line, int(sys.argv[2]))


if __name__ == "__main__":
    _boot()
