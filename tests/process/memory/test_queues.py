"""Message queues between real workers (K10-K19)."""

import pytest

JOBS = "queue_jobs"
AT_ONCE = 16


@pytest.fixture(name="run")
def _run(memory):
    def run(*jobs):
        """Begin all of them, one after another; what each said, when all have ended."""
        forked = [memory.begin(main, arg) for main, arg in jobs]
        facts = [memory.ended(one).facts for one in forked]
        return [memory.said(one) for one in forked], facts

    return run


def test_k10_k11_k13_k14_both_ends_without_waiting(run):
    ((said,),), (facts,) = run(("alone", None))
    assert facts["code"] == 0, facts["output_tail"]
    assert said == {
        "sizes": ["UsageError"] * 3,
        "early": True,
        "third": "SeatTaken",
        "first": "before the receiver",
        "empty ring": None,
        "zero": [True, ""],
        "begun": [False, "UsageError"],
        "larger than the ring": True,
        "wrong end": ["UsageError", "UsageError"],
        "delivered": "last",
        "then": "Detached",
        "detached end": "UsageError",
        "latch": said["latch"],
    }


def test_k12_every_wait_ends_when_its_time_is_over(run):
    ((said,),), _ = run(("timeouts", None))
    assert said["results"] == ["TimedOut"] * 3


def test_k12_a_peer_that_never_comes(run):
    ((said,),), _ = run(("never_comes", None))
    assert said == {"error": "TimedOut", "waited": True, "attached": False}


@pytest.mark.parametrize(
    "ending", ["return", "exit", "kill", "partial", "partial exit", "partial kill"]
)
def test_k13_k18_k19_what_is_whole_is_received_then_the_sender_is_gone(run, ending):
    """PostgreSQL never says so of a peer that was killed: it resets everybody. Here the kernel
    tells, before the reset of the crash domain comes."""
    (receiver, _), _ = run(
        ("receive_all", [256, True]), ("send_some", [256, [0, 1, 64, 500, 8], ending])
    )
    assert receiver[1] == {"got": [0, 1, 64, 500, 8], "error": "Detached"}


@pytest.mark.parametrize("ending", ["return", "exit", "kill"])
def test_k13_k19_the_sender_is_told_at_once(run, ending):
    (sender, _), _ = run(("send_until_detached", None), ("receive_some", [3, ending]))
    assert sender[1] == {"error": "Detached"}


@pytest.mark.parametrize("size", [72, 128, 1024])
def test_k11_k15_k16_k17_l8_messages_in_order_whatever_the_ring(run, size):
    (receiver, sender), facts = run(("pings", [size, 200]), ("ponger", [size, 200]))
    assert receiver[1] == {"good": True, "latch": True}
    assert sender == [{"done": True}]
    assert [f["code"] for f in facts] == [0, 0]


def test_corrupt_headers_are_told_not_believed(run):
    ((said,),), (facts,) = run(("corrupt", None))
    assert facts["code"] == 0, facts["output_tail"]
    assert set(said.values()) == {"Corrupt"}, said


LENGTHS = {"in one piece": (256, [40, 3]), "streamed": (128, [8, 300])}
CASES = ["in one piece", pytest.param("streamed", marks=pytest.mark.slow)]


def pairs(memory, dying, other, size, lengths):
    """What the living end said, for each line of the queue's code that the dying one can be killed
    before; several pairs at a time, each in a crash domain of its own."""
    heard = []
    for first in range(0, 4000, AT_ONCE):
        begun = []
        for lines in range(first, first + AT_ONCE):
            spec = {"crash_domain": f"{memory.domain}.{lines % AT_ONCE}"}
            name = f"queue {lines}"  # a domain whose pair has lived keeps its segment
            living = memory.order(other, [name, size, lengths], **spec)
            begun.append((living, memory.order(dying, [name, size, lengths, lines], **spec)))
        survived = 0
        for living, mortal in begun:
            signal = memory.ended(mortal).facts.get("signal")
            facts = memory.ended(living).facts
            assert facts["code"] == 0, facts["output_tail"]
            heard.append(memory.said(living)[-1])
            survived += signal is None
            assert signal in (None, 9)
        if survived == AT_ONCE:
            return heard
    raise AssertionError("it runs without end")


@pytest.mark.parametrize("case", CASES)
def test_k13_k19_a_sender_killed_at_any_line_leaves_whole_messages_and_detached(memory, case):
    size, lengths = LENGTHS[case]
    heard = pairs(memory, "send_and_die", "receive_intact", size, lengths)
    assert {one["error"] for one in heard} == {"Detached"}
    assert {one["got"] for one in heard} == set(range(len(lengths) + 1))
    assert len(heard) > 40


@pytest.mark.parametrize("case", CASES)
def test_k13_k19_a_receiver_killed_at_any_line_leaves_the_sender_detached(memory, case):
    size, lengths = LENGTHS[case]
    heard = pairs(memory, "receive_and_die", "send_to_the_dying", size, lengths)
    assert {one["error"] for one in heard} == {"Detached"}
    assert len(heard) > 40
