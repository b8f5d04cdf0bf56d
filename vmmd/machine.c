/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <systemd/sd-daemon.h>
#include <time.h>

#include "catalog-ids.h"
#include "log.h"
#include "machine-device.h"

#define PVPANIC_SLOT 31 /* the last one: the definition's devices count from 1 */

static const char *const state_names[_MACHINE_STATE_MAX] = {
        [MACHINE_STARTING] = "starting", [MACHINE_RUNNING] = "running", [MACHINE_PAUSED] = "paused",
        [MACHINE_RESETTING] = "resetting", [MACHINE_STOPPING] = "stopping", [MACHINE_PANICKED] = "panicked",
};

const char *machine_state_to_string(MachineState state) {
        return state_names[state];
}

static uint64_t now_realtime_usec(void) {
        struct timespec ts;

        (void) clock_gettime(CLOCK_REALTIME, &ts);
        return (uint64_t) ts.tv_sec * USEC_PER_SEC + (uint64_t) ts.tv_nsec / NSEC_PER_USEC;
}

static void set_state(Machine *m, MachineState state) {
        if (m->state == state && m->state_since_usec != 0)
                return;
        m->state = state;
        m->state_since_usec = now_realtime_usec();
}

void machine_problem(Machine *m, const char *message_id, const char *format, ...) {
        _cleanup_free_ char *text = NULL;
        va_list ap;
        int r;

        va_start(ap, format);
        r = vasprintf(&text, format, ap);
        va_end(ap);
        if (r < 0) {
                text = NULL;
                return;
        }
        log_id(LOG_ERR, message_id, "%s", text);
        free(m->last_problem);
        m->last_problem = TAKE_PTR(text);
}

void machine_status(Machine *m, const char *format, ...) {
        _cleanup_free_ char *text = NULL;
        va_list ap;
        int r;

        va_start(ap, format);
        r = vasprintf(&text, format, ap);
        va_end(ap);
        if (r < 0)
                text = NULL;
        else
                (void) sd_notifyf(false, "STATUS=%s", text);
}

/* Ends the event loop: the process exits with `result`, and the status line says why. */
static void finish(Machine *m, MachineResult result, const char *status) {
        set_state(m, MACHINE_STOPPING);
        (void) sd_notifyf(false, "STOPPING=1\nSTATUS=%s", status);
        if (result == MACHINE_RESULT_SUCCESS || result == MACHINE_RESULT_REBOOT)
                log_id(LOG_INFO, MESSAGE_MACHINE_STOPPED, "%s", status); /* the others were logged as problems */
        (void) sd_event_exit(m->event, (int) result);
}

/* --- what other threads ask for --- */

void machine_request(Machine *m, MachineRequest request) {
        atomic_fetch_or(&m->requests, (unsigned) request);
        (void) eventfd_write(m->request_fd, 1);
}

static void on_vcpu_event(Vcpu *vcpu, VcpuEvent event, void *userdata) {
        static const MachineRequest requests[] = {
                [VCPU_EVENT_TRIPLE_FAULT] = MACHINE_REQUEST_TRIPLE_FAULT,
                [VCPU_EVENT_RESET] = MACHINE_REQUEST_RESET,
                [VCPU_EVENT_SHUTDOWN] = MACHINE_REQUEST_POWER_OFF,
                [VCPU_EVENT_CRASH] = MACHINE_REQUEST_CRASH,
                [VCPU_EVENT_ERROR] = MACHINE_REQUEST_ERROR,
        };
        Machine *m = userdata;

        if (event == VCPU_EVENT_ENTERED) {
                atomic_store(&m->first_entry_usec, now_usec());
                machine_request(m, MACHINE_REQUEST_ENTERED);
        } else
                machine_request(m, requests[event]);
}

static void on_paused(void *userdata) {
        machine_request(userdata, MACHINE_REQUEST_PAUSED);
}

/* The guest switched itself off, or wants to begin again: no vCPU is to run on until the loop has decided what comes next. */
static void on_arch_event(ArchEvent event, void *userdata) {
        Machine *m = userdata;

        vcpu_set_pause(&m->vcpus);
        machine_request(m, event == ARCH_EVENT_RESET ? MACHINE_REQUEST_RESET : MACHINE_REQUEST_POWER_OFF);
}

static void on_pvpanic(unsigned vcpu, unsigned events, void *userdata) {
        Machine *m = userdata;

        if (events & PVPANIC_PANICKED)
                machine_request(m, MACHINE_REQUEST_PANIC);
}

