"""The prefix cache: the activations of each view, computed once, never those of other weights."""

import errno
import os
import subprocess
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from seal_lite import encoders

OPTIONS = {"n_views": 3, "jitter": 0.15, "progress": False}


@dataclass(frozen=True)
class FakeSection:
    """What the cache reads of a section."""

    name: str
    digest: str
    patches: np.ndarray

    @property
    def rows(self):
        return range(len(self.patches))

    @property
    def keys(self):
        return [self.key(i) for i in self.rows]

    def key(self, i):
        return f"{self.name}/{i}"


@pytest.fixture(scope="module")
def section():
    patches = np.random.default_rng(0).integers(0, 256, (18, 64, 64, 3), dtype=np.uint8)
    return FakeSection("A1", "0" * 64, patches)


@pytest.fixture
def encoder():
    return encoders.build_encoder("tiny_cnn", tune_blocks=1)


@pytest.fixture
def stored(encoder, section, tmp_path):
    """Activations (3, 18, ...) that the cache in `tmp_path` holds."""
    return encoders.PrefixCache(encoder, folder=tmp_path, **OPTIONS).activations(section)


@pytest.mark.parametrize("view", [0, 2])
def test_the_cache_holds_each_view(encoder, section, stored, view):
    assert stored.shape[:2] == (3, len(section.rows))
    assert stored.dtype == np.float32
    images = encoders.make_views(section.patches, section.keys, [view] * 18, jitter=0.15)
    with torch.inference_mode():
        expected = encoder.prefix(images).numpy()
    np.testing.assert_allclose(stored[view], expected, rtol=1e-4, atol=1e-6)
    assert np.abs(stored[0] - stored[2]).max() > 1e-2


def test_the_cache_is_computed_once(encoder, section, stored, tmp_path, monkeypatch):
    assert [path.suffix for path in tmp_path.glob("[!.]*")] == [".npy"]
    again = encoders.PrefixCache(encoder, folder=tmp_path, **OPTIONS)
    monkeypatch.setattr(encoder, "prefix", lambda images: pytest.fail("computed again"))
    np.testing.assert_array_equal(again.activations(section), stored)


def test_the_cache_in_memory_is_the_cache_on_disk(encoder, section, stored):
    in_memory = encoders.PrefixCache(encoder, **OPTIONS).activations(section)
    np.testing.assert_array_equal(in_memory, stored)


def test_auto_is_the_common_folder(encoder, section, tmp_path, monkeypatch):
    """Of activations and of embeddings."""
    monkeypatch.setenv("SEAL_LITE_CACHE", str(tmp_path / "common"))
    monkeypatch.chdir(tmp_path)
    for embed in (encoders.embed_feature_layers, encoders.embed_every_layer):
        embed(encoder, [section], cache_dir="auto")
    stored = [path.suffix for path in (tmp_path / "common").glob("[!.]*-*")]
    assert sorted(stored) == [".npy", ".safetensors"]
    assert not (tmp_path / "auto").exists()


def test_a_damaged_file_is_computed_again(encoder, section, stored, tmp_path, caplog):
    expected = np.array(stored)
    (path,) = tmp_path.glob("*.npy")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    again = encoders.PrefixCache(encoder, folder=tmp_path, **OPTIONS).activations(section)
    np.testing.assert_array_equal(again, expected)
    assert any("damaged" in message and path.name in message for message in caplog.messages)


def test_an_interrupted_computation_leaves_no_file(encoder, section, tmp_path, monkeypatch):
    def fill_disk(images):
        raise OSError("no space left on device")

    cache = encoders.PrefixCache(encoder, folder=tmp_path, **OPTIONS)
    monkeypatch.setattr(encoder, "prefix", fill_disk)
    with pytest.raises(OSError, match="no space"):
        cache.activations(section)
    assert not list(tmp_path.glob("*.npy"))
    assert not list(tmp_path.glob(".*.part"))


def test_a_process_computes_its_own_sections_first(encoder, section, monkeypatch):
    cache = encoders.PrefixCache(encoder, **OPTIONS)
    sections = [replace(section, digest=f"{i}" * 64) for i in range(5)]
    order = []

    def activations(section):
        order.append(int(section.digest[0]))
        return order[-1]

    monkeypatch.setattr(cache, "activations", activations)
    assert cache.activations_of_all(sections, share=(1, 2)) == [0, 1, 2, 3, 4]
    assert order == [1, 3, 0, 2, 4]


@pytest.fixture
def full(monkeypatch):
    """A disk that has no room, as the system says it."""

    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)


def test_a_full_disk_is_said_once_and_leaves_no_file(encoder, section, tmp_path, full, caplog):
    cache = encoders.PrefixCache(encoder, folder=tmp_path, **OPTIONS)
    assert cache.activations(section) is None
    other = replace(section, digest="1" * 64)
    assert cache.activations(other) is None
    assert cache.activations_of_all([section, other]) is None
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]
    (message,) = [text for text in caplog.messages if "No space" in text]
    assert message.startswith(f"prefix cache: {tmp_path}: No space left")


def test_what_is_stored_is_read_though_the_disk_is_full(encoder, section, stored, tmp_path, full):
    cache = encoders.PrefixCache(encoder, folder=tmp_path, **OPTIONS)
    assert cache.activations(replace(section, digest="1" * 64)) is None
    np.testing.assert_array_equal(cache.activations(section), stored)


