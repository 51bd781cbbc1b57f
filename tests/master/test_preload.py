"""preload_libraries: real processes that load what somebody wrote, well or badly."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from posthouse import BackgroundWorker, StaticRegistry, codec, limits
from posthouse.codec import NO_SESSION, Envelope
from posthouse.errors import BadFrame, InvalidField, NotPermitted
from posthouse.messages import (
    Declared,
    DeclarePart,
    Done,
    Failed,
    Message,
    Renew,
    StructRequest,
)
from posthouse.settings import MasterSettings
from posthouse_master.gather import gather
from posthouse_master.preload import Answer, Library, preload

GOOD = """
    from posthouse import BackgroundWorker

    def main(arg):
        pass

    def posthouse_init(registry):
        registry.register(BackgroundWorker(name=__name__, main=main, restart_time=1))
"""
BAD_IDEAS = {
    "raises at import": ("1 / 0", "ZeroDivisionError: division by zero"),
    "is no Python": ("def", "SyntaxError"),
    "imports what is not there": ("import acme_nowhere", "ModuleNotFoundError"),
    "has no posthouse_init": ("posthouse_init = 7", "has no function posthouse_init(registry)"),
    "takes no registry": ("def posthouse_init(): pass", "TypeError"),
    "raises": ("def posthouse_init(r): raise KeyError('x')", "KeyError: 'x'"),
    "raises bad text": ("def posthouse_init(r): raise KeyError('\\udcff')", "KeyError"),
    "leaves by sys.exit": (
        "import sys\ndef posthouse_init(r): sys.exit(0)",
        "SystemExit: 0",
    ),
    "leaves by os._exit": (
        "import os\ndef posthouse_init(r): os._exit(0)",
        "exited with status 0 before it had answered",
    ),
    "is killed": (
        "import os\ndef posthouse_init(r): os.kill(os.getpid(), 11)",
        "was killed by SIGSEGV before it had answered",
    ),
    "closes everything": (
        "import os\ndef posthouse_init(r): os.closerange(3, 256)",
        "exited with status 1 before it had answered",
    ),
    "writes nonsense where the answer goes": (
        """
        import os
        def posthouse_init(r):
            for descriptor in range(3, 256):
                try:
                    os.write(descriptor, b"nonsense")
                except OSError:
                    pass
        """,
        "its answer is not one",
    ),
    "registers 100,000 workers": (
        """
        from posthouse import BackgroundWorker
        def posthouse_init(r):
            for number in range(100_000):
                r.register(BackgroundWorker(name=f"w{number}", main="m:f"))
        """,
        "registers at most 10000 workers",
    ),
    "registers what is none": ("def posthouse_init(r): r.register({})", "a dict was given"),
    "requests what is too big": (
        "def posthouse_init(r): r.request_struct('s', 2**40)",
        "size is 1099511627776: must be an integer from 1 to 1073741824, in bytes",
    ),
    "requests nothing": ("def posthouse_init(r): r.request_struct('s', 0)", "size is 0"),
    "requests a name that is too long": (
        "def posthouse_init(r): r.request_struct('s' * 64, 8)",
        "a printable text of 1 to 63 bytes",
    ),
    "requests of no domain": (
        "def posthouse_init(r): r.request_struct('s', 8, crash_domain='')",
        "crash_domain is ''",
    ),
    "requests twice": (
        """
        def posthouse_init(r):
            r.request_struct('s', 8)
            r.request_struct('s', 8)
        """,
        "structure 's' of crash domain 'default' has been requested already",
    ),
    "requests without end": (
        """
        def posthouse_init(r):
            for number in range(1000):
                r.request_struct(f's{number}', 8)
        """,
        "requests at most 256 structures",
    ),
    "registers a lambda": (
        """
        from posthouse import BackgroundWorker
        def posthouse_init(r):
            r.register(BackgroundWorker(name="w", main=lambda arg: None))
        """,
        "a lambda has none",
    ),
}


@pytest.fixture
def libraries(tmp_path: Path) -> Callable[..., list[Library] | None]:
    """libraries(name="source", ...): what became of each, in their order."""

    def load(timeout_s: float = 30.0, interrupt: int = -1, **sources: str) -> list[Library] | None:
        for name, source in sources.items():
            (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
        settings = MasterSettings(
            state_dir="",
            listen_agents="",
            listen_clients="",
            preload_libraries=tuple(sources),
            preload_path=(str(tmp_path),),
            preload_timeout_s=timeout_s,
        )
        return preload(settings, interrupt)

    return load


@pytest.fixture
def pid_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a library writes the pid of what it leaves behind."""
    path = tmp_path / "pid"
    monkeypatch.setenv("PID_FILE", str(path))
    yield path
    if path.exists():
        with_pid = int(path.read_text())
        try:
            os.kill(with_pid, signal.SIGKILL)
        except ProcessLookupError:
            return


