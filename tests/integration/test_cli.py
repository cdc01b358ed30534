"""The command line as a user meets it: exit codes, one sentence, files where asked for."""

import json
import shutil

import pytest
from PIL import Image

from seal_lite.data.phantom import write_task

SMALL = "n_genes=40 hidden=32,16 project=16 batch_size=16 n_views=2 gene_warmup_epochs=1"
SMALL = [part for setting in SMALL.split() for part in ("--set", setting)]
LITE = ["--set", "patch_px=64", *SMALL, "--epochs", "1"]


@pytest.fixture(scope="module")
def run(trained):
    return trained[0]


def test_phantom(cli, tmp_path):
    out = tmp_path / "p"
    code, told, _ = cli(
        "phantom", "--out", out, "--patients", 1, "--sections-per-patient", 1, "--spots", 9
    )
    assert code == 0 and str(out) in told and (out / "phantom.json").is_file()


def test_finetune_a_vision_transformer(cli, phantom_root, tmp_path):
    """The transformer path end to end, with a gene that the user wants in the panel."""
    args = [
        "finetune",
        "--data",
        phantom_root,
        "--train",
        "PA1",
        "--out",
        tmp_path / "run",
        "--backbone",
        "test_vit",
        "--set",
        "patch_px=160",
        *SMALL,
        "--epochs",
        "1",
        "--include",
        "ACTB",
    ]
    code, told, _ = cli(*args)
    assert code == 0 and "loss" in told
    assert "ACTB" in json.loads((tmp_path / "run/panel.json").read_text())["genes"]
    assert json.loads((tmp_path / "run/config.json").read_text())["backbone"] == "test_vit"
    history = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert len(history) == 2 and "clip" in json.loads(history[-1])


def test_hest_bench(cli, sections, run, tmp_path):
    folds = [(["PA1"], ["PB1"]), (["PB1"], ["PA1"])]
    write_task(tmp_path / "bench", "TINY", sections, folds, ["ERBB2", "COL1A1"])
    args = ["hest-bench", "--root", tmp_path / "bench", "--json", tmp_path / "scores.json"]
    code, _, told = cli(*args, "--run", run)
    assert code == 2 and "finetuned on test sample PA1" in told
    code, told, _ = cli(*args, "--run", run, "--allow-leakage")
    (result,) = json.loads((tmp_path / "scores.json").read_text())
    assert code == 0 and "hest_bench" in told and "TINY" in told
    assert len(result["folds"]) == 2 and result["provenance"]["leaked"] == ["PA1"]
    code, _, told = cli(*args)
    assert code == 2 and "--run or --backbone" in told
    code, _, told = cli(*args, "--backbone", "test_vit", "--tasks", "IDC")
    assert code == 2 and "IDC" in told


def test_probe(cli, phantom_root, run, tmp_path):
    file = tmp_path / "new/scores.json"
    code, told, _ = cli(
        "probe",
        "--run",
        run,
        "--data",
        phantom_root,
        "--train",
        "PA1",
        "--test",
        "PB1",
        "--json",
        file,
    )
    result = json.loads(file.read_text())
    assert code == 0 and "tuned" in told and "frozen" in told
    (fold,) = result["folds"]
    assert fold["test"] == "PB1" and {"data", "backbone", "provenance", "delta"} <= set(result)
    assert {d["minus"] for d in result["delta"]} == {"frozen", "frozen_best"}


def test_crossval(cli, phantom_root, tmp_path):
    args = [
        "crossval",
        "--data",
        phantom_root,
        "--groups",
        "section",
        "--seeds",
        1,
        "--out",
        tmp_path / "cv",
        *LITE,
    ]
    code, told, _ = cli(*args)
    assert code == 0 and "tuned - shuffled, tuned_ridge, pearson_residuals" in told
    folds = sorted(p.name for p in (tmp_path / "cv/folds").iterdir())
    assert folds == ["PA1-0.json", "PB1-0.json"] and (tmp_path / "cv/metrics.json").is_file()


def test_crossval_refuses_a_split_that_leaks(cli, phantom_root, tmp_path):
    """A second section of PA, under PB's name: nothing is trained, unless it is allowed."""
    root = shutil.copytree(phantom_root, tmp_path / "data")
    shutil.copy(root / "data/ST-cnts/PA1.tsv.gz", root / "data/ST-cnts/PB1.tsv.gz")
    shutil.copy(
        root / "data/ST-spotfiles/PA1_selection.tsv", root / "data/ST-spotfiles/PB1_selection.tsv"
    )
    shutil.rmtree(root / "truth")  # real data has none
    args = [
        "crossval",
        "--data",
        root,
        "--groups",
        "patient",
        "--seeds",
        1,
        "--out",
        tmp_path / "cv",
        *LITE,
    ]
    code, _, told = cli(*args)
    assert code == 2 and "PA1 and PB1 have the same counts" in told
    assert not (tmp_path / "cv").exists()
    code, told, _ = cli(*args, "--allow-leakage")
    assert code == 0 and "leakage allowed" in told
    result = json.loads((tmp_path / "cv/metrics.json").read_text())
    assert result["leakage"] == ["sections PA1 and PB1 have the same counts"]


