/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* What the files of the balloon device share (virtio 1.2 §5.5). balloon.c has configuration space and queues, balloon-pages.c what the guest
 * hands over, balloon-hinting.c, balloon-statistics.c and balloon-working-set.c what it is asked for, balloon-control.c the
 * interface io.vmmd.Balloon.
 *
 * Nothing here waits for the guest: who asked for something it must do is kept as a waiter, and answered when it has been done, or by
 * an error when its time is up. */

#include <json-c/json.h>
#include <linux/virtio_balloon.h>

#include "balloon-waiters.h"
#include "device.h"
#include "log.h"
#include "server.h"
#include "stream.h"

#define BALLOON_PAGE_SIZE (UINT64_C(1) << VIRTIO_BALLOON_PFN_SHIFT)
#define BALLOON_PAGES_MAX UINT32_MAX
/* crosvm's number; the specification has none. */
#define VIRTIO_BALLOON_F_WS_REPORTING 8
/* How long the guest may take for an answer. */
#define BALLOON_TIMEOUT_USEC (5 * USEC_PER_SEC)
/* Chains served in a row before the loop looks at something else. */
#define BALLOON_TURN_MAX 64
/* What the guest wrote counts as a chain more for each of these: every page it names may be a system call. */
#define BALLOON_TURN_BYTES KIB(4)

typedef struct Balloon Balloon;

/* In the order of their numbers. */
typedef enum BalloonQueue {
        BALLOON_INFLATE,
        BALLOON_DEFLATE,
        BALLOON_STATISTICS,
        BALLOON_FREE_PAGE,
        BALLOON_REPORTING,
        BALLOON_WORKING_SET_DATA,
        BALLOON_WORKING_SET_OPERATION,
        BALLOON_QUEUES,
} BalloonQueue;

#define BALLOON_BUCKETS_MAX 16

/* What outlives the process. All of it is ours: nobody else can write to it. */
typedef struct BalloonKept {
        uint32_t version; /* 0 where it was just made */
        uint32_t hint_id; /* the last one used */
        uint64_t memory_device, memory_inode; /* the guest memory that `actual` is about */
        uint32_t target, actual;              /* pages */
        uint64_t sequence;                    /* of the last event */
        uint64_t oom_deflations, inflated, deflated, refused, reported, hinted; /* the last two in bytes, the others but the first in pages */
        uint64_t statistics, working_sets;    /* answers of the guest */
        uint32_t n_intervals;                 /* how its working set is to be reported; 0 where nobody has said so */
        uint32_t intervals[BALLOON_BUCKETS_MAX - 1], refresh_threshold, report_threshold;
        uint32_t poison; /* as the driver said once, and does not say again */
        uint32_t padding;
} BalloonKept;
#define BALLOON_KEPT_VERSION 2

typedef struct BalloonStatistics {
        Waiters waiters;
        sd_event_source *timer;
        VirtqueueChain chain;   /* the guest's buffer, while it is held */
        bool held;
        bool asked;             /* the guest got its buffer back: the next one is the answer */
        uint64_t usec;          /* when the answer came; 0 where there is none */
        uint64_t known;         /* bits of known[], by tag */
        int64_t values[32];
        unsigned n_other;
        struct {
                uint16_t tag;
                int64_t value;
        } other[16];
} BalloonStatistics;

typedef struct BalloonWorkingSet {
        unsigned n_buckets; /* as offered in configuration space */
        Waiters waiters, configure_waiters;
        sd_event_source *timer, *configure_timer;
        VirtqueueChain chain;
        /* What still has to be written into a buffer of the guest. */
        bool unsent_request, unsent_configuration;
} BalloonWorkingSet;

typedef struct BalloonHinting {
        Waiters waiters;
        sd_event_source *timer;
        uint32_t id;       /* free_page_hint_cmd_id */
        bool active;       /* what comes now belongs to `id` */
        uint64_t until;    /* when the round has to be over */
        uint64_t freed;
} BalloonHinting;

/* For guest memory of huge pages: which of the small ones are in the balloon, since a huge one can go as a whole only. */
typedef struct BalloonHugeRegion {
        uint64_t page_size; /* 0 where the region has ordinary pages */
        uint64_t *in_balloon; /* a bit for each page; NULL where it is not kept account of */
        uint32_t *count;      /* bits set by huge page */
        uint64_t n_pages;
} BalloonHugeRegion;

