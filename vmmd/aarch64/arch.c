/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* A 64-bit Arm machine: what arch.h promises, put together from the parts in this folder. */

#include <libfdt.h>
#include <linux/kvm.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/timerfd.h>

#include "arch.h"
#include "boot.h"
#include "device-tree.h"
#include "fw-cfg.h"
#include "gic.h"
#include "layout.h"
#include "overlay.h"
#include "pl031.h"
#include "pl061.h"
#include "ramoops.h"
#include "vcpu-save.h"

/* How long a key is held down: a driver looks again when its contact has stopped bouncing. One that has not looked by then is a slow one, or there is none. */
#define KEY_PRESS_USEC (100 * USEC_PER_MSEC)
#define KEY_PRESSES_MAX 100

struct Arch {
        Kvm *kvm;
        IoSpace *mmio;
        const GuestMemory *memory;
        ArchConfig config;
        VcpuSet *vcpus;
        Gic gic;
        struct kvm_vcpu_init init;
        uint64_t *mpidrs;
        bool has_pmu;
        void *fdt; /* the device tree that the guest began with, without what only it is to know */
        size_t fdt_size;

        pthread_mutex_t lock; /* the platform devices below */
        Pl031 rtc;
        Pl061 gpio;
        FwCfg *fw_cfg;
        Ramoops *ramoops;
        int clock_fd; /* timerfd of the clock's alarm */
        int key_fd;   /* timerfd: keys go up again */
        unsigned key_presses; /* how often it has run out with the guest not having looked */
        sd_event_source *clock_source, *key_source;

        StateWriter *power_on; /* what arch_reset() loads */
        bool time_goes_on;     /* while a state is on its way here */
};

size_t arch_memory_layout(uint64_t memory, ArchMemoryRange ret[static ARCH_MEMORY_RANGES_MAX]) {
        ret[0] = (ArchMemoryRange) { .guest_address = ARM64_RAM_BASE, .size = memory };
        return 1;
}

/* What a virtual machine of type 0 has (KVM API, 4.2). */
uint64_t arch_address_limit(void) {
        return UINT64_C(1) << 40;
}

void arch_pci_window(uint64_t *ret_base, uint64_t *ret_size) {
        *ret_base = ARM64_PCI_MMIO_BASE;
        *ret_size = ARM64_PCI_MMIO_SIZE;
}

int arch_serial_port(unsigned index, bool *ret_is_pio, uint64_t *ret_base, uint64_t *ret_size, unsigned *ret_gsi) {
        if (index >= ARM64_N_SERIAL)
                return -ENOENT;
        *ret_is_pio = false;
        *ret_base = ARM64_SERIAL_BASE + index * ARM64_SERIAL_STRIDE;
        *ret_size = ARM64_SERIAL_SIZE;
        *ret_gsi = ARM64_SPI_SERIAL + index;
        return 0;
}

/* --- platform devices: everything with the lock held --- */

/* KVM API, 4.25: which controller's line, and its number there. */
static void set_spi(Arch *arch, unsigned spi, bool level) {
        (void) kvm_irq_line(arch->kvm, (unsigned) KVM_ARM_IRQ_TYPE_SPI << KVM_ARM_IRQ_TYPE_SHIFT | (ARM64_INTID_SPI + spi), level);
}

static void set_rtc_irq(bool level, void *userdata) {
        set_spi(userdata, ARM64_SPI_RTC, level);
}

static void set_gpio_irq(bool level, void *userdata) {
        set_spi(userdata, ARM64_SPI_GPIO, level);
}

static void arm_rtc(uint64_t second, void *userdata) {
        Arch *arch = userdata;
        const struct itimerspec when = { .it_value = { .tv_sec = (time_t) second } };

        (void) timerfd_settime(arch->clock_fd, TFD_TIMER_ABSTIME, &when, NULL);
}

static int on_clock(sd_event_source *s, int fd, uint32_t revents, void *userdata) {
        Arch *arch = userdata;
        uint64_t count;

        if (read(fd, &count, sizeof(count)) != sizeof(count))
                return 0; /* it was armed anew meanwhile */
        (void) pthread_mutex_lock(&arch->lock);
        pl031_expired(&arch->rtc);
        (void) pthread_mutex_unlock(&arch->lock);
        return 0;
}

