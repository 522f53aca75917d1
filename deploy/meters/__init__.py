"""
Meters that hang on this machine and measure a board.

A kind of meter is a function: from `name`, `scope` and the settings of boards.yaml it makes something that keeps
`devices.protocol.meter.Meter`, and that may have a ``close()``.  Ours are listed here; an installed package adds its
own by an entry point in the group ``deploy.meters``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from deploy.errors import MeterError, nearest
from devices.protocol.meter import Meter

if TYPE_CHECKING:
    from deploy.boards import HostMeter

GROUP = "deploy.meters"
KINDS = {kind: f"deploy.meters.{kind}:open_meter" for kind in ("joulescope", "ppk2", "scpi")}

PACKAGES = {"joulescope": "pyjoulescope-driver", "scpi": "'deploy-hil[meters]'"}

Open = Callable[[str, str, Mapping[str, Any]], Meter]


def kinds() -> dict[str, str]:
    """Every kind, and where its function is."""
    return {**{entry.name: entry.value for entry in entry_points(group=GROUP)}, **KINDS}


def open_meters(wanted: Sequence[HostMeter]) -> list[Meter]:
    """
    Open meters; all of them, or none.

    Raises:
        MeterError: a kind that nobody knows, a package that is not installed, a setting that is missing, or a meter
            that does not answer.
    """
    opened: list[Meter] = []
    try:
        for entry in wanted:
            opened.append(_open(entry))
    except BaseException:
        close_meters(opened)
        raise
    return opened


def close_meters(meters: Sequence[Meter]) -> None:
    """Let go of them."""
    for meter in meters:
        close = getattr(meter, "close", None)
        if close:
            close()


def _open(entry: HostMeter) -> Meter:
    known = kinds()
    if entry.kind not in known:
        raise MeterError(f"no kind of meter is called {entry.kind!r}{nearest(entry.kind, known)}")
    module, _, name = known[entry.kind].partition(":")
    try:
        opener: Open = getattr(importlib.import_module(module), name)
        meter = opener(entry.name, entry.scope, entry.settings)
    except ImportError as error:
        raise MeterError(
            f"meter {entry.name!r} ({entry.kind}) needs {error.name}",
            f"`pip install {PACKAGES.get(entry.kind, error.name)}`",
        ) from None
    except KeyError as error:
        raise MeterError(
            f"meter {entry.name!r} ({entry.kind}) needs the setting {error}",
            f"`settings: {{{error.args[0]}: ...}}` of the meter in boards.yaml",
        ) from None
    except (OSError, ValueError) as error:
        raise MeterError(f"meter {entry.name!r} ({entry.kind}): {error}") from None
    gain = entry.gain_error
    meter.rails = [replace(rail, clock="host", gain=rail.gain if gain is None else gain) for rail in meter.rails]
    return meter
