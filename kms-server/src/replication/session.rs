//! One follower of this site's changes: what it has, what it was sent, and how much it may be behind by.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt as _, stream::BoxStream};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use super::{
    card::Cards,
    lagging::Seat,
    ledger::{Ledger, Reader},
    messages::{BlockUpdate, PeerSaid},
    not_served::NotServed,
};
use crate::store::{ReadStore, sites::BlockChanges};
use kms_core::{BlockNo, Position, StoredRecord, block::BlockMark};

/// Blocks that were sent and are not said to be stored yet, at most.
const BLOCKS_AHEAD: usize = 512;
/// The bytes of their records, at most; one block is sent whatever its size.
const BYTES_AHEAD: usize = 8 << 20;
/// Bytes of records in one message; one record is sent whatever its size.
const PIECE_BYTES: usize = 256 << 10;
/// Of a head.
const HEAD_BYTES: usize = 128;
/// The longest time for which a follower that was sent something may store nothing.
const STALLED: Duration = Duration::from_secs(60);

/// What is said at once: what is ready together goes out together, and is taken over in one transaction. Of updates at most a
/// piece's bytes.
pub(super) type Said = Vec<PeerSaid>;
type Out = mpsc::Sender<Result<Said, NotServed>>;

/// What a follower is told of.
#[derive(Clone)]
pub(super) struct Source {
    /// Blocks.
    pub(super) store: Arc<dyn ReadStore>,
    /// When they move.
    pub(super) ledger: Arc<Ledger>,
    /// Whether this site writes.
    pub(super) cards: Cards,
    /// How often it is told.
    pub(super) heartbeat: Duration,
}

/// One follower. Takes memory by the number of blocks, and for one block's records.
pub(super) struct Session {
    source: Source,
    /// What is committed is kept for it.
    _reader: Reader,
    /// Where it is told how far the follower is behind.
    seat: Seat,
    /// Where the follower's blocks stand.
    stored: Vec<BlockMark>,
    /// Where they will stand with what was sent.
    sent: Vec<Position>,
    /// Blocks to be sent, each once.
    due: VecDeque<BlockNo>,
    is_due: Vec<bool>,
    /// Bytes of blocks that were sent and are not stored yet.
    ahead: BTreeMap<BlockNo, usize>,
    ahead_bytes: usize,
    /// The last time that something was stored, or the follower had room.
    progress: Instant,
}

impl Session {
    /// Nothing was sent yet. `cursors` has each block once, in order.
    pub(super) fn new(source: Source, seat: Seat, cursors: Vec<BlockMark>) -> Self {
        let count = cursors.len();
        let reader = source.ledger.read_by_one();
        Self {
            source,
            _reader: reader,
            seat,
            sent: cursors.iter().map(|cursor| cursor.position).collect(),
            stored: cursors,
            due: VecDeque::new(),
            is_due: vec![false; count],
            ahead: BTreeMap::new(),
            ahead_bytes: 0,
            progress: Instant::now(),
        }
    }

