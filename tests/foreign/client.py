#!/usr/bin/env python3
"""A client that is not ours, against the real program; run it through tests/foreign/run.

    python tests/foreign/client.py target/debug/rewarm

It knows the contract from the server alone, by reflection, and speaks JSON, as grpcurl does: no code generated from
our proto, no library of ours.

One server on free ports of 127.0.0.1 serves the demo family (warm, ens) and, because the demo has no chat template, a
tiny Llama that has one (chat). One line per check, and at the end `N passed, N failed`; exits 1 when one failed.
"""
import json
import math
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import urllib.request

import grpc
from google.protobuf import json_format
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

ROOT = pathlib.Path(__file__).resolve().parents[2]
README = "".join(path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *sorted((ROOT / "docs/pages").glob("*.md"))])
GOLDEN = json.loads((ROOT / "tests/data/demo_golden.json").read_text(encoding="utf-8"))["samples"]
MEMBERS = [str(ROOT / f"deploy/demo/member-{i}") for i in range(4)]
CHAT_MODEL = ROOT / "tests/data/models/llama"

SERVICE = "rewarm.v1.RewardService"
ADMIN = "rewarm.v1.AdminService"
PROMPT = GOLDEN[0]["prompt"]
# Room for another order of summation in f32, and nothing else.
F32_ATOL = 1e-5
# The golden WARM is rounded to f16, as it would be stored; ours is merged at load, in f32.
F16_MERGE_ATOL = 1e-2
# No call and no wait of this script lasts longer.
LIMIT_SECONDS = 120


def config(variants):
    """A configuration with these of the three variants."""
    known = {
        "warm": {"mode": "warm", "members": MEMBERS},
        "ens": {"mode": "ens", "members": MEMBERS, "reduction": "mean"},
        "chat": {"mode": "warm", "model": str(CHAT_MODEL)},
    }
    lines = ["[server]", "drain_grace_seconds = 1"]
    for name in variants:
        # A JSON string or array of strings is TOML too.
        lines += [f"[variants.{name}]"] + [f"{key} = {json.dumps(value)}" for key, value in known[name].items()]
    return "\n".join(lines + ["[routing]", "weights = { warm = 1 }"]) + "\n"


class Server:
    """A running `rewarm serve`, known by its log."""

    def __init__(self, program, folder):
        self.config = folder / "rewarm.toml"
        self.config.write_text(config(["warm", "ens", "chat"]), encoding="utf-8")
        arguments = [program, "serve", "--config", str(self.config), "--log-format", "json"]
        for listener in ["--listen", "--admin", "--metrics"]:
            arguments += [listener, "127.0.0.1:0"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("REWARM_")}
        self.process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=environment)
        self.log = []
        self.ready = threading.Event()
        threading.Thread(target=self._read_log, daemon=True).start()
        if not self.ready.wait(LIMIT_SECONDS) or self.process.poll() is not None:
            raise SystemExit("FAILED the server did not become ready:\n" + "".join(self.log))

    def _read_log(self):
        for line in self.process.stderr:
            self.log.append(line)
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # the check of the log complains
            if entry.get("message") == "listening":
                self.listen, self.admin, self.metrics = entry["listen"], entry["admin"], entry["metrics"]
            if entry.get("message") == "readiness changed":
                self.ready.set()
        self.ready.set()

    def scrape(self):
        """/metrics as {(name, frozenset of (label, value)): value}."""
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=LIMIT_SECONDS) as answer:
            text = answer.read().decode()
        series = {}
        for line in text.splitlines():
            if line and not line.startswith("#"):
                name, labels, value = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line).groups()
                series[name, frozenset(re.findall(r'(\w+)="([^"]*)"', labels or ""))] = float(value)
        return series

    def total(self, name, **labels):
        """The sum of the series of this name with at least these labels."""
        return sum(v for (n, found), v in self.scrape().items() if n == name and labels.items() <= set(found))


