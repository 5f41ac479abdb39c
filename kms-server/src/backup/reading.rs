//! A backup is read: each chunk opened before it is looked at, and believed as a whole once its summary is.

use std::io::{ErrorKind, Read};

use super::error::BackupError;
use crate::hsm::{Hsm, TokenError};
use kms_core::{
    audit::{PublicKey, is_signed},
    backup::{
        chunk::{BadChunk, HEAD_LEN, Opener},
        header::{Header, LEN_MAX, MAGIC},
        part::{Part, decode_last},
        summary::{Counter, Summary},
    },
};

/// The header at the beginning of a file. Nothing of it is authentic yet.
pub fn header_of(input: &mut impl Read) -> Result<Header, BackupError> {
    let mut begin = [0; MAGIC.len() + 4];
    input.read_exact(&mut begin).map_err(|error| match error.kind() {
        ErrorKind::UnexpectedEof => BackupError::Foreign,
        _ => error.into(),
    })?;
    let (magic, len) = begin.split_at(MAGIC.len());
    let len = len.try_into().map(u32::from_be_bytes).map_err(|_| BackupError::Foreign)?;
    if magic != MAGIC {
        return Err(BackupError::Foreign);
    }
    if len > LEN_MAX {
        return Err(BackupError::Header);
    }
    let mut header = vec![0; len as usize];
    input.read_exact(&mut header).map_err(|error| match error.kind() {
        ErrorKind::UnexpectedEof => BadChunk::Cut(0).into(),
        _ => BackupError::File(error),
    })?;
    Header::decode(&header).map_err(|_| BackupError::Header)
}

/// A file that is being read.
pub(super) struct Reading<R> {
    input: R,
    digest: [u8; 32],
    opener: Opener,
    counter: Counter,
    key: PublicKey,
}

/// Something that was read.
pub(super) enum Next {
    /// A part.
    Part(Part),
    /// The end, and what was read is what was written.
    End(Summary),
}

impl<R: Read> Reading<R> {
    /// Has the token open the file whose header was read out of `input`.
    pub(super) async fn begin(hsm: &Hsm, header: &Header, input: R) -> Result<Self, BackupError> {
        let opened = hsm.open_under(header.kek_id, header.place(), header.sealed_key.clone()).await;
        let secret = opened.map_err(|error| match error {
            TokenError::Refused { .. } => BackupError::NotOurs(error),
            error => error.into(),
        })?;
        let (digest, key) = (header.digest(), hsm.public_key().await?);
        let opener = Opener::new(&secret, digest);
        Ok(Self { input, digest, opener, counter: Counter::default(), key })
    }

    /// The next part, or the end.
    pub(super) fn next(&mut self) -> Result<Next, BackupError> {
        let number = self.opener.next();
        let mut head = [0; HEAD_LEN];
        self.fill(&mut head)?;
        let coming = self.opener.coming(&head)?;
        let mut sealed = vec![0; coming.len];
        self.fill(&mut sealed)?;
        let content = self.opener.open(&coming, &sealed)?;
        if self.opener.ended() {
            return self.end(&content).map(Next::End);
        }
        let unknown = |_| BackupError::Content(number);
        let part = Part::decode(&content).map_err(unknown)?;
        self.counter.see(&part, &content).map_err(unknown)?;
        Ok(Next::Part(part))
    }

    /// Rows that were read so far.
    pub(super) fn rows(&self) -> u64 {
        self.counter.rows()
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), BackupError> {
        let cut = BadChunk::Cut(self.opener.next());
        self.input.read_exact(bytes).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => cut.into(),
            _ => error.into(),
        })
    }

    fn end(&mut self, content: &[u8]) -> Result<Summary, BackupError> {
        let bad = BackupError::Summary;
        let (message, signature) = decode_last(content).map_err(|_| bad("can't be read"))?;
        if !is_signed(&self.key, message, &signature) {
            return Err(bad("is not signed by this site's token"));
        }
        let told =
            Summary::decode(message, &self.digest).map_err(|_| bad("is of another backup"))?;
        if told != self.counter.clone().summary() {
            return Err(bad("says something else than what is in it"));
        }
        if self.input.read(&mut [0])? > 0 {
            return Err(BadChunk::Behind.into());
        }
        Ok(told)
    }
}

/// Reads a backup to its end, and keeps nothing of it.
pub async fn verify(hsm: &Hsm, header: &Header, input: impl Read) -> Result<Summary, BackupError> {
    let mut reading = Reading::begin(hsm, header, input).await?;
    loop {
        if let Next::End(summary) = reading.next()? {
            return Ok(summary);
        }
    }
}
