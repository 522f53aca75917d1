"""
The recipe language: what `deploy build` does to a model, in one line.

A recipe is a precision and any number of terms, joined by ``+``, in any order::

    w4a8 + tile:0.75 + distill:teacher.keras + epochs:10

On the command line each term has an option of its own as well (``--recipe w4a8 --prune tile:0.75 ...``); both ways
give the same `Recipe`, and `Recipe.text` is the one way it is written down: in the manifest, in reports, in the name of
a checkpoint.  ``+``, ``,``, ``=``, ``%`` and blanks inside a name are written as in a URL: ``%2B``.

What a term may be is said by the tables below; nothing else parses or prints recipes.
"""

from __future__ import annotations

import json
import math
import re
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from deploy.errors import BuildError, nearest

Weights = Literal["w8", "w4", "w2", "ternary", "binary"]

# precision -> the weights of every layer that is neither first nor last; None where weights are no integers.
PRECISIONS: dict[str, Weights | None] = {
    "int8": "w8",
    "float32": None,
    "float16": None,
    "dynamic": None,
    "int16x8": "w8",
    "w4a8": "w4",
    "w2a8": "w2",
    "ternary": "ternary",
    "binary": "binary",
    "mixed": "w8",
}
AS_IS = "as-is"  # a .tflite, packed as it is: no other term goes with it
FLOAT = ("float32", "float16", "dynamic")
_BITS: dict[Any, Weights] = {8: "w8", 4: "w4", 2: "w2", 1: "binary", "ternary": "ternary"}
_BITS_TEXT = {weights: str(bits) for bits, weights in _BITS.items()}

PATTERNS = ("channel", "tile", "nm", "block", "magnitude")
BLOCKS = ("1x4", "1x16")
STRUCTURES = ("width", "separable", "distill")
SELF = "self"  # the teacher that is the model itself, before it is compressed


@dataclass(frozen=True)
class Prune:
    """
    One pattern of weights that become zero.

    Attributes:
        pattern: one of `PATTERNS`: ``channel`` removes whole output channels, and the model gets smaller; ``tile``
            keeps or zeroes 4 consecutive input channels at one kernel position for 32 consecutive output channels
            together; ``nm`` keeps `kept` of every `of` consecutive input channels; ``block`` zeroes runs of `of`
            consecutive input channels of one output channel; ``magnitude`` zeroes single weights.
        sparsity: share of zeros, in (0, 1); of ``channel`` the share of multiplications that go.
        kept, of: see `pattern`; 0 where they mean nothing.
    """

    pattern: str
    sparsity: float
    kept: int = 0
    of: int = 0

    @property
    def text(self) -> str:
        if self.pattern == "nm":
            return f"nm:{self.kept}:{self.of}"
        block = f"1x{self.of}:" if self.pattern == "block" else ""
        return f"{self.pattern}:{block}{self.sparsity!r}"


@dataclass(frozen=True)
class Structure:
    """
    One change of the model's structure.

    Attributes:
        kind: one of `STRUCTURES`: ``width`` multiplies the channels of every layer by `factor`; ``separable`` makes
            depthwise and pointwise convolutions of the spatial ones; ``distill`` trains against `teacher`.
        factor: in (0, 1); 0 where it means nothing.
        teacher: a file of a Keras model, ``module:function``, or `SELF`.
    """

    kind: str
    factor: float = 0.0
    teacher: str = ""

    @property
    def text(self) -> str:
        if self.kind == "width":
            return f"width:{self.factor!r}"
        return f"distill:{_quote(self.teacher)}" if self.teacher and self.teacher != SELF else self.kind


