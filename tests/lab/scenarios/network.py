# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guests on a bridge made by systemd-networkd from the example files: addresses by DHCP, each other, the way out by NAT; and helpers that die."""

import contextlib
import json
import re

from machine import Machine
from scenario import expect, scenario, wait_for, wait_until

EXAMPLES = "/usr/share/doc/vmmd/examples/network"
OUTSIDE = "192.0.2.1"

# A namespace of the host's that knows nothing of the guests: whoever comes from there to here must have been translated.
SERVER = r"""
import hashlib, os, socket
data = os.urandom(8 << 20)
listener = socket.create_server(("192.0.2.1", 80))
print("sum=" + hashlib.md5(data).hexdigest(), flush=True)
while True:
    connection, peer = listener.accept()
    with connection:
        if b"/data" not in connection.recv(4096):
            connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n")
            continue
        print("peer=" + peer[0], flush=True)
        connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
"""


@contextlib.contextmanager
def bridge(lab, *taps, leases=(), mtu=1500):
    """`leases` are addresses by Ethernet address, so that guests know each other's before they are there."""
    lab.write_file("/run/outside.py", SERVER)
    static = "".join(f"[DHCPServerStaticLease]\nMACAddress={mac}\nAddress={address}\n" for mac, address in leases)
    lab.check(f"""
set -e
mkdir -p /etc/systemd/network
cp {EXAMPLES}/70-* {EXAMPLES}/72-* /etc/systemd/network/
for tap in {' '.join(taps)}; do
        sed "s/vm-debian/$tap/; s/^#MultiQueue/MultiQueue/" {EXAMPLES}/71-vmm-debian.netdev \\
                >/etc/systemd/network/71-$tap.netdev
done
printf '{static}' >>/etc/systemd/network/70-vmm-bridge.network
sed -i '/^\\[Link\\]/aMTUBytes={mtu}' /etc/systemd/network/72-vmm-taps.network
ip netns add outside
ip link add out0 type veth peer name in0 netns outside
ip address add 192.0.2.2/24 dev out0
ip link set out0 up
ip -n outside address add {OUTSIDE}/24 dev in0
ip -n outside link set in0 up
systemd-run -q --unit=outside -p NetworkNamespacePath=/run/netns/outside -p StandardOutput=file:/run/outside.log python3 /run/outside.py
systemctl restart systemd-networkd""", timeout=180)
    try:
        # networkd gives up on what the kernel of a host that crawls does not answer in time.
        wait_for(lab, "the bridge has its address",
                 "ip -4 address show vmm0 | grep 10.77.0.1/ || { networkctl | grep 'vmm0.*failed' && networkctl reconfigure vmm0; false; }", 120,
                 lambda: what_the_network_is(lab))
        wait_for(lab, "the taps are its ports", " && ".join(f"ip link show {tap} | grep 'mtu {mtu} .*vmm0'" for tap in taps), 120,
                 lambda: what_the_network_is(lab))
        yield
    finally:
        lab.run(f"""
systemctl stop systemd-networkd.socket systemd-networkd outside
rm -f /etc/systemd/network/7* /run/outside.log
for link in {' '.join(taps)} vmm0 out0; do ip link delete $link; done
ip netns delete outside""", timeout=120)


def what_the_network_is(lab):
    return lab.run("ip address; journalctl --sync; journalctl -q -n 30 -u systemd-networkd")[1]


def lan(tap, **options):
    return {"lan": {"type": "net", "interface": tap, **options}}


def device(lab, machine, name):
    """What a helper says of itself."""
    reply = json.loads(lab.check(f"python3 /run/lab/varlink-call.py /run/vmm/{machine.name}/{name}.varlink io.vmmd.Device.Describe", timeout=60))
    expect("error" not in reply, f"Describe: {reply}")
    return reply["parameters"]


def address_of(machine):
    found = machine.expect(r"^DHCP (address=(\S+) router=(\S+) mac=(\S+)|failed)", timeout=240)
    expect(found[1] != "failed", "the guest got no address")
    return found[2], found[4]


def outside_log(lab, key):
    return re.findall(rf"^{key}=(\S+)$", lab.check("cat /run/outside.log"), re.MULTILINE)


def fetched(machine, address):
    found = machine.expect(rf"^FETCH {address} sum=(\w+) seconds=(\d+)", timeout=400)
    return found[1], int(found[2])


def expect_link(lab, machine, tap):
    """The guest's cable follows the host's interface."""
    machine.expect("^CARRIER 1", timeout=240)
    lab.check(f"ip link set {tap} down")
    machine.expect("^CARRIER 0")
    lab.check(f"ip link set {tap} up")
    machine.expect("^CARRIER 1", count=2)


