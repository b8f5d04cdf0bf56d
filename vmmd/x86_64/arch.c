/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The PC: what arch.h promises, put together from the parts in this folder. */

#include <linux/kvm.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/timerfd.h>
#include <time.h>

#include "acpi-hotplug.h"
#include "acpi-pm.h"
#include "acpi.h"
#include "arch.h"
#include "boot.h"
#include "cmos.h"
#include "cpuid.h"
#include "i8042.h"
#include "layout.h"
#include "smbios.h"
#include "vcpu-save.h"
#include "vcpu-state.h"

#define CPUID_ENTRIES_MAX 256

/* A message to local APICs (Intel SDM 3, 11.11). */
#define MSI_ADDRESS 0xFEE00000U
#define MSI_DESTINATION_SHIFT 12
#define MSI_DELIVERY_NMI 0x400U

struct Arch {
        Kvm *kvm;
        IoSpace *pio, *mmio;
        const GuestMemory *memory;
        ArchConfig config;
        VcpuSet *vcpus;
        PciBus *pci;

        pthread_mutex_t lock; /* the platform devices below */
        AcpiPm pm;
        AcpiHotplug hotplug;
        Cmos cmos;
        I8042 i8042;
        int clock_fd; /* timerfd of the CMOS clock's alarm */
        sd_event_source *clock_source;

        StateWriter *power_on; /* what arch_reset() loads */
        bool time_goes_on;     /* while a state is on its way here */
};

size_t arch_memory_layout(uint64_t memory, ArchMemoryRange ret[static ARCH_MEMORY_RANGES_MAX]) {
        ret[0] = (ArchMemoryRange) { .guest_address = 0, .size = MIN(memory, (uint64_t) X86_LOW_RAM_END) };
        if (memory <= X86_LOW_RAM_END)
                return 1;
        ret[1] = (ArchMemoryRange) { .guest_address = X86_HIGH_RAM_START, .size = memory - X86_LOW_RAM_END };
        return 2;
}

/* AMD64 APM vol. 3, E.4.7: every processor of this architecture has the leaf. KVM hands it on. */
uint64_t arch_address_limit(void) {
        unsigned eax = 0x80000008, ebx, ecx = 0, edx;

        __asm__("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
        return UINT64_C(1) << MIN(eax & 0xff, 52u);
}

void arch_pci_window(uint64_t *ret_base, uint64_t *ret_size) {
        *ret_base = X86_PCI_MMIO_BASE;
        *ret_size = X86_PCI_MMIO_SIZE;
}

int arch_serial_port(unsigned index, bool *ret_is_pio, uint64_t *ret_base, uint64_t *ret_size, unsigned *ret_gsi) {
        static const struct {
                uint16_t base;
                uint8_t irq;
        } ports[X86_N_COM] = {
                { X86_PORT_COM1, X86_IRQ_COM1 }, { X86_PORT_COM2, X86_IRQ_COM2 },
                { X86_PORT_COM3, X86_IRQ_COM1 }, { X86_PORT_COM4, X86_IRQ_COM2 },
        };

        if (index >= X86_N_COM)
                return -ENOENT;
        *ret_is_pio = true;
        *ret_base = ports[index].base;
        *ret_size = X86_PORT_COM_SIZE;
        *ret_gsi = ports[index].irq;
        return 0;
}

/* --- platform devices --- */

/* One line for both: it is raised while either says so. With the lock held. */
static void set_sci(bool level, void *userdata) {
        Arch *arch = userdata;

        (void) kvm_irq_line(arch->kvm, X86_IRQ_SCI, arch->pm.sci || arch->hotplug.sci);
}

static void pm_power_off(void *userdata) {
        Arch *arch = userdata;

        arch->config.event(ARCH_EVENT_POWER_OFF, arch->config.userdata);
}

static void machine_reset_asked(void *userdata) {
        Arch *arch = userdata;

        arch->config.event(ARCH_EVENT_RESET, arch->config.userdata);
}

/* With the lock held, as all of the clock. */
static void set_rtc_irq(bool level, void *userdata) {
        Arch *arch = userdata;

        (void) kvm_irq_line(arch->kvm, X86_IRQ_RTC, level);
}

static void arm_rtc(uint64_t nsec, void *userdata) {
        Arch *arch = userdata;
        const struct itimerspec when = {
                .it_value = { .tv_sec = (time_t) (nsec / NSEC_PER_SEC), .tv_nsec = (long) (nsec % NSEC_PER_SEC) },
        };

        (void) timerfd_settime(arch->clock_fd, 0, &when, NULL);
}

static int on_clock(sd_event_source *s, int fd, uint32_t revents, void *userdata) {
        Arch *arch = userdata;
        uint64_t count;

        if (read(fd, &count, sizeof(count)) != sizeof(count))
                return 0; /* set anew meanwhile */
        (void) pthread_mutex_lock(&arch->lock);
        cmos_expired(&arch->cmos);
        (void) pthread_mutex_unlock(&arch->lock);
        return 0;
}

int arch_attach_event(Arch *arch, sd_event *event) {
        return sd_event_add_io(event, &arch->clock_source, arch->clock_fd, EPOLLIN, on_clock, arch);
}

/* One handler a register block: takes the lock and chooses by direction. */
#define DEFINE_BLOCK(name, object, read_function, write_function)                                              \
        static void name##_access(                                                                             \
                void *userdata, unsigned vcpu, uint64_t offset, void *data, unsigned size, bool is_write) {    \
                Arch *arch = userdata;                                                                         \
                                                                                                               \
                (void) pthread_mutex_lock(&arch->lock);                                                        \
                if (is_write)                                                                                  \
                        write_function(&arch->object, offset, data, size);                                     \
                else                                                                                           \
                        read_function(&arch->object, offset, data, size);                                      \
                (void) pthread_mutex_unlock(&arch->lock);                                                      \
        }
