# SPDX-License-Identifier: LGPL-2.1-or-later
"""Operations on real processes, done directly."""

import ctypes
import errno
import os
import pathlib
import resource
import tempfile
import threading
import time
from ctypes import c_int, c_uint

import libvirt_internal as vir
from support import CONN, OPERATIONS, TestCase

INFINITY = resource.RLIM_INFINITY


class Limits(TestCase):
    def test_locked_memory_is_limited_soft_and_hard(self):
        self.assertEqual(vir.process_set_max_mem_lock(self.pid, 8192), 0)
        self.assertEqual(self.limits(resource.RLIMIT_MEMLOCK), (8192, 8192))

    def test_no_locked_memory_is_a_limit_too(self):
        vir.process_set_max_mem_lock(self.pid, 0)
        self.assertEqual(self.limits(resource.RLIMIT_MEMLOCK), (0, 0))

    def test_libvirts_unlimited_is_the_kernels(self):
        unlimited = 9007199254740991
        soft, hard = self.limits(resource.RLIMIT_MEMLOCK)
        try:
            vir.process_set_max_mem_lock(self.pid, unlimited)
        except vir.Error as error:
            self.assertNotEqual(hard, INFINITY, error.message)
            self.assertEqual(
                error.message,
                f"cannot limit locked memory of process {self.pid} to "
                f"{unlimited}: Operation not permitted")
            self.assertEqual(self.limits(resource.RLIMIT_MEMLOCK), (soft, hard))
        else:
            self.assertEqual(self.limits(resource.RLIMIT_MEMLOCK),
                             (INFINITY, INFINITY))

    def test_files_are_limited_to_one_more_than_asked(self):
        vir.process_set_max_files(self.pid, 100)
        self.assertEqual(self.limits(resource.RLIMIT_NOFILE), (101, 101))

    def test_processes_are_limited(self):
        vir.process_set_max_processes(self.pid, 77)
        self.assertEqual(self.limits(resource.RLIMIT_NPROC), (77, 77))

    def test_core_size_is_limited(self):
        vir.process_set_max_core_size(self.pid, 12345)
        self.assertEqual(self.limits(resource.RLIMIT_CORE), (12345, 12345))

    def test_a_hard_limit_is_not_raised_without_the_privilege(self):
        vir.process_set_max_core_size(self.pid, 10)
        try:
            vir.process_set_max_core_size(self.pid, 11)
        except vir.Error as error:
            self.assertEqual(error.errno, errno.EPERM)
            self.assertEqual(error.code, vir.ERR_FAILED)
            self.assertEqual(error.operation, vir.process_set_max_core_size.id)
            self.assertEqual(self.limits(resource.RLIMIT_CORE), (10, 10))
        else:
            self.assertEqual(self.limits(resource.RLIMIT_CORE), (11, 11))


class Scheduling(TestCase):
    def test_policies_are_libvirts_numbers(self):
        for policy, kernels in ((vir.SCHED_BATCH, os.SCHED_BATCH),
                                (vir.SCHED_OTHER, os.SCHED_OTHER),
                                (vir.SCHED_IDLE, os.SCHED_IDLE)):
            with self.subTest(policy=policy):
                vir.process_set_scheduler(self.pid, self.pid, policy, 0)
                self.assertEqual(os.sched_getscheduler(self.pid), kernels)

    def test_policy_none_leaves_it_as_it_is(self):
        vir.process_set_scheduler(self.pid, self.pid, vir.SCHED_BATCH, 0)
        vir.process_set_scheduler(self.pid, self.pid, vir.SCHED_NONE, 0)
        self.assertEqual(os.sched_getscheduler(self.pid), os.SCHED_BATCH)

    def test_real_time_has_a_priority(self):
        try:
            vir.process_set_scheduler(self.pid, self.pid, vir.SCHED_FIFO, 7)
        except vir.Error as error:
            if error.errno == errno.EPERM:
                self.skipTest("real-time scheduling is not permitted here")
            raise
        self.assertEqual(os.sched_getscheduler(self.pid), os.SCHED_FIFO)
        self.assertEqual(os.sched_getparam(self.pid).sched_priority, 7)

    def test_affinity_is_set(self):
        cpu = max(os.sched_getaffinity(self.pid))
        vir.process_set_affinity(self.pid, self.pid, *vir.cpumap(cpu))
        self.assertEqual(os.sched_getaffinity(self.pid), {cpu})

    def test_a_thread_is_scheduled_and_its_process_is_not(self):
        end = threading.Event()
        thread = threading.Thread(target=end.wait)
        thread.start()
        try:
            before = os.sched_getscheduler(0)
            tid = thread.native_id
            vir.process_set_scheduler(os.getpid(), tid, vir.SCHED_BATCH, 0)
            self.assertEqual(os.sched_getscheduler(tid), os.SCHED_BATCH)
            self.assertEqual(os.sched_getscheduler(0), before)
        finally:
            end.set()
            thread.join()


