/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The helper of a spare device, under a service manager made for it: what it is told and does not take, what it becomes, and what is left when it
 * is killed or released. */

#include <fcntl.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_net.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "client.h"
#include "fd-store.h"
#include "front-end.h"
#include "json-util.h"
#include "tap.h"

#define DISK_SIZE KIB(64)

/* The service manager of one unit: its sockets, its descriptor store, and what it is told. */
typedef struct Manager {
        char directory[32], transport_path[64], varlink_path[64], notify_path[64];
        int transport, varlink, notify;
        pid_t pid;
        pthread_t thread, restarter;

        pthread_mutex_t lock; /* for all below */
        pthread_cond_t changed;
        FdStore store;
} Manager;

/* ---- the manager's thread ---- */

static void *manage(void *userdata) {
        Manager *m = userdata;

        for (;;) {
                char text[512] = {};
                int fds[8];
                size_t n_fds = ELEMENTSOF(fds);

                if (recv_with_fds(m->notify, text, sizeof(text) - 1, fds, &n_fds, 0) <= 0 || streq(text, "END"))
                        return NULL;
                (void) pthread_mutex_lock(&m->lock);
                fd_store_take(&m->store, text, fds, n_fds);
                (void) pthread_cond_broadcast(&m->changed);
                (void) pthread_mutex_unlock(&m->lock);
        }
}

/* Everything that was sent before has been taken. */
static void synchronize(Manager *m) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        _cleanup_close_ int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        int p[2];
        char byte;

        assert_return_code(fd, errno);
        assert_return_code(pipe2(p, O_CLOEXEC), errno);
        (void) snprintf(address.sun_path, sizeof(address.sun_path), "%s", m->notify_path);
        assert_return_code(connect(fd, (struct sockaddr *) &address, sizeof(address)), errno);
        assert_true(send_with_fds(fd, "BARRIER=1", strlen("BARRIER=1"), &p[1], 1) > 0);
        (void) close(p[1]);
        assert_int_equal(read(p[0], &byte, 1), 0);
        (void) close(p[0]);
}

static size_t n_stored(Manager *m) {
        size_t n;

        synchronize(m);
        (void) pthread_mutex_lock(&m->lock);
        n = m->store.n;
        (void) pthread_mutex_unlock(&m->lock);
        return n;
}

/* ---- the unit ---- */

static int listen_at(char *path, size_t size, const char *directory, const char *name) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

        (void) snprintf(path, size, "%s/%s", directory, name);
        (void) snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
        assert_return_code(fd, errno);
        assert_return_code(bind(fd, (struct sockaddr *) &address, sizeof(address)), errno);
        assert_return_code(listen(fd, 16), errno);
        return fd;
}

static void manager_up(Manager *m) {
        *m = (Manager) { .directory = "/tmp/test-slot-XXXXXX", .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER };
        assert_non_null(mkdtemp(m->directory));
        m->transport = listen_at(m->transport_path, sizeof(m->transport_path), m->directory, "slot0.vhost-user");
        m->varlink = listen_at(m->varlink_path, sizeof(m->varlink_path), m->directory, "slot0.varlink");
        (void) snprintf(m->notify_path, sizeof(m->notify_path), "%s/notify", m->directory);
        m->notify = fd_store_listen(m->notify_path);
        assert_int_equal(pthread_create(&m->thread, NULL, manage, m), 0);
}

static _noreturn_ void execute(const Manager *m) {
        fd_store_execute_slot(&m->store, (int[]) { m->transport, m->varlink }, m->notify_path);
}

static void start(Manager *m) {
        unsigned before;

        synchronize(m);
        (void) pthread_mutex_lock(&m->lock);
        before = m->store.n_ready;
        m->pid = fork();
        assert_return_code(m->pid, errno);
        if (m->pid == 0)
                execute(m);
        while (m->store.n_ready == before) {
                struct timespec until;

                (void) clock_gettime(CLOCK_REALTIME, &until);
                until.tv_sec += 60;
                assert_int_equal(pthread_cond_timedwait(&m->changed, &m->lock, &until), 0);
        }
        (void) pthread_mutex_unlock(&m->lock);
}

static int wait_for_end(Manager *m) {
        int status;

        assert_int_equal(waitpid(m->pid, &status, 0), m->pid);
        m->pid = 0;
        return status;
}

/* It has ended by itself, as nobody minds. */
static void expect_end(Manager *m) {
        assert_int_equal(wait_for_end(m), 0);
}

static void kill_helper(Manager *m) {
        assert_return_code(kill(m->pid, SIGKILL), errno);
        assert_int_equal(wait_for_end(m), SIGKILL);
}

