/* SPDX-License-Identifier: MIT */
/* What gcc calls in protected mode for atomic operations on 64 bits: by CMPXCHG8B. */
#include "runtime.h"

#ifndef __x86_64__

/* gcc knows these names as functions of its own, with which no declaration here would agree. */
#define NAMED(name) __asm__("__atomic_" #name "_8")

/* A function that stores `after`, which it may make of `before` and `value`. */
#define CHANGE(name, after)                                                              \
	WEAK u64 atomic_##name(volatile u64 *at, u64 value, int order) NAMED(name);      \
	WEAK u64 atomic_##name(volatile u64 *at, u64 value, int order)                   \
	{                                                                                \
		u64 before = *at;                                                        \
                                                                                         \
		(void)order;                                                             \
		while (!__sync_bool_compare_and_swap(at, before, after))                 \
			before = *at;                                                    \
		return before;                                                           \
	}

CHANGE(exchange, value)
CHANGE(fetch_add, before + value)
CHANGE(fetch_sub, before - value)
CHANGE(fetch_and, before & value)
CHANGE(fetch_or, before | value)
CHANGE(fetch_xor, before ^ value)

WEAK u64 atomic_load(volatile u64 *at, int order) NAMED(load);
WEAK u64 atomic_load(volatile u64 *at, int order)
{
	(void)order;
	return __sync_val_compare_and_swap(at, 0, 0);
}

WEAK void atomic_store(volatile u64 *at, u64 value, int order) NAMED(store);
WEAK void atomic_store(volatile u64 *at, u64 value, int order)
{
	atomic_exchange(at, value, order);
}

WEAK bool atomic_compare(volatile u64 *at, u64 *expected, u64 value, int order, int if_not)
	NAMED(compare_exchange);
WEAK bool atomic_compare(volatile u64 *at, u64 *expected, u64 value, int order, int if_not)
{
	const u64 before = __sync_val_compare_and_swap(at, *expected, value);
	const bool is_done = before == *expected;

	(void)order;
	(void)if_not;
	*expected = before;
	return is_done;
}

#endif
