/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <libfdt.h>
#include <stdarg.h>
#include <stdio.h>

#include "device-tree.h"
#include "layout.h"

/* What points to them. */
enum {
        PHANDLE_GIC = 1,
        PHANDLE_ITS,
        PHANDLE_CLOCK,
        PHANDLE_GPIO,
        PHANDLE_KEYS,
        PHANDLE_RTC,
        PHANDLE_PCI,
        PHANDLE_SERIAL = 0xC,          /* and the port */
        PHANDLE_CACHE_SHARED = 0x10,   /* and the level */
        PHANDLE_CACHE_PRIVATE = 0x800, /* and the vCPU */
        PHANDLE_CPU = 0x1000,          /* and the vCPU */
};

/* interrupts: kind, number, flags (bindings/interrupt-controller/arm,gic-v3.yaml) */
enum { GIC_SPI = 0, GIC_PPI = 1, EDGE_RISING = 1, LEVEL_HIGH = 4 };

/* linux,code of a key (linux/input-event-codes.h) */
enum { CODE_POWER = 116, CODE_SLEEP = 142 };

#define FDT_SIZE_FIRST KIB(64)
#define NODE_NAME_MAX 32
#define NODE_PATH_MAX 96
/* The kernel's COMMAND_LINE_SIZE, without the NUL. */
#define COMMAND_LINE_MAX 2047
/* 1.8432 MHz divided by 16 is 115200, as on a PC. */
#define SERIAL_CLOCK 1843200
#define PERIPHERAL_CLOCK 24000000
/* PCI's 32-bit memory space (IEEE 1275, PCI bus binding) */
#define PCI_MEMORY_32 0x02000000

/* Errors are sticky, so that a node can be written down as it reads. */
typedef struct Tree {
        void *fdt;
        int error; /* of libfdt */
} Tree;

static void note(Tree *t, int error) {
        if (t->error == 0)
                t->error = error;
}

static void begin(Tree *t, const char *name) {
        note(t, fdt_begin_node(t->fdt, name));
}

/* "serial@9000000" */
static void begin_at(Tree *t, const char *name, uint64_t address) {
        char full[NODE_NAME_MAX];

        (void) snprintf(full, sizeof(full), "%s@%llx", name, (unsigned long long) address);
        begin(t, full);
}

static void end(Tree *t) {
        note(t, fdt_end_node(t->fdt));
}

static void put(Tree *t, const char *name, const void *data, size_t size) {
        note(t, fdt_property(t->fdt, name, data, (int) size));
}

static void put_flag(Tree *t, const char *name) {
        put(t, name, NULL, 0);
}

static void put_string(Tree *t, const char *name, const char *text) {
        put(t, name, text, strlen(text) + 1);
}

static void put_cells(Tree *t, const char *name, const uint32_t *cells, size_t n) {
        void *raw = NULL;

        note(t, fdt_property_placeholder(t->fdt, name, (int) (n * sizeof(uint32_t)), &raw));
        for (size_t i = 0; i < n && t->error == 0; i++)
                store_le32((uint8_t *) raw + i * sizeof(uint32_t), cpu_to_fdt32(cells[i]));
}

#define PUT_CELLS(t, name, ...) put_cells(t, name, (const uint32_t[]) { __VA_ARGS__ }, ELEMENTSOF(((const uint32_t[]) { __VA_ARGS__ })))
/* A number of two cells. */
#define CELLS64(v) (uint32_t) ((uint64_t) (v) >> 32), (uint32_t) (v)

static void put_u32(Tree *t, const char *name, uint32_t v) {
        note(t, fdt_property_u32(t->fdt, name, v));
}

static void put_u64(Tree *t, const char *name, uint64_t v) {
        note(t, fdt_property_u64(t->fdt, name, v));
}

static void put_phandle(Tree *t, uint32_t phandle) {
        put_u32(t, "phandle", phandle);
}

static void put_reg(Tree *t, uint64_t base, uint64_t size) {
        PUT_CELLS(t, "reg", CELLS64(base), CELLS64(size));
}

/* --- processors --- */

/* The affinity fields of MPIDR_EL1 (bindings/arm/cpus.yaml); the highest, Aff3, is beyond 32 bits and unused by KVM. */
static uint32_t cpu_reg(uint64_t mpidr) {
        return (uint32_t) mpidr & 0xFFFFFF;
}

static const Arm64Cache *find_cache(const Arm64FdtInput *input, unsigned level, Arm64CacheKind kind) {
        for (size_t i = 0; i < input->n_caches; i++)
                if (input->caches[i].level == level && input->caches[i].kind == kind)
                        return &input->caches[i];
        return NULL;
}

