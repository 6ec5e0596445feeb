# SPDX-License-Identifier: LGPL-2.1-or-later
"""All tests, in the order in which they run, and the delegate that most of
them share."""

import support
import stage

import test_operations  # noqa: F401
import test_targets  # noqa: F401
import test_messages  # noqa: F401
import test_bounds  # noqa: F401
import test_policy  # noqa: F401
import test_cgroups  # noqa: F401
import test_descriptors  # noqa: F401
import test_load  # noqa: F401
import test_faults  # noqa: F401
import test_reuse  # noqa: F401
from support import expect, test


def begin():
    stage.begin()


def end():
    stage.end()


@test
def the_delegate_ends_with_the_descriptors_and_threads_it_began_with():
    stage.main.require_flat(stage.at_first)
    expect(stage.main.said(), "", "what the delegate wrote on standard error")
    for root in (support.bed.v2, support.bed.v1):
        if root is not None:
            leftover = [path for path in (root / support.bed.name).rglob(
                "cgroup.threads") if path.read_text()]
            expect(leftover, [], "cgroups that still have processes")
