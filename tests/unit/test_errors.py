"""The error tree: codes are unique, survive the wire, and give the documented exit status."""

import pytest

from posthouse import errors
from posthouse.errors import PosthouseError, RefusedError, from_wire


def _all(cls: type[PosthouseError]) -> list[type[PosthouseError]]:
    return [cls, *(c for child in cls.__subclasses__() for c in _all(child))]


OURS = [cls for cls in _all(PosthouseError) if cls.__module__.startswith("posthouse")]
LEAVES = [cls for cls in OURS if cls is not PosthouseError]


def test_every_class_has_a_code_of_its_own() -> None:
    """The root alone shares one: it stands for a defect, as InternalError does."""
    codes = [cls.code for cls in LEAVES]
    assert all("code" in vars(cls) for cls in OURS)
    assert len(codes) == len(set(codes))
    assert PosthouseError.code == errors.InternalError.code == "internal"
    assert all(code == code.lower() and code.isidentifier() for code in codes)


def test_every_class_is_documented_and_exported() -> None:
    assert all(cls.__doc__ for cls in OURS)
    here = {cls.__name__ for cls in OURS if cls.__module__ == errors.__name__}
    assert here | {"from_wire"} == set(errors.__all__)


@pytest.mark.parametrize("cls", LEAVES)
def test_the_wire_gives_back_the_class(cls: type[PosthouseError]) -> None:
    error = cls("no", hint="try", limit=3)
    again = from_wire(error.code, error.message, error.hint, error.detail)
    assert type(again) is cls
    assert (again.message, again.hint, again.detail) == ("no", "try", {"limit": 3})
    assert str(again) == "no (try)"


def test_an_unknown_code_is_a_refusal_that_keeps_it() -> None:
    error = from_wire("quota_exceeded", "too many")
    assert type(error) is RefusedError
    assert error.detail == {"code": "quota_exceeded"}


@pytest.mark.parametrize("name", ["message", "hint", "self", "code"])
def test_no_name_in_the_detail_breaks_the_reader(name: str) -> None:
    error = from_wire("no_free_slot", "full", "", {name: 1})
    assert type(error) is errors.NoFreeSlot
    assert (error.message, error.detail[name]) == ("full", 1)


@pytest.mark.parametrize(
    ("status", "classes"),
    [
        (2, ["UsageError", "ConfigError"]),
        (3, ["NoSuchWorker", "NotRunning"]),
        (4, ["Unreachable"]),
        (5, ["TimedOut"]),
    ],
)
def test_exit_statuses_are_the_documented_ones(status: int, classes: list[str]) -> None:
    """0 done, 1 refused or failed, 2 usage, 3 no such worker or not running, 4 master not
    reachable, 5 timed out."""
    assert {cls.__name__ for cls in OURS if cls.exit_status == status} == set(classes)
    assert {cls.exit_status for cls in OURS} == {1, 2, 3, 4, 5}


@pytest.mark.parametrize(
    ("base", "classes"),
    [
        (errors.UsageError, [errors.InvalidField, errors.ConfigError]),
        (errors.RefusedError, [errors.NoFreeSlot, errors.AlreadyRegistered, errors.UnknownHost]),
        (errors.RemoteError, [errors.BadFrame]),
    ],
)
def test_a_base_says_whose_fault_it_was(
    base: type[PosthouseError], classes: list[type[PosthouseError]]
) -> None:
    assert all(issubclass(cls, base) for cls in classes)
