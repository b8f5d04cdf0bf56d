/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "cpu-check.h"

#define TSC_TOLERANCE_PPM 250

enum { EAX, EBX, ECX, EDX };

/* Registers of which each bit is a feature (Intel SDM 2, CPUID; AMD64 APM 3, appendix E; KVM CPUID bits), and bits in them that are something else: what the
 * guest switches on itself shows in some. */
static const struct {
        uint32_t function, index;
        int reg;
        uint32_t not_features;
} feature_registers[] = {
        { 0x1, 0, ECX, UINT32_C(1) << 27 /* OSXSAVE */ | UINT32_C(1) << 3 /* MONITOR, by IA32_MISC_ENABLE */ },
        { 0x1, 0, EDX, UINT32_C(1) << 9 /* APIC, by its base register */ },
        { 0x7, 0, EBX, 0 },
        { 0x7, 0, ECX, UINT32_C(1) << 4 /* OSPKE */ },
        { 0x7, 0, EDX, 0 },
        { 0x7, 1, EAX, 0 },
        { 0x7, 2, EDX, 0 },
        { 0xd, 0, EAX, 0 },
        { 0xd, 0, EDX, 0 },
        { 0xd, 1, EAX, 0 },
        { 0x40000001, 0, EAX, 0 },
        { 0x80000001, 0, ECX, 0 },
        { 0x80000001, 0, EDX, UINT32_C(1) << 9 },
        { 0x80000007, 0, EDX, 0 },
        { 0x80000008, 0, EBX, 0 },
};

/* Those that people know by name. */
static const struct {
        uint32_t function;
        int reg;
        unsigned bit;
        const char *name;
} names[] = {
        { 0x1, ECX, 0, "sse3" },     { 0x1, ECX, 1, "pclmulqdq" }, { 0x1, ECX, 9, "ssse3" },   { 0x1, ECX, 12, "fma" },
        { 0x1, ECX, 13, "cx16" },    { 0x1, ECX, 19, "sse4_1" },   { 0x1, ECX, 20, "sse4_2" }, { 0x1, ECX, 21, "x2apic" },
        { 0x1, ECX, 22, "movbe" },   { 0x1, ECX, 23, "popcnt" },   { 0x1, ECX, 24, "tsc_deadline_timer" }, { 0x1, ECX, 25, "aes" },
        { 0x1, ECX, 26, "xsave" },   { 0x1, ECX, 28, "avx" },      { 0x1, ECX, 29, "f16c" },   { 0x1, ECX, 30, "rdrand" },
        { 0x7, EBX, 0, "fsgsbase" }, { 0x7, EBX, 3, "bmi1" },      { 0x7, EBX, 5, "avx2" },    { 0x7, EBX, 7, "smep" },
        { 0x7, EBX, 8, "bmi2" },     { 0x7, EBX, 9, "erms" },      { 0x7, EBX, 10, "invpcid" }, { 0x7, EBX, 16, "avx512f" },
        { 0x7, EBX, 18, "rdseed" },  { 0x7, EBX, 19, "adx" },      { 0x7, EBX, 20, "smap" },   { 0x7, EBX, 29, "sha_ni" },
        { 0x7, ECX, 2, "umip" },     { 0x7, ECX, 3, "pku" },       { 0x7, ECX, 16, "la57" },   { 0x80000001, ECX, 5, "lzcnt" },
        { 0x80000001, ECX, 6, "sse4a" }, { 0x80000001, EDX, 20, "nx" }, { 0x80000001, EDX, 26, "pdpe1gb" }, { 0x80000001, EDX, 27, "rdtscp" },
        { 0x80000007, EDX, 8, "invariant_tsc" },
};

static const struct kvm_cpuid_entry2 *find(const struct kvm_cpuid_entry2 *entries, size_t n, uint32_t function, uint32_t index) {
        for (size_t i = 0; i < n; i++)
                if (entries[i].function == function && (!(entries[i].flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX) || entries[i].index == index))
                        return &entries[i];
        return NULL;
}

static uint32_t get(const struct kvm_cpuid_entry2 *entries, size_t n, uint32_t function, uint32_t index, int reg) {
        const struct kvm_cpuid_entry2 *e = find(entries, n, function, index);

        if (!e)
                return 0;
        return reg == EAX ? e->eax : reg == EBX ? e->ebx : reg == ECX ? e->ecx : e->edx;
}

static const char *name_of(uint32_t function, uint32_t index, int reg, unsigned bit) {
        for (size_t i = 0; i < ELEMENTSOF(names); i++)
                if (names[i].function == function && index == 0 && names[i].reg == reg && names[i].bit == bit)
                        return names[i].name;
        return NULL;
}

static void vendor(const struct kvm_cpuid_entry2 *entries, size_t n, char ret[static 13]) {
        const uint32_t words[] = { get(entries, n, 0, 0, EBX), get(entries, n, 0, 0, EDX), get(entries, n, 0, 0, ECX) };

        memcpy(ret, words, sizeof(words));
        ret[12] = 0;
        /* It may be somebody's file. */
        for (char *p = ret; *p; p++)
                if ((unsigned char) *p < 0x20 || (unsigned char) *p >= 0x7f)
                        *p = '?';
}

int x86_cpu_check(const struct kvm_cpuid_entry2 *then, size_t n_then, const struct kvm_cpuid_entry2 *now, size_t n_now, char **ret_message) {
        static const char registers[] = "abcd";
        char vendor_then[13], vendor_now[13];

        vendor(then, n_then, vendor_then);
        vendor(now, n_now, vendor_now);
        if (!streq(vendor_then, vendor_now))
                return set_message(ret_message, -EXDEV, "The snapshot is of a machine on a processor of %s; this host's is of %s.", vendor_then,
                        vendor_now);
        for (size_t i = 0; i < ELEMENTSOF(feature_registers); i++) {
                uint32_t function = feature_registers[i].function, index = feature_registers[i].index;
                int reg = feature_registers[i].reg;
                uint32_t missing = get(then, n_then, function, index, reg) & ~get(now, n_now, function, index, reg) &
                        ~feature_registers[i].not_features;
                unsigned bit;
                const char *name;

                if (missing == 0)
                        continue;
                bit = (unsigned) __builtin_ctz(missing);
                name = name_of(function, index, reg, bit);
                return set_message(ret_message, -EXDEV,
                        "The snapshot is of a machine whose processor has %s%s(CPUID %#x.%u, e%cx bit %u), and this host's has not.", name ?: "a feature",
                        " ", function, index, registers[reg], bit);
        }
        return 0;
}

char *x86_cpu_model(const struct kvm_cpuid_entry2 *entries, size_t n) {
        uint32_t words[12];
        char text[sizeof(words) + 1] = {}, *begin = text, *end;

        for (unsigned i = 0; i < ELEMENTSOF(words); i++)
                words[i] = get(entries, n, 0x80000002 + i / 4, 0, (int) (i % 4));
        memcpy(text, words, sizeof(words));
        for (char *p = text; *p; p++)
                if ((unsigned char) *p < 0x20 || (unsigned char) *p >= 0x7f)
                        *p = '?';
        while (*begin == ' ')
                begin++;
        for (end = begin + strlen(begin); end > begin && end[-1] == ' '; end--)
                ;
        *end = 0;
        return strdup(begin);
}

bool x86_cpu_tsc_fits(uint32_t then_khz, uint32_t now_khz) {
        uint64_t tolerance = (uint64_t) then_khz * TSC_TOLERANCE_PPM / 1000000;
        uint32_t difference = then_khz > now_khz ? then_khz - now_khz : now_khz - then_khz;

        return difference <= tolerance;
}
