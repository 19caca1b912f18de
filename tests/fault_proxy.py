"""An HTTP proxy between the tests and their S3 server that answers some requests badly, by a seeded plan."""

from __future__ import annotations

import http.client
import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FAULTS = ("error", "throttle", "truncate", "stall", "hang-up")
STALL_S = 0.3


class Plan:
    """Which request gets which fault: every `every`-th on average, never more than two in a row."""

    def __init__(self, every: int, seed: int, kinds: tuple[str, ...] = FAULTS) -> None:
        self._random, self._every, self._kinds = random.Random(seed), every, kinds
        self._lock, self._row = threading.Lock(), 0
        self.served: Counter[str] = Counter()
        self.bytes_sent = 0

    def next(self) -> str:
        with self._lock:
            bad = self._row < 2 and self._random.randrange(self._every) == 0
            self._row = self._row + 1 if bad else 0
            kind = self._random.choice(self._kinds) if bad else "good"
            self.served[kind] += 1
            return kind

    def sent(self, count: int) -> None:
        with self._lock:
            self.bytes_sent += count


class Handler(BaseHTTPRequestHandler):
    """One connection of a client; `host` and `plan` are set by the proxy that it belongs to."""

    protocol_version = "HTTP/1.1"
    host: str
    plan: Plan

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def answer(self) -> None:
        kind = self.plan.next()
        if kind == "hang-up":
            self.close_connection = True
            return
        if kind in ("error", "throttle"):
            self.short(500 if kind == "error" else 503, "InternalError" if kind == "error" else "SlowDown")
            return
        status, headers, body = self.fetch()
        if kind == "stall":
            threading.Event().wait(STALL_S)
        sent = body[: len(body) // 2] if kind == "truncate" and len(body) > 1 else body
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "connection", "server", "date"):
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(sent)
        self.plan.sent(len(sent))
        # A client that still waits for the rest sees the connection close, as when a load balancer drops it.
        self.close_connection = len(sent) < len(body) or kind == "stall"

    def fetch(self) -> tuple[int, list[tuple[str, str]], bytes]:
        upstream = http.client.HTTPConnection(self.host, timeout=30)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
            upstream.request(self.command, self.path, headers=headers)
            reply = upstream.getresponse()
            return reply.status, reply.getheaders(), reply.read()
        finally:
            upstream.close()

    def short(self, status: int, code: str) -> None:
        body = f"<Error><Code>{code}</Code><Message>planned</Message></Error>".encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body)


@contextmanager
def fault_proxy(server: str, plan: Plan) -> Iterator[str]:
    """The address of a proxy of `server` (http://host:port) for as long as the context lasts."""
    settings = {"host": server.removeprefix("http://"), "plan": plan}
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), settings))
    proxy.daemon_threads = True
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{proxy.server_address[1]}"
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join(timeout=10)
