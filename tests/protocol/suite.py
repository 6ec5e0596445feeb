# SPDX-License-Identifier: LGPL-2.1-or-later
"""The delegate and the client of this project, against the ones in peer.py:
every vector, and other versions. Prints PASS or FAIL for each, and their
number."""

import collections
import ctypes
import errno
import json
import os
import pathlib
import random
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

import peer

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT / "tests/python"))
import libvirt_internal as vir  # noqa: E402

VECTORS = json.loads((HERE / "vectors.json").read_text())
if sys.byteorder != "little":
    sys.exit("the vectors are for little-endian machines")
REQUEST = 0x1122334455667788
PIDFD_THREAD = os.O_EXCL
# How long anything may take that must happen at all, and a call of the client:
# they decide about no test that passes.
PATIENCE = 300
PATIENCE_MS = 1000 * PATIENCE

_connect = vir._function("ConnectDelegate", ctypes.c_int, ctypes.c_void_p,
                         ctypes.c_uint, ctypes.c_char_p, ctypes.c_uint,
                         ctypes.c_uint)
_disconnect = vir._function("DisconnectDelegate", ctypes.c_int,
                            ctypes.c_void_p)
_ask = vir._function("AskDelegate", ctypes.c_int, ctypes.c_void_p,
                     ctypes.c_ulonglong, ctypes.c_uint)
_last_request = vir._function("GetLastRequest", ctypes.c_ulonglong)

passed = failed = skipped = 0


class Skip(Exception):
    """This machine does not let it be tested."""


def check(name, body, *arguments):
    global passed, failed, skipped
    try:
        body(*arguments)
        passed += 1
        print(f"PASS {name}")
    except Skip as why:
        skipped += 1
        print(f"SKIP {name}: {why}")
    except Exception:
        failed += 1
        print(f"FAIL {name}")
        print("     " + traceback.format_exc().rstrip().replace("\n",
                                                                "\n     "))


def expect(what, expected, found):
    assert expected == found, f"{what}: expected {expected!r}, is {found!r}"


class Target:
    """A process with two more threads, and descriptors by the vectors'
    names."""

    def __init__(self):
        program = ("import threading, time\n"
                   "t = [threading.Thread(target=time.sleep, args=(9999,),"
                   " daemon=True) for _ in range(2)]\n"
                   "[x.start() for x in t]\n"
                   "print(*[x.native_id for x in t], flush=True)\n"
                   "time.sleep(9999)\n")
        self.process = subprocess.Popen([sys.executable, "-c", program],
                                        stdout=subprocess.PIPE)
        self.pid = self.process.pid
        self.tids = list(map(int, self.process.stdout.readline().split()))
        dead = subprocess.Popen(["true"])
        self.dead = os.pidfd_open(dead.pid)
        dead.wait()
        self.cgroup = self.find_cgroup()
        self.socket = socket.socket(socket.AF_UNIX)
        self.open = {
            "process": os.pidfd_open(self.pid),
            "thread": pidfd_of_thread(self.tids[0]),
            "other-thread": pidfd_of_thread(threading.get_native_id()),
            "dead-process": self.dead,
            "file": os.open("/dev/null", os.O_RDONLY),
            "socket": self.socket.fileno(),
            "directory": os.open("/tmp", os.O_PATH),
            "cgroup": os.open(self.cgroup, os.O_PATH),
            "cgroup-open": os.open(self.cgroup, os.O_RDONLY),
        }

    @staticmethod
    def find_cgroup():
        found = re.findall(r"^\S+ (/\S*) cgroup2 ",
                           pathlib.Path("/proc/mounts").read_text(), re.M)
        if not found:
            sys.exit("there is no cgroup v2 mounted")
        return found[0]

    def descriptors(self, names):
        return [self.open[name] for name in names]

    def limit(self, which):
        import resource
        return resource.prlimit(self.pid, which)

    def end(self):
        self.process.kill()
        self.process.wait()


def pidfd_of_thread(tid):
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.restype = ctypes.c_long
    fd = syscall(434, ctypes.c_long(tid), ctypes.c_long(PIDFD_THREAD))
    if fd < 0:
        sys.exit("the vectors need descriptors of threads: Linux 6.9")
    return fd


def with_tids(packet, offsets, tids):
    """A vector with the numbers of our threads."""
    packet = bytearray(packet)
    for offset, tid in zip(offsets, tids):
        packet[offset:offset + 4] = tid.to_bytes(4, "little")
    return bytes(packet)


def with_request(packet, request):
    if len(packet) < 32:
        return packet
    return packet[:24] + request.to_bytes(8, "little") + packet[32:]


# The vectors and peer.py: two that were written from the page.

def vectors_as_peer_has_them():
    for vector in VECTORS["hellos"]:
        packet = peer.hello(vector["operations"], vector["request"])
        expect(vector["name"], vector["hex"], packet.hex())
        expect(vector["name"], list(map(tuple, vector["operations"])),
               peer.read_hello(packet)[0])
    for which, flags in (("requests", 0),
                         ("requests_of_the_same_process", peer.SAME_PROCESS)):
        for vector in VECTORS[which]:
            packet = peer.request(vector["operation"], vector["arguments"],
                                  vector["request"], flags=flags)
            expect(vector["name"], vector["hex"], packet.hex())
            expect(vector["name"], bool(flags),
                   peer.is_of_same_process(packet))
    for vector in VECTORS["questions"]:
        packet = peer.question(vector["about"], vector["request"])
        expect(vector["name"], vector["hex"], packet.hex())
    for vector in VECTORS["answers"]:
        said = peer.Answer(bytes.fromhex(vector["hex"]))
        expect(vector["name"],
               (vector["operation"], vector["request"], vector["verdict"],
                vector["code"], vector["errno"], vector["results"],
                vector["text"]),
               (said.operation, said.request, said.verdict, said.code,
                said.errnum, list(said.results), said.text))
    for vector in VECTORS["goodbyes"]:
        said = peer.Answer(bytes.fromhex(vector["hex"]))
        assert said.is_goodbye, said
        expect(vector["name"], vector["text"], said.text)


# The delegate.

POLICY = """\
version = 1
[[rule]]
name = "all"
peer = {{ uid = {uid} }}
target = {{ cgroup = "/", uid = {uid} }}
process-set-max-mem-lock = {{ max = "unlimited" }}
process-set-max-processes = {{ max = 4294967295 }}
process-set-max-files = {{ max = 4294967295 }}
process-set-max-core-size = {{ max = "unlimited" }}
process-set-scheduler = {{ policies = ["other", "batch", "idle"] }}
process-set-affinity = {{ cpus = "0-8191" }}
cgroup-add-threads = {{ roles = ["vcpu", "iothread"], cgroup = "/" }}
"""


