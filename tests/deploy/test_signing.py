"""Signed bundles: keys, signatures, and a board that runs nothing else."""

from __future__ import annotations

import base64
import json
import shutil
import stat
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from deploy import bundle as bundles
from deploy import inference, signing
from deploy.boards import Board, parse
from deploy.build import build
from deploy.bundle import Bundle
from deploy.errors import BundleError, ConfigError, Untrusted
from deploy.push import push
from deploy.releases import listing, rollback
from deploy.session import Session
from devices.ed25519 import verify
from devices.protocol import signature
from devices.protocol.manifest import MODEL
from tests.conftest import GOLDEN, Said

Open = Callable[..., Session]


@pytest.fixture(scope="module")
def digits() -> Bundle:
    return build(str(GOLDEN / "digits_int8.tflite"), name="digits").bundle


@pytest.fixture
def key(tmp_path: Path) -> Path:
    signing.generate(tmp_path / "release.key")
    return tmp_path / "release.key"


@pytest.fixture
def guarded(local: Board, key: Path) -> Board:
    """The board `local`, which boards.yaml gives a public key."""
    return local.model_copy(update={"public_key": public(key)})


def public(key: Path) -> str:
    return key.with_name(key.name + ".pub").read_text().strip()


def fingerprint(key: Path) -> str:
    return signature.fingerprint(base64.b64decode(public(key)))


def newer(bundle: Bundle) -> Bundle:
    return bundles.make(replace(bundle.manifest, seed=1), {**bundle.files, MODEL: bundle.model + b"12345678"})


# Keys and files


def test_a_private_key_is_for_its_owner_alone_and_never_overwritten(key: Path) -> None:
    assert 0o600 == stat.S_IMODE(key.stat().st_mode)
    assert 32 == len(base64.b64decode(public(key)))

    with pytest.raises(ConfigError, match="is there already; a key is never overwritten"):
        signing.generate(key)


def test_a_private_key_that_others_may_read_signs_nothing(key: Path, digits: Bundle) -> None:
    key.chmod(0o640)

    with pytest.raises(ConfigError) as caught:
        signing.sign(digits, key)

    assert f"{key} can be read by others" == str(caught.value)
    assert f"`chmod 600 {key}`" == caught.value.hint


def test_what_is_no_key_is_named(tmp_path: Path, digits: Bundle) -> None:
    (tmp_path / "key").write_text("hello")
    (tmp_path / "key").chmod(0o600)

    with pytest.raises(ConfigError, match="not a private key in PEM without a password"):
        signing.sign(digits, tmp_path / "key")
    with pytest.raises(ConfigError, match="No such file"):
        signing.sign(digits, tmp_path / "other")


def test_a_signature_is_an_entry_of_its_own_and_changes_neither_digest_nor_manifest(
    key: Path, digits: Bundle, tmp_path: Path
) -> None:
    signed, by = signing.sign(digits, key)
    signed.write(tmp_path / "net.bundle")
    read = bundles.read(tmp_path / "net.bundle")

    assert (digits.digest, digits.manifest_bytes, fingerprint(key)) == (read.digest, read.manifest_bytes, by)
    assert read.signature == signed.signature
    assert read.signature is not None
    found = signature.parse(read.signature)
    assert verify(found.public_key, read.manifest_bytes, found.signature)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl: `sudo apt install openssl`")
