/* SPDX-License-Identifier: LGPL-2.1-or-later */
#define _GNU_SOURCE
#include "delegate.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *
directory_of(pid_t test)
{
    const char *base = getenv("TMPDIR");

    return text("%s/%s", base ? base : "/tmp",
                name_of_test("virt-internal", test));
}

const char *
delegate_directory(void)
{
    static char directory[256];

    if (!*directory) {
        snprintf(directory, sizeof(directory), "%s", directory_of(getpid()));
        must(mkdir(directory, 0755));
    }
    return directory;
}

void
delegate_remove_directory(pid_t test)
{
    const char *directory = directory_of(test);
    DIR *open = opendir(directory);
    struct dirent *entry;

    if (!open)
        return;
    while ((entry = readdir(open)))
        unlinkat(dirfd(open), entry->d_name, 0);
    closedir(open);
    rmdir(directory);
}

void
delegate_wait_for(const char *file, int line, const char *what,
                  const int *number, int wanted)
{
    const int seconds = 100;

    for (int i = 0; i < seconds * 1000; i++) {
        if (__atomic_load_n(number, __ATOMIC_ACQUIRE) == wanted)
            return;
        usleep(1000);
    }
    runner_fail(file, line, "expected %s to become %d, found %d after %d s",
                what, wanted, *number, seconds);
}

/* Messages. */

void
wire_send(int connection, const void *message, size_t length)
{
    /* It may be gone by now. */
    send(connection, message, length, MSG_NOSIGNAL | MSG_EOR);
}

bool
wire_receive(Fake *fake, int connection, WireMessage *message)
{
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(16 * sizeof(int))];
    } control;
    struct iovec buffer = { message, offsetof(WireMessage, length) };
    struct msghdr received = {
        .msg_iov = &buffer, .msg_iovlen = 1,
        .msg_control = &control, .msg_controllen = sizeof(control)
    };
    FakeShared *shared = fake->shared;
    struct cmsghdr *header;
    ssize_t length;

    do {
        length = recvmsg(connection, &received, MSG_CMSG_CLOEXEC);
    } while (length < 0 && errno == EINTR);
    if (length <= 0)
        return false;
    message->length = length;
    message->descriptors = 0;
    header = CMSG_FIRSTHDR(&received);
    if (header) {
        message->descriptors = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (int i = 0; i < message->descriptors; i++) {
            int fd;

            memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof(int));
            close(fd);
        }
    }
    if (message->header.operation != WIRE_HELLO) {
        shared->request = message->header.request;
        shared->operation = message->header.operation;
        shared->descriptors = message->descriptors;
        shared->length = message->length;
        __atomic_add_fetch(&shared->requests, 1, __ATOMIC_RELEASE);
    }
    return true;
}

void
wire_hello(int connection, uint32_t operations)
{
    struct {
        WireHeader header;
        uint32_t count, reserved;
        struct { uint32_t operation, lowest, highest; } spoken[OPERATIONS];
    } hello;
    size_t length = offsetof(__typeof__(hello), spoken)
        + operations * sizeof(hello.spoken[0]);

    memset(&hello, 0, sizeof(hello));
    hello.header.magic = WIRE_MAGIC;
    hello.header.protocol = WIRE_PROTOCOL;
    hello.header.size = length - sizeof(WireHeader);
    hello.count = operations;
    for (uint32_t i = 0; i < operations; i++) {
        hello.spoken[i].operation = i + 1;
        hello.spoken[i].lowest = hello.spoken[i].highest = 1;
    }
    wire_send(connection, &hello, length);
}

bool
wire_greet(Fake *fake, int connection)
{
    WireMessage message;

    if (!wire_receive(fake, connection, &message))
        return false;
    wire_hello(connection, OPERATIONS);
    return true;
}

size_t
wire_results(const WireMessage *request)
{
    uint32_t count = 0;

    /* Role, then how many threads. */
    if (request->header.operation == VIR_INTERNAL_OP_CGROUP_ADD_THREADS)
        memcpy(&count, request->body + sizeof(uint32_t), sizeof(count));
    return count;
}

