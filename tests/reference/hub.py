"""Shows that the hub's cache is shared both ways: huggingface_hub 2.4.0 and transformers 5.23.0 on one side, rewarm on the other.

    python tests/reference/hub.py target/debug/rewarm

A hub on loopback serves a tiny checkpoint. What `snapshot_download`, `hf_hub_download` and `from_pretrained` fetch is scored by
rewarm without network; what rewarm fetches is loaded by transformers without network. tests/hub.rs needs no Python.
"""

import hashlib
import http.server
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading

MODEL = pathlib.Path(__file__).parent.parent / "data/models/llama"
FILES = {path.name: path.read_bytes() for path in MODEL.iterdir()}
COMMIT = hashlib.sha1(b"commit").hexdigest()
TOKENS = [3, 5, 8, 13, 21]


def blob(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Hub(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def send(self, status, body, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        path = self.path.split("?")[0]
        if path.startswith("/api/models/org/tiny/revision/"):
            return self.send(200, json.dumps({"id": "org/tiny", "sha": COMMIT, "siblings": []}).encode())
        if path == f"/api/models/org/tiny/tree/{COMMIT}":
            return self.send(200, json.dumps([self.listed(name, content) for name, content in FILES.items()]).encode())
        name = path.rsplit("/", 1)[1]
        if name not in FILES or not path.startswith("/org/tiny/resolve/"):
            return self.send(404, b"", X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
        listed = self.listed(name, FILES[name])
        etag = listed["lfs"]["oid"] if "lfs" in listed else listed["oid"]
        self.send(200, FILES[name], X_Repo_Commit=COMMIT, ETag=f'"{etag}"')

    do_HEAD = do_GET

    @staticmethod
    def listed(name, content):
        entry = {"type": "file", "path": name, "size": len(content), "oid": blob(content)}
        if name.endswith(".safetensors"):
            sha256 = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 128}
        return entry


def python(home, code, **variables):
    variables = os.environ | {"HF_HOME": home, "HF_ENDPOINT": ENDPOINT, "HF_HUB_DISABLE_XET": "1"} | variables
    run = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def rewarm(home, model, **variables):
    run = subprocess.run(
        [sys.argv[1], "score", "--model", model],
        input=json.dumps({"token_ids": TOKENS}),
        env=os.environ | {"HF_HOME": home, "HF_ENDPOINT": ENDPOINT, "HF_HUB_OFFLINE": "0"} | variables,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)["reward"]


REWARD = f"""
import torch, transformers
model = transformers.AutoModelForSequenceClassification.from_pretrained("org/tiny", dtype=torch.float32)
tokenizer = transformers.AutoTokenizer.from_pretrained("org/tiny")
print(model(torch.tensor([{TOKENS}])).logits.item())
"""
FETCHERS = {
    "snapshot_download": 'import huggingface_hub as h; h.snapshot_download("org/tiny")',
    "hf_hub_download": "import huggingface_hub as h\n"
    + "\n".join(f'h.hf_hub_download("org/tiny", "{name}")' for name in FILES),
    "from_pretrained": REWARD,
}

if __name__ == "__main__":
    server = http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", 0))), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    ENDPOINT = f"http://127.0.0.1:{server.server_port}"
    expected = rewarm("/nonexistent", str(MODEL))
    for name, code in FETCHERS.items():
        with tempfile.TemporaryDirectory() as home:
            python(home, code, HF_HUB_OFFLINE="0")
            for model in ["org/tiny", f"org/tiny@{COMMIT}"]:
                assert rewarm(home, model, HF_HUB_OFFLINE="1") == expected, name
                assert rewarm(home, model, HF_ENDPOINT="http://127.0.0.1:1") == expected, name
        print(f"fetched by {name}: rewarm gives {expected} without network")
    with tempfile.TemporaryDirectory() as home:
        assert rewarm(home, "org/tiny") == expected
        theirs = float(python(home, REWARD, HF_HUB_OFFLINE="1"))
        assert abs(theirs - expected) < 1e-5, (theirs, expected)
        # and the listing tells Python's library that golden.json, which is no file of a model, is not there
        code = 'import huggingface_hub as h\ntry: h.snapshot_download("org/tiny")\nexcept Exception as e: print(type(e).__name__)'
        assert python(home, code, HF_HUB_OFFLINE="1") == "IncompleteSnapshotError"
        wanted = code.replace('"org/tiny"', '"org/tiny", ignore_patterns=["golden.json"]')
        assert python(home, wanted, HF_HUB_OFFLINE="1") == ""
        print(f"fetched by rewarm: transformers gives {theirs} without network")
