"""Series of patches as people have them: format-patch, b4, archives of lists."""

from __future__ import annotations

import base64
import gzip
import quopri
import time
from pathlib import Path

import pytest

from pyvmm.lab.errors import LabUsageError
from pyvmm.lab.mail import patch_texts
from pyvmm.lab.series import read_series

SEPARATOR = "From 0123456789abcdef0123456789abcdef01234567 Mon Sep 17 00:00:00 2001\n"


def diff(number: int, name: str = "virt/kvm/kvm_main.c") -> str:
    return (
        f"diff --git a/{name} b/{name}\n--- a/{name}\n+++ b/{name}\n"
        f"@@ -{number},3 +{number},4 @@\n int a;\n+int line{number}; /* \u00e9 */\n"
        " int b;\n int c;\n"
        "-- \n2.39.5\n\n"
    )


def mail(subject: str, body: str, headers: str = "") -> str:
    return (
        f"{SEPARATOR}From: A Developer <a@example.org>\nDate: Sat, 1 Nov 2025 10:00:00 +0000\n"
        f"Subject: {subject}\n{headers}\nWhy it is done.\n\nSigned-off-by: A Developer\n---\n"
        f" virt/kvm/kvm_main.c | 1 +\n\n{body}\n"
    )


def series(count: int = 3, tag: str = "PATCH") -> list[str]:
    return [
        mail(f"[{tag} {number}/{count}] KVM: change {number}", diff(number))
        for number in range(1, count + 1)
    ]


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def subjects(path: Path) -> list[str]:
    return [patch.subject for patch in read_series(path)]


THREE = ["KVM: change 1", "KVM: change 2", "KVM: change 3"]


def test_an_mbox_of_format_patch_with_a_cover_letter(tmp_path: Path) -> None:
    cover = mail("[PATCH 0/3] KVM: all of it", "A Developer (3):\n  KVM: change 1\n")
    patches = read_series(write(tmp_path / "x.mbox", cover + "".join(series())))
    assert [patch.subject for patch in patches] == THREE
    assert [(patch.number, patch.total) for patch in patches] == [(1, 3), (2, 3), (3, 3)]
    assert "+int line2; /* \u00e9 */" in patches[1].text
    assert patches[0].file_name == "KVM-change-1.patch"


def test_mails_that_were_put_together(tmp_path: Path) -> None:
    """Without the empty lines at their ends, the first one without its line From, and a blank."""
    mails = [text.rstrip() + "\n" for text in series()]
    text = "".join([mails[0].removeprefix(SEPARATOR), *mails[1:]])
    assert subjects(write(tmp_path / "x.mbox", text)) == THREE
    assert subjects(write(tmp_path / "x.mbox", "\n   \n" + "".join(mails))) == THREE
    prose = series(1)[0].replace(
        "Why it is done.", "From A to B at 10:00 it\nFrom B Mon on is done."
    )
    (patch,) = read_series(write(tmp_path / "x.mbox", prose))
    assert (patch.subject, patch.origin) == ("KVM: change 1", str(tmp_path / "x.mbox"))


def test_a_folder_of_patches(tmp_path: Path) -> None:
    for number, text in enumerate(series(), 1):
        write(tmp_path / f"{number:04}-change.patch", text)
    write(tmp_path / "0000-cover-letter.patch", mail("[PATCH 0/3] cover", "no diff here\n"))
    write(tmp_path / "notes.txt", "not a mail")
    assert subjects(tmp_path) == THREE


def test_files_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in range(1, 12):
        write(tmp_path / f"{number}.patch", mail(f"KVM: change {number}", diff(number)))
    assert subjects(tmp_path) == [f"KVM: change {number}" for number in range(1, 12)]


def test_the_commit_that_a_series_is_made_for_is_told(tmp_path: Path) -> None:
    said: list[str] = []
    commit = "0123456789abcdef0123456789abcdef01234567"
    cover = mail("[PATCH 0/3] KVM: all of it", f"base-commit: {commit}\n-- \n2.39.5\n")
    path = write(tmp_path / "x.mbox", cover + "".join(series()))
    read_series(path, said.append)
    assert said == [f"{path}: made for commit {commit}"]
    needs = cover.replace("\n-- \n", f"\nprerequisite-patch-id: {commit}\n-- \n")
    read_series(write(tmp_path / "y.mbox", needs + "".join(series())), said.append)
    assert said.pop().endswith(f"commit {commit} with patches on it that are not in here")
    older = cover.replace("[PATCH 0/3]", "[PATCH v2 0/3]").replace(commit, commit[::-1])
    path = write(tmp_path / "x.mbox", cover + older + "".join(series() + series(3, "PATCH v2")))
    read_series(path, said.append)
    assert said[2:] == [f"{path}: made for commit {commit[::-1]}"]


