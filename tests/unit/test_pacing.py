"""Growing delays and budgets: arithmetic that never makes a restart earlier."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posthouse import limits
from posthouse.pacing import Budget, Spent, grown_delay, next_streak
from posthouse.records import ExitFacts
from posthouse.spec import BackgroundWorker


def worker(**values: object) -> BackgroundWorker:
    return BackgroundWorker(name="w", main="m:f", **values).check()  # type: ignore[arg-type]


delays = st.floats(0, limits.restart_time_s_max)


@given(
    restart_time=delays,
    growth=st.floats(1, 10),
    jitter=st.floats(0, 1),
    streak=st.integers(0, 10**6),
    draw=st.floats(0, 1, exclude_max=True),
)
def test_f11_no_delay_is_shorter_than_restart_time_nor_overflows(
    restart_time: float, growth: float, jitter: float, streak: int, draw: float
) -> None:
    """PostgreSQL's 32-bit product wraps: a worker asking for 24.9 days started 6 times in 5 s."""
    spec = worker(restart_time=restart_time, restart_growth=growth, restart_jitter=jitter)
    delay_s = grown_delay(spec, streak, draw)
    ceiling_s = max(restart_time, limits.restart_grown_s_max)
    assert restart_time <= delay_s <= 2 * ceiling_s


def test_t2_the_delay_is_constant_unless_growth_is_asked_for() -> None:
    """PostgreSQL: constant, no back-off, no attempt limit. posthouse: the same by default."""
    assert {grown_delay(worker(restart_time=3), streak, 0.9) for streak in range(50)} == {3.0}


def test_restart_time_0_grows_from_a_tenth_of_a_second() -> None:
    spec = worker(restart_time=0, restart_growth=2.0)
    assert [grown_delay(spec, streak, 0.0) for streak in (0, 1, 2)] == [0.0, 0.2, 0.4]
    assert grown_delay(spec, 10**6, 0.0) == limits.restart_grown_s_max


@pytest.mark.parametrize(
    ("ran_s", "delay_s", "after"),
    [(0.5, 0.0, 8), (limits.healthy_s, 0.0, 1), (60.0, 120.0, 8), (120.0, 120.0, 1)],
)
def test_a_healthy_run_begins_anew(ran_s: float, delay_s: float, after: int) -> None:
    assert next_streak(7, ExitFacts(code=1, runtime_s=ran_s), delay_s) == after


@given(
    starts=st.integers(1, 20),
    window_s=st.floats(0.1, 100),
    steps=st.lists(st.floats(0, 50), max_size=80),
)
def test_no_window_ever_holds_more_starts_than_the_budget(
    starts: int, window_s: float, steps: list[float]
) -> None:
    budget, spent, taken, now_s = Budget(starts, window_s), Spent(), [], 0.0
    for step in steps:
        now_s = max(now_s + step, spent.room_s(budget, now_s + step))
        spent.take(budget, now_s)
        taken.append(now_s)
    for first in range(len(taken) - starts):
        assert taken[first + starts] - taken[first] >= window_s * (1 - 1e-9)
    assert len(spent.at_s) <= starts
