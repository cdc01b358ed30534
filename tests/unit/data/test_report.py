"""`check` finds what was done to the data, and nothing in data to which nothing was done."""

import dataclasses
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from seal_lite.config import Config
from seal_lite.data.genes import GenePanel
from seal_lite.data.report import check_page, check_sections

SIZE = Config(patch_px=64, batch_size=16)


@pytest.fixture
def root(phantom_root, tmp_path):
    return shutil.copytree(phantom_root, tmp_path / "p")


def image_of(root, name):
    return next((root / "data/ST-imgs").glob(f"*/{name}/*"))


def spots_of(root, name):
    return root / f"data/ST-spotfiles/{name}_selection.tsv"


def turn(root):  # the image by half, as a slide put in upside down
    file = image_of(root, "PA1")
    Image.open(file).transpose(Image.Transpose.ROTATE_180).save(file)


def mirror(root):
    file = image_of(root, "PA1")
    Image.open(file).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(file)


def blur(root):
    file = image_of(root, "PB1")
    image = Image.open(file)
    image.resize([s // 8 for s in image.size]).resize(image.size).save(file)


def glass(root):
    file = image_of(root, "PA1")
    Image.fromarray(np.full((*Image.open(file).size[::-1], 3), 243, np.uint8)).save(file)


def twin(root):  # one section under two patients' names
    for a in ("ST-cnts/{}.tsv.gz", "ST-spotfiles/{}_selection.tsv"):
        shutil.copy(root / "data" / a.format("PA1"), root / "data" / a.format("ZZ1"))
    shutil.copytree(image_of(root, "PA1").parent, root / "data/ST-imgs/ZZ/ZZ1")


def shallow(root):
    file = root / "data/ST-cnts/PA1.tsv.gz"
    counts = pd.read_csv(file, sep="\t", index_col=0)
    scale = 250 / counts.sum(axis=1)
    np.ceil(counts.mul(scale, axis=0) * 0.99).astype(int).to_csv(file, sep="\t")


def one_patient(root):
    (root / "sections.tsv").write_text("section\tpatient\nPA1\tP\nPB1\tP\n")


def unreadable(root):
    image_of(root, "PA1").write_bytes(b"\x89PNG")


def mirrored_spots(root):
    table = pd.read_csv(spots_of(root, "PA1"), sep="\t")
    table.assign(pixel_x=table.pixel_x[::-1].to_numpy()).to_csv(
        spots_of(root, "PA1"), sep="\t", index=False
    )


FAULTS = {
    turn: ["PA1: counts follow the stain better turned by half"],
    mirror: ["PA1: counts follow the stain better mirrored in x"],
    blur: ["PB1: is 0."],
    glass: ["PA1: 100% of its spots lie on bare glass"],
    twin: ["sections PA1 and ZZ1 have the same counts"],
    shallow: ["PA1: half of its spots have under"],
    one_patient: ["all sections are of one patient"],
    unreadable: ["cannot be decoded"],
    mirrored_spots: ["PA1_selection.tsv: pixel_x does not grow with x"],
}


def test_nothing_is_said_of_data_that_is_right(root):
    said, found = check_sections(root, SIZE)
    assert said == [] and list(found) == ["PA1", "PB1"]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_what_was_done_to_the_data_is_said(root, fault):
    fault(root)
    said, _ = check_sections(root, SIZE)
    for wanted in FAULTS[fault]:
        assert any(wanted in text for text in said), said


def test_the_page_holds_sentences_table_and_pictures(root, sections):
    """One file that needs no other; a missing gene of a run's panel is said."""
    panel = GenePanel.from_config(sections, Config(n_genes=8))
    other = dataclasses.replace(panel, genes=("NOSUCHGENE", *panel.genes[1:]))
    said, found = check_sections(root, SIZE, names=["PA1"], panel=other)
    assert any("PA1: lacks 1 of the panel's 8 genes, as NOSUCHGENE" in text for text in said)
    page = check_page(said, found, SIZE, title="Check of <mine>")
    assert "Check of &lt;mine&gt;" in page and "as NOSUCHGENE" in page
    assert page.count('<img src="data:image/jpeg;base64,') == 3 == page.count(" alt=")
    assert 'src="http' not in page and "$" not in page
    assert f"<td>{len(found['PA1'][0].rows)}</td>" in page
