"""Commands that need no run: what they print, and what they pass on."""

from dataclasses import replace
from types import SimpleNamespace
from typing import get_type_hints

import numpy as np
import pytest
from helpers import TINY

from seal_lite.data import download, report
from seal_lite.data.genes import GenePanel


def test_encoders_are_listed_with_licence_and_what_they_need(cli):
    code, output, _ = cli("encoders")
    assert code == 0
    lines = {line.split()[0]: line for line in output.splitlines()}
    assert lines["uni"].split()[1:3] == ["1024", "224"]
    assert "CC-BY-NC-ND-4.0" in lines["uni"]
    assert "True" in lines["uni"]  # gated
    assert lines["omiclip"].endswith("open_clip_torch")
    assert "local-dir:FOLDER" in output


@pytest.mark.parametrize("name", ["her2st", "visium", "hest"])
def test_fetch_passes_the_folder_and_the_sections_on(cli, tmp_path, monkeypatch, name):
    calls = []
    monkeypatch.setattr(download, f"fetch_{name}", lambda out, *, names: calls.append((out, names)))
    code, output, _ = cli("fetch", name, "--out", tmp_path / "new", "--sections", "C2,C3")
    assert code == 0
    assert output == f"{name} is in {tmp_path / 'new'}\n"
    assert calls == [(tmp_path / "new", ["C2", "C3"])]


@pytest.mark.parametrize("name", ["folder", "hf-hub:me/tuned"])
def test_check_takes_patches_and_genes_of_a_run_without_its_network(
    cli, phantom_root, tmp_path, monkeypatch, name
):
    """The folder has no weights, and names an encoder that would have to be downloaded."""
    config = replace(TINY, backbone="uni", patch_um=100.0, patch_px=48)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(config.to_json())
    GenePanel(("ERBB2", "NOPE"), np.zeros(2), np.ones(2)).save(run / "panel.json")
    fetched = []

    def snapshot(repository, allow_patterns):
        fetched.append((repository, sorted(allow_patterns)))
        return str(run)

    monkeypatch.setattr("seal_lite.model.storage.snapshot_download", snapshot)
    sizes = []
    check_sections = report.check_sections

    def watched(root, config, **options):
        messages, checks = check_sections(root, config, **options)
        sizes.extend((config.patch_um, *check.section.patches.shape[1:3]) for check in checks)
        return messages, checks

    monkeypatch.setattr(report, "check_sections", watched)
    arguments = ["check", "--data", phantom_root, "--out", tmp_path / "page.html"]
    arguments += ["--run", run if name == "folder" else name]
    code, output, error = cli(*arguments)
    assert code == 0, error
    assert "lacks 1 of the panel's 2 genes, as NOPE" in output
    assert sizes == [(100.0, 48, 48)] * 2
    needed = ["checksums.json", "config.json", "panel.json"]
    assert fetched == ([] if name == "folder" else [("me/tuned", needed)])
    assert cli(*arguments, "--set", "patch_px=32")[0] == 0
    assert sizes[2:] == [(100.0, 32, 32)] * 2


def test_share_is_private_unless_public_is_given(cli, tmp_path, monkeypatch):
    from seal_lite import hub

    calls = []

    def push(run, repo, *, scores, private):
        calls.append((run, repo, scores, private))
        return "https://hub/me/x"

    monkeypatch.setattr(hub, "push_to_hub", push)
    scores = tmp_path / "metrics.json"
    code, output, _ = cli("share", "--run", tmp_path, "--repo", "me/x", "--scores", scores)
    assert (code, output) == (0, "shared: https://hub/me/x\n")
    cli("share", "--run", tmp_path, "--repo", "me/x", "--public")
    assert calls == [(tmp_path, "me/x", scores, True), (tmp_path, "me/x", None, False)]


def test_cohort_passes_its_options_on(cli, tmp_path, monkeypatch):
    calls = []

    def write(out, **options):
        calls.append((out, options))
        return out.absolute()

    monkeypatch.setattr("seal_lite.data.phantom.cohort", write)
    code, output, _ = cli("cohort", "--out", tmp_path / "new", "--patients", 20, "--spots", 4)
    assert (code, output) == (0, f"cohort is in {tmp_path / 'new'}\n")
    assert calls == [(tmp_path / "new", {"patients": 20, "spots": 4, "seed": 0})]


@pytest.fixture
def embedded(monkeypatch):
    """The options with which `embed` calls `embed_slides`, which embeds nothing."""
    from seal_lite.slides import embed

    calls = []
    monkeypatch.setattr(embed, "list_slides", lambda folder: [folder / "a.png"])
    monkeypatch.setattr(embed, "embed_slides", lambda *_, **sizes: calls.append(sizes) or ["a.h5"])
    return calls


