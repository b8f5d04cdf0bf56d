/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* vmm-sweep MACHINE
 *
 * The last thing that runs when a machine stops (ExecStopPost= of vmm@.socket): removes /run/vmm/MACHINE. Where that is not empty, some device is still
 * there: its definition was taken away while the machine ran, and with it what tied its units to the machine. Those are stopped, too. */

#include <dirent.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "definition.h"
#include "unit-name.h"

extern char **environ;

/* systemctl(1) takes a glob, in which the backslash of an escaped name is no escape (FNM_NOESCAPE). */
static char *device_units_glob(const char *machine) {
        _cleanup_free_ char *escaped = unit_name_escape(machine);
        char *glob;

        return !escaped || asprintf(&glob, "vmm-device@%s-*", escaped) < 0 ? NULL : glob;
}

static int stop_devices(const char *machine) {
        _cleanup_free_ char *glob = device_units_glob(machine);
        char *argv[] = { (char *) "systemctl", (char *) "stop", (char *) "--", glob, NULL };
        int status, r;
        pid_t pid;

        if (!glob)
                return -ENOMEM;
        r = posix_spawnp(&pid, argv[0], NULL, NULL, argv, environ);
        if (r != 0)
                return -r;
        while (waitpid(pid, &status, 0) < 0)
                if (errno != EINTR)
                        return -errno;
        return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -EIO;
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
                (void) fprintf(stderr, "<5>Machine '%s' has devices that its definition does not have any more; stopping them.\n", argv[1]);
                r = stop_devices(argv[1]);
                if (r < 0)
                        (void) fprintf(stderr, "<4>Cannot stop the devices of machine '%s': %s\n", argv[1], strerrordesc_np(-r));
                remove_sockets(directory);
                if (rmdir(directory) == 0 || errno == ENOENT)
                        return EXIT_SUCCESS;
        }
        (void) fprintf(stderr, "<4>Cannot remove %s: %m\n", directory);
        return EXIT_FAILURE;
}
