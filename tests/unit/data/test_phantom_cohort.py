"""A cohort whose labels are in its slides and in its expression."""

import shutil

import h5py
import numpy as np
import pandas as pd
import pytest
import yaml

from seal_lite import InputError
from seal_lite.data.phantom import cohort, oracle_features

SIZE = {"patients": 20, "spots": 9}  # the fewest patients that a cohort may have
UM_PER_PX = 2.0  # a quarter of the cohort's resolution, so that its 25 slides are drawn in seconds


@pytest.fixture(scope="module", autouse=True)
def coarse_slides():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("seal_lite.data.phantom.slide_cohort.UM_PER_PX", UM_PER_PX)
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return cohort(tmp_path_factory.mktemp("cohort") / "c", **SIZE)


def read_task(root, name):
    return pd.read_csv(root / f"tasks/{name}/k=all.tsv", sep="\t")


def test_half_of_the_patients_are_mutated_and_every_fourth_has_two_slides(root):
    table = read_task(root, "mutation")
    cases = table.drop_duplicates("case_id")
    assert cases.mutation.value_counts().to_dict() == {1: 10, 0: 10}
    n_slides = table.groupby("case_id", sort=True).size().to_list()
    assert n_slides == [1, 1, 1, 2] * 5
    slides = {path.stem for path in (root / "slides").iterdir()}
    assert set(table.slide_id) == slides


@pytest.mark.parametrize(
    "name, kind",
    [("mutation", "classification"), ("activity", "regression"), ("survival", "survival")],
)
def test_tasks_are_read_as_what_they_are(root, name, kind):
    from seal_lite.slides.tasks import read_slide_task

    assert read_slide_task(root / "tasks" / name).kind == kind


@pytest.mark.parametrize("name", ["mutation", "activity", "response", "survival"])
def test_patho_bench_takes_the_task(root, name):
    """What it asserts of config.yaml, and reads of the table: codes, folds, extra columns."""
    config = yaml.safe_load((root / f"tasks/{name}/config.yaml").read_text())
    kinds = {"sample_col": str, "extra_cols": list, "label_dict": dict, "metrics": list}
    for field, kind in kinds.items():
        assert isinstance(config[field], kind)
    assert config["metrics"]
    table = read_task(root, name)
    assert set(config["extra_cols"]) | {config["task_col"], "slide_id"} <= set(table)
    if name != "activity":  # a regression, of which it has none
        codes = table[config["task_col"]]
        assert codes.dtype == int
        assert set(codes) == {int(code) for code in config["label_dict"]}
    folds = [column for column in table if column.startswith("fold_")]
    assert folds == [f"fold_{i}" for i in range(5)]
    assert set(table[folds].to_numpy().ravel()) == {"train", "test"}
    cases = table.drop_duplicates("case_id")
    assert (table.groupby(config["sample_col"])[folds].nunique() == 1).all(axis=None)
    assert ((cases[folds] == "test").sum(axis=1) == 1).all()  # each case tests once


def test_a_survival_task_has_days_and_events_beside_its_quarters(root):
    cases = read_task(root, "survival").drop_duplicates("case_id")
    assert set(cases.OS_event) == {0, 1}
    assert cases.OS.value_counts().to_dict() == dict.fromkeys(range(4), 5)
    assert (cases.groupby("OS").OS_days.min().diff().dropna() > 0).all()


@pytest.mark.parametrize("name", ["mutation", "activity"])
def test_the_folds_that_are_written_are_those_of_a_task_without_any(root, tmp_path, name):
    from seal_lite.slides.tasks import read_slide_task

    copied = tmp_path / name
    shutil.copytree(root / "tasks" / name, copied)
    table = read_task(root, name)
    table.drop(columns=[f"fold_{i}" for i in range(5)]).to_csv(
        copied / "k=all.tsv", sep="\t", index=False
    )
    written, split = (read_slide_task(folder) for folder in (root / "tasks" / name, copied))
    for (_, test), (_, own_test) in zip(written.folds, split.folds, strict=True):
        np.testing.assert_array_equal(test, np.sort(own_test))


def test_the_activity_label_is_that_of_the_bulk_expression(root):
    import anndata as ad

    from seal_lite.data.pathways import activities, read_gmt

    scores = activities(ad.read_h5ad(root / "expression.h5ad"), read_gmt(root / "programs.gmt"))
    labels = read_task(root, "activity").drop_duplicates("case_id").set_index("case_id").activity
    np.testing.assert_allclose(scores.loc[labels.index, "arrangement"], labels, atol=1e-3)


def test_the_same_arguments_give_the_same_bytes(root, tmp_path):
    repeated = cohort(tmp_path / "c", **SIZE)
    for file in ("slides/P003_1.jpg", "tasks/survival/k=all.tsv", "truth/P007_0.npz"):
        assert (repeated / file).read_bytes() == (root / file).read_bytes()


def test_a_folder_of_other_arguments_is_an_error(root):
    with pytest.raises(InputError, match="remove it"):
        cohort(root, **SIZE | {"spots": 17})


@pytest.mark.parametrize("patients", [7, 18, 21])
def test_too_few_patients_or_an_odd_number_is_an_error(tmp_path, patients):
    with pytest.raises(InputError, match="even number of at least 20"):
        cohort(tmp_path / "d", patients=patients)
    assert not (tmp_path / "d").exists()


def test_a_clone_covers_a_minority_of_a_mutated_slide_only(root):
    shares = {"mutant": [], "wildtype": []}
    for row in read_task(root, "mutation").itertuples():
        with np.load(root / f"truth/{row.slide_id}.npz") as cells:
            shares[("wildtype", "mutant")[row.mutation]].append(cells["chromatin"].mean())
    mean = {label: np.mean(values) for label, values in shares.items()}
    assert mean["wildtype"] + 0.05 < mean["mutant"] < 0.5


def test_oracle_features_are_the_states_of_the_cells_in_each_patch(root, tmp_path):
    slide = "P003_1"
    patch_um = 224.0
    features = tmp_path / "features"
    features.mkdir()
    with np.load(root / f"truth/{slide}.npz") as truth:
        x, y, chromatin = truth["x"], truth["y"], truth["chromatin"]
    corners_um = np.array([[np.median(x), np.median(y)], [-1000.0, -1000.0]])  # on, and off tissue
    with h5py.File(features / f"{slide}.h5", "w") as file:
        file["coords"] = corners_um / UM_PER_PX
    out = oracle_features(root, features, tmp_path / "oracle", patch_um=patch_um)
    with h5py.File(out / f"{slide}.h5") as file:
        on_tissue, off_tissue = file["features"][:]
    left, top = corners_um[0]
    inside = (x >= left) & (x < left + patch_um) & (y >= top) & (y < top + patch_um)
    assert on_tissue[0] == pytest.approx(chromatin[inside].mean())
    assert on_tissue[2] == pytest.approx(inside.sum() / 100)
    assert 0 < on_tissue[1] < 1
    assert list(off_tissue) == [0, 0, 0]
