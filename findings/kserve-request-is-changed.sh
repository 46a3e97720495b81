#!/usr/bin/env bash
# kserve 0.21.0: to send a request over gRPC changes it, and then it cannot be sent over REST.
#
# The conversion to gRPC's message encodes the strings of a BYTES input in place, in the caller's own InferRequest. JSON has no bytes:
# the same object, sent over REST after (as a fallback, or to compare the two), is a TypeError. In the other order both work.
#
# Seen: REST, gRPC, gRPC fine; then REST: TypeError, "Type is not JSON serializable: bytes".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check kserve==0.21.0 grpcio==1.85.3 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON' 2> /dev/null
import asyncio
import concurrent.futures
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import grpc
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig
from kserve.protocol.grpc import grpc_predict_v2_pb2 as proto


class Grpc(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(
            lambda message, context: proto.ModelInferResponse(model_name="m").SerializeToString())


class Rest(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps({"model_name": "m", "outputs": []}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


async def send(ways):
    tensor = InferInput("text", [2], "BYTES")
    tensor.set_data_from_numpy(np.array([b"one", b"two"], object), binary_data=False)
    request = InferRequest(model_name="m", infer_inputs=[tensor])
    rest, outcomes = InferenceRESTClient(RESTConfig(protocol="v2")), []
    async with InferenceGRPCClient(grpc_address) as client:
        for way in ways:
            try:
                await (client.infer(request) if way == "gRPC" else rest.infer(rest_address, request, model_name="m"))
                outcomes.append("fine")
            except TypeError as error:
                outcomes.append(str(error))
    await rest.close()
    return outcomes


server = grpc.server(concurrent.futures.ThreadPoolExecutor(1), handlers=[Grpc()])
grpc_address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
server.start()
http = HTTPServer(("127.0.0.1", 0), Rest)
rest_address = f"http://127.0.0.1:{http.server_port}"
threading.Thread(target=http.serve_forever, daemon=True).start()
seen = asyncio.run(send(["REST", "gRPC", "gRPC", "REST"]))
server.stop(None)
print(seen)
assert seen[:3] == ["fine"] * 3 and seen[3] == "Type is not JSON serializable: bytes", seen
PYTHON
