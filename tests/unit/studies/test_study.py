"""A whole study on two tiny sections: what it writes, and that it resumes to the same report."""

import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import anndata
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from browser import SIZES
from helpers import TINY

from seal_lite import InputError, study
from seal_lite.data import report as check_module
from seal_lite.locks import exclusive_folder
from seal_lite.studies import plan, run

CONFIG = TINY.override(["epochs=1", "gene_warmup_epochs=0"])
STEPS = ("crossval", "finetune", "embed_sections")  # what a study may be interrupted in


@pytest.fixture(scope="module")
def finished(phantom_root, tmp_path_factory):
    """The folder and the facts of a study that was interrupted before each of its steps."""
    out = tmp_path_factory.mktemp("study") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "SEEDS", (1,))
        for step in STEPS:
            with pytest.MonkeyPatch.context() as interruption:
                interruption.setattr(run, step, interrupt)
                with pytest.raises(KeyboardInterrupt):
                    study(phantom_root, out=out, config=CONFIG, progress=False)
        facts = study(phantom_root, out=out, config=CONFIG, progress=False)
    return out, facts


def interrupt(*_, **__):
    raise KeyboardInterrupt


def test_two_units_are_described_and_get_no_verdict(finished):
    _, facts = finished
    assert facts["verdict"] == "description"
    assert facts["headline"] == "Too few sections for a verdict."
    assert "2 sections" in facts["sentences"][0]
    assert {row["kind"] for row in facts["differences"]} == {"description"}


def test_a_folder_with_other_files_is_left_alone(phantom_root, tmp_path, monkeypatch):
    """The study would remove `cache`, and write over `report.html`."""
    monkeypatch.setattr(run, "measure_speed", interrupt)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="exists and is not of this work; choose another --out"):
        study(phantom_root, out=tmp_path, config=CONFIG, progress=False)
    assert [path.name for path in tmp_path.rglob("*")] == ["cache", "thesis.txt"]


def test_a_second_study_in_the_same_folder_stops(finished, phantom_root):
    out, _ = finished
    with exclusive_folder(out), pytest.raises(InputError, match="writes there"):
        study(phantom_root, out=out, config=CONFIG, progress=False)


def test_an_interrupted_study_resumes_to_the_same_report(finished, phantom_root, monkeypatch):
    out, facts = finished
    before = (out / "report.json").read_text()
    monkeypatch.setattr(run, "measure_speed", interrupt)  # the plan is not made again
    again = study(phantom_root, out=out, config=CONFIG, progress=False)
    assert (out / "report.json").read_text() == before
    assert again["differences"] == facts["differences"]


def test_sections_of_one_patient_need_a_word(phantom_root, tmp_path, monkeypatch):
    """They are refused with the option's name; with it, the cross-validation begins."""
    root = shutil.copytree(phantom_root, tmp_path / "data")
    (root / "sections.tsv").write_text("section\tpatient\nPA1\tP\nPB1\tP\n")
    with pytest.raises(InputError, match="both of patient P.*--allow-leakage"):
        study(root, out=tmp_path / "refused", config=CONFIG, progress=False)
    monkeypatch.setattr(run, "crossval", interrupt)
    with pytest.raises(KeyboardInterrupt):
        study(root, out=tmp_path / "allowed", config=CONFIG, allow_leakage=True, progress=False)


@pytest.mark.nightly
def test_a_study_that_is_killed_in_each_step_ends_with_the_same_report(phantom_root, tmp_path):
    code = "from seal_lite.cli import main; main()"
    settings = json.loads(CONFIG.to_json())
    changed = ("patch_px", "n_views", "n_genes", "project", "batch_size", "tune_blocks")
    overrides = [f"--set={name}={settings[name]}" for name in changed]
    overrides += ["--set=hidden=32,16", "--set=epochs=1", "--set=gene_warmup_epochs=0"]

    def start(out):
        arguments = ["study", "--data", phantom_root, "--out", out, *overrides]
        return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)])

    killed = tmp_path / "killed"
    for pattern in ("crossval/folds/*-1.json", "encoder/*", "embeddings/*.h5ad"):
        process = start(killed)
        while not list(killed.glob(pattern)):
            assert process.poll() is None, f"ended before {pattern}"
            time.sleep(0.02)
        process.kill()
        process.wait()
        assert not (killed / "report.json").exists()
    whole = tmp_path / "whole"
    reports = []
    for out in (killed, whole):
        assert start(out).wait() == 0
        report = json.loads((out / "report.json").read_text())
        for measured in ("costs", "plan"):
            del report[measured]
        reports.append(report)
    assert reports[0] == reports[1]