class Remote:
    """The services behind one address, as far as the server itself describes them."""

    def __init__(self, address):
        self.channel = grpc.insecure_channel(address, [("grpc.max_receive_message_length", -1)])
        self.database = ProtoReflectionDescriptorDatabase(self.channel)
        self.pool = DescriptorPool(self.database)

    def method(self, service, name):
        """Path, request class and response class of a method."""
        method = self.pool.FindServiceByName(service).FindMethodByName(name)
        return f"/{service}/{name}", GetMessageClass(method.input_type), GetMessageClass(method.output_type)

    def unary(self, service, name):
        """The method as a grpc callable from JSON-like data."""
        path, request, response = self.method(service, name)
        return self.channel.unary_unary(
            path,
            request_serializer=lambda data: json_format.ParseDict(data, request()).SerializeToString(),
            response_deserializer=lambda data: decode(response, data),
        )

    def call(self, service, method, data, timeout=LIMIT_SECONDS):
        return self.unary(service, method)(data, timeout=timeout)

    def score(self, samples, timeout=LIMIT_SECONDS, **fields):
        return self.call(SERVICE, "Score", {"samples": samples, **fields}, timeout)

    def stream(self, requests, timeout=LIMIT_SECONDS):
        path, request, response = self.method(SERVICE, "ScoreStream")
        call = self.channel.stream_stream(
            path,
            request_serializer=lambda data: json_format.ParseDict(data, request()).SerializeToString(),
            response_deserializer=lambda data: decode(response, data),
        )
        return call(requests, timeout=timeout)

    def raw(self, data, name="Score"):
        path, _, _ = self.method(SERVICE, name)
        return self.channel.unary_unary(path, request_serializer=lambda raw: raw)(data, timeout=LIMIT_SECONDS)


def decode(message, data):
    options = {"preserving_proto_field_name": True, "always_print_fields_with_no_presence": True}
    return json_format.MessageToDict(message.FromString(data), **options)


def sample(response, prompt=PROMPT, **fields):
    return {"text": {"prompt": prompt, "response": response}, **fields}


def rewards(response):
    """The reward of each sample; fails when one has none."""
    for result in response["results"]:
        assert "score" in result, f"no reward: {result}"
    found = [result["score"]["reward"] for result in response["results"]]
    assert all(isinstance(reward, float) and math.isfinite(reward) for reward in found), found
    return found


def assert_close(what, ours, theirs, tolerance=F32_ATOL):
    assert abs(ours - theirs) <= tolerance * max(1.0, abs(theirs)), f"{what}: {ours}, expected {theirs}"


def failure(call, *codes):
    """The status a call fails with; it must be one of `codes`."""
    try:
        answer = call()
    except grpc.RpcError as error:
        assert error.code() in codes, f"{error.code()}: {error.details()}; expected one of {codes}"
        return error
    raise AssertionError(f"answered {str(answer)[:200]}; expected one of {codes}")


def details(error, kind):
    """The google.rpc details of this kind that a status carries."""
    found = []
    for packed in rpc_status.from_call(error).details:
        if packed.Is(kind.DESCRIPTOR):
            found.append(kind.FromString(packed.value))
    return found


def bad_fields(error):
    return [violation.field for detail in details(error, error_details_pb2.BadRequest)
            for violation in detail.field_violations]


def until(what, condition):
    """Waits for it, not for long."""
    end = time.monotonic() + LIMIT_SECONDS
    while not condition():
        assert time.monotonic() < end, f"waited {LIMIT_SECONDS} s in vain: {what}"
        time.sleep(0.02)


def sentences(count, seed):
    """So many different short responses, the same for the same seed."""
    chance = random.Random(seed)
    people, verbs = ["I", "My sister", "The neighbour", "A stranger"], ["won", "broke", "found", "lost", "ate", "fixed"]
    things = ["the lottery", "my leg", "a perfect shell", "my job", "a cake", "the old car", "nothing at all"]
    return [
        f"{chance.choice(people)} {chance.choice(verbs)} {chance.choice(things)}" + " and again" * chance.randrange(12)
        + f", number {seed}{index}." for index in range(count)
    ]


