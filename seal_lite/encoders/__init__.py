"""Pretrained vision encoders, their tuned blocks, and their embeddings."""
