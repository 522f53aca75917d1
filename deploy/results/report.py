"""
The HTML report of a run: one self-contained file.

Plots are SVG, made by matplotlib from the stored raw samples; the page is a Jinja template with escaping on.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.errors import StoreError
from deploy.results.store import Run, Store

TEMPLATE = Path(__file__).with_name("report.html.j2")
MOST_POINTS = 4000  # more would make the file large and the picture no better
CLIP = 99.5  # percentile at which the histogram's axis ends

Rows = Sequence[tuple[str, str]]


def companions(store: Store, run: Run) -> list[Run]:
    """The latest run of every other kind, of the same bundle on the same board."""
    found: dict[str, Run] = {}
    for row in store.runs():
        same = row["board"] == run.record["board"]["name"] and row["digest"] == run.record["bundle"]["digest"]
        if same and row["kind"] != run.record["kind"] and row["kind"] not in found:
            found[row["kind"]] = store.get(row["id"])
    return list(found.values())


def render(run: Run, summary: Rows, others: Sequence[tuple[Run, Rows]]) -> str:
    """
    The page.

    Args:
        summary: what stands at the top, as key and text.
        others: further runs to mention, with their summaries.

    Raises:
        StoreError: jinja2 or matplotlib are not installed, or an array is damaged.
    """
    try:
        import jinja2
        import matplotlib as mpl
    except ImportError as error:
        raise StoreError(f"reports need {error.name}", "`pip install 'deploy-hil[report]'`") from None
    mpl.use("Agg")
    # Text stays text, and the same data gives the same file.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": run.id, "font.size": 9, "axes.spines.top": False,
                         "axes.spines.right": False})  # fmt: skip
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    record = {key: value for key, value in run.record.items() if key != "restarts"}
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=f"{run.record['bundle']['name']} on {run.record['board']['name']}",
        run=run.record,
        summary=summary,
        others=[{"kind": other.record["kind"], "id": other.id, "summary": rows} for other, rows in others],
        plots=_plots(run),
        record=json.dumps(record, indent=1),
    )


def _plots(run: Run) -> list[dict[str, str]]:
    plots = []
    restarts = run.restarts("latency_ns")
    if restarts:
        plots.append({"title": "Latency of every invocation", "svg": _over_time(restarts)})
        plots.append({"title": "Distribution", "svg": _histogram(np.concatenate(restarts))})
    samples = run.array("sample_t_ns")
    if len(samples):
        plots.append({"title": "Power", "svg": _power(run)})
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
    axes.legend(frameon=False, markerscale=4)
    return _svg(figure)


def _histogram(latency: NDArray[Any]) -> str:
    scale, unit = _unit(latency)
    figure, axes = _figure()
    end = float(np.percentile(latency, CLIP))
    axes.hist(latency[latency <= end] / scale, bins=80)
    axes.axvline(float(np.median(latency)) / scale, color="black", linewidth=1, label="median")
    beyond = int((latency > end).sum())
    axes.set_xlabel(f"latency [{unit}]" + (f"; {beyond} slower invocations lie beyond the axis" if beyond else ""))
    axes.set_ylabel("invocations")
    axes.legend(frameon=False)
    return _svg(figure)


def _power(run: Run) -> str:
    figure, axes = _figure()
    t, rail, value = (run.array(name) for name in ("sample_t_ns", "sample_rail", "sample_value"))
    begin = t.min()
    for i, described in enumerate(run.record["rails"]):
        mine = rail == i
        if not mine.any():
            continue
        seconds, values = (t[mine] - begin) / 1e9, value[mine]
        if described["quantity"] == "energy_uj":
            watts = np.diff(values) / np.maximum(np.diff(t[mine]), 1) * 1e3  # uJ per ns is kW
            seconds = seconds[1:]
        else:
            watts = values / 1000
        axes.plot(seconds, watts, linewidth=0.8, label=f"{described['name']} ({described['chip']})")
    for window in run.record.get("windows", ()):
        axes.axvspan((window["start_ns"] - begin) / 1e9, (window["end_ns"] - begin) / 1e9, alpha=0.15)
    axes.set_xlabel("time [s]; shaded: invocations")
    axes.set_ylabel("power [W]")
    axes.legend(frameon=False)
    return _svg(figure)


def _figure() -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.8), layout="constrained")
    return figure, figure.subplots()


def _svg(figure: Any) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]
