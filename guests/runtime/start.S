/* SPDX-License-Identifier: MIT */
/*
 * Where a guest in C begins on each vCPU, and where its exceptions come to.
 */

	.set	EIP, 40			/* in struct frame of protected mode */
	.set	FLAGS, 48

	.text
	.globl	_start
_start:
	xorl	%ebp, %ebp
#ifdef __x86_64__
	movl	%esi, pyvmm_vcpus
	andq	$-16, %rsp
	call	main			/* EDI = vCPU, ESI = vCPUs */
#else
	movl	%esi, pyvmm_vcpus
	andl	$-16, %esp
	subl	$8, %esp
	pushl	%esi
	pushl	%edi
	call	main
#endif
	outl	%eax, $0xF4
	jmp	.

/*
 * One entry of 16 bytes for each vector. All leave the same frame (struct frame of pyvmm.h):
 * where the CPU pushes no error code, a 0 is in its place.
 */
	.set	vector, 0
	.balign	16
	.globl	pyvmm_entries
pyvmm_entries:
	.rept	256
	.balign	16
	.if	(vector != 8) && ((vector < 10) || (vector > 14)) && (vector != 17) && (vector != 21) && (vector != 29) && (vector != 30)
	push	$0
	.endif
	push	$vector
	jmp	enter
	.set	vector, vector + 1
	.endr

enter:
	cld
#ifdef __x86_64__
	.irp	register, rax, rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15
	pushq	%\register
	.endr
	movq	%cr2, %rax
	pushq	%rax
	movq	%rsp, %rdi
	movq	%rsp, %rbp
	andq	$-16, %rsp
	call	pyvmm_handle
	movq	%rbp, %rsp
	addq	$8, %rsp
	.irp	register, r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax
	popq	%\register
	.endr
	addq	$16, %rsp		/* vector, error code */
	iretq
#else
	.irp	register, eax, ecx, edx, ebx, ebp, esi, edi
	pushl	%\register
	.endr
	movl	%cr2, %eax
	pushl	%eax
	movl	%esp, %eax
	movl	%esp, %ebp
	andl	$-16, %esp
	subl	$12, %esp
	pushl	%eax
	call	pyvmm_handle
	movl	%ebp, %esp
	/* KVM's emulator has no IRET here: the flags below EIP, so that POPF and RET do it. */
	movl	EIP(%esp), %eax
	movl	FLAGS(%esp), %ecx
	movl	%ecx, FLAGS - 4(%esp)
	movl	%eax, FLAGS(%esp)
	addl	$4, %esp
	.irp	register, edi, esi, ebp, ebx, edx, ecx, eax
	popl	%\register
	.endr
	addl	$12, %esp		/* vector, error code, where EIP was */
	popfl
	ret
#endif

	.section .note.GNU-stack, "", @progbits
