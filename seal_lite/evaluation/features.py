"""The features that an evaluation compares: tuned, frozen, and the controls."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from seal_lite.data.genes import depth
from seal_lite.encoders.embedding import (
    digest_of,
    embed_every_layer,
    embed_feature_layers,
    embed_patches,
    remember,
)
from seal_lite.encoders.vision import build_encoder, encoder_for
from seal_lite.evaluation.probes import inner_scores
from seal_lite.evaluation.targets import patch_targets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    import torch

    from seal_lite.config import Config
    from seal_lite.data.section import Section
    from seal_lite.model.seal import SEAL

# By name of the features (or of a feature layer), a matrix (n_i, d) for each section.
Features: TypeAlias = dict[str, list[np.ndarray]]
PATCHES_AT_ONCE = 256  # as float32 they take four times the room


def colour_statistics(patches: np.ndarray) -> np.ndarray:
    """Return mean and standard deviation of R, G, B of each patch: what stain alone predicts.

    Parameters
    ----------
    patches
        Patches (n, px, px, 3) uint8.

    Returns
    -------
    np.ndarray
        Three means, then three standard deviations, (n, 6) float32.
    """
    statistics = np.empty((len(patches), 6), np.float32)
    for start in range(0, len(patches), PATCHES_AT_ONCE):
        rows = slice(start, start + PATCHES_AT_ONCE)
        part = patches[rows]
        pixels = part.reshape(len(part), -1, 3).astype(np.float32)
        statistics[rows] = np.concatenate([pixels.mean(1), pixels.std(1)], axis=1)
    return statistics


def embed_all(
    sections: Iterable[Section],
    models: Mapping[str, SEAL],
    config: Config,
    *,
    cache_dir: str | Path | None = None,
    device: str | torch.device = "auto",
    progress: bool = True,
) -> tuple[Features, Features]:
    """Return all embeddings that an evaluation compares.

    Parameters
    ----------
    sections
        The sections to embed.
    models
        Finetuned models by name ("tuned", "shuffled"); may be empty.
    config
        Its backbone is the frozen encoder, its seed draws the random weights.
    cache_dir
        Folder of the prefix cache, and of the embeddings that no fold changes, as `cache_folder`
        takes it; None runs without.
    device
        Where the frozen encoder and the one with random weights run (`resolve_device`). The models
        run where they are.
    progress
        Show progress bars while the prefix cache fills.

    Returns
    -------
    features : dict
        By name, (n_i, d) of each section: those of ``models``; "frozen", the encoder as it is
        loaded; "random_init", the network with random weights, read as the tuned one is; "colour"
        (d = 6); "log_depth" (d = 1).
    layers : dict
        The second of what `frozen_layers` returns.
    """
    sections = list(sections)
    features: Features = {}
    for name, model in models.items():
        tuned_layers = embed_feature_layers(
            model.encoder, sections, cache_dir=cache_dir, progress=progress
        )
        features[name] = tuned_layers[model.encoder.feature_layer]
    own, layers = frozen_layers(
        sections, config, cache_dir=cache_dir, device=device, progress=progress
    )
    features["frozen"] = layers[own]
    random = encoder_for(config, pretrained=False, device=device)
    random_digest = "" if cache_dir is None else f"embedding {digest_of(random)}"
    features["random_init"] = _remembered(
        sections, lambda s: embed_patches(random, s.patches), cache_dir, random_digest
    )
    features["colour"] = _remembered(
        sections, lambda s: colour_statistics(s.patches), cache_dir, "colour"
    )
    features["log_depth"] = [np.log(depth(s.adata)[s.rows])[:, None] for s in sections]
    return features, layers


def _remembered(
    sections: Iterable[Section],
    compute: Callable[[Section], np.ndarray],
    cache_dir: str | Path | None,
    name: str,
) -> list[np.ndarray]:
    """Return `compute` of each section, (n_i, d); `embedding.remember` keeps it in the cache."""
    matrices = []
    for section in sections:

        def as_arrays(section: Section = section) -> dict[str, np.ndarray]:
            return {"x": compute(section)}

        arrays = remember(section, as_arrays, folder=cache_dir, name=name)
        matrices.append(arrays["x"])
    return matrices


def frozen_layers(
    sections: Sequence[Section],
    config: Config,
    *,
    cache_dir: str | Path | None = None,
    device: str | torch.device = "auto",
    progress: bool = True,
) -> tuple[str, Features]:
    """Return the frozen embeddings among which the strongest baseline is.

    Parameters
    ----------
    sections, config, cache_dir, device, progress
        As in `embed_all`.

    Returns
    -------
    own : str
        The layer of the encoder's own embedding.
    layers : dict
        By layer, (n_i, d) of each section: every block up to that one, as the encoder's row reads
        it. Where the config reads another depth or pooling, also the last frozen block, each block
        to be tuned and the output, as the config reads them: "... as tuned".
    """
    frozen = build_encoder(config.backbone, device=device, precision=config.precision)
    layers = embed_every_layer(frozen, sections, cache_dir=cache_dir)
    if config.depth == 1 and config.pooling in ("own", frozen.row.embedding):
        return frozen.feature_layer, layers
    # LoRA has no effect yet, so all seeds share these embeddings and their cache.
    start = encoder_for(replace(config, seed=0), device=device)
    start_layers = embed_feature_layers(start, sections, cache_dir=cache_dir, progress=progress)
    as_tuned = {f"{layer} as tuned": embeddings for layer, embeddings in start_layers.items()}
    return frozen.feature_layer, layers | as_tuned


def fold_features(  # noqa: PLR0913
    train: Sequence[Section],
    test: Sequence[Section],
    genes: Sequence[str],
    *,
    models: Mapping[str, SEAL],
    config: Config,
    cache_dir: str | Path | None = None,
    device: str | torch.device = "auto",
    progress: bool = True,
) -> Features:
    """Return the features of a fold: those of `embed_all`, and "frozen_best".

    Parameters
    ----------
    train, test
        The sections that train and those held out.
    genes
        The genes to score; "frozen_best" is the `best_feature_layer` for them.
    models, config, cache_dir, device, progress
        As in `embed_all`.

    Returns
    -------
    dict
        By name, (n_i, d) of each section, training sections first.
    """
    features, layers = embed_all(
        [*train, *test], models, config, cache_dir=cache_dir, device=device, progress=progress
    )
    features["frozen_best"] = layers[best_feature_layer(layers, train, genes)]
    return features


def best_feature_layer(layers: Features, train: Sequence[Section], genes: Sequence[str]) -> str:
    """Return the layer whose frozen embedding predicts Pearson residuals best inside training.

    Shallow layers often tell more about tissue than the one that finetuning reads. So a gain over
    the frozen encoder must also be a gain over its best layer.

    Parameters
    ----------
    layers
        By feature layer, (n_i, d) of each section, training sections first.
    train
        The training sections.
    genes
        The genes to predict.

    Returns
    -------
    str
        The layer with the highest of `probes.inner_scores`.
    """
    residuals = [patch_targets(s, genes)["pearson_residuals"] for s in train]
    y = np.concatenate(residuals)
    groups = section_names(train)
    scores = {}
    for layer, embeddings in layers.items():
        x = np.concatenate(embeddings[: len(train)]).astype(float)
        scores[layer] = inner_scores(x, y, groups).max()
    return max(scores, key=lambda layer: scores[layer])


def section_names(sections: Sequence[Section]) -> np.ndarray:
    """Return the name of each patch's section, (n,), one section after another."""
    return np.concatenate([[s.name] * len(s.rows) for s in sections])
