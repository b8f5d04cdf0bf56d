/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Another program takes over a running machine: the real vmmd, the real helpers, and a guest that notices what is lost (reload-kernel.c). */

#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "json-util.h"
#include "machine-rig.h"
#include "reload-kernel.h"
#include "skip.h"

#define INTERFACE "io.vmmd.Machine."
#define RELOADS 50
#define DEVICES ", \"vcpus\": 2, \"devices\": { \"rng0\": { \"type\": \"rng\" }, \"com\": { \"type\": \"serial\" } }"

__asm__(".pushsection .rodata\n kernel_placeholder: hlt\n kernel_placeholder_end:\n .popsection\n");
KERNEL_DECLARE(placeholder)

static bool has_kvm(void) {
        return access("/dev/kvm", R_OK | W_OK) >= 0;
}

typedef struct Helper {
        pid_t pid;
        char sockets[2][128];
} Helper;

typedef struct Guest {
        Run run;
        Helper rng, serial;
        char program[64];
        const volatile Report *report;
        size_t mapped;
} Guest;

/* --- a machine --- */

static void copy_file(const char *from, const char *to) {
        _cleanup_close_ int in = open(from, O_RDONLY | O_CLOEXEC), out = -EBADF;
        _cleanup_free_ char *data = NULL;
        char path[128];
        size_t size;

        assert_true(in >= 0);
        assert_int_equal(read_whole_fd(in, MIB(256), &data, &size), 0);
        (void) snprintf(path, sizeof(path), "%s.new", to);
        out = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0700);
        assert_true(out >= 0);
        assert_int_equal(write_full(out, data, size), 0);
        out = safe_close(out); /* or it is busy */
        assert_int_equal(rename(path, to), 0);
}

static void helper_start(Helper *h, const Run *run, const char *type, const char *name, const char *suffix) {
        const char *program = getenv("VMM_DEVICE");
        char options[2][160];

        assert_non_null(program);
        (void) snprintf(h->sockets[0], sizeof(h->sockets[0]), "%s/devices/tiny/%s.%s", run->directory, name, suffix);
        (void) snprintf(h->sockets[1], sizeof(h->sockets[1]), "%s/devices/tiny/%s.varlink", run->directory, name);
        (void) snprintf(options[0], sizeof(options[0]), "--socket-path=%s", h->sockets[0]);
        (void) snprintf(options[1], sizeof(options[1]), "--varlink-path=%s", h->sockets[1]);
        h->pid = fork();
        assert_true(h->pid >= 0);
        if (h->pid == 0) {
                (void) prctl(PR_SET_PDEATHSIG, SIGKILL);
                (void) dup2(open("/dev/null", O_WRONLY), STDERR_FILENO);
                (void) execl(program, program, type, options[0], options[1], NULL);
                _exit(127);
        }
        for (unsigned i = 0; access(h->sockets[0], F_OK) < 0 || access(h->sockets[1], F_OK) < 0; i++) {
                assert_true(i < 6000);
                (void) usleep(10000);
        }
}

static void helper_end(Helper *h) {
        if (h->pid <= 0)
                return;
        (void) kill(h->pid, SIGKILL);
        assert_int_equal(waitpid(h->pid, NULL, 0), h->pid);
        (void) unlink(h->sockets[0]);
        (void) unlink(h->sockets[1]);
        h->pid = 0;
}

/* The guest's memory is a file of vmmd's: what the guest says there is seen by who may see its descriptors. */
static void map_report(Guest *g) {
        char path[320];
        struct dirent *e;
        DIR *d;

        (void) snprintf(path, sizeof(path), "/proc/%i/fd", g->run.pid);
        d = opendir(path);
        assert_non_null(d);
        while (!g->report && (e = readdir(d))) {
                _cleanup_close_ int fd = -EBADF;
                struct stat st;
                void *p;

                (void) snprintf(path, sizeof(path), "/proc/%i/fd/%s", g->run.pid, e->d_name);
                if (stat(path, &st) < 0 || !S_ISREG(st.st_mode) || st.st_size != (off_t) MIB(64))
                        continue;
                fd = open(path, O_RDONLY | O_CLOEXEC);
                assert_true(fd >= 0);
                p = mmap(NULL, sizeof(Report), PROT_READ, MAP_SHARED, fd, REPORT_ADDRESS);
                assert_true(p != MAP_FAILED);
                g->report = p;
        }
        (void) closedir(d);
        assert_non_null(g->report);
}

