// SPDX-License-Identifier: LGPL-2.1-or-later
//! The values of a policy's fields, checked when they are read.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, SeqAccess, Unexpected, Visitor};

/// CPUs of a policy have numbers below this.
pub const CPUS_MAX: u32 = 16384;

/// The longest name or label, and the longest component of a cgroup's path.
pub const NAME_MAX: usize = 255;

/// The longest path of a cgroup.
pub const PATH_MAX: usize = 4095;

/// The highest user or group id: the one above it means none.
const ID_MAX: u32 = u32::MAX - 1;

/// A number of bytes: `4096`, `"16 GiB"`, or `"unlimited"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

const UNITS: [(&str, u64); 8] = [
    ("EiB", 1 << 60),
    ("PiB", 1 << 50),
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("bytes", 1),
    ("byte", 1),
];

impl Size {
    /// More than any number; the kernel's figure for no limit.
    pub const UNLIMITED: Size = Size(libc::RLIM_INFINITY);

    fn parse(text: &str) -> Option<Size> {
        if text == "unlimited" {
            return Some(Size::UNLIMITED);
        }
        let (number, factor) = UNITS
            .iter()
            .find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor)))?;
        let number = digits(number.strip_suffix(' ').unwrap_or(number))?;
        let bytes = number.checked_mul(factor)?;
        (bytes < Size::UNLIMITED.0).then_some(Size(bytes))
    }
}

/// In the largest unit that needs no fraction.
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = |(_, factor): &&(&str, u64)| self.0 != 0 && self.0.is_multiple_of(*factor);
        match (*self, UNITS.iter().find(unit)) {
            (Size::UNLIMITED, _) => f.write_str("unlimited"),
            (Size(1), _) => f.write_str("1 byte"),
            (Size(bytes), Some((unit, factor))) => write!(f, "{} {unit}", bytes / factor),
            (Size(bytes), None) => write!(f, "{bytes} bytes"),
        }
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Size, D::Error> {
        struct Sizes;

        impl Visitor<'_> for Sizes {
            type Value = Size;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let most = Size::UNLIMITED.0 - 1;
                write!(
                    f,
                    "0 to {most} bytes, such as 4096, \"64 KiB\", \"16 GiB\", or \"unlimited\""
                )
            }

            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<Size, E> {
                match bytes < Size::UNLIMITED.0 {
                    true => Ok(Size(bytes)),
                    false => Err(E::invalid_value(Unexpected::Unsigned(bytes), &self)),
                }
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
                Size::parse(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
            }
        }

        deserializer.deserialize_any(Sizes)
    }
}

/// A number without sign.
fn digits(text: &str) -> Option<u64> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
    is_plain.then(|| text.parse().ok()).flatten()
}

/// Numbers: sorted ranges that neither overlap nor touch.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ranges(Vec<(u32, u32)>);

impl Ranges {
    fn new(mut ranges: Vec<(u32, u32)>) -> Ranges {
        ranges.sort_unstable();
        let mut merged: Vec<(u32, u32)> = Vec::new();
        for (first, last) in ranges {
            match merged.last_mut() {
                Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
                _ => merged.push((first, last)),
            }
        }
        Ranges(merged)
    }

    /// Reads "0-3,8"; an error says what is wrong with which part, or nothing
    /// where it is no such list.
    fn parse(text: &str, most: u32) -> Result<Ranges, Option<String>> {
        let number = |text: &str| digits(text).ok_or(None);
        let fitting = |number: u64| match u32::try_from(number) {
            Ok(number) if number <= most => Ok(number),
            _ => Err(Some(format!("{number} is more than {most}"))),
        };
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            match first <= last {
                true => Ok((fitting(first)?, fitting(last)?)),
                false => Err(Some(format!("the range {part} is reversed"))),
            }
        };
        let ranges = text.split(',').map(range).collect::<Result<_, _>>()?;
        Ok(Ranges::new(ranges))
    }

    fn contains(&self, number: u32) -> bool {
        let after = self.0.partition_point(|(first, _)| *first <= number);
        self.0[..after]
            .last()
            .is_some_and(|(_, last)| number <= *last)
    }
}

impl fmt::Display for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comma = "";
        for (first, last) in &self.0 {
            match first == last {
                true => write!(f, "{comma}{first}")?,
                false => write!(f, "{comma}{first}-{last}")?,
            }
            comma = ",";
        }
        Ok(())
    }
}

/// A set of user or group ids: `107`, `[0, 107]`, or `"100-199,1000"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ids(Ranges);

impl Ids {
    /// Whether the id is one of them.
    pub fn contains(&self, id: u32) -> bool {
        self.0.contains(id)
    }
}

