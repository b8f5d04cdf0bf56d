/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* vmmd, the supervisor of one machine: takes the definition and files it was given, runs the machine, ends with a status that says what
 * became of it. See vmmd(8). */

#include <fcntl.h>
#include <getopt.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <systemd/sd-daemon.h>

#include "config.h"
#include "control.h"
#include "log.h"
#include "machine-device.h"

#define DEFINITION_SIZE_MAX MIB(1)

/* What machined sends to the leader of a machine for "machinectl poweroff" (systemd's SIGRTMIN+4). */
#define SIGNAL_POWER_OFF (SIGRTMIN + 4)

static const char *arg_name = NULL;
static const char *arg_definition = NULL;
static const char *arg_runtime_directory = "/run/vmm";
static const char *arg_control = NULL;

static int help(void) {
        (void) printf("vmmd [OPTIONS…] NAME\n\n"
                      "Runs the virtual machine NAME. Usually started as vmm@NAME.service, which gives the\n"
                      "definition on standard input, and kernel, initrd and the control socket as descriptors.\n\n"
                      "  -h --help                    Show this help\n"
                      "     --version                 Show the version\n"
                      "     --definition=FILE         Read the definition from FILE\n"
                      "     --runtime-directory=PATH  Where the devices' sockets are (default: /run/vmm)\n"
                      "     --control=PATH            Serve the control interface on this socket\n\n"
                      "Exit status: 0 powered off or stopped, 32 reboot where onReboot is \"stop\", 33 crash,\n"
                      "34 guest panic, 35 wrong definition, kernel or initrd, 36 device failure, 1 anything else.\n");
        return 0;
}

/* Returns 1 where there is something to do, 0 where not, negative where the command line is wrong. */
static int parse_arguments(int argc, char **argv) {
        enum { ARG_VERSION = 0x100, ARG_DEFINITION, ARG_RUNTIME_DIRECTORY, ARG_CONTROL };
        static const struct option options[] = {
                { "help", no_argument, NULL, 'h' },
                { "version", no_argument, NULL, ARG_VERSION },
                { "definition", required_argument, NULL, ARG_DEFINITION },
                { "runtime-directory", required_argument, NULL, ARG_RUNTIME_DIRECTORY },
                { "control", required_argument, NULL, ARG_CONTROL },
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
                default:
                        return -EINVAL;
                }
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

static int read_definition(MachineDefinition **ret) {
        DefinitionError error = {};
        _cleanup_free_ char *text = NULL, *message = NULL;
        size_t size;
        int r;

        if (arg_definition)
                r = definition_load_file(arg_definition, arg_name, ret, &error);
        else {
                r = read_whole_fd(STDIN_FILENO, DEFINITION_SIZE_MAX, &text, &size);
                if (r < 0)
                        return log_error_errno(r, "Cannot read the definition on standard input: %m");
                r = definition_parse(text, size, "(standard input)", arg_name, ret, &error);
        }
        if (r == -EBADMSG) {
                message = definition_error_to_string(&error);
                log_error("%s", message ?: "The definition is wrong.");
        } else if (r < 0)
                (void) log_error_errno(r, "Cannot read the definition%s%s: %m", arg_definition ? " " : "", arg_definition ?: "");
        definition_error_done(&error);
        return r;
}

typedef struct Given {
        MachineFiles files;
        int control_fds[4];
        size_t n_control_fds;
} Given;

/* Descriptors by name: "kernel" and "initrd" from the fd store, "varlink" from the socket unit. */
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
                else if (streq(names[i], "varlink") && given->n_control_fds < ELEMENTSOF(given->control_fds))
                        given->control_fds[given->n_control_fds++] = fd;
                else {
                        log_warning("Closing a descriptor named '%s', which is of no use here.", names[i]);
                        (void) safe_close(fd);
                }
                free(names[i]);
        }
        free(names);
        return 0;
}

static int open_file(const char *what, const char *path, int *fd) {
        if (*fd >= 0 || !path)
                return 0;
        *fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
        return *fd < 0 ? log_error_errno(errno, "Cannot open the %s %s: %m", what, path) : 0;
}

/* --- control socket --- */

/* By hand only; systemd passes the socket. */
static int listen_path(VarlinkServer *server, const char *path) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        _cleanup_close_ int fd = -EBADF;

        if (strlen(path) >= sizeof(address.sun_path))
                return log_error_errno(-ENAMETOOLONG, "Cannot listen on %s: %m", path);
        strcpy(address.sun_path, path);
        (void) unlink(path);
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd < 0 || bind(fd, (struct sockaddr *) &address, sizeof(address)) < 0 || listen(fd, SOMAXCONN) < 0)
                return log_error_errno(errno, "Cannot listen on %s: %m", path);
        return varlink_server_listen_fd(server, TAKE_FD(fd));
}

