# SPDX-License-Identifier: LGPL-2.1-or-later
"""A Debian 13 guest with a vsock device and nothing else to reach it by: it says itself when it is ready, is logged into by ssh through the host's
systemd-ssh-proxy, and sends and receives by AF_VSOCK, also when the helper dies."""

import os
import re
import shlex
import subprocess
import tempfile
import time

import lablib
from lablib import LabError
from machine import Machine
from scenario import Failure, expect, report, scenario, wait_for

GUEST = "/srv/lab/guest13"
DEVICE = "sock"
KEY = "/run/vmm-lab-key"
# What a host's program is here: one that sends so many MiB, and one that says what the sum was of what it got.
HOST = r"""
import hashlib, os, shutil, socket, sys, threading
path, megabytes = sys.argv[1], int(sys.argv[2])
block = os.urandom(1 << 20)
total = hashlib.md5()
for _ in range(megabytes):
    total.update(block)
def down(connection):
    for _ in range(megabytes):
        connection.sendall(block)
def up(connection):
    digest = hashlib.md5()
    while data := connection.recv(1 << 18):
        digest.update(data)
    connection.sendall(digest.hexdigest().encode())
def serve(port, function):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{path}_{port}")
    os.chmod(f"{path}_{port}", 0o660)
    shutil.chown(f"{path}_{port}", group="vmm-vsock")
    listener.listen()
    while True:
        with listener.accept()[0] as connection:
            try:
                function(connection)
            except OSError as error:
                print(f"{port}: {error}", flush=True)
for port, function in (1001, down), (1002, up):
    threading.Thread(target=serve, args=(port, function)).start()
print("sum=" + total.hexdigest(), flush=True)
"""


def public_key(lab):
    lab.check(f"rm -f {KEY}*; ssh-keygen -q -t ed25519 -N '' -f {KEY}")
    return lab.check(f"cat {KEY}.pub").strip()


class Guest(Machine):
    def __init__(self, lab, **settings):
        super().__init__(
            lab, name="thirteen", kernel="guest13", initrd=f"{GUEST}/initrd.img", commandLine="quiet rw", memory="512M", vcpus=2,
            credentials={"ssh.authorized_keys.root": public_key(lab)},
            devices={DEVICE: {"type": "vsock"}, "rng": {"type": "rng"}, "root": {"type": "block", "path": f"{GUEST}/disk.img", "root": True}},
            **settings)
        self.socket = f"/run/vmm/{self.name}/{DEVICE}.vsock"

    def ssh_command(self, command):
        return (f"ssh -F /usr/share/doc/vmmd/examples/ssh_config -i {KEY} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o ConnectTimeout=120 "
                f"root@vsock-mux{self.socket} {shlex.quote(command)}")

    def ssh(self, command, timeout=240, input=b""):  # pylint: disable=redefined-builtin
        """What the command printed. What ssh itself has to say is not among it, and shown where it failed."""
        status, output = self.lab.run(f"{self.ssh_command(command)} 2>/run/vsock-ssh; r=$?; [ $r = 0 ] || cat /run/vsock-ssh; exit $r",
                                      timeout, input=input)
        if status != 0:
            raise Failure(f"ssh {command!r} ended with {status}: {output.strip()}\n{self.journal(50)}")
        return output.strip()


def install_pipe(guest):
    """Debian has no tool for such sockets."""
    with tempfile.TemporaryDirectory() as directory:
        program = os.path.join(directory, "vsock-pipe")
        subprocess.run([guest.lab.compiler, "-O2", "-static", "-o", program, os.path.join(lablib.HERE, "..", "interop", "vsock-pipe.c")], check=True)
        with open(program, "rb") as f:
            guest.ssh("cat >/root/vsock-pipe && chmod +x /root/vsock-pipe", input=f.read())


def transfer(guest, lab, megabytes, timeout):
    """Both ways, with equal sums; returns how long each took, in seconds."""
    lab.write_file("/run/vsock-host.py", HOST)
    lab.check(f"systemd-run -q --unit=vsock-host -p StandardOutput=file:/run/vsock-host.log python3 /run/vsock-host.py {guest.socket} {megabytes}")
    wait_for(lab, "the host's program serves", "grep -E 'sum=[0-9a-f]{32}$' /run/vsock-host.log", 180)
    expected = re.search(r"sum=(\w+)", lab.check("cat /run/vsock-host.log"))[1]
    start = time.monotonic()
    got = guest.ssh("/root/vsock-pipe connect 1001 </dev/null | md5sum | cut -d' ' -f1", timeout=timeout)
    down = time.monotonic() - start
    expect(got == expected, f"the host sent {expected}, the guest got {got}")

    # A process for each MiB would be most of the time.
    guest.ssh("head -c 33554432 /dev/urandom >/root/block")
    start = time.monotonic()
    answer = guest.ssh(f"all() {{ i=0; while [ $i -lt {megabytes // 32} ]; do cat /root/block; i=$((i + 1)); done; }}; "
                       "all | md5sum | cut -d' ' -f1; all | /root/vsock-pipe connect 1002", timeout=timeout).split()
    up = time.monotonic() - start
    expect(len(answer) == 2 and answer[0] == answer[1], f"the guest sent, and the host got: {answer}")
    return down, up


