/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A program that is a delegate. What it leaves open is the runner's business:
 * each test frees its delegate, and then no descriptor and no thread is left. */
#define _GNU_SOURCE
#include "delegate.h"
#include "support.h"

#include <libvirt/libvirt-internal-delegate.h>

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

/* For each wait of a client: valgrind takes its time. */
#define PATIENCE_MS 60000

/* A directory for a test, which is removed however it ends. */

static const char *
directory_of(pid_t test)
{
    return text("/tmp/%s", name_of_test("virt-internal-serve", test));
}

static int
remove_one(const char *path, const struct stat *status, int type,
           struct FTW *place)
{
    (void) status;
    (void) type;
    (void) place;
    return remove(path);
}

static void
remove_directory(pid_t test)
{
    nftw(directory_of(test), remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* The test's. Threads read it, who must not use text(). */
static char directory[80];

static const char *
in_directory(const char *name)
{
    return text("%s/%s", directory, name);
}

#define SERVE_TEST(name) \
    static void serve_##name(void); \
    TEST(name, .after = remove_directory) \
    { \
        strcpy(directory, directory_of(getpid())); \
        must(mkdir(directory, 0700)); \
        serve_##name(); \
    } \
    static void serve_##name(void)

static void
write_file(const char *name, const char *content)
{
    FILE *file = fopen(in_directory(name), "w");

    expect_true(file != NULL);
    expect_true(fputs(content, file) >= 0);
    expect_eq_int(fclose(file), 0);
}

static const char *
read_file(const char *path)
{
    static char content[65536];
    int fd = must(open(path, O_RDONLY | O_CLOEXEC));
    size_t length = 0;
    ssize_t got;

    while ((got = must(read(fd, content + length,
                            sizeof(content) - 1 - length))) > 0)
        length += got;
    content[length] = '\0';
    close(fd);
    return content;
}

/* A rule for peers of a user, and perhaps for more: one line each. */
static const char *
rule(unsigned int uid, const char *more, unsigned int max)
{
    return text("[[rule]]\n"
                "name = \"rule-%u\"\n"
                "peer = { uid = %u%s }\n"
                "target = { cgroup = \"/\", uid = %u }\n"
                "process-set-max-mem-lock = { max = %u }\n",
                max, uid, more, getuid(), max);
}

static void
write_policy(const char *rules)
{
    write_file("policy.toml", text("version = 1\n%s", rules));
}

/* A delegate with the policy that was written. */
static virInternalDelegatePtr
new_delegate(void)
{
    virInternalDelegatePtr delegate =
        virInternalDelegateNew(VIR_INTERNAL_DELEGATE_VERSION,
                               in_directory("policy.toml"),
                               in_directory("audit"), 0);

    if (!delegate)
        FAIL("expected a delegate, found: %s",
             virInternalGetLastError()->message);
    return delegate;
}

/* Good until the 16th call from now: tests keep it, while they use text(). */
static const char *
address_of(const char *name)
{
    static char addresses[16][160];
    static unsigned int next;
    char *address = addresses[next++ % 16];

    snprintf(address, sizeof(addresses[0]), "unix:%s", in_directory(name));
    return address;
}

static void *
run_delegate(void *delegate)
{
    expect_success(virInternalDelegateRun(delegate));
    return NULL;
}

typedef struct {
    virInternalDelegatePtr delegate;
    pthread_t thread;
} Running;

static Running
run_in_thread(virInternalDelegatePtr delegate)
{
    Running running = { .delegate = delegate };

    expect_eq_int(pthread_create(&running.thread, NULL, run_delegate,
                                 delegate), 0);
    return running;
}

static void
stop_and_free(Running *running)
{
    expect_eq_int(virInternalDelegateStop(running->delegate), 0);
    expect_eq_int(pthread_join(running->thread, NULL), 0);
    virInternalDelegateFree(running->delegate);
}

/*
 * A client in a process of its own. It is made before the library is used, so
 * that it is no forked child to it, and does something when it is told to.
 */
typedef struct {
    pid_t pid;
    int tell;
} Client;

typedef void (*ClientBody)(const char *told);

static Client
client_start(ClientBody body)
{
    Client client;
    int pipes[2];

    must(pipe2(pipes, O_CLOEXEC));
    client.pid = must(fork());
    if (client.pid == 0) {
        char told[256] = "";

        close(pipes[1]);
        must(read(pipes[0], told, sizeof(told) - 1));
        body(told);
        _exit(EXIT_SUCCESS);
    }
    close(pipes[0]);
    client.tell = pipes[1];
    return client;
}

static void
client_tell(const Client *client, const char *what)
{
    expect_eq_int(must(write(client->tell, what, strlen(what) + 1)),
                  strlen(what) + 1);
    close(client->tell);
}

/* Tells it, and it must pass. */
static void
client_passes(const Client *client, const char *what)
{
    client_tell(client, what);
    expect_child_passes(client->pid);
}

/* Clients' bodies, which are told an address, a process, and how much memory it
 * is to be allowed to lock. */
typedef struct {
    char address[160];
    pid_t pid;
    unsigned long long bytes;
} Wish;

static Wish
connect_for(const char *told)
{
    Wish wish;

    expect_eq_int(sscanf(told, "%159s %d %llu", wish.address, &wish.pid,
                         &wish.bytes), 3);
    expect_success(virInternalConnectDelegate(NULL,
                                              VIR_INTERNAL_DELEGATE_VERSION,
                                              wish.address, PATIENCE_MS, 0));
    return wish;
}

static const char *
wish(const char *address, pid_t pid, unsigned long long bytes)
{
    return text("%s %d %llu", address, pid, bytes);
}

static int
ask(const char *told)
{
    Wish wish = connect_for(told);

    return virInternalProcessSetMaxMemLock(NULL, wish.pid, wish.bytes,
                                           VIR_INTERNAL_NO_DIRECT);
}

static void
is_served(const char *told)
{
    expect_success(ask(told));
}

static void
is_refused(const char *told)
{
    expect_error(ask(told), VIR_INTERNAL_ERR_REFUSED, EPERM, "");
}

static void
fails_with_eaccess(const char *told)
{
    expect_error(ask(told), VIR_INTERNAL_ERR_FAILED, EACCES, "");
}

static void
reaches_nobody(const char *told)
{
    expect_error(ask(told), VIR_INTERNAL_ERR_UNREACHABLE, ECONNREFUSED, "");
}

static int
try_to_connect(int fd, const char *name)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };

    expect_true(strlen(in_directory(name)) < sizeof(address.sun_path));
    strcpy(address.sun_path, in_directory(name));
    return connect(fd, (struct sockaddr *) &address, sizeof(address));
}

