/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Pausing, resuming and resetting a machine: what begins with all vCPUs parked and goes on with what helpers have to do, in steps, while
 * the loop answers everybody else. A later goal takes the place of an earlier one, wherever that has got to. */

#include <fcntl.h>
#include <sys/mman.h>

#include "catalog-ids.h"
#include "hotplug.h"
#include "log.h"
#include "machine-device.h"
#include "machine-internal.h"
#include "notify.h"
#include "restore.h"
#include "snapshot-take.h"
#include "reload.h"
#include "watchdog.h"

/* Of memory that is emptied, between two words to the watchdog. */
#define CLEAR_STEP GIB(4)

void machine_set_goal(Machine *m, MachineGoal goal, MachineDone done, void *userdata) {
        MachineDone before = m->done;
        void *before_userdata = m->done_userdata;

        m->goal = goal;
        m->done = done;
        m->done_userdata = userdata;
        if (before)
                before(m, -ECANCELED, before_userdata);
}

static void goal_reached(Machine *m) {
        MachineDone done = m->done;

        m->goal = GOAL_NONE;
        m->done = NULL;
        if (done)
                done(m, 0, m->done_userdata);
}

/* --- what helpers have to do --- */

static void *work_thread(void *userdata) {
        Machine *m = userdata;

        (void) pthread_setname_np(pthread_self(), "devices");
        switch (m->work) {
        case WORK_SUSPEND:
                machine_devices_suspend(m);
                break;
        case WORK_RESUME:
                machine_devices_resume(m);
                restore_devices_resumed(m);
                break;
        case WORK_RESET:
                machine_devices_reset(m);
                break;
        case WORK_SNAPSHOT:
                machine_snapshot_write(m);
                break;
        case WORK_RESTORE:
                restore_helpers(m);
                break;
        case WORK_RELEASE:
                restore_release(m);
                break;
        case WORK_NONE:
                break;
        }
        machine_request(m, MACHINE_REQUEST_WORK_DONE);
        return NULL;
}

void machine_begin_work(Machine *m, MachineWork work) {
        m->work = work;
        m->has_work_thread = pthread_create(&m->work_thread, NULL, work_thread, m) == 0;
        if (!m->has_work_thread)
                (void) work_thread(m);
}

void machine_join_work(Machine *m) {
        if (m->has_work_thread)
                (void) pthread_join(m->work_thread, NULL);
        m->has_work_thread = false;
}

void machine_work_done(Machine *m) {
        MachineWork work = m->work;

        machine_join_work(m);
        if (m->work == WORK_SUSPEND)
                m->devices_suspended = true;
        else if (m->work == WORK_RESUME)
                m->devices_suspended = false;
        else if (m->work == WORK_RESET) {
                m->devices_suspended = false;
                m->devices_reset = true;
        }
        m->work = WORK_NONE;
        if (work == WORK_SNAPSHOT)
                machine_snapshot_written(m);
        else if (work == WORK_RESTORE)
                restore_run(m);
        else if (work == WORK_RELEASE)
                restore_released(m);
}

/* --- reset --- */

/* Piece by piece: of much memory this takes longer than the service manager's watchdog waits. */
static void clear_region(Machine *m, const GuestRegion *region) {
        uint64_t length;

        for (uint64_t at = 0; at < region->size; at += length) {
                length = MIN(region->size - at, CLEAR_STEP);
                if (fallocate(region->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t) (region->fd_offset + at), (off_t) length) < 0)
                        (void) log_warning_errno(errno, "Cannot give the guest's memory back at reset: %m");
                if (m->definition->prefault && madvise(region->host + at, length, MADV_POPULATE_WRITE) < 0)
                        (void) log_warning_errno(errno, "Cannot allocate the guest's memory again at reset: %m");
                if (length < region->size)
                        watchdog_feed();
        }
}

/* A guest that starts again finds empty memory, as at first, and the host has its pages back meanwhile. */
static void clear_memory(Machine *m) {
        for (size_t i = 0; i < m->memory.n_regions; i++) {
                const GuestRegion *region = &m->memory.regions[i];

                clear_region(m, region);
        }
}

