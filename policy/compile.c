/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Compiles seccomp policies: compile ARCHITECTURE OUTPUT [--with=COMMON.policy]… NAME.policy…
 *
 * A policy is a text with one system call a line and the reason for it behind a '#'; "include NAME" takes in NAME.policy of the same
 * directory. "NAME N=VALUE" allows the call only where its argument N (from 0) is that number. A line without a reason is refused, so is a call that does not exist anywhere. A call that exists
 * on other architectures only is left out silently. "refuse NAME" lets the call fail with ENOENT: for what a library tries
 * and can do without. Everything that is not named ends the process. */

#include <err.h>
#include <errno.h>
#include <linux/filter.h>
#include <seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "util.h"

#define INCLUDE_DEPTH_MAX 4

static void read_policy(scmp_filter_ctx filter, const char *path, unsigned depth);

static void include_policy(scmp_filter_ctx filter, const char *from, const char *name, unsigned depth) {
        const char *slash = strrchr(from, '/');
        _cleanup_free_ char *path = NULL;

        if (depth >= INCLUDE_DEPTH_MAX)
                errx(EXIT_FAILURE, "%s: includes are nested too deeply", from);
        if (asprintf(&path, "%.*s%s.policy", slash ? (int) (slash - from + 1) : 0, from, name) < 0)
                err(EXIT_FAILURE, "%s", from);
        read_policy(filter, path, depth + 1);
}

/* "1=0x8924" */
static struct scmp_arg_cmp parse_argument(const char *text, const char *path, unsigned line) {
        const char *digits = strchr(text, '=');
        unsigned long long value = 0;
        char *end = (char *) text; /* as long as nothing was taken for a number */

        errno = 0;
        if (digits == text + 1 && digits[1] >= '0' && digits[1] <= '9')
                value = strtoull(digits + 1, &end, 0);
        if (errno != 0 || *end != 0 || text[0] < '0' || text[0] > '5')
                errx(EXIT_FAILURE, "%s:%u: '%s' is no argument and its value", path, line, text);
        return (struct scmp_arg_cmp) { .arg = (unsigned) (text[0] - '0'), .op = SCMP_CMP_EQ, .datum_a = value };
}

/* `argument` may be NULL. */
static void add_call(scmp_filter_ctx filter, uint32_t arch, uint32_t action, const char *name, const char *argument, const char *path,
        unsigned line) {
        struct scmp_arg_cmp compare = argument ? parse_argument(argument, path, line) : (struct scmp_arg_cmp) {};
        int number = seccomp_syscall_resolve_name(name), r;

        if (number == __NR_SCMP_ERROR)
                errx(EXIT_FAILURE, "%s:%u: there is no system call '%s'", path, line, name);
        if (seccomp_syscall_resolve_name_rewrite(arch, name) < 0)
                return; /* not on this architecture */
        r = seccomp_rule_add_array(filter, action, number, argument ? 1 : 0, argument ? &compare : NULL);
        if (r < 0 && r != -EEXIST)
                errx(EXIT_FAILURE, "%s:%u: %s: %s", path, line, name, strerror(-r));
}

static uint32_t target_arch; /* set once by main() */

static void read_line(scmp_filter_ctx filter, const char *path, unsigned number, char *line, unsigned depth) {
        static const char blank[] = " \t\n";
        char *reason = strchr(line, '#'), *saveptr, *word, *second;

        if (reason)
                *reason++ = 0;
        word = strtok_r(line, blank, &saveptr);
        if (!word)
                return;
        second = strtok_r(NULL, blank, &saveptr);
        if (streq(word, "include") && second) {
                include_policy(filter, path, second, depth);
                return;
        }
        uint32_t action = SCMP_ACT_ALLOW;
        if (streq(word, "refuse") && second) {
                action = SCMP_ACT_ERRNO(ENOENT);
                word = second;
                second = strtok_r(NULL, blank, &saveptr);
        }
        if (second && (!strchr(second, '=') || strtok_r(NULL, blank, &saveptr)))
                errx(EXIT_FAILURE, "%s:%u: one system call a line", path, number);
        if (!reason || reason[strspn(reason, blank)] == 0)
                errx(EXIT_FAILURE, "%s:%u: '%s' has no reason", path, number, word);
        add_call(filter, target_arch, action, word, second, path, number);
}

