"""What TLS and tokens cost, and what a server under load does for long: overload, reloads, SIGTERMs. By hand.

    python tests/reference/endurance.py overhead  REWARM [--against OTHER_REWARM]    and transformers, torch with --shape minilm
    python tests/reference/endurance.py overload  REWARM [--minutes 10]                and these
    python tests/reference/endurance.py reloads   REWARM [--count 1000]
    python tests/reference/endurance.py sigterms  REWARM [--count 100]

Takes grpcio and trustme. The caller is gRPC's own Python, not a client of ours (overhead: `rewarm bench server`, of the same build for all).
Callers run on the same cores as the server. Exits 1 where a bound below is not kept.

Bounds: p50 of a single small sample over TLS with tokens at most 1.1 times, and throughput at least 0.95 times, that of plain text of the
other build. Ten times what it can do, for minutes: goodput at least 0.95 of capacity, p99 of what is admitted within its deadline, memory
that stays. Reloads and SIGTERMs under load: every request is answered, once, with the reward that it always has.
"""
from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import hashlib
import itertools
import json
import os
import pathlib
import random
import re
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import grpc
import trustme

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "clients/python/src"))
sys.path.append(str(ROOT / "tests/support"))

from models import DEMO, minilm
from ports import free_port
from rewarm.v1 import admin_pb2, admin_pb2_grpc, reward_pb2, reward_pb2_grpc

TOKEN = secrets.token_hex(32)
failed = False


def held(name: str, value: float, bound: float, at_least: bool) -> None:
    global failed
    is_held = value >= bound if at_least else value <= bound
    failed |= not is_held
    print(f"{'' if is_held else 'NOT HELD: '}{name}: {value:.3f} ({'at least' if at_least else 'at most'} {bound})", flush=True)


