"""
The image that the boards of one architecture share: kernel, initramfs, and a root file system that is only read.

Made without root from Debian's own packages, in the cache, once; what made it is part of its name, and what it consists
of is written down beside it with hashes.  A damaged one is noticed before it is used, and made anew.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.errors import VirtualError
from deploy.paths import cache_dir, held
from deploy.virtual import initramfs, packages
from deploy.virtual import kernel as kernels
from deploy.virtual.cache import used
from deploy.virtual.extras import File

RECIPE = 1  # part of the image's name; raise it when this file changes what is made
BOARD = Path(__file__).with_name("board")  # what runs in the guest

PACKAGES = [
    "base-files", "base-passwd", "bash", "busybox-static", "coreutils", "dash", "diffutils", "findutils", "grep",
    "gzip", "hostname", "libstdc++6", "login", "mount", "openssh-client", "openssh-server", "passwd", "procps",
    "python3", "sed", "tar", "util-linux",
]  # fmt: skip
KERNELS = {"arm64": "linux-image-arm64"}  # of Debian's own; for others, kernel.py builds one
MORE = {"armhf": ["python3-numpy"]}  # nobody publishes wheels of it; PYNQ's own image has it, too

# Needed by what the packages do when they are installed, which nobody does here.
LEFT_OUT = (
    r"(lib)?perl.*|lib.*-perl|usrmerge|initramfs-tools.*|cpio|klibc-utils|libklibc|linux-base|udev|kmod|(lib)?debconf.*"
    r"|ucf|sensible-utils|runit-helper|init-system-helpers|adduser|dpkg|libgdbm.*|libdb5.3|mawk|media-types"
    r"|linux-image-arm64|e2fsprogs|logsave"
)
BOOT_MODULES = [
    "virtio_pci",
    "virtio_blk",
    "squashfs",
    "overlay",
    "crc32c_generic",
    "ext4",
    "virtio_net",
    "virtio_console",
    "virtio_rng",
]
MORE_MODULES = ["i2c-dev", "i2c-smbus", "i2c-mux", "regmap-i2c", "industrialio", "uio", "uio_pdrv_genirq", "loop"]

Note = Callable[[str], None]


@dataclass(frozen=True)
class Image:
    """
    Attributes:
        folder: with the files below.
        arch: Debian's name: arm64, armhf.
        kernel_release: as `uname -r` in the guest says.
        key: SHA-256 of the image's files; another image has another one.
    """

    folder: Path
    arch: str
    kernel_release: str
    key: str

    @property
    def kernel(self) -> Path:
        return self.folder / "kernel"

    @property
    def initrd(self) -> Path:
        return self.folder / "initrd"

    @property
    def root(self) -> Path:
        return self.folder / "root.squashfs"

    @property
    def tree(self) -> Path | None:
        """The device tree, where QEMU has none of its own for the machine."""
        path = self.folder / "tree.dtb"
        return path if path.is_file() else None

    def modules(self) -> dict[str, Path]:
        """The kernel's modules that lie in the root file system: path below /lib/modules/<release> -> copy here."""
        base = self.folder / "modules"
        return {str(path.relative_to(base)): path for path in sorted(base.rglob("*.ko"))}


def ensure(arch: str, note: Note) -> Image:
    """
    The image for an architecture, from the cache or made now.

    Args:
        note: told in a few words what takes long.

    Raises:
        ToolMissing: with the command that installs it.
        VirtualError: a package cannot be had, or the disk is full.
    """
    folder = cache_dir() / "virtual" / "images" / f"{arch}-{_recipe(arch)[:12]}"
    with held(folder):
        if folder.is_dir():
            try:
                found = read(folder, arch)
                used(folder)
                return found
            except (OSError, ValueError, KeyError) as error:
                note(f"the image is damaged ({error}): making it anew")
                shutil.rmtree(folder, ignore_errors=True)
        for tool, package in (("mksquashfs", "squashfs-tools"), ("tar", "tar")):
            packages.need(tool, package)
        folder.parent.mkdir(parents=True, exist_ok=True)
        for left in folder.parent.glob(f".{folder.name}.*"):  # by one that was killed
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
            made = Path(scratch) / "image"
            made.mkdir()
            try:
                _make(arch, made, Path(scratch), note)
            except OSError as error:
                raise VirtualError(f"no image can be made: {error.strerror}: {folder.parent}") from None
            made.rename(folder)
        return read(folder, arch)


def _recipe(arch: str) -> str:
    parts: list[object] = [RECIPE, arch, packages.SUITE, PACKAGES, MORE.get(arch), LEFT_OUT, BOOT_MODULES, MORE_MODULES]
    scripts = [path.read_text() for path in sorted(BOARD.iterdir())]
    return hashlib.sha256(json.dumps([parts, scripts]).encode()).hexdigest()


