"""Tissue made here, with known truth: sections in the layout of real data, and cohorts of slides.

What the book and the tests are run on. It is installed beside `seal_lite`, which does not need it.
"""

from .cohort import UM_PER_PX, cohort, oracle_features
from .phantom import phantom

__all__ = ["UM_PER_PX", "cohort", "oracle_features", "phantom"]
