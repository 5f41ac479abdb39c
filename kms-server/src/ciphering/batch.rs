//! The first pass: everything whose keys are resident, in order, without a lock.

use dlms::{CipheredApdu, SystemTitle};

use super::{
    arrival::Arrival,
    attempt::{self, Attempt, TokenTry},
    figures::VerdictCounts,
    item::{Item, Named, OpenedBatch, Outcome, Want},
};
use crate::keyring::{BlockTable, Directory, Reader, scrub_stack};
use kms_core::{Verdict, ports::EvidenceSink};

/// APDUs parsed and looked up before the first of them is opened: by then their keys' cache lines
/// have arrived.
const AHEAD: usize = 16;

/// APDUs opened before other tasks of this thread get a turn; about a quarter of a millisecond.
const TURN: usize = 512;

/// A batch on its way.
pub(super) struct Pass<'i> {
    pub(super) items: &'i [Item<'i>],
    pub(super) misses: Vec<Miss<'i>>,
    pub(super) token: Vec<Asked>,
    want: Want,
    plaintexts: Vec<u8>,
    lengths: Vec<u32>,
    /// `None`: still under way.
    outcomes: Vec<Option<Outcome>>,
    /// Plaintexts that came out of order.
    late: Vec<(usize, Vec<u8>)>,
    /// What opened, of meters that have receive floors.
    arrivals: Vec<(usize, Arrival)>,
    /// Items whose plaintext stands in `plaintexts` and does not come back, with its length.
    withheld: Vec<(usize, u32)>,
}

/// An APDU whose meter's block is not open, or whose meter id is not known here.
pub(super) struct Miss<'i> {
    pub(super) index: usize,
    pub(super) apdu: CipheredApdu<'i>,
    pub(super) whose: Whose<'i>,
}

/// The title or id by which the meter is to be found.
#[derive(Clone, Copy)]
pub(super) enum Whose<'i> {
    /// By this title.
    Title(SystemTitle),
    /// By this id.
    Id(&'i str),
}

/// An APDU that the token is to open: its keys in the order to try them, last first.
pub(super) struct Asked {
    pub(super) index: usize,
    pub(super) tries: Vec<TokenTry>,
}

/// An APDU that was parsed and looked up.
enum Located<'i, 't> {
    Done(Outcome),
    Here(CipheredApdu<'i>, &'t BlockTable, SystemTitle),
    Elsewhere(CipheredApdu<'i>, Whose<'i>),
}

