//! The answer to a join request: all that a site needs to found its part of the domain. The sealed KEKs are
//! wrapped to the request's ceremony key by the sender's token, each block secret to its transport-block key;
//! the sender's signing key signs all of it.

use super::{
    BadPaper, Fingerprint, NAME_LEN_MAX, Oaep, RELEASE_LEN_MAX, SPKI_LEN_MAX, file, is_site_name,
};
use crate::{
    BlockCount, BlockNo, Epoch, RecordMac,
    audit::{Signature, is_signed},
    codec::{BadEncoding, Reader, put_bytes},
    date::date,
    numbered::Numbered as _,
    site::{
        peer::{Peer, PeerKind},
        role::{RoleRecord, SignedRoleRecord},
        tokens::{SignedSiteTokens, SiteTokens},
    },
};

/// A sealed KEK on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrappedKek {
    /// CKA_ID, at both sites.
    pub id: [u8; 16],
    /// By the sender's token, to the ceremony key.
    pub wrapped: Vec<u8>,
}

/// The sealed KEKs and their proofs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrappedKeks {
    /// The KEK of meters' KEKs.
    pub meter_kek: WrappedKek,
    /// The KEK of GUEKs and GBEKs of protection `HSM`.
    pub use_kek: WrappedKek,
    /// What only these two open, as the sender's domain record has it. Opaque here.
    pub canaries: Vec<u8>,
}

/// A version of a block's secret, wrapped to the recipient's transport-block key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrappedSecret {
    /// Of the secret.
    pub secret_version: u32,
    /// RSA-OAEP.
    pub wrapped: Vec<u8>,
}

/// All of a block that crosses with the bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnrolledBlock {
    /// In order of their versions, at least one.
    pub secrets: Vec<WrappedSecret>,
    /// Of the head that the block began with, under its first secret: proves what came out.
    pub first_head: RecordMac,
}

/// What the sender says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enrolment {
    /// The sender, as the recipient is to know it; its key domain is the recipient's, too.
    pub sender: Peer,
    /// The name of the recipient.
    pub recipient: String,
    /// What the recipient is from now on.
    pub kind: PeerKind,
    /// The epoch in which the domain was founded.
    pub founded: Epoch,
    /// The nonce of the request.
    pub nonce: [u8; 32],
    /// The fingerprint of the request.
    pub request: Fingerprint,
    /// What all is wrapped with.
    pub oaep: Oaep,
    /// The sealed KEKs.
    pub keks: WrappedKeks,
    /// All blocks of the domain, in order.
    pub blocks: Vec<EnrolledBlock>,
    /// All role records that the sender knows, in order.
    pub role_records: Vec<SignedRoleRecord>,
    /// The further sites of the domain, as the sender knows them: a replica has to know both that may write.
    pub others: Vec<Peer>,
    /// For a second token of the sender's own site: the site's tokens, as the sender's token signs them.
    pub same_site: Option<SignedSiteTokens>,
    /// The sender knew the recipient before: it lost its database, and may have written in epochs that nobody else saw.
    pub rebuilt: bool,
    /// The sender's release.
    pub release: String,
    /// Milliseconds since 1970.
    pub at_ms: u64,
}

/// A bundle and its signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedEnrolment {
    /// The bundle.
    pub enrolment: Enrolment,
    /// Of the sender's signing key, over [`Enrolment::message`].
    pub signature: Signature,
}

impl Enrolment {
    /// The most read-only replicas of a domain: each costs the site that writes a stream, and proofs.
    pub const REPLICAS_MAX: usize = 8;
    /// The further sites of a domain, beside sender and recipient, at most.
    pub const OTHERS_MAX: u32 = Self::REPLICAS_MAX as u32 + 1;

    /// What the recipient is, for people.
    pub fn what(&self) -> String {
        match self.same_site {
            Some(_) => format!("a second token of this very site, {}", self.kind),
            None => self.kind.to_string(),
        }
    }

    /// Whether the recipient was a site of the domain before: by the sender's word, or since it founded the domain or
    /// changed its role.
    pub fn is_of_rebuilt(&self) -> bool {
        let mut epochs = self.role_records.iter().map(|signed| signed.record.epoch);
        self.same_site.is_none()
            && (self.rebuilt || self.kind.owns(self.founded) || epochs.any(|it| self.kind.owns(it)))
    }

    /// The number of blocks of the domain.
    pub fn block_count(&self) -> Option<BlockCount> {
        BlockCount::new(u32::try_from(self.blocks.len()).ok()?).ok()
    }

    /// The blocks with their numbers.
    pub fn numbered_blocks(&self) -> impl Iterator<Item = (BlockNo, &EnrolledBlock)> {
        (0..).map(BlockNo).zip(&self.blocks)
    }