def test_embed_keeps_the_scale_of_the_frozen_encoder(cli, tmp_path, embedded):
    """A patch of half as many um has half as many px."""
    from seal_lite.slides.places import StoredCoords, TissueGrid

    arguments = ["embed", "--backbone", "tf_efficientnet_lite0", "--slides", tmp_path]
    arguments += ["--out", tmp_path / "out", "--um-per-px", 0.5]
    code, output, _ = cli(*arguments)
    assert (code, output) == (0, f"features of 1 slides are in {tmp_path / 'out'}\n")
    cli(*arguments, "--patch-um", 112)
    rest = {"um_per_px": 0.5, "places": TissueGrid()}
    assert embedded == [
        {"patch_um": 224.0, "patch_px": 160, **rest},
        {"patch_um": 112.0, "patch_px": 80, **rest},
    ]
    cli(*arguments, "--min-tissue", 0.5)
    cli(*arguments, "--coords", tmp_path)
    assert [call["places"] for call in embedded[2:]] == [TissueGrid(0.5), StoredCoords(tmp_path)]


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "dinov2_s14", "vit_tiny_patch16_224"])
def test_frozen_and_finetuned_encoders_see_the_same_patches(
    cli, tmp_path, monkeypatch, embedded, name
):
    """They did not where a row states no scale, so that features differed by it, too."""
    from seal_lite import SEAL
    from seal_lite.cli.options import build_config
    from seal_lite.encoders import backbone_row, vision

    encoder = SimpleNamespace(row=backbone_row(name))
    run = SimpleNamespace(encoder=encoder, config=build_config(backbone=name))  # as `finetune` does
    monkeypatch.setattr(vision, "build_encoder", lambda *_, **__: encoder)
    monkeypatch.setattr(SEAL, "from_pretrained", lambda *_, **__: run)
    for source in (("--backbone", name), ("--run", tmp_path)):
        code, *_ = cli("embed", *source, "--slides", tmp_path, "--out", tmp_path / "out")
        assert code == 0
    frozen, tuned = embedded
    assert frozen == tuned
    assert (tuned["patch_um"], tuned["patch_px"]) == (run.config.patch_um, run.config.patch_px)


def test_embed_gives_a_frozen_encoder_the_scale_of_its_row(cli, tmp_path, monkeypatch, embedded):
    """A pathology encoder was handed patches at half the resolution that it was trained at."""
    from seal_lite.encoders import BACKBONES
    from seal_lite.slides.places import TissueGrid

    row = replace(BACKBONES["test_vit"], um_per_px=0.5)  # 160 px
    monkeypatch.setitem(BACKBONES, "test_vit", row)
    arguments = ["embed", "--backbone", "test_vit", "--slides", tmp_path, "--out", tmp_path / "out"]
    assert cli(*arguments)[0] == 0
    size = {"patch_um": 80.0, "patch_px": 160}
    assert embedded == [{**size, "um_per_px": None, "places": TissueGrid()}]
    code, _, error = cli(*arguments, "--patch-um", 40)
    assert code == 2
    assert "test_vit: 40 um are 80 px at 0.5 um per px, which it does not read" in error
    assert len(embedded) == 1


def test_embed_writes_the_frozen_encoder_of_a_run_read_in_the_same_way(
    cli, tmp_path, monkeypatch, trained
):
    """A frozen encoder by name is read at its own depth and pooling, which is another baseline."""
    import torch

    from seal_lite.encoders import build_encoder
    from seal_lite.slides import embed

    run, model, _ = trained
    encoders = []
    monkeypatch.setattr(embed, "list_slides", lambda folder: [folder / "a.png"])
    monkeypatch.setattr(embed, "embed_slides", lambda one, *_, **__: encoders.append(one) or [])
    for options in ((), ("--frozen",)):
        assert cli("embed", "--run", run, "--slides", tmp_path, "--out", tmp_path, *options)[0] == 0
    tuned, frozen = encoders
    assert frozen.feature_layer == tuned.feature_layer and frozen.row.dim == tuned.row.dim
    image = torch.rand(1, 3, model.config.patch_px, model.config.patch_px)
    with torch.inference_mode():
        expected = build_encoder(model.config.backbone, device="cpu")(image)
        assert torch.allclose(frozen.cpu()(image), expected, atol=1e-5)
        assert not torch.allclose(tuned.cpu()(image), expected, atol=1e-5)


def test_frozen_needs_a_run(cli, tmp_path):
    arguments = ["embed", "--backbone", "test_vit", "--frozen", "--slides", tmp_path]
    code, _, error = cli(*arguments, "--out", tmp_path / "out")
    assert code == 2 and "--frozen: needs a run; give --run, or --backbone alone" in error


