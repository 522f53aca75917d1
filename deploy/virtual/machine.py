"""What QEMU is told for a board: its command line, its device tree, and the part of the initramfs that is its own."""

from __future__ import annotations

import functools
import os
import re
import shlex
import struct
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from deploy.errors import ToolMissing, VirtualError
from deploy.paths import cache_dir, held
from deploy.virtual import fdt, initramfs, memory, packages
from deploy.virtual.extras import Extras, File
from deploy.virtual.image import Image
from deploy.virtual.kinds import Kind

RECIPES = {"virt": 3, "xilinx-zynq-a9": 5}  # part of a warm snapshot's name; raise it when the machine changes
OLDEST_QEMU = (7, 0)
DISK_MIB = 2048  # mostly /home; a sparse file, and a power of two, as cards are
ROOT_MIB = 256  # of a card
# A Zynq's DRAM, and from 0x4000_0000 on what stands for the programmable logic's registers.
ZYNQ_MIB = 1025
CONTROL_ADDRESS = ("10.0.2.100", 4242)  # in the guest's network, where a machine has no control port
_PROGRAMS = {"arm64": "qemu-system-aarch64", "armhf": "qemu-system-arm"}


@dataclass(frozen=True)
class Qemu:
    """The emulator for an architecture."""

    program: str
    version: str


@dataclass(frozen=True)
class Keys:
    """
    Files of the key that logs in to virtual boards, and of the key that they show; made once for a cache.
    """

    login: Path
    host: Path

    def public(self, path: Path) -> str:
        return path.with_suffix(".pub").read_text()


@functools.cache
def qemu(arch: str) -> Qemu:
    """
    Raises:
        ToolMissing: it is not here, or too old.
    """
    program = packages.need(_PROGRAMS[arch], "qemu-system-arm")
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    match = re.search(r"version (\d+)\.(\d+)", done.stdout)
    if done.returncode or not match:
        raise ToolMissing(f"{program} does not start: {(done.stderr or done.stdout).strip()[-200:]}")
    if (int(match[1]), int(match[2])) < OLDEST_QEMU:
        raise ToolMissing(
            f"{program} is {match[1]}.{match[2]}; virtual boards need {OLDEST_QEMU[0]}.{OLDEST_QEMU[1]} or newer",
            "`sudo apt install qemu-system-arm` (Debian 12 has 7.2)",
        )
    return Qemu(program, f"{match[1]}.{match[2]}")


def keys() -> Keys:
    """The keys, made if they are not there."""
    folder = cache_dir() / "virtual" / "keys"
    with held(folder):
        found = Keys(folder / "login", folder / "host")
        for path in (found.login, found.host):
            if not path.is_file() or not path.with_suffix(".pub").is_file():
                _make_key(path)
    return found


