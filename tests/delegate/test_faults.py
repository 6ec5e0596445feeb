# SPDX-License-Identifier: LGPL-2.1-or-later
"""A kernel that fails or lies, and a delegate that is slow: by strace."""

import os
import resource
import signal
import subprocess

import stage
import support
import wire
from support import Delegate, Peer, Qemu, as_peer, expect, test
from wire import Connection

CORE = wire.bytes_limit(0)


def under_strace(inject, extra=""):
    policy = "version = 1\n" + stage.rule("root", 0, "root", extra=extra)
    calls = ",".join(each.split(":")[0] for each in inject)
    options = [part for each in inject for part in ("-e", f"inject={each}")]
    return Delegate(policy, wrapper=["strace", "-f", "-o", "/dev/null", "-e",
                                     f"trace={calls}", *options])


def less():
    """Soft limits below what is asked for: more than that would be enough."""
    for which, values in ((resource.RLIMIT_MEMLOCK, (4096, 65536)),
                          (resource.RLIMIT_NPROC, (50, 100)),
                          (resource.RLIMIT_NOFILE, (32, 65)),
                          (resource.RLIMIT_CORE, (1, 2))):
        resource.setrlimit(which, values)


def _ask_all(outside, path):
    found = {}
    for operation, body in wire.PLAIN.items():
        # Each has a thread of the delegate's whose calls were not counted, and
        # a process that was never touched.
        with Connection(path) as connection, Qemu(preexec=less) as qemu:
            answer = connection.ask(operation, body, [qemu.pidfd])
            found[wire.OPERATIONS[operation]] = [answer.verdict, answer.errnum]
    return found


@test
def an_operation_that_the_kernel_fails_is_never_answered_as_done():
    cases = {"prlimit64:error=EIO": support.LIMITS,
             "prlimit64:error=EPERM": support.LIMITS,
             "sched_setscheduler:error=EBUSY": ["process-set-scheduler"],
             "sched_setaffinity:error=ENOMEM": ["process-set-affinity"]}
    for inject, operations in cases.items():
        with under_strace([inject]) as delegate:
            found = as_peer(_ask_all, delegate.socket,
                            cgroup=stage.cgroup("root"))
            for operation in operations:
                expect(found[operation][0], "failed",
                       f"verdict of {operation} with {inject}")
                expect(found[operation][1] > 0, True, "errno")
                delegate.line(0, operation, outcome="failed")


@test
def a_success_of_the_kernels_without_an_effect_is_read_back_and_fails():
    # The first call acts, and tells what was before; the second reads back.
    cases = {"prlimit64:retval=0:when=1": support.LIMITS,
             "sched_setscheduler:retval=0": ["process-set-scheduler"],
             "sched_setaffinity:retval=0": ["process-set-affinity"]}
    for inject, operations in cases.items():
        with under_strace([inject]) as delegate:
            found = as_peer(_ask_all, delegate.socket,
                            cgroup=stage.cgroup("root"))
            for operation in operations:
                expect(found[operation][0], "failed",
                       f"verdict of {operation} with {inject}")


@test
def what_the_kernel_does_not_tell_of_a_process_is_read_from_proc():
    with under_strace(["ioctl:error=EIO"]) as delegate:
        found = as_peer(_ask_all, delegate.socket, cgroup=stage.cgroup("root"))
    expect({verdict for verdict, _ in found.values()}, {"handled"},
           f"verdicts {found}")


@test
def a_symlink_in_the_place_of_its_new_socket_leads_it_to_no_file():
    """By whoever can write in the directory."""
    directory = support.bed.path("swapped")
    directory.mkdir()
    victim = directory / "victim"
    victim.touch(0o600)
    policy = directory / "policy.toml"
    policy.write_text("version = 1\n" + stage.rule("root", 0, "root"))
    path = directory / "socket"
    delegate = subprocess.Popen(
        ["strace", "-f", "-o", "/dev/null", "-e", "trace=bind", "-e",
         "inject=bind:delay_exit=2000000", support.bed.command,
         "delegate", "--listen", f"unix:{path}", "--policy", policy],
        stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        support.eventually(path.is_socket, "the socket is there")
        path.unlink()
        path.symlink_to(victim)
        # It says that it listens, or why not.
        said = delegate.stderr.readline()
        expect(oct(victim.stat().st_mode), "0o100600", "the victim's mode")
        expect("is not the socket that was made" in said, True, said)
        expect(delegate.wait(support.DEADLINE), 1, "status")
    finally:
        if delegate.poll() is None:
            for pid in support.children_of(delegate.pid):
                os.kill(pid, signal.SIGKILL)
        delegate.communicate()


def _slow(outside, path, request):
    with Connection(path) as connection, Qemu() as qemu:
        connection.send(wire.MAX_CORE_SIZE, CORE, [qemu.pidfd],
                        request=request)
        outside.say("sent")
        return connection.answer().verdict


@test
def operations_over_the_quota_at_a_time_are_refused():
    with under_strace(["prlimit64:delay_enter=1000000"],
                      extra="quota = { concurrent = 1 }") as delegate:
        place = {"cgroup": stage.cgroup("root")}
        with Peer(_slow, delegate.socket, 1, **place) as first:
            first.hear()
            with Peer(_slow, delegate.socket, 2, **place) as second:
                second.hear()
                verdicts = sorted([first.result(), second.result()])
        expect(verdicts, ["handled", "refused"], "verdicts")


@test
def a_peer_that_is_killed_while_the_delegate_works_has_it_finished():
    with under_strace(["prlimit64:delay_enter=300000"]) as delegate:
        with Peer(_slow, delegate.socket, 77,
                  cgroup=stage.cgroup("root")) as peer:
            peer.hear()
            peer.kill()
        line = delegate.line(0, "process-set-max-core-size", request="0x4d")
        # Its process ends with it.
        expect(line["outcome"] in ("handled", "failed"), True,
               f"outcome {line['outcome']}")
        support.eventually(lambda: delegate.count()[1] == 1,
                           "its thread has ended")
        expect(as_peer(_asks, delegate.socket, cgroup=stage.cgroup("root")),
               "handled", "verdict for another peer")


def _asks(outside, path):
    with Connection(path) as connection, Qemu() as qemu:
        return connection.ask(wire.MAX_CORE_SIZE, CORE, [qemu.pidfd]).verdict


@test
def a_peer_outside_the_delegates_pid_namespace_is_refused():
    """It has no number there, and could be anybody."""
    directory = support.bed.path("inside")
    directory.mkdir()
    policy = directory / "policy.toml"
    policy.write_text("version = 1\n" + stage.rule("root", 0, "root"))
    socket = directory / "socket"
    process = subprocess.Popen(
        ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child",
         support.bed.command, "delegate", "--listen", f"unix:{socket}",
         "--policy", policy], stdin=subprocess.DEVNULL)
    try:
        support.eventually(socket.exists, "the delegate listens")
        said = as_peer(_refusal, str(socket), cgroup=stage.cgroup("root"))
    finally:
        # It holds back SIGTERM; its child ends with it.
        process.kill()
        process.wait()
    expect("no more" in said, True, f"what it says: {said}")


def _refusal(outside, path):
    def connected():
        try:
            return _asks(outside, path)
        except wire.Ended as ended:
            return str(ended)
        except (ConnectionRefusedError, BrokenPipeError):
            return None
    return support.eventually(connected, "an answer")
