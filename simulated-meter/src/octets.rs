//! Reading and writing of lengths and bytes. Reading what is not there is `None`, never a panic.

/// What is left to read.
#[derive(Clone, Copy)]
pub(crate) struct Octets<'a>(pub(crate) &'a [u8]);

impl<'a> Octets<'a> {
    pub(crate) fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|one| one[0])
    }

    pub(crate) fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub(crate) fn number(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// A length, in the short form or behind 81 to 84; minimal or not.
    pub(crate) fn length(&mut self) -> Option<usize> {
        let first = self.byte()?;
        match first {
            ..=0x7f => Some(usize::from(first)),
            0x81..=0x84 => {
                let bytes = self.take(usize::from(first & 0x0f))?;
                Some(bytes.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)))
            }
            _ => None,
        }
    }

    /// As many bytes as the length before them says.
    pub(crate) fn counted(&mut self) -> Option<&'a [u8]> {
        let length = self.length()?;
        self.take(length)
    }

    /// Something, if nothing is left behind it.
    pub(crate) fn end(self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}

/// A length in its shortest form.
pub(crate) fn put_length(out: &mut Vec<u8>, length: usize) {
    let bytes = length.to_be_bytes();
    let long = &bytes[bytes.iter().take_while(|byte| **byte == 0).count().min(bytes.len() - 1)..];
    if length >= 0x80 {
        out.push(0x80 | long.len() as u8);
    }
    out.extend_from_slice(long);
}

pub(crate) fn put_counted(out: &mut Vec<u8>, bytes: &[u8]) {
    put_length(out, bytes.len());
    out.extend_from_slice(bytes);
}
