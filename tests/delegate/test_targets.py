# SPDX-License-Identifier: LGPL-2.1-or-later
"""Processes and threads that a peer must not have changed."""

import contextlib
import os
import queue
import signal
import socket
import struct
import threading

import stage
import support
import wire
from support import (MACHINE_UID, SO_PEERPIDFD, Peer, Qemu, Skipped, as_peer,
                     call, connect_delegate, expect, numbers, test)
from wire import Connection

EINVAL, EPERM, ESRCH = (support.errno.EINVAL, support.errno.EPERM,
                        support.errno.ESRCH)

# virInternalErrorCode
INVALID_ARG, NO_PROCESS, REFUSED = 1, 3, 4


def state(pid):
    """All of a process that an operation could have changed."""
    threads = {}
    for tid in os.listdir(f"/proc/{pid}/task"):
        try:
            threads[tid] = [support.schedule(int(tid)),
                            sorted(os.sched_getaffinity(int(tid))),
                            support.cgroup_of(pid, int(tid))]
        except (FileNotFoundError, ProcessLookupError):
            # One that ends meanwhile, as the delegate's do.
            continue
    return {
        "limits": {name: support.limit(pid, name) for name in support.LIMITS},
        "threads": threads,
    }


def _ask_all(outside, path, group):
    """Asks for every operation on a process whose pidfd is inherited, and on
    its threads by number."""
    pidfd, tids = outside.hear()
    group = os.open(group, os.O_PATH)
    answers = {}
    with Connection(path) as connection:
        for operation, body in wire.PLAIN.items():
            answers[operation] = connection.ask(operation, body, [pidfd])
        answers[wire.ADD_THREADS] = connection.ask(
            wire.ADD_THREADS, wire.add_threads(tids), [pidfd, group])
    return {wire.OPERATIONS[operation]: [answer.verdict, answer.errnum]
            for operation, answer in answers.items()}


def refuses_all(uid, peer_cgroup, target_uid, target_cgroup, group):
    """A target that belongs to somebody else: refused, and as it was."""
    def be_somebody():
        os.setresgid(target_uid, target_uid, target_uid)
        os.setresuid(target_uid, target_uid, target_uid)
    mark = stage.main.mark()
    with Qemu(2, cgroup=stage.cgroup(target_cgroup),
              preexec=be_somebody) as qemu:
        before = state(qemu.pid)
        fd = os.dup(qemu.pidfd)
        os.set_inheritable(fd, True)
        with Peer(_ask_all, stage.main.socket, str(stage.cgroup(group)),
                  uid=uid, cgroup=stage.cgroup(peer_cgroup)) as peer:
            peer.say([fd, qemu.tids])
            answers = peer.result()
        os.close(fd)
        expect(answers, {name: ["refused", EPERM]
                         for name in wire.OPERATIONS.values()}, "answers")
        expect(state(qemu.pid), before, "the target's state")
        for name in wire.OPERATIONS.values():
            line = stage.main.line(mark, name)
            expect((line["outcome"], line["target"]["pid"]),
                   ("refused", qemu.pid), f"audit line of {name}")


@test
def a_target_in_another_cgroup_is_refused():
    refuses_all(MACHINE_UID, "vm1", MACHINE_UID, "other", "vm1/qemu/vcpus")


@test
def a_target_in_a_cgroup_whose_name_goes_on_is_refused():
    """/vm10 is not below /vm1."""
    refuses_all(MACHINE_UID, "vm1", MACHINE_UID, "vm10", "vm1/qemu/vcpus")


@test
def a_target_in_a_cgroup_whose_name_ends_in_a_carriage_return_is_refused():
    support.bed.cgroup("vm1\r/qemu")
    for group in ("vm1\r", "vm1\r/qemu"):
        refuses_all(MACHINE_UID, "vm1", MACHINE_UID, group, "vm1/qemu/vcpus")


