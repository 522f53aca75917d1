from __future__ import annotations

import io
import os
import venv
import zipfile
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devices.protocol import manifest, tensors
from devices.protocol.framing import Kind, Message
from devices.protocol.manifest import FileEntry, Manifest, TensorInfo, digest
from devices.protocol.tensors import TensorSpec
from devices.runner import _compare, is_steady
from tests.devices.wire import Agent, fault
from tests.models import elementwise

ADD = elementwise()


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    with Agent(tmp_path_factory.mktemp("board")) as agent:
        yield agent


def load(agent: Agent, model: bytes, **options: Any) -> Message:
    agent.put(model, digest(model))
    return agent.request("model.load", sha256=digest(model), **options)


def wire(*arrays: Any) -> list[tuple[TensorSpec, bytes]]:
    return [
        (TensorSpec(f"input {i}", given.dtype.name, given.shape), given.tobytes())
        for i, given in enumerate(map(np.asarray, arrays))
    ]


def infer(agent: Agent, *samples: tuple[Any, ...]) -> Message:
    described, parts = [], b""
    for sample in samples:
        specs, values = tensors.pack(wire(*sample))
        described.append(specs)
        parts += values
    return agent.request("model.infer", parts, batch=described)


def floats(*values: float) -> Any:
    return np.array([values], np.float32)


# Loading


def test_a_model_says_what_it_takes_and_gives(agent):
    header = load(agent, elementwise((1, 3), "MUL", open_batch=True)).header

    assert [("a", "float32", [1, 3], [-1, 3]), ("b", "float32", [1, 3], [-1, 3])] == [
        (t["name"], t["dtype"], t["shape"], t["shape_signature"]) for t in header["inputs"]
    ]
    assert [("y", "float32", 0.0, 0)] == [
        (t["name"], t["dtype"], t["scale"], t["zero_point"]) for t in header["outputs"]
    ]
    assert [] == header["signatures"]
    assert header["load_ns"] > 0


def test_a_file_that_is_no_model_is_refused_with_the_runtimes_reason(agent):
    assert ("model-refused", "The model is not a valid Flatbuffer buffer") == fault(load(agent, b"this is no model"))


def test_a_model_with_an_operator_that_nobody_knows_is_refused_by_name(agent):
    """LiteRT says it in several lines without a space between; here they are one."""
    code, text = fault(load(agent, elementwise(custom="MyOp")))

    assert "model-refused" == code
    assert text.startswith("Encountered unresolved custom op: MyOp. See instructions: https://")
    assert text.endswith(" Node number 0 (MyOp) failed to prepare.")
    assert "\n" not in text


def test_after_a_refusal_there_is_no_model(agent):
    load(agent, elementwise(custom="MyOp"))

    assert ("bad-request", "no model is loaded") == fault(infer(agent, (floats(1), floats(1))))


def test_shapes_can_be_set_when_loading(agent):
    header = load(agent, ADD, shapes={"a": [3, 4], "b": [3, 4]}).header

    assert [[3, 4], [3, 4], [3, 4]] == [t["shape"] for t in header["inputs"] + header["outputs"]]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"shapes": {"z": [1]}}, "the model has no input 'z'; it has 'a', 'b'"),
        ({"signature": "serve"}, "the model has no signature 'serve'; it has none"),
    ],
    ids=["shapes", "signature"],
)
def test_what_the_model_has_not_is_refused_with_what_it_has(agent, options, text):
    assert ("bad-input", text) == fault(load(agent, ADD, **options))


def test_a_memory_limit_stops_a_model_that_needs_more(agent):
    """Two inputs and an output of 512 MiB: a board would begin to swap, or kill something else."""
    code, text = fault(load(agent, elementwise((1, 1 << 27)), memory_bytes=300 << 20))

    assert code in ("model-refused", "runner-killed")  # the runtime returns, or aborts: releases differ
    assert text.endswith("(memory limit 300 MiB)")
    assert Kind.REPLY is load(agent, ADD, memory_bytes=300 << 20).kind


def test_a_limit_that_leaves_no_room_for_the_runtime_is_said_in_one_line(agent):
    """numpy explains a failed import on a page; its last line has the reason."""
    code, text = fault(load(agent, ADD, memory_bytes=12 << 20))

    # Which import it is that finds no room, and whether Python or numpy says so, is a matter of some hundred KB.
    assert "no-runtime" != code or text.startswith("no LiteRT runtime: ")
    assert code in ("no-runtime", "model-refused")
    assert "model-refused" != code or text == "out of memory"
    assert "\n" not in text
    assert Kind.REPLY is load(agent, ADD).kind


