"""Options that several commands share: what their values mean, and which are refused."""

import os

import pytest

from seal_lite.cli import evaluate, options, slides
from seal_lite.config import RECIPES
from seal_lite.errors import InputError


def test_names_are_split_at_commas():
    assert options.split_names(" C2,C3 ,,C4,") == ["C2", "C3", "C4"]
    assert options.split_optional("C2") == ["C2"]
    assert options.split_optional(None) is None


@pytest.mark.parametrize("text", ["", ",", " , "])
def test_a_list_without_a_name_is_an_error(text):
    with pytest.raises(InputError, match="names nothing"):
        options.split_names(text)
    with pytest.raises(InputError, match="names nothing"):
        options.split_optional(text)


def test_settings_override_assignments_and_these_the_preset():
    config = options.build_config(
        "paper", ["epochs=3", "seed=7"], seed=9, backbone="resnet18", epochs=None
    )
    assert (config.epochs, config.seed, config.backbone) == (3, 9, "resnet18")
    assert config.temperature == 0.05  # the preset's


def test_settings_are_those_of_the_encoders_family_unless_given():
    config = options.build_config("default", ["lr_lora=0.5"], backbone="dinov2_s14")
    assert config.lr_lora == 0.5
    assert config.depth == RECIPES["transformer"]["depth"]
    assert options.build_config("default", ["backbone=dinov2_s14", "lr_lora=0.5"]) == config


def test_a_folder_to_write_may_exist_or_not(tmp_path):
    assert options.check_output_folder(tmp_path) == tmp_path
    assert options.check_output_folder(tmp_path / "new/run") == tmp_path / "new/run"


def test_a_file_to_write_may_exist_or_not(tmp_path):
    (tmp_path / "old").touch()
    assert options.check_output_file(tmp_path / "old") == tmp_path / "old"
    assert options.check_output_file(tmp_path / "new/file") == tmp_path / "new/file"


def test_places_that_cannot_be_written_are_refused(tmp_path):
    file = tmp_path / "file"
    file.touch()
    for folder in (file, file / "below"):
        with pytest.raises(InputError, match=f"{folder}: cannot be written"):
            options.check_output_folder(folder)
    for path in (tmp_path, file / "below"):
        with pytest.raises(InputError, match=f"{path}: cannot be written"):
            options.check_output_file(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot be written"):
        options.check_output_folder(tmp_path / "run")


def test_a_command_needs_a_run_or_a_backbone_and_not_both(tmp_path):
    for run, backbone in ((None, None), (tmp_path, "resnet18")):
        with pytest.raises(InputError, match="either --run or --backbone"):
            options.read_run_or_backbone(run, backbone)


def test_a_backbone_alone_has_the_default_settings():
    model, config = options.read_run_or_backbone(None, "resnet18")
    assert model is None
    assert config == options.build_config(backbone="resnet18")


def test_features_are_given_as_name_and_folder():
    folders = slides.split_features(["frozen=a/b", "tuned=c=d"])
    assert {name: str(folder) for name, folder in folders.items()} == {
        "frozen": "a/b",
        "tuned": "c=d",
    }
    for text in ("features", "=features", "frozen="):
        with pytest.raises(InputError, match=f"--features {text}: give NAME=FOLDER"):
            slides.split_features([text])
    with pytest.raises(InputError, match="--features tuned=b: there is a tuned; give it another"):
        slides.split_features(["tuned=a", "tuned=b"])


def test_a_test_section_that_was_seen_is_refused():
    evaluate.check_held_out(["C4"], ["C2", "C3"], "--train")
    with pytest.raises(InputError, match="--test C2,C3: also in --train"):
        evaluate.check_held_out(["C3", "C4", "C2"], ["C2", "C3"], "--train")


def test_tasks_are_those_named_or_all_in_the_folder(tmp_path):
    for name in ("PRAD", "IDC"):
        (tmp_path / name / "splits").mkdir(parents=True)
    (tmp_path / "notes").mkdir()
    assert evaluate.task_names(tmp_path, None) == ["IDC", "PRAD"]
    assert evaluate.task_names(tmp_path, "PRAD") == ["PRAD"]
    with pytest.raises(InputError, match="notes: holds no task"):
        evaluate.task_names(tmp_path / "notes", None)
    for path in ("../bench/IDC", "..", "."):
        with pytest.raises(InputError, match="is a path; give the name of a folder in"):
            evaluate.task_names(tmp_path, f"PRAD,{path}")


def test_gene_sets_keep_the_genes_of_the_panel(tmp_path):
    gmt = tmp_path / "sets.gmt"
    gmt.write_text("tumour\tx\tERBB2\tNOPE\tGRB7\nother\tx\tNOPE\n")
    sets = evaluate.read_gene_sets(gmt, ["GRB7", "ERBB2", "ACTB"])
    assert sets == {"tumour": ["ERBB2", "GRB7"]}
    with pytest.raises(InputError, match="sets.gmt: none of its genes is in the run's panel"):
        evaluate.read_gene_sets(gmt, ["ACTB"])
