"""KServe's clients, gRPC and REST: typed and raw inputs, rewards and their order, a bad sample, health, a full queue
and a server that restarts (over gRPC it tries UNAVAILABLE three times within 0.3 s, over REST once)."""
import asyncio
import socket

import grpc
import httpx
import numpy as np
import pytest
import rewarm
from conftest import F32_ATOL, MODEL, TEXTS, outcomes
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig

RENDERED = [text["rendered"] for text in TEXTS]
REWARDS = np.array([text["reward"] for text in TEXTS], np.float32)


@pytest.fixture(scope="module")
def addresses():
    """Of a server, over gRPC and HTTP."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        http = "127.0.0.1:%d" % free.getsockname()[1]
    config = {"variants": {"llama": {"mode": "warm", "model": str(MODEL), "dtype": "f32"}}}
    with rewarm.serve(config, arguments=["--http", http]) as server:
        yield server.address, http


def request(texts, is_binary, model="llama"):
    tensor = InferInput("text", [len(texts), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[text.encode()] for text in texts], object), binary_data=is_binary)
    return InferRequest(model_name=model, infer_inputs=[tensor], request_id="7")


def rewards(response, model="llama"):
    assert response.model_name == model
    return response.outputs[0].as_numpy().reshape(-1)


@pytest.mark.parametrize("is_binary", [False, True])
def test_rewards_in_their_order(addresses, is_binary):
    async def both():
        async with InferenceGRPCClient(addresses[0]) as client:
            over_grpc = rewards(await client.infer(request(RENDERED, is_binary)))
            with pytest.raises(grpc.aio.AioRpcError, match=r"sample\[1\]"):
                await client.infer(request([RENDERED[0], ""], is_binary))
            assert await client.is_server_live() and await client.is_server_ready()
            assert await client.is_model_ready("llama")
        client = InferenceRESTClient(RESTConfig(protocol="v2"))
        base = f"http://{addresses[1]}"
        over_http = rewards(await client.infer(base, request(RENDERED, is_binary), model_name="llama"))
        with pytest.raises(httpx.HTTPStatusError, match=r"sample\[1\]"):
            await client.infer(base, request([RENDERED[0], ""], is_binary), model_name="llama")
        assert await client.is_server_live(base) and await client.is_server_ready(base)
        assert await client.is_model_ready(base, "llama")
        await client.close()
        return over_grpc, over_http

    for found in asyncio.run(both()):
        np.testing.assert_allclose(found, REWARDS, atol=F32_ATOL)


def ask_and_status(server, kind, run):
    """Asks for the rewards of all texts with one client; and reads the status of its errors."""
    async def make():
        return InferenceGRPCClient(server.grpc) if kind == "grpc" else InferenceRESTClient(RESTConfig(protocol="v2"))

    client = run(make())

    def ask():
        where = () if kind == "grpc" else (f"http://{server.http}",)
        how = {} if kind == "grpc" else {"model_name": "chat"}
        return rewards(run(client.infer(*where, request(RENDERED, False, "chat"), **how)), "chat")

    def status(error):
        if isinstance(error, grpc.aio.AioRpcError):
            return error.code().name
        return error.response.status_code if isinstance(error, httpx.HTTPStatusError) else type(error).__name__

    return ask, status


@pytest.fixture
def run():
    with asyncio.Runner() as runner:
        yield runner.run


@pytest.mark.parametrize("kind", ["grpc", "http"])
def test_a_full_queue(busy, kind, run):
    """Never a wrong reward, and an error that says what it is."""
    answers, errors = outcomes(*ask_and_status(busy, kind, run), lambda answers, errors: len(answers) > 5 and errors)
    assert set(errors) == {"RESOURCE_EXHAUSTED" if kind == "grpc" else 503}
    for found in answers:
        np.testing.assert_allclose(found, REWARDS, atol=F32_ATOL)


@pytest.mark.parametrize("kind", ["grpc", "http"])
def test_a_server_that_restarts(server, kind, run):
    """The same client has rewards again once the server is back."""
    ask, status = ask_and_status(server, kind, run)
    np.testing.assert_allclose(ask(), REWARDS, atol=F32_ATOL)
    with server.away():
        answers, errors = outcomes(ask, status, lambda answers, errors: len(answers) > 5 and errors)
    assert set(errors) <= ({"UNAVAILABLE"} if kind == "grpc" else {503, "ConnectError", "ReadError", "RemoteProtocolError"})
    for found in answers:
        np.testing.assert_allclose(found, REWARDS, atol=F32_ATOL)
