//! What is open: associations by their numbers, each for a while, each step once. The table does no IO; the moment is
//! handed in.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use super::refused::NotAssociated;
use crate::{associations::item::Mechanism, ciphering::FloorsBefore};
use dlms::{Suite, hls::SecretMechanism};
use kms_core::{SecuritySetup, SystemTitle, moment::Moment};

/// A challenge is good for so long: a meter that answers later has to be asked anew.
pub(super) const CHALLENGE_TTL: Duration = Duration::from_secs(120);

/// The most associations that are open at a node: those of a quarter of an hour's reconnect storm of ten million
/// meters, each of which takes a few seconds. Less than 40 MiB.
const OPEN_MAX: usize = 65_536;
/// The most that one caller has open: others must find room.
const CALLERS_MAX: usize = OPEN_MAX / 2;

/// Bytes of a block cipher: mechanism 2 enciphers each on its own.
const BLOCK: usize = 16;

/// The unchanging part of an association.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) caller: Box<str>,
    pub(super) title: SystemTitle,
    pub(super) server: SystemTitle,
    pub(super) client_title: SystemTitle,
    pub(super) setup: SecuritySetup,
    pub(super) client: u16,
    pub(super) mechanism: Mechanism,
    /// Of mechanism 2.
    pub(super) dialect: SecretMechanism,
    pub(super) suite: Option<Suite>,
    /// Of GUEK and GAK; 0: the preferred ones.
    pub(super) versions: (u16, u16),
    /// CtoS.
    pub(super) challenge: Box<[u8]>,
    pub(super) before: FloorsBefore,
    pub(super) ends: Moment,
}

/// How far an association is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    Begun,
    Answering,
    /// StoC was answered.
    Answered(Arc<[u8]>),
    Verifying,
}

struct Entry {
    facts: Arc<Facts>,
    stage: Stage,
}

/// The associations that are open.
#[derive(Default)]
pub(super) struct Table {
    open: HashMap<[u8; 16], Entry>,
    ends: BTreeSet<(Moment, [u8; 16])>,
    of_caller: HashMap<Box<str>, usize>,
    /// Blocks of our challenges, and how many have them.
    blocks: HashMap<[u8; BLOCK], u32>,
}

/// What became of a meter's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It was judged: the challenge is used up.
    Judged,
    /// It could not be judged.
    NotJudged(Arc<[u8]>),
}

impl Table {
    /// Takes a new one in, if there is room for its caller.
    pub(super) fn begin(
        &mut self,
        number: [u8; 16],
        facts: Facts,
        now: Moment,
    ) -> Result<(), NotAssociated> {
        self.check_room(&facts.caller, now)?;
        if self.open.contains_key(&number) {
            return Err(NotAssociated::NoRandomness);
        }
        for block in blocks_of(&facts.challenge) {
            *self.blocks.entry(block).or_default() += 1;
        }
        *self.of_caller.entry(facts.caller.clone()).or_default() += 1;
        self.ends.insert((facts.ends, number));
        self.open.insert(number, Entry { facts: Arc::new(facts), stage: Stage::Begun });
        Ok(())
    }

    /// Whether there is room for another one of this caller.
    pub(super) fn check_room(&mut self, caller: &str, now: Moment) -> Result<(), NotAssociated> {
        self.expire(now);
        let own = self.of_caller.get(caller).copied().unwrap_or_default();
        if own >= CALLERS_MAX {
            let whose = "that is one caller's share";
            return Err(NotAssociated::TooMany { open: own, whose });
        }
        if self.open.len() >= OPEN_MAX {
            let whose = "that is all that this server has room for";
            return Err(NotAssociated::TooMany { open: self.open.len(), whose });
        }
        Ok(())
    }