/* --- the loop's answer --- */

static int load_and_boot(Machine *m, char **ret_message) {
        ArchBoot boot = {
                .kernel_fd = m->files.kernel_fd,
                .kernel_name = m->definition->kernel,
                .initrd_fd = m->files.initrd_fd,
                .initrd_name = m->definition->initrd,
                .command_line = m->command_line,
        };

        return arch_boot(m->arch, &boot, ret_message);
}

/* A guest that starts again finds empty memory, as at first, and the host has its pages back meanwhile. */
static void clear_memory(Machine *m) {
        for (size_t i = 0; i < m->memory.n_regions; i++) {
                const GuestRegion *region = &m->memory.regions[i];

                if (fallocate(region->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t) region->fd_offset,
                            (off_t) region->size) < 0)
                        (void) log_warning_errno(errno, "Cannot give the guest's memory back at reset: %m");
                if (m->definition->prefault && madvise(region->host, region->size, MADV_POPULATE_WRITE) < 0)
                        (void) log_warning_errno(errno, "Cannot allocate the guest's memory again at reset: %m");
        }
}

/* All vCPUs are parked, and no helper touches a ring. */
static void reset_now(Machine *m) {
        _cleanup_free_ char *message = NULL;
        int r;

        /* A guest that was told to power off meanwhile does not come back. */
        if (m->stop_timer) {
                finish(m, MACHINE_RESULT_SUCCESS, "The guest ended by a reset while being stopped.");
                return;
        }
        pci_bus_reset(&m->pci);
        clear_memory(m);
        r = arch_reset(m->arch, &message);
        if (r >= 0)
                r = load_and_boot(m, &message);
        if (r < 0) {
                machine_problem(m, NULL, "Cannot reset the machine: %s", message ?: strerror(-r));
                finish(m, MACHINE_RESULT_ERROR, "The machine could not be reset.");
                return;
        }
        m->resets++;
        set_state(m, MACHINE_RUNNING);
        vcpu_set_resume(&m->vcpus, true);
        log_id(LOG_INFO, MESSAGE_GUEST_REBOOT, "Machine '%s' was reset and boots again.", m->definition->name);
        machine_status(m, "Running, reset %u time%s.", m->resets, m->resets == 1 ? "" : "s");
}

static void *reset_devices(void *userdata) {
        Machine *m = userdata;

        (void) pthread_setname_np(pthread_self(), "reset");
        machine_devices_reset(m);
        machine_request(m, MACHINE_REQUEST_DEVICES_RESET);
        return NULL;
}

/* The helpers are to let go of their rings, which may take them a while. Other requests to this machine are answered meanwhile. */
static void begin_devices_reset(Machine *m) {
        m->has_reset_thread = pthread_create(&m->reset_thread, NULL, reset_devices, m) == 0;
        if (!m->has_reset_thread)
                (void) reset_devices(m);
}

static void join_reset_thread(Machine *m) {
        if (m->has_reset_thread)
                (void) pthread_join(m->reset_thread, NULL);
        m->has_reset_thread = false;
}

static void handle_paused(Machine *m) {
        MachineAfterPause action = m->after_pause;

        /* Word of a pause that was over before it was heard: the one awaited is still to come. */
        if (!vcpu_set_is_paused(&m->vcpus))
                return;
        m->after_pause = AFTER_PAUSE_NOTHING;
        if (action == AFTER_PAUSE_RESET)
                begin_devices_reset(m);
}

static void begin_reset(Machine *m) {
        set_state(m, MACHINE_RESETTING);
        machine_status(m, "Resetting.");
        m->after_pause = AFTER_PAUSE_RESET;
        vcpu_set_pause(&m->vcpus);
}

static void handle_guest_reset(Machine *m) {
        /* A guest that was told to power off and reboots instead does not come back. */
        if (m->state == MACHINE_STOPPING)
                finish(m, MACHINE_RESULT_SUCCESS, "The guest ended by a reboot while being stopped.");
        else if (m->definition->on_reboot == ON_REBOOT_STOP)
                finish(m, MACHINE_RESULT_REBOOT, "The guest asked for a reboot, at which its definition has it stop.");
        else
                begin_reset(m);
}

