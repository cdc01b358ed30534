"""Figures state places, lengths and scores: the tests read positions, sizes and text in them."""

import numpy as np
import pytest
from matplotlib.collections import EllipseCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image

UM_PER_PX = 2.0
N_PATCHES = 23  # of 25 spots


@pytest.fixture(scope="module")
def plots():
    from seal_lite import plots

    return plots


@pytest.fixture(scope="module")
def charts():
    from seal_lite.tutorial import charts

    return charts


@pytest.fixture(scope="module")
def section(tmp_path_factory):
    """A 5 x 5 array of spots, 100 px apart, on a 600 px image; two spots have no patch."""
    import anndata as ad
    import pandas as pd
    import scipy.sparse as sp

    from seal_lite.data.section import Section

    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("plots") / "image.png"
    Image.fromarray(rng.integers(0, 255, (600, 600, 3), np.uint8)).save(path)
    column, row = np.meshgrid(np.arange(1, 6), np.arange(1, 6))
    array = pd.DataFrame({"array_col": column.ravel(), "array_row": row.ravel()})
    array.index = [f"s{i}" for i in range(25)]
    counts = sp.csr_matrix(rng.poisson(3, (25, 4)).astype(np.float32))
    adata = ad.AnnData(
        counts,
        obs=array,
        var=pd.DataFrame(index=list("ABCD")),
        layers={"counts": counts},
        obsm={"spatial": 100.0 * array.to_numpy()},
        uns={
            "section_id": "T1",
            "patient_id": "T",
            "um_per_px": UM_PER_PX,
            "grid": "square",
            "pitch_um": 200.0,
            "spot_um": 100.0,
            "image_path": str(path),
        },
    )
    patches = rng.integers(0, 255, (N_PATCHES, 8, 8, 3), np.uint8)
    return Section(adata, np.arange(N_PATCHES), patches)


def text_of(figure):
    return "\n".join(text.get_text() for text in figure.findobj(Text))


def centres_um(section):
    return section.adata.obsm["spatial"] * UM_PER_PX


def test_a_figure_is_closed_in_pyplot(plots, section):
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    figure = plots.overview(section)
    assert isinstance(figure, Figure)
    assert plt.get_fignums() == before


def test_spots_have_their_true_size_and_stand_out_without_a_patch(plots, section):
    figure = plots.overview(section)
    (rings,) = figure.findobj(EllipseCollection)
    np.testing.assert_allclose(rings.get_offsets(), centres_um(section))
    np.testing.assert_allclose(rings.get_widths(), 100.0)
    line_widths = np.asarray(rings.get_linewidths())
    assert (line_widths[N_PATCHES:] > line_widths[:N_PATCHES].max()).all()
    assert "25 spots" in text_of(figure)
    assert "23 with a patch" in text_of(figure)


