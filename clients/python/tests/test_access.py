"""Tokens and TLS, against a server that asks for them: right rewards, or an error that says what is missing and never the token."""
from __future__ import annotations

import concurrent.futures
import logging
import os
import pickle
import time

import grpc
import pytest
from conftest import PROMPT, WARM, sentences

import rewarm
import rewarm.trl
from rewarm.v1 import reward_pb2, reward_pb2_grpc

trustme = pytest.importorskip("trustme")

TOKEN = "a-Token.of_40~characters+/0123456789abc="
NEXT = "another-Token-of-the-same-length-or-so"
VARIABLES = ["REWARM_TOKEN", "REWARM_TOKEN_FILE", "REWARM_CA", "REWARM_CERTIFICATE", "REWARM_KEY", "REWARM_SERVER_NAME"]


class Servicer(reward_pb2_grpc.RewardServiceServicer):
    """A reward is the length of its response; the token is asked for at every call."""

    def __init__(self, tokens=()):
        self.tokens, self.seen = set(tokens), []

    def _let_in(self, context):
        said = dict(context.invocation_metadata()).get("authorization", "")
        self.seen.append(said)
        if self.tokens and said.removeprefix("Bearer ") not in self.tokens:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token is missing" if not said else "the token is unknown")

    def GetServerInfo(self, request, context):
        self._let_in(context)
        variant = reward_pb2.VariantInfo(name="rm", fingerprint="f")
        return reward_pb2.GetServerInfoResponse(variants=[variant], max_samples_per_request=64, version="0")

    def Score(self, request, context):
        self._let_in(context)
        if request.variant == "closed":
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "the token trainer-a may not do this")
        results = [reward_pb2.SampleResult(score=reward_pb2.Score(reward=len(sample.text.response)))
                   for sample in request.samples]
        return reward_pb2.ScoreResponse(results=results, variant="rm", fingerprint="f")


class Served:
    """A server of ours, with a certificate of `authority` for `name` where there is one."""

    def __init__(self, tokens=(), authority=None, name="localhost", client_authority=None):
        self.servicer = Servicer(tokens)
        self.server = grpc.server(concurrent.futures.ThreadPoolExecutor(4))
        reward_pb2_grpc.add_RewardServiceServicer_to_server(self.servicer, self.server)
        # every address that the name has: gRPC tells of the last that failed only
        if authority is None:
            self.port = self.server.add_insecure_port("localhost:0")
        else:
            own = authority.issue_cert(name)
            chain = b"".join(part.bytes() for part in own.cert_chain_pems)
            signer = client_authority.cert_pem.bytes() if client_authority else None
            self.port = self.server.add_secure_port("localhost:0", grpc.ssl_server_credentials(
                [(own.private_key_pem.bytes(), chain)], signer, client_authority is not None))
        self.server.start()
        self.address = f"localhost:{self.port}"


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def serve():
    servers = []

    def make(*arguments, **options):
        servers.append(Served(*arguments, **options))
        return servers[-1]

    yield make
    for served in servers:
        served.server.stop(None)


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    made = trustme.CA()
    made.file = tmp_path_factory.mktemp("authority") / "ca.pem"
    made.cert_pem.write_to_path(made.file)
    return made


def score(kind, address, **options):
    with kind(address, timeout=5, **options) as client:
        return client.score("What happened today?", ["Yes.", "No."], variant=options.get("variant", "rm"))


RIGHT = [4.0, 3.0]


def test_a_token_goes_with_every_call(kind, serve, tmp_path, monkeypatch):
    served = serve([TOKEN])
    (tmp_path / "token").write_text(TOKEN + "\n", encoding="utf-8")
    assert score(kind, served.address, token=TOKEN) == RIGHT
    assert score(kind, served.address, token_file=tmp_path / "token") == RIGHT
    monkeypatch.setenv("REWARM_TOKEN_FILE", str(tmp_path / "token"))
    assert score(kind, served.address) == RIGHT
    monkeypatch.setenv("REWARM_TOKEN", TOKEN)
    assert score(kind, served.address) == RIGHT
    assert set(served.servicer.seen) == {f"Bearer {TOKEN}"}
    # what is given comes before what is set
    with pytest.raises(rewarm.AccessDenied, match="the token is unknown"):
        score(kind, served.address, token="another")


