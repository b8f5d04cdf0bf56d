# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who may do what with a running machine: every method of its interfaces, by users of all kinds, and what they are told."""

import itertools
import json
import shlex

from idl import Interface
from machine import Machine
from scenario import expect, scenario, wait_for

BOTH = ("bookworm", "trixie")
# A machine of its own for each: what starts too often is not started again for a while.
names = (f"access{n}" for n in itertools.count(1))

READING = {
    "io.vmmd.Machine": {"Describe", "SubscribeEvents", "DescribeBalloon", "GetBalloonStatistics", "GetWorkingSet", "GetDeviceTree"},
    "io.systemd.MachineInstance": {"Describe", "SubscribeEvents"},
    "io.systemd.Metrics": {"List", "Describe"},
    "io.systemd.service": set(),
}
BALLOONING = {"SetBalloonTarget", "ConfigureWorkingSet", "HintFreePages"}
# For everybody, or for nobody.
FREE = {"io.systemd.service": {"Ping", "Reload"}}
STREAMS = {"SubscribeEvents", "List"}
# What would end the machine, or the test: the guest has no handler of interrupts.
ENDING = {"Terminate", "PowerOff", "Reboot", "InjectNmi"}

USERS = {"alice": [], "bob": [], "carl": ["lab-operators"], "rita": ["lab-readers"], "rosa": ["vmm-read"], "bella": ["vmm-balloon"], "pia": []}

# As that user: a call a line, METHOD FLAG PARAMETERS; a first reply a line. Each call has a connection of its own.
CALLER = """
import os, socket, sys
user, path = sys.argv[1:]
for line in open("/etc/passwd"):
    name, _, uid, gid = line.split(":")[:4]
    if name == user:
        os.initgroups(user, int(gid))
        os.setgid(int(gid))
        os.setuid(int(uid))
        break
else:
    sys.exit("no such user")
for line in sys.stdin:
    method, flag, parameters = line.rstrip().split(" ", 2)
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(60)
    connection.connect(path)
    connection.sendall(b'{"method":"%s","%s":true,"parameters":%s}\\0' % (method.encode(), flag.encode(), parameters.encode()))
    reply = b""
    while b"\\0" not in reply:
        data = connection.recv(65536)
        if not data:
            break
        reply += data
    print((reply.split(b"\\0")[0] or b"null").decode())
"""


# Connections by the thousand, each with many calls that make long answers and that it does not wait for; whoever is put out comes again.
CROWD = """
import resource, socket, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
call = b'{"method":"org.varlink.service.GetInterfaceDescription","parameters":{"interface":"io.vmmd.Machine"}}\\0' * 50
crowd = set()
end = time.monotonic() + float(sys.argv[2])
print("here", flush=True)
while time.monotonic() < end:
    for _ in range(50 if len(crowd) < 2000 else 0):
        connection = socket.socket(socket.AF_UNIX)
        connection.setblocking(False)
        try:
            connection.connect(sys.argv[1])
            crowd.add(connection)
        except OSError:
            break
    for connection in list(crowd):
        try:
            connection.send(call)
            connection.recv(1 << 20)
        except BlockingIOError:
            pass
        except OSError:
            crowd.discard(connection)
"""

# Says what it wants and is gone.
IN_PASSING = """
import os, socket, sys
import pwd
user = pwd.getpwnam(sys.argv[1])
os.setgid(user.pw_gid)
os.setuid(user.pw_uid)
connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[2])
connection.sendall(b'{"method":"io.vmmd.Machine.Reset","oneway":true}\\0')
"""


def flag_of(method):
    interface, name = method.rsplit(".", 1)
    if name in STREAMS or interface == "io.systemd.Metrics":
        return "more"
    # The third stands for none: a vendor's own, which nobody looks at.
    return "upgrade" if name == "AttachConsole" else "com.example.none"


def call_all(lab, user, socket, calls):
    """Makes the calls, (method, parameters) each, as the user; returns the replies."""
    lines = "".join(f"{method} {flag_of(method)} {json.dumps(parameters)}\n" for method, parameters in calls)
    output = lab.check(f"python3 -c {shlex.quote(CALLER)} {user} {socket}", timeout=300, input=lines.encode())
    replies = [json.loads(line) for line in output.splitlines()]
    expect(len(replies) == len(calls), f"{len(calls)} calls as {user} gave {len(replies)} replies:\n{output}")
    return replies


def call(machine, user, method, **parameters):
    return call_all(machine.lab, user, f"/run/vmm/{machine.name}/control", [(method, parameters)])[0]


def is_refused(reply):
    """By an answer: who only hangs up has refused nobody anything."""
    expect(reply is not None, "there was no reply")
    return reply.get("error") in ("org.varlink.service.PermissionDenied", "io.systemd.InteractiveAuthenticationRequired")


