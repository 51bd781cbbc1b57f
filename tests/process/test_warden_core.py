"""The warden's decisions against a world that forks, refuses, dies and reboots at will."""

import signal
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from posthouse import limits
from posthouse.ids import Instant
from posthouse.states import SHMEM_ACCESS
from posthouse_agent import orders
from posthouse_agent.domains import AnswerMemory
from posthouse_agent.orders import (
    Attach,
    Attached,
    Confirm,
    Ended,
    Forget,
    Forked,
    ForkFailed,
    Leased,
    NoteReady,
    Remember,
    RenewLease,
    SignalWorker,
    SnapshotEnd,
    StartWorker,
    StopUnknown,
    StopWorker,
)
from posthouse_agent.warden_core import WardenCore, recover
from posthouse_agent.warden_effects import (
    AgentAttached,
    AgentGone,
    Arm,
    Armed,
    Confirmed,
    End,
    Exited,
    Fork,
    ForkDone,
    ForkRefused,
    Intent,
    Kill,
    Look,
    MemoryAsked,
    NotForked,
    Ordered,
    ProcessEnded,
    ProcessStuck,
    Reap,
    Recall,
    Recovered,
    Started,
    Tell,
    Terminating,
    Tick,
    WriteJournal,
)

SLOTS = st.integers(0, 3)
SIGNALS = st.sampled_from([0, 2, 9, 15, 64, 65, -1])
GRACES = st.sampled_from([0.0, 1.0, 5.0, float("inf"), float("nan"), -3.0])


def start(token, slot, **spec):
    return StartWorker(
        token=token,
        registry="9f" * 16,
        slot=slot,
        generation=1,
        incarnation=token,
        revision=1,
        host="h",
        spec={"name": "w", "main": "m:f", **spec},
    )


