"""One section in every format: each reader gives the same counts, places and pixels."""

import json
import subprocess
import sys
from types import SimpleNamespace

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import tifffile
from made import (
    ARRAY,
    GENES,
    IDS,
    UM,
    make_h5ad,
    write_10x,
    write_hest,
    write_spatialdata,
    write_visium,
    write_xenium,
)
from PIL import Image

from seal_lite.data.images import open_slide
from seal_lite.data.phantom import write_pyramid
from seal_lite.data.readers.catalogue import list_sections
from seal_lite.data.registration import neighbour_mean
from seal_lite.data.section import load_sections, read_counts
from seal_lite.errors import InputError


def agrees(root, truth, *, names=GENES, patches=True):
    """Read the one section under `root` and compare it with the truth."""
    (name,) = list_sections(root)
    (section,) = load_sections(root, patch_um=64.0, patch_px=16)
    adata = section.adata
    assert adata.uns["section_id"] == name == "S1"
    order = [list(adata.obs_names).index(b) for b in truth.barcodes]
    assert adata.n_obs == len(order) and list(adata.var_names) == names
    np.testing.assert_array_equal(adata.layers["counts"].toarray()[order], truth.counts)
    np.testing.assert_allclose(adata.obsm["spatial"][order], truth.xy, atol=0.01)
    assert adata.uns["um_per_px"] == pytest.approx(UM, rel=1e-3)
    assert adata.uns["pitch_um"] == pytest.approx(100.0, rel=1e-3)
    assert section.rows.tolist() == list(range(len(order)))
    shown = section.patches[order].astype(float).mean((1, 2))[:, :2]
    # px i covers [i, i + 1): a region's mean is its centre's x less a half, and R is x // 2
    np.testing.assert_allclose(shown, (truth.xy - 1) / 2, atol=0.6)
    return section


@pytest.mark.parametrize("header", [True, False], ids=["Space Ranger 2", "Space Ranger 1"])
@pytest.mark.parametrize("inside", ["", "outs"])
def test_visium(tmp_path, truth, header, inside):
    folder = tmp_path / "S1" / inside
    write_visium(folder, truth, header=header)
    tifffile.imwrite(folder / "tissue_image.tif", truth.image, photometric="rgb")
    adata = agrees(tmp_path, truth).adata
    assert (adata.uns["grid"], adata.uns["spot_um"], adata.uns["species"]) == ("hex", 55.0, "human")
    assert np.diff(neighbour_mean(adata).indptr).max() == 6
    if not inside:
        agrees(tmp_path / "S1", truth)  # the folder itself is a section, too


def test_visium_on_a_turned_and_mirrored_image(tmp_path, truth):
    turned = SimpleNamespace(**vars(truth))
    turned.xy, turned.image = truth.xy[:, ::-1], truth.image
    write_visium(tmp_path / "S1", turned)
    tifffile.imwrite(tmp_path / "S1/image.tif", truth.image, photometric="rgb")
    agrees(tmp_path, turned)


