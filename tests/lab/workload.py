# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest whose devices are all at work and checked (workload.c), and the host's side of it: echoes for its streams, lines for its console. For scenarios
that do something to the machine meanwhile, and want to know what the guest saw of it."""

import json
import os
import re
import subprocess
import tempfile
import time

import lablib
from machine import Machine
from scenario import Failure, expect

DIRECTORY = "/run/vmm-work"
IMAGE = "/var/lib/vmm-lab/work.img"
MEMORY = "/var/lib/vmm-lab/work-memory.img"
TAP = "vm-work"
KINDS = ("disk", "memory", "net", "vsock", "rng", "console", "clock")
RECORDS = 64
# Said by kernels whose processors are emulated, or are taken away for a while, whatever their devices do.
NOISE = re.compile(r"clocksource|hrtimer: interrupt took|perf: interrupt took|random: crng|sched: RT throttling")

INIT = """#!/bin/busybox sh
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
echo 3 >/proc/sys/kernel/printk
insert() {
        while read -r module; do
                insmod "/modules/$module" 2>/dev/null
        done <"$1"
}
insert /modules/order
for device in /sys/bus/virtio/devices/*/device; do
        [ -e "/modules/order.$(cat "$device")" ] && insert "/modules/order.$(cat "$device")"
done
for path in $(for device in /sys/bus/virtio/devices/*/device; do
                case "$(cat "$device")" in
                        0x0001) echo /sys/class/net/eth0 ;;
                        0x0002) echo /dev/vda ;;
                        0x0003) echo /dev/hvc0 ;;
                        0x0004) echo /dev/hwrng ;;
                        0x0013) echo /dev/vsock ;;
                        0x001b) echo /dev/pmem0 ;;
                esac
        done); do
        until [ -e "$path" ]; do usleep 50000; done
done
[ -e /sys/class/net/eth0 ] && ifconfig eth0 10.99.0.2 netmask 255.255.255.0 up
exec </dev/ttyS0 >/dev/ttyS0 2>&1
workload
poweroff -f
"""

# The host's side. The console's lines are sent one at a time, again where no answer comes; what a client that is cut off had under way counts as repeated.
HOST = r"""
import json, os, shutil, socket, subprocess, sys, threading, time
name, directory = sys.argv[1], sys.argv[2]

def echo(connection):
    with connection:
        try:
            while data := connection.recv(1 << 16):
                connection.sendall(data)
        except OSError:
            pass

def serve(listener):
    listener.listen()
    while True:
        threading.Thread(target=echo, args=(listener.accept()[0],), daemon=True).start()

def serve_net():
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("0.0.0.0", 7000))
    serve(listener)

def serve_vsock():
    path = f"/run/vmm/{name}/sock.vsock_1001"
    if os.path.exists(path):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    os.chmod(path, 0o660)
    shutil.chown(path, group="vmm-vsock")
    serve(listener)

def fnv(text):
    h = 2166136261
    for c in text.encode():
        h = ((h ^ c) * 16777619) & 0xffffffff
    return h

state = {"answered": 0, "repeated": 0, "attached": 0, "wrong": [], "longest": 0, "clock": None}