def bare_python(folder: Path) -> str:
    """A Python as boards have it: no numpy, no LiteRT, no pip."""
    venv.create(folder, with_pip=False, symlinks=True)
    return str(folder / "bin" / "python")


def test_a_board_without_a_runtime_says_what_is_missing_and_uses_the_one_it_gets(tmp_path):
    """The one it gets here only says that it was found; tests/end_to_end brings a real one."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as packed:
        packed.writestr("numpy/__init__.py", "raise ImportError('this is the numpy that was brought')")
    archive = out.getvalue()
    missing = ("no-runtime", "no LiteRT runtime: No module named 'numpy'")

    with Agent(tmp_path / "board", command=("env", "-u", "PYTHONPATH", bare_python(tmp_path / "python"))) as agent:
        assert missing == agent.error("runtime.probe")
        assert missing == fault(load(agent, ADD))
        agent.put(archive, digest(archive))
        assert Kind.REPLY is agent.request("runtime.install", sha256=digest(archive)).kind
        brought = agent.error("runtime.probe")

    assert ("no-runtime", "no LiteRT runtime: this is the numpy that was brought") == brought


# Feeding


def test_every_sample_of_a_batch_gets_its_own_answer_in_order(agent):
    load(agent, ADD)

    reply = infer(agent, (floats(1, 2, 3, 4), floats(1, 1, 1, 1)), (floats(0, 0, 0, 0), floats(5, 6, 7, 8)))

    assert np.array([[2, 3, 4, 5], [5, 6, 7, 8]], "<f4").tobytes() == reply.payload
    described = {"name": "y", "dtype": "float32", "shape": [1, 4], "bytes": 16}
    assert [[described], [described]] == reply.header["batch"]


def test_an_empty_batch_has_an_empty_answer(agent):
    load(agent, ADD)

    assert ([], b"") == ((reply := infer(agent)).header["batch"], reply.payload)


@pytest.mark.parametrize(
    ("sample", "text"),
    [
        ((floats(1, 2, 3, 4), floats(1, 2, 3)), "input 'b' is float32 [1, 4]; got float32 [1, 3]"),
        ((floats(1, 2, 3, 4)[0], floats(1, 2, 3, 4)), "input 'a' is float32 [1, 4]; got float32 [4]"),
        ((np.zeros((1, 4), "i1"), floats(1, 2, 3, 4)), "input 'a' is float32 [1, 4]; got int8 [1, 4]"),
        ((np.zeros((2, 4), "f4"), floats(1, 2, 3, 4)), "input 'a' is float32 [1, 4]; got float32 [2, 4]"),
        ((floats(1, 2, 3, 4),), "1 inputs given; the model has 2: 'a', 'b'"),
        ((), "0 inputs given; the model has 2: 'a', 'b'"),
    ],
    ids=["extent", "rank", "dtype", "batch", "too few", "none"],
)
def test_an_input_that_does_not_fit_is_refused_with_both_shapes(agent, sample, text):
    load(agent, ADD)

    assert ("bad-input", text) == fault(infer(agent, sample))
    assert Kind.REPLY is infer(agent, (floats(1, 2, 3, 4), floats(1, 2, 3, 4))).kind  # the model is still there


def test_an_extent_that_the_model_leaves_open_takes_any(agent):
    load(agent, elementwise((1, 2), open_batch=True))
    three = np.arange(6, dtype=np.float32).reshape(3, 2)

    assert (three + three).tobytes() == infer(agent, (three, three)).payload
    assert [[2, 4]] == [np.frombuffer(infer(agent, (floats(1, 2), floats(1, 2))).payload, "<f4").tolist()]


@pytest.mark.parametrize(
    ("batch", "payload", "error"),
    [
        ([[{"name": "a"}]], b"", ("bad-request", "infer: KeyError: 'bytes'")),
        ([[{"name": "a", "dtype": [], "shape": [], "bytes": 0}]], b"",
         ("bad-input", "tensor 'a' has the unknown dtype []")),
        ([[{"name": "a", "dtype": "int8", "shape": [2], "bytes": 2}]], b"x",
         ("bad-input", "tensor 'a' ends at byte 2 of a payload of 1")),
        (7, b"", ("bad-request", "infer: TypeError: 'int' object is not iterable")),
    ],
    ids=["no length", "dtype", "payload", "no list"],
)  # fmt: skip
def test_a_batch_that_makes_no_sense_does_not_cost_the_model(agent, batch, payload, error):
    load(agent, ADD)

    assert error == agent.error("model.infer", payload, batch=batch)
    assert Kind.REPLY is infer(agent, (floats(1, 2, 3, 4), floats(1, 2, 3, 4))).kind


# Measuring


def measure(agent: Agent, **changed: Any) -> tuple[dict[str, Any], list[Message]]:
    """The reply's header, and the events before it."""
    described, payload = tensors.pack(wire(floats(1, 2, 3, 4), floats(1, 2, 3, 4)))
    plan = {"warmup_max_s": 0.0, "duration_s": 0.0, "min_invocations": 1, "max_invocations": 1 << 30, **changed}
    request = agent.ask("model.measure", payload, tensors=described, **plan)
    events = []
    while (message := agent.receive(Kind.EVENT, Kind.REPLY, Kind.ERROR, request=request)).kind is Kind.EVENT:
        events.append(message)
    assert Kind.REPLY is message.kind, message.header
    return message.header, events


