/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What a guest cannot find out by itself: the PCI root, what ECAM occupies, the clock, the serial ports, S5. The buttons are
 * fixed hardware (acpi-pm.c), all other devices are found on PCI, where they come and go (acpi-hotplug.c). Addresses are those of layout.h; a test compares them. */

DefinitionBlock ("", "DSDT", 2, "VMMD", "VMMDDSDT", 0x00000001)
{
    /* Written by acpi.c: which serial ports there are, and the window for 64-bit BARs. */
    OperationRegion (PRMS, SystemMemory, 0x000EFF00, 0x20)
    Field (PRMS, DWordAcc, NoLock, Preserve)
    {
        COMM, 32,
        , 32,
        M64B, 64,
        M64S, 64
    }

    /* SLP_TYP for S5, as acpi-pm.c expects it. No other sleeping state is there. */
    Name (\_S5, Package () { 0x05, 0x05, 0x00, 0x00 })

    Scope (\_SB)
    {
        Device (PCI0)
        {
            Name (_HID, EisaId ("PNP0A08"))
            Name (_CID, EisaId ("PNP0A03"))
            Name (_SEG, 0)
            Name (_BBN, 0)
            Name (_UID, 0)

            Name (RSRC, ResourceTemplate ()
            {
                WordBusNumber (ResourceProducer, MinFixed, MaxFixed, PosDecode,
                    0x0000, 0x0000, 0x0000, 0x0000, 0x0001)
                IO (Decode16, 0x0CF8, 0x0CF8, 0x01, 0x08)
                WordIO (ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange,
                    0x0000, 0x0000, 0x0CF7, 0x0000, 0x0CF8)
                WordIO (ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange,
                    0x0000, 0x0D00, 0xFFFF, 0x0000, 0xF300)
                DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite,
                    0x00000000, 0xC0000000, 0xDFFFFFFF, 0x00000000, 0x20000000)
            })

            Name (RS64, ResourceTemplate ()
            {
                QWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite,
                    0x0000000000000000, 0x0000000000000000, 0x0000000000000000, 0x0000000000000000,
                    0x0000000000000000, , , WIND)
            })

            Method (_CRS, 0, Serialized)
            {
                If (M64S == Zero)
                {
                    Return (RSRC)
                }
                CreateQWordField (RS64, \_SB.PCI0.WIND._MIN, WMIN)
                CreateQWordField (RS64, \_SB.PCI0.WIND._MAX, WMAX)
                CreateQWordField (RS64, \_SB.PCI0.WIND._LEN, WLEN)
                WMIN = M64B
                WMAX = M64B + M64S - One
                WLEN = M64S
                Return (ConcatenateResTemplate (RSRC, RS64))
            }

            /* PCI Firmware Specification 3.3, 4.5: the PCI Express capability structure (bit 4) is the operating system's. Native
             * hot-plug (bit 0) is not: there are no such ports, and the slots below are ACPI's. */
            Method (_OSC, 4, Serialized)
            {
                CreateDWordField (Arg3, Zero, CDW1)
                If (Arg0 != ToUUID ("33db4d5b-1ff7-401c-9657-7441c03dd766"))
                {
                    CDW1 |= 0x04
                    Return (Arg3)
                }
                If (Arg1 != One)
                {
                    CDW1 |= 0x08
                }
                If (SizeOf (Arg3) >= 0x0C)
                {
                    CreateDWordField (Arg3, 0x08, CDW3)
                    Local0 = CDW3 & 0x10
                    If (Local0 != CDW3)
                    {
                        CDW1 |= 0x10
                    }
                    CDW3 = Local0
                }
                Return (Arg3)
            }

            /* The registers of acpi-hotplug.h: bit n is slot n. */
            OperationRegion (HPRG, SystemIO, 0x0630, 0x0C)
            Field (HPRG, DWordAcc, NoLock, WriteAsZeros)
            {
                HPUP, 32,
                HPDN, 32,
                HPEJ, 32
            }
            Mutex (HPLK, 0)

            Method (EJCT, 1)
            {
                Acquire (HPLK, 0xFFFF)
                HPEJ = Arg0
                Release (HPLK)
            }

            /* To each slot of the mask Arg0: 1 is Device Check, 3 an Eject Request (ACPI 6.4, 5.6.6). */
            Method (NTFY, 2)
            {
                If (Arg0 & 0x00000002) { Notify (S01, Arg1) }
                If (Arg0 & 0x00000004) { Notify (S02, Arg1) }
                If (Arg0 & 0x00000008) { Notify (S03, Arg1) }
                If (Arg0 & 0x00000010) { Notify (S04, Arg1) }
                If (Arg0 & 0x00000020) { Notify (S05, Arg1) }
                If (Arg0 & 0x00000040) { Notify (S06, Arg1) }
                If (Arg0 & 0x00000080) { Notify (S07, Arg1) }
                If (Arg0 & 0x00000100) { Notify (S08, Arg1) }
                If (Arg0 & 0x00000200) { Notify (S09, Arg1) }
                If (Arg0 & 0x00000400) { Notify (S0A, Arg1) }
                If (Arg0 & 0x00000800) { Notify (S0B, Arg1) }
                If (Arg0 & 0x00001000) { Notify (S0C, Arg1) }
                If (Arg0 & 0x00002000) { Notify (S0D, Arg1) }
                If (Arg0 & 0x00004000) { Notify (S0E, Arg1) }
                If (Arg0 & 0x00008000) { Notify (S0F, Arg1) }
                If (Arg0 & 0x00010000) { Notify (S10, Arg1) }
                If (Arg0 & 0x00020000) { Notify (S11, Arg1) }
                If (Arg0 & 0x00040000) { Notify (S12, Arg1) }
                If (Arg0 & 0x00080000) { Notify (S13, Arg1) }
                If (Arg0 & 0x00100000) { Notify (S14, Arg1) }
                If (Arg0 & 0x00200000) { Notify (S15, Arg1) }
                If (Arg0 & 0x00400000) { Notify (S16, Arg1) }
                If (Arg0 & 0x00800000) { Notify (S17, Arg1) }
                If (Arg0 & 0x01000000) { Notify (S18, Arg1) }
                If (Arg0 & 0x02000000) { Notify (S19, Arg1) }
                If (Arg0 & 0x04000000) { Notify (S1A, Arg1) }
                If (Arg0 & 0x08000000) { Notify (S1B, Arg1) }
                If (Arg0 & 0x10000000) { Notify (S1C, Arg1) }
                If (Arg0 & 0x20000000) { Notify (S1D, Arg1) }
                If (Arg0 & 0x40000000) { Notify (S1E, Arg1) }
            }

            /* What came first is told first: one that has come and is to go at once. */
            Method (HPEV)
            {
                Acquire (HPLK, 0xFFFF)
                Local0 = HPUP
                HPUP = Local0
                Local1 = HPDN
                HPDN = Local1
                Release (HPLK)
                NTFY (Local0, 1)
                NTFY (Local1, 3)
            }

            /* Every slot of the bus but the first, the host bridge's, and the last, vmmd's own: whether there is something is for PCI to say. */
            Device (S01)
            {
                Name (_ADR, 0x00010000)
                Name (_SUN, 1)
                Method (_EJ0, 1) { EJCT (0x00000002) }
            }

            Device (S02)
            {
                Name (_ADR, 0x00020000)
                Name (_SUN, 2)
                Method (_EJ0, 1) { EJCT (0x00000004) }
            }

            Device (S03)
            {
                Name (_ADR, 0x00030000)
                Name (_SUN, 3)
                Method (_EJ0, 1) { EJCT (0x00000008) }
            }

            Device (S04)
            {
                Name (_ADR, 0x00040000)
                Name (_SUN, 4)
                Method (_EJ0, 1) { EJCT (0x00000010) }
            }

            Device (S05)
            {
                Name (_ADR, 0x00050000)
                Name (_SUN, 5)
                Method (_EJ0, 1) { EJCT (0x00000020) }
            }

            Device (S06)
            {
                Name (_ADR, 0x00060000)
                Name (_SUN, 6)
                Method (_EJ0, 1) { EJCT (0x00000040) }
            }

            Device (S07)
            {
                Name (_ADR, 0x00070000)
                Name (_SUN, 7)
                Method (_EJ0, 1) { EJCT (0x00000080) }
            }

            Device (S08)
            {
                Name (_ADR, 0x00080000)
                Name (_SUN, 8)
                Method (_EJ0, 1) { EJCT (0x00000100) }
            }

            Device (S09)
            {
                Name (_ADR, 0x00090000)
                Name (_SUN, 9)
                Method (_EJ0, 1) { EJCT (0x00000200) }
            }

            Device (S0A)
            {
                Name (_ADR, 0x000A0000)
                Name (_SUN, 10)
                Method (_EJ0, 1) { EJCT (0x00000400) }
            }

            Device (S0B)
            {
                Name (_ADR, 0x000B0000)
                Name (_SUN, 11)
                Method (_EJ0, 1) { EJCT (0x00000800) }
            }

            Device (S0C)
            {
                Name (_ADR, 0x000C0000)
                Name (_SUN, 12)
                Method (_EJ0, 1) { EJCT (0x00001000) }
            }

            Device (S0D)
            {
                Name (_ADR, 0x000D0000)
                Name (_SUN, 13)
                Method (_EJ0, 1) { EJCT (0x00002000) }
            }

            Device (S0E)
            {
                Name (_ADR, 0x000E0000)
                Name (_SUN, 14)
                Method (_EJ0, 1) { EJCT (0x00004000) }
            }

            Device (S0F)
            {
                Name (_ADR, 0x000F0000)
                Name (_SUN, 15)
                Method (_EJ0, 1) { EJCT (0x00008000) }
            }

            Device (S10)
            {
                Name (_ADR, 0x00100000)
                Name (_SUN, 16)
                Method (_EJ0, 1) { EJCT (0x00010000) }
            }

            Device (S11)
            {
                Name (_ADR, 0x00110000)
                Name (_SUN, 17)
                Method (_EJ0, 1) { EJCT (0x00020000) }
            }

            Device (S12)
            {
                Name (_ADR, 0x00120000)
                Name (_SUN, 18)
                Method (_EJ0, 1) { EJCT (0x00040000) }
            }

            Device (S13)
            {
                Name (_ADR, 0x00130000)
                Name (_SUN, 19)
                Method (_EJ0, 1) { EJCT (0x00080000) }
            }

            Device (S14)
            {
                Name (_ADR, 0x00140000)
                Name (_SUN, 20)
                Method (_EJ0, 1) { EJCT (0x00100000) }
            }

            Device (S15)
            {
                Name (_ADR, 0x00150000)
                Name (_SUN, 21)
                Method (_EJ0, 1) { EJCT (0x00200000) }
            }

            Device (S16)
            {
                Name (_ADR, 0x00160000)
                Name (_SUN, 22)
                Method (_EJ0, 1) { EJCT (0x00400000) }
            }

            Device (S17)
            {
                Name (_ADR, 0x00170000)
                Name (_SUN, 23)
                Method (_EJ0, 1) { EJCT (0x00800000) }
            }

            Device (S18)
            {
                Name (_ADR, 0x00180000)
                Name (_SUN, 24)
                Method (_EJ0, 1) { EJCT (0x01000000) }
            }

            Device (S19)
            {
                Name (_ADR, 0x00190000)
                Name (_SUN, 25)
                Method (_EJ0, 1) { EJCT (0x02000000) }
            }

            Device (S1A)
            {
                Name (_ADR, 0x001A0000)
                Name (_SUN, 26)
                Method (_EJ0, 1) { EJCT (0x04000000) }
            }

            Device (S1B)
            {
                Name (_ADR, 0x001B0000)
                Name (_SUN, 27)
                Method (_EJ0, 1) { EJCT (0x08000000) }
            }

            Device (S1C)
            {
                Name (_ADR, 0x001C0000)
                Name (_SUN, 28)
                Method (_EJ0, 1) { EJCT (0x10000000) }
            }

            Device (S1D)
            {
                Name (_ADR, 0x001D0000)
                Name (_SUN, 29)
                Method (_EJ0, 1) { EJCT (0x20000000) }
            }

            Device (S1E)
            {
                Name (_ADR, 0x001E0000)
                Name (_SUN, 30)
                Method (_EJ0, 1) { EJCT (0x40000000) }
            }
        }

        /* Linux believes the MCFG only where the same memory is some device's, too. */
        Device (MBRD)
        {
            Name (_HID, EisaId ("PNP0C02"))
            Name (_UID, 0)
            Name (_CRS, ResourceTemplate ()
            {
                Memory32Fixed (ReadWrite, 0xE0000000, 0x00100000)
                IO (Decode16, 0x0600, 0x0600, 0x01, 0x40)
            })
        }

        Device (RTC0)
        {
            Name (_HID, EisaId ("PNP0B00"))
            Name (_CRS, ResourceTemplate ()
            {
                IO (Decode16, 0x0070, 0x0070, 0x01, 0x02)
                IRQNoFlags () { 8 }
            })
        }

        Device (COM1)
        {
            Name (_HID, EisaId ("PNP0501"))
            Name (_UID, 1)
            Method (_STA)
            {
                If (COMM & 0x01)
                {
                    Return (0x0F)
                }
                Return (Zero)
            }
            Name (_CRS, ResourceTemplate ()
            {
                IO (Decode16, 0x03F8, 0x03F8, 0x01, 0x08)
                IRQNoFlags () { 4 }
            })
        }

        Device (COM2)
        {
            Name (_HID, EisaId ("PNP0501"))
            Name (_UID, 2)
            Method (_STA)
            {
                If (COMM & 0x02)
                {
                    Return (0x0F)
                }
                Return (Zero)
            }
            Name (_CRS, ResourceTemplate ()
            {
                IO (Decode16, 0x02F8, 0x02F8, 0x01, 0x08)
                IRQNoFlags () { 3 }
            })
        }

        Device (COM3)
        {
            Name (_HID, EisaId ("PNP0501"))
            Name (_UID, 3)
            Method (_STA)
            {
                If (COMM & 0x04)
                {
                    Return (0x0F)
                }
                Return (Zero)
            }
            Name (_CRS, ResourceTemplate ()
            {
                IO (Decode16, 0x03E8, 0x03E8, 0x01, 0x08)
                IRQNoFlags () { 4 }
            })
        }

        Device (COM4)
        {
            Name (_HID, EisaId ("PNP0501"))
            Name (_UID, 4)
            Method (_STA)
            {
                If (COMM & 0x08)
                {
                    Return (0x0F)
                }
                Return (Zero)
            }
            Name (_CRS, ResourceTemplate ()
            {
                IO (Decode16, 0x02E8, 0x02E8, 0x01, 0x08)
                IRQNoFlags () { 3 }
            })
        }
    }

    Scope (\_GPE)
    {
        Method (_E01)
        {
            \_SB.PCI0.HPEV ()
        }
    }
}
