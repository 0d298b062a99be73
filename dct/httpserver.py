"""HTTP for one program and its clients on the same machine: OpenAI's interface in front of a `Desk`.

Python's own `http.server`, a thread for each connection: what takes time here is the model, there are hundreds of
connections at most, and a framework would bring five packages for four routes. What that server leaves open is closed
here: how long a client may take, how much it may send, how many there may be, and who may ask. A web page in the
reader's browser may not: nothing here needs it, and a page can reach every port of its machine.
"""

import ipaddress
import socket
import threading
from collections.abc import Callable
from http.server import ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any
from urllib.parse import urlsplit

from dct.errors import DctError
from dct.httphandler import Handler
from dct.protocol import Reader
from dct.serving import Desk

SPARE = 64
"""Connections beside those that wait or are answered."""

Told = Callable[[str], None]


def loopback(host: str) -> bool:
    """Whether a name or address is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class Server(ThreadingHTTPServer):
    """The server; it answers while `serve_forever` runs.

    Args:
        reader, desk: read and answer requests.
        host, port: where it listens; port 0 is any that is free.
        key: what clients must send as their API key, if anything.
        tell: called with one line for each request.

    Raises:
        DctError: it cannot listen there.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 512

    def __init__(
        self, reader: Reader, desk: Desk, host: str, port: int, *, key: str | None = None, tell: Told | None = None
    ) -> None:
        self.reader, self.desk, self.host, self.key = reader, desk, host, key
        self.tell = tell or (lambda line: None)
        self._places = threading.BoundedSemaphore(desk.batch + desk.waiting + SPARE)
        self.reading = threading.Lock()
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            self.address_family = found[0][0]
            super().__init__((host, port), Handler)
        except (OSError, UnicodeError) as error:
            why = getattr(error, "strerror", None) or error
            raise DctError(f"cannot listen on {host}, port {port} ({why}): choose another `port` or `host`") from error

    @property
    def url(self) -> str:
        """What clients take as their base URL."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{name}:{self.server_address[1]}/v1"

    def server_bind(self) -> None:
        """Listens, without asking the network for this machine's name as http.server would."""
        self.allow_reuse_address = True
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.host, int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for the connection, if there are not too many."""
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answers a connection to its end."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection broke: its client has gone, and there is nobody to tell."""

    def allows(self, host: str) -> bool:
        """Whether a request may be for this host. A page of any name can have that name point here (DNS rebinding):
        what is asked of this server is asked by address, or by the name that it was given."""
        name = urlsplit(f"//{host}").hostname or ""
        if loopback(name) or name == self.host.lower():
            return True
        if loopback(self.host):
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True
