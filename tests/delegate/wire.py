# SPDX-License-Identifier: LGPL-2.1-or-later
"""The protocol of a delegate as raw bytes, so that tests can also send what no
client of the library does."""

import array
import collections
import os
import socket
import struct

HEADER = struct.Struct("=4sIIIIIQ")
ANSWER = struct.Struct("=IIiIII")

HELLO, OUTCOME = 0, 0xFFFFFFFF
(MAX_MEM_LOCK, MAX_PROCESSES, MAX_FILES, MAX_CORE_SIZE, SCHEDULER, AFFINITY,
 ADD_THREADS) = range(1, 8)
OPERATIONS = {
    MAX_MEM_LOCK: "process-set-max-mem-lock",
    MAX_PROCESSES: "process-set-max-processes",
    MAX_FILES: "process-set-max-files",
    MAX_CORE_SIZE: "process-set-max-core-size",
    SCHEDULER: "process-set-scheduler",
    AFFINITY: "process-set-affinity",
    ADD_THREADS: "cgroup-add-threads",
}

HANDLED, NOT_HANDLED, REFUSED, FAILED, UNKNOWN = range(5)
VERDICTS = ["handled", "not handled", "refused", "failed", "unknown"]

BODY_MAX = 32768
CPUMAP_MAX = 2048
THREADS_MAX = 3000
OPERATIONS_MAX = 64

PIDFD_THREAD = os.O_EXCL

Answer = collections.namedtuple(
    "Answer", "operation version request verdict code errnum results text")


class Ended(Exception):
    """The delegate closed the connection without a word."""


class Stranger(Ended):
    """The delegate closed the connection because no rule names the peer."""


def header(operation, size, request=1, version=1, magic=b"VIRd", protocol=1,
           flags=0):
    return HEADER.pack(magic, protocol, operation, version, size, flags,
                       request)


def hello_body(spoken=((1, 1, 1),), reserved=0, count=None):
    count = len(spoken) if count is None else count
    return struct.pack("=II", count, reserved) + b"".join(
        struct.pack("=III", *each) for each in spoken)


class Connection:
    """One connection; with @hello both sides have said it."""

    def __init__(self, path, hello=True, timeout=300):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(timeout)
        self.socket.connect(path)
        self.request = 0
        if hello:
            try:
                self.send(HELLO, hello_body(), version=0)
            except (BrokenPipeError, ConnectionResetError):
                # It was ended before; why is still to be read.
                pass
            message = self.receive()
            operation = HEADER.unpack_from(message)[2]
            if operation != HELLO:
                text = read_answer(message).text
                raise (Stranger if text.startswith("no rule names uid ")
                       else Ended)(text)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.socket.close()

    def send_raw(self, message, fds=(), ancillary=()):
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS,
                   array.array("i", fds))] if fds else []
        self.socket.sendmsg([message], [*rights, *ancillary])

    def send(self, operation, body, fds=(), size=None, ancillary=(), **fields):
        if "request" not in fields:
            self.request += 1
            fields["request"] = self.request
        size = len(body) if size is None else size
        self.send_raw(header(operation, size, **fields) + body, fds, ancillary)
        return fields["request"]

    def receive(self):
        try:
            message = self.socket.recv(1 << 17)
        except ConnectionResetError:
            # It has not read all; its last words come behind that.
            message = self.socket.recv(1 << 17)
        if not message:
            raise Ended("the delegate closed the connection")
        return message

    def answer(self):
        return read_answer(self.receive())

    def ask(self, operation, body, fds=(), **fields):
        """The answer to a request."""
        self.send(operation, body, fds, **fields)
        return self.answer()

    def is_ended(self):
        """Whether the delegate has closed it, after its last words."""
        try:
            while True:
                self.receive()
        except Ended:
            return True


def read_answer(message):
    magic, protocol, operation, version, size, flags, request = \
        HEADER.unpack_from(message)
    body = message[HEADER.size:]
    assert (magic, protocol, flags, size) == (b"VIRd", 1, 0, len(body)), message
    verdict, code, errnum, count, length, reserved = ANSWER.unpack_from(body)
    tail = body[ANSWER.size:]
    assert reserved == 0 and len(tail) == 4 * count + length, message
    results = struct.unpack_from(f"={count}i", tail)
    return Answer(operation, version, request, VERDICTS[verdict], code, errnum,
                  results, tail[4 * count:].decode())


def bytes_limit(value):
    return struct.pack("=Q", value)


def count_limit(value):
    return struct.pack("=I", value)


def scheduler(policy, priority, tid=0):
    return struct.pack("=iii", tid, policy, priority)


def affinity(cpumap, tid=0, length=None):
    length = len(cpumap) if length is None else length
    return struct.pack("=iI", tid, length) + cpumap


def add_threads(tids, role=0, ids=None, group=True, cpumap=b"", count=None,
                has_ids=None, length=None):
    count = len(tids) if count is None else count
    has_ids = int(ids is not None) if has_ids is None else has_ids
    length = len(cpumap) if length is None else length
    return (struct.pack("=iIIII", role, count, has_ids, int(group), length) +
            struct.pack(f"={len(tids)}i", *tids) +
            struct.pack(f"={len(ids or ())}I", *(ids or ())) + cpumap)


# What each operation can be asked for, with a value that the tests' policies
# allow.
PLAIN = {
    MAX_MEM_LOCK: bytes_limit(65536),
    MAX_PROCESSES: count_limit(100),
    MAX_FILES: count_limit(64),
    MAX_CORE_SIZE: bytes_limit(0),
    SCHEDULER: scheduler(1, 0),
    AFFINITY: affinity(b"\1"),
}
