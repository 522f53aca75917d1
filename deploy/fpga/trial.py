"""One invocation on the RTL: the cycles it takes, and whether it answers as the model in numpy does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deploy.errors import BuildError
from deploy.fpga import isa
from deploy.fpga.compiler import Compiled
from deploy.fpga.memory import place
from deploy.fpga.model import Machine
from deploy.fpga.simulator import Bus, Register, Simulation


@dataclass(frozen=True)
class Trial:
    """
    One segment; everything is simulated.

    Attributes:
        cycles: of one invocation: its program, its input, all layers, its output.
        steps: of them, those in which the array was fed.
        bus_bytes: moved in that time, beside the computation as far as it goes.
        prepare_cycles: to bring what stays on the chip, once.
        macs: that the model asks for.
        peak_cycles: that the array would take for them, were all of it at work; `share` of `cycles`.
        exact: the outputs equal those of the model in numpy.
    """

    cycles: int
    steps: int
    bus_bytes: int
    prepare_cycles: int
    macs: int
    peak_cycles: float
    exact: bool

    @property
    def share(self) -> float:
        return self.peak_cycles / self.cycles


def run(compiled: Compiled, bus: Bus, seed: int = 0) -> list[Trial]:
    """
    Run every segment on random values.  Cycles do not depend on values.

    Raises:
        KernelsMissing: the RTL cannot be simulated here.
        BuildError: a program does not end, or ends with an error: a fault of ours.
    """
    rng = np.random.default_rng(seed)
    trials = []
    for segment in compiled.segments:
        placed = place(segment, compiled.network)
        values = {
            port.tensor: rng.integers(-128, 128, compiled.network.tensors[port.tensor].shape).astype(np.int8)
            for port in segment.inputs
        }
        memory = np.zeros(placed.size, np.uint8)
        placed.install(memory)
        placed.put(memory, values)
        machine = Machine(memory.copy(), placed.bases)
        machine.run(*segment.prepare)
        machine.run(*segment.run)
        wanted = placed.get(machine.memory)
        with Simulation(placed.size, bus) as simulation:
            simulation.memory[:] = memory
            taken = []
            for program in (segment.prepare, segment.run):
                ended = simulation.run(placed.bases, *program)
                status = simulation.read(Register.STATUS)
                if not ended or status != 2:
                    raise BuildError(f"the simulated accelerator stopped with status {status:#x}")
                taken.append(simulation.read(Register.CYCLES))
            got = placed.get(simulation.memory)
            exact = all(np.array_equal(wanted[tensor], got[tensor]) for tensor in wanted)
            steps, beats = simulation.read(Register.STEPS), simulation.read(Register.BEATS)
        trials.append(Trial(taken[1], steps, beats * isa.BEAT, taken[0], segment.macs, segment.peak_cycles, exact))
    return trials