/* `prefix` is "i-", "d-" or "". */
static void put_cache_shape(Tree *t, const char *prefix, const Arm64Cache *cache) {
        const struct {
                const char *name;
                uint32_t value;
        } properties[] = {
                { "cache-size", cache->line_size * cache->sets * cache->ways },
                { "cache-line-size", cache->line_size },
                { "cache-sets", cache->sets },
        };

        for (size_t i = 0; i < ELEMENTSOF(properties); i++) {
                char name[NODE_NAME_MAX];

                (void) snprintf(name, sizeof(name), "%s%s", prefix, properties[i].name);
                put_u32(t, name, properties[i].value);
        }
}

/* What is behind the caches of `level`. */
static void put_next_level(Tree *t, const Arm64FdtInput *input, unsigned level, unsigned vcpu) {
        if (find_cache(input, level + 1, ARM64_CACHE_UNIFIED))
                put_u32(t, "next-level-cache", level + 1 == 2 ? PHANDLE_CACHE_PRIVATE + vcpu : PHANDLE_CACHE_SHARED + level + 1);
}

static void put_unified_cache(Tree *t, const Arm64FdtInput *input, const Arm64Cache *cache, uint32_t phandle) {
        char name[NODE_NAME_MAX];

        (void) snprintf(name, sizeof(name), "l%u-cache", cache->level);
        begin(t, name);
        put_string(t, "compatible", "cache");
        put_u32(t, "cache-level", cache->level);
        put_flag(t, "cache-unified");
        put_cache_shape(t, "", cache);
        put_next_level(t, input, cache->level, 0);
        put_phandle(t, phandle);
        end(t);
}

static void put_cpu(Tree *t, const Arm64FdtInput *input, unsigned i) {
        const Arm64Cache *instruction = find_cache(input, 1, ARM64_CACHE_INSTRUCTION), *data = find_cache(input, 1, ARM64_CACHE_DATA),
                         *second = find_cache(input, 2, ARM64_CACHE_UNIFIED);

        begin_at(t, "cpu", cpu_reg(input->mpidrs[i]));
        put_string(t, "device_type", "cpu");
        put_string(t, "compatible", "arm,armv8");
        put_u32(t, "reg", cpu_reg(input->mpidrs[i]));
        put_string(t, "enable-method", "psci");
        if (instruction)
                put_cache_shape(t, "i-", instruction);
        if (data)
                put_cache_shape(t, "d-", data);
        put_next_level(t, input, 1, i);
        put_phandle(t, PHANDLE_CPU + i);
        if (second)
                put_unified_cache(t, input, second, PHANDLE_CACHE_PRIVATE + i);
        end(t);
}

/* One socket, in which each vCPU is a core. */
static void put_topology(Tree *t, const Arm64FdtInput *input) {
        begin(t, "cpu-map");
        begin(t, "socket0");
        begin(t, "cluster0");
        for (unsigned i = 0; i < input->n_vcpus; i++) {
                char name[NODE_NAME_MAX];

                (void) snprintf(name, sizeof(name), "core%u", i);
                begin(t, name);
                put_u32(t, "cpu", PHANDLE_CPU + i);
                end(t);
        }
        end(t);
        end(t);
        end(t);
}

static void put_cpus(Tree *t, const Arm64FdtInput *input) {
        begin(t, "cpus");
        put_u32(t, "#address-cells", 1);
        put_u32(t, "#size-cells", 0);
        put_topology(t, input);
        for (unsigned i = 0; i < input->n_vcpus; i++)
                put_cpu(t, input, i);
        for (size_t i = 0; i < input->n_caches; i++)
                if (input->caches[i].kind == ARM64_CACHE_UNIFIED && input->caches[i].level > 2)
                        put_unified_cache(t, input, &input->caches[i], PHANDLE_CACHE_SHARED + input->caches[i].level);
        end(t);
}

