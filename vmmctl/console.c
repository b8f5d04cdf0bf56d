/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* console: this terminal becomes the guest's. On a terminal it is raw, follows its size, and leaves on the escape character pressed three
 * times within a second; otherwise bytes are copied until either side ends, so that programs can drive a guest. */

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <termios.h>

#include "machine.h"
#include "output.h"

#define BUFFER_SIZE KIB(16)
#define ESCAPE_COUNT 3
#define ESCAPE_WINDOW_USEC USEC_PER_SEC
/* After the end of standard input the guest may still have something to say; when it was quiet for so long, that was it. */
#define LINGER_USEC (500 * USEC_PER_MSEC)
/* The window's size is a courtesy: a machine that does not answer must not hold up the console. */
#define SIZE_TIMEOUT_USEC (2 * USEC_PER_SEC)

typedef struct Console {
        const Options *options;
        const char *machine, *device, *port;
        VarlinkClient *client; /* for the window's size; NULL where that does not work */
        int fd;                /* the console, non-blocking */
        int signals;
        bool terminal;         /* standard input is one, and is raw now */
        struct termios saved;
        char input[BUFFER_SIZE]; /* typed, not taken by the machine yet */
        size_t n_input;
        bool input_ended, input_closed;
        unsigned escapes;
        uint64_t first_escape;
        uint64_t last_output;
} Console;

static void console_done(Console *c) {
        if (c->terminal)
                (void) tcsetattr(STDIN_FILENO, TCSADRAIN, &c->saved);
        (void) varlink_client_unref(c->client);
        (void) safe_close(c->fd);
        (void) safe_close(c->signals);
}

static json_object *device_parameter(const Console *c) {
        json_object *o = json_object_new_object();

        if (o && json_add_string(o, "device", c->device) < 0) {
                (void) json_object_put(o);
                return NULL;
        }
        return o;
}

static json_object *port_parameters(const Console *c) {
        json_object *o = device_parameter(c);

        if (o && json_add_string(o, "port", c->port) < 0) {
                (void) json_object_put(o);
                return NULL;
        }
        return o;
}

/* Where descriptors are lost on the way (a socket that ssh forwards), the connection itself becomes the console. */
static int attach_connection(Console *c, json_object *parameters, char **ret_problem) {
        _cleanup_free_ char *data = NULL;
        size_t size = 0;
        int r;

        r = machine_call_upgrade(c->options, c->client, "AttachConsole", parameters, &c->fd, &data, &size, ret_problem);
        c->client = varlink_client_unref(c->client);
        if (r < 0)
                return r;
        r = write_full(STDOUT_FILENO, data, size);
        if (r < 0)
                return r;
        /* Another one for the window's size; without it, it is a console nevertheless. */
        (void) machine_connect(c->options, c->machine, &c->client, NULL);
        return 0;
}

static int attach(Console *c, char **ret_problem) {
        _cleanup_json_ json_object *parameters = port_parameters(c), *reply = NULL;
        int r;

        if (!parameters)
                return -ENOMEM;
        r = machine_connect(c->options, c->machine, &c->client, ret_problem);
        if (r >= 0)
                r = machine_call(c->options, c->client, "OpenConsole", parameters, &reply, ret_problem);
        if (r < 0)
                return r;
        c->fd = varlink_client_take_fd(c->client, json_get_integer(reply, "fileDescriptorIndex", -1));
        if (c->fd < 0) {
                r = attach_connection(c, parameters, ret_problem);
                if (r < 0)
                        return r;
        }
        if (fcntl(c->fd, F_SETFL, O_RDWR | O_NONBLOCK) < 0)
                return -errno;
        if (c->client)
                varlink_client_set_timeout(c->client, SIZE_TIMEOUT_USEC);
        return 0;
}

