"""Embeddings of patches, at the feature layer or behind every block from the prefix on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256 as new_sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.numpy import load_file, save

from seal_lite.cache import cache_folder, make_room, mark_used
from seal_lite.encoders.devices import pinned
from seal_lite.encoders.prefix_cache import CHECKSUM_DIGITS, PrefixCache, as_tensor, intact_file
from seal_lite.encoders.views import as_images, make_views
from seal_lite.encoders.vision import VisionEncoder, hash_tensors
from seal_lite.io import atomic_file, read_ahead
from seal_lite.locks import lock

if TYPE_CHECKING:
    from seal_lite.data.section import Section

Embeddings = dict[str, np.ndarray]  # of one section, (n, width) by stage

log = logging.getLogger(__name__)
CACHED_BATCH = 64  # activations from the prefix cache that go through the tail at once


def image_batches(patches: np.ndarray, *, batch_size: int = 16) -> Iterator[torch.Tensor]:
    """Yield patches as batches of images.

    Parameters
    ----------
    patches : array (n, h, w, 3) uint8
    batch_size
        Number of images in a batch.

    Yields
    ------
    Tensor (b, 3, h, w)
        In [0, 1], in the order of the patches.
    """
    for start in range(0, len(patches), batch_size):
        batch = patches[start : start + batch_size]
        unchanged = [0] * len(batch)
        yield make_views(batch, [""] * len(batch), unchanged, jitter=0.0)


@torch.inference_mode()
def embed_patches(
    encoder: VisionEncoder, patches: np.ndarray, *, batch_size: int | None = None
) -> np.ndarray:
    """Return the embeddings of patches, in their order.

    Parameters
    ----------
    encoder
        It is set to eval mode.
    patches : array (n, px, px, 3) uint8
    batch_size
        Number of patches that are embedded at once; None leaves it to the encoder.

    Returns
    -------
    array (n, dim) float32
    """
    encoder.eval()
    batches = _images_on_device(encoder, patches, batch_size)
    with encoder.merged():
        embeddings = [encoder(images) for images in batches]  # each (b, dim)
    return torch.cat(embeddings).cpu().numpy()


@torch.inference_mode()
def embed_feature_layers(
    encoder: VisionEncoder,
    sections: Sequence[Section],
    *,
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> dict[str, list[np.ndarray]]:
    """Return the embeddings of patches at every stage from the end of the prefix on.

    Parameters
    ----------
    encoder
        It is set to eval mode.
    sections
        Their patches are embedded as they are, without augmentation.
    cache_dir
        Folder of the prefix cache, as `cache_folder` takes it; None computes the prefix.
    progress
        Show a progress bar while the cache fills.

    Returns
    -------
    dict
        {stage: arrays (n, width) float32, one for each section}. The feature layer comes last.
    """
    encoder.eval()
    cache = None
    if cache_dir is not None:
        cache = PrefixCache(encoder, n_views=1, jitter=0.0, folder=cache_dir, progress=progress)

    def layers_of(section: Section) -> Iterator[dict[str, torch.Tensor]]:
        for hidden in _run_prefix_on(section, encoder, cache):
            yield encoder.feature_layers(hidden)

    with encoder.merged():
        return _embed_layers(sections, layers_of)


@torch.inference_mode()
def embed_every_layer(
    encoder: VisionEncoder, sections: Sequence[Section], *, cache_dir: str | Path | None = None
) -> dict[str, list[np.ndarray]]:
    """Return the embeddings of patches at every block up to the feature layer.

    Parameters
    ----------
    encoder
        It is set to eval mode.
    sections
        Their patches are embedded as they are, without augmentation.
    cache_dir
        Folder that keeps the embeddings for other folds and seeds (`remember`), as `cache_folder`
        takes it; None keeps none.

    Returns
    -------
    dict
        {stage: arrays (n, width) float32, one for each section}. The feature layer comes last.
    """
    encoder.eval()

    def layers_of(section: Section) -> Iterator[dict[str, torch.Tensor]]:
        for images in _images_on_device(encoder, section.patches):
            yield encoder.every_layer(images)

    if cache_dir is None:
        return _embed_layers(sections, layers_of)
    encoder_digest = digest_of(encoder)
    embeddings: dict[str, list[np.ndarray]] = {}
    for section in sections:

        def embed(section: Section = section) -> Embeddings:
            return {stage: x for stage, (x,) in _embed_layers([section], layers_of).items()}

        for stage, x in remember(section, embed, folder=cache_dir, name=encoder_digest).items():
            embeddings.setdefault(stage, []).append(x)
    return embeddings


def digest_of(encoder: VisionEncoder) -> str:
    """Return a hash of all that decides an encoder's embeddings, 64 hex digits.

    These are its weights, its normalisation, how the embedding is read, and the type in which it
    computes where it is. What else its row states has no effect.
    """
    row = encoder.row
    tensors = {**encoder.state_dict(), "mean": encoder.mean, "std": encoder.std}
    stages = [*encoder.prefix_stages, *encoder.tail_stages]
    reading = (row.call, row.call_args, row.embedding, row.prefix_tokens)
    salt = repr((stages, reading, encoder.working_dtype)) + row.content
    return hash_tensors(tensors, salt=salt)


def remember(
    section: Section,
    compute: Callable[[], Embeddings],
    *,
    folder: str | Path | None,
    name: str,
) -> Embeddings:
    """Return what a function computes of a section, from a file where it has been before.

    Parameters
    ----------
    section
        The section; the file is found by its content (`Section.digest`).
    compute
        Returns arrays (n, width) by name.
    folder
        Where the file is, as `cache_folder` takes it; None computes.
    name
        Names all else on which the arrays depend.
    """
    if folder is None:
        return compute()
    folder = cache_folder(folder)
    key = new_sha256(f"{name} {section.digest}".encode()).hexdigest()[:32]
    with lock(folder / key):  # one of several processes computes, the others wait
        stored = intact_file(folder, key)
        if stored is not None:
            mark_used(stored)
            return load_file(stored)
        arrays = compute()
        content = save(arrays)
        checksum = new_sha256(content).hexdigest()[:CHECKSUM_DIGITS]
        try:
            make_room(folder, len(content))
            with atomic_file(folder / f"{key}-{checksum}.safetensors") as part:
                part.write_bytes(content)
        except OSError as error:  # a full disk costs time, not the result
            log.warning("%s: %s; embeddings are not kept", folder, error.strerror)
    return arrays


def _embed_layers(
    sections: Sequence[Section], layers_of: Callable[[Section], Iterator[dict[str, torch.Tensor]]]
) -> dict[str, list[np.ndarray]]:
    """Return {stage: arrays (n, width) float32}, from the batches that a section's layers are."""
    embeddings: dict[str, list[np.ndarray]] = {}
    for section in sections:
        batches: dict[str, list[np.ndarray]] = {}
        for layers in layers_of(section):
            for stage, x in layers.items():  # off the device: all layers of a section may not fit
                batches.setdefault(stage, []).append(x.cpu().numpy())
        for stage, parts in batches.items():
            embeddings.setdefault(stage, []).append(np.concatenate(parts))  # (n, width)
    return embeddings


