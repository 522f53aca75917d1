"""The RTL, verilated, on a bus that stalls: the same answers as the reference kernels, the same cycles as the model."""

from __future__ import annotations

import subprocess
from dataclasses import replace

import numpy as np
import pytest

from deploy.fpga import isa, simulator
from deploy.fpga.compiler import compile_model
from deploy.fpga.memory import place
from deploy.fpga.model import Machine, cycles
from deploy.fpga.simulator import Bus, Register, Simulation
from deploy.kernels import sources
from tests.rtl.cases import CASES
from tests.rtl.graphs import Graph, cnv
from tests.rtl.machines import (
    case_on_the_rtl,
    corpus_model,
    differences,
    network_on_the_rtl,
    on_the_rtl,
    reference,
)
from tests.rtl.test_compiler import NETWORKS

pytestmark = pytest.mark.usefixtures("rtl")
#: Cycles at most for one invocation with the weights on the chip; the bus takes 40 cycles to answer.
GOALS = dict(zip(NETWORKS, (41_000, 20_000, 150_000, 12_000), strict=True))


@pytest.mark.parametrize("stream", [False, True], ids=["resident", "streamed"])
@pytest.mark.parametrize("name", CASES)
def test_a_layer_equals_the_reference_kernels_whatever_the_bus_does(name, stream):
    expected, actual = case_on_the_rtl(name, stream, invocations=2)

    assert [] == differences(expected, actual)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_real_network_equals_the_reference_kernels_within_its_cycles(corpus, name):
    expected, actual, taken = network_on_the_rtl(corpus, name)

    assert [] == differences(expected, actual)
    assert taken <= GOALS[name]


def test_a_binary_network_equals_the_reference_kernels_within_its_cycles():
    graph, model = cnv()
    compiled = compile_model(model, "cnv")

    expected, actual, taken = on_the_rtl(compiled, reference(model, graph.values()), Bus())

    assert 1 == len(compiled.segments)
    assert [] == differences(expected, actual)
    assert taken <= 60_000


def test_weights_beyond_the_chip_arrive_before_they_are_needed():
    """Slow memory: every layer waits for its weights, and none finds those of another."""
    graph = Graph(50, 1, 600)
    model = graph.model(graph.dense(graph.dense(graph.dense(graph.input, 400, "RELU"), 400, "RELU"), 10))

    expected, actual, _ = on_the_rtl(
        compile_model(model, "wide"), reference(model, graph.values()), Bus(latency=90, interval=3), invocations=2
    )

    assert [] == differences(expected, actual)


def test_three_quarters_of_the_peak_are_reached_on_resnet8_with_all_movement(corpus):
    model, values = corpus_model(corpus, "tiny_ic_resnet8_int8")
    compiled = compile_model(model, "resnet8")

    *_, taken = on_the_rtl(compiled, reference(model, values), Bus())

    assert 0.75 <= compiled.segments[0].macs / (taken * isa.PIXELS * isa.CHANNELS * isa.DEPTH)


