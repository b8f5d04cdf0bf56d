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

typedef struct Machine Machine;
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
        MACHINE_RESULT_PLUGIN = 37,     /* the plugin failed */
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
        MACHINE_REQUEST_WORK_DONE = 1 << 9,
        MACHINE_REQUEST_HOTPLUG = 1 << 10,
        MACHINE_REQUEST_RESTORED = 1 << 12,
} MachineRequest;

/* Where the machine is to get to, step by step: all vCPUs parked, then the devices, then the rest. */
typedef enum MachineGoal { GOAL_NONE, GOAL_PAUSE, GOAL_RESUME, GOAL_RESET, GOAL_RELOAD } MachineGoal;

/* What the helpers are made to do meanwhile, on a thread of its own, since they may take their time. */
typedef enum MachineWork { WORK_NONE, WORK_SUSPEND, WORK_RESUME, WORK_RESET, WORK_SNAPSHOT, WORK_RESTORE, WORK_RELEASE } MachineWork;

/* What the guest's power-off leads to. */
typedef enum MachineStopping { STOPPING_NOT, STOPPING_POWER_OFF, STOPPING_REBOOT } MachineStopping;

/* A goal was reached (0), or given up for another (-ECANCELED). */
typedef void (*MachineDone)(Machine *m, int error, void *userdata);

typedef enum MachineDeviceChange {
        DEVICE_CHANGE_STATE,
        DEVICE_CHANGE_FAILED,    /* it went away, broke, or failed for good */
        DEVICE_CHANGE_RESTARTED, /* its helper is back */
        DEVICE_CHANGE_ATTACHED,  /* the guest was told of it */
        DEVICE_CHANGE_DETACHED,  /* it is gone */
} MachineDeviceChange;

/* Who is told what happens, on the loop's thread. */
typedef struct MachineObserver {
        void (*state_changed)(const char *reason, void *userdata);
        void (*guest_ready)(void *userdata);
        /* What the guest says it is doing; NULL: it has said nothing yet. */
        void (*guest_status)(const char *status, void *userdata);
        void (*panicked)(const char *reason, void *userdata);
        void (*power_button)(void *userdata);
        /* The last that is said: the loop ends as soon as it has nothing else to do. */
        void (*ended)(const char *reason, void *userdata);
        void (*device_changed)(MachineDevice *d, MachineDeviceChange change, const char *reason, void *userdata);
        /* `type` is of io.vmmd.Balloon's EventType. */
        void (*balloon_changed)(MachineDevice *d, const char *type, json_object *working_set, void *userdata);
        void *userdata;
} MachineObserver;

typedef struct MachineFiles {
        int kernel_fd;
        int initrd_fd; /* negative where the definition has none */
        const struct MachineFile {
                const char *name; /* "DEVICE.OPTION", or MACHINE_OVERLAY_FILE */
                int fd;
        } *others; /* of devices that are vmmd's business, too, and of the machine itself */
        size_t n_others;
        struct Handover *handover; /* from whom the machine is taken over, instead of being started; NULL: nobody */
        /* Called where it cannot be made, with all of its parts still there; or NULL. */
        void (*failed)(const char *reason, void *userdata);
        void *failed_userdata;
        struct Restore *restore; /* the machine takes it over, also on error; NULL: it boots */
} MachineFiles;

/* The descriptor of that name among the others, which stays theirs, or -ENOENT. */
int machine_file(const MachineFiles *files, const char *name);

struct Machine {
        MachineDefinition *definition;
        sd_event *event;
        const char *runtime_directory; /* holds the devices' sockets */

        Kvm kvm;
        IoSpace pio, mmio;
        GuestMemory memory;
        PciBus pci;
        Pvpanic pvpanic;
        struct Pmem *pmem; /* NULL: none (pmem.h) */
        struct VarlinkClient *power_key; /* to the helper of the device that is the power button (power-key.h) */
        Arch *arch;
        struct MachinePlugin *plugin; /* NULL, or all that is not here then: memory, platform, devices (machine-plugin.h) */
        VcpuSet vcpus;
        bool has_spaces, has_kvm, has_vcpus;

        MachineFiles files;
        char *command_line; /* with the devices' arguments */
        MachineDevice *devices[MACHINE_DEVICES_MAX];
        size_t n_devices;
        sd_event_source *sockets_source; /* tells of sockets that come back */
        struct Hotplug *hotplug;
        struct MachineSnapshot *snapshot; /* that is being taken; else NULL (snapshot-take.h) */
        struct Restore *restore;          /* the snapshot that the machine goes on from, until all of it is there; else NULL (restore.h) */

