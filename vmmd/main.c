/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* vmmd, the supervisor of one machine: takes the definition and files it was given, runs the machine, ends with a status that says what
 * became of it. See vmmd(8). */

#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <systemd/sd-daemon.h>

#include "access.h"
#include "catalog-ids.h"
#include "config.h"
#include "control.h"
#include "log.h"
#include "machine-device.h"
#include "notify.h"
#include "parse.h"
#include "reload.h"
#include "restore.h"
#include "watchdog.h"

#define DEFINITION_SIZE_MAX MIB(1)

/* What machined sends to the leader of a machine for "machinectl poweroff" (systemd's SIGRTMIN+4), and "machinectl reboot". */
#define SIGNAL_POWER_OFF (SIGRTMIN + 4)
#define SIGNAL_REBOOT SIGINT

static const char *arg_name = NULL;
static const char *arg_definition = NULL;
static const char *arg_runtime_directory = "/run/vmm";
static const char *arg_control = NULL;
static const char *arg_restore = NULL;
static bool arg_accepts_state = false;
static bool arg_print_device_tree = false;
static int arg_resume_fd = -EBADF;
static int arg_previous_fd = -EBADF;
static const char *arg_resume_failure = NULL;

static int help(void) {
        (void) printf("vmmd [OPTIONS…] NAME\n\n"
                      "Runs the virtual machine NAME. Usually started as vmm@NAME.service, which gives the\n"
                      "definition on standard input, and kernel, initrd and the control socket as descriptors.\n\n"
                      "  -h --help                    Show this help\n"
                      "     --version                 Show the version\n"
                      "     --definition=FILE         Read the definition from FILE\n"
                      "     --runtime-directory=PATH  Where the devices' sockets are (default: /run/vmm)\n"
                      "     --control=PATH            Serve the control interface on this socket\n"
                      "     --restore=DIRECTORY       Go on from a snapshot instead of booting\n"
                      "     --print-device-tree       Print what the guest would begin with, and run nothing\n"
                      "     --accepts-state           Say whether a state as described on standard input is taken\n\n"
                      "Exit status: 0 powered off or stopped, 32 reboot where onReboot is \"stop\", 33 crash,\n"
                      "34 guest panic, 35 wrong definition, kernel, initrd or snapshot, 36 device failure,\n"
                      "37 plugin failure, 1 anything else.\n");
        return 0;
}

static int parse_fd(const char *text, int *ret) {
        uint64_t fd;

        if (parse_unsigned(text, &fd) < 0 || fd <= STDERR_FILENO || fd > INT32_MAX || fcntl((int) fd, F_GETFD) < 0) {
                log_error("'%s' is no open descriptor.", text);
                return -EINVAL;
        }
        *ret = (int) fd;
        return 0;
}

/* Returns 1 where there is something to do, 0 where not, negative where the command line is wrong. */
static int parse_arguments(int argc, char **argv) {
        enum {
                ARG_VERSION = 0x100,
                ARG_DEFINITION,
                ARG_RUNTIME_DIRECTORY,
                ARG_CONTROL,
                ARG_RESTORE,
                ARG_ACCEPTS_STATE,
                ARG_PRINT_DEVICE_TREE,
                ARG_RESUME_FD,
                ARG_PREVIOUS_FD,
                ARG_RESUME_FAILURE,
        };
        static const struct option options[] = {
                { "help", no_argument, NULL, 'h' },
                { "version", no_argument, NULL, ARG_VERSION },
                { "definition", required_argument, NULL, ARG_DEFINITION },
                { "runtime-directory", required_argument, NULL, ARG_RUNTIME_DIRECTORY },
                { "control", required_argument, NULL, ARG_CONTROL },
                { "restore", required_argument, NULL, ARG_RESTORE },
                { "accepts-state", no_argument, NULL, ARG_ACCEPTS_STATE },
                { "print-device-tree", no_argument, NULL, ARG_PRINT_DEVICE_TREE },
                /* What a predecessor says to his successor; not for people. */
                { "resume-fd", required_argument, NULL, ARG_RESUME_FD },
                { "previous-fd", required_argument, NULL, ARG_PREVIOUS_FD },
                { "resume-failure", required_argument, NULL, ARG_RESUME_FAILURE },
                {},
        };
        int c;

        while ((c = getopt_long(argc, argv, "h", options, NULL)) >= 0)
                switch (c) {
                case 'h':
                        return help();
                case ARG_VERSION:
                        (void) printf("vmmd %s\n", PROJECT_VERSION);
                        return 0;
                case ARG_DEFINITION:
                        arg_definition = optarg;
                        break;
                case ARG_RUNTIME_DIRECTORY:
                        arg_runtime_directory = optarg;
                        break;
                case ARG_CONTROL:
                        arg_control = optarg;
                        break;
                case ARG_RESTORE:
                        arg_restore = optarg;
                        break;
                case ARG_ACCEPTS_STATE:
                        arg_accepts_state = true;
                        break;
                case ARG_PRINT_DEVICE_TREE:
                        arg_print_device_tree = true;
                        break;
                case ARG_RESUME_FD:
                case ARG_PREVIOUS_FD:
                        if (parse_fd(optarg, c == ARG_RESUME_FD ? &arg_resume_fd : &arg_previous_fd) < 0)
                                return -EINVAL;
                        break;
                case ARG_RESUME_FAILURE:
                        arg_resume_failure = optarg;
                        break;
                default:
                        return -EINVAL;
                }
        if (arg_accepts_state && optind == argc)
                return 1;
        if (optind + 1 != argc) {
                log_error("Expected one argument, the machine's name; see --help.");
                return -EINVAL;
        }
        arg_name = argv[optind];
        if (!machine_name_is_valid(arg_name)) {
                log_error("'%s' is no name of a machine: expected letters, digits, '.', '_' and '-', at most %u of them.",
                        arg_name, MACHINE_NAME_MAX);
                return -EINVAL;
        }
        return 1;
}

