# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the tests have in common: a delegate that runs, peers in containers,
processes for them to act on, and cgroups."""

import contextlib
import ctypes
import encodings.idna  # noqa: F401: a peer may not be able to read it later
import errno
import json
import linecache  # noqa: F401
import os
import pathlib
import re
import resource
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import traceback

import wire

SOURCE = pathlib.Path(__file__).resolve().parent
ROOT = SOURCE.parents[1]

# Everything waits this long for what is sure to happen, in seconds: it decides
# about no test that passes, however slow and busy the machine is.
DEADLINE = 300

# How long calls wait for the delegate.
TIMEOUT_MS = 120000

MACHINE_UID = 107

libc = ctypes.CDLL(None, use_errno=True)

CLONE_NEWNS, CLONE_NEWCGROUP = 0x20000, 0x2000000
CLONE_NEWUSER, CLONE_NEWPID = 0x10000000, 0x20000000
MS_RDONLY, MS_REC, MS_PRIVATE, MS_SLAVE = 1, 1 << 14, 1 << 18, 1 << 19
PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 24, 38
CAP_LAST = 63
SO_PEERPIDFD = 77


class Skipped(Exception):
    """Why a test cannot run here."""


def check(result, what):
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def unshare(flags):
    check(libc.unshare(flags), "unshare")


def mount(source, target, kind, flags, options=None):
    encode = lambda text: None if text is None else os.fsencode(text)
    check(libc.mount(encode(source), encode(target), encode(kind),
                     ctypes.c_ulong(flags), encode(options)), "mount")


def eventually(condition, what, deadline=DEADLINE):
    """Waits until condition() is true, and returns what it returned."""
    end = time.monotonic() + deadline
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline} s: {what}")
        time.sleep(0.01)


def expect(found, expected, what):
    if found != expected:
        raise AssertionError(f"{what}: expected {expected!r}, found {found!r}")


# ---------------------------------------------------------------- the bed

class Bed:
    """The directory, programs and cgroups of one run of the suite."""

    def __init__(self):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="vi-delegate."))
        self.directory.chmod(0o755)
        # Nobody else's, also not of a run that was killed.
        self.name = self.directory.name
        self.cgroups = []
        self.v2 = self._mount_point("cgroup2")
        self.v1 = self._mount_point("cgroup", "pids")
        self._last = 0

    @staticmethod
    def _mount_point(kind, option=None):
        for line in open("/proc/self/mountinfo"):
            place, _, rest = line.partition(" - ")
            fields, rest = place.split(), rest.split()
            if rest[0] == kind and fields[3] == "/" and (
                    option is None or option in rest[2].split(",")):
                return pathlib.Path(fields[4])
        return None

    def build(self):
        """Puts the programs where every user can read them."""
        self.command = pathlib.Path(os.environ.get(
            "VIRT_INTERNAL", ROOT / "target/debug/virt-internal"))
        if "VIRT_INTERNAL" not in os.environ:
            subprocess.run(["cargo", "build", "--quiet", "--bin",
                            "virt-internal"], cwd=ROOT, check=True)
        stage = subprocess.run([ROOT / "tests/stage"], check=True,
                               capture_output=True, text=True).stdout.strip()
        library = self.directory / "libvirt-internal.so.0"
        shutil.copy(pathlib.Path(stage) / "lib/libvirt-internal.so.0", library)
        os.environ["LIBVIRT_INTERNAL_SO"] = str(library)
        for name in ("qemu", "reuse"):
            subprocess.run(
                ["cc", "-O1", "-Wall", "-Werror", "-pthread", "-o",
                 self.directory / name, SOURCE / f"{name}.c"], check=True)
        self.qemu = self.directory / "qemu"
        self.reuse = self.directory / "reuse"

    def path(self, name):
        """A path that nothing else has."""
        self._last += 1
        return self.directory / f"{self._last}-{name}"

    def cgroup(self, path, version=2):
        """Makes a cgroup, and those above it, below the suite's own. Returns
        its directory."""
        top = self.v2 if version == 2 else self.v1
        directory = top / self.name
        for part in ["", *path.strip("/").split("/")]:
            directory = directory / part
            if not directory.is_dir():
                directory.mkdir()
                self.cgroups.append(directory)
        return directory

    def cpuset(self, cpus):
        """Makes a cgroup whose threads have these CPUs only, in whichever
        version has the controller; None if neither has."""
        top = self._mount_point("cgroup", "cpuset")
        if top is not None:
            group = top / self.name
            group.mkdir()
            self.cgroups.append(group)
            (group / "cpuset.mems").write_text(
                (top / "cpuset.mems").read_text())
        elif "cpuset" in (self.v2 / "cgroup.controllers").read_text().split():
            group = self.cgroup("cpuset")
            for parent in (self.v2, group.parent):
                (parent / "cgroup.subtree_control").write_text("+cpuset")
        else:
            return None
        (group / "cpuset.cpus").write_text(cpus)
        return group

    def cgroup_path(self, path):
        """What the kernel calls it."""
        return f"/{self.name}/{path.strip('/')}"

    def remove(self):
        for directory in reversed(self.cgroups):
            with contextlib.suppress(FileNotFoundError):
                eventually(lambda: remove_directory(directory),
                           f"cgroup {directory} is empty")
        shutil.rmtree(self.directory)


def remove_directory(directory):
    try:
        directory.rmdir()
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


bed = None


# ------------------------------------------------------------ the delegate

def children_of(pid):
    try:
        return [int(child) for child in pathlib.Path(
            f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def complaints(errors):
    """What a delegate wrote on standard error besides how it starts: where it
    listens, and what it will not be able to do."""
    greeting = re.compile(r"virt-internal: (listening on |without CAP_|"
                          r"to have CAP_)")
    return "".join(line for line in errors.splitlines(keepends=True)
                   if not greeting.match(line))


class Delegate:
    """`virt-internal delegate`, running."""

    def __init__(self, policy, labels=(None,), wrapper=(), environment=None,
                 nofile=None):
        self.directory = bed.path("delegate")
        self.directory.mkdir()
        self.audit = self.directory / "audit"
        self.policy = self.directory / "policy.toml"
        self.policy.write_text(policy)
        self.sockets = {label: self.address(label) for label in labels}
        listen = []
        for label, path in self.sockets.items():
            suffix = f"={self.label(label)}" if label else ""
            listen += ["--listen", f"unix:{path}{suffix}"]
        self.errors = open(self.directory / "errors", "w+")

        def prepare():
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if nofile:
                resource.setrlimit(resource.RLIMIT_NOFILE, nofile)
        self.process = subprocess.Popen(
            [*wrapper, bed.command, "delegate", *listen, "--policy",
             self.policy, "--audit", self.audit],
            stdin=subprocess.DEVNULL, stderr=self.errors, preexec_fn=prepare,
            env={**os.environ, **(environment or {})})
        self.is_wrapped = bool(wrapper)
        try:
            eventually(self._is_there, "the delegate listens")
        except BaseException:
            self.stop()
            raise

    def address(self, label):
        return str(self.directory / (label or "socket"))

    def label(self, name):
        return name

    @property
    def socket(self):
        return next(iter(self.sockets.values()))

    def _is_there(self):
        if self.process.poll() is not None:
            raise AssertionError(f"the delegate ended: {self.said()}")
        for path in self.sockets.values():
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
                try:
                    probe.connect(path)
                except (FileNotFoundError, ConnectionRefusedError):
                    return False
        return True

    @property
    def pid(self):
        """Its own, also below strace."""
        if self.is_wrapped:
            return children_of(self.process.pid)[0]
        return self.process.pid

    def said(self):
        self.errors.seek(0)
        return complaints(self.errors.read())

    def count(self):
        """How many descriptors it has, and threads: one, and those of
        connections."""
        threads = 1
        for task in pathlib.Path(f"/proc/{self.pid}/task").iterdir():
            try:
                threads += (task / "comm").read_text() == "connection\n"
            except (FileNotFoundError, ProcessLookupError):
                pass
        return len(os.listdir(f"/proc/{self.pid}/fd")), threads

    def resident(self):
        """Bytes."""
        pages = pathlib.Path(f"/proc/{self.pid}/statm").read_text().split()[1]
        return int(pages) * resource.getpagesize()

    def require_alive(self):
        if self.process.poll() is not None:
            raise AssertionError(f"the delegate died: {self.said()}")

    def require_flat(self, before):
        """Waits until it has no more than it had."""
        found = []

        def flat():
            self.require_alive()
            found[:] = self.count()
            return found[0] <= before[0] and found[1] <= before[1]
        try:
            eventually(flat, "descriptors and threads are as before")
        except AssertionError as error:
            raise AssertionError(
                f"{error}: {before} before, {tuple(found)} now") from None

    def lines(self):
        if not self.audit.exists():
            return []
        text = self.audit.read_text()
        whole, _, _ = text.rpartition("\n")
        return [json.loads(line) for line in whole.splitlines()]

    def mark(self):
        """How many audit lines there are."""
        return len(self.lines())

    def line(self, mark, operation=None, **fields):
        """The first line after @mark with these fields."""
        def find():
            for line in self.lines()[mark:]:
                if operation in (None, line.get("operation")) and all(
                        line.get(name) == value
                        for name, value in fields.items()):
                    return line
            return None
        return eventually(find, f"an audit line of {operation} with {fields}")

    def stop(self):
        if self.process.poll() is None:
            if self.is_wrapped:
                # strace lets go of what it traces when it is ended.
                for pid in children_of(self.process.pid):
                    os.kill(pid, signal.SIGKILL)
            else:
                self.process.terminate()
            try:
                self.process.wait(DEADLINE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise AssertionError("the delegate does not stop") from None
        self.errors.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


# ---------------------------------------------------------------- peers

class Channel:
    """One end of a conversation in JSON between a peer and its test."""

    def __init__(self, end):
        self.end = end

    def say(self, what):
        self.end.send(json.dumps(what).encode())

    def hear(self, deadline=DEADLINE):
        self.end.settimeout(deadline)
        message = self.end.recv(1 << 20)
        if not message:
            raise EOFError("the other end is gone")
        return json.loads(message)


def drop_capabilities():
    for capability in range(CAP_LAST + 1):
        if libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            break
    header = struct.pack("=II", 0x20080522, 0)
    check(libc.capset(header, bytes(24)), "capset")
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


class Peer:
    """A child that runs body(outside, *arguments) as another user, in its own
    cgroup, and with @container in its own PID, user, mount and cgroup
    namespace without any capability. What body() returns is its result.

    The user namespace is made by root, as a container runtime does: then a
    delegate of root may set limits in it even without CAP_SYS_RESOURCE, which
    some machines do not give."""

    def __init__(self, body, *arguments, uid=0, cgroup=None, v1=None,
                 container=False, root_inside=False, readonly=None):
        own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel = Channel(own)
        maps, asks = os.pipe(), os.pipe()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid:
            other.close()
            os.close(asks[1])
            os.close(maps[0])
            if os.read(asks[0], 1):
                inside = 0 if root_inside else uid
                for name in ("uid_map", "gid_map"):
                    pathlib.Path(f"/proc/{self.pid}/{name}").write_text(
                        f"{inside} {uid} 1\n")
                os.write(maps[1], b"x")
            os.close(asks[0])
            os.close(maps[1])
            return
        code = 1
        try:
            own.close()
            os.close(asks[0])
            os.close(maps[1])
            channel = Channel(other)
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            code = self._run(channel, maps[0], asks[1], body, arguments, uid,
                             cgroup, v1, container, root_inside, readonly)
        except BaseException:
            with contextlib.suppress(OSError):
                channel.say({"failed": traceback.format_exc()})
        finally:
            os._exit(code)

    @staticmethod
    def _run(channel, mapped, ask, body, arguments, uid, cgroup, v1, container,
             root_inside, readonly):
        for directory in (cgroup, v1):
            if directory is not None:
                (directory / "cgroup.procs").write_text("0")
        if container:
            unshare(CLONE_NEWNS | CLONE_NEWCGROUP)
            mount(None, "/", None, MS_REC | MS_SLAVE)
            if readonly is not None:
                version, point = readonly
                kind, options = (("cgroup2", None) if version == 2 else
                                 ("cgroup", "pids"))
                mount("none", point, kind, MS_RDONLY, options)
            unshare(CLONE_NEWUSER)
            os.write(ask, b"x")
        os.close(ask)
        if container:
            if not os.read(mapped, 1):
                raise AssertionError("the user namespace has no map")
        os.close(mapped)
        if container:
            unshare(CLONE_NEWPID | CLONE_NEWNS)
            first = os.fork()
            if first:
                _, status = os.waitpid(first, 0)
                return os.waitstatus_to_exitcode(status) & 0xff
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            mount("proc", "/proc", "proc", 0)
        code = 1
        try:
            # Before it cannot read it any more.
            load_library()
            inside = 0 if root_inside else uid
            if container or uid:
                os.setresgid(inside, inside, inside)
                os.setresuid(inside, inside, inside)
                # A change of user takes it away.
                libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
                libc.prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE
            if container and not root_inside:
                drop_capabilities()
            channel.say({"result": body(channel, *arguments)})
            code = 0
        except BaseException:
            channel.say({"failed": traceback.format_exc()})
        finally:
            os._exit(code)

    def say(self, what):
        self.channel.say(what)

    def hear(self, deadline=DEADLINE):
        """What body() says next."""
        said = self.channel.hear(deadline)
        if isinstance(said, dict) and "failed" in said:
            raise AssertionError(f"in the peer:\n{said['failed']}")
        return said

    def result(self):
        said = self.hear()
        if not isinstance(said, dict) or "result" not in said:
            raise AssertionError(f"the peer said {said!r} in place of a result")
        return said["result"]

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)

    def close(self):
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0
            self.channel.end.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def as_peer(body, *arguments, **place):
    """Runs it to its end, and returns its result."""
    with Peer(body, *arguments, **place) as peer:
        return peer.result()


class Qemu:
    """A process with threads, of whoever makes it."""

    def __init__(self, threads=0, cgroup=None, preexec=None):
        def prepare():
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if cgroup is not None:
                (pathlib.Path(cgroup) / "cgroup.procs").write_text("0")
            if preexec:
                preexec()
        self.process = subprocess.Popen(
            [bed.qemu, str(threads)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, preexec_fn=prepare)
        self.tids = [int(tid) for tid in
                     self.process.stdout.readline().split()]
        self.pid = self.process.pid
        self.pidfd = os.pidfd_open(self.pid)

    def thread_pidfd(self, index=0):
        return os.pidfd_open(self.tids[index], wire.PIDFD_THREAD)

    def close(self):
        os.close(self.pidfd)
        self.process.kill()
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


# ------------------------------------------------------- the library's calls

# The peers' library knows of no delegate but the tests'.
os.environ.pop("LIBVIRT_INTERNAL_DELEGATE", None)
vir = None
DELEGATE_OPTIONAL = 1 << 0


def load_library():
    """Only ever in a child: the library is not to be used before a fork."""
    global vir
    sys.path.insert(0, str(ROOT / "tests/python"))
    import libvirt_internal
    vir = libvirt_internal
    vir.connect = vir._function(
        "ConnectDelegate", ctypes.c_int, ctypes.c_void_p, ctypes.c_uint,
        ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint)
    return vir


def connect_delegate(path, flags=0, timeout_ms=TIMEOUT_MS):
    address = f"unix:{path}".encode()
    vir._check(vir.connect(None, 1, address, timeout_ms, flags))


def call(function, *arguments):
    """(code, errno, message) of a call of the library; (0, 0, "") when it was
    done."""
    try:
        function(*arguments)
    except vir.Error as error:
        return [error.code, error.errno, error.message]
    return [0, 0, ""]


def numbers(tids):
    return (ctypes.c_int * len(tids))(*tids)


# ----------------------------------------------------- what the kernel says

LIMITS = {
    "process-set-max-mem-lock": resource.RLIMIT_MEMLOCK,
    "process-set-max-processes": resource.RLIMIT_NPROC,
    "process-set-max-files": resource.RLIMIT_NOFILE,
    "process-set-max-core-size": resource.RLIMIT_CORE,
}

LIMIT_LINES = {
    "process-set-max-mem-lock": "Max locked memory",
    "process-set-max-processes": "Max processes",
    "process-set-max-files": "Max open files",
    "process-set-max-core-size": "Max core file size",
}


def limit(pid, operation):
    """Soft and hard, from /proc, for a machine may not let root ask."""
    name = LIMIT_LINES[operation]
    for line in open(f"/proc/{pid}/limits"):
        if line.startswith(name):
            return [-1 if word == "unlimited" else int(word)
                    for word in line[len(name):].split()[:2]]
    raise AssertionError(f"/proc/{pid}/limits has no {name}")


def status(pid, name, tid=None):
    path = f"/proc/{pid}/task/{tid or pid}/status"
    for line in open(path):
        if line.startswith(name + ":"):
            return line.split(":", 1)[1].strip()
    raise AssertionError(f"{path} has no {name}")


def schedule(tid):
    """Policy by the kernel's number, and priority."""
    return [os.sched_getscheduler(tid), os.sched_getparam(tid).sched_priority]


