"""What can be wrong with runs, shards, options, settings, output folders, and the world around."""

import resource
import shutil
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
from faults import (
    check_fault,
    contents,
    copy,
    declare_terabytes,
    each_fault,
    edit_h5,
    edit_json,
    error_line,
    fault_table,
    make_folder,
    point_elsewhere,
    prepare,
    remove,
    replace,
    truncate,
    write,
)
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

ADAPTER = "run/adapter/adapter_model.safetensors"


def pickle_heads(root):
    import torch

    torch.save({}, root / "run/heads.safetensors")


def replace_array(name, change):
    """A function that replaces an array of an open HDF5 file by what `change` makes of it."""

    def replace(file):
        array = file[name][:]
        del file[name]
        file[name] = change(array)

    return replace


def put_notes_into_out(root):
    (root / "out").mkdir()
    (root / "out/notes").write_text("mine")


RUNS_A_NETWORK = ("finetune", "crossval", "probe", "retrieve", "bench", "embed")


def unknown_device(command):
    """The fault of a command on a device that torch does not know."""
    message = "--device abacus: is unknown; use auto, cuda, mps or cpu"
    return fault_table(command, (f"{command} on an abacus", "--device abacus", message))


FAULTS = [
    *(fault for command in RUNS_A_NETWORK for fault in unknown_device(command)),
    *fault_table(
        "probe",
        ("no run", "--run nowhere", "nowhere/config.json: cannot be read"),
        ("a setting of another version", edit_json("run/config.json", "speed", 9), "speed"),
        (
            "a setting of a run is a word",
            edit_json("run/config.json", "epochs", "ten"),
            "epochs='ten'",
        ),
        ("settings end early", truncate("run/config.json"), "config.json: cannot be read"),
        ("the panel ends early", truncate("run/panel.json"), "panel.json: cannot be read"),
        (
            "the panel is another's",
            replace("run/panel.json", '"ERBB2", ', "", 1),
            "panel.json: mean has ",
        ),
        ("the base is another's", edit_json("run/base.json", "sha256", "0" * 64), "other weights"),
        ("the base is not named", write("run/base.json", "{}"), "base.json: sha256 is missing"),
        ("no adapter", remove("run/adapter"), "adapter_model.safetensors: cannot be read"),
        ("the adapter ends early", truncate(ADAPTER), "adapter_model.safetensors: cannot be read"),
        (
            "an adapter of another rank",
            edit_json("run/config.json", "lora_rank", 4),
            "adapter_config.json: r is 32, but 4 in config.json",
        ),
        (
            "a rank below 0",
            edit_json("run/config.json", "lora_rank", -4),
            "config.json: lora_rank=-4 must be a whole number at least 0",
        ),
        (
            "the panel is another run's",
            edit_json("run/panel.json", "share", 0.9),
            "as it was written",
        ),
        ("heads end early", truncate("run/heads.safetensors"), "heads.safetensors: cannot be read"),
        ("heads are a pickle", pickle_heads, "heads.safetensors: cannot be read"),
        (
            "its training sections are unknown",
            remove("run/provenance.json"),
            "provenance.json: cannot be read",
        ),
        ("the file is a folder", make_folder("out"), "out: cannot be written"),
    ),
    *fault_table(
        "retrieve",
        ("a gene outside the panel", "--genes NOPE", "NOPE"),
        ("no gene", "--genes ,", "names nothing"),
        ("no patch to retrieve", "--top 0", "--top"),
    ),
    *fault_table(
        "sets",
        ("no gene sets", write("sets.gmt", "\n"), "sets.gmt"),
        ("gene sets of other genes", write("sets.gmt", "A\tx\tNOPE\n"), "sets.gmt: none of its"),
    ),
    *fault_table(
        "shards",
        ("a shard ends early", truncate("shards/PA1.h5"), "PA1.h5: is no shard"),
        (
            "a shard declares 4 TB",
            declare_terabytes("shards/PA1.h5", "img"),
            "PA1.h5: declares",
        ),
        (
            "a shard points elsewhere",
            edit_h5("shards/PA1.h5", point_elsewhere(".")),
            "outside 0 to",
        ),
        (
            "a shard's patches are of another size",
            edit_h5("shards/PA1.h5", replace_array("img", lambda x: x[:, :8, :8])),
            "PA1.h5: img is uint8",
        ),
        (
            "a shard's patches are not square",
            edit_h5("shards/PA1.h5", replace_array("img", lambda x: x[:, :, :8])),
            "PA1.h5: img is uint8",
        ),
        ("a shard is there twice", copy("shards/PA1.h5", "shards/X.h5"), "X.h5: holds section PA1"),
        (
            "a shard's lowest scores are of another type",
            edit_h5("shards/PA1.h5", replace_array("lowest", lambda x: x.astype(float))),
            "PA1.h5: lowest is float64",
        ),
        (
            "a shard's scores are absurd",
            edit_h5("shards/PA1.h5", replace_array("data", lambda x: x * np.float32(1e30))),
            "PA1.h5: data has values beyond 1e+06",
        ),
        ("shards of other settings", "--set smooth=0.5", "smooth=0.2, not smooth=0.5"),
        ("a section without a shard", "--train ZZ9", "no shard of section 'ZZ9'"),
        ("a gene that shards lack", "--include ACTB", "--include: shards has its panel"),
    ),
    *fault_table(
        "finetune",
        ("an unknown option", "--colour red", "No such option: --colour"),
        ("an option without value", "--seed", "--seed"),
        ("a number is a word", "--epochs ten", "--epochs"),
        ("an unknown preset", "--preset quick", "--preset quick: unknown"),
        ("an unknown setting", "--set speed=9", "no setting 'speed'"),
        ("a setting is a word", "--set n_genes=many", "n_genes=many"),
        ("an unknown choice", "--set hvg=best", "hvg='best'"),
        ("no epoch", "--epochs 0", "epochs=0"),
        ("no temperature", "--set temperature=nan", "temperature=nan"),
        ("a share above 1", "--set smooth=3", "smooth=3.0"),
        ("a negative rate", "--set lr_lora=-1", "lr_lora=-1.0"),
        ("a layer without width", "--set hidden=32,0", "hidden[1]=0"),
        ("more blocks than there are", "--set tune_blocks=99", "tune_blocks=99"),
        ("an unknown encoder", "--backbone no_such_model", "no_such_model"),
        ("a gene that no section has", "--include NOPE", "NOPE is in no training section"),
        ("the folder is a file", write("out", "mine"), "out: cannot be written"),
        ("a folder of other files", put_notes_into_out, "out: exists and is not of this work"),
        ("a run of other settings", copy("run", "out"), "out: holds other work"),
    ),
    *fault_table(
        "crossval",
        ("an encoder of other pixels", "--backbone test_vit", "reads 160 px; set patch_px=160"),
        ("no seed at all", "--seeds 0", "--seeds"),
        (
            "the folder is below a file",
            "--out legacy/phantom.json/new",
            "new: cannot be written",
        ),
    ),
    *fault_table(
        "check",
        ("the page is a folder", make_folder("out"), "out: cannot be written"),
        ("no data to check", "--data nowhere", "nowhere: holds no section"),
        ("two encoders", "--run run --backbone phikon", "--backbone: a run has its own"),
    ),
]