/* --- what we are given --- */

static int read_text(char **ret, size_t *ret_size) {
        _cleanup_close_ int fd = -EBADF;
        int r;

        if (arg_definition) {
                fd = open(arg_definition, O_RDONLY | O_CLOEXEC | O_NOCTTY);
                if (fd < 0)
                        return log_error_errno(errno, "Cannot open the definition %s: %m", arg_definition);
        }
        r = read_whole_fd(arg_definition ? fd : STDIN_FILENO, DEFINITION_SIZE_MAX, ret, ret_size);
        return r < 0 ? log_error_errno(r, "Cannot read the definition: %m") : 0;
}

static int read_definition(char **ret_text, MachineDefinition **ret) {
        DefinitionError error = {};
        _cleanup_free_ char *text = NULL, *message = NULL;
        size_t size;
        int r;

        r = read_text(&text, &size);
        if (r < 0)
                return r;
        /* A successor of this process gets it as a string. */
        if (memchr(text, 0, size)) {
                log_error("The definition has a NUL byte.");
                return -EBADMSG;
        }
        r = definition_parse(text, size, arg_definition ?: "(standard input)", arg_name, ret, &error);
        if (r == -EBADMSG) {
                message = definition_error_to_string(&error);
                log_error("%s", message ?: "The definition is wrong.");
        } else if (r < 0)
                (void) log_error_errno(r, "Cannot read the definition%s%s: %m", arg_definition ? " " : "", arg_definition ?: "");
        definition_error_done(&error);
        if (r >= 0)
                *ret_text = TAKE_PTR(text);
        return r;
}

typedef struct Given {
        MachineFiles files;
        struct MachineFile others[MACHINE_DEVICES_MAX];
        RestoreFiles restore;
        int control_fds[4]; /* the server's, once it listens */
        size_t n_control_fds;
        char *definition_text;
        char *executable; /* where this program was when it began */
} Given;

static void given_done(Given *g) {
        free(g->definition_text);
        free(g->executable);
}

/* What is there later may be another, which is the point of it. */
static char *find_executable(void) {
        char path[PATH_MAX];
        ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 1);

        if (n < 0)
                return NULL;
        path[n] = 0;
        return strdup(path);
}

/* Descriptors by name: "kernel", "initrd" and "DEVICE.path" from the fd store, "varlink" from the socket unit. */
static int collect_fds(Given *given) {
        char **names = NULL;
        int n = sd_listen_fds_with_names(true, &names);

        if (n < 0)
                return log_error_errno(n, "Cannot take the descriptors that systemd passes: %m");
        for (int i = 0; i < n; i++) {
                int fd = SD_LISTEN_FDS_START + i;

                if (streq(names[i], "kernel") && given->files.kernel_fd < 0)
                        given->files.kernel_fd = fd;
                else if (streq(names[i], "initrd") && given->files.initrd_fd < 0)
                        given->files.initrd_fd = fd;
                else if (restore_files_take(&given->restore, names[i], fd))
                        ;
                else if (streq(names[i], "varlink") && given->n_control_fds < ELEMENTSOF(given->control_fds))
                        given->control_fds[given->n_control_fds++] = fd;
                else if (strchr(names[i], '.') && given->files.n_others < ELEMENTSOF(given->others)) {
                        given->others[given->files.n_others++] = (struct MachineFile) { .name = names[i], .fd = fd };
                        continue;
                } else {
                        log_warning("Closing a descriptor named '%s', which is of no use here.", names[i]);
                        (void) safe_close(fd);
                }
                free(names[i]);
        }
        given->files.others = given->others;
        free(names);
        return 0;
}

