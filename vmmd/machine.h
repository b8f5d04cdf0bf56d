/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* One virtual machine: its parts, and what happens to it. Everything here runs on the event loop's thread; vCPU threads and the
 * connecting threads of devices only leave requests (machine_request()), which the loop takes up. */

#include <stdatomic.h>
#include <systemd/sd-event.h>

#include "arch.h"
#include "definition.h"
#include "guest-memory.h"
#include "pvpanic.h"

typedef struct MachineDevice MachineDevice;

typedef enum MachineState {
        MACHINE_STARTING,
        MACHINE_RUNNING,
        MACHINE_PAUSED,
        MACHINE_RESETTING,
        MACHINE_STOPPING,
        MACHINE_PANICKED,
        _MACHINE_STATE_MAX,
} MachineState;

/* vmmd's exit statuses: how the outside tells what became of the guest. vmmd(8) documents them. */
typedef enum MachineResult {
        MACHINE_RESULT_SUCCESS = 0, /* powered off or stopped */
        MACHINE_RESULT_ERROR = 1,
        MACHINE_RESULT_REBOOT = 32, /* the guest asked for a reboot and onReboot is "stop" */
        MACHINE_RESULT_CRASH = 33,  /* triple fault, or KVM could not go on */
        MACHINE_RESULT_PANIC = 34,
        MACHINE_RESULT_DEFINITION = 35, /* wrong definition, kernel or initrd */
        MACHINE_RESULT_DEVICE = 36,     /* a device failed */
} MachineResult;

/* What other threads ask the loop for. */
typedef enum MachineRequest {
        MACHINE_REQUEST_ENTERED = 1 << 0,
        MACHINE_REQUEST_PAUSED = 1 << 1,
        MACHINE_REQUEST_POWER_OFF = 1 << 2,
        MACHINE_REQUEST_RESET = 1 << 3,
        MACHINE_REQUEST_TRIPLE_FAULT = 1 << 4,
        MACHINE_REQUEST_CRASH = 1 << 5,
        MACHINE_REQUEST_ERROR = 1 << 6,
        MACHINE_REQUEST_PANIC = 1 << 7,
        MACHINE_REQUEST_DEVICES = 1 << 8,
        MACHINE_REQUEST_DEVICES_RESET = 1 << 9,
} MachineRequest;

/* What is to be done once all vCPUs are parked. */
typedef enum MachineAfterPause { AFTER_PAUSE_NOTHING, AFTER_PAUSE_RESET } MachineAfterPause;

typedef struct MachineFiles {
        int kernel_fd;
        int initrd_fd; /* negative where the definition has none */
} MachineFiles;

typedef struct Machine {
        MachineDefinition *definition;
        sd_event *event;
        const char *runtime_directory; /* holds the devices' sockets */

        Kvm kvm;
        IoSpace pio, mmio;
        GuestMemory memory;
        PciBus pci;
        Pvpanic pvpanic;
        Arch *arch;
        VcpuSet vcpus;
        bool has_spaces, has_kvm, has_vcpus;

        MachineFiles files;
        char *command_line; /* with the devices' arguments */
        MachineDevice *devices;
        size_t n_devices;

        MachineState state;
        uint64_t state_since_usec; /* CLOCK_REALTIME */
        MachineAfterPause after_pause;
        pthread_t reset_thread; /* makes the helpers let go of the old guest */
        bool has_reset_thread;
        bool ready_sent;
        char *last_problem;
        atomic_uint requests;
        int request_fd; /* eventfd that wakes the loop */
        sd_event_source *request_source, *stop_timer;
        _Atomic uint64_t first_entry_usec; /* CLOCK_MONOTONIC of the first vCPU entry */
        unsigned resets;
} Machine;

/* Builds the machine. Takes ownership of the definition; `files` stay the caller's. Begins to connect the devices. */
int machine_new(sd_event *event, MachineDefinition *definition, const char *runtime_directory, const MachineFiles *files,
        Machine **ret, char **ret_message, MachineResult *ret_result);
Machine *machine_free(Machine *m);
DEFINE_CLEANUP(Machine, machine_free)

/* Lets the vCPUs run. */
int machine_start(Machine *m);

/* Any thread. */
void machine_request(Machine *m, MachineRequest request);

/* Presses the power button; with `end`, ends the machine when the definition's stopTimeout is over. */
int machine_power_button(Machine *m);
int machine_sleep_button(Machine *m);
int machine_power_off(Machine *m);
int machine_terminate(Machine *m);
int machine_reset(Machine *m);
/* -EBUSY where the machine is in another state than these need. */
int machine_pause(Machine *m);
int machine_resume(Machine *m);

const char *machine_state_to_string(MachineState state);
/* Remembers and logs what went wrong, with a message id of catalog-ids.h or NULL. */
void machine_problem(Machine *m, const char *message_id, const char *format, ...) _printf_(3, 4);
/* The unit's status line. */
void machine_status(Machine *m, const char *format, ...) _printf_(2, 3);

/* Writes and reads everything of the machine but its RAM. All vCPUs parked. */
int machine_save(Machine *m, StateWriter *w);
int machine_load(Machine *m, StateReader *r, char **ret_message);
