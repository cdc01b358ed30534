"""What is promised and how it is tested: the page's counts, from tests and records."""

from __future__ import annotations

import ast
from pathlib import Path

from page import load, missing, source, stale
from settings import table

ROOT = Path(__file__).parents[1]
COMMAND = "make promises"
TOLERANCE = 0.03  # between machines, of the mean r of a fold
JOBS = {
    "finetune": "`finetune`, and the cache that it fills",
    "crossval": "`crossval`",
    "embed": "`embed`",
    "fetch": "`fetch`",
}


def catalogue(path: Path = ROOT / "tests/test_faults.py") -> dict[str, list[str]]:
    """{what is wrong: names of faults} as the table of tests has them, under its own headings."""
    lines, found = path.read_text().splitlines(), {}
    for node in ast.parse("\n".join(lines)).body:
        name = getattr(node.targets[0], "id", "") if isinstance(node, ast.Assign) else ""
        if name not in ("FAULTS", "WORLD"):
            continue
        heading = "the world around us"
        for row in node.value.elts:
            above = lines[row.lineno - 2].strip()
            heading = above.removeprefix("# ") if above.startswith("# ") else heading
            found.setdefault(heading, []).append(row.elts[0].value)
    return found


def faults() -> str:
    """The catalogue's table, and its count."""
    found = catalogue()
    rows = [
        (heading, len(names), "; ".join(names[:4]) + (" …" if len(names) > 4 else ""))
        for heading, names in found.items()
    ]
    total = sum(map(len, found.values()))
    return f"**{total} faults**, each a row that a test reads:\n\n" + table(
        ["about", "faults", "for instance"], rows
    )


def kills(found: dict) -> str:
    rows = [
        (JOBS[name], job["kills"], f"all {job['runs']}", f"{job['seconds']:.1f} s")
        for name, job in found["kills"].items()
    ]
    head = ["what was killed", "kills", "runs with the undisturbed result", "undisturbed, it takes"]
    total = sum(job["kills"] for job in found["kills"].values())
    c = found["crowd"]
    one, many = c["slides"], c["processes"]
    return (
        f"**{total} kills** at random moments, and after every one the same command again until it "
        "got through; some runs took many.\n\n"
        + table(head, rows)
        + f"\n{many} processes that embedded the same {one} slides into one folder at once wrote "
        "each slide once, with the bytes that one process writes; as many that shared one prefix "
        "cache left it as one leaves it.\n"
    )


def mutants(found: dict) -> str:
    rows = [
        (f"`{path}`", counts["read"], counts["refused"])
        for path, counts in found["mutants"].items()
    ]
    read, refused = (sum(row[i] for row in rows) for i in (1, 2))
    return (
        f"**{read + refused} damaged files**: {refused} were refused in a sentence, {read} could "
        "still be read, and nothing else happened.\n\n"
        ":::{dropdown} File by file\n" + table(["file", "read", "refused"], rows) + ":::\n"
    )


def cycles(found: dict) -> str:
    c = found["cycles"]
    low, high = min(c["open_files"]), max(c["open_files"])
    files = f"{low}" if low == high else f"{low} to {high}"
    return (
        f"**{c['cycles']} times** finetuning and probing in one process: memory changes by "
        f"{c['mb_per_100_cycles']:+.2f} MB for every 100 of them (a line through the last three "
        f"quarters; {c['mb'][0]:.0f} MB at the start and {c['mb'][-1]:.0f} MB at the end), with "
        f"{files} open files throughout.\n"
    ).replace("-", "−")


def same(path: Path) -> str:
    """How far recomputed folds were from recorded ones."""
    again = load(path.with_name("recheck.json"))
    if again is None or "machine" not in again:
        return missing(path.with_name("recheck.json"), "make recheck")
    m = again["machine"]
    code = [part["largest_difference"] for part in again.values() if "commit" in part]
    largest = max(code, default=0)
    gap = f"differ by at most {largest:.4f}" if largest else "give the same scores"
    return (
        f"What a probe reads from an encoder, the mean *r* of a fold, should then agree within "
        f"{TOLERANCE}. Fold {m['test']} of the real tissue was made again on the machine at hand: "
        f"{m['compared']} such scores differ by {m['mean_difference']:.3f} on average and "
        f"{m['largest_difference']:.3f} at most. (The networks' own decoders, of which one learnt "
        f"from shuffled pairs and predicts noise, differ by up to "
        f"{m['decoders']['largest_difference']:.3f}.) So read nothing into differences of that "
        "size between machines. On one machine, short runs by the code that made each of "
        f"{len(code)} records and by this book's {gap} (`make recheck`).\n"
    )


PARTS = {"kills": kills, "mutants": mutants, "cycles": cycles}


def chapter(path: Path) -> dict[str, str]:
    """The page's parts by name: what the tests' table holds, and what the record counted."""
    found = load(path)
    if found is None:
        absent = dict.fromkeys(PARTS, missing(path, COMMAND))
        return {"faults": faults(), "same": same(path), **absent, "source": ""}
    parts = {name: part(found) for name, part in PARTS.items()}
    p = found["provenance"]
    where = stale(p, command=COMMAND) + source(p)
    return {"faults": faults(), "same": same(path), **parts, "source": where}
