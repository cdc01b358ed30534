"""The common cache folder keeps below its limit, and a cache is cleared of nothing else."""

import os
import sys
from pathlib import Path

import psutil
import pytest

from seal_lite import InputError, cache
from seal_lite.cache import (
    cache_folder,
    cache_limit,
    cache_size,
    cached_files,
    clear_cache,
    make_room,
    mark_used,
)
from seal_lite.locks import lock

CHECKSUM = "f" * 16
GB = 10**9


def store(folder, digit, *, size=10, used=None):
    """A file of activations, used so many seconds after 1970."""
    path = folder / f"{digit * 32}-{CHECKSUM}.npy"
    path.write_bytes(b"0" * size)
    if used is not None:
        os.utime(path, (used, 50))
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the user's cache is another folder")
def test_the_common_folder_is_in_the_user_s_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("SEAL_LITE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "seal-lite/prefix"


def test_the_common_folder_can_be_stated(monkeypatch, tmp_path):
    monkeypatch.setenv("SEAL_LITE_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"


def test_auto_names_the_common_folder_and_a_path_itself(common):
    assert cache_folder("auto") == cache_folder(Path("auto")) == common
    assert cache_folder("mine/auto") == Path("mine/auto")


@pytest.fixture
def common(monkeypatch, tmp_path):
    """The common folder, with a limit of 40 bytes."""
    folder = tmp_path / "common"
    folder.mkdir()
    monkeypatch.setenv("SEAL_LITE_CACHE", str(folder))
    monkeypatch.setenv("SEAL_LITE_CACHE_GB", "4e-8")
    return folder


def test_only_the_common_folder_has_a_limit(common, tmp_path, monkeypatch):
    assert cache_limit(common) == 40
    assert cache_limit(tmp_path) is None
    monkeypatch.delenv("SEAL_LITE_CACHE_GB")
    assert cache_limit(common) > 10**9


@pytest.mark.parametrize("text", ["much", "inf", "nan"])
def test_a_limit_that_is_no_number_is_an_error(common, monkeypatch, text):
    monkeypatch.setenv("SEAL_LITE_CACHE_GB", text)
    with pytest.raises(InputError, match="SEAL_LITE_CACHE_GB .*is no number"):
        cache_limit(common)


def test_what_was_used_longest_ago_makes_room(common):
    oldest, old, new = (store(common, digit, used=t) for t, digit in enumerate("abc"))
    mark_used(oldest)
    assert oldest.stat().st_mtime == 50
    make_room(common, 10)
    assert cached_files(common) == [old, new, oldest]
    make_room(common, 11)
    assert cached_files(common) == [new, oldest]
    with pytest.raises(OSError, match="is limited to 4e-08 GB"):
        make_room(common, 41)
    assert cached_files(common) == [new, oldest]


def test_another_folder_is_never_made_smaller(tmp_path, common):
    store(tmp_path, "a")
    make_room(tmp_path, 10**9)
    assert len(cached_files(tmp_path)) == 1


def test_clearing_removes_activations_and_nothing_else(tmp_path):
    store(tmp_path, "a")
    (tmp_path / f".{'b' * 32}.part").write_bytes(b"0" * 5)  # a killed process has left it
    others = [tmp_path / name for name in ("x.npy", "results.json", f"{'a' * 32}.npy")]
    for path in others:
        path.write_text("mine")
    assert cache_size(tmp_path) == 15
    assert clear_cache(tmp_path) == 15
    assert cached_files(tmp_path) == []
    assert all(path.exists() for path in others)


def test_what_is_being_written_stays(tmp_path):
    path = store(tmp_path, "a")
    with lock(tmp_path / ("a" * 32)):
        assert clear_cache(tmp_path) == 0
    assert path.exists()


def test_an_absent_folder_holds_nothing(tmp_path):
    assert (cached_files(tmp_path / "no"), clear_cache(tmp_path / "no")) == ([], 0)


def test_the_command_shows_and_clears(cli, common, tmp_path):
    store(common, "a", size=30)
    code, output, _ = cli("cache")
    assert (code, output) == (0, f"{common}: holds 3e-08 of at most 4e-08 GB in 1 files\n")
    code, output, _ = cli("cache", "clear")
    assert (code, output.splitlines()) == (
        0,
        [
            f"{common}: 3e-08 GB are free again",
            f"{common}: holds 0 of at most 4e-08 GB in 0 files",
        ],
    )
    store(tmp_path, "b")
    code, output, _ = cli("cache", "--folder", tmp_path)
    assert output == f"{tmp_path}: holds 1e-08 GB in 1 files\n"
    code, _, error = cli("cache", "burn")
    assert (code, "use show or clear" in error) == (2, True)


@pytest.mark.parametrize("named", ["auto", "mine"])
def test_the_command_passes_the_name_of_the_cache_on(cli, common, monkeypatch, named):
    folders = []

    def finetune(*_, cache_dir, **__):
        folders.append(cache_dir)
        raise InputError("that is all")

    monkeypatch.setattr("seal_lite.data.shards.holds_shards", lambda _: True)
    monkeypatch.setattr("seal_lite.data.shards.read_shards", lambda *_, **__: ([], None))
    monkeypatch.setattr("seal_lite.training.loop.finetune", finetune)
    cli("finetune", "--data", "x", "--out", common / "run", "--cache", named)
    assert folders == [Path(named)]


@pytest.fixture
def limits(tmp_path, monkeypatch):
    """A machine with 64 GB available, on which no process has a limit yet."""
    monkeypatch.setattr(cache, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(cache, "OF_PROCESS", tmp_path / "self")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    machine = psutil.virtual_memory()._replace(available=64 * GB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: machine)

    def limit(group, *, most, used, reclaimable=0):
        folder = tmp_path / "cgroup" / group
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(f"{most}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 1\ninactive_file {reclaimable}\n")
        (tmp_path / "self").write_text(f"0::/{group}\n")

    return limit


def test_without_a_limit_the_machine_decides(limits):
    assert cache.free_memory() == 64 * GB
    limits("job", most="max", used=GB)
    assert cache.free_memory() == 64 * GB


def test_a_job_s_limit_counts_and_cached_files_are_free(limits):
    limits("slurm/job", most=8 * GB, used=5 * GB, reclaimable=2 * GB)
    assert cache.free_memory() == 5 * GB


def test_the_tightest_limit_counts(limits):
    limits("slurm", most=4 * GB, used=3 * GB)
    limits("slurm/job", most=8 * GB, used=GB)
    assert cache.free_memory() == GB


def test_processes_share_what_is_free(limits, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert cache.free_memory() == 16 * GB
