/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* The whole state of a vCPU as KVM gives and takes it. The vCPU must be parked. */

#include "state.h"
#include "vcpu.h"

/* Section "x86-vcpu", instance = the vCPU's index. */
int x86_vcpu_save(const Vcpu *vcpu, StateWriter *w);

/* `with_clock` also sets the TSC: for a machine that goes on. A reset leaves it running. */
int x86_vcpu_load(const Vcpu *vcpu, bool with_clock, StateReader *r, char **ret_message);
