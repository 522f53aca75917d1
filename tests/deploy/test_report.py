"""The HTML report: one file that needs nothing else."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.results.report import MOST_POINTS, companions, render, thinned, traces
from deploy.results.store import Run, Store
from deploy.results.verdicts import CODES
from tests.conftest import GOLDEN, require_or_skip

pytest.importorskip("matplotlib", reason="needs matplotlib: `pip install 'deploy-hil[report]'`")
pytest.importorskip("jinja2", reason="needs jinja2: `pip install 'deploy-hil[report]'`")

SUMMARY = [("latency", "median 20 us"), ("status", "complete")]


class Page(HTMLParser):
    """What a browser would see."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "results")


def measured(store: Store, board: str = "pi", digest: str = "ab", kind: str = "measure", **record: Any) -> Run:
    known = {"board": {"name": board}, "bundle": {"name": "net", "digest": digest}, "deploy": "0.1.0", "rails": []}
    with store.writer(kind, {**known, **record}) as writer:
        for number in (1, 2):
            latencies = np.random.default_rng(number).lognormal(10, 0.1, 6000).astype(np.int64)
            writer.append(f"latency_ns.{number}", latencies, "ns")
    return store.get(writer.id)


def with_power(store: Store, quantity: str, rail: str = "VDD_IN") -> Run:
    rails = [{"name": rail, "chip": "ina3221", "quantity": quantity}, {"name": "off", "chip": "ina3221"}]
    known = {"board": {"name": "pi"}, "bundle": {"name": "net", "digest": "ab"}, "deploy": "0.1.0", "rails": rails}
    with store.writer("measure", known) as writer:
        writer.append("latency_ns.1", np.array([1000, 2000, 1500]), "ns")
        writer.append("sample_t_ns", np.arange(50) * 10_000_000, "ns")
        writer.append("sample_rail", np.zeros(50, np.int32), "index in rails")
        writer.append("sample_value", np.linspace(1000, 3000, 50), "mW or uJ, see rails")
        writer.set(windows=[{"start_ns": 100_000_000, "end_ns": 300_000_000, "invocations": 3}])
    return store.get(writer.id)


def test_a_report_loads_nothing_from_anywhere(store: Store) -> None:
    """It is mailed and archived; a font or script from elsewhere would be gone, or watching."""
    html = render(measured(store), SUMMARY, [])
    page = Page(html)

    loads = [value for name, value in page.attributes if name in ("src", "href", "xlink:href", "data", "action")]
    assert [] == [value for value in loads if not value.startswith("#")]
    assert not {"script", "link", "iframe", "img", "object", "embed", "base"} & set(page.tags)
    assert not re.search(r"@import|url\((?!#)", html)


def test_a_report_shows_summary_latency_plots_and_the_record(store: Store) -> None:
    run = measured(store)

    page = Page(render(run, SUMMARY, []))

    assert 2 == page.tags.count("svg")
    headings = ("net on pi", "Latency of every invocation", "Distribution", "restart 2", "median 20 us", run.id)
    assert [] == [text for text in headings if text not in page.text]
    assert '"digest": "ab"' in page.text


def test_what_a_user_named_cannot_become_code(store: Store) -> None:
    evil = "<script>alert(1)</script>"
    run = measured(store, board=evil)

    page = Page(render(run, [("latency", evil), (evil, "")], [(run, [("accuracy", evil)])]))

    assert "script" not in page.tags
    assert page.text.count(evil) >= 5  # title, heading, three in tables; and the record


def test_a_rails_name_cannot_become_code_in_a_plot(store: Store) -> None:
    page = Page(render(with_power(store, "power_mw", rail="<script>alert(1)</script>"), SUMMARY, []))

    assert "script" not in page.tags
    assert "<script>alert(1)</script> (ina3221)" in page.text


@pytest.mark.parametrize("quantity", ["power_mw", "energy_uj"])
def test_power_is_plotted_where_there_are_samples(store: Store, quantity: str) -> None:
    page = Page(render(with_power(store, quantity), SUMMARY, []))

    assert 3 == page.tags.count("svg")
    assert "VDD_IN (ina3221)" in page.text
    assert "off (ina3221)" not in page.text


