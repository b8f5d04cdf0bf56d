/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

#include "cpu-check.h"
#include "cpuid.h"

#define INDEX KVM_CPUID_FLAG_SIGNIFCANT_INDEX

/* Part of what KVM says on a 16-core Intel and a 16-core AMD processor: the leaves that are changed, and some that must not be. */
static const struct kvm_cpuid_entry2 intel[] = {
        { .function = 0x0, .eax = 0x1F, .ebx = 0x756E6547, .ecx = 0x6C65746E, .edx = 0x49656E69 },
        { .function = 0x1, .eax = 0x000806F8, .ebx = 0x3F400800, .ecx = 0xFFFA3203, .edx = 0x1F8BFBFF },
        { .function = 0x4, .index = 0, .flags = INDEX, .eax = 0xFC004121, .ebx = 0x02C0003F, .ecx = 0x3F },
        { .function = 0x4, .index = 2, .flags = INDEX, .eax = 0xFC004143, .ebx = 0x03C0003F, .ecx = 0x7FF },
        { .function = 0x4, .index = 3, .flags = INDEX, .eax = 0xFC1FC163, .ebx = 0x0380003F, .ecx = 0x1BFFF },
        { .function = 0x4, .index = 4, .flags = INDEX },
        { .function = 0x7, .index = 0, .flags = INDEX, .eax = 2, .ebx = 0xF1BF07AB, .ecx = 0x1A415F6E, .edx = 0xBF000410 },
        { .function = 0xA, .eax = 0x08300802, .edx = 0x603 },
        { .function = 0xB, .index = 0, .flags = INDEX, .eax = 1, .ebx = 2, .ecx = 0x100, .edx = 0x3F },
        { .function = 0xB, .index = 1, .flags = INDEX, .eax = 7, .ebx = 32, .ecx = 0x201, .edx = 0x3F },
        { .function = 0xD, .index = 1, .flags = INDEX, .eax = 0x1F },
        { .function = 0x1F, .index = 0, .flags = INDEX, .eax = 1, .ebx = 2, .ecx = 0x100, .edx = 0x3F },
        { .function = 0x1F, .index = 5, .flags = INDEX, .eax = 1, .ebx = 2, .ecx = 0x505, .edx = 0x3F },
        { .function = 0x40000000, .eax = 0x40000001, .ebx = 0x4B4D564B, .ecx = 0x564B4D56, .edx = 0x4D },
        { .function = 0x40000001, .eax = 0x01007EFB },
        { .function = 0x80000000, .eax = 0x80000008 },
        { .function = 0x80000001, .ecx = 0x121, .edx = 0x2C100800 },
        { .function = 0x80000008, .eax = 0x3934 },
};

static const struct kvm_cpuid_entry2 amd[] = {
        { .function = 0x0, .eax = 0x10, .ebx = 0x68747541, .ecx = 0x444D4163, .edx = 0x69746E65 },
        { .function = 0x1, .eax = 0x00A20F10, .ebx = 0x1B200800, .ecx = 0xFEF83203, .edx = 0x178BFBFF },
        { .function = 0x4, .index = 0, .flags = INDEX },
        { .function = 0xB, .index = 0, .flags = INDEX, .eax = 1, .ebx = 2, .ecx = 0x100, .edx = 0x1B },
        { .function = 0x40000000, .eax = 0x40000001, .ebx = 0x4B4D564B, .ecx = 0x564B4D56, .edx = 0x4D },
        { .function = 0x80000001, .eax = 0x00A20F10, .ecx = 0x75C237FD, .edx = 0x2FD3FBFF },
        { .function = 0x80000008, .eax = 0x3030, .ebx = 0x111ED205, .ecx = 0x0000501F },
        { .function = 0x8000001D, .index = 0, .flags = INDEX, .eax = 0x00004121, .ebx = 0x01C0003F, .ecx = 0x3F },
        { .function = 0x8000001D, .index = 3, .flags = INDEX, .eax = 0x0003C163, .ebx = 0x03C0003F, .ecx = 0x7FFF },
        { .function = 0x8000001D, .index = 4, .flags = INDEX },
        { .function = 0x8000001E, .eax = 0x1B, .ebx = 0x10D, .ecx = 0x300 },
        { .function = 0x80000026, .index = 0, .flags = INDEX, .eax = 1, .ebx = 2, .ecx = 0x100, .edx = 0x1B },
};

