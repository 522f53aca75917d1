"""
The power sensors of virtual boards: which chips and rails each kind has, and how they come into the guest.

The drivers are the kernel's own and see what they would see on the real board: the chip, its labels, its shunts.  The
chips are none: `guest/power.c` moves their registers after the load of the guest's CPUs.  Idle and busy power are
chosen by hand, from what such boards are known to take, and prove nothing about any of them.  Whatever is read is
marked: the agent finds `MARK` in the device tree, and calls its meters stubs.
"""

from __future__ import annotations

import functools
import hashlib
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.errors import VirtualError
from deploy.paths import cache_dir, whole
from deploy.virtual import modules, packages
from deploy.virtual.cache import used
from deploy.virtual.fdt import Node

if TYPE_CHECKING:
    from deploy.virtual.extras import Extras
    from deploy.virtual.image import Image
    from deploy.virtual.kinds import Kind

MARK = "deploy,virtual"  # property of the tree's root, with the kind's name; no real board has it
RATE_HZ = 20  # of the load model; the kernel counts a CPU's time in ticks of 10 ms
SOURCE = Path(__file__).with_name("guest") / "power.c"
PROGRAM = "/usr/local/sbin/power"
_BUS_NODE = "i2c-stub"


@dataclass(frozen=True)
class Rail:
    """
    A supply line: a constant voltage, and a power between `idle_mw` and `busy_mw` after the load of the CPUs.

    Attributes:
        label: as the real board's device tree has it; "" where the chip's driver knows no labels.
    """

    label: str
    mv: int
    idle_mw: int
    busy_mw: int
    shunt_uohm: int = 0


@dataclass(frozen=True)
class Chip:
    """
    Attributes:
        name: as `power.c` and the kernel's driver call it.
        compatible: of its node in the device tree; "" for the one that is no I2C chip.
        driver: the module.
    """

    name: str
    compatible: str
    driver: str
    address: int
    rails: tuple[Rail, ...]


@dataclass(frozen=True)
class Sensors:
    """The chips of a kind, on bus number `bus`."""

    bus: int
    chips: tuple[Chip, ...]


def _ina3221(*rails: Rail) -> Chip:
    return Chip("ina3221", "ti,ina3221", "ina3221", 0x40, rails)


SENSORS: dict[str, Sensors] = {
    # p3767, as mainline's tegra234-p3767.dtsi has it.
    "jetson-orin": Sensors(
        1,
        (
            _ina3221(
                Rail("VDD_IN", 5000, 4200, 9600, 5000),
                Rail("VDD_CPU_GPU_CV", 5000, 720, 4400, 5000),
                Rail("VDD_SOC", 5000, 1360, 1840, 5000),
            ),
        ),
    ),
    # The labels of NVIDIA's own driver, which is an IIO one; mainline's tree of the Nano has no sensor.
    "jetson-nano": Sensors(
        6,
        (
            _ina3221(
                Rail("POM_5V_IN", 5000, 1880, 5200, 5000),
                Rail("POM_5V_GPU", 5000, 40, 40, 5000),
                Rail("POM_5V_CPU", 5000, 360, 3000, 5000),
            ),
        ),
    ),
    # Pi 3 and 4 measure nothing: a meter on the header, between supply and board.
    "pi3": Sensors(1, (Chip("ina238", "ti,ina238", "ina238", 0x45, (Rail("", 5100, 1900, 4900, 10000),)),)),
    "pi4": Sensors(1, (Chip("ina226", "ti,ina226", "ina2xx", 0x40, (Rail("", 5100, 2700, 6400, 10000),)),)),
    "pi5": Sensors(1, (Chip("pmic", "", "vcio", 0, (Rail("", 5150, 2100, 6800),)),)),
    # Of the ZCU104's regulators, the programmable logic's and processor's 0.85 V.
    "zcu104": Sensors(3, (Chip("irps5401", "infineon,irps5401", "irps5401", 0x43, (Rail("", 850, 1500, 3000),)),)),
}


def extras(kind: Kind, image: Image, note: Callable[[str], None] = lambda text: None) -> Extras:
    """
    What a board of `kind` gets so that it has power sensors; without them if they cannot be made here, which is said.
    """
    from deploy.virtual.extras import Extras, File

    sensors = SENSORS.get(kind.name)
    bare = functools.partial(edit_tree, kind_name=kind.name, sensors=None)
    if sensors is None:
        return Extras(edit_tree=bare)
    try:
        folder = modules.build(image, note)
        program = build_power(image.arch)
    except VirtualError as error:
        missing = f"no power sensors: {error.message}" + (f"; {error.hint}" if error.hint else "")
        return Extras(edit_tree=bare, missing=(missing,))
    return Extras(
        modules=folder,
        files={PROGRAM: File(program.read_bytes(), 0o755)},
        start=(start_command(sensors),),
        edit_tree=functools.partial(edit_tree, kind_name=kind.name, sensors=sensors),
    )


