/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "json-util.h"

/* Of an io.vmmd.Machine.BalloonState: "300 MiB of 512 MiB". The caller frees it; NULL when out of memory. */
char *balloon_summary(json_object *balloon);
