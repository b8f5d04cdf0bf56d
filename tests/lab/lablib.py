# SPDX-License-Identifier: LGPL-2.1-or-later
"""The lab: a real systemd on a kernel with a real /dev/kvm, and commands that run there.

Two kinds of it, chosen by probe(): where the machine's own KVM runs stock guests, a systemd-nspawn container with the real
/dev/kvm; elsewhere a Debian under QEMU's emulated SVM, whose kernel has a /dev/kvm of its own. A scenario cannot tell which it has.

Every step has a deadline. What misses it raises LabError, which says where the lab stood."""

import fcntl
import json
import os
import re
import select
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
import tty

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
PORTS = 6
MARKER = b"\0LAB\0"
BOOT_TIMEOUT = 180
ENVIRONMENT = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "USER=root", "LOGNAME=root",
               "TERM=linux", "LANG=C.UTF-8", "SYSTEMD_COLORS=0", "SYSTEMD_PAGER="]


class LabError(Exception):
    pass


def say(text):
    print(f"lab: {text}", file=sys.stderr, flush=True)


def images(*names):
    """The paths of images, which are built first where they are not in the cache."""
    result = subprocess.run([os.path.join(HERE, "images"), *names], stdout=subprocess.PIPE, check=False, text=True)
    if result.returncode != 0:
        raise LabError(f"cannot make the images {' '.join(names)}")
    return result.stdout.split()


def run_directory(name):
    return os.path.join(os.environ.get("VMM_LAB_RUN", "/tmp/vmlab-%d" % os.getuid()), name)


