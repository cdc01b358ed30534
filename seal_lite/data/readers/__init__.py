"""One file a format: each reads counts and coordinates of a technology as AnnData."""
