/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* A vhost-user front-end and a virtio driver in one, for tests: it starts the real helper on a socket pair, shares a memfd as guest
 * memory, and lays rings and buffers out as honestly or dishonestly as a test wants. Everything here asserts on failure. */

#include <linux/virtio_ring.h>

#include "util.h"
#include "vhost-user.h"
#include "virtqueue.h"

#define FE_RAM_SIZE MIB(16)
/* Guest-physical addresses begin here, user addresses there: nothing works by accident. */
#define FE_GUEST_BASE UINT64_C(0x100000000)
#define FE_USER_BASE UINT64_C(0x7f0000000000)
#define FE_QUEUES_MAX 16
#define FE_BUFFERS MIB(4) /* offset in RAM where buffers begin */

/* How long anything is waited for, in milliseconds: a ceiling, to be raised by who runs where processors are emulated. */
extern int fe_patience;

typedef struct FrontEndQueue {
        uint16_t num;
        struct vring_desc *desc;
        struct vring_avail *avail;
        struct vring_used *used;
        uint16_t avail_idx, used_idx;
        int kick, call, err;
} FrontEndQueue;

typedef struct FrontEnd {
        pid_t pid;
        int fd;
        int ram_fd;
        uint8_t *ram;
        uint64_t features, protocol_features;
        int backend_fd;
        FrontEndQueue queues[FE_QUEUES_MAX];
} FrontEnd;

/* Starts "$VMM_DEVICE arguments… --fd=N". */
void fe_spawn(FrontEnd *f, const char *const *arguments);
/* The same, with a descriptor that the service manager has kept under `name`. */
void fe_spawn_passing(FrontEnd *f, const char *const *arguments, const char *name, int passed);
/* Several of them: their names with colons between. */
void fe_spawn_passing_many(FrontEnd *f, const char *const *arguments, const char *names, const int *passed, size_t n_passed);
/* Starts it in a way that has to fail; returns its exit status and the end of its standard error. */
int fe_spawn_failing(const char *const *arguments, char *text, size_t size);
/* Instead: somebody's back-end that listens at `path`. `pid` is its process, which stays his. */
void fe_connect(FrontEnd *f, const char *path, pid_t pid);
/* Hangs up and expects a clean end. */
void fe_end(FrontEnd *f);
/* Hangs up on a back-end that is not ours. */
void fe_disconnect(FrontEnd *f);
/* Whether the helper is still there. */
bool fe_alive(FrontEnd *f);

void fe_send(FrontEnd *f, uint32_t request, const void *payload, uint32_t size, const int *fds, size_t n_fds);
uint64_t fe_get_u64(FrontEnd *f, uint32_t request);
void fe_set_u64(FrontEnd *f, uint32_t request, uint64_t value);
void fe_set_state(FrontEnd *f, uint32_t request, uint32_t index, uint32_t num);
/* With NEED_REPLY: 0 where the helper accepted it. */
uint64_t fe_acknowledged(FrontEnd *f, uint32_t request, const void *payload, uint32_t size, const int *fds, size_t n_fds);
/* Configuration space. Writing returns 0 where the helper accepted it. */
void fe_get_config(FrontEnd *f, void *ret, uint32_t size);
uint64_t fe_set_config(FrontEnd *f, uint32_t offset, const void *data, uint32_t size);
/* The helper says that its configuration space has changed. */
bool fe_config_changed(FrontEnd *f, int timeout_ms);
/* Waits until the helper closes the connection. */
void fe_expect_hang_up(FrontEnd *f);

/* Negotiates: `without` are virtio features not to take. */
void fe_negotiate(FrontEnd *f, uint64_t without);
/* The same with a back-end that offers less or more: takes of its protocol's features only `protocol`. */
void fe_negotiate_some(FrontEnd *f, uint64_t without, uint64_t protocol);
/* Has the back-end make an in-flight log and gives it that. */
void fe_share_inflight(FrontEnd *f, uint16_t n_queues, uint16_t num);
void fe_set_mem_table(FrontEnd *f);
/* Lays an empty queue out in memory. */
void fe_lay_out_queue(FrontEnd *f, unsigned index, uint16_t num);
/* Lays it out and enables it. */
void fe_start_queue(FrontEnd *f, unsigned index, uint16_t num);
/* Only the messages, for a queue that is laid out already; `base` is the next available entry. */
void fe_send_queue(FrontEnd *f, unsigned index, uint16_t base);
uint32_t fe_stop_queue(FrontEnd *f, unsigned index);
/* All of the above with queues 0 … n-1. */
void fe_start(FrontEnd *f, const char *const *arguments, unsigned n_queues, uint16_t num);

/* One Varlink call on the helper's control socket, with a descriptor where `fd` is one; the reply's text is valid until the next call. */
const char *fe_call(const char *path, const char *text, int fd);

/* The driver. */
#define FE_ADDRESS(offset) (FE_GUEST_BASE + (offset))
void fe_desc(FrontEnd *f, unsigned queue, uint16_t i, uint64_t address, uint32_t length, uint16_t flags, uint16_t next);
void fe_offer(FrontEnd *f, unsigned queue, uint16_t head); /* without kick */
void fe_kick(FrontEnd *f, unsigned queue);
/* Waits for the next used element; false after `timeout_ms`. */
bool fe_used(FrontEnd *f, unsigned queue, int timeout_ms, struct vring_used_elem *ret);
/* The same, where it has to come. */
struct vring_used_elem fe_wait(FrontEnd *f, unsigned queue);
/* Takes the eventfd's count, waiting for at most timeout_ms. */
uint64_t fe_eventfd(int fd, int timeout_ms);
/* The helper reports that the guest broke the rules of its device: error eventfd and NEEDS_RESET. */
void fe_expect_broken(FrontEnd *f, unsigned queue);
