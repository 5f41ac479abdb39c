//! Meters, their records, and a head-end system that drives them: with messages lost, workers killed, and meters that say
//! one thing and do another.

use super::*;
use crate::{
    ChangeMark, Fingerprint, KeyId, KeyLife, KeyRecord, KeyState, MeterId, MeterPolicy,
    MeterRecord, SecuritySetup, TransferResult,
    campaign::stepping::{Heard, Step, report, stand, step, work},
    life::{
        Times,
        choosing::{Pair, Place},
        evidence::{Shown, answered, show},
        staging::{Made, Staging, Wish, plan, stage},
    },
};

/// Chance, by a seed.
pub(super) struct Chance(pub(super) u64);

impl Chance {
    pub(super) fn below(&mut self, n: u64) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % n
    }
}

/// How a meter takes a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    Honest,
    /// Answers OK, changes nothing.
    OnlySays,
    /// Answers otherwise, and has changed.
    OnlyDoes,
    /// Is back at its former keys after a restart.
    FallsBack,
}

pub(super) struct Meter {
    pub(super) record: MeterRecord,
    pub(super) holds: Pair,
    factory: Pair,
    pub(super) manner: Manner,
    asleep: u64,
}

pub(super) struct World {
    pub(super) driven: Driven,
    pub(super) meters: BTreeMap<SystemTitle, Meter>,
    pub(super) chance: Chance,
    pub(super) now_ms: u64,
    /// Of 100 messages, either way.
    loss: u64,
    leases: u64,
    made: u32,
}

pub(super) const TIMES: Times = Times { grace_ms: 1 << 40, retention_ms: 1, destroy_delay_ms: 1 };

fn key(kind: KeyKind) -> KeyRecord {
    KeyRecord {
        id: KeyId([kind as u8; 16]),
        setup: SecuritySetup(0),
        kind,
        version: 1,
        state: KeyState::Active,
        protection: kind.default_protection(),
        wrapped: vec![7; 24],
        value_len: 16,
        created_ms: 1,
        changed_ms: 1,
        kcv: None,
        fingerprint: Fingerprint([kind as u8; 16]),
        life: KeyLife::default(),
    }
}

impl Meter {
    fn new(n: u64, manner: Manner) -> Self {
        let record = MeterRecord {
            meter_id: MeterId::new(&format!("m{n}")).unwrap(),
            system_title: title(n),
            logical_device_name: String::new(),
            policy: MeterPolicy::default(),
            keys: [KeyKind::Guek, KeyKind::Gak, KeyKind::Kek].map(key).into(),
            created_ms: 1,
            former: Vec::new(),
            changed_by: ChangeMark::default(),
            legal_hold_ms: None,
        };
        let holds = Pair { encryption: 1, authentication: Some(1) };
        Self { record, holds, factory: holds, manner, asleep: 0 }
    }

    /// Takes a transfer under this pair: the result, and whether it answers at all.
    fn transfer(&mut self, under: Pair, kind: KeyKind, version: u16) -> Option<bool> {
        if under != self.holds {
            return None;
        }
        let says = self.manner != Manner::OnlyDoes;
        if self.manner != Manner::OnlySays {
            match kind {
                KeyKind::Guek => self.holds.encryption = version,
                _ => self.holds.authentication = Some(version),
            }
        }
        Some(says)
    }
}

impl World {
    pub(super) fn new(
        seed: u64,
        policy: Policy,
        manner: impl Fn(u64) -> Manner,
        loss: u64,
    ) -> Self {
        let meters = 40;
        let all = (0..meters).map(|n| (title(n), Meter::new(n, manner(n))));
        Self {
            driven: driven(policy, meters / 2, meters - meters / 2),
            meters: all.collect(),
            chance: Chance(seed),
            now_ms: 1_000,
            loss,
            leases: 0,
            made: 10,
        }
    }

    fn lost(&mut self) -> bool {
        self.chance.below(100) < self.loss
    }