def read(folder: Path, arch: str) -> Image:
    """
    Raises:
        OSError, ValueError, KeyError: it is damaged.
    """
    described = json.loads((folder / "image.json").read_text())
    for name, sha256 in described["files"].items():
        if digest(folder / name) != sha256:
            raise ValueError(f"{name} has another hash")
    key = hashlib.sha256(json.dumps(described["files"], sort_keys=True).encode()).hexdigest()
    return Image(folder, arch, described["kernel_release"], key)


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _make(arch: str, made: Path, scratch: Path, note: Note) -> None:
    note(f"fetching Debian's packages for {arch}")
    kernel = [KERNELS[arch]] if arch in KERNELS else []
    fetched = packages.fetch(arch, [*PACKAGES, *MORE.get(arch, []), *kernel], LEFT_OUT)
    note("unpacking them")
    root = scratch / "root"
    root.mkdir()
    packages.unpack([package for package in fetched if not package.name.startswith("linux-image-")], root)
    files = ["kernel", "initrd", "root.squashfs"]
    if arch in KERNELS:
        kernel_root = scratch / "kernel"
        kernel_root.mkdir()
        packages.unpack([package for package in fetched if package.name.startswith("linux-image-")], kernel_root)
        (modules_root,) = (kernel_root / "lib" / "modules").iterdir()
        release = modules_root.name
        shutil.copyfile(kernel_root / "boot" / f"vmlinuz-{release}", made / "kernel")
        there = {initramfs.module_name(path): path for path in modules_root.rglob("*.ko")}
        chosen = initramfs.closure([*BOOT_MODULES, *MORE_MODULES], there)
    else:
        own = kernels.ensure(note)
        modules_root, release = own.folder / "modules", own.release
        for name in ("kernel", "tree.dtb"):
            shutil.copyfile(own.folder / name, made / name)
        files.append("tree.dtb")
        there = {initramfs.module_name(path): path for path in modules_root.rglob("*.ko")}
        chosen = initramfs.closure(there, there)
    for path in chosen:
        copy = made / "modules" / path.relative_to(modules_root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    (made / "initrd").write_bytes(_initrd(root, initramfs.closure(BOOT_MODULES, there)))
    _finish(root, release, {str(path.relative_to(modules_root)): path for path in chosen})
    note("packing the root file system")
    _squash(root, made / "root.squashfs")
    described: dict[str, Any] = {
        "kernel_release": release,
        "files": {name: digest(made / name) for name in files},
        "packages": {package.name: package.version for package in fetched},
    }
    (made / "image.json").write_text(json.dumps(described, indent=1) + "\n")


def _initrd(root: Path, modules: list[Path]) -> bytes:
    files = {
        "init": File((BOARD / "init").read_bytes(), 0o755),
        "bin/busybox": File((root / "bin/busybox").read_bytes(), 0o755),
        "modules/order": File("".join(path.name + "\n" for path in modules).encode()),
    }
    files |= {f"modules/{path.name}": File(path.read_bytes()) for path in modules}
    return initramfs.archive(files)


def _finish(root: Path, release: str, modules: dict[str, Path]) -> None:
    """What the packages' scripts would do, as far as a board needs it."""
    for name in ("proc", "sys", "dev", "run", "tmp", "home", "root", "mnt", "opt", "srv", "var/tmp", "var/log", "etc"):
        (root / name).mkdir(parents=True, exist_ok=True)
    shutil.rmtree(root / "boot", ignore_errors=True)
    for name, target in (("bin/sh", "dash"), ("sbin/modprobe", "../bin/busybox"), ("bin/awk", "busybox")):
        (root / name).unlink(missing_ok=True)
        (root / name).symlink_to(target)
    for name in ("passwd", "group"):
        shutil.copyfile(root / f"usr/share/base-passwd/{name}.master", root / f"etc/{name}")
    passwd = (root / "etc/passwd").read_text()
    passwd = re.sub(r"^root:[^:]*:(.*):[^:]*$", r"root:x:\1:/bin/bash", passwd, flags=re.MULTILINE)
    (root / "etc/passwd").write_text(passwd + "sshd:x:105:65534::/run/sshd:/usr/sbin/nologin\n")
    (root / "etc/shadow").write_text("root:*:19000:0:99999:7:::\nsshd:*:19000::::::\n")
    (root / "etc/shadow").chmod(0o600)
    (root / "etc/ssh/sshd_config").write_text((BOARD / "sshd_config").read_text())
    for name in ("login", "other"):
        (root / "etc/pam.d" / name).write_text((BOARD / "pam").read_text())
    (root / "etc/issue").write_text("Debian GNU/Linux 12 \\n \\l\n\n")
    for name in ("board-init", "board-control"):
        shutil.copyfile(BOARD / name, root / "sbin" / name)
        (root / "sbin" / name).chmod(0o755)
    for library in ("blas", "lapack"):  # what update-alternatives would link
        for folder in root.glob(f"usr/lib/*/{library}"):
            (folder.parent / f"lib{library}.so.3").symlink_to(f"{library}/lib{library}.so.3")
    base = root / "usr/lib/modules" / release
    for name, path in modules.items():
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, base / name)
    base.mkdir(parents=True, exist_ok=True)
    (base / "modules.dep").write_text(initramfs.modules_dep(modules))
    _compile(root)


def _compile(root: Path) -> None:
    """Python's own modules, for the Python there; only the same version can.  Without it the guest starts slower."""
    (folder,) = root.glob("usr/lib/python3.[0-9]*")
    version = folder.name.removeprefix("python")
    same = f"{sys.version_info.major}.{sys.version_info.minor}" == version
    python = sys.executable if same else shutil.which(f"python{version}")
    if python:
        subprocess.run(
            [python, "-m", "compileall", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash", "-s", root, folder,
             *root.glob("usr/lib/python3/dist-packages")],
            capture_output=True, check=False,
        )  # fmt: skip


def _squash(root: Path, out: Path) -> None:
    (root / "usr/bin/su").chmod(0o4755)
    command = [
        "mksquashfs",
        str(root),
        str(out),
        "-comp",
        "lz4",
        "-all-root",
        "-noappend",
        "-no-xattrs",
        "-no-progress",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise VirtualError(f"mksquashfs fails: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