def edit_tree(root: Node, kind_name: str, sensors: Sensors | None) -> None:
    """Mark the tree as a virtual board's, and write its sensors into it, as the real board's has them."""
    root.set_text(MARK, kind_name)
    wired = [chip for chip in sensors.chips if chip.compatible] if sensors else []
    if not sensors or not wired:
        return
    root.at("aliases").set_text(f"i2c{sensors.bus}", f"/{_BUS_NODE}")
    bus = root.at(_BUS_NODE)
    bus.set_text("compatible", modules.BUS)
    bus.set_cells("#address-cells", 1)
    bus.set_cells("#size-cells", 0)
    for chip in wired:
        node = bus.at(f"power-sensor@{chip.address:x}")
        node.set_text("compatible", chip.compatible)
        node.set_cells("reg", chip.address)
        if chip.name == "ina3221":
            node.set_cells("#address-cells", 1)
            node.set_cells("#size-cells", 0)
            for channel, rail in enumerate(chip.rails):
                supply = node.at(f"input@{channel}")
                supply.set_cells("reg", channel)
                supply.set_text("label", rail.label)
                supply.set_cells("shunt-resistor-micro-ohms", rail.shunt_uohm)
        elif chip.rails[0].shunt_uohm:
            node.set_cells("shunt-resistor", chip.rails[0].shunt_uohm)


def described(sensors: Sensors) -> list[str]:
    """The rails as `power` is given them: chip:bus:address:channel:shunt:mv:idle:busy."""
    return [
        f"{chip.name}:{sensors.bus}:{chip.address:#x}:{channel}:{rail.shunt_uohm}:{rail.mv}:{rail.idle_mw}:{rail.busy_mw}"
        for chip in sensors.chips
        for channel, rail in enumerate(chip.rails)
    ]


def start_command(sensors: Sensors) -> str:
    """What the guest runs as root: the bus, then the chips' registers, then the drivers that look at them."""
    rails = " ".join(described(sensors))
    wired = [chip for chip in sensors.chips if chip.compatible]
    steps = []
    if wired:
        banks = "".join(_banks(chip) for chip in wired)
        addresses = ",".join(f"{chip.address:#x}" for chip in wired)
        steps += ["modprobe i2c-dev", f"modprobe i2c-stub chip_addr={addresses}{banks}"]
        steps += [f"{PROGRAM} once {rails}", *(f"modprobe {chip.driver}" for chip in wired)]
        steps += [f"chmod 666 /dev/i2c-{sensors.bus}"]  # so that the board's user may play a trace
    if len(wired) < len(sensors.chips):
        # On a Raspberry Pi its users are in the group that may ask the firmware.
        steps += [
            "modprobe vcio",
            "chmod 666 /sys/module/vcio/parameters/*",
            "chgrp video /dev/vcio",
            ". /run/board/settings",
        ]
        steps += ['sed -i "s/^video:.*:$/&$LOGIN/" /etc/group', f"{PROGRAM} once {rails}"]
    # The labels are in the device tree alone; here they make it another start, and another warm snapshot.
    labels = " ".join(rail.label for chip in sensors.chips for rail in chip.rails)
    background = f"setsid {PROGRAM} load {RATE_HZ} {rails} > /dev/null 2>&1 < /dev/null &"
    return " && ".join(steps) + f" || exit 1\n{background}\n# {labels}"


def _banks(chip: Chip) -> str:
    # PMBus chips have a page for each output, chosen by register 0.
    return " bank_reg=0 bank_mask=7 bank_start=1 bank_end=0xf0" if chip.name == "irps5401" else ""


def build_power(arch: str) -> Path:
    """
    `power.c` for the guest, linked statically, from the cache or made now.

    Raises:
        ToolMissing: the cross compiler.
        VirtualError: it refuses.
    """
    prefix, package = {
        "arm64": ("aarch64-linux-gnu-", "gcc-aarch64-linux-gnu"),
        "armhf": ("arm-linux-gnueabihf-", "gcc-arm-linux-gnueabihf"),
    }[arch]
    key = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    built = cache_dir() / "virtual" / f"power-{arch}-{key}"
    if built.is_file():
        used(built)
        return built
    compiler = packages.need(f"{prefix}gcc", package)
    built.parent.mkdir(parents=True, exist_ok=True)
    with whole(built) as staging:
        done = subprocess.run(
            [compiler, "-std=gnu11", "-O2", "-s", "-static", "-o", str(staging), str(SOURCE), "-lm"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[0]
            raise VirtualError(f"power.c does not compile: {reason}")
    return built
