# SPDX-License-Identifier: Apache-2.0
"""A gRPC server that says whatever a test wants: HTTP/2 by hand (RFC 9113), over TLS, on loopback.
It does not look into requests but for their messages."""

import socket
import ssl
import threading

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_STREAM, END_HEADERS, ACK = 1, 4, 1


def varint(number):
    out = b""
    while number > 0x7f:
        out += bytes([number & 0x7f | 0x80])
        number >>= 7
    return out + bytes([number])


def field(number, value):
    """A field of a protobuf message: a number, or bytes."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


HEADER = field(1, field(1, 77) + field(3, 5))  # cluster 77, revision 5


def register(key, value):
    return field(2, field(1, key.encode()) + field(2, 3) + field(5, value.encode()))


class Gone(Exception):
    """The client has closed the connection."""


class Exchange:
    """One request, `message`, on a connection; what is sent is the answer to it."""

    def __init__(self, connection, stream, message):
        self.connection, self.stream, self.message = connection, stream, message

    def frame(self, kind, flags, payload, stream=None):
        self.raw(len(payload).to_bytes(3, "big") + bytes([kind, flags]) +
                 (self.stream if stream is None else stream).to_bytes(4, "big") + payload)

    def raw(self, data):
        try:
            self.connection.sendall(data)
        except OSError as gone:
            raise Gone from gone

    def headers(self, *pairs, end=False):
        """Each name and value as a literal; none of them in the tables (RFC 7541, 6.2.2)."""
        block = b"".join(b"\0" + bytes([len(text.encode())]) + text.encode() if i == 0 else
                         bytes([len(text.encode())]) + text.encode()
                         for pair in pairs for i, text in enumerate(pair))
        self.frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), block)

    def start(self, status="200"):
        self.headers((":status", status), ("content-type", "application/grpc"))

    def data(self, data, end=False):
        self.frame(DATA, END_STREAM if end else 0, data)

    def end(self, status="0", text=None):
        self.headers(("grpc-status", status), *([("grpc-message", text)] if text else []), end=True)

    def answer(self, message):
        """As a server should."""
        self.start()
        self.data(b"\0" + len(message).to_bytes(4, "big") + message)
        self.end()


class Stub:
    """Listens at a port of 127.0.0.1; `play(exchange)` is called for each request, in a thread of
    its connection, which is closed when that returns a true value. before: called with each new
    socket instead of TLS, if given."""

    def __init__(self, folder, play, alpn="h2", before=None):
        self.play, self.before = play, before
        self.messages = []  # of all requests
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.load_cert_chain(f"{folder}/server.pem", f"{folder}/server.key")
        if alpn:
            self.tls.set_alpn_protocols([alpn])
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self.listener.getsockname()[1]}"
        self.over = threading.Event()
        self.threads = [threading.Thread(target=self.accept)]
        self.threads[0].start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.over.set()
        self.listener.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join(20)
        self.listener.close()

    def accept(self):
        while True:
            try:
                plain, _ = self.listener.accept()
            except OSError:
                return
            self.threads.append(threading.Thread(target=self.serve, args=(plain,)))
            self.threads[-1].start()

    def serve(self, plain):
        plain.settimeout(10)
        try:
            with plain:
                if self.before:
                    self.before(plain)
                    return
                with self.tls.wrap_socket(plain, server_side=True) as connection:
                    self.talk(connection)
        except (OSError, Gone):
            pass

    def talk(self, connection):
        def read(n):
            data = b""
            while len(data) < n:
                more = connection.recv(n - len(data))
                if not more:
                    raise Gone
                data += more
            return data

        read(24)  # the preface
        Exchange(connection, 0, b"").frame(SETTINGS, 0, b"")
        bodies = {}
        while not self.over.is_set():
            head = read(9)
            kind, flags = head[3], head[4]
            stream = int.from_bytes(head[5:], "big")
            payload = read(int.from_bytes(head[:3], "big"))
            exchange = Exchange(connection, stream, bodies.get(stream, b""))
            if kind == SETTINGS and not flags & ACK:
                exchange.frame(SETTINGS, ACK, b"")
            elif kind == PING and not flags & ACK:
                exchange.frame(PING, ACK, payload)
            elif kind == DATA:
                exchange.message = bodies[stream] = exchange.message + payload
            if kind in (DATA, HEADERS) and flags & END_STREAM:
                self.messages.append(exchange.message)
                if self.play(exchange):
                    return
