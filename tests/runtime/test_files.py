"""Files and folders that are written whole or not at all."""

import os
import re

import pytest

from segdiff_jax.runtime import files
from segdiff_jax.runtime.errors import UserError
from segdiff_jax.runtime.files import absolute, naming, replacing, write_file


@pytest.fixture
def path(tmp_path):
    """A file with the text "former" in a folder of its own."""
    path = tmp_path / "folder" / "file.txt"
    write_file(path, "former")
    return path


def test_a_path_means_the_same_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/a")
    for path, place in {
        "~": "/home/a",
        "~/run/": "/home/a/run",
        "a~/b": f"{tmp_path}/a~/b",
        "photos": f"{tmp_path}/photos",
        ".": str(tmp_path),
        "../x/./y": f"{tmp_path.parent}/x/y",
        "photos/*/../**/[ab].jpg": f"{tmp_path}/photos/**/[ab].jpg",
        "/a b/c": "/a b/c",
    }.items():
        assert str(absolute(path)) == place


def test_what_lies_above_a_link_is_found(tmp_path):
    """In a shell, too, link/../file is not the file beside the link."""
    (tmp_path / "far" / "folder").mkdir(parents=True)
    (tmp_path / "far" / "file").write_text("text")
    (tmp_path / "link").symlink_to(tmp_path / "far" / "folder")
    path = absolute(tmp_path / "link" / ".." / "file")
    assert path.read_text() == "text" and path.parts[-3:] == ("link", "..", "file")
    assert absolute(tmp_path / "link" / "a" / "..") == tmp_path / "link"


def test_a_file_is_written_with_its_folders(path):
    assert path.read_text() == "former"
    write_file(path, "läter")
    assert path.read_bytes() == "läter".encode()
    write_file(path, b"\xff")
    assert path.read_bytes() == b"\xff" and list(path.parent.iterdir()) == [path]


def test_others_see_the_former_file_until_the_end(path):
    with replacing(path) as part:
        part.write_text("later")
        assert path.read_text() == "former" and part.parent == path.parent
        with replacing(path) as another:
            assert another != part
            another.write_text("between")
        assert path.read_text() == "between"
    assert path.read_text() == "later" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyError("any"), KeyboardInterrupt()])
def test_after_an_error_the_former_file_is_there_and_nothing_else(path, error):
    with pytest.raises(type(error)), replacing(path) as part:
        part.write_text("half")
        raise error
    assert path.read_text() == "former" and list(path.parent.iterdir()) == [path]


def test_a_folder_takes_the_place_of_none(tmp_path):
    folder = tmp_path / "a" / "folder"
    with replacing(folder) as part:
        part.mkdir()
        (part / "file").write_text("text")
        assert not folder.exists()
    assert (folder / "file").read_text() == "text" and list(folder.parent.iterdir()) == [folder]


def test_after_an_error_nothing_of_a_folder_is_left(tmp_path):
    with pytest.raises(KeyError), replacing(tmp_path / "folder") as part:
        part.mkdir()
        (part / "file").write_text("text")
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_stays(tmp_path):
    """It may be another process's, which was faster."""
    with replacing(tmp_path / "folder") as part:
        part.mkdir()
        (part / "file").write_text("first")
    message = f"cannot write {re.escape(str(tmp_path / 'folder'))} "
    with pytest.raises(OSError, match=message), replacing(tmp_path / "folder") as part:
        part.mkdir()
        (part / "file").write_text("second")
    assert (tmp_path / "folder" / "file").read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_what_cannot_be_written_is_named(path, monkeypatch):
    message = f"cannot write {path} (No space left on device): free some space on the disk, or "
    message = re.escape(message + "choose a folder that can be written to")
    with pytest.raises(OSError, match=f"^{message}$"), replacing(path) as part:
        part.write_text("half")
        raise OSError(28, "No space left on device")
    with pytest.raises(OSError, match=f"^{message}$"), naming(path):
        raise OSError(28, "No space left on device")
    assert path.read_text() == "former" and list(path.parent.iterdir()) == [path]
    below = path / "a file below a file"
    with pytest.raises(OSError, match=re.escape(f"cannot write {below} (")):
        write_file(below, "text")

    def replace(source, target):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.os, "replace", replace)
    with pytest.raises(OSError, match=re.escape(f"cannot write {path} (Permission denied)")):
        write_file(path, "later")
    assert path.read_text() == "former" and os.listdir(path.parent) == ["file.txt"]


def test_a_user_that_is_not_there_is_named():
    with pytest.raises(UserError, match="~no-such-user/x: there is no such user; write ./~no-such"):
        absolute("~no-such-user/x")
    assert str(absolute("./~no-such-user/x")).endswith("/~no-such-user/x")