static void wait_for_loops(const Guest *g, uint64_t loops) {
        for (unsigned i = 0; i < 6000; i++) {
                if (g->report->magic == REPORT_MAGIC && g->report->loops >= loops)
                        return;
                (void) usleep(5000);
        }
        fail_msg("the guest stands still: %" PRIu64 " of %" PRIu64 " loops, %" PRIu64 " ticks, %" PRIu64 " requests, %" PRIu64 " replies, %" PRIu64 " registers",
                g->report->loops, loops, g->report->ticks, g->report->requests, g->report->replies, g->report->registers);
}

static void wait_for_ticks(const Guest *g, uint64_t ticks) {
        for (unsigned i = 0; i < 6000; i++) {
                if (g->report->ticks >= ticks)
                        return;
                (void) usleep(5000);
        }
        fail_msg("the guest's timer stands still at %" PRIu64 " ticks", g->report->ticks);
}

static void guest_start(Guest *g) {
        char path[128];

        *g = (Guest) {};
        RUN_PREPARE(&g->run, placeholder, DEVICES);
        (void) snprintf(path, sizeof(path), "%s/kernel", g->run.directory);
        copy_file(getenv("RELOAD_KERNEL"), path);
        (void) snprintf(g->program, sizeof(g->program), "%s/vmmd", g->run.directory);
        copy_file(getenv("VMMD_INSTALLED"), g->program);
        (void) setenv("VMMD", g->program, 1);
        (void) snprintf(path, sizeof(path), "%s/devices", g->run.directory);
        (void) mkdir(path, 0700);
        (void) snprintf(path, sizeof(path), "%s/devices/tiny", g->run.directory);
        (void) mkdir(path, 0700);
        helper_start(&g->rng, &g->run, "rng", "rng0", "vhost-user");
        helper_start(&g->serial, &g->run, "serial", "com", "bus");
        run_vmmd(&g->run, true);
        wait_for_state(&g->run, "running");
        map_report(g);
        wait_for_loops(g, 10);
        assert_int_equal(g->report->has_rng, 1);
        assert_int_equal(g->report->has_serial, 1);
}

static void check_report(const Guest *g) {
        const Report r = *(const Report *) (uintptr_t) g->report;

        assert_int_equal(r.tsc_back, 0);
        assert_int_equal(r.clock_back, 0);
        assert_int_equal(r.clock_jumped, 0);
        assert_int_equal(r.wrong_registers, 0);
        assert_int_equal(r.wrong_interrupts, 0);
        /* Nothing lost, nothing twice. */
        assert_in_range(r.requests - r.replies, 0, 1);
}

static void guest_end(Guest *g) {
        char text[4096], path[64];
        int r;

        check_report(g);
        call_and_succeed(&g->run, "Terminate", "{}");
        helper_end(&g->rng);
        helper_end(&g->serial);
        (void) munmap((void *) (uintptr_t) g->report, sizeof(Report));
        (void) unlink(g->program);
        (void) snprintf(path, sizeof(path), "%s/devices/tiny", g->run.directory);
        (void) rmdir(path);
        (void) snprintf(path, sizeof(path), "%s/devices", g->run.directory);
        (void) rmdir(path);
        r = run_end(&g->run, text);
        if (r != 0)
                fail_msg("vmmd ended with %d: %s", r, text);
}

