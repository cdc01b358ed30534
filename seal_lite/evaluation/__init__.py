"""Evaluation on held-out sections: targets, probes, controls, intervals."""
