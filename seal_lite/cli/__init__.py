"""The command line: each command reads its input, checks it, and calls one function."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from typing import Any

import typer

from seal_lite.cli import data, evaluate, slides, study, train
from seal_lite.errors import InputError
from seal_lite.terminal import one_line, show_error, start_logging

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="SEAL-lite: finetune a pathology encoder with spatial transcriptomics, "
    "and measure honestly what that gained.",
)

COMMANDS = (
    data.fetch,
    data.check,
    study.study,
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
    data.cache,
    train.share,
    data.phantom,
    data.cohort,
)
for command in COMMANDS:
    app.command()(command)

# click's UsageError. Some versions of typer have their own copy of click, which is private.
UsageError: Any = typer.BadParameter.__base__
INTERRUPTED = 130  # the exit code of Ctrl-C
RESUMING = ("fetch", "study", "finetune", "crossval", "embed")


def is_first_process() -> bool:
    """Return whether this is the only process, or the first of several."""
    return os.environ.get("RANK", "0") == "0"


def main() -> None:
    """Run the command line. Of several processes only the first prints."""
    level = logging.INFO if is_first_process() else logging.WARNING
    start_logging(sys.stderr, level=level)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if is_first_process():
        sys.exit(run_command(sys.argv[1:]))
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        sys.exit(run_command(sys.argv[1:]))


def run_command(arguments: list[str]) -> int:
    """Run a command and return its exit code.

    An error that a user can correct is printed as one line on stderr; its exit code is 2. Any
    other is raised.
    """
    try:
        exit_code = app(arguments or ["--help"], standalone_mode=False)
        if exit_code == INTERRUPTED and is_first_process():
            resumes = bool(arguments) and arguments[0] in RESUMING
            remedy = "; the same command resumes from there" if resumes else ""
            typer.secho(f"seal-lite: interrupted{remedy}", err=True)
        return exit_code or 0
    except InputError as error:
        message = str(error)
    except ModuleNotFoundError as error:
        message = f"{error.name} is not installed; pip install 'seal_lite[data,slides]'"
    except UsageError as error:
        message = f"{error.format_message()} See seal-lite --help"
    except OSError as error:  # a full disk, a folder without permission
        if not error.errno:
            raise
        place = error.filename or "cannot be written"
        message = f"{place}: {error.strerror}; write elsewhere"
    finally:
        sys.excepthook = show_error  # typer has set its own
    typer.secho(f"seal-lite: {one_line(message)}", fg="red", err=True)
    return 2
