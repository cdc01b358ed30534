"""Gene names: symbols and Ensembl ids, species, and the names of control probes."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from seal_lite.data.readers.common import is_unknown, read_labels

if TYPE_CHECKING:
    from anndata import AnnData

log = logging.getLogger(__name__)

ENSEMBL = r"ENS[A-Z]*G\d+"
SYMBOL_COLUMNS = ("gene_symbols", "gene_symbol", "gene_name", "feature_name", "symbol")  # of `var`
SPECIES = {"homo sapiens": "human", "mus musculus": "mouse"}
SPECIES_OF_PREFIX = {"": "human", "MUS": "mouse"}  # letters between ENS and G of an Ensembl id

# How names of features begin that are no genes: controls of Xenium and Visium's probes, CosMx,
# MERSCOPE and Stereo-seq, spiked-in RNA, and what aligners count apart (__no_feature).
CONTROLS = (
    r"(?i)^(?:__|blank|antisense|intergenic|unassigned|deprecated|ambiguous|no[-_ ]?feature"
    r"|neg(?:ative)?[-_ ]?(?:control|ctrl|probe|prb|codeword)|negative[-_ ]?\d"
    r"|(?:system|genomic)[-_ ]?control|false[-_ ]?code|ercc[-_]\d)"
)
# What Space Ranger writes before a name where the reference has two genomes: GRCh38_, mm10___.
GENOME_PREFIX = r"(?i)^((?:GRCh|hg|GRCm|mm)\d+)[-\w]*?_+"


def gene_key(name: str) -> str:
    """Return what genes of a species are matched by: their names, whatever their case."""
    return name.upper()


def gene_keys(names: pd.Index) -> pd.Index:
    """Return `gene_key` of each name."""
    return names.str.upper()


def spelled(genes: Iterable[str], names: Iterable[str]) -> dict[str, str]:
    """Return those of `genes` that `names` has, each with its spelling there."""
    name_of = {gene_key(name): name for name in names}
    return {gene: name_of[gene_key(gene)] for gene in genes if gene_key(gene) in name_of}


def gene_positions(genes: Iterable[str], names: Iterable[str]) -> dict[str, int]:
    """Return where those of `genes` stand that `names` has, whatever their case."""
    position_of = {gene_key(name): i for i, name in enumerate(names)}
    keys = {gene: gene_key(gene) for gene in genes}
    return {gene: position_of[key] for gene, key in keys.items() if key in position_of}


def are_genes(names: pd.Index) -> np.ndarray:
    """Return which names are of genes: neither of a control (`CONTROLS`) nor missing, (n,) bool."""
    is_control = names.str.contains(CONTROLS, regex=True)
    is_missing = [is_unknown(name) for name in names]
    return ~(np.asarray(is_control, bool) | np.asarray(is_missing, bool))


def guess_species(names: pd.Index) -> str:
    """Return "human", "mouse" or an Ensembl id's letters, by the convention of gene names.

    ENSG and ERBB2 are human, ENSMUSG and Erbb2 are a mouse's. Names of two genomes, GRCh38_ERBB2
    and mm10___Erbb2, are of "human and mouse".
    """
    genomes = names.str.extract(GENOME_PREFIX)[0].dropna()
    if len(genomes) > len(names) / 2:
        is_mouse = genomes.str.lower().str.startswith(("grcm", "mm"))
        species = {"mouse" if mouse else "human" for mouse in is_mouse}
        return " and ".join(sorted(species))
    prefixes = names.str.extract(r"^ENS([A-Z]*)G\d+")[0].dropna()
    if len(prefixes) > len(names) / 2:
        prefix = prefixes.mode()[0]
    elif (names == names.str.upper()).mean() > 0.5:
        prefix = ""
    else:
        prefix = "MUS"
    return SPECIES_OF_PREFIX.get(prefix, prefix)


def are_ensembl_ids(names: pd.Index) -> bool:
    """Return whether most names are Ensembl ids."""
    return bool(names.str.match(ENSEMBL).mean() > 0.5)


def use_symbols(adata: AnnData, *, folder: Path) -> AnnData:
    """Name genes by their symbols, as these are spelled, and keep those that are genes, once each.

    Ensembl ids are translated by a column of `var` (`SYMBOL_COLUMNS`) or by FOLDER/genes.tsv (id,
    symbol). Those that neither translates stay, without their version. A genome before each name
    is left out where it is the only one. Controls and missing names are dropped and reported in the
    log; of names that differ in their case only, the first is kept.

    Returns
    -------
    anndata.AnnData
        A copy; the names of `adata` itself change, too.
    """
    names = adata.var_names.str.replace(rf"^({ENSEMBL})\.\d+$", r"\1", regex=True).to_series()
    translations = [adata.var[c].astype(object) for c in SYMBOL_COLUMNS if c in adata.var]
    path = folder / "genes.tsv"
    if path.exists():
        table = read_labels(path, needs=["id", "symbol"])
        symbol_of = dict(zip(table.id, table.symbol, strict=True))
        translations.append(names.map(symbol_of))
    for symbols in translations:
        is_id = names.str.match(ENSEMBL).to_numpy()
        has_symbol = np.array([not is_unknown(symbol) for symbol in symbols])
        names = names.mask(is_id & has_symbol, symbols.astype(str).to_numpy())
    adata.var_names = _without_genome(pd.Index(names)).to_numpy()
    is_gene = are_genes(adata.var_names)
    if not is_gene.all():
        examples = ", ".join(adata.var_names[~is_gene][:3])
        log.info("%d features are no genes (%s): dropped", (~is_gene).sum(), examples)
    return adata[:, is_gene & ~gene_keys(adata.var_names).duplicated()].copy()


def _without_genome(names: pd.Index) -> pd.Index:
    """Return the names without their genome, where it is one and the same of all."""
    genomes = names.str.extract(GENOME_PREFIX)[0]
    if genomes.isna().any() or genomes.nunique() > 1:
        return names
    return names.str.replace(GENOME_PREFIX, "", regex=True)
