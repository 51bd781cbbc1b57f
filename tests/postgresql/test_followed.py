"""A whole cluster that follows a real PostgreSQL: start times, promotion, the server's end."""

import os
import signal
from pathlib import Path
from typing import Any

from posthouse import BackgroundWorker, Cursor, EventKind, Phase, StartTime, WorkerState
from posthouse_testing.cluster import LocalCluster

WORKERS = Path(__file__).parents[1] / "cli" / "workers"


def test_g1_g2_g3_g5_workers_follow_a_standby_to_its_promotion(pair: Any, eventually: Any) -> None:
    """The three start times of PostgreSQL beside a real server. Kept;
    when the server goes away what runs goes on, and what ends is not started again (G5)."""
    primary, standby = pair
    env = {"POSTHOUSE_PHASE__SOURCE": "postgresql", "POSTHOUSE_PHASE__URL": standby.url}
    with LocalCluster(["a"], path=[WORKERS], env=env) as house, house.connect() as cluster:
        handles = {
            start_time: cluster.register(
                BackgroundWorker(
                    name=str(start_time), main="jobs:idle", start_time=start_time, restart_time=0
                )
            )
            for start_time in StartTime
        }

        def started(start_time: StartTime) -> bool:
            return handles[start_time].status().state is WorkerState.STARTED

        def why(start_time: StartTime) -> str:
            return str(handles[start_time].status().reason)

        # Nothing is up.
        handles[StartTime.POSTMASTER_START].wait_for_startup(timeout=20)
        eventually(lambda: "is not reachable" in why(StartTime.CONSISTENT_STATE))
        where = f"PostgreSQL at {standby.folder}:5433"
        assert why(StartTime.CONSISTENT_STATE).startswith(
            f"waits for consistent_state: {where} is not reachable: "
        )
        assert "waits for recovery_finished: " in cluster.explain("recovery_finished").reason
        ran = house.run("hosts")
        assert f"posthouse: the phase of the cluster is starting: {where}" in ran.stderr
        assert ran.stdout.startswith("a\t")

        # A hot standby.
        primary.start()
        standby.start()
        handles[StartTime.CONSISTENT_STATE].wait_for_startup(timeout=20)
        assert why(StartTime.RECOVERY_FINISHED) == (
            f"waits for recovery_finished: {where} is in recovery"
        )
        assert cluster.phase().phase is Phase.HOT_STANDBY

        # Promoted.
        standby.promote()
        handles[StartTime.RECOVERY_FINISHED].wait_for_startup(timeout=20)
        assert cluster.phase().phase is Phase.RUNNING

        # Gone.
        running = {s: handles[s].status().pid for s in StartTime}
        standby.stop(signal.SIGQUIT)
        eventually(lambda: cluster.phase().phase is Phase.STARTING)
        assert {s: handles[s].status().pid for s in StartTime} == running
        ended = running[StartTime.RECOVERY_FINISHED]
        assert ended is not None
        os.kill(ended, signal.SIGKILL)
        eventually(lambda: "killed by SIGKILL" in why(StartTime.RECOVERY_FINISHED))
        assert "; waits for recovery_finished: " in why(StartTime.RECOVERY_FINISHED)

        # A new master asks anew, and nobody notices.
        house.master.restart()
        eventually(lambda: cluster.phase().phase is Phase.STARTING)
        assert (
            handles[StartTime.CONSISTENT_STATE].status().pid == running[StartTime.CONSISTENT_STATE]
        )
        assert not started(StartTime.RECOVERY_FINISHED)

        # Back.
        standby.start()
        eventually(lambda: started(StartTime.RECOVERY_FINISHED))
        with cluster.events(after=Cursor(0, 0), follow=False) as stream:
            phases = [event.phase for event in stream if event.kind is EventKind.PHASE]
        assert phases == [Phase.HOT_STANDBY, Phase.RUNNING, Phase.STARTING, Phase.RUNNING]