static int hold_keys(Arch *arch) {
        const struct itimerspec when = { .it_value = { .tv_nsec = KEY_PRESS_USEC * NSEC_PER_USEC } };

        return timerfd_settime(arch->key_fd, 0, &when, NULL) < 0 ? -errno : 0;
}

static int on_key_up(sd_event_source *s, int fd, uint32_t revents, void *userdata) {
        Arch *arch = userdata;
        uint64_t count;
        bool held;

        if (read(fd, &count, sizeof(count)) != sizeof(count))
                return 0;
        (void) pthread_mutex_lock(&arch->lock);
        held = pl061_is_unseen(&arch->gpio) && ++arch->key_presses < KEY_PRESSES_MAX;
        if (!held) {
                pl061_set_pin(&arch->gpio, ARM64_GPIO_POWER_KEY, false);
                pl061_set_pin(&arch->gpio, ARM64_GPIO_SLEEP_KEY, false);
        }
        (void) pthread_mutex_unlock(&arch->lock);
        return held ? hold_keys(arch) : 0;
}

int arch_attach_event(Arch *arch, sd_event *event) {
        int r;

        r = sd_event_add_io(event, &arch->clock_source, arch->clock_fd, EPOLLIN, on_clock, arch);
        return r < 0 ? r : sd_event_add_io(event, &arch->key_source, arch->key_fd, EPOLLIN, on_key_up, arch);
}

static void rtc_access(void *userdata, unsigned vcpu, uint64_t offset, void *data, unsigned size, bool is_write) {
        Arch *arch = userdata;

        (void) pthread_mutex_lock(&arch->lock);
        pl031_access(&arch->rtc, offset, data, size, is_write);
        (void) pthread_mutex_unlock(&arch->lock);
}

static void gpio_access(void *userdata, unsigned vcpu, uint64_t offset, void *data, unsigned size, bool is_write) {
        Arch *arch = userdata;

        (void) pthread_mutex_lock(&arch->lock);
        pl061_access(&arch->gpio, offset, data, size, is_write);
        (void) pthread_mutex_unlock(&arch->lock);
}

static void firmware_access(void *userdata, unsigned vcpu, uint64_t offset, void *data, unsigned size, bool is_write) {
        Arch *arch = userdata;

        (void) pthread_mutex_lock(&arch->lock);
        fw_cfg_access(arch->fw_cfg, offset, data, size, is_write);
        (void) pthread_mutex_unlock(&arch->lock);
}

static void on_panic(void *userdata) {
        Arch *arch = userdata;

        arch->config.event(ARCH_EVENT_PANIC, arch->config.userdata);
}

static void last_words_access(void *userdata, unsigned vcpu, uint64_t offset, void *data, unsigned size, bool is_write) {
        Arch *arch = userdata;

        (void) pthread_mutex_lock(&arch->lock);
        ramoops_access(arch->ramoops, offset, data, size, is_write);
        (void) pthread_mutex_unlock(&arch->lock);
}

static int add_platform_devices(Arch *arch, char **ret_message) {
        int r;

        r = fw_cfg_new(arch->config.smbios_strings, &arch->fw_cfg, ret_message);
        if (r >= 0)
                r = ramoops_new(on_panic, arch, &arch->ramoops);
        if (r < 0)
                return r;
        arch->clock_fd = timerfd_create(CLOCK_REALTIME, TFD_CLOEXEC | TFD_NONBLOCK);
        arch->key_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
        if (arch->clock_fd < 0 || arch->key_fd < 0)
                return -errno;
        pl031_init(&arch->rtc, set_rtc_irq, arm_rtc, arch);
        pl061_init(&arch->gpio, set_gpio_irq, arch);
        r = io_space_add(arch->mmio, ARM64_RTC_BASE, ARM64_PRIMECELL_SIZE, rtc_access, arch);
        if (r >= 0)
                r = io_space_add(arch->mmio, ARM64_GPIO_BASE, ARM64_PRIMECELL_SIZE, gpio_access, arch);
        if (r >= 0)
                r = io_space_add(arch->mmio, ARM64_FW_CFG_BASE, ARM64_FW_CFG_SIZE, firmware_access, arch);
        if (r >= 0)
                r = io_space_add(arch->mmio, ARM64_RAMOOPS_BASE, ARM64_RAMOOPS_SIZE, last_words_access, arch);
        return r;
}