static void handle_panic(Machine *m) {
        machine_problem(m, MESSAGE_GUEST_PANIC, "The guest's kernel panicked.");
        /* Nothing but its end is awaited of a guest that is being stopped. */
        switch (m->state == MACHINE_STOPPING ? ON_PANIC_STOP : m->definition->on_panic) {
        case ON_PANIC_STOP:
                finish(m, MACHINE_RESULT_PANIC, "The guest's kernel panicked.");
                break;
        case ON_PANIC_RESET:
                begin_reset(m);
                break;
        case ON_PANIC_PAUSE:
                set_state(m, MACHINE_PANICKED);
                machine_status(m, "The guest's kernel panicked; the machine is paused.");
                vcpu_set_pause(&m->vcpus);
                break;
        }
}

static void handle_vcpu_error(Machine *m) {
        const char *text = NULL;

        for (unsigned i = 0; i < m->vcpus.n_vcpus; i++)
                if (m->vcpus.vcpus[i].error)
                        text = m->vcpus.vcpus[i].error;
        machine_problem(m, MESSAGE_GUEST_CRASHED, "%s.", text ?: "A vCPU cannot run");
        finish(m, MACHINE_RESULT_CRASH, "KVM could not go on running the guest.");
}

static void handle_device_failure(Machine *m, MachineDevice *d) {
        _cleanup_free_ char *error = machine_device_error(d), *unit = machine_device_unit(d);
        const char *name = machine_device_definition(d)->name;

        machine_problem(m, MESSAGE_DEVICE_FAILED, "Device '%s' (%s) failed: %s.", name, unit ?: "?",
                error ?: "unknown reason");
        /* A machine that has never been whole does not count as started. */
        if (!m->ready_sent || m->definition->on_device_failure == ON_DEVICE_FAILURE_STOP)
                finish(m, MACHINE_RESULT_DEVICE, m->last_problem ?: "A device failed.");
        else
                machine_status(m, "Running without device '%s', which failed.", name);
}

static void update_readiness(Machine *m) {
        MachineDevice *failed;
        size_t connecting = machine_devices_update(m, &failed);

        if (failed) {
                handle_device_failure(m, failed);
                machine_request(m, MACHINE_REQUEST_DEVICES); /* there may be another */
                return;
        }
        if (m->ready_sent)
                return;
        if (connecting > 0 || atomic_load(&m->first_entry_usec) == 0) {
                machine_status(m, connecting == 1 ? "Starting; waiting for %zu device." : "Starting; waiting for %zu devices.",
                        connecting);
                return;
        }
        m->ready_sent = true;
        if (m->state == MACHINE_STARTING)
                set_state(m, MACHINE_RUNNING);
        log_id(LOG_INFO, MESSAGE_MACHINE_STARTED, "Machine '%s' runs: %u vCPU%s, %" PRIu64 " MiB, %zu devices.",
                m->definition->name, m->definition->vcpus, m->definition->vcpus == 1 ? "" : "s",
                m->definition->memory >> 20, m->n_devices);
        (void) sd_notifyf(false, "READY=1\nSTATUS=Running: %u vCPU%s, %" PRIu64 " MiB, %zu devices.",
                m->definition->vcpus, m->definition->vcpus == 1 ? "" : "s", m->definition->memory >> 20, m->n_devices);
}

static void take_up(Machine *m, unsigned requests) {
        if (m->state == MACHINE_STARTING && requests & MACHINE_REQUEST_ENTERED)
                log_debug("The first vCPU enters the guest at %" PRIu64 " us.", atomic_load(&m->first_entry_usec));
        if (requests & (MACHINE_REQUEST_ENTERED | MACHINE_REQUEST_DEVICES))
                update_readiness(m);
        if (requests & MACHINE_REQUEST_PAUSED)
                handle_paused(m);
        if (requests & MACHINE_REQUEST_DEVICES_RESET) {
                join_reset_thread(m);
                reset_now(m);
        }

        /* Of several ends at once the most telling counts: a panic is followed by a reset or a triple fault. */
        if (requests & MACHINE_REQUEST_PANIC)
                handle_panic(m);
        else if (requests & MACHINE_REQUEST_ERROR)
                handle_vcpu_error(m);
        else if (requests & MACHINE_REQUEST_POWER_OFF)
                finish(m, MACHINE_RESULT_SUCCESS, "The guest powered off.");
        else if (requests & MACHINE_REQUEST_RESET)
                handle_guest_reset(m);
        else if (requests & MACHINE_REQUEST_TRIPLE_FAULT) {
                machine_problem(m, MESSAGE_GUEST_CRASHED, "The guest crashed: triple fault.");
                finish(m, MACHINE_RESULT_CRASH, "The guest crashed: triple fault.");
        } else if (requests & MACHINE_REQUEST_CRASH) {
                machine_problem(m, MESSAGE_GUEST_CRASHED, "The guest reported a crash.");
                finish(m, MACHINE_RESULT_CRASH, "The guest reported a crash.");
        }
}

