"""The rules of the contract, and the test that holds posthouse to each.

Owns: reading tests/contract.toml, and finding tests by their names without importing them. Used by
contract.py and by tests/house/test_contract_rules.py.
Invariant: a test speaks for a rule if, and only if, its name begins with the rule's id.
"""

import ast
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
_NAMED = re.compile(r"test((?:_[a-z]\d{1,2})+)(?:_|$)")

SECTIONS = {
    "F": "The record",
    "S": "Static registration",
    "D": "Registration, slots, handles",
    "H": "What a handle sees",
    "M": "The states of a registration",
    "E": "Exit codes",
    "T": "Restarts and the order of starts",
    "G": "Phases",
    "N": "Notification, shutdown, the end of the postmaster",
    "W": "Inside the worker",
    "L": "Latches",
    "C": "Crash domains",
    "K": "Shared memory",
    "Q": "PostgreSQL's own tests",
}

# PostgreSQL's name, posthouse's, and the rules that both are under. Each rule stands at one name.
NAMES: dict[str, tuple[str, str]] = {
    "bgw_name": ("BackgroundWorker.name", "F1 F19 T10"),
    "bgw_type": ("BackgroundWorker.type", "F2 W7"),
    "bgw_flags": ("BackgroundWorker.flags", "F3 F4 F5 F6 F7 F8"),
    "bgw_start_time": ("BackgroundWorker.start_time", "F9 G1 G2 G3 G5 G6 G7"),
    "bgw_restart_time": (
        "BackgroundWorker.restart_time",
        "F10 F11 M5 M6 M11 M12 T1 T2 T3 T4 T5 T6 T7 T8 T9",
    ),
    "BGW_NEVER_RESTART": ("NEVER_RESTART", "M7"),
    "bgw_library_name": ("BackgroundWorker.library", "F12"),
    "bgw_function_name": ("BackgroundWorker.function", "F13"),
    "bgw_main_arg": ("BackgroundWorker.main_arg", "F14"),
    "bgw_extra": ("BackgroundWorker.extra", "F15"),
    "bgw_notify_pid": ("BackgroundWorker.notify", "F16 F17 N1 N2 N3 N4"),
    "BackgroundWorker": ("BackgroundWorker", "F18 F20"),
    "RegisterBackgroundWorker": ("[[worker]]", "S1 S2 S3 S4 S5 S6"),
    "RegisterDynamicBackgroundWorker": (
        "Cluster.register",
        "D1 D2 D4 D5 D6 D7 D8 D9 D14 D15 M1 M2",
    ),
    "max_worker_processes": ("max_worker_processes", "D3 W16"),
    "BackgroundWorkerHandle": ("Handle", "D10 D11 D13"),
    "GetBackgroundWorkerPid": ("Handle.status", "H1 H2 H3 H4 H5 H6"),
    "WaitForBackgroundWorkerStartup": ("Handle.wait_for_startup", "H7 H8 H10 H11"),
    "WaitForBackgroundWorkerShutdown": ("Handle.wait_for_shutdown", "H9"),
    "TerminateBackgroundWorker": ("Handle.terminate", "D12 M3 M4 M8 M13"),
    "proc_exit": ("ExitFacts", "M9 M10 M14 E1 E2 E3 E4 E5 E6 E7 E8 E9"),
    "pg_ctl stop": (
        "Cluster.shutdown",
        "G4 M15 M16 N5 N6 N7 N8 N9 N10 N11 N13 N14 N15",
    ),
    "MyBgworkerEntry": ("worker.entry", "W1"),
    "BackgroundWorkerUnblockSignals": ("worker.unblock_signals", "W2 W3 W4 W5"),
    "on_proc_exit": ("worker.on_exit", "W6"),
    "pg_stat_activity": ("Cluster.workers", "W8"),
    "BackgroundWorkerInitializeConnection": ("worker.initialize_connection", "W9 W10 W12 W14"),
    "BackgroundWorkerInitializeConnectionByOid": ("worker.initialize_connection_by_oid", ""),
    "BGWORKER_BYPASS_ALLOWCONN": ("worker.BYPASS_ALLOWCONN", "W11"),
    "BGWORKER_BYPASS_ROLELOGINCHECK": ("worker.BYPASS_ROLELOGINCHECK", ""),
    "StartTransactionCommand, SPI_connect": ("worker.spi.transaction", ""),
    "BeginInternalSubTransaction": ("worker.spi.subtransaction", ""),
    "SPI_execute, SPI_execute_with_args": ("worker.spi.execute", ""),
    "SPI_prepare": ("worker.spi.prepare", ""),
    "SPI_cursor_open": ("worker.spi.cursor", ""),
    "NOTIFY, LISTEN": ("worker.spi.listen", "W13"),
    "EXEC_BACKEND": ("[runtime.NAME]", "W15"),
    "WaitLatch": ("worker.latch", "L1 L3 L4 L6 L7 L8 L10"),
    "SetLatch": ("Handle.set_latch", "L2 L9"),
    "restart_after_crash": (
        "BackgroundWorker.crash_domain",
        "C1 C2 C3 C4 C5 C6 C7 C8 C9",
    ),
    "RequestAddinShmemSpace": ("StaticRegistry.request_struct", "K1"),
    "ShmemInitStruct, DSM, shm_toc, shm_mq, LWLock": (
        "shmem",
        " ".join(f"K{n}" for n in range(2, 21)),
    ),
    "src/test/modules/worker_spi": (
        "examples/worker_spi",
        " ".join(f"Q{n}" for n in range(1, 16)),
    ),
    "src/test/modules/test_shm_mq": (
        "examples/shm_mq.py",
        " ".join(f"Q{n}" for n in range(16, 24)),
    ),
    "other tests": ("tests", " ".join(f"Q{n}" for n in range(24, 35))),
    "WL_POSTMASTER_DEATH": ("worker.POSTMASTER_DEATH", "N12 L5"),
}


class Rule(NamedTuple):
    """One line of the table."""

    verdict: str
    postgresql: str
    posthouse: str


class Named(NamedTuple):
    """A test whose name begins with ids of rules."""

    ids: tuple[str, ...]
    path: Path
    line: int
    name: str


def rules() -> dict[str, Rule]:
    """Every rule by its id, in the order of the contract."""
    table = tomllib.loads((TESTS / "contract.toml").read_text())
    return {name: Rule(*row) for section in SECTIONS for name, row in table[section].items()}


def ids_of(name: str) -> tuple[str, ...]:
    """The rules that a test's name begins with.

    >>> ids_of("test_m11_m12_t1_restart_once"), ids_of("test_each_exit")
    (('M11', 'M12', 'T1'), ())
    """
    match = _NAMED.match(name)
    return tuple(match[1].upper().split("_")[1:]) if match else ()


@cache
def named_tests() -> tuple[Named, ...]:
    """All tests that speak for rules, by file and line. Read once: it takes a second."""
    return tuple(_named_tests())


def _named_tests() -> Iterator[Named]:
    for path in sorted(TESTS.rglob("test_*.py")):
        found = [
            node
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
        for node in sorted(found, key=lambda node: node.lineno):
            if ids := ids_of(node.name):
                yield Named(ids, path.relative_to(ROOT), node.lineno, node.name)


def first_tests() -> dict[str, Named]:
    """The first test of each rule that has one."""
    first: dict[str, Named] = {}
    for test in named_tests():
        for rule in test.ids:
            first.setdefault(rule, test)
    return first
