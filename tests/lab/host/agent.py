# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs commands for the machine that runs the lab: the far end of vmlab's command channel.

Each virtio port lab.N serves one command at a time. A frame is a type byte, a length (4 bytes, big endian) and as many
bytes. From vmlab: R (request: id, flags and shell command, separated by NUL), I (standard input), E (its end),
W (terminal size), K (kill). From here: the marker with the request's id, then O (standard output), S (standard error), X (exit status).

Only modules of python3-minimal are used."""

import fcntl
import os
import select
import signal
import struct
import threading
import time

PORTS = "/dev/virtio-ports"
TIOCSWINSZ = 0x5414  # the module termios is not in python3-minimal
MARKER = b"\0LAB\0"


class Disconnected(Exception):
    pass


class Channel:
    """One port: frames in, frames out."""

    def __init__(self, fd):
        self.fd = fd
        self.buffer = b""

    def wait(self, fds, timeout=None):
        """Waits for input on the port or on one of fds; returns those that are ready."""
        poll = select.poll()
        for fd in [self.fd] + fds:
            poll.register(fd, select.POLLIN)
        ready = dict(poll.poll(timeout))
        if ready.get(self.fd, 0) & (select.POLLHUP | select.POLLERR):
            raise Disconnected
        return ready

    def fill(self):
        data = os.read(self.fd, 65536)
        if not data:
            raise Disconnected
        self.buffer += data

    def frame(self):
        """Takes the next frame that is here as a whole, or None."""
        if len(self.buffer) < 5:
            return None
        kind, size = self.buffer[:1], struct.unpack(">I", self.buffer[1:5])[0]
        if len(self.buffer) < 5 + size:
            return None
        payload, self.buffer = self.buffer[5:5 + size], self.buffer[5 + size:]
        return kind, payload

    def write(self, data):
        while data:
            data = data[os.write(self.fd, data):]

    def send(self, kind, payload):
        self.write(kind + struct.pack(">I", len(payload)) + payload)


class Command:
    """A shell command with its three streams, or with a terminal."""

    def __init__(self, command, terminal):
        self.terminal = terminal
        if terminal:
            self.pid, master = os.forkpty()
            if self.pid == 0:
                self.execute(command)
            self.stdin, self.outputs = master, {master: b"O"}
            return
        stdin, self.stdin = os.pipe()
        stdout_read, stdout = os.pipe()
        stderr_read, stderr = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            os.dup2(stdin, 0)
            os.dup2(stdout, 1)
            os.dup2(stderr, 2)
            self.execute(command)
        for fd in (stdin, stdout, stderr):
            os.close(fd)
        self.outputs = {stdout_read: b"O", stderr_read: b"S"}

    @staticmethod
    def execute(command):
        try:
            os.chdir("/root")
            os.execve("/bin/bash", ["bash", "-c", command], {
                "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "HOME": "/root", "USER": "root", "LOGNAME": "root", "SHELL": "/bin/bash",
                "TERM": "linux", "LANG": "C.UTF-8", "SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": "",
            })
        finally:
            os._exit(127)

    def feed(self, data):
        try:
            while data:
                data = data[os.write(self.stdin, data):]
        except OSError:
            pass

    def close_input(self):
        if self.stdin is not None and not self.terminal:
            os.close(self.stdin)
        self.stdin = None

    def resize(self, payload):
        if self.terminal:
            fcntl.ioctl(self.stdin, TIOCSWINSZ, payload)

    def kill(self):
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def close(self):
        self.close_input()
        for fd in self.outputs:
            os.close(fd)
        self.outputs = {}
        status = os.waitpid(self.pid, 0)[1]
        return os.waitstatus_to_exitcode(status)


def handle_frame(command, kind, payload):
    if kind == b"I" and command.stdin is not None:
        command.feed(payload)
    elif kind == b"E":
        command.close_input()
    elif kind == b"W":
        command.resize(payload)
    elif kind == b"K":
        command.kill()


def exited(command):
    """Whether the command itself is over, also while something that it left behind holds its output."""
    return os.waitid(os.P_PID, command.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def handle_frames(channel, command):
    """Obeys what has come; returns the payload of the next request where the client has given this command up."""
    while (frame := channel.frame()) is not None:
        if frame[0] == b"R":
            command.kill()
            return frame[1]
        handle_frame(command, *frame)
    return None


def forward(channel, command, fd):
    try:
        data = os.read(fd, 65536)
    except OSError:  # a terminal whose last process is gone
        data = b""
    if data:
        channel.send(command.outputs[fd], data)
        return
    if command.terminal:
        command.stdin = None
    os.close(fd)
    del command.outputs[fd]


def serve_command(channel, command):
    """Until the command is over; returns the next request where one came before that."""
    request = handle_frames(channel, command)
    while command.outputs and request is None:
        over = exited(command)
        ready = channel.wait(list(command.outputs), 500)
        if channel.fd in ready:
            channel.fill()
            request = handle_frames(channel, command)
        outputs = [fd for fd in command.outputs if fd in ready]
        for fd in outputs:
            forward(channel, command, fd)
        if over and not outputs:
            break
    return request


def next_request(channel):
    while True:
        while (frame := channel.frame()) is not None:
            if frame[0] == b"R":
                return frame[1]
        channel.wait([])
        channel.fill()


def serve(channel):
    request = None
    while True:
        identity, flags, text = (request or next_request(channel)).split(b"\0", 2)
        channel.write(MARKER + identity)
        command = Command(text.decode(), b"t" in flags)
        try:
            request = serve_command(channel, command)
        except (Disconnected, OSError):
            command.kill()
            raise
        finally:
            status = command.close()
        if request is None:
            channel.send(b"X", struct.pack(">i", status))


def serve_connection(fd, busy, name):
    try:
        serve(Channel(fd))
    except (Disconnected, OSError):
        pass
    finally:
        busy.discard(name)


def open_ports():
    """udev names them one by one: done when two looks in a row see the same."""
    names, before = [], None
    while not names or names != before:
        time.sleep(0.2)
        before = names
        names = sorted(name for name in os.listdir(PORTS) if name.startswith("lab.")) if os.path.isdir(PORTS) else []
    return {name: os.open(os.path.join(PORTS, name), os.O_RDWR | os.O_CLOEXEC) for name in names}


def main():
    ports, busy = open_ports(), set()
    while True:
        idle = {fd: name for name, fd in ports.items() if name not in busy}
        poll = select.poll()
        for fd in idle:
            poll.register(fd, select.POLLIN)
        for fd, events in poll.poll(0):
            # POLLHUP stands for "nobody is connected", and there is no event for its end.
            if not events & select.POLLHUP:
                busy.add(idle[fd])
                threading.Thread(target=serve_connection, args=(fd, busy, idle[fd]), daemon=True).start()
        time.sleep(0.1)


main()
