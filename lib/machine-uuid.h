/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* The machine's UUID: what its guest reads in SMBIOS, and machinectl(1) shows. Always the same for a name on a host; keyed by
 * the host's own id, so that machines of one name on two hosts are not taken for one. Where the host has none, of the name alone. */

#include <systemd/sd-id128.h>

sd_id128_t machine_uuid(const char *machine_name);
