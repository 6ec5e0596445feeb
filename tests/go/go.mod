// SPDX-License-Identifier: LGPL-2.1-or-later
module libvirt-internal/tests

go 1.19
