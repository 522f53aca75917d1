"""
Energy through the kernel's real drivers, against what their chips were made to show.

A guest of each kind boots once; `power play` moves the registers and writes down what it showed and when, our own
sampler reads hwmon beside it.  A stub does not average as a chip does, so this is the sampler's worst case.
"""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from deploy.results.energy import RailSamples, Window, integrate
from deploy.virtual import control, image, sensors
from deploy.virtual.kinds import KINDS
from devices.protocol.meter import Rail
from tests.conftest import ROOT, need_tool
from tests.test_layers import HOME

# One worker: its guests are shared.
pytestmark = [pytest.mark.qemu, pytest.mark.xdist_group("sensors")]

IDLE_S, BUSY_S = 1.0, 10.0
TILE_NS = 250_000_000
WATCH = "/tmp/watch"
Shell = Callable[..., bytes]


@pytest.fixture(scope="module")
def guests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Shell]]:
    """``guests(kind)`` boots a board of that kind, once, and gives what runs a command there as its user."""
    for tool, package in (("qemu-system-aarch64", "qemu-system-arm"), ("mksquashfs", "squashfs-tools")):
        need_tool(tool, package)
    need_tool("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu")
    home = tmp_path_factory.mktemp("home")
    shells: dict[str, Shell] = {}

    @contextmanager
    def at_home() -> Iterator[None]:
        # Each test has a home of its own; a guest's must outlive it, and its image is fetched once.
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HOME", str(home))
            patch.setenv("XDG_CACHE_HOME", str(HOME / ".cache"))
            yield

    running = ExitStack()

    def boot(name: str) -> Shell:
        if name not in shells:
            kind = KINDS.get(name) or replace(KINDS["pi3"], name=name)
            with at_home():
                made = image.ensure(kind.arch, lambda text: None)
                extras = sensors.extras(kind, made)
                assert () == extras.missing
                options = control.Options(cold=True)
                board = running.enter_context(control.starting(kind, made, extras, name, options, None))
                shells[name] = shell(board.entries[name]["transport"])
                shells[name](f"mkdir {WATCH} && tar x -C {WATCH}", our_sampler())
        return shells[name]

    yield boot
    with at_home():
        running.close()


def shell(transport: dict[str, Any]) -> Shell:
    login = ["ssh", "-F", "/dev/null", "-i", transport["identity"], "-p", str(transport["port"])]
    login += ["-o", f"UserKnownHostsFile={transport['known_hosts']}", "-o", "IdentitiesOnly=yes"]
    login += [f"{transport['user']}@{transport['host']}"]

    def run(command: str, given: bytes = b"") -> bytes:
        done = subprocess.run([*login, command], input=given, capture_output=True, check=False, timeout=300)
        assert 0 == done.returncode, f"{command}: {done.stderr.decode(errors='replace')}"
        return done.stdout

    return run


