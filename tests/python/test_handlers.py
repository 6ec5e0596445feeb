# SPDX-License-Identifier: LGPL-2.1-or-later
"""Handlers written in Python."""

import contextlib
import errno
import io
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from ctypes import c_int, c_uint

import libvirt_internal as vir
from support import CONN, OTHER_CONN, TestCase

files = vir.process_set_max_files
core_size = vir.process_set_max_core_size


def set_files(pid, number):
    """Does the operation."""
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (number, number))
    return vir.HANDLED


def pass_on(*_):
    return vir.NOT_HANDLED


class Answers(TestCase):
    def test_a_handler_does_it(self):
        files.set(set_files)
        self.assertEqual(files(self.pid, 100), 0)
        # The direct way would have set 101.
        self.assertEqual(self.limits(resource.RLIMIT_NOFILE), (100, 100))

    def test_not_handled_falls_through_to_the_kernel(self):
        files.set(pass_on)
        self.assertEqual(files(self.pid, 100), 0)
        self.assertEqual(self.limits(resource.RLIMIT_NOFILE), (101, 101))

    def test_not_handled_and_no_direct_is_not_handled(self):
        files.set(pass_on)
        before = self.limits(resource.RLIMIT_NOFILE)
        self.assertEqual(files(self.pid, 100, flags=vir.NO_DIRECT),
                         vir.NOT_HANDLED)
        self.assertEqual(self.limits(resource.RLIMIT_NOFILE), before)

    def test_an_errno_is_passed_on_and_nothing_falls_through(self):
        before = self.limits(resource.RLIMIT_NOFILE)
        for errnum in (errno.EPERM, errno.ENOMEM, errno.EXDEV):
            with self.subTest(errnum=errnum):
                files.set(lambda *_: -errnum)
                self.assertFails(vir.ERR_FAILED, errnum,
                                 f"the handler could not limit number of open "
                                 f"files of process {self.pid}", files,
                                 self.pid, 100)
        self.assertEqual(self.limits(resource.RLIMIT_NOFILE), before)

    def test_any_other_answer_is_an_error(self):
        for answer in (2, 4711, -4096, -2 ** 31):
            with self.subTest(answer=answer):
                files.set(lambda *_: answer)
                self.assertFails(vir.ERR_FAILED, errno.EPROTO,
                                 f"answered {answer},", files, self.pid, 100)

    def test_a_handler_that_lies_is_found_out(self):
        files.set(lambda *_: vir.HANDLED)
        soft, hard = self.limits(resource.RLIMIT_NOFILE)
        self.assertFails(vir.ERR_READ_BACK, errno.EREMOTEIO,
                         f"the kernel says {soft} (hard {hard})", files,
                         self.pid, hard + 1)

    def test_a_handler_that_grants_less_is_found_out(self):
        files.set(lambda pid, number: set_files(pid, number - 1))
        self.assertFails(vir.ERR_READ_BACK, errno.EREMOTEIO,
                         "the kernel says 99 (hard 99)", files, self.pid, 100)

    def test_a_handler_that_grants_more_is_right(self):
        files.set(lambda pid, number: set_files(pid, number + 1))
        self.assertEqual(files(self.pid, 100), 0)

    def test_a_handler_that_raises_has_failed(self):
        def handler(pid, number):
            raise ZeroDivisionError

        core_size.set(handler)
        before = self.limits(resource.RLIMIT_CORE)
        printed = io.StringIO()
        with contextlib.redirect_stderr(printed):
            self.assertFails(vir.ERR_FAILED, errno.EIO, "the handler could not",
                             core_size, self.pid, 12345)
        self.assertIn("ZeroDivisionError", printed.getvalue())
        self.assertEqual(self.limits(resource.RLIMIT_CORE), before)

    def test_a_process_that_dies_in_the_handler_is_no_process(self):
        def handler(pid, number):
            os.kill(pid, signal.SIGKILL)
            self.process.wait()
            return vir.HANDLED

        files.set(handler)
        self.assertFails(vir.ERR_NO_PROCESS, errno.ESRCH, "went away meanwhile",
                         files, self.pid, 100)


