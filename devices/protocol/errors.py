"""
The errors an agent reports, by code.

A code crosses the wire, the host turns it into an exception of its own: callers never read message texts.
"""

from __future__ import annotations

from typing import Any

# What the host asked for cannot be meant, or is not allowed.
BAD_REQUEST = "bad-request"
UNKNOWN_OP = "unknown-op"
BUSY = "busy"
NOT_FOUND = "not-found"
UNTRUSTED = "untrusted"  # not signed by the key that is pinned here
KEY_CHANGED = "key-changed"  # facts: pinned, given
STALE_TOKEN = "stale-token"  # facts: token, seen, owner
HELD = "held"  # by a lease of another issuer; facts: owner, seen, left_s
# The board cannot.
DISK_FULL = "disk-full"
IO_ERROR = "io-error"
NO_RUNTIME = "no-runtime"
BAD_DIGEST = "bad-digest"
# The model cannot, on this board.
MODEL_REFUSED = "model-refused"  # the runtime said no; `message` is its reason
BAD_INPUT = "bad-input"  # shape or dtype of an input
RUNNER_KILLED = "runner-killed"  # the process that runs the model died; facts: signal, limit
TIME_LIMIT = "time-limit"
CANCELLED = "cancelled"
INTERNAL = "internal"


class AgentError(Exception):
    """
    A request that failed, on its way to the host.

    Args:
        code: one of this module's constants.
        message: one line, for a person.
        facts: values that JSON can carry, for the host's exception.
    """

    def __init__(self, code: str, message: str, **facts: Any) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.facts = facts

    def header(self) -> dict[str, Any]:
        """The header of the ERROR frame, less the request's id."""
        return {"code": self.code, "message": self.message, "facts": self.facts}
