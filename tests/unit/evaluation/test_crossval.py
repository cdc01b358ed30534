"""Leave one group out, end to end on a tiny phantom: nothing of the held-out section is seen."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import TINY

from seal_lite.data.genes import GenePanel
from seal_lite.data.phantom import phantom
from seal_lite.data.phantom.truth import gene_classes, read_truth
from seal_lite.data.section import Section, load_sections
from seal_lite.errors import InputError
from seal_lite.evaluation import targets as tg
from seal_lite.evaluation.crossval import (
    crossval,
    folds_of,
    groups_of,
    run_fold,
    shift_folds,
    shifted,
)
from seal_lite.evaluation.features import colour_statistics
from seal_lite.evaluation.scores import genes_to_score, probe_scores, score_rows, summary, tidy
from seal_lite.evaluation.statistics import deltas
from seal_lite.model.seal import SEAL
from seal_lite.training.loop import finetune

CONFIG = replace(TINY, epochs=1, n_views=2)
FEATURES = {"tuned", "shuffled", "frozen", "frozen_best", "random_init", "colour", "log_depth"}
TARGETS = {*tg.TARGETS, tg.PARTIAL}


@pytest.fixture(scope="module")
def finished(phantom_root, sections, tmp_path_factory):
    """(folder, result) of a cross-validation by patient with one seed."""
    out = tmp_path_factory.mktemp("cv") / "out"
    run = {"by": "patient", "seeds": 1, "out": out, "progress": False}
    return out, crossval(phantom_root, sections, CONFIG, **run)


def test_metrics_have_the_documented_keys(finished, phantom_root):
    out, result = finished
    assert json.loads((out / "metrics.json").read_text()) == result
    assert set(result) == {"data", "backbone", "provenance", "classes", "folds", "delta"}
    assert (result["data"], result["backbone"]) == ("phantom", "tf_efficientnet_lite0")
    assert [(f["test"], f["seed"]) for f in result["folds"]] == [("PA", 0), ("PB", 0)]
    classes = gene_classes(phantom_root)
    assert result["classes"] == classes and set(classes.values()) == {
        "visible",
        "subtle",
        "invisible",
    }
    for fold in result["folds"]:
        found = {(s["features"], s["probe"], s["target"]) for s in fold["scores"]}
        expected = {(f, p, t) for f in FEATURES for p in ("hest", "tuned_ridge") for t in TARGETS}
        expected |= {(f, "decoder", t) for f in ("tuned", "shuffled") for t in TARGETS}
        expected |= {(f, "none", t) for f in ("neighbours", "ceiling", "oracle") for t in TARGETS}
        assert found == expected and len(found) == len(fold["scores"])
        for s in fold["scores"]:
            r = list(s["per_gene"].values())
            assert list(s["per_gene"]) == list(classes) and np.abs(r).max() <= 1
            assert s["pcc"] == pytest.approx(np.mean(r), abs=1e-4)
        assert set(fold["morphology"]) == FEATURES
        kept = {k: v["region_accuracy"] for k, v in fold["morphology"].items()}
        assert all(0 < v < 1 for v in kept.values()) and len(set(kept.values())) > 1
    assert not (out / "cache").exists()  # gigabytes on real data


def test_deltas_are_paired_differences_overall_and_by_class(finished):
    _, result = finished
    table = tidy(result)
    mean = table.groupby(["features", "probe", "target"])["r"].mean()
    by_class = table.groupby(["features", "probe", "target", "class"])["r"].mean()
    seen = set()
    for d in result["delta"]:
        place = (d["probe"], d["target"])
        extra = (d["class"],) if "class" in d else ()
        means = by_class if extra else mean
        expected = means[d["of"], *place, *extra] - means[d["minus"], *place, *extra]
        assert d["mean"] == pytest.approx(expected, abs=2e-4)
        low, high = d["ci95"]
        assert low <= d["mean"] <= high
        seen.add((d["of"], d["minus"], *place, d.get("class")))
    kinds = [None, "visible", "subtle", "invisible"]
    expected = {
        ("tuned", m, p, t, k)
        for m, p in (
            ("frozen", "hest"),
            ("frozen", "tuned_ridge"),
            ("frozen_best", "hest"),
            ("frozen_best", "tuned_ridge"),
            ("shuffled", "hest"),
            ("shuffled", "tuned_ridge"),
            ("shuffled", "decoder"),
        )
        for t in TARGETS
        for k in kinds
    }
    assert seen == expected and len(result["delta"]) == len(seen)


def test_every_group_held_out_is_scored_by_itself(phantom_root, sections, monkeypatch, tmp_path):
    """One training serves several test groups; none of their scores depends on the others."""

    def untrained(train, config, *, include, **_):
        return SEAL.build(GenePanel.from_config(train, config, include=include), config), []

    monkeypatch.setattr(cv, "finetune", untrained)
    genes = genes_to_score(phantom_root, sections[:1])
    run = (genes, CONFIG, tmp_path)
    tests = {"A": sections[:1], "B": sections[1:]}
    both = run_fold(phantom_root, sections[:1], tests, *run)
    (alone,) = run_fold(phantom_root, sections[:1], {"B": sections[1:]}, *run)
    assert [f["test"] for f in both] == ["A", "B"] and both[1] == alone
    assert both[0]["scores"] != alone["scores"]


def test_table_is_tidy(finished):
    out, result = finished
    table = pd.read_csv(out / "per_gene.csv")
    assert list(table) == ["test", "seed", "features", "probe", "target", "gene", "class", "r"]
    assert len(table) == sum(len(s["per_gene"]) for f in result["folds"] for s in f["scores"])
    assert not table.isna().any().any()
    summary = summary(result)
    assert set(summary.columns) == TARGETS
    one = table.query("features == 'colour' and probe == 'hest' and target == 'log1p_raw'").r.mean()
    assert summary.loc[("colour", "hest"), "log1p_raw"] == pytest.approx(one)


def test_oracle_bounds_what_depth_and_colour_can_do(finished):
    """On declared genes the truth itself must beat the controls, or the harness is broken."""
    r = summary(finished[1])["pearson_residuals"]
    assert r["oracle", "none"] > r["colour", "tuned_ridge"] + 0.1
    assert r["oracle", "none"] > r["log_depth", "tuned_ridge"] + 0.1
    assert r["oracle", "none"] < r["ceiling", "none"] + 0.05


def _crossval(finished, root, sections, *, config=CONFIG, by="patient"):
    run = {"by": by, "seeds": 1, "out": finished[0], "progress": False}
    return crossval(root, sections, config, **run)


def test_finished_folds_are_not_run_again(finished, phantom_root, sections, monkeypatch):
    monkeypatch.setattr(cv, "run_fold", lambda *_, **__: pytest.fail("run again"))
    assert _crossval(finished, phantom_root, sections)["folds"] == finished[1]["folds"]
    lost = finished[0] / "folds/PB-0.json"
    kept = lost.read_text()
    lost.unlink()
    calls = []

    def only_this(root, train, tests, genes_, config, *_, **__):
        ((name, (section,)),) = tests.items()
        calls.append(([s.name for s in train], name, section.name, config.seed))
        return json.loads(kept)

    monkeypatch.setattr(cv, "run_fold", only_this)
    again = _crossval(finished, phantom_root, sections)
    lost.write_text(kept)
    assert calls == [(["PA1"], "PB", "PB1", 0)]
    for one, other in zip(again["folds"], finished[1]["folds"], strict=True):
        assert [s["per_gene"] for s in one["scores"]] == [s["per_gene"] for s in other["scores"]]


def test_the_encoders_of_a_fold_are_kept_and_give_its_scores(
    finished, phantom_root, sections, monkeypatch
):
    monkeypatch.setattr("seal_lite.train.Pairs", lambda *_, **__: pytest.fail("finetuned again"))
    kept = finished[0] / "runs/PB-0"
    assert SEAL.from_pretrained(kept / "tuned").config.seed == 0
    fold = finished[0] / "folds/PB-0.json"
    before = fold.read_text()
    fold.unlink()
    _crossval(finished, phantom_root, sections)
    assert fold.read_text() == before


def test_other_settings_or_data_are_refused(finished, phantom_root, sections, tmp_path):
    for change in ({"config": replace(CONFIG, epochs=2)}, {"by": "section"}):
        with pytest.raises(InputError, match=str(finished[0])):
            _crossval(finished, phantom_root, sections, **change)
    with pytest.raises(InputError, match="holds other work"):
        _crossval(finished, phantom_root, sections[::-1])
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not of this work"):
        _crossval((tmp_path,), phantom_root, sections)
    with pytest.raises(InputError, match="--groups"):
        groups_of(sections, "slide")
    with pytest.raises(InputError, match="all sections belong to 'PA'"):
        groups_of(sections[:1], "patient")


def test_folds_hold_out_one_group_or_train_on_few():
    groups = ["A", "A", "B", "C", "D", "E"]
    sections = ["A1", "A2", "B1", "C1", "D1", "E1"]
    one = list(folds_of(sections, groups))
    assert [list(tests) for _, tests in one] == [["A"], ["B"], ["C"], ["D"], ["E"]]
    assert one[0] == (["B1", "C1", "D1", "E1"], {"A": ["A1", "A2"]})
    ((train, tests),) = folds_of(sections, groups, 2)
    assert train == ["A1", "A2", "B1"] and tests == {"C": ["C1"], "D": ["D1"], "E": ["E1"]}
    for k in (5, 0):
        with pytest.raises(InputError, match="--train-groups"):
            list(folds_of(sections, groups, k))


def _labelled(name, patient, **labels):
    uns = {"section_id": name, "patient_id": patient, "labels": labels}
    return Section(SimpleNamespace(uns=uns), None, None)


def test_a_shift_holds_out_a_group_and_a_quarter_of_the_others_patients():
    sections = [
        _labelled(f"{p}{i}", p, stain="old" if p < "F" else "new")
        for p in "ABCDEFG"
        for i in (1, 2)
    ]
    groups = groups_of(sections, "stain")
    folds = [
        ([s.name for s in train], {k: [s.name for s in v] for k, v in tests.items()})
        for train, tests in shift_folds(sections, groups)
    ]
    assert folds[0] == (
        ["F1", "F2"],
        {"old": [f"{p}{i}" for p in "ABCDE" for i in (1, 2)], "not old": ["G1", "G2"]},
    )
    assert folds[1] == (
        [f"{p}{i}" for p in "ABC" for i in (1, 2)],
        {"new": ["F1", "F2", "G1", "G2"], "not new": ["D1", "D2", "E1", "E2"]},
    )
    with pytest.raises(InputError, match="new: has one patient"):
        list(shift_folds(sections[:-2], groups[:-2]))
    with pytest.raises(InputError, match="--groups organ: not known of section A1"):
        groups_of(sections, "organ")


def test_gap_is_the_difference_of_in_and_out_gene_by_gene():
    def fold(test, seed, tuned, frozen):
        return {
            "test": test,
            "seed": seed,
            "scores": [
                {"features": f, "probe": "hest", "target": "log1p_raw", "per_gene": r}
                for f, r in (("tuned", tuned), ("frozen", frozen))
            ],
        }

    folds = [
        fold("new", 0, {"a": 0.3, "b": 0.1}, {"a": 0.2, "b": 0.1}),
        fold("not new", 0, {"a": 0.5, "b": 0.4}, {"a": 0.3, "b": 0.3}),
    ]
    parts = shifted(folds)
    assert {k: [f["test"] for f in v] for k, v in parts.items()} == dict.fromkeys(
        ("in", "out", "gap"), ["new"]
    )
    gap = [s["per_gene"] for s in parts["gap"][0]["scores"]]
    assert gap == [pytest.approx({"a": 0.2, "b": 0.3}), pytest.approx({"a": 0.1, "b": 0.2})]
    (difference,) = deltas(parts["gap"])
    assert difference["mean"] == pytest.approx(0.1)


def test_a_shift_is_scored_in_and_out_of_distribution(tmp_path, monkeypatch):
    """End to end, with training left out: four patients of two sites."""

    def untrained(train, config, *, include, **_):
        return SEAL.build(GenePanel.from_config(train, config, include=include), config), []

    monkeypatch.setattr(cv, "finetune", untrained)
    root = phantom(
        tmp_path / "p",
        patients=4,
        sections_per_patient=1,
        spots=40,
        um_per_px=1.0,
        shift="stain",
        progress=False,
    )
    sections = load_sections(root, patch_px=64)
    assert [s.label("stain") for s in sections] == ["first site", "second site"] * 2
    run = {"by": "stain", "seeds": 1, "out": tmp_path / "cv", "progress": False}
    result = crossval(root, sections, CONFIG, **run)
    tests = ["first site", "not first site", "second site", "not second site"]
    assert [f["test"] for f in result["folds"]] == tests
    assert {d["mean"] for d in result["delta_gap"]} != {0.0}
    with pytest.raises(InputError, match="--train-groups"):
        crossval(root, sections, CONFIG, train_groups=1, **run | {"out": tmp_path / "other"})


def test_a_fold_is_fitted_without_its_held_out_section(phantom_root, tmp_path, monkeypatch):
    """Real data's path (no declared genes): garbling the test section changes neither the genes
    to predict nor the panel of its fold."""
    monkeypatch.setattr("seal_lite.evaluate.gene_classes", lambda root: None)
    monkeypatch.setattr(cv, "gene_classes", lambda root: None)
    real = finetune

    def record(train, config, *, include, **options):
        monkeypatch.setattr("seal_lite.train.Pairs", lambda s, panel, *_, **__: stop(panel))
        return real(train, config, include=include, **options)

    def stop(panel):
        raise _Fitted(panel)

    def panels(sections, out):
        found = {}

        def fold(root, train, tests, genes, config, *_, **__):
            ((name, test),) = tests.items()
            with pytest.raises(_Fitted) as caught:
                record(train, config, include=genes, progress=False)
            panel = caught.value.panel
            found[test[0].name] = (list(genes), panel.genes, panel.mean.tolist())
            scores = {("tuned", "hest", t): np.zeros((1, len(genes))) for t in TARGETS}
            rows = score_rows(scores, genes)
            return [{"test": name, "seed": config.seed, "scores": rows, "morphology": {}}]

        monkeypatch.setattr(cv, "run_fold", fold)
        crossval(phantom_root, sections, CONFIG, seeds=1, out=out, progress=False)
        return found

    sections = load_sections(phantom_root, patch_px=64)
    common = sections[0].adata.var_names.intersection(sections[1].adata.var_names)
    for s in sections:
        s.adata = s.adata[:, common].copy()
    seen = panels(sections, tmp_path / "a")
    counts = sections[1].adata.layers["counts"]
    counts.data = np.random.default_rng(0).poisson(5, counts.data.shape).astype(np.float32) + 1
    vars(sections[1]).pop("digest")
    garbled = panels(sections, tmp_path / "b")
    assert seen["PB1"] == garbled["PB1"]  # PB1 was held out
    assert seen["PA1"] != garbled["PA1"]  # ... and is trained on here
    assert len(seen["PB1"][0]) == 50


class _Fitted(Exception):
    def __init__(self, panel):
        super().__init__()
        self.panel = panel


def test_a_perfect_feature_scores_one_and_noise_nothing(sections):
    """The harness itself: the target as feature, and features without any relation to it."""
    train, test = sections[:1], sections[1:]
    genes = ["ERBB2", "KRT19", "COL1A1", "CD3E", "EPCAM"]  # in every section of the phantom
    perfect = [[tg.section_targets(s.adata, genes)["log1p_raw"][s.rows]] for s in sections]
    found = probe_scores(train, test, *perfect, genes)
    assert found["tuned_ridge", "log1p_raw"].min() > 0.99
    rng = np.random.default_rng(0)
    noise = [[rng.standard_normal((len(s.rows), 20))] for s in sections]
    assert abs(probe_scores(train, test, *noise, genes)["hest", "log1p_raw"].mean()) < 0.25


def test_colour_statistics():
    patches = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    flat = patches.reshape(3, 64, 3).astype(float)
    expected = np.c_[flat.mean(1), flat.std(1)]
    np.testing.assert_allclose(colour_statistics(patches), expected, rtol=1e-5)


def test_truth_is_matched_by_name(phantom_root, sections):
    section = sections[0]
    genes = ["KRT19", "NO_SUCH_GENE", "ERBB2"]
    found, region = read_truth(phantom_root, section, genes)
    with np.load(phantom_root / "truth/PA1.npz") as truth:
        table = pd.DataFrame(truth["expected"], index=truth["barcodes"], columns=truth["genes"])
        regions = pd.Series(truth["region"], index=truth["barcodes"])
    barcodes = section.adata.obs_names[section.rows]
    np.testing.assert_allclose(found[:, [0, 2]], table.loc[barcodes, ["KRT19", "ERBB2"]])
    np.testing.assert_array_equal(region, regions[barcodes])
    assert (found[:, 1] == 0).all() and read_truth("elsewhere", section, genes) is None
