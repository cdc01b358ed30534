"""Train the two runs that the chapters share, so that chapters can then run side by side.

python -m seal_lite.tutorial.runs
"""

from __future__ import annotations

from seal_lite.config import Config
from seal_lite.tutorial.start import begin


def main() -> None:
    """Finetune on true and on shuffled pairs of the phantom, with the default encoder."""
    beginning = begin("phantom", Config.backbone)
    beginning.finetuned()
    beginning.finetuned(shuffle_pairs=True)


if __name__ == "__main__":
    main()
