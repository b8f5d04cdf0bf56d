/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <systemd/sd-daemon.h>
#include <time.h>

#include "catalog-ids.h"
#include "hotplug.h"
#include "log.h"
#include "machine-device.h"
#include "machine-internal.h"
#include "machine-plugin.h"
#include "notify.h"
#include "power-key.h"
#include "restore.h"

/* How long clients that read slowly keep the process at its end. */
#define EXIT_USEC USEC_PER_SEC

static const char *const state_names[_MACHINE_STATE_MAX] = {
        [MACHINE_STARTING] = "starting", [MACHINE_RUNNING] = "running", [MACHINE_PAUSED] = "paused",
        [MACHINE_RESETTING] = "resetting", [MACHINE_STOPPING] = "stopping", [MACHINE_PANICKED] = "panicked",
};

const char *machine_state_to_string(MachineState state) {
        return state_names[state];
}

uint64_t now_realtime_usec(void) {
        struct timespec ts;

        (void) clock_gettime(CLOCK_REALTIME, &ts);
        return (uint64_t) ts.tv_sec * USEC_PER_SEC + (uint64_t) ts.tv_nsec / NSEC_PER_USEC;
}

void machine_set_state(Machine *m, MachineState state, const char *reason) {
        if (m->state == state && m->state_since_usec != 0)
                return;
        m->state = state;
        m->state_since_usec = now_realtime_usec();
        if (m->observer)
                m->observer->state_changed(reason, m->observer->userdata);
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
        (void) make_one_line(text);
        log_id(LOG_ERR, message_id, "%s", text);
        free(m->last_problem);
        m->last_problem = TAKE_PTR(text);
}

static int on_exit_time(sd_event_source *s, uint64_t usec, void *userdata) {
        Machine *m = userdata;

        return sd_event_exit(m->event, (int) m->result);
}

static int on_exit_idle(sd_event_source *s, void *userdata) {
        Machine *m = userdata;

        return sd_event_exit(m->event, (int) m->result);
}

/* The loop ends once it has nothing else to do, so that clients get what is queued for them, but soon. */
static void exit_when_idle(Machine *m) {
        int r;

        r = sd_event_add_defer(m->event, &m->exit_source, on_exit_idle, m);
        if (r >= 0)
                r = sd_event_source_set_priority(m->exit_source, SD_EVENT_PRIORITY_IDLE);
        if (r >= 0)
                r = sd_event_add_time_relative(m->event, &m->exit_timer, CLOCK_MONOTONIC, EXIT_USEC, 0, on_exit_time, m);
        if (r >= 0)
                r = sd_event_source_set_priority(m->exit_timer, SD_EVENT_PRIORITY_IMPORTANT);
        if (r < 0)
                (void) sd_event_exit(m->event, (int) m->result);
}

void machine_finish(Machine *m, MachineResult result, const char *status) {
        if (m->ended)
                return;
        m->ended = true;
        m->result = result;
        if (m->state != MACHINE_STOPPING) {
                m->state = MACHINE_STOPPING;
                m->state_since_usec = now_realtime_usec();
        }
        notify_status("STOPPING=1\n", "%s", status);
        if (result == MACHINE_RESULT_SUCCESS || result == MACHINE_RESULT_REBOOT)
                log_id(LOG_INFO, MESSAGE_MACHINE_STOPPED, "%s", status); /* the others were logged as problems */
        machine_set_goal(m, GOAL_NONE, NULL, NULL);
        hotplug_cancel(m->hotplug);
        if (m->plugin)
                machine_plugin_ask_to_exit(m->plugin);
        if (m->observer)
                m->observer->ended(status, m->observer->userdata);
        exit_when_idle(m);
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

        if (event == ARCH_EVENT_PANIC) {
                machine_request(m, MACHINE_REQUEST_PANIC);
                return;
        }
        vcpu_set_pause(&m->vcpus);
        machine_request(m, event == ARCH_EVENT_RESET ? MACHINE_REQUEST_RESET : MACHINE_REQUEST_POWER_OFF);
}

/* What the guest lets go of is gone for it when its write is done. */
void machine_on_eject(uint32_t slots, void *userdata) {
        Machine *m = userdata;

        for (unsigned slot = 0; slot < PCI_SLOTS; slot++)
                if (slots & (UINT32_C(1) << slot) && pci_bus_eject(&m->pci, slot))
                        machine_request(m, MACHINE_REQUEST_HOTPLUG);
}

