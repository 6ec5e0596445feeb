// SPDX-License-Identifier: LGPL-2.1-or-later
//! Sizes in bytes as people write and read them.

use serde_json::Value;

const UNITS: [(&str, u64); 4] = [
    ("T", 1 << 40),
    ("G", 1 << 30),
    ("M", 1 << 20),
    ("K", 1 << 10),
];

/// The kernel's figure for no limit.
pub const UNLIMITED: u64 = libc::RLIM_INFINITY;

/// Reads "4096", "64K", "64M", "1G", "unlimited".
pub fn parse(text: &str) -> Result<u64, String> {
    if text == "unlimited" {
        return Ok(UNLIMITED);
    }
    let (digits, factor) = UNITS
        .iter()
        .find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor)))
        .unwrap_or((text, 1));
    digits
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(factor))
        .ok_or_else(|| {
            let most = UNLIMITED - 1;
            format!("expected 0 to {most} bytes such as 4096, 64K, 64M, 1G, or unlimited")
        })
}

/// A number, or "unlimited".
pub fn number(number: u64) -> String {
    match number {
        UNLIMITED => "unlimited".into(),
        number => number.to_string(),
    }
}

/// The same for a program.
pub fn value(number: u64) -> Value {
    match number {
        UNLIMITED => "unlimited".into(),
        number => number.into(),
    }
}

/// In the largest unit that needs no fraction: "64 KiB".
pub fn bytes(bytes: u64) -> String {
    match UNITS
        .iter()
        .find(|(_, factor)| bytes != 0 && bytes.is_multiple_of(*factor))
    {
        _ if bytes == UNLIMITED => "unlimited".into(),
        _ if bytes == 1 => "1 byte".into(),
        Some((unit, factor)) => format!("{} {unit}iB", bytes / factor),
        None => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_read_with_its_unit() {
        assert_eq!(parse("4096"), Ok(4096));
        assert_eq!(parse("64K"), Ok(64 << 10));
        assert_eq!(parse("2T"), Ok(2 << 40));
        assert_eq!(parse("unlimited"), Ok(UNLIMITED));
        for wrong in ["", "M", "-1", "1.5G", "64 M", "99999999999T"] {
            assert!(parse(wrong).is_err(), "{wrong} was taken for a size");
        }
    }

    #[test]
    fn a_size_is_shown_without_a_fraction() {
        assert_eq!(bytes(0), "0 bytes");
        assert_eq!(bytes(1), "1 byte");
        assert_eq!(bytes(64 << 20), "64 MiB");
        assert_eq!(bytes(1025), "1025 bytes");
        assert_eq!(bytes(UNLIMITED), "unlimited");
    }
}
