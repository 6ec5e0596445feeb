# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the delegate is there for: a launcher without any privilege, in
namespaces of its own, has every operation done on its QEMU."""

import os

import stage
import support
from support import (MACHINE_UID, Peer, Qemu, Skipped, as_peer, call,
                     connect_delegate, expect, numbers, test)

FIFO = [os.SCHED_FIFO, 5]


def find_qemu(peer):
    for pid in support.descendants(peer.pid):
        if support.status(pid, "Name") == "qemu":
            return pid
    raise AssertionError("the peer has no QEMU")


def _launcher(outside, path, vcpus):
    vir = support.vir
    with Qemu(3) as qemu:
        outside.say(qemu.tids)
        outside.hear()
        tid = qemu.tids[1]
        scheduler = (vir.process_set_scheduler, qemu.pid, tid,
                     vir.SCHED_FIFO, 5)
        alone = call(*scheduler)
        connect_delegate(path)
        results = (support.ctypes.c_int * 2)()
        done = {
            "process-set-max-mem-lock":
                call(vir.process_set_max_mem_lock, qemu.pid, 65536),
            "process-set-max-processes":
                call(vir.process_set_max_processes, qemu.pid, 100),
            "process-set-max-files":
                call(vir.process_set_max_files, qemu.pid, 64),
            "process-set-max-core-size":
                call(vir.process_set_max_core_size, qemu.pid, 4096),
            "process-set-affinity":
                call(vir.process_set_affinity, qemu.pid, tid,
                     *vir.cpumap(0)),
            "process-set-scheduler": call(*scheduler),
            "cgroup-add-threads":
                call(vir.cgroup_add_threads, qemu.pid, vcpus.encode(),
                     vir.THREAD_VCPU, numbers(qemu.tids[:2]), None, 2, None,
                     0, results),
        }
        outside.say([alone, done, list(results)])
        outside.hear()


def with_launcher(version, vcpus, check, delegate=None):
    """Runs the launcher with a read-only mount of its cgroup, and
    check(qemu, tids, mark) when it has everything done."""
    point = support.bed.path("readonly")
    point.mkdir()
    delegate = delegate or stage.main
    mark = delegate.mark()
    v1 = support.bed.cgroup("vm1", 1) if support.bed.v1 else None
    with Peer(_launcher, delegate.socket, f"{point}/{vcpus}", uid=MACHINE_UID,
              cgroup=stage.cgroup("vm1"), v1=v1, container=True,
              readonly=(version, point)) as peer:
        inner = peer.hear()
        qemu = find_qemu(peer)
        (stage.cgroup("vm1/qemu") / "cgroup.procs").write_text(str(qemu))
        threads = support.outer_threads(qemu)
        tids = [threads[tid] for tid in inner]
        for pid in (qemu, int(support.status(qemu, "PPid"))):
            expect(support.status(pid, "CapEff"), "0" * 16,
                   f"capabilities of process {pid}")
            expect(support.status(pid, "Uid").split(),
                   [str(MACHINE_UID)] * 4, f"user of process {pid}")
            expect(len(support.status(pid, "NSpid").split()), 2,
                   f"PID namespaces of process {pid}")
        peer.say("go on")
        alone, done, results = peer.hear()
        expect(alone[1], support.errno.EPERM,
               "errno of the operation without a delegate")
        expect(done, {name: [0, 0, ""] for name in done}, "what was done")
        expect(results, [0, 0], "results of the threads")
        check(qemu, tids, mark)
        launcher = int(support.status(qemu, "PPid"))
        peer.say("that is all")
        peer.result()
        return launcher


@test
def an_unprivileged_launcher_has_every_operation_done_on_its_qemu():
    values = {"process-set-max-mem-lock": 65536,
              "process-set-max-processes": 100,
              "process-set-max-files": 64,
              "process-set-max-core-size": 4096}
    # libvirt counts files from 0.
    limits = {**values, "process-set-max-files": 65}
    seen = {}

    def check(qemu, tids, mark):
        for operation, value in limits.items():
            expect(support.limit(qemu, operation), [value, value], operation)
        expect(os.sched_getaffinity(tids[1]), {0}, "affinity of the thread")
        expect(support.schedule(tids[1]), FIFO, "scheduler of the thread")
        expect(support.schedule(tids[0])[0], os.SCHED_OTHER,
               "scheduler of another thread")
        expect(support.schedule(qemu)[0], os.SCHED_OTHER,
               "scheduler of the first thread")
        vcpus = support.bed.cgroup_path("vm1/qemu/vcpus")
        expect([support.cgroup_of(qemu, tid) for tid in tids],
               [vcpus, vcpus, support.bed.cgroup_path("vm1/qemu")],
               "cgroups of the threads")
        for operation in [*values, "process-set-affinity",
                          "process-set-scheduler", "cgroup-add-threads"]:
            line = stage.main.line(mark, operation)
            expect((line["outcome"], line["rule"]), ("handled", "container"),
                   f"outcome and rule in the audit line of {operation}")
            thread = {}
            if operation in ("process-set-affinity", "process-set-scheduler"):
                thread = {"tid": tids[1]}
            expect(line["target"],
                   {"pid": qemu, "uid": MACHINE_UID, **thread,
                    "cgroup": support.bed.cgroup_path("vm1/qemu")},
                   f"target in the audit line of {operation}")
            peer = line["peer"]
            expect((peer["pid"], peer["uid"], peer["gid"], peer["cgroup"]),
                   (int(support.status(qemu, "PPid")), MACHINE_UID,
                    MACHINE_UID, support.bed.cgroup_path("vm1")),
                   f"peer in the audit line of {operation}")
            seen[operation] = line
        for operation, value in values.items():
            expect(seen[operation]["asked"], value, f"asked of {operation}")
            limit = limits[operation]
            expect(seen[operation]["after"], {"soft": limit, "hard": limit},
                   f"after {operation}")
        expect(seen["process-set-affinity"]["after"], "0", "affinity after")
        expect(seen["cgroup-add-threads"]["before"], {"there": 0},
               "threads in the cgroup before")
        expect(seen["cgroup-add-threads"]["after"], {"there": 2},
               "threads in the cgroup after")

    with_launcher(2, "qemu/vcpus", check)


@test
def a_cgroup_of_v1_on_a_read_only_mount_takes_threads():
    if support.bed.v1 is None:
        raise Skipped("no cgroup v1 with the controller pids is mounted")

    def check(qemu, tids, mark):
        vcpus = support.bed.cgroup_path("vm1/vcpus")
        expect([support.cgroup_of(qemu, tid, version=1) for tid in tids],
               [vcpus, vcpus, support.bed.cgroup_path("vm1")],
               "cgroups of v1 of the threads")
        line = stage.main.line(mark, "cgroup-add-threads")
        expect(line["asked"]["cgroup"], vcpus, "cgroup in the audit line")

    with_launcher(1, "vcpus", check)


def _readonly(outside, point):
    try:
        open(f"{point}/qemu/cgroup.procs", "w")
    except OSError as error:
        return error.errno
    return 0


@test
def the_launchers_cgroup_mount_is_read_only():
    point = support.bed.path("readonly")
    point.mkdir()
    found = as_peer(_readonly, str(point), uid=MACHINE_UID,
                    cgroup=stage.cgroup("vm1"), container=True,
                    readonly=(2, point))
    expect(found, support.errno.EROFS, "errno of writing to the mount")


def _forked(outside, path):
    """As libvirt does between fork and exec: in the child, with every
    inherited descriptor closed."""
    vir = support.vir
    connect_delegate(path)
    with Qemu(1) as qemu:
        expect(call(vir.process_set_max_files, qemu.pid, 60), [0, 0, ""],
               "the parent's request")
        child = os.fork()
        if child == 0:
            os.closerange(3, 1024)
            done = call(vir.process_set_max_files, qemu.pid, 50)
            os._exit(0 if done == [0, 0, ""] else 1)
        expect(os.waitpid(child, 0)[1], 0, "status of the child")
        return support.limit(qemu.pid, "process-set-max-files")


@test
def a_forked_child_of_the_launcher_is_served_as_the_launcher():
    mark = stage.main.mark()
    found = as_peer(_forked, stage.main.socket, uid=MACHINE_UID,
                    cgroup=stage.cgroup("vm1"), container=True)
    expect(found, [51, 51], "limit of the process")
    stage.main.line(mark, "process-set-max-files", outcome="handled", asked=50)
