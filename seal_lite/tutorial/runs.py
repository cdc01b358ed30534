"""The runs that the chapters share.

    python -m seal_lite.tutorial.runs

trains both, so that chapters can then run side by side.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from seal_lite.config import Config
from seal_lite.training.loop import finetune
from seal_lite.tutorial.start import Beginning, begin

if TYPE_CHECKING:
    from seal_lite.model.seal import SEAL

CACHE = Path("runs/cache")


def finetuned(
    beginning: Beginning, *, shuffle_pairs: bool = False
) -> tuple[SEAL, list[dict[str, Any]]]:
    """Return the (model, history) of a chapter's run, trained where it is absent.

    With `shuffle_pairs` it is the control, whose patches and profiles are paired at random.
    """
    return finetune(
        beginning.train,
        beginning.config,
        include=beginning.genes,
        shuffle_pairs=shuffle_pairs,
        out=beginning.run("shuffled" if shuffle_pairs else "tuned"),
        cache_dir=CACHE,
    )


def main() -> None:
    """Finetune on true and on shuffled pairs of the phantom, with the default encoder."""
    beginning = begin("phantom", Config.backbone)
    finetuned(beginning)
    finetuned(beginning, shuffle_pairs=True)


if __name__ == "__main__":
    main()
