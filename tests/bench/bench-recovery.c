/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* How long a guest waits for its disk when the helper is killed: from SIGKILL to the first request that is done, and what of that the process itself
 * needs. In between the helper is killed with 32 requests under way, each of which is checked.
 *
 *     bench-recovery [N]                      under a service manager made for it, that starts a successor at once
 *     bench-recovery [N] --unit=UNIT SOCKET   a unit's helper, which the service manager proper restarts; the disk is at least 16 MiB */

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>

#include "disk-load.h"
#include "manager.h"

#define must(condition)                                                                                        \
        do {                                                                                                   \
                if (!(condition)) {                                                                            \
                        fprintf(stderr, "%s:%d: %s (%m)\n", __FILE__, __LINE__, #condition);                   \
                        exit(EXIT_FAILURE);                                                                    \
                }                                                                                              \
        } while (false)

typedef struct Helper {
        const char *unit; /* NULL: the manager's */
        Manager manager;
} Helper;

static pid_t ask_unit_pid(const char *unit) {
        char command[256], text[32] = {};
        FILE *f;
        long pid;

        (void) snprintf(command, sizeof(command), "systemctl show -P MainPID '%s'", unit);
        f = popen(command, "r");
        must(f && fgets(text, sizeof(text), f));
        (void) pclose(f);
        pid = strtol(text, NULL, 10);
        return (pid_t) pid;
}

/* Waits for a successor. */
static pid_t helper_pid(Helper *h) {
        pid_t pid = h->unit ? 0 : h->manager.pid;

        for (unsigned i = 0; pid <= 0 && i < (unsigned) fe_patience / 10; i++) {
                pid = ask_unit_pid(h->unit);
                if (pid <= 0)
                        (void) usleep(10000);
        }
        must(pid > 0);
        return pid;
}

/* Returns when that was, and it is dead. */
static uint64_t kill_helper(Helper *h, pid_t pid) {
        int fd = (int) syscall(SYS_pidfd_open, pid, 0);
        struct pollfd p = { .fd = fd, .events = POLLIN };
        uint64_t now = now_usec();

        must(fd >= 0);
        if (!h->unit)
                manager_kill(&h->manager);
        else {
                must(kill(pid, SIGKILL) == 0);
                must(poll(&p, 1, fe_patience) == 1);
        }
        (void) close(fd);
        return now;
}

static int compare(const void *a, const void *b) {
        uint64_t x = *(const uint64_t *) a, y = *(const uint64_t *) b;

        return x < y ? -1 : x > y;
}

static void report(uint64_t *times, size_t n) {
        size_t half = n / 2, nearly_all = MIN(n * 99 / 100, n - 1);

        qsort(times, n, sizeof(*times), compare);
        printf("death to first request: p50 %.1f ms, p99 %.1f ms, max %.1f ms (%zu deaths)\n", (double) times[half] / 1000,
                (double) times[nearly_all] / 1000, (double) times[n - 1] / 1000, n);
}

static bool has_hung_up(FrontEnd *f) {
        struct pollfd p = { .fd = f->fd, .events = POLLRDHUP };

        return poll(&p, 1, 0) != 0;
}

static void connect_front_end(FrontEnd *f, const char *path) {
        fe_connect(f, path, 0);
        fe_negotiate(f, 0);
        fe_set_mem_table(f);
        fe_share_inflight(f, 1, DISK_LOAD_NUM);
        fe_start_queue(f, 0, DISK_LOAD_NUM);
        (void) fe_get_u64(f, VHOST_USER_GET_STATUS);
}

static void run(Helper *h, const char *path, size_t n) {
        _cleanup_free_ uint64_t *times = calloc(n, sizeof(uint64_t));
        DiskLoad load = { .seed = 1 };
        FrontEnd f;

        must(times);
        connect_front_end(&f, path);
        for (size_t i = 0; i < n; i++) {
                disk_load_begin(&load, &f);
                pid_t pid = helper_pid(h);
                unsigned before = load.n_done, until = load.n_done + 1 + (unsigned) rand_r(&load.seed) % 1000;

                /* In the middle of it; */
                while (load.n_done < until)
                        must(disk_load_step(&load, &f, true, 2 * fe_patience));
                (void) kill_helper(h, pid);
                if (!h->unit)
                        manager_start(&h->manager);
                disk_load_finish(&load, &f);
                must(load.n_done > before);
                /* and where nothing is to be done but what comes then. */
                times[i] = kill_helper(h, helper_pid(h));
                if (!h->unit)
                        manager_start(&h->manager);
                disk_load_begin(&load, &f);
                must(disk_load_step(&load, &f, false, 2 * fe_patience));
                times[i] = now_usec() - times[i];
        }
        disk_load_finish(&load, &f);
        must(!has_hung_up(&f)); /* all of it was one session */
        printf("%u requests, each done once and checked\n", load.n_done);
        report(times, n);
        fe_disconnect(&f);
}

static void run_here(size_t n) {
        char path[] = "/var/tmp/bench-recovery-XXXXXX", argument[64];
        Helper h = {};
        int fd = mkostemp(path, O_CLOEXEC);

        must(fd >= 0 && ftruncate(fd, DISK_LOAD_SIZE) == 0);
        (void) snprintf(argument, sizeof(argument), "--path=%s", path);
        manager_up(&h.manager, "vhost-user", (const char *const[]) { "block", argument, NULL });
        run(&h, h.manager.transport_path, n);
        manager_down(&h.manager);
        (void) close(fd);
        (void) unlink(path);
}

int main(int argc, char **argv) {
        Helper h = {};
        size_t n = 50;

        (void) setvbuf(stdout, NULL, _IOLBF, 0);
        if (argc > 1 && argv[1][0] != '-') {
                n = strtoul(argv[1], NULL, 10);
                argc--;
                argv++;
        }
        must(n > 0 && n < 100000);
        if (argc == 1)
                run_here(n);
        else {
                must(argc == 3 && (h.unit = startswith(argv[1], "--unit=")));
                fe_patience = 60000; /* its service manager may be an emulated one */
                run(&h, argv[2], n);
        }
        return EXIT_SUCCESS;
}
