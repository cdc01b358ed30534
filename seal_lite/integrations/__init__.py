"""A finetuned encoder as an encoder that other tools of the field know by name.

Each module is the adapter to one tool, and imports that tool. Nothing else in the package does.
"""
