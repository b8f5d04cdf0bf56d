/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The helper of an input device as it is, with its seccomp policy: a driver on one side, the control interface on the other. */

#include <fcntl.h>
#include <linux/input.h>
#include <linux/virtio_input.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <termios.h>

#include <cmocka.h>

#include "front-end.h"

enum { EVENTS = 0, STATUS = 1 };

#define NUM 64
#define BUFFER(queue, i) (FE_BUFFERS + (queue) * MIB(1) + (uint64_t) (i) * 64)
#define CALL(method, parameters) "{\"method\":\"io.vmmd.Input." method "\",\"parameters\":" parameters "}"
/* As large as the helper makes it, or it takes it for an older version's. */
#define KEPT_SIZE 131

typedef struct Fixture {
        FrontEnd front_end;
        char directory[32], varlink[64], option[80];
        const char *arguments[3];
        uint16_t offered;
} Fixture;

static void fixture_prepare(Fixture *f) {
        *f = (Fixture) {};
        (void) snprintf(f->directory, sizeof(f->directory), "/tmp/test-input-XXXXXX");
        assert_non_null(mkdtemp(f->directory));
        (void) snprintf(f->varlink, sizeof(f->varlink), "%s/varlink", f->directory);
        (void) snprintf(f->option, sizeof(f->option), "--varlink-path=%s", f->varlink);
        f->arguments[0] = "input";
        f->arguments[1] = f->option;
}

static void queues_up(Fixture *f) {
        fe_negotiate(&f->front_end, 0);
        fe_set_mem_table(&f->front_end);
        fe_start_queue(&f->front_end, EVENTS, NUM);
        fe_start_queue(&f->front_end, STATUS, NUM);
        while (!strstr(fe_call(f->varlink, "{\"method\":\"io.vmmd.Device.Describe\"}", -EBADF), "\"state\":\"running\""))
                (void) usleep(1000);
}

static void fixture_up(Fixture *f) {
        fixture_prepare(f);
        fe_spawn(&f->front_end, f->arguments);
        queues_up(f);
}

static void fixture_down(Fixture *f) {
        fe_end(&f->front_end);
        (void) unlink(f->varlink);
        (void) rmdir(f->directory);
}

static void offer_events(Fixture *f, unsigned n) {
        for (unsigned i = 0; i < n; i++, f->offered++) {
                uint16_t slot = f->offered % NUM;

                fe_desc(&f->front_end, EVENTS, slot, FE_ADDRESS(BUFFER(EVENTS, slot)), sizeof(struct virtio_input_event), VRING_DESC_F_WRITE, 0);
                fe_offer(&f->front_end, EVENTS, slot);
        }
        fe_kick(&f->front_end, EVENTS);
}

static struct virtio_input_event next_event(Fixture *f) {
        struct vring_used_elem e = fe_wait(&f->front_end, EVENTS);
        struct virtio_input_event event;

        assert_int_equal(e.len, sizeof(event));
        memcpy(&event, f->front_end.ram + BUFFER(EVENTS, e.id), sizeof(event));
        return event;
}

static void expect_event(Fixture *f, uint16_t type, uint16_t code, uint32_t value) {
        struct virtio_input_event e = next_event(f);

        if (e.type != type || e.code != code || e.value != value)
                fail_msg("%u %u %u came, not %u %u %u", e.type, e.code, e.value, type, code, value);
}

static void expect_no_event(Fixture *f) {
        struct vring_used_elem e;

        assert_false(fe_used(&f->front_end, EVENTS, 100, &e));
}

static void say(Fixture *f, const void *data, uint32_t size) {
        memcpy(f->front_end.ram + BUFFER(STATUS, 0), data, size);
        fe_desc(&f->front_end, STATUS, 0, FE_ADDRESS(BUFFER(STATUS, 0)), size, 0, 0);
        fe_offer(&f->front_end, STATUS, 0);
        fe_kick(&f->front_end, STATUS);
        assert_int_equal(fe_wait(&f->front_end, STATUS).len, 0);
}