def latencies(events: list[Message], phase: str) -> list[int]:
    return [ns for e in events if e.header["phase"] == phase for ns in np.frombuffer(e.payload, "<i8").tolist()]


def test_every_latency_comes_back_and_lies_within_the_window(agent):
    load(agent, ADD)

    header, events = measure(agent, duration_s=0.2)

    timed = latencies(events, "measure")
    begun, finished = header["window_ns"]
    assert header["invocations"] == len(timed) > 0
    assert 0 < sum(timed) <= finished - begun
    assert all(begun <= event.header["started_ns"] <= finished for event in events)
    assert min(header["first_ns"], header["load_ns"], header["peak_rss_bytes"], *timed) > 0
    assert [] == latencies(events, "warm-up")
    assert header["steady"] is False  # there was no time to see whether it is


def test_a_measurement_takes_at_least_so_many_invocations_however_long_they_take(agent):
    load(agent, ADD)

    header, events = measure(agent, duration_s=0.0, min_invocations=3)

    assert header["invocations"] == len(latencies(events, "measure")) >= 3


def test_a_measurement_takes_at_most_so_many_invocations(agent):
    load(agent, ADD)

    header, events = measure(agent, duration_s=600.0, min_invocations=1, max_invocations=17)

    assert 17 == header["invocations"] == len(latencies(events, "measure"))


def test_warm_up_invocations_are_kept_apart_and_come_first(agent):
    load(agent, ADD)

    _, events = measure(agent, warmup_max_s=0.1, max_invocations=5)

    phases = [event.header["phase"] for event in events]
    assert sorted(phases, reverse=True) == phases
    assert {"warm-up", "measure"} == set(phases)
    assert 5 == len(latencies(events, "measure"))


def test_a_plan_that_makes_no_sense_is_refused(agent):
    load(agent, ADD)
    described, payload = tensors.pack(wire(floats(1, 2, 3, 4), floats(1, 2, 3, 4)))

    assert ("bad-request", "measure: KeyError: 'warmup_max_s'") == agent.error(
        "model.measure", payload, tensors=described
    )
    assert ("bad-input", "1 inputs given; the model has 2: 'a', 'b'") == agent.error(
        "model.measure", payload[:16], tensors=described[:1]
    )


# Steady or not


def chunks(medians: list[float], size: int = 100, spread: float = 0.01) -> list[array[int]]:
    """One chunk of latencies for each median (us), spread evenly around it."""
    steps = [1 + spread * (2 * i / (size - 1) - 1) for i in range(size)]
    return [array("q", [int(median * 1000 * step) for step in steps]) for median in medians]


