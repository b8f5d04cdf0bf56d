/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* The addresses that a plugin answers, and what it wants to know with an access beforehand. Looked at by all vCPUs at every exit, changed
 * by the event loop. */

#include <pthread.h>

#include "util.h"

#define PLUGIN_RANGES_MAX 4096
#define PLUGIN_HINTS_MAX 32

typedef struct PluginRange {
        uint64_t start, last; /* both within */
        bool async_write;
} PluginRange;

typedef struct PluginRangeList {
        PluginRange *ranges; /* by start; they do not overlap */
        size_t n;
} PluginRangeList;

typedef struct PluginHintDetail {
        bool match[4];     /* rax, rbx, rcx, rdx */
        uint64_t value[4];
        bool send_sregs, send_debugregs;
} PluginHintDetail;

typedef struct PluginHint {
        uint64_t address; /* 0: there is none */
        bool is_pio, on_write;
        PluginHintDetail details[PLUGIN_HINTS_MAX];
        size_t n_details;
} PluginHint;

typedef struct PluginRanges {
        pthread_rwlock_t lock;
        PluginRangeList pio, mmio;
        PluginHint hint;
} PluginRanges;

int plugin_ranges_init(PluginRanges *r);
void plugin_ranges_done(PluginRanges *r);
/* -EINVAL where it is empty or wraps, -EPERM where it overlaps another, -ENOSPC where there are too many. */
int plugin_ranges_reserve(PluginRanges *r, bool is_pio, uint64_t start, uint64_t length, bool async_write);
/* -ENOENT where none begins there. */
int plugin_ranges_release(PluginRanges *r, bool is_pio, uint64_t start);
void plugin_ranges_set_hint(PluginRanges *r, const PluginHint *hint);

typedef enum PluginAnswer {
        PLUGIN_ANSWER_NONE,  /* nobody is there */
        PLUGIN_ANSWER_WAIT,  /* the vCPU stops */
        PLUGIN_ANSWER_HINT,  /* … and its registers are of interest */
        PLUGIN_ANSWER_TELL,  /* the plugin is told, and the vCPU goes on */
} PluginAnswer;
PluginAnswer plugin_ranges_find(PluginRanges *r, bool is_pio, uint64_t address, bool is_write);
/* By the first detail of the hint that these registers match. */
void plugin_ranges_match_hint(PluginRanges *r, const uint64_t registers[static 4], bool *ret_sregs, bool *ret_debugregs);
