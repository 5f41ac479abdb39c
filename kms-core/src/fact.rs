//! Facts of the domain: what a site has to know that is no meter's, and that must not be forgotten when the other one
//! goes on alone. Each is a record in the block that its name leads to, so it is MACed, counted in the block's head
//! and replicated as all records are. Two states of one fact merge by rule, and nobody has to decide.

use std::cmp::Ordering;

use sha2::{Digest as _, Sha256};

use crate::{
    BlockCount, BlockNo, SecuritySetup, SystemTitle,
    campaign::{Campaign, Part},
    codec::{BadEncoding, Reader, put_bytes},
};

mod groups;
mod secrets;

pub use groups::{BadGroupName, Group, GroupName, GroupValue, MEMBERS_MAX, Membership, ValueStage};
pub use secrets::{BlockSecrets, SecretStage, SecretsWish};

/// Files that one block remembers. No record goes away, and whatever grows has a bound: over the 4,096 blocks of a
/// domain that is room for two million.
pub const FILES_A_BLOCK: usize = 512;
/// Bytes of a list's number: RFC 5280 allows twenty.
pub const NUMBER_MAX: usize = 32;

/// The name of a fact among those of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FactName {
    /// The kind: the first byte of its record's key.
    pub kind: u8,
    /// The beginning of a hash.
    pub name: [u8; FactName::LEN],
}

impl FactName {
    /// Bytes of a name.
    pub const LEN: usize = 30;
    /// The kind of sealed import files.
    pub const FILE: u8 = 3;
    /// The kind of revocation lists.
    pub const LIST: u8 = 4;
    /// The kind of block secrets.
    pub const SECRETS: u8 = 5;
    /// The kind of wishes for their rotation.
    pub const WISH: u8 = 6;
    /// The kind of campaigns.
    pub const CAMPAIGN: u8 = 7;
    /// The kind of their members.
    pub const CAMPAIGN_PART: u8 = 8;

    /// The kind of broadcast groups.
    pub const GROUP: u8 = 9;
    /// The kind of memberships in them.
    pub const MEMBERSHIP: u8 = 10;

    /// The name of a sealed import file. The signer is a part of it, so that none can take another one's number away.
    pub fn of_file(signer: &[u8; 32], file_id: &[u8; 16]) -> Self {
        let hash = Sha256::new().chain_update(b"ami.kms/file/1").chain_update(signer);
        Self::of(Self::FILE, hash.chain_update(file_id).finalize().into())
    }

    /// The name of an authority's newest list.
    pub fn of_list(authority: &[u8; 32]) -> Self {
        let hash = Sha256::new().chain_update(b"ami.kms/list/1").chain_update(authority);
        Self::of(Self::LIST, hash.finalize().into())
    }

    /// The name of a block's secrets, which leads to that block.
    pub fn of_secrets(block: BlockNo, blocks: BlockCount) -> Self {
        Self { kind: Self::SECRETS, name: secrets::name_of(block, blocks) }
    }

    /// The name of the one wish that a domain has.
    pub fn of_wish() -> Self {
        Self { kind: Self::WISH, name: *b"ami.kms/rotate-block-secrets/1" }
    }

    /// The name of the campaign in a place.
    pub fn of_campaign(slot: u8) -> Self {
        let hash = Sha256::new().chain_update(b"ami.kms/campaign/1").chain_update([slot]);
        Self::of(Self::CAMPAIGN, hash.finalize().into())
    }

    /// The name of the members of a block, of the campaign in a place, that spread into a chunk: it leads to their block.
    pub fn of_campaign_part((block, blocks): (BlockNo, BlockCount), slot: u8, chunk: u8) -> Self {
        let mut name: [u8; Self::LEN] = secrets::name_of(block, blocks);
        for (to, from) in name.iter_mut().skip(8).zip(b"campaign-part\0\0\0\0\0\0\0") {
            *to = *from;
        }
        let [.., a, b] = &mut name;
        (*a, *b) = (slot, chunk);
        Self { kind: Self::CAMPAIGN_PART, name }
    }

    /// The name of a broadcast group.
    pub fn of_group(name: &GroupName) -> Self {
        let hash = Sha256::new().chain_update(b"ami.kms/group/1");
        Self::of(Self::GROUP, hash.chain_update(name.as_str()).finalize().into())
    }

    /// Its number in the audit log: its beginning.
    pub fn number(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.name;
        u64::from_be_bytes([a, b, c, d, e, f, g, h])
    }

    /// The name of a meter's membership with one of its setups, which leads to the meter's block.
    pub fn of_membership(title: &SystemTitle, setup: SecuritySetup) -> Self {
        Self { kind: Self::MEMBERSHIP, name: groups::name_of(title, setup) }
    }

    fn of(kind: u8, hash: [u8; 32]) -> Self {
        let mut name = [0; Self::LEN];
        for (to, from) in name.iter_mut().zip(hash) {
            *to = from;
        }
        Self { kind, name }
    }

