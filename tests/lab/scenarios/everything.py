# SPDX-License-Identifier: LGPL-2.1-or-later
"""One Debian 13 with every device there is at once, each a unit of its own, all at work: what a guest that people would use has, and a little more.

Commands reach the guest over vsock, by ssh, as its console is looked at itself."""

import contextlib
import json
import re
import shlex

from debian import LOGIN
from lablib import LabError
from machine import Machine, escape, make_tiny_kernel
from network import SERVER, bridge
from scenario import Failure, expect, report, scenario, wait_for

NAME = "everything"
WORK = "/var/lib/vmm-lab/everything"
SOCKET = f"/run/vmm/{NAME}/sock.vsock"
LAN_MAC, ROUTED_MAC, USER_MAC, STORE_MAC = (f"52:54:00:00:01:{n:02x}" for n in range(1, 5))
LAN_ADDRESS, STORE_ADDRESS = "10.77.0.20", "10.77.0.21"
BY_TAP, BY_PASST, BY_NAT = "10.78.0.1", "198.51.100.7", "198.51.100.8"
FILES = 1000  # ten times as many are in foreign.py
# What systemd-analyze says at most.
EXPOSURE = 0.2
# virtiofsd gives files to the one user that it has, and so may call chown(2). passt's packets are sockets of the host's, to wherever the guest
# likes, and it makes itself a sandbox of namespaces.
EXCEPTIONS = {"share": 0.3, "user": 1.9}

# What the guest has to be told of its networks: which of them is which it knows by their addresses.
NETWORKS = {
    "10-lan": f"[Match]\nMACAddress={LAN_MAC}\n[Network]\nDHCP=ipv4\n",
    "10-routed": f"[Match]\nMACAddress={ROUTED_MAC}\n[Network]\nAddress=10.78.0.2/30\n",
    "10-user": f"[Match]\nMACAddress={USER_MAC}\n[Network]\nDHCP=ipv4\n[DHCPv4]\nUseGateway=no\nUseDNS=no\n"
               f"[Route]\nDestination={BY_PASST}/32\nGateway=_dhcp4\n",
}

MAKE_TREE = f"""
import os, random
for i in range({FILES}):
    directory = "{WORK}/share/tree/%02d" % (i % 100)
    os.makedirs(directory, exist_ok=True)
    with open("%s/%04d" % (directory, i), "wb") as f:
        f.write(os.urandom(random.randrange(1, 2048)))
"""
SUMS = "find . -type f | LC_ALL=C sort | xargs sha256sum | sha256sum | cut -d' ' -f1"


def prepare_files(lab):
    """Disks, a file system for pmem, a tree to be shared, a package and its index, and a key for ssh."""
    lab.write_file("/run/make-tree.py", MAKE_TREE)
    lab.check(f"""
set -e
rm -rf {WORK} && mkdir -p {WORK}/share {WORK}/base {WORK}/memory {WORK}/repo {WORK}/package/DEBIAN {WORK}/package/srv && chmod 777 {WORK}/share
cd {WORK}
dd if=/dev/urandom of=base/below bs=1M count=8 2>/dev/null
mkfs.ext4 -q -d base base.img 64M
qemu-img create -q -f qcow2 -b {WORK}/base.img -F raw over.qcow2
dd if=/dev/urandom of=memory/in-memory bs=1M count=4 2>/dev/null
mkfs.ext4 -q -b 4096 -d memory memory.img 64M
python3 /run/make-tree.py
dd if=/dev/urandom of=package/srv/payload bs=1M count=6 2>/dev/null
printf 'Package: vmm-lab-payload\\nVersion: 1\\nArchitecture: all\\nMaintainer: lab <root@localhost>\\nDescription: of a test\\n' >package/DEBIAN/control
dpkg-deb -Znone -b package repo/payload.deb >/dev/null
{{ dpkg-deb -f repo/payload.deb; echo "Filename: ./payload.deb"; echo "Size: $(stat -c %s repo/payload.deb)"
   echo "SHA256: $(sha256sum repo/payload.deb | cut -d' ' -f1)"; }} >repo/Packages
ssh-keygen -q -t ed25519 -N '' -f key""", timeout=300)


