"""A proxy between a client and a store that does what networks, gateways and stores do wrong.

It speaks just enough HTTP/1.1 to know where a request ends and what it asks for, and passes
bytes on as they come, so that it is not the slowest part.
"""

import contextlib
import random
import select
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args
from urllib.parse import parse_qs, urlsplit

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

Fault = Literal[
    "503",
    "500",
    "429",
    "expired",
    "skewed",
    "delay",
    "blackhole",
    "late",
    "reset before",
    "reset inside",
    "lost answer",
    "cut",
    "flip up",
    "flip down",
    "flip id",
    "no condition",
    "409",
    "no crc",
]
"""`blackhole` never answers; `late` does the same, and the store gets the request when the
client has given it up; `reset inside` ends in the middle of what is sent, `cut` in the middle of
what comes back; `lost answer` after the store has done it; `flip id` damages the id of an upload.
`no condition` strips conditions, `409` is how some stores say 412, `no crc` refuses the SDK's
checksums."""

FAULTS: Final[tuple[Fault, ...]] = get_args(Fault)

CHUNK_BYTES: Final = 64 * 1024
DELAY_SECONDS: Final = 0.3

_ANSWERS: Final[Mapping[str, tuple[str, str]]] = {
    "503": ("503 Slow Down", "SlowDown"),
    "500": ("500 Internal Server Error", "InternalError"),
    "429": ("429 Too Many Requests", "TooManyRequests"),
    "expired": ("400 Bad Request", "ExpiredToken"),
    "skewed": ("403 Forbidden", "RequestTimeTooSkewed"),
    "no crc": ("400 Bad Request", "InvalidArgument"),
}

_CONDITIONS: Final = ("if-none-match", "if-match")
_CRC: Final = ("x-amz-checksum-", "x-amz-sdk-checksum-", "x-amz-trailer")


class Gone(Exception):
    """One side has closed the connection."""


@dataclass(frozen=True)
class Request:
    """What the client asks for."""

    method: str
    operation: str
    """As S3 calls it."""
    path: str
    headers: Mapping[str, str]

    @property
    def body_bytes(self) -> int:
        """How long its body is."""
        return int(self.headers.get("content-length", "0"))

    @property
    def has_crc(self) -> bool:
        """Whether it carries, or asks for, the SDK's checksums."""
        return any(name.startswith(_CRC) for name in self.headers)


class Proxy:
    """Forwards S3 requests and applies planned faults.

    Attributes:
        choose: decides about the fault of a request; what is planned, unless replaced.
        seen: how many requests there were, by operation.
        late_seconds: how long `late` and `blackhole` keep silent.
    """

    def __init__(self, environment: Mapping[str, str], tls: ssl.SSLContext | None = None) -> None:
        """Listen on loopback in a thread of its own.

        Args:
            environment: the AWS SDK's variables for the store behind.
            tls: for clients that come by https.
        """
        self.environment = environment
        self.target = str(urlsplit(environment["AWS_ENDPOINT_URL"]).netloc)
        self.choose: Callable[[Request], Fault | None] = self._take
        self.applied: list[Fault] = []
        self.seen: Counter[str] = Counter()
        self.late_seconds = 60.0
        self._planned: list[tuple[str, Fault]] = []
        self._always: list[tuple[str, Fault]] = []
        self._lock = threading.Lock()
        self._tls = tls
        self._over = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        scheme = "http" if tls is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def plan(self, what: str, fault: Fault, times: int = 1) -> None:
        """Do this to the next requests of a method or operation."""
        self._planned += [(what, fault)] * times

    def always(self, what: str, fault: Fault) -> None:
        """Do this to every request of a method or operation, or to all (`*`)."""
        self._always.append((what, fault))

    def heal(self) -> None:
        """Forget everything that is planned."""
        self._planned, self._always = [], []

    def close(self) -> None:
        """Stop listening and let every connection go."""
        self._over.set()
        self._listener.close()

    def count(self, fault: Fault) -> None:
        """Remember that a fault was applied."""
        with self._lock:
            self.applied.append(fault)

    def wait(self, seconds: float) -> None:
        """Keep silent, but not longer than the proxy lives."""
        self._over.wait(seconds)

    def _take(self, request: Request) -> Fault | None:
        """Use up the next planned fault if it is for this request."""
        with self._lock:
            for place, (what, fault) in enumerate(self._planned):
                if what in {request.method, request.operation, "*"}:
                    del self._planned[place]
                    return fault
        for what, fault in self._always:
            if what in {request.method, request.operation, "*"}:
                return fault
        return None

    def _accept(self) -> None:
        while not self._over.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            if self._tls is not None:
                client = self._tls.wrap_socket(client, server_side=True)
            conversation = _Conversation(self, client)
            with contextlib.closing(conversation):
                while not self._over.is_set() and conversation.turn():
                    pass
        except (Gone, OSError):
            pass
        finally:
            client.close()


