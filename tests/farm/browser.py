"""A headless Chromium, spoken to through its debugging pipe: what a page holds, logs and looks like."""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

# Runs the program that follows with the two descriptors as 3 and 4, whatever their numbers are.
_AS_3_AND_4 = """
import fcntl, os, sys
ours = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in sys.argv[1:3]]
for fd, wanted in zip(ours, (3, 4)):
    os.dup2(fd, wanted)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """
    One page of one browser; ends with the ``with``.

    Attributes:
        logged: what the page wrote to its console, and errors.
        requested: every address that the page asked for.
    """

    def __init__(self, program: str, folder: Path) -> None:
        to_it, ours_out = os.pipe()
        ours_in, from_it = os.pipe()
        # The program reads commands from descriptor 3 and answers on 4.
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe"]
        words = [
            sys.executable,
            "-c",
            _AS_3_AND_4,
            str(to_it),
            str(from_it),
            program,
            *flags,
            f"--user-data-dir={folder}",
            "--window-size=1250,1100",
        ]
        self._process = subprocess.Popen(
            words, pass_fds=(to_it, from_it), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(to_it)
        os.close(from_it)
        self._out, self._in = ours_out, ours_in
        self._ids = itertools.count(1)
        self._buffer = b""
        self._session: str | None = None
        self.logged: list[str] = []
        self.requested: list[str] = []
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._ask(f"{domain}.enable")

    def open(self, address: str) -> None:
        self._ask("Page.navigate", url=address)
        self.until(f"location.href == {json.dumps(address)} && document.readyState == 'complete'")

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page."""
        answer = self._ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, expression: str, within_s: float = 30.0) -> Any:
        """What the expression gives once it gives something that is true."""
        end = time.monotonic() + within_s
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < end, (expression, self.logged, self.evaluate("document.body.innerText"))
            time.sleep(0.1)
        return value

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._ask("Page.captureScreenshot", format="png")["data"]))

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._ids)
        told: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session:
            told["sessionId"] = self._session
        os.write(self._out, json.dumps(told).encode() + b"\0")
        end = time.monotonic() + 60
        while True:
            while b"\0" not in self._buffer:
                assert select.select([self._in], [], [], max(0.0, end - time.monotonic()))[0], f"no answer to {method}"
                data = os.read(self._in, 1 << 20)
                assert data, "the browser has ended"
                self._buffer += data
            line, _, self._buffer = self._buffer.partition(b"\0")
            message = json.loads(line)
            if message.get("id") == number:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result
            self._event(message.get("method"), message.get("params", {}))

    def _event(self, method: str | None, told: dict[str, Any]) -> None:
        if method == "Runtime.consoleAPICalled":
            self.logged.append(" ".join(str(a.get("value")) for a in told["args"]))
        elif method == "Runtime.exceptionThrown":
            self.logged.append(str(told["exceptionDetails"].get("exception", told["exceptionDetails"])))
        elif method == "Log.entryAdded":
            self.logged.append(told["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requested.append(told["request"]["url"])

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)