@pytest.mark.nightly
def test_two_sections_of_visium_get_a_report(tmp_path, truth):
    from made import UM, write_pyramid, write_visium

    root = tmp_path / "visium"
    for seed, name in enumerate(("V1", "V2")):
        counts = np.random.default_rng(seed).poisson(60, truth.counts.shape)
        image = np.rot90(truth.image, seed)
        made = replace(truth, counts=counts.astype(np.float32), image=image)
        write_visium(root / name, made)
        write_pyramid(root / name / f"{name}.tif", image, um_per_px=UM)
    config = replace(CONFIG, patch_um=128.0)
    facts = study(root, out=tmp_path / "out", config=config, progress=False)
    assert [row["unit"] for row in facts["units"]] == ["V1", "V2"]
    assert (tmp_path / "out/report.html").exists()


def test_the_report_states_what_each_unit_was_and_what_trained(finished, sections):
    _, facts = finished
    first, second = (section.name for section in sections)
    seen = {row["unit"]: (row["sections"], row["trained_on"]) for row in facts["units"]}
    assert seen == {first: ([first], [second]), second: ([second], [first])}
    gains = [row["tuned"] - row["frozen_best"] for row in facts["units"]]
    mean = facts["differences"][0]["mean"]
    assert sum(gains) / 2 == pytest.approx(mean, abs=1e-3)
    assert set(facts["sections"]) == {first, second}
    assert "found no sample or patient on both sides" in facts["leakage_statement"]


def test_the_report_sets_actual_costs_beside_planned_ones(finished):
    out, facts = finished
    names = [row["what"] for row in facts["costs"]]
    steps = ["cross-validation", "final training", "report"]
    assert names == [*steps, "in all", "memory, highest", "disk, highest"]
    costs = json.loads((out / "costs.json").read_text())
    assert costs["finished"] == steps
    assert len(costs["folds"]) == 2
    assert sum(costs["folds"]) <= costs["seconds"]["cross-validation"]


def test_the_page_works_offline_and_is_small(finished):
    out, facts = finished
    page = (out / "report.html").read_text()
    assert len(page) < 10e6
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page)
    assert facts["headline"] in page
    text = re.sub(r"data:image/jpeg;base64,[^\"]+", "", page)
    assert str(out.parent) not in text  # no path of this machine
    assert page.count("<tr><td>") >= len(facts["genes"])


@pytest.fixture
def tab(finished, browser):
    out, _ = finished
    tab = browser.new_page(viewport={"width": 390, "height": 900})
    problems = []
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.goto((out / "report.html").as_uri())
    yield tab
    assert problems == []


@pytest.mark.parametrize("width", [390, *(width for width, _ in SIZES.values())])
def test_the_page_is_as_wide_as_its_window_and_describes_its_figures(tab, width):
    tab.set_viewport_size({"width": width, "height": 900})
    assert [rule["id"] for rule in Axe().run(tab).response["violations"]] == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    images = tab.locator("img").evaluate_all("all => all.map(i => [i.naturalWidth, i.alt])")
    assert len(images) > 8
    assert all(size > 0 and alt.strip() for size, alt in images)
    headline, sentence = (tab.locator(name).first for name in ("h1", "header > p:not(.about)"))
    assert headline.bounding_box()["y"] < sentence.bounding_box()["y"] < 900


def test_the_gene_table_sorts_and_filters(tab, finished):
    _, facts = finished
    gains = [row["gain"] for row in facts["genes"]]
    assert gains == sorted(gains, reverse=True)
    column = {
        name: f"#gene-table tbody td:nth-child({i})" for i, name in ((1, "gene"), (2, "gain"))
    }

    def values(name):
        return tab.locator(column[name]).all_inner_texts()

    tab.get_by_role("button", name="gain").click()
    assert [float(gain) for gain in values("gain")] == sorted(
        float(f"{gain:.3f}") for gain in gains
    )
    assert tab.locator("th[aria-sort]").get_attribute("aria-sort") == "ascending"
    tab.get_by_role("button", name="gene").click()
    assert values("gene")[0] == min(values("gene"), key=str.casefold)
    assert tab.locator("th[aria-sort]").all_inner_texts()[0].startswith("gene")
    name = facts["genes"][0]["gene"]
    tab.locator("#filter").fill(name.lower())
    visible = tab.locator("#gene-table tbody tr:visible td:first-child").all_inner_texts()
    assert name in visible and all(name.upper() in shown.upper() for shown in visible)
    assert f"{len(visible)} of {len(gains)} genes" in tab.locator("#shown").inner_text()


def test_on_paper_nothing_is_hidden_behind_a_scroll_bar(tab):
    tab.emulate_media(media="print")
    hidden = "all => all.filter(e => getComputedStyle(e).overflowY !== 'visible').length"
    assert tab.locator(".scroll").evaluate_all(hidden) == 0
    assert not tab.locator("#filter").is_visible()
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert tab.locator("dl").is_visible()