impl<'i> Pass<'i> {
    pub(super) fn new(items: &'i [Item<'i>], want: Want) -> Self {
        let room = match want {
            Want::Plaintext => items.iter().map(|item| item.apdu.len()).sum(),
            Want::Verdict => 0,
        };
        Self {
            items,
            misses: Vec::new(),
            token: Vec::new(),
            want,
            plaintexts: Vec::with_capacity(room),
            lengths: Vec::with_capacity(items.len()),
            outcomes: Vec::with_capacity(items.len()),
            late: Vec::new(),
            arrivals: Vec::new(),
            withheld: Vec::new(),
        }
    }

    pub(super) async fn open_resident(&mut self, keyring: &Reader) {
        let snapshot = keyring.snapshot();
        let items = self.items;
        for (turn, some) in items.chunks(TURN).enumerate() {
            if turn > 0 {
                tokio::task::yield_now().await;
            }
            for few in some.chunks(AHEAD) {
                self.open_few(keyring, &snapshot, few);
            }
            scrub_stack();
        }
    }

    #[inline]
    fn open_few(&mut self, keyring: &Reader, snapshot: &Directory, few: &'i [Item<'i>]) {
        let mut located: [Option<Located<'i, '_>>; AHEAD] = [const { None }; AHEAD];
        for (place, item) in located.iter_mut().zip(few) {
            *place = Some(locate(keyring, snapshot, item));
        }
        // Apart from the above: the tables themselves are on their way, and waiting for sixteen of
        // them takes as long as waiting for one.
        for located in located.iter().flatten() {
            if let Located::Here(_, table, title) = located {
                table.prefetch(title);
            }
        }
        for (located, item) in located.into_iter().flatten().zip(few) {
            match located {
                Located::Done(outcome) => self.push(Some(outcome)),
                Located::Here(apdu, table, title) => self.open_one(&apdu, table, title, item),
                Located::Elsewhere(apdu, whose) => {
                    self.misses.push(Miss { index: self.outcomes.len(), apdu, whose });
                    self.push(None);
                }
            }
        }
    }

    #[inline]
    fn open_one(
        &mut self,
        apdu: &CipheredApdu<'i>,
        table: &BlockTable,
        title: SystemTitle,
        item: &Item<'_>,
    ) {
        let start = self.plaintexts.len();
        let Some(meter) = table.find(&title) else {
            return self.push(Some(missing(table, title)));
        };
        match attempt::attempt(apdu, &meter, item, &mut self.plaintexts) {
            Attempt::Done(outcome) => {
                if meter.policy().has_floors() {
                    let arrival = Arrival::of(apdu, &meter, &outcome);
                    self.note_arrival(self.outcomes.len(), arrival);
                }
                if self.want == Want::Verdict {
                    self.plaintexts.truncate(start);
                }
                self.lengths.push((self.plaintexts.len() - start) as u32);
                self.outcomes.push(Some(outcome));
            }
            Attempt::Token(tries) => {
                self.ask_later(self.outcomes.len(), tries);
                self.push(None);
            }
        }
    }

    /// An item that leaves nothing in the plaintext column now.
    fn push(&mut self, outcome: Option<Outcome>) {
        self.lengths.push(0);
        self.outcomes.push(outcome);
    }

    /// Leaves an item to the token.
    pub(super) fn ask_later(&mut self, index: usize, mut tries: Vec<TokenTry>) {
        tries.reverse();
        self.token.push(Asked { index, tries });
    }

    /// Sets what became of an item that was left open; `plaintext` if it was opened.
    pub(super) fn settle(&mut self, index: usize, outcome: Outcome, plaintext: Vec<u8>) {
        if self.want == Want::Plaintext && !plaintext.is_empty() {
            if let Some(len) = self.lengths.get_mut(index) {
                *len = plaintext.len() as u32;
            }
            self.late.push((index, plaintext));
        }
        if let Some(place) = self.outcomes.get_mut(index) {
            *place = Some(outcome);
        }
    }

    /// An item has opened, and its receive floor is to be asked.
    pub(super) fn note_arrival(&mut self, index: usize, arrival: Option<Arrival>) {
        self.arrivals.extend(arrival.map(|arrival| (index, arrival)));
    }

    /// Whether something opened that has a receive floor.
    pub(super) fn has_arrivals(&self) -> bool {
        !self.arrivals.is_empty()
    }

    /// What opened and has a receive floor, in the order of the items: an earlier one is judged first.
    pub(super) fn take_arrivals(&mut self) -> Vec<(usize, Arrival)> {
        let mut arrivals = std::mem::take(&mut self.arrivals);
        arrivals.sort_by_key(|(index, _)| *index);
        arrivals
    }

    /// The item was opened before.
    pub(super) fn mark_duplicate(&mut self, index: usize) {
        if let Some(Some(outcome)) = self.outcomes.get_mut(index) {
            outcome.duplicate = true;
        }
    }

    /// What was opened does not come back, for this reason.
    pub(super) fn withhold(&mut self, index: usize, verdict: Verdict, reason: String) {
        if let Some(Some(outcome)) = self.outcomes.get_mut(index) {
            outcome.verdict = verdict;
            outcome.encryption_key_version = 0;
            outcome.authentication_key_version = 0;
            outcome.reason = Some(reason.into());
            outcome.shown = None;
        }
        let was_late = self.late.iter().position(|(at, _)| *at == index);
        let len = self.lengths.get_mut(index).map_or(0, std::mem::take);
        match was_late {
            Some(at) => _ = self.late.remove(at),
            None => self.withheld.push((index, len)),
        }
    }

    /// Items that a newer state of their block could settle otherwise.
    pub(super) fn doubtful(&self) -> Vec<(usize, SystemTitle)> {
        let outcomes = self.outcomes.iter().enumerate();
        let doubtful = outcomes.filter_map(|(index, outcome)| {
            let outcome = outcome.as_ref().filter(|outcome| is_doubtful(outcome.verdict))?;
            Some((index, outcome.system_title?))
        });
        doubtful.collect()
    }

    /// The columns, in the order of the items, and how often each verdict is among them. `evidence` hears what meters
    /// have shown.
    pub(super) fn into_columns(
        mut self,
        evidence: &dyn EvidenceSink,
    ) -> (OpenedBatch, VerdictCounts) {
        if !self.late.is_empty() || !self.withheld.is_empty() {
            self.plaintexts = self.put_in_order();
        }
        let mut verdicts = VerdictCounts::default();
        let settled = |(outcome, item): (Option<Outcome>, &Item<'_>)| {
            let outcome = outcome.unwrap_or_else(Outcome::lost);
            verdicts.count(outcome.verdict);
            if let (Some(shown), Some(title)) = (&outcome.shown, &outcome.system_title) {
                evidence.shown(title, shown, item.apdu);
            }
            outcome
        };
        let outcomes = self.outcomes.into_iter().zip(self.items).map(settled).collect();
        let columns = OpenedBatch { plaintexts: self.plaintexts, lengths: self.lengths, outcomes };
        (columns, verdicts)
    }

    fn put_in_order(&mut self) -> Vec<u8> {
        self.late.sort_unstable_by_key(|(index, _)| *index);
        let mut late = std::mem::take(&mut self.late).into_iter().peekable();
        self.withheld.sort_unstable();
        let mut withheld = std::mem::take(&mut self.withheld).into_iter().peekable();
        let mut early = self.plaintexts.as_slice();
        let total = self.lengths.iter().map(|len| *len as usize).sum();
        let mut all = Vec::with_capacity(total);
        for (index, len) in self.lengths.iter().enumerate() {
            if let Some((_, len)) = withheld.next_if(|(at, _)| *at == index) {
                early = early.get(len as usize..).unwrap_or_default();
            } else if let Some((_, plaintext)) = late.next_if(|(at, _)| *at == index) {
                all.extend_from_slice(&plaintext);
            } else if let Some((this, rest)) = early.split_at_checked(*len as usize) {
                all.extend_from_slice(this);
                early = rest;
            }
        }
        all
    }
}

