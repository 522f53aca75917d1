"""
Whether the numbers can be trusted: simulated latencies of known truth through the code that judges real ones, and a
long real run.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from deploy.boards import LOCAL
from deploy.build import build
from deploy.data import random_inputs
from deploy.measure import Plan, Turn, interleave, measure
from deploy.profile import profile
from deploy.push import push
from deploy.results import report, stats
from deploy.results.compare import effect, latency_effect
from deploy.results.gate import FAILED, PASSED, check
from deploy.results.store import Store
from deploy.results.verdicts import Circumstances, judge
from deploy.session import Session, connect
from tests.benchmarks.figure import Figure
from tests.conftest import CORPUS, GOLDEN

TRIALS = 1000
RESTARTS, EACH = 3, 3000  # latencies of a simulated run; a real one of 10 s at 1 ms has as many
TRUTH = 1_000_000.0  # ns
PAIRS, GATES = 15, 500
SLOWDOWN = 0.03
REAL_GATES = 10

Run = list[np.ndarray[Any, Any]]
Draw = Callable[[np.random.Generator], Run]


def figures(folder: Path) -> Iterator[Figure]:
    yield from coverage()
    yield from gates()
    yield from real_gates(folder)
    yield from operators(folder)
    yield from a_million(folder)


# Does the interval hold the truth?


def noise(rng: np.random.Generator, n: int, rho: float) -> np.ndarray[Any, Any]:
    """Standard normal values, each of which resembles the one before (AR(1)), begun in equilibrium."""
    fresh = rng.standard_normal(n) * (1 - rho**2) ** 0.5
    fresh[0] /= (1 - rho**2) ** 0.5
    if not rho:
        return fresh
    # x[i] = rho x[i-1] + e[i] as a sum over what is not forgotten yet.
    kernel = rho ** np.arange(int(np.ceil(np.log(1e-9) / np.log(rho))))
    return np.convolve(fresh, kernel)[:n]


def _ns(restarts: Run) -> Run:
    return [np.rint(TRUTH * restart).astype(np.int64) for restart in restarts]


def independent(rng: np.random.Generator) -> Run:
    return _ns([np.exp(0.1 * noise(rng, EACH, 0)) for _ in range(RESTARTS)])


def autocorrelated(rng: np.random.Generator) -> Run:
    return _ns([np.exp(0.1 * noise(rng, EACH, 0.8)) for _ in range(RESTARTS)])


def bimodal(rng: np.random.Generator) -> Run:
    """Three in ten take 30 % longer; the median is the quantile 0.5/0.7 of the fast ones, put at the truth."""
    fast = np.exp(-0.03 * 0.56595)  # the normal quantile of 5/7
    return _ns(
        [
            fast * np.where(rng.random(EACH) < 0.3, 1.3, 1.0) * np.exp(0.03 * noise(rng, EACH, 0))
            for _ in range(RESTARTS)
        ]
    )


def halves(rng: np.random.Generator) -> Run:
    """Half are fast and half take 30 % longer: the median is anywhere between."""
    return _ns(
        [np.where(rng.random(EACH) < 0.5, 1.0, 1.3) * np.exp(0.03 * noise(rng, EACH, 0)) for _ in range(RESTARTS)]
    )


def drifting(rng: np.random.Generator) -> Run:
    """Grows by 5 % in all, through the whole run."""
    slow = 1 + 0.05 * np.arange(RESTARTS * EACH).reshape(RESTARTS, EACH) / (RESTARTS * EACH)
    return _ns([s * np.exp(0.03 * noise(rng, EACH, 0.8)) for s in slow])


def heating(rng: np.random.Generator) -> Run:
    """Grows by 5 % in every restart anew, quickly at first."""
    slow = 1 + 0.05 * (1 - np.exp(-np.arange(EACH) / EACH * 3))
    return _ns([slow * np.exp(0.03 * noise(rng, EACH, 0.8)) for _ in range(RESTARTS)])


def coverage() -> Iterator[Figure]:
    for what, draw in (("iid", independent), ("AR(1), rho 0.8", autocorrelated), ("bimodal, 30 % slow", bimodal)):
        claimed, held, _ = judged(draw)
        result = f"{held / claimed:.1%} of {claimed} that claim `ok`"
        met = claimed > 0 and 0.93 <= held / claimed <= 0.97
        yield Figure(f"95 % interval holds the median, {what}, {TRIALS} runs", "93 to 97 %", result, met)
    for what, code, draw in (
        ("drift by 5 % through the run", "drifting", drifting),
        ("5 % in every restart", "drifting", heating),
        ("halves 30 % apart", "two-modes", halves),
    ):
        _, _, codes = judged(draw)
        share = codes.get(code, 0) / TRIALS
        yield Figure(f"flagged `{code}`, {what}, {TRIALS} runs", ">= 95 %", f"{share:.1%}", share >= 0.95)


def judged(draw: Draw) -> tuple[int, int, dict[str, int]]:
    """Runs that claim `ok`, those of them whose interval holds the truth, and how often each code came."""
    rng = np.random.default_rng(1)
    claimed = held = 0
    codes: dict[str, int] = {}
    for _ in range(TRIALS):
        run = draw(rng)
        summary = stats.summarize(run)
        replies = [{"steady": True, "invocations": len(restart)} for restart in run]
        verdict = judge(summary, Circumstances(replies, {}, {}, cap=10**9))
        for code in verdict:
            codes[code] = codes.get(code, 0) + 1
        if verdict == ("ok",):
            assert summary.low_ns is not None and summary.high_ns is not None
            claimed += 1
            held += summary.low_ns <= TRUTH <= summary.high_ns
    return claimed, held, codes


# Does the gate let through what it should?


def turns(rng: np.random.Generator, slowdown: float) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """
    Medians of the restarts of two bundles that took turns on a machine that others use.

    Processes differ by 1 % (memory layout), latencies in a row resemble each other, one in a hundred takes five times
    as long, and background load, which comes and goes within some ten restarts, slows everything by up to 15 %.
    """
    load = 0.0
    medians: tuple[list[float], list[float]] = ([], [])
    for number in range(PAIRS):
        for which in (1, 0) if number % 2 else (0, 1):
            if rng.random() < 0.1:
                load = float(rng.choice([0.0, rng.uniform(0, 0.15)]))
            level = TRUTH * (1 + slowdown * which) * (1 + load) * np.exp(0.01 * rng.standard_normal())
            latencies = level * np.exp(0.03 * noise(rng, 500, 0.8)) * np.where(rng.random(500) < 0.01, 5.0, 1.0)
            medians[which].append(float(np.median(latencies)))
    return np.array(medians[0]), np.array(medians[1])


def gates() -> Iterator[Figure]:
    for what, slowdown, goal in (("A/A", 0.0, "<= 5 % false alarms"), ("3 % slower", SLOWDOWN, ">= 90 % detected")):
        rng = np.random.default_rng(1)
        outcomes = [
            check(effect("latency", *turns(rng, slowdown), paired=True), SLOWDOWN).outcome for _ in range(GATES)
        ]
        shares = {name: outcomes.count(name) / GATES for name in (FAILED, PASSED)}
        met = shares[FAILED] <= 0.05 if slowdown == 0 else shares[FAILED] >= 0.9
        rest = 1 - sum(shares.values())
        result = f"{shares[FAILED]:.1%} failed, {shares[PASSED]:.1%} passed, {rest:.1%} undecided"
        yield Figure(f"gate at 3 %, {what}, {GATES} of {PAIRS} pairs under load", goal, result, met)


def real_gates(folder: Path) -> Iterator[Figure]:
    """The same bundle against itself, here, while another process comes and goes."""
    bundle = build(str(GOLDEN / "digits_int8.tflite"), name="digits", vectors=0).bundle
    inputs = random_inputs(bundle.manifest.inputs, 1, 0)[0]
    ends = threading.Event()
    load = threading.Thread(target=_come_and_go, args=(ends,))
    load.start()
    outcomes = []
    try:
        with _session(folder) as session:
            push(session, bundle)
            plan = Plan(duration_s=0.8, restarts=8, warmup_max_s=0.3)
            for _ in range(REAL_GATES):
                store = Store(folder / "results")
                with (
                    store.writer("measure", _known(bundle)) as first,
                    store.writer("measure", _known(bundle)) as second,
                ):
                    both = [Turn(bundle.digest, inputs, writer) for writer in (first, second)]
                    interleave(session, both, plan)
                found = latency_effect(store.get(first.id), store.get(second.id))
                outcomes.append(check(found, SLOWDOWN).outcome)
    finally:
        ends.set()
        load.join()
    result = ", ".join(f"{outcomes.count(name)} {name}" for name in dict.fromkeys(outcomes))
    yield Figure(f"the same for real, A/A, {REAL_GATES} of 8 pairs", "none fails", result, FAILED not in outcomes)


def _come_and_go(ends: threading.Event) -> None:
    """Half a CPU on average, in bursts of a second or two."""
    rng = np.random.default_rng(0)
    while not ends.is_set():
        busy = subprocess.Popen(["sh", "-c", "while :; do :; done"])
        ends.wait(float(rng.uniform(0.5, 2)))
        busy.kill()
        busy.wait()
        ends.wait(float(rng.uniform(0.5, 2)))


# Do operators add up?


def operators(folder: Path) -> Iterator[Figure]:
    path = CORPUS / "models" / "tiny_ic_resnet8_int8.tflite"
    if not path.is_file():
        yield Figure("operators of ResNet-8 int8", "sum within 5 %", f"not measured: no {path}", None)
        return
    bundle = build(str(path), name="resnet8", vectors=0).bundle
    with _session(folder) as session:
        push(session, bundle)
        inputs = random_inputs(bundle.manifest.inputs, 1, 0)[0]
        with Store(folder / "results").writer("profile", _known(bundle)) as writer:
            found = profile(session, bundle.digest, bundle.model, inputs, writer, duration_s=10)
    result = f"{found.gap:+.1%} ({found.sum_ns / 1e3:.1f} of {found.whole_ns / 1e3:.1f} us, {len(found.ops)} operators)"
    yield Figure("operators of ResNet-8 int8, their sum / the model", "within 5 %", result, abs(found.gap) < 0.05)


# A million invocations


def a_million(folder: Path) -> Iterator[Figure]:
    bundle = build(str(GOLDEN / "digits_int8.tflite"), name="digits", vectors=0).bundle
    store = Store(folder / "results")
    peaks: dict[str, list[int]] = {"host": [], "agent": [], "runner": []}
    with _session(folder) as session:
        push(session, bundle)
        host, agent = psutil.Process(), psutil.Process(session.hello["pid"])
        plan = Plan(duration_s=600, restarts=3, max_invocations=333_334, warmup_max_s=2)
        inputs = random_inputs(bundle.manifest.inputs, 1, 0)[0]
        ticker = iter(range(10**9))

        def watch(seen: Any) -> None:
            if seen.phase == "measure" and next(ticker) % 5 == 0:
                peaks["host"].append(host.memory_info().rss)
                peaks["agent"].append(agent.memory_info().rss)
                peaks["runner"] += [child.memory_info().rss for child in agent.children()]

        with store.writer("measure", _known(bundle)) as writer:
            measured = measure(session, bundle.digest, inputs, plan, writer, watch=watch)
        after = host.memory_info().rss
    run = store.get(writer.id)
    n = measured.latency.n + sum(map(len, run.restarts("warmup_ns")))
    size = sum(path.stat().st_size for path in run.folder.iterdir())
    per = size / n
    yield Figure(f"record of {n:,} invocations, warm-up included", "< 10 bytes each", f"{per:.2f} bytes each", per < 10)
    grown = {who: (max(seen) - min(seen)) / 2**20 for who, seen in peaks.items()}
    text = ", ".join(f"{who} {mib:.1f} MiB" for who, mib in grown.items())
    text += f"; host when it sums up {(after - min(peaks['host'])) / 2**20:.0f} MiB"
    yield Figure("memory that grows while it runs", "bounded: < 8 MiB", text, max(grown.values()) < 8)
    page = folder / "report.html"
    started = time.perf_counter()
    page.write_text(report.render(run, [], []), encoding="utf-8")
    made_s = time.perf_counter() - started
    browser = shutil.which("chromium")
    if browser is None:
        yield Figure("its report opens", "< 3 s", "not measured: no chromium", None)
        return
    opened_s, bare_s = (_opened_s(browser, folder, where) for where in (page.as_uri(), "about:blank"))
    text = (
        f"{opened_s:.1f} s, an empty page {bare_s:.1f} s; made in {made_s:.1f} s, {page.stat().st_size / 1024:.0f} KiB"
    )
    yield Figure("its report opens", "< 3 s", text, opened_s < 3)


def _opened_s(browser: str, folder: Path, where: str) -> float:
    """From the start of a headless browser to a picture of the page."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'browser'}"]
    times = []
    for _ in range(3):
        started = time.perf_counter()
        words = [browser, *flags, f"--screenshot={folder / 's.png'}", where]
        subprocess.run(words, capture_output=True, check=True)
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def _known(bundle: Any) -> dict[str, Any]:
    return {
        "board": {"name": "local"},
        "bundle": {"name": bundle.name, "digest": bundle.digest},
        "deploy": "bench",
        "kernels": {},
    }


def _session(folder: Path) -> Session:
    return connect(LOCAL.model_copy(update={"root": str(folder / "board")}), folder / "known_hosts")
