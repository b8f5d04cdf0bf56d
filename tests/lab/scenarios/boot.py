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
        text = machine.printed_in_the_end()
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
    expect(re.search("clocksource=(kvm-clock|tsc|arch_sys_counter) ", text), "the guest has no good clock")
    complaints = [line for line in text.splitlines() if re.search(COMPLAINTS, line)]
    expect(not complaints, "the guest's kernel complains: " + "\n".join(complaints[:5]))


def matrix():
    """Every image with each number of processors and each size of memory, and every number with every size."""
    variants = {}
    for kernel, image, sizes in (("debian12", "vmlinuz", ("256M", "2G", "6G")), ("debian13", "vmlinuz", ("2G", "6G", "256M")),
                                 ("debian12", "vmlinux", ("6G", "256M", "2G")), ("debian13", "vmlinux", ("256M", "2G", "6G"))):
        for vcpus, memory in zip((1, 2, 4), sizes):
            variants[f"{image} of {kernel} with {vcpus} vcpus and {memory}"] = (kernel, image, vcpus, memory)
    return {name: dict(zip(("kernel", "image", "vcpus", "memory"), values)) for name, values in variants.items()}


def part(kernel, image, memory):
    """That of the matrix which is of one image, and needs a host with much memory or does not."""
    return {name: values for name, values in matrix().items()
            if (values["kernel"], values["image"], values["memory"] == "6G") == (kernel, image, bool(memory))}


ONE_RELEASE = "of 64-bit Arm there is the kernel of one release"
NO_ELF = "Debian's kernel for 64-bit Arm has no ELF image in it"


@scenario(variants=part("debian12", "vmlinuz", 0), short=("vmlinuz of debian12 with 1 vcpus and 256M",))
def boots(lab, **arguments):
    boot(lab, **arguments)


@scenario(variants={"vmlinuz.gz of debian12 with 1 vcpus and 256M": {"kernel": "debian12", "image": "vmlinuz.gz", "vcpus": 1, "memory": "256M"}},
          only_arm64="a PC's kernel unpacks itself")
def boots_compressed(lab, **arguments):
    boot(lab, **arguments)


@scenario(variants=part("debian12", "vmlinuz", 8000), memory=8000)
def boots_across_the_32_bit_gap(lab, **arguments):
    boot(lab, **arguments)


@scenario(variants=part("debian13", "vmlinuz", 0), only_x86=ONE_RELEASE)
def boots_newer(lab, **arguments):
    boot(lab, **arguments)


@scenario(variants=part("debian13", "vmlinuz", 8000), memory=8000, only_x86=ONE_RELEASE)
def boots_newer_across_the_32_bit_gap(lab, **arguments):
    boot(lab, **arguments)


@scenario(variants=part("debian12", "vmlinux", 0) | part("debian13", "vmlinux", 0), quick=False, only_x86=NO_ELF)
def boots_also(lab, **arguments):
    boot(lab, **arguments)


@scenario(variants=part("debian12", "vmlinux", 8000) | part("debian13", "vmlinux", 8000), memory=8000, quick=False, only_x86=NO_ELF)
def boots_also_across_the_32_bit_gap(lab, **arguments):
    boot(lab, **arguments)
