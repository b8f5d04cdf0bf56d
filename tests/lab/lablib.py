# SPDX-License-Identifier: LGPL-2.1-or-later
"""The lab: a real systemd on a kernel with a real /dev/kvm, and commands that run there.

Two kinds of it, chosen by probe(): where the machine's own KVM runs stock guests, a systemd-nspawn container with the real
/dev/kvm; elsewhere a Debian under QEMU's emulated SVM, whose kernel has a /dev/kvm of its own. A scenario cannot tell which it has.
A host of 64-bit Arm is always emulated, with its virtualization extensions.

Every step has a deadline. What misses it raises LabError, which says where the lab stood."""

import contextlib
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
import threading
import time
import tty

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
PORTS = 6
MARKER = b"\0LAB\0"
BOOT_TIMEOUT = 400
ENVIRONMENT = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "USER=root", "LOGNAME=root",
               "TERM=linux", "LANG=C.UTF-8", "SYSTEMD_COLORS=0", "SYSTEMD_PAGER="]


# Those of this process, for whoever has to end them at once; no more come once `closing` is set.
running = set()
closing = threading.Event()


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


PLUGINS = ("tests/unit/plugin-program", "tests/unit/plugin-functions", "tests/plugins/plugin-adder", "tests/plugins/plugin-linux",
           "tests/bench/bench-recovery")


