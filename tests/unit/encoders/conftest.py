"""Two tiny encoders with random weights, a convolutional network and a transformer."""

from dataclasses import replace

import numpy as np
import pytest

PX = 64


@pytest.fixture(scope="module", autouse=True)
def tiny_rows():
    """Rows "tiny_cnn", read at its fourth of five stages, and "tiny_vit", for images of 64 px."""
    from seal_lite.encoders import BACKBONES

    cnn = replace(
        BACKBONES["tf_efficientnet_lite0"],
        name="tiny_cnn",
        source="test_efficientnet",
        arch="test_efficientnet",
        args={"num_classes": 0},
        state="",
        feature_layer="blocks.3",
        dim=48,
        px=PX,
        fingerprint=None,
    )
    vit = replace(
        BACKBONES["test_vit"],
        name="tiny_vit",
        args={"num_classes": 0, "img_size": PX},
        px=PX,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "tiny_cnn", cnn)
        patch.setitem(BACKBONES, "tiny_vit", vit)
        yield


@pytest.fixture(scope="session")
def patches():
    """Patches (5, 64, 64, 3) uint8."""
    return np.random.default_rng(0).integers(0, 256, (5, PX, PX, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def images(patches):
    """The same as a Tensor (5, 3, 64, 64) in [0, 1]."""
    from seal_lite.encoders import image_batches

    (images,) = image_batches(patches)
    return images


@pytest.fixture(scope="session")
def perturb_tuned():
    """A function that changes trainable weights, so that LoRA, a no-op at first, has an effect."""
    import torch

    def perturb(encoder, *, seed=0):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in encoder.parameters():
                if parameter.requires_grad:
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter.add_(0.05 * noise)

    return perturb
