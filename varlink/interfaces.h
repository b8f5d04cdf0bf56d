/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* The interface texts, *.varlink of this directory, embedded by the build. */

extern const char varlink_text_io_vmmd_Device[];
extern const char varlink_text_io_vmmd_Machine[];
extern const char varlink_text_org_varlink_service[];
