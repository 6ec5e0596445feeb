# SPDX-License-Identifier: LGPL-2.1-or-later
"""Values at each bound, and above it by one."""

import os

import stage
import support
import wire
from support import Delegate, Qemu, Skipped, as_peer, expect, test
from wire import Connection

REFUSED = ["refused", support.errno.EPERM]


def _limits(outside, path):
    cases = [(wire.MAX_MEM_LOCK, wire.bytes_limit, 65536, 65536),
             (wire.MAX_PROCESSES, wire.count_limit, 100, 100),
             (wire.MAX_FILES, wire.count_limit, 64, 65),
             (wire.MAX_CORE_SIZE, wire.bytes_limit, 4096, 4096)]
    with Connection(path) as connection, Qemu() as qemu:
        for operation, write, bound, kernel in cases:
            name = wire.OPERATIONS[operation]
            before = support.limit(qemu.pid, name)
            highest = 2 ** (64 if write is wire.bytes_limit else 32) - 1
            # libvirt's unlimited and its neighbours; what wraps around.
            for value in (bound + 1, 2 * bound, highest, highest - 1,
                          2 ** 31, 2 ** 31 - 1, 2 ** 32 - 1,
                          min(highest, 9007199254740990),
                          min(highest, 9007199254740991),
                          min(highest, 9007199254740992),
                          min(highest, 2 ** 63), min(highest, 2 ** 32 + 1)):
                answer = connection.ask(operation, write(value), [qemu.pidfd])
                expect([answer.verdict, answer.errnum], REFUSED,
                       f"{name} of {value}")
                expect(support.limit(qemu.pid, name), before,
                       f"limit after {name} of {value} was refused")
            answer = connection.ask(operation, write(bound), [qemu.pidfd])
            expect(answer.verdict, "handled", f"{name} of {bound}")
            expect(support.limit(qemu.pid, name), [kernel] * 2,
                   f"limit after {name} of {bound}")


@test
def a_limit_above_its_bound_by_one_is_refused():
    as_peer(_limits, stage.main.socket, cgroup=stage.cgroup("root"))


def _scheduler(outside, path):
    with Connection(path) as connection, Qemu(1) as qemu:
        tid, thread = qemu.tids[0], qemu.thread_pidfd()

        def ask(policy, priority):
            answer = connection.ask(
                wire.SCHEDULER, wire.scheduler(policy, priority, tid),
                [qemu.pidfd, thread])
            return [answer.verdict, answer.errnum]
        fifo, rr = 3, 4
        os.sched_setaffinity(tid, {0})
        expect(ask(fifo, 11), REFUSED, "FIFO with priority 11")
        expect(ask(fifo, 99), REFUSED, "FIFO with priority 99")
        expect(ask(rr, 1), REFUSED, "RR, which is not allowed")
        expect(support.schedule(tid), [os.SCHED_OTHER, 0], "scheduler")
        expect(ask(fifo, 10), ["handled", 0], "FIFO with priority 10")
        expect(support.schedule(tid), [os.SCHED_FIFO, 10], "scheduler")
        expect(ask(0x100, 0), ["handled", 0], "OTHER")
        if os.cpu_count() > 1:
            os.sched_setaffinity(tid, {0, 1})
            expect(ask(fifo, 1), REFUSED, "FIFO on a CPU that is not allowed")
            expect(support.schedule(tid), [os.SCHED_OTHER, 0], "scheduler")


@test
def a_policy_a_priority_or_a_cpu_beyond_the_bounds_is_refused():
    as_peer(_scheduler, stage.main.socket, cgroup=stage.cgroup("root"))


def _cpuset(outside, path, group):
    with Connection(path) as connection, Qemu(1, cgroup=group) as kept, \
            Qemu(1) as free:
        def ask(qemu):
            tid = qemu.tids[0]
            os.sched_setaffinity(tid, {0})
            answer = connection.ask(
                wire.SCHEDULER, wire.scheduler(3, 10, tid),
                [qemu.pidfd, qemu.thread_pidfd()])
            return [answer.verdict, answer.errnum]
        expect(ask(kept), ["handled", 0], "FIFO in a cpuset")
        expect(support.schedule(kept.tids[0]), [os.SCHED_FIFO, 10],
               "scheduler of the thread in it")
        if os.cpu_count() > 1:
            # It stays in it, whatever it does.
            os.sched_setaffinity(kept.tids[0], {0, 1})
            expect(os.sched_getaffinity(kept.tids[0]), {0}, "its affinity")
            expect(ask(free), REFUSED, "FIFO with an affinity only")
            expect(support.schedule(free.tids[0]), [os.SCHED_OTHER, 0],
                   "scheduler of the thread outside")


