from __future__ import annotations

from pathlib import Path

import pytest

from devices import facts


def tree(root: Path, files: dict[str, str]) -> Path:
    """Files below `root`, as the kernel would show them."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


CPU = "sys/devices/system/cpu"
THERMAL = "sys/class/thermal"

RASPBERRY_PI_4 = {
    "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
    "proc/device-tree/compatible": "raspberrypi,4-model-b\0brcm,bcm2711\0",
    "proc/cpuinfo": (
        "processor\t: 0\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd evtstrm crc32 cpuid\n"
        "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: 0xd08\nCPU revision\t: 3\n\n"
        "processor\t: 1\nFeatures\t: fp asimd evtstrm crc32 cpuid\nCPU part\t: 0xd08\n\n"
        "Hardware\t: BCM2835\nRevision\t: c03114\nSerial\t\t: 10000000abcdef01\n"
        "Model\t\t: Raspberry Pi 4 Model B Rev 1.4\n"
    ),
    "proc/meminfo": "MemTotal:        3884360 kB\nMemFree:         2901234 kB\n",
    "proc/loadavg": "0.00 0.01 0.05 1/123 4567\n",
    "etc/os-release": 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nNAME="Debian GNU/Linux"\n',
    f"{CPU}/cpu0/cpufreq/scaling_governor": "ondemand\n",
    f"{CPU}/cpu0/cpufreq/scaling_cur_freq": "600000\n",
    f"{CPU}/cpu0/cpufreq/scaling_max_freq": "1800000\n",
    f"{CPU}/cpu1/cpufreq/scaling_governor": "ondemand\n",
    f"{CPU}/cpu1/cpufreq/scaling_cur_freq": "1800000\n",
    f"{CPU}/cpu1/cpufreq/scaling_max_freq": "1800000\n",
    f"{THERMAL}/thermal_zone0/type": "cpu-thermal\n",
    f"{THERMAL}/thermal_zone0/temp": "47712\n",
    "sys/devices/platform/soc/soc:firmware/get_throttled": "50005\n",
}
JETSON = {
    "proc/device-tree/model": "NVIDIA Jetson Orin NX Engineering Reference Developer Kit\0",
    "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0000\0nvidia,p3767-0000\0nvidia,tegra234\0",
    "proc/cpuinfo": (
        "processor\t: 0\nmodel name\t: ARMv8 Processor rev 1 (v8l)\n"
        "Features\t: fp asimd asimdhp asimddp\nCPU implementer\t: 0x41\nCPU part\t: 0xd42\n"
    ),
    f"{THERMAL}/thermal_zone0/type": "cpu-thermal\n",
    f"{THERMAL}/thermal_zone0/temp": "51312\n",
    f"{THERMAL}/thermal_zone1/type": "gpu-thermal\n",
    f"{THERMAL}/thermal_zone1/temp": "",
    f"{THERMAL}/thermal_zone2/type": "cpu-thermal\n",
    f"{THERMAL}/thermal_zone2/temp": "-500\n",
}
X86 = {
    "sys/class/dmi/id/product_name": "NUC12WSKi5\n",
    "proc/cpuinfo": (
        "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel\t\t: 154\n"
        "model name\t: 12th Gen Intel(R) Core(TM) i5-1240P\nflags\t\t: fpu sse2 avx2 avx_vnni\n"
    ),
    "proc/meminfo": "MemTotal:       16115872 kB\n",
    "etc/os-release": "NAME=Alpine\nPRETTY_NAME=Alpine\n",
}

# Of the machine that runs the tests, whatever the tree says.
OF_PYTHON = {"machine", "kernel", "hostname", "python", "implementation", "pointer_bits", "libc", "cpus"}


def told(found: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in found.items() if key not in OF_PYTHON}


def test_a_raspberry_pi_4_says_what_it_is(tmp_path):
    """Its device-tree strings end in a null byte, and its CPU has a number where x86 has a name."""
    assert {
        "model": "Raspberry Pi 4 Model B Rev 1.4",
        "compatible": ["raspberrypi,4-model-b", "brcm,bcm2711"],
        "cpu": "Raspberry Pi 4 Model B Rev 1.4",
        "cpu_implementer": "0x41",
        "cpu_part": "0xd08",
        "cpu_features": ["asimd"],
        "serial": "10000000abcdef01",
        "memory_bytes": 3884360 * 1024,
        "os": "Debian GNU/Linux 12 (bookworm)",
    } == told(facts.identity(tree(tmp_path, RASPBERRY_PI_4)))


def test_a_raspberry_pi_4_tells_clocks_heat_and_throttling(tmp_path):
    """A load of 0.00 is a value, and so is the flag word: both stay."""
    assert {
        "governors": ["ondemand"],
        "cpu_khz": [600000, 1800000],
        "cpu_max_khz": [1800000, 1800000],
        "temperatures_mc": {"0:cpu-thermal": 47712},
        "throttled": 0x50005,
        "load_1min": 0.0,
    } == facts.state(tree(tmp_path, RASPBERRY_PI_4))


@pytest.mark.parametrize(("text", "flags"), [("0\n", 0), ("0x50000\n", 0x50000), ("e0008", 0xE0008)])
def test_the_throttle_flags_are_hexadecimal(tmp_path, text, flags):
    root = tree(tmp_path, {"sys/devices/platform/soc/soc:firmware/get_throttled": text})

    assert {"throttled": flags} == facts.state(root)


def test_a_jetson_says_what_it_is(tmp_path):
    assert {
        "model": "NVIDIA Jetson Orin NX Engineering Reference Developer Kit",
        "compatible": ["nvidia,p3768-0000+p3767-0000", "nvidia,p3767-0000", "nvidia,tegra234"],
        "cpu": "ARMv8 Processor rev 1 (v8l)",
        "cpu_implementer": "0x41",
        "cpu_part": "0xd42",
        "cpu_features": ["asimd", "asimddp", "asimdhp"],
    } == told(facts.identity(tree(tmp_path, JETSON)))


def test_thermal_zones_of_one_type_are_told_apart_and_one_without_a_value_is_left_out(tmp_path):
    """A Jetson's gpu-thermal cannot be read while the GPU is off; below zero is a temperature like any other."""
    assert {"temperatures_mc": {"0:cpu-thermal": 51312, "2:cpu-thermal": -500}} == facts.state(tree(tmp_path, JETSON))


