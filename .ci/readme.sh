# shellcheck shell=bash
# What the documents tell a reader to type. Sourced in the repository's root.

# fenced FILE...: the lines of fenced blocks.
fenced() {
    awk '/^```/ { fenced = !fenced; next } fenced' "$@"
}

# readme_line WORD: the README's first fenced line that has WORD.
readme_line() {
    fenced README.md | grep -F -m 1 -- "$1"
}

# readme_apt_line: how the README says to install what pyvmm needs.
readme_apt_line() {
    # shellcheck disable=SC2016 # Markdown's quotes
    grep -oE -m 1 '`apt install [^`]+`' README.md | tr -d '`'
}

# lab_lines: every use of the lab's commands, once. Of a git bisect, what it runs each time.
lab_lines() {
    {
        fenced docs/lab.md README.md | sed -nE -e 's/ +# .*//' -e 's/^\$ //' \
            -e "s/^git bisect run sh -c '(.*)'$/cd ~\/linux \&\& \1/p" -e '/^pyvmm lab /p'
        # shellcheck disable=SC2016
        grep -ohE '`pyvmm lab (setup --source [0-9.]+|kernel-log)`' docs/lab.md | tr -d '`'
    } | awk '!seen[$0]++'
}
