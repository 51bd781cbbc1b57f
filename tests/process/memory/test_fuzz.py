"""What stands in shared memory was written by others: any byte of it may be anything."""

import pytest

JOBS = "fuzz_jobs"


def test_any_byte_of_a_table_of_contents(memory):
    (said,) = memory.run("toc")
    assert set(said["outcomes"]) <= {"fine", "Corrupt", "NoMemory"}, said
    assert said["outcomes"]["Corrupt"] > 50
    assert said["outside"] == []


def test_any_byte_of_a_lock(memory):
    """A word that says that a holder died is believed: it can do no harm but end the domain."""
    (said,) = memory.run("lock")
    assert set(said["outcomes"]) == {"fine", "Abandoned"}, said
    assert said["held"] is True


@pytest.mark.parametrize("what", ["receive", "send"])
def test_any_byte_of_a_queue_that_is_in_use(memory, what):
    """A flag that the other end has left is believed as well."""
    (said,) = memory.run("queue", what)
    assert set(said["outcomes"]) <= {"fine", "Corrupt", "Detached", "TimedOut"}, said
    assert said["outcomes"]["Corrupt"] > 20


def test_any_byte_of_a_queue_before_an_end_comes(memory):
    (said,) = memory.run("queue_attach")
    assert set(said["outcomes"]) <= {"fine", "Corrupt", "Detached", "TimedOut"}, said
    assert said["outcomes"]["Corrupt"] > 60


def test_numpy_without_a_copy(memory):
    maker = memory.begin("array_maker")
    handle = memory.said(maker)[0]["handle"]
    (said,) = memory.run("array", handle)
    assert said == {"seen": list(range(8)), "copies": False, "writeable": True, "shares": True}
    memory.agent.set_latch(maker.token)
    assert memory.ended(maker).facts["code"] == 0
    cells = list(range(1, 9))
    assert memory.said(maker)[1:] == [{"cells": cells, "part": [3]}, {"still": cells}]