def gone(pid: int) -> bool:
    """Within a deadline."""
    end_s = time.monotonic() + 20
    while time.monotonic() < end_s:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.01)
    return False


# --- what a library may do -----------------------------------------------------------------------


def test_s1_posthouse_init_registers_and_nothing_else_does(libraries):
    """PostgreSQL: RegisterBackgroundWorker counts only while the postmaster preloads libraries.
    Kept: only in posthouse_init, in the process in which it was called. Elsewhere PostgreSQL
    ignores it, with a line in the log or without; healed: it is refused with the reason."""
    tries = """
        import os
        from posthouse import BackgroundWorker, StaticRegistry
        from posthouse.errors import NotPermitted

        def attempt(registry, when):
            try:
                registry.register(BackgroundWorker(name=when, main="m:f"))
            except NotPermitted as error:
                print(when, "refused:", error, flush=True)

        attempt(StaticRegistry(), "at import")

        def posthouse_init(registry):
            attempt(registry, "in time")
            attempt(StaticRegistry(), "one of its own")
            child = os.fork()
            if child == 0:
                attempt(registry, "in a child")
                os._exit(0)
            os.waitpid(child, 0)
    """
    (library,) = libraries(tries=tries)
    assert [worker.spec["name"] for worker in library.workers] == ["in time"]
    assert library.failed == ""
    refusals = library.output.splitlines()
    assert [line.partition(" refused:")[0] for line in refusals] == [
        "at import",
        "one of its own",
        "in a child",
    ]
    assert all("posthouse_init(registry)" in line for line in refusals)


def test_s1_a_registry_that_is_kept_is_closed_afterwards():
    kept = []
    StaticRegistry().collect(kept.append)
    with pytest.raises(NotPermitted, match=r"posthouse\.connect\(\)\.register\(\)"):
        kept[0].register(BackgroundWorker(name="w", main="m:f"))


def test_f16_a_library_cannot_ask_for_notification():
    """PostgreSQL: LOG, and the record is dropped. Healed: refused where it is asked for."""

    def init(registry: StaticRegistry) -> None:
        registry.register(BackgroundWorker(name="w", main="m:f", notify=True))

    with pytest.raises(InvalidField, match="only dynamic ones"):
        StaticRegistry().collect(init)


def test_workers_come_in_order_with_everything_that_was_said_of_them(libraries):
    (good, second) = libraries(good=GOOD, second=GOOD)
    assert (good.name, good.failed) == ("good", "")
    (worker,) = good.workers
    assert worker == Declared(
        spec={"name": "good", "main": "good:main", "restart_time": 1.0}, replicas=None
    )
    assert second.workers[0].spec["main"] == "second:main"


def test_ten_thousand_workers_come_through(libraries):
    many = """
        from posthouse import BackgroundWorker
        def posthouse_init(r):
            for number in range(10_000):
                r.register(BackgroundWorker(name=f"w{number}", main="m:f", extra=b"x" * 100))
    """
    (library,) = libraries(many=many)
    assert library.failed == ""
    assert [w.spec["name"] for w in library.workers] == [f"w{n}" for n in range(10_000)]


