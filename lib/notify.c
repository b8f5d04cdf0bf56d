/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <stdarg.h>
#include <stdio.h>
#include <systemd/sd-daemon.h>

#include "notify.h"

void notify_status(const char *also, const char *format, ...) {
        _cleanup_free_ char *text = NULL, *escaped = NULL;
        va_list ap;
        int r;

        va_start(ap, format);
        r = vasprintf(&text, format, ap);
        va_end(ap);
        if (r < 0)
                text = NULL;
        escaped = escape_status(make_one_line(text));
        if (escaped)
                (void) sd_notifyf(false, "%sSTATUS=%s", also, escaped);
        else if (*also)
                (void) sd_notify(false, also);
}
