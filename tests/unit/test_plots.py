"""Figures say where things are, how large, and how good: positions, lengths and numbers in them."""

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from matplotlib.collections import EllipseCollection
from matplotlib.patches import Rectangle
from PIL import Image

from seal_lite import plots
from seal_lite.data.genes import GenePanel
from seal_lite.data.section import Section
from seal_lite.evaluation.statistics import deltas
from seal_lite.evaluation.targets import pearson
from seal_lite.tutorial import charts

UM_PER_PX = 2.0


@pytest.fixture(scope="module")
def section(tmp_path_factory):
    """A 5 x 5 array of spots, 100 px apart, on a 600 px image; two spots have no patch."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("plots") / "image.png"
    Image.fromarray(rng.integers(0, 255, (600, 600, 3), np.uint8)).save(path)
    col, row = (a.ravel() for a in np.meshgrid(np.arange(1, 6), np.arange(1, 6)))
    counts = sp.csr_matrix(rng.poisson(3, (25, 4)).astype(np.float32))
    adata = ad.AnnData(
        counts,
        obs=pd.DataFrame({"array_col": col, "array_row": row}, index=[f"s{i}" for i in range(25)]),
        var=pd.DataFrame(index=list("ABCD")),
        layers={"counts": counts},
        obsm={"spatial": 100.0 * np.c_[col, row]},
    )
    adata.uns = {
        "section_id": "T1",
        "patient_id": "T",
        "um_per_px": UM_PER_PX,
        "grid": "square",
        "pitch_um": 200.0,
        "spot_um": 100.0,
    }
    adata.uns["image_path"] = str(path)
    return Section(adata, np.arange(23), rng.integers(0, 255, (23, 8, 8, 3), np.uint8))


@pytest.fixture(scope="module")
def result():
    """Two folds in which tuned beats frozen by exactly 0.1, and shuffled by nothing on average."""
    rng = np.random.default_rng(0)
    folds = []
    for test in "AB":
        base, noise = rng.normal(0.3, 0.05, 6), rng.normal(0, 0.1, 6)
        values = {"tuned": base, "frozen": base - 0.1, "shuffled": base + noise - noise.mean()}
        scores = [
            {
                "features": f,
                "probe": p,
                "target": t,
                "pcc": v.mean(),
                "per_gene": {f"g{i}": x for i, x in enumerate(v)},
            }
            for f, v in {**values, "ceiling": base + 0.4}.items()
            for p in (["none"] if f == "ceiling" else ["hest", "tuned_ridge"])
            for t in ("pearson_residuals", "log1p_raw")
        ]
        folds.append({"test": test, "seed": 0, "scores": scores})
    classes = {f"g{i}": ("visible", "invisible")[i % 2] for i in range(6)}
    return {"folds": folds, "classes": classes, "delta": deltas(folds, classes)}


def texts(figure) -> str:
    return "\n".join(t.get_text() for t in figure.findobj(plt.Text))


def test_nothing_stays_in_pyplot(section):
    before = plt.get_fignums()
    figure = plots.overview(section)
    assert isinstance(figure, plt.Figure) and plt.get_fignums() == before


def test_spots_are_drawn_to_scale_and_those_without_a_patch_stand_out(section):
    figure = plots.overview(section)
    (rings,) = figure.findobj(EllipseCollection)
    np.testing.assert_allclose(rings.get_offsets(), section.adata.obsm["spatial"] * UM_PER_PX)
    np.testing.assert_allclose(rings.get_widths(), 100.0)
    widths = np.asarray(rings.get_linewidths())
    assert (widths[23:] > widths[:23].max()).all()
    assert "25 spots" in texts(figure) and "23 with a patch" in texts(figure)


def test_a_scale_bar_is_as_long_as_it_says(section):
    ax = plots.overview(section).axes[0]
    (bar,) = [line for line in ax.lines if len(line.get_xdata()) == 2]
    length = np.ptp(bar.get_xdata())
    written = [t.get_text() for t in ax.texts]
    assert written == [f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"]
    assert 0.1 < length / np.ptp(ax.get_xlim()) < 0.5


def test_a_map_holds_its_values_at_their_place(section):
    values = np.arange(46.0).reshape(23, 2)
    figure = plots.gene_maps(section, values, ["A", "B"], label="counts")
    first, second = (c for c in figure.findobj(EllipseCollection))
    np.testing.assert_allclose(first.get_array(), values[:, 0])
    np.testing.assert_allclose(second.get_array(), values[:, 1])
    np.testing.assert_allclose(
        first.get_offsets(),
        100 * UM_PER_PX * np.c_[section.adata.obs.array_col, section.adata.obs.array_row][:23],
    )
    assert "counts" in texts(figure)


def test_prediction_maps_give_r_and_the_difference(section):
    rng = np.random.default_rng(1)
    measured, predicted = rng.normal(size=(2, 23, 1))
    figure = charts.prediction_maps(section, measured, 7 * predicted + 3, ["A"])
    m, p, error = (c.get_array() for c in figure.findobj(EllipseCollection))
    np.testing.assert_allclose(error, p - m)
    assert f"r = {pearson(measured, predicted)[0]:.2f}" in texts(figure)


def test_patches_are_shown_in_order_with_a_length(section):
    figure = plots.patches(section.patches[:5], list("vwxyz"), patch_um=112, columns=3)
    assert "".join(ax.get_title() for ax in figure.axes) == "vwxyz"
    assert "20 µm" in texts(figure) or "50 µm" in texts(figure)


def test_loss_curves_shade_the_warm_up_alone():
    genes = [{"epoch": i, "phase": "genes", "gene": 1.0 - i / 10, "kl": 1.0} for i in range(3)]
    joint = [
        {"epoch": 3 + i, "phase": "joint", "clip": 4.0, "gene": 0.5, "image": 0.9, "loss": 3.4 - i}
        for i in range(2)
    ]
    ax = charts.loss_curves(genes + joint).axes[0]
    (span,) = ax.patches
    assert span.get_x() + span.get_width() == 3.5
    by_name = {line.get_label().split(":")[0]: line for line in ax.lines}
    assert list(by_name["weighted sum"].get_xdata()) == [4, 5]
    assert list(by_name["gene to gene"].get_xdata()) == [1, 2, 3, 4, 5]
    assert len(charts.loss_curves(genes).axes[0].lines) == 1


def test_scores_show_each_fold_and_the_mean(result):
    ax = charts.scores(result).axes[0]
    rows = [t.get_text() for t in ax.get_yticklabels()]
    assert rows == [charts.LABELS[k] for k in ("tuned", "shuffled", "frozen", "ceiling")]
    dots, mean = ax.lines[0], ax.lines[1]
    assert len(dots.get_xdata()) == len(result["folds"])
    assert mean.get_xdata()[0] == pytest.approx(np.mean(dots.get_xdata()))


def test_an_interval_over_zero_has_an_open_mark(result, book):
    figure = book("forest").deltas(result)
    sure, unsure = figure.axes
    fills = [
        [line.get_markerfacecolor() for line in ax.lines if line.get_marker() == "o"]
        for ax in (sure, unsure)
    ]
    assert "white" not in fills[0] and "white" in fills[1]
    assert "frozen" in sure.get_title() and "shuffled" in unsure.get_title()
    assert "visible genes" in texts(figure)


def test_retrieval_marks_the_hits_where_they_are(section):
    panel = GenePanel.fit([section.adata], n_genes=4)
    hits, cosines = np.array([7, 3]), np.array([0.9, 0.5])
    figure = plots.retrieval(section, panel, ["B"], hits, cosines, patch_um=112)
    squares = [r for r in figure.axes[0].patches if isinstance(r, Rectangle)]
    centres = [np.add(r.get_xy(), r.get_width() / 2) for r in squares]
    np.testing.assert_allclose(centres, section.adata.obsm["spatial"][hits] * UM_PER_PX)
    z = panel.transform(section.adata)[7, panel.genes.index("B")]
    assert f"1: cosine 0.90, z {z:+.1f}" in texts(figure)
