"""The method: a vision encoder and a gene encoder in one space, and their losses."""
