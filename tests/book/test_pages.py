"""Pages with computed values, from small results files made up here."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections import Counter
from pathlib import Path

import jupytext
import nbformat
import numpy as np
import pandas as pd
import pytest

from seal_lite import Config
from seal_lite.evaluation.statistics import differences, excludes_zero
from seal_lite.studies.plan import Plan
from seal_lite.studies.verdict import checklist

ROOT = Path(__file__).parents[2]
BOOK = ROOT / "book"
CLAIMS = ("pearson_residuals", "log1p_cp10k|depth")
TARGETS = ("pearson_residuals", "log1p_cp10k", "log1p_raw", "log1p_cp10k|depth")
FEATURES = ("tuned", "shuffled", "frozen", "frozen_best", "random_init", "colour", "log_depth")
PROVENANCE = {
    "sections": ["S1", "S2"],
    "data_sha256": "d" * 64,
    "config_sha256": "c" * 64,
    "package": "9.8.7",
    "commit": "abc",
    "seeds": 2,
    "device": "cpu",
    "versions": {"torch": "2"},
}


def row(mean, low, high, **fields):
    interval = {"mean": mean, "ci95": [low, high], "units": 4}
    return {"of": "tuned", "minus": "shuffled", **interval, **fields}


def fold(test, *, gain=0.0, seed=0, targets=TARGETS, genes=("G0", "G1", "G2"), oracle=False):
    """Scores in which finetuning gains `gain` on every gene."""
    scores = []
    for features, probe, target in itertools.product(FEATURES, ("hest", "tuned_ridge"), targets):
        r = dict.fromkeys(genes, 0.2 + gain * (features == "tuned"))
        place = {"features": features, "probe": probe, "target": target}
        scores.append({**place, "pcc": np.mean(list(r.values())), "per_gene": r})
    if oracle:
        for target in targets:
            r = dict.fromkeys(genes, 0.4)
            place = {"features": "oracle", "probe": "none", "target": target}
            scores.append({**place, "pcc": 0.4, "per_gene": r})
    measures = {"effective_rank": 12.5, "region_accuracy": 0.625, "robustness_index": 0.75}
    morphology = dict.fromkeys(FEATURES, measures)
    return {"test": test, "seed": seed, "scores": scores, "morphology": morphology}


def crossval(gain, classes=None, **more):
    """A cross-validation in which every difference is `gain`, to within 0.01."""
    genes = tuple(classes or ("G0", "G1", "G2"))
    delta = [
        row(gain, gain - 0.01, gain + 0.01, probe=probe, target=target) | {"minus": minus}
        for minus in ("frozen", "frozen_best", "shuffled")
        for probe in ("hest", "tuned_ridge", "decoder", "Loki")
        for target in TARGETS
    ]
    folds = [fold(test, gain=gain, genes=genes, oracle=bool(classes)) for test in ("S1", "S2")]
    return {
        "provenance": PROVENANCE,
        "classes": classes,
        "folds": folds,
        "delta": delta,
        **more,
    }


@pytest.fixture(scope="module")
def pages():
    import pages

    return pages


@pytest.fixture
def rendered(pages, tmp_path):
    """A function from a template and results to the text and the folder of its figures."""

    def render(template, **results):
        for name, value in results.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(value))
        return pages.render(template, results=tmp_path, drawings=tmp_path)

    return render


EVALUATION = '{% with name = "her2st" %}{% include "crossval.md" %}{% endwith %}'


@pytest.mark.parametrize(
    "low, high, expected",
    [(0.1, 0.2, "better"), (-0.2, -0.1, "worse"), (-0.1, 0.2, "no\N{NO-BREAK SPACE}difference")],
)
def test_the_verdict_is_the_intervals(pages, low, high, expected):
    assert pages.markdown.verdict(row((low + high) / 2, low, high)).strip("*") == expected
    assert pages.markdown.marked(row(0.1, low, high)).startswith("**") == ("diff" not in expected)


def test_numbers_have_a_real_minus(pages):
    interval = pages.markdown.interval(row(-0.01, -0.02, 0.005))
    assert interval.split() == ["−0.010", "[−0.020,", "+0.005]", "(4)"]
    assert pages.markdown.percent(-0.071, 1) == "−7.1%"


def test_few_units_or_one_get_no_verdict(pages):
    clear = row(0.15, 0.1, 0.2)
    assert pages.markdown.verdict(clear | {"units": 2}) == "too few units"
    assert pages.markdown.verdict(clear | {"units": 1, "ci95": None}) == "one unit"
    bootstrapped = {key: value for key, value in clear.items() if key != "units"}
    assert pages.markdown.verdict(bootstrapped) == "**better**"


def test_losses_and_nulls_are_counted_like_gains(pages):
    rows = [row(0.1, 0.05, 0.2), row(-0.1, -0.2, -0.05), row(0.0, -0.1, 0.1)]
    expected = "Of 3 differences, 1 are better, 1 worse and 1 no difference"
    assert pages.markdown.tally(rows) == f"{expected}."
    single = row(0.1, 0, 0) | {"ci95": None, "units": 1}
    counted = pages.markdown.tally([*rows, single])
    assert counted.startswith("Of 4") and "1 have too few units" in counted


def test_a_main_difference_is_an_interval_with_its_verdict(pages):
    for gain, verdict in ((0.125, "better"), (-0.125, "worse"), (0.0, "difference")):
        text = pages.evaluations.main_difference(crossval(gain), "frozen_best")
        assert text.startswith(pages.markdown.number(gain, "+.3f")) and "(4)" in text
        assert verdict in text


@pytest.mark.parametrize(
    "gain, word", [(0.05, "better"), (-0.05, "worse"), (0.0, "no\N{NO-BREAK SPACE}difference")]
)
def test_a_sections_first_sentence_follows_the_interval(pages, gain, word):
    text = pages.evaluations.claim_sentences(crossval(gain))
    assert text.count(word) == 4 and text.startswith("Probe B") and "Probe A" in text
    first = text.index(pages.markdown.number(gain, "+.3f"))
    assert first < text.index("best layer") < text.index("shuffled pairs")


def test_what_depth_explains_is_stated_with_what_is_left(pages):
    for gain, word in ((0.125, "better"), (-0.125, "worse"), (0.0, "difference")):
        text = pages.evaluations.depth_sentence(crossval(gain))
        assert "*r* = 0.200" in text  # log depth of the folds made up here
        assert text.count(word) >= 2 and text.count(pages.markdown.number(gain, "+.3f")) == 2


def headline_results(gain, *, own):
    """Results files of the headline: every difference is `gain`, HEST-bench's own score `own`."""
    delta = [
        row(own, own - 0.01, own + 0.01, probe="hest", target="hest_bench") | {"minus": minus}
        for minus in ("frozen", "frozen_best", "shuffled")
    ]
    blind = {"test": {"C6": "unseen section"}, "folds": [fold("C6", gain=gain)]}
    names = ("her2st", "her2st_transformer", "mob", "phantom", "phantom_transformer")
    results = {name: crossval(gain) for name in names}
    return {**results, "hest": {"her2st": {"delta": delta}}, "blind/her2st_a04a8d6": blind}