def definition(lab):
    return {
        "memory": "1G", "vcpus": 2, "kernel": "/srv/lab/guest13/vmlinuz", "initrd": "/srv/lab/guest13/initrd.img", "commandLine": "quiet rw",
        "readyWhen": "guest",
        "credentials": {"ssh.authorized_keys.root": lab.check(f"cat {WORK}/key.pub").strip()},
        "devices": {
            "root": {"type": "block", "path": "/srv/lab/guest13/disk.img", "root": True},
            "data": {"type": "block", "format": "qcow2", "path": f"{WORK}/over.qcow2", "backing": [f"{WORK}/base.img"]},
            "lan": {"type": "net", "interface": "vm-all", "mac": LAN_MAC},
            "routed": {"type": "net", "interface": "rt-all", "mac": ROUTED_MAC},
            "user": {"type": "net", "backend": "passt", "mac": USER_MAC},
            "sock": {"type": "vsock"},
            "share": {"type": "fs", "path": f"{WORK}/share", "tag": "share"},
            "rng": {"type": "rng"},
            "balloon": {"type": "balloon"},
            "memory": {"type": "pmem", "path": f"{WORK}/memory.img"},
            "serial": {"type": "serial"},
            "console": {"type": "console"},
            "second": {"type": "console"},
        },
    }


@contextlib.contextmanager
def networks(lab):
    """A bridge and what is outside by NAT; a tap with a route of its own; and a way out that only the host knows, for passt."""
    def serve(unit, address, namespace):
        lab.write_file(f"/run/{unit}.py", SERVER.replace("192.0.2.1", address))
        where = f"-p NetworkNamespacePath=/run/netns/{namespace}" if namespace else ""
        lab.check(f"systemd-run -q --unit={unit} {where} -p StandardOutput=file:/run/{unit}.log python3 /run/{unit}.py")
    with bridge(lab, "vm-all", "vm-store", leases=((LAN_MAC, LAN_ADDRESS), (STORE_MAC, STORE_ADDRESS))):
        try:
            lab.check(f"""
ip tuntap add dev rt-all mode tap && ip address add {BY_TAP}/30 dev rt-all && ip link set rt-all up
ip route add default via 192.0.2.1
ip -n outside link set lo up
for address in {BY_PASST} {BY_NAT}; do ip -n outside address add $address/32 dev lo; done""")
            serve("by-tap", BY_TAP, None)
            serve("by-passt", BY_PASST, "outside")
            serve("by-nat", BY_NAT, "outside")
            yield
        finally:
            lab.run("systemctl stop by-tap by-passt by-nat; ip link delete rt-all; ip route delete default; rm -f /run/by-*.log")


@contextlib.contextmanager
def store(lab):
    """The other guest: what is in the directory, it serves to those on the bridge."""
    devices = {"lan": {"type": "net", "interface": "vm-store", "mac": STORE_MAC},
               "repo": {"type": "fs", "path": f"{WORK}/repo", "tag": "repo", "readOnly": True}}
    with Machine(lab, name="store", kernel="debian13", test="dhcp,shell", devices=devices) as machine:
        lab.check(f"systemctl start --no-block {machine.unit}")
        yield machine


def serve_packages(lab, machine):
    machine.expect(f"^DHCP address={STORE_ADDRESS} ", timeout=240)
    with lab.terminal(f"vmmctl console {machine.name} serial") as terminal:
        terminal.send("mkdir -p /www; mount -t virtiofs repo /www && httpd -p 80 -h /www; echo \"ended=$?\"\r")
        _, match = terminal.expect(r"ended=(\d+)", 60)
        expect(match[1] == "0", "the other guest serves nothing")


