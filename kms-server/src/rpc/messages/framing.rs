//! The frames of gRPC: what stands before each message, and where one ends and the next begins.

/// Bytes before each message: a flag and the message's length.
pub(crate) const PREFIX: usize = 5;

/// Reads the frames of gRPC messages: a flag, a length in four bytes, the message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Framing {
    prefix: usize,
    length: u32,
    left: usize,
}

/// The next thing in a stream of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A part of a prefix.
    Prefix,
    /// The end of a prefix: of a message of so many bytes. One of none has ended with it.
    Begun(usize),
    /// A part of a message.
    Part,
    /// The rest of a message.
    Ended,
}

impl Framing {
    /// Whether nothing of a message has come yet.
    pub(crate) fn is_between(&self) -> bool {
        *self == Self::default()
    }

    /// Reads one step; how many bytes of `data` it took. `data` is not empty.
    pub(crate) fn step(&mut self, data: &[u8]) -> (usize, Step) {
        if self.prefix < PREFIX {
            let take = (PREFIX - self.prefix).min(data.len());
            for byte in &data[..take] {
                // The flag goes out at the top while the length comes in.
                self.length = self.length << 8 | u32::from(*byte);
            }
            self.prefix += take;
            if self.prefix < PREFIX {
                return (take, Step::Prefix);
            }
            self.left = self.length as usize;
            let begun = Step::Begun(self.left);
            if self.left == 0 {
                *self = Self::default();
            }
            return (take, begun);
        }
        let take = self.left.min(data.len());
        self.left -= take;
        if self.left > 0 {
            return (take, Step::Part);
        }
        *self = Self::default();
        (take, Step::Ended)
    }

    /// Reads all of `data`; how many messages end in it.
    pub(crate) fn ends(&mut self, mut data: &[u8]) -> usize {
        let mut ends = 0;
        while !data.is_empty() {
            let (took, step) = self.step(data);
            data = &data[took..];
            ends += usize::from(matches!(step, Step::Ended | Step::Begun(0)));
        }
        ends
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(len: usize) -> Vec<u8> {
        [&[1u8][..], &(len as u32).to_be_bytes(), &vec![0xFF; len]].concat()
    }

    proptest! {
        #[test]
        fn messages_are_told_apart_however_they_are_cut(
            lengths in prop::collection::vec(0usize..300, 0..6),
            half in 1usize..200,
            piece in 1usize..64,
        ) {
            let whole: Vec<u8> = lengths.iter().flat_map(|len| message(*len)).collect();
            let mut framing = Framing::default();
            let ends: usize = whole.chunks(piece).map(|part| framing.ends(part)).sum();
            prop_assert_eq!(ends, lengths.len());
            prop_assert!(framing.is_between());
            prop_assert_eq!(framing.ends(&message(200)[..half]), 0);
            prop_assert!(!framing.is_between());
        }
    }
}