/* --- life --- */

int arch_new(Kvm *kvm, IoSpace *pio, IoSpace *mmio, const GuestMemory *memory, const ArchConfig *config, Arch **ret,
        char **ret_message) {
        _cleanup_(arch_freep) Arch *arch = NULL;
        int r;

        arch = calloc(1, sizeof(Arch));
        if (!arch)
                return -ENOMEM;
        arch->kvm = kvm;
        arch->mmio = mmio;
        arch->memory = memory;
        arch->config = *config;
        arch->clock_fd = arch->key_fd = -EBADF;
        arch->gic = (Gic) { .fd = -EBADF, .its_fd = -EBADF };
        (void) pthread_mutex_init(&arch->lock, NULL);

        if (config->n_vcpus > ARM64_VCPUS_MAX)
                return set_message(ret_message, -ERANGE, "The definition asks for %u vCPUs; on this architecture there can be %u.",
                        config->n_vcpus, ARM64_VCPUS_MAX);
        arch->mpidrs = calloc(config->n_vcpus, sizeof(uint64_t));
        if (!arch->mpidrs)
                return -ENOMEM;
        r = gic_new(kvm, &arch->gic, ret_message);
        if (r >= 0)
                r = add_platform_devices(arch, ret_message);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(arch);
        return 0;
}

Arch *arch_free(Arch *arch) {
        if (!arch)
                return NULL;
        (void) sd_event_source_disable_unref(arch->clock_source);
        (void) sd_event_source_disable_unref(arch->key_source);
        arch->clock_fd = safe_close(arch->clock_fd);
        arch->key_fd = safe_close(arch->key_fd);
        gic_done(&arch->gic);
        (void) fw_cfg_free(arch->fw_cfg);
        (void) ramoops_free(arch->ramoops);
        (void) state_writer_free(arch->power_on);
        (void) pthread_mutex_destroy(&arch->lock);
        free(arch->mpidrs);
        free(arch->fdt);
        return mfree(arch);
}

int arch_attach_pci(Arch *arch, PciBus *bus) {
        return io_space_add(arch->mmio, ARM64_PCI_ECAM_BASE, ARM64_PCI_ECAM_SIZE, pci_ecam_access, bus);
}

/* --- vCPUs --- */

/* What a vCPU has beyond the architecture's minimum, where this host's KVM can give it. */
static void choose_features(Arch *arch) {
        uint32_t features = 1u << KVM_ARM_VCPU_PSCI_0_2;

        arch->has_pmu = kvm_check_extension(arch->kvm, KVM_CAP_ARM_PMU_V3) > 0;
        if (arch->has_pmu)
                features |= 1u << KVM_ARM_VCPU_PMU_V3;
        /* One is not to be had without the other. */
        if (kvm_check_extension(arch->kvm, KVM_CAP_ARM_PTRAUTH_ADDRESS) > 0 && kvm_check_extension(arch->kvm, KVM_CAP_ARM_PTRAUTH_GENERIC) > 0)
                features |= 1u << KVM_ARM_VCPU_PTRAUTH_ADDRESS | 1u << KVM_ARM_VCPU_PTRAUTH_GENERIC;
        arch->init.features[0] |= features;
}

/* Also puts it back to what it is at power-on: all but the first wait for PSCI's CPU_ON. */
static int init_vcpu(const Arch *arch, const Vcpu *vcpu) {
        struct kvm_vcpu_init init = arch->init;

        if (vcpu->index > 0)
                init.features[0] |= 1u << KVM_ARM_VCPU_POWER_OFF;
        return ioctl(vcpu->fd, KVM_ARM_VCPU_INIT, &init) < 0 ? -errno : 0;
}

static int init_pmu(const Vcpu *vcpu) {
        int intid = ARM64_INTID_PPI + ARM64_PPI_PMU;
        struct kvm_device_attr irq = {
                .group = KVM_ARM_VCPU_PMU_V3_CTRL, .attr = KVM_ARM_VCPU_PMU_V3_IRQ, .addr = (uint64_t) (uintptr_t) &intid,
        };
        struct kvm_device_attr init = { .group = KVM_ARM_VCPU_PMU_V3_CTRL, .attr = KVM_ARM_VCPU_PMU_V3_INIT };

        return ioctl(vcpu->fd, KVM_SET_DEVICE_ATTR, &irq) < 0 || ioctl(vcpu->fd, KVM_SET_DEVICE_ATTR, &init) < 0 ? -errno : 0;
}