class Delegate:
    def __init__(self, directory, policy=None):
        self.path = f"{directory}/socket"
        self.audit = pathlib.Path(directory, "audit")
        text = (policy or POLICY).format(uid=os.getuid())
        pathlib.Path(directory, "policy").write_text(text)
        self.process = subprocess.Popen(
            [os.environ["VIRT_INTERNAL"], "delegate", "--listen",
             f"unix:{self.path}", "--policy", f"{directory}/policy",
             "--audit", str(self.audit)])
        end = time.monotonic() + PATIENCE
        while True:
            try:
                # Whoever is served knows that all of its threads are there,
                # and take no number of a process any more.
                peer.Client(self.path).sock.close()
                break
            except OSError:
                assert time.monotonic() < end and self.process.poll() is None
                time.sleep(0.01)

    def end(self):
        self.process.kill()
        self.process.wait()

    def lines(self):
        """Those of operations."""
        lines = [json.loads(line) for line in self.audit.open()]
        return [line for line in lines if line["event"] == "operation"]


def send_when_allowed(sock, packet, descriptors):
    """Descriptors may be forbidden until the delegate serves the
    connection."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return peer.send(sock, packet, descriptors)
        except PermissionError:
            assert time.monotonic() < end, "descriptors are never allowed"
            time.sleep(0.001)


def takes_malformed(delegate, target, vector):
    lines = len(delegate.lines())
    packet = with_tids(bytes.fromhex(vector["hex"]), vector["tids_at"],
                       target.tids)
    descriptors = target.descriptors(vector["descriptors"])
    if vector["first"]:
        sock = peer.seqpacket()
        sock.connect(delegate.path)
    else:
        client = peer.Client(delegate.path)
        sock = client.sock
    with sock:
        send_when_allowed(sock, packet, descriptors)
        said = peer.Answer(sock.recv(peer.MESSAGE_MAX))
        assert said.is_goodbye, said
        expect("text", vector["error"], said.text)
        expect("what follows", b"", sock.recv(peer.MESSAGE_MAX))
    expect("audit lines of what was no operation", lines,
           len(delegate.lines()))


def answers(delegate, target, vector):
    with peer.Client(delegate.path) as client:
        packet = with_tids(bytes.fromhex(vector["hex"]), vector["tids_at"],
                           target.tids)
        said = client.tell(packet, target.descriptors(vector["descriptors"]))
        expect("answer", (vector["verdict"], vector["code"], vector["errno"]),
               (said.verdict, said.code, said.errnum))
        expect("request", REQUEST, said.request)
        assert vector["text"] in said.text, said.text
        # The connection goes on.
        said = client.ask(peer.SCHEDULER, dict(tid=0, policy=0x100,
                                               priority=0),
                          target.descriptors(["process"]))
        expect("the next one's verdict", peer.HANDLED, said.verdict)


def takes_request(delegate, target, vector):
    """What it is answered depends on this machine's privileges and CPUs: here
    it must have been understood, and be remembered."""
    with peer.Client(delegate.path) as client:
        packet = with_tids(bytes.fromhex(vector["hex"]), vector["tids_at"],
                           target.tids)
        client.last += 1
        packet = with_request(packet, client.last)
        said = client.tell(packet, target.descriptors(vector["descriptors"]))
        expect("the answer's operation and request",
               (vector["operation"], client.last),
               (said.operation, said.request))
        assert not said.is_goodbye and said.verdict < peer.UNKNOWN, said
        assert said.code != vir.ERR_INVALID_ARG, said
        later = client.became_of(said.request)
        expect("what became of it",
               (said.verdict, said.code, said.errnum, said.text),
               (later.verdict, later.code, later.errnum, later.text))
        lines = [line for line in delegate.lines()
                 if line["request"] == f"{said.request:#x}"]
        expect("its audit lines", 1, len(lines))


def each_operation_does_what_it_says(delegate, target):
    import resource
    process = target.descriptors(["process"])
    with peer.Client(delegate.path) as client:
        def done(*arguments):
            said = client.ask(*arguments)
            expect(f"verdict of {arguments[:2]}: {said}", peer.HANDLED,
                   said.verdict)
            return said
        done(peer.MAX_MEM_LOCK, dict(bytes=65536), process)
        expect("memory lock", (65536, 65536),
               target.limit(resource.RLIMIT_MEMLOCK))
        done(peer.MAX_PROCESSES, dict(most=100), process)
        expect("processes", (100, 100), target.limit(resource.RLIMIT_NPROC))
        done(peer.MAX_FILES, dict(most=99), process)
        expect("files", (100, 100), target.limit(resource.RLIMIT_NOFILE))
        done(peer.MAX_CORE_SIZE, dict(bytes=0), process)
        expect("core size", (0, 0), target.limit(resource.RLIMIT_CORE))
        tid = target.tids[0]
        thread = target.descriptors(["process", "thread"])
        done(peer.SCHEDULER, dict(tid=tid, policy=1, priority=0), thread)
        expect("scheduler", os.SCHED_BATCH, os.sched_getscheduler(tid))
        # By its number alone.
        done(peer.SCHEDULER, dict(tid=tid, policy=0x100, priority=0), process)
        expect("scheduler", os.SCHED_OTHER, os.sched_getscheduler(tid))
        done(peer.AFFINITY, dict(tid=tid, cpumap=[1, 0, 0]), thread)
        expect("affinity", {0}, os.sched_getaffinity(tid))
        arguments = dict(role=0, tids=target.tids, ids=[0, 1], cgroup=True,
                         cpumap=[1])
        both = target.descriptors(["process", "cgroup"])
        said = client.ask(peer.CGROUP_ADD_THREADS, arguments, both)
        expect("results", 2, len(said.results))
        assert said.verdict in (peer.HANDLED, peer.FAILED), said
        arguments["cgroup"] = False
        said = client.ask(peer.CGROUP_ADD_THREADS, arguments, process)
        expect("without a cgroup", peer.NOT_HANDLED, said.verdict)


def says_hello_with_all_operations(delegate):
    with peer.Client(delegate.path) as client:
        expect("hello", peer.SPOKEN, client.spoken)


def takes_hellos(delegate):
    for vector in VECTORS["hellos"]:
        packet = bytes.fromhex(vector["hex"])
        with peer.Client(delegate.path, packet) as client:
            spoken, request = peer.read_hello(client.sock.recv(32800))
            expect(vector["name"], (peer.SPOKEN, vector["request"]),
                   (spoken, request))


def takes_two_descriptors_at_the_limit(delegate, target):
    """3000 threads with ids and the largest map: the longest request."""
    arguments = dict(role=0, tids=target.tids * 1500, ids=list(range(3000)),
                     cgroup=True, cpumap=[255] * 2048)
    expect("length", 26068,
           len(peer.body_of(peer.CGROUP_ADD_THREADS, arguments)))
    with peer.Client(delegate.path) as client:
        both = target.descriptors(["process", "cgroup"])
        said = client.ask(peer.CGROUP_ADD_THREADS, arguments, both)
        expect("results", 3000, len(said.results))


def a_packet_too_long_ends_the_connection(delegate):
    with peer.Client(delegate.path) as client:
        packet = peer.message(1, 1, b"\0" * 32769, 1)
        said = client.tell(packet)
        assert said.is_goodbye, said
        expect("text", "the message is longer than 32800 bytes, or has too "
               "many descriptors", said.text)
        assert client.is_at_end()


def an_empty_packet_ends_the_connection(delegate):
    with peer.Client(delegate.path) as client:
        peer.send(client.sock, b"")
        assert client.is_at_end()


def refused_without_a_rule(delegate, target):
    with peer.Client(delegate.path) as client:
        fifo = dict(tid=0, policy=3, priority=1)
        said = client.ask(peer.SCHEDULER, fifo, target.descriptors(["process"]))
        expect("answer", (peer.REFUSED, vir.ERR_REFUSED, errno.EPERM),
               (said.verdict, said.code, said.errnum))
        assert said.text, said
        later = client.became_of(said.request)
        expect("what became of it", (peer.REFUSED, said.text),
               (later.verdict, later.text))


def remembers_256_requests(delegate, target):
    with peer.Client(delegate.path) as client:
        said = [client.ask(peer.MAX_CORE_SIZE, dict(bytes=0),
                           target.descriptors(["process"]))
                for _ in range(257)]
        expect("the oldest", peer.UNKNOWN,
               client.became_of(said[0].request).verdict)
        expect("the second", peer.HANDLED,
               client.became_of(said[1].request).verdict)
        expect("the last", peer.HANDLED,
               client.became_of(said[-1].request).verdict)


def quota_of_connections(target):
    with tempfile.TemporaryDirectory() as directory:
        policy = POLICY.replace("[[rule]]", "[quota]\nconnections = 2\n"
                                "[[rule]]")
        delegate = Delegate(directory, policy)
        try:
            end = time.monotonic() + PATIENCE
            clients = []
            # What has ended is counted until the delegate has seen that.
            while len(clients) < 2:
                try:
                    clients.append(peer.Client(delegate.path))
                except (AssertionError, ConnectionError):
                    assert time.monotonic() < end
                    time.sleep(0.05)
            with clients[0], clients[1]:
                three = peer.seqpacket()
                with three:
                    three.connect(delegate.path)
                    said = peer.Answer(three.recv(peer.MESSAGE_MAX))
                    assert said.is_goodbye, said
                    expect("text", "the quota of 2 connections at a time is "
                           "used up", said.text)
        finally:
            delegate.end()


# The client.

class Server:
    """peer.py as a delegate, for one call after the other."""

    def __init__(self, directory, replies, conn=None, **named):
        self.path = f"{directory}/peer-{conn}"
        self.conn = conn
        self.listener = peer.seqpacket()
        self.listener.bind(self.path)
        self.listener.listen(8)
        self.replies, self.named, self.requests = replies, named, []
        self.connections = self.ended = 0
        self.trouble = None
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        threads = []
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                break
            self.connections += 1
            sock.settimeout(PATIENCE)
            thread = threading.Thread(target=self.serve, args=(sock,),
                                      daemon=True)
            thread.start()
            threads.append(thread)
        for thread in threads:
            thread.join(PATIENCE)

    def serve(self, sock):
        try:
            peer.serve(sock, self.reply, **self.named)
        except ConnectionResetError:
            pass
        except BaseException as trouble:
            self.trouble = trouble
        self.ended += 1

    def reply(self, packet, descriptors):
        kinds = [os.readlink(f"/proc/self/fd/{fd}") for fd in descriptors]
        pids = []
        for fd in descriptors:
            text = pathlib.Path(f"/proc/self/fdinfo/{fd}").read_text()
            pid = re.search(r"^Pid:\s*(\d+)", text, re.M)
            flags = int(re.search(r"^flags:\s*(\d+)", text, re.M)[1], 8)
            pids.append(int(pid[1]) if pid else flags & os.O_PATH)
        self.requests.append((packet, kinds, pids))
        return self.replies(packet)

    def __enter__(self):
        result = _connect(self.conn, 1, f"unix:{self.path}".encode(),
                          PATIENCE_MS, 0)
        expect("virInternalConnectDelegate", 0, result)
        return self

    def __exit__(self, *_):
        _disconnect(self.conn)
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(PATIENCE)
        os.unlink(self.path)
        assert not self.thread.is_alive()
        if self.trouble:
            raise self.trouble


def refuses(packet):
    operation, version, request, _ = peer.read_header(packet)
    return peer.answer(operation, version, request, peer.REFUSED, 4, 1, (),
                       "not by this one")


def call(target, operation, arguments):
    """Has the real client ask. (result, code, errno, message, results)"""
    flags = vir.NO_DIRECT
    results = None
    if operation == peer.OUTCOME:
        return *ask_outcome(REQUEST), None
    if operation in (1, 4):
        parameters = [arguments["bytes"]]
    elif operation in (2, 3):
        parameters = [arguments["most"]]
    elif operation == 5:
        tid = target.tids[0] if arguments["tid"] else target.pid
        parameters = [tid, arguments["policy"], arguments["priority"]]
    elif operation == 6:
        tid = target.tids[0] if arguments["tid"] else target.pid
        cpumap = arguments["cpumap"]
        parameters = [tid, (ctypes.c_ubyte * len(cpumap))(*cpumap),
                      len(cpumap)]
    else:
        count = len(arguments["tids"])
        ids, cpumap = arguments["ids"], arguments["cpumap"]
        results = (ctypes.c_int * count)(*[7] * count)
        parameters = [
            target.cgroup.encode() if arguments["cgroup"] else None,
            arguments["role"], (ctypes.c_int * count)(*target.tids[:count]),
            ids and (ctypes.c_uint * count)(*ids), count,
            cpumap and (ctypes.c_ubyte * len(cpumap))(*cpumap),
            len(cpumap or ()), results]
    functions = [vir.process_set_max_mem_lock, vir.process_set_max_processes,
                 vir.process_set_max_files, vir.process_set_max_core_size,
                 vir.process_set_scheduler, vir.process_set_affinity,
                 vir.cgroup_add_threads]
    code = errnum = 0
    message = ""
    try:
        result = functions[operation - 1](target.pid, *parameters, flags=flags)
    except vir.Error as error:
        result = -1
        code, errnum, message = error.code, error.errno, error.message
    return result, code, errnum, message, results and list(results)


def ask_outcome(request):
    result = _ask(None, request, 0)
    if result != -1:
        return result, 0, 0, ""
    error = vir.last_error()
    return -1, error.code, error.errnum, error.message.decode()


def client_sends(directory, target, vector):
    with Server(directory, refuses) as server:
        result, code, *_ = call(target, vector["operation"],
                                vector["arguments"])
        expect("the caller's error", (-1, vir.ERR_REFUSED), (result, code))
        [(packet, kinds, pids)] = server.requests
        expected = with_tids(bytes.fromhex(vector["hex"]), vector["tids_at"],
                             target.tids)
        _, _, request, _ = peer.read_header(packet)
        assert request != 0
        expect("request", with_request(expected, request).hex(), packet.hex())
        expected = {"process": target.pid, "thread": target.tids[0],
                    "cgroup": os.O_PATH}
        expect("descriptors",
               [expected[name] for name in vector["descriptors"]], pids)
        for name, kind in zip(vector["descriptors"], kinds):
            if name == "cgroup":
                expect("cgroup", target.cgroup, kind)


def client_asks_about(directory):
    vector = VECTORS["questions"][0]
    with Server(directory, refuses) as server:
        ask_outcome(vector["about"])
        [(packet, kinds, _)] = server.requests
        request = int.from_bytes(packet[24:32], "little")
        assert request not in (0, vector["about"])
        expected = with_request(bytes.fromhex(vector["hex"]), request)
        expect("question", expected.hex(), packet.hex())
        expect("descriptors", [], kinds)


# What is read back must be there when an answer says that it was done.
def arguments_for(target, operation):
    import resource
    if operation == 7:
        return dict(role=0, tids=[1, 2], ids=None, cgroup=True, cpumap=None)
    soft, _ = target.limit(resource.RLIMIT_MEMLOCK)
    return dict(bytes=2 ** 64 - 1 if soft == -1 else soft)


def client_takes(directory, target, vector):
    packet = bytes.fromhex(vector["hex"])

    def replies(question):
        return with_request(packet, peer.read_header(question)[2])
    with Server(directory, replies):
        operation = vector["operation"]
        result, code, errnum, message, results = call(
            target, operation, arguments_for(target, operation))
        expected = vector["outcome"]
        expect("result", expected["result"], result)
        if result == -1:
            expect(f"error: {message}", (expected["code"], expected["errno"]),
                   (code, errnum))
            assert expected["text"] in message, message
        if expected.get("results"):
            expect("results", expected["results"], results)


def client_takes_malformed(directory, target, vector):
    packet = bytes.fromhex(vector["hex"])

    def replies(question):
        if vector["keep_request"]:
            return packet
        return with_request(packet, peer.read_header(question)[2])
    is_hello = vector["in_place_of"] == "hello"
    greeting = packet if is_hello else None
    with Server(directory, replies, greeting=greeting) as server:
        operation = vector["operation"]
        result, code, errnum, message, results = call(
            target, operation, arguments_for(target, operation))
        if results:
            # Nothing of what came is left in them.
            expect("results", {-errnum}, set(results))
        expected = ((vir.ERR_FAILED, errno.EPROTO) if is_hello else
                    (vir.ERR_UNKNOWN_OUTCOME, errno.EINPROGRESS))
        expect(f"error: {message}", (-1, *expected), (result, code, errnum))
        # libvirt's way: the errno's own text comes last where it is an error
        # of the system's.
        suffix = ": Protocol error" if is_hello else ""
        assert message.endswith(f": {vector['error']}{suffix}"), message
        expect("requests that were sent", 0 if is_hello else 1,
               len(server.requests))
        if not is_hello:
            request = peer.read_header(server.requests[0][0])[2]
            expect("virInternalGetLastRequest", request, _last_request())


def client_takes_goodbye(directory, target, in_place_of):
    vector = VECTORS["goodbyes"][0]
    packet = bytes.fromhex(vector["hex"])
    named = {"greeting": packet} if in_place_of == "hello" else {}
    with Server(directory, lambda _: packet, **named):
        result, code, errnum, message, _ = call(target, 1, dict(bytes=0))
        expect("error", (-1, vir.ERR_REFUSED, errno.EPERM),
               (result, code, errnum))
        assert message.endswith(vector["text"]), message


class Doorkeeper:
    """Says goodbye to whoever comes, and reads nothing."""

    def __init__(self, directory, patient):
        self.path, self.patient = f"{directory}/door", patient
        self.listener = peer.seqpacket()
        self.listener.bind(self.path)
        self.listener.listen(8)
        self.packet = bytes.fromhex(VECTORS["goodbyes"][0]["hex"])
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            with sock:
                if self.patient:
                    # The hello is there, and stays unread.
                    sock.recv(1, socket.MSG_PEEK)
                peer.send(sock, self.packet)


def goodbye_of_one_that_reads_nothing(directory, target, patient):
    keeper = Doorkeeper(directory, patient)
    _connect(None, 1, f"unix:{keeper.path}".encode(), PATIENCE_MS, 0)
    try:
        for _ in range(200):
            _, code, _, message, _ = call(target, 1, dict(bytes=0))
            expect(message, vir.ERR_REFUSED, code)
            assert message.endswith(VECTORS["goodbyes"][0]["text"]), message
    finally:
        _disconnect(None)
        keeper.listener.shutdown(socket.SHUT_RDWR)
        keeper.listener.close()
        os.unlink(keeper.path)


def client_of_a_delegate_that_lacks_it(directory, target):
    spoken = [entry for entry in peer.SPOKEN if entry[0] != 1]
    with Server(directory, refuses, spoken=spoken) as server:
        result, *_ = call(target, 1, dict(bytes=0))
        expect("what the delegate lacks", vir.NOT_HANDLED, result)
        expect("requests", 0, len(server.requests))
        result, code, *_ = call(target, 4, dict(bytes=0))
        expect("what it has", (-1, vir.ERR_REFUSED), (result, code))


def client_of_a_delegate_of_another_version(directory, target):
    def replies(packet):
        operation, version, request, _ = peer.read_header(packet)
        text = (f"the request is of version {version} of operation "
                f"{operation}, this delegate has version 2")
        return peer.answer(operation, version, request, peer.FAILED,
                           vir.ERR_VERSION, errno.EPROTONOSUPPORT, (), text)
    spoken = [(number, 2, 3) for number in range(1, 8)]
    with Server(directory, replies, spoken=spoken):
        for operation in (1, 7):
            result, code, errnum, message, _ = call(
                target, operation, arguments_for(target, operation))
            expect("error", (-1, vir.ERR_VERSION, errno.EPROTONOSUPPORT),
                   (result, code, errnum))
            assert f"version 1 of operation {operation}" in message, message


def client_of_a_newer_delegate(directory, target):
    spoken = [*peer.SPOKEN, (8, 1, 4), (63, 2, 2), (64, 1, 1), (2 ** 32 - 1, 1,
                                                               1), (5, 1, 7)]
    with Server(directory, refuses, spoken=spoken):
        result, code, *_ = call(target, 1, dict(bytes=0))
        expect("error", (-1, vir.ERR_REFUSED), (result, code))


def client_of_one_that_ends(directory, target):
    with Server(directory, lambda packet: None) as server:
        result, code, errnum, *_ = call(target, 1, dict(bytes=0))
        expect("error", (-1, vir.ERR_UNKNOWN_OUTCOME, errno.EINPROGRESS),
               (result, code, errnum))
        expect("requests: it is not sent again", 1, len(server.requests))


def client_says_its_hello(directory, target):
    hellos = []
    original = peer.read_hello

    def read(packet):
        hellos.append(packet)
        return original(packet)
    peer.read_hello = read
    try:
        with Server(directory, refuses):
            call(target, 1, dict(bytes=0))
    finally:
        peer.read_hello = original
    expect("hello", VECTORS["hellos"][0]["hex"], hellos[0].hex())


# A process that is not sent again: both sides must mean the same one.

SAME = peer.SAME_PROCESS
BATCH, OTHER = 1, 0x100
NO_PROCESS_BEFORE = "there is no process of a request before"


class Sleeper:
    """A process whose scheduling policy says who was acted on."""

    def __init__(self, process=None):
        self.process = process or subprocess.Popen(["sleep", "9999"])
        self.pid = self.process.pid
        self.fd = os.pidfd_open(self.pid)

    @property
    def policy(self):
        policy = os.sched_getscheduler(self.pid)
        return {os.SCHED_BATCH: BATCH, os.SCHED_OTHER: OTHER}[policy]

    def kill(self):
        self.process.kill()
        self.process.wait()

    def reborn(self):
        """Another process with the number of this one, which has exited."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                pathlib.Path("/proc/sys/kernel/ns_last_pid").write_text(
                    str(self.pid - 1))
            except OSError as why:
                raise Skip(f"no number of a process can be chosen: {why}")
            process = subprocess.Popen(["sleep", "9999"])
            if process.pid == self.pid:
                return Sleeper(process)
            process.kill()
            process.wait()
            assert time.monotonic() < end, f"{self.pid} is not given again"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()
        os.close(self.fd)