struct Balloon {
        Device *device;
        BalloonKept *kept;
        BalloonKept own; /* where there is nobody to keep it */
        uint32_t seen_target; /* the target the guest was last shown */
        uint32_t written;     /* `actual` as the driver writes it, perhaps byte by byte */
        bool restored;        /* `actual` is about the memory that comes with the first start */
        bool by_letter;       /* the driver numbers its queues as §5.5.2 does */
        bool all_queues;      /* the driver's queues are all there */
        VirtqueueChain chain;
        BalloonHugeRegion huge[GUEST_MEMORY_REGIONS_MAX];
        LogRateLimit complaints;

        VarlinkStream *events;
        bool driver;                    /* as it was told last */
        sd_event_source *look, *pause;  /* whether it still is; until the next event about `actual` */
        uint32_t told_actual;
        Waiters target_waiters;

        BalloonStatistics statistics;
        BalloonWorkingSet working_set;
        BalloonHinting hinting;
};

/* balloon.c */
Virtqueue *balloon_queue(Balloon *b, BalloonQueue which);
/* Whether the driver is there and has agreed to that feature. */
bool balloon_has(Balloon *b, unsigned feature);
bool balloon_has_driver(Balloon *b);
/* Takes chains from a queue by `take`, which returns how much it wrote or a negative errno, and gives them back. The result is what
 * DeviceClass.process() returns. */
int balloon_drain(Balloon *b, Virtqueue *q, int (*take)(Balloon *b, VirtqueueChain *chain));
/* A timer that is off. */
int balloon_add_timer(Balloon *b, sd_event_source **ret, sd_event_time_handler_t handler);
void balloon_set_timer(sd_event_source *timer, uint64_t usec);

/* balloon-pages.c */
int balloon_inflate(Balloon *b, VirtqueueChain *chain);
int balloon_deflate(Balloon *b, VirtqueueChain *chain);
int balloon_report(Balloon *b, VirtqueueChain *chain);
/* Frees the pages that lie wholly within the chain's writable buffers; returns how many bytes these were. */
uint64_t balloon_release_buffers(Balloon *b, VirtqueueChain *chain);
/* Learns what pages the memory has, and whether it is another guest's. */
int balloon_look_at_memory(Balloon *b);
void balloon_pages_done(Balloon *b);

/* balloon-hinting.c */
int balloon_hinting_process(Balloon *b, Virtqueue *q);
void balloon_hinting_stop(Balloon *b);
int balloon_method_hint_free_pages(VarlinkCall *call, json_object *parameters, void *userdata);
int balloon_hinting_init(Balloon *b);
void balloon_hinting_done(Balloon *b);

/* balloon-statistics.c */
int balloon_statistics_process(Balloon *b, Virtqueue *q);
void balloon_statistics_stop(Balloon *b);
void balloon_statistics_forget(Balloon *b);
int balloon_method_get_statistics(VarlinkCall *call, json_object *parameters, void *userdata);
int balloon_statistics_init(Balloon *b);
void balloon_statistics_done(Balloon *b);

/* balloon-working-set.c */
int balloon_working_set_process_data(Balloon *b, Virtqueue *q);
int balloon_working_set_process_operation(Balloon *b, Virtqueue *q);
void balloon_working_set_forget(Balloon *b);
int balloon_method_get_working_set(VarlinkCall *call, json_object *parameters, void *userdata);
int balloon_method_configure_working_set(VarlinkCall *call, json_object *parameters, void *userdata);
int balloon_working_set_init(Balloon *b);
void balloon_working_set_done(Balloon *b);

/* balloon-control.c */
extern const VarlinkMethod balloon_methods[];
typedef enum BalloonEvent {
        BALLOON_EVENT_TARGET,
        BALLOON_EVENT_ACTUAL,
        BALLOON_EVENT_DEFLATED_ON_OOM,
        BALLOON_EVENT_DRIVER,
        BALLOON_EVENT_WORKING_SET,
        BALLOON_EVENTS,
} BalloonEvent;
/* BalloonState; NULL where out of memory. */
json_object *balloon_state(Balloon *b);
/* Tells the subscribers. `working_set` is NULL for all but that kind, and is taken over. */
void balloon_publish(Balloon *b, BalloonEvent event, json_object *working_set);
/* `actual` is another: whoever waits for the target is answered, subscribers are told, but not of each step of a long way. */
void balloon_actual_changed(Balloon *b);
/* A driver may have come or gone. */
void balloon_look_later(Balloon *b);
/* Adds BalloonState as member "balloon". */
int balloon_add_state(Balloon *b, json_object *into);
int balloon_error_cannot(VarlinkCall *call, const char *feature);
/* Answer all of them. */
void balloon_all_cannot(Waiters *waiters, const char *feature);
void balloon_all_timed_out(Waiters *waiters);
int balloon_control_init(Balloon *b);
void balloon_control_done(Balloon *b);
