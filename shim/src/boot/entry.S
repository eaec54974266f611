# Boot entries. Each leaves a kind in RDI and the loader's information block in RSI and goes on at
# boot_common, which runs identity mapped at whatever physical address the image was loaded, maps
# the image at its linked address and jumps there.

.section .boot.text, "ax", @progbits

# PVH: 32-bit protected mode, flat segments, EBX = hvm_start_info. The image is at its linked
# physical address (the note names this address).
.code32
.global boot_pvh
boot_pvh:
    cld
    cli
    mov esi, ebx
    mov eax, offset boot_pml4 - {to_phys}
    mov cr3, eax
    mov eax, cr4
    or eax, 0x20                            # PAE
    mov cr4, eax
    mov ecx, 0xc0000080                     # EFER
    rdmsr
    or eax, 0x100                           # LME
    wrmsr
    mov eax, cr0
    or eax, 0x80000001                      # PG, PE
    mov cr0, eax
    lgdt [boot_gdt_pointer - {to_phys}]
    .byte 0xea                              # ljmp 0x08:boot_pvh64
    .long boot_pvh64 - {to_phys}
    .word 0x08

.code64
boot_pvh64:
    mov esi, esi
    mov edi, {kind_pvh}
    jmp boot_common

# Linux 64-bit boot protocol: 64-bit mode, identity mapped, RSI = boot_params.
.global boot_linux64
boot_linux64:
    cld
    cli
    mov edi, {kind_linux}

boot_common:
    lea rbx, [rip + __image_start]          # physical: we run identity mapped
    # the identity map's upper levels, for where the image is
    lea r8, [rip + boot_ident_pd]
    lea r9, [rip + boot_ident_pdpt]
    lea rax, [r8 + 3]
    xor ecx, ecx
3:  mov [r9 + rcx * 8], rax
    add rax, 0x1000
    inc ecx
    cmp ecx, 4
    jne 3b
    # the image, 4 KiB pages
    lea r10, [rip + boot_image_pt]
    lea rax, [rbx + 3]
    xor ecx, ecx
4:  mov [r10 + rcx * 8], rax
    add rax, 0x1000
    inc ecx
    cmp ecx, 512
    jne 4b
    lea r11, [rip + boot_image_pd]
    lea rax, [r10 + 3]
    mov [r11], rax
    lea r12, [rip + boot_image_pdpt]
    lea rax, [r11 + 3]
    mov [r12 + 8 * 510], rax                # SHIM_BASE is 510 GiB into its slot
    lea rax, [rip + boot_pml4]
    lea rcx, [r9 + 3]
    mov [rax], rcx
    lea rcx, [r12 + 3]
    mov [rax + 8 * {shim_l4_slot}], rcx
    mov cr3, rax
    movabs rax, offset boot_high
    jmp rax

.section .text.boot_high, "ax", @progbits
boot_high:
    lea rsp, [rip + boot_stack_top]
    xor ebp, ebp
    lgdt [rip + boot_gdt_pointer_high]
    push 0x08
    lea rax, [rip + 5f]
    push rax
    retfq
5:  mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    mov rdx, rbx                            # physical address of the image
    call {boot_main}
    ud2

.section .rodata.boot, "a", @progbits
.balign 8
boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff                # 64-bit code
    .quad 0x00cf93000000ffff                # data
boot_gdt_end:
boot_gdt_pointer:
    .word boot_gdt_end - boot_gdt - 1
    .long boot_gdt - {to_phys}
    .long 0
boot_gdt_pointer_high:
    .word boot_gdt_end - boot_gdt - 1
    .quad boot_gdt

# PVH entry: owner "Xen", type XEN_ELFNOTE_PHYS32_ENTRY (18).
.section .note.Xen, "a", @note
.balign 4
    .long 4, 8, {note_phys32_entry}
    .asciz "Xen"
    .quad boot_pvh - {to_phys}

# The identity map of the first 4 GiB, for an image at its linked physical address. 0x83 is present,
# writable, 2 MiB; 3 present, writable.
.section .data.boot, "aw", @progbits
.balign 4096
boot_ident_pd:
    boot_page = 0x83
.rept 4 * 512
    .quad boot_page
    boot_page = boot_page + 0x200000
.endr
boot_ident_pdpt:
    .quad boot_ident_pd - {to_phys} + 3
    .quad boot_ident_pd - {to_phys} + 0x1003
    .quad boot_ident_pd - {to_phys} + 0x2003
    .quad boot_ident_pd - {to_phys} + 0x3003
    .skip 4096 - 4 * 8
    .global boot_pml4
boot_pml4:
    .quad boot_ident_pdpt - {to_phys} + 3
    .skip 4096 - 8

.section .bss.boot, "aw", @nobits
.balign 4096
boot_image_pdpt: .skip 4096
boot_image_pd:   .skip 4096
boot_image_pt:   .skip 4096
boot_stack:      .skip 4096 * 64
boot_stack_top:
.text
