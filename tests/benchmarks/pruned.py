"""
Binary and pruned layers against dense int8 layers of stock LiteRT (XNNPACK), one thread, taking turns on one core.

Ours is timed through the C ABI, the peer through ``Interpreter.invoke()``, which adds about half a microsecond to a
layer; both times hold everything but packing.  Times are of the thread, since other processes share the machine.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from deploy import bundle
from tests.benchmarks.figure import Figure
from tests.benchmarks.kernels import invoker, ratio
from tests.conftest import ROOT
from tests.kernels.library import Layer, Library, conv_layer, prune_nm, reference
from tests.kernels.single_op import random_conv, random_fc

PAIRS = 60
CONVS = ((14, 256), (16, 64), (28, 128))  # height and width, channels in and out
GOALS = {"binary": {0.0: 3.3}, "tile8": {0.75: 3.0, 0.9: 6.0}, "tile4": {0.75: 3.0, 0.9: 6.0}, "block8": {}}
FC_GOALS = {0.75: 2.5, 0.9: 5.0}


def figures(folder: Path) -> Iterator[Figure]:
    done = subprocess.run(
        [sys.executable, str(ROOT / "kernels" / "build.py"), "--out", str(folder / "libdeploy_kernels.so")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        yield Figure("binary and pruned layers", "", f"not measured: {done.stderr.strip().splitlines()[-1]}", None)
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        library = Library(folder / "libdeploy_kernels.so")
        yield from _convs(library)
        yield from _fully_connected(library)
        yield from _n_of_m(library)
        yield from _binary_peak(library, folder)
        yield from _larq(library)
        yield from _cnv(library, folder)
    finally:
        os.sched_setaffinity(0, before)


def _convs(library: Library) -> Iterator[Figure]:
    rng = np.random.default_rng(0)
    for size, channels in CONVS:
        peer = invoker(random_conv(rng, in_shape=(1, size, size, channels), out_c=channels).model(), None)
        for family, goals in GOALS.items():
            for zeros in goals or (0.75, 0.9):
                layer = conv_layer(
                    family, rng, in_shape=(1, size, size, channels), out_c=channels, keep=1 - zeros
                )  # fmt: skip
                what = f"{family} conv {size}x{size}x{channels} k3" + (f", {zeros:.0%} zeros" if zeros else "")
                yield _against(library, layer, peer, what, goals.get(zeros))


def _fully_connected(library: Library) -> Iterator[Figure]:
    rng = np.random.default_rng(1)
    for rows in (1, 64):
        peer = invoker(random_fc(rng, rows=rows, in_c=1024, out_c=1024).model(), None)
        for family in ("tile8", "block8"):
            for zeros, goal in FC_GOALS.items():
                layer = conv_layer(
                    family, rng, in_shape=(rows, 1, 1, 1024), out_c=1024, kernel=(1, 1), keep=1 - zeros
                ).with_(single_rounding=True)
                what = f"{family} fully connected {rows}x1024x1024, {zeros:.0%} zeros"
                yield _against(library, layer, peer, what, goal if family == "tile8" else None)


def _n_of_m(library: Library) -> Iterator[Figure]:
    """2:4 is left to the stock runtime but for a single row; the rows say why."""
    rng = np.random.default_rng(4)
    layers = [
        ("conv 14x14x256 k3", "CONV_2D", random_conv(rng, in_shape=(1, 14, 14, 256), out_c=256)),
        ("conv 14x14x256 k1", "CONV_2D", random_conv(rng, in_shape=(1, 14, 14, 256), out_c=256, kernel=(1, 1))),
        ("fully connected 64x1024x1024", "FULLY_CONNECTED", random_fc(rng, rows=64, in_c=1024, out_c=1024)),
        ("fully connected 1x1024x1024", "FULLY_CONNECTED", random_fc(rng, rows=1, in_c=1024, out_c=1024)),
    ]
    for what, op, dense in layers:
        peer = invoker(dense.model(), None)
        in_shape = dense.in_shape if op == "CONV_2D" else (dense.in_shape[0], 1, 1, dense.in_shape[1])
        kernel = dense.weights.shape[1:3] if op == "CONV_2D" else (1, 1)
        for n in (1, 2):
            layer = conv_layer("nm8", rng, in_shape=in_shape, out_c=dense.weights.shape[0], kernel=kernel)
            weights = rng.integers(-127, 128, layer.weights.shape).astype(np.int8)
            prune_nm(weights, rng, n, 4)
            layer = layer.with_(weights=weights, single_rounding=op == "FULLY_CONNECTED")
            yield _against(library, layer, peer, f"{n}:4 {what}", None)


def _against(library: Library, layer: Layer, peer: Callable[[], None], what: str, goal: float | None) -> Figure:
    """Ratio of the peer's time to ours, pair by pair."""
    with _running(library, layer) as run:
        # As many invocations to a sample as make reading the clock not matter.
        often, often_peer = (max(1, int(200_000 / _once(call))) for call in (run.call, peer))
        ours, theirs = [], []
        for _ in range(PAIRS):
            ours.append(_mean_ns(run.call, often))
            theirs.append(_mean_ns(peer, often_peer))
    ratios = np.array(theirs) / np.array(ours)
    median = float(np.median(ratios))
    low, high = np.percentile(ratios, [10, 90])
    share = run.packed_bytes / layer.weights.size
    result = (
        f"{median:.2f}x ({low:.2f} to {high:.2f}), {np.median(ours) / 1e3:.1f} us against "
        f"{np.median(theirs) / 1e3:.1f}; {share:.2f} bytes per weight"
    )
    return Figure(f"{what} / XNNPACK int8", f">= {goal:g}x" if goal else "", result, median >= goal if goal else None)


