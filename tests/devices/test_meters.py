from __future__ import annotations

import errno
import itertools
import os
import re
import struct
import threading
import time
from pathlib import Path

import pytest

from devices.meters import hwmon, ina228, pi5, powercap, sysfs
from devices.meters.find import find
from devices.protocol.meter import Rail, Sample, Unreadable
from devices.protocol.sampling import Sampler, rails
from tests.devices import trees
from tests.devices.test_facts import tree

RAPL = "sys/class/powercap"
PACKAGE = f"{RAPL}/intel-rapl:0"
HWMON = "sys/class/hwmon"
WRAP_UJ = 262143328850

# A desktop: one package with its cores and memory, and the whole platform.
DESKTOP = {
    f"{PACKAGE}/name": "package-0\n",
    f"{PACKAGE}/energy_uj": "5000000\n",
    f"{PACKAGE}/max_energy_range_uj": f"{WRAP_UJ}\n",
    f"{RAPL}/intel-rapl:0:0/name": "core\n",
    f"{RAPL}/intel-rapl:0:0/energy_uj": "3000000\n",
    f"{RAPL}/intel-rapl:0:0/max_energy_range_uj": f"{WRAP_UJ}\n",
    f"{RAPL}/intel-rapl:0:1/name": "dram\n",
    f"{RAPL}/intel-rapl:0:1/energy_uj": "700000\n",
    f"{RAPL}/intel-rapl:0:1/max_energy_range_uj": "65712999613\n",
    f"{RAPL}/intel-rapl:1/name": "psys\n",
    f"{RAPL}/intel-rapl:1/energy_uj": "9000000\n",
    f"{RAPL}/intel-rapl:1/max_energy_range_uj": f"{WRAP_UJ}\n",
    f"{RAPL}/intel-rapl/enabled": "1\n",
}


def ina3221(**files: str) -> dict[str, str]:
    """An Orin NX's INA3221: 5 mOhm shunts, 5 V; in4..in7 and curr4 are no rails (shunt voltages and their sum)."""
    own = {
        "name": "ina3221\n",
        "update_interval": "7\n",
        "samples": "4\n",
        "in1_label": "VDD_IN\n",
        "in1_enable": "1\n",
        "in1_input": "5000\n",
        "curr1_input": "800\n",
        "shunt1_resistor": "5000\n",
        "in2_label": "VDD_CPU_GPU_CV\n",
        "in2_enable": "1\n",
        "in2_input": "4992\n",
        "curr2_input": "144\n",
        "shunt2_resistor": "5000\n",
        "in3_input": "5008\n",
        "curr3_input": "-8\n",
        "in4_input": "4000\n",
        "in5_input": "720\n",
        "in6_input": "-40\n",
        "in7_label": "sum of shunt voltages\n",
        "in7_input": "4680\n",
        "curr4_input": "936\n",
        **files,
    }
    return {f"{HWMON}/hwmon3/{name}": text for name, text in own.items()}


def values(samples: list[Sample]) -> list[tuple[int, float]]:
    return [(sample.rail, sample.value) for sample in samples]


# RAPL


def test_a_package_and_its_memory_are_counted_and_nothing_that_they_contain(tmp_path):
    """The core zone lies within the package, and the package within psys: taking either would count twice."""
    ((meter,), unreadable) = powercap.find(tree(tmp_path, DESKTOP))

    assert [
        Rail("package-0", "rapl", "soc-rails", "energy_uj", 0.001, 1.0, averaging="box", adds="soc-rails"),
        Rail("dram:0", "rapl", "soc-rails", "energy_uj", 0.001, 1.0, averaging="box", adds="soc-rails"),
    ] == meter.rails
    assert [(0, 5000000), (1, 700000)] == values(meter.read())
    assert [] == unreadable


