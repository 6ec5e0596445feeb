/* SPDX-License-Identifier: LGPL-2.1-or-later */
#define _GNU_SOURCE
#include "runner.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* What a test takes on a machine that is busy with something else, and much
 * more: only one that hangs comes to it. */
#define SECONDS_DEFAULT 300
/* As automake's: a test exits with it when it cannot run here. */
#define EXIT_SKIPPED 77
#define DESCRIPTORS_MAX 1024

const char *runner_context;

static Test *tests;
static unsigned int slowness = 1;

void
runner_add(Test *test)
{
    Test **end = &tests;

    while (*end)
        end = &(*end)->next;
    *end = test;
}

void
runner_fail(const char *file, int line, const char *format, ...)
{
    va_list args;

    dprintf(STDERR_FILENO, "%s:%d: ", file, line);
    if (runner_context)
        dprintf(STDERR_FILENO, "%s: ", runner_context);
    va_start(args, format);
    vdprintf(STDERR_FILENO, format, args);
    va_end(args);
    dprintf(STDERR_FILENO, "\n");
    _exit(EXIT_FAILURE);
}

void
runner_skip(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vdprintf(STDERR_FILENO, format, args);
    va_end(args);
    dprintf(STDERR_FILENO, "\n");
    _exit(EXIT_SKIPPED);
}

void
runner_expect_eq_int(const char *file, int line, const char *what,
                     long long actual, long long expected)
{
    if (actual != expected)
        runner_fail(file, line, "expected %s to be %lld, found %lld",
                    what, expected, actual);
}

void
runner_expect_eq_str(const char *file, int line, const char *what,
                     const char *actual, const char *expected)
{
    if (!actual || strcmp(actual, expected) != 0)
        runner_fail(file, line, "expected %s to be \"%s\", found \"%s\"",
                    what, expected, actual ? actual : "(null)");
}

void
runner_expect_str_contains(const char *file, int line, const char *what,
                           const char *actual, const char *part)
{
    if (!actual || !strstr(actual, part))
        runner_fail(file, line, "expected %s to contain \"%s\", found \"%s\"",
                    what, part, actual ? actual : "(null)");
}

long
runner_must(const char *file, int line, const char *what, long result)
{
    if (result == -1)
        runner_fail(file, line, "%s: %s", what, strerror(errno));
    return result;
}

void
runner_expect_child_passes(const char *file, int line, pid_t pid)
{
    int status;

    runner_must(file, line, "waitpid", waitpid(pid, &status, 0));
    if (WIFSIGNALED(status))
        runner_fail(file, line, "the child died by signal %d (%s)",
                    WTERMSIG(status), strsignal(WTERMSIG(status)));
    if (WEXITSTATUS(status) == EXIT_SKIPPED)
        _exit(EXIT_SKIPPED);
    if (WEXITSTATUS(status) != 0)
        runner_fail(file, line, "the child exited with status %d",
                    WEXITSTATUS(status));
}

/* Calls @each with every number that is a name in the directory. */
static void
for_each_number(const char *path, void (*each)(int number, void *data),
                void *data)
{
    DIR *directory = opendir(path);
    struct dirent *entry;

    if (!directory)
        FAIL("%s: %s", path, strerror(errno));
    while ((entry = readdir(directory))) {
        int number = atoi(entry->d_name);

        if (entry->d_name[0] != '.' && number != dirfd(directory))
            each(number, data);
    }
    closedir(directory);
}

static void
note_descriptor(int fd, void *data)
{
    bool *open = data;

    if (fd < DESCRIPTORS_MAX)
        open[fd] = true;
}

static void
require_known_descriptor(int fd, void *data)
{
    const bool *open = data;
    char link[64];
    char file[256] = "";

    if (fd < DESCRIPTORS_MAX && open[fd])
        return;
    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    if (readlink(link, file, sizeof(file) - 1) < 0)
        file[0] = '\0';
    FAIL("descriptor %d was left open: %s", fd, file);
}

/* Whether the thread is on its way out, or gone. The kernel lets pthread_join()
 * go on a little before it removes the thread. */