void
wire_answer(int connection, const WireHeader *request, WireAnswer answer,
            const int32_t *results, const char *text)
{
    struct {
        WireHeader header;
        WireAnswer answer;
        char rest[WIRE_BODY_MAX];
    } message = { .header = *request };
    size_t size = answer.results * sizeof(int32_t);

    answer.text = text ? strlen(text) : 0;
    message.answer = answer;
    message.header.flags = 0;
    memset(message.rest, 0, size);
    if (results)
        memcpy(message.rest, results, size);
    if (text)
        memcpy(message.rest + size, text, answer.text);
    message.header.size = sizeof(WireAnswer) + size + answer.text;
    wire_send(connection, &message, sizeof(WireHeader) + message.header.size);
}

/* Peers. */

void
peer_obey(Fake *fake, int connection)
{
    WireMessage message;

    if (!wire_greet(fake, connection))
        return;
    while (wire_receive(fake, connection, &message)) {
        WireAnswer answer = { .results = wire_results(&message) };

        if (message.header.operation >= 1
            && message.header.operation <= OPERATIONS)
            operations[message.header.operation - 1].act(fake->shared->pid);
        wire_answer(connection, &message.header, answer, NULL, NULL);
    }
}

void
peer_say(Fake *fake, int connection)
{
    WireMessage message;

    if (!wire_greet(fake, connection))
        return;
    while (wire_receive(fake, connection, &message)) {
        WireAnswer answer = fake->shared->answer;

        answer.results = wire_results(&message);
        wire_answer(connection, &message.header, answer, NULL,
                    fake->shared->text);
    }
}

void
peer_silent(Fake *fake, int connection)
{
    WireMessage message;

    if (!wire_greet(fake, connection))
        return;
    while (wire_receive(fake, connection, &message))
        continue;
}

/* The fake's process. */

typedef struct {
    Fake *fake;
    int connection;
} Served;

static void *
serve(void *argument)
{
    Served served = *(Served *) argument;

    free(argument);
    served.fake->peer(served.fake, served.connection);
    close(served.connection);
    __atomic_add_fetch(&served.fake->shared->ended, 1, __ATOMIC_RELEASE);
    return NULL;
}

__attribute__((noreturn))
static void
be_a_fake(Fake *fake)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGPIPE, SIG_IGN);
    for (;;) {
        int connection = accept(fake->listener, NULL, NULL);
        Served *served;
        pthread_t thread;

        if (connection < 0)
            continue;
        served = malloc(sizeof(*served));
        *served = (Served) { fake, connection };
        __atomic_add_fetch(&fake->shared->accepted, 1, __ATOMIC_RELEASE);
        if (pthread_create(&thread, NULL, serve, served) != 0)
            FAIL("a fake cannot make its threads");
        pthread_detach(thread);
    }
}

static int
listen_at(const char *address, int backlog)
{
    struct sockaddr_un name = { .sun_family = AF_UNIX };
    int listener = must(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));

    strncpy(name.sun_path, address + strlen("unix:"), sizeof(name.sun_path));
    unlink(name.sun_path);
    must(bind(listener, (struct sockaddr *) &name, sizeof(name)));
    must(listen(listener, backlog));
    return listener;
}

