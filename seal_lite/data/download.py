"""Download public data; each file is verified against a hash that was known beforehand.

her2st: HER2-positive breast tumours, spatial transcriptomics with H&E. Source: Andersson et al.,
Nature Communications 12, 6012 (2021); the GitHub repository almaan/her2st at the commit below. The
manifest beside this file lists every upstream file with its git blob SHA-1, so what arrives is byte
for byte what that commit holds. visium: 10x Genomics' example sections, by squidpy, which pins
their SHA-256. hest: samples of HEST-1k by their id, against the hashes that the hub keeps.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import pandas as pd
import pooch
from tqdm import tqdm

from seal_lite.errors import InputError, reading
from seal_lite.io import atomic_file, sha256
from seal_lite.locks import exclusive_folder
from seal_lite.terminal import printable

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoSibling

HER2ST_COMMIT = "85df7411b987a7dec3feff9718b869a7a82091ec"
HER2ST_URL = f"https://raw.githubusercontent.com/almaan/her2st/{HER2ST_COMMIT}/"
HER2ST_CITATION = (
    "her2st: please cite Andersson et al., Nature Communications 12, 6012 (2021); "
    "its licence stands in the Zenodo record, doi:10.5281/zenodo.3957257."
)
MANIFEST = Path(__file__).with_name("her2st_manifest.tsv")
VISIUM_DEFAULT = "V1_Breast_Cancer_Block_A_Section_1"
HEST_REPOSITORY = "MahmoodLab/hest"
HEST_FOLDERS = ("st", "wsis", "metadata")
REPEAT = "run the same command again, what has arrived is kept"


def fetch_her2st(
    out: str | Path,
    *,
    names: Iterable[str] | None = None,
    progress: bool = True,
    base_url: str = HER2ST_URL,
) -> Path:
    """Download her2st with upstream's paths (``out/data/ST-imgs/...``).

    The download may be interrupted and repeated. Files that are already right are skipped, wrong
    ones are fetched again, and a file gets its name only once it is whole and verified.

    Parameters
    ----------
    out
        Folder to download into.
    names
        Names of sections such as ``["C2", "C3"]``; None for all of them and every label table.
    progress
        Show a progress bar.
    base_url
        Upstream's root, or that of a mirror, with its final slash.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    InputError
        Where a section does not exist, a file cannot be downloaded or written, or is not what the
        manifest lists.
    """
    out = Path(out)
    sha1_of = list_her2st_files(names)
    print(HER2ST_CITATION)
    with exclusive_folder(out):
        for path, sha1 in tqdm(sha1_of.items(), unit="file", disable=not progress):
            is_right = (out / path).is_file() and git_blob_sha1(out / path) == sha1
            if not is_right:
                _download(base_url + path, out / path, sha1)
    return out


def fetch_visium(out: str | Path, *, names: Iterable[str] | None = None) -> Path:
    """Download 10x Genomics' example sections with their full images; resumes.

    Source: 10xgenomics.com/datasets, CC BY 4.0.

    Parameters
    ----------
    out
        Folder to download into; each section gets a folder of its name.
    names
        Names of sections in squidpy's registry; by default one human breast cancer.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    InputError
        Where a name is unknown, or a file cannot be downloaded.
    """
    import squidpy as sq

    out = Path(out)
    print("10x Genomics' example data, CC BY 4.0; 10xgenomics.com/datasets")
    for name in names or [VISIUM_DEFAULT]:
        with reading(name, fault="cannot be fetched", remedy=REPEAT):
            sq.datasets.visium(name, include_hires_tiff=True, base_dir=out)
        has_image = any((out / name).glob("image.*"))
        if not has_image:
            raise InputError(f"{name}: its full image cannot be fetched; {REPEAT}")
    return out


def fetch_hest(out: str | Path, *, names: Iterable[str] | None = None) -> Path:
    """Download samples of HEST-1k (Jaume et al., 2024): counts, slide, metadata; resumes.

    The data set is gated: ask for access on its page, then run ``hf auth login``.

    Parameters
    ----------
    out
        Folder to download into: ``out/st``, ``out/wsis`` and ``out/metadata``, as on the hub.
    names
        Ids of samples; at least one.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    InputError
        Without ids, for an unknown id, without access, and where a file is not what the hub lists.
    """
    from huggingface_hub import HfApi

    ids = set(names or ())
    if not ids:
        raise InputError("fetch hest: holds over a thousand samples; name some, --sections TENX95")
    out = Path(out)
    hub = HfApi()
    remedy = f"ask for access on its page, `hf auth login`, go online; {REPEAT}"
    with reading(HEST_REPOSITORY, fault="cannot be fetched", remedy=remedy):
        listing = _list_hest_files(hub, ids)
        with exclusive_folder(out):
            for path, listed in listing.items():
                _download_listed(hub, path, listed, out)
        for path, listed in listing.items():
            if not _matches_listing(out / path, listed):
                raise InputError(f"{out / path}: is not what the hub lists; {REPEAT}")
    return out


def _list_hest_files(hub: HfApi, ids: set[str]) -> dict[Path, RepoSibling]:
    """Return path and listing of the files of HEST samples; `InputError` for an unknown id."""
    info = hub.dataset_info(HEST_REPOSITORY, files_metadata=True)
    licence = info.card_data.get("license") if info.card_data else None
    print(printable(f"{HEST_REPOSITORY}: licence {licence or 'on its page'}"))
    files = {Path(listed.rfilename): listed for listed in info.siblings or []}
    selected = {
        path: listed
        for path, listed in files.items()
        if path.stem in ids and str(path.parent) in HEST_FOLDERS
    }
    unknown = sorted(ids - {path.stem for path in selected})
    if unknown:
        raise InputError(
            f"{HEST_REPOSITORY}: has no sample {unknown[0]}; its metadata list the ids"
        )
    return selected


def _download_listed(hub: HfApi, path: Path, listed: RepoSibling, out: Path) -> None:
    """Download a file of HEST into `out`, where it is absent or not what the hub lists."""
    # The hub's client keeps a file that is there; a wrong one is fetched again by force.
    for force in (False, True):
        if not _matches_listing(out / path, listed):
            hub.hf_hub_download(
                HEST_REPOSITORY,
                str(path),
                repo_type="dataset",
                local_dir=out,
                force_download=force,
            )


def _matches_listing(path: Path, listed: RepoSibling) -> bool:
    """Return whether the file is there and has the hash that the hub lists."""
    if not path.is_file():
        return False
    if listed.lfs is None:
        return git_blob_sha1(path) == listed.blob_id
    return sha256(path) == listed.lfs.sha256


def git_blob_sha1(path: Path) -> str:
    r"""Return git's SHA-1 of a file: that of ``blob <size>\0`` and the content."""
    content = path.read_bytes()
    header = b"blob %d\0" % len(content)
    return hashlib.sha1(header + content, usedforsecurity=False).hexdigest()