static void put_cpu_side(Tree *t, const Arm64FdtInput *input) {
        static const char psci[] = "arm,psci-1.0\0arm,psci-0.2";

        put_cpus(t, input);
        begin(t, "psci");
        put(t, "compatible", psci, sizeof(psci));
        put_string(t, "method", "hvc");
        end(t);
        begin(t, "timer");
        put_string(t, "compatible", "arm,armv8-timer");
        PUT_CELLS(t, "interrupts", GIC_PPI, ARM64_PPI_TIMER_SECURE, LEVEL_HIGH, GIC_PPI, ARM64_PPI_TIMER_PHYSICAL, LEVEL_HIGH, GIC_PPI,
                ARM64_PPI_TIMER_VIRTUAL, LEVEL_HIGH, GIC_PPI, ARM64_PPI_TIMER_HYPERVISOR, LEVEL_HIGH);
        put_flag(t, "always-on");
        end(t);
        if (!input->has_pmu)
                return;
        begin(t, "pmu");
        put_string(t, "compatible", "arm,armv8-pmuv3");
        PUT_CELLS(t, "interrupts", GIC_PPI, ARM64_PPI_PMU, LEVEL_HIGH);
        end(t);
}

static void put_interrupt_controller(Tree *t, const Arm64FdtInput *input) {
        begin_at(t, "interrupt-controller", ARM64_GICD_BASE);
        put_string(t, "compatible", "arm,gic-v3");
        put_u32(t, "#interrupt-cells", 3);
        put_flag(t, "interrupt-controller");
        put_u32(t, "#address-cells", 2);
        put_u32(t, "#size-cells", 2);
        put_flag(t, "ranges");
        PUT_CELLS(t, "reg", CELLS64(ARM64_GICD_BASE), CELLS64(ARM64_GICD_SIZE), CELLS64(ARM64_GICR_BASE),
                CELLS64(input->n_vcpus * ARM64_GICR_STRIDE));
        put_phandle(t, PHANDLE_GIC);
        begin_at(t, "msi-controller", ARM64_ITS_BASE);
        put_string(t, "compatible", "arm,gic-v3-its");
        put_flag(t, "msi-controller");
        put_u32(t, "#msi-cells", 1);
        put_reg(t, ARM64_ITS_BASE, ARM64_ITS_SIZE);
        put_phandle(t, PHANDLE_ITS);
        end(t);
        end(t);
}

/* --- devices --- */

static void put_serial(Tree *t, unsigned i) {
        uint64_t base = ARM64_SERIAL_BASE + i * ARM64_SERIAL_STRIDE;

        begin_at(t, "serial", base);
        put_string(t, "compatible", "ns16550a");
        put_reg(t, base, ARM64_SERIAL_SIZE);
        put_u32(t, "clock-frequency", SERIAL_CLOCK);
        /* Its helper signals an eventfd, which is an edge. */
        PUT_CELLS(t, "interrupts", GIC_SPI, ARM64_SPI_SERIAL + i, EDGE_RISING);
        put_phandle(t, PHANDLE_SERIAL + i);
        end(t);
}

/* A PrimeCell but for the end of its node. */
static void begin_primecell(Tree *t, const char *name, uint64_t base, const char *compatible, size_t compatible_size, unsigned spi) {
        begin_at(t, name, base);
        put(t, "compatible", compatible, compatible_size);
        put_reg(t, base, ARM64_PRIMECELL_SIZE);
        PUT_CELLS(t, "interrupts", GIC_SPI, spi, LEVEL_HIGH);
        put_u32(t, "clocks", PHANDLE_CLOCK);
        put_string(t, "clock-names", "apb_pclk");
}

static void put_key(Tree *t, const char *name, const char *label, unsigned pin, unsigned code) {
        begin(t, name);
        put_string(t, "label", label);
        PUT_CELLS(t, "gpios", PHANDLE_GPIO, pin, 0 /* active high */);
        put_u32(t, "linux,code", code);
        end(t);
}

static void put_primecells(Tree *t) {
        static const char rtc[] = "arm,pl031\0arm,primecell", gpio[] = "arm,pl061\0arm,primecell";

        begin(t, "apb-pclk");
        put_string(t, "compatible", "fixed-clock");
        put_u32(t, "#clock-cells", 0);
        put_u32(t, "clock-frequency", PERIPHERAL_CLOCK);
        put_string(t, "clock-output-names", "apb_pclk");
        put_phandle(t, PHANDLE_CLOCK);
        end(t);
        begin_primecell(t, "rtc", ARM64_RTC_BASE, rtc, sizeof(rtc), ARM64_SPI_RTC);
        put_phandle(t, PHANDLE_RTC);
        end(t);
        begin_primecell(t, "gpio", ARM64_GPIO_BASE, gpio, sizeof(gpio), ARM64_SPI_GPIO);
        put_flag(t, "gpio-controller");
        put_u32(t, "#gpio-cells", 2);
        put_flag(t, "interrupt-controller");
        put_u32(t, "#interrupt-cells", 2);
        put_u32(t, "#address-cells", 0);
        put_phandle(t, PHANDLE_GPIO);
        end(t);
        begin(t, "gpio-keys");
        put_string(t, "compatible", "gpio-keys");
        put_phandle(t, PHANDLE_KEYS);
        put_key(t, "key-power", "Power", ARM64_GPIO_POWER_KEY, CODE_POWER);
        put_key(t, "key-sleep", "Sleep", ARM64_GPIO_SLEEP_KEY, CODE_SLEEP);
        end(t);
}

