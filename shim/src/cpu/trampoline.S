# How another processor comes into 64-bit mode after INIT and SIPI: a page below 1 MiB gets a copy of
# trampoline_start .. trampoline_end, with some words filled in (cpu/smp.rs).
#
# Real mode goes straight to 64-bit mode: the page tables are the boot's, which map the first 4 GiB
# one to one and the image where it is linked.

.section .rodata.trampoline, "a", @progbits
.balign 16
.global trampoline_start
trampoline_start:
.code16
    jmp 1f
.balign 8
trampoline_gdt:
    .quad 0
    .quad 0x00af9b000000ffff                # 64-bit code
    .quad 0x00cf93000000ffff                # data
.global trampoline_gdt_pointer
trampoline_gdt_pointer:
    .word trampoline_gdt_pointer - trampoline_gdt - 1
    .long trampoline_gdt - trampoline_start
.global trampoline_cr3
trampoline_cr3:
    .long 0
.set at_gdt_pointer, trampoline_gdt_pointer - trampoline_start
.set at_cr3, trampoline_cr3 - trampoline_start
1:  cli
    cld
    mov ax, cs
    mov ds, ax
    mov eax, dword ptr [at_cr3]
    mov cr3, eax
    mov eax, cr4
    or eax, 0x20                            # PAE
    mov cr4, eax
    mov ecx, 0xc0000080                     # EFER
    rdmsr
    or eax, 0x900                           # LME, NXE
    wrmsr
    lgdt [at_gdt_pointer]
    mov eax, 0x80000011                     # PG, ET, PE; caches on
    mov cr0, eax
    .byte 0x66, 0xea                        # ljmp 0x08:trampoline_long, at its address in the page
.global trampoline_far
trampoline_far:
    .long trampoline_long - trampoline_start
    .word 0x08
.code64
trampoline_long:
    movabs rax, offset processor_entry
    jmp rax
.global trampoline_end
trampoline_end:

# 64-bit mode, the image mapped, no stack, interrupts off. One processor at a time is waited for: the
# one whose APIC id is in {expected} takes that out and goes on; any other came too late and stops. The id is
# the local APIC's, by which it was started: CPUID's is another on some hosts of several NUMA nodes.
.section .text.processor_entry, "ax", @progbits
.global processor_entry
processor_entry:
    mov ecx, 0x1b                           # IA32_APIC_BASE
    rdmsr
    test eax, 0x400                         # in x2APIC mode?
    jne 1f
    shl rdx, 32
    and eax, 0xfffff000
    or rdx, rax
    mov eax, dword ptr [rdx + 0x20]         # its id, in the page that the boot's tables map
    shr eax, 24
    jmp 2f
1:  mov ecx, 0x802
    rdmsr
2:  mov ecx, {taken}
    lock cmpxchg dword ptr [rip + {expected}], ecx
    jne 3f
    mov rax, [rip + {final_l4}]
    mov cr3, rax
    mov rsp, [rip + {stack}]
    xor ebp, ebp
    mov edi, dword ptr [rip + {number}]
    call {processor_main}
3:  cli
    hlt
    jmp 3b
.text
