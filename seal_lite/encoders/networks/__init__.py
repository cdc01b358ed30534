"""A pretrained network: its row, the row that it states itself, and its weights."""
