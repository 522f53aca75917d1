"""
Runs a module in a process whose wall clock is wrong.

    python -m tests.farm.skewed SECONDS MODULE [WORD...]
"""

from __future__ import annotations

import runpy
import sys
import time

if __name__ == "__main__":
    real, ahead_s = time.time, float(sys.argv[1])
    time.time = lambda: real() + ahead_s
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
