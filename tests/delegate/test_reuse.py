# SPDX-License-Identifier: LGPL-2.1-or-later
"""A number that becomes another process's while the delegate works on it."""

import json
import subprocess

import support
from support import Skipped, expect, test

# In a PID namespace of its own, whose first process this shell is. The socket's
# file is there before it listens.
SCRIPT = """
mount -t proc proc /proc
"$@" &
until grep -q " 00010000 .* $SOCKET$" /proc/net/unix; do
    kill -0 $! || exit 1
    sleep 0.05
done
echo 301 >/proc/sys/kernel/pid_max || { echo no pid_max; exit 0; }
exec 3>&-
exec "$REUSE" "$SOCKET" "$KIND" "$ROUNDS" "$STOP" "$CGROUP"
"""

POLICY = """
version = 1
[[rule]]
name = "all"
peer = { uid = 0 }
target = { cgroup = "/", uid = 0 }
process-set-max-core-size = { max = 65536 }
process-set-scheduler = { policies = ["batch"] }
cgroup-add-threads = { roles = ["vcpu"], cgroup = "/" }
"""


def reuse(kind, rounds, slow=None):
    """Returns how often it was done, and how many were hit."""
    # All are in one domain: v2 moves no thread from another.
    home = support.bed.cgroup("reuse")
    group = support.bed.cgroup("reuse/moved")
    (group / "cgroup.type").write_text("threaded")
    directory = support.bed.path("reuse")
    directory.mkdir()
    (directory / "policy.toml").write_text(POLICY)
    socket = directory / "socket"
    command = [support.bed.command, "delegate", "--listen", f"unix:{socket}",
               "--policy", directory / "policy.toml", "--audit",
               directory / "audit"]
    if slow:
        command = ["strace", "-f", "-o", "/dev/null", "-e", f"trace={slow}",
                   "-e", f"inject={slow}:delay_enter=2000", *command]
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount", "--kill-child", "sh", "-c",
         SCRIPT, "sh", *command], stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=4 * support.DEADLINE,
        preexec_fn=lambda: (home / "cgroup.procs").write_text("0"),
        env={**support.os.environ, "SOCKET": str(socket), "KIND": kind,
             "ROUNDS": str(rounds), "STOP": "0" if slow else "1",
             "REUSE": str(support.bed.reuse), "CGROUP": str(group)})
    if "no pid_max" in done.stdout:
        raise Skipped("pid_max cannot be set in a PID namespace (Linux 6.14)")
    expect((done.returncode, support.complaints(done.stderr)), (0, ""),
           f"status and errors with {kind}")
    found, handled, hits = (int(word) for word in done.stdout.split())
    expect(found, rounds, "rounds")
    lines = [json.loads(line) for line in open(directory / "audit")]
    expect(len(lines), rounds, "audit lines")
    if kind == "cgroup":
        # One that was moved and moved back before it looked is no hit to it.
        strays = sum((line.get("after") or {}).get("strays", 0)
                     for line in lines)
        expect(strays >= hits, True, f"{strays} strays in the audit of {hits}")
        expect({line["proof"] for line in lines}, {"number"}, "proofs")
    return handled, hits


@test
def a_limit_that_hits_a_reused_number_is_detected_and_undone():
    _, hits = reuse("limit", 300, slow="prlimit64")
    expect(hits > 0, True, "a victim was hit")


@test
def a_scheduler_that_hits_a_reused_number_is_detected():
    _, hits = reuse("scheduler", 300,
                    slow="sched_setscheduler,sched_getattr")
    expect(hits > 0, True, "a victim was hit")


@test
def a_thread_whose_number_is_reused_is_not_moved_for_good():
    _, hits = reuse("cgroup", 300, slow="write")
    expect(hits > 0, True, "a victim was hit")


@test
def thousands_of_reuses_at_full_speed_are_all_detected():
    for kind in ("limit", "scheduler", "cgroup"):
        handled, _ = reuse(kind, 3000)
        expect(0 < handled < 3000, True,
               f"some processes died in time, some did not ({handled})")
