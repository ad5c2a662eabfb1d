"""An HTTP proxy before one server, which spoils some of the answers by rules that a test sets."""

import http.client
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal, cast
from urllib.parse import urlsplit

Fault = Literal["busy", "forbidden", "late", "cut", "refuse"]
"""busy, forbidden: an S3 error is sent instead of an answer. late: the answer comes after some seconds.
cut: the request is done, but its answer stops in the middle, or does not come at all if it has no body.
refuse: the request is not done, and the connection ends in the middle of it.
"""
S3_ERRORS = {
    "busy": (503, "SlowDown", "Please reduce your request rate."),
    "forbidden": (403, "AccessDenied", "Access Denied"),
}


@dataclass(kw_only=True)
class Rule:
    """A rule that spoils every n-th request whose "METHOD /path?query" matches; n is `every`."""

    fault: Fault
    every: int = 1
    at_most: int = 10**9
    match: str = ""
    seconds: float = 0.0
    """The delay of a late answer."""
    seen: int = 0
    spoilt: int = 0

    def applies(self, request: str) -> bool:
        """Count a request, and return True if it is to be spoilt."""
        matches = re.search(self.match, request) is not None
        self.seen += matches
        return matches and self.seen % self.every == 0 and self.spoilt < self.at_most


class Proxy(ThreadingHTTPServer):
    """A proxy on a free port of loopback, which runs until it is closed and keeps a list of all requests."""

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.upstream = cast(str, urlsplit(upstream).netloc)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.rules: list[Rule] = []
        self.requests: list[str] = []
        self.num_bytes_answered = 0
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @contextmanager
    def spoiling(self, *rules: Rule) -> Iterator[None]:
        """Apply these rules for the duration of a `with` block."""
        self.rules = list(rules)
        try:
            yield
        finally:
            self.rules = []

    def rule_for(self, request: str) -> Rule | None:
        """Return the first rule that spoils this request; every rule counts the request."""
        with self.lock:
            self.requests.append(request)
            applying = [rule for rule in self.rules if rule.applies(request)]
            if not applying:
                return None
            applying[0].spoilt += 1
            return applying[0]

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that hang up, which these tests make them do."""


class Handler(BaseHTTPRequestHandler):
    """The handler of one connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Proxy

    def do_any(self) -> None:
        """Forward a request and its answer, or spoil them."""
        rule = self.server.rule_for(f"{self.command} {self.path}")
        fault = rule.fault if rule else None
        length = int(self.headers.get("Content-Length", 0))
        if fault == "refuse":
            self.rfile.read(length // 2)
            self.close_connection = True
            return
        sent = self.rfile.read(length)
        if rule and fault == "late":
            time.sleep(rule.seconds)
        answer, content = self.error(fault) if fault in S3_ERRORS else self.forward(sent)
        if fault == "cut":
            self.close_connection = True
            if not content:
                return
        for name, value in answer:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if fault == "cut" else content)
        self.server.num_bytes_answered += len(content)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_any

    def forward(self, sent: bytes) -> tuple[list[tuple[str, str]], bytes]:
        """Forward a request to the server, send the first line of its answer, and return its headers and content."""
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("expect", "connection")}
        connection = http.client.HTTPConnection(self.server.upstream, timeout=60)
        try:
            connection.request(self.command, self.path, sent, headers)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        kept = [
            header for header in answer.getheaders() if header[0].lower() not in ("connection", "transfer-encoding")
        ]
        if "content-length" not in (name.lower() for name, _ in kept):
            kept.append(("Content-Length", str(len(content))))
        self.send_response_only(answer.status)
        return kept, content

    def error(self, fault: str) -> tuple[list[tuple[str, str]], bytes]:
        """Send the first line of an S3 error, and return its headers and content."""
        status, code, message = S3_ERRORS[fault]
        content = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
        self.send_response_only(status)
        content = b"" if self.command == "HEAD" else content
        return [("Content-Type", "application/xml"), ("Content-Length", str(len(content)))], content

    def log_message(self, *_: object) -> None:
        """Log nothing."""
