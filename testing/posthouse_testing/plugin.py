"""pytest's plugin: the fixtures posthouse_cluster and posthouse_real_cluster, seeds, reports.

Owns: which seeds a test runs under, what a failure tells, the end of each cluster. Must not know:
how a cluster works. Invariant: it loads nothing but pytest until a test asks for a cluster, and it
takes part in no test that does not.
"""

from collections.abc import Generator, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from posthouse_testing.real import RealCluster
    from posthouse_testing.virtual.cluster import VirtualCluster

__all__ = ["SERVER", "MakeCluster", "MakeRealCluster"]

SEEDS_MAX = 100_000  # of one test; each is an item of pytest's
REPORT_CHARS_MAX = 60_000  # of what a failure shows of a cluster
# The extra [server], by the names that are imported; a test compares it with pyproject.toml.
SERVER = (
    "click",
    "platformdirs",
    "prometheus_client",
    "psutil",
    "rich",
    "setproctitle",
    "starlette",
    "structlog",
    "uvicorn",
)


class MakeCluster(Protocol):
    """The fixture posthouse_cluster: `cluster = posthouse_cluster(hosts=["a", "b"])`."""

    def __call__(
        self,
        hosts: Iterable[str] | int = ("a", "b"),
        *,
        seed: int | None = None,
        lease_s: float = 10.0,
        slots: int = 50,
        delay_s: float = 0.001,
        step_s_max: float = 10.0,
    ) -> "VirtualCluster":
        """A VirtualCluster, which ends with the test. seed: the fixture posthouse_seed's."""
        ...


class MakeRealCluster(Protocol):
    """The fixture posthouse_real_cluster: `cluster = posthouse_real_cluster(path=["src"])`."""

    def __call__(
        self,
        hosts: Iterable[str] = ("a", "b"),
        *,
        lease_s: float | None = None,
        modules: Iterable[str] = ("*",),
        path: Iterable[str | Path] = (),
        env: dict[str, str] | None = None,
        timeout: float = 30.0,
    ) -> "RealCluster":
        """A RealCluster, which ends with the test."""
        ...


class _Cluster(Protocol):
    def check(self) -> None: ...
    def report(self) -> str: ...


_clusters: pytest.StashKey[list[_Cluster]] = pytest.StashKey()
_failed: pytest.StashKey[dict[tuple[object, ...], int]] = pytest.StashKey()


# --- options, seeds ---


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("posthouse", "simulated clusters of posthouse")
    group.addoption(
        "--posthouse-seed",
        type=int,
        metavar="N",
        help="run tests with posthouse_cluster under this seed only, as a failure tells",
    )
    group.addoption(
        "--posthouse-seeds",
        type=int,
        metavar="COUNT",
        help="how many seeds tests marked posthouse_seeds run under, instead of what they say",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "posthouse_seeds(count, start=0): run this test once under each of so many seeds of "
        "posthouse_cluster; after the first that fails the others are skipped",
    )
    config.stash[_failed] = {}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("posthouse_seeds")
    if marker is None:
        return
    if "posthouse_seed" not in metafunc.fixturenames:
        if marker not in metafunc.definition.own_markers:
            return  # it is a class's or a module's, and meant for others there
        pytest.fail(
            f"{metafunc.definition.nodeid} is marked posthouse_seeds and uses neither "
            "posthouse_cluster nor posthouse_seed: each run would be the same",
            pytrace=False,
        )
    seeds = _seeds(metafunc.config, *marker.args, **marker.kwargs)
    metafunc.parametrize("posthouse_seed", seeds, ids=[f"seed{seed}" for seed in seeds])


def _seeds(config: pytest.Config, count: int = 100, start: int = 0) -> Iterable[int]:
    one: int | None = config.getoption("--posthouse-seed")
    if one is not None:
        return [one]
    given: int | None = config.getoption("--posthouse-seeds")
    count = count if given is None else given
    if not 1 <= count <= SEEDS_MAX:
        pytest.fail(f"posthouse_seeds: {count} seeds: must be 1 to {SEEDS_MAX}", pytrace=False)
    return range(start, start + count)


