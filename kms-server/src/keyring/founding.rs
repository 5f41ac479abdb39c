//! Making blocks: each with a secret of the token's generator, sealed there, and a head over nothing.
//! All blocks of a key domain are made with it, so that a block that is missing later is always a
//! fault, and no two processes can give one version number to two secrets.

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use zeroize::Zeroizing;

use crate::{
    hsm::Hsm,
    store::{BlockChange, SealedSecret},
};
use kms_core::{
    BlockNo, BlockSecret, DomainRecord,
    block::{
        keys::{BlockKeys, SUBKEYS_LEN, SecretBinding},
        local::LocalKey,
    },
    counters::{allocator::Mark, mark::StoredMark},
    enrolment::bundle::{EnrolledBlock, WrappedSecret},
};

use super::error::KeyringError;

/// The first version of a block's secret.
const FIRST_SECRET: u32 = 1;

/// Blocks made at the same time: a token far away answers slowly, and to several at once.
const AT_ONCE: usize = 4;

/// Blocks that were made, and where their counters begin.
pub struct Made {
    /// Each without a record.
    pub blocks: Vec<BlockChange>,
    /// The mark of each.
    pub marks: Vec<StoredMark>,
}

/// Makes `blocks` of `domain`, none of which exists; `made` hears how many there are so far.
pub async fn make_blocks(
    hsm: &Hsm,
    domain: &DomainRecord,
    blocks: Vec<BlockNo>,
    mut made: impl FnMut(usize),
) -> Result<Made, KeyringError> {
    let mut done = Made { blocks: Vec::new(), marks: Vec::new() };
    let mut making = stream::iter(blocks).map(|block| make(hsm, domain, block)).buffered(AT_ONCE);
    while let Some((change, mark)) = making.try_next().await? {
        done.blocks.push(change);
        done.marks.push(mark);
        made(done.blocks.len());
    }
    Ok(done)
}

/// Seals the secrets of `blocks` of a domain that a site joins for its own token. Each block is found to be the
/// sender's by the MAC of the head that it began with; `made` hears how many there are so far.
pub async fn take_over_blocks(
    hsm: &Hsm,
    domain: &DomainRecord,
    blocks: &[(BlockNo, &EnrolledBlock)],
    mut made: impl FnMut(usize),
) -> Result<Vec<BlockChange>, KeyringError> {
    let mut done = Vec::with_capacity(blocks.len());
    let taking = blocks.iter().map(|(block, of_peer)| take_over(hsm, domain, *block, of_peer));
    let mut taking = stream::iter(taking).buffered(AT_ONCE);
    while let Some(change) = taking.try_next().await? {
        done.push(change);
        made(done.len());
    }
    Ok(done)
}

async fn take_over(
    hsm: &Hsm,
    domain: &DomainRecord,
    block: BlockNo,
    of_peer: &EnrolledBlock,
) -> Result<BlockChange, KeyringError> {
    let token = |said| KeyringError::Token { block, said };
    let damaged = |what: &str| KeyringError::Damaged { block, what: what.to_owned() };
    let kek_id = hsm.kek_in_use().id;
    let (mut seals, mut first) = (Vec::new(), None);
    for WrappedSecret { secret_version, wrapped } in &of_peer.secrets {
        let secret_version = *secret_version;
        let secret = hsm.receive_secret(wrapped.clone()).await.map_err(token)?;
        let binding = SecretBinding { domain: &domain.domain, block, secret_version };
        if first.is_none() {
            let mut subkeys = Zeroizing::new([0; SUBKEYS_LEN]);
            binding.derive_subkeys(&secret, &mut subkeys[..]);
            let keys = BlockKeys::new(domain.domain, &subkeys[..]);
            let keys = keys.ok_or_else(|| damaged("its subkeys are incomplete"))?;
            let head = keys.first_head(block, secret_version, domain.epoch);
            if head.mac != of_peer.first_head {
                return Err(damaged("its secret is not the one that the sender has"));
            }
            first = Some(head);
        }
        let sealed = hsm.seal_under(kek_id, binding.seal_aad(&kek_id), secret).await;
        let (_secret, sealed) = sealed.map_err(token)?;
        seals.push(SealedSecret { secret_version, kek_id, sealed });
    }
    let head = first.ok_or_else(|| damaged("the bundle has no secret of it"))?;
    Ok(BlockChange { expected: None, head, seals, records: Vec::new() })
}

async fn make(
    hsm: &Hsm,
    domain: &DomainRecord,
    block: BlockNo,
) -> Result<(BlockChange, StoredMark), KeyringError> {
    let token = |said| KeyringError::Token { block, said };
    let damaged = |what: &str| KeyringError::Damaged { block, what: what.to_owned() };
    let random = hsm.random(BlockSecret::LEN).await.map_err(token)?;
    let secret = BlockSecret::fill_with(|bytes| {
        if random.len() != bytes.len() {
            return Err(damaged("the token's generator gave too few bytes"));
        }
        bytes.copy_from_slice(&random);
        Ok(())
    })?;
    let binding = SecretBinding { domain: &domain.domain, block, secret_version: FIRST_SECRET };
    let kek_id = hsm.kek_in_use().id;
    let mut subkeys = Zeroizing::new([0; SUBKEYS_LEN]);
    binding.derive_subkeys(&secret, &mut subkeys[..]);
    let sealed = hsm.seal_under(kek_id, binding.seal_aad(&kek_id), secret).await;
    let (_secret, sealed) = sealed.map_err(token)?;
    let keys = BlockKeys::new(domain.domain, &subkeys[..]);
    let keys = keys.ok_or_else(|| damaged("its subkeys are incomplete"))?;
    let head = keys.first_head(block, FIRST_SECRET, domain.epoch);
    let local = LocalKey::of(&keys, &domain.site);
    let mark = StoredMark::sealed(Mark::first(block, domain.epoch), FIRST_SECRET, &local);
    let seals = vec![SealedSecret { secret_version: FIRST_SECRET, kek_id, sealed }];
    Ok((BlockChange { expected: None, head, seals, records: Vec::new() }, mark))
}
