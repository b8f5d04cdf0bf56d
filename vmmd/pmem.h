/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* Persistent memory (virtio 1.2 §5.19): files of the host that are guest-physical memory above the RAM. The guest reads and writes them without anybody's
 * help; only its flushes go to the device's helper. Here are their mappings and where they lie. */

#include <linux/virtio_pmem.h>

#include "guest-memory.h"
#include "kvm.h"
#include "machine.h"

typedef struct Pmem Pmem;

/* Where `size` bytes of persistent memory can lie, behind `end` of what is there already, and above 4 GiB: on a boundary of 1 GiB, so that nothing of a guest's larger pages
 * is shared with RAM. -ERANGE where the processor has no such addresses. */
int pmem_place(uint64_t end, uint64_t size, uint64_t limit, uint64_t *ret);

/* Maps the file of every pmem device of the definition, and shows it to the guest. *ret is NULL where there is none. */
int pmem_new(Kvm *kvm, const MachineDefinition *definition, const GuestMemory *ram, const MachineFiles *files, Pmem **ret,
        char **ret_message);
/* After the virtual machine is gone. */
Pmem *pmem_free(Pmem *p);
DEFINE_CLEANUP(Pmem, pmem_free)

/* The configuration space of that device; false where it is no pmem device. */
bool pmem_config(const Pmem *p, const char *device, struct virtio_pmem_config *ret);
/* What devices are to see as the guest's memory: the RAM, and the persistent memory that can be written to, since a guest may well have a disk read into
 * it. NULL where that is the RAM alone. */
const GuestMemory *pmem_device_memory(const Pmem *p);
