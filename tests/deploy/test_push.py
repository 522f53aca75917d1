"""Push: what travels, what is proven, and what is current when it fails."""

from __future__ import annotations

import io
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deploy import bundle as bundles
from deploy.boards import Board
from deploy.build import build
from deploy.bundle import Bundle
from deploy.errors import DiskFull, GoldenMismatch, ModelRefused
from deploy.push import push
from deploy.session import Session
from devices.protocol.manifest import GOLDEN as GOLDEN_FILE
from tests.conftest import GOLDEN, require_or_skip
from tests.models import elementwise

Open = Callable[..., Session]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return build(str(GOLDEN / "digits_int8.tflite"), name="digits").bundle


@pytest.fixture
def sum_model(tmp_path: Path) -> Bundle:
    (tmp_path / "sum.tflite").write_bytes(elementwise())
    return build(str(tmp_path / "sum.tflite"), name="sum").bundle


def current(session: Session) -> str | None:
    found = session.request("release.current").header["current"]
    return found and found["release"]


def test_a_push_sends_the_files_proves_them_and_makes_the_release_current(session: Session, digits: Bundle) -> None:
    pushed = push(session, digits)

    assert sum(map(len, digits.files.values())) == pushed.sent_bytes
    assert pushed.verification is not None
    assert "8 golden vectors bit-exact (80 values)" == pushed.verification.summary
    assert "digits/1" == pushed.release == current(session)


def test_the_same_bundle_again_sends_nothing_and_changes_nothing(session: Session, digits: Bundle) -> None:
    push(session, digits)

    again = push(session, digits)

    assert again.was_current
    assert 0 == again.sent_bytes
    assert "digits/1" == again.release


@pytest.mark.parametrize("left", ["nothing", "another Python"])
def test_a_release_that_was_proven_once_more_needs_no_third_proof(
    left: str, session: Session, digits: Bundle, local: Board
) -> None:
    """The board's history was lost, or tells of the Python before an upgrade."""
    push(session, digits)
    history = Path(local.root) / "history"
    if left == "nothing":
        history.unlink()
    else:
        history.write_text(history.read_text().replace(session.hello["identity"]["python"], "3.9.0"))

    assert push(session, digits).verification is not None

    assert push(session, digits).was_current


def test_a_file_that_another_bundle_brought_is_not_sent_again(session: Session, digits: Bundle) -> None:
    push(session, digits)
    renamed = bundles.make(replace(digits.manifest, labels=tuple("0123456789")), digits.files)

    pushed = push(session, renamed)

    assert 0 == pushed.sent_bytes
    assert "digits/2" == pushed.release == current(session)


def test_going_back_to_an_older_bundle_proves_it_again_and_makes_no_new_release(
    session: Session, digits: Bundle, sum_model: Bundle
) -> None:
    push(session, digits)
    push(session, sum_model)

    back = push(session, digits)

    assert "digits/1" == back.release == current(session)
    assert back.verification is not None


def test_answers_that_are_not_the_golden_ones_leave_the_old_release_current_and_nothing_behind(
    session: Session, digits: Bundle, local: Board
) -> None:
    push(session, digits)
    wrong = bundles.make(replace(digits.manifest, seed=1), {**digits.files, GOLDEN_FILE: _altered(digits)})

    with pytest.raises(GoldenMismatch) as caught:
        push(session, wrong)

    assert str(caught.value).startswith("digits: 1 of 80 golden values differ, by at most 100 steps; ")
    assert str(caught.value).endswith("(board 'local'); nothing was switched")
    assert "digits/1" == current(session)
    kept = {entry.sha256 for entry in digits.manifest.files.values()}
    assert kept == {path.name for path in (Path(local.root) / "store").iterdir()}
    assert [path.name for path in (Path(local.root) / "releases" / "digits").iterdir()] == ["1"]


