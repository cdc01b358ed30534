"""A run as a patch encoder of TRIDENT, by its name.

::

    from seal_lite.integrations import trident
    trident.register("runs/c5", name="seal")
    encoder = encoder_factory("seal")

Patches should have the run's scale: `patch_um` wide. They are resampled to `patch_px` px.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn


def register(run: str | Path, *, name: str = "seal") -> None:
    """Add a run to TRIDENT's encoders, or replace the one of that name.

    Parameters
    ----------
    run
        A run folder, or "hf-hub:OWNER/NAME". It is loaded when TRIDENT makes the encoder. The
        folder that TRIDENT is then given as ``weights_path`` is loaded instead.
    name
        What `encoder_factory` takes.
    """
    from trident.patch_encoder_models.load import BasePatchEncoder, encoder_registry

    from seal_lite.hub import load_encoder

    class SealPatchEncoder(BasePatchEncoder):
        """The encoder of the run."""

        def _build(self) -> tuple[nn.Module, Callable, torch.dtype]:
            """Return module, transform and precision."""
            self.enc_name = name
            return load_encoder(self.weights_path or run, device="cpu")

    encoder_registry[name] = SealPatchEncoder
