# SPDX-License-Identifier: LGPL-2.1-or-later
"""A FUSE filesystem of one file, which is opened and then never answers. A
process of its own: who serves a file must not have it open when it ends."""

import os
import select
import struct

import support

IN = struct.Struct("=IIQQIIII")
OUT = struct.Struct("=IiQ")
GETATTR, OPEN, FLUSH, INIT = 3, 14, 25, 26


def serve(outside, point):
    """Mounts the file in its own mount namespace; says so, and at the end
    what it was asked and has not answered."""
    support.unshare(support.CLONE_NEWNS)
    support.mount(None, "/", None, support.MS_REC | support.MS_PRIVATE)
    open(point, "w").close()
    device = os.open("/dev/fuse", os.O_RDWR)
    support.mount("silent", point, "fuse", 0,
                  f"fd={device},rootmode=100644,user_id=0,group_id=0,"
                  "allow_other")
    outside.say("mounted")

    def answer(unique, body):
        os.write(device, OUT.pack(OUT.size + len(body), 0, unique) + body)

    asked = []
    while True:
        ready, _, _ = select.select([device, outside.end], [], [])
        if device not in ready:
            outside.hear()
            # Its end ends all that waits for an answer.
            os.close(device)
            return asked
        message = os.read(device, 1 << 17)
        operation, unique = IN.unpack_from(message)[1:3]
        if operation == INIT:
            answer(unique, struct.pack("=IIIIHHIIHHII24x", 7, 31, 0, 0, 16, 16,
                                       4096, 1, 1, 0, 0, 0))
        elif operation == OPEN:
            answer(unique, struct.pack("=QII", 1, 0, 0))
        else:
            asked.append(operation)
