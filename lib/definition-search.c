/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Where definitions are: the three directories, their precedence, masks and drop-ins. */

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "definition-internal.h"

/* Highest first. */
static const char *const directories[] = { "/etc/vmm", "/run/vmm/machines", "/usr/lib/vmm/machines" };

typedef struct Names {
        char **names; /* NULL-terminated */
        size_t n;
} Names;

static void names_done(Names *names) {
        string_array_free(names->names);
}

/* Takes ownership of name, also on error. */
static int names_add(Names *names, char *name) {
        return string_array_add(&names->names, &names->n, name);
}

static bool names_have(const Names *names, const char *name) {
        for (size_t i = 0; i < names->n; i++)
                if (streq(names->names[i], name))
                        return true;
        return false;
}

static int compare_names(const void *a, const void *b) {
        return strcmp(*(char *const *) a, *(char *const *) b);
}

/* Never NULL, also where it is empty. */
static int names_finish(Names *names, char ***ret) {
        if (!names->names) {
                names->names = calloc(1, sizeof(char *));
                if (!names->names)
                        return -ENOMEM;
        }
        if (names->n > 1)
                qsort(names->names, names->n, sizeof(char *), compare_names);
        *ret = TAKE_PTR(names->names);
        return 0;
}

static char *file_path(const char *root, const char *directory, const char *name, const char *suffix) {
        char *path;

        return asprintf(&path, "%s%s/%s%s", root ? root : "", directory, name, suffix) < 0 ? NULL : path;
}

/* An empty file, or a link to /dev/null, hides what has its name in the lower directories. */
static bool is_mask(const struct stat *st) {
        return (S_ISREG(st->st_mode) && st->st_size == 0) || (S_ISCHR(st->st_mode) && st->st_rdev == makedev(1, 3));
}

/* Adds the *.json files of a directory by name without suffix. A directory that is not there has none. */
static int list_directory(const char *path, Names *names) {
        _cleanup_free_ char *name = NULL;
        struct dirent *entry;
        int r = 0;
        DIR *d;

        d = opendir(path);
        if (!d)
                return errno == ENOENT || errno == ENOTDIR ? 0 : -errno;
        for (errno = 0; (entry = readdir(d)); errno = 0) {
                size_t length = strlen(entry->d_name);

                if (entry->d_name[0] == '.' || length <= strlen(".json") || !streq(entry->d_name + length - strlen(".json"), ".json"))
                        continue;
                name = strndup(entry->d_name, length - strlen(".json"));
                if (name && names_have(names, name)) {
                        name = mfree(name);
                        continue;
                }
                r = names_add(names, TAKE_PTR(name));
                if (r < 0)
                        break;
        }
        if (r >= 0 && errno > 0)
                r = -errno;
        (void) closedir(d);
        return r;
}

/* The first file of that name in the three directories. -ENOENT where there is none, or it is a mask. */
static int find_file(const char *root, const char *name, const char *subdirectory, char **ret) {
        for (size_t i = 0; i < ELEMENTSOF(directories); i++) {
                _cleanup_free_ char *directory = NULL, *path = NULL;
                struct stat st;

                if (asprintf(&directory, "%s%s", directories[i], subdirectory) < 0) {
                        directory = NULL;
                        return -ENOMEM;
                }
                path = file_path(root, directory, name, ".json");
                if (!path)
                        return -ENOMEM;
                if (stat(path, &st) < 0) {
                        struct stat link;

                        /* A dangling link is somebody's mistake, to be reported, not a file that is not there. */
                        if (errno != ENOENT && errno != ENOTDIR)
                                return -errno;
                        if (lstat(path, &link) < 0)
                                continue;
                } else if (is_mask(&st))
                        return -ENOENT;
                *ret = TAKE_PTR(path);
                return 0;
        }
        return -ENOENT;
}

int definition_files(const char *root, const char *name, char ***ret) {
        _cleanup_(names_done) Names files = {}, drop_ins = {};
        _cleanup_free_ char *subdirectory = NULL;
        char *path;
        int r;

        if (!machine_name_is_valid(name))
                return -ENOENT;
        r = find_file(root, name, "", &path);
        if (r < 0)
                return r;
        r = names_add(&files, path);
        if (r < 0)
                return r;

        if (asprintf(&subdirectory, "/%s.json.d", name) < 0) {
                subdirectory = NULL;
                return -ENOMEM;
        }
        for (size_t i = 0; i < ELEMENTSOF(directories); i++) {
                _cleanup_free_ char *directory = file_path(root, directories[i], name, ".json.d");
                if (!directory)
                        return -ENOMEM;
                r = list_directory(directory, &drop_ins);
                if (r < 0)
                        return r;
        }
        if (drop_ins.n > 1)
                qsort(drop_ins.names, drop_ins.n, sizeof(char *), compare_names);
        for (size_t i = 0; i < drop_ins.n; i++) {
                r = find_file(root, drop_ins.names[i], subdirectory, &path);
                if (r == -ENOENT)
                        continue;
                if (r < 0)
                        return r;
                r = names_add(&files, path);
                if (r < 0)
                        return r;
        }

        /* The order is the meaning: not sorted as a whole. */
        *ret = TAKE_PTR(files.names);
        return 0;
}

