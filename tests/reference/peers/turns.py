"""Who takes turns, and how a turn is taken: `rewarm bench`, started anew each time, and workers that stay alive."""
import contextlib
import json
import math
import os
import pathlib
import select
import shutil
import statistics
import subprocess
import sys

from machine import CPUS

HERE = pathlib.Path(__file__).parent
# glibc would give large buffers back to the kernel after each operation, and fault them in again: keep them.
KEEP_PAGES = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TOP_PAD_": str(256 << 20), "MALLOC_TRIM_THRESHOLD_": str(64 << 30), "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
QUIET = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": str(CPUS)}
# Compiled in the process itself: a pool of compilers would stay, and its memory be counted.
COMPILE = {"TORCHINDUCTOR_COMPILE_THREADS": "1"}
PATIENCE = 1800  # seconds for an answer: vLLM and inductor compile for minutes
UNSURE = 2.0  # by how much others may slow one way beside another while peers get ready
# A vLLM worker keeps its engine in its own process, and asks nobody outside.
VLLM = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_HOST_IP": "127.0.0.1"}
# name -> (venv, what the worker is told, environment)
PEERS = {
    "torch as installed": ("torch", {"peer": "torch", "compiler": None, "is_tuned": False}, {}),
    "torch": ("torch", {"peer": "torch", "compiler": None, "is_tuned": True}, KEEP_PAGES),
    "torch, MKL as on Intel": ("torch", {"peer": "torch", "compiler": None, "is_tuned": True}, {**KEEP_PAGES, "LD_PRELOAD": "{folder}/intel.so"}),
    "torch inductor": ("torch", {"peer": "torch", "compiler": "inductor", "is_tuned": True}, KEEP_PAGES),
    "zentorch": ("zentorch", {"peer": "torch", "compiler": "zentorch", "is_tuned": True}, KEEP_PAGES),
    "openvino throughput": ("openvino", {"peer": "openvino", "hint": "THROUGHPUT"}, {}),
    "openvino latency": ("openvino", {"peer": "openvino", "hint": "LATENCY"}, {}),
    "onnxruntime": ("onnxruntime", {"peer": "onnxruntime"}, {}),
    "vllm": ("vllm", {"peer": "vllm", "zentorch": False}, VLLM),
    "vllm + zentorch": ("vllm", {"peer": "vllm", "zentorch": True}, VLLM),
}
TUNED = [name for name in PEERS if name != "torch as installed"]
# what MKL asks before it takes its AVX-512 path: without this it takes the AVX2 one on AMD
INTEL = "int mkl_serv_intel_cpu_true(void) { return 1; }\n"


