# SPDX-License-Identifier: LGPL-2.1-or-later
"""The delegate that most tests share, its policy, and the cgroups in it."""

import os

import support
import wire
from support import Delegate, Qemu
from wire import Connection

main = None
at_first = None

ALL = """
process-set-max-mem-lock = { max = 65536 }
process-set-max-processes = { max = 100 }
process-set-max-files = { max = 64 }
process-set-max-core-size = { max = 4096 }
process-set-scheduler = { policies = ["other", "batch", "idle", "fifo"], max-priority = 10, cpus = "0", cpus-by = "affinity" }
process-set-affinity = { cpus = "0" }
cgroup-add-threads = { roles = ["vcpu", "emulator"] }
"""


def rule(name, uid, cgroup, operations=ALL, target=None, extra=""):
    """A rule for the peers of one cgroup of the suite's."""
    target = f"uid = {uid}" if target is None else target
    path = support.bed.cgroup_path(cgroup)
    return f"""
[[rule]]
name = "{name}"
peer = {{ uid = {uid}, cgroup = "{path}" }}
target = {{ {target} }}
{extra}
{operations}
"""


def begin():
    global main, at_first
    bed = support.bed
    for path in ("vm1", "vm1/qemu", "vm1/qemu/vcpus", "vm10", "root", "flood",
                 "root/qemu", "root/qemu/vcpus", "other", "quota", "nobody"):
        bed.cgroup(path)
    for path in ("vm1/qemu/vcpus", "root/qemu/vcpus"):
        (bed.cgroup(path) / "cgroup.type").write_text("threaded")
    if bed.v1 is not None:
        for path in ("vm1", "vm1/vcpus", "vm10"):
            bed.cgroup(path, version=1)
    main = Delegate(
        "version = 1\n" +
        rule("container", support.MACHINE_UID, "vm1") +
        rule("root", 0, "root") +
        rule("other", 0, "other") +
        rule("core", 0, "quota", "process-set-max-core-size = { max = 0 }",
             extra="quota = { connections = 3, per-second = 5 }") +
        rule("flood", 0, "flood"))
    # From the first cgroup on it keeps a descriptor of each mount of cgroups.
    support.as_peer(_send_cgroup, main.socket, str(cgroup("root/qemu/vcpus")),
                    cgroup=cgroup("root"))
    support.eventually(lambda: main.count()[1] == 1, "only its own thread")
    at_first = main.count()


def _send_cgroup(outside, path, group):
    with Connection(path) as connection, Qemu(1) as qemu:
        fd = os.open(group, os.O_PATH)
        connection.ask(wire.ADD_THREADS, wire.add_threads(qemu.tids),
                       [qemu.pidfd, fd])


def end():
    if main is not None:
        main.stop()


def cgroup(path):
    return support.bed.cgroup(path)
