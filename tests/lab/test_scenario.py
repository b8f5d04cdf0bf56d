# SPDX-License-Identifier: LGPL-2.1-or-later
"""The rules of scenario.py, what is repeated and what is not, on labs that are none; and what workload.py makes of what a guest has written."""

import contextlib
import importlib
import io
import os
import subprocess
import sys
import tempfile
import unittest
from unittest import mock

import lablib
import scenario
import workload


class FakeLab:
    """One that answers until it is told to hang."""

    def __init__(self, kind="qemu"):
        self.kind = kind
        self.arch = "x86_64"
        self.settings = {"release": "bookworm", "kind": kind, "memory": 4096}
        self.hangs = self.ended = False
        self.replaced = 0

    def is_alive(self):
        return not self.ended

    def run(self, _, timeout):
        if self.hangs:
            raise lablib.LabError(f"did not end within {timeout} s")
        return 0, ""

    def replace(self):
        self.replaced += 1
        self.hangs = self.ended = False


def run(lab, function, long=False):
    """Returns whether it passed, and what was printed."""
    each = scenario.Scenario(function, "it", ("bookworm",), "guest", 0, True, long, {})
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        passed = scenario.run_or_repeat(lab, each)
    return passed, output.getvalue()


class Repeating(unittest.TestCase):
    def setUp(self):
        self.calls = 0
        scenario.repeats = scenario.Repeats()

    def fail(self, times, error=scenario.Failure("it took too long\nand this is the log"), hangs=False):  # pylint: disable=arguments-differ
        """A scenario that fails the first so many times, and its host may hang then."""
        def function(lab):
            self.calls += 1
            if self.calls <= times:
                lab.hangs = hangs
                raise error
        return function

    def test_a_first_failure_is_repeated_aloud_where_all_is_emulated(self):
        for error in (scenario.Failure("it took too long\nand this is the log"), lablib.LabError("it took too long\nand this is the log")):
            self.setUp()
            lab = FakeLab()
            passed, output = run(lab, self.fail(1, error))
            self.assertEqual((passed, self.calls, lab.replaced), (True, 2, 0))
            self.assertIn("# FAILED AT FIRST: it [bookworm, qemu]: it took too long\n#   and this is the log\n", output)
            self.assertNotIn("not ok", output)
            self.assertEqual(output.count("\nok it [bookworm, qemu]"), 1)
            self.assertEqual(scenario.repeats.summary(), ["FAILED AT FIRST: it [bookworm, qemu]: it took too long"])

    def test_a_second_failure_is_a_failure(self):
        lab = FakeLab()
        passed, output = run(lab, self.fail(2))
        self.assertEqual((passed, self.calls, lab.replaced), (False, 2, 0))
        self.assertIn("\nnot ok it [bookworm, qemu]: it took too long", output)
        self.assertNotIn("\nok it", output)

    def test_what_passes_is_not_repeated(self):
        passed, output = run(FakeLab(), self.fail(0))
        self.assertEqual((passed, self.calls, scenario.repeats.summary()), (True, 1, []))
        self.assertNotIn("FAILED", output)

    def test_nothing_is_repeated_in_a_container(self):
        for hangs in (False, True):
            self.setUp()
            lab = FakeLab("nspawn")
            passed, output = run(lab, self.fail(1, hangs=hangs))
            self.assertEqual((passed, self.calls, lab.replaced), (False, 1, 0))
            self.assertIn("not ok it [bookworm, nspawn]: it took too long", output)
            self.assertEqual(scenario.repeats.summary(), [])
        lab.ended = True
        self.assertFalse(run(lab, self.fail(0))[0])
        self.assertEqual(lab.replaced, 0)

    def test_a_long_one_is_not_repeated(self):
        self.assertFalse(run(FakeLab(), self.fail(1), long=True)[0])
        self.assertEqual(self.calls, 1)

    def test_only_so_many_failures_are_the_emulations(self):
        lab = FakeLab()
        for i in range(scenario.Repeats.MAX + 2):
            self.calls = 0
            self.assertEqual(run(lab, self.fail(1))[0], i < scenario.Repeats.MAX)
            self.assertEqual(self.calls, 2 if i < scenario.Repeats.MAX else 1)
        self.assertEqual(len(scenario.repeats.summary()), scenario.Repeats.MAX)

    def test_a_hung_host_is_replaced_aloud(self):
        lab = FakeLab()
        passed, output = run(lab, self.fail(1, hangs=True))
        self.assertEqual((passed, self.calls, lab.replaced), (True, 2, 1))
        self.assertIn("# FAILED AT FIRST: it", output)
        self.assertIn("# THE HOST HUNG", output)
        self.assertIn("\nok it [bookworm, qemu]", output)

    def test_a_second_hang_is_a_failure_and_the_next_one_gets_another_host(self):
        lab = FakeLab()
        passed, output = run(lab, self.fail(2, hangs=True))
        self.assertEqual((passed, self.calls, lab.replaced), (False, 2, 1))
        self.assertIn("\nnot ok it", output)
        self.calls = 0
        self.assertTrue(lab.hangs)
        passed, _ = run(lab, self.fail(1, hangs=True))
        self.assertEqual((passed, lab.replaced), (True, 2))

    def test_a_host_that_has_ended_is_replaced(self):
        lab = FakeLab()
        lab.ended = True
        self.assertTrue(run(lab, self.fail(0))[0])
        self.assertEqual(lab.replaced, 1)

    def test_where_no_new_host_comes_up_it_is_a_failure(self):
        class Last(FakeLab):
            def replace(self):
                raise lablib.LabError("it does not boot")
        passed, output = run(Last(), self.fail(1, hangs=True))
        self.assertEqual((passed, self.calls), (False, 1))
        self.assertIn("not ok it [bookworm, qemu]: no new host: it does not boot", output)

    def test_a_scenario_that_is_broken_itself_is_a_failure(self):
        passed, output = run(FakeLab(), lambda lab: lab.no_such_thing)
        self.assertFalse(passed)
        self.assertIn("AttributeError", output)


