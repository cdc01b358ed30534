"""What the executed notebooks found, in ranges that a fault would leave.

Each notebook's last code cell prints its key figures as one line of JSON. `make` executes the
notebooks before it runs the tests; without executed copies there is nothing to check here.
"""

import json
import math
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
    assert any("## What to remember" in cell.source for cell in notebook.cells)


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
    inside = 1 - (176 / 224) ** 2  # of a patch with eight neighbours; spots at the edge have fewer
    assert f["overlap"]["112"] == 0 < 0.8 * inside < f["overlap"]["224"] < inside + 0.02
    assert 0.9 < f["overlap"]["448"] <= 1


def test_gene_panel():
    f = figures(3)
    assert f["panel"] >= 128 and 50 <= f["scored"] <= f["panel"]
    assert f["order_difference"] == 0 and "are missing" in f["refused"]
    assert f["median_count"]["seurat"] < f["median_count"]["pearson_residuals"]
    mean, sd, largest = f["z"]
    assert abs(mean) < 1e-3 and 0.8 < sd <= 1.001 and largest <= 5  # clipping takes from the sd
    depth, loud, between = (
        {step: row[name] for step, row in f["steps"].items()}
        for name in next(iter(f["steps"].values()))
    )
    # What the division removes, the logarithm, and the z-score:
    assert depth["counts"] > 0.4 > 0.1 > abs(depth["CP10k"])
    assert loud["CP10k"] > 1.5 * loud["log(1 + CP10k)"] > 1.5 * loud["z, own scale"]
    assert between["z, training's scale"] > 0.1 > 1e-3 > between["z, own scale"]


def test_frozen_baseline():
    f = figures(4)
    assert 0 < f["r"]["random_init"] < f["r"]["frozen"] < f["r"]["frozen_best"] < f["ceiling"] < 1
    assert f["raw"]["log_depth"] > f["r"]["log_depth"] + 0.1  # raw counts are mostly depth
    by_class = f["by_class"]
    assert by_class["visible"] > by_class["subtle"] + 0.1 > abs(by_class["invisible"])
    assert f["null_sd"] == pytest.approx(f["spots"] ** -0.5, rel=0.15)
    assert f["peeked"] >= f["honest"] - 1e-9


def test_gene_encoder():
    f = figures(5)
    assert f["repeat_difference"] == 0 and f["loss"][1] < 0.7 * f["loss"][0]
    r = f["reconstruction_r"]
    assert 0.5 < r["visible"]["held-out section"] < 0.99
    assert r["all others"]["held-out section"] < r["all others"]["training sections"]
    assert 4 <= f["components_above_chance"] <= 16  # the phantom has about ten programs
    truth = {k: row["truth"] for k, row in f["components"].items()}
    assert truth["1"] < f["encoder"]["truth"] < 1
    assert max(truth.values()) > f["measured"]["truth"] > truth["1"]  # squeezed is better than raw


def test_lora():
    f = figures(6)
    assert f["start_gap"] == 0 and f["layers"] == 16
    assert all(0.999 < ratio < 1.1 for ratio in f["error_over_best"])  # Eckart and Young's bound
    low, high = f["ninety_percent"]
    assert 1 <= low <= high < f["rank"]
    assert 0 < f["relative_change"][0] and f["relative_change"][1] < 1
    assert f["merge_gap"] < 1e-4
    assert f["zero_start"]["both zero"] == 0 < 5 < f["zero_start"]["only A zero"]


def test_losses():
    f = figures(7)
    gaps = ("clip_gap", "gradient_gap", "kl_gap", "released_gap")
    assert max(f[gap] for gap in gaps) < 1e-4
    assert f["floor"] == pytest.approx(math.log(2) / 2, abs=1e-4)
    columns, rows = f["collapsed"]
    assert columns == pytest.approx(math.log(64), abs=1e-4) and rows > columns
    first, last = f["steps"]
    assert last < 0.1 * first and f["mse_of_the_mean"] == pytest.approx(1, abs=1e-4)


def test_fool_yourself():
    f = figures(15)
    invisible = f["by_class"]["invisible"]
    assert invisible["nearest spots, dealt"] > 0.3 > abs(invisible["image, section held out"])
    chosen, elsewhere = f["gain"].values()
    assert chosen > max(0.01, elsewhere)
    assert f["log_depth"]["log1p raw counts"] > f["log_depth"]["Pearson residuals"] + 0.1
    assert f["null"]["shifted"] > 1.2 * f["null"]["shuffled"]
    assert f["picked"]["ten best predicted in the test"] > f["picked"]["all genes"] + 0.1


