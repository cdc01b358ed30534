"""From a folder of sections to a verdict: check, plan, cross-validate, finetune, report."""

from seal_lite.study.run import study

__all__ = ["study"]
