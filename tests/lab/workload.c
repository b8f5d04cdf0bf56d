/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The verifying workload of a guest: everything that its devices do is checked, and how long nothing was done is measured.
 *
 *   disk     four threads write, flush, read again and compare, past the page cache; a fifth appends records that are announced once flushed
 *   memory   the same by one thread on persistent memory, /dev/pmem0
 *   net      a TCP stream to the host, which echoes it; the connection has to last
 *   vsock    the same by AF_VSOCK; a connection may be reset, as the device does when it starts anew, but nothing in one may be wrong
 *   rng      entropy comes, and is not empty
 *   console  each line "PING NUMBER WORD SUM" on hvc0 is answered by "PONG NUMBER WORD SUM MICROSECONDS"; "STOP" ends the work
 *   clock    a timer of one millisecond
 *
 * What has no device is left out. Once in work_interval= milliseconds (of the environment, which is the kernel's command line) a line says how far each is:
 *
 *   WORK n time=MS NAME=done,errors,resets,gap-us … synced=RECORD
 *
 * `gap` is the longest time without anything done since the last such line. At the end everything on the disks is compared once more, and "DMESG …" are the
 * kernel's complaints since the beginning. Linked statically, as nothing else is there. */

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/vm_sockets.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define BLOCK_SIZE 16384U
#define BLOCKS_A_THREAD 256U
#define DISK_THREADS 4U
#define RECORDS 64U
#define NET_PORT 7000
#define NET_HOST 0x0a630001 /* 10.99.0.1 */
#define VSOCK_PORT 1001
/* Beyond any pause that a helper's restart may be. */
#define STUCK_SECONDS 90
#define DISK_OFFSET ((off_t) 1 << 20)

typedef enum Kind { DISK, MEMORY, NET, VSOCK, RNG, CONSOLE, CLOCK, KINDS } Kind;

static const char *const names[KINDS] = { "disk", "memory", "net", "vsock", "rng", "console", "clock" };

typedef struct Work {
        bool used;
        pthread_mutex_t lock;
        uint64_t done, errors, resets;
        uint64_t last_usec, gap_usec;
} Work;

/* One thread's part of a disk. */
typedef struct Region {
        Kind kind;
        unsigned number;
        int fd;
        uint32_t generations[BLOCKS_A_THREAD];
        pthread_t thread;
} Region;

static Work works[KINDS];
static Region regions[DISK_THREADS + 1];
static atomic_uint n_synced;
static atomic_bool stopping;

static uint64_t now_usec(clockid_t clock) {
        struct timespec t;

        (void) clock_gettime(clock, &t);
        return (uint64_t) t.tv_sec * 1000000 + (uint64_t) t.tv_nsec / 1000;
}

static void done(Kind kind) {
        Work *w = &works[kind];
        uint64_t now;

        (void) pthread_mutex_lock(&w->lock);
        now = now_usec(CLOCK_MONOTONIC);
        if (w->last_usec && now - w->last_usec > w->gap_usec)
                w->gap_usec = now - w->last_usec;
        w->last_usec = now;
        w->done++;
        (void) pthread_mutex_unlock(&w->lock);
}

static void reset(Kind kind) {
        (void) pthread_mutex_lock(&works[kind].lock);
        works[kind].resets++;
        (void) pthread_mutex_unlock(&works[kind].lock);
}

__attribute__((format(printf, 2, 3))) static void wrong(Kind kind, const char *format, ...) {
        char text[512];
        va_list arguments;

        va_start(arguments, format);
        (void) vsnprintf(text, sizeof(text), format, arguments);
        va_end(arguments);
        (void) pthread_mutex_lock(&works[kind].lock);
        works[kind].errors++;
        (void) pthread_mutex_unlock(&works[kind].lock);
        (void) printf("WORK-ERROR %s: %s\n", names[kind], text);
}

/* --- what is written and sent --- */

/* Its first word says which it is; the rest follows from that. */
static void fill(void *buffer, size_t size, uint64_t seed) {
        uint64_t *words = buffer, x = (seed * UINT64_C(0x9e3779b97f4a7c15)) | 1;

        words[0] = seed;
        for (size_t i = 1; i < size / sizeof(uint64_t); i++) {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                words[i] = x;
        }
}

static bool is_filled(const void *buffer, size_t size, uint64_t seed) {
        uint64_t expected[BLOCK_SIZE / sizeof(uint64_t)];

        fill(expected, size, seed);
        return memcmp(buffer, expected, size) == 0;
}

static unsigned pick(unsigned *state, unsigned n) {
        *state = *state * 1103515245U + 12345U;
        return (*state >> 12) % n;
}

/* --- disks --- */

static uint64_t block_seed(const Region *g, unsigned block, uint32_t generation) {
        return (uint64_t) (g->number + 1) << 56 | (uint64_t) block << 32 | generation;
}

static off_t block_offset(const Region *g, unsigned block) {
        return DISK_OFFSET + (off_t) (g->number * BLOCKS_A_THREAD + block) * BLOCK_SIZE;
}

static void write_block(Region *g, unsigned block, void *buffer) {
        uint32_t generation = g->generations[block] + 1;
        ssize_t n;

        fill(buffer, BLOCK_SIZE, block_seed(g, block, generation));
        n = pwrite(g->fd, buffer, BLOCK_SIZE, block_offset(g, block));
        if (n != BLOCK_SIZE)
                wrong(g->kind, "thread %u: writing block %u: %zd %s", g->number, block, n, strerror(errno));
        g->generations[block] = generation;
        done(g->kind);
}

static void check_block(Region *g, unsigned block, void *buffer) {
        uint64_t seed = block_seed(g, block, g->generations[block]), found;
        ssize_t n;

        if (g->generations[block] == 0)
                return;
        memset(buffer, 0, BLOCK_SIZE);
        n = pread(g->fd, buffer, BLOCK_SIZE, block_offset(g, block));
        memcpy(&found, buffer, sizeof(found));
        if (n != BLOCK_SIZE)
                wrong(g->kind, "thread %u: reading block %u: %zd %s", g->number, block, n, strerror(errno));
        else if (!is_filled(buffer, BLOCK_SIZE, seed))
                wrong(g->kind, "thread %u: block %u is %#" PRIx64 "…, not %#" PRIx64, g->number, block, found, seed);
        done(g->kind);
}

static void flush(Region *g) {
        if (fsync(g->fd) < 0)
                wrong(g->kind, "thread %u: fsync: %s", g->number, strerror(errno));
        done(g->kind);
}

static void *work_disk(void *argument) {
        Region *g = argument;
        unsigned state = g->number + 1;
        void *buffer;

        if (posix_memalign(&buffer, 4096, BLOCK_SIZE) != 0)
                abort();
        for (unsigned i = 0; !stopping; i++) {
                write_block(g, pick(&state, BLOCKS_A_THREAD), buffer);
                if (i % 8 == 0)
                        flush(g);
                check_block(g, pick(&state, BLOCKS_A_THREAD), buffer);
        }
        flush(g);
        for (unsigned block = 0; block < BLOCKS_A_THREAD; block++)
                check_block(g, block, buffer);
        free(buffer);
        return NULL;
}

/* Records of 4 KiB, in a ring from the disk's beginning. */
static void *append_records(void *argument) {
        int fd = *(const int *) argument;
        void *buffer;

        if (posix_memalign(&buffer, 4096, 4096) != 0)
                abort();
        for (unsigned n = 1; !stopping; n++) {
                fill(buffer, 4096, n);
                if (pwrite(fd, buffer, 4096, (off_t) (n % RECORDS) * 4096) != 4096 || fsync(fd) < 0)
                        wrong(DISK, "record %u: %s", n, strerror(errno));
                else
                        n_synced = n;
                done(DISK);
                (void) usleep(50000);
        }
        free(buffer);
        return NULL;
}

/* --- streams --- */

static int connect_to_host(Kind kind) {
        const struct sockaddr_in in = { .sin_family = AF_INET, .sin_port = htons(NET_PORT), .sin_addr.s_addr = htonl(NET_HOST) };
        const struct sockaddr_vm vm = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST, .svm_port = VSOCK_PORT };
        const struct timeval patience = { .tv_sec = STUCK_SECONDS };
        int fd = socket(kind == NET ? AF_INET : AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0), r;

        if (fd < 0)
                return -errno;
        (void) setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
        (void) setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
        r = kind == NET ? connect(fd, (const struct sockaddr *) &in, sizeof(in)) : connect(fd, (const struct sockaddr *) &vm, sizeof(vm));
        if (r < 0) {
                r = -errno;
                (void) close(fd);
                return r;
        }
        return fd;
}