def test_a_quilt_is_in_the_order_of_its_list(tmp_path: Path) -> None:
    """Its patches are of any series and version, and some have the names of quilt's own."""
    write(tmp_path / "one.patch", mail("[PATCH v3 5/7] KVM: change 1", diff(1)))
    as_quilt_does = diff(2).replace("--- a/", "--- linux.orig/").replace("+++ b/", "+++ linux/")
    write(tmp_path / "two", "Index: linux/virt/kvm/kvm_main.c\n" + as_quilt_does.partition("\n")[2])
    write(tmp_path / "three.patch", series(3)[0])
    write(tmp_path / "series", "# mine\none.patch\ntwo -p1\n\nthree.patch # the last\n")
    assert subjects(tmp_path) == ["KVM: change 1", "virt/kvm/kvm_main.c", "KVM: change 1"]
    write(tmp_path / "two", "to be done\n")
    with pytest.raises(LabUsageError, match="two is in its list and has no patch"):
        read_series(tmp_path)


@pytest.mark.parametrize("option", ["-R", "-p0", "-p 2"])
def test_a_quilt_whose_patches_want_other_options(tmp_path: Path, option: str) -> None:
    """A patch that is to be taken back must not be applied."""
    write(tmp_path / "one.patch", diff(1))
    write(tmp_path / "series", "one.patch -p1\none.patch -p ab\n")
    assert len(read_series(tmp_path)) == 2
    write(tmp_path / "series", f"one.patch {option}\n")
    listed = (
        rf"series: one\.patch is listed with {option.replace(' ', '')}; want patches that apply"
    )
    with pytest.raises(LabUsageError, match=listed):
        read_series(tmp_path)


def test_mails_in_any_order_are_put_in_theirs(tmp_path: Path) -> None:
    assert subjects(write(tmp_path / "x.mbox", "".join(reversed(series())))) == THREE


def test_replies_and_older_versions_are_left_out(tmp_path: Path) -> None:
    said: list[str] = []
    older = mail("[PATCH 1/1] KVM: first try", diff(9))
    reply = mail("Re: [PATCH v2 1/3] KVM: change 1", "> " + diff(1).replace("\n", "\n> ") + diff(4))
    text = older + reply + "".join(series(tag="PATCH v2"))
    patches = read_series(write(tmp_path / "t.mbox", text), said.append)
    assert [patch.subject for patch in patches] == THREE
    assert said == [
        f"{tmp_path / 't.mbox'}: it has several versions of the series; taking v2 (3 patches)"
    ]


def version(number: int, of: dict[int, str], total: int = 4) -> list[str]:
    """Patches of a version by their numbers, each in answer to the mails that are named."""
    return [
        mail(
            f"[PATCH v{number} {at}/{total}] KVM: v{number} of change {at}",
            diff(10 * number + at),
            f"Message-ID: <v{number}.{at}@example.org>\nReferences: <v{number}.0@example.org>\n"
            f" {answers}\nIn-Reply-To: <other@example.org>\n",
        )
        for at, answers in of.items()
    ]


V2 = version(2, dict.fromkeys(range(1, 5), ""))
V3 = version(3, {2: "<v2.0@example.org> <v2.2@example.org>"})


def taken(path: Path, mails: list[str]) -> tuple[list[str], list[str]]:
    said: list[str] = []
    patches = read_series(write(path, "".join(mails)), said.append)
    return [patch.subject for patch in patches], said