DEFINE_BLOCK(pm_event, pm, acpi_pm_event_read, acpi_pm_event_write)
DEFINE_BLOCK(pm_control, pm, acpi_pm_control_read, acpi_pm_control_write)
DEFINE_BLOCK(gpe, hotplug, acpi_hotplug_gpe_read, acpi_hotplug_gpe_write)
DEFINE_BLOCK(cmos, cmos, cmos_read, cmos_write)
DEFINE_BLOCK(i8042, i8042, i8042_read, i8042_write)

static void i8042_command_access(void *userdata, unsigned vcpu, uint64_t offset, void *data, unsigned size, bool is_write) {
        i8042_access(userdata, vcpu, offset + (X86_PORT_I8042_COMMAND - X86_PORT_I8042_DATA), data, size, is_write);
}

static void hotplug_access(void *userdata, unsigned vcpu, uint64_t offset, void *data, unsigned size, bool is_write) {
        Arch *arch = userdata;
        uint32_t ejected = 0;

        (void) pthread_mutex_lock(&arch->lock);
        if (is_write)
                ejected = acpi_hotplug_write(&arch->hotplug, offset, data, size);
        else
                acpi_hotplug_read(&arch->hotplug, offset, data, size);
        (void) pthread_mutex_unlock(&arch->lock);
        if (ejected != 0 && arch->config.eject)
                arch->config.eject(ejected, arch->config.userdata);
}

/* 0xCF8 is PCI's address register for 32-bit accesses; a byte at 0xCF9 is the reset register. */
static void pci_address_access(void *userdata, unsigned vcpu, uint64_t offset, void *data, unsigned size, bool is_write) {
        Arch *arch = userdata;

        if (offset == X86_PORT_RESET - X86_PORT_PCI_ADDRESS && size == 1) {
                (void) pthread_mutex_lock(&arch->lock);
                if (is_write)
                        acpi_pm_reset_write(&arch->pm, 0, data, size);
                else
                        acpi_pm_reset_read(&arch->pm, 0, data, size);
                (void) pthread_mutex_unlock(&arch->lock);
        } else if (arch->pci)
                pci_port_access(arch->pci, vcpu, offset, data, size, is_write);
}

