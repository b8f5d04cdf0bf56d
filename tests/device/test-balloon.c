/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The balloon's helper: vhost-user on one side, where this is vmmd and the guest's driver, and Varlink on the other. */

#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <cmocka.h>

#include <json-c/json.h>
#include <inttypes.h>
#include <linux/virtio_balloon.h>
#include <linux/virtio_config.h>

#include "front-end.h"

#define F_WS_REPORTING 8
#define FEATURE(bit) (UINT64_C(1) << (bit))
#define PAGE UINT64_C(4096)
#define NUM 64

/* The queues as Linux counts them where all features are negotiated but those of `workingSet`. */
enum { INFLATE, DEFLATE, STATISTICS, HINTING, REPORTING };

/* Where lists, statistics and the like lie; pages for the balloon lie from PAGES on. */
#define BUFFER(i) (FE_BUFFERS + (uint64_t) (i) * KIB(64))
#define PAGES MIB(8)

typedef struct Fixture {
        FrontEnd fe;
        char directory[40], varlink[64], argument[80];
} Fixture;

/* ---- Varlink by hand ---- */

static int dial(Fixture *f) {
        int fd = -EBADF;

        for (unsigned i = 0; i < 6000 && fd < 0; i++) {
                fd = connect_unix(f->varlink);
                if (fd < 0)
                        (void) usleep(10000);
        }
        assert_return_code(fd, 0);
        return fd;
}

static void say(int fd, const char *text) {
        assert_int_equal(write(fd, text, strlen(text) + 1), (ssize_t) strlen(text) + 1);
}

/* The next message, or NULL where none comes in time. */
static json_object *hear(int fd, int timeout_ms) {
        static char text[65536];
        struct pollfd p = { .fd = fd, .events = POLLIN };
        json_object *o;
        size_t n = 0;

        do {
                if (poll(&p, 1, timeout_ms) != 1)
                        return NULL;
                assert_in_range(n, 0, sizeof(text) - 1);
                assert_int_equal(read(fd, text + n, 1), 1);
        } while (text[n++] != 0);
        o = json_tokener_parse(text);
        assert_non_null(o);
        return o;
}

static json_object *must_hear(int fd) {
        json_object *o = hear(fd, 60000);

        assert_non_null(o);
        return o;
}

/* A member by the names on the way to it, separated by dots. */
static json_object *at(json_object *o, const char *path) {
        char name[64];

        while (*path && o) {
                size_t n = strcspn(path, ".");

                (void) snprintf(name, sizeof(name), "%.*s", (int) n, path);
                o = json_object_object_get(o, name);
                path += n + (path[n] == '.');
        }
        return o;
}

static int64_t number(json_object *o, const char *path) {
        if (!at(o, path))
                fail_msg("no %s in %s", path, json_object_to_json_string(o));
        return json_object_get_int64(at(o, path));
}

static const char *string(json_object *o, const char *path) {
        return at(o, path) ? json_object_get_string(at(o, path)) : "";
}

/* Calls a method of io.vmmd.Balloon by a connection of its own; the caller takes the reply. */
static json_object *call(Fixture *f, const char *method, const char *parameters) {
        char text[512];
        json_object *o;
        int fd = dial(f);

        (void) snprintf(text, sizeof(text), "{\"method\":\"io.vmmd.Balloon.%s\",\"parameters\":%s}", method, parameters);
        say(fd, text);
        o = must_hear(fd);
        (void) close(fd);
        return o;
}

/* The same, without waiting for the reply. */
static int begin(Fixture *f, const char *method, const char *parameters) {
        char text[512];
        int fd = dial(f);

        (void) snprintf(text, sizeof(text), "{\"method\":\"io.vmmd.Balloon.%s\",\"parameters\":%s}", method, parameters);
        say(fd, text);
        return fd;
}

static void assert_error(json_object *o, const char *error) {
        if (!streq(string(o, "error"), error))
                fail_msg("expected %s: %s", error, json_object_to_json_string(o));
        json_object_put(o);
}

static void refuses(Fixture *f, const char *method, const char *parameters, const char *error) {
        assert_error(call(f, method, parameters), error);
}

static void assert_balloon(Fixture *f, const char *path, int64_t expected) {
        json_object *o = call(f, "Describe", "{}");
        char full[80];

        (void) snprintf(full, sizeof(full), "parameters.balloon.%s", path);
        assert_int_equal(number(o, full), expected);
        json_object_put(o);
}

/* One counter of io.vmmd.Device.GetCounters. */
static int64_t counter(Fixture *f, const char *name) {
        char path[80];
        json_object *o;
        int64_t v;
        int fd = dial(f);

        say(fd, "{\"method\":\"io.vmmd.Device.GetCounters\"}");
        o = must_hear(fd);
        (void) snprintf(path, sizeof(path), "parameters.counters.%s", name);
        v = number(o, path);
        json_object_put(o);
        (void) close(fd);
        return v;
}

static int subscribe(Fixture *f) {
        json_object *o;
        int fd = dial(f);

        say(fd, "{\"method\":\"io.vmmd.Balloon.Subscribe\",\"more\":true}");
        o = must_hear(fd);
        assert_string_equal(string(o, "parameters.type"), "present");
        json_object_put(o);
        return fd;
}

/* The next event of that type; what others come before is passed over. */
static json_object *event(int fd, const char *type) {
        for (;;) {
                json_object *o = hear(fd, 60000);

                if (!o)
                        fail_msg("no event '%s' came", type);
                if (streq(string(o, "parameters.type"), type))
                        return o;
                json_object_put(o);
        }
}

/* ---- the guest ---- */

static void make_directory(Fixture *f) {
        (void) snprintf(f->directory, sizeof(f->directory), "/tmp/test-balloon-XXXXXX");
        assert_non_null(mkdtemp(f->directory));
        (void) snprintf(f->varlink, sizeof(f->varlink), "%s/varlink", f->directory);
        (void) snprintf(f->argument, sizeof(f->argument), "--varlink-path=%s", f->varlink);
}

static void driver_ok(Fixture *f) {
        fe_set_u64(&f->fe, VHOST_USER_SET_STATUS,
                VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK);
}

/* Until it is seen by others, too: what came on one socket is not ordered with what comes on another. */
static void wait_for_driver(Fixture *f) {
        int fd = dial(f);
        bool there;

        say(fd, "{\"method\":\"io.vmmd.Balloon.Subscribe\",\"more\":true}");
        do {
                json_object *o = must_hear(fd);
                there = json_object_get_boolean(at(o, "parameters.balloon.driver"));
                json_object_put(o);
        } while (!there);
        (void) close(fd);
}

/* With features negotiated already. */
static void start_queues(Fixture *f, unsigned n_queues) {
        /* These are not to count among the pages that come and go. */
        for (unsigned i = 0; i < 8; i++)
                memset(f->fe.ram + BUFFER(i), 0, PAGE);
        fe_set_mem_table(&f->fe);
        for (unsigned i = 0; i < n_queues; i++)
                fe_start_queue(&f->fe, i, NUM);
        driver_ok(f);
        wait_for_driver(f);
}

static void start_driver(Fixture *f, uint64_t without, unsigned n_queues) {
        fe_negotiate(&f->fe, without);
        start_queues(f, n_queues);
}

#define POISON FEATURE(VIRTIO_BALLOON_F_PAGE_POISON)

/* Everything but page poison, which few guests have. */
static void up(Fixture *f) {
        make_directory(f);
        fe_spawn(&f->fe, (const char *const[]) { "balloon", f->argument, "--free-page-hinting=yes", NULL });
        start_driver(f, POISON, 5);
}

static void down(Fixture *f) {
        fe_end(&f->fe);
        (void) unlink(f->varlink);
        (void) rmdir(f->directory);
}

static uint64_t blocks(Fixture *f) {
        struct stat st;

        assert_return_code(fstat(f->fe.ram_fd, &st), errno);
        return (uint64_t) st.st_blocks * 512 / PAGE;
}

static void touch(Fixture *f, uint64_t page, uint64_t n) {
        memset(f->fe.ram + PAGES + page * PAGE, 0x5a, n * PAGE);
}

