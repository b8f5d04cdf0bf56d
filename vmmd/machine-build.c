/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Putting a machine together, and taking it apart. */

#include <fcntl.h>
#include <inttypes.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include "hotplug.h"
#include "machine-device.h"
#include "machine-internal.h"
#include "machine-plugin.h"
#include "pmem.h"
#include "power-key.h"
#include "restore.h"
#include "snapshot-take.h"

#define PVPANIC_SLOT 31 /* the last one: the definition's devices count from 1 */

static int make_memory(Machine *m, char **ret_message) {
        const MachineDefinition *definition = m->definition;
        ArchMemoryRange ranges[ARCH_MEMORY_RANGES_MAX];
        size_t n = arch_memory_layout(definition->memory, ranges);
        const ArchMemoryRange *last = &ranges[n - 1];
        _cleanup_close_ int fd = -EBADF;
        uint64_t offset = 0;
        int r;

        if (last->size > arch_address_limit() - last->guest_address)
                return set_message(ret_message, -ERANGE, "The definition asks for %" PRIu64 " MiB of memory; on this processor there can be %" PRIu64 ".",
                        definition->memory >> 20, (definition->memory - last->size + arch_address_limit() - last->guest_address) >> 20);
        fd = guest_memory_create_fd(definition->memory, definition->huge_page_size);
        if (fd < 0)
                return set_message(ret_message, fd, "Cannot create %" PRIu64 " MiB of guest memory%s: %s.",
                        definition->memory >> 20, definition->huge_page_size ? " in huge pages" : "", strerror(-fd));

        for (size_t i = 0; i < n; i++, offset += ranges[i - 1].size) {
                int copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);

                if (copy < 0)
                        return -errno;
                r = guest_memory_add(&m->memory, copy, offset, ranges[i].guest_address, ranges[i].size, 0);
                if (r < 0)
                        return set_message(ret_message, r, "Cannot map the guest's memory: %s.", strerror(-r));
                /* Worth it where the host lets shared memory have huge pages at all (shmem_enabled=advise). */
                (void) madvise(m->memory.regions[i].host, ranges[i].size, MADV_HUGEPAGE);
                if (definition->prefault && madvise(m->memory.regions[i].host, ranges[i].size, MADV_POPULATE_WRITE) < 0)
                        return set_message(ret_message, -errno, "Cannot allocate the guest's memory beforehand: %s.",
                                strerror(errno));
                r = kvm_set_memory(&m->kvm, (uint32_t) i, ranges[i].guest_address, ranges[i].size,
                        m->memory.regions[i].host, false);
                if (r < 0)
                        return set_message(ret_message, r, "KVM refuses the guest's memory: %s.", strerror(-r));
        }
        return 0;
}

/* The memory is there: the predecessor's. */
static int adopt_memory(Machine *m, Handover *h, char **ret_message) {
        uint64_t offset, address, size;
        uint32_t n;
        int r, fd;

        r = state_enter(h->reader, "guest-memory", 0, 1);
        if (r < 0)
                return set_message(ret_message, r, "The state has nothing of the guest's memory.");
        n = state_get_u32(h->reader);
        for (uint32_t i = 0; i < n && i < ARCH_MEMORY_RANGES_MAX; i++) {
                fd = handover_get_fd(h);
                offset = state_get_u64(h->reader);
                address = state_get_u64(h->reader);
                size = state_get_u64(h->reader);
                r = guest_memory_add(&m->memory, fd, offset, address, size, 0);
                if (r >= 0)
                        r = kvm_set_memory(&m->kvm, i, address, size, m->memory.regions[i].host, false);
                if (r < 0)
                        return set_message(ret_message, r, "Cannot map the guest's memory: %s.", strerror(-r));
                (void) madvise(m->memory.regions[i].host, size, MADV_HUGEPAGE);
        }
        r = state_leave(h->reader, ret_message);
        return r < 0 ? r : handover_end(h);
}

static unsigned serial_ports(const MachineDefinition *definition) {
        unsigned mask = 0;

        for (size_t i = 0; i < definition->n_devices; i++)
                if (streq(definition->devices[i].type->name, "serial")) {
                        const char *port = device_definition_string(&definition->devices[i], "port", "com1");

                        mask |= 1u << (port[strlen(port) - 1] - '1');
                }
        return mask;
}

