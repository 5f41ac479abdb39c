//! Batches through mutual TLS, beside an echo of the same bytes. The time is the server's processor
//! time an item, as the kernel counts it: the clients, which share the machine, are left out.

use std::time::Duration;

use benches::{
    fleet::Telegrams,
    home,
    in_process::{BATCH, all_threads},
    on_the_wire::{Turn, Way, Wire},
    site::Parts,
};
use criterion::{Criterion, Throughput};

/// The kernel counts processor time in hundredths of a second: shorter turns tell nothing.
const TURN: Duration = Duration::from_millis(500);

fn main() -> std::process::ExitCode {
    let meters = home::meters();
    home::within_a_site(meters, None, |site| {
        let runtime = all_threads()?;
        let parts = runtime.block_on(Parts::of(&site))?;
        runtime.block_on(parts.import(meters))?;
        drop(parts);
        let telegrams = Telegrams::of_random_meters(meters, meters as usize / BATCH * BATCH)?;
        let (wire, _) = runtime.block_on(Wire::up(&site, &telegrams))?;
        let mut c = Criterion::default().configure_from_args();
        let mut group = c.benchmark_group("grpc, processor time an item");
        group.throughput(Throughput::Elements(1)).sample_size(10);
        for (way, name) in [(Way::Stream, "stream"), (Way::Unary, "unary")] {
            // An item costs the same in a short turn and a long one, so one turn stands for all.
            let time = |turn: Result<Turn, _>, items: u64| match turn {
                Ok(turn) => Duration::from_secs_f64(turn.cpu_ns() * items as f64 / 1e9),
                Err(error) => {
                    let _: benches::Error = error;
                    Duration::ZERO
                }
            };
            group.bench_function(format!("{name}, service"), |b| {
                b.iter_custom(|items| time(runtime.block_on(wire.kms(way, TURN)), items));
            });
            group.bench_function(format!("{name}, echo"), |b| {
                b.iter_custom(|items| time(runtime.block_on(wire.echo(way, TURN)), items));
            });
        }
        group.finish();
        c.final_summary();
        wire.down()
    })
}