@scenario(slow=True)
def guests_reach_each_other_and_the_world(lab):
    """Both boot at once. One has two processors and as many pairs of queues, the other may send half a MiB a second."""
    mac_a, mac_b, at_a, at_b, mtu = "52:54:00:00:00:0a", "52:54:00:00:00:0b", "10.77.0.10", "10.77.0.11", 9000
    with bridge(lab, "vm-a", "vm-b", leases=((mac_a, at_a), (mac_b, at_b)), mtu=mtu), \
         Machine(lab, name="neta", test=f"dhcp,net,serve,fetch={at_b},carrier", vcpus=2,
                 devices=lan("vm-a", mac=mac_a, mtu=mtu, queuePairs=2)) as a, \
         Machine(lab, name="netb", test=f"dhcp,net,serve=4,fetch={at_a},fetch={OUTSIDE},idle",
                 devices=lan("vm-b", mac=mac_b, mtu=mtu, transmitLimit="512K")) as b:
        lab.check(f"systemctl start {a.unit} {b.unit}", timeout=240)
        for machine, mac, address, queues in (a, mac_a, at_a, 2), (b, mac_b, at_b, 1):
            expect(address_of(machine) == (address, mac), f"{machine.name} has another address than {address}, {mac}")
            found = machine.expect(r"^NET mtu=(\d+) queues=(\d+) carrier=1", timeout=240)
            expect([int(found[1]), int(found[2])] == [mtu, queues], f"{machine.name}: {found[0]}")
        served = {machine: machine.expect(r"^SERVE sum=(\w+)", timeout=240)[1] for machine in (a, b)}
        active = device(lab, a, "lan")["details"]["queuePairsActive"]
        expect(active == 2, f"{active} pairs of queues are used")

        expect(fetched(b, at_a)[0] == served[a], "what came over the bridge is not what was sent")
        expect([fetched(b, OUTSIDE)[0]] == outside_log(lab, "sum"), "what came from outside is not what was sent")
        expect(set(outside_log(lab, "peer")) == {"192.0.2.2"}, f"outside saw {outside_log(lab, 'peer')}")
        total, seconds = fetched(a, at_b)
        expect(total == served[b], "what came from the limited machine is not what was sent")
        expect(seconds >= 7, f"4 MiB came in {seconds} s from a machine that may send 512 KiB a second")
        expect_link(lab, a, "vm-a")


@scenario()
def a_macvtap_may_come_after_its_machine(lab):
    lab.check("modprobe -r macvtap; ip link add mv0 type veth peer name mv1 && ip link set mv0 up && ip link set mv1 up")
    try:
        with Machine(lab, name="mact", kernel="tiny", devices=lan("vmtap0")) as machine:
            unit = machine.device_unit("lan")
            lab.check(f"systemctl start --no-block {machine.unit}")
            machine.wait_for_state(unit, lambda state: state["ActiveState"] == "activating")
            lab.check("ip link add link mv0 name vmtap0 address 52:54:00:00:00:0c type macvtap mode bridge && ip link set vmtap0 up")
            machine.wait_for_state(machine.unit, lambda state: state["ActiveState"] == "active")
            details = wait_until(lab, "the link is up", lambda: device(lab, machine, "lan")["details"], lambda details: details["link"])
            expect(details["kind"] == "macvtap" and details["mac"] == "52:54:00:00:00:0c", f"{details}")
            lab.check("ip link set vmtap0 down")
            machine.wait_for("the helper says that it is down", f"journalctl -q -u '{unit}' --since={machine.since} | grep \"'vmtap0' is down\"")
            lab.check("ip link delete vmtap0")
            machine.wait_for("the helper says that it is gone", f"journalctl -q -u '{unit}' --since={machine.since} | grep \"'vmtap0' has been deleted\"")
            expect(machine.state()["ActiveState"] == "active", "the machine suffered")
    finally:
        lab.run("ip link delete mv0")


@scenario(slow=True)
def a_killed_network_helper_comes_back_with_its_interface(lab):
    with bridge(lab, "vm-a", "vm-b"):
        with Machine(lab, name="neta", test="dhcp,serve,idle", devices=lan("vm-a")) as a:
            a.start()
            address, _ = address_of(a)
            served = a.expect(r"^SERVE sum=(\w+)", timeout=240)[1]
            with Machine(lab, name="netb", test=f"dhcp,fetch={address},idle", devices=lan("vm-b")) as b:
                b.start()
                address_of(b)
                b.expect("^FETCH-BEGIN")
                before = lab.check("cat /sys/class/net/vm-b/carrier_changes").strip()
                for _ in range(3):
                    unit, pid = b.device_unit("lan"), b.state(b.device_unit("lan"))["MainPID"]
                    lab.check(f"systemctl kill -s KILL {unit}")
                    b.wait_for_another(unit, pid, 120)
                fetched = b.expect(rf"^FETCH {address} sum=(\w+)", timeout=400)[1]
                expect(fetched == served, f"{served} was sent, {fetched} arrived")
                after = lab.check("cat /sys/class/net/vm-b/carrier_changes").strip()
                expect(before == after, f"the carrier changed {before} times before the kills, {after} after them")
                expect(b.state(b.device_unit("lan"))["ActiveState"] == "active", "the helper is not there any more")


@scenario(releases=("bookworm", "trixie"), host="any")
def says_what_to_do_about_an_interface_that_is_missing_or_in_use(lab):
    with Machine(lab, name="netc", kernel="tiny", stopTimeout="1s", devices=lan("vm-none")) as machine:
        status, _ = lab.run(f"systemctl start {machine.unit}", timeout=150)
        expect(status != 0, "a machine started without its interface")
        said = machine.said(machine.device_unit("lan"))
        expect("ip tuntap add dev vm-none mode tap" in said, f"the journal does not help:\n{said}")
    lab.check("ip tuntap add dev vm-one mode tap && ip link set vm-one up")
    try:
        with Machine(lab, name="netc", kernel="tiny", stopTimeout="1s", devices=lan("vm-one")) as machine:
            machine.start()
            with Machine(lab, name="netd", kernel="tiny", stopTimeout="1s", devices=lan("vm-one")) as second:
                status, _ = lab.run(f"systemctl start {second.unit}", timeout=150)
                expect(status != 0, "two machines have one interface")
                said = second.said(second.device_unit("lan"))
                expect("'vm-one' is in use" in said, f"the journal does not say so:\n{said}")
            expect(machine.state()["ActiveState"] == "active", "the first machine suffered")
    finally:
        lab.run("ip link delete vm-one")