/* 0, or why not. */
static int transfer(int fd, void *buffer, size_t size, bool sends) {
        ssize_t n;

        for (size_t at = 0; at < size; at += (size_t) n) {
                n = sends ? send(fd, (char *) buffer + at, size - at, MSG_NOSIGNAL) : recv(fd, (char *) buffer + at, size - at, 0);
                if (n <= 0)
                        return n < 0 ? -errno : -ECONNRESET;
        }
        return 0;
}

/* Until the connection ends, or the work. */
static int stream(Kind kind, int fd, uint64_t *number) {
        static _Thread_local uint64_t buffer[BLOCK_SIZE / sizeof(uint64_t)];
        int r = 0;

        while (!stopping && r >= 0) {
                uint64_t seed = (uint64_t) kind << 56 | ++*number;

                fill(buffer, BLOCK_SIZE, seed);
                r = transfer(fd, buffer, BLOCK_SIZE, true);
                if (r >= 0)
                        r = transfer(fd, buffer, BLOCK_SIZE, false);
                if (r < 0)
                        break;
                if (!is_filled(buffer, BLOCK_SIZE, seed)) {
                        wrong(kind, "part %" PRIu64 " came back as %#" PRIx64 "…", *number, buffer[0]);
                        r = -EBADMSG;
                }
                done(kind);
                (void) usleep(2000);
        }
        return r;
}

