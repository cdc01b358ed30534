"""Paired differences and their intervals, drawn for the page of results."""

from matplotlib import pyplot as plt

from seal_lite import plots
from seal_lite.tutorial import charts


@plots.drawn
def deltas(result):
    """Paired differences of mean r with their 95% CI, by target and probe, as `crossval` gives."""
    found = result["delta"]
    places = list(dict.fromkeys((d["target"], d.get("class")) for d in found))
    places = [p for p in places if p[1] is None or p[0] == "pearson_residuals"]
    places.sort(key=lambda p: p[1] is not None)
    pairs = list(dict.fromkeys((d["of"], d["minus"]) for d in found))
    probes = list(dict.fromkeys(d["probe"] for d in found))
    size = (2.5 + 2.7 * len(pairs), 1.1 + 0.55 * len(places))
    figure, axes = plt.subplots(
        1, len(pairs), sharey=True, sharex=True, squeeze=False, figsize=size
    )
    for ax, pair in zip(axes.flat, pairs, strict=True):
        for d in (d for d in found if (d["of"], d["minus"]) == pair):
            if (place := (d["target"], d.get("class"))) in places:
                i, (low, high) = probes.index(d["probe"]), d["ci95"]
                y = places.index(place) + 0.22 * (i - (len(probes) - 1) / 2)
                ax.plot([low, high], [y, y], color=plots.COLOURS[i], lw=1.8)
                fill = plots.COLOURS[i] if low > 0 or high < 0 else "white"  # open: includes zero
                ax.plot(d["mean"], y, "o", ms=6, mec=plots.COLOURS[i], mfc=fill)
        minus = charts.LABELS[pair[1]].replace("\n", " ")
        charts.named_rows(
            ax,
            [charts.LABELS[t] + (f"\n{c} genes" if c else "") for t, c in places],
            label="difference in mean r, 95% CI",
        )
        ax.set_title(f"{charts.LABELS[pair[0]]}\nminus {minus}")
        ax.locator_params(axis="x", nbins=4)  # three panels: more labels would touch
    charts.legend(figure, probes)
    return figure
