/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* One stream of events, many subscribers: each is a call with "more" that gets a reply per event. Publishing never waits and never
 * fails because of a subscriber. For one that is behind, at most `backlog` events are kept: an event that a later one of the same
 * kind and key supersedes is dropped first, then the oldest; how many it missed is in its next reply. One that reads nothing for an hour is disconnected.
 *
 * The stream adds two fields to each reply, which the method's interface text must have: "sequence" (one number for all
 * subscribers, grows by one with each event) and "missed". */

#include "server.h"

typedef struct VarlinkStream VarlinkStream;
typedef struct VarlinkSubscriber VarlinkSubscriber;

#define VARLINK_STREAM_BACKLOG_DEFAULT 64

/* `backlog` is in events. */
int varlink_stream_new(VarlinkStream **ret, size_t backlog);
/* Drops all subscribers; those whose stream was not closed before are told ECANCELED. */
VarlinkStream *varlink_stream_free(VarlinkStream *s);
DEFINE_CLEANUP(VarlinkStream, varlink_stream_free)

/* The subscriber is gone: its connection was closed, or the stream ended. Not called by varlink_stream_free(). */
typedef void (*VarlinkSubscriberGone)(VarlinkSubscriber *subscriber, void *userdata);

/* Makes the call a subscriber and sends it `first`, with the sequence number of the last event. `kinds` is a mask of 1 << kind. The call must have
 * "more". ret and gone may be NULL. The subscriber is valid until gone() returns. */
int varlink_stream_add(VarlinkStream *s, VarlinkCall *call, json_object *first, uint64_t kinds, VarlinkSubscriberGone gone, void *userdata,
        VarlinkSubscriber **ret);

/* Keeps the last `n` events of these kinds, of which all are then wanted, for subscribers that come back. Events of one subscriber alone are not kept. */
int varlink_stream_remember(VarlinkStream *s, size_t n, uint64_t kinds);
/* As varlink_stream_add(), for who had all until `after`: what came since follows `first`, whose "missed" says how many numbers are between `after` and what is
 * still known. `first` has the number that the rest goes on from. */
int varlink_stream_add_after(VarlinkStream *s, VarlinkCall *call, json_object *first, uint64_t kinds, uint64_t after, VarlinkSubscriberGone gone,
        void *userdata, VarlinkSubscriber **ret);
/* What is kept, oldest first, as it was told; borrowed. NULL behind the last. */
json_object *varlink_stream_remembered(VarlinkStream *s, size_t i);
/* The number of the last that is not kept any more. */
uint64_t varlink_stream_forgotten(VarlinkStream *s);
/* Another process's stream goes on here: nothing until `forgotten` is known, then come these, one after the other and in their order, then its last number. */
void varlink_stream_forget(VarlinkStream *s, uint64_t forgotten);
int varlink_stream_recall(VarlinkStream *s, unsigned kind, json_object *event);

/* To all who want `kind` (0 to 63). A key that is not NULL names the state that the event tells: a later event of the same kind and key supersedes it.
 * `event` stays the caller's and must not be changed afterwards. */
int varlink_stream_publish(VarlinkStream *s, unsigned kind, const char *key, json_object *event);
/* To this one only, if it wants that kind. Takes a sequence number, too. */
int varlink_subscriber_publish(VarlinkSubscriber *subscriber, unsigned kind, const char *key, json_object *event);

/* Ends all subscriptions with this as their last reply. */
int varlink_stream_close(VarlinkStream *s, json_object *last);

size_t varlink_stream_n_subscribers(VarlinkStream *s);
/* The number of the last event; what a successor of this process continues from. */
uint64_t varlink_stream_sequence(VarlinkStream *s);
void varlink_stream_set_sequence(VarlinkStream *s, uint64_t sequence);
/* Whether anybody wants that kind, so that making the event is worth it. */
bool varlink_stream_wants(VarlinkStream *s, unsigned kind);
