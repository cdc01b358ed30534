"""The box at the end of a chapter that states its result, with numbers from the run above it."""

from __future__ import annotations

import html
from dataclasses import dataclass

# In the page itself, so that a notebook on Colab shows the same box as the book.
BOX = "border-left: 4px solid #0072b2; padding: 0.6em 1em; margin: 1em 0"


@dataclass(frozen=True)
class ResultBox:
    """A chapter's result in a few sentences, shown as a box where the last line of a cell is one.

    Parameters
    ----------
    sentences
        Plain text. The first one states what was measured, the number with its interval and units,
        and whether that is better, no difference or worse.
    """

    sentences: tuple[str, ...]

    def _repr_html_(self) -> str:
        text = " ".join(html.escape(sentence) for sentence in self.sentences)
        return f'<div class="seal-result" style="{BOX}"><strong>Result.</strong> {text}</div>'

    def _repr_markdown_(self) -> str:
        return f"**Result.** {' '.join(self.sentences)}"

    def __str__(self) -> str:
        return f"Result. {' '.join(self.sentences)}"


def result_box(*sentences: str) -> ResultBox:
    """Return the box that states a chapter's result.

    Raises
    ------
    ValueError
        Where a sentence is empty or holds a number that is not finite.
    """
    for sentence in sentences:
        words = sentence.lower().replace("[", " ").split()
        if not words or any(word.strip("+-,.;]") in ("nan", "inf") for word in words):
            raise ValueError(f"not a result: {sentence!r}")
    return ResultBox(sentences)
