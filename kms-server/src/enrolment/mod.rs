//! Another site is enrolled: what it needs of this key domain is wrapped for its token, signed, and given out;
//! its keys are known here from then on. Only the site that writes enrols.
//!
//! What is secret never lies here in clear but for one thing: a block's secret, between the token that opens it
//! and the public key that it is wrapped to, in memory that is wiped.

mod error;
mod peers;

use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::Mutex;

use crate::{
    hsm::{CeremonyKey, Hsm, OaepHash, RsaKey},
    keyring::{Roles, ours},
    store::{AuditedStore, ReadStore, StoredBlock},
};
use kms_core::{
    BlockNo, DomainRecord, Epoch,
    audit::{AuditOutcome, AuditedCall, Detail, PublicKey, SiteKeys, Subject},
    block::keys::{BlockKeys, SUBKEYS_LEN, SecretBinding},
    enrolment::{
        Fingerprint, Oaep,
        bundle::{
            EnrolledBlock, Enrolment, SignedEnrolment, WrappedKek, WrappedKeks, WrappedSecret,
        },
        request::{JoinRequest, SignedRequest},
    },
    ports::Clock,
    site::{
        admission::is_of_former,
        peer::{EnrolledIn, FurtherTokens, Peer, PeerKind, SignedPeer},
        role::SignedRoleRecord,
        tokens::{SignedSiteTokens, SiteTokens, TokenId},
    },
};
use zeroize::Zeroizing;

pub use error::EnrolError;

/// Blocks whose secrets are wrapped at the same time.
const AT_ONCE: usize = 4;

/// What somebody asks for who enrols a site.
#[derive(Clone, Debug)]
pub struct Enrolling {
    /// The join request, encoded.
    pub request: Vec<u8>,
    /// Its fingerprint, as people compared it.
    pub fingerprint: Fingerprint,
    /// A site of that name is known, and its keys are replaced.
    pub replace: bool,
}

/// How long a bundle is kept for who asks once more, since the answer did not reach him. Milliseconds.
const KEPT_MS: u64 = 15 * 60 * 1_000;

/// The bundle that was made last: one, in memory. Nothing in it is secret to who may ask for it.
#[derive(Default)]
pub struct Kept(Mutex<Option<KeptBundle>>);

struct KeptBundle {
    request: Fingerprint,
    replace: bool,
    epoch: Epoch,
    at_ms: u64,
    bundle: SignedEnrolment,
}

/// The part of the service that enrols sites.
pub struct Enroller {
    /// This site.
    pub domain: DomainRecord,
    /// Its token.
    pub hsm: Hsm,
    /// Where its blocks and peers are read.
    pub store: Arc<dyn ReadStore>,
    /// Where a peer is written, with what is to be said of it.
    pub audited: Arc<dyn AuditedStore>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Whether this site writes.
    pub roles: Arc<Roles>,
    /// For who asks once more.
    pub kept: Kept,
}

/// A request that was found good.
struct Good {
    request: JoinRequest,
    fingerprint: Fingerprint,
    ceremony: RsaKey,
    transport_block: RsaKey,
    oaep: OaepHash,
}

impl Good {
    /// A request that asks for what can be, if its keys can be wrapped to.
    fn of(request: JoinRequest, fingerprint: Fingerprint) -> Result<Self, EnrolError> {
        let number = |spki: &[u8]| RsaKey::from_der(spki).map_err(EnrolError::PublicKey);
        let (ceremony, transport_block) =
            (number(&request.ceremony)?, number(&request.transport_block)?);
        if ceremony == transport_block {
            return Err(EnrolError::Request("its ceremony key is its transport key".to_owned()));
        }
        let oaep = match request.oaep {
            Oaep::Sha1 => OaepHash::Sha1,
            Oaep::Sha256 => OaepHash::Sha256,
        };
        Ok(Self { request, fingerprint, ceremony, transport_block, oaep })
    }
}

