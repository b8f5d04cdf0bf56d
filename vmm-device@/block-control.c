/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <stdarg.h>
#include <stdio.h>

#include <json-c/json.h>

#include "block-control.h"
#include "log.h"

int block_reply_unavailable(VarlinkCall *call, const char *format, ...) {
        _cleanup_free_ char *reason = NULL;
        json_object *parameters = json_object_new_object();
        va_list ap;
        int r;

        va_start(ap, format);
        r = vasprintf(&reason, format, ap);
        va_end(ap);
        if (r < 0)
                reason = NULL;
        (void) json_object_object_add(parameters, "reason", json_object_new_string(reason ?: "out of memory"));
        r = varlink_call_error(call, "io.vmmd.Device.Unavailable", parameters);
        (void) json_object_put(parameters);
        return r;
}

int block_reply_size(VarlinkCall *call, uint64_t size) {
        json_object *reply = json_object_new_object();
        int r;

        (void) json_object_object_add(reply, "size", json_object_new_int64((int64_t) size));
        r = varlink_call_reply(call, reply);
        (void) json_object_put(reply);
        return r;
}

int block_reply_resize(Device *d, BlockImage *image, VarlinkCall *call, json_object *parameters) {
        json_object *wanted = json_object_object_get(parameters, "size");
        int64_t size = json_object_get_int64(wanted);
        uint64_t now;
        int r;

        if (wanted && (size <= 0 || size % image->logical_block != 0))
                return varlink_call_error_invalid_parameter(call, "size");
        if (wanted && image->read_only)
                return block_reply_unavailable(call, "the disk is read-only");

        if (wanted && image->is_device)
                return block_reply_unavailable(call, "the disk is a block device of the host, which others size; without a size it is looked at again");
        if (wanted) {
                r = block_image_truncate(image, (uint64_t) size);
                if (r < 0)
                        return block_reply_unavailable(call, "the image cannot be given %lld bytes: %s", (long long) size, strerror(-r));
        }
        r = block_image_measure(image, &now);
        if (r < 0)
                return block_reply_unavailable(call, "the size of the image cannot be found out: %s", strerror(-r));
        if (now == 0)
                return block_reply_unavailable(call, "the image has become smaller than a block of %u bytes", image->logical_block);
        if (now != image->size) {
                log_info("The disk has %llu bytes now, before it had %llu.", (unsigned long long) now, (unsigned long long) image->size);
                image->size = now;
                device_config_changed(d);
        }
        return block_reply_size(call, now);
}
