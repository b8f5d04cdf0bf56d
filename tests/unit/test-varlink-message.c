/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "json-util.h"
#include "message.h"

static int parse(const char *text) {
        _cleanup_json_ json_object *value = NULL;
        return varlink_json_parse(text, strlen(text), 32, &value);
}

static void open_pair(VarlinkChannel *a, VarlinkChannel *b) {
        int fds[2];

        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
        assert_int_equal(varlink_channel_open(a, fds[0]), 0);
        assert_int_equal(varlink_channel_open(b, fds[1]), 0);
}

static void feed(VarlinkChannel *s, const char *text, size_t size) {
        assert_int_equal(varlink_channel_feed(s, text, size, NULL, 0), 1);
}

static const char *next_method(VarlinkChannel *s, VarlinkMessage *m) {
        varlink_message_done(m);
        if (varlink_channel_next(s, m) != 1)
                return NULL;
        return json_get_string(m->json, "method", NULL);
}

static void refuses_what_is_no_json_object(void **state) {
        static const char *const texts[] = { "", " ", "[]", "1", "null", "\"a\"", "{", "}", "{}{}", "{} x", "{\"a\"}",
                "{\"a\":}", "{'a':1}", "{\"a\":1,}", "{/* c */}", "{\"a\":NaN}", "{\"a\":[Infinity]}", "{\"a\":1e999}",
                "{\"a\":\"\xff\"}", "{\"a\":\"\xc0\xaf\"}", "{\"a\":\"\xed\xa0\x80\"}", "{\"a\":\"\xc3\"}", "{\"\xe2\x82\":1}",
                "{\"a\":\"\\\xff\"}", "{\"a\":\"\\µ\"}",
                "{\xc2\xa0\"a\":1}", "{\"a\":tru}", "{\"a\":\"\n\"}", "garbage", "\x01\x02\x03" };

        for (size_t i = 0; i < ELEMENTSOF(texts); i++)
                if (parse(texts[i]) != -EBADMSG)
                        fail_msg("'%s' was not refused", texts[i]);
}

static void refuses_a_nul_however_it_is_written(void **state) {
        _cleanup_json_ json_object *value = NULL;

        assert_int_equal(parse("{\"a\\u0000b\":1}"), -EBADMSG);
        assert_int_equal(parse("{\"a\":\"\\u0000\"}"), -EBADMSG);
        assert_int_equal(parse("{\"a\":\"\\\\\\u0000\"}"), -EBADMSG);
        assert_int_equal(varlink_json_parse("{\"a\":\0 1}", 9, 32, &value), -EBADMSG);
        /* A backslash and five ordinary characters */
        assert_int_equal(parse("{\"a\":\"\\\\u0000\"}"), 0);
}

static void takes_text_of_any_script(void **state) {
        assert_int_equal(parse("{\"a\":\"µ\"}"), 0);
        assert_int_equal(parse("{\"a\":\"\\\\µ\"}"), 0);
        assert_int_equal(parse("{\"µ\":[\"x\\n€ 😀\",\"\\u00b5\"]}"), 0);
}

static void refuses_what_is_nested_too_deeply(void **state) {
        char text[3 * 64 + 8];
        size_t n = 0;

        n += (size_t) sprintf(text, "{\"a\":");
        for (unsigned i = 0; i < 60; i++)
                text[n++] = '[';
        for (unsigned i = 0; i < 60; i++)
                text[n++] = ']';
        text[n++] = '}';
        text[n] = 0;
        assert_int_equal(parse(text), -EBADMSG);

        assert_int_equal(parse("{\"a\":[[[[[[[[[[]]]]]]]]]]}"), 0);
}

static void refuses_a_message_that_is_too_large(void **state) {
        VarlinkChannel s;
        char text[200];

        assert_int_equal(varlink_channel_open(&s, open("/dev/null", O_RDWR | O_CLOEXEC)), 0);
        s.message_size = 100;
        memset(text, ' ', sizeof(text));
        /* Before its end is there, already */
        feed(&s, text, 100);
        assert_int_equal(varlink_channel_feed(&s, text, 1, NULL, 0), -EMSGSIZE);
        varlink_channel_done(&s);
}

static void refuses_to_queue_a_message_that_is_too_large(void **state) {
        VarlinkChannel s;
        _cleanup_json_ json_object *o = json_object_new_object();

        assert_int_equal(varlink_channel_open(&s, open("/dev/null", O_RDWR | O_CLOEXEC)), 0);
        s.message_size = 20;
        assert_int_equal(json_add_string(o, "key", "a long enough value"), 0);
        assert_int_equal(varlink_channel_queue(&s, o, NULL, 0), -EMSGSIZE);
        assert_int_equal(s.out_size, 0);
        varlink_channel_done(&s);
}

