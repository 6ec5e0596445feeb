# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the tests have in common: a process to act on, and what is expected of
errors."""

import os
import resource
import subprocess
import unittest

import libvirt_internal as vir

# Keys, never dereferenced.
CONN, OTHER_CONN = 0x1000, 0x2000

OPERATIONS = [vir.process_set_max_mem_lock, vir.process_set_max_processes,
              vir.process_set_max_files, vir.process_set_max_core_size,
              vir.process_set_scheduler, vir.process_set_affinity,
              vir.cgroup_add_threads]


class TestCase(unittest.TestCase):
    """Each test has a process of its own, and begins and ends without
    handlers."""

    def setUp(self):
        self.process = subprocess.Popen(["sleep", "600"])
        self.pid = self.process.pid
        self.addCleanup(self._end)

    def _end(self):
        for operation in OPERATIONS:
            for conn in (None, CONN, OTHER_CONN):
                operation.unset(conn)
        self.assertEqual(vir._alive, {}, "handlers that were not freed")
        self.process.kill()
        self.process.wait()

    def limits(self, which):
        """Soft and hard limit of the process, as the kernel has them."""
        return resource.prlimit(self.pid, which)

    def assertFails(self, code, errnum, text, call, *arguments, **named):
        """The call fails with that code and errno and a message that has the
        text in it."""
        with self.assertRaises(vir.Error) as context:
            call(*arguments, **named)
        error = context.exception
        found = (error.code, os.strerror(error.errno))
        self.assertEqual(found, (code, os.strerror(errnum)), error.message)
        self.assertIn(text, error.message)
        return error

    def run_in_child(self, body):
        """Runs body() in a child of os.fork(), where it must not fail."""
        child = os.fork()
        if child == 0:
            try:
                body()
            except BaseException:
                import traceback
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        self.assertEqual(os.waitstatus_to_exitcode(status), 0,
                         "the child failed")
