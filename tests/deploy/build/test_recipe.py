"""The recipe language: what is typed, what is printed back, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.build import recipe
from deploy.build.recipe import PRECISIONS, Prune, Recipe, Structure, from_json, parse
from deploy.errors import BuildError

shares = st.floats(0.01, 0.99)
layers = st.dictionaries(st.text(min_size=1, max_size=8), st.sampled_from(["w8", "w4", "w2", "ternary", "binary"]))
zeros = st.one_of(
    st.builds(Prune, st.sampled_from(["tile", "magnitude"]), shares),
    st.builds(lambda kept, more: Prune("nm", 1 - kept / (kept + more), kept, kept + more), *[st.integers(1, 16)] * 2),
    st.builds(lambda share, of: Prune("block", share, of=of), shares, st.sampled_from([4, 16])),
)


def whole(
    precision: str, bits: Any, channel: list[Prune], zero: list[Prune], structure: list[Structure], **options: Any
) -> Recipe:
    """A recipe of these, as far as they can go together."""
    precision = "mixed" if bits else precision
    binary = "binary" in (precision, *bits.values())
    zero = [] if binary else zero
    blocks = bool(zero) and zero[0].of == 16 and zero[0].pattern == "block"
    epochs = 7 if binary or structure else options["epochs"]
    return Recipe(
        precision=precision,
        bits=bits,
        prune=(*channel, *zero),
        structure=tuple(structure),
        encoding="sparse" if blocks and precision in ("int8", "int16x8", "mixed") else "dense",
        **{**options, "epochs": epochs, "equalize": options["equalize"] and not epochs},
    )


recipes = st.builds(
    whole,
    st.sampled_from([name for name in PRECISIONS if name != "mixed"]),
    st.one_of(st.just({}), layers),
    st.lists(st.builds(Prune, st.just("channel"), shares), max_size=1),
    st.lists(zeros, max_size=1),
    st.tuples(
        st.lists(st.builds(Structure, st.just("width"), shares), max_size=1),
        st.lists(st.builds(lambda teacher: Structure("distill", teacher=teacher), st.text(min_size=1)), max_size=1),
    ).map(lambda parts: parts[0] + parts[1]),
    epochs=st.sampled_from([0, 7]),
    seed=st.integers(0, 2**31 - 1),
    storage=st.sampled_from([2, 4, 8]),
    rate=st.one_of(st.none(), st.floats(1e-9, 10)),
    equalize=st.booleans(),
    observer=st.sampled_from(["minmax", "percentile", "mse"]),
)


def refusal(*terms: str) -> str:
    with pytest.raises(BuildError) as caught:
        parse(*terms)
    return str(caught.value)


@given(recipes)
@settings(deadline=None, database=None, max_examples=200)
def test_every_recipe_is_read_back_from_its_text_and_from_its_json(given: Recipe) -> None:
    assert given == parse(given.text)
    assert given == from_json(json.loads(json.dumps(given.to_json())))


def test_terms_may_come_in_any_order_together_or_apart() -> None:
    expected = Recipe("w4a8", (Prune("tile", 0.75),), (Structure("distill", teacher="teacher.keras"),), epochs=10)

    assert expected == parse("w4a8 + tile:0.75 + distill:teacher.keras + epochs:10")
    assert expected == parse("epochs:10", "distill:teacher.keras+tile:.75", "w4a8")
    assert "w4a8+tile:0.75+distill:teacher.keras+epochs:10" == expected.text


def test_the_text_leaves_out_what_is_at_its_default_and_the_json_does_not() -> None:
    assert "int8" == Recipe().text == parse("int8+seed:0+observer:minmax").text
    assert Recipe().to_json()["observer"] == "minmax"


@pytest.mark.parametrize("file", ["bits.yaml", "bits.json"])
def test_mixed_reads_a_file_and_its_text_needs_the_file_no_more(file: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text('{"conv_1": 4, "block/a=b": "ternary", "dense": 8}')

    read = parse(f"mixed:{tmp_path / file}")

    assert {"conv_1": "w4", "block/a=b": "ternary", "dense": "w8"} == read.bits
    assert "mixed:block/a%3Db=ternary,conv_1=4,dense=8" == read.text
    assert ("w4", "w8") == (read.weights_of("conv_1", edge=True), read.weights_of("conv_2", edge=False))


def test_a_layer_that_the_model_lacks_is_answered_with_the_nearest() -> None:
    with pytest.raises(BuildError) as caught:
        parse("mixed:conv2d1=4").check_layers(["conv2d_1", "dense"])

    assert "mixed: the model has no layer 'conv2d1' with weights; did you mean 'conv2d_1'?" == str(caught.value)


def test_first_and_last_layer_keep_8_bits_unless_told() -> None:
    assert ("w8", "w4") == (parse("w4a8").weights_of("a", edge=True), parse("w4a8").weights_of("a", edge=False))
    assert "w4" == parse("w4a8+edges:same").weights_of("a", edge=True)


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        ("int4", "no recipe 'int4'; did you mean 'int8'?"),
        ("distil:x", "no recipe 'distil:x'; did you mean 'distill'?"),
        ("int8:4", "recipe int8 takes nothing after it: 'int8:4'"),
        ("tile", "recipe: 'tile': tile takes a share between 0 and 1, such as tile:0.75"),
        ("tile:75", "recipe: 'tile:75': tile takes a share between 0 and 1, such as tile:0.75"),
        ("magnitude:nan", "recipe: 'magnitude:nan': magnitude takes a share between 0 and 1, such as magnitude:0.75"),
        ("nm:4:2", "recipe: 'nm:4:2': nm takes N:M, how many are kept of how many, such as nm:2:4"),
        ("block:2x2:0.5", "recipe: 'block:2x2:0.5': block takes 1x4 or 1x16 and a share of zeros, such as "
         "block:1x16:0.75"),
        ("width:2", "recipe: 'width:2': width takes a factor between 0 and 1, such as width:0.5"),
        ("separable:3", "recipe: 'separable:3': separable takes nothing after it"),
        ("epochs:-1", "recipe: 'epochs:-1': epochs takes a number of epochs from 0"),
        ("rate:0", "recipe: 'rate:0': rate takes a number above 0, up to 10"),
        ("augment:maybe", "recipe: 'augment:maybe': augment takes on or off"),
        ("w4a8+int8", "recipe: precision is given twice: w4a8 and int8"),
        ("epochs:1+epochs:2", "recipe: epochs is given twice: 1 and 2"),
        ("tile:0.5+tile:0.6", "recipe: tile is given twice"),
        ("tile:0.5+nm:2:4", "recipe: tile and nm cannot go together: a layer has one pattern of zeros"),
        ("as-is+tile:0.5", "recipe as-is packs a model as it is: nothing can be added to it"),
        ("binary", "recipe: binary needs training"),
        ("mixed:conv=1", "recipe: binary needs training"),
        ("distill", "recipe: distill needs training"),
        ("pretrain:3", "recipe: pretrain is for what is trained afterwards"),
        ("int8+encoding:sparse", "recipe: encoding:sparse is for the zeros of block:1x16:S"),
        ("w4a8+block:1x16:0.5+encoding:sparse", "recipe: encoding:sparse is for weights of 8 bits, not for w4a8"),
        ("binary+tile:0.5+epochs:1", "recipe: a binary weight is +1 or -1 and never 0: tile cannot go with it"),
        ("mixed:a=1+nm:2:4+epochs:1", "recipe: a binary weight is +1 or -1 and never 0: nm cannot go with it"),
        ("int8+equalize:on+epochs:1", "recipe: equalize is for quantization after training, and this one trains"),
        ("int8+bias:off+epochs:1", "recipe: bias is for quantization after training, and this one trains"),
        ("mixed", "recipe mixed takes a file, or layers"),
        ("mixed:conv=3", "mixed: layer 'conv' has '3'; bits are 8, 4, 2, 1 (binary) or ternary"),
        ("mixed:no.yaml", "no.yaml: No such file or directory"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_with_what_it_takes(term: str, expected: str) -> None:
    assert expected == refusal(term)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("conv: 3", "{file}: layer 'conv' has 3; bits are 8, 4, 2, 1 (binary) or ternary"),
        ("conv: true", "{file}: layer 'conv' has True; bits are 8, 4, 2, 1 (binary) or ternary"),
        ("conv: [4]", "{file}: layer 'conv' has [4]; one line is a layer and its bits: `conv: 4`"),
        ("- conv", "{file}: not a mapping of layers to bits"),
        ("", "{file}: not a mapping of layers to bits"),
        ("a: [", "{file}: neither YAML nor JSON: "),
    ],
)
def test_a_file_of_bits_that_is_none_is_refused_by_name(content: str, expected: str, tmp_path: Path) -> None:
    file = tmp_path / "bits.yaml"
    file.write_text(content)

    assert refusal(f"mixed:{file}").startswith(expected.format(file=file))


@pytest.mark.parametrize("value", [{}, {"precision": "int8"}, {"precision": "int8", "prune": 3, "structure": []}])
def test_json_that_is_no_recipe_is_refused(value: dict[str, Any]) -> None:
    with pytest.raises(BuildError, match=r"^not a recipe: "):
        from_json(value)


def test_every_term_of_the_tables_can_be_typed() -> None:
    """A precision, pattern or option that is listed but cannot be read would be a promise broken."""
    arguments = {"nm": ":2:4", "block": ":1x16:0.5", "distill": "", "separable": "", "mixed": ":a=4"}
    for name in (*recipe.PATTERNS, *recipe.STRUCTURES, *PRECISIONS):
        argument = arguments.get(name, "" if name in PRECISIONS else ":0.5")
        assert parse(f"{name}{argument}", "epochs:1")