def test_a_counter_that_wraps_goes_on_growing(tmp_path):
    root = tree(tmp_path, {k: v for k, v in DESKTOP.items() if k.startswith(f"{PACKAGE}/")})
    ((meter,), _) = powercap.find(root)
    read = []
    for counter in (WRAP_UJ - 10, 5, 7, 3):
        (root / PACKAGE / "energy_uj").write_text(f"{counter}\n")
        read += values(meter.read())

    assert [(0, WRAP_UJ - 10), (0, WRAP_UJ + 5), (0, WRAP_UJ + 7), (0, 2 * WRAP_UJ + 3)] == read


def test_a_sample_is_dated_between_the_start_and_the_end_of_its_reading(tmp_path):
    ((meter,), _) = powercap.find(tree(tmp_path, DESKTOP))
    before = time.monotonic_ns()

    samples = meter.read()

    assert before <= samples[0].t_ns <= samples[1].t_ns <= time.monotonic_ns()


def test_a_counter_that_may_not_be_read_is_reported_with_the_reason(tmp_path):
    """Since CVE-2020-8694 the kernel shows energy_uj to root alone; a directory fails for root as well."""
    files = {k: v for k, v in DESKTOP.items() if k != f"{PACKAGE}/energy_uj"}
    root = tree(tmp_path, files)
    (root / PACKAGE / "energy_uj").mkdir()

    ((meter,), unreadable) = powercap.find(root)

    assert ["dram:0"] == [rail.name for rail in meter.rails]
    assert [Unreadable("rapl", str(root / PACKAGE / "energy_uj"), "Is a directory")] == unreadable


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read a file of mode 0000; run the tests as another user")
def test_a_counter_that_is_roots_alone_is_reported_with_the_reason(tmp_path):
    root = tree(tmp_path, {k: v for k, v in DESKTOP.items() if k.startswith(f"{PACKAGE}/")})
    (root / PACKAGE / "energy_uj").chmod(0)

    assert ([], [Unreadable("rapl", str(root / PACKAGE / "energy_uj"), "Permission denied")]) == powercap.find(root)


def test_a_zone_that_does_not_say_where_it_wraps_is_left_out(tmp_path):
    """Its counter could not be unwrapped, and energy that runs backwards is worse than none."""
    root = tree(tmp_path, {f"{PACKAGE}/name": "package-0\n", f"{PACKAGE}/energy_uj": "5\n"})

    assert ([], []) == powercap.find(root)


# hwmon

JETSON_GAIN = pytest.approx((0.0025**2 + 0.01**2) ** 0.5)  # the chip's, and that of its shunt


def test_an_ina3221_gives_bus_voltage_times_current_of_its_three_channels(tmp_path):
    """
    It has no power file.  7 ms times 4 averages make 28 ms; 40 uV across 5 mOhm at 5 V make steps of 40 mW, and 80 uV
    an offset of 80 mW.
    """
    ((meter,), _) = hwmon.find(tree(tmp_path, ina3221()))

    known = {"averaging": "iir", "gain": JETSON_GAIN}
    assert [
        Rail("VDD_IN", "ina3221", "module", "power_mw", 0.028, 40.0, total=True, offset_mw=80.0, **known),
        Rail("VDD_CPU_GPU_CV", "ina3221", "rail", "power_mw", 0.028, pytest.approx(39.936),
             offset_mw=pytest.approx(79.872), **known),
        Rail("channel3", "ina3221", "rail", "power_mw", 0.028, None, **known),
    ] == meter.rails  # fmt: skip
    assert [(0, 4000.0), (1, 718.848), (2, -40.064)] == values(meter.read())


def test_a_channel_that_is_switched_off_is_no_rail(tmp_path):
    """AGX Orin has three of four switched off; their files are there all the same."""
    ((meter,), _) = hwmon.find(tree(tmp_path, ina3221(in2_enable="0\n")))

    assert ["VDD_IN", "channel3"] == [rail.name for rail in meter.rails]
    assert [(0, 4000.0), (1, -40.064)] == values(meter.read())