static void call_and_expect(Fixture *f, const char *text, const char *word) {
        const char *reply = fe_call(f->varlink, text, -EBADF);

        if (!strstr(reply, word))
                fail_msg("%s: %s, not %s", text, reply, word);
}

/* What the driver reads where it has written these two. */
static void choose(Fixture *f, uint8_t select, uint8_t subsel, struct virtio_input_config *ret) {
        assert_int_equal(fe_set_config(&f->front_end, 0, &select, 1), 0);
        assert_int_equal(fe_set_config(&f->front_end, 1, &subsel, 1), 0);
        fe_get_config(&f->front_end, ret, sizeof(*ret));
        assert_int_equal(ret->select, select);
        assert_int_equal(ret->subsel, subsel);
}

static bool has(const struct virtio_input_config *c, unsigned bit) {
        return bit / 8 < c->size && c->u.bitmap[bit / 8] & 1u << bit % 8;
}

/* --- refusals --- */

static void what_is_no_input_device_is_refused(void **state) {
        static const char *const missing[] = { "input", "--path=/nonexistent/event0", "--socket-path=/tmp/test-input.none", NULL };
        static const char *const other[] = { "input", "--path=/dev/null", "--socket-path=/tmp/test-input.none", NULL };
        char text[256];

        assert_int_not_equal(fe_spawn_failing(missing, text, sizeof(text)), 0);
        assert_non_null(strstr(text, "/nonexistent/event0"));
        assert_int_not_equal(fe_spawn_failing(other, text, sizeof(text)), 0);
        assert_non_null(strstr(text, "Cannot take over /dev/null"));
        (void) unlink("/tmp/test-input.none");
}

static void wrong_calls_are_refused(void **state) {
        static const struct { const char *text, *word; } cases[] = {
                { CALL("PressKeys", "{\"keys\":[]}"), "\"parameter\":\"keys\"" },
                { CALL("PressKeys", "{\"keys\":[\"a\",\"b\",\"c\",\"d\",\"e\",\"f\",\"g\",\"h\",\"i\"]}"), "\"parameter\":\"keys\"" },
                { CALL("PressKeys", "{\"keys\":[\"a\",\"nokey\"]}"), "\"error\":\"io.vmmd.Input.UnknownKey\",\"parameters\":{\"key\":\"nokey\"}" },
                { CALL("PressKeys", "{\"keys\":[\"\"]}"), "UnknownKey" },
                { CALL("PressKeys", "{\"keys\":[\"99999999999999999999\"]}"), "UnknownKey" },
                { CALL("PressKeys", "{\"keys\":[\"a\"],\"hold\":-1}"), "\"parameter\":\"hold\"" },
                { CALL("PressKeys", "{\"keys\":[\"a\"],\"hold\":60000001}"), "\"parameter\":\"hold\"" },
                { CALL("SendEvents", "{\"events\":[]}"), "\"parameter\":\"events\"" },
                { CALL("SendEvents", "{\"events\":[{\"type\":1,\"code\":30,\"value\":3}]}"), "\"parameter\":\"events\"" },
                { CALL("SendEvents", "{\"events\":[{\"type\":1,\"code\":767,\"value\":1}]}"), "\"parameter\":\"events\"" },
                { CALL("SendEvents", "{\"events\":[{\"type\":1,\"code\":65535,\"value\":1}]}"), "\"parameter\":\"events\"" },
                { CALL("SendEvents", "{\"events\":[{\"type\":1,\"code\":-1,\"value\":1}]}"), "\"parameter\":\"events\"" },
                { CALL("SendEvents", "{\"events\":[{\"type\":2,\"code\":0,\"value\":1}]}"), "\"parameter\":\"events\"" },
                { CALL("SendEvents", "{\"events\":[{\"type\":17,\"code\":0,\"value\":1}]}"), "\"parameter\":\"events\"" },
                { CALL("SendEvents", "{\"events\":[{\"type\":0,\"code\":3,\"value\":0}]}"), "\"parameter\":\"events\"" },
                { CALL("SendEvents", "{\"events\":[{\"type\":255,\"code\":3,\"value\":0}]}"), "\"parameter\":\"events\"" },
        };
        Fixture f;

        fixture_up(&f);
        for (size_t i = 0; i < ELEMENTSOF(cases); i++)
                call_and_expect(&f, cases[i].text, cases[i].word);
        offer_events(&f, NUM);
        expect_no_event(&f);
        fixture_down(&f);
}

