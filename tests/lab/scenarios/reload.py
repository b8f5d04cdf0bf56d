# SPDX-License-Identifier: LGPL-2.1-or-later
"""Another vmmd takes over a running machine: `systemctl reload`. The guest goes on, and so do process, unit and helpers."""

import os
import re
import subprocess
import tempfile

from machine import Machine
from scenario import expect, journal, report, scenario, wait_until

BOTH = ("bookworm", "trixie")
VMMD = "/usr/lib/vmm/vmmd"
TOOL = r"""
/* A timer of one millisecond: the longest it was late, the sum of what the two clocks disagree by, and how often time went back, at each SIGUSR1. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <time.h>

static volatile sig_atomic_t asked;
static void on_signal(int signal) { asked = 1; }
static long long now(clockid_t clock) {
        struct timespec t;

        clock_gettime(clock, &t);
        return t.tv_sec * 1000000000LL + t.tv_nsec;
}
int main(void) {
        struct sigaction action = { .sa_handler = on_signal };
        long long last = now(CLOCK_MONOTONIC), real = now(CLOCK_REALTIME), gap = 0, apart = 0, back = 0;

        sigaction(SIGUSR1, &action, NULL);
        setvbuf(stdout, NULL, _IONBF, 0);
        printf("TIMER-READY\n");
        for (;;) {
                struct timespec wait = { 0, 1000000 };
                long long m, r, difference;

                nanosleep(&wait, NULL);
                /* Both at one moment: who is stopped between the two looks again. */
                for (int i = 0; i < 100; i++) {
                        m = now(CLOCK_MONOTONIC);
                        r = now(CLOCK_REALTIME);
                        if (now(CLOCK_MONOTONIC) - m < 1000000)
                                break;
                }
                back += m < last || r < real;
                difference = (r - real) - (m - last);
                if (difference < 0) difference = -difference;
                if (difference > apart) apart = difference;
                if (m - last > gap) gap = m - last;
                last = m;
                real = r;
                if (asked) {
                        asked = 0;
                        printf("TIMER gap=%lld apart=%lld back=%lld at=%lld\n", gap / 1000, apart / 1000, back, r / 1000);
                        gap = apart = 0;
                }
        }
}
"""


def processes(machine):
    return [(state["MainPID"], state["InvocationID"], state["ActiveState"]) for state in machine.states(machine.units())]


def install(lab, command):
    """Another file in the place of the program, as a package does it; the old one is kept beside."""
    lab.check(f"[ -e {VMMD}.kept ] || cp -a {VMMD} {VMMD}.kept; {command} && chmod 755 {VMMD}.new && mv {VMMD}.new {VMMD}")


def reinstall(lab):
    lab.run(f"[ ! -e {VMMD}.kept ] || mv {VMMD}.kept {VMMD}")


@scenario(releases=BOTH, host="any")
def another_vmmd_takes_over_and_one_that_does_not_fit_changes_nothing(lab):
    with Machine(lab, kernel="tiny", devices={"rng": {"type": "rng"}, "serial": {"type": "serial"}}) as machine:
        machine.start()
        before = processes(machine)
        try:
            for _ in range(3):
                install(lab, f"cp {VMMD} {VMMD}.new")
                status, output = lab.run(f"systemctl reload {machine.unit}", timeout=120)
                expect(status == 0, f"systemctl reload failed: {output}\n{machine.journal()}")
                expect(machine.state()["ActiveState"] == "active", f"the unit is not active\n{machine.journal()}")
            expect(processes(machine) == before, f"processes were {before} and are {processes(machine)}\n{machine.journal()}")
            inode = lab.check(f"stat -L -c %i /proc/{before[0][0]}/exe; stat -c %i {VMMD}").split()
            expect(inode[0] == inode[1], f"the process executes another file than the one that is installed\n{machine.journal()}")

            install(lab, f"cp -L /bin/false {VMMD}.new")
            status, output = lab.run(f"systemctl reload {machine.unit}", timeout=120)
            expect(status != 0, "a program that says no has taken over")
            said = journal(lab, f"-u {machine.unit} --since={machine.since} MESSAGE_ID=9b1f43be0c0e4a5a8d1c7b64c2f05e38")
            expect("it failed without a reason" in said, f"the journal has no reason\n{machine.journal()}")
            expect(machine.describe()["state"] == "running", f"the guest does not run\n{machine.journal()}")
            expect(processes(machine) == before, f"processes were {before} and are {processes(machine)}")
        finally:
            reinstall(lab)
        status, output = lab.run(f"systemctl reload {machine.unit}", timeout=120)
        expect(status == 0, f"systemctl reload failed: {output}\n{machine.journal()}")
        lab.check(f"vmmctl pause {machine.name} && systemctl reload {machine.unit} && vmmctl resume {machine.name}", timeout=120)


