"""Nothing that a user brings is executed: no pickle, shell or archive. No token is printed."""

import ast
from pathlib import Path

import pytest

from seal_lite import InputError
from seal_lite.errors import reading

PACKAGE = Path(__file__).parents[2] / "seal_lite"
MODULES = sorted(PACKAGE.rglob("*.py"))
FORBIDDEN = {  # modules and functions that execute what they read, or write where it says
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
FORBIDDEN_ARGUMENTS = {  # of every call but zip(..., strict=False)
    "allow_pickle": True,
    "trust_remote_code": True,
    "shell": True,
    "verify": False,
    "strict": False,
}


def dangers_of_import(node: ast.Import | ast.ImportFrom) -> list[str]:
    names = [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        names.append(node.module)
    return [name for name in names if {name, name.partition(".")[0]} & FORBIDDEN]


def dangers_of_call(node: ast.Call) -> list[str]:
    name = ast.unparse(node.func)
    arguments = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
    dangers = [name] if name in FORBIDDEN else []
    if name == "torch.load" and arguments.get("weights_only") is not True:
        dangers.append("torch.load without weights_only=True")
    if name != "zip":
        for key, forbidden in FORBIDDEN_ARGUMENTS.items():
            if key in arguments and arguments[key] in (forbidden, None):  # None: a variable
                dangers.append(f"{name}({key}={forbidden})")
    return dangers


def is_temporary(node: ast.Call) -> bool:
    """Whether a call makes something in the system's temporary folder, where a kill leaves it."""
    name = ast.unparse(node.func).rpartition(".")[2]
    makes = name in ("TemporaryDirectory", "NamedTemporaryFile", "mkdtemp", "mkstemp")
    return makes and "dir" not in {keyword.arg for keyword in node.keywords}


def find_dangers(source: str) -> list[str]:
    """What a module imports or calls that it should not."""
    dangers = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            dangers += dangers_of_import(node)
        elif isinstance(node, ast.Call):
            dangers += dangers_of_call(node)
            if is_temporary(node):
                dangers.append(f"{ast.unparse(node)} without dir")
        elif isinstance(node, ast.Constant) and str(node.value).startswith("http://"):
            dangers.append(f"{node.value} is not encrypted")
    return dangers


def test_no_dangerous_call_is_in_the_package():
    dangers = {str(path): find_dangers(path.read_text()) for path in MODULES}
    assert {path: calls for path, calls in dangers.items() if calls} == {}


def test_the_package_has_calls_to_judge():
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
        "tempfile.TemporaryDirectory()",
        "mkdtemp(prefix='x')",
        "url = 'http://example.org'",
    ],
)
def test_a_dangerous_call_is_found(source):
    assert find_dangers(source)


def test_a_harmless_call_is_not_a_danger():
    assert find_dangers("torch.load(path, weights_only=True); zip(a, b, strict=False)") == []


TOKEN = "hf_" + "Sx9" * 12


def test_no_token_is_printed_or_kept(trained, monkeypatch):
    """A hub that quotes the token in its complaint, as a proxy may."""
    from seal_lite import hub

    monkeypatch.setenv("HF_TOKEN", TOKEN)

    def refuse(*_, **__):
        raise RuntimeError(f"401 for https://user:{TOKEN}@huggingface.co, Bearer {TOKEN}")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", refuse)
    run = trained[0]
    with pytest.raises(InputError, match="cannot be written.*401") as raised:
        hub.push_to_hub(run, "me/run", token=TOKEN)
    assert TOKEN not in str(raised.value)
    files = [path for path in run.rglob("*") if path.is_file()]
    assert [path for path in files if TOKEN.encode() in path.read_bytes()] == []


def test_a_reason_is_one_line_of_bounded_length():
    with pytest.raises(InputError) as raised, reading("file"):
        raise ValueError("a\nb" * 1000)
    message = str(raised.value)
    assert "\n" not in message
    assert len(message) < 300
