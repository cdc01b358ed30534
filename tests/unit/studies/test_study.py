"""A whole study on two tiny sections: what it writes, and that it resumes to the same report."""

import json
import re

import anndata
import pytest
from helpers import TINY

from seal_lite import InputError, study
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
    assert "2 units" in facts["sentences"][0]
    assert {row["kind"] for row in facts["differences"]} == {"description"}


def test_an_interrupted_study_resumes_to_the_same_report(finished, phantom_root, monkeypatch):
    out, facts = finished
    before = (out / "report.json").read_text()
    monkeypatch.setattr(run, "measure_speed", interrupt)  # the plan is not made again
    again = study(phantom_root, out=out, config=CONFIG, progress=False)
    assert (out / "report.json").read_text() == before
    assert again["differences"] == facts["differences"]


def test_the_page_works_offline_and_is_small(finished):
    out, facts = finished
    page = (out / "report.html").read_text()
    assert len(page) < 10e6
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page)
    assert facts["headline"] in page
    text = re.sub(r"data:image/jpeg;base64,[^\"]+", "", page)
    assert str(out.parent) not in text  # no path of this machine
    assert page.count("<tr><td>") >= len(facts["genes"])


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


def test_a_folder_of_another_study_is_refused(finished, phantom_root):
    out, _ = finished
    with pytest.raises(InputError, match="holds another study"):
        study(phantom_root, out=out, config=CONFIG, hours=3, progress=False)


def test_data_that_cannot_be_used_stop_a_study_with_what_to_mend(tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(InputError, match="data"):
        study(tmp_path / "data", out=tmp_path / "out", config=CONFIG, progress=False)
    assert not (tmp_path / "out").exists()
