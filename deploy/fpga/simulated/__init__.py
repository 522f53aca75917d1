"""
What stands on the path of a board of kind pynq-sim in pynq's place: `pynq.py`.

The package itself wants NumPy before 2 and forty others; of its API the backend uses two names.  The tests run the same
backend on the unmodified package, too (`tests/rtl/test_pynq.py`).
"""

from __future__ import annotations

from pathlib import Path

PATH = Path(__file__).parent
OVERLAY = PATH / "overlay.json"  # unless the board's entry names another one
