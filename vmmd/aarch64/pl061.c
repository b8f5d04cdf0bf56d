/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "pl061.h"
#include "primecell.h"

#define PART 0x061

/* Bits 9 to 2 of the address of the data register are a mask of pins (3.3.1). */
#define REG_DATA_END 0x400U

enum {
        REG_DIRECTION = 0x400,
        REG_SENSE = 0x404,
        REG_BOTH_EDGES = 0x408,
        REG_EVENT = 0x40C,
        REG_MASK = 0x410,
        REG_RAW = 0x414,
        REG_MASKED = 0x418,
        REG_CLEAR = 0x41C,
        REG_ALTERNATE = 0x420,
};

static uint8_t pins(const Pl061 *p) {
        return (uint8_t) ((p->output & p->direction) | (p->input & ~p->direction));
}

/* Where a pin is sensed by level, what is raised is what it is (3.3.7). */
static uint8_t raw(const Pl061 *p) {
        uint8_t levels = (uint8_t) (~(pins(p) ^ p->event) & ~p->direction);

        return (uint8_t) ((p->raw & ~p->sense) | (levels & p->sense));
}

static void update(Pl061 *p) {
        bool level = raw(p) & p->mask;

        if (level != p->level)
                p->set_irq(level, p->userdata);
        p->level = level;
}

void pl061_init(Pl061 *p, void (*set_irq)(bool level, void *userdata), void *userdata) {
        *p = (Pl061) { .set_irq = set_irq, .userdata = userdata };
}

void pl061_reset(Pl061 *p) {
        *p = (Pl061) { .set_irq = p->set_irq, .userdata = p->userdata, .level = p->level };
        update(p);
}

void pl061_set_pin(Pl061 *p, unsigned pin, bool high) {
        uint8_t bit = (uint8_t) (1u << pin), before = p->input;

        assert(pin < PL061_PINS);
        p->input = (uint8_t) (high ? p->input | bit : p->input & ~bit);
        if (p->input != before && !(p->direction & bit) && (p->both_edges & bit || !(p->event & bit) == !high))
                p->raw |= bit;
        p->unseen = (uint8_t) (high ? p->unseen | (bit & ~before) : p->unseen & ~bit);
        update(p);
}

bool pl061_is_unseen(const Pl061 *p) {
        return p->unseen != 0;
}

static uint8_t read_register(const Pl061 *p, uint64_t offset) {
        if (offset < REG_DATA_END)
                return pins(p) & (uint8_t) (offset >> 2);
        switch (offset) {
        case REG_DIRECTION:
                return p->direction;
        case REG_SENSE:
                return p->sense;
        case REG_BOTH_EDGES:
                return p->both_edges;
        case REG_EVENT:
                return p->event;
        case REG_MASK:
                return p->mask;
        case REG_RAW:
                return raw(p);
        case REG_MASKED:
                return raw(p) & p->mask;
        case REG_ALTERNATE:
                return p->alternate;
        default:
                return offset >= PRIMECELL_ID ? (uint8_t) primecell_id(PART, offset) : 0;
        }
}

static void write_register(Pl061 *p, uint64_t offset, uint8_t v) {
        uint8_t selected = (uint8_t) (offset >> 2);

        if (offset < REG_DATA_END) {
                p->output = (uint8_t) ((p->output & ~selected) | (v & selected));
                update(p);
                return;
        }
        switch (offset) {
        case REG_DIRECTION:
                p->direction = v;
                break;
        case REG_SENSE:
                p->sense = v;
                break;
        case REG_BOTH_EDGES:
                p->both_edges = v;
                break;
        case REG_EVENT:
                p->event = v;
                break;
        case REG_MASK:
                p->mask = v;
                break;
        case REG_CLEAR:
                p->raw &= (uint8_t) ~v;
                break;
        case REG_ALTERNATE:
                p->alternate = v;
                break;
        default:
                return;
        }
        update(p);
}

void pl061_access(Pl061 *p, uint64_t offset, void *data, size_t size, bool is_write) {
        uint8_t *bytes = data;

        if (!primecell_is_register(offset, data, size, 1, is_write))
                return;
        if (is_write)
                write_register(p, offset, bytes[0]);
        else {
                memset(bytes, 0, size);
                bytes[0] = read_register(p, offset);
                if (offset < REG_DATA_END)
                        p->unseen &= (uint8_t) ~(offset >> 2);
        }
}

int pl061_save(const Pl061 *p, StateWriter *w) {
        state_begin(w, "arm64-pl061", 0, 1);
        state_put_u8(w, p->input);
        state_put_u8(w, p->output);
        state_put_u8(w, p->direction);
        state_put_u8(w, p->sense);
        state_put_u8(w, p->both_edges);
        state_put_u8(w, p->event);
        state_put_u8(w, p->mask);
        state_put_u8(w, p->raw);
        state_put_u8(w, p->alternate);
        return state_end(w);
}

int pl061_load(Pl061 *p, StateReader *r, char **ret_message) {
        Pl061 n = { .set_irq = p->set_irq, .userdata = p->userdata };
        int k;

        k = state_enter(r, "arm64-pl061", 0, 1);
        if (k < 0)
                return set_message(ret_message, k, "No usable state of the keys.");
        n.input = state_get_u8(r);
        n.output = state_get_u8(r);
        n.direction = state_get_u8(r);
        n.sense = state_get_u8(r);
        n.both_edges = state_get_u8(r);
        n.event = state_get_u8(r);
        n.mask = state_get_u8(r);
        n.raw = state_get_u8(r);
        n.alternate = state_get_u8(r);
        k = state_leave(r, ret_message);
        if (k < 0)
                return k;
        n.level = raw(&n) & n.mask;
        *p = n;
        p->set_irq(p->level, p->userdata);
        return 0;
}