static int add_platform_devices(Arch *arch) {
        static const AcpiPmCallbacks pm_callbacks = {
                .set_sci = set_sci, .power_off = pm_power_off, .reset = machine_reset_asked,
        };
        static const AcpiHotplugCallbacks hotplug_callbacks = { .set_sci = set_sci };
        const struct {
                uint64_t base, size;
                IoHandler handler;
        } blocks[] = {
                { X86_PORT_PM1_EVENT, X86_PORT_PM1_EVENT_SIZE, pm_event_access },
                { X86_PORT_PM1_CONTROL, X86_PORT_PM1_CONTROL_SIZE, pm_control_access },
                { X86_PORT_GPE0, X86_PORT_GPE0_SIZE, gpe_access },
                { X86_PORT_HOTPLUG, X86_PORT_HOTPLUG_SIZE, hotplug_access },
                { X86_PORT_CMOS, X86_PORT_CMOS_SIZE, cmos_access },
                { X86_PORT_I8042_DATA, 1, i8042_access },
                { X86_PORT_I8042_COMMAND, 1, i8042_command_access },
                { X86_PORT_PCI_ADDRESS, 8, pci_address_access },
        };
        int r = 0;

        acpi_pm_init(&arch->pm, &pm_callbacks, arch);
        acpi_hotplug_init(&arch->hotplug, &hotplug_callbacks, arch);
        arch->clock_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
        if (arch->clock_fd < 0)
                return -errno;
        cmos_init(&arch->cmos);
        cmos_set_interrupt(&arch->cmos, set_rtc_irq, arm_rtc, arch);
        i8042_init(&arch->i8042, machine_reset_asked, arch);
        for (size_t i = 0; i < ELEMENTSOF(blocks) && r >= 0; i++)
                r = io_space_add(arch->pio, blocks[i].base, blocks[i].size, blocks[i].handler, arch);
        return r;
}

/* --- interrupt controllers --- */

/* APIC ids beyond 8 bits, in the LAPIC's state and in the messages of interrupts; and 255 is an id like others, not everybody's. */
static void enable_wide_apic_ids(Arch *arch) {
        struct kvm_enable_cap cap = {
                .cap = KVM_CAP_X2APIC_API,
                .args[0] = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK,
        };

        if (kvm_check_extension(arch->kvm, KVM_CAP_X2APIC_API) > 0)
                (void) ioctl(arch->kvm->vm_fd, KVM_ENABLE_CAP, &cap);
}

static int create_irqchip(Arch *arch, char **ret_message) {
        struct kvm_pit_config pit = { .flags = KVM_PIT_SPEAKER_DUMMY };
        uint64_t identity_map = X86_KVM_IDENTITY_MAP;
        int vm = arch->kvm->vm_fd;
        const char *step = NULL;

        if (ioctl(vm, KVM_SET_IDENTITY_MAP_ADDR, &identity_map) < 0)
                step = "KVM_SET_IDENTITY_MAP_ADDR";
        else if (ioctl(vm, KVM_SET_TSS_ADDR, (unsigned long) X86_KVM_TSS) < 0)
                step = "KVM_SET_TSS_ADDR";
        else if (ioctl(vm, KVM_CREATE_IRQCHIP, 0UL) < 0)
                step = "KVM_CREATE_IRQCHIP";
        else if (ioctl(vm, KVM_CREATE_PIT2, &pit) < 0)
                step = "KVM_CREATE_PIT2";
        if (step)
                return set_message(ret_message, -errno, "%s failed: %s.", step, strerror(errno));

        enable_wide_apic_ids(arch);
        /* As KVM's own default table: GSIs 0 to 15 reach PIC and IOAPIC, 16 to 23 the IOAPIC alone; GSI 0 is pin 2 there. */
        for (unsigned gsi = 0; gsi < X86_N_GSI; gsi++) {
                if (gsi < 16)
                        kvm_route_irqchip(arch->kvm, gsi, gsi < 8 ? KVM_IRQCHIP_PIC_MASTER : KVM_IRQCHIP_PIC_SLAVE, gsi % 8);
                if (gsi != 2)
                        kvm_route_irqchip(arch->kvm, gsi, KVM_IRQCHIP_IOAPIC, gsi == 0 ? 2 : gsi);
        }
        kvm_route_set_first_msi(arch->kvm, X86_N_GSI);
        return kvm_route_commit(arch->kvm);
}

