/* SPDX-License-Identifier: MIT */
/* All of the runtime in one piece: gcc takes longer to start than to compile a file of it. */
#include "arithmetic.c"
#include "atomics.c"
#include "console.c"
#include "interrupts.c"
#include "paging.c"
#include "protocol.c"
#include "strings.c"
