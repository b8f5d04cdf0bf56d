/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <linux/kvm.h>
#include <sys/ioctl.h>

#include "gic.h"
#include "layout.h"

#define N_INTIDS (ARM64_INTID_SPI + ARM64_N_SPI)

/* Distributor and redistributor: offsets from their bases (IHI 0069, 12.8 and 12.10). */
#define SGI_FRAME 0x10000u /* of a redistributor */
enum {
        REG_CTLR = 0x0000,
        GICD_IIDR = 0x0008,
        REG_STATUSR = 0x0010,
        GICR_WAKER = 0x0014,
        GICR_PROPBASER = 0x0070,
        GICR_PENDBASER = 0x0078,
        REG_IGROUPR = 0x0080,
        REG_ISENABLER = 0x0100,
        REG_ICENABLER = 0x0180,
        REG_ISPENDR = 0x0200,
        REG_ISACTIVER = 0x0300,
        REG_ICACTIVER = 0x0380,
        REG_IPRIORITYR = 0x0400,
        REG_ICFGR = 0x0C00,
        GICD_IROUTER = 0x6000,
};

/* ITS (12.19) */
enum { GITS_CTLR = 0x0000, GITS_IIDR = 0x0004, GITS_CBASER = 0x0080, GITS_CWRITER = 0x0088, GITS_CREADR = 0x0090, GITS_BASER = 0x0100 };
#define GITS_N_BASER 8

/* The CPU interface's registers (12.2), as KVM numbers them. */
#define SYSREG(op0, op1, crn, crm, op2) ((op0) << 14 | (op1) << 11 | (crn) << 7 | (crm) << 3 | (op2))
#define ICC_SRE SYSREG(3u, 0u, 12u, 12u, 5u)
#define ICC_CTLR SYSREG(3u, 0u, 12u, 12u, 4u)
#define ICC_AP0R(n) SYSREG(3u, 0u, 12u, 8u, 4u + (n))
#define ICC_AP1R(n) SYSREG(3u, 0u, 12u, 9u, (n))
#define ICC_CTLR_PRI_BITS(v) ((unsigned) ((v) >> 8 & 7) + 1)

static const uint32_t cpu_interface[] = {
        ICC_SRE, ICC_CTLR,
        SYSREG(3u, 0u, 4u, 6u, 0u),   /* ICC_PMR */
        SYSREG(3u, 0u, 12u, 8u, 3u),  /* ICC_BPR0 */
        SYSREG(3u, 0u, 12u, 12u, 3u), /* ICC_BPR1 */
        SYSREG(3u, 0u, 12u, 12u, 6u), /* ICC_IGRPEN0 */
        SYSREG(3u, 0u, 12u, 12u, 7u), /* ICC_IGRPEN1 */
};

static int access_attribute(int fd, unsigned long request, uint32_t group, uint64_t attribute, void *value) {
        struct kvm_device_attr a = { .group = group, .attr = attribute, .addr = (uint64_t) (uintptr_t) value };

        return ioctl(fd, request, &a) < 0 ? -errno : 0;
}

static int set(int fd, uint32_t group, uint64_t attribute, void *value) {
        return access_attribute(fd, KVM_SET_DEVICE_ATTR, group, attribute, value);
}

static int command(int fd, uint64_t attribute) {
        return set(fd, KVM_DEV_ARM_VGIC_GRP_CTRL, attribute, NULL);
}

/* --- life --- */

static int create(Kvm *kvm, uint32_t type, int *ret_fd) {
        struct kvm_create_device device = { .type = type };

        if (ioctl(kvm->vm_fd, KVM_CREATE_DEVICE, &device) < 0)
                return -errno;
        *ret_fd = (int) device.fd;
        return 0;
}

