// SPDX-License-Identifier: LGPL-2.1-or-later
use std::fs;
use std::path::PathBuf;

use super::*;
use crate::operation::Allowed;

const EXAMPLE: &str = include_str!("../../../docs/examples/policy.toml");

/// A good policy, a field a line.
const GOOD: &str = r#"version = 1
[host]
cgroup-hierarchy = "v2"
[quota]
connections = 64
concurrent = 8
per-second = 100
[[rule]]
name = "a"
[rule.peer]
uid = 107
gid = 107
cgroup = "/a"
label = "l"
[rule.target]
cgroup = "/m"
[rule.process-set-max-mem-lock]
max = 4096
[rule.process-set-max-files]
max = 65536
[rule.process-set-scheduler]
policies = ["fifo", "batch"]
max-priority = 10
cpus = "2-7"
[rule.cgroup-add-threads]
roles = ["vcpu", "emulator"]
[rule.cgroup-add-threads.housekeeping]
name = "hk"
cpus = "8-9"
# end
"#;

/// What in GOOD is replaced by what, and the error behind the file's name.
const WRONG: &[(&str, &str, &str)] = &[
    (
        "version = 1",
        "version = 2",
        "1:1: version is 2: this program knows version 1",
    ),
    (
        "version = 1",
        r#"version = "1""#,
        r#"1:1: version is "1": this program knows version 1"#,
    ),
    (
        "version = 1\n",
        "",
        "1:1: version is missing: write version = 1",
    ),
    (
        "version = 1",
        "version = 1.0",
        "1:1: version is 1.0: this program knows version 1",
    ),
    (
        "version = 1",
        "version = 1\nrules = 3",
        "2:1: rules is not known: the fields here are version, host, quota, rule",
    ),
    (
        "version = 1",
        "version = 1\n\"\" = 3",
        r#"2:1: "" is not known: the fields here are version, host, quota, rule"#,
    ),
    (
        "version = 1",
        "version = 1\nversion = 1",
        "2:1: this is not TOML: duplicate key",
    ),
    (
        "version = 1",
        "version = ",
        "1:11: this is not TOML: string values must be quoted, expected literal string",
    ),
    (
        "[rule.peer]",
        "[rule.peer",
        "10:11: this is not TOML: unclosed table, expected `]`",
    ),
    (
        "v2",
        "v3",
        r#"3:1: host.cgroup-hierarchy is "v3": it must be v2, name= and the name of a v1 hierarchy, or one of blkio, cpu, cpuacct, cpuset, debug, devices, freezer, hugetlb, memory, misc, net_cls, net_prio, perf_event, pids, rdma"#,
    ),
    (
        r#""v2""#,
        "2",
        "3:1: host.cgroup-hierarchy is 2: it must be a string",
    ),
    (
        "v2",
        "name=",
        r#"3:1: host.cgroup-hierarchy is "name=": it must be v2, name= and the name of a v1 hierarchy, or one of blkio, cpu, cpuacct, cpuset, debug, devices, freezer, hugetlb, memory, misc, net_cls, net_prio, perf_event, pids, rdma"#,
    ),
    (
        "v2",
        "name=a/b",
        r#"3:1: host.cgroup-hierarchy is "name=a/b": it must be v2, name= and the name of a v1 hierarchy, or one of blkio, cpu, cpuacct, cpuset, debug, devices, freezer, hugetlb, memory, misc, net_cls, net_prio, perf_event, pids, rdma"#,
    ),
    (
        "cgroup-hierarchy",
        "cgroup_hierarchy",
        "3:1: host.cgroup_hierarchy is not known: the fields here are cgroup-hierarchy",
    ),
    (
        "[host]",
        "[[host]]",
        "2:3: host is a list of tables: it must be a table",
    ),
    (
        "v2",
        "cpu,cpuacct",
        r#"3:1: host.cgroup-hierarchy is "cpu,cpuacct": it must be v2, name= and the name of a v1 hierarchy, or one of blkio, cpu, cpuacct, cpuset, debug, devices, freezer, hugetlb, memory, misc, net_cls, net_prio, perf_event, pids, rdma"#,
    ),
    (
        "connections = 64",
        "connections = 0",
        "5:1: quota.connections is 0: it must be 1 to 1000000",
    ),
    (
        "connections = 64",
        "connections = -1",
        "5:1: quota.connections is -1: it must be 1 to 1000000",
    ),
    (
        "connections = 64",
        "connections = 1000001",
        "5:1: quota.connections is 1000001: it must be 1 to 1000000",
    ),
    (
        "concurrent = 8",
        r#"concurrent = "8""#,
        r#"6:1: quota.concurrent is "8": it must be 1 to 1000000"#,
    ),
    (
        "per-second = 100",
        "per-second = 0",
        r#"7:1: quota.per-second is 0: it must be 1 to 1000000, or "unlimited""#,
    ),
    (
        "per-second = 100",
        r#"per-second = "none""#,
        r#"7:1: quota.per-second is "none": it must be 1 to 1000000, or "unlimited""#,
    ),
    (
        "per-second",
        "per_second",
        "7:1: quota.per_second is not known: the fields here are connections, concurrent, per-second",
    ),
    (
        "connections = 64",
        r#"connections = "unlimited""#,
        r#"5:1: quota.connections is "unlimited": it must be 1 to 1000000"#,
    ),
    (
        "[[rule]]",
        "[rule]",
        "8:2: rule is a table: it must be a list of tables, each below a [[rule]]",
    ),
    (
        "[[rule]]",
        "[[rules]]",
        "8:3: rules is not known: the fields here are version, host, quota, rule",
    ),
    (
        r#"name = "a""#,
        r#"name = """#,
        r#"9:1: rule 1: name is "": it must have 1 to 255 bytes and no control characters"#,
    ),
    (
        "name = \"a\"\n",
        "",
        "8:1: rule 1: name is missing: each rule has a name of its own",
    ),
    (
        r#"name = "a""#,
        r#"nmae = "a""#,
        "9:1: rule 1: nmae is not known: the fields here are name, peer, target, quota, process-set-max-mem-lock, process-set-max-processes, process-set-max-files, process-set-max-core-size, process-set-scheduler, process-set-affinity, cgroup-add-threads",
    ),
    (
        r#"name = "a""#,
        "name = 3",
        "9:1: rule 1: name is 3: it must be a string",
    ),
    (
        r#"name = "a""#,
        r#"name = "a\u0000b""#,
        r#"9:1: rule 1: name is "a\u0000b": it must have 1 to 255 bytes and no control characters"#,
    ),
    (
        r#"name = "a""#,
        r#"name = "a\nb""#,
        r#"9:1: rule 1: name is "a\nb": it must have 1 to 255 bytes and no control characters"#,
    ),
    (
        "[rule.peer]\nuid = 107\ngid = 107\ncgroup = \"/a\"\nlabel = \"l\"\n",
        "",
        r#"8:1: rule "a": peer is missing: name whom the rule is for, by uid, gid, cgroup or label"#,
    ),
    (
        "uid = 107\ngid = 107\ncgroup = \"/a\"\nlabel = \"l\"\n",
        "",
        r#"10:7: rule "a": peer is empty: it must have a uid, gid, cgroup or label"#,
    ),
    (
        "[rule.peer]",
        "[rule.peeer]",
        r#"10:7: rule "a": peeer is not known: the fields here are name, peer, target, quota, process-set-max-mem-lock, process-set-max-processes, process-set-max-files, process-set-max-core-size, process-set-scheduler, process-set-affinity, cgroup-add-threads"#,
    ),
    (
        "gid = 107",
        "pid = 107",
        r#"12:1: rule "a": peer.pid is not known: the fields here are uid, gid, cgroup, label"#,
    ),
    (
        "gid = 107",
        "uid = 108",
        "12:1: this is not TOML: duplicate key",
    ),
    (
        "gid = 107",
        "gid = -1",
        r#"12:1: rule "a": peer.gid is -1: it must be an id from 0 to 4294967294, a list of ids such as [0, 107], or a string of ranges such as "100-199,1000""#,
    ),
    (
        "gid = 107",
        "gid = 4294967295",
        r#"12:1: rule "a": peer.gid is 4294967295: it must be an id from 0 to 4294967294"#,
    ),
    (
        "gid = 107",
        "gid = 99999999999999999999",
        r#"12:1: rule "a": peer.gid is 99999999999999999999: it must be an id from 0 to 4294967294, a list of ids such as [0, 107], or a string of ranges such as "100-199,1000""#,
    ),
    (
        "gid = 107",
        "gid = []",
        r#"12:1: rule "a": peer.gid is []: it must be an id from 0 to 4294967294, a list of ids such as [0, 107], or a string of ranges such as "100-199,1000""#,
    ),
    (
        "gid = 107",
        r#"gid = """#,
        r#"12:1: rule "a": peer.gid is "": it must be an id from 0 to 4294967294, a list of ids such as [0, 107], or a string of ranges such as "100-199,1000""#,
    ),
    (
        "gid = 107",
        "gid = [107, -1]",
        r#"12:13: rule "a": peer.gid has -1: it must be an id from 0 to 4294967294"#,
    ),
    (
        "gid = 107",
        r#"gid = [107, "0-5"]"#,
        r#"12:13: rule "a": peer.gid has "0-5": it must be an id from 0 to 4294967294"#,
    ),
    (
        "gid = 107",
        r#"gid = "5-2""#,
        r#"12:1: rule "a": peer.gid is "5-2": the range 5-2 is reversed: it must be an id from 0 to 4294967294, a list of ids such as [0, 107], or a string of ranges such as "100-199,1000""#,
    ),
    (
        "gid = 107",
        r#"gid = "5-4294967295""#,
        r#"12:1: rule "a": peer.gid is "5-4294967295": 4294967295 is more than 4294967294: it must be an id from 0 to 4294967294, a list of ids such as [0, 107], or a string of ranges such as "100-199,1000""#,
    ),
    (
        "gid = 107",
        r#"gid = "1,,2""#,
        r#"12:1: rule "a": peer.gid is "1,,2": it must be an id from 0 to 4294967294, a list of ids such as [0, 107], or a string of ranges such as "100-199,1000""#,
    ),
    (
        "gid = 107",
        r#"gid = "+1""#,
        r#"12:1: rule "a": peer.gid is "+1": it must be an id from 0 to 4294967294, a list of ids such as [0, 107], or a string of ranges such as "100-199,1000""#,
    ),
    (
        "gid = 107",
        r#"gid = "1 - 2""#,
        r#"12:1: rule "a": peer.gid is "1 - 2": it must be an id from 0 to 4294967294, a list of ids such as [0, 107], or a string of ranges such as "100-199,1000""#,
    ),
    (
        "gid = 107",
        r#"gid = "kvm""#,
        r#"12:1: rule "a": peer.gid is "kvm": it must be an id from 0 to 4294967294, a list of ids such as [0, 107], or a string of ranges such as "100-199,1000""#,
    ),
    (
        "gid = 107",
        "gid = 1.5",
        r#"12:1: rule "a": peer.gid is 1.5: it must be an id from 0 to 4294967294, a list of ids such as [0, 107], or a string of ranges such as "100-199,1000""#,
    ),
    (
        "gid = 107",
        "gid = true",
        r#"12:1: rule "a": peer.gid is true: it must be an id from 0 to 4294967294, a list of ids such as [0, 107], or a string of ranges such as "100-199,1000""#,
    ),
    (
        "gid = 107",
        "gid = {first = 1}",
        r#"12:1: rule "a": peer.gid is a table: it must be an id from 0 to 4294967294, a list of ids such as [0, 107], or a string of ranges such as "100-199,1000""#,
    ),
    (
        "gid = 107",
        "gid = 2026-01-01",
        r#"12:1: rule "a": peer.gid is 2026-01-01: it must be an id from 0 to 4294967294, a list of ids such as [0, 107], or a string of ranges such as "100-199,1000""#,
    ),
    (
        "gid = 107",
        r#"gid = "-""#,
        r#"12:1: rule "a": peer.gid is "-": it must be an id from 0 to 4294967294, a list of ids such as [0, 107], or a string of ranges such as "100-199,1000""#,
    ),
    (
        r#""/a""#,
        r#""a""#,
        r#"13:1: rule "a": peer.cgroup is "a": it is not absolute: it must be the absolute path of a cgroup such as /machine.slice"#,
    ),
    (
        r#""/a""#,
        r#""""#,
        r#"13:1: rule "a": peer.cgroup is "": it is not absolute: it must be the absolute path of a cgroup such as /machine.slice"#,
    ),
    (
        r#""/a""#,
        r#""/a/""#,
        r#"13:1: rule "a": peer.cgroup is "/a/": it ends in a slash: it must be the absolute path of a cgroup such as /machine.slice"#,
    ),
    (
        r#""/a""#,
        r#""/a//b""#,
        r#"13:1: rule "a": peer.cgroup is "/a//b": it has an empty component: it must be the absolute path of a cgroup such as /machine.slice"#,
    ),
    (
        r#""/a""#,
        r#""/a/../b""#,
        r#"13:1: rule "a": peer.cgroup is "/a/../b": it has a component . or ..: it must be the absolute path of a cgroup such as /machine.slice"#,
    ),
    (
        r#""/a""#,
        r#""/a/.""#,
        r#"13:1: rule "a": peer.cgroup is "/a/.": it has a component . or ..: it must be the absolute path of a cgroup such as /machine.slice"#,
    ),
    (
        r#""/a""#,
        r#""/a\u0000""#,
        r#"13:1: rule "a": peer.cgroup is "/a\u0000": it has a NUL or a newline: it must be the absolute path of a cgroup such as /machine.slice"#,
    ),
    (
        r#""/a""#,
        r#"["/a"]"#,
        r#"13:1: rule "a": peer.cgroup is ["/a"]: it must be a string"#,
    ),
    (
        r#""l""#,
        r#""""#,
        r#"14:1: rule "a": peer.label is "": it must have 1 to 255 bytes and no control characters"#,
    ),
    (
        r#""l""#,
        "[]",
        r#"14:1: rule "a": peer.label is []: it must be a label such as "vm-1", or a list of them"#,
    ),
    (
        r#""l""#,
        r#"["l", ""]"#,
        r#"14:15: rule "a": peer.label has "": it must have 1 to 255 bytes and no control characters"#,
    ),
    (
        r#""l""#,
        r#"["l", 3]"#,
        r#"14:15: rule "a": peer.label has 3: it must be a string"#,
    ),
    (
        r#""l""#,
        "3",
        r#"14:1: rule "a": peer.label is 3: it must be a label such as "vm-1", or a list of them"#,
    ),
    (
        r#""l""#,
        r#""a\tb""#,
        r#"14:1: rule "a": peer.label is "a\tb": it must have 1 to 255 bytes and no control characters"#,
    ),
    (
        r#"cgroup = "/m""#,
        r#"cgroup = "/""#,
        r#"16:1: rule "a": target.cgroup is "/": it may be the root only where the rule has peer.uid and target.uid"#,
    ),
    (
        "[rule.target]\ncgroup = \"/m\"",
        "[rule.target]\ncgroups = \"/m\"",
        r#"16:1: rule "a": target.cgroups is not known: the fields here are cgroup, uid"#,
    ),
    (
        "[rule.target]\ncgroup = \"/m\"",
        "[rule]\ntarget = 3",
        "15:2: this is not TOML: duplicate key",
    ),
    (
        "max = 4096",
        "max = -4096",
        r#"18:1: rule "a": process-set-max-mem-lock.max is -4096: it must be 0 to 18446744073709551614 bytes, such as 4096, "64 KiB", "16 GiB", or "unlimited""#,
    ),
    (
        "max = 4096",
        r#"max = "-1 KiB""#,
        r#"18:1: rule "a": process-set-max-mem-lock.max is "-1 KiB": it must be 0 to 18446744073709551614 bytes, such as 4096, "64 KiB", "16 GiB", or "unlimited""#,
    ),
    (
        "max = 4096",
        r#"max = "16 GB""#,
        r#"18:1: rule "a": process-set-max-mem-lock.max is "16 GB": it must be 0 to 18446744073709551614 bytes, such as 4096, "64 KiB", "16 GiB", or "unlimited""#,
    ),
    (
        "max = 4096",
        r#"max = "16 EiB""#,
        r#"18:1: rule "a": process-set-max-mem-lock.max is "16 EiB": it must be 0 to 18446744073709551614 bytes, such as 4096, "64 KiB", "16 GiB", or "unlimited""#,
    ),
    (
        "max = 4096",
        r#"max = "99999999999999999999 KiB""#,
        r#"18:1: rule "a": process-set-max-mem-lock.max is "99999999999999999999 KiB": it must be 0 to 18446744073709551614 bytes, such as 4096, "64 KiB", "16 GiB", or "unlimited""#,
    ),
    (
        "max = 4096",
        "max = 18446744073709551615",
        r#"18:1: rule "a": process-set-max-mem-lock.max is 18446744073709551615: it must be 0 to 18446744073709551614 bytes, such as 4096, "64 KiB", "16 GiB", or "unlimited""#,
    ),
    (
        "max = 4096",
        r#"max = "4096""#,
        r#"18:1: rule "a": process-set-max-mem-lock.max is "4096": it must be 0 to 18446744073709551614 bytes, such as 4096, "64 KiB", "16 GiB", or "unlimited""#,
    ),
    (
        "max = 4096",
        r#"max = "1.5 GiB""#,
        r#"18:1: rule "a": process-set-max-mem-lock.max is "1.5 GiB": it must be 0 to 18446744073709551614 bytes, such as 4096, "64 KiB", "16 GiB", or "unlimited""#,
    ),
    (
        "max = 4096",
        r#"max = "Unlimited""#,
        r#"18:1: rule "a": process-set-max-mem-lock.max is "Unlimited": it must be 0 to 18446744073709551614 bytes, such as 4096, "64 KiB", "16 GiB", or "unlimited""#,
    ),
    (
        "max = 4096",
        r#"max = "1  KiB""#,
        r#"18:1: rule "a": process-set-max-mem-lock.max is "1  KiB": it must be 0 to 18446744073709551614 bytes, such as 4096, "64 KiB", "16 GiB", or "unlimited""#,
    ),
    (
        "max = 4096",
        "",
        r#"17:7: rule "a": process-set-max-mem-lock.max is missing: it is required"#,
    ),
    (
        "max = 4096",
        "max = 4096\ngrant = \"8 KiB\"",
        r#"19:1: rule "a": process-set-max-mem-lock.grant is "8 KiB": it must be at most max, which is 4 KiB"#,
    ),
    (
        "max = 4096",
        "max = 4096\nmin = 1",
        r#"19:1: rule "a": process-set-max-mem-lock.min is not known: the fields here are max, grant"#,
    ),
    (
        "max = 65536",
        "max = 4294967296",
        r#"20:1: rule "a": process-set-max-files.max is 4294967296: it must be a number from 0 to 4294967295"#,
    ),
    (
        "max = 65536",
        r#"max = "unlimited""#,
        r#"20:1: rule "a": process-set-max-files.max is "unlimited": it must be a number from 0 to 4294967295"#,
    ),
    (
        "max = 65536",
        "max = -1",
        r#"20:1: rule "a": process-set-max-files.max is -1: it must be a number from 0 to 4294967295"#,
    ),
    (
        "max = 65536",
        "max = 1\ngrant = 2",
        r#"21:1: rule "a": process-set-max-files.grant is 2: it must be at most max, which is 1"#,
    ),
    (
        "max-priority = 10",
        "max-priority = 120",
        r#"23:1: rule "a": process-set-scheduler.max-priority is 120: it must be 1 to 99"#,
    ),
    (
        "max-priority = 10",
        "max-priority = 0",
        r#"23:1: rule "a": process-set-scheduler.max-priority is 0: it must be 1 to 99"#,
    ),
    (
        "max-priority = 10",
        r#"max-priority = "10""#,
        r#"23:1: rule "a": process-set-scheduler.max-priority is "10": it must be 1 to 99"#,
    ),
    (
        "max-priority = 10\n",
        "",
        r#"21:7: rule "a": process-set-scheduler.max-priority is missing: fifo and rr need it: 1 to 99"#,
    ),
    (
        "max-priority",
        "max_priority",
        r#"23:1: rule "a": process-set-scheduler.max_priority is not known: the fields here are policies, max-priority, cpus"#,
    ),
    (
        "cpus = \"2-7\"\n",
        "",
        r#"21:7: rule "a": process-set-scheduler.cpus is missing: fifo and rr need it: where such threads may run"#,
    ),
    (
        r#""fifo", "#,
        "",
        r#"23:1: rule "a": process-set-scheduler.max-priority is 10: it means nothing without fifo or rr among the policies"#,
    ),
    (
        r#""fifo", "batch""#,
        "",
        r#"22:1: rule "a": process-set-scheduler.policies is []: it must name at least one"#,
    ),
    (
        r#"["fifo", "batch"]"#,
        r#""fifo""#,
        r#"22:1: rule "a": process-set-scheduler.policies is "fifo": it must be a list, such as ["a", "b"]"#,
    ),
    (
        r#""batch""#,
        r#""deadline""#,
        r#"22:21: rule "a": process-set-scheduler.policies has "deadline": it must be one of batch, idle, fifo, rr, other"#,
    ),
    (
        r#""batch""#,
        "3",
        r#"22:21: rule "a": process-set-scheduler.policies has 3: it must be one of batch, idle, fifo, rr, other"#,
    ),
    (
        r#""batch""#,
        r#""none""#,
        r#"22:21: rule "a": process-set-scheduler.policies has "none": it must be one of batch, idle, fifo, rr, other"#,
    ),
    (
        r#""2-7""#,
        r#""7-2""#,
        r#"24:1: rule "a": process-set-scheduler.cpus is "7-2": the range 7-2 is reversed: it must be a string of CPUs from 0 to 16383, such as "0-3,8""#,
    ),
    (
        r#""2-7""#,
        r#""0-16384""#,
        r#"24:1: rule "a": process-set-scheduler.cpus is "0-16384": 16384 is more than 16383: it must be a string of CPUs from 0 to 16383, such as "0-3,8""#,
    ),
    (
        r#""2-7""#,
        "16",
        r#"24:1: rule "a": process-set-scheduler.cpus is 16: it must be a string of CPUs from 0 to 16383, such as "0-3,8""#,
    ),
    (
        r#""2-7""#,
        r#""""#,
        r#"24:1: rule "a": process-set-scheduler.cpus is "": it must be a string of CPUs from 0 to 16383, such as "0-3,8""#,
    ),
    (
        r#""2-7""#,
        r#""2-7:2""#,
        r#"24:1: rule "a": process-set-scheduler.cpus is "2-7:2": it must be a string of CPUs from 0 to 16383, such as "0-3,8""#,
    ),
    (
        r#""2-7""#,
        r#""^3""#,
        r#"24:1: rule "a": process-set-scheduler.cpus is "^3": it must be a string of CPUs from 0 to 16383, such as "0-3,8""#,
    ),
    (
        r#""2-7""#,
        r#""2-7,""#,
        r#"24:1: rule "a": process-set-scheduler.cpus is "2-7,": it must be a string of CPUs from 0 to 16383, such as "0-3,8""#,
    ),
    (
        r#""vcpu", "emulator""#,
        "",
        r#"26:1: rule "a": cgroup-add-threads.roles is []: it must name at least one"#,
    ),
    (
        r#""vcpu", "emulator""#,
        r#""cpu""#,
        r#"26:10: rule "a": cgroup-add-threads.roles has "cpu": it must be one of vcpu, emulator, iothread, helper"#,
    ),
    (
        r#""vcpu", "emulator""#,
        r#""vcpu""#,
        r#"27:26: rule "a": cgroup-add-threads.housekeeping is not valid: it means nothing without emulator, iothread or helper among the roles"#,
    ),
    (
        r#"name = "hk""#,
        r#"name = "a/b""#,
        r#"28:1: rule "a": cgroup-add-threads.housekeeping.name is "a/b": it must be a directory's name of 1 to 255 bytes without a slash, and none that the kernel has in a cgroup, such as cgroup.procs or cpu.max"#,
    ),
    (
        r#"name = "hk""#,
        r#"name = "..""#,
        r#"28:1: rule "a": cgroup-add-threads.housekeeping.name is "..": it must be a directory's name of 1 to 255 bytes without a slash, and none that the kernel has in a cgroup, such as cgroup.procs or cpu.max"#,
    ),
    (
        r#"name = "hk""#,
        r#"name = "cgroup.procs""#,
        r#"28:1: rule "a": cgroup-add-threads.housekeeping.name is "cgroup.procs": it must be a directory's name of 1 to 255 bytes without a slash, and none that the kernel has in a cgroup, such as cgroup.procs or cpu.max"#,
    ),
    (
        r#"name = "hk""#,
        r#"name = "tasks""#,
        r#"28:1: rule "a": cgroup-add-threads.housekeeping.name is "tasks": it must be a directory's name of 1 to 255 bytes without a slash, and none that the kernel has in a cgroup, such as cgroup.procs or cpu.max"#,
    ),
    (
        r#"name = "hk""#,
        r#"name = "cpuset.x""#,
        r#"28:1: rule "a": cgroup-add-threads.housekeeping.name is "cpuset.x": it must be a directory's name of 1 to 255 bytes without a slash, and none that the kernel has in a cgroup, such as cgroup.procs or cpu.max"#,
    ),
    (
        r#"name = "hk""#,
        r#"name = """#,
        r#"28:1: rule "a": cgroup-add-threads.housekeeping.name is "": it must be a directory's name of 1 to 255 bytes without a slash, and none that the kernel has in a cgroup, such as cgroup.procs or cpu.max"#,
    ),
    (
        "name = \"hk\"\n",
        "",
        r#"27:26: rule "a": cgroup-add-threads.housekeeping.name is missing: it is required"#,
    ),
    (
        r#"name = "hk""#,
        r#"name = "a\u0000""#,
        r#"28:1: rule "a": cgroup-add-threads.housekeeping.name is "a\u0000": it must be a directory's name of 1 to 255 bytes without a slash, and none that the kernel has in a cgroup, such as cgroup.procs or cpu.max"#,
    ),
    (
        "cpus = \"8-9\"\n",
        "",
        r#"27:26: rule "a": cgroup-add-threads.housekeeping is not valid: it must have cpus or allowed-cpus"#,
    ),
    (
        r#"cpus = "8-9""#,
        "cpus = \"8-9\"\nallowed-cpus = \"8\"",
        r#"27:26: rule "a": cgroup-add-threads.housekeeping is not valid: it must have cpus or allowed-cpus, not both"#,
    ),
    (
        r#"cpus = "8-9""#,
        r#"cpu = "8-9""#,
        r#"29:1: rule "a": cgroup-add-threads.housekeeping.cpu is not known: the fields here are name, cpus, allowed-cpus"#,
    ),
    (
        r#"roles = ["vcpu", "emulator"]"#,
        "roles = [\"vcpu\", \"emulator\"]\ncgroup = \"/\"",
        r#"27:1: rule "a": cgroup-add-threads.cgroup is "/": it may be the root only where the rule has peer.uid, target.uid and target.cgroup"#,
    ),
    (
        r#"roles = ["vcpu", "emulator"]"#,
        "roles = [\"vcpu\", \"emulator\"]\ncgroup = \"a\"",
        r#"27:1: rule "a": cgroup-add-threads.cgroup is "a": it is not absolute: it must be the absolute path of a cgroup such as /machine.slice"#,
    ),
    (
        "# end",
        "[[rule]]\nname = \"a\"\n[rule.peer]\nuid = 1\n[rule.process-set-max-files]\nmax = 1",
        r#"31:1: rule "a": name is "a": it must be unique, and rule 1 has it, too"#,
    ),
    (
        "# end",
        "[[rule]]\nname = \"b\"\n[rule.peer]\nuid = 1",
        r#"30:1: rule "b": it allows nothing: add a table such as [rule.process-set-max-mem-lock]"#,
    ),
    (
        "# end",
        "[[rule]]",
        "30:1: rule 2: name is missing: each rule has a name of its own",
    ),
    (
        "# end",
        "[rule.quota]\nconnections = 0",
        r#"31:1: rule "a": quota.connections is 0: it must be 1 to 1000000"#,
    ),
    (
        "# end",
        "[rule.quota]\nburst = 0",
        r#"31:1: rule "a": quota.burst is not known: the fields here are connections, concurrent, per-second"#,
    ),
];

