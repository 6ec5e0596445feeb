/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Opens pidfds for the programs in valgrind until its standard input ends:
 * see pidfd.h. Says "ready" when it can be asked. */
#define _GNU_SOURCE
#include "pidfd.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static void
answer(int client)
{
    PidfdRequest request;
    PidfdReply reply = { 0 };
    struct iovec data = { &reply, sizeof(reply) };
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr header;
    } control = { { 0 } };
    struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1 };
    int pidfd;

    if (recv(client, &request, sizeof(request), 0) != sizeof(request))
        return;
    pidfd = syscall(SYS_pidfd_open, request.pid, request.flags);
    if (pidfd < 0) {
        reply.errnum = errno;
    } else {
        message.msg_control = &control;
        message.msg_controllen = sizeof(control);
        control.header.cmsg_level = SOL_SOCKET;
        control.header.cmsg_type = SCM_RIGHTS;
        control.header.cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(&control.header), &pidfd, sizeof(int));
    }
    sendmsg(client, &message, MSG_NOSIGNAL);
    if (pidfd >= 0)
        close(pidfd);
}

int
main(void)
{
    struct sockaddr_un address;
    socklen_t length = pidfd_address(&address);
    int server = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    struct pollfd waiting[] = {
        { .fd = STDIN_FILENO, .events = POLLIN },
        { .fd = server, .events = POLLIN },
    };

    if (bind(server, (struct sockaddr *) &address, length) < 0
        || listen(server, 128) < 0) {
        perror("pidfd-server");
        return EXIT_FAILURE;
    }
    puts("ready");
    fflush(stdout);
    while (poll(waiting, 2, -1) > 0 && !waiting[0].revents) {
        int client = accept(server, NULL, NULL);

        if (client >= 0) {
            answer(client);
            close(client);
        }
    }
    return EXIT_SUCCESS;
}