/* A connection that only waits. */
static int
open_connection(const char *name)
{
    int fd = must(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));

    must(try_to_connect(fd, name));
    return fd;
}

/* The other side ended the connection, or does now. */
static void
expect_ended(int fd)
{
    struct pollfd end = { .fd = fd, .events = POLLIN };
    char message[1024];
    ssize_t got;

    do {
        expect_eq_int(must(poll(&end, 1, PATIENCE_MS)), 1);
        got = read(fd, message, sizeof(message));
    } while (got > 0);
    if (got < 0)
        expect_eq_int(errno, ECONNRESET);
    close(fd);
}

static int
listening_socket(const char *name)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int fd = must(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));

    strcpy(address.sun_path, in_directory(name));
    must(bind(fd, (struct sockaddr *) &address, sizeof(address)));
    must(listen(fd, 8));
    return fd;
}

static int
pidfd_of(pid_t pid)
{
    return must(syscall(SYS_pidfd_open, pid, 0));
}

SERVE_TEST(an_operation_is_done_counted_and_written_down)
{
    Client client = client_start(is_served);
    Subject subject = subject_start(1);
    virInternalDelegatePtr delegate;
    const char *line;
    Running running;
    char *metrics;

    write_policy(rule(getuid(), "", 65536));
    delegate = new_delegate();
    expect_success(virInternalDelegateListen(delegate, address_of("socket"),
                                             "vm-1", 0));
    running = run_in_thread(delegate);
    client_passes(&client, wish(address_of("socket"), subject.pid, 65536));
    expect_limit(subject.pid, RLIMIT_MEMLOCK, 65536, 65536);

    metrics = virInternalDelegateGetMetrics(delegate);
    expect_str_contains(metrics, "virt_internal_operations_total{operation="
                        "\"process-set-max-mem-lock\",outcome=\"handled\"} 1\n");
    free(metrics);
    line = read_file(in_directory("audit"));
    expect_str_contains(line, "\"label\":\"vm-1\"");
    expect_str_contains(line, "\"outcome\":\"handled\"");
    expect_str_contains(line, text("\"target\":{\"pid\":%d,", subject.pid));
    stop_and_free(&running);
    expect_eq_int(access(in_directory("socket"), F_OK), -1);
    subject_end(&subject);
}

SERVE_TEST(a_reader_of_audit_lines_that_has_left_ends_nobody)
{
    Client client = client_start(is_served);
    Subject subject = subject_start(1);
    virInternalDelegatePtr delegate;
    Running running;
    int reader;

    must(mkfifo(in_directory("audit"), 0600));
    reader = must(open(in_directory("audit"), O_RDONLY | O_NONBLOCK));
    write_policy(rule(getuid(), "", 65536));
    delegate = new_delegate();
    expect_success(virInternalDelegateListen(delegate, address_of("socket"),
                                             "vm-1", 0));
    running = run_in_thread(delegate);
    must(close(reader));
    client_passes(&client, wish(address_of("socket"), subject.pid, 65536));
    expect_limit(subject.pid, RLIMIT_MEMLOCK, 65536, 65536);
    stop_and_free(&running);
    subject_end(&subject);
}

static int
set_limit(Script *script)
{
    struct rlimit limit = { 32768, 32768 };

    must(prlimit(script->pid, RLIMIT_MEMLOCK, &limit, NULL));
    return VIR_INTERNAL_HANDLED;
}

SERVE_TEST(own_handlers_are_asked_first)
{
    Client client = client_start(is_served);
    Client failing = client_start(fails_with_eaccess);
    Client direct = client_start(is_served);
    Script handled = { .answer = set_limit };
    Script failed = { .returns = -EACCES };
    Script passed_on = { .returns = VIR_INTERNAL_NOT_HANDLED };
    Subject subject = subject_start(1);
    virInternalDelegatePtr delegate;
    Running running;
    const char *address;

    write_policy(rule(getuid(), "", 65536));
    delegate = new_delegate();
    address = address_of("socket");
    expect_success(virInternalDelegateListen(delegate, address, NULL, 0));
    running = run_in_thread(delegate);

    /* It sets less than was asked, which only a handler's work can be: so what
     * it says is found out. */
    set(operations, NULL, &handled, 0);
    client_passes(&client, wish(address, subject.pid, 32768));
    expect_eq_int(handled.calls, 1);
    expect_limit(subject.pid, RLIMIT_MEMLOCK, 32768, 32768);

    set(operations, NULL, &failed, 0);
    client_passes(&failing, wish(address, subject.pid, 16384));
    expect_eq_int(failed.calls, 1);
    expect_limit(subject.pid, RLIMIT_MEMLOCK, 32768, 32768);

    set(operations, NULL, &passed_on, 0);
    client_passes(&direct, wish(address, subject.pid, 16384));
    expect_eq_int(passed_on.calls, 1);
    expect_limit(subject.pid, RLIMIT_MEMLOCK, 16384, 16384);
    unset(operations, NULL);
    stop_and_free(&running);
    subject_end(&subject);
}