def test_cost():
    f = figures(16)
    bound = f["bound"]
    assert bound["vit_base_patch16_224, last 1"] == pytest.approx(1 + 11 / 3, rel=1e-6)
    assert bound["vit_huge_patch14_224, last 32"] == 1
    one, three = f["pairs_per_s"]["1"], f["pairs_per_s"]["3"]
    assert one["cached"] > three["cached"] > 0
    assert f["views"]["fp16"] == 2 * f["views"]["fp32"] == 8
    assert f["losses"]["memory"] == f["losses"]["shards"]  # to the bit
    (whole, largest), *parts = f["kept"].values()
    assert [mb for mb, _ in parts] == sorted((mb for mb, _ in parts), reverse=True)
    assert parts[-1][0] < 0.5 * whole
    assert [g for _, g in parts] == pytest.approx([largest] * 3, rel=1e-3)
    assert (
        f["fit"]["vit_base_patch16_224, last 1"] > 384 > f["fit"]["vit_base_patch16_224, last 12"]
    )


def test_what_differs():
    f = figures(19)
    assert f["neighbours"] == [4, 6] and f["same_place"][0] < 0.2 * f["same_place"][1]
    assert f["mean_counts"]["seurat"] < f["mean_counts"]["pearson_residuals"]
    assert 0.4 < f["below"] < 0.6 and f["cosine"]["the mean"] > 0.9999 > f["cosine"]["sampled"]
    assert f["by_name"] > 0.9999 and abs(f["by_place"]) < 0.1
    assert f["left"]["4"] == pytest.approx(0.25 + 0.25 / 4, rel=0.03)


def test_finetune():
    f = figures(8)
    assert f["lora_modules"] > 0 and 0 < f["trainable_share"] < 0.1
    assert f["no_op_difference"] == 0 and f["reload_difference"] == 0 and f["moved"] > 0.001
    assert f["loss_gap"] < 1e-4 and f["loop_gap"] < 1e-3  # the loop is what `finetune` does
    start, *_, end = (own - rest for own, rest in f["cosines"].values())
    assert abs(start) < 0.05 < 0.2 < end  # held-out pairs find each other,
    assert f["shuffled"][0] - f["shuffled"][1] < 0.5 * end  # and not after wrong pairs
    first, last = f["clip"]
    assert last < first < 1.5 * f["log_batch"] and last < 0.9 * f["log_batch"]


def test_did_it_help():
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
    for test in f["sign_test"].values():
        assert 1 < test["as good as"] < 0.5 * test["of"]  # genes of one program are not independent


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
    r = f["recoloured"]
    assert all(abs(v - r["finetuned"]["as it is"]) < 0.03 for v in r["finetuned"].values())
    assert r["frozen"]["colours matched"] < r["frozen"]["as it is"]


def test_slide_level():
    f = figures(13)
    assert f["slides"] == 50 and f["regions"] > 10 and "arrangement" in f["activity_sets"]
    best = {task.split(",")[0]: scores for task, scores in f["best"].items()}
    assert best["activity"]["oracle"] > 0.5 and best["mutation"]["oracle"] > 0.7
    assert best["activity"]["oracle"] > best["activity"]["frozen"]
    assert f["copied"]["glass"] > 0.9 and f["copied"]["frozen"] < 0.3
    assert f["separates"]["80% quantile"] == max(f["separates"].values()) > 0.8


def test_your_own_encoder():
    f = figures(18)
    assert f["encoders"] == 20 and f["megabytes"] < 10
    assert f["merge_gap"] < 1e-3 and f["onnx_gap"] < 1e-3 and f["return_gap"] == 0
    assert f["cut_gap"] < 1e-5
    assert {"base.json", "config.json", "heads.safetensors", "panel.json"} < set(f["sent"])
    assert not [name for name in f["sent"] if name.endswith((".pt", ".pth", ".jsonl"))]
    assert all(2 <= k <= 12 for k in f["clusters"].values()) and f["tiles"] > 50
    assert all(0.05 < index < 1 for index in f["agreement"].values())


def test_your_own_data():
    f = figures(17)
    assert all(gap < 2 for gap in f["gap"].values())  # of 255: another level's resampling
    assert "um apart" in f["refused"] and f["said"] == [] and f["twins"] == [1, 1, 0]
    pairs = [f["pooled"][size] for size in ("50", "100", "200")]
    assert pairs[0] > 2 * pairs[1] > 4 * pairs[2] > 400
    assert any("mirrored in x" in sentence for sentence in f["told"])
    assert max(f["r"]["right"], key=f["r"]["right"].get) == "as they are"
    assert max(f["r"]["wrong"], key=f["r"]["wrong"].get) == "mirrored in x"