class Choosing(unittest.TestCase):
    def test_scenarios_say_where_they_run(self):
        found = scenario.find([])
        self.assertTrue({"any", "guest"} == {each.host for each in found})
        names = [(each.name, release) for each in found for release in each.releases]
        self.assertEqual(len(names), len(set(names)), "two scenarios have one name")

    def test_a_host_of_another_kind_is_refused(self):
        with self.assertRaises(ValueError):
            scenario.scenario(host="container")


class ShellLab(FakeLab):
    """Its host is this machine."""
    patience = 1

    def run(self, command, timeout):
        result = subprocess.run(["bash", "-c", f"{{ {command}\n}} 2>&1"], stdout=subprocess.PIPE, text=True, timeout=timeout, check=False)
        return result.returncode, result.stdout


class Waiting(unittest.TestCase):
    def test_what_is_there_is_there_at_once(self):
        scenario.wait_for(ShellLab(), "nothing", "true", 0)
        self.assertEqual(scenario.wait_until(ShellLab(), "nothing", lambda: 5, bool, 0), 5)

    def test_what_comes_is_waited_for(self):
        with tempfile.TemporaryDirectory() as directory:
            scenario.wait_for(ShellLab(), "the third look", f"echo >>{directory}/looks; [ $(wc -l <{directory}/looks) = 3 ]")
        looks = iter(range(5))
        self.assertEqual(scenario.wait_until(ShellLab(), "the third look", lambda: next(looks), lambda n: n == 3, interval=0), 3)

    def test_what_does_not_come_is_told_with_what_was_seen(self):
        with self.assertRaisesRegex(scenario.Failure, "the file: not within 0 s; .*No such file.*\nbecause"):
            scenario.wait_for(ShellLab(), "the file", "cat /nowhere/at/all; false", 0, lambda: "because")
        with self.assertRaisesRegex(scenario.Failure, "six: not within 0 s, but 5\nbecause"):
            scenario.wait_until(ShellLab(), "six", lambda: 5, lambda n: n == 6, 0, lambda: "because", interval=0)


class Reading(unittest.TestCase):
    LINE = "WORK 7 time=8100 disk=12,0,0,350 clock=90,0,0,1200 synced=23\n"

    def reports(self, text):
        return workload.Workload.reports(None, text)

    def test_a_line_that_is_still_being_written_is_not_read(self):
        report, = self.reports(self.LINE)
        self.assertEqual((report["number"], report["synced"], report["disk"]["gap"], report["clock"]["done"]), (7, 23, 350, 90))
        for size in range(len(self.LINE)):
            self.assertEqual(self.reports(self.LINE[:size]), [], self.LINE[:size])

    def test_what_else_is_printed_is_no_report(self):
        self.assertEqual(self.reports("WORK-ERROR disk: no\nWORK-END errors=1\nDMESG synced=1\n"), [])