/* A peer that is no library: nothing but the delegate checks what it asks. */
static void
send_message(int fd, uint32_t operation, uint32_t version, const void *body,
             uint32_t size, int descriptor)
{
    WireHeader header = { WIRE_MAGIC, WIRE_PROTOCOL, operation, version, size,
                          0, 1 };
    struct iovec parts[] = { { &header, sizeof(header) },
                             { (void *) body, size } };
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = { .header = { CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS } };
    struct msghdr message = { .msg_iov = parts, .msg_iovlen = 2 };

    if (descriptor >= 0) {
        memcpy(CMSG_DATA(&control.header), &descriptor, sizeof(descriptor));
        message.msg_control = &control;
        message.msg_controllen = sizeof(control);
    }
    must(sendmsg(fd, &message, 0));
}

static void
receive_message(int fd, void *body, size_t size)
{
    unsigned char message[sizeof(WireHeader) + 4096];
    ssize_t got = must(recv(fd, message, sizeof(message), 0));

    expect_true(got >= (ssize_t) (sizeof(WireHeader) + size));
    memcpy(body, message + sizeof(WireHeader), size);
}

static int
connect_raw(const char *name)
{
    uint32_t hello[2] = { 0, 0 };
    int fd = open_connection(name);

    send_message(fd, WIRE_HELLO, 0, hello, sizeof(hello), -1);
    receive_message(fd, hello, sizeof(hello));
    return fd;
}

/* A thread of a process, as its peer says, is to be moved: to no cgroup that
 * anybody names. */
typedef struct {
    WireAnswer answer;
    int32_t result;
} Moved;

static Moved
move_raw(int fd, pid_t pid, pid_t tid)
{
    struct {
        int32_t role;
        uint32_t count, has_ids, has_group, map_length;
        int32_t tid;
    } body = { .count = 1, .tid = tid };
    int pidfd = pidfd_of(pid);
    Moved moved;

    send_message(fd, VIR_INTERNAL_OP_CGROUP_ADD_THREADS, 1, &body,
                 sizeof(body), pidfd);
    close(pidfd);
    receive_message(fd, &moved, sizeof(moved));
    return moved;
}

static void
write_policy_of_threads(void)
{
    write_policy(text("[[rule]]\n"
                      "name = \"threads\"\n"
                      "peer = { uid = %u }\n"
                      "target = { cgroup = \"/\", uid = %u }\n"
                      "cgroup-add-threads = { roles = [\"vcpu\"] }\n",
                      getuid(), getuid()));
}

SERVE_TEST(no_handler_is_given_another_processs_thread)
{
    Script script = { .returns = VIR_INTERNAL_HANDLED };
    Subject subject = subject_start(2);
    Subject other = subject_start(2);
    virInternalDelegatePtr delegate;
    Running running;
    Moved moved;
    int fd;

    write_policy_of_threads();
    delegate = new_delegate();
    expect_success(virInternalDelegateListen(delegate, address_of("socket"),
                                             NULL, 0));
    running = run_in_thread(delegate);
    set(&operations[6], NULL, &script, 0);
    fd = connect_raw("socket");
    for (size_t i = 0; i < 2; i++) {
        moved = move_raw(fd, subject.pid, other.tids[i]);
        expect_eq_int(script.calls, 0);
        expect_eq_int(moved.answer.verdict, WIRE_FAILED);
        expect_eq_int(moved.answer.code, VIR_INTERNAL_ERR_INVALID_ARG);
        expect_eq_int(moved.answer.errnum, EINVAL);
    }
    moved = move_raw(fd, subject.pid, subject.tids[1]);
    expect_eq_int(script.calls, 1);
    expect_eq_int(moved.answer.verdict, WIRE_HANDLED);
    expect_eq_int(moved.result, 0);
    close(fd);
    unset(&operations[6], NULL);
    stop_and_free(&running);
    subject_end(&other);
    subject_end(&subject);
}

static int
end_thread(Script *script)
{
    subject_end_thread(script->data, 1);
    return VIR_INTERNAL_HANDLED;
}

SERVE_TEST(a_thread_that_exits_while_a_handler_runs_is_not_called_moved)
{
    Subject subject = subject_start(2);
    Script script = { .answer = end_thread, .data = &subject };
    virInternalDelegatePtr delegate;
    Running running;
    Moved moved;
    int fd;

    write_policy_of_threads();
    delegate = new_delegate();
    expect_success(virInternalDelegateListen(delegate, address_of("socket"),
                                             NULL, 0));
    running = run_in_thread(delegate);
    set(&operations[6], NULL, &script, 0);
    fd = connect_raw("socket");
    moved = move_raw(fd, subject.pid, subject.tids[1]);
    expect_eq_int(script.calls, 1);
    expect_eq_int(moved.answer.verdict, WIRE_HANDLED);
    expect_eq_int(moved.result, -ESRCH);
    close(fd);
    unset(&operations[6], NULL);
    stop_and_free(&running);
    subject_end(&subject);
}

