"""`fetch` against a local server: what arrives is right and whole, or nothing arrives."""

import functools
import hashlib
import http.server
import shutil
import socket
import tarfile
import threading
from types import SimpleNamespace

import pytest
import tifffile
from made import write_visium

from seal_lite.data import download as fetching
from seal_lite.data.section import load_sections
from seal_lite.errors import InputError

CONTENT = {
    "data/ST-cnts/A1.tsv.gz": b"\x1f\x8b counts",
    "data/ST-cnts/B2.tsv.gz": b"\x1f\x8b other counts",
    "data/ST-imgs/A/A1/9769_C1_HE_small.jpg": b"\xff\xd8" + bytes(200_000),
    "data/ST-imgs/B/B2/BT_C2.jpg": b"\xff\xd8 small",
    "data/ST-pat/lbl/A1_labeled_coordinates.tsv": b"x\ty\tlabel\n",
    "data/ST-pat/lbl/README": b"labels\n",
    "data/ST-spotfiles/A1_selection.tsv": b"x\ty\n",
    "data/ST-spotfiles/B2_selection.tsv": b"x\ty\n",
}


@pytest.fixture
def upstream(tmp_path, monkeypatch):
    """A small upstream: (its folder, its url, the list of paths asked for so far)."""
    root = tmp_path / "upstream"
    rows = ["path\tgit_blob_sha1\tbytes"]
    for path, content in CONTENT.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
        blob = hashlib.sha1(f"blob {len(content)}".encode() + b"\0" + content).hexdigest()
        rows.append(f"{path}\t{blob}\t")
    manifest = tmp_path / "manifest.tsv"
    manifest.write_text("\n".join(rows) + "\n")
    monkeypatch.setattr(fetching, "MANIFEST", manifest)
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path.lstrip("/"))
            super().do_GET()

        def log_message(self, *args):
            pass

    handler = functools.partial(Handler, directory=root)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        yield root, f"http://127.0.0.1:{server.server_port}/", asked
        server.shutdown()
        thread.join()


def files(out):
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file()
    }


def fetch(out, url, **options):
    return fetching.fetch_her2st(out, base_url=url, progress=False, **options)


def test_everything_arrives_with_its_licence_line(upstream, tmp_path, capsys):
    _, url, asked = upstream
    assert fetch(tmp_path / "out", url) == tmp_path / "out"
    assert files(tmp_path / "out") == CONTENT
    assert sorted(asked) == sorted(CONTENT)
    assert "Andersson" in capsys.readouterr().out


def test_only_the_sections_asked_for(upstream, tmp_path):
    _, url, _ = upstream
    fetch(tmp_path / "out", url, sections=["A1"])
    assert set(files(tmp_path / "out")) == {path for path in CONTENT if "A1" in path}


def test_right_files_are_skipped_and_wrong_ones_mended(upstream, tmp_path):
    _, url, asked = upstream
    out = fetch(tmp_path / "out", url)
    wrong = out / "data/ST-cnts/A1.tsv.gz"
    wrong.write_bytes(b"half a fi")
    asked.clear()
    fetch(out, url)
    assert asked == ["data/ST-cnts/A1.tsv.gz"]
    assert files(out) == CONTENT


def test_a_corrupt_payload_is_refused_and_what_was_there_stays(upstream, tmp_path):
    root, url, _ = upstream
    path = "data/ST-spotfiles/A1_selection.tsv"
    (root / path).write_bytes(b"x\tz\n")  # the same size, another content
    with pytest.raises(InputError, match="A1_selection.tsv did not arrive as the manifest"):
        fetch(tmp_path / "out", url, sections=["A1"])
    assert path not in files(tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.part"))


def test_an_interruption_leaves_no_half_file_and_the_next_run_goes_on(
    upstream, tmp_path, monkeypatch
):
    _, url, asked = upstream
    image = "data/ST-imgs/A/A1/9769_C1_HE_small.jpg"
    real = fetching.pooch.HTTPDownloader.__call__

    def interrupted(self, url, output_file, pooch):
        real(self, url, output_file, pooch)
        if url.endswith(image):
            with open(output_file, "r+b") as file:
                file.truncate(1_000)
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fetching.pooch.HTTPDownloader, "__call__", interrupted)
        fetch(tmp_path / "out", url)
    kept = files(tmp_path / "out")
    assert kept and image not in kept
    assert all(CONTENT[path] == content for path, content in kept.items())
    asked.clear()
    fetch(tmp_path / "out", url)
    assert sorted(asked) == sorted(set(CONTENT) - set(kept))
    assert files(tmp_path / "out") == CONTENT


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
    assert files(tmp_path / "out") == {}


def test_an_unknown_section_lists_those_that_exist(upstream, tmp_path):
    _, url, asked = upstream
    with pytest.raises(InputError, match="no section C7, Z1; choose among A1, B2"):
        fetch(tmp_path / "out", url, sections=["Z1", "A1", "C7"])
    assert not asked and not (tmp_path / "out").exists()


def test_without_a_network_the_error_says_what_to_do(upstream, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]  # free again, and nobody listens, after this block
    with pytest.raises(InputError, match="check the network"):
        fetch(tmp_path / "out", f"http://127.0.0.1:{port}/")
    assert files(tmp_path / "out") == {}


def test_a_file_missing_upstream_is_named(upstream, tmp_path):
    root, url, _ = upstream
    shutil.rmtree(root / "data/ST-cnts")
    with pytest.raises(InputError, match="data/ST-cnts/A1.tsv.gz"):
        fetch(tmp_path / "out", url)


