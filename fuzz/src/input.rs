// SPDX-License-Identifier: LGPL-2.1-or-later
//! An input as a sequence of packets.
//!
//! Each is four bytes and a body: how it is sent, its descriptors, and the
//! body's length in 16 bits. Most packets are given a header that fits, or the
//! fuzzer would find out little behind it.

/// One packet of an input.
pub struct Packet<'a> {
    /// 0: the body is the whole packet. Else which header it gets.
    pub kind: u8,
    /// Which descriptors it has, and what else a target makes of it.
    pub descriptors: u8,
    pub body: &'a [u8],
}

/// The most packets of an input: their answers must fit into a socket's
/// buffer, where nobody takes them out.
pub const PACKETS_MAX: usize = 48;

pub fn packets(mut input: &[u8]) -> impl Iterator<Item = Packet<'_>> {
    std::iter::from_fn(move || {
        let ([kind, descriptors, low, high], rest) = input.split_first_chunk()?;
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
        let body;
        (body, input) = rest.split_at(length);
        Some(Packet {
            kind: *kind,
            descriptors: *descriptors,
            body,
        })
    })
    .take(PACKETS_MAX)
}

/// A header that fits.
pub fn header(operation: u32, version: u32, size: usize, request: u64) -> [u8; 32] {
    let mut header = [0; 32];
    header[..4].copy_from_slice(b"VIRd");
    let size = size as u32;
    for (at, value) in [(4, 1), (8, operation), (12, version), (16, size)] {
        header[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    header[24..].copy_from_slice(&request.to_ne_bytes());
    header
}