SERVE_TEST(listeners_come_and_go_with_their_labels)
{
    Client refused = client_start(is_refused);
    Client served = client_start(is_served);
    Client late = client_start(reaches_nobody);
    Subject subject = subject_start(1);
    virInternalDelegatePtr delegate;
    const char *first;
    const char *second;
    Running running;
    int idle[3];

    write_policy(rule(getuid(), ", label = \"vm-2\"", 65536));
    delegate = new_delegate();
    first = address_of("first");
    second = address_of("second");
    expect_success(virInternalDelegateListen(delegate, first, "vm-1", 0));
    running = run_in_thread(delegate);
    client_passes(&refused, wish(first, subject.pid, 65536));

    expect_success(virInternalDelegateListen(delegate, second, "vm-2", 0));
    client_passes(&served, wish(second, subject.pid, 65536));

    idle[0] = open_connection("first");
    idle[1] = open_connection("first");
    idle[2] = open_connection("second");
    expect_success(virInternalDelegateStopListening(delegate, first));
    expect_eq_int(access(in_directory("first"), F_OK), -1);
    client_passes(&late, wish(first, subject.pid, 65536));
    expect_ended(idle[0]);
    expect_ended(idle[1]);
    expect_error(virInternalDelegateStopListening(delegate, first),
                 VIR_INTERNAL_ERR_INVALID_ARG, EINVAL, "is not listened on");
    stop_and_free(&running);
    /* It lived until now. */
    expect_ended(idle[2]);
    subject_end(&subject);
}

SERVE_TEST(an_address_can_be_listened_on_again_at_once)
{
    virInternalDelegatePtr delegate;
    const char *address;
    Running running;

    write_policy("");
    delegate = new_delegate();
    address = address_of("socket");
    expect_success(virInternalDelegateListen(delegate, address, NULL, 0));
    running = run_in_thread(delegate);
    for (int i = 0; i < 200; i++) {
        int idle = open_connection("socket");

        expect_success(virInternalDelegateStopListening(delegate, address));
        expect_success(virInternalDelegateListen(delegate, address, NULL, 0));
        expect_eq_int(access(in_directory("socket"), F_OK), 0);
        expect_ended(idle);
    }
    expect_error(virInternalDelegateListen(delegate, address, NULL, 0),
                 VIR_INTERNAL_ERR_FAILED, EADDRINUSE, "somebody listens on");
    stop_and_free(&running);
}

SERVE_TEST(a_socket_that_listens_already_stays_the_callers)
{
    Client client = client_start(is_served);
    Subject subject = subject_start(1);
    virInternalDelegatePtr delegate;
    const char *address;
    Running running;
    int fd;

    write_policy(rule(getuid(), ", label = \"vm-1\"", 65536));
    delegate = new_delegate();
    fd = listening_socket("socket");
    address = text("fd:%d", fd);
    expect_success(virInternalDelegateListen(delegate, address, "vm-1", 0));
    expect_error(virInternalDelegateListen(delegate, address, "vm-2", 0),
                 VIR_INTERNAL_ERR_FAILED, EADDRINUSE, "listened on already");
    running = run_in_thread(delegate);
    client_passes(&client, wish(address_of("socket"), subject.pid, 65536));

    /* It can be taken back, and given again. */
    expect_success(virInternalDelegateStopListening(delegate, address));
    close(open_connection("socket"));
    expect_success(virInternalDelegateListen(delegate, address, NULL, 0));
    stop_and_free(&running);
    close(open_connection("socket"));
    close(fd);
    subject_end(&subject);
}

SERVE_TEST(another_policy_is_put_in_force_and_a_broken_one_is_not)
{
    Client before = client_start(is_refused);
    Client unchanged = client_start(is_refused);
    Client after = client_start(is_served);
    Subject subject = subject_start(1);
    virInternalDelegatePtr delegate;
    const char *address;
    Running running;

    write_policy(rule(getuid(), "", 65536));
    delegate = new_delegate();
    address = address_of("socket");
    expect_success(virInternalDelegateListen(delegate, address, NULL, 0));
    running = run_in_thread(delegate);
    client_passes(&before, wish(address, subject.pid, 65537));

    write_policy("[[rule]]\nname = \"x\"\npeer = { user = 0 }\n");
    expect_error(virInternalDelegateReload(delegate),
                 VIR_INTERNAL_ERR_INVALID_ARG, EINVAL, "/policy.toml:4:");
    must(unlink(in_directory("policy.toml")));
    expect_error(virInternalDelegateReload(delegate), VIR_INTERNAL_ERR_FAILED,
                 ENOENT, "/policy.toml: cannot read the policy: "
                 "No such file or directory");
    client_passes(&unchanged, wish(address, subject.pid, 65537));

    must(rename(in_directory("audit"), in_directory("audit.1")));
    write_policy(rule(getuid(), "", 131072));
    expect_success(virInternalDelegateReload(delegate));
    client_passes(&after, wish(address, subject.pid, 65537));
    expect_str_contains(read_file(in_directory("audit.1")),
                        "\"outcome\":\"refused\"");
    expect_str_contains(read_file(in_directory("audit")),
                        "\"rule\":\"rule-131072\"");
    stop_and_free(&running);
    subject_end(&subject);
}

SERVE_TEST(a_broken_policy_makes_no_delegate)
{
    static const struct {
        const char *content;
        const char *part;
    } policies[] = {
        { "version = 2\n", "/policy.toml:1:1: version is 2" },
        { "version = 1\n\n[quota]\nconnections = 0\n",
          "/policy.toml:4:1: quota.connections" },
        { "version = 1\nquota\n", "/policy.toml:2:" },
    };
    char name[260];

    for (size_t i = 0; i < sizeof(policies) / sizeof(policies[0]); i++) {
        write_file("policy.toml", policies[i].content);
        expect_true(!virInternalDelegateNew(VIR_INTERNAL_DELEGATE_VERSION,
                                            in_directory("policy.toml"), NULL,
                                            0));
        expect_error(-1, VIR_INTERNAL_ERR_INVALID_ARG, EINVAL,
                     policies[i].part);
    }
    /* A long name does not push out what is wrong. */
    memset(name, 'n', 250);
    strcpy(name + 250, ".toml");
    write_file(name, "version = 2\n");
    expect_true(!virInternalDelegateNew(VIR_INTERNAL_DELEGATE_VERSION,
                                        in_directory(name), NULL, 0));
    expect_error(-1, VIR_INTERNAL_ERR_INVALID_ARG, EINVAL,
                 "nnn.toml:1:1: version is 2: this program knows version 1");
}

