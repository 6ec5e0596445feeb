/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Takes the place of libc's syscall() in a program in valgrind: see pidfd.h. */
#define _GNU_SOURCE
#include "pidfd.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static int
receive_pidfd(int server)
{
    PidfdReply reply;
    struct iovec data = { &reply, sizeof(reply) };
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr header;
    } control;
    struct msghdr message = {
        .msg_iov = &data, .msg_iovlen = 1,
        .msg_control = &control, .msg_controllen = sizeof(control)
    };
    ssize_t length;
    int pidfd;

    /* The kernel's pidfd_open() does not end when a signal comes. */
    do {
        length = recvmsg(server, &message, MSG_CMSG_CLOEXEC);
    } while (length < 0 && errno == EINTR);
    if (length != sizeof(reply))
        return -1;
    if (reply.errnum || !CMSG_FIRSTHDR(&message)) {
        errno = reply.errnum ? reply.errnum : EPROTO;
        return -1;
    }
    memcpy(&pidfd, CMSG_DATA(&control.header), sizeof(pidfd));
    return pidfd;
}

static int
ask_for_pidfd(PidfdRequest request)
{
    struct sockaddr_un address;
    socklen_t length = pidfd_address(&address);
    int server = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    int pidfd = -1;
    int left;

    if (server < 0)
        return -1;
    if (connect(server, (struct sockaddr *) &address, length) == 0
        && send(server, &request, sizeof(request), 0) == sizeof(request))
        pidfd = receive_pidfd(server);
    left = errno;
    close(server);
    errno = left;
    return pidfd;
}

static long (*next)(long number, ...);

__attribute__((constructor))
static void
find_next(void)
{
    next = (long (*)(long, ...)) dlsym(RTLD_NEXT, "syscall");
}

long
syscall(long number, ...)
{
    long a[6];
    va_list args;

    va_start(args, number);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(args, long);
    va_end(args);
    if (number == SYS_pidfd_open) {
        PidfdRequest request = { a[0], a[1] };
        long pidfd;
        int state;

        /* No thread is cancelled in a system call made by syscall(). */
        pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state);
        pidfd = ask_for_pidfd(request);
        pthread_setcancelstate(state, NULL);
        return pidfd;
    }
    return next(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
