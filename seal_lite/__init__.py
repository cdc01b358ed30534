"""SEAL-lite: finetune a pathology vision encoder with spatial transcriptomics.

The path through the package: data -> encoders -> model -> training -> evaluation -> slides. Each
stage imports from those before it only. Nothing heavy is imported until it is used.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "data",
        "encoders",
        "model",
        "training",
        "evaluation",
        "slides",
        "config",
        "hub",
        "io",
        "plots",
        "studies",
        "tutorial",
    ],
    submod_attrs={
        "config": ["Config", "preset"],
        "encoders.registry": ["config_for"],
        "data.section": ["Section", "load_sections"],
        "errors": ["InputError"],
        "hub": ["load_encoder"],
        "model.seal": ["SEAL"],
        "studies.run": ["study"],
        "training.loop": ["finetune"],
    },
)