impl fmt::Display for Ids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> Deserialize<'de> for Ids {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Ids, D::Error> {
        struct Id;

        fn id<E: de::Error>(number: u64) -> Result<u32, E> {
            let fitting = u32::try_from(number).ok().filter(|id| *id <= ID_MAX);
            fitting.ok_or_else(|| E::invalid_value(Unexpected::Unsigned(number), &Id))
        }

        impl Visitor<'_> for Id {
            type Value = u32;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "an id from 0 to {ID_MAX}")
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<u32, E> {
                id(number)
            }
        }

        struct OneId(u32);

        impl<'de> Deserialize<'de> for OneId {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<OneId, D::Error> {
                deserializer.deserialize_any(Id).map(OneId)
            }
        }

        struct IdSet;

        impl<'de> Visitor<'de> for IdSet {
            type Value = Ids;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(
                    f,
                    "an id from 0 to {ID_MAX}, a list of ids such as [0, 107], or a string of ranges such as \"100-199,1000\""
                )
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Ids, E> {
                let id = id(number)?;
                Ok(Ids(Ranges(vec![(id, id)])))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Ids, E> {
                ranges(text, ID_MAX, &self).map(Ids)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Ids, A::Error> {
                let mut ranges = Vec::new();
                while let Some(OneId(id)) = list.next_element()? {
                    ranges.push((id, id));
                }
                match ranges.is_empty() {
                    true => Err(de::Error::invalid_length(0, &self)),
                    false => Ok(Ids(Ranges::new(ranges))),
                }
            }
        }

        deserializer.deserialize_any(IdSet)
    }
}

fn ranges<'de, V: Visitor<'de>, E: de::Error>(
    text: &str,
    most: u32,
    visitor: &V,
) -> Result<Ranges, E> {
    Ranges::parse(text, most).map_err(|wrong| match wrong {
        Some(wrong) => {
            let expected: &dyn de::Expected = visitor;
            E::custom(format_args!("{wrong}: it must be {expected}"))
        }
        None => E::invalid_value(Unexpected::Str(text), visitor),
    })
}

/// A set of CPUs, as taskset says it: `"0-3,8"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cpus(Ranges);

impl Cpus {
    /// Whether the CPU is one of them.
    pub fn contains(&self, cpu: u32) -> bool {
        self.0.contains(cpu)
    }

    /// The first CPU of a map, as virDomainPinVcpu() takes one, that is not
    /// among these.
    pub fn first_outside(&self, map: &[u8]) -> Option<u32> {
        (0u32..)
            .step_by(8)
            .zip(map)
            .filter(|(_, byte)| **byte != 0)
            .flat_map(|(first, byte)| (0..8).map(move |bit| (first + bit, byte & (1 << bit) != 0)))
            .find_map(|(cpu, is_set)| (is_set && !self.contains(cpu)).then_some(cpu))
    }

    /// The map as in virDomainPinVcpu(): bit `n % 8` of byte `n / 8`.
    pub fn to_map(&self) -> Vec<u8> {
        let ranges = &self.0.0;
        let length = ranges.last().map_or(0, |(_, last)| last / 8 + 1);
        let mut map = vec![0; length as usize];
        for cpu in ranges.iter().flat_map(|(first, last)| *first..=*last) {
            map[(cpu / 8) as usize] |= 1 << (cpu % 8);
        }
        map
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> Deserialize<'de> for Cpus {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Cpus, D::Error> {
        struct CpuList;

        impl Visitor<'_> for CpuList {
            type Value = Cpus;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(
                    f,
                    "a string of CPUs from 0 to {}, such as \"0-3,8\"",
                    CPUS_MAX - 1
                )
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Cpus, E> {
                ranges(text, CPUS_MAX - 1, &self).map(Cpus)
            }
        }

        deserializer.deserialize_any(CpuList)
    }
}

/// The absolute path of a cgroup, with all that is below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subtree(String);

impl Subtree {
    /// The path of the cgroup that is its top.
    pub fn path(&self) -> &str {
        &self.0
    }

    /// Whether this is every cgroup.
    pub fn is_root(&self) -> bool {
        self.0 == "/"
    }

    /// Whether a cgroup is this or below. A path that is not the kernel's plain
    /// one, such as `/../x` of what lies outside the cgroup namespace, is not.
    pub fn covers(&self, cgroup: &str) -> bool {
        covers(&self.0, cgroup)
    }
}

/// Whether a path that the kernel gives is one of a cgroup, and all of it: it
/// cuts a longer one (seen with Linux 6.18), which then looks like another's.
pub(super) fn is_whole(cgroup: &str) -> bool {
    cgroup.len() < PATH_MAX && check_path(cgroup).is_ok()
}

/// Whether `cgroup` is `top` or below.
pub(crate) fn covers(top: &str, cgroup: &str) -> bool {
    let is_below = || match cgroup.strip_prefix(top) {
        Some(rest) => top == "/" || rest.is_empty() || rest.starts_with('/'),
        None => false,
    };
    is_whole(cgroup) && is_below()
}

/// Whether it is the path of a cgroup; an error says what is wrong.
pub(super) fn check_path(path: &str) -> Result<(), &'static str> {
    let Some(components) = path.strip_prefix('/') else {
        return Err("it is not absolute");
    };
    if path == "/" {
        return Ok(());
    }
    if path.len() > PATH_MAX {
        return Err("it is longer than 4095 bytes");
    }
    for component in components.split('/') {
        match component {
            "" if path.ends_with('/') => return Err("it ends in a slash"),
            "" => return Err("it has an empty component"),
            "." | ".." => return Err("it has a component . or .."),
            _ if component.len() > NAME_MAX => {
                return Err("it has a component of more than 255 bytes");
            }
            // The kernel makes no cgroup with a newline.
            _ if component.contains(['\0', '\n']) => {
                return Err("it has a NUL or a newline");
            }
            _ => {}
        }
    }
    Ok(())
}

