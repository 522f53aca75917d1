"""A network on the stock runtime's reference kernels, on the model in numpy, and on the RTL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from numpy.typing import NDArray

from deploy.fpga import isa
from deploy.fpga.compiler import Compiled, compile_model
from deploy.fpga.memory import Placed, place
from deploy.fpga.model import Machine
from deploy.fpga.simulator import Bus, Register, Simulation
from tests.rtl.cases import CASES

STALLING = Bus(latency=7, stall=0.3, seed=5)

Values = dict[int, NDArray[np.int8]]


def reference(model: bytes, values: NDArray[Any]) -> Interpreter:
    """The stock runtime after one invocation; every tensor can be read."""
    interpreter = Interpreter(
        model_content=model, experimental_op_resolver_type=OpResolverType.BUILTIN_REF,
        experimental_preserve_all_tensors=True,
    )  # fmt: skip
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], values)
    interpreter.invoke()
    return interpreter


def inputs(placed: Placed, stock: Interpreter) -> Values:
    return {port.tensor: stock.get_tensor(port.tensor) for port in placed.segment.inputs}


def on_the_model(compiled: Compiled, stock: Interpreter) -> tuple[list[Values], list[Values]]:
    """What the reference kernels and the model in numpy answer, segment by segment."""
    expected, actual = [], []
    for segment in compiled.segments:
        placed = place(segment, compiled.network)
        memory = np.zeros(placed.size, np.uint8)
        placed.install(memory)
        placed.put(memory, inputs(placed, stock))
        machine = Machine(memory, placed.bases)
        machine.run(*segment.prepare)
        machine.run(*segment.run)
        actual.append(placed.get(memory))
        expected.append({port.tensor: stock.get_tensor(port.tensor) for port in segment.outputs})
    return expected, actual


def on_the_rtl(
    compiled: Compiled, stock: Interpreter, bus: Bus, invocations: int = 1
) -> tuple[list[Values], list[Values], int]:
    """The same for the RTL; and the cycles of the last invocation of the first segment."""
    expected, actual, cycles = [], [], 0
    for segment in compiled.segments:
        placed = place(segment, compiled.network)
        with Simulation(placed.size, bus) as simulation:
            placed.install(simulation.memory)
            assert simulation.run(placed.bases, *segment.prepare)
            for _ in range(invocations):
                placed.put(simulation.memory, inputs(placed, stock))
                simulation.memory[placed.bases[isa.Base.OUTPUT] :] = 0x55
                assert simulation.run(placed.bases, *segment.run), "it does not end"
                actual.append(placed.get(simulation.memory))
                expected.append({port.tensor: stock.get_tensor(port.tensor) for port in segment.outputs})
            assert 2 == simulation.read(Register.STATUS), "done, and no error"
            assert (0, "") == simulation.violations()
            cycles = cycles or simulation.read(Register.CYCLES)
    return expected, actual, cycles


def case_on_the_rtl(name: str, stream: bool, invocations: int = 1) -> tuple[list[Values], list[Values]]:
    """What the reference kernels and the RTL answer to one of `CASES`, on a bus that stalls."""
    graph, model = CASES[name]()
    compiled = compile_model(model, name, stream)
    expected, actual, _ = on_the_rtl(compiled, reference(model, graph.values()), STALLING, invocations)
    return expected, actual


def network_on_the_rtl(corpus: Path, name: str) -> tuple[list[Values], list[Values], int]:
    """The same for a model of the corpus, on a bus that does not; and its cycles."""
    model, values = corpus_model(corpus, name)
    return on_the_rtl(compile_model(model, name), reference(model, values), Bus())


def differences(expected: list[Values], actual: list[Values]) -> list[str]:
    """Where two answers differ: the first element of each tensor, with both values."""
    found = []
    for number, (wanted, got) in enumerate(zip(expected, actual, strict=True)):
        for tensor, values in wanted.items():
            unlike = np.argwhere(values != got[tensor].reshape(values.shape))
            if len(unlike):
                at = tuple(int(i) for i in unlike[0])
                there = got[tensor].reshape(values.shape)[at]
                found.append(
                    f"{number}: tensor {tensor}{list(at)}: {values[at]} expected, {there} is there; {len(unlike)}"
                )
    return found


def corpus_model(corpus: Path, name: str) -> tuple[bytes, NDArray[Any]]:
    """A model of the corpus and an input with every value."""
    model = (corpus / "models" / f"{name}.tflite").read_bytes()
    probe = Interpreter(model_content=model)
    detail = probe.get_input_details()[0]
    values = np.random.default_rng(7).integers(-128, 128, detail["shape"])
    return model, (values if detail["dtype"] == np.int8 else values / 128).astype(detail["dtype"])