def test_a_channel_that_gives_nothing_just_now_is_left_out_of_that_reading(tmp_path, monkeypatch):
    """A channel that is switched off answers ENODATA, which no ordinary file does."""
    ((meter,), _) = hwmon.find(tree(tmp_path, ina3221()))
    off = {str(tmp_path / HWMON / "hwmon3" / "curr2_input")}
    pread = os.pread

    def answer(fd: int, size: int, offset: int) -> bytes:
        if os.readlink(f"/proc/self/fd/{fd}") in off:
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
        return pread(fd, size, offset)

    monkeypatch.setattr(os, "pread", answer)
    assert all([(0, 4000.0), (2, -40.064)] == values(meter.read()) for _ in range(20))

    off.clear()
    assert [(0, 4000.0), (1, 718.848), (2, -40.064)] == values(meter.read())


def test_a_bus_may_fail_once_and_not_for_ever(tmp_path):
    """Reading /proc/self/mem at its beginning gives EIO, as a chip that does not answer does."""
    root = tree(tmp_path, ina3221())
    ((meter,), _) = hwmon.find(root)
    current = root / HWMON / "hwmon3" / "curr1_input"
    current.unlink()
    current.symlink_to("/proc/self/mem")

    for _ in range(sysfs.PATIENCE - 1):
        assert [1, 2] == [rail for rail, _ in values(meter.read())]
    with pytest.raises(OSError, match="Input/output error"):
        meter.read()


def test_a_chip_whose_driver_is_gone_raises(tmp_path):
    root = tree(tmp_path, ina3221())
    ((meter,), _) = hwmon.find(root)
    (root / HWMON / "hwmon3" / "in1_input").unlink()

    with pytest.raises(FileNotFoundError):
        meter.read()


def test_a_chip_that_says_no_interval_has_no_period(tmp_path):
    files = {k: v for k, v in ina3221().items() if not k.endswith("update_interval")}

    ((meter,), _) = hwmon.find(tree(tmp_path, files))

    assert {None} == {rail.update_period_s for rail in meter.rails}


def test_a_power_of_zero_is_a_value(tmp_path):
    root = tree(tmp_path, trees.INA226)
    ((meter,), _) = hwmon.find(root)

    (root / HWMON / "hwmon0" / "power1_input").write_text("0\n")

    assert [(0, 0.0)] == values(meter.read())


def test_a_file_that_is_no_number_raises_with_its_name(tmp_path):
    root = tree(tmp_path, trees.INA226)
    ((meter,), _) = hwmon.find(root)
    power = root / HWMON / "hwmon0" / "power1_input"
    power.write_text("???\n")

    with pytest.raises(ValueError, match=re.escape(f"{power} says '???\\n'")):
        meter.read()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (trees.ORIN_NX, {"VDD_IN": ("module", True, None, 4000.0), "VDD_CPU_GPU_CV": ("rail", False, None, 718.848),
                         "VDD_SOC": ("rail", False, None, 1001.6)}),
        # 19 V across 2 mOhm; VDDQ may hang on VIN_SYS_5V0, so it is not added
        (trees.AGX_ORIN, {"VDD_GPU_SOC": ("soc-rails", False, "module", 7600.0),
                          "VDD_CPU_CV": ("soc-rails", False, "module", 1900.0),
                          "VIN_SYS_5V0": ("soc-rails", False, "module", 4500.0),
                          "VDDQ_VDD2_1V8AO": ("rail", False, None, 400.0)}),
        (trees.AGX_XAVIER, {name: ("soc-rails", False, "module", mw) for name, mw in
                            (("GPU", 1900.0), ("CPU", 950.0), ("SOC", 1140.0), ("CV", 190.0), ("VDDRQ", 380.0),
                             ("SYS5V", 1500.0))}),
        (trees.NANO_JP4, {"POM_5V_IN": ("module", True, None, 2519.0), "POM_5V_GPU": ("rail", False, None, 202.0),
                          "POM_5V_CPU": ("rail", False, None, 811.0)}),
        (trees.TX2_JP4, {"VDD_IN": ("module", True, None, 4560.0), "VDD_DDR": ("rail", False, None, 1234.0)}),
        (trees.INA226, {"ina226-power1": ("rail", False, None, 4000.0)}),
        (trees.INA219, {"ina219-power1": ("rail", False, None, 4000.0)}),
        (trees.INA226_ADC, {"ina226-power2": ("rail", False, None, 4000.0)}),
        (trees.KV260, {"ina260-power1": ("rail", False, None, 5910.0)}),
        # in1 of the INA226 is its shunt here; and the output that is off, at 10 A and 0.156 V, gives nothing
        (trees.ZCU104, {"ina226-power1": ("rail", False, None, 12000.0), "pin": ("rail", False, None, 4250.0),
                        "pout1": ("rail", False, None, 4000.0), "pout3": ("rail", False, None, None)}),
    ],
    ids=["Orin NX", "AGX Orin", "AGX Xavier", "Nano", "TX2", "INA226", "INA219", "INA226 by IIO", "KV260", "ZCU104"],
)  # fmt: skip
def test_every_board_s_rails_have_their_scope_and_their_power_in_milliwatts(tmp_path, files, expected):
    meters, unreadable = find(tree(tmp_path, files))

    read = [(meter.rails[s.rail].name, s.value) for meter in meters for s in meter.read()]
    known = {rail.name: (rail.scope, rail.total, rail.adds) for rail in rails(meters)}
    assert expected == {name: (*about, pytest.approx(dict(read).get(name))) for name, about in known.items()}
    assert len(read) == len(dict(read)) and [] == unreadable


