"""boards.yaml: what it may say, and what is said when it does not fit."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from deploy import boards
from deploy.boards import Board, Cpu, Rail, SerialTransport, SshTransport, find_file, load, parse
from deploy.errors import ConfigError, UnknownBoard
from tests.conftest import ROOT

SHIPPED = (ROOT / "boards.yaml").read_text()
FILE = Path("boards.yaml")


def lab(board: str) -> str:
    """A file with one board, `pi`, of which the lines from the fourth on are given."""
    return "schema: 1\nboards:\n  pi:\n" + "".join(f"    {line}\n" for line in board.splitlines())


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text, FILE)
    return str(caught.value)


# The shipped file


def test_the_shipped_file_is_valid_and_knows_this_machine() -> None:
    assert [boards.LOCAL] == list(parse(SHIPPED, FILE))


def test_the_boards_that_the_shipped_file_shows_in_comments_are_valid() -> None:
    """They are what a user uncomments first."""
    examples = re.sub(r"^  # (?=( {2})*[\w-]+:|  +- )", "  ", SHIPPED, flags=re.MULTILINE)

    found = {board.name: board for board in parse(examples, FILE)}

    assert ["local", "pi5-desk", "orin-nano", "pynq-z2"] == list(found)
    assert SshTransport(kind="ssh", host="pi5-desk.local") == found["pi5-desk"].transport
    assert (Rail(name="ina226-power1", meter="ina226", scope="board-dc"),) == found["pi5-desk"].rails
    assert Cpu(arch="armv7l", cores=2, features=("neon",)) == found["pynq-z2"].cpu
    assert isinstance(found["pynq-z2"].transport, SerialTransport)


# What does not fit


@pytest.mark.parametrize(
    ("board", "expected"),
    [
        # unknown keys, at every depth: a union's member, an element of a list
        ("kind: jetson\ntransport: {kind: local}\nmemory_limit: 3",
         "boards.yaml:6: boards.pi has no key 'memory_limit'; did you mean 'memory_limit_mib'?"),
        ("kind: jetson\ntransport:\n  kind: ssh\n  hst: pi.local",
         "boards.yaml:7: boards.pi.transport has no key 'hst'; did you mean 'host'?"),
        ("kind: jetson\ntransport: {kind: local, host: pi.local}",
         "boards.yaml:5: boards.pi.transport has no key 'host'; there is 'kind'"),
        ("kind: jetson\ntransport: {kind: local}\nrails:\n  - {name: VDD_IN}\n  - name: VDD_CPU\n    metr: ina3221",
         "boards.yaml:9: boards.pi.rails[1] has no key 'metr'; did you mean 'meter'?"),
        ("kind: jetson\ntransport: {kind: local}\ncpu:\n  arch: aarch64\n  core: 4",
         "boards.yaml:8: boards.pi.cpu has no key 'core'; did you mean 'cores'?"),
        # a board is called as its key says
        ("kind: jetson\ntransport: {kind: local}\nname: nano", "boards.yaml:6: boards.pi has no key 'name'"),
        # missing keys: the line is that of what lacks them
        ("transport: {kind: local}", "boards.yaml:3: boards.pi needs the key 'kind'"),
        ("kind: jetson", "boards.yaml:3: boards.pi needs the key 'transport'"),
        ("kind: jetson\ntransport: {kind: ssh}", "boards.yaml:5: boards.pi.transport needs the key 'host'"),
        ("kind: jetson\ntransport: {kind: local}\nrails:\n  - {meter: rapl}",
         "boards.yaml:7: boards.pi.rails[0] needs the key 'name'"),
        ("kind: jetson\ntransport: {host: pi.local}",
         "boards.yaml:5: boards.pi.transport needs the key 'kind': local, ssh or serial"),
        # words that are none of the known ones
        ("kind: jetson\ntransport: {kind: shh, host: pi.local}",
         "boards.yaml:5: boards.pi.transport.kind is 'shh'; did you mean 'ssh'?"),
        ("kind: jetson\ntransport: {kind: usb}",
         "boards.yaml:5: boards.pi.transport.kind is 'usb'; there is 'local', 'ssh', 'serial'"),
        ("kind: jetson\ntransport: {kind: local}\npower: {kind: virtuall, board: pi4}",
         "boards.yaml:6: boards.pi.power.kind is 'virtuall'; did you mean 'virtual'?"),
        ("kind: raspberry\ntransport: {kind: local}",
         "boards.yaml:4: boards.pi.kind is 'raspberry'; did you mean 'raspberry-pi'?"),
        ("kind: jetson\ntransport: {kind: local}\ncpu: {arch: riscv64}",
         "boards.yaml:6: boards.pi.cpu.arch is 'riscv64'; there is 'aarch64', 'armv7l', 'x86_64'"),
        # values of another type, or out of range
        ("kind: 5\ntransport: {kind: local}",
         "boards.yaml:4: boards.pi.kind: "
         "input should be 'raspberry-pi', 'jetson', 'pynq', 'pynq-sim' or 'generic' (got 5)"),
        ("kind: jetson\ntransport: local", "boards.yaml:5: boards.pi.transport: "
         "input should be a valid dictionary or object to extract fields from (got 'local')"),
        ("kind: jetson\ntransport: {kind: ssh, host: pi.local, port: 70000}",
         "boards.yaml:5: boards.pi.transport.port: input should be less than or equal to 65535 (got 70000)"),
        ("kind: jetson\ntransport: {kind: local}\ncpu: {arch: aarch64, cores: four}", "boards.yaml:6: "
         "boards.pi.cpu.cores: input should be a valid integer, unable to parse string as an integer (got 'four')"),
        ("kind: jetson\ntransport: {kind: local}\ntags: lab",
         "boards.yaml:6: boards.pi.tags: input should be a valid tuple (got 'lab')"),
        # the only folder that `clean` removes: never one that depends on where the agent was started
        ("kind: jetson\ntransport: {kind: local}\nroot: deploy",
         "boards.yaml:6: boards.pi.root: string should match pattern '^(~/|/).*[^/]$' (got 'deploy')"),
        ("3", "boards.yaml:3: boards.pi: input should be a valid dictionary or instance of Board (got 3)"),
    ],
)  # fmt: skip
def test_what_does_not_fit_in_a_board_is_said_with_line_and_key(board: str, expected: str) -> None:
    assert expected == refusal(lab(board))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("schema: 1\nbords: {}\n", "boards.yaml:2: the file has no key 'bords'; did you mean 'boards'?"),
        ("boards: {}\n", "boards.yaml:1: the file needs the key 'schema'"),
        ("schema: 1\n", "boards.yaml:1: the file needs the key 'boards'"),
        ("# comment\nschema: 2\nboards: {}\n", "boards.yaml:2: schema: input should be 1 (got 2)"),
        ("", "boards.yaml:1: expected `schema: 1` and `boards:`"),
        ("- pi\n", "boards.yaml:1: expected `schema: 1` and `boards:`"),
        ("schema: 1\nboards:\n  pi: [\n", "boards.yaml:4: not YAML: expected the node content, but found "
         "'<stream end>'"),
        ("schema: 1\nboards:\n\tpi:\n", "boards.yaml:3: not YAML: found character '\\t' that cannot start any token"),
        ("schema: 1\nboards: {}\nboards: {}\n",
         "boards.yaml:3: not YAML: found duplicate key \"boards\" with value \"{}\" (original value: \"{}\")"),
        ("schema: 1\nboards:\n  pi: *other\n", "boards.yaml:3: not YAML: found undefined alias 'other'"),
        # what a file holds that was cut by a power failure
        ("schema: 1\nboards: \0\0\0", "boards.yaml:2: not YAML: character #x0000: special characters are not allowed"),
    ],
    ids=["unknown", "no schema", "no boards", "version", "empty", "list", "open", "tab", "twice", "alias", "zeros"],
)  # fmt: skip
def test_a_file_that_is_none_is_refused_with_its_line(text: str, expected: str) -> None:
    assert expected == refusal(text)


def test_every_problem_of_a_file_is_said_at_once() -> None:
    text = lab("kind: jetsn\ntransport: {kind: ssh}\nmemory_limit_mib: 2") + "  nano:\n    kind: jetson\n"

    assert [
        "boards.yaml:4: boards.pi.kind is 'jetsn'; did you mean 'jetson'?",
        "boards.yaml:5: boards.pi.transport needs the key 'host'",
        "boards.yaml:6: boards.pi.memory_limit_mib: input should be greater than or equal to 128 (got 2)",
        "boards.yaml:7: boards.nano needs the key 'transport'",
    ] == refusal(text).splitlines()


def test_a_key_that_came_by_a_merge_is_refused_at_the_board_that_merges_it() -> None:
    """YAML's ``<<``: the key has no line of its own in this board."""
    text = "schema: 1\nboards:\n  pi:\n    <<: {knd: jetson}\n    kind: jetson\n    transport: {kind: local}\n"

    assert "boards.yaml:3: boards.pi has no key 'knd'; did you mean 'kind'?" == refusal(text)


