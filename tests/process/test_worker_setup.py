"""What a worker finds when its main is called, and how it leaves."""

import resource
import signal
import subprocess
import sys

import pytest

from posthouse import worker
from posthouse.errors import UsageError
from posthouse_agent.orders import Ended, SignalWorker, StopWorker


@pytest.fixture(name="host")
def _host(shared_host):
    return shared_host


@pytest.fixture(name="agent")
def _agent(shared_agent):
    return shared_agent


def facts_of(host, agent, main, arg=None, **spec):
    ended = host.run(agent, main, arg, **spec)
    return ended.facts, host.said(ended.slot)


def test_entry_is_the_registration(host, agent):
    ended = host.run(agent, "report", {"topic": ["a", b"\x00"]}, name="ingest", extra=b"\x01\x02")
    assert ended.facts["code"] == 0, ended.facts
    assert host.said(ended.slot)[0] == {
        "name": "ingest",
        "main_arg": "{'topic': ['a', b'\\x00']}",
        "arg": "{'topic': ['a', b'\\x00']}",
        "extra": "0102",
        "handle": f"{host.registry}:{ended.slot}.1",
        "host": "testhost",
        "incarnation": 1,
        "token": ended.token,
        "revision": 1,
    }


def test_w1_w7_process_is_set_up(host, agent):
    """PostgreSQL: session leader, the title is the name, then main. So here, and what Linux has
    besides: limits, no new privileges, the end with the parent."""
    facts, said = facts_of(
        host,
        agent,
        "report",
        name="set-up",
        umask=0o027,
        nice=3,
        cwd="/usr",
        rlimits={"CORE": 0, "NOFILE": 123},
    )
    assert facts["code"] == 0, facts
    found = said[1]
    assert found["sid"] == found["pgid"] == found["pid"] == facts["pid"]
    assert found["umask"] == "27"
    assert found["cwd"] == "/usr"
    assert found["nice"] == 3
    assert found["core"] == [0, 0]
    assert found["nofile"] == [123, 123]
    assert found["no_new_privs"] == "1"
    assert found["pdeathsig"] == signal.SIGKILL
    assert found["threads"] == "1"
    assert found["comm"] == "set-up"
    assert found["cmdline"].startswith("set-up")
    assert found["argv"] == ["jobs:report"]
    assert found["path"][0].endswith("tests/process/code")
    assert found["main"] is None
    assert found["zmq"] is False


def test_defaults_of_the_set_up(host, agent):
    _, said = facts_of(host, agent, "report")
    found = said[1]
    assert found["umask"] == "77"
    assert found["cwd"] == "/"
    # the warden raises its own limit, and workers do not get that
    assert found["nofile"] == list(resource.getrlimit(resource.RLIMIT_NOFILE))


def test_w1_w2_w4_signals_are_blocked_at_main(host, agent):
    """PostgreSQL: blocked but QUIT, with handlers already in place; HUP, PIPE, USR2 ignored.
    So here. Besides QUIT, what reports a fault of the process itself is not blocked, and the
    signal that has stacks written."""
    _, said = facts_of(host, agent, "report")
    blocked = set(said[1]["blocked"])
    assert {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD} <= blocked
    assert signal.SIGQUIT not in blocked
    assert blocked == {int(s) for s in worker.BLOCKED}
    handlers = said[1]["handlers"]
    for name in ("SIGINT", "SIGHUP", "SIGPIPE", "SIGUSR2", "SIGFPE"):
        assert handlers[name] == "1", name  # SIG_IGN
    assert handlers["SIGCHLD"] == "0"
    assert "function" in handlers["SIGTERM"]
    assert "function" in handlers["SIGQUIT"]


def test_signals_may_be_open_at_main(host, agent):
    _, said = facts_of(host, agent, "report", unblock_signals=True)
    assert said[1]["blocked"] == []


def test_environment(empty_host):
    empty_host.env = {
        "POSTHOUSE_KEY_FILE": "/secret",
        "NOTIFY_SOCKET": "/nowhere",
        "LISTEN_FDS": "1",
        "SHARED": "warden",
    }
    host = empty_host.start()
    ended = host.run(host.agent(), "environment", env={"MINE": "1", "POSTHOUSE_TOKEN": "99"})
    env = host.said(ended.slot)[0]["env"]
    assert env["SHARED"] == "warden"
    assert env["RUNTIME_SAYS"] == "yes"
    assert env["MINE"] == "1"
    assert env["POSTHOUSE_TOKEN"] == "1"
    assert env["POSTHOUSE_NAME"] == "w1"
    assert env["POSTHOUSE_HANDLE"] == f"{host.registry}:1.1"
    assert not {"POSTHOUSE_KEY_FILE", "NOTIFY_SOCKET", "LISTEN_FDS"} & env.keys()