static bool is_blank(Fixture *f, uint64_t page) {
        const uint8_t *p = f->fe.ram + PAGES + page * PAGE;

        return p[0] == 0 && memcmp(p, p + 1, PAGE - 1) == 0;
}

/* The number that the guest has for a page of the area. */
static uint32_t pfn(uint64_t page) {
        return (uint32_t) ((FE_GUEST_BASE + PAGES) / PAGE + page);
}

static void send_list(Fixture *f, unsigned queue, const uint32_t *pages, size_t n) {
        memcpy(f->fe.ram + BUFFER(queue), pages, n * sizeof(*pages));
        fe_desc(&f->fe, queue, 0, FE_ADDRESS(BUFFER(queue)), (uint32_t) (n * sizeof(*pages)), 0, 0);
        fe_offer(&f->fe, queue, 0);
        fe_kick(&f->fe, queue);
        (void) fe_wait(&f->fe, queue);
}

static void write_actual(Fixture *f, uint32_t pages) {
        assert_int_equal(fe_set_config(&f->fe, offsetof(struct virtio_balloon_config, actual), &pages, sizeof(pages)), 0);
}

static struct virtio_balloon_config config(Fixture *f) {
        struct virtio_balloon_config c;

        fe_get_config(&f->fe, &c, sizeof(c));
        return c;
}

static void set_target(Fixture *f, uint64_t pages) {
        char parameters[64];
        json_object *o;

        (void) snprintf(parameters, sizeof(parameters), "{\"target\":%" PRIu64 "}", pages * PAGE);
        o = call(f, "SetTarget", parameters);
        assert_int_equal(number(o, "parameters.balloon.target"), pages * PAGE);
        json_object_put(o);
}

/* After a pause: what answers is served again. */
static void wait_until_served(Fixture *f) {
        uint32_t page = 0;

        send_list(f, DEFLATE, &page, 1);
}

/* A buffer of statistics; its bytes are the caller's. */
static void offer_statistics(Fixture *f, unsigned queue, const void *entries, uint32_t size) {
        memcpy(f->fe.ram + BUFFER(queue), entries, size);
        fe_desc(&f->fe, queue, 0, FE_ADDRESS(BUFFER(queue)), size, 0, 0);
        fe_offer(&f->fe, queue, 0);
        fe_kick(&f->fe, queue);
}

static struct virtio_balloon_stat entry(uint16_t tag, uint64_t value) {
        return (struct virtio_balloon_stat) { .tag = tag, .val = value };
}

/* ---- refusals ---- */

static void targets_out_of_range_are_refused(void **state) {
        Fixture f = {};

        up(&f);
        refuses(&f, "SetTarget", "{\"target\":-1}", "org.varlink.service.InvalidParameter");
        refuses(&f, "SetTarget", "{\"target\":17592186044416}", "org.varlink.service.InvalidParameter");
        refuses(&f, "SetTarget", "{}", "org.varlink.service.InvalidParameter");
        refuses(&f, "GetStatistics", "{\"maximumAge\":-1}", "org.varlink.service.InvalidParameter");
        refuses(&f, "Subscribe", "{}", "org.varlink.service.ExpectedMore");
        assert_balloon(&f, "target", 0);
        down(&f);
}

static void without_a_driver_everything_still_answers(void **state) {
        Fixture f = {};
        json_object *o;

        make_directory(&f);
        fe_spawn(&f.fe, (const char *const[]) { "balloon", f.argument, "--initial=1M", "--working-set=yes", "--free-page-hinting=yes", NULL });
        refuses(&f, "GetStatistics", "{}", "io.vmmd.Balloon.GuestCannot");
        refuses(&f, "GetWorkingSet", "{}", "io.vmmd.Balloon.GuestCannot");
        refuses(&f, "HintFreePages", "{}", "io.vmmd.Balloon.GuestCannot");
        refuses(&f, "ConfigureWorkingSet", "{\"intervals\":[1,2,3],\"refreshThreshold\":1,\"reportThreshold\":1}",
                "io.vmmd.Balloon.GuestCannot");
        assert_balloon(&f, "target", MIB(1));
        set_target(&f, 5);
        o = call(&f, "Describe", "{}");
        assert_false(json_object_get_boolean(at(o, "parameters.balloon.driver")));
        assert_int_equal(json_object_array_length(at(o, "parameters.balloon.features")), 0);
        json_object_put(o);
        down(&f);
}

static void what_was_not_negotiated_the_guest_cannot(void **state) {
        Fixture f = {};
        json_object *o;

        make_directory(&f);
        fe_spawn(&f.fe, (const char *const[]) { "balloon", f.argument, "--free-page-reporting=no", "--deflate-on-oom=no", NULL });
        start_driver(&f, FEATURE(VIRTIO_BALLOON_F_STATS_VQ) | POISON, 2);
        assert_false(f.fe.features & (FEATURE(VIRTIO_BALLOON_F_REPORTING) | FEATURE(VIRTIO_BALLOON_F_DEFLATE_ON_OOM) |
                FEATURE(VIRTIO_BALLOON_F_FREE_PAGE_HINT) | FEATURE(F_WS_REPORTING)));
        refuses(&f, "GetStatistics", "{}", "io.vmmd.Balloon.GuestCannot");
        refuses(&f, "HintFreePages", "{}", "io.vmmd.Balloon.GuestCannot");
        o = call(&f, "Describe", "{}");
        assert_string_equal(json_object_to_json_string_ext(at(o, "parameters.balloon.features"), JSON_C_TO_STRING_PLAIN), "[\"mustTellHost\"]");
        json_object_put(o);
        down(&f);
}

static void pages_that_are_no_guest_memory_are_passed_over(void **state) {
        uint32_t pages[] = { 0, UINT32_MAX, pfn(3), 1, pfn(0) - 1 - (uint32_t) (PAGES / PAGE), pfn((FE_RAM_SIZE - PAGES) / PAGE), UINT32_MAX - 1 };
        Fixture f = {};
        uint64_t before;

        up(&f);
        touch(&f, 0, 8);
        before = blocks(&f);
        send_list(&f, INFLATE, pages, ELEMENTSOF(pages));
        assert_int_equal(blocks(&f), before - 1);
        assert_int_equal(counter(&f, "refusedPages"), ELEMENTSOF(pages) - 1);
        assert_int_equal(counter(&f, "inflatedBytes"), PAGE);
        assert_true(is_blank(&f, 3));
        assert_false(is_blank(&f, 4));
        down(&f);
}

static void a_list_that_is_too_long_breaks_the_device(void **state) {
        Fixture f = {};

        up(&f);
        /* The same MiB over and over. */
        for (uint16_t i = 0; i < 4; i++)
                fe_desc(&f.fe, INFLATE, i, FE_ADDRESS(PAGES), MIB(1), i < 3 ? VRING_DESC_F_NEXT : 0, (uint16_t) (i + 1));
        fe_offer(&f.fe, INFLATE, 0);
        fe_kick(&f.fe, INFLATE);
        fe_expect_broken(&f.fe, INFLATE);
        assert_balloon(&f, "actual", 0);
        down(&f);
}

/* The longest there may be. Each turn ends with a signal, where the driver asks for all of them. */
static void long_lists_have_a_turn_each(void **state) {
        Fixture f = {};

        make_directory(&f);
        fe_spawn(&f.fe, (const char *const[]) { "balloon", f.argument, "--free-page-hinting=yes", NULL });
        start_driver(&f, POISON | FEATURE(VIRTIO_RING_F_EVENT_IDX), 5);
        for (uint16_t i = 0; i < 4; i++) {
                fe_desc(&f.fe, INFLATE, i, FE_ADDRESS(PAGES), KIB(256), 0, 0);
                fe_offer(&f.fe, INFLATE, i);
        }
        fe_kick(&f.fe, INFLATE);
        for (unsigned i = 0; i < 6000 && __atomic_load_n(&f.fe.queues[INFLATE].used->idx, __ATOMIC_ACQUIRE) < 4; i++)
                (void) usleep(10000);
        assert_int_equal(counter(&f, "refusedPages"), 4 * 64); /* one of each batch: all are page 0 */
        assert_int_equal(fe_eventfd(f.fe.queues[INFLATE].call, 0), 4);
        down(&f);
}