def test_the_process_has_the_masters_rights_and_nothing_of_the_master(libraries, monkeypatch):
    """No standard input, no descriptor but the pipe's, a session of its own, not the master's
    folder to import from."""
    monkeypatch.setenv("ACME", "1")
    looks = """
        import os, sys
        def posthouse_init(r):
            own = [int(name) for name in os.listdir("/proc/self/fd")]
            print(sys.stdin.read() == "", os.environ["ACME"], os.getsid(0) == os.getpid())
            print(len([fd for fd in own if fd > 2 and os.path.exists(f"/proc/self/fd/{fd}")]))
            print(os.getcwd() in sys.path, "" in sys.path)
    """
    (library,) = libraries(looks=looks)
    assert library.failed == ""
    assert library.output.split() == ["True", "1", "True", "1", "False", "False"]


# --- what a library may do wrong -----------------------------------------------------------------


def test_whatever_a_library_does_wrong_costs_it_alone(libraries):
    """All bad ideas at once, and a good library after them."""
    sources = {f"bad{number}": source for number, (source, _) in enumerate(BAD_IDEAS.values())}
    *bad, good = libraries(**sources, good=GOOD)
    assert (good.failed, len(good.workers)) == ("", 1)
    for (idea, (_, told)), library in zip(BAD_IDEAS.items(), bad, strict=True):
        assert told in library.failed, (idea, library)
        assert library.failed.startswith(f"library {library.name}: "), idea
        assert library.workers == (), idea
        assert len(library.failed) < 2 * limits.report_chars_max, idea


def test_a_library_that_hangs_is_killed_with_what_it_has_started(libraries, pid_file):
    """Also one that ignores every signal; and they cost the others nothing."""
    hangs = """
        import os, time
        from posthouse import BackgroundWorker
        def posthouse_init(r):
            r.register(BackgroundWorker(name="w", main="m:f"))
            child = os.fork()
            if child:
                with open(os.environ["PID_FILE"], "w") as file:
                    file.write(str(child))
            time.sleep(1000)
    """
    stubborn = """
        import os, signal, time
        def posthouse_init(r):
            for number in range(1, signal.NSIG):
                try:
                    signal.signal(number, signal.SIG_IGN)
                except (OSError, ValueError):
                    pass
            os.write(1, b"deaf")
            while True:
                time.sleep(1)
    """
    hung, deaf, good = libraries(timeout_s=5.0, hangs=hangs, stubborn=stubborn, good=GOOD)
    assert hung.failed == "library hangs: has not answered within 5 s (preload_timeout)"
    assert "has not answered" in deaf.failed
    assert deaf.output == "deaf"
    assert (hung.workers, deaf.workers) == ((), ())
    assert gone(int(pid_file.read_text()))
    assert (good.failed, len(good.workers)) == ("", 1)


def test_a_child_that_holds_the_pipe_holds_up_nobody(libraries, pid_file):
    """Also one that has left the session: an answer is complete when its process ends."""
    leaves = (
        GOOD
        + """
        import os, time
        if os.fork() == 0:
            time.sleep(1000)
        child = os.fork()
        if child == 0:
            os.setsid()
            time.sleep(1000)
        with open(os.environ["PID_FILE"], "w") as file:
            file.write(str(child))
    """
    )
    (library,) = libraries(leaves=leaves)
    assert (library.failed, len(library.workers)) == ("", 1)


def test_a_fork_that_comes_back_out_of_posthouse_init_answers_nothing(libraries):
    """Otherwise there were two answers in one pipe."""
    forks = """
        import os
        from posthouse import BackgroundWorker
        def posthouse_init(r):
            r.register(BackgroundWorker(name="w", main="m:f"))
            child = os.fork()
            if child:
                os.waitpid(child, 0)
    """
    (library,) = libraries(forks=forks)
    assert (library.failed, len(library.workers)) == ("", 1)