class Guest:
    """Its shell, over vsock. One connection for all commands: each key exchange takes seconds where all is emulated."""

    OPTIONS = (f"-F /usr/share/doc/vmmd/examples/ssh_config -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o ControlMaster=auto -o ControlPersist=yes "
               f"-o ControlPath={WORK}/ssh -o ConnectTimeout=60 -i {WORK}/key")

    def __init__(self, lab):
        self.lab = lab

    def run(self, command, timeout=120):
        status, output = self.lab.run(f"ssh {self.OPTIONS} vsock-mux{SOCKET} {shlex.quote(command)} </dev/null", timeout)
        if status != 0:
            raise Failure(f"`{command}` in the guest ended with {status}: {output.strip()[-800:]}")
        return output.strip()

    def close(self):
        self.lab.run(f"ssh {self.OPTIONS} -O exit vsock-mux{SOCKET}")


def same(what, guest, host):
    expect(re.fullmatch(r"[0-9a-f]{32,64}", host) and guest == host, f"{what}: {host!r} on the host, {guest!r} in the guest")


def look_at_units(lab, devices):
    units = [f"vmm@{NAME}.service"] + [f"vmm-device@{NAME}-{escape(device)}.service" for device in devices]
    states = lab.check("systemctl show -P ActiveState " + " ".join(f"'{unit}'" for unit in units)).split()
    expect(states == ["active"] * len(units), f"the units are {dict(zip(units, states))}")
    pids = lab.check("systemctl show -P MainPID " + " ".join(f"'{unit}'" for unit in units)).split()
    expect(len(set(pids)) == len(units) and "0" not in pids, f"their processes are {dict(zip(units, pids))}")
    text = lab.check("for unit in " + " ".join(f"'{unit}'" for unit in units) + "; do systemd-analyze security --no-pager \"$unit\" | tail -n 1; done",
                     timeout=300)
    scores = [float(score) for score in re.findall(r": ([0-9]+\.[0-9]+) ", text)]
    expect(len(scores) == len(units), f"systemd-analyze says:\n{text}")
    report("# exposures: " + ", ".join(f"{unit.split('@')[1].removesuffix('.service')} {score}" for unit, score in zip(units, scores)))
    for unit, score in zip(units, scores):
        device = unit.removeprefix(f"vmm-device@{NAME}-").removesuffix(".service")
        expect(score <= EXCEPTIONS.get(device, EXPOSURE), f"the exposure of {unit} is {score}")


def look_at_readiness(lab):
    """`systemctl start` returned because the guest said so."""
    text = lab.check(f"systemctl status --no-pager -n 0 vmm@{NAME}.service")
    expect("Guest is ready" in text, f"systemctl status:\n{text}")


def look_at_disks(lab, guest):
    expect(guest.run("findmnt -no SOURCE,FSTYPE /").split() == ["/dev/vda", "ext4"], "the root is not on the first disk")
    sums = guest.run("mkdir -p /tmp/data && mount /dev/vdb /tmp/data && sha256sum </tmp/data/below | cut -d' ' -f1 && "
                     "head -c 5M /dev/urandom >/tmp/data/above && sha256sum </tmp/data/above | cut -d' ' -f1 && umount /tmp/data").split()
    same("the backing file's", sums[0], lab.check(f"sha256sum <{WORK}/base/below").split()[0])
    return sums[1]


def look_at_image(lab, above):
    """What the guest wrote is in the image above, and nothing of it in the one below."""
    lab.check(f"cd {WORK} && qemu-img check -q over.qcow2 && qemu-img convert -O raw over.qcow2 flat.img", timeout=240)
    same("what was written", above, lab.check(f"debugfs -R 'cat /above' {WORK}/flat.img 2>/dev/null | sha256sum").split()[0])
    expect("above" not in lab.check(f"debugfs -R 'ls /' {WORK}/base.img 2>/dev/null"), "the backing file was written to")


