//! All is well again: is every meter reachable, by keys that the service holds, and was any nonce used twice?

use std::{collections::BTreeSet, time::Duration};

use kms_client::{Apdu, Verdict};
use kms_proto::v1::{self, KeyKind, KeyPair};
use simulated_meter::{
    Dialect, Policy,
    frame::Frame,
    service::{Exception, Response},
};
use tokio::time::sleep;

use super::{
    common::fleet::{id, title},
    field::ALWAYS,
    head_end::{Drill, within},
    probing::{asked, protect},
};

/// Meters in one call.
const LOT: usize = 256;
/// Longer than any lock.
const LONG_S: u64 = 1_000;
/// A meter is asked so often before it is given up.
const TRIES: usize = 6;
/// Counters that one person may declare at once: two counter epochs.
const STEP: u32 = 1 << 25;
/// Evidence is written a moment after the message that shows it was opened.
const MOMENT: Duration = Duration::from_millis(300);

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Judged {
    /// Meters that answer what the service sends, and whose pushes it opens.
    pub(crate) reached: u64,
    /// Of them, those that had fallen back: somebody moved the preference.
    pub(crate) rolled_back: u64,
    /// Of them, those whose counter had to be declared: they keep one for all keys, and fell back.
    pub(crate) declared: u64,
    /// Their pushes open, and no counter that the service has left is within the step that they take: a bound that it is not
    /// told of.
    pub(crate) bounded: u64,
    /// What is wrong.
    pub(crate) wrong: Vec<String>,
}

/// What became of a question.
enum Answered {
    Yes,
    /// This counter is expected; the one that was sent.
    Counter(u32, u32),
    No,
}

impl Drill {
    /// Nothing befalls anybody any more, all messages have arrived, each meter has sent a push.
    pub(crate) async fn heal(&mut self) {
        self.fates.calm();
        self.field.heal();
        self.sites.until_proved();
        let _ = self.pushes_open().await;
        sleep(MOMENT).await;
    }

    /// Every meter restarts in order.
    pub(crate) fn reboot_all(&mut self) {
        self.field.devices.values_mut().for_each(|device| device.meter.reboot());
    }

    pub(crate) async fn judge(&mut self) -> Judged {
        let mut judged = Judged::default();
        let all: Vec<u64> = self.field.devices.keys().copied().collect();
        for lot in all.chunks(LOT) {
            lot.iter().for_each(|n| self.field.device(*n).meter.pass(LONG_S));
            let mut client = self.sites.ciphering();
            let sent = asked(&mut client, lot, KeyPair::default()).await;
            for (n, apdu) in lot.iter().zip(sent) {
                self.judge_one(*n, apdu.as_deref(), &mut judged).await;
            }
        }
        let strange = all.iter().filter(|n| !self.field.devices[*n].holds_what_was_brought());
        judged.wrong.extend(strange.map(|n| format!("{} has a key that nobody brought", id(*n))));
        let closed = self.pushes_open().await;
        judged.wrong.extend(closed);
        self.read_the_rest().await;
        let ledger = &self.field.ledger;
        if (ledger.reused(), ledger.unread()) != (0, 0) || ledger.pairs() == 0 {
            judged.wrong.push(format!(
                "the wire: {} nonces twice, {} messages unread, {} read",
                ledger.reused(),
                ledger.unread(),
                ledger.pairs()
            ));
        }
        judged
    }

    async fn judge_one(&mut self, n: u64, first: Option<&[u8]>, judged: &mut Judged) {
        let (mut rolled, mut declared) = (false, false);
        let mut next: Option<Vec<u8>> = first.map(<[u8]>::to_vec);
        for _ in 0..TRIES {
            let Some(apdu) = next.take() else {
                sleep(MOMENT).await;
                next = self.question(n).await;
                continue;
            };
            match self.ask(n, &apdu).await {
                Answered::Yes => {
                    judged.reached += 1;
                    judged.rolled_back += u64::from(rolled);
                    judged.declared += u64::from(declared);
                    return;
                }
                Answered::Counter(expected, sent) if expected > sent => {
                    declared = true;
                    println!("  {} expects {expected:08X} and got {sent:08X}", self.about(n).await);
                    self.declare_above(n, expected - 1).await;
                }
                Answered::Counter(..) => {
                    judged.bounded += 1;
                    return;
                }
                Answered::No => rolled |= self.roll_back(n).await,
            }
            next = self.question(n).await;
        }
        let about = self.about(n).await;
        judged.wrong.push(format!("{about} is not reached"));
    }

