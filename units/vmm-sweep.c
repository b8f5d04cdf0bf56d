/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* vmm-sweep MACHINE
 *
 * The last thing that runs when a machine stops (ExecStopPost= of vmm@.socket): removes /run/vmm/MACHINE. Where some device still listens there its
 * definition was taken away while the machine ran, and with it what tied its units to the machine. Those are stopped, too, and no others: the machine may be
 * about to start again, and whoever stopped a unit that it needs would have that canceled. */

#include <dirent.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "definition.h"
#include "unit-name.h"

extern char **environ;

/* Each device unit listens there, whatever its settings say beside (vmm-device@.socket). */
#define DEVICE_SUFFIX ".varlink"

static int add_device(char ***arguments, size_t *n, const char *machine, const char *device) {
        int r;

        r = string_array_add(arguments, n, device_unit_name(machine, device, "socket"));
        return r < 0 ? r : string_array_add(arguments, n, device_unit_name(machine, device, "service"));
}

/* The units of the devices that listen in the directory. */
static int find_devices(const char *directory, const char *machine, char ***arguments, size_t *n_arguments) {
        DIR *d = opendir(directory);
        struct dirent *entry;
        int r = 0;

        if (!d)
                return -errno;
        while (r >= 0 && (entry = readdir(d))) {
                size_t n = strlen(entry->d_name), suffix = strlen(DEVICE_SUFFIX);

                if (n <= suffix || !streq(entry->d_name + n - suffix, DEVICE_SUFFIX))
                        continue;
                entry->d_name[n - suffix] = 0;
                if (device_name_is_valid(entry->d_name))
                        r = add_device(arguments, n_arguments, machine, entry->d_name);
        }
        (void) closedir(d);
        return r;
}

static int run(char **argv) {
        int status, r;
        pid_t pid;

        r = posix_spawnp(&pid, argv[0], NULL, NULL, argv, environ);
        if (r != 0)
                return -r;
        while (waitpid(pid, &status, 0) < 0)
                if (errno != EINTR)
                        return -errno;
        return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -EIO;
}

static int stop_devices(const char *directory, const char *machine) {
        static const char *const command[] = { "systemctl", "stop", "--" };
        _cleanup_(string_array_freep) char **arguments = NULL;
        size_t n = 0;
        int r = 0;

        for (size_t i = 0; i < ELEMENTSOF(command) && r >= 0; i++)
                r = string_array_add(&arguments, &n, strdup(command[i]));
        if (r >= 0)
                r = find_devices(directory, machine, &arguments, &n);
        if (r < 0 || n == ELEMENTSOF(command))
                return r;
        (void) fprintf(stderr, "<5>Machine '%s' has devices that its definition does not have any more; stopping them.\n", machine);
        return run(arguments);
}

/* A socket unit removes what its present settings name: sockets of a drop-in that is gone stay behind. */
static void remove_sockets(const char *directory) {
        struct dirent *entry;
        DIR *d = opendir(directory);

        while (d && (entry = readdir(d))) {
                struct stat st;

                if (fstatat(dirfd(d), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) >= 0 && S_ISSOCK(st.st_mode))
                        (void) unlinkat(dirfd(d), entry->d_name, 0);
        }
        if (d)
                (void) closedir(d);
}

int main(int argc, char *argv[]) {
        _cleanup_free_ char *directory = NULL;
        int r;

        if (argc != 2 || !machine_name_is_valid(argv[1])) {
                (void) fprintf(stderr, "usage: vmm-sweep MACHINE\n");
                return EXIT_FAILURE;
        }
        if (asprintf(&directory, "/run/vmm/%s", argv[1]) < 0) {
                directory = NULL;
                return EXIT_FAILURE;
        }
        if (rmdir(directory) == 0 || errno == ENOENT)
                return EXIT_SUCCESS;
        if (errno == ENOTEMPTY || errno == EEXIST) {
                r = stop_devices(directory, argv[1]);
                if (r < 0)
                        (void) fprintf(stderr, "<4>Cannot stop the devices of machine '%s': %s\n", argv[1], strerrordesc_np(-r));
                /* The control socket, too: the service manager starts this a moment before it removes that. */
                remove_sockets(directory);
                if (rmdir(directory) == 0 || errno == ENOENT)
                        return EXIT_SUCCESS;
        }
        (void) fprintf(stderr, "<4>Cannot remove %s: %m\n", directory);
        return EXIT_FAILURE;
}
