# SPDX-License-Identifier: LGPL-2.1-or-later
"""Bad input: a clear error, and nothing changed."""

import errno
import os
import resource
import threading
from ctypes import c_int

import libvirt_internal as vir
from support import CONN, OPERATIONS, TestCase


class BadInput(TestCase):
    def assertInvalid(self, text, call, *arguments, **named):
        self.assertFails(vir.ERR_INVALID_ARG, errno.EINVAL, text, call,
                         *arguments, **named)

    def test_a_pid_is_1_or_more(self):
        for pid in (0, -1, -2 ** 31):
            for operation, value in (
                    (vir.process_set_max_mem_lock, (0,)),
                    (vir.process_set_max_processes, (0,)),
                    (vir.process_set_max_files, (0,)),
                    (vir.process_set_max_core_size, (0,)),
                    (vir.process_set_scheduler, (1, vir.SCHED_BATCH, 0)),
                    (vir.process_set_affinity, (1, *vir.cpumap(0)))):
                with self.subTest(pid=pid, operation=operation.id):
                    self.assertInvalid(f"pid {pid} is not", operation, pid,
                                       *value)

    def test_a_process_that_is_not_there_is_no_process(self):
        self.process.kill()
        self.process.wait()
        self.assertFails(vir.ERR_NO_PROCESS, errno.ESRCH, "process",
                         vir.process_set_max_core_size, self.pid, 1)

    def test_unknown_flags_are_refused(self):
        for flags in (1, 1 << 29, 1 << 31, vir.NO_DIRECT | 2):
            with self.subTest(flags=flags):
                self.assertInvalid("unknown flags",
                                   vir.process_set_max_core_size, self.pid, 1,
                                   flags=flags)
        self.assertNotEqual(self.limits(resource.RLIMIT_CORE), (1, 1))

    def test_unknown_policies_are_refused(self):
        for policy in (-1, 5, 0xff, 0x101):
            with self.subTest(policy=policy):
                self.assertInvalid(str(policy), vir.process_set_scheduler,
                                   self.pid, self.pid, policy, 1)

    def test_a_real_time_priority_is_1_to_99(self):
        for priority in (-1, 0, 100):
            with self.subTest(priority=priority):
                self.assertInvalid(str(priority), vir.process_set_scheduler,
                                   self.pid, self.pid, vir.SCHED_FIFO, priority)
        self.assertEqual(os.sched_getscheduler(self.pid), os.SCHED_OTHER)

    def test_a_thread_of_another_process_is_refused(self):
        self.assertInvalid("does not belong to process",
                           vir.process_set_scheduler, self.pid, os.getpid(),
                           vir.SCHED_BATCH, 0)

    def test_a_map_of_cpus_has_a_length_and_a_cpu(self):
        map_of_one, _ = vir.cpumap(0)
        for length in (0, -1, 32769, 2 ** 31 - 1):
            with self.subTest(length=length):
                self.assertInvalid(f"maplen {length} is out of range",
                                   vir.process_set_affinity, self.pid,
                                   self.pid, map_of_one, length)
        self.assertInvalid("cpumap is NULL", vir.process_set_affinity, self.pid,
                           self.pid, None, 1)
        self.assertInvalid("cpumap names no CPU", vir.process_set_affinity,
                           self.pid, self.pid, *vir.cpumap())

    def add_threads(self, group=None, role=vir.THREAD_VCPU, tids=None, ntids=1):
        tids = tids or (c_int * 1)(self.pid)
        return vir.cgroup_add_threads(self.pid, group, role, tids, None, ntids,
                                      None, 0, None)

    def test_threads_are_1_to_3000(self):
        for ntids in (0, 3001, 10 ** 9):
            with self.subTest(ntids=ntids):
                self.assertInvalid(f"ntids {ntids} is out of range",
                                   self.add_threads, ntids=ntids)

    def test_unknown_roles_are_refused(self):
        for role in (-1, 4):
            with self.subTest(role=role):
                self.assertInvalid(f"{role} is not a role", self.add_threads,
                                   role=role)

    def test_a_group_is_the_absolute_path_of_a_cgroup(self):
        for group in (b"", b"relative", b"/proc", b"/" + b"x" * 5000):
            with self.subTest(group=group[:20]):
                self.assertInvalid("", self.add_threads, group=group)

    def test_a_closed_connection_has_a_key(self):
        self.assertInvalid("conn is NULL", vir.connection_closed, None)


class LastError(TestCase):
    def test_it_is_gone_after_a_success(self):
        with self.assertRaises(vir.Error):
            vir.process_set_max_core_size(0, 0)
        self.assertEqual(vir.last_error().code, vir.ERR_INVALID_ARG)
        vir.process_set_max_core_size(self.pid, 0)
        self.assertIsNone(vir.last_error())

    def test_it_is_gone_when_reset(self):
        with self.assertRaises(vir.Error):
            vir.process_set_max_core_size(0, 0)
        vir.reset_last_error()
        self.assertIsNone(vir.last_error())

    def test_it_is_the_threads_own(self):
        with self.assertRaises(vir.Error):
            vir.process_set_max_core_size(-5, 0)
        seen = []

        def in_thread():
            seen.append(vir.last_error())
            try:
                vir.process_set_max_core_size(-6, 0)
            except vir.Error as error:
                seen.append(error.message[:6])

        thread = threading.Thread(target=in_thread)
        thread.start()
        thread.join()
        self.assertEqual(seen, [None, "pid -6"])
        self.assertIn(b"pid -5", vir.last_error().message)

    def test_it_names_the_operation(self):
        with self.assertRaises(vir.Error) as context:
            vir.process_set_affinity(0, 0, *vir.cpumap(0))
        self.assertEqual(context.exception.operation,
                         vir.process_set_affinity.id)


class Version(TestCase):
    def test_a_wrong_one_fails_at_once_and_names_both(self):
        freed = []
        for operation in OPERATIONS:
            with self.subTest(operation=operation.id):
                error = self.assertFails(
                    vir.ERR_VERSION, errno.EPROTONOSUPPORT, "version 99",
                    operation.set, lambda *_: vir.HANDLED, version=99,
                    freed=lambda: freed.append(1))
                self.assertIn("version 1", error.message)
        self.assertEqual(freed, [], "set failed, and freed was called")

    def test_the_handler_that_was_set_stays(self):
        calls = []

        def handler(pid, files):
            calls.append(files)
            return vir.NOT_HANDLED

        vir.process_set_max_files.set(handler)
        with self.assertRaises(vir.Error):
            vir.process_set_max_files.set(handler, version=2)
        vir.process_set_max_files(self.pid, 64)
        self.assertEqual(calls, [64])

    def test_unknown_flags_of_a_set_are_refused(self):
        self.assertFails(vir.ERR_INVALID_ARG, errno.EINVAL, "unknown flags 0x2",
                         vir.process_set_max_files.set, lambda *_: 0, CONN,
                         flags=2)
