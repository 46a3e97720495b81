#!/usr/bin/env python3
"""Lets rewarm and every peer take turns on the same models and token ids, and prints the table; by hand, not part of CI.

    python3 tests/reference/peers/run.py target/release/rewarm --folder SCRATCH [--only ROW ..] [--quick] [--rounds 7] [--output FILE]

SCRATCH gets the virtual environments (about 17 GB, from PyPI; `venvs/` has what is in each), the models in every peer's format and
`results.json`, and may be used again: what is there is not made again, and a row that is measured with this binary is not measured
again (--again does). --prepare makes all that, which needs no quiet machine; Ctrl-C ends a run, and the next goes on where it was.
Nor does a row's beginning, when engines start, compile, and are checked: with --alone FILE, only turns are taken under that file's lock
(flock), and builds that hold it shared neither disturb them nor wait for engines.

The peers: torch as it is (denormals off, an allocator that keeps pages), with MKL told that the CPU is Intel's (its AVX-512 path),
compiled by inductor, by zentorch; OpenVINO's runtime with its throughput and its latency hint; ONNX Runtime; vLLM for CPUs, without
and with zentorch. Each is tried with all ways to cut the samples into batches, and the fastest takes part. A peer that cannot do a
row is named below the table with its reason. Rewards of all are held to transformers' f32 (eager attention, one sample at a time)
first: a faster answer to another question is no answer.

A turn is one untimed repeat and then as many as take --seconds; it counts with its median. The order of turns is reversed every second
round, and a round in which others took more than 3% of the CPUs' time (/proc/stat) is repeated, at most twice as often as rounds are
asked for; then it counts, and the row is marked. A ratio is the peer's time over ours of one round; the table has their median, and
from least to most. The best peer is the one with the least median. "of peak": operations that the row needs over our time, beside the
most that registers alone did in the same run. Targets are judged on a CPU with AVX-512 and bfloat16 dot products, without AMX: exit
code 1 where one is missed; elsewhere they are told.
"""
import argparse
import contextlib
import datetime
import fcntl
import hashlib
import json
import math
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import time

import machine
import rows
import special
import turns

