"""
One conversation with one agent.

`connect` brings the agent up on a board and gives a `Session`.  A session sends requests and waits for their
answers; events that belong to an answer go to a callback as they come.  While it is open, a thread tells the agent
now and then that the host is still here.
"""

from __future__ import annotations

import itertools
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from deploy import accelerate, bootstrap, kernels
from deploy.boards import Board, LocalTransport
from deploy.errors import (
    AgentBroken,
    BoardError,
    BoardHeld,
    BoardSilent,
    DiskFull,
    LeaseLost,
    NoPython,
    StaleToken,
    TransportError,
    WrongBoard,
    from_agent,
    one_line,
)
from deploy.transport import Channel, Transport, open_transport
from devices.protocol.conversation import PROTOCOL
from devices.protocol.framing import MAGIC, Decoder, Encoder, FrameError, Kind, Message

if TYPE_CHECKING:
    from deploy.farm.lease import Lease

SILENCE_S = 15.0  # the agent sends a heartbeat every second
EMULATED_SILENCE_S = 60.0  # where this machine has too much else to do, an emulated one stands still
START_S = 60.0  # a cold Pi unpacks and compiles the agent first
HEARTBEAT_S = 10.0
ANSWER_S = 180.0  # beside a time limit that the request itself may set
BLOB_CHUNK = 256 * 1024
BLOBS_FLYING = 4  # pieces sent and not answered yet: a line with latency must not idle
RESTARTS = 100  # of an upload, when another host brings the same blob

OnEvent = Callable[[dict[str, Any], bytes], None]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Reply:
    """The answer to a request."""

    header: dict[str, Any]
    payload: bytes


class Answered(dict[str, Any]):
    """The header of an answer; that a key is not there is the board's fault, and said so."""

    def __init__(self, board: str, header: dict[str, Any]) -> None:
        super().__init__(header)
        self._board = board

    def __missing__(self, key: str) -> Any:
        raise TransportError(f"board {self._board!r} answered without {key!r}", board=self._board)