def schedule(policy, tid=0, priority=0):
    return dict(tid=tid, policy=policy, priority=priority)


def ask_policy(client, policy, descriptors=(), flags=SAME, tid=0):
    said = client.ask(peer.SCHEDULER, schedule(policy, tid), descriptors,
                      flags=flags)
    expect(f"verdict: {said}", peer.HANDLED, said.verdict)
    return said


def expect_no_process(client):
    client.last += 1
    said = client.tell(peer.request(peer.SCHEDULER, schedule(OTHER),
                                    client.last, flags=SAME))
    assert said.is_goodbye, said
    expect("text", NO_PROCESS_BEFORE, said.text)
    assert client.is_at_end()


def delegate_acts_on_the_process_of_the_last_request(delegate):
    asked = []
    with Sleeper() as a, Sleeper() as b, \
            peer.Client(delegate.path) as one, \
            peer.Client(delegate.path) as two:
        def step(client, policy, sent, whose):
            other = {a: b, b: a}[whose].policy
            descriptors = [sent.fd] if sent else []
            said = ask_policy(client, policy, descriptors,
                              0 if sent else SAME)
            asked.append((f"{said.request:#x}", whose.pid))
            expect("who was acted on", (policy, other),
                   (whose.policy, {a: b, b: a}[whose].policy))
        step(one, BATCH, a, a)
        step(one, OTHER, None, a)
        step(one, BATCH, b, b)
        step(one, OTHER, None, b)
        step(one, BATCH, None, b)
        # Each connection has its own.
        step(two, BATCH, a, a)
        step(one, OTHER, None, b)
        step(two, OTHER, None, a)
        step(one, BATCH, a, a)
        step(one, OTHER, None, a)
        step(two, BATCH, None, a)
    lines = {line["request"]: line for line in delegate.lines()}
    for request, pid in asked:
        expect("the line's process", pid, lines[request]["target"]["pid"])
        expect("the line's proof", "pidfd", lines[request]["proof"])