#[track_caller]
fn parse(text: &str) -> Policy {
    Policy::parse(text, "policy.toml").unwrap_or_else(|error| panic!("{error}"))
}

#[track_caller]
fn replaced(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "{from} is not in the policy");
    text.replacen(from, to, 1)
}

/// The error of GOOD with that in place of something.
#[track_caller]
fn error_with(from: &str, to: &str) -> String {
    match Policy::parse(&replaced(GOOD, from, to), "policy.toml") {
        Ok(_) => panic!("{to} was taken for good"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn what_is_wrong_is_named_with_line_field_and_what_is_allowed() {
    parse(GOOD);
    for (from, to, error) in WRONG {
        assert_eq!(
            error_with(from, to),
            format!("policy.toml:{error}"),
            "with {to}"
        );
    }
}

#[test]
fn strings_of_absurd_length_are_refused() {
    let long = |prefix: &str, count: usize| format!("\"{prefix}{}\"", "x".repeat(count));
    for (from, field, good, bad) in [
        (r#""a""#, "name", long("", 255), long("", 256)),
        (r#""l""#, "peer.label", long("", 255), long("", 256)),
        (r#""/a""#, "peer.cgroup", long("/", 255), long("/", 256)),
        (
            r#""/a""#,
            "peer.cgroup",
            format!("\"/yy{}\"", "/x".repeat(2046)),
            format!("\"/yyy{}\"", "/x".repeat(2046)),
        ),
        (
            r#""hk""#,
            "cgroup-add-threads.housekeeping.name",
            long("", 255),
            long("", 256),
        ),
    ] {
        parse(&replaced(GOOD, from, &good));
        let error = error_with(from, &bad);
        let found = format!("{field} is \"");
        assert!(error.contains(&found), "no {field} in {error}");
        assert!(error.len() < 400, "an error of {} bytes", error.len());
    }
}

#[test]
fn an_unknown_operation_is_refused_with_those_there_are() {
    let error = error_with("process-set-max-mem-lock", "process-set-max-memlock");
    let known = Allowed::NAMES.join(", ");
    assert_eq!(
        error,
        format!(
            "policy.toml:17:7: rule \"a\": process-set-max-memlock is not known: the fields here are name, peer, target, quota, {known}"
        )
    );
}

#[test]
fn real_time_fields_need_a_real_time_policy() {
    let idle = replaced(GOOD, r#"["fifo", "batch"]"#, r#"["batch", "idle"]"#);
    let idle = replaced(&idle, "max-priority = 10\n", "");
    let error = Policy::parse(&idle, "p").expect_err("cpus without fifo and rr");
    assert_eq!(
        error.to_string(),
        r#"p:23:1: rule "a": process-set-scheduler.cpus is "2-7": it means nothing without fifo or rr among the policies"#
    );
    parse(&replaced(&idle, "cpus = \"2-7\"\n", ""));
}

#[test]
fn the_root_is_a_target_only_for_a_rule_that_names_uids() {
    let root = replaced(GOOD, r#"cgroup = "/m""#, "cgroup = \"/\"\nuid = 107");
    let policy = parse(&root);
    let rule = &policy.rules[0];
    let peer = Peer {
        uid: 107,
        gid: 107,
        cgroup: "/a",
        label: Some("l"),
    };
    assert_eq!(rule.permits_target(&peer, "/anywhere", 107), Ok(()));
    let denied = rule.permits_target(&peer, "/anywhere", 108);
    assert_eq!(
        denied.expect_err("another uid").to_string(),
        r#"rule "a": the target's uid is 108, which is not 107"#
    );

    let error = Policy::parse(&replaced(&root, "uid = 107\n", ""), "p").expect_err("no peer.uid");
    assert_eq!(
        error.to_string(),
        r#"p:15:1: rule "a": target.cgroup is "/": it may be the root only where the rule has peer.uid and target.uid"#
    );
    // The same for the cgroups that threads are moved to.
    let roles = "roles = [\"vcpu\", \"emulator\"]\n";
    let everywhere = format!("{roles}cgroup = \"/\"\n");
    parse(&replaced(&root, roles, &everywhere));
    let own = replaced(&root, "cgroup = \"/\"\n", "");
    let error = Policy::parse(&replaced(&own, roles, &everywhere), "p").expect_err("no target");
    assert_eq!(error.position, Some((27, 1)), "{error}");
}

#[test]
fn a_position_counts_lines_and_characters() {
    for (text, position) in [
        ("", (1, 1)),
        ("# é\r\nversion = 2\r\n", (2, 1)),
        ("version = 1 # é\n[host]\n\"ö\" = 1", (3, 1)),
        (
            "version = 1\nhost = { \"cgroup-hierarchy\" = \"é\" } # é",
            (2, 10),
        ),
        ("version = 1\n\"é\" = é", (2, 7)),
    ] {
        let error = Policy::parse(text, "p").expect_err("no policy");
        assert_eq!(error.position, Some(position), "{text:?}: {error}");
    }
}

#[test]
fn no_change_of_bytes_makes_it_panic() {
    const BYTES: &[u8] = b"\"'[]{}=\n,.#-0918/\\\0u_ \xc3\xff";
    let try_bytes = |bytes: &[u8]| match Policy::parse_bytes(bytes, "p") {
        Ok(policy) => assert!(!policy.to_string().is_empty(), "a summary"),
        Err(error) => {
            let (line, _) = error.position.expect("a position in the text");
            let lines = bytes.iter().filter(|byte| **byte == b'\n').count() + 1;
            assert!(line <= lines, "line {line} of {lines}: {error}");
        }
    };
    let good = GOOD.as_bytes();
    // The same bytes each time, so that a failure can be had again.
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random % below as u64) as usize
    };
    for at in 0..good.len() {
        try_bytes(&good[..at]);
        try_bytes(&[&good[..at], &good[at + 1..]].concat());
        let byte = BYTES[next(BYTES.len())];
        try_bytes(&[&good[..at], &[byte], &good[at..]].concat());
        let mut bytes = good.to_vec();
        bytes[at] = BYTES[next(BYTES.len())];
        bytes[next(good.len())] = BYTES[next(BYTES.len())];
        try_bytes(&bytes);
    }
    // What is deep is refused before it fills the stack.
    for open in ["[", "{a=", "a.", "[[", "rule=[{peer={uid=["] {
        try_bytes(open.repeat(5000).as_bytes());
        try_bytes(format!("version = {}", open.repeat(5000)).as_bytes());
    }
}

/// A directory of its own for a test.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Directory {
        let name = format!("virt-internal-policy-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).expect("a temporary directory");
        Directory(path)
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, content).expect("a file in it");
        path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn only_a_regular_file_of_limited_size_is_read() {
    let directory = Directory::new("read");
    let good = directory.file("good.toml", EXAMPLE);
    assert_eq!(Policy::read(&good).expect("the example").rules.len(), 2);

    let error = |path: &PathBuf| {
        let error = Policy::read(path).expect_err("no policy").to_string();
        error.replace(&directory.0.display().to_string(), "D")
    };
    let largest = format!("{EXAMPLE}#{}", "x".repeat(FILE_MAX - EXAMPLE.len() - 1));
    let path = directory.file("largest.toml", &largest);
    assert!(Policy::read(&path).is_ok(), "a file of {FILE_MAX} bytes");
    assert_eq!(
        error(&directory.file("large.toml", largest + "x")),
        "D/large.toml: cannot read the policy: it is larger than 1048576 bytes"
    );

    assert_eq!(
        error(&directory.0),
        "D: cannot read the policy: it is not a regular file"
    );
    let absent = error(&directory.0.join("absent.toml"));
    let expected = "D/absent.toml: cannot read the policy: No such file";
    assert!(absent.starts_with(expected), "{absent}");
    assert_eq!(
        error(&directory.file("binary.toml", b"version = 1\n# \xff")),
        "D/binary.toml:2:3: it is not UTF-8"
    );

    let fifo = directory.0.join("fifo");
    let name = std::ffi::CString::new(fifo.to_str().expect("a UTF-8 path")).expect("no NUL");
    // SAFETY: reads a string that ends in a NUL.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0, "a FIFO");
    assert_eq!(
        error(&fifo),
        "D/fifo: cannot read the policy: it is not a regular file"
    );
}

/// A policy of rules with nothing but these fields and one operation.
fn rules(rules: &[(&str, &str)]) -> Policy {
    let rule = |(name, fields): &(&str, &str)| {
        format!("[[rule]]\nname = \"{name}\"\nprocess-set-max-core-size.max = 0\n{fields}\n")
    };
    let rules: String = rules.iter().map(rule).collect();
    parse(&format!("version = 1\n{rules}"))
}

const PEER: Peer<'static> = Peer {
    uid: 107,
    gid: 36,
    cgroup: "/kubepods.slice/pod1",
    label: Some("vm-1"),
};

#[test]
fn a_rule_is_for_the_peers_that_all_its_fields_fit() {
    for (fields, fits) in [
        ("peer.uid = 107", true),
        ("peer.uid = 106", false),
        ("peer.uid = [0, 107]", true),
        ("peer.uid = \"100-199,1000\"", true),
        ("peer.uid = \"0-106,108-4294967294\"", false),
        ("peer.gid = 36", true),
        ("peer.gid = 107", false),
        ("peer.cgroup = \"/kubepods.slice\"", true),
        ("peer.cgroup = \"/kubepods.slice/pod1\"", true),
        ("peer.cgroup = \"/kubepods.slice/pod\"", false),
        ("peer.cgroup = \"/kubepods.slice/pod1/x\"", false),
        ("peer.cgroup = \"/kubepods\"", false),
        ("peer.cgroup = \"/\"", true),
        ("peer.label = \"vm-1\"", true),
        ("peer.label = [\"vm-2\", \"vm-1\"]", true),
        ("peer.label = [\"vm-2\", \"vm\"]", false),
        ("peer = { uid = 107, gid = 36, label = \"vm-1\" }", true),
        ("peer = { uid = 107, gid = 37, label = \"vm-1\" }", false),
        ("peer = { uid = 107, label = \"vm-2\" }", false),
    ] {
        let policy = rules(&[("a", fields)]);
        let found = policy.rules_for(&PEER).next().is_some();
        assert_eq!(found, fits, "{fields}");
        let reason = policy.rules[0].peers.misfit(&PEER);
        assert_eq!(reason.is_none(), fits, "{fields}: {reason:?}");
    }
    let labelled = rules(&[("a", "peer.label = \"vm-1\"")]);
    let unlabelled = Peer {
        label: None,
        ..PEER
    };
    assert_eq!(labelled.rules_for(&unlabelled).count(), 0);
}

#[test]
fn a_target_is_within_the_peers_own_cgroup_or_the_one_named() {
    let own = &rules(&[("own", "peer.uid = 107")]).rules[0];
    let named = &rules(&[(
        "named",
        "peer.uid = 107\ntarget.cgroup = \"/machine.slice\"",
    )])
    .rules[0];
    for (rule, cgroup, permitted) in [
        (own, "/kubepods.slice/pod1", true),
        (own, "/kubepods.slice/pod1/vm", true),
        (own, "/kubepods.slice/pod10", false),
        (own, "/kubepods.slice/pod1/../pod2", false),
        (own, "/kubepods.slice", false),
        (own, "/", false),
        (own, "", false),
        (named, "/machine.slice", true),
        (named, "/machine.slice/vm", true),
        (named, "/machine.slicer", false),
        (named, "/machine.slice/../x", false),
        (named, "/../machine.slice", false),
        (named, "/kubepods.slice/pod1", false),
    ] {
        let result = rule.permits_target(&PEER, cgroup, 0);
        assert_eq!(result.is_ok(), permitted, "{cgroup}: {result:?}");
    }
    assert_eq!(
        own.permits_target(&PEER, "/x", 0).unwrap_err().to_string(),
        r#"rule "own": the target is in /x, which is not /kubepods.slice/pod1 or below"#
    );
}

#[test]
fn a_peer_in_the_root_or_out_of_sight_has_no_targets_by_default() {
    let policy = rules(&[("own", "peer.uid = 107")]);
    let rule = &policy.rules[0];
    let core_size = rule
        .allowed
        .process_set_max_core_size
        .as_ref()
        .expect("allowed");
    for (cgroup, shown) in [("/", "the root"), ("", "not known"), ("/../x", "/../x")] {
        let peer = Peer { cgroup, ..PEER };
        let denied = rule.permits_target(&peer, cgroup, 107).unwrap_err();
        assert_eq!(
            denied.to_string(),
            format!(
                "rule \"own\": the peer's own cgroup is {shown}, which does not tell its processes from others: write peer.uid, target.uid and target.cgroup"
            )
        );
        assert_eq!(denied.closeness, Closeness::Target);
        assert!(
            rule.destination_subtree(&peer, core_size).is_err(),
            "threads are moved below {cgroup}"
        );
        assert_eq!(peer.scope(), Scope::Uid(107));
    }
    assert_eq!(rule.destination_subtree(&PEER, core_size), Ok(PEER.cgroup));
    assert_eq!(PEER.scope().to_string(), "cgroup /kubepods.slice/pod1");
}

#[test]
fn the_first_rule_that_permits_decides_or_the_closest_one_says_why_not() {
    let policy = rules(&[
        ("others", "peer.uid = 0"),
        ("first", "peer.uid = 107"),
        ("second", "peer.gid = 36"),
        ("third", "peer.label = \"vm-1\""),
    ]);
    let mut asked = Vec::new();
    let decision = policy.decide(&PEER, |rule| {
        asked.push(rule.name.as_str());
        match rule.name.as_str() {
            "second" => Ok(2),
            _ => Err(rule.denied(Closeness::Bounds, "too much")),
        }
    });
    let (rule, value) = decision.expect("the second permits it");
    assert_eq!((rule.name.as_str(), value), ("second", 2));
    assert_eq!(asked, ["first", "second"]);

    for (closeness, expected) in [
        (
            [Closeness::Operation, Closeness::Target, Closeness::Bounds],
            "third",
        ),
        (
            [Closeness::Operation, Closeness::Bounds, Closeness::Target],
            "second",
        ),
        (
            [Closeness::Target, Closeness::Target, Closeness::Target],
            "first",
        ),
    ] {
        let mut closeness = closeness.into_iter();
        let denied = policy.decide(&PEER, |rule| {
            let closeness = closeness.next().expect("three rules are for the peer");
            Err::<(), _>(rule.denied(closeness, "no"))
        });
        let denied = denied.expect_err("no rule permits it");
        assert_eq!(denied.to_string(), format!("rule {expected:?}: no"));
    }

    let stranger = Peer {
        uid: 5,
        gid: 5,
        label: None,
        ..PEER
    };
    let denied = policy.decide(&stranger, |rule| Err::<(), _>(rule.not_allowed("x")));
    let denied = denied.expect_err("no rule is for the peer");
    assert_eq!(denied.closeness, Closeness::Peer);
    assert_eq!(
        denied.to_string(),
        "no rule names uid 5, gid 5 in /kubepods.slice/pod1"
    );
}

#[test]
fn a_policy_without_rules_denies_everything() {
    let policy = parse("version = 1");
    let decision = policy.decide(&PEER, |_| Ok(()));
    assert!(decision.is_err(), "permitted by no rule");
    assert!(
        policy.to_string().contains("everything is denied"),
        "{policy}"
    );
    assert_eq!(policy.quota_for(&PEER), Quota::default());
}

#[test]
fn a_rules_quota_replaces_the_fields_that_it_has() {
    let policy = parse(&format!(
        "version = 1\n[quota]\nconcurrent = 4\nper-second = 9\n{}{}",
        "[[rule]]\nname = \"a\"\npeer.uid = 107\nquota.connections = 1\nprocess-set-affinity.cpus = \"0\"\n",
        "[[rule]]\nname = \"b\"\npeer.gid = 36\nquota = { connections = 2, per-second = \"unlimited\" }\nprocess-set-affinity.cpus = \"0\"\n",
    ));
    let quota = |connections, concurrent, per_second| Quota {
        connections,
        concurrent,
        per_second,
    };
    assert_eq!(policy.quota_for(&PEER), quota(1, 4, None));
    let other = Peer { uid: 1, ..PEER };
    assert_eq!(policy.quota_for(&other), quota(2, 4, None));
    let other = Peer { gid: 1, ..PEER };
    assert_eq!(policy.quota_for(&other), quota(1, 4, Some(9)));
    let stranger = Peer {
        uid: 1,
        gid: 1,
        ..PEER
    };
    assert_eq!(policy.quota_for(&stranger), quota(256, 4, Some(9)));
}

#[test]
fn a_hierarchys_path_is_found_among_all() {
    let text = "12:cpu,cpuacct:/a:b\n5:name=systemd:/c\n1:cpuset:/d\n0::/e\n";
    for (hierarchy, path) in [
        (Hierarchy::V2, Some("/e")),
        (Hierarchy::V1("cpu".into()), Some("/a:b")),
        (Hierarchy::V1("cpuacct".into()), Some("/a:b")),
        (Hierarchy::V1("name=systemd".into()), Some("/c")),
        (Hierarchy::V1("cpuset".into()), Some("/d")),
        (Hierarchy::V1("memory".into()), None),
    ] {
        assert_eq!(hierarchy.path_in(text), path, "{hierarchy}");
    }
    // Another cgroup than /e.
    assert_eq!(Hierarchy::V2.path_in("0::/e\r\n"), Some("/e\r"));
    for (name, hierarchy) in [
        ("v2", Hierarchy::V2),
        ("cpu", Hierarchy::V1("cpu".into())),
        ("name=systemd", Hierarchy::V1("name=systemd".into())),
    ] {
        let policy = parse(&format!("version = 1\nhost.cgroup-hierarchy = {name:?}"));
        assert_eq!(policy.hierarchy, hierarchy);
    }
    assert_eq!(parse("version = 1").hierarchy, Hierarchy::V2);
}

#[test]
fn a_size_is_read_in_bytes_or_units_and_shown_so_that_it_can_be_read() {
    let max = |text: &str| {
        let policy = parse(&replaced(GOOD, "max = 4096", &format!("max = {text}")));
        policy.rules[0]
            .allowed
            .process_set_max_mem_lock
            .as_ref()
            .map(|bounds| bounds.max)
    };
    for (text, bytes, shown) in [
        ("0", 0, "0 bytes"),
        ("1", 1, "1 byte"),
        ("0x1000", 4096, "4 KiB"),
        ("4_097", 4097, "4097 bytes"),
        ("\"64 KiB\"", 64 << 10, "64 KiB"),
        ("\"64KiB\"", 64 << 10, "64 KiB"),
        ("\"1536 MiB\"", 1536 << 20, "1536 MiB"),
        ("\"16 GiB\"", 16 << 30, "16 GiB"),
        ("\"2 TiB\"", 2 << 40, "2 TiB"),
        ("\"8 PiB\"", 8 << 50, "8 PiB"),
        ("\"15 EiB\"", 15 << 60, "15 EiB"),
        (
            "18446744073709551614",
            u64::MAX - 1,
            "18446744073709551614 bytes",
        ),
        ("\"unlimited\"", u64::MAX, "unlimited"),
    ] {
        assert_eq!(max(text), Some(Size(bytes)), "{text}");
        assert_eq!(Size(bytes).to_string(), shown);
        assert_eq!(max(&format!("{shown:?}")), Some(Size(bytes)), "{shown}");
    }
    assert!(
        Size(u64::MAX - 1) < Size::UNLIMITED,
        "unlimited is the most"
    );
}

fn cpus(list: &str) -> Cpus {
    let policy = parse(&format!(
        "version = 1\n[[rule]]\nname = \"a\"\npeer.uid = 1\nprocess-set-affinity.cpus = {list:?}"
    ));
    let bounds = policy.rules[0].allowed.process_set_affinity.clone();
    bounds.expect("the operation is allowed").cpus
}

#[test]
fn cpus_are_shown_merged_and_in_order() {
    for (list, shown, map) in [
        ("0", "0", vec![1]),
        ("8,0-3", "0-3,8", vec![0b1111, 1]),
        ("0-3,2-5,6,7", "0-7", vec![255]),
        ("9,9", "9", vec![0, 2]),
    ] {
        let cpus = cpus(list);
        assert_eq!(cpus.to_string(), shown);
        assert_eq!(cpus.to_map(), map, "{list}");
        assert_eq!(cpus.first_outside(&map), None, "{list}");
    }
    let last = cpus("16383");
    assert_eq!(last.to_map().len(), 2048);
    assert!(last.contains(16383) && !last.contains(16382), "{last}");
}

#[test]
fn the_first_cpu_outside_is_found_anywhere_in_a_map() {
    let cpus = cpus("2-7,16");
    for (map, outside) in [
        (vec![], None),
        (vec![0, 0, 0, 0], None),
        (vec![0b1111_1100, 0, 1], None),
        (vec![0b1111_1110], Some(1)),
        (vec![0b0000_0100, 0b1000_0000], Some(15)),
        (vec![0, 0, 0b11], Some(17)),
        ([vec![0; 32767], vec![0x80]].concat(), Some(262_143)),
    ] {
        assert_eq!(cpus.first_outside(&map), outside, "{map:?}");
    }
}

#[test]
fn a_set_of_ids_has_the_ends_of_its_ranges() {
    let policy = rules(&[("a", "peer.uid = \"100-199,1000,0-0,4294967294\"")]);
    let ids = policy.rules[0].peers.uid.as_ref().expect("ids");
    assert_eq!(ids.to_string(), "0,100-199,1000,4294967294");
    for (id, is_in) in [
        (0, true),
        (1, false),
        (99, false),
        (100, true),
        (199, true),
        (200, false),
        (999, false),
        (1000, true),
        (u32::MAX - 2, false),
        (u32::MAX - 1, true),
        (u32::MAX, false),
    ] {
        assert_eq!(ids.contains(id), is_in, "{id}");
    }
}

#[test]
fn the_example_is_explained() {
    let policy = parse(EXAMPLE);
    let explain = |peer: &Peer<'_>, operation: &str, target| {
        let explanation = policy.explain(peer, operation, target);
        explanation.expect("the operation is known").to_string()
    };
    assert_eq!(
        explain(&PEER, "process-set-scheduler", None),
        r#"peer: uid 107, gid 36 in /kubepods.slice/pod1 with label "vm-1"
operation: process-set-scheduler
quota of cgroup /kubepods.slice/pod1: 64 connections and 8 operations at a time, 2000 operations in a second
rule "virt-launcher" permits: policies fifo, rr, batch, idle, other; fifo and rr with priority 1 to 10 and only for threads on CPUs 2-7
  of processes in /kubepods.slice/pod1 or below
rule "libvirtd" is for others: uid 107 is not 0,64055
result: permitted by rule "virt-launcher", within its bounds
"#
    );
    let libvirtd = Peer {
        uid: 0,
        gid: 0,
        cgroup: "/system.slice/libvirtd.service",
        label: Some("host"),
    };
    let target = Target {
        uid: 107,
        cgroup: "/user.slice",
    };
    assert_eq!(
        explain(&libvirtd, "process-set-max-files", Some(target)),
        r#"peer: uid 0, gid 0 in /system.slice/libvirtd.service with label "host"
operation: process-set-max-files
target: uid 107 in /user.slice
quota of cgroup /system.slice/libvirtd.service: 512 connections and 8 operations at a time, any number in a second
rule "virt-launcher" is for others: uid 0 is not 107
rule "libvirtd" denies: the target is in /user.slice, which is not /machine.slice or below
result: refused: rule "libvirtd": the target is in /user.slice, which is not /machine.slice or below
"#
    );
    let refused = policy.explain(&PEER, "process-set-max-files", None);
    let json = refused.expect("the operation is known").to_json();
    assert_eq!(json["permitted"], false);
    assert_eq!(json["refusal"]["about"], "operation");
    assert_eq!(
        json["refusal"]["why"],
        "it does not allow process-set-max-files"
    );

    let unknown = policy.explain(&PEER, "process_set_max_files", None);
    let error = unknown.expect_err("no such operation");
    assert!(error.contains("process-set-max-files, "), "{error}");
}

#[test]
fn a_summary_has_each_rule_and_operation() {
    let text = parse(EXAMPLE).to_string();
    for line in [
        "cgroup hierarchy: v2",
        "quota: 64 connections and 8 operations at a time, 2000 operations in a second",
        "rule \"virt-launcher\"",
        "  peers: uid 107, in /kubepods.slice or below",
        "  targets: in the peer's own cgroup or below",
        "  process-set-max-mem-lock: up to unlimited",
        "  cgroup-add-threads: threads of roles vCPU, emulator, IOThread, helper to the peer's own cgroup and below; all but vCPU to its child housekeeping, with CPUs as asked for, of 8-15",
        "rule \"libvirtd\"",
        "  peers: uid 0,64055, in /system.slice/libvirtd.service or below, label \"host\", \"host-test\"",
        "  targets: in /machine.slice or below, uid 107,64055",
        "  quota: 512 connections and 8 operations at a time, any number in a second",
        "  process-set-max-mem-lock: up to 16 GiB; at least 1 GiB is set",
        "  process-set-max-core-size: up to 0 bytes",
    ] {
        assert!(
            text.lines().any(|found| found == line),
            "no {line:?} in\n{text}"
        );
    }
    let json = parse(EXAMPLE).to_json();
    assert_eq!(
        json["rules"][1]["peer"]["label"],
        serde_json::json!(["host", "host-test"])
    );
    assert_eq!(
        json["rules"][1]["operations"]["process-set-max-processes"],
        "up to 65536"
    );
}

#[test]
fn each_policy_in_the_reference_is_right() {
    let reference = include_str!("../../../docs/policy.md");
    let policies: Vec<&str> = reference
        .split("```toml\n")
        .skip(1)
        .filter_map(|rest| Some(rest.split_once("```")?.0))
        .collect();
    assert_eq!(policies.len(), 3, "policies in docs/policy.md");
    for policy in policies {
        parse(policy);
    }
    for name in Allowed::NAMES {
        let table = format!("`[rule.{name}]`");
        assert!(
            reference.contains(&table),
            "{table} is not in docs/policy.md"
        );
    }
    let shown = error_with("max-priority = 10", "max-priority = 120");
    let (_, text) = shown.split_once(": process").expect("a field");
    assert!(reference.contains(text), "{text} is not in docs/policy.md");
}
