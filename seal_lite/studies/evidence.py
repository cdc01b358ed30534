"""What the report shows beside the scores: maps, maps of the embedding, retrieval, embeddings."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import scanpy as sc
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from seal_lite.data.genes import select_genes
from seal_lite.encoders.embedding import embed_patches
from seal_lite.encoders.vision import encoder_for
from seal_lite.evaluation.morphology import robustness_index
from seal_lite.evaluation.retrieval import gene_set_profile, retrieval_scores, search
from seal_lite.evaluation.targets import patch_targets, pearson
from seal_lite.io import atomic_file
from seal_lite.model.seal import SEAL
from seal_lite.paths import file_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from anndata import AnnData

    from seal_lite.config import Config
    from seal_lite.data.section import Section

log = logging.getLogger(__name__)
N_MAPS = 3  # genes whose maps are drawn
N_DOMAINS = 6  # expression domains
N_COMPONENTS = 20  # of expression, from which domains are clustered
TOP = 6  # patches that a retrieval example shows


@dataclass(frozen=True)
class HeldOutMaps:
    """Measured and predicted expression of one held-out section.

    Parameters
    ----------
    section
        A section with n patches that the model has not seen.
    genes
        Names of g genes, chosen by `genes_to_map`.
    measured, predicted
        Pearson residuals, and the model's own prediction from the image, (n, g) each.
    """

    section: Section
    genes: list[str]
    measured: np.ndarray
    predicted: np.ndarray

    @property
    def r(self) -> list[float]:
        """Pearson's r of each gene within the section."""
        return [float(r) for r in pearson(self.measured, self.predicted)]


@dataclass(frozen=True)
class RetrievalExample:
    """The patches of a held-out section that one gene retrieves.

    Parameters
    ----------
    section
        The section, with n patches.
    gene
        The gene that queries.
    rows, cosines
        The `TOP` nearest patches and their cosine similarities.
    retrieved, chance
        Mean Pearson residual of the gene over these patches, and over all patches.
    """

    section: Section
    gene: str
    rows: np.ndarray
    cosines: np.ndarray
    retrieved: float
    chance: float


@dataclass(frozen=True)
class HeldOut:
    """What the tuned encoders of the folds do on sections that they have not seen."""

    maps: HeldOutMaps
    examples: list[RetrievalExample]  # one for each gene that is drawn
    recall: list[dict[str, Any]]  # of each held-out section, as `retrieval_scores` returns it


def genes_to_map(sections: Sequence[Section], scored: Sequence[str]) -> list[str]:
    """Return the genes that are drawn: the most variable ones of those scored, by rule.

    No score is looked at.
    """
    order = select_genes([section.adata for section in sections], len(scored), min_spots=0.1)
    variable = [gene for gene in order if gene in set(scored)]
    return variable[:N_MAPS] or list(scored[:N_MAPS])


def held_out_evidence(
    runs: Sequence[tuple[Path, Sequence[Section]]],
    genes: Sequence[str],
    *,
    device: str | torch.device = "auto",
) -> HeldOut:
    """Return maps, retrieval examples and recall on held-out sections.

    Parameters
    ----------
    runs
        Of each fold the tuned run's folder and its held-out sections. The first section of the
        first fold is drawn.
    genes
        Names of the genes to draw. Each one queries.
    device
        Where the networks run (`resolve_device`).
    """
    drawn: tuple[HeldOutMaps, list[RetrievalExample]] | None = None
    recall = []
    for folder, sections in runs:
        model = SEAL.from_pretrained(folder, device=device)
        for section in sections:
            x = embed_patches(model.encoder, section.patches)
            recall.append({"section": section.name, **retrieval_scores(model, section, x)})
            if drawn is None:
                examples = [_example(model, section, x, gene) for gene in genes]
                drawn = (_maps(model, section, x, genes), examples)
    assert drawn is not None, "a study has a fold"
    return HeldOut(*drawn, recall)


def _maps(model: SEAL, section: Section, x: np.ndarray, genes: Sequence[str]) -> HeldOutMaps:
    """Predict the genes from the embeddings (n, dim) of a section."""
    columns = [model.panel.genes.index(gene) for gene in genes]
    predicted = model.predict_genes(x)[:, columns]
    measured = patch_targets(section, genes)["pearson_residuals"]
    return HeldOutMaps(section, list(genes), measured, predicted)


def _example(model: SEAL, section: Section, x: np.ndarray, gene: str) -> RetrievalExample:
    """Retrieve the patches of a section with one gene."""
    query = model.encode_genes(gene_set_profile(model.panel, [gene]))
    rows, cosines = search(query, model.project_images(x), top=TOP)
    residuals = patch_targets(section, [gene])["pearson_residuals"][:, 0]
    retrieved = float(residuals[rows[0]].mean())
    return RetrievalExample(section, gene, rows[0], cosines[0], retrieved, float(residuals.mean()))