int arch_new(Kvm *kvm, IoSpace *pio, IoSpace *mmio, const GuestMemory *memory, const ArchConfig *config, Arch **ret,
        char **ret_message) {
        _cleanup_(arch_freep) Arch *arch = NULL;
        int r;

        arch = calloc(1, sizeof(Arch));
        if (!arch)
                return -ENOMEM;
        arch->kvm = kvm;
        arch->pio = pio;
        arch->mmio = mmio;
        arch->memory = memory;
        arch->config = *config;
        arch->clock_fd = -EBADF;
        (void) pthread_mutex_init(&arch->lock, NULL);

        r = create_irqchip(arch, ret_message);
        if (r >= 0)
                r = add_platform_devices(arch);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(arch);
        return 0;
}

Arch *arch_free(Arch *arch) {
        if (!arch)
                return NULL;
        (void) sd_event_source_disable_unref(arch->clock_source);
        arch->clock_fd = safe_close(arch->clock_fd);
        (void) state_writer_free(arch->power_on);
        (void) pthread_mutex_destroy(&arch->lock);
        return mfree(arch);
}

int arch_attach_pci(Arch *arch, PciBus *bus) {
        arch->pci = bus;
        return io_space_add(arch->mmio, X86_PCI_ECAM_BASE, X86_PCI_ECAM_SIZE, pci_ecam_access, bus);
}

/* --- vCPUs --- */

static int set_cpuid(Arch *arch, const struct kvm_cpuid2 *supported, const Vcpu *vcpu) {
        _cleanup_free_ struct kvm_cpuid2 *cpuid = NULL;
        int tsc_khz = ioctl(vcpu->fd, KVM_GET_TSC_KHZ, 0), r;
        X86CpuidInput input = {
                .vcpu_index = vcpu->index,
                .n_vcpus = arch->config.n_vcpus,
                .tsc_khz = tsc_khz > 0 ? (uint32_t) tsc_khz : 0,
                .tsc_deadline = kvm_check_extension(arch->kvm, KVM_CAP_TSC_DEADLINE_TIMER) > 0,
        };

        r = x86_cpuid_build(supported, &input, &cpuid);
        if (r < 0)
                return r;
        return ioctl(vcpu->fd, KVM_SET_CPUID2, cpuid) < 0 ? -errno : 0;
}

static int set_power_on_registers(const Vcpu *vcpu) {
        struct kvm_lapic_state lapic;
        X86Msrs msrs;

        if (ioctl(vcpu->fd, KVM_GET_LAPIC, &lapic) < 0)
                return -errno;
        x86_boot_lapic(vcpu->index == 0, &lapic);
        if (ioctl(vcpu->fd, KVM_SET_LAPIC, &lapic) < 0)
                return -errno;
        x86_boot_msrs(&msrs);
        return ioctl(vcpu->fd, KVM_SET_MSRS, &msrs) < 0 ? -errno : 0;
}

int arch_setup_vcpus(Arch *arch, VcpuSet *vcpus, char **ret_message) {
        _cleanup_free_ struct kvm_cpuid2 *supported = NULL;
        int r = 0;

        arch->vcpus = vcpus;
        supported = calloc(1, sizeof(*supported) + CPUID_ENTRIES_MAX * sizeof(supported->entries[0]));
        if (!supported)
                return -ENOMEM;
        supported->nent = CPUID_ENTRIES_MAX;
        if (ioctl(arch->kvm->kvm_fd, KVM_GET_SUPPORTED_CPUID, supported) < 0)
                return set_message(ret_message, -errno, "KVM_GET_SUPPORTED_CPUID failed: %s.", strerror(errno));

        for (unsigned i = 0; i < vcpus->n_vcpus && r >= 0; i++) {
                r = set_cpuid(arch, supported, &vcpus->vcpus[i]);
                if (r < 0)
                        return set_message(ret_message, r, "KVM refuses the CPUID of vCPU %u: %s.", i, strerror(-r));
                r = set_power_on_registers(&vcpus->vcpus[i]);
                if (r < 0)
                        return set_message(ret_message, r, "Cannot set the first registers of vCPU %u: %s.", i, strerror(-r));
        }

        r = state_writer_new(&arch->power_on);
        if (r >= 0)
                r = arch_save(arch, arch->power_on);
        return r < 0 ? set_message(ret_message, r, "Cannot read the vCPUs' first state: %s.", strerror(-r)) : 0;
}