static json_object *reload(const Guest *g) {
        _cleanup_close_ int fd = run_connect(&g->run);
        json_object *reply;

        send_call(fd, INTERFACE "Reload", "{}", "");
        reply = receive(fd);
        if (!reply)
                fail_msg("no answer to Reload");
        return reply;
}

static int64_t reload_well(const Guest *g) {
        json_object *reply = reload(g), *parameters = json_get(reply, "parameters", json_type_object);
        int64_t pause;

        if (json_get_string(reply, "error", NULL))
                fail_msg("Reload: %s", json_object_to_json_string(reply));
        pause = json_get_integer(parameters, "pause", -1);
        assert_true(pause > 0);
        json_object_put(reply);
        return pause;
}

/* Nobody keeps a program that is not in use any more, neither one that failed nor one that it came back from. */
static void expect_no_program_is_kept(const Guest *g) {
        char path[320], target[320];
        struct dirent *e;
        DIR *d;

        (void) snprintf(path, sizeof(path), "/proc/%i/fd", g->run.pid);
        d = opendir(path);
        assert_non_null(d);
        while ((e = readdir(d))) {
                ssize_t n;

                (void) snprintf(path, sizeof(path), "/proc/%i/fd/%s", g->run.pid, e->d_name);
                n = readlink(path, target, sizeof(target) - 1);
                target[MAX(n, 0)] = 0;
                if (startswith(target, g->program))
                        fail_msg("descriptor %s is still %s", e->d_name, target);
        }
        (void) closedir(d);
}

/* Refused with this in the reason; the guest goes on, and a program that fits is taken all the same. */
static void expect_refusal(const Guest *g, const char *program, const char *word) {
        json_object *reply;
        const char *reason;
        uint64_t loops;

        copy_file(program, g->program);
        reply = reload(g);
        reason = json_get_string(json_get(reply, "parameters", json_type_object), "reason", "");
        if (!streq(json_get_string(reply, "error", ""), INTERFACE "ReloadFailed") || !strstr(reason, word))
                fail_msg("no '%s' in %s", word, json_object_to_json_string(reply));
        json_object_put(reply);

        loops = g->report->loops;
        wait_for_loops(g, loops + 10);
        wait_for_ticks(g, g->report->ticks + 2);
        wait_for_state(&g->run, "running");
        expect_no_program_is_kept(g);
        copy_file(getenv("VMMD_INSTALLED"), g->program);
        (void) reload_well(g);
        loops = g->report->loops;
        wait_for_loops(g, loops + 10);
}

/* --- tests --- */

static void refuses_what_is_no_program(void **state) {
        Guest g;

        if (!has_kvm())
                skip_for_want_of("/dev/kvm");
        guest_start(&g);
        expect_refusal(&g, "/etc/passwd", "cannot be asked: Exec format error");
        expect_refusal(&g, "/bin/true", "it is no vmmd that could be asked");
        expect_refusal(&g, "/bin/false", "it failed without a reason");
        guest_end(&g);
}

static void refuses_a_program_of_another_format_before_any_pause(void **state) {
        Guest g;

        if (!has_kvm())
                skip_for_want_of("/dev/kvm");
        guest_start(&g);
        expect_refusal(&g, getenv("VMMD_OTHER_FORMAT"), "knows format 99");
        guest_end(&g);
}

static void a_program_that_cannot_read_the_state_gives_way(void **state) {
        Guest g;

        if (!has_kvm())
                skip_for_want_of("/dev/kvm");
        guest_start(&g);
        expect_refusal(&g, getenv("VMMD_OTHER_READER"), "State has format 1, expected 99");
        guest_end(&g);
}

static void a_program_that_fails_at_the_last_moment_gives_way(void **state) {
        Guest g;

        if (!has_kvm())
                skip_for_want_of("/dev/kvm");
        guest_start(&g);
        expect_refusal(&g, getenv("VMMD_FAILING"), "this program fails at the end");
        guest_end(&g);
}

