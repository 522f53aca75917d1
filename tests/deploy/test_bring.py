"""Bringing a model as a delta: what is sent, and that the model arrives whatever goes wrong with that."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy import bring, delta
from deploy.boards import Board
from deploy.build import build
from deploy.bundle import Bundle
from deploy.errors import BoardError, BoardSilent, NotOnBoard
from deploy.push import push
from deploy.session import Session
from devices.protocol import manifest
from tests.conftest import GOLDEN
from tests.models import perturbed

Open = Callable[..., Session]


def model_digest(bundle: Bundle) -> str:
    return bundle.manifest.files[manifest.MODEL].sha256


def golden_bytes(bundle: Bundle) -> int:
    return len(bundle.files[manifest.GOLDEN])


def blobs(board: Board) -> set[str]:
    return {path.name for path in (Path(board.root) / "store").iterdir()}


def digests(*bundles: Bundle) -> set[str]:
    return {entry.sha256 for bundle in bundles for entry in bundle.manifest.files.values()}


@pytest.fixture(scope="module")
def digits() -> Bundle:
    return build(str(GOLDEN / "digits_int8.tflite"), name="digits").bundle


@pytest.fixture(scope="module")
def retrained(digits: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("retrained") / "digits.tflite"
    path.write_bytes(perturbed(digits.model, 0.1, 1, seed=0))
    return build(str(path), name="digits").bundle


def test_a_model_like_the_one_that_is_there_travels_as_a_delta(
    session: Session, local: Board, digits: Bundle, retrained: Bundle
) -> None:
    first = push(session, digits)
    patch = delta.encode(digits.model, retrained.model)

    second = push(session, retrained)

    assert first.delta_base is None
    assert model_digest(digits) == second.delta_base
    assert len(patch) + golden_bytes(retrained) == second.sent_bytes
    assert len(patch) < len(retrained.model) / 10
    assert "digits/2" == second.release
    assert digests(digits, retrained) == blobs(local)


def test_a_delta_that_makes_something_else_is_refused_and_the_model_goes_whole(
    session: Session, local: Board, digits: Bundle, retrained: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(session, digits)
    patch = bytearray(delta.encode(digits.model, retrained.model))
    patch[-40] ^= 1
    monkeypatch.setattr(bring, "_delta", lambda base, target: bytes(patch))

    pushed = push(session, retrained)

    assert pushed.delta_base is None
    assert len(patch) + len(retrained.model) + golden_bytes(retrained) == pushed.sent_bytes
    assert digests(digits, retrained) == blobs(local)


def test_without_the_base_the_model_goes_whole(
    session: Session, local: Board, digits: Bundle, retrained: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It vanishes after the board was asked for it."""
    push(session, digits)

    def slow(base: bytes, target: bytes) -> bytes:
        (Path(local.root) / "store" / model_digest(digits)).unlink()
        return delta.encode(base, target)

    monkeypatch.setattr(bring, "_delta", slow)

    pushed = push(session, retrained)

    assert pushed.delta_base is None
    assert model_digest(retrained) in blobs(local)
    assert "digits/2" == pushed.release


