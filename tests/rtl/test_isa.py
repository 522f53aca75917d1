"""Instructions and taps as they lie in memory."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from deploy.fpga import isa


def extreme(kind: type[isa.Instruction], highest: bool) -> isa.Instruction:
    """Every field at one end of its range."""
    values = {}
    for name, (_, _, bits, signed) in kind.layout.items():
        ends = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
        values[name] = ends[highest]
    return kind(**values)


@pytest.mark.parametrize("highest", [False, True])
@pytest.mark.parametrize("kind", [isa.Load, isa.Store, isa.Conv, isa.End])
def test_an_instruction_comes_back_from_its_bits(kind, highest):
    instruction = extreme(kind, highest)

    assert [instruction] == isa.decode(isa.encode([instruction]))


@pytest.mark.parametrize("kind", [isa.Load, isa.Conv])
def test_no_two_fields_share_a_bit(kind):
    taken = [(0, bit) for bit in range(8)]  # the operation
    for word, low, bits, _ in kind.layout.values():
        taken += [(word, bit) for bit in range(low, low + bits)]

    assert len(taken) == len(set(taken))
    assert {field.name for field in fields(kind)} == set(kind.layout)


def test_a_value_that_does_not_fit_is_refused_by_name():
    with pytest.raises(ValueError, match=r"Conv\.width = 65536 is outside \[0, 65535\]"):
        isa.Conv(width=65536).encode()


def test_an_unknown_operation_is_refused():
    with pytest.raises(ValueError, match="instruction 1: no operation 9"):
        isa.decode(isa.End().encode() + bytes([9]) + bytes(63))


def test_a_tap_comes_back_from_its_bits():
    for tap in (isa.Tap(-32768, 0, 255, 0, 255), isa.Tap(32767, 1, 0, 254, 3), isa.Tap(-1, 7, 8, 9, 10)):
        assert tap == isa.Tap.decode(int(np.uint64(tap.encode())))
