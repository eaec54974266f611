# Entry to and exit from ring 0.
#
# CpuRegs (translate/src/regs.rs) is the frame every path but the two fast ones builds, lowest
# address first: r15 .. rdi, error code | vector << 32, then the processor's rip cs rflags rsp ss.
# It is 21 words, so a stack that was 16-byte aligned before it is 8 off after it; each path makes
# up for that before it calls Rust.
#
# r_* below are offsets of registers in CpuRegs, pc_* of fields in PerCpu.

# ---------------------------------------------------------------------------------------------
# SYSCALL: one copy of this page per vCPU, in front of the vCPU's PerCpu, so that RIP-relative
# references reach that vCPU's data without GS, which belongs to the guest. stub_percpu is where
# PerCpu lies relative to the copy.
#
# A page fault in here (a guest stack that is not there) pushes its frame on that same stack, so
# it ends as #DF on its own stack, or, where only the upper part is missing, as #PF on the guest's
# stack. Both are recognised by RIP in a stub and crash the domain, not the shim.


.macro SAVE_REGS
    push rdi
    push rsi
    push rdx
    push rcx
    push rax
    push r8
    push r9
    push r10
    push r11
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
.endm

# The other half of SAVE_REGS: what Rust may have changed, and the error code's slot.
.macro RESTORE_CALLER_REGS
    pop r11
    pop r10
    pop r9
    pop r8
    pop rax
    pop rcx
    pop rdx
    pop rsi
    pop rdi
    add rsp, 8
.endm

# A fast call: RDI and RSI are its first arguments, RDX becomes the third, PerCpu. A call with a
# list takes RDX and R10 besides, which show the plain form: the list is short, the guest's own, and
# nobody asks how much of it was done. A call's own argument registers need not survive it. With the
# five words of the IRETQ frame the stack is aligned after an odd number of further ones.
.macro FAST_CALL handler
    push r8
    push r9
    push r9
    lea rdx, [rip + stub_percpu]
    call [rip + stub_percpu + \handler]
    pop r9
    pop r9
    pop r8
.endm
.macro FAST_LIST handler
    test rdx, rdx
    jne stub_general
    cmp r10d, {domid_self}
    jne stub_general
    cmp esi, {plain_list}
    ja stub_general
    FAST_CALL \handler
    jmp stub_fast_exit
.endm
.macro FAST_PAIR handler
    push rdx
    push r10
    FAST_CALL \handler
    pop r10
    pop rdx
    jmp stub_fast_exit
.endm

.section .stub.text, "ax", @progbits
.balign 64
.global stub_syscall
stub_syscall:
    mov [rip + stub_percpu + {pc_user_rsp}], rsp
    test rcx, rcx                           # RCX = return RIP: upper half = guest kernel
    js stub_kernel

    # A system call of guest user mode: Xen's frame on the guest kernel's stack, then ring 1.
    cmp qword ptr [rip + stub_percpu + {pc_fast_syscall}], 0
    je stub_user_slow
    swapgs
    mov rsp, [rip + stub_percpu + {pc_kernel_sp}]
    push {xen_user_ss}
    push [rip + stub_percpu + {pc_user_rsp}]
    push r11                                # RFLAGS; IF is set, as it always is in the guest
    push {xen_user_cs}                      # upper half: saved upcall mask, 0
    push rcx                                # RIP
    push r11
    push rcx
    mov rcx, [rip + stub_percpu + {pc_info}]
    cmp byte ptr [rcx + {info_mask}], 0
    jne 2f
1:  mov byte ptr [rcx + {info_mask}], 1
    mov r11, rsp
    push {kernel_ss}
    push r11
    push {kernel_rflags}
    push {kernel_cs}
    push [rip + stub_percpu + {pc_fast_syscall}]
    iretq
2:  mov byte ptr [rsp + 28], 1              # user mode ran with events masked: say so in CS
    and dword ptr [rsp + 32], ~0x200        # and in the image of IF
    jmp 1b

