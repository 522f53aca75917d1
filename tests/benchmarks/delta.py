"""
Deltas beside those of bsdiff4, detools, xdelta3, zstd --patch-from, rsync and a plain byte difference.

The updates are those of facts/peers.md 4c: weights of real int8 models that move, scales and biases that jitter; and a
network that was really trained one epoch longer, where TensorFlow is here.
"""

from __future__ import annotations

import importlib.util
import io
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from deploy.delta import encode, ranges
from tests.benchmarks.figure import Figure
from tests.conftest import CORPUS, ROOT
from tests.models import perturbed

_INT8 = 9
MISSING = "not here"


def figures(folder: Path) -> Iterator[Figure]:
    if not (CORPUS / "models").is_dir():
        yield Figure("delta bytes", "smallest", f"not measured: no corpus at {CORPUS}", None)
        return
    for what, base, target in [*updates(), *retrained(folder)]:
        started = time.perf_counter()
        patch = encode(base, target)
        encoding_s = time.perf_counter() - started
        decoding_s, peak = decoding(folder, base, patch, target)
        others = peers(folder, base, target)
        smallest = all(len(patch) < size for size in others.values() if size is not None)
        cells = "  ".join(f"{name} {MISSING if size is None else f'{size:,}'}" for name, size in others.items())
        yield Figure(f"delta, {what} ({len(target):,} B)", "smallest", f"{len(patch):,} B;  {cells}", smallest)
        rate = len(target) / decoding_s / 1e3
        speed = f"{rate:,.0f} kB/s ({decoding_s:.2f} s); made in {encoding_s:.1f} s"
        yield Figure("  applying it, pure Python", "> 100 kB/s", speed, rate > 100)
        limit = 2 * max(each.length for each in ranges(target))
        yield Figure("  memory of that", f"< {limit / 1e3:.0f} kB", f"{peak / 1e3:.0f} kB", peak < limit)


def updates() -> Iterator[tuple[str, bytes, bytes]]:
    """What changed, the model before and after."""
    ad, ic, vww = (
        (CORPUS / "models" / f"tiny_{name}_int8.tflite").read_bytes()
        for name in ("ad_autoencoder", "ic_resnet8", "vww_mobilenetv1")
    )
    yield "AD autoencoder, 1 % of weights by 1", ad, perturbed(ad, 0.01, 1, seed=1, jitter=True)
    yield "AD autoencoder, 10 % by 1", ad, perturbed(ad, 0.1, 1, seed=2, jitter=True)
    yield "ResNet-8, 10 % by 1", ic, perturbed(ic, 0.1, 1, seed=3, jitter=True)
    yield "ResNet-8, 50 % by up to 3", ic, perturbed(ic, 0.5, 3, seed=4, jitter=True)
    yield "MobileNet v1, 50 % by up to 3", vww, perturbed(vww, 0.5, 3, seed=5, jitter=True)
    yield "ResNet-8, half of it pruned by magnitude", ic, pruned(ic)
    yield "ResNet-8, last layer only", ic, last_layer(ic)


def pruned(model: bytes) -> bytes:
    out = bytearray(model)
    for each in ranges(model):
        if each.type == _INT8 and each.keys[0][0] == "data":
            weights = np.frombuffer(model, np.int8, each.length, each.start)
            size = np.abs(weights.astype(int))
            out[each.start : each.end] = np.where(size <= np.median(size), 0, weights).astype(np.int8).tobytes()
    return bytes(out)


def last_layer(model: bytes) -> bytes:
    """ResNet-8 ends in a dense layer of 64 x 10 weights."""
    changed = perturbed(model, 0.5, 3, seed=6)
    (dense,) = (each for each in ranges(model) if each.length == 640 and each.type == _INT8)
    return model[: dense.start] + changed[dense.start : dense.end] + model[dense.end :]


