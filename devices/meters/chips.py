"""
What the makers of power sensors promise, in one table.

From the data sheets: TI SBOS448 (INA219), SBOS547 (INA226), SLYS021 (INA228, INA238 alike), SBOS656 (INA260),
SBOS576 (INA3221).  Typical shunts are good to 1 %, and no file says how good this one is, so that stands in the gain
of every chip whose shunt lies outside of it; `gain_error` of a rail in boards.yaml knows better.
"""

from __future__ import annotations

from dataclasses import dataclass

SHUNT_TOLERANCE = 0.01


@dataclass(frozen=True)
class Chip:
    """
    Attributes:
        shunt_lsb_uv, offset_uv: smallest step and largest offset across the shunt.
        gain: largest relative error of the chip alone.
        power_lsb: steps of the current in one step of the power register; None where the chip has none.
        averaging: what `update_interval` is the length of.
    """

    shunt_lsb_uv: float
    offset_uv: float
    gain: float
    power_lsb: float | None
    averaging: str | None


CHIPS = {
    "ina219": Chip(10.0, 100.0, 0.005, 20.0, "none"),
    "ina226": Chip(2.5, 10.0, 0.001, 25.0, "box"),
    "ina228": Chip(0.3125, 1.0, 0.0005, 3.2, "box"),
    "ina238": Chip(5.0, 5.0, 0.001, 0.2, "box"),
    "ina3221": Chip(40.0, 80.0, 0.0025, None, "iir"),
}
INA260_LSB_MW, INA260_OFFSET_MA, INA260_GAIN = 10.0, 5.0, 0.0015  # its shunt is inside


def gain(chip: str) -> float | None:
    """Bound of the relative error of power, with the shunt's; None for a chip that the table does not know."""
    if chip == "ina260":
        return INA260_GAIN
    known = CHIPS.get(chip)
    return (known.gain**2 + SHUNT_TOLERANCE**2) ** 0.5 if known else None


def offset_mw(chip: str, shunt_uohm: float | None, bus_mv: float | None) -> float | None:
    """Bound of the additive error of power, on a line of `bus_mv`."""
    if not bus_mv:
        return None
    if chip == "ina260":
        return INA260_OFFSET_MA * bus_mv / 1000
    known = CHIPS.get(chip)
    return known.offset_uv / shunt_uohm * bus_mv if known and shunt_uohm else None


def lsb_mw(chip: str, shunt_uohm: float | None, bus_mv: float | None) -> float | None:
    """Smallest step of power: of the power register where there is one, else of the current at `bus_mv`."""
    if chip == "ina260":
        return INA260_LSB_MW
    known = CHIPS.get(chip)
    if known is None or not shunt_uohm:
        return None
    current_lsb_ma = known.shunt_lsb_uv / shunt_uohm * 1000
    if known.power_lsb is not None:
        return known.power_lsb * current_lsb_ma
    return current_lsb_ma * bus_mv / 1000 if bus_mv else None
