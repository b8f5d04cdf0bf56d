/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The machine's device tree: as source (Devicetree Specification 0.4, 6), or as it is. */

#include <fcntl.h>
#include <libfdt.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "base64.h"
#include "config.h"
#include "definition.h"
#include "machine.h"
#include "output.h"

#define DEPTH_MAX 32
#define TREE_SIZE_MAX MIB(4)
#define VMMD LIBEXECDIR "/vmmd"

static void indent(unsigned depth) {
        for (unsigned i = 0; i < depth; i++)
                (void) putchar('\t');
}

/* Whether it reads as one or several strings, none of them empty. */
static bool is_text(const char *value, int length) {
        if (length == 0 || value[length - 1] != 0 || value[0] == 0)
                return false;
        for (int i = 0; i < length - 1; i++)
                if (value[i] == 0 ? value[i + 1] == 0 : (unsigned char) value[i] < 0x20 || (unsigned char) value[i] >= 0x7f)
                        return false;
        return true;
}

static void print_strings(const char *value, int length) {
        for (int at = 0; at < length; at += (int) strlen(value + at) + 1) {
                (void) printf("%s\"", at > 0 ? ", " : "");
                for (const char *p = value + at; *p; p++)
                        (void) printf(strchr("\"\\", *p) ? "\\%c" : "%c", *p);
                (void) putchar('"');
        }
}

static void print_property(unsigned depth, const char *name, const void *value, int length) {
        const uint8_t *bytes = value;

        indent(depth);
        (void) printf("%s", name);
        if (length > 0)
                (void) printf(" = ");
        if (length > 0 && is_text(value, length))
                print_strings(value, length);
        else if (length > 0 && length % 4 == 0) {
                for (int i = 0; i < length; i += 4)
                        (void) printf("%s0x%02x%02x%02x%02x", i > 0 ? " " : "<", bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3]);
                (void) putchar('>');
        } else if (length > 0) {
                for (int i = 0; i < length; i++)
                        (void) printf("%s%02x", i > 0 ? " " : "[", bytes[i]);
                (void) putchar(']');
        }
        (void) puts(";");
}

static void print_node(const void *tree, int node, unsigned depth) {
        const char *name = fdt_get_name(tree, node, NULL);
        int property, child;

        indent(depth);
        (void) printf("%s {\n", name && *name ? name : "/");
        fdt_for_each_property_offset(property, tree, node) {
                const char *key = NULL;
                int length = 0;
                const void *value = fdt_getprop_by_offset(tree, property, &key, &length);

                if (value && key)
                        print_property(depth + 1, key, value, length);
        }
        if (depth < DEPTH_MAX)
                fdt_for_each_subnode(child, tree, node) {
                        (void) putchar('\n');
                        print_node(tree, child, depth + 1);
                }
        indent(depth);
        (void) puts("};");
}

static int print_tree(const Options *o, json_object *reply, const char *text) {
        _cleanup_free_ void *tree = NULL;
        size_t size = 0;

        if (o->json != JSON_OFF)
                return print_json(o, reply);
        if (base64_decode(text, &tree, &size) < 0 || fdt_check_full(tree, size) < 0) {
                complain("The machine's answer is no device tree.");
                return -EBADMSG;
        }
        if (option_given(o, OPTION_DTB))
                (void) fwrite(tree, 1, size, stdout);
        else {
                (void) puts("/dts-v1/;\n");
                print_node(tree, 0, 0);
        }
        return 0;
}

/* --- of a machine that does not run --- */

