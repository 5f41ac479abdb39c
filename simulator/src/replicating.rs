//! The way of a block from the site that writes to one that follows.

use std::{collections::BTreeSet, rc::Rc};

use kms_core::{
    BlockNo, Head, Position, Record, StoredRecord,
    block::{
        BlockMark,
        accepting::{Accepted, NotAccepted, PeersBlock, accept},
        extending::Staged,
        returning::bring_back,
        verified::Verified,
        withdrawing::raised,
    },
    replication::{
        following::{Input, Link, Remedy, Update},
        serving::{Due, due},
    },
    site::admission::lineage,
};

use crate::{
    acting::state_of,
    mutation::Mutation,
    net::{Body, Message},
    site::{NODES, Place, REPLICA, State, Task},
    truth::Broken,
    world::World,
};

impl World<'_> {
    /// A follower connects to a node of the other writer; a replica to one of either.
    pub(crate) fn connect(&mut self, place: Place) {
        let site = match place.site {
            REPLICA => self.chance.below(2),
            other => 1 - other,
        };
        let peer = Place { site, node: self.chance.below(NODES) };
        if self.node(place).follower.link() != Link::Connecting {
            return;
        }
        if self.cut[place.site][site] || !self.node(peer).runs() {
            return self.feed(place, Input::Disconnected("nobody there".to_owned()));
        }
        let number = self.number();
        self.node(place).connection = Some((number, peer));
        self.feed(place, Input::Connected);
    }

    /// A node sends its followers what they need.
    pub(crate) fn serve(&mut self, place: Place) -> Result<(), Broken> {
        let followers = self.node(place).followers.clone();
        for (number, follower, cursors) in followers {
            for cursor in &cursors {
                self.serve_block(place, follower, number, cursor)?;
            }
            let marks = self.marks(place.site);
            self.send(place, follower, Some(number), Body::Alive(marks));
        }
        Ok(())
    }

    fn serve_block(
        &mut self,
        place: Place,
        follower: Place,
        number: u64,
        cursor: &BlockMark,
    ) -> Result<(), Broken> {
        let db = &self.sites[place.site];
        let state = Rc::clone(&db.blocks[cursor.block.0 as usize]);
        let ours = state.mark();
        let after = match due(&ours, &lineage(&db.roles, ours.block, ours.position.epoch), cursor) {
            Due::Nothing | Due::Ahead(_) => return Ok(()),
            Due::After(position) => Some(position),
            Due::Whole => None,
            Due::RolledBack(there) if db.admits(ours.position.epoch) => {
                let what = format!(
                    "site {} writes at {}, and a follower stands at {there}",
                    place.site, ours.position
                );
                return Err(Broken::of(5, what));
            }
            Due::RolledBack(_) => return Ok(()),
        };
        let is_new = |record: &&StoredRecord| after.is_none_or(|after| record.position > after);
        let mut records: Vec<StoredRecord> = state.records.iter().filter(is_new).cloned().collect();
        let head = state.head.clone();
        if records.len() > 1 && self.chance.percent(20) {
            let rest = records.split_off(records.len() / 2);
            let piece = Body::Piece { head: head.clone(), records, more: true };
            self.send(place, follower, Some(number), piece);
            records = rest;
        }
        self.send(place, follower, Some(number), Body::Piece { head, records, more: false });
        // It is sent once a connection, unless the follower says that it stands elsewhere.
        for (of, _, cursors) in &mut self.node(place).followers {
            if *of == number {
                cursors[ours.block.0 as usize] = ours;
            }
        }
        Ok(())
    }

    /// A follower decides about an update.
    pub(crate) fn adopt(&mut self, place: Place, update: Update) {
        let block = update.head.block.0 as usize;
        if block >= self.sites[place.site].blocks.len() {
            return;
        }
        let block_no = BlockNo(block as u32);
        let refuse = |remedy| Input::Refused { block: block_no, remedy, reason: String::new() };
        let Some(ours) = self.read(place, block) else {
            return self.feed(place, refuse(Remedy::Leave));
        };
        if self.is(Mutation::AdoptWithoutVerify) || self.is(Mutation::AdoptAsOwn) {
            return self.adopt_wrongly(place, ours, update);
        }
        let (from, to) = (ours.head().position.epoch, update.head.position.epoch);
        let lineage = lineage(&self.sites[place.site].roles, block_no, to);
        let promoted_at = match self.is(Mutation::NoForkCheck) {
            true => Some(ours.mark()),
            false => lineage.fork(from),
        };
        let keys = self.realm.keys(block);
        let Update { head, records, whole } = update;
        let theirs = PeersBlock { head: head.clone(), records: records.clone(), promoted_at };
        match accept(&ours, keys, theirs) {
            Ok(Accepted::Nothing) => self.feed(place, Input::Stored(ours.mark())),
            Ok(Accepted::Adoption(adoption)) => {
                let expected = ours.mark();
                self.will_store(place, expected, adoption.adopted(ours), Vec::new());
            }
            Err(NotAccepted::Forked(_)) if whole => {
                let theirs = Verified::of_any_age(head, records, keys);
                let back = theirs.ok().and_then(|theirs| bring_back(&ours, theirs, &lineage).ok());
                match back {
                    Some(back) => {
                        let (expected, aside) = (ours.mark(), back.set_aside.clone());
                        self.will_store(place, expected, back.returned(ours), aside);
                    }
                    None => self.feed(place, refuse(Remedy::Whole)),
                }
            }
            Err(refusal) => self.feed(place, refuse(Remedy::of(&refusal))),
        }
    }

    fn will_store(
        &mut self,
        place: Place,
        expected: BlockMark,
        after: Verified,
        aside: Vec<StoredRecord>,
    ) {
        let after = Box::new(after);
        self.node(place).tasks.push(Task::Store { expected, after, aside });
    }

    /// What a careless server would do.
    fn adopt_wrongly(&mut self, place: Place, ours: Verified, update: Update) {
        let block = update.head.block.0 as usize;
        let expected = ours.mark();
        if update.head.position <= expected.position {
            return self.feed(place, Input::Stored(expected));
        }
        if self.is(Mutation::AdoptAsOwn) {
            let mut staged = Staged::on(ours);
            for record in &update.records {
                if let Ok(record) = Record::decode(&record.body) {
                    staged.put(record);
                }
            }
            if let Ok(extension) = staged.seal(self.realm.keys(block), update.head.position.epoch) {
                let after = staged.extended(extension);
                self.will_store(place, expected, after, Vec::new());
            }
            return;
        }
        let mut state = (*self.sites[place.site].blocks[block]).clone();
        state.records.retain(|old| update.records.iter().all(|record| record.key != old.key));
        state.records.extend(update.records);
        state.records.sort_by_key(|record| record.key);
        state.head = update.head;
        self.put_block(place.site, Rc::new(state));
    }

    /// The transaction in which a peer's block takes the place of ours.
    pub(crate) fn store(
        &mut self,
        place: Place,
        expected: &BlockMark,
        after: Verified,
        aside: &[StoredRecord],
    ) -> Result<(), Broken> {
        let (block, mark) = (expected.block, after.mark());
        let db = &self.sites[place.site];
        let before = Rc::clone(&db.blocks[block.0 as usize]);
        // Who writes takes nothing over, and nothing of an epoch that was not admitted.
        if db.writes || mark.position.epoch > db.epoch || before.mark() != *expected {
            self.feed(place, Input::Conflict(block));
            return Ok(());
        }
        let state = self.truth.known(&state_of(&after, BTreeSet::new()))?;
        self.note(|| {
            format!(
                "{place:?} takes block {block} over: {} to {}, {} set aside",
                before.head.position,
                mark.position,
                aside.len()
            )
        });
        let lost = self.set_aside(place.site, &before, &state, aside);
        self.truth.step(&before, &state, &lost)?;
        self.put_block(place.site, state);
        self.node(place).freshness.know(&mark);
        self.feed(place, Input::Stored(mark));
        Ok(())
    }

    /// What the block loses is kept, and lines that were higher are told to the peer: in the same transaction.
    fn set_aside(
        &mut self,
        site: usize,
        before: &State,
        after: &State,
        aside: &[StoredRecord],
    ) -> BTreeSet<Position> {
        if self.is(Mutation::DropSetAside) {
            return BTreeSet::new();
        }
        // An earlier state of a record that was set aside went with it.
        let newest = |lost: &Position| aside.iter().any(|record| *lost <= record.position);
        let gone = before.history.difference(&after.history);
        let lost: BTreeSet<Position> = gone.filter(|lost| newest(lost)).copied().collect();
        let block = before.head.block;
        let db = &mut self.sites[site];
        db.aside.extend(lost.iter().map(|position| (block, *position)));
        for record in aside {
            let theirs = after.record(&record.key).and_then(|it| Record::decode(&it.body).ok());
            let ours = Record::decode(&record.body);
            db.raised.extend(ours.ok().and_then(|ours| raised(&ours, theirs.as_ref())));
        }
        lost
    }

    /// A message arrives at a node that runs.
    pub(crate) fn receive(&mut self, message: Message) -> Result<(), Broken> {
        let Message { from, to: place, connection, card, body, .. } = message;
        let same = |number: u64| connection == Some(number);
        let is_current = self.node(place).connection.is_some_and(|(number, _)| same(number));
        match body {
            Body::Piece { head, records, more } if is_current => {
                self.feed(place, Input::Card(card));
                self.feed(place, Input::Piece { head, records, more });
            }
            Body::Whole(head, records) if is_current => {
                self.feed(place, Input::Whole(head, records));
            }
            Body::Alive(marks) if is_current => {
                self.keep_marks(place.site, from.site, &marks);
                self.feed(place, Input::Card(card));
            }
            Body::Roles(records) => return self.learn(place, from, connection, &records),
            Body::Hello(cursors, lines) => {
                let number = connection.unwrap_or_default();
                let node = self.node(place);
                node.followers.retain(|(of, _, _)| *of != number);
                node.followers.push((number, from, cursors.clone()));
                self.see(place, from, card.epoch);
                for cursor in cursors {
                    self.hear_of(place, from, cursor, &lines)?;
                }
                return self.serve(place);
            }
            Body::Stored(mark, lines) => {
                self.see(place, from, card.epoch);
                return self.hear_of(place, from, mark, &lines);
            }
            Body::AskWhole(block) => {
                let state = Rc::clone(&self.sites[place.site].blocks[block.0 as usize]);
                let (head, records): (Head, _) = (state.head.clone(), state.records.clone());
                self.send(place, from, connection, Body::Whole(head, records));
            }
            Body::AskRoles => {
                let roles = self.sites[place.site].roles.iter().cloned().map(Rc::new).collect();
                self.send(place, from, connection, Body::Roles(roles));
            }
            Body::Round(number, write) => {
                let there = self.sites[place.site].blocks[write.block.0 as usize].head.position;
                self.see(place, from, card.epoch);
                self.send(place, from, None, Body::Reached(number, there >= write.position));
            }
            Body::Reached(number, there) => {
                self.see(place, from, card.epoch);
                return self.reached(place, number, there, card.epoch);
            }
            Body::AskMarks => {
                self.see(place, from, card.epoch);
                let marks = self.sites[place.site].witness[from.site % 2].clone();
                self.send(place, from, None, Body::Marks(marks));
            }
            Body::Marks(marks) => {
                self.see(place, from, card.epoch);
                self.witnessed(place, &marks);
            }
            Body::Piece { .. } | Body::Whole(..) | Body::Alive(_) => {}
        }
        Ok(())
    }

    /// The peer is of a higher epoch than we know of: its role records are asked for, whoever of us connected.
    fn see(&mut self, place: Place, peer: Place, epoch: kms_core::Epoch) {
        if epoch > self.sites[place.site].epoch {
            self.send(place, peer, None, Body::AskRoles);
        }
    }
}