impl Enroller {
    /// Enrols the site that asks: refuses, or writes the peer and gives the bundle for it. It takes a slow token longer
    /// than a caller waits: who asks for the same once more waits for what is under way, and gets that bundle.
    pub async fn enrol(
        &self,
        call: &AuditedCall,
        asked: &Enrolling,
    ) -> Result<SignedEnrolment, EnrolError> {
        let good = self.check(asked)?;
        let mut kept = self.kept.0.lock().await;
        // By the signed records: what the database says besides can take the right to write away, and not give it.
        let row = self.store.role().await?;
        let writes = row.writes && self.roles.look().await.is_ok_and(|standing| standing.writes());
        if !writes && !good.request.same_site {
            return Err(EnrolError::NotPrimary);
        }
        let signing = self.hsm.public_key().await?;
        let own = self.hsm.site_keys_with(signing);
        let rows = self.check_peers(&good.request, &own, asked.replace).await?;
        let peers: Vec<Peer> = rows.iter().map(|row| row.peer.clone()).collect();
        let is_same = |kept: &&KeptBundle| {
            let young = self.clock.unix_ms().saturating_sub(kept.at_ms) < KEPT_MS;
            (kept.request, kept.replace, kept.epoch) == (good.fingerprint, asked.replace, row.epoch)
                && young
        };
        if let Some(same) = kept.as_ref().filter(is_same) {
            self.note(call, (&good.request, asked.replace), &rows).await?;
            return Ok(same.bundle.clone());
        }
        // Before anything is wrapped: what somebody changed in the database is not handed on.
        let (mut role_records, mut others, mut same_site) = (Vec::new(), Vec::new(), None);
        if good.request.same_site {
            same_site = Some(self.list_with(signing, &good.request).await?);
        } else {
            others.extend(peers.iter().filter(|peer| peer.site != good.request.site).cloned());
            role_records = self.role_records(&own, &peers).await?;
        }
        let enrolment = self.enrolment(&good, signing).await?;
        let is_known = |peer: &Peer| peer.site == good.request.site;
        // Who asks once more with the request of the bundle that was made last has not joined with it yet.
        let rebuilt = match kept.as_ref().filter(|kept| kept.request == good.fingerprint) {
            Some(before) => before.bundle.enrolment.rebuilt,
            None => same_site.is_none() && peers.iter().any(is_known),
        };
        let mut enrolment = Enrolment { role_records, others, same_site, rebuilt, ..enrolment };
        enrolment.sender.enrolled_in = Some(EnrolledIn { first: row.epoch, last: row.epoch });
        let signature = self.hsm.sign(enrolment.message()).await?;
        let signed = SignedEnrolment { enrolment, signature };
        // As the other site will read it.
        SignedEnrolment::decode(&signed.encode()).map_err(EnrolError::Unreadable)?;
        self.note(call, (&good.request, asked.replace), &rows).await?;
        *kept = Some(KeptBundle {
            request: good.fingerprint,
            replace: asked.replace,
            epoch: row.epoch,
            at_ms: self.clock.unix_ms(),
            bundle: signed.clone(),
        });
        Ok(signed)
    }

    /// What the request says, held against what people compared, and against this site.
    fn check(&self, asked: &Enrolling) -> Result<Good, EnrolError> {
        let found = Fingerprint::of(&asked.request);
        if found != asked.fingerprint {
            return Err(EnrolError::Fingerprint { confirmed: asked.fingerprint, found });
        }
        let request = SignedRequest::decode(&asked.request)?.request;
        let bad = |why: &str| Err(EnrolError::Request(why.to_owned()));
        if request.same_site {
            return self.check_token(request, found);
        }
        if request.site == self.domain.site {
            return bad("it names this very site: give the joining one a name of its own");
        }
        match request.kind {
            PeerKind::Replica => {}
            PeerKind::Even | PeerKind::Odd if request.kind == self.domain.kind => {
                return bad(
                    "it wants the epochs of this site's parity: set [site] even at the joining site to the \
                     other one",
                );
            }
            PeerKind::Even | PeerKind::Odd => {}
        }
        Good::of(request, found)
    }

    /// A request of a second token of this very site.
    fn check_token(&self, request: JoinRequest, found: Fingerprint) -> Result<Good, EnrolError> {
        let bad = |why: &str| Err(EnrolError::Request(why.to_owned()));
        if request.site != self.domain.site || request.kind != self.domain.kind {
            return bad("it is for a second token of another site: enrol it there");
        }
        if !self.hsm.token_lists().is_empty() {
            return bad("this site has two tokens already, and opens its database with either");
        }
        Good::of(request, found)
    }

    /// The tokens of this site with the one that asks, as our token signs them.
    async fn list_with(
        &self,
        own: PublicKey,
        request: &JoinRequest,
    ) -> Result<SignedSiteTokens, EnrolError> {
        if own == request.signing {
            return Err(EnrolError::Request("it is of this very token".to_owned()));
        }
        let tokens = SiteTokens {
            domain: self.domain.domain,
            site: self.domain.site.clone(),
            number: self.clock.unix_ms().clamp(SiteTokens::OF_TWO, SiteTokens::NUMBER_MAX),
            signing: vec![own, request.signing],
            canaries: self.domain.canaries.clone(),
        };
        let signature = self.hsm.sign(tokens.message()).await?;
        Ok(SignedSiteTokens { tokens, signature })
    }

    /// The role records of the domain, each with the signature of its epoch's site: the other site takes its own on
    /// our word, and who writes to the database has none.
    async fn role_records(
        &self,
        own: &SiteKeys,
        peers: &[Peer],
    ) -> Result<Vec<SignedRoleRecord>, EnrolError> {
        let records = self.store.role_records().await?;
        for signed in &records {
            let epoch = signed.record.epoch;
            let ours = self.domain.kind.owns(epoch);
            let mut of_peer = peers.iter().filter(|peer| peer.kind.owns(epoch));
            let is_authentic = signed.record.domain == self.domain.domain
                && match ours {
                    true => signed.is_signed_by(own),
                    false => {
                        of_peer.any(|peer| signed.is_signed_by(&peer.keys()))
                            || is_of_former(peers, signed)
                    }
                };
            if !is_authentic {
                return Err(EnrolError::Damaged(format!("the role record of epoch {}", epoch.0)));
            }
        }
        Ok(records)
    }

