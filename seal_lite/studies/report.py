"""The report of a study: one page that works offline, and the same as JSON."""

from __future__ import annotations

import base64
import importlib.resources
import io
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jinja2 import Environment

from seal_lite import plots
from seal_lite.evaluation.crossval import folds_of, groups_of
from seal_lite.evaluation.scores import summary, tidy
from seal_lite.studies import figures
from seal_lite.studies.evidence import sources_of
from seal_lite.studies.plan import plural
from seal_lite.studies.verdict import (
    PROBE,
    PROBES,
    TARGET,
    checklist,
    difference_rows,
    leakage_statement,
    methods,
    unit_means,
    verdict,
)
from seal_lite.tutorial import charts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from anndata import AnnData
    from matplotlib.figure import Figure

    from seal_lite.config import Config
    from seal_lite.data.section import Section
    from seal_lite.studies.evidence import HeldOut
    from seal_lite.studies.plan import Plan

COMPARED = ("tuned", "frozen_best", "shuffled")
SHOWN = ("tuned", "shuffled", "frozen_best", "frozen", "random_init", "colour", "log_depth")
MAX_SECTIONS = 8  # whose images the page shows


@dataclass(frozen=True)
class Findings:
    """All that a report is made of.

    Parameters
    ----------
    data
        Name of the data.
    sections
        All sections of the study.
    config
        The settings.
    plan
        What was held out.
    result
        The result of the cross-validation.
    history
        That of the final training.
    held_out
        What the folds' encoders do on sections that they have not seen.
    joint
        Both embeddings of all spots, from `evidence.embed_sections`.
    robustness
        From `evidence.robustness`.
    section_facts
        Of each section what the check of the data has measured (`SectionCheck.facts`).
    doubts
        What the check of the data found odd.
    leakage
        Samples on both sides of a split, which were allowed.
    """

    data: str
    sections: Sequence[Section]
    config: Config
    plan: Plan
    result: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    held_out: HeldOut
    joint: AnnData
    robustness: Mapping[str, Mapping[str, float | None]]
    section_facts: Mapping[str, Mapping[str, object]]
    doubts: Sequence[str] = field(default_factory=list)
    leakage: Sequence[str] = field(default_factory=list)

    @property
    def n_pairs(self) -> int:
        """Number of pairs of the study."""
        return sum(len(section.rows) for section in self.sections)


def report_facts(findings: Findings) -> dict[str, Any]:
    """Return the report without its figures, ready for JSON."""
    result, plan = findings.result, findings.plan
    outcome = verdict(result, plan)
    return {
        "data": findings.data,
        "verdict": outcome.kind,
        "headline": outcome.headline,
        "sentences": outcome.sentences,
        "advice": outcome.advice,
        "differences": difference_rows(result),
        "units": _unit_table(findings),
        "scores": _score_table(result),
        "genes": gene_table(result).to_dict("records"),
        "plan": plan.sentences(),
        "doubts": list(findings.doubts),
        "leakage": list(findings.leakage),
        "leakage_statement": leakage_statement(findings.leakage, plan),
        "sections": {name: dict(facts) for name, facts in findings.section_facts.items()},
        "retrieval": findings.held_out.recall,
        "robustness": dict(findings.robustness),
        "methods": methods(result, plan, findings.config, n_pairs=findings.n_pairs),
        "checklist": checklist(result, plan, leakage=findings.leakage),
        "provenance": result["provenance"],
    }


def _unit_table(findings: Findings) -> list[dict[str, Any]]:
    """Return what each held-out unit was, what trained, and its scores under the main probe."""
    by = findings.plan.by
    means = unit_means(findings.result)
    groups = groups_of(findings.sections, by)
    rows = []
    for train, tests in folds_of(findings.sections, groups, findings.plan.train_groups):
        for unit, held_out in tests.items():
            row: dict[str, Any] = {
                "unit": unit,
                "sections": [section.name for section in held_out],
                "spots": sum(len(section.rows) for section in held_out),
                "trained_on": [section.name for section in train],
            }
            rows.append(row | {name: means.loc[unit, name] for name in COMPARED})
    return rows


def _score_table(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return mean r on Pearson residuals of each kind of features, under both probes."""
    means = summary(result)[TARGET]
    rows = []
    for features in SHOWN:
        name = charts.LABELS[features].replace("\n", " ")
        rows.append({"features": name, **{probe: means[features, probe] for probe in PROBES}})
    for features in ("neighbours", "ceiling"):
        name = charts.LABELS[features].replace("\n", " ")
        r = means[features, "none"]
        rows.append({"features": name, **dict.fromkeys(PROBES, r)})
    return rows


def gene_table(result: Mapping[str, Any]) -> pd.DataFrame:
    """Return mean r on Pearson residuals of each gene, a row each, the largest gain first."""
    scores = tidy(result)
    scores = scores[(scores.probe == PROBE) & (scores.target == TARGET)]
    genes = scores.pivot_table("r", "gene", "features")[["tuned", "frozen_best", "shuffled"]]
    genes.insert(0, "gain", genes["tuned"] - genes["frozen_best"])
    return genes.sort_values("gain", ascending=False).reset_index().rename_axis(None, axis=1)


def report_page(findings: Findings, facts: Mapping[str, Any], images: Mapping[str, Any]) -> str:
    """Return the report as one self-contained HTML page; nothing is loaded from elsewhere.

    Parameters
    ----------
    findings
        What the page shows.
    facts
        Its `report_facts`, and what the study has cost (`Costs.rows`) under "costs".
    images
        Its `draw_figures`.
    """
    environment = Environment(autoescape=True)
    environment.filters["r"] = "{:.3f}".format
    environment.filters["signed"] = _signed
    environment.filters["plural"] = plural
    text = importlib.resources.files("seal_lite.studies").joinpath("report.html").read_text()
    held_out = findings.held_out
    return environment.from_string(text).render(
        facts=facts,
        findings=findings,
        probes=PROBES,
        n_patients=len({section.patient for section in findings.sections}),
        images=images,
        maps=held_out.maps,
        examples=held_out.examples,
    )


def _signed(value: float) -> str:
    """Return a value with its sign, to three digits; nothing is -0.000."""
    return f"{round(value, 3) + 0.0:+.3f}"


def draw_figures(findings: Findings) -> dict[str, Any]:
    """Return the page's figures as data addresses, by name."""
    config, held_out = findings.config, findings.held_out
    sections = [
        {
            "name": section.name,
            "overview": encode(plots.overview(section)),
            "patches": encode(figures.section_patches(section, config.patch_um)),
        }
        for section in findings.sections[:MAX_SECTIONS]
    ]
    colourings = [*sources_of(findings.joint), "domain"]
    return {
        "differences": encode(figures.differences(findings.result, findings.plan.by)),
        "scores": encode(charts.scores(findings.result)),
        "losses": encode(charts.loss_curves(findings.history)),
        "maps": encode(figures.maps(held_out.maps)),
        "examples": [
            encode(figures.example(example, config.patch_um)) for example in held_out.examples
        ],
        "umaps": {
            name: {
                embedding: encode(figures.embedding_map(findings.joint, embedding, name))
                for embedding in figures.EMBEDDINGS
            }
            for name in colourings
        },
        "sections": sections,
    }


def encode(figure: Figure) -> str:
    """Return a figure as the address of a JPEG inside the page."""
    buffer = io.BytesIO()
    options = {"quality": 85, "optimize": True}
    figure.savefig(buffer, format="jpg", dpi=120, bbox_inches="tight", pil_kwargs=options)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