static void fail_by(const char *way, const char *word) {
        Guest g;

        (void) setenv("VMMD_FAILS", way, 1);
        guest_start(&g);
        (void) unsetenv("VMMD_FAILS");
        expect_refusal(&g, getenv("VMMD_FAILING"), word);
        guest_end(&g);
}

static void a_program_that_crashes_or_hangs_gives_way(void **state) {
        if (!has_kvm())
                skip_for_want_of("/dev/kvm");
        fail_by("crash when asked", "cannot take over: "); /* and whatever it says of that */
        fail_by("crash", "crashed while it took the machine over");
        fail_by("abort", "aborted while it took the machine over");
        fail_by("cannot be executed", "cannot be executed: Permission denied");
        /* Ten seconds each. */
        fail_by("hang when asked", "does not say whether it can take over");
        fail_by("hang without a word", "does not say whether it can take over");
        fail_by("hang", "did not take the machine over in time");
}

static void expect_answer(int fd, const char *word) {
        json_object *reply = receive(fd);

        assert_non_null(reply);
        if (!strstr(json_object_to_json_string(reply), word))
                fail_msg("no '%s' in %s", word, json_object_to_json_string(reply));
        json_object_put(reply);
}

static void two_at_once_are_one(void **state) {
        _cleanup_close_ int first = -EBADF, second = -EBADF;
        Guest g;

        if (!has_kvm())
                skip_for_want_of("/dev/kvm");
        guest_start(&g);
        first = run_connect(&g.run);
        second = run_connect(&g.run);
        /* vmmd is not to be through with the first when it sees the second. */
        assert_int_equal(kill(g.run.pid, SIGSTOP), 0);
        send_call(first, INTERFACE "Reload", "{}", "");
        send_call(second, INTERFACE "Reload", "{}", "");
        assert_int_equal(kill(g.run.pid, SIGCONT), 0);
        /* Whichever it is that it takes up first. */
        {
                json_object *a = receive(first), *b = receive(second);
                const char *error_a = json_get_string(a, "error", NULL), *error_b = json_get_string(b, "error", NULL);

                assert_non_null(a);
                assert_non_null(b);
                if (!error_a == !error_b || !streq(error_a ?: error_b, INTERFACE "WrongState"))
                        fail_msg("%s, %s", json_object_to_json_string(a), json_object_to_json_string(b));
                json_object_put(a);
                json_object_put(b);
        }
        wait_for_loops(&g, g.report->loops + 10);
        (void) reload_well(&g);
        guest_end(&g);
}

/* A reset that comes between is done. It either is in the way, or over when the vCPUs would pause. */
static void a_reset_meanwhile_comes_first(void **state) {
        _cleanup_close_ int fd = -EBADF, other = -EBADF;
        json_object *reply;
        const char *error;
        Guest g;

        if (!has_kvm())
                skip_for_want_of("/dev/kvm");
        guest_start(&g);
        fd = run_connect(&g.run);
        other = run_connect(&g.run);
        assert_int_equal(kill(g.run.pid, SIGSTOP), 0);
        send_call(fd, INTERFACE "Reload", "{}", "");
        send_call(other, INTERFACE "Reset", "{}", "");
        assert_int_equal(kill(g.run.pid, SIGCONT), 0);
        reply = receive(fd);
        assert_non_null(reply);
        error = json_get_string(reply, "error", NULL);
        if (error && !streq(error, INTERFACE "ReloadFailed") && !streq(error, INTERFACE "WrongState"))
                fail_msg("%s", error);
        json_object_put(reply);
        expect_answer(other, "parameters");
        wait_for_state(&g.run, "running");
        wait_for_loops(&g, 10);
        call_and_expect(&g.run, "Describe", "{}", "\"resets\":1");
        (void) reload_well(&g);
        wait_for_loops(&g, g.report->loops + 10);
        guest_end(&g);
}

