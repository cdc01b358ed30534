"""A value fits its schema, or one error names file, field, value and what is allowed."""

import json
import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypedDict

import numpy as np
import pytest

from seal_lite.errors import InputError
from seal_lite.schema import Names, Number, Sha256, Size, check, check_array, read, read_lines


class Inner(TypedDict):
    rate: Annotated[float, Number(above=0, at_most=1)]


class Extra(Inner, total=False):
    note: str | None


@dataclass(frozen=True)
class Outer:
    """A schema with one field of each kind."""

    name: str
    inner: Extra
    widths: Annotated[tuple[Annotated[int, Number(at_least=1)], ...], Size(1, 3)] = (1,)
    genes: Names | None = None
    kind: Literal["a", "b"] = "a"
    flag: bool = False
    pair: tuple[int, str] = (1, "x")
    cut: Annotated[float, Number(above=0, infinite=True)] = 5.0
    score: Annotated[float, Number(undefined=True)] = 0.0
    digest: Sha256 = "0" * 64
    rows: Any = None


GOOD = {"name": "x", "inner": {"rate": 0.5, "other": [1]}}


def test_what_fits_comes_back():
    fitted = check({**GOOD, "widths": [2, 3], "cut": None, "score": math.nan}, Outer, path="f")
    assert (fitted.widths, fitted.cut) == ((2, 3), math.inf)
    assert fitted.inner == GOOD["inner"]  # what a `TypedDict` does not name stays
    assert math.isnan(fitted.score)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 3}, "name=3 must be text"),
        ({"name": None}, "name=None must be text"),
        ({"inner": {}}, "inner.rate is missing"),
        ({"inner": []}, r"inner=\[\] must be an object with names"),
        ({"inner": {"rate": 0}}, "inner.rate=0 must be a number above 0 and at most 1"),
        ({"inner": {"rate": True}}, "inner.rate=True must be a number"),
        ({"inner": {"rate": math.nan}}, "inner.rate=nan must be"),
        ({"inner": {"rate": 10**400}}, "inner.rate=1000"),
        ({"inner": {"rate": 1, "note": 3}}, "inner.note=3 must be text"),
        ({"widths": []}, r"widths=\[\]|widths=\(\) must be a list of 1 to 3 entries, not 0"),
        ({"widths": [1, 2, 0]}, r"widths\[2\]=0 must be a whole number at least 1"),
        ({"widths": [1.0]}, r"widths\[0\]=1.0 must be a whole number"),
        ({"genes": ["a", "b", "a"]}, "without repetition: 'a' is there twice"),
        ({"genes": [""]}, r"genes\[0\]='' must be text of 1 to"),
        ({"kind": "c"}, "kind='c' must be one of a, b"),
        ({"kind": ["a"]}, r"kind=\['a'\] must be one of a, b"),
        ({"flag": 1}, "flag=1 must be true or false"),
        ({"pair": [1]}, r"pair=\[1\] must be a list of 2 entries"),
        ({"pair": [1, 2]}, r"pair\[1\]=2 must be text"),
        ({"cut": -math.inf}, "cut=-inf must be a number above 0"),
        ({"score": math.inf}, "score=inf must be a number that is finite"),
        ({"digest": "0" * 63}, "must be text that is 64 hex digits"),
        ({"digest": "0" * 64 + "\n"}, "must be text that is 64 hex digits"),
        ({"colour": 1}, "colour is unknown"),
        ({3: 1}, "a name of it=3 must be text"),
        ({"\x1b[2J": 1}, r"\\x1b\[2J is unknown"),
    ],
)
def test_what_does_not_fit_is_named_with_its_path(change, message):
    with pytest.raises(InputError, match=f"^file: .*({message})") as error:
        check({**GOOD, **change}, Outer, path="file")
    assert len(str(error.value)) < 300
    assert "\x1b" not in str(error.value)


def test_a_missing_field_is_named():
    with pytest.raises(InputError, match="file: name is missing; correct it"):
        check({"inner": {"rate": 1}}, Outer, path="file")


@pytest.mark.parametrize("text", ["", "{", "[" * 10**5, '{"rate": 1, "rate": 1}', "1" * 5000])
def test_what_is_no_json_is_an_error_of_the_file(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(InputError, match="x.json: cannot be read"):
        read(path, Inner)


def test_lines_are_checked_one_by_one(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"rate": 1}\n{"rate": 2}\n')
    with pytest.raises(InputError, match=r"x.jsonl: line\[1\].rate=2 must be"):
        read_lines(path, Inner)
    path.write_text(json.dumps({"rate": 1}))
    assert read_lines(path, Inner) == [{"rate": 1}]


@pytest.mark.parametrize(
    "array", [None, 3.0, np.zeros(3), np.zeros((2, 4)), np.zeros((2, 3), "S1")]
)
def test_an_array_of_another_shape_or_type_is_refused(array):
    with pytest.raises(InputError, match=r"f.h5: x is .*, must be of shape \(any, 3\); fetch"):
        check_array("f.h5", "x", array, shape=(None, 3))
    check_array("f.h5", "x", np.zeros((9, 3), np.float16), shape=(None, 3))
