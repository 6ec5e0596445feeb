/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* reuse SOCKET KIND ROUNDS STOP [CGROUP]: the process or thread that a request
 * is about dies while a delegate works on it, and its number is given to another
 * process, the victim. To be run in the delegate's PID namespace, whose pid_max
 * is so low that there is one number left; KIND is limit, scheduler, or cgroup,
 * which is to move a thread to CGROUP. With STOP 1 the delegate is stopped at a
 * random moment, else something else makes it slow. How late that moment may be
 * follows what the delegate does by then: about half of the requests are done in
 * time, on any machine.
 *
 * Prints how many rounds there were, how many answers said that it was done,
 * and how many victims were hit; fails when a hit was not detected or not
 * undone. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
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
    /* The thread, which its process makes when this gets odd, and which ends
     * when it changes again. */
    volatile long wanted;
    volatile pid_t tid;
} *shared;

static enum { LIMIT, SCHEDULER, CGROUP } kind;

/* The name of the cgroup's directory. */
static const char *group_name;

static void fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

static int is_in_group(pid_t pid)
{
    char path[64], text[4096], *place, *end;
    ssize_t length;
    int fd;

    snprintf(path, sizeof(path), "/proc/%d/cgroup", pid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || (length = read(fd, text, sizeof(text) - 1)) < 0)
        fail(path);
    close(fd);
    text[length] = '\0';
    place = strstr(text, "0::/");
    if (!place || !(end = strchr(place, '\n')))
        fail("no cgroup of v2");
    *end = '\0';
    return strcmp(strrchr(place, '/') + 1, group_name) == 0;
}

/* Whether this process has what was asked for another. */
static int is_changed(pid_t pid)
{
    struct rlimit limit;

    if (kind == SCHEDULER)
        return sched_getscheduler(pid) != SCHED_OTHER;
    if (kind == CGROUP)
        return is_in_group(pid);
    if (prlimit(pid, RLIMIT_CORE, NULL, &limit) != 0)
        fail("prlimit");
    return limit.rlim_cur != 0;
}

static pid_t spawn(int is_victim)
{
    pid_t pid;

    /* A thread's number is free some time after it has exited. */
    while ((pid = fork()) < 0)
        if (errno != EAGAIN || kind != CGROUP)
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

static void *be_thread(void *wanted)
{
    shared->tid = syscall(SYS_gettid);
    while (shared->wanted == (long)wanted)
        sched_yield();
    return NULL;
}

/* A process that has the thread, when it is wanted. */
static pid_t spawn_owner(void)
{
    pid_t pid = fork();
    pthread_attr_t attributes;
    pthread_t thread;

    if (pid < 0)
        fail("fork");
    if (pid > 0)
        return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    for (long made = 0, wanted;; made = wanted) {
        while ((wanted = shared->wanted) == made || wanted % 2 == 0)
            usleep(50);
        while (pthread_create(&thread, &attributes, be_thread,
                              (void *)wanted) != 0)
            sched_yield();
    }
}

static pid_t start_thread(void)
{
    shared->tid = 0;
    shared->wanted++;
    while (!shared->tid)
        sched_yield();
    return shared->tid;
}

static void end(pid_t pid)
{
    if (kill(pid, SIGKILL) != 0 || waitpid(pid, NULL, 0) != pid)
        fail("kill");
}

static void send_request(int fd, uint32_t operation, uint32_t version,
                         uint64_t request, const void *body, uint32_t size,
                         const int *descriptors, int count)
{
    struct header header = {{'V', 'I', 'R', 'd'}, 1, operation, version, size,
                            0, request};
    struct iovec parts[] = {{&header, sizeof(header)}, {(void *)body, size}};
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(2 * sizeof(int))];
    } control = {.header = {CMSG_LEN(count * sizeof(int)), SOL_SOCKET,
                            SCM_RIGHTS}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};

    if (count > 0) {
        memcpy(CMSG_DATA(&control.header), descriptors, count * sizeof(int));
        message.msg_control = &control;
        message.msg_controllen = CMSG_SPACE(count * sizeof(int));
    }
    if (sendmsg(fd, &message, 0) < 0)
        fail("sendmsg");
}

struct answer {
    uint32_t verdict, code;
    int32_t errnum;
    uint32_t results, text, reserved;
    /* Of the thread, if there are results. */
    int32_t result;
};

