"""Every command end to end, on data of every format: exit code, what it prints, what it writes.

These are the commands of `faults.COMMANDS`: a row of a table of faults fails for its own reason.
"""

import json
from functools import partial

import h5py
import pytest
from faults import COMMANDS, copy_pa1_to_pb1, prepare
from PIL import Image

from seal_lite.data import report
from seal_lite.io import TEMPORARY_SUFFIXES


@pytest.fixture
def work(cli, good, tmp_path, monkeypatch):
    """Run a command of `COMMANDS` in a folder of its own; returns what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(command, options="", *, change=None):
        arguments = prepare(good, tmp_path, command, options)
        if change is not None:
            change(tmp_path)
        code, output, error = cli(*arguments)
        assert code == 0, error
        assert (tmp_path / "out").exists()
        outside_out = [path for path in tmp_path.rglob("*") if tmp_path / "out" not in path.parents]
        assert [path for path in outside_out if path.suffix in TEMPORARY_SUFFIXES] == []
        return output

    return run


def read(file):
    return json.loads(file.read_text())


@pytest.mark.parametrize("data", ["h5ad", "visium", "xenium", "zarr", "hest", "ready"])
def test_finetune_reads_every_format(work, tmp_path, data):
    output = work(data)
    assert output.startswith("loss ")
    assert read(tmp_path / "out/provenance.json")["sections"] == ["S1"]


@pytest.mark.parametrize("data", ["h5ad", "visium", "xenium", "zarr", "hest", "ready"])
def test_check_reads_every_format(work, tmp_path, data):
    output = work("check", f"--data {data} --set patch_um=112 --set patch_px=64")
    assert " pairs in 1 sections; wrote out" in output
    assert "cannot be read" not in output
    assert (tmp_path / "out").stat().st_size > 50_000  # with its figures


def test_finetune_a_vision_transformer_with_a_gene_of_the_users(work, tmp_path):
    output = work(
        "finetune", "--backbone test_vit --set tune_blocks=2 --set patch_px=160 --include ACTB"
    )
    assert output.endswith(" in 1 epochs; run is in out\n")
    assert "ACTB" in read(tmp_path / "out/panel.json")["genes"]
    assert read(tmp_path / "out/config.json")["backbone"] == "test_vit"
    history = (tmp_path / "out/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["phase"] for line in history] == ["joint"]


def test_finetune_on_shards(work, tmp_path):
    assert work("shards").startswith("loss ")
    assert read(tmp_path / "out/provenance.json")["sections"] == ["PA1"]


def test_shard(work, tmp_path):
    assert work("shard", "--include ACTB") == "1 shards are in out\n"
    assert (tmp_path / "out/PA1.h5").is_file()
    assert "ACTB" in read(tmp_path / "out/panel.json")["genes"]


def test_shards_for_an_encoder_have_its_size(cli, good, tmp_path):
    data = ("--data", str(good / "legacy"), "--train", "PA1")
    code, _, error = cli("shard", *data, "--out", str(tmp_path), "--backbone", "dinov2_s14")
    assert code == 0, error
    with h5py.File(tmp_path / "PA1.h5") as shard:
        assert shard["img"].shape[1:] == (224, 224, 3)


def test_check_cuts_the_patches_of_an_encoder(work, monkeypatch):
    extract_patches = report.extract_patches
    sizes = set()

    def spy(adata, **size):
        sizes.add((size["patch_um"], size["patch_px"]))
        return extract_patches(adata, **size)

    monkeypatch.setattr(report, "extract_patches", spy)
    work("check", "--backbone phikon")
    assert sizes == {(112.0, 224)}


def test_check_writes_a_page_and_reports_genes_that_a_run_needs(work, tmp_path):
    def drop_a_gene(root):
        path = root / "run/panel.json"
        path.write_text(path.read_text().replace('"ERBB2"', '"NOPE"'))
        (root / "run/checksums.json").unlink()

    output = work("check", "--run run --set patch_px=64", change=drop_a_gene)
    assert " pairs in 2 sections; wrote out" in output
    assert "NOPE" in output
    assert (tmp_path / "out").stat().st_size > 50_000


def test_probe_compares_with_the_frozen_encoder(work, tmp_path):
    output = work("probe")
    assert "tuned" in output
    assert "frozen" in output
    result = read(tmp_path / "out")
    assert [fold["test"] for fold in result["folds"]] == ["PB1"]
    assert result["data"] == "legacy"
    assert {row["minus"] for row in result["delta"]} == {"frozen", "frozen_best"}


def test_crossval_with_leakage_that_was_allowed(work, tmp_path):
    """A second section of PA, under PB's name: without --allow-leakage this is a fault."""
    options = "--groups patient --allow-leakage"
    output = work("crossval", options, change=copy_pa1_to_pb1)
    assert "tuned - shuffled, tuned_ridge, pearson_residuals" in output
    message = "sections PA1 and PB1 have the same counts"
    assert f"leakage allowed: {message}\n" in output
    assert read(tmp_path / "out/metrics.json")["leakage"] == [message]
    folds = sorted(path.name for path in (tmp_path / "out/folds").iterdir())
    assert folds == ["PA-0.json", "PB-0.json"]