def look_at_shares(lab, guest):
    there = guest.run(f"mkdir -p /tmp/share && mount -t virtiofs share /tmp/share && cp -r /tmp/share/tree /dev/shm/tree && cd /dev/shm/tree && {SUMS}",
                      timeout=1200)
    same(f"{FILES} files", there, lab.check(f"cd {WORK}/share/tree && {SUMS}", timeout=120).strip())
    # And the other way round.
    there = guest.run(f"cp -r /dev/shm/tree/0[0-4] /tmp/share/ && rm -rf /dev/shm/tree && cd /tmp/share && find 0? -type f | xargs cat | sha256sum | cut -d' ' -f1",
                      timeout=600)
    same("files that the guest made", there, lab.check(f"cd {WORK}/share && find 0? -type f | xargs cat | sha256sum").split()[0])
    guest.run("umount /tmp/share")


def look_at_memory(lab, guest):
    there = guest.run("mkdir -p /tmp/memory && mount -o dax /dev/pmem0 /tmp/memory && sha256sum </tmp/memory/in-memory | cut -d' ' -f1 && "
                      "findmnt -no OPTIONS /tmp/memory && echo by-guest >/tmp/memory/mark && sync && umount /tmp/memory").split()
    same("the file in memory", there[0], lab.check(f"sha256sum <{WORK}/memory/in-memory").split()[0])
    expect("dax" in there[1], f"it is mounted with {there[1]}")
    expect("by-guest" in lab.check(f"debugfs -R 'cat /mark' {WORK}/memory.img 2>/dev/null"), "the host's file has not what the guest wrote")


def look_at_networks(lab, guest):
    for name, text in NETWORKS.items():
        guest.run(f"printf %b {shlex.quote(text.replace(chr(10), chr(92) + 'n'))} >/etc/systemd/network/{name}.network")
    guest.run("rm -f /etc/systemd/network/80-dhcp.network && systemctl restart systemd-networkd && "
              f"for i in $(seq 240); do ip route get {BY_PASST} | grep -q ' via 192' && ip -br address | grep -q {LAN_ADDRESS} && exit; sleep 0.5; done; "
              "ip address; ip route; exit 1", timeout=300)
    for unit, address in (("by-tap", BY_TAP), ("by-passt", BY_PASST), ("by-nat", BY_NAT)):
        there = guest.run(f"/usr/lib/apt/apt-helper download-file http://{address}/data /dev/shm/{unit} >/dev/null 2>&1 && md5sum </dev/shm/{unit} | cut -d' ' -f1 && "
                          f"rm /dev/shm/{unit}", timeout=300)
        log = lab.check(f"cat /run/{unit}.log")
        same(f"what came from {address}", there, re.search(r"^sum=(\w+)", log, re.M)[1])
        peer = "10.78.0.2" if unit == "by-tap" else "192.0.2.2"
        expect(f"peer={peer}" in log, f"{address} was asked by somebody else:\n{log}")


def install_a_package(lab, guest):
    """From the other guest, over the bridge."""
    guest.run(f"rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/* && echo 'deb [trusted=yes] http://{STORE_ADDRESS}/ ./' >/etc/apt/sources.list && "
              "apt-get -qq update && apt-get -qq -y install vmm-lab-payload", timeout=400)
    same("what was installed", guest.run("sha256sum </srv/payload | cut -d' ' -f1"), lab.check(f"sha256sum <{WORK}/package/srv/payload").split()[0])


