"""HEST-bench: its folder read as published, its number reproduced, its faults named."""

import json
from dataclasses import replace

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy.stats import pearsonr
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.preprocessing import StandardScaler

from seal_lite import InputError
from seal_lite.data.patches import HEST_UM
from seal_lite.data.phantom import write_task
from seal_lite.data.section import load_sections
from seal_lite.evaluation.features import embed_all
from seal_lite.evaluation.hest_bench import GENES, hest_px, read_hest_task, run_hest_bench
from seal_lite.evaluation.ridge import Ridge, Sums, hest_bench_ridge

GENES = ["ERBB2", "KRT19", "COL1A1", "CD3E", "EPCAM"]  # in every section of the phantom
FOLDS = [(["PA1"], ["PB1"]), (["PB1"], ["PA1"])]


@pytest.fixture(scope="module")
def root(phantom_root, tmp_path_factory):
    """The phantom's two sections as a HEST-bench task."""
    sections = load_sections(phantom_root, patch_um=HEST_UM, patch_px=112)
    out = tmp_path_factory.mktemp("bench")
    write_task(out, "TINY", sections, FOLDS, GENES)
    return out


@pytest.fixture
def copy(root, tmp_path):
    """A copy to be damaged."""
    import shutil

    return shutil.copytree(root, tmp_path / "bench")


def embeddings(*, n: int, d: int, genes=20, seed=0):
    """Features as networks give them, with a falling spectrum, and log counts that follow them."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d)) * np.arange(1, d + 1) ** -0.7 @ rng.standard_normal((d, d))
    weights = rng.standard_normal((d, genes)) / d**0.5
    return x + 3, np.log1p(rng.poisson(np.exp(1 + (x - x.mean(0)) @ weights / x.std())))


def upstream(x, y, x_test, *, seed=1):
    """HEST-bench's trainer, in sklearn's and scipy's terms (mahmoodlab/HEST, bench/trainer.py)."""
    scaler, pca = StandardScaler(), PCA(256, random_state=seed)
    x = pca.fit_transform(scaler.fit_transform(x))
    alpha = 100 / (x.shape[1] * y.shape[1])
    ridge = SklearnRidge(alpha=alpha, solver="lsqr", fit_intercept=False, max_iter=1000)
    return ridge.fit(x, y).predict(pca.transform(scaler.transform(x_test)))


@pytest.mark.parametrize("d", [300, 768])  # above 320 sklearn's PCA is a randomised one
def test_the_published_probe_is_reproduced(d):
    n = 2000
    x, y = embeddings(n=n + 500, d=d)
    parts = Sums.of(x[:700], y[:700]) + Sums.of(x[700:n], y[700:n])
    ours = hest_bench_ridge(parts, x[n:])
    theirs = upstream(x[:n], y[:n], x[n:])
    for a, b, t in zip(ours.T, theirs.T, y[n:].T, strict=True):
        assert pearsonr(a, t)[0] == pytest.approx(pearsonr(b, t)[0], abs=1e-3)
    np.testing.assert_allclose(ours.mean(0) - theirs.mean(0), y[:n].mean(0), atol=0.05)


@pytest.mark.parametrize("d", [30, 300])
def test_all_penalties_come_from_one_decomposition(d):
    x, y = embeddings(n=200, d=d)
    x[:, 7] = 5.0  # a constant feature
    fitted, z = Ridge.fit(Sums.of(x, y)), StandardScaler().fit(x)
    for alpha in (1e-3, 1.0, 1e4):
        expected = SklearnRidge(alpha=alpha).fit(z.transform(x), y).predict(z.transform(x[:9]))
        np.testing.assert_allclose(fitted.predict(x[:9], alpha=alpha), expected, rtol=1e-5)


def test_a_task_is_read_as_it_is_written(root, phantom_root):
    task = read_hest_task(root, "TINY")
    assert (task.genes, task.folds, list(task.files)) == (GENES, FOLDS, ["PA1", "PB1"])
    (section,) = load_sections(phantom_root, ["PB1"], patch_um=HEST_UM, patch_px=112)
    found = task.load(px=112)["PB1"]
    np.testing.assert_array_equal(found.patches, section.patches)
    want = section.adata[section.rows].to_df()
    pd.testing.assert_frame_equal(found.adata.to_df()[want.columns], want, check_dtype=False)
    assert task.load(px=56)["PA1"].patches.shape[1:] == (56, 56, 3)


