"""Files that are written whole or not at all."""

from __future__ import annotations

import pytest

from deploy.paths import whole


def test_a_file_is_replaced_when_its_writer_is_done(tmp_path):
    path = tmp_path / "net.json"
    path.write_text("old")

    with whole(path) as staging:
        staging.write_text("new")
        assert ("old", path.suffix) == (path.read_text(), staging.suffix)

    assert {"net.json": "new"} == {file.name: file.read_text() for file in tmp_path.iterdir()}


def test_a_writer_that_fails_leaves_what_was_there_and_nothing_beside_it(tmp_path):
    path = tmp_path / "net.json"
    path.write_text("old")

    with pytest.raises(ValueError), whole(path) as staging:
        staging.write_text("ne")
        raise ValueError

    assert {"net.json": "old"} == {file.name: file.read_text() for file in tmp_path.iterdir()}


def test_a_folder_that_is_not_there_is_said_so(tmp_path):
    with pytest.raises(FileNotFoundError), whole(tmp_path / "nowhere" / "net.json") as staging:
        staging.write_text("new")