def test_megabytes_of_output_are_read_and_only_their_end_is_kept(libraries):
    floods = """
        import sys
        def posthouse_init(r):
            sys.stderr.write("first words")
            sys.stdout.write("x" * 5_000_000 + "last words")
    """
    (library,) = libraries(floods=floods)
    assert library.failed == ""
    assert len(library.output) == limits.preload_output_bytes_max
    assert library.output.endswith("last words")
    assert library.output_lost == 5_000_021 - limits.preload_output_bytes_max


def test_threads_and_exit_handlers_hold_up_nobody(libraries):
    lingers = (
        GOOD
        + """
        import atexit, threading, time
        atexit.register(time.sleep, 1000)
        threading.Thread(target=time.sleep, args=(1000,)).start()
    """
    )
    (library,) = libraries(lingers=lingers)
    assert (library.failed, len(library.workers)) == ("", 1)


def test_a_master_that_is_to_end_does_not_wait(libraries, pid_file):
    """Nor does it take a library for failed that it has not let finish."""
    read, write = os.pipe()
    os.write(write, b"\x0f")
    hangs = """
        import os, time
        with open(os.environ["PID_FILE"], "w") as file:
            file.write(str(os.getpid()))
        time.sleep(1000)
    """
    assert libraries(interrupt=read, hangs=hangs) is None
    if pid_file.exists():
        assert gone(int(pid_file.read_text()))
    os.close(read)
    os.close(write)


def test_a_library_ends_with_a_master_that_is_killed(tmp_path, pid_file):
    (tmp_path / "hangs.py").write_text(
        "import os, time\n"
        "with open(os.environ['PID_FILE'] + '.new', 'w') as file:\n"
        "    file.write(str(os.getpid()))\n"
        "os.rename(os.environ['PID_FILE'] + '.new', os.environ['PID_FILE'])\n"
        "time.sleep(1000)\n"
    )
    code = (
        "import sys; from posthouse_master.preload import preload; "
        "from posthouse.settings import MasterSettings as M; "
        "preload(M(state_dir='', listen_agents='', listen_clients='', "
        "preload_libraries=('hangs',), preload_path=(sys.argv[1],), preload_timeout_s=60.0))"
    )
    master = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    try:
        end_s = time.monotonic() + 30
        while not pid_file.exists():
            assert time.monotonic() < end_s
            time.sleep(0.01)
    finally:
        master.kill()
        master.wait()
    assert gone(int(pid_file.read_text()))


def test_a_process_that_cannot_be_started_is_a_failed_library(libraries, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    (library,) = libraries(good=GOOD)
    assert library.failed == (
        "library good: no process can be started for it: No such file or directory"
    )


def test_no_descriptor_is_left_open(libraries):
    before = sorted(os.listdir("/proc/self/fd"))
    libraries(good=GOOD, bad="1/0")
    assert sorted(os.listdir("/proc/self/fd")) == before


# --- the answer, byte by byte --------------------------------------------------------------------


def framed(*messages: Message) -> bytes:
    frames = [codec.encode(Envelope(NO_SESSION, 0, 0, 0, message)) for message in messages]
    return b"".join(len(frame).to_bytes(4) + frame for frame in frames)


def part(number: int, workers: int = 1) -> DeclarePart:
    made = [Declared(spec={"name": f"w{number}", "main": "m:f"})] * workers
    return DeclarePart(request=bytes(16), upload=bytes(16), part=number, workers=made)


DONE = Done(request=bytes(16))


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_an_answer_may_come_in_any_pieces(step):
    data = framed(part(0), part(1), DONE)
    answer = Answer()
    for at in range(0, len(data), step):
        assert not answer.finished
        answer.feed(data[at : at + step])
    assert answer.finished
    assert answer.verdict() == ""
    assert [worker.spec["name"] for worker in answer.workers] == ["w0", "w1"]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"\xff\xff\xff\xff", "a frame of 4294967295 bytes"),
        (b"\0\0\0\1\xc1", "not msgpack within limits"),
        (framed(part(1)), "DeclarePart is no part of it"),
        (framed(part(0, workers=2)), "DeclarePart is no part of it"),
        (framed(Renew(stamp=1)), "Renew is no part of it"),
        (framed(DONE, DONE), "a frame after the last one"),
        (framed(DONE, part(0)), "a frame after the last one"),
        (framed(*(part(number) for number in range(10_001)), DONE), "more than 10000 workers"),
    ],
)
def test_what_is_no_answer_is_refused(data, told):
    with pytest.raises(BadFrame) as caught:
        Answer().feed(data)
    assert told in caught.value.message


