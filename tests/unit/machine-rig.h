/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* vmmd as a process, without any unit: a machine of one tiny kernel on the real /dev/kvm, and its control socket. Everything here asserts. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <json-c/json.h>

#include "util.h"

/* 64-bit kernels, entered with paging on and everything below 4 GiB mapped; between the labels kernel_NAME and kernel_NAME_end. */
#define KERNEL_POWER_OFF "mov $0x604, %dx\n mov $0x3400, %ax\n out %ax, %dx\n 9: hlt\n jmp 9b\n"
/* pvpanic is in slot 31: finds its BAR, lets it decode, says that it panicked. */
#define KERNEL_PANIC                                                                                           \
        "mov $0xcf8, %dx\n mov $0x8000f810, %eax\n out %eax, %dx\n mov $0xcfc, %dx\n in %dx, %eax\n mov %rax, %rdi\n" \
        "mov $0xcf8, %dx\n mov $0x8000f804, %eax\n out %eax, %dx\n mov $0xcfc, %dx\n mov $2, %ax\n out %ax, %dx\n" \
        "movb $1, (%rdi)\n 1: hlt\n jmp 1b\n"
#define KERNEL_CRASH "lidt 8f(%rip)\n ud2\n 8: .quad 0\n .word 0\n"
#define KERNEL_DECLARE(name) extern const uint8_t kernel_##name[], kernel_##name##_end[];

typedef struct Run {
        char directory[32];
        char control[64];
        char restore[80]; /* a snapshot to go on from; empty: it boots */
        const char *option; /* one more of vmmd's, where that is empty; NULL: none */
        pid_t pid;
        int output;
} Run;

/* Starts $VMMD on a definition: `more` is JSON that follows the kernel's path. Sockets of devices are looked for in "devices/tiny" of run->directory
 * where `has_devices`, else nowhere. */
void run_prepare(Run *run, const uint8_t *code, size_t size, const char *more);
void run_vmmd(Run *run, bool has_devices);
/* Both, without devices. */
void run_start(Run *run, const uint8_t *code, size_t size, const char *more);
#define RUN_START(run, name, more) run_start(run, kernel_##name, (size_t) (kernel_##name##_end - kernel_##name), more)
#define RUN_PREPARE(run, name, more) run_prepare(run, kernel_##name, (size_t) (kernel_##name##_end - kernel_##name), more)
/* Waits for its end; returns the exit status, and everything it said in `text`. */
int run_end(Run *run, char text[static 4096]);

/* Connects to the control socket once that is there. */
int run_connect(const Run *run);
/* Sends a call on a connection; `flags` is JSON that follows the parameters, e.g. ",\"more\":true". */
void send_call(int fd, const char *method, const char *parameters, const char *flags);
/* The next reply; NULL at the end of the connection. Fails after thirty seconds. */
json_object *receive(int fd);
/* One Varlink call by its full name; the reply's text. */
void call_text(const Run *run, const char *method, const char *parameters, char reply[static 4096]);
/* The same of io.vmmd.Machine, which must have that word in its reply. */
void call_and_expect(const Run *run, const char *method, const char *parameters, const char *word);
/* The same, which must not fail. */
void call_and_succeed(const Run *run, const char *method, const char *parameters);
void wait_for_state(const Run *run, const char *state);
