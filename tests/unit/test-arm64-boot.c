/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What a 64-bit Arm guest begins with: kernels of each kind, initrd, device tree. On any architecture. */

#include <elf.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <zlib.h>

#include <cmocka.h>
#include <libfdt.h>

#include "boot.h"
#include "device-tree.h"
#include "layout.h"
#include "overlay.h"
#include "skip.h"

#define RAM MIB(16)
#define IMAGE_SIZE MIB(3)

typedef struct Rig {
        GuestMemory memory;
        Arm64BootInput input;
        Arm64BootEntry entry;
        char *message;
} Rig;

static int file_of(const void *data, size_t size) {
        int fd = memfd_create("file", MFD_CLOEXEC);

        assert_true(fd >= 0);
        assert_int_equal(write(fd, data, size), (ssize_t) size);
        return fd;
}

static void set_up(Rig *rig) {
        int fd = guest_memory_create_fd(RAM, 0);

        *rig = (Rig) { .input = { .kernel_fd = -EBADF, .kernel_name = "the kernel", .initrd_fd = -EBADF, .initrd_name = "the initrd" } };
        assert_true(fd >= 0);
        assert_int_equal(guest_memory_add(&rig->memory, fd, 0, ARM64_RAM_BASE, RAM, 0), 0);
}

static void tear_down(Rig *rig) {
        guest_memory_done(&rig->memory);
        (void) safe_close(rig->input.kernel_fd);
        (void) safe_close(rig->input.initrd_fd);
        free(rig->message);
}

/* A new kernel in the place of the last one; its bytes are the caller's. */
static int load(Rig *rig, const void *kernel, size_t size) {
        (void) safe_close(rig->input.kernel_fd);
        rig->input.kernel_fd = file_of(kernel, size);
        rig->message = mfree(rig->message);
        return arm64_load_boot(&rig->memory, &rig->input, &rig->entry, &rig->message);
}

static void assert_refused(Rig *rig, const void *kernel, size_t size, int error, const char *why) {
        assert_int_equal(load(rig, kernel, size), error);
        assert_non_null(rig->message);
        if (!strstr(rig->message, why))
                fail_msg("\"%s\" does not say \"%s\"", rig->message, why);
}

static uint8_t *make_image(uint64_t text_offset, uint64_t image_size, uint64_t flags) {
        uint8_t *image = calloc(1, IMAGE_SIZE);

        assert_non_null(image);
        for (size_t i = 64; i < IMAGE_SIZE; i++)
                image[i] = (uint8_t) (i * 7 + (i >> 9));
        store_le64(image + 8, text_offset);
        store_le64(image + 16, image_size);
        store_le64(image + 24, flags);
        memcpy(image + 56, "ARM\x64", 4);
        return image;
}

static size_t compress_gzip(const uint8_t *data, size_t size, uint8_t **ret) {
        z_stream z = {};
        uint8_t *out = malloc(size + 4096);

        assert_non_null(out);
        assert_int_equal(deflateInit2(&z, 1, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY), Z_OK);
        z.next_in = (Bytef *) data;
        z.avail_in = (uInt) size;
        z.next_out = out;
        z.avail_out = (uInt) size + 4096;
        assert_int_equal(deflate(&z, Z_FINISH), Z_STREAM_END);
        (void) deflateEnd(&z);
        *ret = out;
        return z.total_out;
}

static void refuses_what_is_no_kernel(void **state) {
        uint8_t junk[4096] = { 1, 2, 3, 4 };
        Rig rig;

        set_up(&rig);
        assert_refused(&rig, junk, sizeof(junk), -ENOEXEC, "begins with 01 02 03 04");
        assert_refused(&rig, junk, 3, -ENOEXEC, "neither an arm64 Image");
        memcpy(junk, "MZ\0\0zimg", 8);
        assert_refused(&rig, junk, sizeof(junk), -ENOEXEC, "EFI zboot");
        tear_down(&rig);
}

