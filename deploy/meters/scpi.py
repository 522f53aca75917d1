"""
A power supply or multimeter that speaks SCPI, through pyvisa.

Settings: ``resource`` (as `pyvisa` names it), ``backend`` (``@py`` if not given); the queries to ask, either ``power``
or ``voltage`` and ``current`` (``MEAS:VOLT?`` and ``MEAS:CURR?`` if not given); ``update_period_s``, ``averaging``,
``offset_mw`` and ``lsb_mw`` where the instrument's manual tells them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from devices.protocol.meter import Meter, Rail, Sample

PERIOD_S = 0.05  # few instruments answer more often
TIMEOUT_MS = 2000


class Scpi:
    """One instrument; a sample is what its queries give, one after the other."""

    period_s = PERIOD_S

    def __init__(self, instrument: Any, queries: Sequence[str], rail: Rail) -> None:
        self.rails: Sequence[Rail] = [rail]
        self._instrument = instrument
        self._queries = queries

    def read(self) -> list[Sample]:
        import pyvisa

        before = time.monotonic_ns()
        try:
            said = [self._instrument.query(query) for query in self._queries]
        except pyvisa.Error as error:
            raise OSError(f"{self._instrument.resource_name}: {error}") from None
        after = time.monotonic_ns()
        power_mw = 1000.0  # W; of one query, or of V times A
        for text in said:
            power_mw *= float(text)
        return [Sample((before + after) // 2, 0, power_mw)]

    def close(self) -> None:
        self._instrument.close()


def open_meter(name: str, scope: str, settings: Mapping[str, Any]) -> Meter:
    """
    Raises:
        OSError: the instrument does not answer.
        KeyError: no resource is given.
        ValueError: it says something that is no number.
    """
    import pyvisa

    queries = [str(settings[key]) for key in ("power",) if key in settings]
    queries = queries or [str(settings.get("voltage", "MEAS:VOLT?")), str(settings.get("current", "MEAS:CURR?"))]
    try:
        manager = pyvisa.ResourceManager(str(settings.get("backend", "@py")))
        instrument: Any = manager.open_resource(
            str(settings["resource"]), read_termination="\n", write_termination="\n"
        )
        instrument.timeout = TIMEOUT_MS
        maker, model = f"{instrument.query('*IDN?')},,".split(",")[:2]
    except (pyvisa.Error, OSError, ValueError) as error:
        raise OSError(f"{settings['resource']}: {error}") from None
    chip = "-".join(word.strip().replace(" ", "-") for word in (maker, model) if word.strip()).lower() or "scpi"
    rail = Rail(
        name, chip, scope, "power_mw", settings.get("update_period_s"), lsb=settings.get("lsb_mw"), total=True,
        averaging=settings.get("averaging"), offset_mw=settings.get("offset_mw"),
    )  # fmt: skip
    meter = Scpi(instrument, queries, rail)
    meter.read()
    return meter