def _run_prefix_on(
    section: Section, encoder: VisionEncoder, cache: PrefixCache | None
) -> Iterator[torch.Tensor]:
    """Yield the prefix activations (b, ...) of a section's patches in batches."""
    device = encoder.device
    activations = None if cache is None else cache.activations(section)
    if activations is None:
        for images in _images_on_device(encoder, section.patches):
            yield encoder.prefix(images)
        return
    (stored,) = activations  # (n, ...), of view 0
    for start in range(0, len(stored), CACHED_BATCH):
        batch = stored[start : start + CACHED_BATCH].copy()
        yield as_tensor(batch).to(device)


def _images_on_device(
    encoder: VisionEncoder, patches: np.ndarray, batch_size: int | None = None
) -> Iterator[torch.Tensor]:
    """Yield patches as images (b, 3, px, px) on the encoder's device; a thread reads ahead.

    Bytes go to the device: they are a quarter of the floats.
    """
    size = batch_size or encoder.batch_size(patches.shape[1])

    def read(start: int) -> torch.Tensor:
        pixels = torch.from_numpy(np.ascontiguousarray(patches[start : start + size]))
        return pinned(pixels, encoder.device)

    for pixels in read_ahead(read, range(0, len(patches), size)):
        yield as_images(pixels.to(encoder.device, non_blocking=True))
