/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The side that asks a delegate, against delegates that do what they should
 * and against those that do not. */
#define _GNU_SOURCE
#include "delegate.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

/* What most tests ask for: it needs no privilege, and is easily read. */
static const Operation *const scheduler = &operations[4];

#define BACKLOG 4096

static int
connect_delegate(struct _virConnect *conn, const char *address,
                 unsigned int timeout, unsigned int flags)
{
    return virInternalConnectDelegate(conn, VIR_INTERNAL_DELEGATE_VERSION,
                                      address, timeout, flags);
}

/* Asks for it until there was time enough: on a busy machine a short time may
 * end before the delegate has said hello. */
static int
call_until_sent(const Operation *operation, struct _virConnect *conn, pid_t pid)
{
    int result;

    do {
        result = operation->call(conn, pid, 0);
    } while (result == -1
             && virInternalGetLastError()->code == VIR_INTERNAL_ERR_TIMEOUT);
    return result;
}

/* Bad input. */

TEST(another_version_than_the_headers_is_an_error_that_names_both)
{
    expect_error(virInternalConnectDelegate(NULL, 0, "unix:/x", 0, 0),
                 VIR_INTERNAL_ERR_VERSION, EPROTONOSUPPORT,
                 "the program was made for version 0 of the interface to "
                 "delegates, but this library has version 1");
    expect_error(virInternalConnectDelegate(NULL, 2, "unix:/x", 0, 0),
                 VIR_INTERNAL_ERR_VERSION, EPROTONOSUPPORT, "version 2");
    expect_error(virInternalConnectDelegate(NULL, UINT_MAX, NULL, 1U << 31, 2),
                 VIR_INTERNAL_ERR_VERSION, EPROTONOSUPPORT,
                 "version 4294967295");
}

TEST(unknown_flags_are_an_error)
{
    for (unsigned int bit = 1; bit < 32; bit++)
        expect_error(connect_delegate(NULL, "unix:/x", 0, 1U << bit),
                     VIR_INTERNAL_ERR_INVALID_ARG, EINVAL,
                     text("unknown flags 0x%x", 1U << bit));
    expect_error(connect_delegate(NULL, "unix:/x", 0, UINT_MAX),
                 VIR_INTERNAL_ERR_INVALID_ARG, EINVAL,
                 "unknown flags 0xfffffffe");
}

TEST(a_time_limit_is_a_day_at_most)
{
    expect_error(connect_delegate(NULL, "unix:/x", 86400001, 0),
                 VIR_INTERNAL_ERR_INVALID_ARG, EINVAL,
                 "timeoutMs 86400001 is out of range [0, 86400000]");
    expect_error(connect_delegate(NULL, "unix:/x", UINT_MAX, 0),
                 VIR_INTERNAL_ERR_INVALID_ARG, EINVAL,
                 "timeoutMs 4294967295");
}

/* What @length bytes of path make of an address. */
static const char *
address_of_length(size_t length)
{
    static char address[8192] = "unix:/";

    memset(address + strlen("unix:/"), 'x', length - 1);
    address[strlen("unix:") + length] = '\0';
    return address;
}

DELEGATE_TEST(an_address_that_is_none_is_an_error_and_the_old_one_stays)
{
    Fake *fake = fake_start("a", peer_say, BACKLOG);
    const struct {
        const char *address;
        const char *part;
    } bad[] = {
        { NULL, "address is NULL" },
        { "", "the delegate's address '' is neither unix:/path nor fd:NUMBER" },
        { "/run/x", "'/run/x' is neither unix:/path nor fd:NUMBER" },
        { "tcp:localhost:1", "'tcp:localhost:1' is neither" },
        { "unix", "'unix' is neither" },
        { "UNIX:/x", "'UNIX:/x' is neither" },
        { " unix:/x", "' unix:/x' is neither" },
        { "unix:", "'unix:' needs an absolute path" },
        { "unix:x", "'unix:x' needs an absolute path" },
        { "unix:./x", "'unix:./x' needs an absolute path" },
        { "unix:@x", "'unix:@x' needs an absolute path" },
        { "fd:", "'fd:' has no number of a descriptor" },
        { "fd:-1", "'fd:-1' has no number of a descriptor" },
        { "fd:+1", "'fd:+1' has no number" },
        { "fd: 1", "'fd: 1' has no number" },
        { "fd:1x", "'fd:1x' has no number" },
        { "fd:x", "'fd:x' has no number" },
        { "fd:2147483648", "'fd:2147483648' has no number" },
        { "fd:99999999999999999999", "has no number" },
        { "unix:\xff\n", "'unix:\\xff\\n' needs an absolute path" },
        { "fd:2147483647", "fd:2147483647 is not a socket: " },
    };

    fake->shared->answer.verdict = WIRE_REFUSED;
    connect_to(NULL, fake->address, LONG, 0);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        runner_context = text("address %s",
                              bad[i].address ? bad[i].address : "NULL");
        expect_error(connect_delegate(NULL, bad[i].address, 0, 0),
                     VIR_INTERNAL_ERR_INVALID_ARG, EINVAL, bad[i].part);
        expect_eq_int(virInternalGetLastError()->operation, 0);
    }
    runner_context = NULL;
    expect_error(connect_delegate(NULL, address_of_length(108), 0, 0),
                 VIR_INTERNAL_ERR_INVALID_ARG, EINVAL,
                 "the delegate's path is too long: 108 bytes, a socket's can "
                 "have 107");
    expect_error(connect_delegate(NULL, address_of_length(5000), 0, 0),
                 VIR_INTERNAL_ERR_INVALID_ARG, EINVAL, "5000 bytes");
    memset(strchr(address_of_length(5000), ':'), 'x', 1);
    expect_error(connect_delegate(NULL, strchr(address_of_length(5000), 'x'),
                                  0, 0),
                 VIR_INTERNAL_ERR_INVALID_ARG, EINVAL, "x...' is neither");
    expect_eq_int(fake->shared->accepted, 0);
    expect_error(scheduler->call(NULL, getpid(), 0),
                 VIR_INTERNAL_ERR_REFUSED, EPERM, "refused");
    expect_eq_int(fake->shared->requests, 1);
    disconnect_from(NULL);
    fake_stop(fake);
}

TEST(a_descriptor_that_is_no_SEQPACKET_socket_is_an_error)
{
    int file = must(open("/dev/null", O_RDWR | O_CLOEXEC));
    int stream[2], datagram[2];

    must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, stream));
    must(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, datagram));
    expect_error(connect_delegate(NULL, text("fd:%d", file), 0, 0),
                 VIR_INTERNAL_ERR_INVALID_ARG, EINVAL,
                 text("fd:%d is not a socket: ", file));
    expect_error(connect_delegate(NULL, text("fd:%d", stream[0]), 0, 0),
                 VIR_INTERNAL_ERR_INVALID_ARG, EINVAL,
                 text("fd:%d is not a SOCK_SEQPACKET socket", stream[0]));
    expect_error(connect_delegate(NULL, text("fd:%d", datagram[0]), 0, 0),
                 VIR_INTERNAL_ERR_INVALID_ARG, EINVAL,
                 "is not a SOCK_SEQPACKET socket");
    close(file);
    for (int i = 0; i < 2; i++) {
        close(stream[i]);
        close(datagram[i]);
    }
    expect_error(connect_delegate(NULL, text("fd:%d", file), 0, 0),
                 VIR_INTERNAL_ERR_INVALID_ARG, EINVAL, "is not a socket");
    /* Nothing was connected. */
    expect_not_handled(scheduler->call(NULL, getpid(), VIR_INTERNAL_NO_DIRECT));
}

DELEGATE_TEST(a_path_may_have_107_bytes_and_a_time_limit_may_be_a_day)
{
    const char *directory = delegate_directory();
    size_t length = 107 - strlen(directory) - 1;
    char name[108];
    Fake *fake;

    memset(name, 'y', length);
    name[length] = '\0';
    fake = fake_start(name, peer_obey, BACKLOG);
    fake->shared->pid = getpid();
    expect_eq_int(strlen(fake->address), strlen("unix:") + 107);
    connect_to(NULL, fake->address, 86400000, 0);
    expect_success(scheduler->call(NULL, getpid(), 0));
    expect_eq_int(fake->shared->requests, 1);
    disconnect_from(NULL);
    fake_stop(fake);
}

TEST(questions_that_are_none_are_errors)
{
    expect_eq_int(virInternalGetLastRequest(), 0);
    expect_error(virInternalAskDelegate(NULL, 0, 0),
                 VIR_INTERNAL_ERR_INVALID_ARG, EINVAL, "request is 0");
    expect_error(virInternalAskDelegate(NULL, 1, 1),
                 VIR_INTERNAL_ERR_INVALID_ARG, EINVAL, "unknown flags 0x1");
    expect_error(virInternalAskDelegate(CONN(1), 0xabc, 0),
                 VIR_INTERNAL_ERR_UNREACHABLE, ECONNREFUSED,
                 "cannot ask about request 0xabc: no delegate is connected");
}

/* Who is asked, and in what order. */

DELEGATE_TEST(a_delegate_does_every_operation)
{
    Fake *fake = fake_start("a", peer_obey, BACKLOG);

    connect_to(NULL, fake->address, LONG, 0);
    for_each_operation(operation) {
        Subject subject = subject_start(1);

        fake->shared->pid = subject.pid;
        fake->shared->requests = 0;
        expect_success(operation->call(NULL, subject.pid, 0));
        expect_true(operation->is_done(subject.pid));
        expect_eq_int(fake->shared->requests, 1);
        expect_eq_int(fake->shared->operation, operation->id);
        /* The process. */
        expect_eq_int(fake->shared->descriptors, 1);
        expect_success(operation->call(CONN(1), subject.pid,
                                       VIR_INTERNAL_NO_DIRECT));
        expect_eq_int(fake->shared->requests, 2);
        subject_end(&subject);
    }
    disconnect_from(NULL);
    fake_stop(fake);
}

TEST(nothing_is_connected_before_something_is_asked_and_disconnecting_is_free)
{
    int before = must(dup(0));

    disconnect_from(NULL);
    disconnect_from(CONN(1));
    for (int i = 0; i < 100; i++)
        connect_to(CONN(i % 3), "unix:/nowhere", 0, i % 2);
    close(before);
    expect_eq_int(must(dup(0)), before);
    close(before);
    for (int i = 0; i < 3; i++)
        disconnect_from(CONN(i));
    expect_not_handled(scheduler->call(CONN(1), getpid(),
                                       VIR_INTERNAL_NO_DIRECT));
}

DELEGATE_TEST(a_connections_delegate_is_asked_before_that_for_all)
{
    Fake *own = fake_start("own", peer_say, BACKLOG);
    Fake *all = fake_start("all", peer_say, BACKLOG);
    Fake *other = fake_start("other", peer_say, BACKLOG);

    own->shared->answer.verdict = WIRE_NOT_HANDLED;
    all->shared->answer.verdict = WIRE_REFUSED;
    connect_to(NULL, all->address, LONG, 0);
    connect_to(CONN(1), own->address, LONG, 0);
    connect_to(CONN(2), other->address, LONG, 0);
    for_each_operation(operation) {
        own->shared->answer.verdict = WIRE_NOT_HANDLED;
        expect_error(operation->call(CONN(1), getpid(), 0),
                     VIR_INTERNAL_ERR_REFUSED, EPERM, "refused");
        own->shared->answer.verdict = WIRE_REFUSED;
        expect_error(operation->call(CONN(1), getpid(), 0),
                     VIR_INTERNAL_ERR_REFUSED, EPERM, "refused");
        expect_error(operation->call(NULL, getpid(), 0),
                     VIR_INTERNAL_ERR_REFUSED, EPERM, "refused");
    }
    expect_eq_int(own->shared->requests, 2 * OPERATIONS);
    expect_eq_int(all->shared->requests, 2 * OPERATIONS);
    expect_eq_int(other->shared->requests, 0);
    for (int i = 0; i < 3; i++)
        disconnect_from(CONN(i));
    fake_stop(own);
    fake_stop(all);
    fake_stop(other);
}

DELEGATE_TEST(what_no_delegate_handles_is_done_directly_or_not_with_NO_DIRECT)
{
    Fake *fake = fake_start("a", peer_say, BACKLOG);

    fake->shared->answer.verdict = WIRE_NOT_HANDLED;
    connect_to(NULL, fake->address, LONG, 0);
    for_each_operation(operation) {
        Subject subject = subject_start(1);
        State before = state_of(subject.pid, subject.pid);

        expect_not_handled(operation->call(NULL, subject.pid,
                                           VIR_INTERNAL_NO_DIRECT));
        expect_unchanged(&before, subject.pid, subject.pid);
        expect_success(operation->call(NULL, subject.pid, 0));
        expect_true(operation->is_done(subject.pid));
        subject_end(&subject);
    }
    expect_eq_int(fake->shared->requests, 2 * OPERATIONS);
    disconnect_from(NULL);
    fake_stop(fake);
}

/* A delegate that does not have the last operation. */
static void
peer_with_fewer_operations(Fake *fake, int connection)
{
    WireMessage message;

    if (!wire_receive(fake, connection, &message))
        return;
    wire_hello(connection, OPERATIONS - 1);
    while (wire_receive(fake, connection, &message)) {
        WireAnswer answer = { .verdict = WIRE_REFUSED };

        answer.results = wire_results(&message);
        wire_answer(connection, &message.header, answer, NULL, "no");
    }
}

