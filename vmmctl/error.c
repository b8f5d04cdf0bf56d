/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Varlink's errors, one clear sentence each. */

#include <inttypes.h>

#include "machine.h"
#include "output.h"

typedef int (*Translator)(json_object *p, char **ret);

static int no_such_device(json_object *p, char **ret) {
        return set_message(ret, -ENODEV, "there is no device '%s'", json_get_string(p, "device", "?"));
}

static int unknown_key(json_object *p, char **ret) {
        return set_message(ret, -EINVAL, "the device has no key '%s'", json_get_string(p, "key", "?"));
}

static int no_such_port(json_object *p, char **ret) {
        return set_message(ret, -ENODEV, "the console has no port '%s'", json_get_string(p, "port", "?"));
}

static int device_exists(json_object *p, char **ret) {
        return set_message(ret, -EEXIST, "there is a device '%s' already", json_get_string(p, "device", "?"));
}

static int not_detachable(json_object *p, char **ret) {
        return set_message(ret, -EOPNOTSUPP, "the device '%s' cannot be detached", json_get_string(p, "device", "?"));
}

static int detach_timed_out(json_object *p, char **ret) {
        uint64_t timeout = (uint64_t) json_get_integer(p, "timeout", 0);

        return set_message(ret, -ETIMEDOUT, "the guest did not let go of the device '%s' within %" PRIu64 ".%" PRIu64
                " s; it stays attached. --force takes it away all the same", json_get_string(p, "device", "?"), timeout / USEC_PER_SEC,
                timeout % USEC_PER_SEC / (USEC_PER_SEC / 10));
}

static int wrong_definition(json_object *p, char **ret) {
        return set_message(ret, -EINVAL, "%s", json_get_string(p, "message", "the device is not as vmm.machine(5) has it"));
}

static int snapshot_failed(json_object *p, char **ret) {
        return set_message(ret, -EIO, "%s", json_get_string(p, "message", "the snapshot could not be taken"));
}

static int superseded(json_object *p, char **ret) {
        _cleanup_free_ char *target = format_bytes((uint64_t) json_get_integer(p, "target", 0));

        return set_message(ret, -ECANCELED, "another target, %s, was set before the guest had reached this one", target ?: "?");
}

static int guest_cannot(json_object *p, char **ret) {
        static const struct {
                const char *feature, *words;
        } features[] = {
                { "mustTellHost", "tells before it takes pages back" },
                { "statistics", "reports statistics of its memory" },
                { "deflateOnOom", "takes pages back when memory runs out" },
                { "freePageHinting", "says which pages are free when it is asked" },
                { "freePageReporting", "reports pages as they become free" },
                { "pagePoison", "says what it poisons free pages with" },
                { "workingSet", "reports how old its memory is" },
        };
        const char *feature = json_get_string(p, "feature", "?"), *words = NULL;

        for (size_t i = 0; i < ELEMENTSOF(features); i++)
                if (streq(features[i].feature, feature))
                        words = features[i].words;
        if (!words)
                return set_message(ret, -EOPNOTSUPP, "the guest has no balloon driver with the feature '%s'", feature);
        return set_message(ret, -EOPNOTSUPP, "the guest has no balloon driver that %s", words);
}

static int no_answer(json_object *p, char **ret) {
        uint64_t timeout = (uint64_t) json_get_integer(p, "timeout", 0);

        return set_message(ret, -ETIMEDOUT, "the guest did not answer within %" PRIu64 ".%" PRIu64 " s", timeout / USEC_PER_SEC,
                timeout % USEC_PER_SEC / (USEC_PER_SEC / 10));
}

static int reload_failed(json_object *p, char **ret) {
        return set_message(ret, -ECANCELED, "%s The guest runs on as before", json_get_string(p, "reason", "The program was not replaced."));
}

static int wrong_state(json_object *p, char **ret) {
        return set_message(ret, -EBUSY, "it cannot do that while it is %s", json_get_string(p, "state", "as it is"));
}

static int device_failed(json_object *p, char **ret) {
        return set_message(ret, -EIO, "the device '%s' failed: %s", json_get_string(p, "device", "?"),
                json_get_string(p, "reason", "no reason given"));
}

