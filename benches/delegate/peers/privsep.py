# SPDX-License-Identifier: LGPL-2.1-or-later
"""An empty privileged call through oslo.privsep's daemon.

privsep.py CPUS: the CPUs that the daemon may run on, as 0,1; see rounds.h for
what it reads and prints.
"""

import os
import statistics
import sys
import time

from oslo_config import cfg
from oslo_privsep import priv_context

context = priv_context.PrivContext(__name__, capabilities=[])


@context.entrypoint
def nothing():
    pass


def children():
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return [int(pid) for pid in file.read().split()]


def main():
    cfg.CONF([])
    # The daemon is a child of this thread, and starts others of its own.
    context.start(priv_context.Method.FORK)
    cpus = {int(cpu) for cpu in sys.argv[1].split(",")}
    nothing()
    for child in children():
        for thread in os.listdir(f"/proc/{child}/task"):
            os.sched_setaffinity(int(thread), cpus)
    print("ready", flush=True)
    now = time.perf_counter_ns
    for line in sys.stdin:
        ns = []
        for _ in range(int(line.removeprefix("calls "))):
            start = now()
            nothing()
            ns.append(now() - start)
        print(int(statistics.median(ns)), flush=True)


if __name__ == "__main__":
    main()
