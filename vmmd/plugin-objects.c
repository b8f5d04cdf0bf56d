/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What a plugin makes under a number of its choice: I/O events, memory, interrupts. */

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "plugin-internal.h"

#define PAGE 4096

static PluginObject *find(Plugin *plugin, uint32_t id) {
        for (size_t i = 0; i < plugin->n_objects; i++)
                if (plugin->objects[i].id == id)
                        return &plugin->objects[i];
        return NULL;
}

static int add(Plugin *plugin, const PluginObject *object) {
        PluginObject *grown = reallocarray(plugin->objects, plugin->n_objects + 1, sizeof(PluginObject));

        if (!grown)
                return -ENOMEM;
        plugin->objects = grown;
        grown[plugin->n_objects++] = *object;
        return 0;
}

static void give(PluginReplyFds *fds, int fd) {
        fds->fds[fds->n++] = fd;
}

/* --- I/O events --- */

/* Plugins that read an event, or write one, expect to wait; nobody here does either. */

static int set_io_event(Plugin *plugin, const PluginObject *o, bool attach) {
        return plugin_kvm_ioeventfd(plugin->kvm, o->io_event.space, o->io_event.address, o->io_event.length, o->io_event.datamatch, o->fd,
                attach);
}

static int create_io_event(Plugin *plugin, PluginObject *o, const MainRequest__Create__IoEvent *event) {
        int r;

        if (event->space != ADDRESS_SPACE__IOPORT && event->space != ADDRESS_SPACE__MMIO)
                return -EINVAL;
        o->type = PLUGIN_OBJECT_IO_EVENT;
        o->io_event.space = event->space == ADDRESS_SPACE__IOPORT ? KVM_SPACE_PIO : KVM_SPACE_MMIO;
        o->io_event.address = event->address;
        o->io_event.length = event->length;
        /* No more of it than is compared. */
        o->io_event.datamatch = event->length >= 8 ? event->datamatch :
                event->length == 0 ? 0 : event->datamatch & ((UINT64_C(1) << 8 * event->length) - 1);
        o->fd = eventfd(0, EFD_CLOEXEC);
        if (o->fd < 0)
                return -errno;
        r = set_io_event(plugin, o, true);
        if (r < 0)
                o->fd = safe_close(o->fd);
        return r;
}

/* --- interrupts --- */

static int create_irq_event(Plugin *plugin, PluginObject *o, const MainRequest__Create__IrqEvent *event) {
        int r;

        o->type = PLUGIN_OBJECT_IRQ_EVENT;
        o->irq_event.gsi = event->irq_id;
        o->fd = eventfd(0, EFD_CLOEXEC);
        o->irq_event.resample_fd = eventfd(0, EFD_CLOEXEC);
        r = o->fd < 0 || o->irq_event.resample_fd < 0 ? -errno :
                kvm_irqfd(plugin->kvm, o->fd, event->irq_id, o->irq_event.resample_fd, true);
        if (r < 0) {
                o->fd = safe_close(o->fd);
                o->irq_event.resample_fd = safe_close(o->irq_event.resample_fd);
        }
        return r;
}

/* --- memory --- */

/* A log that fits into no answer is of no use; and KVM keeps bytes for each page, in the name of this process, also of memory that nobody has
 * ever seen. */
static int check_size(const Plugin *plugin, const MainRequest__Create__Memory *memory) {
        uint64_t all = memory->length, logged = memory->dirty_log ? memory->length : 0;

        if (memory->length > PLUGIN_MEMORY_MAX)
                return -ENOSPC;
        if (memory->dirty_log && memory->length / PAGE / 8 > PLUGIN_MESSAGE_MAX - 64)
                return -E2BIG;
        for (size_t i = 0; i < plugin->n_objects; i++)
                if (plugin->objects[i].type == PLUGIN_OBJECT_MEMORY) {
                        all += plugin->objects[i].memory.length;
                        logged += plugin->objects[i].memory.dirty_log ? plugin->objects[i].memory.length : 0;
                }
        return all > PLUGIN_MEMORY_MAX || logged > PLUGIN_LOGGED_MAX ? -ENOSPC : 0;
}

/* A file that could shrink would have this process killed where it looks at what is gone. */
static int check_memfd(int fd, const MainRequest__Create__Memory *memory) {
        struct stat st;
        uint64_t end;
        int seals;

        if (fd < 0)
                return -EBADF;
        seals = fcntl(fd, F_GET_SEALS);
        if (seals < 0)
                return -errno;
        if (!(seals & F_SEAL_SHRINK))
                return -EPERM;
        if (fstat(fd, &st) < 0)
                return -errno;
        if (__builtin_add_overflow(memory->offset, memory->length, &end))
                return -EOVERFLOW;
        return memory->length == 0 || memory->length % PAGE != 0 || memory->offset % PAGE != 0 || memory->start % PAGE != 0 ||
                end > (uint64_t) st.st_size ? -EINVAL : 0;
}

