"""Variable genes are those that scanpy would choose, found in a bounded memory."""

import numpy as np
import pytest
import scipy.sparse as sp
from helpers import make_adata

from seal_lite.data import variable_genes
from seal_lite.data.variable_genes import select_genes

N_GENES = 300


def draw_section(seed, *, n, missing=0):
    """Counts of `n` spots, of genes in an order of its own; the last `missing` genes have none."""
    rng = np.random.default_rng(seed)
    rates = np.geomspace(0.02, 40, N_GENES) * rng.gamma(4, 0.25, N_GENES)
    counts = rng.poisson(rates * rng.gamma(2, 0.5, (n, 1)) * rng.gamma(1.5, 1 / 1.5, (n, N_GENES)))
    counts[:, N_GENES - missing :] = 0
    order = rng.permutation(N_GENES)
    return make_adata(counts[:, order], genes=[f"G{i}" for i in order], name=f"S{seed}")


def chosen_by_scanpy(adatas, n, flavor):
    """The same genes by scanpy, which holds all sections in memory at once."""
    import anndata as ad
    import scanpy as sc

    joined = ad.concat(adatas, join="inner", label="batch", index_unique="/")
    joined.X = joined.layers["counts"].astype(np.float64)
    joined = joined[:, np.asarray(joined.X.sum(0)).ravel() >= 3].copy()
    options = {"n_top_genes": min(n, joined.n_vars), "batch_key": "batch"}
    if flavor == "seurat":
        sc.pp.normalize_total(joined, target_sum=1e4)
        sc.pp.log1p(joined)
        sc.pp.highly_variable_genes(joined, flavor="seurat", **options)
        score = "dispersions_norm"
    else:
        sc.experimental.pp.highly_variable_genes(joined, flavor=flavor, **options)
        score = "residual_variances"
    keys = ["highly_variable_nbatches", score]
    return list(joined.var.sort_values(keys, ascending=False, kind="stable").index[:n])


@pytest.mark.parametrize("flavor", ["pearson_residuals", "seurat"])
@pytest.mark.parametrize("n", [10, 60, 250])
def test_the_genes_and_their_order_are_those_of_scanpy(flavor, n):
    adatas = [draw_section(0, n=80), draw_section(1, n=130, missing=9), draw_section(2, n=60)]
    assert select_genes(adatas, n, flavor=flavor) == chosen_by_scanpy(adatas, n, flavor)


@pytest.mark.parametrize("flavor", ["pearson_residuals", "seurat"])
def test_few_spots_are_dense_at_a_time(flavor, monkeypatch):
    """The blocks hold no more values than they may, and their size changes nothing."""
    adatas = [draw_section(0, n=80)]
    at_once = select_genes(adatas, 40, flavor=flavor)
    shapes = []
    to_dense = sp.csr_matrix.toarray

    def record(matrix):
        shapes.append(matrix.shape)
        return to_dense(matrix)

    monkeypatch.setattr(variable_genes, "VALUES_AT_ONCE", 7 * N_GENES)
    monkeypatch.setattr(sp.csr_matrix, "toarray", record)
    assert select_genes(adatas, 40, flavor=flavor) == at_once
    assert max(rows for rows, _ in shapes) == 7