static int on_request(sd_event_source *s, int fd, uint32_t revents, void *userdata) {
        Machine *m = userdata;
        uint64_t count;

        (void) !read(fd, &count, sizeof(count));
        take_up(m, atomic_exchange(&m->requests, 0));
        return 0;
}

/* --- making --- */

static int make_memory(Machine *m, char **ret_message) {
        const MachineDefinition *definition = m->definition;
        ArchMemoryRange ranges[ARCH_MEMORY_RANGES_MAX];
        size_t n = arch_memory_layout(definition->memory, ranges);
        _cleanup_close_ int fd = -EBADF;
        uint64_t offset = 0;
        int r;

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
                .event = on_arch_event,
                .userdata = m,
        };
        const VcpuSetHandlers handlers = { .event = on_vcpu_event, .paused = on_paused, .userdata = m };
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
        pvpanic_init(&m->pvpanic, on_pvpanic, m);
        r = pci_bus_add(&m->pci, &m->pvpanic.pci, PVPANIC_SLOT);
        if (r < 0)
                return r;

        m->has_vcpus = true;
        return vcpu_set_init(&m->vcpus, &m->kvm, m->definition->vcpus, &m->pio, &m->mmio, &handlers, ret_message);
}

static int make_parts(Machine *m, char **ret_message, MachineResult *ret_result) {
        int r;

        *ret_result = MACHINE_RESULT_ERROR;
        m->request_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (m->request_fd < 0)
                return -errno;
        r = sd_event_add_io(m->event, &m->request_source, m->request_fd, EPOLLIN, on_request, m);
        if (r >= 0)
                r = io_space_init(&m->pio);
        if (r >= 0)
                r = io_space_init(&m->mmio);
        if (r < 0)
                return r;
        m->has_spaces = true;

        m->has_kvm = true;
        r = kvm_init(&m->kvm, ret_message);
        if (r >= 0)
                r = make_memory(m, ret_message);
        if (r >= 0)
                r = make_platform(m, ret_message);
        if (r >= 0)
                r = machine_devices_new(m, ret_message);
        /* The helpers start while the kernel is read. */
        if (r >= 0)
                r = machine_devices_connect(m);
        if (r >= 0)
                r = arch_setup_vcpus(m->arch, &m->vcpus, ret_message);
        if (r >= 0)
                r = machine_command_line(m->definition, &m->command_line);
        if (r < 0)
                return r;

        *ret_result = MACHINE_RESULT_DEFINITION;
        return load_and_boot(m, ret_message);
}

int machine_new(sd_event *event, MachineDefinition *definition, const char *runtime_directory, const MachineFiles *files,
        Machine **ret, char **ret_message, MachineResult *ret_result) {
        _cleanup_(machine_freep) Machine *m = NULL;
        int r;

        m = calloc(1, sizeof(Machine));
        if (!m) {
                (void) machine_definition_free(definition);
                return -ENOMEM;
        }
        m->definition = definition;
        m->event = sd_event_ref(event);
        m->runtime_directory = runtime_directory;
        m->files = *files;
        m->request_fd = -EBADF;
        set_state(m, MACHINE_STARTING);

        r = make_parts(m, ret_message, ret_result);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(m);
        return 0;
}

Machine *machine_free(Machine *m) {
        if (!m)
                return NULL;
        /* vCPUs first: they use everything else. None is to wait for a helper meanwhile. */
        machine_devices_abort(m);
        join_reset_thread(m);
        if (m->has_vcpus)
                vcpu_set_done(&m->vcpus);
        (void) machine_devices_free(m);
        (void) arch_free(m->arch);
        if (m->has_kvm)
                kvm_done(&m->kvm);
        if (m->has_spaces) {
                io_space_done(&m->pio);
                io_space_done(&m->mmio);
        }
        guest_memory_done(&m->memory);
        (void) sd_event_source_disable_unref(m->request_source);
        (void) sd_event_source_disable_unref(m->stop_timer);
        m->request_fd = safe_close(m->request_fd);
        (void) sd_event_unref(m->event);
        (void) machine_definition_free(m->definition);
        free(m->command_line);
        free(m->last_problem);
        return mfree(m);
}

int machine_start(Machine *m) {
        int r;

        r = vcpu_set_start(&m->vcpus);
        if (r < 0)
                return r;
        vcpu_set_resume(&m->vcpus, false);
        machine_request(m, MACHINE_REQUEST_DEVICES);
        return 0;
}

