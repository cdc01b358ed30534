"""Files are complete or absent, folders have one writer, and errors name what is wrong."""

import json

import h5py
import numpy as np
import pytest

from seal_lite.errors import InputError, reading
from seal_lite.io import (
    atomic_file,
    open_h5,
    read_json,
    refuse_bomb,
    sha256,
    write_atomic,
)
from seal_lite.locks import exclusive_folder, lock


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_an_interrupted_file_never_appears_and_leaves_nothing(tmp_path):
    file = tmp_path / "new/file"
    with pytest.raises(KeyboardInterrupt), atomic_file(file) as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert names(file.parent) == []


def test_an_interrupted_file_leaves_the_older_one(tmp_path):
    file = tmp_path / "file"
    write_atomic(file, "old")
    with pytest.raises(OSError), atomic_file(file) as part:
        part.write_text("new")
        raise OSError
    assert file.read_text() == "old"
    write_atomic(file, "new")
    assert file.read_text() == "new"
    assert names(tmp_path) == ["file"]


def test_a_folder_has_one_writer_at_a_time(tmp_path):
    folder = tmp_path / "run"
    with (
        exclusive_folder(folder),
        pytest.raises(InputError, match="run: another run writes there"),
        exclusive_folder(folder),
    ):
        pass
    with exclusive_folder(folder):  # the first has ended
        pass
    assert names(folder) == []


def test_a_folder_is_free_again_after_an_error(tmp_path):
    with pytest.raises(KeyError), exclusive_folder(tmp_path):
        raise KeyError
    with exclusive_folder(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match="file/run: cannot be written"),
        exclusive_folder(tmp_path / "file/run"),
    ):
        pass


def test_a_lock_is_beside_its_file(tmp_path):
    with lock(tmp_path / "folder/file.npy"):
        assert names(tmp_path / "folder") == [".file.npy.lock"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "run.json: cannot be read"),
        ('{"a": 1}', "'b'"),
        ("[1, 2]", "no JSON object"),
    ],
)
def test_json_that_lacks_what_is_needed_is_an_error(tmp_path, text, message):
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_json(path, "a", "b")


def test_json_is_read(tmp_path):
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"a": [1, None]}))
    assert read_json(path, "a") == {"a": [1, None]}


def test_sha256_is_the_published_one_of_abc(tmp_path):
    (tmp_path / "abc").write_text("abc")
    assert sha256(tmp_path / "abc").startswith("ba7816bf8f01cfea414140de5dae2223")


def test_a_file_that_declares_more_than_it_can_hold_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"0" * 1000)
    refuse_bomb(tmp_path / "file", 1_000_000)
    with pytest.raises(InputError, match="declares 2 GB"):
        refuse_bomb(tmp_path / "file", 2 * 10**9)


def test_an_hdf5_file_with_a_hole_is_refused(tmp_path):
    path = tmp_path / "hole.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.arange(3)
    with open_h5(path) as file:
        assert file["x"][:].tolist() == [0, 1, 2]
    with h5py.File(path, "a") as file:
        file.create_dataset("empty", shape=(10**9,), chunks=(1000,), dtype="f4")
    with pytest.raises(InputError, match="hole.h5: declares"), open_h5(path):
        pass


def test_any_error_becomes_one_line_about_the_file():
    with pytest.raises(InputError) as error, reading("a.h5", remedy="restore it"):
        raise OSError("two\n  lines with hf_secrettoken")
    message = str(error.value)
    assert message == "a.h5: cannot be read (OSError: two lines with hf_...); restore it"


@pytest.mark.parametrize("error", [InputError("gene X: unknown"), ModuleNotFoundError("tifffile")])
def test_errors_that_explain_themselves_pass_unchanged(error):
    with pytest.raises(type(error)) as raised, reading("a.h5"):
        raise error
    assert raised.value is error