class Server:
    """The program, as an operator starts it; the same ports at every start."""

    def __init__(self, binary: str, folder: pathlib.Path, variant: dict, closed: bool, **server: object):
        self.binary, self.folder, self.closed = binary, folder, closed
        folder.mkdir()
        self.ports = [free_port() for _ in range(3)]
        listen, admin, metrics = (f"127.0.0.1:{port}" for port in self.ports)
        config = {"variants.rm": variant, "log": {"format": "json"}}
        config["server"] = {"listen": listen, "admin": admin, "metrics": metrics, "drain_grace_seconds": 0, **server}
        if closed:
            authority = trustme.CA()
            authority.cert_pem.write_to_path(folder / "ca.pem")
            own = authority.issue_cert("localhost")
            own.private_key_pem.write_to_path(folder / "tls.key")
            own.cert_chain_pems[0].write_to_path(folder / "tls.crt")
            (folder / "token").write_text(TOKEN)
            digest = hashlib.sha256(TOKEN.encode()).hexdigest()
            (folder / "tokens.toml").write_text(f'[tokens.trainer]\nsha256 = "{digest}"\nallow = ["score", "metrics", "admin"]\n')
            config["server"]["tokens"] = "tokens.toml"
            config["server.tls"] = {"certificate": "tls.crt", "key": "tls.key"}
        self.config = folder / "rewarm.toml"
        self.config.write_text("".join(toml(name, table) for name, table in config.items()))
        self.log = folder / "log"
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([self.binary, "serve", "--config", str(self.config)], stdout=log, stderr=log)

    def channel(self, port: int = 0) -> grpc.aio.Channel:
        target = f"localhost:{self.ports[port]}"
        if not self.closed:
            return grpc.aio.insecure_channel(target)
        tls = grpc.ssl_channel_credentials((self.folder / "ca.pem").read_bytes())
        return grpc.aio.secure_channel(target, grpc.composite_channel_credentials(tls, grpc.access_token_call_credentials(TOKEN)))

    def flags(self) -> list[str]:
        if not self.closed:
            return ["--server", f"http://127.0.0.1:{self.ports[0]}"]
        return ["--server", f"https://localhost:{self.ports[0]}", "--ca", str(self.folder / "ca.pem"),
                "--token-file", str(self.folder / "token")]

    def memory(self) -> int:
        """Resident, in MiB."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) // 1024

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def toml(name: str, table: dict) -> str:
    return f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())


def tokens(seed: int, length: int) -> reward_pb2.Sample:
    """Random token ids."""
    ids = random.Random(seed).choices(range(1000, 3000), k=length)
    return reward_pb2.Sample(token_ids=reward_pb2.TokenIds(ids=ids))


def request(name: str, seeds: list[int], length: int) -> reward_pb2.ScoreRequest:
    return reward_pb2.ScoreRequest(request_id=name, samples=[tokens(seed, length) for seed in seeds])


async def ready(server: Server) -> None:
    async with server.channel() as channel:
        await channel.channel_ready()
        stub = reward_pb2_grpc.RewardServiceStub(channel)
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                await stub.Score(request("ready", [0], 16), wait_for_ready=True)
                return
            await asyncio.sleep(0.02)


# ---- overhead ----

def overhead(args: argparse.Namespace, folder: pathlib.Path) -> None:
    variant = DEMO if args.shape == "demo" else minilm(folder / "minilm")
    lengths, per_request = ("16..64x1024", 16) if args.shape == "demo" else ("128x64", 8)
    kinds = {"other, plain": (args.against or args.binary, False), "plain": (args.binary, False), "TLS and tokens": (args.binary, True)}
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    with contextlib.ExitStack() as stack:
        servers = {kind: stack.enter_context(Server(binary, folder / f"server-{index}", variant, closed))
                   for index, (kind, (binary, closed)) in enumerate(kinds.items())}
        for server in servers.values():
            asyncio.run(ready(server))
        for turn in range(args.turns):
            for kind in list(kinds)[::1 if turn % 2 == 0 else -1]:
                report = folder / "report.json"
                subprocess.run([args.binary, "bench", "server", *servers[kind].flags(), "--lengths", lengths, "--vocab-size", "3000",
                                "--samples-per-request", str(per_request), "--callers", "8", "--singles", "200", "--rounds", "1",
                                "--warmup-rounds", "1" if turn == 0 else "0", "--json", str(report)], check=True, stdout=subprocess.DEVNULL)
                said = json.loads(report.read_text())["report"]["variants"][0]
                found[kind].append((said["closed"]["samples_per_second"]["median"], said["single"]["served_p50_ms"]))
    for kind in kinds:
        rates, singles = zip(*found[kind])
        print(f"{kind}: {statistics.median(rates):.0f} samples/s, a single sample p50 {statistics.median(singles):.3f} ms")
    for kind in list(kinds)[1:]:
        rates, singles = ([ours[i] / other[i] for ours, other in zip(found[kind], found["other, plain"])] for i in range(2))
        held(f"{kind}, throughput", statistics.median(rates), 0.95, True)
        held(f"{kind}, p50 of a single sample", statistics.median(singles), 1.1, False)


# ---- overload ----

# of a request: so that asking ten times too often, and being refused, takes few of the cores that the server computes on
SAMPLES = 16


async def overload(args: argparse.Namespace, folder: pathlib.Path) -> None:
    variant = minilm(folder / "minilm")
    with Server(args.binary, folder / "server", variant, True) as server:
        await ready(server)
        channels = [server.channel() for _ in range(8)]
        stubs = itertools.cycle(reward_pb2_grpc.RewardServiceStub(channel) for channel in channels)
        ids = itertools.count()

        async def call(deadline: float, counts: collections.Counter, times: list[float]) -> None:
            begin = time.perf_counter()
            number = next(ids)
            try:
                await next(stubs).Score(request(str(number), [number * SAMPLES + i for i in range(SAMPLES)], 128), timeout=deadline)
                counts["OK"] += 1
                times.append(time.perf_counter() - begin)
            except grpc.aio.AioRpcError as error:
                counts[error.code().name] += 1

        async def closed(seconds: float) -> float:
            end, counts = time.monotonic() + seconds, collections.Counter()

            async def caller() -> None:
                while time.monotonic() < end:
                    await call(60, counts, [])
            begin = time.monotonic()
            await asyncio.gather(*(caller() for _ in range(16)))
            assert set(counts) == {"OK"}, counts
            return counts["OK"] / (time.monotonic() - begin)

        capacity = await closed(args.seconds)
        print(f"capacity: {capacity:.1f} requests of {SAMPLES} x 128 tokens a second", flush=True)
        counts, times, memory, open_calls = collections.Counter(), [], [], set()
        begin = due = time.monotonic()
        seen, spent = begin, time.process_time()
        while due < begin + args.minutes * 60:
            due += random.expovariate(10 * capacity)
            if due > time.monotonic():
                await asyncio.sleep(due - time.monotonic())
            task = asyncio.create_task(call(args.deadline, counts, times))
            open_calls.add(task)
            task.add_done_callback(open_calls.discard)
            if time.monotonic() - seen > 2:
                seen = time.monotonic()
                memory.append(server.memory())
        lasted = time.monotonic() - begin
        asking = (time.process_time() - spent) / lasted / os.cpu_count()
        await asyncio.gather(*open_calls)
        times.sort()
        offered = sum(counts.values())
        print(f"{offered} requests in {lasted:.0f} s, {offered / lasted / capacity:.1f} times capacity: {dict(counts)}; "
              f"p50 {times[len(times) // 2]:.2f} s, p99 {times[len(times) * 99 // 100]:.2f} s, slowest {times[-1]:.2f} s; "
              f"memory {memory[0]} MiB, then {memory[len(memory) // 4]} to {max(memory)}, at the end {memory[-1]}; the callers took {asking:.1%} of the CPUs")
        after = await closed(args.seconds)
        held("goodput by capacity (before and after)", counts["OK"] / lasted / statistics.mean([capacity, after]), 0.95, True)
        held("p99 of what is admitted by its deadline", times[len(times) * 99 // 100] / args.deadline, 1, False)
        held("answered with other than OK and RESOURCE_EXHAUSTED", offered - counts["OK"] - counts["RESOURCE_EXHAUSTED"], offered / 1000, False)
        held("memory at the end by that after a quarter", memory[-1] / memory[len(memory) // 4], 1.05, False)
        for channel in channels:
            await channel.close()


# ---- reloads and SIGTERMs ----

class Load:
    """Callers, unary and in streams, that send each request again until it is answered; and what became of each."""

    KINDS = 64

    def __init__(self, server: Server):
        self.server, self.is_over = server, False
        self.expected: list[list[int]] = []
        #: answers of each request; attempts that failed, by code
        self.answers, self.failures = collections.Counter(), collections.Counter()
        self.wrong: list[str] = []
        self.sent = itertools.count()
        self.answered_by_trace: set[str] = set()
        self.failed_traces: set[str] = set()

    def next(self) -> reward_pb2.ScoreRequest:
        number = next(self.sent)
        return request(str(number), [number % self.KINDS * 3 + i for i in range(3)], 24)

    def check(self, answer: reward_pb2.ScoreResponse) -> None:
        self.answers[answer.request_id] += 1
        bits = [result.score.reward.hex() for result in answer.results]
        if self.expected and bits != self.expected[int(answer.request_id) % self.KINDS]:
            self.wrong.append(f"{answer.request_id}: {bits}")

    async def learn(self) -> None:
        async with self.server.channel() as channel:
            stub = reward_pb2_grpc.RewardServiceStub(channel)
            for kind in range(self.KINDS):
                answer = await stub.Score(request(str(kind), [kind * 3 + i for i in range(3)], 24))
                self.expected.append([result.score.reward.hex() for result in answer.results])

    async def unary(self) -> None:
        async with self.server.channel() as channel:
            stub = reward_pb2_grpc.RewardServiceStub(channel)
            while not self.is_over:
                asked = self.next()
                while True:
                    trace = secrets.token_hex(16)
                    try:
                        answer = await stub.Score(asked, timeout=30, wait_for_ready=True,
                                                  metadata=[("traceparent", f"00-{trace}-{secrets.token_hex(8)}-01")])
                        self.answered_by_trace.add(trace)
                        self.check(answer)
                        break
                    except grpc.aio.AioRpcError as error:
                        self.failed_traces.add(trace)
                        self.failures[error.code().name] += 1
                        await asyncio.sleep(0.01)

    async def stream(self) -> None:
        async with self.server.channel() as channel:
            stub = reward_pb2_grpc.RewardServiceStub(channel)
            waiting: dict[str, reward_pb2.ScoreRequest] = {}
            while not self.is_over or waiting:
                call, room = stub.ScoreStream(wait_for_ready=True), asyncio.Semaphore(8)
                writer = asyncio.create_task(self.write(call, waiting, room))
                with contextlib.suppress(grpc.aio.AioRpcError):
                    while (answer := await call.read()) is not grpc.aio.EOF:
                        if answer.HasField("error"):
                            self.wrong.append(f"{answer.request_id}: {answer.error}")
                        else:
                            self.check(answer)
                        waiting.pop(answer.request_id, None)
                        room.release()
                writer.cancel()
                await asyncio.gather(writer, return_exceptions=True)
                if await call.code() != grpc.StatusCode.OK:
                    self.failures[f"stream: {(await call.code()).name}, {await call.details()}"] += 1
                    await asyncio.sleep(0.01)

    async def write(self, call: grpc.aio.StreamStreamCall, waiting: dict[str, reward_pb2.ScoreRequest], room: asyncio.Semaphore) -> None:
        """What got no answer on the stream before, then the next ones, eight at a time."""
        again = list(waiting.values())
        while again or not self.is_over:
            await room.acquire()
            asked = again.pop() if again else self.next()
            waiting[asked.request_id] = asked
            await call.write(asked)
        await call.done_writing()

    def report(self, what: str) -> None:
        sent = next(self.sent)
        twice = sum(count > 1 for count in self.answers.values())
        print(f"{what}: {sent} requests under way meanwhile; attempts that were sent again: {dict(self.failures)}; memory {self.server.memory()} MiB")
        held("requests without an answer", sent - len(self.answers), 0, False)
        held("requests answered twice", twice, 0, False)
        held("wrong answers", len(self.wrong), 0, False)
        for line in self.wrong[:3]:
            print(" ", line)


async def reloads(args: argparse.Namespace, folder: pathlib.Path) -> None:
    with Server(args.binary, folder / "server", DEMO, True) as server:
        await ready(server)
        load = Load(server)
        await load.learn()
        callers = [asyncio.create_task(caller()) for caller in [load.unary] * 4 + [load.stream] * 4]
        memory = []
        async with server.channel(1) as channel:
            stub = admin_pb2_grpc.AdminServiceStub(channel)
            for index in range(args.count):
                answer = await stub.Reload(admin_pb2.ReloadRequest())
                assert not answer.changes, answer
                if index % (args.count // 10) == 0:
                    memory.append(server.memory())
        load.is_over = True
        await asyncio.gather(*callers)
        load.report(f"{args.count} reloads")
        held("attempts that failed", sum(load.failures.values()), 0, False)
        print("memory on the way, MiB:", memory)
        held("memory of the last third by that of the second", statistics.mean(memory[-3:]) / statistics.mean(memory[-6:-3]), 1.1, False)


async def sigterms(args: argparse.Namespace, folder: pathlib.Path) -> None:
    with Server(args.binary, folder / "server", DEMO, True) as server:
        server.config.write_text(server.config.read_text() + "[server.access_log]\nfraction = 1\n")
        server.stop()
        server.start()
        await ready(server)
        load = Load(server)
        await load.learn()
        callers = [asyncio.create_task(caller()) for caller in [load.unary] * 4 + [load.stream] * 4]
        codes = collections.Counter()
        for _ in range(args.count):
            await asyncio.sleep(random.uniform(0.1, 0.6))
            codes[await asyncio.to_thread(server.stop)] += 1
            server.start()
        await ready(server)
        await asyncio.sleep(1)
        load.is_over = True
        await asyncio.gather(*callers)
        load.report(f"{args.count} SIGTERMs, exit codes {dict(codes)}")
        held("exits with another code than 0", args.count - codes[0], 0, False)
        server.stop()
        traces = load.answered_by_trace | load.failed_traces
        answered = collections.Counter()
        for line in server.log.read_text().splitlines():
            if '"rewarm::access"' in line:
                event = json.loads(line)
                if event["code"] == "OK" and event["method"] == "Score" and event.get("trace") in traces:
                    answered[event.get("trace")] += 1
        server.start()
        print(f"attempts that the server answered: {len(answered)}; that the caller saw: {len(load.answered_by_trace)}")
        held("answers that the server gave and no caller got", len(set(answered) & load.failed_traces), 0, False)
        held("answers that a caller got and the server's log lacks", len(load.answered_by_trace - set(answered)), 0, False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["overhead", "overload", "reloads", "sigterms"])
    parser.add_argument("binary", metavar="REWARM")
    parser.add_argument("--against", metavar="REWARM", help="overhead: the build that plain text is measured of")
    parser.add_argument("--shape", choices=["demo", "minilm"], default="demo", help="overhead: of which model")
    parser.add_argument("--turns", type=int, default=9, help="overhead: rounds")
    parser.add_argument("--minutes", type=float, default=10, help="overload: how long")
    parser.add_argument("--seconds", type=float, default=20, help="overload: how long capacity is measured, before and after")
    parser.add_argument("--deadline", type=float, default=2, help="overload: of each request, in seconds")
    parser.add_argument("--count", type=int, help="reloads, SIGTERMs [default: 1000, 100]")
    args = parser.parse_args()
    args.count = args.count or (100 if args.what == "sigterms" else 1000)
    args.binary = os.path.abspath(args.binary)
    with tempfile.TemporaryDirectory() as folder:
        run = globals()[args.what](args, pathlib.Path(folder))
        if run is not None:
            asyncio.run(run)
    sys.exit(failed)


if __name__ == "__main__":
    main()
