/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Devices that are other projects' programs, by the real helper: qemu-storage-daemon, and programs that do everything wrong. */

#include <fcntl.h>
#include <ftw.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "front-end.h"

#define PROGRAM "/usr/bin/qemu-storage-daemon"
#define NUM 128

static char directory[] = "/var/tmp/vmm-test-foreign-XXXXXX";

/* cmocka's skip() says "not ok … # SKIP", which is a failure to those who read TAP. */
#define needs_the_program()                                                   \
        do {                                                                  \
                if (access(PROGRAM, X_OK) < 0) {                              \
                        print_message("# SKIPPED, for want of " PROGRAM "\n"); \
                        return;                                               \
                }                                                             \
        } while (0)

/* A shell command in the directory of the images; it has to succeed. */
static void shell(const char *format, ...) _printf_(1, 2);
static void shell(const char *format, ...) {
        _cleanup_free_ char *command = NULL, *all = NULL;
        va_list ap;

        va_start(ap, format);
        assert_true(vasprintf(&command, format, ap) >= 0);
        va_end(ap);
        assert_true(asprintf(&all, "cd %s && { %s; } >/dev/null", directory, command) >= 0);
        if (system(all) != 0)
                fail_msg("%s", command);
}

/* qemu-img measures how fast the machine is, by a clock that may not have ticked meanwhile, and gives up then. */
static void make_encrypted(const char *command) {
        _cleanup_free_ char *patient = NULL;

        assert_true(asprintf(&patient, "for i in 1 2 3 4 5 6 7 8; do %s && break; done; test \"$?\" = 0", command) > 0);
        shell("%s", patient);
}

static const char *in(const char *name) {
        static char paths[8][128];
        static unsigned next;
        char *path = paths[next++ % ELEMENTSOF(paths)];

        (void) snprintf(path, sizeof(paths[0]), "%s%s", strncmp(name, "--", 2) == 0 ? "" : directory, name);
        return path;
}

/* "--path=" and the like, of a file in the directory. */
static const char *option(const char *name, const char *file) {
        static char options[8][256];
        static unsigned next;
        char *o = options[next++ % ELEMENTSOF(options)];

        (void) snprintf(o, sizeof(options[0]), "--%s=%s/%s", name, directory, file);
        return o;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw) {
        return remove(path);
}

static int make_directory(void **state) {
        return mkdtemp(directory) ? chmod(directory, 0755) : -1;
}