static int make_platform(Machine *m, char **ret_message) {
        ArchConfig config = {
                .machine_name = m->definition->name,
                .n_vcpus = m->definition->vcpus,
                .smbios_strings = (const char *const *) m->definition->smbios_strings,
                .serial_ports = serial_ports(m->definition),
                .event = machine_on_arch_event,
                .eject = machine_on_eject,
                .userdata = m,
        };
        const VcpuSetHandlers handlers = { .event = machine_on_vcpu_event, .paused = machine_on_paused, .userdata = m };
        uint64_t window, window_size;
        int r;

        r = arch_new(&m->kvm, &m->pio, &m->mmio, &m->memory, &config, &m->arch, ret_message);
        if (r < 0)
                return r;
        r = arch_attach_event(m->arch, m->event);
        if (r < 0)
                return r;
        arch_pci_window(&window, &window_size);
        pci_bus_init(&m->pci, &m->kvm, &m->mmio, window, window_size);
        r = arch_attach_pci(m->arch, &m->pci);
        if (r < 0)
                return r;
        pvpanic_init(&m->pvpanic, machine_on_pvpanic, m);
        r = pci_bus_add(&m->pci, &m->pvpanic.pci, PVPANIC_SLOT);
        if (r < 0)
                return r;

        m->has_vcpus = true;
        return vcpu_set_init(&m->vcpus, &m->kvm, m->definition->vcpus, &m->pio, &m->mmio, &handlers, ret_message);
}

static int make_kvm(Machine *m, char **ret_message) {
        int r;

        r = io_space_init(&m->pio);
        if (r >= 0)
                r = io_space_init(&m->mmio);
        if (r < 0)
                return r;
        m->has_spaces = true;

        m->has_kvm = true;
        return kvm_init(&m->kvm, ret_message);
}

static int make_parts(Machine *m, char **ret_message, MachineResult *ret_result) {
        int r;

        *ret_result = MACHINE_RESULT_ERROR;
        m->request_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (m->request_fd < 0)
                return -errno;
        r = sd_event_add_io(m->event, &m->request_source, m->request_fd, EPOLLIN, machine_on_request, m);
        if (r >= 0)
                r = make_kvm(m, ret_message);
        if (r >= 0 && m->definition->plugin) {
                r = hotplug_new(m, &m->hotplug);
                if (r >= 0)
                        r = machine_definition_command_line(m->definition, &m->command_line);
                if (r >= 0)
                        r = machine_plugin_new(m, ret_message);
                if (r == -EOPNOTSUPP)
                        *ret_result = MACHINE_RESULT_DEFINITION;
                return r;
        }
        if (r >= 0)
                r = m->files.handover ? adopt_memory(m, m->files.handover, ret_message) : make_memory(m, ret_message);
        if (r >= 0)
                r = pmem_new(&m->kvm, m->definition, &m->memory, &m->files, &m->pmem, ret_message);
        if (r >= 0)
                r = make_platform(m, ret_message);
        if (r >= 0)
                r = arch_setup_vcpus(m->arch, &m->vcpus, ret_message);
        if (r >= 0)
                r = m->files.handover ? machine_devices_take_over(m, m->files.handover, ret_message) : machine_devices_new(m, ret_message);
        if (r >= 0)
                r = hotplug_new(m, &m->hotplug);
        if (r >= 0 && m->restore)
                r = restore_devices(m, ret_message);
        /* The helpers start while the kernel is read. */
        if (r >= 0 && !m->files.handover)
                r = machine_devices_connect(m);
        if (r >= 0)
                r = machine_definition_command_line(m->definition, &m->command_line);
        if (r < 0)
                return r;
        if (m->files.handover)
                return machine_take_over(m, m->files.handover, ret_message);

        *ret_result = MACHINE_RESULT_DEFINITION;
        return m->restore ? restore_memory(m, ret_message) : machine_load_kernel(m, ret_message);
}