static void a_part_of_an_entry_is_no_entry(void **state) {
        uint32_t pages[] = { pfn(1), pfn(2) };
        Fixture f = {};

        up(&f);
        touch(&f, 0, 4);
        memcpy(f.fe.ram + BUFFER(INFLATE), pages, sizeof(pages));
        fe_desc(&f.fe, INFLATE, 0, FE_ADDRESS(BUFFER(INFLATE)), sizeof(pages) - 1, 0, 0);
        fe_offer(&f.fe, INFLATE, 0);
        fe_kick(&f.fe, INFLATE);
        (void) fe_wait(&f.fe, INFLATE);
        assert_true(is_blank(&f, 1));
        assert_false(is_blank(&f, 2));
        down(&f);
}

static void a_guest_that_sends_no_statistics_is_given_up(void **state) {
        uint64_t begun = now_usec();
        json_object *o;
        Fixture f = {};

        up(&f);
        o = call(&f, "GetStatistics", "{}");
        assert_in_range(now_usec() - begun, 4 * USEC_PER_SEC, 60 * USEC_PER_SEC);
        assert_int_equal(number(o, "parameters.timeout"), 5 * USEC_PER_SEC);
        assert_error(o, "io.vmmd.Balloon.GuestDoesNotAnswer");
        down(&f);
}

static void a_broken_statistics_queue_breaks_the_device(void **state) {
        Fixture f = {};
        int fd;

        up(&f);
        fe_desc(&f.fe, STATISTICS, 0, 0x10, 10, 0, 0); /* no such memory */
        fe_offer(&f.fe, STATISTICS, 0);
        fe_kick(&f.fe, STATISTICS);
        fd = begin(&f, "GetStatistics", "{}");
        fe_expect_broken(&f.fe, STATISTICS);
        assert_error(must_hear(fd), "io.vmmd.Balloon.GuestCannot");
        (void) close(fd);
        down(&f);
}

static void a_poison_keeps_reported_pages_where_they_are(void **state) {
        uint32_t poison = 0xaaaaaaaa;
        uint64_t before;
        Fixture f = {};

        make_directory(&f);
        fe_spawn(&f.fe, (const char *const[]) { "balloon", f.argument, NULL });
        fe_negotiate(&f.fe, 0);
        assert_int_equal(fe_set_config(&f.fe, offsetof(struct virtio_balloon_config, poison_val), &poison, sizeof(poison)), 0);
        start_queues(&f, 4);
        touch(&f, 0, 512);
        before = blocks(&f);
        fe_desc(&f.fe, 3, 0, FE_ADDRESS(PAGES), (uint32_t) (512 * PAGE), VRING_DESC_F_WRITE, 0);
        fe_offer(&f.fe, 3, 0);
        fe_kick(&f.fe, 3);
        (void) fe_wait(&f.fe, 3);
        assert_int_equal(blocks(&f), before);
        assert_false(is_blank(&f, 100));
        assert_balloon(&f, "reported", 0);

        /* Zeroes are what a hole has anyway. */
        fe_set_u64(&f.fe, VHOST_USER_SET_STATUS, 0);
        start_driver(&f, 0, 4);
        fe_desc(&f.fe, 3, 0, FE_ADDRESS(PAGES), (uint32_t) (512 * PAGE), VRING_DESC_F_WRITE, 0);
        fe_offer(&f.fe, 3, 0);
        fe_kick(&f.fe, 3);
        (void) fe_wait(&f.fe, 3);
        assert_balloon(&f, "reported", 512 * PAGE);
        down(&f);
}

/* ---- the balloon ---- */

static void inflation_frees_scattered_and_adjacent_pages(void **state) {
        uint32_t pages[40];
        uint64_t before;
        Fixture f = {};

        up(&f);
        touch(&f, 0, 64);
        before = blocks(&f);
        for (uint32_t i = 0; i < 20; i++) { /* 20 adjacent ones, last first, and each second one of others */
                pages[i] = pfn(19 - i);
                pages[20 + i] = pfn(24 + 2 * i);
        }
        send_list(&f, INFLATE, pages, 40);
        assert_int_equal(blocks(&f), before - 40);
        assert_int_equal(counter(&f, "inflatedBytes"), 40 * PAGE);
        for (uint64_t i = 0; i < 64; i++)
                if (is_blank(&f, i) != (i < 20 || (i >= 24 && i % 2 == 0 && i < 64)))
                        fail_msg("page %llu", (unsigned long long) i);
        send_list(&f, DEFLATE, pages, 40);
        assert_int_equal(counter(&f, "deflatedBytes"), 40 * PAGE);
        down(&f);
}

static void a_page_named_twice_is_freed_once(void **state) {
        uint32_t pages[] = { pfn(5), pfn(5), pfn(5) };
        uint64_t before;
        Fixture f = {};

        up(&f);
        touch(&f, 0, 8);
        before = blocks(&f);
        send_list(&f, INFLATE, pages, ELEMENTSOF(pages));
        assert_int_equal(blocks(&f), before - 1);
        assert_int_equal(counter(&f, "inflatedBytes"), PAGE);
        down(&f);
}

static void a_whole_gigabytes_worth_of_lists_is_taken(void **state) {
        uint32_t pages[4096];
        Fixture f = {};

        up(&f);
        for (uint32_t i = 0; i < 4096; i++)
                pages[i] = pfn(i % 1024);
        for (unsigned i = 0; i < 64; i++)
                send_list(&f, INFLATE, pages, 4096);
        assert_true(fe_alive(&f.fe));
        down(&f);
}

static void a_target_reaches_the_guest_and_its_answer_whoever_waits(void **state) {
        json_object *o;
        Fixture f = {};
        int fd, events;

        up(&f);
        events = subscribe(&f);
        fd = begin(&f, "SetTarget", "{\"target\":1052671,\"wait\":true}"); /* 257 pages less a byte: rounded down */
        json_object_put(event(events, "target"));
        assert_true(fe_config_changed(&f.fe, 30000));
        assert_int_equal(config(&f).num_pages, 256);
        write_actual(&f, 100);
        o = event(events, "actual");
        assert_int_equal(number(o, "parameters.balloon.actual"), 100 * PAGE);
        json_object_put(o);
        assert_null(hear(fd, 100));
        write_actual(&f, 256);
        o = must_hear(fd);
        assert_int_equal(number(o, "parameters.balloon.actual"), 256 * PAGE);
        assert_int_equal(number(o, "parameters.balloon.target"), 256 * PAGE);
        json_object_put(o);
        do {
                o = event(events, "actual");
                if (number(o, "parameters.balloon.actual") == 256 * (int64_t) PAGE)
                        break;
                json_object_put(o);
        } while (true);
        json_object_put(o);

        /* It is there already. */
        o = call(&f, "SetTarget", "{\"target\":1048576,\"wait\":true}");
        assert_int_equal(number(o, "parameters.balloon.actual"), MIB(1));
        json_object_put(o);
        (void) close(fd);
        (void) close(events);
        down(&f);
}

static void a_later_target_supersedes_the_one_that_is_waited_for(void **state) {
        json_object *o;
        Fixture f = {};
        int first, second, same;

        up(&f);
        first = begin(&f, "SetTarget", "{\"target\":4096,\"wait\":true}");
        assert_true(fe_config_changed(&f.fe, 30000));
        second = begin(&f, "SetTarget", "{\"target\":8192,\"wait\":true}");
        o = must_hear(first);
        assert_int_equal(number(o, "parameters.target"), 8192);
        assert_error(o, "io.vmmd.Balloon.TargetSuperseded");

        /* The same one again is no other. */
        same = begin(&f, "SetTarget", "{\"target\":8192,\"wait\":true}");
        assert_null(hear(second, 100));
        write_actual(&f, 2);
        json_object_put(must_hear(second));
        json_object_put(must_hear(same));
        (void) close(first);
        (void) close(second);
        (void) close(same);
        down(&f);
}

