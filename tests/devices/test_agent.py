from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import psutil
import pytest

from devices.protocol import manifest, tensors
from devices.protocol.framing import Encoder, Kind, Message
from devices.protocol.manifest import FileEntry, Manifest, digest
from devices.protocol.tensors import TensorSpec
from tests.conftest import ROOT
from tests.devices.test_facts import tree
from tests.devices.test_meters import DESKTOP, ina3221
from tests.devices.wire import Agent, fault, gone
from tests.models import elementwise

MODEL = elementwise()
SHA256 = digest(MODEL)
ONES = TensorSpec("a", "float32", (1, 4)), np.ones((1, 4), "<f4").tobytes()
INPUTS, PAYLOAD = tensors.pack([ONES, ONES])
FOREVER = {
    "tensors": INPUTS,
    "warmup_max_s": 0.0,
    "duration_s": 600.0,
    "min_invocations": 1,
    "max_invocations": 1 << 40,
}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the agent runs on Linux")


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """An agent that every test leaves as it was: no job, no meters."""
    with Agent(tmp_path_factory.mktemp("board")) as agent:
        agent.put(MODEL, SHA256)
        yield agent


def measuring(agent: Agent) -> int:
    """Load the model and measure for ever; returns the request once it is running."""
    assert Kind.REPLY is agent.request("model.load", sha256=SHA256).kind
    request = agent.ask("model.measure", PAYLOAD, **FOREVER)
    agent.receive(Kind.EVENT, request=request)
    return request


def alive(agent: Agent) -> bool:
    return b"still here" == agent.request("ping", b"still here").payload


@contextmanager
def held(agent: Agent) -> Iterator[None]:
    """Stop the agent while the body runs: all that happens meanwhile reaches it at once."""
    process = psutil.Process(agent.pid)
    process.suspend()
    yield
    process.resume()


# The conversation


def test_the_hello_says_who_speaks(agent):
    hello = agent.hello

    assert 1 == hello["protocol"]
    assert agent.process.pid == hello["pid"]
    assert "CLOCK_MONOTONIC" == hello["clock"]
    assert ROOT.name == hello["agent"]  # the folder's name is the content hash where the bootstrap put it
    assert os.uname().machine == hello["identity"]["machine"]
    assert "model.measure" in hello["ops"]


def test_a_ping_returns_the_payload_and_the_clock_of_the_samples(agent):
    before = time.monotonic_ns()

    reply = agent.request("ping", b"\x00\xff" * 1000)

    assert b"\x00\xff" * 1000 == reply.payload
    assert before <= reply.header["clock_ns"] <= time.monotonic_ns()


def test_an_unknown_operation_is_answered_with_those_that_are_known(agent):
    message = agent.request("model.lod")

    assert ("unknown-op", "this agent knows no 'model.lod'") == fault(message)
    assert agent.hello["ops"] == message.header["facts"]["ops"]


@pytest.mark.parametrize("op", [None, 7, ["ping"]])
def test_an_operation_that_is_no_name_is_unknown(agent, op):
    assert ("unknown-op", f"this agent knows no {op!r}") == agent.error(op)


@pytest.mark.parametrize("request_id", [None, "1", 1.0, True])
def test_a_request_without_a_whole_number_as_its_id_is_refused(agent, request_id):
    agent.send(Kind.REQUEST, {"op": "ping", "id": request_id})

    assert ("bad-request", "a request without an id") == fault(agent.receive(Kind.ERROR))