DELEGATE_TEST(an_operation_that_a_delegate_does_not_have_is_not_sent_to_it)
{
    Fake *fake = fake_start("a", peer_with_fewer_operations, BACKLOG);

    connect_to(NULL, fake->address, LONG, 0);
    for (int i = 0; i < 2; i++) {
        expect_not_handled(operations[OPERATIONS - 1].call(
            NULL, getpid(), VIR_INTERNAL_NO_DIRECT));
        expect_success(operations[OPERATIONS - 1].call(NULL, getpid(), 0));
        expect_eq_int(fake->shared->requests, i);
        expect_error(scheduler->call(NULL, getpid(), 0),
                     VIR_INTERNAL_ERR_REFUSED, EPERM, "no");
    }
    expect_eq_int(fake->shared->accepted, 1);
    disconnect_from(NULL);
    fake_stop(fake);
}

DELEGATE_TEST(what_a_delegate_lacked_is_asked_of_the_one_that_takes_its_place)
{
    Fake *fake = fake_start("a", peer_with_fewer_operations, BACKLOG);
    const Operation *last = &operations[OPERATIONS - 1];

    connect_to(NULL, fake->address, LONG, 0);
    expect_not_handled(last->call(NULL, getpid(), VIR_INTERNAL_NO_DIRECT));
    fake_kill(fake);
    expect_error(last->call(NULL, getpid(), 0),
                 VIR_INTERNAL_ERR_UNREACHABLE, ECONNREFUSED,
                 "Connection refused");
    fake_restart(fake);
    expect_not_handled(last->call(NULL, getpid(), VIR_INTERNAL_NO_DIRECT));
    fake_kill(fake);
    fake->peer = peer_say;
    fake->shared->answer.verdict = WIRE_REFUSED;
    fake_restart(fake);
    expect_error(last->call(NULL, getpid(), 0),
                 VIR_INTERNAL_ERR_REFUSED, EPERM, "the delegate refused");
    disconnect_from(NULL);
    fake_stop(fake);
}

/* A delegate that has operations that there are not. */
static void
peer_of_the_future(Fake *fake, int connection)
{
    WireMessage message;
    struct {
        WireHeader header;
        uint32_t count, reserved;
        uint32_t spoken[64][3];
    } hello = {
        .header = {
            .magic = WIRE_MAGIC, .protocol = WIRE_PROTOCOL,
            .size = 8 + 64 * 12
        },
        .count = 64,
    };

    for (uint32_t i = 0; i < 64; i++) {
        hello.spoken[i][0] = i % 2 ? i + 63 : UINT32_MAX - i;
        hello.spoken[i][1] = i;
        hello.spoken[i][2] = UINT32_MAX;
    }
    if (!wire_receive(fake, connection, &message))
        return;
    wire_send(connection, &hello, sizeof(hello));
    while (wire_receive(fake, connection, &message))
        continue;
}

DELEGATE_TEST(operations_that_only_a_delegate_has_are_no_concern)
{
    Fake *fake = fake_start("a", peer_of_the_future, BACKLOG);

    connect_to(NULL, fake->address, LONG, 0);
    for_each_operation(operation)
        expect_not_handled(operation->call(NULL, getpid(),
                                           VIR_INTERNAL_NO_DIRECT));
    expect_eq_int(fake->shared->requests, 0);
    disconnect_from(NULL);
    fake_stop(fake);
}

/* Descriptors come along with its hello and its answers. */
static void
peer_with_gifts(Fake *fake, int connection)
{
    WireMessage message;
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(3 * sizeof(int))];
    } control;
    struct iovec buffer = { &message, 0 };
    struct msghdr sent = {
        .msg_iov = &buffer, .msg_iovlen = 1,
        .msg_control = &control, .msg_controllen = sizeof(control)
    };
    int gifts[3] = { connection, connection, connection };

    memset(&control, 0, sizeof(control));
    control.header.cmsg_len = CMSG_LEN(sizeof(gifts));
    control.header.cmsg_level = SOL_SOCKET;
    control.header.cmsg_type = SCM_RIGHTS;
    memcpy(CMSG_DATA(&control.header), gifts, sizeof(gifts));
    while (wire_receive(fake, connection, &message)) {
        WireAnswer answer = { .verdict = WIRE_REFUSED };

        buffer.iov_len = message.length;
        if (message.header.operation != WIRE_HELLO) {
            message.header.size = sizeof(answer);
            memcpy(message.body, &answer, sizeof(answer));
            buffer.iov_len = sizeof(WireHeader) + sizeof(answer);
        }
        sendmsg(connection, &sent, MSG_NOSIGNAL);
    }
}

DELEGATE_TEST(descriptors_that_a_delegate_sends_are_not_taken)
{
    Fake *fake = fake_start("a", peer_with_gifts, BACKLOG);
    int before = must(dup(0));

    close(before);
    connect_to(NULL, fake->address, LONG, 0);
    for (int i = 0; i < 100; i++)
        expect_error(scheduler->call(NULL, getpid(), 0),
                     VIR_INTERNAL_ERR_REFUSED, EPERM, "refused");
    disconnect_from(NULL);
    expect_eq_int(must(dup(0)), before);
    close(before);
    /* Nobody else holds the connection. */
    wait_for(fake->shared->ended, 1);
    fake_stop(fake);
}

static int cancelled_after;

static void *
call_while_cancelled(void *unused)
{
    expect_eq_int(pthread_cancel(pthread_self()), 0);
    /* The first connects. */
    for (int i = 0; i < 3; i++) {
        expect_error(scheduler->call(NULL, getpid(), 0),
                     VIR_INTERNAL_ERR_REFUSED, EPERM, "refused");
        cancelled_after++;
    }
    pthread_testcancel();
    return unused;
}

DELEGATE_TEST(a_thread_is_not_cancelled_while_it_asks_a_delegate)
{
    Fake *fake = fake_start("a", peer_say, BACKLOG);
    pthread_t thread;
    void *result;

    fake->shared->answer.verdict = WIRE_REFUSED;
    connect_to(NULL, fake->address, LONG, 0);
    expect_eq_int(pthread_create(&thread, NULL, call_while_cancelled, NULL),
                  0);
    expect_eq_int(pthread_join(thread, &result), 0);
    expect_true(result == PTHREAD_CANCELED);
    expect_eq_int(cancelled_after, 3);
    wait_for(fake->shared->ended, 1);
    disconnect_from(NULL);
    fake_stop(fake);
}

DELEGATE_TEST(handlers_are_asked_before_delegates)
{
    Fake *fake = fake_start("a", peer_say, BACKLOG);

    fake->shared->answer.verdict = WIRE_REFUSED;
    connect_to(NULL, fake->address, LONG, 0);
    connect_to(CONN(1), fake->address, LONG, 0);
    for_each_operation(operation) {
        Script own = { .returns = VIR_INTERNAL_NOT_HANDLED };
        Script all = { .returns = -EXDEV };

        set(operation, CONN(1), &own, 0);
        set(operation, NULL, &all, 0);
        fake->shared->requests = 0;
        expect_error(operation->call(CONN(1), getpid(), 0),
                     VIR_INTERNAL_ERR_FAILED, EXDEV, "the handler could not");
        expect_eq_int(fake->shared->requests, 0);
        all.returns = VIR_INTERNAL_NOT_HANDLED;
        expect_error(operation->call(CONN(1), getpid(), 0),
                     VIR_INTERNAL_ERR_REFUSED, EPERM, "the delegate refused");
        expect_eq_int(fake->shared->requests, 1);
        expect_eq_int(own.calls, 2);
        expect_eq_int(all.calls, 2);
        unset(operation, CONN(1));
        unset(operation, NULL);
    }
    disconnect_from(NULL);
    disconnect_from(CONN(1));
    fake_stop(fake);
}

static int
call_again(Script *script)
{
    const Operation *operation = script->data;

    expect_error(operation->call(NULL, script->pid, 0),
                 VIR_INTERNAL_ERR_REFUSED, EPERM, "from the delegate");
    return -EXDEV;
}

DELEGATE_TEST(a_handler_can_ask_the_delegate)
{
    Fake *fake = fake_start("a", peer_say, BACKLOG);

    fake->shared->answer.verdict = WIRE_REFUSED;
    strcpy(fake->shared->text, "from the delegate");
    connect_to(NULL, fake->address, LONG, 0);
    for_each_operation(operation) {
        Script script = { .answer = call_again, .data = (void *) operation };

        set(operation, NULL, &script, 0);
        expect_error(operation->call(NULL, getpid(), 0),
                     VIR_INTERNAL_ERR_FAILED, EXDEV, "the handler could not");
        unset(operation, NULL);
    }
    expect_eq_int(fake->shared->requests, OPERATIONS);
    disconnect_from(NULL);
    fake_stop(fake);
}

DELEGATE_TEST(another_delegate_takes_the_place_of_the_one_before)
{
    Fake *first = fake_start("first", peer_say, BACKLOG);
    Fake *second = fake_start("second", peer_say, BACKLOG);

    connect_to(NULL, first->address, LONG, 0);
    first->shared->answer.verdict = WIRE_REFUSED;
    strcpy(first->shared->text, "the first");
    second->shared->answer.verdict = WIRE_REFUSED;
    strcpy(second->shared->text, "the second");
    expect_error(scheduler->call(NULL, getpid(), 0),
                 VIR_INTERNAL_ERR_REFUSED, EPERM, "the first");
    connect_to(NULL, second->address, LONG, 0);
    wait_for(first->shared->ended, 1);
    expect_error(scheduler->call(NULL, getpid(), 0),
                 VIR_INTERNAL_ERR_REFUSED, EPERM, "the second");
    /* The same again is a new one, too. */
    connect_to(NULL, second->address, LONG, 0);
    wait_for(second->shared->ended, 1);
    expect_error(scheduler->call(NULL, getpid(), 0),
                 VIR_INTERNAL_ERR_REFUSED, EPERM, "the second");
    expect_eq_int(first->shared->requests, 1);
    expect_eq_int(second->shared->accepted, 2);
    disconnect_from(NULL);
    wait_for(second->shared->ended, 2);
    expect_not_handled(scheduler->call(NULL, getpid(),
                                       VIR_INTERNAL_NO_DIRECT));
    fake_stop(first);
    fake_stop(second);
}

DELEGATE_TEST(ConnectionClosed_disconnects_that_connections_delegate_only)
{
    Fake *fake = fake_start("a", peer_say, BACKLOG);

    fake->shared->answer.verdict = WIRE_REFUSED;
    for (int i = 1; i < 3; i++) {
        connect_to(CONN(i), fake->address, LONG, 0);
        expect_error(scheduler->call(CONN(i), getpid(), 0),
                     VIR_INTERNAL_ERR_REFUSED, EPERM, "refused");
    }
    expect_eq_int(fake->shared->accepted, 2);
    expect_success(virInternalConnectionClosed(CONN(1)));
    wait_for(fake->shared->ended, 1);
    expect_not_handled(scheduler->call(CONN(1), getpid(),
                                       VIR_INTERNAL_NO_DIRECT));
    expect_error(scheduler->call(CONN(2), getpid(), 0),
                 VIR_INTERNAL_ERR_REFUSED, EPERM, "refused");
    expect_eq_int(fake->shared->accepted, 2);
    disconnect_from(CONN(2));
    wait_for(fake->shared->ended, 2);
    fake_stop(fake);
}

/* What a delegate answers. */

DELEGATE_TEST(what_is_refused_is_an_error_and_never_done_also_if_optional)
{
    Fake *fake = fake_start("a", peer_say, BACKLOG);

    fake->shared->answer.verdict = WIRE_REFUSED;
    strcpy(fake->shared->text, "rule \"x\" does not allow it");
    for (unsigned int flags = 0; flags <= VIR_INTERNAL_DELEGATE_OPTIONAL;
         flags++) {
        connect_to(CONN(1), fake->address, LONG, flags);
        for_each_operation(operation) {
            Subject subject = subject_start(1);
            State before = state_of(subject.pid, subject.pid);

            expect_error(operation->call(CONN(1), subject.pid, 0),
                         VIR_INTERNAL_ERR_REFUSED, EPERM,
                         "the delegate refused to ");
            expect_str_contains(virInternalGetLastError()->message,
                                ": rule \"x\" does not allow it");
            expect_eq_int(virInternalGetLastError()->operation, operation->id);
            expect_error(operation->call(CONN(1), subject.pid,
                                         VIR_INTERNAL_NO_DIRECT),
                         VIR_INTERNAL_ERR_REFUSED, EPERM, "rule \"x\"");
            expect_unchanged(&before, subject.pid, subject.pid);
            subject_end(&subject);
        }
    }
    disconnect_from(CONN(1));
    fake_stop(fake);
}