def test_the_headline_shows_a_loss_beside_the_gains(pages):
    load = headline_results(0.05, own=-0.05).__getitem__
    rows = pages.headline.headline_rows(load)
    assert [encoder for _, encoder, _ in rows].count("transformer") == 2
    (protocol,) = [cells for name, _, cells in rows if "protocol" in name]
    words = [pages.headline.headline_text(cell) for cell in protocol]
    assert words[:2] == ["–", "–"] and all("worse" in text for text in words[2:])
    (blind,) = [cells for name, _, cells in rows if "C6" in name]
    assert {pages.markdown.verdict(cell) for cell in blind} == {"one unit"}
    counted = pages.headline.headline_counts(load)
    assert "20 are better, 2 worse and 0 no difference; 4 have too few units" in counted


def test_a_query_below_chance_is_reported_as_such(pages):
    scores = {"genes": ["A", "B"], "z_hits": 0.3, "z_chance95": 0.4, "n": 9}
    run = {"section": "S", "retrieval": {**scores, "recall@10": 0.5, "chance@10": 0.1}}
    assert "expression no higher than that of 95%" in pages.evaluations.retrieval_sentence(run)
    run["retrieval"]["z_hits"] = 0.5
    assert "no higher" not in pages.evaluations.retrieval_sentence(run)


