#!/usr/bin/env bash
# kserve 0.21.0 with grpcio 1.85.3: a gRPC client that is told to retry once cannot make a single call.
#
# `InferenceGRPCClient(retries=)` becomes gRPC's `maxAttempts`, which counts the first try too and must be 2 at least. So `retries=1`
# is a configuration that gRPC refuses: every call ends with INVALID_ARGUMENT ("errors validating service config") before anything is
# sent, a status that reads as if the request were wrong. `retries=0` turns retries off, and 2 means one retry.
#
# Seen: 0 OK, 1 INVALID_ARGUMENT and nothing was sent, 2 OK.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check kserve==0.21.0 grpcio==1.85.3 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON' 2> /dev/null
import asyncio
import concurrent.futures

import grpc
import numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as proto

CALLS = []


class Answer(grpc.GenericRpcHandler):
    def service(self, details):
        def handle(message, context):
            CALLS.append(details.method)
            return proto.ModelInferResponse(model_name="m").SerializeToString()

        return grpc.unary_unary_rpc_method_handler(handle)


async def call(address, retries):
    tensor = InferInput("x", [2], "FP32")
    tensor.set_data_from_numpy(np.array([1, 2], np.float32))
    CALLS.clear()
    async with InferenceGRPCClient(address, retries=retries) as client:
        try:
            await client.infer(InferRequest(model_name="m", infer_inputs=[tensor]))
            return "OK", len(CALLS)
        except grpc.aio.AioRpcError as error:
            return error.code().name, len(CALLS)


server = grpc.server(concurrent.futures.ThreadPoolExecutor(1), handlers=[Answer()])
address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
server.start()
seen = [asyncio.run(call(address, retries)) for retries in (0, 1, 2)]
server.stop(None)
print(seen)
assert seen == [("OK", 1), ("INVALID_ARGUMENT", 0), ("OK", 1)], seen
PYTHON
