"""
boards.yaml: the registry of boards.

The file holds facts about hardware and how to reach it; no state and no secrets.  Unknown keys are refused with the
nearest known one, and every error carries file, line and key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from deploy.errors import ConfigError, UnknownBoard, nearest
from deploy.paths import boards_file as find_file
from deploy.paths import state_dir, whole
from deploy.yaml_file import Strict, key_line, read, text_of, unknown_key, validated
from devices.protocol.signature import SignatureError, decode_key

SCHEMA = 1
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
DEFAULT_ROOT = "~/.local/share/deploy"


class Cpu(Strict):
    """What the board's CPU should be; compared with what the agent finds there."""

    arch: Literal["aarch64", "armv7l", "x86_64"]
    cores: int | None = Field(None, ge=1, description="number of CPUs Linux shows")
    features: tuple[str, ...] = Field((), description="as /proc/cpuinfo names them: asimddp, avx512_vnni, ...")


class Rail(Strict):
    """A supply line with a meter on it."""

    name: str = Field(description="label of the rail as the meter gives it, e.g. VDD_IN")
    meter: str | None = Field(None, description="chip that must measure it, e.g. ina3221, ina226, rapl")
    scope: Literal["module", "board-dc", "wall-ac", "soc-rails"] | None = Field(
        None, description="what the line feeds; the meter alone often cannot tell"
    )
    sample_rate_hz: float | None = Field(None, gt=0, le=10_000, description="mean rate of the jittered sampling")
    gain_error: float | None = Field(None, ge=0, lt=1, description="largest relative error, the shunt's included")
    update_period_s: float | None = Field(None, gt=0, description="the sensor's memory, where the chip does not tell")
    averaging: Literal["box", "iir", "none"] | None = Field(None, description="what it does in that time")

    def known(self) -> dict[str, Any]:
        """What the file knows better than the meter, by the names of `devices.protocol.meter.Rail`."""
        stated = {
            "scope": self.scope,
            "gain": self.gain_error,
            "update_period_s": self.update_period_s,
            "averaging": self.averaging,
        }
        return {key: value for key, value in stated.items() if value is not None}


class Wired(Strict):
    """A chip on the board's I2C bus that no kernel driver shows."""

    name: str
    chip: Literal["ina228"]
    i2c_bus: int = Field(ge=0)
    i2c_address: int = Field(ge=0x03, le=0x77)
    shunt_mohm: float = Field(gt=0)


class HostMeter(Strict):
    """A meter that hangs on this machine and measures the board."""

    kind: str = Field(description="joulescope, ppk2, scpi, or what an installed package adds")
    name: str = Field("supply", description="of the line that it is in")
    scope: Literal["module", "board-dc", "wall-ac", "soc-rails"] = "board-dc"
    gain_error: float | None = Field(None, ge=0, lt=1, description="largest relative error, by its maker")
    settings: dict[str, str | int | float | bool] = Field({}, description="see deploy/meters/README.md")


class PowerPoint(Strict):
    """What the board drew, by a meter that hung on it once, while so many threads computed."""

    threads: int = Field(ge=0)
    power_mw: float = Field(gt=0)


class LocalTransport(Strict):
    """This machine; the agent is a child process."""

    kind: Literal["local"]


class SshTransport(Strict):
    """User, port, key and jump host come from your own ~/.ssh/config unless given here."""

    kind: Literal["ssh"]
    host: str
    user: str | None = None
    port: int | None = Field(None, ge=1, le=65535)
    identity: str | None = Field(None, description="path of a private key")
    timeout_s: float = Field(10.0, gt=0, description="for reaching the board, each attempt")
    known_hosts: str | None = Field(None, description="file with its host key [known_hosts beside boards.yaml]")


class SerialTransport(Strict):
    """A console on a UART."""

    kind: Literal["serial"]
    port: str = Field(description="/dev/serial/by-id/..., or an rfc2217:// or socket:// URL")
    baud: int = Field(115_200, ge=9600, description="of the console")
    max_baud: int | None = Field(None, le=4_000_000, description="try up to this rate once the agent is there")
    user: str | None = Field(None, description="to log in as; its password comes from the keyring, or is asked for")


Transport = Annotated[LocalTransport | SshTransport | SerialTransport, Field(discriminator="kind")]


class VirtualPower(Strict):
    """A virtual board of this machine, whose QEMU is killed and started."""

    kind: Literal["virtual"]
    board: str = Field(description="its name, as `deploy virtual list` shows it")


