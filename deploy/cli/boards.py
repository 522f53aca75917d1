"""`deploy boards`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploy.cli import common

if TYPE_CHECKING:
    from deploy.boards import Board, Registry
    from deploy.farm.health import Rung
    from deploy.power import Action


@click.group(
    "boards",
    invoke_without_command=True,
    help="""List, check and add boards of boards.yaml."""
    + common.example("deploy boards", "deploy boards check local"),
)
@common.json_option
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    if context.invoked_subcommand is None:
        context.invoke(list_, as_json=as_json)


@command.command("list", help="""List the boards.""" + common.example("deploy boards list --json"))
@common.json_option
@click.pass_obj
def list_(boards_file: str | None, as_json: bool = False) -> None:
    registry = common.registry(boards_file)
    if as_json:
        common.show_json([{"name": b.name, **b.model_dump(mode="json")} for b in registry])
        return
    table = common.new_table("board", "kind", "transport", "tags", "description")
    for board in registry:
        table.add_row(board.name, board.kind, _where(board), " ".join(board.tags), board.description)
    common.show_table(table)


@command.command(
    "check",
    help="""
    Reach boards and say what is there: agent, Python, runtime, CPU, meters.  All of them without NAME.

    A board that somebody has is not waited for, unless --wait says so; one in quarantine that answers is free again.
    """
    + common.example("deploy boards check local"),
)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@common.strict_option
@common.json_option
@click.pass_obj
def check(boards_file: str | None, names: tuple[str, ...], as_json: bool) -> int:
    from deploy.errors import DeployError

    registry = common.registry(boards_file)
    boards = [registry[name] for name in names] or list(registry)
    found: list[dict[str, Any]] = []
    for board in boards:
        with common.progress_bar(board.name) as bar:
            bar.note("reaching it")
            try:
                found.append(_check(registry, board))
            except DeployError as error:
                found.append({"board": board.name, "ok": False, "error": str(error), "hint": error.hint})
    if as_json:
        common.show_json(found)
    else:
        for entry in found:
            _show(entry)
    return 0 if all(entry["ok"] for entry in found) else 1


def _check(registry: Registry, board: Board) -> dict[str, Any]:
    from deploy.errors import BoardError
    from deploy.farm.hold import leases_of
    from deploy.farm.seen import Sightings
    from deploy.measure import list_meters
    from deploy.meters.attached import describe

    with common.session_with(registry, board, wait=0.0) as session:
        identity = session.hello["identity"]
        meters = list_meters(session)
        state = session.request("state").header
        current = session.request("release.current").header["current"]
        try:
            runtime: dict[str, Any] = session.request("runtime.probe").header
        except BoardError as error:
            runtime = {"missing": error.message}
        trips = sorted(session.ping() for _ in range(20))
    for header in (meters, state, runtime):
        header.pop("id", None)
    attached = describe(board)
    with leases_of(registry) as leases:
        sightings = Sightings(leases.file)
        sightings.saw(board.name, rails=meters["rails"])
        sightings.forgive(board.name)
    return {
        "board": board.name,
        "ok": True,
        "identity": identity,
        "overlay": session.hello.get("overlay"),
        "runtime": runtime,
        "current": current,
        "rails": meters["rails"],
        "unreadable": meters["unreadable"],
        "host_rails": attached["rails"],
        "host_meters_error": attached["error"],
        "state": state,
        "round_trip_us": trips[len(trips) // 2] / 1000,
        "differences": differences(board, identity, meters["rails"]),
    }


def differences(board: Board, identity: dict[str, Any], rails: list[dict[str, Any]]) -> list[str]:
    """Where boards.yaml and the board disagree."""
    found = []
    if board.cpu:
        if board.cpu.arch != identity["machine"]:
            found.append(f"cpu.arch is {board.cpu.arch} in boards.yaml, {identity['machine']} there")
        if board.cpu.cores not in (None, identity.get("cpus")):
            found.append(f"cpu.cores is {board.cpu.cores} in boards.yaml, {identity.get('cpus')} there")
        absent = sorted(set(board.cpu.features) - set(identity.get("cpu_features", ())))
        if absent:
            found.append(f"cpu.features not there: {', '.join(absent)}")
    there = {rail["name"]: rail["chip"] for rail in rails}
    for rail in board.rails:
        if rail.name not in there:
            found.append(f"rail {rail.name} is in boards.yaml, and no meter there has it")
        elif rail.meter not in (None, there[rail.name]):
            found.append(f"rail {rail.name} is measured by {there[rail.name]}, not by {rail.meter}")
    return found


def _rail(rail: dict[str, Any]) -> str:
    """``VDD_IN by ina3221 (module, all of it; running average of 0.448 s; steps of 40 mW)``."""
    about = [rail["scope"] + (", all of it" if rail["total"] else f", adds to {rail['adds']}" if rail["adds"] else "")]
    if rail["update_period_s"]:
        how = {"box": "average over", "iir": "running average of", "none": "a look every"}
        about.append(f"{how.get(rail['averaging'], 'new every')} {rail['update_period_s']:.3g} s")
    if rail["lsb"]:
        about.append(f"steps of {rail['lsb']:.3g} {'uJ' if rail['quantity'] == 'energy_uj' else 'mW'}")
    made = "" if rail["origin"] == "measured" else f", a {rail['origin']}"
    return f"{rail['name']} by {rail['chip']}{made} ({'; '.join(about)})"


def _show(entry: dict[str, Any]) -> None:
    if not entry["ok"]:
        common.note(f"error: {entry['error']}")
        if entry["hint"]:
            common.note(f"hint:  {entry['hint']}")
        return
    identity, runtime = entry["identity"], entry["runtime"]
    table = common.new_table("", "", title=entry["board"])
    table.show_header = False
    what = identity.get("model") or identity.get("cpu") or "a board that does not say what it is"
    table.add_row("board", f"{what}, {identity['machine']}, {identity.get('cpus')} CPUs")
    if identity.get("emulated"):
        table.add_row("emulated", f"{identity.get('emulator', 'it says so')}; its times mean nothing")
    table.add_row("system", f"{identity.get('os', identity['kernel'])}, {identity.get('libc', 'unknown libc')}")
    if "missing" in runtime:
        table.add_row("runtime", f"none yet ({runtime['missing']}); the first push brings it")
    else:
        table.add_row("runtime", f"{runtime['runtime']}, numpy {runtime['numpy']}, Python {identity['python']}")
    if entry["overlay"]:
        table.add_row("overlay", entry["overlay"])
    current = entry["current"]
    table.add_row("current", f"{current['release']} ({current['bundle'][:12]})" if current else "nothing pushed yet")
    rails = [_rail(rail) for rail in entry["rails"]]
    rails += [f"{_rail(rail)}, on this machine" for rail in entry["host_rails"]]
    rails += [entry["host_meters_error"]] if entry["host_meters_error"] else []
    rails += [f"{u['chip']} cannot be read: {u['path']}: {u['reason']}" for u in entry["unreadable"]]
    table.add_row("meters", "\n".join(rails) or "none")
    table.add_row("round trip", f"{entry['round_trip_us']:.0f} us")
    for line in entry["differences"]:
        table.add_row("differs", line)
    common.show_table(table)


@command.command(
    "add",
    help="""
    Register a board reached over ssh, or a PYNQ whose accelerator is simulated here (pynq-sim); the rest of the file
    stays as it is.
    """
    + common.example(
        "deploy boards add pi5-desk --kind raspberry-pi --host pi5-desk.local --tag lab",
        "deploy boards add fpga --kind pynq-sim",
    ),
)
@click.argument("name")
@click.option("--kind", required=True, type=click.Choice(["raspberry-pi", "jetson", "pynq", "pynq-sim", "generic"]))
@click.option("--host", help="Host name, address, or an alias of your ~/.ssh/config.")
@click.option("--user")
@click.option("--port", type=click.IntRange(1, 65535))
@click.option("--description")
@click.option("--tag", "tags", multiple=True)
@click.pass_obj
def add(
    boards_file: str | None,
    name: str,
    kind: str,
    host: str | None,
    user: str | None,
    port: int | None,
    description: str | None,
    tags: tuple[str, ...],
) -> None:
    from deploy import boards
    from deploy.accelerate import SIMULATED_KIND
    from deploy.errors import UsageError
    from deploy.paths import boards_file as find_file

    if (kind == SIMULATED_KIND) == bool(host):
        raise UsageError(f"a {kind} {'is this machine' if host else 'is reached by --host'}")
    path = find_file(boards_file) or Path("boards.yaml")
    transport = {"kind": "ssh", "host": host, "user": user, "port": port} if host else {"kind": "local"}
    entry: dict[str, Any] = {"kind": kind, "description": description}
    if kind == SIMULATED_KIND:
        entry["root"] = f"{boards.DEFAULT_ROOT}-{name}"  # a disk of its own, beside that of `local`
    entry = {key: value for key, value in entry.items() if value}
    entry["transport"] = {key: value for key, value in transport.items() if value}
    if tags:
        entry["tags"] = list(tags)
    boards.add(path, name, entry)
    common.show(f"{path}: added {name}")
    common.note(f"`deploy boards check {name}` reaches it")


@command.command(
    "discover",
    help="""
    List what a board may hang on: serial ports of this machine, USB adapters first, and machines of the local network
    that announce SSH or themselves (mDNS).
    """
    + common.example("deploy boards discover"),
)
@click.option(
    "--seconds", type=click.FloatRange(0.0, 60.0), default=1.5, show_default=True,
    help="Wait so long for the network; 0 asks nobody.",
)  # fmt: skip
@common.json_option
def discover(seconds: float, as_json: bool) -> None:
    from dataclasses import asdict

    from deploy.transport.mdns import browse
    from deploy.transport.ports import ports

    found, hosts = ports(), browse(seconds) if seconds else []
    if as_json:
        common.show_json({"ports": [asdict(port) for port in found], "hosts": [asdict(host) for host in hosts]})
        return
    if found:
        table = common.new_table("port", "adapter", "serial number")
        for port in found:
            table.add_row(port.path, port.adapter, port.serial_number or "")
        common.show_table(table)
        common.note(f"in boards.yaml: `transport: {{kind: serial, port: {found[0].path}, baud: 115200, user: NAME}}`")
    if hosts:
        table = common.new_table("host", "ssh", "addresses", "maker")
        for host in hosts:
            ssh = "not announced" if host.ssh_port is None else str(host.ssh_port)
            table.add_row(host.host, ssh, " ".join(host.addresses), host.maker or "")
        common.show_table(table)
        common.note(f"`deploy boards add NAME --kind KIND --host {hosts[0].host}` registers one")
    if not found and not hosts:
        common.note(
            "no serial port here, and nobody on this network announces itself; "
            "`deploy boards add NAME --kind KIND --host HOST` registers a board by its address"
        )


@command.command(
    "clean",
    help="""Remove all that deploy ever put on a board.""" + common.example("deploy boards clean local"),
)
@click.argument("name")
@common.strict_option
@click.pass_obj
def clean(boards_file: str | None, name: str) -> None:
    registry = common.registry(boards_file)
    board = registry[name]
    with common.session_with(registry, board, trust=False) as session:
        root = session.hello["root"]
        session.request("clean")
    common.show(f"{name}: removed {root}")


@command.command(
    "trust",
    help="""
    Pin the `public_key` that boards.yaml gives for the board NAME there: from then on it runs only what that key has
    signed.  The first verb that connects does that too; --replace puts it in the place of another one.
    """
    + common.example("deploy boards trust local --replace"),
)
@click.argument("name")
@click.option("--replace", is_flag=True, help="Also when another key is pinned there.")
@common.strict_option
@common.json_option
@click.pass_obj
def trust(boards_file: str | None, name: str, replace: bool, as_json: bool) -> None:
    from deploy.errors import ConfigError

    registry = common.registry(boards_file)
    board = registry[name]
    if board.public_key is None:
        raise ConfigError(
            f"{registry.path or 'the embedded registry'} has no public_key for {name!r}",
            "`deploy keygen -o KEY` makes a key pair; `public_key: KEY.pub` names it in boards.yaml",
        )
    with common.session_with(registry, board, trust=False) as session:
        pinned = session.request("key.pin", public_key=board.public_key, replace=replace).header
    if as_json:
        common.show_json({"board": name, "key": pinned["key"], "new": pinned["new"]})
    else:
        common.show(f"{name}: runs what {pinned['key']} has signed{'' if pinned['new'] else ', as before'}")


@command.command(
    "status",
    help="""
    Show how the boards are, without asking them: who has each, who waits, when it was seen last and how hot it was
    then, and why it is in quarantine.
    """
    + common.example("deploy boards status"),
)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@common.json_option
@click.pass_obj
def status(boards_file: str | None, names: tuple[str, ...], as_json: bool) -> None:
    from deploy.farm.status import statuses

    registry = common.registry(boards_file)
    found = statuses(registry, names)
    if as_json:
        common.show_json(found)
        return
    table = common.new_table("board", "state", "held by", "waiting", "seen", "hottest", "why")
    for entry in found:
        held = "; ".join(str(holder) for holder in entry.holders)
        seen = "never" if entry.seen_ago_s is None else f"{common.span(max(0.0, entry.seen_ago_s))} ago"
        hottest = "" if entry.hottest_c is None else f"{entry.hottest_c:.1f} C"
        table.add_row(entry.board, entry.state, held, str(entry.waiting or ""), seen, hottest, entry.reason or "")
    common.show_table(table)


@command.command(
    "recover",
    help="""
    Bring a board that hangs back: kill its agents, reboot it, switch its supply off and on (`power:` of boards.yaml),
    each if what comes before it did not help.  One that does not come back goes into quarantine.
    """
    + common.example("deploy boards recover local --upto agent"),
)
@click.argument("name")
@click.option(
    "--upto", type=click.Choice(["agent", "reboot", "power"]), default="power", show_default=True,
    help="The last thing to try.",
)  # fmt: skip
@common.wait_options
@common.json_option
@click.pass_obj
def recover(boards_file: str | None, name: str, upto: Rung, as_json: bool) -> None:
    from deploy.farm.health import recover as climb
    from deploy.farm.hold import leases_of

    registry = common.registry(boards_file)
    board = registry[name]
    with leases_of(registry) as leases, common.progress_bar(name) as bar:
        found = climb(registry, board, leases, "recovered by hand", upto=upto, wait=common.wait_s(), note=bar.note)
    if as_json:
        common.show_json(found)
        return
    how = {
        None: "it answers",
        "agent": "its agents were killed",
        "reboot": "rebooted",
        "power": "off and on again",
    }
    common.show(f"{name}: {how[found.by]}")


@command.command(
    "quarantine",
    help="""Keep whoever asks for any board from getting this one, until it is checked or recovered."""
    + common.example("deploy boards quarantine local 'fan is dead'"),
)
@click.argument("name")
@click.argument("reason")
@click.pass_obj
def quarantine(boards_file: str | None, name: str, reason: str) -> None:
    from deploy.farm.hold import leases_of
    from deploy.farm.seen import Sightings

    registry = common.registry(boards_file)
    with leases_of(registry) as leases:
        Sightings(leases.file).quarantine(registry[name].name, reason, by_hand=True)
    common.show(f"{name}: in quarantine until `deploy boards check {name}`")


@command.command(
    "power",
    help="""
    Switch the supply of the board NAME by what `power:` of boards.yaml names, a virtual board's without it.  The board
    is not asked first: what is not yet on its disk is lost.
    """
    + common.example("deploy boards power pi4 cycle"),
)
@click.argument("name")
@click.argument("action", type=click.Choice(["on", "off", "cycle"]))
@common.wait_options
@click.pass_obj
def power(boards_file: str | None, name: str, action: Action) -> None:
    from deploy.farm.hold import leases_of
    from deploy.farm.places import acquired
    from deploy.farm.seen import Sightings
    from deploy.power import switch

    registry = common.registry(boards_file)
    folder = registry.path.resolve().parent if registry.path else Path.cwd()
    board = registry[name]
    with (
        leases_of(registry) as leases,
        leases.take(name, **common.how_to_wait()),
        acquired(board, Sightings(leases.file)),
        common.progress_bar(name) as bar,
    ):
        bar.note(f"power {action}")
        switch(board, action, folder)
    common.show(f"{name}: {'off and on again' if action == 'cycle' else action}")


def _where(board: Board) -> str:
    t = board.transport
    if t.kind == "ssh":
        return f"ssh {t.user + '@' if t.user else ''}{t.host}{f':{t.port}' if t.port else ''}"
    return f"serial {t.port}" if t.kind == "serial" else "local"
