// SPDX-License-Identifier: LGPL-2.1-or-later
//! The messages between a client and a delegate, see docs/protocol.md.
//!
//! Each is one packet of a SOCK_SEQPACKET socket: a header and a body, in the
//! machine's byte order, for both ends are on one machine.

use core::mem::size_of;

use libc::c_int;

use crate::errno::Errno;
use crate::error::{Code, Error, Result};
use crate::kernel::affinity::CpuMap;
use crate::kernel::process::{Held, Task};

/// The first bytes of every message: "VIRd".
pub(crate) const MAGIC: u32 = u32::from_ne_bytes(*b"VIRd");

/// The version of header, hello and answer. Operations have their own.
pub(crate) const PROTOCOL: u32 = 1;

/// The longest body in bytes: 3000 threads with their numbers, and the largest
/// map of CPUs.
pub(crate) const BODY_MAX: usize = 32 * 1024;

/// The longest map of CPUs in bytes, zeros at its end not counted: twice as
/// many CPUs as Linux can have.
pub(crate) const CPUMAP_MAX: usize = 2048;

/// The longest text of an answer in bytes.
pub(crate) const TEXT_MAX: usize = 400;

/// How many operations one side can know.
pub(crate) const OPERATIONS_MAX: usize = 64;

/// How many descriptors a message can carry.
pub(crate) const DESCRIPTORS_MAX: usize = 2;

/// In the place of an operation: what the sender speaks. The first message of
/// a connection in each direction.
pub(crate) const HELLO: u32 = 0;

/// In the place of an operation: what became of an earlier request.
pub(crate) const OUTCOME: u32 = u32::MAX;

/// A flag of a request: its process is that of the last request over this
/// connection, and is not sent again.
pub(crate) const SAME_PROCESS: u32 = 1;

/// What every message begins with.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) magic: u32,
    pub(crate) protocol: u32,
    /// A `virInternalOperation`, or [`HELLO`] or [`OUTCOME`].
    pub(crate) operation: u32,
    pub(crate) version: u32,
    /// The body's, in bytes.
    pub(crate) size: u32,
    /// Of a request: [`SAME_PROCESS`], or 0.
    pub(crate) flags: u32,
    /// Chosen by the client, repeated in the answer.
    pub(crate) request: u64,
}

/// A message that cannot be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed(pub(crate) &'static str);

const UNKNOWN_FLAGS: &str = "the header has unknown flags";

pub(crate) type Understood<T> = core::result::Result<T, Malformed>;

impl Header {
    pub(crate) fn new(operation: u32, version: u32, size: usize, request: u64) -> Header {
        Header {
            magic: MAGIC,
            protocol: PROTOCOL,
            operation,
            version,
            size: size as u32,
            flags: 0,
            request,
        }
    }

    pub(crate) fn of_same_process(self) -> Header {
        Header {
            flags: SAME_PROCESS,
            ..self
        }
    }

