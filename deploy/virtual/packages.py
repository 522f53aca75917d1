"""
Debian packages for another machine, without root: plain apt with folders of its own, and dpkg-deb.

apt checks the signatures and hashes.  Nothing is installed and no package's script runs.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from deploy.errors import ToolMissing, VirtualError
from deploy.paths import cache_dir

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
SUITE = "bookworm"
SYSTEM = ":/usr/sbin:/sbin"  # mke2fs lies there, where a user's PATH does not lead


@dataclass(frozen=True)
class Package:
    """A package that was fetched."""

    name: str
    version: str
    path: Path


def fetch(arch: str, names: list[str], leave_out: str = r"$^", suite: str = SUITE) -> list[Package]:
    """
    Fetch packages and all they depend on; what is in the cache is checked and kept.

    Args:
        arch: Debian's name of the machine; ``amd64`` for tools that run here.
        names: of packages.
        leave_out: pattern of names that are not fetched even where something depends on them.

    Returns:
        In an order in which each follows what it depends on, as far as there is one.

    Raises:
        ToolMissing: apt or dpkg-deb is not here.
        VirtualError: a package does not exist, or the mirror cannot be reached.
    """
    need("apt-get", "apt")
    need("dpkg-deb", "dpkg")
    options = _options(arch, suite)
    folder = cache_dir() / "virtual" / "debs"
    folder.mkdir(parents=True, exist_ok=True)
    lists = cache_dir() / "virtual" / "apt" / f"{suite}-{arch}" / "updated"
    if not lists.exists():
        _update(options, folder, lists.parent)
        lists.touch()
    try:
        resolved = _resolve(options, names, leave_out, folder)
        _download(options, resolved, folder)
    except VirtualError:
        _update(options, folder, lists.parent)  # the mirror has newer ones than the lists of last time
        resolved = _resolve(options, names, leave_out, folder)
        _download(options, resolved, folder)
    return [Package(name, version, folder / file) for name, version, file in resolved]


def unpack(packages: list[Package], root: Path) -> None:
    """
    Unpack into one tree; /bin, /sbin and /lib are links into /usr, as Debian has had them since 12.

    Raises:
        VirtualError: a package is damaged, or the disk full.
    """
    for name in ("bin", "sbin", "lib"):
        (root / "usr" / name).mkdir(parents=True, exist_ok=True)
        if not (root / name).is_symlink():
            (root / name).symlink_to(f"usr/{name}")
    left_out = [f"--exclude=./usr/share/{name}" for name in ("doc", "man", "locale", "info", "lintian", "bug")]

    def one(package: Package) -> str:
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package.path], stdout=subprocess.PIPE) as source:
            command = ["tar", "x", "-C", str(root), "--no-same-owner", "--keep-directory-symlink", *left_out]
            done = subprocess.run(command, stdin=source.stdout, capture_output=True, text=True, check=False)
        if done.returncode or source.returncode:
            return f"{package.path.name} cannot be unpacked: {done.stderr.strip()}"
        return ""

    with ThreadPoolExecutor(os.cpu_count() or 2) as pool:
        for problem in pool.map(one, packages):
            if problem:
                raise VirtualError(problem)


def need(tool: str, package: str) -> str:
    """
    Path of a program.

    Raises:
        ToolMissing: it is not here; with the command that installs it.
    """
    path = shutil.which(tool, path=os.environ.get("PATH", "") + SYSTEM)
    if path is None:
        raise ToolMissing(f"{tool} is not here", f"`sudo apt install {package}`", tool=tool)
    return path


def _options(arch: str, suite: str) -> list[str]:
    base = cache_dir() / "virtual" / "apt" / f"{suite}-{arch}"
    for name in ("lists/partial", "cache/archives/partial", "preferences.d"):
        (base / name).mkdir(parents=True, exist_ok=True)
    (base / "status").touch()
    site, security = mirrors()
    signed = f"[arch={arch} signed-by={KEYRING}]"
    sources = f"deb {signed} {site} {suite} main\n"
    if security:
        sources += f"deb {signed} {security} {suite}-security main\n"
    (base / "sources.list").write_text(sources)
    settings = {
        "APT::Architecture": arch,
        "APT::Architectures": arch,
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "",
        "Acquire::Languages": "none",
        "Debug::NoLocking": "1",
        "Dir::Cache": base / "cache",
        "Dir::Etc::sourcelist": base / "sources.list",
        "Dir::Etc::sourceparts": base / "preferences.d",
        "Dir::Etc::preferencesparts": base / "preferences.d",
        "Dir::State": base,
        "Dir::State::lists": base / "lists",
        "Dir::State::status": base / "status",
    }
    return [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]


def mirrors() -> tuple[str, str | None]:
    """
    Where Debian's packages, and its security updates, come from: ``$DEPLOY_DEBIAN_MIRROR`` (one or two addresses), or
    what this machine's own apt uses.

    Raises:
        VirtualError: this machine is no Debian, and none is named.
    """
    if chosen := os.environ.get("DEPLOY_DEBIAN_MIRROR", "").split():
        return chosen[0], chosen[1] if len(chosen) > 1 else None
    done = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(ORIGIN) $(CODENAME) $(REPO_URI)", "Created-By: Packages"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    found: dict[bool, str] = {}
    for line in done.stdout.splitlines():
        origin, _, rest = line.partition(" ")
        codename, _, address = rest.partition(" ")
        if origin == "Debian":
            found.setdefault("security" in codename, address)
    if False not in found or not KEYRING.exists():
        raise VirtualError(
            "no mirror of Debian's packages is known here",
            "$DEPLOY_DEBIAN_MIRROR names one; `sudo apt install debian-archive-keyring` brings the keys",
        )
    return found[False], found.get(True)


def _resolve(options: list[str], names: list[str], leave_out: str, folder: Path) -> list[tuple[str, str, str]]:
    told = _apt([*options, "-y", "--print-uris", "install", *names], folder)
    resolved = []
    for file in re.findall(r"^'[^']+' (\S+\.deb) \d+ ", told, re.MULTILINE):
        name, version, _ = file.split("_")
        if not re.fullmatch(leave_out, name):
            resolved.append((name, version.replace("%3a", ":"), file))
    return resolved


def _update(options: list[str], folder: Path, state: Path) -> None:
    try:
        _apt([*options, "update"], folder)
    except VirtualError:
        # A mirror amid its own update fails for one of its parts; the packages may be there all the same.
        if not any((state / "lists").glob("*_Packages*")):
            raise


def _download(options: list[str], resolved: list[tuple[str, str, str]], folder: Path) -> None:
    # apt looks at what is there already, and fetches it again when its hash is wrong.
    _apt([*options, "download", *(f"{name}={version}" for name, version, _ in resolved)], folder)


def _apt(words: list[str], folder: Path) -> str:
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(
        ["apt-get", "-qq", *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        errors = [line[3:] for line in done.stderr.splitlines() if line.startswith("E: ")]
        raise VirtualError(
            f"apt cannot fetch packages: {(errors or [done.stderr.strip() or 'no reason given'])[-1]}",
            "the first image of a kind needs the network; $DEPLOY_DEBIAN_MIRROR names another mirror",
        )
    return done.stdout