/* The host's side may not be there yet; and a vsock connection ends with the helper. */
static void *work_stream(void *argument) {
        Kind kind = *(const Kind *) argument;
        uint64_t number = 0;

        while (!stopping) {
                int fd = connect_to_host(kind), r = fd;

                if (fd >= 0) {
                        r = stream(kind, fd, &number);
                        (void) close(fd);
                }
                if (r == -EAGAIN || r == -EINPROGRESS)
                        wrong(kind, "nothing came for %u s", STUCK_SECONDS);
                else if (r < 0 && fd >= 0 && kind == NET)
                        wrong(kind, "the connection ended: %s", strerror(-r));
                else if (r < 0 && fd >= 0)
                        reset(kind);
                (void) usleep(50000);
        }
        return NULL;
}

/* --- the others --- */

/* The node is there in any case. */
static bool has_rng(void) {
        int fd = open("/dev/hwrng", O_RDONLY | O_CLOEXEC);
        char byte;
        bool has = fd >= 0 && read(fd, &byte, 1) == 1;

        if (fd >= 0)
                (void) close(fd);
        return has;
}

static void *work_rng(void *argument) {
        uint64_t buffer[8];
        int fd = open("/dev/hwrng", O_RDONLY | O_CLOEXEC);

        while (!stopping) {
                ssize_t n = read(fd, buffer, sizeof(buffer));

                if (n <= 0)
                        wrong(RNG, "reading: %zd %s", n, strerror(errno));
                else if (n == sizeof(buffer) && !(buffer[0] | buffer[1] | buffer[2] | buffer[3]))
                        wrong(RNG, "it is empty");
                done(RNG);
                (void) usleep(20000);
        }
        (void) close(fd);
        return NULL;
}

/* FNV-1a */
static uint32_t sum(const char *text) {
        uint32_t hash = 2166136261U;

        for (; *text; text++)
                hash = (hash ^ (unsigned char) *text) * 16777619U;
        return hash;
}

static void answer(FILE *f, const char *line) {
        char copy[256], word[65], text[128];
        unsigned number, claimed;

        if (sscanf(line, "%255[^\n]", copy) != 1)
                return;
        if (strcmp(copy, "STOP") == 0) {
                stopping = true;
                return;
        }
        /* Of a line only part may have come, where whoever sent it was cut off from its helper. */
        if (strncmp(copy, "PING ", 5) != 0 || sscanf(copy, "PING %u %64s %x", &number, word, &claimed) != 3) {
                reset(CONSOLE);
                return;
        }
        (void) snprintf(text, sizeof(text), "%u %s", number, word);
        if (sum(text) != claimed) {
                reset(CONSOLE);
                return;
        }
        (void) fprintf(f, "PONG %s %08x %" PRIu64 "\n", text, claimed, now_usec(CLOCK_REALTIME));
        (void) fflush(f);
        done(CONSOLE);
}

static void *work_console(void *argument) {
        FILE *in = fopen("/dev/hvc0", "re"), *out = fopen("/dev/hvc0", "we");
        struct termios t;
        char line[256];

        if (!in || !out || tcgetattr(fileno(in), &t) < 0) {
                wrong(CONSOLE, "cannot open it: %s", strerror(errno));
                return NULL;
        }
        t.c_lflag &= ~(tcflag_t) (ECHO | ISIG);
        t.c_oflag &= ~(tcflag_t) OPOST;
        (void) tcsetattr(fileno(in), TCSANOW, &t);
        while (!stopping && fgets(line, sizeof(line), in))
                answer(out, line);
        if (!stopping)
                wrong(CONSOLE, "it ended: %s", strerror(errno));
        (void) fclose(in);
        (void) fclose(out);
        return NULL;
}

