/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Machine definitions: what is refused, with exactly which words; then what is taken, found and merged. */

#include <fcntl.h>
#include <ftw.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cmocka.h>

#include "definition.h"
#include "notify.h"
#include "unit-name.h"

#define K "\"kernel\": \"/k\""
#define P "\"plugin\": {\"path\": \"/p\"}"

/* Every text is one file "m.json" of a machine "m". */
static const struct {
        const char *text;
        const char *error;
} refused[] = {
        /* no JSON */
        { "", "m.json:1: found the end of the text, expected an object" },
        { "  \n\n ", "m.json:3: found the end of the text, expected an object" },
        { "// nothing\n", "m.json:2: found the end of the text, expected an object" },
        { "[]", "m.json:1: found an array, expected an object" },
        { "null", "m.json:1: found null, expected an object" },
        { "{" K "} {}", "m.json:1: found {, expected nothing after the end of the object" },
        { "{\n" K ",\n}", "m.json:3: found }, expected a key in double quotes" },
        { "{\n" K "\n\"vcpus\": 1}", "m.json:3: found \"vcpus\", expected a comma or a closing brace" },
        { "{" K ", \"vcpus\" 1}", "m.json:1: found 1, expected a colon after the key" },
        { "{" K ", \"vcpus\": }", "m.json:1: found }, expected a value" },
        { "{" K ", 'vcpus': 1}", "m.json:1: found 'vcpus', expected a key in double quotes" },
        { "{" K ", \"vcpus\": 'x'}", "m.json:1: found 'x', expected a value" },
        { "{" K ", \"vcpus\": 01}", "m.json:1: found 01, expected a number without leading zeroes" },
        { "{" K ", \"vcpus\": 1.}", "m.json:1: found 1., expected a digit after the decimal point" },
        { "{" K ", \"vcpus\": 1e}", "m.json:1: found 1e, expected a digit in the exponent" },
        { "{" K ", \"vcpus\": NaN}", "m.json:1: found NaN, expected a value" },
        { "{" K ", \"prefault\": True}", "m.json:1: found True, expected a value" },
        { "{\"kernel\":\n\"/k\n\"}", "m.json:2: found \"/k, expected a string that ends on its line (control characters are written \\n, \\t, \\u00XX)" },
        { "{\"kernel\": \"/k", "m.json:1: found \"/k, expected a string that ends" },
        { "{\"kernel\": \"\\x\"}", "m.json:1: found \"\\x\", expected one of \\\" \\\\ \\/ \\b \\f \\n \\r \\t \\uXXXX after a backslash" },
        { "{\"kernel\": \"/\\u12g4\"}", "m.json:1: found \"/\\u12g4\", expected four hexadecimal digits after \\u" },
        { "{\"kernel\": \"/\\u0000\"}", "m.json:1: found \"/\\u0000\", expected a string without a NUL character" },
        { "{\"kernel\": \"/\xff\"}", "m.json:1: found \"/?\", expected a string in UTF-8" },
        { "{\"kernel\": \"/\xed\xa0\x80\"}", "m.json:1: found \"/???\", expected a string in UTF-8" },
        { "{\"kernel\": \"/\xc0\xaf\"}", "m.json:1: found \"/??\", expected a string in UTF-8" },
        { "{\n/* " K "}", "m.json:2: found /*, expected a comment that ends" },
        { "{" K ",\n" K "}", "m.json:2: found \"kernel\", expected each key only once in an object" },
        { "{" K ", \"\\u006bernel\": \"/l\"}", "m.json:1: found \"\\u006bernel\", expected each key only once in an object" },
        { "{" K ", \"devices\": {\"a\": {\"type\": \"rng\"},\n\"a\": null}}",
          "m.json:2: found \"a\", expected each key only once in an object" },
        { "[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]", "m.json:1: found [, expected at most 16 levels of objects and arrays" },

        /* a plugin */
        { "{\"plugin\": 5}", "m.json:1: /plugin: found 5, expected an object with the key \"path\" and the plugin's other options" },
        { "{\"plugin\": {}}", "m.json:1: /plugin: found nothing, expected the key \"path\": the program" },
        { "{\"plugin\": {\"path\": \"p\"}}", "m.json:1: /plugin/path: found \"p\", expected an absolute path without empty, \".\" and \"..\" components" },
        { "{" P ",\n" K "}", "m.json:2: /kernel: found \"/k\", expected no \"kernel\" beside \"plugin\", which supplies all of the machine's hardware" },
        { "{\"devices\": {},\n" P "}", "m.json:1: /devices: found an object, expected no \"devices\" beside \"plugin\", which supplies all of the machine's hardware" },
        { "{" P ", \"memory\": \"64M\"}", "m.json:1: /memory: found \"64M\", expected no \"memory\" beside \"plugin\", which supplies all of the machine's hardware" },
        { "{" P ", \"hotplugSlots\": 0}", "m.json:1: /hotplugSlots: found 0, expected no \"hotplugSlots\" beside \"plugin\", which supplies all of the machine's hardware" },
        { "{" P ", \"readyWhen\": \"guest\"}", "m.json:1: /readyWhen: found \"guest\", expected no \"readyWhen\" beside \"plugin\", which supplies all of the machine's hardware" },
        { "{" P ", \"onReboot\": \"stop\"}", "m.json:1: /onReboot: found \"stop\", expected no \"onReboot\" beside \"plugin\", which supplies all of the machine's hardware" },
        { "{" P ", \"vcpu\": 1}", "m.json:1: /vcpu: found 1, expected no \"vcpu\" beside \"plugin\", which supplies all of the machine's hardware" },
        { "{" P ", \"vcpus\": 127}", "m.json:1: /vcpus: found 127, expected an integer from 1 to 126 beside \"plugin\"" },
        { "{\"plugin\": {\"path\": \"/p\", \"type\": \"rng\"}}",
          "m.json:1: /plugin/type: found an unknown key, expected a key of a plugin (path, arguments, readOnlyPaths, readWritePaths, user, group, supplementaryGroups, interface)" },
        { "{\"plugin\": {\"path\": \"/p\", \"gidMap\": [\"0:100:1\"]}}",
          "m.json:1: /plugin/gidMap: found an array, expected no such key: a plugin's groups have their own numbers, and are named in \"group\" and \"supplementaryGroups\"" },
        { "{\"plugin\": {\"path\": \"/p\", \"uidMap\": \"0:100:1\"}}",
          "m.json:1: /plugin/uidMap: found \"0:100:1\", expected no such key: a plugin's user has its own number, and is named in \"user\"" },
        { "{\"plugin\": {\"path\": \"/p\", \"root\": \"/r\"}}",
          "m.json:1: /plugin/root: found \"/r\", expected no such key: a plugin's root directory is that of its unit, and \"readOnlyPaths\" and \"readWritePaths\" are in it" },
        { "{\"plugin\": {\"path\": \"/p\", \"interface\": \"a/b\"}}", "m.json:1: /plugin/interface: found \"a/b\", expected the name of a network interface" },
        { "{\"plugin\": {\"path\": \"/p\", \"readOnlyPaths\": [\"/a:b\"]}}",
          "m.json:1: /plugin/readOnlyPaths/0: found \"/a:b\", expected an absolute path, or SOURCE:DESTINATION of two" },
        { "{\"plugin\": {\"path\": \"/p\", \"readWritePaths\": [\"/a:/b:/c\"]}}",
          "m.json:1: /plugin/readWritePaths/0: found \"/a:/b:/c\", expected an absolute path, or SOURCE:DESTINATION of two" },
        { "{\"plugin\": {\"path\": \"/p\", \"user\": \"0\"}}", "m.json:1: /plugin/user: found \"0\", expected the name of a user" },
        { "{\"plugin\": {\"path\": \"/p\", \"supplementaryGroups\": [\"a b\"]}}",
          "m.json:1: /plugin/supplementaryGroups/0: found \"a b\", expected the name of a group" },
        { "{" K ", \"devices\": {\"a\": {\"type\": \"plugin\"}}}",
          "m.json:1: /devices/a/type: found \"plugin\", expected \"balloon\", \"block\", \"console\", \"fs\", \"input\", \"net\", \"pmem\", \"rng\", \"serial\", \"vhost-user\" or \"vsock\"" },

        /* the machine */
        { "{\n}", "m.json:1: found nothing, expected the key \"kernel\": the absolute path of a kernel image" },
        { "{\n\"kernel\": null}", "m.json:2: /kernel: found null, expected the absolute path of a kernel image" },
        { "{\"kernel\": 5}", "m.json:1: /kernel: found 5, expected an absolute path" },
        { "{\"kernel\": \"k\"}", "m.json:1: /kernel: found \"k\", expected an absolute path without empty, \".\" and \"..\" components" },
        { "{\"kernel\": \"/a/../k\"}", "m.json:1: /kernel: found \"/a/../k\", expected an absolute path without empty, \".\" and \"..\" components" },
        { "{\"kernel\": \"/a//k\"}", "m.json:1: /kernel: found \"/a//k\", expected an absolute path without empty, \".\" and \"..\" components" },
        { "{\"kernel\": \"/\"}", "m.json:1: /kernel: found \"/\", expected an absolute path without empty, \".\" and \"..\" components" },
        { "{\"kernel\": \"/a\\nb\"}", "m.json:1: /kernel: found \"/a\\nb\", expected a path without control characters" },
#if defined(__aarch64__)
        { "{" K ", \"deviceTreeOverlay\": \"o\"}", "m.json:1: /deviceTreeOverlay: found \"o\", expected an absolute path without empty, \".\" and \"..\" components" },
#else
        { "{" K ", \"deviceTreeOverlay\": \"/o\"}",
          "m.json:1: /deviceTreeOverlay: found \"/o\", expected no such key on this architecture, whose guests have no device tree" },
#endif
        { "{" K ",\n\"memroy\": 5}", "m.json:2: /memroy: found an unknown key, expected a key of a machine; did you mean \"memory\"?" },
        { "{" K ", \"VCPUs\": 5}", "m.json:1: /VCPUs: found an unknown key, expected a key of a machine; did you mean \"vcpus\"?" },
        { "{" K ", \"x/y~z\": 5}",
          "m.json:1: /x~1y~0z: found an unknown key, expected a key of a machine (accessGroup, commandLine, credentials, deviceTreeOverlay, devices, "
          "hotplugSlots, hugePages, initrd, kernel, memory, onDeviceFailure, onFailure, onPanic, onReboot, owner, plugin, prefault, readGroup, readyWhen, smbiosStrings, stopTimeout, vcpus)" },
        { "{" K ", \"memory\": \"much\"}",
          "m.json:1: /memory: found \"much\", expected a size from 16M to 16T, in bytes or as a string with the suffix K, M, G or T" },
        { "{" K ", \"memory\": 1000}",
          "m.json:1: /memory: found 1000, expected a size from 16M to 16T, in bytes or as a string with the suffix K, M, G or T" },
        { "{" K ", \"memory\": -1}",
          "m.json:1: /memory: found -1, expected a size from 16M to 16T, in bytes or as a string with the suffix K, M, G or T" },
        { "{" K ", \"memory\": 99999999999999999999999999}",
          "m.json:1: /memory: found 99999999999999999999999999, expected a size from 16M to 16T, in bytes or as a string with the suffix K, M, G or T" },
        { "{" K ", \"memory\": \"18014398509481985K\"}",
          "m.json:1: /memory: found \"18014398509481985K\", expected a size from 16M to 16T, in bytes or as a string with the suffix K, M, G or T" },
        { "{" K ", \"memory\": \"256MB\"}",
          "m.json:1: /memory: found \"256MB\", expected a size from 16M to 16T, in bytes or as a string with the suffix K, M, G or T" },
        { "{" K ", \"memory\": 268435457}", "m.json:1: /memory: found 268435457, expected a multiple of 4K" },
        { "{" K ", \"hugePages\": true}", "m.json:1: /hugePages: found true, expected false, \"2M\" or \"1G\"" },
        { "{" K ", \"hugePages\": \"1G\"}",
          "m.json:1: /hugePages: found \"1G\", expected memory (256 MiB) that is a multiple of the page size \"1G\"" },
        { "{" K ", \"memory\": \"1025M\", \"hugePages\": \"2M\"}",
          "m.json:1: /memory: found \"1025M\", expected memory (1025 MiB) that is a multiple of the page size \"2M\"" },
        { "{" K ", \"prefault\": \"yes\"}", "m.json:1: /prefault: found \"yes\", expected true or false" },
        { "{" K ", \"vcpus\": 0}", "m.json:1: /vcpus: found 0, expected an integer from 1 to 1024" },
        { "{" K ", \"vcpus\": 1025}", "m.json:1: /vcpus: found 1025, expected an integer from 1 to 1024" },
        { "{" K ", \"vcpus\": 2.5}", "m.json:1: /vcpus: found 2.5, expected an integer from 1 to 1024" },
        { "{" K ", \"vcpus\": {\"max\": 4}}", "m.json:1: /vcpus: found an object, expected an integer from 1 to 1024" },
        { "{" K ", \"hotplugSlots\": 17}", "m.json:1: /hotplugSlots: found 17, expected an integer from 0 to 16" },
        { "{" K ", \"hotplugSlots\": true}", "m.json:1: /hotplugSlots: found true, expected an integer from 0 to 16" },
        { "{" K ", \"commandLine\": [\"quiet\"]}", "m.json:1: /commandLine: found an array, expected a string" },
        { "{" K ", \"commandLine\": \"a\\nb\"}", "m.json:1: /commandLine: found \"a\\nb\", expected a command line without control characters" },
        { "{" K ", \"onReboot\": \"halt\"}", "m.json:1: /onReboot: found \"halt\", expected \"reset\" or \"stop\"" },
        { "{" K ", \"onPanic\": 1}", "m.json:1: /onPanic: found 1, expected \"stop\", \"reset\" or \"pause\"" },
        { "{" K ", \"readyWhen\": \"soon\"}", "m.json:1: /readyWhen: found \"soon\", expected \"started\" or \"guest\"" },
        { "{" K ", \"readyWhen\": \"guest\"}",
          "m.json:1: /readyWhen: found \"guest\", expected \"started\", or a vsock device by which the guest can say that it is ready" },
        { "{" K ", \"readyWhen\": \"guest\", \"devices\": {\"v\": {\"type\": \"vsock\", \"notify\": false}}}",
          "m.json:1: /readyWhen: found \"guest\", expected \"started\", or a vsock device by which the guest can say that it is ready" },
        { "{" K ", \"readyWhen\": \"guest\", \"devices\": {\"v\": {\"type\": \"vsock\"}}, \"credentials\": {\"vmm.notify_socket\": \"x\"}}",
          "m.json:1: /readyWhen: found \"guest\", expected \"started\", or a vsock device by which the guest can say that it is ready" },
        { "{" K ", \"devices\": {\"v\": {\"type\": \"vsock\"}, \"w\": {\"type\": \"vsock\"}}}",
          "m.json:1: /devices: found 2 vsock devices, expected at most one: guests know no more" },
        { "{" K ", \"devices\": {\"v\": {\"type\": \"vsock\", \"cid\": 2}}}",
          "m.json:1: /devices/v/cid: found 2, expected an integer from 3 to 4294967294" },
        { "{" K ", \"onFailure\": \"reset\"}", "m.json:1: /onFailure: found \"reset\", expected \"stop\" or \"restart\"" },
        { "{" K ", \"onDeviceFailure\": \"\"}", "m.json:1: /onDeviceFailure: found \"\", expected \"continue\" or \"stop\"" },
        { "{" K ", \"stopTimeout\": \"soon\"}",
          "m.json:1: /stopTimeout: found \"soon\", expected a time of at most 86400 seconds, as an integer or as in \"1min 30s\"" },
        { "{" K ", \"stopTimeout\": \"2d\"}",
          "m.json:1: /stopTimeout: found \"2d\", expected a time of at most 86400 seconds, as an integer or as in \"1min 30s\"" },
        { "{" K ", \"stopTimeout\": \"5 parsecs\"}",
          "m.json:1: /stopTimeout: found \"5 parsecs\", expected a time of at most 86400 seconds, as an integer or as in \"1min 30s\"" },
        { "{" K ", \"accessGroup\": \"a b\"}", "m.json:1: /accessGroup: found \"a b\", expected the name of a group" },
        { "{" K ", \"accessGroup\": \"0\"}", "m.json:1: /accessGroup: found \"0\", expected the name of a group" },
        { "{" K ", \"owner\": 1000}", "m.json:1: /owner: found 1000, expected a string" },
        { "{" K ", \"owner\": \"\"}", "m.json:1: /owner: found \"\", expected the name of a user" },
        { "{" K ", \"owner\": \"alice\\nUser=root\"}", "m.json:1: /owner: found \"alice\\nUser=root\", expected the name of a user" },
        { "{" K ", \"readGroup\": \"-x\"}", "m.json:1: /readGroup: found \"-x\", expected the name of a group" },
        { "{" K ", \"smbiosStrings\": \"x\"}", "m.json:1: /smbiosStrings: found \"x\", expected an array of strings" },
        { "{" K ", \"smbiosStrings\": [\"x\",\n\"\"]}", "m.json:2: /smbiosStrings/1: found \"\", expected a string that is not empty" },
        { "{" K ", \"smbiosStrings\": [null]}", "m.json:1: /smbiosStrings/0: found null, expected a string" },
        { "{" K ", \"credentials\": []}", "m.json:1: /credentials: found an array, expected an object with one member for each credential" },
        { "{" K ", \"credentials\": {\"a=b\": \"\"}}",
          "m.json:1: /credentials/a=b: found a credential with that name, expected a name that can be a file's, without colon and equals sign" },
        { "{" K ", \"credentials\": {\"a\": 5}}",
          "m.json:1: /credentials/a: found 5, expected a string, or an object with the key \"base64\"" },
        { "{" K ", \"credentials\": {\"a\": {}}}",
          "m.json:1: /credentials/a: found nothing, expected the key \"base64\": the credential's bytes in Base64" },
        { "{" K ", \"credentials\": {\"a\": {\"base64\": \"AAA\"}}}",
          "m.json:1: /credentials/a/base64: found \"AAA\", expected Base64 (RFC 4648 §4) with its padding" },
        { "{" K ", \"credentials\": {\"a\": {\"Base64\": \"AAAA\"}}}",
          "m.json:1: /credentials/a/Base64: found an unknown key, expected a key of a binary credential; did you mean \"base64\"?" },

        /* its devices */
        { "{" K ", \"devices\": []}", "m.json:1: /devices: found an array, expected an object with one member for each device" },
        { "{" K ", \"devices\": {\"a b\": {\"type\": \"rng\"}}}",
          "m.json:1: /devices/a b: found a device with that name, expected a name of at most 32 letters, digits, dots, dashes and "
          "underscores, beginning with a letter or digit" },
        { "{" K ", \"devices\": {\"../x\": {\"type\": \"rng\"}}}",
          "m.json:1: /devices/..~1x: found a device with that name, expected a name of at most 32 letters, digits, dots, dashes and "
          "underscores, beginning with a letter or digit" },
        { "{" K ", \"devices\": {\"slot0\": {\"type\": \"rng\"}}}",
          "m.json:1: /devices/slot0: found a device with that name, expected another name: \"slot\" and a number are those of the spare "
          "devices (\"hotplugSlots\")" },
        { "{" K ", \"devices\": {\"a\": \"rng\"}}",
          "m.json:1: /devices/a: found \"rng\", expected an object with the key \"type\" and the device's options" },
        { "{" K ", \"devices\": {\n\"a\": {}}}", "m.json:2: /devices/a: found nothing, expected the key \"type\": a device type" },
        { "{" K ", \"devices\": {\"a\": {\"type\": \"disk\"}}}",
          "m.json:1: /devices/a/type: found \"disk\", expected \"balloon\", \"block\", \"console\", \"fs\", \"input\", \"net\", \"pmem\", \"rng\", \"serial\", \"vhost-user\" or \"vsock\"" },
        { "{" K ", \"devices\": {\"a\": {\"type\": 5}}}",
          "m.json:1: /devices/a/type: found 5, expected \"balloon\", \"block\", \"console\", \"fs\", \"input\", \"net\", \"pmem\", \"rng\", \"serial\", \"vhost-user\" or \"vsock\"" },
        { "{" K ", \"devices\": {\"a\": {\"type\": \"net\"}}}",
          "m.json:1: /devices/a: found nothing, expected the key \"interface\": tap or macvtap interface of the host" },
        { "{" K ", \"devices\": {\"a\": {\"type\": \"net\", \"interface\": \"../x\"}}}",
          "m.json:1: /devices/a/interface: found \"../x\", expected the name of a network interface" },
        { "{" K ", \"devices\": {\"a\": {\"type\": \"net\", \"interface\": \"x\", \"mac\": \"01:00:00:00:00:01\"}}}",
          "m.json:1: /devices/a/mac: found \"01:00:00:00:00:01\", expected the Ethernet address of a station, as in \"52:54:00:12:34:56\"" },
        { "{" K ", \"devices\": {\"a\": {\"type\": \"net\", \"interface\": \"x\", \"queuePairs\": 17}}}",
          "m.json:1: /devices/a/queuePairs: found 17, expected an integer from 1 to 16" },
        { "{" K ", \"devices\": {\"a\": {\"type\": \"block\", \"format\": \"qcow2\"}}}",
          "m.json:1: /devices/a: found nothing, expected the key \"path\": image file or block device" },
        { "{" K ", \"devices\": {\"a\": {\"type\": \"block\", \"format\": \"qed\"}}}",
          "m.json:1: /devices/a/format: found \"qed\", expected \"raw\", \"qcow2\", \"vmdk\", \"vhdx\", \"luks\" or \"nbd\"" },
        { "{" K ", \"devices\": {\"a\": {\"type\": \"block\", \"format\": \"qcow2\", \"path\": \"/a\", \"serial\": \"x\"}}}",
          "m.json:1: /devices/a/serial: found \"x\", expected no \"serial\", or \"format\": \"raw\" beside it" },
        { "{" K ", \"devices\": {\"a\": {\"type\": \"block\", \"path\": \"/a\", \"backing\": [\"/b\"]}}}",
          "m.json:1: /devices/a/backing: found an array, expected no \"backing\", or \"format\": \"qcow2\" beside it" },
        { "{" K ", \"devices\": {\"a\": {\"type\": \"block\", \"format\": \"qcow2\", \"path\": \"/a\", \"backing\": []}}}",
          "m.json:1: /devices/a/backing: found an array, expected an array of 1 to 32 strings" },
        { "{" K ", \"devices\": {\"a\": {\"type\": \"block\", \"format\": \"qcow2\", \"path\": \"/a\", \"backing\": [\"/b\", \"c\"]}}}",
          "m.json:1: /devices/a/backing/1: found \"c\", expected an absolute path without empty, \".\" and \"..\" components" },
        { "{" K ", \"devices\": {\"a\": {\"type\": \"block\", \"format\": \"nbd\"}}}",
          "m.json:1: /devices/a: found nothing, expected the key \"server\": NBD server: unix:PATH, ADDRESS:PORT or [ADDRESS]:PORT" },
        { "{" K ", \"devices\": {\"a\": {\"type\": \"block\", \"format\": \"nbd\", \"server\": \"a.example:10809\"}}}",
          "m.json:1: /devices/a/server: found \"a.example:10809\", expected unix:PATH, ADDRESS:PORT or [ADDRESS]:PORT" },
        { "{" K ", \"devices\": {\"a\": {\"type\": \"block\", \"format\": \"nbd\", \"server\": \"192.0.2.7:1\", \"path\": \"/a\"}}}",
          "m.json:1: /devices/a/path: found \"/a\", expected no \"path\", or \"format\": \"raw\", \"qcow2\", \"vmdk\", \"vhdx\" or \"luks\" beside it" },
        { "{" K ", \"devices\": {\"a\": {\"type\": \"block\", \"format\": \"luks\", \"path\": \"/a\"}}}",
          "m.json:1: /devices/a: found nothing, expected the key \"keyFile\": the file with the passphrase; or the key \"keyCredential\"" },
        { "{" K ", \"devices\": {\"a\": {\"type\": \"block\", \"format\": \"luks\", \"path\": \"/a\", \"keyFile\": \"/k\", \"keyCredential\": \"k\"}}}",
          "m.json:1: /devices/a/keyCredential: found \"k\", expected no \"keyCredential\" beside \"keyFile\"" },
        { "{" K ", \"devices\": {\"a\": {\"type\": \"block\", \"format\": \"luks\", \"path\": \"/a\", \"keyCredential\": \"../k\"}}}",
          "m.json:1: /devices/a/keyCredential: found \"../k\", expected the name of a credential" },
        { "{" K ", \"devices\": {\"a\": {\"type\": \"net\"}}}",
          "m.json:1: /devices/a: found nothing, expected the key \"interface\": tap or macvtap interface of the host" },
        { "{" K ", \"devices\": {\"a\": {\"type\": \"net\", \"backend\": \"passt\", \"interface\": \"t\"}}}",
          "m.json:1: /devices/a/interface: found \"t\", expected no \"interface\", or \"backend\": \"tap\" beside it" },
        { "{" K ", \"devices\": {\"a\": {\"type\": \"net\", \"backend\": \"passt\", \"tcpPorts\": [\"--x\"]}}}",
          "m.json:1: /devices/a/tcpPorts/0: found \"--x\", expected ports as in passt(1)" },
        { "{" K ", \"devices\": {\"a\": {\"type\": \"fs\", \"path\": \"/s\"}}}",
          "m.json:1: /devices/a: found nothing, expected the key \"tag\": name by which the guest mounts it" },
        { "{" K ", \"devices\": {\"a\": {\"type\": \"fs\", \"path\": \"/s\", \"tag\": \"t\", \"user\": \"a b\"}}}",
          "m.json:1: /devices/a/user: found \"a b\", expected the name of a user" },
        { "{" K ", \"devices\": {\"a\": {\"type\": \"vhost-user\", \"virtioId\": 1, \"command\": [\"/x\"]}}}",
          "m.json:1: /devices/a/command: found an array, expected the absolute path of a program and its arguments, one of them with {listen}, {fd} or {socket}" },
        { "{" K ", \"devices\": {\"a\": {\"type\": \"vhost-user\", \"virtioId\": 64, \"command\": [\"/x\", \"{fd}\"]}}}",
          "m.json:1: /devices/a/virtioId: found 64, expected an integer from 1 to 63" },
        { "{" K ", \"devices\": {\"a\": {\"type\": \"block\"}}}",
          "m.json:1: /devices/a: found nothing, expected the key \"path\": image file or block device" },
        { "{" K ", \"devices\": {\"a\": {\"type\": \"block\", \"path\": \"disk.img\"}}}",
          "m.json:1: /devices/a/path: found \"disk.img\", expected an absolute path without empty, \".\" and \"..\" components" },
        { "{" K ", \"devices\": {\"a\": {\"type\": \"block\", \"path\": \"/d\",\n\n\"readonly\": true}}}",
          "m.json:3: /devices/a/readonly: found an unknown key, expected a key of a device of type block; did you mean \"readOnly\"?" },
        { "{" K ", \"devices\": {\"a\": {\"type\": \"rng\", \"colour\": 1}}}",
          "m.json:1: /devices/a/colour: found an unknown key, expected a key of a device of type rng (type)" },
        { "{" K ", \"devices\": {\"a\": {\"type\": \"block\", \"path\": \"/d\", \"readOnly\": 1}}}",
          "m.json:1: /devices/a/readOnly: found 1, expected true or false" },
        { "{" K ", \"devices\": {\"a\": {\"type\": \"block\", \"path\": \"/d\", \"queues\": 17}}}",
          "m.json:1: /devices/a/queues: found 17, expected an integer from 1 to 16" },
        { "{" K ", \"devices\": {\"a\": {\"type\": \"block\", \"path\": \"/d\", \"blockSize\": 1024}}}",
          "m.json:1: /devices/a/blockSize: found 1024, expected 512 or 4096" },
        { "{" K ", \"devices\": {\"a\": {\"type\": \"block\", \"path\": \"/d\", \"serial\": \"123456789012345678901\"}}}",
          "m.json:1: /devices/a/serial: found \"123456789012345678901\", expected a string of at most 20 bytes" },
        { "{" K ", \"devices\": {\"a\": {\"type\": \"block\", \"path\": \"/d\", \"serial\": \"\\t\"}}}",
          "m.json:1: /devices/a/serial: found \"\\t\", expected a string without control characters" },
        { "{" K ", \"devices\": {\"a\": {\"type\": \"console\", \"history\": \"1G\"}}}",
          "m.json:1: /devices/a/history: found \"1G\", expected a size from 0 to 16M, in bytes or as a string with the suffix K, M, G or T" },
        { "{" K ", \"devices\": {\"a\": {\"type\": \"block\", \"path\": \"/a\", \"root\": true},\n\"b\": {\"type\": \"block\", \"path\": \"/b\", \"root\": true}}}",
          "m.json:2: /devices/b/root: found true, expected only one root disk, and \"a\" is one already" },
        { "{" K ", \"devices\": {\"a\": {\"type\": \"block\", \"path\": \"/a\", \"readOnly\": true},\n\"b\": {\"type\": \"block\", \"path\": \"/a\"}}}",
          "m.json:2: /devices/b/path: found \"/a\", expected a file of its own: \"a\" uses this one, too, and one of them writes" },
        { "{" K ", \"devices\": {\"a\": {\"type\": \"serial\"},\n\"b\": {\"type\": \"serial\"}}}",
          "m.json:2: /devices/b: found port \"com1\", expected a port that \"a\" does not have already" },
        { "{" K ", \"devices\": {\"a\": {\"type\": \"serial\", \"port\": \"com2\"},\n\"b\": {\"type\": \"serial\", \"port\": \"com2\"}}}",
          "m.json:2: /devices/b/port: found port \"com2\", expected a port that \"a\" does not have already" },
        { "{" K ", \"devices\": {\"a\": {\"type\": \"serial\", \"output\": \"file\"}}}",
          "m.json:1: /devices/a: found nothing, expected the key \"path\": the file, where \"output\" is \"file\"" },
        { "{" K ", \"devices\": {\"a\": {\"type\": \"serial\", \"path\": \"/log\"}}}",
          "m.json:1: /devices/a/path: found \"/log\", expected no path, or \"output\": \"file\" beside it" },
        { "{" K ", \"devices\": {\"a\": {\"type\": \"input\", \"powerKey\": true},\n\"b\": {\"type\": \"input\", \"powerKey\": true}}}",
          "m.json:2: /devices/b/powerKey: found true, expected only one power key, and \"a\" has one already" },
        { "{" K ", \"devices\": {\"a\": {\"type\": \"input\", \"path\": \"/dev/input/event0\", \"powerKey\": true}}}",
          "m.json:1: /devices/a/powerKey: found true, expected no path beside it: only a keyboard of our own is sure to have a power key" },
        { "{" K ", \"devices\": {\"a\": {\"type\": \"pmem\"}}}",
          "m.json:1: /devices/a: found nothing, expected the key \"path\": file or block device that is the memory; its size is a multiple of 2 MiB" },
        { "{" K ", \"devices\": {\"a\": {\"type\": \"pmem\", \"path\": \"/a\", \"dax\": true}}}",
          "m.json:1: /devices/a/dax: found true, expected no \"dax\", or \"root\": true beside it" },
        { "{" K ", \"devices\": {\"a\": {\"type\": \"pmem\", \"path\": \"/a\"},\n\"b\": {\"type\": \"block\", \"path\": \"/a\"}}}",
          "m.json:2: /devices/b/path: found \"/a\", expected a file of its own: \"a\" uses this one, too, and one of them writes" },
        { "{" K ", \"devices\": {\"a\": {\"type\": \"pmem\", \"path\": \"/a\"}, \"b\": {\"type\": \"pmem\", \"path\": \"/b\"},"
          "\"c\": {\"type\": \"pmem\", \"path\": \"/c\"}, \"d\": {\"type\": \"pmem\", \"path\": \"/d\"}, \"e\": {\"type\": \"pmem\", \"path\": \"/e\"},"
          "\"f\": {\"type\": \"pmem\", \"path\": \"/f\"}, \"g\": {\"type\": \"pmem\", \"path\": \"/g\"}}}",
          "m.json:1: /devices: found 7 pmem devices, expected at most 6" },
        { "{" K ", \"devices\": {\"a\": {\"type\": \"console\", \"ports\": [\"x\", \"y\", \"x\"]}}}",
          "m.json:1: /devices/a/ports/2: found \"x\", expected a name that no other port of \"a\" has" },
        { "{" K ", \"devices\": {\"a\": {\"type\": \"console\", \"ports\": [\"../x\"]}}}",
          "m.json:1: /devices/a/ports/0: found \"../x\", expected a name of letters, digits, dots, dashes and underscores, beginning with "
          "a letter or digit" },
        { "{" K ", \"devices\": {\"a\": {\"type\": \"console\", \"ports\": [\"1\",\"2\",\"3\",\"4\",\"5\",\"6\",\"7\",\"8\",\"9\",\"10\",\"11\","
          "\"12\",\"13\",\"14\",\"15\",\"16\",\"17\",\"18\",\"19\",\"20\",\"21\",\"22\",\"23\",\"24\",\"25\",\"26\",\"27\",\"28\",\"29\",\"30\",\"31\"]}}}",
          "m.json:1: /devices/a/ports: found an array, expected an array of 1 to 30 strings" },
        { "{" K ", \"devices\": {\"a\": {\"type\": \"serial\", \"port\": \"lpt1\"}}}",
          "m.json:1: /devices/a/port: found \"lpt1\", expected \"com1\", \"com2\", \"com3\" or \"com4\"" },
};