static void nothing_is_pressed_without_a_driver(void **state) {
        Fixture f;

        fixture_prepare(&f);
        fe_spawn(&f.front_end, f.arguments);
        call_and_expect(&f, CALL("PressKeys", "{\"keys\":[\"a\"]}"), "io.vmmd.Input.NoDriver");
        queues_up(&f);
        offer_events(&f, NUM);
        expect_no_event(&f);
        fixture_down(&f);
}

/* What a driver gives no buffers for is kept, up to a limit. */
static void a_guest_that_takes_nothing_costs_little(void **state) {
        unsigned n = 0;
        Fixture f;

        fixture_up(&f);
        while (strstr(fe_call(f.varlink, CALL("SendEvents", "{\"events\":[{\"type\":1,\"code\":30,\"value\":1},{\"type\":1,\"code\":30,\"value\":0}]}"),
                -EBADF), "{\"parameters\":{}}"))
                assert_in_range(++n, 1, 1024);
        assert_in_range(n, 100, 1024);
        call_and_expect(&f, CALL("PressKeys", "{\"keys\":[\"a\"]}"), "io.vmmd.Input.Busy");
        for (unsigned i = 0; i < n; i++) {
                offer_events(&f, 3);
                expect_event(&f, EV_KEY, KEY_A, 1);
                expect_event(&f, EV_KEY, KEY_A, 0);
                expect_event(&f, EV_SYN, SYN_REPORT, 0);
        }
        call_and_expect(&f, CALL("PressKeys", "{\"keys\":[\"a\"],\"hold\":0}"), "{\"parameters\":{}}");
        fixture_down(&f);
}

static void buffers_outside_memory_break_the_device(void **state) {
        Fixture f;

        fixture_up(&f);
        fe_desc(&f.front_end, EVENTS, 0, 0x10, 8, VRING_DESC_F_WRITE, 0);
        fe_offer(&f.front_end, EVENTS, 0);
        fe_kick(&f.front_end, EVENTS);
        call_and_expect(&f, CALL("PressKeys", "{\"keys\":[\"a\"],\"hold\":0}"), "{\"parameters\":{}}");
        fe_expect_broken(&f.front_end, EVENTS);
        assert_true(fe_alive(&f.front_end));
        fixture_down(&f);
}

static void a_buffer_too_small_gets_what_fits(void **state) {
        Fixture f;

        fixture_up(&f);
        fe_desc(&f.front_end, EVENTS, 0, FE_ADDRESS(BUFFER(EVENTS, 0)), 3, VRING_DESC_F_WRITE, 0);
        fe_offer(&f.front_end, EVENTS, 0);
        fe_kick(&f.front_end, EVENTS);
        call_and_expect(&f, CALL("PressKeys", "{\"keys\":[\"a\"],\"hold\":0}"), "{\"parameters\":{}}");
        assert_int_equal(fe_wait(&f.front_end, EVENTS).len, 3);
        fixture_down(&f);
}

static void only_the_choice_can_be_written(void **state) {
        struct virtio_input_config c;
        Fixture f;

        fixture_up(&f);
        choose(&f, VIRTIO_INPUT_CFG_ID_NAME, 0, &c);
        assert_int_not_equal(fe_set_config(&f.front_end, 2, "x", 1), 0);
        assert_int_not_equal(fe_set_config(&f.front_end, 8, "y", 1), 0);
        fe_get_config(&f.front_end, &c, sizeof(c));
        assert_int_equal(c.select, VIRTIO_INPUT_CFG_ID_NAME);
        assert_memory_equal(c.u.string, "vmmd keyboard", 13);
        fixture_down(&f);
}

