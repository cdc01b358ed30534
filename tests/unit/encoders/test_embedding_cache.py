"""What a cache folder remembers of a section: until section or encoder change, and no longer."""

import errno
from dataclasses import replace

import numpy as np
import pytest
from helpers import make_adata

from seal_lite.cache import cached_files, clear_cache
from seal_lite.data.section import Section
from seal_lite.encoders import embedding
from seal_lite.encoders.embedding import digest_of, remember
from seal_lite.encoders.vision import build_encoder


def make_section(value):
    adata = make_adata(np.full((4, 2), 9))
    return Section(adata, np.arange(4), np.full((4, 8, 8, 3), value, np.uint8))


@pytest.fixture
def ask(tmp_path):
    """Ask for the mean of a section's patches; returns (answer, whether it was computed)."""

    def answer(section, name="mean"):
        computed = []

        def compute():
            computed.append(True)
            return {"x": section.patches.mean((1, 2))}

        arrays = remember(section, compute, folder=tmp_path, name=name)
        return arrays["x"], bool(computed)

    return answer


def test_what_was_computed_is_read_again(ask):
    first, was_computed = ask(make_section(7))
    assert was_computed
    again, was_computed = ask(make_section(7))
    assert not was_computed
    np.testing.assert_array_equal(again, first)


def test_other_pixels_and_another_encoder_are_computed(ask):
    ask(make_section(7))
    other, was_computed = ask(make_section(8))
    assert was_computed
    assert (other == 8).all()
    assert ask(make_section(7), name="another")[1]


def test_the_digest_of_an_encoder_is_of_what_decides_its_embeddings():
    encoder = build_encoder("test_vit")
    digest = digest_of(encoder)
    encoder.row = replace(encoder.row, licence="another", card="elsewhere", um_per_px=0.25)
    assert digest_of(encoder) == digest
    encoder.row = encoder.row.pooled("mean")
    assert digest_of(encoder) != digest
    assert digest_of(build_encoder("test_vit", seed=1)) != digest


@pytest.mark.parametrize("n_bytes", [0, 40, -30])
def test_a_damaged_file_is_computed_again(ask, tmp_path, n_bytes):
    first, _ = ask(make_section(7))
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:n_bytes])
    repaired, was_computed = ask(make_section(7))
    assert was_computed
    np.testing.assert_array_equal(repaired, first)
    assert not ask(make_section(7))[1]


def test_a_flipped_bit_is_computed_again(ask, tmp_path):
    first, _ = ask(make_section(7))
    (path,) = tmp_path.glob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    repaired, was_computed = ask(make_section(7))
    assert was_computed
    np.testing.assert_array_equal(repaired, first)


def test_a_full_disk_costs_time_and_not_the_result(ask, tmp_path, monkeypatch, caplog):
    def fail(folder, size):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(embedding, "make_room", fail)
    first, _ = ask(make_section(7))
    again, was_computed = ask(make_section(7))
    assert was_computed
    np.testing.assert_array_equal(again, first)
    assert "No space left on device; embeddings are not kept" in caplog.text


def test_a_cleared_cache_has_no_embeddings_left(ask, tmp_path):
    ask(make_section(7))
    (path,) = tmp_path.glob("*.safetensors")
    part = path.with_name(f".{path.name}.part")  # a process was killed
    part.write_bytes(b"half")
    assert set(cached_files(tmp_path)) == {path, part}
    assert clear_cache(tmp_path) > 4
    assert not list(tmp_path.glob("*.safetensors*"))
