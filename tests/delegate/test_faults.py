# SPDX-License-Identifier: LGPL-2.1-or-later
"""A kernel that fails or lies, and a delegate that is slow: by strace."""

import os
import re
import resource
import signal
import subprocess

import stage
import support
import test_operations
import wire
from support import Delegate, Peer, Qemu, as_peer, expect, test
from wire import Connection

CORE = wire.bytes_limit(0)


def under_strace(inject, extra="", rules=None, trace="/dev/null", calls=(),
                 wrapper=()):
    """With @trace, these calls are written there, too."""
    rules = rules or stage.rule("root", 0, "root", extra=extra)
    calls = ",".join([*(each.split(":")[0] for each in inject), *calls])
    options = [part for each in inject for part in ("-e", f"inject={each}")]
    return Delegate("version = 1\n" + rules,
                    wrapper=[*wrapper, "strace", "-f", "-y", "-o", trace, "-e",
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


# As before Linux 6.11, where the kernel does not translate numbers either.
OLD = ["ioctl:error=ENOTTY"]


@test
def threads_in_a_pid_namespace_are_told_by_proc_where_the_kernel_does_not():
    vcpus = support.bed.cgroup_path("vm1/qemu/vcpus")

    def check(qemu, tids, mark):
        expect([support.cgroup_of(qemu, tid) for tid in tids],
               [vcpus, vcpus, support.bed.cgroup_path("vm1/qemu")],
               "cgroups of the threads")
        expect([support.schedule(tid)[0] for tid in [qemu, *tids]],
               [os.SCHED_OTHER, os.SCHED_OTHER, os.SCHED_FIFO,
                os.SCHED_OTHER], "schedulers of the threads")
    rules = stage.rule("container", support.MACHINE_UID, "vm1")
    with under_strace(OLD, rules=rules) as delegate:
        test_operations.with_launcher(2, "qemu/vcpus", check, delegate)


def _named(outside, path, program):
    support.bed.qemu = program
    with Connection(path) as connection, Qemu(2) as qemu:
        verdict = connection.ask(wire.SCHEDULER, wire.scheduler(
            1, 0, qemu.tids[1]), [qemu.pidfd]).verdict
        return [verdict, support.schedule(qemu.tids[1])[0]]


@test
def a_thread_whose_name_is_not_utf_8_is_told_by_proc_like_any_other():
    # The kernel names a process, and so its threads, as the program's file.
    program = support.bed.path("\udcff")
    program.symlink_to(support.bed.qemu)
    rules = stage.rule("container", support.MACHINE_UID, "vm1")
    with under_strace(OLD, rules=rules) as delegate:
        found = as_peer(_named, delegate.socket, program, container=True,
                        uid=support.MACHINE_UID, cgroup=stage.cgroup("vm1"))
    expect(found, ["handled", os.SCHED_BATCH], "verdict and scheduler")


COUNT = 200


def _many(outside, path, enough):
    """Has threads moved that are known by their numbers in another namespace,
    until enough(verdicts)."""
    verdicts = []
    with Connection(path) as connection, Qemu(COUNT) as qemu:
        body = wire.add_threads(qemu.tids, group=False)

        def once():
            answer = connection.ask(wire.ADD_THREADS, body, [qemu.pidfd])
            verdicts.append(answer.verdict)
            return enough(verdicts)
        support.eventually(once, "enough answers")
    return verdicts


def translations(rules, enough):
    """The verdicts of many(), and how many files of threads were read."""
    trace = support.bed.path("trace")
    with under_strace(OLD, rules=rules, trace=trace,
                      calls=["openat"]) as delegate:
        verdicts = as_peer(_many, delegate.socket, enough, container=True,
                           uid=support.MACHINE_UID,
                           cgroup=stage.cgroup("vm1"))
    return verdicts, len(re.findall(r"openat\(.*/task/\d+/status\"",
                                    trace.read_text(errors="replace")))


@test
def a_request_reads_each_threads_file_once_where_the_kernel_does_not_tell():
    verdicts, files = translations(
        stage.rule("container", support.MACHINE_UID, "vm1"), bool)
    expect(verdicts, ["not handled"], "verdict")
    # With the first one.
    expect(files, COUNT + 1, "files of threads that were read")


@test
def a_request_over_a_quota_is_refused_before_its_threads_are_looked_for():
    verdicts, files = translations(
        stage.rule("container", support.MACHINE_UID, "vm1",
                   extra="quota = { per-second = 1 }"),
        lambda verdicts: "refused" in verdicts)
    expect(files, verdicts.count("not handled") * (COUNT + 1),
           f"files of threads that were read for {verdicts}")


@test
def a_request_that_no_rule_allows_is_refused_before_threads_are_looked_for():
    core = "process-set-max-core-size = { max = 0 }"
    rules = stage.rule("core", support.MACHINE_UID, "vm1", core)
    expect(translations(rules, bool), (["refused"], 0),
           "verdicts, and files of threads that were read")


# Nobody else mounts anything there.
OWN_MOUNTS = ["unshare", "--mount", "--propagation", "private"]


def _foreign(outside, path, directory, count):
    """What is in none of the delegate's cgroup hierarchies ends a
    connection."""
    fd = os.open(directory, os.O_PATH)
    with Qemu() as qemu:
        body = wire.add_threads([qemu.pid])
        for _ in range(count):
            with Connection(path) as connection:
                answer = connection.ask(wire.ADD_THREADS, body,
                                        [qemu.pidfd, fd])
                expect("not an O_PATH descriptor of one" in answer.text, True,
                       f"why the connection ended ({answer.text})")


@test
def what_is_no_cgroup_has_the_mounts_read_again_only_if_they_changed():
    trace = support.bed.path("trace")
    with under_strace([], calls=["read"], trace=trace,
                      wrapper=OWN_MOUNTS) as delegate:
        def reads(count):
            as_peer(_foreign, delegate.socket, str(support.bed.directory),
                    count, cgroup=stage.cgroup("root"))
            return len(re.findall(r"read\(\d+</proc/\d+/mountinfo>",
                                  trace.read_text(errors="replace")))
        once = reads(1)
        expect(reads(10), once, "reads of the mounts in the end")
        subprocess.run(["nsenter", f"--mount=/proc/{delegate.pid}/ns/mnt",
                        "mount", "-t", "tmpfs", "none",
                        support.bed.directory], check=True)
        twice = reads(1)
        expect(twice > once, True, "the mounts were read after a change")
        expect(reads(10), twice, "reads of the mounts in the very end")


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


def _when_told(outside, path):
    """Asks each time it is told to, until it is told that that is all."""
    with Connection(path) as connection, Qemu() as qemu:
        outside.say("there")
        while outside.hear() == "go on":
            outside.say(connection.ask(wire.MAX_CORE_SIZE, CORE,
                                       [qemu.pidfd]).verdict)


@test
def operations_over_the_quota_at_a_time_are_refused():
    with under_strace(["prlimit64:delay_enter=1000000"],
                      extra="quota = { concurrent = 1 }") as delegate:
        place = {"cgroup": stage.cgroup("root")}
        with Peer(_when_told, delegate.socket, **place) as first, \
                Peer(_when_told, delegate.socket, **place) as second:
            peers = [first, second]
            for peer in peers:
                peer.hear()

            def at_once():
                for peer in peers:
                    peer.say("go on")
                return sorted(peer.hear() for peer in peers)

            def overlap():
                # On a busy machine the second may be read when the first is
                # done: then there was one at a time.
                verdicts = at_once()
                return verdicts != ["handled", "handled"] and verdicts
            verdicts = support.eventually(overlap, "two requests at a time")
            for peer in peers:
                peer.say("that is all")
                peer.result()
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