static int remove_directory(void **state) {
        return nftw(directory, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

/* --- a disk's requests --- */

static uint8_t *header_of(FrontEnd *f) {
        return f->ram + FE_BUFFERS - KIB(4);
}

static uint8_t *data_of(FrontEnd *f) {
        return f->ram + FE_BUFFERS;
}

static uint8_t request(FrontEnd *f, uint32_t type, uint64_t sector, uint32_t length) {
        struct virtio_blk_outhdr header = { .type = type, .sector = sector };
        uint64_t at = FE_ADDRESS((uint64_t) (header_of(f) - f->ram));
        struct vring_used_elem used;

        memcpy(header_of(f), &header, sizeof(header));
        header_of(f)[32] = 0xee;
        fe_desc(f, 0, 0, at, sizeof(header), VRING_DESC_F_NEXT, length > 0 ? 1 : 2);
        fe_desc(f, 0, 1, FE_ADDRESS((uint64_t) (data_of(f) - f->ram)), length,
                (uint16_t) (VRING_DESC_F_NEXT | (type == VIRTIO_BLK_T_IN ? VRING_DESC_F_WRITE : 0)), 2);
        fe_desc(f, 0, 2, at + 32, 1, VRING_DESC_F_WRITE, 0);
        fe_offer(f, 0, 0);
        fe_kick(f, 0);
        assert_true(fe_used(f, 0, 20000, &used));
        return header_of(f)[32];
}

static void expect_read(FrontEnd *f, uint64_t sector, uint8_t byte) {
        memset(data_of(f), 0xaa, 4096);
        assert_int_equal(request(f, VIRTIO_BLK_T_IN, sector, 4096), VIRTIO_BLK_S_OK);
        for (unsigned i = 0; i < 4096; i++)
                if (data_of(f)[i] != byte)
                        fail_msg("byte %u is 0x%02x, expected 0x%02x", i, data_of(f)[i], byte);
}

static void expect_write(FrontEnd *f, uint64_t sector, uint8_t byte) {
        memset(data_of(f), byte, 4096);
        assert_int_equal(request(f, VIRTIO_BLK_T_OUT, sector, 4096), VIRTIO_BLK_S_OK);
        assert_int_equal(request(f, VIRTIO_BLK_T_FLUSH, 0, 0), VIRTIO_BLK_S_OK);
}

/* The program offers more than this driver can do. */
static void start_disk(FrontEnd *f) {
        const uint64_t without = UINT64_C(1) << VIRTIO_F_RING_PACKED | UINT64_C(1) << VHOST_F_LOG_ALL | UINT64_C(1) << VIRTIO_F_ACCESS_PLATFORM;

        fe_negotiate_some(f, without, UINT64_C(1) << VHOST_USER_PROTOCOL_F_MQ | UINT64_C(1) << VHOST_USER_PROTOCOL_F_REPLY_ACK |
                UINT64_C(1) << VHOST_USER_PROTOCOL_F_CONFIG | UINT64_C(1) << VHOST_USER_PROTOCOL_F_BACKEND_REQ);
        fe_set_mem_table(f);
        fe_start_queue(f, 0, NUM);
}

static void begin(FrontEnd *f, const char *const *arguments) {
        fe_spawn(f, arguments);
        start_disk(f);
}

static uint64_t capacity(FrontEnd *f) {
        struct virtio_blk_config config = {};

        fe_get_config(f, &config, 60);
        return config.capacity * 512;
}

/* --- refusals --- */

static void refuses(const char *const *arguments, const char *says) {
        char text[4096];

        assert_int_equal(fe_spawn_failing(arguments, text, sizeof(text)), 1);
        if (!strstr(text, says))
                fail_msg("'%s' is not in: %s", says, text);
}

#define refuses_these(says, ...) refuses((const char *const[]) { __VA_ARGS__, NULL }, says)

static void refuses_commands_that_make_no_sense(void **state) {
        refuses_these("absolute path", "vhost-user");
        refuses_these("absolute path", "vhost-user", "--command=true", "--command={fd}");
        refuses_these("no place for the socket", "vhost-user", "--command=/bin/true", "--command=--fd=3");
        refuses_these("more than one place", "vhost-user", "--command=/bin/true", "--command={fd}", "--command=--socket={socket}");
        refuses_these("Cannot run /does/not/exist: No such file", "vhost-user", "--command=/does/not/exist", "--command={fd}");
        refuses_these("Cannot run /etc/passwd: Permission denied", "vhost-user", "--command=/etc/passwd", "--command={fd}");
        refuses_these("--queues=65", "vhost-user", "--command=/bin/true", "--command={fd}", "--queues=65");
        refuses_these("not an option", "vhost-user", "--command=/bin/true", "--command={fd}", "--network=yes");
}

static void names_the_package_of_a_missing_program(void **state) {
        if (access("/usr/libexec/virtiofsd", X_OK) >= 0) {
                print_message("# SKIPPED, as this machine has virtiofsd\n");
                return;
        }
        refuses_these("There is no /usr/libexec/virtiofsd, which Debian has in the package virtiofsd", "fs", "--path=/usr", "--tag=t");
}

static void refuses_images_that_are_not_what_they_should_be(void **state) {
        needs_the_program();
        shell("truncate -s 1M raw; head -c 40 /dev/zero >short");
        refuses_these("it is not a qcow2 image", "block", "--format=qcow2", option("path", "raw"));
        refuses_these("it is not a qcow2 image", "block", "--format=qcow2", option("path", "short"));
        refuses_these("it is not a vmdk image", "block", "--format=vmdk", option("path", "raw"));
        refuses_these("it is not a vhdx image", "block", "--format=vhdx", option("path", "raw"));
        refuses_these("it is not encrypted with LUKS", "block", "--format=luks", option("path", "raw"), "--key-file=/dev/null");
        refuses_these("one of \"keyFile\" and \"keyCredential\"", "block", "--format=luks", option("path", "raw"));
        refuses_these("Cannot open /does/not/exist: No such file", "block", "--format=qcow2", "--path=/does/not/exist");
        shell("qemu-img create -f vmdk -o subformat=monolithicFlat flat.vmdk 1M");
        refuses_these("in files of their own", "block", "--format=vmdk", option("path", "flat.vmdk"));
        shell("qemu-img create -f qcow2 -o data_file=data,data_file_raw=on external 1M");
        refuses_these("in a file of their own", "block", "--format=qcow2", option("path", "external"));
        make_encrypted("qemu-img create -f qcow2 --object secret,id=k,data=x -o encrypt.format=luks,encrypt.key-secret=k,encrypt.iter-time=100 encrypted 1M");
        refuses_these("encrypted within qcow2", "block", "--format=qcow2", option("path", "encrypted"));
        shell("printf 'LUKS\\272\\276\\000\\002' >luks2; truncate -s 1M luks2");
        refuses_these("LUKS of version 2", "block", "--format=luks", option("path", "luks2"), "--key-file=/dev/null");
}

static void refuses_a_chain_that_is_not_as_it_says(void **state) {
        needs_the_program();
        shell("truncate -s 1M base.raw; qemu-img create -f qcow2 -b base.raw -F raw top 1M; qemu-img create -f qcow2 alone 1M");
        refuses_these("has a backing file, \"base.raw\", which \"backing\" does not name", "block", "--format=qcow2", option("path", "top"));
        refuses_these("has no backing file, but \"backing\" names", "block", "--format=qcow2", option("path", "alone"), option("backing", "base.raw"));
        refuses_these("it is not a qcow2 image", "block", "--format=qcow2", option("path", "base.raw"), option("backing", "top"));
        shell("qemu-img rebase -u -b base.raw -F '' top 2>&1 || true; qemu-img create -f qcow2 -b alone -F qcow2 two");
        refuses_these("has no backing file, but \"backing\" names", "block", "--format=qcow2", option("path", "two"), option("backing", "alone"),
                option("backing", "base.raw"));
        refuses_these("takes --backing= only where format=qcow2", "block", "--format=vmdk", option("path", "two"), option("backing", "alone"));
        refuses_these("takes --serial= only where format=raw", "block", "--format=qcow2", option("path", "alone"), "--serial=x");
}

/* Each byte of a header is anything: an image may be a stranger's. */
static void survives_damaged_headers(void **state) {
        char text[4096];

        needs_the_program();
        shell("qemu-img create -f qcow2 -b base.raw -F raw fuzz 1M; cp fuzz original");
        for (unsigned i = 4; i < 128; i += 3) {
                shell("cp original fuzz; printf '\\377\\377\\377' | dd of=fuzz bs=1 seek=%u conv=notrunc 2>/dev/null", i);
                /* Taken or refused, and no socket to serve in either case. */
                assert_int_equal(fe_spawn_failing((const char *const[]) { "block", "--format=qcow2", option("path", "fuzz"),
                                         option("backing", "base.raw"), NULL }, text, sizeof(text)), 1);
                assert_null(strstr(text, "Sanitizer"));
        }
}

/* --- programs that do everything wrong --- */

/* Ends with 1, and hangs up at its front-end. */
static void expect_failure(const char *command, const char *place, const char *timeout, const char *message, size_t size) {
        _cleanup_free_ char *script = NULL;
        const char *arguments[] = { "vhost-user", "--command=/bin/sh", "--command=-c", NULL, "--command=sh", place, timeout, NULL };
        FrontEnd f;
        int status;

        assert_true(asprintf(&script, "--command=%s", command) >= 0);
        arguments[3] = script;
        fe_spawn(&f, arguments);
        if (message && send(f.fd, message, size, MSG_NOSIGNAL) < 0)
                assert_int_equal(errno, EPIPE);
        fe_expect_hang_up(&f);
        assert_int_equal(waitpid(f.pid, &status, 0), f.pid);
        assert_true(WIFEXITED(status));
        assert_int_equal(WEXITSTATUS(status), 1);
        fe_disconnect(&f);
}

#define CONNECTED "--command={fd}"
#define LISTENING "--command={listen}"
#define PATH "--command={socket}"

static void fails_with_a_program_that_ends_at_once(void **state) {
        expect_failure("exit 0", CONNECTED, NULL, NULL, 0);
        expect_failure("exit 7", LISTENING, NULL, NULL, 0);
        expect_failure("exit 0", PATH, NULL, NULL, 0);
        expect_failure("kill -SEGV $$", LISTENING, NULL, NULL, 0);
}

static void fails_with_a_program_that_hangs(void **state) {
        static const VhostUserHeader get_features = { .request = VHOST_USER_GET_FEATURES, .flags = VHOST_USER_VERSION };

        expect_failure("sleep 60", LISTENING, "--answer-timeout=1", (const char *) &get_features, sizeof(get_features));
        expect_failure("sleep 60", CONNECTED, "--answer-timeout=1", (const char *) &get_features, sizeof(get_features));
        /* Nor does it make its socket. */
        expect_failure("sleep 60", PATH, "--answer-timeout=1", (const char *) &get_features, sizeof(get_features));
        /* Nor does it end when it is asked to. */
        expect_failure("trap '' TERM; while :; do sleep 60; done", LISTENING, "--answer-timeout=1", NULL, 0);
}

static void passes_on_a_stop(void **state) {
        const char *arguments[] = { "vhost-user", "--command=/bin/sh", "--command=-c",
                "--command=trap 'echo >$0.ended; exit 0' TERM; echo >$0.begun; while :; do sleep 0.05; done", option("command", "stop"), LISTENING, NULL };
        FrontEnd f;
        int status;

        fe_spawn(&f, arguments);
        for (unsigned i = 0; access(in("/stop.begun"), F_OK) < 0 && i < 6000; i++)
                (void) poll(NULL, 0, 10);
        assert_int_equal(kill(f.pid, SIGTERM), 0);
        assert_int_equal(waitpid(f.pid, &status, 0), f.pid);
        assert_int_equal(status, 0);
        assert_int_equal(access(in("/stop.ended"), F_OK), 0);
        fe_disconnect(&f);
}

static void dies_together(void **state) {
        const char *arguments[] = { "vhost-user", "--command=/bin/sh", "--command=-c", "--command=echo $$ >$0; exec sleep 1000", option("command", "pid"), LISTENING, NULL };
        FrontEnd f;
        int status;
        pid_t pid = 0;

        fe_spawn(&f, arguments);
        for (unsigned i = 0; pid == 0 && i < 1000; i++) {
                char text[32] = "";
                int fd = open(in("/pid"), O_RDONLY | O_CLOEXEC);

                if (fd >= 0 && read(fd, text, sizeof(text) - 1) > 0 && strchr(text, '\n'))
                        pid = (pid_t) strtol(text, NULL, 10);
                (void) safe_close(fd);
                (void) poll(NULL, 0, 10);
        }
        assert_int_not_equal(pid, 0);
        assert_int_equal(kill(f.pid, SIGKILL), 0);
        assert_int_equal(waitpid(f.pid, &status, 0), f.pid);
        for (unsigned i = 0; kill(pid, 0) == 0 && i < 6000; i++)
                (void) poll(NULL, 0, 10);
        assert_int_equal(kill(pid, 0), -1);
        fe_disconnect(&f);
}

/* --- disks --- */

static void serves_a_qcow2_image_on_a_backing_file(void **state) {
        FrontEnd f;

        needs_the_program();
        shell("head -c 1M /dev/zero | tr '\\0' a >bottom.raw; qemu-img create -f qcow2 -b bottom.raw -F raw middle; qemu-img create -f qcow2 -b middle -F qcow2 disk");
        begin(&f, (const char *const[]) { "block", "--format=qcow2", option("path", "disk"), option("backing", "middle"), option("backing", "bottom.raw"), NULL });
        assert_int_equal(capacity(&f), MIB(1));
        expect_read(&f, 0, 'a');
        expect_write(&f, 8, 'b');
        expect_read(&f, 8, 'b');
        expect_read(&f, 16, 'a');
        fe_end(&f);
        shell("qemu-img convert -O raw disk out; cmp -n 4096 out bottom.raw; test \"$(head -c 8192 out | tail -c 4096 | tr -d b | wc -c)\" = 0");
        shell("test \"$(tr -d a <bottom.raw | wc -c)\" = 0; qemu-img check disk");
}

static void opens_no_path_where_it_was_handed_the_file(void **state) {
        FrontEnd f;
        int fd;

        needs_the_program();
        shell("qemu-img create -f qcow2 handed 2M");
        fd = open(in("/handed"), O_RDWR | O_CLOEXEC);
        assert_true(fd >= 0);
        fe_spawn_passing(&f, (const char *const[]) { "block", "--format=qcow2", "--path=/root/does/not/exist", NULL }, "path", fd);
        (void) close(fd);
        start_disk(&f);
        assert_int_equal(capacity(&f), MIB(2));
        expect_write(&f, 0, 'x');
        expect_read(&f, 0, 'x');
        fe_end(&f);
}

static void serves_what_may_only_be_read(void **state) {
        FrontEnd f;

        needs_the_program();
        shell("qemu-img create -f qcow2 sealed 1M; chmod 400 sealed");
        begin(&f, (const char *const[]) { "block", "--format=qcow2", option("path", "sealed"), "--read-only=yes", NULL });
        assert_true(f.features & UINT64_C(1) << VIRTIO_BLK_F_RO);
        expect_read(&f, 0, 0);
        memset(data_of(&f), 'y', 4096);
        assert_int_equal(request(&f, VIRTIO_BLK_T_OUT, 0, 4096), VIRTIO_BLK_S_IOERR);
        fe_end(&f);
}

static void serves_the_other_formats(void **state) {
        static const char *const formats[] = { "vmdk", "vhdx", "luks" };

        needs_the_program();
        shell("printf secret >key");
        shell("qemu-img create -f vmdk disk.vmdk 2M; qemu-img create -f vhdx disk.vhdx 2M");
        make_encrypted("qemu-img create -f luks --object secret,id=k,file=key -o key-secret=k,iter-time=100 disk.luks 2M");
        for (size_t i = 0; i < ELEMENTSOF(formats); i++) {
                char format[32], path[32];
                FrontEnd f;

                (void) snprintf(format, sizeof(format), "--format=%s", formats[i]);
                (void) snprintf(path, sizeof(path), "disk.%s", formats[i]);
                begin(&f, (const char *const[]) { "block", format, option("path", path), i == 2 ? option("key-file", "key") : NULL, NULL });
                assert_int_equal(capacity(&f), MIB(2));
                expect_write(&f, 64, (uint8_t) ('0' + i));
                expect_read(&f, 64, (uint8_t) ('0' + i));
                fe_end(&f);
        }
        shell("test \"$(grep -c 2222 disk.luks)\" = 0");
}

static void refuses_a_wrong_key(void **state) {
        FrontEnd f;
        int status;

        needs_the_program();
        shell("printf wrong >wrong");
        fe_spawn(&f, (const char *const[]) { "block", "--format=luks", option("path", "disk.luks"), option("key-file", "wrong"), NULL });
        fe_expect_hang_up(&f);
        assert_int_equal(waitpid(f.pid, &status, 0), f.pid);
        assert_int_equal(WEXITSTATUS(status), 1);
        fe_disconnect(&f);
}

static void serves_a_disk_over_nbd(void **state) {
        char server[200];
        FrontEnd f;
        pid_t pid;

        needs_the_program();
        shell("truncate -s 4M nbd.raw");
        pid = fork();
        if (pid == 0) {
                (void) execlp("qemu-nbd", "qemu-nbd", "--socket", in("/nbd"), "--persistent", "--format=raw", "--export-name=e", in("/nbd.raw"), NULL);
                _exit(127);
        }
        for (unsigned i = 0; access(in("/nbd"), F_OK) < 0 && i < 6000; i++)
                (void) poll(NULL, 0, 10);
        (void) snprintf(server, sizeof(server), "--server=unix:%s", in("/nbd"));
        begin(&f, (const char *const[]) { "block", "--format=nbd", server, "--export=e", NULL });
        assert_int_equal(capacity(&f), MIB(4));
        expect_write(&f, 0, 'n');
        expect_read(&f, 0, 'n');
        fe_end(&f);
        shell("test \"$(head -c 4096 nbd.raw | tr -d n | wc -c)\" = 0");
        (void) kill(pid, SIGTERM);
        (void) waitpid(pid, NULL, 0);
}

/* --- the control plane --- */

static void begin_with_control(FrontEnd *f, const char *image, const char *more) {
        begin(f, (const char *const[]) { "block", "--format=qcow2", option("path", image), option("varlink-path", "varlink"), more, NULL });
}

static void expect_call(const char *call, const char *says) {
        const char *reply = fe_call(in("/varlink"), call, -EBADF);

        if (!strstr(reply, says))
                fail_msg("'%s' is not in: %s", says, reply);
}

static void describes_itself_like_any_other(void **state) {
        FrontEnd f;

        needs_the_program();
        shell("qemu-img create -f qcow2 described 1M");
        begin_with_control(&f, "described", NULL);
        expect_read(&f, 0, 0); /* so that it has come so far */
        expect_call("{\"method\":\"io.vmmd.Device.Describe\"}", "\"type\":\"block\",\"state\":\"running\",\"connected\":true,\"queues\":1");
        expect_call("{\"method\":\"io.vmmd.Device.Describe\"}", "\"program\":\"" PROGRAM "\"");
        (void) fe_stop_queue(&f, 0);
        expect_call("{\"method\":\"io.vmmd.Device.Describe\"}", "\"state\":\"suspended\"");
        expect_call("{\"method\":\"io.vmmd.Device.OpenConsole\"}", "NotSupported");
        fe_end(&f);
}

static void resizes_and_tells_the_guest(void **state) {
        FrontEnd f;

        needs_the_program();
        shell("qemu-img create -f qcow2 growing 1M");
        begin_with_control(&f, "growing", NULL);
        assert_int_equal(capacity(&f), MIB(1));
        expect_call("{\"method\":\"io.vmmd.Device.Resize\",\"parameters\":{}}", "\"size\":1048576");
        expect_call("{\"method\":\"io.vmmd.Device.Resize\",\"parameters\":{\"size\":100}}", "InvalidParameter");
        expect_call("{\"method\":\"io.vmmd.Device.Resize\",\"parameters\":{\"size\":8388608}}", "\"size\":8388608");
        assert_true(fe_config_changed(&f, 60000));
        assert_int_equal(capacity(&f), MIB(8));
        expect_write(&f, MIB(7) / 512, 'z');
        expect_call("{\"method\":\"io.vmmd.Device.Resize\",\"parameters\":{}}", "\"size\":8388608");
        fe_end(&f);
}

static void keeps_snapshots_within_the_image(void **state) {
        FrontEnd f;

        needs_the_program();
        shell("qemu-img create -f qcow2 kept 1M");
        begin_with_control(&f, "kept", NULL);
        expect_write(&f, 0, '1');
        expect_call("{\"method\":\"io.vmmd.Image.CreateSnapshot\",\"parameters\":{\"name\":\"one\"}}", "\"parameters\":{}");
        expect_write(&f, 0, '2');
        expect_call("{\"method\":\"io.vmmd.Image.CreateSnapshot\",\"parameters\":{\"name\":\"one\"}}", "io.vmmd.Image.Failed");
        expect_call("{\"method\":\"io.vmmd.Image.CreateSnapshot\",\"parameters\":{\"name\":\"\"}}", "InvalidParameter");
        expect_call("{\"method\":\"io.vmmd.Image.CreateSnapshot\",\"parameters\":{\"name\":\"two\"}}", "\"parameters\":{}");
        expect_call("{\"method\":\"io.vmmd.Image.Describe\"}", "\"format\":\"qcow2\",\"size\":1048576");
        expect_call("{\"method\":\"io.vmmd.Image.Describe\"}", "\"name\":\"one\"");
        expect_call("{\"method\":\"io.vmmd.Image.Describe\"}", "\"name\":\"two\"");
        expect_call("{\"method\":\"io.vmmd.Image.DeleteSnapshot\",\"parameters\":{\"name\":\"two\"}}", "\"parameters\":{}");
        expect_call("{\"method\":\"io.vmmd.Image.DeleteSnapshot\",\"parameters\":{\"name\":\"two\"}}", "io.vmmd.Image.Failed");
        expect_read(&f, 0, '2');
        fe_end(&f);
        shell("qemu-img convert -l snapshot.name=one -O raw kept then; test \"$(head -c 4096 then | tr -d 1 | wc -c)\" = 0; qemu-img check kept");
}

static void fails_with_its_program(void **state) {
        const char *reply, *at;
        FrontEnd f;
        int status;

        needs_the_program();
        shell("qemu-img create -f qcow2 killed 1M");
        begin_with_control(&f, "killed", NULL);
        reply = fe_call(in("/varlink"), "{\"method\":\"io.vmmd.Device.Describe\"}", -EBADF);
        at = strstr(reply, "\"programPid\":");
        assert_non_null(at);
        assert_int_equal(kill((pid_t) strtol(at + strlen("\"programPid\":"), NULL, 10), SIGKILL), 0);
        fe_expect_hang_up(&f);
        assert_int_equal(waitpid(f.pid, &status, 0), f.pid);
        assert_int_equal(WEXITSTATUS(status), 1);
        fe_disconnect(&f);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(refuses_commands_that_make_no_sense),
                cmocka_unit_test(names_the_package_of_a_missing_program),
                cmocka_unit_test(refuses_images_that_are_not_what_they_should_be),
                cmocka_unit_test(refuses_a_chain_that_is_not_as_it_says),
                cmocka_unit_test(survives_damaged_headers),
                cmocka_unit_test(fails_with_a_program_that_ends_at_once),
                cmocka_unit_test(fails_with_a_program_that_hangs),
                cmocka_unit_test(passes_on_a_stop),
                cmocka_unit_test(dies_together),
                cmocka_unit_test(serves_a_qcow2_image_on_a_backing_file),
                cmocka_unit_test(opens_no_path_where_it_was_handed_the_file),
                cmocka_unit_test(serves_what_may_only_be_read),
                cmocka_unit_test(serves_the_other_formats),
                cmocka_unit_test(refuses_a_wrong_key),
                cmocka_unit_test(serves_a_disk_over_nbd),
                cmocka_unit_test(describes_itself_like_any_other),
                cmocka_unit_test(resizes_and_tells_the_guest),
                cmocka_unit_test(keeps_snapshots_within_the_image),
                cmocka_unit_test(fails_with_its_program),
        };

        return cmocka_run_group_tests(tests, make_directory, remove_directory);
}
