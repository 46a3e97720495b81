"""perf_analyzer, Triton's load generator, against the real server: both protocols, texts and token ids, and every reward it
gets is compared. By hand: its wheel wants glibc 2.38 or newer, which is unpacked beside it from a newer Debian, not installed.

    python tests/clients/perf_analyzer.py FOLDER [path/to/rewarm]       Debian's apt and dpkg, and a Python with grpcio

FOLDER (kept: 60 MB) gets what is downloaded; the mirror is that of this machine's own apt.
"""
from __future__ import annotations

import csv
import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "clients/python/src"))

import rewarm

WHEEL = "perf-analyzer==2.60.0"
SUITE = "trixie"
PACKAGES = ["libc6", "libgcc-s1", "libstdc++6", "libssl3t64", "zlib1g", "libzstd1"]
VARIANT = {"mode": "warm", "members": [str(ROOT / f"deploy/demo/member-{index}") for index in range(4)]}
GOLDEN = json.loads((ROOT / "tests/data/demo_golden.json").read_text(encoding="utf-8"))["samples"]
SECONDS = 120


def run(*command: str, cwd: pathlib.Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def program(folder: pathlib.Path) -> list[str]:
    """What starts it: the newer glibc's loader, which has its libraries told."""
    library, wheel = folder / "root/usr/lib/x86_64-linux-gnu", folder / "wheel"
    if not library.exists():
        for name in ["sources", "lists/partial", "cache/archives/partial", "packages"]:
            (folder / name).mkdir(parents=True, exist_ok=True)
        own = pathlib.Path("/etc/apt/sources.list.d/debian.sources").read_text(encoding="utf-8")
        mirror = next(line.split()[1] for line in own.splitlines() if line.startswith("URIs:"))
        (folder / "sources/newer.sources").write_text(
            f"Types: deb\nURIs: {mirror}\nSuites: {SUITE}\nComponents: main\n"
            "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n", encoding="utf-8")
        apt = ["apt-get", "-qq", "-o", "Dir::Etc::sourcelist=/dev/null", "-o", f"Dir::Etc::sourceparts={folder}/sources",
               "-o", f"Dir::State::lists={folder}/lists", "-o", f"Dir::Cache={folder}/cache", "-o", "Dir::State::status=/dev/null"]
        run(*apt, "update")
        run(*apt, "download", *PACKAGES, cwd=folder / "packages")
        for package in (folder / "packages").iterdir():
            run("dpkg-deb", "-x", str(package), str(folder / "root"))
    if not wheel.exists():
        run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--platform",
            "manylinux_2_38_x86_64", "--dest", str(folder), WHEEL)
        [packed] = folder.glob("perf_analyzer-*.whl")
        run(sys.executable, "-m", "zipfile", "-e", str(packed), str(wheel))
        (wheel / "perf_analyzer/bin/perf_analyzer").chmod(0o755)
    return [str(library / "ld-linux-x86-64.so.2"), "--library-path", str(library), str(wheel / "perf_analyzer/bin/perf_analyzer")]


def inputs(server: rewarm.Server, kind: str) -> dict[str, object]:
    """What it sends in turn, and what must come back: a difference of a bit ends it."""
    samples = GOLDEN[:16]
    client = rewarm.Client(server.address)
    if kind == "texts":
        data = [{"prompt": [sample["prompt"]], "response": [sample["response"]]} for sample in samples]
        rewards = client.score([sample["prompt"] for sample in samples], [sample["response"] for sample in samples])
    else:
        ids = [[2, *range(100 + index, 120 + index), 3] for index in range(16)]
        data = [{"input_ids": {"content": row, "shape": [len(row)]}} for row in ids]
        rewards = client.score_token_ids(ids)
    return {"data": data, "validation_data": [{"rewards": [reward], "member_rewards": [reward]} for reward in rewards]}


def main(folder: pathlib.Path, binary: str | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    analyzer = program(folder)
    with rewarm.serve({"variants": {"warm": VARIANT}}, binary=binary, http="127.0.0.1:0") as server:
        print("| protocol | sends | a request | at a time | samples/s | p50 ms | p99 ms |\n| --- | --- | --- | --- | --- | --- | --- |")
        for protocol, address in [("grpc", server.address), ("http", server.http)]:
            for kind, batch, concurrency in [("texts", 1, 8), ("token ids", 1, 8), ("texts", 64, 4)]:
                sent = inputs(server, kind)
                if batch > 1:
                    del sent["validation_data"]  # it compares single samples alone
                (folder / "input.json").write_text(json.dumps(sent), encoding="utf-8")
                report = folder / "report.csv"
                report.unlink(missing_ok=True)
                run(*analyzer, "-m", "warm", "-u", address, "-i", protocol, "--input-data", str(folder / "input.json"),
                    "-b", str(batch), "--concurrency-range", str(concurrency), "--measurement-interval", "2000",
                    "--stability-percentage", "999", "-f", str(report))
                with report.open(encoding="utf-8", newline="") as lines:
                    [row] = csv.DictReader(lines)
                print(f"| {protocol} | {kind} | {batch} | {concurrency} | {float(row['Inferences/Second']):,.0f} | "
                      f"{float(row['p50 latency']) / 1000:.1f} | {float(row['p99 latency']) / 1000:.1f} |", flush=True)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else os.environ.get("REWARM_BINARY"))
