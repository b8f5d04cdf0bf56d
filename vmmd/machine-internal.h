/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* What machine-build.c wires up and machine.c answers. */

#include "machine.h"

/* Any thread: leave a request for the loop. */
void machine_on_vcpu_event(Vcpu *vcpu, VcpuEvent event, void *userdata);
void machine_on_paused(void *userdata);
void machine_on_arch_event(ArchEvent event, void *userdata);
void machine_on_eject(uint32_t slots, void *userdata);
void machine_on_pvpanic(unsigned vcpu, unsigned events, void *userdata);

/* The loop takes requests up; userdata is the Machine. */
int machine_on_request(sd_event_source *s, int fd, uint32_t revents, void *userdata);

/* `reason` is for people, or NULL. */
void machine_set_state(Machine *m, MachineState state, const char *reason);
/* Ends the machine: the process exits with `result`, and the status line says why. What comes after the first is ignored. */
void machine_finish(Machine *m, MachineResult result, const char *status);
/* The plugin has ended, perhaps before the loop heard that a vCPU had run: then the machine has started first. */
void machine_catch_up(Machine *m);
/* A device that had failed is there again. */
void machine_device_healed(Machine *m);
/* Loads kernel, initrd and tables, and readies the first vCPU. */
int machine_load_kernel(Machine *m, char **ret_message);

/* machine-state.c. What the successor of this process needs beside the state, and takes: he has made everything else, and loads the state, too. */
int machine_hand_over(Machine *m, struct Handover *h);
int machine_take_over(Machine *m, struct Handover *h, char **ret_message);
/* Instead of machine_start(). */
int machine_go_on(Machine *m);

/* machine-run.c. Who waited for another goal is told -ECANCELED. */
void machine_set_goal(Machine *m, MachineGoal goal, MachineDone done, void *userdata);
/* Takes the next step towards the goal, where it can be taken by now. */
void machine_advance(Machine *m);
void machine_begin_reset(Machine *m, const char *reason);
/* Makes the helpers do something; no work is under way. */
void machine_begin_work(Machine *m, MachineWork work);
/* The helpers have done what they were made to do. */
void machine_work_done(Machine *m);
/* Waits for the thread that makes them, if there is one. */
void machine_join_work(Machine *m);
