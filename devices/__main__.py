"""``python3 -m devices``: the agent on stdin and stdout."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from devices import line
from devices.agent import Agent
from devices.link import PipeLink
from devices.logic import Logic
from devices.protocol.errors import AgentError


def main() -> None:
    parser = argparse.ArgumentParser(prog="devices", description="The agent; speaks frames on stdin and stdout.")
    parser.add_argument("--root", type=Path, default=Path("~/.local/share/deploy"), help="the board's folder")
    parser.add_argument("--silence-s", type=float, default=60.0, help="end after so long without a frame")
    parser.add_argument("--sysroot", type=Path, default=Path("/"), help="where /sys and /proc are (for tests)")
    parser.add_argument("--overlay", help="bitstream of the accelerator, with its .hwh beside it")
    parser.add_argument("--modules", type=Path, help="folder whose module pynq plays a board's programmable logic")
    parser.add_argument("--journal", type=Path, help="write down there what is done, as whom and when (for tests)")
    parser.add_argument("--self-test", action="store_true", help="start, say hello to nobody, end")
    parser.add_argument("--line", action="store_true", help="serve the serial line that is standard input")
    options = parser.parse_args()
    if options.line:
        line.main(options.silence_s)
        return
    os.umask(0o077)
    # A terminal's Ctrl-C reaches the whole process group; the host decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    link = PipeLink(0, os.dup(1), options.silence_s)
    os.dup2(2, 1)  # a stray print is no frame
    if options.self_test:
        link = PipeLink(os.open(os.devnull, os.O_RDONLY), os.open(os.devnull, os.O_WRONLY))
    try:
        logic = Logic(options.overlay, options.modules) if options.overlay else None
        agent = Agent(options.root.expanduser(), link, options.silence_s, options.sysroot, options.journal, logic)
    except AgentError as error:
        sys.exit(f"devices: {error}")
    agent.run()
    if options.self_test:
        sys.stderr.write("devices: ok\n")


if __name__ == "__main__":
    main()