/* The manager restarts a helper that asks for it, beside the test, which waits for an answer meanwhile. */
static void *restart(void *userdata) {
        Manager *m = userdata;
        int status = wait_for_end(m);

        assert_true(WIFEXITED(status));
        assert_int_equal(WEXITSTATUS(status), 133);
        (void) pthread_mutex_lock(&m->lock);
        m->pid = fork();
        if (m->pid == 0)
                execute(m);
        (void) pthread_mutex_unlock(&m->lock);
        return NULL;
}

static void expect_successor(Manager *m) {
        assert_int_equal(pthread_create(&m->restarter, NULL, restart, m), 0);
}

static void join_successor(Manager *m) {
        assert_int_equal(pthread_join(m->restarter, NULL), 0);
}

static void manager_down(Manager *m) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

        if (m->pid > 0) {
                assert_return_code(kill(m->pid, SIGTERM), errno);
                expect_end(m);
        }
        (void) snprintf(address.sun_path, sizeof(address.sun_path), "%s", m->notify_path);
        assert_int_equal(sendto(fd, "END", 3, 0, (struct sockaddr *) &address, sizeof(address)), 3);
        (void) close(fd);
        assert_int_equal(pthread_join(m->thread, NULL), 0);
        fd_store_clear(&m->store);
        (void) close(m->transport);
        (void) close(m->varlink);
        (void) close(m->notify);
        (void) unlink(m->transport_path);
        (void) unlink(m->varlink_path);
        (void) unlink(m->notify_path);
        assert_return_code(rmdir(m->directory), errno);
}

/* ---- its client ---- */

static VarlinkClient *dial(Manager *m) {
        VarlinkClient *c = NULL;

        assert_return_code(varlink_client_connect(m->varlink_path, &c), errno);
        varlink_client_set_timeout(c, 60 * USEC_PER_SEC);
        return c;
}

/* Returns the reply; the error's id where there is one. The text's quotes are single ones. */
static json_object *call(VarlinkClient *c, const char *method, const char *text, char **ret_error) {
        _cleanup_json_ json_object *parameters = NULL;
        json_object *reply = NULL;
        char copy[4096];
        int r;

        (void) snprintf(copy, sizeof(copy), "%s", text ?: "{}");
        for (char *p = copy; *p; p++)
                *p = *p == '\'' ? '"' : *p;
        parameters = json_tokener_parse(copy);
        assert_non_null(parameters);
        *ret_error = NULL;
        r = varlink_client_call(c, method, parameters, &reply, ret_error);
        if (r < 0 && r != -EREMOTEIO)
                fail_msg("%s: %s", method, strerror(-r));
        return reply;
}

static void must_call(VarlinkClient *c, const char *method, const char *text) {
        char *error;

        json_object_put(call(c, method, text, &error));
        if (error)
                fail_msg("%s %s: %s", method, text ?: "", error);
}

static void push(VarlinkClient *c, int fd) {
        assert_true(varlink_client_push_fd(c, fd) >= 0);
}

/* NULL, where it is free. */
static void assert_is(VarlinkClient *c, const char *type, const char *name) {
        _cleanup_json_ json_object *reply = NULL;
        char *error;

        reply = call(c, "io.vmmd.Slot.Describe", NULL, &error);
        assert_null(error);
        if (type) {
                assert_string_equal(json_get_string(reply, "type", "null"), type);
                assert_string_equal(json_get_string(reply, "name", "null"), name);
        } else
                assert_null(json_get_string(reply, "type", NULL));
}

static void assert_refused(VarlinkClient *c, const char *parameters, const char *error_id, const char *words) {
        _cleanup_free_ char *error = NULL;
        _cleanup_json_ json_object *reply = NULL;
        const char *message;

        reply = call(c, "io.vmmd.Slot.Configure", parameters, &error);
        if (!error || !streq(error, error_id))
                fail_msg("%s: %s %s", parameters, error ?: "was taken", json_object_to_json_string(reply));
        message = json_get_string(reply, "message", "");
        if (words && !strstr(message, words))
                fail_msg("%s: %s", parameters, message);
}

/* ---- what is behind a device ---- */

/* A file whose every sector begins with its number. */
static int make_disk(bool writable) {
        char path[] = "/var/tmp/test-slot-XXXXXX";
        int fd = mkostemp(path, O_CLOEXEC), other;

        assert_return_code(fd, errno);
        for (uint32_t i = 0; i < DISK_SIZE / 512; i++)
                assert_int_equal(pwrite(fd, &i, sizeof(i), (off_t) i * 512), sizeof(i));
        assert_return_code(ftruncate(fd, DISK_SIZE), errno);
        if (!writable) {
                other = open(path, O_RDONLY | O_CLOEXEC);
                (void) close(fd);
                fd = other;
        }
        (void) unlink(path);
        return fd;
}

static int dup_fd(int fd) {
        int copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);

        assert_return_code(copy, errno);
        return copy;
}

