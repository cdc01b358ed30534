"""Cross-validation: what a fold holds out is seen by nothing that is fitted in it.

Every fold is really run: training, embedding and scoring, with a network of 1,600 weights.
"""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from helpers import TINY
from tiny_sections import PX, TINY_BACKBONE, make_section

from seal_lite.data.section import Section
from seal_lite.encoders import prefix_cache, vision
from seal_lite.encoders.registry import BACKBONES
from seal_lite.encoders.vision import VisionEncoder
from seal_lite.errors import InputError
from seal_lite.evaluation import crossval as crossval_module
from seal_lite.evaluation import features, targets
from seal_lite.evaluation.crossval import (
    Fold,
    crossval,
    folds_of,
    groups_of,
    run_fold,
    shift_folds,
)
from seal_lite.evaluation.scores import summary, tidy
from seal_lite.evaluation.targets import PARTIAL, TARGETS

CONFIG = replace(TINY, backbone="tiny", patch_px=PX, epochs=1, n_views=2, gene_warmup_epochs=0)
FEATURES = {"tuned", "shuffled", "frozen", "frozen_best", "random_init", "colour", "log_depth"}
ALL_TARGETS = (*TARGETS, PARTIAL)
FITTED = ("panel.json", "heads.safetensors", "adapter/adapter_model.safetensors")
GENES = ["G0", "G7", "G3", "G11", "G5", "G2"]


@pytest.fixture(scope="module", autouse=True)
def tiny_backbone():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "tiny", TINY_BACKBONE)
        yield


def fitted_files(run):
    """All that finetuning fitted: gene panel, heads and adapter, as bytes."""
    return {file: (run / file).read_bytes() for file in FITTED}


# What a fold fits


@pytest.fixture(scope="module")
def fold_run(tmp_path_factory):
    """(fold, folder of its encoders, results): train on A1, hold out B1 and C1."""
    section_a, section_b, section_c = (
        make_section(name, seed=seed) for seed, name in enumerate(("A1", "B1", "C1"))
    )
    fold = Fold([section_a], {"B": [section_b], "C": [section_c]}, GENES)
    runs = tmp_path_factory.mktemp("fold")
    return fold, runs, run_fold(fold, CONFIG, runs=runs, progress=False)


def test_nothing_is_fitted_on_the_held_out_section(tmp_path):
    """Other counts and patches held out: same genes, panel and weights, other scores."""
    train = make_section("A1", seed=0)
    outcomes = []
    for seed in (1, 2):
        out = tmp_path / str(seed)
        held_out = make_section("B1", seed=seed)
        result = crossval(
            [train, held_out],
            CONFIG,
            data_name="made",
            train_groups=1,
            seeds=1,
            out=out,
            progress=False,
        )
        (fold,) = result["folds"]
        outcomes.append(
            {
                "genes": list(fold["scores"][0]["per_gene"]),
                "tuned": fitted_files(out / "runs/B1-0/tuned"),
                "shuffled": fitted_files(out / "runs/B1-0/shuffled"),
                "r": fold["scores"][0]["per_gene"],
            }
        )
    first, second = outcomes
    assert len(first["genes"]) == 50  # of 60: chosen on the training section
    assert first["genes"] == second["genes"]
    assert first["tuned"] == second["tuned"]
    assert first["shuffled"] == second["shuffled"]
    assert first["r"] != second["r"]


def test_the_tuned_encoder_trains_on_true_pairs_and_its_control_on_shuffled_ones(
    fold_run, tmp_path
):
    from seal_lite.training.loop import finetune

    fold, runs, _ = fold_run
    for name, shuffle_pairs in (("true", False), ("broken", True)):
        finetune(
            fold.train,
            CONFIG,
            include=fold.genes,
            shuffle_pairs=shuffle_pairs,
            out=tmp_path / name,
            progress=False,
        )
    true_pairs = fitted_files(tmp_path / "true")
    broken_pairs = fitted_files(tmp_path / "broken")
    assert true_pairs["heads.safetensors"] != broken_pairs["heads.safetensors"]
    assert fitted_files(runs / "tuned") == true_pairs
    assert fitted_files(runs / "shuffled") == broken_pairs