@pytest.mark.parametrize(
    ("op", "header", "text"),
    [
        ("store.progress", {}, "store.progress: KeyError: 'digests'"),
        ("store.put", {"sha256": SHA256[::-1], "bytes": "7", "offset": 0},
         "bytes and offset are whole numbers"),
        ("model.load", {}, "model.load: KeyError: 'sha256'"),
        ("model.load", {"sha256": SHA256, "threads": 0}, "threads 0 is not in [1, 1024]"),
        ("model.load", {"sha256": SHA256, "threads": 1e400},
         "model.load: OverflowError: cannot convert float infinity to integer"),
        ("model.load", {"sha256": "../../etc/passwd"}, "not a SHA-256: '../../etc/passwd'"),
        ("model.infer", {"batch": []}, "no model is loaded"),
        ("model.measure", {}, "no model is loaded"),
        ("runtime.install", {"sha256": 5}, "not a SHA-256: '5'"),
        ("release.activate", {"release": "../x/1"}, "not a release: '../x/1'"),
        ("release.stage", {}, "manifest: not JSON: Expecting value: line 1 column 1 (char 0)"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else None,
)  # fmt: skip
def test_a_request_that_cannot_be_meant_is_refused_and_the_agent_lives_on(agent, op, header, text):
    agent.request("model.unload")

    assert ("bad-request", text) == agent.error(op, **header)
    assert alive(agent)


@pytest.mark.parametrize(
    ("op", "header", "text"),
    [
        ("model.load", {"sha256": "0" * 64}, "the store has no 000000000000"),
        ("model.load", {"bundle": "0" * 64}, "bundle 000000000000 is not on this board"),
        ("model.load", {"bundle": "\ud800"}, "bundle \ud800 is not on this board"),
        ("model.verify", {"bundle": "0" * 64}, "the bundle is not here, or has no golden vectors"),
        ("release.drop", {"release": "kws/1"}, "no release kws/1"),
        ("runtime.install", {"sha256": "0" * 64}, "the store has no 000000000000"),
    ],
    ids=["model", "bundle", "surrogate", "golden", "release", "runtime"],
)
def test_what_is_not_here_is_not_found(agent, op, header, text):
    assert ("not-found", text) == agent.error(op, **header)
    assert alive(agent)


def test_a_blob_that_is_no_archive_is_no_runtime(agent):
    assert ("bad-request", f"{SHA256[:12]} is no archive: File is not a zip file") == agent.error(
        "runtime.install", sha256=SHA256
    )
    assert alive(agent)


def test_a_release_can_be_found_only_after_it_was_staged(agent):
    assert {"release": None, "fit": False, "current": None} == {
        key: value for key, value in agent.request("release.find", bundle="0" * 64).header.items() if key != "id"
    }


def test_the_state_is_told_on_request(agent):
    assert agent.request("state").header["free_bytes"] > 0


# The end


def test_a_goodbye_ends_the_agent(tmp_path):
    with Agent(tmp_path) as agent:
        agent.send(Kind.BYE, {})

        assert [] == agent.rest()


def test_a_line_that_closes_ends_the_agent_and_its_runner(tmp_path):
    with Agent(tmp_path) as agent:
        agent.put(MODEL, SHA256)
        measuring(agent)
        runner = agent.runner()

        assert "" == agent.end()

        assert 0 == agent.process.returncode
        assert gone(runner)


def test_a_host_that_says_nothing_ends_the_agent(tmp_path):
    """A board must not keep running a model for a host that lost power.  The runner ends too."""
    with Agent(tmp_path, "--silence-s", "4") as agent:  # a model is loaded by then
        agent.put(MODEL, SHA256)
        measuring(agent)
        runner = agent.runner()

        assert {Kind.EVENT} >= {message.kind for message in agent.rest()}

        assert gone(runner)


def test_any_frame_of_the_host_counts_as_a_sign_of_life(tmp_path):
    with Agent(tmp_path, "--silence-s", "2") as agent:
        for _ in range(5):
            time.sleep(0.5)
            agent.send(Kind.HEARTBEAT, {})

        assert alive(agent)


def test_a_runner_does_not_outlive_an_agent_that_was_killed(tmp_path):
    """
    Nobody is left to end it, and a model that never returns does not look at its pipe: here it is stopped, so that
    only the kernel can end it.
    """
    with Agent(tmp_path) as agent:
        agent.put(MODEL, SHA256)
        measuring(agent)
        runner = agent.runner()
        runner.suspend()
        try:
            os.kill(agent.pid, signal.SIGKILL)

            assert gone(runner)
        finally:
            runner.kill()


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        (Encoder().encode(Message(Kind.HEARTBEAT)) + b"ls -l\n", "6 bytes between two frames: 'ls -l\\n'"),
        (b"x" * 66_000, f"no frame in 66000 bytes: '{'x' * 60}'..."),
        (bytes.fromhex("d750") + bytes(16), "the checksum of a frame's prefix is wrong"),
    ],
    ids=["between frames", "no frame", "a damaged frame"],
)
def test_bytes_that_are_no_frames_end_the_agent_with_the_reason(tmp_path, stream, reason):
    """What follows cannot be trusted either."""
    with Agent(tmp_path) as agent:
        for start in range(0, len(stream), 66_000):
            agent.send_raw(stream[start : start + 66_000])
        (error,) = agent.rest()

        assert {"id": None, "code": "bad-request", "message": reason, "facts": {}} == error.header


