/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* balloon: how much of its memory the guest has handed back, and what it says about the rest. */

#include <ctype.h>
#include <inttypes.h>
#include <signal.h>

#include "balloon.h"
#include "machine.h"
#include "output.h"
#include "parse.h"

/* As the interface has it: n ages make n + 1 buckets. */
#define INTERVALS_MAX 15

typedef struct Balloon {
        const Options *options;
        const char *machine;
        VarlinkClient *client;
        json_object *parameters; /* of the call, with the device where one was named */
        json_object *reply;
        char *problem;
} Balloon;

static void balloon_done(Balloon *b) {
        b->client = varlink_client_unref(b->client);
        json_putp(&b->parameters);
        json_putp(&b->reply);
        free(b->problem);
}

static int balloon_begin(Balloon *b) {
        b->parameters = json_object_new_object();
        if (!b->parameters || json_add_string(b->parameters, "device", b->options->device) < 0)
                return -ENOMEM;
        return machine_connect(b->options, b->machine, &b->client, &b->problem);
}

static int balloon_call(Balloon *b, const char *method) {
        return machine_call(b->options, b->client, method, b->parameters, &b->reply, &b->problem);
}

static int print_reply(const Balloon *b, json_object *what) {
        return print_json(b->options, what) < 0 ? STATUS_FAILED : STATUS_OK;
}

char *balloon_summary(json_object *balloon) {
        _cleanup_free_ char *target = format_bytes((uint64_t) json_get_integer(balloon, "target", 0)),
                            *actual = format_bytes((uint64_t) json_get_integer(balloon, "actual", 0));
        bool driver = json_get_boolean(balloon, "driver", true);
        char *text;

        if (asprintf(&text, "%s of %s%s", actual ?: "?", target ?: "?", driver ? "" : ", the guest has no driver") < 0)
                return NULL;
        return text;
}

/* ---- what there is ---- */

static void add_balloon_row(Table *t, json_object *balloon) {
        _cleanup_free_ char *target = format_bytes((uint64_t) json_get_integer(balloon, "target", 0)),
                            *actual = format_bytes((uint64_t) json_get_integer(balloon, "actual", 0)),
                            *reported = format_bytes((uint64_t) json_get_integer(balloon, "reported", 0));
        json_object *features = json_get(balloon, "features", json_type_array);
        size_t n = features ? json_object_array_length(features) : 0;
        _cleanup_free_ char *list = NULL;

        for (size_t i = 0; i < n; i++) {
                const char *feature = json_object_get_string(json_object_array_get_idx(features, i));
                char *longer;

                if (asprintf(&longer, "%s%s%s", list ?: "", list ? " " : "", feature ?: "?") < 0)
                        break;
                free(list);
                list = longer;
        }
        table_add(t, COLOR_NONE, "%s", json_get_string(balloon, "device", "?"));
        table_add(t, COLOR_NONE, "%s", target ?: "?");
        table_add(t, COLOR_NONE, "%s", actual ?: "?");
        table_add(t, COLOR_NONE, "%" PRId64, json_get_integer(balloon, "oomDeflations", 0));
        table_add(t, COLOR_NONE, "%s", reported ?: "?");
        table_add(t, COLOR_NONE, "%s", json_get_boolean(balloon, "driver", false) ? list ?: "-" : "no driver");
}

static int print_balloons(const Options *o, json_object *balloons) {
        static const char *const headings[] = { "BALLOON", "TARGET", "ACTUAL", "OOM-DEFLATIONS", "REPORTED", "GUEST'S DRIVER" };
        _cleanup_(table_done) Table t = { .n_columns = ELEMENTSOF(headings) };

        for (size_t i = 0; !o->quiet && i < ELEMENTSOF(headings); i++)
                table_add(&t, COLOR_BOLD, "%s", headings[i]);
        for (size_t i = 0; i < json_object_array_length(balloons); i++)
                add_balloon_row(&t, json_object_array_get_idx(balloons, i));
        return table_print(&t, "");
}

