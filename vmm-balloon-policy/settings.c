/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>

#include "parse.h"
#include "settings.h"

#define VARIABLE_PREFIX "VMM_BALLOON_"

typedef enum SettingKind {
        SETTING_AMOUNT, /* a size, or a percentage of the machine's memory */
        SETTING_PERCENT,
        SETTING_SIZE,
        SETTING_NUMBER,
        SETTING_TIME,
        SETTING_WORD, /* one of two */
        SETTING_TEXT,
} SettingKind;

typedef struct Setting {
        const char *name;
        SettingKind kind;
        size_t offset;
        uint64_t minimum, maximum; /* of numbers; of an amount, its percentage's */
        const char *words[2];
        const char *description;
} Setting;

#define FIELD(member) offsetof(Settings, member)
#define TIME_MAX (UINT64_C(24) * 3600 * USEC_PER_SEC)

static const Setting settings[] = {
        { "keep-available", SETTING_AMOUNT, FIELD(policy.keep), 0, 100, {}, "the guest always keeps so much available (15%)" },
        { "maximum", SETTING_AMOUNT, FIELD(policy.maximum), 0, 100, {}, "the balloon gets no larger (75%)" },
        { "hysteresis", SETTING_AMOUNT, FIELD(policy.hysteresis), 0, 100, {}, "beyond what it keeps, nothing is taken of so much (3%)" },
        { "step", SETTING_AMOUNT, FIELD(policy.step), 1, 100, {}, "most that is taken or given back at once (10%)" },
        { "share", SETTING_PERCENT, FIELD(policy.share), 1, 100, {}, "part of the idle memory that is taken at once (33%)" },
        { "settle", SETTING_TIME, FIELD(policy.settle_usec), 100 * USEC_PER_MSEC, TIME_MAX, {}, "least time between two changes (5s)" },
        { "calm", SETTING_TIME, FIELD(policy.calm_usec), USEC_PER_SEC, TIME_MAX, {},
                "without pressure for so long, the host gives memory back (1min)" },
        { "oom-backoff", SETTING_TIME, FIELD(policy.backoff_usec), USEC_PER_SEC, TIME_MAX, {},
                "nothing is taken for so long from a guest that ran out of memory (1min)" },
        { "swap-in-rate", SETTING_SIZE, FIELD(policy.swap_in_rate), 0, GIB(1024), {},
                "a guest that swaps in so much a second is short; 0: never (1M)" },
        { "major-fault-rate", SETTING_NUMBER, FIELD(policy.major_fault_rate), 0, UINT32_MAX, {},
                "a guest with so many major faults a second is short; 0: never (1000)" },
        { "statistics-interval", SETTING_TIME, FIELD(statistics_interval_usec), 100 * USEC_PER_MSEC, TIME_MAX, {},
                "how often the guest is asked (5s)" },
        { "pressure", SETTING_TEXT, FIELD(pressure), 0, 0, {}, "file with the host's memory pressure (/proc/pressure/memory)" },
        { "pressure-stall", SETTING_WORD, FIELD(pressure_stall), 0, 0, { "some", "full" }, "who stalls: some or full (some)" },
        { "pressure-threshold", SETTING_TIME, FIELD(pressure_threshold_usec), 1, 10 * USEC_PER_SEC, {},
                "pressure is a stall of so long (150ms)" },
        { "pressure-window", SETTING_TIME, FIELD(pressure_window_usec), 500 * USEC_PER_MSEC, 10 * USEC_PER_SEC, {},
                "within this time (2s)" },
        { "device", SETTING_TEXT, FIELD(device), 0, 0, {}, "the balloon, by name (the machine's first)" },
        { "at-exit", SETTING_WORD, FIELD(at_exit), 0, 0, { "restore", "keep" },
                "restore the target that was found, or keep the last one (restore)" },
        { "socket", SETTING_TEXT, FIELD(socket), 0, 0, {}, "the machine's control socket (/run/vmm/NAME/control)" },
};

void settings_init(Settings *s) {
        *s = (Settings) {
                .policy = {
                        .keep = { 15, true },
                        .maximum = { 75, true },
                        .hysteresis = { 3, true },
                        .step = { 10, true },
                        .share = 33,
                        .settle_usec = 5 * USEC_PER_SEC,
                        .calm_usec = 60 * USEC_PER_SEC,
                        .backoff_usec = 60 * USEC_PER_SEC,
                        .swap_in_rate = MIB(1),
                        .major_fault_rate = 1000,
                },
                .at_exit = "restore",
                .pressure_stall = "some",
                .pressure_threshold_usec = 150 * USEC_PER_MSEC,
                .pressure_window_usec = 2 * USEC_PER_SEC,
                .statistics_interval_usec = 5 * USEC_PER_SEC,
        };
}