static int set_boot_registers(const Vcpu *vcpu, const X86BootEntry *entry) {
        struct kvm_sregs sregs;
        struct kvm_regs regs;

        x86_boot_sregs(entry, &sregs);
        x86_boot_regs(entry, &regs);
        return ioctl(vcpu->fd, KVM_SET_SREGS, &sregs) < 0 || ioctl(vcpu->fd, KVM_SET_REGS, &regs) < 0 ? -errno : 0;
}

int arch_boot(Arch *arch, const ArchBoot *boot, char **ret_message) {
        X86AcpiInput acpi = { .n_vcpus = arch->config.n_vcpus, .com_mask = (uint8_t) arch->config.serial_ports };
        X86SmbiosInput smbios = {
                .machine_name = arch->config.machine_name,
                .n_vcpus = arch->config.n_vcpus,
                .oem_strings = arch->config.smbios_strings,
        };
        X86BootInput input = {
                .kernel_fd = boot->kernel_fd,
                .kernel_name = boot->kernel_name,
                .initrd_fd = boot->initrd_fd,
                .initrd_name = boot->initrd_name,
                .command_line = boot->command_line,
        };
        X86BootEntry entry;
        int r;

        r = x86_acpi_write(arch->memory, &acpi, &input.rsdp_address, ret_message);
        if (r < 0)
                return r;
        x86_smbios_uuid(arch->config.machine_name, smbios.uuid);
        r = x86_smbios_write(arch->memory, &smbios, ret_message);
        if (r < 0)
                return r;
        r = x86_load_boot(arch->memory, &input, &entry, ret_message);
        if (r < 0)
                return r;
        r = set_boot_registers(&arch->vcpus->vcpus[0], &entry);
        return r < 0 ? set_message(ret_message, r, "Cannot set the registers of the first vCPU: %s.", strerror(-r)) : 0;
}

/* --- state --- */

static int save_irqchip(Arch *arch, StateWriter *w) {
        struct kvm_irqchip chip;
        struct kvm_pit_state2 pit;

        state_begin(w, "x86-irqchip", 0, 1);
        for (unsigned i = 0; i <= KVM_IRQCHIP_IOAPIC; i++) {
                chip = (struct kvm_irqchip) { .chip_id = i };
                if (ioctl(arch->kvm->vm_fd, KVM_GET_IRQCHIP, &chip) < 0)
                        return -errno;
                state_put_blob(w, &chip, sizeof(chip));
        }
        if (ioctl(arch->kvm->vm_fd, KVM_GET_PIT2, &pit) < 0)
                return -errno;
        state_put_blob(w, &pit, sizeof(pit));
        return state_end(w);
}

static int load_irqchip(Arch *arch, StateReader *r, char **ret_message) {
        struct kvm_irqchip chips[KVM_IRQCHIP_IOAPIC + 1];
        struct kvm_pit_state2 pit;
        int k;

        k = state_enter(r, "x86-irqchip", 0, 1);
        if (k < 0)
                return set_message(ret_message, k, "No usable state of the interrupt controllers.");
        for (size_t i = 0; i < ELEMENTSOF(chips); i++)
                state_get_blob(r, &chips[i], sizeof(chips[i]));
        state_get_blob(r, &pit, sizeof(pit));
        k = state_leave(r, ret_message);
        if (k < 0)
                return k;

        for (size_t i = 0; i < ELEMENTSOF(chips); i++)
                if (ioctl(arch->kvm->vm_fd, KVM_SET_IRQCHIP, &chips[i]) < 0)
                        return set_message(ret_message, -errno, "KVM_SET_IRQCHIP failed: %s.", strerror(errno));
        if (ioctl(arch->kvm->vm_fd, KVM_SET_PIT2, &pit) < 0)
                return set_message(ret_message, -errno, "KVM_SET_PIT2 failed: %s.", strerror(errno));
        return 0;
}

/* --- time --- */

typedef struct Moment {
        uint64_t host_tsc;
        uint64_t host_nsec; /* CLOCK_BOOTTIME */
        uint64_t guest_nsec; /* KVM's paravirtual clock */
} Moment;