DELEGATE_TEST(a_delegates_failure_is_passed_on_with_its_errno_and_code)
{
    Fake *fake = fake_start("a", peer_say, BACKLOG);
    const struct {
        unsigned int code;
        int expected;
    } codes[] = {
        { VIR_INTERNAL_ERR_INVALID_ARG, VIR_INTERNAL_ERR_INVALID_ARG },
        { VIR_INTERNAL_ERR_VERSION, VIR_INTERNAL_ERR_VERSION },
        { VIR_INTERNAL_ERR_NO_PROCESS, VIR_INTERNAL_ERR_NO_PROCESS },
        { VIR_INTERNAL_ERR_FAILED, VIR_INTERNAL_ERR_FAILED },
        { VIR_INTERNAL_ERR_READ_BACK, VIR_INTERNAL_ERR_READ_BACK },
        { VIR_INTERNAL_ERR_UNSUPPORTED, VIR_INTERNAL_ERR_UNSUPPORTED },
        /* What only this side can say. */
        { VIR_INTERNAL_ERR_REFUSED, VIR_INTERNAL_ERR_FAILED },
        { VIR_INTERNAL_ERR_UNREACHABLE, VIR_INTERNAL_ERR_FAILED },
        { VIR_INTERNAL_ERR_TIMEOUT, VIR_INTERNAL_ERR_FAILED },
        { VIR_INTERNAL_ERR_UNKNOWN_OUTCOME, VIR_INTERNAL_ERR_FAILED },
        { VIR_INTERNAL_ERR_FORKED, VIR_INTERNAL_ERR_FAILED },
        { 0, VIR_INTERNAL_ERR_FAILED },
        { 12, VIR_INTERNAL_ERR_FAILED },
        { UINT_MAX, VIR_INTERNAL_ERR_FAILED },
    };
    const int errnums[] = { 1, EXDEV, ESRCH, 4095 };

    fake->shared->answer.verdict = WIRE_FAILED;
    strcpy(fake->shared->text, "it did not work");
    connect_to(NULL, fake->address, LONG, VIR_INTERNAL_DELEGATE_OPTIONAL);
    for_each_operation(operation) {
        State before = state_of(getpid(), getpid());

        for (size_t i = 0; i < sizeof(codes) / sizeof(codes[0]); i++) {
            fake->shared->answer.code = codes[i].code;
            fake->shared->answer.errnum = errnums[i % 4];
            expect_error(operation->call(NULL, getpid(), 0),
                         codes[i].expected, errnums[i % 4],
                         "the delegate could not ");
            expect_str_contains(virInternalGetLastError()->message,
                                ": it did not work");
        }
        expect_unchanged(&before, getpid(), getpid());
    }
    expect_eq_int(fake->shared->accepted, 1);
    disconnect_from(NULL);
    fake_stop(fake);
}

DELEGATE_TEST(a_text_that_cannot_be_printed_is_left_out)
{
    Fake *fake = fake_start("a", peer_say, BACKLOG);
    const char *texts[] = { "", "a\nb", "\x1b[31mred", "\xff\xfe", "a\x7f",
                            "\xc2\x85" };

    fake->shared->answer.verdict = WIRE_REFUSED;
    connect_to(NULL, fake->address, LONG, 0);
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        runner_context = text("text %zu", i);
        strcpy(fake->shared->text, texts[i]);
        expect_error(scheduler->call(NULL, getpid(), 0),
                     VIR_INTERNAL_ERR_REFUSED, EPERM,
                     ": it does not say why");
    }
    runner_context = NULL;
    strcpy(fake->shared->text, "gr\xc3\xbc\xc3\x9f dich, %s %n");
    expect_error(scheduler->call(NULL, getpid(), 0),
                 VIR_INTERNAL_ERR_REFUSED, EPERM,
                 ": gr\xc3\xbc\xc3\x9f dich, %s %n");
    memset(fake->shared->text, 'z', 400);
    fake->shared->text[400] = '\0';
    expect_error(scheduler->call(NULL, getpid(), 0),
                 VIR_INTERNAL_ERR_REFUSED, EPERM, "zzzz");
    disconnect_from(NULL);
    fake_stop(fake);
}

#define THREADS 8

/* A text where the results of threads would be. */
static void
peer_without_results(Fake *fake, int connection)
{
    WireMessage message;

    if (!wire_greet(fake, connection))
        return;
    while (wire_receive(fake, connection, &message))
        wire_answer(connection, &message.header, fake->shared->answer, NULL,
                    fake->shared->text);
}

DELEGATE_TEST(a_failure_without_results_has_its_text_and_fails_each_thread)
{
    Fake *fake = fake_start("a", peer_without_results, BACKLOG);
    const char *texts[] = {
        "", "short", "the delegate does 16 operations of one scope at a time"
    };
    pid_t tids[THREADS];
    int results[THREADS];

    connect_to(NULL, fake->address, LONG, 0);
    for (int i = 0; i < THREADS; i++)
        tids[i] = getpid();
    for (int i = 0; i < 6; i++) {
        const char *said = texts[i / 2];
        bool refused = i % 2;

        runner_context = text("text '%s'", said);
        fake->shared->answer.verdict = refused ? WIRE_REFUSED : WIRE_FAILED;
        fake->shared->answer.errnum = EXDEV;
        strcpy(fake->shared->text, said);
        memset(results, 0x55, sizeof(results));
        expect_error(virInternalCgroupAddThreads(
                         NULL, getpid(), NULL, VIR_INTERNAL_THREAD_VCPU, tids,
                         NULL, THREADS, NULL, 0, results, 0),
                     refused ? VIR_INTERNAL_ERR_REFUSED
                             : VIR_INTERNAL_ERR_FAILED,
                     refused ? EPERM : EXDEV,
                     *said ? said : "it does not say why");
        for (int j = 0; j < THREADS; j++)
            expect_eq_int(results[j], refused ? -EPERM : -EXDEV);
    }
    runner_context = NULL;
    disconnect_from(NULL);
    fake_stop(fake);
}

/* Results that are none, or too many, or too few. */
static void
peer_with_odd_results(Fake *fake, int connection)
{
    WireMessage message;
    int32_t results[2 * THREADS];

    if (!wire_greet(fake, connection))
        return;
    while (wire_receive(fake, connection, &message)) {
        for (int i = 0; i < 2 * THREADS; i++)
            results[i] = fake->shared->found;
        wire_answer(connection, &message.header, fake->shared->answer,
                    results, NULL);
    }
}

DELEGATE_TEST(results_that_cannot_be_right_are_found_out)
{
    Fake *fake = fake_start("a", peer_with_odd_results, BACKLOG);
    const int counts[] = { 0, 1, THREADS - 1, THREADS + 1, 2 * THREADS };
    const int values[] = { 1, 4096, -4096, INT_MIN, INT_MAX };
    pid_t tids[THREADS];
    int results[THREADS];

    connect_to(NULL, fake->address, LONG, 0);
    for (int i = 0; i < THREADS; i++)
        tids[i] = getpid();
    for (int i = 0; i < 10; i++) {
        runner_context = text("case %d", i);
        fake->shared->answer.results = i < 5 ? counts[i] : THREADS;
        fake->shared->found = i < 5 ? -ENOTTY : values[i - 5];
        memset(results, 0x55, sizeof(results));
        expect_error(virInternalCgroupAddThreads(
                         NULL, getpid(), NULL, VIR_INTERNAL_THREAD_VCPU,
                         tids, NULL, THREADS, NULL, 0, results, 0),
                     VIR_INTERNAL_ERR_UNKNOWN_OUTCOME, EINPROGRESS,
                     i < 5 ? "cannot be understood: it has not as many results "
                             "as there are threads"
                           : "cannot be understood: a result is neither 0 nor "
                             "-errno");
        for (int j = 0; j < THREADS; j++)
            expect_eq_int(results[j], -EINPROGRESS);
    }
    runner_context = NULL;
    disconnect_from(NULL);
    fake_stop(fake);
}

DELEGATE_TEST(a_delegate_that_did_nothing_and_says_it_did_is_found_out)
{
    Fake *fake = fake_start("a", peer_say, BACKLOG);

    connect_to(NULL, fake->address, LONG, 0);
    for_each_operation(operation) {
        Subject subject = subject_start(1);

        /* Here there is nothing that it could have done. */
        if (operation->id == VIR_INTERNAL_OP_CGROUP_ADD_THREADS
            || operation->is_done(subject.pid)) {
            subject_end(&subject);
            continue;
        }
        if (operation->id == VIR_INTERNAL_OP_PROCESS_SET_MAX_MEM_LOCK
            || operation->id == VIR_INTERNAL_OP_PROCESS_SET_MAX_PROCESSES
            || operation->id == VIR_INTERNAL_OP_PROCESS_SET_MAX_FILES) {
            /* More than asked for would do. */
            struct rlimit none = { 0, 0 };
            int resources[] = { RLIMIT_MEMLOCK, RLIMIT_NPROC, RLIMIT_NOFILE };
            struct rlimit limit;

            must(prlimit(subject.pid, resources[operation->id - 1], NULL,
                         &limit));
            none.rlim_max = limit.rlim_max;
            must(prlimit(subject.pid, resources[operation->id - 1], &none,
                         NULL));
        }
        expect_error(operation->call(NULL, subject.pid, 0),
                     VIR_INTERNAL_ERR_READ_BACK, EREMOTEIO,
                     "a handler or delegate was to ");
        subject_end(&subject);
    }
    expect_true(fake->shared->requests >= 4);
    disconnect_from(NULL);
    fake_stop(fake);
}

static void
peer_that_kills(Fake *fake, int connection)
{
    WireMessage message;

    if (!wire_greet(fake, connection))
        return;
    while (wire_receive(fake, connection, &message)) {
        WireAnswer answer = { .results = wire_results(&message) };

        operations[message.header.operation - 1].act(fake->shared->pid);
        kill(fake->shared->pid, SIGKILL);
        /* Until its parent has seen it. */
        fake->shared->phase = 1;
        while (__atomic_load_n(&fake->shared->phase, __ATOMIC_ACQUIRE) != 2)
            usleep(500);
        wire_answer(connection, &message.header, answer, NULL, NULL);
    }
}

static void *
reap(void *argument)
{
    Fake *fake = argument;

    wait_for(fake->shared->phase, 1);
    must(waitpid(fake->shared->pid, NULL, 0));
    __atomic_store_n(&fake->shared->phase, 2, __ATOMIC_RELEASE);
    return NULL;
}

DELEGATE_TEST(a_process_that_dies_meanwhile_is_NO_PROCESS)
{
    Fake *fake = fake_start("a", peer_that_kills, BACKLOG);

    connect_to(NULL, fake->address, LONG, 0);
    for_each_operation(operation) {
        Subject subject = subject_start(1);
        pthread_t reaper;

        fake->shared->pid = subject.pid;
        fake->shared->phase = 0;
        expect_eq_int(pthread_create(&reaper, NULL, reap, fake), 0);
        expect_error(operation->call(NULL, subject.pid, 0),
                     VIR_INTERNAL_ERR_NO_PROCESS, ESRCH,
                     "went away meanwhile");
        expect_eq_int(pthread_join(reaper, NULL), 0);
    }
    disconnect_from(NULL);
    fake_stop(fake);
}

TEST(a_process_that_is_not_there_is_no_matter_for_a_delegate)
{
    connect_to(NULL, "unix:/nowhere", LONG, 0);
    for_each_operation(operation)
        expect_error(operation->call(NULL, pid_of_nobody(), 0),
                     VIR_INTERNAL_ERR_NO_PROCESS, ESRCH, "process");
    disconnect_from(NULL);
}

/* A delegate that is away. */

static void
expect_away(const char *address, const char *part)
{
    connect_to(NULL, address, LONG, 0);
    for_each_operation(operation) {
        Subject subject = subject_start(1);
        State before = state_of(subject.pid, subject.pid);

        expect_error(operation->call(NULL, subject.pid, 0),
                     VIR_INTERNAL_ERR_UNREACHABLE, ECONNREFUSED,
                     text("the delegate at %s cannot be reached: %s", address,
                          part));
        expect_error(operation->call(NULL, subject.pid,
                                     VIR_INTERNAL_NO_DIRECT),
                     VIR_INTERNAL_ERR_UNREACHABLE, ECONNREFUSED, part);
        expect_unchanged(&before, subject.pid, subject.pid);
        connect_to(CONN(1), address, LONG, VIR_INTERNAL_DELEGATE_OPTIONAL);
        expect_error(operation->call(CONN(1), subject.pid, 0),
                     VIR_INTERNAL_ERR_UNREACHABLE, ECONNREFUSED, part);
        connect_to(NULL, address, LONG, VIR_INTERNAL_DELEGATE_OPTIONAL);
        expect_not_handled(operation->call(CONN(1), subject.pid,
                                           VIR_INTERNAL_NO_DIRECT));
        expect_unchanged(&before, subject.pid, subject.pid);
        expect_success(operation->call(CONN(1), subject.pid, 0));
        expect_true(operation->is_done(subject.pid));
        subject_end(&subject);
        disconnect_from(CONN(1));
        connect_to(NULL, address, LONG, 0);
    }
    expect_eq_int(virInternalGetLastRequest(), 0);
    expect_error(virInternalAskDelegate(NULL, 7, 0),
                 VIR_INTERNAL_ERR_UNREACHABLE, ECONNREFUSED,
                 text("cannot tell what became of request 0x7: the delegate "
                      "at %s cannot be reached: %s", address, part));
    disconnect_from(NULL);
}

DELEGATE_TEST(a_delegate_is_UNREACHABLE_where_there_is_no_socket)
{
    expect_away(text("unix:%s/none", delegate_directory()), "No such file");
}

DELEGATE_TEST(a_delegate_is_UNREACHABLE_where_nobody_listens)
{
    Fake *fake = fake_start("a", NULL, 0);

    fake_kill(fake);
    expect_away(fake->address, "Connection refused");
    fake_stop(fake);
}

DELEGATE_TEST(a_delegate_is_UNREACHABLE_where_there_is_a_file)
{
    const char *address = text("unix:%s/file", delegate_directory());

    close(must(creat(address + strlen("unix:"), 0644)));
    expect_away(address, "Connection refused");
}

DELEGATE_TEST(a_delegate_is_UNREACHABLE_where_another_kind_of_socket_listens)
{
    const char *address = text("unix:%s/stream", delegate_directory());
    struct sockaddr_un name = { .sun_family = AF_UNIX };
    int listener = must(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));

    strcpy(name.sun_path, address + strlen("unix:"));
    must(bind(listener, (struct sockaddr *) &name, sizeof(name)));
    must(listen(listener, 1));
    expect_away(address, "Protocol wrong type for socket");
    close(listener);
}

