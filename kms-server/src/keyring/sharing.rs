//! A key that several meters share: the token wraps it for others out of what is stored of it at one of them.

use kms_core::{Fingerprint, block::keys};

use super::{
    making::{KeyToMake, MadeValue, value},
    taking::{AtHand, BlockKeysAtHand, TakeError, Taker},
    writing::Change,
};
use crate::hsm::{MADE_PER_CALL_MAX, NotMade, ShareKey, TokenError, WantedKey};

/// The most times that the token is asked for keys that it garbles.
const ATTEMPTS_MAX: usize = 3;

/// A key of protection `MEMORY` that is there.
pub struct KeyToShare<'a> {
    /// The block that it is stored in.
    pub change: &'a Change,
    /// As it is stored there.
    pub wrapped: &'a [u8],
    /// Its identity.
    pub fingerprint: Fingerprint,
}

impl Taker {
    /// Has the token wrap a key for these meters, too: at most [`MADE_PER_CALL_MAX`]. All forms are of one value, which is
    /// the one that was named.
    pub async fn share_key(
        &self,
        of: &KeyToShare<'_>,
        wanted: &[KeyToMake<'_>],
    ) -> Result<Vec<Result<MadeValue, NotMade>>, TakeError> {
        let mut reason = "more meters than one call takes";
        let attempts = if wanted.len() <= MADE_PER_CALL_MAX { ATTEMPTS_MAX } else { 0 };
        for _ in 0..attempts {
            let job = self.sharing(of, wanted)?;
            let made = self.opener.hsm.share_key(job).await.map_err(TakeError::Token)?;
            if made.len() != wanted.len() {
                reason = "it answered for another number of keys";
                continue;
            }
            let made: Vec<_> = made.into_iter().map(|key| key.map(value)).collect();
            let places = wanted.iter().map(|key| (key.block, key.under));
            let values = made.iter().map(|key| key.as_ref().ok().map(|made| &made.stored));
            if are(&made, of.fingerprint) && self.open_as_said(places.zip(values))? {
                return Ok(made);
            }
            reason = "what it wraps opens as another key";
            tracing::warn!(reason, "the token garbled its answer; it is asked again");
        }
        Err(TakeError::Token(TokenError::Unreachable { reason: reason.to_owned() }))
    }

    fn sharing(
        &self,
        of: &KeyToShare<'_>,
        wanted: &[KeyToMake<'_>],
    ) -> Result<ShareKey, TakeError> {
        let mut blocks = BlockKeysAtHand::default();
        let from = blocks.at(&self.opener, AtHand::from(of.change))?;
        let mut keks: Vec<Vec<u8>> = Vec::new();
        let mut to = Vec::with_capacity(wanted.len());
        for KeyToMake { block, under, len, kek } in wanted {
            let under = blocks.under(&self.opener, *block, *under)?;
            to.push(WantedKey { len: *len, under, kek: place_in(&mut keks, kek) });
        }
        Ok(ShareKey {
            fingerprint_label: keys::fingerprint_label(&self.opener.domain.domain),
            wrap_keys: blocks.wrap_keys,
            keks,
            stored: (from, of.wrapped.to_vec()),
            fingerprint: of.fingerprint,
            to,
        })
    }
}

/// The place of a KEK among those of a call, each once.
fn place_in(keks: &mut Vec<Vec<u8>>, kek: &[u8]) -> usize {
    let place = keks.iter().position(|known| known == kek);
    place.unwrap_or_else(|| {
        keks.push(kek.to_vec());
        keks.len() - 1
    })
}

/// Whether all of them are this key.
fn are(made: &[Result<MadeValue, NotMade>], fingerprint: Fingerprint) -> bool {
    made.iter().flatten().all(|made| made.stored.fingerprint == fingerprint)
}
