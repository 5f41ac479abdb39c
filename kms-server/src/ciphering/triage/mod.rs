//! Why frames of one meter don't open. Each is tried as `Decrypt` would; what fails is [examined](examining), and the
//! [rules](kms_core::triage) make causes of it. No floor rises, nothing is opened for anybody, and no plaintext leaves.

mod examining;

use std::sync::Arc;

use dlms::frame::FrameKind;

use super::{
    batch::Pass,
    item::{Item, Named, Outcome, Want},
    misses,
    verbs::Ciphering,
};
use crate::keyring::{BlockTable, UnusedKeys, scrub_stack};
use examining::Examining;
use kms_core::{
    SecuritySetup, SystemTitle, Verdict,
    ports::NoEvidence,
    triage::{Bad, Cause, Confidence, Finding, Found, Frame, Standing, conclude, framing},
};

/// The frames of one meter, as they were recorded.
#[derive(Clone, Copy, Debug)]
pub struct TriageAsked<'a> {
    /// The meter, as the caller named it; never by the frames.
    pub named: Named<'a>,
    /// Under which security setup; `None`: each in turn.
    pub setup: Option<SecuritySetup>,
    /// The frames.
    pub frames: &'a [&'a [u8]],
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Triage {
    /// The likely causes, most likely first.
    pub findings: Vec<Finding>,
    /// Each frame, as far as `Decrypt` would say it.
    pub frames: Vec<TriagedFrame>,
}

/// What `Decrypt` would say of a frame, its plaintext apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TriagedFrame {
    /// The outcome of the APDU in it.
    pub outcome: Outcome,
    /// The title that it carries.
    pub carries: Option<SystemTitle>,
    /// What was taken off, outermost first.
    pub layers: Vec<FrameKind>,
}

/// A frame on its way to an answer.
struct Looked<'a> {
    layers: Vec<FrameKind>,
    apdu: Result<&'a [u8], Bad>,
}

impl Ciphering {
    /// The meter that is asked about. `Err`: there is none, or nobody can say so.
    pub async fn triaged_meter(&self, named: Named<'_>) -> Result<SystemTitle, Outcome> {
        let title = match named {
            Named::Title(title) => title,
            Named::Id(id) => {
                let resident = self.keyring.title_of(&self.keyring.snapshot(), id);
                match resident {
                    Some(title) => title,
                    None => misses::locate(&self.keyring, id).await?,
                }
            }
            Named::InApdu => return Err(Outcome::of(Verdict::UnknownMeter)),
        };
        let table = self.table_of(title).await?;
        match table.find(&title) {
            Some(_) => Ok(title),
            None => Err(super::batch::missing(&table, title)),
        }
    }

    async fn table_of(&self, title: SystemTitle) -> Result<Arc<BlockTable>, Outcome> {
        let opened = self.keyring.open(self.keyring.block_of(&title)).await;
        opened.map_err(|error| misses::unavailable(&error))
    }

    /// Finds the likely causes for the frames of this meter.
    pub async fn triage(&self, title: SystemTitle, asked: TriageAsked<'_>) -> Triage {
        let taken: Vec<_> = asked.frames.iter().map(|frame| framing::take_off(frame)).collect();
        let looked: Vec<Looked<'_>> = taken
            .iter()
            .map(|taken| match taken {
                Ok(taken) => Looked {
                    layers: taken.layers.clone(),
                    apdu: framing::read(&taken.apdu).map(|_| taken.apdu.as_slice()),
                },
                Err(bad) => Looked { layers: Vec::new(), apdu: Err(bad.clone()) },
            })
            .collect();
        let item = |apdu| Item { apdu, named: Named::Title(title), setup: asked.setup };
        let readable = || looked.iter().filter_map(|looked| looked.apdu.as_ref().ok());
        let items: Vec<Item<'_>> = readable().map(|apdu| item(*apdu)).collect();
        let (outcomes, standings) = self.tried_only(&items).await;
        // Behind the trial: another server may have written the block meanwhile.
        let table = match self.table_of(title).await {
            Ok(table) => table,
            Err(outcome) => return unavailable(&outcome, &looked),
        };
        let unused = self.unused(title, &outcomes).await;
        let examining = Examining::new(&self.keyring, &table, title, &unused);
        let mut judged = items.iter().zip(outcomes).zip(standings);
        let mut frames = Vec::with_capacity(looked.len());
        let mut answered = Vec::with_capacity(looked.len());
        for looked in looked {
            tokio::task::yield_now().await;
            let (frame, triaged) = match looked.apdu {
                Ok(_) => match judged.next() {
                    Some(((item, outcome), standing)) => {
                        read(&examining, looked.layers, item, outcome, standing)
                    }
                    None => unread(looked.layers, &Outcome::lost()),
                },
                Err(bad) => of_bad(looked.layers, bad),
            };
            frames.push(frame);
            answered.push(triaged);
        }
        scrub_stack();
        Triage { findings: conclude(&frames, examining.keys()), frames: answered }
    }

