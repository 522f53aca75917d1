"""
``make bench``: the figures that the README states, measured on this machine.

Nothing here passes or fails: a table says goal and result.  Where two things are compared they take turns, and the
ratio is taken pair by pair, so that a machine that changes its speed changes both.

``make bench ROWS="serial push"`` measures those groups alone; a name that is none is answered with the names there are.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from deploy import bootstrap
from deploy.boards import LOCAL, Board
from deploy.build import build
from deploy.bundle import Bundle
from deploy.data import random_inputs
from deploy.measure import Plan, measure
from deploy.push import push
from deploy.results.store import Store
from deploy.session import Session, connect
from tests.benchmarks import accelerator, arm, choices, delta, energy
from tests.benchmarks import farm as farm_benchmarks
from tests.benchmarks import kernels as kernel_benchmarks
from tests.benchmarks import leases as lease_benchmarks
from tests.benchmarks import measure as measure_benchmarks
from tests.benchmarks import pruned as pruned_benchmarks
from tests.benchmarks import push as push_benchmarks
from tests.benchmarks import runs as runs_benchmarks
from tests.benchmarks import serial as serial_benchmarks
from tests.benchmarks.figure import Figure
from tests.conftest import CORPUS, ROOT

PAIRS = 9
MODELS = ("tiny_kws_dscnn_int8.tflite", "tiny_ic_resnet8_int8.tflite", "tiny_ad_autoencoder_int8.tflite")


def main() -> None:
    unknown = set(sys.argv[1:]) - set(GROUPS)
    if unknown:
        sys.exit(f"no rows {', '.join(sorted(unknown))}: there are {', '.join(GROUPS)}")
    chosen = [source for name, source in GROUPS.items() if name in sys.argv[1:] or len(sys.argv) == 1]
    console = Console(width=None if sys.stdout.isatty() else 150)
    table = Table(title=f"on {_cpu()}, Python {sys.version.split()[0]}", title_justify="left")
    for column in ("figure", "goal", "here", ""):
        table.add_column(column)
    with tempfile.TemporaryDirectory() as folder:
        for source in chosen:
            for figure in source(Path(folder)):
                console.print(f"  {figure.what}: {figure.result}", highlight=False)
                table.add_row(
                    figure.what, figure.goal, figure.result, {True: "met", False: "MISSED", None: ""}[figure.met]
                )
    console.print(table)


def command_line(folder: Path) -> Iterator[Figure]:
    """Start-up, against a Python that does nothing."""
    program = str(Path(sys.executable).with_name("deploy"))
    for words, goal_s in ((["--help"], 0.25), (["boards"], 0.4)):
        ours, bare = [], []
        for _ in range(PAIRS * 2):
            ours.append(_wall_s([program, *words]))
            bare.append(_wall_s([sys.executable, "-c", "pass"]))
        m = float(np.median(ours))
        spread = f"{min(ours):.3f} to {max(ours):.3f}; python alone {np.median(bare):.3f}"
        yield Figure(f"deploy {' '.join(words)}", f"< {goal_s} s", f"{m:.3f} s ({spread})", m < goal_s)


def agent_size(folder: Path) -> Iterator[Figure]:
    size = len(bootstrap.agent_package().data)
    yield Figure("agent to push, without the runtime", "< 200 KiB", f"{size / 1024:.1f} KiB", size < 200 * 1024)
    with _session(folder) as session:
        session.ping()
        rss = psutil.Process(session.hello["pid"]).memory_info().rss
    yield Figure("agent resident before a model", "< 40 MiB", f"{rss / 2**20:.1f} MiB", rss < 40 * 2**20)


def local_round_trip(folder: Path) -> Iterator[Figure]:
    with _session(folder) as session:
        yield _round_trip("local", session, 1.0)


def ssh_round_trip(folder: Path) -> Iterator[Figure]:
    from tests.sshd import Sshd

    try:
        server = Sshd(folder / "sshd", sys.executable)
    except BaseException as error:  # pytest's skip is a BaseException: no sshd here
        yield Figure("round trip over ssh", "p50 < 2 ms", f"not measured: {error}", None)
        return
    server.start()
    home = folder / "home"
    home.mkdir()
    os.environ["HOME"] = str(home)
    server.write_client_config(home, "bench")
    board = Board.model_validate({"name": "bench", "kind": "generic", "transport": {"kind": "ssh", "host": "bench"}})
    cold = []
    ssh = ["ssh", "-F", str(home / ".ssh" / "config"), "-o", "StrictHostKeyChecking=accept-new"]
    ssh += ["-o", f"UserKnownHostsFile={home}/cold", "bench", "true"]
    try:
        with connect(board, home / "known_hosts") as session:
            yield _round_trip("ssh on loopback", session, 2.0)
        cold = [_wall_s(ssh) for _ in range(PAIRS)]
    finally:
        server.stop()
    yield Figure("  beside it: a cold `ssh host true`", "", f"{np.median(cold) * 1e3:.0f} ms", None)


def _round_trip(what: str, session: Session, goal_ms: float) -> Figure:
    for _ in range(100):
        session.ping()
    trips = np.array([session.ping() for _ in range(3000)]) / 1e6
    p50, p99 = np.percentile(trips, [50, 99])
    return Figure(f"round trip, {what}", f"p50 < {goal_ms:g} ms", f"p50 {p50:.3f} ms, p99 {p99:.3f} ms", p50 < goal_ms)


def overhead(folder: Path) -> Iterator[Figure]:
    """The agent's median against a bare loop around `invoke()` in a process of its own, taking turns."""
    for name in MODELS:
        path = CORPUS / "models" / name
        if not path.is_file():
            yield Figure(f"measured / bare loop, {name}", "within 2 %", f"not measured: no {path}", None)
            continue
        bundle = build(str(path), name="bench", vectors=0).bundle
        ratios, medians = [], []
        with _session(folder) as session:
            push(session, bundle)
            for pair in range(PAIRS * 2):
                # Who goes first changes too: whatever the first leaves behind must not favour one.
                if pair % 2:
                    ours, bare = _agent_ns(session, bundle, folder), _bare_ns(path)
                else:
                    bare, ours = _bare_ns(path), _agent_ns(session, bundle, folder)
                ratios.append(ours / bare)
                medians.append(ours)
        ratio = float(np.median(ratios))
        result = f"{ratio:.4f} ({min(ratios):.3f} to {max(ratios):.3f}), median {np.median(medians) / 1e3:.2f} us"
        yield Figure(f"measured / bare loop, {name}", "within 2 %", result, abs(ratio - 1) < 0.02)