static struct kvm_cpuid2 *build(const struct kvm_cpuid_entry2 *entries, size_t n, const X86CpuidInput *input) {
        struct kvm_cpuid2 *supported = calloc(1, sizeof(*supported) + n * sizeof(*entries)), *result = NULL;

        assert_non_null(supported);
        supported->nent = (uint32_t) n;
        memcpy(supported->entries, entries, n * sizeof(*entries));
        assert_int_equal(x86_cpuid_build(supported, input, &result), 0);
        free(supported);
        return result;
}

static const struct kvm_cpuid_entry2 *leaf(const struct kvm_cpuid2 *cpuid, uint32_t function, uint32_t index) {
        const struct kvm_cpuid_entry2 *e = x86_cpuid_find(cpuid, function, index);

        assert_non_null(e);
        return e;
}

static void refuses_a_vcpu_that_is_not_there(void **state) {
        struct kvm_cpuid2 empty = {}, *result = NULL;
        X86CpuidInput input = { .vcpu_index = 4, .n_vcpus = 4 };

        assert_int_equal(x86_cpuid_build(&empty, &input, &result), -EINVAL);
        input = (X86CpuidInput) {};
        assert_int_equal(x86_cpuid_build(&empty, &input, &result), -EINVAL);
        assert_null(result);
}

static void takes_a_table_with_nothing_in_it(void **state) {
        X86CpuidInput input = { .n_vcpus = 1, .tsc_khz = 1000 };
        struct kvm_cpuid2 *result = build(intel, 0, &input);

        assert_int_equal(result->nent, 0);
        free(result);
}

static void describes_one_package_of_intel_cores(void **state) {
        X86CpuidInput input = { .vcpu_index = 3, .n_vcpus = 6, .tsc_khz = 2600000, .tsc_deadline = true };
        struct kvm_cpuid2 *c = build(intel, ELEMENTSOF(intel), &input);

        assert_int_equal(leaf(c, 1, 0)->ebx, 0x03060800);
        assert_int_equal(leaf(c, 1, 0)->ecx & (1u << 31 | 1u << 24 | 1u << 21), 1u << 31 | 1u << 24 | 1u << 21);
        assert_true(leaf(c, 1, 0)->edx & 1u << 28);
        /* Eight ids for the package, one for what is a core's own. */
        assert_int_equal(leaf(c, 4, 0)->eax, 7u << 26 | 0x121);
        assert_int_equal(leaf(c, 4, 2)->eax, 7u << 26 | 0x143);
        assert_int_equal(leaf(c, 4, 3)->eax, 7u << 26 | 7u << 14 | 0x163);
        assert_int_equal(leaf(c, 4, 4)->eax, 0);
        for (uint32_t function = 0xB; function <= 0x1F; function += 0x14) {
                assert_int_equal(leaf(c, function, 0)->eax, 0);
                assert_int_equal(leaf(c, function, 0)->ebx, 1);
                assert_int_equal(leaf(c, function, 0)->ecx, 0x100);
                assert_int_equal(leaf(c, function, 1)->eax, 3);
                assert_int_equal(leaf(c, function, 1)->ebx, 6);
                assert_int_equal(leaf(c, function, 1)->ecx, 0x201);
                assert_int_equal(leaf(c, function, 2)->ecx, 2);
                for (uint32_t i = 0; i < 3; i++)
                        assert_int_equal(leaf(c, function, i)->edx, 3);
        }
        assert_null(x86_cpuid_find(c, 0x1F, 5));
        free(c);
}