def _make_key(path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    key = Ed25519PrivateKey.generate()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    path.with_suffix(".pub").write_bytes(public + f" deploy virtual {path.name}\n".encode())


def device_tree(kind: Kind, image: Image, cores: int, memory_mib: int, serial_number: str, extras: Extras) -> bytes:
    """
    The tree that the board boots with: the image's, or QEMU's own for this machine, with the real board's identity.

    Raises:
        VirtualError: QEMU does not give one.
    """
    blob = image.tree.read_bytes() if image.tree else _own_tree(kind, cores, memory_mib)
    root, reserved = fdt.parse(blob)
    identify(root, kind, serial_number)
    if extras.edit_tree:
        extras.edit_tree(root)
    return fdt.build(root, reserved)


def _own_tree(kind: Kind, cores: int, memory_mib: int) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tree.dtb"
        words = [qemu(kind.arch).program, "-M", f"{kind.machine},dumpdtb={path}", *_cpu(kind, cores, memory_mib)]
        done = subprocess.run([*words, "-nodefaults", "-display", "none"], capture_output=True, text=True, check=False)
        if not path.is_file():
            raise VirtualError(f"QEMU gives no device tree for {kind.cpu}: {done.stderr.strip()[-200:]}")
        return path.read_bytes()


def identify(root: fdt.Node, kind: Kind, serial_number: str) -> None:
    """Write the real board's identity into the tree."""
    root.set_text("model", kind.model)
    root.set_text("compatible", *kind.compatible)
    root.set_text("serial-number", serial_number)
    root.set_text("deploy,emulator", emulator(kind))  # the agent's facts, and so every record, say it


def emulator(kind: Kind) -> str:
    """As boards and records say it: ``qemu 7.2 cortex-a72``."""
    return f"qemu {qemu(kind.arch).version} {kind.cpu}"


def _cpu(kind: Kind, cores: int, memory_mib: int) -> list[str]:
    return ["-cpu", kind.cpu, "-smp", str(cores), "-m", str(memory_mib)]


def command(kind: Kind, image: Image, cores: int, memory_mib: int, port: int) -> list[str]:
    """
    QEMU's command line, for the board's folder as working directory.

    ``{qmp}``, ``{console}``, ``{uart}`` and ``{control}`` stand for descriptors of connected sockets.
    """
    words = [qemu(kind.arch).program]
    # Without a limit the translated code takes a quarter of the host's memory.
    words += ["-accel", "tcg,thread=multi,tb-size=32", "-nodefaults", "-display", "none", "-no-reboot"]
    words += ["-kernel", str(image.kernel), "-initrd", "initrd", "-dtb", "tree.dtb"]
    words += ["-chardev", "socket,id=qmp,fd={qmp}", "-mon", "chardev=qmp,mode=control"]
    words += [
        "-chardev",
        "socket,id=console,fd={console},logfile=console.log,logappend=on",
        "-serial",
        "chardev:console",
    ]
    words += ["-chardev", "socket,id=uart,fd={uart}", "-chardev", "socket,id=control,fd={control}"]
    network = f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22"
    append = f"console={consoles(kind)[0]} loglevel=4 panic=1"
    disk = "file=data.qcow2,format=qcow2,discard=unmap"
    if kind.machine == "xilinx-zynq-a9":
        words += ["-M", "xilinx-zynq-a9,memory-backend=ram", "-smp", str(cores), "-m", f"{ZYNQ_MIB}M"]
        words += ["-object", f"memory-backend-file,id=ram,size={ZYNQ_MIB}M,mem-path={memory.FILE},share=on"]
        words += ["-qtest", "unix:qtest,server=on,wait=off", "-qtest-log", "none"]
        words += ["-append", f"{append} mem={memory_mib}M maxcpus={cores} uio_pdrv_genirq.of_id=generic-uio"]
        words += ["-serial", "chardev:uart", "-drive", f"if=sd,{disk}"]
        forward = "-".join([":".join(["tcp", *map(str, CONTROL_ADDRESS)]), "chardev:control"])
        return [*words, "-nic", f"{network},guestfwd={forward},model=cadence_gem"]
    words += ["-M", kind.machine, *_cpu(kind, cores, memory_mib), "-append", append]
    words += ["-drive", f"if=none,id=root,file={_escaped(image.root)},format=raw,readonly=on"]
    words += ["-device", "virtio-blk-pci,drive=root,romfile="]
    words += ["-drive", f"if=none,id=data,{disk}", "-device", "virtio-blk-pci,drive=data,romfile="]
    words += ["-netdev", network, "-device", "virtio-net-pci,netdev=net,romfile="]
    words += ["-device", "virtio-rng-pci", "-device", "pci-serial,chardev=uart"]
    words += ["-device", "virtio-serial-pci", "-device", "virtserialport,chardev=control,name=deploy.control"]
    return words


def consoles(kind: Kind) -> tuple[str, str]:
    """What Linux calls the console, and the second UART."""
    return ("ttyPS0", "ttyPS1") if kind.machine == "xilinx-zynq-a9" else ("ttyAMA0", "ttyS0")


def seed(kind: Kind, image: Image, name: str, extras: Extras, password: str = "") -> bytes:
    """
    The board's own part of the initramfs: who it is, its keys, and its extras.

    Args:
        password: of the console, as in /etc/shadow; empty: none is asked for.
    """
    console, uart = consoles(kind)
    card = kind.machine == "xilinx-zynq-a9"
    settings = {
        "NAME": name,
        "LOGIN": kind.user,
        "PASSWORD": password,
        "ROOT": "/dev/mmcblk0p1" if card else "/dev/vda",
        "DATA": "/dev/mmcblk0p2" if card else "/dev/vdb",
        "CONSOLE": console,
        "UART": uart,
        "CONTROL": " ".join(map(str, CONTROL_ADDRESS)) if card else "",
        "CLOCK": str(int(time.time())),
    }
    here = keys()
    files = {
        "seed/settings": File("".join(f"{key}={shlex.quote(value)}\n" for key, value in settings.items()).encode()),
        "seed/tree/etc/ssh/ssh_host_ed25519_key": File(here.host.read_bytes(), 0o600),
        "seed/tree/etc/ssh/ssh_host_ed25519_key.pub": File(here.public(here.host).encode()),
        "seed/tree/etc/ssh/authorized_keys": File(here.public(here.login).encode()),
    }
    files |= {f"seed/tree/{path.lstrip('/')}": file for path, file in extras.files.items()}
    files |= {f"seed/start/{number:02}": File(text.encode() + b"\n") for number, text in enumerate(extras.start)}
    if extras.modules:
        base = f"seed/tree/usr/lib/modules/{image.kernel_release}"
        added = {f"extra/{path.name}": path for path in sorted(extras.modules.glob("*.ko"))}
        files |= {f"{base}/{path}": File(module.read_bytes()) for path, module in added.items()}
        files[f"{base}/modules.dep"] = File(initramfs.modules_dep({**image.modules(), **added}).encode())
    return initramfs.archive(files)


def make_disk(kind: Kind, image: Image, path: Path) -> None:
    """
    The board's disk, qcow2: an empty file system for /home; on a Zynq, which has but a card, the root before it.

    Raises:
        ToolMissing, VirtualError
    """
    mke2fs, qemu_img = packages.need("mke2fs", "e2fsprogs"), packages.need("qemu-img", "qemu-utils")
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        raw = Path(folder) / "disk"
        with raw.open("wb") as file:
            file.truncate(DISK_MIB << 20)
        # Nothing reserved for root: the board's user must be able to fill it.
        make = [mke2fs, "-q", "-t", "ext4", "-m", "0", "-E"]
        options = "lazy_itable_init=1,lazy_journal_init=1"
        if kind.machine == "xilinx-zynq-a9":
            with raw.open("r+b") as file:
                file.write(_partition_table((1, ROOT_MIB), (1 + ROOT_MIB, DISK_MIB - 1 - ROOT_MIB)))
                file.seek(1 << 20)
                file.write(image.root.read_bytes())
            home_mib = DISK_MIB - 1 - ROOT_MIB
            _run([*make, f"{options},offset={(1 + ROOT_MIB) << 20}", str(raw), f"{home_mib}M"])
        else:
            _run([*make, options, str(raw)])
        _run([qemu_img, "convert", "-f", "raw", "-O", "qcow2", str(raw), str(path)])


def _partition_table(*partitions: tuple[int, int]) -> bytes:
    """An MBR with partitions of type 0x83, each from, and of so many, MiB."""
    entries = [struct.pack("<8BII", 0, 0, 0, 0, 0x83, 0, 0, 0, at << 11, size << 11) for at, size in partitions]
    return bytes(446) + b"".join(entries).ljust(64, b"\0") + b"\x55\xaa"


def _run(words: list[str]) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise VirtualError(f"{Path(words[0]).name} fails: {done.stderr.strip()[-200:]}")


def _escaped(path: Path) -> str:
    return str(path).replace(",", ",,")  # a comma ends an option of QEMU's


def host_key() -> str:
    """What virtual boards show, as a known_hosts file has it."""
    here = keys()
    return " ".join(here.public(here.host).split()[:2])