class World(RuleBasedStateMachine):
    """A warden core, its journal, its processes and its agent; all checks are made on the way."""

    def __init__(self):
        super().__init__()
        self.journal = []
        self.now_s = 1000.0
        self.next_token = 1
        self.drawn = {}  # token -> slot
        self.pid = 100
        self.boot(recover([], rebooted=False))

    def boot(self, recovered):
        self.core = WardenCore(instance="1" * 32, kind="fenced", boot_id="b", pid=1)
        self.processes = {}  # token -> slot; zombies too
        self.waiting = {}  # token -> order: forks that are not answered yet
        self.attached = False
        self.ended = False
        self.master = ("", 0)  # that it was told of
        self.snapshot = []
        self.give(recovered)

    # --- the shell ---

    def give(self, event):
        if self.ended:
            return []
        told = []
        effects = self.core.handle(event, Instant(self.now_s, self.now_s))
        recorded = set()
        for at, effect in enumerate(effects):
            match effect:
                case WriteJournal(entry=entry):
                    self.journal.append(entry)
                    recorded.add((type(entry), getattr(entry, "token", None)))
                case Fork(order=order):
                    assert (Intent, order.token) in recorded
                    assert at == len(effects) - 1
                    assert order.slot not in self.processes.values(), "two processes of one slot"
                    told += self.fork(order)
                case Recall(token=token):
                    assert token not in self.processes
                    del self.waiting[token]
                case Kill(token=token, signal=number):
                    assert token in self.processes
                    assert 0 < number <= 64
                case Look(token=token):
                    assert token in self.processes
                    told += self.give(ProcessStuck(token=token, state="(D)"))
                case Reap(token=token):
                    assert (Exited, token) in recorded
                    del self.processes[token]
                case Tell(report=report, fds_of=fds_of):
                    assert self.attached or isinstance(event, AgentAttached)
                    assert (fds_of is not None) == isinstance(report, Forked)
                    if isinstance(report, Ended):
                        assert report.token not in self.processes, "told before it was reaped"
                    told.append(report)
                case End(status=status):
                    assert status == 0
                    assert not self.processes
                    assert effect is effects[-1]
                    self.ended = True
        return told

    def fork(self, order):
        if not self.defer:
            return self.answer_fork(order)
        self.waiting[order.token] = order
        return []

    def answer_fork(self, order):
        if self.refuse:
            return self.give(
                ForkRefused(token=order.token, code="fork_failed", reason="EAGAIN", retry=True)
            )
        self.pid += 1
        self.processes[order.token] = order.slot
        return self.give(ForkDone(token=order.token, pid=self.pid, pid_start=self.pid * 7))

    refuse = False
    defer = False

    # --- what happens ---

    @precondition(lambda self: not self.ended)
    @rule(slot=SLOTS, refuse=st.booleans(), defer=st.booleans(), skip=st.integers(1, 3))
    def start_new(self, slot, refuse, defer, skip):
        token = self.next_token
        self.next_token += skip
        self.drawn[token] = slot
        self.refuse, self.defer = refuse, defer
        busy = slot in (*self.processes.values(), *(o.slot for o in self.waiting.values()))
        buried = token <= self.core._highest.get(slot, -1)  # by a tombstone
        told = self.give(Ordered(start(token, slot)))
        if not self.attached or self.ended:
            return
        if token in self.waiting:
            assert not told
            return
        (report,) = told
        if busy or refuse or buried or self.core._terminating:
            assert isinstance(report, ForkFailed)
        else:
            assert isinstance(report, Forked)
            assert token in self.processes

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), refuse=st.booleans())
    def runtime_answers(self, data, refuse):
        token = data.draw(st.sampled_from(sorted(self.waiting)))
        self.refuse = refuse
        told = self.answer_fork(self.waiting.pop(token))
        if self.attached and not self.ended:
            assert [type(report) for report in told] == [ForkFailed if refuse else Forked]

    @precondition(lambda self: self.drawn)
    @rule(data=st.data())
    def start_again(self, data):
        """A token that was drawn before, running, ended or confirmed: never a second process."""
        token = data.draw(st.sampled_from(sorted(self.drawn)))
        self.refuse = False
        before = set(self.processes)
        self.give(Ordered(start(token, self.drawn[token])))
        assert set(self.processes) == before

    @rule(token=st.integers(0, 12), slot=SLOTS, number=SIGNALS, grace_s=GRACES)
    def stop(self, token, slot, number, grace_s):
        slot = self.drawn.get(token, slot)
        waited = token in self.waiting
        known = token in self.processes or token in self.core.exits
        told = self.give(
            Ordered(
                StopWorker(token=token, slot=slot, reason="hold", signal=number, grace_s=grace_s)
            )
        )
        if self.attached and not self.ended:
            expected = () if token in self.processes else (Ended,) if known else (StopUnknown,)
            expected = (ForkFailed, StopUnknown) if waited else expected
            assert token not in self.waiting
            assert tuple(map(type, told)) == expected

    @rule(token=st.integers(0, 12))
    def say_ready(self, token):
        self.give(Ordered(NoteReady(token=token)))

    @rule(token=st.integers(0, 12), number=SIGNALS)
    def send_signal(self, token, number):
        self.give(Ordered(SignalWorker(token=token, signal=number)))

    @rule(data=st.data())
    def process_ends(self, data):
        if self.processes:
            token = data.draw(st.sampled_from(sorted(self.processes)))
            told = self.give(ProcessEnded(token=token, facts={"cause": "exited", "code": 1}))
            if self.attached:
                assert [t.token for t in told if isinstance(t, Ended)] == [token]

    @rule(seconds=st.sampled_from([0.0, 0.5, 5.0, 4000.0]))
    def time_passes(self, seconds):
        self.now_s += seconds
        self.give(Tick())
        deadline_s = self.core.deadline()
        assert deadline_s is None or deadline_s > self.now_s

    @rule(data=st.data(), unknown=st.booleans())
    def confirm(self, data, unknown):
        owed = list(self.core.exits)
        tokens = data.draw(st.lists(st.sampled_from(owed), unique=True)) if owed else []
        tokens += [12_345] if unknown else []
        self.give(Ordered(Confirm(tokens=tokens)))
        if not self.ended:
            assert not set(tokens) & set(self.core.exits)

    @rule(epoch=st.integers(1, 9))
    def remember(self, epoch):
        if self.attached and not self.ended:
            self.give(Ordered(Remember(registry="r", timeline=1, epoch=epoch, master="m")))
            self.master = ("r", epoch)

    @rule()
    def agent_attaches(self):
        if self.ended:
            return
        told = self.give(AgentAttached(Attach(agent="x")))
        self.attached = True
        assert isinstance(told[0], Attached)
        assert (told[0].registry, told[0].epoch) == self.master
        assert told[-1] == SnapshotEnd(running=len(self.processes), exits=len(self.core.exits))
        assert {t.token for t in told if isinstance(t, Forked)} == set(self.processes)
        assert [t.token for t in told if isinstance(t, Ended)] == list(self.core.exits)
        assert all(t.known for t in told[1:-1])

    @rule()
    def agent_goes(self):
        self.attached = False
        self.give(AgentGone())

    @rule()
    def term(self):
        before = self.ended
        told = self.give(Terminating())
        if self.ended and not before and self.attached:
            assert isinstance(told[-1], Forget)

    @rule(rebooted=st.booleans(), compacted=st.booleans())
    def warden_dies(self, rebooted, compacted):
        """All workers are dead; the next warden owes exactly these exits and the old ones."""
        owed = list(self.core.exits) + list(self.processes) + list(self.waiting)
        facts = {e.token: e.facts for e in self.journal if isinstance(e, Exited)}
        if compacted:
            self.journal = self.core.entries()
        recovered = recover(self.journal, rebooted=rebooted)
        self.boot(recovered)
        assert sorted(self.core.exits) == sorted(owed)
        told = {t.token: t for t in self.give(AgentAttached(Attach())) if isinstance(t, Ended)}
        self.give(AgentGone())
        cause = "host_rebooted" if rebooted else "warden_died"
        for token, ended in told.items():
            if token in facts:
                assert ended.facts == facts[token]
            else:
                assert ended.facts["cause"] == cause

    # --- what always holds ---

    @invariant()
    def one_end_a_token(self):
        ends = [e.token for e in self.journal if isinstance(e, Exited | NotForked)]
        assert len(ends) == len(set(ends))

    @invariant()
    def tokens_of_a_slot_rise(self):
        highest = {}
        for entry in self.journal:
            if isinstance(entry, Started):
                slot = next(
                    i.slot for i in self.journal if isinstance(i, Intent) and i.token == entry.token
                )
                assert entry.token > highest.get(slot, -1)
                highest[slot] = entry.token

    @invariant()
    def the_journal_says_what_the_core_knows(self):
        whole = recover(self.journal, rebooted=False)
        assert sorted(o.intent.token for o in whole.lost) == sorted(self.core.live)
        assert sorted(o.intent.token for o in whole.exits) == sorted(self.core.exits)
        short = recover(self.core.entries(), rebooted=False)
        key = _by_token
        assert sorted(whole.lost, key=key) == sorted(short.lost, key=key)
        assert short.highest == whole.highest
        assert [o.facts for o in sorted(whole.exits, key=key)] == [
            o.facts for o in sorted(short.exits, key=key)
        ]

    @invariant()
    def a_stop_ends(self):
        """Whoever was told to stop has had KILL, or has a deadline."""
        for worker in self.core._live.values():
            if worker.stop:
                assert worker.signal == signal.SIGKILL or worker.kill_at_s is not None