def cgroup_of(pid, tid=None, version=2):
    for line in open(f"/proc/{pid}/task/{tid or pid}/cgroup"):
        number, controllers, path = line.rstrip("\n").split(":", 2)
        if (version == 2 and number == "0") or (
                version == 1 and "pids" in controllers.split(",")):
            return path
    return None


def outer_threads(pid):
    """The threads of a process by our numbers, from those of its namespace."""
    return {int(status(pid, "NSpid", tid).split()[-1]): int(tid)
            for tid in os.listdir(f"/proc/{pid}/task")}


def descendants(pid):
    found = []
    for child in children_of(pid):
        found += [child, *descendants(child)]
    return found


# ---------------------------------------------------------------- the tests

TESTS = []


def test(function):
    TESTS.append(function)
    return function


def served(delegate_socket, cgroup, uid=0):
    """A peer that has nothing to do with the attack is served in time."""
    return as_peer(_served, delegate_socket, uid=uid, cgroup=cgroup)


def _served(outside, path):
    connect_delegate(path)
    with Qemu() as qemu:
        expect(call(vir.process_set_max_core_size, qemu.pid, 0), [0, 0, ""],
               "another peer's request")
        expect(limit(qemu.pid, "process-set-max-core-size"), [0, 0],
               "the limit of another peer's process")
    return True