def test_an_x86_machine_says_what_it_is(tmp_path):
    assert {
        "model": "NUC12WSKi5",
        "cpu": "12th Gen Intel(R) Core(TM) i5-1240P",
        "cpu_features": ["avx2", "avx_vnni"],
        "memory_bytes": 16115872 * 1024,
        "os": "Alpine",
    } == told(facts.identity(tree(tmp_path, X86)))


def test_what_a_board_does_not_offer_is_absent_and_never_zero(tmp_path):
    assert {} == told(facts.identity(tmp_path))
    assert {} == facts.state(tmp_path)


def test_files_that_hold_no_numbers_are_as_good_as_absent(tmp_path):
    root = tree(
        tmp_path,
        {
            "sys/devices/platform/soc/soc:firmware/get_throttled": "not supported\n",
            f"{CPU}/cpu0/cpufreq/scaling_cur_freq": "<unknown>\n",
            f"{CPU}/cpu0/cpufreq/scaling_governor": "\n",
            f"{THERMAL}/thermal_zone0/temp": "n/a\n",
            "proc/loadavg": "",
            "proc/meminfo": "MemTotal: many kB\n",
        },
    )

    assert {} == facts.state(root)
    assert {} == told(facts.identity(root))


def test_files_that_cannot_be_read_are_as_good_as_absent(tmp_path):
    """A directory in the file's place fails for root too, which may read a file of mode 0000."""
    for name in ("proc/device-tree/model", "proc/cpuinfo", "proc/loadavg", f"{THERMAL}/thermal_zone0/temp"):
        (tmp_path / name).mkdir(parents=True)

    assert {} == told(facts.identity(tmp_path))
    assert {} == facts.state(tmp_path)


def test_free_space_is_that_of_the_folder_that_was_asked_about(tmp_path):
    free = facts.state(tmp_path, disk=tmp_path)["free_bytes"]

    assert type(free) is int
    assert free > 0