    /// Takes the step of answering, for this caller alone and once.
    pub(super) fn claim_answer(
        &mut self,
        number: [u8; 16],
        caller: &str,
        now: Moment,
    ) -> Result<Arc<Facts>, NotAssociated> {
        let entry = self.entry(number, caller, now)?;
        if entry.stage != Stage::Begun {
            return Err(NotAssociated::OutOfOrder(
                "a challenge of the meter was answered in this association already: begin a new one",
            ));
        }
        entry.stage = Stage::Answering;
        Ok(Arc::clone(&entry.facts))
    }

    /// The answer to `challenge` goes out; `None`: nothing was given out.
    pub(super) fn answered(&mut self, number: [u8; 16], challenge: Option<&[u8]>) {
        if let Some(entry) = self.open.get_mut(&number)
            && entry.stage == Stage::Answering
        {
            entry.stage = challenge.map_or(Stage::Begun, |it| Stage::Answered(it.into()));
        }
    }

    /// Takes the step of verifying, for this caller alone and once. With StoC.
    pub(super) fn claim_verify(
        &mut self,
        number: [u8; 16],
        caller: &str,
        now: Moment,
    ) -> Result<(Arc<Facts>, Arc<[u8]>), NotAssociated> {
        let entry = self.entry(number, caller, now)?;
        let Stage::Answered(challenge) = &entry.stage else {
            return Err(NotAssociated::OutOfOrder(match entry.stage {
                Stage::Verifying => "the meter's answer is being verified: wait for that",
                _ => "the meter's challenge was not answered yet: it answers ours after that",
            }));
        };
        let both = (Arc::clone(&entry.facts), Arc::clone(challenge));
        entry.stage = Stage::Verifying;
        Ok(both)
    }

    /// The meter's answer was looked at.
    pub(super) fn verified(&mut self, number: [u8; 16], end: End) {
        match (end, self.open.get_mut(&number)) {
            (End::NotJudged(challenge), Some(entry)) => entry.stage = Stage::Answered(challenge),
            (End::Judged, Some(_)) => self.remove(number),
            (_, None) => {}
        }
    }

    /// Whether a part of a meter's challenge is a part of one of ours that is open. Whoever sends us our own would be given
    /// the answer that we wait for, in this association or in another one under the same secret.
    pub(super) fn is_ours(&self, challenge: &[u8]) -> bool {
        blocks_of(challenge).any(|block| self.blocks.contains_key(&block))
    }

    /// Forgets what has ended.
    pub(super) fn expire(&mut self, now: Moment) {
        while let Some((ends, number)) = self.ends.first().copied().filter(|it| it.0 <= now) {
            self.remove(number);
            self.ends.remove(&(ends, number));
        }
    }

    /// The number of those that are open.
    pub(super) fn open(&self) -> usize {
        self.open.len()
    }

    /// Somebody else's is as unknown as one that there is not.
    fn entry(
        &mut self,
        number: [u8; 16],
        caller: &str,
        now: Moment,
    ) -> Result<&mut Entry, NotAssociated> {
        self.expire(now);
        let entry = self.open.get_mut(&number).filter(|entry| &*entry.facts.caller == caller);
        entry.ok_or(NotAssociated::Unknown)
    }

    fn remove(&mut self, number: [u8; 16]) {
        let Some(Entry { facts, .. }) = self.open.remove(&number) else { return };
        self.ends.remove(&(facts.ends, number));
        for block in blocks_of(&facts.challenge) {
            count_down(&mut self.blocks, &block);
        }
        if let Some(count) = self.of_caller.get_mut(&facts.caller) {
            *count -= 1;
            if *count == 0 {
                self.of_caller.remove(&facts.caller);
            }
        }
    }
}

fn count_down(blocks: &mut HashMap<[u8; BLOCK], u32>, block: &[u8; BLOCK]) {
    if let Some(count) = blocks.get_mut(block) {
        *count -= 1;
        if *count == 0 {
            blocks.remove(block);
        }
    }
}

