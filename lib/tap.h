/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* The host's end of a guest's network: a tap interface that somebody made to stay (systemd.netdev(5), Kind=tap), or a macvtap. Opening it needs the
 * network namespace it is in, and rights there; whoever has the descriptor needs neither. */

#include "util.h"

#define TAP_QUEUES_MAX 16U
/* The name under which the descriptor goes that says what becomes of the interface: a netlink socket that listens to changes of links. */
#define TAP_LINK_NAME "interface-link"
#define TAP_HEADER_SIZE 12 /* struct virtio_net_hdr_v1, in front of every packet of tap_open() */

/* Whether the kernel takes it as the name of an interface (and it is no path). */
bool tap_name_is_valid(const char *name);

/* Opens `n` queues of the interface: each ret_fds[i] reads and writes packets, does not block, and closes on exec. Returns 0;
 * -ENODEV where there is no such interface, -EBUSY where somebody has it open, -EOPNOTSUPP where it is of another kind, or another negative errno.
 * The message says what to do about it. */
int tap_open(const char *name, unsigned n, int *ret_fds, char **ret_message);
/* The same with one queue whose packets are Ethernet frames and nothing else, which is what a plugin expects. */
int tap_open_frames(const char *name, int *ret_fd, char **ret_message);
/* Whether the descriptor is that of a macvtap, which has an Ethernet address that it shares with its guest. */
bool tap_is_macvtap(int fd);
/* Asks the kernel on a netlink socket, as TAP_LINK_NAME is one, for an interface: by its index where that is known (> 0), for it may have another name
 * by now, else by its name. Does not wait. The answer is a message as each change of a link is. Returns 0 or a negative errno. */
int tap_ask_link(int link_fd, const char *name, int index);