@test
def a_target_of_another_user_in_the_same_cgroup_is_refused():
    refuses_all(MACHINE_UID, "vm1", 0, "vm1/qemu", "vm1/qemu/vcpus")


@test
def a_peer_that_no_rule_names_is_refused():
    for uid, cgroup in ((MACHINE_UID, "root"), (0, "nobody")):
        code, errnum, message, before, after = support.as_peer(
            _stranger, stage.main.socket, uid=uid, cgroup=stage.cgroup(cgroup))
        expect([code, errnum], [4, EPERM], f"error ({message})")
        expect("no rule names" in message, True, f"why ({message})")
        expect(after, before, "the target's state")


def _stranger(outside, path):
    """It does not even have a connection."""
    connect_delegate(path)
    with Qemu() as qemu:
        before = state(qemu.pid)["limits"]
        refusal = call(support.vir.process_set_max_core_size, qemu.pid, 0)
        return [*refusal, before, state(qemu.pid)["limits"]]


def _target_delegate(outside, path):
    with Connection(path) as connection:
        pidfd = connection.socket.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
        return {wire.OPERATIONS[operation]:
                connection.ask(operation, body, [pidfd]).verdict
                for operation, body in wire.PLAIN.items()}


@test
def the_delegate_itself_is_no_target():
    """A peer gets a pidfd of it from its socket (Linux 6.5)."""
    before = state(stage.main.pid)["limits"]
    try:
        answers = as_peer(_target_delegate, stage.main.socket, uid=MACHINE_UID,
                          cgroup=stage.cgroup("vm1"), container=True)
    except AssertionError as error:
        if "ENOPROTOOPT" in str(error) or "Protocol not available" in str(
                error):
            raise Skipped("the kernel has no SO_PEERPIDFD") from None
        raise
    expect(set(answers.values()), {"refused"}, f"answers {answers}")
    expect(state(stage.main.pid)["limits"], before, "the delegate's limits")


def summary(answer):
    return [answer.verdict, answer.code, answer.errnum]


def _foreign_threads(outside, path, group):
    """One's own process, with a thread of another's."""
    group = os.open(group, os.O_PATH)
    answers = {}
    with Connection(path) as connection, Qemu(1) as own, Qemu(1) as other:
        own_thread, other_thread = own.thread_pidfd(), other.thread_pidfd()
        before = state(other.pid)
        for name, operation, body in (
                ("scheduler", wire.SCHEDULER,
                 lambda tid: wire.scheduler(1, 0, tid)),
                ("affinity", wire.AFFINITY,
                 lambda tid: wire.affinity(b"\1", tid))):
            foreign, mine = other.tids[0], own.tids[0]
            answers[f"{name} by number"] = summary(
                connection.ask(operation, body(foreign), [own.pidfd]))
            answers[f"{name} by pidfd"] = summary(connection.ask(
                operation, body(foreign), [own.pidfd, other_thread]))
            answers[f"{name} by pidfd, with one's own number"] = summary(
                connection.ask(operation, body(mine),
                               [own.pidfd, other_thread]))
            answers[f"{name} by the other's first thread"] = summary(
                connection.ask(operation, body(other.pid), [own.pidfd]))
        # The descriptor decides, the number is for people.
        with_own = connection.ask(wire.SCHEDULER,
                                  wire.scheduler(1, 0, other.tids[0]),
                                  [own.pidfd, own_thread])
        for tids in ([other.tids[0]], [*own.tids, other.tids[0]],
                     [other.pid]):
            answers[f"cgroup {len(tids)} {tids[-1] == other.pid}"] = summary(
                connection.ask(wire.ADD_THREADS, wire.add_threads(tids),
                               [own.pidfd, group]))
        expect(with_own.verdict, "handled", "verdict with one's own pidfd")
        expect(support.schedule(own.tids[0])[0], os.SCHED_BATCH,
               "scheduler of one's own thread")
        expect(state(other.pid), before, "state of the other process")
        expect(support.cgroup_of(own.pid, own.tids[0]),
               support.cgroup_of(own.pid), "cgroup of one's own thread")
    return answers


