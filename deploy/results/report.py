"""
The HTML report of a run: one self-contained file.

Plots are SVG, made by matplotlib from the stored raw samples; the page is a Jinja template with escaping on.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.clock import Alignment
from deploy.errors import StoreError
from deploy.results.scatter import Point, pareto, points
from deploy.results.store import Run, Store
from deploy.results.verdicts import CODES

MOST_POINTS = 2500  # more would make the file large and the picture no better
CLIP = 99.5  # percentile at which the histogram's axis ends, or at four medians

Rows = Sequence[tuple[str, str]]


def companions(store: Store, run: Run) -> list[Run]:
    """The latest run of every other kind, of the same bundle on the same board."""
    found: dict[str, Run] = {}
    for row in store.runs():
        same = row["board"] == run.record["board"]["name"] and row["digest"] == run.record["bundle"]["digest"]
        if same and row["kind"] != run.record["kind"] and row["kind"] not in found:
            found[row["kind"]] = store.get(row["id"])
    return list(found.values())


def render(run: Run, summary: Rows, others: Sequence[tuple[Run, Rows]], store: Store | None = None) -> str:
    """
    The page.

    Args:
        summary: what stands at the top, as key and text.
        others: further runs to mention, with their summaries.
        store: whose runs on the same board are shown beside this one; None shows none.

    Raises:
        StoreError: jinja2 or matplotlib are not installed, or an array is damaged.
    """
    page = template("report.html.j2", run.id)
    record = {key: value for key, value in run.record.items() if key != "restarts"}
    return str(
        page.render(
            title=f"{run.record['bundle']['name']} on {run.record['board']['name']}",
            run=run.record,
            summary=summary,
            others=[{"kind": other.record["kind"], "id": other.id, "summary": rows} for other, rows in others],
            plots=_plots(run, [other for other, _ in others]) + _beside(run, store),
            verdict=_verdict(run),
            facts=_facts(run),
            record=json.dumps(record, indent=1),
        )
    )


def template(name: str, salt: str) -> Any:
    """
    A template of this folder, with matplotlib ready for its plots.

    Args:
        salt: of the names inside of the plots; the same data gives the same file.

    Raises:
        StoreError: jinja2 or matplotlib are not installed.
    """
    try:
        import jinja2
        import matplotlib as mpl
    except ImportError as error:
        raise StoreError(f"reports need {error.name}", "`pip install 'deploy-hil[report]'`") from None
    mpl.use("Agg")
    # Text stays text.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": salt, "font.size": 9, "axes.spines.top": False,
                         "axes.spines.right": False})  # fmt: skip
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined).get_template(name)


def plots(run: Run) -> list[dict[str, str]]:
    """Title and SVG of what can be drawn of one run."""
    return _plots(run, [])


def _verdict(run: Run) -> list[dict[str, str]]:
    """Every code that is not ok, explained; codes of other versions of deploy stand alone."""
    codes = run.record.get("verdict") or ()
    codes = [codes] if isinstance(codes, str) else codes
    known = [CODES.get(code) for code in codes]
    return [vars(entry) for entry in known if entry is not None and entry.code != "ok"]


def _facts(run: Run) -> list[tuple[str, str, str]]:
    """What is known of the board: what it is, and its state before and after."""
    before, after = (run.record.get(f"state_{when}") or {} for when in ("before", "after"))
    rows = [(key, _shown(value), "") for key, value in run.record["board"].get("identity", {}).items()]
    return rows + [(key, _shown(before.get(key)), _shown(after.get(key))) for key in dict.fromkeys([*before, *after])]


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items())
    return ", ".join(map(_shown, value)) if isinstance(value, list) else "" if value is None else str(value)


def _beside(run: Run, store: Store | None) -> list[dict[str, str]]:
    """This run among the others on its board; nothing when it would be alone."""
    found = points(store, run.record["board"]["name"]) if store else []
    return [{"title": "Among the runs on this board", "svg": _scatter(found, run)}] if len(found) > 1 else []


def _scatter(found: list[Point], run: Run) -> str:
    return scatter(found, lambda point: point.run == run.id, pareto([p for p in found if p.accuracy is not None]))


def scatter(found: Sequence[Point], is_bold: Callable[[Point], bool], front: Sequence[Point]) -> str:
    """Latency, accuracy and, where it was measured, energy of every point; those of `front` are joined by a line."""
    figure, axes = _figure(height=3.6)
    scale, unit = _unit(np.array([point.latency_ns for point in found]))
    rated = [point for point in found if point.accuracy is not None]
    x = [point.latency_ns / scale for point in found]
    y = [math.nan if point.accuracy is None else point.accuracy * 100 for point in found]
    if rated:
        axes.plot([p.latency_ns / scale for p in front], [100 * (p.accuracy or 0) for p in front], "--", color="grey",
                  linewidth=1, label="Pareto front")  # fmt: skip
    else:  # nothing is known of accuracy: latency alone, in the order of the runs
        y = list(range(len(found)))
        axes.set_yticks([])
    energies = [point.energy_uj for point in found]
    if any(energy is not None for energy in energies):
        colours = [math.nan if energy is None else energy / 1000 for energy in energies]
        drawn = axes.scatter(x, y, c=colours, cmap="viridis", zorder=3, plotnonfinite=True)
        axes.figure.colorbar(drawn, label="net energy [mJ]")
    else:
        axes.scatter(x, y, zorder=3)
    for point, at, height in zip(found, x, y, strict=True):
        weight = "bold" if is_bold(point) else "normal"
        if not math.isnan(height):
            axes.annotate(
                point.name, (at, height), textcoords="offset points", xytext=(5, 4), weight=weight, fontsize=8
            )
    axes.set_xlabel(f"median latency [{unit}]" + ("" if rated else "; accuracy is not known of any"))
    axes.set_ylabel("accuracy [%]" if rated else "")
    if rated:
        axes.legend(frameon=False, loc="upper right")
    return _svg(figure)


def _operators(profile: dict[str, Any]) -> str:
    ops = profile["ops"]
    times = np.array([op["time_ns"] for op in ops])
    scale, unit = _unit(np.abs(times[times != 0]) if times.any() else np.ones(1))
    figure, axes = _figure(height=0.8 + 0.19 * len(ops))
    errors = np.array([0.0 if op["low_ns"] is None else op["time_ns"] - op["low_ns"] for op in ops]) / scale
    labels = [f"{op['first']} " + ", ".join(op["names"]) for op in ops]
    axes.barh(range(len(ops)), times / scale, xerr=errors, error_kw={"linewidth": 0.8}, color="#4878a8")
    axes.set_yticks(range(len(ops)), labels, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel(f"time [{unit}], with 95 % intervals; the sum differs from the model by {profile['gap']:+.1%}")
    return _svg(figure)


def _plots(run: Run, others: Sequence[Run]) -> list[dict[str, str]]:
    plots = []
    restarts = run.restarts("latency_ns")
    if restarts:
        plots.append({"title": "Latency of every invocation", "svg": _over_time(restarts)})
        plots.append({"title": "Distribution", "svg": _histogram(np.concatenate(restarts))})
    power = traces(run)
    if power:
        plots.append({"title": "Power", "svg": _power(run, power)})
    profiles = [each.record["profile"] for each in (run, *others) if each.record.get("profile")]
    if profiles:
        plots.append({"title": "Operators", "svg": _operators(profiles[0])})
    return plots


def _unit(values: NDArray[Any]) -> tuple[float, str]:
    typical = float(np.median(values))
    return next(
        ((scale, unit) for unit, scale in (("s", 1e9), ("ms", 1e6), ("us", 1e3)) if typical >= scale), (1.0, "ns")
    )


def _over_time(restarts: list[NDArray[Any]]) -> str:
    scale, unit = _unit(np.concatenate(restarts))
    figure, axes = _figure()
    # Every step-th, and always the slowest: thinning must not hide what is worth seeing.
    step = max(1, sum(map(len, restarts)) // MOST_POINTS)
    before = 0
    for number, latency in enumerate(restarts, start=1):
        kept = np.union1d(np.arange(0, len(latency), step), np.argsort(latency)[-20:])
        axes.plot(before + kept, latency[kept] / scale, ".", markersize=2, label=f"restart {number}")
        before += len(latency)
    axes.set_xlabel("invocation")
    axes.set_ylabel(f"latency [{unit}]")
    axes.set_yscale("log")
    axes.legend(frameon=False, markerscale=4, loc="upper right")
    return _svg(figure)


def _histogram(latency: NDArray[Any]) -> str:
    scale, unit = _unit(latency)
    figure, axes = _figure()
    end = min(float(np.percentile(latency, CLIP)), 4 * float(np.median(latency)))
    axes.hist(latency[latency <= end] / scale, bins=80)
    axes.axvline(float(np.median(latency)) / scale, color="black", linewidth=1, label="median")
    beyond = int((latency > end).sum())
    axes.set_xlabel(f"latency [{unit}]" + (f"; {beyond} slower invocations lie beyond the axis" if beyond else ""))
    axes.set_ylabel("invocations")
    axes.legend(frameon=False, loc="upper right")
    return _svg(figure)


def traces(run: Run) -> list[tuple[str, NDArray[Any], NDArray[Any]]]:
    """Label, ns on the board's clock and W of every rail, of the board's meters and of those on the host."""
    found = []
    for prefix, rails in (("", "rails"), ("host_", "host_rails")):
        t, rail, value = (run.array(f"{prefix}sample_{name}") for name in ("t_ns", "rail", "value"))
        if prefix and len(t):
            t = Alignment(**run.record["clock"]).to_board(t)
        for i, described in enumerate(run.record.get(rails) or ()):
            mine = rail == i
            if not mine.any():
                continue
            t_ns, watts = t[mine], value[mine] / 1000
            if described["quantity"] == "energy_uj":
                watts = np.diff(value[mine]) / np.maximum(np.diff(t_ns), 1) * 1e3  # uJ per ns is kW
                t_ns = t_ns[1:]
            found.append((f"{described['name']} ({described['chip']})", t_ns, watts))
    return [trace for trace in found if len(trace[1])]


def _power(run: Run, shown: Sequence[tuple[str, NDArray[Any], NDArray[Any]]]) -> str:
    figure, axes = _figure()
    begin = min(int(t_ns[0]) for _, t_ns, _ in shown)
    for label, t_ns, watts in shown:
        t_ns, watts = thinned(t_ns, watts)
        axes.plot((t_ns - begin) / 1e9, watts, linewidth=0.8, label=label)
    for window in run.record.get("windows", ()):
        axes.axvspan((window["start_ns"] - begin) / 1e9, (window["end_ns"] - begin) / 1e9, alpha=0.15)
    for window in run.record.get("idle_windows", ()):
        start, end = ((window[key] - begin) / 1e9 for key in ("start_ns", "end_ns"))
        axes.axvspan(start, end, alpha=0.12, facecolor="grey", hatch="//")
    axes.set_xlabel("time [s]; shaded: invocations, hatched: idle")
    axes.set_ylabel("power [W]")
    axes.legend(frameon=False, loc="upper right")
    return _svg(figure)


def thinned(t_ns: NDArray[Any], watts: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The least and the most of every stretch, so that peaks stay: a run has tens of thousands of samples."""
    step = -(-2 * len(watts) // MOST_POINTS)
    if step < 2:
        return t_ns, watts
    kept: list[int] = []
    for at in range(0, len(watts), step):
        part = watts[at : at + step]
        kept += {at + int(part.argmin()), at + int(part.argmax())}
    kept.sort()
    return t_ns[kept], watts[kept]


def _figure(height: float = 2.8) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, height), layout="constrained")
    return figure, figure.subplots()


def _svg(figure: Any) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]
