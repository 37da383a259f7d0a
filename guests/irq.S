# irq.S - timer interrupts while pages are converted
#
# shows:       the PIT interrupts through the PIC while the guest converts pages; the
#              handler converts pages of its own, and neither disturbs the other.
#              HLT with interrupts on waits for the next one. The timer is started
#              anew for each, so that a slow machine gets on as well. With FRAMES=1 interrupts
#              push their frames to a stack in the region, which converts its page.
#              Measured at the end: the ticks, and two things that no CPU does, and QEMU's
#              emulation of SVM now and then: an interrupt that arrives twice, and one
#              that arrives between STI and HLT. On a CPU both are 0.
# vcpus:       1-28, the first one works
# options:     --irqchip
# params:      FRAMES=0 (1: interrupt frames in the region; `emulated` needs a KVM that
#              delivers interrupts by its own emulator, others spin until the deadline)
# exits:       io memory
# expect:      pass
# conversions: to_private=544 to_shared=544 implicit=1088 explicit=0
# conversions --param FRAMES=1: to_private=552 to_shared=552 implicit=1104 explicit=0
# expect --views 1: pass
# expect --param FRAMES=1 emulated: pass | deadline
# conversions --views 1: to_private=544 to_shared=544 implicit=0 explicit=1088

        .include "pyvmm.inc"
        guest "irq.S"

        .ifndef FRAMES
        .set FRAMES, 0
        .endif

        .set PIC_COMMAND, 0x20          # the Intel 8259A's ports, first chip and second
        .set PIC_DATA, 0x21
        .set PIC2_DATA, 0xA1
        .set END_OF_INTERRUPT, 0x20
        .set PIT_CHANNEL_0, 0x40        # the Intel 8254's
        .set PIT_MODE, 0x43
        .set TIMER_VECTOR, 0x20
        .set DELAY, 298                 # of 1193182 Hz: 250 us

        .set HANDLER_PAGES, 32          # pages 0-31 are the handler's, one a tick
        .set ROUNDS, 16                 # the main line converts pages 32-63 so many times
        .set TICKS, HANDLER_PAGES + 8

# pushes_frame VIEW: waits for a tick whose frame converts page 0.
.macro pushes_frame view
        call start_timer
        lssw stack_\view, %sp
        movl ticks, %eax
        sti
wait_\@:
        cmpl ticks, %eax
waiting_\@:
        je wait_\@
        cli
        lssw own_stack, %sp
        movw $\view, %ax
        movw %ax, %es
        assert_eqw %es:0xFC, $0         # the frame: IP, CS, FLAGS
        movw %es:0xFA, %ax
        subw $wait_\@, %ax
        cmpw $waiting_\@ - wait_\@ + 2, %ax
        assert jbe, "the frame's IP lies in the loop that waited"
        testw $0x200, %es:0xFE
        assert jnz, "the frame's FLAGS have interrupts on"
        assert_eq %es:0, $0
.endm

        only_vcpu_0
        find_views

        # what is written to the PIC's mask can be read back, if there is one
        movb $0xFE, %al
        outb %al, $PIC_DATA
        inb $PIC_DATA, %al
        cmpb $0xFE, %al
        assert je, "there is an interrupt controller (--irqchip)"

        movw $timer, TIMER_VECTOR * 4
        movw $0, TIMER_VECTOR * 4 + 2

        movb $0x11, %al                 # initialise: edge triggered, cascade, 4 words follow
        outb %al, $PIC_COMMAND
        movb $TIMER_VECTOR, %al
        outb %al, $PIC_DATA
        movb $4, %al                    # the second chip is at input 2
        outb %al, $PIC_DATA
        movb $1, %al                    # 8086 mode
        outb %al, $PIC_DATA
        movb $0xFE, %al                 # input 0 only, the timer
        outb %al, $PIC_DATA
        movb $0xFF, %al
        outb %al, $PIC2_DATA

        call start_timer
        sti

        movw $ROUNDS, %dx
round:
        movw $HANDLER_PAGES, %cx
