"""The phantom's commands, which `seal-lite` takes in beside its own."""

from pathlib import Path
from typing import Annotated

import typer

Out = Annotated[Path, typer.Option(help="Folder to write.")]
Shift = Annotated[str | None, typer.Option(help="stain, regions or batch: half of them differ.")]


def phantom(out: Out, patients: int = 4, sections_per_patient: int = 2, spots: int = 300,
            seed: int = 0, shift: Shift = None):  # fmt: skip
    """Write a tissue phantom with known truth, in the layout of real data."""
    from .sections import phantom as write

    write(out, patients=patients, sections_per_patient=sections_per_patient, spots=spots,
          seed=seed, shift=shift)  # fmt: skip
    typer.echo(f"phantom is in {out}")


def cohort(out: Out, patients: int = 60, spots: int = 100, seed: int = 0):
    """Write a cohort of phantom patients: slides, expression, and slide-level tasks."""
    from .slides import cohort as write

    typer.echo(f"cohort is in {write(out, patients=patients, spots=spots, seed=seed)}")