void machine_on_pvpanic(unsigned vcpu, unsigned events, void *userdata) {
        Machine *m = userdata;

        if (events & PVPANIC_PANICKED)
                machine_request(m, MACHINE_REQUEST_PANIC);
}

/* --- the loop's answer --- */

int machine_file(const MachineFiles *files, const char *name) {
        for (size_t i = 0; i < files->n_others; i++)
                if (streq(files->others[i].name, name))
                        return files->others[i].fd;
        return -ENOENT;
}

int machine_load_kernel(Machine *m, char **ret_message) {
        ArchBoot boot = {
                .kernel_fd = m->files.kernel_fd,
                .kernel_name = m->definition->kernel,
                .initrd_fd = m->files.initrd_fd,
                .initrd_name = m->definition->initrd,
                .command_line = m->command_line,
                .overlay_fd = machine_file(&m->files, MACHINE_OVERLAY_FILE),
                .overlay_name = m->definition->device_tree_overlay,
        };

        return arch_boot(m->arch, &boot, ret_message);
}

static void handle_power_off(Machine *m) {
        if (m->stopping == STOPPING_REBOOT)
                machine_begin_reset(m, "The guest powered off, and is booted again as asked.");
        else
                machine_finish(m, MACHINE_RESULT_SUCCESS, "The guest powered off.");
}

static void handle_guest_reset(Machine *m) {
        /* A guest that was told to power off and reboots instead does not come back. */
        if (m->stopping == STOPPING_POWER_OFF)
                machine_finish(m, MACHINE_RESULT_SUCCESS, "The guest ended by a reboot while being stopped.");
        else if (m->plugin)
                machine_finish(m, MACHINE_RESULT_REBOOT, "The guest asked for a reboot, which takes another plugin.");
        else if (m->stopping == STOPPING_NOT && m->definition->on_reboot == ON_REBOOT_STOP)
                machine_finish(m, MACHINE_RESULT_REBOOT, "The guest asked for a reboot, at which its definition has it stop.");
        else
                machine_begin_reset(m, "The guest reboots.");
}

