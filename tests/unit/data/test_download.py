"""Downloads against a local server: what arrives is right and whole, or nothing arrives."""

import functools
import hashlib
import http.server
import re
import shlex
import shutil
import socket
import tarfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from seal_lite.data import download
from seal_lite.errors import InputError

IMAGE = "data/ST-imgs/A/A1/9769_C1_HE_small.jpg"
CONTENT = {
    "data/ST-cnts/A1.tsv.gz": b"\x1f\x8b counts",
    "data/ST-cnts/B2.tsv.gz": b"\x1f\x8b other counts",
    IMAGE: b"\xff\xd8" + bytes(200_000),
    "data/ST-imgs/B/B2/BT_C2.jpg": b"\xff\xd8 small",
    "data/ST-pat/lbl/A1_labeled_coordinates.tsv": b"x\ty\tlabel\n",
    "data/ST-pat/lbl/README": b"labels\n",
    "data/ST-spotfiles/A1_selection.tsv": b"x\ty\n",
    "data/ST-spotfiles/B2_selection.tsv": b"x\ty\n",
}


@dataclass
class Upstream:
    """A local server with a small her2st: its folder, its address, and the requested paths."""

    root: Path
    url: str = ""
    requests: list[str] = field(default_factory=list)


def git_blob(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.fixture
def upstream(tmp_path, monkeypatch):
    upstream = Upstream(tmp_path / "upstream")
    rows = ["path\tgit_blob_sha1\tbytes"]
    for path, content in CONTENT.items():
        (upstream.root / path).parent.mkdir(parents=True, exist_ok=True)
        (upstream.root / path).write_bytes(content)
        rows.append(f"{path}\t{git_blob(content)}\t")
    manifest = tmp_path / "manifest.tsv"
    manifest.write_text("\n".join(rows) + "\n")
    monkeypatch.setattr(download, "MANIFEST", manifest)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            upstream.requests.append(self.path.lstrip("/"))
            super().do_GET()

        def log_message(self, *args):
            pass

    handler = functools.partial(Handler, directory=upstream.root)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        upstream.url = f"http://127.0.0.1:{server.server_port}/"
        yield upstream
        server.shutdown()
        thread.join()


def files_under(out):
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file()
    }


def fetch(out, url, **options):
    return download.fetch_her2st(out, base_url=url, progress=False, **options)


def test_everything_arrives_with_its_licence_line(upstream, tmp_path, capsys):
    assert fetch(tmp_path / "out", upstream.url) == tmp_path / "out"
    assert files_under(tmp_path / "out") == CONTENT
    assert sorted(upstream.requests) == sorted(CONTENT)
    assert "Andersson" in capsys.readouterr().out


def recipe(target):
    """The commands of a target of the Makefile, as arguments of seal-lite."""
    makefile = (Path(__file__).parents[3] / "Makefile").read_text()
    lines = makefile.partition(f"\n{target}:")[2].partition("\n\n")[0].splitlines()[1:]
    return [shlex.split(line.replace("$(REPO)", "me/x"))[1:] for line in lines]


def test_a_run_to_share_is_made_from_public_data_by_one_command(
    upstream, phantom_root, cli, tmp_path, monkeypatch
):
    """`make to-share`, with a phantom as her2st, a small network's settings, and no network."""
    shutil.rmtree(upstream.root)
    shutil.copytree(phantom_root / "data", upstream.root / "data")
    rows = [f"{path}\t{git_blob(content)}" for path, content in files_under(upstream.root).items()]
    download.MANIFEST.write_text("\n".join(["path\tgit_blob_sha1", *rows]) + "\n")
    monkeypatch.setitem(download.fetch_her2st.__kwdefaults__, "base_url", upstream.url)
    monkeypatch.setattr("seal_lite.hub.HfApi", lambda **_: pytest.fail("the hub was asked"))
    monkeypatch.chdir(tmp_path)
    small = "--set patch_px=64 --set n_views=1 --set n_genes=30 --set batch_size=16 --set epochs=1"
    commands = recipe("to-share")
    assert [command[0] for command in commands] == ["fetch", "finetune", "share"]
    for command in commands:
        arguments = " ".join(command).replace("C2,C3,C4,C5", "PA1,PB1").split()
        settings = small.split() if command[0] == "finetune" else []
        code, output, errors = cli(*arguments, *settings)
        assert code == 0, errors
    run = tmp_path / "runs/to-share"
    assert "PA1, PB1" in (run / "README.md").read_text()
    assert re.search(r"not uploaded: \d+ files, \d+\.\d MB, would go to me/x\n$", output)
    assert str(Path("runs/to-share/heads.safetensors")) in output.splitlines()