static char *parse(const char *text, size_t size, const char *name, MachineDefinition **ret) {
        _cleanup_(definition_error_done) DefinitionError error = {};
        int r;

        r = definition_parse(text, size, "m.json", name, ret, &error);
        if (r >= 0)
                return NULL;
        assert_int_equal(r, -EBADMSG);
        return definition_error_to_string(&error);
}

static bool is_refused(const char *text, const char *expected) {
        _cleanup_(machine_definition_freep) MachineDefinition *d = NULL;
        _cleanup_free_ char *error = parse(text, strlen(text), "m", &d);

        if (error && !d && streq(error, expected))
                return true;
        print_error("text:     %s\nexpected: %s\ngot:      %s\n", text, expected, error ? error : "no error");
        return false;
}

static MachineDefinition *assert_taken(const char *text) {
        MachineDefinition *d = NULL;
        _cleanup_free_ char *error = parse(text, strlen(text), "m", &d);

        if (error)
                fail_msg("%s", error);
        assert_non_null(d);
        return d;
}

static void refuses_every_wrong_definition_with_its_own_words(void **state) {
        size_t bad = 0;

        for (size_t i = 0; i < ELEMENTSOF(refused); i++)
                if (!is_refused(refused[i].text, refused[i].error))
                        bad++;
        assert_int_equal(bad, 0);
}

