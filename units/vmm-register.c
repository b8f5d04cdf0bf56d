/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* vmm-register MACHINE
 *
 * Runs as root once a machine has started (ExecStartPost=+ of vmm@.service) and makes it known to systemd-machined, for machinectl(1): by
 * Varlink where machined speaks that (systemd 256), else by D-Bus. machined forgets it by itself when the leader, vmmd, ends and the unit does; where
 * the unit was started again at once, with another vmmd, it is told to forget the one before.
 *
 * A machine does not fail for want of this: whatever goes wrong is said, and the exit status is 0. Where there is no machined, nothing is said. */

#include <stdio.h>
#include <systemd/sd-bus.h>

#include "client.h"
#include "definition.h"
#include "idl.h"
#include "json-util.h"
#include "log.h"
#include "machine-uuid.h"
#include "parse.h"
#include "unit-name.h"

#define VARLINK_SOCKET "/run/systemd/machine/io.systemd.Machine"
#define VARLINK_INTERFACE "io.systemd.Machine"
#define BUS_SERVICE "org.freedesktop.machine1"
#define BUS_PATH "/org/freedesktop/machine1"
#define BUS_INTERFACE "org.freedesktop.machine1.Manager"

/* The start of the machine is not complete before we end. */
#define TIMEOUT_USEC (15 * USEC_PER_SEC)

#define SERVICE "vmmd"
#define CLASS "vm"

/* --- the vmmd before this one --- */

static int get_machine(sd_bus *bus, const char *machine, char **ret_unit, uint32_t *ret_leader) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *answer = NULL;
        const char *path;
        int r;

        r = sd_bus_call_method(bus, BUS_SERVICE, BUS_PATH, BUS_INTERFACE, "GetMachine", NULL, &answer, "s", machine);
        if (r >= 0)
                r = sd_bus_message_read(answer, "o", &path);
        if (r >= 0)
                r = sd_bus_get_property_trivial(bus, BUS_SERVICE, path, "org.freedesktop.machine1.Machine", "Leader", NULL, 'u', ret_leader);
        return r < 0 ? r : sd_bus_get_property_string(bus, BUS_SERVICE, path, "org.freedesktop.machine1.Machine", "Unit", NULL, ret_unit);
}

/* Whether machined knew a vmmd of this unit that it is not any more, and has forgotten it. The machine of somebody else is left alone. By D-Bus, which every
 * machined speaks. */
static bool forget_predecessor(const char *machine, pid_t leader) {
        _cleanup_(sd_bus_flush_close_unrefp) sd_bus *bus = NULL;
        _cleanup_free_ char *ours = machine_unit_name(machine, "service"), *unit = NULL;
        uint32_t known;
        int r;

        r = ours ? sd_bus_open_system(&bus) : -ENOMEM;
        if (r >= 0)
                r = get_machine(bus, machine, &unit, &known);
        if (r >= 0 && (!streq(unit, ours) || known == (uint32_t) leader))
                return false;
        if (r >= 0)
                r = sd_bus_call_method(bus, BUS_SERVICE, BUS_PATH, BUS_INTERFACE, "UnregisterMachine", NULL, NULL, "s", machine);
        if (r < 0)
                (void) log_debug_errno(r, "Cannot have systemd-machined forget the vmmd before this one: %m");
        return r >= 0;
}

/* --- by Varlink --- */

/* Whether this machined's Register() has that field: newer ones tell clients of a machine where it is controlled. */
static bool register_takes(VarlinkClient *client, const char *field) {
        _cleanup_(varlink_interface_freep) VarlinkInterface *interface = NULL;
        _cleanup_json_ json_object *question = json_object_new_object(), *answer = NULL;
        const VarlinkSymbol *method;

        if (!question || json_add_string(question, "interface", VARLINK_INTERFACE) < 0 ||
                varlink_client_call(client, "org.varlink.service.GetInterfaceDescription", question, &answer, NULL) < 0 ||
                varlink_interface_parse(json_get_string(answer, "description", ""), &interface, NULL) < 0)
                return false;
        method = varlink_interface_find(interface, VARLINK_SYMBOL_METHOD, "Register");
        for (size_t i = 0; method && i < method->type.n_fields; i++)
                if (streq(method->type.fields[i].name, field))
                        return true;
        return false;
}

