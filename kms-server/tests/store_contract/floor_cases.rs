//! Receive floors.

use std::sync::Arc;

use kms_core::{
    BlockNo, Fingerprint, SystemTitle,
    audit::NodeId,
    counters::LineName,
    floors::{FloorPlace, FloorRow},
};
use kms_server::store::{WriteStore, floors::FloorRun};

use super::{Seen, same};

type Outcome = Result<(), Seen>;

fn row(block: u32, line: u8, node: u8, at_ms: u64) -> FloorRow {
    FloorRow {
        block: BlockNo(block),
        line: LineName {
            fingerprint: Fingerprint([line; 16]),
            originator: SystemTitle::new([line; 8]),
        },
        node: NodeId([node; 16]),
        at_ms,
        body: [line ^ node; 16],
        mac: [at_ms as u8; 16],
    }
}

fn run(node: u8, at_ms: u64, ended: bool) -> FloorRun {
    FloorRun { node: NodeId([node; 16]), at_ms, ended }
}

fn sorted(mut rows: Vec<FloorRow>) -> Vec<FloorRow> {
    rows.sort_by_key(|row| (row.block, row.line, row.node));
    rows
}

pub async fn floors_come_back_byte_for_byte_and_each_node_has_its_own(
    store: Arc<dyn WriteStore>,
) -> Outcome {
    let (one, other) = (NodeId([1; 16]), NodeId([2; 16]));
    same(store.floors(BlockNo(0)).await?, Vec::new())?;
    same(store.floor_run(&one).await?, None)?;
    let rows: Vec<FloorRow> = (0..200).map(|line| row(u32::from(line) % 2, line, 1, 10)).collect();
    store.put_floors(&rows, &run(1, 10, false)).await?;
    store.put_floors(&[row(0, 4, 2, 11)], &run(2, 11, true)).await?;
    let of_block = |block| {
        let rows = rows.iter().filter(|row| row.block == BlockNo(block));
        sorted(rows.cloned().chain((block == 0).then(|| row(0, 4, 2, 11))).collect())
    };
    for block in [0, 1] {
        same(sorted(store.floors(BlockNo(block)).await?), of_block(block))?;
    }
    same(store.floor_run(&one).await?, Some(run(1, 10, false)))?;
    same(store.floor_run(&other).await?, Some(run(2, 11, true)))?;
    // Replaced by line and node; what others wrote stays.
    store.put_floors(&[row(0, 4, 1, 12)], &run(1, 12, true)).await?;
    let now = store.floors(BlockNo(0)).await?;
    same(now.len(), of_block(0).len())?;
    same(now.contains(&row(0, 4, 1, 12)) && now.contains(&row(0, 4, 2, 11)), true)?;
    same(store.floor_run(&one).await?, Some(run(1, 12, true)))?;
    // What others wrote since, the oldest first.
    same(store.floors_after(&FloorPlace::since(10), &one, 10).await?, vec![row(0, 4, 2, 11)])?;
    same(store.floors_after(&row(0, 4, 2, 11).place(), &one, 10).await?, Vec::new())?;
    let others = store.floors_after(&FloorPlace::since(0), &other, 300).await?;
    same((others.len(), others.last()), (200, Some(&row(0, 4, 1, 12))))?;
    // Page by page, though most are of one moment.
    let (mut place, mut paged) = (FloorPlace::since(0), Vec::new());
    loop {
        let page = store.floors_after(&place, &other, 7).await?;
        let Some(last) = page.last() else { break };
        place = last.place();
        paged.extend(page);
    }
    same(paged, others)
}
