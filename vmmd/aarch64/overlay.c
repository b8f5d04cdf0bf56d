/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <libfdt.h>

#include "kernel-file.h"
#include "layout.h"
#include "overlay.h"

static int read_overlay(int fd, const char *name, void **ret, size_t *ret_size, char **ret_message) {
        _cleanup_free_ void *data = NULL;
        KernelFile file;
        int r;

        r = kernel_file_open(fd, name, &file, ret_message);
        if (r < 0)
                return r;
        if (file.size > ARM64_OVERLAY_MAX)
                return set_message(ret_message, -E2BIG, "%s: has %llu bytes, a device tree overlay may have 1 MiB.", name, (unsigned long long) file.size);
        data = malloc(file.size + 1);
        if (!data)
                return -ENOMEM;
        r = pread_full(fd, data, file.size, 0);
        if (r < 0)
                return set_message(ret_message, r, "%s: cannot be read: %s", name, strerror(-r));
        *ret = TAKE_PTR(data);
        *ret_size = file.size;
        return 0;
}

static int check_blob(const char *name, const void *overlay, size_t size, char **ret_message) {
        const uint8_t *p = overlay;
        int r;

        if (size < sizeof(struct fdt_header) || fdt_magic(overlay) != FDT_MAGIC)
                return set_message(ret_message, -ENOEXEC, "%s: begins with %02x %02x %02x %02x, expected a compiled device tree (d0 0d fe ed).", name,
                        size > 0 ? p[0] : 0, size > 1 ? p[1] : 0, size > 2 ? p[2] : 0, size > 3 ? p[3] : 0);
        r = fdt_check_full(overlay, size);
        return r < 0 ? set_message(ret_message, -ENOEXEC, "%s: is a broken device tree: %s.", name, fdt_strerror(r)) : 0;
}

/* What it refers to by label has to have that label in the machine's tree. */
static int check_labels(const char *name, const void *tree, const void *overlay, char **ret_message) {
        int fixups = fdt_path_offset(overlay, "/__fixups__"), symbols = fdt_path_offset(tree, "/__symbols__"), property;

        if (fixups < 0)
                return 0;
        fdt_for_each_property_offset(property, overlay, fixups) {
                const char *label = NULL;

                if (!fdt_getprop_by_offset(overlay, property, &label, NULL) || !label)
                        return set_message(ret_message, -ENOEXEC, "%s: is a broken device tree.", name);
                if (!fdt_getprop(tree, symbols, label, NULL))
                        return set_message(ret_message, -ENOENT, "%s: refers to the label '%s', which the machine's device tree has not.", name, label);
        }
        return 0;
}

/* Returns 1 where it has somewhere to go, 0 where the node is none. */
static int check_fragment(const char *name, const void *tree, const void *overlay, int node, char **ret_message) {
        const char *path, *fragment = fdt_get_name(overlay, node, NULL) ?: "?";
        int length;

        if (fdt_subnode_offset(overlay, node, "__overlay__") < 0)
                return 0;
        if (fdt_getprop(overlay, node, "target", NULL))
                return 1;
        path = fdt_getprop(overlay, node, "target-path", &length);
        if (!path || strnlen(path, (size_t) length) == (size_t) length)
                return set_message(ret_message, -ENOEXEC, "%s: its fragment '%s' has neither a target nor a target-path.", name, fragment);
        if (fdt_path_offset(tree, path) < 0)
                return set_message(ret_message, -ENOENT, "%s: its fragment '%s' goes to the path '%s', which the machine's device tree has not.", name,
                        fragment, path);
        return 1;
}

static int check_fragments(const char *name, const void *tree, const void *overlay, char **ret_message) {
        unsigned n = 0;
        int node, r;

        fdt_for_each_subnode(node, overlay, 0) {
                r = check_fragment(name, tree, overlay, node, ret_message);
                if (r < 0)
                        return r;
                n += (unsigned) r;
        }
        return n == 0 ? set_message(ret_message, -ENOEXEC, "%s: is a device tree, but no overlay: it has no fragment with an __overlay__.", name) : 0;
}

/* libfdt leaves both in pieces where it fails, so each attempt has its own. */
static int try_apply(const void *tree, const void *overlay, size_t overlay_size, size_t room, void **ret) {
        _cleanup_free_ void *whole = malloc(room), *added = malloc(overlay_size);
        int r;

        if (!whole || !added)
                return -FDT_ERR_INTERNAL;
        memcpy(added, overlay, overlay_size);
        r = fdt_open_into(tree, whole, (int) room);
        if (r == 0)
                r = fdt_overlay_apply(whole, added);
        if (r == 0)
                r = fdt_pack(whole);
        if (r == 0)
                *ret = TAKE_PTR(whole);
        return r;
}

static int apply(const char *name, const void *overlay, size_t overlay_size, void **tree, size_t *size, char **ret_message) {
        for (size_t room = *size + overlay_size; room <= ARM64_FDT_MAX; room *= 2) {
                void *whole = NULL;
                int r;

                r = try_apply(*tree, overlay, overlay_size, room, &whole);
                if (r == -FDT_ERR_NOSPACE)
                        continue;
                if (r != 0)
                        return set_message(ret_message, -ENOEXEC, "%s: cannot be applied to the machine's device tree: %s.", name, fdt_strerror(r));
                free(*tree);
                *tree = whole;
                *size = fdt_totalsize(whole);
                return 0;
        }
        return set_message(ret_message, -E2BIG, "%s: with it the device tree would be larger than 2 MiB.", name);
}

int arm64_overlay_apply(int fd, const char *name, void **tree, size_t *size, char **ret_message) {
        _cleanup_free_ void *overlay = NULL;
        size_t overlay_size = 0;
        int r;

        r = read_overlay(fd, name, &overlay, &overlay_size, ret_message);
        if (r >= 0)
                r = check_blob(name, overlay, overlay_size, ret_message);
        if (r >= 0)
                r = check_labels(name, *tree, overlay, ret_message);
        if (r >= 0)
                r = check_fragments(name, *tree, overlay, ret_message);
        return r < 0 ? r : apply(name, overlay, overlay_size, tree, size, ret_message);
}
