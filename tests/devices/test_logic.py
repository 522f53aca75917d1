"""What a release brings for the accelerator, and when the agent lets it go there."""

from __future__ import annotations

from pathlib import Path

import pytest

from devices.logic import Logic
from devices.protocol import accelerated
from devices.protocol.accelerated import Entry, FormatError, entry
from devices.protocol.manifest import FileEntry, Manifest, digest
from devices.store import Store

LOGIC = Logic("/overlays/accelerator.bit")
COMPILED = b"compiled"
ASKED = {"accelerator": True}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "board")


def put(store: Store, data: bytes) -> str:
    store.put(digest(data), len(data), 0, data)
    return digest(data)


def release(store: Store, compiled: Entry | None, name: str = "net") -> str:
    model = name.encode()
    files = {"model.tflite": FileEntry(put(store, model), len(model))}
    return store.stage(Manifest(name, files, (), ()).to_bytes(), None, compiled)


def offered(store: Store, release: str | None, header: dict[str, object] | None = None, signed: bool = False) -> str:
    """Why it is not used."""
    told = LOGIC.offer(store, release, ASKED if header is None else header, signed)
    assert ("/overlays/accelerator.bit", None) == (told["overlay"], told["compiled"])
    return str(told["why"])


def test_a_compiled_model_goes_to_the_runner(store):
    sha256 = put(store, COMPILED)
    told = LOGIC.offer(store, release(store, Entry(sha256=sha256)), ASKED, False)

    assert {"overlay": "/overlays/accelerator.bit", "compiled": str(store.path(sha256)), "why": None} == told


def test_every_other_model_stays_with_litert_for_a_reason(store):
    compiled = release(store, Entry(sha256=put(store, COMPILED)), "compiled")
    refused = release(store, Entry(why="no such operator"), "refused")
    plain = release(store, None, "plain")

    assert "no such operator" == offered(store, refused)
    assert "plain/1 came without a compiled model" == offered(store, plain)
    assert "nothing was compiled for a bare model" == offered(store, None)
    assert "it was not asked for" == offered(store, compiled, {})
    assert "it runs a model as it is, and not another signature or other shapes" == offered(
        store, compiled, {**ASKED, "shapes": {"x": [1]}}
    )
    # Signatures are of bundles: a program that whoever pushes has made is none of what the key let pass.
    assert "a signing key is pinned here, and the compiled model is not signed" == offered(store, compiled, None, True)


def test_a_compiled_model_that_was_damaged_on_the_disk_is_not_run(store):
    sha256 = put(store, COMPILED)
    staged = release(store, Entry(sha256=sha256))
    store.path(sha256).write_bytes(b"other")

    assert f"{sha256[:12]} was damaged on the board's disk" == offered(store, staged)


def test_an_entry_that_was_damaged_on_the_disk_is_a_reason_and_brought_anew(store):
    staged = release(store, Entry(why="old"))
    (store.releases / staged / accelerated.FILE).write_bytes(b"{")

    assert offered(store, staged).startswith("no entry for a compiled model")
    assert staged == release(store, Entry(why="new"))
    assert "new" == offered(store, staged)


def test_a_compiled_model_lives_as_long_as_its_release(store):
    sha256 = put(store, COMPILED)
    kept = release(store, Entry(sha256=sha256), "kept")
    dropped = release(store, Entry(sha256=put(store, b"another")), "dropped")
    store.activate(kept)
    store.drop(dropped)
    store.prune("kept", keep=1)

    assert [-1, 0] == [store.progress(sha256), store.progress(digest(b"another"))]


def test_a_compiled_model_that_was_not_brought_is_not_staged(store):
    with pytest.raises(Exception, match="the store has no"):
        release(store, Entry(sha256=digest(COMPILED)))


@pytest.mark.parametrize("given", [b"", b"[]", b"{}", {"why": 3}, {"sha256": "short"}, {"why": "x", "more": 1}, None])
def test_what_is_no_entry_is_refused(given):
    with pytest.raises(FormatError, match="compiled model"):
        entry(given)


def test_an_entry_comes_back_from_its_bytes():
    for made in (Entry(sha256="0" * 64), Entry(why="no node")):
        assert made == entry(made.encode()) == entry(vars(made))