static void refuses_a_nul_byte(void **state) {
        MachineDefinition *d = NULL;
        _cleanup_free_ char *error = parse("{\n\0}", 4, "m", &d);

        assert_string_equal(error, "m.json:2: found the end of the text, expected text without NUL bytes");
}

static void refuses_more_text_than_a_mebibyte(void **state) {
        size_t size = MIB(1) + 1;
        _cleanup_free_ char *text = malloc(size), *error = NULL;
        MachineDefinition *d = NULL;

        assert_non_null(text);
        memset(text, ' ', size);
        error = parse(text, size, "m", &d);
        assert_string_equal(error, "m.json:1: found the end of the text, expected at most 1 MiB of text");
}

static void refuses_names_that_cannot_name_a_machine(void **state) {
        static const char *const names[] = { "", ".m", "-m", "_m", "a/b", "a b", "a:b", "ä",
                "0123456789012345678901234567890123456789012345678" };

        for (size_t i = 0; i < ELEMENTSOF(names); i++) {
                MachineDefinition *d = NULL;
                _cleanup_free_ char *error = parse("{" K "}", strlen("{" K "}"), names[i], &d);

                assert_false(machine_name_is_valid(names[i]));
                assert_non_null(error);
        }
        assert_true(machine_name_is_valid("a.b-c_D0"));
        assert_true(device_name_is_valid("0"));
        assert_false(device_name_is_valid("012345678901234567890123456789012"));
}

