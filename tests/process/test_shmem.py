"""Shared memory between real workers of a real warden (K1-K9): segments, tables of contents."""

import zlib
from pathlib import Path

import psutil
import pytest

from posthouse_agent.orders import Ended, StopWorker

SHMEM = 1
TERM = 15


@pytest.fixture(name="host")
def _host(shared_host):
    return shared_host


@pytest.fixture(name="agent")
def _agent(shared_agent):
    return shared_agent


@pytest.fixture(name="domain")
def _domain(request):
    """One of the test's own."""
    return f"d{zlib.crc32(request.node.name.encode())}"


def job(host, agent, main, arg=None, **spec):
    """Start it; what it said first, and its Forked."""
    forked = host.begin(agent, f"shmem_jobs:{main}", arg, flags=SHMEM, **spec)
    return host.said(forked.slot)[0], forked


def end(agent, *many):
    for forked in many:
        agent.give(
            StopWorker(
                token=forked.token, slot=forked.slot, reason="terminate", signal=TERM, grace_s=5
            )
        )
        agent.expect(Ended, forked.token)


def run(host, agent, main, arg=None, code=0, **spec):
    ended = host.run(agent, f"shmem_jobs:{main}", arg, flags=SHMEM, **spec)
    assert ended.facts.get("code") == code, ended.facts
    return host.said(ended.slot)


def test_a_worker_without_the_flag_has_none_of_it(host, agent, domain):
    _, keeper = job(host, agent, "struct", ["s", 64, 1], crash_domain=domain)
    ended = host.run(agent, "shmem_jobs:none_of_it")
    assert host.said(ended.slot) == [{"error": "UsageError", "mapped": False, "open": False}]
    end(agent, keeper)


def test_k1_a_structure_is_found_or_made_by_name(host, agent, domain):
    first, one = job(host, agent, "struct", ["s", 64, 7], crash_domain=domain)
    second, two = job(host, agent, "struct", ["s", 64, 0], crash_domain=domain)
    other, three = job(host, agent, "struct", ["s", 64, 0], crash_domain=f"{domain[:50]}-other")
    mismatch, *_ = run(host, agent, "struct", ["s", 65, 0], crash_domain=domain)
    assert (first["found"], first["before"]) == (False, 0)
    assert (second["found"], second["before"], second["size"]) == (True, 7, 64)
    assert (other["found"], other["before"]) == (False, 0)
    assert mismatch == {"error": "SizeMismatch"}
    end(agent, one, two, three)
    kept, four = job(host, agent, "struct", ["s", 64, 0], crash_domain=domain)
    assert (kept["found"], kept["before"]) == (True, 7), "a structure stays when nobody has it"
    end(agent, four)


def test_k1_bad_names_and_sizes(host, agent, domain):
    (said,) = run(host, agent, "bad_structs", crash_domain=domain)
    assert said == {"errors": ["UsageError"] * 9, "again": True}


def test_k3_one_maker_runs_the_callback_and_others_wait(host, agent, domain, eventually):
    orders = [
        host.order("shmem_jobs:named_maker", flags=SHMEM, crash_domain=domain) for _ in range(4)
    ]
    for order in orders:
        agent.give(order)
    said = []
    for order in orders:
        eventually(lambda slot=order.slot: host.log_path(slot).exists() and host.said(slot))
        said += host.said(order.slot)
    assert sorted(s["calls"] for s in said) == [0, 0, 0, 1]
    assert [s["value"] for s in said] == [5] * 4
    end(agent, *orders)


def test_k3_where_the_callback_fails_the_next_one_is_the_maker(host, agent, domain):
    (said,) = run(host, agent, "named_fails", crash_domain=domain)
    assert said == {"first": "ValueError", "found": False, "value": 3}


