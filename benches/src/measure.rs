//! Medians of alternating rounds.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The middle of `values`; 0 if there are none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

/// The value that the share `q` of all values does not exceed.
pub fn quantile(sorted: &[Duration], q: f64) -> Duration {
    let at = (sorted.len() as f64 * q) as usize;
    sorted.get(at.min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
}

/// The figures of several things, measured in turns: one row a round.
#[derive(Clone, Debug, Default)]
pub struct Rounds(Vec<Vec<f64>>);

impl Rounds {
    /// Takes one round's figures.
    pub fn push(&mut self, round: Vec<f64>) {
        self.0.push(round);
    }

    /// The median of the thing at `index`.
    pub fn median(&self, index: usize) -> f64 {
        let of_rounds: Vec<f64> =
            self.0.iter().filter_map(|round| round.get(index).copied()).collect();
        median(&of_rounds)
    }

    /// The median of the rounds' ratios of two things: what disturbs a round disturbs both.
    pub fn ratio(&self, over: usize, under: usize) -> f64 {
        let ratios: Vec<f64> =
            self.0.iter().filter_map(|round| Some(round.get(over)? / round.get(under)?)).collect();
        median(&ratios)
    }
}

/// Processor time of this thread. The clock on the wall also counts when others have the core.
fn thread_time_ns() -> f64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    now.tv_sec as f64 * 1e9 + now.tv_nsec as f64
}

/// Nanoseconds of this thread an item of each piece of work, in turns, each round starting with
/// another one. The first round warms up and does not count. A piece of work answers with its items.
pub fn in_turns(rounds: usize, work: &mut [&mut dyn FnMut() -> usize]) -> Rounds {
    let mut all = Rounds::default();
    for round in 0..=rounds {
        let mut figures = vec![0.0; work.len()];
        for step in 0..work.len() {
            let index = (step + round) % work.len();
            if let (Some(work), Some(figure)) = (work.get_mut(index), figures.get_mut(index)) {
                let start = thread_time_ns();
                let items = work();
                *figure = (thread_time_ns() - start) / items.max(1) as f64;
            }
        }
        if round > 0 {
            all.push(figures);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_the_median_of_the_rounds_ratios() {
        let mut rounds = Rounds::default();
        for round in [[1.0, 2.0], [10.0, 20.0], [3.0, 1.0]] {
            rounds.push(round.to_vec());
        }
        assert_eq!(rounds.ratio(0, 1), 0.5);
        assert_eq!(rounds.median(0), 3.0);
    }

    #[test]
    fn the_last_value_is_the_highest_quantile() {
        let sorted: Vec<Duration> = (1..=100).map(Duration::from_micros).collect();
        assert_eq!(quantile(&sorted, 1.0), Duration::from_micros(100));
        assert_eq!(quantile(&sorted, 0.5), Duration::from_micros(51));
        assert_eq!(quantile(&[], 0.5), Duration::ZERO);
    }
}
