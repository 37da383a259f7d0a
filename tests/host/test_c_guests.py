"""Guests in C run as their page says: every name, in both modes, and failures name the line."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvmm import Machine, Result, load_guest
from pyvmm.report import RunReport

MODES = ("protected", "long")
A = 0x123456789ABCDEF0
HEAD = '#include "pyvmm.h"\n'


def run(tmp_path: Path, body: str, mode: str, vcpus: int = 1, **parameters: int) -> RunReport:
    """The report of a guest of these definitions, whose first line is line 2 of mine.c."""
    path = tmp_path / "mine.c"
    path.write_text(HEAD + body)
    with Machine(load_guest(path, parameters, mode), vcpus=vcpus) as machine:
        return machine.run(60)


def main_of(statements: str) -> str:
    return f"int main(unsigned vcpu, unsigned vcpus) {{ {statements} return 0; }}\n"


PRINTED = {
    r'printf("%d %i %u", -5, 7, 4000000000u);': "-5 7 4000000000",
    r'printf("%x %X %#x %08x", 255, 255, 255, 0xbeef);': "ff FF 0xff 0000beef",
    r'printf("[%5d|%-5d|%05d]", -42, 42, -42);': "[  -42|42   |-0042]",
    r'printf("[%5s|%-5s]", "ab", "ab");': "[   ab|ab   ]",
    r'printf("[%*d|%-*d|%*d]", 4, 1, 4, 2, -4, 3);': "[   1|2   |3   ]",
    r'printf("%.2s|%.*s|%s", "abc", 1, "abc", (char *)0);': "ab|a|(null)",
    r'printf("%c%c%%", 65, 66);': "AB%",
    r'printf("%lx %lu %ld", 0x12345678ul, 99ul, -99l);': "12345678 99 -99",
    r'printf("%llx %lld", 0x123456789abcdefull, -5ll);': "123456789abcdef -5",
    r'printf("%llu", 18446744073709551615ull);': "18446744073709551615",
    r'printf("%lld", (long long)(-9223372036854775807ll - 1));': "-9223372036854775808",
    r'printf("%hhd %hd %zu %u", 300, 70000, sizeof(int), 1u << 31);': "44 4464 4 2147483648",
    r'printf("%p", (void *)0x1234);': "0x1234",
    r'puts("a line"); putchar(33);': "a line\n!",
    r'char text[6]; printf("%d %s", snprintf(text, 6, "%s", "abcdefgh"), text);': "8 abcde",
    r'for (int i = 0; i < 100; i++) printf("%s", "0123456789");': "0123456789" * 100,
}


@pytest.mark.parametrize("mode", MODES)
def test_printf(mode: str, tmp_path: Path) -> None:
    calls = "".join(f"{{ {call} putchar(0); }}" for call in PRINTED)
    report = run(tmp_path, main_of(calls), mode)
    assert report.passed, report.reason
    assert report.console.split("\0")[:-1] == list(PRINTED.values())


# Definitions, and what main() does with them.
IDIOMS = {
    "large data": (
        "static u8 all[6 << 20]; static int values[] = {3, 1, 2};",
        """
        memset(all, 7, sizeof(all));
        assert_eq(all[sizeof(all) - 1], 7);
        assert_eq(values[2], 2);
        memmove(all + 1, all, 100);
        all[0] = 9;
        memmove(all + 3, all, 50);
        assert_eq(all[3], 9);
        assert_eq(memcmp(all + 100, all + 200, 1000), 0);
        """,
    ),
    "recursion": (
        """
        static int deep(int n)
        {
                volatile char here[32];
                here[0] = 1;
                return n ? deep(n - 1) + here[0] : 0;
        }
        """,
        "assert_eq(deep(100), 100);",
    ),
    "switch": (
        "static int of(unsigned n) { switch (n) {"
        + "".join(f' case {n}: puts("{n}"); return {n * n};' for n in range(12))
        + " } return -1; }",
        "for (int i = 0; i < 13; i++) assert_eq(of(i), i < 12 ? i * i : -1);",
    ),
    "division": (
        "",
        f"""
        volatile u64 a = {A}ull, c = 3;
        volatile s64 b = -1000000007;
        assert_eq(a / 1000000007, {A // 1000000007}ull);
        assert_eq(a % 1000000007, {A % 1000000007});
        assert_eq((a / c) * c + a % c, a);
        assert_eq((s64)a / b * b + (s64)a % b, (s64)a);
        assert_eq(b / -7, 142857143);
        assert_eq(b % -7, -6);
        assert_eq(a / (a - 1), 1);
        assert_eq(a / (a / 5), 5);
        assert_eq(a % (a >> 20), {A % (A >> 20)}ull);
        """,
    ),
    "bits": (
        "",
        """
        volatile u64 a = 0xf0f0;
        assert_eq(__builtin_popcountll(a), 8);
        assert_eq(__builtin_ctzll(a), 4);
        assert_eq(__builtin_clzll(a), 48);
        assert_eq(__builtin_bswap64(a), 0xf0f0000000000000ull);
        assert_eq(__builtin_ffsll(a << 40), 45);
        assert_eq(__builtin_clrsbll(a), 47);
        assert_eq(__builtin_parityll(a | 1), 1);
        """,
    ),
    "atomics": (
        "static u32 n; static u64 wide;",
        """
        assert_eq(__sync_fetch_and_add(&n, 5), 0);
        __sync_synchronize();
        assert_eq(__atomic_exchange_n(&n, 9, __ATOMIC_SEQ_CST), 5);
        __atomic_store_n(&wide, 1ull << 40, __ATOMIC_SEQ_CST);
        assert_eq(__atomic_load_n(&wide, __ATOMIC_SEQ_CST), 1ull << 40);
        assert_eq(__atomic_exchange_n(&wide, 3, __ATOMIC_SEQ_CST), 1ull << 40);
        assert_eq(__atomic_add_fetch(&wide, 1ull << 40, __ATOMIC_SEQ_CST), 3 + (1ull << 40));
        u64 expected = 3;
        assert(!__atomic_compare_exchange_n(&wide, &expected, 4, false, 5, 5));
        assert(__atomic_compare_exchange_n(&wide, &expected, 4, false, 5, 5));
        assert_eq(wide, 4);
        """,
    ),
    "function pointers": (
        """
        static int one(int n) { return n + 1; }
        static int two(int n) { return n * 2; }
        static int (*const table[])(int) = {one, two};
        """,
        "for (unsigned i = 0; i < 2; i++) assert_eq(table[i](4), i ? 8 : 5);",
    ),
    "varargs": (
        """
        static int sum(int n, ...)
        {
                va_list all;
                int s = 0;
                va_start(all, n);
                while (n--)
                        s += va_arg(all, int);
                va_end(all);
                return s;
        }
        """,
        "assert_eq(sum(4, 1, 2, 3, 4), 10);",
    ),
    "structures": (
        """
        struct wide { u64 words[40]; };
        static struct wide of(u64 n)
        {
                struct wide w = {{n}};
                w.words[39] = n;
                return w;
        }
        """,
        "struct wide w = of(5), v = w; assert_eq(v.words[39], 5); assert_eq(v.words[1], 0);",
    ),
    "own memcpy": (
        """
        void *memcpy(void *to, const void *from, size_t n)
        {
                u8 *t = to;
                const u8 *f = from;
                while (n--)
                        *t++ = *f++;
                return to;
        }
        """,
        'char text[4]; memcpy(text, "abc", 4); assert_eq(strcmp(text, "abc"), 0);',
    ),
    "limits": (
        "#include <limits.h>\n#include <stdint.h>",
        "assert_eq(INT_MAX, 2147483647); assert_eq(UINT64_MAX, ~0ull);",
    ),
    "pointers": (
        "static int n;",
        "int *p = &n; assert(p); assert_eq(p, &n); write32(p, 5); assert_eq(read32(p), 5);",
    ),
    "console": ("", "static char text[9000]; memset(text, 'x', 8999); puts(text);"),
    "CPU": (
        "",
        """
        u64 before = rdtsc();
        assert(rdtsc() >= before);
        assert(cpuid(0).eax >= 1 && cpuid(7, 0).eax < 16);
        wrmsr(0x174, 5);
        assert_eq(rdmsr(0x174), 5);
        """,
    ),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", IDIOMS)
def test_what_a_user_writes(name: str, mode: str, tmp_path: Path) -> None:
    definitions, statements = IDIOMS[name]
    report = run(tmp_path, f"{definitions}\n{main_of(statements)}", mode)
    assert report.passed, report.reason


@pytest.mark.parametrize("mode", MODES)
def test_every_vcpu_has_its_number_and_a_stack(mode: str, tmp_path: Path) -> None:
    body = "static u32 seen[4]; static volatile int slow;\n" + main_of(
        "volatile u8 mine[8192]; memset((void *)mine, vcpu + 1, sizeof(mine)); barrier();"
        "for (int i = 0; i < 8192; i += 64) assert_eq(mine[i], vcpu + 1); seen[vcpu] = vcpus;"
        "for (int i = 0; i < 50; i++) barrier();"
        "for (unsigned i = 0; i < vcpus; i++) assert_eq(seen[i], vcpus); measure(vcpu);"
    )
    report = run(tmp_path, body, mode, vcpus=4)
    assert report.passed, report.reason
    assert sorted(report.measures) == [0, 1, 2, 3]


@pytest.mark.parametrize("mode", MODES)
def test_lines_of_vcpus_stay_whole(mode: str, tmp_path: Path) -> None:
    body = main_of('for (int i = 0; i < 20; i++) printf("vCPU %u says %d\\n", vcpu, i);')
    report = run(tmp_path, body, mode, vcpus=4)
    assert sorted(report.console.splitlines()) == sorted(
        f"vCPU {vcpu} says {number}" for vcpu in range(4) for number in range(20)
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("assert(vcpu > 5);", "mine.c:2: assert failed: vcpu > 5: seen 0x0, expected 0x1"),
        ("assert_eq(vcpus, 7);", "mine.c:2: assert failed: vcpus == 7: seen 0x1, expected 0x7"),
        (
            "assert_eq(0x123456789abcull + vcpu, 0xfedcba987654ull);",
            "seen 0x123456789abc, expected 0xfedcba987654",
        ),
        ("return 42;", "wrote exit code 42"),
        ("exit(7);", "wrote exit code 7"),
    ],
)
def test_failures(mode: str, statement: str, words: str, tmp_path: Path) -> None:
    report = run(tmp_path, main_of(statement), mode)
    assert report.result is Result.FAIL and words in report.reason


@pytest.mark.parametrize("mode", MODES)
def test_an_exception_names_the_line(mode: str, tmp_path: Path) -> None:
    body = "int main(unsigned vcpu, unsigned vcpus)\n{\n\t__builtin_trap();\n}\n"
    report = run(tmp_path, body, mode)
    assert report.result is Result.FAIL and report.exit_code == 0x106
    assert "invalid opcode" in report.reason and "mine.c:4" in report.reason


@pytest.mark.parametrize("mode", MODES)
def test_handlers(mode: str, tmp_path: Path) -> None:
    body = (
        "static unsigned count; static void on(struct frame *frame)\n"
        "{ count++; assert_eq(frame->vector, 6); assert_eq(read8(frame->ip), 0x0f);"
        " frame->ip += 2; }\n"
        + main_of(
            "set_handler(6, on); for (int i = 0; i < 9; i++) asm volatile("
            '"ud2" ::: "memory"); assert_eq(count, 9); set_handler(6, NULL); asm volatile("ud2");'
        )
    )
    report = run(tmp_path, body, mode)
    assert report.exit_code == 0x106, report.reason


def test_page_tables(tmp_path: Path) -> None:
    body = (
        "static volatile u64 address; static void on(struct frame *frame)\n"
        "{ address = frame->cr2; map(frame->cr2, SHARED_VIEW, PTE_WRITE); }\n"
        + main_of(
            "set_handler(14, on); write32(0x123456789000, 5); assert_eq(address, 0x123456789000);"
            "assert_eq(read32(SHARED_VIEW), 5); map(0x123456789000, PRIVATE_VIEW, PTE_WRITE);"
            "assert_eq(read32(0x123456789000), 0);"
            "map(0x300000000, HIGH_PRIVATE_VIEW, PTE_WRITE | PTE_HUGE);"
            "write8(0x300001000, 3); assert_eq(read8(HIGH_PRIVATE_VIEW + 0x1000), 3);"
            "map(0x900000, SHARED_VIEW + PAGE_SIZE, PTE_WRITE); write8(0x900000, 8);"
            "assert_eq(read8(SHARED_VIEW + PAGE_SIZE), 8); assert_eq(read8(0x901000), 0);"
        )
    )
    report = run(tmp_path, body, "long")
    assert report.passed, report.reason


@pytest.mark.parametrize("mode", MODES)
def test_parameters(mode: str, tmp_path: Path) -> None:
    body = "#ifndef ROUNDS\n#define ROUNDS 3\n#endif\n" + main_of("measure(ROUNDS);")
    assert run(tmp_path, body, mode).measures == (3,)
    assert run(tmp_path, body, mode, ROUNDS=0xFFFFFFFF).measures == (0xFFFFFFFF,)
    assert run(tmp_path, body, mode, ROUNDS=-2).measures == (0xFFFFFFFE,)