/* --- what people ask for --- */

int machine_power_button(Machine *m) {
        if (m->state == MACHINE_PANICKED)
                return -EBUSY;
        arch_press_button(m->arch, ARCH_BUTTON_POWER);
        return 0;
}

int machine_sleep_button(Machine *m) {
        if (m->state != MACHINE_RUNNING)
                return -EBUSY;
        arch_press_button(m->arch, ARCH_BUTTON_SLEEP);
        return 0;
}

static int on_stop_timeout(sd_event_source *s, uint64_t usec, void *userdata) {
        Machine *m = userdata;

        log_id(LOG_WARNING, MESSAGE_GUEST_FORCED_OFF,
                "The guest did not power off within %" PRIu64 " s of the power button; ending it.",
                m->definition->stop_timeout_usec / USEC_PER_SEC);
        finish(m, MACHINE_RESULT_SUCCESS, "Ended: the guest did not power off in time.");
        return 0;
}

int machine_power_off(Machine *m) {
        int r;

        if (m->state == MACHINE_PANICKED)
                return machine_terminate(m);
        if (m->state == MACHINE_PAUSED)
                vcpu_set_resume(&m->vcpus, false);
        arch_press_button(m->arch, ARCH_BUTTON_POWER);
        if (m->stop_timer)
                return 0;
        set_state(m, MACHINE_STOPPING);
        (void) sd_notifyf(false, "STOPPING=1\nSTATUS=Powering off; the guest has %" PRIu64 " s.",
                m->definition->stop_timeout_usec / USEC_PER_SEC);
        log_info("Pressed the guest's power button; it has %" PRIu64 " s.", m->definition->stop_timeout_usec / USEC_PER_SEC);
        r = sd_event_add_time_relative(m->event, &m->stop_timer, CLOCK_MONOTONIC, m->definition->stop_timeout_usec, 0,
                on_stop_timeout, m);
        return r < 0 ? machine_terminate(m) : 0;
}

int machine_terminate(Machine *m) {
        finish(m, MACHINE_RESULT_SUCCESS, "Ended at once, as asked.");
        return 0;
}

int machine_reset(Machine *m) {
        if (m->state == MACHINE_STOPPING || m->state == MACHINE_RESETTING)
                return -EBUSY;
        begin_reset(m);
        return 0;
}

int machine_pause(Machine *m) {
        if (m->state != MACHINE_RUNNING)
                return -EBUSY;
        set_state(m, MACHINE_PAUSED);
        machine_status(m, "Paused.");
        vcpu_set_pause(&m->vcpus);
        return 0;
}

int machine_resume(Machine *m) {
        if (m->state != MACHINE_PAUSED)
                return -EBUSY;
        set_state(m, MACHINE_RUNNING);
        machine_status(m, "Running.");
        vcpu_set_resume(&m->vcpus, false);
        return 0;
}

/* --- state --- */

int machine_save(Machine *m, StateWriter *w) {
        int r;

        state_begin(w, "machine", 0, 1);
        state_put_u64(w, m->definition->memory);
        state_put_u32(w, m->definition->vcpus);
        state_put_u32(w, m->resets);
        r = state_end(w);
        if (r >= 0)
                r = arch_save(m->arch, w);
        if (r >= 0)
                r = pci_device_save(&m->pvpanic.pci, w);
        return r < 0 ? r : machine_devices_save(m, w);
}

int machine_load(Machine *m, StateReader *reader, char **ret_message) {
        uint64_t memory;
        uint32_t vcpus;
        int r;

        r = state_enter(reader, "machine", 0, 1);
        if (r < 0)
                return set_message(ret_message, r, "This is no state of a machine.");
        memory = state_get_u64(reader);
        vcpus = state_get_u32(reader);
        m->resets = state_get_u32(reader);
        r = state_leave(reader, ret_message);
        if (r < 0)
                return r;
        if (memory != m->definition->memory || vcpus != m->definition->vcpus)
                return set_message(ret_message, -EBADMSG,
                        "The state is of a machine with %u vCPUs and %" PRIu64 " bytes of memory, not %u and %" PRIu64 ".",
                        vcpus, memory, m->definition->vcpus, m->definition->memory);
        r = arch_load(m->arch, reader, ret_message);
        if (r >= 0)
                r = pci_device_load(&m->pvpanic.pci, reader, ret_message);
        return r < 0 ? r : machine_devices_load(m, reader, ret_message);
}