static void put_pci(Tree *t) {
        begin_at(t, "pcie", ARM64_PCI_ECAM_BASE);
        put_string(t, "compatible", "pci-host-ecam-generic");
        put_string(t, "device_type", "pci");
        put_u32(t, "#address-cells", 3);
        put_u32(t, "#size-cells", 2);
        PUT_CELLS(t, "bus-range", 0, 0);
        put_reg(t, ARM64_PCI_ECAM_BASE, ARM64_PCI_ECAM_SIZE);
        PUT_CELLS(t, "ranges", PCI_MEMORY_32, CELLS64(ARM64_PCI_MMIO_BASE), CELLS64(ARM64_PCI_MMIO_BASE), CELLS64(ARM64_PCI_MMIO_SIZE));
        put_flag(t, "dma-coherent");
        /* A message's device id is the requester id: bus, slot and function. */
        PUT_CELLS(t, "msi-map", 0, PHANDLE_ITS, 0, 0x10000);
        put_phandle(t, PHANDLE_PCI);
        end(t);
}

static void put_fw_cfg(Tree *t) {
        begin_at(t, "fw-cfg", ARM64_FW_CFG_BASE);
        put_string(t, "compatible", "qemu,fw-cfg-mmio");
        put_reg(t, ARM64_FW_CFG_BASE, ARM64_FW_CFG_SIZE);
        put_flag(t, "dma-coherent");
        end(t);
}

/* It is no RAM: a record is seen as it is written. 1 is the kernel's number for panics (KMSG_DUMP_PANIC). */
static void put_ramoops(Tree *t) {
        begin(t, "reserved-memory");
        put_u32(t, "#address-cells", 2);
        put_u32(t, "#size-cells", 2);
        put_flag(t, "ranges");
        begin_at(t, "ramoops", ARM64_RAMOOPS_BASE);
        put_string(t, "compatible", "ramoops");
        put_reg(t, ARM64_RAMOOPS_BASE, ARM64_RAMOOPS_SIZE);
        put_u32(t, "record-size", ARM64_RAMOOPS_SIZE);
        put_u32(t, "max-reason", 1);
        put_flag(t, "no-map");
        end(t);
        end(t);
}

/* --- the rest --- */

/* The driver for the kernel's last words is a module that Debian's kernels do not find by the device tree alone: systemd-modules-load(8) is asked for it, unless the
 * user asks for other modules. */
static void put_command_line(Tree *t, const char *line) {
        static const char argument[] = "modules_load=ramoops";
        char whole[COMMAND_LINE_MAX + 1];

        if (strstr(line, "modules_load=") || strstr(line, "modules-load=") || strlen(line) + 1 + strlen(argument) > COMMAND_LINE_MAX)
                put_string(t, "bootargs", line);
        else {
                (void) snprintf(whole, sizeof(whole), "%s%s%s", line, *line ? " " : "", argument);
                put_string(t, "bootargs", whole);
        }
}

static void put_aliases(Tree *t, const Arm64FdtInput *input) {
        begin(t, "aliases");
        for (unsigned i = 0; i < ARM64_N_SERIAL; i++) {
                char name[NODE_NAME_MAX], path[NODE_NAME_MAX];

                if (!(input->serial_ports & 1u << i))
                        continue;
                (void) snprintf(name, sizeof(name), "serial%u", i);
                (void) snprintf(path, sizeof(path), "/serial@%llx", ARM64_SERIAL_BASE + i * ARM64_SERIAL_STRIDE);
                put_string(t, name, path);
        }
        end(t);
}

static void put_chosen(Tree *t, const Arm64FdtInput *input) {
        begin(t, "chosen");
        if (input->command_line)
                put_command_line(t, input->command_line);
        if (input->serial_ports != 0) {
                char path[NODE_NAME_MAX];

                (void) snprintf(path, sizeof(path), "serial%i:115200n8", __builtin_ctz(input->serial_ports));
                put_string(t, "stdout-path", path);
        }
        if (input->initrd_size > 0) {
                put_u64(t, "linux,initrd-start", input->initrd_address);
                put_u64(t, "linux,initrd-end", input->initrd_address + input->initrd_size);
        }
        put(t, "rng-seed", input->rng_seed, sizeof(input->rng_seed));
        put_u64(t, "kaslr-seed", input->kaslr_seed);
        end(t);
}

