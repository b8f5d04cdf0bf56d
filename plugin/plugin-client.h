/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* Inside libcrosvm_plugin: connections and vCPU channels. Of what is ours elsewhere only the rings, as it is linked into other people's programs. */

#include <stdatomic.h>
#include <stddef.h>
#include <sys/types.h>

#include "crosvm.h"
#include "ring.h"
#include <plugin.pb-c.h>

/* SCM_MAX_FD: two for each vCPU. */
#define CHANNEL_FDS_MAX 253
/* A dirty log of 8 GiB is that large. */
#define CHANNEL_MESSAGE_MAX ((size_t) 0x40000)

/* What all connections of a plugin have in common. */
typedef struct PluginShared {
        atomic_uint references;
        atomic_uint next_id; /* of objects */
        struct crosvm_vcpu *vcpus;
        uint32_t n_vcpus;
        RingMemory *rings; /* one a vCPU, or NULL */
} PluginShared;

struct crosvm {
        int fd;
        PluginShared *shared;
        uint8_t *buffer; /* CHANNEL_MESSAGE_MAX bytes */
};

/* Registers that are set when the vCPU is resumed, or came with its event. */
typedef struct RegisterCache {
        bool known;   /* they are those of the vCPU */
        bool pending; /* the vCPU is still to be given them */
        union {
                struct kvm_regs regs;
                struct kvm_sregs sregs;
                struct kvm_debugregs debugregs;
        };
} RegisterCache;

struct crosvm_vcpu {
        int read_fd, write_fd;
        Ring ring;       /* in the place of the pipes, where there is one */
        bool has_ring;
        bool waited; /* the first wait is a request of its own */
        uint8_t *buffer; /* CHANNEL_MESSAGE_MAX bytes: what was read */
        size_t start, end;
        uint8_t *data; /* of the event, and what the vCPU is resumed with */
        size_t data_size;
        uint64_t result; /* of a hypercall */
        RegisterCache regs, sregs, debugregs;
};

/* One request and its answer, which is of the case `expected`; the caller frees *ret by main_response__free_unpacked(). Descriptors that come
 * with it are the caller's, *n_fds of them; the others are closed. */
int plugin_ask(struct crosvm *c, const MainRequest *request, int send_fd, MainResponse__MessageCase expected, MainResponse **ret, int *ret_fds,
        size_t *n_fds);
/* For requests without content, which all have the same type and the same place. */
int plugin_ask_empty(struct crosvm *c, MainRequest__MessageCase what, MainResponse__MessageCase expected, MainResponse **ret, int *ret_fds,
        size_t *n_fds);
/* The same where nothing is of interest but whether it succeeded. */
int plugin_tell(struct crosvm *c, const MainRequest *request, MainResponse__MessageCase expected);

/* Fills `entries` as crosvm_get_supported_cpuid() says. */
int plugin_take_cpuid(CpuidEntry *const *from, size_t n, uint32_t n_entries, struct kvm_cpuid_entry2 *entries, uint32_t *ret_count);

void plugin_vcpu_init(struct crosvm_vcpu *v, int write_fd, int read_fd);
void plugin_vcpu_done(struct crosvm_vcpu *v);
/* From now on, instead of the pipes. */
void plugin_vcpu_use_ring(struct crosvm_vcpu *v, RingMemory *memory);
int plugin_vcpu_send(struct crosvm_vcpu *v, const VcpuRequest *request);
/* The next answer, which is an error where it says so. The caller frees it. */
int plugin_vcpu_receive(struct crosvm_vcpu *v, VcpuResponse **ret);
int plugin_vcpu_ask(struct crosvm_vcpu *v, const VcpuRequest *request, VcpuResponse__MessageCase expected, VcpuResponse **ret);
