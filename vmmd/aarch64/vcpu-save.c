/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <linux/kvm.h>
#include <sys/ioctl.h>

#include "vcpu-save.h"

#define SECTION "arm64-vcpu"
#define REGISTERS_MAX 4096
#define REGISTER_SIZE_MAX 256
#define REGISTERS_BYTES_MAX (REGISTERS_MAX * (sizeof(uint64_t) + REGISTER_SIZE_MAX))

#define SYSREG_MPIDR ARM64_SYS_REG(3, 0, 0, 0, 5)
#define SYSREG_CLIDR ARM64_SYS_REG(3, 1, 0, 0, 1)
#define DEMUX_CCSIDR (KVM_REG_ARM64 | KVM_REG_SIZE_U32 | KVM_REG_ARM_DEMUX | KVM_REG_ARM_DEMUX_ID_CCSIDR)
#define MPIDR_AFFINITY UINT64_C(0xFF00FFFFFF)

static size_t register_size(uint64_t id) {
        return (size_t) 1 << ((id & KVM_REG_SIZE_MASK) >> KVM_REG_SIZE_SHIFT);
}

int arm64_vcpu_get(const Vcpu *vcpu, uint64_t id, void *value) {
        struct kvm_one_reg reg = { .id = id, .addr = (uint64_t) (uintptr_t) value };

        return ioctl(vcpu->fd, KVM_GET_ONE_REG, &reg) < 0 ? -errno : 0;
}

int arm64_vcpu_set(const Vcpu *vcpu, uint64_t id, const void *value) {
        struct kvm_one_reg reg = { .id = id, .addr = (uint64_t) (uintptr_t) value };

        return ioctl(vcpu->fd, KVM_SET_ONE_REG, &reg) < 0 ? -errno : 0;
}

int arm64_vcpu_mpidr(const Vcpu *vcpu, uint64_t *ret) {
        uint64_t v;
        int r;

        r = arm64_vcpu_get(vcpu, SYSREG_MPIDR, &v);
        if (r >= 0)
                *ret = v & MPIDR_AFFINITY;
        return r;
}

/* --- caches (Arm ARM, D19.2.26 CCSIDR_EL1 and D19.2.28 CLIDR_EL1) --- */

static bool read_cache(const Vcpu *vcpu, unsigned level, Arm64CacheKind kind, Arm64Cache *ret) {
        uint64_t id = DEMUX_CCSIDR | (level - 1) << 1 | (kind == ARM64_CACHE_INSTRUCTION);
        uint32_t v;

        if (arm64_vcpu_get(vcpu, id, &v) < 0)
                return false;
        *ret = (Arm64Cache) {
                .kind = kind,
                .level = level,
                .line_size = 16u << (v & 7),
                .ways = ((v >> 3) & 0x3FF) + 1,
                .sets = ((v >> 13) & 0x7FFF) + 1,
        };
        return true;
}

size_t arm64_vcpu_caches(const Vcpu *vcpu, Arm64Cache ret[static ARM64_CACHES_MAX]) {
        uint64_t clidr;
        size_t n = 0;

        if (arm64_vcpu_get(vcpu, SYSREG_CLIDR, &clidr) < 0)
                return 0;
        for (unsigned level = 1; level <= 7; level++) {
                unsigned type = (unsigned) (clidr >> (3 * (level - 1))) & 7;

                if (type == 0)
                        break;
                if (type == 1 || type == 3)
                        n += read_cache(vcpu, level, ARM64_CACHE_INSTRUCTION, &ret[n]);
                if (type == 2 || type == 3)
                        n += read_cache(vcpu, level, ARM64_CACHE_DATA, &ret[n]);
                if (type == 4)
                        n += read_cache(vcpu, level, ARM64_CACHE_UNIFIED, &ret[n]);
        }
        return n;
}

/* --- save --- */

static int list_registers(const Vcpu *vcpu, struct kvm_reg_list **ret) {
        _cleanup_free_ struct kvm_reg_list *list = NULL;
        struct kvm_reg_list probe = { .n = 0 };

        if (ioctl(vcpu->fd, KVM_GET_REG_LIST, &probe) < 0 && errno != E2BIG)
                return -errno;
        if (probe.n > REGISTERS_MAX)
                return -E2BIG;
        list = calloc(1, sizeof(*list) + probe.n * sizeof(list->reg[0]));
        if (!list)
                return -ENOMEM;
        list->n = probe.n;
        if (ioctl(vcpu->fd, KVM_GET_REG_LIST, list) < 0)
                return -errno;
        *ret = TAKE_PTR(list);
        return 0;
}

