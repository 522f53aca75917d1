from __future__ import annotations

import json

import pytest

from devices.protocol.manifest import (
    MAX_BYTES,
    FileEntry,
    Manifest,
    ManifestError,
    TensorInfo,
    digest,
    is_digest,
    is_name,
    parse,
)
from tests.conftest import GOLDEN

KWS = Manifest(
    name="kws-ds_cnn",
    files={"model.tflite": FileEntry("a1" * 32, 53936), "golden.npz": FileEntry("b2" * 32, 2048)},
    inputs=(TensorInfo("input_1", "int8", (-1, 490), 0.584, 83),),
    outputs=(TensorInfo("Identity", "int8", (-1, 12), 0.00390625, -128),),
    preprocess={"scale": 0.0078125, "offset": -1.0},
    shapes={"input_1": (1, 490)},
    labels=("silence", "unknown", "ja", "größer"),
    recipe={"weights": "int8", "prune": {"kind": "tile", "keep": 0.75}},
    seed=7,
    accuracy={"top1": 0.915, "samples": 1000, "runtime": "ai-edge-litert 2.3.0"},
    ops={"CONV_2D": 5, "CUSTOM:TFLite_Detection_PostProcess": 1},
    kernel_abi=3,
    golden={"vectors": 4, "runtime": "ai-edge-litert 2.3.0"},
)


def changed(**values: object) -> bytes:
    """The manifest of `KWS` with top-level keys replaced, or left out where the value is ``...``."""
    raw = {**json.loads(KWS.to_bytes()), **values}
    return json.dumps({key: value for key, value in raw.items() if value is not ...}).encode()


def refusal(data: bytes) -> str:
    with pytest.raises(ManifestError) as caught:
        parse(data)
    return str(caught.value)


def test_a_manifest_survives_being_written_and_read():
    assert KWS == parse(KWS.to_bytes())


def test_reading_and_writing_again_gives_the_same_bytes():
    """The bytes are the bundle's identity: a copy that was read and written must not become another bundle."""
    assert KWS.to_bytes() == parse(KWS.to_bytes()).to_bytes()


def test_the_order_in_which_keys_were_set_does_not_matter():
    other = Manifest(
        **{**vars(KWS), "files": dict(reversed(KWS.files.items())), "ops": dict(reversed(KWS.ops.items()))}
    )

    assert KWS.to_bytes() == other.to_bytes()


def test_the_smallest_manifest_has_defaults_for_the_rest():
    data = json.dumps(
        {
            "format": 1,
            "name": "m",
            "files": {"model.tflite": vars(KWS.files["model.tflite"])},
            "inputs": [],
            "outputs": [],
        }
    )

    assert Manifest("m", {"model.tflite": FileEntry("a1" * 32, 53936)}, (), ()) == parse(data.encode())


def test_the_manifest_of_format_1_is_read_for_ever():
    """Bundles live for years.  This file was written by the first release: it may never be written anew."""
    data = (GOLDEN / "manifest_v1.json").read_bytes()

    assert KWS == parse(data)
    assert "fd5a55f9115e0fc8a3d4f24a57c3fa23cbcfb2d73c0851db3dddaa39bc6d7ac9" == digest(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b" " * (MAX_BYTES + 1), "1048577 bytes; a manifest has at most 1048576"),
        (b"{", "not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        (b"\xff", "not JSON: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
        (b"[]", "not a JSON object"),
        (changed(format=...), "format None; this version reads 1"),
        (changed(format=2), "format 2; this version reads 1"),
        (changed(sha512="x"), "unknown key 'sha512'"),
        (changed(name=...), "no 'name'"),
        (changed(files=...), "no 'files'"),
        (changed(inputs=...), "no 'inputs'"),
        (changed(outputs=...), "no 'outputs'"),
        (changed(name="../kws"), "name '../kws' is not letters, digits and ._+- (at most 64)"),
        (changed(name=5), "name 5 is not letters, digits and ._+- (at most 64)"),
        (changed(files={}, golden=None), "files has no 'model.tflite'"),
        (
            changed(files={"model.tflite": vars(KWS.files["model.tflite"])}),
            "golden is set but files has no 'golden.npz'",
        ),
        (changed(files=[]), "a value of the wrong type: 'list' object has no attribute 'items'"),
        (changed(files={"../../.ssh/authorized_keys": {}}), "unexpected file '../../.ssh/authorized_keys'"),
        (changed(files={"model.tflite": {"bytes": 1}}), "file 'model.tflite' has no sha256"),
        (changed(files={"model.tflite": {"sha256": "A1" * 32, "bytes": 1}}), "file 'model.tflite' has no sha256"),
        (changed(files={"model.tflite": {"sha256": "a1" * 32, "bytes": -1}}), "file 'model.tflite' has no size"),
        (changed(files={"model.tflite": {"sha256": "a1" * 32, "bytes": True}}), "file 'model.tflite' has no size"),
        (changed(files={"model.tflite": 7}), "a value of the wrong type: 'int' object is not iterable"),
        (changed(inputs=5), "a value of the wrong type: 'int' object is not iterable"),
        (changed(inputs=[{"dtype": "int8", "shape": [1]}]), "a value is missing: 'name'"),
        (
            changed(inputs=[{"name": "x", "dtype": "int8", "shape": 5}]),
            "a value of the wrong type: 'int' object is not iterable",
        ),
        (
            changed(inputs=[{"name": "x", "dtype": "int8", "shape": [float("inf")]}]),
            "a value of the wrong type: cannot convert float infinity to integer",
        ),
        (
            changed(outputs=[{"name": "x", "dtype": "int8", "shape": [1], "scale": "big"}]),
            "a value of the wrong type: could not convert string to float: 'big'",
        ),
        (changed(shapes=[1]), "a value of the wrong type: 'list' object has no attribute 'items'"),
        (changed(labels=5), "a value of the wrong type: 'int' object is not iterable"),
    ],
)
def test_what_is_no_manifest_is_refused_with_the_reason(data, reason):
    assert reason == refusal(data)


def test_a_manifest_nested_beyond_reason_is_refused():
    assert refusal(b"[" * 100_000).startswith("not JSON: maximum recursion depth exceeded")


@pytest.mark.parametrize("name", ["m", "resnet8_int8.v1+p75", "9lives", "a" * 64])
def test_these_can_name_a_bundle(name):
    assert is_name(name)


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "-rf", "a/b", "a b", "a\n", "größe", "a" * 65, None])
def test_these_cannot_name_a_bundle(name):
    assert not is_name(name)


@pytest.mark.parametrize(
    "text", ["", "a" * 63, "a" * 65, "A" * 64, "g" * 64, "a" * 64 + "\n", "../" + "a" * 61, 64, None]
)
def test_these_are_no_digests(text):
    assert not is_digest(text)


def test_a_digest_is_one():
    assert is_digest(digest(b""))
