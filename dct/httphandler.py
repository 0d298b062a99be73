"""One connection of the HTTP server: reads requests within bounds, refuses whoever may not ask, sends replies.

Requests are OpenAI's (`protocol`); what they ask for is made at the server's `Desk`.
"""

import hmac
import io
import select
import socket
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from dct import plainjson
from dct.answering import Reply
from dct.errors import DctError
from dct.protocol import Call, RefusedError, Writer, error_object, model_list, model_object
from dct.serving import BusyError

if TYPE_CHECKING:
    from dct.httpserver import Server

BODY = 2**20
"""Bytes of a request, at most."""

READ_SECONDS = 20.0
"""In which a request must have come, and a piece of a reply must have gone."""

LOOK_SECONDS = 0.25
"""How often a connection that waits is looked at, whether its client is still there."""

LISTED = 16
"""Vectors of the ranking that /v1/models lists."""


class Timed(io.RawIOBase):
    """What a socket brings until a moment: a client that sends a byte now and then does not keep it open."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection, self.until = connection, 0.0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self.until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.connection.settimeout(left)
        try:
            return self.connection.recv_into(buffer)
        finally:
            self.connection.settimeout(READ_SECONDS)


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection, one after the other."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "dct", ""
    timeout = READ_SECONDS
    disable_nagle_algorithm = True
    server: "Server"

    def setup(self) -> None:
        """Reads against the clock."""
        super().setup()
        self.timed = Timed(self.connection)
        self.rfile = io.BufferedReader(self.timed)

    def handle_one_request(self) -> None:
        """A request has so long to come."""
        self.timed.until = time.monotonic() + READ_SECONDS
        super().handle_one_request()

    def handle_expect_100(self) -> bool:
        """A client that asks before it sends much is told whether it may."""
        if self._length() > BODY:
            return True  # `do_POST` refuses it
        return super().handle_expect_100()

    def do_GET(self) -> None:
        """/v1/models, and one of them."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """/v1/chat/completions and /v1/completions."""
        self._answer(self._post)

    def _other(self) -> None:
        self.close_connection = True

        def refuse() -> None:
            raise RefusedError(f"{self.command} is not answered here", status=405)

        self._answer(refuse)

    do_PUT = do_DELETE = do_PATCH = do_HEAD = do_OPTIONS = _other  # noqa: N815 (http.server's)

    def _answer(self, work: Callable[[], None]) -> None:
        """Does the work; what goes wrong is told as OpenAI's clients read it."""
        self.sent = False
        self.named = ""
        try:
            self._check()
            work()
        except BusyError as error:
            self._refuse(error, 429, {"Retry-After": "1"})
        except RefusedError as error:
            self._refuse(error, error.status)
        except TimeoutError:
            self._refuse(DctError(f"the request did not come within {READ_SECONDS:g} seconds"), 408)
        except OSError:  # the client has gone
            self.close_connection = True
        except DctError as error:
            self._refuse(error, 503, {"x-should-retry": "false"})
        except Exception as error:  # the model's own code may raise anything; the server lives on
            self._refuse(DctError(f"{type(error).__name__}: {str(error)[:200]}"), 500, {"x-should-retry": "false"})

    def _check(self) -> None:
        """Who may ask: programs that know where they ask, not pages in a browser."""
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or not self._allowed(hosts[0]):
            self.close_connection = True
            raise RefusedError("this server answers by its own address alone: look at the Host header", status=403)
        if self.headers.get("Origin") is not None or self.headers.get("Sec-Fetch-Site", "none") != "none":
            self.close_connection = True
            raise RefusedError("this server does not answer web pages", status=403)
        if self.server.key is not None:
            given = self.headers.get("Authorization", "").encode()
            if not hmac.compare_digest(given, f"Bearer {self.server.key}".encode()):
                self.close_connection = True
                raise RefusedError("wrong API key, or none", status=401, code="invalid_api_key")

    def _allowed(self, host: str) -> bool:
        try:
            return self.server.allows(host)
        except ValueError:  # no host at all
            return False

    def _get(self) -> None:
        path = unquote(urlsplit(self.path).path)
        mixtures = self.server.reader.mixtures
        if self._length():
            self.close_connection = True  # a body that nobody reads
        if path == "/v1/models":
            self._send(model_list(mixtures, LISTED))
            return
        name = path.removeprefix("/v1/models/")
        if name == path:
            raise RefusedError(f"nothing at {path[:200]!r}: try /v1/models", status=404)
        try:
            mixtures.vector(name)
        except DctError as error:
            raise RefusedError(str(error), "model", status=404, code="model_not_found") from error
        self._send(model_object(name))

    def _post(self) -> None:
        reader = self.server.reader
        routes = {"/v1/chat/completions": reader.chat, "/v1/completions": reader.completion}
        read = routes.get(urlsplit(self.path).path)
        body = self._body()
        if read is None:
            raise RefusedError(f"nothing at {self.path[:200]!r}: try {', '.join(routes)}", status=404)
        with self.server.reading:  # tokenizers do not like threads
            call = read(body)
        self.named = call.model
        reply = self.server.desk.put(call.ask)
        try:
            (self._stream if call.stream else self._whole)(call, reply)
        finally:
            reply.cancel()

    def _length(self) -> int:
        told = self.headers.get_all("Content-Length") or ["0"]
        return int(told[0]) if len(told) == 1 and told[0].isascii() and told[0].isdecimal() else BODY + 1

    def _body(self) -> Any:
        """The JSON that was sent.

        Raises:
            RefusedError: it is none, or too much.
        """
        self.close_connection = True  # unless all of it is read
        if self.headers.get("Transfer-Encoding") is not None or self.headers.get("Content-Length") is None:
            raise RefusedError("say how long the request is (Content-Length)", status=411)
        length = self._length()
        if length > BODY:
            raise RefusedError(f"a request has {BODY:,} bytes at most", status=413)
        if self.headers.get_content_type() != "application/json":
            raise RefusedError("a request is application/json", status=415)
        raw = self.rfile.read(length)
        if len(raw) < length:
            raise ConnectionError
        self.close_connection = self.headers.get("Connection", "").lower() == "close"
        try:
            return plainjson.loads(raw)
        except ValueError as error:
            raise RefusedError(f"the request is no JSON: {error}") from error

    def _whole(self, call: Call, reply: Reply) -> None:
        while not reply.over:
            reply.wait(2**62, LOOK_SECONDS)
            self._still_there()
        self._check_made(reply)
        self._send(Writer(call).whole(reply))

    def _stream(self, call: Call, reply: Reply) -> None:
        """The reply in pieces, as they come, and [DONE] behind them."""
        writer, sent, opened = Writer(call), 0, False
        while True:
            over = reply.over
            text = reply.text
            if text[sent:] or (over and reply.finish is not None):
                if not opened:
                    opened = True
                    self._open_stream()
                    self._event(writer.begun())
                if text[sent:]:
                    self._event(writer.piece(text[sent:]))
                sent = len(text)
            if over:
                break
            reply.wait(sent, LOOK_SECONDS)
            self._still_there()
        if not opened:
            self._check_made(reply)
        try:
            self._check_made(reply)
        except DctError as error:  # too late for a status
            self._event(error_object(error, 500))
        else:
            for last in writer.ended(reply):
                self._event(last)
        self.wfile.write(b"data: [DONE]\n\n")

    def _still_there(self) -> None:
        """Raises ConnectionError where the client has gone."""
        ready, _, _ = select.select([self.connection], [], [], 0)
        if ready and self.connection.recv(1, socket.MSG_PEEK) == b"":
            raise ConnectionError

    def _check_made(self, reply: Reply) -> None:
        """Raises what went wrong with a reply."""
        if reply.error is not None:
            raise reply.error
        if reply.finish is None:
            seconds = self.server.desk.seconds
            raise RefusedError(f"not done within {seconds:g} seconds", status=504, code="timeout")

    def _open_stream(self) -> None:
        self.close_connection = True
        self._head(200, {"Content-Type": "text/event-stream; charset=utf-8"})

    def _event(self, content: dict[str, Any] | None) -> None:
        if content is not None:
            self.wfile.write(f"data: {plainjson.dumps(content, strict=False)}\n\n".encode())

    def _refuse(self, error: Exception, status: int, more: dict[str, str] | None = None) -> None:
        """Tells of an error, where that is still possible."""
        if self.sent:
            self.close_connection = True
            return
        more = {**(more or {}), **({"x-should-retry": "false"} if status == 504 else {})}
        try:
            self._send(error_object(error, status), status, more)
            if self.close_connection:
                self._let_go()
        except OSError:
            self.close_connection = True

    def _send(self, content: dict[str, Any], status: int = 200, more: dict[str, str] | None = None) -> None:
        data = plainjson.dumps(content, strict=False).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(data)), **(more or {})}
        self._head(status, headers)
        if self.command != "HEAD":
            self.wfile.write(data)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.sent = True
        self.send_response_only(status, HTTPStatus(status).phrase)
        kept = "close" if self.close_connection else "keep-alive"
        for name, value in {**headers, "Connection": kept, "X-Content-Type-Options": "nosniff"}.items():
            self.send_header(name, value)
        self.end_headers()
        self.server.tell(f"{self.command} {self.path[:100]} {self.named} {status}")

    def _let_go(self) -> None:
        """Ends a connection whose request was not read: a client that still sends would lose the answer otherwise."""
        self.connection.shutdown(socket.SHUT_WR)
        self.timed.until = time.monotonic() + 2.0
        left = 16 * BODY
        while left > 0 and (got := self.rfile.read1(2**16)):
            left -= len(got)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (http.server's)
        """Nothing: `tell` has one line for each request."""
