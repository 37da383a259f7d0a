/* SPDX-License-Identifier: MIT */
/* What gcc calls on its own, and some more of C's <string.h>. A guest may have its own ones. */
#include "runtime.h"

#pragma GCC optimize("no-tree-loop-distribute-patterns") /* memset() must not call memset() */
#define REPEAT "cld\n\trep "
#ifdef __x86_64__
#define WORD "q"
#else
#define WORD "l"
#endif

WEAK void *memcpy(void *to, const void *from, size_t size)
{
	void *at = to;
	size_t words = 0;

	if (((uintptr_t)to | (uintptr_t)from) % sizeof(long) == 0) {
		words = size / sizeof(long);
		size %= sizeof(long);
	}
	__asm__ volatile(REPEAT "movs" WORD : "+D"(at), "+S"(from), "+c"(words) : : "memory");
	__asm__ volatile(REPEAT "movsb" : "+D"(at), "+S"(from), "+c"(size) : : "memory");
	return to;
}

WEAK void *memmove(void *to, const void *from, size_t size)
{
	u8 *last = (u8 *)to + size;
	const u8 *end = (const u8 *)from + size;

	if ((uintptr_t)to - (uintptr_t)from >= size)
		return memcpy(to, from, size);
	while (size--)
		*--last = *--end;
	return to;
}

WEAK void *memset(void *to, int byte, size_t size)
{
	const unsigned long word = (u8)byte * (~0ul / 0xFF);
	void *at = to;
	size_t words = 0;

	if ((uintptr_t)to % sizeof(long) == 0) {
		words = size / sizeof(long);
		size %= sizeof(long);
	}
	__asm__ volatile(REPEAT "stos" WORD : "+D"(at), "+c"(words) : "a"(word) : "memory");
	__asm__ volatile(REPEAT "stosb" : "+D"(at), "+c"(size) : "a"(word) : "memory");
	return to;
}

WEAK int memcmp(const void *one, const void *other, size_t size)
{
	const u8 *left = one, *right = other;

	for (; size--; left++, right++)
		if (*left != *right)
			return *left - *right;
	return 0;
}

WEAK void *memchr(const void *where, int byte, size_t size)
{
	const u8 *at = where;

	for (; size--; at++)
		if (*at == (u8)byte)
			return (void *)(uintptr_t)at;
	return NULL;
}

WEAK size_t strlen(const char *text)
{
	const char *end = text;

	while (*end)
		end++;
	return (size_t)(end - text);
}

WEAK int strncmp(const char *one, const char *other, size_t size)
{
	for (; size--; one++, other++)
		if (*one != *other || !*one)
			return (u8)*one - (u8)*other;
	return 0;
}

WEAK int strcmp(const char *one, const char *other)
{
	return strncmp(one, other, SIZE_MAX);
}

WEAK char *strcpy(char *to, const char *from)
{
	memcpy(to, from, strlen(from) + 1);
	return to;
}

WEAK char *strchr(const char *text, int character)
{
	for (;; text++) {
		if (*text == (char)character)
			return (char *)(uintptr_t)text;
		if (!*text)
			return NULL;
	}
}