static void who_waits_may_go_away(void **state) {
        Fixture f = {};

        up(&f);
        for (unsigned i = 0; i < 10; i++)
                (void) close(begin(&f, "SetTarget", "{\"target\":4096,\"wait\":true}"));
        write_actual(&f, 1);
        assert_balloon(&f, "actual", PAGE);
        down(&f);
}

/* A front-end may write all of configuration space; and a driver of old, byte by byte, the last one last. */
static void other_ways_to_write_the_actual_size_are_understood(void **state) {
        struct virtio_balloon_config c = { .num_pages = 77, .actual = 0x01020304, .free_page_hint_cmd_id = 99 };
        uint8_t bytes[] = { 0x10, 0x20, 0, 0 };
        Fixture f = {};

        up(&f);
        assert_int_equal(fe_set_config(&f.fe, 0, &c, sizeof(c)), 0);
        assert_balloon(&f, "actual", 0x01020304 * (int64_t) PAGE);
        assert_balloon(&f, "target", 0);
        assert_int_equal(config(&f).free_page_hint_cmd_id, VIRTIO_BALLOON_CMD_ID_DONE);
        for (uint32_t i = 0; i < 4; i++)
                assert_int_equal(fe_set_config(&f.fe, 4 + i, &bytes[i], 1), 0);
        assert_balloon(&f, "actual", 0x2010 * (int64_t) PAGE);
        down(&f);
}

static void a_fall_without_being_asked_is_a_deflation_on_oom(void **state) {
        json_object *o;
        Fixture f = {};
        int events;

        up(&f);
        events = subscribe(&f);
        set_target(&f, 1000);
        (void) config(&f);
        write_actual(&f, 1000);
        write_actual(&f, 744);
        o = event(events, "deflatedOnOom");
        assert_int_equal(number(o, "parameters.balloon.oomDeflations"), 1);
        assert_int_equal(number(o, "parameters.balloon.actual"), 744 * PAGE);
        json_object_put(o);
        assert_int_equal(counter(&f, "oomDeflations"), 1);

        /* The same target once more tells the guest to try again. */
        while (fe_config_changed(&f.fe, 50))
                ;
        set_target(&f, 1000);
        assert_true(fe_config_changed(&f.fe, 30000));
        (void) close(events);
        down(&f);
}

static void a_fall_that_was_asked_for_is_none(void **state) {
        Fixture f = {};

        up(&f);
        set_target(&f, 1000);
        (void) config(&f);
        write_actual(&f, 1000);
        set_target(&f, 500);
        (void) config(&f);
        write_actual(&f, 744);
        /* It is still on its way when the target is raised, of which it does not know yet. */
        set_target(&f, 2000);
        write_actual(&f, 500);
        assert_balloon(&f, "oomDeflations", 0);
        /* Now it does. */
        (void) config(&f);
        write_actual(&f, 499);
        assert_balloon(&f, "oomDeflations", 1);
        down(&f);
}

static void without_the_feature_there_is_no_deflation_on_oom(void **state) {
        Fixture f = {};

        make_directory(&f);
        fe_spawn(&f.fe, (const char *const[]) { "balloon", f.argument, NULL });
        start_driver(&f, POISON | FEATURE(VIRTIO_BALLOON_F_DEFLATE_ON_OOM), 4);
        set_target(&f, 1000);
        (void) config(&f);
        write_actual(&f, 1000);
        write_actual(&f, 744);
        assert_balloon(&f, "actual", 744 * (int64_t) PAGE);
        assert_balloon(&f, "oomDeflations", 0);
        down(&f);
}

/* ---- huge pages ---- */

#define HUGE MIB(2)