def test_boards_may_share_what_they_have_in_common() -> None:
    text = lab("&common\nkind: jetson\ntransport: {kind: ssh, host: a}").replace("pi:\n    &", "pi: &")
    text += "  nano:\n    <<: *common\n    transport: {kind: ssh, host: b}\n"

    assert [("pi", "jetson", "a"), ("nano", "jetson", "b")] == [
        (board.name, board.kind, board.transport.host) for board in parse(text, FILE)
    ]


# The file


def test_a_file_that_is_not_there_says_which_and_how_to_name_another(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(str(tmp_path / "lab.yaml"))

    assert f"{tmp_path}/lab.yaml: No such file or directory" == str(caught.value)
    assert "`deploy --boards FILE ...` or $DEPLOY_BOARDS name the board file" == caught.value.hint


def test_a_file_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lab.yaml").write_bytes(b"schema: 1\nboards: {} # M\xfcnchen\n")

    with pytest.raises(ConfigError) as caught:
        load(str(tmp_path / "lab.yaml"))

    assert f"{tmp_path}/lab.yaml: not UTF-8" == str(caught.value)


def test_without_a_file_this_machine_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    registry = load()

    assert [boards.LOCAL] == list(registry)
    with pytest.raises(UnknownBoard) as caught:
        registry["pi"]
    assert "no board 'pi' in the embedded registry; there is 'local'" == str(caught.value)


def test_the_file_is_the_one_named_then_the_environments_then_this_folders_then_the_users(
    tmp_path: Path, private_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = [find_file()]
    users = private_home / ".config" / "deploy" / "boards.yaml"
    users.parent.mkdir(parents=True)
    users.write_text(SHIPPED)
    found.append(find_file())
    (tmp_path / "boards.yaml").write_text(SHIPPED)
    found.append(find_file())
    monkeypatch.setenv("DEPLOY_BOARDS", "of-the-environment.yaml")
    found.append(find_file())
    found.append(find_file("named.yaml"))

    assert [None, users, FILE, Path("of-the-environment.yaml"), Path("named.yaml")] == found


def test_the_users_own_file_is_looked_for_where_xdg_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    (tmp_path / "xdg" / "deploy").mkdir(parents=True)
    (tmp_path / "xdg" / "deploy" / "boards.yaml").write_text(SHIPPED)

    assert tmp_path / "xdg" / "deploy" / "boards.yaml" == find_file()


def test_an_unknown_board_suggests_the_nearest_name() -> None:
    registry = parse(lab("kind: raspberry-pi\ntransport: {kind: local}").replace("pi:", "pi5-desk:", 1), FILE)

    with pytest.raises(UnknownBoard) as caught:
        registry["pi5-dsk"]

    assert "no board 'pi5-dsk' in boards.yaml; did you mean 'pi5-desk'?" == str(caught.value)
    assert "`deploy boards` lists them, `deploy boards add` registers one" == caught.value.hint
    assert "pi5-dsk" == caught.value.board


def test_pinned_host_keys_lie_beside_the_file_or_where_the_users_configuration_is(
    tmp_path: Path, private_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    assert tmp_path / "lab" / "known_hosts" == parse(SHIPPED, tmp_path / "lab" / "boards.yaml").known_hosts
    assert private_home / ".config" / "deploy" / "known_hosts" == load().known_hosts


# Adding a board

ENTRY = {"kind": "jetson", "transport": {"kind": "ssh", "host": "nano.local"}}
ADDED = "  nano:\n    kind: jetson\n    transport:\n      kind: ssh\n      host: nano.local\n"
MINE = """\
# Our lab, ask Ada for the key
schema: 1
boards:
  zero:                                   # on the shelf
    kind: "raspberry-pi"                  # quoted, for no reason
    description: a Pi Zero 2 W on the uppermost shelf beside the window, behind the oscilloscope that nobody uses
    transport: {kind: serial, port: /dev/serial/by-id/usb-FTDI_FT232R_A50285BI-if00-port0, baud: 921600}
    rails:
      - {name: 5v}                        # the HAT
  # desk is broken
  bench:
    kind: generic
    transport: {kind: local}
"""


def test_adding_a_board_appends_it_and_leaves_every_other_line_alone(tmp_path: Path) -> None:
    """Long lines, quotes, comments and the order are the user's."""
    path = tmp_path / "boards.yaml"
    path.write_text(MINE)

    board = boards.add(path, "nano", ENTRY)

    assert MINE + ADDED == path.read_text()
    assert Board.model_validate({"name": "nano", **ENTRY}) == board == load(str(path))["nano"]


def test_adding_to_the_shipped_file_keeps_its_examples(tmp_path: Path) -> None:
    path = tmp_path / "boards.yaml"
    path.write_text(SHIPPED)

    boards.add(path, "nano", ENTRY)

    assert ["local", "nano"] == [board.name for board in load(str(path))]
    assert SHIPPED == path.read_text().replace(ADDED, "")


def test_adding_a_board_makes_the_file_and_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "boards.yaml"

    boards.add(path, "nano", ENTRY)

    assert boards.NEW_FILE + ADDED == path.read_text()
    assert [boards.LOCAL.name, "nano"] == [board.name for board in load(str(path))]


@pytest.mark.parametrize(
    ("name", "entry", "expected"),
    [
        ("zero", ENTRY, "{path}: board 'zero' is there already"),
        ("nano", {**ENTRY, "kind": "jetsn"}, "{path}:15: boards.nano.kind is 'jetsn'; did you mean 'jetson'?"),
        ("nano", {**ENTRY, "tgs": []}, "{path}:19: boards.nano has no key 'tgs'; did you mean 'tags'?"),
    ],
    ids=["taken", "value", "key"],
)
def test_a_board_that_cannot_be_added_leaves_the_file_as_it_was(
    tmp_path: Path, name: str, entry: dict[str, object], expected: str
) -> None:
    path = tmp_path / "boards.yaml"
    path.write_text(MINE)

    with pytest.raises(ConfigError) as caught:
        boards.add(path, name, entry)

    assert expected.format(path=path) == str(caught.value)
    assert MINE == path.read_text()
    assert ["boards.yaml"] == os.listdir(tmp_path)


def test_nothing_is_added_to_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "boards.yaml"
    path.write_text("schema: 1\nboards: [\n")

    with pytest.raises(ConfigError):
        boards.add(path, "nano", ENTRY)

    assert "schema: 1\nboards: [\n" == path.read_text()
