/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "plugin-ranges.h"

int plugin_ranges_init(PluginRanges *r) {
        *r = (PluginRanges) {};
        return -pthread_rwlock_init(&r->lock, NULL);
}

void plugin_ranges_done(PluginRanges *r) {
        free(r->pio.ranges);
        free(r->mmio.ranges);
        (void) pthread_rwlock_destroy(&r->lock);
}

/* The number of ranges that begin at or before the address. */
static size_t count_before(const PluginRangeList *list, uint64_t address) {
        size_t low = 0, high = list->n;

        while (low < high) {
                size_t middle = low + (high - low) / 2;

                if (list->ranges[middle].start <= address)
                        low = middle + 1;
                else
                        high = middle;
        }
        return low;
}

static int insert(PluginRangeList *list, const PluginRange *range) {
        size_t at = count_before(list, range->start);
        PluginRange *grown;

        if ((at > 0 && list->ranges[at - 1].last >= range->start) || (at < list->n && list->ranges[at].start <= range->last))
                return -EPERM;
        if (list->n >= PLUGIN_RANGES_MAX)
                return -ENOSPC;
        grown = reallocarray(list->ranges, list->n + 1, sizeof(PluginRange));
        if (!grown)
                return -ENOMEM;
        list->ranges = grown;
        memmove(&grown[at + 1], &grown[at], (list->n - at) * sizeof(PluginRange));
        grown[at] = *range;
        list->n++;
        return 0;
}

int plugin_ranges_reserve(PluginRanges *r, bool is_pio, uint64_t start, uint64_t length, bool async_write) {
        PluginRange range = { .start = start, .last = start + length - 1, .async_write = async_write };
        int k;

        if (length == 0 || range.last < start)
                return -EINVAL;
        (void) pthread_rwlock_wrlock(&r->lock);
        k = insert(is_pio ? &r->pio : &r->mmio, &range);
        (void) pthread_rwlock_unlock(&r->lock);
        return k;
}

int plugin_ranges_release(PluginRanges *r, bool is_pio, uint64_t start) {
        PluginRangeList *list = is_pio ? &r->pio : &r->mmio;
        int k = -ENOENT;
        size_t at;

        (void) pthread_rwlock_wrlock(&r->lock);
        at = count_before(list, start);
        if (at > 0 && list->ranges[at - 1].start == start) {
                memmove(&list->ranges[at - 1], &list->ranges[at], (list->n - at) * sizeof(PluginRange));
                list->n--;
                k = 0;
        }
        (void) pthread_rwlock_unlock(&r->lock);
        return k;
}

void plugin_ranges_set_hint(PluginRanges *r, const PluginHint *hint) {
        (void) pthread_rwlock_wrlock(&r->lock);
        r->hint = *hint;
        (void) pthread_rwlock_unlock(&r->lock);
}

/* With the lock held. */
static PluginAnswer find(const PluginRanges *r, bool is_pio, uint64_t address, bool is_write) {
        const PluginRangeList *list = is_pio ? &r->pio : &r->mmio;
        size_t at = count_before(list, address);
        const PluginRange *range = at > 0 ? &list->ranges[at - 1] : NULL;

        if (!range || range->last < address)
                return PLUGIN_ANSWER_NONE;
        if (range->async_write)
                return is_write ? PLUGIN_ANSWER_TELL : PLUGIN_ANSWER_NONE;
        return r->hint.address != 0 && r->hint.address == address && r->hint.is_pio == is_pio && r->hint.on_write == is_write ?
                PLUGIN_ANSWER_HINT : PLUGIN_ANSWER_WAIT;
}

PluginAnswer plugin_ranges_find(PluginRanges *r, bool is_pio, uint64_t address, bool is_write) {
        PluginAnswer answer;

        (void) pthread_rwlock_rdlock(&r->lock);
        answer = find(r, is_pio, address, is_write);
        (void) pthread_rwlock_unlock(&r->lock);
        return answer;
}

static bool matches(const PluginHintDetail *detail, const uint64_t registers[static 4]) {
        for (size_t i = 0; i < 4; i++)
                if (detail->match[i] && detail->value[i] != registers[i])
                        return false;
        return true;
}

void plugin_ranges_match_hint(PluginRanges *r, const uint64_t registers[static 4], bool *ret_sregs, bool *ret_debugregs) {
        *ret_sregs = *ret_debugregs = false;
        (void) pthread_rwlock_rdlock(&r->lock);
        for (size_t i = 0; i < r->hint.n_details; i++)
                if (matches(&r->hint.details[i], registers)) {
                        *ret_sregs = r->hint.details[i].send_sregs;
                        *ret_debugregs = r->hint.details[i].send_debugregs;
                        break;
                }
        (void) pthread_rwlock_unlock(&r->lock);
}
