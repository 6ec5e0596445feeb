# SPDX-License-Identifier: LGPL-2.1-or-later
"""A client and a delegate, written from docs/protocol.md alone: nothing here
knows the library's source."""

import array
import os
import socket
import struct

HEADER = struct.Struct("=4sIIIIIQ")
ANSWER = struct.Struct("=IIiIII")
MAGIC, PROTOCOL = b"VIRd", 1
HELLO, OUTCOME = 0, 0xffffffff
SAME_PROCESS = 1
HANDLED, NOT_HANDLED, REFUSED, FAILED, UNKNOWN = range(5)
(MAX_MEM_LOCK, MAX_PROCESSES, MAX_FILES, MAX_CORE_SIZE, SCHEDULER, AFFINITY,
 CGROUP_ADD_THREADS) = range(1, 8)
SPOKEN = [(number, 1, 1) for number in range(1, 8)]
MESSAGE_MAX = 32800


def message(operation, version, body, request, **other):
    """A packet. @other: fields of the header that are to be wrong."""
    field = dict(magic=MAGIC, protocol=PROTOCOL, size=len(body), flags=0)
    field.update(other)
    return HEADER.pack(field["magic"], field["protocol"], operation, version,
                       field["size"], field["flags"], request) + body


def hello(spoken=SPOKEN, request=0, **other):
    body = struct.pack("=II", len(spoken), 0)
    body += b"".join(struct.pack("=III", *entry) for entry in spoken)
    return message(HELLO, 0, body, request, **other)


def body_of(operation, arguments):
    """The body of a request."""
    if operation in (MAX_MEM_LOCK, MAX_CORE_SIZE):
        return struct.pack("=Q", arguments["bytes"])
    if operation in (MAX_PROCESSES, MAX_FILES):
        return struct.pack("=I", arguments["most"])
    if operation == SCHEDULER:
        return struct.pack("=iii", arguments["tid"], arguments["policy"],
                           arguments["priority"])
    if operation == AFFINITY:
        cpumap = bytes(arguments["cpumap"]).rstrip(b"\0")
        return struct.pack("=iI", arguments["tid"], len(cpumap)) + cpumap
    assert operation == CGROUP_ADD_THREADS
    tids, ids = arguments["tids"], arguments["ids"]
    cpumap = bytes(arguments["cpumap"] or ()).rstrip(b"\0")
    return (struct.pack("=iIIII", arguments["role"], len(tids),
                        ids is not None, arguments["cgroup"], len(cpumap))
            + struct.pack(f"={len(tids)}i", *tids)
            + struct.pack(f"={len(ids or ())}I", *(ids or ())) + cpumap)


def request(operation, arguments, number, version=1, flags=0):
    return message(operation, version, body_of(operation, arguments), number,
                   flags=flags)


def question(about, number):
    """What became of request @about?"""
    return message(OUTCOME, 0, struct.pack("=Q", about), number)


def answer(operation, version, number, verdict, code=0, errnum=0, results=(),
           text=""):
    text = text.encode()
    body = ANSWER.pack(verdict, code, errnum, len(results), len(text), 0)
    body += struct.pack(f"={len(results)}i", *results) + text
    return message(operation, version, body, number)


def goodbye(text):
    return answer(OUTCOME, 0, 0, REFUSED, 4, 1, (), text)


def read_header(packet):
    """(operation, version, request, body)"""
    magic, protocol, operation, version, size, flags, number = \
        HEADER.unpack_from(packet)
    body = packet[HEADER.size:]
    assert (magic, protocol) == (MAGIC, PROTOCOL), packet
    is_request = operation not in (HELLO, OUTCOME)
    assert flags == 0 or is_request and flags == SAME_PROCESS, packet
    assert size == len(body), packet
    return operation, version, number, body


def is_of_same_process(packet):
    return HEADER.unpack_from(packet)[5] == SAME_PROCESS


def read_hello(packet):
    operation, version, number, body = read_header(packet)
    assert (operation, version) == (HELLO, 0), packet
    count, reserved = struct.unpack_from("=II", body)
    assert reserved == 0 and len(body) == 8 + 12 * count, packet
    return list(struct.iter_unpack("=III", body[8:])), number


class Answer:
    def __init__(self, packet):
        self.operation, self.version, self.request, body = read_header(packet)
        assert not is_of_same_process(packet), packet
        (self.verdict, self.code, self.errnum, results, text,
         reserved) = ANSWER.unpack_from(body)
        assert reserved == 0 and len(body) == 24 + 4 * results + text, packet
        self.results = struct.unpack_from(f"={results}i", body, 24)
        self.text = body[24 + 4 * results:].decode()
        assert self.text.isprintable(), self.text

    @property
    def is_goodbye(self):
        said = (self.operation, self.request, self.verdict, self.code,
                self.errnum)
        return said == (OUTCOME, 0, REFUSED, 4, 1)

    def __repr__(self):
        return f"Answer({vars(self)})"


def send(sock, packet, descriptors=()):
    rights = array.array("i", descriptors).tobytes()
    control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
    sock.sendmsg([packet], control if descriptors else [])


def receive(sock):
    """A packet, and the descriptors that came along; b"" at the end."""
    packet, control, flags, _ = sock.recvmsg(MESSAGE_MAX + 1,
                                             socket.CMSG_SPACE(4 * 8))
    assert not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)
    descriptors = array.array("i")
    for level, kind, data in control:
        assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        descriptors.frombytes(data)
    return packet, list(descriptors)


def seqpacket():
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(300)
    return sock


class Client:
    """A connection to a delegate."""

    def __init__(self, path, first=None):
        """@first: what to say in the place of a hello."""
        self.sock = seqpacket()
        self.sock.connect(path)
        self.last = int.from_bytes(os.urandom(7), "little") | 1
        self.spoken = None
        send(self.sock, hello() if first is None else first)
        if first is None:
            self.spoken, _ = read_hello(self.sock.recv(MESSAGE_MAX))

    def tell(self, packet, descriptors=()):
        """Sends what is given; what comes, or None at the end."""
        send(self.sock, packet, descriptors)
        said = self.sock.recv(MESSAGE_MAX)
        return Answer(said) if said else None

    def ask(self, operation, arguments, descriptors, version=1, flags=0):
        self.last += 1
        said = self.tell(request(operation, arguments, self.last, version,
                                 flags), descriptors)
        assert (said.operation, said.version, said.request) == \
            (operation, version, self.last), said
        return said

    def became_of(self, number):
        self.last += 1
        said = self.tell(question(number, self.last))
        assert (said.operation, said.request) == (OUTCOME, self.last), said
        return said

    def is_at_end(self):
        try:
            return self.sock.recv(MESSAGE_MAX) == b""
        except ConnectionResetError:
            return True

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()


def serve(sock, replies, spoken=SPOKEN, greeting=None, most=None):
    """Serves one connection to its end. replies(packet, descriptors) says what
    to answer, or None to close. @most: how many it answers before it closes.
    """
    with sock:
        packet, descriptors = receive(sock)
        if not packet:
            return
        assert not descriptors
        _, number = read_hello(packet)
        send(sock, hello(spoken, number) if greeting is None else greeting)
        while most is None or most > 0:
            packet, descriptors = receive(sock)
            if not packet:
                return
            most = most and most - 1
            said = replies(packet, descriptors)
            for fd in descriptors:
                os.close(fd)
            if said is None:
                return
            try:
                send(sock, said)
            except BrokenPipeError:
                return