def expect_allowed(machine, user, method, why):
    reply = call(machine, user, method)
    expect("error" not in reply, f"{why}: {reply}")


def methods(leave_out=()):
    """All that need a right, by name: (method, needed right, parameters)."""
    found = []
    for name, reading in READING.items():
        interface = Interface(name)
        expect(reading <= set(interface.methods), f"{name} has no {reading - set(interface.methods)}")
        for method in interface.methods:
            if method in FREE.get(name, ()) or method in leave_out:
                continue
            right = "read" if method in reading else "balloon" if method in BALLOONING else "change"
            found.append((f"{name}.{method}", right, interface.parameters(method)))
    expect(sum(right == "change" for _, right, _ in found) > 10 or leave_out, "the interface texts were not understood")
    return found


def make_users(lab):
    commands = ["getent group vmm-read vmm-balloon >/dev/null"]
    commands += [f"getent group {group} >/dev/null || groupadd {group}" for group in ("lab-operators", "lab-readers")]
    for user, groups in USERS.items():
        commands.append(f"id {user} >/dev/null 2>&1 || useradd -M {user}")
        commands += [f"usermod -aG {group} {user}" for group in groups]
    lab.check(" && ".join(commands), timeout=120)


def make_machine(lab, **settings):
    return Machine(lab, name=next(names), kernel="tiny", devices={"balloon": {"type": "balloon"}}, stopTimeout="1s", **settings)


def expect_rights(m, user, rights):
    """The user may call what needs one of the rights, and nothing else; and hears why."""
    cases = methods(leave_out=ENDING if "change" in rights else ())
    for (method, right, _), reply in zip(cases, call_all(m.lab, user, f"/run/vmm/{m.name}/control", [(method, parameters) for method, _, parameters in cases])):
        if right in rights:
            expect(not is_refused(reply), f"{user} may not call {method}, which needs {right}: {reply}")
            continue
        expect(is_refused(reply), f"{user} may call {method}, which needs {right}: {reply}")
        reason = reply.get("parameters", {}).get("reason", "")
        expect(user in reason and "polkit" in reason and f"io.vmmd.machine.{right}" in reason, f"{user} hears of {method} only: {reply}")


@scenario(releases=BOTH, host="any")
def who_has_no_rights_is_refused_each_method_and_told_why(lab):
    make_users(lab)
    with make_machine(lab, owner="alice", accessGroup="lab-operators") as m:
        m.start()
        expect_rights(m, "bob", ())
        reason = call(m, "bob", "io.vmmd.Machine.Reset")["parameters"]["reason"]
        expect("user 'bob' is not root, is not the owner 'alice', is not in group 'lab-operators'" in reason, f"the reason is: {reason}")
        expect(m.describe()["resets"] == 0 and m.describe()["state"] == "running", "something happened to the machine all the same")


@scenario(releases=BOTH, host="any")
def readers_may_look_and_no_more(lab):
    make_users(lab)
    with make_machine(lab, readGroup="lab-readers") as m:
        m.start()
        expect_rights(m, "rita", ("read",))
        expect(is_refused(call(m, "rosa", "io.vmmd.Machine.Describe")), "vmm-read may read where readGroup is another group")
    with make_machine(lab) as m:
        m.start()
        expect_rights(m, "rosa", ("read",))


@scenario(releases=BOTH, host="any")
def the_balloon_group_may_look_and_change_balloons_and_no_more(lab):
    make_users(lab)
    with make_machine(lab) as m:
        m.start()
        expect_rights(m, "bella", ("read", "balloon"))
        reply = call(m, "bella", "io.vmmd.Machine.SetBalloonTarget", target=1 << 20)
        expect(reply.get("parameters", {}).get("balloon", {}).get("target") == 1 << 20, f"SetBalloonTarget: {reply}")
        expect(m.describe()["balloons"][0]["target"] == 1 << 20, "the target was not set")


@scenario(releases=BOTH, host="any", variants={"the owner": {"user": "alice"}, "the access group": {"user": "carl"}, "root": {"user": "root"}})
def may_do_everything(lab, user):
    make_users(lab)
    with make_machine(lab, owner="alice", accessGroup="lab-operators") as m:
        m.start()
        expect_rights(m, user, ("read", "balloon", "change"))
        call(m, user, "io.vmmd.Machine.Resume")
        # A reset was among them, and is answered before it is done.
        before = m.wait_until("it runs again", lambda machine: machine["state"] == "running")["resets"]
        expect_allowed(m, user, "io.vmmd.Machine.Reset", "Reset")
        m.wait_until("it is reset", lambda machine: machine["resets"] == before + 1)
        expect_allowed(m, user, "io.vmmd.Machine.Terminate", "Terminate")
        expect(m.wait_until_ended()["ActiveState"] == "inactive", "it was not terminated")


