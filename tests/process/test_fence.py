"""The lease of a fenced warden, with real processes: who leaves in time, what the kernel ends."""

import os
import select
import signal
import time

import pytest

from posthouse import limits
from posthouse_agent.orders import (
    Attached,
    Ended,
    Forked,
    ForkFailed,
    Leased,
    RenewLease,
    StopWorker,
)


def now_s():
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def lease(length_s, stamp_s=None):
    """As if it had been granted for a request of `stamp_s`, which is by default just now."""
    stamp_s = now_s() if stamp_s is None else stamp_s
    deadline_s = stamp_s + length_s
    return RenewLease(stamp=int(stamp_s * 1e6), deadline_us=int(deadline_s * 1e6)), deadline_s


def ended(pidfd, timeout_s=20.0):
    return bool(select.select([pidfd], [], [], timeout_s)[0])


@pytest.fixture
def watch(alive):
    """Pidfds of processes, closed at the end."""
    made = []

    def pidfd_of(pid):
        made.append(os.pidfd_open(pid))
        return made[-1]

    yield pidfd_of
    for fd in made:
        os.close(fd)


def test_everything_stopped_and_every_signal_blocked_and_the_kernel_ends_it(host, agent, watch):
    """Nothing in user space can run: the warden is stopped, the workers spin with all signals
    blocked, and there is no agent to speak of. No one of them outlives the deadline, and none dies
    before it."""
    workers = [watch(host.begin(agent, "deaf_and_busy").pid) for _ in range(3)]
    order, deadline_s = lease(2.5)
    agent.give(order)
    assert agent.expect(Leased).stamp == order.stamp
    os.kill(host.pid, signal.SIGSTOP)
    assert host.process.wait(20.0) == -signal.SIGKILL
    assert now_s() >= deadline_s
    assert all(ended(worker) for worker in workers)


def test_a_renewal_puts_the_end_off_and_an_older_one_changes_nothing(host, agent, watch):
    worker = watch(host.begin(agent, "deaf_and_busy").pid)
    first, first_s = lease(2.0)
    second, second_s = lease(4.0)
    for order in (first, second, first):
        agent.give(order)
    assert [agent.expect(Leased).stamp for _ in range(2)] == [first.stamp, second.stamp]
    os.kill(host.pid, signal.SIGSTOP)
    assert host.process.wait(20.0) == -signal.SIGKILL
    assert now_s() >= second_s > first_s
    assert ended(worker)


def test_without_an_end_again(host, agent):
    """A cluster that has shrunk to one machine: the fuse is taken out."""
    forked = host.begin(agent, "idle")
    order, deadline_s = lease(1.5)
    agent.give(order)
    agent.give(RenewLease(stamp=order.stamp + 1, deadline_us=0))
    assert [agent.expect(Leased).stamp for _ in range(2)] == [order.stamp, order.stamp + 1]
    while now_s() < deadline_s + 0.2:
        time.sleep(0.05)
    agent.give(StopWorker(token=forked.token, slot=forked.slot, reason="", signal=9, grace_s=0.0))
    assert agent.expect(Ended, forked.token).facts["signal"] == signal.SIGKILL


def test_workers_are_told_in_time_and_their_ends_are_seen(host, agent):
    """Who obeys leaves with its own exit code, who does not is killed by the warden while it can
    still write that down; the warden, empty, lives on and starts nothing."""
    obeys = host.begin(agent, "own_term", stop_grace_s=1.0)
    ignores = host.begin(agent, "ignore_term", stop_grace_s=1.0)
    order, deadline_s = lease(3.0)
    agent.give(order)
    told = {token: agent.expect(Ended, token) for token in (obeys.token, ignores.token)}
    assert {report.stop for report in told.values()} == {"lease_end"}
    assert "code" in told[obeys.token].facts
    assert told[ignores.token].facts["signal"] == signal.SIGKILL
    assert now_s() < deadline_s or host.process.poll() is None
    while now_s() < deadline_s + 0.2:
        time.sleep(0.05)
    late = host.order("idle")
    agent.give(late)
    assert agent.expect(ForkFailed, late.token).code == "no_lease"
    agent.give(lease(60.0)[0])
    agent.give(host.order("idle"))
    agent.expect(Forked)


def test_l5_who_has_its_signals_blocked_is_told_by_its_latch(host, agent):
    """POSTMASTER_DEATH, as its host's lease enters its grace: the signal beside it is not seen."""
    forked = host.begin(agent, "postmaster_death", stop_grace_s=2.0)
    agent.give(lease(4.0)[0])
    ended = agent.expect(Ended, forked.token)
    assert host.said(ended.slot)[1:] == [{"why": ["POSTMASTER_DEATH"]}]
    assert (ended.stop, ended.facts["code"]) == ("lease_end", 1)  # EXIT_ON_PM_DEATH


def test_a_lease_that_is_over_starts_nothing(host, agent):
    agent.give(lease(5.0, stamp_s=now_s() - 10.0)[0])
    order = host.order("idle")
    agent.give(order)
    assert agent.expect(ForkFailed, order.token).code == "no_lease"
    assert host.process.poll() is None


def test_a_deadline_in_the_far_future_is_cut(host, agent):
    """No message can take the fuse out by a deadline beyond every lease: the next agent is told
    that it is set."""
    agent.give(RenewLease(stamp=int(now_s() * 1e6), deadline_us=2**62))
    agent.expect(Leased)
    (attached,) = (r for r in host.connect().attach() if isinstance(r, Attached))
    assert attached.fence
    assert attached.leased
    assert limits.lease_s_max < 2**62 / 1e6
