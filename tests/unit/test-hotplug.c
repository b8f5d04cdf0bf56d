/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Devices that come and go: a vmmd, a guest that does what ACPI asks of it, or not, and the real helpers of spare units. */

#include <dirent.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "json-util.h"
#include "slot-rig.h"
#include "tap.h"

#define INTERFACE "io.vmmd.Machine."
#define INSTANCE "io.systemd.MachineInstance."
#ifdef __SANITIZE_ADDRESS__
#define CYCLES 20 /* what is left over is seen there by others */
#else
#define CYCLES 100
#endif

/* The BAR of the slot of which the lowest bit is in eax, to rdi; the address of its configuration space to ecx. */
#define FIND_BAR                                                                                               \
        "bsf %eax, %ecx\n shl $11, %ecx\n or $0x80000010, %ecx\n mov %ecx, %eax\n mov $0xcf8, %dx\n out %eax, %dx\n" \
        "mov $0xcfc, %dx\n in %dx, %eax\n mov %rax, %rdi\n"
/* It decodes; ACKNOWLEDGE, DRIVER, VERSION_1, FEATURES_OK, DRIVER_OK; no queue. */
#define DRIVE                                                                                                  \
        "mov %ecx, %eax\n xor $0x14, %eax\n mov $0xcf8, %dx\n out %eax, %dx\n mov $0xcfc, %dx\n mov $2, %ax\n out %ax, %dx\n" \
        "movb $1, 0x14(%rdi)\n movb $3, 0x14(%rdi)\n movl $1, 8(%rdi)\n movl $1, 0xc(%rdi)\n movb $11, 0x14(%rdi)\n" \
        "movb $15, 0x14(%rdi)\n"
/* The lowest bit of the register at the port, to eax; it is cleared there. Goes on at `otherwise` where there is none. */
#define TAKE_BIT(port, otherwise)                                                                              \
        "mov $" port ", %dx\n in %dx, %eax\n test %eax, %eax\n jz " otherwise "\n mov %eax, %ebx\n neg %ebx\n and %ebx, %eax\n" \
        "out %eax, %dx\n"
/* What was told of may be gone by the time it is looked for. */
#define TAKE_WHAT_COMES "1: " TAKE_BIT("0x630", "2f") FIND_BAR "cmp $-1, %eax\n je 2f\n" DRIVE "2: "
/* Resets what is to go, where it is there still, and ejects it. */
#define GIVE_WHAT_GOES                                                                                         \
        TAKE_BIT("0x634", "1b") "mov %eax, %esi\n" FIND_BAR "cmp $-1, %eax\n je 3f\n movb $0, 0x14(%rdi)\n" \
        "3: mov %esi, %eax\n mov $0x638, %dx\n out %eax, %dx\n"
/* At the power button, every slot is ejected. */
#define GIVE_ALL_AT_BUTTON                                                                                     \
        "mov $0x600, %dx\n in %dx, %ax\n test $0x100, %ax\n jz 1b\n out %ax, %dx\n mov $0x7ffffffe, %eax\n" \
        "mov $0x638, %dx\n out %eax, %dx\n"

__asm__(".pushsection .rodata\n"
        "kernel_willing: " TAKE_WHAT_COMES GIVE_WHAT_GOES "jmp 1b\n kernel_willing_end:\n"
        "kernel_stubborn: " TAKE_WHAT_COMES GIVE_ALL_AT_BUTTON "jmp 1b\n kernel_stubborn_end:\n"
        "kernel_idle: cli\n 1: hlt\n jmp 1b\n kernel_idle_end:\n"
        ".popsection\n");
KERNEL_DECLARE(willing)
KERNEL_DECLARE(stubborn)
KERNEL_DECLARE(idle)

/* --- a machine with spare units --- */

typedef struct Machine {
        Run run;
        SlotUnit slots[2];
        unsigned n_slots;
        int events;
} Machine;

static void machine_prepare(Machine *m, const uint8_t *code, size_t size, unsigned n_slots, const char *more) {
        char text[256];

        *m = (Machine) { .n_slots = n_slots, .events = -EBADF };
        (void) snprintf(text, sizeof(text), ", \"hotplugSlots\": %u%s", n_slots, more);
        run_prepare(&m->run, code, size, text);
        for (unsigned i = 0; i < n_slots; i++)
                slot_unit_start(&m->slots[i], &m->run, i);
}

static void machine_run(Machine *m) {
        run_vmmd(&m->run, true);
        wait_for_state(&m->run, "running");
        m->events = run_connect(&m->run);
        send_call(m->events, INTERFACE "SubscribeEvents", "{\"filter\":[\"deviceAttached\",\"deviceDetached\",\"deviceFailed\"]}",
                ",\"more\":true");
        json_object_put(receive(m->events)); /* the present state */
}