def probe():
    """"nspawn" where this machine's KVM can run stock guests, else "qemu"; with the reason."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            flags = next((line.split() for line in f if line.startswith("flags")), [])
    except OSError:
        flags = []
    hardware = next((name for name in ("vmx", "svm") if name in flags), None)
    modules = [name for name in ("kvm_intel", "kvm_amd") if os.path.isdir(f"/sys/module/{name}")]
    if hardware and modules and os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "nspawn", f"the CPU has {hardware.upper()}, {modules[0]} is loaded: systemd-nspawn with the real /dev/kvm"
    if hardware:
        return "qemu", f"the CPU has {hardware.upper()}, but no /dev/kvm of its own: a Debian under QEMU's emulated SVM"
    return "qemu", "no VMX or SVM here: a Debian under QEMU's emulated SVM"


class Lab:
    """What both kinds share. A subclass starts and stops the host, and opens a Session for a command."""

    kind = None

    def __init__(self, name, settings):
        self.name = name
        self.settings = settings
        self.directory = run_directory(name)

    # Life of the host

    @staticmethod
    def open(name="default"):
        """The running lab of that name."""
        path = os.path.join(run_directory(name), "lab.json")
        try:
            with open(path, encoding="utf-8") as f:
                settings = json.load(f)
        except FileNotFoundError:
            raise LabError(f"no lab {name} is running: start one by `vmlab start`") from None
        return KINDS[settings["kind"]](name, settings)

    @staticmethod
    def start(name="default", kind=None, release="bookworm", memory=4096, cpus=2):
        kind = kind or probe()[0]
        directory = run_directory(name)
        if os.path.exists(os.path.join(directory, "lab.json")):
            lab = Lab.open(name)
            if lab.is_alive():
                raise LabError(f"lab {name} runs already")
            shutil.rmtree(directory)
        os.makedirs(directory, mode=0o700, exist_ok=True)
        lab = KINDS[kind](name, {"kind": kind, "release": release, "memory": memory, "cpus": cpus})
        try:
            lab.boot()
            lab.save()
            lab.wait_until_up()
        except BaseException:
            lab.destroy()
            raise
        return lab

    def save(self):
        with open(os.path.join(self.directory, "lab.json"), "w", encoding="utf-8") as f:
            json.dump(self.settings, f)

    def wait_until_up(self):
        start = time.monotonic()
        status, output = self.run("systemctl is-system-running --wait", timeout=BOOT_TIMEOUT)
        state = output.strip().splitlines()[-1] if output.strip() else "?"
        if status != 0:
            failed = self.run("systemctl list-units --failed --plain --no-legend", timeout=60)[1]
            say(f"the host is {state}: {failed.strip()}")
        for _ in range(100):
            if self.run("test -c /dev/kvm -a -d /srv/lab/debian12", timeout=60)[0] == 0:
                break
            time.sleep(0.1)
        else:
            raise LabError("the host has no /dev/kvm or no images" + self.where())
        say(f"host ({self.settings['release']}, {self.kind}) is up after {time.monotonic() - start:.0f} s, {state}")

    def is_alive(self):
        try:
            os.kill(self.settings["pid"], 0)
        except (KeyError, ProcessLookupError):
            return False
        return True

    def wait_for_end(self, timeout):
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            try:
                os.waitpid(self.settings["pid"], os.WNOHANG)
            except ChildProcessError:
                pass
            if not self.is_alive():
                return True
            time.sleep(0.1)
        return False

    def shutdown(self, timeout=120):
        """Ends the host in order; by force where that takes too long. Returns whether it was in order."""
        if not self.is_alive():
            self.destroy()
            return False
        self.request_poweroff()
        orderly = self.wait_for_end(timeout)
        if not orderly:
            say(f"the host did not end within {timeout} s" + self.where())
        self.destroy()
        return orderly

    def where(self):
        """The end of the host's console, for messages."""
        try:
            with open(os.path.join(self.directory, "console.log"), "rb") as f:
                lines = f.read().decode(errors="replace").splitlines()[-8:]
        except OSError:
            return ""
        return "; the host's console ends with:\n" + "\n".join("    " + line for line in lines)

    # Commands

    def run(self, command, timeout=60, input=None):  # pylint: disable=redefined-builtin
        """Runs a shell command on the host; returns its exit status and what it printed, both streams together."""
        output = bytearray()
        status = self.session(f"{{ {command}\n}} 2>&1").communicate(
            lambda _, data: output.extend(data), input=input, timeout=timeout)
        return status, output.decode(errors="replace")

    def check(self, command, timeout=60, input=None):  # pylint: disable=redefined-builtin
        """The same for a command that has to succeed; returns what it printed."""
        status, output = self.run(command, timeout, input)
        if status != 0:
            raise LabError(f"`{command}` ended with {status}: {output.strip()}")
        return output

    def terminal(self, command):
        """A command on a terminal, to be worked by patterns."""
        return Terminal(self.session(command, terminal=True))

    def execute(self, command, timeout=None, terminal=False):
        """Runs a command with this process's own standard streams."""
        session = self.session(command, terminal)
        return session.interact() if terminal else session.pass_through(timeout)

    def push(self, sources, destination, timeout=300):
        """Copies files and directories into a directory of the host."""
        names = []
        for source in sources:
            directory, name = os.path.split(os.path.abspath(source))
            names += ["-C", directory, name]
        with subprocess.Popen(["tar", "-cf", "-", "--owner=0", "--group=0", *names], stdout=subprocess.PIPE) as tar:
            data = tar.stdout.read()
        if tar.returncode != 0:
            raise LabError(f"cannot read {' '.join(sources)}")
        quoted = shlex.quote(destination)
        self.check(f"mkdir -p {quoted} && tar -C {quoted} --no-same-owner -xf -", timeout, input=data)

    def push_tree(self, tree, timeout=300):
        """Lays a directory over the host's root, as `make install` would."""
        with subprocess.Popen(["tar", "-C", tree, "-cf", "-", "--owner=0", "--group=0", "."],
                              stdout=subprocess.PIPE) as tar:
            data = tar.stdout.read()
        self.check("tar -C / --no-overwrite-dir --keep-directory-symlink -xf -", timeout, input=data)

    def write_file(self, path, text, timeout=60):
        self.check(f"mkdir -p {shlex.quote(os.path.dirname(path))} && cat >{shlex.quote(path)}", timeout,
                   input=text.encode())

    def pull(self, source, destination, timeout=300):
        with open(destination, "wb") as f:
            status = self.session(f"cat {shlex.quote(source)}").communicate(
                lambda stream, data: f.write(data) if stream == 1 else None, timeout=timeout)
        if status != 0:
            raise LabError(f"cannot read {source} on the host")

    def install(self, build, timeout=300):
        """Installs the suite from its build directory and makes the host's systemd know it."""
        tree = os.path.join(self.directory, "install")
        shutil.rmtree(tree, ignore_errors=True)
        result = subprocess.run(["meson", "install", "-C", build, "--quiet", "--no-rebuild", "--destdir", tree],
                                check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if result.returncode != 0:
            raise LabError(f"meson install failed: {result.stdout.strip()}")
        self.push_tree(tree, timeout)
        self.check("systemd-sysusers && systemd-tmpfiles --create && journalctl --update-catalog && "
                   "systemctl daemon-reload", timeout)
        shutil.rmtree(tree)


class Session:
    """One command under way. A subclass knows how its frames travel."""

    def __init__(self, lab, command):
        self.lab = lab
        self.command = command

    def communicate(self, output, input=None, timeout=60):  # pylint: disable=redefined-builtin
        """Feeds input, hands output(stream, data) all that comes back; returns the exit status."""
        raise NotImplementedError

    def late(self, timeout):
        return LabError(f"`{self.command}` did not end within {timeout} s" + self.lab.where())

    def pass_through(self, timeout):
        streams = {1: sys.stdout.buffer, 2: sys.stderr.buffer}

        def output(stream, data):
            streams[stream].write(data)
            streams[stream].flush()

        data = None if sys.stdin is None or sys.stdin.isatty() else sys.stdin.buffer.read()
        return self.communicate(output, input=data, timeout=timeout)


class PortSession(Session):
    """A command behind a virtio port; see host/agent.py for the frames."""

    def __init__(self, lab, command, terminal):
        super().__init__(lab, command)
        self.lock, self.socket = self.connect()
        identity = os.urandom(16).hex().encode()
        self.send(b"R", identity + b"\0" + (b"t" if terminal else b"") + b"\0" + command.encode())
        self.awaited = MARKER + identity
        self.buffer = bytearray()

    def connect(self):
        for _ in range(600):
            for port in range(PORTS):
                path = os.path.join(self.lab.directory, f"port{port}")
                lock = os.open(path + ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(lock)
                    continue
                connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                try:
                    connection.connect(path)
                except OSError as error:
                    raise LabError(f"lab {self.lab.name} is gone: {error}") from None
                return lock, connection
            time.sleep(0.1)
        raise LabError("all command channels of the lab are busy")

    def send(self, kind, payload):
        self.socket.sendall(kind + struct.pack(">I", len(payload)) + payload)

    def close(self):
        self.socket.close()
        # The far end has to notice that this one is gone before the next may come.
        time.sleep(0.06)
        os.close(self.lock)

    def wait(self, timeout):
        return bool(select.select([self.socket], [], [], timeout)[0])

    def receive(self):
        """Reads what has come; yields (kind, payload) of each whole frame."""
        data = self.socket.recv(1 << 16)
        if not data:
            raise LabError(f"the lab ended during `{self.command}`" + self.lab.where())
        self.buffer += data
        if self.awaited:
            # What an earlier command left in the channel comes before the marker.
            at = self.buffer.find(self.awaited)
            if at < 0:
                return
            del self.buffer[:at + len(self.awaited)]
            self.awaited = None
        while len(self.buffer) >= 5:
            size = struct.unpack(">I", self.buffer[1:5])[0]
            if len(self.buffer) < 5 + size:
                return
            kind, payload = bytes(self.buffer[:1]), bytes(self.buffer[5:5 + size])
            del self.buffer[:5 + size]
            yield kind, payload

    def communicate(self, output, input=None, timeout=60):
        deadline = None if timeout is None else time.monotonic() + timeout
        todo = memoryview(input or b"")
        ended = False
        try:
            while True:
                remaining = None if deadline is None else deadline - time.monotonic()
                if remaining is not None and remaining <= 0:
                    self.send(b"K", b"")
                    raise self.late(timeout)
                writing = [] if ended else [self.socket]
                readable, writable, _ = select.select([self.socket], writing, [], remaining)
                if writable:
                    if todo:
                        chunk, todo = todo[:8192], todo[8192:]
                        self.send(b"I", bytes(chunk))
                    else:
                        self.send(b"E", b"")
                        ended = True
                if readable:
                    for kind, payload in self.receive():
                        if kind == b"X":
                            return struct.unpack(">i", payload)[0]
                        output(2 if kind == b"S" else 1, payload)
        finally:
            self.close()

    def interact(self):
        """Hands the terminal over to the command; its own end ends this."""
        saved = termios.tcgetattr(0)

        def resize(*_):
            self.send(b"W", fcntl.ioctl(0, termios.TIOCGWINSZ, b"\0" * 8))

        try:
            tty.setraw(0)
            resize()
            signal.signal(signal.SIGWINCH, resize)
            while True:
                readable, _, _ = select.select([0, self.socket], [], [])
                if 0 in readable:
                    self.send(b"I", os.read(0, 4096))
                if self.socket in readable:
                    for kind, payload in self.receive():
                        if kind == b"X":
                            return struct.unpack(">i", payload)[0]
                        os.write(1, payload)
        finally:
            signal.signal(signal.SIGWINCH, signal.SIG_DFL)
            termios.tcsetattr(0, termios.TCSADRAIN, saved)
            self.close()


class Terminal:
    """A command on a terminal, worked by patterns: what a person would see and type."""

    def __init__(self, session):
        self.session = session
        self.text = ""
        self.status = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.session.close()

    def send(self, text):
        self.session.send(b"I", text.encode())

    def _read(self, deadline, what):
        remaining = deadline - time.monotonic()
        if remaining <= 0 or not self.session.wait(remaining):
            raise LabError(f"`{self.session.command}` did not show {what}; it shows: ...{self.text[-600:]!r}")
        for kind, payload in self.session.receive():
            if kind == b"X":
                self.status = struct.unpack(">i", payload)[0]
            else:
                self.text += payload.decode(errors="replace")

    def expect(self, pattern, timeout):
        """Waits until the pattern shows; returns what came before it and the match, and forgets both."""
        deadline = time.monotonic() + timeout
        while True:
            match = re.search(pattern, self.text)
            if match:
                before, self.text = self.text[:match.start()], self.text[match.end():]
                return before, match
            if self.status is not None:
                raise LabError(f"`{self.session.command}` ended with {self.status} before it showed {pattern!r}; "
                               f"it showed: ...{self.text[-600:]!r}")
            self._read(deadline, repr(pattern))

    def wait(self, timeout):
        """Waits for the command's end; returns its exit status."""
        deadline = time.monotonic() + timeout
        while self.status is None:
            self._read(deadline, "its end")
        return self.status


class QemuLab(Lab):
    """A Debian under QEMU without any hardware's help."""

    kind = "qemu"

    def session(self, command, terminal=False):
        return PortSession(self, command, terminal)

    def boot(self):
        release = self.settings["release"]
        host, kernel, data = images(f"host-{release}", f"lab-{release}", "data")
        append = "console=ttyS0 quiet panic=-1 lab.root=/dev/vda mitigations=off systemd.getty_auto=no " + os.environ.get("VMM_LAB_APPEND", "")
        command = [
            "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-M", "q35",
            "-smp", str(self.settings["cpus"]), "-m", str(self.settings["memory"]),
            "-display", "none", "-no-reboot", "-nodefaults",
            "-serial", f"file:{self.directory}/console.log",
            "-qmp", f"unix:{self.directory}/qmp,server=on,wait=off",
            "-kernel", f"{kernel}/vmlinuz", "-initrd", f"{kernel}/initramfs.cpio", "-append", append,
            # Whatever the lab writes is thrown away with it.
            "-drive", f"file={host},format=raw,if=virtio,snapshot=on,cache=unsafe",
            "-drive", f"file={data},format=raw,if=virtio,snapshot=on,cache=unsafe",
            "-device", "virtio-serial-pci,max_ports=16",
        ]
        for port in range(PORTS):
            command += ["-chardev", f"socket,id=port{port},path={self.directory}/port{port},server=on,wait=off",
                        "-device", f"virtserialport,chardev=port{port},name=lab.{port}"]
        with open(os.path.join(self.directory, "qemu.log"), "wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        self.settings["pid"] = process.pid
        for _ in range(100):
            if os.path.exists(os.path.join(self.directory, f"port{PORTS - 1}")):
                return
            if process.poll() is not None:
                break
            time.sleep(0.1)
        with open(os.path.join(self.directory, "qemu.log"), encoding="utf-8") as log:
            raise LabError(f"QEMU did not start: {log.read().strip()}")

    def request_poweroff(self):
        try:
            self.run("systemctl poweroff --no-block", timeout=30)
        except LabError:
            pass  # it may be gone before it has answered; shutdown() sees how it ends

    def destroy(self):
        if self.is_alive():
            os.kill(self.settings["pid"], signal.SIGKILL)
            self.wait_for_end(10)
        shutil.rmtree(self.directory, ignore_errors=True)


class ProcessSession(Session):
    """A command in the container: a process of this machine that has entered the container's namespaces."""

    def __init__(self, lab, command, terminal):
        super().__init__(lab, command)
        self.argv = ["nsenter", "-t", str(lab.leader()), "-m", "-u", "-i", "-n", "-p", "-C", "--root", "--wd",
                     "env", "-i", *ENVIRONMENT, "bash", "-c", "cd /root; " + command]
        self.terminal = terminal
        self.process = self.master = None

    def communicate(self, output, input=None, timeout=60):
        with subprocess.Popen(self.argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              start_new_session=True) as process:
            try:
                stdout, stderr = process.communicate(input or b"", timeout)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                raise self.late(timeout) from None
        output(1, stdout)
        output(2, stderr)
        return process.returncode

    def interact(self):
        return subprocess.call(self.argv)

    def begin(self):
        """With a terminal, on the first use of it."""
        if self.process is None:
            self.master, slave = os.openpty()
            self.process = subprocess.Popen(self.argv, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
            os.close(slave)

    def send(self, _, payload):
        self.begin()
        os.write(self.master, payload)

    def wait(self, timeout):
        self.begin()
        return bool(select.select([self.master], [], [], timeout)[0])

    def receive(self):
        try:
            data = os.read(self.master, 65536)
        except OSError:  # the last process on the terminal is gone
            data = b""
        if data:
            yield b"O", data
        else:
            yield b"X", struct.pack(">i", self.process.wait())

    def close(self):
        if self.process:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
            os.close(self.master)


class NspawnLab(Lab):
    """A container with this machine's /dev/kvm, its root an overlay that is thrown away."""

    kind = "nspawn"

    def session(self, command, terminal=False):
        return ProcessSession(self, command, terminal)

    def leader(self):
        """The container's PID 1, as this machine numbers it."""
        pid = self.settings["pid"]
        for _ in range(100):
            try:
                with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as f:
                    children = f.read().split()
            except FileNotFoundError:
                children = []
            if children:
                return int(children[0])
            time.sleep(0.1)
        raise LabError("the container has ended" + self.where())

    def mount(self, *arguments):
        subprocess.run(["mount", *arguments], check=True)

    def boot(self):
        root, data = images(f"root-{self.settings['release']}", "data")
        scratch, merged = os.path.join(self.directory, "scratch"), os.path.join(self.directory, "root")
        os.makedirs(scratch)
        os.makedirs(merged)
        try:
            self.mount("-t", "tmpfs", "tmpfs", scratch)
            os.makedirs(os.path.join(scratch, "upper"))
            os.makedirs(os.path.join(scratch, "work"))
            self.mount("-t", "overlay", "-o", f"lowerdir={root},upperdir={scratch}/upper,workdir={scratch}/work",
                       "overlay", merged)
            subprocess.run(["cp", "--sparse=always", data, os.path.join(self.directory, "data.img")], check=True)
            os.makedirs(os.path.join(merged, "srv", "lab"))
            self.mount("-o", "loop", os.path.join(self.directory, "data.img"), os.path.join(merged, "srv", "lab"))
        except subprocess.CalledProcessError as error:
            raise LabError(f"cannot make the container's root: {error}") from None
        self.settings["pid"] = self.run_container(merged)
        os.makedirs(os.path.join(merged, "run"), exist_ok=True)

    def run_container(self, merged):
        # PID 1 gets a unified hierarchy whatever this machine has; capabilities are what its units give up by themselves.
        command = ["systemd-nspawn", "--quiet", f"--machine=vmm-lab-{self.name}", f"--directory={merged}", "--register=no",
                   "--keep-unit", "--console=pipe", "--private-network", "--capability=all",
                   "--system-call-filter=bpf @keyring", "--bind=/dev/kvm", "--boot"]
        console = os.path.join(self.directory, "console.log")
        if os.path.isdir("/run/systemd/system"):
            unit = f"vmm-lab-{self.name}.service"
            subprocess.run(["systemd-run", "--quiet", f"--unit={unit}", "-p", "Delegate=yes", "-p", "KillMode=mixed",
                            "-p", f"StandardOutput=file:{console}", "-p", f"StandardError=file:{console}",
                            "-E", "UNIFIED_CGROUP_HIERARCHY=1", *command], check=True)
            text = subprocess.run(["systemctl", "show", "-P", "MainPID", unit], check=True, text=True,
                                  stdout=subprocess.PIPE).stdout
            return int(text)
        with open(console, "wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                                       env={**os.environ, "UNIFIED_CGROUP_HIERARCHY": "1"})
        return process.pid

    def wait_until_up(self):
        # Until its PID 1 has made itself a systemd there is nobody to ask.
        deadline = time.monotonic() + BOOT_TIMEOUT
        while self.run("test -S /run/systemd/private", timeout=30)[0] != 0:
            if time.monotonic() > deadline:
                raise LabError("the container does not come up" + self.where())
            time.sleep(0.1)
        self.check("mkdir -p /run/lab && cat >/run/lab/varlink-call.py",
                   input=open(os.path.join(HERE, "host", "varlink-call.py"), "rb").read())
        super().wait_until_up()

    def request_poweroff(self):
        os.kill(self.leader(), signal.SIGRTMIN + 4)

    def destroy(self):
        if self.is_alive():
            try:
                os.kill(self.leader(), signal.SIGKILL)
            except (LabError, ProcessLookupError):
                pass
            self.wait_for_end(10)
        for path in ("root/srv/lab", "root", "scratch"):
            subprocess.run(["umount", "-q", "--lazy", os.path.join(self.directory, path)], check=False,
                           stderr=subprocess.DEVNULL)
        shutil.rmtree(self.directory, ignore_errors=True)


KINDS = {"qemu": QemuLab, "nspawn": NspawnLab}
