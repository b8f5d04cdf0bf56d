/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* Ethernet addresses of guests. */

#include "util.h"

#define MAC_ADDRESS_SIZE 6
#define MAC_ADDRESS_TEXT_MAX sizeof("00:00:00:00:00:00")

/* "52:54:00:12:34:56", of one station: neither a group's nor all zeroes. */
int mac_address_parse(const char *s, uint8_t ret[MAC_ADDRESS_SIZE]);
bool mac_address_is_valid(const char *s);
void mac_address_format(const uint8_t address[MAC_ADDRESS_SIZE], char ret[MAC_ADDRESS_TEXT_MAX]);

/* The address that a machine's device has where nobody gives it one: always the same for these names on a host, another one on another host, and
 * from the space that is free for local use. */
void mac_address_derive(const char *machine, const char *device, uint8_t ret[MAC_ADDRESS_SIZE]);