static void machine_start(Machine *m, const uint8_t *code, size_t size, unsigned n_slots) {
        machine_prepare(m, code, size, n_slots, "");
        machine_run(m);
}
#define START(m, name, n_slots) machine_start(m, kernel_##name, (size_t) (kernel_##name##_end - kernel_##name), n_slots)
#define PREPARE(m, name, n_slots, more)                                                                        \
        machine_prepare(m, kernel_##name, (size_t) (kernel_##name##_end - kernel_##name), n_slots, more)

static void machine_end(Machine *m) {
        char text[4096], path[64];
        int r;

        if (m->events >= 0)
                (void) close(m->events);
        call_and_succeed(&m->run, "Terminate", "{}");
        r = run_end(&m->run, text);
        if (r != 0)
                fail_msg("vmmd ended with %d: %s", r, text);
        for (unsigned i = 0; i < m->n_slots; i++)
                if (m->slots[i].manager > 0)
                        slot_unit_stop(&m->slots[i]);
        (void) snprintf(path, sizeof(path), "%s/devices/tiny", m->run.directory);
        (void) rmdir(path);
        (void) snprintf(path, sizeof(path), "%s/devices", m->run.directory);
        (void) rmdir(path);
        (void) rmdir(m->run.directory);
}

/* --- calls --- */

/* A call with a descriptor, or -1; on a connection of its own, which is returned. */
static int begin_call(Machine *m, const char *method, const char *parameters, int fd) {
        char message[1024];
        int c = run_connect(&m->run), n;

        n = snprintf(message, sizeof(message), "{\"method\":\"%s\",\"parameters\":%s}", method, parameters);
        assert_true(n > 0 && (size_t) n < sizeof(message));
        assert_int_equal(send_with_fds(c, message, (size_t) n + 1, &fd, fd >= 0 ? 1 : 0), n + 1);
        return c;
}

static void end_call(int c, const char *word) {
        _cleanup_json_ json_object *reply = receive(c);
        const char *text = reply ? json_object_to_json_string_ext(reply, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE) : "(nothing)";

        if (!strstr(text, word))
                fail_msg("no '%s' in %s", word, text);
        (void) close(c);
}

static void call(Machine *m, const char *method, const char *parameters, int fd, const char *word) {
        end_call(begin_call(m, method, parameters, fd), word);
}

static void expect_event(Machine *m, const char *type, const char *device, const char *reason) {
        _cleanup_json_ json_object *reply = receive(m->events);
        json_object *event = json_get(reply, "parameters", json_type_object);
        const char *text = reply ? json_object_to_json_string(reply) : "(nothing)";

        if (!streq(json_get_string(event, "type", ""), type) || !streq(json_get_string(event, "device", ""), device) ||
                !strstr(json_get_string(event, "reason", ""), reason))
                fail_msg("expected %s of %s (%s): %s", type, device, reason, text);
}

/* An answer that says nothing else. An error has parameters, too. */
#define DONE "{\"parameters\":{}}"
#define ATTACH_RNG "{\"name\":\"r\",\"definition\":{\"type\":\"rng\"},\"timeout\":20000000}"
#define DISK                                                                                                   \
        "{\"name\":\"d\",\"definition\":{\"type\":\"block\",\"path\":\"/passed\",\"queues\":4},\"timeout\":20000000," \
        "\"fileDescriptors\":[{\"option\":\"path\",\"index\":0}]}"

static void attach_rng(Machine *m) {
        call(m, INTERFACE "AttachDevice", ATTACH_RNG, -1, "\"state\":\"active\"");
        expect_event(m, "deviceAttached", "r", "");
}

static void describe_has(Machine *m, const char *word, bool has) {
        char reply[4096];

        call_text(&m->run, INTERFACE "Describe", "{}", reply);
        if ((strstr(reply, word) != NULL) != has)
                fail_msg("%s'%s' in %s", has ? "no " : "", word, reply);
}

static void wait_until_asked(Machine *m) {
        char reply[4096];

        for (unsigned i = 0; i < 6000; i++) {
                call_text(&m->run, INTERFACE "Describe", "{}", reply);
                if (strstr(reply, "\"leaving\":true"))
                        return;
                (void) usleep(10000);
        }
        fail_msg("the guest is not asked: %s", reply);
}

/* --- descriptors and memory of vmmd --- */

static unsigned count_entries(pid_t pid, const char *what) {
        char path[64];
        unsigned n = 0;
        DIR *d;

        (void) snprintf(path, sizeof(path), "/proc/%d/%s", (int) pid, what);
        d = opendir(path);
        assert_non_null(d);
        while (readdir(d))
                n++;
        (void) closedir(d);
        return n;
}

static unsigned count_fds(const Machine *m) {
        return count_entries(m->run.pid, "fd");
}

static unsigned count_threads(const Machine *m) {
        return count_entries(m->run.pid, "task");
}

static unsigned count_fds_of_manager(const Machine *m) {
        return count_entries(m->slots[0].manager, "fd");
}

/* What vmmd itself has written to, in KiB: the guest's memory is shared. */
static unsigned private_memory(const Machine *m) {
        static const char key[] = "RssAnon:";
        char path[64], line[256];
        unsigned kib = 0;
        FILE *f;

        (void) snprintf(path, sizeof(path), "/proc/%d/status", (int) m->run.pid);
        f = fopen(path, "re");
        assert_non_null(f);
        while (fgets(line, sizeof(line), f))
                if (startswith(line, key))
                        kib = (unsigned) strtoul(line + strlen(key), NULL, 10);
        (void) fclose(f);
        assert_true(kib > 0);
        return kib;
}

/* A connection whose end vmmd has not seen yet is none that leaks: the least of what is seen within a moment, in each part of which it has answered somebody. */
static unsigned settled(const Machine *m, unsigned (*count)(const Machine *m)) {
        unsigned least = UINT32_MAX;

        for (unsigned i = 0; i < 20; i++) {
                call_and_succeed(&m->run, "Describe", "{}");
                least = MIN(least, count(m));
                (void) usleep(10000);
        }
        return least;
}

static void expect_to_settle(const Machine *m, unsigned (*count)(const Machine *m), unsigned expected) {
        unsigned n = 0;

        for (unsigned i = 0; i < 300; i++) {
                n = settled(m, count);
                if (n == expected)
                        return;
        }
        fail_msg("%u of what there were %u", n, expected);
}

/* --- refusals --- */

static void refuses_what_is_no_device_to_attach(void **state) {
        static const struct {
                const char *parameters, *word;
        } cases[] = {
                { "{\"name\":\"a/b\",\"definition\":{\"type\":\"rng\"}}", "\"parameter\":\"name\"" },
                { "{\"name\":\"\",\"definition\":{\"type\":\"rng\"}}", "\"parameter\":\"name\"" },
                { "{\"name\":\"r\",\"definition\":{\"type\":\"rng\"},\"timeout\":0}", "\"parameter\":\"timeout\"" },
                { "{\"name\":\"r\",\"definition\":{\"type\":\"rng\"},\"timeout\":-1}", "\"parameter\":\"timeout\"" },
                { "{\"name\":\"r\",\"definition\":{\"type\":\"rng\"},\"fileDescriptors\":[{\"option\":\"path\",\"index\":3}]}",
                  "\"parameter\":\"fileDescriptors\"" },
                { "{\"name\":\"r\",\"definition\":{}}", "WrongDefinition" },
                { "{\"name\":\"r\",\"definition\":{\"type\":\"floppy\"}}", "/devices/r/type" },
                { "{\"name\":\"r\",\"definition\":{\"type\":\"rng\",\"speed\":5}}", "/devices/r" },
                { "{\"name\":\"r\",\"definition\":{\"type\":\"serial\"}}", "cannot be attached" },
                { "{\"name\":\"r\",\"definition\":{\"type\":\"balloon\"}}", "cannot be attached" },
                { "{\"name\":\"r\",\"definition\":{\"type\":\"block\",\"path\":\"/x\",\"root\":true}}", "root file system" },
                { "{\"name\":\"r\",\"definition\":{\"type\":\"block\",\"path\":\"/x\"}}", "needs a descriptor" },
                { "{\"name\":\"r\",\"definition\":{\"type\":\"net\",\"interface\":\"t\",\"queuePairs\":2}}", "needs 2 descriptors" },
                { "{\"name\":\"r\",\"definition\":{\"type\":\"net\",\"interface\":\"t\"},\"timeout\":\"soon\"}", "InvalidParameter" },
        };
        Machine m;

        START(&m, idle, 1);
        for (size_t i = 0; i < ELEMENTSOF(cases); i++)
                call(&m, INTERFACE "AttachDevice", cases[i].parameters, -1, cases[i].word);
        call(&m, INTERFACE "AttachDevice",
                "{\"name\":\"r\",\"definition\":{\"type\":\"rng\"},\"fileDescriptors\":[{\"option\":\"path\",\"index\":0}]}",
                STDERR_FILENO, "has use for 0");
        call(&m, INTERFACE "AttachDevice",
                "{\"name\":\"r\",\"definition\":{\"type\":\"block\",\"path\":\"/x\"},\"fileDescriptors\":[{\"option\":\"path\",\"index\":0},"
                "{\"option\":\"path\",\"index\":0}]}",
                STDERR_FILENO, "\"parameter\":\"fileDescriptors\"");
        /* The helper has the last word: a pipe is no disk, and one that is written needs a descriptor for that. The slot is as free as before. */
        for (unsigned i = 0; i < 3; i++) {
                int pair[2], readable = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);

                assert_int_equal(pipe2(pair, O_CLOEXEC), 0);
                call(&m, INTERFACE "AttachDevice", DISK, pair[0], "WrongDefinition");
                call(&m, INTERFACE "AttachDevice", DISK, readable, "DeviceFailed");
                (void) close(pair[0]);
                (void) close(pair[1]);
                (void) close(readable);
        }
        describe_has(&m, "\"name\":\"r\"", false);
        call(&m, INTERFACE "DetachDevice", "{\"name\":\"r\"}", -1, "NoSuchDevice");
        machine_end(&m);
}

