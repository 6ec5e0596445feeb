# SPDX-License-Identifier: LGPL-2.1-or-later
"""Cgroups that are not what their paths say."""

import itertools
import os
import subprocess
import threading

import stage
import support
import wire
from support import (MACHINE_UID, Delegate, Peer, Qemu, Skipped, as_peer, call,
                     connect_delegate, expect, numbers, test)
from wire import Connection


def _swap(outside, path, directory, own, foreign, form):
    """Has a symbolic link lead elsewhere, over and over, while the library
    and the delegate work on a path through it."""
    vir = support.vir
    connect_delegate(path)
    os.mkdir(directory)
    link, stop = f"{directory}/link", threading.Event()
    os.symlink(own, link)

    def flip():
        for target in itertools.cycle([foreign, own]):
            if stop.is_set():
                return
            os.symlink(target, link + ".new")
            os.rename(link + ".new", link)
    flipper = threading.Thread(target=flip)
    flipper.start()
    where = form.replace("LINK", link)
    seen = {"done": 0, "refused": 0}
    home = os.path.dirname(own) + "/qemu"
    try:
        with Qemu(cgroup=home) as qemu:
            begin = support.cgroup_of(qemu.pid)

            def once():
                code, errnum, message = call(
                    vir.cgroup_add_threads, qemu.pid, where.encode(), 0,
                    numbers([qemu.pid]), None, 1, None, 0, None)
                place = support.cgroup_of(qemu.pid)
                if code == 0:
                    seen["done"] += 1
                    expect(place, begin.replace("/qemu", "/inside"),
                           "cgroup after a success")
                    with open(home + "/cgroup.procs", "w") as file:
                        file.write(str(qemu.pid))
                elif errnum == support.errno.EPERM:
                    seen["refused"] += 1
                    expect(place, begin, "cgroup after a refusal")
                else:
                    expect(place, begin, f"cgroup after {message}")
                return min(seen.values()) >= 20
            support.eventually(once, "20 of each", deadline=30)
    finally:
        stop.set()
        flipper.join()
    return seen


def swap(form):
    bed = support.bed
    own = str(bed.cgroup("root/inside"))
    foreign = str(bed.cgroup("other/inside"))
    mark = stage.main.mark()
    as_peer(_swap, stage.main.socket, str(bed.path("swap")), own, foreign,
            form, cgroup=stage.cgroup("root"))
    for line in stage.main.lines()[mark:]:
        if line["outcome"] == "handled":
            expect(line["asked"]["cgroup"], bed.cgroup_path("root/inside"),
                   "cgroup in the audit line of what was done")
    expect((bed.cgroup("other/inside") / "cgroup.procs").read_text(), "",
           "processes in the other's cgroup")


@test
def a_symbolic_link_that_is_swapped_leads_to_ones_own_cgroup_or_nowhere():
    swap("LINK")


@test
def a_path_with_dots_behind_a_swapped_link_leads_to_ones_own_or_nowhere():
    swap("LINK/../inside")


def _descriptors(outside, path, groups):
    found = {}
    with Connection(path) as connection, Qemu() as qemu:
        for name, group in groups.items():
            fd = group if isinstance(group, int) else os.open(group, os.O_PATH)
            answer = connection.ask(wire.ADD_THREADS,
                                    wire.add_threads([qemu.pid]),
                                    [qemu.pidfd, fd])
            found[name] = [answer.verdict, answer.errnum]
        found["v1"] = support.cgroup_of(qemu.pid, version=1)
        found["v2"] = support.cgroup_of(qemu.pid)
    return found


@test
def a_cgroup_of_another_hierarchy_is_measured_by_the_peers_place_there():
    """Below the peer's cgroup of v2 does not mean below that of v1."""
    bed = support.bed
    if bed.v1 is None:
        raise Skipped("no cgroup v1 with the controller pids is mounted")
    groups = {"foreign": str(bed.cgroup("vm10", 1)), "top": str(bed.v1),
              "own": str(bed.cgroup("vm1/vcpus", 1))}
    # In the root of v1: nothing of it is its own.
    found = as_peer(_descriptors, stage.main.socket, groups,
                    cgroup=stage.cgroup("root"))
    expect([found[name][0] for name in groups], ["refused"] * 3,
           "verdicts for a peer in the root of v1")
    expect(found["v1"], "/", "the process's cgroup of v1")
    found = as_peer(_descriptors, stage.main.socket, groups,
                    cgroup=stage.cgroup("root"), v1=bed.cgroup("vm1", 1))
    expect([found[name][0] for name in groups],
           ["refused", "refused", "handled"], "verdicts for a peer in v1")
    expect(found["v1"], bed.cgroup_path("vm1/vcpus"),
           "the process's cgroup of v1")


@test
def a_cgroup_that_was_removed_is_an_error():
    gone = support.bed.cgroup("root/gone")
    fd = os.open(gone, os.O_PATH)
    os.set_inheritable(fd, True)
    gone.rmdir()
    named = support.bed.cgroup("root/x (deleted)")
    found = as_peer(_descriptors, stage.main.socket,
                    {"gone": fd, "named so": str(named)},
                    cgroup=stage.cgroup("root"))
    os.close(fd)
    expect(found["gone"][0], "failed", "verdict for one that was removed")
    expect(found["named so"][0], "handled", "verdict for one with that name")
    expect(found["v2"], support.bed.cgroup_path("root/x (deleted)"),
           "the process's cgroup")


def _ask(outside, path):
    with Qemu() as qemu:
        try:
            with Connection(path) as connection:
                return connection.ask(wire.MAX_CORE_SIZE, wire.bytes_limit(0),
                                      [qemu.pidfd]).verdict
        except wire.Ended as ended:
            return str(ended)


