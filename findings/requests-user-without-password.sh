#!/usr/bin/env bash
# requests 2.34.2: a URL's user is left out where there is no password, without a word.
#
# `http://user:password@host` is sent with an Authorization header, and so is `http://user:@host`, whose password is empty. But
# `http://user@host`, which curl, aiohttp and httpx send as a user with an empty password, is sent without the header: the password that is
# not there is None, and what fails on it is caught and taken for "no credentials". Services that take a token for the user
# name alone (`https://TOKEN@host`) see an anonymous caller.
#
# Seen: requests sends `u:p` and `u:`, and nothing for `u@`; httpx 0.28.1 sends `u:` for it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check requests==2.34.2 httpx==0.28.1
env -u http_proxy -u HTTP_PROXY -u all_proxy -u ALL_PROXY HOME="$folder" "$folder/venv/bin/python" - <<'PYTHON'
import base64
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import requests

SENT = []


class Server(BaseHTTPRequestHandler):
    def do_GET(self):
        said = self.headers["Authorization"]
        SENT.append(said and base64.b64decode(said.removeprefix("Basic ")).decode())
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


http = HTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=http.serve_forever, daemon=True).start()
for user in ["u:p", "u:", "u"]:
    requests.get(f"http://{user}@127.0.0.1:{http.server_port}/")
httpx.get(f"http://u@127.0.0.1:{http.server_port}/")
print(SENT)
assert SENT == ["u:p", "u:", None, "u:"], SENT
PYTHON