/* --- what it is --- */

static void every_choice_has_an_answer(void **state) {
        struct virtio_input_config c;
        Fixture f;

        fixture_up(&f);
        for (unsigned select = 0; select < 256; select++)
                for (unsigned subsel = 0; subsel < 256; subsel += select >= 0x10 && select <= 0x12 ? 1 : 51) {
                        choose(&f, (uint8_t) select, (uint8_t) subsel, &c);
                        assert_in_range(c.size, 0, sizeof(c.u));
                        for (unsigned i = c.size; i < sizeof(c.u); i++)
                                assert_int_equal(c.u.bitmap[i], 0);
                        if (c.size > 0 && select == VIRTIO_INPUT_CFG_EV_BITS)
                                assert_true(subsel == EV_KEY || subsel == EV_LED);
                        else if (c.size > 0)
                                assert_in_range(select, VIRTIO_INPUT_CFG_ID_NAME, VIRTIO_INPUT_CFG_ID_DEVIDS);
                }
        choose(&f, VIRTIO_INPUT_CFG_ID_NAME, 0, &c);
        assert_int_equal(c.size, 13);
        choose(&f, VIRTIO_INPUT_CFG_EV_BITS, EV_KEY, &c);
        assert_true(has(&c, KEY_A) && has(&c, KEY_POWER) && has(&c, KEY_DELETE) && !has(&c, KEY_RESERVED) && !has(&c, BTN_LEFT));
        choose(&f, VIRTIO_INPUT_CFG_EV_BITS, EV_LED, &c);
        assert_true(has(&c, LED_NUML) && has(&c, LED_CAPSL) && has(&c, LED_SCROLLL) && !has(&c, LED_MUTE));
        choose(&f, VIRTIO_INPUT_CFG_ID_DEVIDS, 0, &c);
        assert_int_equal(c.u.ids.bustype, BUS_VIRTUAL);
        fixture_down(&f);
}

/* --- keys --- */

static void a_chord_is_pressed_and_released(void **state) {
        Fixture f;

        fixture_up(&f);
        offer_events(&f, 8);
        call_and_expect(&f, CALL("PressKeys", "{\"keys\":[\"ctrl\",\"alt\",\"del\"]}"), "{\"parameters\":{}}");
        expect_event(&f, EV_KEY, KEY_LEFTCTRL, 1);
        expect_event(&f, EV_KEY, KEY_LEFTALT, 1);
        expect_event(&f, EV_KEY, KEY_DELETE, 1);
        expect_event(&f, EV_SYN, SYN_REPORT, 0);
        expect_event(&f, EV_KEY, KEY_DELETE, 0);
        expect_event(&f, EV_KEY, KEY_LEFTALT, 0);
        expect_event(&f, EV_KEY, KEY_LEFTCTRL, 0);
        expect_event(&f, EV_SYN, SYN_REPORT, 0);
        offer_events(&f, 4);
        call_and_expect(&f, CALL("PressKeys", "{\"keys\":[\"116\"],\"hold\":0}"), "{\"parameters\":{}}");
        expect_event(&f, EV_KEY, KEY_POWER, 1);
        expect_event(&f, EV_SYN, SYN_REPORT, 0);
        expect_event(&f, EV_KEY, KEY_POWER, 0);
        fixture_down(&f);
}