def random_conv(rng: np.random.Generator) -> isa.Conv:
    """Any layer, whether or not a compiler would make it; its memories hold whatever they hold."""
    width, diagonal, residual = int(rng.integers(1, 30)), int(rng.integers(2)), int(rng.integers(2))
    binary = (1 - diagonal) * int(rng.integers(2))
    height = int(rng.integers(1, 6))
    split = int(rng.integers(2))
    pitch, plane = ((width + 1) // 2, (width + 1) // 2 * ((height + 1) // 2)) if split else (width, width * height)
    return isa.Conv(
        once=int(rng.integers(2)), diagonal=diagonal, maximum=diagonal * (1 - residual) * int(rng.integers(2)),
        residual=residual, split=split, nibbles=(1 - binary) * int(rng.integers(2)), binary=binary,
        binarize=int(rng.integers(2)), channel_tiles=int(rng.integers(1, 4)),
        position_tiles=-(-height * width // isa.PIXELS), in_row=int(rng.integers(100)), in_rows=int(rng.integers(20)),
        first_tap=int(rng.integers(8)), taps=int(rng.integers(1, 9)),
        depth_steps=1 if diagonal else int(rng.integers(1, 7)), weights=int(rng.integers(50)), width=width,
        tile_rows=isa.PIXELS // width, tile_columns=isa.PIXELS % width, out_row=500, out_rows=30, out_pitch=pitch,
        out_plane=plane, out_height=height, out_width=int(rng.integers(1, width + 1)), pad=int(rng.integers(-128, 128)),
        zero_point=int(rng.integers(-128, 128)), least=int(rng.integers(-128, -60)), most=int(rng.integers(60, 128)),
        residual_row=int(rng.integers(200)), residual_rows=int(rng.integers(20)), sum_set=int(rng.integers(2)),
        sum_shift=int(rng.integers(16, 32)), sum_zero_point=int(rng.integers(-128, 128)),
        sum_least=int(rng.integers(-128, -60)), sum_most=int(rng.integers(60, 128)),
    )  # fmt: skip


class Bench:
    """
    Memories full of numbers, loaded by both machines; layers to run on them; all activations stored at the end.

    Args:
        values: load and store the activations; cycles do not depend on them.
    """

    def __init__(self, rng: np.random.Generator, convs: list[isa.Conv], values: bool = True) -> None:
        weights = rng.integers(-127, 128, (1024, isa.CHANNELS, isa.DEPTH)).astype(np.int8)
        for conv in convs:
            for tile in range(conv.channel_tiles):
                start = conv.weights + tile * conv.tile_words
                words = weights[start : start + conv.tile_words]
                self._parameters(rng, words[:3].reshape(3, 32).view(np.uint8), conv)
                words[3:] = self._steps(rng, conv)
        taps = [
            isa.Tap(int(rng.integers(-60, 60)), *(int(x) for x in rng.integers(0, 12, 4))).encode() for _ in range(16)
        ]
        tables = rng.integers(-(1 << 60), 1 << 60, 1024, np.int64) >> int(rng.integers(0, 12))
        images = [weights.tobytes(), np.array(taps, "<u8").tobytes(), tables.astype("<i8").tobytes()]
        if values:
            images.append(rng.integers(0, 256, 16384 * 8, np.uint8).tobytes())
        loads: list[isa.Instruction] = []
        self.image = b""
        for memory, data in zip(isa.Memory, images, strict=False):
            beats = len(data) // 8
            loads.append(isa.Load(memory=memory, beats=beats, offset=len(self.image), rows=1024, positions=beats))
            self.image += data.ljust(-(-len(data) // 128) * 128, b"\0")
        first, *others = (replace(conv, wait_loads=len(loads)) for conv in convs)
        everything = isa.Store(base=isa.Base.OUTPUT, beats=16384, rows=1024, positions=16384)
        code = isa.encode([*loads, first, *others, *[everything] * values, isa.End()])
        self.program = (len(self.image), len(code) // 8)
        self.image += code.ljust(-(-len(code) // 4096) * 4096, b"\0")
        self.bases = {isa.Base.MODEL: 0, isa.Base.INPUT: 0, isa.Base.OUTPUT: len(self.image)}
        self.size = len(self.image) + 16384 * 8

    @staticmethod
    def _steps(rng: np.random.Generator, conv: isa.Conv) -> np.ndarray:
        """Weights as the array wants them: none but one of four where diagonal, zeros for what is added."""
        least, end = (-8, 8) if conv.nibbles else (-127, 128)
        steps = rng.integers(least, end, (conv.steps, isa.CHANNELS, isa.DEPTH)).astype(np.int8)
        if conv.diagonal:
            steps[:, np.arange(isa.DEPTH) != (np.arange(isa.CHANNELS) % isa.DEPTH)[:, None]] = 0
        if conv.residual:
            steps[-1] = 0
        if conv.nibbles:
            halves = np.zeros((2 * (conv.tile_words - 3), isa.CHANNELS, isa.DEPTH), np.int8)
            halves[: len(steps)] = steps
            steps = (halves[:, :, ::2] & 15 | halves[:, :, 1::2] << 4).reshape(-1, isa.CHANNELS, isa.DEPTH)
        return steps

    @staticmethod
    def _parameters(rng: np.random.Generator, head: np.ndarray, conv: isa.Conv) -> None:
        """Multipliers, biases and shifts: of outputs that use the range of int8, or of any size."""
        usual = bool(rng.integers(2))
        spread = 1 << (14 if usual else int(rng.integers(1, 32)))
        shifts = rng.integers(7, 12, 8) if usual else rng.integers(0, 32, 8)
        head[0] = rng.integers(1 << 30, 1 << (31 if usual else 32), 8, np.uint64).astype("<u4").view(np.uint8)
        head[1] = rng.integers(-spread // 2, spread // 2, 8).astype("<i4").view(np.uint8)
        head[2, :8] = shifts
        head[2, 8:16] = rng.integers(1, 256, 8) if conv.binary else 1
        head[2, 16:] = rng.integers(-130, 131, 8).astype("<i2").view(np.uint8)

    def load(self, memory: np.ndarray) -> None:
        memory[: len(self.image)] = np.frombuffer(self.image, np.uint8)

    def on_the_model(self) -> np.ndarray:
        memory = np.zeros(self.size, np.uint8)
        self.load(memory)
        Machine(memory, self.bases).run(*self.program)
        return memory[len(self.image) :]

    def on_the_rtl(self, bus: Bus) -> tuple[np.ndarray, int]:
        with Simulation(self.size, bus) as simulation:
            self.load(simulation.memory)
            assert simulation.run(self.bases, *self.program)
            assert (0, "") == simulation.violations()
            return simulation.memory[len(self.image) :].copy(), simulation.read(Register.CYCLES)


@pytest.mark.parametrize("seed", range(24))
def test_any_layers_leave_the_memories_as_the_model_does(seed):
    """Extreme multipliers, biases and shifts, taps that point anywhere, all of the activation memory compared."""
    rng = np.random.default_rng(seed)
    bench = Bench(rng, [replace(random_conv(rng), weights=300 * i) for i in range(1 + seed % 3)])

    wanted, (got, _) = bench.on_the_model(), bench.on_the_rtl(Bus(latency=3, stall=0.1 * (seed % 2), seed=seed))

    unlike = np.flatnonzero(wanted != got)
    assert 0 == len(unlike), f"{len(unlike)} bytes, the first at {unlike[0]}: {wanted[unlike[0]]}, {got[unlike[0]]}"


@pytest.mark.parametrize("seed", range(6))
def test_a_layer_takes_the_cycles_of_the_model(seed):
    """Twice the same layer and once: the difference is what the model counts."""
    rng = np.random.default_rng(100 + seed)
    conv = random_conv(rng)
    state = rng.bit_generator.state
    once = Bench(rng, [conv], values=False).on_the_rtl(Bus())[1]
    rng.bit_generator.state = state
    twice = Bench(rng, [conv, conv], values=False).on_the_rtl(Bus())[1]

    fetched = isa.WORDS  # the longer program comes over the bus
    assert cycles(conv) == twice - once - fetched


def test_an_unknown_operation_ends_the_program_with_an_error():
    with Simulation(8192) as simulation:
        simulation.memory[0] = 77
        assert simulation.run(dict.fromkeys(isa.Base, 0), 0, 8)
        assert 0b0110 == simulation.read(Register.STATUS)


def test_memory_that_is_not_there_is_reported():
    with Simulation(4096) as simulation:
        code = isa.encode([isa.Load(memory=isa.Memory.TAPS, beats=16, offset=4096), isa.End(wait_loads=1)])
        simulation.memory[: len(code)] = np.frombuffer(code, np.uint8)
        assert simulation.run(dict.fromkeys(isa.Base, 0), 0, len(code) // 8)
        assert 0b1010 == simulation.read(Register.STATUS)


def test_a_bus_that_never_answers_is_given_up_and_the_next_program_runs():
    """Abort waits for what is under way, as AXI wants; when the bus comes back, so does the accelerator."""
    graph, model = CASES["3x3"]()
    stock = reference(model, graph.values())
    compiled = compile_model(model, "x")
    (segment,) = compiled.segments
    placed = place(segment, compiled.network)
    with Simulation(placed.size) as simulation:
        placed.install(simulation.memory)
        placed.put(simulation.memory, {port.tensor: stock.get_tensor(port.tensor) for port in segment.inputs})
        assert simulation.run(placed.bases, *segment.prepare)
        simulation.use(Bus(hangs=True))
        assert not simulation.run(placed.bases, *segment.run, most=10_000)
        simulation.write(Register.CONTROL, 0b010)
        simulation.wait(100)
        assert 1 == simulation.read(Register.STATUS) & 1, "its read address still waits"
        simulation.use(Bus())
        simulation.wait(1_000)
        assert 0 == simulation.read(Register.STATUS) & 1

        assert simulation.run(placed.bases, *segment.run)
        expected = {port.tensor: stock.get_tensor(port.tensor) for port in segment.outputs}
        assert [] == differences([expected], [placed.get(simulation.memory)])
        assert (0, "") == simulation.violations()


@pytest.mark.parametrize("after", [1, 20, 70, 130, 200, 260, 300, 400, 500, 800])
@pytest.mark.parametrize("stall", [0.0, 0.3])
def test_an_abort_at_any_time_leaves_nothing_behind(after, stall):
    """While it fetches, loads, computes, stores; what was under way must not show in the next program."""
    graph, model = CASES["residual"]()
    stock = reference(model, graph.values())
    compiled = compile_model(model, "x", stream=True)
    (segment,) = compiled.segments
    placed = place(segment, compiled.network)
    with Simulation(placed.size, Bus(latency=10, stall=stall, seed=after)) as simulation:
        placed.install(simulation.memory)
        placed.put(simulation.memory, {port.tensor: stock.get_tensor(port.tensor) for port in segment.inputs})
        simulation.run(placed.bases, *segment.run, most=after)
        simulation.write(Register.CONTROL, 0b010)
        simulation.wait(500)
        assert 0 == simulation.read(Register.STATUS) & 1

        assert simulation.run(placed.bases, *segment.run)
        expected = {port.tensor: stock.get_tensor(port.tensor) for port in segment.outputs}
        assert [] == differences([expected], [placed.get(simulation.memory)])
        assert (0, "") == simulation.violations()


def test_the_wrapper_for_vivado_fits_the_rtl():
    rtl = sources() / "rtl"
    program = simulator.verilator()
    assert program is not None
    flags = ["--lint-only", "-Wall", "-Wno-lint", "-Wno-style", "--top-module", "overlay"]

    done = subprocess.run(
        [str(program), *flags, str(rtl / "vivado" / "overlay.v"), *map(str, sorted(rtl.glob("*.sv")))],
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert (0, "") == (done.returncode, done.stderr)


def test_identity_and_shape_can_be_read():
    with Simulation(4096) as simulation:
        assert 0xD1A5 << 16 | isa.VERSION == simulation.read(Register.IDENTITY)
        shape = bytes([isa.BANKS, isa.DEPTH, isa.CHANNELS, isa.PIXELS])
        assert int.from_bytes(shape, "little") == simulation.read(Register.SHAPE)