static int find_slot(Plugin *plugin, uint32_t *ret) {
        for (unsigned i = 0; i < plugin->n_slots; i++)
                if (!plugin->slots[i]) {
                        *ret = i;
                        return 0;
                }
        return -ENOSPC;
}

static int create_memory(Plugin *plugin, PluginObject *o, const MainRequest__Create__Memory *memory, int fd) {
        int protection = PROT_READ | (memory->read_only ? 0 : PROT_WRITE), r;

        o->type = PLUGIN_OBJECT_MEMORY;
        r = check_memfd(fd, memory);
        if (r >= 0)
                r = check_size(plugin, memory);
        if (r >= 0)
                r = find_slot(plugin, &o->memory.slot);
        if (r < 0)
                return r;
        o->memory.host = mmap(NULL, memory->length, protection, MAP_SHARED | MAP_NORESERVE, fd, (off_t) memory->offset);
        if (o->memory.host == MAP_FAILED)
                return -errno;
        r = plugin_kvm_set_memory(plugin->kvm, o->memory.slot, memory->start, memory->length, o->memory.host, memory->read_only,
                memory->dirty_log);
        if (r < 0) {
                (void) munmap(o->memory.host, memory->length);
                return r;
        }
        plugin->slots[o->memory.slot] = 1;
        o->memory.start = memory->start;
        o->memory.length = memory->length;
        o->memory.dirty_log = memory->dirty_log;
        return 0;
}

int plugin_object_dirty_log(Plugin *plugin, uint32_t id, uint64_t **ret, size_t *ret_size) {
        const PluginObject *o = find(plugin, id);
        _cleanup_free_ uint64_t *bitmap = NULL;
        uint64_t pages;
        int r;

        if (!o || o->type != PLUGIN_OBJECT_MEMORY)
                return -ENOENT;
        pages = o->memory.length / PAGE;
        bitmap = calloc((pages + 63) / 64, sizeof(uint64_t));
        if (!bitmap)
                return -ENOMEM;
        r = plugin_kvm_get_dirty_log(plugin->kvm, o->memory.slot, bitmap);
        if (r < 0)
                return r;
        *ret_size = (pages + 7) / 8;
        *ret = TAKE_PTR(bitmap);
        return 0;
}

/* --- all of them --- */

static void release(Plugin *plugin, PluginObject *o) {
        switch (o->type) {
        case PLUGIN_OBJECT_IO_EVENT:
                (void) set_io_event(plugin, o, false);
                break;
        case PLUGIN_OBJECT_IRQ_EVENT:
                (void) kvm_irqfd(plugin->kvm, o->fd, o->irq_event.gsi, -1, false);
                (void) safe_close(o->irq_event.resample_fd);
                break;
        case PLUGIN_OBJECT_MEMORY:
                (void) plugin_kvm_set_memory(plugin->kvm, o->memory.slot, o->memory.start, 0, NULL, false, false);
                (void) munmap(o->memory.host, o->memory.length);
                plugin->slots[o->memory.slot] = 0;
                break;
        }
        (void) safe_close(o->fd);
}

int plugin_object_create(Plugin *plugin, const MainRequest__Create *create, int fd, PluginReplyFds *fds) {
        PluginObject o = { .id = create->id, .fd = -EBADF };
        int r;

        if (find(plugin, create->id))
                return -EEXIST;
        if (plugin->n_objects >= PLUGIN_OBJECTS_MAX)
                return -ENOSPC;
        switch (create->constructor_case) {
        case MAIN_REQUEST__CREATE__CONSTRUCTOR_IO_EVENT:
                r = create_io_event(plugin, &o, create->io_event);
                break;
        case MAIN_REQUEST__CREATE__CONSTRUCTOR_MEMORY:
                r = create_memory(plugin, &o, create->memory, fd);
                break;
        case MAIN_REQUEST__CREATE__CONSTRUCTOR_IRQ_EVENT:
                r = create_irq_event(plugin, &o, create->irq_event);
                break;
        default:
                r = -ENOTTY;
        }
        if (r < 0)
                return r;
        r = add(plugin, &o);
        if (r < 0) {
                release(plugin, &o);
                return r;
        }
        if (o.fd >= 0)
                give(fds, o.fd);
        if (o.type == PLUGIN_OBJECT_IRQ_EVENT)
                give(fds, o.irq_event.resample_fd);
        return 0;
}

int plugin_object_destroy(Plugin *plugin, uint32_t id) {
        PluginObject *o = find(plugin, id);

        if (!o)
                return -ENOENT;
        release(plugin, o);
        *o = plugin->objects[--plugin->n_objects];
        return 0;
}

void plugin_objects_done(Plugin *plugin) {
        while (plugin->n_objects > 0)
                release(plugin, &plugin->objects[--plugin->n_objects]);
        free(plugin->objects);
}