static void a_caller_who_leaves_does_not_leave_keys_behind(void **state) {
        static const char text[] = CALL("PressKeys", "{\"keys\":[\"a\"],\"hold\":300000}");
        Fixture f;
        int fd;

        fixture_up(&f);
        offer_events(&f, 4);
        fd = connect_unix(f.varlink);
        assert_return_code(fd, errno);
        assert_int_equal(write(fd, text, sizeof(text)), sizeof(text));
        expect_event(&f, EV_KEY, KEY_A, 1);
        (void) close(fd);
        expect_event(&f, EV_SYN, SYN_REPORT, 0);
        expect_event(&f, EV_KEY, KEY_A, 0);
        fixture_down(&f);
}

/* The rings are stopped while a key is held: its release comes when they go on. */
static void a_pause_keeps_what_is_due(void **state) {
        static const char text[] = CALL("PressKeys", "{\"keys\":[\"a\"],\"hold\":100000}");
        char reply[64] = "";
        uint32_t base;
        Fixture f;
        int fd;

        fixture_up(&f);
        offer_events(&f, 4);
        fd = connect_unix(f.varlink);
        assert_return_code(fd, errno);
        assert_int_equal(write(fd, text, sizeof(text)), sizeof(text));
        expect_event(&f, EV_KEY, KEY_A, 1);
        expect_event(&f, EV_SYN, SYN_REPORT, 0);
        base = fe_stop_queue(&f.front_end, EVENTS);
        (void) fe_stop_queue(&f.front_end, STATUS);
        assert_true(read(fd, reply, sizeof(reply) - 1) > 0);
        assert_string_equal(reply, "{\"parameters\":{}}");
        fe_send_queue(&f.front_end, EVENTS, (uint16_t) base);
        expect_event(&f, EV_KEY, KEY_A, 0);
        expect_event(&f, EV_SYN, SYN_REPORT, 0);
        (void) close(fd);
        fixture_down(&f);
}

static void a_reset_forgets_what_is_due(void **state) {
        static const char text[] = CALL("PressKeys", "{\"keys\":[\"a\"],\"hold\":60000000}");
        char reply[64] = "";
        Fixture f;
        int fd;

        fixture_up(&f);
        offer_events(&f, 1);
        fd = connect_unix(f.varlink);
        assert_return_code(fd, errno);
        assert_int_equal(write(fd, text, sizeof(text)), sizeof(text));
        expect_event(&f, EV_KEY, KEY_A, 1);
        fe_set_u64(&f.front_end, VHOST_USER_SET_STATUS, 0);
        assert_true(read(fd, reply, sizeof(reply) - 1) > 0);
        assert_non_null(strstr(reply, "NoDriver"));
        call_and_expect(&f, CALL("PressKeys", "{\"keys\":[\"a\"]}"), "NoDriver");
        (void) close(fd);
        fixture_down(&f);
}

static void too_many_at_once_are_refused(void **state) {
        static const char text[] = CALL("PressKeys", "{\"keys\":[\"a\"],\"hold\":60000000}");
        int fds[16];
        Fixture f;

        fixture_up(&f);
        offer_events(&f, 32);
        for (unsigned i = 0; i < ELEMENTSOF(fds); i++) {
                fds[i] = connect_unix(f.varlink);
                assert_return_code(fds[i], errno);
                assert_int_equal(write(fds[i], text, sizeof(text)), sizeof(text));
                expect_event(&f, EV_KEY, KEY_A, 1);
                expect_event(&f, EV_SYN, SYN_REPORT, 0);
        }
        call_and_expect(&f, CALL("PressKeys", "{\"keys\":[\"b\"]}"), "io.vmmd.Input.Busy");
        for (unsigned i = 0; i < ELEMENTSOF(fds); i++)
                (void) close(fds[i]);
        fixture_down(&f);
}