def install_into(tree, build):
    """What `meson install` installs, into a directory instead of a system."""
    shutil.rmtree(tree, ignore_errors=True)
    result = subprocess.run(["meson", "install", "-C", build, "--quiet", "--no-rebuild", "--destdir", tree],
                            check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if result.returncode != 0:
        raise LabError(f"meson install failed: {result.stdout.strip()}")
    # Programs of the tests that a scenario needs on its host, where they were built; most are plugins.
    for path in PLUGINS:
        if os.path.exists(os.path.join(build, path)):
            os.makedirs(os.path.join(tree, "usr/lib/vmm-lab-plugins"), exist_ok=True)
            shutil.copy2(os.path.join(build, path), os.path.join(tree, "usr/lib/vmm-lab-plugins"))


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
    def start(name="default", kind=None, release="bookworm", memory=4096, cpus=2, arch="x86_64"):
        kind = kind or (probe()[0] if arch == "x86_64" else "qemu")
        if arch != "x86_64" and (kind, release) != ("qemu", "bookworm"):
            raise LabError(f"a host of {arch} is emulated, and Debian 12: there is no {kind} of it with {release}")
        directory = run_directory(name)
        if os.path.exists(os.path.join(directory, "lab.json")):
            lab = Lab.open(name)
            if lab.is_alive():
                raise LabError(f"lab {name} runs already")
            shutil.rmtree(directory)
        os.makedirs(directory, mode=0o700, exist_ok=True)
        lab = KINDS[kind](name, {"kind": kind, "release": release, "memory": memory, "cpus": cpus, "arch": arch})
        try:
            lab.come_up()
        except BaseException:
            lab.destroy()
            raise
        return lab

    def come_up(self):
        if closing.is_set():
            raise LabError("no more labs are started")
        running.add(self)
        self.boot()
        self.save()
        self.wait_until_up()

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
        for _ in range(600):
            if self.run("test -c /dev/kvm -a -d /srv/lab/debian12", timeout=60)[0] == 0:
                break
            time.sleep(0.1)
        else:
            raise LabError("the host has no /dev/kvm or no images" + self.where())
        say(f"host ({self.settings['release']}, {self.kind}, {self.arch}) is up after {time.monotonic() - start:.0f} s, {state}")

    @property
    def arch(self):
        return self.settings.get("arch", "x86_64")

    @property
    def patience(self):
        """How much longer than elsewhere everything may take, which run() and terminals see to by themselves: where each of its exits costs the emulation all that it has translated of addresses, more."""
        return 2 if self.arch == "aarch64" else 1

    @property
    def compiler(self):
        """For programs that run here and in guests, all linked statically."""
        return "aarch64-linux-gnu-gcc" if self.arch == "aarch64" else "cc"

    def huge_pages(self, allowed):
        """Whether guests' memory may be of huge pages: off where single pages are counted. Nothing but an emulated host needs them."""

    def runs_guests(self):
        """Whether its /dev/kvm runs stock guests, and not only such as the kernel "tiny"."""
        return self.kind == "qemu" or probe()[0] == "nspawn"

    def is_alive(self):
        try:
            os.waitpid(self.settings["pid"], os.WNOHANG)  # one of ours may have ended and be there still
        except (KeyError, ChildProcessError):
            pass
        try:
            os.kill(self.settings["pid"], 0)
        except (KeyError, ProcessLookupError):
            return False
        return True

    def cpu_seconds(self):
        """What the host's process has used of the processors so far."""
        try:
            with open(f"/proc/{self.settings['pid']}/stat", encoding="ascii", errors="replace") as f:
                fields = f.read().rsplit(")", 1)[1].split()
        except OSError:
            return 0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def wait_for_end(self, timeout):
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
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

    def replace(self):
        """Another host in the place of this one, which is not asked."""
        tree, kept = self.settings.get("tree"), self.directory + ".tree"
        if tree and tree.startswith(self.directory + os.sep):
            shutil.rmtree(kept, ignore_errors=True)
            os.rename(tree, kept)
        self.destroy()
        os.makedirs(self.directory, mode=0o700, exist_ok=True)
        if os.path.isdir(kept):
            os.rename(kept, tree)
        self.come_up()
        if tree:
            self.install_tree(tree)

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
            lambda _, data: output.extend(data), input=input, timeout=timeout * self.patience)
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
        install_into(tree, build)
        self.install_tree(tree, timeout)

    def install_tree(self, tree, timeout=300):
        """The same of what install_into() has made."""
        self.push_tree(tree, timeout)
        self.check("systemd-sysusers && systemd-tmpfiles --create && journalctl --update-catalog && "
                   "systemctl daemon-reload", timeout)
        # For a host in its place, whoever asks for that.
        self.settings["tree"] = tree
        self.save()


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
                connection.settimeout(30)  # a host that hangs takes nothing more at some time
                try:
                    connection.connect(path)
                except OSError as error:
                    raise LabError(f"lab {self.lab.name} is gone: {error}") from None
                return lock, connection
            time.sleep(0.1)
        raise LabError("all command channels of the lab are busy")

    def gone(self, error):
        return LabError(f"the lab ended during `{self.command}`: {error}" + self.lab.where())

    def send(self, kind, payload):
        try:
            self.socket.sendall(kind + struct.pack(">I", len(payload)) + payload)
        except OSError as error:
            raise self.gone(error) from None

    def close(self):
        self.socket.close()
        # The far end has to notice that this one is gone before the next may come.
        time.sleep(0.06)
        os.close(self.lock)

    def wait(self, timeout):
        return bool(select.select([self.socket], [], [], timeout)[0])

    def receive(self):
        """Reads what has come; yields (kind, payload) of each whole frame."""
        try:
            data = self.socket.recv(1 << 16)
        except OSError as error:
            raise self.gone(error) from None
        if not data:
            raise self.gone("it is disconnected")
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
        deadline = time.monotonic() + timeout * self.session.lab.patience
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
        deadline = time.monotonic() + timeout * self.session.lab.patience
        while self.status is None:
            self._read(deadline, "its end")
        return self.status