def test_power_of_a_meter_on_the_host_is_plotted_on_the_boards_clock(store: Store) -> None:
    """Its samples carry the host's clock, ten seconds ahead of the board's; the window, the board's."""
    rails = [{"name": "vin_12v", "chip": "psu", "quantity": "power_mw"}]
    known = {"board": {"name": "pi"}, "bundle": {"name": "net", "digest": "ab"}, "deploy": "0.1.0"}
    with store.writer("measure", {**known, "host_rails": rails}) as writer:
        writer.append("host_sample_t_ns", 10_000_000_000 + np.arange(50) * 10_000_000, "ns, host's clock")
        writer.append("host_sample_rail", np.zeros(50, np.int32), "index in host_rails")
        writer.append("host_sample_value", np.linspace(1000, 3000, 50), "mW or uJ, see host_rails")
        writer.set(clock={"origin_ns": 0, "offset_ns": -1e10, "drift": 0.0, "bound_ns": 1e5})
        writer.set(windows=[{"start_ns": 100_000_000, "end_ns": 300_000_000, "invocations": 3}])
    run = store.get(writer.id)

    ((label, t_ns, watts),) = traces(run)
    assert ("vin_12v (psu)", 0, 490_000_000) == (label, t_ns[0], t_ns[-1])
    assert (1.0, 3.0) == (watts[0], watts[-1])
    assert "vin_12v (psu)" in Page(render(run, SUMMARY, [])).text


def test_a_long_trace_is_thinned_and_its_peaks_stay(store: Store) -> None:
    watts = np.full(100_000, 2.0)
    watts[77_777], watts[88_888] = 9.0, 0.5

    t_ns, kept = thinned(np.arange(100_000), watts)

    assert len(kept) <= MOST_POINTS
    assert (9.0, 0.5, 77_777) == (kept.max(), kept.min(), t_ns[kept.argmax()])


def test_a_run_that_broke_off_is_marked(store: Store) -> None:
    known = {"board": {"name": "pi"}, "bundle": {"name": "net", "digest": "ab"}, "deploy": "0.1.0"}
    with pytest.raises(ValueError, match="silent"), store.writer("measure", known) as writer:
        writer.append("warmup_ns.1", np.array([1, 2]), "ns")
        raise ValueError("silent")
    run = store.get(writer.id)

    page = Page(render(run, [("status", "incomplete: silent")], []))

    assert ("class", "bad") in page.attributes
    assert "incomplete: silent" in page.text
    assert "svg" not in page.tags
    assert ("class", "bad") not in Page(render(measured(store), SUMMARY, [])).attributes


def test_the_same_run_gives_the_same_report(store: Store) -> None:
    run = measured(store)

    assert render(run, SUMMARY, []) == render(run, SUMMARY, [])


def test_a_long_run_is_thinned_and_its_slowest_invocation_stays(store: Store) -> None:
    """Half a million points would be a file that no browser opens."""
    known = {"board": {"name": "pi"}, "bundle": {"name": "net", "digest": "ab"}, "deploy": "0.1.0"}
    with store.writer("measure", known) as writer:
        latencies = np.full(300_000, 20_000)
        latencies[123_457] = 7_000_000_000
        writer.append("latency_ns.1", latencies, "ns")

    html = render(store.get(writer.id), SUMMARY, [])

    assert len(html) < 1_000_000
    assert "slower invocations lie beyond the axis" in html
    # The axis is in us, and reaches to 7 s: six decades.
    assert len(re.findall(r"\$.mathdefault.10\^", html)) > 4


def test_a_record_of_version_1_can_be_reported(store: Store) -> None:
    shutil.copytree(GOLDEN / "record_v1", store.root)

    page = Page(render(store.get("last"), SUMMARY, []))

    assert 3 == page.tags.count("svg")


# Companions


