//! The two sides of an association: whom a meter knows, and whether this service can speak as that.

use dlms::hls::HlsError;

use super::{
    batch::Transmitting,
    item::{Outcome, Plain, Whose},
    keys,
};
use kms_core::{SecuritySetup, SystemTitle, Verdict};

/// The two sides' titles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sides {
    /// The title that the meter is kept under.
    pub title: SystemTitle,
    /// The title that the meter uses itself.
    pub server: SystemTitle,
    /// The utility's, of this client.
    pub client: SystemTitle,
}

impl Transmitting {
    /// The titles of a meter and of the client towards it.
    pub async fn sides(
        &self,
        whose: Whose<'_>,
        setup: SecuritySetup,
        client: u16,
    ) -> Result<Sides, Outcome> {
        let title = self.title_of(whose).await?;
        let table = self.reader.open(self.reader.block_of(&title)).await;
        let unavailable = |why: String| Outcome::of(Verdict::Unavailable).because(why).about(title);
        let table = table.map_err(|error| unavailable(error.to_string()))?;
        let meter = keys::find(&table, title)?;
        let client = keys::originator(&meter, setup, client)?;
        Ok(Sides { title, server: meter.own_title(), client })
    }

    /// Whether an item could be protected as far as policy and keys go. Nothing is spent.
    pub async fn could_protect(&self, item: &Plain<'_>) -> Result<(), Outcome> {
        self.prepare(item).await.map(drop)
    }
}

impl Outcome {
    /// The outcome of a challenge that is not answered, or an answer that does not verify.
    pub fn of_hls(why: HlsError) -> Self {
        keys::of_hls(why)
    }
}
