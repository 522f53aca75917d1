"""
labgrid-client, as far as deploy uses it: places that one user at a time acquires, in a file instead of a coordinator.

What it says and how it ends was written down from labgrid 26.0.1; `test_places.py` runs its tests against that, too,
where it is installed.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

PROGRAM = (
    f"#!{sys.executable}\n"
    + """\
import sys
sys.path.insert(0, {root!r})
from tests.farm.labgrid import main
main({state!r})
"""
)


def install(folder: Path, state: Path) -> None:
    """Put a `labgrid-client` into `folder` whose places are kept in `state`."""
    folder.mkdir(exist_ok=True)
    state.write_text(json.dumps({"acquired": {"pi": None}, "power": []}))
    program = folder / "labgrid-client"
    program.write_text(PROGRAM.format(root=str(Path(__file__).parents[2]), state=str(state)))
    program.chmod(0o755)


def main(state: str) -> None:
    option, place, command, *words = sys.argv[1:]
    assert "-p" == option
    known = json.loads(Path(state).read_text())
    user = os.environ.get("LG_USERNAME", "me")
    if place not in known["acquired"]:
        sys.exit(f"labgrid-client: Error: place pattern {place} matches nothing")
    holder = known["acquired"][place]
    if command == "acquire":
        if holder == user:
            sys.exit(f"labgrid-client: Error: You have already acquired place {place}.")
        if holder:
            sys.exit(
                f"labgrid-client: Error: Place {place} is already acquired by vm/{holder}. To work simultaneously, "
                f"{holder} can execute 'labgrid-client -p {place} allow vm/{user}' on vm."
            )
        known["acquired"][place] = user
        sys.stdout.write(f"acquired place {place}\n")
    elif holder is None:
        sys.exit(f"labgrid-client: Error: place {place} is not acquired")
    elif command == "release":
        known["acquired"][place] = None
        sys.stdout.write(f"released place {place}\n")
    elif command == "power":
        known["power"] += words
    Path(state).write_text(json.dumps(known))
