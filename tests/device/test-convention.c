/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The helpers as programs, as management software starts any vhost-user back-end ("Back-end program conventions"): by its capabilities, on a socket that
 * it makes, on one that it is given, and ended by SIGTERM. */

#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <cmocka.h>
#include <json-c/json.h>

#include "front-end.h"
#include "requests.h"

static char directory[] = "/tmp/test-convention-XXXXXX";
static char image[64], node[64];

/* What it is called, and what it is told. Standard output goes to `out`. */
static pid_t start(const char *program, const char *const *arguments, int out) {
        pid_t pid = fork();

        assert_true(pid >= 0);
        if (pid == 0) {
                const char *argv[16] = { program };

                for (unsigned i = 0; arguments[i]; i++)
                        argv[i + 1] = arguments[i];
                if (out >= 0)
                        (void) dup2(out, STDOUT_FILENO);
                (void) execv(program, (char *const *) argv);
                _exit(127);
        }
        return pid;
}

static int status_of(pid_t pid) {
        int status;

        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_true(WIFEXITED(status));
        return WEXITSTATUS(status);
}

/* Runs it to its end; returns its status, and what it has printed. */
static int run(const char *program, const char *const *arguments, char *text, size_t size) {
        size_t have = 0;
        ssize_t n;
        pid_t pid;
        int p[2];

        assert_int_equal(pipe2(p, O_CLOEXEC), 0);
        pid = start(program, arguments, p[1]);
        (void) close(p[1]);
        while (have + 1 < size && (n = read(p[0], text + have, size - have - 1)) > 0)
                have += (size_t) n;
        text[have] = 0;
        (void) close(p[0]);
        return status_of(pid);
}

static json_object *capabilities(const char *program, const char *const *arguments) {
        char text[4096];
        json_object *o;

        assert_int_equal(run(program, arguments, text, sizeof(text)), 0);
        o = json_tokener_parse(text);
        assert_non_null(o);
        return o;
}

static bool has_feature(json_object *o, const char *feature) {
        json_object *features = json_object_object_get(o, "features");

        assert_true(json_object_is_type(features, json_type_array));
        for (size_t i = 0; i < json_object_array_length(features); i++)
                if (streq(json_object_get_string(json_object_array_get_idx(features, i)), feature))
                        return true;
        return false;
}

/* Refusals */

static void refuses_to_be_of_no_type_or_of_one_that_is_no_back_end(void **state) {
        char text[256];

        assert_int_not_equal(run(getenv("VMM_DEVICE"), (const char *const[]) { "--print-capabilities", NULL }, text, sizeof(text)), 0);
        assert_string_equal(text, "");
        assert_int_not_equal(run(getenv("VMM_DEVICE"), (const char *const[]) { "nonsense", "--print-capabilities", NULL }, text, sizeof(text)), 0);
        assert_int_not_equal(run(getenv("VMM_DEVICE"), (const char *const[]) { "serial", "--print-capabilities", NULL }, text, sizeof(text)), 0);
        assert_string_equal(text, "");
}

static void refuses_a_socket_that_is_none_and_two_at_once(void **state) {
        char text[512];

        assert_int_not_equal(fe_spawn_failing((const char *const[]) { "rng", "--fd=99", NULL }, text, sizeof(text)), 0);
        assert_non_null(strstr(text, "--fd=99"));
        assert_int_not_equal(fe_spawn_failing((const char *const[]) { "rng", "--fd=x", NULL }, text, sizeof(text)), 0);
        assert_int_not_equal(fe_spawn_failing((const char *const[]) { "rng", "--fd=2", NULL }, text, sizeof(text)), 0);
        assert_int_not_equal(fe_spawn_failing((const char *const[]) { "rng", "--fd=0", "--socket-path=/tmp/x", NULL }, text, sizeof(text)), 0);
        assert_non_null(strstr(text, "incompatible"));
        assert_int_not_equal(fe_spawn_failing((const char *const[]) { "rng", NULL }, text, sizeof(text)), 0);
}