convert:
        private_page %es, %cx
        call check_and_mark
        shared_page %es, %cx
        call check_and_mark
        movl ticks, %eax
        cmpl started, %eax
        jb still_running
        call start_timer
still_running:
        incw %cx
        cmpw $REGION_PAGES, %cx
        jb convert
        decw %dx
        jnz round

        # the ticks that are missing
wait:
        cli
        movl ticks, %eax
        cmpl $TICKS, %eax
        jae all_ticks
        cmpl started, %eax
        jb sleep
        call start_timer
sleep:
        call wait_for_tick
        jmp wait
all_ticks:

        movw $0, %cx
handlers_pages:
        shared_page %es, %cx
        check_page $0x5A5A5A5A
        incw %cx
        cmpw $HANDLER_PAGES, %cx
        jb handlers_pages
        movw $HANDLER_PAGES, %cx
main_pages:
        shared_page %es, %cx
        assert_eq %es:0x10, %ecx
        incw %cx
        cmpw $REGION_PAGES, %cx
        jb main_pages
        movl started, %eax
        cmpl ticks, %eax
        je no_tick_left
        call wait_for_tick              # the timer that main left running
        cli
no_tick_left:
        measure ticks
        measure doubled
        measure unshadowed

        .if FRAMES
        require_two_views
        movw $frame_timer, TIMER_VECTOR * 4
        movw %sp, own_stack
        movw $8, %dx
frames:
        pushes_frame PRIVATE
        pushes_frame SHARED
        decw %dx
        jnz frames
        .endif

        exit_guest $0

# Asserts that the page at ES, number CX, has just become zero, and leaves a mark.
check_and_mark:
        assert_eq %es:0x10, $0
        movzwl %cx, %ecx
        movl %ecx, %es:0x10
        assert_eq %es:0x10, %ecx
        ret

# Starts channel 0 in mode 0, which interrupts once when it has counted down.
start_timer:
        pushw %ax
        incl started
        movb $0x30, %al
        outb %al, $PIT_MODE
        movb $DELAY & 0xFF, %al
        outb %al, $PIT_CHANNEL_0
        movb $DELAY >> 8, %al
        outb %al, $PIT_CHANNEL_0
        popw %ax
        ret

# Waits with interrupts on. From the HLT on: no tick is missed.
wait_for_tick:
        sti
waits:  hlt
        ret

# Each of the first ticks converts a page of the handler's both ways.
timer:
        pushw %bp
        movw %sp, %bp
        cmpw $timer, 2(%bp)             # the interrupted IP
        je twice
        cmpb $0, %cs:in_handler
        jne twice
        incb %cs:in_handler
        cmpw $waits, 2(%bp)
        jne not_too_early
        incw 2(%bp)                     # past the HLT, which nothing else would end
        incl %cs:unshadowed
not_too_early:
        popw %bp
        pushal
        pushw %es
        movl %cs:ticks, %ecx
        cmpw $HANDLER_PAGES, %cx
        jae timer_end
        private_page %es, %cx
        check_page $0
        fill_page $0xA5A5A5A5
        shared_page %es, %cx
        check_page $0
        fill_page $0x5A5A5A5A
timer_end:
        incl %cs:ticks
        movb $END_OF_INTERRUPT, %al
        outb %al, $PIC_COMMAND
        popw %es
        popal
        decb %cs:in_handler
        iretw

# The handler that was interrupted by its own interrupt goes on.
twice:
        incl %cs:doubled
        popw %bp
        iretw

# Counts, and needs no more stack than the frame and a word.
frame_timer:
        incl %cs:ticks
        pushw %ax
        movb $END_OF_INTERRUPT, %al
        outb %al, $PIC_COMMAND
        popw %ax
        iretw

started:
        .long 0
ticks:  .long 0
doubled:
        .long 0
unshadowed:
        .long 0
in_handler:
        .byte 0
own_stack:
        .word 0, 0
stack_PRIVATE:
        .word 0x100, PRIVATE
stack_SHARED:
        .word 0x100, SHARED
