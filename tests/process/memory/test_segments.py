"""Shared memory between real workers of a real warden (K1-K9): segments, tables of contents."""

from pathlib import Path

import psutil
import pytest

JOBS = "shmem_jobs"


def job(memory, main, arg=None, **spec):
    """Start it; what it said first, and its Forked."""
    forked = memory.begin(main, arg, **spec)
    return memory.said(forked)[0], forked


def test_a_worker_without_the_flag_has_none_of_it(memory, host, agent):
    _, keeper = job(memory, "struct", ["s", 64, 1])
    ended = host.run(agent, "shmem_jobs:none_of_it")
    assert memory.said(ended) == [{"error": "UsageError", "mapped": False, "open": False}]
    memory.end(keeper)


def test_k1_q24_a_structure_is_found_or_made_by_name(memory):
    first, one = job(memory, "struct", ["s", 64, 7])
    second, two = job(memory, "struct", ["s", 64, 0])
    other, three = job(memory, "struct", ["s", 64, 0], crash_domain=f"{memory.domain}-other")
    mismatch, *_ = memory.run("struct", ["s", 65, 0])
    assert (first["found"], first["before"]) == (False, 0)
    assert (second["found"], second["before"], second["size"]) == (True, 7, 64)
    assert (other["found"], other["before"]) == (False, 0)
    assert mismatch == {"error": "SizeMismatch"}
    memory.end(one, two, three)
    kept, four = job(memory, "struct", ["s", 64, 0])
    assert (kept["found"], kept["before"]) == (True, 7), "a structure stays when nobody has it"
    memory.end(four)


def test_k1_bad_names_and_sizes(memory):
    (said,) = memory.run("bad_structs")
    assert said == {"errors": ["UsageError"] * 9, "again": True}


def test_k3_one_maker_runs_the_callback_and_others_wait(memory):
    orders = [memory.order("named_maker") for _ in range(4)]
    said = [memory.said(order)[0] for order in orders]
    assert sorted(s["calls"] for s in said) == [0, 0, 0, 1]
    assert [s["value"] for s in said] == [5] * 4
    memory.end(*orders)


def test_k3_where_the_callback_fails_the_next_one_is_the_maker(memory):
    (said,) = memory.run("named_fails")
    assert said == {"first": "ValueError", "found": False, "value": 3}


def test_k4_k5_a_handle_travels_in_main_arg(memory):
    made, maker = job(memory, "dsm_maker", 4096)
    assert 0 < made["handle"] < 2**63
    assert (made["twice"], made["same"], made["none"]) == ("UsageError", True, True)
    used, user = job(memory, "dsm_user", made["handle"])
    assert used == {"value": 77}
    elsewhere = memory.run("dsm_user", made["handle"], crash_domain=f"{memory.domain}-other")
    assert elsewhere == [{"value": None}], "a handle of another crash domain"
    memory.end(maker)
    assert memory.run("dsm_attach_and_leave", made["handle"]) == [{"value": 77}]
    memory.end(user)
    assert memory.run("dsm_user", made["handle"]) == [{"value": None}]


def test_k5_bad_handles(memory):
    (said,) = memory.run("bad_handles")
    assert said["results"] == [None] * 5 + ["UsageError"] * 2


def test_k4_bad_sizes(memory):
    (said,) = memory.run("bad_sizes")
    assert said["results"] == ["UsageError"] * 6


def test_k4_there_is_a_limit_which_the_error_tells(memory):
    first, second = memory.run("too_many")
    assert (first["error"], first["made"]) == ("TooMany", 1024)
    assert "1024" in first["message"]
    assert second == {"again": True}


def test_k6_pins(memory):
    (said,) = memory.run("pins")
    assert said == {
        "double": "RefusedError",
        "kept": True,
        "unpinned": "RefusedError",
        "gone": True,
        "gone_too": True,
        "unknown": "RefusedError",
    }


@pytest.mark.parametrize(("how", "code"), [("detach", 0), ("return", 0), ("error", 1)])
def test_k7_w6_detach_callbacks_run_last_first_before_the_memory_goes(memory, how, code):
    (said,) = memory.run("callbacks", how, code)
    order = ["second", "first 4"]
    expected = [*order, "detached", "before_exit"] if how == "detach" else ["before_exit", *order]
    assert said["order"] == [*expected, "on_exit"]


def test_k8_nothing_is_left_of_a_killed_warden(memory, empty_host):
    """PostgreSQL clears what a killed postmaster left. Here the kernel has: it has no name."""
    host = empty_host.start()
    made, _ = job(memory.on(host), "dsm_maker", 1 << 20)
    ours = [host.pid, *(child.pid for child in psutil.Process(host.pid).children(recursive=True))]
    mapped = [line for pid in ours for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    assert any("/memfd:posthouse-segment-" in line for line in mapped)
    assert not any("/dev/shm/" in line for line in mapped)
    host.kill()
    host.start()
    assert memory.on(host).run("dsm_user", made["handle"]) == [{"value": None}]


def test_k9_table_of_contents(memory):
    (said,) = memory.run("toc")
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


def test_a_segment_cannot_change_its_size(memory):
    (said,) = memory.run("sealed")
    assert set(said["errors"]) <= {"PermissionError", "OSError", "SystemError"}
    assert said["size"] == 4096


def test_a_segment_is_a_buffer_of_zeros(memory):
    (said,) = memory.run("buffers")
    assert said == {
        "zeros": True,
        "same": 7,
        "readonly": False,
        "kind": True,
        "outside": "UsageError",
        "written": 9,
    }