static void front_end_up(FrontEnd *f, Manager *m, unsigned n_queues) {
        fe_connect(f, m->transport_path, m->pid);
        fe_negotiate(f, 0);
        fe_set_mem_table(f);
        fe_share_inflight(f, (uint16_t) n_queues, 8);
        for (unsigned i = 0; i < n_queues; i++)
                fe_start_queue(f, i, 8);
}

static uint32_t read_sector(FrontEnd *f, uint32_t sector) {
        struct virtio_blk_outhdr *header = (void *) (f->ram + FE_BUFFERS);
        uint32_t number;

        *header = (struct virtio_blk_outhdr) { .type = VIRTIO_BLK_T_IN, .sector = sector };
        f->ram[FE_BUFFERS + KIB(8)] = 0xff;
        fe_desc(f, 0, 0, FE_ADDRESS(FE_BUFFERS), sizeof(*header), VRING_DESC_F_NEXT, 1);
        fe_desc(f, 0, 1, FE_ADDRESS(FE_BUFFERS + KIB(4)), 512, VRING_DESC_F_NEXT | VRING_DESC_F_WRITE, 2);
        fe_desc(f, 0, 2, FE_ADDRESS(FE_BUFFERS + KIB(8)), 1, VRING_DESC_F_WRITE, 0);
        fe_offer(f, 0, 0);
        fe_kick(f, 0);
        (void) fe_wait(f, 0);
        assert_int_equal(f->ram[FE_BUFFERS + KIB(8)], VIRTIO_BLK_S_OK);
        memcpy(&number, f->ram + FE_BUFFERS + KIB(4), sizeof(number));
        return number;
}

#define DISK "{'type':'block','name':'data','options':{'path':['/srv/data.img'],'serial':['S1']}," \
             "'fileDescriptors':[{'option':'path','index':0}]}"

static void configure_disk(Manager *m, int disk) {
        VarlinkClient *c = dial(m);

        push(c, dup_fd(disk));
        must_call(c, "io.vmmd.Slot.Configure", DISK);
        assert_is(c, "block", "data");
        (void) varlink_client_unref(c);
}

static unsigned count_filters(pid_t pid) {
        const char *value = NULL;
        char path[64], line[128];
        FILE *f;

        (void) snprintf(path, sizeof(path), "/proc/%d/status", (int) pid);
        f = fopen(path, "re");
        assert_non_null(f);
        while (!value && fgets(line, sizeof(line), f))
                value = startswith(line, "Seccomp_filters:");
        (void) fclose(f);
        return value ? (unsigned) strtoul(value, NULL, 10) : 0;
}

static size_t count_open(pid_t pid) {
        char path[64], name[80], target[64];
        size_t n = 0;

        (void) snprintf(path, sizeof(path), "/proc/%d/fd", (int) pid);
        for (int fd = 0; fd < 256; fd++) {
                (void) snprintf(name, sizeof(name), "%s/%d", path, fd);
                n += readlink(name, target, sizeof(target)) >= 0;
        }
        return n;
}

/* ---- refusals ---- */

