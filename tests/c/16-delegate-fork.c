/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A delegate asked by children of every kind, as libvirt makes them: with all
 * inherited descriptors closed. */
#define _GNU_SOURCE
#include "delegate.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "no-malloc.h"

#define BACKLOG 4096

static const Operation *const scheduler = &operations[4];

/* What a child does; it passes if it returns. */
typedef void (*Body)(Fake *fake);

static pid_t
by_fork(Body body, Fake *fake)
{
    pid_t child = must(fork());

    if (child == 0) {
        body(fake);
        _exit(EXIT_SUCCESS);
    }
    return child;
}

static pid_t
by_clone(Body body, Fake *fake)
{
    pid_t child = must(syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0));

    if (child == 0) {
        body(fake);
        _exit(EXIT_SUCCESS);
    }
    return child;
}

__attribute__((noinline))
static void
run_and_exit(Body body, Fake *fake)
{
    body(fake);
    _exit(EXIT_SUCCESS);
}

static pid_t
by_vfork(Body body, Fake *fake)
{
    pid_t child = vfork();

    if (child == 0)
        run_and_exit(body, fake);
    return must(child);
}

static const struct {
    const char *name;
    pid_t (*start)(Body body, Fake *fake);
} kinds[] = {
    { "fork", by_fork },
    { "clone", by_clone },
    { "vfork", by_vfork },
};
#define KINDS 3

static void
in_each_kind(Body body, Fake *fake)
{
    for (int i = 0; i < KINDS; i++) {
        runner_context = text("child by %s", kinds[i].name);
        expect_child_passes(kinds[i].start(body, fake));
    }
    runner_context = NULL;
}

/* All but standard input, output and error. */
static void
close_inherited_descriptors(void)
{
    if (syscall(SYS_close_range, 3, ~0U, 0) == 0)
        return;
    for (int fd = 3; fd < 4096; fd++)
        close(fd);
}

static Fake *
start_connected(FakePeer peer, unsigned int timeout)
{
    Fake *fake = fake_start("a", peer, BACKLOG);

    connect_to(NULL, fake->address, timeout, 0);
    return fake;
}

static void
stop(Fake *fake)
{
    disconnect_from(NULL);
    fake_stop(fake);
}

static void
have_all_done(Fake *fake)
{
    Fake parents = *fake;

    close_inherited_descriptors();
    parents.shared->pid = getpid();
    for (int i = 0; i < OPERATIONS; i++) {
        expect_success(operations[i].call(NULL, getpid(), 0));
        expect_true(operations[i].is_done(getpid()));
        expect_success(operations[i].call(CONN(1), getpid(),
                                          VIR_INTERNAL_NO_DIRECT));
    }
}

DELEGATE_TEST(a_child_asks_over_connections_of_its_own)
{
    Fake *fake = start_connected(peer_obey, LONG);
    FakeShared *shared = fake->shared;

    shared->pid = getpid();
    expect_success(scheduler->call(NULL, getpid(), 0));
    expect_eq_int(shared->accepted, 1);
    for (int i = 0; i < KINDS; i++) {
        shared->requests = 0;
        runner_context = kinds[i].name;
        expect_child_passes(kinds[i].start(have_all_done, fake));
        expect_eq_int(shared->requests, 2 * OPERATIONS);
        wait_for(shared->accepted, 1 + 2 * OPERATIONS * (i + 1));
        wait_for(shared->ended, 2 * OPERATIONS * (i + 1));
        /* The parent's is still there, and still good. */
        shared->pid = getpid();
        expect_success(scheduler->call(NULL, getpid(), 0));
        expect_eq_int(shared->accepted, 1 + 2 * OPERATIONS * (i + 1));
    }
    runner_context = NULL;
    stop(fake);
}

static void
expect_refused(Fake *fake)
{
    State before = state_of(getpid(), getpid());

    (void) fake;
    close_inherited_descriptors();
    expect_true(virInternalGetLastError() == NULL);
    for (int i = 0; i < OPERATIONS; i++) {
        expect_error(operations[i].call(NULL, getpid(), 0),
                     VIR_INTERNAL_ERR_REFUSED, EPERM, ": not you");
        expect_eq_int(virInternalGetLastError()->operation, operations[i].id);
    }
    expect_unchanged(&before, getpid(), getpid());
    virInternalResetLastError();
    expect_true(virInternalGetLastError() == NULL);
}