@each_fault(FAULTS)
def test_a_fault_is_one_line_and_nothing_is_written(cli, good, tmp_path, monkeypatch, fault):
    check_fault(cli, good, tmp_path, monkeypatch, fault)


@dataclass(frozen=True)
class WorldFault:
    """Something around us fails: a call is replaced by one that raises an error."""

    name: str
    command: str
    message: str
    call: str = ""
    error: Exception | None = None


REFUSED = SimpleNamespace(headers={}, status_code=401, request=None, history=[])
EMBED = "embed --slides slides --out out --backbone"
WORLD = [
    WorldFault(
        "an unknown data set", "fetch tcga --out out", "fetch tcga: unknown data set; use her2st"
    ),
    WorldFault("an unknown section of it", "fetch her2st --sections Z9 --out out", "Z9"),
    WorldFault("a collection without names", "fetch hest --out out", "--sections"),
    WorldFault(
        "no network",
        "fetch hest --sections TENX95 --out out",
        "go online",
        call="huggingface_hub.HfApi.dataset_info",
        error=OSError("Name or service not known"),
    ),
    WorldFault(
        "a token that is refused",
        "fetch hest --sections TENX95 --out out",
        "hf auth login",
        call="huggingface_hub.HfApi.dataset_info",
        error=HfHubHTTPError("401 Unauthorized", response=REFUSED),
    ),
    WorldFault(
        "no access to what is gated",
        f"{EMBED} uni",
        "is gated; accept its terms",
        call="timm.create_model",
        error=GatedRepoError("403", response=REFUSED),
    ),
    WorldFault(
        "no network for an encoder",
        f"{EMBED} resnet18",
        "its weights cannot be fetched",
        call="timm.create_model",
        error=OSError("unreachable"),
    ),
    WorldFault("an encoder that is not installed", f"{EMBED} conch", "conch is not installed"),
    WorldFault(
        "a run that the hub does not have",
        "probe --run hf-hub:me/none --data legacy --train PA1 --test PB1 --json out",
        "hf-hub:me/none: cannot be fetched",
        call="huggingface_hub._snapshot_download.HfApi.repo_info",
        error=RepositoryNotFoundError("404", response=REFUSED),
    ),
    WorldFault(
        "no network to share",
        "share --run run --repo me/x",
        "me/x: cannot be written",
        call="huggingface_hub.HfApi.create_repo",
        error=OSError("unreachable"),
    ),
    WorldFault(
        "scores that are none",
        "share --run run --repo me/x --scores sets.gmt",
        "sets.gmt: cannot be read",
    ),
    WorldFault(
        "a package that is not installed",
        f"{EMBED} tf_efficientnet_lite0",
        "tiffslide is not installed; pip install",
        call="seal_lite.slides.embed.open_slide",
        error=ModuleNotFoundError("no", name="tiffslide"),
    ),
]