def _binary_peak(library: Library, folder: Path) -> Iterator[Figure]:
    """Per shape: how much of a convolution is counting bits as fast as registers allow."""
    flags = ["-O2", "-shared", "-fPIC", "-nostdlib++", "-mavx512f", "-mavx512vpopcntdq", "-o", str(folder / "peak.so")]
    words = [sys.executable, "-m", "ziglang", "c++", *flags, str(Path(__file__).with_name("bit_peak.cc"))]
    flags_here = Path("/proc/cpuinfo").read_text()
    if "avx512_vpopcntdq" not in flags_here or subprocess.run(words, capture_output=True, check=False).returncode:
        sentence = "not measured: no AVX-512 VPOPCNTDQ here, or no compiler"
        yield Figure("binary conv, share of the xor + popcount peak", ">= 60 %", sentence, None)
        return
    count = ctypes.CDLL(str(folder / "peak.so")).count_bits
    count.argtypes, count.restype = [ctypes.c_int64, ctypes.c_int64], ctypes.c_int64
    for size, channels in CONVS:
        layer = conv_layer("binary", np.random.default_rng(2), in_shape=(1, size, size, channels), out_c=channels)
        bits = size * size * layer.weights.size
        with _running(library, layer) as run:
            shares, peaks = [], []
            for _ in range(PAIRS):
                ours = bits / _mean_ns(run.call, 3)
                peak = 2000 * 24 * 512 / _mean_ns(lambda: count(2000, 12345), 3)
                shares.append(ours / peak)
                peaks.append(2 * peak / 1e3)
        share = float(np.median(shares))
        low, high = np.percentile(shares, [10, 90])
        result = f"{share:.0%} ({low:.0%} to {high:.0%}) of {np.median(peaks):.2f} TOPS"
        what = f"binary conv {size}x{size}x{channels} k3, share of the xor + popcount peak"
        yield Figure(what, ">= 60 %", result, share >= 0.6)


def _larq(library: Library) -> Iterator[Figure]:
    """Larq Compute Engine pins an old TensorFlow, so it lives in a virtual environment of its own."""
    python = os.environ.get("DEPLOY_LARQ_PYTHON", "")
    if not python:
        sentence = "not measured: DEPLOY_LARQ_PYTHON names no Python with larq-compute-engine 0.16.0 and larq"
        yield Figure("binary conv / larq-compute-engine", ">= 50x", sentence, None)
        return
    script = Path(__file__).with_name("larq_peer.py")
    for size, channels in CONVS:
        layer = conv_layer("binary", np.random.default_rng(3), in_shape=(1, size, size, channels), out_c=channels)
        words = [python, str(script), str(size), str(channels)]
        with (
            _running(library, layer) as run,
            subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as peer,
        ):
            assert peer.stdin and peer.stdout
            assert "ready" == peer.stdout.readline().strip()
            ratios = []
            for _ in range(9):
                peer.stdin.write("go\n")
                peer.stdin.flush()
                theirs = float(json.loads(peer.stdout.readline()))
                ratios.append(theirs / _mean_ns(run.call, 50))
            peer.stdin.close()
        median = float(np.median(ratios))
        what = f"binary conv {size}x{size}x{channels} k3 / larq-compute-engine"
        yield Figure(what, ">= 50x", f"{median:.0f}x ({min(ratios):.0f} to {max(ratios):.0f})", median >= 50)


def _cnv(library: Library, folder: Path) -> Iterator[Figure]:
    """A whole binary network, as `deploy build` makes it.  How long it takes does not depend on what it has learnt."""
    what = "CNV, five binary convolutions and two fully-connected layers: ours / stock"
    rng = np.random.default_rng(7)
    images = {f"x_{part}": rng.integers(0, 256, (64, 32, 32, 3)).astype(np.uint8) for part in ("train", "test")}
    labels = {f"y_{part}": np.arange(64) % 10 for part in ("train", "test")}
    np.savez(folder / "images.npz", **images, **labels)
    recipe = ["zoo:cnv", "--data", "images.npz", "--preprocess", "unit", "--recipe", "binary", "--epochs", "1"]
    built = subprocess.run(
        [sys.executable, "-m", "deploy", "build", *recipe, "-o", "cnv.bundle"],
        capture_output=True, text=True, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    if built.returncode:
        yield Figure(what, "", f"not measured: {built.stderr.strip().splitlines()[-1]}", None)
        return
    files = bundle.read(folder / "cnv.bundle").files
    model = next(content for name, content in files.items() if name.endswith(".tflite"))
    yield ratio(what, None, invoker(model, None), invoker(model, str(library.path)))


class _running:
    """A packed layer that can be called; its answer is checked against the definition first."""

    def __init__(self, library: Library, layer: Layer) -> None:
        self.library, self.layer = library, layer
        self.inputs = np.random.default_rng(5).integers(-128, 128, layer.in_shape).astype(np.int8)
        self.output = np.zeros(layer.out_shape, np.int8)

    def __enter__(self) -> _running:
        self.context = self.library.conv(self.layer)
        conv = self.context.__enter__()
        self.packed_bytes = conv.packed_bytes
        words = [ctypes.c_void_p(p) for p in (conv.pointer, self.inputs.ctypes.data, self.output.ctypes.data)]
        self.call = partial(self.library.c.deploy_conv_run, *words, ctypes.c_int32(1))
        self.call()
        assert np.array_equal(reference(self.layer, self.inputs), self.output)
        return self

    def __exit__(self, *error: object) -> None:
        self.context.__exit__(None, None, None)


def _once(call: Callable[[], None]) -> float:
    return min(_mean_ns(call, 1) for _ in range(5))


def _mean_ns(call: Callable[[], object], times: int) -> float:
    started = time.thread_time_ns()
    for _ in range(times):
        call()
    return (time.thread_time_ns() - started) / times
