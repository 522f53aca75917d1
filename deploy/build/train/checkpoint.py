"""
The state of training after an epoch, in a file that is whole or not there.

Format 2: an .npz with ``v<i>`` for each variable, in order, and ``meta``, JSON: format, fingerprint, epoch, history.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deploy.build.train.layers import array
from deploy.errors import BuildError

FORMAT = 2
NAME = "checkpoint.npz"


def save(folder: Path, variables: Sequence[Any], fingerprint: str, epoch: int, history: list[dict[str, Any]]) -> None:
    """
    Write ``checkpoint.npz`` in `folder`, over the last one.

    Raises:
        BuildError: it cannot be written.
    """
    meta = {"format": FORMAT, "fingerprint": fingerprint, "epoch": epoch, "history": history}
    content = io.BytesIO()
    arrays = {f"v{i}": array(variable) for i, variable in enumerate(variables)}
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    np.savez(content, **arrays)  # type: ignore[arg-type]
    part = folder / (NAME + ".part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(content.getvalue())
            file.flush()
            os.fsync(file.fileno())
        part.replace(folder / NAME)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise BuildError(f"{part}: {error.strerror}: the checkpoint of epoch {epoch} is not kept") from None


def load(folder: Path, variables: Sequence[Any], fingerprint: str) -> tuple[int, list[dict[str, Any]]]:
    """
    Put back what `save` wrote.

    Returns:
        Epochs that are done, and their history.

    Raises:
        BuildError: there is none, it is damaged, or it belongs to another recipe, model or data set.
    """
    path = folder / NAME
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            meta = json.loads(archive["meta"].tobytes())
            arrays = [archive[f"v{i}"] for i in range(len(variables))] if meta.get("fingerprint") == fingerprint else []
    except FileNotFoundError:
        raise BuildError(f"{path}: no checkpoint to go on from", "without `--resume` training begins anew") from None
    except Exception as error:  # of a damaged file: whatever zipfile, numpy or json felt like
        raise BuildError(f"{path}: a damaged checkpoint ({type(error).__name__})", "delete it to begin anew") from None
    if meta.get("format") != FORMAT or not arrays:
        raise BuildError(
            f"{path}: the checkpoint is of another recipe, model or data set", "without `--resume` training begins anew"
        )
    for variable, value in zip(variables, arrays, strict=True):
        variable.assign(value)
    return int(meta["epoch"]), list(meta["history"])