def test_a_claim_is_read_by_a_probe_on_a_target_that_discounts_depth(pages):
    rows = pages.evaluations.claims(crossval(0.05))
    assert {row["probe"] for row in rows} == {"hest", "tuned_ridge"}
    assert {row["target"] for row in rows} == set(CLAIMS)
    assert {row["minus"] for row in rows} == {"shuffled", "frozen_best"}


def test_depth_and_trained_heads_get_a_reason_instead_of_a_verdict(rendered, tmp_path):
    text = rendered(EVALUATION, her2st=crossval(0.05))
    lines = text.partition("Every difference")[2].splitlines()
    confounded = [line for line in lines if "| log1p CP10k |" in line]
    assert confounded and all(line.endswith("| *(depth)* |") for line in confounded)
    for head in ("decoder", "Loki"):
        own = [line for line in lines if f"| {head} | Pearson residuals |" in line]
        assert own and all(line.endswith(f"| *({head})* |") for line in own)
    assert (tmp_path / "results_her2st_deltas.png").exists()


def test_gene_classes_are_shares_of_the_oracle(rendered):
    classes = {"A": "visible", "B": "subtle", "C": "invisible"}
    subtlety = {"provenance": PROVENANCE, "rows": []}
    text = rendered(EVALUATION, her2st=crossval(0.1, classes), subtlety=subtlety)
    assert re.search(r"\| visible \(1 genes\) \| A \| 0.400 .* 50% \| 75% \|", text)
    assert "0.625 (0.625 to 0.625) | 12.5 (12.5 to 12.5)" in text


def test_an_allowed_leak_is_shown(rendered):
    leak = "sections S1 and S2 are both of patient S"
    shown = rendered(EVALUATION, her2st=crossval(0.0, leakage=[leak]))
    assert "sections S1 and S2 are of patient S" in shown
    assert "both sides" not in rendered(EVALUATION, her2st=crossval(0.0))


def test_a_result_names_what_it_was_measured_with(rendered):
    text = rendered(EVALUATION, her2st=crossval(0.0))
    for value in ("9.8.7", "`abc`", "`dddddddddddddddd`", "| 0, 1 |", "torch 2"):
        assert value in text
    assert "`make record-her2st` measures it again" in text


def test_an_absent_result_is_named(rendered):
    with pytest.raises(FileNotFoundError, match=r"nothing\.json: absent"):
        rendered('{{ load("nothing") }}')


def test_every_seam_with_other_software_is_exact_to_rounding():
    """As results/parity.json holds them; float32 rounds to 1e-7 of a value."""
    after = json.loads((ROOT / "results/parity.json").read_text())["after"]
    assert len(after) == 10
    assert max(after.values()) < 1e-6


def test_text_without_values_is_left_alone(rendered):
    assert rendered("$\\hat{x}$ {cite:p}`a`") == "$\\hat{x}$ {cite:p}`a`"


def test_hest_means_stand_beside_log_depth(pages):
    targets = ("hest_bench", "pearson_residuals")
    folds = [fold("a", gain=0.1, targets=targets) | {"r2": dict.fromkeys(FEATURES, 0.125)}]
    means = pages.evaluations.hest_means({"folds": folds, "classes": None})
    assert means.loc["tuned"].tolist() == pytest.approx([0.3, 0.125, 0.3])
    assert means.r["log_depth"] == pytest.approx(0.2)