impl fmt::Display for Subtree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Subtree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Subtree, D::Error> {
        let path = String::deserialize(deserializer)?;
        check_path(&path).map_err(|wrong| {
            de::Error::custom(format_args!(
                "{wrong}: it must be the absolute path of a cgroup such as /machine.slice"
            ))
        })?;
        Ok(Subtree(path))
    }
}

/// Labels of listeners: `"vm-1"` or `["vm-1", "vm-2"]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labels(Vec<String>);

impl Labels {
    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// Whether the label is one of them.
    pub fn contains(&self, label: &str) -> bool {
        self.0.iter().any(|own| own == label)
    }
}

impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quoted: Vec<String> = self.0.iter().map(|label| format!("{label:?}")).collect();
        f.write_str(&quoted.join(", "))
    }
}

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Labels, D::Error> {
        struct LabelSet;

        impl<'de> Visitor<'de> for LabelSet {
            type Value = Labels;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a label such as \"vm-1\", or a list of them")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Labels, E> {
                Name::new(text)
                    .map(|Name(label)| Labels(vec![label]))
                    .map_err(E::custom)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Labels, A::Error> {
                let mut labels = Vec::new();
                while let Some(Name(label)) = list.next_element()? {
                    labels.push(label);
                }
                match labels.is_empty() {
                    true => Err(de::Error::invalid_length(0, &self)),
                    false => Ok(Labels(labels)),
                }
            }
        }

        deserializer.deserialize_any(LabelSet)
    }
}

/// A name for people: of a rule, or a label.
pub(crate) struct Name(pub(super) String);

impl Name {
    /// Whether it can be one; an error says what it must be.
    pub(crate) fn new(text: &str) -> Result<Name, String> {
        match (1..=NAME_MAX).contains(&text.len()) && !text.contains(char::is_control) {
            true => Ok(Name(text.to_owned())),
            false => Err(format!(
                "it must have 1 to {NAME_MAX} bytes and no control characters"
            )),
        }
    }
}

/// Whether a listener can have that label: one that a rule could name. An error
/// says so.
pub fn check_label(label: &str) -> Result<(), String> {
    match Name::new(label) {
        Ok(_) => Ok(()),
        Err(why) => Err(format!("the label {label:?}: {why}")),
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Name, D::Error> {
        let text = String::deserialize(deserializer)?;
        Name::new(&text).map_err(de::Error::custom)
    }
}

/// A number within bounds.
pub(super) fn number<'de, D: Deserializer<'de>>(
    deserializer: D,
    least: u32,
    most: u32,
) -> Result<u32, D::Error> {
    struct Number(u32, u32);

    impl Visitor<'_> for Number {
        type Value = u32;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "{} to {}", self.0, self.1)
        }

        fn visit_u64<E: de::Error>(self, number: u64) -> Result<u32, E> {
            u32::try_from(number)
                .ok()
                .filter(|number| (self.0..=self.1).contains(number))
                .ok_or_else(|| E::invalid_value(Unexpected::Unsigned(number), &self))
        }
    }

    deserializer.deserialize_any(Number(least, most))
}

/// The priority of a real-time policy.
pub(crate) fn priority<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u8>, D::Error> {
    Ok(u8::try_from(number(deserializer, 1, 99)?).ok())
}

/// A list that is not empty.
pub(crate) fn not_empty<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    let list = Vec::deserialize(deserializer)?;
    match list.is_empty() {
        true => Err(de::Error::custom("it must name at least one")),
        false => Ok(list),
    }
}

/// What the kernel's files in a cgroup's directory start with, where they have
/// a dot.
const CONTROLLERS: [&str; 20] = [
    "cgroup",
    "blkio",
    "cpu",
    "cpuacct",
    "cpuset",
    "debug",
    "devices",
    "dmem",
    "freezer",
    "hugetlb",
    "io",
    "irq",
    "memory",
    "misc",
    "net_cls",
    "net_prio",
    "perf_event",
    "pids",
    "rdma",
    "tasks",
];

/// The name of a cgroup's child.
pub(crate) fn child_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    let is_file = |name: &str| match name.split_once('.') {
        Some((controller, _)) => CONTROLLERS.contains(&controller),
        None => ["tasks", "notify_on_release", "release_agent"].contains(&name),
    };
    let is_component = (1..=NAME_MAX).contains(&name.len())
        && ![".", ".."].contains(&name.as_str())
        && !name.contains(|char: char| char == '/' || char.is_control());
    match is_component && !is_file(&name) {
        true => Ok(name),
        false => Err(de::Error::custom(
            "it must be a directory's name of 1 to 255 bytes without a slash, and none that the kernel has in a cgroup, such as cgroup.procs or cpu.max",
        )),
    }
}