def test_barcodes_and_genes_are_matched_by_name(copy):
    path = copy / "TINY/adata/PB1.h5ad"
    adata = ad.read_h5ad(path)
    before = read_hest_task(copy, "TINY").load()["PB1"].adata.to_df()[GENES]
    rng = np.random.default_rng(0)
    adata[rng.permutation(adata.n_obs), rng.permutation(adata.n_vars)].copy().write_h5ad(path)
    after = read_hest_task(copy, "TINY").load()["PB1"].adata.to_df()[GENES]
    pd.testing.assert_frame_equal(before, after)


def test_a_run_and_its_controls_are_scored(root, trained):
    _, model, _ = trained
    config = replace(model.config, patch_um=HEST_UM)
    task, px = read_hest_task(root, "TINY"), hest_px(config, model.encoder.row)
    samples = task.load(px=px)
    found = embed_all(samples.values(), {"tuned": model}, config)
    result = run_hest_bench(task, samples, config, *found)
    assert [f["test"] for f in result["folds"]] == ["TINY/0", "TINY/1"]
    for fold in result["folds"]:
        rows = {(s["features"], s["probe"], s["target"]): s["per_gene"] for s in fold["scores"]}
        names = {"tuned", "frozen", "frozen_best", "random_init", "colour", "log_depth"}
        assert {f for f, _, t in rows if t == "hest_bench"} == names
        # One sample on each side: pooling all test patches is then scoring within the sample.
        for f in names:
            pooled, within = rows[f, "hest", "hest_bench"], rows[f, "hest", "log1p_raw"]
            assert pooled == pytest.approx(within, abs=5e-3)  # LSQR, stopped a step apart
        assert set(fold["r2"]) == names and fold["r2"]["tuned"] < 1
        assert rows["log_depth", "tuned_ridge", "log1p_raw"]["COL1A1"] != 0
    assert {d["minus"] for d in result["delta"]} == {"frozen", "frozen_best"}


def test_a_run_sees_the_benchmark_at_its_own_scale(trained):
    _, model, _ = trained
    row, config = model.encoder.row, replace(model.config, patch_um=224.0, patch_px=160)
    assert hest_px(config, row) == 80
    vit = replace(row, fixed=True)
    with pytest.raises(InputError, match="patch_um=112"):
        hest_px(config, vit)
    assert hest_px(replace(config, patch_um=112.0, patch_px=224), vit) == 224


def damage(copy, what):
    task = copy / "TINY"
    if what == "no splits":
        (task / "splits").rename(task / "split")
    elif what == "no genes":
        (task / GENES).write_text("[]")
    elif what == "unknown gene":
        (task / GENES).write_text(json.dumps({"genes": ["NOPE"]}))
    elif what == "half a fold":
        (task / "splits/test_1.csv").unlink()
    elif what == "no column":
        (task / "splits/test_1.csv").write_text("sample_id\nPA1\n")
    elif what == "in both halves":
        (task / "splits/test_1.csv").write_text((task / "splits/train_1.csv").read_text())
    elif what == "no counts":
        (task / "adata/PB1.h5ad").unlink()
    elif what == "truncated patches":
        path = task / "patches/PB1.h5"
        path.write_bytes(path.read_bytes()[:1000])
    elif what == "no barcode":
        with h5py.File(task / "patches/PB1.h5", "a") as file:
            del file["barcode"]
    elif what == "truncated counts":
        path = task / "adata/PB1.h5ad"
        path.write_bytes(path.read_bytes()[:1000])
    else:
        adata = ad.read_h5ad(task / "adata/PB1.h5ad")
        if what == "unknown barcode":
            adata = adata[1:]
        else:
            adata.X[0, 0] = -1
        adata.copy().write_h5ad(task / "adata/PB1.h5ad")


@pytest.mark.parametrize(
    "what, names",
    [
        ("no splits", "TINY: has no folder splits"),
        ("no genes", "var_50genes.json"),
        ("unknown gene", "PA1.h5ad: gene NOPE"),
        ("half a fold", "test_1.csv"),
        ("no column", "test_1.csv: column expr_path, patches_path"),
        ("in both halves", "test_1.csv: sample PB1 also trains"),
        ("no counts", "PB1.h5ad: is missing"),
        ("truncated patches", "PB1.h5"),
        ("no barcode", "PB1.h5: has no img, barcode and coords"),
        ("truncated counts", "PB1.h5ad"),
        ("unknown barcode", "PB1.h5ad: barcode"),
        ("negative count", "PB1.h5ad: needs whole numbers"),
    ],
)
def test_a_fault_is_one_sentence(copy, what, names):
    damage(copy, what)
    with pytest.raises(InputError, match=names) as caught:
        read_hest_task(copy, "TINY").load()
    assert "\n" not in str(caught.value)