int gic_new(Kvm *kvm, Gic *gic, char **ret_message) {
        uint64_t distributor = ARM64_GICD_BASE, redistributors = ARM64_GICR_BASE, its = ARM64_ITS_BASE;
        uint32_t n_intids = N_INTIDS;
        const char *what = "GICv3";
        int r;

        *gic = (Gic) { .fd = -EBADF, .its_fd = -EBADF };
        r = create(kvm, KVM_DEV_TYPE_ARM_VGIC_V3, &gic->fd);
        if (r >= 0)
                r = set(gic->fd, KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, &n_intids);
        if (r >= 0)
                r = set(gic->fd, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_DIST, &distributor);
        if (r >= 0)
                r = set(gic->fd, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_REDIST, &redistributors);
        if (r >= 0) {
                what = "GICv3 interrupt translation service";
                r = create(kvm, KVM_DEV_TYPE_ARM_VGIC_ITS, &gic->its_fd);
        }
        if (r >= 0)
                r = set(gic->its_fd, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_ITS_ADDR_TYPE, &its);
        return r < 0 ? set_message(ret_message, r, "KVM cannot make a %s, which vmmd needs: %s.", what, strerror(-r)) : 0;
}

void gic_done(Gic *gic) {
        gic->fd = safe_close(gic->fd);
        gic->its_fd = safe_close(gic->its_fd);
}

int gic_init(Kvm *kvm, Gic *gic, char **ret_message) {
        int r;

        r = command(gic->fd, KVM_DEV_ARM_VGIC_CTRL_INIT);
        if (r >= 0)
                r = command(gic->its_fd, KVM_DEV_ARM_VGIC_CTRL_INIT);
        if (r < 0)
                return set_message(ret_message, r, "KVM cannot start its interrupt controller: %s.", strerror(-r));
        /* As KVM's own default table. */
        for (unsigned gsi = 0; gsi < ARM64_N_SPI; gsi++)
                kvm_route_irqchip(kvm, gsi, 0, gsi);
        kvm_route_set_first_msi(kvm, ARM64_N_SPI);
        kvm->msi_device_ids = true;
        r = kvm_route_commit(kvm);
        return r < 0 ? set_message(ret_message, r, "KVM refuses the routes of interrupts: %s.", strerror(-r)) : 0;
}

/* --- registers: one walk for both directions --- */

typedef struct Walk {
        const Gic *gic;
        StateWriter *w; /* either this … */
        StateReader *r; /* … or that */
        unsigned vcpu;
        int error;
        const char *what; /* where it was */
} Walk;

/* "mpidr: Aff3.Aff2.Aff1.Aff0" */
static uint64_t vcpu_attribute(const Walk *k, uint64_t low) {
        uint64_t mpidr = k->gic->mpidrs[k->vcpu], affinity = (mpidr & 0xFFFFFF) | (mpidr >> 8 & 0xFF000000);

        return affinity << KVM_DEV_ARM_VGIC_V3_MPIDR_SHIFT | low;
}

static void note(Walk *k, int r, const char *what) {
        if (r >= 0 || k->error < 0)
                return;
        k->error = r;
        k->what = what;
}

/* After an error the values that are left in the state are taken and not written. */
static void walk32(Walk *k, int fd, uint32_t group, uint64_t attribute, const char *what) {
        uint32_t v = 0;

        if (k->w) {
                note(k, access_attribute(fd, KVM_GET_DEVICE_ATTR, group, attribute, &v), what);
                state_put_u32(k->w, v);
        } else {
                v = state_get_u32(k->r);
                if (k->error == 0)
                        note(k, set(fd, group, attribute, &v), what);
        }
}

static uint64_t walk64(Walk *k, int fd, uint32_t group, uint64_t attribute, const char *what) {
        uint64_t v = 0;

        if (k->w) {
                note(k, access_attribute(fd, KVM_GET_DEVICE_ATTR, group, attribute, &v), what);
                state_put_u64(k->w, v);
        } else {
                v = state_get_u64(k->r);
                if (k->error == 0)
                        note(k, set(fd, group, attribute, &v), what);
        }
        return v;
}