class Console:
    def __init__(self):
        self.process = None
        self.changed = threading.Condition()
        self.answers = {}

    def attach(self):
        state["attached"] += 1
        self.process = subprocess.Popen(["vmmctl", "console", name, "console"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        threading.Thread(target=self.read, args=(self.process,), daemon=True).start()

    def read(self, process):
        for line in process.stdout:
            words = line.decode(errors="replace").split()
            if len(words) != 5 or words[0] != "PONG":
                continue
            good = words[1].isdigit() and "%08x" % fnv(words[1] + " " + words[2]) == words[3]
            with self.changed:
                if good:
                    self.answers[int(words[1])] = words[2]
                    state["clock"] = (int(words[4]) if words[4].isdigit() else 0) - time.time_ns() // 1000
                self.changed.notify()
        process.wait()

    def send(self, text):
        if self.process is None or self.process.poll() is not None:
            if self.process:
                time.sleep(0.1)
            self.attach()
            text = "\n" + text
        try:
            self.process.stdin.write(text.encode())
            self.process.stdin.flush()
        except OSError:
            pass

    def ask(self, number):
        word, begin, tries = os.urandom(12).hex(), time.monotonic(), 0
        while not os.path.exists(directory + "/stop"):
            text = f"{number} {word}"
            self.send(f"PING {text} {fnv(text):08x}\n")
            state["repeated"] += tries > 0
            tries += 1
            with self.changed:
                if self.changed.wait_for(lambda: number in self.answers, 4):
                    if self.answers.pop(number) != word:
                        state["wrong"].append(number)
                    state["answered"] += 1
                    state["longest"] = max(state["longest"], time.monotonic() - begin)
                    return

threading.Thread(target=serve_net, daemon=True).start()
threading.Thread(target=serve_vsock, daemon=True).start()
console = Console()
number = 0
while True:
    if os.path.exists(directory + "/stop"):
        console.send("\nSTOP\n")
        time.sleep(2)
        continue
    number += 1
    console.ask(number)
    with open(directory + "/console.new", "w") as f:
        json.dump(state, f)
    os.rename(directory + "/console.new", directory + "/console.json")
    time.sleep(0.1)
"""


def fill(seed, size):
    """What workload.c writes of that seed."""
    mask = (1 << 64) - 1
    x = (seed * 0x9e3779b97f4a7c15 & mask) | 1
    words = [seed]
    for _ in range(size // 8 - 1):
        x ^= x << 13 & mask
        x ^= x >> 7
        x ^= x << 17 & mask
        words.append(x)
    return b"".join(word.to_bytes(8, "little") for word in words)


def check_records(lab, synced, image=IMAGE):
    """Those that the guest announced as flushed are on the disk, whole."""
    expect(synced > 0, "nothing was announced as flushed")
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "records")
        lab.check(f"head -c {RECORDS * 4096} {image} >/run/vmm-records")
        lab.pull("/run/vmm-records", path)
        with open(path, "rb") as f:
            found = f.read()
    # The older half of the ring may be what was being written when the end came.
    for number in range(max(1, synced - RECORDS // 2 + 1), synced + 1):
        at = number % RECORDS * 4096
        seed = int.from_bytes(found[at:at + 8], "little")
        expect(seed in (number, number + RECORDS), f"record {number} of {synced} is not on the disk: {seed:#x} is there")
        expect(found[at:at + 4096] == fill(seed, 4096), f"record {seed} is torn")


class Workload(Machine):
    """`without` are names of devices that it is not to have; `interval` is in milliseconds."""

    def __init__(self, lab, name="work", without=(), interval=1000, kernel="debian12", **settings):
        devices = {
            "disk": {"type": "block", "path": IMAGE},
            "net": {"type": "net", "interface": TAP},
            "sock": {"type": "vsock"},
            "console": {"type": "console"},
            "rng": {"type": "rng"},
            "memory": {"type": "pmem", "path": MEMORY},
            "balloon": {"type": "balloon"},
        }
        prepare(lab, kernel)
        super().__init__(lab, name=name, kernel=kernel, initrd=f"{DIRECTORY}/initramfs.cpio",
                         commandLine=f"quiet rdinit=/work-init work_interval={interval}",
                         devices={key: value for key, value in devices.items() if key not in without}, **{"vcpus": 2, "memory": "256M", **settings})
        self.serial_lost = 0

    def __exit__(self, *exception):
        self.lab.run("systemctl stop vmm-work-host; systemctl reset-failed vmm-work-host")
        super().__exit__(*exception)
        self.lab.run(f"ip link delete {TAP}; rm -rf {DIRECTORY} {IMAGE} {MEMORY}")

    def serve(self):
        """The host's side, from now on."""
        self.lab.check(f"rm -f {DIRECTORY}/stop; systemctl stop vmm-work-host 2>/dev/null; "
                       f"systemd-run -q --unit=vmm-work-host python3 {DIRECTORY}/host.py {self.name} {DIRECTORY}")

    def start(self, timeout=120):
        super().start(timeout)
        self.serve()
        self.wait_for_progress(self.kinds())

    def kinds(self):
        places = {"disk": "disk", "memory": "memory", "net": "net", "vsock": "sock", "rng": "rng", "console": "console", "clock": "serial"}
        return [kind for kind in KINDS if places[kind] in self.devices]

    def reports(self, text=None):
        """Each line of the guest's as a dictionary; a line that is not what it has to be is a failure: the serial port lost something."""
        found = []
        for line in (text if text is not None else self.printed()).splitlines(keepends=True):
            if not line.startswith("WORK ") or not line.endswith("\n"):  # that is still being written, down to the last digit
                continue
            words = line.split()
            fields = dict(word.split("=", 1) for word in words[2:] if "=" in word)
            if "synced" not in fields:
                continue
            report = {"number": int(words[1]), "time": int(fields["time"]), "synced": int(fields["synced"])}
            for kind in KINDS:
                if kind in fields:
                    report[kind] = dict(zip(("done", "errors", "resets", "gap"), map(int, fields[kind].split(","))))
            found.append(report)
        return found

    def last(self):
        text = self.lab.run(f"tail -n 3 {self.log}")[1].replace("\r", "")
        reports = self.reports(text)
        return reports[-1] if reports else None

    def wait_for_progress(self, kinds=None, timeout=120, beyond=None):
        """Until each has done something since; returns the last report."""
        deadline = time.monotonic() + timeout
        first = beyond or self.last()
        while True:
            now = self.last()
            if now and first and now["number"] != first["number"] and all(now[kind]["done"] > first[kind]["done"] for kind in kinds or self.kinds()):
                return now
            if time.monotonic() > deadline:
                raise Failure(f"not all went on within {timeout} s: first {first}, then {now}; the guest printed\n{self.printed()[-1500:]}\n{self.journal(40)}\n"
                              f"{self.where_it_stands()}")
            first = first or now
            time.sleep(0.3)

    def console(self):
        """What the host's side knows of the console: answered, repeated, attached, wrong, longest (s), clock (guest's - host's, us)."""
        return json.loads(self.lab.check(f"cat {DIRECTORY}/console.json"))

    def complain(self, text):
        raise Failure(f"{text}\n{self.printed()[-3000:]}\n{self.journal(60)}")

    def finish(self, timeout=180):
        """Ends the work, and checks that nothing was wrong; returns the last report."""
        console = self.console() if "console" in self.devices else None
        self.lab.check(f"touch {DIRECTORY}/stop")
        self.expect("^WORK-END", timeout)
        text = self.printed()
        reports = self.reports(text)
        wrong = re.findall(r"^WORK-ERROR.*", text, re.MULTILINE)
        if wrong or not re.search(r"^WORK-END errors=0$", text, re.MULTILINE):
            self.complain(f"the workload saw {len(wrong)} errors: {wrong[:5]}")
        complaints = [line for line in re.findall(r"^DMESG (.*)", text, re.MULTILINE) if not NOISE.search(line)]
        if complaints:
            self.complain(f"the guest's kernel complains: {complaints[:5]}")
        numbers = [report["number"] for report in reports[:-1]]
        if numbers != list(range(1, len(numbers) + 1)):
            self.complain(f"the serial port lost something: reports {numbers}")
        if console and console["wrong"]:
            self.complain(f"the console answered wrongly: {console}")
        return reports[-1]


def prepare(lab, kernel):
    """Images, initramfs, tap, and the host's program."""
    with tempfile.TemporaryDirectory() as directory:
        os.mkdir(os.path.join(directory, "bin"))
        program = os.path.join(directory, "bin", "workload")
        subprocess.run([lab.compiler, "-O2", "-static", "-pthread", "-D_GNU_SOURCE", "-o", program, os.path.join(lablib.HERE, "workload.c")], check=True)
        with open(os.path.join(directory, "work-init"), "w", encoding="ascii") as f:
            f.write(INIT)
        os.chmod(f.name, 0o755)
        archive = subprocess.run(["cpio", "-o", "-H", "newc", "--quiet", "-R", "0:0"], cwd=directory, input=b"work-init\nbin/workload\n",
                                 stdout=subprocess.PIPE, check=True).stdout
    lab.check(f"mkdir -p {DIRECTORY} && cat >{DIRECTORY}/extra.cpio", input=archive)
    lab.write_file(f"{DIRECTORY}/host.py", HOST)
    lab.check(f"""
set -e
cd {DIRECTORY}
cat /srv/lab/{kernel}/initramfs.cpio extra.cpio >initramfs.cpio
mkdir -p /var/lib/vmm-lab
rm -f {IMAGE} {MEMORY} stop
truncate -s 64M {IMAGE} {MEMORY}
modprobe tun 2>/dev/null || true
ip link show {TAP} >/dev/null 2>&1 || ip tuntap add dev {TAP} mode tap
ip address replace 10.99.0.1/24 dev {TAP}
ip link set {TAP} up""")
