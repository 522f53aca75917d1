"""
From bare to a bit-exact answer, over both transports: a board that nobody has prepared gets agent and runtime, and
answers there as stock LiteRT did here.

Virtual boards are booted cold, so that nothing of deploy's is on them.  A `System` is another C library and another
Python under QEMU's user-mode emulator, on this machine's kernel, behind a real sshd or a console on a line of 921,600
baud: QEMU's own UART takes the better part of an hour for LiteRT.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy import push, runtime
from deploy.boards import LOCAL, Board, load
from deploy.build import build
from deploy.bundle import Bundle
from deploy.errors import RuntimeMissing
from deploy.session import Session
from deploy.virtual import control, count, packages
from tests.conftest import GOLDEN, need_tool
from tests.console import Console
from tests.line import Line
from tests.sshd import Sshd
from tests.test_layers import HOME

pytestmark = [pytest.mark.qemu, pytest.mark.long]

CACHE = os.environ.get("DEPLOY_HIL_CACHE", str(HOME / ".cache"))
PYTHON = ["python3.11-minimal", "libpython3.11-stdlib", "libstdc++6"]
Open = Callable[..., Session]


@dataclass(frozen=True)
class System:
    """Of Debian, with what its Python and its C library say they are."""

    suite: str
    arch: str
    names: tuple[str, ...]
    python: str
    libc: str

    @property
    def emulator(self) -> tuple[str, str]:
        """Program, and a CPU of `count.CPUS`."""
        return {"arm64": ("qemu-aarch64", "a72"), "armhf": ("qemu-arm", "a9")}[self.arch]


SYSTEMS = {
    "debian-12-arm64": System("bookworm", "arm64", (*PYTHON,), "3.11.2", "glibc 2.36"),
    "debian-12-armhf": System("bookworm", "armhf", (*PYTHON, "python3-numpy"), "3.11.2", "glibc 2.36"),
    # The C library of Ubuntu 20.04 with the oldest Python that the agent runs on.
    "debian-11-arm64": System(
        "bullseye", "arm64", tuple(name.replace("3.11", "3.9") for name in PYTHON), "3.9.2", "glibc 2.31"
    ),
}
BARE_ARMHF = System("bookworm", "armhf", (*PYTHON,), "3.11.2", "glibc 2.36")


@pytest.fixture(autouse=True)
def shared_cache(private_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images, packages and wheels are fetched once for this user, and not for every test."""
    monkeypatch.setenv("XDG_CACHE_HOME", CACHE)


@pytest.fixture(scope="module")
def digits() -> Bundle:
    return build(str(GOLDEN / "digits_int8.tflite"), name="digits").bundle


def prove(session: Session, bundle: Bundle) -> None:
    """From bare to current: what runs there is what the lock has for such a board, and answers bit-exact."""
    with pytest.raises(RuntimeMissing):
        session.request("runtime.probe")

    there = runtime.ensure(session)
    pushed = push.push(session, bundle)

    assert pushed.verification is not None and pushed.verification.exact
    again = push.already(session, bundle)  # nothing more to do, with one round trip
    assert again is not None and again.was_current
    wanted = {line.replace("==", " ") for line in runtime.pinned(session.hello["identity"])}
    assert wanted and wanted <= {there["runtime"], f"numpy {there['numpy']}"}


# Virtual boards


@pytest.mark.parametrize("kind", ["pi4", "pynq-z2"])
def test_a_board_that_was_never_met_answers_bit_exact(kind: str, open_session: Open, digits: Bundle) -> None:
    need_tool("qemu-system-aarch64", "qemu-system-arm")
    need_tool("mksquashfs", "squashfs-tools")
    if kind == "pynq-z2":
        made = list((Path(CACHE) / "deploy/virtual/images").glob("armhf-*/image.json"))
        if not made:
            pytest.skip(f"needs an image that takes a quarter of an hour: `deploy virtual up {kind}`, once")
    control.up(kind, control.Options(cold=True), lambda text: None)
    try:
        session = open_session(load()[kind])
        prove(session, digits)
        session.close()
    finally:
        control.down(kind)


