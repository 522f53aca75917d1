"""
``make fuzz``: every target, so many inputs each.

What is found is kept in tests/golden/fuzz, one line of hex for each input, the fewest that reach all of it; the tests
begin there.  A failure is printed as the line that reproduces it.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path

from tests.conftest import GOLDEN
from tests.fuzz.guided import fuzz, smallest
from tests.fuzz.targets import ALL

CORPUS = GOLDEN / "fuzz"
MOST = 150  # inputs kept for a target


def corpus(name: str) -> list[bytes]:
    """The inputs that are kept for a target."""
    path = CORPUS / f"{name}.txt"
    return [bytes.fromhex(line) for line in path.read_text().splitlines()] if path.is_file() else []


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("targets", nargs="*", help=f"of {', '.join(target.name for target in ALL)}; all")
    parser.add_argument("--inputs", type=int, default=20_000, help="for each target (20000)")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--keep", action="store_true", help="write what was found to tests/golden/fuzz")
    parser.add_argument("--input", help="run this one, in hex")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    failed = 0
    for target in ALL:
        if options.targets and target.name not in options.targets:
            continue
        if options.input is not None:
            target.run(bytes.fromhex(options.input))
            continue
        started = time.monotonic()
        found = fuzz(target, options.inputs, options.seed, corpus(target.name))
        rate = found.inputs / (time.monotonic() - started)
        print(
            f"{target.name:8} {found.inputs:,} inputs, {rate:,.0f} a second, seed {options.seed}: "
            f"{len({key[:3] for key in found.reached})} pairs of lines, {len(found.corpus)} inputs kept"
        )
        if found.failure:
            data, error = found.failure
            failed += 1
            print(f"  fails: {type(error).__name__}: {error}")
            print(f"  python -m tests.fuzz {target.name} --input '{data.hex()}'")
        elif options.keep:
            CORPUS.mkdir(exist_ok=True)
            kept = smallest(target, found.corpus)[:MOST]
            Path(CORPUS / f"{target.name}.txt").write_text("".join(f"{data.hex()}\n" for data in kept))
            print(f"  {len(kept)} inputs, {sum(map(len, kept))} bytes, in {CORPUS / target.name}.txt")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
