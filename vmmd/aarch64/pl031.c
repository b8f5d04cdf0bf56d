/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <time.h>

#include "pl031.h"
#include "primecell.h"

#define PART 0x031

enum {
        REG_DATA = 0x00,
        REG_MATCH = 0x04,
        REG_LOAD = 0x08,
        REG_CONTROL = 0x0C,
        REG_MASK = 0x10,
        REG_RAW = 0x14,
        REG_MASKED = 0x18,
        REG_CLEAR = 0x1C,
};

static uint64_t real_now(void *userdata) {
        struct timespec ts;

        (void) clock_gettime(CLOCK_REALTIME, &ts);
        return (uint64_t) ts.tv_sec;
}

static uint32_t guest_now(const Pl031 *p) {
        return (uint32_t) p->now(p->userdata) + p->offset;
}

static void update(Pl031 *p) {
        bool level = p->raised && p->enabled;

        if (level != p->level)
                p->set_irq(level, p->userdata);
        p->level = level;
}

/* The comparison is made as the counter moves (2.2.3), so the next second is the earliest. A match in the past comes after a whole turn: never. */
static void arm_match(Pl031 *p) {
        uint32_t seconds = p->match - guest_now(p);

        p->arm(p->enabled && !p->raised && seconds != 0 && seconds <= INT32_MAX ? p->now(p->userdata) + seconds : 0, p->userdata);
}

void pl031_init(Pl031 *p, void (*set_irq)(bool level, void *userdata), void (*arm)(uint64_t second, void *userdata), void *userdata) {
        *p = (Pl031) { .now = real_now, .set_irq = set_irq, .arm = arm, .userdata = userdata };
}

void pl031_reset(Pl031 *p) {
        p->match = 0;
        p->raised = p->enabled = false;
        update(p);
        p->arm(0, p->userdata);
}

void pl031_expired(Pl031 *p) {
        /* The host's clock may have been set meanwhile. */
        if ((int32_t) (guest_now(p) - p->match) < 0) {
                arm_match(p);
                return;
        }
        p->raised = true;
        update(p);
}

static uint32_t read_register(const Pl031 *p, uint64_t offset) {
        switch (offset) {
        case REG_DATA:
        case REG_LOAD:
                return guest_now(p);
        case REG_MATCH:
                return p->match;
        case REG_CONTROL:
                return 1; /* it runs, always */
        case REG_MASK:
                return p->enabled;
        case REG_RAW:
                return p->raised;
        case REG_MASKED:
                return p->raised && p->enabled;
        default:
                return offset >= PRIMECELL_ID ? primecell_id(PART, offset) : 0;
        }
}

static void write_register(Pl031 *p, uint64_t offset, uint32_t v) {
        switch (offset) {
        case REG_MATCH:
                p->match = v;
                break;
        case REG_LOAD:
                p->offset = v - (uint32_t) p->now(p->userdata);
                break;
        case REG_MASK:
                p->enabled = v & 1;
                break;
        case REG_CLEAR:
                p->raised = p->raised && !(v & 1);
                break;
        default:
                return;
        }
        update(p);
        arm_match(p);
}

void pl031_access(Pl031 *p, uint64_t offset, void *data, size_t size, bool is_write) {
        if (!primecell_is_register(offset, data, size, 4, is_write))
                return;
        if (is_write)
                write_register(p, offset, load_le32(data));
        else
                store_le32(data, read_register(p, offset));
}

int pl031_save(const Pl031 *p, StateWriter *w) {
        state_begin(w, "arm64-pl031", 0, 1);
        state_put_u32(w, p->offset);
        state_put_u32(w, p->match);
        state_put_u8(w, p->raised);
        state_put_u8(w, p->enabled);
        return state_end(w);
}

int pl031_load(Pl031 *p, StateReader *r, char **ret_message) {
        Pl031 n = *p;
        int k;

        k = state_enter(r, "arm64-pl031", 0, 1);
        if (k < 0)
                return set_message(ret_message, k, "No usable state of the clock.");
        n.offset = state_get_u32(r);
        n.match = state_get_u32(r);
        n.raised = state_get_u8(r);
        n.enabled = state_get_u8(r);
        n.level = n.raised && n.enabled;
        k = state_leave(r, ret_message);
        if (k < 0)
                return k;
        *p = n;
        /* The interrupt controller's state may come from elsewhere: its line is set whatever was thought of it. */
        p->set_irq(p->level, p->userdata);
        arm_match(p);
        return 0;
}