@test
def a_cgroups_name_is_compared_whole_up_to_its_greatest_length():
    bed = support.bed
    names = {"same": "n" * 254, "longer": "n" * 255, "shorter": "n" * 253}
    policy = "version = 1\n" + stage.rule("long", 0, names["same"])
    with Delegate(policy) as delegate:
        found = {what: as_peer(_ask, delegate.socket, cgroup=bed.cgroup(name))
                 for what, name in names.items()}
    expect(found, {"same": "handled", "longer": "refused",
                   "shorter": "refused"}, "verdicts")


def own_mounts(script, *arguments):
    """A wrapper that gives a delegate mounts of its own, and changes them."""
    return ["unshare", "--mount", "--propagation", "private", "--fork", "sh",
            "-ec", f'{script}; shift {len(arguments)}; exec "$@"', "sh",
            *arguments]


def _verdict(outside, path, group):
    with Connection(path) as connection, Qemu() as qemu:
        return connection.ask(wire.ADD_THREADS, wire.add_threads([qemu.pid]),
                              [qemu.pidfd, os.open(group, os.O_PATH)]).verdict


def takes_threads(delegate):
    """The verdict of a peer that sends a cgroup below its own."""
    return as_peer(_verdict, delegate.socket,
                   str(support.bed.cgroup("root/inside")),
                   cgroup=stage.cgroup("root"))


@test
def a_hierarchy_that_is_mounted_later_is_found():
    policy = "version = 1\n" + stage.rule("root", 0, "root")
    v2 = str(support.bed.v2)
    with Delegate(policy, wrapper=own_mounts('umount -l "$1"', v2)) as delegate:
        expect(takes_threads(delegate), "refused", "verdict without a mount")
        subprocess.run(["nsenter", f"--mount=/proc/{delegate.pid}/ns/mnt",
                        "mount", "-t", "cgroup2", "none", v2], check=True)
        expect(takes_threads(delegate), "handled", "verdict with a mount")


@test
def a_mount_point_that_is_not_utf_8_takes_no_hierarchy_away():
    """A user makes one with fusermount."""
    directory = support.bed.path("\udcff")
    directory.mkdir()
    policy = "version = 1\n" + stage.rule("root", 0, "root")
    wrapper = own_mounts('mount -t tmpfs none "$1"', directory)
    with Delegate(policy, wrapper=wrapper) as delegate:
        expect(takes_threads(delegate), "handled", "verdict")
        expect(delegate.said(), "", "what it wrote on standard error")


@test
def a_cgroup_that_is_not_utf_8_takes_no_other_hierarchy_away():
    if support.bed.v1 is None:
        raise Skipped("no cgroup v1 with the controller pids is mounted")
    expect(as_peer(_ask, stage.main.socket, cgroup=stage.cgroup("root"),
                   v1=support.bed.cgroup("\udcff", 1)), "handled", "verdict")


@test
def a_cgroup_that_is_not_utf_8_permits_nothing():
    inside = support.bed.cgroup("root/\udcff")
    said = as_peer(_ask, stage.main.socket, cgroup=inside)
    expect("has no cgroup" in said, True, f"the peer in it is told so ({said})")
    with Qemu(cgroup=inside) as qemu:
        os.set_inheritable(qemu.pidfd, True)
        verdict = as_peer(_deep_target, stage.main.socket, qemu.pidfd,
                          cgroup=stage.cgroup("root"))
        expect(verdict, "refused", "the verdict for a target in it")


class Deep:
    """A cgroup whose path is longer than /proc can say."""

    def __init__(self, top):
        self.fds = [os.open(top, os.O_RDONLY)]
        for _ in range(17):
            os.mkdir("d" * 250, dir_fd=self.fds[-1])
            self.fds.append(os.open("d" * 250, os.O_RDONLY,
                                    dir_fd=self.fds[-1]))

    def __truediv__(self, name):
        return self

    def write_text(self, text):
        fd = os.open("cgroup.procs", os.O_WRONLY, dir_fd=self.fds[-1])
        os.write(fd, text.encode())
        os.close(fd)

    def remove(self):
        while len(self.fds) > 1:
            os.close(self.fds.pop())
            support.eventually(self._removed, "the cgroup is empty")
        os.close(self.fds[0])

    def _removed(self):
        try:
            os.rmdir("d" * 250, dir_fd=self.fds[-1])
        except OSError as error:
            if error.errno != support.errno.EBUSY:
                raise
            return False
        return True


def _deep_target(outside, path, pidfd):
    with Connection(path) as connection:
        answer = connection.ask(wire.MAX_CORE_SIZE, wire.bytes_limit(0),
                                [pidfd], request=0xdee9)
        return answer.verdict


@test
def a_cgroup_path_that_is_too_long_to_read_permits_nothing():
    deep = Deep(stage.cgroup("root"))
    try:
        said = as_peer(_ask, stage.main.socket, cgroup=deep)
        expect(said != "handled", True, f"the peer in it is served ({said})")
        with Qemu(preexec=lambda: deep.write_text("0")) as qemu:
            before = support.limit(qemu.pid, "process-set-max-core-size")
            os.set_inheritable(qemu.pidfd, True)
            mark = stage.main.mark()
            verdict = as_peer(_deep_target, stage.main.socket, qemu.pidfd,
                              cgroup=stage.cgroup("root"))
            expect(verdict in ("failed", "refused"), True,
                   f"the target in it is refused ({verdict})")
            expect(support.limit(qemu.pid, "process-set-max-core-size"),
                   before, "the target's limit")
            stage.main.line(mark, "process-set-max-core-size",
                            request="0xdee9", outcome=verdict)
    finally:
        deep.remove()
