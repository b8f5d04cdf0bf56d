/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* io.vmmd.Device's methods for disks. */

#include "block-image.h"
#include "server.h"

/* Resize: gives the image another size, or takes over the one it has by now, and tells the guest. */
/* io.vmmd.Device.Unavailable, and Resize's answer. */
int block_reply_unavailable(VarlinkCall *call, const char *format, ...) _printf_(2, 3);
int block_reply_size(VarlinkCall *call, uint64_t size);
int block_reply_resize(Device *d, BlockImage *image, VarlinkCall *call, json_object *parameters);
