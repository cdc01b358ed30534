"""Pathway activity is scored from expression, whatever the depth."""

import numpy as np
import pandas as pd
import pytest

from seal_lite.data.pathways import activities, read_gmt
from seal_lite.errors import InputError

GENES = [f"G{i}" for i in range(60)]
UP = GENES[:10]


@pytest.fixture(scope="module")
def level():
    """How far the genes of `UP` are raised in each of 40 samples."""
    return np.random.default_rng(0).standard_normal(40)


@pytest.fixture(scope="module")
def log_depth():
    return np.log(np.random.default_rng(1).uniform(2e3, 2e4, 40))


@pytest.fixture(scope="module")
def adata(level, log_depth):
    import anndata as ad

    rng = np.random.default_rng(2)
    share = np.tile(rng.dirichlet(np.ones(60)), (40, 1))
    share[:, :10] *= np.exp(0.7 * level)[:, None]
    share /= share.sum(1, keepdims=True)
    counts = rng.poisson(np.exp(log_depth)[:, None] * share).astype(np.float32)
    return ad.AnnData(counts, var=pd.DataFrame(index=GENES), layers={"counts": counts})


def network(**genes_of):
    return pd.DataFrame(
        [(name, gene) for name, genes in genes_of.items() for gene in genes],
        columns=["source", "target"],
    )


def test_activity_follows_its_genes_and_not_depth(adata, level, log_depth):
    (scores,) = activities(adata, network(up=UP)).to_numpy().T
    assert np.corrcoef(scores, level)[0, 1] > 0.9
    assert abs(np.corrcoef(scores, log_depth)[0, 1]) < 0.3


def test_small_sets_are_left_out(adata):
    scores = activities(adata, network(up=UP, small=["G30", "G31"]))
    assert list(scores) == ["up"]


def test_sets_of_other_gene_names_are_an_error(adata):
    with pytest.raises(InputError, match="same gene names"):
        activities(adata, network(up=[f"ENSG{i}" for i in range(10)]))


def test_a_gmt_file_is_read_by_tabs_and_repeated_genes_count_once(tmp_path):
    path = tmp_path / "a.gmt"
    path.write_text("ONE\tabout\tA\tB\nTWO\tabout\tB\tC\tC\n")
    expected = network(ONE=["A", "B"], TWO=["B", "C"])
    pd.testing.assert_frame_equal(read_gmt(path).reset_index(drop=True), expected)


def test_a_missing_gmt_file_is_named(tmp_path):
    with pytest.raises(InputError, match="nothere.gmt"):
        read_gmt(tmp_path / "nothere.gmt")
