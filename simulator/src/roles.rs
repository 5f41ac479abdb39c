//! Who writes: promotions, demotions, restores, and what a site learns of them.

use std::{borrow::Borrow as _, rc::Rc};

use kms_core::{
    BlockNo, Position,
    block::{BlockMark, extending::Staged},
    counters::allocator::Mark,
    replication::following::Input,
    site::{
        admission::{Admitted, NotAdmitted, View, admit, lineage},
        changing::{Site, behind},
        role::{RoleChange, RoleRecord, SignedRoleRecord, Standing},
    },
};

use crate::{
    acting::state_of,
    fault::Fault,
    mutation::Mutation,
    site::{Place, REPLICA, Task},
    truth::Broken,
    world::World,
};

impl World<'_> {
    /// People have a site promoted, as they know it. A restored one is told an epoch to be above.
    pub(crate) fn promote(&mut self, place: Place, in_order: bool) {
        if place.site == REPLICA {
            return;
        }
        let db = &self.sites[place.site];
        let heads = db.heads();
        if in_order && !behind(&db.roles, &heads).is_empty() {
            return;
        }
        let restore = db.restored;
        let forgetful = self.is(Mutation::RestoreForgottenOnFollowing) && !db.writes;
        let above = (restore && !forgetful).then_some(self.truth.epoch);
        let standing = self.standing(place.site);
        let at_ms = self.ms + self.jumped_ms;
        let domain = &self.domains[place.site];
        let site = Site { domain, standing, heads: &heads, at_ms };
        let Ok(record) = site.promotion(above) else { return };
        self.hit(if in_order { Fault::Switchover } else { Fault::Promotion }, place.site);
        let restore = restore.then_some(self.truth.rollbacks[place.site]);
        let task = Task::ChangeRole { record: Box::new(record), heads, restore };
        self.node(place).tasks.push(task);
    }

    /// People have a site demoted.
    pub(crate) fn demote(&mut self, place: Place) {
        let heads = self.sites[place.site].heads();
        let standing = self.standing(place.site);
        let at_ms = self.ms + self.jumped_ms;
        let domain = &self.domains[place.site];
        let Ok(record) = (Site { domain, standing, heads: &heads, at_ms }).demotion() else {
            return;
        };
        self.hit(Fault::Demotion, place.site);
        let task = Task::ChangeRole { record: Box::new(record), heads, restore: None };
        self.node(place).tasks.push(task);
    }

    /// The transaction of a change of role: what it was decided on still is so, or nothing happens.
    pub(crate) fn change_role(
        &mut self,
        place: Place,
        record: RoleRecord,
        heads: &[BlockMark],
        restore: Option<u32>,
    ) -> Result<(), Broken> {
        let db = &self.sites[place.site];
        // The mark that is released is the one that it was decided on: it may have been rolled back once more.
        let mark = db.restored.then_some(self.truth.rollbacks[place.site]);
        if db.heads() != heads || mark != restore || self.standing(place.site).epoch != record.after
        {
            return Ok(());
        }
        if record.change == RoleChange::Demotion && !db.admits(record.epoch) {
            return Ok(());
        }
        let Some(signed) = self.realm.sign(place.site, record.clone()) else { return Ok(()) };
        self.truth.signed.push(record.clone());
        self.note(|| {
            format!(
                "{place:?}: {} to epoch {} after {}",
                record.change, record.epoch.0, record.after.0
            )
        });
        let promoted = record.change == RoleChange::Promotion;
        self.keep(place.site, signed);
        let db = &mut self.sites[place.site];
        (db.epoch, db.writes) = (record.epoch, promoted);
        if promoted {
            db.restored = false;
            db.restored_in = restore.map(|_| record.epoch);
            let first = |block| Some(Mark::first(BlockNo(block as u32), record.epoch));
            db.marks = (0..heads.len()).map(first).collect();
            for block in 0..heads.len() {
                self.re_mac(place.site, block, &record)?;
            }
        }
        self.look(place);
        Ok(())
    }

    /// A promotion brings the head of a block into its epoch.
    fn re_mac(&mut self, site: usize, block: usize, record: &RoleRecord) -> Result<(), Broken> {
        let before = Rc::clone(&self.sites[site].blocks[block]);
        let keys = self.realm.keys(block);
        let base = kms_core::block::verified::Verified::of_any_age(
            before.head.clone(),
            before.records.clone(),
            keys,
        );
        let Ok(base) = base else {
            return Err(Broken::of(
                5,
                format!("site {site} has a block {block} that nobody wrote"),
            ));
        };
        let staged = Staged::on(base);
        let Ok(extension) = staged.seal(keys, record.epoch) else { return Ok(()) };
        let state = Rc::new(state_of(&staged.extended(extension), before.history.clone()));
        self.truth.write(site, &state)?;
        self.put_block(site, state);
        Ok(())
    }

    /// A role record in its place.
    fn keep(&mut self, site: usize, signed: SignedRoleRecord) {
        let roles = &mut self.sites[site].roles;
        let place = signed.record.place();
        let at = roles.partition_point(|known| known.record.place() < place);
        roles.insert(at, signed);
    }

    /// A peer's role records came.
    pub(crate) fn learn(
        &mut self,
        place: Place,
        from: Place,
        connection: Option<u64>,
        records: &[Rc<SignedRoleRecord>],
    ) -> Result<(), Broken> {
        let mut failed = None;
        for record in records {
            if let Err(refusal) = self.learn_one(place.site, record)? {
                failed = Some(refusal);
            }
        }
        self.look(place);
        let node = self.node(place);
        let asked = node
            .connection
            .is_some_and(|(number, peer)| Some(number) == connection && peer == from);
        if asked {
            let standing = node.standing;
            self.feed(
                place,
                match failed {
                    Some(refusal) => Input::NoRoleRecords(refusal.to_string()),
                    None => Input::RoleRecords(standing),
                },
            );
        }
        Ok(())
    }

    fn learn_one(
        &mut self,
        site: usize,
        record: &SignedRoleRecord,
    ) -> Result<Result<(), NotAdmitted>, Broken> {
        let domain = &self.domains[site];
        let db = &self.sites[site];
        let writers = &self.realm.writers[site];
        let view = View { domain, known: &db.roles, writers, peers: &[] };
        // Two people let a site be told of a restore's epoch, which may be far away.
        let admitted = match admit(&view, record, true) {
            Ok(admitted) => admitted,
            Err(refusal) => return Ok(Err(refusal)),
        };
        if !self.truth.signed.contains(record.borrow()) {
            return Err(Broken::of(5, format!("site {site} admitted a record that nobody signed")));
        }
        match admitted {
            Admitted::Known => {}
            Admitted::Past => self.keep(site, record.clone()),
            Admitted::Forgotten(Standing { epoch, .. }) => {
                self.note(|| format!("site {site} has forgotten epoch {}", epoch.0));
                self.keep(site, record.clone());
                let db = &mut self.sites[site];
                (db.epoch, db.writes, db.restored) = (epoch, false, true);
            }
            Admitted::News(Standing { epoch, .. }) => {
                self.note(|| format!("site {site} learns of epoch {}", epoch.0));
                self.truth.told_of[site] = self.truth.told_of[site].max(epoch);
                if self.is(Mutation::NoFencingAtContact) {
                    return Ok(Ok(()));
                }
                self.keep(site, record.clone());
                let db = &mut self.sites[site];
                (db.epoch, db.writes) = (epoch, false);
            }
        }
        Ok(Ok(()))
    }

    /// Whether the peer has what was written at this position of a block, or knows of it because it wrote it itself.
    pub(crate) fn is_peers(&self, place: Place, block: usize, position: Position) -> bool {
        let db = &self.sites[place.site];
        let head = db.blocks[block].mark();
        let Some(even) = self.domains[place.site].kind.parity() else { return false };
        let lineage = lineage(&db.roles, head.block, head.position.epoch);
        let acknowledged = self.nodes[place.site][place.node].acknowledged[block];
        let proved = acknowledged.is_some_and(|mark| mark.position >= position);
        (proved || lineage.was_at(!even, position)) && self.is_merged(place, block)
    }

    /// A restored site's lines are of the past until the peer's block is in its epoch: then the peer has told what it
    /// knows of them.
    fn is_merged(&self, place: Place, block: usize) -> bool {
        let Some(restored_in) = self.sites[place.site].restored_in else { return true };
        let acknowledged = self.nodes[place.site][place.node].acknowledged[block];
        self.is(Mutation::NoMergeAfterRestore)
            || acknowledged.is_some_and(|mark| mark.position.epoch >= restored_in)
    }
}
