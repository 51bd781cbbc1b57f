"""The rows: what is done to a cluster, and how each worker's incarnations have to end.

Host a hangs on a cable of its own, host b behind the proxy. Unless a row says otherwise no worker
may be touched: it lives on in its first incarnation until it is terminated.
"""

from faulting.play import Row

_LINKS = {
    "whole": ("", ""),
    "cut": ("cut a both\nlost a", "heal a\nback a"),
    "deaf": ("cut a to\nlost a", "heal a\nback a"),  # what the master says is lost
    "mute": ("cut a from\nlost a", "heal a\nback a"),  # what the host says is lost
}


def _rows_of_links() -> list[Row]:
    """Who dies or stops while its host's cable is whole, cut, or cut in one direction."""
    found = []
    for link, (before, after) in _LINKS.items():
        while_cut = "" if link == "whole" else f", the cable is {link}"
        stopped = "sleep 1" if link == "whole" else ""

        def row(
            name: str,
            steps: str,
            ends: str = "",
            *,
            fast: tuple[str, ...] = (),
            before: str = before,
            after: str = after,
            while_cut: str = while_cut,
            link: str = link,
        ) -> None:
            steps = f"{before}\n{steps}\n{after}"
            worker = {"w": ends} if ends else {}
            found.append(Row(f"{name}{while_cut}", steps, ends=worker, slow=link not in fast))

        row("nothing", stopped or "lives w 1", fast=("cut",))
        row(
            "worker killed",
            "kill w\ngone w" + ("\nruns w 2" if link == "whole" else ""),
            "SIGKILL",
            fast=("mute",),
        )
        row("worker stopped and continued", f"stop w\n{stopped}\ncont w")
        row("warden killed", "kill warden:a\ngone w", "warden_died", fast=("deaf",))
        row("warden stopped and continued", f"stop warden:a\n{stopped or 'sleep 1'}\ncont warden:a")
        row("warden told to end", "term warden:a\ngone w", "shutdown( start_failed)*")
        row("agent killed", "kill agent:a\nlives w 1\nstart agent:a")
        row("agent stopped and continued", "stop agent:a\nsleep 4\ncont agent:a", fast=("whole",))
        row("zygote killed", "kill zygote:a\nkill w\ngone w", "SIGKILL")
        row(
            "zygote stopped and continued",
            "stop zygote:a\nkill w\ngone w\nsleep 1\ncont zygote:a",
            "SIGKILL",
        )
        row(
            "agent and warden killed",
            "kill agent:a\nkill warden:a\ngone w\nstart agent:a",
            "warden_died",
        )
        row(
            "warden killed while the agent is stopped",
            "stop agent:a\nkill warden:a\ngone w\ncont agent:a",
            "warden_died",
        )
        row(
            "worker killed while the warden is stopped",
            "stop warden:a\nkill w\ngone w\ncont warden:a",
            "SIGKILL",
        )
        row(
            "worker killed, then agent and warden",
            "kill w\ngone w\nkill agent:a\nkill warden:a\nstart agent:a",
            "SIGKILL( warden_died)?",
        )
        row("master killed", "kill master\nlives w 1\nstart master")
        row("master stopped and continued", "stop master\nsleep 4\ncont master")
        row(
            "worker killed while there is no master",
            "kill master\nkill w\ngone w\nstart master",
            "SIGKILL",
        )
        row(
            "everything killed at once",
            "kill master\nkill agent:a\nkill warden:a\ngone w\nstart master\nstart agent:a",
            "warden_died",
            fast=("whole",),
        )
    return found