static void
peer_that_closes(Fake *fake, int connection)
{
    (void) fake;
    (void) connection;
}

DELEGATE_TEST(a_delegate_that_closes_at_once_is_UNREACHABLE)
{
    Fake *fake = fake_start("a", peer_that_closes, BACKLOG);

    connect_to(NULL, fake->address, LONG, 0);
    expect_error(scheduler->call(NULL, getpid(), 0),
                 VIR_INTERNAL_ERR_UNREACHABLE, ECONNREFUSED,
                 "cannot be reached: ");
    connect_to(NULL, fake->address, LONG, VIR_INTERNAL_DELEGATE_OPTIONAL);
    expect_success(scheduler->call(NULL, getpid(), 0));
    disconnect_from(NULL);
    fake_stop(fake);
}

/* What a delegate says in the place of a hello. */

typedef struct {
    const char *name;
    const char *part;
    void (*change)(WireHeader *header, unsigned char *body, size_t *length);
} Spoilt;

static uint32_t
swapped(uint32_t number)
{
    return __builtin_bswap32(number);
}

#define SPOIL(function) \
    static void \
    function(__attribute__((unused)) WireHeader *header, \
             __attribute__((unused)) unsigned char *body, \
             __attribute__((unused)) size_t *length)

SPOIL(spoil_magic) { header->magic++; }
SPOIL(spoil_order) { header->magic = swapped(header->magic); }
SPOIL(spoil_protocol) { header->protocol = 2; }
SPOIL(spoil_protocol_0) { header->protocol = 0; }
SPOIL(spoil_flags) { header->flags = 0x80000000; }
SPOIL(spoil_size_up) { header->size++; }
SPOIL(spoil_size_down) { header->size--; }
SPOIL(spoil_size_huge) { header->size = UINT32_MAX; }
SPOIL(spoil_size_beyond) { header->size = WIRE_BODY_MAX + 1; }
SPOIL(spoil_cut) { *length -= 1; }
SPOIL(spoil_header_only) { *length = sizeof(WireHeader); }
SPOIL(spoil_half_a_header) { *length = sizeof(WireHeader) / 2; }
SPOIL(spoil_one_byte) { *length = 1; }
SPOIL(spoil_longest) { *length = sizeof(WireHeader) + WIRE_BODY_MAX; }
SPOIL(spoil_operation) { header->operation = 3; }
SPOIL(spoil_operation_high) { header->operation = UINT32_MAX - 1; }
SPOIL(spoil_first_word) { memset(body, 0xff, 4); }
SPOIL(spoil_second_word) { body[4] = 1; }

static const Spoilt spoilt_hellos[] = {
    { "magic", "the message does not begin with VIRd", spoil_magic },
    { "order", "the message has the other byte order", spoil_order },
    { "protocol", "the protocol's version is not 1", spoil_protocol },
    { "protocol 0", "the protocol's version is not 1", spoil_protocol_0 },
    { "flags", "the header has unknown flags", spoil_flags },
    { "size up", "the body is not as long as the header says", spoil_size_up },
    { "size down", "the body is not as long as", spoil_size_down },
    { "huge", "the body is longer than 32768 bytes", spoil_size_huge },
    { "beyond", "the body is longer than 32768 bytes", spoil_size_beyond },
    { "cut", "the body is not as long as the header says", spoil_cut },
    { "header only", "the body is not as long", spoil_header_only },
    { "half a header", "the message is too short", spoil_half_a_header },
    { "one byte", "the message is too short", spoil_one_byte },
    { "longest", "the answer is too long", spoil_longest },
    { "operation", "there is no hello", spoil_operation },
    { "operation high", "there is no hello", spoil_operation_high },
    { "count", "the hello has more than 64 operations", spoil_first_word },
    { "reserved", "the hello's reserved bytes are not 0", spoil_second_word },
};
#define SPOILT_HELLOS (sizeof(spoilt_hellos) / sizeof(spoilt_hellos[0]))

static void
peer_with_spoilt_hello(Fake *fake, int connection)
{
    WireMessage message = { .header = { 0 } };
    size_t length;

    if (!wire_receive(fake, connection, &message))
        return;
    memset(&message, 0, sizeof(message));
    message.header.magic = WIRE_MAGIC;
    message.header.protocol = WIRE_PROTOCOL;
    message.header.size = 8 + 12;
    message.body[0] = 1;
    message.body[8] = message.body[12] = message.body[16] = 1;
    length = sizeof(WireHeader) + message.header.size;
    spoilt_hellos[fake->shared->phase].change(&message.header, message.body,
                                              &length);
    wire_send(connection, &message, length);
    while (wire_receive(fake, connection, &message))
        continue;
}

DELEGATE_TEST(a_hello_that_is_none_is_an_error_and_nothing_is_sent_or_done)
{
    Fake *fake = fake_start("a", peer_with_spoilt_hello, BACKLOG);
    State before = state_of(getpid(), getpid());

    for (size_t i = 0; i < SPOILT_HELLOS; i++) {
        runner_context = spoilt_hellos[i].name;
        fake->shared->phase = i;
        connect_to(NULL, fake->address, LONG,
                   i % 2 ? VIR_INTERNAL_DELEGATE_OPTIONAL : 0);
        expect_error(scheduler->call(NULL, getpid(), 0),
                     VIR_INTERNAL_ERR_FAILED, EPROTO,
                     text("what is at %s does not speak as a delegate does: "
                          "%s", fake->address, spoilt_hellos[i].part));
        wait_for(fake->shared->ended, (int) i + 1);
    }
    runner_context = NULL;
    expect_eq_int(fake->shared->requests, 0);
    expect_eq_int(virInternalGetLastRequest(), 0);
    expect_unchanged(&before, getpid(), getpid());
    disconnect_from(NULL);
    fake_stop(fake);
}

/* A delegate's last words. */
static void
peer_that_dismisses(Fake *fake, int connection)
{
    WireMessage message;
    WireHeader header = {
        .magic = WIRE_MAGIC, .protocol = WIRE_PROTOCOL,
        .operation = WIRE_OUTCOME
    };
    WireAnswer answer = {
        .verdict = WIRE_REFUSED, .code = VIR_INTERNAL_ERR_REFUSED,
        .errnum = EPERM
    };

    /* In the place of a hello, or of an answer. */
    if (fake->shared->phase == 1
        && (!wire_greet(fake, connection)
            || !wire_receive(fake, connection, &message)))
        return;
    wire_answer(connection, &header, answer, NULL, "too many connections");
    if (fake->shared->phase == 0)
        wire_receive(fake, connection, &message);
}

DELEGATE_TEST(a_delegate_that_ends_the_connection_can_say_why)
{
    Fake *fake = fake_start("a", peer_that_dismisses, BACKLOG);

    connect_to(NULL, fake->address, LONG, VIR_INTERNAL_DELEGATE_OPTIONAL);
    for (int phase = 0; phase < 2; phase++) {
        fake->shared->phase = phase;
        for_each_operation(operation)
            expect_error(operation->call(NULL, getpid(), 0),
                         VIR_INTERNAL_ERR_REFUSED, EPERM,
                         text("the delegate at %s ended the connection: too "
                              "many connections", fake->address));
    }
    disconnect_from(NULL);
    fake_stop(fake);
}

/* Answers that are none. */

SPOIL(spoil_request) { header->request++; }
SPOIL(spoil_to_hello) { header->operation = WIRE_HELLO; }
SPOIL(spoil_verdict) { body[0] = 5; }
SPOIL(spoil_verdict_high) { body[3] = 0x80; }
SPOIL(spoil_errno) { body[0] = WIRE_FAILED; }
SPOIL(spoil_errno_high)
{
    body[0] = WIRE_FAILED;
    body[9] = 0x10;
}
SPOIL(spoil_errno_negative)
{
    body[0] = WIRE_FAILED;
    memset(body + 8, 0xff, 4);
}
SPOIL(spoil_results) { body[12] = 1; }
SPOIL(spoil_results_huge) { memset(body + 12, 0xff, 4); }
SPOIL(spoil_text) { body[16] = 1; }
SPOIL(spoil_text_huge) { memset(body + 16, 0xff, 4); }
SPOIL(spoil_reserved) { body[20] = 1; }
SPOIL(spoil_nothing) { *length = 0; }

static const Spoilt spoilt_answers[] = {
    { "magic", "the message does not begin with VIRd", spoil_magic },
    { "order", "the message has the other byte order", spoil_order },
    { "protocol", "the protocol's version is not 1", spoil_protocol },
    { "flags", "the header has unknown flags", spoil_flags },
    { "size up", "it is not as long as it says", spoil_size_up },
    { "size down", "it is not as long as it says", spoil_size_down },
    { "huge", "the body is longer than 32768 bytes", spoil_size_huge },
    { "cut", "the message is too short", spoil_cut },
    { "header only", "the message is too short", spoil_header_only },
    { "one byte", "the message is too short", spoil_one_byte },
    { "longest", "the answer is too long", spoil_longest },
    { "request", "it is to another request", spoil_request },
    { "operation", "it is to another request", spoil_operation },
    { "hello", "it is to another request", spoil_to_hello },
    { "verdict", "the answer is none that there is", spoil_verdict },
    { "verdict high", "the answer is none that there is", spoil_verdict_high },
    { "errno", "the answer's errno is none", spoil_errno },
    { "errno high", "the answer's errno is none", spoil_errno_high },
    { "errno negative", "the answer's errno is none", spoil_errno_negative },
    { "results", "it is not as long as it says", spoil_results },
    { "results huge", "it is not as long as it says", spoil_results_huge },
    { "text", "it is not as long as it says", spoil_text },
    { "text huge", "the answer's text is longer than 400", spoil_text_huge },
    { "reserved", "the answer's reserved bytes are not 0", spoil_reserved },
    { "nothing", "the connection ended", spoil_nothing },
};
#define SPOILT_ANSWERS (sizeof(spoilt_answers) / sizeof(spoilt_answers[0]))

static void
peer_with_spoilt_answer(Fake *fake, int connection)
{
    WireMessage message;
    size_t length = sizeof(WireHeader) + sizeof(WireAnswer);

    if (!wire_greet(fake, connection)
        || !wire_receive(fake, connection, &message))
        return;
    memset(message.body, 0, sizeof(message.body));
    message.header.size = sizeof(WireAnswer);
    spoilt_answers[fake->shared->phase].change(&message.header, message.body,
                                               &length);
    wire_send(connection, &message, length);
    while (wire_receive(fake, connection, &message))
        continue;
}

DELEGATE_TEST(an_answer_that_is_none_is_UNKNOWN_OUTCOME_and_ends_the_connection)
{
    Fake *fake = fake_start("a", peer_with_spoilt_answer, BACKLOG);
    State before = state_of(getpid(), getpid());

    connect_to(NULL, fake->address, LONG, VIR_INTERNAL_DELEGATE_OPTIONAL);
    for (size_t i = 0; i < SPOILT_ANSWERS; i++) {
        runner_context = spoilt_answers[i].name;
        fake->shared->phase = i;
        expect_error(scheduler->call(NULL, getpid(), 0),
                     VIR_INTERNAL_ERR_UNKNOWN_OUTCOME, EINPROGRESS,
                     spoilt_answers[i].part);
        expect_str_contains(virInternalGetLastError()->message,
                            "it is not known whether the delegate did ");
        expect_str_contains(virInternalGetLastError()->message,
                            text("request %#llx",
                                 (unsigned long long) fake->shared->request));
        expect_true(virInternalGetLastRequest() == fake->shared->request);
        wait_for(fake->shared->ended, (int) i + 1);
        expect_eq_int(fake->shared->requests, i + 1);
    }
    runner_context = NULL;
    expect_unchanged(&before, getpid(), getpid());
    disconnect_from(NULL);
    fake_stop(fake);
}

DELEGATE_TEST(a_delegate_that_does_not_know_what_it_did_can_be_asked_again)
{
    Fake *fake = fake_start("a", peer_say, BACKLOG);

    fake->shared->answer.verdict = WIRE_UNKNOWN;
    strcpy(fake->shared->text, "it is a mess");
    connect_to(NULL, fake->address, LONG, VIR_INTERNAL_DELEGATE_OPTIONAL);
    expect_error(scheduler->call(NULL, getpid(), 0),
                 VIR_INTERNAL_ERR_UNKNOWN_OUTCOME, EINPROGRESS,
                 ": it is a mess");
    expect_true(virInternalGetLastRequest() == fake->shared->request);
    disconnect_from(NULL);
    fake_stop(fake);
}

/* One that has as many descriptors as it may is not one without a delegate. */
DELEGATE_TEST(without_a_free_descriptor_a_call_fails_also_if_optional)
{
    Fake *fake = fake_start("a", peer_say, BACKLOG);
    State before = state_of(getpid(), getpid());
    struct rlimit limit, less;
    int next;

    fake->shared->answer.verdict = WIRE_REFUSED;
    connect_to(NULL, fake->address, LONG, VIR_INTERNAL_DELEGATE_OPTIONAL);
    must(getrlimit(RLIMIT_NOFILE, &limit));
    next = must(dup(0));
    close(next);
    /* One for the process, none for the socket. */
    less = (struct rlimit) { next + 1, limit.rlim_max };
    must(setrlimit(RLIMIT_NOFILE, &less));
    expect_error(scheduler->call(NULL, getpid(), 0), VIR_INTERNAL_ERR_FAILED,
                 EMFILE,
                 text("cannot ask the delegate at %s: Too many open files",
                      fake->address));
    must(setrlimit(RLIMIT_NOFILE, &limit));
    expect_unchanged(&before, getpid(), getpid());
    expect_error(scheduler->call(NULL, getpid(), 0),
                 VIR_INTERNAL_ERR_REFUSED, EPERM, "the delegate refused");
    disconnect_from(NULL);
    fake_stop(fake);
}