/* What a client is told comes with the descriptor that it inherited. */
static void
socketpair_of(int *ours, int *theirs)
{
    int pair[2];

    must(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair));
    *ours = pair[0];
    *theirs = pair[1];
}

static int end_of_maker = -1;

static void
is_served_over_the_pair(const char *told)
{
    /* Else it would not see the end. */
    close(end_of_maker);
    is_served(told);
}

SERVE_TEST(a_given_connection_has_the_identity_that_its_giver_says)
{
    Subject subject = subject_start(1);
    virInternalDelegatePtr delegate;
    const char *cgroup;
    const char *line;
    char own_cgroup[256];
    Client client;
    int pidfd;
    int theirs;

    socketpair_of(&end_of_maker, &theirs);
    client = client_start(is_served_over_the_pair);
    close(theirs);
    pidfd = pidfd_of(client.pid);
    /* The maker is of no user that the policy knows. */
    write_policy(rule(4711, ", gid = 4712, label = \"vm-1\"", 65536));
    delegate = new_delegate();
    must(fcntl(end_of_maker, F_SETFL, O_NONBLOCK));
    expect_success(virInternalDelegateAddConnection(delegate, end_of_maker,
                                                    "vm-1", pidfd, 4711, 4712,
                                                    0));
    close(end_of_maker);
    close(pidfd);
    cgroup = strstr(read_file("/proc/self/cgroup"), "0::");
    expect_true(cgroup != NULL);
    expect_eq_int(sscanf(cgroup, "0::%255s", own_cgroup), 1);

    /* Nobody runs it, and it is served. */
    client_passes(&client, wish(text("fd:%d", theirs), subject.pid, 65536));
    line = read_file(in_directory("audit"));
    expect_str_contains(line, text("\"peer\":{\"pid\":%d,\"uid\":4711,"
                                   "\"gid\":4712,\"cgroup\":\"%s\","
                                   "\"label\":\"vm-1\"", client.pid,
                                   own_cgroup));
    virInternalDelegateFree(delegate);
    subject_end(&subject);
}

SERVE_TEST(the_identity_of_another_is_refused_over_a_given_connection)
{
    Subject subject = subject_start(1);
    virInternalDelegatePtr delegate;
    Client client;
    int pidfd;
    int theirs;

    socketpair_of(&end_of_maker, &theirs);
    client = client_start(is_refused);
    close(theirs);
    pidfd = pidfd_of(client.pid);
    /* The maker's own. */
    write_policy(rule(getuid(), "", 65536));
    delegate = new_delegate();
    expect_success(virInternalDelegateAddConnection(delegate, end_of_maker,
                                                    NULL, pidfd, 4711, 4712,
                                                    0));
    close(end_of_maker);
    close(pidfd);
    client_passes(&client, wish(text("fd:%d", theirs), subject.pid, 65536));
    virInternalDelegateFree(delegate);
    subject_end(&subject);
}

SERVE_TEST(a_given_connection_ends_with_the_delegate)
{
    virInternalDelegatePtr delegate;
    int pidfd;
    int ours;
    int theirs;

    write_policy("");
    delegate = new_delegate();
    pidfd = pidfd_of(getpid());
    for (int i = 0; i < 20; i++) {
        socketpair_of(&ours, &theirs);
        expect_success(virInternalDelegateAddConnection(delegate, ours, NULL,
                                                        pidfd, 1, 1, 0));
        close(ours);
        if (i % 2)
            close(theirs);
    }
    socketpair_of(&ours, &theirs);
    expect_success(virInternalDelegateAddConnection(delegate, ours, NULL,
                                                    pidfd, 1, 1, 0));
    close(ours);
    close(pidfd);
    virInternalDelegateFree(delegate);
    expect_ended(theirs);
    /* Those of the loop. */
    for (int fd = 3; fd < 1024; fd++) {
        int type = 0;
        socklen_t length = sizeof(type);

        if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) == 0
            && type == SOCK_SEQPACKET)
            expect_ended(fd);
    }
}

static virInternalDelegatePtr delegate_to_stop;

static void
stop_it(int signal)
{
    (void) signal;
    errno = ENOTTY;
    if (virInternalDelegateStop(delegate_to_stop) != 0 || errno != ENOTTY)
        _exit(99);
}

/* A whole program. */
static void
be_a_delegate(const char *told)
{
    virInternalDelegatePtr delegate = new_delegate();
    struct sigaction action = { .sa_handler = stop_it };

    expect_success(virInternalDelegateListen(delegate, told, "vm-1", 0));
    delegate_to_stop = delegate;
    must(sigaction(SIGTERM, &action, NULL));
    expect_success(virInternalDelegateRun(delegate));
    virInternalDelegateFree(delegate);
    expect_eq_int(access(told + strlen("unix:"), F_OK), -1);
}