@test
def a_thread_of_another_process_is_an_error_by_number_and_by_pidfd():
    answers = as_peer(_foreign_threads, stage.main.socket,
                      str(stage.cgroup("root/qemu/vcpus")),
                      cgroup=stage.cgroup("root"))
    for how, answer in answers.items():
        expect(answer, ["failed", INVALID_ARG, EINVAL], f"answer {how}")


@test
def a_thread_of_another_process_is_an_error_in_another_pid_namespace():
    """Numbers are those of the peer's namespace, also the wrong ones."""
    answers = as_peer(_foreign_threads_inside, stage.main.socket,
                      uid=MACHINE_UID, cgroup=stage.cgroup("vm1"),
                      container=True)
    for how, answer in answers.items():
        if how != "nobody":
            expect(answer, ["failed", INVALID_ARG, EINVAL], f"answer {how}")
    expect(answers["nobody"][0], "failed", "verdict for nobody's thread")


def _foreign_threads_inside(outside, path):
    answers = {}
    with Connection(path) as connection, Qemu(1) as own, Qemu(1) as other:
        for name, tid in (("thread", other.tids[0]), ("first", other.pid),
                          ("peer", os.getpid()), ("nobody", 30000)):
            answers[name] = summary(connection.ask(
                wire.SCHEDULER, wire.scheduler(1, 0, tid), [own.pidfd]))
        for pid in (own.pid, own.tids[0], other.pid, other.tids[0]):
            expect(os.sched_getscheduler(pid), os.SCHED_OTHER,
                   f"scheduler of {pid}")
    return answers


def _forger(outside, path, victim):
    """Root in its own user namespace may claim every pid that it sees."""
    outside.say("there")
    outside.hear()
    with Connection(path) as connection, Qemu() as qemu:
        forged = struct.pack("=iII", victim or qemu.pid, 0, 0)
        credentials = [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, forged)]
        connection.send(wire.MAX_CORE_SIZE, wire.bytes_limit(0), [qemu.pidfd],
                        ancillary=credentials)
        answer = connection.answer()
    # From the first message on, before anybody has looked who it is.
    with Connection(path, hello=False) as early, Qemu() as qemu:
        forged = struct.pack("=iII", victim or qemu.pid, 0, 0)
        credentials = [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, forged)]
        early.send(wire.HELLO, wire.hello_body(), version=0,
                   ancillary=credentials)
        early.receive()
        early.send(wire.MAX_CORE_SIZE, wire.bytes_limit(0), [qemu.pidfd],
                   ancillary=credentials)
        return [summary(answer), summary(early.answer()), os.getpid()]


@test
def a_forged_pid_in_credentials_has_no_effect():
    mark = stage.main.mark()
    with Peer(_forger, stage.main.socket, 0, uid=MACHINE_UID,
              cgroup=stage.cgroup("vm1"), container=True,
              root_inside=True) as peer:
        peer.hear()
        true_pid, = support.children_of(peer.pid)
        peer.say("go on")
        first, second, pid = peer.result()
        expect(pid, 1, "the peer's pid in its namespace")
        expect(first[0], "handled", "verdict")
        expect(second[0], "handled", "verdict of a forged hello")
        lines = [line for line in stage.main.lines()[mark:]
                 if line["peer"]["uid"] == MACHINE_UID]
        expect(len(lines), 2, "audit lines")
        for line in lines:
            expect(line["peer"]["pid"], true_pid, "peer in the audit line")


@test
def a_forged_pid_of_a_permitted_peer_does_not_permit_anything():
    """From a cgroup that no rule names, with the pid of who is permitted."""
    # The victim must be in the forger's PID namespace: root needs none.
    with Peer(_wait, cgroup=stage.cgroup("root")) as victim:
        victim.hear()
        said = as_peer(_stranger_forges, stage.main.socket, victim.pid,
                       cgroup=stage.cgroup("nobody"))
    expect("no rule names uid 0" in said, True, f"what it is told ({said})")