def test_one_step_of_difference_is_told_and_passes(session: Session, digits: Bundle) -> None:
    """XNNPACK and the reference kernels may round one step apart."""
    near = bundles.make(digits.manifest, {**digits.files, GOLDEN_FILE: _altered(digits, by=1)})

    pushed = push(session, near)

    assert pushed.verification is not None
    assert pushed.verification.summary.startswith("1 of 80 golden values differ, by at most 1 step; ")


def test_a_model_without_golden_vectors_is_at_least_loaded_and_invoked(session: Session, tmp_path: Path) -> None:
    (tmp_path / "sum.tflite").write_bytes(elementwise())
    (tmp_path / "odd.tflite").write_bytes(elementwise(custom="ethos-u"))
    good = build(str(tmp_path / "sum.tflite"), name="sum", vectors=0).bundle
    odd = build(str(tmp_path / "odd.tflite"), name="odd", vectors=0).bundle
    assert push(session, good).verification is None

    with pytest.raises(ModelRefused) as caught:
        push(session, odd)

    assert str(caught.value).startswith("odd: Encountered unresolved custom op: ethos-u.")
    assert "sum/1" == current(session)


def test_a_blob_that_was_cut_short_on_the_board_is_brought_again(
    session: Session, digits: Bundle, local: Board
) -> None:
    push(session, digits)
    model = digits.manifest.files["model.tflite"]
    (Path(local.root) / "store" / model.sha256).write_bytes(b"TFL3")

    again = push(session, digits)

    assert model.bytes == again.sent_bytes
    assert again.verification is not None
    assert again.verification.exact


def test_a_whole_partial_file_is_finished_without_sending_it_again(
    session: Session, digits: Bundle, local: Board
) -> None:
    """Power went between the last byte and the rename."""
    model = digits.manifest.files["model.tflite"]
    (Path(local.root) / "store" / f"{model.sha256}.part").write_bytes(digits.model)

    assert digits.manifest.files[GOLDEN_FILE].bytes == push(session, digits).sent_bytes


def test_a_full_disk_is_said_with_what_is_free_and_needed_and_the_rest_goes_on_later(
    open_session: Open, local: Board, tmp_path: Path
) -> None:
    """A real full disk: a file system of 1.5 MB, which only the agent's process sees."""
    require_or_skip(
        subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", str(tmp_path)], check=False).returncode == 0,
        "needs `unshare -rm mount`: this kernel or container forbids user namespaces",
    )
    disk = tmp_path / "disk"
    disk.mkdir()
    python = tmp_path / "python3"
    python.write_text(
        f"#!/bin/sh\nexec unshare -rm sh -c 'mount -t tmpfs -o size=1536k none {disk} && exec \"$@\"' sh "
        f'{sys.executable} "$@"\n'
    )
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    session = open_session(local.model_copy(update={"python": str(python), "root": str(disk / "deploy")}))
    digest = "0" * 64

    with pytest.raises(DiskFull) as caught:
        session.request("store.put", bytes(1000), sha256=digest, bytes=4 << 20, offset=0)

    free = caught.value.free
    assert 0 < free < 1536 * 1024
    message = f"the disk is full: {free} bytes free at {disk}/deploy; {4 << 20} more bytes are needed (board 'local')"
    assert message == str(caught.value)
    assert "`deploy boards clean local` removes all that deploy ever put there" == caught.value.hint
    assert {digest: 0} == session.request("store.progress", digests=[digest]).header["progress"]


def _altered(bundle: Bundle, by: int = 100) -> bytes:
    """The golden file with one output value moved."""
    with np.load(io.BytesIO(bundle.files[GOLDEN_FILE])) as golden:
        arrays = {name: golden[name].copy() for name in golden.files}
    out = arrays["v0.out0"]
    out.flat[0] = out.flat[0] - by if out.flat[0] > 0 else out.flat[0] + by
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.save(member, array)
            archive.writestr(f"{name}.npy", member.getvalue())
    return file.getvalue()