def _rows_of_the_proxy() -> list[Row]:
    """What a network between does to a connection."""
    killed = "kill w\ngone w"
    back = "proxy b pass\nback b"
    at_b = "w@b"
    dead = {"w": "SIGKILL"}
    found = [
        Row("bytes come late", f"proxy b delay\n{killed}\nruns w 2", at_b, dead),
        Row("seven bytes at a time", f"proxy b trickle\n{killed}\nruns w 2", at_b, dead),
        Row(
            "nothing moves",
            f"proxy b stall\nlost b\n{killed}\n{back}\nruns w 2",
            at_b,
            dead,
            slow=False,
        ),
        Row("nothing moves to the host", f"proxy b stall to\nlost b\n{killed}\n{back}", at_b, dead),
        Row("nothing moves from it", f"proxy b stall from\nlost b\n{killed}\n{back}", at_b, dead),
        Row(
            "a stall too short to be noticed",
            f"proxy b stall\nsleep 1\n{killed}\n{back}",
            at_b,
            dead,
        ),
        Row(
            "no connection is accepted",
            f"proxy b refuse\nbreak b\nlost b\n{killed}\n{back}",
            at_b,
            dead,
        ),
        Row(
            "connections are accepted and not answered",
            f"proxy b deaf\nbreak b\nlost b\n{killed}\n{back}",
            at_b,
            dead,
        ),
        Row("half-open", f"halve b\n{killed}\nback b\nruns w 2", at_b, dead, slow=False),
        Row(
            "half-open, and the agent is killed",
            f"halve b\n{killed}\nkill agent:b\nstart agent:b\nback b",
            at_b,
            dead,
        ),
        Row(
            "stalled, and the warden is killed",
            f"proxy b stall\nkill warden:b\ngone w\n{back}",
            at_b,
            {"w": "warden_died"},
        ),
        Row(
            "stalled, and the agent is another one",
            f"proxy b stall\nkill agent:b\nstart agent:b\n{killed}\nlost b\n{back}",
            at_b,
            dead,
        ),
        Row(
            "stalled, and the master is another one",
            f"proxy b stall\nkill master\nstart master\n{killed}\n{back}",
            at_b,
            dead,
        ),
        Row(
            "both hosts away and back at once",
            "proxy b stall\ncut a both\nlost a\nlost b\nkill v\nheal a\nproxy b pass\n"
            "back a\nback b",
            "w@b v@a",
            {"v": "SIGKILL"},
        ),
        Row("five connections broken in a row", "break b\nback b\n" * 5 + killed, at_b, dead),
        Row("half-open again and again", "halve b\nsleep 0.5\n" * 6 + killed, at_b, dead),
    ]
    for after in (1, 3, 17, 60, 150, 400, 1000):
        steps = f"break b {after}\n{killed}\nback b\nruns w 2"
        ends = {"w": "SIGKILL( start_failed)*"}  # a START may be what was cut
        found += [Row(f"cut after {after} more bytes", steps, at_b, ends, slow=after != 60)]
    return found


def _rows_of_requests() -> list[Row]:
    """What is asked for while the host is away has to be what it finds when it is back."""
    cut, heal = "cut a both\nlost a", "heal a\nback a"
    return [
        Row(
            "terminate while cut",
            f"{cut}\nask terminate w\nasked\nlives w 1\n{heal}\ngone w",
            ends={"w": "terminate"},
            workers="w@a v@a",
            slow=False,
        ),
        Row(
            "terminate while cut, then the master is another one",
            f"{cut}\nask terminate w\nasked\nkill master\nstart master\n{heal}\ngone w",
            ends={"w": "terminate"},
            workers="w@a v@a",
        ),
        Row(
            "terminate while cut, of one that dies meanwhile",
            f"{cut}\nkill w\ngone w\nask terminate w\nasked\n{heal}",
            # Its host may go on by itself, until it hears of that; it is asked whether it has.
            ends={"w": "SIGKILL( start_failed| terminate)?|terminate"},
            workers="w@a v@a",
        ),
        Row(
            "terminate of one that is deaf to it",
            f"{cut}\nask terminate w\nasked\n{heal}\ngone w",
            ends={"w": "terminate"},
            workers="w@a:deaf v@a",
        ),
        Row(
            "restart while cut",
            f"{cut}\nask restart w\nasked\nlives w 1\n{heal}\nruns w 2",
            ends={"w": "restart"},
        ),
        Row(
            "restart while cut, of one that dies meanwhile",
            f"{cut}\nkill w\ngone w\nask restart w\nasked\n{heal}\nruns w 2",
            ends={"w": "SIGKILL|restart"},
        ),
        Row(
            "hold and release while cut",
            f"{cut}\nask hold w\nasked\nask release w\nasked\n{heal}",
            ends={"w": "hold|restart"},
        ),
        Row("register while cut", f"{cut}\nregister v@a\n{heal}\nruns v 1"),
        Row(
            "register and terminate while cut",
            f"{cut}\nregister v@a\nask terminate v\nasked\n{heal}",
            ends={"v": ""},
        ),
        Row(
            "calls while the master is away, answered by the next one",
            "kill master\nask restart w\nsleep 1\nstart master\nruns w 2",
            ends={"w": "restart"},
            slow=False,
        ),
        Row(
            "a cable that comes and goes",
            "cut a both\nsleep 1\nheal a\nsleep 0.3\n" * 5 + "kill w\ngone w\nback a",
            ends={"w": "SIGKILL"},
        ),
        Row(
            "one direction after the other",
            "cut a to\nlost a\nkill w\nheal a\ncut a from\nsleep 4\nheal a\nback a\nruns w 2",
            ends={"w": "SIGKILL"},
        ),
        Row(
            "the cable is pulled out",
            "unplug a\nlost a\nkill w\ngone w\nheal a\nback a",
            ends={"w": "SIGKILL"},
        ),
        Row(
            "the cable is out for a moment",
            "unplug a\nsleep 0.5\nheal a\nkill w\nruns w 2",
            ends={"w": "SIGKILL"},
        ),
    ]


