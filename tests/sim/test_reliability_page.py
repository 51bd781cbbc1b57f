"""docs/reliability.md says what is in the code: planted bugs, faults, invariants, models.

TABLE holds the 25 bugs that everybody's tests should find, with what finds each: a planted bug of
test_mutants or test_lease_mutants with its bound of seeds, a test, or a guard that a model in
tests/models can be without. All of it exists, and the page shows it.
"""

import re
from pathlib import Path

import pytest

import posthouse_testing.sim
from posthouse_testing.sim.faults import KINDS

ROOT = Path(__file__).parents[2]
SIMULATOR = Path(posthouse_testing.sim.__file__).parent
MUTANTS = [ROOT / "tests/sim" / name for name in ("test_mutants.py", "test_lease_mutants.py")]

REGRESSIONS = "tests/sim/test_regressions.py"

# number: (what is wrong, what finds it)
TABLE: dict[int, tuple[str, tuple[str, ...]]] = {
    1: (
        "a lease counts from when its grant is read",
        ("lease_counts_from_receipt", "lease.pml FROM_RECEIPT"),
    ),
    2: ("no margin beyond the lease", ("master_waits_for_no_margin", "lease.pml NO_MARGIN")),
    3: (
        "the fuse is never set, or never set anew",
        ("fuse_is_never_armed", "old_renewal_counts", "lease.pml NO_FUSE"),
    ),
    4: ("wall clocks instead of CLOCK_BOOTTIME", ("wall_clocks_count_instead_of_boottime",)),
    5: ("an agent obeys a term that is over", ("older_term_is_obeyed",)),
    6: (
        "the epoch is not checked inside the transaction",
        ("epoch_is_not_checked_in_the_transaction",),
    ),
    7: (
        "a new master does not wait for the leases of before",
        ("new_master_does_not_wait", "lease.pml NO_WAIT"),
    ),
    8: (
        "the longest lease that was granted is forgotten",
        (
            "tests/sim/test_lease_mutants.py::test_a_parting_grant_is_waited_out",
            "lease.pml LEASE_FORGOTTEN",
            "lease.pml UNWRITTEN",
        ),
    ),
    9: (
        "a START is sent again in a new session",
        ("start_is_sent_again_in_a_new_session", "orders.pml OLD_ORDERS"),
    ),
    10: ("a STOP of what does not run leaves nothing behind", ("orders.pml NO_TOMBSTONE",)),
    11: (
        "a STOP is answered when the signal is sent",
        ("stop_is_acknowledged_when_the_signal_is_sent", "orders.pml STOP_TOO_EARLY"),
    ),
    12: ("a START leaves before its commit", ("messages_leave_before_the_commit",)),
    13: (
        "an incarnation ends twice",
        ("terminal_event_is_not_unique", "endings.pml TWICE"),
    ),
    14: (
        "a loss and a real end are told as two ends",
        ("late_word_of_an_end_is_told_as_another_end", "endings.pml LATE_SNAPSHOT"),
    ),
    15: (
        "a stream's cursor is ahead of the event that it gave",
        ("tests/client/test_client.py::test_events_of_all_from_now_and_from_a_cursor",),
    ),
    16: (
        "events are committed apart from what they tell",
        (
            "events_are_committed_apart_from_what_they_tell",
            "tests/sim/test_crash_points.py::test_a_store_that_commits_row_by_row_is_found_out",
        ),
    ),
    17: (
        "answers are not kept with what they tell",
        ("request_results_are_not_kept", "request_results_are_forgotten_with_the_master"),
    ),
    18: (
        "a log that was trimmed says that nothing is new",
        ("trimmed_log_says_that_nothing_is_new",),
    ),
    19: (
        "a restart that is due is known to one master only",
        ("due_restart_is_forgotten_with_the_master",),
    ),
    20: ("terminate is lost as its worker crashes", ("terminate_is_lost_when_it_races_a_crash",)),
    21: ("the host's name in HELLO counts, not that of its key", ("name_in_the_hello_counts",)),
    22: (
        "a second machine with a host's name takes it over",
        (f"{REGRESSIONS}::test_another_machine_of_the_same_name_does_not_free_its_workers",),
    ),
    23: ("exit 0 is started again", ("exit_0_is_started_again",)),
    24: ("an outbox has no end", ("tests/sim/test_mutants.py::test_an_outbox_has_an_end",)),
    25: (
        "an error of the disk is ignored",
        (
            "error_of_the_disk_is_ignored",
            "tests/stores/test_failing_disk.py::test_an_fsync_error_that_is_ignored_is_found_out",
        ),
    ),
}