SERVE_TEST(a_signal_handler_can_stop_it)
{
    Client process = client_start(be_a_delegate);
    Subject subject = subject_start(1);
    const char *address = address_of("socket");
    int fd;

    write_policy(rule(getuid(), "", 65536));
    client_tell(&process, address);
    fd = must(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    while (try_to_connect(fd, "socket") != 0)
        usleep(1000);
    close(fd);
    /* Whoever is served knows that it runs, and it has its signal handler. */
    is_served(wish(address, subject.pid, 65536));
    must(kill(process.pid, SIGTERM));
    expect_child_passes(process.pid);
    expect_error(virInternalProcessSetMaxMemLock(NULL, subject.pid, 4096, 0),
                 VIR_INTERNAL_ERR_UNREACHABLE, ECONNREFUSED, "");
    expect_success(virInternalDisconnectDelegate(NULL));
    subject_end(&subject);
}

SERVE_TEST(a_stopped_delegate_serves_nobody_any_more)
{
    virInternalDelegatePtr delegate;
    int idle;
    int pair[2];
    int pidfd = pidfd_of(getpid());

    write_policy("");
    delegate = new_delegate();
    expect_success(virInternalDelegateListen(delegate, address_of("socket"),
                                             NULL, 0));
    idle = open_connection("socket");
    expect_eq_int(virInternalDelegateStop(delegate), 0);
    expect_success(virInternalDelegateRun(delegate));
    expect_ended(idle);
    expect_success(virInternalDelegateRun(delegate));
    expect_error(virInternalDelegateListen(delegate, address_of("other"), NULL,
                                           0),
                 VIR_INTERNAL_ERR_FAILED, ECANCELED, "was stopped");
    expect_eq_int(access(in_directory("other"), F_OK), -1);
    socketpair_of(&pair[0], &pair[1]);
    expect_error(virInternalDelegateAddConnection(delegate, pair[0], NULL,
                                                  pidfd, 1, 1, 0),
                 VIR_INTERNAL_ERR_FAILED, ECANCELED, "was stopped");
    close(pair[0]);
    expect_ended(pair[1]);
    close(pidfd);
    virInternalDelegateFree(delegate);
}

SERVE_TEST(it_runs_in_one_thread_at_a_time)
{
    Client client = client_start(is_served);
    Subject subject = subject_start(1);
    virInternalDelegatePtr delegate;
    Running running;

    write_policy(rule(getuid(), "", 65536));
    delegate = new_delegate();
    expect_success(virInternalDelegateListen(delegate, address_of("socket"),
                                             NULL, 0));
    running = run_in_thread(delegate);
    client_passes(&client, wish(address_of("socket"), subject.pid, 65536));
    expect_error(virInternalDelegateRun(delegate), VIR_INTERNAL_ERR_FAILED,
                 EBUSY, "the delegate runs already");
    stop_and_free(&running);
    subject_end(&subject);
}

static void *
run_and_tell(void *delegate)
{
    int returned = virInternalDelegateRun(delegate);

    pthread_testcancel();
    FAIL("expected the thread to be cancelled after %d", returned);
}

SERVE_TEST(a_thread_that_runs_it_is_not_cancelled_before_it_stops)
{
    Client client = client_start(is_served);
    Subject subject = subject_start(1);
    virInternalDelegatePtr delegate;
    pthread_t thread;
    void *result;

    write_policy(rule(getuid(), "", 65536));
    delegate = new_delegate();
    expect_success(virInternalDelegateListen(delegate, address_of("socket"),
                                             NULL, 0));
    expect_eq_int(pthread_create(&thread, NULL, run_and_tell, delegate), 0);
    /* It is in there when it has accepted somebody and served the next. */
    close(open_connection("socket"));
    while (true) {
        char *metrics = virInternalDelegateGetMetrics(delegate);
        bool accepted = strstr(metrics, "connections_total 1\n");

        free(metrics);
        if (accepted)
            break;
        usleep(1000);
    }
    expect_eq_int(pthread_cancel(thread), 0);
    client_passes(&client, wish(address_of("socket"), subject.pid, 65536));
    expect_eq_int(virInternalDelegateStop(delegate), 0);
    expect_eq_int(pthread_join(thread, &result), 0);
    expect_true(result == PTHREAD_CANCELED);
    virInternalDelegateFree(delegate);
    subject_end(&subject);
}

#define expect_invalid(call, part) \
    expect_error(call, VIR_INTERNAL_ERR_INVALID_ARG, EINVAL, part)

/* New() with a result like the others'. */
static int
try_new(unsigned int version, const char *policy, const char *audit,
        unsigned int flags)
{
    return virInternalDelegateNew(version, policy, audit, flags) ? 0 : -1;
}

SERVE_TEST(bad_input_makes_no_delegate)
{
    char policy[160];

    strcpy(policy, in_directory("policy.toml"));
    write_policy("");
    expect_error(try_new(2, policy, NULL, 0), VIR_INTERNAL_ERR_VERSION,
                 EPROTONOSUPPORT, "version 2");
    expect_error(try_new(0, policy, NULL, 0), VIR_INTERNAL_ERR_VERSION,
                 EPROTONOSUPPORT, "version 0");
    expect_invalid(try_new(1, NULL, NULL, 0), "policy is NULL");
    expect_invalid(try_new(1, policy, NULL, 1), "unknown flags 0x1");
    expect_error(try_new(1, in_directory("none"), NULL, 0),
                 VIR_INTERNAL_ERR_FAILED, ENOENT, "/none: cannot read");
    expect_invalid(try_new(1, directory, NULL, 0),
                   "it is not a regular file");
    expect_error(try_new(1, policy, in_directory("none/audit"), 0),
                 VIR_INTERNAL_ERR_FAILED, ENOENT,
                 "cannot open the audit file '/tmp/");
}

SERVE_TEST(bad_input_to_listen_changes_nothing)
{
    const char *address = address_of("socket");
    virInternalDelegatePtr delegate;
    char label[257];
    int unfit;
    int listening;

    write_policy("");
    delegate = new_delegate();
    expect_invalid(virInternalDelegateListen(NULL, address, NULL, 0),
                   "delegate is NULL");
    expect_invalid(virInternalDelegateListen(delegate, NULL, NULL, 0),
                   "address is NULL");
    expect_invalid(virInternalDelegateListen(delegate, address, NULL, 1U << 31),
                   "unknown flags 0x80000000");
    expect_invalid(virInternalDelegateListen(delegate, "", NULL, 0),
                   "neither unix:/path nor fd:NUMBER");
    expect_invalid(virInternalDelegateListen(delegate, "unix:socket", NULL, 0),
                   "needs an absolute path");
    expect_invalid(virInternalDelegateListen(delegate,
                                             text("unix:/%0107d", 1), NULL, 0),
                   "too long: 108 bytes");
    expect_invalid(virInternalDelegateListen(delegate, "unix:/\xff", NULL, 0),
                   "'unix:/\\xff' is not UTF-8");
    expect_invalid(virInternalDelegateListen(delegate, "fd:-1", NULL, 0),
                   "no number");
    expect_invalid(virInternalDelegateListen(delegate, "fd:1023", NULL, 0),
                   "1023 is no open descriptor");

    unfit = must(open("/dev/null", O_RDWR | O_CLOEXEC));
    expect_invalid(virInternalDelegateListen(delegate, text("fd:%d", unfit),
                                             NULL, 0), "is not a socket");
    close(unfit);
    unfit = must(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    expect_invalid(virInternalDelegateListen(delegate, text("fd:%d", unfit),
                                             NULL, 0),
                   "is not a SOCK_SEQPACKET socket");
    close(unfit);
    unfit = must(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    expect_invalid(virInternalDelegateListen(delegate, text("fd:%d", unfit),
                                             NULL, 0), "does not listen");
    close(unfit);

    memset(label, 'l', 256);
    label[256] = '\0';
    expect_invalid(virInternalDelegateListen(delegate, address, label, 0),
                   "1 to 255 bytes");
    expect_invalid(virInternalDelegateListen(delegate, address, "", 0),
                   "1 to 255 bytes");
    expect_invalid(virInternalDelegateListen(delegate, address, "a\nb", 0),
                   "no control characters");
    expect_invalid(virInternalDelegateListen(delegate, address, "\xc3", 0),
                   "'\\xc3': it is not UTF-8");
    expect_eq_int(access(in_directory("socket"), F_OK), -1);

    write_file("socket", "");
    expect_error(virInternalDelegateListen(delegate, address, NULL, 0),
                 VIR_INTERNAL_ERR_FAILED, EEXIST, "is not a socket");
    expect_error(virInternalDelegateListen(delegate, address_of("none/socket"),
                                           NULL, 0),
                 VIR_INTERNAL_ERR_FAILED, ENOENT, "cannot listen on 'unix:/");
    listening = listening_socket("others");
    expect_error(virInternalDelegateListen(delegate, address_of("others"),
                                           NULL, 0),
                 VIR_INTERNAL_ERR_FAILED, EADDRINUSE, "somebody listens");
    close(listening);
    /* What somebody left is replaced. */
    expect_success(virInternalDelegateListen(delegate, address_of("others"),
                                             NULL, 0));
    label[255] = '\0';
    expect_success(virInternalDelegateListen(delegate, address_of("long"),
                                             label, 0));

    expect_invalid(virInternalDelegateStopListening(NULL, address),
                   "delegate is NULL");
    expect_invalid(virInternalDelegateStopListening(delegate, NULL),
                   "address is NULL");
    expect_invalid(virInternalDelegateStopListening(delegate, "\xff"),
                   "'\\xff' is not listened on");
    virInternalDelegateFree(delegate);
}

SERVE_TEST(bad_input_adds_no_connection)
{
    virInternalDelegatePtr delegate;
    Subject subject = subject_start(2);
    int pidfd = pidfd_of(getpid());
    int null = must(open("/dev/null", O_RDWR | O_CLOEXEC));
    int streams[2];
    int ours;
    int theirs;
    int gone;
    int listening;

    write_policy("");
    delegate = new_delegate();
    socketpair_of(&ours, &theirs);
    must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, streams));
    listening = listening_socket("socket");
#define add(fd, label, pidfd, uid, gid, flags) \
    virInternalDelegateAddConnection(delegate, fd, label, pidfd, uid, gid, \
                                     flags)
    expect_invalid(virInternalDelegateAddConnection(NULL, ours, NULL, pidfd, 1,
                                                    1, 0), "delegate is NULL");
    expect_invalid(add(-1, NULL, pidfd, 1, 1, 0), "fd -1 is no open");
    expect_invalid(add(null, NULL, pidfd, 1, 1, 0), "is not a connected Unix");
    expect_invalid(add(streams[0], NULL, pidfd, 1, 1, 0), "SOCK_SEQPACKET");
    expect_invalid(add(listening, NULL, pidfd, 1, 1, 0), "is not a connected");
    expect_invalid(add(ours, "", pidfd, 1, 1, 0), "1 to 255 bytes");
    expect_invalid(add(ours, NULL, -1, 1, 1, 0), "pidfd -1 is no open");
    expect_invalid(add(ours, NULL, null, 1, 1, 0), "is not a descriptor of a");
    expect_invalid(add(ours, NULL, pidfd, -1, 1, 0), "uid -1");
    expect_invalid(add(ours, NULL, pidfd, 1, -1, 0), "gid -1");
    expect_invalid(add(ours, NULL, pidfd, 1, 1, 2), "unknown flags 0x2");

    /* A socket that was never connected. */
    gone = must(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    expect_invalid(add(gone, NULL, pidfd, 1, 1, 0), "is not a connected");
    close(gone);
#ifndef PIDFD_THREAD
# define PIDFD_THREAD O_EXCL
#endif
    gone = syscall(SYS_pidfd_open, subject.tids[1], PIDFD_THREAD);
    /* Linux 6.9 has such. */
    if (gone >= 0) {
        expect_invalid(add(ours, NULL, gone, 1, 1, 0), "of a process");
        close(gone);
    }
    gone = pidfd_of(subject.pid);
    subject_end(&subject);
    expect_error(add(ours, NULL, gone, 1, 1, 0), VIR_INTERNAL_ERR_NO_PROCESS,
                 ESRCH, "is no more");
    close(gone);

    virInternalDelegateFree(delegate);
    close(ours);
    close(theirs);
    close(streams[0]);
    close(streams[1]);
    close(listening);
    close(null);
    close(pidfd);
}

SERVE_TEST(no_delegate_is_an_error_and_freeing_none_is_not)
{
    char *metrics;

    expect_invalid(virInternalDelegateRun(NULL), "delegate is NULL");
    expect_invalid(virInternalDelegateReload(NULL), "delegate is NULL");
    metrics = virInternalDelegateGetMetrics(NULL);
    expect_true(metrics == NULL);
    expect_invalid(-1, "delegate is NULL");
    virInternalDelegateFree(NULL);
    virInternalResetLastError();
    errno = 0;
    expect_eq_int(virInternalDelegateStop(NULL), -1);
    expect_eq_int(errno, EINVAL);
    expect_true(virInternalGetLastError() == NULL);
}

#define expect_forked(call) \
    expect_error(call, VIR_INTERNAL_ERR_FORKED, ECHILD, "daemonize before")

SERVE_TEST(a_forked_child_leaves_its_parents_delegate_alone)
{
    Client client = client_start(is_served);
    Subject subject = subject_start(1);
    virInternalDelegatePtr delegate;
    const char *address;
    Running running;
    pid_t child;

    write_policy(rule(getuid(), "", 65536));
    delegate = new_delegate();
    address = address_of("socket");
    expect_success(virInternalDelegateListen(delegate, address, NULL, 0));
    running = run_in_thread(delegate);
    child = must(fork());
    if (child == 0) {
        expect_forked(try_new(1, in_directory("policy.toml"), NULL, 0));
        expect_forked(virInternalDelegateListen(delegate, "fd:0", NULL, 0));
        expect_forked(virInternalDelegateStopListening(delegate, address));
        expect_forked(virInternalDelegateAddConnection(delegate, 0, NULL, 0, 0,
                                                       0, 0));
        expect_forked(virInternalDelegateRun(delegate));
        expect_forked(virInternalDelegateReload(delegate));
        expect_true(virInternalDelegateGetMetrics(delegate) == NULL);
        expect_forked(-1);
        expect_eq_int(virInternalDelegateStop(delegate), -1);
        expect_eq_int(errno, ECHILD);
        virInternalDelegateFree(delegate);
        _exit(EXIT_SUCCESS);
    }
    expect_child_passes(child);
    client_passes(&client, wish(address, subject.pid, 65536));
    stop_and_free(&running);
    subject_end(&subject);
}

/* All at once. */

#define CHANGES 100

static virInternalDelegatePtr contended;

static void *
change_listeners(void *name)
{
    for (int i = 0; i < CHANGES; i++) {
        char address[160];

        snprintf(address, sizeof(address), "unix:%s/%s", directory,
                 (const char *) name);
        expect_success(virInternalDelegateListen(contended, address, name, 0));
        expect_success(virInternalDelegateStopListening(contended, address));
    }
    return NULL;
}

static void *
change_policy(void *unused)
{
    for (int i = 0; i < CHANGES; i++)
        expect_success(virInternalDelegateReload(contended));
    return unused;
}

static void *
read_metrics(void *unused)
{
    for (int i = 0; i < CHANGES; i++) {
        char *metrics = virInternalDelegateGetMetrics(contended);

        expect_true(metrics != NULL);
        free(metrics);
    }
    return unused;
}

static void *
connect_and_leave(void *unused)
{
    for (int i = 0; i < CHANGES; i++) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        int fd = must(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));

        snprintf(address.sun_path, sizeof(address.sun_path), "%s/socket",
                 directory);
        must(connect(fd, (struct sockaddr *) &address, sizeof(address)));
        close(fd);
    }
    return unused;
}