HAS_OWNER = "busctl call org.freedesktop.DBus /org/freedesktop/DBus org.freedesktop.DBus NameHasOwner s org.freedesktop.PolicyKit1"
RULE = """polkit.addRule(function(action, subject) {
    if (action.id == "io.vmmd.machine.change" && action.lookup("machine") == "@MACHINE@" && action.lookup("method") == "io.vmmd.Machine.Pause"
        && subject.user == "pia")
        return polkit.Result.YES;
});
"""


@scenario(releases=BOTH, host="any")
def a_rule_of_polkit_gives_one_method_of_one_machine(lab):
    make_users(lab)
    path = "/etc/polkit-1/rules.d/10-vmm-lab.rules"
    with make_machine(lab) as m, make_machine(lab) as other:
        m.start()
        other.start()
        expect(is_refused(call(m, "pia", "io.vmmd.Machine.Pause")), "it is allowed without the rule")
        lab.write_file(path, RULE.replace("@MACHINE@", m.name))
        lab.check(f"chmod 0644 {path} && systemctl restart polkit")
        try:
            reply = call(m, "pia", "io.vmmd.Machine.Pause")
            expect("error" not in reply, f"Pause: {reply}")
            expect(m.describe()["state"] == "paused", "it was not paused")
            expect(is_refused(call(m, "pia", "io.vmmd.Machine.Reset")), "another method is allowed")
            expect(is_refused(call(m, "bob", "io.vmmd.Machine.Pause")), "another user is allowed")
            reply = call(other, "pia", "io.vmmd.Machine.Pause")
            expect(is_refused(reply), f"it is allowed on another machine: {reply}")
        finally:
            lab.check(f"rm {path} && systemctl restart polkit")
        call(m, "root", "io.vmmd.Machine.Resume")
        expect(is_refused(call(m, "pia", "io.vmmd.Machine.Pause")), "it is allowed when the rule is gone")


@scenario(releases=BOTH, host="any")
def without_polkit_the_definition_decides_alone_and_the_refusal_says_so(lab):
    make_users(lab)
    with make_machine(lab, owner="alice") as m:
        m.start()
        lab.check("systemctl mask --runtime --now polkit.service")
        try:
            # What is sent to one that has just ended gets another answer than what is sent to nobody.
            wait_for(lab, "the bus knows that polkit has ended", f"{HAS_OWNER} | grep -x 'b false'")
            for method, help_ in (("Reset", f"an owner or an accessGroup in the definition of machine '{m.name}'"),
                                  ("Describe", "membership of group 'vmm-read'")):
                reply = call(m, "bob", f"io.vmmd.Machine.{method}")
                expect(reply["error"] == "org.varlink.service.PermissionDenied", f"{method}: {reply}")
                reason = reply["parameters"]["reason"]
                expect("polkit, which could allow it, is not here" in reason and f"{help_} would be" in reason, f"the reason is: {reason}")
            expect_allowed(m, "alice", "io.vmmd.Machine.Reset", "the owner may not")
        finally:
            lab.check("systemctl unmask --runtime polkit.service")
        expect("polkit wants to ask" in call(m, "bob", "io.vmmd.Machine.Reset")["parameters"]["reason"], "polkit is not found again")


@scenario(releases=BOTH, host="any")
def without_the_service_root_and_the_access_group_may_and_others_hear_why(lab):
    make_users(lab)
    with make_machine(lab, owner="alice", accessGroup="lab-operators") as m:
        m.start()
        lab.check("systemctl stop vmm-authorize.socket vmm-authorize.service")
        try:
            reply = call(m, "alice", "io.vmmd.Machine.Reset")
            reason = reply.get("parameters", {}).get("reason", "")
            expect(is_refused(reply) and "cannot be asked" in reason and "lab-operators" in reason, f"Reset as alice: {reply}")
            for user in ("root", "carl"):
                expect_allowed(m, user, "io.vmmd.Machine.Reset", f"{user} may not")
        finally:
            lab.check("systemctl start vmm-authorize.socket")
        expect_allowed(m, "alice", "io.vmmd.Machine.Reset", "the owner may not, though the service is back")


