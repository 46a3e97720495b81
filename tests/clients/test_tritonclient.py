"""Triton's clients, gRPC and HTTP: rewards and their order, members, compression, a bad sample, what models tell, a full queue
and a server that restarts (they try once)."""
import socket

import numpy as np
import pytest
import rewarm
import tritonclient.grpc
import tritonclient.http
from conftest import F32_ATOL, MODEL, TEXTS, TOKEN, outcomes
from tritonclient.utils import InferenceServerException

MODULES = [tritonclient.grpc, tritonclient.http]
RENDERED = [text["rendered"] for text in TEXTS]
REWARDS = np.array([[text["reward"]] for text in TEXTS], np.float32)


@pytest.fixture(scope="module")
def addresses():
    """Of a server, over gRPC and HTTP."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        http = "127.0.0.1:%d" % free.getsockname()[1]
    model = str(MODEL)
    variants = {"llama": {"mode": "warm", "model": model, "dtype": "f32"},
                "ens": {"mode": "ens", "members": [model, model], "dtype": "f32"}}
    config = {"variants": variants, "routing": {"weights": {"llama": 1}}}
    with rewarm.serve(config, arguments=["--http", http]) as server:
        yield {tritonclient.grpc: server.address, tritonclient.http: http}


@pytest.fixture(params=MODULES, ids=["grpc", "http"])
def client(request, addresses):
    client = request.param.InferenceServerClient(addresses[request.param])
    client.module = request.param
    yield client
    client.close()


def texts(module, texts, name="text"):
    tensor = module.InferInput(name, [len(texts), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[text.encode()] for text in texts], object))
    return tensor


def test_rewards_in_their_order(client):
    for model in ["llama", "rewarm"]:
        result = client.infer(model, [texts(client.module, RENDERED)], request_id="7")
        np.testing.assert_allclose(result.as_numpy("rewards"), REWARDS, atol=F32_ATOL)
    both = [texts(client.module, [text[name] for text in TEXTS], name) for name in ("prompt", "response")]
    np.testing.assert_allclose(client.infer("llama", both).as_numpy("rewards"), REWARDS, atol=F32_ATOL)


def test_members_and_compression(client):
    outputs = [client.module.InferRequestedOutput(name) for name in ("rewards", "member_rewards", "reward_std")]
    coding = {"compression_algorithm": "gzip"} if client.module is tritonclient.grpc else {
        "request_compression_algorithm": "deflate", "response_compression_algorithm": "gzip"}
    result = client.infer("ens", [texts(client.module, RENDERED)], outputs=outputs, timeout=60_000_000, priority=1,
                          parameters={"truncation": "reject"}, **coding)
    np.testing.assert_allclose(result.as_numpy("member_rewards"), np.hstack([REWARDS, REWARDS]), atol=F32_ATOL)
    assert result.as_numpy("reward_std").shape == REWARDS.shape


def test_ids_with_lengths(client):
    """As trlx and NeMo send them: the same rows without their padding have the same rewards."""
    ids = np.array([[5, 6, 7, 0], [5, 6, 7, 8]], np.int32)
    lengths = np.array([[3], [4]], np.int64)
    tensors = []
    for name, value, datatype in [("tokens", ids, "INT32"), ("sequence_lengths", lengths, "INT64")]:
        tensors.append(client.module.InferInput(name, list(value.shape), datatype))
        tensors[-1].set_data_from_numpy(value)
    together = client.infer("llama", tensors).as_numpy("rewards")
    for row, length in enumerate(lengths[:, 0]):
        alone = client.module.InferInput("input_ids", [1, int(length)], "INT32")
        alone.set_data_from_numpy(ids[row:row + 1, :length])
        np.testing.assert_allclose(client.infer("llama", [alone]).as_numpy("rewards")[0], together[row], atol=F32_ATOL)


def test_a_bad_sample_is_named(client):
    with pytest.raises(InferenceServerException, match=r"sample\[1\]"):
        client.infer("llama", [texts(client.module, [RENDERED[0], ""])])
    with pytest.raises(InferenceServerException, match="is unknown, the models are"):
        client.infer("other", [texts(client.module, RENDERED)])


def test_what_models_tell(client):
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("ens", "1")
    assert not client.is_model_ready("other") if client.module is tritonclient.http else True
    asked = {"as_json": True} if client.module is tritonclient.grpc else {}
    assert client.get_server_metadata(**asked)["name"] == "rewarm"
    assert [output["name"] for output in client.get_model_metadata("ens", **asked)["outputs"]] == [
        "rewards", "member_rewards", "reward_std"]
    config = client.get_model_config("llama", **asked)
    assert int(config.get("config", config)["max_batch_size"]) == 1024
    client.infer("llama", [texts(client.module, RENDERED)])
    [statistics] = client.get_inference_statistics("llama", **asked)["model_stats"]
    assert int(statistics["inference_count"]) >= len(TEXTS)
    assert int(statistics["inference_stats"]["success"]["count"]) > 0
    index = client.get_model_repository_index(**asked)
    assert {model["name"] for model in (index["models"] if asked else index)} == {"llama", "ens"}
    with pytest.raises(InferenceServerException, match="configuration"):
        client.load_model("llama")


def asking(server, module):
    """Asks for the rewards of all texts with one client; and reads the status of its errors, an HTTP one's as 503's name."""
    client = module.InferenceServerClient(server.grpc if module is tritonclient.grpc else server.http)

    def ask():
        return client.infer("chat", [texts(module, RENDERED)]).as_numpy("rewards")

    def status(error):
        assert isinstance(error, (InferenceServerException, OSError)), repr(error)
        return error.status() if isinstance(error, InferenceServerException) else type(error).__name__

    return ask, status


@pytest.mark.parametrize("module", MODULES, ids=["grpc", "http"])
def test_a_token_in_a_header(closed, module):
    client = module.InferenceServerClient(closed.grpc if module is tritonclient.grpc else closed.http.rpartition("@")[2])
    found = client.infer("chat", [texts(module, RENDERED)], headers={"authorization": f"Bearer {TOKEN}"})
    np.testing.assert_allclose(found.as_numpy("rewards"), REWARDS, atol=F32_ATOL)
    with pytest.raises(InferenceServerException, match="there is no token"):
        client.infer("chat", [texts(module, RENDERED)])


@pytest.mark.parametrize("module", MODULES, ids=["grpc", "http"])
def test_a_full_queue(busy, module):
    """Tried once, and told apart from a bad request; never a wrong reward."""
    answers, errors = outcomes(*asking(busy, module), lambda answers, errors: len(answers) > 5 and errors)
    assert set(errors) == {"StatusCode.RESOURCE_EXHAUSTED" if module is tritonclient.grpc else "503"}
    for found in answers:
        np.testing.assert_allclose(found, REWARDS, atol=F32_ATOL)


@pytest.mark.parametrize("module", MODULES, ids=["grpc", "http"])
def test_a_server_that_restarts(server, module):
    """The same client has rewards again once the server is back."""
    ask, status = asking(server, module)
    np.testing.assert_allclose(ask(), REWARDS, atol=F32_ATOL)
    with server.away():
        answers, errors = outcomes(ask, status, lambda answers, errors: len(answers) > 5 and errors)
    assert set(errors) <= ({"StatusCode.UNAVAILABLE"} if module is tritonclient.grpc else {"503", "ConnectionRefusedError"})
    for found in answers:
        np.testing.assert_allclose(found, REWARDS, atol=F32_ATOL)
