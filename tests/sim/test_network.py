"""The simulated network does what ZeroMQ was measured to do."""

from posthouse_testing.sim.network import Dealer, Network
from posthouse_testing.sim.world import Knobs, World


class Town:
    """One router, one dealer, and what each has heard."""

    def __init__(self, seed: int = 1, **knobs: float) -> None:
        self.world = World(seed)
        quiet = Knobs.quiet()
        fields = {name: getattr(quiet, name) for name in Knobs.__dataclass_fields__}
        self.world.knobs = Knobs(**(fields | knobs))
        self.network = Network(self.world)
        self.router = self.network.routers["agents"]
        self.at_router: list[tuple[bytes, bytes]] = []  # routing id, frame
        self.at_dealer: list[bytes] = []
        self.router.bind(
            lambda routing_id, _user, frame: self.at_router.append((routing_id, frame))
        )
        self.dealer = self.dial()

    def dial(self) -> Dealer:
        return Dealer(self.network, "agents", "a", "agent:a", self.at_dealer.append)

    def hear(self, routing_id: bytes, _user: str, frame: bytes) -> None:
        self.at_router.append((routing_id, frame))

    def run(self, length_s: float = 1.0) -> None:
        self.world.run(self.world.now_s + length_s)

    @property
    def heard(self) -> list[bytes]:
        return [frame for _, frame in self.at_router]


def frames(first: int, count: int) -> list[bytes]:
    return [f"{number:03}".encode() for number in range(first, first + count)]


def test_a_connection_keeps_the_order() -> None:
    town = Town(delay_tail=0.3)
    for frame in frames(0, 50):
        town.dealer.send(frame)
    town.run()
    assert town.heard == frames(0, 50)


def test_what_is_sent_before_there_is_a_connection_waits_for_it() -> None:
    town = Town()
    town.dealer.send(b"early")
    assert town.heard == []
    town.run()
    assert town.heard == [b"early"]


def test_a_reset_loses_what_is_in_flight_and_the_dealer_comes_back_as_another() -> None:
    town = Town(seed=3)
    town.run()
    for frame in frames(0, 20):
        town.dealer.send(frame)
    town.network.reset("a")
    town.run(3.0)
    assert town.heard == frames(0, len(town.heard))  # a prefix
    assert len(town.heard) < 20
    town.dealer.send(b"again")
    town.run()
    assert town.heard[-1] == b"again"
    assert town.at_router[0][0] != town.at_router[-1][0]


def test_an_old_connection_may_be_delivered_after_the_new_one() -> None:
    town = Town(seed=2, late=1.0)
    town.run()
    for frame in frames(0, 5):
        town.dealer.send(frame)
    town.dealer.close()
    town.dealer = town.dial()
    town.dealer.send(b"new")
    town.run(5.0)
    assert sorted(town.heard) == [*frames(0, 5), b"new"]
    assert town.heard.index(b"new") < town.heard.index(b"000")


def test_a_short_cut_delays_and_a_long_one_breaks() -> None:
    town = Town()
    town.run()
    town.network.cut("a", up=True, down=True)
    town.dealer.send(b"held")
    town.run(2.0)
    assert town.heard == []
    town.network.heal("a")
    town.run()
    assert town.heard == [b"held"]
    town.network.cut("a", up=True, down=True)
    town.dealer.send(b"lost")
    town.run(20.0)
    assert town.router.connections == {}
    town.network.heal("a")
    town.run(5.0)
    assert len(town.router.connections) == 1


def test_a_cut_may_have_one_way_only() -> None:
    town = Town()
    town.run()
    (routing_id,) = town.router.connections
    town.network.cut("a", up=False, down=True)
    town.dealer.send(b"up")
    assert town.router.send(routing_id, b"down")
    town.run(2.0)
    assert (town.heard, town.at_dealer) == ([b"up"], [])


def test_a_router_refuses_frames_for_peers_that_are_gone_or_do_not_read() -> None:
    town = Town(room=3)
    town.run()
    (routing_id,) = town.router.connections
    assert [town.router.send(routing_id, b"x") for _ in range(5)] == [True] * 3 + [False] * 2
    town.dealer.close()
    town.run()
    assert not town.router.send(routing_id, b"x")


def test_a_router_that_ends_breaks_every_connection_and_the_next_one_is_found() -> None:
    town = Town()
    town.run()
    town.router.close()
    town.dealer.send(b"into the void")
    town.run(2.0)
    town.router.bind(town.hear)
    town.run(3.0)
    town.dealer.send(b"hello")
    town.run()
    assert town.heard[-1] == b"hello"