static void refuses_images_that_cannot_be_placed(void **state) {
        _cleanup_free_ uint8_t *big_endian = make_image(0, IMAGE_SIZE, 1), *offset = make_image(MIB(2), IMAGE_SIZE, 0),
                               *large = make_image(0, RAM + 1, 0), *full = make_image(0, RAM, 0), *huge = make_image(0, UINT64_MAX, 0);
        Rig rig;

        set_up(&rig);
        assert_refused(&rig, big_endian, IMAGE_SIZE, -ENOEXEC, "big-endian");
        assert_refused(&rig, offset, IMAGE_SIZE, -ENOEXEC, "text_offset is 0x200000");
        assert_refused(&rig, large, IMAGE_SIZE, -ENOMEM, "more than the guest's memory has");
        assert_refused(&rig, huge, IMAGE_SIZE, -ENOMEM, "more than the guest's memory has");
        assert_refused(&rig, full, IMAGE_SIZE, -ENOMEM, "no memory left for the device tree");
        tear_down(&rig);
}

static void loads_an_image_with_an_initrd_behind_the_device_tree(void **state) {
        _cleanup_free_ uint8_t *image = make_image(0, MIB(4) + 1, 0);
        Rig rig;

        set_up(&rig);
        rig.input.initrd_fd = file_of("initrd", 6);
        assert_int_equal(load(&rig, image, IMAGE_SIZE), 0);
        assert_int_equal(rig.entry.pc, ARM64_RAM_BASE);
        assert_memory_equal(guest_memory_at(&rig.memory, ARM64_RAM_BASE, IMAGE_SIZE), image, IMAGE_SIZE);
        assert_int_equal(rig.entry.fdt_address, ARM64_RAM_BASE + MIB(6));
        assert_int_equal(rig.entry.initrd_address, ARM64_RAM_BASE + MIB(8));
        assert_int_equal(rig.entry.initrd_size, 6);
        assert_memory_equal(guest_memory_at(&rig.memory, rig.entry.initrd_address, 6), "initrd", 6);
        tear_down(&rig);
}

static void gives_an_old_image_its_offset(void **state) {
        _cleanup_free_ uint8_t *image = make_image(0, 0, 0);
        Rig rig;

        set_up(&rig);
        assert_int_equal(load(&rig, image, IMAGE_SIZE), 0);
        assert_int_equal(rig.entry.pc, ARM64_RAM_BASE + 0x80000);
        assert_int_equal(rig.entry.kernel_size, IMAGE_SIZE);
        tear_down(&rig);
}

static void refuses_broken_gzip(void **state) {
        _cleanup_free_ uint8_t *image = make_image(0, IMAGE_SIZE, 0), *packed = NULL, *junk = NULL, *large = NULL, *much = NULL;
        size_t size = compress_gzip(image, IMAGE_SIZE, &packed), junk_size = compress_gzip((const uint8_t *) "no kernel", 9, &junk), large_size;
        Rig rig;

        much = calloc(1, RAM + 1);
        assert_non_null(much);
        memcpy(much, image, 64);
        large_size = compress_gzip(much, RAM + 1, &large);

        set_up(&rig);
        assert_refused(&rig, packed, size / 2, -ENOEXEC, "does not end");
        assert_refused(&rig, packed, 20, -ENOEXEC, "does not end");
        assert_refused(&rig, junk, junk_size, -ENOEXEC, "no arm64 Image");
        assert_refused(&rig, large, large_size, -ENOMEM, "decompressed it needs more");
        packed[size / 2] ^= 0xff;
        packed[size / 2 + 1] ^= 0xff;
        assert_int_not_equal(load(&rig, packed, size), 0); /* by the code, or at last by its checksum */
        tear_down(&rig);
}

static void loads_an_image_compressed_by_gzip(void **state) {
        _cleanup_free_ uint8_t *image = make_image(0x1000, IMAGE_SIZE, 0), *packed = NULL;
        size_t size = compress_gzip(image, IMAGE_SIZE, &packed);
        Rig rig;

        set_up(&rig);
        assert_int_equal(load(&rig, packed, size), 0);
        assert_int_equal(rig.entry.pc, ARM64_RAM_BASE + 0x1000);
        assert_int_equal(rig.entry.kernel_size, IMAGE_SIZE);
        assert_memory_equal(guest_memory_at(&rig.memory, rig.entry.pc, IMAGE_SIZE), image, IMAGE_SIZE);
        tear_down(&rig);
}