static void refuses_what_makes_no_sense(void **state) {
        static const struct {
                const char *parameters, *words;
        } cases[] = {
                { "{'type':'floppy','name':'a','options':{},'fileDescriptors':[]}", "not a type of device that can be attached" },
                { "{'type':'','name':'a','options':{},'fileDescriptors':[]}", "not a type" },
                { "{'type':'slot','name':'a','options':{},'fileDescriptors':[]}", "not a type" },
                { "{'type':'serial','name':'a','options':{},'fileDescriptors':[]}", "not a type" },
                { "{'type':'balloon','name':'a','options':{},'fileDescriptors':[]}", "not a type" },
                { "{'type':'rng','name':'','options':{},'fileDescriptors':[]}", "cannot be a device's name" },
                { "{'type':'rng','name':'../a','options':{},'fileDescriptors':[]}", "cannot be a device's name" },
                { "{'type':'rng','name':'a b','options':{},'fileDescriptors':[]}", "cannot be a device's name" },
                { "{'type':'rng','name':'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','options':{},'fileDescriptors':[]}", "name" },
                { "{'type':'rng','name':'a','options':{'path':['/x']},'fileDescriptors':[]}", "\"path\" is not an option" },
                { "{'type':'rng','name':'a','options':[],'fileDescriptors':[]}", "no options" },
                { "{'type':'block','name':'a','options':{'path':'/x'},'fileDescriptors':[{'option':'path','index':0}]}", "has 0 values" },
                { "{'type':'block','name':'a','options':{'path':[1]},'fileDescriptors':[{'option':'path','index':0}]}", "not texts" },
                { "{'type':'rng','name':'a','options':{'--no-sandbox':['1']},'fileDescriptors':[]}", "not an option" },
                { "{'type':'rng','name':'a','options':{'':['1']},'fileDescriptors':[]}", "not an option" },
                { "{'type':'block','name':'a','options':{},'fileDescriptors':[]}", "path" },
                { "{'type':'block','name':'a','options':{'path':['/x'],'root':['true']},'fileDescriptors':[{'option':'path','index':0}]}",
                  "\"root\" is not an option" },
                { "{'type':'block','name':'a','options':{'path':['/x'],'read-only':['yes']},'fileDescriptors':[{'option':'path','index':0}]}",
                  "not an option" },
                { "{'type':'block','name':'a','options':{'path':['/x'],'readOnly':['perhaps']},'fileDescriptors':[{'option':'path','index':0}]}",
                  "not a value" },
                { "{'type':'block','name':'a','options':{'path':['/x'],'queues':['17']},'fileDescriptors':[{'option':'path','index':0}]}",
                  "not a value" },
                { "{'type':'block','name':'a','options':{'path':['/x'],'serial':['123456789012345678901']},"
                  "'fileDescriptors':[{'option':'path','index':0}]}", "not a value" },
                { "{'type':'block','name':'a','options':{'path':[]},'fileDescriptors':[{'option':'path','index':0}]}", "has 0 values" },
                { "{'type':'block','name':'a','options':{'path':['/x','/y']},'fileDescriptors':[{'option':'path','index':0}]}", "has 2 values" },
                /* It has no network, and no user but the unit's. */
                { "{'type':'net','name':'a','options':{'backend':['passt']},'fileDescriptors':[]}", "has a unit of its own" },
                { "{'type':'block','name':'a','options':{'format':['nbd'],'server':['127.0.0.1:10809']},'fileDescriptors':[]}", "has a unit of its own" },
                { "{'type':'fs','name':'a','options':{'path':['/x'],'tag':['t'],'user':['root']},'fileDescriptors':[{'option':'path','index':2}]}",
                  "not an option" },
                { "{'type':'vhost-user','name':'a','options':{'virtioId':['2'],'command':['/bin/sh','{fd}']},'fileDescriptors':[]}", "not a type" },
                { "{'type':'fs','name':'a','options':{'path':['/x'],'tag':['t']},'fileDescriptors':[{'option':'path','index':0}]}", "not a directory" },
                /* It opens nothing by itself. */
                { "{'type':'block','name':'a','options':{'path':['/etc/passwd']},'fileDescriptors':[]}", "has 0 descriptors" },
                { "{'type':'console','name':'a','options':{'log':['/var/log/x']},'fileDescriptors':[]}", "has 0 descriptors" },
                { "{'type':'net','name':'a','options':{'interface':['vm0']},'fileDescriptors':[]}", "has 0 descriptors" },
                /* Descriptors: 0 is a file, 1 a socket, 2 a directory. */
                { "{'type':'rng','name':'a','options':{},'fileDescriptors':[{'option':'path','index':0}]}", "no option" },
                { "{'type':'block','name':'a','options':{'path':['/x']},'fileDescriptors':[{'option':'path','index':0},{'option':'serial','index':1}]}",
                  "no option" },
                { "{'type':'block','name':'a','options':{'path':['/x']},'fileDescriptors':[{'option':'slot-configuration','index':0}]}",
                  "has 0 descriptors" },
                { "{'type':'block','name':'a','options':{'path':['/x']},'fileDescriptors':[{'option':'path','index':0},{'option':'path','index':0}]}",
                  "is named twice" },
                { "{'type':'block','name':'a','options':{'path':['/x']},'fileDescriptors':[{'option':'path','index':0},{'option':'path','index':1}]}",
                  "not that of a file" },
                { "{'type':'block','name':'a','options':{'path':['/x']},'fileDescriptors':[{'option':'path','index':3}]}", "did not come" },
                { "{'type':'block','name':'a','options':{'path':['/x']},'fileDescriptors':[{'option':'path','index':-1}]}", "did not come" },
                { "{'type':'block','name':'a','options':{'path':['/x']},'fileDescriptors':[{'option':'path','index':9223372036854775807}]}",
                  "did not come" },
                { "{'type':'block','name':'a','options':{'path':['/x']},'fileDescriptors':[{'option':'path','index':1}]}", "not that of a file" },
                { "{'type':'block','name':'a','options':{'path':['/x']},'fileDescriptors':[{'option':'path','index':2}]}", "not that of a file" },
                { "{'type':'net','name':'a','options':{'interface':['vm0']},'fileDescriptors':[{'option':'interface','index':0}]}",
                  "not that of an interface" },
        };
        int disk = make_disk(true), directory = open("/", O_DIRECTORY | O_CLOEXEC), pair[2];
        VarlinkClient *c;
        Manager m;

        assert_return_code(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), errno);
        manager_up(&m);
        start(&m);
        c = dial(&m);
        for (size_t i = 0; i < ELEMENTSOF(cases); i++) {
                push(c, dup_fd(disk));
                push(c, dup_fd(pair[0]));
                push(c, dup_fd(directory));
                assert_refused(c, cases[i].parameters, "io.vmmd.Slot.WrongConfiguration", cases[i].words);
                assert_is(c, NULL, NULL);
        }
        assert_int_equal(n_stored(&m), 0);

        /* After all that it is as good as new. */
        configure_disk(&m, disk);
        (void) varlink_client_unref(c);
        (void) close(disk);
        (void) close(directory);
        (void) close(pair[0]);
        (void) close(pair[1]);
        manager_down(&m);
}