static int open_file(const char *what, const char *path, int *fd) {
        if (*fd >= 0 || !path)
                return 0;
        *fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
        return *fd < 0 ? log_error_errno(errno, "Cannot open the %s %s: %m", what, path) : 0;
}

/* By hand only, as those before. */
static int open_overlay(Given *given, const char *path) {
        struct MachineFile *file = &given->others[given->files.n_others];
        char *name;
        int fd = -EBADF, r;

        if (!path || machine_file(&given->files, MACHINE_OVERLAY_FILE) >= 0)
                return 0;
        if (given->files.n_others >= ELEMENTSOF(given->others))
                return log_error_errno(-E2BIG, "Too many files to open the device tree overlay.");
        r = open_file("device tree overlay", path, &fd);
        if (r < 0)
                return r;
        name = strdup(MACHINE_OVERLAY_FILE);
        if (!name) {
                (void) safe_close(fd);
                return -ENOMEM;
        }
        *file = (struct MachineFile) { .name = name, .fd = fd };
        given->files.n_others++;
        return 0;
}

/* The snapshot to go on from, where there is one. */
static int open_snapshot(Given *given, const MachineDefinition *definition) {
        _cleanup_free_ char *message = NULL;
        int r = 0;

        if (arg_restore)
                r = restore_files_open(&given->restore, arg_restore, &message);
        if (r >= 0)
                r = restore_new(&given->restore, definition, &given->files.restore, &message);
        if (r >= 0)
                return 0;
        (void) make_one_line(message);
        log_id(LOG_ERR, MESSAGE_SNAPSHOT_REFUSED, "The snapshot cannot be restored: %s", message ?: strerror(-r));
        notify_status("", "The snapshot cannot be restored: %s", message ?: strerror(-r));
        return r;
}

/* --- control socket --- */

/* By hand only; systemd passes the socket. */
static int listen_path(const char *path) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        _cleanup_close_ int fd = -EBADF;

        if (strlen(path) >= sizeof(address.sun_path))
                return log_error_errno(-ENAMETOOLONG, "Cannot listen on %s: %m", path);
        strcpy(address.sun_path, path);
        (void) unlink(path);
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd < 0 || bind(fd, (struct sockaddr *) &address, sizeof(address)) < 0 || listen(fd, SOMAXCONN) < 0)
                return log_error_errno(errno, "Cannot listen on %s: %m", path);
        return TAKE_FD(fd);
}

static int listen_control(VarlinkServer *server, Given *given) {
        int r = 0;

        if (arg_control && arg_resume_fd < 0 && given->n_control_fds < ELEMENTSOF(given->control_fds)) {
                r = listen_path(arg_control);
                if (r >= 0)
                        given->control_fds[given->n_control_fds++] = r;
        }
        for (size_t i = 0; i < given->n_control_fds && r >= 0; i++)
                r = varlink_server_listen_fd(server, given->control_fds[i]);
        return r;
}

static int make_server(sd_event *event, Machine *m, Given *given, Access **ret_access, Control **ret_control,
        VarlinkServer **ret) {
        _cleanup_(varlink_server_freep) VarlinkServer *server = NULL;
        int r;

        r = varlink_server_new(&server, event);
        if (r >= 0)
                r = varlink_server_set_info(server, "vmmd", "vmmd", PROJECT_VERSION, "");
        if (r >= 0)
                r = control_new(server, m, ret_control);
        if (r < 0)
                return r;
        r = access_new(server, event, m->definition, NULL, ret_access);
        if (r < 0)
                return r;
        r = listen_control(server, given);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(server);
        return 0;
}

/* --- signals --- */

static int on_signal(sd_event_source *s, const struct signalfd_siginfo *si, void *userdata) {
        int r;

        log_debug("Received signal %u.", si->ssi_signo);
        r = si->ssi_signo == SIGNAL_REBOOT ? machine_reboot(userdata) : machine_power_off(userdata);
        if (r < 0)
                log_info("The machine cannot do what signal %u asks for in its present state.", si->ssi_signo);
        return 0;
}

