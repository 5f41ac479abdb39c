//! The calls that this service makes to a token, in its own words.

use kms_core::{
    BlockSecret, ClearKey, SealedKek,
    audit::{PublicKey, Signature},
    site::keks::{Kek, KekId},
};

use super::{
    enrolling::{CeremonyKey, HandedKeks, NotTrusted},
    error::TokenError,
    import_key::ImportKey,
    making::{Made, MakeKeys},
    rsa_key::RsaKey,
    sharing::ShareKey,
    taking::{TakeKeys, Taken},
    terms::{GcmOpen, NotAuthentic, TokenStatus, WrappedKey},
};

/// Seals and opens block secrets under the site KEK (AES-256-GCM inside the token).
///
/// Every method of these traits may block for as long as the device takes: call through [`Hsm`](super::Hsm),
/// never from a task.
pub trait BlockSeals: Send + Sync + 'static {
    /// Seals `secret`; `place` (domain, block, version, KEK id) is bound as additional data.
    fn seal(&self, place: &[u8], secret: &BlockSecret) -> Result<Vec<u8>, TokenError>;

    /// Opens what [`BlockSeals::seal`] made for the same place. `Refused` if anything was changed;
    /// decided by a canary, since tokens report tampering and breakage with the same code.
    fn open(&self, place: &[u8], sealed: &[u8]) -> Result<BlockSecret, TokenError>;
}

/// Keys that only the token uses.
pub trait SealedKeys: Send + Sync + 'static {
    /// Wraps a key that came in clear (an import where the configuration allows it): RFC 3394.
    fn wrap(&self, under: SealedKek, key: &ClearKey) -> Result<Vec<u8>, TokenError>;

    /// Opens many APDUs under one key: unwraps it at most once, keeps it for the next call. The outer
    /// error says that nothing could be tried; the inner one that this APDU is not authentic.
    fn open_apdus(
        &self,
        key: &WrappedKey,
        apdus: &[GcmOpen],
    ) -> Result<Vec<Result<Vec<u8>, NotAuthentic>>, TokenError>;
}

/// The device itself: its generator, and whether it is well.
pub trait Device: Send + Sync + 'static {
    /// Fills `out` from the token's generator.
    fn random(&self, out: &mut [u8]) -> Result<(), TokenError>;

    /// Proves every KEK by its canary, reconnecting first if the connection is not sound.
    fn check(&self) -> Result<(), TokenError>;

    /// The state as it is known without asking the device.
    fn status(&self) -> TokenStatus;

    /// Sessions that are open for calls, without asking the device; `None` where there are none to
    /// count.
    fn sessions_open(&self) -> Option<usize>;
}

/// Signs what leaves the site: audit heads, reports, bundles.
pub trait Signs: Send + Sync + 'static {
    /// ECDSA P-256 over the SHA-256 of `message`, made with the site's signing key.
    fn sign(&self, message: &[u8]) -> Result<Signature, TokenError>;

    /// The public half of the signing key.
    fn public_key(&self) -> Result<PublicKey, TokenError>;
}

/// Takes keys over from a sealed file, inside the token.
pub trait ImportsKeys: Send + Sync + 'static {
    /// The public half of `transport-import`.
    fn import_key(&self) -> Result<ImportKey, TokenError>;

    /// Unwraps the file's key, and under it each key: for its fingerprint and check value, and to wrap
    /// it for storage. Everything made in the token is destroyed before this returns.
    ///
    /// The outer error is `Refused` where the file's key does not open; a bad blob is an error of its
    /// own and leaves the others alone.
    fn take_keys(&self, job: &TakeKeys) -> Result<Taken, TokenError>;
}