static uint64_t read_tsc(void) {
        uint32_t low, high;

        __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
        return (uint64_t) high << 32 | low;
}

static uint64_t boot_time_nsec(void) {
        struct timespec ts;

        (void) clock_gettime(CLOCK_BOOTTIME, &ts);
        return (uint64_t) ts.tv_sec * NSEC_PER_SEC + (uint64_t) ts.tv_nsec;
}

static int save_clock(Arch *arch, StateWriter *w) {
        struct kvm_clock_data clock = {};

        if (ioctl(arch->kvm->vm_fd, KVM_GET_CLOCK, &clock) < 0)
                return -errno;
        state_begin(w, "x86-clock", 0, 1);
        state_put_u64(w, read_tsc());
        state_put_u64(w, boot_time_nsec());
        state_put_u64(w, clock.clock);
        return state_end(w);
}

/* A state from before there was this section has no such clock: then it goes on as that of a new machine. */
static int load_clock(StateReader *r, bool *ret_has, Moment *ret, char **ret_message) {
        int k;

        *ret = (Moment) { .host_tsc = read_tsc() };
        k = state_enter(r, "x86-clock", 0, 1);
        *ret_has = k != -ENOENT;
        if (k == -ENOENT)
                return 0;
        if (k < 0)
                return set_message(ret_message, k, "The clock's state is of a newer version.");
        ret->host_tsc = state_get_u64(r);
        ret->host_nsec = state_get_u64(r);
        ret->guest_nsec = state_get_u64(r);
        return state_leave(r, ret_message);
}

static int set_clock(Arch *arch, const Moment *then, char **ret_message) {
        uint64_t now = boot_time_nsec(), passed = arch->time_goes_on && now > then->host_nsec ? now - then->host_nsec : 0;
        struct kvm_clock_data clock = { .clock = then->guest_nsec + passed };

        if (ioctl(arch->kvm->vm_fd, KVM_SET_CLOCK, &clock) < 0)
                return set_message(ret_message, -errno, "KVM_SET_CLOCK failed: %s.", strerror(errno));
        return 0;
}

/* A guest whose watchdogs look at the clock sees by this that it did not run meanwhile. EINVAL: it does not use KVM's clock. */
static void tell_of_pause(Arch *arch) {
        for (unsigned i = 0; i < arch->vcpus->n_vcpus; i++)
                (void) ioctl(arch->vcpus->vcpus[i].fd, KVM_KVMCLOCK_CTRL, 0);
}

void arch_set_time_goes_on(Arch *arch, bool goes_on) {
        arch->time_goes_on = goes_on;
}

/* --- all of it --- */

int arch_save(Arch *arch, StateWriter *w) {
        int r;

        r = save_clock(arch, w);
        for (unsigned i = 0; i < arch->vcpus->n_vcpus && r >= 0; i++)
                r = x86_vcpu_save(&arch->vcpus->vcpus[i], w);
        if (r >= 0)
                r = save_irqchip(arch, w);
        (void) pthread_mutex_lock(&arch->lock);
        if (r >= 0)
                r = acpi_pm_save(&arch->pm, w);
        if (r >= 0)
                r = acpi_hotplug_save(&arch->hotplug, w);
        if (r >= 0)
                r = cmos_save(&arch->cmos, w);
        if (r >= 0)
                r = i8042_save(&arch->i8042, w);
        (void) pthread_mutex_unlock(&arch->lock);
        return r;
}

static int load_cpu_side(Arch *arch, X86Load mode, uint64_t tsc_ago, StateReader *r, char **ret_message) {
        int k;

        /* The controllers first: a LAPIC with a pending line of the IOAPIC needs it there. */
        k = load_irqchip(arch, r, ret_message);
        for (unsigned i = 0; i < arch->vcpus->n_vcpus && k >= 0; i++)
                k = x86_vcpu_load(&arch->vcpus->vcpus[i], mode, tsc_ago, r, ret_message);
        return k;
}