@pytest.mark.parametrize(
    ("files", "period_s", "averaging", "lsb", "offset_mw"),
    [
        (trees.ORIN_NX, 0.007, "none", 40.0, 80.0),  # one conversion: no memory, and a look now and then
        (ina3221(samples="1024\n"), 7.168, "iir", 40.0, 80.0),  # the driver still says 7 ms
        (trees.NANO_JP4, None, None, None, None),  # Linux 4.9 does not tell
        (trees.INA226, 0.035, "box", 6.25, 5.0),  # 25 x 2.5 uV across 10 mOhm at 5 V; 10 uV of offset
        (trees.INA219, None, None, 2.0, 5.0),  # 20 x 10 uV across 100 mOhm
        (trees.INA226_ADC, 0.0088, "box", 6.25, 5.0),
        (trees.KV260, None, None, 10.0, None),  # iio-hwmon: which file is the voltage is not certain
    ],
    ids=["Orin NX", "1024 averages", "Nano", "INA226", "INA219", "INA226 by IIO", "KV260"],
)
def test_what_is_known_of_a_sensor_s_memory_and_errors_comes_with_its_rail(
    tmp_path, files, period_s, averaging, lsb, offset_mw
):
    meters, _ = find(tree(tmp_path, files))

    rail = meters[0].rails[0]
    assert (period_s, averaging) == (pytest.approx(rail.update_period_s), rail.averaging)
    assert (lsb, offset_mw) == (pytest.approx(rail.lsb), pytest.approx(rail.offset_mw))


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [("5.9.16-xilinx", (1.0, "none")), ("4.19.0", (1.0, "none")), ("5.10.0", (None, None)), (None, (None, None))],
)
def test_old_kernels_give_the_values_of_a_pmbus_chip_for_a_second(tmp_path, kernel, expected):
    files = {"proc/sys/kernel/osrelease": f"{kernel}\n"} if kernel else {}
    meters, _ = find(tree(tmp_path, {**trees.ZCU104, **files}))

    known = {rail.name: (rail.update_period_s, rail.averaging) for rail in rails(meters)}
    assert expected == known["pin"] == known["pout1"]
    assert (None, None) == known["ina226-power1"]


