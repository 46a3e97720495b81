"""The server's program, where a wheel brought it."""
from __future__ import annotations

import importlib.metadata
import os
import shutil
from pathlib import Path

NAME = "rewarm"


def find() -> str | None:
    """`REWARM_BINARY`, else the program that was installed with this package, else the first on the PATH."""
    return os.environ.get("REWARM_BINARY") or _installed() or shutil.which(NAME)


def _installed() -> str | None:
    # by the list of what was installed, because a virtual environment's programs need not be on the PATH
    try:
        files = importlib.metadata.files(NAME) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    found = [Path(str(file.locate())) for file in files if file.name == NAME and file.suffix == ""]
    return next((str(path.resolve()) for path in found if os.access(path, os.X_OK) and path.is_file()), None)
