/* SPDX-License-Identifier: MIT */
/*
 * What gcc calls for integers of two words, and for bits: functions of libgcc, whose 32-bit build
 * comes in a package of its own.
 */
#include "runtime.h"

#define WORD_BITS (8 * sizeof(word))

#ifdef __x86_64__
typedef u64 word;
typedef unsigned __int128 two_words;
typedef __int128 signed_two_words;
#define LEADING_ZEROS __builtin_clzll
#define DIVIDE(name) __##name##ti3
#define DIVIDE_BOTH(name) __##name##ti4
#else
typedef u32 word;
typedef u64 two_words;
typedef s64 signed_two_words;
#define LEADING_ZEROS __builtin_clz
#define DIVIDE(name) __##name##di3
#define DIVIDE_BOTH(name) __##name##di4
#endif

static two_words divide(two_words number, two_words by, two_words *rest)
{
	const word high = (word)(number >> WORD_BITS);
	two_words quotient = 0;

	if (!(by >> WORD_BITS)) {
		word low = (word)number, left = high % (word)by;

		__asm__("div %2" : "+a"(low), "+d"(left) : "r"((word)by));
		*rest = left;
		return (two_words)(high / (word)by) << WORD_BITS | low;
	}
	if (number >= by) {
		int shift = LEADING_ZEROS((word)(by >> WORD_BITS)) - LEADING_ZEROS(high);

		for (by <<= shift; shift >= 0; shift--, by >>= 1) {
			quotient <<= 1;
			if (number >= by) {
				number -= by;
				quotient |= 1;
			}
		}
	}
	*rest = number;
	return quotient;
}

static two_words absolute(signed_two_words number)
{
	return number < 0 ? -(two_words)number : (two_words)number;
}

static signed_two_words signed_divide(signed_two_words number, signed_two_words by,
				      signed_two_words *rest)
{
	two_words left;
	two_words quotient = divide(absolute(number), absolute(by), &left);

	*rest = (signed_two_words)(number < 0 ? -left : left);
	return (signed_two_words)((number < 0) != (by < 0) ? -quotient : quotient);
}

WEAK two_words DIVIDE(udiv)(two_words number, two_words by)
{
	two_words rest;

	return divide(number, by, &rest);
}

WEAK two_words DIVIDE(umod)(two_words number, two_words by)
{
	two_words rest;

	divide(number, by, &rest);
	return rest;
}

WEAK two_words DIVIDE_BOTH(udivmod)(two_words number, two_words by, two_words *rest)
{
	return divide(number, by, rest);
}

WEAK signed_two_words DIVIDE(div)(signed_two_words number, signed_two_words by)
{
	signed_two_words rest;

	return signed_divide(number, by, &rest);
}

WEAK signed_two_words DIVIDE(mod)(signed_two_words number, signed_two_words by)
{
	signed_two_words rest;

	signed_divide(number, by, &rest);
	return rest;
}

WEAK signed_two_words DIVIDE_BOTH(divmod)(signed_two_words number, signed_two_words by,
					  signed_two_words *rest)
{
	return signed_divide(number, by, rest);
}

WEAK int __popcountsi2(u32 bits)
{
	int count = 0;

	for (; bits; bits &= bits - 1)
		count++;
	return count;
}

WEAK int __popcountdi2(u64 bits)
{
	return __popcountsi2((u32)bits) + __popcountsi2((u32)(bits >> 32));
}

WEAK int __ctzdi2(u64 bits)
{
	return (u32)bits ? __builtin_ctz((u32)bits) : 32 + __builtin_ctz((u32)(bits >> 32));
}

WEAK int __clzdi2(u64 bits)
{
	return bits >> 32 ? __builtin_clz((u32)(bits >> 32)) : 32 + __builtin_clz((u32)bits);
}

WEAK int __ffsdi2(u64 bits)
{
	return bits ? 1 + __ctzdi2(bits) : 0;
}

WEAK int __paritysi2(u32 bits)
{
	return __popcountsi2(bits) & 1;
}

WEAK int __paritydi2(u64 bits)
{
	return __popcountdi2(bits) & 1;
}

WEAK int __clrsbdi2(s64 bits)
{
	const u64 differs = (u64)(bits ^ bits >> 63);

	return differs ? __clzdi2(differs) - 1 : 63;
}
