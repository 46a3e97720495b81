"""KServe's clients, gRPC and REST: typed and raw inputs, rewards and their order, a bad sample, health."""
import asyncio
import socket

import grpc
import httpx
import numpy as np
import pytest
import rewarm
from conftest import F32_ATOL, MODEL, TEXTS
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


def request(texts, is_binary):
    tensor = InferInput("text", [len(texts), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[text.encode()] for text in texts], object), binary_data=is_binary)
    return InferRequest(model_name="llama", infer_inputs=[tensor], request_id="7")


def rewards(response):
    assert response.model_name == "llama"
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
