/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <time.h>

#include "cmos.h"

/* Registers of the MC146818 (its data sheet, "Memory"); the century is where the FADT says. */
#define REG_SECONDS 0x00
#define REG_SECONDS_ALARM 0x01
#define REG_MINUTES 0x02
#define REG_MINUTES_ALARM 0x03
#define REG_HOURS 0x04
#define REG_HOURS_ALARM 0x05
#define REG_WEEKDAY 0x06
#define REG_DAY 0x07
#define REG_MONTH 0x08
#define REG_YEAR 0x09
#define REG_A 0x0A
#define REG_B 0x0B
#define REG_C 0x0C
#define REG_D 0x0D
#define REG_CENTURY 0x32

#define A_UPDATE_IN_PROGRESS 0x80
#define A_DIVIDER_MASK 0x70
#define A_DIVIDER_RESET 0x60 /* 110 and 111: the divider is held in reset */
#define A_DEFAULT 0x26       /* a 32.768 kHz crystal, 1.024 kHz */
#define B_SET 0x80           /* the clock is halted while it is being set */
#define B_BINARY 0x04        /* else BCD */
#define B_24_HOURS 0x02
#define BC_ALARM 0x20  /* enables in B, flags in C */
#define BC_UPDATE 0x10
#define BC_MASK 0x70
#define C_IRQ 0x80
#define ALARM_ANY 0xC0 /* "don't care": both top bits of an alarm register */
#define D_VALID 0x80
#define HOURS_PM 0x80

/* "UIP … at least 244 µs before an update": who sees it clear has that long to read everything. */
#define UPDATE_NSEC UINT64_C(244000)

static uint64_t host_now(void *userdata) {
        struct timespec ts;

        (void) clock_gettime(CLOCK_REALTIME, &ts);
        return (uint64_t) ts.tv_sec * NSEC_PER_SEC + (uint64_t) ts.tv_nsec;
}

static bool halted(const Cmos *cmos) {
        return (cmos->bytes[REG_B] & B_SET) || (cmos->bytes[REG_A] & A_DIVIDER_RESET) == A_DIVIDER_RESET;
}

static bool is_time_register(uint8_t reg) {
        return reg == REG_SECONDS || reg == REG_MINUTES || reg == REG_HOURS || (reg >= REG_WEEKDAY && reg <= REG_YEAR) ||
                reg == REG_CENTURY;
}

static uint8_t encode(const Cmos *cmos, int value) {
        return cmos->bytes[REG_B] & B_BINARY ? (uint8_t) value : (uint8_t) (value / 10 * 16 + value % 10);
}

static int decode(const Cmos *cmos, uint8_t byte) {
        return cmos->bytes[REG_B] & B_BINARY ? byte : (byte >> 4) * 10 + (byte & 0x0F);
}

static uint8_t encode_hours(const Cmos *cmos, int hours) {
        if (cmos->bytes[REG_B] & B_24_HOURS)
                return encode(cmos, hours);
        return encode(cmos, hours % 12 == 0 ? 12 : hours % 12) | (hours >= 12 ? HOURS_PM : 0);
}

static int decode_hours(const Cmos *cmos, uint8_t byte) {
        if (cmos->bytes[REG_B] & B_24_HOURS)
                return decode(cmos, byte);
        return decode(cmos, byte & ~HOURS_PM) % 12 + (byte & HOURS_PM ? 12 : 0);
}

/* Puts the running clock's time into the registers. */
static void latch(Cmos *cmos) {
        time_t t = (time_t) (cmos->now(cmos->userdata) / NSEC_PER_SEC) + (time_t) cmos->offset;
        struct tm tm;

        /* The registers have four digits of year; and no guest's clock may make gmtime_r() fail. */
        if (!gmtime_r(&t, &tm) || tm.tm_year < -1900 || tm.tm_year > 9999 - 1900)
                tm = (struct tm) { .tm_mday = 1, .tm_year = 70 };

        cmos->bytes[REG_SECONDS] = encode(cmos, MIN(tm.tm_sec, 59));
        cmos->bytes[REG_MINUTES] = encode(cmos, tm.tm_min);
        cmos->bytes[REG_HOURS] = encode_hours(cmos, tm.tm_hour);
        cmos->bytes[REG_WEEKDAY] = encode(cmos, tm.tm_wday + 1);
        cmos->bytes[REG_DAY] = encode(cmos, tm.tm_mday);
        cmos->bytes[REG_MONTH] = encode(cmos, tm.tm_mon + 1);
        cmos->bytes[REG_YEAR] = encode(cmos, (tm.tm_year + 1900) % 100);
        cmos->bytes[REG_CENTURY] = encode(cmos, (tm.tm_year + 1900) / 100);
}