def test_hest_bench_marks_what_the_run_was_trained_on(work, tmp_path):
    output = work("bench")
    assert "TINY\n" in output
    assert "hest_bench" in output
    (result,) = read(tmp_path / "out")
    assert len(result["folds"]) == 2
    assert result["provenance"]["leaked"] == ["PA1"]


def test_retrieve_draws_what_it_found(work, tmp_path):
    output = work("retrieve", "--out out/hits.png --top 3")
    assert [line.split()[0] for line in output.splitlines()[:3]] == [
        "recall@1",
        "recall@5",
        "recall@10",
    ]
    assert min(Image.open(tmp_path / "out/hits.png").size) > 200


def test_retrieval_bench_scores_gene_sets_on_each_slide(work, tmp_path):
    output = work("sets")
    assert "genes to images" in output
    result = read(tmp_path / "out")
    assert {row["slide"] for row in result["slides"]} == {"PA1", "PB1"}
    assert [(row["set"], row["slide"]) for row in result["sets"]] == [
        ("tumour", "PA1"),
        ("tumour", "PB1"),
    ]
    assert "predicted from other slides" in output
    predictions = [(row["slide"], row["scope"], row["as"]) for row in result["predictions"]]
    ways = [("other patients", "BLEEP"), ("other patients", "Loki")]
    assert predictions == [(slide, *way) for slide in ("PA1", "PB1") for way in ways]


def test_embed_writes_a_file_a_slide(work, tmp_path):
    assert work("embed") == "features of 2 slides are in out\n"
    written = sorted(path.name for path in (tmp_path / "out").glob("[!.]*"))
    assert written == ["s.h5", "t.h5"]


def test_slide_bench_compares_features_with_those_before(work, tmp_path, monkeypatch):
    from seal_lite.slides.mil import MODELS, abmil

    monkeypatch.setitem(MODELS, "abmil", partial(abmil, epochs=5))
    work("slides", "--features b=features")
    result = read(tmp_path / "out")
    assert {row["features"] for row in result["scores"]} == {"a", "b"}
    assert {(row["of"], row["minus"], row["mean"]) for row in result["delta"]} == {("b", "a", 0.0)}


def test_phantom_is_written_where_asked(cli, tmp_path):
    folder = tmp_path / "phantom"
    options = ["--patients", 1, "--sections-per-patient", 1, "--spots", 9]
    code, output, _ = cli("phantom", "--out", folder, *options)
    assert (code, output) == (0, f"phantom is in {folder}\n")
    assert (folder / "phantom.json").is_file()


def test_every_command_of_the_tables_is_tested():
    tested = {"finetune", "shards", "shard", "check", "probe", "crossval", "bench", "retrieve"}
    formats = {"h5ad", "visium", "xenium", "zarr", "hest", "ready"}
    assert tested | formats | {"sets", "embed", "slides"} == set(COMMANDS)
