#!/usr/bin/env python3
"""Makes files that are no JSON lines with the programs that make them, and runs the commands that rewarm names to mend them.

    pip install -r tests/reference/requirements.txt; apt-get install zstd xz-utils bzip2 lz4 zip unzip jq
    cargo build && python tests/reference/lines.py [target/debug/rewarm]

For each file `rewarm evaluate --pairs` must refuse it with a command, and that command, run as it stands (with the file's name
for FILE), must make the same pairs as JSON lines. The commands in `src/text/lines.rs` are those that passed.
"""
import gzip
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import pandas
import pyarrow
import pyarrow.ipc
import pyarrow.parquet

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAIRS = [{"prompt": "Name, please: a \"prime\".", "chosen": "Seven;\tor 7", "rejected": "Éight\n日本"},
         {"prompt": "Hi", "chosen": "Hello!", "rejected": "Go away."}]
LINES = "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in PAIRS)


def files(folder):
    """(what, path): the name is one that says nothing, for the beginning of the file has to tell."""
    plain = folder / "pairs.jsonl.plain"
    plain.write_text(LINES)
    for program in ("zstd", "xz", "bzip2", "lz4"):
        target = folder / f"packed by {program}"
        target.write_bytes(subprocess.run([program, "-c", plain], check=True, capture_output=True).stdout)
        yield program, target
    subprocess.run(["zip", "-qj", folder / "a.zip", plain], check=True)
    yield "zip", folder / "a.zip"
    once = subprocess.run(["gzip", "-c", plain], check=True, capture_output=True).stdout
    twice = folder / "twice"
    twice.write_bytes(subprocess.run(["gzip", "-c"], input=once, check=True, capture_output=True).stdout)
    yield "gzip twice", twice
    table = pyarrow.Table.from_pylist(PAIRS)
    pyarrow.parquet.write_table(table, folder / "parquet")
    yield "Parquet", folder / "parquet"
    for what, writer in (("Arrow file", pyarrow.ipc.new_file), ("Arrow stream", pyarrow.ipc.new_stream)):
        with writer(folder / what, table.schema) as out:
            out.write_table(table)
        yield what, folder / what
    for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32"):
        (folder / encoding).write_bytes(LINES.encode(encoding))
        yield encoding, folder / encoding
    for separator, what in ((",", "CSV"), ("\t", "TSV"), (";", "CSV by semicolons")):
        pandas.DataFrame(PAIRS).to_csv(folder / what, sep=separator, index=False)
        yield what, folder / what
    for what, indent in (("JSON array", None), ("JSON array in lines", 2)):
        (folder / what).write_text(json.dumps(PAIRS, indent=indent))
        yield what, folder / what
    (folder / "objects").write_text("\n".join(json.dumps(pair, indent=2) for pair in PAIRS))
    yield "objects over several lines", folder / "objects"
    scored = [dict(pair, score=float("nan")) for pair in PAIRS]
    (folder / "nan").write_text("".join(json.dumps(pair) + "\n" for pair in scored))
    yield "NaN", folder / "nan"


def main():
    rewarm = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "target/debug/rewarm").resolve()
    member = ROOT / "tests/data/evaluate/member-0"
    path = os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ["PATH"]])  # for `python`
    failures = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)

        def evaluate(pairs):
            return subprocess.run([rewarm, "evaluate", "--members", member, "--pairs", pairs, "--output", folder / "report"],
                                  capture_output=True, text=True)

        for what, file in files(folder):
            said = evaluate(file).stderr
            commands = re.findall(r"`([^`]* FILE[^`]*|[^`]*'FILE'[^`]*)`", said)
            problem = "no command is named"
            if commands:
                (folder / "pairs.jsonl").unlink(missing_ok=True)
                # a name with blanks is quoted by whoever types it
                command = commands[0].replace("'FILE'", f"'{file}'").replace(" FILE", f" '{file}'")
                done = subprocess.run(command, shell=True, cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True)
                made = folder / "pairs.jsonl"
                try:
                    content = made.read_bytes()
                    content = gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content  # which rewarm reads
                    got = [json.loads(line) for line in content.decode().splitlines()]
                    got = [{key: value for key, value in pair.items() if key != "score"} for pair in got]
                    problem = None if got == PAIRS else f"it makes {got}"
                except Exception as error:
                    problem = f"{error}: {done.stderr.strip()}"
                if problem is None and "error" in (again := evaluate(made)).stderr:
                    problem = f"what it makes is refused: {again.stderr.strip()}"
            failures += problem is not None
            print(f"{what}: " + ("as it should be" if problem is None else f"{problem}\n    {said.strip()}\n    {commands}"))
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