static void refuses_a_device_whose_unit_would_have_too_long_a_name(void **state) {
        _cleanup_(machine_definition_freep) MachineDefinition *d = NULL;
        const char *text = "{" K ", \"devices\": {\"d------------------------------e\": {\"type\": \"rng\"}}}";
        _cleanup_free_ char *error = parse(text, strlen(text), "m----------------------------------------------n", &d);

        assert_string_equal(error,
                "m.json:1: /devices/d------------------------------e: found a name that is too long with that of the machine, expected "
                "a shorter name, or one with fewer dashes: the name of its unit would have 330 bytes, and 255 are possible");
        error = mfree(error);
        error = parse(text, strlen(text), "m", &d);
        assert_null(error);
}

static void refuses_more_devices_than_the_bus_has_slots(void **state) {
        for (unsigned n = 30; n <= 65; n += n == 31 ? 34 : 1) {
                _cleanup_free_ char *text = NULL, *error = NULL;
                MachineDefinition *d = NULL;
                size_t size;
                FILE *f = open_memstream(&text, &size);

                (void) fprintf(f, "{" K ", \"devices\": {");
                for (unsigned i = 0; i < n; i++)
                        (void) fprintf(f, "%s\"d%u\": {\"type\": \"rng\"}", i > 0 ? "," : "", i);
                (void) fprintf(f, "}}");
                (void) fclose(f);
                error = parse(text, size, "m", &d);
                if (n == 30)
                        assert_null(error);
                else if (n == 31)
                        assert_string_equal(error, "m.json:1: /devices: found 31 PCI devices, expected at most 30, the slots of the PCI bus");
                else
                        assert_string_equal(error, "m.json:1: /devices: found 65 devices, expected at most 64");
                d = machine_definition_free(d);
        }
}

