"""
A gateway of simulated boards, in a process of its own, on a host whose wall clock is never right.

    python -m tests.farm.gateway_process ADDRESS KEYS BOARDS.YAML STORE SIMULATED NAME [VERSION]
"""

from __future__ import annotations

import sys
from pathlib import Path

from deploy import boards
from deploy.cli.common import note
from deploy.farm import cells, gateway
from tests.farm.chaos import JumpingClock
from tests.farm.reach import Reach


def main(where: str, keys: str, registry: str, store: str, simulated: str, name: str, version: str = "") -> None:
    if version:
        real = cells.versions()
        cells.versions = lambda: {**real, "deploy": version}
    ours = gateway.Gateway(
        boards.load(registry), name, Path(store), hold=Reach(Path(simulated)), care=False, clock=JumpingClock()
    )
    gateway.run(ours, where, Path(keys), note)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except KeyboardInterrupt:
        pass
    except Exception as error:
        sys.exit(f"error: {error}")
