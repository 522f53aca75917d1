"""What the READMEs tell a newcomer to type works, and prints lines that begin as they say."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(readme: Path, language: str) -> list[str]:
    return [body for kind, body in BLOCK.findall(readme.read_text()) if kind == language]


def commands(readme: Path) -> list[tuple[str, list[str]]]:
    """Each ``$`` line, with the lines that are said to follow."""
    found: list[tuple[str, list[str]]] = []
    for line in "".join(blocks(readme, "console")).splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        elif line.strip():
            found[-1][1].append(line)
    return found


@pytest.mark.slow
def test_the_tour_of_the_readme_can_be_typed_as_it_stands(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow", reason="needs TensorFlow: `pip install 'deploy-hil[build]'`")
    shutil.copy(ROOT / "boards.yaml", tmp_path)
    typed = commands(ROOT / "README.md")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    assert len(typed) >= 8

    for command, expected in typed:
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

        assert 0 == done.returncode, f"{command}\n{done.stderr}"
        printed = {line.split()[0] for line in done.stdout.splitlines() if line.strip()}
        for line in expected:
            first = line.split()[0]
            # Run ids and rulers are what they are.
            if not re.fullmatch(r"[\d-]+[0-9a-f-]*|─+", first):
                assert first in printed, f"{command} printed no line that begins with {first!r}"

    for example in blocks(ROOT / "deploy" / "README.md", "python"):
        done = subprocess.run(
            [sys.executable, "-c", example], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert 0 == done.returncode, done.stderr
        assert 3 == done.stdout.count("[[")


@pytest.mark.parametrize("room", [".", "deploy", "devices", "kernels", "tests"])
def test_every_room_has_a_readme_and_its_links_lead_somewhere(room: str) -> None:
    readme = ROOT / room / "README.md"

    for target in re.findall(r"\]\(([^)#:]+)\)", readme.read_text()):
        assert (readme.parent / target).exists(), f"{readme}: {target}"


def test_the_maps_name_files_that_exist() -> None:
    for room in ("deploy", "devices"):
        text = (ROOT / room / "README.md").read_text()
        for row in re.findall(r"^\| (`.*?`) \|", text, re.MULTILINE):
            for name in re.findall(r"`([\w./]+)`", row):
                assert (ROOT / room / name).exists(), f"{room}/README.md: {name}"