/* A definition with `n` bytes of command line. */
static char *with_command_line(size_t n) {
        char *text = NULL;
        size_t size;
        FILE *f = open_memstream(&text, &size);

        (void) fprintf(f, "{" K ", \"devices\": {\"c\": {\"type\": \"console\"}}, \"commandLine\": \"%0*d\"}", (int) n, 0);
        (void) fclose(f);
        return text;
}

static void refuses_a_command_line_that_leaves_no_room_for_the_devices(void **state) {
        _cleanup_(machine_definition_freep) MachineDefinition *d = NULL;
        _cleanup_free_ char *fits = with_command_line(2047 - 13), *too_long = with_command_line(2047 - 12), *error = NULL,
                            *line = NULL;

        error = parse(too_long, strlen(too_long), "m", &d);
        assert_non_null(strstr(error, "m.json:1: /commandLine: found \"0000"));
        assert_non_null(strstr(error, "expected a command line of at most 2034 bytes, as the devices add 13 of 2047"));

        d = assert_taken(fits);
        assert_int_equal(machine_definition_command_line(d, &line), 0);
        assert_int_equal(strlen(line), 2047);
}

static void refuses_more_smbios_strings_than_fit(void **state) {
        _cleanup_free_ char *text = NULL, *error = NULL;
        MachineDefinition *d = NULL;
        size_t size;
        FILE *f = open_memstream(&text, &size);

        (void) fprintf(f, "{" K ", \"smbiosStrings\": [\"x\"");
        for (unsigned i = 1; i < 256; i++)
                (void) fprintf(f, ",\"x\"");
        (void) fprintf(f, "]}");
        (void) fclose(f);
        error = parse(text, size, "m", &d);
        assert_string_equal(error,
                "m.json:1: /smbiosStrings/255: found \"x\", expected no more than 255 credentials and SMBIOS strings of 49152 bytes in all");
}

static void keeps_control_characters_out_of_messages(void **state) {
        assert_true(is_refused("{" K ", \"\\u001b[2J\": 1, \"devices\": {}}",
                "m.json:1: /?[2J: found an unknown key, expected a key of a machine (accessGroup, commandLine, credentials, deviceTreeOverlay, devices, "
                "hotplugSlots, hugePages, initrd, kernel, memory, onDeviceFailure, onFailure, onPanic, onReboot, owner, plugin, prefault, readGroup, readyWhen, smbiosStrings, stopTimeout, vcpus)"));
        assert_true(is_refused("{" K ", \x1b[2J: 1}", "m.json:1: found ?[2J, expected a key in double quotes"));
}

static void shortens_long_texts_between_characters(void **state) {
        assert_true(is_refused("{" K ", \"memory\": \"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaäääää\"}",
                "m.json:1: /memory: found \"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa…, expected a size from 16M to 16T, "
                "in bytes or as a string with the suffix K, M, G or T"));
}

static void takes_the_least_definition_with_its_defaults(void **state) {
        _cleanup_(machine_definition_freep) MachineDefinition *d = assert_taken("{" K "}");
        _cleanup_free_ char *line = NULL;

        assert_string_equal(d->name, "m");
        assert_int_equal(d->memory, MIB(256));
        assert_int_equal(d->vcpus, 1);
        assert_int_equal(d->hotplug_slots, 4);
        assert_int_equal(d->huge_page_size, 0);
        assert_false(d->prefault);
        assert_string_equal(d->kernel, "/k");
        assert_null(d->initrd);
        assert_string_equal(d->command_line, "");
        assert_int_equal(d->on_reboot, ON_REBOOT_RESET);
        assert_int_equal(d->on_panic, ON_PANIC_STOP);
        assert_int_equal(d->on_device_failure, ON_DEVICE_FAILURE_CONTINUE);
        assert_int_equal(d->on_failure, ON_FAILURE_STOP);
        assert_int_equal(d->stop_timeout_usec, 90 * USEC_PER_SEC);
        assert_null(d->owner);
        assert_null(d->access_group);
        assert_null(d->read_group);
        assert_null(d->smbios_strings);
        assert_int_equal(d->n_devices, 0);
        assert_int_equal(machine_definition_command_line(d, &line), 0);
        assert_string_equal(line, "");
}

static void takes_a_device_tree_overlay_where_there_is_a_device_tree(void **state) {
#if defined(__aarch64__)
        _cleanup_(machine_definition_freep) MachineDefinition *d = assert_taken("{" K ", \"deviceTreeOverlay\": \"/o\"}");

        assert_string_equal(d->device_tree_overlay, "/o");
#else
        _cleanup_(machine_definition_freep) MachineDefinition *d = assert_taken("{" K "}");

        assert_null(d->device_tree_overlay);
#endif
}

