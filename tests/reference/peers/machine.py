"""The machine under the measurement: who else ran, what it could do at most, what a process holds."""
import json
import os
import pathlib
import subprocess

TICKS = os.sysconf("SC_CLK_TCK")
CPUS = len(os.sched_getaffinity(0))
# Of the time of all CPUs in a turn, what others may take. One percent is what an idle machine's own daemons take.
DISTURBED = 0.03
PAUSE = 5  # seconds before a disturbed round is repeated: who disturbed may be done then


def cpu():
    """Name and instruction sets that matter here."""
    facts = dict(line.split(":", 1) for line in pathlib.Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines() if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    flags = set(facts.get("flags", facts.get("Features", "")).split())
    wanted = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16") if flag in flags]
    return facts.get("model name", os.uname().machine), wanted


def binds(flags):
    """Whether the targets of the issue are for this CPU: AVX-512 with dot products of bfloat16, without AMX."""
    return "avx512_bf16" in flags and "amx_bf16" not in flags


def busy():
    """Seconds that all CPUs have worked, stolen time with them."""
    user, nice, system, _idle, _wait, irq, soft, stolen = map(int, pathlib.Path("/proc/stat").read_text().splitlines()[0].split()[1:9])
    return (user + nice + system + irq + soft + stolen) / TICKS


def family(pid):
    """A process and all that came from it."""
    found, todo = [], [pid]
    while todo:
        one = todo.pop()
        found.append(one)
        try:
            for task in os.listdir(f"/proc/{one}/task"):
                todo += map(int, pathlib.Path(f"/proc/{one}/task/{task}/children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            pass
    return found


def worked(pid, is_alone=False):
    """Seconds of CPU of a process with those it has waited for, and of all that came from it unless `is_alone`."""
    total = 0
    for one in [pid] if is_alone else family(pid):
        try:
            fields = pathlib.Path(f"/proc/{one}/stat").read_text().rsplit(")", 1)[1].split()
            total += sum(map(int, fields[11:15]))
        except (FileNotFoundError, ProcessLookupError):
            pass
    return total / TICKS


def resident(pid):
    """Megabytes in memory: of pages that several map, a share."""
    total = 0
    for one in family(pid):
        try:
            lines = pathlib.Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):  # has ended meanwhile
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


class Watch:
    """with Watch(pids) as watch: ...; then watch.others is the share of all CPUs' time that went to anybody but those processes and
    what this one has started and waited for: to a peer too that does not sit still while it waits."""

    def __init__(self, pids=()):
        self.pids = pids

    def read(self):
        return os.times().elapsed, busy(), worked(os.getpid(), is_alone=True) + sum(map(worked, self.pids))

    def __enter__(self):
        self.begin = self.read()
        return self

    def __exit__(self, *_):
        elapsed, work, own = (end - begin for end, begin in zip(self.read(), self.begin))
        # both clocks tick in hundredths, for every CPU
        self.others = max(0.0, work - own - 0.02 * CPUS) / max(elapsed, 0.01) / CPUS

    @property
    def is_disturbed(self):
        return self.others > DISTURBED


class Peak:
    """The largest rates seen in this run, by `peak.c`; measured again beside every row."""

    def __init__(self, folder):
        self.program, self.best = folder / "peak", {"f32": 0.0, "bf16": 0.0}
        source = pathlib.Path(__file__).with_name("peak.c")
        subprocess.run([os.environ.get("CC", "cc"), "-O3", "-march=native", "-pthread", source, "-o", self.program], check=True)

    def measure(self):
        found = json.loads(subprocess.run([self.program, str(CPUS)], stdout=subprocess.PIPE, check=True).stdout)
        self.best = {name: max(rate, self.best[name]) for name, rate in found.items()}
        return self.best
