"""`deploy virtual`"""

from __future__ import annotations

import os
import shlex
import sys
from typing import Any

import click

from deploy.cli import common

FAULTS = {
    "power-cut": "it is off at once; what was not yet on its disk is lost",
    "power-on": "it boots, with the disk as it is",
    "hang": "its processors stop",
    "resume": "they go on",
    "reboot": "orderly",
    "disk-full": "nothing fits into /home any more",
    "disk-free": "it does again",
    "clock": "clock=+3600, clock=-60, clock=0 (1970), clock=now",
    "net-cut": "its network cable is out",
    "net-restore": "and in again",
    "noise": "noise=1e-3 damages a byte in 1,000 on both serial lines; noise=0 none",
    "unplug": "its serial cables are out",
    "plug": "and in again",
}


def _complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    from deploy.virtual.registry import places

    return [place.name for place in places() if place.name.startswith(incomplete)]


def _complete_kind(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    from deploy.virtual.kinds import KINDS

    return [name for name in KINDS if name.startswith(incomplete)]


name_argument = click.argument("name", shell_complete=_complete)


@click.group(
    "virtual",
    help="""
    Boards that QEMU plays, on 127.0.0.1: real Linux, sshd and consoles, the identity of the real board, and times that
    mean nothing.  One that is up is a board like any other for every verb.

    Kinds: pi3, pi4, pi5, jetson-nano, jetson-orin, pynq-z2.
    """
    + common.example("deploy virtual up pi4", "deploy push --board pi4 net.bundle", "deploy virtual down pi4"),
)
def command() -> None:
    pass


@command.command(
    "up",
    help="""
    Bring a board of KIND up.  The first of all builds an image from Debian's packages, without root; the first of a
    kind boots once for a warm snapshot with numpy and LiteRT on it, and all others start from that.

    It stands in the registry under its name (SSH), and as NAME.console and NAME.uart (serial).
    """
    + common.example("deploy virtual up pi4", "deploy virtual up jetson-orin --name orin-b --line errors=1e-4"),
)
@click.argument("kind", shell_complete=_complete_kind)
@click.option("--name", help="Its name in the registry [the kind].")
@click.option("--cold", is_flag=True, help="Boot it, bare: python3 alone, as a board that nobody has prepared.")
@click.option("--cores", type=click.IntRange(1, 8), help="Of its processor [2; 1 on pynq-z2].")
@click.option("--memory", "memory_mib", type=click.IntRange(128, 16384), metavar="MIB", help="[256; 480 on pynq-z2]")
@click.option("--port", type=click.IntRange(1, 65535), help="Of 127.0.0.1 for SSH [any that is free].")
@click.option(
    "--line", metavar="KEY=VALUE,...",
    help="Serial lines: baud=115200, latency=0.001 (s), errors=1e-4 (of a byte), seed=1 [fast, without errors].",
)  # fmt: skip
@common.json_option
@click.pass_obj
def up(
    boards_file: str | None,
    kind: str,
    name: str | None,
    cold: bool,
    cores: int | None,
    memory_mib: int | None,
    port: int | None,
    line: str | None,
    as_json: bool,
) -> None:
    from deploy.virtual import control

    options = control.Options(name, cores, memory_mib, port, cold, _line(line))
    with common.progress_bar(name or kind) as bar:
        board = control.up(kind, options, _both(bar, name or kind), boards_file)
    for sentence in board.missing:
        common.note(sentence)
    if as_json:
        common.show_json(board)
        return
    transport = board.entries[board.name]["transport"]
    how = "from its warm snapshot" if board.warm else "booted"
    common.show(f"{board.name}: {board.entries[board.name]['virtual']} is up, {how}, in {board.seconds:.1f} s")
    common.show(f"ssh {transport['user']}@{transport['host']}:{transport['port']}; serial: {board.name}.console, "
                f"{board.name}.uart")  # fmt: skip


def _both(bar: common.Progress, name: str) -> Any:
    """What takes long is told where nobody sees the bar, too."""

    def note(text: str) -> None:
        bar.note(text)
        if not sys.stderr.isatty():
            common.note(f"{name}: {text}")

    return note


def _line(text: str | None) -> dict[str, float]:
    from deploy.errors import nearest

    known = {"baud": "baud", "latency": "latency_s", "errors": "errors", "seed": "seed"}
    found: dict[str, float] = {}
    for part in filter(None, (text or "").split(",")):
        key, _, value = part.partition("=")
        if key not in known:
            raise click.UsageError(f"--line has no key {key!r}{nearest(key, known)}")
        try:
            found[known[key]] = int(value) if key in ("baud", "seed") else float(value)
        except ValueError:
            raise click.UsageError(f"--line: {key} is {value!r}, which is no number") from None
        if not 0 <= found[known[key]] < (1 if key == "errors" else 1e9):
            raise click.UsageError(f"--line: {key} cannot be {value}")
    return found


@command.command("list", help="""List the boards that are up.""" + common.example("deploy virtual list"))
@common.json_option
def list_(as_json: bool) -> None:
    from deploy.virtual import control

    found = control.status()
    if as_json:
        common.show_json(found)
        return
    if not found:
        common.note("none is up; `deploy virtual up pi4` brings one up")
        return
    table = common.new_table("board", "kind", "state", "machine", "ssh", "cores", "MiB")
    for board in found:
        table.add_row(
            board.name, board.kind, board.state, board.virtual, f"127.0.0.1:{board.port}", str(board.cores),
            str(board.memory_mib),
        )  # fmt: skip
    common.show_table(table)


@command.command("down", help="""End boards.""" + common.example("deploy virtual down pi4"))
@click.argument("names", nargs=-1, shell_complete=_complete, metavar="[NAME]...")
@click.option("--all", "everything", is_flag=True, help="Every one.")
def down(names: tuple[str, ...], everything: bool) -> None:
    from deploy.virtual import control
    from deploy.virtual.registry import places

    chosen = [place.name for place in places()] if everything else list(names)
    if not chosen and not everything:
        raise click.UsageError("which one? NAME, or --all")
    for name in chosen:
        control.down(name)
        common.show(f"{name}: gone")


@command.command(
    "clean",
    help="""
    Free the disk of what no virtual board needs any more: images, snapshots and the like that newer ones have replaced,
    and what crashes have left.  Of each kind the one used last stays, and what boards that are up were started from.
    """
    + common.example("deploy virtual clean --dry-run", "deploy virtual clean"),
)
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option("--packages", is_flag=True, help="Debian's packages as well; the next image fetches them again.")
@common.json_option
def clean(dry_run: bool, packages: bool, as_json: bool) -> None:
    from deploy import units
    from deploy.virtual import cache

    found = cache.clean(packages, dry_run)
    if as_json:
        common.show_json(found)
        return
    for one in found:
        common.show(f"{units.size(one.bytes):>9}  {one.what}")
    total = units.size(sum(one.bytes for one in found))
    common.show(f"{total} {'would be' if dry_run else 'are'} freed" if found else "nothing to free")


@command.command(
    "reset",
    help="""Put a board back to the moment when it came up: memory, disk and all.  Also one that is dead."""
    + common.example("deploy virtual reset pi4"),
)
@name_argument
def reset(name: str) -> None:
    from deploy.virtual import control

    control.ask(name, "reset")
    common.show(f"{name}: as it came up")


@command.command(
    "fault",
    help="""
    Do something to a board that happens to real ones.

    """
    + "\b\n"
    + "\n".join(f"  {fault:12} {meaning}" for fault, meaning in FAULTS.items())
    + common.example("deploy virtual fault pi4 power-cut", "deploy virtual fault pi4 clock=+3600"),
)
@name_argument
@click.argument("fault", metavar="FAULT[=VALUE]")
def fault(name: str, fault: str) -> None:
    from deploy.errors import nearest
    from deploy.virtual import control

    what, _, value = fault.partition("=")
    if what not in FAULTS:
        raise click.UsageError(f"no fault {what!r}{nearest(what, FAULTS)}")
    answer = control.ask(name, what, value or None)
    common.show(f"{name}: {what}; now {answer['state']}")


@command.command(
    "console",
    help="""Sit at a board's console; Ctrl-] leaves it.  --log prints what it has said.  User without password."""
    + common.example("deploy virtual console pi4"),
)
@name_argument
@click.option("--uart", is_flag=True, help="The second UART instead.")
@click.option("--log", is_flag=True, help="Print what the console said so far.")
def console(name: str, uart: bool, log: bool) -> None:
    from deploy.virtual import control

    place = control.there(name)
    if log:
        text = place.console_log.read_bytes().decode("utf-8", "replace").replace("\r", "")
        common.show("".join(c for c in text if c.isprintable() or c == "\n"))
        return
    if not sys.stdin.isatty():
        raise click.UsageError("a console needs a terminal; --log prints what it said")
    port = place.folder / ("uart" if uart else "console")
    common.note(f"{name}: Ctrl-] leaves")
    control.terminal(port, sys.stdin.fileno(), sys.stdout.fileno())


@command.command(
    "ssh",
    help="""Log in to a board with your own ssh, or run a command there."""
    + common.example("deploy virtual ssh pi4", "deploy virtual ssh pi4 uname -a"),
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@name_argument
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[COMMAND]...")
def ssh(name: str, words: tuple[str, ...]) -> None:
    from deploy.virtual import control, packages

    described = control.there(name).read() or {}
    transport = described["entries"][described["name"]]["transport"]
    program = packages.need("ssh", "openssh-client")
    options = ["-F", "none", "-i", transport["identity"], "-p", str(transport["port"])]
    options += ["-o", f"UserKnownHostsFile={shlex.quote(transport['known_hosts'])}", "-o", "IdentitiesOnly=yes"]
    sys.stdout.flush()
    os.execv(program, [program, *options, f"{transport['user']}@{transport['host']}", *words])