static void
is_served_often(const char *told)
{
    Wish wish = connect_for(told);

    for (int i = 0; i < CHANGES; i++)
        expect_success(virInternalProcessSetMaxMemLock(NULL, wish.pid,
                                                       wish.bytes,
                                                       VIR_INTERNAL_NO_DIRECT));
}

SERVE_TEST(everything_can_be_changed_while_it_runs)
{
    Client client = client_start(is_served_often);
    Subject subject = subject_start(1);
    struct {
        void *(*run)(void *data);
        void *data;
    } bodies[] = {
        { change_listeners, "a" },
        { change_listeners, "b" },
        { change_policy, NULL },
        { read_metrics, NULL },
        { connect_and_leave, NULL },
    };
    pthread_t threads[sizeof(bodies) / sizeof(bodies[0])];
    Running running;

    write_policy(rule(getuid(), "", 65536));
    contended = new_delegate();
    expect_success(virInternalDelegateListen(contended, address_of("socket"),
                                             NULL, 0));
    running = run_in_thread(contended);
    for (size_t i = 0; i < sizeof(bodies) / sizeof(bodies[0]); i++)
        expect_eq_int(pthread_create(&threads[i], NULL, bodies[i].run,
                                     bodies[i].data), 0);
    client_passes(&client, wish(address_of("socket"), subject.pid, 65536));
    for (size_t i = 0; i < sizeof(bodies) / sizeof(bodies[0]); i++)
        expect_eq_int(pthread_join(threads[i], NULL), 0);
    stop_and_free(&running);
    subject_end(&subject);
}