    /// What the meter shows goes into its record.
    fn show(&mut self, title: SystemTitle, pair: Pair) {
        let now_ms = self.now_ms;
        let record = &mut self.meters.get_mut(&title).unwrap().record;
        let id = |kind, version: u16| {
            let place = Place { setup: SecuritySetup(0), kind };
            let key = place.version(record, version).ok()?;
            crate::life::choosing::awaits_evidence(key).then_some(key.id)
        };
        let shown = Shown {
            setup: SecuritySetup(0),
            encryption: id(KeyKind::Guek, pair.encryption),
            authentication: id(KeyKind::Gak, pair.authentication.unwrap()),
        };
        show(record, &shown, &TIMES, now_ms);
    }

    /// Stages what is next, as the service does before it gives work out.
    fn stage(&mut self, row: &mut Row) {
        let policy = self.driven.campaign.policy.clone();
        let now_ms = self.now_ms;
        self.made += 1;
        let made = self.made;
        let record = &mut self.meters.get_mut(&row.title).unwrap().record;
        let Step::Stage(at) = step(record, &policy, row) else { return };
        let place = policy.places().nth(at).unwrap();
        let wish = Wish {
            place,
            class_version: 1,
            carrier: policy.carrier,
            kek: None,
            protection: None,
            request: "r".into(),
            allow_unreplicated: false,
            under_compromised_kek: false,
        };
        let id = [&made.to_be_bytes()[..], &[9; 12]].concat();
        match plan(record, &wish, &TIMES, now_ms).unwrap() {
            Staging::Already(_) => {}
            Staging::Make(plan) => stage(
                record,
                &wish,
                &plan,
                Made {
                    id: KeyId(id.clone().try_into().unwrap()),
                    for_meter: vec![9; 24],
                    wrapped: vec![8; 24],
                    fingerprint: Fingerprint(id.try_into().unwrap()),
                    kcv: [5; 5],
                },
                now_ms,
            ),
        }
        row.targets[at] = place.staged(record).unwrap().version;
    }

    /// A member whose first key was handed out, and its meter's record.
    pub(super) fn handed_out(&mut self) -> (MeterRecord, Row) {
        let mut row = Row::new(title(0), 0);
        self.stage(&mut row);
        let record = &mut self.meters.get_mut(&title(0)).unwrap().record;
        let staged = record.keys.iter_mut().find(|key| key.state == KeyState::PreActive).unwrap();
        staged.life.transfer.as_mut().unwrap().sent_ms = Some(1);
        (record.clone(), Row { sent: true, phase: Phase::Sent, ..row })
    }

    /// A worker's turn: takes some, and drives each until nothing is left to do, or is killed.
    pub(super) fn turn(&mut self) {
        let (now_ms, most) = (self.now_ms, 1 + self.chance.below(8) as usize);
        let mut next = self.leases;
        let (rows, _) = self.driven.take((most, &BTreeMap::new()), now_ms, || {
            next += 1;
            next
        });
        self.leases = next;
        let policy = self.driven.campaign.policy.clone();
        for mut row in rows {
            self.stand(&mut row);
            if row.phase.is_over() {
                row.lease = 0;
                self.driven.put(row);
                continue;
            }
            self.stage(&mut row);
            let meter = &self.meters[&row.title];
            let (mut action, mut pairs) = work(&meter.record, &policy, &row, None);
            row.doing = action;
            self.driven.put(row.clone());
            while action != Action::Nothing {
                if self.chance.below(25) == 0 {
                    // Killed: nobody hears of it again before the lease is over.
                    break;
                }
                (action, pairs) = self.act(&mut row, action, &pairs);
                if row.lease != 0 && action == Action::Nothing {
                    self.stage(&mut row);
                    let meter = &self.meters[&row.title];
                    (action, pairs) = work(&meter.record, &policy, &row, None);
                    row.doing = action;
                }
                self.driven.put(row.clone());
            }
        }
        self.driven.judge(now_ms);
    }

