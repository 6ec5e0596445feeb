# SPDX-License-Identifier: LGPL-2.1-or-later
"""Descriptors that block whoever closes or examines them: nobody else may
wait for that."""

import contextlib
import os
import signal
import socket
import struct
import threading

import fuse
import stage
import support
import wire
from support import Peer, Qemu, Skipped, expect, test
from wire import Connection

# Longer than anything here may take.
LINGER_SECONDS = 600


KINDS = ("right", "thread", "cgroup", "surplus", "many", "garbage",
         "not handled")


class Lingering:
    """A TCP socket that does not close as long as its other end does not
    read."""

    def __init__(self):
        with socket.create_server(("127.0.0.1", 0)) as server:
            # Or it may take all that there is.
            server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            self.near = socket.create_connection(server.getsockname())
            self.far, _ = server.accept()
        self.near.setblocking(False)
        try:
            while True:
                self.near.send(bytes(1 << 16))
        except BlockingIOError:
            pass
        self.near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                             struct.pack("=ii", 1, LINGER_SECONDS))
        # A nonblocking one does not wait.
        self.near.setblocking(True)
        self.fd = self.near.fileno()

    def sent(self):
        """It is the receiver's alone, who is the last to close it; or nobody
        has received it, and it is this thread that waits."""
        self.near.detach()
        threading.Thread(target=os.close, args=[self.fd], daemon=True).start()
        support.eventually(
            lambda: not os.path.lexists(f"/proc/self/fd/{self.fd}"),
            "the descriptor is closed here")

    def release(self):
        self.far.close()


class File:
    """A file of FUSE, in the mount namespace of who serves it."""

    def __init__(self, server):
        self.fd = os.open(server, os.O_RDONLY)

    def sent(self):
        """Each close of it is waited for, also when it is not the last."""

    def release(self):
        """Whoever serves it does."""


def _send(outside, path, how, pid):
    # Before there is anything that a child would have to close.
    qemu = Qemu(1)
    held = [Connection(path) for _ in range(3)] if how == "refused" else []
    server = outside.hear()
    blocking = File(server) if server else Lingering()
    body, fd = wire.bytes_limit(0), blocking.fd
    requests = {
        "right": (wire.MAX_CORE_SIZE, body, [fd]),
        "thread": (wire.SCHEDULER, wire.scheduler(1, 0, qemu.tids[0]),
                   [qemu.pidfd, fd]),
        "cgroup": (wire.ADD_THREADS, wire.add_threads(qemu.tids),
                   [qemu.pidfd, fd]),
        "surplus": (wire.MAX_CORE_SIZE, body, [qemu.pidfd, fd]),
        "many": (wire.MAX_CORE_SIZE, body, [qemu.pidfd, *[fd] * 200]),
        "not handled": (9, body, [fd]),
    }
    connection = Connection(path) if how in KINDS else None
    # It must not be done with it before it is the only one that has it.
    stop(pid)
    try:
        if how in requests:
            connection.send(*requests[how])
        elif how == "garbage":
            connection.send_raw(b"garbage", [fd])
        else:
            connection = Connection(path, hello=False)
            send_what_can_be_sent(connection, fd)
        if how == "waiting":
            connection.close()
        blocking.sent()
    finally:
        os.kill(pid, signal.SIGCONT)
    outside.say("sent")
    outside.hear()
    blocking.release()
    connection.close()
    qemu.close()
    del held


def stop(pid):
    """Stops all threads of a process."""
    def is_stopped():
        try:
            return all(support.status(pid, "State", tid).startswith("T")
                       for tid in os.listdir(f"/proc/{pid}/task"))
        except (FileNotFoundError, ProcessLookupError):
            # A thread of a connection that ended has exited meanwhile.
            return False
    os.kill(pid, signal.SIGSTOP)
    support.eventually(is_stopped, "the delegate is stopped")


def send_what_can_be_sent(connection, fd):
    """The kernel may forbid it (Linux 6.16), or the delegate have ended it."""
    try:
        for _ in range(10):
            connection.send(wire.MAX_CORE_SIZE, wire.bytes_limit(0), [fd])
    except OSError as error:
        expected = (support.errno.EPERM, support.errno.EPIPE,
                    support.errno.ECONNRESET)
        if error.errno not in expected:
            raise