static int watch_signals(sd_event *event, Machine *m) {
        const int signals[] = { SIGTERM, SIGNAL_REBOOT, SIGNAL_POWER_OFF };
        int r = 0;

        for (size_t i = 0; i < ELEMENTSOF(signals) && r >= 0; i++)
                r = sd_event_add_signal(event, NULL, signals[i], on_signal, m);
        return r;
}

/* Before any thread exists: the loop takes these by signalfd. */
static void block_signals(void) {
        sigset_t set;

        (void) sigemptyset(&set);
        (void) sigaddset(&set, SIGTERM);
        (void) sigaddset(&set, SIGNAL_REBOOT);
        (void) sigaddset(&set, SIGNAL_POWER_OFF);
        (void) sigprocmask(SIG_BLOCK, &set, NULL);
        (void) signal(SIGPIPE, SIG_IGN);
}

/* --- running --- */

/* What the service manager, or somebody by hand, gives. */
static int take_what_is_given(Given *given, MachineDefinition **ret) {
        MachineDefinition *definition;
        int r;

        if (collect_fds(given) < 0)
                return MACHINE_RESULT_ERROR;
        given->executable = find_executable();
        r = read_definition(&given->definition_text, &definition);
        if (r < 0)
                return MACHINE_RESULT_DEFINITION;
        r = open_file("kernel", definition->kernel, &given->files.kernel_fd);
        if (r >= 0)
                r = open_file("initrd", definition->initrd, &given->files.initrd_fd);
        if (r >= 0)
                r = open_overlay(given, definition->device_tree_overlay);
        if (r >= 0)
                r = open_snapshot(given, definition);
        if (r < 0) {
                (void) machine_definition_free(definition);
                return MACHINE_RESULT_DEFINITION;
        }
        *ret = definition;
        return 0;
}

static void give_way(const char *reason, void *userdata) {
        reload_give_way(arg_resume_fd, arg_previous_fd, arg_resume_failure, arg_name, arg_runtime_directory, reason);
}

/* What the predecessor in this process left. */
static int take_what_is_left(Given *given, Inheritance **ret_inheritance, MachineDefinition **ret) {
        _cleanup_(inheritance_freep) Inheritance *i = NULL;
        DefinitionError error = {};
        _cleanup_free_ char *message = NULL;
        int r;

        r = inheritance_open(arg_resume_fd, arg_previous_fd, arg_resume_failure, &i, &message);
        if (r >= 0) {
                r = definition_parse(i->definition_text, strlen(i->definition_text), "(the machine's definition)", arg_name, ret, &error);
                if (r == -EBADMSG)
                        message = definition_error_to_string(&error);
                definition_error_done(&error);
        }
        if (r < 0) {
                give_way(message ?: strerror(-r), NULL);
                return MACHINE_RESULT_ERROR;
        }
        given->files = (MachineFiles) { .kernel_fd = i->kernel_fd, .initrd_fd = i->initrd_fd, .others = i->files, .n_others = i->n_files,
                                        .handover = &i->handover, .failed = give_way };
        memcpy(given->control_fds, i->listen_fds, i->n_listen_fds * sizeof(int));
        given->n_control_fds = i->n_listen_fds;
        given->definition_text = TAKE_PTR(i->definition_text);
        given->executable = TAKE_PTR(i->executable);
        *ret_inheritance = TAKE_PTR(i);
        return 0;
}

typedef struct Running {
        Inheritance *inheritance; /* NULL: the machine is started here */
        Given given;
        sd_event *event;
        Machine *machine;
        VarlinkServer *server;
        Access *access;
        Control *control;
        Reload *reload;
} Running;

static void running_done(Running *r) {
        (void) reload_free(r->reload);
        (void) varlink_server_free(r->server);
        (void) control_free(r->control);
        (void) access_free(r->access);
        (void) machine_free(r->machine);
        (void) sd_event_unref(r->event);
        given_done(&r->given);
        (void) inheritance_free(r->inheritance);
}

static int serve(Running *run) {
        ReloadConfig config = {
                .executable = run->given.executable ?: "/proc/self/exe",
                .runtime_directory = arg_runtime_directory,
                .definition_text = run->given.definition_text,
                .listen_fds = run->given.control_fds,
        };
        int r;

        r = watch_signals(run->event, run->machine);
        if (r >= 0)
                r = make_server(run->event, run->machine, &run->given, &run->access, &run->control, &run->server);
        if (r < 0)
                return r;
        config.n_listen_fds = run->given.n_control_fds;
        config.control = run->control;
        r = reload_new(run->machine, &config, &run->reload);
        if (r >= 0)
                r = watchdog_begin(run->event, "vmmd");
        return r;
}