    /// Runs until the follower goes away, or stores nothing any more.
    pub(super) async fn run(
        mut self,
        mut said: BoxStream<'static, Vec<BlockMark>>,
        out: &Out,
    ) -> Result<(), NotServed> {
        let mut moves = self.source.ledger.watch();
        self.compare().await?;
        self.look();
        let mut heartbeat = interval(self.source.heartbeat);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if !self.send_all(&mut said, out).await? {
                return Ok(());
            }
            tokio::select! {
                stored = said.next() => match stored {
                    Some(stored) => self.note(stored),
                    None => return Ok(()),
                },
                moved = moves.changed() => match moved {
                    Ok(()) => self.look(),
                    Err(_) => return Ok(()),
                },
                _ = heartbeat.tick() => {
                    self.tell_lag();
                    let card = self.source.cards.now().await?;
                    // One that reads nothing is not there to be told that we are.
                    if let Err(mpsc::error::TrySendError::Closed(_)) = out.try_send(Ok(vec![PeerSaid::Card(card)])) {
                        return Ok(());
                    }
                }
                () = sleep_until(self.progress + STALLED), if self.is_full() => {
                    return Err(NotServed::Stalled);
                }
            }
        }
    }

    /// Each block that is another one than the follower's is due: also one that is not beyond it, so that both learn
    /// that they have parted.
    async fn compare(&mut self) -> Result<(), NotServed> {
        for head in self.source.store.heads().await? {
            let Some(cursor) = self.stored.get(head.block.0 as usize) else { continue };
            if (cursor.position, cursor.digest) != (head.position, head.digest) {
                self.is_due_now(head.block);
            }
        }
        Ok(())
    }

    fn tell_lag(&self) {
        let stored = self.stored.iter().map(|mark| mark.position);
        self.seat.is(self.source.ledger.behind(stored));
    }

    /// Blocks that moved are due.
    fn look(&mut self) {
        for block in self.source.ledger.beyond(&self.sent) {
            self.is_due_now(block);
        }
    }

    fn is_due_now(&mut self, block: BlockNo) {
        if let Some(due) = self.is_due.get_mut(block.0 as usize).filter(|due| !**due) {
            *due = true;
            self.due.push_back(block);
        }
    }

    /// Whether the follower is as far behind as it may be.
    fn is_full(&self) -> bool {
        self.ahead.len() >= BLOCKS_AHEAD || self.ahead_bytes >= BYTES_AHEAD
    }

    /// The next block that may be sent. One that is on its way waits for what becomes of it.
    fn next(&mut self) -> Option<BlockNo> {
        if self.is_full() {
            return None;
        }
        for _ in 0..self.due.len() {
            let block = self.due.pop_front()?;
            if self.ahead.contains_key(&block) {
                self.due.push_back(block);
                continue;
            }
            if let Some(due) = self.is_due.get_mut(block.0 as usize) {
                *due = false;
            }
            return Some(block);
        }
        None
    }

    /// Sends what is due, as far as there is room; false: nobody is there any more.
    async fn send_all(
        &mut self,
        said: &mut BoxStream<'static, Vec<BlockMark>>,
        out: &Out,
    ) -> Result<bool, NotServed> {
        let mut together = Together::default();
        while let Some(block) = self.next() {
            let cursor = self.stored.get(block.0 as usize).map(|stored| stored.position);
            let Some(cursor) = cursor else { continue };
            let known = self.source.ledger.changes_after(block, cursor);
            // What is ready waits for no database.
            if known.is_none() && !together.said.is_empty() {
                let ready = std::mem::take(&mut together).said;
                if out.send(Ok(ready)).await.is_err() {
                    return Ok(false);
                }
            }
            for piece in self.pieces_of((block, cursor), known).await? {
                if let Some(full) = together.with(piece)
                    && out.send(Ok(full)).await.is_err()
                {
                    return Ok(false);
                }
            }
            // What it has stored meanwhile makes room.
            while let Some(Some(stored)) = futures_util::FutureExt::now_or_never(said.next()) {
                self.note(stored);
            }
        }
        let last = together.said;
        Ok(last.is_empty() || out.send(Ok(last)).await.is_ok())
    }

    /// Takes what is new of a block for sent, piece by piece.
    async fn pieces_of(
        &mut self,
        (block, cursor): (BlockNo, Position),
        known: Option<BlockChanges>,
    ) -> Result<Vec<BlockUpdate>, NotServed> {
        let changes = match known {
            Some(changes) => changes,
            None => {
                let stored = self.source.store.changes_after(block, cursor).await?;
                stored.ok_or(NotServed::NoBlock(block))?
            }
        };
        let position = changes.head.position;
        let bytes = changes.records.iter().map(cost).sum();
        if !self.is_full() {
            self.progress = Instant::now();
        }
        self.ahead.insert(block, bytes);
        self.ahead_bytes += bytes;
        if let Some(sent) = self.sent.get_mut(block.0 as usize) {
            *sent = position.max(*sent);
        }
        Ok(pieces(changes))
    }

    /// The follower says where blocks stand there now. One that it has not taken over is sent again when it moves;
    /// one that it has taken over as it was before is due.
    fn note(&mut self, stored: Vec<BlockMark>) {
        for mark in stored {
            let at = mark.block.0 as usize;
            let Some(known) = self.stored.get_mut(at) else { continue };
            let has_moved = *known != mark;
            *known = mark;
            if let Some(bytes) = self.ahead.remove(&mark.block) {
                self.ahead_bytes = self.ahead_bytes.saturating_sub(bytes);
                self.progress = Instant::now();
            }
            if has_moved && self.sent.get(at).is_some_and(|sent| mark.position < *sent) {
                self.is_due_now(mark.block);
            }
        }
    }
}