def blocks_nobody_else(how, cgroup="root", with_fuse=False):
    delegate = stage.main
    # Threads of connections that ended may be there for a moment yet.
    before = stage.at_first
    delegate.require_flat(before)
    with contextlib.ExitStack() as stack:
        peer = stack.enter_context(Peer(_send, delegate.socket, how,
                                        delegate.pid,
                                        cgroup=stage.cgroup(cgroup)))
        server, point = None, None
        if with_fuse:
            # Ends before the peer, which cannot end before.
            place = str(support.bed.path("fuse"))
            server = stack.enter_context(Peer(fuse.serve, place))
            expect(server.hear(), "mounted", "what the filesystem says")
            point = f"/proc/{server.pid}/root{place}"
        peer.say(point)
        expect(peer.hear(), "sent", f"what the peer says of {how}")
        if how not in ("refused", "waiting"):
            # Otherwise it blocks nobody at all, and this shows nothing.
            support.eventually(
                lambda: delegate.count()[1] > before[1],
                f"a thread is blocked by what was sent as {how}")
        for _ in range(3):
            support.served(delegate.socket, stage.cgroup("other"))
        if how not in ("refused", "waiting"):
            expect(delegate.count()[1] > before[1], True,
                   f"a thread is still blocked by what was sent as {how}")
        if server:
            server.say("release it")
            asked = server.result()
            expect(fuse.GETATTR in asked, False,
                   f"the filesystem is asked about what was sent as {how}")
            if how not in ("refused", "waiting"):
                expect(fuse.FLUSH in asked, True,
                       f"what was sent as {how} was being closed")
        peer.say("release it")
        peer.result()
    delegate.require_flat(before)


@test
def a_lingering_socket_blocks_its_senders_connection_only():
    for how in KINDS:
        blocks_nobody_else(how)


@test
def a_lingering_socket_on_a_connection_that_is_refused_blocks_nobody():
    blocks_nobody_else("refused", "quota")


@test
def a_lingering_socket_on_a_connection_that_was_not_accepted_blocks_nobody():
    blocks_nobody_else("waiting")


def _linger(outside, path, pid, count):
    """Connections that end with a message that is never read, whose descriptor
    cannot be closed."""
    blocking = [Lingering() for _ in range(count)]
    connections = [Connection(path) for _ in range(count)]
    stop(pid)
    try:
        for connection, each in zip(connections, blocking):
            connection.send_raw(b"garbage")
            connection.send(wire.MAX_CORE_SIZE, wire.bytes_limit(0), [each.fd])
            each.sent()
    finally:
        os.kill(pid, signal.SIGCONT)
    # Its last words; now it is being closed.
    outside.say([connection.answer().text for connection in connections])
    outside.hear()
    for each in blocking:
        each.release()


def _one_more(outside, path):
    try:
        Connection(path).close()
        return "served"
    except wire.Ended as ended:
        return str(ended)


@test
def a_connection_that_cannot_be_closed_still_counts_for_its_quota():
    delegate = stage.main
    place = {"cgroup": stage.cgroup("quota")}
    with Peer(_linger, delegate.socket, delegate.pid, 3, **place) as peer:
        expect(peer.hear(), ["the message is too short"] * 3, "last words")
        fourth = support.as_peer(_one_more, delegate.socket, **place)
        expect("3 connections" in fourth, True, f"the fourth: {fourth}")
        peer.say("release them")
        peer.result()
    support.eventually(
        lambda: support.as_peer(_one_more, delegate.socket, **place) ==
        "served", "there is room again")
    delegate.require_flat(stage.at_first)


def need_fuse():
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        raise Skipped(f"/dev/fuse: {error.strerror}") from None


@test
def a_file_of_a_silent_filesystem_blocks_its_senders_connection_only():
    need_fuse()
    for how in KINDS:
        blocks_nobody_else(how, with_fuse=True)


@test
def a_file_of_a_silent_filesystem_on_a_refused_connection_blocks_nobody():
    need_fuse()
    blocks_nobody_else("refused", "quota", with_fuse=True)


@test
def a_file_of_a_silent_filesystem_on_a_waiting_connection_blocks_nobody():
    need_fuse()
    blocks_nobody_else("waiting", with_fuse=True)
