"""Any AnnData file with coordinates."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from seal_lite.data.readers.common import kept_metadata, read_h5ad

if TYPE_CHECKING:
    from anndata import AnnData


def read_anndata(path: Path, labels: dict[str, str]) -> AnnData:
    """Read any AnnData file with `obsm["spatial"]` in px of the full image."""
    adata = read_h5ad(path)
    adata.uns = kept_metadata(adata.uns)
    return adata