/* Time. */

static void
peer_mute(Fake *fake, int connection)
{
    WireMessage message;

    while (wire_receive(fake, connection, &message))
        continue;
}

static void
expect_timeout(const char *address)
{
    State before = state_of(getpid(), getpid());

    /* It is there: optional is no help. */
    connect_to(NULL, address, SHORT, VIR_INTERNAL_DELEGATE_OPTIONAL);
    for (int i = 0; i < 2; i++)
        expect_error(scheduler->call(NULL, getpid(), 0),
                     VIR_INTERNAL_ERR_TIMEOUT, ETIMEDOUT,
                     text("the delegate at %s was not ready within %d ms; "
                          "nothing was sent", address, SHORT));
    expect_eq_int(virInternalGetLastRequest(), 0);
    expect_error(virInternalAskDelegate(NULL, 0xabc, 0),
                 VIR_INTERNAL_ERR_TIMEOUT, ETIMEDOUT,
                 "cannot tell what became of request 0xabc: the delegate at ");
    expect_unchanged(&before, getpid(), getpid());
    disconnect_from(NULL);
}

DELEGATE_TEST(a_delegate_that_never_says_hello_is_TIMEOUT_and_nothing_is_sent)
{
    Fake *fake = fake_start("a", peer_mute, BACKLOG);

    expect_timeout(fake->address);
    expect_eq_int(fake->shared->requests, 0);
    fake_stop(fake);
}

DELEGATE_TEST(a_delegate_that_never_accepts_is_TIMEOUT)
{
    Fake *fake = fake_start("a", NULL, 16);

    expect_timeout(fake->address);
    fake_stop(fake);
}

DELEGATE_TEST(a_delegate_whose_queue_is_full_is_TIMEOUT)
{
    Fake *fake = fake_start("a", NULL, 0);
    struct sockaddr_un name = { .sun_family = AF_UNIX };
    int waiting[4], count = 0;

    strcpy(name.sun_path, fake->address + strlen("unix:"));
    while (count < 4) {
        int fd = must(socket(AF_UNIX,
                             SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));

        waiting[count++] = fd;
        if (connect(fd, (struct sockaddr *) &name, sizeof(name)) < 0)
            break;
    }
    expect_eq_int(errno, EAGAIN);
    expect_timeout(fake->address);
    while (count > 0)
        close(waiting[--count]);
    fake_stop(fake);
}

static void
peer_that_answers_questions(Fake *fake, int connection)
{
    WireMessage message;

    if (!wire_greet(fake, connection))
        return;
    while (wire_receive(fake, connection, &message)) {
        /* To nothing else. */
        if (message.header.operation == WIRE_OUTCOME) {
            memcpy(&fake->shared->request, message.body, sizeof(uint64_t));
            wire_answer(connection, &message.header, fake->shared->answer,
                        NULL, fake->shared->text);
        }
    }
}

DELEGATE_TEST(an_answer_that_does_not_come_is_UNKNOWN_OUTCOME_and_can_be_asked)
{
    Fake *fake = fake_start("a", peer_that_answers_questions, BACKLOG);
    FakeShared *shared = fake->shared;
    unsigned long long request;
    State before = state_of(getpid(), getpid());

    connect_to(NULL, fake->address, SHORT, VIR_INTERNAL_DELEGATE_OPTIONAL);
    expect_error(call_until_sent(scheduler, NULL, getpid()),
                 VIR_INTERNAL_ERR_UNKNOWN_OUTCOME, EINPROGRESS,
                 "it did not answer request 0x");
    wait_for(shared->requests, 1);
    request = shared->request;
    expect_str_contains(virInternalGetLastError()->message,
                        text(" %#llx within %d ms", request, SHORT));
    expect_true(request != 0 && virInternalGetLastRequest() == request);
    /* It is the same connection that the answer would come over. */
    wait_for(shared->ended, shared->accepted);
    expect_unchanged(&before, getpid(), getpid());

    connect_to(NULL, fake->address, LONG, 0);
    expect_success(virInternalAskDelegate(NULL, request, 0));
    expect_true(shared->request == request);
    expect_success(virInternalAskDelegate(CONN(1), request, 0));
    shared->answer.verdict = WIRE_NOT_HANDLED;
    expect_not_handled(virInternalAskDelegate(NULL, request, 0));
    shared->answer.verdict = WIRE_REFUSED;
    strcpy(shared->text, "not that");
    expect_error(virInternalAskDelegate(NULL, request, 0),
                 VIR_INTERNAL_ERR_REFUSED, EPERM,
                 text("the delegate refused to do what request %#llx asks "
                      "for: not that", request));
    shared->answer.verdict = WIRE_FAILED;
    shared->answer.errnum = EXDEV;
    shared->answer.code = VIR_INTERNAL_ERR_READ_BACK;
    expect_error(virInternalAskDelegate(NULL, request, 0),
                 VIR_INTERNAL_ERR_READ_BACK, EXDEV,
                 "the delegate could not do what request ");
    shared->answer.verdict = WIRE_UNKNOWN;
    strcpy(shared->text, "it is still working on it");
    expect_error(virInternalAskDelegate(NULL, request, 0),
                 VIR_INTERNAL_ERR_UNKNOWN_OUTCOME, EINPROGRESS,
                 ": it is still working on it");
    /* Asking changes nothing about what can be asked. */
    expect_true(virInternalGetLastRequest() == request);
    disconnect_from(NULL);
    fake_stop(fake);
}

DELEGATE_TEST(a_question_goes_on_to_the_delegate_that_the_request_went_on_to)
{
    Fake *own = fake_start("own", peer_say, BACKLOG);
    Fake *all = fake_start("all", peer_that_answers_questions, BACKLOG);
    unsigned long long request;

    own->shared->answer.verdict = WIRE_NOT_HANDLED;
    connect_to(CONN(1), own->address, LONG, 0);
    connect_to(NULL, all->address, SHORT, 0);
    expect_error(call_until_sent(scheduler, CONN(1), getpid()),
                 VIR_INTERNAL_ERR_UNKNOWN_OUTCOME, EINPROGRESS,
                 "it did not answer request 0x");
    request = virInternalGetLastRequest();
    connect_to(NULL, all->address, LONG, 0);
    /* As of one that was not handled, or that it never heard of. */
    for (int i = 0; i < 2; i++) {
        own->shared->answer.verdict = i ? WIRE_UNKNOWN : WIRE_NOT_HANDLED;
        all->shared->answer.verdict = WIRE_HANDLED;
        expect_success(virInternalAskDelegate(CONN(1), request, 0));
        expect_true(all->shared->request == request);
        all->shared->answer.verdict = WIRE_REFUSED;
        expect_error(virInternalAskDelegate(CONN(1), request, 0),
                     VIR_INTERNAL_ERR_REFUSED, EPERM, "the delegate refused");
        all->shared->answer.verdict = WIRE_UNKNOWN;
        expect_error(virInternalAskDelegate(CONN(1), request, 0),
                     VIR_INTERNAL_ERR_UNKNOWN_OUTCOME, EINPROGRESS,
                     "it is not known");
        all->shared->answer.verdict = WIRE_NOT_HANDLED;
        if (i == 0)
            expect_not_handled(virInternalAskDelegate(CONN(1), request, 0));
        else
            expect_error(virInternalAskDelegate(CONN(1), request, 0),
                         VIR_INTERNAL_ERR_UNKNOWN_OUTCOME, EINPROGRESS,
                         "it is not known");
    }
    /* What the first one did is not asked of the second. */
    own->shared->answer.verdict = WIRE_HANDLED;
    all->shared->answer.verdict = WIRE_REFUSED;
    expect_success(virInternalAskDelegate(CONN(1), request, 0));
    disconnect_from(CONN(1));
    disconnect_from(NULL);
    fake_stop(own);
    fake_stop(all);
}

static void
peer_that_ends(Fake *fake, int connection)
{
    WireMessage message;

    if (wire_greet(fake, connection)
        && wire_receive(fake, connection, &message)
        && fake->shared->phase == 1)
        kill(getpid(), SIGKILL);
}

DELEGATE_TEST(a_delegate_that_ends_before_it_answers_is_UNKNOWN_OUTCOME)
{
    for (int dies = 0; dies < 2; dies++) {
        Fake *fake = fake_start("a", peer_that_ends, BACKLOG);

        fake->shared->phase = dies;
        connect_to(NULL, fake->address, LONG, VIR_INTERNAL_DELEGATE_OPTIONAL);
        expect_error(scheduler->call(NULL, getpid(), 0),
                     VIR_INTERNAL_ERR_UNKNOWN_OUTCOME, EINPROGRESS,
                     "the connection ended before it answered request 0x");
        expect_true(virInternalGetLastRequest() == fake->shared->request);
        expect_str_contains(virInternalGetLastError()->message,
                            text("%#llx", virInternalGetLastRequest()));
        if (dies) {
            expect_success(scheduler->call(NULL, getpid(), 0));
            connect_to(NULL, fake->address, LONG, 0);
            expect_error(virInternalAskDelegate(
                             NULL, virInternalGetLastRequest(), 0),
                         VIR_INTERNAL_ERR_UNREACHABLE, ECONNREFUSED,
                         "cannot tell what became of request ");
        }
        disconnect_from(NULL);
        fake_stop(fake);
    }
}

static void *
expect_no_last_request(void *unused)
{
    expect_eq_int(virInternalGetLastRequest(), 0);
    return unused;
}

DELEGATE_TEST(the_last_request_is_the_threads_own)
{
    Fake *fake = fake_start("a", peer_that_ends, BACKLOG);
    unsigned long long first;
    pthread_t thread;

    connect_to(NULL, fake->address, LONG, 0);
    expect_eq_int(scheduler->call(NULL, getpid(), 0), -1);
    first = virInternalGetLastRequest();
    expect_true(first != 0);
    expect_eq_int(pthread_create(&thread, NULL, expect_no_last_request, NULL),
                  0);
    expect_eq_int(pthread_join(thread, NULL), 0);
    disconnect_from(NULL);
    expect_success(scheduler->call(NULL, getpid(), 0));
    virInternalResetLastError();
    expect_true(virInternalGetLastRequest() == first);
    connect_to(NULL, fake->address, LONG, 0);
    expect_eq_int(scheduler->call(NULL, getpid(), 0), -1);
    expect_true(virInternalGetLastRequest() != first);
    disconnect_from(NULL);
    fake_stop(fake);
}

/* The answer comes when the client has given up, and before the next one. */
static void
peer_that_is_late(Fake *fake, int connection)
{
    WireMessage message;
    WireAnswer answer = { .verdict = WIRE_FAILED, .errnum = EXDEV };

    if (!wire_greet(fake, connection)
        || !wire_receive(fake, connection, &message))
        return;
    if (__atomic_fetch_add(&fake->shared->found, 1, __ATOMIC_ACQ_REL) == 0) {
        while (__atomic_load_n(&fake->shared->phase, __ATOMIC_ACQUIRE) == 0)
            usleep(500);
        /* Twice, and still over the old connection. */
        wire_answer(connection, &message.header, answer, NULL, "late");
        wire_answer(connection, &message.header, answer, NULL, "late");
        __atomic_store_n(&fake->shared->phase, 2, __ATOMIC_RELEASE);
        return;
    }
    do {
        answer.errnum = EDOM;
        wire_answer(connection, &message.header, answer, NULL, "in time");
    } while (wire_receive(fake, connection, &message));
}

DELEGATE_TEST(a_late_answer_is_not_taken_for_that_to_the_next_request)
{
    Fake *fake = fake_start("a", peer_that_is_late, BACKLOG);

    connect_to(NULL, fake->address, 2000, 0);
    expect_error(call_until_sent(scheduler, NULL, getpid()),
                 VIR_INTERNAL_ERR_UNKNOWN_OUTCOME, EINPROGRESS,
                 "it did not answer");
    wait_for(fake->shared->found, 1);
    fake->shared->phase = 1;
    wait_for(fake->shared->phase, 2);
    for (int i = 0; i < 3; i++)
        expect_error(call_until_sent(scheduler, NULL, getpid()),
                     VIR_INTERNAL_ERR_FAILED, EDOM, "in time");
    disconnect_from(NULL);
    fake_stop(fake);
}

static void
peer_that_answers_twice(Fake *fake, int connection)
{
    WireMessage message;
    WireAnswer answer = { .verdict = WIRE_NOT_HANDLED };

    if (!wire_greet(fake, connection))
        return;
    while (wire_receive(fake, connection, &message)) {
        wire_answer(connection, &message.header, answer, NULL, NULL);
        wire_answer(connection, &message.header, answer, NULL, NULL);
    }
}

DELEGATE_TEST(a_second_answer_is_not_taken_for_that_to_the_next_request)
{
    Fake *fake = fake_start("a", peer_that_answers_twice, BACKLOG);

    connect_to(NULL, fake->address, LONG, 0);
    for (int i = 0; i < 3; i++) {
        expect_not_handled(scheduler->call(NULL, getpid(),
                                           VIR_INTERNAL_NO_DIRECT));
        expect_error(scheduler->call(NULL, getpid(), 0),
                     VIR_INTERNAL_ERR_UNKNOWN_OUTCOME, EINPROGRESS,
                     "it is to another request");
    }
    disconnect_from(NULL);
    fake_stop(fake);
}

/* Each of its answers takes almost as long as a whole call may. */
#define WHOLE_MS 6000

