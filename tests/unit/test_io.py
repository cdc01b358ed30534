"""Files are complete or absent, hold what they declare, and errors name what is wrong."""

import errno
import json
import lzma
import os

import h5py
import numpy as np
import pandas as pd
import pytest

from seal_lite.errors import InputError, reading
from seal_lite.io import (
    JSON_GROWTH,
    atomic_file,
    open_h5,
    open_text,
    read_json,
    refuse_bomb,
    refuse_oversize,
    reserve,
    sha256,
    write_atomic,
)


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


def test_what_does_not_fit_into_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("seal_lite.io.free_memory", lambda: 10**9)
    refuse_oversize(tmp_path, 10**9)
    with pytest.raises(InputError, match="declares 2 GB, and 1 GB of memory are free"):
        refuse_oversize(tmp_path, 2 * 10**9)


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2", ".xz", ".zip"])
def test_text_is_unpacked(tmp_path, suffix):
    table = pd.DataFrame({"x": np.arange(1000), "y": 0})
    table.to_csv(tmp_path / f"t.csv{suffix}", index=False)
    with open_text(tmp_path / f"t.csv{suffix}") as text:
        pd.testing.assert_frame_equal(pd.read_csv(text), table)


def test_text_that_unpacks_to_more_than_it_can_hold_is_refused(tmp_path):
    path = tmp_path / "t.csv.xz"
    path.write_bytes(lzma.compress(b"0,0\n" * 10**7))
    too_much = pytest.raises(InputError, match=r"t.csv.xz: unpacks to .* GB, of which it holds")
    with too_much, open_text(path, is_kept=False) as text:
        pd.read_csv(text)


def test_text_that_unpacks_to_more_than_the_memory_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "t.csv.gz"
    pd.DataFrame({"x": np.arange(10**6)}).to_csv(path, index=False)
    monkeypatch.setattr("seal_lite.io.free_memory", lambda: 3 * 10**6)
    with open_text(path, is_kept=False) as text:
        assert sum(len(part) for part in pd.read_csv(text, chunksize=10**5)) == 10**6
    too_much = pytest.raises(InputError, match=r"t.csv.gz: holds 0.003\d* GB, and 0.003 GB")
    with too_much, open_text(path) as text:
        pd.read_csv(text)


def test_json_that_takes_more_than_the_memory_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    path.write_text("[1,2]")
    monkeypatch.setattr("seal_lite.io.free_memory", lambda: 5 * JSON_GROWTH)
    assert read_json(path) == [1, 2]
    monkeypatch.setattr("seal_lite.io.free_memory", lambda: 5 * JSON_GROWTH - 1)
    with pytest.raises(InputError, match=r"run.json: takes up to 8e-08 GB, and .* are free"):
        read_json(path)


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


def link_file(file, other):
    file["x"] = h5py.ExternalLink(other, "secret")


def link_file_deeply(file, other):
    file["a/b/x"] = h5py.ExternalLink(other, "/secret")


def link_file_through_a_soft_link(file, other):
    link_file_deeply(file, other)
    file["x"] = h5py.SoftLink("/a/b/x")


def store_outside(file, other):
    file.create_dataset("x", (8,), "u1", external=[(other, 0, h5py.h5f.UNLIMITED)])


def view_file(file, other):
    layout = h5py.VirtualLayout((3,), "i8")
    layout[:] = h5py.VirtualSource(other, "secret", (3,))
    file.create_virtual_dataset("a/x", layout)


ELSEWHERE = [
    link_file,
    link_file_deeply,
    link_file_through_a_soft_link,
    store_outside,
    view_file,
]


@pytest.mark.parametrize("refer", ELSEWHERE)
def test_an_hdf5_file_that_lies_in_other_files_is_refused(tmp_path, refer):
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["secret"] = np.arange(3)
    path = tmp_path / "file.h5"
    with h5py.File(path, "w") as file:
        refer(file, str(other))
    with pytest.raises(InputError, match=r"file\.h5: .*x lies in another file"), open_h5(path):
        pass


def test_an_hdf5_file_with_links_to_its_own_parts_is_read(tmp_path):
    path = tmp_path / "file.h5"
    with h5py.File(path, "w") as file:
        file["a/x"] = np.arange(3)
        file["soft"] = h5py.SoftLink("/a/x")
        file["hard"] = file["a/x"]
        file["absent"] = h5py.SoftLink("/gone")
    with open_h5(path) as file:
        assert file["soft"][:].tolist() == file["hard"][:].tolist() == [0, 1, 2]


def test_a_pipe_is_no_hdf5_file(tmp_path):
    os.mkfifo(tmp_path / "x.h5")
    with pytest.raises(InputError, match="is a pipe"), open_h5(tmp_path / "x.h5"):
        pass


def test_room_is_reserved_on_the_disk(tmp_path):
    with (tmp_path / "file").open("wb") as file:
        reserve(file, 10**6)
    status = (tmp_path / "file").stat()
    assert status.st_size == 10**6
    assert status.st_blocks * 512 >= 10**6


def fail_to_reserve(monkeypatch, number):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", fail, raising=False)


def test_a_file_system_that_cannot_reserve_is_used_without(tmp_path, monkeypatch):
    fail_to_reserve(monkeypatch, errno.EOPNOTSUPP)
    with (tmp_path / "file").open("wb") as file:
        reserve(file, 10)
        monkeypatch.delattr(os, "posix_fallocate")  # as on macOS
        reserve(file, 10)


def test_a_disk_without_room_is_an_error(tmp_path, monkeypatch):
    fail_to_reserve(monkeypatch, errno.ENOSPC)
    with (tmp_path / "file").open("wb") as file, pytest.raises(OSError, match="No space"):
        reserve(file, 10)


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
