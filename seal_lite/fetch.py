"""Public data, each file verified against a hash that was known before it was asked for.

her2st: HER2-positive breast tumours, spatial transcriptomics with H&E. Source: Andersson et al.,
Nature Communications 12, 6012 (2021); the GitHub repository almaan/her2st at the commit below. The
manifest beside this file lists every upstream file with its git blob SHA-1, so what arrives is byte
for byte what that commit holds. visium: 10x Genomics' example sections, by squidpy, which pins
their SHA-256. hest: samples of HEST-1k by their id, against the hashes that the hub keeps.
"""

import hashlib
import re
from collections.abc import Iterable
from itertools import product
from pathlib import Path, PurePosixPath

import pandas as pd
import pooch
from tqdm import tqdm

from .errors import InputError, reading
from .files import alone, appearing, sha256

COMMIT = "85df7411b987a7dec3feff9718b869a7a82091ec"
BASE_URL = f"https://raw.githubusercontent.com/almaan/her2st/{COMMIT}/"
MANIFEST = Path(__file__).with_name("her2st_manifest.tsv")
HEST, PARTS = "MahmoodLab/hest", ("st", "wsis", "metadata")
AGAIN = "run the same command again, what has arrived is kept"
CITATION = ("her2st: please cite Andersson et al., Nature Communications 12, 6012 (2021); "
            "its licence stands in the Zenodo record, doi:10.5281/zenodo.3957257.")  # fmt: skip


def fetch_her2st(out, *, sections: Iterable[str] | None = None, progress=True, base_url=BASE_URL):
    """Download her2st into `out`, keeping upstream's paths (`out/data/ST-imgs/...`); returns `out`.

    Source: Andersson et al. (2021), almaan/her2st on GitHub at one commit. `sections` are names
    such as `["C2", "C3"]`, None for all of them and every label table; `base_url` is upstream's
    root or a mirror, with its final slash. Safe to repeat and to interrupt: files that are already
    right are skipped, wrong ones are fetched again, and a file appears under its own name only once
    it is whole and verified. Raises `InputError` where a section does not exist, a file cannot be
    downloaded or written, or is not what the manifest promises.
    """
    out, wanted = Path(out), _select(sections)
    print(CITATION)
    with alone(out):
        for path, sha1 in tqdm(wanted.items(), unit="file", disable=not progress):
            if not (out / path).is_file() or git_blob_sha1(out / path) != sha1:
                _download(base_url + path, out / path, sha1)
    return out


def fetch_visium(out, *, sections: Iterable[str] | None = None):
    """Download 10x Genomics' example sections with their full images, `out/<name>/`; resumes.

    Source: 10xgenomics.com/datasets, CC BY 4.0, by squidpy. By default a human breast cancer.
    Raises `InputError` for an unknown name (squidpy's registry has the known ones) and where a file
    cannot be had.
    """
    import squidpy as sq

    print("10x Genomics' example data, CC BY 4.0; 10xgenomics.com/datasets")
    for name in sections or ["V1_Breast_Cancer_Block_A_Section_1"]:
        with reading(name, fault="cannot be fetched", remedy=AGAIN):
            sq.datasets.visium(name, include_hires_tiff=True, base_dir=out)
        if not list((Path(out) / name).glob("image.*")):
            raise InputError(f"{name}: its full image cannot be fetched; {AGAIN}")


def fetch_hest(out, *, sections: Iterable[str] | None = None):
    """Download samples of HEST-1k (Jaume et al., 2024) by id: counts, slide, metadata; resumes.

    They come into `out/st`, `out/wsis` and `out/metadata`, as on the hub. The data set is gated:
    ask for access on its page, then `hf auth login`. Raises `InputError` without ids, for an
    unknown one, without access, and where a file is not what the hub says.
    """
    from huggingface_hub import HfApi

    if not sections:
        raise InputError("fetch hest: holds over a thousand samples; name some, --sections TENX95")
    out, hub = Path(out), HfApi()
    remedy = f"ask for access on its page, `hf auth login`, go online; {AGAIN}"
    with reading(HEST, fault="cannot be fetched", remedy=remedy):
        info = hub.dataset_info(HEST, files_metadata=True)
        print(f"{HEST}: licence {(info.card_data or {}).get('license', 'on its page')}")
        files = {Path(s.rfilename): s for s in info.siblings}
        wanted = [p for p in files if p.stem in sections and str(p.parent) in PARTS]
        if lost := sorted(set(sections) - {p.stem for p in wanted}):
            raise InputError(f"{HEST}: has no sample {lost[0]}; its metadata list the ids")
        with alone(out):
            for path, again in product(wanted, (False, True)):
                if not _is(out / path, files[path]):
                    hub.hf_hub_download(HEST, str(path), repo_type="dataset", local_dir=out,
                                        force_download=again)  # fmt: skip
        if bad := [p for p in wanted if not _is(out / p, files[p])]:
            raise InputError(f"{out / bad[0]}: is not what the hub says; {AGAIN}")


def _is(path: Path, said) -> bool:
    """Is a file there, and what the hub's listing says of it?"""
    if not path.is_file():
        return False
    if said.lfs is None:
        return git_blob_sha1(path) == said.blob_id
    return sha256(path) == said.lfs.sha256


def git_blob_sha1(path: Path) -> str:
    """SHA-1 of a file as git names it: of `blob <size>\\0` followed by the content."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _select(sections: Iterable[str] | None) -> dict[str, str]:
    """Upstream path -> git blob SHA-1 of the files to fetch."""
    manifest = pd.read_csv(MANIFEST, sep="\t", index_col="path").git_blob_sha1.to_dict()
    if sections is None:
        return manifest
    known = sorted({_section(path) for path in manifest if path.startswith("data/ST-cnts/")})
    wanted = set(sections)
    if unknown := sorted(wanted - set(known)):
        raise InputError(f"no section {', '.join(unknown)}; choose among {', '.join(known)}")
    return {path: sha1 for path, sha1 in manifest.items() if _section(path) in wanted}


def _section(path: str) -> str:
    """The section a file belongs to: images lie in its folder, the other names begin with it."""
    path = PurePosixPath(path)
    return path.parent.name if path.suffix == ".jpg" else re.split(r"[._]", path.name)[0]


def _download(url: str, path: Path, sha1: str) -> None:
    """Fetch `url` beside `path`, verify it, and only then give it its name."""
    # `identity`: the hash is of the stored bytes, so nothing may be decoded on the way.
    download = pooch.HTTPDownloader(headers={"Accept-Encoding": "identity"})
    fault, remedy = f"cannot be fetched from {url}", f"check the network and the disk; {AGAIN}"
    with reading(path, fault=fault, remedy=remedy), appearing(path) as part:
        download(url, str(part), None)
        if git_blob_sha1(part) != sha1:
            raise InputError(f"{url} did not arrive as the manifest promises; {AGAIN}")