static bool take_percent(const Setting *setting, const char *value, uint64_t *ret) {
        size_t length = strlen(value);
        char digits[4];
        uint64_t v;

        if (length < 2 || length > sizeof(digits) || value[length - 1] != '%')
                return false;
        memcpy(digits, value, length - 1);
        digits[length - 1] = 0;
        if (parse_unsigned(digits, &v) < 0 || v < setting->minimum || v > setting->maximum)
                return false;
        *ret = v;
        return true;
}

static bool take_amount(const Setting *setting, const char *value, PolicyAmount *ret) {
        PolicyAmount a = { .percent = true };

        if (take_percent(setting, value, &a.value)) {
                *ret = a;
                return true;
        }
        if (parse_size(value, &a.value) < 0 || (setting->minimum > 0 && a.value == 0))
                return false;
        *ret = (PolicyAmount) { .value = a.value };
        return true;
}

static bool take_number(const Setting *setting, const char *value, uint64_t *ret) {
        uint64_t v;
        int r;

        r = setting->kind == SETTING_TIME ? parse_time(value, &v) : setting->kind == SETTING_SIZE ? parse_size(value, &v) :
                parse_unsigned(value, &v);
        if (r < 0 || v < setting->minimum || v > setting->maximum)
                return false;
        *ret = v;
        return true;
}

static bool take_word(const Setting *setting, const char *value, const char **field) {
        for (size_t i = 0; i < ELEMENTSOF(setting->words); i++)
                if (streq(setting->words[i], value)) {
                        *field = setting->words[i];
                        return true;
                }
        return false;
}

static bool take(Settings *s, const Setting *setting, const char *value) {
        void *field = (char *) s + setting->offset;

        switch (setting->kind) {
        case SETTING_AMOUNT:
                return take_amount(setting, value, field);
        case SETTING_PERCENT:
                return take_percent(setting, value, field);
        case SETTING_SIZE:
        case SETTING_NUMBER:
        case SETTING_TIME:
                return take_number(setting, value, field);
        case SETTING_WORD:
                return take_word(setting, value, field);
        case SETTING_TEXT:
                if (*value == 0)
                        return false;
                *(const char **) field = value;
                return true;
        }
        return false;
}

static void time_to_text(uint64_t usec, char ret[32]) {
        if (usec % USEC_PER_SEC == 0)
                (void) snprintf(ret, 32, "%" PRIu64 "s", usec / USEC_PER_SEC);
        else if (usec % USEC_PER_MSEC == 0)
                (void) snprintf(ret, 32, "%" PRIu64 "ms", usec / USEC_PER_MSEC);
        else
                (void) snprintf(ret, 32, "%" PRIu64 "us", usec);
}

/* `where` is "--calm" or "$VMM_BALLOON_CALM". */
static int refuse(const Setting *setting, const char *where, const char *value, char **ret_message) {
        char least[32], most[32];

        switch (setting->kind) {
        case SETTING_AMOUNT:
                return set_message(ret_message, -EINVAL, "%s=%s: expected a size, in bytes or with the suffix K, M, G or T, or %" PRIu64 "%% to %"
                        PRIu64 "%% of the machine's memory", where, value, setting->minimum, setting->maximum);
        case SETTING_PERCENT:
                return set_message(ret_message, -EINVAL, "%s=%s: expected %" PRIu64 "%% to %" PRIu64 "%%", where, value, setting->minimum,
                        setting->maximum);
        case SETTING_SIZE:
                size_to_text(setting->maximum, most);
                return set_message(ret_message, -EINVAL, "%s=%s: expected a size of at most %s, in bytes or with the suffix K, M, G or T", where,
                        value, most);
        case SETTING_NUMBER:
                return set_message(ret_message, -EINVAL, "%s=%s: expected an integer from %" PRIu64 " to %" PRIu64, where, value,
                        setting->minimum, setting->maximum);
        case SETTING_TIME:
                time_to_text(setting->minimum, least);
                time_to_text(setting->maximum, most);
                return set_message(ret_message, -EINVAL, "%s=%s: expected a time from %s to %s, as in \"90\", \"1min 30s\" or \"500ms\"", where,
                        value, least, most);
        case SETTING_WORD:
                return set_message(ret_message, -EINVAL, "%s=%s: expected \"%s\" or \"%s\"", where, value, setting->words[0],
                        setting->words[1]);
        case SETTING_TEXT:
                return set_message(ret_message, -EINVAL, "%s=: expected a text", where);
        }
        return -EINVAL;
}

