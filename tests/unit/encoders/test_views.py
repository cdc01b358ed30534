"""A view is a fixed function of patch and number, and its stains obey Beer and Lambert."""

import numpy as np
import torch

from seal_lite.encoders.views import STAINS, dihedral, jitter_stains, make_views, view_parameters

RNG = np.random.default_rng(0)
PATCHES = RNG.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
KEYS = [f"A1/{i}x7" for i in range(6)]


def test_view_zero_is_the_patch():
    images = make_views(PATCHES, KEYS, [0] * 6, jitter=0.5)
    assert torch.equal(images, torch.from_numpy(PATCHES).permute(0, 3, 1, 2).float() / 255)


def test_a_view_depends_on_patch_and_number_alone():
    views = [1, 2, 0, 3, 1, 7]
    images = make_views(PATCHES, KEYS, views, jitter=0.2)
    order = [4, 0, 5, 2]
    subset = make_views(
        PATCHES[order], [KEYS[i] for i in order], [views[i] for i in order], jitter=0.2
    )
    torch.testing.assert_close(subset, images[order], rtol=0, atol=1e-6)


def test_views_of_all_patches_and_numbers_differ():
    elements, log_scales = view_parameters(KEYS * 2, [1] * 6 + [2] * 6, jitter=0.2)
    assert len(np.unique(log_scales[:, 0])) == 12
    assert len(np.unique(elements)) > 3


def test_jitter_has_its_standard_deviation_and_all_symmetries_occur():
    keys = [f"k{i}" for i in range(2000)]
    elements, log_scales = view_parameters(keys, [1] * 2000, jitter=0.15)
    assert abs(log_scales.mean()) < 0.01
    assert abs(log_scales.std() - 0.15) < 0.01
    assert np.bincount(elements, minlength=8).min() > 180  # 250 each on average, sd 15


def test_dihedral_elements_are_the_eight_symmetries():
    image = torch.arange(2 * 9.0).reshape(2, 3, 3)
    elements = {tuple(dihedral(image, element).flatten().tolist()) for element in range(8)}
    turned = [np.rot90(image.numpy(), k, axes=(1, 2)) for k in range(4)]
    mirrored = [rotated[:, :, ::-1] for rotated in turned]
    assert elements == {tuple(symmetry.flatten()) for symmetry in turned + mirrored}
    assert len(elements) == 8


def test_stain_jitter_scales_optical_density():
    """A pixel of stain amounts a has the transmission exp(-a @ S); the amounts are scaled."""
    stains = (STAINS / STAINS.norm(dim=1, keepdim=True)).double()
    amounts = torch.from_numpy(RNG.uniform(0, 0.7, (2, 5, 5, 3)))
    log_scale = torch.from_numpy(RNG.normal(0, 0.2, (2, 3)))

    def transmission(amounts):
        return torch.exp(-amounts @ stains).permute(0, 3, 1, 2)

    images = transmission(amounts)
    expected = transmission(amounts * log_scale.exp()[:, None, None])
    torch.testing.assert_close(jitter_stains(images, log_scale), expected)
    torch.testing.assert_close(jitter_stains(images, 0 * log_scale), images)


def test_stain_jitter_leaves_white_as_it_is():
    white = torch.ones(2, 3, 4, 4, dtype=torch.float64)
    log_scale = torch.tensor([[0.2, -0.1, 0.3], [-0.3, 0.1, 0.2]], dtype=torch.float64)
    torch.testing.assert_close(jitter_stains(white, log_scale), white)
