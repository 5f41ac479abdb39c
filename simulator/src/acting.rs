//! What nodes do for their clients: writes, and the round with the peer by which they learn that one is replicated.

use std::{collections::BTreeSet, rc::Rc};

use kms_core::{
    ChangeMark, Epoch, MeterId, MeterPolicy, MeterRecord, Record, StoredRecord,
    block::{BlockMark, extending::Staged, verified::Verified},
    record::Tombstone,
    replication::following::Input,
};

use crate::{
    mutation::Mutation,
    net::Body,
    realm::{METERS, block_of, title},
    site::{NODES, Place, REPLICA, State, Task, Write},
    truth::Broken,
    world::World,
};

impl World<'_> {
    /// The block as it is stored, believed by a node. `None`: the node knows of a newer one.
    pub(crate) fn read(&mut self, place: Place, block: usize) -> Option<Verified> {
        let state = Rc::clone(&self.sites[place.site].blocks[block]);
        let keys = self.realm.keys(block);
        let node = &self.nodes[place.site][place.node];
        Verified::of(state.head.clone(), state.records.clone(), keys, &node.freshness).ok()
    }

    /// A client wants a meter changed.
    pub(crate) fn client_writes(&mut self, place: Place) -> Result<(), Broken> {
        if !self.node(place).standing.writes() {
            return Ok(());
        }
        let meter = self.chance.below(METERS.into()) as u8;
        let buried = self.chance.percent(20);
        let ms = self.ms + self.jumped_ms + self.chance.bits() % 1_000;
        let record = if buried { tombstone(meter, ms) } else { alive(meter, ms) };
        let (Some(base), Some(record)) = (self.read(place, block_of(meter)), record) else {
            return Ok(());
        };
        self.change(place, base, record, true)
    }

    /// Begins a change of a block on what was read.
    pub(crate) fn change(
        &mut self,
        place: Place,
        base: Verified,
        record: Record,
        client: bool,
    ) -> Result<(), Broken> {
        let (expected, block) = (base.mark(), base.block().0 as usize);
        let epoch = self.node(place).standing.epoch;
        let mut staged = Staged::on(base);
        staged.put(record);
        let Ok(extension) = staged.seal(self.realm.keys(block), epoch) else { return Ok(()) };
        let before = &self.sites[place.site].blocks[block];
        let mut history = before.history.clone();
        history.extend(extension.records.iter().map(|record| record.position));
        let state = state_of(&staged.extended(extension), history);
        if client && self.is(Mutation::AckBeforeCommit) {
            let write = Write { block: state.head.block, position: state.head.position };
            self.tell(write, false)?;
        }
        self.node(place).tasks.push(Task::Commit { expected, state: Box::new(state), client });
        Ok(())
    }

    /// The transaction of a change.
    pub(crate) fn commit(
        &mut self,
        place: Place,
        expected: &BlockMark,
        state: State,
        client: bool,
    ) -> Result<(), Broken> {
        let block = state.head.block.0 as usize;
        let db = &self.sites[place.site];
        let admitted = db.admits(state.head.position.epoch);
        if !admitted && !self.is(Mutation::NoRoleCheckInCommit) {
            self.look(place);
            return Ok(());
        }
        if db.blocks[block].mark() != *expected {
            return Ok(());
        }
        let (mark, state) = (state.mark(), Rc::new(state));
        let write = Write { block: mark.block, position: mark.position };
        self.truth.write(place.site, &state)?;
        if !admitted {
            return Err(Broken::of(7, format!("site {} wrote and was not the writer", place.site)));
        }
        self.note(|| format!("{place:?} writes block {} at {}", mark.block, mark.position));
        self.put_block(place.site, state);
        self.node(place).freshness.know(&mark);
        if client {
            self.node(place).tasks.push(Task::Answer { write, asked: false });
        }
        Ok(())
    }

    /// The peer is asked whether a write is there; if it has not answered by the next time, it is not known.
    pub(crate) fn answer(&mut self, place: Place, write: Write, asked: bool) -> Result<(), Broken> {
        if asked {
            let node = self.node(place);
            let before = node.rounds.len();
            node.rounds.retain(|(_, of)| *of != write);
            // It was answered in the meantime.
            return if node.rounds.len() == before { Ok(()) } else { self.tell(write, false) };
        }
        let number = self.number();
        let peer = Place { site: 1 - place.site % 2, node: self.chance.below(NODES) };
        let node = self.node(place);
        node.rounds.push((number, write));
        node.tasks.push(Task::Answer { write, asked: true });
        self.send(place, peer, None, Body::Round(number, write));
        Ok(())
    }

    /// The peer answered. The round began after the commit, so a peer that has the write and sees us as the writer keeps
    /// it whatever happens.
    pub(crate) fn reached(
        &mut self,
        place: Place,
        number: u64,
        there: bool,
        epoch: Epoch,
    ) -> Result<(), Broken> {
        let node = self.node(place);
        let Some(at) = node.rounds.iter().position(|(of, _)| *of == number) else { return Ok(()) };
        let (_, write) = node.rounds.remove(at);
        let sees_us = epoch == write.position.epoch || self.is(Mutation::IgnoreCardOfRound);
        self.tell(write, there && sees_us)
    }

    fn tell(&mut self, write: Write, replicated: bool) -> Result<(), Broken> {
        self.note(|| {
            format!("told: block {} at {}, replicated: {replicated}", write.block, write.position)
        });
        let sites: Vec<_> = self.sites.iter().take(REPLICA).collect();
        self.truth.tell(write, replicated, &sites)
    }

    /// Runs one of a node's tasks.
    pub(crate) fn run_task(&mut self, place: Place, task: Task) -> Result<(), Broken> {
        match task {
            Task::Commit { expected, state, client } => {
                self.commit(place, &expected, *state, client)
            }
            Task::Answer { write, asked } => self.answer(place, write, asked),
            Task::Adopt(update) => {
                self.adopt(place, *update);
                Ok(())
            }
            Task::Store { expected, after, aside } => self.store(place, &expected, *after, &aside),
            Task::Connect => {
                self.connect(place);
                Ok(())
            }
            Task::Lost => {
                self.feed(place, Input::Disconnected("lost".to_owned()));
                Ok(())
            }
            Task::NoWhole(block) => {
                self.feed(place, Input::NoWhole(block, "lost".to_owned()));
                Ok(())
            }
            Task::ChangeRole { record, heads, restore } => {
                self.change_role(place, *record, &heads, restore)
            }
            Task::Reserve(block) => {
                self.reserve(place, block);
                Ok(())
            }
            Task::CommitMark { block, stored, mark } => {
                self.commit_mark(place, block, stored, mark);
                Ok(())
            }
        }
    }
}

/// A block as its writer has it.
pub(crate) fn state_of(block: &Verified, history: BTreeSet<kms_core::Position>) -> State {
    let records: Vec<StoredRecord> = block.authentic().cloned().collect();
    State { head: block.head().clone(), records, history }
}

fn alive(meter: u8, ms: u64) -> Option<Record> {
    Some(Record::Meter(MeterRecord {
        meter_id: meter_id(meter)?,
        system_title: title(meter),
        logical_device_name: String::new(),
        policy: MeterPolicy::default(),
        keys: Vec::new(),
        created_ms: ms,
        former: Vec::new(),
        legal_hold_ms: None,
        changed_by: ChangeMark::default(),
    }))
}

fn tombstone(meter: u8, ms: u64) -> Option<Record> {
    Some(Record::Tombstone(Tombstone {
        meter_id: Some(meter_id(meter)?),
        system_title: title(meter),
        keys: Vec::new(),
        deleted_ms: ms,
        changed_by: ChangeMark::default(),
        readmitted_ms: None,
    }))
}

fn meter_id(meter: u8) -> Option<MeterId> {
    MeterId::new(&format!("m{meter}")).ok()
}
