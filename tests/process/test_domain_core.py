"""The decisions about shared memory, against workers that ask for anything and die at any time."""

import itertools

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from posthouse import limits
from posthouse_agent.domains import AnswerMemory, Domains, DropSegment, MakeSegment

NAMES = st.sampled_from(["a", "b"])
KEYS = st.sampled_from(["struct:x", "dsm:y"])


def entropy():
    numbers = itertools.count(1)
    return lambda count: (next(numbers) << 1).to_bytes(count, "big")


def create(number=1, size=8):
    return {"op": "create", "id": number, "size": size}


def answer_of(effects):
    (found,) = [e.message for e in effects if isinstance(e, AnswerMemory)]
    return found


def test_domains_that_nobody_needs_make_room_for_others():
    domains = Domains(entropy())
    for number in range(limits.domains_max):
        domains.asked(number, f"d{number}", create(), 0.0)
    refused = answer_of(domains.asked(1000, "one more", create(), 0.0))["error"]
    assert (refused["code"], "256 crash domains" in refused["message"]) == (
        "too_many_segments",
        True,
    )
    kept = domains.asked(7, "d7", {"op": "named", "id": 2, "key": "struct:s", "size": 8}, 0.0)
    domains.asked(7, "d7", {"op": "made", "id": 3, "number": answer_of(kept)["number"]}, 0.0)
    domains.crashed(8, "d8", "a crash", 0.0)
    for number in range(9):
        domains.ended(number, f"d{number}")
    effects = domains.asked(1000, "one more", create(), 10.0)
    assert answer_of(effects)["epoch"] == 2, "above all that a forgotten one has had"
    again = {"op": "named", "id": 1, "key": "struct:s", "size": 8}
    assert answer_of(domains.asked(1001, "d7", again, 10.0))["found"], "it has a structure"
    domains.asked(1002, "d8", create(), 10.0)
    domains.crashed(1002, "d8", "a crash", 10.0)
    assert domains.facts("d8")["domain_resets"] == 2, "a reset that counts is not forgotten"


STRUCT = [{"name": "s", "size": 64, "library": "acme"}]


def by_name(number, size=64, key="struct:s"):
    return {"op": "named", "id": number, "key": key, "size": size}


def test_k1_what_was_requested_is_there_before_anybody_asks_and_its_first_asker_fills_it_in():
    domains = Domains(entropy())
    assert [e.size for e in domains.request("d", STRUCT, 0.0)] == [64]
    assert domains.request("d", STRUCT, 0.0) == [], "once"
    first = answer_of(domains.asked(1, "d", by_name(1), 0.0))
    assert (first["found"], first["size"]) == (False, 64)
    assert domains.asked(2, "d", by_name(1), 0.0) == [], "who comes second waits for the first"
    made = {"op": "made", "id": 2, "number": first["number"]}
    answers = domains.asked(1, "d", made, 0.0)
    assert [e.message.get("found") for e in answers] == [None, True]
    error = answer_of(domains.asked(3, "d", by_name(1, size=65), 0.0))["error"]
    assert error["code"] == "size_mismatch"
    assert "64 bytes, requested by library acme, not 65" in error["message"]


def test_k1_where_the_first_asker_dies_it_is_made_anew_for_the_next():
    domains = Domains(entropy())
    domains.request("d", STRUCT, 0.0)
    first = answer_of(domains.asked(1, "d", by_name(1), 0.0))
    effects = domains.ended(1, "d")
    assert DropSegment(first["number"]) in effects
    assert [e.size for e in effects if isinstance(e, MakeSegment)] == [64]
    second = answer_of(domains.asked(2, "d", by_name(1), 0.0))
    assert (second["found"], second["number"] != first["number"]) == (False, True)


def test_k2_c5_it_is_made_anew_after_a_reset_before_anybody_is_given_memory():
    domains = Domains(entropy())
    domains.request("d", STRUCT, 0.0)
    for token in (1, 2):
        number = answer_of(domains.asked(token, "d", by_name(1), 0.0))["number"]
        domains.asked(token, "d", {"op": "made", "id": 2, "number": number}, 0.0)
    domains.crashed(1, "d", "a crash", 0.0)
    domains.request("d", [*STRUCT, {"name": "t", "size": 8, "library": "acme"}], 0.0)
    domains.asked(3, "d", by_name(1), 0.0)
    domains.ended(1, "d")
    effects = domains.ended(2, "d")
    made = [e.size for e in effects if isinstance(e, MakeSegment)]
    assert made == [64, 8]
    assert isinstance(effects[-1], AnswerMemory), "who waits is answered last"
    assert (effects[-1].message["found"], effects[-1].message["epoch"]) == (False, 2)


def test_k1_another_size_counts_from_the_next_epoch_on():
    """A master that begins anew with other libraries, while workers have the memory."""
    domains = Domains(entropy())
    domains.request("d", STRUCT, 0.0)
    domains.asked(1, "d", by_name(1), 0.0)
    assert domains.request("d", [{"name": "s", "size": 8, "library": "acme"}], 0.0) == []
    domains.crashed(1, "d", "a crash", 0.0)
    assert [e.size for e in domains.ended(1, "d") if isinstance(e, MakeSegment)] == [8]


