"""SEAL-lite: finetune a pathology vision encoder with spatial transcriptomics.

The path through the package: formats, images -> sections -> pairs -> genes -> views -> encoders ->
model -> losses -> train, then evaluate -> crossval and retrieval. Nothing heavy is imported until
it is used.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["backbones", "check", "config", "crossval", "encoders", "evaluate", "fetch",
                "files", "hest", "leakage", "model", "pathways", "plots", "retrieval", "sections",
                "shards", "share", "slides", "train", "wsi"],
    submod_attrs={"config": ["Config", "preset"], "errors": ["InputError"],
                  "model": ["SEAL"], "sections": ["load_sections"], "share": ["load_encoder"],
                  "train": ["finetune"]})  # fmt: skip