def test_openssl_reads_the_key_and_agrees_with_the_signature(key: Path, digits: Bundle, tmp_path: Path) -> None:
    signed, _ = signing.sign(digits, key)
    assert signed.signature
    (tmp_path / "manifest.json").write_bytes(digits.manifest_bytes)
    (tmp_path / "sig").write_bytes(signature.parse(signed.signature).signature)

    command = ["openssl", "pkeyutl", "-verify", "-inkey", str(key), "-rawin", "-in", "manifest.json", "-sigfile", "sig"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert "Signature Verified Successfully" in done.stdout


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": 2}, "format 2, 'ed25519'; this reads 1, 'ed25519'"),
        ({"algorithm": "rsa"}, "format 1, 'rsa'; this reads 1, 'ed25519'"),
        ({"signature": "AAAA"}, "not a signature: 'AAAA' is not 64 bytes in base64"),
        ({"public_key": None}, "not a public key: 'None' is not 32 bytes in base64"),
    ],
)
def test_a_signature_that_is_none_is_named(
    change: dict[str, object], reason: str, key: Path, digits: Bundle, tmp_path: Path
) -> None:
    signed, _ = signing.sign(digits, key)
    assert signed.signature
    content = json.dumps({**json.loads(signed.signature), **change}).encode()
    replace(signed, signature=content).write(tmp_path / "net.bundle")

    with pytest.raises(BundleError) as caught:
        bundles.read(tmp_path / "net.bundle")

    assert f"{tmp_path}/net.bundle: signature.json: {reason}" == str(caught.value)


def test_boards_yaml_names_the_key_or_the_file_it_lies_in(key: Path, tmp_path: Path) -> None:
    def text(value: str) -> str:
        return (
            f"schema: 1\nboards:\n  pi:\n    kind: generic\n    public_key: {value}\n    transport: {{kind: local}}\n"
        )

    path = tmp_path / "boards.yaml"
    assert public(key) == parse(text(public(key)), path)["pi"].public_key
    assert public(key) == parse(text("release.key.pub"), path)["pi"].public_key
    with pytest.raises(ConfigError) as caught:
        parse(text("other.pub"), path)
    reason = "not a public key: 'other.pub' is not 32 bytes in base64, nor a file that can be read"
    assert f"{path}:5: boards.pi.public_key: {reason}" == str(caught.value)


# A board with a key


def test_a_board_with_a_key_runs_what_that_key_has_signed(
    open_session: Open, guarded: Board, key: Path, digits: Bundle
) -> None:
    session = open_session(guarded)
    signed, _ = signing.sign(digits, key)

    assert push(session, signed).verification is not None
    assert push(session, signed).was_current
    assert listing(session)[0].signed
    assert 0o600 == stat.S_IMODE((Path(guarded.root) / "key").stat().st_mode)


def test_an_unsigned_bundle_is_refused_by_the_board_and_leaves_the_old_one_current(
    open_session: Open, guarded: Board, key: Path, digits: Bundle
) -> None:
    session = open_session(guarded)
    signed, _ = signing.sign(digits, key)
    push(session, signed)

    with pytest.raises(Untrusted) as caught:
        push(session, newer(digits))

    wanted = f"digits: the bundle is not signed; this board runs what {fingerprint(key)} has signed (board 'local')"
    assert wanted == str(caught.value)
    assert "`deploy sign BUNDLE --key KEY` signs it" == caught.value.hint
    assert ["digits/1"] == [entry.release for entry in listing(session) if entry.current]


def test_another_signer_another_content_and_a_forged_name_are_refused(
    open_session: Open, guarded: Board, key: Path, digits: Bundle, tmp_path: Path
) -> None:
    session = open_session(guarded)
    signing.generate(tmp_path / "mallory.key")
    foreign, theirs = signing.sign(digits, tmp_path / "mallory.key")
    right, _ = signing.sign(digits, key)
    assert foreign.signature and right.signature
    forged = {**json.loads(foreign.signature), "public_key": public(key), "key": fingerprint(key)}

    for bundle, reason in (
        (foreign, f"the bundle is signed by {theirs}; this board runs what {fingerprint(key)} signed"),
        (replace(newer(digits), signature=right.signature), "the bundle: the signature is not that of this bundle"),
        (
            replace(digits, signature=json.dumps(forged).encode()),
            "the bundle: the signature is not that of this bundle",
        ),
    ):
        with pytest.raises(Untrusted) as caught:
            push(session, bundle)
        assert f"digits: {reason} (board 'local')" == str(caught.value)


