"""How a chapter begins, and figures under a slider."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def start():
    from seal_lite.tutorial import start

    return start


@pytest.fixture
def written(start, monkeypatch, tmp_path):
    """`begin` in an empty folder, without writing or downloading: what it would have written."""
    folders = []

    def note(out, **options):
        folders.append((out, options))
        return Path(out)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(start, "phantom", note)
    monkeypatch.setattr(start, "fetch_her2st", note)
    monkeypatch.setattr(start, "list_sections", lambda root: ["A1", "B1", "C1"])
    return folders


def test_on_a_cpu_a_chapter_begins_with_the_phantom_and_the_small_network(
    start, written, monkeypatch
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    beginning = start.begin()
    config = beginning.config
    assert written == [("data/phantom", start.PHANTOM)] and beginning.held_out == "C1"
    assert (config.backbone, config.epochs, config.n_views) == ("tf_efficientnet_lite0", 12, 4)


def test_on_a_gpu_the_defaults_grow_by_themselves(start, written, monkeypatch):
    from seal_lite.encoders import backbone_row

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    config = start.begin().config
    ((folder, options),) = written
    assert folder == "data/her2st" and len(options["names"]) == 8
    assert (config.backbone, config.epochs, config.n_views) == ("phikon", 20, 8)
    assert (config.patch_px, config.patch_um) == (224, 112.0)  # as that encoder was trained
    assert not backbone_row("phikon").gated
    assert start.begin(smoke=True).config.backbone == "tf_efficientnet_lite0"


def test_on_a_cpu_a_transformer_gets_the_small_preset(start, written, monkeypatch):
    from seal_lite.encoders import config_for

    small = config_for("dinov2_s14", "small")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert start.begin("somewhere", "dinov2_s14").config == small
    assert start.begin("somewhere", "dinov2_s14", 3).config.epochs == 3
    assert start.begin("somewhere", "dinov2_s14").n_train == 1
    tiny = start.begin("somewhere", "dinov2_s14", smoke=True).config
    assert (tiny.patch_px, tiny.epochs, tiny.n_views) == (small.patch_px, 2, 2)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    on_gpu = start.begin("somewhere", "dinov2_s14").config
    assert (on_gpu.patch_px, on_gpu.epochs, on_gpu.batch_size) == (224, 20, 64)
    assert start.begin("somewhere", "dinov2_s14").n_train == 0


def test_a_chapter_trains_on_as_many_sections_as_asked(start, written, monkeypatch):
    monkeypatch.setattr(start.Beginning, "load", lambda beginning, names: list(names))
    assert start.begin("somewhere", "test_vit", n_train=0).train == ["A1", "B1"]
    one = start.begin("somewhere", "test_vit", n_train=1)
    assert one.train == ["A1"]
    assert one.run() != start.begin("somewhere", "test_vit", n_train=0).run()


def test_explicit_choices_are_taken(start, written):
    beginning = start.begin("somewhere", "test_vit", 3, test="B1", seed=7)
    config = beginning.config
    assert written == [] and beginning.root == Path("somewhere") and beginning.held_out == "B1"
    assert (config.backbone, config.epochs, config.seed) == ("test_vit", 3, 7)
    other = start.begin("somewhere", "test_vit", 3, test="A1", seed=7)
    assert beginning.run("x") != other.run("x")


def test_the_settings_are_printed_and_the_log_is_not_part_of_the_output(start, written, capsys):
    start.begin("somewhere", "test_vit")
    logging.getLogger("seal_lite").info("a message of the package")
    out, log = capsys.readouterr()
    assert "held out: C1" in out and "message" not in out
    assert log == "a message of the package\n"


def test_sections_of_one_patient_are_held_out_one_by_one(start, monkeypatch, capsys):
    monkeypatch.setattr(start, "list_sections", lambda root: ["C2", "C3"])
    runs = [start.begin("one", "test_vit", test=name).run() for name in ("C2", "C3")]
    assert runs[0] != runs[1] and "a new section, not a new patient" in capsys.readouterr().out
    monkeypatch.setattr(start, "list_sections", lambda root: ["A1", "C2", "C3"])
    runs = [start.begin("two", "test_vit", test=name).run() for name in ("C2", "C3")]
    assert runs[0] == runs[1]  # both leave out the whole patient
    assert "not a new patient" not in capsys.readouterr().out


def test_a_slider_holds_all_its_figures_and_shows_the_last():
    import matplotlib.pyplot as plt

    from seal_lite.tutorial import frames

    figures = {}
    for value, width in ((1, 2), (2, 3)):
        figures[value], _ = plt.subplots(figsize=(width, 2))
        plt.close(figures[value])
    page = frames.slider(figures, label="rank", alt="A <small> figure.").data
    assert page.count("<img") == 2 and page.count(" hidden>") == 1
    assert 'alt="A &lt;small&gt; figure. rank: 1."' in page and 'max="1"' in page
    assert "http" not in page  # nothing is loaded from anywhere


def test_a_result_is_a_box_with_its_sentences():
    from seal_lite.tutorial import result_box

    box = result_box("Tuned minus frozen: +0.03 [0.01, 0.05] (4 sections): better.", "a < b.")
    assert "Result.</strong> Tuned minus frozen: +0.03" in box._repr_html_()
    assert "a &lt; b." in box._repr_html_()
    assert str(box).startswith("Result. Tuned")


@pytest.mark.parametrize("sentence", ["", "r = nan.", "The gain is +inf [nan, 0.1]."])
def test_a_result_without_a_number_is_not_shown(sentence):
    from seal_lite.tutorial import result_box

    with pytest.raises(ValueError, match="not a result"):
        result_box(sentence)