def test_retrieve(cli, phantom_root, run, trained, tmp_path):
    genes = ",".join(trained[1].panel.genes[:2])
    picture = tmp_path / "new/hits.png"
    code, told, _ = cli(
        "retrieve",
        "--run",
        run,
        "--data",
        phantom_root,
        "--section",
        "PB1",
        "--genes",
        genes,
        "--top",
        3,
        "--out",
        picture,
    )
    assert code == 0 and "recall@10" in told and "chance" in told
    assert min(Image.open(picture).size) > 200


WRONG = {
    "unknown section": ("finetune", "--train", "PA1,ZZ9", "ZZ9"),
    "no section": ("finetune", "--train", ",", ""),
    "unknown preset": ("finetune", "--preset", "quick", "quick"),
    "unknown setting": ("finetune", "--set", "speed=9", "speed"),
    "unknown backbone": ("finetune", "--backbone", "no_such_model", "no_such_model"),
    "wrong patch size": ("finetune", "--set", "patch_px=1000", "um/px"),
    "no data": ("finetune", "--data", "nowhere", "nowhere"),
    "unknown included gene": ("finetune", "--include", "NOPE", "NOPE"),
    "trained on the test section": ("probe", "--test", "PA1", "PA1"),
    "unknown test section": ("probe", "--test", "ZZ9", "ZZ9"),
    "no run": ("probe", "--run", "nowhere", "nowhere"),
    "gene outside the panel": ("retrieve", "--genes", "NOPE", "NOPE"),
    "no gene": ("retrieve", "--genes", ",", ""),
    "unknown groups": ("crossval", "--groups", "slide", "slide"),
    "unknown crossval section": ("crossval", "--sections", "ZZ9", "ZZ9"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_input_is_one_sentence_and_exit_code_2(cli, phantom_root, run, tmp_path, wrong):
    command, option, value, word = WRONG[wrong]
    gene = json.loads((run / "panel.json").read_text())["genes"][0]
    given = {
        "finetune": {"--data": phantom_root, "--train": "PA1", "--out": tmp_path / "out"},
        "probe": {
            "--run": run,
            "--data": phantom_root,
            "--train": "PA1",
            "--test": "PB1",
            "--json": tmp_path / "out",
        },
        "crossval": {"--data": phantom_root, "--out": tmp_path / "out"},
        "retrieve": {
            "--run": run,
            "--data": phantom_root,
            "--section": "PB1",
            "--genes": gene,
            "--out": tmp_path / "out",
        },
    }[command] | {option: value}
    code, told, error = cli(command, *(x for pair in given.items() for x in pair))
    assert code == 2 and told == ""
    (sentence,) = [line for line in error.splitlines() if "cache" not in line]
    assert sentence.startswith("seal-lite: ") and word in sentence and "Traceback" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("args", [["--colour"], ["train"], ["probe", "--run", "x"]])
def test_unknown_command_or_option_is_exit_code_2(cli, args):
    code, _, error = cli(*args)
    assert code == 2 and ("No such" in error or "Missing option" in error)


def test_help_lists_every_command(cli):
    code, told, _ = cli("--help")
    assert code == 0
    for command in ("fetch", "phantom", "finetune", "probe", "crossval", "retrieve"):
        assert command in told


def test_encoders_are_listed_with_licence_and_what_they_need(cli):
    code, told, _ = cli("encoders")
    assert code == 0 and "local-dir:FOLDER" in told
    (uni,) = (line for line in told.splitlines() if line.split()[0] == "uni")
    assert "1024" in uni and "CC-BY-NC-ND-4.0" in uni and "True" in uni
    (clip,) = (line for line in told.splitlines() if line.split()[0] == "omiclip")
    assert clip.endswith("open_clip_torch")


def test_share_uploads_with_scores_and_privately(cli, run, tmp_path, monkeypatch):

    asked = {}
    monkeypatch.setattr(
        share, "push_to_hub", lambda *a, **k: asked.update(a=a, k=k) or "https://hub/me/x"
    )
    code, told, _ = cli("share", "--run", run, "--repo", "me/x", "--scores", tmp_path / "m.json")
    assert code == 0 and "https://hub/me/x" in told
    assert asked == {"a": (run, "me/x"), "k": {"scores": tmp_path / "m.json", "private": True}}


def test_unknown_data_set_is_refused(cli, tmp_path):
    code, _, error = cli("fetch", "tcga", "--out", tmp_path / "out")
    assert code == 2 and "her2st" in error and not (tmp_path / "out").exists()


def test_check_writes_a_page_and_says_what_it_found(cli, phantom_root, run, tmp_path):
    page = tmp_path / "new/check.html"
    code, told, _ = cli(
        "check", "--data", phantom_root, "--out", page, "--run", run, "--set", "patch_px=64"
    )
    assert code == 0 and " pairs in 2 sections" in told and page.stat().st_size > 50_000
    code, _, told = cli("check", "--data", tmp_path / "nowhere", "--out", tmp_path / "x.html")
    assert code == 2 and "holds no section" in told and not (tmp_path / "x.html").exists()