    /// The message that is signed, which is its encoding.
    pub fn message(&self) -> Vec<u8> {
        let Self { sender, recipient, kind, founded, nonce, request, oaep, keks, .. } = self;
        let label = match (&self.same_site, self.rebuilt) {
            (Some(_), _) => LABEL_SAME_SITE,
            (None, true) => LABEL_REBUILT,
            (None, false) => LABEL,
        };
        let mut out = label.to_vec();
        put_bytes(&mut out, &sender.message());
        put_bytes(&mut out, recipient.as_bytes());
        out.push(*kind as u8);
        out.extend_from_slice(&founded.0.to_be_bytes());
        out.extend_from_slice(nonce);
        out.extend_from_slice(&request.0);
        out.push(*oaep as u8);
        for kek in [&keks.meter_kek, &keks.use_kek] {
            out.extend_from_slice(&kek.id);
            put_bytes(&mut out, &kek.wrapped);
        }
        put_bytes(&mut out, &keks.canaries);
        self.put_lists(&mut out);
        put_bytes(&mut out, self.release.as_bytes());
        out.extend_from_slice(&self.at_ms.to_be_bytes());
        out
    }

    fn put_lists(&self, out: &mut Vec<u8>) {
        // A domain has at most 65,536 blocks; of more, and of more versions or records, no bundle is made.
        out.extend_from_slice(&(self.blocks.len() as u32).to_be_bytes());
        for block in &self.blocks {
            out.extend_from_slice(&(block.secrets.len() as u32).to_be_bytes());
            for secret in &block.secrets {
                out.extend_from_slice(&secret.secret_version.to_be_bytes());
                put_bytes(out, &secret.wrapped);
            }
            out.extend_from_slice(&block.first_head);
        }
        out.extend_from_slice(&(self.role_records.len() as u32).to_be_bytes());
        for record in &self.role_records {
            put_bytes(out, &record.record.message());
            out.extend_from_slice(&record.signature);
        }
        out.extend_from_slice(&(self.others.len() as u32).to_be_bytes());
        for other in &self.others {
            put_bytes(out, &other.message());
        }
        if let Some(SignedSiteTokens { tokens, signature }) = &self.same_site {
            put_bytes(out, &tokens.message());
            out.extend_from_slice(signature);
        }
    }

    fn check_sites(&self) -> Result<(), BadPaper> {
        if !is_site_name(&self.recipient) {
            return Err(BadPaper::Name);
        }
        for peer in [&self.sender].into_iter().chain(&self.others) {
            if !is_site_name(&peer.site) {
                return Err(BadPaper::Name);
            }
            if peer.transport_block.len() > SPKI_LEN_MAX {
                return Err(BadPaper::Encoding(WHAT));
            }
        }
        Ok(())
    }

    fn read(input: &mut Reader<'_>) -> Result<Self, BadEncoding> {
        let label = input.array::<{ LABEL.len() }>()?;
        if ![LABEL, LABEL_SAME_SITE, LABEL_REBUILT].contains(&&label) {
            return Err(BadEncoding);
        }
        let sender = Peer::decode(input.bytes()?)?;
        let recipient = text(input, NAME_LEN_MAX)?;
        let kind = PeerKind::from_number(input.u8()?).ok_or(BadEncoding)?;
        let founded = Epoch(input.u64()?);
        let (nonce, request) = (input.array()?, Fingerprint(input.array()?));
        let oaep = Oaep::from_number(input.u8()?).ok_or(BadEncoding)?;
        let kek = |input: &mut Reader<'_>| {
            Ok(WrappedKek { id: input.array()?, wrapped: bytes(input, WRAPPED_LEN_MAX)? })
        };
        let (meter_kek, use_kek) = (kek(input)?, kek(input)?);
        let canaries = bytes(input, CANARIES_LEN_MAX)?;
        let (blocks, role_records) = (blocks(input)?, role_records(input)?);
        let others = others(input)?;
        let same_site = (label == *LABEL_SAME_SITE).then(|| site_tokens(input)).transpose()?;
        Ok(Self {
            sender,
            recipient,
            kind,
            founded,
            nonce,
            request,
            oaep,
            keks: WrappedKeks { meter_kek, use_kek, canaries },
            blocks,
            role_records,
            others,
            same_site,
            rebuilt: label == *LABEL_REBUILT,
            release: text(input, RELEASE_LEN_MAX)?,
            at_ms: input.u64()?,
        })
    }
}

impl SignedEnrolment {
    /// The longest encoding, in bytes: of 65,536 blocks, each with a secret of RSA-3072, it is 27 MB.
    pub const LEN_MAX: usize = 64 << 20;