def _stranger_forges(outside, path, victim):
    forged = struct.pack("=iII", victim, 0, 0)
    with Connection(path, hello=False) as early:
        with contextlib.suppress(BrokenPipeError):
            early.send(wire.HELLO, wire.hello_body(), version=0, ancillary=[
                (socket.SOL_SOCKET, socket.SCM_CREDENTIALS, forged)])
        return early.answer().text


def _wait(outside):
    outside.say("there")
    outside.hear()


def _thread_that_ended(outside, path):
    """Of a process that goes on."""
    numbers, ends = queue.SimpleQueue(), threading.Event()

    def run():
        numbers.put(threading.get_native_id())
        ends.wait()
    thread = threading.Thread(target=run)
    thread.start()
    tid = numbers.get()
    process = os.pidfd_open(os.getpid())
    fd = os.pidfd_open(tid, wire.PIDFD_THREAD)
    ends.set()
    thread.join()
    support.eventually(lambda: not os.path.exists(f"/proc/self/task/{tid}"),
                       "the thread is no more")
    with Connection(path) as connection:
        answer = connection.ask(wire.SCHEDULER, wire.scheduler(1, 0, tid),
                                [process, fd])
    return [summary(answer), answer.text == f"thread {tid} is no more"]


@test
def a_thread_that_ended_is_not_taken_for_its_process():
    found = as_peer(_thread_that_ended, stage.main.socket,
                    cgroup=stage.cgroup("root"))
    expect(found, [["failed", NO_PROCESS, ESRCH], True],
           "the answer, and whether it names the thread")


def _zombie(outside, path, group):
    qemu = Qemu(1)
    group = os.open(group, os.O_PATH)
    tid, thread = qemu.tids[0], qemu.thread_pidfd()
    os.kill(qemu.pid, signal.SIGKILL)
    support.eventually(
        lambda: support.status(qemu.pid, "State").startswith("Z"),
        "the process is a zombie")
    answers = {}
    for kind in ("zombie", "reaped"):
        with Connection(path) as connection:
            for operation, body in wire.PLAIN.items():
                answers[f"{wire.OPERATIONS[operation]} {kind}"] = summary(
                    connection.ask(operation, body, [qemu.pidfd]))
            answers[f"thread by pidfd {kind}"] = summary(connection.ask(
                wire.SCHEDULER, wire.scheduler(1, 0, tid),
                [qemu.pidfd, thread]))
            answers[f"cgroup {kind}"] = summary(connection.ask(
                wire.ADD_THREADS, wire.add_threads([qemu.pid]),
                [qemu.pidfd, group]))
        if kind == "zombie":
            qemu.process.wait()
    return answers


@test
def a_process_that_has_exited_is_no_process_reaped_or_not():
    mark = stage.main.mark()
    answers = as_peer(_zombie, stage.main.socket,
                      str(stage.cgroup("root/qemu/vcpus")),
                      cgroup=stage.cgroup("root"))
    wrong = {how: answer for how, answer in answers.items()
             if answer != ["failed", NO_PROCESS, ESRCH]}
    expect(wrong, {}, "answers that are not ESRCH")
    support.eventually(
        lambda: stage.main.mark() - mark >= len(answers),
        "each of these operations leaves an audit line")


