"""Every verb against real processes: what it prints, its JSON, its exit status."""

import json
import os
import re
import signal
import subprocess
import time

import pytest

from posthouse_cli import shapes
from posthouse_cli.main import VERBS
from posthouse_testing.cluster import command

HANDLE = re.compile(r"[0-9a-f]{32}:\d+\.\d+")


def test_register_prints_a_handle_that_other_verbs_take(posthouse, objects, name):
    printed = posthouse(
        "register", "--name", name, "--main", "jobs:idle", "--host", "b", "--restart-time", "never"
    ).stdout.strip()
    assert HANDLE.fullmatch(printed)
    posthouse("wait", printed, "--for", "started", "--timeout", "20")
    [by_handle], [by_name] = objects("status", printed), objects("status", name)
    assert by_handle["handle"] == by_name["handle"] == printed
    assert by_handle["pid"] == by_name["pid"] > 1


def test_register_takes_every_kind_of_field_and_the_worker_has_it(posthouse, objects, name):
    posthouse(
        "register",
        *("--name", name, "--main", "jobs:tell_entry", "--host", "a"),
        *("--main-arg", '{"k": [1, "é"]}', "--extra", "bytes", "--env", "A=1", "--env", "B=x=y"),
        *("--stop-grace-s", "1500ms", "--umask", "027", "--flags", "shmem_access"),
        *("--start-time", "consistent-state", "-o", "nice=3", "-o", "rlimits=nofile=256"),
    )
    posthouse("wait", name, "--for", "gone", "--timeout", "20")
    assert json.loads(posthouse("logs", name).stdout) == {
        "arg": {"k": [1, "é"]},
        "extra": "bytes",
        "environment": {"A": "1", "B": "x=y"},
        "nice": 3,
        "umask": 0o027,
        "files": 256,
        "host": "a",
        "incarnation": 1,
    }
    [found] = [w for w in objects("ps", "--all") if w["name"] == name]
    spec = found["spec"]
    assert (spec["stop_grace_s"], spec["start_time"], spec["flags"]) == (1.5, "consistent_state", 1)
    # What a worker is given may be secret, and is shown to nobody.
    assert not {"main_arg", "extra", "env"} & set(spec)


def test_run_follows_until_the_worker_is_unregistered(posthouse, name):
    ran = posthouse("run", "jobs:leave", "--name", name, "--on", "b", "--arg", "0")
    rows = [line.split("\t") for line in ran.stdout.splitlines()]
    kinds = [row[2] for row in rows]
    assert kinds == ["registered", "started", "exited", "unregistered"]
    assert {row[1] for row in rows} == {name}
    started, exited = rows[1], rows[2]
    assert started[3:5] == exited[3:5]
    assert started[3] == "b" and started[4].isdecimal()
    assert "code 0" in exited[5]


def test_run_json_has_every_event_with_the_documented_keys(objects, name):
    events = objects("run", "jobs:leave", "--name", name, "--on", "a", "--arg", "0")
    assert [e["kind"] for e in events] == [
        "registered", "starting", "started", "exited", "unregistered",
    ]  # fmt: skip
    for event in events:
        assert tuple(event) == shapes.EVENT_KEYS
    assert events[3]["exit"]["code"] == 0
    assert len({e["handle"] for e in events}) == 1


@pytest.mark.parametrize("code", [0, 7])
def test_run_wait_gives_the_workers_own_status(posthouse, name, code):
    posthouse(
        *("run", "jobs:leave", "--name", name, "--on", "a", "--restart-time", "never"),
        *("--arg", str(code), "--wait"),
        status=code,
    )


def test_run_wait_gives_128_and_the_signal(cluster, posthouse, name):
    running = subprocess.Popen(
        [*command(), "run", "jobs:idle", "--name", name, "--restart-time", "never", "--wait"],
        env=cluster.command_env(),
        stdout=subprocess.PIPE,
        text=True,
    )
    with running:
        while "started" not in running.stdout.readline():
            pass
        posthouse("signal", name, "KILL")
        assert "SIGKILL" in running.stdout.read()
    assert running.returncode == 128 + signal.SIGKILL