def test_an_answer_that_breaks_off_is_none():
    answer = Answer()
    answer.feed(framed(part(0), DONE)[:-1])
    assert (answer.finished, answer.verdict()) == (False, "its answer ends within a frame")


def test_bytes_without_end_are_refused():
    answer = Answer()
    worker = Declared(spec={"name": "w", "extra": b"x" * 250_000})
    with pytest.raises(BadFrame, match="more than 33554432 bytes"):
        for number in range(1000):
            answer.feed(
                framed(
                    DeclarePart(request=bytes(16), upload=bytes(16), part=number, workers=[worker])
                )
            )
    assert len(answer.workers) == 134


def test_a_library_names_its_own_reason():
    answer = Answer()
    answer.feed(framed(Failed(request=bytes(16), code="refused", message="no")))
    assert answer.verdict() == "no"


REQUEST = """
    def posthouse_init(registry):
        registry.request_struct("counters", {size})
        registry.request_struct("mine", 8, crash_domain=__name__)
"""


def test_k1_structures_are_requested_in_posthouse_init(
    libraries: Callable[..., list[Library] | None],
) -> None:
    loaded = libraries(one=REQUEST.format(size=64))
    assert loaded is not None
    assert [(s.name, s.size, s.crash_domain, s.library) for s in loaded[0].structs] == [
        ("counters", 64, "default", "one"),
        ("mine", 8, "one", "one"),
    ]
    with pytest.raises(NotPermitted, match="such a request is possible only in posthouse_init"):
        StaticRegistry().request_struct("late", 8)


@pytest.mark.parametrize("size", [64, 65])
def test_k1_of_two_libraries_that_request_one_name_the_second_is_refused(
    size: int, libraries: Callable[..., list[Library] | None], tmp_path: Path
) -> None:
    loaded = libraries(one=REQUEST.format(size=64), two=REQUEST.format(size=size))
    assert loaded is not None
    settings = MasterSettings(state_dir="", listen_agents="", listen_clients="")
    configured = gather(settings, loaded)
    assert [s.library for s in configured.structs] == ["one", "one"]
    assert configured.sources[1].failed == (
        f"library two: structure 'counters' of crash domain 'default' ({size} bytes) is requested "
        "by library one already (64 bytes)"
    )


@pytest.mark.parametrize(
    ("count", "size", "what"),
    [(5, 2**30, "5368709120 bytes requested"), (65, 8, "65 structures requested")],
)
def test_k1_what_a_crash_domain_cannot_have_is_refused_with_the_library(
    count: int, size: int, what: str
) -> None:
    structs = [StructRequest(name=f"s{n}", size=size, library="greedy") for n in range(count)]
    small = StructRequest(name="small", size=8, library="small")
    found = [
        Library(name="greedy", structs=tuple(structs)),
        Library(name="small", structs=(small,)),
    ]
    settings = MasterSettings(state_dir="", listen_agents="", listen_clients="")
    configured = gather(settings, found)
    assert configured.sources[0].failed.startswith("library greedy: with structure 's")
    assert what in configured.sources[0].failed
    assert configured.structs == (small,), "one that is refused takes no room"
