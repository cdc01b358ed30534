"""Data sets: the phantom that is made here, and her2st as it is published."""

from .her2st import fetch_her2st
from .phantom import phantom

__all__ = ["fetch_her2st", "phantom"]
