/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A small test runner: named tests, each in a process of its own, with a time
 * limit and a look for what the test left behind.
 *
 *     TEST(two_and_two_are_four)
 *     {
 *         expect_eq_int(2 + 2, 4);
 *     }
 *
 * A program has its tests in one file, linked with runner.c, which has the
 * main(). See usage() there for the command line.
 */

#ifndef RUNNER_H
# define RUNNER_H

# include <stdbool.h>
# include <sys/types.h>

# ifdef __cplusplus
extern "C" {
# endif

typedef struct Test Test;

struct Test {
    const char *name;
    void (*run)(void);
    /* The time limit; 0 is the default. */
    unsigned int seconds;
    /* The signal that it must die by, and what it must say before. */
    int dies_by;
    const char *saying;
    /* Cleans up after the test. It runs in the runner, when all processes of
     * the test are gone, however they ended. */
    void (*after)(pid_t test);
    /* Why it is not run this time: the command line says so. */
    const char *left_out;
    Test *next;
};

/*
 * TEST(name, ...) { ... }
 *
 * The name is a sentence with underscores that says what holds. More fields of
 * a Test may follow it: TEST(it_takes_long, .seconds = 30).
 */
# define TEST(test_name, ...) \
    static void test_name(void); \
    __attribute__((constructor)) static void add_##test_name(void) \
    { \
        static Test test = { \
            .name = #test_name, .run = test_name, ##__VA_ARGS__ \
        }; \
        runner_add(&test); \
    } \
    static void test_name(void)

void runner_add(Test *test);

/* What a test is at, in front of its failure messages: a loop sets it. NULL
 * at the start. */
extern const char *runner_context;

/* Ends the test. Good in any thread and in any child of the test: a child
 * exits with a status that its parent must look at. */
# define FAIL(...) runner_fail(__FILE__, __LINE__, __VA_ARGS__)
# define SKIP(...) runner_skip(__VA_ARGS__)

__attribute__((noreturn, format(printf, 3, 4)))
void runner_fail(const char *file, int line, const char *format, ...);
__attribute__((noreturn, format(printf, 1, 2)))
void runner_skip(const char *format, ...);

# define expect_true(condition) \
    ((condition) ? (void) 0 : FAIL("expected %s", #condition))

# define expect_eq_int(actual, expected) \
    runner_expect_eq_int(__FILE__, __LINE__, #actual, actual, expected)

# define expect_eq_str(actual, expected) \
    runner_expect_eq_str(__FILE__, __LINE__, #actual, actual, expected)

# define expect_str_contains(actual, part) \
    runner_expect_str_contains(__FILE__, __LINE__, #actual, actual, part)

/* A system call that must not fail for the test to go on. */
# define must(call) runner_must(__FILE__, __LINE__, #call, call)

/* A child of the test must exit with status 0. */
# define expect_child_passes(pid) \
    runner_expect_child_passes(__FILE__, __LINE__, pid)

void runner_expect_eq_int(const char *file, int line, const char *what,
                          long long actual, long long expected);
void runner_expect_eq_str(const char *file, int line, const char *what,
                          const char *actual, const char *expected);
void runner_expect_str_contains(const char *file, int line, const char *what,
                                const char *actual, const char *part);
long runner_must(const char *file, int line, const char *what, long result);
void runner_expect_child_passes(const char *file, int line, pid_t pid);

# ifdef __cplusplus
}
# endif

#endif /* RUNNER_H */