static void handle_panic(Machine *m) {
        static const char reason[] = "The guest's kernel panicked.";

        machine_problem(m, MESSAGE_GUEST_PANIC, "%s", reason);
        if (m->observer)
                m->observer->panicked(reason, m->observer->userdata);
        /* Nothing but its end is awaited of a guest that is being stopped. */
        switch (m->stopping == STOPPING_POWER_OFF ? ON_PANIC_STOP : m->definition->on_panic) {
        case ON_PANIC_STOP:
                machine_finish(m, MACHINE_RESULT_PANIC, reason);
                break;
        case ON_PANIC_RESET:
                machine_begin_reset(m, reason);
                break;
        case ON_PANIC_PAUSE:
                m->stopping = STOPPING_NOT;
                m->stop_timer = sd_event_source_disable_unref(m->stop_timer);
                machine_set_state(m, MACHINE_PANICKED, reason);
                machine_set_goal(m, GOAL_NONE, NULL, NULL);
                notify_status("", "The guest's kernel panicked; the machine is paused.");
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
        machine_finish(m, MACHINE_RESULT_CRASH, "KVM could not go on running the guest.");
}

static void handle_device_failure(Machine *m, MachineDevice *d) {
        _cleanup_free_ char *error = machine_device_error(d), *unit = machine_device_unit(d);
        const char *name = machine_device_definition(d)->name;

        machine_problem(m, MESSAGE_DEVICE_FAILED, "Device '%s' (%s) failed: %s.", name, unit ?: "?",
                error ?: "unknown reason");
        /* A machine that has never been whole does not count as started. */
        if (!m->started || m->definition->on_device_failure == ON_DEVICE_FAILURE_STOP)
                machine_finish(m, MACHINE_RESULT_DEVICE, m->last_problem ?: "A device failed.");
        else if (m->state == MACHINE_RUNNING)
                notify_status("", "Running without device '%s', which failed.", name);
}

/* Where the guest was asked to say when it is ready, nothing else counts. */
static void update_guest_ready(Machine *m) {
        if (m->guest_ready || m->ended || m->state == MACHINE_RESETTING || atomic_load(&m->first_entry_usec) == 0 ||
                !(m->definition->guest_notifies ? m->guest_says_ready : machine_devices_are_active(m)))
                return;
        m->guest_ready = true;
        log_debug("The guest is ready.");
        if (m->observer)
                m->observer->guest_ready(m->observer->userdata);
}

static void show_running(Machine *m) {
        const MachineDefinition *d = m->definition;

        notify_status("", "Running: %u vCPU%s, %" PRIu64 " MiB, %zu device%s.%s", d->vcpus, d->vcpus == 1 ? "" : "s", d->memory >> 20,
                m->n_devices, m->n_devices == 1 ? "" : "s", d->ready_when == READY_WHEN_GUEST && !m->guest_ready ? " Waiting for the guest to be ready." : "");
}

void machine_device_healed(Machine *m) {
        if (m->state != MACHINE_RUNNING)
                return; /* what it says is of more weight, and gives way when it runs again */
        for (size_t i = 0; i < m->n_devices; i++)
                if (machine_device_state(m->devices[i]) == DEVICE_FAILED) {
                        notify_status("", "Running without device '%s', which failed.", machine_device_definition(m->devices[i])->name);
                        return;
                }
        show_running(m);
}

static void machine_started(Machine *m) {
        const MachineDefinition *d = m->definition;

        m->started = true;
        if (m->state == MACHINE_STARTING)
                machine_set_state(m, MACHINE_RUNNING, m->plugin ? "The plugin let the machine go." : "All devices have answered, and the guest runs.");
        if (m->plugin) {
                log_id(LOG_INFO, MESSAGE_MACHINE_STARTED, "Machine '%s' runs: %u vCPU%s and what its plugin has made.", d->name, d->vcpus,
                        d->vcpus == 1 ? "" : "s");
                notify_status("", "Running: %u vCPU%s, and a plugin.", d->vcpus, d->vcpus == 1 ? "" : "s");
                return;
        }
        log_id(LOG_INFO, MESSAGE_MACHINE_STARTED, "Machine '%s' runs: %u vCPU%s, %" PRIu64 " MiB, %zu devices.",
                d->name, d->vcpus, d->vcpus == 1 ? "" : "s", d->memory >> 20, m->n_devices);
        show_running(m);
}

static void update_readiness(Machine *m) {
        MachineDevice *failed;
        size_t connecting = machine_devices_update(m, &failed);

        if (failed) {
                handle_device_failure(m, failed);
                machine_request(m, MACHINE_REQUEST_DEVICES); /* there may be another */
                return;
        }
        if (connecting == 0 && m->work == WORK_NONE && restore_wants_helpers(m))
                machine_begin_work(m, WORK_RESTORE);
        update_guest_ready(m);
        if (m->ready_sent)
                return;
        if (m->plugin && atomic_load(&m->first_entry_usec) == 0) {
                notify_status("", "Starting; waiting for the plugin.");
                return;
        }
        if (connecting > 0 || atomic_load(&m->first_entry_usec) == 0) {
                notify_status("", connecting == 1 ? "Starting; waiting for %zu device." : "Starting; waiting for %zu devices.",
                        connecting);
                return;
        }
        if (!m->started)
                machine_started(m);
        if (m->definition->ready_when == READY_WHEN_GUEST && !m->guest_ready)
                return;
        m->ready_sent = true;
        (void) sd_notify(false, "READY=1");
}

void machine_catch_up(Machine *m) {
        if (!m->ended)
                update_readiness(m);
}

/* What `systemctl status` shows of a guest that speaks; it gives way to what is more urgent. */
static void show_guest_status(Machine *m) {
        if (m->ended || !m->started || m->state != MACHINE_RUNNING)
                return;
        notify_status("", "%s%s%s", m->guest_ready ? "Guest is ready" : "Guest is not ready", m->guest_status ? ": " : ".",
                m->guest_status ?: "");
}

void machine_guest_says(Machine *m, bool ready, const char *status) {
        bool another = !streq_ptr(status, m->guest_status), readiness = ready != m->guest_says_ready;

        if (another) {
                free(m->guest_status);
                m->guest_status = status ? strdup(status) : NULL;
                (void) make_one_line(m->guest_status);
        }
        m->guest_says_ready = ready;
        if (!ready)
                m->guest_ready = false;
        update_guest_ready(m);
        if (another && m->observer)
                m->observer->guest_status(m->guest_status, m->observer->userdata);
        if (another || readiness)
                show_guest_status(m);
        machine_request(m, MACHINE_REQUEST_DEVICES); /* the service manager may wait for it */
}

static void take_up(Machine *m, unsigned requests) {
        /* A panic that a second device tells of has been acted on. */
        if (m->state == MACHINE_RESETTING || m->state == MACHINE_PANICKED)
                requests &= ~(unsigned) MACHINE_REQUEST_PANIC;
        if (m->state == MACHINE_STARTING && requests & MACHINE_REQUEST_ENTERED)
                log_debug("The first vCPU enters the guest at %" PRIu64 " us.", atomic_load(&m->first_entry_usec));
        if (requests & (MACHINE_REQUEST_ENTERED | MACHINE_REQUEST_DEVICES))
                update_readiness(m);
        if (requests & MACHINE_REQUEST_WORK_DONE)
                machine_work_done(m);
        if (requests & (MACHINE_REQUEST_DEVICES | MACHINE_REQUEST_HOTPLUG | MACHINE_REQUEST_WORK_DONE))
                hotplug_update(m->hotplug);
        if (requests & (MACHINE_REQUEST_RESTORED | MACHINE_REQUEST_WORK_DONE))
                restore_update(m);
        if (requests & (MACHINE_REQUEST_PAUSED | MACHINE_REQUEST_WORK_DONE))
                machine_advance(m);

        /* Of several ends at once the most telling counts: a panic is followed by a reset or a triple fault. */
        if (requests & MACHINE_REQUEST_PANIC)
                handle_panic(m);
        else if (requests & MACHINE_REQUEST_ERROR)
                handle_vcpu_error(m);
        else if (requests & MACHINE_REQUEST_POWER_OFF)
                handle_power_off(m);
        else if (requests & MACHINE_REQUEST_RESET)
                handle_guest_reset(m);
        else if (requests & MACHINE_REQUEST_TRIPLE_FAULT) {
                machine_problem(m, MESSAGE_GUEST_CRASHED, "The guest crashed: triple fault.");
                machine_finish(m, MACHINE_RESULT_CRASH, "The guest crashed: triple fault.");
        } else if (requests & MACHINE_REQUEST_CRASH) {
                machine_problem(m, MESSAGE_GUEST_CRASHED, "The guest reported a crash.");
                machine_finish(m, MACHINE_RESULT_CRASH, "The guest reported a crash.");
        }
}

int machine_on_request(sd_event_source *s, int fd, uint32_t revents, void *userdata) {
        Machine *m = userdata;
        uint64_t count;

        (void) !read(fd, &count, sizeof(count));
        if (!m->ended)
                take_up(m, atomic_exchange(&m->requests, 0));
        return 0;
}

int machine_start(Machine *m) {
        int r;

        /* The plugin lets the vCPUs go. */
        if (m->plugin) {
                machine_request(m, MACHINE_REQUEST_DEVICES);
                return 0;
        }
        r = vcpu_set_start(&m->vcpus);
        if (r < 0)
                return r;
        if (!m->restore) /* else when the helpers have taken their state */
                vcpu_set_resume(&m->vcpus, false);
        machine_request(m, MACHINE_REQUEST_DEVICES);
        return 0;
}

/* --- what people ask for --- */

static void press_power_button(Machine *m) {
        if (m->plugin)
                machine_plugin_ask_to_exit(m->plugin);
        else if (power_key_press(m) == 0)
                arch_press_button(m->arch, ARCH_BUTTON_POWER);
        if (m->observer)
                m->observer->power_button(m->observer->userdata);
}

int machine_power_button(Machine *m) {
        if (m->state != MACHINE_STARTING && m->state != MACHINE_RUNNING)
                return -EBUSY;
        press_power_button(m);
        return 0;
}

int machine_sleep_button(Machine *m) {
        if (m->plugin)
                return -EOPNOTSUPP;
        if (m->state != MACHINE_STARTING && m->state != MACHINE_RUNNING)
                return -EBUSY;
        arch_press_button(m->arch, ARCH_BUTTON_SLEEP);
        return 0;
}

static int on_stop_timeout(sd_event_source *s, uint64_t usec, void *userdata) {
        Machine *m = userdata;
        bool reboot = m->stopping == STOPPING_REBOOT;

        if (m->plugin) {
                log_id(LOG_WARNING, MESSAGE_GUEST_FORCED_OFF, "The plugin did not end within %" PRIu64 " s of being asked to; ending it.",
                        m->definition->stop_timeout_usec / USEC_PER_SEC);
                machine_finish(m, MACHINE_RESULT_SUCCESS, "Ended: the plugin did not end in time.");
                return 0;
        }
        log_id(LOG_WARNING, MESSAGE_GUEST_FORCED_OFF,
                "The guest did not power off within %" PRIu64 " s of the power button; %s it.",
                m->definition->stop_timeout_usec / USEC_PER_SEC, reboot ? "resetting" : "ending");
        if (reboot)
                machine_begin_reset(m, "The guest did not power off in time, and is reset.");
        else
                machine_finish(m, MACHINE_RESULT_SUCCESS, "Ended: the guest did not power off in time.");
        return 0;
}

/* Gives the guest until stopTimeout to power off. */
static int ask_to_power_off(Machine *m, MachineStopping stopping, const char *reason) {
        uint64_t seconds = m->definition->stop_timeout_usec / USEC_PER_SEC;
        bool paused = m->goal == GOAL_PAUSE || m->state == MACHINE_PAUSED;

        m->stopping = stopping;
        machine_set_state(m, MACHINE_STOPPING, reason);
        notify_status(stopping == STOPPING_POWER_OFF ? "STOPPING=1\n" : "", "Powering off%s; the guest has %" PRIu64 " s.",
                stopping == STOPPING_REBOOT ? " to boot again" : "", seconds);
        if (m->plugin)
                log_info("Asked the plugin to end; it has %" PRIu64 " s.", seconds);
        else
                log_info("Pressed the guest's power button%s; it has %" PRIu64 " s.",
                        stopping == STOPPING_REBOOT ? " to boot it again" : "", seconds);
        /* It is to see the button. */
        if (paused) {
                machine_set_goal(m, GOAL_RESUME, NULL, NULL);
                machine_advance(m);
        }
        m->stop_timer = sd_event_source_disable_unref(m->stop_timer);
        return sd_event_add_time_relative(m->event, &m->stop_timer, CLOCK_MONOTONIC, m->definition->stop_timeout_usec, 0,
                on_stop_timeout, m);
}

int machine_power_off(Machine *m) {
        int r;

        if (m->state == MACHINE_PANICKED)
                return machine_terminate(m);
        if (m->ended)
                return 0;
        press_power_button(m);
        if (m->stopping == STOPPING_POWER_OFF)
                return 0;
        r = ask_to_power_off(m, STOPPING_POWER_OFF, "The guest was asked to power off.");
        return r < 0 ? machine_terminate(m) : 0;
}

int machine_reboot(Machine *m) {
        int r;

        if (m->plugin)
                return -EOPNOTSUPP;
        if (m->ended || m->stopping == STOPPING_POWER_OFF)
                return -EBUSY;
        if (m->state == MACHINE_PANICKED)
                return machine_reset(m);
        if (m->state == MACHINE_RESETTING)
                return 0;
        press_power_button(m);
        if (m->stopping == STOPPING_REBOOT)
                return 0;
        r = ask_to_power_off(m, STOPPING_REBOOT, "The guest was asked to power off, to be booted again.");
        return r < 0 ? machine_reset(m) : 0;
}

int machine_terminate(Machine *m) {
        machine_finish(m, MACHINE_RESULT_SUCCESS, "Ended at once, as asked.");
        return 0;
}

int machine_reset(Machine *m) {
        if (m->plugin)
                return -EOPNOTSUPP;
        if (m->ended || m->stopping == STOPPING_POWER_OFF)
                return -EBUSY;
        /* The guest has not booted yet after the one before: it does after this one. */
        if (m->state == MACHINE_RESETTING)
                return 0;
        machine_begin_reset(m, "Reset as asked.");
        return 0;
}

int machine_inject_nmi(Machine *m, int64_t vcpu) {
        int r = 0;

        if (vcpu >= (int64_t) m->vcpus.n_vcpus || vcpu < -1)
                return -ERANGE;
        if (m->state != MACHINE_RUNNING)
                return -EBUSY;
        for (unsigned i = 0; i < m->vcpus.n_vcpus && r >= 0; i++)
                if (vcpu < 0 || vcpu == (int64_t) i)
                        r = arch_inject_nmi(m->arch, &m->vcpus.vcpus[i]);
        return r;
}
