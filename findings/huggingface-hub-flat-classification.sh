#!/usr/bin/env bash
# huggingface_hub 2.4.0: of a list of labels `text_classification` returns the first one alone, not in a list.
#
# The method is declared to return a list of TextClassificationOutputElement. A server that answers one text with one flat list of
# labels, as text-embeddings-inference's /predict does, gets all but the first dropped, and the caller an element where a list was
# promised: `[0]` of it, or `len`, is a TypeError. Only a list in a list comes through.
#
# Seen: [[good, bad]] gives a list of both, [good, bad] gives `good`, which has no length.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check huggingface_hub==2.4.0
HF_HUB_OFFLINE=0 "$folder/venv/bin/python" - <<'PYTHON'
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

from huggingface_hub import InferenceClient

LABELS = [{"label": "good", "score": 0.9}, {"label": "bad", "score": 0.1}]
REPLIES = [[LABELS], LABELS]


class Server(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps(REPLIES.pop(0)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


http = HTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=http.serve_forever, daemon=True).start()
client = InferenceClient()
nested, flat = (client.text_classification("a text", model=f"http://127.0.0.1:{http.server_port}/predict") for _ in range(2))
print(nested, flat, sep="\n")
assert isinstance(nested, list) and [element.label for element in nested] == ["good", "bad"], nested
assert not isinstance(flat, list) and flat.label == "good", flat
PYTHON