    /// Takes the header off a message, whose body must be as long as it says.
    pub(crate) fn split(message: &[u8]) -> Understood<(Header, &[u8])> {
        let mut reader = Reader(message);
        let header = Header::read(&mut reader)?;
        if header.size as usize != reader.0.len() {
            return Err(Malformed("the body is not as long as the header says"));
        }
        Ok((header, reader.0))
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Understood<Header> {
        let header = Header {
            magic: reader.u32()?,
            protocol: reader.u32()?,
            operation: reader.u32()?,
            version: reader.u32()?,
            size: reader.u32()?,
            flags: reader.u32()?,
            request: reader.u64()?,
        };
        if header.magic == MAGIC.swap_bytes() {
            return Err(Malformed("the message has the other byte order"));
        }
        if header.magic != MAGIC {
            return Err(Malformed("the message does not begin with VIRd"));
        }
        if header.protocol != PROTOCOL {
            return Err(Malformed("the protocol's version is not 1"));
        }
        if header.flags & !SAME_PROCESS != 0 {
            return Err(Malformed(UNKNOWN_FLAGS));
        }
        if header.size as usize > BODY_MAX {
            return Err(Malformed("the body is longer than 32768 bytes"));
        }
        Ok(header)
    }

    /// Answers, and a delegate's hello, have none.
    pub(crate) fn require_no_flags(&self) -> Understood<()> {
        match self.flags {
            0 => Ok(()),
            _ => Err(Malformed(UNKNOWN_FLAGS)),
        }
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        // SAFETY: integers without padding, as many bytes as its size.
        unsafe { core::slice::from_raw_parts((&raw const *self).cast(), size_of::<Self>()) }
    }
}

/// Overwrites what carried a request, once it was used.
pub(crate) fn erase(bytes: &mut [u8]) {
    // SAFETY: as many bytes as the slice has.
    unsafe { libc::explicit_bzero(bytes.as_mut_ptr().cast(), bytes.len()) };
}

/// Takes one integer after the other off a body.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Understood<[u8; N]> {
        let (taken, rest) = self
            .0
            .split_first_chunk()
            .ok_or(Malformed("the message is too short"))?;
        self.0 = rest;
        Ok(*taken)
    }

    pub(crate) fn u32(&mut self) -> Understood<u32> {
        self.take().map(u32::from_ne_bytes)
    }

    pub(crate) fn i32(&mut self) -> Understood<i32> {
        self.take().map(i32::from_ne_bytes)
    }

    pub(crate) fn u64(&mut self) -> Understood<u64> {
        self.take().map(u64::from_ne_bytes)
    }

    #[cfg(feature = "delegate")]
    pub(crate) fn bool(&mut self) -> Understood<bool> {
        match self.u32()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed("what is yes or no is neither 0 nor 1")),
        }
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Understood<&'a [u8]> {
        let (taken, rest) = self
            .0
            .split_at_checked(length)
            .ok_or(Malformed("the message is too short"))?;
        self.0 = rest;
        Ok(taken)
    }

    /// Nothing may be left.
    pub(crate) fn end(&self) -> Understood<()> {
        match self.0 {
            [] => Ok(()),
            _ => Err(Malformed("the message is too long")),
        }
    }
}

/// A short run of integers, written in the order of the message.
#[derive(Clone, Copy)]
pub(crate) struct Writer<const SIZE: usize> {
    bytes: [u8; SIZE],
    length: usize,
}

impl<const SIZE: usize> Writer<SIZE> {
    pub(crate) const fn new() -> Self {
        Writer {
            bytes: [0; SIZE],
            length: 0,
        }
    }

    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.length..self.length + bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len();
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.put(&value.to_ne_bytes());
    }

    pub(crate) fn i32(&mut self, value: i32) {
        self.put(&value.to_ne_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.put(&value.to_ne_bytes());
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    pub(crate) fn erase(&mut self) {
        erase(&mut self.bytes);
    }
}

/// What one side can do with an operation, as its hello says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spoken {
    pub(crate) operation: u32,
    pub(crate) lowest: u32,
    pub(crate) highest: u32,
}

/// The longest hello's body.
pub(crate) const HELLO_MAX: usize = 8 + OPERATIONS_MAX * size_of::<Spoken>();

/// The body of a hello: all that its sender speaks.
pub(crate) fn hello(spoken: impl ExactSizeIterator<Item = Spoken>) -> Writer<HELLO_MAX> {
    let mut body = Writer::new();
    body.u32(spoken.len() as u32);
    body.u32(0);
    for Spoken {
        operation,
        lowest,
        highest,
    } in spoken
    {
        body.u32(operation);
        body.u32(lowest);
        body.u32(highest);
    }
    body
}