/// The blocks of a challenge as mechanism 2 sees them, the last one filled up with zeros.
fn blocks_of(challenge: &[u8]) -> impl Iterator<Item = [u8; BLOCK]> {
    challenge.chunks(BLOCK).map(|chunk| {
        let mut block = [0; BLOCK];
        block[..chunk.len()].copy_from_slice(chunk);
        block
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    const fn at(ms: u64) -> Moment {
        Moment::from_ms(ms)
    }

    fn facts(caller: &str, challenge: &[u8], ends: u64) -> Facts {
        let title = SystemTitle::new([7; 8]);
        Facts {
            caller: caller.into(),
            title,
            server: title,
            client_title: title,
            setup: SecuritySetup(0),
            client: 0,
            mechanism: Mechanism::Gmac,
            dialect: SecretMechanism::Aes128Ecb,
            suite: None,
            versions: (0, 0),
            challenge: challenge.into(),
            before: FloorsBefore::default(),
            ends: at(ends),
        }
    }

    fn number(n: usize) -> [u8; 16] {
        (n as u128).to_be_bytes()
    }

    #[test]
    fn a_caller_fills_his_half_and_no_more_and_what_ends_makes_room() {
        let mut table = Table::default();
        let mut begin = |n: usize, caller: &str, now| {
            table.begin(number(n), facts(caller, b"12345678", 100 + n as u64), at(now))
        };
        for n in 0..CALLERS_MAX {
            assert_eq!(begin(n, "a", 0), Ok(()));
        }
        let full = begin(CALLERS_MAX, "a", 0);
        assert!(matches!(full, Err(NotAssociated::TooMany { open: CALLERS_MAX, .. })), "{full:?}");
        for n in CALLERS_MAX..OPEN_MAX {
            assert_eq!(begin(n, "b", 0), Ok(()));
        }
        assert!(matches!(begin(OPEN_MAX, "c", 99), Err(NotAssociated::TooMany { .. })));
        assert_eq!(begin(OPEN_MAX, "c", 100), Ok(()));
        assert_eq!(table.open(), OPEN_MAX);
        table.expire(at(u64::MAX));
        assert!(table.open.is_empty() && table.ends.is_empty());
        assert!(table.of_caller.is_empty() && table.blocks.is_empty());
    }

    #[test]
    fn blocks_of_a_challenge_are_ours_until_its_association_ends() {
        let mut table = Table::default();
        let long = b"0123456789ABCDEFGHIJ";
        table.begin(number(1), facts("a", long, 50), at(0)).unwrap();
        table.begin(number(2), facts("a", b"0123456789ABCDEF", 60), at(0)).unwrap();
        let padded = [&b"abcdefghijklmnop"[..], b"GHIJ\0\0\0\0"].concat();
        for ours in [&long[..], &padded, b"GHIJ"] {
            assert!(table.is_ours(ours), "{ours:?}");
        }
        assert!(!table.is_ours(b"GHIJK") && !table.is_ours(b"x0123456789ABCDEF"));
        table.expire(at(50));
        assert!(
            !table.is_ours(b"GHIJ") && table.is_ours(long),
            "the second one has its first block"
        );
    }

    #[test]
    fn two_who_take_one_step_at_a_time_get_it_once() {
        let mut table = Table::default();
        table.begin(number(1), facts("a", b"12345678", 50), at(0)).unwrap();
        assert!(table.claim_answer(number(1), "a", at(1)).is_ok());
        assert!(table.claim_answer(number(1), "a", at(1)).is_err());
        assert!(table.claim_verify(number(1), "a", at(1)).is_err());
        table.answered(number(1), Some(b"StoC"));
        let (_, challenge) = table.claim_verify(number(1), "a", at(1)).unwrap();
        assert!(table.claim_verify(number(1), "a", at(1)).is_err());
        // It could not be judged: it may be given once more.
        table.verified(number(1), End::NotJudged(challenge));
        assert!(table.claim_verify(number(1), "a", at(1)).is_ok());
        table.verified(number(1), End::Judged);
        assert!(table.claim_verify(number(1), "a", at(1)).is_err());
    }
}