def _by_token(orphan):
    return orphan.intent.token


TestWorld = World.TestCase
TestWorld.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


# --- single rules, as examples ---


@pytest.fixture
def core():
    made = WardenCore(instance="1" * 32, kind="fenced", boot_id="b", pid=1)
    made.handle(Recovered(), Instant(0, 0))
    made.handle(AgentAttached(Attach()), Instant(0, 0))
    return made


def fork(core, token, slot=0, **spec):
    core.handle(Ordered(start(token, slot, **spec)), Instant(0, 0))
    return core.handle(ForkDone(token=token, pid=50 + token, pid_start=1), Instant(0, 5))


def test_order_of_effects_at_a_start(core):
    first = core.handle(Ordered(start(1, 0)), Instant(0, 0))
    assert [type(e) for e in first] == [WriteJournal, Fork]
    second = core.handle(ForkDone(token=1, pid=9, pid_start=2), Instant(0, 5))
    assert [type(e) for e in second] == [WriteJournal, Tell]
    assert second[0].entry == Started(token=1, pid=9, pid_start=2, started_unix_s=5)


def test_order_of_effects_at_an_end(core):
    fork(core, 1)
    effects = core.handle(ProcessEnded(token=1, facts={"code": 0}), Instant(0, 0))
    assert [type(e) for e in effects] == [WriteJournal, Reap, Tell]


def test_start_that_waits_is_taken_back_by_its_stop(core):
    """A fork may take its time: its runtime is being loaded. Nothing runs, so nothing is killed,
    and the token never will."""
    core.handle(Ordered(start(1, 0)), Instant(0, 0))
    order = StopWorker(token=1, slot=0, reason="hold", signal=15, grace_s=5)
    effects = core.handle(Ordered(order), Instant(0, 0))
    assert effects[:2] == [Recall(1), WriteJournal(NotForked(token=1))]
    failed, unknown = (effect.report for effect in effects[2:])
    assert (failed.code, failed.retry) == ("recalled", True)
    assert unknown == StopUnknown(token=1, slot=0)
    assert core.deadline() is None
    (again,) = core.handle(Ordered(start(1, 0)), Instant(0, 0))
    assert again.report.code == "stale_token"