static void refuses_the_options_of_other_types(void **state) {
        char text[512];

        assert_int_not_equal(fe_spawn_failing((const char *const[]) { "rng", "--blk-file=/x", NULL }, text, sizeof(text)), 0);
        assert_int_not_equal(fe_spawn_failing((const char *const[]) { "rng", "--read-only", NULL }, text, sizeof(text)), 0);
        assert_int_not_equal(fe_spawn_failing((const char *const[]) { "block", "--read-onlyness", "--path=/x", NULL }, text, sizeof(text)), 0);
}

/* Capabilities */

static void says_what_each_type_is(void **state) {
        for (const RequestDevice *d = request_devices; d->name; d++) {
                json_object *o = capabilities(getenv("VMM_DEVICE"), (const char *const[]) { d->type, "--print-capabilities", NULL });

                assert_string_equal(json_object_get_string(json_object_object_get(o, "type")), d->type);
                assert_int_equal(has_feature(o, "read-only"), streq(d->type, "block"));
                assert_int_equal(has_feature(o, "blk-file"), streq(d->type, "block"));
                (void) json_object_put(o);
        }
}

static void ignores_everything_else_when_asked(void **state) {
        json_object *o = capabilities(getenv("VMM_DEVICE"), (const char *const[]) { "block", "--nonsense", "--fd=99", "--print-capabilities",
                "--socket-path=/nowhere/at/all", NULL });

        assert_string_equal(json_object_get_string(json_object_object_get(o, "type")), "block");
        (void) json_object_put(o);
}

static void is_a_program_for_each_type(void **state) {
        for (const RequestDevice *d = request_devices; d->name; d++) {
                json_object *o;
                char program[64];

                (void) snprintf(program, sizeof(program), "%s/vmm-device-%s", directory, d->type);
                assert_int_equal(symlink(getenv("VMM_DEVICE"), program), 0);
                o = capabilities(program, (const char *const[]) { "--print-capabilities", NULL });
                assert_string_equal(json_object_get_string(json_object_object_get(o, "type")), d->type);
                (void) json_object_put(o);
                (void) unlink(program);
        }
}

/* Sockets */

static void converse(int fd) {
        FrontEnd f = { .fd = fd, .backend_fd = -EBADF };

        fe_negotiate(&f, 0);
        assert_true(fe_get_u64(&f, VHOST_USER_GET_QUEUE_NUM) >= 1);
        (void) close(f.backend_fd);
        (void) close(fd);
}

static int listen_at(const char *path) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        int fd = socket(AF_UNIX, SOCK_STREAM, 0); /* to be inherited */

        assert_true(fd >= 0);
        (void) snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
        assert_int_equal(bind(fd, (struct sockaddr *) &address, sizeof(address)), 0);
        assert_int_equal(listen(fd, 8), 0);
        return fd;
}

static int connect_when_there(const char *path) {
        int fd = -EBADF;

        for (unsigned i = 0; i < 6000 && fd < 0; i++) {
                fd = connect_unix(path);
                if (fd < 0)
                        (void) usleep(10000);
        }
        assert_return_code(fd, 0);
        return fd;
}

/* One that needs nothing of the host's but a file. */
static const char *const *arguments_for(const RequestDevice *d, const char *how) {
        static const char *arguments[12];
        unsigned n = 0;

        arguments[n++] = d->type;
        arguments[n++] = how;
        if (streq(d->type, "block"))
                arguments[n++] = image;
        for (unsigned i = 0; d->options[i]; i++)
                arguments[n++] = d->options[i];
        arguments[n] = NULL;
        return arguments;
}

static bool needs_more(const RequestDevice *d) {
        return !streq(d->type, "balloon") && !streq(d->type, "block") && !streq(d->type, "console") && !streq(d->type, "rng");
}

static void serves_a_listening_descriptor_one_front_end_after_the_other(void **state) {
        for (const RequestDevice *d = request_devices; d->name; d++) {
                _cleanup_close_ int fd = -EBADF;
                char how[32];
                pid_t pid;

                if (needs_more(d))
                        continue;
                fd = listen_at(node);
                (void) snprintf(how, sizeof(how), "--fd=%d", fd);
                pid = start(getenv("VMM_DEVICE"), arguments_for(d, how), -EBADF);
                for (unsigned i = 0; i < 3; i++)
                        converse(connect_when_there(node));
                assert_int_equal(kill(pid, SIGTERM), 0);
                assert_int_equal(status_of(pid), 0);
                (void) unlink(node);
        }
}