/* Only before a load. */
static void write32(Walk *k, int fd, uint32_t group, uint64_t attribute, uint32_t v, const char *what) {
        if (k->r && k->error == 0)
                note(k, set(fd, group, attribute, &v), what);
}

/* The banks of registers that distributor and redistributor have alike, of [first, last) interrupts. */
static void walk_interrupts(Walk *k, uint32_t group, uint64_t base, unsigned first, unsigned last) {
        int fd = k->gic->fd;

        for (unsigned i = first; i < last; i += 32) {
                uint64_t word = base + i / 8;

                walk32(k, fd, group, word + REG_IGROUPR, "IGROUPR");
                /* Ones set, and zeroes leave alone. */
                write32(k, fd, group, word + REG_ICENABLER, UINT32_MAX, "ICENABLER");
                walk32(k, fd, group, word + REG_ISENABLER, "ISENABLER");
                write32(k, fd, group, word + REG_ICACTIVER, UINT32_MAX, "ICACTIVER");
                walk32(k, fd, group, word + REG_ISACTIVER, "ISACTIVER");
        }
        for (unsigned i = first; i < last; i += 4)
                walk32(k, fd, group, base + REG_IPRIORITYR + i, "IPRIORITYR");
        for (unsigned i = first; i < last; i += 16)
                walk32(k, fd, group, base + REG_ICFGR + i / 4, "ICFGR");
        /* From here KVM takes it as the latches are; what they mean depends on the configuration. */
        for (unsigned i = first; i < last; i += 32)
                walk32(k, fd, group, base + REG_ISPENDR + i / 8, "ISPENDR");
}

static void walk_levels(Walk *k, unsigned first, unsigned last) {
        for (unsigned i = first; i < last; i += 32)
                walk32(k, k->gic->fd, KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO,
                        vcpu_attribute(k, VGIC_LEVEL_INFO_LINE_LEVEL << KVM_DEV_ARM_VGIC_LINE_LEVEL_INFO_SHIFT | i), "lines");
}

static void walk_distributor(Walk *k) {
        const uint32_t group = KVM_DEV_ARM_VGIC_GRP_DIST_REGS;
        int fd = k->gic->fd;

        walk32(k, fd, group, GICD_IIDR, "GICD_IIDR"); /* which implementation: before any other */
        walk32(k, fd, group, REG_CTLR, "GICD_CTLR");
        walk32(k, fd, group, REG_STATUSR, "GICD_STATUSR");
        walk_interrupts(k, group, 0, ARM64_INTID_SPI, N_INTIDS);
        for (unsigned i = ARM64_INTID_SPI; i < N_INTIDS; i++)
                for (unsigned half = 0; half < 8; half += 4)
                        walk32(k, fd, group, GICD_IROUTER + UINT64_C(8) * i + half, "GICD_IROUTER");
        k->vcpu = 0;
        walk_levels(k, ARM64_INTID_SPI, N_INTIDS);
}

/* LPIs are enabled last: where their tables lie cannot be changed then. */
static void walk_redistributor(Walk *k) {
        const uint32_t group = KVM_DEV_ARM_VGIC_GRP_REDIST_REGS;
        int fd = k->gic->fd;

        write32(k, fd, group, vcpu_attribute(k, REG_CTLR), 0, "GICR_CTLR");
        walk32(k, fd, group, vcpu_attribute(k, REG_STATUSR), "GICR_STATUSR");
        walk32(k, fd, group, vcpu_attribute(k, GICR_WAKER), "GICR_WAKER");
        for (unsigned half = 0; half < 8; half += 4) {
                walk32(k, fd, group, vcpu_attribute(k, GICR_PROPBASER + half), "GICR_PROPBASER");
                walk32(k, fd, group, vcpu_attribute(k, GICR_PENDBASER + half), "GICR_PENDBASER");
        }
        walk_interrupts(k, group, vcpu_attribute(k, SGI_FRAME), 0, ARM64_INTID_SPI);
        walk_levels(k, 0, ARM64_INTID_SPI);
        walk32(k, fd, group, vcpu_attribute(k, REG_CTLR), "GICR_CTLR");
}