static Fake *
new_fake(FakePeer peer)
{
    Fake *fake = calloc(1, sizeof(*fake));

    fake->peer = peer;
    fake->listener = -1;
    fake->shared = mmap(NULL, sizeof(FakeShared), PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    expect_true(fake->shared != MAP_FAILED);
    return fake;
}

static void
start(Fake *fake, int backlog)
{
    fake->listener = listen_at(fake->address, backlog);
    if (!fake->peer)
        return;
    fake->pid = must(fork());
    if (fake->pid == 0)
        be_a_fake(fake);
    close(fake->listener);
    fake->listener = -1;
}

Fake *
fake_start(const char *name, FakePeer peer, int backlog)
{
    Fake *fake = new_fake(peer);
    char address[512];

    snprintf(address, sizeof(address), "unix:%s/%s", delegate_directory(),
             name);
    fake->address = strdup(address);
    start(fake, backlog);
    return fake;
}

Fake *
fake_start_on(int connection, FakePeer peer)
{
    Fake *fake = new_fake(peer);

    fake->shared->accepted = 1;
    fake->pid = must(fork());
    if (fake->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        /* The other end is the test's alone. */
        for (int fd = 3; fd < 1024; fd++) {
            if (fd != connection)
                close(fd);
        }
        peer(fake, connection);
        close(connection);
        __atomic_add_fetch(&fake->shared->ended, 1, __ATOMIC_RELEASE);
        for (;;)
            pause();
    }
    close(connection);
    return fake;
}

void
fake_kill(Fake *fake)
{
    if (fake->listener >= 0)
        close(fake->listener);
    fake->listener = -1;
    if (fake->pid) {
        must(kill(fake->pid, SIGKILL));
        must(waitpid(fake->pid, NULL, 0));
    }
    fake->pid = 0;
}

void
fake_stop(Fake *fake)
{
    fake_kill(fake);
    munmap(fake->shared, sizeof(FakeShared));
    free((char *) fake->address);
    free(fake);
}

void
fake_restart(Fake *fake)
{
    start(fake, 128);
}

/* The real delegate. */

#define EVERYTHING_OF_ROOT \
    "version = 1\n" \
    "[quota]\n" \
    "connections = 10000\n" \
    "concurrent = 10000\n" \
    "[[rule]]\n" \
    "name = \"tests\"\n" \
    "peer = { uid = 0 }\n" \
    "target = { cgroup = \"/\", uid = 0 }\n" \
    "process-set-max-mem-lock = { max = \"unlimited\" }\n" \
    "process-set-max-processes = { max = 1000000 }\n" \
    "process-set-max-files = { max = 1000000000 }\n" \
    "process-set-max-core-size = { max = \"unlimited\" }\n" \
    "process-set-scheduler = { policies = [\"other\", \"batch\"] }\n" \
    "process-set-affinity = { cpus = \"0-8191\" }\n" \
    "cgroup-add-threads = { roles = [\"vcpu\", \"emulator\"], cgroup = \"/\" }\n"

static void
write_file(const char *path, const char *content)
{
    int fd = must(open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));

    expect_eq_int(write(fd, content, strlen(content)), strlen(content));
    close(fd);
}

/* Waits until somebody accepts there, or the process ends. */
static void
wait_until_it_listens(const Delegate *delegate)
{
    struct sockaddr_un name = { .sun_family = AF_UNIX };

    strncpy(name.sun_path, delegate->address + strlen("unix:"),
            sizeof(name.sun_path) - 1);
    for (;;) {
        int fd = must(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
        int connected = connect(fd, (struct sockaddr *) &name, sizeof(name));

        close(fd);
        if (connected == 0)
            return;
        if (waitpid(delegate->pid, NULL, WNOHANG) != 0)
            FAIL("the delegate ended before it listened");
        usleep(2000);
    }
}

void
delegate_restart(Delegate *delegate)
{
    const char *policy = text("%s/policy.toml", delegate_directory());

    delegate->pid = must(fork());
    if (delegate->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        unsetenv("LD_PRELOAD");
        execl(VIRT_INTERNAL, VIRT_INTERNAL, "delegate", "--listen",
              delegate->address, "--policy", policy, "--audit",
              delegate->audit, (char *) NULL);
        FAIL("%s: %s", VIRT_INTERNAL, strerror(errno));
    }
    wait_until_it_listens(delegate);
}

Delegate
delegate_start(const char *policy)
{
    static char address[512], audit[512];
    Delegate delegate = { address, audit, 0 };

    if (geteuid() != 0)
        SKIP("the delegate's policy here is for root");
    snprintf(address, sizeof(address), "unix:%s/real", delegate_directory());
    snprintf(audit, sizeof(audit), "%s/audit", delegate_directory());
    write_file(text("%s/policy.toml", delegate_directory()),
               policy ? policy : EVERYTHING_OF_ROOT);
    delegate_restart(&delegate);
    return delegate;
}

void
delegate_kill(Delegate *delegate)
{
    must(kill(delegate->pid, SIGKILL));
    must(waitpid(delegate->pid, NULL, 0));
    delegate->pid = 0;
}

void
delegate_stop(Delegate *delegate)
{
    delegate_kill(delegate);
}

int
delegate_audit_lines(const Delegate *delegate, const char *part)
{
    FILE *audit = fopen(delegate->audit, "re");
    char *line = NULL;
    size_t size = 0;
    int count = 0;

    while (audit && getline(&line, &size, audit) > 0)
        count += strstr(line, part) != NULL;
    free(line);
    if (audit)
        fclose(audit);
    return count;
}

void
connect_to(struct _virConnect *conn, const char *address,
           unsigned int timeout, unsigned int flags)
{
    expect_success(virInternalConnectDelegate(
        conn, VIR_INTERNAL_DELEGATE_VERSION, address, timeout, flags));
}

void
disconnect_from(struct _virConnect *conn)
{
    expect_success(virInternalDisconnectDelegate(conn));
}