def test_descriptors(host, agent):
    others = [host.begin(agent, "idle") for _ in range(3)]
    ended = host.run(agent, "descriptors")
    fds = host.said(ended.slot)[0]["fds"]
    log = str(host.log_path(ended.slot))
    assert fds.pop("0") == "/dev/null"
    assert (fds.pop("1"), fds.pop("2")) == (log, log)
    kinds = sorted(target.split(":")[0].split(" ")[0] for target in fds.values())
    lock = str(host.home / "host.lock")
    # the memory file twice: once more to append the stacks that are asked for
    assert kinds == sorted([lock, "/memfd", "/memfd", "anon_inode", "socket"]), fds
    for other in others:
        agent.give(SignalWorker(token=other.token, signal=signal.SIGKILL))
        agent.expect(Ended, other.token)


def test_interpreter_is_as_new(host, agent):
    first, second = (host.said(host.run(agent, "interpreter").slot)[0] for _ in range(2))
    assert first["done"] == ["thread", "asyncio", "child"]
    assert first["main_thread"] is True
    assert first["stdin"] == ""
    assert first["inherited_handlers"] == 0
    assert first["line_buffered"] == [True, True]
    assert first["random"] != second["random"]


@pytest.mark.parametrize(
    ("arg", "code", "text"),
    [
        (None, 0, ""),
        (0, 0, ""),
        (1, 1, ""),
        (7, 7, ""),
        (256, 1, ""),  # & 255 would be 0: done for good
        (-1, 255, ""),
        ("no config", 1, "no config\n"),
    ],
)
def test_exit_codes(host, agent, arg, code, text):
    facts = host.run(agent, "leave", arg).facts
    assert (facts["cause"], facts["code"]) == ("exited", code)
    assert facts.get("output_tail", "") == text
    assert "signal" not in facts
    assert "traceback" not in facts


def test_main_that_returns_exits_0(host, agent):
    assert host.run(agent, "nothing").facts["code"] == 0


def test_w5_healed_a_worker_that_never_unblocks_is_killed_after_its_grace(host, agent):
    """PostgreSQL: its TERM stays pending for ever, and a shutdown with it. Healed: KILL follows."""
    forked = host.begin(agent, "idle", restart_time=60)
    stop = StopWorker(
        token=forked.token, slot=forked.slot, reason="hold", signal=signal.SIGTERM, grace_s=0.2
    )
    agent.give(stop)
    ended = agent.expect(Ended, forked.token)
    assert (ended.facts["signal"], ended.stop) == (signal.SIGKILL, "hold")


def test_w6_uncaught_error(host, agent):
    """PostgreSQL: logged, then exit 1. So here; the traceback is a fact of the exit as well."""
    ended = host.run(agent, "fail")
    facts = ended.facts
    assert facts["code"] == 1
    lines = facts["traceback"].splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert "in fail" in lines[1]  # the first frame is the worker's own
    assert lines[-1] == "ValueError: a message with colour and  bell"
    assert facts["output_tail"].startswith("before the error\n")
    assert facts["output_tail"].endswith("bell\n")
    assert (
        host.log_path(ended.slot).read_bytes().count(b"\x1b[31m") == 1
    )  # the log has it as it was


@pytest.mark.parametrize(
    ("main", "error"),
    [
        ("no_such_module:main", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("jobs:nope", "AttributeError: could not find function 'nope' in module 'jobs'"),
        ("jobs:json", "TypeError: jobs:json is <module 'json'"),
        ("jobs:coroutine", "TypeError: jobs:coroutine is an async function"),
    ],
)
def test_entry_point_that_cannot_be_called(host, agent, main, error):
    facts = host.run(agent, main).facts
    assert facts["code"] == 1
    assert error in facts["traceback"]


def test_module_that_raises_at_import(host, agent, tmp_path):
    (tmp_path / "broken.py").write_text("import os\nraise RuntimeError('not today')\n")
    order = host.order("broken:main")
    order.path.append(str(tmp_path))
    agent.give(order)
    facts = agent.expect(Ended, order.token).facts
    assert facts["code"] == 1
    assert "RuntimeError: not today" in facts["traceback"]
    assert "broken.py" in facts["traceback"]


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ({"cwd": "/no/such/folder"}, "No such file or directory: '/no/such/folder'"),
        ({"rlimits": {"NOFILE": 2**40}}, "rlimits: NOFILE cannot be 1099511627776: not allowed"),
    ],
)
def test_set_up_that_fails_is_an_exit_with_the_reason(host, agent, spec, text):
    facts = host.run(agent, "nothing", **spec).facts
    assert facts["code"] == 1
    assert text in facts["traceback"]
    assert "posthouse could not set up this worker's process" in facts["traceback"]


