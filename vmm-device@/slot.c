/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <stdio.h>
#include <sys/socket.h>
#include <systemd/sd-daemon.h>

#include "interfaces.h"
#include "json-util.h"
#include "slot-configuration.h"
#include "slot.h"

/* The manager has better things to do at times, and we nothing: but our client waits. */
#define BARRIER_TIMEOUT_USEC (10 * USEC_PER_SEC)
/* Under which name the connection is kept whose call the successor answers; no option can be called so. */
#define CLIENT_NAME "slot-client"
/* What could not be opened again may be some other time. */
#define RETRY_USEC (10 * USEC_PER_SEC)

struct Slot {
        Helper *helper;
        SlotConfiguration *configuration; /* NULL: free */
        VarlinkCall *unanswered;          /* the successor answers */
        sd_event_source *leave, *retry;
        bool leaving;
        int releaser; /* the connection of whoever waits until there is nothing left of the device */
};

/* ---- from a configuration to a device ---- */

/* The descriptors first, what tells of them last: half of it is as good as nothing. */
static int keep_fds(Slot *s) {
        PassedFds *passed = &s->helper->passed;
        int r = 0;

        for (size_t i = 0; i < passed->n && r >= 0; i++)
                r = passed_fds_keep(passed, passed->fds[i].name, passed->fds[i].fd);
        return r;
}

/* Whoever is told that it was may rely on it. */
static int wait_until_kept(void) {
        int r = sd_notify_barrier(false, BARRIER_TIMEOUT_USEC);

        return MIN(r, 0);
}

static int keep_configuration(Slot *s) {
        _cleanup_close_ int fd = slot_configuration_save(s->configuration);
        int r;

        if (fd < 0)
                return fd;
        r = passed_fds_keep(&s->helper->passed, SLOT_CONFIGURATION_NAME, fd);
        return r < 0 ? r : wait_until_kept();
}

static void forget(Slot *s) {
        int r = passed_fds_forget_all(&s->helper->passed);

        if (r < 0)
                (void) log_warning_errno(r, "Cannot tell the service manager to forget the device: %m");
}

/* From here on the process is that device's helper. */
static int become(Slot *s) {
        SlotConfiguration *c = s->configuration;
        Helper *h = s->helper;
        _cleanup_free_ char *field = NULL;
        int r;

        free(h->sockets.name);
        h->sockets.name = strdup(c->name);
        if (!h->sockets.name || asprintf(&field, "VMM_DEVICE=%s", c->name) < 0) {
                field = NULL;
                return log_oom();
        }
        log_add_field(field);
        h->passed.managed = h->passed.complete = true;
        r = helper_open(h, c->class, c->type, c->options);
        return r < 0 ? r : helper_serve(h);
}

static int confine(Slot *s) {
        const SlotConfiguration *c = s->configuration;
        int r;

        r = helper_enter_sandbox(s->helper, c->class->policy);
        if (r >= 0)
                (void) sd_notifyf(false, "READY=1\nSTATUS=Serving a %s device: %s", c->type->name, c->name);
        return r;
}

/* ---- io.vmmd.Slot ---- */

static int reply_message(VarlinkCall *call, const char *error_id, const char *message) {
        _cleanup_json_ json_object *parameters = json_object_new_object();

        if (!parameters || json_add_string(parameters, "message", message) < 0)
                return -ENOMEM;
        return varlink_call_error(call, error_id, parameters);
}

static int reply_configured(Slot *s, VarlinkCall *call) {
        _cleanup_json_ json_object *parameters = json_object_new_object();

        if (!parameters || json_add_string(parameters, "type", s->configuration->type->name) < 0 ||
                json_add_string(parameters, "name", s->configuration->name) < 0)
                return -ENOMEM;
        return varlink_call_error(call, "io.vmmd.Slot.AlreadyConfigured", parameters);
}

