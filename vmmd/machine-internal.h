/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* What machine-build.c wires up and machine.c answers. */

#include "machine.h"

/* Any thread: leave a request for the loop. */
void machine_on_vcpu_event(Vcpu *vcpu, VcpuEvent event, void *userdata);
void machine_on_paused(void *userdata);
void machine_on_arch_event(ArchEvent event, void *userdata);
void machine_on_pvpanic(unsigned vcpu, unsigned events, void *userdata);

/* The loop takes requests up; userdata is the Machine. */
int machine_on_request(sd_event_source *s, int fd, uint32_t revents, void *userdata);

void machine_set_state(Machine *m, MachineState state);
/* Loads kernel, initrd and tables, and readies the first vCPU. */
int machine_load_kernel(Machine *m, char **ret_message);
/* Waits for the thread that resets the devices, if there is one. */
void machine_join_reset(Machine *m);