static int show_one(Balloon *b) {
        _cleanup_json_ json_object *array = NULL;
        json_object *balloon;
        int r;

        r = balloon_call(b, "DescribeBalloon");
        if (r < 0)
                return machine_conclude(b->machine, r, b->problem);
        balloon = json_get(b->reply, "balloon", json_type_object);
        array = json_object_new_array();
        if (!array || json_append(array, json_object_get(balloon)) < 0)
                return machine_conclude(b->machine, -ENOMEM, NULL);
        if (b->options->json != JSON_OFF)
                return print_reply(b, array);
        return machine_exit_code(print_balloons(b->options, array));
}

static int show(Balloon *b) {
        json_object *balloons;
        int r;

        if (b->options->device)
                return show_one(b);
        r = balloon_call(b, "Describe");
        if (r < 0)
                return machine_conclude(b->machine, r, b->problem);
        balloons = json_get(b->reply, "balloons", json_type_array);
        if (!balloons || json_object_array_length(balloons) == 0)
                return machine_conclude(b->machine, -ENODEV, "the machine has no balloon");
        if (b->options->json != JSON_OFF)
                return print_reply(b, balloons);
        return machine_exit_code(print_balloons(b->options, balloons));
}

/* ---- its size ---- */

typedef enum TargetKind { TARGET_BYTES, TARGET_PERCENT, TARGET_MORE, TARGET_LESS } TargetKind;

typedef struct Target {
        TargetKind kind;
        uint64_t value; /* bytes, or percents of the machine's memory */
} Target;

static int parse_percent(const char *text, Target *ret) {
        _cleanup_free_ char *digits = strndup(text, strlen(text) - 1);
        int r;

        if (!digits)
                return -ENOMEM;
        *ret = (Target) { .kind = TARGET_PERCENT };
        r = parse_unsigned(digits, &ret->value);
        return r >= 0 && ret->value > 100 ? -ERANGE : r;
}

static int parse_target(const char *text, Target *ret) {
        if (*text && text[strlen(text) - 1] == '%')
                return parse_percent(text, ret);
        *ret = (Target) { .kind = *text == '+' ? TARGET_MORE : *text == '-' ? TARGET_LESS : TARGET_BYTES };
        if (streq(text, "max")) {
                *ret = (Target) { .kind = TARGET_PERCENT, .value = 100 };
                return 0;
        }
        return parse_size(text + (ret->kind != TARGET_BYTES), &ret->value);
}

/* What the target is relative to: the machine's memory, or the balloon's present target. */
static int get_base(Balloon *b, const Target *target, uint64_t *ret) {
        bool percent = target->kind == TARGET_PERCENT;
        _cleanup_json_ json_object *reply = NULL;
        int64_t base;
        int r;

        r = machine_call(b->options, b->client, percent ? "Describe" : "DescribeBalloon", percent ? NULL : b->parameters, &reply,
                &b->problem);
        if (r < 0)
                return r;
        base = json_get_integer(percent ? reply : json_get(reply, "balloon", json_type_object), percent ? "memory" : "target", -1);
        if (base < 0)
                return -EPROTO;
        *ret = (uint64_t) base;
        return 0;
}

static int resolve(Balloon *b, const Target *target, uint64_t *ret) {
        uint64_t base;
        int r;

        if (target->kind == TARGET_BYTES) {
                *ret = target->value;
                return 0;
        }
        r = get_base(b, target, &base);
        if (r < 0)
                return r;
        if (target->kind == TARGET_PERCENT)
                *ret = base / 100 * target->value + base % 100 * target->value / 100;
        else if (target->kind == TARGET_LESS)
                *ret = base - MIN(base, target->value);
        else if (__builtin_add_overflow(base, target->value, ret))
                return -ERANGE;
        return 0;
}

static int keep_reply(json_object *reply, void *userdata) {
        Balloon *b = userdata;

        b->reply = json_object_get(reply);
        return 1;
}

