"""The page of recorded results: nothing recorded, something recorded, verdicts, stale records."""

import dataclasses
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest

from seal_lite import Config
from seal_lite.evaluation.scores import score_rows
from seal_lite.evaluation.statistics import deltas
from seal_lite.training.provenance import CODE, code_hash

ROOT = Path(__file__).parents[1]
TARGETS = ("pearson_residuals", "log1p_cp10k", "log1p_raw", "log1p_cp10k|depth")


@pytest.fixture(scope="module")
def page(book):
    return book("results")


def record(*, gain: float, classes=None, code=None) -> dict:
    """A metrics.json in which finetuning gains `gain` on every gene, exactly."""
    genes = list(classes or ["G0", "G1", "G2"])
    base = np.linspace(0.1, 0.3, len(genes))
    folds = []
    for test in ("S1", "S2"):
        scores = {}
        for features in ("tuned", "shuffled", "frozen", "frozen_best"):
            for target in TARGETS:
                found = (base + gain * (features == "tuned"))[None]
                scores |= {(features, p, target): found for p in ("hest", "tuned_ridge")}
        scores |= {("oracle", "none", target): 2 * base[None] for target in TARGETS}
        kept = {"effective_rank": 12.5, **({"region_accuracy": 0.625} if classes else {})}
        folds.append(
            {
                "test": test,
                "seed": 0,
                "scores": score_rows(scores, genes),
                "morphology": {"tuned": kept, "frozen": kept},
            }
        )
    provenance = {
        "sections": ["S1", "S2"],
        "data_sha256": "d" * 64,
        "config_sha256": "c" * 64,
        "code": list(CODE),
        "code_sha256": code or code_hash(),
        "commit": "abc",
        "seed": 0,
        "seeds": 1,
        "groups": "section",
        "device": "cpu",
        "versions": {"torch": "2"},
    }
    return {
        "data": "her2st",
        "backbone": "tf_efficientnet_lite0",
        "provenance": provenance,
        "classes": classes,
        "folds": folds,
        "delta": deltas(folds, classes),
    }


def written(page, tmp_path, **records) -> tuple[str, str]:
    """The page and the introduction's part that these records give."""
    results, out = tmp_path / "results", tmp_path / "book"
    results.mkdir()
    for name, value in records.items():
        (results / f"{name}.json").write_text(json.dumps(value))
    page.write(results, out)
    return (out / "results.md").read_text(), (out / "headline.md").read_text()


def test_says_what_is_not_recorded(page, tmp_path):
    text, headline = written(page, tmp_path)
    for name in ("her2st", "phantom", "her2st_figures", "bench"):
        assert f"there is no `results/{name}.json`" in text
    assert headline.count("Not recorded yet") == 2


@pytest.mark.parametrize(
    "gain, said",
    [
        (0.05, "higher in 8 and lower in 0; in 0"),
        (-0.05, "higher in 0 and lower in 8; in 0"),
        (0.0, "higher in 0 and lower in 0; in 8"),
    ],
)
def test_the_verdict_is_the_intervals(page, tmp_path, gain, said):
    text, headline = written(page, tmp_path, her2st=record(gain=gain))
    assert said in text and said in headline
    assert (tmp_path / "book/figures/results_her2st_deltas.png").exists()


def test_depth_confounded_targets_get_no_verdict(page, tmp_path):
    text, _ = written(page, tmp_path, her2st=record(gain=0.05))
    rows = [line for line in text.splitlines() if "| log1p CP10k |" in line and "[" in line]
    assert rows and all(line.endswith("| *(depth)* |") for line in rows)


def test_gene_classes_are_shares_of_the_oracle(page, tmp_path):
    classes = {"A": "visible", "B": "subtle", "C": "invisible"}
    text, _ = written(page, tmp_path, phantom=record(gain=0.0, classes=classes))
    assert re.search(r"\| frozen \| 0.625 \(0.625 to 0.625\) \| 12.5", text)
    assert re.search(r"\| visible \(1\sgenes\) \| A \|.* 50% \| 50% \|", text)


def test_a_record_of_other_code_is_stale(page, tmp_path):
    text, _ = written(page, tmp_path, her2st=record(gain=0.0, code="0" * 64))
    assert "{admonition} Stale" in text