/* With guest memory of huge pages; false where the host has none reserved. */
static bool up_huge(Fixture *f, uint64_t without) {
        int fd = guest_memory_create_fd(FE_RAM_SIZE, HUGE);
        void *p;

        if (fd < 0) {
                print_message("# SKIPPED, for want of huge pages\n");
                return false;
        }
        p = mmap(NULL, FE_RAM_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (p == MAP_FAILED) {
                (void) close(fd);
                print_message("# SKIPPED, for want of huge pages\n");
                return false;
        }
        make_directory(f);
        fe_spawn(&f->fe, (const char *const[]) { "balloon", f->argument, "--free-page-hinting=yes", NULL });
        (void) munmap(f->fe.ram, FE_RAM_SIZE);
        (void) close(f->fe.ram_fd);
        f->fe.ram = p;
        f->fe.ram_fd = fd;
        start_driver(f, POISON | without, 5);
        return true;
}

/* Lists the pages [first, first + n) of the area. */
static void send_range(Fixture *f, unsigned queue, uint32_t first, uint32_t n) {
        uint32_t pages[512];

        for (uint32_t i = 0; i < n; i++)
                pages[i] = pfn(first + i);
        send_list(f, queue, pages, n);
}

static void a_huge_page_goes_when_all_of_it_is_in_the_balloon(void **state) {
        uint64_t before;
        Fixture f = {};

        if (!up_huge(&f, 0))
                return;
        touch(&f, 0, 1024);
        before = blocks(&f);
        send_range(&f, INFLATE, 0, 300);
        send_range(&f, INFLATE, 600, 300); /* a part of the second one */
        assert_int_equal(blocks(&f), before);
        send_range(&f, DEFLATE, 10, 1); /* one page is needed after all */
        send_range(&f, INFLATE, 300, 212);
        assert_int_equal(blocks(&f), before);
        assert_false(is_blank(&f, 10));
        send_range(&f, INFLATE, 10, 1);
        assert_int_equal(blocks(&f), before - 512);
        assert_true(is_blank(&f, 10));
        assert_false(is_blank(&f, 700));

        /* Reports are of whole ones; what goes beyond stays. */
        fe_desc(&f.fe, REPORTING, 0, FE_ADDRESS(PAGES + 2 * HUGE - PAGE), (uint32_t) (HUGE + 2 * PAGE), VRING_DESC_F_WRITE, 0);
        touch(&f, 1024, 513);
        before = blocks(&f);
        fe_offer(&f.fe, REPORTING, 0);
        fe_kick(&f.fe, REPORTING);
        (void) fe_wait(&f.fe, REPORTING);
        assert_int_equal(blocks(&f), before - 512);
        assert_false(is_blank(&f, 1023));
        assert_balloon(&f, "reported", (int64_t) HUGE);
        down(&f);
}

/* Who does not tell beforehand may be using a page of which we think that it is in the balloon. */
static void a_driver_that_does_not_tell_keeps_its_huge_pages(void **state) {
        uint64_t before;
        Fixture f = {};

        if (!up_huge(&f, FEATURE(VIRTIO_BALLOON_F_MUST_TELL_HOST)))
                return;
        touch(&f, 0, 512);
        before = blocks(&f);
        send_range(&f, INFLATE, 0, 512);
        assert_int_equal(blocks(&f), before);
        assert_false(is_blank(&f, 0));
        down(&f);
}

/* ---- queues ---- */

static void report_pages(Fixture *f, unsigned queue) {
        uint64_t before;

        touch(f, 0, 512);
        before = blocks(f);
        fe_desc(&f->fe, queue, 0, FE_ADDRESS(PAGES + PAGE / 2), (uint32_t) (256 * PAGE), VRING_DESC_F_WRITE | VRING_DESC_F_NEXT, 1);
        fe_desc(&f->fe, queue, 1, FE_ADDRESS(PAGES + 300 * PAGE), (uint32_t) (100 * PAGE), VRING_DESC_F_WRITE, 0);
        fe_offer(&f->fe, queue, 0);
        fe_kick(&f->fe, queue);
        (void) fe_wait(&f->fe, queue);
        /* The first has a part of a page at either end. */
        assert_int_equal(blocks(f), before - 255 - 100);
        assert_false(is_blank(f, 0));
        assert_false(is_blank(f, 256));
        assert_true(is_blank(f, 1));
        assert_balloon(f, "reported", 355 * PAGE);
}

static void reported_pages_are_freed(void **state) {
        Fixture f = {};

        up(&f);
        report_pages(&f, REPORTING);
        down(&f);
}

static void queues_are_counted_without_those_that_do_not_exist(void **state) {
        Fixture f = {};

        make_directory(&f);
        fe_spawn(&f.fe, (const char *const[]) { "balloon", f.argument, "--free-page-hinting=yes", NULL });
        start_driver(&f, POISON | FEATURE(VIRTIO_BALLOON_F_STATS_VQ) | FEATURE(VIRTIO_BALLOON_F_FREE_PAGE_HINT), 3);
        report_pages(&f, 2);
        down(&f);
}

static void queues_by_the_letter_of_the_specification_work_too(void **state) {
        Fixture f = {};

        make_directory(&f);
        fe_spawn(&f.fe, (const char *const[]) { "balloon", f.argument, "--free-page-hinting=yes", NULL });
        fe_negotiate(&f.fe, POISON | FEATURE(VIRTIO_BALLOON_F_STATS_VQ) | FEATURE(VIRTIO_BALLOON_F_FREE_PAGE_HINT));
        fe_set_mem_table(&f.fe);
        fe_start_queue(&f.fe, 0, NUM);
        fe_start_queue(&f.fe, 1, NUM);
        fe_start_queue(&f.fe, 4, NUM);
        driver_ok(&f);
        wait_for_driver(&f);
        report_pages(&f, 4);
        down(&f);
}

/* ---- statistics ---- */

/* Answers one request: takes the stale buffer back, and offers another. */
static void answer_statistics(Fixture *f, const void *entries, uint32_t size) {
        (void) fe_wait(&f->fe, STATISTICS);
        offer_statistics(f, STATISTICS, entries, size);
}

static void every_tag_has_its_name(void **state) {
        static const char *const names[] = {
                "swapIn", "swapOut", "majorFaults", "minorFaults", "freeMemory", "totalMemory", "availableMemory", "diskCaches",
                "hugetlbAllocations", "hugetlbFailures", "oomKills", "allocationStalls", "asyncScans", "directScans", "asyncReclaims",
                "directReclaims",
        };
        struct virtio_balloon_stat entries[48];
        json_object *o, *other;
        Fixture f = {};
        char path[80];
        size_t n = 0;
        int fd;

        up(&f);
        entries[0] = entry(VIRTIO_BALLOON_S_MEMFREE, 666);
        offer_statistics(&f, STATISTICS, entries, sizeof(entries[0])); /* what the driver starts with is stale */

        for (uint16_t i = 0; i < 16; i++)
                entries[n++] = entry((uint16_t) (15 - i), 1000 + (uint64_t) (15 - i));
        entries[n++] = entry(65534, 77);
        entries[n++] = entry(65535, UINT64_MAX); /* more than an integer of Varlink holds */
        for (uint16_t i = 0; i < 20; i++) /* and more unknown ones than anybody wants to know */
                entries[n++] = entry((uint16_t) (100 + i), i);
        entries[n++] = entry(100, 55);
        fd = begin(&f, "GetStatistics", "{}");
        answer_statistics(&f, entries, (uint32_t) (n * sizeof(entries[0])));
        o = must_hear(fd);
        for (unsigned i = 0; i < 16; i++) {
                (void) snprintf(path, sizeof(path), "parameters.statistics.%s", names[i]);
                assert_int_equal(number(o, path), 1000 + i);
        }
        assert_int_equal(number(o, "parameters.statistics.sharedMemory"), 77);
        assert_int_equal(number(o, "parameters.statistics.unevictableMemory"), INT64_MAX);
        assert_in_range(number(o, "parameters.statistics.age"), 0, 60 * USEC_PER_SEC);
        other = at(o, "parameters.statistics.other");
        assert_int_equal(json_object_object_length(other), 16);
        assert_int_equal(number(other, "100"), 55);
        assert_int_equal(number(other, "115"), 15);
        assert_null(at(other, "116"));
        assert_int_equal(number(o, "parameters.balloon.actual"), 0);
        json_object_put(o);
        (void) close(fd);
        down(&f);
}

static void what_the_guest_leaves_out_is_left_out(void **state) {
        struct virtio_balloon_stat entries[] = { entry(VIRTIO_BALLOON_S_MEMFREE, 1), entry(VIRTIO_BALLOON_S_MEMTOT, 2) };
        json_object *o;
        Fixture f = {};
        int fd;

        up(&f);
        offer_statistics(&f, STATISTICS, entries, sizeof(entries));
        fd = begin(&f, "GetStatistics", "{}");
        answer_statistics(&f, entries, sizeof(entries) - 1); /* the second is cut off */
        o = must_hear(fd);
        assert_int_equal(number(o, "parameters.statistics.freeMemory"), 1);
        assert_null(at(o, "parameters.statistics.totalMemory"));
        assert_null(at(o, "parameters.statistics.other"));
        json_object_put(o);
        (void) close(fd);
        down(&f);
}

static void who_asks_at_the_same_time_gets_the_same_answer(void **state) {
        struct virtio_balloon_stat entries[] = { entry(VIRTIO_BALLOON_S_MEMFREE, 1) };
        int fds[5];
        json_object *o;
        Fixture f = {};

        up(&f);
        offer_statistics(&f, STATISTICS, entries, sizeof(entries));
        for (size_t i = 0; i < ELEMENTSOF(fds); i++)
                fds[i] = begin(&f, "GetStatistics", "{}");
        assert_balloon(&f, "target", 0); /* they have arrived */
        entries[0].val = 2;
        answer_statistics(&f, entries, sizeof(entries));
        for (size_t i = 0; i < ELEMENTSOF(fds); i++) {
                o = must_hear(fds[i]);
                assert_int_equal(number(o, "parameters.statistics.freeMemory"), 2);
                json_object_put(o);
                (void) close(fds[i]);
        }
        assert_int_equal(counter(&f, "statistics"), 1);

        /* Old enough for who does not mind; and for the others anew. */
        o = call(&f, "GetStatistics", "{\"maximumAge\":60000000}");
        assert_int_equal(number(o, "parameters.statistics.freeMemory"), 2);
        json_object_put(o);
        assert_int_equal(counter(&f, "statistics"), 1);
        fds[0] = begin(&f, "GetStatistics", "{\"maximumAge\":0}");
        entries[0].val = 3;
        answer_statistics(&f, entries, sizeof(entries));
        o = must_hear(fds[0]);
        assert_int_equal(number(o, "parameters.statistics.freeMemory"), 3);
        json_object_put(o);
        (void) close(fds[0]);
        down(&f);
}

/* The ring is stopped with the buffer in our hands: the guest gets it back, and can be asked again. */
static void statistics_survive_a_pause(void **state) {
        struct virtio_balloon_stat entries[] = { entry(VIRTIO_BALLOON_S_MEMFREE, 1) };
        uint32_t base;
        json_object *o;
        Fixture f = {};
        int fd;

        up(&f);
        offer_statistics(&f, STATISTICS, entries, sizeof(entries));
        fd = begin(&f, "GetStatistics", "{}");
        answer_statistics(&f, entries, sizeof(entries));
        json_object_put(must_hear(fd));
        (void) close(fd);

        base = fe_stop_queue(&f.fe, STATISTICS);
        fe_send_queue(&f.fe, STATISTICS, (uint16_t) base);
        answer_statistics(&f, entries, sizeof(entries));
        wait_until_served(&f);
        fd = begin(&f, "GetStatistics", "{}");
        entries[0].val = 4;
        answer_statistics(&f, entries, sizeof(entries));
        o = must_hear(fd);
        assert_int_equal(number(o, "parameters.statistics.freeMemory"), 4);
        json_object_put(o);
        (void) close(fd);
        down(&f);
}

/* ---- hinting ---- */

static void send_id(Fixture *f, uint32_t id) {
        memcpy(f->fe.ram + BUFFER(HINTING), &id, sizeof(id));
        fe_desc(&f->fe, HINTING, 0, FE_ADDRESS(BUFFER(HINTING)), sizeof(id), 0, 0);
        fe_offer(&f->fe, HINTING, 0);
        fe_kick(&f->fe, HINTING);
        (void) fe_wait(&f->fe, HINTING);
}

static void send_hint(Fixture *f, uint64_t page, uint64_t n) {
        fe_desc(&f->fe, HINTING, 0, FE_ADDRESS(PAGES + page * PAGE), (uint32_t) (n * PAGE), VRING_DESC_F_WRITE, 0);
        fe_offer(&f->fe, HINTING, 0);
        fe_kick(&f->fe, HINTING);
        (void) fe_wait(&f->fe, HINTING);
}

static void hinted_pages_are_freed_under_the_right_number_only(void **state) {
        uint32_t id, before;
        json_object *o;
        Fixture f = {};
        int fd;

        up(&f);
        touch(&f, 0, 64);
        send_id(&f, 2); /* nobody has asked */
        send_hint(&f, 0, 8);
        assert_false(is_blank(&f, 0));

        fd = begin(&f, "HintFreePages", "{}");
        assert_true(fe_config_changed(&f.fe, 30000));
        id = config(&f).free_page_hint_cmd_id;
        assert_in_range(id, 2, UINT32_MAX);
        send_hint(&f, 0, 8); /* before the number */
        send_id(&f, id + 1);
        send_hint(&f, 8, 8); /* under another */
        assert_false(is_blank(&f, 0));
        assert_false(is_blank(&f, 8));
        send_id(&f, id);
        before = (uint32_t) blocks(&f);
        send_hint(&f, 16, 8);
        send_hint(&f, 32, 4);
        assert_int_equal(blocks(&f), before - 12);
        assert_null(hear(fd, 50));
        send_id(&f, VIRTIO_BALLOON_CMD_ID_STOP);
        o = must_hear(fd);
        assert_int_equal(number(o, "parameters.freed"), 12 * PAGE);
        json_object_put(o);
        assert_int_equal(config(&f).free_page_hint_cmd_id, VIRTIO_BALLOON_CMD_ID_DONE);
        send_hint(&f, 40, 8); /* too late */
        assert_false(is_blank(&f, 40));
        (void) close(fd);

        /* Another round has another number. */
        fd = begin(&f, "HintFreePages", "{}");
        assert_true(fe_config_changed(&f.fe, 30000));
        while (config(&f).free_page_hint_cmd_id == VIRTIO_BALLOON_CMD_ID_DONE)
                assert_true(fe_config_changed(&f.fe, 30000));
        assert_int_not_equal(config(&f).free_page_hint_cmd_id, id);
        (void) close(fd);
        down(&f);
}

/* ---- working set ---- */

typedef struct WorkingSetEntry {
        uint16_t tag, node_id;
        uint8_t reserved[4];
        uint64_t idle_age_ms, bytes[2];
} WorkingSetEntry;

/* Queues: inflate, deflate, statistics, reporting, data, operations. */
enum { WS_DATA = 4, WS_OPERATION = 5 };

static void up_with_working_set(Fixture *f) {
        make_directory(f);
        fe_spawn(&f->fe, (const char *const[]) { "balloon", f->argument, "--working-set=yes", "--working-set-buckets=3", NULL });
        start_driver(f, POISON, 6);
}

static void offer_operation_buffer(Fixture *f, uint32_t size) {
        memset(f->fe.ram + BUFFER(WS_OPERATION), 0xff, 64);
        fe_desc(&f->fe, WS_OPERATION, 0, FE_ADDRESS(BUFFER(WS_OPERATION)), size, VRING_DESC_F_WRITE, 0);
        fe_offer(&f->fe, WS_OPERATION, 0);
        fe_kick(&f->fe, WS_OPERATION);
}

static void send_report(Fixture *f, const WorkingSetEntry *entries, size_t n) {
        memcpy(f->fe.ram + BUFFER(WS_DATA), entries, n * sizeof(*entries));
        fe_desc(&f->fe, WS_DATA, 0, FE_ADDRESS(BUFFER(WS_DATA)), (uint32_t) (n * sizeof(*entries)), 0, 0);
        fe_offer(&f->fe, WS_DATA, 0);
        fe_kick(&f->fe, WS_DATA);
        (void) fe_wait(&f->fe, WS_DATA);
}

static void configurations_that_do_not_fit_are_refused(void **state) {
        static const char *const wrong[] = {
                "{\"intervals\":[1],\"refreshThreshold\":1,\"reportThreshold\":1}",
                "{\"intervals\":[1,2,3],\"refreshThreshold\":1,\"reportThreshold\":1}",
                "{\"intervals\":[2,1],\"refreshThreshold\":1,\"reportThreshold\":1}",
                "{\"intervals\":[2,2],\"refreshThreshold\":1,\"reportThreshold\":1}",
                "{\"intervals\":[-1,2],\"refreshThreshold\":1,\"reportThreshold\":1}",
                "{\"intervals\":[1,4294967296],\"refreshThreshold\":1,\"reportThreshold\":1}",
                "{\"intervals\":[1,2],\"refreshThreshold\":-1,\"reportThreshold\":1}",
                "{\"intervals\":[1,2],\"refreshThreshold\":1,\"reportThreshold\":4294967296}",
        };
        Fixture f = {};

        up_with_working_set(&f);
        for (size_t i = 0; i < ELEMENTSOF(wrong); i++)
                refuses(&f, "ConfigureWorkingSet", wrong[i], "org.varlink.service.InvalidParameter");
        down(&f);
}

static void an_operation_buffer_that_is_too_small_breaks_the_device(void **state) {
        Fixture f = {};
        int fd;

        up_with_working_set(&f);
        offer_operation_buffer(&f, 1);
        fd = begin(&f, "GetWorkingSet", "{}");
        fe_expect_broken(&f.fe, WS_OPERATION);
        assert_error(must_hear(fd), "io.vmmd.Balloon.GuestCannot");
        (void) close(fd);
        down(&f);
}

static void a_working_set_is_asked_for_and_configured(void **state) {
        static const WorkingSetEntry report[] = {
                { .idle_age_ms = 1000, .bytes = { 11, 12 } },
                { .idle_age_ms = 5000, .bytes = { 21, 22 } },
                { .idle_age_ms = UINT64_MAX, .bytes = { 31, UINT64_MAX } },
        };
        static const uint8_t configured[] = { 2, 0, 0xe8, 3, 0, 0, 0x88, 0x13, 0, 0, 7, 0, 0, 0, 8, 0, 0, 0 };
        json_object *o;
        Fixture f = {};
        uint8_t bins;
        uint8_t all[20];
        int fd, events;

        up_with_working_set(&f);
        fe_get_config(&f.fe, all, sizeof(all));
        bins = all[16];
        assert_int_equal(bins, 3);
        events = subscribe(&f);

        fd = begin(&f, "ConfigureWorkingSet", "{\"intervals\":[1000,5000],\"refreshThreshold\":7,\"reportThreshold\":8}");
        assert_null(hear(fd, 50));
        offer_operation_buffer(&f, 64);
        assert_int_equal(fe_wait(&f.fe, WS_OPERATION).len, sizeof(configured));
        assert_memory_equal(f.fe.ram + BUFFER(WS_OPERATION), configured, sizeof(configured));
        o = must_hear(fd);
        assert_null(at(o, "error"));
        json_object_put(o);
        (void) close(fd);

        /* By itself. */
        send_report(&f, report, 1);
        o = event(events, "workingSet");
        assert_int_equal(json_object_array_length(at(o, "parameters.workingSet")), 1);
        json_object_put(o);

        offer_operation_buffer(&f, 64);
        fd = begin(&f, "GetWorkingSet", "{}");
        assert_int_equal(fe_wait(&f.fe, WS_OPERATION).len, 2);
        assert_int_equal(load_le16(f.fe.ram + BUFFER(WS_OPERATION)), 1);
        send_report(&f, report, ELEMENTSOF(report));
        o = must_hear(fd);
        assert_string_equal(json_object_to_json_string_ext(at(o, "parameters.workingSet"), JSON_C_TO_STRING_PLAIN),
                "[{\"age\":1000,\"fileBytes\":11,\"anonymousBytes\":12},{\"age\":5000,\"fileBytes\":21,\"anonymousBytes\":22},"
                "{\"fileBytes\":31,\"anonymousBytes\":9223372036854775807}]");
        json_object_put(o);
        (void) close(fd);
        (void) close(events);
        down(&f);
}

static void the_next_driver_is_told_the_configuration_again(void **state) {
        Fixture f = {};
        int fd;

        up_with_working_set(&f);
        offer_operation_buffer(&f, 64);
        fd = begin(&f, "ConfigureWorkingSet", "{\"intervals\":[1000,5000],\"refreshThreshold\":7,\"reportThreshold\":8}");
        json_object_put(must_hear(fd));
        (void) close(fd);
        fe_set_u64(&f.fe, VHOST_USER_SET_STATUS, 0);
        start_driver(&f, POISON, 6);
        offer_operation_buffer(&f, 64);
        assert_int_equal(fe_wait(&f.fe, WS_OPERATION).len, 18);
        down(&f);
}

/* ---- life ---- */

static void a_reset_empties_the_balloon_and_keeps_the_target(void **state) {
        struct virtio_balloon_stat entries[] = { entry(VIRTIO_BALLOON_S_MEMFREE, 1) };
        json_object *o;
        Fixture f = {};
        int events, waiting, statistics;

        up(&f);
        events = subscribe(&f);
        set_target(&f, 10);
        write_actual(&f, 10);
        waiting = begin(&f, "SetTarget", "{\"target\":81920,\"wait\":true}");
        statistics = begin(&f, "GetStatistics", "{}");
        assert_balloon(&f, "target", 20 * PAGE);
        fe_set_u64(&f.fe, VHOST_USER_SET_STATUS, 0);
        o = event(events, "driver");
        assert_false(json_object_get_boolean(at(o, "parameters.balloon.driver")));
        assert_int_equal(number(o, "parameters.balloon.actual"), 0);
        assert_int_equal(number(o, "parameters.balloon.target"), 20 * PAGE);
        assert_int_equal(number(o, "parameters.balloon.oomDeflations"), 0);
        json_object_put(o);
        assert_error(must_hear(statistics), "io.vmmd.Balloon.GuestCannot");

        start_driver(&f, POISON, 5);
        o = event(events, "driver");
        assert_true(json_object_get_boolean(at(o, "parameters.balloon.driver")));
        json_object_put(o);
        assert_int_equal(config(&f).num_pages, 20);
        assert_int_equal(config(&f).actual, 0);
        write_actual(&f, 20);
        json_object_put(must_hear(waiting));
        offer_statistics(&f, STATISTICS, entries, sizeof(entries));
        (void) close(waiting);
        (void) close(statistics);
        (void) close(events);
        down(&f);
}

/* A pause is no reset. */
static void a_pause_keeps_the_balloon(void **state) {
        uint32_t bases[5];
        Fixture f = {};

        up(&f);
        set_target(&f, 10);
        write_actual(&f, 10);
        for (unsigned i = 0; i < 5; i++)
                bases[i] = fe_stop_queue(&f.fe, i);
        assert_balloon(&f, "actual", 10 * PAGE);
        for (unsigned i = 0; i < 5; i++)
                fe_send_queue(&f.fe, i, (uint16_t) bases[i]);
        wait_until_served(&f);
        assert_balloon(&f, "actual", 10 * PAGE);
        down(&f);
}

/* What the service manager keeps: a socket for notifications, from which the descriptor with that name is taken. */
static int notify_socket(Fixture *f, char *path, size_t size) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

        (void) snprintf(path, size, "%s/notify", f->directory);
        (void) snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
        assert_return_code(fd, errno);
        assert_return_code(bind(fd, (struct sockaddr *) &address, sizeof(address)), errno);
        assert_return_code(setenv("NOTIFY_SOCKET", path, 1), errno);
        return fd;
}