@pytest.mark.parametrize(
    ("medians", "steady"),
    [
        ([100] * 10, True),
        ([100, 101, 99, 100, 102, 100, 99, 101, 100, 100], True),
        ([200, *[100] * 9], False),  # caches were still cold in the first chunk
        ([150, 140, 130, 120, 110, 105, 103, 101, 100, 100], False),  # getting faster
        ([100] * 5 + [120] * 5, False),  # throttled half-way
        ([100] * 5 + [104] * 5, True),  # four percent are within the noise of a board
        ([100] * 5 + [94] * 5, False),  # six are not
    ],
    ids=["flat", "noisy", "cold start", "drifting", "throttled", "4 % slower", "6 % faster"],
)
def test_a_flat_series_is_steady_and_a_drifting_one_is_not(medians, steady):
    assert steady is is_steady(chunks(medians))


def test_one_hiccup_of_the_machine_does_not_make_a_series_unsteady():
    """An outlier of a second among latencies of 100 us moves every mean; medians and quartiles stay."""
    window = chunks([100] * 10)
    window[7][50] = 1_000_000_000

    assert is_steady(window)


def test_chunks_of_one_slow_invocation_each_can_be_steady():
    assert is_steady([array("q", [700_000_000 + n * 1_000_000]) for n in (0, 3, 1, 2, 0, 2, 1, 3, 0, 1)])


# Comparing

NAN, INF = float("nan"), float("inf")
EXACT = {"elements": 2, "differing": 0}


def off(differing: int, largest: float, magnitude: float, elements: int = 2) -> dict[str, Any]:
    relative = largest / magnitude if magnitude else INF
    return {
        "elements": elements, "differing": differing, "largest": largest, "relative": relative, "nan_mismatch": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("expected", "actual", "report"),
    [
        ([1.0, 2.0], [1.0, 2.0], EXACT),
        ([NAN, 2.0], [NAN, 2.0], EXACT),
        ([INF, -INF], [INF, -INF], EXACT),
        ([1.0, 2.0], [1.0, 2.5], off(1, 0.5, 2.0)),
        ([0.0, 2.0], [-0.0, 2.0], off(1, 0.0, 2.0)),
        ([NAN, 2.0], [NAN, 2.5], off(1, 0.5, 2.0)),
        ([INF, 2.0], [INF, 2.5], off(1, 0.5, 2.0)),
        ([INF, 2.0], [-INF, 2.0], off(1, INF, 2.0)),
        ([NAN, 2.0], [1.0, 2.0], {**off(1, 0.0, 2.0), "nan_mismatch": True}),
        ([1.0, 2.0], [1.0, NAN], {**off(1, 0.0, 2.0), "nan_mismatch": True}),
        ([NAN, NAN], [1.0, 1.0], {"elements": 2, "differing": 2, "largest": None, "nan_mismatch": True}),
    ],
    ids=[
        "equal", "NaN equals NaN", "infinity equals infinity", "a value", "-0.0 differs from 0.0",
        "a value beside NaN", "a value beside infinity: the magnitude is that of the finite ones",
        "the other infinity", "NaN expected", "NaN came", "only NaN expected",
    ],
)  # fmt: skip
def test_floats_are_compared_by_their_bits(expected, actual, report):
    assert report == _compare(np.array(expected, np.float32), np.array(actual, np.float32))


@pytest.mark.parametrize(
    ("expected", "actual", "report"),
    [
        (
            np.array([-128, 127], "i1"),
            np.array([127, -128], "i1"),
            {**off(2, 255.0, 128.0), "off_by_one": 0},
        ),  # no wrap-around
        (np.array([0, 255], "u1"), np.array([1, 255], "u1"), {**off(1, 1.0, 255.0), "off_by_one": 1}),
        (np.array([True, False]), np.array([True, True]), {**off(1, 1.0, 1.0), "off_by_one": 1}),
        (np.array([1 + 1j, 2], "c8"), np.array([1 + 1j, 2 + 1j], "c8"), off(1, 1.0, 2.0)),
        (np.array(3, "i4"), np.array(5, "i4"), {**off(1, 2.0, 3.0, elements=1), "off_by_one": 0}),
        (np.zeros((0, 3), "f4"), np.zeros((0, 3), "f4"), {"elements": 0, "differing": 0}),
        (np.array([b"ja", b"nein"]), np.array([b"ja", b"no"], object), {"elements": 2, "differing": 1}),
        (np.array([b"ja", b"nein"]), np.array([b"ja", b"nein"], object), EXACT),
    ],
    ids=["int8", "uint8", "bool", "complex64", "scalar", "empty", "strings", "equal strings"],
)
def test_every_dtype_can_be_compared(expected, actual, report):
    assert report == _compare(expected, actual)