static int listen_control(VarlinkServer *server, Given *given) {
        int r = 0;

        for (size_t i = 0; i < given->n_control_fds && r >= 0; i++)
                r = varlink_server_listen_fd(server, TAKE_FD(given->control_fds[i]));
        if (r >= 0 && arg_control)
                r = listen_path(server, arg_control);
        return r;
}

static int make_server(sd_event *event, Machine *m, Given *given, VarlinkServer **ret) {
        _cleanup_(varlink_server_freep) VarlinkServer *server = NULL;
        struct group *group;
        int r;

        r = varlink_server_new(&server, event);
        if (r >= 0)
                r = varlink_server_set_info(server, "vmmd", "vmmd", PROJECT_VERSION, "");
        if (r >= 0)
                r = control_add(server, m);
        if (r < 0)
                return r;
        if (m->definition->access_group) {
                /* In its unit vmmd runs with this group, and sees neither other groups (PrivateUsers=) nor their names. */
                group = getgrnam(m->definition->access_group);
                if (group || getgid() != 0)
                        varlink_server_set_access_group(server, group ? group->gr_gid : getgid());
                else
                        log_warning("The definition's accessGroup '%s' does not exist on this host.",
                                m->definition->access_group);
        }
        r = listen_control(server, given);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(server);
        return 0;
}

/* --- signals --- */

static int on_signal(sd_event_source *s, const struct signalfd_siginfo *si, void *userdata) {
        log_debug("Received signal %u.", si->ssi_signo);
        return machine_power_off(userdata);
}

static int watch_signals(sd_event *event, Machine *m) {
        const int signals[] = { SIGTERM, SIGINT, SIGNAL_POWER_OFF };
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
        (void) sigaddset(&set, SIGINT);
        (void) sigaddset(&set, SIGNAL_POWER_OFF);
        (void) sigprocmask(SIG_BLOCK, &set, NULL);
        (void) signal(SIGPIPE, SIG_IGN);
}

static int run(void) {
        _cleanup_(sd_event_unrefp) sd_event *event = NULL;
        _cleanup_(machine_freep) Machine *m = NULL;
        _cleanup_(varlink_server_freep) VarlinkServer *server = NULL;
        _cleanup_free_ char *message = NULL, *field = NULL;
        Given given = { .files = { .kernel_fd = -EBADF, .initrd_fd = -EBADF } };
        MachineDefinition *definition;
        MachineResult result = MACHINE_RESULT_ERROR;
        int r;

        if (asprintf(&field, "VMM_MACHINE=%s", arg_name) >= 0)
                log_add_field(field);
        r = collect_fds(&given);
        if (r < 0)
                return MACHINE_RESULT_ERROR;
        r = read_definition(&definition);
        if (r < 0)
                return MACHINE_RESULT_DEFINITION;
        r = open_file("kernel", definition->kernel, &given.files.kernel_fd);
        if (r >= 0)
                r = open_file("initrd", definition->initrd, &given.files.initrd_fd);
        if (r < 0) {
                (void) machine_definition_free(definition);
                return MACHINE_RESULT_DEFINITION;
        }

        r = sd_event_default(&event);
        if (r < 0)
                return log_error_errno(r, "Cannot make an event loop: %m"), MACHINE_RESULT_ERROR;
        r = machine_new(event, definition, arg_runtime_directory, &given.files, &m, &message, &result);
        if (r < 0) {
                log_error("%s", message ?: strerror(-r));
                (void) sd_notifyf(false, "STATUS=%s", message ?: strerror(-r));
                return (int) result;
        }
        r = watch_signals(event, m);
        if (r >= 0)
                r = make_server(event, m, &given, &server);
        if (r >= 0)
                r = machine_start(m);
        if (r < 0)
                return log_error_errno(r, "Cannot start the machine: %m"), MACHINE_RESULT_ERROR;
        (void) sd_event_set_watchdog(event, true);

        r = sd_event_loop(event);
        if (r < 0)
                return log_error_errno(r, "The event loop failed: %m"), MACHINE_RESULT_ERROR;
        return r;
}

int main(int argc, char **argv) {
        int r;

        log_open("vmmd");
        r = parse_arguments(argc, argv);
        if (r <= 0)
                return r < 0 ? MACHINE_RESULT_ERROR : 0;
        block_signals();
        return run();
}