static int denied(json_object *p, char **ret) {
        const char *reason = json_get_string(p, "reason", NULL);

        return set_message(ret, -EACCES, "permission denied%s%s", reason ? ": " : "", reason ?: "");
}

static int needs_user(json_object *p, char **ret) {
        return set_message(ret, -EACCES,
                "permission denied: you would have to be asked, which takes a terminal as standard input, and no --no-ask-password");
}

static int system_error(json_object *p, char **ret) {
        return set_message(ret, -EIO, "%s", strerror((int) json_get_integer(p, "errno", EIO)));
}

static int invalid_parameter(json_object *p, char **ret) {
        return set_message(ret, -EINVAL, "it does not take that value of '%s'", json_get_string(p, "parameter", "?"));
}

static int not_implemented(json_object *p, char **ret) {
        return set_message(ret, -EOPNOTSUPP, "its vmmd does not know the method %s", json_get_string(p, "method", "?"));
}

static int no_interface(json_object *p, char **ret) {
        return set_message(ret, -EOPNOTSUPP, "its vmmd does not know the interface %s", json_get_string(p, "interface", "?"));
}

static const struct {
        const char *id;
        Translator translate;
        int error; /* and what it says, where there is nothing to be put into the sentence */
        const char *sentence;
} errors[] = {
        { "io.vmmd.Machine.NoSuchDevice", no_such_device },
        { "io.vmmd.Machine.DeviceExists", device_exists },
        { "io.vmmd.Machine.NoFreeSlot", NULL, -ENOSPC,
                "all its spare devices, or places on the PCI bus, are taken (hotplugSlots in the definition)" },
        { "io.vmmd.Machine.NotDetachable", not_detachable },
        { "io.vmmd.Machine.DetachTimedOut", detach_timed_out },
        { "io.vmmd.Machine.WrongDefinition", wrong_definition },
        { "io.vmmd.Machine.SnapshotFailed", snapshot_failed },
        { "io.vmmd.Machine.NoConsole", NULL, -ENODEV, "the machine has no console" },
        { "io.vmmd.Machine.NoSuchPort", no_such_port },
        { "io.vmmd.Machine.NoInput", NULL, -ENODEV, "the machine has no input device" },
        { "io.vmmd.Machine.UnknownKey", unknown_key },
        { "io.vmmd.Machine.NoBalloon", NULL, -ENODEV, "the machine has no balloon" },
        { "io.vmmd.Machine.TargetSuperseded", superseded },
        { "io.vmmd.Machine.GuestCannot", guest_cannot },
        { "io.vmmd.Machine.GuestDoesNotAnswer", no_answer },
        { "io.vmmd.Machine.NotSupported", NULL, -EOPNOTSUPP, "it cannot do that" },
        { "io.vmmd.Machine.ReloadFailed", reload_failed },
        { "io.vmmd.Machine.WrongState", wrong_state },
        { "io.vmmd.Machine.DeviceFailed", device_failed },
        { "io.systemd.Metrics.NoSuchMetric", NULL, -ENODATA, "it has no such numbers" },
        { "io.systemd.InteractiveAuthenticationRequired", needs_user },
        { "io.systemd.System", system_error },
        { "org.varlink.service.PermissionDenied", denied },
        { "org.varlink.service.InvalidParameter", invalid_parameter },
        { "org.varlink.service.MethodNotFound", not_implemented },
        { "org.varlink.service.MethodNotImplemented", not_implemented },
        { "org.varlink.service.InterfaceNotFound", no_interface },
};

int error_translate(const char *error_id, json_object *parameters, char **ret_problem) {
        for (size_t i = 0; i < ELEMENTSOF(errors); i++)
                if (varlink_error_is(error_id, errors[i].id))
                        return errors[i].translate ? errors[i].translate(parameters, ret_problem) :
                                                     set_message(ret_problem, errors[i].error, "%s", errors[i].sentence);
        return set_message(ret_problem, -EIO, "%s %s", error_id,
                json_object_to_json_string_ext(parameters, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE));
}