@dataclass(frozen=True)
class Recipe:
    """
    A whole recipe; everything a build depends on but the model, the data and the preprocessing.

    Attributes:
        precision: one of `PRECISIONS`, or `AS_IS`.
        prune: at most one of tile, nm, block and magnitude; ``channel`` goes with each.
        structure: each kind at most once.
        epochs: of training; 0 is post-training only.
        pretrain: epochs of training in float before that, for a model that begins with random weights, has another
            structure or is pruned.
        seed: of everything random.
        bits: layer (Keras's name) -> its weights, for precision ``mixed``; layers that are not named have 8 bits.
        observer: how ranges of activations are found: ``minmax``, ``percentile`` or ``mse``; see
            `deploy.build.calibrate`.
        rounding: of weights after training: ``nearest``, ``gptq`` or ``descent``; see `deploy.build.posttraining`.
        equalize: whether scales of neighbouring layers are evened out before post-training quantization.
        correct_bias: whether the mean error of a layer is taken out of its bias after it; None: where some weights have
            fewer than 8 bits, whose errors are larger than what a mean over samples is off.
        samples: how many training samples calibrate.
        edges: ``8``: first and last layer have 8 bits; ``same``: they are treated as all others.
        encoding: of pruned weights in the file: ``dense`` (with zeros; every runtime runs it) or ``sparse``, which
            leaves out the blocks of ``block:1x16``.
        storage: bits of the narrowest integers in the file, 2, 4 or 8; values stay what they are.  Stock LiteRT runs no
            convolution of 2 bits (our kernels do); 4 and 8 make a larger file that it runs.
        schedule: of zeros: ``once``, before the first epoch and with the other weights repaired, or ``cubic``, more and
            more of them over the first half of `pretrain`, or of `epochs` without it.
        rate: the learning rate of `epochs`, not of `pretrain`, at its highest; None: where training makes up for
            rounding alone 3e-4, to 8 bits 1e-4; 3e-3 for binary layers, 1e-3 otherwise; in float 1e-2 for random
            weights, after pruning, and in another structure.
        batch: samples in a training step.
        augment: whether images are flipped and shifted while training.
        temperature, balance: of distillation: softmax temperature, and the teacher's share of the loss in [0, 1].
    """

    precision: str = "int8"
    prune: tuple[Prune, ...] = ()
    structure: tuple[Structure, ...] = ()
    epochs: int = 0
    pretrain: int = 0
    seed: int = 0
    bits: Mapping[str, Weights] = field(default_factory=dict)
    observer: str = "minmax"
    rounding: str = "descent"
    equalize: bool = False
    correct_bias: bool | None = None
    samples: int = 512
    edges: str = "8"
    encoding: str = "dense"
    storage: int = 2
    schedule: str = "once"
    rate: float | None = None
    batch: int = 128
    augment: bool = True
    temperature: float = 4.0
    balance: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", MappingProxyType(dict(self.bits)))
        _check(self)

    # MappingProxyType can be neither hashed nor pickled; the text says everything.
    def __hash__(self) -> int:
        return hash(self.text)

    def __reduce__(self) -> tuple[Any, ...]:
        return parse, (self.text,)

    @property
    def text(self) -> str:
        """The canonical text: precision, pruning, structure, and what differs from the defaults; `parse` reads it."""
        head = self.precision
        if self.precision == "mixed":
            head += ":" + ",".join(f"{_quote(layer)}={_BITS_TEXT[w]}" for layer, w in sorted(self.bits.items()))
        terms = [head, *(p.text for p in self.prune), *(s.text for s in self.structure)]
        for name, option in _OPTIONS.items():
            value = getattr(self, option.field)
            if value != _DEFAULTS[option.field]:
                terms.append(f"{name}:{_plain(value)}")
        return "+".join(terms)

    def to_json(self) -> dict[str, Any]:
        """Every value, also those at their defaults, which another version may have changed."""
        kept = {name: getattr(self, option.field) for name, option in _OPTIONS.items()}
        terms = {"prune": [p.text for p in self.prune], "structure": [s.text for s in self.structure]}
        return {"precision": self.precision, **terms, "bits": dict(self.bits), **kept}

    def weights_of(self, layer: str, edge: bool) -> Weights:
        """
        The weights that a layer gets.

        Args:
            layer: Keras's name.
            edge: it is the first or the last layer with weights.

        Raises:
            BuildError: a recipe without integer weights.
        """
        weights = PRECISIONS.get(self.precision)
        if weights is None:
            raise BuildError(f"recipe {self.precision} has no integer weights")
        if self.precision == "mixed":
            return self.bits.get(layer, "w8")
        return "w8" if edge and self.edges == "8" else weights

    @property
    def is_float(self) -> bool:
        """Activations stay floating-point numbers."""
        return self.precision in FLOAT

    def pruning(self, channel: bool) -> Prune | None:
        """The ``channel`` term, or the one that makes zeros; None where there is none."""
        return next((p for p in self.prune if (p.pattern == "channel") == channel), None)

    def structured(self, kind: str) -> Structure | None:
        return next((s for s in self.structure if s.kind == kind), None)

    @property
    def changes(self) -> tuple[Structure, ...]:
        """The terms that make another graph of the model; a teacher does not."""
        return tuple(s for s in self.structure if s.kind != "distill")

    def check_layers(self, layers: Iterable[str]) -> None:
        """
        Check that ``mixed`` names nothing but `layers`.

        Raises:
            BuildError: with the nearest name.
        """
        known = list(layers)
        for layer in self.bits:
            if layer not in known:
                raise BuildError(f"mixed: the model has no layer {layer!r} with weights{nearest(layer, known)}")