def _bad_numbers(outside, path, group):
    vir = support.vir
    group_fd = os.open(group, os.O_PATH)
    connect_delegate(path)
    found = {}
    with Qemu(1) as qemu:
        tid = qemu.tids[0]
        for pid in (0, -1, -2147483648):
            found[f"pid {pid}"] = call(vir.process_set_max_files, pid, 10)[:2]
            found[f"scheduler {pid}"] = call(
                vir.process_set_scheduler, pid, tid, 1, 0)[:2]
            found[f"tid {pid}"] = call(
                vir.process_set_scheduler, qemu.pid, pid, 1, 0)[:2]
            found[f"cgroup {pid}"] = call(
                vir.cgroup_add_threads, qemu.pid, group.encode(), 0,
                numbers([tid, pid]), None, 2, None, 0, None)[:2]
        for tid in (-1, -2147483648):
            with Connection(path) as connection:
                answer = connection.ask(
                    wire.SCHEDULER, wire.scheduler(1, 0, tid), [qemu.pidfd])
                expect(answer.verdict, "failed", f"raw thread {tid}")
        for tid in (0, -1):
            with Connection(path) as connection:
                answer = connection.ask(
                    wire.ADD_THREADS, wire.add_threads([qemu.tids[0], tid]),
                    [qemu.pidfd, group_fd])
                expect([answer.operation, answer.verdict],
                       [wire.OUTCOME, "refused"], f"raw threads with {tid}")
                expect(connection.is_ended(), True, "the connection's end")
    return found


@test
def pid_0_and_negative_numbers_are_nobody():
    found = as_peer(_bad_numbers, stage.main.socket,
                    str(stage.cgroup("root/qemu/vcpus")),
                    cgroup=stage.cgroup("root"))
    for how, answer in found.items():
        expect(answer, [INVALID_ARG, EINVAL], f"code and errno for {how}")


def _refused(outside, path, flags, make):
    """The direct way would do all of this."""
    vir = support.vir
    connect_delegate(path, flags)
    with Qemu(1) as qemu:
        before = state(qemu.pid)
        tid = qemu.tids[0]
        # The root cgroup of that hierarchy: open to root, not to the policy.
        found = {
            "mem-lock": call(vir.process_set_max_mem_lock, qemu.pid, 65537),
            "processes": call(vir.process_set_max_processes, qemu.pid, 101),
            "files": call(vir.process_set_max_files, qemu.pid, 65),
            "core": call(vir.process_set_max_core_size, qemu.pid, 4097),
            "scheduler": call(vir.process_set_scheduler, qemu.pid, tid,
                              vir.SCHED_FIFO, 11),
            "affinity": call(vir.process_set_affinity, qemu.pid, tid,
                             *vir.cpumap(0, 1)),
            "cgroup": call(vir.cgroup_add_threads, qemu.pid, make.encode(), 0,
                           numbers([qemu.pid, tid]), None, 2, None, 0, None),
        }
        expect(state(qemu.pid), before, "the process's state")
    return found


@test
def what_is_refused_is_not_done_directly_also_when_the_delegate_is_optional():
    for flags in (0, support.DELEGATE_OPTIONAL):
        found = as_peer(_refused, stage.main.socket, flags,
                        str(stage.cgroup("other")), cgroup=stage.cgroup("root"))
        for how, (code, errnum, _) in found.items():
            expect((code, errnum), (REFUSED, EPERM),
                   f"code and errno of {how} with flags {flags}")


def _dismissed(outside, path, flags):
    # All that the quota allows.
    held = [Connection(path) for _ in range(3)]
    connect_delegate(path, flags)
    with Qemu() as qemu:
        before = state(qemu.pid)
        found = call(support.vir.process_set_max_core_size, qemu.pid, 0)
        expect(state(qemu.pid), before, "the process's state")
    del held
    return found


@test
def a_connection_over_the_quota_is_refused_and_not_done_directly():
    for flags in (0, support.DELEGATE_OPTIONAL):
        # Those of the one before count until the delegate has seen their end.
        stage.main.require_flat(stage.at_first)
        code, errnum, message = as_peer(_dismissed, stage.main.socket, flags,
                                        cgroup=stage.cgroup("quota"))
        expect((code, errnum), (REFUSED, EPERM), f"code and errno ({message})")
        expect("3 connections" in message, True,
               f"the message names the quota ({message})")
