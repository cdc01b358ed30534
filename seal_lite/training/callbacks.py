"""What runs beside the training loop without being part of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from seal_lite.model.seal import SEAL


class Callback:
    """A base class: override what you need, and pass an instance to `finetune(callbacks=[...])`.

    Under several processes each of them calls its own callbacks. A run that resumes from a
    checkpoint calls `on_fit_start` again; what a callback has stored of earlier epochs is lost.
    """

    def on_fit_start(self, model: SEAL) -> None:
        """Run before the first step; a run that resumes has loaded its checkpoint."""

    def on_step_end(self, model: SEAL, terms: dict[str, Tensor]) -> None:
        """Run after the optimizer's step on a batch whose loss terms, scalars (), were `terms`.

        They are on the model's device; reading one waits for the step.
        """

    def on_epoch_end(self, model: SEAL, history: list[dict[str, Any]]) -> None:
        """Run before the epoch's checkpoint is written; the last entry of `history` is its own.

        Weights that the callback changes are those of the checkpoint, and after the last epoch
        those of the finished model.
        """