def test_a_patch_of_the_next_version_in_answer_to_its_older_one(tmp_path: Path) -> None:
    """As b4 takes it; what is replaced is told. So it goes on."""
    path = tmp_path / "t.mbox"
    first = f"{path}: it has several versions of the series; taking "
    subjects = [f"KVM: v2 of change {at}" for at in range(1, 5)]
    subjects[1] = "KVM: v3 of change 2"
    assert taken(path, V3 + V2) == (subjects, [f"{first}v2 with patch 2/4 of v3"])
    v4 = version(4, {2: "<v3.2@example.org>", 4: "<v2.4@example.org>"})
    subjects[1], subjects[3] = "KVM: v4 of change 2", "KVM: v4 of change 4"
    told = f"{first}v2 with patch 2/4 of v4, patch 4/4 of v4"
    assert taken(path, V2 + V3 + v4) == (subjects, [told])


@pytest.mark.parametrize(
    "newer",
    [
        version(3, {2: "<v2.0@example.org>"}),  # to the cover letter
        version(3, {2: "<v2.2@example.org>", 3: "<v2.2@example.org>"}),
        version(3, {2: "<v2.2@example.org>"}, 5),
        [*V3, mail("[PATCH v3 0/4] KVM: all of it", "nothing\n")],
        [*V3, mail("[PATCH v3 1/4] KVM: v3 of change 1", "see the link\n")],
    ],
)
def test_a_version_that_lacks_patches_and_is_no_answer(tmp_path: Path, newer: list[str]) -> None:
    """Nobody knows whether the rest got lost; how to have the version before is told."""
    path = tmp_path / "t.mbox"
    with pytest.raises(LabUsageError, match=r"v3 missing.*v2 is whole: 'b4 am -v 2' makes a file"):
        taken(path, V2 + newer)
    with pytest.raises(LabUsageError, match=r"of v3 missing(: \S+, mail 5 has no diff)?$"):
        taken(path, V2[:3] + newer)


def test_thousands_of_versions(tmp_path: Path) -> None:
    mails = V2.copy()
    for number in range(3, 1200):
        mails += version(number, {2: f"<v{number - 1}.2@example.org>"})
    with pytest.raises(LabUsageError, match="patches 1, 3, 4 of 4 of v1199 missing"):
        taken(tmp_path / "t.mbox", mails)


def test_a_version_alone_is_told_with_its_number_of_patches(tmp_path: Path) -> None:
    """One that forgot that it is a part of four."""
    alone = mail("[PATCH v3] KVM: v3 of change 2", diff(7))
    path = tmp_path / "t.mbox"
    told = f"{path}: it has several versions of the series; taking v3 (1 patch)"
    assert taken(path, [*V2, alone]) == (["KVM: v3 of change 2"], [told])


@pytest.mark.parametrize(
    "subject",
    [
        "Re: [PATCH 2/3] KVM: change 2",
        "[Qemu-devel] Re: [PATCH 2/3] KVM: change 2",
        "RE: KVM: change 2",
        "Re[2]: [PATCH 2/3] KVM: change 2",
        "SV: [PATCH 2/3] KVM: change 2",
        "Fwd: [PATCH] KVM: change 2",
        "[tip: x86/urgent] KVM: change 2",
        'Patch "KVM: change 2" has been added to the 6.12-stable tree',
        'FAILED: patch "[PATCH] KVM: change 2" failed to apply to 6.12-stable tree',
        "+ kvm-change-2.patch added to mm-unstable branch",
    ],
)
def test_what_is_said_of_a_patch_is_none(tmp_path: Path, subject: str) -> None:
    """Though it has a diff: a better one, or what was taken into a tree."""
    text = "".join([*series(), mail(subject, diff(9))])
    assert subjects(write(tmp_path / "x.mbox", text)) == THREE


@pytest.mark.parametrize(
    ("subject", "number", "version"),
    [
        ("[PATCH v5 01/1] KVM: [v2] half of it [1/2]", 1, 5),
        ("[PATCH 6.1/6.6 1/1] KVM: x", 1, 1),
        ("[kvm][PATCH v2,1/1] KVM: x", 1, 2),
        ("[PATCH 1/1; v4] fw: 1/2 of it", 1, 4),
        ("[PATCH] KVM: re: 1/2", 0, 1),
    ],
)
def test_tags_are_what_stands_before_a_subject(
    tmp_path: Path, subject: str, number: int, version: int
) -> None:
    (patch,) = read_series(write(tmp_path / "x.mbox", mail(subject, diff(1))))
    assert (patch.number, patch.version) == (number, version)
    assert patch.subject == subject.partition("] ")[2]


