/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* Ends a test, in the test's own function, where this machine lacks what it needs. cmocka's skip() says "not ok … # SKIP", which is a failure to
 * those who read TAP. */
#define skip_for_want_of(what)                                 \
        do {                                                   \
                print_message("# SKIPPED, for want of " what "\n"); \
                return;                                        \
        } while (0)