static void refuses_while_a_helper_starts_and_says_which(void **state) {
        json_object *reply;
        const char *reason;
        Guest g;

        if (!has_kvm())
                skip_for_want_of("/dev/kvm");
        guest_start(&g);
        helper_end(&g.rng);
        for (unsigned i = 0;; i++) {
                char text[4096];

                call_text(&g.run, INTERFACE "Describe", "{}", text);
                if (strstr(text, "\"state\":\"connecting\""))
                        break;
                assert_true(i < 6000);
                (void) usleep(10000);
        }
        reply = reload(&g);
        reason = json_get_string(json_get(reply, "parameters", json_type_object), "reason", "");
        if (!strstr(reason, "rng0"))
                fail_msg("%s", json_object_to_json_string(reply));
        json_object_put(reply);
        helper_start(&g.rng, &g.run, "rng", "rng0", "vhost-user");
        wait_for_loops(&g, g.report->loops + 10);
        (void) reload_well(&g);
        wait_for_loops(&g, g.report->loops + 10);
        guest_end(&g);
}

static void a_paused_guest_stays_paused(void **state) {
        uint64_t loops;
        Guest g;

        if (!has_kvm())
                skip_for_want_of("/dev/kvm");
        guest_start(&g);
        for (unsigned i = 0; i < 2; i++) {
                call_and_succeed(&g.run, "Pause", i == 0 ? "{}" : "{\"devices\":true}");
                loops = g.report->loops;
                (void) reload_well(&g);
                wait_for_state(&g.run, "paused");
                (void) reload_well(&g);
                call_and_expect(&g.run, "Describe", "{}", "\"state\":\"paused\"");
                assert_int_equal(g.report->loops, loops);
                call_and_succeed(&g.run, "Resume", "{}");
                wait_for_loops(&g, loops + 10);
        }
        guest_end(&g);
}

/* What vmmd says to its service manager. */
static void wait_for_word(int socket, const char *word) {
        for (;;) {
                struct pollfd p = { .fd = socket, .events = POLLIN };
                char text[4096];
                ssize_t n;

                assert_int_equal(poll(&p, 1, 60000), 1);
                n = recv(socket, text, sizeof(text) - 1, 0);
                assert_true(n >= 0);
                text[n] = 0;
                if (strstr(text, word))
                        return;
        }
}

static int listen_to_words(struct sockaddr_un *ret) {
        socklen_t size = sizeof(*ret);
        int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

        /* The kernel chooses a name, which is none of the file system. */
        assert_true(fd >= 0);
        *ret = (struct sockaddr_un) { .sun_family = AF_UNIX };
        assert_int_equal(bind(fd, (struct sockaddr *) ret, sizeof(ret->sun_family)), 0);
        assert_int_equal(getsockname(fd, (struct sockaddr *) ret, &size), 0);
        ret->sun_path[0] = '@';
        return fd;
}

/* Nothing of a thread that has ended meanwhile. */
static void read_of_thread(const Guest *g, const char *thread, const char *file, char line[static 64]) {
        char path[320];
        FILE *f;

        line[0] = 0;
        (void) snprintf(path, sizeof(path), "/proc/%i/task/%s/%s", g->run.pid, thread, file);
        f = fopen(path, "re");
        if (!f)
                return;
        if (!fgets(line, 64, f))
                line[0] = 0;
        (void) fclose(f);
}

/* Not in the guest, nor about to be: it waits for somebody. */
static bool a_vcpu_waits(const Guest *g) {
        char path[64], name[64], call[64];
        bool waits = false;
        struct dirent *e;
        DIR *d;

        (void) snprintf(path, sizeof(path), "/proc/%i/task", g->run.pid);
        d = opendir(path);
        assert_non_null(d);
        while ((e = readdir(d))) {
                if (e->d_name[0] == '.')
                        continue;
                read_of_thread(g, e->d_name, "comm", name);
                read_of_thread(g, e->d_name, "syscall", call);
                waits = waits || (startswith(name, "vcpu") && strtol(call, NULL, 10) == SYS_futex);
        }
        (void) closedir(d);
        return waits;
}

