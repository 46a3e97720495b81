#!/usr/bin/env bash
# huggingface_hub 2.4.0: `HF_HUB_OFFLINE=1` also refuses requests to a server of one's own on 127.0.0.1.
#
# The variable is documented as "no HTTP calls will be made to the Hugging Face Hub", and is what one sets where models are local. But
# every request of the library goes through the hook that it sets, InferenceClient's to `model="http://127.0.0.1:..."` too: local
# models cannot be asked through the local server that has them. The error's advice is to unset the variable, for the Hub too.
#
# Seen: without it an answer, with it OfflineModeIsEnabled, and nothing was sent.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check huggingface_hub==2.4.0
for offline in 0 1; do
  HF_HUB_OFFLINE=$offline "$folder/venv/bin/python" - <<'PYTHON'
import os
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

from huggingface_hub import InferenceClient
from huggingface_hub.errors import OfflineModeIsEnabled

CALLS = []


class Server(BaseHTTPRequestHandler):
    def do_POST(self):
        CALLS.append(self.path)
        self.rfile.read(int(self.headers["Content-Length"]))
        body = b'[[{"label": "good", "score": 0.9}]]'
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


http = HTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=http.serve_forever, daemon=True).start()
try:
    InferenceClient().text_classification("a text", model=f"http://127.0.0.1:{http.server_port}/predict")
    seen = "an answer"
except OfflineModeIsEnabled as error:
    seen = type(error).__name__
print(seen, CALLS)
assert (seen, len(CALLS)) == (("OfflineModeIsEnabled", 0) if os.environ["HF_HUB_OFFLINE"] == "1" else ("an answer", 1)), seen
PYTHON
done
