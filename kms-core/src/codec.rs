//! Reading of encodings in which every field has a fixed length or its length before it, and lists have
//! their count: what is left out of one, or left over, is no encoding.

/// Bytes that end too early, or hold what no encoder writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an encoding of this version")]
pub struct BadEncoding;

/// The rest of an encoding. Nothing here takes memory by what a length says before the bytes are there.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// At the beginning of `bytes`.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The bytes that are left.
    pub const fn left(&self) -> usize {
        self.0.len()
    }

    /// The next bytes, of a length that is fixed.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], BadEncoding> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(BadEncoding)?;
        self.0 = rest;
        Ok(*head)
    }

    /// A byte.
    pub fn u8(&mut self) -> Result<u8, BadEncoding> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// Two bytes, the higher first.
    pub fn u16(&mut self) -> Result<u16, BadEncoding> {
        self.array().map(u16::from_be_bytes)
    }

    /// Four bytes, the highest first.
    pub fn u32(&mut self) -> Result<u32, BadEncoding> {
        self.array().map(u32::from_be_bytes)
    }

    /// Eight bytes, the highest first.
    pub fn u64(&mut self) -> Result<u64, BadEncoding> {
        self.array().map(u64::from_be_bytes)
    }

    /// 0 or 1.
    pub fn flag(&mut self) -> Result<bool, BadEncoding> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(BadEncoding),
        }
    }

    /// Bytes with their length before them, in four bytes.
    pub fn bytes(&mut self) -> Result<&'a [u8], BadEncoding> {
        let len = usize::try_from(self.u32()?).map_err(|_| BadEncoding)?;
        let (head, rest) = self.0.split_at_checked(len).ok_or(BadEncoding)?;
        self.0 = rest;
        Ok(head)
    }

    /// Text with its length before it, in four bytes.
    pub fn text(&mut self) -> Result<&'a str, BadEncoding> {
        std::str::from_utf8(self.bytes()?).map_err(|_| BadEncoding)
    }

    /// Nothing is left.
    pub const fn end(self) -> Result<(), BadEncoding> {
        if self.0.is_empty() { Ok(()) } else { Err(BadEncoding) }
    }
}

/// Appends bytes with their length before them: what [`Reader::bytes`] reads.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    // No part of any message of ours has 4 GiB: what is longer is cut, and then refused by who reads it.
    out.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(bytes);
}