_TRAIN = """
import sys
import keras
from deploy.build import build
from deploy.examples import digits

keras.utils.set_random_seed(0)
arrays = digits.data()
net = digits.model()
for name in ("before", "after"):
    net.save(f"{sys.argv[1]}/{name}.keras")
    model = build(f"{sys.argv[1]}/{name}.keras", name=name, data="digits", vectors=0).bundle.model
    open(f"{sys.argv[1]}/{name}.tflite", "wb").write(model)
    net.fit(arrays["x_train"], arrays["y_train"], batch_size=32, epochs=1, verbose=0)
"""


def retrained(folder: Path) -> Iterator[tuple[str, bytes, bytes]]:
    if not importlib.util.find_spec("keras"):
        return
    done = subprocess.run([sys.executable, "-c", _TRAIN, str(folder)], capture_output=True, check=False, cwd=ROOT)
    if done.returncode == 0:
        before, after = ((folder / f"{name}.tflite").read_bytes() for name in ("before", "after"))
        yield "digits, trained one epoch longer", before, after


_APPLY = """
import pathlib, sys, time, tracemalloc
from devices import delta
base, patch, target = map(pathlib.Path, sys.argv[1:])
started = time.perf_counter()
delta.apply(base, patch, target)
seconds = time.perf_counter() - started
tracemalloc.start()
delta.apply(base, patch, target)
print(seconds, tracemalloc.get_traced_memory()[1])
"""


def decoding(folder: Path, base: bytes, patch: bytes, target: bytes) -> tuple[float, int]:
    """Seconds, and bytes that the decoder had allocated at its peak; in a process of its own."""
    paths = [folder / name for name in ("base", "patch", "target")]
    for path, data in zip(paths, (base, patch), strict=False):
        path.write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", _APPLY, *map(str, paths)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    if paths[2].read_bytes() != target:
        raise AssertionError("the delta makes another file")
    seconds, peak = done.stdout.split()
    return float(seconds), int(peak)


# The others, each with its best settings


def peers(folder: Path, base: bytes, target: bytes) -> dict[str, int | None]:
    """Bytes, by tool; None for one that is not installed."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        old, new = Path(name) / "old", Path(name) / "new"
        old.write_bytes(base)
        new.write_bytes(target)
        return {
            "bsdiff4": _bsdiff4(base, target),
            "detools/lzma": _detools(base, target),
            "xdelta3": _output(["xdelta3", "-e", "-9", "-S", "lzma", "-c", "-s", str(old), str(new)]),
            "zstd --patch-from": _output(["zstd", "-19", "--long=27", f"--patch-from={old}", "-c", str(new)]),
            "rsync -z": _rsync(old, new),
            "byte-diff+zstd19": _byte_difference(base, target),
        }


def _bsdiff4(base: bytes, target: bytes) -> int | None:
    if not importlib.util.find_spec("bsdiff4"):
        return None
    import bsdiff4

    return len(bsdiff4.diff(base, target))


def _detools(base: bytes, target: bytes) -> int | None:
    if not importlib.util.find_spec("detools"):
        return None
    import detools

    patch = io.BytesIO()
    detools.create_patch(io.BytesIO(base), io.BytesIO(target), patch, compression="lzma")
    return len(patch.getvalue())


def _byte_difference(base: bytes, target: bytes) -> int | None:
    if not importlib.util.find_spec("zstandard") or len(base) != len(target):
        return None
    import zstandard

    difference = np.frombuffer(target, np.uint8) - np.frombuffer(base, np.uint8)
    return len(zstandard.ZstdCompressor(level=19).compress(difference.tobytes()))


def _output(command: list[str]) -> int | None:
    """Size of what a program writes."""
    if not shutil.which(command[0]):
        return None
    done = subprocess.run(command, capture_output=True, check=False)
    return len(done.stdout) if done.returncode == 0 else None


def _rsync(old: Path, new: Path) -> int | None:
    """Bytes both ways, as rsync itself counts them."""
    if not shutil.which("rsync"):
        return None
    there = old.with_name("there")
    shutil.copy(old, there)
    command = ["rsync", "-z", "--no-whole-file", "--ignore-times", "--stats", str(new), str(there)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    counts = [
        line.split(":")[1].replace(",", "") for line in done.stdout.splitlines() if line.startswith("Total bytes")
    ]
    return sum(map(int, counts)) if counts else None
