# SPDX-License-Identifier: LGPL-2.1-or-later
import errno, os, resource, sys
from ctypes import CDLL, CFUNCTYPE, c_int, c_uint, c_ulonglong, c_void_p, get_errno

vir = CDLL("libvirt-internal.so.0", use_errno=True)
set_max_mem_lock = vir.virInternalProcessSetMaxMemLock
set_max_mem_lock.argtypes = c_void_p, c_int, c_ulonglong, c_uint

@CFUNCTYPE(c_int, c_int, c_ulonglong, c_void_p)
def handler(pid, size, opaque):  # must stay alive as long as it is set
    try:
        resource.prlimit(pid, resource.RLIMIT_MEMLOCK, (size, size))
        return 0  # handled: the library now reads the limit back
    except Exception:  # must not leave the handler
        return -errno.EPERM

vir.virInternalSetProcessSetMaxMemLockHandler(None, 1, handler, None, None, 0)
if set_max_mem_lock(None, int(sys.argv[1]), int(sys.argv[2]), 0) == -1:
    sys.exit(os.strerror(get_errno()))