static void refuses_calls_that_the_interface_does_not_know(void **state) {
        static const char *const cases[] = {
                "{}",
                "{'type':'rng','name':'a','options':{}}",
                "{'type':'rng','name':'a','options':{},'fileDescriptors':[{}]}",
                "{'type':'rng','name':'a','options':{},'fileDescriptors':[{'option':'path','index':'0'}]}",
                "{'type':'rng','name':'a','options':{},'fileDescriptors':[],'more':1}",
                "{'type':5,'name':'a','options':{},'fileDescriptors':[]}",
        };
        VarlinkClient *c;
        Manager m;

        manager_up(&m);
        start(&m);
        c = dial(&m);
        for (size_t i = 0; i < ELEMENTSOF(cases); i++)
                assert_refused(c, cases[i], "org.varlink.service.InvalidParameter", NULL);
        assert_is(c, NULL, NULL);
        (void) varlink_client_unref(c);
        manager_down(&m);
}

static void a_message_that_is_too_large_costs_the_connection_only(void **state) {
        _cleanup_free_ char *text = malloc(KIB(64));
        struct pollfd p = { .events = POLLIN | POLLOUT };
        size_t sent = 0;
        VarlinkClient *c;
        Manager m;
        ssize_t n = 0;

        assert_non_null(text);
        memset(text, '[', KIB(64));
        manager_up(&m);
        start(&m);
        p.fd = connect_unix(m.varlink_path);
        assert_return_code(p.fd, errno);
        while (sent < MIB(8) && n >= 0) {
                assert_int_equal(poll(&p, 1, 60000), 1);
                n = p.revents & POLLOUT ? send(p.fd, text, KIB(64), MSG_NOSIGNAL | MSG_DONTWAIT) : -1;
                sent += n > 0 ? (size_t) n : 0;
        }
        assert_true(sent < MIB(8)); /* somebody had enough */
        (void) close(p.fd);
        c = dial(&m);
        assert_is(c, NULL, NULL);
        (void) varlink_client_unref(c);
        manager_down(&m);
}

static void what_cannot_be_opened_leaves_nothing_behind(void **state) {
        static const char zero[] = "{'type':'net','name':'a','options':{'interface':['vm0']},'fileDescriptors':[{'option':'interface','index':0}]}";
        int disk = make_disk(false), null = open("/dev/zero", O_RDWR | O_CLOEXEC);
        VarlinkClient *c;
        Manager m;

        manager_up(&m);
        for (unsigned i = 0; i < 2; i++) {
                start(&m);
                c = dial(&m);
                push(c, dup_fd(i == 0 ? disk : null));
                assert_refused(c, i == 0 ? DISK : zero, "io.vmmd.Slot.CannotOpen", i == 0 ? "was not opened for" : "Cannot watch the tap");
                (void) varlink_client_unref(c);
                expect_end(&m);
                assert_int_equal(n_stored(&m), 0);
        }
        start(&m);
        c = dial(&m);
        assert_is(c, NULL, NULL);
        (void) varlink_client_unref(c);
        (void) close(disk);
        (void) close(null);
        manager_down(&m);
}

static void what_was_kept_of_half_a_configuration_is_forgotten(void **state) {
        int disk = make_disk(true);
        VarlinkClient *c;
        Manager m;

        manager_up(&m);
        fd_store_add(&m.store, "path", dup_fd(disk));
        fd_store_add(&m.store, "state", dup_fd(disk));
        start(&m);
        assert_int_equal(n_stored(&m), 0);
        c = dial(&m);
        assert_is(c, NULL, NULL);
        (void) varlink_client_unref(c);
        (void) close(disk);
        manager_down(&m);
}

/* It was a disk, which nobody may write to any more. */
static void what_cannot_be_opened_again_can_be_released(void **state) {
        static const char text[] = "{\"type\":\"block\",\"name\":\"data\",\"options\":{\"path\":[\"/srv/d\"]}}";
        int fd = memfd_create("test", MFD_CLOEXEC);
        VarlinkClient *c;
        Manager m;

        manager_up(&m);
        assert_int_equal(write_full(fd, text, strlen(text)), 0);
        fd_store_add(&m.store, "path", make_disk(false));
        fd_store_add(&m.store, "slot-configuration", fd);
        start(&m);
        c = dial(&m);
        assert_is(c, "block", "data");
        assert_int_equal(n_stored(&m), 2); /* for the next attempt */
        must_call(c, "io.vmmd.Slot.Release", NULL);
        (void) varlink_client_unref(c);
        expect_end(&m);
        assert_int_equal(n_stored(&m), 0);
        manager_down(&m);
}