/// Reads a hello's body, and calls `each` with what is spoken.
pub(crate) fn read_hello(body: &[u8], mut each: impl FnMut(Spoken)) -> Understood<()> {
    let mut reader = Reader(body);
    let count = reader.u32()?;
    if reader.u32()? != 0 {
        return Err(Malformed("the hello's reserved bytes are not 0"));
    }
    if count as usize > OPERATIONS_MAX {
        return Err(Malformed("the hello has more than 64 operations"));
    }
    for _ in 0..count {
        each(Spoken {
            operation: reader.u32()?,
            lowest: reader.u32()?,
            highest: reader.u32()?,
        });
    }
    reader.end()
}

/// What a delegate says became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Verdict {
    Handled = 0,
    NotHandled = 1,
    Refused = 2,
    Failed = 3,
    /// Of an earlier request: it is still being worked on, or nobody knows.
    Unknown = 4,
}

impl Verdict {
    fn new(number: u32) -> Understood<Verdict> {
        [
            Verdict::Handled,
            Verdict::NotHandled,
            Verdict::Refused,
            Verdict::Failed,
            Verdict::Unknown,
        ]
        .into_iter()
        .find(|known| *known as u32 == number)
        .ok_or(Malformed("the answer is none that there is"))
    }
}

/// What an answer's body begins with. Results of single threads follow, and
/// after them the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) verdict: Verdict,
    /// The kind of error of one that failed: a `virInternalErrorCode`.
    pub(crate) code: u32,
    pub(crate) errnum: Errno,
    /// How many results follow.
    pub(crate) results: u32,
    /// How many bytes of text follow them.
    pub(crate) text: u32,
}

/// The length of an answer without results and text.
pub(crate) const ANSWER_SIZE: usize = 24;

impl Answer {
    #[cfg(feature = "delegate")]
    pub(crate) fn write(&self) -> Writer<ANSWER_SIZE> {
        let mut body = Writer::new();
        body.u32(self.verdict as u32);
        body.u32(self.code);
        body.i32(self.errnum.0);
        body.u32(self.results);
        body.u32(self.text);
        body.u32(0);
        body
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Understood<Answer> {
        let answer = Answer {
            verdict: Verdict::new(reader.u32()?)?,
            code: reader.u32()?,
            errnum: Errno(reader.i32()?),
            results: reader.u32()?,
            text: reader.u32()?,
        };
        if reader.u32()? != 0 {
            return Err(Malformed("the answer's reserved bytes are not 0"));
        }
        if answer.verdict == Verdict::Failed && !(1..=4095).contains(&answer.errnum.0) {
            return Err(Malformed("the answer's errno is none"));
        }
        if answer.text as usize > TEXT_MAX {
            return Err(Malformed("the answer's text is longer than 400 bytes"));
        }
        Ok(answer)
    }
}

/// The code of an answer that failed, for those that a delegate can give.
pub(crate) fn failed_code(code: u32) -> Code {
    use Code::*;
    [
        VIR_INTERNAL_ERR_INVALID_ARG,
        VIR_INTERNAL_ERR_VERSION,
        VIR_INTERNAL_ERR_NO_PROCESS,
        VIR_INTERNAL_ERR_READ_BACK,
        VIR_INTERNAL_ERR_UNSUPPORTED,
    ]
    .into_iter()
    .find(|known| *known as u32 == code)
    .unwrap_or(VIR_INTERNAL_ERR_FAILED)
}

/// A request as a client sends it: integers, then what is too long to copy,
/// and descriptors.
pub(crate) struct Request<'a> {
    pub(crate) fixed: Writer<24>,
    parts: [&'a [u8]; PARTS_MAX],
    part_count: usize,
    descriptors: [c_int; DESCRIPTORS_MAX],
    descriptor_count: usize,
}

/// How many parts a request has that are not copied.
pub(crate) const PARTS_MAX: usize = 3;

impl<'a> Request<'a> {
    pub(crate) fn new() -> Self {
        Request {
            fixed: Writer::new(),
            parts: [&[]; PARTS_MAX],
            part_count: 0,
            descriptors: [-1; DESCRIPTORS_MAX],
            descriptor_count: 0,
        }
    }

    /// A process that is held.
    pub(crate) fn process(&mut self, held: &Held) {
        self.descriptor(held.process_fd());
    }

