"""Pictures that change under a slider, without a server: a page keeps them when it is saved."""

from __future__ import annotations

import base64
import html
import io
from dataclasses import dataclass

from PIL import Image

PAGE = """<figure class="frames">
<label>{label} <input type="range" min="0" max="{last}" value="{last}" aria-valuetext="{shown}">
<output>{shown}</output></label>
{images}
</figure>
<script>
(() => {{
  const box = document.currentScript.previousElementSibling;
  const [range, said] = [box.querySelector("input"), box.querySelector("output")];
  const images = [...box.querySelectorAll("img")];
  range.addEventListener("input", () => {{
    images.forEach((image, i) => {{ image.hidden = i !== +range.value; }});
    said.textContent = images[range.value].dataset.value;
    range.setAttribute("aria-valuetext", said.textContent);
  }});
}})();
</script>"""


def _drawn(figure) -> Image.Image:
    png = io.BytesIO()
    figure.savefig(png, dpi=110, bbox_inches="tight", pad_inches=0.05)
    return Image.open(png).convert("RGB")


@dataclass(frozen=True)
class Page:
    """Text in HTML that a notebook shows."""

    data: str

    def _repr_html_(self) -> str:
        return self.data


def slider(figures: dict, *, label: str, alt: str) -> Page:
    """Figures by the value that the slider, called `label`, then shows; the last is shown first.

    `alt` describes all of them. All get the size of the largest, so that the page does not jump.
    """
    pictures, images = [_drawn(figure) for figure in figures.values()], []
    size = tuple(map(max, zip(*(p.size for p in pictures), strict=True)))
    for i, (value, picture) in enumerate(zip(figures, pictures, strict=True)):
        small = io.BytesIO()
        page = Image.new("RGB", size, "white")
        page.paste(picture, ((size[0] - picture.width) // 2, 0))
        page.save(small, "webp", quality=85)
        source = base64.b64encode(small.getvalue()).decode()
        hidden = "" if i == len(figures) - 1 else " hidden"
        said = html.escape(f"{alt} {label}: {value}.")
        images.append(
            f'<img src="data:image/webp;base64,{source}" alt="{said}" '
            f'data-value="{html.escape(str(value))}"{hidden}>'
        )
    last, shown = len(figures) - 1, html.escape(str(list(figures)[-1]))
    return Page(
        PAGE.format(label=html.escape(label), last=last, shown=shown, images="\n".join(images))
    )