static int init_vcpus(Arch *arch, char **ret_message) {
        VcpuSet *vcpus = arch->vcpus;
        int r = 0;

        if (ioctl(arch->kvm->vm_fd, KVM_ARM_PREFERRED_TARGET, &arch->init) < 0)
                return set_message(ret_message, -errno, "KVM_ARM_PREFERRED_TARGET failed: %s.", strerror(errno));
        choose_features(arch);
        for (unsigned i = 0; i < vcpus->n_vcpus && r >= 0; i++) {
                r = init_vcpu(arch, &vcpus->vcpus[i]);
                if (r >= 0)
                        r = arm64_vcpu_mpidr(&vcpus->vcpus[i], &arch->mpidrs[i]);
                if (r < 0)
                        return set_message(ret_message, r, "KVM cannot initialize vCPU %u: %s.", i, strerror(-r));
        }
        arch->gic.mpidrs = arch->mpidrs;
        arch->gic.n_vcpus = vcpus->n_vcpus;
        r = gic_init(arch->kvm, &arch->gic, ret_message);
        for (unsigned i = 0; i < vcpus->n_vcpus && arch->has_pmu && r >= 0; i++) {
                r = init_pmu(&vcpus->vcpus[i]);
                if (r < 0)
                        return set_message(ret_message, r, "KVM cannot initialize the performance monitor of vCPU %u: %s.", i, strerror(-r));
        }
        return r;
}

static int save_cpu_side(Arch *arch, StateWriter *w) {
        int r;

        r = gic_save(&arch->gic, w);
        for (unsigned i = 0; i < arch->vcpus->n_vcpus && r >= 0; i++)
                r = arm64_vcpu_save(&arch->vcpus->vcpus[i], w);
        return r;
}

int arch_setup_vcpus(Arch *arch, VcpuSet *vcpus, char **ret_message) {
        int r;

        arch->vcpus = vcpus;
        r = init_vcpus(arch, ret_message);
        if (r < 0)
                return r;
        r = state_writer_new(&arch->power_on);
        if (r >= 0)
                r = save_cpu_side(arch, arch->power_on);
        return r < 0 ? set_message(ret_message, r, "Cannot read the vCPUs' first state: %s.", strerror(-r)) : 0;
}

/* --- boot --- */

static int make_fdt(Arch *arch, const ArchBoot *boot, const Arm64BootEntry *entry, void **ret, size_t *ret_size, char **ret_message) {
        Arm64Cache caches[ARM64_CACHES_MAX];
        Arm64FdtInput input = {
                .mpidrs = arch->mpidrs,
                .n_vcpus = arch->config.n_vcpus,
                .caches = caches,
                .n_caches = arm64_vcpu_caches(&arch->vcpus->vcpus[0], caches),
                .has_pmu = arch->has_pmu,
                .ram_size = guest_memory_size(arch->memory),
                .serial_ports = arch->config.serial_ports,
                .command_line = boot->command_line,
                .initrd_address = entry->initrd_address,
                .initrd_size = entry->initrd_size,
        };

        if (getrandom(input.rng_seed, sizeof(input.rng_seed), 0) != sizeof(input.rng_seed) ||
                getrandom(&input.kaslr_seed, sizeof(input.kaslr_seed), 0) != sizeof(input.kaslr_seed))
                return set_message(ret_message, -EIO, "Cannot get random numbers for the guest.");
        return arm64_fdt_build(&input, ret, ret_size, ret_message);
}

static void empty_property(void *fdt, const char *name) {
        int length = 0, node = fdt_path_offset(fdt, "/chosen");
        void *p = fdt_getprop_w(fdt, node, name, &length);

        if (p)
                explicit_bzero(p, (size_t) length);
}

/* Takes the tree over. Whoever may look at the machine may see it, so its seeds go. */
static void keep_fdt(Arch *arch, void *fdt, size_t size) {
        empty_property(fdt, "rng-seed");
        empty_property(fdt, "kaslr-seed");
        free(arch->fdt);
        arch->fdt = fdt;
        arch->fdt_size = size;
}

