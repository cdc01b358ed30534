"""What the shuffled control consists of: other controls beside it, for both networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from pages.ablation import MAIN, beside, difference
from pages.evaluations import Result
from pages.markdown import interval, verdict

SELF_SUPERVISION = "self-supervision"
ANEW = "partners drawn anew"


class Network(NamedTuple):
    """A network's trials: its recipe, the shuffled control, and the controls beside that."""

    name: str
    recipe: str
    shuffled: str
    record: Result
    provenance: dict[str, Any]  # of the controls

    def arms(self) -> list[tuple[str, str]]:
        """Return (arm, text) of the rows of the table."""
        return [
            (self.recipe, "finetuning on true pairs"),
            (self.shuffled, "shuffled pairs"),
            (SELF_SUPERVISION, "self-supervision"),
            (ANEW, ANEW),
            ("regression, partners drawn anew", f"{ANEW}, regression alone"),
        ]

    def gain_over(self, control: str) -> str:
        """Return finetuned minus a control under probe B, with its verdict."""
        gap = difference(self.record, self.recipe, MAIN, minus=(control, MAIN))
        return f"{interval(gap)}, {verdict(gap)}"


def networks(load: Callable[[str], Result]) -> list[Network]:
    """Return the trials of the CNN and of the transformer."""
    trials = load("transformer_trials")
    of_spot = "patches of 112 um"  # those of the transformer's controls
    lists = (
        ("CNN", "convolutional network", "convolutional network, shuffled pairs", "control_trials"),
        ("transformer", of_spot, f"{of_spot}, shuffled pairs", "transformer_control_trials"),
    )
    rows = []
    for name, recipe, shuffled, file in lists:
        controls = load(file)
        record = beside(trials, [recipe, shuffled], controls)
        rows.append(Network(name, recipe, shuffled, record, controls["provenance"]))
    return rows


def taught_sentence(load: Callable[[str], Result]) -> str:
    """Return in words how finetuning compares with self-supervision on the same patches."""
    gaps = [f"{row.gain_over(SELF_SUPERVISION)}, for the {row.name}" for row in networks(load)]
    return (
        "Self-supervision on the same patches uses no expression. Under probe B, finetuned minus "
        f"self-supervised is {', and '.join(gaps)}, with patches of 112 µm. The units here are "
        "trainings on pairs of the four sections."
    )