def test_who_is_not_let_in_is_told_at_once(kind, serve):
    served = serve([TOKEN])
    with pytest.raises(rewarm.AccessDenied, match="the token is missing.*no token was sent: pass token=") as caught:
        score(kind, served.address)
    assert (caught.value.code, caught.value.attempts) == ("UNAUTHENTICATED", 1)
    with pytest.raises(rewarm.AccessDenied, match="may not do this") as caught:
        score(kind, served.address, token=TOKEN, variant="closed")
    assert caught.value.code == "PERMISSION_DENIED"
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is rewarm.AccessDenied and vars(again) == vars(caught.value)


def test_a_token_that_is_replaced_is_sent_from_then_on(kind, serve, tmp_path):
    file = tmp_path / "token"
    file.write_text("first", encoding="utf-8")
    served = serve(["first"])
    with kind(served.address, timeout=5, token_file=file) as client:
        assert client.score("a", ["Yes."]) == [4.0]
        # as Kubernetes does it: another file is put in its place
        (tmp_path / "new").write_text("second", encoding="utf-8")
        os.replace(tmp_path / "new", file)
        served.servicer.tokens = {"second"}
        assert client.score("a", ["Yes."]) == [4.0]
        # while it is away, or empty, the last one does
        file.unlink()
        assert client.score("a", ["Yes."]) == [4.0]
    with kind(served.address, token_file=file) as client, pytest.raises(rewarm.InvalidInput, match="token_file .* cannot be read"):
        client.score("a", ["Yes."])


def test_tls_with_an_authority_of_ones_own(kind, serve, authority, monkeypatch):
    served = serve([TOKEN], authority)
    assert score(kind, served.address, ca=authority.file, token=TOKEN) == RIGHT
    assert score(kind, f"https://{served.address}", ca=str(authority.file), token=TOKEN) == RIGHT
    # the certificate has a name, and the address is a number
    assert score(kind, f"127.0.0.1:{served.port}", ca=authority.file, token=TOKEN, server_name="localhost") == RIGHT
    for name, value in [("REWARM_CA", str(authority.file)), ("REWARM_TOKEN", TOKEN)]:
        monkeypatch.setenv(name, value)
    assert score(kind, served.address) == RIGHT
    assert score(kind, served.address, tls=True) == RIGHT


def test_a_certificate_that_is_not_to_be_trusted_ends_the_call_at_once(kind, serve, authority):
    served = serve((), authority)
    with pytest.raises(rewarm.AccessDenied, match="not signed by who is trusted") as caught:
        score(kind, served.address, tls=True)
    assert (caught.value.code, caught.value.address) == ("UNAVAILABLE", served.address)
    with pytest.raises(rewarm.AccessDenied, match="for another name"):
        score(kind, f"127.0.0.1:{served.port}", ca=authority.file)
    with pytest.raises(rewarm.AccessDenied, match="does not speak TLS"):
        score(kind, serve().address, ca=authority.file)
    # in plain text to a port that speaks TLS: as if nobody were there, with a hint
    with pytest.raises(rewarm.RewarmError, match="if it speaks TLS: pass tls=True"):
        with kind(f"127.0.0.1:{served.port}", timeout=1) as client:
            client.score("a", ["Yes."])
    # where another address can be trusted, that one answers
    distrusted = serve((), trustme.CA())
    with kind([distrusted.address, served.address], timeout=5, ca=authority.file) as client:
        assert client.score("a", ["Yes."] * 300) == [4.0] * 300


def test_a_certificate_of_the_clients_own(kind, serve, authority, tmp_path, monkeypatch):
    served = serve((), authority, client_authority=authority)
    own = authority.issue_cert("trainer")
    own.private_key_pem.write_to_path(tmp_path / "key")
    (tmp_path / "certificate").write_bytes(b"".join(part.bytes() for part in own.cert_chain_pems))
    files = {"certificate": tmp_path / "certificate", "key": tmp_path / "key"}
    assert score(kind, served.address, ca=authority.file, **files) == RIGHT
    with pytest.raises(rewarm.InvalidInput, match="there is a certificate and no key"):
        score(kind, served.address, ca=authority.file, certificate=files["certificate"])
    with pytest.raises(rewarm.InvalidInput, match="certificate .*ca.pem and key .*key cannot be used together: .*MISMATCH"):
        score(kind, served.address, ca=authority.file, certificate=authority.file, key=files["key"])
    with pytest.raises(rewarm.InvalidInput, match="ca .*key holds no certificate that can be used"):
        score(kind, served.address, ca=files["key"])
    for name in ["certificate", "key"]:
        monkeypatch.setenv(f"REWARM_{name.upper()}", str(files[name]))
    assert score(kind, served.address, ca=authority.file) == RIGHT