def after(what):
    """Requests that leave no process: each about @b, or the one before."""
    def raw(operation, version, flags):
        def tell(client, descriptors):
            client.last += 1
            return client.tell(peer.message(operation, version, b"",
                                            client.last, flags=flags),
                               descriptors)
        return tell

    def scheduler(policy, flags=0, tid=0, priority=0):
        def tell(client, descriptors):
            return client.ask(peer.SCHEDULER,
                              schedule(policy, tid, priority), descriptors,
                              flags=flags)
        return tell
    own_thread = threading.get_native_id()
    return {
        "refused": (peer.REFUSED, ["b"], scheduler(3, priority=1)),
        "refused, of the same process":
            (peer.REFUSED, [], scheduler(3, SAME, priority=1)),
        "no value": (peer.FAILED, ["b"], scheduler(77)),
        "no value, of the same process": (peer.FAILED, [],
                                          scheduler(77, SAME)),
        "exited": (peer.FAILED, ["dead"], scheduler(BATCH)),
        "another's thread": (peer.FAILED, ["b", "thread"],
                             scheduler(BATCH, tid=own_thread)),
        "another's thread, of the same process":
            (peer.FAILED, ["thread"], scheduler(BATCH, SAME, own_thread)),
        "no operation": (peer.NOT_HANDLED, ["b"], raw(8, 1, 0)),
        "no operation, of the same process": (peer.NOT_HANDLED, [],
                                              raw(8, 1, SAME)),
        "another version": (peer.FAILED, ["b"], raw(5, 9, 0)),
        "another version, of the same process": (peer.FAILED, [],
                                                 raw(5, 9, SAME)),
    }[what]