static void refuses_an_empty_message(void **state) {
        VarlinkChannel s;
        VarlinkMessage m = {};

        assert_int_equal(varlink_channel_open(&s, open("/dev/null", O_RDWR | O_CLOEXEC)), 0);
        feed(&s, "", 1);
        assert_int_equal(varlink_channel_next(&s, &m), -EBADMSG);
        varlink_channel_done(&s);
}

static void refuses_too_many_descriptors(void **state) {
        VarlinkChannel a, b;
        int fds[3];

        open_pair(&a, &b);
        b.fds = 2;
        for (size_t i = 0; i < 3; i++)
                fds[i] = open("/dev/null", O_RDONLY | O_CLOEXEC);
        assert_int_equal(send_with_fds(a.fd, "{}", 3, fds, 3), 3);
        assert_int_equal(varlink_channel_read(&b), -EBADMSG);
        for (size_t i = 0; i < 3; i++)
                (void) safe_close(fds[i]);
        varlink_channel_done(&a);
        varlink_channel_done(&b);
}

static void takes_a_message_byte_by_byte(void **state) {
        static const char text[] = "{\"method\":\"a.b.C\"}";
        VarlinkChannel s;
        VarlinkMessage m = {};

        assert_int_equal(varlink_channel_open(&s, open("/dev/null", O_RDWR | O_CLOEXEC)), 0);
        for (size_t i = 0; i < sizeof(text); i++) {
                assert_int_equal(varlink_channel_next(&s, &m), 0);
                assert_int_equal(varlink_channel_is_partial(&s), i > 0);
                feed(&s, text + i, 1);
        }
        assert_string_equal(next_method(&s, &m), "a.b.C");
        assert_false(varlink_channel_is_partial(&s));
        varlink_message_done(&m);
        varlink_channel_done(&s);
}

static void takes_several_messages_of_one_read(void **state) {
        static const char text[] = "{\"method\":\"one\"}\0{\"method\":\"two\"}\0{\"method\":\"thr";
        VarlinkChannel s;
        VarlinkMessage m = {};

        assert_int_equal(varlink_channel_open(&s, open("/dev/null", O_RDWR | O_CLOEXEC)), 0);
        feed(&s, text, sizeof(text) - 1);
        assert_string_equal(next_method(&s, &m), "one");
        assert_string_equal(next_method(&s, &m), "two");
        varlink_message_done(&m);
        assert_int_equal(varlink_channel_next(&s, &m), 0);
        assert_true(varlink_channel_is_partial(&s));
        feed(&s, "ee\"}", 5);
        assert_string_equal(next_method(&s, &m), "three");
        varlink_message_done(&m);
        varlink_channel_done(&s);
}

static void keeps_within_bounds_over_a_long_life(void **state) {
        VarlinkChannel a, b;
        VarlinkMessage m = {};
        _cleanup_json_ json_object *o = json_object_new_object();

        open_pair(&a, &b);
        assert_int_equal(json_add_string(o, "method", "0123456789012345678901234567890123456789"), 0);
        for (unsigned i = 0; i < 20000; i++) {
                assert_int_equal(varlink_channel_queue(&a, o, NULL, 0), 0);
                assert_int_equal(varlink_channel_flush(&a), 0);
                assert_int_equal(varlink_channel_read(&b), 1);
                assert_non_null(next_method(&b, &m));
        }
        assert_true(b.in_allocated <= KIB(64));
        varlink_message_done(&m);
        varlink_channel_done(&a);
        varlink_channel_done(&b);
}

static void sends_in_parts_to_a_slow_reader(void **state) {
        VarlinkChannel a, b;
        VarlinkMessage m = {};
        _cleanup_json_ json_object *o = json_object_new_object();
        _cleanup_free_ char *big = malloc(KIB(900));
        int r, flushed;

        memset(big, 'x', KIB(900) - 1);
        big[KIB(900) - 1] = 0;
        assert_int_equal(json_add_string(o, "method", big), 0);
        open_pair(&a, &b);
        assert_int_equal(varlink_channel_queue(&a, o, NULL, 0), 0);
        assert_int_equal(varlink_channel_flush(&a), -EAGAIN);
        do {
                r = varlink_channel_read(&b);
                assert_true(r == 1 || r == -EAGAIN);
                flushed = varlink_channel_flush(&a);
                assert_true(flushed == 0 || flushed == -EAGAIN);
                r = varlink_channel_next(&b, &m);
        } while (r == 0);
        assert_int_equal(r, 1);
        assert_int_equal(a.out_size, 0);
        assert_int_equal(json_object_get_string_len(json_object_object_get(m.json, "method")), KIB(900) - 1);
        varlink_message_done(&m);
        varlink_channel_done(&a);
        varlink_channel_done(&b);
}

