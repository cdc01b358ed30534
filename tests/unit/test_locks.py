"""Folders have one writer, which notices when its folder is gone, with or without locks."""

import errno
import os
import shutil
import socket
import subprocess
import sys
import threading

import pytest
from filelock import Timeout

from seal_lite import locks
from seal_lite.errors import InputError
from seal_lite.io import atomic_file, write_atomic
from seal_lite.locks import exclusive_folder, lock


def names(folder):
    return sorted(path.name for path in folder.iterdir())


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


# ------------------------------------------------------------------- a folder that is removed


@pytest.mark.parametrize("write", ["file", "folder", "lock"])
@pytest.mark.parametrize("replaced", [False, True])
def test_what_is_written_into_a_removed_folder_is_an_error(tmp_path, write, replaced):
    folder = tmp_path / "run"

    def write_on():
        if write == "file":
            write_atomic(folder / "a/b", "")
        elif write == "folder":
            with exclusive_folder(folder / "a"):
                pass
        else:
            with lock(folder / "a"):
                pass

    with exclusive_folder(folder):
        write_on()
        shutil.rmtree(folder)
        if replaced:
            folder.mkdir()
            (folder / ".run.lock").write_text("")  # another run has begun there
        with pytest.raises(InputError, match="run: was removed while this run wrote there"):
            write_on()
    assert folder.exists() == replaced
    if replaced:
        assert names(folder) == [".run.lock"]


def test_a_removed_folder_does_not_hide_the_error_of_its_run(tmp_path):
    with pytest.raises(KeyError), exclusive_folder(tmp_path / "run"):
        shutil.rmtree(tmp_path / "run")
        raise KeyError


def test_files_elsewhere_are_written_after_a_folder_was_removed(tmp_path):
    with exclusive_folder(tmp_path / "run"):
        shutil.rmtree(tmp_path / "run")
        write_atomic(tmp_path / "run2", "x")
        with atomic_file(tmp_path / "other/file") as part:
            part.write_text("x")
    assert names(tmp_path) == ["other", "run2"]


# ------------------------------------------------------------------- file systems without locks


@pytest.fixture(params=["ENOLCK", "ENOTSUP", "EOPNOTSUPP", "EINVAL"])
def without_locks(request, monkeypatch):
    """The file system refuses to lock, as some network and FUSE mounts do."""
    fcntl = pytest.importorskip("fcntl")
    number = getattr(errno, request.param)

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(locks, "_WITHOUT_LOCKS", set())


def test_without_locks_a_file_names_the_owner(tmp_path, without_locks, caplog):
    for _ in range(2):
        with lock(tmp_path / "file"):
            assert names(tmp_path) == [".file.owner"]
            process, host, *_ = (tmp_path / ".file.owner").read_text().split("\n")
            assert (int(process), host) == (os.getpid(), socket.gethostname())
        assert names(tmp_path) == []
    assert [text for text in caplog.messages if "has no locks" in text] == [
        f"{tmp_path}: has no locks; files named .owner stand for them"
    ]


def test_without_locks_a_folder_has_one_writer(tmp_path, without_locks):
    with exclusive_folder(tmp_path):
        message = rf"process {os.getpid()} of \S+ writes there; wait, or remove \S+\.run\.owner if"
        with pytest.raises(InputError, match=message), exclusive_folder(tmp_path):
            pass
        with pytest.raises(Timeout), lock(tmp_path / "run", wait=False):
            pass
        shutil.rmtree(tmp_path)
        with pytest.raises(InputError, match="was removed"):
            write_atomic(tmp_path / "file", "")


def test_without_locks_what_a_dead_process_left_is_removed(tmp_path, without_locks):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / ".run.owner").write_text(f"{dead.pid}\n{socket.gethostname()}\n")
    with exclusive_folder(tmp_path):
        assert names(tmp_path) == [".run.owner"]
    assert names(tmp_path) == []


def test_without_locks_what_another_host_left_is_named(tmp_path, without_locks):
    (tmp_path / ".run.owner").write_text("7\nelsewhere\n")
    with (
        pytest.raises(InputError, match="process 7 of elsewhere writes there; wait, or remove"),
        exclusive_folder(tmp_path),
    ):
        pass


def test_without_locks_the_one_who_waits_is_told_for_whom(tmp_path, without_locks, caplog):
    owner = tmp_path / ".file.owner"
    owner.write_text("7\nelsewhere\n")
    ending = threading.Timer(0.3, owner.unlink)
    ending.start()
    with lock(tmp_path / "file"):
        assert owner.read_text().startswith(f"{os.getpid()}\n")
    expected = f"{tmp_path / 'file'}: process 7 of elsewhere makes it; wait, or remove {owner}"
    assert caplog.messages[-1] == f"{expected} if it has ended"


def test_other_errors_of_a_lock_are_raised(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def fail(*_):
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(OSError, match="input/output"), lock(tmp_path / "file"):
        pass