    /// The outcomes of items as `Decrypt` would have them, and where those that are authentic stand. No floor rises.
    async fn tried_only(&self, items: &[Item<'_>]) -> (Vec<Outcome>, Vec<Standing>) {
        let mut pass: Pass<'_> = self.tried(items, Want::Verdict).await;
        let mut standings = vec![Standing::NoFloor; items.len()];
        for (index, arrival) in pass.take_arrivals() {
            let standing = self.floors.look(&arrival).await;
            if let Some(place) = standings.get_mut(index) {
                *place = standing;
            }
        }
        (pass.into_columns(&NoEvidence).0.outcomes, standings)
    }

    /// Keys that open nothing, where a frame failed that one of them might explain.
    async fn unused(&self, title: SystemTitle, outcomes: &[Outcome]) -> UnusedKeys {
        let may_help = |outcome: &Outcome| {
            matches!(outcome.verdict, Verdict::MicFailure | Verdict::NoUsableKey)
        };
        if !outcomes.iter().any(may_help) {
            return UnusedKeys::default();
        }
        self.keyring.unused_keys(&title).await.unwrap_or_else(|error| {
            tracing::warn!(system_title = %title, %error, "keys that open nothing are not tried");
            UnusedKeys::default()
        })
    }
}

fn read(
    examining: &Examining<'_>,
    layers: Vec<FrameKind>,
    item: &Item<'_>,
    mut outcome: Outcome,
    standing: Standing,
) -> (Frame, TriagedFrame) {
    let Ok(apdu) = framing::read(item.apdu) else { return unread(layers, &Outcome::lost()) };
    let found = examining.found(&apdu, item.setup, &outcome, standing);
    scrub_stack();
    match standing {
        Standing::OtherTaken | Standing::Below { .. } => outcome.verdict = Verdict::Replayed,
        Standing::Taken => outcome.duplicate = true,
        Standing::Unknown => outcome.verdict = Verdict::Unavailable,
        Standing::NoFloor | Standing::New => {}
    }
    let frame = Frame { layers: layers.clone(), counter: apdu.invocation_counter(), found };
    (frame, TriagedFrame { outcome, carries: apdu.system_title(), layers })
}

fn of_bad(layers: Vec<FrameKind>, bad: Bad) -> (Frame, TriagedFrame) {
    let verdict = match bad.cause {
        Cause::Unsupported | Cause::NotCiphered => Verdict::Unsupported,
        _ => Verdict::Malformed,
    };
    let outcome = Outcome::of(verdict).because(bad.reason.clone());
    let frame = Frame { layers: layers.clone(), counter: 0, found: Found::Bad(bad) };
    (frame, TriagedFrame { outcome, carries: None, layers })
}

fn unread(layers: Vec<FrameKind>, outcome: &Outcome) -> (Frame, TriagedFrame) {
    let found = Found::Unavailable(outcome.reason.clone().unwrap_or_default());
    let frame = Frame { layers: layers.clone(), counter: 0, found };
    (frame, TriagedFrame { outcome: outcome.clone(), carries: None, layers })
}

fn unavailable(outcome: &Outcome, looked: &[Looked<'_>]) -> Triage {
    let (frames, answered): (Vec<_>, Vec<_>) =
        looked.iter().map(|looked| unread(looked.layers.clone(), outcome)).unzip();
    Triage { findings: conclude(&frames, &[]), frames: answered }
}

impl Triage {
    /// The answer where there is no meter to ask about.
    pub fn of_no_meter(outcome: &Outcome, frames: usize) -> Self {
        let cause = match outcome.verdict {
            Verdict::UnknownMeter => Cause::UnknownMeter,
            _ => Cause::Unavailable,
        };
        let finding = Finding {
            cause,
            confidence: Confidence::Certain,
            frames: (0..frames as u32).collect(),
            fit: None,
            title: None,
            detail: outcome.reason.clone().unwrap_or_default(),
        };
        let frame = TriagedFrame { outcome: outcome.clone(), carries: None, layers: Vec::new() };
        Self { findings: vec![finding], frames: vec![frame; frames] }
    }
}