def test_leaving_run_leaves_the_worker(cluster, posthouse, name):
    running = subprocess.Popen(
        [*command(), "run", "jobs:idle", "--name", name],
        env=cluster.command_env(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with running:
        while "started" not in running.stdout.readline():
            pass
        running.send_signal(signal.SIGINT)
        talk = running.stderr.read()
    assert running.returncode == 130
    assert f"posthouse terminate {name}" in talk
    assert "Traceback" not in talk
    posthouse("pid", name)


def test_ps_lists_live_registrations_and_with_all_the_ended_ones(posthouse, objects, idle):
    [row] = [r for r in posthouse("ps").stdout.splitlines() if r.startswith(idle)]
    pid = posthouse("pid", idle).stdout.strip()
    assert row.split("\t")[:4] == [idle, "started", "b", pid]
    [worker] = [w for w in objects("ps") if w["name"] == idle]
    assert tuple(worker) == shapes.WORKER_KEYS
    assert (worker["state"], worker["host"], worker["pid"]) == ("started", "b", int(pid))
    assert worker["handle"] in posthouse("ps", "-q").stdout.splitlines()

    posthouse("terminate", idle)
    assert idle not in posthouse("ps").stdout
    [ended] = [w for w in objects("ps", "--all") if w["name"] == idle]
    assert (ended["state"], ended["final"], ended["retired"]) == ("stopped", True, True)


def test_status_tells_state_why_host_pid_and_output(posthouse, objects, name):
    posthouse(
        *("run", "jobs:speak", "--name", name, "--on", "b", "--detach"),
        *("--arg", '["one", "two"]'),
    )
    posthouse("wait", name, "--for", "ready", "--timeout", "20")
    told = dict(
        line.split("\t", 1)
        for line in posthouse("status", name).stdout.splitlines()
        if line[0] != "\t"
    )
    assert (told["name"], told["state"], told["host"]) == (name, "started, ready", "b")
    assert told["pid"].isdecimal()
    assert told["output"] == "one"
    [status] = objects("status", name)
    assert tuple(status) == (*shapes.STATUS_KEYS, "output_tail", "verdicts")
    assert status["output_tail"] == "one\ntwo"


def test_status_of_a_failed_worker_says_why_and_exits_3(posthouse, objects, name):
    posthouse(
        *("run", "jobs:raise_error", "--name", name, "--on", "b", "--restart-time", "never"),
        *("--arg", '"the cause"'),
    )
    told = posthouse("status", name, status=3).stdout
    assert "state\tstopped" in told
    assert "last exit\texited with code 1" in told
    assert "RuntimeError: the cause" in told
    [status] = objects("status", name, status=3)
    assert status["final"] is True
    assert "RuntimeError: the cause" in status["last_exit"]["traceback"]


def test_status_why_gives_a_verdict_for_every_host(posthouse, objects, name):
    posthouse("register", "--name", name, "--main", "jobs:idle", "--host", "b")
    posthouse("wait", name, "--for", "started", "--timeout", "20")
    [told] = objects("status", name, "--why")
    by_host = {verdict["host"]: verdict for verdict in told["verdicts"]}
    assert by_host["b"] == {"host": "b", "fits": True, "reason": "it is there"}
    assert (by_host["a"]["fits"], "a: " in by_host["a"]["reason"]) == (False, False)
    lines = posthouse("status", name, "--why").stdout
    assert "b: it is there" in lines
    assert f"a: {by_host['a']['reason']}" in lines
    assert objects("status", name)[0]["verdicts"] is None


def test_logs_over_restarts_tail_and_follow(cluster, posthouse, objects, name, tmp_path):
    posthouse(
        *("run", "jobs:count", "--name", name, "--on", "b", "--restart-time", "0.05", "--detach"),
        *("--arg", json.dumps(str(tmp_path / "count"))),
    )
    with subprocess.Popen(
        [*command(), "logs", "-f", name],
        env=cluster.command_env(),
        stdout=subprocess.PIPE,
        text=True,
    ) as following:
        for number in (1, 2, 3):
            # While it goes on: a pipe's reader gets each line as it comes.
            assert following.stdout.readline() == f"start {number}\n"
        posthouse("terminate", name)
        rest = following.stdout.read().splitlines()
    assert following.returncode == 0
    lines = posthouse("logs", name).stdout.splitlines()
    assert lines[:3] == ["start 1", "start 2", "start 3"]
    assert lines[3:] == rest
    assert posthouse("logs", name, "-n", "2").stdout.splitlines() == lines[-2:]
    assert posthouse("logs", name, "-n", "0").stdout == ""
    told = objects("logs", name)
    assert [line["text"] for line in told] == lines
    assert [line["offset"] for line in told][:2] == [0, len("start 1\n")]
    assert {line["host"] for line in told} == {"b"}


def test_logs_of_many_pages(posthouse, name):
    lines = [f"{number} " + "x" * 40 for number in range(4000)]
    # More than one page, in an argument that fits: the worker's own source writes them.
    code = "print('\\n'.join(f'{n} ' + 'x' * 40 for n in range(4000)))"
    argv = json.dumps([command()[0], "-c", code])
    posthouse("run", "posthouse.exec", "--name", name, "--on", "a", "--arg", argv)
    assert posthouse("logs", name).stdout.splitlines() == lines
    assert posthouse("logs", name, "-n", "3000").stdout.splitlines() == lines[-3000:]
    assert posthouse("logs", name, "-n", "9000").stdout.splitlines() == lines


def test_events_of_one_of_all_and_after_a_cursor(posthouse, objects, name):
    posthouse("run", "jobs:leave", "--name", name, "--on", "a", "--arg", "0")
    events = objects("events", name)
    assert [e["kind"] for e in events] == [
        "registered", "starting", "started", "exited", "unregistered",
    ]  # fmt: skip
    rest = objects("events", name, "--after", events[1]["cursor"])
    assert rest == events[2:]
    everything = objects("events")
    assert [e for e in everything if e["name"] == name] == events
    assert [e["sequence"] for e in everything] == sorted({e["sequence"] for e in everything})
    assert {e["host"] for e in everything if e["kind"] == "host_up"} >= {"a", "b"}


def test_events_follow_is_flushed_line_by_line(cluster, posthouse, name):
    with subprocess.Popen(
        [*command(), "events", "-f", "--timeout", "30"],
        env=cluster.command_env(),
        stdout=subprocess.PIPE,
        text=True,
    ) as following:
        posthouse("run", "jobs:leave", "--name", name, "--arg", "0", "--detach")
        kinds = []
        while "unregistered" not in kinds:
            row = following.stdout.readline().split("\t")
            kinds += [row[2]] if row[1] == name else []
        following.terminate()
    assert kinds == ["registered", "starting", "started", "exited", "unregistered"]
    assert following.returncode == 128 + signal.SIGTERM


def test_wait_for_each_goal(posthouse, objects, name):
    posthouse("run", "jobs:idle", "--name", name, "--on", "b", "--restart-time", "0.05", "--detach")
    assert f"{name} is started on b with pid" in posthouse("wait", name, "--for", "started").stdout
    [ready] = objects("wait", name, "--for", "ready", "--timeout", "20")
    assert ready["ready"] is True
    posthouse("wait", name, "--for", "gone", "--timeout", "0.2", status=5)
    os.kill(ready["pid"], signal.SIGKILL)
    posthouse("wait", name, "--for", "exit", "--timeout", "0.01", status=None)
    posthouse("terminate", name)
    [gone] = objects("wait", name)
    assert (gone["state"], gone["final"]) == ("stopped", True)
    posthouse("wait", name, "--for", "exit")
    posthouse("wait", name, "--for", "started", status=1)


def test_wait_with_timeout_0_looks_once(posthouse, idle):
    assert "is started on b" in posthouse("wait", idle, "--for", "started", "--timeout", "0").stdout
    told = posthouse("wait", idle, "--timeout", "0", status=5).stderr
    assert f"{idle} is started" in told and "not waited for gone" in told
    posthouse("terminate", idle)
    posthouse("wait", idle, "--for", "gone", "--timeout", "0")
    posthouse("wait", idle, "--for", "started", "--timeout", "0", status=1)


def test_pid_and_signal(posthouse, name):
    posthouse("run", "jobs:idle", "--name", name, "--restart-time", "1h", "--detach")
    posthouse("wait", name, "--for", "started", "--timeout", "20")
    pid = int(posthouse("pid", name).stdout)
    assert os.path.exists(f"/proc/{pid}")
    posthouse("signal", name, "CONT")
    posthouse("signal", name, "SIGKILL")
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{pid}"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    posthouse("wait", name, "--for", "exit", "--timeout", "20")
    assert "SIGKILL" in posthouse("pid", name, status=3).stderr
    posthouse("signal", name, "HUP", status=3)
    posthouse("signal", name, "NOSUCH", status=1)


def test_terminate_many_waits_until_they_are_gone(posthouse, cluster, name):
    names = [f"{name}-{number}" for number in range(3)]
    for each in names:
        posthouse("run", "jobs:idle", "--name", each, "--detach")
    told = posthouse("terminate", *names).stdout.splitlines()
    assert [line.split()[0] for line in told] == names
    assert all("is unregistered" in line for line in told)
    for each in names:
        posthouse("pid", each, status=3)
    again = posthouse("terminate", names[0], status=3)
    assert "unregistered already" in again.stderr


def started(cluster, name, incarnation):
    """Its n-th start, as soon as it has happened."""
    with cluster.connect() as client:
        events = client.handle(name).events(timeout=20)
        return next(e for e in events if e.kind == "started" and e.incarnation == incarnation)


def test_hold_release_and_restart(cluster, posthouse, objects, idle):
    first = objects("status", idle)[0]["pid"]
    assert posthouse("hold", idle).stdout == f"{idle} is held\n"
    assert posthouse("hold", idle).stdout == f"{idle} is held already\n"
    held = objects("status", idle, status=3)[0]
    assert (held["state"], held["final"]) == ("stopped", False)
    assert held["reason"].startswith("held by client:local")
    assert "is held" in posthouse("restart", idle, status=1).stderr
    assert posthouse("release", idle).stdout == f"{idle} is released\n"
    second = started(cluster, idle, 2).pid
    assert posthouse("restart", idle).stdout.startswith(f"{idle} runs on ")
    third = objects("status", idle)[0]
    assert third["incarnation"] == 3
    assert len({first, second, third["pid"]}) == 3
    assert posthouse("release", idle).stdout == f"{idle} is not held\n"
    assert posthouse("hold", "nobody-here", status=3).stderr
    assert "restart --help" in posthouse("restart", status=2).stderr


def test_drain_moves_a_worker_and_undo_lets_the_host_have_starts(posthouse, objects, name):
    posthouse(
        "register", "--name", name, "--main", "posthouse.exec", "--main-arg", '["sleep", "60"]'
    )
    posthouse("wait", name, "--for", "started")
    home = objects("status", name)[0]["host"]
    drained = posthouse("drain", home, status=None)
    assert f"{home} is drained" in drained.stdout
    hosts = {host["name"]: host for host in objects("hosts")}
    assert hosts[home]["draining"]
    assert "draining" in posthouse("hosts").stdout
    assert posthouse("drain", home, "--undo").stdout == f"{home} gets starts again\n"
    assert posthouse("drain", home, "--undo").stdout == f"{home} was not being drained\n"
    assert "known are" in posthouse("drain", "nowhere", status=1).stderr
    posthouse("terminate", name)


def test_terminate_no_wait(posthouse, idle):
    assert "is being terminated" in posthouse("terminate", "--no-wait", idle).stdout
    posthouse("wait", idle, "--timeout", "20")


def test_hosts(posthouse, objects):
    rows = [line.split("\t") for line in posthouse("hosts").stdout.splitlines()]
    assert [row[:2] for row in rows] == [["a", "reachable"], ["b", "reachable"]]
    told = objects("hosts")
    assert [host["name"] for host in told] == ["a", "b"]
    for host in told:
        assert tuple(host) == shapes.HOST_KEYS


def test_a_worker_reaches_its_cluster_without_being_told_where(posthouse, cluster, name):
    posthouse("run", "jobs:tell_environment", "--name", name, "--on", "b")
    with cluster.connect() as client:
        assert posthouse("logs", name).stdout.strip() == f"registry {client.registry}"


def test_version(posthouse, objects):
    assert re.match(r"posthouse \d+\.\d+\.\d+", posthouse("version").stdout)
    [facts] = objects("version")
    assert set(facts) == {"posthouse", "protocol_min", "protocol_max", "python", "zmq"}


def test_help_of_every_verb_names_what_it_prints(posthouse):
    shown = posthouse("--help").stdout
    for verb in VERBS:
        assert re.search(rf"^  {verb} ", shown, re.MULTILINE), verb
        helped = posthouse(verb, "--help").stdout
        assert helped.startswith(f"Usage: posthouse {verb}")
        if "--json" in helped:
            assert "JSON keys" in helped or "posthouse events --json" in helped, verb
