"""Settings: every value is checked, and a run's config.json outlives the version that wrote it."""

import json
import math

import pytest

from seal_lite import Config, InputError, preset


@pytest.fixture
def write(tmp_path):
    """Write a config.json: the default settings with changes, and without some of them."""

    def call(*, without=(), **changes):
        settings = {**json.loads(Config().to_json()), **changes}
        for name in without:
            del settings[name]
        path = tmp_path / "config.json"
        path.write_text(json.dumps(settings))
        return path

    return call


def test_assignments_are_parsed_to_each_settings_type():
    changes = "epochs=3 lr_lora=1e-3 hidden=64,32 learn_temperature=true backbone=test_vit clip=inf"
    config = Config().override(changes.split())
    assert (config.epochs, config.lr_lora, config.hidden) == (3, 1e-3, (64, 32))
    assert config.learn_temperature is True
    assert config.backbone == "test_vit"
    assert config.clip == math.inf


@pytest.mark.parametrize(
    "assignment",
    [
        "epoch=3",
        "epochs=three",
        "epochs=-1",
        "epochs=0",
        "batch_size=1",
        "hidden=64,0",
        "hidden=",
        "hvg=best",
        "learn_temperature=maybe",
        "lr_lora=-1",
        "lr_lora=nan",
        "precision=fp8",
        "seed=-1",
        "smooth_over=square",
        "as_released=maybe",
        "temperature=0",
        "warmup=1.5",
        "zscore=never",
    ],
)
def test_a_wrong_assignment_is_an_error_that_names_the_setting(assignment):
    with pytest.raises(InputError, match=assignment.split("=")[0]):
        Config().override([assignment])


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("epochs", 2.0),
        ("epochs", True),
        ("lr_lora", "1e-3"),
        ("learn_temperature", 1),
        ("hidden", 64),
        ("hidden", [64, 0]),
        ("hidden", ("wide",)),
        ("hidden", ()),
    ],
)
def test_a_value_of_another_type_is_an_error(setting, value):
    with pytest.raises(InputError, match=setting):
        Config(**{setting: value})


def test_an_int_stands_for_a_float():
    assert Config(temperature=1).temperature == 1


@pytest.mark.parametrize("name", ["default", "paper"])
def test_settings_survive_the_file(tmp_path, name):
    path = tmp_path / "config.json"
    path.write_text(preset(name).to_json())
    assert Config.from_json(path) == preset(name)


def test_the_file_is_valid_json_without_infinity():
    def refuse(constant):
        pytest.fail(f"{constant} is no JSON")

    settings = json.loads(preset("paper").to_json(), parse_constant=refuse)
    assert settings["clip"] is None
    assert settings["grad_clip"] is None


def test_a_file_with_infinity_loads(write):
    """Version 0.1 wrote the word."""
    path = write(clip=math.inf)
    assert "Infinity" in path.read_text()
    assert Config.from_json(path).clip == math.inf


def test_a_setting_that_an_older_version_lacks_takes_its_default(write):
    path = write(without=["grad_clip", "n_flows"], epochs=7)
    assert Config.from_json(path) == Config(epochs=7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": "blue"}, "colour is unknown"),
        ({"epochs": "ten"}, "config.json: epochs='ten' must be a whole number at least 1"),
        ({"epochs": None}, "epochs=None must be a whole number"),
        ({"hidden": 64}, "hidden=64"),
        ({"temperature": math.nan}, "temperature=nan must be a number at least 0.01"),
        ({"temperature": None}, "temperature=None must be a number at least 0.01"),
        ({"lora_rank": -4}, "config.json: lora_rank=-4 must be a whole number at least 0"),
        ({"lora_rank": 10**9}, "lora_rank=1000000000 must be"),
        ({"lr_lora": 10**400}, "lr_lora="),
        ({"hidden": [32, -16]}, "hidden[1]=-16 must be a whole number at least 1"),
        ({"hidden": [32, 10**9]}, "at most 16384"),
        ({"hidden": [8] * 99}, "of 1 to 16 entries, not 99"),
        ({"n_flows": 10**6}, "n_flows=1000000 must be"),
        ({"project": -1}, "project=-1"),
        ({"n_views": 10**12}, "n_views="),
        ({"hvg": "best"}, "hvg='best' must be one of pearson_residuals, seurat"),
        ({"pooling": ["own"]}, "pooling=['own'] must be one of"),
        ({"backbone": ""}, "backbone='' must be text"),
    ],
)
def test_a_file_that_does_not_fit_is_named_with_its_setting(write, changes, message):
    path = write(**changes)
    with pytest.raises(InputError) as error:
        Config.from_json(path)
    assert str(path) in str(error.value)
    assert message in str(error.value)


def test_a_list_stands_for_a_tuple():
    assert Config(hidden=[64, 32]) == Config(hidden=(64, 32))


def test_a_file_without_a_backbone_is_no_config(write):
    with pytest.raises(InputError, match="backbone"):
        Config.from_json(write(without=["backbone"]))


def test_an_unknown_preset_is_an_error():
    with pytest.raises(InputError, match="quick"):
        preset("quick")


def test_the_paper_preset_is_the_released_configuration():
    """mahmoodlab/SEAL v0.0.1, but for its gene loss, which test_losses.py checks."""
    released = {
        "patch_um": 112.0,
        "patch_px": 224,
        "n_genes": 2000,
        "hvg": "seurat",
        "smooth": 0.5,
        "smooth_over": "disc",
        "as_released": True,
        "zscore": "train",
        "hidden": (1024, 512),
        "n_flows": 3,
        "tune_blocks": 1,
        "lora_rank": 8,
        "lora_alpha": 8.0,
        "lora_dropout": 0.15,
        "temperature": 0.05,
        "learn_temperature": False,
        "w_clip": 1.0,
        "w_gene": 1.0,
        "w_image": 1.0,
        "w_kl": 0.0,
        "lr_lora": 1e-4,
        "lr_heads": 1e-4,
        "weight_decay": 0.2,
        "epochs": 10,
        "batch_size": 384,
        "seed": 42,
    }
    paper = preset("paper")
    assert {name: getattr(paper, name) for name in released} == released