static void does_not_start_with_a_configuration_that_is_none(void **state) {
        static const char *const texts[] = { "", "{", "{\"type\":\"rng\"}", "{\"type\":\"nothing\",\"name\":\"a\",\"options\":{}}" };
        Manager m;

        manager_up(&m);
        for (size_t i = 0; i < ELEMENTSOF(texts); i++) {
                int fd = memfd_create("test", MFD_CLOEXEC);

                assert_int_equal(write_full(fd, texts[i], strlen(texts[i])), 0);
                fd_store_add(&m.store, "slot-configuration", fd);
                m.pid = fork();
                if (m.pid == 0)
                        execute(&m);
                assert_int_equal(WEXITSTATUS(wait_for_end(&m)), EXIT_FAILURE);
                fd_store_remove(&m.store, "slot-configuration");
        }
        manager_down(&m);
}

static void needs_a_control_socket(void **state) {
        char text[512];

        assert_int_equal(fe_spawn_failing((const char *const[]) { "slot", "--socket-path=/tmp/test-slot-none", NULL }, text, sizeof(text)), 1);
        assert_non_null(strstr(text, "needs a control socket"));
        (void) unlink("/tmp/test-slot-none");
        assert_int_equal(fe_spawn_failing((const char *const[]) { "slot", "--path=/x", NULL }, text, sizeof(text)), 1);
        assert_non_null(strstr(text, "is told its device's options"));
}

/* ---- what it becomes ---- */

static void becomes_a_disk(void **state) {
        _cleanup_json_ json_object *reply = NULL, *again = NULL;
        int disk = make_disk(true);
        char *error;
        VarlinkClient *c;
        FrontEnd f;
        Manager m;

        manager_up(&m);
        start(&m);
        c = dial(&m);
        push(c, dup_fd(disk));
        must_call(c, "io.vmmd.Slot.Configure", DISK);
        assert_int_equal(n_stored(&m), 3); /* the image, the state of its cache, and what it is */

        /* On the same connection it is a device now, */
        reply = call(c, "io.vmmd.Device.Describe", NULL, &error);
        assert_null(error);
        assert_string_equal(json_get_string(reply, "type", ""), "block");
        /* and nothing else any more. */
        push(c, dup_fd(disk));
        again = call(c, "io.vmmd.Slot.Configure", DISK, &error);
        assert_string_equal(error, "io.vmmd.Slot.AlreadyConfigured");
        assert_string_equal(json_get_string(again, "name", ""), "data");
        free(error);

        front_end_up(&f, &m, 1);
        for (uint32_t i = 0; i < 16; i++)
                assert_int_equal(read_sector(&f, i * 7), i * 7);
        fe_disconnect(&f);
        (void) varlink_client_unref(c);
        (void) close(disk);
        manager_down(&m);
}

/* Another project's program: a successor begins with it, and has the answer. */
static void becomes_another_projects_program(void **state) {
        static const char configuration[] = "{'type':'block','name':'q','options':{'path':['/srv/q'],'format':['qcow2']},"
                "'fileDescriptors':[{'option':'path','index':0}]}";
        static const char wrong[] = "{'type':'block','name':'q','options':{'path':['/srv/q'],'format':['luks'],'keyFile':['/srv/k']},"
                "'fileDescriptors':[{'option':'path','index':0},{'option':'keyFile','index':1}]}";
        char path[] = "/var/tmp/test-slot-XXXXXX", command[128];
        int fd = mkostemp(path, O_CLOEXEC), disk = make_disk(true);
        VarlinkClient *c;
        FrontEnd f;
        Manager m;

        assert_return_code(fd, errno);
        (void) snprintf(command, sizeof(command), "qemu-img create -q -f qcow2 %s 1M 2>/dev/null", path);
        if (access("/usr/bin/qemu-storage-daemon", X_OK) < 0 || system(command) != 0) {
                (void) unlink(path);
                skip();
        }
        (void) close(fd);
        fd = open(path, O_RDWR | O_CLOEXEC);
        manager_up(&m);

        /* What is none is said by the successor, on the same connection. */
        start(&m);
        c = dial(&m);
        push(c, dup_fd(disk));
        push(c, dup_fd(disk));
        expect_successor(&m);
        assert_refused(c, wrong, "io.vmmd.Slot.CannotOpen", "not encrypted with LUKS");
        (void) varlink_client_unref(c);
        join_successor(&m);
        expect_end(&m);
        assert_int_equal(n_stored(&m), 0);

        start(&m);
        c = dial(&m);
        push(c, dup_fd(fd));
        expect_successor(&m);
        must_call(c, "io.vmmd.Slot.Configure", configuration);
        join_successor(&m);
        assert_is(c, "block", "q");
        assert_int_equal(n_stored(&m), 2);
        fe_connect(&f, m.transport_path, m.pid);
        fe_negotiate(&f, 0);
        fe_set_mem_table(&f);
        fe_start_queue(&f, 0, 8);
        assert_int_equal(read_sector(&f, 3), 0);
        fe_disconnect(&f);
        must_call(c, "io.vmmd.Slot.Release", NULL);
        (void) varlink_client_unref(c);
        expect_end(&m);
        assert_int_equal(n_stored(&m), 0);
        (void) unlink(path);
        (void) close(fd);
        (void) close(disk);
        manager_down(&m);
}

