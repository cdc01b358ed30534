"""SEAL-lite: finetune a pathology vision encoder with spatial transcriptomics.

The path through the package: formats, images -> sections -> pairs -> genes -> views -> encoders ->
model -> losses -> train, then evaluate -> crossval and retrieval. Nothing heavy is imported until
it is used.
"""

from .config import Config, preset
from .errors import InputError

__version__ = "0.1.0"
__all__ = ["Config", "InputError", "load_encoder", "preset", "__version__"]


def __getattr__(name: str):
    if name != "load_encoder":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .share import load_encoder

    return load_encoder