class _Conversation:
    """One client connection and the connection to the store behind it."""

    def __init__(self, owner: Proxy, client: socket.socket) -> None:
        self.owner = owner
        self.client = _Side(client)
        self.store: _Side | None = None

    def close(self) -> None:
        if self.store is not None:
            self.store.socket.close()

    def turn(self) -> bool:
        """Serve one request; tell whether another may follow."""
        head = self.client.read_head()
        request = _parse(head)
        self.owner.seen[request.operation] += 1
        fault = self.owner.choose(request)
        if fault == "no crc" and not request.has_crc:
            fault = None
        if fault == "flip up" and not request.body_bytes:
            fault = None
        if fault is not None and fault in _ANSWERS:
            self.owner.count(fault)
            self._read_body(request)
            self.client.send(_answer(*_ANSWERS[fault], has_body=request.method != "HEAD"))
            return True
        if fault in {"blackhole", "late", "reset before"}:
            return self._leave(request, head, fault)
        if fault == "delay":
            self.owner.wait(DELAY_SECONDS)
        return self._forward(request, head, fault)

    def _leave(self, request: Request, head: bytes, fault: Fault) -> bool:
        """Do not answer."""
        self.owner.count(fault)
        if fault == "reset before":
            self.client.reset()
            return False
        body = self._read_body(request)
        self.owner.wait(self.owner.late_seconds)
        if fault == "late":
            store = self._connect()
            store.send(_rewritten(head, ()) + body)
            store.read_head()
        return False

    def _forward(self, request: Request, head: bytes, fault: Fault | None) -> bool:
        store = self._connect()
        if fault == "no condition":
            whole = self._read_body(request)
            store.send(self._without_conditions(request, head, whole) + whole)
            return self._return(request, store, fault)
        head = _rewritten(head, ())
        if fault in {"flip up", "reset inside"}:
            body = bytearray(self._read_body(request))
            if fault == "reset inside":
                self.owner.count(fault)
                store.send(head + body[: len(body) // 2])
                store.reset()
                self.client.reset()
                return False
            _flip(body)
            store.send(head + body)
        else:
            store.send(head)
            self._expect(request)
            self.client.relay(store, request.body_bytes)
        return self._return(request, store, fault)

    def _without_conditions(self, request: Request, head: bytes, body: bytes) -> bytes:
        """Sign anew what is left, as a store that ignores conditions sees no difference."""
        environment = self.owner.environment
        line = head.split(b"\r\n", 1)[0].decode("latin-1")
        unsigned = {
            name: value
            for name, value in request.headers.items()
            if name not in {*_CONDITIONS, "authorization", "expect", "user-agent"}
        }
        url = f"http://{request.headers['host']}{line.split(' ')[1]}"
        signed = AWSRequest(request.method, url, headers=unsigned, data=body)
        credentials = Credentials(
            environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"]
        )
        S3SigV4Auth(credentials, "s3", environment["AWS_REGION"]).add_auth(signed)
        lines = [f"{name}: {value}" for name, value in signed.headers.items()]
        return "\r\n".join([line, *lines, "", ""]).encode("latin-1")

    def _return(self, request: Request, store: "_Side", fault: Fault | None) -> bool:
        """Pass the answer on."""
        head = store.read_head()
        headers = _headers(head)
        status = head.split(b" ", 2)[1]
        has_body = request.method != "HEAD" and status not in {b"204", b"304"}
        is_chunked = headers.get("transfer-encoding") == "chunked"
        body_bytes = int(headers.get("content-length", "0")) if has_body else 0
        if fault == "lost answer":
            self.owner.count(fault)
            self.client.reset()
            store.socket.close()
            return False
        if fault == "409" and status == b"412":
            self.owner.count(fault)
            store.read_chunks() if is_chunked else store.read(body_bytes)
            self.client.send(_answer("409 Conflict", "ConditionalRequestConflict"))
            return True
        if fault in {"flip down", "flip id", "cut"} and (is_chunked or body_bytes):
            body = bytearray(store.read_chunks() if is_chunked else store.read(body_bytes))
            self.owner.count(fault)
            if fault == "flip down" and body:
                _flip(body)
            if fault == "flip id":
                body[body.index(b"<UploadId>") + len(b"<UploadId>")] ^= 1
            sent = body[: len(body) // 2] if fault == "cut" else body
            self.client.send(_measured(head, len(body)) + bytes(sent))
            return fault != "cut"
        if fault in {"flip up", "delay", "no condition"}:
            self.owner.count(fault)
        if has_body and is_chunked:
            whole = store.read_chunks()
            self.client.send(_measured(head, len(whole)) + whole)
        else:
            self.client.send(head)
            store.relay(self.client, body_bytes)
        return headers.get("connection") != "close"

    def _connect(self) -> "_Side":
        if self.store is not None and self.store.is_closed():
            self.store.socket.close()
            self.store = None
        if self.store is None:
            host, _, port = self.owner.target.partition(":")
            self.store = _Side(socket.create_connection((host, int(port))))
            self.store.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self.store

    def _expect(self, request: Request) -> None:
        if request.headers.get("expect") == "100-continue":
            self.client.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _read_body(self, request: Request) -> bytes:
        self._expect(request)
        return self.client.read(request.body_bytes)


class _Side:
    """A socket that is read by heads, lengths and chunks."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self._ahead = b""

    def send(self, data: bytes | bytearray) -> None:
        self.socket.sendall(data)

    def reset(self) -> None:
        """Close so that the other side sees a reset and not an end."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def is_closed(self) -> bool:
        """Tell whether the other side has ended an idle connection."""
        return bool(select.select([self.socket], [], [], 0)[0])

    def read_head(self) -> bytes:
        return self._read_until(b"\r\n\r\n")

    def read(self, count: int) -> bytes:
        while len(self._ahead) < count:
            self._ahead += self._receive(max(CHUNK_BYTES, count - len(self._ahead)))
        found, self._ahead = self._ahead[:count], self._ahead[count:]
        return found

    def read_chunks(self) -> bytes:
        body = b""
        while size := int(self._read_until(b"\r\n").split(b";")[0], 16):
            body += self.read(size)
            self.read(2)
        self._read_until(b"\r\n")
        return body

    def relay(self, other: "_Side", count: int) -> None:
        """Pass so many bytes on as they come."""
        if count and self._ahead:
            start = self.read(min(count, len(self._ahead)))
            other.send(start)
            count -= len(start)
        while count:
            data = self._receive(min(CHUNK_BYTES, count))
            other.send(data)
            count -= len(data)

    def _read_until(self, end: bytes) -> bytes:
        while (place := self._ahead.find(end)) < 0:
            self._ahead += self._receive(CHUNK_BYTES)
        place += len(end)
        found, self._ahead = self._ahead[:place], self._ahead[place:]
        return found

    def _receive(self, count: int) -> bytes:
        if not (data := self.socket.recv(count)):
            raise Gone
        return data


def _flip(body: bytearray) -> None:
    """Turn over one bit, anywhere."""
    body[random.randrange(len(body))] ^= 1 << random.randrange(8)


def _parse(head: bytes) -> Request:
    method, target, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
    parts = urlsplit(target)
    asked = parse_qs(parts.query, keep_blank_values=True)
    return Request(method, _operation(method, asked), parts.path, _headers(head))


def _operation(method: str, asked: Mapping[str, list[str]]) -> str:
    match method:
        case "PUT":
            return "UploadPart" if "partNumber" in asked else "PutObject"
        case "POST" if "uploads" in asked:
            return "CreateMultipartUpload"
        case "POST":
            return "DeleteObjects" if "delete" in asked else "CompleteMultipartUpload"
        case "DELETE":
            return "AbortMultipartUpload" if "uploadId" in asked else "DeleteObject"
        case "GET" if "uploads" in asked:
            return "ListMultipartUploads"
        case "GET":
            return "ListObjects" if "list-type" in asked else "GetObject"
        case _:
            return "HeadObject"


def _lines(head: bytes) -> Iterator[bytes]:
    yield from head.split(b"\r\n")[1:-2]


def _headers(head: bytes) -> Mapping[str, str]:
    pairs = (line.decode("latin-1").partition(":") for line in _lines(head))
    return {name.lower(): value.strip() for name, _, value in pairs}


def _rewritten(head: bytes, dropped: tuple[str, ...]) -> bytes:
    """Leave out headers; the proxy itself has told the client to go on."""
    unwanted = {*dropped, "expect"}
    first = head.split(b"\r\n", 1)[0]
    kept = [
        line
        for line in _lines(head)
        if line.partition(b":")[0].decode("latin-1").lower() not in unwanted
    ]
    return b"\r\n".join([first, *kept, b"", b""])


def _measured(head: bytes, body_bytes: int) -> bytes:
    """Say the length of a body that came in chunks."""
    if "content-length" in _headers(head):
        return head
    rest = _rewritten(head, ("transfer-encoding",)).removesuffix(b"\r\n")
    return rest + f"Content-Length: {body_bytes}\r\n\r\n".encode()


def _answer(status: str, code: str, *, has_body: bool = True) -> bytes:
    body = f"<Error><Code>{code}</Code><Message>by the proxy</Message></Error>".encode()
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\n"
        f"Date: {time.strftime('%a, %d %b %Y %H:%M:%S GMT', time.gmtime())}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + (body if has_body else b"")
