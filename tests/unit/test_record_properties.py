"""Any record, any bytes: what holds for all of them."""

import math
from typing import Any

import msgpack
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from posthouse import limits
from posthouse.errors import InvalidField
from posthouse.signals import SIGNALS
from posthouse.spec import BackgroundWorker
from posthouse.states import NEVER_RESTART, StartTime
from posthouse.values import copy_value, packed_size

# No surprises from the machine's speed: the examples are many, not slow.
relaxed = settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow], database=None
)

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
    | st.binary(max_size=300)
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=20)
        | st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"]), max_size=40), inner, max_size=20
        )
    ),
    max_leaves=60,
)
identifiers = st.from_regex(r"[a-z][a-z0-9_]{0,10}", fullmatch=True)
dotted = st.lists(identifiers, min_size=1, max_size=3).map(".".join)
shown = st.from_regex(
    r"[A-Za-z0-9_.#()]([A-Za-z0-9 ._#()-]{0,30}[A-Za-z0-9_.#()])?", fullmatch=True
)
whole = st.integers(0, 1000)
seconds = st.integers(0, 3600) | st.floats(0, 3600)
handled = st.sampled_from(sorted(SIGNALS.keys() - {"KILL", "STOP"}))

records = st.fixed_dictionaries(
    {"name": shown, "main": st.builds("{}:{}".format, dotted, identifiers)},
    optional={
        "main_arg": values,
        "extra": st.binary(max_size=500),
        "type": shown,
        "library": dotted,
        "function": identifiers,
        "flags": st.sampled_from([0, 1, 3]),
        "start_time": st.sampled_from([StartTime.CONSISTENT_STATE, StartTime.RECOVERY_FINISHED]),
        "restart_time": seconds | st.just(NEVER_RESTART),
        "restart_growth": st.integers(1, 10) | st.floats(1, 10),
        "restart_time_max": st.none() | st.integers(3600, 86_400_000),
        "restart_jitter": st.floats(0, 1),
        "restart_budget": st.none() | st.tuples(st.integers(1, 100), st.floats(1, 3600) | whole),
        "notify": st.booleans(),
        "unique": st.booleans(),
        "host": shown,
        "labels": st.lists(st.from_regex(r"[a-z0-9][a-z0-9=/:.+-]{0,20}", fullmatch=True)),
        "runtime": shown,
        "fence": st.sampled_from([None, "process", "tree"]),
        "on_partition": st.sampled_from([None, "stop"]),
        "crash_domain": shown,
        "unblock_signals": st.booleans(),
        "stop_signal": handled,
        "stop_grace_s": seconds,
        "reload_signal": handled,
        "watchdog_s": st.none() | st.floats(0.1, 100),
        "run_as": st.none() | shown,
        "env": st.dictionaries(
            st.from_regex(r"[A-Z_][A-Z0-9_]{0,10}", fullmatch=True),
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40),
        ),
        "cwd": st.none() | st.just("/srv"),
        "rlimits": st.dictionaries(st.sampled_from(["NOFILE", "CPU"]), st.integers(-1, 2**63 - 1)),
        "nice": st.integers(-20, 19),
        "umask": st.integers(0, 0o777),
        "log_bytes": st.integers(65_536, 2**40),
    },
)


def valid(fields: dict[str, Any]) -> BackgroundWorker | None:
    """The combinations that break a rule between two fields are left out."""
    budget = fields.get("restart_budget")
    if budget and budget[1] < 0.001:
        return None
    return BackgroundWorker(**fields).check()


@relaxed
@given(records)
def test_the_wire_form_gives_back_the_record(fields: dict[str, Any]) -> None:
    made = valid(fields)
    if made is None:
        return
    wire = made.to_wire()
    assert BackgroundWorker.from_wire(wire) == made
    arrived = msgpack.unpackb(msgpack.packb(wire), raw=False)
    again = BackgroundWorker.from_wire(arrived)
    assert again == made
    assert hash(again) == hash(made)
    assert msgpack.packb(again.to_wire()) == msgpack.packb(wire)
    assert all(made.to_wire()[name] is not None for name in wire if name != "main_arg")


@relaxed
@given(values)
@example([0] * 15)
@example([0] * 16)
@example({str(i): i for i in range(16)})
@example(["x" * n for n in (0, 31, 32, 255, 256)])
@example([b"x" * n for n in (0, 255, 256)])
@example([s * 2**k + d for k in (5, 7, 8, 15, 16, 31, 32, 62) for s in (1, -1) for d in (-1, 0, 1)])
@example("x" * 65_535)
@example(b"x" * 65_535)
def test_packed_size_is_that_of_msgpack(value: Any) -> None:
    """The worker's side computes it without msgpack; the bound must mean the same everywhere."""
    copied = copy_value("value", value)
    assert copied == value
    assert packed_size(copied) == len(msgpack.packb(copied))


@given(st.integers(65_536, 70_000))
@settings(deadline=None, max_examples=5, database=None)
def test_packed_size_of_long_texts(size: int) -> None:
    for value in ("x" * size, b"x" * size):
        assert packed_size(value) == len(msgpack.packb(value))


anything = st.recursive(
    scalars
    | st.floats()
    | st.integers(-(2**100), 2**100)
    | st.text(max_size=10)
    | st.sampled_from(list(StartTime)),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=5) | st.integers() | st.none(), inner, max_size=5)
    ),
    max_leaves=20,
)
field_names = st.sampled_from(sorted(BackgroundWorker.__dataclass_fields__))


@settings(relaxed, max_examples=250)
@given(st.dictionaries(field_names | st.text(max_size=8), anything, max_size=6), st.booleans())
@example({"name": "w", "main": "m:f", "restart_time": 10**400}, False)
@example({"name": "w", "main": {"a": 1}}, False)
@example({"restart_budget": [[], {}]}, True)
@example({"restart_budget": [1, math.nan]}, True)
@example({"env": {"A": "\ud800"}}, True)
@example({"labels": [[1]]}, True)
@example({"fence": []}, True)
@example({"rlimits": {"NOFILE": "x"}}, True)
def test_from_wire_raises_invalid_field_and_nothing_else(wire: dict[Any, Any], named: bool) -> None:
    if named:
        wire = {"name": "w", "main": "m:f", **wire}
    try:
        made = BackgroundWorker.from_wire(wire)
    except InvalidField as error:
        assert {"field", "value", "rule"} <= set(error.detail)
    else:
        assert made.check() is made
        assert packed_size(copy_value("", made.main_arg)) <= limits.main_arg_bytes_max


@given(anything)
@settings(relaxed)
def test_what_is_no_map_is_refused(wire: Any) -> None:
    if not isinstance(wire, dict):
        try:
            BackgroundWorker.from_wire(wire)
        except InvalidField as error:
            assert error.detail["field"] == "spec"
        else:
            raise AssertionError("accepted")
