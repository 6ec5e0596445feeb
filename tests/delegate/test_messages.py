# SPDX-License-Identifier: LGPL-2.1-or-later
"""Bytes and descriptors that no client of the library sends."""

import ctypes
import os
import select
import signal
import socket
import struct

import stage
import support
import wire
from support import Peer, Qemu, as_peer, expect, test
from wire import Connection

def ends(connection, what):
    """The delegate ends the connection, with a clear word before."""
    answer = connection.answer()
    expect([answer.operation, answer.verdict], [wire.OUTCOME, "refused"], what)
    expect(answer.text != "", True, f"{what}: a text")
    expect(connection.is_ended(), True, f"{what}: the connection ends")
    return answer.text


def _every(outside, path, group, cases):
    """Each case: what it is, and what sends it over a connection."""
    texts = {}
    with Qemu(1) as qemu:
        before = support.limit(qemu.pid, "process-set-max-core-size")
        for what, send in cases(qemu, os.open(group, os.O_PATH)).items():
            with Connection(path) as connection:
                send(connection)
                texts[what] = ends(connection, what)
        expect(support.limit(qemu.pid, "process-set-max-core-size"), before,
               "the process's limit")
        expect(support.schedule(qemu.tids[0]), [os.SCHED_OTHER, 0],
               "the thread's scheduler")
    return texts


def all_end(cases):
    mark = stage.main.mark()
    texts = as_peer(_every, stage.main.socket,
                    str(stage.cgroup("root/qemu/vcpus")), cases,
                    cgroup=stage.cgroup("root"))
    stage.main.require_alive()
    handled = [line for line in stage.main.lines()[mark:]
               if line["outcome"] == "handled"]
    expect(handled, [], "audit lines of operations that were done")
    return texts


CORE = wire.bytes_limit(0)


@test
def a_header_that_is_not_one_ends_the_connection():
    def cases(qemu, group):
        def one(**fields):
            return lambda connection: connection.send(
                wire.MAX_CORE_SIZE, CORE, [qemu.pidfd], **fields)

        def raw(message):
            return lambda connection: connection.send_raw(message,
                                                          [qemu.pidfd])
        whole = wire.header(wire.MAX_CORE_SIZE, len(CORE)) + CORE
        return {
            "other magic": one(magic=b"VIRe"),
            "the other byte order": one(magic=b"dRIV"),
            "protocol 0": one(protocol=0),
            "protocol 2": one(protocol=2),
            **{f"flag {bit}": one(flags=1 << bit) for bit in range(32)},
            "size one less": one(size=len(CORE) - 1),
            "size one more": one(size=len(CORE) + 1),
            "size of all": one(size=0xFFFFFFFF),
            "size 0": one(size=0),
            **{f"{length} bytes in all": raw(whole[:length])
               for length in (1, 4, 31, 32, 33, 39)},
            "one byte more": raw(whole + b"\0"),
            "second hello": lambda connection: connection.send(
                wire.HELLO, wire.hello_body(), version=0),
            "two messages in one": raw(whole + whole),
        }
    all_end(cases)