static int make_parameters(VarlinkClient *client, const char *machine, pid_t leader, json_object **ret) {
        _cleanup_json_ json_object *parameters = json_object_new_object();
        char id[SD_ID128_STRING_MAX];
        int r;

        if (!parameters)
                return -ENOMEM;
        r = json_add_string(parameters, "name", machine);
        if (r >= 0)
                r = json_add_string(parameters, "id", sd_id128_to_string(machine_uuid(machine), id));
        if (r >= 0)
                r = json_add_string(parameters, "service", SERVICE);
        if (r >= 0)
                r = json_add_string(parameters, "class", CLASS);
        if (r >= 0)
                r = json_add_integer(parameters, "leader", leader);
        if (r >= 0 && register_takes(client, "controlAddress")) {
                _cleanup_free_ char *address = NULL;

                if (asprintf(&address, "/run/vmm/%s/control", machine) < 0) {
                        address = NULL;
                        return -ENOMEM;
                }
                r = json_add_string(parameters, "controlAddress", address);
        }
        if (r < 0)
                return r;
        *ret = TAKE_PTR(parameters);
        return 0;
}

static int call_register(VarlinkClient *client, const char *machine, pid_t leader, json_object *parameters, json_object **ret_answer, char **ret_error_id) {
        _cleanup_json_ json_object *answer = NULL;
        _cleanup_free_ char *error_id = NULL;
        int r;

        r = varlink_client_call(client, VARLINK_INTERFACE ".Register", parameters, &answer, &error_id);
        if (r == -EREMOTEIO && varlink_error_is(error_id, VARLINK_INTERFACE ".MachineExists") && forget_predecessor(machine, leader))
                return varlink_client_call(client, VARLINK_INTERFACE ".Register", parameters, ret_answer, ret_error_id);
        *ret_answer = TAKE_PTR(answer);
        *ret_error_id = TAKE_PTR(error_id);
        return r;
}

/* 1: machined has answered, and what it said was said. 0: nobody is there who speaks Varlink. */
static int register_by_varlink(const char *machine, pid_t leader) {
        _cleanup_(varlink_client_unrefp) VarlinkClient *client = NULL;
        _cleanup_json_ json_object *parameters = NULL, *answer = NULL;
        _cleanup_free_ char *error_id = NULL;
        int r;

        r = varlink_client_connect(VARLINK_SOCKET, &client);
        if (r < 0) {
                log_debug_errno(r, "Cannot connect to " VARLINK_SOCKET ", using D-Bus: %m");
                return 0;
        }
        varlink_client_set_timeout(client, TIMEOUT_USEC);
        r = make_parameters(client, machine, leader, &parameters);
        if (r >= 0)
                r = call_register(client, machine, leader, parameters, &answer, &error_id);
        if (r == -EREMOTEIO && varlink_error_is(error_id, VARLINK_INTERFACE ".MachineExists")) {
                log_warning("systemd-machined knows another machine named '%s'; ours is not in machinectl's list.", machine);
                return 1;
        }
        if (r == -EREMOTEIO && varlink_error_is(error_id, "org.varlink.service.InvalidParameter") &&
                streq(json_get_string(answer, "parameter", ""), "name")) {
                log_notice("'%s' is no host name, so systemd-machined does not take the machine, and machinectl does not list it.", machine);
                return 1;
        }
        if (r == -EREMOTEIO)
                log_warning("systemd-machined does not take the machine: %s %s", error_id ?: "",
                        json_object_to_json_string_ext(answer, JSON_C_TO_STRING_PLAIN));
        else if (r < 0)
                log_warning_errno(r, "Cannot tell systemd-machined of the machine: %m");
        return 1;
}