# --- with a stock kernel ---

def make_tool(lab):
    """A disk that is a program."""
    with tempfile.TemporaryDirectory() as directory:
        source, program = os.path.join(directory, "timer.c"), os.path.join(directory, "timer")
        with open(source, "w", encoding="utf-8") as f:
            f.write(TOOL)
        subprocess.run([lab.compiler, "-O2", "-static", "-s", "-o", program, source], check=True)
        size = os.path.getsize(program)
        lab.check("mkdir -p /var/lib/vmm-lab/reload")
        lab.push([program], "/var/lib/vmm-lab/reload")
    lab.check("cd /var/lib/vmm-lab/reload && truncate -s 4M timer && rm -f data && dd if=/dev/urandom of=data bs=1M count=8 2>/dev/null")
    return size


class Guest:
    """The shell on its second console, over one connection that takeovers are not to cut."""

    def __init__(self, terminal):
        self.terminal = terminal
        self.count = 0

    def run(self, command, timeout=120):
        self.count += 1
        # The typed line must not look like its answer.
        self.terminal.send(f"{command}; echo \"END\"={self.count}=$?=\r")
        before, match = self.terminal.expect(rf"END={self.count}=(\d+)=", timeout)
        return int(match[1]), before

    def timer(self):
        _, output = self.run("n=$(wc -l </timer.log); kill -USR1 $T; while [ $(wc -l </timer.log) = $n ]; do usleep 50000; done; tail -n 1 /timer.log")
        match = re.search(r"TIMER gap=(\d+) apart=(\d+) back=(\d+) at=(\d+)", output)
        expect(match, f"the timer says nothing: {output[-500:]}")
        return [int(group) for group in match.groups()]


# Without what the guest keeps in memory: 1 drops it, and 4 before keeps the guest's log free of that.
WORK = ("echo 4 >/proc/sys/vm/drop_caches; (while :; do echo 1 >/proc/sys/vm/drop_caches; dd if=/dev/vdb of=/copy bs=64k 2>/dev/null && cmp -s /copy /first || echo BAD; echo r >>/reads; done) >/bad 2>&1 & "
        "(while :; do dd if=/dev/hwrng of=/dev/null bs=64 count=64 2>/dev/null || echo BAD; echo r >>/randoms; done) >>/bad 2>&1 &")
# What a kernel says of interrupts, requests and clocks that were lost.
TROUBLE = "lost|stall|lockup|hung|unstable|I/O error|timed out|NETDEV WATCHDOG|nobody cared|skew|BUG|WARNING|Oops"


def begin_work(guest, size):
    status, _ = guest.run(f"head -c {size} /dev/vda >/timer && chmod +x /timer && dd if=/dev/vdb of=/first bs=64k 2>/dev/null; dmesg -c >/dev/null; {WORK} true")
    expect(status == 0, "the guest's work does not begin")
    guest.run("/timer >/timer.log 2>&1 & T=$!; sleep 2; true")


