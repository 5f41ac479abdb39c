//! A block under another secret: the same records, wrapped, sealed and MACed anew, with numbers of their own. Whoever
//! has both secrets can do it, and see that it was done right; in clear a key is for the time of one step, on the stack.

use crate::{
    BlockNo, Epoch, Head, KeyRecord, Position, Protection, Record, RecordKey, RecordMac, Sequence,
    StoredRecord, SystemTitle,
    fact::{BlockSecrets, Fact, FactName},
};

use super::{
    accepting::{Adoption, NotAccepted, PeersBlock, check_descent},
    extending::{Extension, TooLong},
    keys::{BlockKeys, digest},
    lineage::Lineage,
    returning::{NotReturned, Return, bring_back_under_any},
    verified::{Refused, Verified},
};

/// The subkeys of one version of a block's secret.
#[derive(Clone, Copy)]
pub struct Under<'a> {
    /// The subkeys.
    pub keys: &'a BlockKeys,
    /// The version.
    pub version: u32,
}

/// The reason why a record, and so its block, can't come under another secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotRewritten {
    /// What was changed outside this service can't be MACed anew. The way out is to bury it.
    #[error(
        "{0} of its records were changed outside this service: delete or import their meters anew first"
    )]
    Damaged(usize),
    /// Nobody asked for all of it: a fault.
    #[error("not all of its records were read")]
    InPart,
    /// It may have keys that this release does not see.
    #[error("{0} is a record that this release can't read: upgrade this server first")]
    Unknown(RecordKey),
    /// The key is lost already.
    #[error("{0} has a key that does not open under the present secret")]
    DoesNotOpen(RecordKey),
    /// No room in its encoding.
    #[error(transparent)]
    TooLong(#[from] TooLong),
}

/// The MAC that shows who has the former secret of a block that the new one is its successor: only who has both can
/// make it.
pub fn link(block: BlockNo, from: Under<'_>, to: Under<'_>) -> RecordMac {
    let place = [block.0.to_be_bytes(), from.version.to_be_bytes(), to.version.to_be_bytes()];
    let place = place.concat();
    let check = to.keys.cmac(&[b"ami.kms/secret-check/1".as_slice(), &place].concat());
    from.keys.cmac(&[b"ami.kms/secret-link/1".as_slice(), &place, &check].concat())
}

/// The version of the secret that the site of this parity makes next: above all that are known, and of its parity, so
/// that two sites that both believe to write never give one number to two secrets.
pub fn next_version(known: impl IntoIterator<Item = u32>, even: bool) -> Option<u32> {
    let next = known.into_iter().max().unwrap_or(0).checked_add(1)?;
    if (next % 2 == 0) == even { Some(next) } else { next.checked_add(1) }
}

/// All of a block under another secret, each record with a number of its own; `fact` says so, in the place of the fact
/// that was there. With them, what each is, in the same order.
pub fn rewrite(
    base: &Verified,
    (from, to): (Under<'_>, Under<'_>),
    fact: &BlockSecrets,
    epoch: Epoch,
) -> Result<(Extension, Vec<Record>), NotRewritten> {
    if !base.damaged().is_empty() {
        return Err(NotRewritten::Damaged(base.damaged().len()));
    }
    if !base.is_whole() {
        return Err(NotRewritten::InPart);
    }
    let block = base.block();
    let own = RecordKey::fact(&FactName::of_secrets(fact.block, fact.blocks));
    let mut news = Vec::with_capacity(base.records.len() + 1);
    for record in base.records.iter().filter(|record| record.key != own) {
        news.push(rewrapped(record, from, to)?);
    }
    news.push(Record::Fact(Fact::Secrets(fact.clone())));
    news.sort_by_key(Record::key);
    let mut position = Position { epoch, sequence: base.head.position.sequence };
    let (mut records, mut scratch) = (Vec::with_capacity(news.len()), Vec::new());
    for record in &news {
        position.sequence = Sequence(position.sequence.0 + 1);
        records.push(sealed(block, record, position, to, &mut scratch)?);
    }
    let mut head = Head {
        block,
        secret_version: to.version,
        position,
        count: records.len() as u32,
        digest: digest(records.iter().map(|record| &record.mac)),
        mac: [0; 16],
    };
    head.mac = to.keys.head_mac(&head);
    Ok((Extension { head, records }, news))
}

/// A record that is to be set aside, as the site with the other secret would have it: in its place, under that secret.
pub fn translated(
    block: BlockNo,
    record: &StoredRecord,
    (from, to): (Under<'_>, Under<'_>),
) -> Result<StoredRecord, NotRewritten> {
    let read = rewrapped(record, from, to)?;
    sealed(block, &read, record.position, to, &mut Vec::new())
}

fn sealed(
    block: BlockNo,
    record: &Record,
    position: Position,
    to: Under<'_>,
    scratch: &mut Vec<u8>,
) -> Result<StoredRecord, NotRewritten> {
    let key = record.key();
    let body = record.encode().map_err(|why| TooLong { key, why })?;
    let secret_version = to.version;
    let mut stored = StoredRecord { key, position, secret_version, body, mac: [0; 16] };
    stored.mac = to.keys.record_mac(block, &stored, scratch);
    Ok(stored)
}

/// What a record says, its keys wrapped anew.
fn rewrapped(
    stored: &StoredRecord,
    from: Under<'_>,
    to: Under<'_>,
) -> Result<Record, NotRewritten> {
    let unknown = NotRewritten::Unknown(stored.key);
    let mut record = Record::decode(&stored.body).map_err(|_| unknown)?;
    if record.key() != stored.key {
        return Err(unknown);
    }
    if let Record::Meter(meter) = &mut record {
        let title = meter.system_title;
        for key in meter.keys.iter_mut().filter(|key| is_under_block(key)) {
            rewrap_key(&title, key, from, to).ok_or(NotRewritten::DoesNotOpen(stored.key))?;
        }
    }
    Ok(record)
}

