# SPDX-License-Identifier: LGPL-2.1-or-later
"""The library asks a delegate: the real one, which tests/with-delegate has
started."""

import errno
import os
import pathlib
import resource
import socket
import subprocess
import tempfile
import threading
import unittest

import libvirt_internal as vir
from support import CONN, OTHER_CONN, TestCase

files = vir.process_set_max_files
ADDRESS = os.environ.get("DELEGATE_ADDRESS")


class Delegate(TestCase):
    def setUp(self):
        super().setUp()
        for conn in (None, CONN, OTHER_CONN):
            self.addCleanup(vir.disconnect_delegate, conn)


@unittest.skipUnless(ADDRESS, "the delegate's policy here is for root")
class Real(Delegate):
    def setUp(self):
        super().setUp()
        vir.connect_delegate(ADDRESS, timeout_ms=60000)

    def lines(self):
        """How many lines the delegate has written about the process."""
        audit = pathlib.Path(os.environ["DELEGATE_AUDIT"]).read_text()
        return audit.count(f'"pid":{self.pid}')

    def test_it_does_what_nobody_here_handles(self):
        self.assertEqual(files(self.pid, 100, flags=vir.NO_DIRECT), 0)
        self.assertEqual(self.limits(resource.RLIMIT_NOFILE), (101, 101))
        self.assertEqual(vir.process_set_max_core_size(
            self.pid, 4096, conn=CONN, flags=vir.NO_DIRECT), 0)
        self.assertEqual(self.limits(resource.RLIMIT_CORE), (4096, 4096))
        self.assertEqual(vir.process_set_scheduler(
            self.pid, self.pid, vir.SCHED_BATCH, 0, flags=vir.NO_DIRECT), 0)
        self.assertEqual(os.sched_getscheduler(self.pid), os.SCHED_BATCH)
        self.assertEqual(vir.process_set_affinity(
            self.pid, self.pid, *vir.cpumap(*os.sched_getaffinity(0)),
            flags=vir.NO_DIRECT), 0)
        self.assertGreaterEqual(self.lines(), 4)

    def test_a_handler_comes_first(self):
        files.set(lambda *_: -errno.EXDEV)
        self.assertFails(vir.ERR_FAILED, errno.EXDEV, "the handler could not",
                         files, self.pid, 100)
        files.set(lambda *_: vir.NOT_HANDLED)
        self.assertEqual(files(self.pid, 100, flags=vir.NO_DIRECT), 0)

    def test_what_the_policy_does_not_allow_is_refused_and_not_done(self):
        before = self.limits(resource.RLIMIT_NOFILE)
        self.assertFails(vir.ERR_REFUSED, errno.EPERM,
                         "the delegate refused to limit number of open "
                         f"files of process {self.pid}", files, self.pid, 2000)
        self.assertEqual(self.limits(resource.RLIMIT_NOFILE), before)

    def test_threads_ask_at_once(self):
        failures = []

        def call(process):
            try:
                for number in range(120, 100, -1):
                    files(process.pid, number, flags=vir.NO_DIRECT)
                    found = resource.prlimit(process.pid,
                                             resource.RLIMIT_NOFILE)
                    self.assertEqual(found, (number + 1, number + 1))
                    self.assertFails(vir.ERR_REFUSED, errno.EPERM, "refused",
                                     files, process.pid, 2000)
            except BaseException as failure:
                failures.append(failure)

        processes = [subprocess.Popen(["sleep", "600"]) for _ in range(8)]
        threads = [threading.Thread(target=call, args=[process])
                   for process in processes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for process in processes:
            process.kill()
            process.wait()
        self.assertEqual(failures, [])

    def test_a_child_asks_with_all_descriptors_closed(self):
        def body():
            os.closerange(3, 4096)
            self.assertEqual(files(os.getpid(), 100, flags=vir.NO_DIRECT), 0)
            self.assertFails(vir.ERR_FORKED, errno.ECHILD, "child",
                             vir.connect_delegate, ADDRESS)

        self.run_in_child(body)

    def test_a_request_that_there_was_not_is_not_known(self):
        self.assertFails(vir.ERR_UNKNOWN_OUTCOME, errno.EINPROGRESS,
                         "it does not know of that request",
                         vir.ask_delegate, 1)


class Away(Delegate):
    def test_it_is_an_error_and_nothing_is_done(self):
        vir.connect_delegate("unix:/nowhere", conn=CONN)
        before = self.limits(resource.RLIMIT_NOFILE)
        self.assertFails(vir.ERR_UNREACHABLE, errno.ECONNREFUSED,
                         "the delegate at unix:/nowhere cannot be reached: No "
                         "such file or directory", files, self.pid, 100,
                         conn=CONN)
        self.assertEqual(self.limits(resource.RLIMIT_NOFILE), before)
        self.assertEqual(files(self.pid, 100, conn=OTHER_CONN), 0)

    def test_an_optional_one_is_passed_over(self):
        vir.connect_delegate("unix:/nowhere", flags=vir.DELEGATE_OPTIONAL)
        self.assertEqual(files(self.pid, 100, flags=vir.NO_DIRECT),
                         vir.NOT_HANDLED)
        self.assertEqual(files(self.pid, 100), 0)
        self.assertEqual(self.limits(resource.RLIMIT_NOFILE), (101, 101))

    def test_one_that_says_nothing_is_a_timeout(self):
        with tempfile.TemporaryDirectory() as directory, \
                socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as silent:
            silent.bind(f"{directory}/socket")
            silent.listen(10)
            vir.connect_delegate(f"unix:{directory}/socket", timeout_ms=100)
            self.assertFails(vir.ERR_TIMEOUT, errno.ETIMEDOUT,
                             "was not ready within 100 ms; nothing was sent",
                             files, self.pid, 100)
        self.assertEqual(vir.last_request(), 0)

    def test_bad_input_is_an_error(self):
        self.assertFails(vir.ERR_VERSION, errno.EPROTONOSUPPORT, "version 7",
                         vir.connect_delegate, "unix:/x", version=7)
        self.assertFails(vir.ERR_INVALID_ARG, errno.EINVAL,
                         "is neither unix:/path nor fd:NUMBER",
                         vir.connect_delegate, "tcp:x")
        self.assertFails(vir.ERR_INVALID_ARG, errno.EINVAL, "request is 0",
                         vir.ask_delegate, 0)