static ino_t inode(int fd) {
        struct stat st;
        assert_int_equal(fstat(fd, &st), 0);
        return st.st_ino;
}

/* Three messages lie in the socket before one is read; only the middle one has descriptors. */
static void gives_descriptors_to_the_message_they_came_with(void **state) {
        VarlinkChannel a, b;
        VarlinkMessage m = {};
        int first[2], fds[2], taken;
        ino_t expected[2];

        open_pair(&a, &b);
        assert_int_equal(pipe2(first, O_CLOEXEC), 0);
        expected[0] = inode(first[0]);
        fds[0] = first[0];
        fds[1] = open("/dev/null", O_RDONLY | O_CLOEXEC);
        expected[1] = inode(fds[1]);

        assert_int_equal(send_with_fds(a.fd, "{\"method\":\"one\"}", 17, NULL, 0), 17);
        assert_int_equal(send_with_fds(a.fd, "{\"method\":\"two\"}", 17, fds, 2), 17);
        assert_int_equal(send_with_fds(a.fd, "{\"method\":\"three\"}", 19, NULL, 0), 19);
        for (unsigned i = 0; i < 3; i++) {
                int r = varlink_channel_read(&b);
                assert_true(r == 1 || r == -EAGAIN);
        }

        assert_string_equal(next_method(&b, &m), "one");
        assert_int_equal(m.n_fds, 0);
        assert_string_equal(next_method(&b, &m), "two");
        assert_int_equal(m.n_fds, 2);
        for (int i = 0; i < 2; i++) {
                taken = varlink_message_take_fd(&m, i);
                assert_true(taken >= 0);
                assert_int_equal(inode(taken), expected[i]);
                assert_true(fcntl(taken, F_GETFD) & FD_CLOEXEC);
                assert_int_equal(varlink_message_take_fd(&m, i), -ENXIO);
                (void) safe_close(taken);
        }
        assert_int_equal(varlink_message_take_fd(&m, 2), -ENXIO);
        assert_int_equal(varlink_message_take_fd(&m, -1), -ENXIO);
        assert_string_equal(next_method(&b, &m), "three");
        assert_int_equal(m.n_fds, 0);

        (void) safe_close(first[0]);
        (void) safe_close(first[1]);
        (void) safe_close(fds[1]);
        varlink_message_done(&m);
        varlink_channel_done(&a);
        varlink_channel_done(&b);
}

/* The descriptors of a message whose text needs several reads. */
static void gives_descriptors_to_a_message_that_is_split(void **state) {
        VarlinkChannel a, b;
        VarlinkMessage m = {};
        int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

        open_pair(&a, &b);
        assert_int_equal(send_with_fds(a.fd, "{\"method\":", 10, &fd, 1), 10);
        assert_int_equal(varlink_channel_read(&b), 1);
        assert_int_equal(varlink_channel_next(&b, &m), 0);
        assert_int_equal(send_with_fds(a.fd, "\"one\"}\0{}", 10, NULL, 0), 10);
        assert_int_equal(varlink_channel_read(&b), 1);
        assert_string_equal(next_method(&b, &m), "one");
        assert_int_equal(m.n_fds, 1);
        (void) next_method(&b, &m);
        assert_int_equal(m.n_fds, 0);
        (void) safe_close(fd);
        varlink_message_done(&m);
        varlink_channel_done(&a);
        varlink_channel_done(&b);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(refuses_what_is_no_json_object),
                cmocka_unit_test(refuses_a_nul_however_it_is_written),
                cmocka_unit_test(takes_text_of_any_script),
                cmocka_unit_test(refuses_what_is_nested_too_deeply),
                cmocka_unit_test(refuses_a_message_that_is_too_large),
                cmocka_unit_test(refuses_to_queue_a_message_that_is_too_large),
                cmocka_unit_test(refuses_an_empty_message),
                cmocka_unit_test(refuses_too_many_descriptors),
                cmocka_unit_test(takes_a_message_byte_by_byte),
                cmocka_unit_test(takes_several_messages_of_one_read),
                cmocka_unit_test(keeps_within_bounds_over_a_long_life),
                cmocka_unit_test(sends_in_parts_to_a_slow_reader),
                cmocka_unit_test(gives_descriptors_to_the_message_they_came_with),
                cmocka_unit_test(gives_descriptors_to_a_message_that_is_split),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
