/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The table of what this program writes, and reads. Every section of a state is in it; a unit test and each reload itself see to that. A version that is raised keeps
 * its reader for the one before, until there was a release between them. */

#include <inttypes.h>
#include <stdio.h>

#include "config.h"
#include "parse.h"
#include "reload.h"

typedef struct KnownSection {
        const char *name;
        uint32_t version; /* that is written */
        uint32_t oldest;  /* that is read */
} KnownSection;

static const KnownSection known[] = {
        { "acpi-hotplug", 1, 1 }, { "acpi-pm", 1, 1 },       { "attached-files", 1, 1 }, { "bus-session", 1, 1 }, { "cmos", 1, 1 },
        { "device", 1, 1 },       { "devices", 1, 1 },       { "guest-memory", 1, 1 },  { "i8042", 1, 1 },
        { "machine", 2, 1 },      { "machine-process", 1, 1 }, { "msix", 1, 1 },        { "pci-bus", 1, 1 },
        { "pci-device", 1, 1 },   { "pmem", 1, 1 },          { "reload", 2, 1 },        { "vhost-session", 1, 1 },
        { "virtio-pci", 1, 1 },   { "virtio-pci-fds", 1, 1 },
#if defined(__x86_64__)
        { "x86-clock", 1, 1 },    { "x86-irqchip", 1, 1 },   { "x86-vcpu", 2, 1 },
#elif defined(__aarch64__)
        { "arm64-clock", 1, 1 },  { "arm64-fdt", 1, 1 },     { "arm64-fw-cfg", 1, 1 },  { "arm64-gic", 1, 1 },
        { "arm64-pl031", 1, 1 },  { "arm64-pl061", 1, 1 },   { "arm64-ramoops", 1, 1 }, { "arm64-vcpu", 1, 1 },
#endif
};

static const KnownSection *find(const char *name) {
        for (size_t i = 0; i < ELEMENTSOF(known); i++)
                if (streq(known[i].name, name))
                        return &known[i];
        return NULL;
}

int reload_sections_text(char **ret) {
        _cleanup_free_ char *text = NULL;
        size_t size;
        FILE *f;

        f = open_memstream(&text, &size);
        if (!f)
                return -ENOMEM;
        (void) fprintf(f, "format %u\n", STATE_FORMAT);
        for (size_t i = 0; i < ELEMENTSOF(known); i++)
                (void) fprintf(f, "%s %" PRIu32 "\n", known[i].name, known[i].version);
        if (fclose(f) != 0)
                return -ENOMEM;
        *ret = TAKE_PTR(text);
        return 0;
}

int reload_section_check(const char *name, uint64_t version, char **ret_message) {
        const KnownSection *k;

        if (streq(name, "format"))
                return version == STATE_FORMAT ? 0 :
                        set_message(ret_message, -EPROTONOSUPPORT, "the state has format %" PRIu64 ", and this is version " PROJECT_VERSION
                                " of vmmd, which knows format %u", version, STATE_FORMAT);
        k = find(name);
        if (!k)
                return set_message(ret_message, -EPROTONOSUPPORT, "the state has a section '%s', which version " PROJECT_VERSION " of vmmd does not know", name);
        if (version < k->oldest || version > k->version)
                return set_message(ret_message, -EPROTONOSUPPORT, "the state's section '%s' has version %" PRIu64 ", and version " PROJECT_VERSION
                        " of vmmd knows %" PRIu32 " to %" PRIu32, name, version, k->oldest, k->version);
        return 0;
}

static int check_line(char *line, char **ret_message) {
        char *space = strchr(line, ' ');
        uint64_t version;

        if (!space || space == line || space - line > STATE_NAME_MAX)
                return set_message(ret_message, -EBADMSG, "this is no list of sections");
        *space = 0;
        if (parse_unsigned(space + 1, &version) < 0)
                return set_message(ret_message, -EBADMSG, "this is no list of sections");
        return reload_section_check(line, version, ret_message);
}

int reload_sections_check(const char *text, char **ret_message) {
        _cleanup_free_ char *copy = strdup(text);
        char *line, *rest;
        int r;

        if (!copy)
                return -ENOMEM;
        if (!startswith(text, "format "))
                return set_message(ret_message, -EBADMSG, "this is no list of sections");
        for (line = strtok_r(copy, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
                r = check_line(line, ret_message);
                if (r < 0)
                        return r;
        }
        return 0;
}

int reload_sections_verify(const StateReader *reader, char **ret_message) {
        uint32_t instance, version;
        const char *name;

        for (size_t i = 0; state_reader_section(reader, i, &name, &instance, &version); i++) {
                int r = reload_section_check(name, version, ret_message);

                if (r < 0)
                        return r;
        }
        return 0;
}