static void wait_until_it_waits_for_its_port(const Guest *g) {
        uint64_t before;

        do {
                before = g->report->registers;
                (void) usleep(50000);
        } while (g->report->registers != before || !a_vcpu_waits(g));
}

/* Returns the connection of a call of Reload that is under way, until the guest's helper is let go on: a vCPU that waits for it parks late. */
static int start_and_reload_late(Guest *g, int *ret_words) {
        struct sockaddr_un address;
        int fd;

        *ret_words = listen_to_words(&address);
        (void) setenv("NOTIFY_SOCKET", address.sun_path, 1);
        guest_start(g);
        (void) unsetenv("NOTIFY_SOCKET");
        assert_int_equal(kill(g->serial.pid, SIGSTOP), 0);
        wait_until_it_waits_for_its_port(g);
        fd = run_connect(&g->run);
        send_call(fd, INTERFACE "Reload", "{}", "");
        wait_for_word(*ret_words, "RELOADING=1");
        return fd;
}

static void refuses_where_it_is_asked_to_power_off_meanwhile(void **state) {
        _cleanup_close_ int words = -EBADF, fd = -EBADF;
        json_object *reply;
        const char *reason;
        Guest g;

        if (!has_kvm())
                skip_for_want_of("/dev/kvm");
        fd = start_and_reload_late(&g, &words);
        call_and_succeed(&g.run, "PowerOff", "{}");
        assert_int_equal(kill(g.serial.pid, SIGCONT), 0);

        reply = receive(fd);
        reason = json_get_string(json_get(reply, "parameters", json_type_object), "reason", "");
        if (!strstr(reason, "power off"))
                fail_msg("%s", json_object_to_json_string(reply));
        json_object_put(reply);
        wait_for_loops(&g, g.report->loops + 10);
        call_and_expect(&g.run, "Describe", "{}", "\"state\":\"stopping\"");
        guest_end(&g);
}

static int take_snapshot(const Guest *g) {
        static const char text[] = "{\"method\":\"" INTERFACE "TakeSnapshot\",\"parameters\":{\"state\":0,\"memory\":1}}";
        const int fds[] = { memfd_create("state", MFD_CLOEXEC), memfd_create("memory", MFD_CLOEXEC) };
        int fd = run_connect(&g->run);

        assert_true(fds[0] >= 0 && fds[1] >= 0);
        assert_int_equal(send_with_fds(fd, text, sizeof(text), fds, 2), sizeof(text));
        (void) close(fds[0]);
        (void) close(fds[1]);
        return fd;
}

/* Whichever comes second is refused in words, and the first is done. */
static void a_snapshot_and_another_program_are_not_taken_at_once(void **state) {
        int words, first, second;
        Guest g;

        if (!has_kvm())
                skip_for_want_of("/dev/kvm");
        first = start_and_reload_late(&g, &words);
        second = take_snapshot(&g);
        expect_answer(second, "Another vmmd is just taking the machine over.");
        (void) close(second);
        assert_int_equal(kill(g.serial.pid, SIGCONT), 0);
        expect_answer(first, "\"pause\"");
        (void) close(first);
        wait_for_loops(&g, g.report->loops + 10);

        assert_int_equal(kill(g.serial.pid, SIGSTOP), 0);
        wait_until_it_waits_for_its_port(&g);
        first = take_snapshot(&g);
        call_and_expect(&g.run, "Describe", "{}", "\"state\":"); /* which is answered later than that was read */
        second = run_connect(&g.run);
        send_call(second, INTERFACE "Reload", "{}", "");
        expect_answer(second, "A snapshot is just being taken.");
        (void) close(second);
        second = take_snapshot(&g);
        expect_answer(second, "Another snapshot is just being taken.");
        (void) close(second);
        assert_int_equal(kill(g.serial.pid, SIGCONT), 0);
        expect_answer(first, "\"meta\"");
        (void) close(first);
        wait_for_loops(&g, g.report->loops + 10);
        (void) reload_well(&g);
        (void) close(words);
        guest_end(&g);
}