/* One segment, of 4096 bytes in the file and two more in memory. */
static uint8_t *make_elf(uint64_t address, Elf64_Ehdr **ret_ehdr, Elf64_Phdr **ret_phdr) {
        uint8_t *file = calloc(1, 8192);
        Elf64_Ehdr *e = (Elf64_Ehdr *) file;
        Elf64_Phdr *p = (Elf64_Phdr *) (file + sizeof(*e));

        assert_non_null(file);
        memcpy(e->e_ident, "\177ELF\2\1\1", 7);
        e->e_machine = EM_AARCH64;
        e->e_entry = address + 8;
        e->e_phoff = sizeof(*e);
        e->e_phentsize = sizeof(*p);
        e->e_phnum = 1;
        *p = (Elf64_Phdr) { .p_type = PT_LOAD, .p_offset = 4096, .p_filesz = 4096, .p_memsz = 4098, .p_paddr = address, .p_vaddr = address };
        memset(file + 4096, 0x5a, 4096);
        *ret_ehdr = e;
        *ret_phdr = p;
        return file;
}

static void refuses_broken_elf_files(void **state) {
        Elf64_Ehdr *e;
        Elf64_Phdr *p;
        _cleanup_free_ uint8_t *file = make_elf(UINT64_C(0xffff800008000000), &e, &p);
        Rig rig;

        set_up(&rig);
        assert_refused(&rig, file, 63, -ENOEXEC, "truncated");
        assert_refused(&rig, file, 8191, -ENOEXEC, "segment 0 has 4096 bytes");
        e->e_machine = EM_X86_64;
        assert_refused(&rig, file, 8192, -ENOEXEC, "ELF machine is 62, expected 183");
        e->e_machine = EM_AARCH64;
        e->e_phnum = 200;
        assert_refused(&rig, file, 8192, -ENOEXEC, "200 ELF program headers");
        e->e_phnum = 100;
        e->e_phoff = UINT64_MAX - 8;
        assert_refused(&rig, file, 8192, -ENOEXEC, "begin at");
        e->e_phnum = 1;
        e->e_phoff = sizeof(*e);
        p->p_memsz = 1;
        assert_refused(&rig, file, 8192, -ENOEXEC, "and 1 in memory");
        p->p_memsz = INT64_MAX;
        p->p_paddr = 4096;
        assert_refused(&rig, file, 8192, -ENOMEM, "more than the guest's memory has");
        p->p_paddr = p->p_vaddr;
        p->p_memsz = 4098;
        e->e_entry = 1;
        assert_refused(&rig, file, 8192, -ENOEXEC, "lies in none of its segments");
        p->p_type = PT_NOTE;
        assert_refused(&rig, file, 8192, -ENOEXEC, "none of its ELF segments");
        tear_down(&rig);
}

static void loads_elf_files_by_their_own_addresses_and_by_those_of_ram(void **state) {
        static const uint64_t addresses[][2] = {
                { UINT64_C(0xffff800008001000), ARM64_RAM_BASE + 0x1000 },
                { ARM64_RAM_BASE + MIB(5), ARM64_RAM_BASE + MIB(5) },
        };

        for (size_t i = 0; i < ELEMENTSOF(addresses); i++) {
                Elf64_Ehdr *e;
                Elf64_Phdr *p;
                _cleanup_free_ uint8_t *file = make_elf(addresses[i][0], &e, &p);
                const uint8_t *bytes;
                Rig rig;

                set_up(&rig);
                memset(rig.memory.regions[0].host, 0xee, RAM);
                assert_int_equal(load(&rig, file, 8192), 0);
                assert_int_equal(rig.entry.pc, addresses[i][1] + 8);
                bytes = guest_memory_at(&rig.memory, addresses[i][1], 4099);
                assert_int_equal(bytes[0], 0x5a);
                assert_int_equal(bytes[4095], 0x5a);
                assert_int_equal(bytes[4096] | bytes[4097], 0);
                assert_int_equal(bytes[4098], 0xee);
                tear_down(&rig);
        }
}

/* --- device tree --- */

static const Arm64Cache caches[] = {
        { ARM64_CACHE_INSTRUCTION, 1, 64, 256, 4 },
        { ARM64_CACHE_DATA, 1, 64, 256, 2 },
        { ARM64_CACHE_UNIFIED, 2, 64, 1024, 8 },
        { ARM64_CACHE_UNIFIED, 3, 64, 4096, 16 },
};

#define N_VCPUS 18

/* As KVM counts them: sixteen of the lowest level. */
static void fill_mpidrs(uint64_t mpidrs[static N_VCPUS]) {
        for (unsigned i = 0; i < N_VCPUS; i++)
                mpidrs[i] = (i & 0xf) | (i >> 4) << 8;
}