def test_a_host_that_stops_listening_ends_the_agent(tmp_path):
    with Agent(tmp_path) as agent:
        agent.process.stdout.close()
        for _ in range(3):  # the first may still fit into the pipe's grave
            try:
                agent.ask("ping")
            except BrokenPipeError:
                break

        assert 0 == agent.process.wait(10)


def test_a_board_whose_disk_cannot_be_used_says_so_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")

    done = subprocess.run(
        [sys.executable, "-m", "devices", "--root", str(tmp_path / "file" / "board")],
        cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=20,
    )  # fmt: skip

    assert (1, f"devices: Not a directory: {tmp_path / 'file' / 'board'}\n") == (done.returncode, done.stderr)


def test_the_agent_never_imports_numpy_or_a_runtime(tmp_path):
    """Real models kill interpreters; this one must not be exposed, and a board may have neither."""
    program = "import devices.__main__, sys; print([m for m in sys.modules if 'numpy' in m or 'litert' in m])"

    said = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)

    assert "[]\n" == said.stdout


# Jobs


def test_a_heartbeat_comes_while_a_job_runs(tmp_path):
    """Loading is quiet for a long time: the runner is stopped here, so that nothing else can be sent."""
    with Agent(tmp_path) as agent:
        agent.put(MODEL, SHA256)
        agent.request("model.load", sha256=SHA256)
        agent.runner().suspend()
        request = agent.ask("model.infer", PAYLOAD, batch=[INPUTS])
        agent.receive(Kind.HEARTBEAT)
        agent.runner().resume()

        assert Kind.REPLY is agent.answer(request).kind


def test_a_second_job_is_refused_while_one_runs(agent):
    request = measuring(agent)
    busy = ("busy", f"request {request} is still running")

    assert busy == agent.error("model.infer", PAYLOAD, batch=[INPUTS])
    assert busy == agent.error("model.load", sha256=SHA256)
    assert busy == agent.error("model.unload")
    assert busy == agent.error("runtime.probe")
    agent.receive(Kind.EVENT, request=request)  # it goes on undisturbed

    agent.send(Kind.CANCEL, {"id": request})
    agent.answer(request)


@pytest.mark.parametrize(
    ("op", "header"),
    [("clean", {}), ("release.drop", {"release": "kws/1"}), ("runtime.install", {"sha256": SHA256})],
    ids=["clean", "release.drop", "runtime.install"],
)
def test_nothing_is_taken_from_under_a_running_job(tmp_path, op, header):
    """Each of them ends the runner, and the job's host would wait for its answer until the time limit."""
    with Agent(tmp_path) as agent:
        agent.put(MODEL, SHA256)
        request = measuring(agent)

        assert ("busy", f"request {request} is still running") == agent.error(op, **header)

        agent.send(Kind.CANCEL, {"id": request})
        assert ("cancelled", "cancelled by the host") == fault(agent.answer(request))


