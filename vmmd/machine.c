/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <systemd/sd-daemon.h>
#include <time.h>

#include "catalog-ids.h"
#include "log.h"
#include "machine-device.h"
#include "machine-internal.h"

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

void machine_set_state(Machine *m, MachineState state) {
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
        machine_set_state(m, MACHINE_STOPPING);
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

void machine_on_vcpu_event(Vcpu *vcpu, VcpuEvent event, void *userdata) {
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

void machine_on_paused(void *userdata) {
        machine_request(userdata, MACHINE_REQUEST_PAUSED);
}

/* The guest switched itself off, or wants to begin again: no vCPU is to run on until the loop has decided what comes next. */
void machine_on_arch_event(ArchEvent event, void *userdata) {
        Machine *m = userdata;

        vcpu_set_pause(&m->vcpus);
        machine_request(m, event == ARCH_EVENT_RESET ? MACHINE_REQUEST_RESET : MACHINE_REQUEST_POWER_OFF);
}

void machine_on_pvpanic(unsigned vcpu, unsigned events, void *userdata) {
        Machine *m = userdata;

        if (events & PVPANIC_PANICKED)
                machine_request(m, MACHINE_REQUEST_PANIC);
}

/* --- the loop's answer --- */

int machine_load_kernel(Machine *m, char **ret_message) {
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
                r = machine_load_kernel(m, &message);
        if (r < 0) {
                machine_problem(m, NULL, "Cannot reset the machine: %s", message ?: strerror(-r));
                finish(m, MACHINE_RESULT_ERROR, "The machine could not be reset.");
                return;
        }
        m->resets++;
        machine_set_state(m, MACHINE_RUNNING);
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

void machine_join_reset(Machine *m) {
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
        machine_set_state(m, MACHINE_RESETTING);
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
                machine_set_state(m, MACHINE_PANICKED);
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
                machine_set_state(m, MACHINE_RUNNING);
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
                machine_join_reset(m);
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

int machine_on_request(sd_event_source *s, int fd, uint32_t revents, void *userdata) {
        Machine *m = userdata;
        uint64_t count;

        (void) !read(fd, &count, sizeof(count));
        take_up(m, atomic_exchange(&m->requests, 0));
        return 0;
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
        machine_set_state(m, MACHINE_STOPPING);
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
        machine_set_state(m, MACHINE_PAUSED);
        machine_status(m, "Paused.");
        vcpu_set_pause(&m->vcpus);
        return 0;
}

int machine_resume(Machine *m) {
        if (m->state != MACHINE_PAUSED)
                return -EBUSY;
        machine_set_state(m, MACHINE_RUNNING);
        machine_status(m, "Running.");
        vcpu_set_resume(&m->vcpus, false);
        return 0;
}