    /// The message, then the signature.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.enrolment.message();
        out.extend_from_slice(&self.signature);
        out
    }

    /// The bundle in these bytes, if all of them are one that the sender it names signed. That it is the sender
    /// whom people mean is told by the fingerprint alone.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadPaper> {
        let encoding = |_| BadPaper::Encoding(WHAT);
        if bytes.len() > Self::LEN_MAX {
            return Err(BadPaper::Encoding(WHAT));
        }
        let mut input = Reader::new(bytes);
        let enrolment = Enrolment::read(&mut input).map_err(encoding)?;
        let signature = input.array().map_err(encoding)?;
        input.end().map_err(encoding)?;
        enrolment.check_sites()?;
        if !is_signed(&enrolment.sender.signing, &enrolment.message(), &signature) {
            return Err(BadPaper::Signature);
        }
        Ok(Self { enrolment, signature })
    }

    /// What two people compare.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.encode())
    }

    /// The file: what it is, in clear, and then the bundle.
    pub fn to_file(&self) -> String {
        let Enrolment { sender, recipient, request, blocks, release, at_ms, .. } = &self.enrolment;
        let header = [
            ("from site", sender.site.clone()),
            ("to site", recipient.clone()),
            ("which is", self.enrolment.what()),
            ("key domain", hex::encode(sender.domain.0)),
            ("key blocks", blocks.len().to_string()),
            ("answers the request", request.to_string()),
            ("release", release.clone()),
            ("made", date(*at_ms)),
            ("fingerprint", self.fingerprint().to_string()),
        ];
        file::write(TITLE, &header, &self.encode())
    }

    /// The bundle of a file that [`SignedEnrolment::to_file`] wrote; every character of it counts.
    pub fn from_file(text: &str) -> Result<Self, BadPaper> {
        let bytes = file::read(TITLE, text, Self::LEN_MAX).ok_or(BadPaper::File(WHAT_FILE))?;
        let signed = Self::decode(&bytes)?;
        if signed.to_file() == text { Ok(signed) } else { Err(BadPaper::Header) }
    }
}

fn text(input: &mut Reader<'_>, len_max: usize) -> Result<String, BadEncoding> {
    let text = input.text()?;
    if text.len() > len_max { Err(BadEncoding) } else { Ok(text.to_owned()) }
}

fn bytes(input: &mut Reader<'_>, len_max: usize) -> Result<Vec<u8>, BadEncoding> {
    let bytes = input.bytes()?;
    if bytes.len() > len_max { Err(BadEncoding) } else { Ok(bytes.to_vec()) }
}

/// Each takes what it was read from: a count that lies ends at the end of the bytes.
fn blocks(input: &mut Reader<'_>) -> Result<Vec<EnrolledBlock>, BadEncoding> {
    let count = BlockCount::new(input.u32()?).map_err(|_| BadEncoding)?;
    (0..count.get()).map(|_| block(input)).collect()
}

fn block(input: &mut Reader<'_>) -> Result<EnrolledBlock, BadEncoding> {
    let versions = input.u32()?;
    let mut secrets: Vec<WrappedSecret> = Vec::new();
    for _ in 0..versions {
        let secret_version = input.u32()?;
        if secrets.last().is_some_and(|last| last.secret_version >= secret_version) {
            return Err(BadEncoding);
        }
        secrets.push(WrappedSecret { secret_version, wrapped: bytes(input, WRAPPED_LEN_MAX)? });
    }
    if secrets.is_empty() {
        return Err(BadEncoding);
    }
    Ok(EnrolledBlock { secrets, first_head: input.array()? })
}

fn role_records(input: &mut Reader<'_>) -> Result<Vec<SignedRoleRecord>, BadEncoding> {
    let count = input.u32()?;
    let record = |input: &mut Reader<'_>| {
        let record = RoleRecord::decode(input.bytes()?)?;
        Ok(SignedRoleRecord { record, signature: input.array()? })
    };
    (0..count).map(|_| record(input)).collect()
}

fn others(input: &mut Reader<'_>) -> Result<Vec<Peer>, BadEncoding> {
    let count = input.u32()?;
    if count > Enrolment::OTHERS_MAX {
        return Err(BadEncoding);
    }
    (0..count).map(|_| Peer::decode(input.bytes()?)).collect()
}

fn site_tokens(input: &mut Reader<'_>) -> Result<SignedSiteTokens, BadEncoding> {
    let tokens = SiteTokens::decode(input.bytes()?)?;
    Ok(SignedSiteTokens { tokens, signature: input.array()? })
}

const LABEL: &[u8; 19] = b"ami.kms/enrolment/2";
const LABEL_SAME_SITE: &[u8; 19] = b"ami.kms/enrolment/3";
/// A release that does not know it refuses the bundle, and founds no site that would take an epoch twice.
const LABEL_REBUILT: &[u8; 19] = b"ami.kms/enrolment/4";
const TITLE: &str = "ENROLMENT OF A SITE IN A KEY DOMAIN";
const WHAT: &str = "enrolment bundle";
const WHAT_FILE: &str = "the file of an enrolment bundle";
/// RSA-4096.
const WRAPPED_LEN_MAX: usize = 512;
const CANARIES_LEN_MAX: usize = 1024;
