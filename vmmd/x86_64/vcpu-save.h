/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* The whole state of a vCPU as KVM gives and takes it. The vCPU must be parked. */

#include "state.h"
#include "vcpu.h"

/* Section "x86-vcpu", instance = the vCPU's index. */
int x86_vcpu_save(const Vcpu *vcpu, StateWriter *w);

typedef enum X86Load {
        X86_LOAD_RESET,    /* the same vCPU again: CPUID and TSC stay */
        X86_LOAD_RESTORE,  /* somewhere, some time: the TSC goes on from where it was */
        X86_LOAD_CONTINUE, /* on the same host, at once: the TSC has gone on meanwhile, as the host's has */
} X86Load;

/* `tsc_ago` is for X86_LOAD_RESTORE: by how much the host's TSC is ahead of the one at which the state was saved (modulo 2^64). */
int x86_vcpu_load(const Vcpu *vcpu, X86Load mode, uint64_t tsc_ago, StateReader *r, char **ret_message);
