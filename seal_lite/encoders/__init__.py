"""Pretrained vision encoders: loading, cutting, LoRA, augmented views and embeddings.

Nothing heavy is imported until it is used.
"""

import ctypes
from contextlib import suppress

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "blocks": ["find_blocks"],
        "checks": ["fingerprint"],
        "embedding": [
            "embed_every_layer",
            "embed_feature_layers",
            "embed_patches",
            "image_batches",
        ],
        "prefix_cache": ["PrefixCache"],
        "networks.loading": ["load_backbone"],
        "networks.row": ["Backbone"],
        "registry": ["BACKBONES", "backbone_row", "config_for"],
        "views": ["make_views", "view_parameters"],
        "vision": ["VisionEncoder", "build_encoder", "encoder_for"],
    },
)

M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
LARGE_BUFFER = 1 << 30  # bytes

# By default glibc returns buffers above 128 KiB to the system at every free, and the next step
# faults them in again. Keeping them makes a forward pass on a CPU 2 to 3 times faster. Other C
# libraries have no such setting.
with suppress(OSError, AttributeError):
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(M_TRIM_THRESHOLD, LARGE_BUFFER)
    libc.mallopt(M_MMAP_THRESHOLD, LARGE_BUFFER)