static void *make_tree(bool small, size_t *ret_size) {
        uint64_t mpidrs[N_VCPUS];
        Arm64FdtInput input = {
                .mpidrs = mpidrs,
                .n_vcpus = small ? 1 : N_VCPUS,
                .caches = caches,
                .n_caches = small ? 0 : ELEMENTSOF(caches),
                .has_pmu = !small,
                .ram_size = GIB(6),
                .serial_ports = small ? 0 : 0x3,
                .command_line = small ? NULL : "console=ttyS0 root=/dev/vda",
                .initrd_address = ARM64_RAM_BASE + MIB(64),
                .initrd_size = small ? 0 : 4711,
                .rng_seed = { 1 },
                .kaslr_seed = 2,
        };
        void *fdt = NULL;

        fill_mpidrs(mpidrs);
        assert_int_equal(arm64_fdt_build(&input, &fdt, ret_size, NULL), 0);
        assert_int_equal(fdt_check_full(fdt, *ret_size), 0);
        return fdt;
}

/* What each binding requires of a node. */
static const struct {
        const char *compatible;
        const char *properties[10];
} required[] = {
        { "arm,armv8", { "device_type", "reg", "enable-method" } },
        { "cache", { "cache-level", "cache-unified", "cache-size", "cache-sets" } },
        { "arm,psci-0.2", { "method" } },
        { "arm,armv8-timer", { "interrupts" } },
        { "arm,armv8-pmuv3", { "interrupts" } },
        { "arm,gic-v3", { "reg", "interrupt-controller", "#interrupt-cells", "#address-cells", "#size-cells", "ranges" } },
        { "arm,gic-v3-its", { "reg", "msi-controller", "#msi-cells" } },
        { "pci-host-ecam-generic", { "device_type", "reg", "ranges", "bus-range", "#address-cells", "#size-cells", "msi-map", "dma-coherent" } },
        { "ns16550a", { "reg", "interrupts", "clock-frequency" } },
        { "arm,primecell", { "reg", "interrupts", "clocks", "clock-names" } },
        { "arm,pl061", { "gpio-controller", "#gpio-cells", "interrupt-controller", "#interrupt-cells" } },
        { "fixed-clock", { "#clock-cells", "clock-frequency" } },
        { "gpio-keys", {} },
        { "ramoops", { "reg", "record-size" } },
        { "qemu,fw-cfg-mmio", { "reg" } },
        { "linux,kvm", {} },
};

static void has_what_the_bindings_require(void **state) {
        size_t size;
        _cleanup_free_ void *fdt = make_tree(false, &size);

        for (size_t i = 0; i < ELEMENTSOF(required); i++) {
                unsigned n = 0;

                for (int node = fdt_node_offset_by_compatible(fdt, -1, required[i].compatible); node >= 0;
                        node = fdt_node_offset_by_compatible(fdt, node, required[i].compatible), n++)
                        for (size_t k = 0; k < ELEMENTSOF(required[i].properties) && required[i].properties[k]; k++)
                                if (!fdt_getprop(fdt, node, required[i].properties[k], NULL))
                                        fail_msg("%s, %s, has no %s", fdt_get_name(fdt, node, NULL), required[i].compatible,
                                                required[i].properties[k]);
                if (n == 0)
                        fail_msg("no node is compatible with %s", required[i].compatible);
        }
}

static uint64_t number(const void *fdt, const char *path, const char *property, unsigned cell, unsigned cells) {
        int node = fdt_path_offset(fdt, path), length;
        const uint8_t *p = fdt_getprop(fdt, node, property, &length);
        uint64_t v = 0;

        if (!p || length < (int) (4 * (cell + cells)))
                fail_msg("%s has no %s of %u cells", path, property, cell + cells);
        for (unsigned i = 4 * cell; i < 4 * (cell + cells); i++)
                v = v << 8 | p[i];
        return v;
}