@dataclass(frozen=True)
class _Option:
    field: str
    parse: Callable[[str], Any]
    says: str  # what it takes


def _number(kind: type, low: float, high: float, open_low: bool = False) -> Callable[[str], Any]:
    def parse_number(text: str) -> Any:
        value = kind(text)
        if not math.isfinite(value) or not low <= value <= high or (open_low and value == low):
            raise ValueError(text)
        return value

    return parse_number


def _one_of(*names: str) -> Callable[[str], str]:
    return lambda text: names[names.index(text)]


def _switch(text: str) -> bool:
    return ("off", "on").index(text) == 1


_OPTIONS: dict[str, _Option] = {
    "epochs": _Option("epochs", _number(int, 0, 100_000), "a number of epochs from 0"),
    "pretrain": _Option("pretrain", _number(int, 0, 100_000), "a number of epochs from 0"),
    "seed": _Option("seed", _number(int, 0, 2**31 - 1), "a whole number from 0"),
    "observer": _Option("observer", _one_of("minmax", "percentile", "mse"), "minmax, percentile or mse"),
    "rounding": _Option("rounding", _one_of("nearest", "gptq", "descent"), "nearest, gptq or descent"),
    "equalize": _Option("equalize", _switch, "on or off"),
    "bias": _Option("correct_bias", _switch, "on or off"),
    "samples": _Option("samples", _number(int, 1, 1_000_000), "a number of samples from 1"),
    "edges": _Option("edges", _one_of("8", "same"), "8 or same"),
    "encoding": _Option("encoding", _one_of("dense", "sparse"), "dense or sparse"),
    "storage": _Option("storage", lambda text: (2, 4, 8)[("2", "4", "8").index(text)], "2, 4 or 8"),
    "schedule": _Option("schedule", _one_of("cubic", "once"), "cubic or once"),
    "rate": _Option("rate", _number(float, 0, 10, open_low=True), "a number above 0, up to 10"),
    "batch": _Option("batch", _number(int, 1, 65536), "a number of samples from 1"),
    "augment": _Option("augment", _switch, "on or off"),
    "temperature": _Option("temperature", _number(float, 0, 1000, open_low=True), "a number above 0"),
    "balance": _Option("balance", _number(float, 0, 1), "a number from 0 to 1"),
}
_DEFAULTS = {f.name: f.default for f in fields(Recipe)}
TERMS = (*PRECISIONS, AS_IS, *PATTERNS, *STRUCTURES, *_OPTIONS)


