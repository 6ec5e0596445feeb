// SPDX-License-Identifier: LGPL-2.1-or-later
//! Sets of CPUs: the kernel's lists ("0-3,5") and libvirt's byte maps.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// The most that libvirt-internal takes.
const CPUS_MAX: u32 = virt_internal::capi::process_set_affinity::VIR_INTERNAL_CPUMAP_MAX as u32 * 8;

/// A set of CPUs, displayed as the kernel lists one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cpus(BTreeSet<u32>);

impl Cpus {
    pub fn one(cpu: u32) -> Cpus {
        Cpus([cpu].into())
    }

    pub fn iter(&self) -> impl DoubleEndedIterator<Item = u32> {
        self.0.iter().copied()
    }

    pub fn is_subset(&self, other: &Cpus) -> bool {
        self.0.is_subset(&other.0)
    }

    /// The map as in virDomainPinVcpu(): bit `n % 8` of byte `n / 8`.
    pub fn to_map(&self) -> Vec<u8> {
        let length = self.0.last().map_or(0, |last| last / 8 + 1);
        let mut map = vec![0; length as usize];
        for cpu in &self.0 {
            map[(cpu / 8) as usize] |= 1 << (cpu % 8);
        }
        map
    }

    pub fn from_map(map: &[u8]) -> Cpus {
        let is_set = |cpu: &u32| map[(cpu / 8) as usize] & (1 << (cpu % 8)) != 0;
        Cpus((0..map.len() as u32 * 8).filter(is_set).collect())
    }
}

impl FromStr for Cpus {
    type Err = String;

    fn from_str(list: &str) -> Result<Cpus, String> {
        let cpu = |text: &str| text.parse().ok().filter(|cpu| *cpu < CPUS_MAX);
        list.split(',')
            .map(|part| {
                let (first, last) = part.split_once('-').unwrap_or((part, part));
                let range = cpu(first)?..=cpu(last)?;
                (!range.is_empty()).then_some(range)
            })
            .collect::<Option<Vec<_>>>()
            .map(|ranges| Cpus(ranges.into_iter().flatten().collect()))
            .ok_or_else(|| format!("expected a list of CPUs below {CPUS_MAX} such as 0-3,5"))
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comma = "";
        let mut cpus = self.iter().peekable();
        while let Some(first) = cpus.next() {
            let mut last = first;
            while let Some(next) = cpus.next_if(|next| *next == last + 1) {
                last = next;
            }
            match first == last {
                true => write!(f, "{comma}{first}")?,
                false => write!(f, "{comma}{first}-{last}")?,
            }
            comma = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_shown_as_it_was_read() {
        for list in ["0", "0-3,5", "7-9,64,262143"] {
            let cpus: Cpus = list.parse().unwrap();
            assert_eq!(cpus.to_string(), list);
            assert_eq!(Cpus::from_map(&cpus.to_map()), cpus);
        }
        for wrong in ["", "a", "3-0", "0,", "1-", "-1", "262144"] {
            assert!(
                wrong.parse::<Cpus>().is_err(),
                "{wrong} was taken for a list"
            );
        }
    }

    #[test]
    fn a_map_has_the_first_cpu_in_the_lowest_bit() {
        let cpus: Cpus = "0,2,9".parse().unwrap();
        assert_eq!(cpus.to_map(), [0b101, 0b10]);
    }
}