static void *work_clock(void *argument) {
        const struct timespec millisecond = { .tv_nsec = 1000000 };

        while (!stopping) {
                (void) clock_nanosleep(CLOCK_MONOTONIC, 0, &millisecond, NULL);
                done(CLOCK);
        }
        return NULL;
}

/* --- what is told --- */

static void report(unsigned number) {
        char line[1024];
        int n = snprintf(line, sizeof(line), "WORK %u time=%" PRIu64, number, now_usec(CLOCK_MONOTONIC) / 1000);

        for (unsigned i = 0; i < KINDS; i++) {
                Work *w = &works[i];
                uint64_t now, gap;

                if (!w->used)
                        continue;
                (void) pthread_mutex_lock(&w->lock);
                now = now_usec(CLOCK_MONOTONIC);
                gap = w->last_usec && now - w->last_usec > w->gap_usec ? now - w->last_usec : w->gap_usec;
                w->gap_usec = 0;
                n += snprintf(line + n, sizeof(line) - (size_t) n, " %s=%" PRIu64 ",%" PRIu64 ",%" PRIu64 ",%" PRIu64, names[i], w->done, w->errors,
                        w->resets, gap);
                (void) pthread_mutex_unlock(&w->lock);
        }
        (void) printf("%s synced=%u\n", line, n_synced);
}

/* Warnings and worse that came since the descriptor was opened. */
static void report_complaints(int fd) {
        char record[8192], *text;
        ssize_t n;

        while ((n = read(fd, record, sizeof(record) - 1)) > 0 || (n < 0 && errno == EPIPE)) {
                if (n < 0)
                        continue; /* some were overwritten */
                record[n] = 0;
                text = strchr(record, ';');
                if (text && (strtoul(record, NULL, 10) & 7) <= 4)
                        (void) printf("DMESG %.*s\n", (int) strcspn(text + 1, "\n"), text + 1);
        }
}

static void start(Kind kind, void *(*function)(void *), void *argument, pthread_t *ret) {
        pthread_t thread;

        works[kind].used = true;
        if (pthread_create(ret ? ret : &thread, NULL, function, argument) != 0)
                abort();
}

static void start_disk(Kind kind, const char *path, unsigned first, unsigned n_threads) {
        int fd = open(path, O_RDWR | O_CLOEXEC | (kind == DISK ? O_DIRECT : 0));

        for (unsigned i = first; i < first + n_threads; i++) {
                regions[i].fd = fd;
                if (fd < 0)
                        continue;
                regions[i].kind = kind;
                regions[i].number = i;
                start(kind, work_disk, &regions[i], &regions[i].thread);
        }
}

int main(void) {
        static const Kind net = NET, vsock = VSOCK;
        const char *text = getenv("work_interval");
        useconds_t interval = (useconds_t) (text ? atoi(text) : 1000) * 1000;
        int kmsg = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
        uint64_t errors = 0;

        (void) setvbuf(stdout, NULL, _IOLBF, 0);
        (void) lseek(kmsg, 0, SEEK_END);
        for (unsigned i = 0; i < KINDS; i++)
                (void) pthread_mutex_init(&works[i].lock, NULL);

        start_disk(DISK, "/dev/vda", 0, DISK_THREADS);
        start_disk(MEMORY, "/dev/pmem0", DISK_THREADS, 1);
        if (works[DISK].used)
                start(DISK, append_records, &regions[0].fd, NULL);
        if (access("/sys/class/net/eth0", F_OK) == 0)
                start(NET, work_stream, (void *) &net, NULL);
        if (access("/dev/vsock", F_OK) == 0)
                start(VSOCK, work_stream, (void *) &vsock, NULL);
        if (has_rng())
                start(RNG, work_rng, NULL, NULL);
        if (access("/dev/hvc0", F_OK) == 0)
                start(CONSOLE, work_console, NULL, NULL);
        start(CLOCK, work_clock, NULL, NULL);

        for (unsigned i = 1; !stopping; i++) {
                report(i);
                (void) usleep(interval);
        }
        for (unsigned i = 0; i < sizeof(regions) / sizeof(regions[0]); i++)
                if (regions[i].fd >= 0)
                        (void) pthread_join(regions[i].thread, NULL);
        for (unsigned i = 0; i < KINDS; i++)
                errors += works[i].errors;
        report(0);
        report_complaints(kmsg);
        (void) printf("WORK-END errors=%" PRIu64 "\n", errors);
        return errors > 0;
}
