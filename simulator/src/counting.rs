//! Transmit counters: lines, reservations, and what goes out to the meters.

use kms_core::{
    Epoch, Position, Record, RecordKey,
    audit::NodeId,
    block::BlockMark,
    counters::{
        Line, LineName,
        allocator::{Mark, NotAllocated, NotReserved, Purpose, RANGE, Wish, Witnessed},
        line::SEQUENCES,
    },
};

use crate::{
    fault::Fault,
    mutation::Mutation,
    net::Body,
    realm::{METERS, block_of, block_of_line, line_of},
    site::{NODES, Place, REPLICA, Task},
    truth::Broken,
    world::World,
};

impl World<'_> {
    /// The line as a site has it, and where it was written.
    fn line(&self, site: usize, name: &LineName) -> Option<(Line, Position)> {
        let stored = self.sites[site].blocks[block_of_line(name)].record(&RecordKey::line(name))?;
        match Record::decode(&stored.body) {
            Ok(Record::Line(line)) => Some((line, stored.position)),
            _ => None,
        }
    }

    /// A line is made, or raised because a meter's counter is above it.
    pub(crate) fn raise_line(&mut self, place: Place, name: LineName) -> Result<(), Broken> {
        if !self.node(place).standing.writes() {
            return Ok(());
        }
        let epoch = self.node(place).standing.epoch;
        let line = match self.line(place.site, &name) {
            None => Line::of_new_key(name, epoch).ok(),
            Some((line, _)) => {
                line.offset.map(|offset| Line { offset: Some(offset.next()), ..line })
            }
        };
        line.map_or(Ok(()), |line| self.write_line(place, line))
    }

    fn write_line(&mut self, place: Place, line: Line) -> Result<(), Broken> {
        let fits = line.offset.is_none_or(|offset| {
            offset.counter_epoch(Epoch(self.node(place).standing.epoch.0 + 60)).is_ok()
        });
        match self.read(place, block_of_line(&line.name)) {
            Some(base) if fits => self.change(place, base, Record::Line(line), false),
            _ => Ok(()),
        }
    }

    /// A follower says where a block stands there, and which lines it set aside. It counts once those are merged here.
    pub(crate) fn hear_of(
        &mut self,
        place: Place,
        from: Place,
        mark: BlockMark,
        lines: &[Line],
    ) -> Result<(), Broken> {
        if from.site == REPLICA || mark.position.epoch > self.sites[place.site].epoch {
            return Ok(());
        }
        let block = mark.block.0 as usize;
        for line in lines.iter().filter(|line| block_of_line(&line.name) == block) {
            let ours = self.line(place.site, &line.name).map(|(ours, _)| ours);
            let merged = ours.map_or(*line, |ours| ours.merged(line));
            if ours != Some(merged) {
                return match self.node(place).standing.writes() {
                    true => self.write_line(place, merged),
                    false => Ok(()),
                };
            }
        }
        let known = &mut self.node(place).acknowledged[block];
        if known.is_none_or(|known| known.position < mark.position) {
            *known = Some(mark);
        }
        Ok(())
    }

    /// A message to a meter, or several; or all meters have reconnected at once.
    pub(crate) fn transmit(&mut self, place: Place) -> Result<(), Broken> {
        if self.busy && self.chance.percent(30) {
            return self.transmit_to_all(place);
        }
        let meter = self.chance.below(METERS.into()) as u8;
        if self.busy && self.chance.percent(10) {
            return self.raise_line(place, line_of(meter));
        }
        self.transmit_to(place, meter)
    }

    /// Messages to each meter.
    pub(crate) fn transmit_to_all(&mut self, place: Place) -> Result<(), Broken> {
        (0..METERS).try_for_each(|meter| self.transmit_to(place, meter))
    }

    fn transmit_to(&mut self, place: Place, meter: u8) -> Result<(), Broken> {
        let many = if self.busy { 40 } else { 10 };
        let ranges = if self.many { 4 } else { 1 };
        let times = if self.chance.percent(many) { ranges * RANGE as usize } else { 40 };
        let times = 1 + self.chance.below(times);
        let name = line_of(meter);
        let Some((line, position)) = self.line(place.site, &name) else {
            return self.raise_line(place, name);
        };
        let line_block = block_of_line(&name);
        let block = if self.is(Mutation::BlockLocalMark) { block_of(meter) } else { line_block };
        let proved = self.is(Mutation::UnprovedLine) || self.is_peers(place, line_block, position);
        let shares = |other: u8| line_of(other) == name && block_of(other) != block_of(meter);
        let shared = (0..METERS).any(shares);
        for _ in 0..times {
            let ms = self.ms;
            let node = self.node(place);
            let now = node.now(ms);
            let wish = Wish { line: &line, proved, purpose: Purpose::Traffic };
            let epoch = node.standing.epoch;
            match node.allocators[block].allocate(now, &wish) {
                Ok(counter) => {
                    let counter = self.as_base(place.site, epoch, &name, counter);
                    let late = !self.holds(place, block);
                    self.truth.transmit(place, epoch, name, counter, late)?;
                    self.truth.shared += u64::from(shared);
                }
                Err(NotAllocated::Reserve) if self.reserves_at_once(place, block) => {}
                Err(NotAllocated::Reserve) => {
                    self.node(place).tasks.push(Task::Reserve(block));
                    break;
                }
                Err(_) => return Ok(()),
            }
        }
        if shared {
            self.hit(Fault::SharedValue, place.site);
        }
        Ok(())
    }

    /// Where many are sent, most reservations are made before anything else happens. Whether one is there now.
    fn reserves_at_once(&mut self, place: Place, block: usize) -> bool {
        if !self.many || self.chance.percent(10) {
            return false;
        }
        let begun = self.node(place).tasks.len();
        self.reserve(place, block);
        let node = self.node(place);
        if node.tasks.len() > begun
            && let Some(Task::CommitMark { block, stored, mark }) = node.tasks.pop()
        {
            self.commit_mark(place, block, stored, mark);
        }
        let ms = self.ms;
        let node = self.node(place);
        node.allocators[block].holds(node.now(ms))
    }

    /// The older form of a counter epoch: the distance from the epoch of a line's first use.
    fn as_base(&mut self, site: usize, epoch: Epoch, name: &LineName, counter: u32) -> u32 {
        if !self.is(Mutation::BaseAtEpoch) {
            return counter;
        }
        let base = *self.bases[site].entry(*name).or_insert(epoch.0);
        ((epoch.0.saturating_sub(base) as u32) << 24) | (counter % SEQUENCES)
    }

    fn holds(&self, place: Place, block: usize) -> bool {
        let db = &self.sites[place.site];
        db.marks[block]
            .is_some_and(|mark| mark.holder == Some(node_id(place)) && mark.epoch == db.epoch)
    }

    /// A node reads what is reserved of a block, and decides what to reserve.
    pub(crate) fn reserve(&mut self, place: Place, block: usize) {
        let (ms, stored) = (self.ms, self.sites[place.site].marks[block]);
        let node = self.node(place);
        let now = node.now(ms);
        match node.allocators[block].reserve(now, stored.as_ref()) {
            Ok(mark) => {
                node.tasks.push(Task::CommitMark { block, stored, mark });
                if self.is(Mutation::UseBeforeReserve) {
                    self.node(place).allocators[block].reserved(&mark);
                }
            }
            Err(NotReserved::NotWitnessed) => self.ask_marks(place),
            Err(_) => {}
        }
    }

    /// The peer is asked for what it knows of our marks, and sees our card.
    pub(crate) fn ask_marks(&mut self, place: Place) {
        let peer = Place { site: 1 - place.site % 2, node: self.chance.below(NODES) };
        self.send(place, peer, None, Body::AskMarks);
    }

    /// The transaction of a reservation.
    pub(crate) fn commit_mark(
        &mut self,
        place: Place,
        block: usize,
        stored: Option<Mark>,
        mark: Mark,
    ) {
        let db = &mut self.sites[place.site];
        if !db.admits(mark.epoch) || db.marks[block] != stored {
            self.node(place).allocators[block].let_go();
            return self.look(place);
        }
        db.marks[block] = Some(mark);
        if self.chance.percent(5) {
            self.hit(Fault::UnknownOutcome, place.site);
            return self.node(place).allocators[block].let_go();
        }
        self.node(place).allocators[block].reserved(&mark);
    }

    /// What a site has reserved, for its peer to remember.
    pub(crate) fn marks(&self, site: usize) -> Vec<Option<Witnessed>> {
        let witnessed = |mark: &Mark| Witnessed { epoch: mark.epoch, end: mark.end };
        self.sites[site].marks.iter().map(|mark| mark.as_ref().map(witnessed)).collect()
    }

    /// A peer's marks are remembered.
    pub(crate) fn keep_marks(&mut self, site: usize, of: usize, marks: &[Option<Witnessed>]) {
        let Some(known) = self.sites[site].witness.get_mut(of) else { return };
        for (known, mark) in known.iter_mut().zip(marks) {
            *known = (*known).max(*mark);
        }
    }

    /// The peer told what it remembers of ours.
    pub(crate) fn witnessed(&mut self, place: Place, marks: &[Option<Witnessed>]) {
        for (allocator, known) in self.node(place).allocators.iter_mut().zip(marks) {
            allocator.witness(*known);
        }
    }

    /// Whether the other writer knows of each line as much as this one, so that one of them may be rolled back. Where both
    /// have forgotten it, people declare it anew.
    pub(crate) fn peer_knows_lines(&self, site: usize) -> bool {
        let other = 1 - site % 2;
        (0..METERS).map(line_of).all(|name| {
            let block = self.line(other, &name).and_then(|(line, _)| line.offset);
            let told = self.sites[other].raised.iter().filter(|line| line.name == name);
            let known = told.filter_map(|line| line.offset).chain(block).max();
            self.truth.offset_of(&name) <= known
        })
    }
}

fn node_id(place: Place) -> NodeId {
    NodeId([(place.site * NODES + place.node) as u8 + 1; 16])
}