@test
def a_realtime_thread_must_be_kept_by_its_cpuset_on_the_cpus_of_its_rule():
    group = support.bed.cpuset("0")
    if group is None:
        raise Skipped("there is no cpuset controller")
    target = f'cgroup = "/{support.bed.name}", uid = 0'
    policy = "version = 1\n" + stage.rule("realtime", 0, "root", """
process-set-scheduler = { policies = ["fifo"], max-priority = 10, cpus = "0" }
""", target=target)
    with Delegate(policy) as delegate:
        as_peer(_cpuset, delegate.socket, str(group),
                cgroup=stage.cgroup("root"))


def _affinity(outside, path):
    with Connection(path) as connection, Qemu() as qemu:
        before = os.sched_getaffinity(qemu.pid)

        def ask(cpumap):
            answer = connection.ask(wire.AFFINITY, wire.affinity(cpumap),
                                    [qemu.pidfd])
            return [answer.verdict, answer.errnum]
        expect(ask(b"\2"), REFUSED, "CPU 1")
        expect(ask(b"\3"), REFUSED, "CPUs 0 and 1")
        for length in (2, 128, 1024, 1025, 2047, 2048):
            expect(ask(b"\1" + bytes(length - 2) + b"\x80"), REFUSED,
                   f"the last CPU of a map of {length} bytes")
        expect(os.sched_getaffinity(qemu.pid), before, "affinity")
        expect(ask(b"\1" + bytes(2047)), ["handled", 0],
               "CPU 0 in a map of 2048 bytes")
        expect(os.sched_getaffinity(qemu.pid), {0}, "affinity")
        answer = connection.ask(wire.AFFINITY, wire.affinity(bytes(1)),
                                [qemu.pidfd])
        expect(answer.verdict, "failed", "a map without a CPU")


@test
def a_cpu_beyond_the_bounds_is_refused_wherever_it_is_in_the_map():
    as_peer(_affinity, stage.main.socket, cgroup=stage.cgroup("root"))


def _cgroup(outside, path, groups):
    with Connection(path) as connection, \
            Qemu(1, cgroup=groups["target"]) as qemu:
        place = support.cgroup_of(qemu.pid, qemu.tids[0])

        def ask(group, **fields):
            fds = [qemu.pidfd]
            if group:
                fds.append(os.open(groups[group], os.O_PATH))
            answer = connection.ask(
                wire.ADD_THREADS,
                wire.add_threads(qemu.tids, group=bool(group), **fields), fds)
            return [answer.verdict, answer.errnum]
        for role in (2, 3):
            expect(ask("vcpus", role=role), REFUSED,
                   f"role {role}, which is not allowed")
            expect(ask(None, role=role), REFUSED, f"role {role}, no cgroup")
        for group in ("above", "top", "other", "vm1"):
            expect(ask(group), REFUSED, f"cgroup {group}")
        expect(support.cgroup_of(qemu.pid, qemu.tids[0]), place,
               "the thread's cgroup")
        expect(ask("vcpus", role=1), ["handled", 0], "an allowed cgroup")
        expect(support.cgroup_of(qemu.pid, qemu.tids[0]),
               place + "/vcpus", "the thread's cgroup")
        os.close(qemu.pidfd)
        qemu.pidfd = os.pidfd_open(qemu.pid)


@test
def a_role_or_a_cgroup_beyond_the_bounds_is_refused():
    groups = {"target": "root/qemu", "vcpus": "root/qemu/vcpus",
              "other": "other", "vm1": "vm1/qemu/vcpus"}
    groups = {name: str(stage.cgroup(path)) for name, path in groups.items()}
    groups["above"] = os.path.dirname(str(stage.cgroup("root")))
    groups["top"] = str(support.bed.v2)
    as_peer(_cgroup, stage.main.socket, groups, cgroup=stage.cgroup("root"))


def _batch(outside, path, groups):
    """As many threads as a request can have, in a batch."""
    with Connection(path) as connection, \
            Qemu(wire.THREADS_MAX, cgroup=groups["target"]) as qemu:
        group = os.open(groups["vcpus"], os.O_PATH)
        answer = connection.ask(
            wire.ADD_THREADS, wire.add_threads(
                qemu.tids, ids=list(range(wire.THREADS_MAX))),
            [qemu.pidfd, group])
        expect(answer.verdict, "handled", f"verdict ({answer.text})")
        expect(list(answer.results), [0] * wire.THREADS_MAX, "results")
        members = {int(tid) for tid in open(
            groups["vcpus"] + "/cgroup.threads").read().split()}
        expect(set(qemu.tids) <= members, True, "all threads are there")


@test
def a_request_of_3000_threads_moves_all_of_them():
    groups = {name: str(stage.cgroup(path)) for name, path in
              {"target": "root/qemu", "vcpus": "root/qemu/vcpus"}.items()}
    as_peer(_batch, stage.main.socket, groups, cgroup=stage.cgroup("root"))