    /// A meter, its ways, what befell it, and what the service says of it.
    pub(crate) async fn about(&self, n: u64) -> String {
        let device = &self.field.devices[&n];
        let request = v1::GetMeterRotationRequest { meter_id: id(n) };
        let rotation = within(self.sites.people().get_meter_rotation(request)).await;
        let rotation = rotation.unwrap_or_default();
        let keys = rotation.keys.iter().filter(|key| key.kind() != KeyKind::Kek);
        let keys: Vec<String> = keys
            .map(|key| {
                let (kind, version, state) = (key.kind(), key.version, key.state());
                let preferred = if key.preferred { " preferred" } else { "" };
                format!("{} {version} {}{preferred}", kind.as_str_name(), state.as_str_name())
            })
            .collect();
        let member = rotation.member.unwrap_or_default();
        let tried = member.tried.iter().map(|it| {
            let pair = it.pair.unwrap_or_default();
            let (e, a) = (pair.encryption_key_version, pair.authentication_key_version);
            format!(
                "{e}/{a} {}",
                it.outcome().as_str_name().trim_start_matches("TRANSPORT_OUTCOME_")
            )
        });
        let tried: Vec<String> = tried.collect();
        format!(
            "{} ({}; {:?}; {} waiting; {:?} last {:?} {} failures; tried {}; {})",
            id(n),
            ways(&device.dialect),
            self.fates.of(n),
            device.meter.waiting(0).len(),
            member.state(),
            member.last_outcome(),
            member.failures,
            tried.join(", "),
            keys.join(", ")
        )
    }

    /// Declares a counter; where the step is longer than one person may say, in several.
    async fn declare_above(&self, n: u64, last: u32) {
        let mut steps: Vec<u32> = (0..=last >> 25)
            .map(|step| (step << 25) | (STEP - 1))
            .filter(|it| *it < last)
            .collect();
        steps.push(last);
        for last in steps {
            self.sites.declare(n, Some(last)).await;
        }
    }

    async fn question(&mut self, n: u64) -> Option<Vec<u8>> {
        let sent = asked(&mut self.sites.ciphering(), &[n], KeyPair::default()).await;
        sent.into_iter().next().flatten().map(|it| it.to_vec())
    }

    async fn ask(&mut self, n: u64, apdu: &[u8]) -> Answered {
        let back = self.field.exchange(n, (ALWAYS, apdu), None);
        let Some(said) = back.last() else { return Answered::No };
        if let Some(Exception::Counter(expected)) = Exception::read(said) {
            let sent = Frame::read(apdu).map_or(0, |frame| frame.counter);
            return Answered::Counter(expected, sent);
        }
        let named = Apdu::new(said.clone()).unwrap().of_system_title(title(n));
        let opened = self.sites.client().decrypt(&named).await;
        let plain = opened.ok().filter(|it| it.verdict() == Verdict::Ok);
        let got = plain.and_then(|it| Response::read(it.plaintext.as_deref()?));
        match got {
            Some(Response::Got { got: Ok(_), .. }) => Answered::Yes,
            _ => Answered::No,
        }
    }

    /// Finds out which pair the meter answers to, and has that preferred. Whether that was another one.
    async fn roll_back(&mut self, n: u64) -> bool {
        let request = v1::GetMeterRotationRequest { meter_id: id(n) };
        let Ok(rotation) = within(self.sites.people().get_meter_rotation(request)).await else {
            return false;
        };
        for pair in rotation.pairs {
            let sent = protect(self.sites.ciphering(), vec![(0, n, pair)]).await;
            let Some((_, _, apdu)) = sent.into_iter().next() else { continue };
            match self.ask(n, &apdu).await {
                Answered::Yes => {
                    sleep(MOMENT).await;
                    return self.prefer(n, pair).await;
                }
                // One counter for all its keys: before its own is above that, it says nothing of the pair.
                Answered::Counter(expected, sent) if expected > sent => {
                    self.prefer(n, pair).await;
                    self.declare_above(n, expected - 1).await;
                    let Some(apdu) = self.question(n).await else { continue };
                    if matches!(self.ask(n, &apdu).await, Answered::Yes) {
                        return true;
                    }
                }
                Answered::Counter(..) | Answered::No => {}
            }
        }
        false
    }