static int take_descriptors(VarlinkCall *call, json_object *list, PassedFds *passed, char **ret_message) {
        size_t n = list ? json_object_array_length(list) : 0;
        int r;

        for (size_t i = 0; i < n; i++) {
                json_object *d = json_object_array_get_idx(list, i);
                int64_t index = json_get_integer(d, "index", -1);
                int fd = varlink_call_take_fd(call, index);

                if (fd < 0)
                        return set_message(ret_message, -EINVAL, "Descriptor %lld did not come with the call, or is named twice.",
                                (long long) index);
                r = passed_fds_add(passed, json_get_string(d, "option", ""), fd);
                if (r < 0)
                        return r;
        }
        return 0;
}

/* Checks everything before it changes anything. */
static int take_configuration(Slot *s, VarlinkCall *call, json_object *parameters, char **ret_message) {
        _cleanup_(slot_configuration_freep) SlotConfiguration *c = NULL;
        PassedFds passed = {};
        int r;

        r = slot_configuration_new(parameters, &c, ret_message);
        if (r >= 0)
                r = take_descriptors(call, json_get(parameters, "fileDescriptors", json_type_array), &passed, ret_message);
        if (r >= 0)
                r = slot_configuration_check_fds(c, &passed, ret_message);
        if (r < 0) {
                passed_fds_done(&passed);
                return r;
        }
        passed_fds_done(&s->helper->passed);
        s->helper->passed = passed;
        s->configuration = TAKE_PTR(c);
        return 0;
}

/* What the device's files log is why it could not be opened: the caller is told, too. */
static int become_or_explain(Slot *s, char **ret_why) {
        int r;

        log_copy_errors(ret_why);
        r = keep_fds(s);
        if (r < 0)
                (void) log_error_errno(r, "Cannot have the service manager keep the device's descriptors: %m");
        else
                r = become(s);
        if (r >= 0) {
                r = keep_configuration(s);
                if (r < 0)
                        (void) log_error_errno(r, "Cannot have the service manager keep the slot's configuration: %m");
        }
        log_copy_errors(NULL);
        return r;
}

static int leave_soon(Slot *s, bool success);

/* Another project's program cannot live in a sandbox that was made for us, and what we start inherits ours. So we leave everything to a successor, which
 * nothing confines yet, the connection of whoever waits for the answer included. */
static int hand_over(Slot *s, VarlinkCall *call) {
        PassedFds *passed = &s->helper->passed;
        int r;

        r = keep_fds(s);
        if (r >= 0)
                r = passed_fds_keep(passed, CLIENT_NAME, varlink_call_peer_fd(call));
        if (r >= 0)
                r = keep_configuration(s);
        if (r < 0) {
                forget(s);
                s->configuration = slot_configuration_free(s->configuration);
                return r;
        }
        s->unanswered = varlink_call_ref(call);
        return sd_event_exit(s->helper->event, SLOT_STATUS_AGAIN);
}

static int method_configure(VarlinkCall *call, json_object *parameters, void *userdata) {
        _cleanup_free_ char *message = NULL, *why = NULL;
        Slot *s = userdata;
        int r;

        if (s->configuration)
                return reply_configured(s, call);
        if (s->leaving)
                return -ESHUTDOWN;
        r = take_configuration(s, call, parameters, &message);
        if (r == -EINVAL)
                return reply_message(call, "io.vmmd.Slot.WrongConfiguration", message ?: "Out of memory.");
        if (r < 0)
                return r;

        if (s->configuration->class->foreign)
                return hand_over(s, call);
        r = become_or_explain(s, &why);
        if (r < 0) {
                forget(s);
                /* Half a device may have been made: the successor begins with nothing. */
                (void) reply_message(call, "io.vmmd.Slot.CannotOpen", why ?: strerrordesc_np(-r));
                return leave_soon(s, true);
        }
        r = confine(s);
        if (r < 0)
                return leave_soon(s, false);
        log_info("This is %s device '%s' from now on.", s->configuration->type->name, s->configuration->name);
        return varlink_call_reply(call, NULL);
}

