"""The results page's sections on the paper's other evaluations, from records made up here."""

import itertools
import json
import re

import numpy as np
import pytest

from seal_lite.evaluation.crossval import IN, shifted
from seal_lite.evaluation.scores import score_rows
from seal_lite.evaluation.statistics import deltas
from seal_lite.training.provenance import CODE, code_hash

GENES = ["G0", "G1", "G2"]
FEATURES = ("tuned", "shuffled", "frozen", "frozen_best", "random_init", "colour", "log_depth")
PROVENANCE = {
    "sections": ["S1"],
    "data_sha256": "d" * 64,
    "config_sha256": "c" * 64,
    "code": list(CODE),
    "code_sha256": code_hash(),
    "commit": "abc",
    "seed": 0,
    "device": "cpu",
    "versions": {"torch": "2"},
}
ENCODERS = ("frozen", "shuffled", "tuned", "oracle")


@pytest.fixture(scope="module")
def benches(book):
    return book("benches")


@pytest.fixture
def written(benches, tmp_path):
    """A function from records to the page's text."""

    def write(**records):
        (tmp_path / "figures").mkdir(exist_ok=True)
        for name, value in records.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(value))
        return "\n".join(benches.sections(tmp_path, tmp_path))

    return write


def fold(test, seed, gain, targets):
    base = np.linspace(0.2, 0.3, 3)
    scores = {
        (f, p, t): (base + gain * (f == "tuned"))[None]
        for f in FEATURES
        for p in ("hest", "tuned_ridge")
        for t in targets
        if (p, t) != ("tuned_ridge", "hest_bench")
    }
    return {"test": test, "seed": seed, "scores": score_rows(scores, GENES)}


def row(text: str, *cells) -> list[str]:
    """The cells of the table's only row that begins with `cells`."""
    lines = ([c.strip() for c in line.strip("| \n").split("|")] for line in text.splitlines())
    (found,) = [line for line in lines if line[: len(cells)] == list(cells)]
    return found[len(cells) :]


def test_says_what_is_not_recorded(written, benches, tmp_path):
    text = written()
    for name in ("hest", "retrieval", "cohort", "shift_stain", "shift_batch"):
        assert f"there is no `results/{name}.json`" in text


@pytest.mark.parametrize("gain, said", [(0.05, "**higher**"), (-0.05, "**lower**")])
def test_hest_bench_stands_beside_log_depth(written, gain, said):
    targets = ("hest_bench", "pearson_residuals")
    folds = [
        fold(t, s, gain, targets) | {"r2": dict.fromkeys(FEATURES, 0.125)}
        for t in ("a", "b")
        for s in (0, 1)
    ]
    result = {
        "data": "her2st",
        "classes": None,
        "provenance": PROVENANCE,
        "folds": folds,
        "delta": deltas(folds),
    }
    text = written(hest={"her2st": result})
    assert "her2st: 2 folds, 2 seeds" in text and "Stale" not in text
    assert row(text, "**finetuned**") == [f"{0.25 + gain:.3f}", "0.125", f"{0.25 + gain:.3f}"]
    assert row(text, "log depth")[0] == "0.250"
    assert row(text, "**finetuned** − shuffled pairs")[-1] == said


def test_retrieval_is_a_share_and_its_gap_is_paired(written):
    rows = [
        {
            "model": m,
            "seed": seed,
            "slide": slide,
            "direction": "genes to images",
            "scope": scope,
            "random": 0.0,
            "oracle": 0.5,
            "found": 0.3 if m == "tuned" else 0.05,
            "recall@10": 0.25,
            "chance@10": 0.05,
            "median_rank": 9.0,
            "n": 200,
        }
        for m in ("tuned", "shuffled")
        for seed in (0, 1)
        for slide in ("PA1", "PA2", "PB1", "PB2")
        for scope in ("slide", "other patients")
    ]
    sets = [
        {
            "model": m,
            "seed": 0,
            "set": "T",
            "slide": "PA1",
            "found": 1.5,
            "random": 0.5,
            "oracle": 2.5,
        }
        for m in ("tuned", "shuffled")
    ]
    text = written(retrieval={"provenance": PROVENANCE, "rows": rows, "sets": sets})
    cells = row(text, "genes to images, other patients")
    assert cells[:6] == ["0.000", "0.050", "0.300", "0.500", "10%", "60%"]
    assert cells[6].startswith("+0.500") and cells[7] == "**higher**"
    assert row(text, "genes to images, slide", "25.0%") == ["5.0%", "9", "200"]
    assert row(text, "T") == ["0.500", "1.500", "1.500", "2.500"]


def test_a_slide_level_verdict_holds_for_every_seed(written, benches):
    def result(task, seed, low):
        metric = benches.FIRST[task]
        scores = [
            {"features": e, "model": m, "metric": metric, "mean": 0.5 + 0.1 * i, "ci95": [0.4, 0.9]}
            for i, e in enumerate(ENCODERS)
            for m in benches.MODELS
        ]
        delta = [
            {
                "of": of,
                "minus": minus,
                "model": m,
                "metric": metric,
                "mean": 0.1,
                "ci95": [low, 0.2],
            }
            for minus, of in itertools.combinations(ENCODERS, 2)
            for m in benches.MODELS
        ]
        return {"task": task, "seed": seed, "samples": 60, "scores": scores, "delta": delta}

    results = [
        result("mutation", 0, 0.05),
        result("mutation", 1, 0.01),
        result("activity", 0, 0.05),
        result("activity", 1, -0.01),
    ]
    text = written(cohort={"provenance": PROVENANCE, "slides": 75, "results": results})
    assert "60 patients, 75 slides" in text and "2 finetuning seeds" in text
    assert row(text, "mutation, AUC", "ABMIL") == ["0.500", "0.600", "0.700", "0.800"]
    start = "**finetuned** − frozen"
    assert row(text, start, "mutation, AUC", "ABMIL")[-1] == "**higher**"
    assert "no" in row(text, start, "activity, *r*", "ABMIL")[-1]  # one seed's crosses zero


def test_a_shift_is_shown_in_out_and_as_a_gap(written):
    targets = ("pearson_residuals",)
    folds = []
    for site in ("first", "second"):
        for test, gain in ((site, 0.0), (IN + site, 0.1)):
            kept = {f: {"robustness_index": 0.75} for f in FEATURES}
            folds.append(fold(test, 0, gain, targets) | {"morphology": kept})
    result = {"classes": None, "provenance": PROVENANCE, "folds": folds}
    result |= {f"delta_{k}": deltas(part) for k, part in shifted(folds).items()}
    text = written(shift_stain=result)
    assert row(text, "**finetuned**") == ["0.350", "0.250", "0.100", "0.75"]
    for kind, said in (("in", "higher"), ("out", "no"), ("gap", "higher")):
        cells = row(text, "**finetuned** − shuffled pairs", kind)
        assert re.match(rf"\**{said}", cells[-1])
