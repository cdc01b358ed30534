"""From a folder of sections to a verdict: check, plan, cross-validate, finetune, report."""