static void take_snapshot(Machine *m, const char *word) {
        static const char text[] = "{\"method\":\"" INTERFACE "TakeSnapshot\",\"parameters\":{\"state\":0,\"memory\":1}}";
        const int fds[] = { memfd_create("state", MFD_CLOEXEC), memfd_create("memory", MFD_CLOEXEC) };
        int c = run_connect(&m->run);

        assert_true(fds[0] >= 0 && fds[1] >= 0);
        assert_int_equal(send_with_fds(c, text, sizeof(text), fds, 2), sizeof(text));
        end_call(c, word);
        (void) close(fds[0]);
        (void) close(fds[1]);
}

/* No definition has it, so it could not be restored; and nothing was paused for that. */
static void refuses_a_snapshot_with_an_attached_device(void **state) {
        Machine m;

        START(&m, willing, 1);
        take_snapshot(&m, "\"meta\"");
        attach_rng(&m);
        take_snapshot(&m, "Device 'r' was attached");
        describe_has(&m, "\"state\":\"running\"", true);
        machine_end(&m);
}

static void refuses_more_devices_than_slots(void **state) {
        Machine m;

        START(&m, willing, 1);
        attach_rng(&m);
        call(&m, INTERFACE "AttachDevice", ATTACH_RNG, -1, "DeviceExists");
        call(&m, INTERFACE "AttachDevice", "{\"name\":\"s\",\"definition\":{\"type\":\"rng\"}}", -1, "NoFreeSlot");
        machine_end(&m);

        START(&m, willing, 0);
        call(&m, INTERFACE "AttachDevice", ATTACH_RNG, -1, "NoFreeSlot");
        machine_end(&m);
}

static void tries_another_unit_where_one_is_not_there(void **state) {
        Machine m;

        START(&m, willing, 2);
        slot_unit_stop(&m.slots[0]);
        m.slots[0].manager = 0;
        attach_rng(&m);
        describe_has(&m, "slot1.service", true);
        call(&m, INTERFACE "AttachDevice", "{\"name\":\"s\",\"definition\":{\"type\":\"rng\"}}", -1, "DeviceFailed");
        machine_end(&m);
}

