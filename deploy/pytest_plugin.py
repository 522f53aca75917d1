"""
Boards as pytest fixtures; loaded by pytest where deploy is installed, and nothing until a test asks for `board`.

    def test_it_is_fast(push, measure):
        push("kws.bundle")
        assert measure(duration_s=3).latency.median_ns < 2_000_000

Such a test runs once for each board of ``--board NAME`` and ``--tag TAG``, with the board's lease held from its first
fixture to its end.  ``@pytest.mark.needs("dotprod", "meter")`` skips boards that lack something, and says what.  What
was measured goes into the results store, and into the properties that ``--junitxml`` writes.  Where another plugin has
the same options, ``-p no:deploy.pytest_plugin`` leaves this one out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from deploy.boards import Board, Registry
    from deploy.bundle import Bundle
    from deploy.measure import Measured
    from deploy.push import Pushed
    from deploy.session import Session

NO_BOARD = "needs a board: --board NAME or --tag TAG (of boards.yaml)"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("deploy", "boards, by deploy")
    group.addoption("--board", action="append", default=[], metavar="NAME", help="run tests that need a board on it")
    group.addoption("--tag", action="append", default=[], metavar="TAG", help="... on every board with the tag")
    group.addoption("--boards-file", metavar="FILE", help="board file [$DEPLOY_BOARDS, ./boards.yaml]")
    group.addoption(
        "--board-wait", type=float, metavar="S", help="wait at most so long for a board that is held [without end]"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(*what): what a board must have: a CPU feature, a kind, meter, memory>=2G")
    _chosen(config)  # an unknown board is said before anything runs


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "_board_entry" in metafunc.fixturenames:
        boards: Sequence[Board | None] = _chosen(metafunc.config) or [None]
        ids = [board.name if board else "no board" for board in boards]
        metafunc.parametrize("_board_entry", boards, ids=ids, indirect=True)


class BoardUnderTest:
    """
    A board that is ours for this test.

    Attributes:
        name: in boards.yaml.
        entry: all that boards.yaml says of it.
        session: the conversation with its agent, see `deploy.session.Session`.
        identity: what it says of itself: model, CPU, memory, versions.
    """

    def __init__(self, registry: Registry, session: Session) -> None:
        self.name = session.board.name
        self.entry = session.board
        self.session = session
        self.identity: dict[str, Any] = session.hello["identity"]
        self.registry = registry
        self.bundle: Bundle | None = None  # the last that was pushed

    def __repr__(self) -> str:
        return f"<board {self.name}>"


@pytest.fixture
def _board_entry(request: pytest.FixtureRequest) -> Board:
    board: Board | None = request.param
    if board is None:
        pytest.skip(NO_BOARD)
    lacks = _registry(request.config).lacks(
        board, [word for m in request.node.iter_markers("needs") for word in m.args]
    )
    if lacks:
        pytest.skip(f"board {board.name} {', '.join(lacks)}")
    return board


@pytest.fixture
def board(
    request: pytest.FixtureRequest, _board_entry: Board, record_property: Callable[[str, object], None]
) -> Iterator[BoardUnderTest]:
    """The board that this test runs on, with its lease held until the test has ended."""
    from deploy.farm.hold import hold

    known = _registry(request.config)
    with hold(
        known.registry,
        _board_entry,
        purpose=f"pytest {request.node.name}",
        wait=request.config.getoption("--board-wait"),
        evict=True,
    ) as session:
        record_property("board", session.board.name)
        yield BoardUnderTest(known.registry, session)


@pytest.fixture
def push(board: BoardUnderTest, record_property: Callable[[str, object], None]) -> Callable[..., Pushed]:
    """``push(bundle, kernels="auto")`` brings a bundle (a path, a .tflite, or a `Bundle`) there, and proves it."""

    def push_(source: str | Path | Bundle, kernels: str = "auto") -> Pushed:
        from deploy import fleet

        bundle = _bundle(source)
        pushed = fleet.bring(board.session, bundle, _Nobody(), kernels)
        board.bundle = bundle
        record_property("bundle", bundle.digest)
        return pushed

    return push_


@pytest.fixture
def measure(board: BoardUnderTest, record_property: Callable[[str, object], None]) -> Callable[..., Measured]:
    """
    ``measure(duration_s=3, ...)`` measures the bundle that was pushed last, by a `deploy.measure.Plan`; the run is kept
    in the results store.
    """

    def measure_(**plan: Any) -> Measured:
        from deploy.measure import Plan
        from deploy.measure import measure as run
        from deploy.paths import results_dir
        from deploy.prepare import input_values, run_record
        from deploy.results.store import Store

        if board.bundle is None:
            raise pytest.UsageError("nothing was pushed that could be measured: push(bundle) comes first")
        made = Plan(**plan)
        store = Store(results_dir(board.registry.state_dir))
        inputs = input_values(board.session, board.bundle, made)
        with store.writer("measure", run_record(board.session, board.bundle, vars(made))) as writer:
            measured = run(board.session, board.bundle.digest, inputs, made, writer, board.bundle.name)
        record_property("run", writer.id)
        for name, value in properties(measured):
            record_property(name, value)
        return measured

    return measure_


def properties(measured: Measured) -> Iterator[tuple[str, object]]:
    """What JUnit is told of a measurement; what was not measured is not there."""
    latency = measured.latency
    yield "latency_median_ns", latency.median_ns
    for name in ("low_ns", "high_ns", "p99_ns"):
        if (value := getattr(latency, name)) is not None:
            yield f"latency_{name}", value
    yield "verdict", " ".join(measured.verdict)
    for reading in measured.energy:
        if (net := getattr(reading, "net_uj", None)) is not None:
            yield f"energy_net_uj.{reading.rail}", net


def _chosen(config: pytest.Config) -> list[Board]:
    """The boards of the command line; none where it names none."""
    names, tags = config.getoption("--board"), config.getoption("--tag")
    return _registry(config).chosen(names, tags) if names or tags else []


class _Known:
    """The registry and what was seen of its boards, read once for a run of pytest."""

    def __init__(self, path: str | None) -> None:
        from deploy import boards
        from deploy.farm.hold import seen_of

        self.registry = boards.load(path)
        self._seen = seen_of(self.registry)

    def chosen(self, names: list[str], tags: list[str]) -> list[Board]:
        from deploy.errors import UnknownBoard

        try:
            return self.registry.select(names, tags)
        except UnknownBoard as error:
            raise pytest.UsageError(str(error)) from None

    def lacks(self, board: Board, needs: list[str]) -> list[str]:
        """Why a test does not run on this board; empty if it does."""
        from deploy.errors import UsageError
        from deploy.farm.choose import missing

        seen = self._seen.get(board.name)
        try:
            lacks = missing(board, needs, seen)
        except UsageError as error:
            raise pytest.UsageError(f"{error}; {error.hint}") from None
        return lacks + ([f"is in quarantine: {seen.reason}"] if seen and seen.reason is not None else [])


_KNOWN = pytest.StashKey["_Known"]()


def _registry(config: pytest.Config) -> _Known:
    if _KNOWN not in config.stash:
        from deploy.errors import DeployError

        try:
            config.stash[_KNOWN] = _Known(config.getoption("--boards-file"))
        except DeployError as error:
            raise pytest.UsageError(str(error)) from None
    return config.stash[_KNOWN]


def _bundle(source: str | Path | Bundle) -> Bundle:
    from deploy import bundle

    if isinstance(source, bundle.Bundle):
        return source
    path = Path(source)
    if path.suffix.lower() == ".tflite":
        from deploy.build import build

        return build(str(path), name=path.stem, vectors=0).bundle
    return bundle.read(path)


class _Nobody:
    """Watches a push, and tells nobody."""

    def note(self, text: str) -> None:
        pass

    def bytes(self, done: int, total: int) -> None:
        pass