@pytest.mark.parametrize("tag", ["PATCH v2", "PATCHv2", "RFCv2 PATCH", "PATCH RFC V2", "v2 PATCH"])
def test_ways_to_say_the_version(tmp_path: Path, tag: str) -> None:
    text = "".join(series()) + "".join(series(2, tag))
    assert subjects(write(tmp_path / "x.mbox", text)) == THREE[:2]


def test_a_number_that_is_none(tmp_path: Path) -> None:
    text = mail(f"[PATCH v{'7' * 400} 1/{'8' * 400}] KVM: change 1", diff(1))
    assert subjects(write(tmp_path / "x.mbox", text)) == ["KVM: change 1"]


def test_line_ends_of_mail_and_quoted_printable(tmp_path: Path) -> None:
    encoded = quopri.encodestring(("Why.\n---\n" + diff(1)).encode()).decode()
    text = (
        f"{SEPARATOR}From: a@example.org\nSubject: =?UTF-8?q?=5BPATCH_1/1=5D_KVM=3A_?=\n"
        "\t=?UTF-8?q?=C3=A9t=C3=A9?=\nMIME-Version: 1.0\n"
        "Content-Type: text/plain; charset=UTF-8\n"
        f"Content-Transfer-Encoding: quoted-printable\n\n{encoded}\n"
    )
    patch = read_series(write(tmp_path / "x.mbox", text.replace("\n", "\r\n")))[0]
    assert patch.subject == "KVM: \u00e9t\u00e9"
    assert "+int line1; /* \u00e9 */\n int b;" in patch.text
    assert "\r" not in patch.text


def flowing(diff: str, deletes_blanks: bool = False) -> str:
    """A patch as a mail program that lets lines flow sends it: stuffed, long lines broken."""
    lines = []
    for line in diff.splitlines():
        stuffed = f" {line}" if line.startswith((" ", ">", "From")) else line.rstrip()
        first, blank, rest = stuffed.rpartition(" ")
        if (
            len(stuffed) > 16
            and first.strip()
            and not line.startswith(("diff", "---", "+++", "@@"))
        ):
            lines += [first + blank * (1 + deletes_blanks), rest]
        else:
            lines.append(stuffed)
    parameters = "format=flowed" + "; delsp=yes" * deletes_blanks
    header = f'Content-Type: text/plain; charset="UTF-8"; {parameters}\n'
    return mail("[PATCH] KVM: flowing", "\n".join(lines) + "\n-- \nA Developer\n", header)


@pytest.mark.parametrize("deletes_blanks", [False, True])
def test_lines_that_flow(tmp_path: Path, deletes_blanks: bool) -> None:
    text = diff(1).partition("-- \n")[0]
    sent = flowing(text, deletes_blanks)
    assert "+int line1; /* \u00e9 \n" in sent or "+int line1; /* \u00e9  \n" in sent
    assert "\n  int a;\n" in sent
    path = write(tmp_path / "x.eml", sent)
    (patch,) = read_series(path)
    assert [patch.text] == patch_texts(path) == [text]


def test_lines_that_flowed_away(tmp_path: Path) -> None:
    """A blank at a line's end is one of the mail's. Of a reply nobody cares."""
    text = diff(1).partition("-- \n")[0].replace(" int b;", " int b; ")
    sent = flowing(text).replace("\n  int b;\n", "\n  int b; \n")
    path = write(tmp_path / "x.mbox", sent)
    with pytest.raises(LabUsageError, match=r"x\.mbox: a mail with format=flowed, which mangles"):
        read_series(path)
    with pytest.raises(LabUsageError, match=r"no line of the hunk .*; get the patch from its"):
        patch_texts(path)
    reply = sent.replace("Subject: [PATCH]", "Subject: Re: [PATCH 2/3]")
    assert subjects(write(tmp_path / "x.mbox", "".join(series()) + reply)) == THREE