/* The guest takes the time that it takes, and whoever waits may stop to. The target stays. */
static int set_and_wait(Balloon *b) {
        uint64_t timeout = b->options->timeout_usec;
        int r;

        r = json_add_boolean(b->parameters, "wait", true);
        if (r < 0)
                return r;
        varlink_client_set_timeout(b->client, timeout);
        r = machine_stream(b->options, TAKE_PTR(b->client), "SetBalloonTarget", b->parameters, STREAM_INTERRUPT, keep_reply, b,
                &b->problem);
        if (r == -ETIMEDOUT && !b->problem)
                return set_message(&b->problem, r, "the guest has not got there within %" PRIu64 " s; the target stays",
                        timeout / USEC_PER_SEC);
        if (r == -EINTR) {
                sigset_t set;

                if (!b->options->quiet)
                        (void) fprintf(stderr, "\n%s: not waiting any longer; the target stays.\n", b->machine);
                /* So that a shell's loop ends, too. */
                (void) signal(SIGINT, SIG_DFL);
                (void) sigemptyset(&set);
                (void) sigaddset(&set, SIGINT);
                (void) raise(SIGINT);
                (void) sigprocmask(SIG_UNBLOCK, &set, NULL);
        }
        return r < 0 ? r : 0;
}

static int set_target(Balloon *b, const char *text) {
        _cleanup_free_ char *summary = NULL;
        json_object *balloon;
        Target target;
        uint64_t bytes = 0;
        int r;

        if (parse_target(text, &target) < 0) {
                complain("'%s' is no size of a balloon: bytes, a number with K, M, G or T, 0%% to 100%%, or max; with + or - in front "
                         "it is a difference.", text);
                return STATUS_USAGE;
        }
        r = resolve(b, &target, &bytes);
        if (r >= 0)
                r = bytes > INT64_MAX ? -ERANGE : json_add_integer(b->parameters, "target", (int64_t) bytes);
        if (r >= 0)
                r = option_given(b->options, OPTION_WAIT) ? set_and_wait(b) : balloon_call(b, "SetBalloonTarget");
        if (r < 0)
                return machine_conclude(b->machine, r, b->problem);
        balloon = json_get(b->reply, "balloon", json_type_object);
        if (b->options->json != JSON_OFF)
                return print_reply(b, balloon);
        summary = balloon_summary(balloon);
        if (!b->options->quiet)
                (void) printf("%s: %s: %s\n", b->machine, json_get_string(balloon, "device", "?"), summary ?: "?");
        return STATUS_OK;
}

/* ---- what the guest says ---- */

/* "Free memory" for "freeMemory". */
static char *label_of(const char *key) {
        char *label = calloc(2, strlen(key) + 1), *p = label;

        if (!label)
                return NULL;
        *p++ = (char) toupper((unsigned char) *key);
        while (*key && *++key) {
                if (isupper((unsigned char) *key))
                        *p++ = ' ';
                *p++ = (char) tolower((unsigned char) *key);
        }
        return label;
}

/* The others are counts. */
static bool is_amount(const char *key) {
        static const char *const amounts[] = { "swapIn", "swapOut", "freeMemory", "totalMemory", "availableMemory", "diskCaches",
                "sharedMemory", "unevictableMemory" };

        for (size_t i = 0; i < ELEMENTSOF(amounts); i++)
                if (streq(amounts[i], key))
                        return true;
        return false;
}

static void add_statistic(Table *t, const char *key, json_object *value) {
        _cleanup_free_ char *label = label_of(key), *amount = NULL;
        int64_t number = json_object_get_int64(value);

        if (!json_object_is_type(value, json_type_int) || streq(key, "age"))
                return;
        table_add(t, COLOR_NONE, "%s:", label ?: key);
        if (is_amount(key) && number >= 0 && (amount = format_bytes((uint64_t) number)))
                table_add(t, COLOR_NONE, "%s", amount);
        else
                table_add(t, COLOR_NONE, "%" PRId64, number);
}

