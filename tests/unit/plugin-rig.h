/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* A machine on the real /dev/kvm whose plugin is the test: vmmd's side serves in a thread of its own, and the test uses libcrosvm_plugin, or
 * speaks the protocol by hand. */

#include <pthread.h>

#include "crosvm.h"
#include "plugin.h"

#define RIG_CODE 0x1000
#define RIG_MEMORY 0x20000

typedef struct PluginRig {
        sd_event *event;
        sd_event_source *stop_source;
        int stop_fd;
        pthread_t loop;
        Kvm kvm;
        VcpuSet vcpus;
        Plugin *plugin;
        int fd; /* the plugin's end of the main socket, until somebody takes it */
        bool has_vcpus;
        pthread_mutex_t lock;
        pthread_cond_t changed;
        char *ended;   /* why, under the lock */
        unsigned n_faults;
        struct crosvm *crosvm; /* after rig_connect() */
        struct crosvm_memory *memory;
        uint8_t *bytes; /* of it */
} PluginRig;

void rig_begin(PluginRig *rig, unsigned n_vcpus, const PluginNetwork *network);
void rig_end(PluginRig *rig);
/* By the library. */
void rig_connect(PluginRig *rig);
/* RIG_MEMORY bytes at 0, with the code at RIG_CODE. */
void rig_add_memory(PluginRig *rig, const uint8_t *code, const uint8_t *code_end, bool dirty_log);
/* A sealed memfd. */
int rig_memfd(uint64_t size);
/* Answers the first event of a vCPU: real mode, at RIG_CODE, with this in bx. */
void rig_set_up_vcpu(struct crosvm_vcpu *vcpu, uint16_t bx);
/* Waits until the machine has ended, and returns why. */
const char *rig_wait_for_end(PluginRig *rig);
