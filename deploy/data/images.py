"""
A folder of images by class: ``FOLDER/cat/1.png``, or ``FOLDER/train/cat/1.png`` and ``FOLDER/test/cat/2.png``.

Classes are numbered in the order of their names.  A folder without train and test is divided: every fifth image of a
class, in the order of the names' hashes, is for testing, so that an image that is added moves no other.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
TEST_ONE_IN = 5


def load_folder(folder: Path) -> dict[str, NDArray[Any]]:
    """
    Read a folder of images.

    Returns:
        ``x_train``, ``y_train``, ``x_test``, ``y_test`` and ``classes``; images uint8 [N, H, W, 3], or [N, H, W, 1]
        where every one of them is grey.

    Raises:
        DataError: Pillow is missing, no images, one class, a class without images in a split, images of different
            sizes, or a file that is no image; says which.
    """
    if (folder / "train").is_dir() and (folder / "test").is_dir():
        train, test = (_by_class(folder / split) for split in ("train", "test"))
        if list(train) != list(test):
            odd = sorted(set(train) ^ set(test))[0]
            raise DataError(f"{folder}: class {odd!r} is in one of train and test only")
    else:
        train, test = _divided(_by_class(folder))
    paths = {"train": _listed(train), "test": _listed(test)}
    images = _decoded([path for split in paths.values() for path, _ in split], folder)
    arrays: dict[str, NDArray[Any]] = {"classes": np.array(list(train))}
    for split, first in (("train", 0), ("test", len(paths["train"]))):
        arrays[f"x_{split}"] = images[first : first + len(paths[split])]
        arrays[f"y_{split}"] = np.array([label for _, label in paths[split]], np.int64)
    return arrays


def _by_class(folder: Path) -> dict[str, list[Path]]:
    classes = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    found = {c.name: sorted(path for path in c.iterdir() if path.suffix.lower() in SUFFIXES) for c in classes}
    if len(found) < 2:
        raise DataError(
            f"{folder}: {len(found)} folders of images, and a class needs one each",
            "FOLDER/CLASS/*.png, or FOLDER/train/CLASS/*.png and FOLDER/test/CLASS/*.png",
        )
    for name, paths in found.items():
        if not paths:
            raise DataError(f"{folder / name} holds no images ({', '.join(SUFFIXES)})")
    return found


def _divided(classes: dict[str, list[Path]]) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    train: dict[str, list[Path]] = {}
    test: dict[str, list[Path]] = {}
    for name, paths in classes.items():
        held_out = {p for p in paths if hashlib.sha256(p.name.encode()).digest()[0] % TEST_ONE_IN == 0}
        if not held_out or len(held_out) == len(paths):
            held_out = {paths[-1]}
        train[name] = [path for path in paths if path not in held_out]
        test[name] = sorted(held_out)
        if not train[name]:
            raise DataError(f"{paths[0].parent} holds one image: too few to train and test with")
    return train, test


def _listed(classes: dict[str, list[Path]]) -> list[tuple[Path, int]]:
    return [(path, label) for label, paths in enumerate(classes.values()) for path in paths]


def _decoded(paths: list[Path], folder: Path) -> NDArray[np.uint8]:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise DataError(f"{folder}: reading images needs Pillow", "`pip install pillow`") from None

    images = []
    grey = True
    for path in paths:
        try:
            with Image.open(path) as image:
                grey = grey and image.mode in ("1", "L", "I;16", "LA")
                wide = image.mode.startswith("I;16")  # Pillow would clip what is above 255
                eight = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)) if wide else image
                images.append(np.asarray(eight.convert("RGB")))
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"{path}: not an image that can be read ({error})") from None
        if images[-1].shape != images[0].shape:
            height, width, _ = images[-1].shape
            raise DataError(
                f"{path} has {width}x{height} pixels, {paths[0]} has {images[0].shape[1]}x{images[0].shape[0]}",
                "make all images as large as the model's input",
            )
    stacked = np.stack(images)
    return stacked[..., :1] if grey else stacked
