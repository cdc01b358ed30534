"""her2st: HER2-positive breast tumours, spatial transcriptomics with H&E, fetched from upstream.

Source: Andersson et al., Nature Communications 12, 6012 (2021); the GitHub repository
almaan/her2st at the commit below. The manifest beside this file lists every upstream file with
its git blob SHA-1, so what arrives is byte for byte what that commit holds.
"""

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import pandas as pd
import pooch
from tqdm import tqdm

from .errors import InputError

COMMIT = "85df7411b987a7dec3feff9718b869a7a82091ec"
BASE_URL = f"https://raw.githubusercontent.com/almaan/her2st/{COMMIT}/"
MANIFEST = Path(__file__).with_name("her2st_manifest.tsv")
CITATION = (
    "her2st: please cite Andersson et al., Nature Communications 12, 6012 (2021); "
    "its licence stands in the Zenodo record, doi:10.5281/zenodo.3957257."
)


def fetch_her2st(out: str | Path, *, sections: Iterable[str] | None = None, progress: bool = True,
                 base_url: str = BASE_URL) -> Path:  # fmt: skip
    """Download her2st into `out`, keeping upstream's paths (`out/data/ST-imgs/...`); returns `out`.

    `sections` are names such as `["C2", "C3"]`, None for all of them and every label table;
    `base_url` is upstream's root or a mirror, with its final slash. Safe to repeat and to
    interrupt: files that are already right are skipped, wrong ones are fetched again, and a file
    appears under its own name only once it is whole and verified. Raises `InputError` where a
    section does not exist, a file cannot be downloaded or written, or is not what the manifest
    promises.
    """
    out, wanted = Path(out), _select(sections)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"Cannot make the folder {out} ({error}): choose another.") from error
    print(CITATION)
    for path, sha1 in tqdm(wanted.items(), unit="file", disable=not progress):
        if not (out / path).is_file() or git_blob_sha1(out / path) != sha1:
            _download(base_url + path, out / path, sha1)
    return out


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
        raise InputError(
            f"her2st has no section {', '.join(unknown)}: choose among {', '.join(known)}."
        )
    return {path: sha1 for path, sha1 in manifest.items() if _section(path) in wanted}


def _section(path: str) -> str:
    """The section a file belongs to: images lie in its folder, the other names begin with it."""
    path = PurePosixPath(path)
    return path.parent.name if path.suffix == ".jpg" else re.split(r"[._]", path.name)[0]


def _download(url: str, path: Path, sha1: str) -> None:
    """Fetch `url` beside `path`, verify it, and only then give it its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    # `identity`: the hash is of the stored bytes, so nothing may be decoded on the way.
    download = pooch.HTTPDownloader(headers={"Accept-Encoding": "identity"})
    try:
        download(url, str(part), None)
        if git_blob_sha1(part) != sha1:
            raise InputError(
                f"{url} did not arrive as the manifest promises: run the same command again, and "
                "if that does not help, report it upstream."
            )
        os.replace(part, path)
    except OSError as error:  # what requests raises is an OSError too
        raise InputError(
            f"Cannot fetch {url} into {path} ({error}): check the network and the disk, and run "
            "the same command again; what has arrived is kept."
        ) from error
    finally:
        part.unlink(missing_ok=True)