def embed_sections(
    sections: Sequence[Section],
    run: Path,
    out: Path,
    config: Config,
    *,
    device: str | torch.device = "auto",
) -> AnnData:
    """Embed every section with the final encoder and the frozen one, and write both.

    Parameters
    ----------
    sections
        All sections of the study; the final encoder was trained on them.
    run
        The final run.
    out
        Folder of <section>.h5ad: the spots that have a patch, their counts, and
        ``obsm["X_seal"]`` and ``obsm["X_frozen"]``.
    config
        The settings that finetuning starts from: the frozen encoder is read as they say.
    device
        Where the networks run (`resolve_device`).

    Returns
    -------
    AnnData
        All spots without counts: both embeddings, their UMAP in ``obsm["X_umap_seal"]`` and
        ``obsm["X_umap_frozen"]``, and "section", "patient" and "domain" in ``obs``.
    """
    tuned = SEAL.from_pretrained(run, device=device)
    frozen = encoder_for(config, device=device)
    parts = []
    for section in sections:
        adata = section.adata[section.rows].copy()
        for table in (adata.obs, adata.var):  # else anndata converts text with a message
            text = table.select_dtypes(["object", "string"]).columns
            table[text] = table[text].astype("category")
        adata.obsm["X_seal"] = embed_patches(tuned.encoder, section.patches)
        adata.obsm["X_frozen"] = embed_patches(frozen, section.patches)
        with atomic_file(out / f"{file_name(section.name)}.h5ad") as part:
            adata.write_h5ad(part)
        small = anndata.AnnData(obs=adata.obs[[]].copy(), obsm=dict(adata.obsm))
        small.obs["section"] = section.name
        small.obs["patient"] = section.patient
        small.obsm["z"] = section.expression(tuned.panel)
        parts.append(small)
    joint = anndata.concat(parts, index_unique="-", keys=[section.name for section in sections])
    joint.obs["domain"] = expression_domains(joint.obsm["z"])
    for name in ("seal", "frozen"):
        joint.obsm[f"X_umap_{name}"] = _umap(joint.obsm[f"X_{name}"])
    return joint


def expression_domains(z: np.ndarray) -> list[str]:
    """Return the expression domain of each spot: k-means on the components of its profile.

    Parameters
    ----------
    z
        z-scored expression (n, genes).

    Returns
    -------
    list of str
        "1" to `N_DOMAINS`, largest first.
    """
    n_components = min(N_COMPONENTS, *z.shape)
    components = PCA(n_components, random_state=0).fit_transform(z)
    n_domains = min(N_DOMAINS, len(z))
    labels = KMeans(n_domains, n_init=10, random_state=0).fit_predict(components)
    order = np.argsort(-np.bincount(labels, minlength=n_domains), kind="stable")
    rank = np.argsort(order)
    return [str(rank[label] + 1) for label in labels]


def _umap(x: np.ndarray) -> np.ndarray:
    """Return the UMAP (n, 2) of embeddings (n, d), standardised."""
    adata = anndata.AnnData(StandardScaler().fit_transform(x))
    sc.pp.neighbors(adata, use_rep="X", n_neighbors=min(15, len(x) - 1), random_state=0)
    sc.tl.umap(adata, random_state=0)
    return adata.obsm["X_umap"]


def sources_of(joint: AnnData) -> list[str]:
    """Return what the spots' sources are: sections, and patients where those group sections."""
    n_sections = joint.obs["section"].nunique()
    n_patients = joint.obs["patient"].nunique()
    return ["section", "patient"] if 1 < n_patients < n_sections else ["section"]


def robustness(joint: AnnData) -> dict[str, dict[str, float | None]]:
    """Return the robustness index of both embeddings, by what the sources are.

    Parameters
    ----------
    joint
        From `embed_sections`. The biology of a spot is its expression domain.

    Returns
    -------
    dict
        {"section" or "patient": {"seal", "frozen": the index, or None where sources cannot be
        compared}}, for the `sources_of` the spots.
    """
    domain = joint.obs["domain"].to_numpy(str)
    indices: dict[str, dict[str, float | None]] = {}
    for source in sources_of(joint):
        labels = joint.obs[source].to_numpy(str)
        indices[source] = {}
        for name in ("seal", "frozen"):
            index = robustness_index(joint.obsm[f"X_{name}"], domain, labels)
            indices[source][name] = float(index) if np.isfinite(index) else None
    return indices
