/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* What an image file says of itself, before another program is let at it: that it is what its definition says, and which files beside it it needs. */

#include "util.h"

typedef struct ImageHeader {
        char *backing;        /* the name of its backing file, as it stands there; NULL where it has none */
        char *backing_format; /* and its format; NULL where it does not say */
} ImageHeader;

void image_header_done(ImageHeader *header);

/* Looks at the beginning of the file. -EINVAL with *ret_message where it is no image of that format ("qcow2", "vmdk", "vhdx", "luks"; anything is
 * "raw") or one that cannot be used. */
int image_header_read(int fd, const char *format, ImageHeader *ret, char **ret_message);