class Cgroups(TestCase):
    def add(self, group, *tids, results=None):
        return vir.cgroup_add_threads(
            self.pid, group, vir.THREAD_EMULATOR, (c_int * len(tids))(*tids),
            None, len(tids), None, 0, results)

    def make_group(self, controller):
        """A new cgroup below that mount, removed when the test ends."""
        mount = pathlib.Path("/sys/fs/cgroup") / controller
        if not (mount / "cgroup.procs").exists():
            self.skipTest(f"no cgroups are mounted at {mount}")
        try:
            group = tempfile.mkdtemp(prefix="libvirt-internal-", dir=mount)
        except OSError as error:
            self.skipTest(f"cannot make a cgroup: {error}")
        self.addCleanup(self.remove_group, group)
        # Before the group is removed: it must be empty.
        self.addCleanup(self.process.wait)
        self.addCleanup(self.process.kill)
        return group

    def remove_group(self, group):
        """Some kernels take a moment to forget who was in it."""
        deadline = time.monotonic() + 60
        while True:
            try:
                return os.rmdir(group)
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise
            time.sleep(0.01)

    def assertIn_group(self, group):
        path = f"/{os.path.basename(group)}\n"
        cgroups = pathlib.Path(f"/proc/{self.pid}/cgroup").read_text()
        self.assertTrue(any(line.endswith(path)
                            for line in cgroups.splitlines(keepends=True)),
                        f"{group} is not in:\n{cgroups}")

    def check_move(self, controller):
        group = self.make_group(controller)
        results = (c_int * 1)(-1)
        self.assertEqual(self.add(group.encode(), self.pid, results=results), 0)
        self.assertEqual(results[0], 0)
        self.assertIn_group(group)

    def test_a_thread_is_moved_in_v1(self):
        self.check_move("cpu")

    def test_a_process_is_moved_in_v2(self):
        unified = os.path.exists("/sys/fs/cgroup/cgroup.procs")
        self.check_move("." if unified else "unified")

    def test_no_group_is_a_success_with_nothing_done(self):
        before = pathlib.Path(f"/proc/{self.pid}/cgroup").read_text()
        self.assertEqual(self.add(None, self.pid), 0)
        after = pathlib.Path(f"/proc/{self.pid}/cgroup").read_text()
        self.assertEqual(after, before)


class NoDirect(TestCase):
    """Every operation with NO_DIRECT and no handler does nothing."""

    def arguments(self):
        return {
            vir.process_set_max_mem_lock: (self.pid, 4096),
            vir.process_set_max_processes: (self.pid, 7),
            vir.process_set_max_files: (self.pid, 7),
            vir.process_set_max_core_size: (self.pid, 7),
            vir.process_set_scheduler: (self.pid, self.pid, vir.SCHED_BATCH, 0),
            vir.process_set_affinity: (self.pid, self.pid, *vir.cpumap(0)),
            vir.cgroup_add_threads: (
                self.pid, None, vir.THREAD_VCPU, (c_int * 1)(self.pid),
                (c_uint * 1)(0), 1, *vir.cpumap(0), None),
        }

    def state(self):
        return ([self.limits(which) for which in
                 (resource.RLIMIT_MEMLOCK, resource.RLIMIT_NPROC,
                  resource.RLIMIT_NOFILE, resource.RLIMIT_CORE)],
                os.sched_getscheduler(self.pid),
                os.sched_getaffinity(self.pid))

    def test_nobody_handles_it_and_nothing_is_done(self):
        before = self.state()
        for operation, arguments in self.arguments().items():
            for conn in (None, CONN):
                with self.subTest(operation=operation.id, conn=conn):
                    answer = operation(*arguments, conn=conn,
                                       flags=vir.NO_DIRECT)
                    self.assertEqual(answer, vir.NOT_HANDLED)
                    self.assertIsNone(vir.last_error())
        self.assertEqual(self.state(), before)

    def test_it_has_a_line_for_every_operation(self):
        self.assertEqual(list(self.arguments()), OPERATIONS)


class SecureErase(TestCase):
    def test_memory_is_overwritten_with_zeros(self):
        buffer = ctypes.create_string_buffer(b"secret", 8)
        vir.secure_erase(buffer, 3)
        self.assertEqual(buffer.raw, b"\0\0\0ret\0\0")

    def test_a_string_is_overwritten_up_to_its_end(self):
        buffer = ctypes.create_string_buffer(b"abc\0def")
        vir.secure_erase_string(buffer)
        self.assertEqual(buffer.raw, b"\0\0\0\0def\0")

    def test_null_is_left_alone(self):
        vir.secure_erase(None, 8)
        vir.secure_erase_string(None)
