"""What a comparison with the golden vectors amounts to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from deploy.verify import Verification, judge
from devices.runner import _compare


def compared(expected: Any, actual: Any) -> dict[str, Any]:
    """As the board sends it."""
    expected = np.asarray(expected)
    return {"vector": 0, "output": "y", "dtype": expected.dtype.name, **_compare(expected, np.asarray(actual))}


def verdict(*outputs: dict[str, Any]) -> Verification:
    return judge(list(outputs), 2, "tflite-runtime 2.14.0", "ai-edge-litert 2.3.0")


def int8(*values: int) -> Any:
    return np.array(values, np.int8)


def float32(*values: float) -> Any:
    return np.array(values, np.float32)


def test_equal_bits_are_exact() -> None:
    found = verdict(compared(int8(1, 2, 3), int8(1, 2, 3)), compared(float32(np.nan, 1.0), float32(np.nan, 1.0)))

    assert (True, True, 0, 5) == (found.passed, found.exact, found.differing, found.elements)
    assert "2 golden vectors bit-exact (5 values)" == found.summary


def test_what_is_off_by_one_is_counted_apart_and_the_path_is_named() -> None:
    first = compared(int8(1, 2, 3, 4), int8(2, 2, 2, 9))
    found = judge([first], 1, "ai-edge-litert 2.3.0", "XNNPACK", "auto", ("CONV_2D conv_w4_4x16c16_neon",))

    assert (2, 3, 5) == (found.off_by_one, found.differing, found.largest_steps)
    assert (
        "3 of 4 golden values differ, by at most 5 steps (2 by one); made by XNNPACK, answered by "
        "ai-edge-litert 2.3.0, our kernels auto: CONV_2D conv_w4_4x16c16_neon" == found.summary
    )
    assert "ai-edge-litert 2.3.0, our kernels auto: no node" == judge([], 0, "ai-edge-litert 2.3.0", "x", "auto").path
    assert "ai-edge-litert 2.3.0, our kernels off" == judge([], 0, "ai-edge-litert 2.3.0", "x").path


@pytest.mark.parametrize(
    ("expected", "actual", "passed", "summary"),
    [
        # XNNPACK and the reference kernels round one step apart, up or down
        (int8(1, 2, 3), int8(1, 3, 2), True, "2 of 3 golden values differ, by at most 1 step"),
        (int8(1, 2, 3), int8(1, 2, 5), False, "1 of 3 golden values differ, by at most 2 steps"),
        # the largest distance of int8: it does not fit int8
        (int8(-128), int8(127), False, "1 of 1 golden values differ, by at most 255 steps"),
        (np.array([7], np.int16), np.array([8], np.int16), True, "1 of 1 golden values differ, by at most 1 step"),
        # an index or a flag is no rounded number: class 8 is not nearly class 7
        (np.array([7], np.int64), np.array([8]), False, "1 of 1 golden values differ, by at most 1 step"),
        (np.array([True]), np.array([False]), False, "1 of 1 golden values differ, by at most 1 step"),
        # floats: relative to the largest value of the output, not to the value itself
        (float32(0, 10), float32(0.0009, 10), True,
         "1 of 2 golden values differ, by at most 9.0e-05 of the largest value"),
        (float32(0, 10), float32(0.0011, 10), False,
         "1 of 2 golden values differ, by at most 1.1e-04 of the largest value"),
        (float32(0, 0), float32(0, 1e-9), False,
         "1 of 2 golden values differ, by at most inf of the largest value"),
        (np.array([1 + 1j]), np.array([1 + 1.0001j]), True,
         "1 of 1 golden values differ, by at most 7.1e-05 of the largest value"),
        # NaN on one side only: nothing says how far off
        (float32(1, 2), float32(1, np.nan), False, "1 of 2 golden values differ"),
        (float32(1, np.nan), float32(1, 2), False, "1 of 2 golden values differ"),
        (float32(1, 2), float32(1, np.inf), False, "1 of 2 golden values differ, by at most inf of the largest value"),
        (int8(1, 2), int8(1, 2, 3), False, "2 of 2 golden values differ"),
        (np.array([b"cat"]), np.array([b"dog"], object), False, "1 of 1 golden values differ"),
    ],
    ids=["one step", "two steps", "far", "int16", "index", "flag", "within", "outside", "zeros", "complex", "NaN here",
         "NaN there", "infinite", "shape", "strings"],
)  # fmt: skip
def test_a_difference_passes_where_two_runtimes_may_differ_so_much(
    expected: Any, actual: Any, passed: bool, summary: str
) -> None:
    found = verdict(compared(expected, actual))

    assert (
        f"{summary}; made by ai-edge-litert 2.3.0, answered by tflite-runtime 2.14.0, our kernels off" == found.summary
    )
    assert (passed, False) == (found.passed, found.exact)


def test_minus_zero_is_not_bit_equal_and_passes() -> None:
    found = verdict(compared(float32(0.0, 1.0), float32(-0.0, 1.0)))

    assert (True, 1, 0.0) == (found.passed, found.differing, found.largest_relative)
    assert found.summary.startswith("1 of 2 golden values differ; ")


def test_one_bad_output_among_good_ones_fails_all() -> None:
    found = verdict(
        compared(int8(1), int8(1)),
        compared(int8(1), int8(2)),
        compared(float32(1), float32(2)),
        compared(int8(1), int8(1)),
    )

    assert (False, 2, 1, 1.0) == (found.passed, found.differing, found.largest_steps, found.largest_relative)
    assert found.summary.startswith(
        "2 of 4 golden values differ, by at most 1 step and at most 1.0e+00 of the largest value; "
    )


def test_the_comparison_of_every_output_is_kept() -> None:
    outputs = [compared(int8(1), int8(1)), compared(int8(1), int8(2))]

    assert tuple(outputs) == verdict(*outputs).outputs


def test_no_output_at_all_is_exact() -> None:
    assert "2 golden vectors bit-exact (0 values)" == verdict().summary
