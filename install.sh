#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
# Builds the release and installs it: the library, shared and static, its
# header and .pc file, the command, and its units for systemd.
set -eu
umask 022

usage() {
    cat <<'END'
Usage: ./install.sh [OPTION]...

  --prefix=DIR       where to install (default: /usr/local)
  --libdir=DIR       for the libraries (default: PREFIX/lib)
  --includedir=DIR   for the header (default: PREFIX/include)
  --destdir=DIR      put in front of all of these, to make a package
                     (default: $DESTDIR)
  --no-command       leave out the command virt-internal and its units
  --with-delegate    a library in which any program can run a delegate, and the
                     header for that
  --build-only       build, do not install
  --no-build         install what --build-only has built
  --builddir=DIR     where to build (default: target/install)
  --help             show this text

A relative libdir or includedir is one below PREFIX. The environment's CARGO
and CARGO_TARGET_DIR are honoured. Where root has no cargo:

  ./install.sh --build-only && sudo ./install.sh --no-build
END
}

die() {
    echo "install.sh: $*" >&2
    exit 1
}

# absolute BASE DIR
absolute() {
    case $2 in
        /*) echo "${2%/}" ;;
        *) echo "$1/${2%/}" ;;
    esac
}

prefix=/usr/local libdir=lib includedir=include destdir=${DESTDIR:-} builddir=
command=yes delegate=no build=yes install=yes
for option; do
    case $option in
        --*=) die "${option%=} needs a directory: ${option}DIR" ;;
        --prefix=*) prefix=${option#*=} ;;
        --libdir=*) libdir=${option#*=} ;;
        --includedir=*) includedir=${option#*=} ;;
        --destdir=*) destdir=${option#*=} ;;
        --builddir=*) builddir=${option#*=} ;;
        --prefix | --libdir | --includedir | --destdir | --builddir)
            die "$option needs a directory: $option=DIR" ;;
        --no-command) command=no ;;
        --with-delegate) delegate=yes ;;
        --build-only) install=no ;;
        --no-build) build=no ;;
        --help | -h) usage; exit ;;
        *) die "unknown option: $option (see --help)" ;;
    esac
done
[ "$build$install" != nono ] || die "--build-only and --no-build leave nothing to do"

here=$PWD
cd "$(dirname "$0")"
prefix=$(absolute "$here" "$prefix")
[ -n "$prefix" ] || die "--prefix=/ would fill /lib and /include: take --prefix=/usr"
libdir=$(absolute "$prefix" "$libdir")
includedir=$(absolute "$prefix" "$includedir")
[ -z "$destdir" ] || destdir=$(absolute "$here" "$destdir")
[ -z "$builddir" ] || builddir=$(absolute "$here" "$builddir")
target=$(absolute "$here" "${CARGO_TARGET_DIR:-${builddir:-$PWD}/target}")
builddir=${builddir:-$target/install}
case $prefix$libdir$includedir in
    *[[:space:]\"\'\\\|\&\$\#]*)
        die "a .pc file cannot name a directory with spaces or quotes, or with \\ | & \$ #" ;;
esac
version=$(awk -F'"' '/^version = / { print $2; exit }' Cargo.toml)
cargo=${CARGO:-cargo}
# The two kinds of library are built apart: neither makes the other one stale.
case $delegate in
    yes) library=$target/library-delegate ;;
    no) library=$target/library ;;
esac
map=$library/libvirt-internal.map

# static_library RUSTC'S OURS
#
# What rustc writes has all of the standard library, with global names that
# clash with those of a second Rust library in a program, and its functions
# carry a version that only the shared library defines. Ours is one object, in
# which nothing else is global.
static_library() {
    work=$library/static
    mkdir -p "$work"
    awk '/\{/ { node = $1 }
         /^ *virInternal/ { sub(";", ""); print $1 "@@" node, $1 }' \
        "$map" >"$work/names"
    # shellcheck disable=SC2046 # one word for each symbol
    ld -r --gc-sections --force-group-allocation --strip-debug \
        $(sed 's/^/-u /; s/ [^ ]*$//' "$work/names") \
        -o "$work/libvirt-internal.o" "$1"
    objcopy --redefine-syms="$work/names" --wildcard \
        --keep-global-symbol='virInternal*' --strip-unneeded \
        "$work/libvirt-internal.o"
    rm -f "$work/libvirt-internal.a"
    ar rcD "$work/libvirt-internal.a" "$work/libvirt-internal.o"
    update "$work/libvirt-internal.a" "$2"
}

# symbol_map: what the library exports. A linker may refuse names of what is not
# there.
symbol_map() {
    mkdir -p "$library"
    {
        sed '/local:/,$d' src/libvirt-internal.map
        [ $delegate = no ] ||
            sed -n '/^ *virInternal/p' src/libvirt-internal-delegate.map
        sed -n '/local:/,$p' src/libvirt-internal.map
    } >"$map.new"
    mv "$map.new" "$map"
}

# update NEW OLD: a file that is the same keeps its time, and whoever depends
# on it is not built again.
update() {
    cmp -s "$1" "$2" || cp "$1" "$2"
}

# put MODE FILE TO: renamed into place, because a program that starts meanwhile
# must find the old file or the new one.
put() {
    install -D -m "$1" "$2" "$destdir$3.new"
    mv -f "$destdir$3.new" "$destdir$3"
    echo "  $destdir$3"
}

# link TARGET NAME
link() {
    ln -sf "$1" "$destdir$libdir/$2"
    echo "  $destdir$libdir/$2 -> $1"
}

# In a .pc file a directory below the prefix is written as one, so that
# pkg-config can move it (--define-prefix).
below_prefix() {
    case $1 in
        "$prefix"/*) echo "\${prefix}${1#"$prefix"}" ;;
        *) echo "$1" ;;
    esac
}

if [ $build = yes ]; then
    command -v "$cargo" >/dev/null || die "no $cargo: install Rust, or set CARGO"
    mkdir -p "$builddir"
    # The command's features must not get into the library, so it is built
    # apart; and only without an rlib does rustc optimize across crates. It is
    # never unloaded: threads that end later run code of it.
    symbol_map
    features='' panic=abort
    if [ $delegate = yes ]; then
        # std is there, and with it an unwinder: it must find what is to be done
        # when a handler is left by an exception.
        features=--features=delegate panic=unwind
    fi
    # shellcheck disable=SC2086 # one word or none
    CARGO_PROFILE_RELEASE_PANIC=$panic "$cargo" rustc --locked --release --lib --no-default-features $features \
        --crate-type cdylib,staticlib --target-dir "$library" -- \
        -C link-arg=-Wl,-soname,libvirt-internal.so.0 \
        -C link-arg=-Wl,-z,nodelete,-z,now,-z,defs \
        -C link-arg="-Wl,--version-script=$map"
    built=$library/release
    update "$built/libvirt_internal.so" "$builddir/libvirt-internal.so.0"
    # What links to the library here can run here.
    ln -sf libvirt-internal.so.0 "$builddir/libvirt-internal.so"
    static_library "$built/libvirt_internal.a" "$builddir/libvirt-internal.a"
    # It says which kind is built.
    header=libvirt-internal-delegate.h
    case $delegate in
        yes) update include/libvirt/$header "$builddir/$header" ;;
        no) rm -f "$builddir/$header" ;;
    esac
    if [ $command = yes ]; then
        "$cargo" build --locked --release --bin virt-internal --target-dir "$target"
        update "$target/release/virt-internal" "$builddir/virt-internal"
    fi
fi
[ $install = yes ] || exit 0

[ -e "$builddir/libvirt-internal.so.0" ] ||
    die "nothing is built in $builddir: see --build-only"
[ $delegate = no ] || [ -e "$builddir/libvirt-internal-delegate.h" ] ||
    die "what is built in $builddir has no delegate"
echo "Installed:"
put 755 "$builddir/libvirt-internal.so.0" "$libdir/libvirt-internal.so.$version"
link "libvirt-internal.so.$version" libvirt-internal.so.0
link libvirt-internal.so.0 libvirt-internal.so
put 644 "$builddir/libvirt-internal.a" "$libdir/libvirt-internal.a"
put 644 include/libvirt/libvirt-internal.h "$includedir/libvirt/libvirt-internal.h"
if [ -e "$builddir/libvirt-internal-delegate.h" ]; then
    put 644 "$builddir/libvirt-internal-delegate.h" \
        "$includedir/libvirt/libvirt-internal-delegate.h"
fi
sed -e "s|@prefix@|$prefix|" -e "s|@version@|$version|" \
    -e "s|@libdir@|$(below_prefix "$libdir")|" \
    -e "s|@includedir@|$(below_prefix "$includedir")|" \
    pkgconfig/libvirt-internal.pc.in |
    put 644 /dev/stdin "$libdir/pkgconfig/libvirt-internal.pc"
if [ $command = yes ]; then
    put 755 "$builddir/virt-internal" "$prefix/bin/virt-internal"
    # systemd looks in lib, whatever the libraries' directory.
    units=$prefix/lib/systemd/system
    sed "s|@bindir@|$prefix/bin|" systemd/virt-internal-delegate.service.in |
        put 644 /dev/stdin "$units/virt-internal-delegate.service"
    put 644 systemd/virt-internal-delegate.socket "$units/virt-internal-delegate.socket"
fi
[ -z "$destdir" ] || exit 0

# Whether the loader looks there, once ldconfig has.
is_on_loaders_path() {
    ldconfig -v 2>/dev/null | grep -q "^$libdir:"
}

echo "Next:"
if [ "$(id -u)" = 0 ] && is_on_loaders_path; then
    echo "  ldconfig                                        # programs find it"
else
    echo "  export LD_LIBRARY_PATH=$libdir    # programs find it"
fi
echo "  export PKG_CONFIG_PATH=$libdir/pkgconfig"
echo "  cc program.c \$(pkg-config --cflags --libs libvirt-internal)"
if [ $command = yes ]; then
    echo "  $prefix/bin/virt-internal demo"
fi
