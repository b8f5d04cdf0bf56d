/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Rings in the place of a plugin's pipes. Their memory is made and sealed here, so that no plugin can make it shrink below this process. */

#include "plugin-internal.h"

#define RINGS_VERSION 1

int plugin_rings_create(Plugin *plugin, const MainRequest__GetRings *get) {
        _cleanup_close_ int fd = -EBADF;
        int r;

        if (get->version != RINGS_VERSION)
                return -EPROTONOSUPPORT;
        /* Before the vCPUs' threads are there; and beside pipes, in which the sides sleep. */
        if (!plugin->vcpus_taken || plugin->started)
                return -EINVAL;
        if (plugin->rings)
                return -EBUSY;
        fd = memfd_create_sealed("vmm-plugin-rings", ring_memory_size(plugin->n_vcpus), 0);
        if (fd < 0)
                return fd;
        r = ring_memory_map(fd, plugin->n_vcpus, &plugin->rings);
        if (r < 0)
                return r;
        for (unsigned i = 0; i < plugin->n_vcpus; i++) {
                PluginVcpu *v = &plugin->channels[i];

                ring_init(&v->ring, &plugin->rings[i], RING_MACHINE, v->read_fd, v->write_fd, &plugin->aborted);
                v->has_ring = true;
        }
        return TAKE_FD(fd);
}

void plugin_rings_done(Plugin *plugin) {
        ring_memory_unmap(plugin->rings, plugin->n_vcpus);
        plugin->rings = NULL;
}