def test_what_was_there_before_the_key_came_does_not_run_until_it_is_signed(
    open_session: Open, local: Board, guarded: Board, key: Path, digits: Bundle
) -> None:
    before = open_session(local)
    push(before, digits)
    push(before, newer(digits))
    session = open_session(guarded)

    for attempt in (
        lambda: inference.load(session, bundle=digits.digest),
        lambda: inference.load(session, sha256=digits.manifest.files[MODEL].sha256),
        lambda: rollback(session),
        lambda: session.request("release.activate", release="digits/1"),
        lambda: inference.load(before, bundle=digits.digest),  # also in a conversation that began before
    ):
        with pytest.raises(Untrusted):
            attempt()

    signed, _ = signing.sign(digits, key)
    pushed = push(session, signed)
    assert ("digits/1", 0) == (pushed.release, pushed.sent_bytes)
    assert pushed.verification is not None


def test_a_signature_that_is_damaged_on_the_board_is_noticed_and_mended_by_a_push(
    open_session: Open, guarded: Board, key: Path, digits: Bundle
) -> None:
    session = open_session(guarded)
    signed, _ = signing.sign(digits, key)
    push(session, signed)
    file = Path(guarded.root) / "releases" / "digits" / "1" / "signature.json"
    file.write_bytes(b"{}")

    with pytest.raises(Untrusted):
        inference.load(session, bundle=digits.digest)
    assert not push(session, signed).was_current
    inference.load(session, bundle=digits.digest)


def test_the_first_key_stays_until_it_is_replaced_on_purpose(
    open_session: Open, guarded: Board, local: Board, key: Path, tmp_path: Path
) -> None:
    open_session(guarded).close()
    signing.generate(tmp_path / "new.key")
    changed = local.model_copy(update={"public_key": public(tmp_path / "new.key")})

    with pytest.raises(Untrusted) as caught:
        open_session(changed)

    old, new = fingerprint(key), fingerprint(tmp_path / "new.key")
    assert f"signing key {old} is pinned here, {new} was given (board 'local')" == str(caught.value)
    assert "`deploy boards trust local --replace` pins the one of boards.yaml there" == caught.value.hint


def test_a_key_file_that_is_damaged_opens_nothing(
    open_session: Open, guarded: Board, local: Board, digits: Bundle
) -> None:
    open_session(guarded).close()
    file = Path(guarded.root) / "key"
    file.write_text("")

    with pytest.raises(Untrusted):
        push(open_session(local), digits)


# The verbs


def test_from_keygen_to_a_board_that_trusts_and_then_trusts_another_key(say: Said, tmp_path: Path) -> None:
    model = GOLDEN / "digits_int8.tflite"
    board = f"{{kind: generic, transport: {{kind: local}}, root: {tmp_path}/board, public_key: KEY.pub}}"
    (tmp_path / "boards.yaml").write_text(f"schema: 1\nboards:\n  pi: {board.replace('KEY', 'one.key')}\n")
    code, out, _ = say("keygen", "-o", "one.key")
    one = out.split()[-1]
    assert (0, f"one.key: private key, keep it\none.key.pub: public key {one}\n") == (code, out)
    say("keygen", "-o", "two.key")
    code, out, err = say("build", model, "--sign", "one.key", "-o", "digits.bundle")
    assert (0, True) == (code, f"signed   by {one}\n" in out), err
    code, _, err = say("push", "-b", "pi", "digits.bundle")
    assert 0 == code, err
    assert (0, f"pi: runs what {one} has signed, as before\n", "") == say("boards", "trust", "pi")

    (tmp_path / "boards.yaml").write_text(f"schema: 1\nboards:\n  pi: {board.replace('KEY', 'two.key')}\n")
    code, _, err = say("releases", "-b", "pi")
    assert 1 == code
    assert err.endswith("hint:  `deploy boards trust pi --replace` pins the one of boards.yaml there\n")
    code, out, err = say("boards", "trust", "pi", "--replace", "--json")
    assert (0, True) == (code, json.loads(out)["new"]), err
    assert 1 == say("push", "-b", "pi", "digits.bundle")[0]
    assert 0 == say("sign", "digits.bundle", "--key", "two.key")[0]
    assert 0 == say("push", "-b", "pi", "digits.bundle")[0]