static int take_stored(int notify, const char *expected) {
        char text[256] = {};
        size_t n_fds = 1;
        int fd = -EBADF;

        assert_true(recv_with_fds(notify, text, sizeof(text) - 1, &fd, &n_fds, 0) > 0);
        assert_string_equal(text, expected);
        assert_int_equal(n_fds, 1);
        return fd;
}

/* Ends it as a crash does, and starts the next one with the same memory and what was kept. */
static void crash_and_restart(Fixture *f, int kept) {
        FrontEnd old = f->fe;

        assert_return_code(kill(old.pid, SIGKILL), errno);
        assert_int_equal(waitpid(old.pid, NULL, 0), old.pid);
        (void) close(old.fd);
        (void) close(old.backend_fd);
        fe_spawn_passing(&f->fe, (const char *const[]) { "balloon", f->argument, "--free-page-hinting=yes", "--initial=4M", NULL },
                "balloon-state", kept);
        (void) close(f->fe.ram_fd);
        f->fe.ram_fd = old.ram_fd;
        f->fe.ram = old.ram;
        memcpy(f->fe.queues, old.queues, sizeof(old.queues));
        fe_negotiate(&f->fe, POISON);
        fe_set_mem_table(&f->fe);
        for (unsigned i = 0; i < 5; i++)
                fe_send_queue(&f->fe, i, f->fe.queues[i].used->idx);
        driver_ok(f);
        wait_for_driver(f);
}

