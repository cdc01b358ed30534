"""What the book says of speed: how it is measured, and how it is told."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from test_benches_page import PROVENANCE

JOB = {"sections": ["PA1"], "px": 64, "um": 224.0, "batch": 16, "steps": 2, "blocks": 1}


@pytest.fixture(scope="module")
def page(book):
    """The modules of the book that measure and tell."""
    return {name: book(name) for name in ("bench", "speed", "steps")}


def measured(page, root, **job):
    return page["bench"].python("steps.py", json.dumps({**JOB, "data": str(root), **job}))


@pytest.mark.parametrize("tap", ["blocks.4", "blocks.6"])
def test_the_tutorials_loop_is_the_same_training(page, phantom_root, tap):
    """Same views, same weights, three steps: all that makes ours fast leaves the losses alone."""
    ours = measured(page, phantom_root, tap=tap, off=[])
    theirs = measured(page, phantom_root, tap=tap, off=[*page["steps"].OFF])
    assert len(ours["losses"]) == 3 and len(set(ours["losses"])) == 3
    np.testing.assert_allclose(ours["losses"], theirs["losses"], atol=1e-4)
    assert len(ours["seconds"]) == 2 and ours["rate"] == pytest.approx(
        2 * 16 / sum(ours["seconds"])
    )


def test_an_embedding_is_the_tutorials(page, phantom_root):
    job = {"blocks": 0, "tap": "blocks.4", "embedding": True}
    ours = measured(page, phantom_root, off=[], **job)
    theirs = measured(page, phantom_root, off=["layout", "allocator", "cut"], **job)
    assert ours["sum"] == pytest.approx(theirs["sum"], rel=1e-4) and ours["rate"] > 0


def test_an_epoch_from_drawn_shards(page, phantom_root, tmp_path):
    page["bench"].python("scale.py", "write", tmp_path / "shards", 6000, phantom_root)
    assert len([*(tmp_path / "shards").glob("*.h5")]) == 2
    epoch = page["bench"].python("scale.py", "train", tmp_path / "shards")
    assert epoch["pairs"] == 6000 and epoch["seconds"] > 0
    assert epoch["disk_bytes"] > 6000 * 32 * 32 * 3 and 2e8 < epoch["peak_bytes"] < 4 * 2**30


def record() -> dict:
    loops = {"tutorial": 10.0, "streamed": 20.0, "cached": 400.0}
    return {
        "training": {
            "S": {
                "rates": loops,
                "ratio": 40.0,
                "gap": 2e-6,
                "cache_seconds": 9.0,
                "pairs": 100,
                "threads": 2,
            }
        },
        "parts": {
            "cache": 20.0,
            "merged": 390.0,
            "layout": 300.0,
            "allocator": 200.0,
            "all on": 400.0,
            "bf16": 800.0,
            "one thread": 250.0,
        },
        "chunks": {
            "batch": 320,
            "chunk": 32,
            "gap": 0.0,
            "rates": {"whole": 10.0, "chunks": 8.0},
            "peak_bytes": {"whole": 4e9, "chunks": 2e9},
        },
        "embedding": {"rates": {"tutorial": 50.0, "ours": 150.0}, "ratio": 3.0, "gap": 1e-7},
        "start_up": {"import": 0.03, "help": 0.16},
        "scale": [
            {"pairs": n, "seconds": 1e-3 * n, "peak_bytes": 1.3e9, "disk_bytes": 4e3 * n}
            for n in (7_000, 70_000, 700_000)
        ],
        "probing": {
            "samples": 8,
            "patches": 2500,
            "features": 1024,
            "ratio": 24.0,
            "seconds": {"upstream": 41.0, "ours": 1.7},
            "largest_difference": 4e-4,
        },
        "searching": {
            "top": 10,
            "gallery": 10**6,
            "features": 512,
            "queries": 100,
            "ratio": 8.6,
            "seconds": {"faiss": 7.3, "ours": 0.85},
            "agree": 1.0,
        },
        "provenance": PROVENANCE,
    }


def test_the_page_tells_what_was_recorded(page, tmp_path):
    path = tmp_path / "bench.json"
    speed = page["speed"]
    assert "`make bench` writes it" in "".join(speed.section(path, tmp_path))
    assert "`make bench` writes it" in speed.chapter(path, tmp_path)
    (tmp_path / "figures").mkdir()
    path.write_text(json.dumps(record()))
    text = "\n".join(speed.section(path, tmp_path))
    row = re.search(r"\| S +\|(.+)\|", text)[1]
    # 9 s for 100 pairs; 1/20 - 1/400 s saved a pair: 1.9 epochs
    assert [c.strip() for c in row.split("|")] == ["10", "20", "400", "40.0", "2e-06", "1.9"]
    assert re.search(r"large buffers kept by glibc +\| +200 +\| +2.00", text)
    assert "4.00 and 2.00 GB at the peak" in text and "100.0% the same" in text
    assert "`seal-lite --help` 0.16 s" in text
    assert (tmp_path / "figures/results_scale.png").stat().st_size > 1000
    assert "(speed)=" in text and "(speed)=" not in speed.chapter(path, tmp_path)


def test_slopes_are_those_of_the_curves(page):
    scale = [
        {"pairs": n, "seconds": 2e-3 * n**1.1, "peak_bytes": 1e9 * n**0.02}
        for n in (10, 1000, 10**6)
    ]
    assert page["speed"].slopes(scale) == pytest.approx({"seconds": 1.1, "peak_bytes": 0.02})


def test_start_up_imports_nothing_heavy():
    """--help and the bare import must not wait for torch or scanpy."""
    heavy = "{'torch', 'scanpy', 'anndata', 'timm', 'peft', 'sklearn', 'pandas', 'matplotlib'}"
    for code in ("import seal_lite", "import seal_lite.cli"):
        code = f"{code}; import sys; print(sorted({heavy} & set(sys.modules)))"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == "[]", done.stdout