/* All vCPUs are parked, and no helper touches a ring. */
static void reset_now(Machine *m) {
        _cleanup_free_ char *message = NULL;
        int r;

        /* A guest that was told to power off meanwhile does not come back. */
        if (m->stopping == STOPPING_POWER_OFF) {
                machine_finish(m, MACHINE_RESULT_SUCCESS, "The guest ended by a reset while being stopped.");
                return;
        }
        restore_cancel(m);
        hotplug_reset(m->hotplug);
        pci_bus_reset(&m->pci);
        clear_memory(m);
        r = arch_reset(m->arch, &message);
        if (r >= 0)
                r = machine_load_kernel(m, &message);
        if (r < 0) {
                machine_problem(m, NULL, "Cannot reset the machine: %s", message ?: strerror(-r));
                machine_finish(m, MACHINE_RESULT_ERROR, "The machine could not be reset.");
                return;
        }
        m->resets++;
        m->guest_ready = m->guest_says_ready = false;
        m->guest_status = mfree(m->guest_status);
        machine_set_state(m, MACHINE_RUNNING, "The guest boots again.");
        vcpu_set_resume(&m->vcpus, true);
        log_id(LOG_INFO, MESSAGE_GUEST_REBOOT, "Machine '%s' was reset and boots again.", m->definition->name);
        notify_status("", "Running, reset %u time%s.", m->resets, m->resets == 1 ? "" : "s");
        goal_reached(m);
        machine_request(m, MACHINE_REQUEST_DEVICES); /* one without any is ready as soon as it runs */
}

void machine_begin_reset(Machine *m, const char *reason) {
        machine_set_state(m, MACHINE_RESETTING, reason);
        notify_status("", "Resetting.");
        m->devices_reset = false;
        /* What a reboot has waited for is here; a power-off stands. */
        if (m->stopping == STOPPING_REBOOT) {
                m->stopping = STOPPING_NOT;
                m->stop_timer = sd_event_source_disable_unref(m->stop_timer);
        }
        machine_set_goal(m, GOAL_RESET, NULL, NULL);
        vcpu_set_pause(&m->vcpus);
}

/* --- pause and resume --- */

static void paused(Machine *m) {
        machine_set_state(m, MACHINE_PAUSED, m->pause_devices ? "Paused with its devices, as asked." : "Paused as asked.");
        notify_status("", m->pause_devices ? "Paused with its devices." : "Paused.");
        goal_reached(m);
}

static void resumed(Machine *m) {
        /* Else it is being stopped: that stands. */
        if (m->state == MACHINE_PAUSED) {
                machine_set_state(m, MACHINE_RUNNING, "Resumed as asked.");
                notify_status("", "Running.");
        }
        vcpu_set_resume(&m->vcpus, false);
        goal_reached(m);
}

int machine_pause(Machine *m, bool devices, MachineDone done, void *userdata) {
        /* What a plugin does with its memory is its own business. */
        if (m->plugin && devices)
                return -EOPNOTSUPP;
        if (m->state != MACHINE_RUNNING || m->goal != GOAL_NONE)
                return -EBUSY;
        m->pause_devices = devices;
        machine_set_goal(m, GOAL_PAUSE, done, userdata);
        vcpu_set_pause(&m->vcpus);
        return 0;
}

int machine_suspend(Machine *m, MachineDone done, void *userdata) {
        if ((m->state != MACHINE_RUNNING && m->state != MACHINE_PAUSED) || m->goal != GOAL_NONE)
                return -EBUSY;
        m->pause_devices = true;
        machine_set_goal(m, GOAL_PAUSE, done, userdata);
        vcpu_set_pause(&m->vcpus);
        return 0;
}

int machine_resume(Machine *m, MachineDone done, void *userdata) {
        if (m->state != MACHINE_PAUSED || m->goal != GOAL_NONE)
                return -EBUSY;
        machine_set_goal(m, GOAL_RESUME, done, userdata);
        machine_request(m, MACHINE_REQUEST_PAUSED);
        return 0;
}

/* --- steps --- */

void machine_advance(Machine *m) {
        /* What is awaited, the last vCPU or the helpers, brings us here again. */
        if (m->work == WORK_SNAPSHOT && m->goal != GOAL_NONE)
                machine_snapshot_cancel(m);
        if (m->ended || m->work != WORK_NONE || !vcpu_set_is_paused(&m->vcpus))
                return;
        switch (m->goal) {
        case GOAL_NONE:
                break;
        case GOAL_PAUSE:
                if (m->pause_devices && !m->devices_suspended)
                        machine_begin_work(m, WORK_SUSPEND);
                else
                        paused(m);
                break;
        case GOAL_RESUME:
                if (m->devices_suspended)
                        machine_begin_work(m, WORK_RESUME);
                else
                        resumed(m);
                break;
        case GOAL_RELOAD:
                reload_paused(m->reload);
                break;
        case GOAL_RESET:
                if (!m->devices_reset)
                        machine_begin_work(m, WORK_RESET);
                else
                        reset_now(m);
                break;
        }
}