/* Tells the guest how large this terminal is. Where that fails once it is not tried again. */
static void send_size(Console *c) {
        _cleanup_json_ json_object *parameters = NULL;
        struct winsize size;
        int r;

        /* Only the console itself has a size. */
        if (c->port || !c->terminal || !c->client || ioctl(STDIN_FILENO, TIOCGWINSZ, &size) < 0 || size.ws_col == 0 || size.ws_row == 0)
                return;
        parameters = device_parameter(c);
        if (!parameters || json_add_integer(parameters, "columns", size.ws_col) < 0 ||
                json_add_integer(parameters, "rows", size.ws_row) < 0)
                return;
        r = machine_call(c->options, c->client, "SetConsoleSize", parameters, NULL, NULL);
        if (r < 0)
                c->client = varlink_client_unref(c->client);
}

static int make_raw(Console *c) {
        struct termios raw;

        if (isatty(STDIN_FILENO) <= 0)
                return 0;
        if (tcgetattr(STDIN_FILENO, &c->saved) < 0)
                return -errno;
        raw = c->saved;
        cfmakeraw(&raw);
        if (tcsetattr(STDIN_FILENO, TCSADRAIN, &raw) < 0)
                return -errno;
        c->terminal = true;
        return 0;
}

static int open_signals(Console *c) {
        sigset_t set;

        (void) sigemptyset(&set);
        (void) sigaddset(&set, SIGWINCH);
        (void) sigaddset(&set, SIGTERM);
        (void) sigaddset(&set, SIGINT);
        (void) sigaddset(&set, SIGHUP);
        if (sigprocmask(SIG_BLOCK, &set, NULL) < 0)
                return -errno;
        /* Whoever read our output is gone: write(2) says so. */
        (void) signal(SIGPIPE, SIG_IGN);
        c->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
        return c->signals < 0 ? -errno : 0;
}

/* Whether the escape character was pressed often enough in what was just typed. */
static bool escaped(Console *c, const char *data, size_t size) {
        if (c->options->escape == ESCAPE_NONE || !c->terminal)
                return false;
        for (size_t i = 0; i < size; i++) {
                uint64_t now = now_usec();

                if (data[i] != (char) c->options->escape) {
                        c->escapes = 0;
                        continue;
                }
                if (c->escapes == 0 || now - c->first_escape > ESCAPE_WINDOW_USEC) {
                        c->first_escape = now;
                        c->escapes = 0;
                }
                if (++c->escapes >= ESCAPE_COUNT)
                        return true;
        }
        return false;
}

/* Each step returns > 0 to go on, 0 at the end, or a negative errno. */

static int read_input(Console *c) {
        char data[4096];
        size_t room = sizeof(c->input) - c->n_input;
        ssize_t n;

        n = read(STDIN_FILENO, data, c->terminal ? sizeof(data) : MIN(sizeof(data), room));
        if (n < 0)
                return errno == EINTR || errno == EAGAIN ? 1 : errno == EIO ? 0 : -errno;
        if (n == 0) {
                c->input_ended = true;
                c->last_output = now_usec();
                return 1;
        }
        if (escaped(c, data, (size_t) n))
                return 0;
        /* A terminal is read also where the guest takes nothing, to see the escape: then what is typed is lost. */
        memcpy(c->input + c->n_input, data, MIN((size_t) n, room));
        c->n_input += MIN((size_t) n, room);
        return 1;
}

static int write_input(Console *c) {
        ssize_t n;

        n = send(c->fd, c->input, c->n_input, MSG_NOSIGNAL);
        if (n < 0 && errno == ENOTSOCK)
                n = write(c->fd, c->input, c->n_input);
        if (n < 0)
                return errno == EAGAIN || errno == EINTR ? 1 : errno == EPIPE || errno == ECONNRESET || errno == EIO ? 0 : -errno;
        c->n_input -= (size_t) n;
        memmove(c->input, c->input + n, c->n_input);
        return 1;
}

static int copy_output(Console *c) {
        char data[BUFFER_SIZE];
        ssize_t n;
        int r;

        n = read(c->fd, data, sizeof(data));
        if (n < 0)
                return errno == EAGAIN || errno == EINTR ? 1 : errno == EIO || errno == ECONNRESET ? 0 : -errno;
        if (n == 0)
                return 0;
        c->last_output = now_usec();
        r = write_full(STDOUT_FILENO, data, (size_t) n);
        return r < 0 ? r : 1;
}

