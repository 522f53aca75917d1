"""
The scheduler of a farm of several hosts: Dask's, with TLS.

It knows which gateways there are and carries work to them and results back.  It may be killed and started again at any
time: gateways come back by themselves, plans go on, and what was measured waits at the gateways.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import dask

from deploy.errors import FarmError
from deploy.farm import keys

# The least of a gateway's silence after which its boards are given up for now; a link that is cut is seen at once.
GONE_S = 30.0
SETTINGS = {
    "distributed.scheduler.worker-ttl": f"{GONE_S:g}s",
    "distributed.scheduler.reuse-broadcast-comm": True,  # what it carries for plans: TLS must not begin anew each time
    "distributed.scheduler.work-stealing": False,  # there are no tasks
    "distributed.scheduler.events-cleanup-delay": "1m",
    "distributed.admin.low-level-log-length": 100,
    "distributed.admin.max-error-length": 1000,
    "distributed.scheduler.active-memory-manager.start": False,
    "distributed.worker.profile.enabled": False,
    "distributed.admin.system-monitor.interval": "10s",
    "distributed.admin.tick.interval": "500ms",  # it wakes to see whether it was late: 50 times a second otherwise
    "distributed.comm.timeouts.connect": "10s",
    "distributed.comm.timeouts.tcp": "30s",
    "distributed.logging.distributed": "critical",
}


def configure() -> None:
    """Dask as a farm needs it, in this process."""
    import logging

    dask.config.set(SETTINGS)
    logging.getLogger("distributed").setLevel(logging.CRITICAL)


def serve(where: str, folder: Path, ready: Callable[[str], None] | None = None) -> None:
    """
    Be the scheduler until interrupted.

    Args:
        where: ``tls://host:port`` to listen on.
        folder: of the keys.
        ready: told the address once it listens.

    Raises:
        FarmError: the keys do not fit, or the address cannot be used.
    """
    configure()
    asyncio.run(_serve(where, folder, ready))


async def _serve(where: str, folder: Path, ready: Callable[[str], None] | None) -> None:
    from distributed import Scheduler

    security = keys.security(folder, "scheduler")
    try:
        async with Scheduler(host=where, security=security, dashboard=False) as scheduler:
            if ready:
                ready(scheduler.address)
            await scheduler.finished()
    except OSError as error:
        raise FarmError(f"cannot listen on {where}: {error.strerror or error}") from None


async def check_versions(scheduler: Any, where: str) -> None:
    """
    Args:
        scheduler: Dask's rpc of it.

    Raises:
        FarmError: it runs on another Python, or another Dask.
    """
    try:
        told = await asyncio.wait_for(scheduler.versions(), keys.CONNECT_S)
        theirs = {
            "python": ".".join(str(told["host"]["python"]).split(".")[:2]),
            "dask": told["packages"]["dask"],
            "distributed": told["packages"]["distributed"],
        }
    except Exception as error:  # another version may answer in any way
        raise FarmError(
            f"the scheduler at {where} does not say its versions: {error!r}", "the same deploy must run on every host"
        ) from None
    ours = {"python": ".".join(platform.python_version_tuple()[:2])}
    ours |= {name: version(name) for name in ("dask", "distributed")}
    differ = [f"{name} {theirs[name]} there, {ours[name]} here" for name in ours if ours[name] != theirs[name]]
    if differ:
        raise FarmError(
            f"the scheduler at {where} does not fit: {', '.join(differ)}", "the same deploy must run on every host"
        )