    /// Has these versions preferred. Whether others were.
    async fn prefer(&mut self, n: u64, pair: KeyPair) -> bool {
        let mut changed = false;
        for (kind, version) in [
            (KeyKind::Guek, pair.encryption_key_version),
            (KeyKind::Gak, pair.authentication_key_version),
        ] {
            let place =
                Some(v1::KeyPlace { meter_id: id(n), kind: kind as i32, security_setup: 0 });
            let request = v1::RollBackKeyRequest { place, version };
            let done = within(self.sites.people().roll_back_key(request)).await;
            changed |= done.is_ok_and(|it| it.changed);
        }
        changed
    }

    /// Each meter sends a push: those that do not open.
    async fn pushes_open(&mut self) -> Vec<String> {
        let all: Vec<u64> = self.field.devices.keys().copied().collect();
        let mut wrong = Vec::new();
        for lot in all.chunks(LOT) {
            let pushed: Vec<(u64, Vec<u8>)> =
                lot.iter().map(|n| (*n, self.field.push(*n))).collect();
            // What is pushed in plain shows nothing, and neither does what has no tag and can't be asked about.
            let ciphered: Vec<(u64, Vec<u8>)> = pushed
                .into_iter()
                .filter(|(n, push)| {
                    let frame = Frame::read(push);
                    let can_ask = self.field.devices[n].dialect.largest_step.is_none();
                    frame.is_some_and(|frame| can_ask || frame.is_authenticated())
                })
                .collect();
            let named = |(n, push): &(u64, Vec<u8>)| {
                Apdu::new(push.clone()).unwrap().of_system_title(title(*n))
            };
            let apdus: Vec<Apdu> = ciphered.iter().map(named).collect();
            let opened = self.sites.client().decrypt_batch(apdus).await.unwrap();
            for ((n, _), opened) in ciphered.iter().zip(opened) {
                let due = match self.field.devices[n].dialect.policy {
                    Policy::Encrypted => Verdict::OkUnauthenticated,
                    _ => Verdict::Ok,
                };
                let plain = opened.plaintext.as_deref().and_then(|it| it.first());
                if opened.verdict() != due || plain != Some(&0x0f) {
                    let verdict = opened.verdict();
                    let about = self.about(*n).await;
                    wrong.push(format!("a push of {about} is {verdict:?}"));
                }
            }
        }
        wrong
    }

    /// What was sent under keys that the reader of the wire has not seen brought: he is shown how they are brought.
    async fn read_the_rest(&mut self) {
        let rest: BTreeSet<u64> = self.field.with_unread().into_iter().collect();
        for n in rest {
            for kind in [KeyKind::Guek, KeyKind::Gak] {
                let place = v1::KeyPlace { meter_id: id(n), kind: kind as i32, security_setup: 0 };
                let request = v1::NextTransferRequest {
                    place: Some(place),
                    invoke_id_and_priority: 0xc1,
                    ..v1::NextTransferRequest::default()
                };
                if let Ok(next) = within(self.sites.people().next_transfer(request)).await {
                    self.field.learn(n, &next.apdu);
                }
            }
        }
        let rest = self.field.with_unread().len() as u64;
        assert_eq!(rest, 0, "meters were sent what nobody can read");
    }
}

/// In which fields it differs from the book.
pub(crate) fn ways(dialect: &Dialect) -> String {
    let [said, book] = [dialect, &Dialect::BY_THE_BOOK].map(|it| format!("{it:?}"));
    let fields = said.split(", ").zip(book.split(", ")).filter(|(said, book)| said != book);
    let fields: Vec<&str> = fields.map(|(said, _)| said.trim_end_matches(" }")).collect();
    if fields.is_empty() { "by the book".to_owned() } else { fields.join(", ") }
}
