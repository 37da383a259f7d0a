; The same boot sector for NASM.
;
;     pyvmm run examples/bare/boot_sector.nasm --platform bare

        bits 16
        org 0x7c00
        cli
        xor ax, ax
        mov ds, ax
        mov ss, ax
        mov sp, 0x7c00
        mov si, text
next:   lodsb
        test al, al
        jz off
        mov bl, al
        mov dx, 0x3f8 + 5
.wait:  in al, dx
        test al, 0x20
        jz .wait
        mov dx, 0x3f8
        mov al, bl
        out dx, al
        jmp next
off:    mov dx, 0x604
        mov ax, 0x2000
        out dx, ax
.stop:  hlt
        jmp .stop

text:   db "hello from NASM", 13, 10, 0
        times 510 - ($ - $$) db 0
        dw 0xaa55