stub_kernel:
    cmp eax, {nr_iret}
    jne stub_hypercall

    # HYPERVISOR_iret, RSP -> rax r11 rcx flags rip cs rflags rsp ss. The common case, a return to
    # 64-bit user code with nothing pending, ends here; all else goes the long way.
    cmp qword ptr [rsp + 40], {user_cs}
    jne stub_hypercall
    cmp qword ptr [rsp + 64], {user_ss}
    jne stub_hypercall
    mov rax, [rsp + 32]
    shr rax, 47                             # SYSRET to a non-canonical RIP faults in ring 0
    jne stub_iret_slow
    mov eax, [rsp + 48]
    and eax, {iret_rflags_mask}
    cmp eax, 0x200                          # IF and none of TF NT IOPL RF VM
    jne stub_iret_slow
    mov rax, [rip + stub_percpu + {pc_info}]
    mov byte ptr [rax + {info_mask}], 0
    cmp byte ptr [rax + {info_pending}], 0
    jne stub_iret_slow
    cmp byte ptr [rip + stub_percpu + {pc_attention}], 0
    jne stub_iret_slow                      # an NMI waits, or its handler ends here
    mov rcx, [rsp + 32]
    mov r11, [rsp + 48]
    cmp rcx, [rsp + 16]
    jne 3f
    cmp r11, [rsp + 8]
    jne 3f
    mov rax, [rsp]
    swapgs
    mov rsp, [rsp + 56]
    sysretq
    # RCX and R11 are live: IRETQ, from the vCPU's own stack, where a fault of it can be handled.
3:  mov rax, rsp
    mov rsp, [rip + stub_percpu + {pc_stack_top}]
    push {user_ss}
    push [rax + 56]
    push r11
    push {user_cs}
    push rcx
    mov r11, [rax + 8]
    mov rcx, [rax + 16]
    mov rax, [rax]
    swapgs
.global stub_fast_iretq
stub_fast_iretq:
    iretq

stub_iret_slow:
    mov eax, {nr_iret}
stub_hypercall:
    # The IRETQ frame every hypercall returns with.
    mov rsp, [rip + stub_percpu + {pc_stack_top}]
    push {kernel_ss}
    push [rip + stub_percpu + {pc_user_rsp}]
    push r11
    push {kernel_cs}
    push rcx

    # The commonest calls, in their plain form (fast.rs).
    cmp eax, {nr_mmu_update}
    je 1f
    cmp eax, {nr_mmuext_op}
    je 2f
    cmp eax, {nr_stack_switch}
    je 3f
    cmp eax, {nr_set_segment_base}
    je 4f
    jmp stub_general
1:  FAST_LIST {pc_fast_mmu_update}
2:  FAST_LIST {pc_fast_mmuext_op}
3:  FAST_PAIR {pc_fast_stack_switch}
4:  FAST_PAIR {pc_fast_set_segment_base}
stub_fast_exit:
    mov rcx, [rip + stub_percpu + {pc_info}]
    cmp word ptr [rcx + {info_pending}], 1  # pending, and not masked in the byte behind
    je 6f
.global stub_fast_hypercall_iretq
stub_fast_hypercall_iretq:
    iretq
6:  xor ecx, ecx                            # an event came up: deliver it the general way
    xor r11d, r11d
    push -1
    SAVE_REGS
    lea rsi, [rip + stub_percpu]
    mov rdi, rsp
    sub rsp, 8
    call [rip + stub_percpu + {pc_exit}]
    jmp 7f

stub_general:
    mov r11, [rsp + 16]                     # RFLAGS, as SYSCALL left it in R11
    push -1                                 # CpuRegs::VECTOR_SYSCALL
    SAVE_REGS
    mov rdi, rsp
    lea rsi, [rip + stub_percpu]
    sub rsp, 8
    call [rip + stub_percpu + {pc_hypercall}]
7:  add rsp, 6 * 8 + 8                      # r15 .. rbx survived the call
    RESTORE_CALLER_REGS
.global stub_hypercall_iretq
stub_hypercall_iretq:
    iretq

    # User mode makes a 64-bit system call and the guest has no plain handler for it.
stub_user_slow:
    mov rsp, [rip + stub_percpu + {pc_stack_top}]
    push {user_ss_flat}
    push [rip + stub_percpu + {pc_user_rsp}]
    push r11
    push {user_cs_flat}
    push rcx
    push -1
    jmp stub_compat_common