def test_retrieval_is_a_share_and_its_gap_is_paired(pages):
    rows = [
        {
            "model": model,
            "seed": seed,
            "slide": slide,
            "direction": "genes to images",
            "scope": "slide",
            "random": 0.0,
            "oracle": 0.5,
            "found": 0.3 if model == "tuned" else 0.05,
        }
        for model in ("tuned", "shuffled")
        for seed in (0, 1)
        for slide in ("PA1", "PA2", "PB1", "PB2")
    ]
    record = {"rows": rows}
    question = "genes to images, slide"
    assert pages.evaluations.retrieval_gaps(record)[question]["ci95"] == pytest.approx([0.5, 0.5])
    assert pages.evaluations.retrieval_means(record).loc[question, "tuned"].share == pytest.approx(
        0.6
    )
    dots = pages.evaluations.retrieval_dots(record)[question]["tuned"]
    assert list(dots.index) == ["PA", "PB"]  # a dot per patient


def test_a_gene_set_finds_more_than_chance_only_above_95_percent_of_random_draws(pages):
    found = pages.evaluations.found_by_chance
    assert found({"z_hits": 0.5, "z_chance95": 0.4}) == "more than 95% of random draws do"
    assert "no more than 95%" in found({"z_hits": 0.3, "z_chance95": 0.4})


def test_sections_of_a_patient_are_named_in_one_clause(pages):
    pairs = [("C2", "C3"), ("C2", "C4"), ("C3", "C4")]
    sentences = [f"sections {a} and {b} are both of patient C" for a, b in pairs]
    text = pages.evaluations.leakage_text([*sentences, "X and Y have the same counts"])
    assert text == "sections C2, C3 and C4 are of patient C; X and Y have the same counts"


def test_slide_level_differences_that_exclude_0_are_listed(pages):
    def result(task, low):
        metric = pages.evaluations.SLIDE_METRICS[task]
        delta = row(0.1, low, 0.2, model="mean", metric=metric)
        return {"task": task, "seed": 0, "delta": [delta]}

    record = {"results": [result("mutation", 0.05), result("survival", -0.01)]}
    text = pages.evaluations.slide_verdicts(record, "shuffled")
    assert "excludes 0 in 1 of 2" in text and "mutation" in text and "survival" not in text


def test_a_slide_level_verdict_holds_for_every_seed(pages):
    def result(seed, low):
        delta = row(0.1, low, 0.2, model="mean", metric="auc")
        return {"task": "mutation", "seed": seed, "delta": [delta]}

    record = {"results": [result(0, 0.05), result(1, -0.01)]}
    (pooled,) = pages.evaluations.widest_intervals(record, "delta", ["of", "minus"])
    assert pooled["ci95"] == [-0.01, 0.2] and "difference" in pages.markdown.verdict(pooled)


def test_a_task_that_needs_more_patients_than_the_cohort_has_is_named(pages):
    def record(*needed):
        names = ("mutation", "response")
        rows = [
            row(0.2, 0.1, 0.3, task=task, patients=patients)
            for task, patients in zip(names, needed, strict=True)
        ]
        size = {"pilot_patients": 80, "most_patients": 200, "patients": 200}
        return {"power": {**size, "rows": rows}}

    sentences = pages.evaluations.power_sentences
    assert "fewer than the pilot asks for in response." in sentences(record(20, 548))
    assert "548 patients" in sentences(record(20, 548))
    assert "no number of patients" in sentences(record(20, None))
    assert "fewer" not in sentences(record(20, 132))


def test_a_shift_is_shown_in_out_and_as_a_gap(pages):
    targets = ("pearson_residuals",)
    inside = fold("not first", gain=0.1, targets=targets)
    outside = fold("first", targets=targets)
    scores = pages.evaluations.shift_scores({"classes": None, "folds": [inside, outside]})
    means = [scores[kind]["tuned"].mean() for kind in ("in", "out", "gap")]
    assert means == pytest.approx([0.3, 0.2, 0.1])