@test
def a_body_that_is_not_the_operations_ends_the_connection():
    def cases(qemu, group):
        pidfd, tid = qemu.pidfd, qemu.tids[0]
        found = {}

        def add(what, operation, body, fds=(pidfd,)):
            found[what] = lambda connection: connection.send(
                operation, body, fds)
        for operation, body in wire.PLAIN.items():
            name = wire.OPERATIONS[operation]
            add(f"{name} one byte short", operation, body[:-1])
            add(f"{name} one byte long", operation, body + b"\0")
            add(f"{name} empty", operation, b"")
            add(f"{name} of 32768 bytes", operation, bytes(wire.BODY_MAX))
        add("NONE as policy", wire.SCHEDULER, wire.scheduler(0, 0))
        add("affinity without a map", wire.AFFINITY, wire.affinity(b""))
        add("map of 2049 bytes", wire.AFFINITY, wire.affinity(bytes(2049)))
        add("map of all bytes", wire.AFFINITY,
            wire.affinity(b"\1", length=0xFFFFFFFF))
        add("map longer than the body", wire.AFFINITY,
            wire.affinity(b"\1", length=2))
        both = (pidfd, group)
        add("no threads", wire.ADD_THREADS, wire.add_threads([]), both)
        add("3001 threads", wire.ADD_THREADS,
            wire.add_threads([tid] * (wire.THREADS_MAX + 1)), both)
        add("4294967295 threads", wire.ADD_THREADS,
            wire.add_threads([tid], count=0xFFFFFFFF), both)
        add("more threads than there are", wire.ADD_THREADS,
            wire.add_threads([tid], count=2), both)
        add("fewer threads than there are", wire.ADD_THREADS,
            wire.add_threads([tid, tid], count=1), both)
        add("ids that are not there", wire.ADD_THREADS,
            wire.add_threads([tid], has_ids=1), both)
        add("ids neither yes nor no", wire.ADD_THREADS,
            wire.add_threads([tid], ids=[1], has_ids=2), both)
        add("group neither yes nor no", wire.ADD_THREADS,
            wire.add_threads([tid], group=2), both)
        add("group that is not there", wire.ADD_THREADS,
            wire.add_threads([tid], group=1), [pidfd])
        add("group that is not wanted", wire.ADD_THREADS,
            wire.add_threads([tid], group=0), both)
        add("an outcome without a number", wire.OUTCOME, b"", [])
        add("an outcome with more", wire.OUTCOME, bytes(9), [])
        add("an outcome with a descriptor", wire.OUTCOME, bytes(8), [pidfd])
        return found
    all_end(cases)


@test
def a_message_of_more_than_32800_bytes_ends_the_connection():
    def cases(qemu, group):
        return {f"{length} bytes": lambda connection, length=length:
                connection.send_raw(wire.header(
                    wire.MAX_CORE_SIZE, length - 32) + bytes(length - 32),
                    [qemu.pidfd])
                for length in (32801, 65536, 100000)}
    all_end(cases)


def _odd(outside, path):
    """What is understood, but no such operation or argument."""
    found = {}
    with Connection(path) as connection, Qemu(1) as qemu:
        for operation in (8, 9, 63, 64, 1000, 0xFFFFFFFE):
            answer = connection.ask(operation, b"whatever", [qemu.pidfd])
            found[f"operation {operation}"] = [answer.verdict, answer.operation]
            expect(answer.operation, operation, "the answer's operation")
        for version in (0, 2, 0xFFFFFFFF):
            answer = connection.ask(wire.MAX_CORE_SIZE, CORE, [qemu.pidfd],
                                    version=version)
            expect([answer.verdict, answer.code, answer.errnum],
                   ["failed", 2, support.errno.EPROTONOSUPPORT],
                   f"answer to version {version}")
            expect(str(version) in answer.text, True, "the version by name")
        for policy, priority in ((5, 0), (-1, 0), (6, 1), (0x101, 0), (3, 0),
                                 (3, 100), (3, -1), (4, 2147483647)):
            answer = connection.ask(wire.SCHEDULER,
                                    wire.scheduler(policy, priority),
                                    [qemu.pidfd])
            expect([answer.verdict, answer.errnum],
                   ["failed", support.errno.EINVAL],
                   f"answer to policy {policy}, priority {priority}")
        for role in (4, -1, 2147483647):
            answer = connection.ask(
                wire.ADD_THREADS, wire.add_threads(qemu.tids, role=role,
                                                   group=False), [qemu.pidfd])
            expect([answer.verdict, answer.errnum],
                   ["failed", support.errno.EINVAL], f"answer to role {role}")
        expect(support.schedule(qemu.pid), [os.SCHED_OTHER, 0],
               "the process's scheduler")
        # The connection goes on after all of these.
        answer = connection.ask(wire.MAX_CORE_SIZE, CORE, [qemu.pidfd])
        expect(answer.verdict, "handled", "what is asked at last")
    return found


@test
def unknown_operations_are_not_handled_and_unknown_versions_and_values_fail():
    for what, (verdict, _) in as_peer(_odd, stage.main.socket,
                                      cgroup=stage.cgroup("root")).items():
        expect(verdict, "not handled", what)