/* Where the labels are that an overlay may refer to: as dtc -@ would put them. Each of these nodes has a phandle. */
static void put_symbol(Tree *t, const char *label, const char *format, ...) _printf_(3, 4);
static void put_symbol(Tree *t, const char *label, const char *format, ...) {
        char path[NODE_PATH_MAX];
        va_list ap;

        va_start(ap, format);
        (void) vsnprintf(path, sizeof(path), format, ap);
        va_end(ap);
        put_string(t, label, path);
}

static void put_symbols(Tree *t, const Arm64FdtInput *input) {
        char label[NODE_NAME_MAX];

        begin(t, "__symbols__");
        for (unsigned i = 0; i < input->n_vcpus; i++) {
                (void) snprintf(label, sizeof(label), "cpu%u", i);
                put_symbol(t, label, "/cpus/cpu@%x", cpu_reg(input->mpidrs[i]));
        }
        for (unsigned i = 0; i < ARM64_N_SERIAL; i++)
                if (input->serial_ports & 1u << i) {
                        (void) snprintf(label, sizeof(label), "serial%u", i);
                        put_symbol(t, label, "/serial@%llx", ARM64_SERIAL_BASE + i * ARM64_SERIAL_STRIDE);
                }
        put_symbol(t, "gic", "/interrupt-controller@%llx", ARM64_GICD_BASE);
        put_symbol(t, "its", "/interrupt-controller@%llx/msi-controller@%llx", ARM64_GICD_BASE, ARM64_ITS_BASE);
        put_symbol(t, "pcie", "/pcie@%llx", ARM64_PCI_ECAM_BASE);
        put_symbol(t, "pl031", "/rtc@%llx", ARM64_RTC_BASE);
        put_symbol(t, "pl061", "/gpio@%llx", ARM64_GPIO_BASE);
        put_symbol(t, "gpio_keys", "/gpio-keys");
        put_symbol(t, "apb_pclk", "/apb-pclk");
        end(t);
}

static void put_root(Tree *t, const Arm64FdtInput *input) {
        begin(t, "");
        put_string(t, "compatible", "linux,dummy-virt");
        put_string(t, "model", "vmmd");
        put_u32(t, "#address-cells", 2);
        put_u32(t, "#size-cells", 2);
        put_u32(t, "interrupt-parent", PHANDLE_GIC);
        put_aliases(t, input);
        put_chosen(t, input);
        begin_at(t, "memory", ARM64_RAM_BASE);
        put_string(t, "device_type", "memory");
        put_reg(t, ARM64_RAM_BASE, input->ram_size);
        end(t);
        /* By which systemd-detect-virt(1) knows what it runs on. */
        begin(t, "hypervisor");
        put_string(t, "compatible", "linux,kvm");
        end(t);
        put_cpu_side(t, input);
        put_interrupt_controller(t, input);
        for (unsigned i = 0; i < ARM64_N_SERIAL; i++)
                if (input->serial_ports & 1u << i)
                        put_serial(t, i);
        put_primecells(t);
        put_pci(t);
        put_fw_cfg(t);
        put_ramoops(t);
        put_symbols(t, input);
        end(t);
}

static int try_build(const Arm64FdtInput *input, void *fdt, size_t size) {
        Tree t = { .fdt = fdt };

        note(&t, fdt_create(fdt, (int) size));
        note(&t, fdt_finish_reservemap(fdt));
        put_root(&t, input);
        note(&t, fdt_finish(fdt));
        return t.error;
}

int arm64_fdt_build(const Arm64FdtInput *input, void **ret, size_t *ret_size, char **ret_message) {
        for (size_t size = FDT_SIZE_FIRST; size <= ARM64_FDT_MAX; size *= 2) {
                _cleanup_free_ void *fdt = malloc(size);
                int r;

                if (!fdt)
                        return -ENOMEM;
                r = try_build(input, fdt, size);
                if (r == -FDT_ERR_NOSPACE)
                        continue;
                if (r < 0)
                        return set_message(ret_message, -EINVAL, "Cannot make the device tree: %s.", fdt_strerror(r));
                *ret_size = fdt_totalsize(fdt);
                *ret = TAKE_PTR(fdt);
                return 0;
        }
        return set_message(ret_message, -E2BIG, "The device tree would be larger than 2 MiB.");
}