class Session:
    """
    See the module.

    Attributes:
        board: whom we talk to.
        hello: what the agent said of itself and the board.
        pinned: fingerprint of a host key that was met and recorded just now, else None.
        kernels: what models are loaded with, see `deploy.kernels.ensure`.
        accelerator: what the board told last of its accelerator, see `deploy.accelerate.summary`; None without one.
    """

    def __init__(self, board: Board, channel: Channel, silence_s: float | None = None) -> None:
        self.board = board
        self.hello: dict[str, Any] = {}
        self.pinned: str | None = None
        self.kernels = kernels.OFF
        self.accelerator: dict[str, Any] | None = None
        self._channel = channel
        self._silence_s = silence_s or (EMULATED_SILENCE_S if board.virtual else SILENCE_S)
        self._encoder = Encoder()
        self._decoder = Decoder(lossy=channel.lossy)
        self._lock = threading.Lock()
        self._ids = itertools.count(1)
        self._pending: list[Message] = []
        self._last_event = "nothing"
        self._closed = threading.Event()
        self._broken = False  # a frame was cut short: nothing that follows would make sense
        self._lease: Lease | None = None

    def start(self, greeting: bytes) -> None:
        """
        Take what came so far and wait for the agent's hello.

        Raises:
            TransportError: the agent speaks another protocol.
            BoardSilent: no hello came.
        """
        self._take(greeting)
        message = self._receive(START_S)
        if message.kind is not Kind.HELLO or message.header.get("protocol") != PROTOCOL:
            found = message.header.get("protocol", message.kind.name)
            raise TransportError(
                f"the agent on {self.board.name!r} speaks protocol {found}, this deploy speaks {PROTOCOL}",
                board=self.board.name,
            )
        identity = message.header.get("identity")
        if not (isinstance(identity, dict) and {"machine", "python"} <= set(identity)):
            raise TransportError(f"the agent on {self.board.name!r} does not say what it is", board=self.board.name)
        self.hello = message.header
        threading.Thread(target=self._heartbeat, name="heartbeat", daemon=True).start()

    def request(
        self,
        op: str,
        payload: bytes = b"",
        *,
        on_event: OnEvent | None = None,
        subject: str = "",
        within_s: float = ANSWER_S,
        **header: Any,
    ) -> Reply:
        """
        Ask, and wait for the answer.

        Args:
            on_event: called with header and payload of every event of this request, as they come.
            subject: the file it is about, to stand in front of an error's reason.
            within_s: a board that is alive and does not answer is given up after this.
            header: the arguments of the operation.

        Raises:
            BoardError: the agent says no; see `deploy.errors.from_agent`.
            BoardSilent: nothing came for too long, or the agent ended.
        """
        request = self._send_request(op, payload, header)
        return self._answer(request, op, within_s + header.get("limit_s", 0.0), on_event, subject)

    def _answer(
        self, request: int, op: str, within_s: float, on_event: OnEvent | None = None, subject: str = ""
    ) -> Reply:
        end = time.monotonic() + within_s
        try:
            while True:
                message = self._receive(self._silence_s, end)
                if message.header.get("id") != request and message.kind is not Kind.ERROR:
                    self._dispatch(message)
                elif message.kind is Kind.EVENT:
                    self._last_event = f"event of {op}"
                    if on_event:
                        self._deliver(on_event, message)
                elif message.kind is Kind.ERROR:
                    raise from_agent(self.board.name, message.header, subject)
                else:
                    self.accelerator = message.header.get("accelerator", self.accelerator)
                    return Reply(Answered(self.board.name, message.header), message.payload)
        except KeyboardInterrupt:
            if not self._broken:
                self._send(Message(Kind.CANCEL, {"id": request}))
            raise

    def wait(self, seconds: float) -> None:
        """Let `seconds` pass while the conversation stays alive."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            message = self._poll(min(left, 0.1))
            if message is not None:
                self._dispatch(message)

    def ping(self) -> int:
        """Round trip through the agent, in ns."""
        started = time.perf_counter_ns()
        self.request("ping")
        return time.perf_counter_ns() - started

    def claim(self, token: int, owner: str, seconds: float, issuer: str = "", evict: bool = False) -> None:
        """
        Hold the board's lease: from now on it refuses conversations with a lower fencing token, or, while it lasts,
        with none.

        Args:
            issuer: who gives the tokens; while this lease lasts, those of another issuer are refused, however high.
            evict: end what still runs there for holders before, which otherwise makes the board busy.

        Raises:
            StaleToken: the board has seen a higher one; also from any later request.
            BoardHeld: another issuer's lease has not ended.
        """
        self.request("session.claim", token=token, owner=owner, seconds=seconds, issuer=issuer, evict=evict)

    def hold(self, lease: Lease, evict: bool = False, wait_s: float | None = 0.0) -> None:
        """
        Talk as the holder of `lease`: the board refuses everybody else until it is renewed no more, and nothing is sent
        once it has ended.

        Args:
            evict: see `claim`.
            wait_s: wait so long for the end of a lease that another lease file gave, without end if None.

        Raises:
            LeaseLost: it has ended; also from any later request.
            BoardHeld: somebody with another lease file has the board.
        """
        end = None if wait_s is None else time.monotonic() + wait_s
        while True:
            lease.check()
            try:
                self.claim(lease.token, lease.owner[:200], lease.left_s or 1e-3, lease.issuer, evict)
                break
            except StaleToken as error:
                seen = error.facts.get("seen")
                if type(seen) is not int or seen < lease.token:
                    raise
                lease.lift(seen)
            except BoardHeld:
                if end is not None and time.monotonic() >= end:
                    raise
                self.wait(1.0)
        self._lease = lease

    def upload(self, sha256: str, data: bytes, progress: Progress | None = None) -> int:
        """
        Bring a blob into the board's store, going on where an earlier attempt ended.

        Args:
            progress: called with bytes that are there, and bytes in all.

        Returns:
            Bytes sent.

        Raises:
            BoardError: e.g. DiskFull.
        """
        have = self._progress(sha256)
        sent = 0
        for _ in range(RESTARTS):
            if have < 0:
                break
            if have > len(data):  # no part of this blob: begin anew
                have = 0
            try:
                sent += self._upload_from(have, sha256, data, progress)
                break
            except BoardError as error:
                # Another host brings the same blob, and the board has more, or less, of it than it had.
                if "have" not in error.facts:
                    raise
                have = self._progress(sha256)
        else:
            raise TransportError(f"board {self.board.name!r} does not keep {sha256[:12]}", board=self.board.name)
        return sent

    def _progress(self, sha256: str) -> int:
        """Bytes of a blob that the board has; -1: all."""
        told = self.request("store.progress", digests=[sha256]).header["progress"]
        have = told.get(sha256) if isinstance(told, dict) else None
        if type(have) is not int:
            raise TransportError(f"board {self.board.name!r} does not say how far a file is", board=self.board.name)
        return have

    def _upload_from(self, have: int, sha256: str, data: bytes, progress: Progress | None) -> int:
        """Send `data` from byte `have` on, with some pieces on their way at any time; returns how many bytes."""
        flying: deque[tuple[int, int]] = deque()  # request, and bytes that are there when it is answered
        # A last, empty piece finishes a partial file that is whole: its board lost power before it could.
        size = getattr(self._channel, "chunk_bytes", BLOB_CHUNK)
        offsets = deque(range(have, len(data), size) if have < len(data) else [have])
        try:
            while offsets or flying:
                while offsets and len(flying) < BLOBS_FLYING:
                    offset = offsets.popleft()
                    chunk = data[offset : offset + size]
                    header = {"sha256": sha256, "bytes": len(data), "offset": offset}
                    flying.append((self._send_request("store.put", chunk, header), offset + len(chunk)))
                request, there = flying.popleft()
                self._answer(request, "store.put", ANSWER_S)
                if progress:
                    progress(there, len(data))
        except BoardError:
            for request, _ in flying:  # refused as well, as each goes on where the one before ends
                with suppress(BoardError):
                    self._answer(request, "store.put", ANSWER_S)
            raise
        return len(data) - have

    def close(self) -> None:
        """Say goodbye and hang up; the agent ends, and with it whatever still runs."""
        if not self._closed.is_set():
            self._closed.set()
            try:
                if not self._broken:
                    if self._lease and self._lease.left_s:
                        self._send_request("session.release", b"", {})
                    self._send(Message(Kind.BYE))
            except (OSError, BoardSilent, LeaseLost):
                pass
            self._channel.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Below: frames

    def _send_request(self, op: str, payload: bytes, header: dict[str, Any]) -> int:
        if self._lease:
            self._lease.check()
        request = next(self._ids)
        self._send(Message(Kind.REQUEST, {**header, "id": request, "op": op}, payload))
        return request

    def _send(self, message: Message) -> None:
        with self._lock:
            data = self._encoder.encode(message)
            try:
                self._channel.write(data)
            except TimeoutError as error:
                self._broken = True
                raise BoardSilent(
                    f"board {self.board.name!r} {error}",
                    f"`deploy boards check {self.board.name}` asks what is alive",
                    board=self.board.name,
                ) from None
            except OSError:
                self._broken = True
                raise self._gone() from None
            except BaseException:  # Ctrl-C in the middle of a frame
                self._broken = True
                raise

    def _receive(self, silence_s: float, end: float = float("inf")) -> Message:
        """The next message that is not a heartbeat; `end` bounds the wait, however lively the heart."""
        heard = time.monotonic()
        while True:
            if time.monotonic() > end:
                raise BoardSilent(
                    f"board {self.board.name!r} is alive and does not answer (last: {self._last_event})",
                    f"`deploy boards check {self.board.name}` asks what is alive",
                    board=self.board.name,
                )
            left = heard + silence_s - time.monotonic()
            if left <= 0:
                raise BoardSilent(
                    f"board {self.board.name!r} sent nothing for {silence_s:g} s (last: {self._last_event})",
                    f"`deploy boards check {self.board.name}` asks what is alive",
                    board=self.board.name,
                )
            message = self._poll(min(left, max(0.01, end - time.monotonic())))
            if message is not None:
                if message.kind is not Kind.HEARTBEAT:
                    return message
                heard = time.monotonic()

    def _poll(self, timeout_s: float) -> Message | None:
        if self._pending:
            return self._pending.pop(0)
        data = self._channel.read(timeout_s)
        if data is None:
            return None
        if not data:
            raise self._gone()
        self._take(data)
        return self._pending.pop(0) if self._pending else None

    def _take(self, data: bytes) -> None:
        try:
            self._pending += self._decoder.feed(data)
        except FrameError as error:
            raise TransportError(f"board {self.board.name!r}: {one_line(error)}", board=self.board.name) from error

    def _dispatch(self, message: Message) -> None:
        """A message that nobody waits for; a complaint about the conversation itself is raised."""
        if message.kind is Kind.ERROR and message.header.get("id") is None:
            raise from_agent(self.board.name, message.header)

    def _deliver(self, listener: OnEvent, message: Message) -> None:
        try:
            listener(message.header, message.payload)
        except (LookupError, TypeError, ValueError, ArithmeticError) as error:
            raise TransportError(f"board {self.board.name!r} sent an event that makes no sense: {error!r}") from error

    def _gone(self) -> BoardSilent:
        status, said = self._channel.ended()
        how = f" with status {status}" if status is not None else ""
        last = said.strip().splitlines()[-1:] or [""]
        why = f": {one_line(last[0])}" if last[0] else ""
        return BoardSilent(
            f"the agent on {self.board.name!r} ended{how}{why}",
            f"`deploy boards check {self.board.name}` asks what is alive",
            board=self.board.name,
            status=status,
            stderr=said,
        )

    def _heartbeat(self) -> None:
        while not self._closed.wait(HEARTBEAT_S):
            left_s = self._lease.left_s if self._lease else 0.0
            try:
                self._send(Message(Kind.HEARTBEAT, {"lease_s": left_s} if left_s else {}))
            except (OSError, ValueError, BoardSilent):
                return  # the conversation is over; whoever reads will notice


def connect(
    board: Board,
    known_hosts: Path,
    agent_options: list[str] | None = None,
    ask: Callable[[str], str] | None = None,
    strict: bool = False,
    trust: bool = True,
    lease: Lease | None = None,
    evict: bool = False,
    wait_s: float | None = 0.0,
) -> Session:
    """
    Reach the board, bring the agent up, and start talking.

    `deploy.farm.hold` takes a lease first, and is what to use unless the board is nobody else's.

    Args:
        known_hosts: file of the pinned host keys (ssh).
        agent_options: for tests and for those who know.
        ask: asks a person for a password, where the transport has one (serial).
        strict: pin no host key; a board that is met for the first time is refused.
        trust: pin the signing key that boards.yaml names, if it names one.
        lease: of this board; see `Session.hold` for it, `evict` and `wait_s`.

    Raises:
        TransportError: see `deploy.errors`.
        WrongBoard: it is not the one that boards.yaml means.
        Untrusted: another signing key is pinned there.
    """
    transport = open_transport(board, known_hosts, ask, strict)
    try:
        try:
            session = _converse(board, transport, agent_options, fresh=False)
        except AgentBroken:  # half of it is gone, or another Python's byte code is in the way
            session = _converse(board, transport, agent_options, fresh=True)
        try:
            _identify(board, session.hello["identity"])
            if lease:
                session.hold(lease, evict, wait_s)
            if trust and board.public_key:
                session.request("key.pin", public_key=board.public_key)
        except BaseException:
            session.close()
            raise
        return session
    except BaseException:
        transport.close()
        raise


def _identify(board: Board, identity: dict[str, Any]) -> None:
    """A board that answers by another one's address must not be taken for it."""
    if board.serial_number is None:
        return
    shown = identity.get("serial")
    if not isinstance(shown, str) or shown.casefold() != board.serial_number.casefold():
        what = f"the serial number {one_line(shown)!r}" if shown else "no serial number"
        raise WrongBoard(
            f"what answers as board {board.name!r} has {what}, boards.yaml says {board.serial_number!r}",
            "another board has its address now, or was put in its place; correct `transport:` or `serial_number:`",
            board=board.name,
            shown=shown,
        )


