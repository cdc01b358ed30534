"""From whole slides to slide-level scores on the command line."""

import json

import h5py
import numpy as np
import pytest

PATCH_UM = 224.0
SLIDES = ("P000_0", "P003_0", "P003_1")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    from seal_lite.data.phantom import cohort

    return cohort(tmp_path_factory.mktemp("cohort") / "c", patients=20, spots=9)


def test_slides_are_embedded_frozen_and_tuned_with_oracle_features_beside_them(
    root, tmp_path, trained, cli
):
    from seal_lite.data.phantom import oracle_features

    run, *_ = trained
    (tmp_path / "slides").mkdir()
    for slide in SLIDES:
        (tmp_path / f"slides/{slide}.jpg").symlink_to(root / f"slides/{slide}.jpg")
    encoders = {"tuned": ("--run", run), "frozen": ("--backbone", "tf_efficientnet_lite0")}
    n_patches = {}
    for name, encoder in encoders.items():
        options = ("--slides", tmp_path / "slides", "--um-per-px", 0.5, "--out", tmp_path / name)
        code, _, stderr = cli("embed", *options, *encoder)
        assert code == 0, stderr
        with h5py.File(tmp_path / name / "P003_1.h5") as file:
            n_patches[name] = len(file["features"])
            assert np.isfinite(file["features"][:]).all()
    assert n_patches["tuned"] == n_patches["frozen"] > 3

    oracle_features(root, tmp_path / "tuned", tmp_path / "oracle", patch_um=PATCH_UM)
    with h5py.File(tmp_path / "oracle/P003_1.h5") as file:
        assert file["features"].shape == (n_patches["tuned"], 3)
        assert (file["features"][:, 2] > 0).all()  # every embedded patch holds cells


def write_features(folder, task, *, signal):
    """Six patches a slide, of three dimensions, raised by the label times ``signal``."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for y, slides in zip(task.y, task.slides.values(), strict=True):
        for slide in slides:
            with h5py.File(folder / f"{slide}.h5", "w") as file:
                file["features"] = rng.standard_normal((6, 3)) + signal * y


def test_slide_bench_prefers_features_that_hold_the_label(root, tmp_path, cli):
    from seal_lite.slides.tasks import read_slide_task

    task = read_slide_task(root / "tasks/activity")
    write_features(tmp_path / "frozen", task, signal=0.0)
    write_features(tmp_path / "tuned", task, signal=1.0)
    code, stdout, stderr = cli(
        "slide-bench",
        *("--task", root / "tasks/activity", "--seeds", 1),
        *("--features", f"frozen={tmp_path}/frozen"),
        *("--features", f"tuned={tmp_path}/tuned"),
        *("--json", tmp_path / "scores.json"),
    )
    assert code == 0, stderr
    assert "pearson" in stdout
    result = json.loads((tmp_path / "scores.json").read_text())
    assert result["samples"] == 20
    r = {
        score["features"]: score["mean"]
        for score in result["scores"]
        if (score["model"], score["metric"]) == ("mean", "pearson")
    }
    assert r["tuned"] > 0.8 > r["frozen"]
