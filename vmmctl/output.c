/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <time.h>

#include "output.h"

static volatile sig_atomic_t broken_pipe;

static void on_broken_pipe(int signal) {
        broken_pipe = 1;
}

void output_begin(void) {
        /* A handler rather than SIG_IGN, which programs that we start would inherit. */
        struct sigaction action = { .sa_handler = on_broken_pipe };

        (void) sigaction(SIGPIPE, &action, NULL);
}

bool output_is_gone(void) {
        return broken_pipe;
}

char *make_printable(char *text) {
        for (unsigned char *c = (unsigned char *) text; c && *c; c++) {
                if (*c == 0xc2 && c[1] >= 0x80 && c[1] < 0xa0) /* C1, as UTF-8 has them */
                        *c++ = '?';
                else if ((*c >= 0x20 || *c == '\t') && *c != 0x7f)
                        continue;
                *c = '?';
        }
        return text;
}

/* Our own lines are kept: those that follow the first are indented. What somebody else's text puts there cannot be taken for the beginning of another complaint. */
static char *make_lines_printable(char *text) {
        for (char *line = text, *end; line; line = end) {
                end = strstr(line, "\n  ");
                if (end)
                        *end = 0;
                (void) make_printable(line);
                if (end)
                        *end++ = '\n';
        }
        return text;
}

void complain(const char *format, ...) {
        _cleanup_free_ char *text = NULL;
        va_list ap;

        va_start(ap, format);
        if (vasprintf(&text, format, ap) < 0)
                text = NULL;
        va_end(ap);
        /* In one go, so that nobody else's words come between. */
        (void) fprintf(stderr, "vmmctl: %s\n", make_lines_printable(text) ?: "Out of memory.");
}

int print_json(const Options *o, json_object *value) {
        int flags = JSON_C_TO_STRING_NOSLASHESCAPE;
        const char *text;

        flags |= o->json == JSON_SHORT ? JSON_C_TO_STRING_PLAIN : JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_SPACED;
        text = json_object_to_json_string_ext(value, flags);
        if (!text)
                return -ENOMEM;
        return puts(text) < 0 && !output_is_gone() ? -EIO : 0;
}

/* ---- colours ---- */

static bool use_color(void) {
        static int decided = -1;
        const char *term = getenv("TERM");

        if (decided < 0)
                decided = isatty(STDOUT_FILENO) > 0 && !getenv("NO_COLOR") && term && !streq(term, "dumb");
        return decided > 0;
}

const char *color(Color c) {
        static const char *const sequences[] = {
                [COLOR_NONE] = "",           [COLOR_GREEN] = "\x1b[0;32m", [COLOR_YELLOW] = "\x1b[0;33m",
                [COLOR_RED] = "\x1b[0;31m", [COLOR_GREY] = "\x1b[0;90m",  [COLOR_BOLD] = "\x1b[0;1m",
        };
        return use_color() ? sequences[c] : "";
}

const char *color_end(void) {
        return use_color() ? "\x1b[0m" : "";
}

Color color_of_state(const char *state) {
        static const struct {
                const char *state;
                Color color;
        } states[] = {
                { "running", COLOR_GREEN },  { "active", COLOR_GREEN },      { "ready", COLOR_GREEN },
                { "starting", COLOR_YELLOW }, { "activating", COLOR_YELLOW }, { "connecting", COLOR_YELLOW },
                { "stopping", COLOR_YELLOW }, { "deactivating", COLOR_YELLOW }, { "resetting", COLOR_YELLOW },
                { "paused", COLOR_YELLOW },  { "failed", COLOR_RED },        { "panicked", COLOR_RED },
                { "invalid", COLOR_RED },    { "stopped", COLOR_GREY },      { "inactive", COLOR_GREY },
        };

        for (size_t i = 0; i < ELEMENTSOF(states); i++)
                if (streq(states[i].state, state))
                        return states[i].color;
        return COLOR_NONE;
}

/* ---- formats ---- */

static char *format_text(const char *format, ...) _printf_(1, 2);
static char *format_text(const char *format, ...) {
        va_list ap;
        char *text;
        int r;

        va_start(ap, format);
        r = vasprintf(&text, format, ap);
        va_end(ap);
        return r < 0 ? NULL : text;
}

char *format_bytes(uint64_t bytes) {
        static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB", "PiB" };
        size_t u = 0;
        uint64_t unit = 1;

        while (u + 1 < ELEMENTSOF(units) && bytes / unit >= 1024) {
                unit *= 1024;
                u++;
        }
        if (bytes % unit == 0)
                return format_text("%" PRIu64 " %s", bytes / unit, units[u]);
        return format_text("%.1f %s", (double) bytes / (double) unit, units[u]);
}