def test_every_held_out_group_is_scored_by_itself(fold_run):
    """One training serves several groups; none of their scores depends on the others."""
    fold, runs, results = fold_run
    assert [result["test"] for result in results] == ["B", "C"]
    for group, result in zip(fold.tests, results, strict=True):
        alone = replace(fold, tests={group: fold.tests[group]})
        assert run_fold(alone, CONFIG, runs=runs, progress=False) == [result]
    assert results[0]["scores"] != results[1]["scores"]


def test_a_fold_without_progress_draws_no_bar(fold_run, tmp_path, capfd):
    fold, runs, _ = fold_run
    run_fold(fold, CONFIG, runs=runs, cache_dir=tmp_path, progress=False)
    assert capfd.readouterr().err == ""


# What a cross-validation computes, and how often


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """How often each thing is done while three sections are held out in turn, with two seeds."""
    counts = {"targets": [], "frozen": 0, "random": 0, "colour": 0, "hashed": []}
    sections = [make_section(name, seed=seed) for seed, name in enumerate(("A1", "B1", "C1"))]

    def spy(patch, place, name, note):
        original = getattr(place, name)

        def observed(*args, **options):
            note(*args)
            return original(*args, **options)

        patch.setattr(place, name, observed)

    def add_to(key):
        def note(_, images):
            counts[key] += len(images)

        return note

    def note_targets(adata, genes):
        counts["targets"].append((adata.uns["section_id"], tuple(genes)))

    def note_colour(patches):
        counts["colour"] += len(patches)

    with pytest.MonkeyPatch.context() as patch:
        spy(patch, targets, "section_targets", note_targets)
        patch.setattr(vision, "check_cut", lambda _: None)  # it embeds an image, too
        spy(patch, VisionEncoder, "every_layer", add_to("frozen"))
        spy(patch, features, "embed_patches", add_to("random"))
        spy(patch, features, "colour_statistics", note_colour)
        spy(patch, prefix_cache, "sha256", counts["hashed"].append)
        out = tmp_path_factory.mktemp("counted") / "out"
        crossval(sections, CONFIG, data_name="made", seeds=2, out=out, progress=False)
    return counts, sum(len(section.rows) for section in sections)


def test_targets_are_built_once_a_section_and_list_of_genes(counted):
    """Each fold chooses its own genes; features, probes, references and seeds share the targets."""
    counts, _ = counted
    assert len(counts["targets"]) == 3 * 3
    assert len(set(counts["targets"])) == 3 * 3


def test_what_no_fold_changes_is_embedded_once_a_section(counted):
    """The frozen encoder by all folds and seeds; the one with random weights by all folds."""
    counts, n_patches = counted
    assert counts["frozen"] == n_patches
    assert counts["random"] == 2 * n_patches
    assert counts["colour"] == n_patches


def test_a_file_is_hashed_once(counted):
    counts, _ = counted
    assert counts["hashed"]
    assert len(set(counts["hashed"])) == len(counts["hashed"])


# Cross-validation of a phantom, end to end


@pytest.fixture(scope="module")
def finished(sections, ground_truth, tmp_path_factory):
    """(folder, result) of a cross-validation by patient with one seed."""
    out = tmp_path_factory.mktemp("cv") / "out"
    return out, run_crossval(sections, ground_truth, out)


def run_crossval(sections, truth, out, *, config=CONFIG, by="patient", seeds=1):
    config = replace(config, patch_px=sections[0].patches.shape[1])
    return crossval(
        sections,
        config,
        data_name="phantom",
        truth=truth,
        by=by,
        seeds=seeds,
        out=out,
        progress=False,
    )


def test_metrics_have_the_documented_keys(finished):
    out, result = finished
    assert json.loads((out / "metrics.json").read_text()) == result
    assert set(result) == {"data", "backbone", "provenance", "classes", "folds", "delta"}
    assert (result["data"], result["backbone"]) == ("phantom", "tiny")
    assert [(fold["test"], fold["seed"]) for fold in result["folds"]] == [("PA", 0), ("PB", 0)]
    assert not (out / "cache").exists()  # gigabytes on real data