DELEGATE_TEST(what_is_refused_is_an_error_in_a_child_and_the_parents_stays)
{
    Fake *fake = start_connected(peer_say, LONG);

    fake->shared->answer.verdict = WIRE_REFUSED;
    strcpy(fake->shared->text, "not you");
    expect_eq_int(operations[0].call(NULL, -1, 0), -1);
    in_each_kind(expect_refused, fake);
    expect_true(virInternalGetLastError() != NULL);
    expect_str_contains(virInternalGetLastError()->message, "pid -1");
    stop(fake);
}

static void
expect_away(Fake *fake)
{
    (void) fake;
    close_inherited_descriptors();
    expect_error(scheduler->call(NULL, getpid(), 0),
                 VIR_INTERNAL_ERR_UNREACHABLE, ECONNREFUSED,
                 "Connection refused");
    expect_error(virInternalAskDelegate(NULL, 5, 0),
                 VIR_INTERNAL_ERR_UNREACHABLE, ECONNREFUSED, "request 0x5");
    expect_error(scheduler->call(CONN(1), getpid(), VIR_INTERNAL_NO_DIRECT),
                 VIR_INTERNAL_ERR_UNREACHABLE, ECONNREFUSED,
                 "Connection refused");
}

DELEGATE_TEST(a_delegate_that_is_away_is_UNREACHABLE_in_a_child)
{
    Fake *fake = start_connected(peer_say, LONG);

    fake->shared->answer.verdict = WIRE_NOT_HANDLED;
    expect_success(scheduler->call(NULL, getpid(), 0));
    fake_kill(fake);
    in_each_kind(expect_away, fake);
    stop(fake);
}

static void
expect_optional(Fake *fake)
{
    (void) fake;
    expect_not_handled(scheduler->call(NULL, getpid(),
                                       VIR_INTERNAL_NO_DIRECT));
    expect_success(scheduler->call(NULL, getpid(), 0));
}

DELEGATE_TEST(an_optional_delegate_that_is_away_is_passed_over_in_a_child)
{
    Fake *fake = fake_start("a", NULL, 0);

    fake_kill(fake);
    connect_to(NULL, fake->address, LONG, VIR_INTERNAL_DELEGATE_OPTIONAL);
    in_each_kind(expect_optional, fake);
    stop(fake);
}

static void
expect_nothing_connected(Fake *fake)
{
    expect_error(virInternalConnectDelegate(NULL, VIR_INTERNAL_DELEGATE_VERSION,
                                            fake->address, 0, 0),
                 VIR_INTERNAL_ERR_FORKED, ECHILD,
                 "delegates cannot be connected in a child of the process that "
                 "first used the library");
    expect_error(virInternalDisconnectDelegate(NULL),
                 VIR_INTERNAL_ERR_FORKED, ECHILD,
                 "delegates cannot be disconnected in a child");
    expect_error(virInternalConnectionClosed(CONN(1)),
                 VIR_INTERNAL_ERR_FORKED, ECHILD, "child");
}

DELEGATE_TEST(nothing_is_connected_or_disconnected_in_a_child)
{
    Fake *fake = start_connected(peer_say, LONG);

    fake->shared->answer.verdict = WIRE_NOT_HANDLED;
    in_each_kind(expect_nothing_connected, fake);
    expect_not_handled(scheduler->call(NULL, getpid(),
                                       VIR_INTERNAL_NO_DIRECT));
    expect_eq_int(fake->shared->requests, 1);
    stop(fake);
}

static void
expect_no_descriptor(Fake *fake)
{
    State before = state_of(getpid(), getpid());

    for (int i = 0; i < 2; i++) {
        expect_error(scheduler->call(NULL, getpid(), 0),
                     VIR_INTERNAL_ERR_UNREACHABLE, ECONNREFUSED,
                     "the delegate at fd:");
        expect_error(virInternalAskDelegate(NULL, 1, 0),
                     VIR_INTERNAL_ERR_UNREACHABLE, ECONNREFUSED, "fd:");
        close_inherited_descriptors();
    }
    expect_unchanged(&before, getpid(), getpid());
    expect_eq_int(fake->shared->requests, 1);
}

DELEGATE_TEST(a_delegate_by_a_descriptor_is_UNREACHABLE_in_a_child)
{
    Fake *fake;
    int pair[2];

    must(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair));
    fake = fake_start_on(pair[1], peer_say);
    fake->shared->answer.verdict = WIRE_NOT_HANDLED;
    connect_to(NULL, text("fd:%d", pair[0]), LONG, 0);
    expect_not_handled(scheduler->call(NULL, getpid(),
                                       VIR_INTERNAL_NO_DIRECT));
    in_each_kind(expect_no_descriptor, fake);
    expect_not_handled(scheduler->call(NULL, getpid(),
                                       VIR_INTERNAL_NO_DIRECT));
    connect_to(NULL, text("fd:%d", pair[0]), LONG,
               VIR_INTERNAL_DELEGATE_OPTIONAL);
    in_each_kind(expect_optional, fake);
    close(pair[0]);
    stop(fake);
}