def test_a_gap_is_clear_only_where_its_interval_excludes_0(pages):
    def shift(gains):
        targets = ("pearson_residuals",)
        folds = []
        for site, gain in zip(("first", "second"), gains, strict=True):
            folds += [fold(f"not {site}", gain=gain, targets=targets), fold(site, targets=targets)]
        return {"classes": None, "folds": folds}

    loss, gain, unclear = shift((0.1, 0.1)), shift((-0.1, -0.1)), shift((0.1, -0.1))
    text = pages.evaluations.shift_text
    assert "0.300 in and 0.200 out" in text(loss, "tuned") and "a loss" in text(loss, "tuned")
    assert "a gain" in text(gain, "tuned")
    assert "no clear gap" in text(unclear, "tuned")
    count = pages.evaluations.count_clear_gaps
    assert count([loss, gain, unclear], "tuned").startswith("2 of 3")
    assert count([unclear], "tuned").startswith("none of 1")


def test_the_largest_pitfall_is_the_largest_difference(pages):
    traps = [
        {"trap": "small", "wrong_r": [0.9, 0.7], "right_r": [0.7, 0.7]},
        {"trap": "large", "wrong_r": [0.5, 0.5], "right_r": [0.0, 0.1]},
    ]
    assert pages.evaluations.largest_pitfall({"rows": traps})["trap"] == "large"


def test_a_forest_plot_fills_what_leaves_the_null_out(pages):
    points = [row(0.1, 0.05, 0.2, row="a", series="hest")]
    points.append(row(0.5, 0.4, 0.6, row="b", series="hest", null=0.5))
    (ax,) = pages.figures.forest(points).axes
    fills = [line.get_markerfacecolor() for line in ax.lines if line.get_marker() == "o"]
    assert [fill == "white" for fill in fills] == [False, True]


KEYS = [f"tuned/{probe}/{target}" for probe in ("tuned_ridge", "hest") for target in CLAIMS]
MAIN = KEYS[0]
SECTIONS = ("C2", "C3", "C4", "C5")


def trials(gains):
    """Runs of benchmarks/trials.py in which each arm gains a known amount over the full recipe."""
    rng = np.random.default_rng(0)
    level = {name: 0.4 + 0.05 * rng.random() for name in SECTIONS}
    runs = []
    for arm, gain in {"full recipe": 0.0, **gains}.items():
        for seed, train in enumerate(itertools.combinations(SECTIONS, 2)):
            scores = {"failed": "InputError: the loss is nan"}
            if gain is not None:
                scores = {"seconds": 60.0}
                for name in (name for name in SECTIONS if name not in train):
                    scores[name] = dict.fromkeys(KEYS, level[name] + gain)
                    scores[name]["recall@10"] = 0.25
            runs.append({"arm": arm, "train": list(train), "seed": seed, "scores": scores})
    about = {"group": "loss", "thought": "why", "expected": "better", "changes": {}}
    arms = {arm: dict(about) for arm in ("full recipe", *gains)}
    provenance = PROVENANCE | {"sections": list(SECTIONS), "seeds": 6}
    return {"provenance": provenance, "arms": arms, "runs": runs}


def test_the_ablation_says_which_parts_make_a_difference(pages):
    worth = pages.ablation.parts_by_worth(
        trials({"no contrast": -0.03, "no noise": 0.0, "no x": None})
    )
    assert worth["same"] == ["noise"] and worth["higher"] == []
    assert worth["lower"] == ["contrast (residuals, B, given depth, B, residuals, A)"]


def test_one_training_out_of_six_is_no_evidence(pages):
    """The interval is over trainings: a gain that a single lucky one made contains 0."""
    record = trials({"lucky": 0.0})
    lucky = next(run for run in record["runs"] if run["arm"] == "lucky")
    for name in ("C4", "C5"):
        lucky["scores"][name][MAIN] += 0.06
    gap = pages.ablation.difference(record, "lucky", MAIN)
    assert gap["mean"] == pytest.approx(0.01) and not excludes_zero(gap)