static void whoever_came_before_the_configuration_is_served(void **state) {
        int disk = make_disk(true);
        FrontEnd f;
        Manager m;

        manager_up(&m);
        start(&m);
        fe_connect(&f, m.transport_path, m.pid);
        configure_disk(&m, disk);
        fe_negotiate(&f, 0);
        fe_set_mem_table(&f);
        fe_start_queue(&f, 0, 8);
        assert_int_equal(read_sector(&f, 5), 5);
        fe_disconnect(&f);
        (void) close(disk);
        manager_down(&m);
}

static void becomes_each_other_kind(void **state) {
        static const char *const configurations[] = {
                "{'type':'rng','name':'r','options':{},'fileDescriptors':[]}",
                "{'type':'console','name':'c','options':{'history':['65536'],'ports':['agent','org.x.0']},'fileDescriptors':[]}",
                "{'type':'console','name':'c','options':{'log':['/var/log/c']},'fileDescriptors':[{'option':'log','index':0}]}",
                ("{'type':'block','name':'b','options':{'path':['/x'],'readOnly':['true'],'queues':['4']},"
                        "'fileDescriptors':[{'option':'path','index':0}]}"),
        };
        int disk = make_disk(true);
        VarlinkClient *c;
        FrontEnd f;
        Manager m;

        manager_up(&m);
        for (size_t i = 0; i < ELEMENTSOF(configurations); i++) {
                start(&m);
                c = dial(&m);
                push(c, dup_fd(disk));
                must_call(c, "io.vmmd.Slot.Configure", configurations[i]);
                front_end_up(&f, &m, 1);
                fe_disconnect(&f);
                must_call(c, "io.vmmd.Slot.Release", NULL);
                (void) varlink_client_unref(c);
                expect_end(&m);
                assert_int_equal(n_stored(&m), 0);
        }
        (void) close(disk);
        manager_down(&m);
}

static void becomes_a_network_device(void **state) {
        static const char configuration[] = "{'type':'net','name':'n','options':{'interface':['tapslot0'],'queuePairs':['2']},"
                "'fileDescriptors':[{'option':'interface','index':0},{'option':'interface','index':1}]}";
        struct virtio_net_config config;
        VarlinkClient *c;
        FrontEnd f;
        Manager m;
        int fds[2];

        if (system("ip tuntap add dev tapslot0 mode tap multi_queue vnet_hdr 2>/dev/null") != 0)
                skip();
        assert_return_code(tap_open("tapslot0", 2, fds, NULL), errno);
        manager_up(&m);
        start(&m);
        c = dial(&m);
        push(c, fds[0]);
        push(c, fds[1]);
        must_call(c, "io.vmmd.Slot.Configure", configuration);
        assert_int_equal(n_stored(&m), 4); /* queues, configuration, the device's state */
        for (unsigned i = 0; i < 2; i++) {
                front_end_up(&f, &m, 1);
                fe_get_config(&f, &config, sizeof(config));
                assert_int_equal(config.max_virtqueue_pairs, 2);
                assert_memory_equal(config.mac, "\x52\x54\x00\x00\x00\x01", 6); /* the unit's */
                fe_disconnect(&f);
                if (i == 0) {
                        kill_helper(&m);
                        start(&m);
                }
        }
        (void) varlink_client_unref(c);
        c = dial(&m);
        must_call(c, "io.vmmd.Slot.Release", NULL);
        /* Whoever wants it next has it at once. */
        assert_return_code(tap_open("tapslot0", 2, fds, NULL), errno);
        assert_int_equal(n_stored(&m), 0);
        (void) close(fds[0]);
        (void) close(fds[1]);
        (void) varlink_client_unref(c);
        expect_end(&m);
        manager_down(&m);
        assert_int_equal(system("ip link delete tapslot0"), 0);
}