def test_power_that_is_not_voltage_times_current_is_not_believed(tmp_path):
    """A calibration register that nobody set, or a driver that knows another shunt."""
    root = tree(tmp_path, {**trees.INA226, f"{HWMON}/hwmon0/power1_input": "400000\n"})

    path = str(root / HWMON / "hwmon0" / "power1_input")
    assert ([], [Unreadable("ina226", path, "it says 0.4 W for 5 V and 0.8 A")]) == hwmon.find(root)


def test_two_chips_of_a_kind_are_told_apart_by_bus_and_address(tmp_path):
    root = tree(tmp_path, {**trees.INA226, **{k.replace("hwmon0", "hwmon1"): v for k, v in trees.INA226.items()}})
    for number, place in ((0, "1-0040"), (1, "1-0041")):
        (root / "sys/devices" / place).mkdir(parents=True)
        (root / HWMON / f"hwmon{number}" / "device").symlink_to(root / "sys/devices" / place)

    meters, _ = find(root)

    assert ["ina226-power1@1-0040", "ina226-power1@1-0041"] == [rail.name for rail in rails(meters)]


def test_a_chip_that_the_kernel_only_pretends_is_a_stub(tmp_path):
    """A real driver on i2c-stub: its readings must not pass for measured ones."""
    root = tree(tmp_path, {**trees.ORIN_NX, "sys/devices/i2c-7/name": "SMBus stub driver\n"})
    (root / "sys/devices/i2c-7/7-0040").mkdir()
    (root / HWMON / "hwmon1" / "device").symlink_to(root / "sys/devices/i2c-7/7-0040")

    meters, _ = find(root)

    assert ["stub:ina3221@VDD_IN", "stub:ina3221@VDD_CPU_GPU_CV", "stub:ina3221@VDD_SOC"] == [
        rail.source for rail in rails(meters)
    ]


def test_on_a_virtual_board_every_meter_is_a_stub(tmp_path):
    meters, _ = find(tree(tmp_path, {**DESKTOP, **trees.INA226, "proc/device-tree/deploy,virtual": "pi4\0"}))

    assert {"stub"} == {rail.origin for rail in rails(meters)}


def test_a_chip_behind_iio_that_is_only_named_ina226_is_left_alone(tmp_path):
    """iio-hwmon names it after its device-tree node, and its in1 is the shunt, not the bus: 1000 times too small."""
    folder = f"{HWMON}/hwmon2"

    assert ([], []) == hwmon.find(
        tree(tmp_path, {f"{folder}/name": "ina226\n", f"{folder}/in1_input": "8\n", f"{folder}/curr1_input": "800\n"})
    )


def test_an_iio_chip_that_does_not_tell_its_unit_is_reported(tmp_path):
    files = {k: v for k, v in trees.INA226_ADC.items() if not k.endswith("power2_scale")}
    root = tree(tmp_path, files)

    path = str(root / "sys/bus/iio/devices/iio:device0/in_power2_raw")
    assert ([], [Unreadable("ina226", path, "nothing says what its unit is")]) == find(root)


# The Raspberry Pi 5


class Firmware:
    """Answers as the mailbox does: error in word 5, text from word 6."""

    def __init__(self, answer: str = trees.PMIC_ANSWER, error: int = 0) -> None:
        self.asked: list[str] = []
        self._answer, self._error = answer, error

    def open(self, path: Path) -> pi5.Ask:
        return self.ask

    def ask(self, command: str) -> str:
        message = bytearray(pi5.encode(command))
        size, request, tag, room, _, _ = struct.unpack_from("=6I", message)
        assert (len(message), 0, 0x30080, 4096) == (size, request, tag, room)
        self.asked.append(bytes(message[24:]).split(b"\0", 1)[0].decode())
        struct.pack_into("=I", message, 20, self._error)
        message[24 : 24 + len(self._answer) + 1] = self._answer.encode() + b"\0"
        return pi5.answer_of(bytes(message))