def check_work(guest, machine):
    def counts():
        _, output = guest.run("wc -l </reads; wc -l </randoms; echo bad=$(wc -l </bad); head -n 20 /bad")
        return [int(word) for word in re.findall(r"^\s*(\d+)\s*$", output.replace("\r", ""), re.MULTILINE)], None if "bad=0" in output else output
    then, bad = counts()
    expect(not bad and len(then) == 2, f"what was read is not what is there: {bad}, {then}")
    guest.run("sleep 5")
    _, bad = wait_until(machine.lab, f"the guest's work goes on from {then}", counts,
                        lambda now: len(now[0]) == 2 and all(a > b for a, b in zip(now[0], then)), explain=machine.journal)
    expect(not bad, f"what was read is not what is there: {bad}")
    # By a name: what is typed comes back, in as many lines as it takes.
    guest.run(f"TROUBLE='{TROUBLE}'")
    _, output = guest.run('dmesg | grep -E "$TROUBLE"')
    lines = [line for line in output.splitlines()[1:] if re.search(TROUBLE, line)]
    expect(not lines, "the guest's kernel complains:\n" + "\n".join(lines))


def median(values):
    return sorted(values)[len(values) // 2]


def measure(lab, guest, command, times):
    """The longest gap of the guest's timer at each, in microseconds."""
    gaps = []
    for _ in range(times):
        guest.timer()
        status, output = lab.run(command, timeout=120)
        expect(status == 0, f"{command} failed: {output}")
        gap, apart, back, _ = guest.timer()
        expect(back == 0, "the guest's time went back")
        expect(apart < 50000, f"the guest's clocks have moved apart by {apart} us")
        gaps.append(gap)
    return gaps


def offset(lab, guest):
    """How far the guest's clock is behind the host's, in microseconds: at least and at most, since asking takes its time here."""
    before = int(lab.check("date +%s%N")) // 1000
    at = guest.timer()[3]
    after = int(lab.check("date +%s%N")) // 1000
    return before - at, after - at


def under_work(lab, times):
    size = make_tool(lab)
    devices = {"timer": {"type": "block", "path": "/var/lib/vmm-lab/reload/timer", "readOnly": True},
               "data": {"type": "block", "path": "/var/lib/vmm-lab/reload/data"},
               "rng": {"type": "rng"}, "console": {"type": "console"}}
    with Machine(lab, test="shell", vcpus=2, devices=devices, command_line="quiet") as machine:
        machine.start()
        with lab.terminal(f"vmmctl console {machine.name} console") as terminal:
            terminal.send("\r")
            terminal.expect("# ", 240)
            guest = Guest(terminal)
            begin_work(guest, size)
            before = processes(machine)
            least, most = offset(lab, guest)
            reloads = measure(lab, guest, f"systemctl reload {machine.unit}", times)
            plain = measure(lab, guest, f"vmmctl suspend {machine.name} && vmmctl resume {machine.name}", times)
            said = re.findall(r"stood still for ([0-9.]+) ms", machine.said())
            report(f"# {times} takeovers: the guest's timer of 1 ms was late by {median(reloads) / 1000:.1f} ms (p50), {max(reloads) / 1000:.1f} ms (max); "
                   f"by suspend and resume {median(plain) / 1000:.1f}, {max(plain) / 1000:.1f}; vmmd says {median([float(s) for s in said]):.1f} ms (p50)")
            check_work(guest, machine)
            least_then, most_then = offset(lab, guest)
            expect(least_then <= most + 500000 and least <= most_then + 500000,
                   f"the guest's clock was {least} to {most} us behind the host's, and is {least_then} to {most_then} us")
            expect(processes(machine) == before, f"processes were {before} and are {processes(machine)}\n{machine.journal()}")


@scenario(long=True)
def a_stock_guest_at_work_is_taken_over_three_times(lab):
    under_work(lab, 3)


@scenario(long=True)
def a_stock_guest_at_work_is_taken_over_fifty_times(lab):
    under_work(lab, 50)
