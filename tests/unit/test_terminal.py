"""What reaches a terminal is lines that print, whatever names and messages hold."""

import io
import logging
import sys
import warnings

import pytest

from seal_lite import InputError
from seal_lite.terminal import one_line, printable, show_error, start_logging

RED = "\x1b[31m"
HOSTILE = f"a{RED}\x07\x9b\r\n\u2028\u202e\u200b\x00\udcffb"
# pytest keeps the messages of the log, and sends them between processes as UTF-8.
LOGGED = HOSTILE.replace("\udcff", "")


def prints(text):
    return all(line.isprintable() for line in text.split("\n"))


def test_what_prints_stays():
    text = "Müller 患者 µm, 50 % 'x' \\n"
    assert printable(text) == text
    assert one_line(text) == text


def test_what_does_not_print_becomes_an_escape():
    assert printable(HOSTILE) == (r"a\x1b[31m\x07\x9b\r\n\u2028\u202e\u200b\x00\udcffb")


def test_lines_become_one():
    assert one_line("a\n  b\r\n\nc\u2028d\x0be") == "a b c d e"


def test_an_error_message_prints():
    error = InputError(f"{HOSTILE}: is empty; fill it")
    assert str(error).isprintable()
    assert "is empty; fill it" in str(error)


@pytest.fixture
def log():
    """The stream that the log is written to."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    stream = io.StringIO()
    for handler in before[0]:
        root.removeHandler(handler)
    start_logging(stream)
    yield stream
    logging.captureWarnings(False)
    root.handlers[:], root.level = before


def test_a_message_of_the_log_is_one_line_that_prints(log):
    logging.getLogger("any").warning("%s: dropped", LOGGED)
    text = log.getvalue()
    assert text.endswith("b: dropped\n")
    assert text.count("\n") == 1
    assert prints(text)


def test_a_warning_is_one_line_that_prints(log):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn(f"element {LOGGED} is old", stacklevel=1)
    text = log.getvalue()
    assert "is old" in text
    assert text.count("\n") == 1
    assert prints(text)


def test_a_traceback_prints(capsys):
    try:
        raise RuntimeError(HOSTILE)
    except RuntimeError as error:
        show_error(type(error), error, error.__traceback__)
    text = capsys.readouterr().err
    assert text.startswith("Traceback")
    assert prints(text)


def test_the_command_line_prints_what_prints(cli, monkeypatch):
    from seal_lite.cli import options

    options.say(HOSTILE)
    code, output, error = cli("check", "--data", f"/{RED}", "--out", "/tmp/x.html")
    assert code == 2
    assert prints(output) and prints(error)
    assert r"\x1b[31m" in error


def test_a_table_prints_a_line_a_row(capsys):
    import pandas as pd

    from seal_lite.cli.options import say_table

    say_table(pd.DataFrame({f"c{RED}\n": [HOSTILE[:-2], "b"]}, index=[f"i\n{RED}", "j"]))
    text = capsys.readouterr().out
    assert text.count("\n") == 3
    assert prints(text)


def test_an_unexpected_error_of_the_command_line_prints(monkeypatch, cli):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # restored afterwards
    cli("encoders")
    assert sys.excepthook is show_error