    /// The block of its record, for as long as the domain lives.
    pub fn block(&self, blocks: BlockCount) -> BlockNo {
        let [a, b, c, d, e, f, g, h, ..] = self.name;
        blocks.block_of(&SystemTitle::new([a, b, c, d, e, f, g, h]))
    }
}

/// A sealed import file of which a site has taken lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcceptedFile {
    /// SHA-256 over the signer's public key.
    pub signer: [u8; 32],
    /// The file's number, as its signer gave it.
    pub file_id: [u8; 16],
    /// SHA-256 over its header, which binds all the rest of it.
    pub header: [u8; 32],
    /// When it was sealed; milliseconds since 1970.
    pub sealed_ms: u64,
    /// When its first lines were taken; milliseconds since 1970.
    pub taken_ms: u64,
}

/// The newest revocation list of an authority that a site of the domain has used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewestList {
    /// A hash over those who may speak for the authority.
    pub authority: [u8; 32],
    /// Its number, big-endian, without zeros in front; `None`: it has none.
    pub number: Option<Vec<u8>>,
    /// Its date; milliseconds since 1970.
    pub this_update_ms: u64,
    /// How often two people had the domain forget how new it was. What was remembered before counts no more.
    pub resets: u32,
}

/// A list can't be forgotten so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotForgotten {
    /// Another number is remembered.
    #[error("the number that is remembered is another one: look again")]
    Moved,
    /// The new number is no lower one, or none at all.
    #[error(
        "lists are to count again from a lower number on, of at most {NUMBER_MAX} bytes and without zeros in front"
    )]
    NotLower,
    /// It was done too often.
    #[error("it was done so often that it can't be done again")]
    TooOften,
}

/// A fact of the domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// A file that was taken.
    File(AcceptedFile),
    /// A revocation list that was used.
    List(NewestList),
    /// The secrets of one block.
    Secrets(BlockSecrets),
    /// That all of these are to be rotated.
    Wish(SecretsWish),
    /// A campaign.
    Campaign(Box<Campaign>),
    /// Some members of it.
    CampaignPart(Part),
    /// A broadcast group.
    Group(Group),
    /// A meter's membership in one.
    Membership(Membership),
}

impl Fact {
    /// Its name.
    pub fn name(&self) -> FactName {
        match self {
            Self::File(AcceptedFile { signer, file_id, .. }) => FactName::of_file(signer, file_id),
            Self::List(NewestList { authority, .. }) => FactName::of_list(authority),
            Self::Secrets(BlockSecrets { block, blocks, .. }) => {
                FactName::of_secrets(*block, *blocks)
            }
            Self::Wish(_) => FactName::of_wish(),
            Self::Campaign(campaign) => FactName::of_campaign(campaign.slot),
            Self::CampaignPart(Part { block, blocks, slot, chunk, .. }) => {
                FactName::of_campaign_part((*block, *blocks), *slot, *chunk)
            }
            Self::Group(Group { name, .. }) => FactName::of_group(name),
            Self::Membership(Membership { title, setup, .. }) => {
                FactName::of_membership(title, *setup)
            }
        }
    }

    /// Both in one: of a list the highest number and the latest date; of a file the one that was taken first, and of
    /// two that were taken at once always the same one, at whichever site. Facts of two names don't merge: the first stays.
    #[must_use]
    pub fn merged(&self, other: &Self) -> Self {
        match (self, other) {
            _ if self.name() != other.name() => self.clone(),
            (Self::List(a), Self::List(b)) => Self::List(a.merged(b)),
            (Self::File(a), Self::File(b)) => {
                let order = |file: &AcceptedFile| (file.taken_ms, file.header, file.sealed_ms);
                Self::File(if order(b) < order(a) { *b } else { *a })
            }
            (Self::Wish(a), Self::Wish(b)) if b.generation > a.generation => Self::Wish(*b),
            (Self::Campaign(a), Self::Campaign(b)) => Self::Campaign(Box::new(a.merged(b))),
            (Self::CampaignPart(a), Self::CampaignPart(b)) => Self::CampaignPart(a.merged(b)),
            (Self::Group(a), Self::Group(b)) => Self::Group(a.merged(b)),
            (Self::Membership(a), Self::Membership(b)) => Self::Membership(a.merged(b)),
            // A block is under the secret that it is under: another site's is no news of it.
            (
                Self::File(_)
                | Self::List(_)
                | Self::Secrets(_)
                | Self::Wish(_)
                | Self::Campaign(_)
                | Self::CampaignPart(_)
                | Self::Group(_)
                | Self::Membership(_),
                _,
            ) => self.clone(),
        }
    }

