"""Building kernels, with stand-ins for what builds them: what is kept, what is said of failures."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from pyvmm.cli.lab_coverage import counting_kernel
from pyvmm.cli.main import main
from pyvmm.lab import build as build_module
from pyvmm.lab import coverage
from pyvmm.lab.build import Recipe, build, find_or_build, known_recipe, placed_patches
from pyvmm.lab.cache import check_room, locked
from pyvmm.lab.compiler_warnings import warnings_of_patch
from pyvmm.lab.config import check_config, own_fragment, parse_config, read_fragment
from pyvmm.lab.diffs import added_lines
from pyvmm.lab.errors import LabError, LabUsageError, NotBuilt
from pyvmm.lab.kernels import built_kernels, find_built, read_image
from pyvmm.lab.programs import OF_A_BUILD, OF_SELFTESTS
from pyvmm.lab.selftests import build_selftests, build_those_that_do
from pyvmm.lab.sources import source_path
from pyvmm.validate.jobs import run as job_run
from pyvmm.validate.jobs.job import Built, Job
from pyvmm.validate.jobs.workers import run_jobs
from pyvmm.validate.run.catalogue import select

_MAKE = r"""#!/bin/sh
# Stands in for make: the goals are the last argument.
for word; do
    case $word in O=*) out=${word#O=} ;; KCONFIG_ALLCONFIG=*) config=${word#*=} ;; esac
done
echo "$word" >>"$MADE"
case $word in
allnoconfig) grep -v ^CONFIG_LOST "$config" >"$out/.config" ;;
bzImage)
    if grep -q broken arch/x86/kvm/svm.c; then
        echo "  CC      arch/x86/kvm/svm.o"
        echo "arch/x86/kvm/svm.c:7:1: error: expected ';' before '}' token"
        echo "make[1]: *** [Makefile:1: arch/x86/kvm/svm.o] Error 1"
        exit 2
    fi
    if grep -q slow arch/x86/kvm/svm.c; then sleep 1000; fi
    echo "  CC      arch/x86/kvm/svm.o"
    echo "  LD      vmlinux"
    mkdir -p "$out/arch/x86/boot"
    cp "$BZIMAGE" "$out/arch/x86/boot/bzImage" ;;
*/guest_memfd_test) echo "guest_memfd_test.c:3:1: error: unknown type name 'x'"; exit 2 ;;
arch/x86/kvm/)
    echo "arch/x86/kvm/svm.c:1:1: warning: of this line"
    grep -q "^# CONFIG_WERROR is not set" "$out/.config" || exit 2 ;;
mm/memcontrol.o)
    echo "mm/memcontrol.c:1:1: warning: of this one, where all is missing"
    echo "mm/memcontrol.c:3:1: error: 'struct mem_cgroup' has no member named 'css'"
    exit 2 ;;
