"""
Boards that are labgrid's places, and power switches by its drivers.

Against what stands for its client, and, where labgrid is installed, against its own coordinator and exporter.
"""

from __future__ import annotations

import http.server
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from deploy import power
from deploy.boards import LOCAL, Board, parse
from deploy.errors import ConfigError, PlaceError, PowerError
from deploy.farm.leases import Leases
from deploy.farm.places import acquired
from deploy.farm.seen import Sightings
from deploy.ports import free_port
from tests.farm import labgrid

PI = LOCAL.model_copy(update={"name": "pi", "place": "pi"})


class Relays:
    """A power switch that speaks HTTP as labgrid's model `rest` does."""

    def __init__(self) -> None:
        relays = self
        self.switched: list[str] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                value = self.rfile.read(int(self.headers["Content-Length"])).decode()
                relays.switched.append(f"{self.path} {value}")
                self.send_response(204)
                self.end_headers()

            def log_message(self, *words: object) -> None:
                pass

        self.server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/relay/{{index}}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def relays() -> Iterator[Relays]:
    made = Relays()
    yield made
    made.server.shutdown()
    made.server.server_close()


def real_labgrid(folder: Path, relays: Relays, stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """A coordinator and an exporter of labgrid's own, with the place `pi` and the switch."""
    client = shutil.which("labgrid-client")
    if client is None:
        pytest.skip("needs labgrid: `pip install labgrid`, anywhere on $PATH")
    bin_ = Path(client).parent
    address = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("LG_COORDINATOR", address)
    (folder / "exporter.yaml").write_text(
        f"switch:\n  NetworkPowerPort: {{model: rest, host: '{relays.url}', index: '3'}}\n"
    )
    for command in (
        ["labgrid-coordinator", "-l", address],
        ["labgrid-exporter", "-c", address, "--hostname", "localhost", str(folder / "exporter.yaml")],
    ):
        log = stack.enter_context((folder / f"{command[0]}.log").open("wb"))
        process = subprocess.Popen([str(bin_ / command[0]), *command[1:]], cwd=folder, stdout=log, stderr=log)
        stack.callback(process.wait)
        stack.callback(process.kill)
    end = time.monotonic() + 30
    while b"switch" not in subprocess.run([client, "resources"], capture_output=True, check=False).stdout:
        assert time.monotonic() < end
        time.sleep(0.2)
    subprocess.run([client, "-p", "pi", "create"], check=True)
    subprocess.run([client, "-p", "pi", "add-match", "*/switch/*"], check=True)


@pytest.fixture(params=["stand-in", pytest.param("labgrid", marks=pytest.mark.long)])
def coordinator(
    request: pytest.FixtureRequest, tmp_path: Path, relays: Relays, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    monkeypatch.setenv("LG_USERNAME", "me")
    with ExitStack() as stack:
        if request.param == "labgrid":
            real_labgrid(tmp_path, relays, stack, monkeypatch)
        else:
            labgrid.install(tmp_path / "bin", tmp_path / "state.json")
            monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
        yield request.param


@pytest.fixture
def sightings(tmp_path: Path) -> Iterator[Sightings]:
    leases = Leases(tmp_path / "farm.sqlite")
    yield Sightings(leases.file)
    leases.close()


def client(*words: str, user: str = "me") -> str:
    done = subprocess.run(
        ["labgrid-client", "-p", "pi", *words], env={**os.environ, "LG_USERNAME": user}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


def test_a_place_is_acquired_with_the_lease_and_released_with_it(coordinator: str, sightings: Sightings) -> None:
    with acquired(PI, sightings):
        assert "already acquired by" in client("acquire", user="ben")

    assert "acquired place pi\n" == client("acquire", user="ben")

    with pytest.raises(PlaceError) as caught, acquired(PI, sightings):
        pass
    assert str(caught.value).startswith("labgrid's place 'pi' of board 'pi': acquire: ")
    assert "is already acquired by" in str(caught.value)
    assert "`labgrid-client -p pi show` says who has it" == caught.value.hint


def test_a_place_that_was_acquired_by_hand_is_used_and_left(coordinator: str, sightings: Sightings) -> None:
    client("acquire")

    with acquired(PI, sightings):
        pass

    assert "already acquired by" in client("acquire", user="ben")


def test_a_place_that_a_killed_process_left_behind_is_released_after_the_next_lease(
    coordinator: str, sightings: Sightings
) -> None:
    killed = acquired(PI, sightings)
    killed.__enter__()

    with acquired(PI, sightings):
        pass

    assert "acquired place pi\n" == client("acquire", user="ben")


def test_a_place_that_is_not_there_or_no_labgrid_says_so(
    coordinator: str, sightings: Sightings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PlaceError, match="place pattern nope matches nothing"):
        acquired(PI.model_copy(update={"place": "nope"}), sightings).__enter__()
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    with pytest.raises(PlaceError) as caught:
        acquired(PI, sightings).__enter__()

    assert "board 'pi' is labgrid's place 'pi', and there is no labgrid-client here" == str(caught.value)
    assert not sightings.acquired("pi")


# Power


def with_power(**settings: object) -> Board:
    entry = {**LOCAL.model_dump(), "name": "pi", "place": "pi", "power": {"kind": "labgrid", **settings}}
    return Board.model_validate(entry)


def test_a_place_s_own_switch_is_asked_through_labgrid(
    coordinator: str, sightings: Sightings, relays: Relays, tmp_path: Path
) -> None:
    board = with_power()

    with acquired(board, sightings):
        power.switch(board, "off", tmp_path)

    if coordinator == "labgrid":
        assert ["/relay/3 0"] == relays.switched
    else:
        assert '"power": ["off"]' in (tmp_path / "state.json").read_text()


DRIVER = """\
import urllib.request

def power_set(host, port, index, value):
    assert port is None
    request = urllib.request.Request(host.format(index=index), data=b"1" if value else b"0", method="PUT")
    urllib.request.urlopen(request)
"""


@pytest.fixture
def drivers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of labgrid's name with a driver of its shape."""
    folder = tmp_path / "site" / "labgrid" / "driver" / "power"
    folder.mkdir(parents=True)
    for package in (folder, *folder.parents[:2]):
        (package / "__init__.py").write_text("")
    (folder / "rest.py").write_text(DRIVER)
    (folder / "stuck.py").write_text("import time\n\ndef power_set(host, port, index, value):\n    time.sleep(60)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))


@pytest.mark.usefixtures("drivers")
def test_a_switch_is_driven_by_labgrids_own_driver(
    relays: Relays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(power, "OFF_S", 0.0)

    power.switch(with_power(model="rest", host=relays.url, index=2), "cycle", tmp_path)

    assert ["/relay/2 0", "/relay/2 1"] == relays.switched


@pytest.mark.usefixtures("drivers")
def test_a_switch_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = "power of board 'pi': labgrid's {} at 10.0.0.9, 3 on: "
    for model, limit_s, reason in (
        ("nonesuch", 60.0, "exit status 1: labgrid has no such model"),
        ("stuck", 0.5, "takes more than 0 s"),
    ):
        monkeypatch.setattr(power, "COMMAND_S", limit_s)
        with pytest.raises(PowerError) as caught:
            power.switch(with_power(model=model, host="10.0.0.9", index=3), "on", tmp_path)

        assert shown.format(model) + reason == str(caught.value)


def test_without_labgrid_a_switch_says_how_to_get_it(tmp_path: Path) -> None:
    import importlib.util

    if importlib.util.find_spec("labgrid"):
        pytest.skip("labgrid is installed")
    with pytest.raises(PowerError, match=r"3 on: exit status 1: pip install labgrid brings it$"):
        power.switch(with_power(model="netio", host="10.0.0.9", index=3), "on", tmp_path)


def test_boards_yaml_says_what_a_switch_lacks(tmp_path: Path) -> None:
    text = "schema: 1\nboards:\n  pi:\n    kind: generic\n    transport: {kind: local}\n"
    text += "    power: {kind: labgrid, model: x}\n"
    with pytest.raises(ConfigError, match=r"boards\.yaml:6: boards\.pi\.power: model and host go together"):
        parse(text, Path("boards.yaml"))
    with pytest.raises(ConfigError, match="has neither a labgrid `place:` nor, for its power, a `model:`"):
        power.switch(with_power().model_copy(update={"place": None}), "on", tmp_path)