def blocks(language):
    """The code blocks of README and pages in this language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


# The checks, in order; the last ones stop the server.


def reflection_lists_the_services_of_each_port(server, remote, admin):
    common = {"grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"}
    listed = set(remote.database.get_services())
    assert SERVICE in listed and ADMIN not in listed, listed
    assert listed <= {SERVICE, "inference.GRPCInferenceService"} | common, listed
    assert ADMIN in set(admin.database.get_services()), admin.database.get_services()
    methods = {method.name for method in remote.pool.FindServiceByName(SERVICE).methods}
    assert methods == {"Score", "ScoreStream", "GetServerInfo"}, methods


def server_info_names_variants_members_and_limits(server, remote, admin):
    info = remote.call(SERVICE, "GetServerInfo", {})
    variants = {variant["name"]: variant for variant in info["variants"]}
    assert set(variants) == {"warm", "ens", "chat"}, set(variants)
    assert variants["warm"]["mode"] == "warm" and variants["ens"]["mode"] == "ens"
    for name in ["warm", "ens"]:
        assert [member["path"] for member in variants[name]["members"]] == MEMBERS
    assert variants["warm"]["members"][0]["coefficient"] == 0.25
    assert variants["ens"]["reduction"] == "mean" and variants["warm"]["reduction"] == ""
    assert len({variant["fingerprint"] for variant in variants.values()}) == 3
    assert info["max_samples_per_request"] == 1024 and info["version"]
    assert info["routing"]["weights"]["warm"] == 1.0, info["routing"]


def rewards_equal_the_golden_ones_of_transformers(server, remote, admin):
    samples = [sample(golden["response"], golden["prompt"], id=str(i)) for i, golden in enumerate(GOLDEN)]
    ens = remote.score(samples, variant="ens", return_members=True)
    warm = remote.score(samples, variant="warm")
    assert [result["id"] for result in ens["results"]] == [str(i) for i in range(len(GOLDEN))]
    for golden, of_ens, of_warm, result in zip(GOLDEN, rewards(ens), rewards(warm), ens["results"], strict=True):
        what = golden["response"]
        assert_close(what, of_ens, golden["ens"])
        assert_close(what, of_warm, golden["warm"], F16_MERGE_ATOL)
        score = result["score"]
        assert score["tokens"] == len(golden["token_ids"]) and score["truncated_tokens"] == 0, score
        for ours, theirs in zip(score["member_rewards"], golden["member_rewards"], strict=True):
            assert_close(what, ours, theirs)
        mean = sum(golden["member_rewards"]) / 4
        std = math.sqrt(sum((reward - mean) ** 2 for reward in golden["member_rewards"]) / 4)
        assert_close(what, score["reward_std"], std)


def all_four_kinds_of_input_are_scored(server, remote, admin):
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "well"}]
    golden = json.loads((CHAT_MODEL / "golden.json").read_text(encoding="utf-8"))["samples"][3]
    response = remote.score([
        {"id": "text", "text": {"prompt": "hello", "response": "well"}},
        {"id": "conversation", "conversation": {"messages": messages}},
        {"id": "formatted", "formatted": "hello well"},
        {"id": "token_ids", "token_ids": {"ids": golden["token_ids"]}},
    ], variant="chat")
    by_kind = dict(zip([result["id"] for result in response["results"]], rewards(response), strict=True))
    assert len(by_kind) == 4 and response["variant"] == "chat"
    assert_close("a conversation of two turns is that text", by_kind["conversation"], by_kind["text"])
    assert abs(by_kind["formatted"] - by_kind["text"]) > 0.01, "formatted text goes through no template"
    assert_close("token ids", by_kind["token_ids"], golden["reward"])


def two_callers_with_thousands_of_samples_get_them_in_order(server, remote, admin):
    outcome = {}

    def caller(seed):
        try:
            own = Remote(server.listen)
            texts = sentences(1500, seed)
            variant = "warm" if seed == 1 else "ens"
            score = own.unary(SERVICE, "Score")
            calls = [score.future({
                "samples": [sample(text, id=f"{seed}-{start + i}") for i, text in enumerate(texts[start:start + 250])],
                "variant": variant, "request_id": str(start),
            }, timeout=LIMIT_SECONDS) for start in range(0, 1500, 250)]
            together, ids = [], []
            for start, call in zip(range(0, 1500, 250), calls, strict=True):
                response = call.result()
                assert response["request_id"] == str(start)
                together += rewards(response)
                ids += [result["id"] for result in response["results"]]
            assert ids == [f"{seed}-{i}" for i in range(1500)], "ids are out of order"
            alone = [score.future({"samples": [sample(text)], "variant": variant}, timeout=LIMIT_SECONDS)
                     for text in texts]
            for text, among_others, call in zip(texts, together, alone, strict=True):
                [single] = rewards(call.result())
                assert abs(single - among_others) <= F32_ATOL, f"{text}: {single} alone, {among_others} among others"
            assert len({round(reward, 4) for reward in together}) > 500, "rewards do not differ enough to show an order"
        except BaseException as error:  # the main thread raises it
            outcome[seed] = error

    scored = server.total("rewarm_samples_total", outcome="scored")
    threads = [threading.Thread(target=caller, args=(seed,)) for seed in [1, 2]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in outcome.values():
        raise error
    assert server.total("rewarm_samples_total", outcome="scored") - scored == 2 * 2 * 1500


def a_stream_answers_each_request_once_by_its_id(server, remote, admin):
    texts = sentences(300, 3)
    # many requests in flight, of different sizes and variants, and one that is bad
    requests = {f"r{i}": {"request_id": f"r{i}", "variant": ["warm", "ens"][i % 2],
                          "samples": [sample(text, id=text) for text in texts[i:i + 1 + i % 7]]} for i in range(200)}
    requests["bad"] = {"request_id": "bad", "samples": []}
    answers = {}
    for response in remote.stream(iter(requests.values())):
        assert response["request_id"] not in answers, "answered twice"
        answers[response["request_id"]] = response
    assert set(answers) == set(requests)
    assert answers.pop("bad")["error"]["code"] == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    for name, response in answers.items():
        expected = [s["id"] for s in requests[name]["samples"]]
        assert [result["id"] for result in response["results"]] == expected
        assert response["variant"] == requests[name]["variant"] and "error" not in response
    [again] = rewards(remote.score([sample(texts[0])], variant="warm"))
    assert_close("streamed and single", rewards(answers["r0"])[0], again)


def health_is_served_by_process_service_and_variant(server, remote, admin):
    stub = health_pb2_grpc.HealthStub(remote.channel)
    for name in ["", SERVICE, "warm", "ens", "chat"]:
        answer = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=LIMIT_SECONDS)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING, f"{name}: {answer}"
    failure(lambda: stub.Check(health_pb2.HealthCheckRequest(service="nobody"), timeout=LIMIT_SECONDS),
            grpc.StatusCode.NOT_FOUND)
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=LIMIT_SECONDS)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()


def a_pinned_fingerprint_must_match(server, remote, admin):
    info = remote.call(SERVICE, "GetServerInfo", {})
    [pin] = [variant["fingerprint"] for variant in info["variants"] if variant["name"] == "ens"]
    response = remote.score([sample("I won.")], variant="ens", expected_fingerprint=pin)
    assert response["fingerprint"] == pin
    error = failure(lambda: remote.score([sample("I won.")], variant="warm", expected_fingerprint=pin),
                    grpc.StatusCode.FAILED_PRECONDITION)
    assert pin in error.details(), error.details()


def a_malformed_request_is_invalid_and_names_its_field(server, remote, admin):
    good = sample("I won.")
    cases = [
        ("samples", {"samples": []}),
        ("samples", {"samples": [good] * 1025}),
        ("samples[1].input", {"samples": [good, {"id": "nothing"}]}),
        ("samples[0].id", {"samples": [{**good, "id": "x" * 257}]}),
        ("request_id", {"samples": [good], "request_id": "x" * 257}),
        ("routing_key", {"samples": [good], "routing_key": "x" * 257}),
        ("variant", {"samples": [good], "variant": "nobody"}),
        ("priority", {"samples": [good], "priority": 99}),
        ("priority", {"samples": [good], "priority": -1}),
        ("truncation", {"samples": [good], "truncation": 4}),
    ]
    for field, request in cases:
        error = failure(lambda: remote.call(SERVICE, "Score", request), grpc.StatusCode.INVALID_ARGUMENT)
        assert field in bad_fields(error), f"{field} is not among {bad_fields(error)}: {error.details()}"
        assert not details(error, error_details_pb2.RetryInfo), "a malformed request is not to be tried again"
    both = failure(lambda: remote.score([], priority=99), grpc.StatusCode.INVALID_ARGUMENT)
    assert {"samples", "priority"} <= set(bad_fields(both)), bad_fields(both)


def one_bad_sample_never_fails_its_neighbours(server, remote, admin):
    bad = [{"token_ids": {"ids": [2, 10**9]}}, {"formatted": ""}, sample("happy " * 5000),
           {"conversation": {"messages": [{"role": "user", "content": "no template"}]}}]
    samples = [piece for one in bad for piece in (sample("I won."), one)]
    results = remote.score(samples, variant="ens")["results"]
    [alone] = rewards(remote.score([sample("I won.")], variant="ens"))
    for neighbour, error in zip(results[::2], results[1::2], strict=True):
        assert_close("neighbour", neighbour["score"]["reward"], alone)
        assert error["error"]["code"] == grpc.StatusCode.INVALID_ARGUMENT.value[0], error
        assert error["error"]["message"] and "score" not in error, error
    [cut] = remote.score([bad[2]], variant="ens", truncation="TRUNCATION_RIGHT")["results"]
    assert cut["score"]["tokens"] == 512 and cut["score"]["truncated_tokens"] > 4000, cut


def bytes_that_are_no_message_fail_their_own_call(server, remote, admin):
    invalid_utf8 = b"\x0a\x02\xff\xfe"  # field 1, request_id
    for data in [b"\xff" * 64, b"\x12\xff\xff\xff\xff\x0f", invalid_utf8, os.urandom(4096)]:
        failure(lambda: remote.raw(data), grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT)
    # an unknown field is a newer client's: ignored
    _, request, response = remote.method(SERVICE, "Score")
    known = json_format.ParseDict({"samples": [sample("I won.")], "variant": "ens"}, request()).SerializeToString()
    [reward] = rewards(decode(response, remote.raw(known + b"\xfa\x3f\x03new")))
    assert_close("with an unknown field", reward, rewards(remote.score([sample("I won.")], variant="ens"))[0])


def a_deadline_that_passes_is_deadline_exceeded(server, remote, admin):
    many = [sample("happy " * 400)] * 512
    before = server.total("rewarm_requests_total", method="Score")
    failure(lambda: remote.score(many, timeout=0.2, variant="ens"), grpc.StatusCode.DEADLINE_EXCEEDED)
    until("the server counts that call", lambda: server.total("rewarm_requests_total", method="Score") > before)
    until("its work is gone", lambda: idle(server))
    rewards(remote.score([sample("I won.")], variant="ens", timeout=LIMIT_SECONDS))


def idle(server):
    return server.total("rewarm_queue_samples") == 0 and server.total("rewarm_queue_tokens") == 0


def a_client_that_vanishes_leaves_nothing_behind(server, remote, admin):
    [expected] = rewards(remote.score([sample("I won.")], variant="ens"))
    # as a process that is killed, and as a channel that is closed
    for vanish in ["process", "channel"]:
        withdrawn = server.total("rewarm_samples_total", outcome="withdrawn")
        if vanish == "process":
            client = subprocess.Popen([sys.executable, __file__, "--flood", server.listen])
        else:
            client = Remote(server.listen)
            calls = flood(client)
        until("its work waits", lambda: server.total("rewarm_queue_samples") > 0)
        if vanish == "process":
            client.send_signal(signal.SIGKILL)
            client.wait()
        else:
            client.channel.close()
            del calls
        until("its work is withdrawn", lambda: server.total("rewarm_samples_total", outcome="withdrawn") > withdrawn)
        until("the queue is empty", lambda: idle(server))
        [reward] = rewards(remote.score([sample("I won.")], variant="ens"))
        assert_close("after a client vanished", reward, expected)


def flood(remote):
    """Calls with more work than is done before anybody reads this line."""
    score = remote.unary(SERVICE, "Score")
    return [score.future({"samples": [sample("happy " * 300)] * 256, "variant": "ens"}, timeout=LIMIT_SECONDS)
            for _ in range(8)]


def the_readmes_grpcurl_calls_are_answered(server, remote, admin):
    calls = re.findall(r"grpcurl -plaintext -d '(.*?)' 127\.0\.0\.1:(\d+) (\S+)/(\w+)", README, re.S)
    assert {method for _, _, _, method in calls} >= {"Score", "SetRouting"}, calls
    for data, port, service, method in calls:
        target = {"50051": remote, "50052": admin}[port]
        answer = target.call(service, method, json.loads(data))
        if method == "Score":
            better, worse = rewards(answer)
            assert better > worse and len(answer["results"][0]["score"]["member_rewards"]) == 4


def the_readmes_queries_name_metrics_that_exist(server, remote, admin):
    series = server.scrape()
    queries = blocks("promql")
    assert queries
    for query in queries:
        names = re.findall(r"\brewarm_\w+", query)
        assert names
        for name in names:
            labels = [dict(found) for (n, found) in series if n == name]
            assert labels, f"{name} is not on /metrics"
            for wanted in re.findall(r"by \(([^)]*)\)", query):
                for label in wanted.replace(" ", "").split(","):
                    assert all(label in found for found in labels), f"{name} has no label {label}"
            for label, value in re.findall(rf'{name}\{{(\w+)="(\w+)"\}}', query):
                assert any(found.get(label) == value for found in labels), f"no {name} with {label}={value}"


def the_admin_sets_the_routing(server, remote, admin):
    answer = admin.call(ADMIN, "SetRouting", {"weights": {"ens": 3, "warm": 1}})
    assert answer["routing"]["weights"]["ens"] == 0.75, answer
    chosen = {remote.score([sample("I won.")], routing_key=f"key {i}")["variant"] for i in range(60)}
    assert chosen == {"warm", "ens"}, chosen
    same = {remote.score([sample("I won.")], routing_key="one key")["variant"] for _ in range(10)}
    assert len(same) == 1, same
    for weights in [{}, {"ens": 0}, {"ens": -1, "warm": 2}, {"nobody": 1}, {"ens": "NaN"}, {"ens": "Infinity"}]:
        error = failure(lambda: admin.call(ADMIN, "SetRouting", {"weights": weights}),
                        grpc.StatusCode.INVALID_ARGUMENT)
        assert any("weights" in field for field in bad_fields(error)), (weights, bad_fields(error))
    info = remote.call(SERVICE, "GetServerInfo", {})
    assert info["routing"]["weights"]["ens"] == 0.75, "a refused routing changes nothing"


def the_admin_reloads_and_a_failed_reload_changes_nothing(server, remote, admin):
    before = remote.call(SERVICE, "GetServerInfo", {})
    server.config.write_text(config(["warm", "ens"]).replace("member-2", "nobody"), encoding="utf-8")
    error = failure(lambda: admin.call(ADMIN, "Reload", {}), grpc.StatusCode.FAILED_PRECONDITION)
    assert "nobody" in error.details(), error.details()
    assert remote.call(SERVICE, "GetServerInfo", {}) == before
    rewards(remote.score([sample("I won.")], variant="chat"))

    server.config.write_text(config(["warm", "ens"]), encoding="utf-8")
    answer = admin.call(ADMIN, "Reload", {})
    assert {variant["name"] for variant in answer["variants"]} == {"warm", "ens"}
    failure(lambda: remote.score([sample("I won.")], variant="chat"), grpc.StatusCode.INVALID_ARGUMENT)
    after = {variant["name"]: variant["fingerprint"] for variant in answer["variants"]}
    for variant in before["variants"]:
        assert after.get(variant["name"], variant["fingerprint"]) == variant["fingerprint"]


def the_log_is_json_and_holds_no_text(server, remote, admin):
    levels = [json.loads(line)["level"] for line in server.log]
    assert "INFO" in levels
    for text in [PROMPT, "number 1", "happy happy"]:
        assert not any(text in line for line in server.log), f"`{text}` is in the log"


def a_drain_tells_watchers_finishes_what_was_admitted_and_exits_0(server, remote, admin):
    stub = health_pb2_grpc.HealthStub(remote.channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=LIMIT_SECONDS)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    call = remote.unary(SERVICE, "Score").future(
        {"samples": [sample(text) for text in sentences(1000, 4)], "variant": "warm"}, timeout=LIMIT_SECONDS)
    until("that call is in the server", lambda: server.total("rewarm_queue_samples") > 0 or call.done())
    admin.call(ADMIN, "Drain", {})
    assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert len(rewards(call.result())) == 1000
    assert server.process.wait(LIMIT_SECONDS) == 0


CHECKS = [
    reflection_lists_the_services_of_each_port,
    server_info_names_variants_members_and_limits,
    rewards_equal_the_golden_ones_of_transformers,
    all_four_kinds_of_input_are_scored,
    two_callers_with_thousands_of_samples_get_them_in_order,
    a_stream_answers_each_request_once_by_its_id,
    health_is_served_by_process_service_and_variant,
    a_pinned_fingerprint_must_match,
    a_malformed_request_is_invalid_and_names_its_field,
    one_bad_sample_never_fails_its_neighbours,
    bytes_that_are_no_message_fail_their_own_call,
    a_deadline_that_passes_is_deadline_exceeded,
    a_client_that_vanishes_leaves_nothing_behind,
    the_readmes_grpcurl_calls_are_answered,
    the_readmes_queries_name_metrics_that_exist,
    the_admin_sets_the_routing,
    the_admin_reloads_and_a_failed_reload_changes_nothing,
    the_log_is_json_and_holds_no_text,
    a_drain_tells_watchers_finishes_what_was_admitted_and_exits_0,
]


def main(program):
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        server = Server(program, pathlib.Path(folder))
        try:
            remote, admin = Remote(server.listen), Remote(server.admin)
            for check in CHECKS:
                name, started = check.__name__.replace("_", " "), time.monotonic()
                try:
                    check(server, remote, admin)
                    print(f"ok     {name} ({time.monotonic() - started:.1f} s)", flush=True)
                except Exception as error:
                    failed += 1
                    line = traceback.extract_tb(error.__traceback__)[-1].lineno
                    print(f"FAILED {name}: {type(error).__name__} at line {line}: {error}", flush=True)
        finally:
            server.process.kill()
            server.process.wait()
    print(f"{len(CHECKS) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--flood"]:
        pending = flood(Remote(sys.argv[2]))
        time.sleep(LIMIT_SECONDS)
    elif len(sys.argv) == 2:
        sys.exit(main(sys.argv[1]))
    else:
        sys.exit("usage: client.py path/to/rewarm")