def test_certificates_that_are_replaced_are_used_from_then_on(kind, serve, tmp_path):
    first, second = trustme.CA(), trustme.CA()
    old, new = serve((), first), serve((), second)
    first.cert_pem.write_to_path(tmp_path / "ca")
    with kind(f"{old.address},{new.address}", timeout=5, ca=tmp_path / "ca") as client:
        assert client.score("a", ["Yes."] * 100) == [4.0] * 100
        assert old.servicer.seen and not new.servicer.seen
        old.server.stop(None)
        second.cert_pem.write_to_path(tmp_path / "ca")
        assert client.score("a", ["Yes."] * 100) == [4.0] * 100


def test_a_token_is_in_no_repr_and_no_log(kind, serve, caplog, monkeypatch):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("REWARM_TOKEN", TOKEN)
    clients = [rewarm.Client("trainer:1", token=TOKEN, variant="rm"), rewarm.AsyncClient("trainer:1", token=TOKEN)]
    assert repr(clients[0]) == "Client('trainer:1', token=***, variant='rm')"
    for shown in [*clients, rewarm.trl.reward_func("trainer:1", token=TOKEN), *(client._credentials for client in clients)]:
        assert TOKEN not in repr(shown) + str(shown)
    for options in [{"token": TOKEN + "\n"}, {"token": TOKEN, "token_file": "x"}, {"token": f"{TOKEN} {TOKEN}"}, {"token": 7}]:
        with pytest.raises(rewarm.InvalidInput) as caught:
            rewarm.Client("trainer:1", **options)
        assert TOKEN not in str(caught.value)
    with pytest.raises(rewarm.InvalidInput) as caught:
        rewarm.Client(f"any:{TOKEN}@trainer:1")
    assert TOKEN not in str(caught.value)
    with pytest.raises(rewarm.AccessDenied) as caught:
        score(kind, serve(["other"]).address)
    assert TOKEN not in str(caught.value) + caplog.text


def test_what_pickles(serve, monkeypatch):
    """What was given goes along, a token too, for a worker that has no variable; what the environment has does not."""
    served = serve([TOKEN])
    assert pickle.loads(pickle.dumps(rewarm.Client(served.address, token=TOKEN))).score("a", ["Yes."]) == [4.0]
    monkeypatch.setenv("REWARM_TOKEN", TOKEN)
    packed = pickle.dumps(rewarm.Client(served.address))
    assert TOKEN.encode() not in packed
    assert pickle.loads(packed).score("a", ["Yes."]) == [4.0]
    again = pickle.loads(pickle.dumps(rewarm.Client("https://trainer:1")))
    assert again._credentials.is_secure
    reward = pickle.loads(pickle.dumps(rewarm.trl.reward_func(served.address, token=TOKEN)))
    assert reward(["a"], ["Yes."]) == [4.0]


def test_plain_text_is_warned_of_once_and_not_for_this_machine(caplog):
    credentials = rewarm.Client("trainer:1", token=TOKEN)._credentials
    for address in ["trainer:1", "trainer:1", "10.0.0.1:50051", "ipv4:127.0.0.1:1,10.0.0.1:1"]:
        credentials.metadata(address)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 3 and all("plain text" in line for line in said) and "trainer:1" in said[0]
    caplog.clear()
    for address in ["localhost:1", "127.0.0.1:1", "[::1]:1", "unix:/run/rewarm", "ipv4:127.0.0.1:1,127.0.0.2:1", "dns:///localhost:1"]:
        credentials.metadata(address)
    rewarm.Client("trainer:1", tls=True, token=TOKEN)._credentials.metadata("trainer:1")
    rewarm.Client("trainer:1")._credentials.metadata("trainer:1")
    assert not caplog.records


@pytest.mark.parametrize(("address", "options", "why"), [
    ("http://a:1", {"tls": True}, "begins with http://"),
    ("https://a:1", {"tls": False}, "begins with https://"),
    ("http://a:1", {"ca": "x"}, "ca is given"),
    ("a:1", {"ca": "x", "tls": False}, "ca is given"),
    ("https://a:1,b:1", {}, "do not all begin alike"),
    ("ftp://a:1", {}, "do not all begin alike"),
    ("a:1", {"tls": "yes"}, "tls is 'yes'"),
    ("a:1", {"ca": 7}, "ca is a int"),
    ("a:1", {"token": ""}, "token is empty"),
    ("a:1", {"token": "ä"}, "no header holds"),
])
def test_what_contradicts_itself_is_refused(address, options, why):
    with pytest.raises(rewarm.InvalidInput, match=why):
        rewarm.Client(address, **options)