static int handle_signal(Console *c) {
        struct signalfd_siginfo info;

        if (read(c->signals, &info, sizeof(info)) != sizeof(info))
                return 1;
        if (info.ssi_signo != SIGWINCH)
                return 0;
        send_size(c);
        return 1;
}

/* Standard input is at its end: what is left is sent, then the machine is told, then we listen for a little longer. */
static int linger(Console *c, int *ret_timeout) {
        uint64_t quiet = now_usec() - c->last_output;

        *ret_timeout = -1;
        if (!c->input_ended || c->n_input > 0)
                return 1;
        if (!c->input_closed) {
                c->input_closed = true;
                (void) shutdown(c->fd, SHUT_WR);
        }
        if (quiet >= LINGER_USEC)
                return 0;
        *ret_timeout = (int) ((LINGER_USEC - quiet) / USEC_PER_MSEC) + 1;
        return 1;
}

static int step(Console *c) {
        enum { SIGNALS, CONSOLE, INPUT };
        struct pollfd p[] = {
                [SIGNALS] = { .fd = c->signals, .events = POLLIN },
                [CONSOLE] = { .fd = c->fd, .events = (short) (POLLIN | (c->n_input > 0 ? POLLOUT : 0)) },
                [INPUT] = { .fd = c->input_ended || (!c->terminal && c->n_input == sizeof(c->input)) ? -1 : STDIN_FILENO,
                        .events = POLLIN },
        };
        int timeout, r;

        r = linger(c, &timeout);
        if (r <= 0)
                return r;
        if (poll(p, ELEMENTSOF(p), timeout) < 0)
                return errno == EINTR ? 1 : -errno;
        if (p[SIGNALS].revents)
                r = handle_signal(c);
        if (r > 0 && p[CONSOLE].revents & (POLLIN | POLLHUP | POLLERR))
                r = copy_output(c);
        if (r > 0 && p[CONSOLE].revents & POLLOUT)
                r = write_input(c);
        if (r > 0 && p[INPUT].revents)
                r = read_input(c);
        return r;
}

static int run(Console *c) {
        int r;

        r = open_signals(c);
        if (r >= 0)
                r = make_raw(c);
        if (r < 0)
                return r;
        send_size(c);
        do
                r = step(c);
        while (r > 0);
        return r;
}

static void say_how_to_leave(const Console *c) {
        if (c->options->quiet || isatty(STDIN_FILENO) <= 0)
                return;
        if (c->options->escape == ESCAPE_NONE)
                (void) fprintf(stderr, "Connected to %s. It ends when the machine does.\n", c->machine);
        else
                (void) fprintf(stderr, "Connected to %s. Press ^%c three times within 1 s to leave.\n", c->machine,
                        c->options->escape + '@');
}

int command_console(const Options *o, char **arguments, size_t n) {
        _cleanup_(console_done) Console c = {
                .options = o, .machine = arguments[0], .device = n > 1 ? arguments[1] : NULL, .port = o->port, .fd = -EBADF, .signals = -EBADF,
        };
        _cleanup_free_ char *problem = NULL;
        int r;

        r = attach(&c, &problem);
        if (r < 0)
                return machine_conclude(c.machine, r, problem);
        say_how_to_leave(&c);
        r = run(&c);
        if (c.terminal) {
                (void) tcsetattr(STDIN_FILENO, TCSADRAIN, &c.saved);
                c.terminal = false;
                if (!o->quiet)
                        (void) fprintf(stderr, "\nDisconnected from %s.\n", c.machine);
        }
        /* The reader of our output ended first: that is an end like another. */
        if (r < 0 && r != -EPIPE) {
                complain("%s: %s", c.machine, strerror(-r));
                return STATUS_FAILED;
        }
        return STATUS_OK;
}
