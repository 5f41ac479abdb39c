//! The most frequent mistake of the field: a meter's GUEK and GAK were imported in each other's place. All
//! of its MICs then fail, and nothing else tells why.

use super::{Ciphering, Item, attempt};
use crate::keyring::scrub_stack;
use kms_core::SystemTitle;

impl Ciphering {
    /// Whether an item whose MIC failed under the keys of the meter with this title would verify with them
    /// exchanged. It takes as much as another decryption or two, and gives no plaintext.
    pub fn is_exchanged(&self, item: &Item<'_>, title: SystemTitle) -> bool {
        let Ok(apdu) = attempt::parse(item.apdu) else { return false };
        let snapshot = self.keyring.snapshot();
        let table = snapshot.table(self.keyring.block_of(&title));
        let meter = table.and_then(|table| table.find(&title));
        let found = meter.is_some_and(|meter| attempt::verifies_exchanged(&apdu, &meter, item));
        scrub_stack();
        found
    }
}
