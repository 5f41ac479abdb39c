//! The door to several site KEKs in one token, while one takes the place of another.

use kms_core::{
    BlockSecret,
    site::keks::{Kek, KekId},
};

use super::{door::Hsm, error::TokenError, figures::Operation};

impl Hsm {
    /// [`super::SiteKeks::kek_in_use`]: never waits.
    pub fn kek_in_use(&self) -> Kek {
        self.token().kek_in_use()
    }

    /// [`super::SiteKeks::keks_that_open`]: never waits.
    pub fn keks_that_open(&self) -> Vec<KekId> {
        self.token().keks_that_open()
    }

    /// [`super::SiteKeks::seal_under`]; gives the secret back beside its seal.
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

    /// [`super::SiteKeks::open_under`].
    pub async fn open_under(
        &self,
        kek: KekId,
        place: Vec<u8>,
        sealed: Vec<u8>,
    ) -> Result<BlockSecret, TokenError> {
        self.pass(Operation::Open, move |token| token.open_under(&kek, &place, &sealed)).await
    }

    /// [`super::SiteKeks::make_kek`].
    pub async fn make_kek(&self, id: KekId) -> Result<Kek, TokenError> {
        self.pass(Operation::MakeKek, move |token| token.make_kek(&id)).await
    }

    /// [`super::SiteKeks::use_keks`].
    pub async fn use_keks(&self, current: Kek, further: Vec<Kek>) -> Result<(), TokenError> {
        self.pass(Operation::UseKeks, move |token| token.use_keks(&current, &further)).await
    }

    /// [`super::SiteKeks::destroy_kek`].
    pub async fn destroy_kek(&self, id: KekId) -> Result<(), TokenError> {
        self.pass(Operation::DestroyKek, move |token| token.destroy_kek(&id)).await
    }
}
