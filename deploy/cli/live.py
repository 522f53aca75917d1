"""What a measurement looks like while it goes on: a table for the eyes, or one line of JSON for each event."""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from deploy.cli import common

if TYPE_CHECKING:
    from rich.console import RenderableType

    from deploy.measure import Seen

BARS = " ▁▂▃▄▅▆▇█"
ROWS = 12  # of the histogram
STEP = 0.01  # relative width of a bin that is counted; several make a row
BINS = 2800  # from 1 ns to 24 minutes
SPARK = 60  # readings of power that are shown
REFRESH_S = 0.125


class Live:
    """
    Median, histogram, restarts and power, redrawn some times a second; nothing where standard error is no terminal.

    It counts and keeps no latency: its memory does not grow.

    Args:
        title: stands above.
    """

    def __init__(self, title: str) -> None:
        import numpy as np
        from rich.console import Console
        from rich.live import Live as Screen

        self._title = title
        self._counts = np.zeros(BINS, np.int64)
        self._doing = "starting"
        self._medians: dict[int, float] = {}
        self._power: dict[str, deque[float]] = {}
        self._last: dict[str, tuple[int, float]] = {}
        self._began = time.monotonic()
        self._ticker = common.Ticker(1 / REFRESH_S)
        console = Console(stderr=True)
        self._screen = Screen(console=console, transient=True, auto_refresh=False) if sys.stderr.isatty() else None

    def __enter__(self) -> Live:
        if self._screen:
            self._screen.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._screen:
            self._screen.stop()

    def update(self, seen: Seen) -> None:
        """Take what arrived; cheap, as the board's next frame waits."""
        if not self._screen:
            return
        import numpy as np

        self._doing = seen.what or self._doing
        if len(seen.latency_ns):
            bins = (np.log(np.maximum(seen.latency_ns, 1)) / STEP).astype(np.int64)
            self._counts += np.bincount(np.minimum(bins, BINS - 1), minlength=BINS)
            if seen.restart is not None:
                self._medians[seen.restart] = float(np.median(seen.latency_ns))
        for t_ns, rail, value in seen.samples.tolist():
            self._take_power(seen.rails[rail], t_ns, value)
        if self._ticker():
            self._screen.update(self.picture(), refresh=True)

    def _take_power(self, rail: dict[str, Any], t_ns: int, value: float) -> None:
        name = str(rail["name"])
        watts: float | None = value / 1000
        if rail["quantity"] == "energy_uj":
            then, counted = self._last.get(name, (t_ns, value))
            watts = (value - counted) / (t_ns - then) * 1000 if t_ns > then else None  # uJ per ns is kW
            self._last[name] = (t_ns, value)
        if watts is not None:
            self._power.setdefault(name, deque(maxlen=SPARK)).append(watts)

    def picture(self) -> RenderableType:
        """The table as it stands now."""
        from rich.console import Group
        from rich.text import Text

        lines = [Text(f"{self._title}: {self._doing}, {time.monotonic() - self._began:.0f} s")]
        total = int(self._counts.sum())
        if total:
            medians = ", ".join(common.duration(m) for _, m in sorted(self._medians.items()))
            lines.append(Text(f"{total:,} invocations; latest medians {medians}"))
            lines += [Text(line) for line in self._histogram(total)]
        for rail, values in sorted(self._power.items()):
            lines.append(Text(f"{rail}  {sparkline(list(values))} W"))
        return Group(*lines)

    def _histogram(self, total: int) -> list[str]:
        import numpy as np

        below = np.cumsum(self._counts)
        first, last = (int(np.searchsorted(below, share * total)) for share in (0.001, 0.99))
        width = max(1, -(-(last - first + 1) // ROWS))
        rows = [int(self._counts[at : at + width].sum()) for at in range(first, last + 1, width)]
        rows.append(total - int(below[min(first + width * len(rows), BINS) - 1]))
        labels = [common.duration(float(np.exp(at * STEP))) for at in range(first, last + 1, width)] + ["slower"]
        most = max(rows)
        return [
            f"{label:>10} {'█' * round(40 * count / most)} {count:,}" for label, count in zip(labels, rows, strict=True)
        ]


def sparkline(values: list[float]) -> str:
    """The values as bars between the smallest and the largest, which stand beside them."""
    low, high = min(values), max(values)
    span = high - low
    bars = "".join(BARS[1 + round((value - low) / span * 7)] if span else BARS[4] for value in values)
    return f"{bars}  {low:.4g} to {high:.4g}"


class Lines:
    """One line of JSON for each event, see deploy/results/README.md."""

    def __init__(self, title: str) -> None:
        self._doing = ""
        self._count = 0

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, seen: Seen) -> None:
        if seen.what and seen.what != self._doing:
            self._doing = seen.what
            common.show_line({"event": "phase", "phase": seen.phase, "restart": seen.restart})
        if len(seen.latency_ns):
            import numpy as np

            values = seen.latency_ns
            self._count += len(values)
            line: dict[str, Any] = {"event": "latency", "restart": seen.restart, "n": len(values), "total": self._count}
            low, middle, high = int(values.min()), float(np.median(values)), int(values.max())
            common.show_line({**line, "min_ns": low, "median_ns": middle, "max_ns": high})
        if len(seen.samples):
            columns = {name: seen.samples[name] for name in ("t_ns", "rail", "value")}
            common.show_line({"event": "samples", **columns})
