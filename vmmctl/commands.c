/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The table of commands. The help, the manual and the completions are tested against it: "vmmctl --json help" prints it. */

#include "output.h"

#define MANY SIZE_MAX

const Command commands[] = {
        { "start", NULL, GROUP_MACHINE, "NAME...", 1, MANY, command_start, 0,
                "Start machines; reload the units first where definitions are newer" },
        { "stop", NULL, GROUP_MACHINE, "NAME...", 1, MANY, command_stop, OPTION_FORCE | OPTION_TIMEOUT,
                "Stop machines: by the power button, and in the end by force" },
        { "reboot", NULL, GROUP_MACHINE, "NAME...", 1, MANY, command_reboot, 0,
                "Let guests power off, then boot them again in the same process" },
        { "reset", NULL, GROUP_MACHINE, "NAME...", 1, MANY, command_reset, 0,
                "Put machines back to power-on, without asking the guest" },
        { "pause", "suspend", GROUP_MACHINE, "NAME...", 1, MANY, command_pause, OPTION_FULL,
                "Stop the vCPUs; with --full the devices, too" },
        { "resume", NULL, GROUP_MACHINE, "NAME...", 1, MANY, command_resume, OPTION_FULL,
                "Let devices and vCPUs run again" },
        { "reload", NULL, GROUP_MACHINE, "NAME...", 1, MANY, command_reload, 0,
                "Have the installed vmmd take over running machines" },
        { "snapshot", NULL, GROUP_MACHINE, "take|restore|list|remove ...", 1, MANY, command_snapshot, OPTION_STOP | OPTION_COMPRESS | OPTION_DIRECTORY,
                "Keep a machine as it is, and have it go on from there later" },
        { "status", NULL, GROUP_MACHINE, "[NAME...]", 0, MANY, command_status, OPTION_ROOT,
                "Show machines with their devices, and what went wrong" },
        { "list", NULL, GROUP_MACHINE, "", 0, 0, command_list, OPTION_ROOT, "List all machines" },
        { "verify", NULL, GROUP_MACHINE, "NAME|FILE...", 1, MANY, command_verify, OPTION_ROOT,
                "Check definitions without starting anything" },

        { "console", NULL, GROUP_GUEST, "NAME [DEVICE]", 1, 2, command_console, OPTION_ESCAPE | OPTION_PORT, "Attach to a console" },
        { "send-key", NULL, GROUP_GUEST, "NAME KEY[+KEY]...", 2, MANY, command_send_key, OPTION_DEVICE | OPTION_HOLD,
                "Press keys, or keys together, one after the other" },
        { "power-button", "powerbtn", GROUP_GUEST, "NAME...", 1, MANY, command_power_button, 0, "Press the power button" },
        { "sleep-button", "sleepbtn", GROUP_GUEST, "NAME...", 1, MANY, command_sleep_button, 0, "Press the sleep button" },
        { "nmi", NULL, GROUP_GUEST, "NAME [VCPU]", 1, 2, command_nmi, 0,
                "Send a non-maskable interrupt to all vCPUs, or to one" },

        { "balloon", NULL, GROUP_DEVICE, "NAME [SIZE|PERCENT%|max]", 1, 2, command_balloon,
                OPTION_DEVICE | OPTION_WAIT | OPTION_TIMEOUT | OPTION_STATS | OPTION_WORKING_SET | OPTION_HINT | OPTION_INTERVALS |
                        OPTION_REFRESH | OPTION_REPORT,
                "Show the balloons, or take that much memory from the guest" },
        { "balloon-stats", NULL, GROUP_DEVICE, "NAME", 1, 1, command_balloon_stats, OPTION_DEVICE,
                "As balloon --stats: what the guest says about its memory" },
        { "balloon-ws", NULL, GROUP_DEVICE, "NAME", 1, 1, command_balloon_ws,
                OPTION_DEVICE | OPTION_INTERVALS | OPTION_REFRESH | OPTION_REPORT,
                "As balloon --working-set: how old the guest's memory is" },
        { "resize", NULL, GROUP_DEVICE, "NAME DISK [SIZE]", 2, 3, command_resize, 0,
                "Make a disk larger or smaller, or take over its file's size" },
        { "attach", NULL, GROUP_DEVICE, "NAME DEVICE TYPE [OPTION=VALUE...]", 3, MANY, command_attach, OPTION_TIMEOUT,
                "Attach a device to a running machine" },
        { "detach", NULL, GROUP_DEVICE, "NAME DEVICE", 2, 2, command_detach, OPTION_FORCE | OPTION_TIMEOUT,
                "Have the guest let go of a device, and take it away" },
        { "disk", NULL, GROUP_DEVICE, "resize NAME DISK [SIZE]", 3, 4, command_disk, 0, "As resize" },

        { "events", NULL, GROUP_WATCH, "NAME", 1, 1, command_events, OPTION_FOLLOW | OPTION_FILTER | OPTION_STATISTICS,
                "Show the present state; with --follow what happens, as it happens" },
        { "describe", NULL, GROUP_WATCH, "NAME", 1, 1, command_describe, 0,
                "Show what the running machine says of itself, as JSON" },
        { "fdt", NULL, GROUP_WATCH, "NAME", 1, 1, command_fdt, OPTION_DTB,
                "Show the device tree that the guest began with, or would, as source" },
        { "metrics", NULL, GROUP_WATCH, "[NAME...]", 0, MANY, command_metrics, OPTION_PROMETHEUS,
                "Show the numbers of running machines" },
        { "log-level", NULL, GROUP_WATCH, "NAME [DEVICE] LEVEL", 2, 3, command_log_level, 0,
                "Set how much vmmd, or a device's helper, logs" },
        { "help", NULL, GROUP_WATCH, "", 0, MANY, command_help, 0, "Show this help" },
        {},
};

