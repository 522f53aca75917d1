"""
What the keeper of a virtual board needs of QEMU, without a machine: QMP, a console that says it is ready, and a control
port that answers.  ``fake_qemu.py QMP CONSOLE UART CONTROL FAULT [-S]``, all but the last descriptors.

Faults: ``panic`` (the guest's kernel panics while it boots), ``never`` (it is never ready), ``port`` (the port is
taken), ``dies`` (it ends some time after it was ready).
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
import time

RETURNS = {"human-monitor-command": "", "qom-list": [{"name": "device[3]", "type": "child<a9mpcore_priv>"}]}


def main() -> int:
    qmp, console, _uart, control = (socket.socket(fileno=int(fd)) for fd in sys.argv[1:5])
    fault = sys.argv[5]
    if fault == "port":
        sys.stderr.write("qemu: -netdev user: Could not set up host forwarding rule 'tcp:127.0.0.1:22-:22'\n")
        return 1

    def say(text: str) -> None:
        with open("console.log", "ab") as log:
            log.write(text.encode() + b"\r\n")
        console.sendall(text.encode() + b"\r\n")

    qmp.sendall(b'{"QMP": {}}\n')
    say("Booting Linux")
    if fault == "panic":
        say("Kernel panic - not syncing: no root\x1b[31m")
        return 0
    if "-S" not in sys.argv and fault != "never":
        say("BOARD-READY 1.0")
    watch = selectors.DefaultSelector()
    for line in (qmp, control):
        watch.register(line, selectors.EVENT_READ)
    ends = time.monotonic() + 0.7 if fault == "dies" else float("inf")
    while time.monotonic() < ends:
        for key, _ in watch.select(0.05):
            data = key.fileobj.recv(65536)
            if not data:
                watch.unregister(key.fileobj)
                continue
            for request in data.decode().splitlines():
                if key.fileobj is control:
                    control.sendall(f"ran {request}\n\x010\n".encode())
                else:
                    ran = json.loads(request)
                    answer = {"return": RETURNS.get(ran["execute"], {})}
                    qmp.sendall(b'{"event": "NOISE"}\n' + json.dumps(answer).encode() + b"\n")
    say("Oops: the guest ends")
    return 0


if __name__ == "__main__":
    sys.exit(main())