static void says_what_the_machine_has(void **state) {
        size_t size;
        _cleanup_free_ void *fdt = make_tree(false, &size);
        int node;

        assert_int_equal(number(fdt, "/memory@80000000", "reg", 0, 2), ARM64_RAM_BASE);
        assert_int_equal(number(fdt, "/memory@80000000", "reg", 2, 2), GIB(6));
        assert_int_equal(number(fdt, "/cpus/cpu@101", "reg", 0, 1), 0x101);
        assert_int_equal(number(fdt, "/cpus/cpu@101", "i-cache-size", 0, 1), 65536);
        assert_int_equal(number(fdt, "/cpus/cpu@101", "d-cache-size", 0, 1), 32768);
        assert_int_equal(number(fdt, "/cpus/cpu@101", "next-level-cache", 0, 1), number(fdt, "/cpus/cpu@101/l2-cache", "phandle", 0, 1));
        assert_int_equal(number(fdt, "/cpus/cpu@0/l2-cache", "next-level-cache", 0, 1), number(fdt, "/cpus/l3-cache", "phandle", 0, 1));
        assert_int_equal(number(fdt, "/cpus/cpu-map/socket0/cluster0/core17", "cpu", 0, 1), number(fdt, "/cpus/cpu@101", "phandle", 0, 1));
        assert_int_equal(number(fdt, "/interrupt-controller@8000000", "reg", 6, 2), N_VCPUS * 0x20000);
        assert_int_equal(number(fdt, "/pcie@20000000", "msi-map", 1, 1),
                number(fdt, "/interrupt-controller@8000000/msi-controller@8080000", "phandle", 0, 1));
        assert_int_equal(number(fdt, "/pcie@20000000", "ranges", 3, 2), ARM64_PCI_MMIO_BASE);
        assert_int_equal(number(fdt, "/gpio-keys/key-power", "linux,code", 0, 1), 116);
        assert_int_equal(number(fdt, "/gpio-keys/key-power", "gpios", 0, 1), number(fdt, "/gpio@9020000", "phandle", 0, 1));
        assert_int_equal(number(fdt, "/chosen", "linux,initrd-end", 0, 2), ARM64_RAM_BASE + MIB(64) + 4711);
        assert_int_equal(number(fdt, "/chosen", "kaslr-seed", 0, 2), 2);
        node = fdt_path_offset(fdt, "/chosen");
        assert_string_equal(fdt_getprop(fdt, node, "bootargs", NULL), "console=ttyS0 root=/dev/vda modules_load=ramoops");
        assert_string_equal(fdt_getprop(fdt, node, "stdout-path", NULL), "serial0:115200n8");
        assert_string_equal(fdt_get_alias(fdt, "serial1"), "/serial@9001000");
        assert_true(fdt_path_offset(fdt, "/serial@9002000") < 0);
}

static void leaves_out_what_the_machine_has_not(void **state) {
        size_t size;
        _cleanup_free_ void *fdt = make_tree(true, &size);
        int node = fdt_path_offset(fdt, "/chosen");

        assert_null(fdt_getprop(fdt, node, "bootargs", NULL));
        assert_null(fdt_getprop(fdt, node, "stdout-path", NULL));
        assert_null(fdt_getprop(fdt, node, "linux,initrd-start", NULL));
        assert_true(fdt_node_offset_by_compatible(fdt, -1, "ns16550a") < 0);
        assert_true(fdt_node_offset_by_compatible(fdt, -1, "arm,armv8-pmuv3") < 0);
        assert_true(fdt_node_offset_by_compatible(fdt, -1, "cache") < 0);
        assert_null(fdt_getprop(fdt, fdt_path_offset(fdt, "/cpus/cpu@0"), "next-level-cache", NULL));
}

/* The compiler of device trees knows the rules of many bindings: here each of its warnings is an error. */
static void is_without_warnings_of_dtc(void **state) {
        const char *dtc = getenv("DTC");

        if (!dtc || !*dtc)
                skip_for_want_of("dtc");
        for (int small = 0; small < 2; small++) {
                char directory[] = "/tmp/test-arm64-XXXXXX";
                _cleanup_free_ char *command = NULL;
                size_t size;
                _cleanup_free_ void *fdt = make_tree(small, &size);
                FILE *f;

                assert_non_null(mkdtemp(directory));
                assert_true(asprintf(&command, "cd %s && %s -I dtb -O dts -o /dev/null tree 2>log && test ! -s log || { cat log >&2; false; }",
                                    directory, dtc) > 0);
                {
                        _cleanup_free_ char *path = NULL;

                        assert_true(asprintf(&path, "%s/tree", directory) > 0);
                        f = fopen(path, "we");
                }
                assert_non_null(f);
                assert_int_equal(fwrite(fdt, 1, size, f), size);
                assert_int_equal(fclose(f), 0);
                assert_int_equal(system(command), 0);
                free(command);
                assert_true(asprintf(&command, "rm -r %s", directory) > 0);
                assert_int_equal(system(command), 0);
        }
}