def test_only_the_named_sections_are_fetched(upstream, tmp_path):
    fetch(tmp_path / "out", upstream.url, names=["A1"])
    assert set(files_under(tmp_path / "out")) == {path for path in CONTENT if "A1" in path}


def test_right_files_are_skipped_and_wrong_ones_mended(upstream, tmp_path):
    out = fetch(tmp_path / "out", upstream.url)
    wrong = "data/ST-cnts/A1.tsv.gz"
    (out / wrong).write_bytes(b"half a fi")
    upstream.requests.clear()
    fetch(out, upstream.url)
    assert upstream.requests == [wrong]
    assert files_under(out) == CONTENT


def test_a_corrupt_payload_is_an_error_and_never_gets_its_name(upstream, tmp_path):
    path = "data/ST-spotfiles/A1_selection.tsv"
    (upstream.root / path).write_bytes(b"x\tz\n")  # the same size, another content
    with pytest.raises(InputError, match="A1_selection.tsv did not arrive as the manifest"):
        fetch(tmp_path / "out", upstream.url, names=["A1"])
    assert path not in files_under(tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.part"))


def test_an_interruption_leaves_no_half_file_and_the_next_run_resumes(
    upstream, tmp_path, monkeypatch
):
    download_whole = download.pooch.HTTPDownloader.__call__

    def interrupted(self, url, output_file, pooch):
        download_whole(self, url, output_file, pooch)
        if url.endswith(IMAGE):
            with open(output_file, "r+b") as file:
                file.truncate(1_000)
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(download.pooch.HTTPDownloader, "__call__", interrupted)
        fetch(out, upstream.url)
    kept = files_under(out)
    assert kept
    assert IMAGE not in kept
    assert all(CONTENT[path] == content for path, content in kept.items())
    upstream.requests.clear()
    fetch(out, upstream.url)
    assert sorted(upstream.requests) == sorted(set(CONTENT) - set(kept))
    assert files_under(out) == CONTENT


def test_a_connection_cut_in_the_middle_is_an_error_not_a_short_file(tmp_path, upstream):
    """A server that promises 1,000 bytes, sends 10 and hangs up."""

    def serve(listener):
        connection, _ = listener.accept()
        with connection:
            connection.recv(65_536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + bytes(10))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=[listener])
        thread.start()
        with pytest.raises(InputError):
            fetch(tmp_path / "out", f"http://127.0.0.1:{listener.getsockname()[1]}/")
        thread.join()
    assert files_under(tmp_path / "out") == {}


def test_an_unknown_section_lists_those_that_exist(upstream, tmp_path):
    with pytest.raises(InputError, match="no section C7, Z1; choose among A1, B2"):
        fetch(tmp_path / "out", upstream.url, names=["Z1", "A1", "C7"])
    assert not upstream.requests
    assert not (tmp_path / "out").exists()


def test_without_a_network_the_error_names_the_remedy(upstream, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]  # free again, and nobody listens, after this block
    with pytest.raises(InputError, match="check the network"):
        fetch(tmp_path / "out", f"http://127.0.0.1:{port}/")
    assert files_under(tmp_path / "out") == {}


def test_a_file_missing_upstream_is_named(upstream, tmp_path):
    shutil.rmtree(upstream.root / "data/ST-cnts")
    with pytest.raises(InputError, match="data/ST-cnts/A1.tsv.gz"):
        fetch(tmp_path / "out", upstream.url)


def test_out_may_not_be_a_file(upstream, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match="out: cannot be written"):
        fetch(tmp_path / "out", upstream.url)


def test_the_shipped_manifest_lists_all_sections_of_upstream():
    files = download.list_her2st_files()
    assert len([path for path in files if path.startswith("data/ST-cnts/")]) == 36
    assert all(len(sha1) == 40 for sha1 in files.values())
    for section in ("A1", "C6", "H3"):
        kinds = {path.split("/")[1] for path in download.list_her2st_files([section])}
        assert kinds - {"ST-pat"} == {"ST-cnts", "ST-imgs", "ST-spotfiles"}


def write_visium_downloads(root, truth):
    """Write the files that 10x offers of one section, and return them."""
    import tifffile
    from made import write_visium

    write_visium(root / "made", truth)
    counts = root / "filtered_feature_bc_matrix.h5"
    shutil.move(root / "made" / counts.name, counts)
    archive = root / "spatial.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(root / "made/spatial", "spatial")
    image = root / "image.tif"
    tifffile.imwrite(image, truth.image, photometric="rgb")
    return counts, archive, image