/* The clock comes before the vCPUs, of which some write what they make of it into guest memory, and again behind them, as they took their time. */
static int load_cpu_and_clock(Arch *arch, StateReader *r, char **ret_message) {
        Moment then;
        bool has_clock;
        int k;

        k = load_clock(r, &has_clock, &then, ret_message);
        if (k >= 0 && has_clock)
                k = set_clock(arch, &then, ret_message);
        if (k >= 0)
                k = load_cpu_side(arch, arch->time_goes_on ? X86_LOAD_CONTINUE : X86_LOAD_RESTORE, read_tsc() - then.host_tsc, r, ret_message);
        if (k >= 0 && has_clock)
                k = set_clock(arch, &then, ret_message);
        if (k >= 0)
                tell_of_pause(arch);
        return k;
}

int arch_load(Arch *arch, StateReader *r, char **ret_message) {
        int k;

        k = load_cpu_and_clock(arch, r, ret_message);
        (void) pthread_mutex_lock(&arch->lock);
        if (k >= 0)
                k = acpi_pm_load(&arch->pm, r, ret_message);
        if (k >= 0)
                k = acpi_hotplug_load(&arch->hotplug, r, ret_message);
        if (k >= 0)
                k = cmos_load(&arch->cmos, r, ret_message);
        if (k >= 0)
                k = i8042_load(&arch->i8042, r, ret_message);
        (void) pthread_mutex_unlock(&arch->lock);
        return k;
}

int arch_reset(Arch *arch, char **ret_message) {
        _cleanup_(state_reader_freep) StateReader *reader = NULL;
        const void *data;
        size_t size;
        int r;

        (void) pthread_mutex_lock(&arch->lock);
        acpi_pm_reset(&arch->pm);
        acpi_hotplug_reset(&arch->hotplug);
        cmos_reset(&arch->cmos); /* the clock goes on, as with a battery */
        i8042_reset(&arch->i8042);
        (void) pthread_mutex_unlock(&arch->lock);

        r = state_writer_finish(arch->power_on, &data, &size);
        if (r >= 0)
                r = state_reader_new(data, size, &reader, ret_message);
        return r < 0 ? r : load_cpu_side(arch, X86_LOAD_RESET, 0, reader, ret_message);
}

void arch_press_button(Arch *arch, ArchButton button) {
        (void) pthread_mutex_lock(&arch->lock);
        if (button == ARCH_BUTTON_POWER)
                acpi_pm_press_power_button(&arch->pm);
        else
                acpi_pm_press_sleep_button(&arch->pm);
        (void) pthread_mutex_unlock(&arch->lock);
}

bool arch_has_pci_hotplug(void) {
        return true;
}

void arch_pci_notify(Arch *arch, unsigned slot, ArchPciNotification notification) {
        (void) pthread_mutex_lock(&arch->lock);
        switch (notification) {
        case ARCH_PCI_PLUGGED:
                acpi_hotplug_plugged(&arch->hotplug, slot);
                break;
        case ARCH_PCI_ASK_TO_GO:
        case ARCH_PCI_LET_STAY:
                acpi_hotplug_ask(&arch->hotplug, slot, notification == ARCH_PCI_ASK_TO_GO);
                break;
        case ARCH_PCI_GONE:
                acpi_hotplug_gone(&arch->hotplug, slot);
                break;
        }
        (void) pthread_mutex_unlock(&arch->lock);
}

int arch_device_tree(const Arch *arch, void **ret, size_t *ret_size) {
        return -EOPNOTSUPP;
}

bool arch_has_device_tree(void) {
        return false;
}

/* As a message to the local APIC: unlike KVM_NMI, that may be sent while the vCPU runs, by any thread. */
int arch_inject_nmi(Arch *arch, Vcpu *vcpu) {
        const struct kvm_msi msi = {
                /* The destination's upper bits are in address_hi where KVM_CAP_X2APIC_API is on (KVM API, 4.69). */
                .address_lo = MSI_ADDRESS | (vcpu->index & 0xFF) << MSI_DESTINATION_SHIFT,
                .address_hi = vcpu->index & ~0xFFU,
                .data = MSI_DELIVERY_NMI,
        };
        int r = ioctl(vcpu->set->kvm->vm_fd, KVM_SIGNAL_MSI, &msi);

        return r < 0 ? -errno : r == 0 ? -EIO : 0;
}