static void
expect_delegate_asked(Fake *fake)
{
    close_inherited_descriptors();
    fake->shared->pid = getpid();
    for (int i = 0; i < OPERATIONS; i++) {
        expect_success(operations[i].call(NULL, getpid(), 0));
        expect_true(operations[i].is_done(getpid()));
    }
}

static void
expect_forked(Fake *fake)
{
    State before = state_of(getpid(), getpid());

    (void) fake;
    close_inherited_descriptors();
    for (int i = 0; i < OPERATIONS; i++) {
        expect_error(operations[i].call(NULL, getpid(), 0),
                     VIR_INTERNAL_ERR_FORKED, ECHILD, "forked child");
        expect_error(operations[i].call(NULL, getpid(),
                                        VIR_INTERNAL_NO_DIRECT),
                     VIR_INTERNAL_ERR_FORKED, ECHILD, "forked child");
    }
    expect_unchanged(&before, getpid(), getpid());
}

DELEGATE_TEST(a_delegate_stands_in_for_a_handler_that_is_not_fork_safe)
{
    Script script = { .returns = -EXDEV };
    Fake *fake;

    for_each_operation(operation)
        set(operation, NULL, &script, 0);
    fake = start_connected(peer_obey, LONG);
    in_each_kind(expect_delegate_asked, fake);
    fake_stop(fake);
    /* What it does not handle is not done directly. */
    fake = start_connected(peer_say, LONG);
    fake->shared->answer.verdict = WIRE_NOT_HANDLED;
    in_each_kind(expect_forked, fake);
    expect_eq_int(fake->shared->requests, KINDS * 2 * OPERATIONS);
    expect_eq_int(script.calls, 0);
    for_each_operation(operation)
        unset(operation, NULL);
    stop(fake);
}

/* Requests that are never answered. */

static void
peer_that_answers_questions(Fake *fake, int connection)
{
    WireMessage message;

    if (!wire_greet(fake, connection))
        return;
    while (wire_receive(fake, connection, &message)) {
        if (message.header.operation != WIRE_OUTCOME)
            return;
        wire_answer(connection, &message.header, fake->shared->answer, NULL,
                    NULL);
    }
}

static void
have_a_request_of_its_own(Fake *fake)
{
    unsigned long long request;

    close_inherited_descriptors();
    expect_eq_int(virInternalGetLastRequest(), 0);
    expect_error(scheduler->call(NULL, getpid(), 0),
                 VIR_INTERNAL_ERR_UNKNOWN_OUTCOME, EINPROGRESS,
                 "the connection ended");
    request = virInternalGetLastRequest();
    expect_true(request != 0 && request == fake->shared->request);
    expect_success(virInternalAskDelegate(NULL, request, 0));
    expect_true(virInternalGetLastRequest() == request);
    virInternalResetLastError();
    expect_true(virInternalGetLastRequest() == request);
}

DELEGATE_TEST(a_child_has_a_last_request_of_its_own_and_can_ask_about_it)
{
    Fake *fake = start_connected(peer_that_answers_questions, LONG);
    unsigned long long parents;

    in_each_kind(have_a_request_of_its_own, fake);
    expect_eq_int(virInternalGetLastRequest(), 0);
    expect_eq_int(scheduler->call(NULL, getpid(), 0), -1);
    parents = virInternalGetLastRequest();
    expect_true(parents != 0);
    in_each_kind(have_a_request_of_its_own, fake);
    expect_true(virInternalGetLastRequest() == parents);
    stop(fake);
}

static void *
have_a_request_in_thread(void *fake)
{
    have_a_request_of_its_own(fake);
    return NULL;
}

static void
have_requests_one_after_the_other(Fake *fake)
{
    for (int i = 0; i < 3; i++) {
        pthread_t thread;

        expect_eq_int(pthread_create(&thread, NULL, have_a_request_in_thread,
                                     fake), 0);
        expect_eq_int(pthread_join(thread, NULL), 0);
    }
    expect_eq_int(virInternalGetLastRequest(), 0);
}

DELEGATE_TEST(each_thread_of_a_child_has_a_last_request_of_its_own)
{
    Fake *fake = start_connected(peer_that_answers_questions, LONG);

    expect_child_passes(by_fork(have_requests_one_after_the_other, fake));
    stop(fake);
}

/* Children that get the number of one that is no more, whatever thread made
 * that. */

#define LAST_PID "/proc/sys/kernel/ns_last_pid"