static void serves_a_connected_descriptor_and_ends_with_it(void **state) {
        for (const RequestDevice *d = request_devices; d->name; d++) {
                char how[32];
                int pair[2];
                pid_t pid;

                if (needs_more(d))
                        continue;
                assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
                assert_int_equal(fcntl(pair[0], F_SETFD, FD_CLOEXEC), 0);
                (void) snprintf(how, sizeof(how), "--fd=%d", pair[1]);
                pid = start(getenv("VMM_DEVICE"), arguments_for(d, how), -EBADF);
                (void) close(pair[1]);
                converse(pair[0]);
                assert_int_equal(status_of(pid), 0);
        }
}

static void serves_a_path_in_place_of_a_dead_socket(void **state) {
        for (const RequestDevice *d = request_devices; d->name; d++) {
                char how[80];
                pid_t pid;

                if (needs_more(d))
                        continue;
                (void) close(listen_at(node)); /* somebody's who is no more */
                (void) snprintf(how, sizeof(how), "--socket-path=%s", node);
                pid = start(getenv("VMM_DEVICE"), arguments_for(d, how), -EBADF);
                for (unsigned i = 0; i < 3; i++)
                        converse(connect_when_there(node));
                assert_int_equal(kill(pid, SIGTERM), 0);
                assert_int_equal(status_of(pid), 0);
                (void) unlink(node);
        }
}

static void is_ended_in_the_middle_of_a_session(void **state) {
        FrontEnd f;

        fe_spawn(&f, (const char *const[]) { "rng", NULL });
        fe_negotiate(&f, 0);
        fe_set_mem_table(&f);
        fe_start_queue(&f, 0, 8);
        assert_int_equal(kill(f.pid, SIGTERM), 0);
        fe_expect_hang_up(&f);
        fe_end(&f);
}

static void a_disk_that_is_read_only_by_their_words_is_so(void **state) {
        FrontEnd f;

        fe_spawn(&f, (const char *const[]) { "block", image, "--read-only", NULL });
        assert_true(fe_get_u64(&f, VHOST_USER_GET_FEATURES) & UINT64_C(1) << 5 /* VIRTIO_BLK_F_RO */);
        fe_end(&f);
        fe_spawn(&f, (const char *const[]) { "block", image, NULL });
        assert_false(fe_get_u64(&f, VHOST_USER_GET_FEATURES) & UINT64_C(1) << 5);
        fe_end(&f);
}

static int make_files(void **state) {
        int fd;

        if (!mkdtemp(directory))
                return -1;
        (void) snprintf(node, sizeof(node), "%s/socket", directory);
        (void) snprintf(image, sizeof(image), "--blk-file=%s/image", directory);
        fd = open(strchr(image, '/'), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        if (fd < 0 || ftruncate(fd, MIB(1)) < 0)
                return -1;
        return close(fd);
}

static int remove_files(void **state) {
        (void) unlink(strchr(image, '/'));
        return rmdir(directory);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(refuses_to_be_of_no_type_or_of_one_that_is_no_back_end),
                cmocka_unit_test(refuses_a_socket_that_is_none_and_two_at_once),
                cmocka_unit_test(refuses_the_options_of_other_types),
                cmocka_unit_test(says_what_each_type_is),
                cmocka_unit_test(ignores_everything_else_when_asked),
                cmocka_unit_test(is_a_program_for_each_type),
                cmocka_unit_test(serves_a_listening_descriptor_one_front_end_after_the_other),
                cmocka_unit_test(serves_a_connected_descriptor_and_ends_with_it),
                cmocka_unit_test(serves_a_path_in_place_of_a_dead_socket),
                cmocka_unit_test(is_ended_in_the_middle_of_a_session),
                cmocka_unit_test(a_disk_that_is_read_only_by_their_words_is_so),
        };

        return cmocka_run_group_tests(tests, make_files, remove_files);
}