def _converse(board: Board, transport: Transport, agent_options: list[str] | None, fresh: bool) -> Session:
    options = [*accelerate.agent_options(board), *(agent_options or [])]
    channel = transport.run(bootstrap.command(python_of(board), board.root, options, fresh))
    session = _Owned(board, channel, transport)
    session.pinned = getattr(transport, "pinned", None)
    try:
        session.start(_bring_agent(board, channel))
    except AgentBroken:
        channel.close()
        raise
    except BaseException:
        session.close()
        raise
    return session


class _Owned(Session):
    """A session that closes its transport too."""

    def __init__(self, board: Board, channel: Channel, transport: Transport) -> None:
        super().__init__(board, channel)
        self._transport = transport

    def close(self) -> None:
        super().close()
        self._transport.close()


def python_of(board: Board) -> str:
    """The Python to start on the board: on this machine the one that runs now, elsewhere python3."""
    if board.python:
        return board.python
    return sys.executable if isinstance(board.transport, LocalTransport) else "python3"


def _bring_agent(board: Board, channel: Channel) -> bytes:
    """Answer the bootstrap program until frames come; return the bytes that belong to them."""
    said = b""
    end = time.monotonic() + START_S
    while MAGIC not in said:
        data = channel.read(max(0.0, end - time.monotonic()))
        if data is None:
            raise BoardSilent(f"board {board.name!r} started no agent in {START_S:g} s", board=board.name)
        if not data:
            raise _not_started(board, channel, said)
        said += data
        *lines, said = said.split(b"\n") if MAGIC not in said else [said]
        for line in lines:
            text = one_line(line.decode("utf-8", "replace")).strip()
            if text == "DEPLOY-NEED":
                try:
                    channel.write(bootstrap.agent_package().data)
                except OSError:
                    raise _not_started(board, channel, said) from None
            elif text.startswith("DEPLOY-OLD "):
                version = text.removeprefix("DEPLOY-OLD ")
                raise NoPython(
                    f"board {board.name!r} has Python {version}; the agent needs 3.9 or newer",
                    f"install a newer one there; `python: /path/to/python3` of {board.name!r} in boards.yaml names it",
                    board=board.name,
                )
            elif text.startswith("DEPLOY-FAIL"):
                reason = text.removeprefix("DEPLOY-FAIL ")
                where = f"`root:` of {board.name!r} in boards.yaml names the folder it lies in"
                if "No space left" in reason:
                    raise DiskFull(
                        f"board {board.name!r} cannot keep the agent: the disk is full: {reason}",
                        f"`deploy boards clean {board.name}` removes what deploy put there; {where}",
                        board=board.name,
                    )
                raise TransportError(f"board {board.name!r} cannot keep the agent: {reason}", where, board=board.name)
    return said


def _not_started(board: Board, channel: Channel, said: bytes) -> TransportError:
    status, stderr = channel.ended()
    python = python_of(board)
    text = (stderr or said.decode("utf-8", "replace")).strip()
    if status in (126, 127) or "not found" in text:
        return NoPython(
            f"board {board.name!r} has no {python!r}",
            f"`sudo apt install python3` there, or name the one it has: `python:` of {board.name!r} in boards.yaml",
            board=board.name,
        )
    last = text.splitlines()[-1:] or ["nothing"]
    # Without a word and without a fault: its files are empty, as a power cut leaves them.
    broken = status == 0 or re.search(r"(Import|ModuleNotFound|Syntax|Attribute)Error|No module named", text)
    kind = AgentBroken if broken else TransportError
    return kind(
        f"board {board.name!r} ended with status {status} before the agent spoke; it said: {one_line(last[0])}",
        board=board.name,
        status=status,
    )
