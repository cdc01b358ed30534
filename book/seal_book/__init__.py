"""What the book is made with: how a chapter begins, its charts, and pictures that move."""

from . import charts, frames
from .start import begin

__all__ = ["begin", "charts", "frames"]