def test_a_pi_5_s_rails_are_paired_by_name_and_summed_to_soc_rails(tmp_path):
    """0.94674 A at 0.7203254 V is 681.96 mW.  EXT5V has no current: what it carries is not known."""
    firmware = Firmware()
    ((meter,), unreadable) = pi5.find(tree(tmp_path, trees.PI5), firmware.open)

    assert ["3V3_SYS", "3V7_WL_SW", "VDD_CORE"] == [rail.name for rail in meter.rails]
    assert {("pmic", "soc-rails", "soc-rails")} == {(rail.chip, rail.scope, rail.adds) for rail in meter.rails}
    assert [(0, pytest.approx(281.28, rel=1e-4)), (1, pytest.approx(21.708, rel=1e-4)),
            (2, pytest.approx(681.96, rel=1e-4))] == sorted(values(meter.read()))  # fmt: skip
    assert (["pmic_read_adc"] * 2, []) == (firmware.asked, unreadable)


@pytest.mark.parametrize(
    ("answer", "error", "reason"),
    [
        ("error=1 error_msg=\"Command not registered\"", 0,
         "the firmware answers error 0: 'error=1 error_msg=\"Command not registered\"'"),
        ("", 5, "the firmware answers error 5: ''"),
        ("EXT5V_V volt(24)=5.1V\n", 0, "pmic_read_adc tells of no rail"),
    ],
    ids=["old firmware", "error", "no rail"],
)  # fmt: skip
def test_a_firmware_that_knows_no_rails_is_reported_with_the_reason(tmp_path, answer, error, reason):
    root = tree(tmp_path, trees.PI5)

    assert ([], [Unreadable("pmic", str(root / "dev/vcio"), reason)]) == pi5.find(root, Firmware(answer, error).open)


def test_a_mailbox_that_may_not_be_asked_is_reported(tmp_path):
    """An ordinary file has no such ioctl; one that is not there has a reason of its own."""
    root = tree(tmp_path, trees.PI5)
    assert ([], [Unreadable("pmic", str(root / "dev/vcio"), "Inappropriate ioctl for device")]) == pi5.find(root)

    (root / "dev/vcio").unlink()
    assert ([], [Unreadable("pmic", "/dev/vcio", "is not there")]) == pi5.find(root)


def test_a_pi_4_has_no_such_chip(tmp_path):
    root = tree(tmp_path, {**trees.PI5, "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0"})

    assert ([], []) == pi5.find(root)


# INA228


class Chip:
    """An INA228's registers, as they are after it got power: 1052 us a conversion, SHUNT_CAL 4096."""

    def __init__(self, **registers: int) -> None:
        self.registers = {"config": 0, "adc": 0xFB68, "cal": 0x1000, "vbus": (25600 << 4), "energy": 0,
                          "maker": 0x5449, "device": 0x2281, **registers}  # fmt: skip

    def read(self, register: int, size: int) -> bytes:
        names = {0x00: "config", 0x01: "adc", 0x02: "cal", 0x05: "vbus", 0x09: "energy", 0x3E: "maker", 0x3F: "device"}
        return self.registers[names[register]].to_bytes(size, "big")


WIRED = [{"name": "vdd_5v", "chip": "ina228", "i2c_bus": 1, "i2c_address": 0x40, "shunt_mohm": 10}]


def test_an_ina228_s_accumulator_is_counted_in_microjoules_and_through_its_wrap():
    """
    From the data sheet's formulas: 4096 / (13107.2e6 x 10 mOhm) = 31.25 uA, and 16 x 3.2 times that is 1.6 mJ a count.
    Three conversions of 1052 us; 25,600 x 195.3125 uV is 5 V on the bus.
    """
    chip = Chip(energy=(1 << 40) - 1)
    meter = ina228.Ina228(chip, "vdd_5v", 10)

    (rail,) = meter.rails
    assert ("ina228", "energy_uj", pytest.approx(1600), pytest.approx(0.003156), "box", pytest.approx(0.5)) == (
        rail.chip, rail.quantity, rail.lsb, rail.update_period_s, rail.averaging, rail.offset_mw
    )  # fmt: skip
    first = meter.read()[0].value
    chip.registers["energy"] = 2
    assert pytest.approx(3 * 1600) == meter.read()[0].value - first