def look_at_the_rest(lab, guest):
    text = guest.run("cat /sys/class/misc/hw_random/rng_current; head -c 32 /dev/hwrng | wc -c; grep -c . /proc/consoles; echo from-the-guest >/dev/hvc1")
    expect(text.split()[0].startswith("virtio_rng") and text.split()[1] == "32", f"the generator of entropy is {text}")
    with lab.terminal(f"vmmctl console {NAME} second") as terminal:
        terminal.expect("from-the-guest", 60)
    with lab.terminal(f"vmmctl console {NAME} console") as terminal:
        terminal.send("\r")
        terminal.expect("demo login: ", LOGIN)
    before = int(guest.run("awk '/MemAvailable/{print $2}' /proc/meminfo")) >> 10
    lab.check(f"vmmctl balloon {NAME} 25% --wait --timeout=3min </dev/null", timeout=240)
    after = int(guest.run("awk '/MemAvailable/{print $2}' /proc/meminfo")) >> 10
    expect(200 <= before - after <= 300, f"the guest had {before} MiB available, and has {after} with a quarter of 1 GiB in its balloon")
    lab.check(f"vmmctl balloon {NAME} 0 --wait --timeout=3min </dev/null", timeout=240)


@contextlib.contextmanager
def everything(lab, **settings):
    """The machine, which is started by whoever wants it; yields its devices' names."""
    prepare_files(lab)
    try:
        with networks(lab):
            wanted = {**definition(lab), **settings}
            lab.write_file(f"/etc/vmm/{NAME}.json", json.dumps({key: value for key, value in wanted.items() if value is not None}, indent=8))
            # Debian takes its time until it is ready, where all is emulated.
            lab.write_file(f"/run/systemd/system/vmm@{NAME}.service.d/timeout.conf", "[Service]\nTimeoutStartSec=15min\n")
            lab.check("systemctl daemon-reload")
            yield list(wanted["devices"])
        killed = lab.run("journalctl -k -q --no-pager | grep 'type=1326' | tail -n 3")[1]
        expect(not killed.strip(), f"a seccomp policy lacks something: {killed}")
    except (LabError, Failure) as error:
        raise Failure(f"{error}\n" + lab.run(f"journalctl -q --no-pager -o short-monotonic -n 40 -u vmm@{NAME} -u 'vmm-device@{NAME}*'")[1]) from None
    finally:
        lab.run(f"vmmctl stop --force {NAME}; rm -rf /etc/vmm/{NAME}.json {WORK} /run/systemd/system/vmm@{NAME}.service.d; systemctl daemon-reload; systemctl --all reset-failed 'vmm*'", 120)


@scenario(releases=("trixie",), host="any")
def every_device_is_a_unit_in_a_sandbox(lab):
    kernel = make_tiny_kernel(lab)
    with everything(lab, kernel=kernel, initrd=None, commandLine=None, readyWhen=None, stopTimeout="1s") as devices:
        lab.check(f"systemctl start vmm@{NAME}.service", timeout=150)
        look_at_units(lab, devices)


@scenario(releases=("trixie",), memory=4000, quick=False, long=True)
def every_device_at_once(lab):
    with everything(lab) as devices, store(lab) as other:
        lab.check(f"systemctl start vmm@{NAME}.service", timeout=900)
        guest = Guest(lab)
        look_at_readiness(lab)
        look_at_units(lab, devices)
        above = look_at_disks(lab, guest)
        look_at_memory(lab, guest)
        look_at_networks(lab, guest)
        serve_packages(lab, other)
        install_a_package(lab, guest)
        look_at_the_rest(lab, guest)
        look_at_shares(lab, guest)
        guest.close()
        lab.check(f"systemctl stop vmm@{NAME}.service", timeout=180)
        result = lab.check(f"systemctl show vmm@{NAME}.service -P ActiveState -P Result").split()
        expect(sorted(result) == ["inactive", "success"], f"it ended as {result}")
        # The image is its program's until then.
        unit = f"vmm-device@{NAME}-data.service"
        wait_for(lab, f"{unit} has ended", f"state=$(systemctl show -P ActiveState {unit}); echo $state; [ $state = inactive ] || [ $state = failed ]")
        look_at_image(lab, above)
