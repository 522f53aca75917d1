"""
Our kernels against stock LiteRT on this machine: the same layer by both in turns, within one process on one CPU.

The ratio is taken pair by pair, so that a machine that changes its speed changes both.  Times are those of the thread's
own CPU clock.  Ours goes through the delegate, so each side pays for an interpreter of its own.  The peak is what the
CPU's 8-bit dot product reaches on registers alone (product_peak.cc), measured in turns with the two; a layer that is
transformed (kernels/common/winograd.h) multiplies less and may exceed it.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.figure import Figure
from tests.conftest import CORPUS, ROOT

PAIRS = 40
SHAPES = (((1, 14, 14, 256), 256), ((1, 16, 16, 64), 64), ((1, 28, 28, 128), 128))


def figures(folder: Path) -> Iterator[Figure]:
    """What the README's table of kernels says."""
    library = folder / "libdeploy_kernels.so"
    built = subprocess.run(
        [sys.executable, str(ROOT / "kernels" / "build.py"), "--out", str(library)], capture_output=True, text=True
    )
    if built.returncode != 0:
        yield Figure("kernels", "", f"not measured: {built.stderr.splitlines()[-1]}", None)
        return
    # Pinned, in a process of its own: the table's other figures keep all CPUs.
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.kernels", str(library)], capture_output=True, text=True, cwd=ROOT
    )
    if done.returncode != 0:
        yield Figure("kernels", "", f"not measured: {done.stderr.splitlines()[-1]}", None)
        return
    for line in done.stdout.splitlines():
        yield Figure(**json.loads(line))


def _measure(library: str) -> Iterator[Figure]:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    from tests.kernels.single_op import random_conv, random_fc

    symbols = ctypes.CDLL(library)
    symbols.deploy_kernels_report.restype = ctypes.c_char_p
    rng = np.random.default_rng(0)
    peak = _product_peak(Path(library).resolve().parent)
    for in_shape, out_c in SHAPES:
        products = 9 * int(np.prod(in_shape)) * out_c
        size = f"{in_shape[1]}x{in_shape[2]}x{in_shape[3]} k3"
        int8, int4, int2 = (
            random_conv(rng, in_shape=in_shape, out_c=out_c, weight_type=kind) for kind in ("INT8", "INT4", "INT2")
        )
        dense = invoker(int8.model(), None)
        for op, bits, goal, most in ((int4, 4, 0.95, 0.52), (int2, 2, 0.9, 0.27)):
            ours = invoker(op.model(), library)
            node = json.loads(symbols.deploy_kernels_report())["nodes"][0]
            # The peer keeps a byte for each weight, and a bias and a scale for each output.
            share = node["packed_bytes"] / (int8.weights.size + 8 * out_c)
            yield ratio(f"w{bits}a8 conv {size} / XNNPACK int8", goal, dense, ours, products, peak)
            yield Figure(f"  its resident weights {size}", f"<= {most}", f"{share:.3f} of int8's", share <= most)
            if bits == 4:
                yield ratio(f"w4a8 conv {size} / stock int4", 3.7, invoker(op.model(), None), ours)
            del ours
    single = random_fc(rng, rows=1, in_c=1024, out_c=1024, weight_type="INT4")
    stock, ours = invoker(single.model(), None), invoker(single.model(), library, "all")
    could = ratio("int4 FC 1x1024x1024, ours whether claimed or not / XNNPACK int4", 1.0, stock, ours)
    del ours
    claims = invoker(single.model(), library)
    claimed = json.loads(symbols.deploy_kernels_report())["nodes"][0]["claimed"]
    del claims
    said = f"{could.result}; {'claimed' if claimed else 'left to XNNPACK'}"
    yield Figure(could.what, ">= 1x, or left to XNNPACK", said, could.met or not claimed)
    yield from _whole_model(library)


