/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The runner itself: tests that are bad in each way, and what it says of
 * them. They are there only in a program that this one starts. */
#define _GNU_SOURCE
#include "runner.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define BAD_TESTS "RUNNER_BAD_TESTS"

#define BAD_TEST(test_name, ...) \
    static void test_name(void); \
    __attribute__((constructor)) static void add_##test_name(void) \
    { \
        static Test test = { \
            .name = #test_name, .run = test_name, ##__VA_ARGS__ \
        }; \
        if (getenv(BAD_TESTS)) \
            runner_add(&test); \
    } \
    static void test_name(void)

BAD_TEST(good)
{
}

BAD_TEST(unequal)
{
    expect_eq_int(2 + 2, 5);
}

BAD_TEST(skipped)
{
    SKIP("there is no %s", "reason");
}

BAD_TEST(leaves_a_descriptor_open)
{
    must(open("/dev/null", O_RDONLY));
}

static void *
wait_for_ever(void *unused)
{
    pause();
    return unused;
}

BAD_TEST(leaves_a_thread)
{
    pthread_t thread;

    pthread_create(&thread, NULL, wait_for_ever, NULL);
}

BAD_TEST(leaves_a_process)
{
    if (must(fork()) == 0)
        wait_for_ever(NULL);
}

BAD_TEST(takes_too_long, .seconds = 1)
{
    /* Its time limit is for a process of its own, too. */
    if (must(fork()) == 0)
        wait_for_ever(NULL);
    wait_for_ever(NULL);
}

BAD_TEST(crashes)
{
    raise(SIGKILL);
}

BAD_TEST(dies_as_it_must, .dies_by = SIGABRT, .saying = "last words")
{
    fprintf(stderr, "my last words\n");
    abort();
}

BAD_TEST(dies_in_silence, .dies_by = SIGABRT, .saying = "last words")
{
    abort();
}

BAD_TEST(survives, .dies_by = SIGABRT, .saying = "last words")
{
    fprintf(stderr, "last words\n");
}

BAD_TEST(dies_of_something_else, .dies_by = SIGABRT, .saying = "last words")
{
    fprintf(stderr, "last words\n");
    raise(SIGTERM);
}

static void
say_so(pid_t test)
{
    printf("cleaned up after it: %s\n",
           kill(test, 0) < 0 && errno == ESRCH ? "it was gone" : "too soon");
}

BAD_TEST(is_cleaned_up_after, .after = say_so)
{
    FAIL("as it must");
}

/* Runs this program with an argument, and returns what it prints. */
static const char *
output_of(const char *argument, int *status)
{
    static char output[16384];
    size_t length = 0;
    ssize_t more;
    int ends[2];
    pid_t child;

    must(pipe(ends));
    child = must(fork());
    if (child == 0) {
        char *args[] = { program_invocation_name, (char *) argument, NULL };

        setenv(BAD_TESTS, "1", 1);
        dup2(ends[1], STDOUT_FILENO);
        dup2(ends[1], STDERR_FILENO);
        close(ends[0]);
        close(ends[1]);
        execv("/proc/self/exe", args);
        _exit(127);
    }
    close(ends[1]);
    while ((more = must(read(ends[0], output + length,
                             sizeof(output) - 1 - length))) > 0)
        length += more;
    output[length] = '\0';
    close(ends[0]);
    must(waitpid(child, status, 0));
    return output;
}

static void
require(const char *name, int expected_status, const char *part,
        const char *closing_line)
{
    int status;
    const char *output = output_of(name, &status);

    runner_context = name;
    expect_str_contains(output, part);
    expect_str_contains(output, closing_line);
    expect_true(WIFEXITED(status));
    expect_eq_int(WEXITSTATUS(status), expected_status);
    runner_context = NULL;
}

#define PASSED "\n1 passed, 0 failed, 0 skipped\n"
#define FAILED "\n0 passed, 1 failed, 0 skipped\n"
#define SKIPPED "\n0 passed, 0 failed, 1 skipped\n"

TEST(a_good_test_passes)
{
    require("good", 0, "PASS 00-runner/good\n", PASSED);
}

TEST(a_failure_says_where_and_what_was_expected_and_found)
{
    require("unequal", 1, "00-runner.c:37: expected 2 + 2 to be 5, found 4\n",
            FAILED);
}

TEST(a_skipped_test_is_named_with_its_reason)
{
    require("skipped", 0, "SKIP 00-runner/skipped: there is no reason\n",
            SKIPPED);
}

TEST(what_a_test_leaves_behind_fails_it)
{
    require("leaves_a_descriptor_open", 1, "was left open: /dev/null\n",
            FAILED);
    require("leaves_a_thread", 1,
            "expected 1 threads at the end as at the start, found 2\n",
            FAILED);
    require("leaves_a_process", 1, ": it left 1 processes behind\n", FAILED);
}

TEST(a_test_that_takes_too_long_fails)
{
    require("takes_too_long", 1, "did not end within its time limit\n",
            FAILED);
}

TEST(a_test_that_crashes_fails)
{
    require("crashes", 1, ": it died by signal 9 (Killed)\n",
            FAILED);
}

TEST(a_test_that_must_die_does_so_by_that_signal_and_with_those_words)
{
    require("dies_as_it_must", 0, "PASS", PASSED);
    require("dies_in_silence", 1, "expected it to say: last words\n", FAILED);
    require("survives", 1, "expected to die by signal 6 (Aborted), returned\n",
            FAILED);
    require("dies_of_something_else", 1, "it died by signal 15 (Terminated)\n",
            FAILED);
}

TEST(a_test_is_cleaned_up_after_when_it_is_gone)
{
    require("is_cleaned_up_after", 1, "cleaned up after it: it was gone\n",
            FAILED);
}

TEST(a_name_that_is_none_is_an_error_and_no_success)
{
    int status;

    expect_str_contains(output_of("no_such", &status), "no such test\n");
    expect_eq_int(WEXITSTATUS(status), 2);
}