static void
peer_that_is_slow(Fake *fake, int connection)
{
    WireMessage message;
    WireAnswer answer = { .verdict = WIRE_NOT_HANDLED };

    usleep(WHOLE_MS / 2 * 1000);
    if (!wire_greet(fake, connection)
        || !wire_receive(fake, connection, &message))
        return;
    usleep((WHOLE_MS - 500) * 1000);
    wire_answer(connection, &message.header, answer, NULL, NULL);
}

DELEGATE_TEST(the_time_limit_is_for_all_waits_of_a_call_together)
{
    Fake *fake = fake_start("a", peer_that_is_slow, BACKLOG);

    connect_to(NULL, fake->address, WHOLE_MS, 0);
    expect_error(call_until_sent(scheduler, NULL, getpid()),
                 VIR_INTERNAL_ERR_UNKNOWN_OUTCOME, EINPROGRESS,
                 "it did not answer");
    disconnect_from(NULL);
    fake_stop(fake);
}

static volatile sig_atomic_t signals;

static void
count_signal(int signal)
{
    (void) signal;
    signals++;
}

/* A signal each millisecond. */
static void
signal_all_the_time(int flags)
{
    struct sigaction action = {
        .sa_handler = count_signal, .sa_flags = flags
    };
    struct itimerval often = { { 0, 1000 }, { 0, 1000 } };

    must(sigaction(SIGALRM, &action, NULL));
    must(setitimer(ITIMER_REAL, &often, NULL));
}

static void
signal_no_more(void)
{
    struct itimerval never = { { 0, 0 }, { 0, 0 } };

    must(setitimer(ITIMER_REAL, &never, NULL));
}

DELEGATE_TEST(time_limits_hold_and_answers_come_while_there_are_signals)
{
    const int flags[] = { 0, SA_RESTART };
    Fake *good = fake_start("good", peer_obey, BACKLOG);
    Fake *silent = fake_start("silent", peer_silent, BACKLOG);
    Fake *mute = fake_start("mute", peer_mute, BACKLOG);
    Fake *full = fake_start("full", NULL, 0);

    good->shared->pid = getpid();
    connect_to(CONN(1), good->address, LONG, 0);
    connect_to(CONN(2), silent->address, SHORT, 0);
    connect_to(CONN(3), mute->address, SHORT, 0);
    connect_to(CONN(4), full->address, SHORT, 0);
    for (int i = 0; i < 2; i++) {
        signals = 0;
        signal_all_the_time(flags[i]);
        for (int j = 0; j < 200; j++)
            expect_success(scheduler->call(CONN(1), getpid(), 0));
        for (int j = 0; j < 2; j++) {
            expect_error(call_until_sent(scheduler, CONN(2), getpid()),
                         VIR_INTERNAL_ERR_UNKNOWN_OUTCOME, EINPROGRESS,
                         "did not answer");
            expect_error(scheduler->call(CONN(3), getpid(), 0),
                         VIR_INTERNAL_ERR_TIMEOUT, ETIMEDOUT, "nothing was");
            expect_error(scheduler->call(CONN(4), getpid(), 0),
                         VIR_INTERNAL_ERR_TIMEOUT, ETIMEDOUT, "nothing was");
        }
        signal_no_more();
        expect_true(signals > 10);
    }
    for (int i = 1; i < 5; i++)
        disconnect_from(CONN(i));
    fake_stop(good);
    fake_stop(silent);
    fake_stop(mute);
    fake_stop(full);
}

/* Connections. */

static pthread_barrier_t together;

typedef struct {
    struct _virConnect *conn;
    int calls;
} Caller;

/* All are connected at a time. */
static void *
call_often(void *argument)
{
    const Caller *caller = argument;

    for (int i = 0; i < caller->calls; i++) {
        expect_not_handled(scheduler->call(caller->conn, getpid(),
                                           VIR_INTERNAL_NO_DIRECT));
        if (i == 0)
            pthread_barrier_wait(&together);
    }
    return NULL;
}

DELEGATE_TEST(each_thread_has_one_connection_until_it_ends)
{
    Fake *fake = fake_start("a", peer_say, BACKLOG);
    Caller caller = { NULL, 100 };
    pthread_t threads[THREADS];

    fake->shared->answer.verdict = WIRE_NOT_HANDLED;
    connect_to(NULL, fake->address, LONG, 0);
    expect_eq_int(fake->shared->accepted, 0);
    for (int round = 1; round <= 2; round++) {
        pthread_barrier_init(&together, NULL, THREADS);
        for (int i = 0; i < THREADS; i++)
            expect_eq_int(pthread_create(threads + i, NULL, call_often,
                                         &caller), 0);
        for (int i = 0; i < THREADS; i++)
            expect_eq_int(pthread_join(threads[i], NULL), 0);
        wait_for(fake->shared->accepted, round * THREADS);
        wait_for(fake->shared->ended, round * THREADS);
        expect_eq_int(fake->shared->requests, round * THREADS * 100);
        pthread_barrier_destroy(&together);
    }
    disconnect_from(NULL);
    fake_stop(fake);
}

static void *
call_and_stay(void *unused)
{
    expect_not_handled(scheduler->call(NULL, getpid(),
                                       VIR_INTERNAL_NO_DIRECT));
    pthread_barrier_wait(&together);
    pthread_barrier_wait(&together);
    return unused;
}

DELEGATE_TEST(disconnecting_closes_the_connections_of_all_threads)
{
    Fake *fake = fake_start("a", peer_say, BACKLOG);
    pthread_t threads[THREADS];

    fake->shared->answer.verdict = WIRE_NOT_HANDLED;
    connect_to(NULL, fake->address, LONG, 0);
    pthread_barrier_init(&together, NULL, THREADS + 1);
    for (int i = 0; i < THREADS; i++)
        expect_eq_int(pthread_create(threads + i, NULL, call_and_stay, NULL),
                      0);
    pthread_barrier_wait(&together);
    expect_eq_int(fake->shared->accepted, THREADS);
    expect_eq_int(fake->shared->ended, 0);
    disconnect_from(NULL);
    wait_for(fake->shared->ended, THREADS);
    pthread_barrier_wait(&together);
    for (int i = 0; i < THREADS; i++)
        expect_eq_int(pthread_join(threads[i], NULL), 0);
    fake_stop(fake);
}

#define MANY 9
#define PLACES 4

DELEGATE_TEST(one_thread_can_ask_many_delegates_and_keeps_some_connections)
{
    Fake *fakes[MANY];
    int open;

    for (int i = 0; i < MANY; i++) {
        fakes[i] = fake_start(text("fake%d", i), peer_say, BACKLOG);
        fakes[i]->shared->answer.verdict = WIRE_REFUSED;
        sprintf(fakes[i]->shared->text, "number %d", i);
        connect_to(CONN(i), fakes[i]->address, LONG, 0);
    }
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < MANY; i++) {
            expect_error(scheduler->call(CONN(i), getpid(), 0),
                         VIR_INTERNAL_ERR_REFUSED, EPERM,
                         text("number %d", i));
            expect_error(scheduler->call(CONN(i), getpid(), 0),
                         VIR_INTERNAL_ERR_REFUSED, EPERM,
                         text("number %d", i));
        }
    }
    do {
        open = 0;
        for (int i = 0; i < MANY; i++) {
            expect_eq_int(fakes[i]->shared->requests, 6);
            open += __atomic_load_n(&fakes[i]->shared->accepted,
                                    __ATOMIC_ACQUIRE)
                - __atomic_load_n(&fakes[i]->shared->ended, __ATOMIC_ACQUIRE);
        }
    } while (open > PLACES);
    for (int i = 0; i < MANY; i++) {
        disconnect_from(CONN(i));
        wait_for(fakes[i]->shared->ended, fakes[i]->shared->accepted);
        fake_stop(fakes[i]);
    }
}

DELEGATE_TEST(a_delegate_that_was_restarted_is_connected_to_again)
{
    Fake *fake = fake_start("a", peer_say, BACKLOG);

    fake->shared->answer.verdict = WIRE_NOT_HANDLED;
    connect_to(NULL, fake->address, LONG, 0);
    for (int i = 1; i <= 3; i++) {
        expect_not_handled(scheduler->call(NULL, getpid(),
                                           VIR_INTERNAL_NO_DIRECT));
        fake_kill(fake);
        expect_error(scheduler->call(NULL, getpid(), 0),
                     VIR_INTERNAL_ERR_UNREACHABLE, ECONNREFUSED,
                     "Connection refused");
        fake_restart(fake);
        expect_not_handled(scheduler->call(NULL, getpid(),
                                           VIR_INTERNAL_NO_DIRECT));
        fake_kill(fake);
        fake_restart(fake);
        /* As if nothing had been: nothing was sent over the old one. */
        expect_not_handled(scheduler->call(NULL, getpid(),
                                           VIR_INTERNAL_NO_DIRECT));
    }
    expect_eq_int(virInternalGetLastRequest(), 0);
    disconnect_from(NULL);
    fake_stop(fake);
}

static void
peer_that_answers_once(Fake *fake, int connection)
{
    WireMessage message;
    WireAnswer answer = { .verdict = WIRE_NOT_HANDLED };

    if (wire_greet(fake, connection)
        && wire_receive(fake, connection, &message))
        wire_answer(connection, &message.header, answer, NULL, NULL);
}

DELEGATE_TEST(a_connection_that_the_delegate_closed_meanwhile_is_made_anew)
{
    Fake *fake = fake_start("a", peer_that_answers_once, BACKLOG);

    connect_to(NULL, fake->address, LONG, 0);
    for (int i = 1; i <= 20; i++) {
        expect_not_handled(scheduler->call(NULL, getpid(),
                                           VIR_INTERNAL_NO_DIRECT));
        wait_for(fake->shared->ended, i);
    }
    disconnect_from(NULL);
    fake_stop(fake);
}

/* Ends connections before they are greeted, as many as @shared->phase says:
 * it is being restarted. */
static void
peer_that_comes_back(Fake *fake, int connection)
{
    WireMessage message;
    WireAnswer answer = { .verdict = WIRE_NOT_HANDLED };

    if (__atomic_fetch_sub(&fake->shared->phase, 1, __ATOMIC_ACQ_REL) > 0)
        return;
    if (wire_greet(fake, connection)
        && wire_receive(fake, connection, &message))
        wire_answer(connection, &message.header, answer, NULL, NULL);
}

DELEGATE_TEST(a_delegate_that_ends_connections_as_it_restarts_is_asked_again)
{
    Fake *fake = fake_start("a", peer_that_comes_back, BACKLOG);
    int accepted = 1;

    connect_to(NULL, fake->address, LONG, 0);
    expect_not_handled(scheduler->call(NULL, getpid(),
                                       VIR_INTERNAL_NO_DIRECT));
    for (int ended = 0; ended < 4; ended++) {
        wait_for(fake->shared->ended, accepted);
        fake->shared->phase = ended;
        expect_not_handled(scheduler->call(NULL, getpid(),
                                           VIR_INTERNAL_NO_DIRECT));
        accepted += ended + 1;
        expect_eq_int(fake->shared->accepted, accepted);
    }
    /* But not for ever. */
    wait_for(fake->shared->ended, accepted);
    fake->shared->phase = 1000000;
    expect_error(scheduler->call(NULL, getpid(), 0),
                 VIR_INTERNAL_ERR_UNREACHABLE, ECONNREFUSED,
                 "cannot be reached");
    disconnect_from(NULL);
    fake_stop(fake);
}

/* Holds its answers back. */
static void
peer_that_waits(Fake *fake, int connection)
{
    WireMessage message;
    WireAnswer answer = { .verdict = WIRE_NOT_HANDLED };

    if (!wire_greet(fake, connection))
        return;
    while (wire_receive(fake, connection, &message)) {
        while (__atomic_load_n(&fake->shared->phase, __ATOMIC_ACQUIRE) == 0)
            usleep(500);
        wire_answer(connection, &message.header, answer, NULL, NULL);
    }
}

/* How it is disconnected, and whether it is. */
static int how, disconnected;

static void *
disconnect_in_thread(void *fake)
{
    struct _virConnect *conn = CONN(1);

    switch (how) {
    case 0:
        disconnect_from(conn);
        break;
    case 1:
        expect_success(virInternalConnectionClosed(conn));
        break;
    default:
        connect_to(conn, "unix:/nowhere", 0, VIR_INTERNAL_DELEGATE_OPTIONAL);
    }
    __atomic_store_n(&disconnected, 1, __ATOMIC_RELEASE);
    /* There was an answer first. */
    expect_eq_int(((Fake *) fake)->shared->phase, 1);
    return NULL;
}

static void *
call_once(void *conn)
{
    expect_not_handled(scheduler->call(conn, getpid(),
                                       VIR_INTERNAL_NO_DIRECT));
    return NULL;
}

DELEGATE_TEST(disconnecting_waits_for_those_who_wait_for_the_delegate)
{
    for (how = 0; how < 3; how++) {
        Fake *fake = fake_start("a", peer_that_waits, BACKLOG);
        pthread_t caller, disconnecter;

        disconnected = 0;
        connect_to(CONN(1), fake->address, LONG, 0);
        expect_eq_int(pthread_create(&caller, NULL, call_once, CONN(1)), 0);
        wait_for(fake->shared->requests, 1);
        expect_eq_int(pthread_create(&disconnecter, NULL, disconnect_in_thread,
                                     fake), 0);
        /* Time to do it wrong in. */
        usleep(20000);
        expect_eq_int(__atomic_load_n(&disconnected, __ATOMIC_ACQUIRE), 0);
        fake->shared->phase = 1;
        expect_eq_int(pthread_join(disconnecter, NULL), 0);
        wait_for(fake->shared->ended, 1);
        expect_eq_int(pthread_join(caller, NULL), 0);
        disconnect_from(CONN(1));
        fake_stop(fake);
    }
}

