# SPDX-License-Identifier: LGPL-2.1-or-later
"""Stock kernels boot with the processors and the memory that the definition gives them."""

import re

from machine import Machine
from scenario import expect, scenario

SIZES = {"256M": 256, "2G": 2048, "6G": 6144}
# What a guest's kernel says of tables, devices or itself when something about the machine is wrong.
COMPLAINTS = r"ACPI.*(Error|Exception)|Firmware Bug|BUG:|Oops|I/O error|soft lockup|rcu.*stall|APIC.*(error|fail)"


def boot(lab, kernel, image, vcpus, memory):
    with Machine(lab, kernel=kernel, image=image, vcpus=vcpus, memory=memory, test="info,poweroff",
                 devices={"rng": {"type": "rng"}, "console": {"type": "console"}},
                 command_line="quiet", onPanic="stop") as machine:
        machine.start()
        state = machine.wait_until_ended()
        text = machine.printed()
        expect("INIT-STEPS" in text, f"no /init:\n{text[-1500:]}\n{machine.journal()}")
        expect(state["Result"] == "success", f"the unit ended with {state['Result']}\n{machine.journal()}")
        check_info(text, kernel, vcpus, SIZES[memory])


def check_info(text, kernel, vcpus, memory):
    found = re.search(r"INFO cpus=(\d+) memory=(\d+) kernel=(\S+)", text)
    expect(found, f"the guest told nothing of itself:\n{text[-1500:]}")
    expect(int(found[1]) == vcpus, f"the guest has {found[1]} processors, not {vcpus}")
    expect(memory * 0.8 < int(found[2]) <= memory, f"the guest has {found[2]} MiB, not {memory}")
    expect(found[3].startswith("6.1." if kernel == "debian12" else "6.12."), f"the guest's kernel is {found[3]}")
    threads = re.search(r"INFO topology=(.*)", text)[1].split()
    expect(len(threads) == vcpus, f"thread siblings {threads} for {vcpus} processors")
    expect("clocksource=kvm-clock" in text or "clocksource=tsc" in text, "the guest has no good clock")
    complaints = [line for line in text.splitlines() if re.search(COMPLAINTS, line)]
    expect(not complaints, "the guest's kernel complains: " + "\n".join(complaints[:5]))


def matrix():
    variants = {}
    for vcpus in (1, 2, 4):
        for memory in SIZES:
            variants[f"vmlinuz of debian12 with {vcpus} vcpus and {memory}"] = ("debian12", "vmlinuz", vcpus, memory)
    for kernel, image in (("debian13", "vmlinuz"), ("debian12", "vmlinux"), ("debian13", "vmlinux")):
        for vcpus, memory in ((1, "256M"), (2, "2G"), (4, "6G")):
            variants[f"{image} of {kernel} with {vcpus} vcpus and {memory}"] = (kernel, image, vcpus, memory)
    return {name: dict(zip(("kernel", "image", "vcpus", "memory"), values)) for name, values in variants.items()}


def part(quick, memory):
    """The matrix, taken apart by whether --quick keeps it and whether it needs a host with much memory."""
    kept = {}
    for name, values in matrix().items():
        diagonal = (values["vcpus"], values["memory"]) in ((1, "256M"), (2, "2G"), (4, "6G"))
        if (values["memory"] == "6G") == bool(memory) and quick == (diagonal and values["image"] == "vmlinuz"):
            kept[name] = values
    return kept


@scenario(variants=part(True, 0))
def boots(lab, **arguments):
    boot(lab, **arguments)


@scenario(variants=part(True, 8000), memory=8000)
def boots_across_the_32_bit_gap(lab, **arguments):
    boot(lab, **arguments)


@scenario(variants=part(False, 0), quick=False)
def boots_also(lab, **arguments):
    boot(lab, **arguments)


@scenario(variants=part(False, 8000), memory=8000, quick=False)
def boots_also_across_the_32_bit_gap(lab, **arguments):
    boot(lab, **arguments)
