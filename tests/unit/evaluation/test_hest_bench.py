"""HEST-bench: its folder read as published, its score reproduced, its faults named."""

import json
import shutil
from dataclasses import replace

import h5py
import numpy as np
import pytest
from tiny_sections import make_patterned_section

from seal_lite.data.patches import HEST_UM
from seal_lite.data.readers.hest import GENES_FILE
from seal_lite.errors import InputError
from seal_lite.evaluation.hest_bench import (
    HestTask,
    copied_test_samples,
    pooled_scores,
    read_hest_task,
    run_hest_bench,
    seen_test_samples,
)
from seal_lite.evaluation.targets import patch_targets

GENES = ["ERBB2", "KRT19", "COL1A1", "CD3E", "EPCAM"]  # in every section of the phantom
FOLDS = [(["PA1"], ["PB1"]), (["PB1"], ["PA1"])]


@pytest.fixture(scope="module")
def bench_sections(phantom_root):
    from seal_lite.data.section import load_sections

    return load_sections(phantom_root, patch_um=HEST_UM, patch_px=112)


@pytest.fixture(scope="module")
def root(bench_sections, tmp_path_factory):
    """The phantom's two sections as a HEST-bench task."""
    from seal_lite.data.phantom import write_task

    out = tmp_path_factory.mktemp("bench")
    write_task(out, "TINY", bench_sections, folds=FOLDS, genes=GENES)
    return out


@pytest.fixture
def damaged_root(root, tmp_path):
    """A copy to be damaged."""
    return shutil.copytree(root, tmp_path / "bench")


# Reading


def test_a_task_is_read_as_it_is_written(root, bench_sections):
    task = read_hest_task(root / "TINY")
    assert (task.genes, task.folds, list(task.files)) == (GENES, FOLDS, ["PA1", "PB1"])
    samples = task.load(px=112)
    for section in bench_sections:
        sample = samples[section.name]
        np.testing.assert_array_equal(sample.patches, section.patches)
        counts = section.adata[section.rows].to_df()
        assert list(sample.adata.obs_names) == list(counts.index)
        np.testing.assert_array_equal(sample.adata.to_df()[counts.columns], counts)
    assert task.load(px=56)["PA1"].patches.shape[1:] == (56, 56, 3)


def test_barcodes_and_genes_are_matched_by_name(damaged_root):
    import anndata as ad

    path = damaged_root / "TINY/adata/PB1.h5ad"
    before = read_hest_task(damaged_root / "TINY").load()["PB1"].adata.to_df()[GENES]
    adata = ad.read_h5ad(path)
    rng = np.random.default_rng(0)
    shuffled = adata[rng.permutation(adata.n_obs), rng.permutation(adata.n_vars)]
    shuffled.copy().write_h5ad(path)
    after = read_hest_task(damaged_root / "TINY").load()["PB1"].adata.to_df()[GENES]
    assert before.equals(after)


@pytest.mark.parametrize("kind", ["patches/{}.h5", "adata/{}.h5ad"])
def test_a_copy_under_another_name_is_refused_or_named(damaged_root, kind):
    folder = damaged_root / "TINY"
    assert copied_test_samples(read_hest_task(damaged_root / "TINY")) == []
    shutil.copy(folder / kind.format("PA1"), folder / kind.format("PB1"))
    task = read_hest_task(damaged_root / "TINY")
    with pytest.raises(InputError, match="test sample PA1 has the same file as training .* PB1"):
        copied_test_samples(task)
    assert copied_test_samples(task, allow=True) == ["PA1", "PB1"]


# Scoring


def test_the_pooled_score_is_that_of_a_probe_fitted_on_training_samples_alone():
    """Against scikit-learn, on test samples whose features lie far from those of training."""
    from sklearn.linear_model import Ridge as SklearnRidge
    from sklearn.metrics import r2_score
    from sklearn.preprocessing import StandardScaler

    genes = ["G4", "G0", "G2"]
    sections = [make_patterned_section(name, seed=i) for i, name in enumerate(("A1", "B1", "C1"))]
    rng = np.random.default_rng(0)
    counts = [patch_targets(section, genes)["log1p_raw"] for section in sections]
    weights = rng.standard_normal((3, 10))
    x = [y @ weights + 0.1 * rng.standard_normal((36, 10)) for y in counts]
    x[2] = 3 * x[2] + 5
    r, r2 = pooled_scores(sections[:2], sections[2:], genes, train_x=x[:2], test_x=x[2:])
    train_x, train_y = np.concatenate(x[:2]), np.concatenate(counts[:2])
    scaler = StandardScaler().fit(train_x)
    ridge = SklearnRidge(alpha=100 / 30, fit_intercept=True).fit(scaler.transform(train_x), train_y)
    predicted = ridge.predict(scaler.transform(x[2]))
    expected = [np.corrcoef(predicted[:, g], counts[2][:, g])[0, 1] for g in range(3)]
    np.testing.assert_allclose(r, expected, atol=0.01)
    assert r2 == pytest.approx(r2_score(counts[2], predicted), rel=0.05)
    assert r.min() > 0.8


