"""The delegate in stock LiteRT: equal to the reference kernels bit for bit, claims what it wins, survives anything."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from deploy.build.binary import binary_model
from tests.kernels.interpreters import Job, Result, killed_by_us, run
from tests.kernels.library import Library, prune, prune_nm
from tests.kernels.mutate import mutants
from tests.kernels.single_op import ACTIVATIONS, SingleOp, block_sparsity, random_conv, random_fc
from tests.kernels.test_binary import binary_layer

MODES = ("all", "reference", "auto")
MUTANTS = int(os.environ.get("DEPLOY_KERNELS_MUTANTS", "100"))


def inputs_for(op: SingleOp, rng: np.random.Generator) -> list[NDArray[Any]]:
    unsigned = op.io_type == "UINT8"
    return [rng.integers(0, 256, op.in_shape).astype(np.uint8) if unsigned
            else rng.integers(-128, 128, op.in_shape).astype(np.int8)]  # fmt: skip


def check_against_stock(kernels: Library, ops: list[SingleOp], folder: Path) -> list[list[Result]]:
    """Every mode equals the reference kernels on each of `ops`; the results, [op][mode]."""
    rng = np.random.default_rng(0)
    jobs = []
    for op in ops:
        model, values = op.model(), inputs_for(op, rng)
        jobs += [Job(model, values), *(Job(model, values, {"mode": mode}, threads=2) for mode in MODES)]
    results = run(kernels.path, jobs, folder)
    answers = []
    for index, op in enumerate(ops):
        expected, *actual = results[index * 4 : index * 4 + 4]
        assert not expected.error, (op, expected.error)
        assert 1 < len(np.unique(expected.outputs[0])), "the example says nothing"
        for mode, result in zip(MODES, actual, strict=True):
            assert not result.error, (mode, op, result.error)
            if mode == "auto" and not result.kernel(op.op):
                continue  # XNNPACK's, which rounds its own way
            assert result.kernel(op.op), (mode, op, result.report)
            assert np.array_equal(expected.outputs[0], result.outputs[0]), (mode, op)
        answers.append(actual)
    return answers


def test_single_layers_equal_the_reference_kernels(kernels: Library, tmp_path: Path) -> None:
    """Types, groups, strides, dilations, paddings, batches and activations in one go: one process for all."""
    rng = np.random.default_rng(1)
    ops = []
    for weight_type in ("INT8", "INT4"):
        for index, activation in enumerate(ACTIVATIONS):
            ops.append(
                random_conv(
                    rng, in_shape=(1 + index % 2, 9, 7, 12), out_c=20, kernel=(3, 2), weight_type=weight_type,
                    stride=(1 + index % 2, 1), dilation=(1, 1) if index % 2 else (2, 1),
                    padding=("SAME", "VALID")[index // 2], activation=activation, groups=1 + index % 2,
                )
            )  # fmt: skip
            ops.append(
                random_fc(
                    rng, rows=(1, 6)[index % 2], in_c=40, out_c=37, weight_type=weight_type, activation=activation
                )
            )
        per_tensor = random_fc(rng, rows=3, in_c=64, out_c=8, weight_type=weight_type)
        one = replace(per_tensor.filter, scale=per_tensor.filter.scale[:1])
        ops.append(replace(per_tensor, filter=one))
        ops.append(replace(per_tensor, bias=None))

    check_against_stock(kernels, ops, tmp_path)


def test_uint8_layers_equal_the_reference_kernels(kernels: Library, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    ops = []
    for activation in ("NONE", "RELU6"):
        for op in (
            random_conv(rng, in_shape=(2, 6, 5, 9), out_c=11, activation=activation),
            random_fc(rng, rows=4, in_c=30, out_c=9, activation=activation, op_version=1),
        ):
            ops.append(
                replace(
                    op, io_type="UINT8", weight_type="UINT8", weights=op.weights.astype(np.int64) + 128,
                    filter=replace(op.filter, scale=op.filter.scale[:1], zero_point=128),
                    input=replace(op.input, zero_point=op.input.zero_point + 128),
                    output=replace(op.output, zero_point=op.output.zero_point + 128),
                )
            )  # fmt: skip

    check_against_stock(kernels, ops, tmp_path)


def test_sparse_filters_are_read_whatever_way_they_are_stored(kernels: Library, tmp_path: Path) -> None:
    """Blocks of 16 and 4 along the channels; convolutions with a DENSIFY in front, which becomes superfluous."""
    rng = np.random.default_rng(3)
    ops = []
    for block in (16, 4):
        op = random_conv(rng, in_shape=(1, 6, 6, 32), out_c=24)
        weights = _drop_blocks(op.weights, block, rng)
        sparsity, values = block_sparsity(weights, block)
        ops.append(replace(op, weights=weights, sparsity=sparsity, sparse_values=values, densify=True))

    for results in check_against_stock(kernels, ops, tmp_path):
        assert "none" == results[0].kernel("DENSIFY")
        assert "none" == results[1].kernel("DENSIFY")


def _drop_blocks(weights: NDArray[np.int8], block: int, rng: np.random.Generator) -> NDArray[np.int8]:
    blocks = weights.reshape(-1, block).copy()
    blocks[rng.random(len(blocks)) < 0.7] = 0
    return blocks.reshape(weights.shape)


def test_auto_claims_what_it_wins_and_leaves_the_rest(kernels: Library, tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    shape = {"in_shape": (1, 14, 14, 64), "out_c": 64}
    dense, int4, int2 = (random_conv(rng, weight_type=t, **shape) for t in ("INT8", "INT4", "INT2"))
    pruned = replace(dense, weights=dense.weights.copy())
    prune(pruned.weights, rng, 0.25, outputs=32, channels=4)
    jobs = [Job(op.model(), inputs_for(op, rng), {"mode": "auto"}) for op in (dense, int4, int2, pruned)]
    jobs.append(Job(int4.model(), inputs_for(int4, rng), {"mode": "off"}))

    results = run(kernels.path, jobs, tmp_path)

    assert [None, "w4", "w2", "tile8", None] == [
        name and name.split("_")[1] for name in (result.kernel("CONV_2D") for result in results)
    ]
    nodes = [result.report["nodes"][0] for result in results]
    assert "XNNPACK computes dense int8 as fast" == nodes[0]["reason"]
    assert "the stock runtime unpacks an int4 filter at every call" == nodes[1]["reason"]
    assert nodes[1]["packed_bytes"] < 0.55 * dense.weights.size
    assert nodes[1]["stored_bytes"] == dense.weights.size // 2
    assert nodes[1]["macs"] == 14 * 14 * 64 * 64 * 9
    assert nodes[2]["expected_gain"] is None, "the stock runtime cannot run it"
    # What no stock kernel runs is checked against the same integers stored as int8.
    (as_int8,) = run(kernels.path, [Job(replace(int2, weight_type="INT8").model(), jobs[2].inputs)], tmp_path)
    assert np.array_equal(as_int8.outputs[0], results[2].outputs[0])


def test_n_of_m_is_claimed_where_it_wins(kernels: Library, tmp_path: Path) -> None:
    """One of four anywhere, two of four in a single row only: with many, shuffling takes what is saved."""
    rng = np.random.default_rng(14)
    if not any(variant.supported for variant in kernels.variants("nm8") if not str(variant).endswith("_reference")):
        pytest.skip("needs AVX-512 VNNI, for which alone the N:M family has a variant")
    conv = random_conv(rng, in_shape=(1, 14, 14, 64), out_c=64)
    row = random_fc(rng, rows=1, in_c=1024, out_c=1024)
    ops = [replace(op, weights=op.weights.copy()) for op in (conv, conv, row, row)]
    for op, n in zip(ops, (1, 2, 1, 2), strict=True):
        prune_nm(op.weights, rng, n, 4)
    jobs = [Job(op.model(), inputs_for(op, rng)) for op in ops]

    expected = run(kernels.path, jobs, tmp_path)
    actual = run(kernels.path, [replace(job, options={"mode": "auto"}) for job in jobs], tmp_path)

    assert ["nm8", None, "nm8", "nm8"] == [
        name and name.split("_")[1] for name in (result.kernel(op.op) for op, result in zip(ops, actual, strict=True))
    ]
    for claimed in (0, 2, 3):
        assert np.array_equal(expected[claimed].outputs[0], actual[claimed].outputs[0])


def test_binary_layers_take_their_binarization_along(kernels: Library, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    layers = [
        binary_layer(rng, (64, 3, 3, 64), padding="SAME", low=-3, high=100, output_scale=3.0),
        binary_layer(rng, (64, 3, 3, 64), padding="VALID"),
    ]
    shape = (1, 12, 12, 64)
    model = binary_model(shape, 0.05, -7, layers)
    inputs = [rng.integers(-128, 128, shape).astype(np.int8)]
    jobs = [Job(model, inputs), *(Job(model, inputs, {"mode": mode}) for mode in MODES)]

    expected, *actual = run(kernels.path, jobs, tmp_path)

    for result in actual:
        assert not result.error
        assert np.array_equal(expected.outputs[0], result.outputs[0])
        kernels_of = {(node["op"], (node["kernel"] or "left").split("_")[-1]) for node in result.report["nodes"]}
        isa = {kernel for op, kernel in kernels_of if op == "CONV_2D"}
        assert {"CAST", "GREATER_EQUAL", "SELECT_V2", "CONV_2D"} == {op for op, _ in kernels_of}
        assert all(kernel == "none" for op, kernel in kernels_of if op != "CONV_2D")
        assert 1 == len(isa)


def test_inputs_may_change_their_shape(kernels: Library, tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    op = random_conv(rng, in_shape=(1, 6, 6, 8), out_c=10, weight_type="INT4", stride=(2, 1))
    larger = rng.integers(-128, 128, (3, 9, 8, 8)).astype(np.int8)
    jobs = [Job(op.model(), [larger], options, resize=(3, 9, 8, 8)) for options in (None, {"mode": "all"})]

    expected, actual = run(kernels.path, jobs, tmp_path)

    assert (3, 5, 8, 10) == actual.outputs[0].shape
    assert np.array_equal(expected.outputs[0], actual.outputs[0])


def test_a_forced_path_computes_the_same(kernels: Library, tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    op = random_conv(rng, in_shape=(1, 10, 10, 32), out_c=40, weight_type="INT4")
    values = inputs_for(op, rng)
    forces = [str(v).rpartition("_")[2] for v in kernels.variants("w4") if v.supported]
    jobs = [Job(op.model(), values), *(Job(op.model(), values, {"mode": "auto"}, force=force) for force in forces)]

    expected, *actual = run(kernels.path, jobs, tmp_path)

    for force, result in zip(forces, actual, strict=True):
        assert str(result.kernel("CONV_2D")).endswith(force)
        assert np.array_equal(expected.outputs[0], result.outputs[0])


def test_an_unknown_option_is_refused_with_a_sentence(kernels: Library, tmp_path: Path) -> None:
    op = random_fc(np.random.default_rng(8), rows=1, in_c=8, out_c=4)
    options = [{"mode": "fast"}, {"colour": "red"}, {"profile": "yes"}]

    results = run(
        kernels.path, [Job(op.model(), inputs_for(op, np.random.default_rng(0)), o) for o in options], tmp_path
    )

    assert "mode is off, auto, all or reference" in results[0].error
    assert "the options are mode, profile and report" in results[1].error
    assert "profile is 0 or 1" in results[2].error


def test_time_is_kept_per_node_when_asked(kernels: Library, tmp_path: Path) -> None:
    op = random_conv(np.random.default_rng(9), in_shape=(1, 8, 8, 16), out_c=16, weight_type="INT4")
    values = inputs_for(op, np.random.default_rng(0))

    asked, silent = run(
        kernels.path,
        [Job(op.model(), values, {"mode": "all", "profile": switch}) for switch in ("1", "0")],
        tmp_path,
    )

    assert 2 == asked.report["nodes"][0]["invocations"]
    assert 0 < asked.report["nodes"][0]["time_ns"]
    assert 0 == silent.report["nodes"][0]["time_ns"]


MODELS = ("tiny_ic_resnet8_int8.tflite", "tiny_kws_dscnn_int8.tflite", "tiny_ad_autoencoder_int8.tflite")


def test_whole_models_equal_the_reference_kernels(kernels: Library, corpus: Path, tmp_path: Path) -> None:
    """Every layer by ours, the model's other operators by the reference kernels as well: nothing rounds otherwise."""
    rng = np.random.default_rng(10)
    jobs = []
    for name in MODELS:
        for model in (
            (corpus / "models" / name).read_bytes(),
            with_int4_filters((corpus / "models" / name).read_bytes()),
        ):
            tensor = _first_input(model)
            values = [rng.integers(-128, 128, list(tensor.shape)).astype(np.int8)]
            jobs += [Job(model, values), *(Job(model, values, {"mode": mode}, rest="reference") for mode in MODES)]

    results = run(kernels.path, jobs, tmp_path)

    for index in range(0, len(jobs), 4):
        expected, *actual = results[index : index + 4]
        assert not expected.error
        for mode, result in zip(MODES, actual, strict=True):
            assert not result.error
            assert any(node["claimed"] for node in result.report["nodes"]) or mode == "auto"
            for output, ours in zip(expected.outputs, result.outputs, strict=True):
                assert np.array_equal(output, ours), mode