/* A file that cannot be read, in the form of an error with a place. Returns -EBADMSG or -ENOMEM. */
static int refuse_file(const char *path, const char *found, DefinitionError *ret) {
        DefinitionError error = {
                .file = strdup(path), .pointer = strdup(""), .found = strdup(found), .expected = strdup("a file that can be read"),
        };

        if (!error.file || !error.pointer || !error.found || !error.expected) {
                definition_error_done(&error);
                return -ENOMEM;
        }
        definition_error_done(ret);
        *ret = error;
        return -EBADMSG;
}

static int add_file(DefinitionSources *sources, const char *path, DefinitionError *ret_error) {
        _cleanup_close_ int fd = -EBADF;
        _cleanup_free_ char *text = NULL;
        struct stat st;
        size_t size;
        int r;

        /* Neither a FIFO nor a terminal may hold up the boot. */
        fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
        if (fd < 0)
                return refuse_file(path, strerrordesc_np(errno), ret_error);
        if (fstat(fd, &st) < 0)
                return -errno;
        if (!S_ISREG(st.st_mode))
                return refuse_file(path, "something that is no regular file", ret_error);
        r = read_whole_fd(fd, JSON_SOURCE_SIZE_MAX, &text, &size);
        if (r == -EFBIG)
                return refuse_file(path, "more than 1 MiB", ret_error);
        if (r == -ENOMEM)
                return r;
        if (r < 0)
                return refuse_file(path, strerrordesc_np(-r), ret_error);
        return definition_sources_add(sources, text, size, path, ret_error);
}

int definition_load(const char *root, const char *name, MachineDefinition **ret, DefinitionError *ret_error) {
        _cleanup_(definition_sources_done) DefinitionSources sources = {};
        _cleanup_(string_array_freep) char **files = NULL;
        int r;

        r = definition_files(root, name, &files);
        if (r < 0)
                return r;
        for (char **file = files; *file; file++) {
                r = add_file(&sources, *file, ret_error);
                if (r < 0)
                        return r;
        }
        return definition_from_sources(&sources, name, ret, ret_error);
}

int definition_load_file(const char *path, const char *name, MachineDefinition **ret, DefinitionError *ret_error) {
        _cleanup_(definition_sources_done) DefinitionSources sources = {};
        _cleanup_free_ char *stem = NULL;
        const char *base = strrchr(path, '/');
        struct stat st;
        int r;

        base = base ? base + 1 : path;
        if (!name) {
                size_t length = strlen(base);

                if (length > strlen(".json") && streq(base + length - strlen(".json"), ".json"))
                        length -= strlen(".json");
                stem = strndup(base, length);
                if (!stem)
                        return -ENOMEM;
                name = stem;
        }
        if (stat(path, &st) < 0)
                return -errno;
        r = add_file(&sources, path, ret_error);
        if (r < 0)
                return r;
        return definition_from_sources(&sources, name, ret, ret_error);
}

int definition_parse(const char *text, size_t size, const char *file, const char *name, MachineDefinition **ret,
        DefinitionError *ret_error) {
        _cleanup_(definition_sources_done) DefinitionSources sources = {};
        int r;

        r = definition_sources_add(&sources, text, size, file, ret_error);
        if (r < 0)
                return r;
        return definition_from_sources(&sources, name, ret, ret_error);
}

static int list_all(const char *root, Names *ret) {
        int r;

        for (size_t i = 0; i < ELEMENTSOF(directories); i++) {
                _cleanup_free_ char *path = NULL;

                if (asprintf(&path, "%s%s", root ? root : "", directories[i]) < 0) {
                        path = NULL;
                        return -ENOMEM;
                }
                r = list_directory(path, ret);
                if (r < 0)
                        return r;
        }
        return 0;
}

int definition_list(const char *root, char ***ret) {
        _cleanup_(names_done) Names all = {}, valid = {};
        int r;

        r = list_all(root, &all);
        if (r < 0)
                return r;
        for (size_t i = 0; i < all.n; i++) {
                _cleanup_free_ char *path = NULL;

                if (!machine_name_is_valid(all.names[i]))
                        continue;
                r = find_file(root, all.names[i], "", &path);
                if (r == -ENOMEM)
                        return r;
                if (r == -ENOENT)
                        continue;
                r = names_add(&valid, strdup(all.names[i]));
                if (r < 0)
                        return r;
        }
        return names_finish(&valid, ret);
}

int definition_list_misnamed(const char *root, char ***ret) {
        _cleanup_(names_done) Names all = {}, misnamed = {};
        int r;

        r = list_all(root, &all);
        if (r < 0)
                return r;
        for (size_t i = 0; i < all.n; i++) {
                _cleanup_free_ char *path = NULL;

                if (machine_name_is_valid(all.names[i]))
                        continue;
                r = find_file(root, all.names[i], "", &path);
                if (r == -ENOENT)
                        continue;
                if (r >= 0)
                        r = names_add(&misnamed, TAKE_PTR(path));
                if (r < 0)
                        return r;
        }
        return names_finish(&misnamed, ret);
}