def test_every_fold_scores_all_features_under_all_probes(finished, ground_truth):
    _, result = finished
    combinations = [(name, probe) for name in FEATURES for probe in ("hest", "tuned_ridge")]
    own = ("decoder", "BLEEP", "Loki")
    combinations += [(name, reader) for name in ("tuned", "shuffled") for reader in own]
    combinations += [(name, "none") for name in ("neighbours", "ceiling", "oracle")]
    expected = {(*combination, target) for combination in combinations for target in ALL_TARGETS}
    for fold in result["folds"]:
        keys = [(row["features"], row["probe"], row["target"]) for row in fold["scores"]]
        assert set(keys) == expected
        assert len(keys) == len(expected)
        for row in fold["scores"]:
            r = list(row["per_gene"].values())
            assert list(row["per_gene"]) == list(ground_truth.classes)
            assert np.abs(r).max() <= 1
            assert row["pcc"] == pytest.approx(np.mean(r), abs=1e-4)


def test_every_fold_measures_what_is_kept_of_the_tissue(finished):
    _, result = finished
    for fold in result["folds"]:
        assert set(fold["morphology"]) == FEATURES
        accuracies = {kept["region_accuracy"] for kept in fold["morphology"].values()}
        assert all(0 < accuracy < 1 for accuracy in accuracies)
        assert len(accuracies) > 1


def test_deltas_are_paired_differences_overall_and_by_class(finished, ground_truth):
    _, result = finished
    assert result["classes"] == ground_truth.classes
    table = tidy(result)
    keys = ["features", "probe", "target"]
    mean = table.groupby(keys).r.mean()
    mean_of_class = table.groupby([*keys, "class"]).r.mean()
    compared = []
    for delta in result["delta"]:
        key = (delta["probe"], delta["target"])
        means = mean
        if "class" in delta:
            means = mean_of_class
            key += (delta["class"],)
        difference = means[delta["of"], *key] - means[delta["minus"], *key]
        assert delta["mean"] == pytest.approx(difference, abs=2e-4)
        low, high = delta["ci95"]
        assert low <= delta["mean"] <= high
        compared.append((delta["of"], delta["minus"], delta["probe"]))
    pairs = [("tuned", m, p) for m in ("frozen", "frozen_best") for p in ("hest", "tuned_ridge")]
    probes = ("hest", "tuned_ridge", "decoder", "BLEEP", "Loki")
    pairs += [("tuned", "shuffled", probe) for probe in probes]
    assert set(compared) == set(pairs)
    assert len(compared) == len(pairs) * len(ALL_TARGETS) * 4  # all genes, and three classes


def test_the_table_on_disk_is_the_result(finished):
    out, result = finished
    table = pd.read_csv(out / "per_gene.csv")
    pd.testing.assert_frame_equal(table, tidy(result), check_dtype=False)
    assert not table.isna().any().any()
    colour = table.query("features == 'colour' and probe == 'hest' and target == 'log1p_raw'")
    means = summary(result)
    assert means.loc[("colour", "hest"), "log1p_raw"] == pytest.approx(colour.r.mean())


def test_the_oracle_bounds_what_depth_and_colour_can_do(finished):
    """On declared genes the ground truth must beat the controls, or the harness is broken."""
    _, result = finished
    r = summary(result)["pearson_residuals"]
    assert r["oracle", "none"] > r["colour", "tuned_ridge"] + 0.1
    assert r["oracle", "none"] > r["log_depth", "tuned_ridge"] + 0.1
    assert r["oracle", "none"] < r["ceiling", "none"] + 0.05