static struct answer receive(int fd)
{
    char message[4096];
    struct answer answer = {0};
    ssize_t length = recv(fd, message, sizeof(message), 0) -
        sizeof(struct header);

    if (length < 8)
        fail("recv");
    if (length > (ssize_t)sizeof(answer))
        length = sizeof(answer);
    memcpy(&answer, message + sizeof(struct header), length);
    if (answer.results == 0)
        answer.result = 0;
    return answer;
}

/* Whether it says that there was nobody any more to do it to. */
static int is_gone(const struct answer *answer)
{
    if (answer->verdict == 3)
        /* The number was the victim's when it came. */
        return answer->errnum == (kind == CGROUP ? EINVAL : ESRCH);
    return answer->verdict == 0 && answer->result == -ESRCH;
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
    uint32_t hello[2] = {0, 0};
    struct {
        int32_t tid, policy, priority;
    } scheduler = {0, 1, 0};
    struct {
        uint32_t role, count, has_ids, has_group, map_length;
        int32_t tid;
    } threads = {0, 1, 0, 1, 0, 0};
    uint64_t bytes = HARD;
    const struct {
        uint32_t operation;
        const void *body;
        uint32_t size;
    } requests[] = {
        [LIMIT] = {4, &bytes, sizeof(bytes)},
        [SCHEDULER] = {5, &scheduler, sizeof(scheduler)},
        [CGROUP] = {7, &threads, sizeof(threads)},
    }, *request;
    struct ucred delegate;
    struct answer answer;
    socklen_t length = sizeof(delegate);
    long rounds, done = 0, hits = 0, latest;
    int fd, stop, descriptors[2];
    pid_t owner = 0;

    if (argc < 5)
        return 2;
    kind = strcmp(argv[2], "limit") == 0 ? LIMIT :
        strcmp(argv[2], "scheduler") == 0 ? SCHEDULER : CGROUP;
    request = &requests[kind];
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
    send_request(fd, 0, 0, 1, hello, sizeof(hello), NULL, 0);
    receive(fd);
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &delegate, &length) != 0)
        fail("SO_PEERCRED");
    if (kind == CGROUP) {
        if (argc < 6)
            return 2;
        group_name = strrchr(argv[5], '/') + 1;
        descriptors[1] = open(argv[5], O_PATH | O_CLOEXEC);
        if (descriptors[1] < 0)
            fail(argv[5]);
        owner = spawn_owner();
    }
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
        int hit, is_done;

        shared->hit = shared->ready = 0;
        first = owner ? (threads.tid = start_thread()) : spawn(0);
        descriptors[0] = syscall(SYS_pidfd_open, owner ? owner : first, 0);
        if (descriptors[0] < 0)
            fail("pidfd_open");
        /* On one CPU it may come before this process goes on. */
        if (stop && latest < EARLIEST)
            kill(delegate.pid, SIGSTOP);
        send_request(fd, request->operation, 1, round + 2, request->body,
                     request->size, descriptors, owner ? 2 : 1);
        nap(lrand48() % latest);
        if (stop)
            kill(delegate.pid, SIGSTOP);
        if (owner)
            shared->wanted++;
        else
            end(first);
        victim = spawn(1);
        if (victim != first) {
            fprintf(stderr, "number %d and not %d\n", victim, first);
            return 1;
        }
        if (stop)
            kill(delegate.pid, SIGCONT);
        answer = receive(fd);
        hit = shared->hit || is_changed(victim);
        is_done = answer.verdict == 0 && answer.result == 0;
        hits += hit;
        done += is_done;
        if (is_done)
            latest -= latest / 32;
        else if (latest < LATEST)
            latest += latest / 32;
        if (!is_done && !is_gone(&answer)) {
            fprintf(stderr, "round %ld: verdict %u, errno %d, result %d\n",
                    round, answer.verdict, answer.errnum, answer.result);
            return 1;
        }
        if (hit && is_done) {
            fprintf(stderr, "round %ld: a hit was not detected\n", round);
            return 1;
        }
        if (kind != SCHEDULER && is_changed(victim)) {
            fprintf(stderr, "round %ld: a hit was not undone\n", round);
            return 1;
        }
        end(victim);
        close(descriptors[0]);
    }
    printf("%ld %ld %ld\n", rounds, done, hits);
    return 0;
}
