/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "foreign-unit.h"

void put_word(FILE *f, const char *word, bool command) {
        (void) fputc('"', f);
        for (const char *p = word; *p; p++) {
                if (*p == '"' || *p == '\\')
                        (void) fputc('\\', f);
                else if (*p == '%' || (*p == '$' && command))
                        (void) fputc(*p, f);
                (void) fputc(*p, f);
        }
        (void) fputc('"', f);
}

static void put_line(FILE *f, const char *key, const char *word) {
        (void) fprintf(f, "%s=", key);
        put_word(f, word, false);
        (void) fputc('\n', f);
}

/* The host's network. Addresses are still denied where they were. */
static void put_host_network(FILE *f) {
        (void) fputs("PrivateNetwork=no\nRestrictAddressFamilies=AF_INET AF_INET6\n", f);
}

static void put_user(FILE *f, const DeviceDefinition *device) {
        const char *user = device_definition_string(device, "user", NULL);

        if (user)
                (void) fprintf(f, "User=%s\nDynamicUser=no\n", user);
}

/* "[ADDRESS]:PORT", "ADDRESS:PORT" */
static void put_address(FILE *f, const char *server) {
        const char *colon = strrchr(server, ':');
        bool brackets = *server == '[';

        (void) fprintf(f, "IPAddressAllow=%.*s\n", (int) (colon - server) - 2 * brackets, server + brackets);
}

static void put_storage(FILE *f, const DeviceDefinition *device) {
        const char *credential = device_definition_string(device, "keyCredential", NULL);
        const char *server = device_definition_string(device, "server", NULL), *path = server ? startswith(server, "unix:") : NULL;

        if (credential)
                (void) fprintf(f, "LoadCredentialEncrypted=%s\n", credential);
        if (path)
                put_line(f, "BindReadOnlyPaths", path);
        else if (server) {
                put_host_network(f);
                put_address(f, server);
        }
}

/* What the guest makes belongs to one user, and that is what it is told when it gives its own away: fchown(2) to oneself. Each file that it
 * knows is a descriptor. */
static void put_fs(FILE *f, const DeviceDefinition *device) {
        put_user(f, device);
        (void) fputs("SystemCallFilter=@chown\nLimitNOFILE=1048576\n", f);
}

/* Its packets are sockets of the host's. It makes a sandbox of its own, of namespaces, and does not run without. */
static void put_passt(FILE *f) {
        put_host_network(f);
        (void) fputs("RestrictAddressFamilies=AF_NETLINK\nIPAddressDeny=\nBindReadOnlyPaths=-/etc/resolv.conf\n"
                "RestrictNamespaces=user ipc mnt uts pid\nSystemCallFilter=@mount @setuid capset\n", f);
}

static void put_any(FILE *f, const DeviceDefinition *device) {
        const char *path;

        put_user(f, device);
        (void) fputs("ProcSubset=all\n", f);
        for (size_t i = 0; (path = device_definition_list(device, "readOnlyPaths", i)); i++)
                put_line(f, "BindReadOnlyPaths", path);
        for (size_t i = 0; (path = device_definition_list(device, "readWritePaths", i)); i++)
                put_line(f, "BindPaths", path);
        if (device_definition_boolean(device, "network", false)) {
                put_host_network(f);
                (void) fputs("IPAddressDeny=\n", f);
        }
}

/* "PATH" or "SOURCE:DESTINATION", of which the manager wants each in quotes of its own. */
static int put_bound(FILE *f, const DeviceDefinition *device, const char *option, const char *key) {
        const char *mount;

        for (size_t i = 0; (mount = device_definition_list(device, option, i)); i++) {
                const char *colon = strchr(mount, ':');
                _cleanup_free_ char *source = strndup(mount, strcspn(mount, ":"));

                if (!source)
                        return -ENOMEM;
                (void) fprintf(f, "%s=", key);
                put_word(f, source, false);
                if (colon) {
                        (void) fputc(':', f);
                        put_word(f, colon + 1, false);
                }
                (void) fputc('\n', f);
        }
        return 0;
}

/* It maps the machine's memory, and its own code is nobody's business; a machine is no more without it. */
static int put_plugin(FILE *f, const DeviceDefinition *device) {
        const char *path = device_definition_string(device, "path", ""), *group = device_definition_string(device, "group", NULL), *name;
        int r;

        put_user(f, device);
        if (group)
                (void) fprintf(f, "Group=%s\n", group);
        for (size_t i = 0; (name = device_definition_list(device, "supplementaryGroups", i)); i++)
                (void) fprintf(f, "SupplementaryGroups=%s\n", name);
        if (!startswith(path, "/usr/"))
                put_line(f, "BindReadOnlyPaths", path);
        r = put_bound(f, device, "readOnlyPaths", "BindReadOnlyPaths");
        (void) fputs("TimeoutStopSec=10s\n", f);
        return r < 0 ? r : put_bound(f, device, "readWritePaths", "BindPaths");
}

int put_foreign_service(FILE *f, const DeviceDefinition *device) {
        /* The program is asked by its parent to end. */
        (void) fputs("KillMode=mixed\n", f);
        if (device->type == &plugin_type)
                return put_plugin(f, device);
        if (streq(device->type->name, "fs"))
                put_fs(f, device);
        else if (streq(device->type->name, "block"))
                put_storage(f, device);
        else if (streq(device->type->name, "net"))
                put_passt(f);
        else
                put_any(f, device);
        return 0;
}
