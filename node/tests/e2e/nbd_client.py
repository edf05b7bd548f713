"""A small NBD client on a raw socket: fixed newstyle with NBD_OPT_GO and simple replies, one request at a time.

Numbers as in the protocol's document (NetworkBlockDevice/nbd, doc/proto.md).
"""

import socket
import struct
import urllib.parse

NBDMAGIC, IHAVEOPT, OPTION_REPLY = 0x4E42444D41474943, 0x49484156454F5054, 0x3E889045565A9
REQUEST, SIMPLE_REPLY = 0x25609513, 0x67446698
OPT_GO, REP_ACK, REP_INFO = 7, 1, 3
READ, WRITE, DISC, FLUSH, TRIM = 0, 1, 2, 3, 4
FUA = 1
TIMEOUT = 30.0


class Refused(Exception):
    """The server said no: an option's reply, or a request's error number."""


class Export:
    """One connection to an export. Raises OSError when the connection breaks, `Refused` when a request fails."""

    def __init__(self, url, name):
        if url.startswith("unix:"):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(TIMEOUT)
            self.socket.connect(url.removeprefix("unix:"))
        else:
            parts = urllib.parse.urlsplit(url)
            self.socket = socket.create_connection((parts.hostname, parts.port or 10809), timeout=TIMEOUT)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        magic, options, flags = struct.unpack(">QQH", self.take(18))
        assert (magic, options) == (NBDMAGIC, IHAVEOPT) and flags & 1, "not a fixed newstyle server"
        self.socket.sendall(struct.pack(">I", flags & 3))
        data = struct.pack(">I", len(name)) + name.encode() + struct.pack(">H", 0)
        self.socket.sendall(struct.pack(">QII", IHAVEOPT, OPT_GO, len(data)) + data)
        self.size = self.flags = None
        while True:
            magic, option, kind, length = struct.unpack(">QIII", self.take(20))
            data = self.take(length)
            assert (magic, option) == (OPTION_REPLY, OPT_GO)
            if kind == REP_ACK:
                return
            if kind != REP_INFO:
                raise Refused(f"export {name!r}: reply {kind:#x} {data[:100]!r}")
            if struct.unpack(">H", data[:2])[0] == 0:
                self.size, self.flags = struct.unpack(">QH", data[2:12])

    def take(self, length):
        out = bytearray()
        while len(out) < length:
            part = self.socket.recv(min(1 << 20, length - len(out)))
            if not part:
                raise ConnectionError("the server closed the connection")
            out += part
        return bytes(out)

    def ask(self, what, offset=0, length=0, data=b"", flags=0):
        self.socket.sendall(struct.pack(">IHHQQI", REQUEST, flags, what, 7, offset, length) + data)
        magic, error, cookie = struct.unpack(">IIQ", self.take(16))
        assert (magic, cookie) == (SIMPLE_REPLY, 7), f"an odd reply: {magic:#x} {cookie}"
        if error:
            raise Refused(f"request {what} at {offset}: error {error}")
        return self.take(length) if what == READ else b""

    def read(self, offset, length):
        return self.ask(READ, offset, length)

    def write(self, offset, data, flags=0):
        self.ask(WRITE, offset, len(data), data, flags)

    def flush(self):
        self.ask(FLUSH)

    def trim(self, offset, length):
        self.ask(TRIM, offset, length)

    def close(self):
        """Ends the connection; if the server ends it too within seconds, the volume is unused when this returns."""
        try:
            self.socket.sendall(struct.pack(">IHHQQI", REQUEST, 0, DISC, 7, 0, 0))
            self.socket.settimeout(5.0)
            while self.socket.recv(65536):
                pass
        except OSError:
            pass
        self.socket.close()