/// Whether a key is wrapped under its block's secret, and not under a KEK of the token; of one that was destroyed
/// nothing is there.
fn is_under_block(key: &KeyRecord) -> bool {
    key.protection == Protection::Memory && !key.wrapped.is_empty()
}

fn rewrap_key(
    title: &SystemTitle,
    key: &mut KeyRecord,
    from: Under<'_>,
    to: Under<'_>,
) -> Option<()> {
    if key.kind.is_cipher_key() {
        key.wrapped = from.keys.rewrap_key(&key.wrapped, to.keys).ok()?;
        return Some(());
    }
    let secret = from.keys.open_secret(title, &key.id, &key.wrapped).ok()?;
    let nonce = to.keys.nonce_for(&key.id, &key.wrapped);
    key.wrapped = to.keys.seal_secret(title, &key.id, &secret, nonce).ok()?;
    // Its identity is a MAC of the block's.
    key.fingerprint = to.keys.secret_fingerprint(title, &secret);
    Some(())
}

/// Whether two records say the same, whatever secret their keys are under: who wrapped them anew has changed nothing.
pub fn say_the_same(one: &Record, other: &Record) -> bool {
    match (one, other) {
        (Record::Fact(Fact::Secrets(_)), Record::Fact(Fact::Secrets(_))) => true,
        (Record::Meter(one), Record::Meter(other)) => {
            let bare = |meter: &crate::MeterRecord| {
                let mut meter = meter.clone();
                for key in meter.keys.iter_mut().filter(|key| is_under_block(key)) {
                    key.wrapped.clear();
                    if !key.kind.is_cipher_key() {
                        key.fingerprint = crate::Fingerprint([0; 16]);
                    }
                }
                meter
            };
            bare(one) == bare(other)
        }
        _ => one == other,
    }
}

/// Brings our block back to the peer's where one of the two was rewritten since they parted. What was only wrapped anew
/// is not set aside; what is, comes under the peer's secret, so that the site that writes can read it and decide.
pub fn bring_back_rewritten(
    ours: &Verified,
    theirs: Verified,
    lineage: &Lineage,
    both: (Under<'_>, Under<'_>),
) -> Result<Return, NotReturned> {
    let there = theirs.clone();
    let mut back = bring_back_under_any(ours, theirs, lineage)?;
    let read = |record: &StoredRecord| Record::decode(&record.body).ok();
    let is_news = |record: &StoredRecord| match (read(record), there.stored(&record.key)) {
        (Some(ours), Some(theirs)) => read(theirs).is_none_or(|it| !say_the_same(&ours, &it)),
        _ => true,
    };
    back.set_aside.retain(|record| ours.is_damaged(&record.key) || is_news(record));
    for record in back.set_aside.iter_mut().filter(|record| !ours.is_damaged(&record.key)) {
        // What can't be translated stays as it is: kept, and read by nobody.
        if let Ok(translated) = translated(ours.block(), record, both) {
            *record = translated;
        }
    }
    Ok(back)
}

/// Whether our block came under its secret where the peer's lineage has nothing of it.
pub fn was_rewritten_apart(ours: &Verified, lineage: &Lineage) -> bool {
    let is_it = |record: &&StoredRecord| {
        record.key.as_bytes().first() == Some(&FactName::SECRETS) && !lineage.has(record.position)
    };
    ours.authentic().any(|record| is_it(&record))
}

/// Takes over a peer's block that came under another secret, `keys`, than ours. It has to be all of it, and each of its
/// records is new here: a rewritten block leaves none as it was.
pub fn accept_rewritten(
    ours: &Verified,
    keys: &BlockKeys,
    theirs: PeersBlock,
) -> Result<Adoption, NotAccepted> {
    let here = ours.mark();
    if theirs.head.block != here.block {
        return Err(NotAccepted::Head);
    }
    let position = theirs.head.position;
    if position < here.position {
        return Err(NotAccepted::Behind { ours: here.position, theirs: position });
    }
    if position == here.position {
        return Err(NotAccepted::Forked(position));
    }
    check_descent(&here, &theirs)?;
    let PeersBlock { head, mut records, promoted_at: _ } = theirs;
    records.sort_by_key(|record| record.key);
    let theirs = Verified::of_any_age(head, records, keys).map_err(|refused| match refused {
        Refused::Head => NotAccepted::Head,
        _ => NotAccepted::Incomplete(position),
    })?;
    if let Some(key) = theirs.damaged().first() {
        return Err(NotAccepted::Record(*key));
    }
    let mut gone = Vec::new();
    for old in &ours.records {
        match theirs.stored(&old.key) {
            Some(new) if new.position > old.position || ours.is_damaged(&old.key) => {}
            Some(new) => {
                let (key, ours, theirs) = (old.key, old.position, new.position);
                return Err(NotAccepted::OlderRecord { key, ours, theirs });
            }
            // What is damaged here may never have been there; what is authentic was.
            None if ours.is_damaged(&old.key) => gone.push(old.key),
            None => return Err(NotAccepted::Incomplete(position)),
        }
    }
    let Verified { head, mut records, .. } = theirs;
    records.sort_by_key(|record| record.position);
    Ok(Adoption { head, records, gone })
}

#[cfg(test)]
#[path = "rotating_tests.rs"]
mod tests;