static bool
is_exiting(int tid)
{
    const unsigned int pf_exiting = 0x4;
    char path[64];
    char text[512];
    unsigned int flags = pf_exiting;
    ssize_t length = -1;
    int fd;

    snprintf(path, sizeof(path), "/proc/self/task/%d/stat", tid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        length = read(fd, text, sizeof(text) - 1);
        close(fd);
    }
    if (length <= 0)
        return true;
    text[length] = '\0';
    /* Behind the name: state, ppid, pgrp, session, tty_nr, tpgid and flags. */
    if (sscanf(strrchr(text, ')'), ") %*c %*d %*d %*d %*d %*d %u", &flags) != 1)
        FAIL("cannot read %s: %s", path, text);
    return flags & pf_exiting;
}

static void
count_one(int tid, void *data)
{
    *(int *) data += !is_exiting(tid);
}

static int
count_threads(void)
{
    int count = 0;

    for_each_number("/proc/self/task", count_one, &count);
    return count;
}

static void
require_threads(int expected)
{
    int found = count_threads();

    if (found != expected)
        FAIL("expected %d threads at the end as at the start, found %d",
             expected, found);
}

static void
run_here(const Test *test)
{
    bool open[DESCRIPTORS_MAX] = { false };
    int threads = count_threads();

    if (test->dies_by) {
        /* Nobody wants the core. */
        struct rlimit limit;

        must(getrlimit(RLIMIT_CORE, &limit));
        limit.rlim_cur = 0;
        must(setrlimit(RLIMIT_CORE, &limit));
    }
    for_each_number("/proc/self/fd", note_descriptor, open);
    if (test->left_out)
        SKIP("%s", test->left_out);
    test->run();
    runner_context = NULL;
    if (test->dies_by)
        FAIL("expected to die by signal %d (%s), returned",
             test->dies_by, strsignal(test->dies_by));
    for_each_number("/proc/self/fd", require_known_descriptor, open);
    require_threads(threads);
}

/* Waits for the process to end; whether it did in time. */
static bool
ends_in_time(pid_t pid, unsigned int seconds)
{
    struct pollfd end = { .events = POLLIN };
    int ready;

    end.fd = must(syscall(SYS_pidfd_open, pid, 0));
    ready = must(poll(&end, 1, seconds * 1000));
    close(end.fd);
    return ready > 0;
}

/* Ends what is left of a test, and returns how many processes it was. The
 * runner is their reaper, so that they are its children by now. */
static int
end_group(pid_t group)
{
    int count = 0;

    kill(-group, SIGKILL);
    while (waitpid(-group, NULL, 0) > 0)
        count++;
    return count;
}

static const char *
read_output(int fd)
{
    static char output[65536];
    ssize_t length = pread(fd, output, sizeof(output) - 1, 0);

    while (length > 0 && output[length - 1] == '\n')
        length--;
    output[length > 0 ? length : 0] = '\0';
    return output;
}

static void
print_indented(const char *text)
{
    while (*text) {
        int length = strcspn(text, "\n");

        printf("    %.*s\n", length, text);
        text += length;
        text += *text == '\n';
    }
}

typedef enum { PASSED, FAILED, SKIPPED } Outcome;

/* Says in @why what makes it no pass. */
static Outcome
judge(const Test *test, bool in_time, int status, int left,
      const char *output, char *why, size_t size)
{
    if (!in_time) {
        snprintf(why, size, "it did not end within its time limit");
    } else if (WIFEXITED(status) && WEXITSTATUS(status) == EXIT_SKIPPED) {
        snprintf(why, size, "%s", output);
        return SKIPPED;
    } else if (WIFSIGNALED(status) && WTERMSIG(status) != test->dies_by) {
        snprintf(why, size, "it died by signal %d (%s)",
                 WTERMSIG(status), strsignal(WTERMSIG(status)));
    } else if (WIFSIGNALED(status) && !strstr(output, test->saying)) {
        snprintf(why, size, "expected it to say: %s", test->saying);
    } else if (WIFEXITED(status) && WEXITSTATUS(status) != 0) {
        snprintf(why, size, "it exited with status %d", WEXITSTATUS(status));
    } else if (WIFEXITED(status) && left > 0) {
        snprintf(why, size, "it left %d processes behind", left);
    } else {
        return PASSED;
    }
    return FAILED;
}

