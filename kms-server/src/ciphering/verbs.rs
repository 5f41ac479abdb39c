//! The verbs: a batch through its passes.

use std::sync::Arc;

use super::{
    attempt,
    batch::Pass,
    doubt,
    figures::Figures,
    floors::Floors,
    item::{Item, Named, OpenedBatch, Want},
    misses, token,
};
use crate::{
    hsm::ApduOpening,
    keyring::{BlockTable, Reader, scrub_stack},
    telemetry::metrics::{Page, Source},
};
use kms_core::{
    SystemTitle,
    ports::{EvidenceSink, MetersMessage, NoEvidence},
};

/// Opens APDUs with the keyring's keys.
pub struct Ciphering {
    pub(super) keyring: Reader,
    token: ApduOpening,
    pub(super) floors: Arc<Floors>,
    pub(super) figures: Figures,
    pub(super) evidence: Arc<dyn EvidenceSink>,
}

impl Ciphering {
    /// Puts the verbs on top of their parts.
    pub fn new(keyring: Reader, token: ApduOpening, floors: Arc<Floors>) -> Self {
        let evidence = Arc::new(NoEvidence);
        Self { keyring, token, floors, figures: Figures::default(), evidence }
    }

    /// Tells this one what meters show of keys that wait for that. Without, nobody hears it.
    #[must_use]
    pub fn with_evidence(mut self, evidence: Arc<dyn EvidenceSink>) -> Self {
        self.evidence = evidence;
        self
    }

    /// The receive floors that it asks.
    pub fn floors(&self) -> &Arc<Floors> {
        &self.floors
    }

    /// Opens a batch. One bad item never fails its batch (invariant 9); plaintext comes back only
    /// after its tag verified, or marked as unauthenticated where the meter's policy allows that
    /// (invariant 8).
    pub async fn open_batch(&self, items: &[Item<'_>], want: Want) -> OpenedBatch {
        let mut pass = self.tried(items, want).await;
        if pass.has_arrivals() {
            self.floors.judge(&mut pass).await;
        }
        let (columns, verdicts) = pass.into_columns(&*self.evidence);
        self.figures.count(want, &verdicts);
        columns
    }

    /// Opens what another site says that meters have sent, for what their tags show of their keys and nothing else: no
    /// plaintext comes back, and no receive floor rises.
    pub async fn hear(&self, messages: &[MetersMessage]) {
        let items: Vec<_> = messages
            .iter()
            .map(|it| Item { apdu: &it.apdu, named: Named::Title(it.title), setup: None })
            .collect();
        let pass = self.tried(&items, Want::Verdict).await;
        let _ = pass.into_columns(&*self.evidence);
    }

    /// A batch of which every item was tried, and whose receive floors were not asked.
    pub(super) async fn tried<'i>(&self, items: &'i [Item<'i>], want: Want) -> Pass<'i> {
        let mut pass = Pass::new(items, want);
        let shared = self.keyring.has_other_writers();
        // Taken before anything is tried: a block that is newer than here deserves a second look.
        let before = shared.then(|| self.keyring.snapshot());
        pass.open_resident(&self.keyring).await;
        if !pass.misses.is_empty() || !pass.token.is_empty() {
            self.figures.misses.add(pass.misses.len() as u64);
            misses::open(&self.keyring, &mut pass).await;
            self.ask_token(&mut pass).await;
        }
        if let Some(before) = before {
            let seen = |block| before.table(block).map(BlockTable::position).unwrap_or_default();
            doubt::look_again(&self.keyring, &mut pass, seen).await;
            self.ask_token(&mut pass).await;
        }
        pass
    }

    async fn ask_token(&self, pass: &mut Pass<'_>) {
        self.figures.token_apdus.add(pass.token.len() as u64);
        token::ask(&self.token, pass).await;
    }

    /// Whether an item whose MIC failed under the keys of the meter with this title would verify with them
    /// exchanged: the most frequent mistake of the field is that a meter's GUEK and GAK were imported in
    /// each other's place; all of its MICs then fail, and nothing else tells why. It takes as much as
    /// another decryption or two, and gives no plaintext.
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

impl Source for Ciphering {
    fn tell(&self, page: &mut Page) {
        self.figures.tell(page);
        self.floors.tell(page);
    }
}
