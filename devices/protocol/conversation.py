"""What a conversation is made of, beside frames: its version, and the layout of what streams in events."""

from __future__ import annotations

import struct

# Version of the operations and their arguments; host and agent compare it at hello.
#     1  first
PROTOCOL = 1

# One power sample: t_ns on the board's CLOCK_MONOTONIC, number of the rail, value (mW or uJ).
SAMPLE = struct.Struct("<qid")
SAMPLE_FIELDS = (("t_ns", "<i8"), ("rail", "<i4"), ("value", "<f8"))
