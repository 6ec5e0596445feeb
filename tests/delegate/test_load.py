# SPDX-License-Identifier: LGPL-2.1-or-later
"""Peers that take more than their share."""

import contextlib
import os
import resource
import socket
import threading
import time

import stage
import support
import wire
from support import (Delegate, Peer, Qemu, as_peer, call, connect_delegate,
                     expect, test)
from wire import Connection

MIB = 1 << 20
# Seconds for thousands of connections, one after the other: each can take a
# busy machine a tenth of a second.
MANY_CONNECTIONS = 3600
CORE = wire.bytes_limit(0)


def descriptors():
    """How many a process can have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def _silent(outside, path, count, users, hello):
    """Connections that say nothing, or nothing more; in the root's name, or
    in that of many users."""
    count = min(count, descriptors() - 64)
    held, ended = [], 0
    for index in range(count):
        if users:
            os.setresuid(-1, 0, -1)
            os.setresuid(-1, users + index // 250, -1)
        try:
            held.append(Connection(path, hello=hello))
        except (wire.Ended, OSError):
            ended += 1
    if users:
        os.setresuid(-1, 0, -1)
    outside.say([len(held), ended])
    outside.hear()


@test
def ten_thousand_silent_connections_of_one_peer_leave_room_for_others():
    delegate = stage.main
    delegate.require_flat(stage.at_first)
    memory = delegate.resident()
    for hello in (False, True):
        made = 0
        peers = []
        try:
            while made < 10000:
                peer = Peer(_silent, delegate.socket, 2500, 0, hello,
                            cgroup=stage.cgroup("flood"))
                peers.append(peer)
                made += sum(peer.hear(MANY_CONNECTIONS))
                count = delegate.count()
                expect(count[0] <= stage.at_first[0] + 600, True,
                       f"descriptors of the delegate are bounded ({count})")
            for _ in range(3):
                support.served(delegate.socket, stage.cgroup("other"))
            grown = delegate.resident() - memory
            expect(grown < 64 * MIB, True,
                   f"memory of the delegate is bounded ({grown} bytes more)")
        finally:
            for peer in peers:
                peer.close()
        delegate.require_flat(stage.at_first)


@test
def silent_connections_of_thirty_users_leave_room_for_others():
    """Each within its quota; the delegate starts with the soft limit of 1024
    files that programs have by default."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    policy = ("version = 1\n" + stage.rule("other", 0, "other") + """
