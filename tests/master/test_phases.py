"""G1-G7: what the phase of the followed server lets start, and when."""

import pytest

from posthouse import limits
from posthouse.messages import HostsPage, ListHosts, Shutdown, Start, Stop
from posthouse.states import Phase, ShutdownMode, StartTime
from posthouse_master.effects import PhaseChanged, Room, Space
from posthouse_master.phases import GATE, may_start

STANDBY = "PostgreSQL at db:5432 is in recovery"
OPEN = "PostgreSQL at db:5432 is open for writing"
GONE = "PostgreSQL at db:5432 is not reachable"
FIRST = "PostgreSQL at db:5432 has not been asked yet"


@pytest.fixture
def town(towns):
    """A cluster that follows a server which has not been heard yet."""
    return towns.Town(towns.Policy(phase=Phase.STARTING, phase_detail=FIRST))


@pytest.fixture
def client(town):
    return town.client()


def register_three(client, **values):
    for start_time in reversed(StartTime):
        client.register(str(start_time), start_time=start_time, **values)


def names(host):
    return [start.spec["name"] for start in host.take(Start)]


def test_g1_before_consistency_only_postmaster_start_is_started(town, client):
    """PostgreSQL starts only BgWorkerStart_PostmasterStart before consistency. Kept."""
    register_three(client)
    host = town.host("b")
    assert names(host) == ["postmaster_start"]
    town.handle(PhaseChanged(Phase.STARTING, GONE))
    town.pass_time(5)
    assert not host.take(Start)
    status = client.status("recovery_finished")
    assert str(status.state) == "not_yet_started"
    assert status.reason == f"waits for recovery_finished: {GONE}"


def test_g2_a_hot_standby_lets_consistent_state_follow(town, client):
    """PM_HOT_STANDBY starts those for a consistent state as well. Kept."""
    register_three(client)
    host = town.host("b")
    assert names(host) == ["postmaster_start"]
    town.handle(PhaseChanged(Phase.HOT_STANDBY, STANDBY))
    assert names(host) == ["consistent_state"]
    assert client.status("recovery_finished").reason == f"waits for recovery_finished: {STANDBY}"


def test_g3_promotion_lets_all_start(town, client):
    """PM_RUN starts all. Kept: promotion of the followed server is such a moment."""
    register_three(client)
    host = town.host("b")
    town.handle(PhaseChanged(Phase.HOT_STANDBY, STANDBY))
    host.take(Start)
    town.handle(PhaseChanged(Phase.RUNNING, OPEN))
    assert names(host) == ["recovery_finished"]


def test_g4_a_shutdown_starts_nothing_and_no_server_undoes_it(town, client):
    """From PM_STOP_BACKENDS on nothing starts. Kept: the shutdown is the last phase."""
    client.register("runs", start_time=StartTime.POSTMASTER_START, restart_time=0)
    register_three(client)
    host = town.host("b")
    starts = host.take(Start)
    client.say(Shutdown(request=b"s" * 16, mode=ShutdownMode.SMART))
    town.handle(PhaseChanged(Phase.RUNNING, OPEN))
    host.end(starts[0], code=1)
    town.pass_time(30)
    assert not host.take(Start)
    assert town.core.starter.phase is Phase.STOPPING
    assert not any(may_start(Phase.STOPPING, start_time) for start_time in StartTime)


def test_g5_a_server_that_goes_away_stops_nothing_and_gates_restarts_anew(town, client):
    """The gate is asked at a start alone; demotion does not exist in PostgreSQL. Healed where a
    followed server can be gone: what runs goes on, and what ends is gated when it would start."""
    client.register("w", start_time=StartTime.RECOVERY_FINISHED, restart_time=2)
    host = town.host("b")
    town.handle(PhaseChanged(Phase.RUNNING, OPEN))
    start = host.run()
    town.handle(PhaseChanged(Phase.STARTING, GONE))
    town.pass_time(10)
    assert not host.take(Stop)
    assert str(client.status("w").state) == "started"
    host.end(start, code=1)
    gate = f"waits for recovery_finished: {GONE}"
    assert client.status("w").reason == f"exited with code 1; restarts in 2.0 s, then {gate}"
    town.pass_time(10)
    assert not host.take(Start)
    assert client.status("w").reason == f"exited with code 1; {gate}"
    town.handle(PhaseChanged(Phase.RUNNING, OPEN))
    assert host.run().incarnation == 2


def test_g6_the_embedded_database_goes_straight_through(towns):
    """A plain primary has nothing to recover, so the last two start times are one. Kept."""
    town = towns.Town()
    client = town.client()
    register_three(client)
    assert len(town.host("b").take(Start)) == len(StartTime)
    assert not [event for event in town.log() if event.kind == "phase"]


