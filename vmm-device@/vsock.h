/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* Inside the vsock device: what vsock.c, vsock-connection.c, vsock-event.c, vsock-socket.c, vsock-message.c, vsock-receive.c, vsock-transmit.c and vsock-notify.c share.
 *
 * A connection has two ends: two ports that the guest knows, and a socket of the host's. Bytes go straight between the guest's buffers and the
 * socket. Only what a socket cannot take at the moment is kept here, in a backlog as large as the guest was told it may be. */

#include <json-c/json.h>

#include "device.h"
#include "log.h"
#include "stream.h"
#include "vsock-notify-port.h"
#include "vsock-packet.h"

enum { VSOCK_QUEUE_RECEIVE = 0, VSOCK_QUEUE_TRANSMIT = 1, VSOCK_QUEUE_EVENT = 2, VSOCK_QUEUES = 3 };

#define VSOCK_CID_HOST 2
/* Connections that the guest has asked for, and that the host has: neither can take all of what the other needs. */
#define VSOCK_GUEST_CONNECTIONS_MAX 768U
#define VSOCK_HOST_CONNECTIONS_MAX 256U
/* What the guest may have under way to a socket that takes nothing: much for the first ones, which makes bulk transfers fast, and little
 * for the rest, so that all together are no more than 62 MiB. Messages are no longer than their connection's window: a sender that has more is told so by
 * its own kernel. AF_UNIX makes room for them in one piece, which is why theirs is smaller. */
#define VSOCK_WINDOW_LARGE ((uint32_t) KIB(512))
#define VSOCK_WINDOW_SMALL ((uint32_t) KIB(32))
#define VSOCK_LARGE_WINDOWS_MAX 64U
#define VSOCK_WINDOW_MESSAGES ((uint32_t) KIB(256))
/* The longest message of the host's; a Linux guest has room for so much, unless its program says otherwise. */
#define VSOCK_MESSAGE_MAX ((uint32_t) KIB(256))
/* Refusals that wait for a buffer of the guest's. At FULL nothing is taken from the guest and nobody accepted any more; each of the connections
 * that are there may still end. */
#define VSOCK_RESETS_FULL 256U
#define VSOCK_RESETS_MAX (VSOCK_RESETS_FULL + VSOCK_GUEST_CONNECTIONS_MAX + VSOCK_HOST_CONNECTIONS_MAX)
/* The guest's buffers that one read from a socket can fill; a Linux guest's hold nearly 4 KiB each. */
#define VSOCK_HELD_MAX 32U
#define VSOCK_IOV_MAX 256U
/* How long a client of the host's may take to say what it wants, the guest to answer, and the guest to acknowledge an end. */
#define VSOCK_TIMEOUT_USEC (10 * USEC_PER_SEC)
/* How long after the others the queue of events may come into service. There are front-ends that keep it to themselves: QEMU. */
#define VSOCK_EVENT_QUEUE_USEC USEC_PER_SEC

typedef enum VsockState {
        VSOCK_GREETING,    /* a client of the host's has not said yet to which port */
        VSOCK_REQUESTING,  /* the guest has not answered yet */
        VSOCK_ESTABLISHED,
        VSOCK_LEAVING,     /* the host's end is gone, the guest has to acknowledge it */
        VSOCK_DRAINING,    /* the guest's end is gone, the socket is still to take what it sent */
} VsockState;

/* What is to be said to the guest, the first one first. */
enum {
        VSOCK_SAY_REQUEST = 1 << 0,
        VSOCK_SAY_RESPONSE = 1 << 1,
        VSOCK_SAY_CREDIT = 1 << 2,
        VSOCK_ASK_CREDIT = 1 << 3,
        VSOCK_SAY_SHUTDOWN = 1 << 4,
};

typedef struct Vsock Vsock;
typedef struct VsockConnection VsockConnection;

struct VsockConnection {
        Vsock *vsock;
        VsockState state;
        uint32_t guest_port, host_port;
        uint16_t type;
        bool by_guest;     /* who asked for it */
        bool window_large;
        int fd;            /* negative: what our own port of notifications hears, or LEAVING */
        sd_event_source *source;
        VsockConnection *next, *previous;           /* all of them */
        VsockConnection *hash_next;
        VsockConnection *work_next, *work_previous; /* those with something for the guest */
        bool working, hashed;

        unsigned say;
        bool readable;     /* the socket may have something */
        bool host_hung_up; /* both ways */
        bool host_ending;  /* no more comes into the socket */
        bool host_ended;   /* no more comes from the socket */
        bool host_deaf;    /* nobody reads the socket */
        uint32_t guest_shutdown, our_shutdown; /* VIRTIO_VSOCK_SHUTDOWN_* that were said */
        uint64_t deadline_usec; /* 0: none */

