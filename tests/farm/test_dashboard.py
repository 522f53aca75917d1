"""The dashboard: a real server, and a real browser that looks at it."""

from __future__ import annotations

import shutil
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deploy import boards
from deploy.cli.runs import summary
from deploy.farm.leases import Leases
from deploy.farm.live import Publisher
from deploy.farm.seen import Sightings
from deploy.paths import farm_file
from deploy.results.store import Store
from tests.conftest import require_or_skip
from tests.farm.browser import Browser

pytest.importorskip("starlette", reason="needs starlette: `pip install 'deploy-hil[farm]'`")
pytest.importorskip("uvicorn", reason="needs uvicorn: `pip install 'deploy-hil[farm]'`")
HOSTILE = "<script>document.title = 'owned'</script>"
BOARDS = """\
schema: 1
boards:
  desk: {kind: raspberry-pi, transport: {kind: ssh, host: desk}, tags: [lab]}
  attic: {kind: jetson, transport: {kind: ssh, host: attic}}
"""


@dataclass
class Site:
    address: str
    store: Store
    folder: Path
    leases: Leases

    def get(self, path: str, **headers: str) -> tuple[int, str, Any]:
        request = urllib.request.Request(self.address + path, headers=headers)
        try:
            with urllib.request.build_opener(_Stay).open(request, timeout=30) as answer:
                return answer.status, answer.read().decode(), answer.headers
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(), error.headers


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def measured(store: Store, bundle: str = "digits", correct: int = 90) -> str:
    about = {"name": bundle, "digest": "1f" * 32, "host_accuracy": {"correct": correct, "samples": 100}}
    record = {"board": {"name": "desk", "identity": {"machine": "aarch64"}}, "bundle": about, "deploy": "test"}
    with store.writer("measure", record) as writer:
        writer.append("latency_ns.1", np.arange(1_000_000, 1_001_000), "ns")
        writer.set(
            latency={"median_ns": 1e6 + correct, "low_ns": 9e5, "high_ns": 1.1e6},
            verdict=["ok"],
            headline="1 ms",
            energy=[],
            unmetered="no meter on desk",
        )
    return writer.id


def serve(folder: Path, token: str | None) -> Iterator[Site]:
    from deploy.farm.dashboard.app import Dashboard
    from deploy.farm.dashboard.server import listen, server
    from deploy.farm.dashboard.view import View

    (folder / "boards.yaml").write_text(BOARDS)
    registry = boards.load(str(folder / "boards.yaml"))
    store = Store(folder / "results")
    leases = Leases(farm_file(folder))
    view = View(registry, store)
    listener = listen("127.0.0.1", 0)
    ours = server(Dashboard(view, summary), token)
    thread = threading.Thread(target=ours.run, args=([listener],))
    thread.start()
    while not ours.started:
        time.sleep(0.01)
    yield Site(f"http://127.0.0.1:{listener.getsockname()[1]}", store, folder, leases)
    ours.should_exit = True
    thread.join(20)
    leases.close()
    view.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    yield from serve(tmp_path, None)


@pytest.fixture
def far_site(tmp_path: Path) -> Iterator[Site]:
    yield from serve(tmp_path, "s3cret")


def test_the_first_page_has_boards_and_runs_without_a_script(site):
    run = measured(site.store)

    status, page, _ = site.get("/")

    assert 200 == status
    assert [] == [text for text in ("desk", "attic", "raspberry-pi", run, "1 ms") if text not in page]


def test_what_a_user_named_is_text_and_nothing_else(site):
    measured(site.store, bundle=HOSTILE)

    for path in ("/", "/runs", "/runs/last"):
        assert HOSTILE not in site.get(path)[1]
    assert "&lt;script&gt;" in site.get("/")[1]


def test_state_lease_queue_and_temperature_of_every_board_are_told(site):
    Sightings(site.leases.file).saw("desk", state={"temperatures_mc": {"cpu": 51_500}})
    Sightings(site.leases.file).quarantine("attic", "fan is dead")
    lease = site.leases.take("desk", owner="anna", for_s=600, kept=True)

    import json

    told = {board["board"]: board for board in json.loads(site.get("/now")[1])["boards"]}

    assert ("kept", 51.5, None) == tuple(told["desk"][key] for key in ("state", "hottest_c", "reason"))
    assert "anna" in told["desk"]["holder"] and lease.token
    assert ("quarantine", "fan is dead") == (told["attic"]["state"], told["attic"]["reason"])


