"""A farm of several hosts as processes of this one: simulated boards, a scheduler with TLS, gateways."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from deploy.errors import FarmError
from deploy.farm import keys
from deploy.farm.builder import Builder
from deploy.farm.cells import matrix
from deploy.farm.cluster import Cluster
from deploy.farm.plan import parse
from deploy.farm.runner import Runner
from deploy.ports import free_port
from deploy.results.store import Store
from tests.farm.reach import Boards, boards_yaml
from tests.farm.relay import Relay

SKEW_S = 3600  # the scheduler's clock is an hour ahead: hosts need not agree what time it is


class Farm:
    """
    Args:
        folder: of everything; the bundle ``digits.bundle`` lies there.
        gateways: name -> its boards.
        versions: of deploy, of gateways that say another than this one.

    Attributes:
        where: the scheduler's address.
        links: gateway, or ``plan`` -> its way to the scheduler, which can be cut.
    """

    def __init__(self, folder: Path, gateways: dict[str, list[str]], versions: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.gateways = gateways
        self.versions = versions or {}
        self.store = Store(folder / "results")
        port = free_port()
        self.where = f"tls://127.0.0.1:{port}"
        self.links = {name: Relay(port) for name in (*gateways, "plan")}
        self.keys = folder / "keys"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        keys.make(self.keys, days=1)
        self.boards = [Boards(folder / f"{name}.sim", names) for name, names in gateways.items()]
        self.start("scheduler")
        for name in gateways:
            self.start(name)
        self.wait_for(*gateways)

    def start(self, name: str) -> subprocess.Popen[bytes]:
        """Start the scheduler, or a gateway."""
        if name == "scheduler":
            words: list[Any] = ["-m", "tests.farm.skewed", SKEW_S]
            words += ["deploy", "farm", "serve", "--listen", self.where, "--keys", self.keys]
        else:
            home = self.folder / name
            home.mkdir(exist_ok=True)
            registry = boards_yaml(home, self.gateways[name])
            words = ["-m", "tests.farm.gateway_process", self._way(name), self.keys, registry, home / "held"]
            words += [self.folder / f"{name}.sim", name, self.versions.get(name, "")]
        log = (self.folder / f"{name}.log").open("ab")
        # Each host has its own leases, whatever the test that starts it again has set.
        environment = {key: value for key, value in os.environ.items() if key != "DEPLOY_FARM"}
        process = subprocess.Popen([sys.executable, *map(str, words)], stdout=log, stderr=log, env=environment)
        self.processes[name] = process
        if name == "scheduler":
            while not self._listens():
                time.sleep(0.05)
        return process

    def _way(self, name: str) -> str:
        return f"tls://127.0.0.1:{self.links[name].port}"

    def _listens(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", int(self.where.rpartition(":")[2])), 1):
            return True
        return False

    def leases(self, name: str) -> Path:
        """The lease file of a gateway."""
        return self.folder / name / ".farm" / "farm.sqlite"

    def said(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def wait_for(self, *names: str) -> None:
        """Until these gateways have found the scheduler once more than before."""
        for name in names:
            while "boards for" not in self.said(name):
                assert self.processes[name].poll() is None, self.said(name)
                time.sleep(0.05)

    def supervise(self) -> None:
        """Start again what has ended by itself, as a service manager does: a gateway gives up without a scheduler."""
        for name, process in list(self.processes.items()):
            if process.poll() is not None:
                self.start(name)

    def settle(self) -> Cluster:
        """An engine that knows every gateway; to be closed."""
        boards = {board for name, some in self.gateways.items() if name not in self.versions for board in some}
        end = time.monotonic() + 120
        while True:
            self.supervise()
            with suppress(FarmError):  # as long as no gateway has come back
                engine = self.cluster()
                if boards <= set(engine.boards()) and len(engine.gateways()) == len(self.gateways):
                    return engine
                engine.close()
            assert time.monotonic() < end, {name: self.said(name) for name in self.gateways}
            time.sleep(0.2)

    def kill(self, name: str) -> None:
        self.processes[name].kill()
        self.processes[name].wait()
        (self.folder / f"{name}.log").unlink(missing_ok=True)

    def signal(self, name: str, number: signal.Signals) -> None:
        self.processes[name].send_signal(number)

    def log(self) -> list[dict[str, Any]]:
        """Of all boards, in the order in which measurements ended."""
        return sorted((entry for boards in self.boards for entry in boards.log()), key=lambda entry: entry["end"])

    def overlaps(self) -> int:
        return sum(boards.overlaps() for boards in self.boards)

    def cluster(self) -> Cluster:
        """An engine that knows the gateways that are there now."""
        return Cluster(self._way("plan"), self.keys, self.store)

    def runner(
        self, chosen: str, settings: str, engine: Cluster, watch: Callable[[Runner], None] | None = None, more: str = ""
    ) -> Runner:
        text = f"schema: 1\nbundles: {{net: digits.bundle}}\nboards: {chosen}\nsettings: {settings}\n{more}"
        text = text.replace("duration", "kernels: off, windows: 0, duration")
        plan = parse(text, self.folder / "plan.yaml")
        cells = matrix(plan, engine.boards(), engine.seen())
        return Runner(plan, cells, engine, Builder(plan), self.store, watch=watch)

    def run(self, *words: str, **options: Any) -> Runner:
        runner = self.runner(*words, self.settle(), **options)
        runner.run()
        return runner

    def close(self) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()
        for boards in self.boards:
            boards.__exit__()
        for link in self.links.values():
            link.close()


def settings_of(count: int, seconds: Callable[[int], float]) -> str:
    """So many settings; each makes a cell of its own."""
    return "{" + ", ".join(f"s{i}: {{duration: {seconds(i):.4f}, warmup: {i % 3600}}}" for i in range(count)) + "}"