static void read_policy(scmp_filter_ctx filter, const char *path, unsigned depth) {
        FILE *f = fopen(path, "re");
        char *line = NULL;
        size_t allocated = 0;

        if (!f)
                err(EXIT_FAILURE, "%s", path);
        for (unsigned number = 1; getline(&line, &allocated, f) >= 0; number++)
                read_line(filter, path, number, line, depth);
        free(line);
        (void) fclose(f);
}

/* "…/block.policy" is "block". */
static char *policy_name(const char *path) {
        const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path;
        const char *dot = strrchr(base, '.');
        char *name;

        if (!dot || !streq(dot, ".policy"))
                errx(EXIT_FAILURE, "%s: not a .policy file", path);
        name = strndup(base, (size_t) (dot - base));
        if (!name)
                err(EXIT_FAILURE, "%s", path);
        return name;
}

static size_t emit_filter(FILE *out, scmp_filter_ctx filter, size_t index) {
        _cleanup_close_ int fd = memfd_create("bpf", MFD_CLOEXEC);
        struct sock_filter instruction;
        size_t n = 0;

        if (fd < 0 || seccomp_export_bpf(filter, fd) < 0 || lseek(fd, 0, SEEK_SET) < 0)
                err(EXIT_FAILURE, "cannot compile");
        (void) fprintf(out, "static const struct sock_filter filter%zu[] = {\n", index);
        for (; read(fd, &instruction, sizeof(instruction)) == sizeof(instruction); n++)
                (void) fprintf(out, "        { 0x%04x, %u, %u, 0x%08x },\n", instruction.code, instruction.jt, instruction.jf,
                        instruction.k);
        (void) fprintf(out, "};\n\n");
        if (n == 0 || n > BPF_MAXINSNS)
                errx(EXIT_FAILURE, "a filter of %zu instructions", n);
        return n;
}

static size_t compile(FILE *out, const char *path, char **with, size_t n_with, size_t index) {
        scmp_filter_ctx filter = seccomp_init(SCMP_ACT_KILL_PROCESS);
        size_t n;

        if (!filter)
                errx(EXIT_FAILURE, "cannot begin a filter");
        if (seccomp_arch_native() != target_arch &&
                (seccomp_arch_add(filter, target_arch) < 0 || seccomp_arch_remove(filter, SCMP_ARCH_NATIVE) < 0))
                errx(EXIT_FAILURE, "cannot compile for this architecture");
        /* A tree instead of a list: the cost of a call does not depend on how many others are allowed. */
        (void) seccomp_attr_set(filter, SCMP_FLTATR_CTL_OPTIMIZE, 2);

        /* The first to name a call decides: what is common may allow what a policy refuses. */
        for (size_t i = 0; i < n_with; i++)
                read_policy(filter, with[i], 0);
        read_policy(filter, path, 0);
        n = emit_filter(out, filter, index);
        seccomp_release(filter);
        return n;
}

int main(int argc, char **argv) {
        _cleanup_free_ char **with = NULL;
        _cleanup_free_ size_t *sizes = NULL;
        size_t n_with = 0;
        int first = 3;
        FILE *out;

        if (argc < 4)
                errx(EXIT_FAILURE, "usage: compile ARCHITECTURE OUTPUT [--with=COMMON.policy]... NAME.policy...");
        target_arch = seccomp_arch_resolve_name(argv[1]);
        if (target_arch == 0)
                errx(EXIT_FAILURE, "unknown architecture '%s'", argv[1]);
        with = calloc((size_t) argc, sizeof(char *));
        sizes = calloc((size_t) argc, sizeof(size_t));
        out = fopen(argv[2], "we");
        if (!with || !sizes || !out)
                err(EXIT_FAILURE, "%s", argv[2]);
        for (; first < argc && startswith(argv[first], "--with="); first++)
                with[n_with++] = argv[first] + strlen("--with=");

        (void) fprintf(out, "/* Made by policy/compile.c from the texts in policy/. */\n\n#include \"sandbox.h\"\n\n");
        for (int i = first; i < argc; i++)
                sizes[i] = compile(out, argv[i], with, n_with, (size_t) i);
        (void) fprintf(out, "const SandboxPolicy sandbox_policies[] = {\n");
        for (int i = first; i < argc; i++) {
                _cleanup_free_ char *name = policy_name(argv[i]);
                (void) fprintf(out, "        { \"%s\", filter%d, %zu },\n", name, i, sizes[i]);
        }
        (void) fprintf(out, "        {},\n};\n");
        if (fclose(out) != 0)
                err(EXIT_FAILURE, "%s", argv[2]);
        return EXIT_SUCCESS;
}