int machine_new(sd_event *event, MachineDefinition *definition, const char *runtime_directory, const MachineFiles *files,
        Machine **ret, char **ret_message, MachineResult *ret_result) {
        _cleanup_(machine_freep) Machine *m = NULL;
        int r;

        m = calloc(1, sizeof(Machine));
        if (!m) {
                (void) machine_definition_free(definition);
                (void) restore_free(files->restore);
                return -ENOMEM;
        }
        m->restore = files->restore;
        m->definition = definition;
        m->event = sd_event_ref(event);
        m->runtime_directory = runtime_directory;
        m->files = *files;
        m->request_fd = -EBADF;
        m->interrupts_held = files->handover;
        machine_set_state(m, MACHINE_STARTING, NULL);

        r = make_parts(m, ret_message, ret_result);
        if (r < 0) {
                /* Before anything is closed that the predecessor's sessions stand on. */
                if (files->failed)
                        files->failed(*ret_message ?: strerror(-r), files->failed_userdata);
                return r;
        }
        *ret = TAKE_PTR(m);
        return 0;
}

int machine_make_device_tree(MachineDefinition *definition, const MachineFiles *files, void **ret, size_t *ret_size, char **ret_message,
        MachineResult *ret_result) {
        _cleanup_(machine_freep) Machine *m = NULL;
        int r;

        *ret_result = MACHINE_RESULT_ERROR;
        m = calloc(1, sizeof(Machine));
        if (!m) {
                (void) machine_definition_free(definition);
                return -ENOMEM;
        }
        m->definition = definition;
        m->files = *files;
        m->request_fd = -EBADF;
        if (!arch_has_device_tree() || definition->plugin)
                return set_message(ret_message, -EOPNOTSUPP, "%s.", definition->plugin ? "The machine's hardware is its plugin's, of which there is no device tree" :
                                                                                         "On this architecture guests have no device tree");
        /* Nobody touches more of the memory than kernel and initrd. */
        definition->prefault = false;
        definition->huge_page_size = 0;
        r = sd_event_new(&m->event);
        if (r >= 0)
                r = make_kvm(m, ret_message);
        if (r >= 0)
                r = make_memory(m, ret_message);
        if (r >= 0)
                r = make_platform(m, ret_message);
        if (r >= 0)
                r = arch_setup_vcpus(m->arch, &m->vcpus, ret_message);
        if (r >= 0)
                r = machine_definition_command_line(definition, &m->command_line);
        if (r < 0)
                return r;
        *ret_result = MACHINE_RESULT_DEFINITION;
        r = machine_load_kernel(m, ret_message);
        return r < 0 ? r : arch_device_tree(m->arch, ret, ret_size);
}

Machine *machine_free(Machine *m) {
        if (!m)
                return NULL;
        /* vCPUs first: they use everything else. None is to wait for a helper meanwhile. */
        machine_snapshot_cancel(m);
        machine_devices_abort(m);
        machine_plugin_abort(m->plugin);
        machine_join_work(m);
        power_key_done(m);
        if (m->has_vcpus)
                vcpu_set_done(&m->vcpus);
        m->plugin = machine_plugin_free(m->plugin);
        m->snapshot = machine_snapshot_free(m->snapshot);
        m->hotplug = hotplug_free(m->hotplug);
        machine_devices_free(m);
        m->restore = restore_free(m->restore); /* vCPUs may have waited for memory of it, and helpers */
        (void) arch_free(m->arch);
        if (m->has_kvm)
                kvm_done(&m->kvm);
        if (m->has_spaces) {
                io_space_done(&m->pio);
                io_space_done(&m->mmio);
        }
        (void) pmem_free(m->pmem);
        guest_memory_done(&m->memory);
        (void) sd_event_source_disable_unref(m->request_source);
        (void) sd_event_source_disable_unref(m->stop_timer);
        (void) sd_event_source_disable_unref(m->exit_source);
        (void) sd_event_source_disable_unref(m->exit_timer);
        m->request_fd = safe_close(m->request_fd);
        (void) sd_event_unref(m->event);
        (void) machine_definition_free(m->definition);
        free(m->command_line);
        free(m->last_problem);
        free(m->guest_status);
        return mfree(m);
}