@pytest.mark.parametrize(
    "options, message",
    [
        (("--device", "cuda:99"), "--device cuda:99: "),
        (("--backbone", "test_vit", "--set", "patch_px=64"), "test_vit: reads 160 px"),
    ],
)
def test_what_no_section_can_mend_is_an_error_before_any_is_read(
    cli, tmp_path, monkeypatch, options, message
):
    monkeypatch.setattr("seal_lite.data.section.load_sections", lambda *_, **__: pytest.fail())
    arguments = ["finetune", "--data", tmp_path, "--train", "A", "--out", tmp_path / "out"]
    code, _, error = cli(*arguments, *options)
    assert code == 2 and message in error


@pytest.mark.parametrize(
    "command, process, expected",
    [
        ("finetune", "0", "seal-lite: interrupted; the same command resumes from there\n"),
        ("phantom", "0", "seal-lite: interrupted\n"),
        ("finetune", "1", ""),
    ],
)
def test_an_interrupted_command_says_whether_it_resumes(
    cli, tmp_path, monkeypatch, command, process, expected
):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setenv("RANK", process)
    monkeypatch.setattr("seal_lite.data.section.load_sections", interrupt)
    monkeypatch.setattr("seal_lite.data.phantom.phantom", interrupt)
    arguments = {
        "finetune": ["--data", tmp_path, "--train", "A", "--out", tmp_path / "out"],
        "phantom": ["--out", tmp_path / "out"],
    }
    code, _, error = cli(command, *arguments[command])
    assert (code, error) == (130, expected)


def test_the_help_of_embed_states_the_share_of_tissue():
    from seal_lite.cli.slides import embed
    from seal_lite.slides.places import MIN_TISSUE

    (option,) = get_type_hints(embed, include_extras=True)["min_tissue"].__metadata__
    assert option.help.endswith(f"default: {MIN_TISSUE:g}.")


def test_slide_bench_passes_seeds_and_device_on(cli, tmp_path, monkeypatch):
    import torch

    from seal_lite.slides import bench, tasks

    calls = []

    def score(task, bags, **options):
        calls.append(options)
        return {"scores": [{"r": 1}], "delta": [{"r": 1}]}

    monkeypatch.setattr(tasks, "read_slide_task", lambda folder: None)
    monkeypatch.setattr(tasks, "read_bags", lambda task, folder: [])
    monkeypatch.setattr(bench, "score_bags", score)
    arguments = ["slide-bench", "--task", tmp_path, "--features", f"a={tmp_path}"]
    arguments += ["--json", tmp_path / "scores.json", "--seeds", 2]
    code, _, error = cli(*arguments, "--device", "cpu")
    assert code == 0, error
    assert calls == [{"seeds": 2, "device": torch.device("cpu")}]
    code, _, error = cli(*arguments, "--device", "abacus")
    assert code == 2
    assert "--device abacus: is unknown; use auto" in error
    assert len(calls) == 1


@pytest.mark.parametrize("is_run", [True, False])
def test_hest_bench_records_the_run_and_none_of_a_frozen_encoder(
    cli, tmp_path, monkeypatch, is_run
):
    """A frozen encoder's result named the run "None"."""
    import json

    from seal_lite import SEAL, Config
    from seal_lite.cli import evaluate
    from seal_lite.evaluation import features, hest_bench

    task = SimpleNamespace(name="T", files={}, folds=[], load=lambda px: {})
    monkeypatch.setattr(hest_bench, "read_hest_task", lambda *_: task)
    monkeypatch.setattr(hest_bench, "seen_test_samples", lambda *_, **__: [])
    monkeypatch.setattr(hest_bench, "run_hest_bench", lambda *_, **__: {})
    monkeypatch.setattr(features, "embed_all", lambda *_, **__: ({}, {}))
    monkeypatch.setattr(evaluate, "print_task", lambda *_: None)
    monkeypatch.setattr(evaluate, "training_sections", lambda _: [])
    run = SimpleNamespace(config=Config())
    monkeypatch.setattr(SEAL, "from_pretrained", lambda *_, **__: run)
    source = ["--run", tmp_path / "run"] if is_run else ["--backbone", Config.backbone]
    file = tmp_path / "scores.json"
    code, _, error = cli("hest-bench", "--root", tmp_path, "--tasks", "T", "--json", file, *source)
    assert code == 0, error
    (result,) = json.loads(file.read_text())
    assert result["provenance"]["run"] == (str(tmp_path / "run") if is_run else None)


def test_probe_scores_a_run_of_the_hub(cli, trained, phantom_root, tmp_path, monkeypatch):
    """What it was trained on is read from the downloaded folder, too."""
    monkeypatch.setattr(
        "seal_lite.model.storage.snapshot_download", lambda *_, **__: str(trained[0])
    )
    arguments = ["--run", "hf-hub:me/x", "--data", phantom_root, "--json", tmp_path / "scores.json"]
    code, _, error = cli("probe", *arguments, "--train", "PA1", "--test", "PB1")
    assert code == 0, error
    code, _, error = cli("probe", *arguments, "--train", "PB1", "--test", "PA1")
    assert code == 2
    assert "PA1" in error  # the run was trained on it