/* --- by D-Bus --- */

static bool means_absent(const sd_bus_error *error) {
        return sd_bus_error_has_names(error, SD_BUS_ERROR_SERVICE_UNKNOWN, SD_BUS_ERROR_NAME_HAS_NO_OWNER,
                "org.freedesktop.systemd1.NoSuchUnit", "org.freedesktop.systemd1.UnitMasked") > 0;
}

static int call_register_machine(sd_bus *bus, const char *machine, pid_t leader, sd_bus_error *error) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *m = NULL;
        sd_id128_t id = machine_uuid(machine);
        int r;

        r = sd_bus_message_new_method_call(bus, &m, BUS_SERVICE, BUS_PATH, BUS_INTERFACE, "RegisterMachine");
        if (r >= 0)
                r = sd_bus_message_append(m, "s", machine);
        if (r >= 0)
                r = sd_bus_message_append_array(m, 'y', id.bytes, sizeof(id.bytes));
        if (r >= 0)
                r = sd_bus_message_append(m, "ssus", SERVICE, CLASS, (uint32_t) leader, "");
        return r < 0 ? r : sd_bus_call(bus, m, TIMEOUT_USEC, error, NULL);
}

static void register_by_bus(const char *machine, pid_t leader) {
        _cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;
        _cleanup_(sd_bus_flush_close_unrefp) sd_bus *bus = NULL;
        int r;

        r = sd_bus_open_system(&bus);
        if (r < 0) {
                log_debug_errno(r, "There is no system bus: %m");
                return;
        }
        r = call_register_machine(bus, machine, leader, &error);
        if (r < 0 && sd_bus_error_has_name(&error, "org.freedesktop.machine1.MachineExists") && forget_predecessor(machine, leader)) {
                sd_bus_error_free(&error);
                r = call_register_machine(bus, machine, leader, &error);
        }
        if (r >= 0)
                return;
        if (means_absent(&error))
                log_debug("There is no systemd-machined: %s", error.message);
        else if (sd_bus_error_has_name(&error, SD_BUS_ERROR_INVALID_ARGS) && strstr(error.message ?: "", "machine name"))
                log_notice("'%s' is no host name, so systemd-machined does not take the machine, and machinectl does not list it.", machine);
        else
                log_warning("systemd-machined does not take the machine: %s", error.message ?: strerrordesc_np(-r));
}

/* We are gone before the journal can see which unit we belong to: so messages name it, for journalctl -u. */
static void add_log_fields(const char *machine) {
        _cleanup_free_ char *unit = NULL, *field = NULL;

        if (asprintf(&unit, "OBJECT_SYSTEMD_UNIT=vmm@%s.service", machine) < 0)
                unit = NULL;
        else
                log_add_field(unit);
        if (asprintf(&field, "VMM_MACHINE=%s", machine) < 0)
                field = NULL;
        else
                log_add_field(field);
}

int main(int argc, char *argv[]) {
        const char *text = getenv("MAINPID");
        uint64_t leader;

        log_open("vmm-register");
        if (argc != 2 || !machine_name_is_valid(argv[1])) {
                (void) fprintf(stderr, "usage: vmm-register MACHINE, with $MAINPID\n");
                return EXIT_FAILURE;
        }
        add_log_fields(argv[1]);
        if (!text || parse_unsigned(text, &leader) < 0 || leader < 2 || leader > INT32_MAX) {
                log_warning("$MAINPID does not name the machine's process; it is not registered with systemd-machined.");
                return EXIT_SUCCESS;
        }
        if (register_by_varlink(argv[1], (pid_t) leader) == 0)
                register_by_bus(argv[1], (pid_t) leader);
        return EXIT_SUCCESS;
}