static void takes_everything_a_definition_can_say(void **state) {
        _cleanup_(machine_definition_freep) MachineDefinition *d = assert_taken(
                "\xef\xbb\xbf// the machine\n"
                "{\"$schema\": \"x\", \"kernel\": \"/boot/vmlinuz /* no comment\", /* \" */ \"initrd\": \"/i\", \"memory\": \"2G\", \"hugePages\": \"2M\",\n"
                "\"prefault\": true, \"vcpus\": 1024, \"hotplugSlots\": 16, \"commandLine\": \"quiet\", \"onReboot\": \"stop\", \"onPanic\": \"pause\",\n"
                "\"onDeviceFailure\": \"stop\", \"onFailure\": \"restart\", \"stopTimeout\": \"1min 30s 500ms\", \"accessGroup\": \"wheel\",\n"
                "\"owner\": \"alice\", \"readGroup\": \"_staff-2\",\n"
                "\"smbiosStrings\": [\"a\"], \"credentials\": {\"n\": \"v=1\", \"b\": {\"base64\": \"AA==\"}},\n"
                "\"devices\": {\"com2\": {\"type\": \"serial\", \"port\": \"com2\", \"output\": \"file\", \"path\": \"/log\"},\n"
                "\"com1\": {\"type\": \"serial\", \"console\": false}, \"hvc\": {\"type\": \"console\", \"history\": \"64K\"},\n"
                "\"data\": {\"type\": \"block\", \"path\": \"/dev/vg/data\"},\n"
                "\"root\": {\"type\": \"block\", \"path\": \"/r\", \"root\": true, \"readOnly\": true, \"queues\": 4, \"blockSize\": 4096},\n"
                "\"rng\": {\"type\": \"rng\"}}}");
        _cleanup_(string_array_freep) char **arguments = NULL;
        _cleanup_free_ char *line = NULL;

        assert_string_equal(d->kernel, "/boot/vmlinuz /* no comment");
        assert_int_equal(d->memory, GIB(2));
        assert_int_equal(d->huge_page_size, MIB(2));
        assert_true(d->prefault);
        assert_int_equal(d->vcpus, 1024);
        assert_int_equal(d->hotplug_slots, 16);
        assert_int_equal(d->on_reboot, ON_REBOOT_STOP);
        assert_int_equal(d->on_panic, ON_PANIC_PAUSE);
        assert_int_equal(d->on_device_failure, ON_DEVICE_FAILURE_STOP);
        assert_int_equal(d->on_failure, ON_FAILURE_RESTART);
        assert_int_equal(d->stop_timeout_usec, 90500 * USEC_PER_MSEC);
        assert_string_equal(d->access_group, "wheel");
        assert_string_equal(d->owner, "alice");
        assert_string_equal(d->read_group, "_staff-2");
        assert_string_equal(d->smbios_strings[0], "a");
        assert_string_equal(d->smbios_strings[1], "io.systemd.credential:n=v=1");
        assert_string_equal(d->smbios_strings[2], "io.systemd.credential.binary:b=AA==");
        assert_null(d->smbios_strings[3]);
        assert_int_equal(d->n_devices, 6);
        assert_string_equal(d->devices[4].name, "root");
        assert_int_equal(device_definition_queues(&d->devices[4]), 4);
        assert_int_equal(device_definition_queues(&d->devices[3]), 1);
        assert_int_equal(device_definition_unsigned(&d->devices[2], "history", 0), KIB(64));
        assert_true(device_definition_boolean(&d->devices[4], "readOnly", false));
        assert_false(device_definition_boolean(&d->devices[3], "readOnly", false));

        assert_int_equal(machine_definition_command_line(d, &line), 0);
        assert_string_equal(line, "quiet console=ttyS1 console=hvc0 root=/dev/vdb ro");

        assert_int_equal(device_definition_arguments(&d->devices[4], &arguments), 0);
        assert_string_equal(arguments[0], "block");
        assert_string_equal(arguments[1], "--path=/r");
        assert_string_equal(arguments[2], "--read-only=yes");
        assert_string_equal(arguments[3], "--queues=4");
        assert_string_equal(arguments[4], "--block-size=4096");
        assert_null(arguments[5]);
}

static void takes_a_plugin_in_the_place_of_everything_else(void **state) {
        static const char text[] = "{\"plugin\": {\"path\": \"/opt/p\", \"arguments\": [\"-x\", \"\", \"a b\"], \"readOnlyPaths\": [\"/a\", \"/b:/c\"],"
                "\"readWritePaths\": [\"/dev/null\"], \"user\": \"u\", \"group\": \"g\", \"supplementaryGroups\": [\"h\"]}, \"vcpus\": 126}";
        _cleanup_(machine_definition_freep) MachineDefinition *d = NULL;
        _cleanup_(definition_error_done) DefinitionError error = {};
        _cleanup_(string_array_freep) char **arguments = NULL;

        assert_int_equal(definition_parse(text, strlen(text), "m.json", "m", &d, &error), 0);
        assert_null(d->kernel);
        assert_int_equal(d->memory, 0);
        assert_int_equal(d->vcpus, 126);
        assert_int_equal(d->hotplug_slots, 0);
        assert_int_equal(d->stop_timeout_usec, USEC_PER_SEC);
        assert_int_equal(d->n_devices, 1);
        assert_ptr_equal(d->plugin, &d->devices[0]);
        assert_ptr_equal(d->plugin->type, &plugin_type);
        assert_true(device_definition_is_foreign(d->plugin));
        assert_int_equal(device_definition_arguments(d->plugin, &arguments), 0);
        assert_string_equal(arguments[0], "plugin");
        assert_string_equal(arguments[1], "--path=/opt/p");
        assert_string_equal(arguments[2], "--arguments=-x");
        assert_string_equal(arguments[3], "--arguments=");
        assert_string_equal(arguments[4], "--arguments=a b");
        assert_null(arguments[5]);
}

static void a_guest_with_sockets_is_told_where_to_say_that_it_is_ready(void **state) {
        static const char credential[] = "io.systemd.credential:vmm.notify_socket=vsock-stream:2:8660";
        static const struct { const char *more, *first, *second; } cases[] = {
                { "\"devices\": {\"v\": {\"type\": \"vsock\"}}", credential, NULL },
                { "\"devices\": {\"v\": {\"type\": \"vsock\", \"notify\": true}}, \"smbiosStrings\": [\"a\"], \"readyWhen\": \"guest\"", "a", credential },
                { "\"devices\": {\"v\": {\"type\": \"vsock\", \"notify\": false}}", NULL, NULL },
                { "\"devices\": {\"r\": {\"type\": \"rng\"}}", NULL, NULL },
                /* Somebody else is to hear it. */
                { "\"devices\": {\"v\": {\"type\": \"vsock\"}}, \"credentials\": {\"vmm.notify_socket\": \"vsock:2:5\"}",
                  "io.systemd.credential:vmm.notify_socket=vsock:2:5", NULL },
                { "\"devices\": {\"v\": {\"type\": \"vsock\"}}, \"credentials\": {\"vmm.notify_socket\": {\"base64\": \"AA==\"}}",
                  "io.systemd.credential.binary:vmm.notify_socket=AA==", NULL },
                { "\"devices\": {\"v\": {\"type\": \"vsock\"}}, \"credentials\": {\"vmm.notify_socket2\": \"x\"}",
                  "io.systemd.credential:vmm.notify_socket2=x", credential },
        };

        for (size_t i = 0; i < ELEMENTSOF(cases); i++) {
                _cleanup_(machine_definition_freep) MachineDefinition *d = NULL;
                _cleanup_free_ char *text = NULL;

                assert_true(asprintf(&text, "{" K ", %s}", cases[i].more) > 0);
                d = assert_taken(text);
                if (!cases[i].first) {
                        assert_null(d->smbios_strings);
                        assert_false(d->guest_notifies);
                        continue;
                }
                assert_string_equal(d->smbios_strings[0], cases[i].first);
                assert_true(cases[i].second ? streq(d->smbios_strings[1], cases[i].second) : !d->smbios_strings[1]);
                assert_int_equal(d->guest_notifies, streq(cases[i].first, credential) || cases[i].second);
                assert_int_equal(d->ready_when, strstr(cases[i].more, "readyWhen") ? READY_WHEN_GUEST : READY_WHEN_STARTED);
        }
}

static void takes_persistent_memory_as_root(void **state) {
        static const char pmem[] = "{" K ", \"commandLine\": \"%s\", \"devices\": {\"a\": {\"type\": \"pmem\", \"path\": \"/a\"},"
                "\"d\": {\"type\": \"block\", \"path\": \"/d\"},"
                "\"b\": {\"type\": \"pmem\", \"path\": \"/b\", \"root\": true, \"dax\": true, \"readOnly\": true}}}";
        static const struct { const char *own, *line; } cases[] = {
                { "", "root=/dev/pmem1 ro rootflags=dax" },
                { "rootflags=noatime", "rootflags=noatime root=/dev/pmem1 ro" },
                { "root=LABEL=x", "root=LABEL=x" },
        };

        for (size_t i = 0; i < ELEMENTSOF(cases); i++) {
                _cleanup_(machine_definition_freep) MachineDefinition *d = NULL;
                _cleanup_(string_array_freep) char **arguments = NULL;
                _cleanup_free_ char *line = NULL, *text = NULL;

                assert_true(asprintf(&text, pmem, cases[i].own) >= 0);
                d = assert_taken(text);
                assert_int_equal(machine_definition_command_line(d, &line), 0);
                assert_string_equal(line, cases[i].line);
                assert_int_equal(device_definition_arguments(&d->devices[2], &arguments), 0);
                assert_string_equal(arguments[0], "pmem");
                assert_string_equal(arguments[1], "--path=/b");
                assert_string_equal(arguments[2], "--read-only=yes");
                assert_null(arguments[3]);
        }
}

static void gives_a_console_two_queues_for_each_port(void **state) {
        _cleanup_(machine_definition_freep) MachineDefinition *d = assert_taken(
                "{" K ", \"devices\": {\"a\": {\"type\": \"console\"}, \"b\": {\"type\": \"console\", \"ports\": [\"org.qemu.guest_agent.0\", \"x\"]}}}");
        _cleanup_(string_array_freep) char **arguments = NULL;

        assert_int_equal(device_definition_queues(&d->devices[0]), 2);
        assert_int_equal(device_definition_queues(&d->devices[1]), 8);
        assert_int_equal(device_definition_arguments(&d->devices[1], &arguments), 0);
        assert_string_equal(arguments[1], "--ports=org.qemu.guest_agent.0");
        assert_string_equal(arguments[2], "--ports=x");
        assert_null(arguments[3]);
}

