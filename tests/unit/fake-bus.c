/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cmocka.h>

#include "fake-bus.h"

static void copy(char *to, size_t size, const char *from) {
        assert_true(strlen(from) < size);
        strcpy(to, from);
}

static void hang_up(FakeBus *f) {
        for (size_t i = 0; i < f->n_held; i++)
                sd_bus_message_unref(f->held[i]);
        f->n_held = 0;
        for (size_t i = 0; i < f->n_connections; i++) {
                (void) sd_bus_detach_event(f->connections[i]);
                sd_bus_close_unref(f->connections[i]);
        }
        f->n_connections = 0;
}

static int reply(sd_bus_message *m, FakePolkit answer) {
        switch (answer) {
        case FAKE_YES:
                return sd_bus_reply_method_return(m, "(bba{ss})", true, false, 0);
        case FAKE_NO:
                return sd_bus_reply_method_return(m, "(bba{ss})", false, false, 0);
        case FAKE_CHALLENGE:
                return sd_bus_reply_method_return(m, "(bba{ss})", false, true, 1, "polkit.retains_authorization_after_challenge", "1");
        case FAKE_DISMISSED:
                return sd_bus_reply_method_return(m, "(bba{ss})", false, false, 1, "polkit.dismissed", "true");
        case FAKE_ABSENT:
                return sd_bus_reply_method_errorf(m, SD_BUS_ERROR_SERVICE_UNKNOWN, "The name is not activatable");
        case FAKE_MASKED:
                return sd_bus_reply_method_errorf(m, "org.freedesktop.systemd1.UnitMasked", "Unit polkit.service is masked.");
        case FAKE_GARBAGE:
                return sd_bus_reply_method_return(m, "sb", "no", true);
        default:
                return sd_bus_reply_method_errorf(m, "org.freedesktop.PolicyKit1.Error.Failed", "Rules are broken");
        }
}

static void read_subject(FakeBus *f, sd_bus_message *m) {
        const char *kind, *key;

        assert_true(sd_bus_message_enter_container(m, 'r', "sa{sv}") > 0);
        assert_true(sd_bus_message_read(m, "s", &kind) > 0);
        assert_string_equal(kind, "unix-process");
        assert_true(sd_bus_message_enter_container(m, 'a', "{sv}") > 0);
        f->has_pidfd = false;
        while (sd_bus_message_enter_container(m, 'e', "sv") > 0) {
                assert_true(sd_bus_message_read(m, "s", &key) > 0);
                if (streq(key, "pidfd")) {
                        int fd;

                        assert_true(sd_bus_message_read(m, "v", "h", &fd) > 0);
                        f->has_pidfd = fcntl(fd, F_GETFD) >= 0;
                } else if (streq(key, "pid"))
                        assert_true(sd_bus_message_read(m, "v", "u", &f->pid) > 0);
                else if (streq(key, "start-time"))
                        assert_true(sd_bus_message_read(m, "v", "t", &f->start_time) > 0);
                else {
                        assert_string_equal(key, "uid");
                        assert_true(sd_bus_message_read(m, "v", "i", &f->uid) > 0);
                }
                assert_true(sd_bus_message_exit_container(m) >= 0);
        }
        assert_true(sd_bus_message_exit_container(m) >= 0);
        assert_true(sd_bus_message_exit_container(m) >= 0);
}

static void read_check(FakeBus *f, sd_bus_message *m) {
        const char *action, *key, *value, *id;

        read_subject(f, m);
        assert_true(sd_bus_message_read(m, "s", &action) > 0);
        copy(f->action, sizeof(f->action), action);
        assert_true(sd_bus_message_enter_container(m, 'a', "{ss}") > 0);
        while (sd_bus_message_read(m, "{ss}", &key, &value) > 0)
                if (streq(key, "machine"))
                        copy(f->machine, sizeof(f->machine), value);
                else {
                        assert_string_equal(key, "method");
                        copy(f->method, sizeof(f->method), value);
                }
        assert_true(sd_bus_message_exit_container(m) >= 0);
        assert_true(sd_bus_message_read(m, "us", &f->flags, &id) > 0);
        copy(f->cancellation_id, sizeof(f->cancellation_id), id);
        assert_int_equal(sd_bus_message_at_end(m, true), 1);
}