/* booting.rst, "primary CPU general-purpose register settings" */
static int set_boot_registers(const Vcpu *vcpu, const Arm64BootEntry *entry) {
        const struct {
                uint64_t id;
                uint64_t value;
        } registers[] = {
                { KVM_REG_ARM_CORE_REG(regs.pc), entry->pc },
                { KVM_REG_ARM_CORE_REG(regs.regs[0]), entry->fdt_address },
                { KVM_REG_ARM_CORE_REG(regs.regs[1]), 0 },
                { KVM_REG_ARM_CORE_REG(regs.regs[2]), 0 },
                { KVM_REG_ARM_CORE_REG(regs.regs[3]), 0 },
        };
        int r = 0;

        for (size_t i = 0; i < ELEMENTSOF(registers) && r >= 0; i++)
                r = arm64_vcpu_set(vcpu, KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE | registers[i].id, &registers[i].value);
        return r;
}

int arch_boot(Arch *arch, const ArchBoot *boot, char **ret_message) {
        const Arm64BootInput input = {
                .kernel_fd = boot->kernel_fd,
                .kernel_name = boot->kernel_name,
                .initrd_fd = boot->initrd_fd,
                .initrd_name = boot->initrd_name,
        };
        _cleanup_free_ void *fdt = NULL;
        Arm64BootEntry entry;
        size_t size = 0;
        int r;

        r = arm64_load_boot(arch->memory, &input, &entry, ret_message);
        if (r >= 0)
                r = make_fdt(arch, boot, &entry, &fdt, &size, ret_message);
        if (r >= 0 && boot->overlay_fd >= 0)
                r = arm64_overlay_apply(boot->overlay_fd, boot->overlay_name ?: "the device tree overlay", &fdt, &size, ret_message);
        if (r >= 0)
                r = arm64_write_fdt(arch->memory, &entry, fdt, size, ret_message);
        if (r < 0)
                return r;
        keep_fdt(arch, TAKE_PTR(fdt), size);
        r = set_boot_registers(&arch->vcpus->vcpus[0], &entry);
        return r < 0 ? set_message(ret_message, r, "Cannot set the registers of the first vCPU: %s.", strerror(-r)) : 0;
}

int arch_device_tree(const Arch *arch, void **ret, size_t *ret_size) {
        void *copy;

        if (!arch->fdt)
                return -EOPNOTSUPP; /* nothing has booted yet */
        copy = malloc(arch->fdt_size);
        if (!copy)
                return -ENOMEM;
        memcpy(copy, arch->fdt, arch->fdt_size);
        *ret = copy;
        *ret_size = arch->fdt_size;
        return 0;
}

bool arch_has_device_tree(void) {
        return true;
}

/* --- state --- */

/* The host's counter, which the guest's are a constant away from. Linux lets programs read it. */
static uint64_t host_counter(void) {
        uint64_t v;

        __asm__ volatile("isb; mrs %0, cntvct_el0" : "=r"(v)::"memory");
        return v;
}

static int save_clock(StateWriter *w) {
        state_begin(w, "arm64-clock", 0, 1);
        state_put_u64(w, host_counter());
        return state_end(w);
}

static int load_clock(StateReader *r, uint64_t *ret_host, char **ret_message) {
        int k;

        k = state_enter(r, "arm64-clock", 0, 1);
        if (k < 0)
                return set_message(ret_message, k, "No usable state of the counters.");
        *ret_host = state_get_u64(r);
        return state_leave(r, ret_message);
}

static int save_fdt(const Arch *arch, StateWriter *w) {
        state_begin(w, "arm64-fdt", 0, 1);
        state_put_blob(w, arch->fdt, arch->fdt_size);
        return state_end(w);
}

static int load_fdt(Arch *arch, StateReader *r, char **ret_message) {
        _cleanup_free_ void *copy = NULL;
        const void *data;
        size_t size;
        int k;

        k = state_enter(r, "arm64-fdt", 0, 1);
        if (k < 0)
                return set_message(ret_message, k, "No usable state of the device tree.");
        data = state_get_blob_view(r, ARM64_FDT_MAX, &size);
        if (data) {
                copy = malloc(size + 1);
                if (!copy)
                        return -ENOMEM;
                memcpy(copy, data, size);
        }
        k = state_leave(r, ret_message);
        if (k < 0)
                return k;
        if (!copy || fdt_check_full(copy, size) < 0)
                return set_message(ret_message, -EBADMSG, "The state's device tree is broken.");
        keep_fdt(arch, TAKE_PTR(copy), size);
        return 0;
}

