//! What befalls the world, one event after the other: work, time, and faults.

use kms_core::replication::following::Input;

use crate::{
    fault::Fault,
    mutation::Mutation,
    realm::{METERS, VALUES, line_of},
    site::{Database, NODES, Place, REPLICA, SITES},
    truth::Broken,
    world::World,
};

/// Rounds in which sites that reach each other come to equal blocks.
const ROUNDS: usize = 400;

/// Steps of proofs in each event.
const PROOF_STEPS: usize = 3;

/// Rounds in which two sites have lines that are proved, and ranges.
const ROUNDS_BEFORE: usize = 12;

impl World<'_> {
    /// What was before the first event: nothing, or two sites in step that have sent to all meters, one after the other.
    pub(crate) fn begin(&mut self) -> Result<(), Broken> {
        if !self.busy {
            return Ok(());
        }
        let turns = if self.chance.percent(50) { 1 } else { 3 };
        for site in (0..turns).map(|turn| turn % 2) {
            let place = Place { site, node: 0 };
            if !self.sites[site].writes {
                self.promote(place, false);
            }
            self.send_in_step(place)?;
        }
        (0..SITES).for_each(|site| self.take_backup(site));
        // Lines that were raised and used since the last backup.
        if self.chance.percent(50) {
            let place = Place { site: 0, node: 0 };
            (0..VALUES).try_for_each(|meter| self.raise_line(place, line_of(meter)))?;
            self.send_in_step(place)?;
        }
        Ok(())
    }

    fn send_in_step(&mut self, place: Place) -> Result<(), Broken> {
        for round in 0..ROUNDS_BEFORE {
            self.settle_once(round)?;
            self.transmit_to_all(place)?;
            self.check()?;
        }
        Ok(())
    }

    /// One event by chance.
    pub(crate) fn step(&mut self) -> Result<(), Broken> {
        let drawn = self.chance.below(1_000);
        // Work is done where there is some; what befalls a node, befalls any.
        let chosen = match drawn {
            280..520 => self.any_that(|node| node.runs() && !node.tasks.is_empty()),
            520..720 => self.any_that(|node| node.runs() && node.standing.writes()),
            972..990 => self.any_that(|node| node.frozen || node.paused || !node.up),
            _ => None,
        };
        let place = match chosen {
            Some(place) => place,
            None => self.any_place(),
        };
        match drawn {
            0..280 => self.deliver_any()?,
            280..520 => self.work(place)?,
            520..620 => self.client(place)?,
            620..700 => self.if_runs(place, Self::transmit)?,
            700..720 => self.if_runs(place, |world, place| {
                let meter = world.chance.below(METERS.into()) as u8;
                world.raise_line(place, line_of(meter))
            })?,
            720..790 => self.if_runs(place, Self::serve)?,
            790..820 => self.tick(place),
            820..850 => self.pass_time(),
            850..865 => self.if_runs(place, |world, place| {
                world.look(place);
                Ok(())
            })?,
            865..880 => self.people(place),
            972..990 => self.bring_back(place),
            _ if self.chance.percent(self.calm) => {}
            _ => self.fault(place, drawn),
        }
        (0..PROOF_STEPS).for_each(|_| self.prove_any());
        self.check()
    }

    fn if_runs(
        &mut self,
        place: Place,
        act: impl FnOnce(&mut Self, Place) -> Result<(), Broken>,
    ) -> Result<(), Broken> {
        if self.node(place).runs() { act(self, place) } else { Ok(()) }
    }

    fn client(&mut self, place: Place) -> Result<(), Broken> {
        self.if_runs(place, Self::client_writes)
    }

    /// A node goes on with something that it has begun.
    fn work(&mut self, place: Place) -> Result<(), Broken> {
        let count = self.node(place).tasks.len();
        if !self.node(place).runs() || count == 0 {
            return Ok(());
        }
        let at = self.chance.below(count);
        let task = self.node(place).tasks.remove(at);
        self.run_task(place, task)
    }

    /// A message arrives, or what becomes of it instead.
    fn deliver_any(&mut self) -> Result<(), Broken> {
        let count = self.net.len();
        if count == 0 {
            return Ok(());
        }
        let at = if self.chance.percent(75) { 0 } else { self.chance.below(count) };
        let mut message = self.net.remove(at);
        let site = message.to.site;
        if at > 0 {
            self.hit(Fault::Reordering, site);
        }
        match self.chance.below(100) {
            0..4 => {
                self.hit(Fault::Loss, site);
                self.lose(&message);
                return Ok(());
            }
            4..9 => {
                self.hit(Fault::Duplication, site);
                self.net.push(message.clone());
            }
            9..13 => {
                let bit = self.chance.below(1 << 14);
                if message.tamper(bit) {
                    self.hit(Fault::Tampering, site);
                }
            }
            _ => {}
        }
        self.deliver(message)
    }

    fn deliver(&mut self, message: crate::net::Message) -> Result<(), Broken> {
        let cut = self.cut[message.from.site][message.to.site];
        let to = self.node(message.to);
        if !to.up || cut {
            self.lose(&message);
            return Ok(());
        }
        if !to.runs() {
            self.net.push(message);
            return Ok(());
        }
        self.receive(message)
    }

    fn tick(&mut self, place: Place) {
        if !self.node(place).runs() {
            return;
        }
        self.feed(place, Input::Tick);
        // Who writes follows nobody, so it asks: else two that both write would never learn of each other.
        if self.node(place).standing.writes() {
            self.ask_marks(place);
        }
    }

    fn pass_time(&mut self) {
        let ms = 1 + self.chance.bits() % if self.chance.percent(10) { 20_000 } else { 400 };
        self.ms += ms;
        for node in self.nodes.iter_mut().flatten().filter(|node| node.paused) {
            node.behind += ms;
        }
    }

    /// People change who writes.
    fn people(&mut self, place: Place) {
        if !self.node(place).runs() {
            return;
        }
        match self.chance.below(10) {
            0..2 => self.demote(place),
            2..6 => self.promote(place, true),
            // A site that was rolled back is brought back sooner than a healthy one is replaced.
            _ if self.sites[place.site].restored || self.chance.percent(60) => {
                self.promote(place, false);
            }
            _ => {}
        }
    }

    fn fault(&mut self, place: Place, drawn: usize) {
        let site = place.site;
        match drawn {
            880..890 => self.replay(),
            890..900 => self.cut(site, true),
            900..912 => self.cut(site, false),
            912..922 => {
                self.hit(Fault::Crash, site);
                self.stop(place);
            }
            942..946 => self.lose_power(site),
            946..952 => self.take_backup(site),
            952..956 => self.roll_back(site, Fault::Rollback),
            956..960 => self.roll_back(site, Fault::Failover),
            960..966 => self.freeze(place, Fault::Freeze),
            966..972 => self.freeze(place, Fault::Pause),
            990..995 => {
                self.hit(Fault::ClockJump, site);
                self.jumped_ms = self.chance.bits() % (1 << 40);
                self.jump_wall(site);
            }
            _ => {}
        }
    }

    fn replay(&mut self) {
        let count = self.remembered.len();
        if count > 0 {
            let message = self.remembered[self.chance.below(count)].clone();
            self.hit(Fault::Replay, message.to.site);
            self.net.push(message);
        }
    }

    fn cut(&mut self, site: usize, cut: bool) {
        let other = (site + 1 + self.chance.below(SITES - 1)) % SITES;
        if cut {
            self.hit(Fault::Partition, site);
        }
        (self.cut[site][other], self.cut[other][site]) = (cut, cut);
    }

    fn lose_power(&mut self, site: usize) {
        self.hit(Fault::PowerLoss, site);
        (0..NODES).for_each(|node| self.stop(Place { site, node }));
        let (lost, left) = std::mem::take(&mut self.net)
            .into_iter()
            .partition(|message| message.from.site == site || message.to.site == site);
        self.net = left;
        let lost: Vec<crate::net::Message> = lost;
        lost.iter().for_each(|message| self.lose(message));
    }

    fn take_backup(&mut self, site: usize) {
        let copy = self.sites[site].clone();
        if self.chance.percent(50) {
            self.backups[site] = copy.clone();
        }
        // The standby is never older than the backup that it was made from.
        self.standbys[site] = copy;
    }

    /// The database is an older one. Whoever rolls it back, or the new timeline, says so.
    fn roll_back(&mut self, site: usize, fault: Fault) {
        if site != REPLICA && !self.peer_knows_lines(site) {
            return;
        }
        self.hit(fault, site);
        let old = match fault {
            Fault::Failover => self.standbys[site].clone(),
            _ => self.backups[site].clone(),
        };
        let keeps = self.is(Mutation::RestoreKeepsEpoch);
        // A replica never writes: it follows again from where it is.
        let restored = !keeps && site != REPLICA;
        let writes = if keeps { old.writes } else { false };
        self.sites[site] = Database { restored, writes, ..old };
        self.truth.rollbacks[site] += 1;
        self.rolled_back = Some(site);
        for node in 0..NODES {
            let place = Place { site, node };
            // At a failover processes live on, and their work with them.
            if fault == Fault::Rollback {
                self.stop(place);
                self.start(place);
            } else if self.node(place).runs() {
                self.look(place);
            }
        }
    }

    fn freeze(&mut self, place: Place, fault: Fault) {
        self.hit(fault, place.site);
        self.proving.paused_at[place.site][place.node] = self.node(place).behind;
        let node = self.node(place);
        match fault {
            Fault::Pause => node.paused = true,
            _ => node.frozen = true,
        }
    }

    /// Somebody looks after a node.
    fn bring_back(&mut self, place: Place) {
        self.thaw(place);
        if !self.node(place).up {
            self.start(place);
        }
    }

    fn thaw(&mut self, place: Place) {
        if self.node(place).paused {
            self.resume_wall(place);
        }
        let node = self.node(place);
        (node.frozen, node.paused) = (false, false);
    }

    /// All faults end: one site writes in the end, all blocks are equal, and nothing that was told is lost.
    pub(crate) fn settle(&mut self) -> Result<(), Broken> {
        self.cut = [[false; SITES]; SITES];
        self.all_places().for_each(|place| self.bring_back(place));
        for round in 0..ROUNDS {
            self.settle_once(round)?;
            self.check()?;
            if self.is_settled() {
                return self.prove_in_the_end();
            }
        }
        let heads = |site: usize| {
            self.sites[site]
                .heads()
                .iter()
                .map(|mark| mark.position.to_string())
                .collect::<Vec<_>>()
        };
        let what = format!(
            "sites do not come to equal blocks: {:?}, {:?}, {:?}",
            heads(0),
            heads(1),
            heads(2)
        );
        Err(Broken::of(4, what))
    }

    fn settle_once(&mut self, round: usize) -> Result<(), Broken> {
        self.ms += 300;
        let nobody = self.sites.iter().all(|site| !site.writes);
        if nobody && round % 20 == 10 {
            self.promote(Place { site: round / 20 % 2, node: 0 }, false);
        }
        for place in self.all_places() {
            self.look(place);
            self.tick(place);
            for _ in 0..self.node(place).tasks.len() {
                let task = self.node(place).tasks.remove(0);
                self.run_task(place, task)?;
            }
            self.serve(place)?;
        }
        for message in std::mem::take(&mut self.net) {
            self.deliver(message)?;
        }
        Ok(())
    }

    fn is_settled(&self) -> bool {
        let heads = |site: usize| self.sites[site].blocks.iter().map(|state| state.head.clone());
        let equal = (1..SITES).all(|site| heads(site).eq(heads(0)));
        let writers = self.sites.iter().filter(|site| site.admits(site.epoch)).count();
        equal && writers == 1
    }
}