/* Lets the clock run on from what is in the registers; timegm() takes fields out of their range, too. */
static void unlatch(Cmos *cmos) {
        struct tm tm = {
                .tm_sec = decode(cmos, cmos->bytes[REG_SECONDS]),
                .tm_min = decode(cmos, cmos->bytes[REG_MINUTES]),
                .tm_hour = decode_hours(cmos, cmos->bytes[REG_HOURS]),
                .tm_mday = decode(cmos, cmos->bytes[REG_DAY]),
                .tm_mon = decode(cmos, cmos->bytes[REG_MONTH]) - 1,
                .tm_year = decode(cmos, cmos->bytes[REG_CENTURY]) * 100 + decode(cmos, cmos->bytes[REG_YEAR]) - 1900,
        };

        cmos->offset = (int64_t) timegm(&tm) - (int64_t) (cmos->now(cmos->userdata) / NSEC_PER_SEC);
}

static bool alarm_matches(uint8_t alarm, int alarm_value, uint64_t value) {
        return (alarm & ALARM_ANY) == ALARM_ANY || (uint64_t) alarm_value == value;
}

/* Seconds until the alarm comes, 1 … 86400; 0 where it names no time. Goes by hours, then minutes, then seconds: some 150 steps. */
static uint64_t seconds_to_alarm(const Cmos *cmos, uint64_t second_of_day) {
        uint8_t s = cmos->bytes[REG_SECONDS_ALARM], m = cmos->bytes[REG_MINUTES_ALARM], h = cmos->bytes[REG_HOURS_ALARM];
        int s_value = decode(cmos, s), m_value = decode(cmos, m), h_value = decode_hours(cmos, h);

        for (uint64_t t = second_of_day + 1; t <= second_of_day + 86400;) {
                if (!alarm_matches(h, h_value, t / 3600 % 24))
                        t = (t / 3600 + 1) * 3600;
                else if (!alarm_matches(m, m_value, t / 60 % 60))
                        t = (t / 60 + 1) * 60;
                else if (!alarm_matches(s, s_value, t % 60))
                        t++;
                else
                        return t - second_of_day;
        }
        return 0;
}

static void update_irq(Cmos *cmos) {
        bool level = (cmos->bytes[REG_B] & cmos->bytes[REG_C] & BC_MASK) != 0;

        cmos->bytes[REG_C] = (cmos->bytes[REG_C] & ~C_IRQ) | (level ? C_IRQ : 0);
        if (!cmos->set_irq || level == cmos->irq)
                return;
        cmos->irq = level;
        cmos->set_irq(level, cmos->userdata);
}

/* Looks at what the guest awaits now, and sets the timer for the nearer of the two. */
static void rearm(Cmos *cmos) {
        uint64_t nsec, now, next, wait;

        cmos->update_at = cmos->alarm_at = 0;
        if (!cmos->arm)
                return;
        nsec = cmos->now(cmos->userdata);
        now = nsec / NSEC_PER_SEC;
        if (!halted(cmos) && (cmos->bytes[REG_B] & BC_UPDATE))
                cmos->update_at = now + 1;
        if (!halted(cmos) && (cmos->bytes[REG_B] & BC_ALARM)) {
                int64_t guest = (int64_t) now + cmos->offset;

                wait = seconds_to_alarm(cmos, (uint64_t) (((guest % 86400) + 86400) % 86400));
                if (wait > 0)
                        cmos->alarm_at = now + wait;
        }

        next = cmos->update_at != 0 ? cmos->update_at : cmos->alarm_at;
        cmos->arm(next != 0 ? next * NSEC_PER_SEC - nsec : 0, cmos->userdata);
}

void cmos_expired(Cmos *cmos) {
        uint64_t now = cmos->now(cmos->userdata) / NSEC_PER_SEC;

        /* The timer runs by another clock than this one, so it may be early: then it is just set again. */
        if (cmos->update_at != 0 && now >= cmos->update_at)
                cmos->bytes[REG_C] |= BC_UPDATE;
        if (cmos->alarm_at != 0 && now >= cmos->alarm_at)
                cmos->bytes[REG_C] |= BC_ALARM;
        update_irq(cmos);
        rearm(cmos);
}

void cmos_init(Cmos *cmos) {
        *cmos = (Cmos) { .now = host_now };
        cmos_reset(cmos);
}

