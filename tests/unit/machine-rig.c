/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <elf.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "machine-rig.h"

#define KERNEL_ADDRESS 0x1000000

static void write_file(const Run *run, const char *name, const void *data, size_t size) {
        _cleanup_close_ int fd = -EBADF;
        char path[96];

        (void) snprintf(path, sizeof(path), "%s/%s", run->directory, name);
        fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        assert_true(fd >= 0);
        assert_int_equal(write_full(fd, data, size), 0);
}

static void write_kernel(const Run *run, const uint8_t *code, size_t size) {
        struct {
                Elf64_Ehdr ehdr;
                Elf64_Phdr phdr;
                uint8_t code[512];
        } image = {
                .ehdr = { .e_ident = { 0x7F, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB, EV_CURRENT }, .e_type = ET_EXEC,
                          .e_machine = EM_X86_64, .e_version = EV_CURRENT, .e_entry = KERNEL_ADDRESS, .e_phoff = sizeof(Elf64_Ehdr),
                          .e_ehsize = sizeof(Elf64_Ehdr), .e_phentsize = sizeof(Elf64_Phdr), .e_phnum = 1 },
                .phdr = { .p_type = PT_LOAD, .p_paddr = KERNEL_ADDRESS, .p_filesz = sizeof(image.code), .p_memsz = sizeof(image.code),
                          .p_flags = PF_R | PF_X },
        };

        assert_true(size <= sizeof(image.code));
        image.phdr.p_offset = (size_t) ((uint8_t *) image.code - (uint8_t *) &image);
        memcpy(image.code, code, size);
        write_file(run, "kernel", &image, sizeof(image));
}

void run_prepare(Run *run, const uint8_t *code, size_t size, const char *more) {
        char text[1024];

        *run = (Run) { .directory = "/tmp/vmm-machine-XXXXXX" };
        assert_non_null(mkdtemp(run->directory));
        write_kernel(run, code, size);
        (void) snprintf(text, sizeof(text), "{ \"memory\": \"64M\", \"kernel\": \"%s/kernel\"%s }", run->directory, more);
        write_file(run, "definition.json", text, strlen(text));
        (void) snprintf(run->control, sizeof(run->control), "%s/control", run->directory);
}

void run_vmmd(Run *run, bool has_devices) {
        const char *program = getenv("VMMD");
        char definition[96], control[96], runtime[96], restore[96];
        int p[2];

        assert_non_null(program);
        (void) snprintf(definition, sizeof(definition), "--definition=%s/definition.json", run->directory);
        (void) snprintf(control, sizeof(control), "--control=%s", run->control);
        (void) snprintf(runtime, sizeof(runtime), "--runtime-directory=%s%s", has_devices ? run->directory : "/nonexistent",
                has_devices ? "/devices" : "");

        (void) snprintf(restore, sizeof(restore), "--restore=%s", run->restore);

        assert_int_equal(pipe2(p, O_CLOEXEC), 0);
        run->pid = fork();
        assert_true(run->pid >= 0);
        if (run->pid == 0) {
                (void) prctl(PR_SET_PDEATHSIG, SIGKILL);
                (void) dup2(p[1], STDERR_FILENO);
                (void) execl(program, program, definition, control, runtime, "tiny", run->restore[0] ? restore : run->option, NULL);
                _exit(127);
        }
        (void) close(p[1]);
        run->output = p[0];
}

void run_start(Run *run, const uint8_t *code, size_t size, const char *more) {
        run_prepare(run, code, size, more);
        run_vmmd(run, false);
}