def setup(folder, name, python):
    """The virtual environment of that name, made by `venvs/NAME.txt` unless it is there; its Python."""
    wanted = (HERE / "venvs" / f"{name}.txt").read_text()
    venv = folder / "venv" / name
    done = venv / "made-of.txt"
    if not done.exists() or done.read_text() != wanted:
        print(f"making {venv}", file=sys.stderr)
        shutil.rmtree(venv, ignore_errors=True)
        subprocess.run([python, "-m", "venv", venv], check=True)
        # Complete lists, as pinned: some peers name packages that PyPI has not (torch==2.13.0+cpu).
        subprocess.run([venv / "bin/pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "-r", HERE / "venvs" / f"{name}.txt"], check=True)
        done.write_text(wanted)
    return venv / "bin/python"


class Unable(Exception):
    """A peer cannot take part, for a reason to be told."""


# Room for another order of summation in f32, relative to the larger of 1 and the reward.
F32_RTOL = 1e-3
# In bf16, relative to how far rewards lie apart (their standard deviation over the samples; of one sample, the larger of 1 and its size): every
# product rounds to 8 bits. transformers' own was 0.02 away on two layers and is further on thirty; a wrong mask or pooling is above 1.
BF16_RTOL = 0.5


def judge(dtype, truth):
    """Checks rewards; gives the largest error, in units of its kind."""
    scale = statistics.pstdev(truth) if len(truth) > 1 else max(1.0, abs(truth[0]))

    def check(who, rewards):
        if not all(map(math.isfinite, rewards)):
            raise Unable(f"{who}: rewards are not finite")
        if dtype == "f32":
            error, limit = max(abs(a - b) / max(1, abs(b)) for a, b in zip(rewards, truth, strict=True)), F32_RTOL
        else:
            error, limit = max(abs(a - b) for a, b in zip(rewards, truth, strict=True)) / scale, BF16_RTOL
        if error > limit:
            raise Unable(f"{who}: rewards differ from transformers' by {error:.2g}, over {limit}")
        return error

    return check


def spread(values, digits=2):
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


class Worker:
    """A peer on one row in one precision."""

    def __init__(self, name, python, folder, task):
        self.name, self.log = name, folder / "log" / (name.replace(" ", "-").replace(",", "") + ".txt")
        _, told, environment = PEERS[name]
        environment = {key: value.format(folder=folder) for key, value in environment.items()}
        scratch = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"), "VLLM_CACHE_ROOT": str(folder / "vllm"), "HF_HOME": str(folder / "hf")}
        with self.log.open("w") as log:
            self.process = subprocess.Popen([python, HERE / "worker.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                                            env={**os.environ, **QUIET, **COMPILE, **scratch, **environment})
        self.pids = [self.process.pid]
        answer = self.ask({**told, **task})
        self.about, self.ways = answer["about"], answer["ways"]

    def ask(self, request):
        try:
            print(json.dumps(request), file=self.process.stdin, flush=True)
        except BrokenPipeError:
            pass  # it says why, or has ended
        if not select.select([self.process.stdout], [], [], PATIENCE)[0]:
            self.process.kill()
            raise Unable(f"no answer in {PATIENCE} seconds")
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": f"ended with {self.process.wait()}: {last_line(self.log)}"}
        if "error" in answer:
            self.close()
            raise Unable(answer["error"])
        return answer

    def take(self, repeats):
        """Seconds of each repeat, and rewards."""
        answer = self.ask({"way": self.way, "repeats": repeats})
        return answer["seconds"], answer["rewards"]

    def try_ways(self, judge):
        """Tries all ways, checks what they answer, and keeps those that may be the fastest; the largest error. All is compiled then."""
        seconds, error = {}, 0.0
        for way in self.ways:
            answer = self.ask({"way": way, "repeats": 1})
            error = max(error, judge(f"{self.name}, {way}", answer["rewards"]))
            [seconds[way]] = answer["seconds"]
        best = min(seconds.values())
        self.ways = [way for way in self.ways if seconds[way] <= UNSURE * best]
        return error

    def choose(self):
        """Keeps the fastest way, on a machine that is quiet now."""
        seconds = {way: min(self.ask({"way": way, "repeats": 2})["seconds"]) for way in self.ways}
        self.way = min(seconds, key=seconds.get)
        self.seconds = seconds[self.way]

    def close(self):
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def last_line(path):
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no word"


class Rewarm:
    """The binary on one row in one precision."""

    name, way, pids = "rewarm", "packed", ()  # a turn's process ends with it

    def __init__(self, binary, folder, checkpoint, row, dtype):
        self.binary, self.folder, self.checkpoint, self.row, self.dtype = binary, folder, checkpoint, row, dtype
        self.lines = folder / f"{row.name}.jsonl"
        self.lines.write_text("".join(json.dumps({"token_ids": ids}) + "\n" for ids in row.samples()))

    def run(self, *words):
        ran = subprocess.run([self.binary, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if ran.returncode:
            raise SystemExit(f"rewarm {' '.join(map(str, words))}: {ran.stderr.strip()}")
        return ran.stdout

    def rewards(self):
        lines = self.run("score", "--model", self.checkpoint, "--dtype", self.dtype, "--input", self.lines).splitlines()
        return [json.loads(line)["reward"] for line in lines]

    def take(self, repeats):
        """Seconds of each repeat after one untimed, as a worker has it; no rewards: `rewards` has them."""
        file, common = self.folder / "rewarm.json", ["--model", self.checkpoint, "--dtype", self.dtype, "--warmup-rounds", 1]
        if self.row.prompt:
            self.run("bench", "group", *common, "--prompt-tokens", self.row.prompt, "--responses", len(self.row.lengths),
                     "--response-tokens", self.row.lengths[0], "--rounds", repeats, "--json", file)
            [found] = json.loads(file.read_text())["report"]["variants"]
            return [found["shared_seconds"]["median"]], None
        self.run("bench", "model", *common, "--lengths", self.lines, "--rounds", repeats, "--json", file)
        [found] = json.loads(file.read_text())["report"]["variants"]
        return found["seconds"], None

    def try_ways(self, judge):
        return judge(self.name, self.rewards())

    def choose(self):
        self.seconds = statistics.median(self.take(1)[0])

    def close(self):
        pass
