/* SPDX-License-Identifier: MIT */
/* puts(), printf() and the like. */
#include "runtime.h"

#define TOGETHER 256

/* Formatted text on its way: to `text` while there is room, or to the console in pieces. */
struct output {
	char *text;
	size_t room;
	size_t length; /* of all that was put, whether or not there was room */
	bool is_console;
};

/*
 * The text was copied to the stack before, so no exception can come up while the lock is held;
 * an interrupt's handler could wait for it for ever.
 */
static void write_console(const char *bytes, size_t size)
{
	static struct lock lock;
	const unsigned long flags = take(&lock);

	while (size--)
		outb(PORT_CONSOLE, (u8)*bytes++);
	give(&lock, flags);
}

static void put(struct output *output, char byte)
{
	size_t at = output->length++;

	if (output->is_console) {
		output->text[at % TOGETHER] = byte;
		if (at % TOGETHER == TOGETHER - 1)
			write_console(output->text, TOGETHER);
	} else if (at < output->room) {
		output->text[at] = byte;
	}
}

struct field {
	unsigned width;
	bool is_left, has_zeros, is_negative;
	const char *prefix;
};

static void pad(struct output *output, char byte, unsigned width, size_t length)
{
	for (; width > length; width--)
		put(output, byte);
}

static void put_text(struct output *output, const struct field *field, const char *text,
		     size_t length)
{
	if (!field->is_left)
		pad(output, ' ', field->width, length);
	for (size_t i = 0; i < length; i++)
		put(output, text[i]);
	if (field->is_left)
		pad(output, ' ', field->width, length);
}

static void put_number(struct output *output, struct field *field, u64 value, unsigned base,
		       char ten)
{
	const char *prefix = field->is_negative ? "-" : field->prefix;
	const size_t prefixed = strlen(prefix);
	char digits[24];
	size_t at = sizeof(digits), length;

	do {
		unsigned digit = (unsigned)(value % base);

		digits[--at] = (char)(digit < 10 ? '0' + digit : ten + digit - 10);
		value /= base;
	} while (value);
	length = prefixed + sizeof(digits) - at;
	if (!field->is_left && !field->has_zeros)
		pad(output, ' ', field->width, length);
	for (size_t i = 0; i < prefixed; i++)
		put(output, prefix[i]);
	if (!field->is_left && field->has_zeros)
		pad(output, '0', field->width, length);
	for (; at < sizeof(digits); at++)
		put(output, digits[at]);
	if (field->is_left)
		pad(output, ' ', field->width, length);
}

static size_t length_of(const char *text, int most)
{
	size_t length = 0;

	while ((most < 0 || length < (size_t)most) && text[length])
		length++;
	return length;
}

/* What is in an argument of `longs` times long; -1 is short, -2 is char. */
static u64 integer(int longs, bool is_signed, u64 value)
{
	const unsigned bits = longs <= -2  ? 8
			      : longs == -1 ? 16
			      : longs == 0  ? 32
			      : longs == 1  ? 8 * sizeof(long)
					    : 64;
	const unsigned above = 64 - bits;

	return is_signed ? (u64)((s64)(value << above) >> above) : value << above >> above;
}

static const char *number_in(const char *at, int *number)
{
	unsigned found = 0;

	for (; *at >= '0' && *at <= '9'; at++)
		found = found * 10 + (unsigned)(*at - '0');
	*number = (int)(found & 0xFFFF);
	return at;
}

/* Behind a %; returns the place behind the conversion. */
static const char *put_conversion(struct output *output, const char *at, va_list *arguments)
{
	struct field field = { .prefix = "" };
	int width = 0, precision = -1, longs = 0;
	u64 value;

	for (; *at == '0' || *at == '-' || *at == '#'; at++) {
		field.has_zeros |= *at == '0';
		field.is_left |= *at == '-';
		if (*at == '#')
			field.prefix = "0x";
	}
	if (*at == '*') {
		width = va_arg(*arguments, int);
		at++;
	} else {
		at = number_in(at, &width);
	}
	field.is_left |= width < 0;
	field.width = (unsigned)(width < 0 ? -width : width) & 0xFFFF;
	if (*at == '.') {
		if (*++at == '*') {
			precision = va_arg(*arguments, int);
			at++;
		} else {
			at = number_in(at, &precision);
		}
	}
	for (; *at == 'l' || *at == 'h' || *at == 'z'; at++)
		longs += *at == 'h' ? -1 : 1;

	switch (*at) {
	case '\0':
		return at;
	case 'd':
	case 'i':
	case 'u':
	case 'x':
	case 'X': {
		const bool is_signed = *at == 'd' || *at == 'i';

		if (longs >= 2)
			value = va_arg(*arguments, u64);
		else if (longs == 1)
			value = (u64)va_arg(*arguments, long);
		else
			value = (u64)va_arg(*arguments, int);
		value = integer(longs, is_signed, value);
		field.is_negative = is_signed && (s64)value < 0;
		if (*at == 'd' || *at == 'i' || *at == 'u')
			field.prefix = "";
		put_number(output, &field, field.is_negative ? -value : value,
			   *at == 'x' || *at == 'X' ? 16 : 10, *at == 'X' ? 'A' : 'a');
		break;
	}
	case 'p':
		field.prefix = "0x";
		put_number(output, &field, (uintptr_t)va_arg(*arguments, void *), 16, 'a');
		break;
	case 's': {
		const char *text = va_arg(*arguments, const char *);

		if (!text)
			text = "(null)";
		put_text(output, &field, text, length_of(text, precision));
		break;
	}
	case 'c': {
		const char character = (char)va_arg(*arguments, int);

		put_text(output, &field, &character, 1);
		break;
	}
	default: /* %% and what is no conversion */
		put(output, *at);
	}
	return at + 1;
}

static void put_formatted(struct output *output, const char *format, va_list *arguments)
{
	while (*format) {
		if (*format == '%')
			format = put_conversion(output, format + 1, arguments);
		else
			put(output, *format++);
	}
}

int vprintf(const char *format, va_list arguments)
{
	char text[TOGETHER];
	struct output output = { .text = text, .is_console = true };
	va_list copy;

	va_copy(copy, arguments);
	put_formatted(&output, format, &copy);
	va_end(copy);
	write_console(text, output.length % TOGETHER);
	return (int)output.length;
}

int printf(const char *format, ...)
{
	va_list arguments;
	int length;

	va_start(arguments, format);
	length = vprintf(format, arguments);
	va_end(arguments);
	return length;
}

int vsnprintf(char *text, size_t size, const char *format, va_list arguments)
{
	struct output output = { .text = text, .room = size ? size - 1 : 0 };
	va_list copy;

	va_copy(copy, arguments);
	put_formatted(&output, format, &copy);
	va_end(copy);
	if (size)
		text[output.length < output.room ? output.length : output.room] = '\0';
	return (int)output.length;
}

int snprintf(char *text, size_t size, const char *format, ...)
{
	va_list arguments;
	int length;

	va_start(arguments, format);
	length = vsnprintf(text, size, format, arguments);
	va_end(arguments);
	return length;
}

int puts(const char *text)
{
	return printf("%s\n", text);
}

int putchar(int character)
{
	const char byte = (char)character;

	write_console(&byte, 1);
	return (u8)byte;
}
