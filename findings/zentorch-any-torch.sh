#!/usr/bin/env bash
# zentorch 2.14.0.1: installs beside any torch, and imports beside one minor version only.
#
# Its metadata asks for "torch" without a version, so pip is content with the newest and says nothing; `import zentorch` then refuses all
# but 2.14. Nor does the number of the release tell what it was built from: its page names the tag v2.13.0.2_rc3. Whoever updates
# torch in an environment that has zentorch, or lets pip choose, learns of it when the program starts. Pin both.
#
# Seen: no version in the metadata, no complaint of `pip check` beside torch 2.15.0, and an ImportError that asks for 2.14.x.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check zentorch==2.14.0.1 torch==2.15.0 numpy==2.4.6
"$folder/venv/bin/pip" --disable-pip-version-check check
"$folder/venv/bin/python" - <<'PYTHON' 2> /dev/null
from importlib.metadata import requires

import torch

asked = [line for line in requires("zentorch") if line.startswith("torch")]
try:
    import zentorch  # noqa: F401

    said = "imported"
except ImportError as error:
    said = str(error)
print(asked, torch.__version__, said)
assert asked == ["torch"], asked
assert "only compatible with PyTorch versions 2.14.x" in said, said
PYTHON
