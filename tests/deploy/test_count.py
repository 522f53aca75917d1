"""Counting executed instructions: exact, the same every time, and of the core that was asked for."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from deploy import data, model_file
from deploy.errors import CountError, ModelRefused, RunnerKilled, UsageError
from deploy.virtual import count
from tests.conftest import GOLDEN, need_tool
from tests.test_layers import HOME

pytestmark = pytest.mark.qemu

DIGITS = (GOLDEN / "digits_int8.tflite").read_bytes()
INPUTS = data.random_inputs(model_file.read(DIGITS, "digits").inputs, 1, seed=0)[0]


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The emulator, and the user's own cache: the guest's Debian is fetched once, not for every test."""
    need_tool("qemu-aarch64", "qemu-user")
    need_tool("qemu-arm", "qemu-user")
    monkeypatch.setenv("XDG_CACHE_HOME", str(HOME / ".cache"))


LOOP = """
#include "mark.h"
void _start(void) {
  count_mark(1);
#if defined(__aarch64__)
  __asm__ volatile("mov x9, #1000\\n1: subs x9, x9, #1\\n b.ne 1b" ::: "x9", "cc");
#else
  __asm__ volatile("mov r4, #1000\\n1: subs r4, r4, #1\\n bne 1b" ::: "r4", "cc");
#endif
  count_mark(2);
  count_mark(3);
#if defined(__aarch64__)
  __asm__ volatile("mov x0, #0\\n mov x8, #93\\n svc #0");
#else
  __asm__ volatile("mov r0, #0\\n mov r7, #1\\n svc #0");
#endif
}
"""


@pytest.mark.parametrize(("cpu", "target"), [("a53", "aarch64-linux-musl"), ("a9", "arm-linux-musleabihf")])
def test_a_loop_of_a_thousand_rounds_counts_two_thousand_and_one(counting, tmp_path, cpu, target):
    """One move, then a thousand times a subtraction and a branch.  The oracle is arithmetic."""
    source, program = tmp_path / "loop.c", tmp_path / "loop"
    source.write_text(LOOP)
    subprocess.run(
        [sys.executable, "-m", "ziglang", "cc", "-target", target, "-nostdlib", "-static", "-O2", f"-I{count.GUEST}",
         "-o", program, source],
        check=True,
    )  # fmt: skip

    before, after, empty = count.count_program(program, cpu=cpu)
    bracket = empty.executed - after.executed

    assert 2001 == after.executed - before.executed - bracket
    assert (1, 2, 3) == (before.label, after.label, empty.label)


@pytest.fixture(scope="module")
def three() -> list[count.Count | ModelRefused | RunnerKilled]:
    """Filled by the first test that asks: a model, one that is refused, and the first again, in one guest."""
    return []


@pytest.fixture
def in_company(counting: None, three: list[count.Count | ModelRefused | RunnerKilled]) -> list[count.Count]:
    if not three:
        three += count.count_models([(DIGITS, INPUTS), (DIGITS[:500], INPUTS), (DIGITS, INPUTS)], "a53")
    return three


def test_a_model_costs_the_same_beside_others_and_alone_and_wherever_its_files_lie(in_company, tmp_path, monkeypatch):
    """Longer paths move the guest's stack and heap; a refused neighbour may leave anything behind."""
    elsewhere = tmp_path / ("long" * 20)
    elsewhere.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    alone = count.count_instructions(DIGITS, INPUTS, "a53")

    assert isinstance(in_company[1], ModelRefused)
    assert alone == in_company[0] == in_company[2]
    assert {alone.instructions} == set(alone.samples)


def test_the_runtime_sees_the_core_and_picks_its_kernels(in_company):
    """An A76 has the dot product: the same answer for far fewer instructions, and more than none."""
    a53, a76 = in_company[0], count.count_instructions(DIGITS, INPUTS, "a76")

    assert a53.outputs_sha256 == a76.outputs_sha256
    assert 1000 < a76.instructions < 0.8 * a53.instructions
    assert ("cortex-a53", "cortex-a76") == (a53.cpu, a76.cpu)


def test_an_armv7_core_runs_the_runtime_that_armv7_boards_have(counting):
    a9 = count.count_instructions(DIGITS, INPUTS, "a9")

    assert "tflite-runtime 2.14.0" == a9.runtime
    assert 1000 < a9.instructions


def test_a_delegate_that_does_not_load_is_refused_by_name(counting, tmp_path):
    library = tmp_path / "libnone.so"
    library.write_bytes(b"no library")

    with pytest.raises(ModelRefused, match=r"libnone\.so"):
        count.count_instructions(DIGITS, INPUTS, "a53", kernels=library)


def test_a_core_that_nobody_knows_is_refused_with_the_nearest():
    with pytest.raises(UsageError) as caught:
        count.core_named("a77")

    assert "no core 'a77' to count on; did you mean 'a76'?" == str(caught.value)


def test_without_an_emulator_the_command_that_brings_it_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(CountError) as caught:
        count.emulator("aarch64")

    assert "no qemu-aarch64 here" == str(caught.value)
    assert caught.value.hint and "apt install qemu-user`" in caught.value.hint


def test_a_program_that_fails_is_told_with_what_it_said(counting, tmp_path):
    program = tmp_path / "none"
    shutil.copy(sys.executable, program)  # an x86 program

    with pytest.raises(CountError, match=r"none on cortex-a53 ended with 255: .*Invalid ELF image"):
        count.count_program(Path(program), cpu="a53")


@pytest.mark.parametrize(("part", "cpu"), [("0xd03", "a53"), ("0xd08", "a72"), ("0xd0b", "a76")])
def test_a_board_s_core_is_known_by_its_part_number(part, cpu):
    assert cpu == count.cpu_of({"machine": "aarch64", "cpu_implementer": "0x41", "cpu_part": part})


def test_the_instructions_of_another_core_are_refused_and_not_guessed():
    """An x86 has none of these cores, and Qualcomm's 0xd03 is not Arm's."""
    with pytest.raises(CountError) as caught:
        count.cpu_of({"machine": "x86_64", "cpu": "AMD EPYC"})
    with pytest.raises(CountError):
        count.cpu_of({"machine": "aarch64", "cpu_implementer": "0x51", "cpu_part": "0xd03"})

    assert "the instructions of AMD EPYC on x86_64 cannot be counted: only of a53, a57, a72, a76, a9" == str(
        caught.value
    )