    pub(super) fn stand(&mut self, row: &mut Row) {
        stand(&self.meters[&row.title].record, &self.driven.campaign.policy, row);
    }

    fn act(&mut self, row: &mut Row, action: Action, pairs: &[Pair]) -> (Action, Vec<Pair>) {
        let policy = self.driven.campaign.policy.clone();
        let title = row.title;
        let mut heard = Heard {
            outcome: Outcome::NoAnswer,
            opened: Vec::new(),
            again: None,
            in_vain: Vec::new(),
            frame: vec![1],
            end: false,
        };
        let meter = self.meters.get_mut(&title).unwrap();
        if meter.asleep > 0 {
            meter.asleep -= 1;
            heard.outcome = Outcome::Unreachable;
            return report(&meter.record, &policy, row, &heard, self.now_ms);
        }
        match action {
            Action::Transfer => self.act_transfer(row, pairs[0], &mut heard),
            Action::Probe => {
                for pair in pairs {
                    let answers = self.meters[&title].holds == *pair;
                    if answers && !self.lost() {
                        self.show(title, *pair);
                        heard.opened.push(*pair);
                        heard.outcome = Outcome::Answered;
                        break;
                    }
                    heard.in_vain.push(*pair);
                }
                if heard.opened.is_empty() && self.chance.below(2) == 0 {
                    heard.outcome = Outcome::NotAuthenticated;
                }
            }
            Action::Restart => {
                let meter = self.meters.get_mut(&title).unwrap();
                if meter.manner == Manner::FallsBack {
                    meter.holds = meter.factory;
                }
                let holds = meter.holds;
                heard.outcome = Outcome::Restarted;
                if !self.lost() {
                    self.show(title, holds);
                    heard.opened.push(holds);
                }
            }
            Action::Nothing => {}
        }
        heard.again = heard.opened.last().copied();
        report(&self.meters[&title].record, &policy, row, &heard, self.now_ms)
    }

    fn act_transfer(&mut self, row: &Row, under: Pair, heard: &mut Heard) {
        let (title, now_ms) = (row.title, self.now_ms);
        let policy = self.driven.campaign.policy.clone();
        let record = &mut self.meters.get_mut(&title).unwrap().record;
        let Step::Transfer { at, version, .. } = step(record, &policy, row) else {
            panic!("nothing is staged that could be sent");
        };
        let place = policy.places().nth(at).unwrap();
        // NextTransfer notes it before anybody has it.
        for key in
            record.keys.iter_mut().filter(|key| Place::of(key) == place && key.version == version)
        {
            key.life.transfer.as_mut().unwrap().sent_ms.get_or_insert(now_ms);
        }
        if self.lost() {
            return;
        }
        let meter = self.meters.get_mut(&title).unwrap();
        let Some(says) = meter.transfer(under, place.kind, version) else { return };
        if self.lost() {
            return;
        }
        heard.outcome = Outcome::Answered;
        // It answers under its former keys: the answer proves nothing.
        heard.opened.push(under);
        let result = if says { TransferResult::Success } else { TransferResult::Refused };
        let record = &mut self.meters.get_mut(&title).unwrap().record;
        answered(record, place, result, (&TIMES, now_ms)).unwrap();
    }

    /// Meters fall asleep now and then.
    pub(super) fn sleep(&mut self) {
        let n = self.chance.below(self.meters.len() as u64);
        let times = self.chance.below(3);
        self.meters.get_mut(&title(n)).unwrap().asleep = times;
    }

    /// Every meter sends one push, as it does each day.
    pub(super) fn pushes(&mut self) {
        let all: Vec<(SystemTitle, Pair)> =
            self.meters.iter().map(|(title, meter)| (*title, meter.holds)).collect();
        for (title, holds) in all {
            self.show(title, holds);
        }
    }
}