def our_sampler() -> bytes:
    """The tar of what measures in the guest."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(ROOT / "devices", "devices", filter=lambda entry: None if "__pycache__" in entry.name else entry)
        archive.add(Path(__file__).with_name("watch_power.py"), "watch_power.py")
    return packed.getvalue()


def watch(run: Shell, trace: list[tuple[int, float]], rail: str, rate_hz: float) -> dict[str, Any]:
    """Play the trace while our sampler looks; samples, and what was shown."""
    run(f"cat > {WATCH}/trace", "".join(f"{t_ns} {mw}\n" for t_ns, mw in trace).encode())
    seconds = trace[-1][0] / 1e9
    said = run(f"python3 {WATCH}/watch_power.py {WATCH} {WATCH}/trace {seconds} {rail} {rate_hz}")
    found: dict[str, Any] = json.loads(said)
    assert [] == found["failed"]
    return found


def pulses(period_s: float, duty: float, idle_mw: float, busy_mw: float) -> list[tuple[int, float]]:
    """Idle, then a load that goes on and off, then idle; the last line ends it."""
    trace = [(0, idle_mw)]
    for k in range(round(BUSY_S / period_s)):
        at_s = IDLE_S + k * period_s
        trace += [(round(at_s * 1e9), busy_mw), (round((at_s + duty * period_s) * 1e9), idle_mw)]
    return [*trace, (round((2 * IDLE_S + BUSY_S) * 1e9), idle_mw)]


@pytest.mark.parametrize(("period_s", "duty"), [(0.0101, 0.6), (0.033, 0.5), (0.1, 0.37)])
def test_net_energy_through_the_real_ina3221_driver_is_within_two_percent(guests, period_s, duty):
    """Periods at which a sampler with a fixed one goes wrong by up to 73 %."""
    rail = "ina3221:1:0x40:0:5000:5000:2000:6000"
    trace = pulses(period_s, duty, 2000, 6000)
    found = watch(guests("jetson-orin"), trace, rail, rate_hz=1000)
    shown = np.array(found["truth"])
    late_ns = shown[:-1, 0] - shown[0, 0] - np.array([t_ns for t_ns, _ in trace[: len(shown) - 1]])
    mine = np.array([(t_ns, value) for t_ns, number, value in found["samples"] if number == 0])
    seen = RailSamples(Rail.of(found["rails"][0]), mine[:, 0].astype(np.int64), mine[:, 1])

    true_uj = net_uj = 0.0
    for start_ns in range(int(shown[1, 0]), int(shown[-2, 0]) - TILE_NS, TILE_NS):
        window = Window(start_ns, start_ns + TILE_NS, 1)
        gross_uj = integrate(seen, window)
        if not isinstance(gross_uj, str):  # refused, as on a board: the host stopped the guest for a while
            net_uj += gross_uj - 2000 * TILE_NS / 1e6
            true_uj += held(shown, window) - 2000 * TILE_NS / 1e6
    refused = true_uj < 0.5 * 4000 * duty * BUSY_S * 1000
    if refused or np.percentile(late_ns, 95) - np.median(late_ns) > 1e6:
        pytest.skip("this machine is too busy: it stops the guest so often that it neither shows nor samples in time")

    assert net_uj == pytest.approx(true_uj, rel=0.02), f"{len(mine)} samples"
    assert "stub:ina3221@VDD_IN" == seen.rail.source


def held(shown: NDArray[np.float64], window: Window) -> float:
    """Energy in uJ of a power that stays as it was shown (t_ns, mW) until the next."""
    edges = np.clip(shown[:, 0], window.start_ns, window.end_ns)
    return float(np.sum(shown[:-1, 1] * np.diff(edges)) / 1e6)


@pytest.mark.parametrize(
    ("kind", "rail", "tolerance_mw"),
    [
        ("jetson-orin", "ina3221:1:0x40:0:5000:5000:2000:5000", 5),
        ("pi3", "ina238:1:0x45:0:10000:5100:2000:5000", 1),
        ("pi4", "ina226:1:0x40:0:10000:5100:2000:5000", 1),
        ("pi5", "pmic:1:0:0:0:5150:2000:5000", 1),
        ("zcu104", "irps5401:3:0x43:0:0:3300:2000:5000", 1),  # no kind of board has its chip yet
    ],
)
def test_what_is_shown_is_what_the_driver_says(guests, kind, rail, tolerance_mw):
    """Three powers, one second each.  The driver of the ina3221 rounds to whole mA, of 5 V."""
    shown = [2000.0, 3500.0, 5000.0]
    trace = [*((round(k * 1e9), mw) for k, mw in enumerate(shown)), (3_000_000_000, 2000.0)]
    found = watch(guests(kind), trace, rail, rate_hz=100)
    names = [rail["name"] for rail in found["rails"]]
    total = range(len(names)) if kind == "pi5" else [names.index("pout1") if kind == "zcu104" else 0]

    for (t_ns, mw), (end_ns, _) in zip(found["truth"], found["truth"][1:], strict=False):
        inside = [s for s in found["samples"] if t_ns + 20_000_000 < s[0] < end_ns - 20_000_000 and s[1] in total]
        by_time: dict[int, float] = {}
        for at, _, value in inside:
            by_time[at] = by_time.get(at, 0) + value
        assert by_time, "no sample in this second"
        assert mw == pytest.approx(sum(by_time.values()) / len(by_time), abs=tolerance_mw)
    assert {"stub"} == {rail["origin"] for rail in found["rails"]}


def test_power_follows_the_load_of_the_processors(guests):
    """The model that runs when nobody plays anything; two loops are all that two cores can do."""
    run = guests("jetson-orin")
    # Built-ins of the shell: starting a program is a load.
    read = "for i in 1 2 3 4 5 6 7 8; do sleep 0.3; read ma < /sys/class/hwmon/hwmon0/curr1_input; echo $ma; done"
    loop = "timeout 6 sh -c 'while :; do :; done' &"
    calm = min(map(float, run(read).split()))
    busy = max(map(float, run(f"{loop} {loop} {read}").split()))

    (chip,) = sensors.SENSORS["jetson-orin"].chips
    total = chip.rails[0]
    assert calm * total.mv / 1000 < total.idle_mw + 0.4 * (total.busy_mw - total.idle_mw)
    assert busy * total.mv / 1000 > total.idle_mw + 0.5 * (total.busy_mw - total.idle_mw)


def test_a_throttle_flag_that_is_raised_is_seen(guests):
    """0x50005: under-voltage and throttled, now and before."""
    run = guests("pi5")
    run("printf throttled=0x50005 > /sys/module/vcio/parameters/get_throttled")

    ask = "from pathlib import Path; from devices.meters.pi5 import Mailbox; "
    ask += "print(Mailbox(Path('/dev/vcio')).ask('get_throttled'))"
    assert b"throttled=0x50005\n" == run(f'cd {WATCH} && python3 -c "{ask}"')