    /// The canonical bytes.
    pub fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::File(AcceptedFile { signer, file_id, header, sealed_ms, taken_ms }) => {
                out.push(FactName::FILE);
                out.extend_from_slice(signer);
                out.extend_from_slice(file_id);
                out.extend_from_slice(header);
                out.extend_from_slice(&sealed_ms.to_be_bytes());
                out.extend_from_slice(&taken_ms.to_be_bytes());
            }
            Self::List(NewestList { authority, number, this_update_ms, resets }) => {
                out.push(FactName::LIST);
                out.extend_from_slice(authority);
                out.extend_from_slice(&this_update_ms.to_be_bytes());
                // Most were never forgotten, and stand as they always did.
                out.push(u8::from(number.is_some()) | (u8::from(*resets > 0) << 1));
                if *resets > 0 {
                    out.extend_from_slice(&resets.to_be_bytes());
                }
                if let Some(number) = number {
                    put_bytes(out, number);
                }
            }
            Self::Secrets(secrets) => {
                out.push(FactName::SECRETS);
                secrets.put(out);
            }
            Self::Wish(SecretsWish { generation, asked_ms }) => {
                out.push(FactName::WISH);
                out.extend_from_slice(&generation.to_be_bytes());
                out.extend_from_slice(&asked_ms.to_be_bytes());
            }
            Self::Campaign(campaign) => {
                out.push(FactName::CAMPAIGN);
                campaign.put(out);
            }
            Self::CampaignPart(part) => {
                out.push(FactName::CAMPAIGN_PART);
                part.put(out);
            }
            Self::Group(group) => {
                out.push(FactName::GROUP);
                group.put(out);
            }
            Self::Membership(membership) => {
                out.push(FactName::MEMBERSHIP);
                membership.put(out);
            }
        }
    }

    /// The fact in `bytes`; refuses anything that [`Fact::put`] would not write.
    pub fn take(bytes: &[u8]) -> Result<Self, BadEncoding> {
        let mut input = Reader::new(bytes);
        let fact = match input.u8()? {
            FactName::FILE => Self::File(AcceptedFile {
                signer: input.array()?,
                file_id: input.array()?,
                header: input.array()?,
                sealed_ms: input.u64()?,
                taken_ms: input.u64()?,
            }),
            FactName::LIST => {
                let (authority, this_update_ms) = (input.array()?, input.u64()?);
                let flags = input.u8()?;
                let resets = if flags & 2 == 0 { 0 } else { input.u32()? };
                if flags > 3 || (flags & 2 != 0 && resets == 0) {
                    return Err(BadEncoding);
                }
                let number = (flags & 1 != 0).then(|| number(&mut input)).transpose()?;
                Self::List(NewestList { authority, number, this_update_ms, resets })
            }
            FactName::SECRETS => Self::Secrets(BlockSecrets::take(&mut input)?),
            FactName::WISH => {
                Self::Wish(SecretsWish { generation: input.u32()?, asked_ms: input.u64()? })
            }
            FactName::CAMPAIGN => Self::Campaign(Box::new(Campaign::take(&mut input)?)),
            FactName::CAMPAIGN_PART => Self::CampaignPart(Part::take(&mut input)?),
            FactName::GROUP => Self::Group(Group::take(&mut input)?),
            FactName::MEMBERSHIP => Self::Membership(Membership::take(&mut input)?),
            _ => return Err(BadEncoding),
        };
        input.end()?;
        Ok(fact)
    }
}

impl NewestList {
    /// The later of both, in number and in date. Of two that were not forgotten equally often, the one that was more often.
    #[must_use]
    pub fn merged(&self, other: &Self) -> Self {
        match self.resets.cmp(&other.resets) {
            Ordering::Less => return other.clone(),
            Ordering::Greater => return self.clone(),
            Ordering::Equal => {}
        }
        let order = |list: &Self| list.number.as_ref().map(|bytes| (bytes.len(), bytes.clone()));
        let number = if order(self) > order(other) { &self.number } else { &other.number };
        Self {
            authority: self.authority,
            number: number.clone(),
            this_update_ms: self.this_update_ms.max(other.this_update_ms),
            resets: self.resets,
        }
    }

    /// The memory once two people had `number` forgotten: lists count again from `from` on, whatever their date.
    pub fn forgotten(&self, number: &[u8], from: &[u8]) -> Result<Self, NotForgotten> {
        let known = self.number.as_deref().filter(|known| *known == number);
        let known = known.ok_or(NotForgotten::Moved)?;
        let is_shortest = from == [0] || from.first().is_some_and(|first| *first != 0);
        let order = |number: &[u8]| (number.len(), number.to_vec());
        if !is_shortest || order(from) >= order(known) {
            return Err(NotForgotten::NotLower);
        }
        let resets = self.resets.checked_add(1).ok_or(NotForgotten::TooOften)?;
        let (authority, number) = (self.authority, Some(from.to_vec()));
        Ok(Self { authority, number, this_update_ms: 0, resets })
    }
}

fn number(input: &mut Reader<'_>) -> Result<Vec<u8>, BadEncoding> {
    let bytes = input.bytes()?;
    let is_shortest = bytes == [0] || bytes.first().is_some_and(|first| *first != 0);
    (is_shortest && bytes.len() <= NUMBER_MAX).then(|| bytes.to_vec()).ok_or(BadEncoding)
}

#[cfg(test)]
mod tests;