@scenario(releases=BOTH, host="any")
def nobody_but_vmmd_reaches_the_service_that_decides(lab):
    make_users(lab)
    with make_machine(lab) as m:
        m.start()
        for user in ("bob", "rosa", "bella"):
            status, output = lab.run(f"python3 -c {shlex.quote(CALLER)} {user} /run/vmm-authorize/io.vmmd.Authorization",
                                     input=b"org.varlink.service.GetInfo com.example.none {}\n")
            expect(status != 0 and "PermissionError" in output, f"{user} gets to it: {output}")
        # A member of its group is no machine's vmmd for that.
        lab.check("usermod -aG vmm pia")
        line = ('io.vmmd.Authorization.Check com.example.none {"fileDescriptorIndex":0,"right":"read","machine":"access","method":"a.b.C",'
                '"interactive":false}\n')
        try:
            output = lab.check(f"python3 -c {shlex.quote(CALLER)} pia /run/vmm-authorize/io.vmmd.Authorization", input=line.encode())
        finally:
            lab.check("gpasswd -d pia vmm")
        expect("Only vmm@access.service may ask" in output, f"pia is answered: {output}")


@scenario(releases=("trixie",), host="any")
def varlinkctl_gets_the_refusal_and_the_answer(lab):
    make_users(lab)
    with make_machine(lab, owner="alice") as m:
        m.start()
        def varlinkctl(user, arguments):
            return lab.run(f"setpriv --reuid {user} --regid {user} --init-groups varlinkctl {arguments}", timeout=60)
        status, output = varlinkctl("bob", f"call /run/vmm/{m.name}/control io.vmmd.Machine.Reset '{{}}'")
        expect(status != 0 and "InteractiveAuthenticationRequired" in output and "user 'bob' is not root" in output, f"as bob: {output}")
        status, output = varlinkctl("alice", f"call /run/vmm/{m.name}/control io.vmmd.Machine.Reset '{{}}'")
        expect(status == 0, f"as alice: {output}")
        status, output = varlinkctl("bob", f"introspect /run/vmm/{m.name}/control io.vmmd.Machine")
        expect(status == 0 and "method Reset(" in output, f"introspection as bob: {output[-400:]}")


@scenario(releases=BOTH, host="any")
def the_service_ends_when_nobody_asks_and_comes_back(lab):
    make_users(lab)
    with make_machine(lab, owner="alice") as m:
        m.start()
        expect_allowed(m, "alice", "io.vmmd.Machine.Reset", "the owner may not")
        lab.check("systemctl is-active vmm-authorize.service")
        state = m.wait_for_state("vmm-authorize.service", lambda state: state["ActiveState"] in ("inactive", "failed"), 180)
        expect((state["ActiveState"], state["Result"]) == ("inactive", "success"), f"it did not end well: {state}")
        expect_allowed(m, "alice", "io.vmmd.Machine.Reset", "the owner may not, after that")
        lab.check("systemctl is-active vmm-authorize.service")


@scenario(releases=BOTH, host="any")
def a_crowd_of_strangers_keeps_nobody_from_being_answered(lab):
    with make_machine(lab) as m:
        m.start()
        lab.run("systemctl reset-failed lab-crowd 2>/dev/null")
        lab.check(f"systemd-run -q --unit lab-crowd --collect -p User=nobody -p LimitNOFILE=4096 python3 -c {shlex.quote(CROWD)} /run/vmm/{m.name}/control 900")
        try:
            wait_for(lab, "the crowd is there", "journalctl -q -o cat -u lab-crowd | grep -q here")
            lab.check("sleep 3")
            for n in range(5):
                status, output = lab.run(f"timeout 60 vmmctl describe {m.name}", timeout=120)
                expect(status == 0, f"asking for the {n}th time ended with {status}, where 60 s are more than enough: {output[-300:]}")
            memory = int(lab.check(f"grep VmRSS: /proc/{m.state()['MainPID']}/status").split()[1])
            expect(memory < 200 * 1024, f"vmmd has {memory} KiB in memory")
            lab.check(f"timeout 60 systemctl stop {m.unit}", timeout=120)
            expect(m.state()["Result"] == "success", f"it ended with {m.state()}")
            expect(m.state("lab-crowd.service")["ActiveState"] == "active", "there was no crowd any more:\n" + lab.run("journalctl -q -u lab-crowd")[1])
        finally:
            lab.run("systemctl stop lab-crowd")


@scenario(releases=BOTH, host="any")
def who_wants_no_answer_need_not_stay_for_it(lab):
    make_users(lab)
    with make_machine(lab, owner="alice") as m:
        m.start()
        for user, resets in ("bob", 0), ("alice", 1):
            lab.check(f"python3 -c {shlex.quote(IN_PASSING)} {user} /run/vmm/{m.name}/control")
            # Who asks later is answered later.
            expect(is_refused(call(m, "bob", "io.vmmd.Machine.Reset")), "bob may reset it")
            m.wait_until(f"{resets} resets after {user}'s", lambda machine, resets=resets: machine["state"] == "running" and machine["resets"] == resets)
