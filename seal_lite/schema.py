"""What a file must hold, said by types: every value is checked once, when it is loaded.

A schema is a dataclass or a `TypedDict`. Its annotations say the type of each field, and inside
`Annotated` a `Number` or a `Size` what else must hold::

    class Base(TypedDict):
        backbone: Annotated[str, Size(1, 200)]
        sha256: Sha256

    base = read(run / "base.json", Base)

A dataclass refuses fields that it does not have, a `TypedDict` keeps them unchecked.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import reprlib
import sys
import types
import typing
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from seal_lite.errors import InputError, reading
from seal_lite.io import RUN_REMEDY, read_json, read_json_text

WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
NUMBERS = r"(float|int|uint)\d+"  # names of the types of real numbers, as `check_array` takes them


@dataclasses.dataclass(frozen=True)
class Number:
    """The range of a number.

    It is finite unless `infinite`: then null stands for infinity. `undefined` allows NaN.
    """

    at_least: float = -math.inf
    at_most: float = math.inf
    above: float = -math.inf
    infinite: bool = False
    undefined: bool = False

    @property
    def words(self) -> str:
        """The range in words."""
        bounds = {"above": self.above, "at least": self.at_least, "at most": self.at_most}
        limits = [f"{word} {limit:.15g}" for word, limit in bounds.items() if math.isfinite(limit)]
        return " and ".join(limits) or "that is finite"

    def holds(self, value: Any) -> bool:
        """Return whether a number lies in the range."""
        if value != value:  # NaN
            return self.undefined
        is_in_range = value >= self.at_least and value <= self.at_most
        is_finite = abs(value) <= sys.float_info.max  # a whole number in a file may be larger
        is_allowed = is_finite or (value > 0 and self.infinite)
        return bool(is_in_range and is_allowed and value > self.above)


@dataclasses.dataclass(frozen=True)
class Size:
    """The number of entries of a list, or of characters of a text; whether all must differ."""

    at_least: int = 0
    at_most: int = 10**7
    unique: bool = False

    def fault(self, value: Any) -> str:
        """Return what a list or a text must be; "" where it is that."""
        unit = "characters" if isinstance(value, str) else "entries"
        if not self.at_least <= len(value) <= self.at_most:
            return f"of {self.at_least} to {self.at_most} {unit}, not {len(value)}"
        if self.unique and len(set(value)) < len(value):
            ((twice, _),) = Counter(value).most_common(1)
            return f"without repetition: {twice!r} is there twice"
        return ""


@dataclasses.dataclass(frozen=True)
class Pattern:
    """A regular expression that a text matches as a whole, and words for it."""

    expression: str
    words: str

    def fault(self, value: Any) -> str:
        """Return what a text must be; "" where it is that."""
        return "" if re.fullmatch(self.expression, value) else f"that is {self.words}"


Sha256 = Annotated[str, Pattern("[0-9a-f]{64}", "64 hex digits")]
Names = Annotated[list[Annotated[str, Size(1, 1000)]], Size(1, unique=True)]
Count = Annotated[int, Number(at_least=0, at_most=10**12)]


class Misfit(Exception):  # noqa: N818 (an `InputError` follows)
    """A field that does not fit its schema; the text names the field and what it must be."""


def read(path: str | Path, kind: Any, *, remedy: str = RUN_REMEDY) -> Any:
    """Return what a JSON file holds, checked against a schema.

    Parameters
    ----------
    path
        The file.
    kind
        The schema, or any other type that `check` takes.
    remedy
        What the error message advises.

    Raises
    ------
    InputError
        Where the file is absent, is no JSON, or does not fit.
    """
    return check(read_json(path, remedy=remedy), kind, path=path, remedy=remedy)


def read_lines(path: str | Path, kind: Any, *, remedy: str = RUN_REMEDY) -> list[Any]:
    """Return what a file of JSON lines holds, each line checked against a schema."""
    with reading(path, remedy=remedy):
        lines = read_json_text(path).splitlines()
        values = [json.loads(line) for line in lines]
    return check({"line": values}, dict[str, list[kind]], path=path, remedy=remedy)["line"]


def check(
    value: Any, kind: Any, *, path: str | Path, field: str = "", remedy: str = "correct it"
) -> Any:
    """Return a value that fits a type.

    Lists become tuples, and mappings the dataclass, where the type says so.

    Parameters
    ----------
    value
        What was read.
    kind
        `bool`, `int`, `float`, `str`, a list, tuple or dict of them, a `Literal`, one of these or
        `None`, a dataclass, a `TypedDict`, each perhaps `Annotated`, or any other class.
    path
        What the message begins with: the file.
    field
        The value's own name in the file; empty for the file as a whole.
    remedy
        What the message advises.

    Raises
    ------
    InputError
        Where it does not fit; the message names the field, its value and what is allowed.
    """
    try:
        return _fit(value, kind, field)
    except Misfit as misfit:
        raise InputError(f"{path}: {misfit}; {remedy}") from None


def check_array(
    path: str | Path,
    field: str,
    array: Any,
    *,
    shape: tuple[int | None, ...],
    dtype: str = NUMBERS,
    remedy: str = "fetch it again",
) -> None:
    """Check an array's shape and type, without reading it.

    Parameters
    ----------
    path, field, remedy
        As in `check`.
    array
        An array in memory, or on disk.
    shape
        The shape; None stands for any length.
    dtype
        Regular expression of the names of the types that it may have.

    Raises
    ------
    InputError
        Where another shape or type is found, or no array.
    """
    lengths = getattr(array, "shape", ())
    name = getattr(getattr(array, "dtype", None), "name", "no array")
    fits = len(lengths) == len(shape) and re.fullmatch(dtype, name) is not None
    if fits:
        pairs = zip(shape, lengths, strict=True)
        fits = all(wanted in (None, length) for wanted, length in pairs)
    if not fits:
        expected = ", ".join("any" if length is None else str(length) for length in shape)
        found = f"{name} {tuple(lengths)}"
        raise InputError(f"{path}: {field} is {found}, must be of shape ({expected}); {remedy}")


def _fit(value: Any, kind: Any, field: str) -> Any:
    """Return a value that fits a type, or raise a `Misfit`."""
    origin = typing.get_origin(kind)
    if origin is Annotated:
        return _fit_annotated(value, kind, field)
    if origin is Literal:
        choices = typing.get_args(kind)
        if not any(type(value) is type(choice) and value == choice for choice in choices):
            raise _misfit(field, value, f"one of {', '.join(map(str, choices))}")
        return value
    if origin in (Union, types.UnionType):
        return _fit_any(value, typing.get_args(kind), field)
    if origin in _CONTAINERS:
        return _CONTAINERS[origin](value, typing.get_args(kind), field)
    if typing.is_typeddict(kind) or dataclasses.is_dataclass(kind):
        return _fit_fields(value, kind, field)
    if kind in (int, float):
        return _fit_number(value, kind, Number(), field)
    if kind is not Any and not isinstance(value, kind):
        raise _misfit(field, value, WORDS.get(kind, kind.__name__))
    return value


def _fit_any(value: Any, kinds: tuple[Any, ...], field: str) -> Any:
    """Return a value that fits one of several types; the last says what it must be."""
    if value is None and type(None) in kinds:
        return None
    others = [kind for kind in kinds if kind is not type(None)]
    for kind in others[:-1]:
        with suppress(Misfit):
            return _fit(value, kind, field)
    return _fit(value, others[-1], field)


def _fit_annotated(value: Any, kind: Any, field: str) -> Any:
    """Return a value that fits a type and its rules."""
    base, *rules = typing.get_args(kind)
    if base in (int, float):
        return _fit_number(value, base, rules[0], field)
    value = _fit(value, base, field)
    for rule in rules:
        fault = rule.fault(value)
        if fault:
            noun = "text" if isinstance(value, str) else "a list"
            raise _misfit(field, value, f"{noun} {fault}")
    return value


def _fit_number(value: Any, kind: type, rule: Number, field: str) -> Any:
    """Return a number in its range; a whole one may stand for any, null for infinity."""
    if value is None and rule.infinite:
        return math.inf
    is_number = isinstance(value, Integral if kind is int else Real)
    if isinstance(value, bool) or not is_number or not rule.holds(value):
        raise _misfit(field, value, f"{WORDS[kind]} {rule.words}")
    return value


def _fit_list(value: Any, kinds: tuple[Any, ...], field: str) -> list[Any]:
    """Return a list whose entries fit."""
    if not isinstance(value, list | tuple):
        raise _misfit(field, value, "a list")
    return [_fit(entry, kinds[0], f"{field}[{i}]") for i, entry in enumerate(value)]


def _fit_tuple(value: Any, kinds: tuple[Any, ...], field: str) -> tuple[Any, ...]:
    """Return a tuple whose entries fit, all one type, or each its own."""
    entries = _fit_list(value, (Any,), field)
    if kinds[-1] is Ellipsis:
        return tuple(_fit_list(value, kinds, field))
    if len(entries) != len(kinds):
        raise _misfit(field, value, f"a list of {len(kinds)} entries")
    pairs = zip(entries, kinds, strict=True)
    return tuple(_fit(entry, kind, f"{field}[{i}]") for i, (entry, kind) in enumerate(pairs))


def _fit_dict(value: Any, kinds: tuple[Any, ...], field: str) -> dict[Any, Any]:
    """Return a mapping whose keys and values fit."""
    if not isinstance(value, Mapping):
        raise _misfit(field, value, "an object with names")
    fitted = {}
    for key, entry in value.items():
        _fit(key, kinds[0], f"a name of {field or 'it'}")
        fitted[key] = _fit(entry, kinds[1], _below(field, key))
    return fitted


def _fit_fields(value: Any, kind: Any, field: str) -> Any:
    """Return a dataclass, or the mapping of a `TypedDict`, whose fields fit."""
    fitted = _fit_dict(value, (str, Any), field)
    hints, required = _fields(kind)
    missing = [name for name in required if name not in fitted]
    if missing:
        raise Misfit(f"{_below(field, missing[0])} is missing")
    is_open = typing.is_typeddict(kind)
    for name, entry in fitted.items():
        if name in hints:
            fitted[name] = _fit(entry, hints[name], _below(field, name))
        elif not is_open:
            raise Misfit(f"{_below(field, name)} is unknown, written by another version")
    return fitted if is_open else kind(**fitted)


@lru_cache
def _fields(kind: Any) -> tuple[dict[str, Any], list[str]]:
    """Return the type of each field of a schema, and the names of those without a default."""
    hints = typing.get_type_hints(kind, include_extras=True)
    if typing.is_typeddict(kind):
        return hints, sorted(kind.__required_keys__)
    unset = dataclasses.MISSING
    fields = dataclasses.fields(kind)
    required = [f.name for f in fields if f.default is unset and f.default_factory is unset]
    return hints, required


def field_types(kind: Any) -> dict[str, Any]:
    """Return the annotated type of every field of a schema, by name."""
    return _fields(kind)[0]


def _below(field: str, name: Any) -> str:
    """Return the path of a field inside another."""
    text = reprlib.repr(name)[1:-1] if isinstance(name, str) else reprlib.repr(name)
    return f"{field}.{text}" if field else text


def _misfit(field: str, value: Any, expected: str) -> Misfit:
    """Return the error of a value that is not what it must be."""
    shown = reprlib.repr(value)
    text = f"{field}={shown}" if field else f"it is {shown}, but"
    return Misfit(f"{text} must be {expected}".rstrip())


_CONTAINERS: dict[Any, Callable[[Any, tuple[Any, ...], str], Any]] = {
    list: _fit_list,
    tuple: _fit_tuple,
    dict: _fit_dict,
}
