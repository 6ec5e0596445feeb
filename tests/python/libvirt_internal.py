# SPDX-License-Identifier: LGPL-2.1-or-later
"""libvirt-internal for Python, by ctypes: its prototypes, and handlers that
stay alive as long as the library may call them."""

import ctypes
import errno
import os
import pathlib
import traceback
from ctypes import (CFUNCTYPE, POINTER, c_char_p, c_int, c_size_t, c_ubyte,
                    c_uint, c_ulonglong, c_void_p)

HANDLED = 0
NOT_HANDLED = 1
NO_DIRECT = 1 << 30
HANDLER_FORK_SAFE = 1 << 0
DELEGATE_VERSION = 1
DELEGATE_OPTIONAL = 1 << 0

(ERR_INVALID_ARG, ERR_VERSION, ERR_NO_PROCESS, ERR_REFUSED, ERR_FAILED,
 ERR_READ_BACK, ERR_UNREACHABLE, ERR_TIMEOUT, ERR_UNKNOWN_OUTCOME, ERR_FORKED,
 ERR_UNSUPPORTED) = range(1, 12)

SCHED_NONE, SCHED_BATCH, SCHED_IDLE, SCHED_FIFO, SCHED_RR = range(5)
SCHED_OTHER = 0x100

THREAD_VCPU, THREAD_EMULATOR, THREAD_IOTHREAD, THREAD_HELPER = range(4)

_stage = pathlib.Path(__file__).resolve().parents[2] / "target/stage/lib"
# Not PyDLL: a set function waits for handlers, and they need Python's lock.
_library = ctypes.CDLL(
    os.environ.get("LIBVIRT_INTERNAL_SO", _stage / "libvirt-internal.so.0"),
    use_errno=True)


class _Error(ctypes.Structure):
    _fields_ = [("code", c_int), ("errnum", c_int), ("operation", c_uint),
                ("message", c_char_p)]


def _function(name, result, *arguments):
    function = _library["virInternal" + name]
    function.restype = result
    function.argtypes = arguments
    return function


_get_last_error = _function("GetLastError", POINTER(_Error))
reset_last_error = _function("ResetLastError", None)
secure_erase = _function("SecureErase", None, c_void_p, c_size_t)
secure_erase_string = _function("SecureEraseString", None, c_char_p)


class Error(OSError):
    """What went wrong in a call: errno, code, operation and message."""

    def __init__(self, errnum):
        error = last_error()
        self.code = error.code if error else 0
        self.operation = error.operation if error else 0
        self.message = error.message.decode() if error else "no last error"
        super().__init__(errnum, self.message)


def last_error():
    """The thread's last error, or None; good until the thread's next call."""
    error = _get_last_error()
    return error.contents if error else None


def _check(result):
    if result == -1:
        raise Error(ctypes.get_errno())
    return result


_connection_closed = _function("ConnectionClosed", c_int, c_void_p)


def connection_closed(conn):
    """Drops all that was set for @conn."""
    _check(_connection_closed(conn))


_connect_delegate = _function("ConnectDelegate", c_int, c_void_p, c_uint,
                              c_char_p, c_uint, c_uint)
_disconnect_delegate = _function("DisconnectDelegate", c_int, c_void_p)
_ask_delegate = _function("AskDelegate", c_int, c_void_p, c_ulonglong, c_uint)
last_request = _function("GetLastRequest", c_ulonglong)


def connect_delegate(address, conn=None, timeout_ms=0, flags=0,
                     version=DELEGATE_VERSION):
    """Has the delegate at @address asked from now on."""
    _check(_connect_delegate(conn, version, address.encode(), timeout_ms,
                             flags))


def disconnect_delegate(conn=None):
    """Asks no delegate any more."""
    _check(_disconnect_delegate(conn))


def ask_delegate(request, conn=None):
    """What became of a request that was never answered: as it would have
    ended."""
    return _check(_ask_delegate(conn, request, 0))


# What the library may call or hand back: by the number that is the opaque.
_alive = {}
_last_opaque = 0
_FreeCallback = CFUNCTYPE(None, c_void_p)


@_FreeCallback
def _free(opaque):
    _, freed = _alive.pop(opaque)
    if freed:
        freed()


def _answers(handler):
    """What the library calls for @handler. An exception must not leave it:
    ctypes would print it, and answer whatever was left on the stack."""
    def answer(*arguments):
        try:
            return handler(*arguments[:-1])
        except BaseException:
            traceback.print_exc()
            return -errno.EIO
    return answer


class Operation:
    """An operation and its set function."""

    def __init__(self, identifier, name, *arguments):
        self.id = identifier
        self.version = 1
        self._call = _function(name, c_int, c_void_p, *arguments, c_uint)
        self._handler_type = CFUNCTYPE(c_int, *arguments, c_void_p)
        self._set = _function(f"Set{name}Handler", c_int, c_void_p, c_uint,
                              self._handler_type, c_void_p, _FreeCallback,
                              c_uint)

    def __call__(self, *arguments, conn=None, flags=0):
        """Returns HANDLED or NOT_HANDLED, or raises Error."""
        return _check(self._call(conn, *arguments, flags))

    def set(self, handler, conn=None, freed=None, flags=0, version=None):
        """Calls @handler with the operation's arguments from now on, and
        @freed() when it is gone."""
        global _last_opaque
        _last_opaque += 1
        opaque = _last_opaque
        code = self._handler_type(_answers(handler))
        _alive[opaque] = (code, freed)
        version = self.version if version is None else version
        try:
            _check(self._set(conn, version, code, opaque, _free, flags))
        except Error:
            del _alive[opaque]
            raise

    def unset(self, conn=None):
        """Calls no handler any more."""
        nobody = self._handler_type()
        _check(self._set(conn, self.version, nobody, None, _FreeCallback(), 0))


_cpumap = (POINTER(c_ubyte), c_int)

process_set_max_mem_lock = Operation(
    1, "ProcessSetMaxMemLock", c_int, c_ulonglong)
process_set_max_processes = Operation(
    2, "ProcessSetMaxProcesses", c_int, c_uint)
process_set_max_files = Operation(
    3, "ProcessSetMaxFiles", c_int, c_uint)
process_set_max_core_size = Operation(
    4, "ProcessSetMaxCoreSize", c_int, c_ulonglong)
process_set_scheduler = Operation(
    5, "ProcessSetScheduler", c_int, c_int, c_int, c_int)
process_set_affinity = Operation(
    6, "ProcessSetAffinity", c_int, c_int, *_cpumap)
cgroup_add_threads = Operation(
    7, "CgroupAddThreads", c_int, c_char_p, c_int, POINTER(c_int),
    POINTER(c_uint), c_size_t, *_cpumap, POINTER(c_int))


def cpumap(*cpus):
    """libvirt's map of these CPUs, and its length."""
    length = max(cpus, default=0) // 8 + 1
    bits = sum(1 << cpu for cpu in cpus)
    return (c_ubyte * length)(*bits.to_bytes(length, "little")), length