/* How many active priorities registers there are follows from how many bits a priority has (12.2.1). */
static void walk_cpu_interface(Walk *k) {
        const uint32_t group = KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS;
        unsigned n_active = 1;

        for (size_t i = 0; i < ELEMENTSOF(cpu_interface); i++) {
                uint64_t v = walk64(k, k->gic->fd, group, vcpu_attribute(k, cpu_interface[i]), "ICC registers");

                if (cpu_interface[i] == ICC_CTLR)
                        n_active = ICC_CTLR_PRI_BITS(v) == 7 ? 4 : ICC_CTLR_PRI_BITS(v) == 6 ? 2 : 1;
        }
        for (unsigned i = 0; i < n_active; i++) {
                (void) walk64(k, k->gic->fd, group, vcpu_attribute(k, ICC_AP0R(i)), "ICC_AP0R");
                (void) walk64(k, k->gic->fd, group, vcpu_attribute(k, ICC_AP1R(i)), "ICC_AP1R");
        }
}

/* "ITS Restore Sequence": the tables between the registers that say where they are and the one that puts them to work. */
static void walk_its(Walk *k) {
        const uint32_t group = KVM_DEV_ARM_VGIC_GRP_ITS_REGS;
        int fd = k->gic->its_fd;

        if (k->w)
                note(k, command(fd, KVM_DEV_ARM_ITS_SAVE_TABLES), "ITS tables");
        else if (k->error == 0)
                note(k, command(fd, KVM_DEV_ARM_ITS_CTRL_RESET), "ITS reset");
        (void) walk64(k, fd, group, GITS_IIDR, "GITS_IIDR");
        (void) walk64(k, fd, group, GITS_CBASER, "GITS_CBASER");
        /* Writing that one has set both of these to 0. */
        (void) walk64(k, fd, group, GITS_CREADR, "GITS_CREADR");
        (void) walk64(k, fd, group, GITS_CWRITER, "GITS_CWRITER");
        for (unsigned i = 0; i < GITS_N_BASER; i++)
                (void) walk64(k, fd, group, GITS_BASER + UINT64_C(8) * i, "GITS_BASER");
        if (k->r && k->error == 0)
                note(k, command(fd, KVM_DEV_ARM_ITS_RESTORE_TABLES), "ITS tables");
        (void) walk64(k, fd, group, GITS_CTLR, "GITS_CTLR");
}

static void walk(Walk *k) {
        if (k->w)
                note(k, command(k->gic->fd, KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES), "pending tables");
        walk_distributor(k);
        for (k->vcpu = 0; k->vcpu < k->gic->n_vcpus; k->vcpu++) {
                walk_redistributor(k);
                walk_cpu_interface(k);
        }
        walk_its(k);
}

int gic_save(const Gic *gic, StateWriter *w) {
        Walk k = { .gic = gic, .w = w };
        int r;

        state_begin(w, "arm64-gic", 0, 1);
        walk(&k);
        r = state_end(w);
        return k.error < 0 ? k.error : r;
}

int gic_load(const Gic *gic, StateReader *reader, char **ret_message) {
        Walk k = { .gic = gic, .r = reader };
        int r;

        r = state_enter(reader, "arm64-gic", 0, 1);
        if (r < 0)
                return set_message(ret_message, r, "No usable state of the interrupt controller.");
        walk(&k);
        r = state_leave(reader, ret_message);
        if (r < 0)
                return r;
        return k.error < 0 ? set_message(ret_message, k.error, "KVM refuses the state of the interrupt controller (%s): %s.", k.what, strerror(-k.error)) : 0;
}