static int begin(Running *run) {
        int r;

        r = serve(run);
        if (r >= 0)
                r = run->inheritance ? inheritance_commit(run->inheritance, run->machine, run->server, run->control) : machine_start(run->machine);
        if (r < 0 && run->inheritance)
                give_way(strerror(-r), NULL);
        return r < 0 ? log_error_errno(r, "Cannot start the machine: %m") : 0;
}

static int run(void) {
        _cleanup_(running_done) Running running = { .given = { .restore = RESTORE_FILES_NULL,
                                                                   .files = { .kernel_fd = -EBADF, .initrd_fd = -EBADF } } };
        _cleanup_free_ char *message = NULL, *field = NULL;
        MachineResult result = MACHINE_RESULT_ERROR;
        MachineDefinition *definition;
        int r;

        if (asprintf(&field, "VMM_MACHINE=%s", arg_name) >= 0)
                log_add_field(field);
        if (arg_resume_fd >= 0)
                reload_guard(arg_resume_fd, arg_previous_fd, arg_resume_failure, arg_name, arg_runtime_directory);
        r = arg_resume_fd >= 0 ? take_what_is_left(&running.given, &running.inheritance, &definition) :
                                 take_what_is_given(&running.given, &definition);
        if (r != 0)
                return r;
        r = sd_event_default(&running.event);
        if (r < 0) {
                (void) machine_definition_free(definition);
                if (arg_resume_fd >= 0)
                        give_way(strerror(-r), NULL);
                return log_error_errno(r, "Cannot make an event loop: %m"), MACHINE_RESULT_ERROR;
        }
        r = machine_new(running.event, definition, arg_runtime_directory, &running.given.files, &running.machine, &message, &result);
        if (r < 0) {
                (void) make_one_line(message);
                log_error("%s", message ?: strerror(-r));
                notify_status("", "%s", message ?: strerror(-r));
                return (int) result;
        }
        if (begin(&running) < 0)
                return MACHINE_RESULT_ERROR;
        r = sd_event_loop(running.event);
        if (r < 0)
                return log_error_errno(r, "The event loop failed: %m"), MACHINE_RESULT_ERROR;
        return r;
}

/* Compiled, as the guest would get it. */
static int print_device_tree(void) {
        _cleanup_(given_done) Given given = { .restore = RESTORE_FILES_NULL, .files = { .kernel_fd = -EBADF, .initrd_fd = -EBADF } };
        MachineResult result = MACHINE_RESULT_ERROR;
        _cleanup_free_ char *message = NULL;
        _cleanup_free_ void *tree = NULL;
        MachineDefinition *definition;
        size_t size = 0;
        int r;

        r = take_what_is_given(&given, &definition);
        if (r != 0)
                return r;
        r = machine_make_device_tree(definition, &given.files, &tree, &size, &message, &result);
        if (r < 0) {
                (void) make_one_line(message);
                log_error("%s", message ?: strerror(-r));
                return (int) result;
        }
        if (fwrite(tree, 1, size, stdout) != size || fflush(stdout) != 0)
                return log_error_errno(errno, "Cannot write the device tree: %m"), MACHINE_RESULT_ERROR;
        return MACHINE_RESULT_SUCCESS;
}

/* A predecessor asks, while its guest runs. */
static int accepts_state(void) {
        _cleanup_free_ char *text = NULL, *message = NULL;
        size_t size;
        int r;

        r = read_whole_fd(STDIN_FILENO, KIB(64), &text, &size);
        if (r >= 0)
                r = reload_sections_check(text, &message);
        (void) printf("%s\n", r >= 0 ? RELOAD_ACCEPTED : message ?: strerror(-r));
        return r >= 0 ? MACHINE_RESULT_SUCCESS : MACHINE_RESULT_ERROR;
}

int main(int argc, char **argv) {
        int r;

        log_open("vmmd");
        r = parse_arguments(argc, argv);
        if (r <= 0)
                return r < 0 ? MACHINE_RESULT_ERROR : 0;
        if (arg_accepts_state)
                return accepts_state();
        if (arg_print_device_tree)
                return print_device_tree();
        block_signals();
        return run();
}
