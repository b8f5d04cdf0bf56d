/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <setjmp.h>
#include <stdarg.h>
#include <fcntl.h>
#include <sys/socket.h>

#include <cmocka.h>

#include "vhost-user.h"

static int make(void **state) {
        int *pair = calloc(2, sizeof(int));

        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
        *state = pair;
        return 0;
}

static int clean(void **state) {
        int *pair = *state;

        (void) safe_close(pair[0]);
        (void) safe_close(pair[1]);
        free(pair);
        return 0;
}

static int count_fds(void) {
        int n = 0;

        for (int fd = 0; fd < 256; fd++)
                n += fcntl(fd, F_GETFD) >= 0;
        return n;
}

static void put(int fd, uint32_t request, uint32_t flags, uint32_t size, const void *payload, size_t length) {
        VhostUserHeader header = { request, flags, size };

        assert_int_equal(write(fd, &header, sizeof(header)), sizeof(header));
        if (length > 0)
                assert_int_equal(write(fd, payload, length), length);
}

static void refuses_a_wrong_version(void **state) {
        int *pair = *state;
        VhostUserMsg msg;

        put(pair[0], VHOST_USER_GET_FEATURES, 0, 0, NULL, 0);
        assert_int_equal(vhost_user_recv(pair[1], &msg, NULL, NULL), -EPROTO);
}

static void refuses_a_payload_larger_than_any(void **state) {
        int *pair = *state;
        VhostUserMsg msg;

        put(pair[0], VHOST_USER_SET_CONFIG, VHOST_USER_VERSION, VHOST_USER_PAYLOAD_MAX + 1, NULL, 0);
        assert_int_equal(vhost_user_recv(pair[1], &msg, NULL, NULL), -EMSGSIZE);
}

static void tells_an_end_between_messages_from_one_within(void **state) {
        int *pair = *state;
        VhostUserMsg msg;

        put(pair[0], VHOST_USER_SET_FEATURES, VHOST_USER_VERSION, 8, "1234", 4);
        pair[0] = safe_close(pair[0]);
        assert_int_equal(vhost_user_recv(pair[1], &msg, NULL, NULL), -ECONNRESET);
        assert_int_equal(vhost_user_recv(pair[1], &msg, NULL, NULL), -ENODATA);
}

static void leaves_no_descriptor_open_that_is_not_wanted(void **state) {
        int *pair = *state, fds[VHOST_USER_FDS_MAX], before = count_fds();
        VhostUserMsg msg = { .header = { .request = VHOST_USER_SET_MEM_TABLE, .size = 8 } };
        size_t n = 1;

        for (size_t i = 0; i < VHOST_USER_FDS_MAX; i++)
                fds[i] = STDERR_FILENO;
        assert_int_equal(vhost_user_send(pair[0], &msg, fds, VHOST_USER_FDS_MAX), 0);
        assert_int_equal(vhost_user_recv(pair[1], &msg, fds, &n), 0);
        assert_int_equal(n, 1);
        assert_int_equal(count_fds(), before + 1);
        assert_true(fcntl(fds[0], F_GETFD) & FD_CLOEXEC);
        (void) close(fds[0]);

        /* Nor on an error: the header is wrong, the descriptor came with it. */
        msg.header.size = 0;
        VhostUserHeader wrong = { .request = 1, .flags = 3 };
        assert_int_equal(send_with_fds(pair[0], &wrong, sizeof(wrong), &(int) { STDERR_FILENO }, 1), sizeof(wrong));
        n = 1;
        assert_int_equal(vhost_user_recv(pair[1], &msg, fds, &n), -EPROTO);
        assert_int_equal(count_fds(), before);
}

static void refuses_requests_of_the_wrong_shape(void **state) {
        static const struct { uint32_t request, size; size_t n_fds; int result; } cases[] = {
                { 0, 0, 0, -EOPNOTSUPP },
                { 4711, 0, 0, -EOPNOTSUPP },
                { VHOST_USER_POSTCOPY_ADVISE, 0, 0, -EBADMSG },
                { VHOST_USER_POSTCOPY_ADVISE, 0, 1, -EBADMSG },
                { VHOST_USER_POSTCOPY_ADVISE, 0, 3, -EBADMSG },
                { VHOST_USER_POSTCOPY_LISTEN, 8, 0, -EBADMSG },
                { VHOST_USER_POSTCOPY_END, 0, 1, -EBADMSG },
                { VHOST_USER_SET_LOG_BASE, 8, 0, -EOPNOTSUPP },
                { VHOST_USER_SET_FEATURES, 7, 0, -EBADMSG },
                { VHOST_USER_SET_FEATURES, 9, 0, -EBADMSG },
                { VHOST_USER_SET_FEATURES, 8, 1, -EBADMSG },
                { VHOST_USER_GET_FEATURES, 8, 0, -EBADMSG },
                { VHOST_USER_SET_VRING_ADDR, 8, 0, -EBADMSG },
                { VHOST_USER_SET_VRING_KICK, 8, 0, -EBADMSG },
                { VHOST_USER_SET_VRING_KICK, 8, 2, -EBADMSG },
                { VHOST_USER_SET_BACKEND_REQ_FD, 0, 0, -EBADMSG },
                { VHOST_USER_SET_INFLIGHT_FD, sizeof(VhostUserInflight), 0, -EBADMSG },
                { VHOST_USER_SET_MEM_TABLE, 8, 1, -EBADMSG },
                { VHOST_USER_SET_MEM_TABLE, 4, 0, -EBADMSG },
                { VHOST_USER_GET_CONFIG, 13, 0, -EBADMSG },
                { VHOST_USER_SET_MEM_TABLE, 8, 0, 0 },
                { VHOST_USER_SET_FEATURES, 8, 0, 0 },
                { VHOST_USER_SET_VRING_KICK, 8, 1, 0 },
                { VHOST_USER_SET_INFLIGHT_FD, sizeof(VhostUserInflight), 1, 0 },
                { VHOST_USER_SET_INFLIGHT_FD, 24, 1, 0 },
                { VHOST_USER_GET_CONFIG, 12, 0, 0 },
                { VHOST_USER_POSTCOPY_ADVISE, 0, 2, 0 },
                { VHOST_USER_POSTCOPY_LISTEN, 0, 0, 0 },
                { VHOST_USER_POSTCOPY_END, 0, 0, 0 },
        };

        for (size_t i = 0; i < ELEMENTSOF(cases); i++) {
                VhostUserMsg msg = { .header = { .request = cases[i].request, .size = cases[i].size } };

                assert_int_equal(vhost_user_check_request(&msg, cases[i].n_fds), cases[i].result);
        }
}