def test_a_trial_is_preferred_only_where_every_outer_fold_prefers_it(pages):
    record = trials({"better": 0.02, "worse": -0.02, "mixed": 0.0})
    for run in record["runs"]:
        if run["arm"] == "mixed" and run["train"] == ["C2", "C3"]:
            run["scores"]["C4"][MAIN] += 0.05
            run["scores"]["C5"][MAIN] -= 0.05
    votes = {arm: pages.ablation.votes(record, arm) for arm in ("better", "worse", "mixed")}
    decisions = {arm: pages.ablation.decision(list(seen.values())) for arm, seen in votes.items()}
    assert decisions["better"] == "every fold prefers it"
    assert decisions["worse"] == "no fold prefers it"
    assert decisions["mixed"] == "the folds disagree"
    # The fold whose test section is C4 sees the loss on C5, and not the gain on C4.
    assert votes["mixed"]["C4"] < 0 < votes["mixed"]["C5"]


def test_trials_are_counted_by_their_intervals(pages):
    record = trials({"better": 0.02, "worse": -0.02, "same": 0.0, "broken": None})
    text = pages.ablation.trial_counts(record)
    assert "1 of 3 trials make no difference" in text
    assert "1 (better) are better and 1 (worse) worse" in text
    assert text.endswith("Every outer fold prefers better.")


def test_the_checklist_page_asks_what_a_study_answers():
    origin = {"data_sha256": "d", "config_sha256": "c"}
    plan = Plan(
        by="patient",
        reason="",
        units=4,
        train_groups=None,
        seeds=1,
        epochs=1,
        recipe_epochs=1,
        seconds={},
        seconds_of_cache=0.0,
        memory_gb=1.0,
        disk_gb=1.0,
        smallest_gain=0.1,
    )
    rows = checklist({"provenance": origin, "classes": None}, plan, leakage=[])
    page = (BOOK / "checklist.md").read_text()
    asked = re.findall(r"^\| ([^|]+) \|", page, re.M)
    assert [question for question, _ in rows] == asked[1:]


def test_a_setting_is_listed_with_what_it_is_worth(rendered):
    record = trials({"no contrast": -0.03, "variant": 0.5, "broken": None})
    record["arms"]["no contrast"]["changes"] = {"w_clip": 0.0}
    record["arms"]["variant"]["changes"] = {"w_clip": 0.0}  # and something beside it
    text = rendered('{% include "changed_settings.md" %}', trials=record)
    assert text.count("`w_clip` = 0") == 1 and "| **−0.030**<br>[−0.030" in text
    assert "Unfinished" not in text


def test_unfinished_trials_are_marked(rendered):
    record = trials({"x": 0.0})
    record["runs"].pop()
    template = '{% set trials = load("trials") %}{% include "unfinished.md" %}'
    assert "Unfinished: 11 of 12 runs" in rendered(template, trials=record)


def test_a_pitfall_stands_beside_the_way_around_it(rendered):
    traps = [{"trap": "t", "wrong": "w", "wrong_r": [0.5], "right": "x", "right_r": [0.25]}]
    pitfalls = {"provenance": PROVENANCE, "rows": traps}
    text = rendered('{% include "pitfalls.md" %}', pitfalls=pitfalls, her2st=crossval(0.125))
    assert "| t | w | 0.500 | x | 0.250 |" in text and "0.125" in text


def test_the_table_of_settings_has_every_setting_and_says_what_it_means(pages):
    rows = pages.ablation.settings()
    assert [name for _, name, *_ in rows] == [field.name for field in dataclasses.fields(Config)]
    assert [name for _, name, *_, meaning in rows if not meaning] == []


def test_the_table_of_executed_chapters_has_their_titles_and_times(pages, tmp_path):
    run = {"duration": 12.3, "end_time": "2026-01-02T03:04:05.6"}
    cells = [nbformat.v4.new_markdown_cell("# A chapter\n\n**Why?**")]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"papermill": run})
    nbformat.write(notebook, tmp_path / "01_x.ipynb")
    rows = pages.chapters.executed_rows(tmp_path)
    assert rows == [("notebooks/01_x.ipynb", "A chapter", 12.3, "2026-01-02 03:04")]