def pytest_runtest_setup(item: pytest.Item) -> None:
    seed = item.config.stash[_failed].get(_without_seed(item))
    if seed is not None and _seed(item) is not None:
        pytest.skip(f"seed {seed} of this test failed before")


def _seed(item: pytest.Item) -> int | None:
    callspec = getattr(item, "callspec", None)
    return None if callspec is None else callspec.params.get("posthouse_seed")


def _without_seed(item: pytest.Item) -> tuple[object, ...]:
    """The test with its other parameters."""
    name = getattr(item, "originalname", item.name)
    params = getattr(getattr(item, "callspec", None), "params", {})
    others = sorted((key, repr(v)) for key, v in params.items() if key != "posthouse_seed")
    return (str(item.path), getattr(item.parent, "nodeid", ""), name, *others)


# --- fixtures ---


@pytest.fixture
def posthouse_seed(request: pytest.FixtureRequest) -> int:
    """The seed of this run: see the marker posthouse_seeds and the option --posthouse-seed."""
    return request.config.getoption("--posthouse-seed") or 0


@pytest.fixture
def posthouse_cluster(request: pytest.FixtureRequest, posthouse_seed: int) -> Iterator[MakeCluster]:
    """Makes clusters on virtual time: posthouse_cluster(hosts=["a", "b"], lease_s=10)."""
    from posthouse_testing.virtual.cluster import VirtualCluster

    made: list[VirtualCluster] = []
    known = request.node.stash.setdefault(_clusters, [])

    def make(
        hosts: Iterable[str] | int = ("a", "b"), *, seed: int | None = None, **options: Any
    ) -> VirtualCluster:
        chosen = posthouse_seed if seed is None else seed
        cluster = VirtualCluster(hosts, seed=chosen, **options)
        made.append(cluster)
        known.append(cluster)
        return cluster

    yield make
    for cluster in made:
        cluster.close()


@pytest.fixture
def posthouse_real_cluster(request: pytest.FixtureRequest) -> Iterator[MakeRealCluster]:
    """Starts clusters of real processes: posthouse_real_cluster(path=["src"], lease_s=10)."""
    missing = [name for name in SERVER if find_spec(name) is None]
    if missing:
        pytest.fail(
            "posthouse_real_cluster starts a real master and agents, which need what is not "
            f"installed here: {', '.join(missing)}. pip install 'posthouse[server]' brings it; "
            "posthouse_cluster (on virtual time) does without.",
            pytrace=False,
        )
    from posthouse_testing.real import RealCluster

    made: list[RealCluster] = []
    known = request.node.stash.setdefault(_clusters, [])

    def make(hosts: Iterable[str] = ("a", "b"), **options: Any) -> RealCluster:
        cluster = RealCluster(hosts, **options)
        made.append(cluster)
        known.append(cluster)
        cluster.start()
        return cluster

    yield make
    left = [text for cluster in made for text in cluster.end()]
    if left:
        pytest.fail(f"this test leaves behind: {'; '.join(left)}", pytrace=False)


# --- reports ---


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """A double run fails the test, though the test itself, or a worker, swallowed the error."""
    result = yield
    for cluster in item.stash.get(_clusters, []):
        cluster.check()
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and report.when in ("call", "setup"):
        seed = _seed(item)
        if seed is not None:
            item.config.stash[_failed].setdefault(_without_seed(item), seed)
            replay = f'pytest "{item.nodeid}" --posthouse-seed {seed}'
            report.sections.append(("posthouse: how to see it again", replay))
        for cluster in item.stash.get(_clusters, []):
            text = cluster.report()[-REPORT_CHARS_MAX:]
            report.sections.append((f"posthouse: {cluster!r}", text))
    return report