@pytest.mark.parametrize("fault", WORLD, ids=lambda fault: fault.name)
def test_a_fault_of_the_world_is_one_line(cli, good, tmp_path, monkeypatch, fault):
    monkeypatch.chdir(tmp_path)

    def fail(*_, **__):
        raise fault.error

    for name in ("run", "legacy", "slides"):
        shutil.copytree(good / name, tmp_path / name)
    shutil.copy(good / "sets.gmt", tmp_path)
    if fault.error is not None:
        monkeypatch.setattr(fault.call, fail)
    before = contents(tmp_path)
    code, _, error = cli(*fault.command.split())
    assert fault.message in error_line(error)
    assert code == 2
    assert contents(tmp_path) == before


def test_a_full_disk_is_reported_and_the_run_resumes(cli, good, tmp_path, monkeypatch, caplog):
    """No file may be larger than 300 kB for a while, as if the disk were full.

    The cache gives way, and the checkpoint is an error.
    """
    monkeypatch.chdir(tmp_path)
    arguments = prepare(good, tmp_path, "finetune", "--cache cache")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    try:
        code, _, error = cli(*arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 2
    assert any("File too large, so the prefix runs" in text for text in caplog.messages)
    assert "out: cannot be written" in error_line(error)
    assert "free some space and run it again" in error_line(error)
    assert list(tmp_path.rglob("*.part")) == []
    code, _, error = cli(*arguments)
    assert code == 0, error
    assert (tmp_path / "out/heads.safetensors").exists()