char *format_time(uint64_t realtime_usec) {
        time_t seconds = (time_t) (realtime_usec / USEC_PER_SEC);
        struct tm tm;
        char text[128];

        if (!localtime_r(&seconds, &tm) || strftime(text, sizeof(text), "%a %Y-%m-%d %H:%M:%S %Z", &tm) == 0)
                return format_text("@%" PRIu64, realtime_usec / USEC_PER_SEC);
        return strdup(text);
}

char *format_ago(uint64_t realtime_usec) {
        struct timespec now;
        uint64_t s;

        (void) clock_gettime(CLOCK_REALTIME, &now);
        s = (uint64_t) now.tv_sec > realtime_usec / USEC_PER_SEC ? (uint64_t) now.tv_sec - realtime_usec / USEC_PER_SEC : 0;
        if (s >= 86400)
                return format_text("%" PRIu64 "d %" PRIu64 "h", s / 86400, s % 86400 / 3600);
        if (s >= 3600)
                return format_text("%" PRIu64 "h %" PRIu64 "min", s / 3600, s % 3600 / 60);
        if (s >= 60)
                return format_text("%" PRIu64 "min %" PRIu64 "s", s / 60, s % 60);
        return format_text("%" PRIu64 "s", s);
}

/* ---- tables ---- */

void table_done(Table *t) {
        for (size_t i = 0; i < t->n_cells; i++)
                free(t->cells[i]);
        free(t->cells);
        free(t->colors);
        *t = (Table) { .n_columns = t->n_columns };
}

/* How many columns of a terminal the text takes: one for each character of UTF-8, which is good enough for names and states. */
static size_t width(const char *text) {
        size_t n = 0;

        for (; *text; text++)
                n += ((unsigned char) *text & 0xc0) != 0x80;
        return n;
}

void table_add(Table *t, Color c, const char *format, ...) {
        char **cells = reallocarray(t->cells, t->n_cells + 1, sizeof(*cells));
        Color *colors = reallocarray(t->colors, t->n_cells + 1, sizeof(*colors));
        va_list ap;
        char *text;
        int r;

        t->cells = cells ?: t->cells;
        t->colors = colors ?: t->colors;
        va_start(ap, format);
        r = vasprintf(&text, format, ap);
        va_end(ap);
        if (!cells || !colors || r < 0) {
                if (r >= 0)
                        free(text);
                t->failed = true;
                return;
        }
        t->cells[t->n_cells] = make_printable(text);
        t->colors[t->n_cells++] = c;
}

static size_t column_width(const Table *t, size_t column) {
        size_t w = 0;

        for (size_t i = column; i < t->n_cells; i += t->n_columns)
                w = MAX(w, width(t->cells[i]));
        return w;
}

int table_print(const Table *t, const char *indent) {
        if (t->failed)
                return -ENOMEM;
        for (size_t i = 0; i < t->n_cells; i++) {
                size_t column = i % t->n_columns;
                bool last = column + 1 == t->n_columns || i + 1 == t->n_cells;
                /* No blanks at the end of a line whose last cell is empty. */
                bool pad = !last && (column + 2 < t->n_columns || *t->cells[i + 1]);

                (void) printf("%s%s%s%s", column == 0 ? indent : "", color(t->colors[i]), t->cells[i],
                        t->colors[i] == COLOR_NONE ? "" : color_end());
                if (last)
                        (void) putchar('\n');
                else if (pad)
                        (void) printf("%*s", (int) (column_width(t, column) - width(t->cells[i]) + 2), "");
        }
        return 0;
}

/* ---- outcomes ---- */

int outcomes_begin(Outcomes *outcomes, const Options *o) {
        *outcomes = (Outcomes) { .options = o };
        if (o->json == JSON_OFF)
                return 0;
        outcomes->array = json_object_new_array();
        return outcomes->array ? 0 : -ENOMEM;
}

static int add_json(json_object *array, const char *machine, const char *problem) {
        _cleanup_json_ json_object *o = json_object_new_object();
        int r;

        if (!o)
                return -ENOMEM;
        r = json_add_string(o, "name", machine);
        if (r >= 0)
                r = json_add_boolean(o, "ok", !problem);
        if (r >= 0)
                r = json_add_string(o, "problem", problem);
        return r < 0 ? r : json_append(array, TAKE_PTR(o));
}

void outcomes_add(Outcomes *outcomes, const char *machine, int status, const char *problem) {
        if (outcomes->status == STATUS_OK)
                outcomes->status = status;
        if (problem)
                complain("%s: %s", machine, problem);
        if (outcomes->array && add_json(outcomes->array, machine, problem) < 0) {
                complain("Out of memory.");
                outcomes->status = STATUS_FAILED;
        }
}

int outcomes_end(Outcomes *outcomes) {
        if (outcomes->array) {
                if (print_json(outcomes->options, outcomes->array) < 0)
                        outcomes->status = STATUS_FAILED;
                json_putp(&outcomes->array);
        }
        return outcomes->status;
}
