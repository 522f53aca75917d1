"""plan.yaml: what it means, and what is said when it means nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.boards import Board
from deploy.errors import ConfigError
from deploy.farm.cells import is_board_fault, matrix, versions, work
from deploy.farm.choose import Seen
from deploy.farm.plan import Plan, parse

PLAN = """\
schema: 1
bundles:
  int8: digits.bundle
  f16: {model: net.keras, recipe: float16, data: d.npz}
  dyn: {like: f16, recipe: dynamic}
boards:
  - desk
  - {tag: farm}
  - {kind: jetson, each: true}
settings:
  one: {duration: 2}
  four: {like: one, threads: 4, rate: 200}
"""


def board(name: str, kind: str = "raspberry-pi", tags: tuple[str, ...] = (), **more: object) -> Board:
    entry = {"kind": kind, "transport": {"kind": "ssh", "host": name}, "tags": tags, **more}
    return Board.model_validate({**entry, "name": name})


BOARDS = {
    each.name: each
    for each in (
        board("desk"),
        board("shelf", tags=("farm",)),
        board("attic", tags=("farm",)),
        board("nano", "jetson"),
        board("orin", "jetson"),
    )
}


def read(text: str) -> Plan:
    return parse(text, Path("lab/plan.yaml"))


def refusal(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        matrix(read(text), BOARDS, {})
    return str(caught.value).splitlines()


def test_every_bundle_meets_every_choice_of_boards_with_every_setting():
    cells = matrix(read(PLAN), BOARDS, {})

    assert 3 * 4 * 2 == len(cells)
    assert ["int8/desk/one", "int8/desk/four", "int8/tag farm/one"] == [cell.id for cell in cells[:3]]
    assert {"desk": ("desk",), "tag farm": ("shelf", "attic"), "nano": ("nano",), "orin": ("orin",)} == {
        cell.place: cell.boards for cell in cells
    }


def test_a_named_board_has_the_others_of_its_kind_behind_it():
    spares = {cell.place: cell.spares for cell in matrix(read(PLAN), BOARDS, {})}

    # A choice among several has its own others.
    assert {"desk": ("shelf", "attic"), "tag farm": (), "nano": ("orin",), "orin": ("nano",)} == spares


def test_an_emulated_board_stands_in_for_no_real_one():
    boards = {each.name: each for each in (board("desk"), board("vm", virtual="qemu 7.2 cortex-a72"))}

    (cell,) = matrix(read("schema: 1\nbundles: {a: a.bundle}\nboards: [desk]\n"), boards, {})

    assert () == cell.spares


def test_like_takes_over_what_is_not_said():
    plan = read(PLAN)

    assert ("net.keras", "dynamic", "d.npz") == (
        plan.bundles["dyn"].model,
        plan.bundles["dyn"].recipe,
        plan.bundles["dyn"].data,
    )
    measuring = plan.settings["four"].measuring()
    assert (2, 4, 200, 3) == (measuring.duration_s, measuring.threads, measuring.rate, measuring.restarts)


def test_a_bundle_like_a_recipe_is_the_bundle_alone():
    plan = read(PLAN.replace("dyn: {like: f16, recipe: dynamic}", "dyn: {like: f16, bundle: other.bundle}"))

    assert ("other.bundle", None, None) == (
        plan.bundles["dyn"].bundle,
        plan.bundles["dyn"].model,
        plan.bundles["dyn"].recipe,
    )


def test_paths_lie_beside_the_plan_and_modules_do_not():
    plan = read(PLAN)

    assert ["lab/net.keras", "deploy.examples.digits:model"] == [
        plan.beside("net.keras"),
        plan.beside("deploy.examples.digits:model"),
    ]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("bundles:", "bundels:", "2: the file has no key 'bundels'; did you mean 'bundles'?"),
        ("threads: 4", "thread: 4", "12: settings.four has no key 'thread'; did you mean 'threads'?"),
        ("- desk", "- dusk", "7: no board 'dusk'; did you mean 'desk'?"),
        ("tag: farm", "tag: frm", "8: no tag 'frm'; did you mean 'farm'?"),
        ("kind: jetson", "kind: jetsun", "9: no kind 'jetsun'; did you mean 'jetson'?"),
        ("recipe: dynamic", "recipe: dynamo", "5: bundles.dyn.recipe: no recipe 'dynamo'; did you mean 'dynamic'?"),
        ("like: one", "like: on", "12: settings.four is like 'on', which is not there; did you mean 'one'?"),
        (
            "duration: 2",
            "duration: 0",
            "11: settings.one.duration: input should be greater than or equal to 0.01 (got 0)",
        ),
        ("{duration: 2}", "{like: four}", "11: settings.one is like itself: one -> four -> one"),
        ("digits.bundle", "{recipe: int8}", "3: bundles.int8 needs the key 'bundle' or 'model'"),
        ("digits.bundle", "{bundle: a, model: b}", "3: bundles.int8 has both a bundle and a model: one of them"),
        (
            "- desk",
            "- {board: desk, each: true}",
            "7: board 'desk' is one board: tag, kind, needs and each choose many",
        ),
        ("{tag: farm}", "{each: true}", "8: a board's entry needs board, tag, kind or needs"),
        ("schema: 1", "schema: 2", "1: schema: input should be 1 (got 2)"),
        ("  int8: digits", "\tint8: digits", "3: not YAML: found character '\\t' that cannot start any token"),
    ],
)
def test_what_makes_no_sense_is_said_with_line_and_nearest_name(old, new, expected):
    assert f"lab/plan.yaml:{expected}" in refusal(PLAN.replace(old, new))


def test_a_need_that_there_is_not_and_one_that_nobody_meets_are_told_apart():
    unknown, unmet = (refusal(PLAN.replace("tag: farm", f"tag: farm, needs: [{need}]")) for need in ("dotprd", "pynq"))

    assert ["lab/plan.yaml:8: nothing is known to need 'dotprd'; did you mean 'dotprod'?"] == unknown
    assert ["lab/plan.yaml:8: no board will do: shelf is no pynq; attic is no pynq"] == unmet


def test_what_a_board_said_of_itself_meets_a_need():
    seen = {"attic": Seen("attic", found={"identity": {"is": {"machine": "aarch64", "cpu_features": ["asimddp"]}}})}
    text = PLAN.replace("tag: farm", "tag: farm, needs: [dotprod]")

    (boards,) = {cell.boards for cell in matrix(read(text), BOARDS, seen) if cell.place == "tag farm, dotprod"}

    assert ("attic",) == boards


def test_every_problem_is_said_at_once():
    text = PLAN.replace("like: one", "like: on").replace("recipe: dynamic", "recipe: dynamo")

    assert 2 == len(refusal(text))


def test_an_anchor_that_holds_itself_is_refused():
    with pytest.raises(ConfigError):
        read("schema: 1\nbundles: &a {x: *a}\nboards: [desk]\n")


def test_the_key_of_a_cell_knows_what_makes_it_another_measurement():
    plan = read(PLAN)
    first, other = (cell for cell in matrix(plan, BOARDS, {}) if cell.id in ("int8/desk/one", "int8/desk/four"))
    made_by = versions()
    base = work(plan, first, "1f" * 32, made_by)

    keys = [
        base.key(BOARDS["desk"]),
        base.key(BOARDS["shelf"]),
        work(plan, other, "1f" * 32, made_by).key(BOARDS["desk"]),
        work(plan, first, "2f" * 32, made_by).key(BOARDS["desk"]),
        work(plan, first, "1f" * 32, {**made_by, "agent": "0"}).key(BOARDS["desk"]),
    ]

    assert len(keys) == len(set(keys))
    assert keys[0] == work(plan, first, "1f" * 32, made_by).key(BOARDS["desk"])


def test_names_are_no_part_of_a_key():
    """Two plans that call a bundle differently measure the same thing once."""
    plan, renamed = read(PLAN), read(PLAN.replace("int8: ", "eight: "))

    keys = {
        work(p, next(c for c in matrix(p, BOARDS, {}) if c.place == "desk"), "1f" * 32, {}).key(BOARDS["desk"])
        for p in (plan, renamed)
    }

    assert 1 == len(keys)


def test_a_board_that_is_silent_is_at_fault_and_a_model_that_is_refused_is_not():
    from deploy.errors import BoardSilent, LeaseLost, ModelRefused

    assert [True, True, False] == [is_board_fault(kind("")) for kind in (BoardSilent, LeaseLost, ModelRefused)]
