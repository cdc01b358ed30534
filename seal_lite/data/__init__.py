"""Sections: counts, coordinates and image patches."""