def test_a_patch_without_a_number_that_has_lost_its_diff_is_told(tmp_path: Path) -> None:
    """Without a word, a series of two patches would be checked as one of one."""
    there = mail("[PATCH] KVM: there", diff(1))
    html = "MIME-Version: 1.0\nContent-Type: text/html\n"
    lost = mail("[PATCH kvm-next] KVM: lost", f"<pre>{diff(2)}</pre>", html)
    reply = mail("Re: [PATCH] KVM: there", "Fine.")
    robot = mail("[kvm:queue 3/9] x.c:1: warning: no", "Not built.")
    path = write(tmp_path / "x.mbox", there + lost + reply + robot)
    said: list[str] = []
    assert [patch.subject for patch in read_series(path, said.append)] == ["KVM: there"]
    left_out = f"{path}, mail 2: there is no diff in it, left out: [PATCH kvm-next] KVM: lost"
    assert said == [left_out]
    folder = tmp_path / "outgoing"
    folder.mkdir()
    write(folder / "1.patch", diff(1))
    write(
        folder / "2.patch",
        "diff --cc x.c\nindex 1,2..3\n--- a/x.c\n+++ b/x.c\n@@@ -1,1 -1,1 +1,1 @@@\n",
    )
    said.clear()
    assert len(read_series(folder, said.append)) == 1
    assert said == [f"{folder / '2.patch'}: there is no diff in it, left out"]


def test_attachments(tmp_path: Path) -> None:
    encoded = base64.encodebytes(diff(1).encode()).decode()
    text = (
        "From: a@example.org\nSubject: [PATCH] KVM: attached\nMIME-Version: 1.0\n"
        'Content-Type: multipart/mixed; boundary="x"\n\n--x\nContent-Type: text/plain\n\nSee it.\n'
        '--x\nContent-Type: application/octet-stream; name="a.patch"\n'
        f"Content-Transfer-Encoding: base64\n\n{encoded}\n--x--\n"
    )
    patch = read_series(write(tmp_path / "x.eml", text))[0]
    assert (patch.subject, "+int line1" in patch.text) == ("KVM: attached", True)


@pytest.mark.parametrize(
    "header",
    [
        b"Content-Type: text/plain; charset*=a'b",
        b'Content-Type: text/plain; charset="a\0b"',
        b"Content-Type: text/plain; charset*0*=",
        b"Content-Transfer-Encoding: 8bit; \0",
        b'Content-Disposition: attachment; filename*0*="',
        b"MIME-Version: (",
    ],
)
def test_headers_that_are_amiss(tmp_path: Path, header: bytes) -> None:
    text = mail("[PATCH 1/1] KVM: \u00e9t\u00e9", diff(1), "X\n").encode()
    patch = read_series(write(tmp_path / "x.mbox", text.replace(b"\nX\n", b"\n" + header + b"\n")))
    assert [each.subject for each in patch] == ["KVM: \u00e9t\u00e9"]


_UNREADABLE = "parser of mail fails at its headers"


def with_header(folder: Path, header: bytes) -> Path:
    text = mail("[PATCH 1/1] KVM: x", diff(1), "X\n").encode()
    return write(folder / "x.mbox", text.replace(b"\nX\n", b"\n%s\n" % header))


def test_a_mail_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(LabUsageError, match=_UNREADABLE):
        read_series(with_header(tmp_path, b"Content-Type: a/b; charset*=u\"a\0b\"''a"))


def test_a_mail_that_one_python_reads_and_another_does_not(tmp_path: Path) -> None:
    """The parser of 3.11 fails at it, and the one of 3.13 reads it."""
    try:
        patches = read_series(with_header(tmp_path, b"Content-Type: text/plain; a*0*=b; a*=c"))
    except LabUsageError as error:
        assert _UNREADABLE in str(error)
    else:
        assert [patch.subject for patch in patches] == ["KVM: x"]


def test_a_thread_as_archives_give_it(tmp_path: Path) -> None:
    text = "".join(series()).replace(SEPARATOR, "From mboxrd@z Thu Jan  1 00:00:00 1970\n")
    text = text.replace("Why it is done.", ">From here on at 10:00 it is done.")
    patches = read_series(write(tmp_path / "t.mbox.gz", gzip.compress(text.encode())))
    assert [patch.subject for patch in patches] == THREE