def test_a_scale_bar_has_the_length_of_its_label(plots, section):
    ax = plots.overview(section).axes[0]
    (bar,) = ax.lines
    (label,) = ax.texts
    length = np.ptp(bar.get_xdata())
    assert label.get_text() == (f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm")
    assert 0.1 < length / np.ptp(ax.get_xlim()) < 0.5


def test_a_map_shows_values_at_the_places_of_their_patches(plots, section):
    values = np.arange(2.0 * N_PATCHES).reshape(N_PATCHES, 2)
    figure = plots.gene_maps(section, values, ["A", "B"], label="counts")
    first, second = figure.findobj(EllipseCollection)
    np.testing.assert_allclose(first.get_array(), values[:, 0])
    np.testing.assert_allclose(second.get_array(), values[:, 1])
    np.testing.assert_allclose(first.get_offsets(), centres_um(section)[:N_PATCHES])
    assert "counts" in text_of(figure)


def test_patches_are_in_order_and_have_a_scale_bar(plots, section):
    figure = plots.patches(section.patches[:5], list("vwxyz"), patch_um=112, columns=3)
    assert "".join(ax.get_title() for ax in figure.axes) == "vwxyz"
    assert "20 µm" in text_of(figure)


def test_retrieved_patches_are_marked_at_their_places(plots, section):
    from seal_lite.data.genes import GenePanel

    panel = GenePanel.fit([section.adata], n_genes=4)
    hits = np.array([7, 3])
    cosines = np.array([0.9, 0.5])
    figure = plots.retrieval(section, hits, cosines, genes=["B"], panel=panel, patch_um=112)
    squares = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
    centres = [np.add(square.get_xy(), square.get_width() / 2) for square in squares]
    np.testing.assert_allclose(centres, centres_um(section)[hits])
    z = panel.transform(section.adata)[7, panel.genes.index("B")]
    assert f"1: cosine 0.90, z {z:+.1f}" in text_of(figure)


def test_prediction_maps_give_r_and_the_difference_in_standard_deviations(charts, section):
    rng = np.random.default_rng(1)
    measured, predicted = rng.normal(size=(2, N_PATCHES, 1))
    figure = charts.prediction_maps(section, measured, 7 * predicted + 3, genes=["A"])
    maps = [collection.get_array() for collection in figure.findobj(EllipseCollection)]
    shown_measured, shown_predicted, error = maps
    np.testing.assert_allclose(error, shown_predicted - shown_measured)
    np.testing.assert_allclose([shown_predicted.mean(), shown_predicted.std()], [0, 1], atol=1e-9)
    r = np.corrcoef(measured[:, 0], predicted[:, 0])[0, 1]
    assert f"r = {r:.2f}" in text_of(figure)


def test_a_region_has_the_same_colour_whatever_others_are_shown(charts):
    two = charts.label_colours(["stroma", "lymphoid"])
    assert list(two) == ["stroma", "lymphoid"]
    assert two.items() <= charts.label_colours(["lymphoid", "tumour", "stroma"]).items()
    assert list(charts.label_colours("ba").values()) == list(charts.COLOURS[:2])
    assert len(charts.label_colours([str(i) for i in range(12)])) == 12


def test_loss_curves_shade_the_warm_up_alone(charts):
    warmup = [{"epoch": i, "phase": "genes", "gene": 1.0 - i / 10, "kl": 1.0} for i in range(3)]
    joint = [
        {"epoch": 3 + i, "phase": "joint", "clip": 4.0, "gene": 0.5, "image": 0.9, "loss": 3.4 - i}
        for i in range(2)
    ]
    ax = charts.loss_curves(warmup + joint).axes[0]
    (shaded,) = ax.patches
    assert shaded.get_x() + shaded.get_width() == 3.5
    line_of = {line.get_label().split(":")[0]: line for line in ax.lines}
    assert list(line_of["weighted sum"].get_xdata()) == [4, 5]
    assert list(line_of["gene to gene"].get_xdata()) == [1, 2, 3, 4, 5]
    assert len(charts.loss_curves(warmup).axes[0].lines) == 1


def test_scores_show_each_fold_and_the_mean_in_the_order_of_the_labels(charts):
    pcc = {"ceiling": [0.7, 0.8], "frozen": [0.1, 0.3], "tuned": [0.2, 0.6]}
    folds = [
        {
            "scores": [
                {"features": features, "probe": "hest", "target": target, "pcc": values[fold]}
                for features, values in pcc.items()
                for target in ("pearson_residuals", "log1p_raw")
            ]
        }
        for fold in range(2)
    ]
    ax = charts.scores({"folds": folds}).axes[0]
    rows = [label.get_text() for label in ax.get_yticklabels()]
    assert rows == [charts.LABELS[name] for name in ("tuned", "frozen", "ceiling")]
    dots, mean = ax.lines[:2]
    assert list(dots.get_xdata()) == [0.2, 0.6]
    assert mean.get_xdata()[0] == pytest.approx(0.4)
