# SPDX-License-Identifier: LGPL-2.1-or-later
"""A policy that does not say what its author meant must not be in force."""

import os
import subprocess

import stage
import support
import wire
from support import Delegate, Qemu, as_peer, call, connect_delegate, expect, test
from wire import Connection


def run(policy, *arguments):
    """Runs the delegate; it is to end by itself."""
    path = support.bed.path("policy.toml")
    path.write_text(policy)
    try:
        done = subprocess.run(
            [support.bed.command, "delegate", "--policy", path, *arguments],
            stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=support.DEADLINE)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"it runs with the policy:\n{policy}") from None
    return done.returncode, done.stdout + done.stderr


def good(name="a", peer="uid = 107", rest="", cgroup="/x"):
    return f"""
version = 1
[[rule]]
name = "{name}"
peer = {{ {peer} }}
target = {{ cgroup = "{cgroup}" }}
process-set-max-files = {{ max = 100 }}
{rest}
"""


@test
def a_mistyped_field_is_an_error_when_the_delegate_starts():
    wrong = {
        "peer's field": good(peer="uid = 107, cgruop = '/x'"),
        "peer's case": good(peer="UID = 107"),
        "target's field": good().replace("cgroup =", "cgroups ="),
        "operation": good(rest="process-set-max-file = { max = 1 }"),
        "operation with underscores": good(
            rest="process_set_max_core_size = { max = 1 }"),
        "bound": good(rest="process-set-max-core-size = { maximum = 1 }"),
        "bound twice": good(
            rest="process-set-max-core-size = { max = 1, max = 2 }"),
        "bound's case": good(rest="process-set-max-core-size = { Max = 1 }"),
        "quota": good(rest="quota = { connection = 1 }"),
        "top": good() + "\n[hosts]\n",
        "host": good() + "\n[host]\ncgroup-hierarchies = 'v2'\n",
        "rules": good().replace("[[rule]]", "[[rules]]"),
        "version": good().replace("version = 1", "version = 2"),
        "no version": good().replace("version = 1", ""),
        "no name": good().replace('name = "a"', ""),
        "no peer": good().replace("peer = { uid = 107 }", ""),
        "empty peer": good(peer=""),
        "empty uid": good(peer="uid = []"),
        "empty label": good(peer="label = ''"),
        "no bound": good(rest="process-set-max-core-size = {}"),
        "nothing allowed": good().replace(
            "process-set-max-files = { max = 100 }", ""),
        "number as text": good().replace("max = 100", "max = '100'"),
        "negative": good().replace("max = 100", "max = -1"),
        "fraction": good().replace("max = 100", "max = 1.5"),
        "too large": good().replace("max = 100", "max = 4294967296"),
        "uid of nobody": good(peer="uid = 4294967295"),
        "uid that wraps": good(peer="uid = 4294967403"),
        "root for every target": good(cgroup="/"),
        "twice the same name": good() + good().replace("version = 1", ""),
        "no TOML": good() + "\n[",
        "cut short": good()[:-20],
    }
    for what, policy in wrong.items():
        socket = support.bed.path("socket")
        code, said = run(policy, "--listen", f"unix:{socket}")
        expect(code != 0, True, f"it ends with an error ({what}: {said})")
        expect("policy.toml" in said, True, f"it names the file ({said})")
        expect(socket.exists(), False, f"it has listened ({what})")
        expect(run(policy, "--check")[0] != 0, True, f"--check finds {what}")
    expect(run(good(), "--check")[0], 0, "status of --check without a mistake")


@test
def a_missing_policy_is_an_error_when_the_delegate_starts():
    socket = support.bed.path("socket")
    for policy in ("/nonexistent", "/dev/null", str(support.bed.directory)):
        done = subprocess.run(
            [support.bed.command, "delegate", "--policy", policy, "--listen",
             f"unix:{socket}"], stdin=subprocess.DEVNULL, capture_output=True,
            timeout=support.DEADLINE)
        expect(done.returncode != 0, True, f"it ends with an error: {policy}")
    expect(socket.exists(), False, "it has listened")


@test
def names_labels_and_paths_are_taken_up_to_their_length_and_not_above():
    deep = "/" + "/".join(["d" * 255] * 15)
    cases = {
        "a name of 255": (good(name="n" * 255), True),
        "a name of 256": (good(name="n" * 256), False),
        "a name of 127 two-byte letters": (good(name="ä" * 127), True),
        "a name of 128 two-byte letters": (good(name="ä" * 128), False),
        "no name": (good(name=""), False),
        "a name with a NUL": (good(name="a\\u0000b"), False),
        "a name with a newline": (good(name="a\\nb"), False),
        "a label of 255": (good(peer=f"label = '{'l' * 255}'"), True),
        "a label of 256": (good(peer=f"label = '{'l' * 256}'"), False),
        "a component of 255": (good(cgroup="/" + "c" * 255), True),
        "a component of 256": (good(cgroup="/" + "c" * 256), False),
        "a path of 4095": (good(cgroup=deep + "/" + "e" * 254), True),
        "a path of 4096": (good(cgroup=deep + "/" + "e" * 255), False),
        "a relative path": (good(cgroup="x"), False),
        "a path with ..": (good(cgroup="/x/../y"), False),
        "a path with .": (good(cgroup="/x/./y"), False),
        "a path with //": (good(cgroup="/x//y"), False),
        "a path with / at its end": (good(cgroup="/x/"), False),
        "a path with a NUL": (good(cgroup="/x\\u0000"), False),
    }
    for what, (policy, is_good) in cases.items():
        code, said = run(policy, "--check")
        expect(code == 0, is_good, f"--check takes {what} ({said})")