static int
disconnect_inside(Script *script)
{
    (void) script;
    disconnect_from(CONN(1));
    connect_to(CONN(1), "unix:/nowhere", 0, 0);
    return VIR_INTERNAL_HANDLED;
}

DELEGATE_TEST(disconnecting_inside_a_handler_does_not_wait)
{
    Fake *fake = fake_start("a", peer_that_waits, BACKLOG);
    Script script = { .answer = disconnect_inside };
    const Operation *threads = &operations[OPERATIONS - 1];
    pthread_t caller;

    connect_to(CONN(1), fake->address, LONG, 0);
    expect_eq_int(pthread_create(&caller, NULL, call_once, CONN(1)), 0);
    wait_for(fake->shared->requests, 1);
    set(threads, NULL, &script, 0);
    expect_success(threads->call(NULL, getpid(), 0));
    unset(threads, NULL);
    expect_eq_int(fake->shared->ended, 0);
    fake->shared->phase = 1;
    expect_eq_int(pthread_join(caller, NULL), 0);
    wait_for(fake->shared->ended, 1);
    disconnect_from(CONN(1));
    fake_stop(fake);
}

static int stop;
static const char *stress_addresses[2];

static void *
call_and_end(void *conn)
{
    expect_not_handled(scheduler->call(conn, getpid(),
                                       VIR_INTERNAL_NO_DIRECT));
    return NULL;
}

/* Threads end, and their connections with them. */
static void *
start_threads_all_the_time(void *unused)
{
    for (int i = 0; !__atomic_load_n(&stop, __ATOMIC_RELAXED); i++) {
        pthread_t thread;

        expect_eq_int(pthread_create(&thread, NULL, call_and_end,
                                     CONN(i % 3)), 0);
        expect_eq_int(pthread_join(thread, NULL), 0);
    }
    return unused;
}

static void *
change_all_the_time(void *argument)
{
    unsigned int seed = (long) argument;

    while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
        struct _virConnect *conn = CONN(rand_r(&seed) % 3);

        switch (rand_r(&seed) % 4) {
        case 0:
            disconnect_from(conn);
            break;
        case 1:
            if (conn)
                expect_success(virInternalConnectionClosed(conn));
            break;
        default:
            connect_to(conn, stress_addresses[rand_r(&seed) % 2], LONG,
                       rand_r(&seed) % 2);
        }
    }
    return NULL;
}

static void *
call_all_the_time(void *argument)
{
    unsigned int seed = (long) argument;

    for (int i = 0; i < 1500; i++)
        expect_not_handled(scheduler->call(CONN(rand_r(&seed) % 3), getpid(),
                                           VIR_INTERNAL_NO_DIRECT));
    return NULL;
}

DELEGATE_TEST(delegates_come_and_go_while_threads_ask_them, .seconds = 900)
{
    Fake *fakes[2];
    pthread_t callers[6], changers[2], starters[2];

    for (int i = 0; i < 2; i++) {
        fakes[i] = fake_start(text("fake%d", i), peer_say, BACKLOG);
        fakes[i]->shared->answer.verdict = WIRE_NOT_HANDLED;
        stress_addresses[i] = fakes[i]->address;
        connect_to(CONN(i), fakes[i]->address, LONG, 0);
    }
    for (long i = 0; i < 6; i++)
        expect_eq_int(pthread_create(callers + i, NULL, call_all_the_time,
                                     (void *) i), 0);
    for (long i = 0; i < 2; i++)
        expect_eq_int(pthread_create(changers + i, NULL, change_all_the_time,
                                     (void *) (i + 100)), 0);
    for (int i = 0; i < 2; i++)
        expect_eq_int(pthread_create(starters + i, NULL,
                                     start_threads_all_the_time, NULL), 0);
    for (int i = 0; i < 6; i++)
        expect_eq_int(pthread_join(callers[i], NULL), 0);
    __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
    for (int i = 0; i < 2; i++)
        expect_eq_int(pthread_join(changers[i], NULL)
                      + pthread_join(starters[i], NULL), 0);
    for (int i = 0; i < 3; i++)
        disconnect_from(CONN(i));
    for (int i = 0; i < 2; i++) {
        wait_for(fakes[i]->shared->ended, fakes[i]->shared->accepted);
        fake_stop(fakes[i]);
    }
}

/* A connection that there is already. */

static int
connected_pair(FakePeer peer, Fake **fake)
{
    int pair[2];

    must(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair));
    *fake = fake_start_on(pair[1], peer);
    return pair[0];
}

DELEGATE_TEST(over_a_descriptor_threads_take_turns_and_it_stays_the_callers)
{
    Fake *fake;
    int fd = connected_pair(peer_say, &fake);
    Caller caller = { NULL, 100 };
    pthread_t threads[THREADS];

    fake->shared->answer.verdict = WIRE_NOT_HANDLED;
    connect_to(NULL, text("fd:%d", fd), LONG, 0);
    /* Ours is closed; and its number another file's. */
    close(fd);
    expect_eq_int(must(open("/dev/null", O_RDONLY | O_CLOEXEC)), fd);
    pthread_barrier_init(&together, NULL, THREADS);
    for (int i = 0; i < THREADS; i++)
        expect_eq_int(pthread_create(threads + i, NULL, call_often, &caller),
                      0);
    for (int i = 0; i < THREADS; i++)
        expect_eq_int(pthread_join(threads[i], NULL), 0);
    expect_eq_int(fake->shared->requests, THREADS * 100);
    expect_eq_int(fake->shared->ended, 0);
    disconnect_from(NULL);
    wait_for(fake->shared->ended, 1);
    must(fcntl(fd, F_GETFD));
    close(fd);
    fake_stop(fake);
}

DELEGATE_TEST(over_a_descriptor_what_did_not_answer_is_UNREACHABLE_from_then_on)
{
    const FakePeer peers[] = { peer_that_ends, peer_silent, peer_mute,
                               peer_with_spoilt_answer };

    for (int i = 0; i < 4; i++) {
        Fake *fake;
        int fd = connected_pair(peers[i], &fake);

        runner_context = text("peer %d", i);
        connect_to(NULL, text("fd:%d", fd), i == 1 || i == 2 ? SHORT : LONG,
                   0);
        if (i == 2)
            expect_error(scheduler->call(NULL, getpid(), 0),
                         VIR_INTERNAL_ERR_TIMEOUT, ETIMEDOUT,
                         text("the delegate at fd:%d was not ready", fd));
        else if (i == 1)
            /* Or it was too late for a hello. */
            expect_eq_int(scheduler->call(NULL, getpid(), 0), -1);
        else
            expect_error(scheduler->call(NULL, getpid(), 0),
                         VIR_INTERNAL_ERR_UNKNOWN_OUTCOME, EINPROGRESS,
                         "it is not known whether ");
        for (int j = 0; j < 2; j++)
            expect_error(scheduler->call(NULL, getpid(), 0),
                         VIR_INTERNAL_ERR_UNREACHABLE, ECONNREFUSED,
                         text("the delegate at fd:%d cannot be reached", fd));
        expect_error(virInternalAskDelegate(NULL, 1, 0),
                     VIR_INTERNAL_ERR_UNREACHABLE, ECONNREFUSED, "fd:");
        connect_to(CONN(1), text("fd:%d", fd), LONG,
                   VIR_INTERNAL_DELEGATE_OPTIONAL);
        disconnect_from(CONN(1));
        disconnect_from(NULL);
        close(fd);
        fake_stop(fake);
    }
    runner_context = NULL;
}

static void *
call_for_any_outcome(void *unused)
{
    int result = scheduler->call(NULL, getpid(), 0);
    int code;

    expect_eq_int(result, -1);
    code = virInternalGetLastError()->code;
    if (code != VIR_INTERNAL_ERR_TIMEOUT
        && code != VIR_INTERNAL_ERR_UNKNOWN_OUTCOME
        && code != VIR_INTERNAL_ERR_UNREACHABLE)
        FAIL("expected TIMEOUT, UNKNOWN_OUTCOME or UNREACHABLE, found: %s",
             virInternalGetLastError()->message);
    return unused;
}

DELEGATE_TEST(over_a_descriptor_nobody_waits_for_ever_for_a_turn)
{
    Fake *fake;
    int fd = connected_pair(peer_silent, &fake);
    pthread_t threads[THREADS];

    connect_to(NULL, text("fd:%d", fd), SHORT, 0);
    for (int i = 0; i < THREADS; i++)
        expect_eq_int(pthread_create(threads + i, NULL, call_for_any_outcome,
                                     NULL), 0);
    for (int i = 0; i < THREADS; i++)
        expect_eq_int(pthread_join(threads[i], NULL), 0);
    expect_true(fake->shared->requests <= 1);
    disconnect_from(NULL);
    close(fd);
    fake_stop(fake);
}

DELEGATE_TEST(a_descriptor_that_is_not_connected_is_UNREACHABLE)
{
    int fd = must(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));

    connect_to(NULL, text("fd:%d", fd), LONG, 0);
    for (int i = 0; i < 2; i++)
        expect_error(scheduler->call(NULL, getpid(), 0),
                     VIR_INTERNAL_ERR_UNREACHABLE, ECONNREFUSED,
                     text("the delegate at fd:%d cannot be reached: ", fd));
    disconnect_from(NULL);
    close(fd);
}

DELEGATE_TEST(over_a_descriptor_that_does_not_block_time_limits_hold_too)
{
    Fake *fake;
    int fd = connected_pair(peer_say, &fake);

    must(fcntl(fd, F_SETFL, O_NONBLOCK));
    fake->shared->answer.verdict = WIRE_NOT_HANDLED;
    connect_to(NULL, text("fd:%d", fd), LONG, 0);
    for (int i = 0; i < 100; i++)
        expect_not_handled(scheduler->call(NULL, getpid(),
                                           VIR_INTERNAL_NO_DIRECT));
    disconnect_from(NULL);
    close(fd);
    fake_stop(fake);
}

DELEGATE_TEST(over_a_descriptor_nothing_of_the_callers_socket_is_changed)
{
    for (int flags = 0; flags <= O_NONBLOCK; flags += O_NONBLOCK) {
        Fake *fake;
        int fd = connected_pair(peer_say, &fake);
        struct timeval time = { 1234, 0 };
        socklen_t length = sizeof(time);

        must(fcntl(fd, F_SETFL, flags));
        must(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof(time)));
        fake->shared->answer.verdict = WIRE_NOT_HANDLED;
        connect_to(NULL, text("fd:%d", fd), LONG, 0);
        expect_not_handled(scheduler->call(NULL, getpid(),
                                           VIR_INTERNAL_NO_DIRECT));
        expect_eq_int(must(fcntl(fd, F_GETFL)) & O_NONBLOCK, flags);
        must(getsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &time, &length));
        expect_eq_int(time.tv_sec, 1234);
        disconnect_from(NULL);
        close(fd);
        fake_stop(fake);
    }
}

DELEGATE_TEST(one_descriptor_can_be_connected_for_several_connections)
{
    Fake *fake;
    int fd = connected_pair(peer_say, &fake);
    int copy = must(fcntl(fd, F_DUPFD_CLOEXEC, 3));

    fake->shared->answer.verdict = WIRE_REFUSED;
    connect_to(CONN(1), text("fd:%d", fd), LONG, 0);
    connect_to(CONN(2), text("fd:%d", copy), SHORT, 0);
    connect_to(NULL, text("fd:%d", fd), LONG, 0);
    close(fd);
    close(copy);
    for (int i = 0; i < 3; i++) {
        fake->shared->requests = 0;
        for (int j = i; j < 3; j++)
            expect_error(scheduler->call(CONN(2 - j), getpid(), 0),
                         VIR_INTERNAL_ERR_REFUSED, EPERM,
                         "the delegate refused");
        /* There was one hello, and no end. */
        expect_eq_int(fake->shared->requests, 3 - i);
        expect_eq_int(fake->shared->ended, 0);
        disconnect_from(CONN(2 - i));
    }
    wait_for(fake->shared->ended, 1);
    fake_stop(fake);
}

DELEGATE_TEST(the_last_disconnect_ends_the_connection_over_a_descriptor)
{
    Fake *fake;
    int fd = connected_pair(peer_say, &fake);

    fake->shared->answer.verdict = WIRE_REFUSED;
    connect_to(NULL, text("fd:%d", fd), LONG, 0);
    expect_error(scheduler->call(NULL, getpid(), 0),
                 VIR_INTERNAL_ERR_REFUSED, EPERM, "the delegate refused");
    /* In the place of itself: that is not the last one. */
    connect_to(NULL, text("fd:%d", fd), SHORT, 0);
    expect_error(scheduler->call(NULL, getpid(), 0),
                 VIR_INTERNAL_ERR_REFUSED, EPERM, "the delegate refused");
    disconnect_from(NULL);
    wait_for(fake->shared->ended, 1);
    connect_to(NULL, text("fd:%d", fd), LONG, 0);
    expect_error(scheduler->call(NULL, getpid(), 0),
                 VIR_INTERNAL_ERR_UNREACHABLE, ECONNREFUSED,
                 "cannot be reached: ");
    disconnect_from(NULL);
    close(fd);
    fake_stop(fake);
}

static void
peer_with_fewer_operations_once(Fake *fake, int connection)
{
    WireMessage message;

    if (wire_receive(fake, connection, &message))
        wire_hello(connection, OPERATIONS - 1);
}