/// Whether what another server wrote could change this verdict.
fn is_doubtful(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::UnknownMeter | Verdict::MicFailure)
}

/// No meter with this title is in its block. Where the block has damaged records, it may be one of them.
pub(super) fn missing(table: &BlockTable, title: SystemTitle) -> Outcome {
    let mut outcome = match table.damaged() {
        0 => {
            Outcome::of(Verdict::UnknownMeter).because(format!("no meter has system title {title}"))
        }
        damaged => Outcome::of(Verdict::Unavailable).because(format!(
            "no meter with system title {title} is found, and {damaged} records of its block were \
             changed outside this service: it may be one of them"
        )),
    };
    outcome.system_title = Some(title);
    outcome
}

#[inline]
fn locate<'i, 't>(keyring: &Reader, snapshot: &'t Directory, item: &Item<'i>) -> Located<'i, 't> {
    let apdu = match attempt::parse(item.apdu) {
        Ok(apdu) => apdu,
        Err(outcome) => return Located::Done(outcome),
    };
    let title = match item.named {
        Named::Title(title) => title,
        Named::Id(id) => match keyring.title_of(snapshot, id) {
            Some(title) => title,
            None => return Located::Elsewhere(apdu, Whose::Id(id)),
        },
        Named::InApdu => match apdu.system_title() {
            Some(title) => title,
            None => {
                return Located::Done(Outcome::of(Verdict::UnknownMeter).because(
                    "the APDU carries no system title: name the meter by id or system title",
                ));
            }
        },
    };
    let block = keyring.block_of(&title);
    match snapshot.table_soon(block) {
        Some(table) => Located::Here(apdu, table, title),
        None => Located::Elsewhere(apdu, Whose::Title(title)),
    }
}
