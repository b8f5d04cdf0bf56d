/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* The device tree that a machine begins with: what is where in layout.h, and what this machine has of it (Devicetree Specification 0.4; the bindings in
 * Linux's Documentation/devicetree/bindings). It is made on any architecture, for the tests. */

#include "util.h"

#define ARM64_CACHES_MAX 14 /* seven levels, each for instructions and data */

typedef enum Arm64CacheKind { ARM64_CACHE_INSTRUCTION, ARM64_CACHE_DATA, ARM64_CACHE_UNIFIED } Arm64CacheKind;

typedef struct Arm64Cache {
        Arm64CacheKind kind;
        unsigned level; /* from 1 */
        uint32_t line_size, sets, ways;
} Arm64Cache;

#define ARM64_FDT_SEED_SIZE 64

typedef struct Arm64FdtInput {
        const uint64_t *mpidrs; /* affinity of each vCPU, as in its MPIDR_EL1 */
        unsigned n_vcpus;
        const Arm64Cache *caches; /* of a vCPU, by level; unified ones above the second are everybody's */
        size_t n_caches;
        bool has_pmu;
        uint64_t ram_size;
        unsigned serial_ports; /* bit n: there is a serial port n */
        const char *command_line;
        uint64_t initrd_address, initrd_size; /* size 0: none */
        uint8_t rng_seed[ARM64_FDT_SEED_SIZE];
        uint64_t kaslr_seed;
} Arm64FdtInput;

/* The blob, which the caller frees. */
int arm64_fdt_build(const Arm64FdtInput *input, void **ret, size_t *ret_size, char **ret_message);