static int on_message(sd_bus_message *m, void *userdata, sd_bus_error *error) {
        FakeBus *f = userdata;
        const char *id;

        if (sd_bus_message_is_method_call(m, "org.freedesktop.DBus", "Hello") > 0)
                return sd_bus_reply_method_return(m, "s", ":1.1");
        if (sd_bus_message_is_method_call(m, "org.freedesktop.PolicyKit1.Authority", "CancelCheckAuthorization") > 0) {
                assert_true(sd_bus_message_read(m, "s", &id) > 0);
                copy(f->cancelled_id, sizeof(f->cancelled_id), id);
                f->n_cancelled++;
                return sd_bus_message_get_expect_reply(m) > 0 ? sd_bus_reply_method_return(m, NULL) : 1;
        }
        if (sd_bus_message_is_method_call(m, "org.freedesktop.PolicyKit1.Authority", "CheckAuthorization") <= 0)
                return 0;
        read_check(f, m);
        f->n_asked++;
        if (f->polkit == FAKE_HANG_UP)
                hang_up(f);
        else if (f->polkit == FAKE_HOLD) {
                assert_true(f->n_held < ELEMENTSOF(f->held));
                f->held[f->n_held++] = sd_bus_message_ref(m);
        } else
                assert_true(reply(m, f->polkit) >= 0);
        return 1;
}

void fake_bus_release(FakeBus *f, FakePolkit answer) {
        sd_bus_message *m = f->held[0];

        assert_true(f->n_held > 0);
        f->n_held--;
        for (size_t i = 0; i < f->n_held; i++)
                f->held[i] = f->held[i + 1];
        assert_true(reply(m, answer) >= 0);
        sd_bus_message_unref(m);
}

static int on_accept(sd_event_source *source, int listen_fd, uint32_t revents, void *userdata) {
        FakeBus *f = userdata;
        sd_id128_t id;
        sd_bus *bus;
        int fd;

        fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        assert_true(fd >= 0);
        if (f->refuses_clients) {
                (void) close(fd);
                return 0;
        }
        assert_true(f->n_connections < ELEMENTSOF(f->connections));
        assert_int_equal(sd_id128_randomize(&id), 0);
        assert_true(sd_bus_new(&bus) >= 0);
        assert_true(sd_bus_set_fd(bus, fd, fd) >= 0);
        assert_true(sd_bus_set_server(bus, true, id) >= 0);
        assert_true(sd_bus_negotiate_fds(bus, true) >= 0);
        assert_true(sd_bus_start(bus) >= 0);
        assert_true(sd_bus_add_filter(bus, NULL, on_message, f) >= 0);
        assert_true(sd_bus_attach_event(bus, f->event, SD_EVENT_PRIORITY_NORMAL) >= 0);
        f->connections[f->n_connections++] = bus;
        return 0;
}

void fake_bus_open(FakeBus *f, sd_event *event) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        char *setting;

        *f = (FakeBus) { .event = sd_event_ref(event) };
        f->directory = strdup("/tmp/vmm-fake-bus-XXXXXX");
        assert_non_null(mkdtemp(f->directory));
        assert_true(asprintf(&f->path, "%s/bus", f->directory) >= 0);
        copy(address.sun_path, sizeof(address.sun_path), f->path);
        f->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        assert_int_equal(bind(f->listen_fd, (struct sockaddr *) &address, sizeof(address)), 0);
        assert_int_equal(listen(f->listen_fd, 16), 0);
        assert_true(sd_event_add_io(event, &f->accept, f->listen_fd, EPOLLIN, on_accept, f) >= 0);
        assert_true(asprintf(&setting, "unix:path=%s", f->path) >= 0);
        assert_int_equal(setenv("DBUS_SYSTEM_BUS_ADDRESS", setting, true), 0);
        free(setting);
}

void fake_bus_close(FakeBus *f) {
        hang_up(f);
        sd_event_source_disable_unref(f->accept);
        (void) safe_close(f->listen_fd);
        (void) unlink(f->path);
        (void) rmdir(f->directory);
        free(f->path);
        free(f->directory);
        sd_event_unref(f->event);
}
