"""Gene names: symbols and Ensembl ids, species, and the names of control probes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from seal_lite.data.readers.common import read_table

if TYPE_CHECKING:
    from anndata import AnnData

ENSEMBL = r"ENS[A-Z]*G\d+"
SYMBOL_COLUMNS = ("gene_symbols", "gene_symbol", "gene_name", "feature_name", "symbol")  # of `var`
SPECIES = {"homo sapiens": "human", "mus musculus": "mouse"}
SPECIES_OF_PREFIX = {"": "human", "MUS": "mouse"}  # letters between ENS and G of an Ensembl id

# Names of control probes. A gene panel leaves out names, in upper case, with these beginnings.
NOT_GENES = ("BLANK", "NEGCONTROL", "ANTISENSE", "UNASSIGNED", "DEPRECATED", "AMBIGUOUS")
# Xenium's reader leaves out transcripts whose feature matches this expression anywhere.
CONTROLS = "NegControl|antisense|BLANK|Unassigned|Deprecated|Intergenic"


def guess_species(names: pd.Index) -> str:
    """Return "human", "mouse" or an Ensembl id's letters, by the convention of gene names.

    ENSG and ERBB2 are human, ENSMUSG and Erbb2 are a mouse's.
    """
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
    """Name genes by their symbol in upper case, and keep the first of duplicates.

    Ensembl ids are translated by a column of `var` (`SYMBOL_COLUMNS`) or by FOLDER/genes.tsv (id,
    symbol). Those that neither translates stay, without their version.

    Returns
    -------
    anndata.AnnData
        A copy; the names of `adata` itself change, too.
    """
    names = adata.var_names.str.replace(rf"^({ENSEMBL})\.\d+$", r"\1", regex=True).to_series()
    translations = [adata.var[c].astype(str) for c in SYMBOL_COLUMNS if c in adata.var]
    path = folder / "genes.tsv"
    if path.exists():
        table = read_table(path, needs=["id", "symbol"], dtype=str)
        symbol_of = dict(zip(table.id, table.symbol, strict=True))
        translations.append(names.map(symbol_of).fillna(names))
    for symbols in translations:
        is_id = names.str.match(ENSEMBL).to_numpy()
        names = names.mask(is_id, symbols.to_numpy())
    adata.var_names = names.str.upper().to_numpy()
    return adata[:, ~adata.var_names.duplicated()].copy()