class Arguments(TestCase):
    def setUp(self):
        super().setUp()
        self.seen = []

    def record(self, *arguments):
        self.seen.append(arguments)
        return vir.NOT_HANDLED

    def assertSeen(self, operation, *arguments, flags=vir.NO_DIRECT):
        operation.set(self.record)
        self.assertEqual(operation(*arguments, flags=flags), vir.NOT_HANDLED)
        self.assertEqual(self.seen, [arguments])

    def test_numbers_arrive_as_they_were_given(self):
        self.assertSeen(vir.process_set_max_mem_lock, self.pid, 2 ** 64 - 1)

    def test_files_arrive_without_the_one_more(self):
        self.assertSeen(files, self.pid, 2 ** 32 - 1)

    def test_a_policy_arrives_as_libvirts_number(self):
        self.assertSeen(vir.process_set_scheduler, self.pid, self.pid,
                        vir.SCHED_RR, 99)

    def test_a_map_of_cpus_arrives_with_its_length(self):
        def handler(pid, tid, cpumap, length):
            return self.record(pid, tid, cpumap[:length])

        vir.process_set_affinity.set(handler)
        vir.process_set_affinity(self.pid, self.pid, *vir.cpumap(0, 9),
                                 flags=vir.NO_DIRECT)
        self.assertEqual(self.seen, [(self.pid, self.pid, [1, 2])])

    def test_threads_arrive_and_their_results_return(self):
        def handler(pid, group, role, tids, ids, ntids, cpumap, length,
                    results):
            self.seen.append((pid, group, role, tids[:ntids], ids[:ntids],
                              cpumap[:length], results[:ntids]))
            results[0] = -errno.EXDEV
            return vir.HANDLED

        vir.cgroup_add_threads.set(handler)
        results = (c_int * 1)(4711)
        error = self.assertFails(
            vir.ERR_FAILED, errno.EXDEV, f"thread {self.pid} was not",
            vir.cgroup_add_threads, self.pid, None, vir.THREAD_IOTHREAD,
            (c_int * 1)(self.pid), (c_uint * 1)(3), 1, *vir.cpumap(2), results)
        self.assertIn("IOThread", error.message)
        self.assertEqual(self.seen, [(self.pid, None, vir.THREAD_IOTHREAD,
                                      [self.pid], [3], [4], [0])])
        self.assertEqual(results[0], -errno.EXDEV)


class Connections(TestCase):
    """Who is asked, in which order."""

    def setUp(self):
        super().setUp()
        self.asked = []

    def named(self, name, answer=vir.NOT_HANDLED):
        def handler(*_):
            self.asked.append(name)
            return answer
        return handler

    def assertAsked(self, expected, conn):
        self.asked.clear()
        files(self.pid, 100, conn=conn, flags=vir.NO_DIRECT)
        self.assertEqual(self.asked, expected)

    def test_the_connections_handler_is_asked_before_that_for_all(self):
        files.set(self.named("all"))
        files.set(self.named("conn"), CONN)
        self.assertAsked(["conn", "all"], CONN)
        self.assertAsked(["all"], OTHER_CONN)
        self.assertAsked(["all"], None)

    def test_one_that_handles_ends_the_chain(self):
        files.set(self.named("all"))
        files.set(self.named("conn", vir.HANDLED), CONN)
        self.asked.clear()
        files(self.pid, 1, conn=CONN)
        self.assertEqual(self.asked, ["conn"])

    def test_a_handler_is_of_one_operation_only(self):
        files.set(self.named("files"), CONN)
        core_size(self.pid, 0, conn=CONN)
        self.assertEqual(self.asked, [])

    def test_a_closed_connection_has_no_handlers(self):
        freed = []
        for operation in (files, core_size):
            operation.set(self.named("conn"), CONN,
                          freed=lambda: freed.append(1))
        files.set(self.named("other"), OTHER_CONN)
        files.set(self.named("all"))
        vir.connection_closed(CONN)
        self.assertEqual(freed, [1, 1])
        self.assertAsked(["all"], CONN)
        self.assertAsked(["other", "all"], OTHER_CONN)

    def test_closing_a_connection_without_handlers_is_no_error(self):
        vir.connection_closed(OTHER_CONN)


