"""A run as lazyslide's model "seal", as soon as this module is imported.

::

    import seal_lite.integrations.lazyslide
    lazyslide.tl.feature_extraction(wsi, "seal", model_path="runs/c5")

Tiles should have the run's scale: `patch_um` wide, of `patch_px` px.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lazyslide_models import ImageModel, ModelTask, register

from seal_lite.errors import InputError
from seal_lite.hub import load_encoder


class SealModel(ImageModel):
    """The encoder of a run.

    Parameters
    ----------
    model_path
        A run folder, or "hf-hub:OWNER/NAME".
    token
        Not used: a private run on the hub needs `hf auth login`.

    Raises
    ------
    InputError
        Where no run is named, or it cannot be loaded.
    """

    def __init__(self, model_path: str | Path | None = None, token: str | None = None) -> None:
        if model_path is None:
            raise InputError("seal: names no run; give model_path=RUN")
        self.model, self._transform, _ = load_encoder(model_path, device="cpu")

    @property
    def name(self) -> str:
        """The name under which lazyslide stores the features."""
        return "seal"

    def get_transform(self) -> Callable:
        """Return the transform of a tile, which resamples as training does."""
        return self._transform

    def encode_image(self, image: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the embeddings (b, dim) of transformed tiles (b, 3, px, px)."""
        return self.model(image)


own_documentation = SealModel.__doc__
register(
    key="seal",
    task=ModelTask.vision,
    description="An encoder finetuned on spatial transcriptomics: model_path names the run",
)(SealModel)
SealModel.__doc__ = own_documentation  # lazyslide writes a table of its own in front
