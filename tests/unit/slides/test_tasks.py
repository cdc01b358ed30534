"""Slide-level tasks: read as published; a wrong file is named."""

import h5py
import numpy as np
import pytest
import yaml
from made import CASES, NAMES, STATUS

from seal_lite import InputError


def read_slide_task(folder):
    from seal_lite.slides import tasks

    return tasks.read_slide_task(folder)


def read_bags(task, folder):
    from seal_lite.slides import tasks

    return tasks.read_bags(task, folder)


def test_a_classification_is_read_with_its_folds(write_task):
    folder, _ = write_task(STATUS, NAMES)
    task = read_slide_task(folder)
    assert (task.name, task.kind, task.classes) == (
        "task",
        "classification",
        ["mutant", "wildtype"],
    )
    assert len(task.slides) == CASES
    assert task.slides["c3"] == ["c3_0", "c3_1"]
    assert list(task.y[:4]) == [1, 1, 0, 0]
    train, test = task.folds[0]
    assert list(train) == list(range(1, CASES, 2))
    assert list(test) == list(range(0, CASES, 2))


def test_a_regression_has_values_and_no_classes(write_task):
    folder, _ = write_task({"activity": np.arange(CASES) / 8}, {})
    task = read_slide_task(folder)
    assert (task.kind, task.classes) == ("regression", [])
    np.testing.assert_array_equal(task.y, np.arange(CASES) / 8)


def test_survival_has_days_and_event_in_this_order(write_task):
    days = np.arange(1, CASES + 1)
    event = np.arange(CASES) // 2 % 2
    columns = {"OS_event": event, "OS_days": days}
    folder, _ = write_task(columns, {"extra_cols": ["OS_event", "OS_days"]})
    task = read_slide_task(folder)
    assert task.kind == "survival"
    np.testing.assert_array_equal(task.y, np.column_stack([days, event]))


SURVIVAL = {"OS_days": np.arange(CASES), "OS_event": np.arange(CASES) // 2 % 2}
EXTRA = {"extra_cols": list(SURVIVAL)}


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("OS_event", 7, "0 or 1"),
        ("OS_event", 0.5, "0 or 1"),
        ("OS_event", -1, "0 or 1"),
        ("OS_event", "dead", "a number"),
        ("OS_days", -5, "at least 0"),
        ("OS_days", "1e300", "a number"),
        ("OS_days", "inf", "a number"),
    ],
)
def test_days_or_an_event_that_cannot_be_are_named(write_task, column, value, expected):
    cells = SURVIVAL[column].astype(object)
    cells[4] = value
    folder, _ = write_task({**SURVIVAL, column: cells}, EXTRA)
    message = f"k=all.tsv: the {column} of case_id c4 is '{value}', must be {expected}"
    with pytest.raises(InputError, match=message):
        read_slide_task(folder)


def test_a_table_that_cannot_be_read_is_named(write_task):
    folder, _ = write_task(STATUS, NAMES)
    (folder / "k=all.tsv").write_bytes(b"\xff\x00")
    with pytest.raises(InputError, match=r"k=all\.tsv: cannot be read .*; correct it"):
        read_slide_task(folder)


def test_training_samples_of_whom_nothing_can_be_learnt_are_an_error(write_task):
    folder, _ = write_task({**SURVIVAL, "OS_event": np.arange(CASES) % 2}, EXTRA)
    with pytest.raises(InputError, match="fold 1 trains on no event"):
        read_slide_task(folder)
    folder, _ = write_task({"activity": np.ones(CASES)}, {})
    with pytest.raises(InputError, match="fold 0 trains on one value only"):
        read_slide_task(folder)


@pytest.mark.parametrize("half", ["val", "", "NA"])
def test_a_sample_may_be_in_no_half_of_a_fold(write_task, half):
    folder, _ = write_task(STATUS, NAMES)
    path = folder / "k=all.tsv"
    path.write_text(path.read_text().replace("c1_0\twildtype\ttrain", f"c1_0\twildtype\t{half}"))
    task = read_slide_task(folder)
    train, test = task.folds[0]
    assert 1 not in [*train, *test]
    assert len(train) + len(test) == CASES - 1


