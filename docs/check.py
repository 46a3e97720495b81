#!/usr/bin/env python3
"""Holds every Markdown file of the repository to what it names: files, anchors, and the messages that questions.md explains."""
from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
#: Pages that hooks.py makes when the site is built.
MADE = {f"docs/pages/reference/{name}.md" for name in ("commands", "configuration", "metrics", "contract", "http")}


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^(```|~~~).*?^\1", "", text, flags=re.MULTILINE | re.DOTALL))


def anchors(path: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+\s+(.*)$", re.sub(r"^```.*?^```", "", path.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        found.add(slug if slug not in found else f"{slug}-1")
    return found


def dead_links() -> list[str]:
    tracked = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"], cwd=ROOT, check=True,
                             stdout=subprocess.PIPE, text=True).stdout.split()
    dead = []
    for name in tracked:
        file = ROOT / name
        for target in LINK.findall(without_code(file.read_text("utf-8"))):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            to = (file.parent / path).resolve() if path else file
            if to.is_relative_to(ROOT) and str(to.relative_to(ROOT)) in MADE:
                continue
            if not to.exists():
                dead.append(f"{name}: {target} is not there")
            elif anchor and to.suffix == ".md" and anchor not in anchors(to):
                dead.append(f"{name}: {target} has no such heading")
    return dead


def unknown_messages() -> list[str]:
    """What questions.md quotes as said by rewarm, and rewarm does not say: each part of a heading between `…`."""
    # strings as they are written in the sources, joined where they go on in the next line
    said = "\n".join(path.read_text("utf-8") for path in sorted((ROOT / "src").rglob("*.rs")))
    said = re.sub(r"\\\n\s*", "", said)
    headings = re.findall(r"^### `(.*)`$", (ROOT / "docs/pages/questions.md").read_text("utf-8"), re.MULTILINE)
    if len(headings) < 10:
        return [f"questions.md has {len(headings)} messages, too few to be all"]
    parts = [(heading, part.strip()) for heading in headings for part in heading.split("…")]
    return [f"questions.md: rewarm never says {part!r} of {heading!r}" for heading, part in parts if part and part not in said]


if __name__ == "__main__":
    problems = dead_links() + unknown_messages()
    print("\n".join(problems), end="\n" if problems else "")
    sys.exit(bool(problems))