@pytest.mark.parametrize(
    "code, beside, says",
    [
        (
            None,
            {"commit": "abc", "largest_difference": 0.0},
            "`abc`, side by side, give the same in",
        ),
        (
            None,
            {"test": "A", "seed": 7, "largest_difference": 0.01},
            "Fold A with seed 7, made again, and the record differ by at most 0.0100 in any of 3 scores",
        ),
        ("1" * 64, {"commit": "abc", "largest_difference": 0.0}, "Stale"),
    ],
)
def test_a_recheck_speaks_only_for_the_code_that_made_it(page, tmp_path, code, beside, says):
    again = {"code_sha256": code or code_hash(), "compared": 3, **beside}
    old = record(gain=0.0, code="0" * 64)
    text, _ = written(page, tmp_path, her2st=old, recheck={"her2st": again})
    assert says in text


def test_a_leak_that_was_allowed_is_shown(page, tmp_path):
    marked = record(gain=0.0) | {"leakage": ["sections S1 and S2 are both of patient S"]}
    text, _ = written(page, tmp_path, her2st=marked)
    assert "both of patient S" in text and "--allow-leakage" in text


def test_the_settings_table_has_every_setting(page):
    names = re.findall(r"^\|[^|]*\| `(\w+)` \|", page.settings(), flags=re.M)
    assert names == [field.name for field in dataclasses.fields(Config)]


def test_the_method_is_drawn_with_every_part(page):
    drawn = " ".join(text.get_text() for text in page.architecture().axes[0].texts)
    assert all(part in drawn for part in ("LoRA", "VAE", "contrast", "decoder", "frozen"))


def trials(gains: dict) -> dict:
    """Runs of book/trials.py in which each arm gains a known amount over the full recipe."""
    rng, runs = np.random.default_rng(0), []
    places = [
        "/".join(("tuned", p, t))
        for p in ("tuned_ridge", "hest")
        for t in ("pearson_residuals", "log1p_cp10k|depth")
    ]
    names = ("C2", "C3", "C4", "C5")
    level = {n: 0.4 + 0.05 * rng.random() for n in names}
    for arm, gain in {"full recipe": 0.0, **gains}.items():
        for seed, train in enumerate(itertools.combinations(names, 2)):
            held = [n for n in names if n not in train]
            scores = {
                n: dict.fromkeys(places, level[n] + (gain or 0.0)) | {"recall@10": 0.25}
                for n in held
            }
            failed = {"failed": "InputError: the loss is nan"}
            found = failed if gain is None else {"seconds": 60.0, **scores}
            runs.append(
                {
                    "arm": arm,
                    "train": list(train),
                    "seed": seed,
                    "scores": found,
                    "code": code_hash(),
                }
            )
    arms = {
        arm: {"group": "loss", "thought": "why", "expected": "better", "changes": {}}
        for arm in gains
    }
    if "no contrast" in arms:
        arms["no contrast"]["changes"] = {"w_clip": 0.0}
    provenance = record(gain=0.0)["provenance"] | {"sections": list(names), "seeds": 6}
    return {
        "provenance": provenance,
        "arms": arms | {"full recipe": {"group": "reference"}},
        "runs": runs,
    }


def test_ablation_says_what_earns_its_place(page, tmp_path):
    found = trials({"no contrast": -0.03, "rank 2": 0.0, "broken": None})
    text, _ = written(page, tmp_path, trials=found)
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    assert "**−0.030**<br>[−0.030" in rows["no contrast"] and "**" not in rows["rank 2"]
    assert re.search(r"\| full recipe \|.* 0.250 \| 60", text)
    assert "**Earns its place, as leaving it out lowers something:** contrast (residuals, B" in text
    assert "broke in all 6 runs" in rows["broken"] and "Unfinished" not in text
    found["runs"].pop()
    (tmp_path / "less").mkdir()
    assert "Unfinished: 23 of 24 runs" in written(page, tmp_path / "less", trials=found)[0]
    assert (tmp_path / "book/figures/results_ablation.png").exists()
    measured = (tmp_path / "book/defaults.md").read_text()
    assert re.search(r"\| `w_clip` 0.5 → 0 \| \*\*−0.030", measured)


def test_one_training_out_of_six_is_no_evidence(page):
    """The interval is over trainings: a gain that a single lucky one made contains 0."""
    found = trials({"lucky": 0.0})
    lucky = next(run for run in found["runs"] if run["arm"] == "lucky")["scores"]
    for name in ("C4", "C5"):
        lucky[name] = {k: v + 0.06 for k, v in lucky[name].items()}
    row = page.earned.difference(found, "lucky", "tuned/tuned_ridge/pearson_residuals")
    assert row["mean"] == pytest.approx(0.01) and row["ci95"][0] == pytest.approx(0.0)
    assert not page.earned.sure(row)


