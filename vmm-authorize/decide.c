/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <grp.h>
#include <pwd.h>
#include <stdio.h>

#include "decide.h"

static const char *const right_names[_RIGHT_MAX] = {
        [RIGHT_READ] = "read",
        [RIGHT_BALLOON] = "balloon",
        [RIGHT_CHANGE] = "change",
};

const char *right_to_string(Right right) {
        return right_names[right];
}

int right_from_string(const char *s) {
        for (int i = 0; i < _RIGHT_MAX; i++)
                if (streq(right_names[i], s))
                        return i;
        return -EINVAL;
}

/* The groups that give a right, NULL-terminated. Who may do more may do less. */
static void groups_of(const Question *q, const char *ret[static 4]) {
        size_t n = 0;

        if (q->access_group)
                ret[n++] = q->access_group;
        if (q->right == RIGHT_READ)
                ret[n++] = q->read_group;
        if (q->right != RIGHT_CHANGE)
                ret[n++] = BALLOON_GROUP;
        ret[n] = NULL;
}

/* Returns 1 where the peer is that user, 0 where not; and then why not. */
static int check_owner(const Peer *peer, const char *owner, FILE *why_not) {
        struct passwd *user;

        errno = 0;
        user = getpwnam(owner);
        if (user && user->pw_uid == peer->uid)
                return 1;
        if (user)
                (void) fprintf(why_not, ", is not the owner '%s'", owner);
        else if (errno == 0 || errno == ENOENT || errno == ESRCH)
                (void) fprintf(why_not, ", is not the owner '%s', who does not exist on this host", owner);
        else
                (void) fprintf(why_not, ", is not known to be the owner '%s', who cannot be looked up (%m)", owner);
        return 0;
}

static int check_group(const Peer *peer, const char *name, FILE *why_not) {
        struct group *group;

        errno = 0;
        group = getgrnam(name);
        if (group && peer_in_group(peer, group->gr_gid))
                return 1;
        if (group)
                (void) fprintf(why_not, ", is not in group '%s'", name);
        else if (errno == 0 || errno == ENOENT || errno == ESRCH)
                (void) fprintf(why_not, ", is not in group '%s', which does not exist on this host", name);
        else
                (void) fprintf(why_not, ", is not known to be in group '%s', which cannot be looked up (%m)", name);
        return 0;
}

/* Returns 1, or -ENOMEM. */
static int allow(char **ret, const Peer *peer, const char *because, const char *name) {
        char *text;

        if (asprintf(&text, "%s %s%s%s%s", peer->name, because, name ? " '" : "", name ?: "", name ? "'" : "") < 0)
                return -ENOMEM;
        *ret = text;
        return 1;
}

static int decide_into(const Peer *peer, const Question *q, FILE *why_not, char **ret_reason) {
        const char *groups[4];

        if (peer->uid == 0)
                return allow(ret_reason, peer, "may do anything", NULL);
        (void) fprintf(why_not, "%s is not root", peer->name);
        if (q->owner && check_owner(peer, q->owner, why_not) > 0)
                return allow(ret_reason, peer, "owns the machine", NULL);
        groups_of(q, groups);
        for (size_t i = 0; groups[i]; i++)
                if (check_group(peer, groups[i], why_not) > 0)
                        return allow(ret_reason, peer, "is in group", groups[i]);
        return 0;
}

int decide(const Peer *peer, const Question *question, char **ret_reason) {
        _cleanup_free_ char *why_not = NULL;
        size_t size;
        FILE *f;
        int r;

        f = open_memstream(&why_not, &size);
        if (!f)
                return -ENOMEM;
        r = decide_into(peer, question, f, ret_reason);
        if (fclose(f) != 0 && r == 0)
                return -ENOMEM;
        if (r == 0)
                *ret_reason = TAKE_PTR(why_not);
        return r;
}

int decide_hint(const Question *question, char **ret) {
        const char *groups[4];
        char *text;
        int r;

        groups_of(question, groups);
        if (groups[0])
                r = asprintf(&text, "membership of group '%s' would be enough", groups[0]);
        else
                r = asprintf(&text, "an owner or an accessGroup in the definition of machine '%s' would be needed", question->machine);
        if (r < 0)
                return -ENOMEM;
        *ret = text;
        return 0;
}
