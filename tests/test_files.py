"""Output files appear whole or not at all."""

import json
from pathlib import Path

import pytest

from pars.errors import ParsError
from pars.files import write_json, written_whole


def test_file_appears_when_the_block_ends(tmp_path):
    """Nothing has the file's name before the block ends; then all of it has."""
    path = tmp_path / "new" / "out.bin"
    with written_whole(path) as file:
        file.write(b"all of it")
        assert not path.exists()

    assert path.read_bytes() == b"all of it"
    assert list(path.parent.iterdir()) == [path]


def test_failing_block_leaves_the_old_file(tmp_path):
    """A block that fails changes nothing and leaves no temporary file."""
    path = tmp_path / "out.bin"
    path.write_bytes(b"old")

    def write_half():
        with written_whole(path) as file:
            file.write(b"half of it")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()

    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_file_has_the_permissions_of_any_new_file(tmp_path):
    """The file is as readable as one made by open(), not private as temporary files are."""
    with written_whole(tmp_path / "ours") as file:
        file.write(b"x")
    (tmp_path / "plain").write_bytes(b"x")

    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_folder_that_cannot_be_made_is_said(tmp_path):
    """Where a folder would have to be made below a file, the error names the output."""
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ParsError, match=r"file/out\.bin: cannot be written: "),
        written_whole(tmp_path / "file" / "out.bin"),
    ):
        pass


def test_json_keeps_every_character(tmp_path):
    """JSON is written as UTF-8, indented, with a newline at its end."""
    write_json(tmp_path / "a.json", {"name": "東京"})

    assert (tmp_path / "a.json").read_bytes() == '{\n  "name": "東京"\n}\n'.encode()
    assert json.loads(Path(tmp_path / "a.json").read_text("utf-8")) == {"name": "東京"}
