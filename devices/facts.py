"""
Facts about the board that belong to every run: what it is, how fast its clocks are, how hot it is.

Everything is read from the kernel's own files below an injectable root; what a board does not offer is absent
from the answer, never zero.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from devices.meters import sysfs

_ROOT = Path("/")


def identity(root: Path = _ROOT) -> dict[str, Any]:
    """What does not change while the board is up: model, CPU, memory, kernel, Python."""
    uname = os.uname()
    libc, libc_version = platform.libc_ver()
    found: dict[str, Any] = {
        "machine": uname.machine,
        "kernel": f"{uname.sysname} {uname.release}",
        "hostname": uname.nodename,
        "python": platform.python_version(),
        "implementation": sys.implementation.name,
        "pointer_bits": 64 if sys.maxsize > 2**32 else 32,
        "libc": f"{libc} {libc_version}".strip() or None,
        "cpus": os.cpu_count(),
        # A null byte ends device-tree strings.
        "model": sysfs.text(root / "proc/device-tree/model") or sysfs.text(root / "sys/class/dmi/id/product_name"),
        "compatible": (sysfs.text(root / "proc/device-tree/compatible") or "").split("\0"),
        "memory_bytes": _memory(root),
        "os": _os_release(root),
        "emulator": sysfs.text(root / "proc/device-tree/deploy,emulator"),
        **_cpu(root),
    }
    # 32-bit Arm repeats the device tree's in cpuinfo, or zeros where there is none.
    listed = found["serial"] if (found["serial"] or "").strip("0") else None
    found["serial"] = sysfs.text(root / "proc/device-tree/serial-number") or listed
    # Arm keeps implementer 0 for software; QEMU's own models say what they are.  A model of a real CPU hides it, so a
    # virtual board says it in its device tree.
    qemu = re.search(r"QEMU (TCG|Virtual)", found["cpu"] or "")
    if found["emulator"] or found["cpu_implementer"] == "0x00" or qemu:
        found["emulated"] = True
    return {key: value for key, value in found.items() if value not in (None, "", [], [""])}


def state(root: Path = _ROOT, disk: Path | None = None) -> dict[str, Any]:
    """What may change during a run: clocks, governors, temperatures, throttling, load, free space."""
    cpufreq = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq"))
    found: dict[str, Any] = {
        "governors": sorted({g for g in (sysfs.text(c / "scaling_governor") for c in cpufreq) if g}),
        "cpu_khz": [f for f in (sysfs.integer(c / "scaling_cur_freq") for c in cpufreq) if f is not None],
        "cpu_min_khz": [f for f in (sysfs.integer(c / "scaling_min_freq") for c in cpufreq) if f is not None],
        "cpu_max_khz": [f for f in (sysfs.integer(c / "scaling_max_freq") for c in cpufreq) if f is not None],
        "cpus_online": sysfs.text(root / "sys/devices/system/cpu/online"),
        "cpus_isolated": sysfs.text(root / "sys/devices/system/cpu/isolated"),
        "temperatures_mc": _thermal(root, "thermal_zone", "temp"),
        # How hard each works, 0 is not at all: fans, and what slows the CPU down.
        "cooling": _thermal(root, "cooling_device", "cur_state"),
        "throttled": _throttled(root),
        "throttle_counts": _throttle_counts(root),
        "undervoltage_alarms": _undervoltage(root),
        "load_1min": _load(root),
        "free_bytes": shutil.disk_usage(disk).free if disk else None,
    }
    return {key: value for key, value in found.items() if value not in (None, "", [], {})}


def _cpu(root: Path) -> dict[str, Any]:
    """x86 names the CPU; Arm gives implementer and part, which the host can look up."""
    text = sysfs.text(root / "proc/cpuinfo") or ""
    values: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        values.setdefault(key.strip(), value.strip())
    flags = (values.get("flags") or values.get("Features") or "").split()
    interesting = {
        "avx2", "avx512f", "avx512_vnni", "avx512_vpopcntdq", "avx_vnni",
        "neon", "asimd", "asimddp", "asimdhp", "i8mm", "sve", "sve2", "vfpv4",
    }  # fmt: skip
    return {
        "cpu": values.get("model name") or values.get("Model"),
        "cpu_implementer": values.get("CPU implementer"),
        "cpu_part": values.get("CPU part"),
        "cpu_features": sorted(interesting.intersection(flags)),
        "serial": values.get("Serial"),
    }


def _memory(root: Path) -> int | None:
    match = re.search(r"^MemTotal:\s+(\d+) kB", sysfs.text(root / "proc/meminfo") or "", re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def _os_release(root: Path) -> str | None:
    match = re.search(r'^PRETTY_NAME="?([^"\n]+)', sysfs.text(root / "etc/os-release") or "", re.MULTILINE)
    return match[1] if match else None


def _thermal(root: Path, kind: str, file: str) -> dict[str, int]:
    """What each device of a kind says in `file`, under its number and its type, as boards have several of one type."""
    found = {}
    for device in sorted((root / "sys/class/thermal").glob(f"{kind}*")):
        value = sysfs.integer(device / file)
        if value is not None:
            found[f"{device.name.removeprefix(kind)}:{sysfs.text(device / 'type')}"] = value
    return found


def _throttled(root: Path) -> int | None:
    """
    The Raspberry Pi's flags: bits 0 under-voltage, 1 frequency capped, 2 throttled, 3 soft limit; 16 to 19 the
    same, since boot.  From the firmware driver's sysfs file, where the kernel has it.
    """
    text = sysfs.text(root / "sys/devices/platform/soc/soc:firmware/get_throttled")
    try:
        return int(text, 16) if text else None
    except ValueError:
        return None


def _throttle_counts(root: Path) -> dict[str, int]:
    """How often hardware slowed something down since boot: x86 cores and packages, Tegra's over-current events."""
    paths = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/*_throttle_count"))
    paths += sorted((root / "sys/class/hwmon").glob("hwmon*/oc*_event_cnt"))
    counts = ((path, sysfs.integer(path)) for path in paths)
    return {f"{path.parts[-3]}/{path.name}": count for path, count in counts if count is not None}


def _undervoltage(root: Path) -> list[str]:
    """Sensors that report too low a supply just now (rpi_volt, polled by the kernel every 2 s)."""
    alarms = sorted((root / "sys/class/hwmon").glob("hwmon*/in*_lcrit_alarm"))
    return [f"{sysfs.text(path.parent / 'name')}/{path.name}" for path in alarms if sysfs.integer(path) == 1]


def _load(root: Path) -> float | None:
    text = sysfs.text(root / "proc/loadavg")
    return float(text.split()[0]) if text else None


def has_runtime(folder: Path | None) -> bool:
    """
    Whether numpy and LiteRT lie where the runner would look for them; nothing is imported.

    Args:
        folder: with the runtime that deploy brought; None if it brought none.
    """
    if folder is None:
        return _installed("numpy") and (_installed("ai_edge_litert") or _installed("tflite_runtime"))
    if (folder / "tflite_runtime").is_dir():  # for 32-bit Arm, whose numpy is the board's own
        return (folder / "numpy").is_dir() or _installed("numpy")
    return (folder / "numpy").is_dir() and (folder / "ai_edge_litert").is_dir()


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False