def test_a_job_can_be_cancelled_and_the_agent_goes_on(agent):
    request = measuring(agent)
    runner = agent.runner()

    agent.send(Kind.CANCEL, {"id": request})

    assert ("cancelled", "cancelled by the host") == fault(agent.answer(request))
    assert gone(runner)
    assert ("bad-request", "no model is loaded") == agent.error("model.infer", PAYLOAD, batch=[INPUTS])
    assert Kind.REPLY is agent.request("model.load", sha256=SHA256).kind


def test_cancelling_what_is_not_running_changes_nothing(agent):
    request = measuring(agent)

    agent.send(Kind.CANCEL, {"id": request - 1})
    agent.send(Kind.CANCEL, {})

    agent.receive(Kind.EVENT, request=request)
    agent.receive(Kind.EVENT, request=request)
    agent.send(Kind.CANCEL, {"id": request})
    assert ("cancelled", "cancelled by the host") == fault(agent.answer(request))


def test_a_cancel_that_comes_together_with_an_event_of_the_runner_is_obeyed(agent):
    """Both are in the agent's hands at once, and the first ends the runner whose event is the second."""
    request = measuring(agent)
    with held(agent):
        agent.send(Kind.CANCEL, {"id": request})
        time.sleep(0.2)  # events come 20 times a second

    assert ("cancelled", "cancelled by the host") == fault(agent.answer(request))
    assert alive(agent)


def test_a_load_that_comes_together_with_the_end_of_the_runner_gets_a_new_one(agent):
    """The new runner's pipes have the numbers of the old one's: what was heard of those is not about these."""
    assert Kind.REPLY is agent.request("model.load", sha256=SHA256).kind
    with held(agent):
        runner = agent.runner()
        runner.kill()
        assert gone(runner)
        request = agent.ask("model.load", sha256=SHA256)

    assert Kind.REPLY is agent.answer(request).kind
    assert Kind.REPLY is agent.request("model.infer", PAYLOAD, batch=[INPUTS]).kind


def test_a_job_that_takes_too_long_is_killed(agent):
    assert Kind.REPLY is agent.request("model.load", sha256=SHA256).kind
    runner = agent.runner()

    error = agent.error("model.measure", PAYLOAD, **FOREVER, limit_s=0.3)

    assert ("time-limit", "killed after 0.3 s (time limit)") == error
    assert gone(runner)
    assert alive(agent)


def test_a_runner_killed_from_outside_is_reported_and_the_next_one_works(agent):
    """As the kernel does when memory runs out."""
    request = measuring(agent)
    agent.runner().kill()

    message = agent.answer(request)

    assert ("runner-killed", "killed by SIGKILL") == fault(message)
    facts = message.header["facts"]
    assert ("SIGKILL", -9) == (facts["signal"], facts["exit_code"])
    assert ["INFO: Created TensorFlow Lite XNNPACK delegate for CPU."] == facts["stderr"]  # its last words
    assert Kind.REPLY is agent.request("model.load", sha256=SHA256).kind


def test_a_runner_killed_while_it_is_idle_does_not_upset_the_agent(agent):
    """
    Nobody waits for an answer: the next request says that the model is gone.  Both pipes of the runner are seen to
    end at once, as the agent is held meanwhile; or a moment later, when a last thread of the runner still had them,
    and then the request itself finds the runner dead.
    """
    assert Kind.REPLY is agent.request("model.load", sha256=SHA256).kind
    with held(agent):
        runner = agent.runner()
        runner.kill()
        assert gone(runner)

    assert alive(agent)
    assert agent.error("model.infer", PAYLOAD, batch=[INPUTS]) in {
        ("bad-request", "no model is loaded"),
        ("runner-killed", "killed by SIGKILL"),
    }
    assert ("bad-request", "no model is loaded") == agent.error("model.infer", PAYLOAD, batch=[INPUTS])