static void a_killed_helper_comes_back_with_its_balloon(void **state) {
        struct virtio_balloon_stat entries[] = { entry(VIRTIO_BALLOON_S_MEMFREE, 1) };
        uint32_t pages[] = { pfn(1), pfn(2) };
        int64_t sequence;
        json_object *o;
        Fixture f = {};
        int notify, kept, events, fd;
        char path[80];

        make_directory(&f);
        notify = notify_socket(&f, path, sizeof(path));
        fe_spawn(&f.fe, (const char *const[]) { "balloon", f.argument, "--free-page-hinting=yes", "--initial=4M", NULL });
        kept = take_stored(notify, "FDSTORE=1\nFDPOLL=0\nFDNAME=balloon-state");
        start_driver(&f, POISON, 5);
        set_target(&f, 2);
        (void) config(&f);
        touch(&f, 0, 4);
        send_list(&f, INFLATE, pages, 2);
        write_actual(&f, 2);
        offer_statistics(&f, STATISTICS, entries, sizeof(entries));
        fd = begin(&f, "GetStatistics", "{}");
        answer_statistics(&f, entries, sizeof(entries)); /* now the helper holds a buffer */
        json_object_put(must_hear(fd));
        (void) close(fd);
        events = subscribe(&f);
        write_actual(&f, 1);
        o = event(events, "deflatedOnOom");
        sequence = number(o, "parameters.sequence");
        json_object_put(o);
        (void) close(events);

        crash_and_restart(&f, kept);
        o = call(&f, "Describe", "{}");
        assert_int_equal(number(o, "parameters.balloon.target"), 2 * PAGE);
        assert_int_equal(number(o, "parameters.balloon.actual"), PAGE);
        assert_int_equal(number(o, "parameters.balloon.oomDeflations"), 1);
        json_object_put(o);
        assert_int_equal(counter(&f, "inflatedBytes"), 2 * PAGE);
        assert_int_equal(config(&f).num_pages, 2);

        /* The numbers of events go on, and so do statistics, with the buffer that the dead one held. */
        fd = dial(&f);
        say(fd, "{\"method\":\"io.vmmd.Balloon.Subscribe\",\"more\":true}");
        o = must_hear(fd);
        assert_true(number(o, "parameters.sequence") > sequence);
        json_object_put(o);
        (void) close(fd);
        fd = begin(&f, "GetStatistics", "{}");
        entries[0].val = 9;
        answer_statistics(&f, entries, sizeof(entries));
        o = must_hear(fd);
        assert_int_equal(number(o, "parameters.statistics.freeMemory"), 9);
        json_object_put(o);
        (void) close(fd);

        (void) unsetenv("NOTIFY_SOCKET");
        (void) close(notify);
        (void) close(kept);
        (void) unlink(path);
        down(&f);
}

