# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=sh
# For the suites in shell: named checks, and the closing line with their sum.

passed=0 failed=0 skipped=0

# check NAME COMMAND...
check() {
    name=$1
    shift
    # -e holds inside because nothing outside looks at the status.
    set +e
    output=$(set -e; "$@" 2>&1)
    status=$?
    set -e
    if [ $status = 0 ]; then
        passed=$((passed + 1))
        echo "ok   $name"
    else
        failed=$((failed + 1))
        echo "FAIL $name"
        printf '%s\n' "$output" | sed 's/^/     /'
    fi
}

# skip NAME WHY
skip() {
    skipped=$((skipped + 1))
    echo "SKIP $1: $2"
}

# expect WHAT EXPECTED FOUND
expect() {
    [ "$2" = "$3" ] || {
        printf '%s\nexpected:\n%s\nfound:\n%s\n' "$1" "$2" "$3"
        return 1
    }
}

# files ROOT: type, mode, name, and where a link leads to
files() {
    find "$1" ! -type d -printf '%y %m %P %l\n' | sed 's/ $//' | sort
}

has() {
    command -v "$1" >/dev/null
}

finish() {
    echo "$passed passed, $failed failed, $skipped skipped"
    [ $failed = 0 ]
}