def test_unloading_ends_the_runner(agent):
    assert Kind.REPLY is agent.request("model.load", sha256=SHA256).kind
    runner = agent.runner()

    assert Kind.REPLY is agent.request("model.unload").kind

    assert gone(runner)
    assert ("bad-request", "no model is loaded") == agent.error("model.infer", PAYLOAD, batch=[INPUTS])
    assert Kind.REPLY is agent.request("model.unload").kind  # there is nothing left to do, and that is no error


def test_every_load_takes_a_new_process(agent):
    """What an earlier model left behind cannot touch the next one, and restarts vary most in latency."""
    agent.request("model.load", sha256=SHA256)
    first = agent.runner()
    agent.request("model.load", sha256=SHA256)

    assert first.pid != agent.runner().pid
    assert gone(first)


def test_the_probe_names_runtime_and_numpy(agent):
    header = agent.request("runtime.probe").header

    assert header["runtime"].startswith("ai-edge-litert ")
    assert np.__version__ == header["numpy"]
    assert None is header["installed"]
    assert [] == psutil.Process(agent.pid).children()


# Meters


def test_chips_that_no_driver_shows_are_looked_for_when_the_host_names_them(tmp_path):
    """There is no such bus here: it says so, and the other meters are there as before."""
    root = tree(tmp_path, ina3221())
    wired = [{"name": "vdd_5v", "chip": "ina228", "i2c_bus": 1, "i2c_address": 64, "shunt_mohm": 10.0}]

    with Agent(tmp_path / "board", "--sysroot", str(root)) as agent:
        before = agent.request("meters.list").header
        after = agent.request("meters.wire", wired=wired).header

    assert before["rails"] == after["rails"] and [] == before["unreadable"]
    where = f"{root / 'dev/i2c-1'} at 0x40"
    assert [{"chip": "ina228", "path": where, "reason": "No such file or directory"}] == after["unreadable"]


def test_sampling_ends_with_what_it_cost(tmp_path):
    with Agent(tmp_path / "board", "--sysroot", str(tree(tmp_path, ina3221()))) as agent:
        agent.request("meters.start")
        stats = agent.request("meters.stop").header["sampling"]

    assert (3, [0, 0, 0]) == (len(stats["missing"]), stats["missing"])
    assert stats["turns"] >= 1 and 0 <= stats["cpu_share"] and stats["wall_s"] > 0


def test_the_meters_are_listed_with_those_that_may_not_be_read(tmp_path):
    refused = "sys/class/powercap/intel-rapl:0/energy_uj"
    root = tree(tmp_path, {k: v for k, v in {**DESKTOP, **ina3221()}.items() if k != refused})
    (root / refused).mkdir()

    with Agent(tmp_path / "board", "--sysroot", str(root)) as agent:
        listed = agent.request("meters.list").header

    assert ["dram:0", "VDD_IN", "VDD_CPU_GPU_CV", "channel3"] == [rail["name"] for rail in listed["rails"]]
    assert {
        "name": "VDD_IN", "chip": "ina3221", "scope": "module", "quantity": "power_mw",
        "update_period_s": 0.028, "lsb": 40.0, "total": True, "averaging": "iir", "origin": "measured",
    }.items() <= listed["rails"][1].items()  # fmt: skip
    assert [{"chip": "rapl", "path": str(root / refused), "reason": "Is a directory"}] == listed["unreadable"]


def unpacked(events: list[Message]) -> list[tuple[int, int, float]]:
    return [sample for event in events for sample in struct.iter_unpack("<qid", event.payload)]