def test_an_ina228_in_its_narrow_range_counts_a_quarter():
    assert pytest.approx(400) == ina228.Ina228(Chip(config=0x10), "vdd_5v", 10).rails[0].lsb


@pytest.mark.parametrize(
    ("chip", "reason"),
    [
        (Chip(device=0x2381), "no INA228 (manufacturer 0x5449, device 0x2381)"),  # INA238 has no accumulator
        (Chip(adc=0x0B68), "it does not convert current and voltage continuously, or SHUNT_CAL is 0"),
        (Chip(cal=0), "it does not convert current and voltage continuously, or SHUNT_CAL is 0"),
    ],
    ids=["INA238", "shut down", "not calibrated"],
)
def test_what_is_no_counting_ina228_is_reported(tmp_path, chip, reason):
    expected = [Unreadable("ina228", f"{tmp_path / 'dev/i2c-1'} at 0x40", reason)]

    assert ([], expected) == ina228.find(tmp_path, WIRED, lambda root, bus, address: chip)


def test_a_bus_that_is_not_there_is_reported(tmp_path):
    meters, unreadable = find(tmp_path, WIRED)

    assert [] == meters
    assert [Unreadable("ina228", f"{tmp_path / 'dev/i2c-1'} at 0x40", "No such file or directory")] == unreadable


# Which are there


@pytest.mark.parametrize("name", ["amdgpu", "BAT0", "cpu_thermal", "rpi_volt"])
def test_what_feeds_no_board_is_no_meter(tmp_path, name):
    """A graphics card's own estimate and a battery have power files too."""
    root = tree(tmp_path, {f"{HWMON}/hwmon4/name": f"{name}\n", f"{HWMON}/hwmon4/power1_input": "4000000\n"})

    assert ([], []) == hwmon.find(root)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read a file of mode 0000; run the tests as another user")
def test_a_power_file_that_may_not_be_read_is_reported_with_the_reason(tmp_path):
    root = tree(tmp_path, {f"{HWMON}/hwmon0/name": "ina226\n", f"{HWMON}/hwmon0/power1_input": "4000000\n"})
    power = root / HWMON / "hwmon0" / "power1_input"
    power.chmod(0)

    assert ([], [Unreadable("ina226", str(power), "Permission denied")]) == hwmon.find(root)


def test_rails_are_numbered_through_all_meters(tmp_path):
    meters, unreadable = find(tree(tmp_path, {**DESKTOP, **ina3221()}))

    names = [rail.name for rail in rails(meters)]
    assert ["package-0", "dram:0", "VDD_IN", "VDD_CPU_GPU_CV", "channel3"] == names
    assert [] == unreadable


def test_a_machine_without_a_meter_has_none(tmp_path):
    assert ([], []) == find(tmp_path)


# The sampler


class Steady:
    """A meter of one rail that always gives 1000 mW."""

    rails = (Rail("bench", "none", "rail", "power_mw"),)
    period_s = 0.0

    def read(self) -> list[Sample]:
        return [Sample(time.monotonic_ns(), 0, 1000.0)]


class Collected:
    """What a sampler hands over."""

    def __init__(self) -> None:
        self.batches: list[list[Sample]] = []
        self.failures: list[str] = []
        self.failed = threading.Event()

    @property
    def samples(self) -> list[Sample]:
        return [sample for batch in self.batches for sample in batch]

    def deliver(self, samples: list[Sample]) -> None:
        self.batches.append(samples)

    def fail(self, text: str) -> None:
        self.failures.append(text)
        self.failed.set()


def test_the_time_between_two_samples_varies(tmp_path):
    """
    A fixed period aliases with the period of the load.  A wait never ends early, so with a fixed period no
    interval could be this much shorter, however busy the machine; drawn from 10 to 30 ms, three in ten are.
    """
    collected = Collected()
    running = Sampler([Steady()], 50, collected.deliver, collected.fail)
    time.sleep(0.9)
    running.stop()

    times = [sample.t_ns for sample in collected.samples]
    intervals_ms = [(after - before) / 1e6 for before, after in itertools.pairwise(times)]
    assert min(intervals_ms[:-1]) < 16
    assert max(intervals_ms[:-1]) > 24


