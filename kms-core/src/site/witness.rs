//! The witness: each site keeps the newest head table that the other one has shown, and holds what that shows later
//! against it. A site whose database was put back shows an older one, and is named.

use std::fmt;

use crate::{BlockNo, Epoch, audit::NodeId, freshness::HeadTable};

/// The place of a head table among those of its site: a restore takes a higher epoch, and may count from a lower number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct TablePlace {
    /// The highest epoch of a block.
    pub epoch: Epoch,
    /// The table's number.
    pub number: u64,
}

impl TablePlace {
    /// Of a table.
    pub fn of(table: &HeadTable) -> Self {
        let epochs = table.heads.iter().map(|(position, _)| position.epoch);
        Self { epoch: epochs.max().unwrap_or_default(), number: table.number }
    }
}

impl fmt::Display for TablePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "number {} of epoch {}", self.number, self.epoch.0)
    }
}

/// The reason why a head table can't come from a site that lost nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WentBack {
    /// It is older than one that the site has shown.
    #[error("it shows head table {shown}, and has shown {kept}")]
    Table {
        /// The one that it shows.
        shown: TablePlace,
        /// The one that it has shown.
        kept: TablePlace,
    },
    /// It is of the same place and says something else.
    #[error("it shows another head table {0} than before")]
    Another(TablePlace),
    /// An audit chain has lost its end.
    #[error("the audit chain of its node {node} ends at {shown}, and was at {kept}")]
    Chain {
        /// The node.
        node: NodeId,
        /// The number at its end.
        shown: u64,
        /// The number that was at its end.
        kept: u64,
    },
    /// A block has lost changes.
    #[error("its block {0} stands before where it stood")]
    Block(BlockNo),
}

/// Holds a head table of a site against the newest that it has shown; both signed by it. `Ok(true)`: it is a newer one.
pub fn hold_against(shown: &HeadTable, kept: &HeadTable) -> Result<bool, WentBack> {
    let (now, before) = (TablePlace::of(shown), TablePlace::of(kept));
    if now < before {
        return Err(WentBack::Table { shown: now, kept: before });
    }
    if now == before {
        return if shown == kept { Ok(false) } else { Err(WentBack::Another(now)) };
    }
    // A restore goes back, and says so by its epoch.
    if now.epoch > before.epoch {
        return Ok(true);
    }
    for tip in &kept.tips {
        let end = shown.tips.iter().find(|end| end.node == tip.node).map_or(0, |end| end.sequence);
        if end < tip.sequence {
            return Err(WentBack::Chain { node: tip.node, shown: end, kept: tip.sequence });
        }
    }
    let blocks = (0..).map(BlockNo).zip(kept.heads.iter().zip(&shown.heads));
    for (block, ((was, _), (is, _))) in blocks {
        if is < was {
            return Err(WentBack::Block(block));
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Position, Sequence, audit::ChainTip};

    fn table(number: u64, epoch: u64, sequence: u64) -> HeadTable {
        let at = |n| (Position { epoch: Epoch(epoch), sequence: Sequence(n) }, [n as u8; 32]);
        HeadTable {
            number,
            at_ms: 1,
            tips: vec![ChainTip { node: NodeId([1; 16]), sequence: number * 10, hash: [0; 32] }],
            heads: vec![at(sequence), at(3)],
        }
    }

    #[test]
    fn invariant_5_a_site_that_shows_an_older_head_than_it_has_shown_is_found_out() {
        let kept = table(5, 2, 9);
        assert_eq!(hold_against(&kept, &kept), Ok(false));
        assert_eq!(hold_against(&table(6, 2, 10), &kept), Ok(true));
        let older = hold_against(&table(4, 2, 8), &kept).unwrap_err();
        assert!(matches!(older, WentBack::Table { .. }), "{older}");
        let other = hold_against(&HeadTable { at_ms: 2, ..kept.clone() }, &kept).unwrap_err();
        assert!(matches!(other, WentBack::Another(_)), "{other}");
        // Signed anew over what was put back: a higher number alone helps nothing.
        assert_eq!(hold_against(&table(6, 2, 8), &kept), Err(WentBack::Block(BlockNo(0))));
        let cut = HeadTable { tips: Vec::new(), ..table(6, 2, 9) };
        assert!(matches!(hold_against(&cut, &kept), Err(WentBack::Chain { .. })));
        // A restore begins anew, in a higher epoch.
        assert_eq!(hold_against(&table(2, 4, 1), &kept), Ok(true));
        assert!(hold_against(&kept, &table(2, 4, 1)).is_err());
    }
}
