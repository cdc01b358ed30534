"""What the executed notebooks found, in ranges that a fault would leave.

Each notebook's last code cell prints its key figures as one line of JSON. `make` executes the
notebooks before it runs the tests; without executed copies there is nothing to check here.
"""

import json
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).parents[1]
CHAPTERS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.py"))


def executed(name):
    path = ROOT / f"book/notebooks/{name}.ipynb"
    if not path.exists():
        pytest.skip(f"{path.relative_to(ROOT)} is absent: run `make notebooks` first")
    return nbformat.read(path, as_version=4)


def figures(number: int) -> dict:
    (name,) = [c for c in CHAPTERS if c.startswith(f"{number:02d}_")]
    (cell,) = [c for c in executed(name).cells if "key-figures" in c.metadata.get("tags", [])]
    return json.loads("".join(o.text for o in cell.outputs if o.get("name") == "stdout"))


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_opens_with_its_question_shows_figures_and_closes(name):
    notebook = executed(name)
    shown = [o for c in notebook.cells for o in c.get("outputs", []) if "data" in o]
    assert sum("image/png" in o["data"] for o in shown) >= 2
    first, *_ = notebook.cells
    assert first.source.startswith("# ") and "?**" in first.source and "to read" in first.source
    assert (
        "## What to remember" in [c for c in notebook.cells if c.cell_type == "markdown"][-1].source
    )


@pytest.mark.parametrize("name", CHAPTERS)
def test_colab_installs_from_where_the_book_lives(name):
    home = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"]
    assert f"git+{home}" in (ROOT / f"notebooks/{name}.py").read_text()


def test_meet_a_section():
    f = figures(1)
    assert f["um_per_px"] == pytest.approx(0.5, rel=0.01)  # the phantom was drawn at 0.5
    assert 150 <= f["spots"] <= 160 and f["genes"] > 300
    leak = f["mean_r_with_log_depth"]
    assert leak["log1p_raw"] > 0.25 > 0.15 > abs(leak["pearson_residuals"])


def test_pairs():
    f = figures(2)
    assert f["pairs"] <= 160 and f["dropped_at_900_um"] > 0
    assert f["patch_px_in_image"] == pytest.approx(448, rel=0.01)
    assert f["smoothing_difference"] < 1e-5 and f["view_0_difference"] < 1e-4
    assert [shape[0] for shape in f["batch"]] == [64, 64]


def test_panel_and_gene_encoder():
    f = figures(3)
    assert f["order_difference"] == 0 and f["repeat_difference"] == 0
    assert f["loss"][1] < 0.7 * f["loss"][0]
    r = f["reconstruction_r"]
    assert 0.5 < r["visible"]["held-out section"] < 0.99
    assert r["all others"]["held-out section"] < r["all others"]["training sections"]


def test_finetune():
    f = figures(8)
    assert f["lora_modules"] > 0 and 0 < f["trainable_share"] < 0.1
    assert f["no_op_difference"] == 0 and f["reload_difference"] == 0 and f["moved"] > 0.001
    assert f["loss_gap"] < 1e-4
    assert f["pairs_per_s"]["cached"] > 1.2 * f["pairs_per_s"]["plain"]
    first, last = f["clip"]
    assert last < first < 1.5 * f["log_batch"] and last < 0.9 * f["log_batch"]


def test_gene_prediction():
    f = figures(9)
    by_class = f["by_class"]
    assert by_class["visible"]["tuned"] > 0.2
    # A leak would be positive. By chance all invisible genes err together: they share one state.
    assert -0.3 < by_class["invisible"]["tuned"] < 2 / f["spots"] ** 0.5
    assert by_class["invisible"]["neighbours"] > 0.2  # it is there, and smooth, but not drawn
    for scores in by_class.values():
        assert scores["ceiling"] > scores["oracle"]
        assert scores["oracle"] > max(scores["tuned"], scores["frozen"], scores["shuffled"])
    assert f["r"]["tuned/tuned_ridge"] > f["r"]["colour/tuned_ridge"]
    after, before = f["kept"]["region_accuracy"]
    assert after > before - 0.1 and after > 1.5 / 6  # six regions
    assert min(f["kept"]["effective_rank"]) > 5
    assert f["log_depth_r"]["log1p_raw"] > f["log_depth_r"]["pearson_residuals"] + 0.1


