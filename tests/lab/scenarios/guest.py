# SPDX-License-Identifier: LGPL-2.1-or-later
"""The whole Debian guest of the demo: its root on our disk, a login over our console, a driver for each device, and its power button."""

import contextlib
import json
import subprocess

from debian import command, login
from lablib import LabError
from scenario import Failure, expect, journal, scenario


def define(lab, name="demo", memory="512M", vcpus=2, devices=None, **settings):
    definition = {
        "memory": memory,
        "vcpus": vcpus,
        "kernel": "/srv/lab/guest/vmlinuz",
        "initrd": "/srv/lab/guest/initrd.img",
        "commandLine": "quiet rw",
        "credentials": {"greeting": "hello from the host"},
        "devices": {
            "root": {"type": "block", "path": "/srv/lab/guest/disk.img", "root": True},
            "rng": {"type": "rng"},
            "serial": {"type": "serial"},
            "console": {"type": "console"},
            **(devices or {}),
        },
        **settings,
    }
    if lab.arch == "aarch64":
        definition["devices"]["keys"] = {"type": "input", "powerKey": True}  # as machine.py says
    lab.write_file(f"/etc/vmm/{name}.json", json.dumps(definition, indent=8))
    lab.check("systemctl daemon-reload")
    return definition


@scenario()
def debian_logs_in_over_the_console_and_stops_by_its_power_button(lab):
    define(lab)
    with failures_explained(lab):
        lab.check("systemctl start vmm@demo.service", timeout=120)
        with lab.terminal("vmmctl console demo") as terminal:
            login(terminal)
            root = command(terminal, "findmnt -no SOURCE,FSTYPE /")
            expect(root.split() == ["/dev/vda", "ext4"], f"the root is {root!r}")
            expect(command(terminal, "nproc") == "2", "the guest has not 2 processors")
            credential = command(terminal, "systemd-creds --system cat greeting")
            expect(credential == "hello from the host", f"the credential came as {credential!r}")
            command(terminal, "echo written >/root/mark && sync", 60)
        stop(lab)
        lab.check("debugfs -R 'stat /root/mark' /srv/lab/guest/disk.img 2>&1 | grep -q 'Type: regular'")


@contextlib.contextmanager
def failures_explained(lab):
    """What the machine said where it did not do as it should; and nothing of it stays."""
    try:
        yield
    except LabError as error:
        raise Failure(f"{error}\n" + lab.run("journalctl -q --no-pager -o short-monotonic -n 40 -u 'vmm*'")[1]) from None
    finally:
        lab.run("vmmctl stop --force demo; rm -f /etc/vmm/demo.json; systemctl daemon-reload; systemctl --all reset-failed 'vmm*'", 120)


def stop(lab):
    """By the power button, in order."""
    status, output = lab.run("systemctl stop vmm@demo.service", timeout=150)
    expect(status == 0, f"systemctl stop: {output}")
    state = lab.check("systemctl show vmm@demo.service -p ActiveState -p Result -p ExecMainStatus")
    expect("Result=success" in state and "ActiveState=inactive" in state and "ExecMainStatus=0" in state, state)
    said = journal(lab, "-o cat -u vmm@demo.service -n 100")
    expect("The guest powered off." in said, f"stopped by force:\n{said}")


TAP, HOST, GUEST, PORT = "vmlab0", "10.77.0.1", "10.77.0.2", 7777
DRIVERS = {"virtio_blk", "virtio_rng", "virtio_console", "virtio_net", "virtio_balloon", "vmw_vsock_virtio_transport"}
# What a guest finds of the host, one line a connection: by its network, and by its socket.
GREETER = f"""
import grp, os, socket, threading
def serve(listener, text):
    while True:
        with listener.accept()[0] as connection:
            connection.sendall(text)
path = "/run/vmm/demo/vsock.vsock_{PORT}"
sockets = socket.socket(socket.AF_UNIX)
sockets.bind(path)
os.chmod(path, 0o660)
os.chown(path, -1, grp.getgrnam("vmm-vsock").gr_gid)
sockets.listen()
threading.Thread(target=serve, args=(sockets, b"hello by vsock\\n")).start()
serve(socket.create_server(("{HOST}", {PORT})), b"hello by network\\n")
"""
VSOCK_CLIENT = f"import socket; s = socket.socket(socket.AF_VSOCK); s.connect((2, {PORT})); print(s.makefile().read())"
OVERLAY, NODE = "/run/vmm-lab-overlay.dtbo", "vmm-lab-node"


