"""The features that an evaluation compares: tuned, frozen, and the controls."""

from __future__ import annotations

import numpy as np

from seal_lite.config import Config
from seal_lite.data.genes import depth
from seal_lite.encoders.embedding import embed_patches, embed_stages
from seal_lite.encoders.vision import build_encoder
from seal_lite.evaluation import targets as tg
from seal_lite.evaluation.probes import inner_scores


def colour_statistics(patches: np.ndarray) -> np.ndarray:
    """Mean and standard deviation of R, G, B of each patch (n, 6): what stain alone tells."""
    flat = patches.reshape(len(patches), -1, 3).astype(np.float32)
    return np.concatenate([flat.mean(1), flat.std(1)], axis=1)


def embed_all(sections, models: dict, config: Config, *, caches=None) -> tuple[dict, dict]:
    """All embeddings that an evaluation compares: {features: list of (n, d) by section}.

    `models` are finetuned `SEAL`s by name ("tuned", "shuffled"), or none. Beside them stand the
    frozen encoder at the same tap, a random-init one, colour statistics and log depth: "frozen",
    "random_init", "colour" (d = 6), "log_depth" (d = 1). Also returns {stage: the same of the
    frozen encoder}, for `best_stage`. `caches` is the folder of the prefix cache, if there is one.
    """
    found = {
        name: embed_stages(m.encoder, sections, caches)[m.encoder.tap] for name, m in models.items()
    }
    # LoRA starts as a no-op; the seed matters to random weights only.
    frozen = build_encoder(config.backbone, tune_blocks=config.tune_blocks, seed=config.seed)
    stages = embed_stages(frozen, sections, caches)
    found["frozen"] = stages[frozen.tap]
    random = build_encoder(config.backbone, pretrained=False, seed=config.seed)
    found["random_init"] = [embed_patches(random, s.patches) for s in sections]
    found["colour"] = [colour_statistics(s.patches) for s in sections]
    found["log_depth"] = [np.log(depth(s.adata)[s.rows])[:, None] for s in sections]
    return found, stages


def fold_features(train, test, genes, models: dict, config: Config, *, caches=None) -> dict:
    """`features` of a fold, training sections first, with the frozen encoder's `best_stage`.

    Returns {features: list of (n_i, d) by section}; that stage is "frozen_best".
    """
    found, stages = embed_all([*train, *test], models, config, caches=caches)
    return found | {"frozen_best": stages[best_stage(stages, train, genes)]}


def best_stage(stages: dict, train, genes) -> str:
    """The stage whose frozen embedding predicts Pearson residuals best inside `train`.

    `stages`: {stage: list of (n_i, d), training sections first}. Best is the highest of
    `inner_scores`. Shallow stages often tell more about tissue than the one where finetuning pays,
    so a gain must also be one over these.
    """
    y = [tg.section_targets(s.adata, genes)["pearson_residuals"][s.rows] for s in train]
    groups = np.concatenate([[s.name] * len(s.rows) for s in train])

    def inner(stage):
        x = np.concatenate(stages[stage][: len(train)]).astype(float)
        return inner_scores(x, np.concatenate(y), groups).max()

    return max(stages, key=inner)