# SYSCALL from 32-bit user code (AMD): ECX = return EIP.
.balign 16
.global stub_syscall32
stub_syscall32:
    mov [rip + stub_percpu + {pc_user_rsp}], rsp
    mov rsp, [rip + stub_percpu + {pc_stack_top}]
    push {user_ss_flat}
    push [rip + stub_percpu + {pc_user_rsp}]
    push r11
    push {user_cs32}
    push rcx
    push -2                                 # CpuRegs::VECTOR_SYSCALL32
stub_compat_common:
    SAVE_REGS
    mov rdi, rsp
    lea rsi, [rip + stub_percpu]
    sub rsp, 8
    call [rip + stub_percpu + {pc_user_syscall}]
    jmp [rip + stub_percpu + {pc_trap_exit}]

# SYSENTER (Intel, 32-bit user code): no return address is recorded; RSP is the vCPU's stack. Of the
# flags it clears IF and VM alone: with NT the IRETQ at the end would fault, with DF Rust would copy
# downwards.
.balign 16
.global stub_sysenter
stub_sysenter:
    push {user_ss_flat}
    push 0
    pushfq
    push 2
    popfq
    push {user_cs32}
    push 0
    push -3                                 # CpuRegs::VECTOR_SYSENTER
    jmp stub_compat_common

# ---------------------------------------------------------------------------------------------
# Exceptions and interrupts. The vCPU's PerCpu follows from RSP: its stacks lie in its area.
# Gates leave DF as whoever was interrupted has it: each path clears it for Rust, and for its own
# string instructions. IRETQ brings it back.

.text

.balign 64
# Page faults of the guest, the commonest trap: as below, but what Rust preserves is not loaded again.
trap_page_fault:
    test byte ptr [rsp + 16], 3             # CS, above error code and RIP
    je trap_common
    SAVE_REGS
    cld
    mov rdi, rsp
    mov rsi, rsp
    and rsi, -{percpu_stride}
    add rsi, 4096
    sub rsp, 8
    call {page_fault_from_guest}
    add rsp, 6 * 8 + 8
    RESTORE_CALLER_REGS
.global trap_page_fault_iretq
trap_page_fault_iretq:
    iretq

trap_common:
    SAVE_REGS
    cld
    mov rdi, rsp
    test byte ptr [rsp + {r_cs}], 3
    je trap_ring0
    mov rsi, rsp
    and rsi, -{percpu_stride}
    add rsi, 4096
trap_guest:
    sub rsp, 8
    call {trap_from_guest}
.global trap_exit
trap_exit:
    add rsp, 8
trap_restore:
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    RESTORE_CALLER_REGS
.global trap_iretq
trap_iretq:
    iretq

# From ring 0: a fixed-up access, the idle HLT, the final IRETQ, a guest stack in a stub, or a bug.
trap_ring0:
    mov rbx, rsp
    mov rsi, rsp
    and rsi, -{percpu_stride}
    add rsi, 4096
    movabs rax, {percpu_base}
    mov rcx, [rsp + {r_rip}]
    sub rcx, rax
    cmp rcx, {percpu_size}
    jae 1f
    mov rsi, [rsp + {r_rip}]
    and rsi, -{percpu_stride}
    add rsi, 4096
    mov rsp, [rsi + {pc_emergency_top}]     # the stack in use may be the guest's
1:  and rsp, -16
    call {trap_from_ring0}
    mov rsp, rbx
    test rax, rax
    je trap_restore
    # The frame is to be replaced by the one at RAX (the guest's, whose IRETQ failed).
    mov rsp, rax
    mov rdi, rax
    mov rsi, rax
    and rsi, -{percpu_stride}
    add rsi, 4096
    sub rsp, 8
    call {iret_failed}
    jmp trap_exit

# Vectors with a stack of their own (#DB, NMI, #DF, #MC). From the guest the frame moves to the
# vCPU's ordinary stack, which is empty then, and all goes on as for other vectors. From ring 0 the
# handler runs here and changes nothing but notes.
.balign 64
ist_common:
    SAVE_REGS
    cld
    test byte ptr [rsp + {r_cs}], 3
    je ist_ring0
    mov rdx, rsp
    and rdx, -{percpu_stride}
    add rdx, 4096
    mov rdi, [rdx + {pc_stack_top}]
    sub rdi, {regs_size}
    mov rax, rdi
    mov rsi, rsp
    mov ecx, {regs_size} / 8
    rep movsq
    mov rsp, rax
    mov rdi, rax
    mov rsi, rdx
    jmp trap_guest
