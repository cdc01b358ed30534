"""What the executed chapters claim, checked on the key figures that each prints at its end.

The last code cell of a chapter prints its key figures as one line of JSON. Without executed
chapters these tests are skipped: run `make notebooks` first.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
CHAPTERS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.py"))


def executed(name):
    path = ROOT / f"book/notebooks/{name}.ipynb"
    if not path.exists():
        pytest.skip(f"{path.relative_to(ROOT)} is absent: run `make notebooks` first")
    return nbformat.read(path, as_version=4)


def figures(number: int) -> dict:
    (name,) = [chapter for chapter in CHAPTERS if chapter.startswith(f"{number:02d}_")]
    tagged = [c for c in executed(name).cells if "key-figures" in c.metadata.get("tags", [])]
    return json.loads("".join(o.text for o in tagged[0].outputs if o.get("name") == "stdout"))


def test_every_chapter_shows_figures_with_alternative_texts():
    from extension import describe_figures

    offenders = []
    for name in CHAPTERS:
        shown = 0
        for cell in executed(name).cells:
            images = [out for out in cell.get("outputs", []) if "image/png" in out.get("data", {})]
            shown += len(images)
            if images:
                describe_figures(cell)
                alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
                if len(alt.split()) < 5:
                    offenders.append(f"{name}: no alternative text: {cell.source[:60]!r}")
        if shown < 2:
            offenders.append(f"{name}: {shown} figures")
    assert offenders == []


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_shows_its_result(name):
    outputs = [out for cell in executed(name).cells for out in cell.get("outputs", [])]
    texts = ["".join(out.get("data", {}).get("text/markdown", "")) for out in outputs]
    (box,) = [text for text in texts if text.startswith("**Result.**")]
    assert re.search(r"\d", box)


def test_no_chapter_shows_the_log_of_the_package():
    def printed(name):
        outputs = [out for cell in executed(name).cells for out in cell.get("outputs", [])]
        return "".join(out.text for out in outputs if out.get("name") == "stdout")

    logged = re.compile(r"prefix cache:|have no counts: dropped|fold \d+ of \d+: test")
    assert [name for name in CHAPTERS if logged.search(printed(name))] == []


def test_every_solution_was_executed():
    cells = [(name, cell) for name in CHAPTERS for cell in executed(name).cells]
    solutions = [(n, c) for n, c in cells if "solution" in c.metadata.get("tags", [])]
    assert [n for n, c in solutions if not (c.outputs and c.execution_count)] == []


def test_the_quick_path_ends_with_a_verdict_and_a_usable_encoder():
    f = figures(0)
    assert f["units"] == 3  # the phantom's patients
    assert (f["kind"] == "better") <= (f["gain"] > 0) and (f["kind"] == "worse") <= (f["gain"] < 0)
    assert len(f["ari"]["frozen"]) == len(f["ari"]["seal"]) == f["units"]
    assert f["embedding"] == [1, f["obsm"][1]]
    low, high = f["drop"]
    assert low < high and high > 0  # some square of the patch holds the prediction up


def test_scale_is_measured_and_raw_counts_follow_depth():
    f = figures(1)
    assert f["um_per_px"] == pytest.approx(0.5, rel=0.01)  # the phantom is drawn at 0.5
    leak = f["mean_r_with_log_depth"]
    assert leak["log1p_raw"] > 0.25 > 0.15 > abs(leak["pearson_residuals"])


def test_pairs_are_cut_and_smoothed_as_the_chapter_does_by_hand():
    f = figures(2)
    assert f["dropped_at_900_um"] > 0
    assert f["patch_px_in_image"] == pytest.approx(448, rel=0.01)
    assert f["smoothing_difference"] < 1e-5 and f["view_0_difference"] < 1e-4
    inside = 1 - (176 / 224) ** 2  # of a patch with eight neighbours; spots at the edge have fewer
    assert f["overlap"]["112"] == 0 < f["overlap"]["224"] < inside + 0.02


def test_each_step_of_the_scale_removes_what_the_chapter_says():
    f = figures(3)
    assert f["order_difference"] == 0 and "missing" in f["error"]
    assert f["median_count"]["seurat"] < f["median_count"]["pearson_residuals"]
    depth, five, between = (
        {step: row[name] for step, row in f["steps"].items()}
        for name in next(iter(f["steps"].values()))
    )
    assert depth["counts"] > 0.4 > 0.1 > abs(depth["CP10k"])  # the division
    assert five["CP10k"] > 1.5 * five["log(1 + CP10k)"] > 1.5 * five["z, own scale"]
    assert between["z, training's scale"] > 0.1 > 1e-3 > between["z, own scale"]


def test_the_frozen_baseline_lies_between_its_controls():
    f = figures(4)
    assert 0 < f["r"]["random_init"] < f["r"]["frozen"] < f["r"]["frozen_best"] < f["ceiling"] < 1
    assert f["raw"]["log_depth"] > f["r"]["log_depth"] + 0.1  # raw counts are mostly depth
    assert (
        f["by_class"]["visible"] > f["by_class"]["subtle"] + 0.1 > abs(f["by_class"]["invisible"])
    )
    assert f["null_sd"] == pytest.approx(f["spots"] ** -0.5, rel=0.15)
    assert f["chosen_on_test"] >= f["chosen_inside"] - 1e-9


def test_the_gene_encoder_is_deterministic_and_learns():
    f = figures(5)
    assert f["repeat_difference"] == 0 and f["loss"][1] < 0.7 * f["loss"][0]
    r = f["reconstruction_r"]
    assert r["all others"]["held-out section"] < r["all others"]["training sections"]
    truth = [row["truth"] for row in f["components"].values()]
    assert max(truth) > f["measured"]["truth"]  # a few components are closer to it than the data
    assert f["components_above_chance"] < 16
    assert f["pca"] > f["encoder"]["truth"]  # and so are they than the gene encoder
    assert f["neighbours"]["pca"] > f["neighbours"]["encoder"]


def test_lora_starts_at_the_frozen_weights_and_can_be_merged():
    f = figures(6)
    assert f["start_gap"] == 0 and f["merge_gap"] < 1e-4
    assert all(0.999 < ratio < 1.1 for ratio in f["error_over_best"])  # Eckart and Young's bound
    assert f["zero_start"]["both zero"] == 0 < f["zero_start"]["only A zero"]


def test_the_losses_by_hand_are_those_of_the_package():
    f = figures(7)
    gaps = ("clip_gap", "gradient_gap", "kl_gap", "released_gap")
    assert max(f[gap] for gap in gaps) < 1e-4
    assert f["floor"] == pytest.approx(math.log(2) / 2, abs=1e-4)
    columns, rows = f["collapsed"]
    assert columns == pytest.approx(math.log(64), abs=1e-4) and rows > columns
    assert f["mse_of_the_mean"] == pytest.approx(1, abs=1e-4)


def test_finetuning_by_hand_is_the_packages_and_teaches_the_pairs():
    f = figures(8)
    assert f["no_op_difference"] == 0 and f["reload_difference"] == 0
    assert f["loss_gap"] < 1e-4 and f["loop_gap"] < 1e-3  # the loop is what `finetune` does
    start, *_, end = (own - rest for own, rest in f["cosines"].values())
    assert abs(start) < 0.05 < 0.2 < end  # held-out pairs find each other,
    assert f["shuffled"][0] - f["shuffled"][1] < 0.25 * end  # and hardly after wrong pairs


def test_the_null_class_stays_a_null_and_the_oracle_is_above_all():
    f = figures(9)
    by_class = f["by_class"]
    # A leak would be positive. By chance all invisible genes err together: they share one state.
    assert -0.3 < by_class["invisible"]["tuned"] < 2 / f["spots"] ** 0.5
    assert by_class["invisible"]["neighbours"] > 0.2  # it is there, and smooth, but not drawn
    for scores in by_class.values():
        assert scores["ceiling"] > scores["oracle"]
        assert scores["oracle"] > max(scores["tuned"], scores["frozen"], scores["shuffled"])
    assert f["log_depth_r"]["log1p_raw"] > f["log_depth_r"]["pearson_residuals"] + 0.1


def test_a_profile_finds_its_own_patch():
    tuned = figures(10)["recall"]["tuned"]
    assert tuned["recall@10"] > 1.5 * tuned["chance@10"]


def test_retrieval_across_patients_is_above_the_shuffled_control():
    across = figures(10)["across"]
    tuned, shuffled = across["tuned"], across["shuffled"]
    assert tuned["random"] < tuned["found"] < tuned["oracle"]
    assert tuned["found"] - tuned["random"] > 2 * (shuffled["found"] - shuffled["random"])


def test_hest_benchs_number_is_reproduced():
    f = figures(11)
    assert f["gap"] < 3 * f["order_gap"] + 1e-3 < 0.05  # as near to upstream as that is to itself
    assert f["upstream_gap"] < 1e-3
    assert f["r2"]["without"] < -1 < f["r2"]["with"] < 1
    assert min(f["tuned_penalty_gain"].values()) > 0.03  # the probe's penalty alone


def test_slide_level_tasks_are_solved_by_the_oracle():
    best = {task.split(",")[0]: scores for task, scores in figures(12)["best"].items()}
    assert best["mutation"]["oracle"] > 0.7
    assert best["activity"]["oracle"] > max(0.5, best["activity"]["frozen"])


def test_a_slide_level_verdict_is_its_intervals():
    rows = figures(12)["verdicts"]
    assert len(rows) == 8
    for row in rows:
        low, high = row["ci95"]
        expected = "better" if low > 0 else "worse" if high < 0 else "no difference"
        assert row["verdict"] == expected


def test_a_gap_is_in_minus_out():
    f = figures(13)
    for name, row in f["means"].items():
        assert row["gap"] == pytest.approx(row["in"] - row["out"], abs=1e-6)
        assert f["gap_rows"][name]["mean"] == pytest.approx(row["gap"], abs=1e-4)
        assert f["gap_rows"][name]["units"] == 2  # folds


def test_every_pitfall_misleads():
    f = figures(14)
    invisible = f["by_class"]["invisible"]
    assert invisible["nearest spots, random split"] > 0.3
    assert abs(invisible["image, section held out"]) < 0.3
    chosen, elsewhere = f["gain"].values()
    assert chosen > max(0.01, elsewhere)
    assert f["log_depth"]["log1p raw counts"] > f["log_depth"]["Pearson residuals"] + 0.1
    assert f["null"]["shifted"] > 1.2 * f["null"]["shuffled"]
    assert f["picked"]["ten best predicted in the test"] > f["picked"]["all genes"] + 0.1


def test_training_from_shards_is_training_from_memory():
    f = figures(15)
    assert f["losses"]["memory"] == f["losses"]["shards"]  # to the bit
    assert f["by_count"]["vit_base_patch16_224, last 1"] == pytest.approx(1 + 11 / 3, rel=1e-6)
    assert f["views"]["fp16"] == 2 * f["views"]["fp32"]
    (whole, largest), *parts = f["kept"].values()
    assert parts[-1][0] < 0.5 * whole
    assert [gradient for _, gradient in parts] == pytest.approx([largest] * 3, rel=1e-3)


def test_a_mirrored_section_is_found():
    f = figures(16)
    assert max(f["r"]["right"], key=f["r"]["right"].get) == "as they are"
    assert max(f["r"]["wrong"], key=f["r"]["wrong"].get) == "mirrored in x"
    assert any("mirrored in x" in note for note in f["notes_mirrored"])


def test_a_finetuned_encoder_is_the_same_everywhere():
    f = figures(17)
    assert f["merge_gap"] < 1e-3 and f["onnx_gap"] < 1e-3 and f["return_gap"] == 0
    assert f["cut_gap"] < 1e-5
    assert {"base.json", "config.json", "heads.safetensors", "panel.json"} < set(f["sent"])
    assert not [name for name in f["sent"] if name.endswith((".pt", ".pth", ".jsonl"))]


def test_what_differs_from_the_release_is_shown():
    f = figures(18)
    assert f["neighbours"] == [4, 6]
    assert f["mean_counts"]["seurat"] < f["mean_counts"]["pearson_residuals"]
    assert f["by_name"] > 0.9999 and abs(f["by_place"]) < 0.1
    assert f["left"]["4"] == pytest.approx(0.25 + 0.25 / 4, rel=0.03)