static int64_t last_sequence(const Guest *g) {
        _cleanup_close_ int fd = run_connect(&g->run);
        json_object *reply;
        int64_t sequence;

        send_call(fd, INTERFACE "SubscribeEvents", "{}", ",\"more\":true");
        reply = receive(fd);
        assert_non_null(reply);
        sequence = json_get_integer(json_get(reply, "parameters", json_type_object), "sequence", -1);
        json_object_put(reply);
        return sequence;
}

static void events_go_on_and_the_reset_after_it_is_one(void **state) {
        _cleanup_close_ int fd = -EBADF;
        int64_t before, after;
        Guest g;

        if (!has_kvm())
                skip_for_want_of("/dev/kvm");
        guest_start(&g);
        before = last_sequence(&g);
        assert_true(before > 0);
        fd = run_connect(&g.run);
        send_call(fd, INTERFACE "SubscribeEvents", "{}", ",\"more\":true");
        json_object_put(receive(fd));
        (void) reload_well(&g);
        assert_null(receive(fd)); /* it ends, and its client connects again */
        after = last_sequence(&g);
        assert_int_equal(after, before);
        call_and_succeed(&g.run, "Reset", "{}");
        wait_for_state(&g.run, "running");
        assert_true(last_sequence(&g) > after);
        wait_for_loops(&g, 10);
        guest_end(&g);
}

static json_object *next_event(int fd, json_object **ret_reply) {
        json_object *parameters;

        *ret_reply = receive(fd);
        assert_non_null(*ret_reply);
        parameters = json_get(*ret_reply, "parameters", json_type_object);
        assert_non_null(parameters);
        return parameters;
}

/* From what is there now, or from a position. Says which run it is, and the first number. */
static int subscribe(const Guest *g, const char *run, int64_t sequence, int64_t expect_missed, char ret_run[static 64], int64_t *ret_sequence) {
        int fd = run_connect(&g->run);
        json_object *reply, *p;
        char parameters[256] = "{\"filter\":[\"machineState\"]}";

        if (run)
                (void) snprintf(parameters, sizeof(parameters), "{\"filter\":[\"machineState\"],\"after\":{\"run\":\"%s\",\"sequence\":%" PRIi64 "}}", run, sequence);
        send_call(fd, INTERFACE "SubscribeEvents", parameters, ",\"more\":true");
        p = next_event(fd, &reply);
        assert_string_equal(json_get_string(p, "type", ""), "present");
        assert_int_equal(json_get_integer(p, "missed", -1), expect_missed);
        (void) snprintf(ret_run, 64, "%s", json_get_string(p, "run", ""));
        *ret_sequence = json_get_integer(p, "sequence", -1);
        json_object_put(reply);
        return fd;
}

static int64_t expect_state(int fd, const char *state, int64_t after) {
        json_object *reply, *p = next_event(fd, &reply);
        int64_t sequence = json_get_integer(p, "sequence", -1);

        assert_string_equal(json_get_string(p, "state", ""), state);
        assert_true(sequence > after);
        json_object_put(reply);
        return sequence;
}

static void pause_and_resume(const Guest *g) {
        call_and_succeed(&g->run, "Pause", "{}");
        call_and_succeed(&g->run, "Resume", "{}");
}