DELEGATE_TEST(over_a_descriptor_what_has_ended_does_not_lack_an_operation)
{
    Fake *fake;
    int fd = connected_pair(peer_with_fewer_operations_once, &fake);

    connect_to(NULL, text("fd:%d", fd), LONG, 0);
    operations[OPERATIONS - 1].call(NULL, getpid(), VIR_INTERNAL_NO_DIRECT);
    wait_for(fake->shared->ended, 1);
    expect_error(operations[OPERATIONS - 1].call(NULL, getpid(), 0),
                 VIR_INTERNAL_ERR_UNREACHABLE, ECONNREFUSED,
                 "cannot be reached: ");
    disconnect_from(NULL);
    close(fd);
    fake_stop(fake);
}

/* The environment. */

#define VARIABLE "LIBVIRT_INTERNAL_DELEGATE"

static void *
refuse_in_thread(void *text)
{
    expect_error(scheduler->call(NULL, getpid(), 0),
                 VIR_INTERNAL_ERR_REFUSED, EPERM, text);
    expect_error(scheduler->call(CONN(1), getpid(), 0),
                 VIR_INTERNAL_ERR_REFUSED, EPERM, text);
    return NULL;
}

/* Nobody disconnects the environment's: its thread must end. */
static void
in_thread(void *(*body)(void *), const void *data)
{
    pthread_t thread;

    expect_eq_int(pthread_create(&thread, NULL, body, (void *) data), 0);
    expect_eq_int(pthread_join(thread, NULL), 0);
}

DELEGATE_TEST(the_environments_delegate_is_for_all_when_none_is_connected)
{
    Fake *named = fake_start("named", peer_say, BACKLOG);
    Fake *connected = fake_start("connected", peer_say, BACKLOG);

    named->shared->answer.verdict = WIRE_REFUSED;
    strcpy(named->shared->text, "the environment's");
    connected->shared->answer.verdict = WIRE_REFUSED;
    strcpy(connected->shared->text, "the connected one");
    must(setenv(VARIABLE, named->address, 1));
    in_thread(refuse_in_thread, "the environment's");
    /* It is read once. */
    must(setenv(VARIABLE, connected->address, 1));
    in_thread(refuse_in_thread, "the environment's");
    connect_to(NULL, connected->address, LONG, 0);
    in_thread(refuse_in_thread, "the connected one");
    disconnect_from(NULL);
    in_thread(refuse_in_thread, "the environment's");
    connected->shared->answer.verdict = WIRE_NOT_HANDLED;
    connect_to(CONN(1), connected->address, LONG, 0);
    connected->shared->requests = 0;
    in_thread(refuse_in_thread, "the environment's");
    expect_eq_int(connected->shared->requests, 1);
    expect_success(virInternalConnectionClosed(CONN(1)));
    wait_for(named->shared->ended, named->shared->accepted);
    fake_stop(named);
    fake_stop(connected);
}

TEST(an_empty_variable_names_no_delegate)
{
    must(setenv(VARIABLE, "", 1));
    for_each_operation(operation)
        expect_not_handled(operation->call(NULL, getpid(),
                                           VIR_INTERNAL_NO_DIRECT));
}

static void
expect_unreachable(const char *part)
{
    for_each_operation(operation) {
        State before = state_of(getpid(), getpid());

        expect_error(operation->call(NULL, getpid(), 0),
                     VIR_INTERNAL_ERR_UNREACHABLE, ECONNREFUSED, part);
        expect_unchanged(&before, getpid(), getpid());
    }
}

#define BAD_VALUE_TEST(name, value, part) \
    TEST(name) \
    { \
        must(setenv(VARIABLE, value, 1)); \
        expect_unreachable(part); \
        expect_str_contains(virInternalGetLastError()->message, VARIABLE); \
    }

BAD_VALUE_TEST(a_variable_without_a_scheme_is_a_clear_error, "/run/x",
               "is neither unix:/path")
BAD_VALUE_TEST(a_variable_with_a_relative_path_is_a_clear_error, "unix:x",
               "is neither unix:/path")
BAD_VALUE_TEST(a_variable_without_a_number_is_a_clear_error, "fd:",
               " nor fd:NUMBER")
BAD_VALUE_TEST(a_variable_with_a_path_too_long_is_a_clear_error,
               address_of_length(108), "at most 107 bytes")

TEST(a_variable_with_a_descriptor_that_is_none_is_a_clear_error)
{
    must(setenv(VARIABLE, "fd:1000000", 1));
    expect_unreachable("the delegate at fd:1000000 cannot be reached: ");
}

TEST(a_variable_with_a_descriptor_of_a_file_is_a_clear_error)
{
    int file = must(open("/dev/null", O_RDWR | O_CLOEXEC));

    must(setenv(VARIABLE, text("fd:%d", file), 1));
    expect_unreachable(text("the delegate at fd:%d cannot be reached: ", file));
    /* It was not ours to close. */
    must(close(file));
    expect_eq_int(must(open("/dev/null", O_RDWR | O_CLOEXEC)), file);
    close(file);
}

TEST(a_variable_with_an_address_where_nobody_is_is_an_error)
{
    must(setenv(VARIABLE, "unix:/nowhere/at/all", 1));
    expect_unreachable("the delegate at unix:/nowhere/at/all cannot be "
                       "reached: No such file");
}

DELEGATE_TEST(a_variable_can_name_an_inherited_connection)
{
    Fake *fake;
    int fd = connected_pair(peer_say, &fake);

    must(setenv(VARIABLE, text("fd:%d", fd), 1));
    fake->shared->answer.verdict = WIRE_REFUSED;
    strcpy(fake->shared->text, "inherited");
    in_thread(refuse_in_thread, "inherited");
    in_thread(refuse_in_thread, "inherited");
    expect_eq_int(fake->shared->requests, 4);
    fake_stop(fake);
    expect_unreachable("the delegate at fd:");
    close(fd);
}

DELEGATE_TEST(what_the_variable_names_cannot_be_connected_besides)
{
    Fake *fake;
    int fd = connected_pair(peer_say, &fake);

    must(setenv(VARIABLE, text("fd:%d", fd), 1));
    fake->shared->answer.verdict = WIRE_REFUSED;
    expect_error(connect_delegate(CONN(1), text("fd:%d", fd), 0, 0),
                 VIR_INTERNAL_ERR_INVALID_ARG, EINVAL,
                 text("fd:%d is the delegate of " VARIABLE, fd));
    in_thread(refuse_in_thread, "it does not say why");
    fake_stop(fake);
    close(fd);
}

/* The variable may be older than what has the number by now. */
TEST(nothing_is_sent_over_a_descriptor_that_is_not_the_variables_any_more)
{
    int pair[2], other[2];

    must(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair));
    must(setenv(VARIABLE, text("fd:%d", pair[0]), 1));
    /* The library is used, and reads it. */
    expect_error(virInternalProcessSetMaxFiles(NULL, 0, 0, 0),
                 VIR_INTERNAL_ERR_INVALID_ARG, EINVAL, "pid 0");
    must(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, other));
    must(dup2(other[0], pair[0]));
    expect_unreachable("the delegate at fd:");
    for (int i = 0; i < 2; i++) {
        int fd = i ? pair[1] : other[1];
        char byte;

        expect_eq_int(recv(fd, &byte, 1, MSG_DONTWAIT), i ? 0 : -1);
        close(fd);
    }
    close(other[0]);
    close(pair[0]);
}

TEST(a_variable_with_a_descriptor_of_another_kind_of_socket_touches_nothing)
{
    struct timeval time;
    socklen_t length = sizeof(time);
    int pair[2];
    char byte;

    must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0,
                    pair));
    must(setenv(VARIABLE, text("fd:%d", pair[0]), 1));
    expect_unreachable(text("the delegate at fd:%d cannot be reached: ",
                            pair[0]));
    expect_true(must(fcntl(pair[0], F_GETFL)) & O_NONBLOCK);
    must(getsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &time, &length));
    expect_eq_int(time.tv_sec + time.tv_usec, 0);
    expect_eq_int(recv(pair[1], &byte, 1, MSG_DONTWAIT), -1);
    close(pair[0]);
    close(pair[1]);
}

/* Becomes a copy of this program, which runs the same test again. */
static void
become_copy(const char *name, mode_t mode, gid_t group)
{
    const char *copy = text("%s/copy", delegate_directory());
    char buffer[65536];
    ssize_t length;
    int from = must(open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
    int to = must(open(copy, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0755));

    while ((length = must(read(from, buffer, sizeof(buffer)))) > 0)
        expect_eq_int(write(to, buffer, length), length);
    /* Changing the owner takes the bit away. */
    must(fchown(to, -1, group));
    must(fchmod(to, mode));
    close(from);
    close(to);
    must(setenv("IS_COPY", "yes", 1));
    must(setenv(VARIABLE, "unix:/nowhere", 1));
    execl(copy, copy, "--no-fork", name, (char *) NULL);
    FAIL("%s: %s", copy, strerror(errno));
}

DELEGATE_TEST(the_variable_is_ignored_where_credentials_were_raised)
{
    const char *name = "the_variable_is_ignored_where_credentials_were_raised";
    pid_t child;

    if (getenv("IS_COPY")) {
        if (!getauxval(AT_SECURE))
            SKIP("the directory for tests is mounted nosuid");
        expect_not_handled(scheduler->call(NULL, getpid(),
                                           VIR_INTERNAL_NO_DIRECT));
        return;
    }
    if (geteuid() != 0)
        SKIP("only root can make a setgid program of another group");
    delegate_directory();
    child = must(fork());
    if (child == 0)
        become_copy(name, 02755, 65534);
    expect_child_passes(child);
}

DELEGATE_TEST(the_variable_is_used_in_a_program_that_is_not_setgid)
{
    const char *name = "the_variable_is_used_in_a_program_that_is_not_setgid";
    pid_t child;

    if (getenv("IS_COPY")) {
        expect_unreachable("unix:/nowhere");
        return;
    }
    delegate_directory();
    child = must(fork());
    if (child == 0)
        become_copy(name, 0755, getegid());
    expect_child_passes(child);
}

/* Large requests. */

DELEGATE_TEST(a_map_with_CPUs_that_no_delegate_takes_is_an_error)
{
    Fake *fake = fake_start("a", peer_say, BACKLOG);
    pid_t pid = getpid();
    unsigned char map[2100] = { 1 };
    size_t shortest;

    fake->shared->answer.verdict = WIRE_NOT_HANDLED;
    connect_to(NULL, fake->address, LONG, 0);
    for (int cpu = 16384; cpu < 16400; cpu += 15) {
        map[cpu / 8] = 1 << cpu % 8;
        expect_error(virInternalProcessSetAffinity(NULL, pid, pid, map,
                                                   sizeof(map), 0),
                     VIR_INTERNAL_ERR_INVALID_ARG, EINVAL,
                     text("cpumap names CPU %d: a delegate takes none above "
                          "16383", cpu));
        expect_error(virInternalCgroupAddThreads(
                         NULL, pid, NULL, VIR_INTERNAL_THREAD_VCPU, &pid, NULL,
                         1, map, sizeof(map), NULL, 0),
                     VIR_INTERNAL_ERR_INVALID_ARG, EINVAL, "cpumap names CPU");
        map[cpu / 8] = 0;
    }
    expect_eq_int(fake->shared->requests, 0);
    /* Zeros at the end are not counted. */
    expect_not_handled(virInternalProcessSetAffinity(
        NULL, pid, pid, map, sizeof(map), VIR_INTERNAL_NO_DIRECT));
    shortest = fake->shared->length;
    map[2047] = 0x80;
    expect_not_handled(virInternalProcessSetAffinity(
        NULL, pid, pid, map, sizeof(map), VIR_INTERNAL_NO_DIRECT));
    expect_eq_int(fake->shared->length, shortest + 2047);
    disconnect_from(NULL);
    fake_stop(fake);
}

#define CROWD 3000

static void
peer_that_counts(Fake *fake, int connection)
{
    WireMessage message;
    int32_t results[CROWD];

    if (!wire_greet(fake, connection))
        return;
    while (wire_receive(fake, connection, &message)) {
        WireAnswer answer = { .results = wire_results(&message) };
        const int32_t *tids = (int32_t *) (message.body + 20);

        fake->shared->found = answer.results;
        for (int i = 0; i < CROWD; i++) {
            if (tids[i] != fake->shared->pid || tids[CROWD + i] != i * 7)
                fake->shared->found = -1;
            results[i] = -ESRCH;
        }
        wire_answer(connection, &message.header, answer, results, NULL);
    }
}

DELEGATE_TEST(three_thousand_threads_with_their_numbers_are_one_request)
{
    static pid_t tids[CROWD];
    static unsigned int ids[CROWD];
    static int results[CROWD];
    unsigned char map[2048];
    Fake *fake = fake_start("a", peer_that_counts, BACKLOG);

    memset(map, 0xff, sizeof(map));
    for (int i = 0; i < CROWD; i++) {
        tids[i] = getpid();
        ids[i] = i * 7;
    }
    fake->shared->pid = getpid();
    connect_to(NULL, fake->address, LONG, 0);
    expect_success(virInternalCgroupAddThreads(
        NULL, getpid(), NULL, VIR_INTERNAL_THREAD_VCPU, tids, ids, CROWD, map,
        sizeof(map), results, 0));
    expect_eq_int(fake->shared->found, CROWD);
    expect_eq_int(fake->shared->length,
                  sizeof(WireHeader) + 20 + 8 * CROWD + sizeof(map));
    for (int i = 0; i < CROWD; i++)
        expect_eq_int(results[i], -ESRCH);
    disconnect_from(NULL);
    fake_stop(fake);
}
