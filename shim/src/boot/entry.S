# Boot entries. Each leaves a kind in RDI and the loader's information block in RSI and goes on at
# boot_common, which runs identity mapped at whatever physical address the image was loaded, maps
# the image at its linked address and jumps there.
#
# This section is linked where it is loaded by default, so that loaders find the entries by address
# (GRUB wants e_entry inside a segment's virtual addresses); its first byte is the image's first.
# What lies behind it is reached by its distance from there.

.section .boot, "ax", @progbits
boot_start:

# Multiboot2: the image may be moved anywhere below 4 GiB.
.balign 8
multiboot2_header:
    .long {mb2_magic}, {mb2_architecture}, multiboot2_header_end - multiboot2_header
    .long 0x100000000 - ({mb2_magic} + {mb2_architecture} + (multiboot2_header_end - multiboot2_header))
.balign 8
    .short {mb2_entry}, 0
    .long 12, boot_multiboot2
.balign 8
    .short {mb2_entry_efi64}, {mb2_optional}
    .long 12, boot_multiboot2_64
.balign 8
    .short {mb2_relocatable}, {mb2_optional}
    .long 24, 0x100000, 0xffffffff, {image_align}, {mb2_prefer_low}
.balign 8
    .short {mb2_module_align}, {mb2_optional}
    .long 8
.balign 8
    .short {mb2_console}, {mb2_optional}
    .long 12, {mb2_console_text}
.balign 8                                   # any framebuffer, 32 bits if there is a choice
    .short {mb2_framebuffer}, {mb2_optional}
    .long 20, 0, 0, 32
.balign 8
    .short {mb2_end}, 0
    .long 8
multiboot2_header_end:

# Multiboot2: 32-bit protected mode, flat segments, EBX = the information, no stack.
.code32
boot_multiboot2:
    cld
    cli
    cmp eax, {mb2_loader_magic}
    jne boot_hang                           # EBX means nothing then
    # The information's second word is reserved: it takes the address we find ourselves by.
    lea esp, [ebx + 8]
    call boot_here
boot_here:
    pop ebp
    sub ebp, offset boot_here - {load_paddr}
    mov edi, {kind_multiboot2}
    jmp boot_32

boot_hang:
    hlt
    jmp boot_hang

# PVH: 32-bit protected mode, flat segments, EBX = hvm_start_info. The image is at its linked
# physical address (the note names this address).
boot_pvh:
    cld
    cli
    mov ebp, offset boot_start
    mov edi, {kind_pvh}

# EBP = the image's address, EDI = kind, EBX = information. Into 64-bit mode.
boot_32:
    mov esi, ebx
    lea esp, [ebp + boot_stack_top - {shim_base}]
    # the identity map, for where the image is
    lea edx, [ebp + boot_ident_pdpt - {shim_base}]
    lea eax, [ebp + boot_ident_pd - {shim_base} + 3]
    xor ecx, ecx
2:  mov [edx + ecx * 8], eax
    add eax, 0x1000
    inc ecx
    cmp ecx, 4
    jne 2b
    add edx, 3
    lea eax, [ebp + boot_pml4 - {shim_base}]
    mov [eax], edx
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
    lea eax, [ebp + boot_gdt - {load_paddr}]
    push eax
    push {gdt_limit} << 16
    lgdt [esp + 2]
    push 0x08
    lea eax, [ebp + boot_64 - {load_paddr}]
    push eax
    retf

.code64
boot_64:
    mov esi, esi
    mov edi, edi
    jmp boot_common

# The state of Multiboot2's EFI entry, without boot services: 64-bit mode, identity mapped, EBX = the
# information. For our own EFI application.
boot_multiboot2_64:
    cld
    cli
    mov esi, ebx
    mov edi, {kind_multiboot2}
    jmp boot_common

# Linux 64-bit boot protocol: 64-bit mode, identity mapped, RSI = boot_params.
.global boot_linux64
boot_linux64:
    cld
    cli
    mov edi, {kind_linux}

boot_common:
    lea rbx, [rip + boot_start]             # physical: we run identity mapped
    # the identity map's upper levels, for where the image is
    lea r8, [rbx + boot_ident_pd - {shim_base}]
    lea r9, [rbx + boot_ident_pdpt - {shim_base}]
    lea rax, [r8 + 3]
    xor ecx, ecx
3:  mov [r9 + rcx * 8], rax
    add rax, 0x1000
    inc ecx
    cmp ecx, 4
    jne 3b
    # the image, 4 KiB pages
    lea r10, [rbx + boot_image_pt - {shim_base}]
    lea rax, [rbx + 3]
    xor ecx, ecx
4:  mov [r10 + rcx * 8], rax
    add rax, 0x1000
    inc ecx
    cmp ecx, 512
    jne 4b
    lea r11, [rbx + boot_image_pd - {shim_base}]
    lea rax, [r10 + 3]
    mov [r11], rax
    lea r12, [rbx + boot_image_pdpt - {shim_base}]
    lea rax, [r11 + 3]
    mov [r12 + 8 * 510], rax                # SHIM_BASE is 510 GiB into its slot
    lea rax, [rbx + boot_pml4 - {shim_base}]
    lea rcx, [r9 + 3]
    mov [rax], rcx
    lea rcx, [r12 + 3]
    mov [rax + 8 * {shim_l4_slot}], rcx
    mov cr3, rax
    movabs rax, offset boot_high
    jmp rax

.balign 8
boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff                # 64-bit code
    .quad 0x00cf93000000ffff                # data

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
boot_gdt_pointer_high:
    .word {gdt_limit}
    .quad boot_gdt - boot_start + {shim_base}

# PVH entry: owner "Xen", type XEN_ELFNOTE_PHYS32_ENTRY (18).
.section .note.Xen, "a", @note
.balign 4
    .long 4, 8, {note_phys32_entry}
    .asciz "Xen"
    .quad boot_pvh

# The identity map of the first 4 GiB. 0x83 is present, writable, 2 MiB. The levels above it are
# filled in at boot, as the image may be anywhere.
.section .data.boot, "aw", @progbits
.balign 4096
boot_ident_pd:
    boot_page = 0x83
.rept 4 * 512
    .quad boot_page
    boot_page = boot_page + 0x200000
.endr

.section .bss.boot, "aw", @nobits
.balign 4096
boot_ident_pdpt: .skip 4096
    .global boot_pml4
boot_pml4:       .skip 4096
boot_image_pdpt: .skip 4096
boot_image_pd:   .skip 4096
boot_image_pt:   .skip 4096
boot_stack:      .skip 4096 * 64
boot_stack_top:
.text