static void leaves_the_users_own_console_and_root_alone(void **state) {
        _cleanup_(machine_definition_freep) MachineDefinition *d = assert_taken(
                "{" K ", \"commandLine\": \"x.root=1 console=tty0 root=LABEL=x\", \"devices\": {\"c\": {\"type\": \"console\"}, "
                "\"r\": {\"type\": \"block\", \"path\": \"/r\", \"root\": true}}}");
        _cleanup_free_ char *line = NULL;

        assert_int_equal(machine_definition_command_line(d, &line), 0);
        assert_string_equal(line, "x.root=1 console=tty0 root=LABEL=x");
}

static void takes_a_disk_that_two_devices_only_read(void **state) {
        _cleanup_(machine_definition_freep) MachineDefinition *d = assert_taken(
                "{" K ", \"devices\": {\"a\": {\"type\": \"block\", \"path\": \"/a\", \"readOnly\": true}, "
                "\"b\": {\"type\": \"block\", \"path\": \"/a\", \"readOnly\": true}}}");

        assert_int_equal(d->n_devices, 2);
}

static void takes_times_as_systemd_writes_them(void **state) {
        static const struct {
                const char *text;
                uint64_t usec;
        } times[] = {
                { "0", 0 }, { "\"90\"", 90 * USEC_PER_SEC }, { "\"2 min\"", 120 * USEC_PER_SEC }, { "\"1h30m\"", 5400 * USEC_PER_SEC },
                { "\"1s 500ms\"", 1500 * USEC_PER_MSEC }, { "\"1d\"", 86400 * USEC_PER_SEC }, { "86400", 86400 * USEC_PER_SEC },
        };

        for (size_t i = 0; i < ELEMENTSOF(times); i++) {
                _cleanup_(machine_definition_freep) MachineDefinition *d = NULL;
                char text[100];

                (void) snprintf(text, sizeof(text), "{" K ", \"stopTimeout\": %s}", times[i].text);
                d = assert_taken(text);
                assert_int_equal(d->stop_timeout_usec, times[i].usec);
        }
}

static void takes_what_it_wrote(void **state) {
        _cleanup_(machine_definition_freep) MachineDefinition *d = assert_taken(
                "{" K ", \"commandLine\": \"\\u00e4 \\\\ \\\" \", \"devices\": {\"b\": {\"type\": \"rng\"}, \"a\": {\"type\": \"rng\"}}}");
        _cleanup_(machine_definition_freep) MachineDefinition *again =
                assert_taken(json_object_to_json_string_ext(d->json, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE));

        assert_string_equal(again->command_line, "ä \\ \" ");
        assert_string_equal(again->devices[0].name, "b");
        assert_string_equal(again->devices[1].name, "a");
}

/* Files. */

static char directory[] = "/tmp/test-definition-XXXXXX";