# Whatever comes is sent again, by a socket of messages; and the other way round, for a guest that does so.
MESSAGES = r"""
import os, shutil, socket, sys
path = sys.argv[1]
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
    listener.bind(path + "_1003")
    os.chmod(path + "_1003", 0o660)
    shutil.chown(path + "_1003", group="vmm-vsock")
    listener.listen()
    print("listening", flush=True)
    with listener.accept()[0] as connection:
        while data := connection.recv(1 << 20):
            connection.send(data)
os.unlink(path + "_1003")
input()
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
    connection.connect(path + "-seqpacket")
    connection.send(b"CONNECT 1004\n")
    answer = connection.recv(100)
    assert answer.startswith(b"OK ") and answer.endswith(b"\n"), answer
    sizes = 1, 100, 4052, 4053, 65537, 150000, 3
    messages = [bytes([i]) * size for i, size in enumerate(sizes)]
    for message in messages:
        connection.send(message)
    for message in messages:
        got = connection.recv(1 << 20)
        assert got == message, (len(got), len(message))
print("done", flush=True)
"""


def exchange_messages(guest, lab):
    """Those that a stock kernel makes of SOCK_SEQPACKET, both ways."""
    lab.write_file("/run/vsock-messages.py", MESSAGES)
    lab.check(f"mkfifo /run/vsock-go; {{ python3 /run/vsock-messages.py {guest.socket} <>/run/vsock-go >/run/vsock-messages 2>&1; "
              "echo ended=$? >>/run/vsock-messages; } &")
    wait_for(lab, "the host's program listens", "cat /run/vsock-messages; grep -q listening /run/vsock-messages")
    sizes = guest.ssh("/root/vsock-pipe ask 1003").split()
    expect(sizes == ["1", "100", "4052", "4053", "65536", "65537", "200000", "3"], f"the guest got messages of {sizes} bytes")
    guest.ssh("(/root/vsock-pipe echo 1004 2>/run/echo >/dev/null &) && for i in $(seq 100); do grep -q listening /run/echo && exit 0; sleep 0.1; done; exit 1")
    lab.check("echo >/run/vsock-go")
    wait_for(lab, "the host's program ends", "cat /run/vsock-messages; grep -q ended= /run/vsock-messages")
    output = lab.check("cat /run/vsock-messages")
    expect("done" in output and "ended=0" in output, f"the host's messages: {output}")


def check_access(guest, lab):
    """Who is nobody gets nowhere."""
    connect = f"import socket; socket.socket(socket.AF_UNIX).connect('{guest.socket}')"
    status, output = lab.run(f"setpriv --reuid 65534 --regid 65534 --clear-groups python3 -c \"{connect}\"")
    expect(status != 0 and "PermissionError" in output, f"nobody could connect: {output}")
    output = lab.check(f"systemd-analyze security --no-pager {guest.device_unit(DEVICE)} | tail -n 1")
    score = float(re.search(r": ([0-9.]+) ", output)[1])
    expect(score <= 0.1, f"the sandbox of the helper scores {score}")


def survive_the_helper(guest, lab):
    """The guest's connections end with their helper, and new ones come."""
    session = guest.ssh_command("echo in; cat >/dev/null; echo gone >/run/gone")
    lab.check(f"mkfifo /run/vsock-input; {{ {session} <>/run/vsock-input; echo ended=$?; }} >/run/vsock-session 2>&1 &")
    wait_for(lab, "the session is there", "cat /run/vsock-session; grep -q ^in /run/vsock-session", 180)
    lab.check(f"systemctl kill -s KILL {guest.device_unit(DEVICE)}")
    wait_for(lab, "the session ends", "cat /run/vsock-session; grep -q ended= /run/vsock-session")
    guest.ssh("for i in $(seq 100); do [ -e /run/gone ] && exit 0; sleep 0.2; done; exit 1")
    expect(guest.describe()["guestReady"], "the guest is not ready any more")


def run(lab, megabytes, timeout):
    with Guest(lab, readyWhen="guest") as guest:
        lab.check(f"mkdir -p /run/systemd/system/{guest.unit}.d && printf '[Service]\\nTimeoutStartSec=10min\\n' "
                  f">/run/systemd/system/{guest.unit}.d/patience.conf && systemctl daemon-reload")
        try:
            guest.start(timeout=600)
            status = lab.check(f"systemctl status --no-pager -n 0 {guest.unit}")
            expect(re.search(r'Status: "Guest is ready: \w', status), f"systemctl status says:\n{status}")
            description = guest.describe()
            expect(description["guestReady"] and description["guestStatus"], f"{description}")
            check_access(guest, lab)
            expect(guest.ssh("hostname; cat /sys/class/dmi/id/sys_vendor; ls /sys/class/net").split() == ["demo", "vmmd", "lo"],
                   "not our guest, or it has a network")
            survive_the_helper(guest, lab)
            install_pipe(guest)
            exchange_messages(guest, lab)
            took = transfer(guest, lab, megabytes, timeout)
            report(f"# {megabytes} MiB: to the guest in {took[0]:.0f} s, from it in {took[1]:.0f} s")
            expect(lab.run("journalctl -k -q | grep 1326")[1] == "", "a policy was broken")
            lab.run(f"systemctl stop {guest.unit}", timeout=240)
            expect(guest.state()["Result"] == "success", f"{guest.state()}")
        except LabError as error:
            raise Failure(f"{error}\n{guest.journal(60)}") from None
        finally:
            lab.run(f"systemctl stop vsock-host; systemctl reset-failed vsock-host; rm -rf /run/vsock-* /run/systemd/system/{guest.unit}.d {KEY}*")


@scenario(releases=("trixie",), slow=True)
def a_guest_says_that_it_is_ready_and_is_reached_by_ssh(lab):
    run(lab, 32, 900)


@scenario(releases=("trixie",), quick=False, long=True)
def a_GiB_goes_each_way(lab):  # pylint: disable=invalid-name
    """Where processors are emulated twice over, it takes most of an hour."""
    run(lab, 1024, 3000)
