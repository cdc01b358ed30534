"""Labels from expression, and a cohort whose labels are in its slides."""

import json

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from seal_lite import InputError
from seal_lite.cli import app
from seal_lite.data.pathways import activities, read_gmt
from seal_lite.data.phantom import cohort, oracle_features
from seal_lite.slides.tasks import read_slide_task


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return cohort(tmp_path_factory.mktemp("cohort") / "c", patients=20, spots=16, progress=False)


def test_activity_follows_its_genes_and_sees_no_depth():
    rng = np.random.default_rng(0)
    level, depth = rng.standard_normal(40), rng.uniform(2e3, 2e4, 40)
    share = np.tile(rng.dirichlet(np.ones(60)), (40, 1))
    share[:, :10] *= np.exp(0.7 * level)[:, None]
    counts = rng.poisson(depth[:, None] * share / share.sum(1, keepdims=True)).astype("f4")
    adata = ad.AnnData(counts, var=pd.DataFrame(index=[f"G{i}" for i in range(60)]))
    adata.layers["counts"] = adata.X
    net = pd.DataFrame(
        {"source": ["up"] * 10 + ["few"] * 2, "target": [f"G{i}" for i in [*range(10), 30, 31]]}
    )
    found = activities(adata, net)
    assert list(found) == ["up"] and np.corrcoef(found["up"], level)[0, 1] > 0.9
    assert abs(np.corrcoef(found["up"], np.log(depth))[0, 1]) < 0.3
    with pytest.raises(InputError, match="same gene names"):
        activities(adata, net.assign(target="ENSG1"))


def test_gmt_is_read_by_tabs(tmp_path):
    (tmp_path / "a.gmt").write_text("ONE\tabout\tA\tB\nTWO\tabout\tB\tC\tC\n")
    net = read_gmt(tmp_path / "a.gmt")
    assert [tuple(r) for r in net[["source", "target"]].to_numpy()] == [
        ("ONE", "A"),
        ("ONE", "B"),
        ("TWO", "B"),
        ("TWO", "C"),
    ]
    with pytest.raises(InputError, match="nothere.gmt"):
        read_gmt(tmp_path / "nothere.gmt")


def test_cohort_is_balanced_and_repeatable(root, tmp_path):
    table = pd.read_csv(root / "tasks/mutation/k=all.tsv", sep="\t")
    cases = table.drop_duplicates("case_id")
    assert cases.mutation.value_counts().to_dict() == {"mutant": 10, "wildtype": 10}
    assert len(table) == 25 and {f"{s}.jpg" for s in table.slide_id} == {
        p.name for p in (root / "slides").iterdir()
    }
    for task, kind in (
        ("mutation", "classification"),
        ("activity", "regression"),
        ("survival", "survival"),
    ):
        assert read_slide_task(root / f"tasks/{task}").kind == kind
    again = cohort(tmp_path / "c", patients=20, spots=16, progress=False)
    for file in ("slides/P003_1.jpg", "tasks/survival/k=all.tsv", "truth/P007_0.npz"):
        assert (again / file).read_bytes() == (root / file).read_bytes()
    with pytest.raises(InputError, match="remove it"):
        cohort(root, patients=20, spots=17, progress=False)
    with pytest.raises(InputError, match="even number"):
        cohort(tmp_path / "d", patients=7)


def test_a_clone_covers_a_minority_of_a_mutated_slide_only(root):
    table = pd.read_csv(root / "tasks/mutation/k=all.tsv", sep="\t").set_index("slide_id")
    mean = {}
    for slide, row in table.iterrows():
        with np.load(root / f"truth/{slide}.npz") as cells:
            mean.setdefault(row.mutation, []).append(cells["chromatin"].mean())
    assert np.mean(mean["mutant"]) > np.mean(mean["wildtype"]) + 0.05
    assert np.mean(mean["mutant"]) < 0.5


def test_pipeline_from_slides_to_scores_on_the_command_line(root, tmp_path, trained):
    """embed (frozen and tuned), oracle features beside them, slide-bench."""

    def call(*words):
        result = CliRunner().invoke(app, [str(w) for w in words])
        assert result.exit_code == 0, result.output + repr(result.exception)
        return result.output

    few = tmp_path / "few"
    few.mkdir()
    for slide in ("P000_0", "P003_0", "P003_1"):
        (few / f"{slide}.jpg").symlink_to(root / f"slides/{slide}.jpg")
    where = ("--slides", few, "--um-per-px", 0.5)
    call("embed", *where, "--run", trained[0], "--out", tmp_path / "tuned")
    call("embed", *where, "--backbone", "test_vit", "--out", tmp_path / "frozen")
    with h5py.File(tmp_path / "tuned/P003_1.h5") as file:
        n = len(file["features"])
        assert file["features"].shape == (n, 112) and n > 3
    oracle_features(root, tmp_path / "tuned", tmp_path / "oracle", patch_um=224.0)
    with h5py.File(tmp_path / "oracle/P003_1.h5") as file:
        assert file["features"].shape == (n, 3) and (file["features"][:, 2] > 0).all()
    labels = activities(ad.read_h5ad(root / "expression.h5ad"), read_gmt(root / "programs.gmt"))
    asked = pd.read_csv(root / "tasks/activity/k=all.tsv", sep="\t").drop_duplicates("case_id")
    np.testing.assert_allclose(labels.loc[asked.case_id, "arrangement"], asked.activity, atol=1e-3)

    task, rng = read_slide_task(root / "tasks/activity"), np.random.default_rng(0)
    for name, signal in (("frozen", 0.0), ("tuned", 1.0)):
        (tmp_path / name / "all").mkdir()
        for y, slides in zip(task.y, task.slides.values(), strict=True):
            for slide in slides:
                with h5py.File(tmp_path / name / f"all/{slide}.h5", "w") as file:
                    file["features"] = rng.standard_normal((6, 3)) + signal * y
    out = call(
        "slide-bench",
        "--task",
        root / "tasks/activity",
        "--seeds",
        1,
        "--features",
        f"frozen={tmp_path}/frozen/all",
        "--features",
        f"tuned={tmp_path}/tuned/all",
        "--json",
        tmp_path / "scores.json",
    )
    result = json.loads((tmp_path / "scores.json").read_text())
    assert "pearson" in out and result["samples"] == 20
    best = {(s["features"], s["model"], s["metric"]): s["mean"] for s in result["scores"]}
    assert best["tuned", "mean", "pearson"] > 0.8 > best["frozen", "mean", "pearson"]
