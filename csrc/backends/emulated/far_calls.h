/* SPDX-License-Identifier: MIT */
/*
 * Far calls of protected and long mode, which push CS and then IP.
 *
 * The word on top of the stack is a far call's only if right before the code that it points to
 * there is an instruction which calls to where the vCPU is now: 9A with the address in it, or
 * FF /3, whose far pointer is read again. What cannot be read may be one.
 */
#ifndef PYVMM_FAR_CALLS_H
#define PYVMM_FAR_CALLS_H

#include "stores.h"

bool may_be_far_call(const struct push *push);

#endif
