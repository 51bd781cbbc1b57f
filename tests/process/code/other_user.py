"""Workers of another user. They import only what the warden has loaded: the interpreter's folders
may be closed to that user."""

import ctypes
import json
import os
import resource
import signal
import socket
import sys
import time

from posthouse import worker


def say(**fields):
    print(json.dumps(fields), flush=True)


def attempt(call):
    try:
        return repr(call())
    except Exception as error:  # noqa: BLE001
        return type(error).__name__


def status():
    with open("/proc/self/status") as file:
        return dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)


def look(arg):
    death = ctypes.c_int()
    prctl = ctypes.CDLL(None).prctl
    prctl(2, ctypes.byref(death), 0, 0, 0)
    found = status()
    say(
        uids=os.getresuid(),
        gids=os.getresgid(),
        groups=os.getgroups(),
        capabilities=[found[f"Cap{name}"] for name in ("Inh", "Prm", "Eff", "Amb")],
        no_new_privs=found["NoNewPrivs"],
        pdeathsig=death.value,
        dumpable=prctl(3, 0, 0, 0, 0),
        own_environment=attempt(lambda: os.access("/proc/self/environ", os.R_OK)),
        env={k: v for k, v in os.environ.items() if k in ("HOME", "USER", "LOGNAME", "SHELL")},
        session_variables=[k for k in os.environ if k.startswith("XDG_")],
        cwd=os.getcwd(),
        nice=os.nice(0),
        umask=f"{os.umask(0):o}",
        nofile=resource.getrlimit(resource.RLIMIT_NOFILE),
        reopened=attempt(lambda: os.close(os.open("/dev/stdout", os.O_WRONLY | os.O_APPEND))),
    )


def reach(arg):
    """What it tries against the daemons and against its neighbour."""

    def connect():
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as caller:
            caller.connect(arg["socket"])

    def connect_beyond():
        """Through a door that somebody has left open."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as caller:
            caller.settimeout(10)
            caller.connect(arg["socket"])
            return caller.recv(1)

    parent = os.getppid()
    say(
        connect=attempt(connect_beyond if arg["open"] else connect),
        folder=attempt(lambda: os.listdir(os.path.dirname(arg["socket"]))),
        logs=attempt(lambda: os.listdir(arg["logs"])),
        kill_parent=attempt(lambda: os.kill(parent, signal.SIGKILL)),
        parent_memory=attempt(lambda: os.open(f"/proc/{parent}/mem", os.O_RDONLY)),
        root_again=attempt(lambda: os.setuid(0)),
        neighbour=attempt(lambda: os.kill(arg["neighbour"], signal.SIGUSR2)),
    )


def fail(arg):
    raise ValueError("not as this user")


def rounds(arg):
    worker.unblock_signals()
    worker.ready()
    say(up=True)
    while True:
        worker.latch.wait(timeout=30)
        worker.latch.reset()
        say(woken=True)


def family(arg):
    """A child out of the session that minds no TERM; neither does this one."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    worker.unblock_signals()
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if pid := os.fork():
            os.write(writer, str(pid).encode())
            os._exit(0)
        os.execv("/bin/sh", ["sh", "-c", "trap '' TERM; while :; do sleep 1; done"])
    child = int(os.read(reader, 20))
    os.wait()
    say(child=child)
    if arg == "leave":
        sys.exit(0)
    while True:
        time.sleep(30)