def test_what_is_to_be_cited_is_what_the_repository_says(pages):
    assert "version = {" in pages.bibtex("software")
    for key in ("hemker2026seal", "andersson2021her2st", "jaume2024hest"):
        assert pages.bibtex(key).startswith("@") and pages.bibtex(key).count("@") == 1


def test_every_page_can_be_filled_in_from_the_results_of_the_repository(pages, tmp_path):
    texts = {path.name: path.read_text() for path in BOOK.glob("*.md")}
    for name in ("pitfalls.md", "changed_settings.md", "decision_guide.md"):  # in chapters
        texts[name] = f'{{% include "{name}" %}}'
    for path in (ROOT / "notebooks").glob("*.py"):
        markdown = [c.source for c in jupytext.read(path).cells if c.cell_type == "markdown"]
        texts[path.name] = "\n\n".join(markdown)
    for name, text in texts.items():
        filled_in = pages.render(text, drawings=tmp_path)
        assert "{{ " not in filled_in and "{% " not in filled_in, name


@pytest.mark.parametrize(
    "name",
    [
        "her2st",
        "her2st_transformer",
        "mob",
        "phantom",
        "phantom_transformer",
        "shift_stain",
        "shift_regions",
        "shift_batch",
    ],
)
def test_stored_differences_are_those_that_the_code_computes(name):
    result = json.loads((ROOT / f"results/{name}.json").read_text())
    for key, rows in differences(result).items():
        assert result[key] == rows


def test_every_dependency_states_a_licence_and_no_copyleft_is_needed(pages):
    declared = pages.licences.declared()
    optional = [*declared.pop("elsewhere"), *declared.pop("openslide")]
    packages = [package for group in declared.values() for package in group]
    licences = pages.licences.installed_with(packages)
    copyleft = [name for name, text in licences.items() if "GNU" in text or "GPL" in text]
    assert [name for name in copyleft if ";" not in licences[name]] == []  # a list offers a choice
    direct = {package: text for _, package, text in pages.licences.licence_rows()}
    assert [name for name, text in direct.items() if text == "not stated"] == []
    of_optional = {name: direct.get(name, "") for name in optional}
    copyleft = {name for name, text in of_optional.items() if "GNU" in text or "GPL" in text}
    assert copyleft <= {"igraph", "openslide-bin", "openslide-python"}  # which the page names


def test_a_blind_score_is_the_mean_over_seeds_with_each_seed_beside_it(pages):
    record = {"folds": [fold("C6", gain=0.1), fold("C6", gain=0.2, seed=1), fold("B4", gain=0.9)]}
    scores = pages.evaluations.seed_scores(record, "C6", "hest")
    assert scores["tuned"] == pytest.approx([0.3, 0.4])
    assert pages.evaluations.seed_text(scores["tuned"]) == "0.350 (0.300, 0.400)"
    assert pages.evaluations.seed_text(scores["frozen"]) == "0.200"
    gap = pages.evaluations.seed_gap(scores, "tuned", "frozen")
    assert gap == "+0.150 (+0.100, +0.200)"


@pytest.mark.parametrize("name", ["control_trials", "transformer_control_trials", "idea_trials"])
def test_every_trial_that_is_listed_has_all_its_runs(name):
    """A page names no arm without a score, and each has six trainings beside its recipe's."""
    listed = pd.read_csv(ROOT / f"benchmarks/{name}.tsv", sep="\t")["arm"]
    runs = json.loads((ROOT / f"results/{name}.json").read_text())["runs"]
    counted = Counter(run["arm"] for run in runs if "failed" not in run["scores"])
    assert counted == dict.fromkeys(listed, 6)


def test_trials_of_another_list_stand_beside_the_same_trainings(pages):
    base = trials({"recipe": 0.0, "other": 0.5})
    more = trials({"idea": 0.02})
    more["runs"] = [run for run in more["runs"] if run["arm"] == "idea"]
    record = pages.ablation.beside(base, ["recipe"], more)
    assert pages.ablation.arms_of(record) == ["recipe", "idea"]
    gap = pages.ablation.difference(record, "idea", MAIN)
    assert gap["mean"] == pytest.approx(0.02) and gap["units"] == 6