@pytest.mark.parametrize("event", [AgentGone(), AgentAttached(Attach())])
def test_start_that_waits_is_void_with_its_connection(core, event):
    """The next agent's snapshot does not name it: it never ran and never will."""
    core.handle(Ordered(start(1, 0)), Instant(0, 0))
    effects = core.handle(event, Instant(0, 0))
    assert effects[:2] == [Recall(1), WriteJournal(NotForked(token=1))]
    assert not [e for e in effects if isinstance(e, Tell) and isinstance(e.report, ForkFailed)]
    assert core.live == ()


def test_start_that_waits_ends_with_the_warden(core):
    core.handle(Ordered(start(1, 0)), Instant(0, 0))
    effects = core.handle(Terminating(), Instant(0, 0))
    assert effects[:2] == [Recall(1), WriteJournal(NotForked(token=1))]
    assert effects[2].report.code == "stopping", "nobody's failure: the next warden starts it"
    assert effects[-1] == End(0)


def test_ladder(core):
    fork(core, 1)
    order = StopWorker(token=1, slot=0, reason="hold", signal=15, grace_s=5)
    assert core.handle(Ordered(order), Instant(10, 10))[-1] == Kill(1, 15)
    assert core.handle(Ordered(order), Instant(12, 12)) == []  # repeated: nothing new
    assert core.deadline() == 15
    assert core.handle(Tick(), Instant(14.9, 0)) == []
    assert core.handle(Tick(), Instant(15, 0)) == [Kill(1, 9)]
    assert core.handle(Ordered(order), Instant(16, 16)) == []


def test_a_process_that_does_not_die_is_looked_at_and_told(core):
    """KILL takes a millisecond: what lives on is held by the kernel, and keeps its slot."""
    fork(core, 1)
    order = StopWorker(token=1, slot=0, reason="hold", signal=0, grace_s=5)
    assert core.handle(Ordered(order), Instant(10, 10))[-1] == Kill(1, 9)
    due_s = 10 + limits.unkillable_s
    assert core.deadline() == due_s
    assert core.handle(Tick(), Instant(due_s, due_s)) == [Look(1)]
    assert core.deadline() is None
    stuck = ProcessStuck(token=1, state="in a hanging disk")
    assert core.handle(stuck, Instant(due_s, due_s)) == [
        Tell(orders.Stuck(token=1, state="in a hanging disk"), None)
    ]
    again = SignalWorker(token=1, signal=9)
    assert core.handle(Ordered(again), Instant(20, 20)) == [Kill(1, 9)]
    assert core.deadline() is None  # told once
    (refused,) = core.handle(Ordered(start(2, 0)), Instant(20, 20))[-1:]
    assert refused.report.code == "bad_order"
    forked = core.handle(AgentAttached(Attach()), Instant(21, 21))[1].report
    assert (forked.token, forked.stuck) == (1, "in a hanging disk")


def test_escalation(core):
    fork(core, 1)
    core.handle(
        Ordered(StopWorker(token=1, slot=0, reason="hold", signal=15, grace_s=50)), Instant(0, 0)
    )
    quit_ = StopWorker(token=1, slot=0, reason="shutdown", signal=3, grace_s=5)
    assert Kill(1, 3) in core.handle(Ordered(quit_), Instant(1, 1))
    assert core.deadline() == 6
    kill = replace(quit_, signal=0)
    assert core.handle(Ordered(kill), Instant(2, 2)) == [Kill(1, 9)]
    assert core.deadline() == 2 + limits.unkillable_s  # to see whether it was of use


def test_unconfirmed_exits_are_bounded(core, monkeypatch):
    monkeypatch.setattr(limits, "exit_records_max", 3)
    for token in (1, 2, 3):
        fork(core, token, token)
    core.handle(ProcessEnded(token=1, facts={}), Instant(0, 0))
    effects = core.handle(Ordered(start(4, 4)), Instant(0, 0))
    failed = effects[-1].report
    assert (failed.code, failed.retry) == ("too_many_exits", True)
    assert "1 exits are not confirmed and 2 workers run" in failed.reason
    assert core.handle(Ordered(Confirm(tokens=[1])), Instant(0, 0)) == [
        WriteJournal(Confirmed(tokens=[1]))
    ]
    assert isinstance(core.handle(Ordered(start(5, 4)), Instant(0, 0))[-1], Fork)