def test_the_latest_run_of_every_other_kind_of_the_same_bundle_and_board_goes_along(store: Store) -> None:
    old = measured(store, kind="evaluate")
    shutil.move(old.folder, store.root / "20200101-000000-0000")
    path = store.root / "20200101-000000-0000" / "record.json"
    path.chmod(0o644)
    path.write_text(path.read_text().replace(old.id, "20200101-000000-0000"))
    new, proof = measured(store, kind="evaluate"), measured(store, kind="verify")
    for other in ({"board": "nano"}, {"digest": "cd"}):
        measured(store, kind="verify", **other)
    run = measured(store)
    measured(store)

    assert {new.id, proof.id} == {companion.id for companion in companions(store, run)}


def test_a_companions_summary_is_in_the_report(store: Store) -> None:
    run, proof = measured(store), measured(store, kind="verify")

    page = Page(render(run, SUMMARY, [(proof, [("verification", "bit-exact")])]))

    assert proof.id in page.text and "bit-exact" in page.text


# Beside latency and power

PROFILE = {
    "gap": -0.012,
    "ops": [
        {"first": 0, "last": 0, "names": ["CONV_2D"], "time_ns": 9632.0, "low_ns": 9000.0},
        {"first": 1, "last": 2, "names": ["ADD", "<script>alert(1)</script>"], "time_ns": -504.0, "low_ns": None},
    ],
}
STATE = {"state_before": {"governors": ["performance"]}, "state_after": {"governors": ["powersave"]}}


def test_operators_of_the_latest_profile_are_bars(store: Store) -> None:
    profile = measured(store, kind="profile", profile=PROFILE)

    page = Page(render(measured(store), SUMMARY, [(profile, [])]))

    assert "Operators" in page.text and "0 CONV_2D" in page.text
    assert "the sum differs from the model by -1.2%" in page.text
    assert "script" not in page.tags


def test_codes_are_explained_and_the_board_is_described(store: Store) -> None:
    run = measured(store, verdict=["throttled", "of-another-version"], **STATE)

    page = Page(render(run, SUMMARY, []))

    assert CODES["throttled"].meaning in page.text and CODES["throttled"].remedy in page.text
    assert "performance" in page.text and "powersave" in page.text


def test_other_runs_on_the_board_stand_beside_this_one(store: Store) -> None:
    def bundle(name: str, correct: int) -> dict[str, Any]:
        return {"name": name, "digest": name, "host_accuracy": {"correct": correct, "samples": 100}}

    for name, correct in (("int8", 90), ("w4a8", 88)):
        run = measured(store, bundle=bundle(name, correct), latency={"median_ns": 1e6 / correct})

    page = Page(render(run, SUMMARY, [], store))

    assert "Among the runs on this board" in page.text
    assert [] == [text for text in ("int8", "w4a8", "Pareto front", "accuracy [%]") if text not in page.text]


def test_a_browser_shows_the_report_without_a_network_and_without_a_complaint(store: Store, tmp_path: Path) -> None:
    """A real one, headless: every plot has a size, nothing is asked of anybody, nothing is logged."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    require_or_skip(browser is not None, "needs a browser: `sudo apt install chromium`")
    profile = measured(store, kind="profile", profile=PROFILE)
    probe = """<script>
      const sizes = [...document.querySelectorAll("svg")].map(s => s.getBoundingClientRect());
      document.title = sizes.every(s => s.width > 300 && s.height > 50) + " " + sizes.length + " " +
        performance.getEntriesByType("resource").length + " " + document.compatMode;
    </script>"""
    page = tmp_path / "report.html"
    html = render(with_power(store, "power_mw"), SUMMARY, [(profile, [])])
    page.write_text(html.replace("</html>", probe + "</html>"), encoding="utf-8")

    done = subprocess.run(
        [str(browser), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
         f"--user-data-dir={tmp_path / 'browser'}", "--enable-logging=stderr", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip

    assert "<title>true 4 0 CSS1Compat</title>" in done.stdout
    assert not re.search(r"CONSOLE", done.stderr)
