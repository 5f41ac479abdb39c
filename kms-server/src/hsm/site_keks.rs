//! Several site KEKs in one token, while one takes the place of another.

use kms_core::{
    BlockSecret,
    site::keks::{Kek, KekId},
};

use super::{
    door::Hsm,
    error::TokenError,
    figures::Operation,
    traits::{BlockSeals, Device},
};

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
        if self.status().site_kek_id == *kek { self.seal(place, secret) } else { Err(unknown(kek)) }
    }

    /// [`BlockSeals::open`] under this KEK, which is one of them.
    fn open_under(
        &self,
        kek: &KekId,
        place: &[u8],
        sealed: &[u8],
    ) -> Result<BlockSecret, TokenError> {
        if self.status().site_kek_id == *kek { self.open(place, sealed) } else { Err(unknown(kek)) }
    }

    /// Makes a site KEK of this name beside those that there are, or finds it made; its proof. It is used once
    /// [`SiteKeks::use_keks`] says so.
    fn make_kek(&self, id: &KekId) -> Result<Kek, TokenError> {
        Err(unknown(id))
    }

    /// From now on seals are made under `current`, and opened under the further ones besides; of those it does not have
    /// nothing is said. `Refused`, and nothing changes, if the token does not have `current`, or that is another key than its
    /// proof says.
    fn use_keks(&self, current: &Kek, _further: &[Kek]) -> Result<(), TokenError> {
        if self.status().site_kek_id == current.id { Ok(()) } else { Err(unknown(&current.id)) }
    }

    /// Destroys a site KEK that is not in use, or finds that there is none.
    fn destroy_kek(&self, id: &KekId) -> Result<(), TokenError> {
        Err(unknown(id))
    }
}

/// No such KEK is in use here.
pub(super) fn unknown(id: &KekId) -> TokenError {
    let source = format!("it uses no site KEK with id {}", hex::encode(id)).into();
    TokenError::Refused { operation: "use a site KEK", source }
}

impl Hsm {
    /// [`SiteKeks::kek_in_use`]: never waits.
    pub fn kek_in_use(&self) -> Kek {
        self.token().kek_in_use()
    }

    /// [`SiteKeks::keks_that_open`]: never waits.
    pub fn keks_that_open(&self) -> Vec<KekId> {
        self.token().keks_that_open()
    }

    /// [`SiteKeks::seal_under`]; gives the secret back beside its seal.
    pub async fn seal_under(
        &self,
        kek: KekId,
        place: Vec<u8>,
        secret: BlockSecret,
    ) -> Result<(BlockSecret, Vec<u8>), TokenError> {
        self.pass(Operation::Seal, move |token| {
            token.seal_under(&kek, &place, &secret).map(|sealed| (secret, sealed))
        })
        .await
    }

    /// [`SiteKeks::open_under`].
    pub async fn open_under(
        &self,
        kek: KekId,
        place: Vec<u8>,
        sealed: Vec<u8>,
    ) -> Result<BlockSecret, TokenError> {
        self.pass(Operation::Open, move |token| token.open_under(&kek, &place, &sealed)).await
    }

    /// [`SiteKeks::make_kek`].
    pub async fn make_kek(&self, id: KekId) -> Result<Kek, TokenError> {
        self.pass(Operation::MakeKek, move |token| token.make_kek(&id)).await
    }

    /// [`SiteKeks::use_keks`].
    pub async fn use_keks(&self, current: Kek, further: Vec<Kek>) -> Result<(), TokenError> {
        self.pass(Operation::UseKeks, move |token| token.use_keks(&current, &further)).await
    }

    /// [`SiteKeks::destroy_kek`].
    pub async fn destroy_kek(&self, id: KekId) -> Result<(), TokenError> {
        self.pass(Operation::DestroyKek, move |token| token.destroy_kek(&id)).await
    }
}
