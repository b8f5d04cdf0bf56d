/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* The host's port on which the helper of a vsock device hears what the guest's service manager says of itself (sd_notify(3)): the
 * guest is told by the credential vmm.notify_socket, and vmm.machine(5) tells everybody else. */
#define VSOCK_NOTIFY_PORT 8660U
