"""A host that lacks something, seen from the registry: users, descriptors, processes, disk."""

import os
import pwd
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from posthouse import BackgroundWorker, EventKind
from posthouse_testing.cluster import LocalCluster

HERE = Path(__file__).parent
Eventually = Callable[..., Any]


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    env = {"POSTHOUSE_USERS": "nobody,no-such-user"} if os.geteuid() == 0 else {}
    with LocalCluster(hosts=("a",), path=[HERE / "workers"], env=env) as made:
        yield made


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_run_as_from_the_registration_to_the_process(
    cluster: LocalCluster, eventually: Eventually
) -> None:
    """The host's list decides, placement refuses with the reason, and no fence is asked for where
    leases have no deadline (docs/decisions/0017)."""
    with cluster.connect() as client:
        cursor = client.cursor()
        worker = BackgroundWorker(
            name="who", main="posthouse.exec", main_arg=["id", "-u"], run_as="nobody"
        )
        client.register(worker).wait_until_unregistered(timeout=20)
        (exited,) = [
            event
            for event in client.events(after=cursor, follow=False)
            if event.kind is EventKind.EXITED and event.name == "who"
        ]
        assert exited.exit is not None
        assert exited.exit.output_tail == f"{pwd.getpwnam('nobody').pw_uid}\n"
        for user in ("daemon", "no-such-user"):  # not on the list; on it, but not on the host
            other = client.register(
                BackgroundWorker(name=user, main="posthouse.exec", main_arg=["id"], run_as=user)
            )
            assert f"does not let workers run as '{user}'" in other.status().reason
            other.terminate()
    log = cluster.agent("a").log.read_text()
    assert "users.unknown" in log
    assert "no-such-user" in log


@pytest.mark.timeout(60)
def test_a_start_without_descriptors_is_told_and_tried_again(
    cluster: LocalCluster, eventually: Eventually
) -> None:
    """EMFILE in the warden: the event names it, the policy repeats it, nothing is lost."""
    warden = cluster.warden_pid("a")
    before = resource.prlimit(warden, resource.RLIMIT_NOFILE)
    held = len(os.listdir(f"/proc/{warden}/fd"))
    with cluster.connect() as client:
        cursor = client.cursor()
        resource.prlimit(warden, resource.RLIMIT_NOFILE, (held + 8, before[1]))
        try:
            handle = client.register(
                BackgroundWorker(
                    name="starved",
                    main="agent_jobs:steady",
                    main_arg=str(cluster.dir / "record"),
                    restart_time=0.1,
                )
            )

            def failures() -> list[Any]:
                events = client.events(after=cursor, follow=False)
                return [e for e in events if e.kind is EventKind.START_FAILED]

            eventually(lambda: len(failures()) >= 2)
            assert all("Too many open files" in event.reason for event in failures())
        finally:
            resource.prlimit(warden, resource.RLIMIT_NOFILE, before)
        status = handle.wait_for_ready(timeout=20)
        assert status.incarnation > len(failures()) - 1
        assert cluster.warden_pid("a") == warden
        handle.terminate()
        handle.wait_until_unregistered(timeout=20)
