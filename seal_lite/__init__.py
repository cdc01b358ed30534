"""SEAL-lite: finetune a pathology vision encoder with spatial transcriptomics.

The path through the package: sections -> genes -> views -> encoders -> model -> losses -> train,
then evaluate -> crossval and retrieval. Nothing heavy is imported until it is used.
"""

from .config import Config, preset
from .errors import InputError

__version__ = "0.1.0"
__all__ = ["Config", "InputError", "preset", "__version__"]
