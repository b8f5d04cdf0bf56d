/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* vmm-refuse MACHINE[/DEVICE]
 *
 * The templates vmm@.service and vmm-device@.service start with this, and the generator's drop-ins take it away. So an instance without a
 * good definition does not start, and says why: there is none, it is wrong, or the units are older than it is. Always fails. */

#include <stdio.h>

#include "definition.h"
#include "notify.h"

/* As vmmd's own for a wrong definition: vmmd(8), "Exit status". */
#define EXIT_DEFINITION 35

static int say(const char *text) {
        (void) fprintf(stderr, "<3>%s\n", text);
        notify_status("", "%s", text);
        return EXIT_DEFINITION;
}

static int explain_device(const MachineDefinition *definition, const char *device) {
        _cleanup_free_ char *text = NULL;
        size_t i;
        int r;

        for (i = 0; i < definition->n_devices; i++)
                if (streq(definition->devices[i].name, device))
                        break;
        if (i == definition->n_devices)
                r = asprintf(&text, "Machine '%s' has no device '%s'.", definition->name, device);
        else
                r = asprintf(&text, "Device '%s' of machine '%s' has been defined since the units were loaded; run 'systemctl daemon-reload'.",
                        device, definition->name);
        if (r < 0)
                text = NULL;
        return say(text ? text : "Out of memory.");
}

static int explain_machine(const char *machine, const char *device) {
        _cleanup_(machine_definition_freep) MachineDefinition *definition = NULL;
        _cleanup_(definition_error_done) DefinitionError error = {};
        _cleanup_free_ char *text = NULL;
        int r;

        r = definition_load(getenv("VMM_ROOT"), machine, &definition, &error);
        if (r >= 0 && device)
                return explain_device(definition, device);
        if (r == -EBADMSG)
                text = definition_error_to_string(&error);
        else if (r == -ENOENT)
                r = asprintf(&text, "No machine '%s' is defined: there is no %s.json in /etc/vmm, /run/vmm/machines or /usr/lib/vmm/machines, or the first is empty.",
                        machine, machine);
        else if (r < 0)
                r = asprintf(&text, "Cannot read the definition of machine '%s': %s", machine, strerrordesc_np(-r));
        else
                r = asprintf(&text, "The definition of machine '%s' is newer than the loaded units; run 'systemctl daemon-reload'.", machine);
        if (r == -1)
                text = NULL;
        return say(text ? text : "Out of memory.");
}

int main(int argc, char *argv[]) {
        _cleanup_free_ char *machine = NULL;
        char *device;

        if (argc != 2) {
                (void) fprintf(stderr, "usage: vmm-refuse MACHINE[/DEVICE]\n");
                return EXIT_DEFINITION;
        }
        machine = strdup(argv[1]);
        if (!machine)
                return say("Out of memory.");
        device = strchr(machine, '/');
        if (device)
                *device++ = 0;
        return explain_machine(machine, device);
}