# Resuming


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished folder, to be changed."""
    return shutil.copytree(finished[0], tmp_path / "cv")


@pytest.fixture
def fold_calls(finished, monkeypatch):
    """(training sections, held-out sections, seed) of each fold that is run from here on."""
    calls = []

    def record(fold, config, **_):
        train, held_out = ([s.name for s in part] for part in (fold.train, fold.held_out))
        calls.append((train, held_out, config.seed))
        results = json.loads((finished[0] / f"folds/{fold.name}-0.json").read_text())
        return [{**result, "seed": config.seed} for result in results]

    monkeypatch.setattr(crossval_module, "run_fold", record)
    return calls


def test_finished_folds_are_not_run_again(copied, sections, ground_truth, finished, fold_calls):
    _, result = finished
    assert run_crossval(sections, ground_truth, copied)["folds"] == result["folds"]
    assert fold_calls == []
    (copied / "folds/PB-0.json").unlink()
    assert run_crossval(sections, ground_truth, copied)["folds"] == result["folds"]
    assert fold_calls == [(["PA1"], ["PB1"], 0)]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ([], {}),
        ([], []),
        ([0], 3),
        ([0, "test"], "PZ"),
        ([0, "seed"], 9),
        ([0, "seed"], -1),
        ([0, "scores"], []),
        ([0, "scores", 0, "pcc"], 7.0),
        ([0, "scores", 0, "pcc"], "high"),
        ([0, "scores", 0, "per_gene"], {}),
        ([0, "scores", 0, "per_gene"], {"NOPE": 0.1}),
        ([0, "scores", 0, "probe"], None),
        ([0, "morphology"], [1]),
    ],
)
def test_a_damaged_fold_is_named(copied, sections, ground_truth, fold_calls, place, value):
    path = copied / "folds/PB-0.json"
    content = [json.loads(path.read_text())]
    *parents, last = [0, *place]
    parent = content
    for key in parents:
        parent = parent[key]
    parent[last] = value
    path.write_text(json.dumps(content[0]))
    with pytest.raises(InputError, match=f"{path}.*remove it: the fold runs again"):
        run_crossval(sections, ground_truth, copied)
    assert fold_calls == []


def write_as_before_retrieval(folder):
    """Leave of stored folds what a version wrote that did not predict by retrieval."""
    for path in (folder / "folds").iterdir():
        results = json.loads(path.read_text())
        for result in results:
            scores = result["scores"]
            result["scores"] = [row for row in scores if row["probe"] not in ("BLEEP", "Loki")]
        path.write_text(json.dumps(results))


def test_folds_of_an_older_version_are_read_where_all_are_finished(
    copied, sections, ground_truth, fold_calls
):
    write_as_before_retrieval(copied)
    result = run_crossval(sections, ground_truth, copied)
    assert fold_calls == []
    assert not {row["probe"] for row in result["delta"]} & {"BLEEP", "Loki"}


def test_folds_of_an_older_version_are_not_mixed_with_new_ones(
    copied, sections, ground_truth, fold_calls
):
    """Some scores would be means over all folds, and others over the new ones."""
    write_as_before_retrieval(copied)
    (copied / "folds/PB-0.json").unlink()
    message = (
        f"{copied}/folds/PA-0.json: .* without the scores of BLEEP, Loki; remove {copied}/fold"
    )
    with pytest.raises(InputError, match=message):
        run_crossval(sections, ground_truth, copied)
    assert fold_calls == []


def test_more_seeds_run_only_what_is_new(copied, sections, ground_truth, fold_calls):
    run_crossval(sections, ground_truth, copied, seeds=2)
    assert fold_calls == [(["PB1"], ["PA1"], 1), (["PA1"], ["PB1"], 1)]


def test_a_lost_fold_is_scored_again_with_its_kept_encoders(copied, sections, ground_truth):
    encoders = [copied / "runs/PB-0" / name / FITTED[1] for name in ("tuned", "shuffled")]
    written = [path.stat().st_mtime_ns for path in encoders]
    fold = copied / "folds/PB-0.json"
    before = fold.read_text()
    fold.unlink()
    run_crossval(sections, ground_truth, copied)
    assert fold.read_text() == before
    assert [path.stat().st_mtime_ns for path in encoders] == written


def test_a_folder_of_other_settings_or_data_is_refused(finished, sections, ground_truth, tmp_path):
    out, _ = finished
    with pytest.raises(InputError, match=str(out)):
        run_crossval(sections, ground_truth, out, config=replace(CONFIG, epochs=2))
    with pytest.raises(InputError, match=str(out)):
        run_crossval(sections, ground_truth, out, by="section")
    with pytest.raises(InputError, match="holds other work"):
        run_crossval(sections[::-1], ground_truth, out)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not of this work"):
        run_crossval(sections, ground_truth, tmp_path)


# Groups and folds


def make_labelled(name, patient, **labels):
    uns = {"section_id": name, "patient_id": patient, "labels": labels}
    return Section(SimpleNamespace(uns=uns), None, None)


def test_a_group_is_named_by_every_section_and_not_by_all():
    sections = [make_labelled("A1", "A", stain="old"), make_labelled("B1", "B")]
    assert groups_of(sections, "patient") == ["A", "B"]
    with pytest.raises(InputError, match="--groups stain: section B1 has no stain"):
        groups_of(sections, "stain")
    with pytest.raises(InputError, match="all sections belong to 'A'"):
        groups_of(sections[:1], "patient")


def test_folds_hold_out_one_group_or_train_on_few():
    groups = ["A", "A", "B", "C", "D", "E"]
    sections = ["A1", "A2", "B1", "C1", "D1", "E1"]
    folds = list(folds_of(sections, groups))
    assert [list(tests) for _, tests in folds] == [["A"], ["B"], ["C"], ["D"], ["E"]]
    assert folds[0] == (["B1", "C1", "D1", "E1"], {"A": ["A1", "A2"]})
    ((train, tests),) = folds_of(sections, groups, 2)
    assert train == ["A1", "A2", "B1"]
    assert tests == {"C": ["C1"], "D": ["D1"], "E": ["E1"]}
    for train_groups in (5, 0):
        with pytest.raises(InputError, match="--train-groups"):
            list(folds_of(sections, groups, train_groups))


def test_a_shift_holds_out_a_group_and_a_quarter_of_the_others_patients():
    sections = []
    for patient in "ABCDEFG":
        stain = "old" if patient < "F" else "new"
        sections += [make_labelled(f"{patient}{i}", patient, stain=stain) for i in (1, 2)]
    groups = groups_of(sections, "stain")
    folds = []
    for train, tests in shift_folds(sections, groups):
        test_names = {group: " ".join(s.name for s in test) for group, test in tests.items()}
        folds.append((" ".join(s.name for s in train), test_names))
    assert folds == [
        ("F1 F2", {"old": "A1 A2 B1 B2 C1 C2 D1 D2 E1 E2", "not old": "G1 G2"}),
        ("A1 A2 B1 B2 C1 C2", {"new": "F1 F2 G1 G2", "not new": "D1 D2 E1 E2"}),
    ]
    with pytest.raises(InputError, match="new: has one patient"):
        list(shift_folds(sections[:-2], groups[:-2]))


def test_a_shift_is_scored_in_and_out_of_distribution(tmp_path):
    sections = []
    for seed, patient in enumerate("ABCD"):
        site = "first" if patient < "C" else "second"
        sections.append(make_section(f"{patient}1", seed=seed, labels={"site": site}))
    options = {"data_name": "made", "by": "site", "seeds": 1, "progress": False}
    result = crossval(sections, CONFIG, out=tmp_path / "cv", **options)
    tests = ["first", "not first", "second", "not second"]
    assert [fold["test"] for fold in result["folds"]] == tests
    assert {"delta_in", "delta_out", "delta_gap"} < set(result)
    assert {delta["mean"] for delta in result["delta_gap"]} != {0.0}
    with pytest.raises(InputError, match="--train-groups"):
        crossval(sections, CONFIG, train_groups=1, out=tmp_path / "other", **options)


def stored_folds(fold, seed):
    """A fold's results as their file holds them."""
    scores = {"features": "tuned", "probe": "hest", "target": "log1p_raw", "pcc": 0.5}
    row = {**scores, "per_gene": dict.fromkeys(fold.genes, 0.5)}
    common = {"seed": seed, "scores": [row], "morphology": {}}
    return [{"test": test, **common} for test in fold.tests]


