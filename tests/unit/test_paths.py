"""Names from data become file names, and paths from data stay in their folder."""

import os
import socket
from itertools import combinations

import pytest

from seal_lite.errors import InputError, reading, refuse_special
from seal_lite.paths import LONGEST_NAME, check_store, file_name, file_names, inside

ORDINARY = [
    "A1",
    "TCGA-A1-A0SB-01Z-00-DX1.B34C267B-CAAA-4AB6-AD5C-276C26F997A1",
    "Visium FFPE (human) 50%",
    "P1+P2-0",
    "Müller",
    "患者一",
    "a.b_c~d",
    "~a",
]
HOSTILE = [
    "../../../ESC/x",
    "..",
    ".",
    "",
    " ",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "..\\a",
    "C:\\a",
    "C:a",
    ".hidden",
    "a.",
    "a ",
    " a",
    "a\0b",
    "a\nb",
    "\x1b[31ma",
    "a\u202eb",
    "a\u200bb",
    "\udcff",
    "CON",
    "con.txt",
    "Nul",
    "COM1",
    "lpt¹",
    "a*b",
    'a"b',
    "x" * 201,
    "患" * 100,
    "e\u0301",
    "a_b~" + "0" * 32,
]


@pytest.mark.parametrize("name", ORDINARY)
def test_an_ordinary_name_stays(name):
    assert file_name(name) == name


@pytest.mark.parametrize("name", HOSTILE)
def test_any_other_name_becomes_one_plain_file_in_the_folder(name, tmp_path):
    changed = file_name(name)
    assert changed != name
    assert changed.isprintable()
    assert len(changed.encode()) <= LONGEST_NAME
    assert not changed.startswith(".")
    assert changed.partition(".")[0].lower() not in ("con", "nul", "com1", "lpt¹")
    (tmp_path / f".{changed}.h5.part").write_text("")  # as a temporary file's name is
    assert len(list(tmp_path.iterdir())) == 1


def test_names_that_differ_in_case_alone_give_files_that_differ_in_more():
    texts = ["P1-0", "p1-0", "P2-0", "Straße", "STRASSE", "a/b", "A/b", "x" * 199 + "y", "X" * 200]
    names = file_names(texts)
    assert len({name.casefold() for name in names}) == len(texts)
    assert names[2] == "P2-0"
    assert names[5:7] == [file_name("a/b"), file_name("A/b")]
    assert file_names(texts[::-1]) == names[::-1]
    assert max(len(name.encode()) for name in names) <= LONGEST_NAME


def test_no_two_names_give_one_file():
    names = [*ORDINARY, *HOSTILE, "a_b", "a:b", "a?b", "é", *(file_name(name) for name in HOSTILE)]
    files = {name: file_name(name) for name in names}
    twins = [(a, b) for a, b in combinations(files, 2) if files[a] == files[b]]
    assert twins == []


@pytest.mark.parametrize(
    ("text", "relative"),
    [("image.tif", "image.tif"), ("a/b.tif", "a/b.tif"), ("a/../b.tif", "b.tif"), ("./b", "b")],
)
def test_a_path_inside_is_read(tmp_path, text, relative):
    assert inside(tmp_path, text, table="t.tsv") == tmp_path / relative


def test_an_absolute_path_inside_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = inside("data", str(tmp_path / "data/b.tif"), table="t.tsv")
    assert path.absolute() == tmp_path / "data/b.tif"


@pytest.mark.parametrize(
    "text", ["..", "../b.tif", "a/../../b.tif", "/etc/passwd", "//etc/passwd", "a\0b", "../data2/b"]
)
def test_a_path_outside_is_refused(tmp_path, text):
    folder = tmp_path / "data"
    with pytest.raises(InputError, match=r"t\.tsv: names .*, which is outside of .*data"):
        inside(folder, text, table="t.tsv")


def test_a_link_that_the_folder_holds_is_followed(tmp_path):
    """The remedy of the error message, and what the hub's cache consists of."""
    (tmp_path / "elsewhere").write_text("pixels")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/image.tif").symlink_to(tmp_path / "elsewhere")
    assert inside(tmp_path / "data", "image.tif", table="t.tsv").read_text() == "pixels"


def make_pipe(path):
    os.mkfifo(path)


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def make_link_to_device(path):
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [make_pipe, make_socket, make_link_to_device])
def test_what_is_no_file_is_refused_before_it_is_opened(tmp_path, monkeypatch, make):
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    path = tmp_path.cwd().relative_to(tmp_path) / "x"
    make(path)
    with pytest.raises(InputError, match="x: is a pipe, a socket or a device"):
        refuse_special(path)
    with pytest.raises(InputError, match="x: is a pipe"), reading(path):
        pytest.fail("was begun to be read")


@pytest.mark.parametrize("name", ["absent", "a\0b", "OWNER/NAME"])
def test_a_name_of_no_file_is_not_refused(name):
    refuse_special(name)


def test_a_store_of_plain_files_and_inner_links_is_read(tmp_path):
    store = tmp_path / "s.zarr"
    (store / "a").mkdir(parents=True)
    (store / "a/0").write_text("")
    (store / "b").symlink_to("a")
    check_store(store)
    (tmp_path / "link.zarr").symlink_to(store)
    check_store(tmp_path / "link.zarr")


@pytest.mark.parametrize("part", ["a", "a/0"])
def test_a_store_that_links_to_the_outside_is_refused(tmp_path, part):
    (tmp_path / "outside").mkdir()
    link = tmp_path / "s.zarr" / part
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "outside")
    with pytest.raises(InputError, match=rf"{part}: is a link that leads out of its store"):
        check_store(tmp_path / "s.zarr")


@pytest.mark.parametrize(
    "links",
    [
        {"a/self": "a"},
        {"a/self": "."},
        {"a/b": "b", "b/a": "a"},
        {"a/1": "b", "a/2": "b", "b/1": "c", "b/2": "c"},
    ],
)
def test_a_store_whose_links_multiply_is_refused(tmp_path, links):
    for name in "abc":
        (tmp_path / name).mkdir()
    for part, target in links.items():
        (tmp_path / part).symlink_to(tmp_path / target)
    with pytest.raises(InputError, match="is a link in a folder that a link leads to; put"):
        check_store(tmp_path)


def test_a_store_with_a_pipe_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    os.mkfifo(tmp_path / "a/0")
    with pytest.raises(InputError, match="a/0: is a pipe"):
        check_store(tmp_path)