    /// A thread of a process that is held: 0 for its first, else its number,
    /// and a descriptor where the kernel has any of threads.
    pub(crate) fn task(&mut self, task: Task, held: &Held) {
        self.process(held);
        match held.thread_fd() {
            None => self.fixed.i32(0),
            Some(fd) => {
                self.fixed.i32(task.tid());
                fd.into_iter().for_each(|fd| self.descriptor(fd));
            }
        }
    }

    /// A map of CPUs: its length without zeros at its end, and the map as the
    /// next part.
    pub(crate) fn cpus(&mut self, map: Option<CpuMap<'a>>) -> Result<()> {
        let map = map.map_or(&[][..], |map| map.bytes());
        let length = map
            .iter()
            .rposition(|&byte| byte != 0)
            .map_or(0, |last| last + 1);
        if length > CPUMAP_MAX {
            return Err(Error::invalid(format_args!(
                "cpumap names CPU {}: a delegate takes none above {}",
                length * 8 - 1 - map[length - 1].leading_zeros() as usize,
                CPUMAP_MAX * 8 - 1
            )));
        }
        self.fixed.u32(length as u32);
        self.part(&map[..length]);
        Ok(())
    }

    pub(crate) fn part(&mut self, part: &'a [u8]) {
        self.parts[self.part_count] = part;
        self.part_count += 1;
    }

    pub(crate) fn parts(&self) -> &[&'a [u8]; PARTS_MAX] {
        &self.parts
    }

    pub(crate) fn descriptors(&self) -> &[c_int] {
        &self.descriptors[..self.descriptor_count]
    }

    /// The header and descriptors that it is sent with, over a connection
    /// whose last request was about the same process, or not.
    pub(crate) fn headed(&self, header: Header, same_process: bool) -> (Header, &[c_int]) {
        match same_process {
            false => (header, self.descriptors()),
            // The process comes first.
            true => (header.of_same_process(), &self.descriptors()[1..]),
        }
    }

    pub(crate) fn descriptor(&mut self, fd: c_int) {
        self.descriptors[self.descriptor_count] = fd;
        self.descriptor_count += 1;
    }

    /// The body's length in bytes.
    pub(crate) fn size(&self) -> usize {
        self.fixed.as_bytes().len() + self.parts.iter().map(|part| part.len()).sum::<usize>()
    }
}

/// Reads bytes as a header, a hello and an answer: what was understood must be
/// written as it was read.
#[cfg(feature = "delegate")]
pub(crate) fn read_anything(bytes: &[u8]) {
    if let Ok((header, body)) = Header::split(bytes) {
        let again = Header::new(header.operation, header.version, body.len(), header.request);
        let again = match header.flags {
            0 => again,
            _ => again.of_same_process(),
        };
        assert_eq!(header, again);
        assert_eq!(header.as_bytes(), &bytes[..size_of::<Header>()]);
    }
    let mut spoken = std::vec::Vec::new();
    if read_hello(bytes, |entry| spoken.push(entry)).is_ok() {
        assert_eq!(hello(spoken.into_iter()).as_bytes(), bytes);
    }
    let mut reader = Reader(bytes);
    if let Ok(answer) = Answer::read(&mut reader) {
        assert_eq!(answer.write().as_bytes(), &bytes[..ANSWER_SIZE]);
        assert_eq!(reader.0, &bytes[ANSWER_SIZE..]);
    }
}

/// The bytes of integers.
pub(crate) fn bytes_of<T: Integer>(integers: &[T]) -> &[u8] {
    // SAFETY: integers have no padding.
    unsafe { core::slice::from_raw_parts(integers.as_ptr().cast(), size_of_val(integers)) }
}

/// What [`bytes_of`] takes.
///
/// # Safety
/// Each of its bytes is initialised.
pub(crate) unsafe trait Integer {}

// SAFETY: integers.
unsafe impl Integer for i32 {}
// SAFETY: integers.
unsafe impl Integer for u32 {}