/* What vmmd reads as its standard input: the definition as merged. */
static int definition_fd(const char *name, char **ret_problem) {
        _cleanup_(machine_definition_freep) MachineDefinition *d = NULL;
        _cleanup_(definition_error_done) DefinitionError e = {};
        _cleanup_free_ char *text = NULL;
        _cleanup_close_ int fd = -EBADF;
        const char *json;
        int r;

        r = definition_load(NULL, name, &d, &e);
        if (r == -EBADMSG)
                text = definition_error_to_string(&e);
        if (r < 0)
                return set_message(ret_problem, r == -ENOENT ? -ESRCH : r, "it does not run, and its definition cannot be used: %s", text ?: strerror(-r));
        json = json_object_to_json_string_ext(d->json, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE);
        fd = memfd_create("vmm-definition", MFD_CLOEXEC);
        if (!json || fd < 0)
                return -ENOMEM;
        r = write_full(fd, json, strlen(json));
        if (r >= 0 && lseek(fd, 0, SEEK_SET) < 0)
                r = -errno;
        return r < 0 ? r : TAKE_FD(fd);
}

/* Returns what it will print. */
static int spawn_vmmd(const char *name, int input, pid_t *ret_pid, char **ret_problem) {
        char *argv[] = { (char *) VMMD, (char *) "--print-device-tree", (char *) name, NULL };
        _cleanup_close_ int ours = -EBADF, its = -EBADF;
        posix_spawn_file_actions_t actions;
        int fds[2], r;

        if (pipe2(fds, O_CLOEXEC) < 0)
                return -errno;
        ours = fds[0];
        its = fds[1];
        if (posix_spawn_file_actions_init(&actions) != 0)
                return -ENOMEM;
        r = posix_spawn_file_actions_adddup2(&actions, input, STDIN_FILENO);
        if (r == 0)
                r = posix_spawn_file_actions_adddup2(&actions, its, STDOUT_FILENO);
        if (r == 0)
                r = posix_spawn(ret_pid, argv[0], &actions, NULL, argv, environ);
        (void) posix_spawn_file_actions_destroy(&actions);
        return r != 0 ? set_message(ret_problem, -r, "it does not run, and " VMMD " cannot be asked: %s", strerror(r)) : TAKE_FD(ours);
}

/* vmmd has KVM make the processors, and says itself what it does not like. */
static int tree_of_definition(const char *name, json_object **ret_reply, char **ret_problem) {
        _cleanup_json_ json_object *reply = json_object_new_object();
        _cleanup_close_ int input = -EBADF, output = -EBADF;
        _cleanup_free_ char *tree = NULL, *text = NULL;
        int status = 0, r;
        size_t size = 0;
        pid_t pid = 0;

        input = definition_fd(name, ret_problem);
        if (!reply || input < 0)
                return reply ? input : -ENOMEM;
        output = spawn_vmmd(name, input, &pid, ret_problem);
        if (output < 0)
                return output;
        r = read_whole_fd(output, TREE_SIZE_MAX, &tree, &size);
        (void) safe_close(TAKE_FD(output)); /* before it would be waited for in vain */
        while (waitpid(pid, &status, 0) < 0)
                if (errno != EINTR)
                        return -errno;
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
                return set_message(ret_problem, -EIO, "there is no device tree of it");
        text = r < 0 ? NULL : base64_encode(tree, size);
        if (!text)
                return r < 0 ? r : -ENOMEM;
        r = json_add_string(reply, "deviceTree", text);
        if (r >= 0)
                *ret_reply = TAKE_PTR(reply);
        return r;
}

int command_fdt(const Options *o, char **arguments, size_t n) {
        _cleanup_json_ json_object *reply = NULL;
        _cleanup_free_ char *problem = NULL;
        int r;

        r = machine_call_by_name(o, arguments[0], "GetDeviceTree", NULL, &reply, &problem);
        /* What runs by hand is not in the definitions. */
        if ((r == -ENOENT || r == -ECONNREFUSED) && streq(o->runtime_directory, RUNTIME_DIRECTORY)) {
                problem = mfree(problem);
                r = tree_of_definition(arguments[0], &reply, &problem);
                if (r == -ENOENT || r == -ECONNREFUSED)
                        r = -EIO; /* of a file: not what these say of a machine */
        }
        if (r < 0)
                return machine_conclude(arguments[0], r, problem);
        return print_tree(o, reply, json_get_string(reply, "deviceTree", "")) < 0 ? STATUS_FAILED : STATUS_OK;
}