def _rows_of_shortage() -> list[Row]:
    """No processes, descriptors, room, memory, and clocks that are set."""
    failed = {"w": "SIGKILL( start_failed)*"}
    surely = {"w": "SIGKILL( start_failed)+"}
    dead = {"w": "SIGKILL"}
    lost = "kill w\ngone w"
    return [
        Row(
            "fork fails",
            f"full processes:a\nkill zygote:a\n{lost}\nsleep 1\nfree processes:a",
            ends=failed,
            slow=False,
        ),
        Row(
            "fork fails, and the warden is killed",
            "full processes:a\nkill warden:a\ngone w\nsleep 1\nfree processes:a",
            ends={"w": "warden_died( start_failed)*"},
        ),
        Row(
            "the warden has no descriptors",
            f"full files:warden:a\nkill zygote:a\n{lost}\ntold w start_failed\nfree files:warden:a",
            ends=surely,
            slow=False,
        ),
        Row(
            "the agent has no descriptors while the cable is cut",
            "full files:agent:a\ncut a both\nlost a\nkill w\nheal a\nsleep 2\nfree files:agent:a",
            ends=dead,
        ),
        Row(
            "the master has no descriptors for who comes",
            "full files:master\nkill agent:a\nstart agent:a\nkill w\nsleep 2\nfree files:master",
            ends=dead,
        ),
        Row(
            "the runtime folder's disk is full",
            f"full runtime:a\n{lost}\nsleep 1\nfree runtime:a",
            ends=failed,
            slow=False,
        ),
        Row(
            "that disk is full, and the warden is killed",
            "full runtime:a\nkill warden:a\ngone w\nsleep 1\nfree runtime:a",
            ends={"w": "warden_died( start_failed)*"},
        ),
        Row(
            "that disk is full, and the agent is killed",
            f"full runtime:a\nkill agent:a\n{lost}\nstart agent:a\nsleep 1\nfree runtime:a",
            ends=failed,
        ),
        Row(
            "the registry's disk is full",
            f"full registry\n{lost}\nsleep 1\nfree registry\nruns w 2",
            ends=dead,
            slow=False,
        ),
        Row(
            "the registry's disk is full, and the master is killed",
            f"full registry\n{lost}\nkill master\nstart master\nsleep 1\nfree registry",
            ends=dead,
        ),
        Row(
            "memory runs out",
            "full memory:a 40\nlatch w\ngone w\nfree memory:a\nruns w 2",
            "w@a:hungry",
            {"w": "oom"},
            slow=False,
        ),
        Row(
            "memory runs out while the cable is cut",
            "full memory:a 40\nlatch w\ncut a both\ngone w\nlost a\nfree memory:a\nheal a\nback a",
            "w@a:hungry",
            {"w": "oom( oom)*"},
        ),
        Row(
            "a worker's child in another session", f"child w\n{lost}\nruns w 2", "w@a:parent", dead
        ),
        Row(
            "a worker's child, and the warden is killed",
            "child w\nkill warden:a\ngone w\nruns w 2",
            "w@a:parent",
            {"w": "warden_died"},
            slow=False,
        ),
        Row(
            "one that blocks all signals, and the warden is killed",
            "kill warden:a\ngone w",
            "w@a:deaf",
            {"w": "warden_died"},
        ),
        Row(
            "one that is stopped, and the warden is killed",
            "stop w\nkill warden:a\ngone w",
            ends={"w": "warden_died"},
        ),
        Row(
            "the master's clock is set back a day",
            f"clock master -86400\n{lost}\nruns w 2",
            ends=dead,
            slow=False,
        ),
        Row(
            "the master's clock is set forward a year",
            f"clock master 31536000\n{lost}\nruns w 2",
            ends=dead,
        ),
        Row(
            "the next master's clock is a day behind",
            f"kill master\nclock master -86400\n{lost}\nstart master\nruns w 2",
            ends=dead,
        ),
        Row(
            "the host's clock is set back a day",
            f"clock agent:a -86400\n{lost}\nruns w 2",
            ends=dead,
        ),
        Row(
            "the host's clock is set back while the cable is cut",
            f"cut a both\nlost a\nclock agent:a -86400\n{lost}\nheal a\nback a\nruns w 2",
            ends=dead,
        ),
        Row(
            "the host's clock jumps to and fro",
            "clock agent:a -3600\nsleep 0.5\nclock agent:a 3600\nsleep 0.5\n" * 3 + lost,
            ends=dead,
        ),
    ]


ROWS = [*_rows_of_links(), *_rows_of_the_proxy(), *_rows_of_requests(), *_rows_of_shortage()]
assert len({row.name for row in ROWS}) == len(ROWS)