def test_end_after_a_stop_is_never_called_daemonising(core):
    fork(core, 1)
    core.handle(
        Ordered(StopWorker(token=1, slot=0, reason="hold", signal=15, grace_s=5)), Instant(0, 0)
    )
    facts = {"cause": "daemonised", "code": 1}
    ended = core.handle(ProcessEnded(token=1, facts=facts), Instant(0, 0))[-1].report
    assert ended.facts == {"cause": "exited", "code": 0}


@pytest.mark.parametrize(
    "spec",
    [
        {"stop_signal": "NONE"},
        {"stop_signal": 7},
        {"stop_signal": []},
        {"stop_grace_s": "x"},
        {"stop_grace_s": float("nan")},
        {"stop_grace_s": None},
    ],
)
def test_odd_stop_rules_do_not_stop_the_end(core, spec):
    fork(core, 1, **spec)
    effects = core.handle(Terminating(), Instant(0, 0))
    assert Kill(1, 15) in effects
    assert core.handle(Tick(), Instant(5, 5)) == [Kill(1, 9)]


def test_term_with_nothing_running_ends_at_once(core):
    assert core.handle(Terminating(), Instant(0, 0)) == [Tell(orders.Forget(), None), End(0)]
    assert core.handle(Terminating(), Instant(0, 0)) == []


def renew(core, stamp_s, length_s, at_s):
    order = RenewLease(stamp=int(stamp_s * 1e6), deadline_us=int((stamp_s + length_s) * 1e6))
    return core.handle(Ordered(order), Instant(at_s, at_s)), order.stamp


def test_a_renewal_counts_once_the_kernel_has_it(core):
    """A fuse of another process may be stopped: until it answers nothing is started without a
    lease, and what is in force is the older one."""
    asked, stamp = renew(core, 1.0, 30.0, 1.0)
    assert asked == [Arm(31.0, stamp)]
    _, refused = core.handle(Ordered(start(1, 0)), Instant(2, 2))
    assert (refused.report.code, refused.report.retry) == ("no_lease", True)
    assert core.handle(Armed(stamp, 31.0), Instant(3, 3)) == [Tell(Leased(stamp=stamp))]
    fork(core, 2)
    asked, _ = renew(core, 10.0, 30.0, 10.0)
    assert asked == [Arm(40.0, 10_000_000)]
    killed = core.handle(Tick(), Instant(31.0 - limits.lease_ahead_s, 5))
    assert killed[0].entry.reason == "lease_end"


def test_the_fuse_is_not_taken_out_behind_a_renewal_that_it_has_not_answered(core):
    """Else its answer would have workers started with no fuse."""
    _, first = renew(core, 1.0, 30.0, 1.0)
    core.handle(Armed(first, 31.0), Instant(1, 1))
    _, second = renew(core, 10.0, 60.0, 10.0)
    assert core.handle(Tick(), Instant(31.0, 31.0)) == []
    assert core.handle(Armed(second, 70.0), Instant(32, 32)) == [Tell(Leased(stamp=second))]
    assert core.handle(Tick(), Instant(70.0, 70.0)) == [Arm(0.0)]
    assert core.handle(Armed(0, 0.0), Instant(70, 70)) == []
    _, refused = core.handle(Ordered(start(1, 0)), Instant(71, 71))
    assert refused.report.code == "no_lease"


def asks(number=1):
    return {"op": "named", "id": number, "key": "struct:s", "size": 64}


def test_a_warden_that_ends_gives_nobody_what_a_death_has_spoilt(core):
    """Its workers have their graces, so one may ask for memory that another, killed, had mapped."""
    for token in (1, 2, 3):
        domain = "d" if token < 3 else "other"
        fork(core, token, slot=token, flags=SHMEM_ACCESS, crash_domain=domain)
    core.handle(MemoryAsked(1, asks()), Instant(0, 9))
    core.handle(Terminating(), Instant(0, 9))
    killed = ProcessEnded(token=1, facts={"cause": "signaled", "signal": 9, "pid": 101})
    assert not [e for e in core.handle(killed, Instant(0, 9)) if isinstance(e, Kill)], (
        "each has its own grace"
    )
    (answer,) = core.handle(MemoryAsked(2, asks(7)), Instant(0, 9))
    assert answer.token == 2
    assert not answer.gives
    assert answer.message["error"]["code"] == "stopping"
    assert "crash domain d" in answer.message["error"]["message"]
    others = [
        e for e in core.handle(MemoryAsked(3, asks()), Instant(0, 9)) if isinstance(e, AnswerMemory)
    ]
    assert others[0].gives