static int method_describe(VarlinkCall *call, json_object *parameters, void *userdata) {
        _cleanup_json_ json_object *reply = json_object_new_object();
        Slot *s = userdata;
        int r = reply ? 0 : -ENOMEM;

        if (r >= 0 && s->configuration) {
                r = json_add_string(reply, "type", s->configuration->type->name);
                if (r >= 0)
                        r = json_add_string(reply, "name", s->configuration->name);
        }
        return r < 0 ? r : varlink_call_reply(call, reply);
}

static int method_release(VarlinkCall *call, json_object *parameters, void *userdata) {
        Slot *s = userdata;
        Helper *h = s->helper;

        if (s->releaser >= 0)
                return -ESHUTDOWN;
        s->releaser = fcntl(varlink_call_peer_fd(call), F_DUPFD_CLOEXEC, 3);
        if (s->releaser < 0)
                return -errno;
        /* When the answer comes, nothing of the guest's is under way any more, and a disk or an interface can be had by somebody else: so it comes last of all. */
        h->accept_source = sd_event_source_disable_unref(h->accept_source);
        if (h->device)
                (void) session_free(h->device->session);
        s->unanswered = varlink_call_ref(call);
        return leave_soon(s, true);
}

static int on_leave(sd_event_source *source, void *userdata) {
        Slot *s = userdata;

        return sd_event_exit(s->helper->event, s->leaving ? 0 : -ECANCELED);
}

/* Once the answers that are queued have been sent, as far as their clients take them. */
static int leave_soon(Slot *s, bool success) {
        int r;

        s->leaving = success;
        if (s->leave)
                return 0;
        (void) sd_notify(false, "STOPPING=1");
        r = sd_event_add_defer(s->helper->event, &s->leave, on_leave, s);
        if (r >= 0)
                r = sd_event_source_set_priority(s->leave, SD_EVENT_PRIORITY_IDLE);
        return r < 0 ? sd_event_exit(s->helper->event, r) : 0;
}

static const VarlinkMethod methods[] = {
        { .name = "Configure", .callback = method_configure },
        { .name = "Describe", .callback = method_describe },
        { .name = "Release", .callback = method_release },
        {},
};

/* ---- the beginning ---- */