int settings_add(Settings *s, const char *argument, char **ret_message) {
        const char *name = startswith(argument, "--");

        if (!name)
                return -ENOENT;
        for (size_t i = 0; i < ELEMENTSOF(settings); i++) {
                const char *rest = startswith(name, settings[i].name);
                _cleanup_free_ char *where = NULL;

                if (!rest || (*rest != '=' && *rest != 0))
                        continue;
                if (*rest == '=' && take(s, &settings[i], rest + 1))
                        return 0;
                if (asprintf(&where, "--%s", settings[i].name) < 0) {
                        where = NULL;
                        return -ENOMEM;
                }
                return refuse(&settings[i], where, *rest == '=' ? rest + 1 : "", ret_message);
        }
        return -ENOENT;
}

/* KEEP_AVAILABLE is keep-available. */
static bool is_variable_of(const char *name, size_t length, const Setting *setting) {
        if (strlen(setting->name) != length)
                return false;
        for (size_t i = 0; i < length; i++)
                if (name[i] != (setting->name[i] == '-' ? '_' : toupper((unsigned char) setting->name[i])))
                        return false;
        return true;
}

static int take_variable(Settings *s, const char *assignment, char **ret_message) {
        const char *name = assignment + strlen(VARIABLE_PREFIX), *value = strchr(name, '=');

        if (!value)
                return 0;
        for (size_t i = 0; i < ELEMENTSOF(settings); i++) {
                _cleanup_free_ char *where = NULL;

                if (!is_variable_of(name, (size_t) (value - name), &settings[i]))
                        continue;
                /* An empty variable is how a configuration file takes back what an earlier one said; the latter is gone by then. */
                if (value[1] == 0 || take(s, &settings[i], value + 1))
                        return 0;
                if (asprintf(&where, "$%.*s", (int) (value - assignment), assignment) < 0) {
                        where = NULL;
                        return -ENOMEM;
                }
                return refuse(&settings[i], where, value + 1, ret_message);
        }
        return set_message(ret_message, -EINVAL, "$%s: there is no such setting; --help lists them", assignment);
}

int settings_from_environment(Settings *s, char **environment, char **ret_message) {
        int r;

        for (char **e = environment; *e; e++) {
                if (!startswith(*e, VARIABLE_PREFIX))
                        continue;
                r = take_variable(s, *e, ret_message);
                if (r < 0)
                        return r;
        }
        return 0;
}

int settings_finish(Settings *s, char **ret_message) {
        const PolicySettings *p = &s->policy;

        if (s->pressure_threshold_usec > s->pressure_window_usec)
                return set_message(ret_message, -EINVAL, "The pressure threshold is %" PRIu64 " us: expected at most the pressure window, %" PRIu64 " us",
                        s->pressure_threshold_usec, s->pressure_window_usec);
        if (p->keep.percent && p->hysteresis.percent && p->keep.value + p->hysteresis.value >= 100)
                return set_message(ret_message, -EINVAL, "To keep %" PRIu64 "%% available, and %" PRIu64 "%% hysteresis, leaves nothing that could be "
                        "taken: expected less than 100%% together", p->keep.value, p->hysteresis.value);
        /* The kernel reports pressure once in a window. */
        s->policy.pressure_usec = 2 * s->pressure_window_usec;
        s->policy.stale_usec = 3 * s->statistics_interval_usec;
        return 0;
}

void settings_print_help(void) {
        for (size_t i = 0; i < ELEMENTSOF(settings); i++) {
                static const char *const values[] = {
                        [SETTING_AMOUNT] = "SIZE|PERCENT", [SETTING_PERCENT] = "PERCENT", [SETTING_SIZE] = "SIZE", [SETTING_NUMBER] = "N",
                        [SETTING_TIME] = "TIME", [SETTING_WORD] = "WORD", [SETTING_TEXT] = "TEXT",
                };
                int n = printf("     --%s=%s", settings[i].name, values[settings[i].kind]);
                printf("%*s%s\n", MAX(40 - n, 1), "", settings[i].description);
        }
}