AFTER = ["refused", "refused, of the same process", "no value",
         "no value, of the same process", "exited", "another's thread",
         "another's thread, of the same process", "no operation",
         "no operation, of the same process", "another version",
         "another version, of the same process"]


def delegate_has_no_process_after(delegate, target, what):
    verdict, names, tell = after(what)
    own_thread = pidfd_of_thread(threading.get_native_id())
    with Sleeper() as a, Sleeper() as b, \
            peer.Client(delegate.path) as client:
        descriptors = {"b": b.fd, "dead": target.dead, "thread": own_thread}
        ask_policy(client, BATCH, [a.fd], 0)
        said = tell(client, [descriptors[name] for name in names])
        expect(f"verdict: {said}", verdict, said.verdict)
        expect_no_process(client)
        expect("who was acted on", (BATCH, OTHER), (a.policy, b.policy))
    os.close(own_thread)


def delegate_keeps_the_process_of_what_was_tried(delegate):
    with Sleeper() as a, peer.Client(delegate.path) as client:
        said = client.ask(peer.CGROUP_ADD_THREADS,
                          dict(role=0, tids=[a.pid], ids=None, cgroup=False,
                               cpumap=None), [a.fd])
        expect("without a cgroup", peer.NOT_HANDLED, said.verdict)
        ask_policy(client, BATCH)
        expect("policy after what was not handled", BATCH, a.policy)
        # No machine has CPU 8191 and nothing else.
        far = dict(tid=0, cpumap=[0] * 1023 + [128])
        said = client.ask(peer.AFFINITY, far, [], flags=SAME)
        expect(f"verdict: {said}", peer.FAILED, said.verdict)
        ask_policy(client, OTHER)
        expect("policy after what failed", OTHER, a.policy)
        # A question is no request.
        expect("what became of it", peer.FAILED,
               client.became_of(said.request).verdict)
        ask_policy(client, BATCH)
        expect("policy after a question", BATCH, a.policy)