static void keeps_a_device_that_the_guest_does_not_let_go_of(void **state) {
        Machine m;

        START(&m, stubborn, 1);
        attach_rng(&m);
        for (unsigned i = 0; i < 2; i++) {
                int c = begin_call(&m, INTERFACE "DetachDevice", "{\"name\":\"r\",\"timeout\":300000}", -1);

                end_call(c, "DetachTimedOut");
                describe_has(&m, "\"leaving\":false", true);
                describe_has(&m, "\"state\":\"active\",\"pciAddress\":\"0000:00:01.0\",\"attached\":true", true);
        }
        /* Later, by itself. */
        call(&m, INTERFACE "PowerButton", "{}", -1, DONE);
        expect_event(&m, "deviceDetached", "r", "by itself");
        describe_has(&m, "\"name\":\"r\"", false);
        attach_rng(&m);
        machine_end(&m);
}

static void does_nothing_while_the_machine_is_paused_but_by_force(void **state) {
        Machine m;

        START(&m, willing, 2);
        attach_rng(&m);
        call(&m, INTERFACE "Pause", "{\"devices\":true}", -1, DONE);
        call(&m, INTERFACE "DetachDevice", "{\"name\":\"r\"}", -1, "WrongState");
        call(&m, INTERFACE "AttachDevice", "{\"name\":\"s\",\"definition\":{\"type\":\"rng\"}}", -1, "\"state\":\"ready\"");
        expect_event(&m, "deviceAttached", "s", "");
        call(&m, INTERFACE "DetachDevice", "{\"name\":\"r\",\"force\":true}", -1, "{\"parameters\":{}}");
        expect_event(&m, "deviceDetached", "r", "force");
        call(&m, INTERFACE "Resume", "{}", -1, DONE);
        call(&m, INTERFACE "DetachDevice", "{\"name\":\"s\",\"timeout\":20000000}", -1, "{\"parameters\":{}}");
        machine_end(&m);
}

/* --- use --- */

typedef struct Kind {
        const char *definition, *option, *needs;
        int (*open)(void);
} Kind;

static int open_raw(void) {
        int fd = memfd_create("disk", MFD_CLOEXEC);

        assert_int_equal(ftruncate(fd, (off_t) MIB(1)), 0);
        return fd;
}

static int open_qcow2(void) {
        char path[] = "/var/tmp/test-hotplug-XXXXXX", command[128];
        int fd = mkostemp(path, O_CLOEXEC);

        assert_true(fd >= 0);
        (void) close(fd);
        (void) snprintf(command, sizeof(command), "qemu-img create -q -f qcow2 %s 1M", path);
        assert_int_equal(system(command), 0);
        fd = open(path, O_RDWR | O_CLOEXEC);
        (void) unlink(path);
        return fd;
}

/* -1 where nobody may make one here. */
static int open_tap(void) {
        int fd;

        if (geteuid() != 0 || system("ip tuntap add dev taphotplug0 mode tap vnet_hdr 2>/dev/null") != 0)
                return -EBADF;
        assert_return_code(tap_open("taphotplug0", 1, &fd, NULL), errno);
        assert_return_code(ioctl(fd, TUNSETPERSIST, 0), errno); /* it goes with its last descriptor */
        return fd;
}

