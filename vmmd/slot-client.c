/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>

#include "client.h"
#include "json-util.h"
#include "slot-client.h"

#define INTERFACE "io.vmmd.Slot."

/* A helper that ends closes what was on its way to it; its unit is back at once. */
#define RETRY_USEC (100 * USEC_PER_MSEC)
#define PATIENCE_USEC (10 * USEC_PER_SEC)

struct SlotClient {
        sd_event *event;
        char *path;
        json_object *parameters; /* of Configure; NULL: Release */
        const SlotDescriptor *descriptors;
        size_t n_descriptors;
        SlotDone done;
        void *userdata;

        VarlinkClient *client;
        sd_event_source *retry;
        uint64_t give_up_usec;
        bool releasing; /* the call under way is Release */
        bool released;  /* before a second attempt to configure */
        bool again;     /* what it is already may be this */
};

SlotClient *slot_client_free(SlotClient *s) {
        if (!s)
                return NULL;
        (void) sd_event_source_disable_unref(s->retry);
        (void) varlink_client_unref(s->client);
        (void) sd_event_unref(s->event);
        (void) json_object_put(s->parameters);
        free(s->path);
        return mfree(s);
}

/* The last thing that happens: the client may be gone afterwards. */
static void finish(SlotClient *s, int error, const char *message) {
        s->done(error, message, s->userdata);
}

static int begin(SlotClient *s);

static int on_retry(sd_event_source *source, uint64_t usec, void *userdata) {
        SlotClient *s = userdata;
        int r;

        s->retry = sd_event_source_disable_unref(s->retry);
        r = begin(s);
        if (r < 0)
                finish(s, r, strerror(-r));
        return 0;
}

static int retry_later(SlotClient *s) {
        s->client = varlink_client_unref(s->client);
        if (now_usec() >= s->give_up_usec)
                return -ETIMEDOUT;
        return sd_event_add_time_relative(s->event, &s->retry, CLOCK_MONOTONIC, RETRY_USEC, 0, on_retry, s);
}

static bool is_passing(int error) {
        return error == -ECONNRESET || error == -EPIPE || error == -EAGAIN;
}

/* What the helper says where it says no. */
static void refused(SlotClient *s, const char *error_id, json_object *reply) {
        const char *message = json_get_string(reply, "message", error_id);

        if (varlink_error_is(error_id, INTERFACE "WrongConfiguration"))
                finish(s, -EINVAL, message);
        else
                finish(s, -EIO, message);
}

static void on_reply(VarlinkClient *c, int error, const char *error_id, json_object *reply, bool continues, void *userdata) {
        SlotClient *s = userdata;
        bool was_release = s->releasing;
        int r = error;

        if (r == -EREMOTEIO) {
                if (s->again && varlink_error_is(error_id, INTERFACE "AlreadyConfigured")) {
                        bool same = streq(json_get_string(reply, "name", ""), json_get_string(s->parameters, "name", ""));

                        finish(s, same ? 0 : -EBUSY, same ? NULL : "its unit is another device by now");
                        return;
                }
                if (!varlink_error_is(error_id, INTERFACE "AlreadyConfigured") || was_release || s->released) {
                        refused(s, error_id, reply);
                        return;
                }
                /* Another vmmd left it so. */
                s->releasing = true;
                s->client = varlink_client_unref(s->client);
                r = begin(s);
        } else if (is_passing(r))
                r = retry_later(s);
        else if (r >= 0 && was_release && s->parameters) {
                s->releasing = false;
                s->released = true;
                r = retry_later(s); /* it is ending */
        } else if (r >= 0) {
                finish(s, 0, NULL);
                return;
        }
        if (r < 0)
                finish(s, r, strerror(-r));
}

static int push_descriptors(SlotClient *s, json_object *parameters) {
        _cleanup_json_ json_object *list = json_object_new_array();

        for (size_t i = 0; i < s->n_descriptors && list; i++) {
                _cleanup_json_ json_object *entry = json_object_new_object();
                _cleanup_close_ int copy = fcntl(s->descriptors[i].fd, F_DUPFD_CLOEXEC, 3);
                int index, r;

                if (!entry)
                        return -ENOMEM;
                if (copy < 0)
                        return -errno;
                index = varlink_client_push_fd(s->client, copy);
                if (index < 0)
                        return index;
                TAKE_FD(copy);
                r = json_add_string(entry, "option", s->descriptors[i].option);
                if (r >= 0)
                        r = json_add_integer(entry, "index", index);
                if (r >= 0)
                        r = json_append(list, TAKE_PTR(entry));
                if (r < 0)
                        return r;
        }
        return json_add(parameters, "fileDescriptors", TAKE_PTR(list));
}

static int begin(SlotClient *s) {
        int r;

        r = varlink_client_connect(s->path, &s->client);
        if (r == -EAGAIN)
                return retry_later(s);
        if (r >= 0)
                r = varlink_client_attach_event(s->client, s->event);
        if (r >= 0 && !s->releasing)
                r = push_descriptors(s, s->parameters);
        if (r < 0)
                return r;
        return varlink_client_call_async(s->client, s->releasing ? INTERFACE "Release" : INTERFACE "Configure",
                s->releasing ? NULL : s->parameters, 0, on_reply, s);
}

static int slot_client_new(sd_event *event, const char *path, SlotDone done, void *userdata, SlotClient **ret) {
        _cleanup_(slot_client_freep) SlotClient *s = calloc(1, sizeof(SlotClient));

        if (!s)
                return -ENOMEM;
        s->event = sd_event_ref(event);
        s->done = done;
        s->userdata = userdata;
        s->give_up_usec = now_usec() + PATIENCE_USEC;
        s->path = strdup(path);
        if (!s->path)
                return -ENOMEM;
        *ret = TAKE_PTR(s);
        return 0;
}

static int configure(sd_event *event, const char *path, json_object *parameters, const SlotDescriptor *descriptors, size_t n_descriptors,
        bool again, SlotDone done, void *userdata, SlotClient **ret) {
        _cleanup_(slot_client_freep) SlotClient *s = NULL;
        int r;

        r = slot_client_new(event, path, done, userdata, &s);
        if (r < 0)
                return r;
        s->parameters = json_object_get(parameters);
        s->descriptors = descriptors;
        s->n_descriptors = n_descriptors;
        s->again = again;
        r = begin(s);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(s);
        return 0;
}

int slot_configure(sd_event *event, const char *path, json_object *parameters, const SlotDescriptor *descriptors, size_t n_descriptors,
        SlotDone done, void *userdata, SlotClient **ret) {
        return configure(event, path, parameters, descriptors, n_descriptors, false, done, userdata, ret);
}

int slot_configure_again(sd_event *event, const char *path, json_object *parameters, const SlotDescriptor *descriptors, size_t n_descriptors,
        SlotDone done, void *userdata, SlotClient **ret) {
        return configure(event, path, parameters, descriptors, n_descriptors, true, done, userdata, ret);
}

int slot_release(sd_event *event, const char *path, SlotDone done, void *userdata, SlotClient **ret) {
        _cleanup_(slot_client_freep) SlotClient *s = NULL;
        int r;

        r = slot_client_new(event, path, done, userdata, &s);
        if (r < 0)
                return r;
        s->releasing = true;
        r = begin(s);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(s);
        return 0;
}
