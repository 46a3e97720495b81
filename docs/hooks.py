"""What the site has beside its pages: a reference made from what the program says of itself, so that it cannot be stale.

Commands, configuration and metrics are those of the golden files that the program's tests hold (tests/data); the contract is the
proto file. Links into the repository become the paths that they name.
"""
from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = Path(__file__).resolve().parent / "pages"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    made = {"commands": commands, "configuration": configuration, "metrics": metrics, "contract": contract, "http": http}
    for name, make in made.items():
        files.append(File.generated(config, f"reference/{name}.md", content=make()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """A link to a file of the repository, which is no page, is told as its path."""
    here = (PAGES / page.file.src_uri).parent

    def told(link: re.Match[str]) -> str:
        text, target = link[1], link[2]
        path = (here / target.partition("#")[0]).resolve()
        if re.match(r"[a-z]+:|#", target) or path.is_relative_to(PAGES):
            return link[0]
        if not path.exists():
            raise PluginError(f"{page.file.src_uri}: {target} is not there")
        name = path.relative_to(ROOT)
        return f"`{name}`" if text.strip("`") in (str(name), path.name) else f"{text} (`{name}`)"

    return re.sub(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)", told, markdown)


def helps() -> list[tuple[str, str]]:
    """Each command with its help, from the golden file: `$ rewarm serve --help`, and what it prints."""
    text = (ROOT / "tests/data/help.txt").read_text("utf-8")
    parts = re.split(r"^\$ (.*) --help$\n", text, flags=re.MULTILINE)
    return list(zip(parts[1::2], (part.strip("\n") for part in parts[2::2]), strict=True))


def commands() -> str:
    sections = [f"## {command}\n\n```text\n{text}\n```\n" for command, text in helps()]
    return "# Commands\n\nWhat `--help` prints, of every command.\n\n" + "\n".join(sections)


def configuration() -> str:
    [text] = [text for command, text in helps() if command == "rewarm serve"]
    start = re.search(r"^The configuration, with its defaults.*$", text, re.MULTILINE)
    if start is None:
        raise PluginError("the help of `rewarm serve` has no configuration any more")
    return f"# Configuration\n\nOf `rewarm serve`; `rewarm init` writes one for given members.\n\n```text\n{text[start.start():]}\n```\n"


def metrics() -> str:
    rows = []
    for block in re.split(r"\n(?=\S)", (ROOT / "tests/data/metrics.txt").read_text("utf-8").strip()):
        head, what, *labels = block.split("\n")
        name, kind = head.split()
        shown = ", ".join(f"`{label.split(' = ')[0].strip()}`" for label in labels)
        rows.append(f"| `{name}` | {kind} | {what.strip()} | {shown} |")
    head = "| metric | kind | what | labels |\n| --- | --- | --- | --- |\n"
    return "# Metrics\n\nAll that `/metrics` has.\n\n" + head + "\n".join(rows) + "\n"


def contract() -> str:
    files = sorted((ROOT / "proto/rewarm").rglob("*.proto"))
    blocks = [f"## {file.relative_to(ROOT)}\n\n```proto\n{file.read_text('utf-8').strip()}\n```\n" for file in files]
    return "# The contract\n\nEvery field says its unit, its limit and what its absence means.\n\n" + "\n".join(blocks)


def http() -> str:
    """The paths of HTTP, from the table of routes that the server answers by."""
    table = (ROOT / "src/service/http/table.rs").read_text("utf-8")
    routes = re.findall(r"paths: &\[([^\]]*)\],\s*what: \"((?:[^\"\\]|\\.)*)\"", table)
    if len(routes) < 15:
        raise PluginError("src/service/http/table.rs is not written as it was: no routes are found in it")
    rows = [f"| {paths.replace(chr(34), '`')} | {what} |" for paths, what in routes]
    return ("# HTTP\n\n`/openapi.json` of a running server has requests and answers of each; [Trainers](../trainers.md#over-http) says what they have "
            "in common.\n\n| path | what |\n| --- | --- |\n" + "\n".join(rows) + "\n")
