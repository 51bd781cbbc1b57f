"""The order of a child's set-up, as the kernel saw it; what daemons take off their OOM score."""

import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from posthouse_agent import child, oom_score

# What reliability asks for, one after the other. Between two of them may stand anything else.
ORDER = (
    r"setsid\(",
    r"close_range\(",
    r"prlimit64\(0, RLIMIT_NOFILE, \{",
    r"umask\(027\)",
    r"setpriority\(PRIO_PROCESS, 0, 3\)",
    r'chdir\("/usr"\)',
    r"setgroups\(",
    r"setresgid\(",
    r"setresuid\(",
    r"capset\(",
    r"prctl\(PR_SET_DUMPABLE, ",
    r"prctl\(PR_SET_NO_NEW_PRIVS, 1",
    r"prctl\(PR_SET_PDEATHSIG, SIGKILL",
    r"getppid\(\)",
)


def test_a_child_is_set_up_in_this_order(empty_host):
    """Limits while it may, then the user, then what a change of user takes off."""
    if shutil.which("strace") is None or os.geteuid() != 0:
        pytest.skip("needs root and strace")
    host = empty_host
    trace = host.folder / "trace"
    calls = {re.match(r"\w+", step)[0] for step in ORDER}
    host.python = ["strace", "-f", "-qq", "-o", str(trace), "-e", f"trace={','.join(calls)}"]
    host.python += [sys.executable, "-P"]
    agent = host.start().agent()
    ended = host.run(
        agent, "posthouse.exec", ["true"], run_as="nobody", umask=0o027, nice=3, cwd="/usr"
    )
    assert ended.facts.get("code") == 0, ended.facts
    pid = ended.facts["pid"]
    lines = [
        line.split(maxsplit=1)[1]
        for line in trace.read_text().splitlines()
        if line.startswith(f"{pid} ")
    ]
    begin = max(n for n, line in enumerate(lines) if line.startswith("setsid("))
    at = begin
    for step in ORDER:
        found = [n for n in range(at, len(lines)) if re.match(step, lines[n])]
        assert found, f"{step} does not follow in {lines[begin:]}"
        at = found[0] + 1
    # and nothing that takes the signal off again comes after it
    assert not [line for line in lines[at:] if line.startswith("setres")]


def test_the_cgroup_is_joined_before_limits_and_user():
    names = [name for name, _ in child._STEPS]
    assert names.index("descriptors") < names.index("cgroup") < names.index("rlimits")
    assert names[-4:] == ["user", "no_new_privileges", "parent_death", "parent_check"]


@pytest.mark.parametrize(
    ("before", "permitted", "now", "workers"),
    [
        ("0", True, "-900", 0),
        ("500", True, "-900", 500),  # what somebody has added stays on the workers
        ("-900", True, "-900", 0),  # by the unit's OOMScoreAdjust
        ("-1000", True, "-1000", 0),
        ("0", False, "0", None),
        ("300", False, "300", None),
    ],
)
def test_workers_do_not_inherit_what_their_daemon_took_off(
    tmp_path, monkeypatch, before, permitted, now, workers
):
    path = tmp_path / "oom_score_adj"
    path.write_text(before)
    monkeypatch.setattr(oom_score, "_PATH", str(path))

    def write(score):
        if not permitted:
            raise PermissionError
        path.write_text(str(score))

    monkeypatch.setattr(oom_score, "write", write)
    assert oom_score.protect() == workers
    assert path.read_text() == now


def test_a_worker_s_own_score_is_written(host, agent):
    """Of a warden whose score was raised: raising is always permitted, and lowering often not."""
    ended = host.run(agent, "posthouse.exec", ["cat", "/proc/self/oom_score_adj"])
    own, ours = (int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid in (host.pid, "self"))
    expected = max(0, ours) if own < 0 else own
    assert ended.facts["output_tail"] == f"{expected}\n"
    assert ended.facts["code"] == 0
