/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* What the parts of a plugin's host share: plugin.c (connections, life), plugin-requests.c (what main sockets ask for), plugin-objects.c (what
 * has a number), plugin-vcpu.c (the vCPUs' channels), plugin-ring.c (their shared memory). */

#include "plugin-kvm.h"
#include "plugin-ranges.h"
#include "plugin.h"
#include "ring.h"
#include <plugin.pb-c.h>

#define PLUGIN_CONNECTIONS_MAX 64
#define PLUGIN_OBJECTS_MAX 8192
/* Memory of a machine, whose tables take KVM a thousandth of a percent, and that of which KVM keeps a log: two bits a page. */
#define PLUGIN_MEMORY_MAX (GIB(1024) * 16)
#define PLUGIN_LOGGED_MAX GIB(1024)
/* In both directions; a dirty log of 8 GiB would be a little larger. */
#define PLUGIN_MESSAGE_MAX ((size_t) 0x40000)
#define PLUGIN_FDS_MAX 253

typedef struct PluginConnection {
        Plugin *plugin;
        int fd;
        sd_event_source *source;
} PluginConnection;

typedef enum PluginObjectType { PLUGIN_OBJECT_IO_EVENT, PLUGIN_OBJECT_MEMORY, PLUGIN_OBJECT_IRQ_EVENT } PluginObjectType;

typedef struct PluginObject {
        uint32_t id;
        PluginObjectType type;
        int fd; /* of an event */
        union {
                struct {
                        KvmIoSpace space;
                        uint64_t address, datamatch;
                        unsigned length;
                } io_event;
                struct {
                        uint32_t slot;
                        uint64_t start, length;
                        void *host;
                        bool dirty_log;
                } memory;
                struct {
                        uint32_t gsi;
                        int resample_fd;
                } irq_event;
        };
} PluginObject;

typedef struct PluginVcpu {
        Plugin *plugin;
        int read_fd, write_fd;   /* ours */
        int their_write, their_read; /* the plugin's, until it has them */
        Ring ring;               /* in the place of the pipes, where the plugin has asked for it */
        bool has_ring;
        bool waited;             /* it took the first event, Init */
        pthread_mutex_t lock;
        bool pause_asked;        /* under the lock */
        uint64_t pause_user;
        uint8_t *buffer;         /* PLUGIN_MESSAGE_MAX + a length */
} PluginVcpu;

struct Plugin {
        sd_event *event;
        Kvm *kvm;
        VcpuSet *vcpus;
        VcpuSetHandlers vcpu_handlers; /* the caller's */
        PluginHandlers handlers;
        PluginNetwork network; /* tap_fd is negative where there is none */
        int shutdown_fd;
        PluginConnection *connections[PLUGIN_CONNECTIONS_MAX];
        size_t n_connections;
        PluginObject *objects;
        size_t n_objects;
        unsigned n_slots;
        uint8_t *slots; /* which memory slots are in use */
        PluginRanges ranges;
        PluginVcpu *channels; /* one a vCPU */
        unsigned n_vcpus;
        bool vcpus_taken; /* the plugin has its ends of the pipes */
        RingMemory *rings; /* one a vCPU, or NULL */
        bool started, has_vcpus, ended;
        int dead_read, dead_write; /* what pipes are replaced with to end all waiting for the plugin */
        pthread_mutex_t lock;
        pthread_cond_t changed;
        unsigned n_prepared; /* vCPUs that the plugin has set up */
        _Atomic bool aborted;
        char *channel_error; /* under the lock: why a vCPU's channel is over */
        bool channel_left;   /* and whether that is because the plugin hung up */
        int wake_fd; /* eventfd: look at channel_error */
        sd_event_source *wake_source;
        uint8_t *buffer; /* of the loop's thread */
};

/* An answer's descriptors; borrowed, but for those marked to be closed once they are sent. */
typedef struct PluginReplyFds {
        int fds[PLUGIN_FDS_MAX];
        bool close[PLUGIN_FDS_MAX];
        size_t n;
} PluginReplyFds;

/* Ends the machine, with a reason. */
void plugin_end(Plugin *plugin, const char *format, ...) _printf_(2, 3);
/* The same where the plugin hung up: it may have ended as it should. */
void plugin_leave(Plugin *plugin, const char *reason);

/* plugin-requests.c: does what the request says. The return value becomes the response's error; `fd`, or -1, came with the request and stays the
 * caller's. What the response points to lies in `response`'s own scratch. */
typedef struct PluginResponse {
        MainResponse message;
        PluginReplyFds fds;
        union {
                MainResponse__Empty empty;
                MainResponse__CheckExtension check_extension;
                MainResponse__Cpuid cpuid;
                MainResponse__MsrList msr_list;
                MainResponse__GetNetConfig net_config;
                MainResponse__GetState state;
                MainResponse__MemoryDirtyLog dirty_log;
        };
        CpuidEntry *cpuid_entries, **cpuid_pointers;
        uint32_t *msrs;
        uint8_t state_bytes[PLUGIN_STATE_MAX] __attribute__((aligned(8)));
        uint64_t *bitmap;
        uint8_t mac[6];
} PluginResponse;
int plugin_handle_request(Plugin *plugin, const MainRequest *request, int fd, PluginResponse *response);
void plugin_response_done(PluginResponse *response);
/* Entries of a CPUID list as the protocol has them. The caller frees both arrays. */
int plugin_cpuid_to_wire(const PluginCpuid *from, size_t n, CpuidEntry **ret_entries, CpuidEntry ***ret_pointers);

/* plugin-objects.c. The descriptors of a new object are added to `fds`. */
int plugin_object_create(Plugin *plugin, const MainRequest__Create *create, int fd, PluginReplyFds *fds);
int plugin_object_destroy(Plugin *plugin, uint32_t id);
int plugin_object_dirty_log(Plugin *plugin, uint32_t id, uint64_t **ret, size_t *ret_size);
void plugin_objects_done(Plugin *plugin);

/* plugin-ring.c: the vCPUs' channels are rings from now on. Returns their memory's descriptor, which is the caller's. */
int plugin_rings_create(Plugin *plugin, const MainRequest__GetRings *get);
void plugin_rings_done(Plugin *plugin);

/* plugin-vcpu.c */
int plugin_channel_init(PluginVcpu *v, Plugin *plugin);
void plugin_channel_done(PluginVcpu *v);
/* Handlers of VcpuSet, with the plugin as userdata; see vcpu.h. */
void plugin_on_vcpu_event(Vcpu *vcpu, VcpuEvent event, void *userdata);
void plugin_on_vcpus_paused(void *userdata);
bool plugin_vcpu_prepare(Vcpu *vcpu, void *userdata);
bool plugin_vcpu_exited(Vcpu *vcpu, void *userdata);
void plugin_vcpu_interrupted(Vcpu *vcpu, void *userdata);
