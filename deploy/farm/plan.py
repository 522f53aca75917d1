"""
plan.yaml: which bundles are to be measured on which boards, and how.

Every bundle meets every entry of `boards` and every entry of `settings`::

    schema: 1
    bundles:
      int8: digits.bundle                                     # a file, beside the plan
      f16: {model: net.keras, recipe: float16, data: d.npz}   # or a recipe, built when the plan runs
      dyn: {like: f16, recipe: dynamic}                       # as `f16`, but for what it says itself
    boards:
      - jetson                                                # this one
      - {tag: farm, needs: [asimddp]}                         # whichever of them is free first
      - {kind: raspberry-pi, each: true}                      # every one of them
    settings:
      one: {threads: 1, evaluate: images.npz}                # accuracy on the board as well
      four: {like: one, threads: 4, rate: 200}

Nothing is started unless all of it makes sense; every problem is said with its line and the nearest name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, field_validator, model_validator

from deploy import measure
from deploy.errors import BuildError, ConfigError, nearest
from deploy.yaml_file import Strict, key_line, read, text_of, validated

SCHEMA = 1
NAME = r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME)]
E = TypeVar("E", "BundleEntry", "Setting")


class BundleEntry(Strict):
    """A bundle that is there, or what to build; exactly one of `bundle` and `model`."""

    like: str | None = None
    bundle: str | None = Field(None, description="a bundle or a .tflite, by its path from the plan")
    model: str | None = Field(None, description="what `deploy build` takes")
    recipe: str | None = None
    data: str | None = Field(None, description="an .npz or module:function")
    preprocess: str | None = Field(None, description="as `deploy build --preprocess`")
    seed: int = Field(0, ge=0, le=2**31 - 1)

    @model_validator(mode="before")
    @classmethod
    def _short(cls, data: Any) -> Any:
        return {"bundle": data} if isinstance(data, str) else data


class BoardEntry(Strict):
    """Which boards will do: all that are said must hold."""

    board: str | None = None
    tag: str | None = None
    kind: str | None = None
    needs: tuple[str, ...] = ()
    each: bool = Field(False, description="every one of them, and not whichever is free first")

    @model_validator(mode="before")
    @classmethod
    def _short(cls, data: Any) -> Any:
        return {"board": data} if isinstance(data, str) else data

    @property
    def text(self) -> str:
        """For tables: the name, or what is asked for."""
        if self.board:
            return self.board
        said = [f"tag {self.tag}"] * bool(self.tag) + [f"kind {self.kind}"] * bool(self.kind)
        return ", ".join([*said, *self.needs]) or "any"


class Setting(Strict):
    """How to measure: the options of `deploy measure`, with their defaults."""

    like: str | None = None
    duration: float = Field(10.0, ge=0.01, le=86_400)
    until: float | None = Field(None, ge=0.002, le=0.5)
    restarts: int = Field(3, ge=1, le=100)
    warmup: float = Field(10.0, ge=0, le=3600)
    idle: float = Field(3.0, ge=0.5, le=3600)
    windows: int = Field(5, ge=0, le=1000)
    window: float = Field(10.0, ge=0.1, le=86_400)
    rate: float | None = Field(None, ge=0.001, le=1e6)
    threads: int = Field(1, ge=1, le=1024)
    pin: tuple[Annotated[int, Field(ge=0, le=4095)], ...] | None = None
    signature: str | None = None
    limit_s: float | None = Field(None, ge=0.1)
    kernels: Literal["auto", "off", "reference"] = "auto"
    modelled: bool = False
    evaluate: str | None = Field(None, description="data whose accuracy on the board belongs to the cell as well")
    samples: int | None = Field(None, ge=1, description="of it, the first so many")

    @field_validator("until", mode="before")
    @classmethod
    def _percent(cls, value: Any) -> Any:
        if isinstance(value, str) and value.endswith("%"):
            return float(value[:-1]) / 100
        return value

    def measuring(self) -> measure.Plan:
        """As the board gets it."""
        names = {"duration": "duration_s", "warmup": "warmup_max_s", "idle": "idle_s", "window": "window_s"}
        values = self.model_dump(exclude={"like", "kernels", "evaluate", "samples"})
        return measure.Plan(**{names.get(key, key): value for key, value in values.items()})


class _File(Strict):
    schema_: Literal[1] = Field(alias="schema")
    bundles: dict[Name, BundleEntry] = Field(min_length=1)
    boards: list[BoardEntry] = Field(min_length=1)
    settings: dict[Name, Setting] = Field(default_factory=lambda: {"default": Setting.model_validate({})}, min_length=1)
    retries: int = Field(2, ge=0, le=20, description="of a cell whose board failed, each on another board")
    priority: int = Field(0, ge=-100, le=100, description="in the queues of the boards")


@dataclass(frozen=True)
class Plan:
    """
    A plan that makes sense by itself; whether its boards are there is another matter, see `deploy.farm.cells.matrix`.

    Attributes:
        path: of the file; what it names lies beside it.
        bundles: by name, in the file's order; nothing is ``like`` anything any more.
        lines: where each board entry stands, for messages.
    """

    path: Path
    bundles: dict[str, BundleEntry]
    boards: tuple[BoardEntry, ...]
    settings: dict[str, Setting]
    retries: int
    priority: int
    lines: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.path.stem

    def beside(self, named: str) -> str:
        """A path of the plan as seen from here; ``module:function`` stays what it is."""
        return named if ":" in named else str(self.path.parent / Path(named).expanduser())


def load(path: Path) -> Plan:
    """
    Read a plan.

    Raises:
        ConfigError: it cannot be read, or does not make sense; every problem with its line.
    """
    return parse(text_of(path), path)


def parse(text: str, path: Path) -> Plan:
    """
    Read a plan from `text`; `path` is for messages and for what lies beside it.

    Raises:
        ConfigError: as `load`.
    """
    raw = read(text, path)
    file = validated(raw, _File, path, f"`schema: {SCHEMA}`, `bundles:` and `boards:`")
    problems: list[str] = []
    bundles = _resolved(raw, "bundles", file.bundles, path, problems)
    settings = _resolved(raw, "settings", file.settings, path, problems)
    for name, entry in bundles.items():
        problems += [f"{path}:{line}: bundles.{name}{said}" for line, said in _objections(raw["bundles"], name, entry)]
    lines = tuple(raw["boards"].lc.item(i)[0] + 1 for i in range(len(file.boards)))
    for line, board in zip(lines, file.boards, strict=True):
        others = board.tag or board.kind or board.needs or board.each
        if board.board and others:
            problems.append(f"{path}:{line}: board {board.board!r} is one board: tag, kind, needs and each choose many")
        if not board.board and not (board.tag or board.kind or board.needs):
            problems.append(f"{path}:{line}: a board's entry needs board, tag, kind or needs")
    if problems:
        raise ConfigError("\n".join(problems), path=str(path))
    return Plan(path, bundles, tuple(file.boards), settings, file.retries, file.priority, lines)


def _resolved(raw: Any, section: str, entries: Mapping[str, E], path: Path, problems: list[str]) -> dict[str, E]:
    """The entries with what they take from those that they are ``like``."""
    found: dict[str, E] = {}
    for name, first in entries.items():
        chain: list[str] = [name]
        entry: E = first
        said: dict[str, Any] = {}
        while True:
            said = _under({key: getattr(entry, key) for key in entry.model_fields_set if key != "like"}, said)
            if entry.like is None:
                break
            like: str = entry.like
            at = f"{path}:{key_line(raw[section][chain[-1]], 'like', 1)}: {section}.{chain[-1]} is like"
            if like not in entries:
                known = nearest(like, [other for other in entries if other != name])
                problems.append(f"{at} {like!r}, which is not there{known}")
                break
            if like in chain:
                circle: list[str] = chain[chain.index(like) :]
                if name == next(other for other in entries if other in circle):  # said once
                    here = f"{path}:{key_line(raw[section][name], 'like', 1)}: {section}.{name} is like itself"
                    problems.append(f"{here}: {' -> '.join([*circle, like])}")
                break
            chain.append(like)
            entry = entries[like]
        defaults = {key: field.get_default() for key, field in type(first).model_fields.items()}
        found[name] = type(first).model_construct(**{**defaults, **said})
    return found


def _under(inherited: dict[str, Any], said: dict[str, Any]) -> dict[str, Any]:
    """What an entry says itself stands above; one that names a file takes over no recipe, and the other way round."""
    if "bundle" in said:
        return {**said}
    if "model" in said:
        inherited = {key: value for key, value in inherited.items() if key != "bundle"}
    return {**inherited, **said}


def _objections(section: Any, name: str, entry: BundleEntry) -> list[tuple[int, str]]:
    here = section[name]
    line = key_line(section, name, 1)
    if not entry.bundle and not entry.model:
        return [(line, " needs the key 'bundle' or 'model'")]
    if entry.bundle and entry.model:
        return [(line, " has both a bundle and a model: one of them")]
    found = []
    if entry.bundle and (entry.recipe or entry.data):
        found.append((line, ": recipe and data are for a model; a bundle is what it is"))
    if entry.recipe:
        try:
            check_recipe(entry.recipe)
        except BuildError as error:
            at = key_line(here, "recipe", line) if isinstance(here, Mapping) else line
            found.append((at, f".recipe: {error}"))
    return found


def check_recipe(text: str) -> None:
    """
    Raises:
        BuildError: there is no such recipe; with the nearest one.
    """
    from deploy.build import recipe

    recipe.parse(text)
