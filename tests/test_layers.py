"""The arrows of the house: deploy -> devices.protocol <- devices -> kernels (C ABI), and what keeps them."""

from __future__ import annotations

import ast
import glob
import os
import pwd
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

DEPLOY = sorted((ROOT / "deploy").rglob("*.py"))
DEVICES = sorted((ROOT / "devices").rglob("*.py"))
PROTOCOL = sorted((ROOT / "devices" / "protocol").rglob("*.py"))
RUNTIMES = {"ai_edge_litert", "tflite_runtime"}
LITERT = ROOT / "devices" / "backends" / "litert.py"
HOME = Path(pwd.getpwuid(os.getuid()).pw_dir)  # the tests' own is an empty one


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path), feature_version=(3, 9) if path in DEVICES else None)


def modules(node: ast.stmt) -> list[str]:
    """Full names of what an import statement imports; ``from a import b`` may mean the module ``a.b``."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert 0 == node.level, "relative imports hide where an arrow points"
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def imports(path: Path, *, running_at_import: bool = False) -> Iterator[tuple[str, str]]:
    """
    Where, and what.

    Args:
        running_at_import: leave out what only runs later, in a function, and what only a type checker reads.
    """
    waiting: list[ast.AST] = [parsed(path)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for name in modules(node):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", name
        elif running_at_import and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        elif running_at_import and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
        else:
            waiting += ast.iter_child_nodes(node)


def stray(paths: list[Path], allowed: set[str], **options: bool) -> list[str]:
    """Imports whose top-level package is not allowed."""
    return [
        f"{where} imports {name}"
        for path in paths
        for where, name in imports(path, **options)
        if name.split(".")[0] not in allowed
    ]


def test_the_host_uses_nothing_of_the_board_but_the_protocol():
    """The agent's code runs on the board's Python and at its risk; the host must not grow into it."""
    assert [] == [
        f"{where} imports {name}"
        for path in DEPLOY
        for where, name in imports(path)
        if re.match(r"devices\b", name) and not re.match(r"devices\.protocol\b", name)
    ]


def test_the_host_does_use_the_protocol():
    """Else the test above would pass on a walk that finds nothing."""
    used = {name for path in DEPLOY for _, name in imports(path) if name.startswith("devices.")}

    assert {"devices.protocol.framing.Decoder", "devices.protocol.errors"} <= used


def test_the_board_never_imports_the_host():
    assert [] == [
        f"{where} imports {name}"
        for path in DEVICES
        for where, name in imports(path)
        if name.split(".")[0] in ("deploy", "tests")
    ]


def test_the_board_needs_the_standard_library_numpy_a_litert_runtime_and_pynq_where_it_is():
    assert [] == stray(DEVICES, {"devices", "numpy", "pynq", *RUNTIMES, *sys.stdlib_module_names})


def test_the_protocol_needs_the_standard_library_alone():
    assert [] == stray(PROTOCOL, {"devices", *sys.stdlib_module_names})


def test_the_protocol_knows_nothing_of_the_board():
    assert [] == [
        f"{where} imports {name}"
        for path in PROTOCOL
        for where, name in imports(path)
        if name.split(".")[0] == "devices" and not name.startswith("devices.protocol.")
    ]


def test_only_the_litert_backend_imports_numpy_and_a_runtime_at_once():
    """The agent's own process must come up on a board that has neither; the runner imports them when it is asked."""
    others = [path for path in DEVICES if path != LITERT]

    assert [] == stray(others, {"devices", *sys.stdlib_module_names}, running_at_import=True)
    assert [] == [
        f"{where} imports {name}"
        for path in others
        for where, name in imports(path, running_at_import=True)
        if name.startswith("devices.backends.")
    ]
    assert {"numpy"} | RUNTIMES <= {name.split(".")[0] for _, name in imports(LITERT, running_at_import=True)}


