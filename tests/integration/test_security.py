"""Nothing that a user brings is run: no pickle, no shell, no archive; and no token is told."""

import ast
from pathlib import Path

import pytest

from seal_lite import InputError, hub
from seal_lite.errors import reading

ROOT = Path(__file__).parents[1]
NEVER = {  # modules and functions that run what they read, or write where it says
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
    "jsonpickle",
    "tarfile",
    "zipfile",
    "shutil.unpack_archive",
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "pd.read_pickle",
    "pandas.read_pickle",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "torch.hub.load",
    "tempfile.mktemp",
    "requests",
    "urllib.request",
}
NEEDS = {"torch.load": ("weights_only", True)}  # a call that must say this
NOT = {
    "allow_pickle": True,
    "trust_remote_code": True,
    "shell": True,
    "verify": False,
    "strict": False,
}  # what no call may say; zip's strict is the exception


def dangers(source: str) -> list[str]:
    """What a module imports or calls that it should not."""
    said = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names]
            names += [getattr(node, "module", None) or ""]
            said += [n for n in names if n in NEVER or n.partition(".")[0] in NEVER]
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            says = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
            if name in NEVER:
                said.append(name)
            key, value = NEEDS.get(name, (None, None))
            if key and says.get(key) is not value:
                said.append(f"{name} without {key}={value}")
            said += [
                f"{name}({k}={v})"
                for k, v in NOT.items()
                if k in says and says[k] in (v, None) and name != "zip"
            ]
        if isinstance(node, ast.Constant) and str(node.value).startswith("http://"):
            said.append(f"{node.value} is not encrypted")
    return said


MODULES = [*ROOT.glob("seal_lite/*.py"), *ROOT.glob("book/tissue_phantom/*.py")]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_no_dangerous_call_is_in_the_package(path):
    assert dangers(path.read_text()) == []


def test_the_search_has_something_to_judge():
    text = "".join(path.read_text() for path in MODULES)
    assert text.count("torch.load(") + text.count("load_state_dict(") > 3


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from tarfile import open",
        "import urllib.request",
        "eval(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "yaml.load(text)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(text, shell=True)",
        "net.load_state_dict(state, strict=False)",
        "net.load_state_dict(state, strict=loose)",
        "f(trust_remote_code=True)",
        "url = 'http://example.org'",
    ],
)
def test_the_search_finds_them(source):
    assert dangers(source) and not dangers(
        "torch.load(path, weights_only=True); zip(a, strict=False)"
    )


TOKEN = "hf_" + "Sx9" * 12


def test_no_token_is_told_or_kept(trained, monkeypatch, tmp_path):
    """A hub that quotes the token in its complaint, as a proxy may."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)

    def refuse(*_, **__):
        raise RuntimeError(f"401 for https://user:{TOKEN}@huggingface.co, Bearer {TOKEN}")

    monkeypatch.setattr(share.HfApi, "create_repo", refuse)
    with pytest.raises(InputError, match="cannot be written") as said:
        hub.push_to_hub(trained[0], "me/run", token=TOKEN)
    assert "401" in str(said.value) and TOKEN not in str(said.value)
    kept = [p for p in trained[0].rglob("*") if p.is_file() and TOKEN.encode() in p.read_bytes()]
    assert kept == []


def test_a_reason_is_one_line_of_bounded_length():
    with pytest.raises(InputError) as said, reading("file"):
        raise ValueError("a\nb" * 1000)
    assert "\n" not in str(said.value) and len(str(said.value)) < 300
