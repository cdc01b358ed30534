"""Names of genes: their spelling is kept, their case is ignored, and controls are no genes."""

import numpy as np
import pandas as pd
import pytest
from helpers import make_adata

from seal_lite.data.genes import GenePanel, columns, select_genes
from seal_lite.data.readers.gene_names import are_genes, guess_species, use_symbols
from seal_lite.errors import InputError
from seal_lite.evaluation.retrieval import gene_set_profile

CONTROLS = [
    "NegControlProbe_00042",
    "NegControlCodeword_0501",
    "UnassignedCodeword_0001",
    "DeprecatedCodeword_0321",
    "Intergenic_Region_1234",
    "GenomicControl_0001",
    "BLANK_0007",
    "Blank-12",
    "antisense_ULK3",
    "Negative01",
    "NegPrb3",
    "NegativeProbe2",
    "SystemControl12",
    "FalseCode_1",
    "DEPRECATED_ENSG00000130723",
    "__no_feature",
    "ERCC-00002",
    "nan",
    "",
]
GENES = ["ERBB2", "NEGR1", "Negr1", "ERCC1", "BLK", "C1orf159", "HLA-DRA", "Nanog", "ANTXR1"]
NAMES = [f"G{i}" for i in range(12)]


def draw_counts(n_genes=12, *, seed=0):
    return np.random.default_rng(seed).poisson(6.0, (36, n_genes))


@pytest.mark.parametrize("change", [str, str.upper, str.lower])
def test_controls_and_missing_names_are_no_genes(change):
    names = pd.Index([change(name) for name in [*GENES, *CONTROLS]])
    assert list(are_genes(names)) == [True] * len(GENES) + [False] * len(CONTROLS)


def test_controls_enter_neither_a_section_nor_a_panel(tmp_path):
    names = [*NAMES[:-2], "NegPrb3", "Blank-12"]
    adata = make_adata(draw_counts(), genes=names)
    assert set(select_genes([adata], len(names))) == set(NAMES[:-2])
    assert list(use_symbols(adata, folder=tmp_path).var_names) == NAMES[:-2]


def test_an_id_without_a_symbol_keeps_its_id(tmp_path):
    adata = make_adata(draw_counts(4), genes=[f"ENSG0000000000{i}.1" for i in range(4)])
    adata.var["gene_name"] = pd.Categorical(["ERBB2", None, "nan", "CD3E"])
    symbols = list(use_symbols(adata, folder=tmp_path).var_names)
    assert symbols == ["ERBB2", "ENSG00000000001", "ENSG00000000002", "CD3E"]


@pytest.mark.parametrize(
    "names, expected, species",
    [
        (["GRCh38_ERBB2", "GRCh38_C1orf159"], ["ERBB2", "C1orf159"], "human"),
        (["mm10___Erbb2", "mm10___Krt19"], ["Erbb2", "Krt19"], "mouse"),
        (["GRCh38_ERBB2", "mm10___Erbb2"], ["GRCh38_ERBB2", "mm10___Erbb2"], "human and mouse"),
    ],
)
def test_a_genome_before_the_names_tells_the_species(tmp_path, names, expected, species):
    assert guess_species(pd.Index(names)) == species
    adata = make_adata(draw_counts(2), genes=names)
    assert list(use_symbols(adata, folder=tmp_path).var_names) == expected


def test_genes_are_matched_whatever_their_case():
    mouse = [f"Gene{i}" for i in range(len(NAMES))]
    own = make_adata(draw_counts(seed=1), genes=mouse)
    upper = make_adata(draw_counts(seed=2), genes=[name.upper() for name in mouse], name="T2")
    panel = GenePanel.fit([own, upper], n_genes=6, include=["GENE3", "gene0"])
    assert panel.genes[:2] == ("Gene3", "Gene0")  # as the first section spells them
    assert len(set(panel.genes)) == len(panel.genes)
    assert panel.transform(upper).std(0).min() > 0.5  # no gene counts as missing
    assert gene_set_profile(panel, ["GENE0"])[0].tolist().index(3.0) == 1
    values, present = columns(own.layers["counts"], mouse, ["GENE2", "NOPE"])
    assert present.tolist() == [True, False]
    assert (values[:, 0] == own.layers["counts"].toarray()[:, 2]).all()
    with pytest.raises(InputError, match="NOPE is in no training section"):
        GenePanel.fit([own], include=["NOPE"])