@contextlib.contextmanager
def network(lab):
    lab.check(f"ip tuntap add {TAP} mode tap vnet_hdr && ip addr add {HOST}/24 dev {TAP} && ip link set {TAP} up")
    lab.write_file("/run/vmm-lab-greeter.py", GREETER)
    try:
        yield
    finally:
        lab.run(f"systemctl stop lab-greeter; ip link del {TAP}; rm -f /run/vmm-lab-greeter.py {OVERLAY}")


def add_overlay(lab):
    """A node of our own for the guest's device tree."""
    source = f'/dts-v1/; /plugin/; &{{/}} {{ {NODE} {{ compatible = "vmmd,lab"; words = "from the overlay"; }}; }};'
    compiled = subprocess.run(["dtc", "-@", "-q", "-I", "dts", "-O", "dtb"], input=source.encode(), stdout=subprocess.PIPE, check=True)
    lab.check(f"cat >{OVERLAY}", input=compiled.stdout)
    return {"deviceTreeOverlay": OVERLAY}


OTHERS = "of a PC the scenarios of each device show this, with guests that have the tools for it"


@scenario(variants={"with 1 vcpu and 256M": {"vcpus": 1, "memory": "256M"}}, only_arm64=OTHERS, slow=True)
def debian_has_a_driver_for_each_device(lab, **arguments):
    use_each_device(lab, **arguments)


@scenario(variants={"with 4 vcpus and 5G": {"vcpus": 4, "memory": "5G"}}, memory=8000, only_arm64=OTHERS, slow=True)
def a_larger_debian_has_a_driver_for_each_device(lab, **arguments):
    use_each_device(lab, **arguments)


def use_each_device(lab, vcpus, memory):
    with network(lab), failures_explained(lab):
        define(lab, vcpus=vcpus, memory=memory, **add_overlay(lab), devices={
            "net": {"type": "net", "interface": TAP}, "vsock": {"type": "vsock"}, "balloon": {"type": "balloon"}})
        lab.check("systemctl start vmm@demo.service && systemd-run -q --collect --unit lab-greeter python3 /run/vmm-lab-greeter.py", timeout=240)
        with lab.terminal("vmmctl console demo") as terminal:
            login(terminal)
            expect(command(terminal, "nproc") == str(vcpus), f"the guest has not {vcpus} processors")
            total = int(command(terminal, "awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo"))
            size = int(memory[:-1]) * (1024 if memory[-1] == "G" else 1)
            expect(size * 0.8 < total <= size, f"the guest has {total} MiB of {memory}")
            use_devices(lab, terminal)
            words = command(terminal, f"tr -d '\\0' </proc/device-tree/{NODE}/words")
            expect(words == "from the overlay", f"the guest's device tree has {words!r} of the overlay")
        stop(lab)


def use_devices(lab, terminal):
    expect(command(terminal, "findmnt -no SOURCE /") == "/dev/vda", "its root is not our disk")
    bound = command(terminal, "cd /sys/bus/virtio/drivers; for i in */virtio*; do echo ${i%/*}; done; cd")
    expect(DRIVERS <= set(bound.split()), f"without a driver: {DRIVERS - set(bound.split())}")
    expect(command(terminal, "head -c 64 /dev/hwrng | wc -c") == "64", "no entropy")
    command(terminal, f"cd /sys/bus/virtio/drivers/virtio_net/virtio*/net; ip link set * up; ip addr add {GUEST}/24 dev *; cd")
    expect(command(terminal, f"cat </dev/tcp/{HOST}/{PORT}") == "hello by network", "nothing by the network")
    expect(command(terminal, f"python3 -c '{VSOCK_CLIENT}'") == "hello by vsock", "nothing by the socket")
    before = int(command(terminal, "awk '/MemAvailable/ { print $2 }' /proc/meminfo"))
    lab.check("vmmctl balloon --wait --timeout=120 demo 32M", timeout=180)
    after = int(command(terminal, "awk '/MemAvailable/ { print $2 }' /proc/meminfo"))
    expect(before - after > 24 * 1024, f"a balloon of 32 MiB took {before - after} KiB")