@test
def a_socket_path_is_taken_up_to_its_length_and_not_above():
    directory = str(support.bed.path("d"))
    os.mkdir(directory)
    longest = f"{directory}/{'s' * (107 - len(directory) - 1)}"
    code, said = run(good(), "--listen", f"unix:{longest}x")
    expect(code != 0, True, f"it ends with an error ({said})")
    # Not cut short either.
    expect(os.listdir(directory), [], "files that were made")


def _ask(outside, path):
    try:
        with Connection(path) as connection, Qemu() as qemu:
            return connection.ask(wire.MAX_CORE_SIZE, wire.bytes_limit(0),
                                  [qemu.pidfd]).verdict
    except wire.Stranger:
        return "no rule"


@test
def a_label_is_compared_whole():
    """One that is longer, shorter or alike is another's."""
    allowed = "l" * 254
    policy = "version = 1\n" + stage.rule(
        "labelled", 0, "root", "process-set-max-core-size = { max = 0 }"
    ).replace("peer = {", f"peer = {{ label = '{allowed}',")
    directory = support.bed.path("labels")
    directory.mkdir()
    # The shell's view of a label is the socket's name, too: shorter ones here.
    labels = {"same": allowed, "longer": allowed + "l", "shorter": "l" * 253,
              "capital": "L" * 254, "space": allowed[:-1] + " "}
    with LabelledDelegate(policy, labels) as delegate:
        found = {what: as_peer(_ask, delegate.sockets[what],
                               cgroup=stage.cgroup("root"))
                 for what in labels}
    expect(found, {"same": "handled", "longer": "no rule",
                   "shorter": "no rule", "capital": "no rule",
                   "space": "no rule"}, "verdicts")


class LabelledDelegate(Delegate):
    """Its sockets are named by what the labels are like."""

    def __init__(self, policy, labels):
        self.labels = labels
        super().__init__(policy, labels)

    def label(self, name):
        return self.labels[name]


def _lacking(outside, path):
    verdicts = {}
    with Connection(path) as connection, Qemu(1) as qemu:
        for operation, body in wire.PLAIN.items():
            verdicts[wire.OPERATIONS[operation]] = connection.ask(
                operation, body, [qemu.pidfd]).verdict
        verdicts["cgroup-add-threads"] = connection.ask(
            wire.ADD_THREADS, wire.add_threads(qemu.tids, group=False),
            [qemu.pidfd]).verdict
    return verdicts


@test
def an_operation_that_a_rule_lacks_is_refused():
    lines = [line for line in stage.ALL.strip().splitlines()]
    for line in lines:
        operation = line.split(" = ")[0]
        policy = "version = 1\n" + stage.rule("lacks", 0, "root", "\n".join(
            other for other in lines if other != line))
        with Delegate(policy) as delegate:
            verdicts = as_peer(_lacking, delegate.socket,
                               cgroup=stage.cgroup("root"))
        others = [verdict for name, verdict in verdicts.items()
                  if name not in (operation, "cgroup-add-threads")]
        expect(verdicts[operation], "refused", operation)
        expect(set(others), {"handled"}, f"others without {operation}")


@test
def a_policy_without_rules_refuses_everything():
    with Delegate("version = 1\n") as delegate:
        place = {"cgroup": stage.cgroup("root")}
        expect(as_peer(_ask, delegate.socket, **place), "no rule", "verdict")
        code, errnum, message = as_peer(_environment, delegate.socket, **place)
        expect([code, errnum], [4, support.errno.EPERM], message)


def _environment(outside, path):
    connect_delegate(path)
    with Qemu() as qemu:
        return call(support.vir.process_set_max_core_size, qemu.pid, 0)


@test
def a_delegate_does_not_ask_the_delegate_of_its_own_environment():
    """Itself, another, or none that there is."""
    policy = "version = 1\n" + stage.rule("root", 0, "root")
    with Delegate(policy) as first:
        for address in (first.socket, "/nonexistent", None):
            value = f"unix:{address}" if address else "nonsense"
            with Delegate(policy, environment={
                    "LIBVIRT_INTERNAL_DELEGATE": value}) as delegate:
                mark = operations(first)
                expect(as_peer(_environment, delegate.socket,
                               cgroup=stage.cgroup("root")), [0, 0, ""],
                       f"with LIBVIRT_INTERNAL_DELEGATE={value}")
                expect(operations(first), mark, "audit lines of the other delegate")
    # Its own socket, whose name is known before.
    path = support.bed.path("own")
    with NamedDelegate(policy, path) as delegate:
        expect(as_peer(_environment, delegate.socket,
                       cgroup=stage.cgroup("root")), [0, 0, ""],
               "with its own address")
        expect(operations(delegate), 1, "audit lines")


def operations(delegate):
    """How many there were."""
    return sum(line["event"] == "operation" for line in delegate.lines())


class NamedDelegate(Delegate):
    def __init__(self, policy, path):
        self.path = str(path)
        super().__init__(policy, environment={
            "LIBVIRT_INTERNAL_DELEGATE": f"unix:{path}"})

    def address(self, label):
        return self.path


@test
def the_command_is_not_setuid_and_has_no_capabilities():
    """It trusts its environment and arguments: nobody may give it any."""
    mode = os.stat(support.bed.command).st_mode
    expect(mode & 0o6000, 0, "setuid and setgid bits")
    expect("security.capability" in os.listxattr(support.bed.command), False,
           "file capabilities")