        MachineState state;
        uint64_t state_since_usec; /* CLOCK_REALTIME */
        const MachineObserver *observer; /* NULL: nobody */
        MachineGoal goal;
        MachineDone done; /* who waits for the goal */
        void *done_userdata;
        bool pause_devices;     /* the goal includes the devices */
        bool devices_suspended; /* they let go of the guest's memory, for now */
        bool devices_reset;     /* they let go of the old guest */
        MachineWork work;
        pthread_t work_thread;
        bool has_work_thread;
        MachineStopping stopping;
        bool ended; /* the loop is about to end */
        MachineResult result;
        bool started;    /* all devices have answered, and the guest runs */
        bool ready_sent; /* the service manager was told so, or what the definition has it wait for */
        bool guest_says_ready;
        char *guest_status; /* what it says it is doing; NULL where it said nothing */
        bool guest_ready; /* since the last start or reset: all drivers are at work, or the guest says so where it was asked to */
        char *last_problem;
        atomic_uint requests;
        int request_fd; /* eventfd that wakes the loop */
        sd_event_source *request_source, *stop_timer, *exit_source, *exit_timer;
        _Atomic uint64_t first_entry_usec; /* CLOCK_MONOTONIC of the first vCPU entry */
        unsigned resets;

        struct Reload *reload; /* puts another program in this one's place (reload.h); NULL: nobody can */
        bool interrupts_held;  /* devices' signals stay in their eventfds */
};

/* Builds the machine. Takes ownership of the definition; `files` stay the caller's. Begins to connect the devices. */
int machine_new(sd_event *event, MachineDefinition *definition, const char *runtime_directory, const MachineFiles *files,
        Machine **ret, char **ret_message, MachineResult *ret_result);
/* The device tree that a guest of this definition would begin with, as arch_device_tree() has it: what it tells of processors only KVM knows, and of the initrd only who has
 * loaded it. Nothing runs, and no helper is asked. Takes ownership of the definition. */
int machine_make_device_tree(MachineDefinition *definition, const MachineFiles *files, void **ret, size_t *ret_size, char **ret_message,
        MachineResult *ret_result);
Machine *machine_free(Machine *m);
DEFINE_CLEANUP(Machine, machine_free)

/* Lets the vCPUs run. */
int machine_start(Machine *m);

/* Any thread. */
void machine_request(Machine *m, MachineRequest request);

/* What people ask for. -EBUSY where the machine is in a state in which that cannot be; -EOPNOTSUPP where it cannot do that at all, as with a
 * plugin: it has no buttons but that for power, which asks the plugin to end, and nobody can reset it or have its memory left alone. */
int machine_power_button(Machine *m);
int machine_sleep_button(Machine *m);
/* Presses the power button and ends the machine, or boots it again, when the guest has powered off or stopTimeout is over. */
int machine_power_off(Machine *m);
int machine_reboot(Machine *m);
int machine_terminate(Machine *m);
int machine_reset(Machine *m);
/* `done` is called once, never before these return, and not at all where they fail. With `devices`, no helper touches the guest's memory
 * until the machine is resumed. */
int machine_pause(Machine *m, bool devices, MachineDone done, void *userdata);
int machine_resume(Machine *m, MachineDone done, void *userdata);
/* As machine_pause() with the devices, for our own needs: in the state paused, too. */
int machine_suspend(Machine *m, MachineDone done, void *userdata);
/* `vcpu` -1 is all. -ERANGE where there is none of that number. */
int machine_inject_nmi(Machine *m, int64_t vcpu);

const char *machine_state_to_string(MachineState state);
/* CLOCK_REALTIME, in microseconds. */
uint64_t now_realtime_usec(void);
/* Remembers and logs what went wrong, with a message id of catalog-ids.h or NULL. */
void machine_problem(Machine *m, const char *message_id, const char *format, ...) _printf_(3, 4);

/* What the guest's service manager says of itself, as it came from there. */
void machine_guest_says(Machine *m, bool ready, const char *status);

/* While held, no interrupt of a device reaches the guest, and none is lost; those under way have arrived when this returns. */
void machine_hold_interrupts(Machine *m, bool hold);

/* Writes and reads everything of the machine but its RAM. All vCPUs parked. What helpers signal after it was written is in the eventfds only where
 * interrupts were held before, and are until it is read. */
int machine_save(Machine *m, StateWriter *w);
int machine_load(Machine *m, StateReader *r, char **ret_message);