def list_her2st_files(names: Iterable[str] | None = None) -> dict[str, str]:
    """Return the git blob SHA-1 of each file of some, or all, sections of her2st by upstream path.

    Raises
    ------
    InputError
        Where a section does not exist.
    """
    manifest = pd.read_csv(MANIFEST, sep="\t", index_col="path")
    sha1_of = manifest["git_blob_sha1"].to_dict()
    if names is None:
        return sha1_of
    available = sorted({_section_of(path) for path in sha1_of if path.startswith("data/ST-cnts/")})
    selected = set(names)
    unknown = sorted(selected - set(available))
    if unknown:
        raise InputError(f"no section {', '.join(unknown)}; choose among {', '.join(available)}")
    return {path: sha1 for path, sha1 in sha1_of.items() if _section_of(path) in selected}


def _section_of(path: str) -> str:
    """Return the section of an upstream file: an image's folder, the start of any other name."""
    parts = PurePosixPath(path)
    if parts.suffix == ".jpg":
        return parts.parent.name
    return re.split(r"[._]", parts.name)[0]


def _download(url: str, path: Path, sha1: str) -> None:
    """Fetch ``url`` beside ``path``, verify it, and only then give it its name."""
    # `identity`: the hash is of the stored bytes, so nothing may be decoded on the way.
    download = pooch.HTTPDownloader(headers={"Accept-Encoding": "identity"})
    fault = f"cannot be fetched from {url}"
    remedy = f"check the network and the disk; {REPEAT}"
    with reading(path, fault=fault, remedy=remedy), atomic_file(path) as part:
        download(url, str(part), None)
        if git_blob_sha1(part) != sha1:
            raise InputError(f"{url} did not arrive as the manifest lists it; {REPEAT}")