static void says_the_clocks_in_kvm_s_own_leaf(void **state) {
        X86CpuidInput input = { .n_vcpus = 1, .tsc_khz = 2600000 };
        struct kvm_cpuid2 *c = build(intel, ELEMENTSOF(intel), &input);

        assert_int_equal(leaf(c, 0x40000000, 0)->eax, 0x40000010);
        assert_int_equal(leaf(c, 0x40000000, 0)->ebx, 0x4B4D564B);
        assert_int_equal(leaf(c, 0x40000001, 0)->eax, 0x01007EFB);
        assert_int_equal(leaf(c, 0x40000010, 0)->eax, 2600000);
        assert_int_equal(leaf(c, 0x40000010, 0)->ebx, 1000000);
        assert_false(leaf(c, 1, 0)->ecx & 1u << 24);
        assert_false(leaf(c, 1, 0)->edx & 1u << 28);
        free(c);

        input.tsc_khz = 0;
        c = build(intel, ELEMENTSOF(intel), &input);
        assert_int_equal(leaf(c, 0x40000000, 0)->eax, 0x40000001);
        assert_null(x86_cpuid_find(c, 0x40000010, 0));
        free(c);
}

static void leaves_everything_else_as_kvm_says_it(void **state) {
        X86CpuidInput input = { .n_vcpus = 4, .tsc_khz = 2600000, .tsc_deadline = true };
        struct kvm_cpuid2 *c = build(intel, ELEMENTSOF(intel), &input);

        for (size_t i = 0; i < ELEMENTSOF(intel); i++) {
                uint32_t f = intel[i].function;
                if (f != 0x1 && f != 0x4 && f != 0xB && f != 0x1F && f != 0x40000000)
                        assert_memory_equal(leaf(c, f, intel[i].index), intel + i, sizeof(intel[i]));
        }
        free(c);
}

static void describes_one_package_of_amd_cores(void **state) {
        X86CpuidInput input = { .vcpu_index = 2, .n_vcpus = 4, .tsc_khz = 3400000, .tsc_deadline = true };
        struct kvm_cpuid2 *c = build(amd, ELEMENTSOF(amd), &input);

        assert_int_equal(leaf(c, 1, 0)->ebx, 0x02040800);
        assert_true(leaf(c, 0x80000001, 0)->ecx & 1u << 1);
        assert_int_equal(leaf(c, 0x80000008, 0)->eax, 0x3030);
        assert_int_equal(leaf(c, 0x80000008, 0)->ecx, 0x2003);
        assert_int_equal(leaf(c, 0x8000001D, 0)->eax, 0x121);
        assert_int_equal(leaf(c, 0x8000001D, 3)->eax, 3u << 14 | 0x163);
        assert_int_equal(leaf(c, 0x8000001D, 4)->eax, 0);
        assert_int_equal(leaf(c, 0x8000001E, 0)->eax, 2);
        assert_int_equal(leaf(c, 0x8000001E, 0)->ebx, 2);
        assert_int_equal(leaf(c, 0x8000001E, 0)->ecx, 0);
        assert_int_equal(leaf(c, 0xB, 1)->eax, 2);
        assert_int_equal(leaf(c, 0xB, 1)->ebx, 4);
        assert_null(x86_cpuid_find(c, 0x80000026, 0));
        assert_null(x86_cpuid_find(c, 0x1F, 0));
        free(c);
}

static void holds_fields_within_their_bits_for_many_vcpus(void **state) {
        X86CpuidInput input = { .vcpu_index = 1023, .n_vcpus = 1024 };
        struct kvm_cpuid2 *c = build(intel, ELEMENTSOF(intel), &input);

        assert_int_equal(leaf(c, 1, 0)->ebx, 0xFFFF0800);
        assert_int_equal(leaf(c, 4, 3)->eax, 63u << 26 | 1023u << 14 | 0x163);
        assert_int_equal(leaf(c, 0xB, 1)->eax, 10);
        assert_int_equal(leaf(c, 0xB, 1)->edx, 1023);
        free(c);
}

/* --- a snapshot's processor and this one --- */