def test_every_section_has_both_embeddings(finished, sections):
    out, _ = finished
    for section in sections:
        adata = anndata.read_h5ad(out / f"embeddings/{section.name}.h5ad")
        assert len(adata) == len(section.rows)
        assert adata.obsm["X_seal"].shape == adata.obsm["X_frozen"].shape
        assert (adata.obsm["X_seal"] != adata.obsm["X_frozen"]).any()
        assert "counts" in adata.layers


def test_the_final_encoder_has_its_card_with_the_scores_of_the_folds(finished, sections):
    out, _ = finished
    card = (out / "encoder/README.md").read_text()
    assert "tuned - frozen_best" in card
    record = json.loads((out / "encoder/provenance.json").read_text())
    assert record["sections"] == [section.name for section in sections]
    assert not (out / "cache").exists() and not (out / "crossval/cache").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda record: record.pop("seed"), "runs: has no run of seed 0 that was trained on"),
        (lambda record: record.update(seed="0"), "provenance.json: seed='0' must be"),
        (lambda record: record.update(sections=["ZZ9"]), "runs: has no run of seed 0"),
        (lambda record: record.pop("sections"), "provenance.json: sections is missing"),
    ],
)
def test_a_damaged_run_of_a_fold_is_named(finished, sections, tmp_path, damage, message):
    out, _ = finished
    names = [section.name for section in sections]
    folder = tmp_path / "crossval"
    for path in (out / "crossval/runs").glob("*/tuned/provenance.json"):
        record = json.loads(path.read_text())
        damage(record)
        copy = folder / path.relative_to(out / "crossval")
        copy.parent.mkdir(parents=True)
        copy.write_text(json.dumps(record))
    each_group_once = SimpleNamespace(train_groups=None)
    with pytest.raises(InputError, match=message):
        run.fold_runs(folder, sections, names, each_group_once)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"units": 0}, "plan.json: plan.units=0 must be"),
        ({"seeds": -1}, "plan.json: plan.seeds=-1 must be"),
        ({"seconds": {"report": 1.0}}, "plan.json: is of other groups or steps"),
        ({"by": "organ"}, "plan.json: is of other groups or steps"),
    ],
)
def test_a_damaged_plan_is_named(finished, tmp_path, change, message):
    out, _ = finished
    content = json.loads((out / "plan.json").read_text())
    content["plan"] |= change
    (tmp_path / "plan.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        run.resume_plan(tmp_path, content["of"])


def test_a_folder_of_another_study_is_refused(finished, phantom_root):
    out, _ = finished
    with pytest.raises(InputError, match="holds another study"):
        study(phantom_root, out=out, config=CONFIG, hours=3, progress=False)


def test_access_to_a_gated_encoder_is_checked_before_the_data(tmp_path, monkeypatch):
    import timm
    from huggingface_hub.errors import GatedRepoError

    class Response:
        headers: dict = {}
        status_code = 403
        request = None

    def refuse(*_, **__):
        raise GatedRepoError("gated", response=Response())

    monkeypatch.setattr(timm, "create_model", refuse)
    monkeypatch.setattr(run, "check_usable", interrupt)
    with pytest.raises(InputError, match=r"uni2_h: is gated; accept its terms at https://.*login"):
        run.study(tmp_path, out=tmp_path / "out", config=run.config_for("uni2_h"), progress=False)
    assert not (tmp_path / "out").exists()


def test_each_section_is_read_once(phantom_root, tmp_path, monkeypatch):
    names = []
    read_counts = check_module.read_counts

    def read(root, name):
        names.append(name)
        return read_counts(root, name)

    monkeypatch.setattr(check_module, "read_counts", read)
    monkeypatch.setattr(run, "measure_speed", interrupt)
    with pytest.raises(KeyboardInterrupt):
        study(phantom_root, out=tmp_path / "out", config=CONFIG, progress=False)
    assert names == ["PA1", "PB1"]


def test_a_study_without_progress_draws_no_bar_of_its_check(
    phantom_root, tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(run, "measure_speed", interrupt)
    with pytest.raises(KeyboardInterrupt):
        study(phantom_root, out=tmp_path / "out", config=CONFIG, progress=False)
    assert capfd.readouterr().err == ""


def test_data_that_cannot_be_used_stop_a_study_with_what_to_mend(tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(InputError, match="data"):
        study(tmp_path / "data", out=tmp_path / "out", config=CONFIG, progress=False)
    assert not (tmp_path / "out").exists()


def test_all_damaged_sections_are_named_at_once(phantom_root, tmp_path):
    root = shutil.copytree(phantom_root, tmp_path / "data")
    for name in ("PA1", "PB1"):
        (root / f"data/ST-cnts/{name}.tsv.gz").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"--sections: .*PA1\.tsv\.gz.*; .*PB1\.tsv\.gz"):
        study(root, out=tmp_path / "out", config=CONFIG, progress=False)