/* The machine was started anew while its device was kept: the pages are other pages. */
static void another_guests_memory_has_an_empty_balloon(void **state) {
        Fixture f = {};

        up(&f);
        set_target(&f, 2);
        write_actual(&f, 2);
        assert_balloon(&f, "actual", 2 * PAGE);
        for (unsigned i = 0; i < 5; i++)
                (void) fe_stop_queue(&f.fe, i);
        (void) munmap(f.fe.ram, FE_RAM_SIZE);
        (void) close(f.fe.ram_fd);
        f.fe.ram_fd = guest_memory_create_fd(FE_RAM_SIZE, 0);
        f.fe.ram = mmap(NULL, FE_RAM_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, f.fe.ram_fd, 0);
        assert_ptr_not_equal(f.fe.ram, MAP_FAILED);
        start_queues(&f, 5);
        wait_until_served(&f);
        assert_balloon(&f, "actual", 0);
        assert_balloon(&f, "target", 2 * PAGE);
        down(&f);
}

static void a_subscriber_that_does_not_read_delays_nobody(void **state) {
        int64_t seen = 0, missed = 0;
        json_object *o;
        Fixture f = {};
        int stalled, events, caller;
        char text[128];

        up(&f);
        stalled = subscribe(&f);
        events = subscribe(&f);
        caller = dial(&f);
        for (uint32_t i = 1; i <= 2000; i++) {
                (void) snprintf(text, sizeof(text), "{\"method\":\"io.vmmd.Balloon.SetTarget\",\"parameters\":{\"target\":%u}}",
                        i * (unsigned) PAGE);
                say(caller, text);
                json_object_put(must_hear(caller));
                o = event(events, "target");
                assert_int_equal(number(o, "parameters.missed"), 0);
                assert_int_equal(number(o, "parameters.balloon.target"), i * PAGE);
                seen = number(o, "parameters.sequence");
                json_object_put(o);
        }
        /* It reads at last: the newest state is there, and what it missed is counted. */
        for (int64_t sequence = 0; sequence < seen;) {
                o = event(stalled, "target");
                missed += number(o, "parameters.missed");
                sequence = number(o, "parameters.sequence");
                json_object_put(o);
        }
        assert_true(missed > 0);
        (void) close(caller);
        (void) close(stalled);
        (void) close(events);
        down(&f);
}

static void the_state_of_the_device_is_told_as_it_changes(void **state) {
        json_object *o;
        Fixture f = {};
        int fd;

        up(&f);
        fd = dial(&f);
        say(fd, "{\"method\":\"io.vmmd.Device.Subscribe\",\"more\":true}");
        o = must_hear(fd);
        assert_string_equal(string(o, "parameters.state"), "running");
        assert_int_equal(number(o, "parameters.pid"), f.fe.pid);
        json_object_put(o);
        fe_desc(&f.fe, INFLATE, 0, FE_ADDRESS(PAGES), 4, VRING_DESC_F_NEXT, 0);
        fe_offer(&f.fe, INFLATE, 0);
        fe_kick(&f.fe, INFLATE);
        o = must_hear(fd);
        assert_string_equal(string(o, "parameters.state"), "broken");
        assert_string_equal(string(o, "parameters.reason"), "a chain loops");
        json_object_put(o);
        fe_set_u64(&f.fe, VHOST_USER_SET_STATUS, 0);
        o = must_hear(fd);
        assert_string_equal(string(o, "parameters.state"), "suspended");
        assert_null(at(o, "parameters.reason"));
        json_object_put(o);
        (void) close(fd);
        down(&f);
}

/* Who subscribes while a change waits to be told to others has it as his first reply, and only there. */
static void a_state_is_not_told_twice(void **state) {
        const char *const request = "{\"method\":\"io.vmmd.Device.Subscribe\",\"more\":true}";
        json_object *o;
        Fixture f = {};
        int early, late;

        up(&f);
        early = dial(&f);
        say(early, request);
        json_object_put(must_hear(early));
        late = dial(&f);
        assert_return_code(kill(f.fe.pid, SIGSTOP), errno);
        fe_set_u64(&f.fe, VHOST_USER_SET_STATUS, 0);
        say(late, request);
        assert_return_code(kill(f.fe.pid, SIGCONT), errno);
        o = must_hear(late);
        assert_string_equal(string(o, "parameters.state"), "suspended");
        json_object_put(o);
        /* What comes after the answer to this one was not told before it. */
        json_object_put(call(&f, "Describe", "{}"));
        assert_null(hear(late, 0));
        (void) close(early);
        (void) close(late);
        down(&f);
}

static void a_size_is_not_told_twice(void **state) {
        Fixture f = {};

        up(&f);
        for (uint32_t i = 0; i < 3; i++) {
                json_object *o;
                int fd = dial(&f);

                write_actual(&f, 2 * i + 1); /* told at once, */
                write_actual(&f, 2 * i + 2); /* and this after a pause */
                say(fd, "{\"method\":\"io.vmmd.Balloon.Subscribe\",\"more\":true}");
                o = must_hear(fd);
                assert_int_equal(number(o, "parameters.balloon.actual"), (2 * i + 2) * (int64_t) PAGE);
                json_object_put(o);
                assert_null(hear(fd, 100));
                (void) close(fd);
        }
        down(&f);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(targets_out_of_range_are_refused),
                cmocka_unit_test(without_a_driver_everything_still_answers),
                cmocka_unit_test(what_was_not_negotiated_the_guest_cannot),
                cmocka_unit_test(pages_that_are_no_guest_memory_are_passed_over),
                cmocka_unit_test(a_list_that_is_too_long_breaks_the_device),
                cmocka_unit_test(long_lists_have_a_turn_each),
                cmocka_unit_test(a_part_of_an_entry_is_no_entry),
                cmocka_unit_test(a_guest_that_sends_no_statistics_is_given_up),
                cmocka_unit_test(a_broken_statistics_queue_breaks_the_device),
                cmocka_unit_test(a_poison_keeps_reported_pages_where_they_are),
                cmocka_unit_test(configurations_that_do_not_fit_are_refused),
                cmocka_unit_test(an_operation_buffer_that_is_too_small_breaks_the_device),
                cmocka_unit_test(inflation_frees_scattered_and_adjacent_pages),
                cmocka_unit_test(a_page_named_twice_is_freed_once),
                cmocka_unit_test(a_whole_gigabytes_worth_of_lists_is_taken),
                cmocka_unit_test(a_target_reaches_the_guest_and_its_answer_whoever_waits),
                cmocka_unit_test(a_later_target_supersedes_the_one_that_is_waited_for),
                cmocka_unit_test(who_waits_may_go_away),
                cmocka_unit_test(other_ways_to_write_the_actual_size_are_understood),
                cmocka_unit_test(a_fall_without_being_asked_is_a_deflation_on_oom),
                cmocka_unit_test(a_fall_that_was_asked_for_is_none),
                cmocka_unit_test(without_the_feature_there_is_no_deflation_on_oom),
                cmocka_unit_test(a_huge_page_goes_when_all_of_it_is_in_the_balloon),
                cmocka_unit_test(a_driver_that_does_not_tell_keeps_its_huge_pages),
                cmocka_unit_test(reported_pages_are_freed),
                cmocka_unit_test(queues_are_counted_without_those_that_do_not_exist),
                cmocka_unit_test(queues_by_the_letter_of_the_specification_work_too),
                cmocka_unit_test(every_tag_has_its_name),
                cmocka_unit_test(what_the_guest_leaves_out_is_left_out),
                cmocka_unit_test(who_asks_at_the_same_time_gets_the_same_answer),
                cmocka_unit_test(statistics_survive_a_pause),
                cmocka_unit_test(hinted_pages_are_freed_under_the_right_number_only),
                cmocka_unit_test(a_working_set_is_asked_for_and_configured),
                cmocka_unit_test(the_next_driver_is_told_the_configuration_again),
                cmocka_unit_test(a_reset_empties_the_balloon_and_keeps_the_target),
                cmocka_unit_test(a_pause_keeps_the_balloon),
                cmocka_unit_test(a_killed_helper_comes_back_with_its_balloon),
                cmocka_unit_test(another_guests_memory_has_an_empty_balloon),
                cmocka_unit_test(a_subscriber_that_does_not_read_delays_nobody),
                cmocka_unit_test(the_state_of_the_device_is_told_as_it_changes),
                cmocka_unit_test(a_state_is_not_told_twice),
                cmocka_unit_test(a_size_is_not_told_twice),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
