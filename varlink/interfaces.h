/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* The interface texts, *.varlink of this directory, embedded by the build. */

extern const char varlink_text_io_systemd_MachineInstance[];
extern const char varlink_text_io_systemd_Metrics[];
extern const char varlink_text_io_systemd_service[];
extern const char varlink_text_io_vmmd_Authorization[];
extern const char varlink_text_io_vmmd_Balloon[];
extern const char varlink_text_io_vmmd_Device[];
extern const char varlink_text_io_vmmd_Image[];
extern const char varlink_text_io_vmmd_Input[];
extern const char varlink_text_io_vmmd_Machine[];
extern const char varlink_text_io_vmmd_Slot[];
extern const char varlink_text_io_vmmd_Vsock[];
extern const char varlink_text_org_varlink_service[];