/* --- overlays --- */

typedef struct Overlay {
        const char *path;  /* target-path, or NULL */
        const char *label; /* of a target, or NULL */
        const char *content; /* the fragment's subnode */
        size_t padding;
} Overlay;

#define OVERLAY_ROOM MIB(2)

/* As dtc -@ would make it. */
static size_t make_overlay(const Overlay *o, void *blob) {
        _cleanup_free_ void *padding = calloc(1, o->padding + 1);

        assert_int_equal(fdt_create(blob, (int) OVERLAY_ROOM), 0);
        assert_int_equal(fdt_finish_reservemap(blob), 0);
        assert_int_equal(fdt_begin_node(blob, ""), 0);
        assert_int_equal(fdt_begin_node(blob, "fragment@0"), 0);
        if (o->path)
                assert_int_equal(fdt_property_string(blob, "target-path", o->path), 0);
        if (o->label)
                assert_int_equal(fdt_property_u32(blob, "target", UINT32_MAX), 0);
        assert_int_equal(fdt_begin_node(blob, o->content), 0);
        assert_int_equal(fdt_property_string(blob, "vmm,added", "yes"), 0);
        if (o->padding > 0)
                assert_int_equal(fdt_property(blob, "padding", padding, (int) o->padding), 0);
        assert_int_equal(fdt_end_node(blob), 0);
        assert_int_equal(fdt_end_node(blob), 0);
        if (o->label) {
                assert_int_equal(fdt_begin_node(blob, "__fixups__"), 0);
                assert_int_equal(fdt_property_string(blob, o->label, "/fragment@0:target:0"), 0);
                assert_int_equal(fdt_end_node(blob), 0);
        }
        assert_int_equal(fdt_end_node(blob), 0);
        assert_int_equal(fdt_finish(blob), 0);
        return fdt_totalsize(blob);
}

/* Applies these bytes to the large tree; NULL where they are refused. */
static void *lay_over(const void *bytes, size_t size, int *ret_error, char **ret_message) {
        _cleanup_close_ int fd = file_of(bytes, size);
        size_t tree_size;
        void *tree = make_tree(false, &tree_size);

        *ret_error = arm64_overlay_apply(fd, "the overlay", &tree, &tree_size, ret_message);
        assert_int_equal(fdt_check_full(tree, tree_size), 0);
        return *ret_error < 0 ? mfree(tree) : tree;
}

static void assert_overlay_refused(const void *bytes, size_t size, int error, const char *why) {
        _cleanup_free_ char *message = NULL;
        int r;

        assert_null(lay_over(bytes, size, &r, &message));
        assert_int_equal(r, error);
        if (!message || !strstr(message, why))
                fail_msg("\"%s\" does not say \"%s\"", message ?: "", why);
}

static void refuses_overlays_that_do_not_fit(void **state) {
        static const struct {
                Overlay overlay;
                int error;
                const char *why;
        } cases[] = {
                { { .label = "uart7", .content = "__overlay__" }, -ENOENT, "refers to the label 'uart7', which the machine's device tree has not" },
                { { .path = "/soc/i2c", .content = "__overlay__" }, -ENOENT, "fragment 'fragment@0' goes to the path '/soc/i2c', which the machine's" },
                { { .content = "__overlay__" }, -ENOEXEC, "fragment 'fragment@0' has neither a target nor a target-path" },
                { { .path = "/", .content = "overlay" }, -ENOEXEC, "but no overlay" },
                { { .path = "/", .content = "__overlay__", .padding = MIB(1) }, -E2BIG, "overlay may have 1 MiB" },
        };
        _cleanup_free_ uint8_t *blob = malloc(OVERLAY_ROOM);
        _cleanup_(freep) char *message = NULL;
        int directory = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        size_t size = 0;
        void *tree = NULL;

        assert_non_null(blob);
        for (size_t i = 0; i < ELEMENTSOF(cases); i++) {
                size = make_overlay(&cases[i].overlay, blob);
                assert_overlay_refused(blob, size, cases[i].error, cases[i].why);
        }
        assert_overlay_refused("/dts-v1/;", 9, -ENOEXEC, "begins with 2f 64 74 73, expected a compiled device tree");
        assert_overlay_refused("", 0, -ENOEXEC, "begins with 00 00 00 00");
        size = make_overlay(&(Overlay) { .path = "/", .content = "__overlay__" }, blob);
        assert_overlay_refused(blob, size - 1, -ENOEXEC, "is a broken device tree");
        assert_overlay_refused(blob, 40, -ENOEXEC, "is a broken device tree");
        assert_int_equal(arm64_overlay_apply(directory, "the overlay", &tree, &size, &message), -EINVAL);
        assert_non_null(strstr(message, "expected a regular file"));
        (void) close(directory);
}

