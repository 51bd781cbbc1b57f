"""Cases: what the master makes of the reset of a crash domain, which its host has carried out.

Owns: the cases of exits that began a reset, or came of one. Must not know: memory; the kit's host
only says so. Invariant: as in workers.
"""

import time
from typing import Any, Final

from posthouse_testing.conformance import wire
from posthouse_testing.conformance.kit import Kit, case, expect
from posthouse_testing.conformance.workers import EARLY_S, final, no_start

__all__: list[str] = []

EXITS = "Exits"
RESET: Final = "domain_reset"
SHMEM: Final = 1
CAUSE: Final = "worker w (pid 7) ended by signal 9"


def facts(resets: int, **ended: Any) -> dict[str, Any]:
    return {
        **ended,
        "crash_domain": "d",
        "domain_epoch": 1 + resets,
        "domain_cause": CAUSE,
        "domain_resets": resets,
    }


def crashed(resets: int) -> dict[str, Any]:
    return facts(resets, cause="signaled", signal=9)


def reset(resets: int) -> dict[str, Any]:
    return facts(resets, cause="exited", code=2)


@case(
    "domain-reset",
    EXITS,
    "The first reset of a domain restarts its members at once",
    host=True,
)
def first_reset(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    spec = {"flags": SHMEM, "crash_domain": "d", "restart_time": 3600.0}
    made = [kit.register(client, **spec) for _ in range(2)]
    crasher, member = (host.start()["token"] for _ in made)
    host.exit(crasher, **crashed(1))
    host.exit(member, RESET, **reset(1))
    for _ in made:
        host.start()
    kit.follow(client, made[1]["ref"])
    rows = kit.rows(client, *("registered", "starting", "started", "exited", "starting", "started"))
    told = rows[3]
    got = (told.get("stop"), told.get("restart_in_s"), told["exit"].get("domain_cause"))
    expect(got == (RESET, 0.0, CAUSE), repr((RESET, 0.0, CAUSE)), told)


@case(
    "domain-reset-again", EXITS, "Another reset within a minute waits for restart_time", host=True
)
def another_reset(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    spec = {"flags": SHMEM, "crash_domain": "d", "restart_time": 0.4}
    for _ in range(2):
        kit.register(client, **spec)
    crasher, member = host.start()["token"], host.start()["token"]
    begun_s = time.monotonic()
    host.exit(crasher, **crashed(2))
    host.exit(member, RESET, **reset(2))
    host.start()
    took_s = time.monotonic() - begun_s
    expect(took_s >= 0.4 - EARLY_S, "START after 0.4 s", f"START after {took_s:.3f} s")
    host.start()


@case("domain-reset-never", EXITS, "restart_time -1 is unregistered by a reset, too", host=True)
def reset_of_one_that_is_never_restarted(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    for stop, ended in (("", crashed(1)), (RESET, reset(1))):
        made = kit.register(client, flags=SHMEM, crash_domain="d", restart_time=-1)
        host.exit(host.start()["token"], stop, **ended)
        status = kit.status(client, made["ref"])
        expect(final(status) == ("stopped", True), "stopped and final", status)
    no_start(kit)


@case("domain-reset-wished", EXITS, "Who was to end is not brought back by a reset", host=True)
def reset_of_one_that_was_to_end(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    made = kit.register(client, flags=SHMEM, crash_domain="d", restart_time=0.0)
    token = host.start()["token"]
    client.ask(wire.TERMINATE, wire.DONE, ref=made["ref"])
    host.stopped(token, "terminate")
    host.exit(token, "terminate", **crashed(1))
    status = kit.status(client, made["ref"])
    expect(final(status) == ("stopped", True), "stopped and final", status)
    no_start(kit)