void arch_set_time_goes_on(Arch *arch, bool goes_on) {
        arch->time_goes_on = goes_on;
}

int arch_save(Arch *arch, StateWriter *w) {
        int r;

        r = save_clock(w);
        if (r >= 0)
                r = save_cpu_side(arch, w);
        (void) pthread_mutex_lock(&arch->lock);
        if (r >= 0)
                r = pl031_save(&arch->rtc, w);
        if (r >= 0)
                r = pl061_save(&arch->gpio, w);
        if (r >= 0)
                r = fw_cfg_save(arch->fw_cfg, w);
        if (r >= 0)
                r = ramoops_save(arch->ramoops, w);
        (void) pthread_mutex_unlock(&arch->lock);
        return r < 0 ? r : save_fdt(arch, w);
}

static int load_cpu_side(Arch *arch, const uint64_t *advance, StateReader *r, char **ret_message) {
        int k;

        k = gic_load(&arch->gic, r, ret_message);
        for (unsigned i = 0; i < arch->vcpus->n_vcpus && k >= 0; i++)
                k = arm64_vcpu_load(&arch->vcpus->vcpus[i], advance, r, ret_message);
        return k;
}

int arch_load(Arch *arch, StateReader *r, char **ret_message) {
        uint64_t host = 0, advance;
        int k;

        k = load_clock(r, &host, ret_message);
        if (k < 0)
                return k;
        advance = arch->time_goes_on ? host_counter() - host : 0;
        k = load_cpu_side(arch, &advance, r, ret_message);
        (void) pthread_mutex_lock(&arch->lock);
        if (k >= 0)
                k = pl031_load(&arch->rtc, r, ret_message);
        if (k >= 0)
                k = pl061_load(&arch->gpio, r, ret_message);
        if (k >= 0)
                k = fw_cfg_load(arch->fw_cfg, r, ret_message);
        if (k >= 0)
                k = ramoops_load(arch->ramoops, r, ret_message);
        (void) pthread_mutex_unlock(&arch->lock);
        if (k >= 0)
                k = load_fdt(arch, r, ret_message);
        /* A key that was down is to go up. */
        return k < 0 ? k : hold_keys(arch);
}

int arch_reset(Arch *arch, char **ret_message) {
        _cleanup_(state_reader_freep) StateReader *reader = NULL;
        const void *data;
        size_t size;
        int r = 0;

        (void) pthread_mutex_lock(&arch->lock);
        pl031_reset(&arch->rtc); /* the clock goes on, as with a battery */
        pl061_reset(&arch->gpio);
        fw_cfg_reset(arch->fw_cfg);
        /* The guest's last words are for its next boot. */
        (void) pthread_mutex_unlock(&arch->lock);

        for (unsigned i = 0; i < arch->vcpus->n_vcpus && r >= 0; i++)
                r = init_vcpu(arch, &arch->vcpus->vcpus[i]);
        if (r < 0)
                return set_message(ret_message, r, "KVM cannot initialize the vCPUs again: %s.", strerror(-r));
        r = state_writer_finish(arch->power_on, &data, &size);
        if (r >= 0)
                r = state_reader_new(data, size, &reader, ret_message);
        return r < 0 ? r : load_cpu_side(arch, NULL, reader, ret_message);
}

/* --- what the host asks for --- */

void arch_press_button(Arch *arch, ArchButton button) {
        (void) pthread_mutex_lock(&arch->lock);
        arch->key_presses = 0;
        pl061_set_pin(&arch->gpio, button == ARCH_BUTTON_POWER ? ARM64_GPIO_POWER_KEY : ARM64_GPIO_SLEEP_KEY, true);
        (void) pthread_mutex_unlock(&arch->lock);
        (void) hold_keys(arch);
}

/* Linux knows two ways, ACPI and ports of PCI Express; here is neither. */
bool arch_has_pci_hotplug(void) {
        return false;
}

void arch_pci_notify(Arch *arch, unsigned slot, ArchPciNotification notification) {
        /* There is nobody who hears of it. */
}

int arch_inject_nmi(Arch *arch, Vcpu *vcpu) {
        /* KVM gives these guests no interrupt that they cannot mask. */
        return -EOPNOTSUPP;
}