class FakeDisk:
    """A host with what a guest has written: each record's number, in the ring's order."""

    def __init__(self, written, torn=None):
        self.data = bytearray(workload.RECORDS * 4096)
        for number in written:
            at = number % workload.RECORDS * 4096
            self.data[at:at + 4096] = workload.fill(number, 4096)
        if torn:
            self.data[torn % workload.RECORDS * 4096 + 2048] ^= 1

    def check(self, _):
        pass

    def pull(self, _, path):
        with open(path, "wb") as f:
            f.write(self.data)


class Records(unittest.TestCase):
    def test_what_was_announced_is_there(self):
        for last in (3, 100, 100 + workload.RECORDS // 2):
            workload.check_records(FakeDisk(range(1, last + 1)), min(last, 100))

    def test_one_that_is_missing_or_torn_is_a_failure(self):
        for disk in (FakeDisk(range(1, 100)), FakeDisk([*range(1, 90), *range(91, 101)]), FakeDisk(range(1, 101), torn=95), FakeDisk(())):
            with self.assertRaises(scenario.Failure):
                workload.check_records(disk, 100)
        with self.assertRaises(scenario.Failure):
            workload.check_records(FakeDisk(()), 0)

    def test_it_is_what_the_guest_writes(self):
        """The same words from the guest's program."""
        with tempfile.TemporaryDirectory() as directory:
            source, program = os.path.join(directory, "fill.c"), os.path.join(directory, "fill")
            with open(source, "w", encoding="ascii") as f:
                f.write('#define main workload_main\n#include "workload.c"\n#undef main\n'
                        "int main(void) { char b[4096]; fill(b, sizeof(b), 4711); return fwrite(b, sizeof(b), 1, stdout) != 1; }\n")
            subprocess.run(["cc", "-D_GNU_SOURCE", "-I", lablib.HERE, "-pthread", "-o", program, source], check=True)
            self.assertEqual(subprocess.run([program], check=True, stdout=subprocess.PIPE).stdout, workload.fill(4711, 4096))


class Killing(unittest.TestCase):
    def test_every_device_is_killed_as_often_as_any_other(self):
        sys.path.append(os.path.join(lablib.HERE, "scenarios"))
        campaign = importlib.import_module("campaign")
        rng = campaign.random.Random(1)
        for rounds in (8, 12, 200):
            chosen = campaign.choose(list("abcdefgh"), rounds, rng)
            counts = [chosen.count(device) for device in "abcdefgh"]
            self.assertEqual(len(chosen), rounds)
            self.assertLessEqual(max(counts) - min(counts), 1)


class Power(unittest.TestCase):
    """A host whose QEMU is none."""

    def lab(self, directory, **settings):
        lab = lablib.QemuLab("power", {"release": "bookworm", **settings})
        lab.directory = directory
        return lab

    def test_only_a_persistent_host_has_a_disk_of_its_own(self):
        with tempfile.TemporaryDirectory() as directory:
            image = os.path.join(directory, "image")
            with open(image, "w", encoding="ascii") as f:
                f.write("as it was made")
            self.assertEqual(self.lab(directory).disk(image), image)
            own = self.lab(directory, persistent=True).disk(image)
            self.assertNotEqual(own, image)
            with open(own, "w", encoding="ascii") as f:
                f.write("as it was left")
            self.assertEqual(self.lab(directory, persistent=True).disk(image), own)
            with open(own, encoding="ascii") as f:
                self.assertEqual(f.read(), "as it was left")

    def test_it_boots_again_once_qemu_is_gone(self):
        with tempfile.TemporaryDirectory() as directory, subprocess.Popen(["sleep", "60"]) as qemu:
            lab = self.lab(directory, persistent=True, pid=qemu.pid)
            for port in range(lablib.PORTS):
                open(os.path.join(directory, f"port{port}"), "w", encoding="ascii").close()
            with mock.patch.object(lab, "come_up") as come_up:
                lab.cut_power()
            come_up.assert_called_once_with()
            self.assertFalse(lab.is_alive())
            self.assertEqual(os.listdir(directory), [])

    def test_one_that_keeps_nothing_is_not_cut_off(self):
        with tempfile.TemporaryDirectory() as directory, self.assertRaises(lablib.LabError):
            self.lab(directory, pid=0).cut_power()


unittest.main()