static void a_subscriber_who_comes_back_has_every_event_once(void **state) {
        char run[64], again[64];
        int64_t first, sequence, at;
        int fd;
        Guest g;

        if (!has_kvm())
                skip_for_want_of("/dev/kvm");
        guest_start(&g);
        fd = subscribe(&g, NULL, 0, 0, run, &first);
        pause_and_resume(&g);
        sequence = expect_state(fd, "paused", first); /* the other one it does not read any more */
        (void) reload_well(&g);
        fd = safe_close(fd);
        pause_and_resume(&g);

        fd = subscribe(&g, run, sequence, 0, again, &at);
        assert_string_equal(again, run);
        assert_int_equal(at, sequence);
        at = expect_state(fd, "running", at);
        at = expect_state(fd, "paused", at);
        at = expect_state(fd, "running", at);
        (void) reload_well(&g);
        fd = safe_close(fd);
        /* All of them over two changes. */
        fd = subscribe(&g, run, first, 0, again, &sequence);
        sequence = expect_state(fd, "paused", sequence);
        sequence = expect_state(fd, "running", sequence);
        sequence = expect_state(fd, "paused", sequence);
        assert_int_equal(expect_state(fd, "running", sequence), at);
        fd = safe_close(fd);

        /* More than are kept; the number of those that are not is told. */
        for (unsigned i = 0; i < 32; i++)
                pause_and_resume(&g);
        (void) reload_well(&g);
        fd = subscribe(&g, run, at - 3, 3, again, &sequence);
        assert_int_equal(sequence, at);
        for (unsigned i = 0; i < 32; i++) {
                sequence = expect_state(fd, "paused", sequence);
                sequence = expect_state(fd, "running", sequence);
        }
        fd = safe_close(fd);
        /* Another run's number means nothing. */
        fd = subscribe(&g, "0123456789abcdef0123456789abcdef", 1, 0, again, &at);
        assert_string_equal(again, run);
        assert_int_equal(at, sequence);
        fd = safe_close(fd);
        guest_end(&g);
}

static int compare(const void *a, const void *b) {
        return *(const int64_t *) a < *(const int64_t *) b ? -1 : *(const int64_t *) a > *(const int64_t *) b;
}

static void fifty_in_a_row_lose_nothing(void **state) {
        const unsigned half = RELOADS / 2;
        int64_t pauses[RELOADS];
        Guest g;

        if (!has_kvm())
                skip_for_want_of("/dev/kvm");
        guest_start(&g);
        for (unsigned i = 0; i < RELOADS; i++) {
                uint64_t loops = g.report->loops, ticks = g.report->ticks;

                pauses[i] = reload_well(&g);
                wait_for_loops(&g, loops + 3);
                wait_for_ticks(&g, ticks + 2);
        }
        qsort(pauses, RELOADS, sizeof(pauses[0]), compare);
        print_message("# %i reloads: the vCPUs stood still for %.1f ms (p50), %.1f ms (max)\n", RELOADS, (double) pauses[half] / 1000,
                (double) pauses[RELOADS - 1] / 1000);
        guest_end(&g);
}

/* With the name of a test, that one alone. */
int main(int argc, char **argv) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(refuses_what_is_no_program),
                cmocka_unit_test(refuses_a_program_of_another_format_before_any_pause),
                cmocka_unit_test(a_program_that_cannot_read_the_state_gives_way),
                cmocka_unit_test(a_program_that_fails_at_the_last_moment_gives_way),
                cmocka_unit_test(a_program_that_crashes_or_hangs_gives_way),
                cmocka_unit_test(two_at_once_are_one),
                cmocka_unit_test(a_reset_meanwhile_comes_first),
                cmocka_unit_test(refuses_while_a_helper_starts_and_says_which),
                cmocka_unit_test(a_paused_guest_stays_paused),
                cmocka_unit_test(refuses_where_it_is_asked_to_power_off_meanwhile),
                cmocka_unit_test(a_snapshot_and_another_program_are_not_taken_at_once),
                cmocka_unit_test(events_go_on_and_the_reset_after_it_is_one),
                cmocka_unit_test(a_subscriber_who_comes_back_has_every_event_once),
                cmocka_unit_test(fifty_in_a_row_lose_nothing),
        };

        if (argc > 1)
                cmocka_set_test_filter(argv[1]);
        return cmocka_run_group_tests(tests, NULL, NULL);
}