def test_out_may_not_be_a_file(upstream, tmp_path):
    _, url, _ = upstream
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match="out: cannot be written"):
        fetch(tmp_path / "out", url)


def test_the_shipped_manifest_names_all_sections_of_upstream():
    selected = fetching._select(None)
    counts = [path for path in selected if path.startswith("data/ST-cnts/")]
    assert len(counts) == 36
    for section in ("A1", "C6", "H3"):
        kinds = {path.split("/")[1] for path in fetching._select([section])} - {"ST-pat"}
        assert kinds == {"ST-cnts", "ST-imgs", "ST-spotfiles"}
    assert all(len(sha1) == 40 for sha1 in selected.values())


def test_visium_is_fetched_verified_and_read(upstream, tmp_path, monkeypatch, truth):
    """squidpy's own downloader, against a local server with files in Space Ranger's layout."""
    import squidpy.datasets._datasets as datasets
    from squidpy.datasets._downloader import DatasetDownloader
    from squidpy.datasets._registry import DatasetEntry, DatasetRegistry, DatasetType, FileEntry

    root, url, asked = upstream
    write_visium(root / "made", truth)
    with tarfile.open(root / "spatial.tar.gz", "w:gz") as tar:
        tar.add(root / "made/spatial", "spatial")
    shutil.move(root / "made/filtered_feature_bc_matrix.h5", root / "filtered_feature_bc_matrix.h5")
    tifffile.imwrite(root / "image.tif", truth.image, photometric="rgb")
    entries = [
        FileEntry(p.name, p.name, hashlib.sha256(p.read_bytes()).hexdigest())
        for p in map(
            root.joinpath, ("filtered_feature_bc_matrix.h5", "spatial.tar.gz", "image.tif")
        )
    ]
    registry = DatasetRegistry(url, {"S1": DatasetEntry("S1", DatasetType.VISIUM_10X, entries)})
    downloader = DatasetDownloader(registry, cache_dir=tmp_path / "cache")
    monkeypatch.setattr(datasets, "get_downloader", lambda: downloader)
    fetching.fetch_visium(tmp_path / "out", sections=["S1"])
    (section,) = load_sections(tmp_path / "out", patch_um=64.0, patch_px=16)
    assert section.name == "S1" and len(section.rows) == len(truth.xy)
    asked.clear()
    fetching.fetch_visium(tmp_path / "out", sections=["S1"])
    assert not asked  # what is there stays
    with pytest.raises(InputError, match="Z9: cannot be fetched"):
        fetching.fetch_visium(tmp_path / "out", sections=["Z9"])
    (root / "image.tif").write_bytes(b"another file")
    with pytest.raises(InputError, match="S1: cannot be fetched .*image.tif"):
        fetching.fetch_visium(tmp_path / "other", sections=["S1"])


class Hub:
    """As much of `HfApi` as is asked: a data set of files, one of them kept by git itself."""

    content = {
        "st/TENX1.h5ad": b"counts",
        "wsis/TENX1.tif": b"slide",
        "metadata/TENX1.json": b"{}",
        "patches/TENX1.h5": b"patches",
        "st/NCBI2.h5ad": b"others",
    }
    asked: list = []
    damaged = ""

    def dataset_info(self, repo, *, files_metadata):
        assert repo == "MahmoodLab/hest" and files_metadata
        return SimpleNamespace(
            siblings=[self.sibling(p, c) for p, c in self.content.items()],
            card_data={"license": "cc-by-nc-sa-4.0"},
        )

    @staticmethod
    def sibling(path, content):
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        lfs = SimpleNamespace(sha256=hashlib.sha256(content).hexdigest())
        return SimpleNamespace(rfilename=path, blob_id=blob, lfs=None if "json" in path else lfs)

    def hf_hub_download(self, repo, path, *, repo_type, local_dir, force_download):
        assert (repo, repo_type) == ("MahmoodLab/hest", "dataset")
        self.asked.append(path)
        file = local_dir / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists() or force_download:
            file.write_bytes(b"wrong" if path == self.damaged else self.content[path])


def test_hest_samples_are_fetched_and_verified(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr(Hub, "asked", [])
    fetching.fetch_hest(tmp_path, sections=["TENX1"])
    wanted = {"st/TENX1.h5ad", "wsis/TENX1.tif", "metadata/TENX1.json"}
    assert set(Hub.asked) == wanted and "licence cc-by-nc-sa-4.0" in capsys.readouterr().out
    (tmp_path / "wsis/TENX1.tif").write_bytes(b"damaged")
    Hub.asked.clear()
    fetching.fetch_hest(tmp_path, sections=["TENX1"])
    assert set(Hub.asked) == {"wsis/TENX1.tif"}  # the others are what the hub says
    assert (tmp_path / "wsis/TENX1.tif").read_bytes() == b"slide"
    for sections, said in ((None, "name some"), (["TENX7"], "no sample TENX7")):
        with pytest.raises(InputError, match=said):
            fetching.fetch_hest(tmp_path, sections=sections)
    monkeypatch.setattr(Hub, "damaged", "st/NCBI2.h5ad")
    with pytest.raises(InputError, match="NCBI2.h5ad: is not what the hub says"):
        Hub.content["metadata/NCBI2.json"] = b"{}"
        fetching.fetch_hest(tmp_path, sections=["NCBI2"])


def test_without_access_to_hest_the_error_says_what_to_do(tmp_path, monkeypatch):
    def closed(*_, **__):
        raise OSError("401")

    monkeypatch.setattr(Hub, "dataset_info", closed)
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    with pytest.raises(InputError, match="ask for access on its page, `hf auth login`"):
        fetching.fetch_hest(tmp_path, sections=["TENX1"])
