/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* What a user adds to the device tree: an overlay, as dtc makes it (Linux, Documentation/devicetree/overlay-notes.rst). */

#include "util.h"

/* More than a whole tree of ours. */
#define ARM64_OVERLAY_MAX MIB(1)

/* Applies the overlay, which is a file, to the tree; *tree is replaced. What is wrong with it is named in the message. */
int arm64_overlay_apply(int fd, const char *name, void **tree, size_t *size, char **ret_message);