/* The helper is killed while a key is held: its successor lets go of it. */
static void a_successor_lets_go(void **state) {
        static const char text[] = CALL("PressKeys", "{\"keys\":[\"a\"],\"hold\":60000000}");
        int kept = memfd_create("kept", MFD_CLOEXEC), fd;
        Fixture f;

        assert_return_code(ftruncate(kept, KEPT_SIZE), errno);
        fixture_prepare(&f);
        fe_spawn_passing(&f.front_end, f.arguments, "input-state", kept);
        queues_up(&f);
        offer_events(&f, 2);
        fd = connect_unix(f.varlink);
        for (unsigned i = 0; fd < 0 && i < 6000; i++) {
                (void) usleep(10000);
                fd = connect_unix(f.varlink);
        }
        assert_return_code(fd, errno);
        assert_int_equal(write(fd, text, sizeof(text)), sizeof(text));
        expect_event(&f, EV_KEY, KEY_A, 1);
        expect_event(&f, EV_SYN, SYN_REPORT, 0);
        (void) kill(f.front_end.pid, SIGKILL);
        (void) waitpid(f.front_end.pid, NULL, 0);
        (void) close(fd);
        fe_disconnect(&f.front_end);
        (void) unlink(f.varlink);

        f.offered = 0;
        fe_spawn_passing(&f.front_end, f.arguments, "input-state", kept);
        queues_up(&f);
        offer_events(&f, 3);
        expect_event(&f, EV_KEY, KEY_A, 0);
        expect_event(&f, EV_SYN, SYN_REPORT, 0);
        expect_no_event(&f);
        fixture_down(&f);
        (void) close(kept);
}

/* --- a device of the host's --- */

/* Its events come from the other side of the terminal. */
static int host_device_up(Fixture *f) {
        int terminal = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
        char option[64];
        const char *arguments[] = { "input", f->option, option, NULL };
        struct termios raw;
        int other;

        assert_return_code(terminal, errno);
        assert_return_code(grantpt(terminal), errno);
        assert_return_code(unlockpt(terminal), errno);
        (void) snprintf(option, sizeof(option), "--path=%s", ptsname(terminal));
        other = open(ptsname(terminal), O_RDWR | O_NOCTTY | O_CLOEXEC);
        assert_return_code(tcgetattr(other, &raw), errno);
        cfmakeraw(&raw);
        assert_return_code(tcsetattr(other, TCSANOW, &raw), errno);
        fixture_prepare(f);
        assert_return_code(setenv("LD_PRELOAD", getenv("FAKE_EVDEV"), 1), errno);
        fe_spawn(&f->front_end, arguments);
        assert_return_code(unsetenv("LD_PRELOAD"), errno);
        queues_up(f);
        (void) close(other);
        return terminal;
}

static void happen(int terminal, uint16_t type, uint16_t code, int32_t value) {
        const struct input_event e = { .type = type, .code = code, .value = value };

        assert_int_equal(write(terminal, &e, sizeof(e)), sizeof(e));
}

static void a_device_of_the_hosts_is_shown_as_it_is(void **state) {
        struct virtio_input_config c;
        Fixture f;
        int terminal;

        if (!getenv("FAKE_EVDEV")) {
                print_message("# a sanitizer wants to be loaded before everything else\n");
                return;
        }
        terminal = host_device_up(&f);
        choose(&f, VIRTIO_INPUT_CFG_ID_NAME, 0, &c);
        assert_int_equal(c.size, 7);
        assert_memory_equal(c.u.string, "a mouse", 7);
        choose(&f, VIRTIO_INPUT_CFG_ID_SERIAL, 0, &c);
        assert_int_equal(c.size, 0);
        choose(&f, VIRTIO_INPUT_CFG_ID_DEVIDS, 0, &c);
        assert_true(c.u.ids.bustype == BUS_USB && c.u.ids.vendor == 0x1234 && c.u.ids.product == 0x5678 && c.u.ids.version == 9);
        choose(&f, VIRTIO_INPUT_CFG_PROP_BITS, 0, &c);
        assert_true(has(&c, INPUT_PROP_POINTER));
        choose(&f, VIRTIO_INPUT_CFG_EV_BITS, EV_KEY, &c);
        assert_true(has(&c, BTN_LEFT) && has(&c, KEY_POWER) && !has(&c, KEY_A));
        choose(&f, VIRTIO_INPUT_CFG_EV_BITS, EV_REP, &c);
        assert_int_equal(c.size, 0); /* the host repeats its keys */
        choose(&f, VIRTIO_INPUT_CFG_EV_BITS, EV_SW, &c);
        assert_int_equal(c.size, 0);
        choose(&f, VIRTIO_INPUT_CFG_ABS_INFO, ABS_Y, &c);
        assert_true(c.u.abs.min == (uint32_t) -5 && c.u.abs.max == 32767 && c.u.abs.fuzz == 1 && c.u.abs.flat == 2 && c.u.abs.res == 3);
        choose(&f, VIRTIO_INPUT_CFG_ABS_INFO, ABS_X, &c);
        assert_int_equal(c.size, 0);
        call_and_expect(&f, CALL("PressKeys", "{\"keys\":[\"a\"]}"), "UnknownKey");
        fixture_down(&f);
        (void) close(terminal);
}