def delegate_tells_that_the_process_has_exited(delegate, reuse):
    with Sleeper() as a, peer.Client(delegate.path) as client:
        ask_policy(client, OTHER, [a.fd], 0)
        a.kill()
        with (a.reborn() if reuse else Sleeper()) as other:
            said = client.ask(peer.SCHEDULER, schedule(BATCH), [], flags=SAME)
            expect(f"answer: {said}",
                   (peer.FAILED, vir.ERR_NO_PROCESS, errno.ESRCH),
                   (said.verdict, said.code, said.errnum))
            expect("policy of another", OTHER, other.policy)
            expect_no_process(client)


def delegate_takes_threads_of_the_same_process(delegate, target):
    def policies():
        return [os.sched_getscheduler(tid) for tid in (target.pid,
                                                       *target.tids)]
    one, two = target.tids
    thread = target.descriptors(["thread"])
    own_thread = pidfd_of_thread(threading.get_native_id())
    second = pidfd_of_thread(two)
    with peer.Client(delegate.path) as client:
        ask_policy(client, OTHER, target.descriptors(["process"]), 0)
        for policy, linux in ((BATCH, os.SCHED_BATCH),
                              (OTHER, os.SCHED_OTHER)):
            rest = policies()
            for index, tid, descriptors in ((1, one, thread),
                                            (2, two, [second]), (0, 0, [])):
                ask_policy(client, policy, descriptors, tid=tid)
                rest[index] = linux
                expect("policies", rest, policies())
        # By its number alone; then the process is still the process.
        ask_policy(client, BATCH, tid=two)
        ask_policy(client, BATCH)
        expect("policies", [os.SCHED_BATCH, os.SCHED_OTHER, os.SCHED_BATCH],
               policies())
        ask_policy(client, OTHER, tid=two)
        ask_policy(client, OTHER)
        client.last += 1
        said = client.tell(peer.request(peer.MAX_CORE_SIZE, dict(bytes=0),
                                        client.last, flags=SAME),
                           target.descriptors(["process"]))
        assert said.is_goodbye, said
        expect("text", "there are too many descriptors", said.text)
    os.close(own_thread)
    os.close(second)


# The client.

def handles(packet):
    return says(packet, peer.HANDLED)


def says(packet, verdict):
    operation, version, request, _ = peer.read_header(packet)
    code, errnum = {peer.REFUSED: (4, 1), peer.FAILED: (5, 5)}.get(verdict,
                                                                  (0, 0))
    return peer.answer(operation, version, request, verdict, code, errnum)


def set_policy(pid, policy=OTHER, tid=None, conn=None):
    """Has the real client ask. (result, code)"""
    try:
        return vir.process_set_scheduler(pid, tid or pid, policy, 0,
                                         conn=conn, flags=vir.NO_DIRECT), 0
    except vir.Error as error:
        return -1, error.code


DONE = (0, 0)


def sent(server):
    """What was sent since this was last asked: whether it is of the same
    process, and which processes and threads came along."""
    found = [(peer.is_of_same_process(packet), pids)
             for packet, _, pids in server.requests]
    server.requests.clear()
    return found


def client_sends_a_process_once(directory):
    with Sleeper() as a, Sleeper() as b, Server(directory, handles) as server:
        for who in (a, a, a, b, b, a, b, a):
            expect("outcome", DONE, set_policy(who.pid))
        expect("sent", [(False, [a.pid]), (True, []), (True, []),
                        (False, [b.pid]), (True, []), (False, [a.pid]),
                        (False, [b.pid]), (False, [a.pid])], sent(server))
        expect("connections", 1, server.connections)


def client_sends_it_again_after(directory, verdict):
    script = [peer.HANDLED, verdict, peer.HANDLED, peer.HANDLED]

    def replies(packet):
        return says(packet, script.pop(0))
    with Sleeper() as a, Server(directory, replies) as server:
        expect("outcome", DONE, set_policy(a.pid))
        # Handled: it says so, and did not.
        policy = BATCH if verdict == peer.HANDLED else OTHER
        assert set_policy(a.pid, policy) != DONE
        expect("outcome", DONE, set_policy(a.pid))
        expect("outcome", DONE, set_policy(a.pid))
        expect("sent", [(False, [a.pid]), (True, []), (False, [a.pid]),
                        (True, [])], sent(server))


def client_sends_it_again_after_a_question(directory):
    def replies(packet):
        return says(packet, peer.HANDLED)
    with Sleeper() as a, Server(directory, replies) as server:
        expect("outcome", DONE, set_policy(a.pid))
        expect("what became of it", (0, 0, 0, ""), ask_outcome(REQUEST))
        expect("outcome", DONE, set_policy(a.pid))
        expect("sent", [(False, [a.pid]), (False, []), (False, [a.pid])],
               sent(server))


def client_sends_one_with_the_number_of_another(directory):
    with Sleeper() as a, Server(directory, handles) as server:
        expect("outcome", DONE, set_policy(a.pid))
        a.kill()
        expect("outcome", (-1, vir.ERR_NO_PROCESS), set_policy(a.pid))
        with a.reborn() as b:
            expect("outcome", DONE, set_policy(b.pid))
            expect("outcome", DONE, set_policy(b.pid))
            expect("sent", [(False, [a.pid]), (False, [b.pid]), (True, [])],
                   sent(server))
            b.kill()
            # And without a call in between.
            with b.reborn() as c:
                expect("outcome", DONE, set_policy(c.pid))
                expect("sent", [(False, [c.pid])], sent(server))


