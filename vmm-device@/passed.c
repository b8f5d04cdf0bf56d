/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <stdio.h>
#include <systemd/sd-daemon.h>

#include "passed.h"

int passed_fds_add(PassedFds *p, const char *name, int fd) {
        PassedFd *grown = reallocarray(p->fds, p->n + 1, sizeof(PassedFd));
        char *copy = strdup(name);

        if (grown)
                p->fds = grown;
        if (!grown || !copy) {
                free(copy);
                (void) safe_close(fd);
                return -ENOMEM;
        }
        p->fds[p->n++] = (PassedFd) { .name = copy, .fd = fd };
        return 0;
}

static int note_kept(PassedFds *p, const char *name) {
        size_t n = 0;
        char **grown;

        for (; p->kept && p->kept[n]; n++)
                if (streq(p->kept[n], name))
                        return 0;
        grown = reallocarray(p->kept, n + 2, sizeof(char *));
        if (!grown)
                return -ENOMEM;
        p->kept = grown;
        grown[n + 1] = NULL;
        grown[n] = strdup(name);
        return grown[n] ? 0 : -ENOMEM;
}

int passed_fds_from_manager(PassedFds *p) {
        char **names = NULL;
        int n, r = 0;

        n = sd_listen_fds_with_names(1, &names); /* sets FD_CLOEXEC, too */
        if (n < 0)
                return n;
        p->managed = n > 0;
        for (int i = 0; i < n; i++) {
                if (r >= 0)
                        r = passed_fds_add(p, names[i], SD_LISTEN_FDS_START + i);
                if (r >= 0)
                        r = note_kept(p, names[i]);
                free(names[i]);
        }
        free(names);
        return r;
}

int passed_fds_take(PassedFds *p, const char *name) {
        for (size_t i = 0; i < p->n; i++)
                if (p->fds[i].fd >= 0 && streq(p->fds[i].name, name))
                        return TAKE_FD(p->fds[i].fd);
        return -ENOENT;
}

size_t passed_fds_count(const PassedFds *p, const char *name) {
        size_t n = 0;

        for (size_t i = 0; i < p->n; i++)
                n += p->fds[i].fd >= 0 && streq(p->fds[i].name, name);
        return n;
}

void passed_fds_done(PassedFds *p) {
        for (size_t i = 0; i < p->n; i++) {
                (void) safe_close(p->fds[i].fd);
                free(p->fds[i].name);
        }
        free(p->fds);
        for (char **name = p->kept; name && *name; name++)
                free(*name);
        free(p->kept);
        *p = (PassedFds) {};
}

int passed_fds_keep(PassedFds *p, const char *name, int fd) {
        _cleanup_free_ char *message = NULL;
        int r;

        r = note_kept(p, name);
        if (r < 0)
                return r;
        /* FDPOLL=0: what reports a hang-up is still what a successor needs. */
        if (asprintf(&message, "FDSTORE=1\nFDPOLL=0\nFDNAME=%s", name) < 0) {
                message = NULL;
                return -ENOMEM;
        }
        r = sd_pid_notify_with_fds(0, false, message, &fd, 1);
        return MIN(r, 0);
}

bool passed_fds_is_kept(const PassedFds *p, const char *name) {
        for (char **kept = p->kept; kept && *kept; kept++)
                if (streq(*kept, name))
                        return true;
        return false;
}

static int say_forget(const char *name) {
        _cleanup_free_ char *message = NULL;
        int r;

        if (asprintf(&message, "FDSTOREREMOVE=1\nFDNAME=%s", name) < 0) {
                message = NULL;
                return -ENOMEM;
        }
        r = sd_notify(false, message);
        return MIN(r, 0);
}

int passed_fds_forget(PassedFds *p, const char *name) {
        int r = say_forget(name);
        size_t k = 0;

        for (size_t i = 0; r >= 0 && p->kept && p->kept[i]; i++) {
                if (streq(p->kept[i], name))
                        free(p->kept[i]);
                else
                        p->kept[k++] = p->kept[i];
        }
        if (r >= 0 && p->kept)
                p->kept[k] = NULL;
        return r;
}

/* All of them at once: a session may have a hundred. */
static int forget_prefix(PassedFds *p, const char *prefix) {
        size_t k = 0;
        int r = 0;

        for (size_t i = 0; p->kept && p->kept[i]; i++) {
                int q = startswith(p->kept[i], prefix) ? say_forget(p->kept[i]) : 1;

                r = MIN(r, q);
                if (q == 0)
                        free(p->kept[i]);
                else
                        p->kept[k++] = p->kept[i];
        }
        if (p->kept)
                p->kept[k] = NULL;
        return r;
}

void passed_fds_close_prefix(PassedFds *p, const char *prefix) {
        for (size_t i = 0; i < p->n; i++)
                if (startswith(p->fds[i].name, prefix))
                        p->fds[i].fd = safe_close(p->fds[i].fd);
}

int passed_fds_forget_prefix(PassedFds *p, const char *prefix) {
        passed_fds_close_prefix(p, prefix);
        return forget_prefix(p, prefix);
}

int passed_fds_forget_all(PassedFds *p) {
        return forget_prefix(p, "");
}
