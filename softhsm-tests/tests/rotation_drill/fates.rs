//! What befalls whom, and when: one cut of one step of a case, or a storm over a fleet.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use simulated_meter::{Chance, cuts::Cut};

/// Of a thousand steps of a fleet so many are cut in each of the ways that concern one meter.
const PERMILLE: u16 = 6;
/// Steps that one disaster of a storm befalls.
const STRUCK: u32 = 24;

/// Who is cut where, and what really befell.
#[derive(Default)]
pub(crate) struct Fates {
    cases: BTreeMap<u64, (u32, Cut)>,
    is_calm: bool,
    /// Steps that each meter has made.
    pub(crate) steps: BTreeMap<u64, u32>,
    storm: Option<Storm>,
    /// Those whom something befell.
    pub(crate) struck: BTreeSet<u64>,
    /// By the place of each in [`Cut::ALL`].
    pub(crate) befell: [u64; Cut::ALL.len()],
}

struct Storm {
    chance: Chance,
    steps: u64,
    /// The step from which on it strikes, and how.
    disasters: VecDeque<(u64, Cut)>,
    striking: Option<(Cut, u32)>,
}

impl Fates {
    /// Each of these meters is cut once, at one of its steps.
    pub(crate) fn add(&mut self, cases: BTreeMap<u64, (u32, Cut)>) {
        self.cases.extend(cases);
        self.is_calm = false;
    }

    /// Meters are struck by chance, and some at a time by so many kills of the server and one failover, spread over the
    /// steps that they take all together.
    pub(crate) fn storm(seed: u64, kills: u64, steps: u64) -> Self {
        let parts = kills + 2;
        let mut disasters: VecDeque<(u64, Cut)> =
            (1..=kills).map(|part| (steps * part / parts, Cut::ServerKilled)).collect();
        disasters.push_back((steps * (kills + 1) / parts, Cut::Failover));
        let storm = Storm { chance: Chance::new(seed), steps: 0, disasters, striking: None };
        Self { storm: Some(storm), ..Self::default() }
    }

    /// The next step of a meter.
    pub(crate) fn next(&mut self, n: u64) -> Option<Cut> {
        let step = self.steps.entry(n).or_default();
        let at = *step;
        *step += 1;
        if let Some(storm) = &mut self.storm {
            return storm.next();
        }
        let case = self.cases.get(&n).filter(|_| !self.is_calm);
        case.filter(|(step, _)| *step == at).map(|(_, cut)| *cut)
    }

    /// Where and how a meter is cut.
    pub(crate) fn of(&self, n: u64) -> Option<(u32, Cut)> {
        self.cases.get(&n).copied()
    }

    /// The step of a meter came to nothing before anything could befall it: it is made again.
    pub(crate) fn again(&mut self, n: u64) {
        *self.steps.entry(n).or_insert(1) -= 1;
    }

    pub(crate) fn befell(&mut self, n: u64, cut: Cut) {
        self.struck.insert(n);
        let at = Cut::ALL.iter().position(|it| *it == cut).unwrap();
        self.befell[at] += 1;
    }

    /// From now on nothing befalls anybody.
    pub(crate) fn calm(&mut self) {
        self.is_calm = true;
        self.storm = None;
    }
}

impl Storm {
    fn next(&mut self) -> Option<Cut> {
        self.steps += 1;
        if self.striking.is_none()
            && let Some((from, _)) = self.disasters.front()
            && *from <= self.steps
        {
            self.striking = self.disasters.pop_front().map(|(_, cut)| (cut, STRUCK));
        }
        if let Some((cut, left)) = self.striking {
            self.striking = (left > 1).then_some((cut, left - 1));
            return Some(cut);
        }
        let ways = [Cut::HeadEndKilled, Cut::PowerLost, Cut::Rebooted];
        ways.into_iter().find(|_| self.chance.permille(PERMILLE))
    }
}
