//! The head table's share of a commit and of a start, beside a whole commit.
#![allow(clippy::unwrap_used, reason = "a bench that fails may end")]

use std::{
    fs::File,
    hint::black_box,
    os::unix::fs::FileExt as _,
    time::{Duration, Instant},
};

use benches::{home, in_process::all_threads, site::Parts};
use criterion::Criterion;
use kms_core::{
    BlockNo, Epoch, Position, Sequence,
    audit::{AuditEvent, AuditOutcome, AuditedCall, NodeId, Subject},
    block::BlockMark,
};

/// Bytes of a chain's end as each commit notes it beside the database.
const TIP_BYTES: usize = 88;
/// Meters that are there before the commits that are measured.
const METERS: u32 = 20_000;

fn event(heads: usize) -> AuditEvent {
    let call = AuditedCall::new("benches", "Meters/ImportMeters");
    let mut entry = call.entry(1, Subject::NONE, AuditOutcome::Done);
    let position = Position { epoch: Epoch(2), sequence: Sequence(7) };
    let mark = |block| BlockMark { block: BlockNo(block), position, digest: [7; 32] };
    entry.heads = (0..heads as u32).map(mark).collect();
    AuditEvent { node: NodeId([1; 16]), sequence: 1, entry }
}

fn main() -> std::process::ExitCode {
    home::within_a_site(METERS * 8, None, |site| {
        let runtime = all_threads()?;
        let parts = runtime.block_on(Parts::of(&site))?;
        runtime.block_on(parts.import(METERS))?;
        let (table, domain, key) = runtime.block_on(parts.head_table())?;
        let tip = File::create(site.places().dir.join("tip"))?;
        let mut import = parts.importer()?;
        let mut next = METERS;
        let mut c = Criterion::default().configure_from_args();

        let mut group = c.benchmark_group("heads");
        group.sample_size(20);
        group.bench_function("start: signature and states of all blocks", |b| {
            b.iter(|| assert!(black_box(&table).open(&domain, &key).is_some()));
        });
        for heads in [0, 1] {
            group.bench_function(format!("commit: event with {heads} states"), |b| {
                let event = event(heads);
                b.iter(|| black_box(&event).encode().len());
            });
        }
        group.bench_function("commit: the chain's end noted outside the database", |b| {
            b.iter(|| tip.write_all_at(black_box(&[7; TIP_BYTES]), 0).unwrap());
        });
        group.bench_function("commit: all of it, one meter", |b| {
            b.iter_custom(|times| {
                let began = Instant::now();
                for _ in 0..times.min(u64::from(METERS)) {
                    runtime.block_on(import(next)).unwrap();
                    next += 1;
                }
                let scale = times as f64 / times.min(u64::from(METERS)) as f64;
                Duration::from_secs_f64(began.elapsed().as_secs_f64() * scale)
            });
        });
        group.finish();
        c.final_summary();
        Ok(())
    })
}
