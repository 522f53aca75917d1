"""
The programmable logic of a board that has some: which overlay holds the accelerator, and what a release brings for it.

The agent only decides whether a model may go there; `backends/pynq.py`, in the runner, opens the overlay and sees
whether it is the one that the model was compiled for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devices.protocol.errors import AgentError
from devices.store import Store


@dataclass(frozen=True)
class Logic:
    """
    Attributes:
        overlay: the bitstream, with its .hwh beside it.
        modules: a folder with a module `pynq` that plays the board; None: it is one.
    """

    overlay: str
    modules: Path | None = None

    def offer(self, store: Store, release: str | None, header: dict[str, Any], signed_alone: bool) -> dict[str, Any]:
        """
        What the runner is told: `overlay`, and the path of what was `compiled`, or `why` there is nothing to run.

        Args:
            release: whose model is loaded; None for a bare one.
            header: of the request to load it.
            signed_alone: this board obeys a signing key, and what is compiled from a model is not signed.
        """
        why = None
        compiled: Path | None = None
        if not header.get("accelerator"):
            why = "it was not asked for"
        elif header.get("signature") or header.get("shapes"):
            why = "it runs a model as it is, and not another signature or other shapes"
        elif signed_alone:
            why = "a signing key is pinned here, and the compiled model is not signed"
        elif release is None:
            why = "nothing was compiled for a bare model"
        else:
            try:
                entry = store.accelerated_of(release)
                if entry is None or entry.sha256 is None:
                    why = (entry and entry.why) or f"{release} came without a compiled model"
                else:
                    compiled = store.checked(entry.sha256)
            except AgentError as error:
                why = str(error)
        return {"overlay": self.overlay, "compiled": None if compiled is None else str(compiled), "why": why}
