"""
Which rails of a Jetson are its total, and which add up to it.

From the device trees of mainline Linux and NVIDIA's L4T.  Orin NX and Nano, Xavier NX, TX2 and Nano have a line that
feeds the whole module.  AGX Xavier and AGX Orin have none; six rails of the one and three of the other are the module.
Whether AGX Orin's VDDQ_VDD2_1V8AO hangs on VIN_SYS_5V0 is not documented: it is not added.
"""

from __future__ import annotations

_TOTALS = {"VDD_IN", "POM_5V_IN"}
_AGX_XAVIER = {"GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"}
_AGX_ORIN = {"VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"}


def scope(name: str) -> tuple[str, bool, str | None]:
    """``scope``, ``total`` and ``adds`` of the rail with this label, see `devices.protocol.meter.Rail`."""
    if name in _TOTALS:
        return "module", True, None
    if name in _AGX_XAVIER | _AGX_ORIN:
        return "soc-rails", False, "module"
    return "rail", False, None