def with_int4_filters(model: bytes) -> bytes:
    """The same model, its convolutions' int8 filters divided by 16 and stored as INT4."""
    tree = schema.ModelT.InitFromObj(schema.Model.GetRootAs(model, 0))
    graph = tree.subgraphs[0]
    for operator in graph.operators:
        if tree.operatorCodes[operator.opcodeIndex].builtinCode != schema.BuiltinOperator.CONV_2D:
            continue
        tensor = graph.tensors[operator.inputs[1]]
        values = np.frombuffer(bytes(tree.buffers[tensor.buffer].data), np.int8).astype(int)
        nibbles = np.clip(np.round(values / 16), -8, 7).astype(int) & 15
        nibbles = np.pad(nibbles, (0, len(nibbles) % 2))
        tree.buffers[tensor.buffer].data = (nibbles[0::2] | nibbles[1::2] << 4).astype(np.uint8)
        tensor.type = schema.TensorType.INT4
        tensor.quantization.scale = [float(np.float32(s * 16)) for s in tensor.quantization.scale]
        bias = graph.tensors[operator.inputs[2]]
        old = np.frombuffer(bytes(tree.buffers[bias.buffer].data), np.int32)
        tree.buffers[bias.buffer].data = np.frombuffer(np.round(old / 16).astype(np.int32).tobytes(), np.uint8)
        bias.quantization.scale = [float(np.float32(s * 16)) for s in bias.quantization.scale]
    builder = flatbuffers.Builder(1024)
    builder.Finish(tree.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _first_input(model: bytes) -> schema.TensorT:
    graph = schema.ModelT.InitFromObj(schema.Model.GetRootAs(model, 0)).subgraphs[0]
    return graph.tensors[graph.inputs[0]]


def test_malformed_models_are_declined_and_never_kill_the_process(kernels: Library, tmp_path: Path) -> None:
    """
    Single layers with one thing wrong each, chosen at random: shapes, scales, zero points, types, strides, buffers cut
    short, indices that point nowhere.  TFLite's own kernels never see a claimed node, so nobody checked it before us.
    DEPLOY_KERNELS_MUTANTS sets how many.
    """
    jobs = [Job(model, values, {"mode": "all"}) for model, values in mutants(np.random.default_rng(11), MUTANTS)]

    results, ours = killed_by_us(kernels.path, jobs, tmp_path)

    assert [] == ours
    claimed = sum(any(node["claimed"] for node in result.report.get("nodes", [])) for result in results)
    assert 0 < claimed < MUTANTS, "the mutants are all harmless, or all refused before us"