def resume(fold, config, out):
    """Results of a fold in `out`, run first where it is not finished."""
    path = crossval_module._fold_files([fold], 2, out)[fold.name, config.seed]
    options = {"truth": None, "device": "cpu", "progress": False}
    return crossval_module._resume_fold(fold, config, path, **options)


def test_patients_that_differ_in_case_alone_have_folds_of_their_own(tmp_path, monkeypatch):
    """On a file system that ignores case, too: no two files, and no two runs, share a name."""
    folders = []

    def run_fold(fold, config, *, runs, **_):
        folders.append(runs.name)
        return stored_folds(fold, config.seed)

    monkeypatch.setattr(crossval_module, "run_fold", run_fold)
    sections = [make_section(f"{patient}1", seed=i) for i, patient in enumerate(("a", "A", "B"))]
    for section, patient in zip(sections, ("a", "A", "B"), strict=True):
        section.adata.uns["patient_id"] = patient
    options = {"data_name": "made", "by": "patient", "seeds": 1, "out": tmp_path, "progress": False}
    result = crossval(sections, CONFIG, **options)
    assert [fold["test"] for fold in result["folds"]] == ["a", "A", "B"]
    files = [path.stem for path in (tmp_path / "folds").iterdir()]
    assert sorted(files) == sorted(folders)
    assert len({name.casefold() for name in files}) == 3
    assert "B-0" in files  # a name without a twin stays