ist_ring0:
    mov rdi, rsp
    mov rsi, rsp
    and rsi, -{percpu_stride}
    add rsi, 4096
    sub rsp, 8
    call {ist_from_ring0}
    add rsp, 8
    jmp trap_restore

# The 256 stubs, 16 bytes apart.
.balign 16
.global trap_stubs
trap_stubs:
.set vector, 0
.rept 256
    .balign 16
    .if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30)
    push 0
    .endif
    mov dword ptr [rsp + 4], vector
    .if vector == 1 || vector == 2 || vector == 8 || vector == 18
    jmp ist_common
    .elseif vector == 14
    jmp trap_page_fault
    .else
    jmp trap_common
    .endif
    .set vector, vector + 1
.endr

# First entry to the guest: RDI = CpuRegs at the top of the vCPU's stack.
.global enter_guest
enter_guest:
    mov rsp, rdi
    jmp trap_restore

# ---------------------------------------------------------------------------------------------
# Guest memory access that may fault.

.macro FIXUP from, to
    .pushsection __ex_table, "a", @progbits
    .quad \from, \to
    .popsection
.endm

# guest_copy(rdi = to, rsi = from, rdx = bytes) -> rax = 0, or 1 after a fault.
.balign 16
.global guest_copy
guest_copy:
    mov ecx, edx
    shr ecx, 3
    je 2f
    cmp ecx, 16
    ja 5f
1:  mov rax, [rsi]
6:  mov [rdi], rax
    add rsi, 8
    add rdi, 8
    dec ecx
    jne 1b
2:  and edx, 7
    je 4f
3:  mov al, [rsi]
7:  mov [rdi], al
    inc rsi
    inc rdi
    dec edx
    jne 3b
4:  xor eax, eax
    ret
5:  mov rcx, rdx
9:  rep movsb
    xor eax, eax
    ret
8:  mov eax, 1
    ret
    FIXUP 1b, 8b
    FIXUP 6b, 8b
    FIXUP 3b, 8b
    FIXUP 7b, 8b
    FIXUP 9b, 8b

# load_gs_checked(edi = selector) -> rax = 0, or 1 where the load faulted (null is loaded then).
.global load_gs_checked
load_gs_checked:
    xor eax, eax
1:  mov gs, edi
    ret
2:  xor edi, edi
    mov gs, edi
    mov eax, 1
    ret
    FIXUP 1b, 2b

# wrmsr_checked(edi = msr, rsi = value) -> rax = 0, or 1 where the processor refused it.
.global wrmsr_checked
wrmsr_checked:
    mov ecx, edi
    mov eax, esi
    mov rdx, rsi
    shr rdx, 32
1:  wrmsr
    xor eax, eax
    ret
2:  mov eax, 1
    ret
    FIXUP 1b, 2b

# rdmsr_checked(edi = msr, rsi = where its value goes) -> rax = 0, or 1 where the processor refused it.
.global rdmsr_checked
rdmsr_checked:
    mov ecx, edi
1:  rdmsr
    mov [rsi], eax
    mov [rsi + 4], edx
    xor eax, eax
    ret
2:  mov eax, 1
    ret
    FIXUP 1b, 2b

# xsetbv_checked(rdi = value) for XCR0 -> rax = 0, or 1.
.global xsetbv_checked
xsetbv_checked:
    xor ecx, ecx
    mov eax, edi
    mov rdx, rdi
    shr rdx, 32
1:  xsetbv
    xor eax, eax
    ret
2:  mov eax, 1
    ret
    FIXUP 1b, 2b

# idle: interrupts on for exactly the HLT. Interrupts find RIP at idle_done; one that comes earlier is
# sent there (trap/ring0.rs), or the HLT would wait for what has just come: an NMI, or an interrupt
# that a host without the shadow of STI lets in.
.global idle_hlt
idle_hlt:
    sti
    hlt
.global idle_done
idle_done:
    cli
    ret
