"""The library built with AddressSanitizer and UndefinedBehaviorSanitizer: nothing is read, written or added amiss."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT, require_or_skip
from tests.kernels.interpreters import Job, killed_by_us
from tests.kernels.mutate import mutants

MUTANTS = int(os.environ.get("DEPLOY_KERNELS_MUTANTS", "100"))
LAYERS = """
import sys
import numpy as np
from pathlib import Path
from tests.kernels.library import Library, conv_layer
from tests.kernels.test_pruned import SHAPES, every_variant

library = Library(Path(sys.argv[1]))
rng = np.random.default_rng(0)
for family in ("w8", "w4", "w2", "binary", "tile8", "tile4", "block8", "nm8"):
    for in_shape, out_c, kernel, stride, dilation, same, groups in SHAPES[:5]:
        layer = conv_layer(family, rng, in_shape=in_shape, out_c=out_c, kernel=kernel, stride=stride,
                           dilation=dilation, same=same, groups=groups)
        every_variant(library, layer, rng.integers(-128, 128, in_shape).astype(np.int8), threads=2)
"""


@pytest.fixture(scope="module")
def sanitized(built: Callable[..., Path]) -> tuple[Path, dict[str, str]]:
    """The library and the environment that it needs: the sanitizers come in before Python does."""
    compiler = os.environ.get("CXX", "g++")
    require_or_skip(shutil.which(compiler) is not None, f"needs {compiler}: `sudo apt install g++`, or set $CXX")
    path = built("--sanitize")
    found = [
        subprocess.check_output([compiler, f"-print-file-name={name}"], text=True).strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    # Python and LiteRT keep what they allocate; only what this library does is of interest.
    options = "detect_leaks=0:handle_segv=1:abort_on_error=1:detect_odr_violation=0"
    return path, {"LD_PRELOAD": " ".join(found), "ASAN_OPTIONS": options, "UBSAN_OPTIONS": "print_stacktrace=1"}


def test_every_variant_of_every_family(sanitized: tuple[Path, dict[str, str]]) -> None:
    path, environment = sanitized
    done = subprocess.run(
        [sys.executable, "-c", LAYERS, str(path)],
        capture_output=True, text=True, check=False, cwd=ROOT, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def test_malformed_models(sanitized: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    """Other mutants than test_delegate.py's.  Where LiteRT itself does wrong without us, nothing is said about us."""
    path, environment = sanitized
    jobs = [Job(model, values, {"mode": "all"}) for model, values in mutants(np.random.default_rng(12), MUTANTS // 3)]

    _, ours = killed_by_us(path, jobs, tmp_path, environment)

    assert [] == ours