int run_end(Run *run, char text[static 4096]) {
        static const char *const files[] = { "kernel", "definition.json", "control" };
        uint64_t until = now_usec() + 60 * USEC_PER_SEC;
        size_t have = 0;
        int status;

        for (;;) {
                struct pollfd p = { .fd = run->output, .events = POLLIN };
                ssize_t n;

                if (now_usec() > until)
                        (void) kill(run->pid, SIGKILL);
                if (poll(&p, 1, 1000) <= 0)
                        continue;
                n = read(run->output, text + have, 4095 - have);
                if (n <= 0)
                        break;
                have += (size_t) n;
        }
        text[have] = 0;
        (void) close(run->output);
        assert_int_equal(waitpid(run->pid, &status, 0), run->pid);
        for (size_t i = 0; i < ELEMENTSOF(files); i++) {
                char path[96];

                (void) snprintf(path, sizeof(path), "%s/%s", run->directory, files[i]);
                (void) unlink(path);
        }
        (void) rmdir(run->directory);
        if (!WIFEXITED(status))
                fail_msg("vmmd ended by signal %d: %s", WTERMSIG(status), text);
        return WEXITSTATUS(status);
}

/* --- calls --- */

int run_connect(const Run *run) {
        int fd;

        for (unsigned i = 0; (fd = connect_unix(run->control)) < 0; i++) {
                assert_true(i < 6000);
                (void) usleep(10000);
        }
        return fd;
}

void send_call(int fd, const char *method, const char *parameters, const char *flags) {
        char message[512];
        int n;

        n = snprintf(message, sizeof(message), "{\"method\":\"%s\",\"parameters\":%s%s}", method, parameters, flags);
        assert_true(n > 0 && (size_t) n < sizeof(message));
        assert_int_equal(write_full(fd, message, (size_t) n + 1), 0);
}

json_object *receive(int fd) {
        struct json_tokener *tokener = json_tokener_new();
        json_object *reply = NULL;

        assert_non_null(tokener);
        /* Byte by byte: what follows is the next reply. */
        for (;;) {
                struct pollfd p = { .fd = fd, .events = POLLIN };
                char c;

                if (poll(&p, 1, 60000) != 1)
                        fail_msg("no reply within a minute");
                if (read(fd, &c, 1) != 1 || c == 0)
                        break;
                reply = json_tokener_parse_ex(tokener, &c, 1);
                assert_true(reply || json_tokener_get_error(tokener) == json_tokener_continue);
        }
        json_tokener_free(tokener);
        return reply;
}

void call_text(const Run *run, const char *method, const char *parameters, char reply[static 4096]) {
        _cleanup_close_ int fd = run_connect(run);
        json_object *json;

        send_call(fd, method, parameters, "");
        json = receive(fd);
        (void) snprintf(reply, 4096, "%s", json ? json_object_to_json_string_ext(json, JSON_C_TO_STRING_PLAIN) : "");
        (void) json_object_put(json);
}

static void call_machine(const Run *run, const char *method, const char *parameters, char reply[static 4096]) {
        char name[64];

        (void) snprintf(name, sizeof(name), "io.vmmd.Machine.%s", method);
        call_text(run, name, parameters, reply);
}

void call_and_expect(const Run *run, const char *method, const char *parameters, const char *word) {
        char reply[4096];

        call_machine(run, method, parameters, reply);
        if (!strstr(reply, word))
                fail_msg("%s: no '%s' in %s", method, word, reply);
}

void call_and_succeed(const Run *run, const char *method, const char *parameters) {
        char reply[4096];

        call_machine(run, method, parameters, reply);
        if (*reply == '\0' || strstr(reply, "\"error\":"))
                fail_msg("%s: %s", method, *reply == '\0' ? "no reply" : reply);
}

void wait_for_state(const Run *run, const char *state) {
        char reply[4096], word[64];

        (void) snprintf(word, sizeof(word), "\"state\":\"%s\",\"since\"", state);
        for (unsigned i = 0; i < 6000; i++) {
                call_text(run, "io.vmmd.Machine.Describe", "{}", reply);
                if (strstr(reply, word))
                        return;
                (void) usleep(10000);
        }
        fail_msg("never %s: %s", state, reply);
}