static void refuses_lengths_inside_that_the_outside_does_not_have(void **state) {
        VhostUserMsg msg = { .header = { .request = VHOST_USER_SET_MEM_TABLE, .size = 8 + 32 } };

        msg.payload.memory.nregions = 2;
        assert_int_equal(vhost_user_check_request(&msg, 2), -EBADMSG);
        msg.payload.memory.nregions = UINT32_MAX;
        assert_int_equal(vhost_user_check_request(&msg, 1), -EBADMSG);
        msg.payload.memory.nregions = 1;
        assert_int_equal(vhost_user_check_request(&msg, 1), 0);

        msg = (VhostUserMsg) { .header = { .request = VHOST_USER_SET_CONFIG, .size = 12 + 4 } };
        msg.payload.config.size = 8;
        assert_int_equal(vhost_user_check_request(&msg, 0), -EBADMSG);
        msg.payload.config.size = UINT32_MAX - 11;
        assert_int_equal(vhost_user_check_request(&msg, 0), -EBADMSG);
        msg.payload.config.size = 4;
        assert_int_equal(vhost_user_check_request(&msg, 0), 0);
}

static void takes_a_message_a_byte_at_a_time(void **state) {
        int *pair = *state;
        VhostUserMsg msg = { .header = { VHOST_USER_SET_FEATURES, VHOST_USER_VERSION, 8 }, .payload.u64 = 0x1122334455667788 };
        VhostUserReceiver receiver = {};

        assert_int_equal(fcntl(pair[1], F_SETFL, O_NONBLOCK), 0);
        for (size_t i = 0; i < sizeof(VhostUserHeader) + 8; i++) {
                assert_int_equal(vhost_user_receiver_step(&receiver, pair[1]), 0);
                assert_int_equal(write(pair[0], (uint8_t *) &msg + i, 1), 1);
        }
        assert_int_equal(vhost_user_receiver_step(&receiver, pair[1]), 1);
        assert_true(receiver.msg.payload.u64 == 0x1122334455667788);
        vhost_user_receiver_done(&receiver);
}

static void keeps_descriptors_with_their_own_message(void **state) {
        int *pair = *state, fds[2];
        VhostUserMsg msg = { .header = { .request = VHOST_USER_SET_VRING_CALL, .size = 8 }, .payload.u64 = 0 }, got;
        size_t n;

        for (uint64_t i = 0; i < 3; i++) {
                msg.payload.u64 = i;
                assert_int_equal(vhost_user_send(pair[0], &msg, &(int) { STDERR_FILENO }, i == 1 ? 0 : 1), 0);
        }
        for (uint64_t i = 0; i < 3; i++) {
                n = 2;
                assert_int_equal(vhost_user_recv(pair[1], &got, fds, &n), 0);
                assert_int_equal(got.payload.u64, i);
                assert_int_equal(got.header.flags, VHOST_USER_VERSION);
                assert_int_equal(n, i == 1 ? 0 : 1);
                for (size_t k = 0; k < n; k++)
                        (void) close(fds[k]);
        }
}

int main(void) {
#define with_pair(test) cmocka_unit_test_setup_teardown(test, make, clean)
        const struct CMUnitTest tests[] = {
                with_pair(refuses_a_wrong_version),
                with_pair(refuses_a_payload_larger_than_any),
                with_pair(tells_an_end_between_messages_from_one_within),
                with_pair(leaves_no_descriptor_open_that_is_not_wanted),
                cmocka_unit_test(refuses_requests_of_the_wrong_shape),
                cmocka_unit_test(refuses_lengths_inside_that_the_outside_does_not_have),
                with_pair(takes_a_message_a_byte_at_a_time),
                with_pair(keeps_descriptors_with_their_own_message),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
