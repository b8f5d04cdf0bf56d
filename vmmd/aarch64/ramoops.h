/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* Where a guest's kernel leaves its last words: a region for Linux' driver ramoops (Documentation/admin-guide/ramoops.rst, bindings/reserved-memory/ramoops.yaml),
 * which Debian's kernels have also where they have no pvpanic. It is told to keep panics and nothing else, so that a record is one; the guest
 * finds it at its next boot, in /sys/fs/pstore. Whoever owns it calls it from one thread at a time. */

#include "state.h"
#include "util.h"

typedef struct Ramoops Ramoops;

/* `panicked` is called where a record begins. */
int ramoops_new(void (*panicked)(void *userdata), void *userdata, Ramoops **ret);
Ramoops *ramoops_free(Ramoops *p);
DEFINE_CLEANUP(Ramoops, ramoops_free)
/* The region's memory: accesses of any width. */
void ramoops_access(Ramoops *p, uint64_t offset, void *data, size_t size, bool is_write);
int ramoops_save(const Ramoops *p, StateWriter *w);
int ramoops_load(Ramoops *p, StateReader *r, char **ret_message);
