"""What somebody may have planted below the root, and what several hosts at once may do to it."""

from __future__ import annotations

import ast
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from deploy.boards import Board
from deploy.errors import BoardError, TransportError
from deploy.session import Session
from devices.protocol import manifest
from devices.protocol.errors import AgentError
from devices.protocol.manifest import FileEntry, Manifest, digest
from devices.store import Store
from tests.conftest import ROOT, require_or_skip

Open = Callable[..., Session]
SECRET = b"not for a board"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "board")


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder that is none of ours; nothing in it may be read, changed or removed."""
    folder = tmp_path / "outside"
    (folder / "kws" / "1").mkdir(parents=True)
    (folder / "secret").write_bytes(SECRET)
    files = {manifest.MODEL: FileEntry(digest(SECRET), len(SECRET))}
    (folder / "kws" / "1" / "manifest.json").write_bytes(Manifest("kws", files, (), ()).to_bytes())
    return folder


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def staged(store: Store, model: bytes = b"model") -> bytes:
    store.put(digest(model), len(model), 0, model)
    data = Manifest("kws", {manifest.MODEL: FileEntry(digest(model), len(model))}, (), ()).to_bytes()
    store.stage(data)
    return data


# Links that lead out


@pytest.mark.parametrize("name", ["store", "releases", "runtime"])
def test_a_link_in_place_of_a_folder_is_refused(tmp_path: Path, outside: Path, name: str) -> None:
    (tmp_path / "board").mkdir()
    (tmp_path / "board" / name).symlink_to(outside)

    with pytest.raises(AgentError, match="is a link, and may lead anywhere; remove it"):
        Store(tmp_path / "board")


def test_a_link_in_place_of_a_blob_is_no_blob_and_is_replaced_by_one(store: Store, outside: Path) -> None:
    """Else a model could be any file that the agent may read, or change under the runner's hands."""
    sha256 = digest(SECRET)
    (store.blobs / sha256).symlink_to(outside / "secret")

    assert 0 == store.progress(sha256)
    with pytest.raises(AgentError, match="the store has no"):
        store.path(sha256)
    assert store.put(sha256, len(SECRET), 0, SECRET)
    assert not store.path(sha256).is_symlink()
    assert SECRET == (outside / "secret").read_bytes()


@pytest.mark.parametrize("depth", ["bundle", "release", "manifest"])
def test_a_release_behind_a_link_is_none(store: Store, outside: Path, depth: str) -> None:
    store.put(digest(SECRET), len(SECRET), 0, SECRET)
    planted = {"bundle": "kws", "release": "kws/1", "manifest": "kws/1/manifest.json"}[depth]
    (store.releases / planted).parent.mkdir(parents=True, exist_ok=True)
    (store.releases / planted).symlink_to(outside / planted)
    before = listing(outside)

    assert store.find(digest(before["kws/1/manifest.json"])) is None
    for attempt in (store.activate, store.drop, store.manifest_of):
        with pytest.raises(AgentError, match="no release kws/1"):
            attempt("kws/1")
    store.prune("kws", 1)
    assert before == listing(outside)


@pytest.mark.parametrize("target", ["outside/kws/1", "releases/../../outside/kws/1", "/etc", "releases/kws/1/../1"])
def test_a_current_link_that_leads_elsewhere_is_no_release_and_the_next_activation_mends_it(
    store: Store, outside: Path, target: str
) -> None:
    data = staged(store)
    (store.root / "current").symlink_to(target.replace("outside", str(outside), 1) if target[0] == "o" else target)

    assert store.current() is None
    store.activate("kws/1")
    assert ("kws/1", digest(data)) == store.current()


def test_a_runtime_behind_a_link_is_none(store: Store, outside: Path) -> None:
    """It would be code that the runner imports."""
    (store.runtimes / "current").symlink_to(outside)
    assert store.runtime() is None
    (store.runtimes / ("a" * 64)).symlink_to(outside)
    (store.runtimes / "current").unlink()
    (store.runtimes / "current").symlink_to("a" * 64)
    assert store.runtime() is None


def test_a_history_behind_a_link_is_not_read_and_not_written_through(store: Store, outside: Path) -> None:
    (store.root / "history").symlink_to(outside / "secret")
    staged(store)

    store.activate("kws/1")

    assert SECRET == (outside / "secret").read_bytes()
    assert not (store.root / "history").is_symlink()


def test_cleaning_and_pruning_follow_no_link(store: Store, outside: Path) -> None:
    staged(store)
    store.activate("kws/1")
    (store.releases / "kws" / ".left").symlink_to(outside)
    (store.blobs / ("b" * 64)).symlink_to(outside / "secret")
    before = listing(outside)

    store.prune("kws", 1)
    store.clean()

    assert before == listing(outside)


# Modes, disks and clocks