def test_a_board_that_decodes_more_slowly_than_the_line_sends_gets_the_model_whole(
    session: Session, digits: Bundle, retrained: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1,000 bits a second: some minutes for a model that goes in a blink."""
    push(session, digits)
    request = session.request

    def slow(op: str, *arguments: object, **header: object) -> object:
        reply = request(op, *arguments, **header)  # type: ignore[arg-type]
        if "decoder_bits_per_s" in reply.header:
            assert reply.header["decoder_bits_per_s"] > 1000
            reply.header["decoder_bits_per_s"] = 1000.0
        return reply

    monkeypatch.setattr(session, "request", slow)

    pushed = push(session, retrained)

    assert pushed.delta_base is None
    assert len(retrained.model) + golden_bytes(retrained) == pushed.sent_bytes


def test_a_board_that_knows_nothing_of_what_the_host_remembers_gets_the_model_whole(
    open_session: Open, local: Board, private_home: Path, digits: Bundle, retrained: Bundle
) -> None:
    push(open_session(local), digits)
    other = local.model_copy(update={"root": str(private_home / "other")})

    assert len(retrained.model) + golden_bytes(retrained) == push(open_session(other), retrained).sent_bytes


@pytest.mark.parametrize("delay_s", [0.0, 0.01, 0.03, 0.06, 0.1, 0.2])
def test_an_agent_that_is_killed_while_it_applies_a_delta_leaves_nothing_that_hurts_the_next_push(
    open_session: Open, local: Board, digits: Bundle, retrained: Bundle, monkeypatch: pytest.MonkeyPatch, delay_s: float
) -> None:
    session = open_session(local)
    push(session, digits)
    request = session.request

    def killing(op: str, *arguments: object, **header: object) -> object:
        if op == "store.patch":
            threading.Timer(delay_s, os.kill, (session.hello["pid"], signal.SIGKILL)).start()
        return request(op, *arguments, **header)  # type: ignore[arg-type]

    monkeypatch.setattr(session, "request", killing)
    try:
        push(session, retrained)
    except BoardSilent:
        pass
    again = push(open_session(local), retrained)

    assert "digits/2" == again.release
    assert digests(digits, retrained) == blobs(local)


def test_heartbeats_go_on_while_a_delta_is_applied(session: Session, digits: Bundle) -> None:
    """2 MB take seconds; the agent answers nothing else meanwhile, but says that it lives."""
    old, new = digits.model * 60, perturbed(digits.model, 0.5, 3, seed=1) * 60
    patch = delta.encode(old, new)
    for data in (old, patch):
        session.upload(manifest.digest(data), data)
    session._silence_s = 1.6

    session.request("store.patch", sha256=manifest.digest(new), base=manifest.digest(old), delta=manifest.digest(patch))

    progress = session.request("store.progress", digests=[manifest.digest(new), manifest.digest(patch)])
    assert [-1, 0] == list(progress.header["progress"].values())


def test_a_patch_names_what_is_not_there(session: Session, local: Board, digits: Bundle) -> None:
    patch = delta.encode(b"", digits.model)
    session.upload(manifest.digest(patch), patch)
    names = {"sha256": model_digest(digits), "base": "0" * 64}

    with pytest.raises(NotOnBoard, match="the store has no 111111111111"):
        session.request("store.patch", **names, delta="1" * 64)
    with pytest.raises(NotOnBoard, match="the store has no 000000000000"):
        session.request("store.patch", **names, delta=manifest.digest(patch))
    assert set() == blobs(local)
    with pytest.raises(BoardError, match="not a SHA-256"):
        session.request("store.patch", sha256="../../x", base="0" * 64, delta="1" * 64)


def test_a_delta_of_another_target_than_named_is_dropped(session: Session, local: Board, digits: Bundle) -> None:
    base = digits.model
    patch = delta.encode(base, base[::-1])
    for data in (base, patch):
        session.upload(manifest.digest(data), data)

    with pytest.raises(BoardError, match="111111111111 came out damaged and was dropped"):
        session.request("store.patch", sha256="1" * 64, base=manifest.digest(base), delta=manifest.digest(patch))

    assert {manifest.digest(base)} == blobs(local)


def test_models_of_the_same_name_come_first_then_the_newest() -> None:
    for number, name in enumerate(["a", "b", "a", "c"]):
        model = bytes([number]) * 100
        bring.remember(_bundle(name, model))
        os.utime(bring._folder() / f"{manifest.digest(model)}.{name}", (0, number))

    kept = [manifest.digest(bytes([number]) * 100) for number in (2, 0, 3, 1)]
    assert kept == bring.remembered("a")
    assert bytes([3]) * 100 == bring.recall(kept[2])
    assert bring.recall("0" * 64) is None


def test_a_damaged_memory_is_no_base() -> None:
    bring.remember(_bundle("a", b"model"))
    bring._files()[0].write_bytes(b"moder")

    assert bring.recall(manifest.digest(b"model")) is None


def test_the_oldest_models_are_forgotten_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bring, "CACHE_BYTES", 250)
    for number in range(4):
        bring.remember(_bundle("a", bytes([number]) * 100))
        for file in bring._files():
            os.utime(file, ns=(0, file.stat().st_mtime_ns - 10**9))

    assert [manifest.digest(bytes([number]) * 100) for number in (3, 2)] == bring.remembered("a")


@pytest.mark.parametrize(
    ("sent", "seconds", "rate"),
    [
        (0, 0.0, 100e3),  # nothing seen yet
        (11_000, 1.1, 11e3),  # a serial line
        (20_000, 0.1002, 1e8),  # a far board: all of it was waiting
    ],
)
def test_a_line_is_as_fast_as_it_was_for_the_files_before(sent: int, seconds: float, rate: float) -> None:
    line = bring.Line(0.05)
    line.saw(sent, seconds)

    assert line.seconds(1_000_000) == pytest.approx(1_000_000 / rate)


def _bundle(name: str, model: bytes) -> Bundle:
    return Bundle(
        manifest.Manifest(name, {manifest.MODEL: manifest.FileEntry(manifest.digest(model), len(model))}, (), ()),
        b"",
        {manifest.MODEL: model},
    )
