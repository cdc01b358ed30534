"""What a result was computed from."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from pathlib import Path

import numpy as np
import torch

from seal_lite import __version__
from seal_lite.config import Config
from seal_lite.encoders.registry import backbone_row


def provenance(sections, config: Config, **extra) -> dict:
    """What a result was computed from: data hash, seed, settings, commit, versions, device; and the
    version of this package.

    {"sections": names, "data_sha256", "config_sha256", "backbone_sha256", "seed", "commit",
    "package", "versions", "device"} and `extra`, as JSON has it.
    """
    import timm

    data = hashlib.sha256("".join(s.digest for s in sections).encode()).hexdigest()
    git = subprocess.run(
        "git describe --always --dirty --abbrev=12".split(),
        text=True,
        cwd=Path(__file__).parent,
        capture_output=True,
    )
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        "sections": [s.name for s in sections],
        "data_sha256": data,
        "seed": config.seed,
        "config_sha256": hashlib.sha256(config.to_json().encode()).hexdigest(),
        "backbone_sha256": hashlib.sha256(repr(backbone_row(config.backbone)).encode()).hexdigest(),
        "package": __version__,
        "commit": git.stdout.strip() or "unknown",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "timm": timm.__version__,
            "numpy": np.__version__,
        },
        "device": f"{device} ({platform.machine()}, {torch.get_num_threads()} threads)",
        **extra,
    }