def test_hest_bench():
    f = figures(12)
    assert f["px"] == 80  # 112 um at the run's 224 um / 160 px
    assert f["gap"] < 3 * f["shaken"] + 1e-3 < 0.05  # as near to upstream as that is to itself
    assert f["r2"]["without"] < -1 < f["r2"]["with"] < 1
    assert f["hest_bench"]["tuned"] > f["hest_bench"]["random_init"]
    assert min(f["swing"].values()) > 0.03  # the probe's penalty alone


def test_retrieval():
    f = figures(10)
    tuned, shuffled = f["recall"]["tuned"], f["recall"]["shuffled"]
    assert tuned["recall@10"] > 1.5 * tuned["chance@10"]
    assert tuned["median_rank"] < 0.75 * min(tuned["n"] / 2, shuffled["median_rank"])
    hits = [list(z.values()) for z in f["z_of_hits"].values()]
    assert sum(found > random for found, random in hits) >= 3


def test_across_patients():
    f = figures(11)
    assert f["scopes"] == ["all", "other patients", "other slides", "slide"]
    tuned, shuffled = f["across"]["tuned"], f["across"]["shuffled"]
    assert tuned["random"] < tuned["found"] < tuned["oracle"]
    assert tuned["found"] - tuned["random"] > 2 * (shuffled["found"] - shuffled["random"])
    assert all(r["recall@10"] > 1.2 * r["chance@10"] for r in f["recall"].values())


def test_out_of_distribution():
    f = figures(14)
    for row in f["means"].values():
        assert row["gap"] == pytest.approx(row["in"] - row["out"], abs=1e-6)
    assert f["means"]["tuned"]["in"] > f["means"]["random_init"]["in"]
    assert all(0 < v < 1 for v in f["robustness"].values()) and f["gap_rows"] == 3


def test_slide_level():
    f = figures(13)
    assert f["slides"] == 50 and f["regions"] > 10 and "arrangement" in f["activity_sets"]
    best = {task.split(",")[0]: scores for task, scores in f["best"].items()}
    assert best["activity"]["oracle"] > 0.5 and best["mutation"]["oracle"] > 0.7
    assert best["activity"]["oracle"] > best["activity"]["frozen"]


def test_your_own_encoder():
    f = figures(18)
    assert f["encoders"] == 20 and f["megabytes"] < 10
    assert f["merge_gap"] < 1e-3 and f["onnx_gap"] < 1e-3 and f["return_gap"] == 0
    assert {"base.json", "config.json", "heads.safetensors", "panel.json"} < set(f["sent"])
    assert not [name for name in f["sent"] if name.endswith((".pt", ".pth", ".jsonl"))]
    assert all(2 <= k <= 12 for k in f["clusters"].values()) and f["tiles"] > 50
    assert all(0.05 < index < 1 for index in f["agreement"].values())


def test_your_own_data():
    f = figures(17)
    assert all(gap < 2 for gap in f["gap"].values())  # of 255: another level's resampling
    assert "um apart" in f["refused"] and f["said"] == []
    pairs = [f["pooled"][size] for size in ("50", "100", "200")]
    assert pairs[0] > 2 * pairs[1] > 4 * pairs[2] > 400
    assert any("mirrored in x" in sentence for sentence in f["told"])
    assert max(f["r"]["right"], key=f["r"]["right"].get) == "as they are"
    assert max(f["r"]["wrong"], key=f["r"]["wrong"].get) == "mirrored in x"