class CommandPower(Strict):
    """Programs that switch a socket, a port of a hub or a relay; run without a shell, beside boards.yaml."""

    kind: Literal["command"]
    on: str = Field(min_length=1)
    off: str = Field(min_length=1)
    cycle: str | None = Field(None, min_length=1, description="off and on again [`off`, two seconds, `on`]")


class LabgridPower(Strict):
    """A power switch by labgrid's drivers: one of its models here, or whatever the board's `place` has."""

    kind: Literal["labgrid"]
    model: str | None = Field(None, pattern=r"^[a-z0-9_]+$", description="netio, shelly_gen2, ...; none: the place's")
    host: str | None = Field(None, description="address or URL of the switch")
    index: str | int = Field("1", description="of its socket")

    @model_validator(mode="after")
    def _model_with_host(self) -> LabgridPower:
        if (self.model is None) != (self.host is None):
            raise PydanticCustomError("model_and_host", "model and host go together")
        return self


Power = Annotated[VirtualPower | CommandPower | LabgridPower, Field(discriminator="kind")]
# What `kind` may say, by the key that it is in.
_KINDS = {"transport": ("local", "ssh", "serial"), "power": ("virtual", "command", "labgrid")}


class Board(Strict):
    """One physical machine."""

    name: str = Field("", exclude=True)  # the key in `boards`
    kind: Literal["raspberry-pi", "jetson", "pynq", "pynq-sim", "generic"]
    description: str = ""
    transport: Transport
    python: str | None = Field(None, description="the Python there, 3.9 or newer; python3 if not given")
    root: str = Field(
        DEFAULT_ROOT, pattern=r"^(~/|/).*[^/]$", description="the only folder of the board that deploy writes to"
    )
    overlay: str | None = Field(
        None, description="bitstream of the accelerator on the board, .hwh beside it; of pynq-sim, a file of settings"
    )
    cpu: Cpu | None = None
    rails: tuple[Rail, ...] = ()
    wired: tuple[Wired, ...] = ()
    host_meters: tuple[HostMeter, ...] = ()
    power_points: tuple[PowerPoint, ...] = Field((), description="for `--modelled`: one idle, and some that compute")
    power: Power | None = Field(None, description="what switches its supply, for `deploy boards power`")
    place: str | None = Field(None, description="labgrid's name for it; acquired with every lease")
    serial_number: str | None = Field(None, description="as it says itself; a board with another one is refused")
    boot_s: float = Field(180.0, gt=0, le=3600, description="from power to an answer, at most")
    tags: tuple[str, ...] = ()
    keep_releases: int = Field(5, ge=1, le=1000, description="of each bundle; older ones are removed after a push")
    public_key: str | None = Field(
        None, description="base64 of the key that bundles must be signed with, or the file that `deploy keygen` wrote"
    )
    memory_limit_mib: int | None = Field(None, ge=128, description="for the process that runs a model")
    virtual: str | None = Field(None, description="what emulates it (qemu 7.2 cortex-a72): its times mean nothing")

    @model_validator(mode="after")
    def _simulated_here(self) -> Board:
        if self.kind == "pynq-sim" and not isinstance(self.transport, LocalTransport):
            raise PydanticCustomError("simulated_here", "a pynq-sim is this machine: transport: {kind: local}")
        return self


def _named_by_its_key(entry: Any) -> Any:
    if isinstance(entry, Mapping) and "name" in entry:
        raise unknown_key("name", [])
    return entry


class _File(Strict):
    schema_: Literal[1] = Field(alias="schema")
    boards: dict[Annotated[str, Field(pattern=NAME)], Annotated[Board, BeforeValidator(_named_by_its_key)]]


LOCAL = Board.model_validate(
    {
        "name": "local",
        "kind": "generic",
        "description": "this machine, through an agent in a process of its own",
        "transport": {"kind": "local"},
    }
)


# What `add` begins with: a file of one's own must not hide the board that everybody has.
NEW_FILE = f"""\
schema: {SCHEMA}
boards:
  local:
    kind: generic
    description: {LOCAL.description}
    transport: {{kind: local}}
"""


