/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* The processor as the guest knows it, in a snapshot: its CPUID, and whether this host has all of it. Pure but for x86_cpu_tsc_fits(). */

#include <linux/kvm.h>

#include "util.h"

/* Whether a vCPU that has `now` can go on where one with `then` was: the same vendor, and no feature missing. The message names the first that is. */
int x86_cpu_check(const struct kvm_cpuid_entry2 *then, size_t n_then, const struct kvm_cpuid_entry2 *now, size_t n_now, char **ret_message);
/* The processor's name; the caller frees it, NULL where out of memory. */
char *x86_cpu_model(const struct kvm_cpuid_entry2 *entries, size_t n);
/* Whether a guest that believes in one frequency can live with another, without scaling (KVM's own tolerance). */
bool x86_cpu_tsc_fits(uint32_t then_khz, uint32_t now_khz);