@pytest.fixture(scope="module")
def closed(authority, tmp_path_factory):
    """The real server with TLS, tokens and client certificates on all its ports, and what it takes to get in."""
    folder = tmp_path_factory.mktemp("closed")
    for name, issued in [("server", authority.issue_cert("localhost")), ("client", authority.issue_cert("trainer"))]:
        issued.private_key_pem.write_to_path(folder / f"{name}.key")
        (folder / f"{name}.crt").write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
    tokens = folder / "tokens.toml"
    tokens.write_text(f'[tokens.trainer]\ntoken = "{TOKEN}"\nallow = ["score", "metrics"]\nmax_requests = 1\n', encoding="utf-8")
    tls = {"certificate": folder / "server.crt", "key": folder / "server.key", "client_ca": authority.file}
    environment = {"REWARM_TOKEN": TOKEN, "REWARM_CERTIFICATE": str(folder / "client.crt"), "REWARM_KEY": str(folder / "client.key")}
    with rewarm.serve({"variants": {"warm": WARM}, "server": {"tokens": tokens, "tls": tls}}, http="127.0.0.1:0",
                      environment=environment) as server:
        server.tokens = tokens
        server.entry = {"token": TOKEN, "ca": authority.file, "server_name": "localhost", "certificate": folder / "client.crt",
                        "key": folder / "client.key"}
        yield server


def test_the_real_server_lets_in_who_has_all_it_asks_for(kind, closed, expected):
    with kind(closed.address, timeout=30, **closed.entry) as client:
        # one request at a time, says the limit of the token, and a call sends four at once: the others wait
        assert client.score(PROMPT, sentences(200)) == expected[:200]
    for lacking, why in [("token", "no token was sent"), ("ca", "not signed by who is trusted"), ("server_name", "for another name")]:
        with kind(closed.address, timeout=5, tls=True, **{**closed.entry, lacking: None}) as client:
            with pytest.raises(rewarm.AccessDenied, match=why):
                client.score(PROMPT, ["Yes."])
    with kind(closed.address, timeout=5, **{**closed.entry, "certificate": None, "key": None}) as client:
        with pytest.raises(rewarm.AccessDenied, match="certificate") as caught:
            client.score(PROMPT, ["Yes."])
        assert caught.value.code == "UNAUTHENTICATED"
    with kind(closed.address, timeout=5, token=TOKEN) as client:
        with pytest.raises(rewarm.AccessDenied, match="it speaks TLS: pass tls=True or ca="):
            client.score(PROMPT, ["Yes."])


def test_pages_of_a_server_that_asks_for_everything(closed):
    """What `serve` and `rewarm.ray` look at."""
    assert closed.is_ready()
    status, text = closed.page("/metrics")
    assert status == 200 and "rewarm_queue_tokens" in text


def test_a_token_is_struck_from_the_file_and_another_added(kind, closed, expected):
    before = closed.tokens.read_text(encoding="utf-8")
    with kind(closed.address, timeout=30, **{**closed.entry, "token": NEXT}) as client:
        try:
            closed.tokens.write_text(before.replace(TOKEN, NEXT), encoding="utf-8")
            until(lambda: denied(lambda: client.score(PROMPT, sentences(1))) is None)
            with kind(closed.address, timeout=30, **closed.entry) as old:
                assert denied(lambda: old.score(PROMPT, sentences(1))) == "UNAUTHENTICATED"
        finally:
            closed.tokens.write_text(before, encoding="utf-8")
        until(lambda: denied(lambda: client.score(PROMPT, sentences(1))) == "UNAUTHENTICATED")


def denied(call):
    try:
        call()
        return None
    except rewarm.AccessDenied as error:
        return error.code


def until(holds):
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(("written", "why"), [(None, "ca .* cannot be read"), ("no certificate", "is not PEM")])
def test_a_file_that_is_no_certificate_is_named(kind, serve, authority, tmp_path, written, why):
    if written is not None:
        (tmp_path / "ca").write_text(written, encoding="utf-8")
    with pytest.raises(rewarm.InvalidInput, match=why):
        score(kind, serve((), authority).address, ca=tmp_path / "ca")