/* The slot's policy first, the device's on top of it. */
static void has_a_policy_before_and_another_after(void **state) {
        int disk = make_disk(true);
        unsigned before;
        Manager m;

        manager_up(&m);
        start(&m);
        before = count_filters(m.pid);
        if (before == 0) {
                manager_down(&m);
                (void) close(disk);
                skip(); /* a kernel before 5.9 does not tell */
        }
        configure_disk(&m, disk);
        assert_int_equal(count_filters(m.pid), before + 1);
        /* Who comes back knows already what it is. */
        kill_helper(&m);
        start(&m);
        assert_int_equal(count_filters(m.pid), before);
        (void) close(disk);
        manager_down(&m);
}

/* ---- its death ---- */

static void a_killed_helper_comes_back_as_the_same_device(void **state) {
        int disk = make_disk(true);
        VarlinkClient *c;
        FrontEnd f;
        Manager m;

        manager_up(&m);
        start(&m);
        configure_disk(&m, disk);
        front_end_up(&f, &m, 1);
        assert_int_equal(read_sector(&f, 9), 9);
        for (unsigned i = 0; i < 3; i++) {
                size_t n = n_stored(&m);

                kill_helper(&m);
                start(&m);
                c = dial(&m);
                assert_is(c, "block", "data");
                (void) varlink_client_unref(c);
                assert_int_equal(read_sector(&f, 40 + i), 40 + i); /* by the same session */
                assert_int_equal(n_stored(&m), n);
        }
        /* Whoever connects next is served, and so the end of this session has been noticed. */
        fe_disconnect(&f);
        front_end_up(&f, &m, 1);
        assert_int_equal(read_sector(&f, 7), 7);
        fe_disconnect(&f);
        (void) close(disk);
        manager_down(&m);
}

static void a_released_slot_is_free(void **state) {
        int disk = make_disk(true);
        VarlinkClient *c;
        FrontEnd f;
        Manager m;

        manager_up(&m);
        start(&m);
        configure_disk(&m, disk);
        front_end_up(&f, &m, 1);
        assert_int_equal(read_sector(&f, 1), 1);
        c = dial(&m);
        must_call(c, "io.vmmd.Slot.Release", NULL);
        fe_expect_hang_up(&f);
        fe_disconnect(&f);
        (void) varlink_client_unref(c);
        expect_end(&m);
        assert_int_equal(n_stored(&m), 0);

        start(&m);
        c = dial(&m);
        assert_is(c, NULL, NULL);
        must_call(c, "io.vmmd.Slot.Release", NULL); /* no harm */
        (void) varlink_client_unref(c);
        expect_end(&m);
        (void) close(disk);
        manager_down(&m);
}

static void a_hundred_rounds_leave_nothing_behind(void **state) {
        int disk = make_disk(true);
        size_t helper = 0, own;
        VarlinkClient *c;
        FrontEnd f;
        Manager m;

        manager_up(&m);
        own = count_open(getpid());
        for (unsigned i = 0; i < 100; i++) {
                start(&m);
                configure_disk(&m, disk);
                front_end_up(&f, &m, 1);
                assert_int_equal(read_sector(&f, i), i);
                if (i % 10 == 5) {
                        kill_helper(&m);
                        fe_disconnect(&f);
                        start(&m);
                        front_end_up(&f, &m, 1);
                        assert_int_equal(read_sector(&f, i), i);
                }
                if (i == 0)
                        helper = count_open(m.pid);
                else if (i % 10 != 5)
                        assert_int_equal(count_open(m.pid), helper);
                fe_disconnect(&f);
                c = dial(&m);
                must_call(c, "io.vmmd.Slot.Release", NULL);
                assert_int_equal(n_stored(&m), 0);
                (void) varlink_client_unref(c);
                expect_end(&m);
                assert_int_equal(count_open(getpid()), own);
        }
        (void) close(disk);
        manager_down(&m);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(refuses_what_makes_no_sense),
                cmocka_unit_test(refuses_calls_that_the_interface_does_not_know),
                cmocka_unit_test(a_message_that_is_too_large_costs_the_connection_only),
                cmocka_unit_test(what_cannot_be_opened_leaves_nothing_behind),
                cmocka_unit_test(what_was_kept_of_half_a_configuration_is_forgotten),
                cmocka_unit_test(what_cannot_be_opened_again_can_be_released),
                cmocka_unit_test(does_not_start_with_a_configuration_that_is_none),
                cmocka_unit_test(needs_a_control_socket),
                cmocka_unit_test(becomes_a_disk),
                cmocka_unit_test(becomes_another_projects_program),
                cmocka_unit_test(whoever_came_before_the_configuration_is_served),
                cmocka_unit_test(becomes_each_other_kind),
                cmocka_unit_test(becomes_a_network_device),
                cmocka_unit_test(has_a_policy_before_and_another_after),
                cmocka_unit_test(a_killed_helper_comes_back_as_the_same_device),
                cmocka_unit_test(a_released_slot_is_free),
                cmocka_unit_test(a_hundred_rounds_leave_nothing_behind),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