static void applies_overlays_by_label_and_by_path(void **state) {
        static const Overlay overlays[] = {
                { .label = "pcie", .content = "__overlay__" },
                { .path = "/pcie@20000000", .content = "__overlay__" },
                { .label = "cpu17", .content = "__overlay__" },
                { .label = "serial1", .content = "__overlay__" },
                { .label = "gpio_keys", .content = "__overlay__", .padding = KIB(700) },
        };
        static const char *const paths[] = { "/pcie@20000000", "/pcie@20000000", "/cpus/cpu@101", "/serial@9001000", "/gpio-keys" };
        _cleanup_free_ uint8_t *blob = malloc(OVERLAY_ROOM);

        for (size_t i = 0; i < ELEMENTSOF(overlays); i++) {
                _cleanup_free_ char *message = NULL;
                _cleanup_free_ void *tree = NULL;
                size_t size = make_overlay(&overlays[i], blob);
                const char *value;
                int r;

                tree = lay_over(blob, size, &r, &message);
                if (!tree)
                        fail_msg("%i: %s", r, message ?: "");
                value = fdt_getprop(tree, fdt_path_offset(tree, paths[i]), "vmm,added", NULL);
                assert_non_null(value);
                assert_string_equal(value, "yes");
                /* What else there was is there. */
                assert_int_equal(number(tree, "/memory@80000000", "reg", 2, 2), GIB(6));
        }
}

/* Each label leads to a node. */
static void has_labels_for_overlays(void **state) {
        size_t size;
        _cleanup_free_ void *fdt = make_tree(false, &size);
        int symbols = fdt_path_offset(fdt, "/__symbols__"), property;
        unsigned n = 0;

        assert_true(symbols > 0);
        fdt_for_each_property_offset(property, fdt, symbols) {
                const char *label, *path = fdt_getprop_by_offset(fdt, property, &label, NULL);

                if (fdt_get_phandle(fdt, fdt_path_offset(fdt, path)) == 0)
                        fail_msg("the label %s leads to %s, which is not there or has no phandle", label, path);
                n++;
        }
        assert_int_equal(n, N_VCPUS + 2 + 7);
}

static void refuses_a_tree_that_has_no_room(void **state) {
        _cleanup_free_ void *large = calloc(1, ARM64_FDT_MAX + 1);
        Arm64BootEntry entry = { .fdt_address = ARM64_RAM_BASE + MIB(2) };
        Rig rig;

        assert_non_null(large);
        set_up(&rig);
        assert_int_equal(arm64_write_fdt(&rig.memory, &entry, large, ARM64_FDT_MAX + 1, &rig.message), -ENOMEM);
        entry.fdt_address = ARM64_RAM_BASE + RAM - 4096;
        rig.message = mfree(rig.message);
        assert_int_equal(arm64_write_fdt(&rig.memory, &entry, large, 8, &rig.message), -ENOMEM);
        tear_down(&rig);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(refuses_what_is_no_kernel),
                cmocka_unit_test(refuses_images_that_cannot_be_placed),
                cmocka_unit_test(refuses_broken_gzip),
                cmocka_unit_test(refuses_broken_elf_files),
                cmocka_unit_test(refuses_a_tree_that_has_no_room),
                cmocka_unit_test(refuses_overlays_that_do_not_fit),
                cmocka_unit_test(has_labels_for_overlays),
                cmocka_unit_test(applies_overlays_by_label_and_by_path),
                cmocka_unit_test(loads_an_image_with_an_initrd_behind_the_device_tree),
                cmocka_unit_test(gives_an_old_image_its_offset),
                cmocka_unit_test(loads_an_image_compressed_by_gzip),
                cmocka_unit_test(loads_elf_files_by_their_own_addresses_and_by_those_of_ram),
                cmocka_unit_test(has_what_the_bindings_require),
                cmocka_unit_test(says_what_the_machine_has),
                cmocka_unit_test(leaves_out_what_the_machine_has_not),
                cmocka_unit_test(is_without_warnings_of_dtc),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