static int open_directory(void) {
        return open("/usr/share", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

static const Kind kinds[] = {
        { "{\"type\":\"block\",\"path\":\"/passed\",\"queues\":4}", "path", NULL, open_raw },
        { "{\"type\":\"block\",\"path\":\"/passed\",\"format\":\"qcow2\"}", "path", "/usr/bin/qemu-storage-daemon", open_qcow2 },
        { "{\"type\":\"net\",\"interface\":\"passed\"}", "interface", "/dev/net/tun", open_tap },
        { "{\"type\":\"fs\",\"path\":\"/passed\",\"tag\":\"t\"}", "path", "/usr/libexec/virtiofsd", open_directory },
        { "{\"type\":\"console\"}", NULL, NULL, NULL },
        { "{\"type\":\"rng\"}", NULL, NULL, NULL },
};

/* What is told of the end of a device, its unit has done. */
static void wait_until_nothing_is_kept(const Machine *m, unsigned n_ended) {
        const SlotShared *shared = m->slots[0].shared;

        for (unsigned i = 0; i < 6000; i++) {
                if (__atomic_load_n(&shared->n_ended, __ATOMIC_ACQUIRE) > n_ended && __atomic_load_n(&shared->n_stored, __ATOMIC_RELAXED) == 0)
                        return;
                (void) usleep(10000);
        }
        fail_msg("%u descriptors are kept for nobody", shared->n_stored);
}

static void cycle(Machine *m, const Kind *kind, int fd) {
        unsigned n_ended = __atomic_load_n(&m->slots[0].shared->n_ended, __ATOMIC_ACQUIRE);
        char text[512];

        (void) snprintf(text, sizeof(text), "{\"name\":\"d\",\"definition\":%s,\"timeout\":20000000%s%s%s}", kind->definition,
                kind->option ? ",\"fileDescriptors\":[{\"index\":0,\"option\":\"" : "", kind->option ?: "", kind->option ? "\"}]" : "");
        call(m, INTERFACE "AttachDevice", text, fd, "\"state\":\"active\"");
        expect_event(m, "deviceAttached", "d", "");
        call(m, INTERFACE "DetachDevice", "{\"name\":\"d\",\"timeout\":20000000}", -1, "{\"parameters\":{}}");
        expect_event(m, "deviceDetached", "d", "as asked");
        wait_until_nothing_is_kept(m, n_ended);
}

static void cycle_often(Machine *m, const Kind *kind, int fd) {
        unsigned fds = 0, kept = 0, memory = 0, threads = 0;
        uint64_t begun = now_usec();

        for (unsigned i = 0; i < CYCLES; i++) {
                cycle(m, kind, fd);
                /* What is made once is there by now. */
                if (i == CYCLES / 4) {
                        fds = settled(m, count_fds);
                        kept = settled(m, count_fds_of_manager);
                        memory = private_memory(m);
                        threads = settled(m, count_threads);
                }
        }
        print_message("# %u times %s in %u ms: %u descriptors, %u KiB, %u threads before; %u, %u, %u after\n", CYCLES, kind->definition,
                (unsigned) ((now_usec() - begun) / USEC_PER_MSEC), fds, memory, threads, settled(m, count_fds), private_memory(m),
                settled(m, count_threads));
        expect_to_settle(m, count_fds, fds);
        expect_to_settle(m, count_fds_of_manager, kept);
        expect_to_settle(m, count_threads, threads);
#ifndef __SANITIZE_ADDRESS__
        /* One of these devices has some ten KiB. */
        assert_in_range(private_memory(m), 0, memory + 128);
#endif
}

static void each_kind_comes_and_goes_often_without_a_leak(void **state) {
        Machine m;

        START(&m, willing, 1);
        for (size_t i = 0; i < ELEMENTSOF(kinds); i++) {
                const Kind *kind = &kinds[i];
                int fd = -EBADF;

                if (!kind->needs || access(kind->needs, F_OK) == 0)
                        fd = kind->open ? kind->open() : -EBADF;
                if (kind->open && fd < 0) {
                        print_message("# SKIPPED, as there is no %s that works: %s\n", kind->needs, kind->definition);
                        continue;
                }
                cycle_often(&m, kind, fd);
                (void) safe_close(fd);
        }
        machine_end(&m);
}

/* While another one stays. */
static void attaches_and_detaches_beside_another(void **state) {
        int image = open_raw();
        Machine m;

        START(&m, willing, 2);
        attach_rng(&m);
        for (unsigned i = 0; i < 5; i++) {
                call(&m, INTERFACE "AttachDevice", DISK, image, "\"state\":\"active\"");
                expect_event(&m, "deviceAttached", "d", "");
                call(&m, INTERFACE "DetachDevice", "{\"name\":\"d\",\"timeout\":20000000}", -1, "{\"parameters\":{}}");
                expect_event(&m, "deviceDetached", "d", "as asked");
        }
        describe_has(&m, "\"state\":\"active\",\"pciAddress\":\"0000:00:01.0\"", true);
        (void) close(image);
        machine_end(&m);
}

static void reload(Machine *m) {
        call(m, INTERFACE "Reload", "{}", -1, "\"pause\":");
        (void) close(m->events); /* of the program before */
        m->events = run_connect(&m->run);
        send_call(m->events, INTERFACE "SubscribeEvents", "{\"filter\":[\"deviceAttached\",\"deviceDetached\",\"deviceFailed\"]}",
                ",\"more\":true");
        json_object_put(receive(m->events));
}

static void what_is_attached_stays_and_goes_when_another_vmmd_has_taken_over(void **state) {
        int image = open_raw();
        Machine m;

        START(&m, willing, 2);
        attach_rng(&m);
        for (unsigned i = 0; i < 2; i++) {
                call(&m, INTERFACE "AttachDevice", DISK, image, "\"state\":\"active\"");
                reload(&m);
                describe_has(&m, "\"state\":\"active\",\"pciAddress\":\"0000:00:01.0\",\"attached\":true", true);
                describe_has(&m, "\"state\":\"active\",\"pciAddress\":\"0000:00:02.0\",\"attached\":true", true);
                /* The unit of the one is not taken for the other's. */
                call(&m, INTERFACE "AttachDevice", "{\"name\":\"third\",\"definition\":{\"type\":\"rng\"}}", -1, "NoFreeSlot");
                call(&m, INTERFACE "DetachDevice", "{\"name\":\"d\",\"timeout\":20000000}", -1, "{\"parameters\":{}}");
                expect_event(&m, "deviceDetached", "d", "as asked");
        }
        reload(&m);
        describe_has(&m, "\"name\":\"d\"", false);
        (void) close(image);
        machine_end(&m);
}

/* Its unit's socket is there, and nobody answers. */
static void nobody_takes_over_nor_keeps_the_machine_while_a_device_comes(void **state) {
        Machine m;
        int coming;

        START(&m, willing, 1);
        assert_int_equal(kill(m.slots[0].manager, SIGSTOP), 0);
        coming = begin_call(&m, INTERFACE "AttachDevice", ATTACH_RNG, -1);
        describe_has(&m, "\"state\":\"running\"", true); /* which is answered later than that was read */
        call(&m, INTERFACE "Reload", "{}", -1, "Device 'r' is just being attached.");
        take_snapshot(&m, "Device 'r' is just being attached.");
        describe_has(&m, "\"state\":\"running\"", true);
        assert_int_equal(kill(m.slots[0].manager, SIGCONT), 0);
        end_call(coming, "\"state\":\"active\"");
        expect_event(&m, "deviceAttached", "r", "");
        reload(&m);
        machine_end(&m);
}

static void nobody_takes_over_while_a_device_goes(void **state) {
        int going;
        Machine m;

        START(&m, stubborn, 1);
        attach_rng(&m);
        going = begin_call(&m, INTERFACE "DetachDevice", "{\"name\":\"r\",\"timeout\":30000000}", -1);
        wait_until_asked(&m);
        call(&m, INTERFACE "Reload", "{}", -1, "Device 'r' is just being detached.");
        take_snapshot(&m, "Device 'r' is just being detached.");
        assert_true(kill(m.run.pid, 0) >= 0);
        call(&m, INTERFACE "DetachDevice", "{\"name\":\"r\",\"force\":true}", -1, "{\"parameters\":{}}");
        end_call(going, DONE);
        machine_end(&m);
}

static void takes_away_by_force_and_gives_the_slot_again(void **state) {
        Machine m;

        START(&m, stubborn, 1);
        for (unsigned i = 0; i < 3; i++) {
                int asked;

                attach_rng(&m);
                /* What is left of each of the others is in the guest's way: another place, the same unit. */
                describe_has(&m, i == 0 ? "0000:00:01.0" : i == 1 ? "0000:00:02.0" : "0000:00:03.0", true);
                asked = begin_call(&m, INTERFACE "DetachDevice", "{\"name\":\"r\",\"timeout\":60000000}", -1);
                wait_until_asked(&m);
                call(&m, INTERFACE "DetachDevice", "{\"name\":\"r\",\"force\":true}", -1, "{\"parameters\":{}}");
                end_call(asked, "{\"parameters\":{}}");
                expect_event(&m, "deviceDetached", "r", "by force");
                describe_has(&m, "\"name\":\"r\"", false);
        }
        /* All three are ejected at last. */
        call(&m, INTERFACE "PowerButton", "{}", -1, DONE);
        for (unsigned i = 0;; i++) {
                char reply[4096];

                assert_true(i < 100);
                call_text(&m.run, INTERFACE "AttachDevice", ATTACH_RNG, reply);
                expect_event(&m, "deviceAttached", "r", "");
                /* The guest, at its button, may have let go of this one as well. */
                call(&m, INTERFACE "DetachDevice", "{\"name\":\"r\",\"force\":true}", -1, "\"parameters\":{");
                expect_event(&m, "deviceDetached", "r", "");
                if (strstr(reply, "0000:00:01.0"))
                        break;
                call(&m, INTERFACE "PowerButton", "{}", -1, DONE);
        }
        machine_end(&m);
}

static void a_reset_keeps_what_is_attached_and_does_what_was_asked(void **state) {
        Machine m;
        int c;

        START(&m, stubborn, 2);
        attach_rng(&m);
        call(&m, INTERFACE "AttachDevice", "{\"name\":\"s\",\"definition\":{\"type\":\"rng\"},\"timeout\":20000000}", -1, "active");
        expect_event(&m, "deviceAttached", "s", "");
        c = begin_call(&m, INTERFACE "DetachDevice", "{\"name\":\"r\",\"timeout\":60000000}", -1);
        wait_until_asked(&m);
        call(&m, INTERFACE "Reset", "{}", -1, DONE);
        end_call(c, "{\"parameters\":{}}");
        expect_event(&m, "deviceDetached", "r", "reset");
        wait_for_state(&m.run, "running");
        describe_has(&m, "\"name\":\"s\"", true);
        describe_has(&m, "\"state\":\"ready\",\"pciAddress\":\"0000:00:02.0\",\"attached\":true", true); /* this guest looks for nothing at boot */
        describe_has(&m, "\"name\":\"r\"", false);
        attach_rng(&m);
        machine_end(&m);
}

static void a_device_of_the_definition_can_go_and_others_come(void **state) {
        Machine m;
        SlotUnit device;
        char path[96];

        /* A helper by hand, beside the slot: of the definition's device. */
        PREPARE(&m, willing, 1, ", \"devices\": { \"own\": { \"type\": \"rng\" }, \"com\": { \"type\": \"serial\", \"output\": \"none\" } }");
        device.manager = fork();
        assert_true(device.manager >= 0);
        (void) snprintf(path, sizeof(path), "%s/devices/tiny/own", m.run.directory);
        if (device.manager == 0) {
                char socket_option[128], varlink_option[128];

                (void) snprintf(socket_option, sizeof(socket_option), "--socket-path=%s.vhost-user", path);
                (void) snprintf(varlink_option, sizeof(varlink_option), "--varlink-path=%s.varlink", path);
                (void) execl(getenv("VMM_DEVICE"), "vmm-device", "rng", socket_option, varlink_option, NULL);
                _exit(127);
        }
        pid_t serial = fork();
        assert_true(serial >= 0);
        if (serial == 0) {
                char socket_option[128], varlink_option[128];

                (void) snprintf(path, sizeof(path), "%s/devices/tiny/com", m.run.directory);
                (void) snprintf(socket_option, sizeof(socket_option), "--socket-path=%s.bus", path);
                (void) snprintf(varlink_option, sizeof(varlink_option), "--varlink-path=%s.varlink", path);
                (void) execl(getenv("VMM_DEVICE"), "vmm-device", "serial", "--output=none", socket_option, varlink_option, NULL);
                _exit(127);
        }
        (void) snprintf(path, sizeof(path), "%s/devices/tiny/com.varlink", m.run.directory);
        for (unsigned i = 0; access(path, F_OK) < 0; i++) {
                assert_true(i < 6000);
                (void) usleep(10000);
        }
        (void) snprintf(path, sizeof(path), "%s/devices/tiny/own.varlink", m.run.directory);
        for (unsigned i = 0; access(path, F_OK) < 0; i++) {
                assert_true(i < 6000);
                (void) usleep(10000);
        }
        machine_run(&m);
        call(&m, INTERFACE "DetachDevice", "{\"name\":\"com\"}", -1, "NotDetachable");
        call(&m, INSTANCE "RemoveStorage", "{\"name\":\"own\"}", -1, "NoSuchStorage");
        call(&m, INTERFACE "DetachDevice", "{\"name\":\"own\",\"timeout\":20000000}", -1, "{\"parameters\":{}}");
        expect_event(&m, "deviceDetached", "own", "as asked");
        describe_has(&m, "\"name\":\"own\"", false);
        attach_rng(&m);
        describe_has(&m, "0000:00:01.0", true);
        (void) kill(device.manager, SIGKILL);
        (void) kill(serial, SIGKILL);
        assert_int_equal(waitpid(device.manager, NULL, 0), device.manager);
        assert_int_equal(waitpid(serial, NULL, 0), serial);
        for (const char *const *s = (const char *const[]) { "own.varlink", "own.vhost-user", "com.varlink", "com.bus", NULL }; *s; s++) {
                (void) snprintf(path, sizeof(path), "%s/devices/tiny/%s", m.run.directory, *s);
                (void) unlink(path);
        }
        machine_end(&m);
}

static void a_helper_that_dies_meanwhile_holds_nobody_up(void **state) {
        Machine m;
        int c;

        START(&m, stubborn, 1);
        attach_rng(&m);
        c = begin_call(&m, INTERFACE "DetachDevice", "{\"name\":\"r\",\"timeout\":60000000}", -1);
        wait_until_asked(&m);
        slot_unit_stop(&m.slots[0]);
        m.slots[0].manager = 0;
        expect_event(&m, "deviceFailed", "r", "went away");
        call(&m, INTERFACE "PowerButton", "{}", -1, DONE);
        end_call(c, "{\"parameters\":{}}");
        expect_event(&m, "deviceDetached", "r", "as asked");

        /* And the unit is used again once it is there. */
        slot_unit_start(&m.slots[0], &m.run, 0);
        attach_rng(&m);
        machine_end(&m);
}

static void wait_until_describe_has(Machine *m, const char *word) {
        char reply[4096];

        for (unsigned i = 0; i < 6000; i++) {
                call_text(&m->run, INTERFACE "Describe", "{}", reply);
                if (strstr(reply, word))
                        return;
                (void) usleep(10000);
        }
        fail_msg("no '%s' in %s", word, reply);
}

/* Its unit forgets what it was when it is stopped, or given up; started again it is a spare one, and told again. */
static void comes_back_when_its_unit_does(void **state) {
        char path[] = "/var/tmp/vmm-test-hotplug-XXXXXX";
        int disk = mkostemp(path, O_CLOEXEC);
        Machine m;

        assert_true(disk >= 0 && unlink(path) == 0 && ftruncate(disk, MIB(1)) == 0);
        START(&m, willing, 1);
        call(&m, INTERFACE "AttachDevice", DISK, disk, "\"state\":\"active\"");
        (void) close(disk);
        expect_event(&m, "deviceAttached", "d", "");
        /* At once. */
        slot_unit_stop(&m.slots[0]);
        m.slots[0].manager = 0;
        expect_event(&m, "deviceFailed", "d", "went away");
        slot_unit_start(&m.slots[0], &m.run, 0);
        wait_until_describe_has(&m, "\"state\":\"active\"");
        /* And after it was reported to have failed for good. */
        slot_unit_stop(&m.slots[0]);
        m.slots[0].manager = 0;
        expect_event(&m, "deviceFailed", "d", "went away");
        expect_event(&m, "deviceFailed", "d", "cannot connect");
        describe_has(&m, "\"state\":\"failed\"", true);
        slot_unit_start(&m.slots[0], &m.run, 0);
        wait_until_describe_has(&m, "\"state\":\"active\"");
        /* The guest let it go on, and gives it back when it is asked. */
        call(&m, INTERFACE "DetachDevice", "{\"name\":\"d\",\"timeout\":20000000}", -1, "{\"parameters\":{}}");
        expect_event(&m, "deviceDetached", "d", "as asked");
        wait_until_nothing_is_kept(&m, 0);
        machine_end(&m);
}

/* The same where another vmmd has taken over since: it has the files, too, by whichever way it came to them. */
static void comes_back_when_another_vmmd_has_taken_over(void **state) {
        char path[] = "/var/tmp/vmm-test-hotplug-XXXXXX";
        int disk = mkostemp(path, O_CLOEXEC);
        Machine m;

        assert_true(disk >= 0 && unlink(path) == 0 && ftruncate(disk, MIB(1)) == 0);
        START(&m, willing, 1);
        call(&m, INTERFACE "AttachDevice", DISK, disk, "\"state\":\"active\"");
        (void) close(disk);
        for (unsigned i = 0; i < 2; i++) {
                reload(&m);
                if (i == 1)
                        reload(&m);
                describe_has(&m, "\"state\":\"active\",\"pciAddress\":\"0000:00:01.0\",\"attached\":true", true);
                slot_unit_stop(&m.slots[0]);
                m.slots[0].manager = 0;
                expect_event(&m, "deviceFailed", "d", "went away");
                slot_unit_start(&m.slots[0], &m.run, 0);
                wait_until_describe_has(&m, "\"state\":\"active\"");
        }
        call(&m, INTERFACE "DetachDevice", "{\"name\":\"d\",\"timeout\":20000000}", -1, "{\"parameters\":{}}");
        expect_event(&m, "deviceDetached", "d", "as asked");
        wait_until_nothing_is_kept(&m, 0);
        machine_end(&m);
}

/* A vmmd that died left its devices in their slots. */
static void what_another_vmmd_left_in_a_slot_is_taken_out(void **state) {
        char configure[] = "{\"type\":\"rng\",\"name\":\"old\",\"options\":{},\"fileDescriptors\":[]}";
        _cleanup_json_ json_object *reply = NULL;
        Machine m;
        int c;

        PREPARE(&m, willing, 1, "");
        c = connect_unix(m.slots[0].sockets[1]);
        assert_return_code(c, errno); /* it waits in the queue of a unit that has not begun yet */
        send_call(c, "io.vmmd.Slot.Configure", configure, "");
        reply = receive(c);
        assert_non_null(reply);
        assert_null(json_get_string(reply, "error", NULL));
        (void) close(c);
        machine_run(&m);
        attach_rng(&m);
        machine_end(&m);
}

static void a_client_that_leaves_leaves_its_device(void **state) {
        Machine m;
        int c;

        START(&m, willing, 1);
        c = begin_call(&m, INTERFACE "AttachDevice", ATTACH_RNG, -1);
        expect_event(&m, "deviceAttached", "r", "");
        (void) close(c);
        (void) close(begin_call(&m, INTERFACE "DetachDevice", "{\"name\":\"r\",\"timeout\":20000000}", -1));
        expect_event(&m, "deviceDetached", "r", "as asked");
        machine_end(&m);
}

static void who_waits_is_told_of_the_machine_s_end(void **state) {
        Machine m;
        int c, d;

        START(&m, stubborn, 1);
        attach_rng(&m);
        c = begin_call(&m, INTERFACE "DetachDevice", "{\"name\":\"r\",\"timeout\":60000000}", -1);
        wait_until_asked(&m);
        d = dup(c);
        machine_end(&m);
        end_call(d, "WrongState");
        (void) close(c);
}

static void storage_is_added_replaced_and_removed(void **state) {
        int image = memfd_create("one", MFD_CLOEXEC), other = memfd_create("two", MFD_CLOEXEC), readable;
        char path[64];
        Machine m;

        assert_int_equal(ftruncate(image, (off_t) MIB(1)), 0);
        assert_int_equal(ftruncate(other, (off_t) MIB(2)), 0);
        (void) snprintf(path, sizeof(path), "/proc/self/fd/%d", other);
        readable = open(path, O_RDONLY | O_CLOEXEC);
        assert_true(readable >= 0);
        START(&m, willing, 1);
        call(&m, INSTANCE "AddStorage", "{\"fileDescriptorIndex\":0,\"name\":\"a b\"}", image, "\"parameter\":\"name\"");
        call(&m, INSTANCE "AddStorage", "{\"fileDescriptorIndex\":0,\"name\":\"s\",\"config\":\"floppy\"}", image, "BadConfig");
        call(&m, INSTANCE "AddStorage", "{\"fileDescriptorIndex\":0,\"name\":\"s\",\"config\":\"ro,rw\"}", image, "BadConfig");
        call(&m, INSTANCE "AddStorage", "{\"fileDescriptorIndex\":0,\"name\":\"s\",\"config\":\"nvme\"}", image, "ConfigNotSupported");
        call(&m, INSTANCE "AddStorage", "{\"fileDescriptorIndex\":0,\"name\":\"s\",\"config\":\"rw\"}", readable, "BadConfig");
        call(&m, INSTANCE "ReplaceStorage", "{\"fileDescriptorIndex\":0,\"name\":\"s\"}", image, "NoSuchStorage");
        call(&m, INSTANCE "AddStorage", "{\"fileDescriptorIndex\":0,\"name\":\"s\",\"config\":\"raw,rw,virtio-blk\"}", image, "{\"parameters\":{}}");
        expect_event(&m, "deviceAttached", "s", "");
        call(&m, INSTANCE "AddStorage", "{\"fileDescriptorIndex\":0,\"name\":\"s\"}", image, "StorageExists");
        call(&m, INTERFACE "ResizeDisk", "{\"device\":\"s\"}", -1, "1048576");
        call(&m, INSTANCE "ReplaceStorage", "{\"fileDescriptorIndex\":0,\"name\":\"s\"}", readable, "BadConfig");
        call(&m, INSTANCE "ReplaceStorage", "{\"fileDescriptorIndex\":0,\"name\":\"s\"}", other, "{\"parameters\":{}}");
        expect_event(&m, "deviceDetached", "s", "as asked");
        expect_event(&m, "deviceAttached", "s", "");
        call(&m, INTERFACE "ResizeDisk", "{\"device\":\"s\"}", -1, "2097152");
        call(&m, INSTANCE "RemoveStorage", "{\"name\":\"s\"}", -1, "{\"parameters\":{}}");
        expect_event(&m, "deviceDetached", "s", "as asked");
        call(&m, INSTANCE "RemoveStorage", "{\"name\":\"s\"}", -1, "NoSuchStorage");
        (void) close(image);
        (void) close(other);
        (void) close(readable);
        machine_end(&m);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(refuses_what_is_no_device_to_attach),
                cmocka_unit_test(refuses_a_snapshot_with_an_attached_device),
                cmocka_unit_test(refuses_more_devices_than_slots),
                cmocka_unit_test(tries_another_unit_where_one_is_not_there),
                cmocka_unit_test(keeps_a_device_that_the_guest_does_not_let_go_of),
                cmocka_unit_test(does_nothing_while_the_machine_is_paused_but_by_force),
                cmocka_unit_test(attaches_and_detaches_beside_another),
                cmocka_unit_test(each_kind_comes_and_goes_often_without_a_leak),
                cmocka_unit_test(what_is_attached_stays_and_goes_when_another_vmmd_has_taken_over),
                cmocka_unit_test(nobody_takes_over_nor_keeps_the_machine_while_a_device_comes),
                cmocka_unit_test(nobody_takes_over_while_a_device_goes),
                cmocka_unit_test(takes_away_by_force_and_gives_the_slot_again),
                cmocka_unit_test(a_reset_keeps_what_is_attached_and_does_what_was_asked),
                cmocka_unit_test(a_device_of_the_definition_can_go_and_others_come),
                cmocka_unit_test(a_helper_that_dies_meanwhile_holds_nobody_up),
                cmocka_unit_test(comes_back_when_its_unit_does),
                cmocka_unit_test(comes_back_when_another_vmmd_has_taken_over),
                cmocka_unit_test(what_another_vmmd_left_in_a_slot_is_taken_out),
                cmocka_unit_test(a_client_that_leaves_leaves_its_device),
                cmocka_unit_test(who_waits_is_told_of_the_machine_s_end),
                cmocka_unit_test(storage_is_added_replaced_and_removed),
        };

        if (access("/dev/kvm", R_OK | W_OK) < 0)
                return 77;
        return cmocka_run_group_tests(tests, NULL, NULL);
}