def client_sends_threads_of_the_same_process(directory, target):
    pid, (one, two) = target.pid, target.tids
    with Server(directory, handles) as server:
        for tid in (one, two, pid, one):
            expect("outcome", DONE, set_policy(pid, tid=tid))
        expect("sent", [(False, [pid, one]), (True, [two]), (True, []),
                        (True, [one])], sent(server))


def client_sends_it_again_over_another_connection(directory):
    with Sleeper() as a, Server(directory, handles, most=2) as server:
        def ended(count):
            end = time.monotonic() + PATIENCE
            while server.ended < count:
                assert time.monotonic() < end, "it does not end"
                time.sleep(0.001)
        for time_before in range(3):
            expect("outcome", DONE, set_policy(a.pid))
            expect("outcome", DONE, set_policy(a.pid))
            ended(time_before + 1)
        expect("sent", [(False, [a.pid]), (True, [])] * 3, sent(server))
        expect("connections", 3, server.connections)


def client_sends_it_again_when_it_was_connected_anew(directory):
    with Sleeper() as a:
        for _ in range(2):
            with Server(directory, handles) as server:
                expect("outcome", DONE, set_policy(a.pid))
                expect("outcome", DONE, set_policy(a.pid))
                expect("sent", [(False, [a.pid]), (True, [])], sent(server))


def client_sends_it_again_after_what_cannot_be_understood(directory):
    script = [True, False, True]

    def replies(packet):
        said = handles(packet)
        return said if script.pop(0) else with_request(said, 1)
    with Sleeper() as a, Server(directory, replies) as server:
        expect("outcome", DONE, set_policy(a.pid))
        expect("outcome", (-1, vir.ERR_UNKNOWN_OUTCOME), set_policy(a.pid))
        expect("outcome", DONE, set_policy(a.pid))
        expect("sent", [(False, [a.pid]), (True, []), (False, [a.pid])],
               sent(server))


def client_with_two_delegates(directory):
    CONN = 0x1000
    first_handles, second_verdict = False, peer.HANDLED

    def first_replies(packet):
        return says(packet,
                    peer.HANDLED if first_handles else peer.NOT_HANDLED)

    def second_replies(packet):
        return says(packet, second_verdict)
    with Sleeper() as a, Sleeper() as b, \
            Server(directory, first_replies, conn=CONN) as first, \
            Server(directory, second_replies) as every:
        # The first one passes it on.
        for _ in range(2):
            expect("outcome", DONE, set_policy(a.pid, conn=CONN))
        expect("sent to the first", [(False, [a.pid])] * 2, sent(first))
        expect("sent to the second", [(False, [a.pid])] * 2, sent(every))
        # The second one knows it from then.
        expect("outcome", DONE, set_policy(a.pid))
        expect("sent to the second", [(True, [])], sent(every))
        # Each has its own.
        first_handles = True
        for conn, who in ((CONN, b), (None, a), (CONN, b), (CONN, a),
                          (None, b), (CONN, a), (None, b)):
            expect("outcome", DONE, set_policy(who.pid, conn=conn))
        expect("sent to the first", [(False, [b.pid]), (True, []),
                                     (False, [a.pid]), (True, [])],
               sent(first))
        expect("sent to the second", [(True, []), (False, [b.pid]),
                                      (True, [])], sent(every))
        # The first one knows it, passes it on, and is to be told it again.
        first_handles = False
        expect("outcome", DONE, set_policy(a.pid, conn=CONN))
        expect("outcome", DONE, set_policy(a.pid, conn=CONN))
        expect("sent to the first", [(True, []), (False, [a.pid])],
               sent(first))
        expect("sent to the second", [(False, [a.pid])] * 2, sent(every))
        # The second one knows it, and is asked about another in vain.
        for verdict in (peer.NOT_HANDLED, peer.REFUSED):
            second_verdict = verdict
            assert set_policy(b.pid, conn=CONN) != DONE
            second_verdict = peer.HANDLED
            expect("outcome", DONE, set_policy(a.pid))
            expect("sent to the second", [(False, [b.pid]), (False, [a.pid])],
                   sent(every))


def client_in_a_forked_child(directory):
    with Sleeper() as a, Sleeper() as b, Server(directory, handles) as server:
        expect("outcome", DONE, set_policy(a.pid))
        for who in (a, b):
            in_child(lambda: [set_policy(who.pid), set_policy(who.pid)],
                     [DONE, DONE])
            expect("sent by the child", [(False, [who.pid])] * 2, sent(server)
                   [-2:])
        # The parent's own is as it was.
        expect("outcome", DONE, set_policy(a.pid))
        expect("sent", [(True, [])], sent(server))
        expect("connections", 5, server.connections)


def in_child(call, expected):
    child = os.fork()
    if child == 0:
        try:
            found = call()
            os._exit(0 if found == expected else 2)
        finally:
            os._exit(3)
    _, status = os.waitpid(child, 0)
    expect("the child's end", 0, os.waitstatus_to_exitcode(status))


def client_whose_descriptor_was_closed(directory):
    with Sleeper() as a, Server(directory, handles) as server:
        expect("outcome", DONE, set_policy(a.pid))
        closed = 0
        for fd in map(int, os.listdir("/proc/self/fd")):
            try:
                text = pathlib.Path(f"/proc/self/fdinfo/{fd}").read_text()
            except OSError:
                continue
            if fd != a.fd and re.search(rf"^Pid:\s*{a.pid}$", text, re.M):
                os.close(fd)
                closed += 1
        expect("descriptors that were kept", 1, closed)
        expect("outcome", DONE, set_policy(a.pid))
        expect("sent", [(False, [a.pid])] * 2, sent(server))


def client_with_a_handler_before(directory):
    with Sleeper() as a, Sleeper() as b, Server(directory, handles) as server:
        expect("outcome", DONE, set_policy(a.pid))
        cpus = os.sched_getaffinity(b.pid)

        def asks_about_another(*_):
            vir.process_set_affinity(b.pid, b.pid, *vir.cpumap(*cpus),
                                     flags=vir.NO_DIRECT)
            return vir.NOT_HANDLED
        vir.process_set_scheduler.set(asks_about_another)
        try:
            expect("outcome", DONE, set_policy(a.pid))
        finally:
            vir.process_set_scheduler.unset()
        expect("outcome", DONE, set_policy(a.pid))
        expect("sent", [(False, [a.pid]), (False, [b.pid]), (False, [a.pid]),
                        (True, [])], sent(server))


