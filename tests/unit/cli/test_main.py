"""The entry point: exit codes, one line for an error, and a start that imports nothing heavy."""

import subprocess
import sys

import pytest
import typer

from seal_lite import cli as command_line
from seal_lite.errors import InputError


def test_help_lists_every_command(cli):
    code, output, _ = cli("--help")
    assert code == 0
    for function in command_line.COMMANDS:
        assert function.__name__.replace("_", "-") in output


def test_without_arguments_the_help_is_shown(cli):
    code, output, _ = cli()
    assert code == 0
    assert "Usage: " in output


def test_the_help_of_every_command_is_its_docstring(cli):
    for function in command_line.COMMANDS:
        code, output, _ = cli(function.__name__.replace("_", "-"), "--help")
        assert code == 0
        words = " ".join(output.replace("│", " ").split())
        assert function.__doc__ in words


def test_every_option_and_argument_of_every_command_has_help():
    commands = typer.main.get_command(command_line.app).commands
    assert len(commands) == len(command_line.COMMANDS)
    silent = [
        f"{name} {parameter.name}"
        for name, command in commands.items()
        for parameter in command.params
        if not parameter.help
    ]
    assert silent == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["encoders", "--colour", "red"], "--colour"),
        (["train"], "No such command 'train'"),
        (["probe", "--run", "x"], "Missing option '--data'"),
        (["finetune", "--data", "x", "--out", "y", "--epochs", "ten"], "'--epochs'"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(cli, arguments, message):
    code, output, error = cli(*arguments)
    assert code == 2
    assert output == ""
    (line,) = error.splitlines()
    assert line.startswith("seal-lite: ")
    assert message in line
    assert line.endswith("See seal-lite --help")


def fail_with(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(command_line, "app", fail)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("a.tsv: is\nempty; fill it"), "a.tsv: is empty; fill it"),
        (
            ModuleNotFoundError("no", name="tiffslide"),
            "tiffslide is not installed; pip install 'seal_lite[data,slides]'",
        ),
        (OSError(28, "No space left", "out"), "out: No space left; write elsewhere"),
        (OSError(28, "No space left"), "cannot be written: No space left; write elsewhere"),
        (typer.BadParameter("too low"), "Invalid value: too low See seal-lite --help"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_of_the_user_is_one_line_and_exit_code_2(cli, monkeypatch, error, line):
    fail_with(monkeypatch, error)
    assert cli("encoders") == (2, "", f"seal-lite: {line}\n")


@pytest.mark.parametrize("error", [KeyError("bug"), OSError("no number: not of the system")])
def test_an_error_of_ours_is_raised(monkeypatch, error):
    fail_with(monkeypatch, error)
    with pytest.raises(type(error)):
        command_line.run_command(["encoders"])


def test_of_several_processes_only_the_first_prints(cli, monkeypatch):
    monkeypatch.setattr(command_line, "app", lambda *_, **__: print("loss"))
    monkeypatch.setenv("RANK", "0")
    assert cli("encoders") == (0, "loss\n", "")
    monkeypatch.setenv("RANK", "1")
    assert cli("encoders") == (0, "", "")


def test_start_up_imports_nothing_heavy():
    code = """
import sys
import seal_lite.cli
seal_lite.cli.run_command(["finetune", "--help"])
heavy = {"torch", "numpy", "pandas", "scanpy", "anndata", "timm", "peft", "sklearn", "matplotlib"}
print(sorted(heavy & set(sys.modules)))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"