/* Where the next process's number comes from. */
static void
choose_next_pid(pid_t pid)
{
    int fd = must(open(LAST_PID, O_WRONLY | O_CLOEXEC));
    const char *last = text("%d", pid - 1);

    if (write(fd, last, strlen(last)) < 0)
        SKIP("%s cannot be written: %s", LAST_PID, strerror(errno));
    close(fd);
}

static pid_t wanted_pid;

static void
have_a_request_and_an_error(Fake *fake)
{
    (void) fake;
    wanted_pid = getpid();
    expect_error(scheduler->call(NULL, getpid(), 0),
                 VIR_INTERNAL_ERR_UNKNOWN_OUTCOME, EINPROGRESS,
                 "the connection ended");
}

static void *
vfork_in_thread(void *fake)
{
    expect_child_passes(by_vfork(have_a_request_and_an_error, fake));
    return NULL;
}

static bool was_wanted;

static void
have_nothing(Fake *fake)
{
    (void) fake;
    was_wanted = getpid() == wanted_pid;
    expect_true(virInternalGetLastError() == NULL);
    expect_eq_int(virInternalGetLastRequest(), 0);
}

DELEGATE_TEST(a_child_has_nothing_of_one_that_had_its_number_before)
{
    Fake *fake;

    if (access(LAST_PID, W_OK) < 0)
        SKIP("%s cannot be written: %s", LAST_PID, strerror(errno));
    fake = start_connected(peer_that_answers_questions, LONG);
    /* Unless another process is faster. */
    while (!was_wanted) {
        pthread_t thread;

        expect_eq_int(pthread_create(&thread, NULL, vfork_in_thread, fake), 0);
        expect_eq_int(pthread_join(thread, NULL), 0);
        choose_next_pid(wanted_pid);
        expect_child_passes(by_vfork(have_nothing, fake));
    }
    stop(fake);
}

static void
peer_keeping_requests(Fake *fake, int connection)
{
    /* There is one request at a time. */
    static uint64_t seen[100];
    static int count;
    WireMessage message;

    if (!wire_greet(fake, connection))
        return;
    while (wire_receive(fake, connection, &message)) {
        WireAnswer answer = { .verdict = WIRE_NOT_HANDLED };

        for (int i = 0; i < count; i++)
            fake->shared->found += seen[i] == message.header.request;
        seen[count++ % 100] = message.header.request;
        wire_answer(connection, &message.header, answer, NULL, NULL);
    }
}

static void
call_once(Fake *fake)
{
    (void) fake;
    expect_not_handled(scheduler->call(NULL, getpid(),
                                       VIR_INTERNAL_NO_DIRECT));
}

DELEGATE_TEST(requests_of_children_have_ids_that_no_other_has)
{
    Fake *fake = start_connected(peer_keeping_requests, LONG);

    for (int i = 0; i < 20; i++) {
        call_once(fake);
        in_each_kind(call_once, fake);
    }
    expect_eq_int(fake->shared->requests, 20 * (KINDS + 1));
    expect_eq_int(fake->shared->found, 0);
    stop(fake);
}

/* The thread that forked ends in the child. Its parent's connections had
 * numbers that are other files' there. */

#define FILES 64

static pthread_t forking;
static int child_files[FILES];

static void *
outlive(void *unused)
{
    expect_eq_int(pthread_join(forking, NULL), 0);
    for (int i = 0; i < FILES; i++)
        must(fcntl(child_files[i], F_GETFD));
    _exit(EXIT_SUCCESS);
    return unused;
}

DELEGATE_TEST(a_thread_that_ends_in_a_child_closes_no_descriptor_of_the_childs)
{
    Fake *fake = start_connected(peer_say, LONG);
    pid_t child;

    fake->shared->answer.verdict = WIRE_NOT_HANDLED;
    call_once(fake);
    child = must(fork());
    if (child == 0) {
        pthread_t thread;

        close_inherited_descriptors();
        for (int i = 0; i < FILES; i++)
            child_files[i] = must(open("/dev/null", O_RDONLY | O_CLOEXEC));
        call_once(fake);
        forking = pthread_self();
        expect_eq_int(pthread_create(&thread, NULL, outlive, NULL), 0);
        pthread_exit(NULL);
    }
    expect_child_passes(child);
    call_once(fake);
    stop(fake);
}

/* Without allocation. */

static void
allocate(Fake *fake)
{
    void *volatile block;

    (void) fake;
    forbid_malloc();
    block = malloc(1);
    free(block);
}

