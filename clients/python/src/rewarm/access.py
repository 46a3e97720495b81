"""What a client shows a server, and asks of it: a bearer token, TLS, a certificate of its own.

What was not given comes from the environment of the process that connects, and is not part of a pickle: `REWARM_TOKEN`,
`REWARM_TOKEN_FILE`, `REWARM_CA`, `REWARM_CERTIFICATE`, `REWARM_KEY`, `REWARM_SERVER_NAME`. Files are read again when they
change. A token appears in no `repr`, log or error of ours.
"""
from __future__ import annotations

import ipaddress
import logging
import os
import re
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import grpc

from rewarm.errors import InvalidInput
from rewarm.types import Access

NAMES = tuple(get_type_hints(Access))
#: What `repr` writes in place of a token.
HIDDEN = "***"
#: What a header may hold, without spaces.
_TOKEN = re.compile(r"[!-~]+")

_log = logging.getLogger("rewarm")


class Credentials:
    """`Access`, checked, for servers whose addresses said `http://`, `https://` or nothing."""

    def __init__(self, given: Access, scheme: str = "", environment: Mapping[str, str] = os.environ) -> None:
        self._given = given
        self._environment = environment
        for name in set(NAMES) - {"tls"}:
            value = given.get(name)
            if not (value is None or isinstance(value, (str, os.PathLike))):
                raise InvalidInput(f"{name} is a {type(value).__name__}, not a string")
        self._token = given.get("token")
        if self._token is not None:
            if given.get("token_file") is not None:
                raise InvalidInput("token and token_file are both given")
            _checked(self._token, "token")
        self._tls = given.get("tls")
        if self._tls not in (None, True, False):
            raise InvalidInput(f"tls is {self._tls!r}, not True or False")
        if scheme:
            if self._tls is not None and self._tls != (scheme == "https"):
                raise InvalidInput(f"tls is {self._tls}, and an address begins with {scheme}://")
            self._tls = scheme == "https"
        parts = [name for name in ("ca", "certificate", "key", "server_name") if given.get(name) is not None]
        if self._tls is False and parts:
            raise InvalidInput(f"{parts[0]} is given, which is of TLS, and tls is False")
        self._tls = True if parts else self._tls
        self._read: tuple[Any, str] = None, ""
        self._warned: set[str] = set()

    @property
    def is_secure(self) -> bool:
        """Whether connections are TLS: as was said, else if the environment names certificates."""
        return bool(self._set("CA") or self._set("CERTIFICATE")) if self._tls is None else self._tls

    def metadata(self, address: str) -> tuple[tuple[str, str], ...]:
        """What goes with each call."""
        token = self.token()
        if not token:
            return ()
        if not self.is_secure and address not in self._warned and not is_loopback(address):
            self._warned.add(address)
            _log.warning("the token goes to %s in plain text, for whoever is on the way to read: pass tls=True or ca=", address)
        return (("authorization", f"Bearer {token}"),)

    def token(self) -> str:
        """Empty where there is none."""
        if self._token is not None:
            return self._token
        file, of = self._given.get("token_file"), "token_file"
        if file is None:
            if token := self._set("TOKEN"):
                return _checked(token.strip(), "REWARM_TOKEN")
            file, of = self._set("TOKEN_FILE"), "REWARM_TOKEN_FILE"
        if not file:
            return ""
        seen = _seen(file)
        if seen is None or seen != self._read[0]:
            try:
                self._read = seen, _checked(Path(file).read_text(encoding="utf-8").strip(), f"{of} {os.fspath(file)}")
            except (OSError, UnicodeDecodeError) as error:
                if not self._read[1]:
                    raise InvalidInput(f"{of} {os.fspath(file)} cannot be read: {_reason(error)}") from None
                # it is being replaced: the old one may still do
        return self._read[1]

    def stamp(self) -> tuple[Any, ...]:
        """Changes when connections have to be made anew: the files of certificates are others."""
        return tuple((file, _seen(file)) for _, file in self._files()) if self.is_secure else ()

    def channel(self) -> tuple[grpc.ChannelCredentials | None, list[tuple[str, Any]]]:
        """For a new connection: its credentials, None for plain text, and its options."""
        if not self.is_secure:
            return None, []
        found = {name: _bytes(file, name) for name, file in self._files()}
        ca, certificate, key = (found.get(name) for name in ("ca", "certificate", "key"))
        if (certificate is None) != (key is None):
            missing, there = ("key", "certificate") if key is None else ("certificate", "key")
            raise InvalidInput(f"there is a {there} and no {missing}: a client's certificate needs both")
        _usable(dict(self._files()))
        name = self._given.get("server_name") or self._set("SERVER_NAME")
        options = [("grpc.ssl_target_name_override", name), ("grpc.default_authority", name)] if name else []
        return grpc.ssl_channel_credentials(ca, key, certificate), options

    def advice(self, code: str, message: str) -> str:
        """What to do about an answer, as far as it can be known."""
        if code == "UNAUTHENTICATED" and not self.token():
            return " (no token was sent: pass token= or token_file=, or set REWARM_TOKEN or REWARM_TOKEN_FILE)"
        if code == "UNAVAILABLE" and message.endswith(": Socket closed") and not self.is_secure:
            return " (if it speaks TLS: pass tls=True or ca=, or set REWARM_CA)"
        return ""

    def of_child(self) -> ssl.SSLContext:
        """For HTTP to a server that this process started: whose certificate it is needs no proof."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        files = dict(self._files())
        if "certificate" in files and "key" in files:
            context.load_cert_chain(files["certificate"], files["key"])
        return context

    def _set(self, name: str) -> str:
        return self._environment.get(f"REWARM_{name}", "")

    def _files(self) -> list[tuple[str, str | os.PathLike[str]]]:
        named = {"ca": self._given.get("ca"), "certificate": self._given.get("certificate"), "key": self._given.get("key")}
        found = [(name, file or self._set(name.upper())) for name, file in named.items()]
        return [(name, file) for name, file in found if file]


def split(options: Mapping[str, Any]) -> tuple[Access, dict[str, Any]]:
    """What a client was given: how it gets in, and what its calls take."""
    own = {name: value for name, value in options.items() if name in NAMES}
    return own, {name: value for name, value in options.items() if name not in NAMES}  # type: ignore[return-value]


def shown(options: Mapping[str, Any]) -> str:
    """For `repr`."""
    return "".join(f", {name}={HIDDEN if name == 'token' and value is not None else repr(value)}"
                   for name, value in options.items())


def is_loopback(address: str) -> bool:
    """Whether what is sent there stays on this machine."""
    if address.startswith("unix:"):
        return True
    return all(_is_own(part) for part in address.removeprefix("ipv4:").removeprefix("ipv6:").removeprefix("dns:").split(","))


def _is_own(part: str) -> bool:
    host = part.strip().rpartition(":")[0].strip("[]/")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def handshake(message: str) -> str:
    """What is the matter with a handshake that failed, in our words; empty where trying again may help."""
    return next((meaning for said, meaning in _HANDSHAKES.items() if said in message), "")


#: gRPC says UNAVAILABLE for these too, but they do not go away.
_HANDSHAKES = {
    "CERTIFICATE_VERIFY_FAILED": "its certificate has expired, or is not signed by who is trusted (ca=, REWARM_CA)",
    "Hostname Verification Check failed": "its certificate is for another name (server_name=, REWARM_SERVER_NAME)",
    "WRONG_VERSION_NUMBER": "it does not speak TLS, or a proxy on the way does not",
    # what our server answers to plain text, as gRPC tells it
    "(HTTP status 426)": "it speaks TLS: pass tls=True or ca=, or set REWARM_CA",
    "Failed to create security handshaker": "what ca=, certificate= or key= name is no certificate or key that can be used",
}


def _checked(token: str, what: str) -> str:
    if not _TOKEN.fullmatch(token):
        raise InvalidInput(f"{what} is empty, or has a space or another character that no header holds")
    return token


def _seen(file: str | os.PathLike[str]) -> Sequence[Any] | None:
    """Which of its contents a file has; None where it is not there."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _bytes(file: str | os.PathLike[str], name: str) -> bytes:
    try:
        found = Path(file).read_bytes()
    except OSError as error:
        raise InvalidInput(f"{name} {os.fspath(file)} cannot be read: {_reason(error)}") from None
    if b"-----BEGIN " not in found:
        raise InvalidInput(f"{name} {os.fspath(file)} is not PEM: it has no line that begins with -----BEGIN")
    return found


def _usable(files: Mapping[str, str | os.PathLike[str]]) -> None:
    """Says which file is wrong. gRPC would not: where a name has several addresses it tells what befell the last of them,
    which may be a connection that was refused."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")  # how long a key has to be is for the other side to say
    if ca := files.get("ca"):
        try:
            context.load_verify_locations(ca)
        except ssl.SSLError as error:
            raise InvalidInput(f"ca {os.fspath(ca)} holds no certificate that can be used: {error.reason or error}") from None
    if "certificate" in files:
        certificate, key = files["certificate"], files["key"]
        try:
            context.load_cert_chain(certificate, key, password="")
        except ssl.SSLError as error:
            raise InvalidInput(f"certificate {os.fspath(certificate)} and key {os.fspath(key)} cannot be used together: "
                               f"{error.reason or error}") from None


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else "it is not a text"
