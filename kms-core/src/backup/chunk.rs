//! Chunks of a backup: number (8) ‖ last (1) ‖ length (4) ‖ ciphertext ‖ tag (16). The nonce is the number: a file's key
//! seals one file.

use aes_gcm::{
    Aes256Gcm, KeyInit as _,
    aead::{Aead as _, Payload},
};

use crate::BlockSecret;

/// The length of a chunk's head.
pub const HEAD_LEN: usize = 8 + 1 + 4;

/// The largest content of a chunk, in bytes: a role record or a head table of 65,536 blocks has some 3 MiB.
pub const LEN_MAX: usize = 16 << 20;

const TAG_LEN: usize = 16;

/// Why a chunk is not one of this file in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadChunk {
    /// The file ends before its last chunk does.
    #[error("the backup is cut: chunk {0} is not all there")]
    Cut(u64),
    /// A chunk stands a second time.
    #[error(
        "chunk {found} of the backup stands where chunk {expected} should: it is there twice, or swapped"
    )]
    Again {
        /// The number that should come.
        expected: u64,
        /// The one that came.
        found: u64,
    },
    /// Chunks are left out, or stand in another order.
    #[error("chunk {expected} of the backup is missing, or swapped: chunk {found} stands there")]
    Missing {
        /// The number that should come.
        expected: u64,
        /// The one that came.
        found: u64,
    },
    /// It does not open.
    #[error("chunk {0} of the backup was changed, or is of another one")]
    Changed(u64),
    /// It can't be one: no writer makes such a head.
    #[error("chunk {0} of the backup has a head that nobody writes")]
    Head(u64),
    /// Something stands behind the last chunk.
    #[error("bytes stand behind the end of the backup")]
    Behind,
}

/// The content of a chunk is too large.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a row is larger than a chunk of a backup may be ({LEN_MAX} bytes)")]
pub struct TooLarge;

struct Cipher {
    cipher: Aes256Gcm,
    header: [u8; 32],
}

impl Cipher {
    fn new(key: &BlockSecret, header: [u8; 32]) -> Self {
        let cipher = Aes256Gcm::new(key.expose_block_secret_bytes().into());
        Self { cipher, header }
    }

    fn nonce(number: u64) -> [u8; 12] {
        let mut nonce = [0; 12];
        if let Some(low) = nonce.last_chunk_mut::<8>() {
            *low = number.to_be_bytes();
        }
        nonce
    }

    fn additional(&self, head: &[u8; HEAD_LEN]) -> Vec<u8> {
        [&b"ami.kms/backup-chunk/1"[..], &self.header, head].concat()
    }
}

fn head(number: u64, last: bool, len: u32) -> [u8; HEAD_LEN] {
    let mut head = [0; HEAD_LEN];
    let bytes = number.to_be_bytes().into_iter().chain([u8::from(last)]).chain(len.to_be_bytes());
    head.iter_mut().zip(bytes).for_each(|(to, byte)| *to = byte);
    head
}

/// Seals chunks, one after the other.
pub struct Sealer {
    cipher: Cipher,
    next: u64,
}

impl Sealer {
    /// For a file with this header digest.
    pub fn new(key: &BlockSecret, header: [u8; 32]) -> Self {
        Self { cipher: Cipher::new(key, header), next: 0 }
    }

    /// The next chunk, as it stands in the file.
    pub fn seal(&mut self, content: &[u8], last: bool) -> Result<Vec<u8>, TooLarge> {
        let len = u32::try_from(content.len() + TAG_LEN).map_err(|_| TooLarge)?;
        if content.len() > LEN_MAX {
            return Err(TooLarge);
        }
        let head = head(self.next, last, len);
        let additional = self.cipher.additional(&head);
        let payload = Payload { msg: content, aad: &additional };
        let nonce = Cipher::nonce(self.next);
        let sealed = self.cipher.cipher.encrypt(&nonce.into(), payload).map_err(|_| TooLarge)?;
        self.next += 1;
        Ok([&head[..], &sealed].concat())
    }
}

/// Opens chunks, one after the other.
pub struct Opener {
    cipher: Cipher,
    next: u64,
    ended: bool,
}

/// The head of a chunk whose rest is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coming {
    head: [u8; HEAD_LEN],
    last: bool,
    /// So many bytes belong to it.
    pub len: usize,
}

impl Opener {
    /// For a file with this header digest.
    pub fn new(key: &BlockSecret, header: [u8; 32]) -> Self {
        Self { cipher: Cipher::new(key, header), next: 0, ended: false }
    }

    /// Whether the last chunk was opened.
    pub const fn ended(&self) -> bool {
        self.ended
    }

    /// The number of the chunk that comes next.
    pub const fn next(&self) -> u64 {
        self.next
    }

    /// What a head says, before its bytes are there: no memory is taken for what can't be a chunk.
    pub fn coming(&self, head: &[u8; HEAD_LEN]) -> Result<Coming, BadChunk> {
        if self.ended {
            return Err(BadChunk::Behind);
        }
        let expected = self.next;
        let bad = BadChunk::Head(expected);
        let (number, rest) = head.split_first_chunk::<8>().ok_or(bad)?;
        let (last, len) = rest.split_first_chunk::<1>().ok_or(bad)?;
        let found = u64::from_be_bytes(*number);
        let len = u32::from_be_bytes(len.try_into().map_err(|_| bad)?) as usize;
        if found < expected {
            return Err(BadChunk::Again { expected, found });
        }
        if found > expected {
            return Err(BadChunk::Missing { expected, found });
        }
        let is_length = (TAG_LEN..=LEN_MAX + TAG_LEN).contains(&len);
        match *last {
            [last @ (0 | 1)] if is_length => Ok(Coming { head: *head, last: last == 1, len }),
            _ => Err(bad),
        }
    }

    /// The content of the chunk that was coming.
    pub fn open(&mut self, coming: &Coming, sealed: &[u8]) -> Result<Vec<u8>, BadChunk> {
        let number = self.next;
        let additional = self.cipher.additional(&coming.head);
        let payload = Payload { msg: sealed, aad: &additional };
        let opened = self.cipher.cipher.decrypt(&Cipher::nonce(number).into(), payload);
        let opened = opened.map_err(|_| BadChunk::Changed(number))?;
        self.next += 1;
        self.ended = coming.last;
        Ok(opened)
    }
}