def _hellos(outside, path):
    cases = {
        "an operation first": (wire.MAX_CORE_SIZE, CORE, 1),
        "an outcome first": (wire.OUTCOME, bytes(8), 0),
        "an empty hello": (wire.HELLO, b"", 0),
        "reserved bytes": (wire.HELLO, wire.hello_body(reserved=1), 0),
        "65 operations": (wire.HELLO, wire.hello_body([(1, 1, 1)] * 65), 0),
        "fewer than it says": (wire.HELLO, wire.hello_body(count=2), 0),
        "more than it says": (wire.HELLO, wire.hello_body(count=0), 0),
        "4294967295 of them": (wire.HELLO, wire.hello_body(count=0xFFFFFFFF),
                               0),
    }
    for what, (operation, body, version) in cases.items():
        with Connection(path, hello=False) as connection:
            connection.send(operation, body, version=version)
            ends(connection, what)
    with Connection(path, hello=False) as connection, Qemu() as qemu:
        connection.send(wire.HELLO, wire.hello_body(), [qemu.pidfd], version=0)
        ends(connection, "a hello with a descriptor")
    for spoken in ([], [(1, 1, 1)] * 64, [(0xFFFFFFFF, 5, 1)]):
        with Connection(path, hello=False) as connection, Qemu() as qemu:
            connection.send(wire.HELLO, wire.hello_body(spoken), version=0)
            connection.receive()
            answer = connection.ask(wire.MAX_CORE_SIZE, CORE, [qemu.pidfd])
            expect(answer.verdict, "handled", f"after the hello {spoken[:2]}")


@test
def a_hello_that_is_none_ends_the_connection():
    as_peer(_hellos, stage.main.socket, cgroup=stage.cgroup("root"))


def wrong_descriptors():
    """Everything that is no pidfd; what must not be closed too early."""
    pipe = os.pipe()
    one, other = socket.socketpair()
    listening = socket.socket(socket.AF_UNIX)
    epoll = select.epoll()
    keep = [pipe, one, other, listening, epoll]
    libc = support.libc
    return {
        "file": os.open("/etc/passwd", os.O_RDONLY),
        "writable file": os.memfd_create("x"),
        "O_PATH file": os.open("/etc/passwd", os.O_PATH),
        "pipe": pipe[0],
        "other end of a pipe": pipe[1],
        "socket": one.fileno(),
        "unconnected socket": listening.fileno(),
        "epoll": epoll.fileno(),
        "eventfd": libc.eventfd(0, 0),
        "timerfd": libc.timerfd_create(1, 0),
        "inotify": libc.inotify_init1(0),
        "directory": os.open("/", os.O_RDONLY | os.O_DIRECTORY),
        "/proc/PID": os.open(f"/proc/{os.getpid()}", os.O_RDONLY),
        "O_PATH /proc/PID": os.open(f"/proc/{os.getpid()}", os.O_PATH),
        "task directory": os.open(f"/proc/{os.getpid()}/task/{os.getpid()}",
                                  os.O_RDONLY),
        "namespace": os.open("/proc/self/ns/pid", os.O_RDONLY),
        "/dev/null": os.open("/dev/null", os.O_RDWR),
        "cgroup": os.open(str(stage.cgroup("root")), os.O_PATH),
    }, keep


@test
def what_is_not_a_pidfd_is_not_taken_for_a_process():
    def cases(qemu, group):
        wrong, keep = wrong_descriptors()
        found = {"a thread": lambda connection, fd=qemu.thread_pidfd():
                 connection.send(wire.MAX_CORE_SIZE, CORE, [fd]),
                 # Its descriptors are closed with the last of these.
                 "none": lambda connection, keep=keep: connection.send(
                     wire.MAX_CORE_SIZE, CORE)}
        for what, fd in wrong.items():
            found[what] = lambda connection, fd=fd: connection.send(
                wire.MAX_CORE_SIZE, CORE, [fd])
            found[f"{what} as a thread"] = lambda connection, fd=fd: \
                connection.send(wire.SCHEDULER, wire.scheduler(
                    1, 0, qemu.tids[0]), [qemu.pidfd, fd])
            if what != "cgroup":
                found[f"{what} as a cgroup"] = lambda connection, fd=fd: \
                    connection.send(wire.ADD_THREADS, wire.add_threads(
                        qemu.tids), [qemu.pidfd, fd])
        found["an open cgroup as a cgroup"] = lambda connection, fd=os.open(
            str(stage.cgroup("root/qemu/vcpus")), os.O_RDONLY): \
            connection.send(wire.ADD_THREADS, wire.add_threads(qemu.tids),
                            [qemu.pidfd, fd])
        return found
    all_end(cases)


