# SPDX-License-Identifier: LGPL-2.1-or-later
"""The fault campaign: a guest whose devices are all at work and checked (workload.py), and helpers that are killed under it at random moments. The seed is
printed; VMM_CAMPAIGN_SEED= repeats one, and VMM_CAMPAIGN_ROUNDS= has it be another number of kills."""

import os
import random
import time

import lablib
from scenario import expect, report, scenario
from workload import IMAGE, Workload, check_records

# Which of the guest's works needs which helper.
WORKS = {"disk": "disk", "memory": "memory", "net": "net", "sock": "vsock", "rng": "rng", "console": "console", "serial": "clock"}
# Beside kills: how else a helper may end.
WAYS = ("stop", "seccomp", "oom")
# recovery.py shows it there.
TOO_SLOW = "a death takes ten seconds where 64-bit Arm is emulated, and a guest with all its works hours"


class Campaign:
    def __init__(self, lab, work, seed):
        self.lab = lab
        self.work = work
        self.random = random.Random(seed)
        self.gaps = {device: [] for device in WORKS}
        self.kills = 0

    def pid(self, device):
        return self.lab.check(f"systemctl show -P MainPID {self.work.device_unit(device)}").strip()

    def end(self, device, way):
        """The helper's end, by the kernel's or the service manager's hand; from its death on the guest waits."""
        unit, pid = self.work.device_unit(device), self.pid(device)
        if way == "kill":
            self.lab.check(f"kill -KILL {pid}")
        elif way == "stop":
            self.lab.check(f"kill -STOP {pid}")
        elif way == "seccomp":
            # As a policy's kill does to the thread that breaks it: the kernel's default action for SIGSYS is the same.
            self.lab.check(f"kill -SYS {pid}")
        elif way == "oom":
            # The kernel's own choice, in the unit's own group.
            self.lab.check(f"""
cgroup=/sys/fs/cgroup$(systemctl show -P ControlGroup {unit})
echo 1000 >/proc/{pid}/oom_score_adj
echo 64K >$cgroup/memory.max
for i in $(seq 100); do [ -d /proc/{pid} ] || break; sleep 0.1; done
[ -d $cgroup ] && echo max >$cgroup/memory.max
! [ -d /proc/{pid} ]""", timeout=120)
        self.work.wait_for_another(unit, pid)
        self.kills += 1

    def strike(self, device, way="kill"):
        """One helper ends, and the guest goes on; notes the longest time for which nothing was done on that device."""
        before = self.work.last()
        self.end(device, way)
        kind = WORKS.get(device)
        # Beyond what its successor found: what was done between these two lines may have been done before.
        after = self.work.wait_for_progress([kind] if kind else ["clock"], beyond=self.work.last())
        if kind:
            reports = [each for each in self.work.reports(self.lab.check(f"tail -n 60 {self.work.log}").replace("\r", ""))
                       if before["number"] < each["number"] <= after["number"]]
            self.gaps[device].append(max(each[kind]["gap"] for each in reports))

    def figures(self):
        for device, gaps in self.gaps.items():
            if gaps:
                gaps.sort()
                report(f"# {device}: {len(gaps)} deaths, longest time without a request served: p50 {gaps[len(gaps) // 2] / 1e6:.1f} s, "
                       f"p99 {gaps[min(len(gaps) - 1, len(gaps) * 99 // 100)] / 1e6:.1f} s")


def choose(victims, rounds, rng):
    """Whom to kill, in which order: each as often as any other, but for one time."""
    chosen = (victims * (rounds // len(victims) + 1))[:rounds]
    rng.shuffle(chosen)
    return chosen


def kill_dbus(lab):
    lab.check("""
set -e
pid=$(systemctl show -P MainPID dbus.service)
kill -KILL $pid
for i in $(seq 100); do
        machinectl list >/dev/null 2>&1 && break
        sleep 0.2
done
machinectl list >/dev/null
[ $(systemctl show -P MainPID dbus.service) != $pid ]""", timeout=180)


def seed():
    return int(os.environ.get("VMM_CAMPAIGN_SEED", 0)) or random.SystemRandom().randrange(1, 1 << 32)


def run(lab, rounds, ways, others=False):
    chosen, rounds = seed(), int(os.environ.get("VMM_CAMPAIGN_ROUNDS", rounds))
    report(f"# VMM_CAMPAIGN_SEED={chosen}")
    # Killed on purpose more often than any start limit would allow for.
    lab.write_file("/run/systemd/system/vmm-device@.service.d/campaign.conf", "[Unit]\nStartLimitIntervalSec=0\n[Service]\nWatchdogSec=10s\n")
    try:
        with Workload(lab) as work:
            work.start()
            campaign = Campaign(lab, work, chosen)
            vmmd = work.state()["MainPID"]
            for number, device in enumerate(choose(work.devices, rounds, campaign.random)):
                time.sleep(campaign.random.uniform(0, 0.7))
                campaign.strike(device)
                if number % 25 == 24:
                    report(f"# {number + 1} killed")
            for way in ways:
                campaign.strike("disk", way)
            if others:
                lab.check("systemctl daemon-reexec", timeout=120)
                work.wait_for_progress()
                kill_dbus(lab)
            work.wait_for_progress()
            last = work.finish()
            campaign.figures()
            expect(work.state()["MainPID"] in (vmmd, "0"), "vmmd was started again")
            report(f"# {campaign.kills} helpers ended; the guest saw: " + ", ".join(f"{kind} {last[kind]['done']}" for kind in work.kinds()) +
                   f"; vsock connections reset: {last['vsock']['resets']}, console lines torn: {last['console']['resets']}")
            work.wait_until_ended()
            check_records(lab, last["synced"])
    finally:
        lab.run("rm -f /run/systemd/system/vmm-device@.service.d/campaign.conf; systemctl daemon-reload")


@scenario(releases=("bookworm", "trixie"), quick=False, long=True, only_x86=TOO_SLOW)
def helpers_are_killed_under_load_and_nothing_is_lost(lab):
    run(lab, 8, WAYS, others=True)


@scenario(releases=("bookworm", "trixie"), quick=False, long=True, only_x86=TOO_SLOW)
def helpers_are_killed_two_hundred_times(lab):
    run(lab, 200, WAYS * 3, others=True)


@scenario(host="any", quick=False, long=True, only_x86="the host whose power is cut is a PC")
def what_the_guest_flushed_is_there_when_the_power_was_cut(lab):
    """On a host of its own, whose disk outlives it; so for the one that it is run by a container will do."""
    host = lablib.QemuLab(f"{lab.name}-cut", {"kind": "qemu", "release": lab.settings["release"], "memory": 3072, "cpus": 2, "persistent": True})
    os.makedirs(host.directory, mode=0o700)
    try:
        host.come_up()
        for number in range(2):
            # Its files may have been lost, too.
            host.install_tree(lab.settings["tree"])
            work = Workload(host, without=("net", "sock", "console", "rng", "memory", "balloon"), interval=200)
            work.start()
            work.expect(r"^WORK .* synced=\d\d+$")
            time.sleep(random.uniform(0, 2))
            # What it says after this it may have said in vain.
            synced = work.last()["synced"]
            host.cut_power()
            check_records(host, synced)
            # The next guest writes the same: what it leaves must not be this one's.
            host.check(f"rm {IMAGE}; sync")
            report(f"# power cut {number + 1}: the guest had announced {synced} records, and the last of them are on the disk")
    finally:
        host.destroy()