def test_this_machine_answers_too():
    """The tests above prove the reading; this one that the real /proc and /sys do not upset it."""
    assert {"machine", "kernel", "python", "implementation", "pointer_bits"} <= set(facts.identity())
    assert facts.state()["load_1min"] >= 0


def test_what_cools_and_what_slows_down_is_read(tmp_path: Path) -> None:
    state = facts.state(
        tree(
            tmp_path,
            {
                f"{THERMAL}/cooling_device0/type": "pwm-fan\n",
                f"{THERMAL}/cooling_device0/cur_state": "2\n",
                f"{THERMAL}/cooling_device1/type": "cpufreq-cpu0\n",
                f"{THERMAL}/cooling_device1/cur_state": "0\n",
                f"{THERMAL}/cooling_device2/type": "gone\n",
                f"{CPU}/cpu0/thermal_throttle/core_throttle_count": "3\n",
                f"{CPU}/isolated": "2-3\n",
                f"{CPU}/online": "0-3\n",
                f"{CPU}/cpu0/cpufreq/scaling_min_freq": "600000\n",
                "sys/class/hwmon/hwmon1/name": "soctherm_oc\n",
                "sys/class/hwmon/hwmon1/oc2_event_cnt": "41\n",
                "sys/class/hwmon/hwmon2/name": "rpi_volt\n",
                "sys/class/hwmon/hwmon2/in0_lcrit_alarm": "1\n",
            },
        )
    )

    assert {"0:pwm-fan": 2, "1:cpufreq-cpu0": 0} == state["cooling"]
    assert {"cpu0/core_throttle_count": 3, "hwmon/oc2_event_cnt": 41} == state["throttle_counts"]
    assert ["rpi_volt/in0_lcrit_alarm"] == state["undervoltage_alarms"]
    assert ("0-3", "2-3", [600000]) == (state["cpus_online"], state["cpus_isolated"], state["cpu_min_khz"])


@pytest.mark.parametrize(
    ("cpuinfo", "emulated"),
    [
        ("model name\t: QEMU TCG CPU version 2.5+\n", True),
        ("model name\t: QEMU Virtual CPU version 2.5+\n", True),
        ("CPU implementer\t: 0x00\nCPU part\t: 0x051\n", True),  # QEMU's `-cpu max`
        ("CPU implementer\t: 0x41\nCPU part\t: 0xd08\n", False),
        ("model name\t: AMD EPYC\n", False),
        ("", False),
    ],
)
def test_an_emulated_cpu_says_what_it_is(tmp_path: Path, cpuinfo: str, emulated: bool) -> None:
    assert emulated == facts.identity(tree(tmp_path, {"proc/cpuinfo": cpuinfo})).get("emulated", False)


def test_a_virtual_board_says_so_and_has_the_serial_number_of_its_tree(tmp_path: Path) -> None:
    """Its processor is a model of a real one, and mainline's cpuinfo for arm64 has no serial number."""
    cpuinfo = "".join(
        line + "\n" for line in RASPBERRY_PI_4["proc/cpuinfo"].splitlines() if not line.startswith("Serial")
    )
    files = {
        "proc/cpuinfo": cpuinfo,
        "proc/device-tree/deploy,emulator": "qemu 7.2 cortex-a72\0",
        "proc/device-tree/serial-number": "10000000a6d222b6\0",
    }

    found = facts.identity(tree(tmp_path, {**RASPBERRY_PI_4, **files}))

    assert (True, "qemu 7.2 cortex-a72", "10000000a6d222b6") == (
        found["emulated"], found["emulator"], found["serial"]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("brought", "fits"),
    [
        (("numpy", "ai_edge_litert"), True),
        (("numpy", "tflite_runtime"), True),
        (("ai_edge_litert",), False),
        (("tflite_runtime",), True),  # 32-bit Arm, whose numpy is the board's own: that of this machine
        (("numpy",), False),
    ],
)
def test_a_runtime_that_was_brought_is_whole_or_missing(tmp_path: Path, brought: tuple[str, ...], fits: bool) -> None:
    for name in brought:
        (tmp_path / name).mkdir()

    assert fits == facts.has_runtime(tmp_path)