def parse(*terms: str) -> Recipe:
    """
    Read a recipe, whole or in pieces: ``parse("w4a8+tile:0.75")`` is ``parse("w4a8", "tile:0.75")``.

    ``mixed:FILE`` reads the file, YAML or JSON of layer -> 8, 4, 2, 1 (binary) or ternary; ``mixed:layer=4,...`` needs
    none, and is how the canonical text says it.  Without a precision it is int8.

    Raises:
        BuildError: what is wrong with which term, with the nearest that there is.
    """
    values: dict[str, Any] = {}
    prune: list[Prune] = []
    structure: list[Structure] = []
    for term in [part.strip() for text in terms for part in text.split("+")]:
        name, _, argument = term.partition(":")
        if name in PRECISIONS or name == AS_IS:
            _once(values, "precision", name, "precision")
            if name == "mixed":
                values["bits"] = _bits(argument)
            elif argument:
                raise BuildError(f"recipe {name} takes nothing after it: {term!r}")
        elif name in PATTERNS:
            prune.append(_prune(name, argument, term))
        elif name in STRUCTURES:
            structure.append(_structure(name, argument, term))
        elif name in _OPTIONS:
            option = _OPTIONS[name]
            try:
                _once(values, option.field, option.parse(argument), name)
            except ValueError:
                raise BuildError(f"recipe: {term!r}: {name} takes {option.says}") from None
        else:
            raise BuildError(f"no recipe {term!r}{nearest(name, TERMS)}", "`deploy build --help` lists them")
    order = {name: place for place, name in enumerate((*PATTERNS, *STRUCTURES))}
    values["prune"] = tuple(sorted(prune, key=lambda p: order[p.pattern]))
    values["structure"] = tuple(sorted(structure, key=lambda s: order[s.kind]))
    return Recipe(**values)


def from_json(value: Mapping[str, Any]) -> Recipe:
    """
    Undo `Recipe.to_json`.

    Raises:
        BuildError: not what that wrote.
    """
    try:
        bits = ",".join(f"{_quote(layer)}={_BITS_TEXT[weights]}" for layer, weights in value["bits"].items())
        head = f"{value['precision']}:{bits}" if bits else value["precision"]
        options = [f"{name}:{_plain(value[name])}" for name in _OPTIONS if value.get(name) is not None]
        return parse(head, *value["prune"], *value["structure"], *options)
    except (AttributeError, KeyError, TypeError) as error:
        raise BuildError(f"not a recipe: {type(error).__name__}: {error}") from None


def _once(values: dict[str, Any], key: str, value: Any, name: str) -> None:
    if key in values:
        raise BuildError(f"recipe: {name} is given twice: {_plain(values[key])} and {_plain(value)}")
    values[key] = value


def _prune(pattern: str, argument: str, term: str) -> Prune:
    try:
        if pattern == "nm":
            kept, of = (int(part) for part in argument.split(":"))
            if not 0 < kept < of <= 1024:
                raise ValueError(argument)
            return Prune("nm", 1 - kept / of, kept, of)
        block, _, share = argument.rpartition(":")
        sparsity = float(share)
        if not 0 < sparsity < 1 or (pattern == "block") != bool(block) or (block and block not in BLOCKS):
            raise ValueError(argument)
        return Prune(pattern, sparsity, of=int(block[2:]) if block else 0)
    except ValueError:
        takes = {
            "nm": "N:M, how many are kept of how many, such as nm:2:4",
            "block": "1x4 or 1x16 and a share of zeros, such as block:1x16:0.75",
        }.get(pattern, f"a share between 0 and 1, such as {pattern}:0.75")
        raise BuildError(f"recipe: {term!r}: {pattern} takes {takes}") from None


def _structure(kind: str, argument: str, term: str) -> Structure:
    if kind == "distill":
        return Structure("distill", teacher=urllib.parse.unquote(argument) or SELF)
    if kind == "separable":
        if argument:
            raise BuildError(f"recipe: {term!r}: separable takes nothing after it")
        return Structure("separable")
    try:
        factor = float(argument)
        if not 0 < factor < 1:
            raise ValueError(argument)
    except ValueError:
        raise BuildError(f"recipe: {term!r}: width takes a factor between 0 and 1, such as width:0.5") from None
    return Structure("width", factor)