void cmos_set_interrupt(Cmos *cmos, void (*set_irq)(bool level, void *userdata), void (*arm)(uint64_t nsec, void *userdata),
        void *userdata) {
        cmos->set_irq = set_irq;
        cmos->arm = arm;
        cmos->userdata = userdata;
}

void cmos_reset(Cmos *cmos) {
        if (halted(cmos))
                unlatch(cmos);
        cmos->index = 0;
        cmos->bytes[REG_A] = A_DEFAULT;
        cmos->bytes[REG_B] = B_24_HOURS;
        cmos->bytes[REG_C] = 0;
        cmos->bytes[REG_D] = D_VALID;
        update_irq(cmos);
        rearm(cmos);
}

static uint8_t read_register(Cmos *cmos, uint8_t reg) {
        if (is_time_register(reg) && !halted(cmos))
                latch(cmos);
        if (reg == REG_A && !halted(cmos) && cmos->now(cmos->userdata) % NSEC_PER_SEC >= NSEC_PER_SEC - UPDATE_NSEC)
                return cmos->bytes[REG_A] | A_UPDATE_IN_PROGRESS;
        if (reg == REG_C) {
                uint8_t flags = cmos->bytes[REG_C];

                /* Reading takes all flags away, and with them the interrupt. */
                cmos->bytes[REG_C] = 0;
                update_irq(cmos);
                return flags;
        }
        return cmos->bytes[reg];
}

static bool moves_interrupts(uint8_t reg) {
        return is_time_register(reg) || reg == REG_SECONDS_ALARM || reg == REG_MINUTES_ALARM || reg == REG_HOURS_ALARM ||
                reg == REG_A || reg == REG_B;
}

static void write_register(Cmos *cmos, uint8_t reg, uint8_t value) {
        bool was_halted = halted(cmos);

        if (reg == REG_C || reg == REG_D)
                return;
        if (!was_halted && (is_time_register(reg) || reg == REG_A || reg == REG_B))
                latch(cmos);

        cmos->bytes[reg] = reg == REG_A ? value & ~A_UPDATE_IN_PROGRESS : value;

        if (!halted(cmos) && (was_halted || is_time_register(reg)))
                unlatch(cmos);
        if (moves_interrupts(reg)) {
                update_irq(cmos);
                rearm(cmos);
        }
}

void cmos_read(Cmos *cmos, uint64_t offset, void *data, size_t size) {
        memset(data, 0xFF, size);
        if (size == 1 && offset == 1)
                *(uint8_t *) data = read_register(cmos, cmos->index & 0x7F);
}

void cmos_write(Cmos *cmos, uint64_t offset, const void *data, size_t size) {
        const uint8_t *bytes = data;

        /* A 16-bit write to 0x70 is index and data at once, as on any ISA bus. */
        for (size_t i = 0; i < size; i++)
                if (offset + i == 0)
                        cmos->index = bytes[i];
                else if (offset + i == 1)
                        write_register(cmos, cmos->index & 0x7F, bytes[i]);
}

int cmos_save(const Cmos *cmos, StateWriter *w) {
        state_begin(w, "cmos", 0, 1);
        state_put_u64(w, (uint64_t) cmos->offset);
        state_put_u8(w, cmos->index);
        state_put_blob(w, cmos->bytes, sizeof(cmos->bytes));
        return state_end(w);
}

int cmos_load(Cmos *cmos, StateReader *reader, char **ret_message) {
        Cmos loaded = *cmos;
        int r;

        r = state_enter(reader, "cmos", 0, 1);
        if (r < 0)
                return set_message(ret_message, r, "State has no section cmos.0 that this version understands.");
        loaded.offset = (int64_t) state_get_u64(reader);
        loaded.index = state_get_u8(reader);
        state_get_blob(reader, loaded.bytes, sizeof(loaded.bytes));
        r = state_leave(reader, ret_message);
        if (r < 0)
                return r;
        /* Any guest can reach 10000 years; more would only overflow the sum in latch(). */
        if (loaded.offset > INT64_C(1) << 40 || loaded.offset < -(INT64_C(1) << 40))
                return set_message(ret_message, -EBADMSG, "State section cmos.0 has a clock offset of %lld s, expected at most 2^40.",
                        (long long) loaded.offset);

        loaded.bytes[REG_C] &= BC_MASK;
        loaded.bytes[REG_D] = D_VALID;
        *cmos = loaded;
        update_irq(cmos);
        rearm(cmos);
        return 0;
}