esac
"""
# Stands in for patch: whatever it is given, svm.c is another afterwards.
_PATCH = """#!/bin/sh
while [ "$1" != -d ]; do shift; done
echo patched >>"$2/arch/x86/kvm/svm.c"
"""


def fake_bzimage(release: str = "9.9.1-test") -> bytes:
    image = bytearray(0x1000)
    image[0x1FE:0x200] = b"\x55\xaa"
    image[0x202:0x206] = b"HdrS"
    image[0x20E:0x210] = (0x600).to_bytes(2, "little")
    image[0x800 : 0x800 + len(release) + 5] = release.encode() + b" (x)\0"
    return bytes(image)


@pytest.fixture(autouse=True)
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache, a kernel source folder, and tools that only look like tools."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tools = tmp_path / "tools"
    tools.mkdir()
    scripts = {"make": _MAKE, "patch": _PATCH}
    for name in {*OF_A_BUILD, *OF_SELFTESTS} - {"tar"}:
        (tools / name).write_text(scripts.get(name, "#!/bin/sh\nexit 1\n"))
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("MADE", str(tmp_path / "made"))
    monkeypatch.setenv("BZIMAGE", str(tmp_path / "image"))
    (tmp_path / "image").write_bytes(fake_bzimage())
    source = tmp_path / "linux"
    (source / "arch/x86/kvm").mkdir(parents=True)
    (source / "Kbuild").write_text("")
    (source / "arch/x86/kvm/svm.c").write_text("fine\n")
    return tmp_path


def _tarball(world: Path, name: str = "linux-source-9.9.tar.gz") -> Path:
    path = world / name
    subprocess.run(["tar", "-czf", path, "-C", world, "linux"], check=True)
    return path


def _silent(line: str) -> None:
    pass


def _made(world: Path) -> list[str]:
    return (world / "made").read_text().split() if (world / "made").exists() else []


def test_a_kernel_is_built_once(world: Path) -> None:
    recipe = Recipe(_tarball(world))
    files: list[tuple[int, str]] = []
    kernel = build(recipe, "mine", _silent, lambda made, name: files.append((made, name)))
    assert (kernel.name, kernel.release) == ("mine", "9.9.1-test")
    assert kernel.image.read_bytes() == fake_bzimage()
    assert files == [(1, "arch/x86/kvm/svm.o"), (2, "vmlinux")]
    made = _made(world)
    assert build(recipe, "mine", _silent) == kernel
    assert build(recipe, "other", _silent).image == kernel.image
    assert _made(world) == made
    assert [kernel.name for kernel in built_kernels()] == ["mine", "other"]


@pytest.mark.parametrize("text", ["", '{"release": "9', "[]", "{}", "[" * 100_000])
def test_a_damaged_kernel_is_built_again(world: Path, text: str) -> None:
    recipe = Recipe(_tarball(world))
    kernel = build(recipe, "mine", _silent)
    build(replace(recipe, config="CONFIG_X=y\n"), "other", _silent)
    (kernel.image.parent / "kernel.json").write_text(text)
    assert find_built("mine") is None
    assert [each.name for each in built_kernels()] == ["other"]
    assert build(recipe, "mine", _silent) == find_built("mine") == kernel


def test_each_input_makes_another_kernel(world: Path) -> None:
    patch = world / "p.patch"
    patch.write_text("--- a/arch/x86/kvm/svm.c\n+++ b/arch/x86/kvm/svm.c\n@@ -1 +1 @@\n-fine\n+2\n")
    source = _tarball(world)
    recipes = [Recipe(source), Recipe(source, (patch,)), Recipe(source, (), "CONFIG_X=y\n")]
    kernels = [build(recipe, None, _silent) for recipe in recipes]
    assert len({kernel.image for kernel in kernels}) == 3
    assert len({kernel.name for kernel in kernels}) == 3
    assert kernels[1].patches == ("p.patch",)
    (kept,) = kernels[1].image.parent.glob("patches/*")
    assert kept.read_text() == patch.read_text()


def test_each_configuration_keeps_its_objects(world: Path) -> None:
    source = _tarball(world)
    fragments = ["", "CONFIG_X=y\n", "CONFIG_Y=y\n"]
    patch = world / "p.patch"
    patch.write_text("--- a/arch/x86/kvm/svm.c\n+++ b/arch/x86/kvm/svm.c\n@@ -1 +1 @@\n-fine\n+2\n")
    for fragment in fragments:
        build(Recipe(source, (), fragment), None, _silent)
    (objects,) = world.glob("cache/pyvmm/trees/*/build")
    (objects / "left").write_text("by the last")
    build(Recipe(source, (patch,), fragments[0]), None, _silent)
    assert not (objects / "left").exists()
    assert "CONFIG_Y" not in (objects / ".config").read_text()
    build(Recipe(source, (patch,), fragments[2]), None, _silent)
    assert (objects / "left").read_text() == "by the last"
    assert len(list(objects.parent.glob("parked-*"))) == 2


def test_a_folder_is_built_again_when_it_changed(world: Path) -> None:
    recipe = Recipe(world / "linux")
    first = build(recipe, "tree", _silent)
    assert build(recipe, "tree", _silent) == first
    (world / "linux/arch/x86/kvm/svm.c").write_text("still fine\n")
    assert build(recipe, "tree", _silent).image != first.image
    assert (world / "linux/arch/x86/kvm/svm.c").read_text() == "still fine\n"
    assert {path.name for path in (world / "linux").iterdir()} == {"Kbuild", "arch"}


@pytest.mark.parametrize("name", ["listing.json", "originals.json", "modes.json"])
@pytest.mark.parametrize(
    "content", [b"", b"[]", b"\xff", b"[" * 100_000, b'{"a": [7]}', b'{"../a": 7}']
)
def test_a_damaged_tree_is_one_line_with_a_remedy(world: Path, name: str, content: bytes) -> None:
    patch = world / "a.patch"
    patch.write_text("--- a/arch/x86/kvm/svm.c\n+++ b/arch/x86/kvm/svm.c\n@@ -1 +1 @@\n-fine\n+2\n")
    recipe = Recipe(world / "linux", (patch,))
    image = build(recipe, "mine", _silent).image
    (path,) = world.rglob(name)
    path.write_bytes(content)
    with pytest.raises(LabError) as caught:
        build(recipe, "mine", _silent)
    remedy = f"remove {path.parent}: it is made anew"
    assert str(caught.value) == f"{path}: it is damaged; {remedy}"
    shutil.rmtree(path.parent)
    assert build(recipe, "mine", _silent).image == image


def test_a_kernel_that_does_not_compile_says_so_in_one_line(world: Path) -> None:
    (world / "linux/arch/x86/kvm/svm.c").write_text("broken\n")
    recipe = Recipe(_tarball(world))
    with pytest.raises(LabError) as caught:
        build(recipe, "mine", _silent)
    message = str(caught.value)
    assert "svm.c:7:1: error: expected ';'" in message
    assert "\n" not in message
    assert caught.value.status == 125
    log = Path(message.rpartition("log: ")[2])
    assert "make[1]: ***" in log.read_text()
    assert find_built("mine") is None


def test_what_does_not_compile_is_tried_once_where_that_is_wanted(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (world / "linux/arch/x86/kvm/svm.c").write_text("broken\n")
    recipe = Recipe(_tarball(world))

    def says(once: bool = False) -> str:
        with pytest.raises(NotBuilt) as caught:
            build(recipe, "mine", _silent, once=once)
        return str(caught.value)

    def tried() -> int:
        return _made(world).count("bzImage")

    first = says(once=True)
    with ThreadPoolExecutor(2) as threads:
        assert set(threads.map(lambda _: says(once=True), range(4))) == {first}
    assert tried() == 1
    assert says() == first and tried() == 2  # a person does it again
    (failed,) = world.rglob("failed.json")
    for text in ("", "[]", "{}", '"x"', "[" * 100_000, json.dumps([build_module._THESE_PROCESSES])):
        failed.write_text(text)
        before = tried()
        assert says(once=True) == first and tried() == before + 1
    monkeypatch.setattr(build_module, "_THESE_PROCESSES", "those of another command")
    assert says(once=True) == first and tried() == before + 2


def test_jobs_of_a_kernel_that_does_not_compile_build_it_once(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (world / "linux/arch/x86/kvm/svm.c").write_text("broken\n")
    monkeypatch.setattr(job_run, "find_qemu", lambda: "")
    monkeypatch.setattr(job_run, "find_busybox", lambda: "")
    kernel = Built(str(_tarball(world)))
    jobs = [Job(kernel, (select("MR6")[0].name,), seed) for seed in range(4)]
    outcomes = dict(run_jobs(jobs, 2, _silent))
    assert {type(each) for each in outcomes.values()} == {NotBuilt} and len(outcomes) == 4
    assert len(set(map(str, outcomes.values()))) == 1, "it is told once"
    assert _made(world).count("bzImage") == 1


def test_what_need_not_fail_again_is_tried_again(world: Path) -> None:
    (world / "tools/make").write_text(
        '#!/bin/sh\necho x >>"$MADE"\necho "fixdep: error: No space left on device"; exit 2\n'
    )
    for times in (1, 2):
        with pytest.raises(NotBuilt, match="No space left"):
            build(Recipe(_tarball(world)), "mine", _silent, once=True)
        assert len(_made(world)) == times


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("  CC      arch/x86/boot/error.o\nmake[1]: *** [x:1: y.o] Error 1", "make[1]: "),
        ("ld: warning: x has a LOAD segment\nld: y.o: in function `z': undefined reference to `w'",
         "ld: y.o: in"),
        ("ERROR: modpost: \"x\" undefined!\nmake: *** [Makefile:1: all] Error 2", "ERROR: modp"),
        ("Kconfig:5: syntax error\nmake: *** [Makefile:1: all] Error 2", "Kconfig:5: syntax"),
        ("cc1: error: closing x\ngcc: fatal error: Killed signal terminated cc1", "cc1: er"),
        ("fixdep: error writing x: No space left on device", "fixdep: error writing x: No space"),
    ],
)  # fmt: skip
def test_the_reason_is_found_in_what_make_says(world: Path, said: str, reason: str) -> None:
    (world / "said").write_text(f"{said}\n")
    (world / "tools/make").write_text(f"#!/bin/sh\ncat {world}/said; exit 2\n")
    with pytest.raises(LabError) as caught:
        build(Recipe(_tarball(world)), "mine", _silent)
    assert f"does not build: {reason}" in str(caught.value)


def test_many_lost_options_are_counted() -> None:
    wanted = "".join(f"CONFIG_LOST_{number}=y\n" for number in range(100))
    with pytest.raises(LabError, match=r"CONFIG_LOST_7=y and 92 more did not stick"):
        check_config(own_fragment(), own_fragment(), wanted)


def test_a_fragment_that_contradicts_itself(world: Path) -> None:
    (world / "fragment").write_text("CONFIG_A=y\nCONFIG_B=y\nCONFIG_A=y\n# CONFIG_A is not set\n")
    with pytest.raises(LabUsageError, match="line 4: CONFIG_A=n, and line 1 has CONFIG_A=y"):
        read_fragment(world / "fragment")


@pytest.mark.parametrize("name", ["a cache", "a:cache"])
def test_a_cache_that_make_does_not_take(
    world: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(world / name))
    with pytest.raises(LabError, match="no spaces and colons"):
        build(Recipe(world / "linux"), None, _silent)
    assert _made(world) == []


def test_a_cache_by_a_relative_path(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.chdir(world)
    assert build(Recipe(world / "linux"), None, _silent).image.is_relative_to(world / "here")


def test_a_lost_option_is_named(world: Path) -> None:
    recipe = Recipe(_tarball(world), (), "CONFIG_LOST_ONE=y\n")
    with pytest.raises(LabError, match=r"CONFIG_LOST_ONE=y did not stick"):
        build(recipe, "mine", _silent)
    assert "bzImage" not in _made(world)


def test_selftests_that_do_not_build(world: Path) -> None:
    folder = world / "linux/tools/testing/selftests/kvm"
    folder.mkdir(parents=True)
    (folder / "guest_memfd_test.c").write_text("x y;\n")
    (folder / "x86").mkdir()
    (folder / "x86/pmu_test.c").write_text("")
    kernel = build(Recipe(_tarball(world)), None, _silent)
    with pytest.raises(LabError, match="selftests do not build: guest_memfd_test"):
        build_selftests(kernel, ["guest_memfd_test"], _silent)
    found = build_those_that_do(kernel, ["pmu_test", "sev_test", "guest_memfd_test"], _silent)
    assert found.missing == ("sev_test",) and list(found.programs) == ["pmu_test"]
    assert found.programs["pmu_test"].parts[-2:] == ("x86", "pmu_test")
    assert list(found.problems) == ["guest_memfd_test"]
    assert "error: unknown type name 'x'; log: " in found.problems["guest_memfd_test"]


def test_warnings_of_a_file_that_the_configuration_lacks(world: Path) -> None:
    """make is told to compile it and fails, which says nothing of the patch.

    Nor does W=1 where all of the kernel is built with errors for warnings.
    """
    patch = world / "p.patch"
    names = ("arch/x86/kvm/svm.c", "mm/memcontrol.c")
    text = "".join(f"--- a/{name}\n+++ b/{name}\n@@ -1 +1 @@\n-1\n+2\n" for name in names)
    patch.write_text(text)
    recipe = Recipe(_tarball(world), (patch,), "CONFIG_WERROR=y\n")
    found = warnings_of_patch(recipe, text, _silent)
    assert [(each.file, each.text) for each in found] == [("arch/x86/kvm/svm.c", "of this line")]


def test_warnings_of_a_hunk_that_fits_elsewhere(world: Path) -> None:
    """The compiler has the number that a line has in the file, whatever the patch says."""
    name = "arch/x86/kvm/svm.c"
    patch = world / "p.patch"
    text = f"--- a/{name}\n+++ b/{name}\n@@ -21 +21 @@\n-1\n+2\n"
    patch.write_text(text)
    with open(world / "tools/patch", "a") as script:
        script.write(f"echo 'patching file {name}'\n")
        script.write("echo 'Hunk #1 succeeded at 1 (offset -20 lines).'\n")
    recipe = Recipe(_tarball(world), (patch,), "CONFIG_WERROR=y\n")
    found = warnings_of_patch(recipe, text, _silent)
    assert [(each.line, each.text) for each in found] == [(1, "of this line")]
    assert added_lines([text]) == {name: {21: "2"}}
    assert added_lines(placed_patches(recipe, _silent)) == {name: {1: "2"}}


def test_an_unreadable_patch(world: Path) -> None:
    with pytest.raises(LabUsageError, match=r"none\.patch"):
        build(Recipe(_tarball(world), (world / "none.patch",)), None, _silent)


def test_missing_tools_are_named(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(_tarball(world))
    for name in ("flex", "xz"):
        (world / "tools" / name).unlink()
    monkeypatch.setenv("PATH", str(world / "tools"))
    with pytest.raises(LabError, match=r"^flex, tar, xz: .* or install flex tar xz-utils$"):
        build(recipe, None, _silent)


def test_no_room(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LabError, match=r"no room in the cache .*: fewer than 1000000000 MiB"):
        check_room(world, 10**9)


def test_a_cache_that_cannot_be_made(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(world / "image"))
    with pytest.raises(LabError, match="XDG_CACHE_HOME"):
        build(Recipe(world / "linux"), None, _silent)


@pytest.mark.parametrize(("word", "part"), [("list", "names"), ("kernel-log", "kernel.log")])
def test_a_cache_that_cannot_be_read(
    world: Path, word: str, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (world / "cache").mkdir(exist_ok=True)
    (world / "cache/pyvmm").touch()
    assert main(["lab", word]) == 125
    out, err = capsys.readouterr()
    where = f"cache folder {world}/cache/pyvmm/{part}"
    assert not out
    assert err == f"pyvmm: lab: {where}: Not a directory; XDG_CACHE_HOME names another place\n"


def test_nobody_has_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", refuse)
    with pytest.raises(LabError, match="no home folder; XDG_CACHE_HOME"):
        find_built("default")


def test_names(world: Path) -> None:
    recipe = Recipe(_tarball(world))
    for name in ("", "../x", ".hidden", "a b", "x" * 100):
        with pytest.raises(LabUsageError, match="kernel name"):
            build(recipe, name, _silent)
    for name in ("default", "6.12", "memory-error", "in-place"):
        with pytest.raises(LabUsageError, match="the lab's own"):
            build(recipe, name, _silent)
    with pytest.raises(LabUsageError, match=r"'nosuch': there is none of this name"):
        find_or_build("nosuch", _silent)


def test_a_known_kernel_is_built_on_first_use(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = _tarball(world)
    monkeypatch.setattr(build_module, "default_tarball", lambda version: source)
    said: list[str] = []
    kernel = find_or_build("default", said.append)
    assert "never built" in said[0]
    assert kernel.name == "default"
    said.clear()
    assert find_or_build("default", said.append) == kernel
    assert said == []
    source.unlink()  # what is built stays usable
    assert find_or_build("default", said.append) == kernel


def test_a_file_of_the_working_folder_is_a_kernel(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    assert find_or_build("image", _silent).image == world / "image"
    build(Recipe(_tarball(world)), "my-bzImage", _silent)
    assert find_or_build("my-bzImage", _silent).name == "my-bzImage"


def test_nothing_is_announced_that_cannot_begin(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_module, "default_tarball", lambda version: world / "none")
    said: list[str] = []
    with pytest.raises(LabUsageError, match="none"):
        find_or_build("default", said.append)
    monkeypatch.setattr(build_module, "default_tarball", lambda version: world / "linux")
    monkeypatch.setenv("PATH", str(world / "none"))
    with pytest.raises(LabError, match="gcc"):
        find_or_build("default", said.append)
    assert said == []


def test_known_recipes_are_what_they_say() -> None:
    default = known_recipe("default")
    assert default is not None and default.patches == ()
    version = known_recipe("7.3")
    assert version is not None and version.source.name == "linux-source-7.3.tar.xz"
    own = known_recipe("memory-error")
    assert own is not None and own.patches[0].name == "memory-error.patch"
    newer = known_recipe("in-place")
    assert newer is not None and newer.source == version.source
    assert newer.patches[0].name == "in-place.patch" and "CONFIG_GUP_TEST=y" in newer.config
    assert known_recipe("anything") is None


def test_a_source_is_named_by_path_or_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert source_path(Path("7.3")).name == "linux-source-7.3.tar.xz"
    assert source_path(Path("linux")) == tmp_path / "linux"
    (tmp_path / "7.3").mkdir()
    assert source_path(Path("7.3")) == tmp_path / "7.3"


def test_a_build_waits_for_another(world: Path) -> None:
    said: list[str] = []
    code = (
        "import sys; from pathlib import Path; from pyvmm.lab.cache import locked\n"
        f"with locked(Path({str(world)!r}), lambda line: None):\n"
        "    print('got it', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdin is not None and other.stdout is not None
        assert other.stdout.readline() == b"got it\n"

        def announce(line: str) -> None:
            said.append(line)
            other.communicate()

        with locked(world, announce):
            assert other.poll() == 0
    assert said == [f"waiting for another build in {world}"]


def test_an_interrupted_build_leaves_no_process(world: Path) -> None:
    (world / "linux/arch/x86/kvm/svm.c").write_text("slow\n")
    source = _tarball(world)
    run = "import sys; from pyvmm.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", run, "lab", "build", "--source", str(source)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while "bzImage" not in _made(world):
            assert process.poll() is None
            time.sleep(0.01)
        process.terminate()
        assert process.wait(30) == 143
    deadline = time.monotonic() + 30
    while _processes_of(world):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _processes_of(world: Path) -> list[str]:
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            words = Path("/proc", pid, "cmdline").read_bytes()
        except OSError:
            continue
        if os.fsencode(world) in words:
            found.append(pid)
    return found


# ---- configuration ----


def test_the_last_line_of_a_configuration_counts() -> None:
    text = 'CONFIG_A=y\n# CONFIG_A is not set\nCONFIG_B=m\nCONFIG_B="text"\n# comment\n'
    assert parse_config(text) == {"CONFIG_A": "n", "CONFIG_B": '"text"'}


def test_the_labs_own_configuration_has_no_jump_labels() -> None:
    own = parse_config(own_fragment())
    assert own["CONFIG_JUMP_LABEL"] == "n"
    assert own["CONFIG_KVM_SW_PROTECTED_VM"] == "y"
    assert len(own) == len([line for line in own_fragment().splitlines() if "CONFIG_" in line])


def test_what_the_lab_needs_must_stick_but_can_be_given_up() -> None:
    final = own_fragment().replace("CONFIG_KVM_SW_PROTECTED_VM=y", "")
    with pytest.raises(LabError, match=r"^CONFIG_KVM_SW_PROTECTED_VM=y did not stick"):
        check_config(final, own_fragment(), "")
    check_config(final, own_fragment(), "# CONFIG_KVM_SW_PROTECTED_VM is not set\n")


@pytest.mark.parametrize("line", ["CONFIG_X", "X=y", "config_x=y", "nonsense"])
def test_a_fragment_that_is_none(world: Path, line: str) -> None:
    path = world / "fragment"
    path.write_text(f"CONFIG_A=y\n\n# fine\n{line}\n")
    with pytest.raises(LabUsageError, match="line 4"):
        read_fragment(path)
    with pytest.raises(LabUsageError, match="nowhere"):
        read_fragment(world / "nowhere")


# ---- images ----


def test_images(world: Path) -> None:
    assert read_image(world / "image").release == "9.9.1-test"
    for content in (b"", b"\x7fELF" + bytes(1000), fake_bzimage()[:0x203]):
        (world / "no").write_bytes(content)
        with pytest.raises(LabUsageError, match="not a bzImage"):
            read_image(world / "no")
    whole = bytearray(fake_bzimage())
    whole[0x1F1], whole[0x1F4], whole[0x207], whole[0x236] = 3, 128, 2, 1
    whole[0x206] = 0x0F
    (world / "image").write_bytes(whole)
    assert read_image(world / "image").release == "9.9.1-test"
    (world / "image").write_bytes(whole[:-1])
    with pytest.raises(LabUsageError, match="cut off: 4095 bytes of 4096"):
        read_image(world / "image")
    whole[0x236] = 0
    (world / "image").write_bytes(whole)
    with pytest.raises(LabUsageError, match="not a 64-bit kernel"):
        read_image(world / "image")
    with pytest.raises(LabUsageError, match="No such file"):
        read_image(world / "nowhere")
    with pytest.raises(LabUsageError, match="directory"):
        read_image(world)


def test_a_kernel_of_the_lab_by_its_path(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is what it is by its name: what it was built from, and whether it counts."""
    monkeypatch.setattr(coverage, "check_compiler", lambda files: None)
    (world / "linux/arch/x86/kvm/Makefile").write_text("")
    kernel = build(Recipe(_tarball(world), coverage=True), "counting", _silent)
    (world / "link").symlink_to(kernel.image)
    for path in (kernel.image, world / "link"):
        found = read_image(path)
        assert found == replace(kernel, name=str(path)) and found.counts
        assert counting_kernel(str(path)) == str(path)
    monkeypatch.chdir(kernel.image.parent)
    assert counting_kernel("bzImage") == "bzImage"
    (world / "copy").write_bytes(kernel.image.read_bytes())
    with pytest.raises(LabError, match="copy: it does not count what KVM executes"):
        counting_kernel(str(world / "copy"))
    (kernel.image.parent / "kernel.json").write_text("{")
    assert not read_image(kernel.image).counts