def test_visium_is_fetched_verified_and_read(upstream, tmp_path, monkeypatch, truth):
    """squidpy's own downloader, against a local server with files in Space Ranger's layout."""
    import squidpy.datasets._datasets as datasets
    from squidpy.datasets._downloader import DatasetDownloader
    from squidpy.datasets._registry import DatasetEntry, DatasetRegistry, DatasetType, FileEntry

    from seal_lite.data.section import load_sections

    *_, image = paths = write_visium_downloads(upstream.root, truth)
    entries = [
        FileEntry(path.name, path.name, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in paths
    ]
    entry = DatasetEntry("S1", DatasetType.VISIUM_10X, entries)
    registry = DatasetRegistry(upstream.url, {"S1": entry})
    downloader = DatasetDownloader(registry, cache_dir=tmp_path / "cache")
    monkeypatch.setattr(datasets, "get_downloader", lambda: downloader)

    out = tmp_path / "out"
    assert download.fetch_visium(out, names=["S1"]) == out
    (section,) = load_sections(out, patch_um=64.0, patch_px=16)
    assert section.name == "S1"
    assert len(section.rows) == len(truth.xy)

    upstream.requests.clear()
    download.fetch_visium(out, names=["S1"])
    assert not upstream.requests  # what is there stays
    with pytest.raises(InputError, match="Z9: cannot be fetched"):
        download.fetch_visium(out, names=["Z9"])
    image.write_bytes(b"another file")
    with pytest.raises(InputError, match="S1: cannot be fetched .*image.tif"):
        download.fetch_visium(tmp_path / "other", names=["S1"])


class Hub:
    """As much of `HfApi` as is used: a data set of files, one of them kept by git itself."""

    def __init__(self):
        self.content = {
            "st/TENX1.h5ad": b"counts",
            "wsis/TENX1.tif": b"slide",
            "metadata/TENX1.json": b"{}",
            "patches/TENX1.h5": b"patches",
            "st/NCBI2.h5ad": b"others",
            "metadata/NCBI2.json": b"{}",
        }
        self.requests = []
        self.damaged = ""

    def dataset_info(self, repo, *, files_metadata):
        assert repo == "MahmoodLab/hest"
        assert files_metadata
        siblings = [self.sibling(path, content) for path, content in self.content.items()]
        return SimpleNamespace(siblings=siblings, card_data={"license": "cc-by-nc-sa-4.0"})

    def sibling(self, path, content):
        lfs = None
        if not path.endswith(".json"):
            lfs = SimpleNamespace(sha256=hashlib.sha256(content).hexdigest())
        return SimpleNamespace(rfilename=path, blob_id=git_blob(content), lfs=lfs)

    def hf_hub_download(self, repo, path, *, repo_type, local_dir, force_download):
        assert (repo, repo_type) == ("MahmoodLab/hest", "dataset")
        self.requests.append(path)
        file = local_dir / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists() or force_download:
            file.write_bytes(b"wrong" if path == self.damaged else self.content[path])


@pytest.fixture
def hub(monkeypatch):
    hub = Hub()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    return hub


def test_hest_samples_are_fetched_with_their_licence_line(hub, tmp_path, capsys):
    assert download.fetch_hest(tmp_path, names=["TENX1"]) == tmp_path
    expected = {"st/TENX1.h5ad", "wsis/TENX1.tif", "metadata/TENX1.json"}
    assert set(hub.requests) == expected
    assert files_under(tmp_path) == {path: hub.content[path] for path in expected}
    assert "licence cc-by-nc-sa-4.0" in capsys.readouterr().out


def test_a_damaged_hest_file_is_fetched_again(hub, tmp_path):
    download.fetch_hest(tmp_path, names=["TENX1"])
    (tmp_path / "wsis/TENX1.tif").write_bytes(b"damaged")
    hub.requests.clear()
    download.fetch_hest(tmp_path, names=["TENX1"])
    assert set(hub.requests) == {"wsis/TENX1.tif"}  # the others are what the hub lists
    assert (tmp_path / "wsis/TENX1.tif").read_bytes() == b"slide"


def test_a_hest_file_that_stays_wrong_is_an_error(hub, tmp_path):
    hub.damaged = "st/NCBI2.h5ad"
    with pytest.raises(InputError, match="NCBI2.h5ad: is not what the hub lists"):
        download.fetch_hest(tmp_path, names=["NCBI2"])


@pytest.mark.parametrize(
    "names, message", [(None, "name some"), (iter(()), "name some"), (["TENX7"], "no sample TENX7")]
)
def test_hest_needs_ids_that_exist(hub, tmp_path, names, message):
    with pytest.raises(InputError, match=message):
        download.fetch_hest(tmp_path, names=names)
    assert not hub.requests


def test_without_access_to_hest_the_error_names_the_remedy(hub, tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise OSError("401")

    monkeypatch.setattr(hub, "dataset_info", refuse)
    with pytest.raises(InputError, match="ask for access on its page, `hf auth login`"):
        download.fetch_hest(tmp_path, names=["TENX1"])