def test_a_trial_is_preferred_only_where_every_outer_fold_prefers_it(page, tmp_path):
    found = trials({"better": 0.02, "worse": -0.02, "mixed": 0.0})
    for run in found["runs"]:
        if run["arm"] == "mixed" and run["train"] == ["C2", "C3"]:
            for name in ("C4", "C5"):
                for key in run["scores"][name]:
                    run["scores"][name][key] += 0.05 if name == "C4" else -0.05
    written(page, tmp_path, trials=found)
    text = (tmp_path / "book/trial_log.md").read_text()
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    assert "every fold prefers it" in rows["better"] and "+0.020" in rows["better"]
    assert "no fold prefers it" in rows["worse"] and "the folds disagree" in rows["mixed"]


def test_what_the_chapter_says_of_the_trials_is_in_their_record(page):
    """The claims of book/trials.md, "What it came to", against results/trials.json."""
    record = json.loads((ROOT / "results/trials.json").read_text())
    r, recall = page.earned.PLACES["residuals, B"], "recall@10"

    def interval(arm, key=r, **other):
        return page.earned.difference(record, arm, key, **other)["ci95"]

    for arm in ("1 block", "2 blocks", "rank 2", "rank 8", "10 epochs", "near the base"):
        assert interval(arm)[1] < 0, arm
    for arm in (
        "4 blocks",
        "all blocks",
        "full finetuning",
        "regression only",
        "SigLIP",
        "targets by expression",
        "KL 1e-3",
        "averaged weights",
        "centre-weighted pooling",
        "no correlation",
        "no gene warm-up",
        "no smoothing",
    ):
        low, high = interval(arm)
        assert low < 0 < high, arm
    decoder = "tuned/decoder/pearson_residuals"
    for key in (recall, decoder):  # with a quarter of the counts: no smoothing, minus smoothing
        assert (
            interval("three parts fewer, a quarter", key, minus=("default, a quarter", key))[1] < 0
        )
    for arm, minus in (
        ("default", "full recipe"),
        ("default, a quarter", "a quarter of the counts"),
    ):
        for key in (r, recall):
            low, high = interval(arm, key, minus=(minus, key))
            assert low < 0 < high, arm
    assert -0.01 < page.earned.difference(record, "default", decoder)["mean"] < 0
    assert interval("no contrast", recall)[1] < -0.3
    assert page.earned.level(record, "no contrast", recall) < 2 * 10 / 180  # twice chance
    assert interval("no gene -> gene", recall)[1] < 0
    assert min(page.earned.votes(record, "two scales").values()) > 0
    for stage in range(1, 5):  # below the tuned encoder at equal inputs
        key = f"frozen blocks.{stage}/tuned_ridge/pearson_residuals"
        assert interval("two scales", key, minus=("two scales", r))[1] < 0
    assert interval("1.0 um/px, 10 epochs", recall)[1] < 0
    assert interval("warm-up on 24 more sections", recall)[1] < 0


def test_what_the_chapter_says_of_the_traps_is_in_their_record(page):
    """The claims of book/fool.md against results/fooled.json."""
    rows = json.loads((ROOT / "results/fooled.json").read_text())["rows"]
    wrong, right = ({r["trap"]: np.mean(r[k]) for r in rows} for k in ("wrong_r", "right_r"))
    assert wrong["raw counts"] > 2 * right["raw counts"]
    assert 0 < wrong["random spots"] - right["random spots"] < 0.05  # little
    assert wrong["no image at all"] > wrong["random spots"]  # beats the encoder
    assert abs(right["no image at all"]) < 0.1  # knows nothing
    small = wrong["genes of the test section"] - right["genes of the test section"]
    assert 0 < small < 0.02
    assert right["a probe without penalty"] > wrong["a probe without penalty"] + 0.02


def test_the_traps_are_shown_beside_the_way_around_them(page, tmp_path):
    rows = [{"trap": "t", "wrong": "w", "wrong_r": [0.5], "right": "x", "right_r": [0.25]}]
    traps = {"provenance": record(gain=0.0)["provenance"], "rows": rows}
    written(page, tmp_path, fooled=traps, her2st=record(gain=0.125))
    text = (tmp_path / "book/fooled_table.md").read_text()
    assert re.search(r"\| t \| w \| 0.500 \| x \| 0.250 \|", text) and "0.125" in text