    async fn enrolment(&self, good: &Good, signing: PublicKey) -> Result<Enrolment, EnrolError> {
        let to = CeremonyKey::of(&good.fingerprint, good.ceremony.clone(), good.oaep);
        let handed = self.hsm.hand_over_keks(to).await??;
        let transport_block = self.hsm.transport_block_key().await?.to_der();
        let blocks = (0..self.domain.blocks.get()).map(BlockNo);
        let blocks: Vec<EnrolledBlock> = stream::iter(blocks)
            .map(|block| self.wrap_block(block, good))
            .buffered(AT_ONCE)
            .try_collect()
            .await?;
        let kek = |kek: crate::hsm::HandedKek| WrappedKek { id: kek.id, wrapped: kek.wrapped };
        let at_ms = self.clock.unix_ms();
        Ok(Enrolment {
            sender: Peer {
                domain: self.domain.domain,
                site: self.domain.site.clone(),
                kind: self.domain.kind,
                signing,
                transport_block,
                enrolled_ms: at_ms,
                former: Vec::new(),
                enrolled_in: None,
                tokens: self.further_tokens(&signing),
            },
            recipient: good.request.site.clone(),
            kind: good.request.kind,
            founded: self.domain.epoch,
            nonce: good.request.nonce,
            request: good.fingerprint,
            oaep: good.request.oaep,
            keks: WrappedKeks {
                meter_kek: kek(handed.meter_kek),
                use_kek: kek(handed.use_kek),
                canaries: handed.canaries,
            },
            blocks,
            role_records: Vec::new(),
            others: Vec::new(),
            same_site: None,
            rebuilt: false,
            release: env!("CARGO_PKG_VERSION").to_owned(),
            at_ms,
        })
    }

    /// The tokens of this site beside the one with this key.
    fn further_tokens(&self, own: &PublicKey) -> Option<FurtherTokens> {
        let SiteTokens { number, signing, .. } = self.hsm.token_lists().pop()?.tokens;
        let signing = signing.into_iter().filter(|key| key != own).collect();
        Some(FurtherTokens { number, signing })
    }

    /// Every version of a block's secret, wrapped for the other site.
    async fn wrap_block(&self, block: BlockNo, good: &Good) -> Result<EnrolledBlock, EnrolError> {
        let damaged = |what: &str| EnrolError::Damaged(format!("block {block}: {what}"));
        let stored: Option<StoredBlock> = self.store.block(block).await?;
        let stored = stored.ok_or_else(|| damaged("it is missing"))?;
        let seals = ours(&self.hsm, &stored.seals);
        let (mut secrets, mut first_head) = (Vec::new(), None);
        for seal in seals {
            let secret_version = seal.secret_version;
            let domain = &self.domain.domain;
            let place = SecretBinding { domain, block, secret_version };
            let aad = place.seal_aad(&seal.kek_id);
            let secret = self.hsm.open_under(seal.kek_id, aad, seal.sealed).await?;
            if first_head.is_none() {
                let mut subkeys = Zeroizing::new([0; SUBKEYS_LEN]);
                place.derive_subkeys(&secret, &mut subkeys[..]);
                let keys = BlockKeys::new(self.domain.domain, &subkeys[..]);
                let keys = keys.ok_or_else(|| damaged("its subkeys are incomplete"))?;
                first_head = Some(keys.first_head(block, secret_version, self.domain.epoch).mac);
            }
            let wrapped = good.transport_block.wrap_secret(good.oaep, &secret);
            secrets.push(WrappedSecret {
                secret_version,
                wrapped: wrapped.map_err(EnrolError::NotWrapped)?,
            });
        }
        let first_head = first_head.ok_or_else(|| damaged("it has no seal for this token"))?;
        Ok(EnrolledBlock { secrets, first_head })
    }

    /// What is kept of it here: another site from now on; of a second token, that it was let in. The token itself writes
    /// the rest into this site's database.
    async fn note(
        &self,
        call: &AuditedCall,
        (request, replace): (&JoinRequest, bool),
        known: &[SignedPeer],
    ) -> Result<(), EnrolError> {
        if !request.same_site {
            return self.put_peer(call, (request, replace), known).await;
        }
        let entry = call.entry(self.clock.unix_ms(), Subject::NONE, AuditOutcome::Done);
        let entry = entry.with(Detail::PeerKey, beginning(&request.signing));
        Ok(self.audited.commit(Vec::new(), vec![entry]).await?)
    }
}

/// The beginning of SHA-256 over a key, for the audit log.
fn beginning(key: &PublicKey) -> u64 {
    u64::from_be_bytes(TokenId::of(key).0)
}