def test_without_fold_columns_no_case_is_in_both_halves_and_each_tests_once(write_task):
    folder, _ = write_task(STATUS, NAMES, sample="slide_id", folds=False)
    task = read_slide_task(folder)
    case = np.array([slide.split("_")[0] for slide in task.slides])
    assert len(task.folds) == 5
    for train, test in task.folds:
        assert not set(case[train]) & set(case[test])
        assert len(set(task.y[test])) == 2
    tested = np.concatenate([test for _, test in task.folds])
    assert sorted(tested) == list(range(CASES + CASES // 4))


def test_the_slides_of_a_sample_are_one_bag(write_task):
    folder, features = write_task(STATUS, NAMES)
    bags = read_bags(read_slide_task(folder), features)
    assert [len(bag) for bag in bags[:4]] == [10, 10, 10, 20]
    with h5py.File(features / "c3_1.h5") as file:
        second = np.squeeze(file["features"][:])
    np.testing.assert_array_equal(bags[3][10:], second)


def replace(old, new):
    return lambda text: text.replace(old, new)


def drop_label_dict(text):
    return text.split("label_dict")[0] + text[text.index("sample_col") :]


def drop_rows(text):
    return text.splitlines()[0] + "\n"


FAULTS = {
    "no label": ("k=all.tsv", replace("status", "other"), "k=all.tsv: column status is missing"),
    "an empty label": (
        "k=all.tsv",
        replace("\tmutant\t", "\t\t"),
        "k=all.tsv: the status of row 4",
    ),
    "two labels": ("k=all.tsv", replace("c3_1\tmutant", "c3_1\twild"), "c3 has two .* status"),
    "one class": ("k=all.tsv", replace("wildtype", "mutant"), "fold 0 .* one class"),
    "no row": ("k=all.tsv", drop_rows, "k=all.tsv: has no rows"),
    "no table": ("k=all.tsv", None, "is no task"),
    "no sample column": ("config.yaml", replace("sample_col", "x"), "sample_col is missing"),
    "words for a value": ("config.yaml", drop_label_dict, "c0 is 'wildtype', must be a number"),
    "a misspelt class": (
        "k=all.tsv",
        replace("c2_0\tmutant", "c2_0\tmutnat"),
        "k=all.tsv: the status of case_id c2 is 'mutnat', must be a name of label_dict",
    ),
    "a code among names": (
        "k=all.tsv",
        replace("c2_0\tmutant", "c2_0\t1"),
        "k=all.tsv: the status of case_id c2 is '1', must be a name of label_dict",
    ),
    "a misspelt half": (
        "k=all.tsv",
        replace("c1_0\twildtype\ttrain", "c1_0\twildtype\ttrian"),
        "k=all.tsv: the fold_0 of case_id c1 is 'trian', must be train, val, test or empty",
    ),
    "no half": ("k=all.tsv", replace("\ttest\t", "\tval\t"), "fold 0 tests no sample"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_task_is_named_with_its_fault(write_task, fault):
    folder, _ = write_task(STATUS, NAMES)
    name, damage, message = FAULTS[fault]
    path = folder / name
    if damage is None:
        path.unlink()
    else:
        path.write_text(damage(path.read_text()))
    with pytest.raises(InputError, match=message):
        read_slide_task(folder)


def test_a_case_in_both_halves_is_an_error(write_task):
    folder, _ = write_task(STATUS, NAMES, sample="slide_id")
    path = folder / "k=all.tsv"
    lines = path.read_text().splitlines()
    moved = [
        line.replace("train\ttest", "test\ttrain") if "c3_1" in line else line for line in lines
    ]
    path.write_text("\n".join(moved))
    with pytest.raises(InputError, match="case c3 is on both sides of fold 0"):
        read_slide_task(folder)


def test_too_few_cases_for_folds_are_an_error(write_task):
    folder, _ = write_task(STATUS, NAMES, folds=False)
    path = folder / "k=all.tsv"
    path.write_text("\n".join(path.read_text().splitlines()[:4]))
    with pytest.raises(InputError, match="k=all.tsv: cannot be split into 5 folds"):
        read_slide_task(folder)


def write_features(file, shape):
    with h5py.File(file, "w") as h5:
        h5["features"] = np.zeros(shape)


def test_features_that_are_missing_wide_or_empty_are_named(write_task):
    folder, features = write_task(STATUS, NAMES)
    task = read_slide_task(folder)
    file = features / "c7_0.h5"
    file.unlink()
    with pytest.raises(InputError, match="has no c7_0.h5; embed that slide"):
        read_bags(task, features)
    write_features(file, (2, 9))
    with pytest.raises(InputError, match="several widths, 4 and 9"):
        read_bags(task, features)
    write_features(features / "c6_0.h5", (0, 4))
    with pytest.raises(InputError, match="c6 has no patch on tissue"):
        read_bags(task, features)


@pytest.mark.parametrize("shape", [(0,), (0, 4), (1, 0, 4)])
def test_a_slide_without_tissue_adds_no_patches_and_is_named(write_task, caplog, shape):
    """TRIDENT writes (0,) for it. The case has another slide."""
    folder, features = write_task(STATUS, NAMES)
    task = read_slide_task(folder)
    write_features(features / "c3_1.h5", shape)
    bags = read_bags(task, features)
    assert [len(bag) for bag in bags[:4]] == [10, 10, 10, 10]
    assert "c3_1.h5: holds no patches" in caplog.text
    write_features(features / "c3_0.h5", shape)
    with pytest.raises(InputError, match="c3 has no patch on tissue; drop it from the task"):
        read_bags(task, features)


def test_labels_may_be_the_codes_of_the_classes_as_patho_bench_has_them(write_task):
    codes = {"status": (STATUS["status"] == "mutant").astype(int)}
    folder, _ = write_task(STATUS, NAMES)
    named = read_slide_task(folder)
    for label_dict in ({"0": "wildtype", "1": "mutant"}, {0: "wildtype", 1: "mutant"}):
        folder, _ = write_task(codes, {"label_dict": label_dict})
        task = read_slide_task(folder)
        assert task.classes == ["mutant", "wildtype"]
        np.testing.assert_array_equal(task.y, named.y)


def test_names_that_look_like_the_code_of_another_class_stay_names(write_task):
    grades = {"status": np.where(STATUS["status"] == "mutant", "2", "1")}
    folder, _ = write_task(grades, {"label_dict": {"0": "1", "1": "2"}})
    assert read_slide_task(folder).classes == ["1", "2"]


def test_halves_that_share_one_class_are_an_error(write_task):
    """Of three classes, one half has two and the other has another two."""
    status = np.where(np.arange(CASES) % 2, "b", "a")
    status[np.flatnonzero(status == "a")[::2]] = "c"
    status[np.flatnonzero(status == "b")[::2]] = "c"  # even cases have a and c, odd ones b and c
    names = {"0": "a", "1": "b", "2": "c"}
    folder, _ = write_task({"status": status}, {"label_dict": names})
    with pytest.raises(InputError, match="fold 0 trains and tests on one class or none in common"):
        read_slide_task(folder)


def test_a_class_may_be_called_na_and_an_unknown_label_is_empty(write_task):
    named = {"status": np.where(STATUS["status"] == "mutant", "NA", "wildtype")}
    folder, _ = write_task(named, {"label_dict": {"0": "wildtype", "1": "NA"}})
    assert read_slide_task(folder).classes == ["NA", "wildtype"]
    folder, _ = write_task(named, NAMES)
    with pytest.raises(InputError, match="the status of row 4 is empty or unknown"):
        read_slide_task(folder)


def test_a_class_that_one_half_of_a_fold_lacks_is_named(write_task, caplog):
    with_rare = {"label_dict": {**NAMES["label_dict"], "2": "rare"}}
    folder, _ = write_task(STATUS, with_rare)
    path = folder / "k=all.tsv"
    rows = path.read_text().splitlines()
    rows[1] = rows[1].replace("wildtype", "rare")  # c0, which the first fold tests
    path.write_text("\n".join(rows))
    task = read_slide_task(folder)
    assert task.classes == ["mutant", "rare", "wildtype"]
    rest = "its scores are means over the other 2 classes"
    assert f"fold 0 trains no rare; {rest}" in caplog.text
    assert f"fold 1 tests no rare; {rest}" in caplog.text


def test_a_slide_may_be_named_with_the_suffix_of_its_image(write_task):
    folder, features = write_task(STATUS, NAMES)
    plain = read_bags(read_slide_task(folder), features)
    path = folder / "k=all.tsv"
    path.write_text(path.read_text().replace("_0\t", "_0.svs\t").replace("_1\t", "_1.svs\t"))
    named = read_bags(read_slide_task(folder), features)
    for bag, other in zip(plain, named, strict=True):
        np.testing.assert_array_equal(bag, other)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_feature_that_is_no_number_names_its_file(write_task, value):
    folder, features = write_task(STATUS, NAMES)
    with h5py.File(features / "c5_0.h5", "a") as file:
        file["features"][..., 3, 1] = value
    with pytest.raises(InputError, match="c5_0.h5: a feature is NaN or infinite"):
        read_bags(read_slide_task(folder), features)


@pytest.mark.parametrize("name", ["config.yaml", "k=all.tsv"])
def test_a_task_without_one_of_its_files_says_which(write_task, name):
    folder, _ = write_task(STATUS, NAMES)
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"is no task, for it has no {name}; restore"):
        read_slide_task(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"task_col": None},
        {"task_col": ["status"]},
        {"task_col": ""},
        {"sample_col": 3},
        {"extra_cols": "days"},
        {"extra_cols": [1]},
        {"label_dict": ["wildtype", "mutant"]},
        {"label_dict": {"0": ["wildtype"]}},
    ],
)
def test_a_setting_of_a_task_that_does_not_fit_is_named(write_task, change):
    root, _ = write_task(STATUS, NAMES)
    path = root / "config.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **change}))
    with pytest.raises(InputError, match=f"config.yaml: {next(iter(change))}"):
        read_slide_task(root)


@pytest.mark.parametrize(
    "features",
    [
        np.zeros(4),
        np.zeros((2, 10, 4)),
        np.zeros((1, 1, 10, 4)),
        np.array(["x"], "S1"),
        np.zeros((10, 4), complex),
        3.0,
    ],
)
def test_features_of_another_shape_or_type_are_refused(write_task, features):
    root, folder = write_task(STATUS, NAMES)
    with h5py.File(folder / "c7_0.h5", "w") as file:
        file["features"] = features
    with pytest.raises(InputError, match="c7_0.h5: features is .* embed it again"):
        read_bags(read_slide_task(root), folder)