class World(RuleBasedStateMachine):
    """Workers of two crash domains; who holds which memory is written down beside the core."""

    def __init__(self):
        super().__init__()
        self.core = Domains(entropy())
        self.now_s = 0.0
        self.tokens = itertools.count(1)
        self.ids = itertools.count(1)
        self.alive = {}  # token -> domain
        self.given = {}  # token -> the epochs of what it has been given
        self.memory = {}  # number -> (domain, epoch when it was made); of files that are open
        self.handles = {"a": [], "b": []}
        self.epoch = {"a": 1, "b": 1}
        self.doomed = {"a": set(), "b": set()}  # who is to end before anybody is given memory
        self.asked = {}  # id -> token, of questions without an answer
        self.making = {}  # token -> numbers

    def take(self, effects):
        for effect in effects:
            match effect:
                case MakeSegment(number=number):
                    assert number not in self.memory, "a number is never used again"
                    self.memory[number] = True
                case DropSegment(number=number):
                    self.memory.pop(number)
                case AnswerMemory():
                    self.answered(effect)

    def answered(self, effect):
        message, token = effect.message, effect.token
        assert token in self.alive, "the dead are not answered"
        if message["op"] == "reply":
            assert self.asked.pop(message["id"]) == token, "one answer, to who has asked"
        for give in effect.gives:
            if give.what == "segment":
                assert give.which in self.memory, "it is there"
            else:
                assert self.alive[give.which] == self.alive[token]
        if message.get("epoch"):
            domain = self.alive[token]
            assert not self.doomed[domain], "memory of a new epoch while the old one lives"
            assert message["epoch"] == self.epoch[domain]
            self.given.setdefault(token, set()).add(message["epoch"])
            self.handles[domain].append(message["handle"])
            if not message["found"]:
                self.making.setdefault(token, []).append(message["number"])

    def ask(self, token, op, **fields):
        number = next(self.ids)
        self.asked[number] = token
        message = {"op": op, "id": number, **fields}
        self.take(self.core.asked(token, self.alive[token], message, self.now_s))

    @rule(domain=NAMES)
    def begin(self, domain):
        self.alive[next(self.tokens)] = domain

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), key=KEYS, size=st.sampled_from([8, 16, 0]))
    def ask_by_name(self, data, key, size):
        self.ask(data.draw(st.sampled_from(sorted(self.alive))), "named", key=key, size=size)

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def ask_for_new(self, data):
        self.ask(data.draw(st.sampled_from(sorted(self.alive))), "create", size=8)

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def ask_for_locks(self, data):
        self.ask(data.draw(st.sampled_from(sorted(self.alive))), "locks")

    @precondition(lambda self: self.alive and any(self.handles.values()))
    @rule(data=st.data())
    def ask_by_handle(self, data):
        token = data.draw(st.sampled_from(sorted(self.alive)))
        handle = data.draw(st.sampled_from(self.handles["a"] + self.handles["b"]))
        self.ask(token, "attach", handle=handle)

    @precondition(lambda self: self.making)
    @rule(data=st.data(), op=st.sampled_from(["made", "failed", "detach", "pin"]))
    def say_about_its_own(self, data, op):
        token = data.draw(st.sampled_from(sorted(self.making)))
        number = data.draw(st.sampled_from(self.making[token]))
        self.ask(token, op, number=number)

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), crash=st.booleans())
    def end(self, data, crash):
        token = data.draw(st.sampled_from(sorted(self.alive)))
        domain = self.alive[token]
        member = token in self.core.members(domain)
        assert member is (token in self.given), "a member is who has been given memory"
        if crash and member and not self.doomed[domain]:
            told = self.core.crashed(token, domain, "a crash", self.now_s)
            others = {t for t in self.given if self.alive.get(t) == domain and t != token}
            assert told == others, "all members are told, and nobody else"
            self.doomed[domain] = others | {token}
        del self.alive[token]
        self.given.pop(token, None)
        self.making.pop(token, None)
        self.asked = {number: t for number, t in self.asked.items() if t != token}
        if token in self.doomed[domain]:
            self.doomed[domain].discard(token)
            if not self.doomed[domain]:
                self.epoch[domain] += 1
        self.take(self.core.ended(token, domain))

    @rule(domain=NAMES, size=st.sampled_from([8, 16, 0]))
    def request(self, domain, size):
        structs = [{"name": "x", "size": size, "library": "acme"}] if size else []
        self.take(self.core.request(domain, structs, self.now_s))

    @rule(seconds=st.sampled_from([1.0, 100.0]))
    def wait(self, seconds):
        self.now_s += seconds

    @invariant()
    def nobody_has_memory_of_two_epochs(self):
        for token, epochs in self.given.items():
            assert len(epochs) == 1, (token, epochs)

    @invariant()
    def files_are_not_leaked(self):
        assert len(self.memory) <= 4 + sum(len(n) for n in self.making.values()) + 4 * len(
            self.handles["a"] + self.handles["b"]
        )

    def teardown(self):
        """When all are dead, nothing that has no name is left, and nobody waits."""
        for domain in ("a", "b"):
            for token in [t for t, d in self.alive.items() if d == domain]:
                del self.alive[token]
                self.given.pop(token, None)
                self.asked = {number: t for number, t in self.asked.items() if t != token}
                if token in self.doomed[domain]:
                    self.doomed[domain].discard(token)
                    self.epoch[domain] += not self.doomed[domain]
                self.take(self.core.ended(token, domain))
        assert not self.asked


TestWorld = World.TestCase
TestWorld.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