/* Each as its id and its bytes, one after the other. */
static int read_registers(const Vcpu *vcpu, const struct kvm_reg_list *list, uint8_t **ret, size_t *ret_size) {
        _cleanup_free_ uint8_t *data = malloc(list->n * (sizeof(uint64_t) + REGISTER_SIZE_MAX) + 1);
        size_t size = 0;
        int r;

        if (!data)
                return -ENOMEM;
        for (uint64_t i = 0; i < list->n; i++) {
                if (register_size(list->reg[i]) > REGISTER_SIZE_MAX)
                        return -E2BIG;
                store_le64(data + size, list->reg[i]);
                r = arm64_vcpu_get(vcpu, list->reg[i], data + size + sizeof(uint64_t));
                if (r < 0)
                        return r;
                size += sizeof(uint64_t) + register_size(list->reg[i]);
        }
        *ret = TAKE_PTR(data);
        *ret_size = size;
        return 0;
}

int arm64_vcpu_save(const Vcpu *vcpu, StateWriter *w) {
        _cleanup_free_ struct kvm_reg_list *list = NULL;
        _cleanup_free_ uint8_t *data = NULL;
        struct kvm_vcpu_events events = {};
        struct kvm_mp_state mp_state;
        size_t size;
        int r;

        r = list_registers(vcpu, &list);
        if (r >= 0)
                r = read_registers(vcpu, list, &data, &size);
        if (r < 0)
                return r;
        if (ioctl(vcpu->fd, KVM_GET_MP_STATE, &mp_state) < 0 || ioctl(vcpu->fd, KVM_GET_VCPU_EVENTS, &events) < 0)
                return -errno;

        state_begin(w, SECTION, vcpu->index, 1);
        state_put_u32(w, mp_state.mp_state);
        state_put_blob(w, &events, sizeof(events));
        state_put_blob(w, data, size);
        return state_end(w);
}

/* --- load --- */

static bool is_counter(uint64_t id) {
        return id == KVM_REG_ARM_TIMER_CNT || id == KVM_REG_ARM_PTIMER_CNT;
}

/* Some registers can be written with the value that they have, others not even so. */
static int write_register(const Vcpu *vcpu, uint64_t id, const uint8_t *value, size_t size, char **ret_message) {
        uint8_t now[REGISTER_SIZE_MAX];
        int r;

        r = arm64_vcpu_set(vcpu, id, value);
        if (r >= 0 || (arm64_vcpu_get(vcpu, id, now) >= 0 && memcmp(now, value, size) == 0))
                return 0;
        return set_message(ret_message, r, "KVM_SET_ONE_REG of register %#llx of vCPU %u failed: %s.", (unsigned long long) id, vcpu->index,
                strerror(-r));
}

static int write_counter(const Vcpu *vcpu, uint64_t id, const uint8_t *value, uint64_t advance, char **ret_message) {
        uint64_t v = load_le64(value) + advance;
        int r;

        r = arm64_vcpu_set(vcpu, id, &v);
        return r < 0 ? set_message(ret_message, r, "KVM refuses the counter of vCPU %u: %s.", vcpu->index, strerror(-r)) : 0;
}

static int write_registers(const Vcpu *vcpu, const uint64_t *advance, const uint8_t *data, size_t size, char **ret_message) {
        int r = 0;

        for (size_t at = 0; at < size && r >= 0;) {
                uint64_t id;
                size_t length;

                if (size - at < sizeof(id))
                        return set_message(ret_message, -EBADMSG, "The registers of vCPU %u end within one.", vcpu->index);
                id = load_le64(data + at);
                length = register_size(id);
                at += sizeof(id);
                if (length > REGISTER_SIZE_MAX || length > size - at)
                        return set_message(ret_message, -EBADMSG, "Register %#llx of vCPU %u is not all there.", (unsigned long long) id,
                                vcpu->index);
                if (is_counter(id))
                        r = advance ? write_counter(vcpu, id, data + at, *advance, ret_message) : 0;
                else
                        r = write_register(vcpu, id, data + at, length, ret_message);
                at += length;
        }
        return r;
}

int arm64_vcpu_load(const Vcpu *vcpu, const uint64_t *advance, StateReader *r, char **ret_message) {
        struct kvm_vcpu_events events;
        struct kvm_mp_state mp_state;
        const uint8_t *data;
        size_t size;
        int k;

        k = state_enter(r, SECTION, vcpu->index, 1);
        if (k < 0)
                return set_message(ret_message, k, "No usable state of vCPU %u.", vcpu->index);
        mp_state.mp_state = state_get_u32(r);
        state_get_blob(r, &events, sizeof(events));
        data = state_get_blob_view(r, REGISTERS_BYTES_MAX, &size);
        k = state_leave(r, ret_message);
        if (k < 0)
                return k;

        k = write_registers(vcpu, advance, data, size, ret_message);
        if (k < 0)
                return k;
        if (ioctl(vcpu->fd, KVM_SET_VCPU_EVENTS, &events) < 0)
                return set_message(ret_message, -errno, "KVM_SET_VCPU_EVENTS of vCPU %u failed: %s.", vcpu->index, strerror(errno));
        if (ioctl(vcpu->fd, KVM_SET_MP_STATE, &mp_state) < 0)
                return set_message(ret_message, -errno, "KVM_SET_MP_STATE of vCPU %u failed: %s.", vcpu->index, strerror(errno));
        return 0;
}
