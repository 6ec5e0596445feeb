/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * valgrind before 3.21 knows no pidfd_open(), without which the library asks
 * no handler. So a process outside valgrind (pidfd-server.c) opens pidfds and
 * sends them to the programs inside, where pidfd-preload.c asks for them.
 */

#ifndef PIDFD_H
# define PIDFD_H

# include <stddef.h>
# include <stdio.h>
# include <stdlib.h>
# include <sys/socket.h>
# include <sys/types.h>
# include <sys/un.h>

typedef struct {
    pid_t pid;
    unsigned int flags;
} PidfdRequest;

/* With a descriptor beside it when @errnum is 0. */
typedef struct {
    int errnum;
} PidfdReply;

/* An abstract socket, whose name is in the environment. */
static inline socklen_t
pidfd_address(struct sockaddr_un *address)
{
    const char *name = getenv("PIDFD_SOCKET");
    char *path = address->sun_path;

    address->sun_family = AF_UNIX;
    path[0] = '\0';
    return offsetof(struct sockaddr_un, sun_path) + 1
        + snprintf(path + 1, sizeof(address->sun_path) - 1, "%s",
                   name ? name : "");
}

#endif /* PIDFD_H */