def planted() -> dict[str, int]:
    """Every planted bug that seeds have to find: within how many."""
    pattern = re.compile(r"^@mutant\(([^@]*?)\)\ndef (\w+)", re.MULTILINE | re.DOTALL)
    found = {}
    for file in MUTANTS:
        for options, name in pattern.findall(file.read_text()):
            within = re.search(r"within=(\d+)", options)
            assert within is not None
            found[name] = int(within[1])
    return found


def exists(reference: str) -> bool:
    if ".pml " in reference:
        model, guard = reference.split(" ")
        return bool(
            re.search(rf"^ +{guard} ", (ROOT / "tests/models" / model).read_text(), re.MULTILINE)
        )
    if "::" in reference:
        file, test = reference.split("::")
        return f"def {test}(" in (ROOT / file).read_text()
    return reference in planted()


def test_there_are_25() -> None:
    assert list(TABLE) == list(range(1, 26))


@pytest.mark.parametrize("number", TABLE)
def test_what_is_named_exists(number: int) -> None:
    for reference in TABLE[number][1]:
        assert exists(reference), reference


def page() -> str:
    return (ROOT / "docs/reliability.md").read_text()


def test_the_page_shows_the_table() -> None:
    within = planted()
    for number, (what, references) in TABLE.items():
        (row,) = re.findall(rf"^\| {number} \| ({re.escape(what)} \|.*) \|$", page(), re.MULTILINE)
        for reference in references:
            shown = reference.rpartition("::")[2]
            bound = f" ({within[shown]})" if shown in within else ""
            assert f"`{shown}`{bound}" in row, f"{number}: {shown}{bound}"


def test_the_page_counts_no_planted_bug_that_is_not_there() -> None:
    counted = re.search(r"(\d+) planted bugs", page())
    assert counted is not None
    assert 25 <= int(counted[1]) <= len(planted())


def test_the_page_names_faults_that_there_are() -> None:
    table = page().partition("### Faults by kind")[2].partition("### ")[0]
    named = set(re.findall(r"\| ([a-zA-Z][a-zA-Z ]+?) (?=\|)", table))
    named -= {"fault", "times"}
    assert len(named) > 30
    assert named <= set(KINDS)


def test_the_page_explains_invariants_that_are_checked() -> None:
    """Or seen by others, and tells of the three that stay with real processes."""
    sources = "".join(file.read_text() for file in sorted(SIMULATOR.glob("*.py")))
    checked = {int(n) for n in re.findall(r"(?:fail|Violation)\(\s*(\d+)", sources)} - {0}
    table = page().partition("## Invariants")[2].partition("## ")[0]
    shown = {
        int(n)
        for numbers in re.findall(r"^\| ([\d, ]+) \| [a-z]", table, re.MULTILINE)
        for n in numbers.split(",")
    }
    assert shown | {15, 16, 18} >= set(range(1, 26))
    assert shown - checked == {14}, "which is seen by others"


def test_the_page_counts_the_guards_of_each_model() -> None:
    for file in sorted((ROOT / "tests/models").glob("*.pml")):
        head = file.read_text().partition("*/")[0]
        guards = re.findall(r"^ {5}([A-Z_]+) {2,}\S", head, re.MULTILINE)
        (row,) = [line for line in page().splitlines() if f"| tests/models/{file.name} |" in line]
        assert row.endswith(f"| {len(guards)} |")
