"""The enumerations: their spellings are what stands on the wire, in JSON and in scripts."""

from posthouse import states


def test_spellings_do_not_change() -> None:
    found = {
        name: [member.value for member in getattr(states, name)]
        for name in states.__all__
        if isinstance(getattr(states, name), type)
    }
    assert found == {
        "EventKind": [
            *("registered", "revised", "starting", "started", "ready", "stop_requested"),
            *("restart_requested", "exited", "exit_amended", "start_failed", "held", "released"),
            *(
                "unregistered",
                "host_up",
                "host_down",
                "host_lost",
                "host_braked",
                "host_forgotten",
                "host_draining",
                "host_undrained",
                "shutdown",
                "phase",
                "trimmed",
            ),
        ],
        "Every": ["each-host"],
        "Flags": [1, 2],
        "Phase": ["starting", "hot_standby", "running", "stopping"],
        "ShutdownMode": ["smart", "fast", "immediate"],
        "StartTime": ["postmaster_start", "consistent_state", "recovery_finished"],
        "StopReason": [
            *("terminate", "hold", "restart", "apply", "drain", "shutdown"),
            *("lease_end", "domain_reset", "unknown"),
        ],
        "WorkerState": ["not_yet_started", "started", "stopped", "postmaster_died"],
    }


def test_flags_are_those_of_the_seed() -> None:
    assert (states.SHMEM_ACCESS, states.DATABASE_CONNECTION, states.NEVER_RESTART) == (1, 2, -1)