def test_samples_stream_from_start_to_stop_and_the_last_comes_before_the_reply(tmp_path):
    root = tree(tmp_path, ina3221())

    with Agent(tmp_path / "board", "--sysroot", str(root)) as agent:
        started = agent.ask("meters.start", rate_hz=200)
        begun = agent.answer(started).header["clock_ns"]
        events = [agent.receive(Kind.EVENT, request=started)]  # the first batch comes by itself
        (root / "sys/class/hwmon/hwmon3/in1_input").write_text("4000\n")
        stopped = agent.ask("meters.stop")
        while (message := agent.receive(Kind.EVENT, Kind.REPLY)).kind is Kind.EVENT:
            events.append(message)

        assert stopped == message.header["id"]
    samples = unpacked(events)
    assert {0, 1, 2} == {rail for _, rail, _ in samples}
    assert (0, 4000.0) == samples[0][1:]
    assert (0, 3200.0) == samples[-3][1:]  # taken after the stop
    assert [e.header["samples"] for e in events] == [len(e.payload) // 20 for e in events]
    assert [t for t, _, _ in samples] == sorted(t for t, _, _ in samples)
    assert begun <= samples[-1][0]


def test_meters_are_started_once_and_may_be_stopped_twice(tmp_path):
    root = tree(tmp_path, ina3221())

    with Agent(tmp_path / "board", "--sysroot", str(root)) as agent:
        assert Kind.REPLY is agent.request("meters.start").kind
        assert ("busy", "the meters are being read already") == agent.error("meters.start")
        assert Kind.REPLY is agent.request("meters.stop").kind
        assert Kind.REPLY is agent.request("meters.stop").kind
        assert Kind.REPLY is agent.request("meters.start").kind


def test_a_meter_that_vanishes_is_told_to_the_host(tmp_path):
    root = tree(tmp_path, ina3221())
    gone_file = root / "sys/class/hwmon/hwmon3/in1_input"

    with Agent(tmp_path / "board", "--sysroot", str(root)) as agent:
        started = agent.ask("meters.start", rate_hz=100)
        gone_file.unlink()
        failed = []
        while not failed:
            failed = [e for e in [agent.receive(Kind.EVENT, request=started)] if "failed" in e.header]
        assert Kind.REPLY is agent.request("meters.stop").kind

    assert (
        f"a meter stopped answering: [Errno 2] No such file or directory: '{gone_file}'" == failed[0].header["failed"]
    )


@pytest.mark.parametrize("rate_hz", [0, -5, 10_001, float("nan"), float("inf")])
def test_a_rate_that_makes_no_sense_is_refused(tmp_path_factory, rate_hz):
    root = tree(tmp_path_factory.mktemp("sysroot"), ina3221())

    with Agent(root / "board", "--sysroot", str(root)) as agent:
        text = f"rate_hz {rate_hz:g} is not in [0.01, 10000]"
        assert ("bad-request", text) == agent.error("meters.start", rate_hz=rate_hz)


def test_a_board_without_a_meter_says_so(tmp_path):
    with Agent(tmp_path / "board", "--sysroot", str(tmp_path)) as agent:
        assert ("not-found", "this board has no meter that can be read") == agent.error("meters.start")
        assert {"rails": [], "unreadable": []} == {
            key: value for key, value in agent.request("meters.list").header.items() if key != "id"
        }


def test_meters_that_are_being_read_do_not_keep_the_agent_alive(tmp_path):
    with Agent(tmp_path / "board", "--sysroot", str(tree(tmp_path, ina3221()))) as agent:
        agent.request("meters.start", rate_hz=100)

        assert "" == agent.end()

        assert 0 == agent.process.returncode


def test_what_the_agent_writes_is_its_users_alone(tmp_path):
    """Whatever the umask of the shell that started it."""
    release = Manifest("add", {manifest.MODEL: FileEntry(SHA256, len(MODEL))}, (), ()).to_bytes()
    with Agent(tmp_path / "board", command=("sh", "-c", 'umask 000; exec "$0" "$@"', sys.executable)) as agent:
        agent.put(MODEL, SHA256)
        assert "add/1" == agent.request("release.stage", release).header["release"]

    modes = {str(path.relative_to(tmp_path)): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert {
        "board": 0o700,
        "board/releases": 0o700,
        "board/releases/add": 0o700,
        "board/releases/add/1": 0o700,
        "board/releases/add/1/manifest.json": 0o600,
        "board/releases/add/1/unproven": 0o600,
        "board/runtime": 0o700,
        "board/store": 0o700,
        f"board/store/{SHA256}": 0o600,
    } == modes