def test_each_fold_that_runs_is_reported_and_a_given_cache_stays(tmp_path, monkeypatch):
    caches = []
    reports = []

    def run_fold(fold, config, *, cache_dir, **_):
        caches.append(cache_dir)
        return stored_folds(fold, config.seed)

    monkeypatch.setattr(crossval_module, "run_fold", run_fold)
    sections = [make_section("A1", seed=0), make_section("B1", seed=1)]
    cache = tmp_path / "cache"
    cache.mkdir()

    def run():
        crossval(
            sections,
            CONFIG,
            data_name="made",
            seeds=2,
            out=tmp_path / "out",
            cache_dir=cache,
            after_fold=lambda finished, n, seconds: reports.append((finished, n, seconds >= 0)),
            progress=False,
        )

    run()
    assert reports == [(i, 4, True) for i in (1, 2, 3, 4)]
    assert caches == [cache] * 4
    assert cache.exists()
    run()  # all folds are read
    assert len(reports) == 4


@pytest.mark.parametrize("patient", ["../../../ESC/x", "/ESC/x", "..", "a/b", "\x1b[31m\n"])
def test_a_patient_of_any_name_is_written_inside_the_folder(patient, tmp_path, monkeypatch):
    out = tmp_path / "a/b/c/out"
    folders = []

    def run_fold(fold, config, *, runs, **_):
        folders.append(runs)
        return stored_folds(fold, config.seed)

    monkeypatch.setattr(crossval_module, "run_fold", run_fold)
    fold = Fold([], {patient: []}, GENES)
    resume(fold, CONFIG, out)
    (written,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written.parent == out / "folds"
    assert folders == [out / "runs" / written.stem]
    assert written.name.isprintable()


@pytest.mark.parametrize("letter", ["P", "\N{GREEK SMALL LETTER MU}"])
def test_many_groups_of_long_names_fit_a_file_name(letter, tmp_path, monkeypatch):
    """Sixty groups held out together: their names joined are longer than a file name may be."""
    sections = [make_section("A1", seed=0, labels={"site": "A"})]
    for i in range(60):
        labels = {"site": f"{letter}{i:02}-a-patient-with-a-long-name"}
        sections.append(make_section(f"B{i}", seed=1, labels=labels))
    (split,) = folds_of(sections, groups_of(sections, "site"), 1)
    fold = Fold(*split, GENES)
    assert len(fold.name.encode()) > 1500
    monkeypatch.setattr(
        crossval_module, "run_fold", lambda fold, config, **_: stored_folds(fold, config.seed)
    )
    for seed in (0, 1):
        seeded = replace(CONFIG, seed=seed)
        assert resume(fold, seeded, tmp_path) == stored_folds(fold, seed)
    other = replace(fold, tests=dict(list(fold.tests.items())[:-1]))
    assert resume(other, CONFIG, tmp_path) == stored_folds(other, CONFIG.seed)
    assert len(list((tmp_path / "folds").iterdir())) == 3
