"""The command line: each command reads its input, checks it, and calls one function."""

from __future__ import annotations

import logging
import os
import sys

import typer

from seal_lite.cli import data, evaluate, slides, train
from seal_lite.errors import InputError

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="SEAL-lite: finetune a pathology encoder with spatial transcriptomics, "
    "and measure honestly what that gained.",
)


COMMANDS = (
    data.fetch,
    data.check,
    data.shard,
    train.finetune,
    evaluate.probe,
    evaluate.crossval,
    evaluate.hest_bench,
    evaluate.retrieve,
    evaluate.retrieval_bench,
    slides.embed,
    slides.slide_bench,
    data.encoders,
    train.share,
    data.phantom,
    data.cohort,
)
for command in COMMANDS:
    app.command()(command)


def main():
    """Entry point: an `InputError` is one sentence on stderr and exit code 2."""
    first = os.environ.get("RANK", "0") == "0"  # of several processes one speaks
    sys.stdout = sys.stdout if first else open(os.devnull, "w")
    level = logging.INFO if first else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        sys.exit(app(sys.argv[1:] or ["--help"], standalone_mode=False) or 0)
    except InputError as error:
        said = str(error)
    except ModuleNotFoundError as error:
        said = f"{error.name} is not installed; pip install 'seal_lite[data,slides]'"
    except typer.BadParameter.__base__ as error:  # click's, of which typer may have its own copy
        said = f"{error.format_message()} See seal-lite --help"
    except OSError as error:  # a full disk, a folder without permission
        if not error.errno:
            raise
        said = f"{error.filename or 'cannot be written'}: {error.strerror}; write elsewhere"
    typer.secho(f"seal-lite: {' '.join(said.split())}", fg="red", err=True)
    sys.exit(2)
