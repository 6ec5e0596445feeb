/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Erasing secrets. */
#define _GNU_SOURCE
#include "support.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static const char zeros[64];

TEST(a_buffer_is_erased_to_its_length_and_no_further)
{
    char buffer[64];

    memset(buffer, 'x', sizeof(buffer));
    virInternalSecureErase(buffer + 8, 16);
    for (size_t i = 0; i < sizeof(buffer); i++)
        expect_eq_int(buffer[i], i >= 8 && i < 24 ? 0 : 'x');
}

TEST(a_NUL_in_a_buffer_is_not_its_end)
{
    char buffer[] = "secret\0secret";

    virInternalSecureErase(buffer, sizeof(buffer));
    expect_eq_int(memcmp(buffer, zeros, sizeof(buffer)), 0);
}

TEST(a_string_is_erased_to_its_NUL_and_no_further)
{
    char buffer[] = "secret\0public";

    virInternalSecureEraseString(buffer);
    expect_eq_int(memcmp(buffer, zeros, 7), 0);
    expect_eq_str(buffer + 7, "public");
}

TEST(NULL_and_nothing_are_left_alone)
{
    char buffer[] = "public";
    char empty[] = "\0public";

    virInternalSecureErase(NULL, 0);
    virInternalSecureErase(NULL, 64);
    virInternalSecureEraseString(NULL);
    virInternalSecureErase(buffer, 0);
    expect_eq_str(buffer, "public");
    virInternalSecureEraseString(empty);
    expect_eq_str(empty + 1, "public");
}

TEST(errno_is_left_alone)
{
    char buffer[] = "secret";

    errno = EXDEV;
    virInternalSecureErase(buffer, sizeof(buffer));
    virInternalSecureEraseString(buffer);
    expect_eq_int(errno, EXDEV);
}