_BARE = """
import sys, time
import numpy as np
from ai_edge_litert.interpreter import Interpreter
i = Interpreter(model_path=sys.argv[1], num_threads=1)
i.allocate_tensors()
rng = np.random.default_rng(0)
for d in i.get_input_details():
    i.set_tensor(d["index"], rng.integers(-128, 128, d["shape"]).astype(d["dtype"]))
clock, invoke, out = time.perf_counter_ns, i.invoke, []
end = clock() + 500_000_000
while clock() < end:
    invoke()
end = clock() + 500_000_000
while True:
    before = clock()
    invoke()
    after = clock()
    out.append(after - before)
    if after > end:
        break
print(np.median(out))
"""


def _bare_ns(model: Path) -> float:
    done = subprocess.run([sys.executable, "-c", _BARE, str(model)], capture_output=True, text=True, check=True)
    return float(done.stdout)


def _agent_ns(session: Session, bundle: Bundle, folder: Path) -> float:
    plan = Plan(duration_s=0.5, restarts=1, warmup_max_s=0.5)
    record = {"board": {"name": "local"}, "bundle": {"name": bundle.name, "digest": bundle.digest}}
    with Store(folder / "results").writer("measure", record) as writer:
        inputs = random_inputs(bundle.manifest.inputs, 1, 0)[0]
        return measure(session, bundle.digest, inputs, plan, writer).latency.median_ns


def _session(folder: Path) -> Session:
    return connect(LOCAL.model_copy(update={"root": str(folder / "board")}), folder / "known_hosts")


def _wall_s(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True, cwd=ROOT)
    return time.perf_counter() - started


def _cpu() -> str:
    with tempfile.TemporaryDirectory() as folder, _session(Path(folder)) as session:
        identity = session.hello["identity"]
    return f"{identity.get('model') or identity.get('cpu')}, {identity['cpus']} CPUs"


GROUPS: dict[str, Callable[[Path], Iterator[Figure]]] = {
    "command": command_line,
    "agent": agent_size,
    "local": local_round_trip,
    "ssh": ssh_round_trip,
    "push": push_benchmarks.figures,
    "lease": lease_benchmarks.figures,
    "farm": farm_benchmarks.figures,
    "runs": runs_benchmarks.figures,
    "delta": delta.figures,
    "serial": serial_benchmarks.figures,
    "energy": energy.figures,
    "arm": arm.figures,
    "choices": choices.figures,
    "measure": measure_benchmarks.figures,
    "kernels": kernel_benchmarks.figures,
    "pruned": pruned_benchmarks.figures,
    "accelerator": accelerator.figures,
    "overhead": overhead,
}


if __name__ == "__main__":
    main()
