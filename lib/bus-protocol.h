/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* The synchronous bus protocol: register accesses of a guest, answered by another process.
 *
 * A connection is an AF_UNIX stream socket. The client (vmmd) opens it with one BusHello, which carries a sealed memfd and one eventfd
 * for each interrupt line; the server (a helper) answers with one BusReply. After that the socket is silent: its end of
 * file means that the other side is gone.
 *
 * The memfd holds a BusMemory: one slot for each vCPU, and a page in which the server may keep what it needs to go on
 * after a restart (BUS_STATE_SIZE). An access is:
 *
 *     client: fills its slot, sets state to REQUEST, its bit in `pending`, adds 1 to `doorbell`, wakes the server if `sleeping` says so
 *     server: takes the bits of `pending`, copies the slot, does the access, writes `answer`, sets state to DONE
 *     client: spins for a bounded time, then sets state to SLEEPING and waits on it (futex); a server that finds SLEEPING wakes it
 *
 * The state word carries the access's sequence number and is only ever moved on by compare-and-exchange against it, so a late answer to an
 * abandoned access is never taken for the answer to the next one.
 *
 * Each side takes the other for hostile: what is read from the memory is read once, checked, and bounded; the memory cannot
 * shrink (seals); nobody waits without a deadline or a way to be woken by its own process. An access whose server died before
 * answering is made again with the next server: accesses are "at least once". */

#include "spin.h"
#include "util.h"

#define BUS_MAGIC UINT32_C(0x53554256) /* "VBUS" */
#define BUS_VERSION 1

#define BUS_SLOTS_MAX 1024
#define BUS_IRQS_MAX 16
#define BUS_STATE_SIZE 4096
#define BUS_TEXT_MAX 240

typedef enum BusSpaceKind {
        BUS_SPACE_PIO = 0,
        BUS_SPACE_MMIO = 1,
        BUS_SPACE_PCI_CONFIG = 2,
        _BUS_SPACE_MAX,
} BusSpaceKind;

/* The registers that the client forwards: `length` bytes at `base` of the guest's address space. Offsets in slots are relative to `base`. */
typedef struct BusSpace {
        BusSpaceKind kind;
        uint64_t base;
        uint64_t length;
} BusSpace;

/* First message, client to server, with the memfd and then n_irqs eventfds as SCM_RIGHTS. Little-endian, as all of this. */
typedef struct BusHello {
        uint32_t magic;
        uint16_t version;
        uint16_t size; /* of this structure: more may follow in later versions */
        uint32_t n_slots;
        uint32_t n_irqs;
        uint32_t space_kind;
        uint32_t reserved;
        uint64_t space_base;
        uint64_t space_length;
} BusHello;

/* The answer. `error` is 0 or a positive errno, and then `text` says what was wrong (NUL-terminated). */
typedef struct BusReply {
        uint32_t magic;
        uint16_t version; /* the newest that the server speaks */
        uint16_t size;
        uint32_t error;
        uint32_t n_registers; /* bytes of the space that mean something to the server */
        char text[BUS_TEXT_MAX];
} BusReply;

typedef enum BusOperation {
        BUS_OPERATION_READ = 0,
        BUS_OPERATION_WRITE = 1,
        BUS_OPERATION_RESET = 2, /* back to the state at power-on; offset, size and value mean nothing */
} BusOperation;

/* The low two bits of a slot's state; the rest is the access's sequence number. */
typedef enum BusSlotState {
        BUS_SLOT_IDLE = 0,
        BUS_SLOT_REQUEST = 1,
        BUS_SLOT_SLEEPING = 2, /* a request whose client waits on the state word */
        BUS_SLOT_DONE = 3,
} BusSlotState;

#define BUS_SLOT_STATE(word) ((BusSlotState) ((word) &3u))
#define BUS_SLOT_SEQUENCE(word) ((word) >> 2)
#define BUS_SLOT_WORD(sequence, state) (((uint32_t) (sequence) << 2) | (uint32_t) (state))

/* One cache line a vCPU. The client writes all but `answer`; the server writes `answer` and moves `state` to DONE. */
typedef struct BusSlot {
        uint32_t state;
        uint8_t operation;
        uint8_t size;
        uint16_t reserved;
        uint64_t offset;
        uint64_t value;
        uint64_t answer;
        uint8_t padding[32];
} BusSlot;

typedef struct BusMemory {
        uint32_t doorbell; /* the server's futex word: counts requests */
        uint32_t sleeping; /* nonzero: the server sleeps on the doorbell */
        uint64_t pending[BUS_SLOTS_MAX / 64];
        uint8_t padding[64 - 8];
        uint8_t state[BUS_STATE_SIZE]; /* the server's; zero in a memory that no server has seen yet */
        BusSlot slots[];
} BusMemory;

_Static_assert(sizeof(BusHello) == 40, "wire format");
_Static_assert(sizeof(BusReply) == 16 + BUS_TEXT_MAX, "wire format");
_Static_assert(sizeof(BusSlot) == 64, "one cache line");
_Static_assert(offsetof(BusMemory, state) % 64 == 0 && offsetof(BusMemory, slots) % 64 == 0, "cache lines");

/* Bytes of the memory for this many slots. */
size_t bus_memory_size(unsigned n_slots);

/* Creates the memory, sealed against shrinking, growing and more seals. Returns the fd or a negative errno. */
int bus_memory_create(unsigned n_slots);

/* Maps it. Refuses a file that is not a sealed memfd or too short (-EPERM, -ERANGE): reading it could kill us (SIGBUS). `fd` stays the caller's. */
int bus_memory_map(int fd, unsigned n_slots, BusMemory **ret);
BusMemory *bus_memory_unmap(BusMemory *memory, unsigned n_slots);

/* Checks what a server was sent; the text in *ret_message is for the reply. -EBADMSG, -EPROTONOSUPPORT or -E2BIG. */
int bus_hello_check(const BusHello *hello, size_t size, size_t n_fds, char **ret_message);
/* Checks what a client was answered: -EBADMSG for a broken reply, or the error that the server named. */
int bus_reply_check(const BusReply *reply, size_t size, char **ret_message);
/* Fills in a reply; `error` is a negative errno or 0, `text` may be NULL. */
void bus_reply_init(BusReply *reply, int error, uint32_t n_registers, const char *text);

bool bus_access_size_is_valid(uint64_t size);
/* All ones in `size` bytes: what a bus without a device answers. */
uint64_t bus_access_mask(uint64_t size);
