//! The rotation of block secrets, as facts: that it was asked for, and for each block how far it is. A block's fact is a
//! record of that very block, so it is written in the commit that it speaks of, and reaches the other site with it.

use crate::{
    BlockCount, BlockNo, RecordMac,
    block::unspread,
    codec::{BadEncoding, Reader, put_bytes},
};

crate::numbered! {
    /// How far the rotation of a block's secret is.
    pub enum SecretStage "stage" {
        /// The new secret is sealed; nothing is under it yet.
        Staged = 1 "STAGED",
        /// All of the block is under the new secret; the former one is kept.
        Rewritten = 2 "REWRITTEN",
        /// The former one goes: the rewritten block was proved.
        Retired = 3 "RETIRED",
    }
}

/// The newest secret of a block, and the former one. It stays when the rotation is over, so that a site that was away
/// comes to the secret later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockSecrets {
    /// The block.
    pub block: BlockNo,
    /// The blocks of its domain: the fact's name follows from both.
    pub blocks: BlockCount,
    /// The rotation that made it.
    pub generation: u32,
    /// The version of the former secret.
    pub from: u32,
    /// The version of the newest one.
    pub version: u32,
    /// How far it is.
    pub stage: SecretStage,
    /// When it was made; milliseconds since 1970.
    pub made_ms: u64,
    /// Shows who has the former secret that the newest one is of this domain: see [`crate::block::rotating::link`].
    pub link: RecordMac,
    /// The newest one, wrapped for each other site: SHA-256 over its `transport-block` key, in order, and what only
    /// that opens.
    pub wrapped: Vec<([u8; 32], Vec<u8>)>,
}

impl BlockSecrets {
    /// Forms that it can be wrapped in: for the other site and eight replicas, by either hash of OAEP.
    pub const RECIPIENTS_MAX: usize = 24;
    /// Bytes that are wrapped, each: RSA-3072 makes 384.
    pub const WRAPPED_MAX: usize = 512;

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        let Self { block, blocks, generation, from, version, stage, made_ms, link, wrapped } = self;
        for number in [blocks.get(), block.0, *generation, *from, *version] {
            out.extend_from_slice(&number.to_be_bytes());
        }
        out.push(*stage as u8);
        out.extend_from_slice(&made_ms.to_be_bytes());
        out.extend_from_slice(link);
        out.push(u8::try_from(wrapped.len()).unwrap_or(u8::MAX));
        for (key, wrapped) in wrapped {
            out.extend_from_slice(key);
            put_bytes(out, wrapped);
        }
    }

    pub(super) fn take(input: &mut Reader<'_>) -> Result<Self, BadEncoding> {
        let blocks = BlockCount::new(input.u32()?).map_err(|_| BadEncoding)?;
        let mut fact = Self {
            blocks,
            block: BlockNo(input.u32()?),
            generation: input.u32()?,
            from: input.u32()?,
            version: input.u32()?,
            stage: crate::Numbered::from_number(input.u8()?).ok_or(BadEncoding)?,
            made_ms: input.u64()?,
            link: input.array()?,
            wrapped: Vec::new(),
        };
        for _ in 0..input.u8()? {
            fact.wrapped.push((input.array()?, input.bytes()?.to_vec()));
        }
        let is_sound = fact.block.0 < blocks.get() && fact.from < fact.version;
        if is_sound && fact.fits().is_ok() { Ok(fact) } else { Err(BadEncoding) }
    }

    /// What of it has no place in a record: its name, its length, and the most that there is place for.
    pub(crate) fn fits(&self) -> Result<(), (&'static str, usize, usize)> {
        let too_long = |what, len, most| Err((what, len, most));
        if self.wrapped.len() > Self::RECIPIENTS_MAX || !self.wrapped.is_sorted_by(|a, b| a.0 < b.0)
        {
            return too_long("sites in order", self.wrapped.len(), Self::RECIPIENTS_MAX);
        }
        match self.wrapped.iter().map(|(_, wrapped)| wrapped.len()).max() {
            Some(len) if len > Self::WRAPPED_MAX => {
                too_long("wrapped bytes", len, Self::WRAPPED_MAX)
            }
            _ => Ok(()),
        }
    }
}

/// That the secrets of all blocks are to be rotated: a block whose fact is of an earlier rotation has one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SecretsWish {
    /// The number of the rotation, from 1.
    pub generation: u32,
    /// When somebody asked for it; milliseconds since 1970.
    pub asked_ms: u64,
}

/// The name of a block's secrets among facts, which leads to that block.
pub(super) fn name_of<const LEN: usize>(block: BlockNo, blocks: BlockCount) -> [u8; LEN] {
    // The first number that spreads into this block.
    let first = (u128::from(block.0) << 64).div_ceil(u128::from(blocks.get()));
    let title = unspread(first as u64).to_be_bytes();
    let mut bytes = title.iter().chain(b"ami.kms/block-secret/1");
    std::array::from_fn(|_| bytes.next().copied().unwrap_or_default())
}