static void put(const char *path, const char *text) {
        _cleanup_free_ char *whole = NULL;
        int fd;

        assert_true(asprintf(&whole, "%s%s", directory, path) > 0);
        for (char *slash = strchr(whole + strlen(directory) + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
                *slash = 0;
                (void) mkdir(whole, 0755);
                *slash = '/';
        }
        (void) unlink(whole);
        if (!text) {
                assert_int_equal(symlink("/dev/null", whole), 0);
                return;
        }
        fd = open(whole, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
        assert_true(fd >= 0);
        assert_int_equal(write_full(fd, text, strlen(text)), 0);
        (void) close(fd);
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw) {
        return remove(path);
}

static int make_directory(void **state) {
        strcpy(directory, "/tmp/test-definition-XXXXXX");
        return mkdtemp(directory) ? 0 : -1;
}

static int remove_directory(void **state) {
        return nftw(directory, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

static char *load_error(const char *name) {
        _cleanup_(definition_error_done) DefinitionError error = {};
        MachineDefinition *d = NULL;
        char *text;

        assert_int_equal(definition_load(directory, name, &d, &error), -EBADMSG);
        text = definition_error_to_string(&error);
        assert_non_null(text);
        /* Without the directory, which differs from run to run. */
        assert_int_equal(strncmp(text, directory, strlen(directory)), 0);
        memmove(text, text + strlen(directory), strlen(text) - strlen(directory) + 1);
        return text;
}

static MachineDefinition *load(const char *name) {
        _cleanup_(definition_error_done) DefinitionError error = {};
        MachineDefinition *d = NULL;

        if (definition_load(directory, name, &d, &error) < 0) {
                _cleanup_free_ char *text = definition_error_to_string(&error);
                fail_msg("%s", text);
        }
        return d;
}

static void blames_the_file_and_line_that_had_the_say(void **state) {
        _cleanup_free_ char *a = NULL, *b = NULL, *c = NULL, *d = NULL;

        put("/etc/vmm/m.json", "{" K ",\n\"vcpus\": 0}");
        a = load_error("m");
        assert_string_equal(a, "/etc/vmm/m.json:2: /vcpus: found 0, expected an integer from 1 to 1024");

        put("/etc/vmm/m.json.d/10-a.json", "{\n\n\"vcpus\": 2000}");
        b = load_error("m");
        assert_string_equal(b, "/etc/vmm/m.json.d/10-a.json:3: /vcpus: found 2000, expected an integer from 1 to 1024");

        put("/run/vmm/machines/m.json.d/20-b.json", "{\"vcpus\": 1,\n \"kernel\": null}");
        c = load_error("m");
        assert_string_equal(c, "/run/vmm/machines/m.json.d/20-b.json:2: /kernel: found null, expected the absolute path of a kernel image");

        put("/usr/lib/vmm/machines/m.json.d/30-c.json", "[]");
        d = load_error("m");
        assert_string_equal(d, "/usr/lib/vmm/machines/m.json.d/30-c.json:1: found an array, expected an object");
}

static void refuses_what_is_no_file(void **state) {
        _cleanup_free_ char *a = NULL, *b = NULL, *path = NULL;

        put("/etc/vmm/x", "");
        assert_true(asprintf(&path, "%s/etc/vmm/fifo.json", directory) > 0);
        assert_int_equal(mkfifo(path, 0644), 0);
        a = load_error("fifo");
        assert_string_equal(a, "/etc/vmm/fifo.json: found something that is no regular file, expected a file that can be read");

        free(path);
        assert_true(asprintf(&path, "%s/etc/vmm/dangling.json", directory) > 0);
        assert_int_equal(symlink("/nowhere", path), 0);
        b = load_error("dangling");
        assert_string_equal(b, "/etc/vmm/dangling.json: found No such file or directory, expected a file that can be read");
}

static void says_when_there_is_no_definition(void **state) {
        _cleanup_(definition_error_done) DefinitionError error = {};
        MachineDefinition *d = NULL;

        assert_int_equal(definition_load(directory, "nobody", &d, &error), -ENOENT);
        assert_int_equal(definition_load(directory, "../m", &d, &error), -ENOENT);
        put("/etc/vmm/empty.json", "");
        put("/usr/lib/vmm/machines/empty.json", "{" K "}");
        assert_int_equal(definition_load(directory, "empty", &d, &error), -ENOENT);
        put("/etc/vmm/masked.json", NULL);
        put("/usr/lib/vmm/machines/masked.json", "{" K "}");
        assert_int_equal(definition_load(directory, "masked", &d, &error), -ENOENT);
}

static void takes_the_first_directory_that_has_the_name(void **state) {
        _cleanup_(machine_definition_freep) MachineDefinition *low = NULL, *middle = NULL, *high = NULL;

        put("/usr/lib/vmm/machines/m.json", "{" K ", \"vcpus\": 1}");
        low = load("m");
        assert_int_equal(low->vcpus, 1);
        put("/run/vmm/machines/m.json", "{" K ", \"vcpus\": 2}");
        middle = load("m");
        assert_int_equal(middle->vcpus, 2);
        put("/etc/vmm/m.json", "{" K ", \"vcpus\": 3}");
        high = load("m");
        assert_int_equal(high->vcpus, 3);
}

static void merges_drop_ins_in_the_order_of_their_names(void **state) {
        _cleanup_(machine_definition_freep) MachineDefinition *d = NULL;
        _cleanup_(string_array_freep) char **files = NULL;

        put("/etc/vmm/m.json", "{" K ", \"devices\": {\"a\": {\"type\": \"rng\"}, \"b\": {\"type\": \"block\", \"path\": \"/b\"}}}");
        put("/usr/lib/vmm/machines/m.json.d/30.json", "{\"vcpus\": 30, \"devices\": {\"b\": {\"readOnly\": true}}}");
        put("/etc/vmm/m.json.d/20.json", "{\"vcpus\": 20, \"devices\": {\"a\": null, \"c\": {\"type\": \"console\"}}}");
        put("/usr/lib/vmm/machines/m.json.d/20.json", "{\"vcpus\": 21}");
        put("/usr/lib/vmm/machines/m.json.d/40.json", "{\"vcpus\": 40}");
        put("/run/vmm/machines/m.json.d/40.json", NULL);
        put("/etc/vmm/m.json.d/50.conf", "{\"vcpus\": 50}");
        put("/etc/vmm/m.json.d/.60.json", "{\"vcpus\": 60}");

        d = load("m");
        assert_int_equal(d->vcpus, 30);
        assert_int_equal(d->n_devices, 2);
        assert_string_equal(d->devices[0].name, "b");
        assert_true(device_definition_boolean(&d->devices[0], "readOnly", false));
        assert_string_equal(d->devices[1].name, "c");

        assert_int_equal(definition_files(directory, "m", &files), 0);
        assert_string_equal(files[0] + strlen(directory), "/etc/vmm/m.json");
        assert_string_equal(files[1] + strlen(directory), "/etc/vmm/m.json.d/20.json");
        assert_string_equal(files[2] + strlen(directory), "/usr/lib/vmm/machines/m.json.d/30.json");
        assert_null(files[3]);
}

static void lists_machines_and_what_cannot_be_one(void **state) {
        _cleanup_(string_array_freep) char **names = NULL, **misnamed = NULL;

        put("/etc/vmm/b.json", "wrong");
        put("/usr/lib/vmm/machines/a.json", "{}");
        put("/run/vmm/machines/b.json", "{}");
        put("/etc/vmm/masked.json", "");
        put("/usr/lib/vmm/machines/masked.json", "{}");
        put("/etc/vmm/notes.txt", "{}");
        put("/etc/vmm/a b.json", "{}");
        put("/etc/vmm/c.json.d/10.json", "{}");

        assert_int_equal(definition_list(directory, &names), 0);
        assert_string_equal(names[0], "a");
        assert_string_equal(names[1], "b");
        assert_null(names[2]);
        assert_int_equal(definition_list_misnamed(directory, &misnamed), 0);
        assert_string_equal(misnamed[0] + strlen(directory), "/etc/vmm/a b.json");
        assert_null(misnamed[1]);
}

static void names_a_single_file_after_itself(void **state) {
        _cleanup_(machine_definition_freep) MachineDefinition *d = NULL;
        _cleanup_(definition_error_done) DefinitionError error = {};
        _cleanup_free_ char *path = NULL;

        put("/x/web.1.json", "{" K "}");
        assert_true(asprintf(&path, "%s/x/web.1.json", directory) > 0);
        assert_int_equal(definition_load_file(path, NULL, &d, &error), 0);
        assert_string_equal(d->name, "web.1");
        assert_int_equal(definition_load_file("/nowhere/x.json", NULL, &d, &error), -ENOENT);
}

/* Unit names: what systemd-escape(1) prints. */
static void escapes_names_as_systemd_does(void **state) {
        static const struct {
                const char *name, *escaped;
        } names[] = {
                { "demo/root", "demo-root" },
                { "my-vm/d-1", "my\\x2dvm-d\\x2d1" },
                { ".hidden", "\\x2ehidden" },
                { "a.b_c:d", "a.b_c:d" },
                { "ä @", "\\xc3\\xa4\\x20\\x40" },
                { "", "" },
        };

        for (size_t i = 0; i < ELEMENTSOF(names); i++) {
                _cleanup_free_ char *escaped = unit_name_escape(names[i].name);
                assert_string_equal(escaped, names[i].escaped);
        }
        /* And the program itself, where it is installed. */
        for (size_t i = 0; i + 1 < ELEMENTSOF(names) && access("/usr/bin/systemd-escape", X_OK) == 0; i++) {
                _cleanup_free_ char *command = NULL;
                char line[200] = "";
                FILE *f;

                assert_true(asprintf(&command, "/usr/bin/systemd-escape -- '%s'", names[i].name) > 0);
                f = popen(command, "re");
                assert_non_null(f);
                assert_non_null(fgets(line, sizeof(line), f));
                (void) pclose(f);
                line[strcspn(line, "\n")] = 0;
                assert_string_equal(line, names[i].escaped);
        }
}

static void gives_every_unit_a_user_of_its_own(void **state) {
        _cleanup_free_ char *machine = unit_user_name("a-b", NULL), *device = unit_user_name("a", "b"),
                            *longest = unit_user_name("m.23456789012345678901234567890123456789012345678", "d");

        assert_true(startswith(machine, "vmm-a-b-") != NULL);
        assert_true(startswith(device, "vmm-a-b-") != NULL);
        assert_string_not_equal(machine, device);
        assert_int_equal(strlen(longest), 31);
        assert_null(strchr(longest, '.'));
}

/* Which drops one of each; see escape_status(). */
static void backslashes_reach_the_service_manager_twice(void **state) {
        _cleanup_free_ char *unit = escape_status("vmm-device@my\\x2dvm-root.service: \\"), *plain = escape_status("plain"), *empty = escape_status("");

        assert_string_equal(unit, "vmm-device@my\\\\x2dvm-root.service: \\\\");
        assert_string_equal(plain, "plain");
        assert_string_equal(empty, "");
        assert_null(escape_status(NULL));
}

static void a_status_is_told_with_what_else_there_is(void **state) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        socklen_t size = sizeof(address);
        int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        char told[128] = {};

        /* A name that the kernel chooses, and none of the file system's. */
        assert_return_code(fd, errno);
        assert_return_code(bind(fd, (struct sockaddr *) &address, sizeof(address.sun_family)), errno);
        assert_return_code(getsockname(fd, (struct sockaddr *) &address, &size), errno);
        address.sun_path[0] = '@';
        assert_return_code(setenv("NOTIFY_SOCKET", address.sun_path, 1), errno);
        notify_status("STOPPING=1\n", "%s has ended: %i", "a\\x2db\nMAINPID=1", 1);
        (void) unsetenv("NOTIFY_SOCKET");
        notify_status("", "nobody is told");
        assert_true(recv(fd, told, sizeof(told) - 1, MSG_DONTWAIT) > 0);
        assert_string_equal(told, "STOPPING=1\nSTATUS=a\\\\x2db?MAINPID=1 has ended: 1");
        assert_int_equal(recv(fd, told, sizeof(told), MSG_DONTWAIT), -1);
        (void) close(fd);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(refuses_every_wrong_definition_with_its_own_words),
                cmocka_unit_test(refuses_a_nul_byte),
                cmocka_unit_test(refuses_more_text_than_a_mebibyte),
                cmocka_unit_test(refuses_names_that_cannot_name_a_machine),
                cmocka_unit_test(refuses_a_device_whose_unit_would_have_too_long_a_name),
                cmocka_unit_test(refuses_more_devices_than_the_bus_has_slots),
                cmocka_unit_test(refuses_a_command_line_that_leaves_no_room_for_the_devices),
                cmocka_unit_test(refuses_more_smbios_strings_than_fit),
                cmocka_unit_test(keeps_control_characters_out_of_messages),
                cmocka_unit_test(shortens_long_texts_between_characters),
                cmocka_unit_test_setup_teardown(blames_the_file_and_line_that_had_the_say, make_directory, remove_directory),
                cmocka_unit_test_setup_teardown(refuses_what_is_no_file, make_directory, remove_directory),
                cmocka_unit_test_setup_teardown(says_when_there_is_no_definition, make_directory, remove_directory),
                cmocka_unit_test(takes_the_least_definition_with_its_defaults),
                cmocka_unit_test(takes_a_device_tree_overlay_where_there_is_a_device_tree),
                cmocka_unit_test(takes_everything_a_definition_can_say),
                cmocka_unit_test(takes_a_plugin_in_the_place_of_everything_else),
                cmocka_unit_test(a_guest_with_sockets_is_told_where_to_say_that_it_is_ready),
                cmocka_unit_test(takes_persistent_memory_as_root),
                cmocka_unit_test(gives_a_console_two_queues_for_each_port),
                cmocka_unit_test(leaves_the_users_own_console_and_root_alone),
                cmocka_unit_test(takes_a_disk_that_two_devices_only_read),
                cmocka_unit_test(takes_times_as_systemd_writes_them),
                cmocka_unit_test(takes_what_it_wrote),
                cmocka_unit_test_setup_teardown(takes_the_first_directory_that_has_the_name, make_directory, remove_directory),
                cmocka_unit_test_setup_teardown(merges_drop_ins_in_the_order_of_their_names, make_directory, remove_directory),
                cmocka_unit_test_setup_teardown(lists_machines_and_what_cannot_be_one, make_directory, remove_directory),
                cmocka_unit_test_setup_teardown(names_a_single_file_after_itself, make_directory, remove_directory),
                cmocka_unit_test(escapes_names_as_systemd_does),
                cmocka_unit_test(gives_every_unit_a_user_of_its_own),
                cmocka_unit_test(backslashes_reach_the_service_manager_twice),
                cmocka_unit_test(a_status_is_told_with_what_else_there_is),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