class Freed(TestCase):
    """The free callback is called once, when the handler is gone."""

    def setUp(self):
        super().setUp()
        self.freed = []

    def set(self, name, handler=pass_on, conn=CONN):
        files.set(handler, conn, freed=lambda: self.freed.append(name))

    def test_when_replaced_and_when_unset(self):
        self.set("first")
        self.assertEqual(self.freed, [])
        self.set("second")
        self.assertEqual(self.freed, ["first"])
        files.unset(CONN)
        self.assertEqual(self.freed, ["first", "second"])
        files.unset(CONN)
        self.assertEqual(self.freed, ["first", "second"])

    def test_an_unset_from_inside_frees_it_when_it_is_left(self):
        def handler(*_):
            files.unset(CONN)
            self.freed.append("still inside")
            return vir.NOT_HANDLED

        self.set("handler", handler)
        files(self.pid, 100, conn=CONN)
        self.assertEqual(self.freed, ["still inside", "handler"])

    def test_a_handler_may_replace_itself(self):
        def handler(*_):
            self.set("second")
            self.freed.append("still inside")
            return vir.NOT_HANDLED

        self.set("first", handler)
        files(self.pid, 100, conn=CONN)
        self.assertEqual(self.freed, ["still inside", "first"])

    def test_a_free_callback_may_set_another_handler(self):
        files.set(pass_on, CONN, freed=lambda: files.set(set_files, CONN))
        files.unset(CONN)
        files(self.pid, 100, conn=CONN)
        self.assertEqual(self.limits(resource.RLIMIT_NOFILE), (100, 100))

    def test_an_unset_waits_for_who_is_inside(self):
        inside, leave = threading.Event(), threading.Event()

        def handler(*_):
            inside.set()
            leave.wait()
            self.freed.append("left")
            return vir.NOT_HANDLED

        def unset():
            files.unset(CONN)
            self.freed.append("unset returned")

        self.set("handler", handler)
        threads = [threading.Thread(target=files, args=(self.pid, 100),
                                    kwargs={"conn": CONN})]
        threads[0].start()
        inside.wait()
        threads.append(threading.Thread(target=unset))
        threads[1].start()
        leave.set()
        for thread in threads:
            thread.join()
        self.assertEqual(self.freed, ["left", "handler", "unset returned"])


class Reentrance(TestCase):
    def test_a_call_from_inside_skips_the_handler(self):
        calls = []

        def handler(pid, number):
            calls.append(number)
            files(pid, number + 10)
            return vir.HANDLED

        files.set(handler)
        self.assertEqual(files(self.pid, 100), 0)
        self.assertEqual(calls, [100])
        self.assertEqual(self.limits(resource.RLIMIT_NOFILE), (111, 111))

    def test_the_handler_of_another_key_is_asked(self):
        calls = []

        def of_connection(pid, number):
            calls.append("connection")
            return files(pid, number)

        def of_all(pid, number):
            calls.append("all")
            return set_files(pid, number)

        files.set(of_connection, CONN)
        files.set(of_all)
        files(self.pid, 100, conn=CONN)
        self.assertEqual(calls, ["connection", "all"])
        self.assertEqual(self.limits(resource.RLIMIT_NOFILE), (100, 100))

    def test_a_handler_may_call_another_operation(self):
        def handler(pid, number):
            core_size(pid, number)
            return set_files(pid, number)

        files.set(handler)
        files(self.pid, 100)
        self.assertEqual(self.limits(resource.RLIMIT_CORE), (100, 100))