static void
require_forbidding_malloc(void)
{
    int status;

    if (!malloc_can_be_forbidden())
        SKIP("malloc is valgrind's or a sanitizer's, and cannot be forbidden");
    must(waitpid(by_fork(allocate, NULL), &status, 0));
    expect_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
}

static void
have_all_done_without_malloc(Fake *fake)
{
    forbid_malloc();
    have_all_done(fake);
    expect_error(virInternalAskDelegate(NULL, 0, 0),
                 VIR_INTERNAL_ERR_INVALID_ARG, EINVAL, "request is 0");
    expect_not_handled(virInternalAskDelegate(CONN(2), 9, 0));
    expect_error(scheduler->call(CONN(3), getpid(), 0),
                 VIR_INTERNAL_ERR_UNREACHABLE, ECONNREFUSED, "/nowhere");
    expect_nothing_connected(fake);
}

DELEGATE_TEST(a_child_allocates_nothing_to_ask_a_delegate)
{
    Fake *fake, *other;

    require_forbidding_malloc();
    fake = start_connected(peer_obey, LONG);
    other = fake_start("other", peer_say, BACKLOG);
    other->shared->answer.verdict = WIRE_NOT_HANDLED;
    connect_to(CONN(2), other->address, LONG, 0);
    connect_to(CONN(3), "unix:/nowhere", LONG, 0);
    expect_child_passes(by_fork(have_all_done_without_malloc, fake));
    expect_child_passes(by_clone(have_all_done_without_malloc, fake));
    disconnect_from(CONN(2));
    disconnect_from(CONN(3));
    fake_stop(other);
    stop(fake);
}

/* While other threads use the library, and its locks. */

static int stopped;

static void *
connect_all_the_time(void *data)
{
    const Fake *fake = data;
    Script script = { .returns = VIR_INTERNAL_NOT_HANDLED };

    while (!__atomic_load_n(&stopped, __ATOMIC_RELAXED)) {
        connect_to(CONN(1), fake->address, LONG, 0);
        connect_to(CONN(2), "unix:/nowhere", 0,
                   VIR_INTERNAL_DELEGATE_OPTIONAL);
        set(scheduler, CONN(1), &script, 0);
        disconnect_from(CONN(1));
        unset(scheduler, CONN(1));
        disconnect_from(CONN(2));
    }
    return NULL;
}

static void *
call_all_the_time(void *unused)
{
    while (!__atomic_load_n(&stopped, __ATOMIC_RELAXED)) {
        for (int i = 0; i < 3; i++)
            expect_not_handled(scheduler->call(CONN(i), getpid(),
                                               VIR_INTERNAL_NO_DIRECT));
    }
    return unused;
}

/* Its connections are opened and closed all the time. */
static void *
start_threads_all_the_time(void *fake)
{
    while (!__atomic_load_n(&stopped, __ATOMIC_RELAXED)) {
        pthread_t thread;

        expect_eq_int(pthread_create(&thread, NULL,
                                     (void *(*)(void *)) (void *) call_once,
                                     fake), 0);
        expect_eq_int(pthread_join(thread, NULL), 0);
    }
    return NULL;
}

static void
call_for_each(Fake *fake)
{
    int result;

    (void) fake;
    close_inherited_descriptors();
    expect_not_handled(scheduler->call(NULL, getpid(),
                                       VIR_INTERNAL_NO_DIRECT));
    expect_not_handled(scheduler->call(CONN(2), getpid(),
                                       VIR_INTERNAL_NO_DIRECT));
    result = scheduler->call(CONN(1), getpid(), VIR_INTERNAL_NO_DIRECT);
    /* Its handler may be there, and is not fork-safe. */
    if (result == -1)
        expect_error(result, VIR_INTERNAL_ERR_FORKED, ECHILD, "forked child");
    else
        expect_not_handled(result);
}

DELEGATE_TEST(children_of_a_process_whose_threads_ask_delegates_end_in_time,
              .seconds = 900)
{
    Fake *fake = start_connected(peer_say, LONG);
    pthread_t threads[4];
    void *(*const bodies[])(void *) = {
        connect_all_the_time, call_all_the_time, call_all_the_time,
        start_threads_all_the_time
    };

    fake->shared->answer.verdict = WIRE_NOT_HANDLED;
    for (int i = 0; i < 4; i++)
        expect_eq_int(pthread_create(threads + i, NULL, bodies[i], fake), 0);
    for (int i = 0; i < 100; i++)
        in_each_kind(call_for_each, fake);
    __atomic_store_n(&stopped, 1, __ATOMIC_RELAXED);
    for (int i = 0; i < 4; i++)
        expect_eq_int(pthread_join(threads[i], NULL), 0);
    stop(fake);
}
