"""
The bundles of a plan: read, or built on this machine, one after the other, each in a process of its own.

What was built is kept by what it was built from, so that a plan that is resumed builds nothing twice and finds the same
bytes.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

from deploy import __version__, bundle
from deploy.bundle import Bundle
from deploy.errors import BuildError, DeployError
from deploy.farm.plan import BundleEntry, Plan
from deploy.paths import cache_dir


class Builder:
    """A thread that makes the bundles of `plan`; `ready` gives them as they come."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._ready: queue.SimpleQueue[tuple[str, Bundle | DeployError]] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._process: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._work, name="builder", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def ready(self) -> list[tuple[str, Bundle | DeployError]]:
        """Bundles, by their name in the plan, that have come since this was asked last; or why there is none."""
        found = []
        with suppress(queue.Empty):
            while True:
                found.append(self._ready.get_nowait())
        return found

    def stop(self) -> None:
        self._stopping.set()
        process = self._process
        if process and process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        self._thread.join(5.0)

    def _work(self) -> None:
        # Files first: their cells may begin while others are built.
        for name, entry in sorted(self._plan.bundles.items(), key=lambda item: item[1].model is not None):
            if self._stopping.is_set():
                return
            try:
                self._ready.put((name, self._make(name, entry)))
            except DeployError as error:
                self._ready.put((name, error))
            except Exception as error:  # a bug must not leave its cells waiting for ever
                self._ready.put((name, BuildError(f"internal: {type(error).__name__}: {error}")))

    def _make(self, name: str, entry: BundleEntry) -> Bundle:
        if entry.bundle:
            path = Path(self._plan.beside(entry.bundle))
            if path.suffix.lower() != ".tflite":
                return bundle.read(path)
            from deploy.build import build

            return build(str(path), name=name, vectors=0).bundle
        assert entry.model
        out = cache_dir() / "bundles" / f"{self._key(name, entry)}.bundle"
        if not out.is_file():
            out.parent.mkdir(parents=True, exist_ok=True)
            self._build(name, entry, out)
        return bundle.read(out)

    def _build(self, name: str, entry: BundleEntry, out: Path) -> None:
        staging = out.with_suffix(f".{os.getpid()}")
        words = [sys.executable, "-m", "deploy", "build", self._plan.beside(entry.model or ""), "--name", name]
        words += ["--seed", str(entry.seed), "-o", str(staging)]
        words += ["--recipe", entry.recipe] if entry.recipe else []
        words += ["--preprocess", entry.preprocess] if entry.preprocess else []
        words += ["--data", self._plan.beside(entry.data)] if entry.data else []
        # A process group of its own: Ctrl-C is ours to handle, and a build has children.
        self._process = subprocess.Popen(
            words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
            start_new_session=True,
        )  # fmt: skip
        if self._stopping.is_set():
            self._process.terminate()
        said = self._process.communicate()[1].strip().splitlines()
        try:
            if self._process.returncode:
                errors = [line.removeprefix("error: ") for line in said if line.startswith("error: ")]
                hints = [line.removeprefix("hint:  ") for line in said if line.startswith("hint:  ")]
                reason = (errors or said[-1:] or [f"exit code {self._process.returncode}"])[0]
                raise BuildError(f"{name}: {reason}", hints[0] if hints else None)
            os.replace(staging, out)
        finally:
            staging.unlink(missing_ok=True)

    def _key(self, name: str, entry: BundleEntry) -> str:
        made_of = [_content(self._plan.beside(source)) for source in (entry.model, entry.data) if source]
        told = [name, entry.recipe, entry.preprocess, entry.seed, __version__, made_of, entry.model, entry.data]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]


def _content(source: str) -> str:
    """SHA-256 of a file, of all files of a folder, or of the module that ``module:function`` is in."""
    if ":" in source:
        with suppress(ImportError, ValueError):
            spec = importlib.util.find_spec(source.partition(":")[0])
            source = spec.origin if spec and spec.origin else source
    path = Path(source)
    digest = hashlib.sha256()
    with suppress(OSError):  # what is not there is said by the build
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                digest.update(f"{file.relative_to(path.parent)}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()