static Outcome
run_in_process(const Test *test)
{
    int output = must(memfd_create("output", MFD_CLOEXEC));
    unsigned int seconds = test->seconds ? test->seconds : SECONDS_DEFAULT;
    char why[1024] = "";
    Outcome outcome;
    bool in_time;
    int status;
    int left;
    pid_t pid;

    pid = must(fork());
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        setpgid(0, 0);
        must(dup2(output, STDOUT_FILENO));
        must(dup2(output, STDERR_FILENO));
        close(output);
        run_here(test);
        exit(EXIT_SUCCESS);
    }
    setpgid(pid, pid);
    in_time = ends_in_time(pid, seconds * slowness);
    if (!in_time)
        kill(pid, SIGKILL);
    must(waitpid(pid, &status, 0));
    left = end_group(pid);
    if (test->after)
        test->after(pid);

    outcome = judge(test, in_time, status, left, read_output(output),
                    why, sizeof(why));
    switch (outcome) {
    case PASSED:
        printf("PASS %s/%s\n", program_invocation_short_name, test->name);
        break;
    case SKIPPED:
        printf("SKIP %s/%s: %s\n", program_invocation_short_name, test->name,
               why);
        break;
    case FAILED:
        printf("FAIL %s/%s: %s\n", program_invocation_short_name, test->name,
               why);
        print_indented(read_output(output));
        break;
    }
    fflush(stdout);
    close(output);
    return outcome;
}

static Test *
find(const char *name)
{
    Test *test = tests;

    while (test && strcmp(test->name, name) != 0)
        test = test->next;
    return test;
}

/* @argument is TEST:WHY; the test may be another program's. */
static void
leave_out(char *argument)
{
    char *why = strchrnul(argument, ':');
    Test *test;

    if (*why)
        *why++ = '\0';
    test = find(argument);
    if (test)
        test->left_out = why;
}

static int
usage(const char *problem)
{
    fprintf(stderr,
            "%s%susage: %s [OPTION]... [TEST]...\n"
            "Runs the tests with these names, or all.\n"
            "  --list           lists the tests\n"
            "  --no-fork        runs one test in this very process, without a\n"
            "                   time limit, for a debugger\n"
            "  --slow=N         N times as much time for each test\n"
            "  --skip=TEST:WHY  leaves a test out, and says so\n",
            problem ? problem : "", problem ? "\n" : "",
            program_invocation_short_name);
    return problem ? 2 : 0;
}

static int
list(void)
{
    for (const Test *test = tests; test; test = test->next)
        puts(test->name);
    return EXIT_SUCCESS;
}

static int
run_without_fork(const Test *test)
{
    run_here(test);
    if (test->after)
        test->after(getpid());
    return EXIT_SUCCESS;
}

static bool
is_wanted(const Test *test, char **names)
{
    if (!*names)
        return true;
    while (*names && strcmp(*names, test->name) != 0)
        names++;
    return *names;
}

/* What a test opens must not be one of these, whoever starts the runner. */
static void
have_standard_descriptors(void)
{
    int fd;

    do {
        fd = must(open("/dev/null", O_RDWR));
    } while (fd <= STDERR_FILENO);
    close(fd);
}

int
main(int argc, char **argv)
{
    int counts[] = { [PASSED] = 0, [FAILED] = 0, [SKIPPED] = 0 };
    bool no_fork = false;
    char **names = argv + 1;

    have_standard_descriptors();
    for (; *names && strncmp(*names, "--", 2) == 0; names++) {
        if (strcmp(*names, "--list") == 0)
            return list();
        else if (strcmp(*names, "--help") == 0)
            return usage(NULL);
        else if (strcmp(*names, "--no-fork") == 0)
            no_fork = true;
        else if (strncmp(*names, "--skip=", 7) == 0)
            leave_out(*names + 7);
        else if (sscanf(*names, "--slow=%u", &slowness) != 1)
            return usage("unknown option");
    }
    for (char **name = names; *name; name++) {
        if (!find(*name))
            return usage("no such test");
    }
    if (no_fork) {
        if (argv + argc - names != 1)
            return usage("--no-fork needs the name of one test");
        return run_without_fork(find(*names));
    }

    must(prctl(PR_SET_CHILD_SUBREAPER, 1));
    for (const Test *test = tests; test; test = test->next) {
        if (is_wanted(test, names))
            counts[run_in_process(test)]++;
    }
    printf("%d passed, %d failed, %d skipped\n",
           counts[PASSED], counts[FAILED], counts[SKIPPED]);
    return counts[FAILED] ? EXIT_FAILURE : EXIT_SUCCESS;
}
