/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* reuse SOCKET KIND ROUNDS STOP: the process that a request is about dies while
 * a delegate works on it, and its number is given to another, the victim. To be
 * run in the delegate's PID namespace, whose pid_max is so low that there is
 * one number left; KIND is limit or scheduler. With STOP 1 the delegate is
 * stopped at a random moment, else something else makes it slow. How late that
 * moment may be follows what the delegate does by then: about half of the
 * requests are done in time, on any machine.
 *
 * Prints how many rounds there were, how many answers said that it was done,
 * and how many victims were hit; fails when a hit was not detected or not
 * undone. */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define HARD 65536
/* Nanoseconds: more than any delegate takes, and fewer than any. */
#define LATEST 1000000000L
#define EARLIEST 1000

struct header {
    char magic[4];
    uint32_t protocol, operation, version, size, flags;
    uint64_t request;
};

static struct {
    volatile int hit;
    volatile int ready;
} *shared;

static int is_limit;

static void fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

/* Whether this process has what was asked for another. */
static int is_changed(pid_t pid)
{
    struct rlimit limit;

    if (!is_limit)
        return sched_getscheduler(pid) != SCHED_OTHER;
    if (prlimit(pid, RLIMIT_CORE, NULL, &limit) != 0)
        fail("prlimit");
    return limit.rlim_cur != 0;
}

static pid_t spawn(int is_victim)
{
    pid_t pid = fork();

    if (pid < 0)
        fail("fork");
    if (pid > 0)
        return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    shared->ready = 1;
    while (is_victim) {
        if (is_changed(getpid()))
            shared->hit = 1;
        sched_yield();
    }
    for (;;)
        pause();
}

static void end(pid_t pid)
{
    if (kill(pid, SIGKILL) != 0 || waitpid(pid, NULL, 0) != pid)
        fail("kill");
}

static void send_request(int fd, uint32_t operation, uint32_t version,
                         uint64_t request, const void *body, uint32_t size,
                         int descriptor)
{
    struct header header = {{'V', 'I', 'R', 'd'}, 1, operation, version, size,
                            0, request};
    struct iovec parts[] = {{&header, sizeof(header)}, {(void *)body, size}};
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {.header = {CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};

    if (descriptor >= 0) {
        memcpy(CMSG_DATA(&control.header), &descriptor, sizeof(int));
        message.msg_control = &control;
        message.msg_controllen = sizeof(control);
    }
    if (sendmsg(fd, &message, 0) < 0)
        fail("sendmsg");
}

/* The verdict and errno. */
static void receive(int fd, uint32_t *verdict, int *errnum)
{
    char message[4096];
    ssize_t length = recv(fd, message, sizeof(message), 0);

    if (length < (ssize_t)sizeof(struct header) + 8)
        fail("recv");
    *verdict = *(uint32_t *)(message + sizeof(struct header));
    *errnum = length < (ssize_t)sizeof(struct header) + 12 ? 0 :
        *(int *)(message + sizeof(struct header) + 8);
}

static void nap(long nanoseconds)
{
    struct timespec start, now;

    clock_gettime(CLOCK_MONOTONIC, &start);
    do
        clock_gettime(CLOCK_MONOTONIC, &now);
    while ((now.tv_sec - start.tv_sec) * 1000000000L + now.tv_nsec -
           start.tv_nsec < nanoseconds);
}

int main(int argc, char **argv)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct rlimit limit = {0, HARD};
    uint32_t hello[2] = {0, 0}, verdict;
    struct {
        int32_t tid, policy, priority;
    } scheduler = {0, 1, 0};
    uint64_t bytes = HARD;
    struct ucred delegate;
    socklen_t length = sizeof(delegate);
    long rounds, done = 0, hits = 0, latest;
    int fd, errnum, stop;

    if (argc != 5)
        return 2;
    is_limit = strcmp(argv[2], "limit") == 0;
    rounds = atol(argv[3]);
    stop = atoi(argv[4]);
    latest = stop ? 150000 : 6000000;
    srand48(getpid());
    /* The hard limit is not changed by what is asked: raising it back is not
     * everybody's. */
    if (setrlimit(RLIMIT_CORE, &limit) != 0)
        fail("setrlimit");
    shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE,
                  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    strncpy(address.sun_path, argv[1], sizeof(address.sun_path) - 1);
    if (connect(fd, (void *)&address, sizeof(address)) != 0)
        fail("connect");
    send_request(fd, 0, 0, 1, hello, sizeof(hello), -1);
    receive(fd, &verdict, &errnum);
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &delegate, &length) != 0)
        fail("SO_PEERCRED");
    /* Until all numbers but the last were given. */
    for (;;) {
        pid_t pid = fork();
        if (pid == 0)
            _exit(0);
        if (pid < 0 || waitpid(pid, NULL, 0) != pid)
            fail("fork");
        if (pid == 300)
            break;
    }
    for (long round = 0; round < rounds; round++) {
        pid_t first, victim;
        int pidfd, hit;

        shared->hit = shared->ready = 0;
        first = spawn(0);
        pidfd = syscall(SYS_pidfd_open, first, 0);
        if (pidfd < 0)
            fail("pidfd_open");
        /* On one CPU it may come before this process goes on. */
        if (stop && latest < EARLIEST)
            kill(delegate.pid, SIGSTOP);
        send_request(fd, is_limit ? 4 : 5, 1, round + 2,
                     is_limit ? (void *)&bytes : (void *)&scheduler,
                     is_limit ? sizeof(bytes) : sizeof(scheduler), pidfd);
        nap(lrand48() % latest);
        if (stop)
            kill(delegate.pid, SIGSTOP);
        end(first);
        victim = spawn(1);
        if (victim != first) {
            fprintf(stderr, "number %d and not %d\n", victim, first);
            return 1;
        }
        if (stop)
            kill(delegate.pid, SIGCONT);
        receive(fd, &verdict, &errnum);
        hit = shared->hit || is_changed(victim);
        hits += hit;
        done += verdict == 0;
        if (verdict == 0)
            latest -= latest / 32;
        else if (latest < LATEST)
            latest += latest / 32;
        if (verdict != 0 && !(verdict == 3 && errnum == ESRCH)) {
            fprintf(stderr, "round %ld: verdict %u, errno %d\n", round,
                    verdict, errnum);
            return 1;
        }
        if (hit && verdict == 0) {
            fprintf(stderr, "round %ld: a hit was not detected\n", round);
            return 1;
        }
        if (is_limit && is_changed(victim)) {
            fprintf(stderr, "round %ld: a hit was not undone\n", round);
            return 1;
        }
        end(victim);
        close(pidfd);
    }
    printf("%ld %ld %ld\n", rounds, done, hits);
    return 0;
}
