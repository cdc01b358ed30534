"""Tissue made here, with known truth: sections in the layout of real data, and cohorts of slides.

What the book and the tests are run on. It is installed beside `seal_lite`, which does not need it,
and imports nothing heavy until it is used.
"""

from importlib import import_module

HOME = {"UM_PER_PX": "slides", "cohort": "slides", "oracle_features": "slides",
        "phantom": "sections", "write_pyramid": "pyramid", "write_task": "hest_task"}  # fmt: skip
__all__ = list(HOME)


def __getattr__(name: str):
    if name not in HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{HOME[name]}"), name)
