"""`check` finds what was done to the data, and nothing in data to which nothing was done."""

import dataclasses
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from seal_lite.config import Config
from seal_lite.data.genes import GenePanel

CONFIG = Config(patch_px=64, batch_size=16)


@pytest.fixture
def root(phantom_root, tmp_path):
    return shutil.copytree(phantom_root, tmp_path / "p")


def check(root, **options):
    from seal_lite.data.report import check_sections

    return check_sections(root, CONFIG, **options)


def image_of(root, name):
    return next((root / "data/ST-imgs").glob(f"*/{name}/*"))


def transpose(root, how):
    path = image_of(root, "PA1")
    Image.open(path).transpose(how).save(path)


def turn_image(root):  # as a slide put in upside down
    transpose(root, Image.Transpose.ROTATE_180)


def mirror_image(root):
    transpose(root, Image.Transpose.FLIP_LEFT_RIGHT)


def blur_image(root):
    path = image_of(root, "PB1")
    image = Image.open(path)
    image.resize([size // 8 for size in image.size]).resize(image.size).save(path)


def empty_slide(root):
    path = image_of(root, "PA1")
    width, height = Image.open(path).size
    Image.fromarray(np.full((height, width, 3), 243, np.uint8)).save(path)


def two_names_of_one_section(root):
    for file in ("ST-cnts/{}.tsv.gz", "ST-spotfiles/{}_selection.tsv"):
        shutil.copy(root / "data" / file.format("PA1"), root / "data" / file.format("ZZ1"))
    shutil.copytree(image_of(root, "PA1").parent, root / "data/ST-imgs/ZZ/ZZ1")


def low_counts(root):
    path = root / "data/ST-cnts/PA1.tsv.gz"
    counts = pd.read_csv(path, sep="\t", index_col=0)
    scale = 250 / counts.sum(axis=1)
    scaled = np.ceil(counts.mul(scale, axis=0) * 0.99).astype(int)
    scaled.to_csv(path, sep="\t")


def one_patient(root):
    (root / "sections.tsv").write_text("section\tpatient\nPA1\tP\nPB1\tP\n")


def unreadable_image(root):
    image_of(root, "PA1").write_bytes(b"\x89PNG")


def mirrored_spots(root):
    path = root / "data/ST-spotfiles/PA1_selection.tsv"
    table = pd.read_csv(path, sep="\t")
    table["pixel_x"] = table["pixel_x"].to_numpy()[::-1]
    table.to_csv(path, sep="\t", index=False)


FAULTS = {
    turn_image: "PA1: counts follow the stain better turned by half",
    mirror_image: "PA1: counts follow the stain better mirrored in x",
    blur_image: "PB1: is 0.",
    empty_slide: "PA1: 100% of its spots lie on bare glass",
    two_names_of_one_section: "sections PA1 and ZZ1 have the same counts",
    low_counts: "PA1: half of its spots have under",
    one_patient: "all sections are of one patient",
    unreadable_image: "cannot be decoded",
    mirrored_spots: "PA1_selection.tsv: pixel_x does not grow with x",
}


def test_right_data_raise_no_doubt(root):
    messages, checks = check(root)
    assert messages == []
    assert [section_check.section.name for section_check in checks] == ["PA1", "PB1"]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_what_was_done_to_the_data_is_named(root, fault):
    fault(root)
    messages, _ = check(root)
    assert any(FAULTS[fault] in message for message in messages), messages


def test_a_slide_whose_own_scale_is_another_is_named(tmp_path, truth):
    """The image's metadata say 2 um per px, sections.tsv says 1."""
    from made import UM, make_h5ad, write_pyramid

    make_h5ad(truth).write_h5ad(tmp_path / "S1.h5ad")
    write_pyramid(tmp_path / "S1.tif", truth.image, um_per_px=UM)
    (tmp_path / "sections.tsv").write_text(f"section\tum_per_px\nS1\t{UM / 2}\n")
    messages, _ = check(tmp_path)
    assert "S1: its image says 2.000 um per px, its spots 1.000; which is right?" in messages


def test_what_is_not_used_is_named(tmp_path, truth):
    """Another image in the slide's file; an array numbered without its gaps."""
    import tifffile
    from made import UM, make_h5ad

    adata = make_h5ad(truth)
    n = adata.n_obs
    adata.obs = adata.obs.assign(array_col=np.arange(n) % 5, array_row=np.arange(n) // 5)
    adata.write_h5ad(tmp_path / "S1.h5ad")
    scale = {"resolution": (1e4 / UM, 1e4 / UM), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(tmp_path / "S1.tif") as file:
        file.write(truth.image, photometric="rgb", metadata=None, **scale)
        file.write(truth.image[:100, :100, 0], photometric="minisblack", metadata=None)
    messages, _ = check(tmp_path)
    assert any("S1: its image S1.tif holds several images" in message for message in messages)
    assert any("S1: its array contradicts the coordinates" in message for message in messages)


@pytest.mark.parametrize("n", [1, 2, 5, 6])
def test_a_section_of_few_pairs_has_a_page(tmp_path, truth, n):
    from made import UM, make_h5ad, write_pyramid

    from seal_lite.data.report import check_page, check_sections

    adata = make_h5ad(truth)[:n].copy()
    adata.uns["um_per_px"] = UM
    adata.write_h5ad(tmp_path / "S1.h5ad")
    write_pyramid(tmp_path / "S1.tif", truth.image, um_per_px=UM)
    messages, checks = check_sections(tmp_path, Config(patch_um=64.0, patch_px=16))
    assert f"{n} pairs are fewer than a batch" in " ".join(messages)
    assert "turned or mirrored" not in " ".join(messages)  # so few spots do not tell
    page = check_page(messages, checks, patch_um=64.0, title="few")
    assert page.count("data:image/jpeg") == 3


def test_the_page_holds_messages_table_and_images_in_one_file(root, sections):
    from seal_lite.data.report import check_page

    panel = GenePanel.from_config(sections, Config(n_genes=8))
    other = dataclasses.replace(panel, genes=("NOSUCHGENE", *panel.genes[1:]))
    messages, checks = check(root, names=["PA1"], panel=other)
    missing = "PA1: lacks 1 of the panel's 8 genes, as NOSUCHGENE"
    assert any(missing in message for message in messages)
    page = check_page(messages, checks, patch_um=CONFIG.patch_um, title="Check of <mine>")
    assert "Check of &lt;mine&gt;" in page
    assert "as NOSUCHGENE" in page
    assert page.count('<img src="data:image/jpeg;base64,') == 3
    assert page.count(" alt=") == 3
    assert 'src="http' not in page
    assert "$" not in page
    assert f"<td>{len(checks[0].section.rows)}</td>" in page


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_the_image_of_a_section_is_opened_once(tmp_path, truth, monkeypatch, suffix):
    """Scale, patches, notes, thumbnails, comparison and figures all read the same slide."""
    from made import UM, make_h5ad, write_pyramid

    from seal_lite.data.images import formats
    from seal_lite.data.report import check_page

    for name in ("S1", "S2"):
        adata = make_h5ad(truth)
        adata.uns["um_per_px"] = UM
        adata.write_h5ad(tmp_path / f"{name}.h5ad")
        if suffix == ".tif":
            write_pyramid(tmp_path / f"{name}.tif", truth.image, um_per_px=UM)
        else:
            Image.fromarray(truth.image).save(tmp_path / f"{name}.jpg")
    opened = []
    open_format = formats._open_format

    def record(path, um_per_px):
        opened.append(path.name)
        return open_format(path, um_per_px)

    monkeypatch.setattr(formats, "_open_format", record)
    messages, checks = check_sections_of(tmp_path)
    check_page(messages, checks, patch_um=64.0, title="two")
    assert opened == [f"S1{suffix}", f"S2{suffix}"]
    assert any("S1 and S2 have the same counts" in message for message in messages)


def check_sections_of(root):
    from seal_lite.data.report import check_sections

    return check_sections(root, Config(patch_um=64.0, patch_px=16))


def test_a_slide_is_kept_open_no_longer_than_asked(tmp_path, truth):
    from seal_lite.data.images import open_slide, slides_kept_open

    path = tmp_path / "S1.png"
    Image.fromarray(truth.image).save(path)
    with slides_kept_open():
        assert open_slide(path) is open_slide(path)
        assert open_slide(path, 2.0).um_per_px == 2.0
    assert open_slide(path) is not open_slide(path)
