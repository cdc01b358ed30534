"""Finetuning: the loop, its batches, and the folder of a run."""