@test
def surplus_descriptors_end_the_connection():
    def cases(qemu, group):
        found = {}
        for operation, body in wire.PLAIN.items():
            surplus = 2 if operation in (wire.SCHEDULER, wire.AFFINITY) else 1
            for count in (surplus, 3, 10, 253):
                fds = [qemu.pidfd] * (1 + count)
                found[f"{wire.OPERATIONS[operation]} and {count}"] = \
                    lambda connection, operation=operation, body=body, \
                    fds=fds[:253]: connection.send(operation, body, fds)
        found["a first thread with a descriptor"] = lambda connection: \
            connection.send(wire.SCHEDULER, wire.scheduler(1, 0),
                            [qemu.pidfd, qemu.pidfd])
        found["a cgroup and one more"] = lambda connection: connection.send(
            wire.ADD_THREADS, wire.add_threads(qemu.tids),
            [qemu.pidfd, group, group])
        return found
    all_end(cases)


def _identity(outside, path):
    """There is no place for it: a uid behind a body makes it too long, and
    the request id is only repeated."""
    with Connection(path) as connection, Qemu() as qemu:
        answer = connection.ask(wire.MAX_CORE_SIZE, wire.bytes_limit(4097),
                                [qemu.pidfd], request=0)
        expect([answer.verdict, answer.request], ["refused", 0], "request 0")
        connection.send(wire.MAX_CORE_SIZE, CORE + struct.pack("=I", 0),
                        [qemu.pidfd])
        ends(connection, "a uid behind the body")


@test
def a_message_has_no_place_for_who_asks():
    as_peer(_identity, stage.main.socket, cgroup=stage.cgroup("root"))


def _outcome(outside, path, request):
    with Connection(path) as connection:
        return connection.ask(wire.OUTCOME, struct.pack("=Q", request),
                              version=0).verdict


def _ask(outside, path, request):
    with Connection(path) as connection, Qemu() as qemu:
        answer = connection.ask(wire.MAX_CORE_SIZE, CORE, [qemu.pidfd],
                                request=request)
        outside.say(answer.verdict)
        outside.hear()


@test
def what_became_of_a_request_is_told_to_its_own_scope_only():
    request = 0x123456789abcdef
    with Peer(_ask, stage.main.socket, request,
              cgroup=stage.cgroup("root")) as peer:
        expect(peer.hear(), "handled", "verdict")
        expect(as_peer(_outcome, stage.main.socket, request,
                       cgroup=stage.cgroup("root")), "handled", "own scope")
        expect(as_peer(_outcome, stage.main.socket, request,
                       cgroup=stage.cgroup("other")), "unknown", "another's")


def _many_times(outside, path):
    """A connection is ended, not the delegate: over and over."""
    for _ in range(200):
        with Connection(path) as connection:
            connection.send_raw(os.urandom(100))
            connection.is_ended()
        with Connection(path, hello=False) as connection:
            connection.send_raw(os.urandom(40))
            connection.is_ended()
    for _ in range(200):
        Connection(path, hello=False).close()
        Connection(path).close()


@test
def garbage_and_connections_that_end_leave_nothing():
    before = stage.main.count()
    as_peer(_many_times, stage.main.socket, cgroup=stage.cgroup("root"))
    stage.main.require_flat(before)


def _killed(outside, path):
    connection = Connection(path)
    qemu = Qemu()
    outside.say(qemu.pid)
    while True:
        connection.send(wire.MAX_CORE_SIZE, CORE, [qemu.pidfd])


@test
def a_peer_that_is_killed_in_the_middle_leaves_nothing():
    before = stage.main.count()
    for _ in range(10):
        with Peer(_killed, stage.main.socket,
                  cgroup=stage.cgroup("root")) as peer:
            peer.hear()
            peer.kill()
    stage.main.require_flat(before)
    support.served(stage.main.socket, stage.cgroup("other"))