# Systems


@pytest.fixture(scope="module")
def python_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[System], str]]:
    """``python_of(system)``: a program that behaves as that system's python3, as far as an agent can tell."""
    made: dict[System, str] = {}

    def make(system: System) -> str:
        if system not in made:
            name, cpu = system.emulator
            emulator = need_tool(name, "qemu-user")
            need_tool("dpkg-deb", "dpkg")
            tree = tmp_path_factory.mktemp(f"{system.suite}-{system.arch}")
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("XDG_CACHE_HOME", CACHE)
                # The suite as it was released: of an old one, the security updates go before the packages do.
                patch.setenv("DEPLOY_DEBIAN_MIRROR", packages.mirrors()[0])
                packages.unpack(packages.fetch(system.arch, list(system.names), suite=system.suite), tree)
            for library in [*tree.glob("usr/lib/*/blas/lib*.so.3"), *tree.glob("usr/lib/*/lapack/lib*.so.3")]:
                (library.parent.parent / library.name).symlink_to(library)
            # LiteRT dies of what this machine's own says.
            (tree / "proc").mkdir()
            (tree / "proc" / "cpuinfo").write_text(count.cpuinfo(count.CPUS[cpu]))
            program = tree / "python3"
            real = tree / "usr/bin" / f"python{system.python.rpartition('.')[0]}"
            # The agent starts itself and its runner by the name that it was started by: -0.
            started = f'{emulator} -cpu {count.CPUS[cpu].model} -0 "$0" -L {tree} {real}'
            program.write_text(f'#!/bin/sh\nexport PYTHONHOME={tree}/usr\nexec {started} "$@"\n')
            program.chmod(0o755)
            made[system] = str(program)
        return made[system]

    yield make
    for program in made.values():
        shutil.rmtree(Path(program).parent)


@pytest.mark.parametrize(
    ("name", "link"),
    [
        ("debian-12-arm64", "ssh"),
        ("debian-12-arm64", "serial"),  # 22 MB, which takes minutes
        ("debian-12-armhf", "ssh"),
        ("debian-12-armhf", "serial"),
        ("debian-11-arm64", "ssh"),
    ],
)
def test_a_bare_system_gets_the_wheels_that_fit_it_and_answers_bit_exact(
    name: str, link: str, python_of: Callable[[System], str], private_home: Path, tmp_path: Path, open_session: Open,
    digits: Bundle,
) -> None:  # fmt: skip
    system = SYSTEMS[name]
    python = python_of(system)
    settings: dict[str, object] = {"kind": "ssh", "host": name, "timeout_s": 60}
    if link == "ssh":
        server = Sshd(tmp_path / "server", python)
        server.write_client_config(private_home, name)
        server.start()
        close = server.stop
    else:
        line = Line(baud=921_600)
        console = Console(line.board, tmp_path, python=python)
        settings = {"kind": "serial", "port": line.host, "user": "pi"}

        def close() -> None:
            console.close()
            line.close()

    try:
        session = open_session(Board.model_validate({"name": name, "kind": "generic", "transport": settings}))
        identity = session.hello["identity"]
        assert (system.python, system.libc) == (identity["python"], identity["libc"])
        prove(session, digits)
        session.close()
    finally:
        close()


def test_a_32_bit_arm_without_numpy_is_told_what_to_type(
    python_of: Callable[[System], str], tmp_path: Path, open_session: Open
) -> None:
    """Nobody publishes numpy for it; deploy brings tflite-runtime, and says what is left."""
    board = LOCAL.model_copy(update={"root": str(tmp_path / "board"), "python": python_of(BARE_ARMHF)})
    session = open_session(board)

    with pytest.raises(RuntimeMissing) as caught:
        runtime.ensure(session)

    assert "numpy" in str(caught.value) and "brought tflite-runtime==2.14.0" in str(caught.value)
    assert "`sudo apt install python3-numpy` there" == caught.value.hint