/// Updates that go out together.
#[derive(Default)]
struct Together {
    said: Said,
    bytes: usize,
}

impl Together {
    /// One more; those before it, if it is too much beside them.
    fn with(&mut self, piece: BlockUpdate) -> Option<Said> {
        let bytes = HEAD_BYTES + piece.records.iter().map(cost).sum::<usize>();
        let full = self.bytes + bytes > PIECE_BYTES + HEAD_BYTES && !self.said.is_empty();
        let full = full.then(|| std::mem::take(self).said);
        self.bytes += bytes;
        self.said.push(PeerSaid::Update(piece));
        full
    }
}

fn cost(record: &StoredRecord) -> usize {
    record.body.len() + 128
}

/// A block's changes in messages of bounded size: at least one.
pub(super) fn pieces(changes: BlockChanges) -> Vec<BlockUpdate> {
    let BlockChanges { head, records } = changes;
    let (mut pieces, mut piece, mut bytes) = (Vec::new(), Vec::new(), 0);
    for record in records {
        let cost = cost(&record);
        if bytes + cost > PIECE_BYTES && !piece.is_empty() {
            let records = std::mem::take(&mut piece);
            pieces.push(BlockUpdate { head: head.clone(), records, more: true });
            bytes = 0;
        }
        bytes += cost;
        piece.push(record);
    }
    pieces.push(BlockUpdate { head, records: piece, more: false });
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use kms_core::{Epoch, Head, RecordKey, Sequence, SystemTitle};

    fn record(n: u8, bytes: usize) -> StoredRecord {
        StoredRecord {
            key: RecordKey::meter(&SystemTitle::new([n; 8])),
            position: Position { epoch: Epoch(2), sequence: Sequence(n.into()) },
            secret_version: 1,
            body: vec![n; bytes],
            mac: [n; 16],
        }
    }

    #[test]
    fn small_updates_go_out_together_and_never_more_bytes_than_a_piece() {
        let head = |block| Head {
            block: BlockNo(block),
            secret_version: 1,
            position: Position { epoch: Epoch(2), sequence: Sequence(9) },
            count: 9,
            digest: [1; 32],
            mac: [2; 16],
        };
        let update = |block, bytes| {
            let records = vec![record(1, bytes)];
            BlockUpdate { head: head(block), records, more: false }
        };
        let all: Vec<_> = (0..1_000).map(|block| update(block, 1_000)).collect();
        let large = update(1_000, PIECE_BYTES * 2);
        let mut together = Together::default();
        let pieces = all.iter().cloned().chain([large.clone()]);
        let sent: Vec<Said> = pieces.filter_map(|piece| together.with(piece)).collect();
        assert!(together.said == [PeerSaid::Update(large)], "one goes whatever its size");
        let most = sent.iter().map(Vec::len).max().unwrap();
        assert!((100..=PIECE_BYTES / 1_000).contains(&most), "{most} went together");
        let sent: Vec<_> = sent.into_iter().flatten().collect();
        assert!(sent == all.into_iter().map(PeerSaid::Update).collect::<Vec<_>>());
    }

    #[test]
    fn a_large_block_comes_in_pieces_that_are_all_of_it() {
        let head = Head {
            block: BlockNo(3),
            secret_version: 1,
            position: Position { epoch: Epoch(2), sequence: Sequence(9) },
            count: 9,
            digest: [1; 32],
            mac: [2; 16],
        };
        let records: Vec<_> = (0..9).map(|n| record(n, 100 << 10)).collect();
        let all = BlockChanges { head: head.clone(), records: records.clone() };
        let pieces_of = pieces(all);
        assert_eq!(pieces_of.len(), 5);
        let more: Vec<bool> = pieces_of.iter().map(|piece| piece.more).collect();
        assert_eq!(more, [true, true, true, true, false]);
        let back: Vec<_> = pieces_of.into_iter().flat_map(|piece| piece.records).collect();
        assert_eq!(back, records);
        let none = pieces(BlockChanges { head, records: Vec::new() });
        assert_eq!(none.len(), 1, "a head alone is said, too");
    }
}