SPEAKS = re.compile(
    r"print|(click|rich|typer)\.\w*(echo|print|prompt|confirm)|sys\.(__)?std(out|err)(__)?\.write(lines)?"
)


SILENT = [path for path in [*DEPLOY, *DEVICES] if not path.is_relative_to(ROOT / "deploy" / "cli")]


@pytest.mark.parametrize("path", SILENT, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_command_line_speaks(path):
    """A library that prints cannot be used by another program; an agent that prints breaks its frames."""
    spoken = [
        f"{path.relative_to(ROOT)}:{node.lineno} calls {ast.unparse(node.func)}"
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call) and SPEAKS.fullmatch(ast.unparse(node.func))
    ]
    # An entry point may say on standard error how it ended.
    entry = path.name == "__main__.py"
    assert [] == [line for line in spoken if not (entry and line.endswith(" calls sys.stderr.write"))]


@pytest.mark.parametrize("path", DEVICES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_board_s_code_is_written_for_python_3_9(path):
    """The oldest that boards have (JetPack 5 with deadsnakes, Debian 11).  Annotations are read later, if ever."""
    tree = parsed(path)

    assert not any(type(node).__name__ in ("Match", "TryStar") for node in ast.walk(tree))
    if any(isinstance(node, (ast.FunctionDef, ast.AnnAssign)) for node in ast.walk(tree)):
        assert "__future__.annotations" in [name for _, name in imports(path)]


def pythons() -> list[str]:
    """One interpreter for each version that the agent supports, of those that are here."""
    found: dict[tuple[int, int], str] = {sys.version_info[:2]: sys.executable}
    for minor in range(9, 15):
        name = f"python3.{minor}"
        candidates = sorted(glob.glob(str(HOME / ".pyenv" / "versions" / f"3.{minor}.*" / "bin" / name)), reverse=True)
        on_path = shutil.which(name)
        if on_path and "shims" not in on_path:  # a shim answers for versions that are not switched on, too
            candidates.append(on_path)
        if candidates:
            found.setdefault((3, minor), candidates[0])
    return [found[version] for version in sorted(found) if (3, 9) <= version <= (3, 14)]


@pytest.fixture(scope="module")
def travelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of `devices/`, and nothing else."""
    folder = tmp_path_factory.mktemp("board")
    shutil.copytree(ROOT / "devices", folder / "devices", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.mark.parametrize("python", pythons(), ids=lambda path: re.sub(r".*python(3[.\d]*)$", r"\1", path))
def test_devices_alone_in_an_empty_folder_starts(travelled, tmp_path, python):
    """As it does on a board: no packages (-S), nothing of this checkout, no environment, warnings as errors."""
    done = subprocess.run(
        [python, "-W", "error", "-S", "-m", "devices", "--root", str(tmp_path / "root"), "--self-test"],
        cwd=travelled, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip

    assert (0, "", "devices: ok\n") == (done.returncode, done.stdout, done.stderr)
    assert {"releases", "runtime", "store"} == {path.name for path in (tmp_path / "root").iterdir()}


@pytest.mark.parametrize("python", pythons(), ids=lambda path: re.sub(r".*python(3[.\d]*)$", r"\1", path))
def test_every_module_of_the_board_imports_on_its_python(travelled, python):
    """The self-test starts no runner; its module must load as well, before numpy comes into it."""
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in DEVICES
        if path != LITERT
    ]

    program = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]"
    done = subprocess.run(
        [python, "-W", "error", "-S", "-c", program, *names],
        cwd=travelled, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip

    assert (0, "") == (done.returncode, done.stderr)


def test_the_top_level_holds_the_four_rooms_and_nothing_else():
    """A fifth room would be nobody's; results and caches are not part of the checkout."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs a checkout: only git knows which folders belong to it")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    folders = {name.split("/")[0] for name in listed.split("\0") if "/" in name}
    assert {"deploy", "devices", "tests"} <= folders
    assert folders <= {"deploy", "devices", "kernels", "tests", ".ci", ".github"}