def test_feature_layers_do_not_need_the_disk(section, tmp_path, full):
    encoder = encoders.build_encoder("tiny_cnn", tune_blocks=1)
    layers = encoders.embed_feature_layers(encoder, [section], cache_dir=tmp_path)
    expected = encoders.embed_feature_layers(encoder, [section])
    for stage, (x,) in expected.items():
        np.testing.assert_allclose(layers[stage][0], x, rtol=1e-4, atol=1e-5)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 200 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "disk", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.parametrize("can_reserve", [True, False])
def test_a_disk_that_is_really_full_does_not_end_the_process(
    encoder, section, small_disk, monkeypatch, can_reserve
):
    """A page of a memory map that has no room there is SIGBUS."""
    if not can_reserve:
        monkeypatch.delattr(os, "posix_fallocate")
    in_memory = encoders.PrefixCache(encoder, **OPTIONS).activations(section)
    assert in_memory.nbytes > 200_000
    assert encoders.PrefixCache(encoder, folder=small_disk, **OPTIONS).activations(section) is None
    assert not [path for path in small_disk.iterdir() if path.suffix != ".lock"]


def test_the_common_folder_keeps_to_its_limit(encoder, section, tmp_path, monkeypatch, caplog):
    folder = tmp_path / "common"
    monkeypatch.setenv("SEAL_LITE_CACHE", str(folder))
    cache = encoders.PrefixCache(encoder, folder=folder, **OPTIONS)
    others = [replace(section, digest=digit * 64) for digit in "12"]
    assert cache.fits([section])
    size = cache.activations(section).nbytes
    monkeypatch.setenv("SEAL_LITE_CACHE_GB", str(2.5 * size / 1e9))
    for other in others:
        assert cache.activations(other) is not None
    held = [bool(list(folder.glob(f"{cache.key(each)}-*"))) for each in (section, *others)]
    assert held == [False, True, True]
    assert not cache.fits([replace(section, digest=digit * 64) for digit in "345"])
    monkeypatch.setenv("SEAL_LITE_CACHE_GB", str(0.5 * size / 1e9))
    assert cache.activations(section) is None
    assert "is limited to" in caplog.messages[-1]


def test_the_cache_fits_where_there_is_room(encoder, section, tmp_path, monkeypatch, caplog):
    from seal_lite.encoders import prefix_cache

    caplog.set_level("INFO")
    cache = encoders.PrefixCache(encoder, folder=tmp_path, **OPTIONS)
    assert cache.fits([section])
    monkeypatch.setattr(prefix_cache, "ROOM", 0.0)
    assert not cache.fits([section])
    assert "too large" in caplog.messages[-1]
    cache.activations(section)
    assert cache.fits([section])  # what is stored needs no more room


def test_the_key_follows_weights_pixels_and_views_but_not_the_adapter(
    encoder, section, perturb_tuned
):
    """A fault of released caches: files named without the weights that computed them."""

    def key(encoder=encoder, section=section, n_views=3, jitter=0.15):
        return encoders.PrefixCache(encoder, n_views=n_views, jitter=jitter).key(section)

    first = key()
    perturb_tuned(encoder)
    assert key() == first
    other_weight = encoders.build_encoder("tiny_cnn", tune_blocks=1)
    other_weight.base.blocks[2][0].conv_exp.weight.data[0, 0] += 1e-6
    other_mean = encoders.build_encoder("tiny_cnn", tune_blocks=1)
    other_mean.mean[0] += 1e-3
    others = [
        key(section=replace(section, digest="1" * 64)),
        key(n_views=4),
        key(jitter=0.1),
        key(encoder=other_weight),
        key(encoder=other_mean),
        key(encoder=encoders.build_encoder("tiny_cnn", tune_blocks=2)),
    ]
    assert len({first, *others}) == 1 + len(others)


def test_feature_layers_are_the_same_from_the_cache(section, tmp_path):
    encoder = encoders.build_encoder("tiny_cnn", tune_blocks=2)
    computed = encoders.embed_feature_layers(encoder, [section])
    cached = encoders.embed_feature_layers(encoder, [section], cache_dir=tmp_path)
    assert list(computed) == list(cached) == ["blocks.1", "blocks.2", "blocks.3"]
    for stage, (embeddings,) in computed.items():
        assert len(embeddings) == len(section.rows)
        np.testing.assert_allclose(cached[stage][0], embeddings, rtol=1e-4, atol=1e-6)
    patches = encoders.embed_patches(encoder, section.patches)
    np.testing.assert_allclose(computed["blocks.3"][0], patches, rtol=1e-4, atol=1e-6)


def test_pooling_of_a_frozen_network_has_a_cache_of_its_own(section):
    """Without a tuned block the cache holds what the network's call returns: vectors, or tokens."""
    options = {"device": "cpu", "tune_blocks": 0}
    caches = {}
    for pooling in ("own", "mean"):
        encoder = encoders.build_encoder(
            "test_vit.r160_in1k", pretrained=False, pooling=pooling, **options
        )
        caches[pooling] = encoders.PrefixCache(encoder, folder=None, **OPTIONS)
    keys = {pooling: cache.key(section) for pooling, cache in caches.items()}
    assert len(set(keys.values())) == 2
