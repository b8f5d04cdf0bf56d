# SPDX-License-Identifier: LGPL-2.1-or-later
"""Devices that are other projects' programs, in one guest: a qcow2 image on a backing file, passt, virtiofsd twice."""

import contextlib
import json

from machine import Machine
from scenario import expect, scenario

WORK = "/var/lib/vmm-lab/foreign"
MIB = 1 << 20
# Of the host, as passt tells its guest: this is the host's, and the gateway leads to the host itself.
ADDRESS, GATEWAY = "198.51.100.7", "198.51.100.1"

MAKE_TREE = r"""
import os, random, sys
for i in range(int(sys.argv[1])):
    directory = sys.argv[2] + "/tree/%02d" % (i % 100)
    os.makedirs(directory, exist_ok=True)
    with open("%s/%04d" % (directory, i), "wb") as f:
        f.write(os.urandom(random.randrange(1, 2048)))
"""


@contextlib.contextmanager
def prepared(lab, files):
    """A backing file, an image on it, a tree, an interface with a way out, and a server at the host's own address."""
    lab.write_file("/run/make-tree.py", MAKE_TREE)
    lab.check(f"""
set -e
rm -rf {WORK}; mkdir -p {WORK}/share {WORK}/www; chmod 777 {WORK}/share; cd {WORK}
truncate -s 64M base.raw; echo below | dd of=base.raw conv=notrunc 2>/dev/null
qemu-img create -q -f qcow2 -b base.raw -F raw top.qcow2; chmod 600 base.raw top.qcow2
md5sum <base.raw >base.sum
python3 /run/make-tree.py {files} {WORK}/share
dd if=/dev/urandom of=www/data bs=1M count=2 2>/dev/null; echo ready >www/ready
ip link add foreign0 type dummy; ip address add {ADDRESS}/24 dev foreign0; ip link set foreign0 up; ip route add default via {GATEWAY} metric 1
systemd-run -q --unit=foreign-www python3 -m http.server --directory {WORK}/www --bind 127.0.0.1 80""", timeout=180)
    try:
        yield
    finally:
        lab.run("systemctl stop foreign-www; ip link delete foreign0", timeout=60)


def call(lab, machine, device, method, **parameters):
    command = f"python3 /run/lab/varlink-call.py /run/vmm/{machine.name}/{device}.varlink {method}"
    reply = json.loads(lab.check(command + (f" '{json.dumps(parameters)}'" if parameters else ""), timeout=60))
    expect("error" not in reply, f"{method}: {reply}")
    return reply["parameters"]


@scenario(releases=("trixie",), variants={"": {"files": 300}}, slow=True)
def programs_of_others_are_a_guests_devices(lab, files):
    with prepared(lab, files), Machine(
            lab, name="foreign", test=f"write,check,dhcp,fetch={GATEWAY},share,grow={96 << 11},poweroff", memory="384M", devices={
                "disk": {"type": "block", "format": "qcow2", "path": f"{WORK}/top.qcow2", "backing": [f"{WORK}/base.raw"]},
                "internet": {"type": "net", "backend": "passt", "mac": "52:54:00:00:00:77"},
                "share": {"type": "fs", "path": f"{WORK}/share", "tag": "share"},
                "sealed": {"type": "fs", "path": f"{WORK}/share", "tag": "sealed", "readOnly": True}}) as machine:
        machine.start()
        written = machine.expect(r"^WRITE sum=(\w+)")[1]
        expect(machine.expect(r"^CHECK sum=(\w+)")[1] == written, "the disk has forgotten")

        found = machine.expect(r"^DHCP address=(\S+) router=(\S+) mac=(\S+)")
        expect(found.groups() == (ADDRESS, GATEWAY, "52:54:00:00:00:77"), f"passt gave {found[0]}")
        served = lab.check(f"md5sum <{WORK}/www/data | cut -d' ' -f1").strip()
        expect(machine.expect(r"^FETCH \S+ sum=(\w+)")[1] == served, "the host serves something else")

        there = lab.check(f"cd {WORK}/share/tree && find . -type f | LC_ALL=C sort | xargs md5sum | md5sum | cut -d' ' -f1").strip()
        copied = machine.expect(r"^SHARE files=(\d+) sum=(\w+)", timeout=600)
        expect(copied.groups() == (str(files), there), f"there are {files} files, {there}; the guest has {copied[0]}")
        expect(machine.expect(r"^SHARE moved=.*")[0] == "SHARE moved=from-the-guest owner=0:0", machine.printed()[-400:])
        expect(lab.check(f"cat {WORK}/share/moved") == "from-the-guest\n", "what the guest wrote is not there")
        expect(machine.expect(r"^SEALED.*")[0] == "SEALED", "the guest wrote to what is sealed")

        machine.expect(r"^GROW-WAIT")
        call(lab, machine, "disk", "io.vmmd.Image.CreateSnapshot", name="before")
        lab.check(f"vmmctl resize {machine.name} disk 96M", timeout=60)
        expect(machine.expect(r"^GROW (.*)")[1] == f"{96 << 11} at-the-end", "the disk did not grow")
        machine.wait_until_ended()
        machine.wait_until_devices_ended()  # the image is its program's until then
    lab.check(f"""
set -e; cd {WORK}
[ "$(md5sum <base.raw)" = "$(cat base.sum)" ]
qemu-img check -q top.qcow2
qemu-img snapshot -l top.qcow2 | grep -q before
[ "$(qemu-img info --output=json top.qcow2 | python3 -c 'import json, sys; print(json.load(sys.stdin)["virtual-size"])')" = {96 * MIB} ]
[ "$(qemu-img convert -O raw top.qcow2 out; dd if=out bs=1M skip=1 count=8 2>/dev/null | md5sum | cut -d' ' -f1)" = {written} ]""", timeout=120)


@scenario(releases=("trixie",), quick=False, long=True)
def ten_thousand_files_are_copied_as_they_are(lab):
    with prepared(lab, 10000), Machine(lab, name="foreign", test="share,poweroff", memory="512M", devices={
            "share": {"type": "fs", "path": f"{WORK}/share", "tag": "share"},
            "sealed": {"type": "fs", "path": f"{WORK}/share", "tag": "sealed", "readOnly": True}}) as machine:
        machine.start()
        there = lab.check(f"cd {WORK}/share/tree && find . -type f | LC_ALL=C sort | xargs md5sum | md5sum | cut -d' ' -f1").strip()
        copied = machine.expect(r"^SHARE files=(\d+) sum=(\w+)", timeout=600)
        expect(copied.groups() == ("10000", there), f"the sum is {there}; the guest has {copied[0]}")
        machine.wait_until_ended()
