"""Workers that an oracle outside the system watches; run as a file, a program that it watches."""

import fcntl
import os
import signal
import sys
import time

from posthouse import worker


def hold(path):
    """Write down that we live, and since when, until we die: never two at a time. The lock is of
    the file, so a second one that runs at the same time is seen by who has it, whoever is wrong."""
    me = worker.entry()
    watched(path, me.token, me.host)  # signals stay blocked: only KILL ends it


def watched(path, token, host):
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(what):
        now_s = time.clock_gettime(time.CLOCK_BOOTTIME)
        os.write(fd, f"{what} {token} {host} {now_s:.6f}\n".encode())

    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        note("overlap")
        time.sleep(3600)
    note("begins")
    while True:
        note("lives")
        time.sleep(0.02)


def leave_it_to_a_daemon(path):
    """A program whose work is done by a process that has left it: another session, no descriptor
    and no variable of its own, and every signal blocked."""
    token, host = os.environ["POSTHOUSE_TOKEN"], os.environ["POSTHOUSE_HOST"]
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        os.closerange(0, 2**31 - 1)
        watched(path, token, host)
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    leave_it_to_a_daemon(sys.argv[1])
