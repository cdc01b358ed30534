"""A tissue phantom with ground truth: sections in the layout of real data, and cohorts of slides.

Nothing heavy is imported until it is used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "hest_task": ["write_task"],
        "pyramid": ["write_pyramid"],
        "sections": ["phantom"],
        "slide_cohort": ["UM_PER_PX", "cohort", "oracle_features"],
        "truth": ["GroundTruth"],
    },
)