static void expect_no_fit(const struct kvm_cpuid_entry2 *then, const struct kvm_cpuid_entry2 *now, size_t n, const char *word) {
        char *message = NULL;
        int r;

        r = x86_cpu_check(then, n, now, n, &message);
        if (r != -EXDEV || !message || !strstr(message, word))
                fail_msg("%d, %s; expected %s", r, message ?: "nothing", word);
        free(message);
}

static void a_processor_of_another_vendor_does_not_fit(void **state) {
        char *message = NULL;

        assert_int_equal(x86_cpu_check(intel, ELEMENTSOF(intel), amd, ELEMENTSOF(amd), &message), -EXDEV);
        assert_non_null(strstr(message, "GenuineIntel"));
        assert_non_null(strstr(message, "AuthenticAMD"));
        free(message);
}

static void a_processor_that_lacks_a_feature_does_not_fit(void **state) {
        struct kvm_cpuid_entry2 now[ELEMENTSOF(intel)];

        memcpy(now, intel, sizeof(intel));
        now[1].ecx &= ~(UINT32_C(1) << 28);
        expect_no_fit(intel, now, ELEMENTSOF(intel), "avx (CPUID 0x1.0, ecx bit 28)");
        memcpy(now, intel, sizeof(intel));
        now[1].edx &= ~(UINT32_C(1) << 25);
        expect_no_fit(intel, now, ELEMENTSOF(intel), "edx bit 25");
}

static void a_processor_that_has_more_fits(void **state) {
        struct kvm_cpuid_entry2 then[ELEMENTSOF(intel)], now[ELEMENTSOF(intel)];

        memcpy(then, intel, sizeof(intel));
        memcpy(now, intel, sizeof(intel));
        then[1].ecx &= ~(UINT32_C(1) << 28);
        /* What a guest switches on is no feature. */
        then[1].ecx |= UINT32_C(1) << 27;
        now[1].ecx &= ~(UINT32_C(1) << 27);
        assert_int_equal(x86_cpu_check(then, ELEMENTSOF(intel), now, ELEMENTSOF(intel), NULL), 0);
}

static void a_tsc_may_differ_by_what_a_calibration_does(void **state) {
        assert_true(x86_cpu_tsc_fits(2400000, 2400000));
        assert_true(x86_cpu_tsc_fits(2400000, 2400599));
        assert_false(x86_cpu_tsc_fits(2400000, 2400601));
        assert_false(x86_cpu_tsc_fits(2400000, 2100000));
        assert_false(x86_cpu_tsc_fits(2400000, 0));
}

static void the_model_is_text(void **state) {
        const struct kvm_cpuid_entry2 entries[] = {
                { .function = 0x80000002, .eax = 0x20202020, .ebx = 0x20555043, .ecx = 0x20323420, .edx = 0x1b202020 },
                { .function = 0x80000003, .eax = 0x20202020, .ebx = 0x20202020, .ecx = 0x20202020, .edx = 0x20202020 },
                { .function = 0x80000004, .eax = 0x20202020, .ebx = 0x20202020, .ecx = 0x20202020, .edx = 0x00202020 },
        };
        char *model = x86_cpu_model(entries, ELEMENTSOF(entries));

        assert_string_equal(model, "CPU  42    ?");
        free(model);
        model = x86_cpu_model(entries, 0);
        assert_string_equal(model, "");
        free(model);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(refuses_a_vcpu_that_is_not_there),
                cmocka_unit_test(a_processor_of_another_vendor_does_not_fit),
                cmocka_unit_test(a_processor_that_lacks_a_feature_does_not_fit),
                cmocka_unit_test(a_processor_that_has_more_fits),
                cmocka_unit_test(a_tsc_may_differ_by_what_a_calibration_does),
                cmocka_unit_test(the_model_is_text),
                cmocka_unit_test(takes_a_table_with_nothing_in_it),
                cmocka_unit_test(describes_one_package_of_intel_cores),
                cmocka_unit_test(describes_one_package_of_amd_cores),
                cmocka_unit_test(says_the_clocks_in_kvm_s_own_leaf),
                cmocka_unit_test(leaves_everything_else_as_kvm_says_it),
                cmocka_unit_test(holds_fields_within_their_bits_for_many_vcpus),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
