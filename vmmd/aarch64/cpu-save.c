/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The processor as its identification registers describe it. KVM on this architecture shows a guest the host's own: a guest that has seen them can go on
 * only where they are the same. */

#include <linux/kvm.h>

#include "arch.h"
#include "vcpu-save.h"

#define SECTION "arm64-cpu"
#define VERSION 1

#define SYSREG_MIDR ARM64_SYS_REG(3, 0, 0, 0, 0)

/* ID_AA64PFR0_EL1 to the last that the architecture keeps free for more (Arm ARM, D18.3.1): op0 3, op1 0, CRn 0, CRm 4 to 7. */
#define ID_CRM_FIRST 4
#define ID_CRM_LAST 7
#define N_ID ((ID_CRM_LAST - ID_CRM_FIRST + 1) * 8)

typedef struct Identification {
        uint64_t midr;
        uint64_t id[N_ID]; /* 0 where KVM has none */
} Identification;

static int read_identification(const Vcpu *vcpu, Identification *ret) {
        int r;

        *ret = (Identification) {};
        r = arm64_vcpu_get(vcpu, SYSREG_MIDR, &ret->midr);
        for (unsigned i = 0; i < N_ID && r >= 0; i++) {
                r = arm64_vcpu_get(vcpu, ARM64_SYS_REG(3, 0, 0, ID_CRM_FIRST + i / 8, i % 8), &ret->id[i]);
                if (r == -ENOENT)
                        r = 0;
        }
        return r;
}

/* "arm64 implementer 0x41, part 0xd0c, revision 1.0" */
static char *model(const Identification *id) {
        char *text = NULL;

        (void) set_message(&text, 0, "arm64 implementer 0x%02x, part 0x%03x, revision %u.%u", (unsigned) (id->midr >> 24 & 0xff),
                (unsigned) (id->midr >> 4 & 0xfff), (unsigned) (id->midr >> 20 & 0xf), (unsigned) (id->midr & 0xf));
        return text;
}

int arch_cpu_save(const VcpuSet *vcpus, StateWriter *w, char **ret_model) {
        int r = 0;

        for (unsigned i = 0; i < vcpus->n_vcpus && r >= 0; i++) {
                Identification id;

                r = read_identification(&vcpus->vcpus[i], &id);
                if (r < 0)
                        return r;
                state_begin(w, SECTION, i, VERSION);
                state_put_blob(w, &id, sizeof(id));
                r = state_end(w);
                if (i == 0 && r >= 0) {
                        *ret_model = model(&id);
                        if (!*ret_model)
                                r = -ENOMEM;
                }
        }
        return r;
}

static int compare(const Vcpu *vcpu, const Identification *then, const Identification *now, char **ret_message) {
        _cleanup_free_ char *before = model(then), *here = model(now);

        if (!before || !here)
                return -ENOMEM;
        if (then->midr != now->midr)
                return set_message(ret_message, -EXDEV, "The snapshot is of a machine whose processor is %s; this host's is %s.", before, here);
        for (unsigned i = 0; i < N_ID; i++)
                if (then->id[i] != now->id[i])
                        return set_message(ret_message, -EXDEV,
                                "The snapshot's vCPU %u has seen %#llx in the identification register S3_0_C0_C%u_%u, which is %#llx on this host.",
                                vcpu->index, (unsigned long long) then->id[i], ID_CRM_FIRST + i / 8, i % 8, (unsigned long long) now->id[i]);
        return 0;
}

int arch_cpu_load(const VcpuSet *vcpus, StateReader *r, char **ret_message) {
        int k = 0;

        for (unsigned i = 0; i < vcpus->n_vcpus && k >= 0; i++) {
                Identification then, now;

                k = state_enter(r, SECTION, i, VERSION);
                if (k < 0)
                        return set_message(ret_message, k, "No usable identification of the processor of vCPU %u.", i);
                state_get_blob(r, &then, sizeof(then));
                k = state_leave(r, ret_message);
                if (k >= 0)
                        k = read_identification(&vcpus->vcpus[i], &now);
                if (k >= 0)
                        k = compare(&vcpus->vcpus[i], &then, &now, ret_message);
        }
        return k;
}