def _bits(argument: str) -> dict[str, Weights]:
    if "=" in argument:
        pairs = [part.rpartition("=") for part in argument.split(",")]
        raw: Any = {urllib.parse.unquote(name.strip()): value.strip() for name, _, value in pairs}
        where = "mixed"
    elif argument:
        where, raw = argument, _bits_file(Path(urllib.parse.unquote(argument)))
    else:
        raise BuildError("recipe mixed takes a file, or layers", "`mixed:bits.yaml` or `mixed:conv2d=4,dense=8`")
    if not isinstance(raw, dict) or not raw:
        raise BuildError(f"{where}: not a mapping of layers to bits", "a line such as `conv2d_1: 4` for each layer")
    bits = {}
    for layer, value in raw.items():
        if isinstance(value, (dict, list)):
            raise BuildError(f"{where}: layer {layer!r} has {value!r}; one line is a layer and its bits: `{layer}: 4`")
        known = int(value) if re.fullmatch(r"\d+", str(value)) else value
        if isinstance(value, bool) or known not in _BITS:
            raise BuildError(f"{where}: layer {layer!r} has {value!r}; bits are 8, 4, 2, 1 (binary) or ternary")
        bits[str(layer)] = _BITS[known]
    return bits


def _bits_file(path: Path) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text) if path.suffix == ".json" else YAML(typ="safe").load(text)
    except OSError as error:
        raise BuildError(f"{path}: {error.strerror}") from None
    except (ValueError, YAMLError) as error:
        raise BuildError(f"{path}: neither YAML nor JSON: {' '.join(str(error).split())[:200]}") from None


def _quote(name: str) -> str:
    return "".join(c if c.isprintable() and c not in " +,=%" else urllib.parse.quote(c, safe="") for c in name)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return repr(value) if isinstance(value, float) else str(value)


def _check(recipe: Recipe) -> None:
    """What terms mean together."""
    if recipe.precision != AS_IS and recipe.precision not in PRECISIONS:
        raise BuildError(f"no recipe {recipe.precision!r}{nearest(recipe.precision, PRECISIONS)}")
    if recipe.precision == AS_IS and (recipe.prune or recipe.structure or recipe.epochs):
        raise BuildError("recipe as-is packs a model as it is: nothing can be added to it")
    if (recipe.precision == "mixed") != bool(recipe.bits):
        raise BuildError("recipe mixed needs the bits of layers, and no other recipe takes them")
    names = [p.pattern for p in recipe.prune] + [s.kind for s in recipe.structure]
    for name in names:
        if names.count(name) > 1:
            raise BuildError(f"recipe: {name} is given twice")
    zeros = [p.pattern for p in recipe.prune if p.pattern != "channel"]
    if len(zeros) > 1:
        raise BuildError(f"recipe: {' and '.join(zeros)} cannot go together: a layer has one pattern of zeros")
    if recipe.pretrain and not recipe.epochs:
        raise BuildError("recipe: pretrain is for what is trained afterwards", "`--epochs N` trains")
    binary = "binary" in (recipe.precision, *recipe.bits.values())
    if recipe.epochs == 0:
        needy = [name for name in names if name in ("width", "separable", "distill")]
        needy += ["binary"] if binary else []
        if needy:
            raise BuildError(f"recipe: {needy[0]} needs training", "`--epochs N` trains")
    if zeros and binary:
        raise BuildError(f"recipe: a binary weight is +1 or -1 and never 0: {zeros[0]} cannot go with it")
    if recipe.epochs and (recipe.equalize or recipe.correct_bias is not None):
        name = "equalize" if recipe.equalize else "bias"
        raise BuildError(f"recipe: {name} is for quantization after training, and this one trains", "without epochs")
    if recipe.encoding == "sparse" and PRECISIONS.get(recipe.precision) != "w8":
        raise BuildError(f"recipe: encoding:sparse is for weights of 8 bits, not for {recipe.precision}")
    if recipe.encoding == "sparse" and not any(p.pattern == "block" and p.of == 16 for p in recipe.prune):
        raise BuildError("recipe: encoding:sparse is for the zeros of block:1x16:S")