static const char *const groups[] = {
        [GROUP_MACHINE] = "Machine Commands",
        [GROUP_GUEST] = "Guest Commands",
        [GROUP_DEVICE] = "Device Commands",
        [GROUP_WATCH] = "Watching Commands",
};

static bool name_matches(const char *name, const char *typed) {
        for (; *name && *typed; name++, typed++)
                if (*name != (*typed == '_' ? '-' : *typed))
                        return false;
        return *name == *typed;
}

const Command *command_find(const char *name) {
        for (const Command *c = commands; c->name; c++)
                if (name_matches(c->name, name) || (c->alias && name_matches(c->alias, name)))
                        return c;
        return NULL;
}

static int options_to_json(unsigned options, json_object *into) {
        json_object *array = json_object_new_array();
        int r;

        r = json_add(into, "options", array);
        for (unsigned bit = 1; r >= 0 && bit <= options && bit; bit <<= 1)
                if (options & bit)
                        r = json_append(array, json_object_new_string(option_name(bit)));
        return r;
}

static int command_to_json(const Command *c, json_object *array) {
        _cleanup_json_ json_object *o = json_object_new_object();
        int r;

        if (!o)
                return -ENOMEM;
        r = json_add_string(o, "name", c->name);
        if (r >= 0)
                r = json_add_string(o, "alias", c->alias);
        if (r >= 0)
                r = json_add_string(o, "group", groups[c->group]);
        if (r >= 0)
                r = json_add_string(o, "arguments", c->arguments);
        if (r >= 0)
                r = options_to_json(c->options, o);
        if (r >= 0)
                r = json_add_string(o, "description", c->description);
        return r < 0 ? r : json_append(array, TAKE_PTR(o));
}

static int print_table(const Options *o) {
        _cleanup_json_ json_object *array = json_object_new_array();
        int r = array ? 0 : -ENOMEM;

        for (const Command *c = commands; r >= 0 && c->name; c++)
                r = command_to_json(c, array);
        return r < 0 ? r : print_json(o, array);
}

int command_help(const Options *o, char **arguments, size_t n) {
        if (o->json != JSON_OFF)
                return print_table(o) < 0 ? STATUS_FAILED : STATUS_OK;
        (void) printf("vmmctl [OPTIONS...] COMMAND ...\n\n"
                      "%sControl virtual machines that run as systemd services.%s\n",
                color(COLOR_BOLD), color_end());
        for (CommandGroup group = 0; group < _GROUP_MAX; group++) {
                (void) printf("\n%s%s:%s\n", color(COLOR_BOLD), groups[group], color_end());
                for (const Command *c = commands; c->name; c++)
                        if (c->group == group)
                                (void) printf("  %s %-*s %s%s%s%s\n", c->name, (int) (32 - strlen(c->name)), c->arguments,
                                        c->description, c->alias ? " (also: " : "", c->alias ?: "", c->alias ? ")" : "");
        }
        options_print_help();
        (void) printf("\nSee vmmctl(1) for details.\n");
        return STATUS_OK;
}