def both_mean_the_same_process(directory):
    """The real client and the real delegate, and whatever could come
    between."""
    seed = int.from_bytes(os.urandom(4), "little")
    chance = random.Random(seed)
    print(f"     seed {seed}")
    delegate = Delegate(directory)
    _connect(None, 1, f"unix:{delegate.path}".encode(), PATIENCE_MS, 0)
    sleepers = [Sleeper() for _ in range(3)]
    model = [OTHER] * 3
    workers = [ThreadPoolExecutor(1) for _ in range(2)]
    counts = collections.Counter()
    reuse = True
    try:
        for step in range(600):
            index = chance.randrange(3)
            who = sleepers[index]
            policy = chance.choice((BATCH, OTHER))
            what = chance.choices(
                ("set", "refused", "question", "child", "restart", "another",
                 "direct"), (60, 8, 6, 6, 2, 6, 4))[0]
            counts[what] += 1

            def do():
                nonlocal delegate, reuse
                if what == "set":
                    expect("outcome", DONE, set_policy(who.pid, policy))
                elif what == "refused":
                    try:
                        vir.process_set_scheduler(who.pid, who.pid, 3, 1,
                                                  flags=vir.NO_DIRECT)
                        raise AssertionError("it is not refused")
                    except vir.Error as error:
                        expect("code", vir.ERR_REFUSED, error.code)
                elif what == "question":
                    expect("code", vir.ERR_UNKNOWN_OUTCOME, ask_outcome(1)[1])
                elif what == "child":
                    in_child(lambda: set_policy(who.pid, policy), DONE)
                elif what == "restart":
                    delegate.end()
                    delegate = Delegate(directory)
                elif what == "another":
                    who.kill()
                    os.close(who.fd)
                    try:
                        another = who.reborn() if reuse else Sleeper()
                    except Skip:
                        reuse, another = False, Sleeper()
                    sleepers[index] = another
                else:
                    linux = {BATCH: os.SCHED_BATCH, OTHER: os.SCHED_OTHER}
                    os.sched_setscheduler(who.pid, linux[policy],
                                          os.sched_param(0))
            # Each thread has a connection of its own.
            chance.choice(workers).submit(do).result(4 * PATIENCE)
            if what in ("set", "child", "direct"):
                model[index] = policy
            elif what == "another":
                model[index] = OTHER
            expect(f"seed {seed}, step {step}, {what} of {index}: policies",
                   model, [sleeper.policy for sleeper in sleepers])
        assert all(counts.values()) and len(counts) == 7, counts
    finally:
        for worker in workers:
            worker.shutdown()
        _disconnect(None)
        delegate.end()
        for sleeper in sleepers:
            sleeper.kill()
            os.close(sleeper.fd)


def main():
    target = Target()
    with tempfile.TemporaryDirectory() as directory:
        check("vectors are what the page says", vectors_as_peer_has_them)
        delegate = Delegate(directory)
        check("delegate: says hello with all its operations",
              says_hello_with_all_operations, delegate)
        check("delegate: takes hellos", takes_hellos, delegate)
        for vector in VECTORS["malformed_for_delegate"]:
            check(f"delegate: {vector['name']} ends the connection",
                  takes_malformed, delegate, target, vector)
        for vector in VECTORS["answered_by_delegate"]:
            check(f"delegate: {vector['name']} is answered", answers, delegate,
                  target, vector)
        check("delegate: a packet too long ends the connection",
              a_packet_too_long_ends_the_connection, delegate)
        check("delegate: an empty packet ends the connection",
              an_empty_packet_ends_the_connection, delegate)
        check("delegate: what no rule allows is refused",
              refused_without_a_rule, delegate, target)
        check("delegate: remembers 256 requests", remembers_256_requests,
              delegate, target)
        check("delegate: the longest request",
              takes_two_descriptors_at_the_limit, delegate, target)
        check("delegate: does what each operation says",
              each_operation_does_what_it_says, delegate, target)
        for vector in VECTORS["requests"]:
            check(f"delegate: takes {vector['name']}", takes_request, delegate,
                  target, vector)
        check("delegate: acts on the process of the last request",
              delegate_acts_on_the_process_of_the_last_request, delegate)
        for what in AFTER:
            check(f"delegate: has no process after what is: {what}",
                  delegate_has_no_process_after, delegate, target, what)
        check("delegate: keeps the process of what was tried, or asked about",
              delegate_keeps_the_process_of_what_was_tried, delegate)
        check("delegate: tells that the process has exited",
              delegate_tells_that_the_process_has_exited, delegate, False)
        check("delegate: a process with the number of the last is not it",
              delegate_tells_that_the_process_has_exited, delegate, True)
        check("delegate: takes threads of the same process",
              delegate_takes_threads_of_the_same_process, delegate, target)
        delegate.end()
        check("delegate: one connection above the quota gets a goodbye",
              quota_of_connections, target)
        target.end()

        target = Target()
        check("client: says its hello", client_says_its_hello, directory,
              target)
        for vector in VECTORS["requests"]:
            check(f"client: sends {vector['name']}", client_sends, directory,
                  target, vector)
        check("client: asks what became of a request", client_asks_about,
              directory)
        for vector in VECTORS["answers"]:
            check(f"client: takes {vector['name']}", client_takes, directory,
                  target, vector)
        for vector in VECTORS["malformed_for_client"]:
            check(f"client: {vector['name']} is an error",
                  client_takes_malformed, directory, target, vector)
        for place in ("hello", "answer"):
            check(f"client: goodbye in the place of {place}",
                  client_takes_goodbye, directory, target, place)
        check("client: goodbye of a delegate that leaves its hello unread",
              goodbye_of_one_that_reads_nothing, directory, target, True)
        check("client: goodbye of a delegate that closes at once",
              goodbye_of_one_that_reads_nothing, directory, target, False)
        for test in (client_of_a_delegate_that_lacks_it,
                     client_of_a_delegate_of_another_version,
                     client_of_a_newer_delegate, client_of_one_that_ends,
                     client_sends_threads_of_the_same_process):
            check(test.__name__.replace("_", " ").replace("client ",
                                                          "client: ", 1),
                  test, directory, target)
        for verdict in range(5):
            check(f"client: sends it again after verdict {verdict} that is "
                  "not success", client_sends_it_again_after, directory,
                  verdict)
        for test in (client_sends_a_process_once,
                     client_sends_it_again_after_a_question,
                     client_sends_one_with_the_number_of_another,
                     client_sends_it_again_over_another_connection,
                     client_sends_it_again_when_it_was_connected_anew,
                     client_sends_it_again_after_what_cannot_be_understood,
                     client_with_two_delegates, client_in_a_forked_child,
                     client_whose_descriptor_was_closed,
                     client_with_a_handler_before):
            check(test.__name__.replace("_", " ").replace("client ",
                                                          "client: ", 1),
                  test, directory)
        check("both mean the same process, whatever comes between",
              both_mean_the_same_process, directory)
        target.end()
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    sys.exit(failed != 0)


main()
