"""What the chapters of the book use: how one begins, its charts, figures under a slider.

Nothing heavy is imported until it is used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["charts", "frames"],
    submod_attrs={
        "results": ["result_box"],
        "runs": ["finetuned"],
        "start": ["Beginning", "begin"],
    },
)
