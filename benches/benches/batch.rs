//! Batches of 1,024 random meters in this process, beside the bare loop over the same telegrams.
#![allow(clippy::unwrap_used, reason = "a bench that fails may end")]

use benches::{
    bare::FlatTable,
    fleet::Telegrams,
    home,
    in_process::{BATCH, all_threads, one_thread, open_batches, open_batches_bare},
    site::Parts,
};
use criterion::{Criterion, Throughput};

fn main() -> std::process::ExitCode {
    let meters = home::meters();
    home::within_a_site(meters, None, |site| {
        let (runtime, one) = (all_threads()?, one_thread()?);
        let parts = runtime.block_on(Parts::of(&site))?;
        runtime.block_on(parts.import(meters))?;
        let (keyring, _) = runtime.block_on(parts.warm_up())?;
        let ciphering = parts.ciphering(&keyring);
        let table = FlatTable::new(meters)?;
        let telegrams = Telegrams::of_random_meters(meters, meters as usize / BATCH * BATCH)?;
        let mut c = Criterion::default().configure_from_args();
        let mut group = c.benchmark_group("batch");
        group.throughput(Throughput::Elements(telegrams.len() as u64)).sample_size(20);
        group.bench_function("ciphering", |b| {
            b.iter(|| assert_eq!(open_batches(&one, &ciphering, &telegrams), telegrams.len()));
        });
        group.bench_function("bare", |b| {
            b.iter(|| open_batches_bare(&table, &telegrams));
        });
        group.finish();
        c.final_summary();
        Ok(())
    })
}