[[rule]]
name = "users"
peer = { uid = "20000-20039" }
process-set-max-core-size = { max = 0 }
""")
    with Delegate(policy, nofile=(min(1024, hard), hard)) as delegate:
        support.served(delegate.socket, stage.cgroup("other"))
        support.eventually(lambda: delegate.count()[1] == 1, "it is idle")
        before = delegate.count()
        # What a connection takes of the delegate is two or three files.
        count = min(7500, hard // 4)
        with Peer(_silent, delegate.socket, count, 20000, True) as peer:
            made, _ = peer.hear(MANY_CONNECTIONS)
            for _ in range(3):
                support.served(delegate.socket, stage.cgroup("other"))
        delegate.require_flat(before)
        expect(made > 200, True, f"there were many ({made})")


def _greeted(outside, path):
    """What the first connection gets that is not served."""
    held = []
    while True:
        try:
            held.append(Connection(path))
        except wire.Ended as ended:
            return str(ended)


@test
def without_a_thread_for_it_a_connection_is_refused_and_not_just_closed():
    if support.bed.v1 is None:
        raise support.Skipped("there is no hierarchy of v1 with pids")
    pids = support.bed.cgroup("pids", version=1)
    policy = "version = 1\n" + stage.rule("root", 0, "root")
    with Delegate(policy) as delegate:
        (pids / "cgroup.procs").write_text(str(delegate.pid))
        (pids / "pids.max").write_text(str(len(os.listdir(
            f"/proc/{delegate.pid}/task")) + 2))
        said = as_peer(_greeted, delegate.socket, cgroup=stage.cgroup("root"))
        expect("no thread" in said, True, f"what the third is told: {said}")
        delegate.line(0, event="connection", outcome="refused", reason=said)
        (pids / "pids.max").write_text("max")
        support.served(delegate.socket, stage.cgroup("root"))


def _strange(outside, path, count):
    said = set()
    for _ in range(count):
        try:
            with Connection(path):
                said.add("served")
        except wire.Ended as ended:
            said.add(str(ended))
    return sorted(said)


@test
def whom_no_rule_names_takes_no_connection_and_few_lines():
    delegate = stage.main
    mark, start = delegate.mark(), time.monotonic()
    said = as_peer(_strange, delegate.socket, 1000, uid=4243,
                   cgroup=stage.cgroup("nobody"))
    expect(len(said), 1, f"answers ({said})")
    expect("no rule names uid 4243" in said[0], True, f"the answer ({said})")
    seconds = int(time.monotonic() - start) + 2
    lines = [line for line in delegate.lines()[mark:]
             if line["peer"]["uid"] == 4243]
    expect(0 < len(lines) <= 10 * seconds, True,
           f"{len(lines)} lines in {seconds} s")
    expect({line["reason"] for line in lines}, set(said), "reasons")


def _refused(outside, path, count):
    body = wire.bytes_limit(4097)
    with Connection(path) as connection, Qemu() as qemu:
        return sorted({connection.ask(wire.MAX_CORE_SIZE, body,
                                      [qemu.pidfd]).verdict
                       for _ in range(count)})


@test
def refusals_do_not_fill_the_disk_and_are_counted():
    delegate = stage.main
    place = {"cgroup": stage.cgroup("root")}
    mark, start = delegate.mark(), time.monotonic()
    verdicts = as_peer(_refused, delegate.socket, 5000, **place)
    expect(verdicts, ["refused"], "verdicts")
    seconds = int(time.monotonic() - start) + 2
    count = delegate.mark() - mark
    expect(0 < count <= 100 * seconds, True, f"{count} lines in {seconds} s")

    def told():
        as_peer(_refused, delegate.socket, 1, **place)
        lines = delegate.lines()[mark:]
        return len(lines) + sum(line.get("unwritten", 0) for line in lines)
    support.eventually(lambda: told() > 5000, "all refusals are known of")


def _waits(outside, path):
    try:
        with Connection(path):
            outside.say("served")
            outside.hear()
    except wire.Ended as ended:
        outside.say(str(ended))


@test
def cgroups_that_a_peer_makes_have_one_quota():
    """Whoever has a cgroup can make any number in it."""
    top = support.bed.cgroup("delegated")
    policy = "version = 1\n" + stage.rule(
        "delegated", 4243, "delegated", extra="quota = { connections = 3 }")
    with Delegate(policy) as delegate, contextlib.ExitStack() as stack:
        for owner, expected in ((4243, 3), (0, 6)):
            os.chown(top, owner, owner)
            said = []
            for name in "abcdef":
                peer = stack.enter_context(Peer(
                    _waits, delegate.socket, uid=4243,
                    cgroup=support.bed.cgroup(f"delegated/{name}")))
                said.append(peer.hear())
            expect(said.count("served"), expected,
                   f"those served where {owner} has the cgroup ({said})")
            stack.close()
            support.eventually(lambda: delegate.count()[1] == 1, "all ended")


def _connects_in_a_loop(outside, path):
    outside.say("begins")
    while True:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as one:
            with contextlib.suppress(BlockingIOError):
                one.connect(path)


def _hello(outside, path):
    Connection(path, timeout=support.DEADLINE).close()
    return "hello"


@test
def whoever_connects_in_a_loop_holds_up_neither_other_listeners_nor_the_end():
    policy = "version = 1\n" + stage.rule("root", 0, "root")
    with Delegate(policy, labels=("flooded", "other")) as delegate, \
            contextlib.ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(Peer(
                _connects_in_a_loop, delegate.sockets["flooded"],
                uid=4243, cgroup=stage.cgroup("nobody"))).hear()
        for _ in range(3):
            expect(as_peer(_hello, delegate.sockets["other"],
                           cgroup=stage.cgroup("root")), "hello",
                   "what another listener's peer gets")
        delegate.stop()


def _flood(outside, path):
    connect_delegate(path)
    stop = threading.Event()
    done = []
    with Qemu() as qemu:
        def ask():
            while not stop.is_set():
                code, errnum, message = call(
                    support.vir.process_set_max_core_size, qemu.pid, 0)
                done.append(code)
        threads = [threading.Thread(target=ask) for _ in range(64)]
        for thread in threads:
            thread.start()
        outside.say("flooding")
        outside.hear()
        stop.set()
        for thread in threads:
            thread.join()
    return [len(done), sorted(set(done))]


@test
def a_flood_of_64_threads_of_one_peer_leaves_room_for_others():
    delegate = stage.main
    with Peer(_flood, delegate.socket, cgroup=stage.cgroup("flood")) as peer:
        peer.hear()
        for _ in range(20):
            support.served(delegate.socket, stage.cgroup("other"))
        peer.say("that is all")
        count, codes = peer.result()
    expect(count > 64, True, f"there was a flood ({count} operations)")
    # Done, or refused by the quota of operations at a time.
    expect(set(codes) <= {0, 4}, True, f"codes {codes}")
    delegate.require_flat(stage.at_first)


def _never_reads(outside, path):
    """Asks until the delegate ends it, on several connections."""
    qemu = Qemu()
    connections = [Connection(path) for _ in range(4)]
    for connection in connections:
        try:
            while True:
                connection.send(wire.MAX_CORE_SIZE, CORE, [qemu.pidfd])
        except (BrokenPipeError, ConnectionResetError):
            # The delegate had enough.
            pass
    outside.say("never reads")
    outside.hear()


@test
def a_peer_that_never_reads_is_given_up_and_others_are_served():
    delegate = stage.main
    with Peer(_never_reads, delegate.socket,
              cgroup=stage.cgroup("flood")) as peer:
        peer.hear()
        for _ in range(3):
            support.served(delegate.socket, stage.cgroup("other"))
        # While the peer is still there, and still does not read.
        delegate.require_flat(stage.at_first)


def _over(outside, path):
    held = [Connection(path) for _ in range(3)]
    try:
        Connection(path)
        fourth = "served"
    except wire.Ended as ended:
        fourth = str(ended)
    held.pop().close()
    support.eventually(lambda: _connects(path, held), "there is room again")
    answers = []

    def ask_at_once(qemu):
        # The requests are there before any is answered: the delegate alone
        # decides how many it works on in a second.
        for _ in range(50):
            held[0].send(wire.MAX_CORE_SIZE, CORE, [qemu.pidfd])
        answers.extend(held[0].answer() for _ in range(50))
        return any(answer.verdict == "refused" for answer in answers)
    with Qemu() as qemu:
        support.eventually(lambda: ask_at_once(qemu), "some are refused")
    return [fourth, [[answer.verdict, answer.text] for answer in answers]]


def _connects(path, held):
    try:
        held.append(Connection(path))
        return True
    except (wire.Ended, OSError):
        return False


@test
def what_is_over_a_quota_of_connections_or_per_second_is_refused():
    # Connections of the quota's count until the delegate has seen their end.
    stage.main.require_flat(stage.at_first)
    mark = stage.main.mark()
    fourth, answers = as_peer(_over, stage.main.socket,
                              cgroup=stage.cgroup("quota"))
    expect("3 connections" in fourth, True, f"the fourth connection: {fourth}")
    refused = [text for verdict, text in answers if verdict == "refused"]
    handled = [text for verdict, text in answers if verdict == "handled"]
    expect(len(handled) >= 5, True, f"{len(handled)} were handled")
    expect(len(refused) > 0, True, "some were refused")
    expect({("5 operations in a second" in text) for text in refused}, {True},
           f"why ({refused[0]})")
    stage.main.line(mark, "process-set-max-core-size", outcome="refused")
