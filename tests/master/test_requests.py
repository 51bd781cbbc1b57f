"""One request id, one effect, one answer: over retries, sessions and masters."""

from contextlib import suppress

from posthouse import limits
from posthouse.messages import Done, Register, Registered, Signal, SignalWorker, Start, Terminate

SPEC = {"name": "w", "main": "acme.jobs:main"}


def test_a_retry_gets_the_same_answer_and_has_one_effect(town):
    client = town.client()
    first = client.ask(Register, request=b"r" * 16, spec=SPEC)
    assert isinstance(first, Registered)
    assert client.ask(Register, request=b"r" * 16, spec=SPEC) == first
    again = town.client()
    assert again.ask(Register, request=b"r" * 16, spec=SPEC) == first
    town.crash()
    assert town.client().ask(Register, request=b"r" * 16, spec=SPEC) == first
    assert len(town.disk.specs) == 1


def test_a_retry_of_what_was_refused_is_refused_as_before(town):
    client = town.client()
    client.register("w")
    first = client.ask(Register, request=b"r" * 16, spec=SPEC)
    assert first.code == "already_registered"
    client.terminate("w")
    assert client.ask(Register, request=b"r" * 16, spec=SPEC) == first


def test_the_same_id_with_another_body_is_a_conflict(town):
    client = town.client()
    client.ask(Register, request=b"r" * 16, spec=SPEC)
    for kind, values in (
        (Register, {"spec": SPEC | {"name": "v"}}),
        (Terminate, {"ref": "w"}),
    ):
        assert client.ask(kind, request=b"r" * 16, **values).code == "request_conflict"
    assert not client.status("w").final
    assert len(town.disk.specs) == 1


def test_ids_are_scoped_by_principal(town):
    one, two = town.client("client:one"), town.client("client:two")
    one.ask(Register, request=b"r" * 16, spec=SPEC)
    answer = two.ask(Register, request=b"r" * 16, spec=SPEC | {"name": "v"})
    assert isinstance(answer, Registered)


def test_a_signal_is_sent_once(town):
    client, host = town.client(), town.host("b")
    client.register("w")
    host.run()
    for _ in range(3):
        answer = client.ask(SignalWorker, request=b"s" * 16, ref="w", signal=10)
        assert isinstance(answer, Done)
    assert len(host.take(Signal)) == 1


def test_a_terminate_is_one_terminate(town):
    client, host = town.client(), town.host("b")
    client.register("w", restart_time=0)
    start = host.run()
    first = client.ask(Terminate, request=b"t" * 16, ref="w")
    host.obey_stop(start)
    client.register("w")
    host.run()
    assert client.ask(Terminate, request=b"t" * 16, ref="w") == first
    assert str(client.status("w").state) == "started"  # the next one of that name is not meant


def test_answer_and_effect_are_one_transaction(town):
    client = town.client()
    batches = []
    town.on_commit = batches.append
    client.ask(Register, spec=SPEC)
    town.on_commit = None
    [ops] = [ops for ops in batches if ops]
    names = [type(op).__name__ for op in ops]
    assert {"PutSlot", "PutRegistration", "PutEvent", "PutState", "PutRequest"} <= set(names)


def test_an_effect_without_its_answer_does_not_exist(town):
    """kill -9 between the core's decision and the commit."""
    client = town.client()

    class Killed(Exception):
        pass

    def kill(_ops):
        raise Killed

    town.on_commit = kill
    with suppress(Killed):
        client.say(Register(request=b"r" * 16, spec=SPEC))
    town.on_commit = None
    town.crash()
    assert not town.disk.specs
    client = town.client()
    assert isinstance(client.ask(Register, request=b"r" * 16, spec=SPEC), Registered)
    assert len(town.host("b").take(Start)) == 1


def test_a_read_is_not_remembered(town):
    client = town.client()
    client.register("w")
    before = len(town.disk.requests)
    client.status("w")
    assert len(town.disk.requests) == before


def test_what_is_kept_is_bounded_in_number_and_age(town, monkeypatch):
    monkeypatch.setattr(limits, "requests_kept_max", 3)
    client = town.client()
    for number in range(6):
        client.register(f"w{number}")
    assert len(town.disk.requests) == len(town.core.book) == 3
    town.unix_s += limits.requests_kept_s + 1  # a clock that is put right is not time passing
    client.register("soon")
    assert len(town.disk.requests) == len(town.core.book) == 3
    town.boot_s += limits.requests_kept_s + 1
    client.register("late")
    assert len(town.disk.requests) == len(town.core.book) == 1