/// Makes keys for meters, inside the token.
pub trait MakesKeys: Send + Sync + 'static {
    /// Makes each key, identifies it, and wraps it under its meter's KEK and for storage. What is answered was
    /// checked: the stored form opens as the key, the meter's was made twice. Everything made in the token is
    /// destroyed before this returns.
    ///
    /// A KEK that does not open is an error of its own keys and leaves the others alone.
    fn make_keys(&self, job: &MakeKeys) -> Result<Made, TokenError>;

    /// The same with a key that there is: opened out of what is stored of it, and wrapped for other meters. `Refused` if
    /// that does not open; what opens as another key is no answer.
    fn share_key(&self, job: &ShareKey) -> Result<Made, TokenError>;
}

/// Hands keys on to the token of another site, and takes what that site hands on.
pub trait Enrols: Send + Sync + 'static {
    /// The public half of `transport-block`.
    fn transport_block_key(&self) -> Result<RsaKey, TokenError>;

    /// Wraps both sealed KEKs to the ceremony key of another site, inside the token. The inner error says that
    /// the security officer has not made this very key a trusted one.
    fn hand_over_keks(
        &self,
        to: &CeremonyKey,
    ) -> Result<Result<HandedKeks, NotTrusted>, TokenError>;

    /// Opens a block secret that was wrapped to `transport-block`. `Refused` if it was changed, or is for
    /// another key.
    fn receive_secret(&self, wrapped: &[u8]) -> Result<BlockSecret, TokenError>;
}

/// Makes, uses and destroys site KEKs. What is given here is what a token does that has one for good.
///
/// Every method may block for as long as the device takes, but [`SiteKeks::kek_in_use`] and [`SiteKeks::keks_that_open`].
pub trait SiteKeks: BlockSeals + Device {
    /// The one that seals are made under, and its proof.
    fn kek_in_use(&self) -> Kek {
        Kek { id: self.status().site_kek_id, proof: Vec::new() }
    }

    /// Those that seals are opened under: that one first.
    fn keks_that_open(&self) -> Vec<KekId> {
        vec![self.status().site_kek_id]
    }

    /// [`BlockSeals::seal`] under this KEK, which is one of them.
    fn seal_under(
        &self,
        kek: &KekId,
        place: &[u8],
        secret: &BlockSecret,
    ) -> Result<Vec<u8>, TokenError> {
        if self.status().site_kek_id == *kek {
            self.seal(place, secret)
        } else {
            Err(TokenError::unknown_kek(kek))
        }
    }

    /// [`BlockSeals::open`] under this KEK, which is one of them.
    fn open_under(
        &self,
        kek: &KekId,
        place: &[u8],
        sealed: &[u8],
    ) -> Result<BlockSecret, TokenError> {
        if self.status().site_kek_id == *kek {
            self.open(place, sealed)
        } else {
            Err(TokenError::unknown_kek(kek))
        }
    }

    /// Makes a site KEK of this name beside those that there are, or finds it made; its proof. It is used once
    /// [`SiteKeks::use_keks`] says so.
    fn make_kek(&self, id: &KekId) -> Result<Kek, TokenError> {
        Err(TokenError::unknown_kek(id))
    }

    /// From now on seals are made under `current`, and opened under the further ones besides; of those it does not have
    /// nothing is said. `Refused`, and nothing changes, if the token does not have `current`, or that is another key than its
    /// proof says.
    fn use_keks(&self, current: &Kek, _further: &[Kek]) -> Result<(), TokenError> {
        if self.status().site_kek_id == current.id {
            Ok(())
        } else {
            Err(TokenError::unknown_kek(&current.id))
        }
    }

    /// Destroys a site KEK that is not in use, or finds that there is none.
    fn destroy_kek(&self, id: &KekId) -> Result<(), TokenError> {
        Err(TokenError::unknown_kek(id))
    }
}

/// All that a token is to this service.
pub trait Token: SiteKeks + SealedKeys + ImportsKeys + MakesKeys + Signs + Enrols {}
impl<T: SiteKeks + SealedKeys + ImportsKeys + MakesKeys + Signs + Enrols> Token for T {}