static void events_of_a_device_of_the_hosts_come_through(void **state) {
        const struct virtio_input_event light = { .type = EV_LED, .code = LED_CAPSL, .value = 1 };
        struct input_event seen[2];
        Fixture f;
        int terminal;

        if (!getenv("FAKE_EVDEV")) {
                print_message("# a sanitizer wants to be loaded before everything else\n");
                return;
        }
        terminal = host_device_up(&f);
        offer_events(&f, NUM);
        happen(terminal, EV_REL, REL_X, -3);
        happen(terminal, EV_REL, REL_Y, 1);     /* not its own */
        happen(terminal, EV_KEY, KEY_A, 1);     /* nor this */
        happen(terminal, EV_KEY, BTN_LEFT, 1);
        happen(terminal, EV_SYN, SYN_REPORT, 0);
        expect_event(&f, EV_REL, REL_X, (uint32_t) -3);
        expect_event(&f, EV_KEY, BTN_LEFT, 1);
        expect_event(&f, EV_SYN, SYN_REPORT, 0);

        /* The kernel had no room: what it still has of that report is no whole one, and the key may be up by now. */
        happen(terminal, EV_SYN, SYN_DROPPED, 0);
        happen(terminal, EV_REL, REL_X, 7);
        happen(terminal, EV_SYN, SYN_REPORT, 0);
        happen(terminal, EV_REL, REL_X, 8);
        happen(terminal, EV_SYN, SYN_REPORT, 0);
        expect_event(&f, EV_KEY, BTN_LEFT, 0);
        expect_event(&f, EV_SYN, SYN_REPORT, 0);
        expect_event(&f, EV_REL, REL_X, 8);
        expect_event(&f, EV_SYN, SYN_REPORT, 0);

        say(&f, &light, sizeof(light));
        assert_int_equal(read(terminal, seen, sizeof(seen)), sizeof(seen));
        assert_true(seen[0].type == EV_LED && seen[0].code == LED_CAPSL && seen[0].value == 1 && seen[1].type == EV_SYN);
        fixture_down(&f);
        (void) close(terminal);
}

/* A guest that takes nothing: the host's kernel keeps what happens, and the helper goes on where there is room. */
static void a_device_of_the_hosts_waits_for_the_guest(void **state) {
        enum { N = 900 };
        Fixture f;
        int terminal;

        if (!getenv("FAKE_EVDEV")) {
                print_message("# a sanitizer wants to be loaded before everything else\n");
                return;
        }
        terminal = host_device_up(&f);
        for (int i = 0; i < N / 90; i++) {
                struct input_event burst[90];

                for (int k = 0; k < 90; k++)
                        burst[k] = (struct input_event) { .type = EV_REL, .code = REL_X, .value = i * 90 + k };
                for (size_t done = 0; done < sizeof(burst);) {
                        ssize_t n = write(terminal, (const char *) burst + done, sizeof(burst) - done);

                        assert_true(n > 0);
                        done += (size_t) n;
                }
                (void) fe_call(f.varlink, "{\"method\":\"io.vmmd.Device.Describe\"}", -EBADF);
        }
        for (int i = 0; i < N; i++) {
                offer_events(&f, 1);
                expect_event(&f, EV_REL, REL_X, (uint32_t) i);
        }
        fixture_down(&f);
        (void) close(terminal);
}

