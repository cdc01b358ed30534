"""What the chapters of the book use: how one begins, its charts, figures under a slider."""

from seal_lite.tutorial import charts, frames
from seal_lite.tutorial.begin import begin

__all__ = ["begin", "charts", "frames"]