class Bench:
    """A run: its folder, what it made there, and its results, written after every round."""

    def __init__(self, args):
        self.args, self.folder, self.binary = args, args.folder.resolve(), args.rewarm.resolve()
        (self.folder / "log").mkdir(parents=True, exist_ok=True)
        self.lock = (self.folder / "lock").open("w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(f"{self.folder} is in use by another run: wait for it, or name another --folder") from None
        self.file = self.folder / "results.json"
        self.results = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.name = hashlib.sha256(self.binary.read_bytes()).hexdigest()[:16]
        self.peak = machine.Peak(self.folder)
        if "torch, MKL as on Intel" in args.peers:
            (self.folder / "intel.c").write_text(turns.INTEL)
            subprocess.run([os.environ.get("CC", "cc"), "-shared", "-fPIC", "-o", self.folder / "intel.so", self.folder / "intel.c"], check=True)

    def python(self, name):
        return turns.setup(self.folder, name, self.args.python)

    def make(self, path, *words):
        """What `models.py` makes of such words, unless it is there."""
        done = path.with_name(path.name + ".made")
        if not done.exists():
            self.show(f"models.py {' '.join(map(str, words))}")
            log = self.folder / "log" / "models.txt"
            with log.open("w") as file:
                code = subprocess.run([self.python("torch"), turns.HERE / "models.py", *words], stdout=file, stderr=file, env={**os.environ, **turns.QUIET}).returncode
            if code:
                raise turns.Unable(f"models.py {words[0]}: {turns.last_line(log)}")
            done.touch()
        return path

    def checkpoint(self, shape):
        return self.make(self.folder / shape, "checkpoint", shape, self.folder / shape)

    def truth(self, row):
        file = self.folder / f"{row.name}.json"
        self.make(file, "reference", self.checkpoint(row.shape), row.name, file)
        return json.loads(file.read_text())

    def peers(self, row):
        """Who is asked: vLLM for decoders only, since each engine takes minutes to start."""
        return [name for name in self.args.peers if turns.PEERS[name][1]["peer"] != "vllm" or rows.is_decoder(row.shape)]

    def worker(self, name, checkpoint, row, dtype):
        """The peer, ready for its turns."""
        venv, told, _ = turns.PEERS[name]
        self.form(name, checkpoint, dtype)
        return turns.Worker(name, self.python(venv), self.folder, {"model": str(checkpoint), "dtype": dtype, "samples": row.samples(), "prompt": row.prompt})

    def prepare(self, row):
        """All that a row needs before anybody has a turn: what takes long, and no quiet machine."""
        for name in self.args.peers:
            self.python(turns.PEERS[name][0])
        if row.kind == "merge":
            self.make(self.folder / "members", "members", self.folder / "members", "4")
        elif row.kind != "ens":
            checkpoint = self.checkpoint(row.shape)
            self.truth(row)
            for name in self.args.peers if row.kind != "served" else []:
                for dtype in row.targets:
                    try:
                        self.form(name, checkpoint, dtype)
                    except turns.Unable as reason:
                        self.show(f"{row.name} {dtype}: {name} cannot: {reason}")

    def form(self, name, checkpoint, dtype):
        """The checkpoint in the format of a peer that has one of its own."""
        if turns.PEERS[name][1]["peer"] == "onnxruntime" and dtype == "bf16":
            raise turns.Unable("onnxruntime computes no bfloat16 on a CPU")
        kind = {"openvino": "openvino", "onnxruntime": "onnx"}.get(turns.PEERS[name][1]["peer"])
        if kind:
            form = checkpoint.with_name(f"{checkpoint.name}-{kind}")
            self.make(form, kind, checkpoint, form)

    def save(self, key, result):
        self.results[key] = result
        partial = self.file.with_suffix(".partial")
        partial.write_text(json.dumps(self.results, indent=1) + "\n")
        partial.rename(self.file)

    def show(self, what):
        print(f"{datetime.datetime.now():%H:%M:%S} {what}", file=sys.stderr, flush=True)

    def begin(self, row, dtype):
        """(key, what was measured before, if anything)."""
        key = f"{row.name} {dtype}"
        result = self.results.get(key, {})
        settings = {"binary": self.name, "peers": self.args.peers, "seconds": self.args.seconds}
        if self.args.again or result.get("settings") != settings:
            result = {"settings": settings, "rounds": {}, "discarded": 0, "disturbed": 0, "unable": {}, "about": {}, "ways": {}, "errors": {}}
        return key, result

    def forwards(self, pairs):
        """Rows of bare forwards, each with its precision: all get ready, then each has its turns."""
        with contextlib.ExitStack() as stack:
            ready = [found for row, dtype in pairs if (found := self.ready(stack, row, dtype))]
            if ready:
                with self.alone():
                    for key, result, takers, done in ready:
                        self.choose(key, result, takers)
                        self.rounds(key, result, takers, done)

    def ready(self, stack, row, dtype):
        """(key, result, who takes turns, rounds that are done), or None where all are; the stack ends the peers."""
        key, result = self.begin(row, dtype)
        done = min((len(seconds) for seconds in result["rounds"].values()), default=0)
        if done >= self.args.rounds:
            return None
        checkpoint, truth = self.checkpoint(row.shape), self.truth(row)
        check, takers = turns.judge(dtype, truth), []
        for name in ["rewarm", *self.peers(row)]:
            self.show(f"{key}: {name} gets ready")
            try:
                taker = turns.Rewarm(self.binary, self.folder, checkpoint, row, dtype) if name == "rewarm" else self.worker(name, checkpoint, row, dtype)
                with contextlib.ExitStack() as unless_ready:
                    unless_ready.callback(taker.close)
                    result["errors"][name] = taker.try_ways(check)
                    stack.push(unless_ready.pop_all())
                result["about"][name] = getattr(taker, "about", "")
                takers.append(taker)
                result["unable"].pop(name, None)
            except turns.Unable as reason:
                if name == "rewarm":
                    raise SystemExit(f"{key}: {reason}") from reason
                result["unable"][name] = str(reason)
                self.show(f"{key}: {name} cannot: {reason}")
        result["rounds"] = {taker.name: result["rounds"].get(taker.name, [])[:done] for taker in takers}
        if any(len(seconds) < done for seconds in result["rounds"].values()):  # who could not before can now: all over again
            done, result["rounds"] = 0, {taker.name: [] for taker in takers}
        return key, result, takers, done

    def choose(self, key, result, takers):
        for taker in list(takers):
            try:
                taker.choose()
                result["ways"][taker.name] = taker.way
            except turns.Unable as reason:
                self.leaves(key, result, takers, taker, reason)

    @contextlib.contextmanager
    def alone(self):
        """Around turns: with --alone, nobody works meanwhile who holds that file when he does."""
        with contextlib.ExitStack() as stack:
            if self.args.alone:
                file = stack.enter_context(self.args.alone.open("a"))
                self.show(f"waits for {self.args.alone}")
                fcntl.flock(file, fcntl.LOCK_EX)
            started = time.monotonic()
            yield
            self.show(f"took turns for {time.monotonic() - started:.0f} seconds")

    def rounds(self, key, result, takers, done):
        while done < self.args.rounds:
            order, seconds, others = takers if done % 2 == 0 else takers[::-1], {}, 0.0
            self.peak.measure()
            for taker in order:
                repeats = max(1, min(50, math.ceil(self.args.seconds / taker.seconds)))
                try:
                    with machine.Watch(taker.pids) as watch:
                        seconds[taker.name] = statistics.median(taker.take(repeats)[0])
                except turns.Unable as reason:
                    self.leaves(key, result, takers, taker, f"in round {done + 1}: {reason}")
                    break
                others = max(others, watch.others)
                if watch.is_disturbed and self.can_repeat(result):
                    break
            if others > machine.DISTURBED and self.can_repeat(result):
                result["discarded"] += 1
                self.show(f"{key}: round {done + 1} again, others took {others:.0%}")
                time.sleep(machine.PAUSE)
                continue
            if len(seconds) < len(takers):
                continue  # somebody left in the middle
            result["disturbed"] += others > machine.DISTURBED
            done += 1
            for name, one in seconds.items():
                result["rounds"][name].append(one)
            result["peak"] = dict(self.peak.best)
            self.save(key, result)
            self.show(f"{key}: round {done} of {self.args.rounds}: " + ", ".join(f"{name} {one * 1e3:.1f} ms" for name, one in seconds.items()))

    def leaves(self, key, result, takers, taker, reason):
        """A peer was able before, and is not now: the others go on without it."""
        self.show(f"{key}: {taker.name} cannot go on: {reason}")
        result["unable"][taker.name] = str(reason)
        del result["rounds"][taker.name]
        takers.remove(taker)

    def can_repeat(self, result):
        return result["discarded"] < 2 * self.args.rounds

    def measure(self, pairs):
        forwards = [pair for pair in pairs if pair[0].kind == "forward"]
        for start in range(0, len(forwards), self.args.together):
            self.forwards(forwards[start:start + self.args.together])
        for row, dtype in pairs:
            if row.kind != "forward":
                getattr(special, row.kind)(self, row, dtype)


def ratios(result):
    """(name of the best peer, its ratio in each round)."""
    others = {name: seconds for name, seconds in result["rounds"].items() if name != "rewarm"}
    if not others:
        return None, []
    best = min(others, key=lambda name: statistics.median(others[name]))
    return best, [theirs / ours for theirs, ours in zip(others[best], result["rounds"]["rewarm"])]


def report(results, wanted):
    """Lines of Markdown, and how many judged targets are missed."""
    name, flags = machine.cpu()
    lines, missed, reasons, agree = [], 0, {}, []
    head = ["| work | | best peer | its time over ours | target | ours, ms | of peak |", "| --- | --- | --- | --- | --- | --- | --- |"]
    details = ["", "| work | | who | ms | over ours | batches |", "| --- | --- | --- | --- | --- | --- |"]
    about, versions, special_lines = set(), set(), []
    for row in wanted:
        for dtype, target in row.targets.items():
            result = results.get(f"{row.name} {dtype}")
            if not result or not any(result["rounds"].values()):
                continue
            about.add(result["settings"]["binary"])
            versions |= {text for text in result["about"].values() if text}
            for who, reason in result["unable"].items():
                reasons.setdefault(f"{who}: {reason}", []).append(f"{row.name} {dtype}")
            mark = f"; {result['disturbed']} rounds disturbed" if result["disturbed"] else ""
            if row.kind in ("memory", "merge", "ens"):
                line, is_met = special.line(row, dtype, result, target)
                special_lines.append(line + mark)
            else:
                best, found = ratios(result)
                ours = result["rounds"]["rewarm"]
                operations, peak = rows.operations(row) if row.kind == "forward" else None, result["peak"]
                limit = peak["bf16"] or peak["f32"] if dtype == "bf16" else peak["f32"]
                share = operations / statistics.median(ours) / 1e9 / limit if operations else 0
                # a peak that others have lowered is none
                is_near_peak = share >= (0.95 if dtype == "f32" else 0.9) and not result["disturbed"]
                is_met = target is None or (found and statistics.median(found) >= target) or is_near_peak
                lines.append(f"| {row.name} | {dtype} | {best or 'none could'} | {turns.spread(found) if found else ''}{mark} | {target or ''} | "
                             f"{turns.spread([one * 1e3 for one in ours], 1)} | {f'{share:.0%} of {limit:.0f}' if share else ''} |")
                for who, seconds in result["rounds"].items():
                    over = statistics.median(a / b for a, b in zip(seconds, ours))
                    details.append(f"| {row.name} | {dtype} | {who} | {turns.spread([one * 1e3 for one in seconds], 1)} | {over:.2f} | {result['ways'].get(who, '')} |")
            if result["errors"]:
                agree.append(f"{row.name} {dtype}: " + ", ".join(f"{who} {error:.1g}" for who, error in result["errors"].items()))
            missed += machine.binds(flags) and not is_met
    out = [f"{name}, {machine.CPUS} CPUs, {' '.join(flags)}; rewarm {', '.join(sorted(about))} (sha256); {'; '.join(sorted(versions))}", ""]
    out.append("Targets are judged here." if machine.binds(flags) else "Targets are for CPUs with AVX-512 and bfloat16 dot products, without AMX: told, not judged, here.")
    out += ["", *head, *lines]
    if special_lines:
        out += ["", "Lower is better:", "", *special_lines]
    out += details if len(details) > 3 else []
    if reasons:
        out += ["", "Who could not, and why:", ""]
        out += [f"- {reason} ({', '.join(where) if len(where) < 4 else f'{len(where)} rows'})" for reason, where in reasons.items()]
    out += ["", "Largest difference from transformers' f32 (f32: relative to the larger of 1 and the reward; bf16: to the spread of rewards):", ""]
    out += [f"- {line}" for line in agree]
    return out, missed


def main():
    every = rows.ROWS + rows.MORE
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rewarm", type=pathlib.Path, help="the release binary")
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="scratch, kept")
    parser.add_argument("--only", nargs="+", choices=[row.name for row in every], metavar="ROW", help=", ".join(row.name for row in every))
    parser.add_argument("--dtypes", nargs="+", choices=["f32", "bf16"], default=["f32", "bf16"])
    parser.add_argument("--peers", nargs="*", choices=list(turns.PEERS), default=turns.TUNED, metavar="PEER", help=", ".join(turns.PEERS) + " [default: all but torch as installed]")
    parser.add_argument("--rounds", type=int, help="[default: 7]")
    parser.add_argument("--seconds", type=float, help="of a turn [default: 1]")
    parser.add_argument("--quick", action="store_true", help="3 rounds of 0.3 seconds a turn")
    parser.add_argument("--prepare", action="store_true", help="makes environments and models, measures nothing: needs no quiet machine")
    parser.add_argument("--again", action="store_true", help="measures what was measured, too")
    parser.add_argument("--report", action="store_true", help="prints what there is, measures nothing")
    parser.add_argument("--output", type=pathlib.Path, help="the report goes there, too")
    parser.add_argument("--alone", type=pathlib.Path, metavar="FILE", help="is locked while turns are taken")
    parser.add_argument("--together", type=int, default=1, metavar="ROWS", help="so many get ready before their turns: fewer waits for --alone, more memory [default: 1]")
    parser.add_argument("--port", type=int, default=25300, help="servers of the row served listen here and on the next")
    parser.add_argument("--python", default=sys.executable, help="that makes the virtual environments; the lists are for 3.11")
    args = parser.parse_args()
    args.rounds, args.seconds = args.rounds or (3 if args.quick else 7), args.seconds or (0.3 if args.quick else 1.0)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    wanted = [row for row in every if (row.name in args.only if args.only else row in rows.ROWS)]
    bench = Bench(args)
    try:
        for row in wanted if args.prepare else []:
            bench.prepare(row)
        if not (args.report or args.prepare):
            bench.measure([(row, dtype) for row in wanted for dtype in row.targets if dtype in args.dtypes])
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
    lines, missed = report(bench.results, wanted)
    print("\n".join(lines))
    if args.output:
        args.output.write_text("\n".join(lines) + "\n")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