static void a_device_of_the_hosts_that_goes_ends_the_helper(void **state) {
        Fixture f;
        int terminal, status;

        if (!getenv("FAKE_EVDEV")) {
                print_message("# a sanitizer wants to be loaded before everything else\n");
                return;
        }
        terminal = host_device_up(&f);
        (void) close(terminal);
        fe_expect_hang_up(&f.front_end);
        assert_int_equal(waitpid(f.front_end.pid, &status, 0), f.front_end.pid);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 1);
        fe_disconnect(&f.front_end);
        (void) unlink(f.varlink);
        (void) rmdir(f.directory);
}

/* --- lights --- */

static void lights_are_shown_and_nonsense_is_not(void **state) {
        const struct virtio_input_event caps = { .type = EV_LED, .code = LED_CAPSL, .value = 1 };
        const struct virtio_input_event off = { .type = EV_LED, .code = LED_CAPSL };
        const struct virtio_input_event nonsense[] = {
                { .type = EV_LED, .code = 0xffff, .value = 1 }, { .type = 0xffff, .code = 0, .value = 1 }, { .type = EV_LED, .code = LED_MAIL, .value = 1 },
                { .type = EV_KEY, .code = KEY_A, .value = 1 }, { .type = EV_REP, .code = REP_DELAY, .value = 1 },
        };
        Fixture f;

        fixture_up(&f);
        for (size_t i = 0; i < ELEMENTSOF(nonsense); i++)
                say(&f, &nonsense[i], sizeof(nonsense[i]));
        say(&f, &caps, 5);
        call_and_expect(&f, "{\"method\":\"io.vmmd.Device.Describe\"}", "\"name\":\"vmmd keyboard\",\"leds\":[]");
        call_and_expect(&f, "{\"method\":\"io.vmmd.Device.GetCounters\"}", "\"statusEvents\":0,\"droppedEvents\":6");
        say(&f, &caps, sizeof(caps));
        call_and_expect(&f, "{\"method\":\"io.vmmd.Device.Describe\"}", "\"leds\":[\"capsLock\"]");
        say(&f, &off, sizeof(off));
        call_and_expect(&f, "{\"method\":\"io.vmmd.Device.Describe\"}", "\"leds\":[]");
        fixture_down(&f);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(what_is_no_input_device_is_refused),
                cmocka_unit_test(wrong_calls_are_refused),
                cmocka_unit_test(nothing_is_pressed_without_a_driver),
                cmocka_unit_test(a_guest_that_takes_nothing_costs_little),
                cmocka_unit_test(buffers_outside_memory_break_the_device),
                cmocka_unit_test(a_buffer_too_small_gets_what_fits),
                cmocka_unit_test(only_the_choice_can_be_written),
                cmocka_unit_test(every_choice_has_an_answer),
                cmocka_unit_test(a_chord_is_pressed_and_released),
                cmocka_unit_test(a_caller_who_leaves_does_not_leave_keys_behind),
                cmocka_unit_test(a_pause_keeps_what_is_due),
                cmocka_unit_test(a_reset_forgets_what_is_due),
                cmocka_unit_test(too_many_at_once_are_refused),
                cmocka_unit_test(a_successor_lets_go),
                cmocka_unit_test(a_device_of_the_hosts_is_shown_as_it_is),
                cmocka_unit_test(events_of_a_device_of_the_hosts_come_through),
                cmocka_unit_test(a_device_of_the_hosts_waits_for_the_guest),
                cmocka_unit_test(a_device_of_the_hosts_that_goes_ends_the_helper),
                cmocka_unit_test(lights_are_shown_and_nonsense_is_not),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