static int print_statistics(const Balloon *b) {
        json_object *statistics = json_get(b->reply, "statistics", json_type_object),
                    *balloon = json_get(b->reply, "balloon", json_type_object), *other = json_get(statistics, "other", json_type_object);
        _cleanup_free_ char *summary = balloon_summary(balloon);
        _cleanup_(table_done) Table t = { .n_columns = 2 };
        int64_t age = json_get_integer(statistics, "age", 0);

        if (statistics) {
                json_object_object_foreach(statistics, key, value) {
                        add_statistic(&t, key, value);
                }
        }
        if (other) {
                json_object_object_foreach(other, tag, value) {
                        table_add(&t, COLOR_NONE, "Tag %s:", tag);
                        table_add(&t, COLOR_NONE, "%" PRId64, json_object_get_int64(value));
                }
        }
        table_add(&t, COLOR_NONE, "Balloon:");
        table_add(&t, COLOR_NONE, "%s", summary ?: "?");
        table_add(&t, COLOR_NONE, "Age:");
        table_add(&t, COLOR_NONE, "%" PRId64 " ms", age / 1000);
        return table_print(&t, "");
}

static int show_statistics(Balloon *b) {
        int r;

        r = balloon_call(b, "GetBalloonStatistics");
        if (r < 0)
                return machine_conclude(b->machine, r, b->problem);
        if (b->options->json != JSON_OFF)
                return print_reply(b, b->reply);
        return machine_exit_code(print_statistics(b));
}

static int print_working_set(const Balloon *b) {
        static const char *const headings[] = { "USED WITHIN", "FILES", "ANONYMOUS" };
        json_object *buckets = json_get(b->reply, "workingSet", json_type_array);
        _cleanup_(table_done) Table t = { .n_columns = ELEMENTSOF(headings) };
        size_t n = buckets ? json_object_array_length(buckets) : 0;

        for (size_t i = 0; !b->options->quiet && i < ELEMENTSOF(headings); i++)
                table_add(&t, COLOR_BOLD, "%s", headings[i]);
        for (size_t i = 0; i < n; i++) {
                json_object *bucket = json_object_array_get_idx(buckets, i);
                _cleanup_free_ char *files = format_bytes((uint64_t) json_get_integer(bucket, "fileBytes", 0)),
                                    *anonymous = format_bytes((uint64_t) json_get_integer(bucket, "anonymousBytes", 0));
                int64_t age = json_get_integer(bucket, "age", -1);

                if (age < 0)
                        table_add(&t, COLOR_NONE, "longer ago");
                else
                        table_add(&t, COLOR_NONE, "%" PRId64 ".%03" PRId64 " s", age / 1000, age % 1000);
                table_add(&t, COLOR_NONE, "%s", files ?: "?");
                table_add(&t, COLOR_NONE, "%s", anonymous ?: "?");
        }
        return table_print(&t, "");
}

static int show_working_set(Balloon *b) {
        int r;

        r = balloon_call(b, "GetWorkingSet");
        if (r < 0)
                return machine_conclude(b->machine, r, b->problem);
        if (b->options->json != JSON_OFF)
                return print_reply(b, b->reply);
        return machine_exit_code(print_working_set(b));
}

/* "1s,10s,1min": ascending, in milliseconds. */
static int parse_intervals(const char *text, json_object **ret) {
        _cleanup_json_ json_object *array = json_object_new_array();
        _cleanup_free_ char *copy = strdup(text);
        char *rest = copy, *word;
        uint64_t last = 0;
        int r;

        if (!array || !copy)
                return -ENOMEM;
        while ((word = strsep(&rest, ","))) {
                uint64_t usec;

                if (parse_time(word, &usec) < 0 || usec % USEC_PER_MSEC != 0 || usec <= last || usec / USEC_PER_MSEC > INT32_MAX)
                        return -EINVAL;
                last = usec;
                r = json_append(array, json_object_new_int64((int64_t) (usec / USEC_PER_MSEC)));
                if (r < 0)
                        return r;
        }
        if (json_object_array_length(array) > INTERVALS_MAX)
                return -EINVAL;
        *ret = TAKE_PTR(array);
        return 0;
}