def test_g7_a_phase_an_exit_a_registration_and_a_host_each_lead_to_starts(town, client):
    """PostgreSQL looks who may start at a new phase, an exit and a registration. Kept; a host that
    comes is such a moment too."""
    client.register("first", start_time=StartTime.CONSISTENT_STATE)
    client.register("second", start_time=StartTime.CONSISTENT_STATE)
    host = town.host("b", slots=2)
    assert not host.take(Start)
    town.handle(PhaseChanged(Phase.HOT_STANDBY, STANDBY))  # a phase
    starts = host.take(Start)
    assert [start.spec["name"] for start in starts] == ["first", "second"]
    client.register("third", start_time=StartTime.CONSISTENT_STATE)
    assert not host.take(Start)
    host.end(starts[1], code=0)  # an exit
    assert names(host) == ["third"]
    other = town.host("c")
    client.register("fourth", start_time=StartTime.POSTMASTER_START)  # a registration
    assert names(other) == ["fourth"]
    client.register("fifth", labels=("d",), start_time=StartTime.POSTMASTER_START)
    assert names(town.host("d", labels=["d"])) == ["fifth"]  # a host


def test_t5_healed_a_new_phase_starts_the_oldest_first_on_the_least_loaded_host(town, client):
    """PostgreSQL starts the newest first (T5); here the oldest, spread over the hosts."""
    hosts = [town.host("a"), town.host("b")]
    for number in range(10):
        client.register(f"w{number}", start_time=StartTime.CONSISTENT_STATE)
    town.handle(PhaseChanged(Phase.HOT_STANDBY, STANDBY))
    taken = [host.take(Start) for host in hosts]
    assert [len(starts) for starts in taken] == [5, 5]
    tokens = {start.token: start.slot for starts in taken for start in starts}
    assert [tokens[token] for token in sorted(tokens)] == list(range(10))


def register_many(town, client, count):
    """On hosts that can take them all at once."""
    hosts = [town.host(f"h{number}") for number in range(1 + count // limits.starts_in_flight_max)]
    for number in range(count):
        client.register(f"w{number}", start_time=StartTime.CONSISTENT_STATE)
        client.acknowledge()
    return hosts


def started_on(hosts):
    return sum(len(host.take(Start)) for host in hosts)


def test_a_new_phase_starts_a_bounded_number_between_two_looks_at_events(town, client):
    count = 2 * limits.starts_per_round + 7
    hosts = register_many(town, client, count)
    town.handle(PhaseChanged(Phase.HOT_STANDBY, STANDBY))
    assert started_on(hosts) == limits.starts_per_round
    assert town.core.wake_s <= town.boot_s  # it comes back at once
    client.terminate(f"w{count - 1}")
    town.tick()
    town.tick()
    assert started_on(hosts) == count - limits.starts_per_round - 1
    assert town.core.wake_s > town.boot_s


def test_a_phase_that_is_left_during_the_round_starts_nobody_else(town, client):
    hosts = register_many(town, client, limits.starts_per_round + 5)
    town.handle(PhaseChanged(Phase.HOT_STANDBY, STANDBY))
    assert started_on(hosts) == limits.starts_per_round
    town.handle(PhaseChanged(Phase.STARTING, GONE))
    town.pass_time(2)
    assert not started_on(hosts)


def test_changes_are_told_once_and_words_without_a_change_are_not(town, client):
    client.follow(sequence=-1)
    for phase, detail in (
        (Phase.STARTING, GONE),
        (Phase.HOT_STANDBY, STANDBY),
        (Phase.HOT_STANDBY, f"{STANDBY}, still"),
        (Phase.RUNNING, OPEN),
    ):
        town.handle(PhaseChanged(phase, detail))
    told = [(event.phase, event.reason) for event in client.events()]
    assert told == [(Phase.HOT_STANDBY, STANDBY), (Phase.RUNNING, OPEN)]
    page = client.ask(ListHosts)
    assert isinstance(page, HostsPage)
    assert (page.phase, page.phase_detail) == (Phase.RUNNING, OPEN)


def test_a_new_master_asks_the_server_again(town, client):
    client.register("w", start_time=StartTime.RECOVERY_FINISHED)
    town.handle(PhaseChanged(Phase.RUNNING, OPEN))
    town.crash()
    client, host = town.client(), town.host("b")
    assert not host.take(Start)
    assert client.status("w").reason == f"waits for recovery_finished: {FIRST}"
    town.handle(PhaseChanged(Phase.RUNNING, OPEN))
    assert names(host) == ["w"]


def test_a_long_word_of_the_server_is_cut(town, client):
    client.register("w", start_time=StartTime.RECOVERY_FINISHED)
    town.handle(PhaseChanged(Phase.HOT_STANDBY, "x" * 100_000))
    assert len(client.status("w").reason) < limits.phase_detail_chars_max + 100
    assert len(town.log()[-1].reason) == limits.phase_detail_chars_max


def test_a_word_that_cannot_be_written_down_waits_for_room(town, client):
    client.register("w", start_time=StartTime.RECOVERY_FINISHED)
    host = town.host("b")
    town.handle(Space(Room.NONE))
    commits = town.commits
    town.handle(PhaseChanged(Phase.HOT_STANDBY, STANDBY))
    town.handle(PhaseChanged(Phase.RUNNING, OPEN))
    assert town.commits == commits
    town.handle(Space(Room.AMPLE))
    assert names(host) == ["w"]
    assert [event.phase for event in town.log() if event.kind == "phase"] == [Phase.RUNNING]


def test_every_phase_has_its_gate():
    assert set(GATE) == set(Phase)
