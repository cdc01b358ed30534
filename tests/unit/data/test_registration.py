"""The lattice of a section is what its coordinates confirm, whatever its numbering says."""

import numpy as np
import pytest
from helpers import make_adata, square

from seal_lite.data.registration import locate_spots, neighbour_mean
from seal_lite.errors import InputError

UM = 0.5  # per px
HEX = np.array([(col, row) for row in range(12) for col in range(12) if (col + row) % 2 == 0])


def section(numbering, um, *, angle=0.0):
    """Spots at `um` (n, 2), turned by `angle`, and numbered (n, 2)."""
    adata = make_adata(np.ones((len(um), 1)), place=np.asarray(numbering))
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    adata.obsm["spatial"] = np.asarray(um, float) @ turn / UM + 300.0
    adata.uns = {}
    return adata


def locate(adata, **metadata):
    layout = locate_spots(adata, metadata, path="FILE", image=None)
    adata.uns["grid"] = layout.grid
    return layout


def most_neighbours(adata):
    return np.diff(neighbour_mean(adata).indptr).max()


# Numbering, place in um of its unit, kind, distance of neighbours in um, number of neighbours.
LATTICES = {
    "square": (square(8), square(8) * 200.0, "square", 200.0, 8),
    "hexagonal": (HEX, HEX * [50.0, 50.0 * 3**0.5], "hex", 100.0, 6),
    "staggered": (HEX, HEX * 100.0, "staggered", 100.0 * 2**0.5, 8),
    "numbered in steps": (square(8) * 2, square(8) * 16.0, "square", 16.0, 8),
    "numbered in other steps": (square(8) * [2, 4] + 5, square(8) * 16.0, "square", 16.0, 8),
    "numbered with gaps": (square(8)[::3], square(8)[::3] * 50.0, "square", 50.0, 2),
}


@pytest.mark.parametrize("angle", [0.0, 0.6], ids=["upright", "turned"])
@pytest.mark.parametrize("kind", LATTICES)
def test_every_lattice_is_known_by_its_coordinates(kind, angle):
    numbering, um, grid, pitch, n_neighbours = LATTICES[kind]
    adata = section(numbering, um, angle=angle)
    layout = locate(adata, pitch_um=pitch)
    assert layout.um_per_px == pytest.approx(UM)
    assert layout.pitch_um == pytest.approx(pitch)
    assert (layout.grid, layout.notes) == (grid, [])
    assert most_neighbours(adata) == n_neighbours


def test_bins_numbered_in_smaller_units_agree_with_the_stated_scale():
    """A format says that a step is a bin of 16 um; the bins are numbered in eighths of it."""
    adata = section(square(8) * 8, square(8) * 16.0)
    layout = locate(adata, step_um=(16.0, 16.0), um_per_px=UM)
    assert (layout.grid, layout.pitch_um) == ("square", 16.0)


CONTRADICTIONS = {
    "numbered past the holes": lambda: section(square(6), square(9)[::2][:36] * 100.0),
    "numbered by halves of a row": lambda: section(
        square(8), (square(8) + np.c_[square(8)[:, 1] % 2 / 2, np.zeros(64)]) * [100, 86.6]
    ),
    "one spot elsewhere": lambda: section(
        square(6), square(6) * 100.0 + (np.arange(36) == 7)[:, None] * [80.0, 0]
    ),
    "stretched": lambda: section(square(6), square(6) * [100.0, 110.0]),
    "in one row": lambda: section(
        np.c_[range(9), np.zeros(9, int)], np.c_[range(9), range(9)] * 70
    ),
}


@pytest.mark.parametrize("kind", CONTRADICTIONS)
def test_an_array_that_contradicts_its_coordinates_is_set_aside_and_named(kind, caplog):
    adata = CONTRADICTIONS[kind]()
    layout = locate(adata, um_per_px=UM)
    assert (layout.um_per_px, layout.grid) == (UM, "free")
    assert "array_col" not in adata.obs
    (note,) = layout.notes
    assert note.startswith("its array contradicts the coordinates and is set aside (")
    assert note in caplog.text


def test_without_another_scale_the_contradiction_is_the_error():
    with pytest.raises(InputError, match="a spot is 1.. px off its place on the array; correct it"):
        locate(CONTRADICTIONS["one spot elsewhere"](), step_um=(100.0, 100.0))


def test_a_mirrored_image_is_an_error_where_it_cannot_be_whatever_the_scale():
    adata = section(square(6), square(6) * [-100.0, 100.0])
    with pytest.raises(InputError, match="swap or unmirror"):
        locate(adata, step_um=(100.0, 100.0), upright=True, um_per_px=UM)


def test_two_statements_about_the_scale_that_differ_are_an_error():
    adata = section(HEX, HEX * [50.0, 50.0 * 3**0.5])
    with pytest.raises(InputError, match="um_per_px is 1.000, but the spots' array has 0.500"):
        locate(adata, um_per_px=2 * UM)