def test_w2_w3_w7_term_by_default_ends_from_inside_the_handler(host, agent):
    """PostgreSQL: dies on the spot with FATAL, told by its type. So here; what is on the stack is
    unwound, and the callbacks run, so a lock held by `with` is let go (W3)."""
    forked = host.begin(agent, "term_while_busy", name="busy", type="crunchers")
    agent.give(SignalWorker(token=forked.token, signal=signal.SIGTERM))
    ended = agent.expect(Ended, forked.token)
    assert (ended.facts["code"], ended.stop) == (1, "")
    tail = ended.facts["output_tail"].splitlines()
    assert tail[1:] == [
        'FATAL: terminating background worker "crunchers" due to administrator command',
        "unwound",
        "cleaned up",
    ]
    assert "traceback" not in ended.facts


def test_w2_w4_n4_l4_ignored_signals_and_usr1(host, agent):
    """PostgreSQL: USR1 is ignored without the database flag (N4). Healed: it sets the latch.
    HUP and USR2 are ignored, as there."""
    ended = host.run(agent, "signalled")
    assert ended.facts["code"] == 0, ended.facts
    assert host.said(ended.slot) == [{"woken": ["LATCH_SET"]}, {"alive": True}]


def test_w2_quit_skips_callbacks(host, agent):
    """PostgreSQL: _exit(2) without callbacks. So here."""
    facts = host.run(agent, "quit_self").facts
    assert facts["code"] == 2
    assert "output_tail" not in facts


@pytest.mark.parametrize(
    ("arg", "code"),
    [
        (None, 0),
        ("raise", 1),
        ("callback raises", 1),
        ("callback exits 0", 1),
        ("term in callback", 0),
    ],
)
def test_w6_exit_callbacks(host, agent, arg, code):
    """PostgreSQL: before_shmem_exit, then on_shmem_exit and on_proc_exit, each last first, each
    once, and no interrupt meanwhile. So here; threads end between them, atexit comes last."""
    facts = host.run(agent, "callbacks", arg).facts
    assert facts["code"] == code
    lines = [
        line
        for line in facts["output_tail"].splitlines()
        if not line.startswith((" ", "Traceback", "RuntimeError", "ZeroDivisionError"))
    ]
    order = ["main ends", "before 2", "before 1", "thread", "on 2", "on 1", "atexit"]
    assert lines == order, facts["output_tail"]


def test_w6_callbacks_are_bounded(host, agent):
    """PostgreSQL: at most 20 of each kind. So here, with the error at the call."""
    ended = host.run(agent, "many_callbacks")
    assert host.said(ended.slot) == [{"error": "out of on_exit slots: at most 20"}]


def test_streams_are_flushed(host, agent):
    assert host.run(agent, "no_newline").facts["output_tail"] == "a last word"


def test_process_forked_by_a_worker(host, agent):
    ended = host.run(agent, "fork_child")
    assert ended.facts["code"] == 0, ended.facts
    said = host.said(ended.slot)[0]
    blocked, entry, unblock, wait = said["seen"]
    assert blocked == 0
    assert entry == unblock
    assert "was forked by one" in entry
    assert wait == (
        "UsageError: cannot wait on a latch owned by another process "
        "(a process that a worker forked may set the worker's latch, and no more)"
    )
    assert said["latch"] is True


def test_what_a_worker_starts_has_open_signals(host, agent):
    ended = host.run(agent, "start_everything")
    # nor does it count as daemonised, though multiprocessing's helpers end a little after it
    assert ended.facts["code"] == 0, ended.facts
    own, masks = host.said(ended.slot)
    assert set(masks["masks"].values()) == {"0" * 16}, masks
    assert own["own"] == len(worker.BLOCKED)


@pytest.mark.parametrize(
    "call",
    [
        worker.entry,
        worker.ready,
        worker.unblock_signals,
        worker.block_signals,
        worker.latch.set,
        worker.latch.reset,
        worker.latch.wait,
        lambda: worker.before_exit(print),
        lambda: worker.on_exit(print),
    ],
)
def test_outside_a_worker_every_call_says_so(call):
    with pytest.raises(UsageError, match=r"is not a background worker|owner|no latch"):
        call()


def test_worker_modules_need_only_the_standard_library():
    code = (
        "import sys; sys.modules['msgpack'] = sys.modules['zmq'] = sys.modules['msgspec'] = None\n"
        "from posthouse import worker\n"
        "import posthouse.exec\n"
        "assert 'asyncio' not in sys.modules and 'ctypes' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