class QemuLab(Lab):
    """A Debian under QEMU without any hardware's help."""

    kind = "qemu"

    def session(self, command, terminal=False):
        return PortSession(self, command, terminal)

    def processor(self):
        """Arguments of QEMU for the host's hardware, and the host kernel's for it."""
        cpus = self.settings["cpus"]
        if self.arch == "aarch64":
            # Without the pointer authentication that the architecture names, which costs most of the time where it is computed; and without
            # the registers of vectors, which KVM gives no guest that does not ask for them.
            return (["qemu-system-aarch64", "-accel", "tcg,thread=multi", "-cpu", "max,pauth-impdef=on,sve=off,sme=off",
                     "-M", "virt,virtualization=on,gic-version=3", "-smp", str(cpus)], "console=ttyAMA0")
        # The first processor runs no guest. QEMU (7.2, and the newest still) keeps the chip set's IGNNE# in a word of its first
        # processor, hflags2, that also holds that one's SVM state: global interrupt flag, nested paging, interrupt masking. Each XRSTOR,
        # FXRSTOR and FLDENV of any other processor clears the bit there by a read and a write without a lock (cpu_set_fpus(),
        # cpu_clear_ignne()). Where that meets a VMRUN, #VMEXIT or STGI of the first processor, the change of this one is undone: the
        # host goes on under nested paging, faults, and its own registers are saved as the guest's (a triple fault, or a guest that never
        # comes back), or it takes no interrupt any more. On a processor that never enters a guest there is nothing to undo.
        #
        # Without the fifth level of page tables: the emulation walks host's and guest's at each miss.
        return (["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max,la57=off", "-M", "q35", "-smp", str(cpus + 1)],
                f"console=ttyS0 systemd.cpu_affinity=1-{cpus}")

    def boot(self):
        suffix = "arm64" if self.arch == "aarch64" else self.settings["release"]
        host, kernel, data = images(f"host-{suffix}", f"lab-{suffix}", "data-arm64" if self.arch == "aarch64" else "data")
        processor, append = self.processor()
        append += " quiet panic=-1 lab.root=/dev/vda mitigations=off systemd.getty_auto=no " + os.environ.get("VMM_LAB_APPEND", "")
        command = [
            *processor, "-m", str(self.settings["memory"]),
            "-display", "none", "-no-reboot", "-nodefaults",
            "-serial", f"file:{self.directory}/console.log",
            "-qmp", f"unix:{self.directory}/qmp,server=on,wait=off",
            "-kernel", f"{kernel}/vmlinuz", "-initrd", f"{kernel}/initramfs.cpio", "-append", append,
            # Whatever the lab writes is thrown away with it.
            "-drive", f"file={self.disk(host)},format=raw,if=virtio,snapshot={'off' if self.is_persistent() else 'on'},cache=unsafe",
            "-drive", f"file={data},format=raw,if=virtio,snapshot=on,cache=unsafe",
            "-device", "virtio-serial-pci,max_ports=16",
        ]
        for port in range(PORTS):
            command += ["-chardev", f"socket,id=port{port},path={self.directory}/port{port},server=on,wait=off",
                        "-device", f"virtserialport,chardev=port{port},name=lab.{port}"]
        with open(os.path.join(self.directory, "qemu.log"), "wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        self.settings["pid"] = process.pid
        for _ in range(600):
            if os.path.exists(os.path.join(self.directory, f"port{PORTS - 1}")):
                return
            if process.poll() is not None:
                break
            time.sleep(0.1)
        with open(os.path.join(self.directory, "qemu.log"), encoding="utf-8") as log:
            raise LabError(f"QEMU did not start: {log.read().strip()}")

    def is_persistent(self):
        """Whether its disk outlives QEMU, and ends only with the lab."""
        return bool(self.settings.get("persistent"))

    def disk(self, image):
        """The image that nobody writes to; of a persistent host a copy of its own."""
        if not self.is_persistent():
            return image
        path = os.path.join(self.directory, "host.img")
        if not os.path.exists(path):
            subprocess.run(["cp", "--sparse=always", image, path], check=True)
        return path

    def cut_power(self):
        """Its processors stop at once, and it boots again from the same disk, on which is what its kernel had written by then: QEMU, whose memory is
        lost with it, keeps nothing back."""
        if not self.is_persistent():
            raise LabError("there is no disk to boot from again")
        os.kill(self.settings["pid"], signal.SIGKILL)
        if not self.wait_for_end(10):
            raise LabError("QEMU cannot be killed")
        # By these boot() sees that the next QEMU listens.
        for port in range(PORTS):
            os.unlink(os.path.join(self.directory, f"port{port}"))
        self.come_up()

    def wait_until_up(self):
        super().wait_until_up()
        self.huge_pages(True)

    def huge_pages(self, allowed):
        """A guest that boots is nine tenths page faults, each of which costs most where all is emulated: 33,000 exits, and 6,000 so."""
        self.check(f"echo {'within_size' if allowed else 'never'} >/sys/kernel/mm/transparent_hugepage/shmem_enabled")

    def request_poweroff(self):
        try:
            self.run("systemctl poweroff --no-block", timeout=30)
        except LabError:
            pass  # it may be gone before it has answered; shutdown() sees how it ends

    def destroy(self):
        running.discard(self)
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
            # Its controlling terminal, too: who asks for passwords opens /dev/tty.
            self.process = subprocess.Popen(["setsid", "--ctty", *self.argv], stdin=slave, stdout=slave, stderr=slave)
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
        for _ in range(600):
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
        groups = self.settings["groups"] = self.control_groups()
        for group in groups:
            os.makedirs(group, exist_ok=True)
        enter = 'while [ "$1" != -- ]; do echo $$ >"$1/cgroup.procs" || exit; shift; done; shift; exec "$@"'
        with open(console, "wb") as log:
            process = subprocess.Popen(["sh", "-c", enter, "sh", *groups, "--", *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                                       env={**os.environ, "UNIFIED_CGROUP_HIERARCHY": "1"})
        return process.pid

    def control_groups(self):
        """Where the container's are to be below. Two that are started from one group would share theirs: each PID 1 would take
        the other's units for its own, and stop what is in them."""
        own = {}
        with open("/proc/self/cgroup", encoding="utf-8") as file:
            for line in file:
                _, controllers, path = line.rstrip("\n").split(":", 2)
                own[controllers] = path
        groups = []
        with open("/proc/self/mounts", encoding="utf-8") as file:
            for line in file:
                _, where, kind, options = line.split()[:4]
                hierarchy = "" if kind == "cgroup2" else "name=systemd" if kind == "cgroup" and "name=systemd" in options.split(",") else None
                if hierarchy in own:
                    groups.append(os.path.join(where + own.pop(hierarchy), f"vmm-lab-{self.name}"))
        return groups

    def remove_control_groups(self):
        for group in self.settings.get("groups", ()):
            for path, _, _ in os.walk(group, topdown=False):
                with contextlib.suppress(OSError):  # somebody is still there, and it will be taken up again with the name
                    os.rmdir(path)

    def wait_until_up(self):
        # Until its PID 1 has made itself a systemd there is nobody to ask.
        deadline = time.monotonic() + BOOT_TIMEOUT
        while self.run("test -S /run/systemd/private", timeout=30)[0] != 0:
            if time.monotonic() > deadline:
                raise LabError("the container does not come up" + self.where())
            time.sleep(0.1)
        self.check("mkdir -p /run/lab && cat >/run/lab/varlink-call.py",
                   input=open(os.path.join(HERE, "host", "varlink-call.py"), "rb").read())
        # The bound node has this machine's number for the group kvm. A node of the container's own has its: the bound one must not be
        # changed, it is this machine's.
        self.check("umount /dev/kvm && rm -f /dev/kvm && mknod -m 0660 /dev/kvm c 10 232 && chgrp kvm /dev/kvm")
        super().wait_until_up()

    def request_poweroff(self):
        os.kill(self.leader(), signal.SIGRTMIN + 4)

    def destroy(self):
        running.discard(self)
        if self.is_alive():
            try:
                os.kill(self.leader(), signal.SIGKILL)
            except (LabError, ProcessLookupError):
                pass
            self.wait_for_end(10)
        for path in ("root/srv/lab", "root", "scratch"):
            subprocess.run(["umount", "-q", "--lazy", os.path.join(self.directory, path)], check=False,
                           stderr=subprocess.DEVNULL)
        self.remove_control_groups()
        shutil.rmtree(self.directory, ignore_errors=True)


KINDS = {"qemu": QemuLab, "nspawn": NspawnLab}
