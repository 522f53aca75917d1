from __future__ import annotations

import itertools
import os
import threading
import time

import pytest

from devices.meters import hwmon, powercap
from devices.meters.find import find
from devices.protocol.meter import Rail, Sample, Unreadable
from devices.protocol.sampling import Sampler, rails
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
        Rail("package-0", "rapl", "soc-rails", "energy_uj", 0.001, 1.0),
        Rail("dram:0", "rapl", "soc-rails", "energy_uj", 0.001, 1.0),
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


def test_an_ina3221_gives_bus_voltage_times_current_of_its_three_channels(tmp_path):
    """It has no power file.  7 ms times 4 averages make 28 ms; 40 uV across 5 mOhm at 5 V make steps of 40 mW."""
    ((meter,), _) = hwmon.find(tree(tmp_path, ina3221()))

    assert [
        Rail("VDD_IN", "ina3221", "module", "power_mw", 0.028, 40.0, total=True),
        Rail("VDD_CPU_GPU_CV", "ina3221", "rail", "power_mw", 0.028, pytest.approx(39.936)),
        Rail("channel3", "ina3221", "rail", "power_mw", 0.028, None),
    ] == meter.rails
    assert [(0, 4000.0), (1, 718.848), (2, -40.064)] == values(meter.read())


def test_a_channel_that_is_switched_off_is_no_rail(tmp_path):
    """AGX Orin has three of four switched off; their files are there all the same."""
    ((meter,), _) = hwmon.find(tree(tmp_path, ina3221(in2_enable="0\n")))

    assert ["VDD_IN", "channel3"] == [rail.name for rail in meter.rails]
    assert [(0, 4000.0), (1, -40.064)] == values(meter.read())


def test_a_channel_that_gives_nothing_just_now_is_left_out_of_that_reading(tmp_path):
    """The kernel answers ENODATA; here the read fails as the file is a directory."""
    root = tree(tmp_path, ina3221())
    ((meter,), _) = hwmon.find(root)
    current = root / HWMON / "hwmon3" / "curr2_input"
    current.unlink()
    current.mkdir()

    assert [(0, 4000.0), (2, -40.064)] == values(meter.read())

    current.rmdir()
    current.write_text("100\n")
    assert [(0, 4000.0), (1, 499.2), (2, -40.064)] == values(meter.read())


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


def test_an_ina226_gives_its_power_file_in_milliwatts(tmp_path):
    """The kernel's unit is uW; a power of zero is a value."""
    folder = f"{HWMON}/hwmon0"
    root = tree(
        tmp_path,
        {
            f"{folder}/name": "ina226\n",
            f"{folder}/in0_input": "8\n",
            f"{folder}/in1_input": "5000\n",
            f"{folder}/curr1_input": "800\n",
            f"{folder}/power1_input": "4000250\n",
            f"{folder}/update_interval": "35\n",
        },
    )
    ((meter,), _) = hwmon.find(root)

    assert [Rail("ina226-power1", "ina226", "rail", "power_mw", 0.035)] == meter.rails
    assert [(0, 4000.25)] == values(meter.read())

    (root / folder / "power1_input").write_text("0\n")
    assert [(0, 0.0)] == values(meter.read())


def test_every_output_of_a_power_regulator_is_a_rail_with_its_label(tmp_path):
    folder = f"{HWMON}/hwmon1"
    files = {"name": "irps5401\n", "power1_input": "4250000\n", "power1_label": "pin\n", "power2_input": "4000000\n"}

    ((meter,), _) = hwmon.find(tree(tmp_path, {f"{folder}/{name}": text for name, text in files.items()}))

    assert ["pin", "irps5401-power2"] == [rail.name for rail in meter.rails]
    assert [(0, 4250.0), (1, 4000.0)] == values(meter.read())


def test_a_chip_behind_iio_that_is_only_named_ina226_is_left_alone(tmp_path):
    """iio-hwmon names it after its device-tree node, and its in1 is the shunt, not the bus: 1000 times too small."""
    folder = f"{HWMON}/hwmon2"

    assert ([], []) == hwmon.find(
        tree(tmp_path, {f"{folder}/name": "ina226\n", f"{folder}/in1_input": "8\n", f"{folder}/curr1_input": "800\n"})
    )


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

    assert ["a meter stopped answering: invalid literal for int() with base 10: '\\n'"] == collected.failures