class Registry:
    """
    The boards of one file.

    Attributes:
        path: of the file; None when there is none and only the embedded board `local` is known.
    """

    def __init__(self, boards: Mapping[str, Board], path: Path | None) -> None:
        self._boards = dict(boards)
        self.path = path

    def __iter__(self) -> Any:
        return iter(self._boards.values())

    def __getitem__(self, name: str) -> Board:
        """
        Raises:
            UnknownBoard: with the nearest name.
        """
        try:
            return self._boards[name]
        except KeyError:
            where = self.path or "the embedded registry"
            raise UnknownBoard(
                f"no board {name!r} in {where}{nearest(name, self._boards)}",
                "`deploy boards` lists them, `deploy boards add` registers one",
                board=name,
            ) from None

    def select(self, names: Iterable[str], tags: Iterable[str]) -> list[Board]:
        """
        The boards that are named or have one of the tags, each once: the named ones first, then as in the file.

        Raises:
            UnknownBoard: a name that is not there, or a tag that no board has; with the nearest one.
        """
        chosen = {name: self[name] for name in names}
        for tag in tags:
            tagged = {board.name: board for board in self if tag in board.tags}
            if not tagged:
                known = sorted({known for board in self for known in board.tags})
                raise UnknownBoard(
                    f"no board in {self.path or 'the embedded registry'} has the tag {tag!r}{nearest(tag, known)}",
                    "`deploy boards` shows the tags",
                    tag=tag,
                )
            chosen |= {name: board for name, board in tagged.items() if name not in chosen}
        return list(chosen.values())

    def with_virtual(self) -> Registry:
        """
        These boards, and the virtual ones that are up on this machine.

        Raises:
            ConfigError: two boards of one name.
        """
        from deploy.virtual import registry as virtual

        found = {name: Board.model_validate({**entry, "name": name}) for name, entry in virtual.entries().items()}
        for name in found:
            if name in self._boards:
                raise ConfigError(
                    f"{self.path or 'the embedded registry'}: board {name!r} is also a virtual board that is up",
                    f"`deploy virtual down {name}` ends that one; or rename the one in the file",
                    board=name,
                )
        return Registry(self._boards | found, self.path)

    @property
    def state_dir(self) -> Path:
        """Where what belongs to the file lies: its folder, or the user's configuration folder."""
        return state_dir(self.path)

    @property
    def known_hosts(self) -> Path:
        """The pinned host keys."""
        return self.state_dir / "known_hosts"


def load(explicit: str | None = None) -> Registry:
    """
    Read the registry.

    Raises:
        ConfigError: the file cannot be read, is no YAML, or a value does not fit; every problem with its line.
    """
    path = find_file(explicit)
    registry = Registry({"local": LOCAL}, None) if path is None else parse(_read(path), path)
    return registry.with_virtual()


def is_name(text: str) -> bool:
    """Whether a board may be called so."""
    return re.match(NAME, text) is not None


def parse(text: str, path: Path) -> Registry:
    """
    Read the registry from `text`; `path` is for messages and for what lies beside the file.

    Raises:
        ConfigError: as `load`.
    """
    raw = read(text, path)
    parsed = validated(raw, _File, path, f"`schema: {SCHEMA}` and `boards:`", _KINDS)
    boards = {}
    for name, board in parsed.boards.items():
        key = board.public_key and _key(board.public_key, path, key_line(raw["boards"][name], "public_key", 1), name)
        boards[name] = board.model_copy(update={"name": name, "public_key": key})
    return Registry(boards, path)


def _key(value: str, path: Path, line: int, name: str) -> str:
    """A signing key's base64: `value` itself, or the content of the file that it names, beside boards.yaml."""
    try:
        decode_key(value)
        return value
    except SignatureError as error:
        reason = str(error)
    file = path.parent / Path(value).expanduser()
    try:
        text = file.read_text(encoding="utf-8").strip()
        decode_key(text)
        return text
    except (OSError, UnicodeDecodeError):
        reason += ", nor a file that can be read"
    except SignatureError as error:
        reason = f"{file}: {error}"
    raise ConfigError(f"{path}:{line}: boards.{name}.public_key: {reason}", path=str(path), line=line)


def _read(path: Path) -> str:
    return text_of(path, "`deploy --boards FILE ...` or $DEPLOY_BOARDS name the board file")


def add(path: Path, name: str, entry: dict[str, Any]) -> Board:
    """
    Append a board to the file, which is made if it is not there; comments and order of the rest stay.

    Raises:
        ConfigError: the name is taken, or the entry does not fit; the file is as it was.
    """
    from io import StringIO

    from ruamel.yaml import YAML

    yaml = YAML(typ="rt")
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width, yaml.preserve_quotes = 4096, True  # lines that are there stay as they are
    text = _read(path) if path.exists() else NEW_FILE
    if path.exists() and any(board.name == name for board in parse(text, path)):
        raise ConfigError(f"{path}: board {name!r} is there already", path=str(path))
    raw = yaml.load(text)
    if raw["boards"] is None:
        raw["boards"] = {}
    raw["boards"][name] = entry
    out = StringIO()
    yaml.dump(raw, out)
    board = parse(out.getvalue(), path)[name]
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as staging:
        staging.write_text(out.getvalue(), encoding="utf-8")
    return board