        /* §5.10.6.3: counters of 32 bits that wrap. */
        uint32_t buf_alloc, received, forwarded, told_forwarded; /* of what the guest sends */
        uint32_t peer_buf_alloc, peer_forwarded, sent;           /* of what it is sent */
        bool asked_credit;   /* when it had as much as */
        uint32_t asked_at;   /* this, and it has not had more since */
        unsigned window;   /* buffers for the next read */

        /* A ring of buf_alloc bytes, made when it is needed first. */
        uint8_t *backlog;
        uint32_t backlog_at, backlog_used;
        /* Of messages: what of the backlog belongs to one whose end has not come; the length of the first one that has, where known; and that of the host's
         * next, which waits until the guest has room for it. */
        uint32_t partial, first_message, next_message;

        struct VsockNotice *notice; /* a connection to the port of notifications */
};

/* A refusal: where to, and of what. */
typedef struct VsockReset {
        uint64_t host_cid;
        uint32_t guest_port, host_port;
        uint16_t type;
} VsockReset;

#define VSOCK_TEXT_MAX 256
/* What the guest's service manager said last, and what the guest was told. Outlives this process. */
typedef struct VsockGuest {
        uint32_t version;
        bool ready;
        char status[VSOCK_TEXT_MAX], hostname[VSOCK_TEXT_MAX], machine_id[VSOCK_TEXT_MAX], unit[VSOCK_TEXT_MAX];
        bool reset_told;        /* that its connections are gone, and it has not answered yet: it does so by the first */
        uint16_t reset_offered; /* buffer beyond so many in its event queue */
} VsockGuest;
#define VSOCK_GUEST_VERSION 2

/* The message of the host's that is on its way into the guest's buffers, whose room was reserved. */
typedef struct VsockMessage {
        VsockConnection *connection; /* NULL: there is none */
        uint8_t *data;
        uint32_t length, at;
} VsockMessage;

#define VSOCK_HASH_SIZE 1024U

/* A socket for clients. */
typedef struct VsockListener {
        int fd;
        uint16_t type;
        sd_event_source *source;
} VsockListener;

struct Vsock {
        Device *device;
        uint64_t cid;
        bool notify; /* our port of notifications is there */
        bool messages; /* the driver knows connections of messages, too */

        VsockListener listeners[2]; /* for streams and messages, in whichever order */
        unsigned n_listeners;
        char *path; /* of the socket for clients; "_PORT" behind it is where the guest's connections go */
        sd_event_source *again, *timer;
        uint64_t timer_usec; /* when it goes off; 0: it does not */

        VsockConnection *connections, *hash[VSOCK_HASH_SIZE];
        VsockConnection *work_first, *work_last;
        unsigned n_guest, n_host, n_large;
        uint32_t last_port;

        VsockReset resets[VSOCK_RESETS_MAX];
        unsigned first_reset, n_resets;

        VsockMessage message;
        VirtqueueChain held[VSOCK_HELD_MAX]; /* buffers of the guest's, taken and not used yet */
        unsigned first_held, n_held;
        VirtqueueChain chain, event_chain;
        bool met_guest;          /* in the life of this process */
        bool announce_reset;     /* the guest has to be told that its connections are gone, */
        bool settling;           /* and until it has reset them all, no new one is made; */
        uint64_t settling_until_usec; /* but not for ever */
        bool transmit_waits;     /* until refusals have been sent */

        VsockGuest *guest;
        VarlinkStream *events;
        sd_event_source *publish_timer;
        bool publish_wanted;

        LogRateLimit complaints;
        uint64_t n_by_guest, n_by_host, n_refused, n_violations;
        uint64_t bytes_received, bytes_sent, packets_received, packets_sent, n_backlogged, n_notices;
};

