"""Notes what Triton's and KServe's clients send, for tests/inference.rs: one file per request in tests/data/clients.

    python tests/clients/record_inference.py     with tritonclient[grpc,http]==2.73.0 or kserve==0.21.0, once with each
"""
import asyncio
import concurrent.futures
import importlib.util
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import grpc
import numpy as np
from conftest import MODEL, RECORDED, ROOT, TEXTS

SENT = []
RENDERED = np.array([[text["rendered"].encode()] for text in TEXTS], object)


class Grpc(grpc.GenericRpcHandler):
    def service(self, details):
        def handle(message, context):
            SENT.append({"path": details.method, "body_hex": message.hex()})
            context.abort(grpc.StatusCode.INTERNAL, "noted")

        return grpc.unary_unary_rpc_method_handler(handle)


class Http(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        kept = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "content-length")}
        SENT.append({"path": self.path, "headers": kept, "body_hex": body.hex()})
        self.send_response(400)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(b'{"error": "noted"}')

    def log_message(self, *_):
        pass


def write(name, client):
    found = {"client": client, "model": str(MODEL.relative_to(ROOT)), "request": SENT.pop(),
             "rewards": [text["reward"] for text in TEXTS]}
    (RECORDED / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def quietly(call):
    try:
        call()
    except Exception as error:
        assert "noted" in str(error) or "400" in str(error), error


def triton(grpc_address, http_address):
    import tritonclient.grpc
    import tritonclient.http
    from tritonclient.utils import np_to_triton_dtype

    for module, address in [(tritonclient.grpc, grpc_address), (tritonclient.http, http_address)]:
        tensor = module.InferInput("text", list(RENDERED.shape), "BYTES")
        tensor.set_data_from_numpy(RENDERED)
        client = module.InferenceServerClient(address)
        quietly(lambda: client.infer("llama", [tensor], request_id="7", timeout=60_000_000, priority=1))
        write(f"tritonclient-{module.__name__.split('.')[-1]}", "tritonclient 2.73.0")

    # token ids as trainers send them, who have tokenized themselves: padded on the right, and said where they end
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    rows = [tokenizer(text["rendered"], add_special_tokens=False)["input_ids"] for text in TEXTS]
    lengths = np.array([[len(row)] for row in rows])
    ids = np.array([row + [0] * (lengths.max() - len(row)) for row in rows])
    for trainer, arrays in {
        # trlx's examples/hh/ppo_hh.py at 0701714
        "trlx": {"input_ids": ids.astype(np.int32), "attention_mask": (np.arange(ids.shape[1]) < lengths).astype(np.int8)},
        # the reward server of NeMo-Aligner, by pytriton
        "nemo": {"tokens": ids.astype(np.int64), "sequence_lengths": lengths.astype(np.int64)},
    }.items():
        tensors = []
        for name, value in arrays.items():
            tensors.append(tritonclient.grpc.InferInput(name, value.shape, np_to_triton_dtype(value.dtype)))
            tensors[-1].set_data_from_numpy(value)
        quietly(lambda: tritonclient.grpc.InferenceServerClient(grpc_address).infer("llama", tensors))
        write(f"{trainer}-grpc", "tritonclient 2.73.0")


def kserve(grpc_address, http_address):
    from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest
    from kserve.inference_client import RESTConfig

    def request(is_binary):
        # a new one for each call: the first one changes it
        tensor = InferInput("text", list(RENDERED.shape), "BYTES")
        tensor.set_data_from_numpy(RENDERED, binary_data=is_binary)
        return InferRequest(model_name="llama", infer_inputs=[tensor], request_id="7")

    async def both(is_binary):
        async with InferenceGRPCClient(grpc_address) as client:
            try:
                await client.infer(request(is_binary))
            except grpc.aio.AioRpcError as error:
                assert "noted" in str(error)
        write(f"kserve-grpc-{'raw' if is_binary else 'typed'}", "kserve 0.21.0")
        client = InferenceRESTClient(RESTConfig(protocol="v2"))
        try:
            await client.infer(f"http://{http_address}", request(is_binary), model_name="llama")
        except Exception as error:
            assert "noted" in str(error), error
        write(f"kserve-http-{'binary' if is_binary else 'json'}", "kserve 0.21.0")

    for is_binary in [False, True]:
        asyncio.run(both(is_binary))


def main():
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(2), handlers=[Grpc()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    http = HTTPServer(("127.0.0.1", 0), Http)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    client = triton if importlib.util.find_spec("tritonclient") else kserve
    client(f"127.0.0.1:{port}", f"127.0.0.1:{http.server_port}")
    server.stop(None)


main()