/* The answer to a call, where our server is not there for it: our predecessor took it, or everything else has ended. */
static int answer_client(int fd, const char *why) {
        _cleanup_json_ json_object *message = json_object_new_object(), *parameters = json_object_new_object();
        const char *text;
        size_t length;
        int r = message && parameters ? 0 : -ENOMEM;

        if (r >= 0 && why)
                r = json_add_string(message, "error", "io.vmmd.Slot.CannotOpen");
        if (r >= 0 && why)
                r = json_add_string(parameters, "message", why);
        if (r >= 0)
                r = json_add(message, "parameters", TAKE_PTR(parameters));
        if (r < 0)
                return r;
        text = json_object_to_json_string_length(message, JSON_C_TO_STRING_PLAIN, &length);
        /* With the NUL, which ends a message. Whoever has not read so much that there is no room for this does not want it. */
        return send(fd, text, length + 1, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 ? -errno : 0;
}

/* 1 where there is no device: then who waited for it was told so. */
static int become_for_client(Slot *s, int client) {
        _cleanup_close_ int fd = client;
        _cleanup_free_ char *why = NULL;
        int r;

        (void) passed_fds_forget(&s->helper->passed, CLIENT_NAME);
        log_copy_errors(&why);
        r = become(s);
        log_copy_errors(NULL);
        if (r < 0) {
                forget(s);
                (void) answer_client(fd, why ?: strerrordesc_np(-r));
                return 1;
        }
        r = answer_client(fd, NULL);
        if (r < 0)
                return log_error_errno(r, "Cannot answer whoever configured the slot: %m");
        r = varlink_server_adopt_connection(s->helper->server, TAKE_FD(fd));
        return r < 0 ? log_error_errno(r, "Cannot go on with the connection of whoever configured the slot: %m") : 0;
}

/* 1 where there is a predecessor's configuration. Without one, what else was kept is the rest of something that came to nothing. */
static int load_configuration(Slot *s) {
        PassedFds *passed = &s->helper->passed;
        _cleanup_free_ char *message = NULL;
        _cleanup_close_ int fd = passed_fds_take(passed, SLOT_CONFIGURATION_NAME);
        int r;

        if (fd < 0) {
                forget(s);
                passed_fds_done(passed);
                return 0;
        }
        r = slot_configuration_load(fd, &s->configuration, &message);
        if (r < 0)
                return log_error_errno(r, "What the service manager kept of the slot's configuration cannot be used: %s",
                        message ?: strerrordesc_np(-r));
        return 1;
}

static int add_interface(Slot *s) {
        Helper *h = s->helper;
        int r;

        if (!h->server)
                return log_error_errno(-EINVAL, "A slot needs a control socket: it is told there which device it is.");
        r = varlink_server_add_interface(h->server, varlink_text_io_vmmd_Slot, methods, s);
        return r < 0 ? log_error_errno(r, "Cannot make the control interface: %m") : 0;
}

static int wait_for_configuration(Slot *s) {
        Helper *h = s->helper;
        int r;

        r = helper_listen(h);
        if (r >= 0)
                r = helper_enter_sandbox(h, "slot");
        if (r >= 0)
                (void) sd_notify(false, "READY=1\nSTATUS=Waiting for a device");
        return r;
}

static int on_retry(sd_event_source *source, uint64_t usec, void *userdata) {
        return sd_event_exit(sd_event_source_get_event(source), SLOT_STATUS_AGAIN);
}

/* A device that was there, and cannot be opened any more. The next attempt is a successor's; meanwhile whoever wants to be rid of it can say so. */
static int wait_for_better_times(Slot *s) {
        const SlotConfiguration *c = s->configuration;
        Helper *h = s->helper;
        int r;

        r = sd_event_add_time_relative(h->event, &s->retry, CLOCK_MONOTONIC, RETRY_USEC, 0, on_retry, s);
        if (r < 0)
                return log_error_errno(r, "Cannot wait: %m");
        r = helper_listen(h);
        if (r >= 0)
                r = helper_enter_sandbox(h, "slot");
        if (r >= 0)
                (void) sd_notifyf(false, "READY=1\nSTATUS=Cannot open the %s device %s, trying again", c->type->name, c->name);
        return r;
}

int slot_begin(Slot *s) {
        int client, r;

        r = add_interface(s);
        if (r >= 0)
                r = load_configuration(s);
        if (r < 0)
                return r;
        if (r == 0)
                return wait_for_configuration(s);
        client = passed_fds_take(&s->helper->passed, CLIENT_NAME);
        r = client >= 0 ? become_for_client(s, client) : become(s);
        if (r < 0 && !s->helper->device)
                return wait_for_better_times(s);
        return r != 0 ? r : confine(s);
}

void slot_end(Slot *s) {
        int r;

        if (!s || s->releaser < 0)
                return;
        forget(s);
        helper_done(s->helper);
        r = wait_until_kept();
        if (r < 0)
                (void) log_warning_errno(r, "The service manager does not say that it has let go of the device: %m");
        (void) answer_client(s->releaser, NULL);
}

int slot_new(Helper *h, Slot **ret) {
        Slot *s = calloc(1, sizeof(*s));

        if (!s)
                return log_oom();
        s->helper = h;
        s->releaser = -EBADF;
        *ret = s;
        return 0;
}

Slot *slot_free(Slot *s) {
        if (!s)
                return NULL;
        (void) sd_event_source_disable_unref(s->leave);
        (void) sd_event_source_disable_unref(s->retry);
        (void) varlink_call_unref(s->unanswered);
        (void) safe_close(s->releaser);
        (void) slot_configuration_free(s->configuration);
        return mfree(s);
}