/* vsock-connection.c */
/* NULL where there are too many already, or out of memory. Owns the fd, also where it fails. */
VsockConnection *vsock_connection_new(Vsock *v, bool by_guest, uint16_t type, int fd);
VsockConnection *vsock_connection_free(VsockConnection *c);
/* Gives it its ports: packets find it from then on. */
void vsock_connection_name(VsockConnection *c, uint32_t guest_port, uint32_t host_port);
VsockConnection *vsock_connection_find(Vsock *v, uint32_t guest_port, uint32_t host_port);
/* Ends it at once, on both sides. */
void vsock_connection_reset(VsockConnection *c);
/* The guest has ended it, or knows nothing of it: its backlog goes out, and then the socket ends. */
void vsock_connection_drain(VsockConnection *c);
/* Says to the guest that less is possible from now on; `flags` are added to what was said before. */
void vsock_connection_shut_down(VsockConnection *c, uint32_t flags);
void vsock_connection_work(VsockConnection *c);
void vsock_connection_rest(VsockConnection *c);
void vsock_connection_set_deadline(VsockConnection *c, uint64_t usec);
/* Has the timer go off at that time at the latest. */
void vsock_arm(Vsock *v, uint64_t usec);
/* What the guest has said of its own buffer. */
void vsock_connection_take_credit(VsockConnection *c, uint32_t buf_alloc, uint32_t fwd_cnt);
/* How much it may be sent. */
uint32_t vsock_connection_credit(const VsockConnection *c);
/* No more comes from the socket, and the guest has had what came. */
void vsock_connection_host_ended(VsockConnection *c);
/* So many bytes have left our hands: the guest is told in time. */
void vsock_connection_forwarded(VsockConnection *c, uint32_t n);
/* All that the guest knows of. */
void vsock_drop_all(Vsock *v);
/* The guest is told that there is no such connection. */
void vsock_refuse(Vsock *v, uint64_t host_cid, uint32_t guest_port, uint32_t host_port, uint16_t type);
int vsock_connections_open(Vsock *v);
void vsock_connections_close(Vsock *v);

/* vsock-socket.c */
int vsock_listen(Device *d, int fd);
void vsock_sockets_close(Vsock *v);
/* Whether somebody may be accepted: to be looked at when one of the reasons not to is gone. */
void vsock_listen_update(Vsock *v);
/* The guest wants to be connected to a socket of the host's. Returns a connected socket or a negative errno. */
int vsock_socket_connect(Vsock *v, uint32_t port, uint16_t type);
int vsock_socket_watch(VsockConnection *c);
/* The guest took a client's connection. */
void vsock_socket_accepted(VsockConnection *c);
/* Hands the guest's bytes to the socket; what it does not take is kept. False where the connection was reset for it. */
bool vsock_socket_write(VsockConnection *c, IovCursor *payload);
/* The same with what was kept. False where the connection is gone. */
bool vsock_socket_flush(VsockConnection *c);
/* Keeps it. False where the connection was reset for it. */
bool vsock_socket_keep(VsockConnection *c, IovCursor *payload);
/* Hands all of it to the socket, if that takes it at once. False where not, and then nothing was taken. */
bool vsock_socket_write_whole(VsockConnection *c, IovCursor *payload);
/* The guest sends no more / takes no more. */
void vsock_socket_shut_down(VsockConnection *c);

/* vsock-message.c */
uint32_t vsock_message_window(int fd, uint32_t wanted);
/* As vsock_socket_write(); `end`: the message ends there. */
bool vsock_message_write(VsockConnection *c, IovCursor *payload, bool end);
/* The length of the first whole message of the backlog, 0 where there is none; and it was sent. */
uint32_t vsock_message_first(VsockConnection *c);
void vsock_message_sent(VsockConnection *c);
/* Whether to look at the host's next one; and doing so: it is the device's message then, unless it has to wait. There must be no other. */
bool vsock_message_may_be_taken(const VsockConnection *c);
void vsock_message_take(VsockConnection *c);
/* The guest does not want the rest. */
void vsock_message_drop(VsockConnection *c);

/* vsock-receive.c: to the guest */
/* Sends what there is to say. Says by device_broken() what is wrong with the guest's buffers. */
void vsock_to_guest(Vsock *v);
void vsock_receive_stop(Vsock *v);

/* vsock-event.c */
/* The queues are there; `predecessor`: another process has served them. */
void vsock_event_start(Vsock *v, bool predecessor);
/* The guest knows of no connection. */
void vsock_event_forget(Vsock *v);
/* Returns when to look again, UINT64_MAX for not at all. */
uint64_t vsock_event_expire(Vsock *v, uint64_t now);
int vsock_event_process(Vsock *v);

/* vsock-transmit.c: from the guest */
int vsock_from_guest(Vsock *v);
void vsock_take_packet(Vsock *v, VsockPacket *packet);

/* vsock-notify.c */
int vsock_notify_open(Vsock *v);
void vsock_notify_close(Vsock *v);
/* A connection to the port of notifications. */
int vsock_notice_new(VsockConnection *c);
/* `end`: a message ends there, and with it a line. */
void vsock_notice_take(VsockConnection *c, IovCursor *payload, bool end);
void vsock_notice_end(VsockConnection *c);
/* The guest begins anew. */
void vsock_notify_reset(Vsock *v);
/* What the guest has said, and was told. */
int vsock_notify_save(const Vsock *v, StateWriter *w);
int vsock_notify_load(Vsock *v, StateReader *r, char **ret_message);
extern const struct VarlinkMethod vsock_methods[];
