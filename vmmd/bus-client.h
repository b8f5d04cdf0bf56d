/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* vmmd's side of the bus protocol (lib/bus-protocol.h): register accesses of vCPUs, answered by a helper process.
 *
 * The event loop's thread connects and disconnects; each vCPU thread makes accesses on the slot of its own. An access always comes back: answered by
 * the helper, answered by the helper that came after it, or, where there is none, with all ones as an empty bus answers.
 * A helper that does not answer for BUS_ACCESS_TIMEOUT_USEC counts as dead: its connection is shut down, and its successor waited for.
 *
 * Start-up:   bus_client_new(), bus_client_connect_path(), bus_client_wait()
 * Event loop: watch bus_client_fd() for EPOLLIN; call bus_client_process(). Where that fails: bus_client_disconnected() with the time for
 *             which vCPUs shall wait for a successor, then bus_client_connect*() again; or with 0, to give the device up. */

#include "bus-protocol.h"
#include "handover.h"

#define BUS_ACCESS_TIMEOUT_USEC (5 * USEC_PER_SEC)
/* How long a vCPU waits for a helper that is starting, or starting again. */
#define BUS_SUCCESSOR_TIMEOUT_USEC (120 * USEC_PER_SEC)

typedef struct BusClient BusClient;

/* `irq_fds` are eventfds, one for each interrupt line of the device (wired to KVM irqfds: the helper's writes are pulses, as
 * of an edge-triggered line). They stay the caller's and must live as long as the client. */
int bus_client_new(unsigned n_slots, const BusSpace *space, const int *irq_fds, size_t n_irq_fds, BusClient **ret);
/* No vCPU may be in an access. */
BusClient *bus_client_free(BusClient *c);
DEFINE_CLEANUP(BusClient, bus_client_free)

/* The connection, for the successor of this process: the helper does not notice. No vCPU is in an access. Taken over before anything is connected; the interrupt
 * lines are the caller's to hand over. */
int bus_client_hand_over(BusClient *c, uint32_t instance, Handover *h);
int bus_client_take_over(BusClient *c, uint32_t instance, Handover *h, char **ret_message);

/* Greets the helper at the other end of `fd` (a connected stream socket; taken over, also on error). Does not wait for the answer: that is
 * bus_client_process()'s. -EISCONN where there is a connection already. */
int bus_client_connect(BusClient *c, int fd);
int bus_client_connect_path(BusClient *c, const char *path);

/* The socket to watch, or -EBADF. */
int bus_client_fd(const BusClient *c);

/* The socket is readable. > 0: the helper has answered the greeting and serves accesses now; 0: nothing new; negative: the
 * connection is of no use any more (-ECONNRESET where the helper ended, -EPROTO where it broke the protocol or did not answer, or the error it named);
 * *ret_message says more. */
int bus_client_process(BusClient *c, char **ret_message);

/* Waits for the answer to the greeting, at most this long: 0, -ETIMEDOUT, or what bus_client_process() says. */
int bus_client_wait(BusClient *c, uint64_t timeout_usec, char **ret_message);

/* Closes the connection. Accesses under way and new ones wait until `grace_usec` from now for bus_client_process() to report a
 * new connection, and are made again there; after that they are answered with all ones. */
void bus_client_disconnected(BusClient *c, uint64_t grace_usec);

bool bus_client_is_connected(const BusClient *c);
/* Whether it was ever since there is this connection: a vCPU may have given up the helper behind it, which the event loop's thread has yet to see. For that thread. */
bool bus_client_is_served(const BusClient *c);

/* How many bytes of the space mean something to the helper; 0 before the first connection. */
uint64_t bus_client_n_registers(const BusClient *c);

/* One access by the vCPU that `slot` belongs to; blocks. `size` is 1, 2, 4 or 8; offset is relative to the space's base. 0; or with `data`
 * all ones for a read: -EIO where there is no helper, -EINVAL where the access is not one of this space. */
int bus_client_access(BusClient *c, unsigned slot, uint64_t offset, bool is_write, void *data, size_t size);

/* Puts the device back to its state at power-on; where there is no helper, the next one begins with that. No vCPU may be in an access. */
int bus_client_reset(BusClient *c);

/* What the helper keeps of its device in the shared memory, for a snapshot; no vCPU may be in an access. Setting it is for before the first connection: the helper takes it up
 * then, or starts afresh where it makes no sense to it. */
void bus_client_get_state(const BusClient *c, uint8_t ret[static BUS_STATE_SIZE]);
void bus_client_set_state(BusClient *c, const uint8_t state[static BUS_STATE_SIZE]);