def test_visium_hd(tmp_path, truth):
    """16 um bins, pooled into pseudo-spots of 100 um; 2 bins in each of 4 x 4 squares."""
    rng, folder = np.random.default_rng(1), tmp_path / "S1"
    bins = folder / "binned_outputs/square_016um"
    (bins / "spatial").mkdir(parents=True)
    index = np.array([(c, r) for r in range(24) for c in range(24)])
    xy = (index + 0.5) * 16 / UM + 100
    counts = rng.poisson(4, (len(index), 4)).astype(np.float32)
    barcodes = [f"s_016um_{r:05d}_{c:05d}-1" for c, r in index]
    write_10x(bins / "filtered_feature_bc_matrix.h5", counts, barcodes)
    table = pd.DataFrame(
        {
            "barcode": barcodes,
            "in_tissue": 1,
            "array_row": index[:, 1],
            "array_col": index[:, 0],
            "pxl_row_in_fullres": xy[:, 1],
            "pxl_col_in_fullres": xy[:, 0],
        }
    )
    table.to_parquet(bins / "spatial/tissue_positions.parquet", index=False)
    scale = {
        "spot_diameter_fullres": 8.0,
        "bin_size_um": 16.0,
        "microns_per_pixel": UM,
        "tissue_hires_scalef": 0.25,
        "tissue_lowres_scalef": 0.1,
        "regist_target_img_scalef": 1.0,
        "fiducial_diameter_fullres": 40.0,
    }
    (bins / "spatial/scalefactors_json.json").write_text(json.dumps(scale))
    with h5py.File(folder / "feature_slice.h5", "w") as file:
        unit, ways = np.eye(3).tolist(), []
        for a in ("cytassist", "microscope"):
            ways += [f"{a}_colrow_to_spot_colrow", f"spot_colrow_to_{a}_colrow"]
        matrices = dict.fromkeys(ways, unit)
        layout = json.dumps({"file_format": "1.0", "transform": unit})
        file.attrs["metadata_json"] = json.dumps(
            {"hd_layout_json": layout, "transform_matrices": matrices}
        )
    write_pyramid(folder / "tissue_image.btf", truth.image, um_per_px=UM)
    (section,) = load_sections(tmp_path, patch_um=64.0, patch_px=16)
    adata = section.adata
    square = (xy * UM // 100).astype(int)
    for name, row in zip(adata.obs_names, adata.layers["counts"].toarray(), strict=True):
        here = (square == [int(v) for v in name.split("x")]).all(1)
        np.testing.assert_array_equal(row, counts[here].sum(0))
    assert adata.layers["counts"].sum() > 0.9 * counts.sum()
    assert (adata.uns["pitch_um"], adata.uns["grid"]) == (100.0, "square")
    np.testing.assert_allclose(adata.obsm["spatial"] * UM % 100, 50.0)


def test_xenium(tmp_path, truth):
    """Transcripts in um, on an H&E that lies a quarter turn and a shift away, at another scale."""
    square, counts = write_xenium(tmp_path / "S1", truth)
    (section,) = load_sections(tmp_path, patch_um=64.0, patch_px=16)
    adata = section.adata
    assert adata.uns["um_per_px"] == pytest.approx(UM)
    at = {f"{c}x{r}": i for i, (c, r) in enumerate(square)}
    order = [at[b] for b in adata.obs_names]
    genes = [GENES.index(g) for g in adata.var_names]
    np.testing.assert_array_equal(adata.layers["counts"].toarray(), counts[order][:, genes])
    centre = (square[order] + 0.5) * 100 / UM  # px of 2 um, in the morphology's frame
    expected = np.c_[450 - centre[:, 1], centre[:, 0] + 20]
    np.testing.assert_allclose(adata.obsm["spatial"], expected)
    shown = section.patches.astype(float).mean((1, 2))[:, :2]
    np.testing.assert_allclose(shown, (expected[section.rows] - 1) / 2, atol=0.6)


@pytest.mark.parametrize("image", ["wsis", "patches"])
def test_hest_sample(tmp_path, truth, image):
    write_hest(tmp_path, truth, image)
    section = agrees(tmp_path, truth)
    assert (section.patient, section.label("organ")) == ("P7", "Breast")
    assert section.label("subseries") is None  # NaN in the metadata
    assert section.label("st_technology") == "Visium" and section.adata.uns["species"] == "human"
    if image == "patches":
        with pytest.raises(InputError, match="show 112 um, not 224"):
            load_sections(tmp_path, patch_um=224.0, patch_px=16)


@pytest.mark.parametrize("suffix", ["png", "tif", "svs"])
def test_any_anndata_with_an_image_beside_it(tmp_path, truth, suffix):
    make_h5ad(truth).write_h5ad(tmp_path / "S1.h5ad")
    if suffix == "png":
        Image.fromarray(truth.image).save(tmp_path / "S1.png")
    else:
        write_pyramid(tmp_path / f"S1.{suffix}", truth.image, um_per_px=UM)
    if suffix == "png":
        with pytest.raises(InputError, match="nothing says um per px; give um_per_px"):
            read_counts(tmp_path, "S1")
        (tmp_path / "sections.tsv").write_text(f"section\tum_per_px\tpatient\nS1\t{UM}\tP1\n")
    section = agrees(tmp_path, truth)
    assert section.adata.uns["grid"] == "free"
    assert section.patient == ("P1" if suffix == "png" else "S1")
    assert np.diff(neighbour_mean(section.adata).indptr).max() == 6  # of a hexagon, unasked


@pytest.mark.parametrize("scales", [None, [2, 2]], ids=["one scale", "pyramid"])
def test_spatialdata(tmp_path, truth, scales):
    """Spots in a coordinate system of um, an image of px in the same: found by transformation."""
    write_spatialdata(tmp_path / "S1.zarr", truth, scales=scales)
    agrees(tmp_path, truth)
    agrees(tmp_path / "S1.zarr", truth)
    (tmp_path / "sections.tsv").write_text(
        f"section\timage\tum_per_px\nS1\tS1.zarr/images/small\t{8 * UM}\n"
    )
    chosen = read_counts(tmp_path, "S1")
    assert chosen.uns["image_path"].endswith("S1.zarr/images/small")
    np.testing.assert_allclose(chosen.obsm["spatial"] * 8 * UM, truth.xy * UM + [40, -30])


def test_gene_names_of_both_kinds(tmp_path, truth):
    """Ensembl ids are told by a column of `var`, by genes.tsv, or stay; kinds are never mixed."""
    write_pyramid(tmp_path / "S1.tif", truth.image, um_per_px=UM)
    adata = make_h5ad(truth, genes=[f"{i}.{v}" for v, i in enumerate(IDS)])
    adata.write_h5ad(tmp_path / "S1.h5ad")
    assert agrees(tmp_path, truth, names=IDS).adata.uns["gene_names"] == "Ensembl ids"
    adata.var["feature_name"] = GENES
    adata.write_h5ad(tmp_path / "S2.h5ad")
    write_pyramid(tmp_path / "S2.tif", truth.image, um_per_px=UM)
    assert list(read_counts(tmp_path, "S2").var_names) == GENES
    with pytest.raises(InputError, match="S1 has Ensembl ids, S2 has symbols; .* genes.tsv"):
        load_sections(tmp_path, patch_um=64.0, patch_px=16)
    lines = [f"{i}\t{g}" for i, g in zip(IDS, GENES, strict=True)]
    (tmp_path / "genes.tsv").write_text("\n".join(["id\tsymbol", *lines]))
    assert len(load_sections(tmp_path, patch_um=64.0, patch_px=16)) == 2


@pytest.mark.parametrize(
    "genes, species",
    [
        (GENES, "human"),
        (["Erbb2", "Krt19", "Col1a1", "Cd3e"], "mouse"),
        (IDS, "human"),
        ([i.replace("ENSG", "ENSMUSG") for i in IDS], "mouse"),
    ],
)
def test_species_is_recorded(tmp_path, truth, genes, species):
    write_pyramid(tmp_path / "S1.tif", truth.image, um_per_px=UM)
    make_h5ad(truth, genes=genes).write_h5ad(tmp_path / "S1.h5ad")
    assert read_counts(tmp_path, "S1").uns["species"] == species
    (tmp_path / "sections.tsv").write_text("section\tspecies\nS1\tRattus norvegicus\n")
    assert read_counts(tmp_path, "S1").uns["species"] == "Rattus norvegicus"


def test_species_are_not_mixed(tmp_path, truth):
    for name, genes in (("S1", GENES), ("S2", ["Erbb2", "Krt19", "Col1a1", "Cd3e"])):
        write_pyramid(tmp_path / f"{name}.tif", truth.image, um_per_px=UM)
        make_h5ad(truth, genes=genes).write_h5ad(tmp_path / f"{name}.h5ad")
    with pytest.raises(InputError, match="S1 has human, S2 has mouse; take sections of one kind"):
        load_sections(tmp_path, patch_um=64.0, patch_px=16)


def _wrong(adata, **parts):
    adata = adata.copy()
    for place, (key, value) in parts.items():
        getattr(adata, place)[key] = value
    return adata


FAULTS = {
    "normalised": (lambda a: ad.AnnData(a.X * 0.5, a.obs, a.var, obsm=a.obsm), "raw counts"),
    "negative": (lambda a: ad.AnnData(-a.X, a.obs, a.var, obsm=a.obsm), "raw counts"),
    "no place": (lambda a: ad.AnnData(a.X, a.obs, a.var), 'no obsm\\["spatial"\\]'),
    "a place is NaN": (
        lambda a: _wrong(a, obsm=("spatial", a.obsm["spatial"] * np.nan)),
        "not a number",
    ),
    "pitch said otherwise": (
        lambda a: _wrong(a, uns=("pitch_um", 200.0)),
        "spots are 100 um apart at 2.000 um per px, not 200",
    ),
    "array at another scale": (
        lambda a: _wrong(
            _wrong(a, uns=("um_per_px", 2 * UM)), obs=(["array_col", "array_row"], ARRAY)
        ),
        "4.000 um per px is said, but the spots' array says 2.000",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_contradicts_itself_is_refused(tmp_path, truth, fault):
    write_pyramid(tmp_path / "S1.tif", truth.image, um_per_px=UM)
    change, said = FAULTS[fault]
    change(make_h5ad(truth)).write_h5ad(tmp_path / "S1.h5ad")
    with pytest.raises(InputError, match=said):
        read_counts(tmp_path, "S1")


def test_unreadable_folders_are_refused_by_name(tmp_path, truth):
    with pytest.raises(InputError, match="holds no section; what marks one is"):
        list_sections(tmp_path)
    write_visium(tmp_path / "S1", truth)
    assert list_sections(tmp_path) == []  # readable, but no image of full resolution
    (tmp_path / "S1/spatial/scalefactors_json.json").unlink()
    with pytest.raises(InputError, match="S1/filtered_feature_bc_matrix.h5: cannot be read"):
        read_counts(tmp_path, "S1")
    for name in ("a.tif", "b.tif"):
        tifffile.imwrite(tmp_path / "S1" / name, truth.image, photometric="rgb")
    with pytest.raises(InputError, match=r"a.tif: is not the only image there \(b.tif\)"):
        list_sections(tmp_path)
    (tmp_path / "sections.tsv").write_text("section\timage\nS1\tS1/b.tif\n")
    assert list_sections(tmp_path) == ["S1"]
    (tmp_path / "sections.tsv").write_text("section\timage\nS1\tS1/c.tif\n")
    with pytest.raises(InputError, match="c.tif: no such image"):
        list_sections(tmp_path)


def _deep(path, image):
    tifffile.imwrite(path, image.astype(np.uint16) * 257, photometric="rgb", tile=(256, 256))


def test_images_of_every_kind_show_the_same(tmp_path, truth):
    """Grey, palette and RGBA pictures, plain and tiled TIFF; 16 bits are refused, not clipped."""
    Image.fromarray(truth.image).save(tmp_path / "rgb.png")
    Image.fromarray(np.dstack([truth.image, np.full((512, 512), 255, np.uint8)])).save(
        tmp_path / "rgba.png"
    )
    Image.fromarray(truth.image).save(tmp_path / "fine.jpg", quality=98, subsampling=0)
    tifffile.imwrite(tmp_path / "plain.tif", truth.image, photometric="rgb")
    tifffile.imwrite(tmp_path / "lzw.tif", truth.image, photometric="rgb", compression="lzw")
    write_pyramid(tmp_path / "tiled.svs", truth.image, um_per_px=UM)
    wanted = open_slide(tmp_path / "rgb.png").read(100.3, 30.2, 64, 32).astype(int)
    for file in sorted(tmp_path.iterdir()):
        slide = open_slide(file)
        assert slide.size == (512, 512)
        got = slide.read(100.3, 30.2, 64, 32).astype(int)
        assert np.abs(got - wanted).max() <= (3 if file.suffix == ".jpg" else 1), file.name
        small = slide.thumbnail(8.0)
        assert small.shape == (64, 64, 3)
        assert np.abs(small[:, :, 0].mean(0) - (np.arange(64) * 4 + 1.75)).max() <= 2, file.name
    Image.fromarray(truth.image[..., 0]).save(tmp_path / "grey.png")
    tifffile.imwrite(tmp_path / "grey.tif", truth.image[..., 0], photometric="minisblack")
    for name in ("grey.png", "grey.tif"):
        got = open_slide(tmp_path / name).read(100.3, 30.2, 64, 32)
        assert (got[..., 0] == got[..., 2]).all()
        assert np.abs(got[..., 0] - wanted[..., 0]).max() <= 1
    _deep(tmp_path / "deep.tif", truth.image)
    Image.fromarray(truth.image[..., 0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    for name in ("deep.tif", "deep.png"):
        with pytest.raises(InputError, match=f"{name}: has more than 8 bits"):
            open_slide(tmp_path / name).read(0, 0, 64, 32)


def test_a_region_is_cut_from_the_level_that_has_its_detail(tmp_path):
    rng = np.random.default_rng(0)
    image = np.kron(rng.integers(0, 255, (64, 64, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    write_pyramid(tmp_path / "p.tif", image, um_per_px=0.5)
    slide, seen = open_slide(tmp_path / "p.tif"), []
    spy = SimpleNamespace(**vars(slide))
    spy.region = lambda level, box: seen.append(level) or slide.region(level, box)
    for edge in (64, 128, 200, 256, 800):
        type(slide).read(spy, 60, 60, edge, 64)
    assert seen == [0, 1, 1, 2, 2] and slide.levels == (1.0, 2.0, 4.0)


BIG = """
import re, sys
import numpy as np
from types import SimpleNamespace
from seal_lite.pairs import extract_patches, thumbnail
xy = np.random.default_rng(0).uniform(500, 23000, (200, 2))
adata = SimpleNamespace(obsm={"spatial": xy}, uns={"section_id": "big", "um_per_px": 0.5,
                                                  "image_path": sys.argv[1]})
rows, patches = extract_patches(adata, patch_um=224.0, patch_px=160)
small, factor = thumbnail(adata)
assert len(rows) == 200 and small.shape == (1536, 1536, 3), (len(rows), small.shape)
shown = patches.reshape(200, -1, 3).mean(1)
assert np.abs(shown[:, :2] - xy / 96).max() < 1.5  # R and G tell x and y
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for the process's largest memory")
def test_a_slide_of_24_576_px_is_read_in_less_than_500_mb(tmp_path):
    """1.8 GB of pixels as a JPEG pyramid, read by a process of its own: patches and thumbnail."""
    n, tile = 24576, 512

    def tiles(step):
        at = np.arange(0, n // step, tile)
        for y in at:
            for x in at:
                ramp = (np.arange(tile) * step) / 96
                part = np.empty((tile, tile, 3), np.uint8)
                part[..., 0], part[..., 1], part[..., 2] = x * step / 96 + ramp, 0, 200
                part[..., 1] = (y * step / 96 + ramp)[:, None]
                yield part

    with tifffile.TiffWriter(tmp_path / "big.tif", bigtiff=True) as file:
        for step in (1, 4, 16):
            file.write(
                tiles(step),
                shape=(n // step, n // step, 3),
                dtype=np.uint8,
                tile=(tile, tile),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": 90},
                subfiletype=int(step > 1),
            )
    done = subprocess.run(
        [sys.executable, "-c", BIG, str(tmp_path / "big.tif")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 500
