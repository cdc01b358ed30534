"""Figures that change under a slider, without a server: a page keeps them when it is saved."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

PAGE = """<figure class="frames">
<label>{label} <input type="range" min="0" max="{last}" value="{last}" aria-valuetext="{value}">
<output>{value}</output></label>
{images}
</figure>
<script>
(() => {{
  const box = document.currentScript.previousElementSibling;
  const [range, output] = [box.querySelector("input"), box.querySelector("output")];
  const images = [...box.querySelectorAll("img")];
  range.addEventListener("input", () => {{
    images.forEach((image, i) => {{ image.hidden = i !== +range.value; }});
    output.textContent = images[range.value].dataset.value;
    range.setAttribute("aria-valuetext", output.textContent);
  }});
}})();
</script>"""
IMAGE = '<img src="data:image/webp;base64,{source}" alt="{alt}" data-value="{value}"{hidden}>'


@dataclass(frozen=True)
class Page:
    """HTML that a notebook shows."""

    data: str

    def _repr_html_(self) -> str:
        return self.data


def slider(figures: Mapping[Any, Figure], *, label: str, alt: str) -> Page:
    """Return figures under a slider, of which the last is shown first.

    Parameters
    ----------
    figures
        By the value of the slider. All get the size of the largest, so that the page does not jump.
    label
        Name of the slider.
    alt
        Describes all figures, for readers who cannot see them.
    """
    images = [_render(figure) for figure in figures.values()]
    size = (max(image.width for image in images), max(image.height for image in images))
    values = [str(value) for value in figures]
    tags = [
        IMAGE.format(
            source=_encode(_pad(image, size)),
            alt=html.escape(f"{alt} {label}: {value}."),
            value=html.escape(value),
            hidden="" if image is images[-1] else " hidden",
        )
        for value, image in zip(values, images, strict=True)
    ]
    page = PAGE.format(
        label=html.escape(label),
        last=len(images) - 1,
        value=html.escape(values[-1]),
        images="\n".join(tags),
    )
    return Page(page)


def _render(figure: Figure) -> Image.Image:
    """Draw a figure as an RGB image."""
    png = io.BytesIO()
    figure.savefig(png, dpi=110, bbox_inches="tight", pad_inches=0.05)
    return Image.open(png).convert("RGB")


def _pad(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Put an image on a white page of a size (width, height), at the top and centred."""
    page = Image.new("RGB", size, "white")
    page.paste(image, ((size[0] - image.width) // 2, 0))
    return page


def _encode(image: Image.Image) -> str:
    """Return an image as WebP in base64."""
    buffer = io.BytesIO()
    image.save(buffer, "webp", quality=85)
    return base64.b64encode(buffer.getvalue()).decode()
