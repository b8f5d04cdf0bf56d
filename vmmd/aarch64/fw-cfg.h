/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* Files of the firmware, as QEMU's machines show them (Linux, bindings/firmware/qemu,fw-cfg-mmio.yaml; QEMU, docs/specs/fw_cfg): a selector, and a
 * register that gives the bytes of what was selected. Here for systemd's credentials, which guests with a device tree read there, where only root may:
 * those of other machines come by SMBIOS. Whoever owns it calls it from one thread at a time. */

#include "state.h"
#include "util.h"

typedef struct FwCfg FwCfg;

/* Takes what of `strings` (as for SMBIOS; NULL-terminated, or NULL) are credentials. Refuses, by name, others, and those whose name is too long. */
int fw_cfg_new(const char *const *strings, FwCfg **ret, char **ret_message);
FwCfg *fw_cfg_free(FwCfg *f);
DEFINE_CLEANUP(FwCfg, fw_cfg_free)
void fw_cfg_reset(FwCfg *f);
void fw_cfg_access(FwCfg *f, uint64_t offset, void *data, size_t size, bool is_write);
int fw_cfg_save(const FwCfg *f, StateWriter *w);
int fw_cfg_load(FwCfg *f, StateReader *r, char **ret_message);
