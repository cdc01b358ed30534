"""Scripts of this folder in processes of their own, whose threads and memory are theirs alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


def python(script: str, *arguments: Any) -> Any:
    """Run a script of this folder; return the JSON of the last line that it prints, if any."""
    path = os.pathsep.join([str(FOLDER.parent), str(FOLDER)])
    command = [sys.executable, str(FOLDER / script), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": path}
    finished = subprocess.run(
        command, check=True, text=True, stdout=subprocess.PIPE, env=environment
    )
    lines = finished.stdout.splitlines()
    return json.loads(lines[-1]) if lines else None