def test_the_last_sample_is_taken_after_the_stop():
    """At one sample in 100 s nothing else could come: the end of a run must not be cut off."""
    collected = Collected()
    running = Sampler([Steady()], 0.01, collected.deliver, collected.fail)
    stopped = time.monotonic_ns()
    running.stop()

    assert collected.samples[-1].t_ns >= stopped
    assert [] == collected.failures


def test_samples_of_several_meters_carry_the_number_of_their_rail(tmp_path):
    meters, _ = find(tree(tmp_path, {**DESKTOP, **ina3221()}))
    collected = Collected()

    Sampler(meters, 100, collected.deliver, collected.fail).stop()

    expected = [(0, 5000000), (1, 700000), (2, 4000.0), (3, 718.848), (4, -40.064)]
    assert expected == values(collected.samples)[-5:]


@pytest.mark.parametrize("gone", [f"{PACKAGE}/energy_uj", f"{HWMON}/hwmon3/in1_input"], ids=["rapl", "ina3221"])
def test_a_meter_that_vanishes_is_reported_once_and_its_samples_are_kept(tmp_path, gone):
    root = tree(tmp_path, {**DESKTOP, **ina3221()})
    meters, _ = find(root)
    collected = Collected()
    running = Sampler(meters, 100, collected.deliver, collected.fail)
    time.sleep(0.1)
    (root / gone).unlink()
    assert collected.failed.wait(5)
    running.stop()

    assert [f"a meter stopped answering: [Errno 2] No such file or directory: '{root / gone}'"] == collected.failures
    assert (0, 5000000) in values(collected.samples)


def test_a_meter_that_talks_nonsense_is_reported(tmp_path):
    root = tree(tmp_path, {k: v for k, v in DESKTOP.items() if k.startswith(f"{PACKAGE}/")})
    meters, _ = find(root)
    (root / PACKAGE / "energy_uj").write_text("\n")
    collected = Collected()

    Sampler(meters, 100, collected.deliver, collected.fail).stop()

    path = root / PACKAGE / "energy_uj"
    assert [f"a meter stopped answering: {path} says '\\n'"] == collected.failures


def test_a_meter_is_read_no_more_often_than_it_allows():
    """The Pi 5's firmware: a question costs the board a millisecond."""

    class Slow(Steady):
        period_s = 100.0

    collected = Collected()
    running = Sampler([Slow(), Steady()], 200, collected.deliver, collected.fail)
    time.sleep(0.2)
    running.stop()

    counts = [sum(sample.rail == rail for sample in collected.samples) for rail in (0, 1)]
    assert 2 == counts[0] < counts[1]  # at the beginning and at the end


def test_meters_that_rest_are_not_read():
    collected = Collected()
    running = Sampler([Steady()], 500, collected.deliver, collected.fail)
    running.rest(True)
    time.sleep(0.05)  # for a turn that had begun
    before = running.stats()["turns"]
    time.sleep(0.1)
    assert before == running.stats()["turns"]

    running.rest(False)
    time.sleep(0.1)
    running.stop()
    assert before + 1 < running.stats()["turns"] == len(collected.samples)


def test_the_sampler_says_what_it_missed_and_what_it_cost():
    class Gappy(Steady):
        rails = (*Steady.rails, Rail("off", "none", "rail", "power_mw"))

    collected = Collected()
    running = Sampler([Gappy()], 200, collected.deliver, collected.fail)
    time.sleep(0.1)
    running.stop()

    stats = running.stats()
    assert [0, stats["turns"]] == stats["missing"]
    assert 0 < stats["cpu_share"] < 1 and 0 < stats["process_cpu_share"]