def test_everything_below_the_root_is_for_its_owner_alone(open_session: Open, local: Board) -> None:
    """Also with the umask of a host that shares everything."""
    before = os.umask(0)
    try:
        session = open_session(local)
        data = staged_by(session)
        session.request("release.activate", release="kws/1", keep=5)
        session.claim(1, "anna", 60)
    finally:
        os.umask(before)
    assert digest(data) == session.request("release.current").header["current"]["bundle"]
    for path in Path(local.root).rglob("*"):
        if not path.is_symlink():
            wanted = 0o700 if path.is_dir() else 0o600
            assert (path, oct(wanted)) == (path, oct(stat.S_IMODE(path.stat().st_mode)))


def staged_by(session: Session, model: bytes = b"model") -> bytes:
    session.upload(digest(model), model)
    data = Manifest("kws", {manifest.MODEL: FileEntry(digest(model), len(model))}, (), ()).to_bytes()
    session.request("release.stage", data)
    return data


def test_a_home_that_cannot_be_written_is_said_in_one_line(open_session: Open, local: Board, tmp_path: Path) -> None:
    """Really read-only, for the agent alone: root may write where modes forbid it."""
    require_or_skip(
        subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode == 0,
        "needs `unshare -rm`: this kernel or container forbids user namespaces",
    )
    home = tmp_path / "ro-home"
    home.mkdir()
    python = tmp_path / "python3"
    python.write_text(
        f"#!/bin/sh\nexec unshare -rm sh -c 'mount -t tmpfs -o ro none {home} && exec \"$@\"' "
        f'sh {sys.executable} "$@"\n'
    )
    python.chmod(0o755)

    with pytest.raises(TransportError) as caught:
        open_session(local.model_copy(update={"python": str(python), "root": str(home / "deploy")}))

    assert f"board 'local' cannot keep the agent: Read-only file system: {home}/deploy" == str(caught.value)
    assert "`root:` of 'local' in boards.yaml names the folder it lies in" == caught.value.hint


def test_nothing_on_a_board_asks_what_time_it_is() -> None:
    """A board without a battery wakes up in 1970; only `deploy releases` shows a time, and says whose."""
    asked = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sorted((ROOT / "devices").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and ast.unparse(node).startswith(("time.time", "datetime.", "time.localtime"))
    ]
    assert [] == asked


# Several hosts, and large files


def test_two_hosts_that_bring_the_same_file_at_once_both_finish_and_it_is_whole(
    open_session: Open, local: Board
) -> None:
    """Ten times, as each time they meet somewhere else."""
    sessions = [open_session(local) for _ in range(3)]
    failed: list[BaseException] = []

    def bring(session: Session, data: bytes) -> None:
        try:
            session.upload(digest(data), data)
        except BaseException as error:
            failed.append(error)

    for _ in range(10):
        data = os.urandom(3 << 20)
        threads = [threading.Thread(target=bring, args=(session, data)) for session in sessions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [] == failed
        assert data == (Path(local.root) / "store" / digest(data)).read_bytes()
    assert not list((Path(local.root) / "store").glob("*.part"))


def test_two_hosts_that_stage_and_switch_at_once_get_a_number_each(open_session: Open, local: Board) -> None:
    """The store is whole afterwards, every release has its files, and the history ends with the current one."""
    sessions = [open_session(local) for _ in range(3)]
    failed: list[BaseException] = []

    def go(session: Session, who: int) -> None:
        try:
            for n in range(10):
                model = f"{who} {n}".encode()
                session.upload(digest(model), model)
                data = Manifest("kws", {manifest.MODEL: FileEntry(digest(model), len(model))}, (), ()).to_bytes()
                release = session.request("release.stage", data).header["release"]
                session.request("release.activate", release=release, keep=4)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=go, args=(session, who)) for who, session in enumerate(sessions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [] == failed
    store = Store(Path(local.root))
    current = store.current()
    assert current is not None
    for entry in store.listing():
        parsed = manifest.parse(store.manifest_of(entry["release"]))
        assert all(digest(store.path(e.sha256).read_bytes()) == e.sha256 for e in parsed.files.values())
    assert store.previous() not in (None, current[0])
    sessions[0].request("release.activate", release=current[0], keep=4)
    assert 4 == len(store.listing())


@pytest.mark.slow
def test_a_file_of_200_mb_takes_no_more_memory_of_the_agent_than_a_small_one(open_session: Open, local: Board) -> None:
    """On the host it lies in memory, whole; a board may have less memory than that."""
    session = open_session(local)
    agent = psutil.Process(session.hello["pid"])
    small = agent.memory_info().rss
    data = os.urandom(1 << 20) * 200
    largest = 0

    def watch(have: int, total: int) -> None:
        nonlocal largest
        largest = max(largest, agent.memory_info().rss)

    session.upload(hashlib.sha256(data).hexdigest(), data, watch)

    assert largest - small < 16 << 20
    shutil.rmtree(local.root)


@pytest.mark.parametrize("size", [2**32 + 1, 2**63, -1])
def test_an_absurd_size_is_refused_before_anything_is_written(open_session: Open, local: Board, size: int) -> None:
    session = open_session(local)

    with pytest.raises(BoardError, match="the limit is 4294967296"):
        session.request("store.put", b"", sha256="0" * 64, bytes=size, offset=0)

    assert [] == list((Path(local.root) / "store").iterdir())