def test_a_run_is_the_page_of_its_report(site):
    run = measured(site.store)

    status, page, _ = site.get(f"/runs/{run}")

    assert 200 == status and "Latency of every invocation" in page and "<svg" in page


def test_all_runs_are_there_page_by_page(site):
    from deploy.farm.dashboard import app

    runs = [measured(site.store) for _ in range(5)]
    old, app.PAGE = app.PAGE, 2
    try:
        pages = [site.get(f"/runs?page={page}")[1] for page in range(4)]
    finally:
        app.PAGE = old

    shown = [[run for run in runs if run in page] for page in pages]
    assert [2, 2, 1, 0] == [len(each) for each in shown]
    assert sorted(runs) == sorted(run for each in shown for run in each)
    assert ["older" in page for page in pages] == [True, True, False, False]


@pytest.mark.parametrize("path", ["/runs/nothing", "/plans/nothing", "/runs/..%2f..%2fboards.yaml", "/x", "/plans/.."])
def test_a_page_that_is_not_there_is_said_so(site, path):
    assert 404 == site.get(path)[0]


def test_without_a_token_it_answers_to_names_of_this_machine_alone(site):
    """A web site may give this address a name of its own, and have a browser read what is here."""
    assert [200, 200, 403] == [
        site.get("/", Host=host)[0] for host in ("localhost:1", "127.0.0.1:1", "evil.example:8700")
    ]


def test_nothing_may_be_loaded_from_elsewhere(site):
    policy = site.get("/")[2]["content-security-policy"]

    assert "default-src 'none'" in policy and "script-src 'self'" in policy and "http" not in policy


def test_with_a_token_nobody_sees_anything_without_it(far_site):
    assert [401, 401, 401] == [far_site.get(path)[0] for path in ("/", "/now", "/?token=wrong")]
    assert 200 == far_site.get("/", Authorization="Bearer s3cret")[0]

    status, _, headers = far_site.get("/runs?page=1&token=s3cret")

    # The token does not stay in the address.
    assert (303, "/runs?page=1") == (status, headers["location"])
    assert "HttpOnly" in headers["set-cookie"] and "samesite=strict" in headers["set-cookie"].lower()
    assert 200 == far_site.get("/", Cookie=headers["set-cookie"].split(";")[0])[0]


def running(median_ns: float) -> Any:
    """A plan at work, as far as whoever looks on can tell."""
    cell = {"cell": "net/desk/one", "bundle": "net", "place": "desk", "setting": "one", "board": "desk"}
    more = {"state": "running", "run": None, "error": None, "hint": None}
    pulse = {"cell": "net/desk/one", "phase": "restart 1: measure", "invocations": 12_345, "median_ns": median_ns}
    return SimpleNamespace(
        plan=SimpleNamespace(name="night", path=Path("night.yaml")),
        told=lambda: [{**cell, **more}],
        pulses={"desk": {**pulse, "watts": {"VDD_IN": 4.25}}},
    )


def test_a_browser_sees_latency_and_power_while_they_change(site, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    require_or_skip(browser is not None, "needs a browser: `sudo apt install chromium`")
    run = measured(site.store)
    publisher = Publisher(farm_file(site.folder).parent)
    with Browser(str(browser), tmp_path / "profile") as page:
        publisher(running(2_000_000.0))
        page.open(site.address + "/")
        page.until("document.getElementById('running').innerText.includes('2 ms')")
        time.sleep(0.6)
        publisher(running(3_500_000.0))
        page.until("document.getElementById('running').innerText.includes('3.5 ms')")
        shown = page.evaluate("document.getElementById('running').innerText")
        points = page.until("document.querySelector('svg.spark polyline').getAttribute('points')")
        page.screenshot(tmp_path / "farm.png")
        publisher.close()
        page.until("document.getElementById('running').innerText.includes('nothing')")
        page.open(f"{site.address}/runs/{run}")
        page.until("[...document.querySelectorAll('svg')].filter(s => s.clientWidth > 300).length > 1")
        page.screenshot(tmp_path / "run.png")
        assert [] == page.logged
        assert {site.address} == {"/".join(address.split("/")[:3]) for address in page.requested} - {"data:"}

    assert ["desk", "net/desk/one", "12,345", "VDD_IN 4.25 W"] == [
        text for text in ("desk", "net/desk/one", "12,345", "VDD_IN 4.25 W") if text in shown
    ]
    assert len(points.split()) >= 2
    assert b"\x89PNG" == (tmp_path / "farm.png").read_bytes()[:4]