def test_the_diff_against_the_version_before_is_no_part_of_a_patch(tmp_path: Path) -> None:
    """git format-patch --interdiff: in the cover letter as it is, in a patch indented."""
    cover = mail("[PATCH v2 0/1] KVM: all of it", f"Interdiff against v1:\n{diff(7)}")
    indented = diff(7).replace("\n", "\n  ")
    patch = mail("[PATCH v2 1/1] KVM: change 1", f"Interdiff against v1:\n  {indented}\n{diff(1)}")
    (found,) = read_series(write(tmp_path / "x.mbox", cover + patch))
    assert found.subject == "KVM: change 1"
    assert found.text.startswith("diff --git a/virt") and "line7" not in found.text


def test_a_bare_diff_and_what_is_not_utf8(tmp_path: Path) -> None:
    raw = diff(1).encode().replace("\u00e9".encode(), b"\xe9")
    patch = read_series(write(tmp_path / "x.diff", raw))[0]
    assert patch.subject == "virt/kvm/kvm_main.c"
    assert patch.text.encode("utf-8", "surrogateescape") == raw.partition(b"-- \n")[0]


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", "there is no patch in it"),
        (mail("[PATCH 0/3] cover", "nothing\n"), "there is no patch in it"),
        (series()[0] + series()[2], "patch 2 of 3 missing$"),
        (
            series()[0] + mail("[PATCH 2/3] KVM: change 2", "see the link\n") + series()[2],
            "patch 2 of 3 missing: .*x.mbox, mail 2 has no diff",
        ),
        (series(9)[0], "patches 2, 3, 4, 5, 6, 7, 8, 9 of 9 missing"),
        (
            "".join(reversed(series())) + mail("[PATCH] KVM: or so", diff(7)),
            r"x.mbox, mail 4 \(KVM: or so\) has no number, and others have",
        ),
        (mail(f"[PATCH 1/{10**8}] KVM: change 1", diff(1)), "one of 100000000 patches"),
        (series()[0] + "".join(series(2)), "of a series of 2 and of one of 3"),
        (
            "".join(series()) + mail("[PATCH 2/3] KVM: another", diff(7)),
            "patch 2/3 is there twice, with other contents",
        ),
    ],
)
def test_what_is_no_whole_series(tmp_path: Path, text: str, cause: str) -> None:
    with pytest.raises(LabUsageError, match=cause):
        read_series(write(tmp_path / "x.mbox", text))


def test_a_mail_that_came_twice_is_one(tmp_path: Path) -> None:
    """From its author and from a list, which adds headers. Without numbers only ids tell."""
    first = mail("[PATCH] KVM: change 1", diff(1), "Message-ID: <1@example.org>\n")
    again = first.replace("Message-ID:", "List-Id: <kvm>\nMessage-Id:")
    other = mail("[PATCH] KVM: change 2", diff(1), "Message-ID: <2@example.org>\n")
    path = write(tmp_path / "x.mbox", first + again + other)
    assert subjects(path) == ["KVM: change 1", "KVM: change 2"]


@pytest.mark.parametrize("subject", ["fw: update it", "re: and more", "Re: it"])
def test_a_subject_may_begin_as_a_reply_does(tmp_path: Path, subject: str) -> None:
    path = write(tmp_path / "x.mbox", mail(f"[PATCH v2] {subject}", diff(1)))
    assert subjects(path) == [subject]


def test_the_same_patch_twice_is_one(tmp_path: Path) -> None:
    assert subjects(write(tmp_path / "x.mbox", "".join(series() + series()))) == THREE


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(LabUsageError, match="no such file"):
        read_series(tmp_path / "none.mbox")
    with pytest.raises(LabUsageError, match="does not unpack"):
        read_series(write(tmp_path / "x.gz", gzip.compress(b"x" * 1000)[:20]))
    with pytest.raises(LabUsageError, match="no patch"):
        read_series(tmp_path / "..")


def test_a_large_file_that_is_no_series_is_told_soon(tmp_path: Path) -> None:
    path = write(tmp_path / "zeros.mbox.gz", gzip.compress(bytes(200 << 20), 1))
    started = time.process_time()
    with pytest.raises(LabUsageError, match="no patch"):
        read_series(path)
    assert time.process_time() - started < 8  # it was 19 s


def test_a_long_subject_is_read_soon(tmp_path: Path) -> None:
    path = write(tmp_path / "x.mbox", mail("[" * 20_000, diff(1)))
    started = time.process_time()
    assert len(read_series(path)) == 1
    assert time.process_time() - started < 5  # it was 16 s