def test_few_patches_are_scored_by_the_rows_themselves():
    """With more features than patches the probe needs the rows; each gene still finds its own."""
    genes = ["G4", "G0", "G2"]
    sections = [make_patterned_section(name, seed=i) for i, name in enumerate(("A1", "B1"))]
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((3, 50))
    x = [patch_targets(section, genes)["log1p_raw"] @ weights for section in sections]
    r, _ = pooled_scores(sections[:1], sections[1:], genes, train_x=x[:1], test_x=x[1:])
    assert r.min() > 0.99


def test_a_run_and_its_controls_are_scored(root, trained):
    from seal_lite.evaluation.features import embed_all

    _, model, _ = trained
    config = replace(model.config, patch_um=HEST_UM)
    task = read_hest_task(root / "TINY")
    samples = task.load(px=model.encoder.row.px_at_scale(config, HEST_UM))
    features, layers = embed_all(samples.values(), {"tuned": model}, config)
    result = run_hest_bench(task, samples, config, features=features, layers=layers)
    names = {"tuned", "frozen", "frozen_best", "random_init", "colour", "log_depth"}
    assert [fold["test"] for fold in result["folds"]] == ["TINY/0", "TINY/1"]
    for fold in result["folds"]:
        rows = {(s["features"], s["probe"], s["target"]): s["per_gene"] for s in fold["scores"]}
        assert {name for name, _, target in rows if target == "hest_bench"} == names
        # One sample on each side: pooling all test patches is then scoring within the sample.
        for name in names:
            within = rows[name, "hest", "log1p_raw"]
            pooled = rows[name, "hest", "hest_bench"]
            # LSQR stops early where features are nearly collinear: a gene may differ more.
            assert pooled == pytest.approx(within, abs=0.02)
            assert np.mean([*pooled.values()]) == pytest.approx(
                np.mean([*within.values()]), abs=5e-3
            )
        assert set(fold["r2"]) == names
    for fold, (train_names, test_names) in zip(result["folds"], FOLDS, strict=True):
        train, test = ([samples[name] for name in half] for half in (train_names, test_names))
        for name, x in features.items():
            of_sample = dict(zip(samples, x, strict=True))
            train_x, test_x = ([of_sample[n] for n in half] for half in (train_names, test_names))
            _, r2 = pooled_scores(train, test, GENES, train_x=train_x, test_x=test_x)
            assert fold["r2"][name] == pytest.approx(r2)
    assert {delta["minus"] for delta in result["delta"]} == {"frozen", "frozen_best"}


def test_samples_seen_in_training_are_refused_or_named():
    task = HestTask("TINY", GENES, FOLDS, {})
    assert seen_test_samples(task, ["PC1"]) == []
    with pytest.raises(InputError, match="TINY: the run was finetuned on test sample PA1"):
        seen_test_samples(task, ["PB1", "PA1"])
    assert seen_test_samples(task, ["PB1", "PA1"], allow=True) == ["PA1", "PB1"]


# Faults


def truncate(path):
    path.write_bytes(path.read_bytes()[:1000])


def rename_splits(task):
    (task / "splits").rename(task / "split")


def write_no_genes(task):
    (task / GENES_FILE).write_text("[]")


def write_unknown_gene(task):
    (task / GENES_FILE).write_text(json.dumps({"genes": ["NOPE"]}))


def remove_half_a_fold(task):
    (task / "splits/test_1.csv").unlink()


def remove_columns(task):
    (task / "splits/test_1.csv").write_text("sample_id\nPA1\n")


def repeat_training_half(task):
    (task / "splits/test_1.csv").write_text((task / "splits/train_1.csv").read_text())


def remove_counts(task):
    (task / "adata/PB1.h5ad").unlink()


def truncate_patches(task):
    truncate(task / "patches/PB1.h5")


def truncate_counts(task):
    truncate(task / "adata/PB1.h5ad")


def remove_barcodes(task):
    with h5py.File(task / "patches/PB1.h5", "a") as file:
        del file["barcode"]


def remove_a_spot(task):
    import anndata as ad

    adata = ad.read_h5ad(task / "adata/PB1.h5ad")
    adata[1:].copy().write_h5ad(task / "adata/PB1.h5ad")


def write_negative_count(task):
    import anndata as ad

    adata = ad.read_h5ad(task / "adata/PB1.h5ad")
    adata.X[0, 0] = -1
    adata.write_h5ad(task / "adata/PB1.h5ad")


@pytest.mark.parametrize(
    "damage, message",
    [
        (rename_splits, "TINY: has no folder splits"),
        (write_no_genes, "var_50genes.json"),
        (write_unknown_gene, "PA1.h5ad: gene NOPE"),
        (remove_half_a_fold, "test_1.csv"),
        (remove_columns, "test_1.csv: column expr_path, patches_path"),
        (repeat_training_half, "test_1.csv: sample PB1 also trains"),
        (remove_counts, "PB1.h5ad: is missing"),
        (truncate_patches, "PB1.h5"),
        (remove_barcodes, "PB1.h5: has no img, barcode and coords"),
        (truncate_counts, "PB1.h5ad"),
        (remove_a_spot, "PB1.h5ad: barcode"),
        (write_negative_count, "PB1.h5ad: needs whole numbers"),
    ],
)
def test_a_fault_is_one_line_that_names_the_file(damaged_root, damage, message):
    damage(damaged_root / "TINY")
    with pytest.raises(InputError, match=message) as caught:
        read_hest_task(damaged_root / "TINY").load()
    assert "\n" not in str(caught.value)