def _whole_model(library: str) -> Iterator[Figure]:
    from tests.kernels.test_delegate import with_int4_filters

    path = CORPUS / "models" / "tiny_ic_resnet8_int8.tflite"
    if not path.is_file():
        yield Figure("ResNet-8, int4 convolutions / int8 twin", "<= 1.10x", f"not measured: no {path}", None)
        return
    int8 = path.read_bytes()
    int4 = with_int4_filters(int8)
    twin, ours, stock = invoker(int8, None), invoker(int4, library), invoker(int4, None)
    times = list(_pairs(ours, twin))
    latency = float(np.median([a / b for a, b in times]))
    low, high = np.percentile([a / b for a, b in times], [10, 90])
    result = f"{latency:.3f}x latency ({low:.2f} to {high:.2f}), {np.median([a for a, _ in times]):.1f} us"
    yield Figure("ResNet-8, int4 convolutions / its int8 twin in XNNPACK", "<= 1.10x", result, latency <= 1.10)
    yield ratio("ResNet-8, int4 convolutions: ours / stock", None, stock, ours)


def _product_peak(folder: Path) -> Callable[[], float] | None:
    """Measures products per microsecond of CPU time at every call; None without AVX-512 VNNI or a compiler."""
    cpu = Path("/proc/cpuinfo")
    if not cpu.is_file() or "avx512_vnni" not in cpu.read_text():
        return None
    out, source = folder / "product_peak.so", Path(__file__).with_name("product_peak.cc")
    flags = ["-O2", "-shared", "-fPIC", "-nostdlib++", "-mavx512f", "-mavx512vnni", "-o", str(out)]
    words = [sys.executable, "-m", "ziglang", "c++", *flags, str(source)]
    if subprocess.run(words, capture_output=True, check=False).returncode:
        return None
    multiply = ctypes.CDLL(str(out)).multiply
    multiply.argtypes, multiply.restype = [ctypes.c_int64, ctypes.c_int64], ctypes.c_int64

    def once() -> float:
        rounds = 50_000
        before = time.thread_time_ns()
        multiply(rounds, 12345)
        return rounds * 24 * 64 / ((time.thread_time_ns() - before) / 1e3)

    # Only interruptions make it less than it is.
    return lambda: max(once() for _ in range(5))


def ratio(
    what: str,
    goal: float | None,
    peer: Callable[[], Any],
    ours: Callable[[], Any],
    products: int = 0,
    peak: Callable[[], float] | None = None,
) -> Figure:
    """How many times as fast as the peer, and which part of `peak` ours reaches with so many products."""
    times, peaks = [], []
    for pair in _pairs(ours, peer):
        times.append(pair)
        if peak:
            peaks.append(peak())
    ratios = [b / a for a, b in times]
    median, (low, high) = float(np.median(ratios)), np.percentile(ratios, [10, 90])
    result = f"{median:.2f}x ({low:.2f} to {high:.2f}), {np.median([a for a, _ in times]):.1f} us"
    if peaks:
        shares = [products / a / highest for (a, _), highest in zip(times, peaks, strict=True)]
        result += f", {np.median(shares):.0%} of {np.median(peaks) / 1e3:.0f} GMAC/s"
    return Figure(what, "" if goal is None else f">= {goal}x", result, None if goal is None else median >= goal)


def _pairs(ours: Callable[[], Any], peer: Callable[[], Any]) -> Iterator[tuple[float, float]]:
    """(ours, peer) in microseconds of CPU time per call, taking turns."""
    ours(), peer()
    started = time.thread_time_ns()
    ours()
    calls = max(2, int(2e6 / max(1, time.thread_time_ns() - started)))

    def timed(call: Callable[[], Any]) -> float:
        before = time.thread_time_ns()
        for _ in range(calls):
            call()
        return (time.thread_time_ns() - before) / calls / 1e3

    for _ in range(PAIRS):
        yield timed(ours), timed(peer)


def invoker(model: bytes, library: str | None, mode: str = "auto") -> Callable[[], Any]:
    """A ready interpreter's invoke(), one thread; with our delegate where `library` is given."""
    from ai_edge_litert.interpreter import Interpreter, load_delegate

    delegates = [load_delegate(library, {"mode": mode})] if library else []
    interpreter = Interpreter(model_content=model, num_threads=1, experimental_delegates=delegates)
    interpreter.allocate_tensors()
    detail = interpreter.get_input_details()[0]
    values = np.random.default_rng(0).integers(-128, 128, detail["shape"])
    interpreter.set_tensor(detail["index"], values.astype(detail["dtype"]))
    interpreter.invoke()
    invoke: Callable[[], Any] = interpreter.invoke
    return invoke


if __name__ == "__main__":
    for _figure in _measure(sys.argv[1]):
        print(json.dumps(vars(_figure), default=bool), flush=True)