class Threads(TestCase):
    def run_in_threads(self, *bodies):
        """Runs each body in a thread; what they raise fails the test."""
        failures = []

        def run(body):
            try:
                body()
            except BaseException as failure:
                failures.append(failure)

        threads = [threading.Thread(target=run, args=(body,)) for body in bodies]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(failures, [])

    def test_a_handler_runs_on_the_calling_thread(self):
        threads = set()

        def handler(pid, number):
            threads.add(threading.get_native_id())
            return vir.HANDLED

        callers = []

        def call():
            callers.append(threading.get_native_id())
            for _ in range(50):
                files(self.pid, 1)

        files.set(handler)
        self.run_in_threads(*[call] * 4)
        self.assertEqual(threads, set(callers))

    def test_handlers_come_and_go_while_threads_call(self):
        rounds, changers = 200, 2
        changed, ended, met = [], threading.Event(), threading.Event()
        alive, freed, answers = set(), [], []

        def call():
            try:
                while len(changed) < changers:
                    answers.append(files(self.pid, 1, conn=CONN,
                                         flags=vir.NO_DIRECT))
            finally:
                ended.set()

        def set_one(name):
            def handler(pid, number):
                met.set()
                return vir.HANDLED if name in alive else -errno.EFAULT

            def gone():
                alive.remove(name)
                freed.append(name)

            alive.add(name)
            files.set(handler, CONN, freed=gone)

        def change():
            try:
                for number in range(rounds):
                    set_one((threading.get_native_id(), number))
                    # Nobody unsets one before one was met.
                    met.wait(600)
                    calls = len(answers)
                    while len(answers) < calls + 2 and not ended.is_set():
                        time.sleep(0)
                    if number % 2:
                        files.unset(CONN)
            finally:
                changed.append(1)

        self.run_in_threads(call, call, *[change] * changers)
        files.unset(CONN)
        self.assertEqual(alive, set())
        self.assertEqual(len(freed), rounds * changers)
        self.assertIn(vir.HANDLED, answers)


class Children(TestCase):
    def test_a_child_is_told_that_a_handler_is_not_fork_safe(self):
        files.set(set_files)
        self.run_in_child(lambda: self.assertFails(
            vir.ERR_FORKED, errno.ECHILD, "this is a forked child", files,
            os.getpid(), 100))

    def test_a_child_cannot_set(self):
        self.run_in_child(lambda: self.assertFails(
            vir.ERR_FORKED, errno.ECHILD, "daemonize before", files.set,
            set_files))

    def test_a_child_acts_directly(self):
        def child():
            self.assertEqual(core_size(os.getpid(), 4096), 0)
            self.assertEqual(resource.getrlimit(resource.RLIMIT_CORE),
                             (4096, 4096))

        files.set(set_files)
        self.run_in_child(child)

    def test_a_child_runs_a_fork_safe_handler(self):
        def child():
            self.assertEqual(files(os.getpid(), 100), 0)
            self.assertEqual(resource.getrlimit(resource.RLIMIT_NOFILE),
                             (100, 100))

        files.set(set_files, flags=vir.HANDLER_FORK_SAFE)
        self.run_in_child(child)


class Exit(TestCase):
    """The interpreter ends while handlers are set."""

    def assertExits(self, program):
        program = textwrap.dedent(program)
        ended = subprocess.run([sys.executable, "-c", program], text=True,
                               capture_output=True, timeout=600,
                               cwd=os.path.dirname(__file__))
        self.assertEqual((ended.returncode, ended.stdout, ended.stderr),
                         (0, "the end\n", ""))

    def test_with_a_handler_that_was_used(self):
        self.assertExits("""
            import os
            import libvirt_internal as vir
            vir.process_set_max_files.set(lambda *_: vir.HANDLED)
            vir.process_set_max_files(os.getpid(), 1)
            print("the end")
        """)

    def test_with_a_thread_inside_a_handler(self):
        self.assertExits("""
            import os, threading
            import libvirt_internal as vir
            inside = threading.Event()

            def handler(pid, number):
                inside.set()
                threading.Event().wait()

            vir.process_set_max_files.set(handler)
            threading.Thread(target=vir.process_set_max_files,
                             args=(os.getpid(), 1), daemon=True).start()
            inside.wait()
            print("the end")
        """)
