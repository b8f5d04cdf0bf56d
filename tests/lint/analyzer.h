/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Only clang-tidy sees this, before the first line of each source. Its analyzer looks at one source at a time and cannot know
 * that what these return is negative, so `return log_error_errno(r, …)` would look to it as if it might be a success. */

#include <errno.h>

#include "definition-internal.h"
#include "log.h"
#include "util.h"

#define log_full(level, error, ...) ((void) (log_full)(level, error, __VA_ARGS__), (error) > 0 ? -(error) : (error))
#define set_message(ret_message, error, ...) ((void) (set_message)(ret_message, error, __VA_ARGS__), (error))
#define definition_refuse(...) ((void) (definition_refuse)(__VA_ARGS__), -EBADMSG)
#define definition_refuse_found(...) ((void) (definition_refuse_found)(__VA_ARGS__), -EBADMSG)
#define definition_refuse_key(...) ((void) (definition_refuse_key)(__VA_ARGS__), -EBADMSG)
#define definition_refuse_missing(...) ((void) (definition_refuse_missing)(__VA_ARGS__), -EBADMSG)
