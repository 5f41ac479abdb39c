//! What lies between: messages are lost, doubled and late, by a seed.

use crate::chance::Chance;

/// Where a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To the meter.
    ToMeter,
    /// From it.
    FromMeter,
}

/// How often, of a thousand messages; each way alike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Never arrives.
    pub lost: u16,
    /// Arrives twice.
    pub doubled: u16,
    /// Arrives up to `LATEST` steps later, behind others.
    pub late: u16,
}

const LATEST: u64 = 8;

#[derive(Clone, Debug)]
struct Message {
    due: u64,
    direction: Direction,
    apdu: Vec<u8>,
}

/// A connection that has time of its own: one step, one delivery of what is due.
#[derive(Clone, Debug)]
pub struct Link {
    chance: Chance,
    losses: Losses,
    now: u64,
    under_way: Vec<Message>,
}

impl Link {
    /// A connection with these losses.
    pub fn new(seed: u64, losses: Losses) -> Self {
        Self { chance: Chance::new(seed), losses, now: 0, under_way: Vec::new() }
    }

    /// Sends a message; it arrives at the next step, or what the losses make of that.
    pub fn send(&mut self, direction: Direction, apdu: Vec<u8>) {
        let Losses { lost, doubled, late } = self.losses;
        let copies = if self.chance.permille(doubled) { 2 } else { 1 };
        for _ in 0..copies {
            if self.chance.permille(lost) {
                continue;
            }
            let later = if self.chance.permille(late) { 1 + self.chance.below(LATEST) } else { 0 };
            let due = self.now + 1 + later;
            self.under_way.push(Message { due, direction, apdu: apdu.clone() });
        }
    }

    /// One step: what arrives, in the order in which it was sent.
    pub fn step(&mut self) -> Vec<(Direction, Vec<u8>)> {
        self.now += 1;
        let now = self.now;
        let arrived = self.under_way.extract_if(.., |it| it.due <= now);
        arrived.map(|it| (it.direction, it.apdu)).collect()
    }

    /// Whether nothing is under way.
    pub fn is_idle(&self) -> bool {
        self.under_way.is_empty()
    }

    /// From now on nothing befalls what is sent.
    pub fn heal(&mut self) {
        self.losses = Losses::default();
    }
}