def test_values_that_lie_apart_in_memory_are_compared_too():
    fortran = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))

    assert {"elements": 6, "differing": 0} == _compare(fortran, np.ascontiguousarray(fortran))


def test_another_shape_is_another_answer_even_with_the_same_values():
    report = {"elements": 4, "differing": 4, "shape": [[2, 2], [4]]}

    assert report == _compare(np.zeros((2, 2), "f4"), np.zeros(4, "f4"))


# Verifying


def staged(agent: Agent, name: str, golden: dict[str, Any], vectors: int) -> str:
    """Bring a bundle of `ADD` with these golden vectors; returns its digest."""
    out = io.BytesIO()
    np.savez(out, **golden)
    files = {manifest.MODEL: ADD, manifest.GOLDEN: out.getvalue()}
    for data in files.values():
        agent.put(data, digest(data))
    info = TensorInfo("a", "float32", (1, 4))
    data = Manifest(
        name,
        {path: FileEntry(digest(content), len(content)) for path, content in files.items()},
        (info, info),
        (info,),
        golden={"vectors": vectors, "runtime": "test"},
    ).to_bytes()
    assert Kind.REPLY is agent.request("release.stage", data).kind
    return digest(data)


def test_golden_vectors_are_compared_on_the_board(agent):
    """Only the differences travel.  The second vector expects something that the model does not say."""
    one, two = floats(1, 2, 3, 4), floats(10, 20, 30, 40)
    golden = {
        "v0.in0": one, "v0.in1": two, "v0.out0": one + two,
        "v1.in0": two, "v1.in1": two, "v1.out0": floats(20, 40, 60, 79),
    }  # fmt: skip
    bundle = staged(agent, "add", golden, 2)
    assert Kind.REPLY is agent.request("model.load", bundle=bundle).kind

    reply = agent.request("model.verify", bundle=bundle)

    # One entry for the output: all its values counted, and the first vector that differs.
    expected = {"output": "y", "dtype": "float32", "vector": 1, **off(1, 1.0, 79.0, elements=8)}
    assert [expected] == reply.header["compared"]
    assert b"" == reply.payload


def test_golden_vectors_that_are_not_in_the_file_are_refused(agent):
    bundle = staged(agent, "hollow", {"v0.in0": floats(1, 2, 3, 4)}, 1)
    agent.request("model.load", bundle=bundle)

    assert ("bad-request", "verify: KeyError: 'v0.in1 is not a file in the archive'") == agent.error(
        "model.verify", bundle=bundle
    )


def test_a_golden_file_cannot_run_code(agent, tmp_path):
    """numpy would unpickle an object array, and a pickle is a program."""
    proof = tmp_path / "ran"

    class Bomb:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(proof),)

    bundle = staged(agent, "bomb", {"v0.in0": np.array([Bomb()], object)}, 1)
    agent.request("model.load", bundle=bundle)

    code, text = agent.error("model.verify", bundle=bundle)

    assert ("bad-request", True) == (code, text.startswith("verify: ValueError: Object arrays cannot be loaded"))
    assert not proof.exists()


def test_a_bundle_without_golden_vectors_cannot_be_verified(agent):
    data = Manifest("bare", {manifest.MODEL: FileEntry(digest(ADD), len(ADD))}, (), ()).to_bytes()
    agent.put(ADD, digest(ADD))
    agent.request("release.stage", data)

    assert ("not-found", "the bundle is not here, or has no golden vectors") == agent.error(
        "model.verify", bundle=digest(data)
    )


def test_a_bundles_own_shapes_are_used_unless_others_are_asked_for(agent):
    info = TensorInfo("a", "float32", (-1, 4))
    data = Manifest(
        "shaped",
        {manifest.MODEL: FileEntry(digest(ADD), len(ADD))},
        (info,),
        (info,),
        shapes={"a": (2, 4), "b": (2, 4)},
    ).to_bytes()
    agent.put(ADD, digest(ADD))
    agent.request("release.stage", data)

    def shape(**options: Any) -> list[int]:
        return agent.request("model.load", bundle=digest(data), **options).header["outputs"][0]["shape"]

    assert [2, 4] == shape()
    assert [3, 4] == shape(shapes={"a": [3, 4], "b": [3, 4]})