def test_k4_k5_a_handle_travels_in_main_arg(host, agent, domain):
    made, maker = job(host, agent, "dsm_maker", 4096, crash_domain=domain)
    assert 0 < made["handle"] < 2**63
    assert (made["twice"], made["same"], made["none"]) == ("UsageError", True, True)
    used, user = job(host, agent, "dsm_user", made["handle"], crash_domain=domain)
    assert used == {"value": 77}
    elsewhere = run(host, agent, "dsm_user", made["handle"], crash_domain=f"{domain[:50]}-other")
    assert elsewhere == [{"value": None}], "a handle of another crash domain"
    end(agent, maker)
    assert run(host, agent, "dsm_attach_and_leave", made["handle"], crash_domain=domain) == [
        {"value": 77}
    ]
    end(agent, user)
    assert run(host, agent, "dsm_user", made["handle"], crash_domain=domain) == [{"value": None}]


def test_k5_bad_handles(host, agent, domain):
    (said,) = run(host, agent, "bad_handles", crash_domain=domain)
    assert said["results"] == [None] * 5 + ["UsageError"] * 2


def test_k4_bad_sizes(host, agent, domain):
    (said,) = run(host, agent, "bad_sizes", crash_domain=domain)
    assert said["results"] == ["UsageError"] * 6


def test_k4_there_is_a_limit_which_the_error_tells(host, agent, domain):
    first, second = run(host, agent, "too_many", crash_domain=domain)
    assert (first["error"], first["made"]) == ("TooMany", 1024)
    assert "1024" in first["message"]
    assert second == {"again": True}


def test_k6_pins(host, agent, domain):
    (said,) = run(host, agent, "pins", crash_domain=domain)
    assert said == {
        "double": "RefusedError",
        "kept": True,
        "unpinned": "RefusedError",
        "gone": True,
        "gone_too": True,
        "unknown": "RefusedError",
    }


@pytest.mark.parametrize(("how", "code"), [("detach", 0), ("return", 0), ("error", 1)])
def test_k7_w6_detach_callbacks_run_last_first_before_the_memory_goes(
    host, agent, domain, how, code
):
    (said,) = run(host, agent, "callbacks", how, code, crash_domain=domain)
    order = ["second", "first 4"]
    expected = [*order, "detached", "before_exit"] if how == "detach" else ["before_exit", *order]
    assert said["order"] == [*expected, "on_exit"]


def test_k8_nothing_is_left_of_a_killed_warden(empty_host, eventually):
    """PostgreSQL clears what a killed postmaster left. Here the kernel has: it has no name."""
    host = empty_host.start()
    agent = host.agent()
    made, _ = job(host, agent, "dsm_maker", 1 << 20)
    ours = [host.pid, *(child.pid for child in psutil.Process(host.pid).children(recursive=True))]
    mapped = [line for pid in ours for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    assert any("/memfd:posthouse-segment-" in line for line in mapped)
    assert not any("/dev/shm/" in line for line in mapped)
    host.kill()
    host.start()
    agent = host.agent()
    assert run(host, agent, "dsm_user", made["handle"]) == [{"value": None}]


def test_k9_table_of_contents(host, agent, domain):
    (said,) = run(host, agent, "toc", crash_domain=domain)
    assert said == {
        "first wins": 100,
        "value": 42,
        "aligned": [0, 0],
        "other magic": True,
        "missing": "UsageError",
        "missing ok": None,
        "too big": "NoMemory",
        "full": "NoMemory",
        "version": "Corrupt",
        "size": "Corrupt",
        "entries": "Corrupt",
        "offset": "Corrupt",
    }


def test_a_segment_cannot_change_its_size(host, agent, domain):
    (said,) = run(host, agent, "sealed", crash_domain=domain)
    assert set(said["errors"]) <= {"PermissionError", "OSError", "SystemError"}
    assert said["size"] == 4096


def test_a_segment_is_a_buffer_of_zeros(host, agent, domain):
    (said,) = run(host, agent, "buffers", crash_domain=domain)
    assert said == {
        "zeros": True,
        "same": 7,
        "readonly": False,
        "kind": True,
        "outside": "UsageError",
        "written": 9,
    }