static int configure_working_set(Balloon *b) {
        const Options *o = b->options;
        json_object *intervals = NULL;
        int r;

        r = parse_intervals(o->intervals, &intervals);
        if (r == -EINVAL) {
                complain("--intervals: '%s' is no list of 1 to %u times, each longer than the one before, in whole milliseconds.",
                        o->intervals, INTERVALS_MAX);
                return STATUS_USAGE;
        }
        if (r >= 0)
                r = json_add(b->parameters, "intervals", intervals);
        if (r >= 0)
                r = json_add_integer(b->parameters, "refreshThreshold", (int64_t) (o->refresh_usec / USEC_PER_MSEC));
        if (r >= 0)
                r = json_add_integer(b->parameters, "reportThreshold", (int64_t) (o->report_usec / USEC_PER_MSEC));
        if (r >= 0)
                r = balloon_call(b, "ConfigureWorkingSet");
        return machine_conclude(b->machine, r, b->problem);
}

static int hint(Balloon *b) {
        _cleanup_free_ char *freed = NULL;
        int r;

        r = balloon_call(b, "HintFreePages");
        if (r < 0)
                return machine_conclude(b->machine, r, b->problem);
        if (b->options->json != JSON_OFF)
                return print_reply(b, b->reply);
        freed = format_bytes((uint64_t) json_get_integer(b->reply, "freed", 0));
        if (!b->options->quiet)
                (void) printf("%s: took %s that the guest did not use.\n", b->machine, freed ?: "?");
        return STATUS_OK;
}

/* ---- the commands ---- */

/* Which of the things that it can do `balloon` shall do; each excludes the others. */
static int check_combination(const Options *o, size_t n) {
        bool configure = option_given(o, OPTION_INTERVALS), set = n > 1;
        unsigned actions = !!option_given(o, OPTION_STATS) + (option_given(o, OPTION_WORKING_SET) || configure) +
                !!option_given(o, OPTION_HINT) + set;

        if (actions > 1)
                complain("A new size, --stats, --working-set and --hint are for one command each.");
        else if (!set && option_given(o, OPTION_WAIT | OPTION_TIMEOUT))
                complain("--wait and --timeout are for a new size.");
        else if (option_given(o, OPTION_TIMEOUT) && !option_given(o, OPTION_WAIT))
                complain("--timeout is for --wait.");
        else if (!configure && option_given(o, OPTION_REFRESH | OPTION_REPORT))
                complain("--refresh-threshold and --report-threshold are for --intervals.");
        else
                return 0;
        return -EINVAL;
}

static int run(const Options *o, char **arguments, size_t n, unsigned implied) {
        _cleanup_(balloon_done) Balloon b = { .options = o, .machine = arguments[0] };
        unsigned given = o->given | implied;
        int r;

        if (check_combination(o, n) < 0)
                return STATUS_USAGE;
        r = balloon_begin(&b);
        if (r < 0)
                return machine_conclude(b.machine, r, b.problem);
        if (n > 1)
                return set_target(&b, arguments[1]);
        if (given & OPTION_INTERVALS)
                return configure_working_set(&b);
        if (given & OPTION_WORKING_SET)
                return show_working_set(&b);
        if (given & OPTION_STATS)
                return show_statistics(&b);
        if (given & OPTION_HINT)
                return hint(&b);
        return show(&b);
}

int command_balloon(const Options *o, char **arguments, size_t n) {
        return run(o, arguments, n, 0);
}

int command_balloon_stats(const Options *o, char **arguments, size_t n) {
        return run(o, arguments, n, OPTION_STATS);
}

int command_balloon_ws(const Options *o, char **arguments, size_t n) {
        return run(o, arguments, n, OPTION_WORKING_SET);
}
