//! Figures: counted where something happens, read when somebody asks.
//!
//! A part counts in atomics of its own ([`Counter`], [`Histogram`]) and says what it has counted when
//! it is asked, as a [`Source`]. Nothing is global, nothing grows, and counting takes no lock. A
//! [`Page`] takes what is said and writes it in Prometheus's text format. Which metrics there are
//! stands in [`catalogue`](super::catalogue).
//!
//! A label's value is a word of this program's ([`Label::Word`]) or comes from its configuration
//! ([`Label::Configured`]). There is no third kind: what a caller sends never becomes a label.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Upper bounds of all histograms of durations: from a tenth of a millisecond to ten seconds.
pub const BUCKETS: [(Duration, &str); 16] = [
    (Duration::from_micros(100), "0.0001"),
    (Duration::from_micros(250), "0.00025"),
    (Duration::from_micros(500), "0.0005"),
    (Duration::from_millis(1), "0.001"),
    (Duration::from_micros(2_500), "0.0025"),
    (Duration::from_millis(5), "0.005"),
    (Duration::from_millis(10), "0.01"),
    (Duration::from_millis(25), "0.025"),
    (Duration::from_millis(50), "0.05"),
    (Duration::from_millis(100), "0.1"),
    (Duration::from_millis(250), "0.25"),
    (Duration::from_millis(500), "0.5"),
    (Duration::from_secs(1), "1"),
    (Duration::from_millis(2_500), "2.5"),
    (Duration::from_secs(5), "5"),
    (Duration::from_secs(10), "10"),
];

/// A metric: its name and type for Prometheus, its meaning and its alarm for people.
#[derive(Debug, PartialEq, Eq)]
pub struct Metric {
    /// As Prometheus knows it, with its unit at the end.
    pub name: &'static str,
    /// The kind of figure.
    pub kind: Kind,
    /// Names of its labels, in the order in which samples give their values.
    pub labels: &'static [&'static str],
    /// One sentence: what it counts.
    pub help: &'static str,
    /// The meaning of a change.
    pub meaning: &'static str,
    /// When to wake somebody; empty: never.
    pub alarm: &'static str,
}

/// The kinds of figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only rises.
    Counter,
    /// Rises and falls.
    Gauge,
    /// Durations, counted into [`BUCKETS`].
    Histogram,
}

impl Kind {
    /// As Prometheus writes it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A label's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Label<'a> {
    /// A word of this program's: there are as many as the program has.
    Word(&'static str),
    /// Out of the configuration: there is one.
    Configured(&'a str),
}

impl From<&'static str> for Label<'_> {
    fn from(word: &'static str) -> Self {
        Self::Word(word)
    }
}

/// A figure that only rises.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds.
    #[inline]
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// The count so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Durations, counted by how long they were: two additions for each.
#[derive(Debug, Default)]
pub struct Histogram {
    /// The last is for what is longer than all bounds.
    counts: [Counter; BUCKETS.len() + 1],
    sum_ns: Counter,
}

impl Histogram {
    /// Counts one duration.
    pub fn observe(&self, duration: Duration) {
        let bucket = BUCKETS.partition_point(|(bound, _)| *bound < duration);
        if let Some(count) = self.counts.get(bucket) {
            count.add(1);
        }
        self.sum_ns.add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }

    /// The number of durations counted.
    pub fn count(&self) -> u64 {
        self.counts.iter().map(Counter::get).sum()
    }

    /// Of all of them together.
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum_ns.get())
    }
}

/// A source of figures. A part implements this for itself, `app` hands all of them to the
/// listener, which asks them anew for every scrape. Must not wait.
pub trait Source: Send + Sync + 'static {
    /// Writes the figures of now.
    fn tell(&self, page: &mut Page);
}

/// One answer to a scrape.
#[derive(Debug, Default)]
pub struct Page {
    metrics: BTreeMap<&'static str, (&'static Metric, String)>,
}

impl Page {
    /// The page with the figures of all `sources`.
    pub fn of<'a>(sources: impl IntoIterator<Item = &'a dyn Source>) -> Self {
        let mut page = Self::default();
        sources.into_iter().for_each(|source| source.tell(&mut page));
        page
    }

    /// One sample of a counter or a gauge.
    pub fn sample(
        &mut self,
        metric: &'static Metric,
        labels: &[Label<'_>],
        value: impl Into<Value>,
    ) {
        let labels = pairs(metric, labels);
        let lines = self.lines(metric);
        write_line(lines, metric.name, "", &labels, &value.into().0);
    }

    /// A counter that is left out while it is 0, so that the combinations of labels which never occur
    /// don't fill the page.
    pub fn counter(&mut self, metric: &'static Metric, labels: &[Label<'_>], counter: &Counter) {
        self.lines(metric);
        match counter.get() {
            0 => {}
            count => self.sample(metric, labels, count),
        }
    }

    /// A histogram; left out while it is empty.
    pub fn histogram(&mut self, metric: &'static Metric, labels: &[Label<'_>], of: &Histogram) {
        let labels = pairs(metric, labels);
        let lines = self.lines(metric);
        // Read once: while this is written the figures go on.
        let counts: Vec<u64> = of.counts.iter().map(Counter::get).collect();
        let total: u64 = counts.iter().sum();
        if total == 0 {
            return;
        }
        let comma = if labels.is_empty() { "" } else { "," };
        let mut so_far = 0;
        for (count, bound) in counts.iter().zip(BUCKETS.map(|(_, text)| text)) {
            so_far += count;
            let labels = format!("{labels}{comma}le=\"{bound}\"");
            write_line(lines, metric.name, "_bucket", &labels, &so_far.to_string());
        }
        let infinite = format!("{labels}{comma}le=\"+Inf\"");
        write_line(lines, metric.name, "_bucket", &infinite, &total.to_string());
        let sum = of.sum().as_secs_f64().to_string();
        write_line(lines, metric.name, "_sum", &labels, &sum);
        write_line(lines, metric.name, "_count", &labels, &total.to_string());
    }

    /// The metrics that were told, with or without a sample.
    pub fn metrics(&self) -> impl Iterator<Item = &'static Metric> {
        self.metrics.values().map(|(metric, _)| *metric)
    }

    /// In Prometheus's text format, version 0.0.4.
    pub fn render(&self) -> String {
        let mut text = String::new();
        for (Metric { name, kind, help, .. }, lines) in self.metrics.values() {
            // Writing to a string can't fail.
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {}\n{lines}", kind.word());
        }
        text
    }

    fn lines(&mut self, metric: &'static Metric) -> &mut String {
        &mut self.metrics.entry(metric.name).or_insert_with(|| (metric, String::new())).1
    }
}

/// A number as it stands on the page.
pub struct Value(String);

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self(value.to_string())
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self(value.to_string())
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self(u8::from(value).to_string())
    }
}

fn write_line(lines: &mut String, name: &str, suffix: &str, labels: &str, value: &str) {
    let (open, close) = if labels.is_empty() { ("", "") } else { ("{", "}") };
    // Writing to a string can't fail.
    let _ = writeln!(lines, "{name}{suffix}{open}{labels}{close} {value}");
}

fn pairs(metric: &Metric, values: &[Label<'_>]) -> String {
    debug_assert_eq!(metric.labels.len(), values.len(), "labels of {}", metric.name);
    let pairs = metric.labels.iter().zip(values).map(|(name, value)| {
        let (Label::Word(value) | Label::Configured(value)) = *value;
        format!("{name}=\"{}\"", escaped(value))
    });
    pairs.collect::<Vec<_>>().join(",")
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    static THINGS: Metric = Metric {
        name: "things_total",
        kind: Kind::Counter,
        labels: &["sort", "label"],
        help: "Things.",
        meaning: "",
        alarm: "",
    };
    static TIMES: Metric = Metric {
        name: "times_seconds",
        kind: Kind::Histogram,
        labels: &[],
        help: "Times.",
        meaning: "",
        alarm: "",
    };

    #[test]
    fn a_page_is_in_the_text_format() {
        let mut page = Page::default();
        let times = Histogram::default();
        times.observe(Duration::from_millis(1));
        times.observe(Duration::from_secs(60));
        page.histogram(&TIMES, &[], &times);
        page.sample(&THINGS, &["good".into(), Label::Configured("a\"b\\c\nd")], 3_u64);
        let text = page.render();
        assert!(text.starts_with(
            "# HELP things_total Things.\n# TYPE things_total counter\n\
             things_total{sort=\"good\",label=\"a\\\"b\\\\c\\nd\"} 3\n"
        ));
        for line in [
            "# TYPE times_seconds histogram",
            "times_seconds_bucket{le=\"0.0005\"} 0",
            "times_seconds_bucket{le=\"0.001\"} 1",
            "times_seconds_bucket{le=\"10\"} 1",
            "times_seconds_bucket{le=\"+Inf\"} 2",
            "times_seconds_sum 60.001",
            "times_seconds_count 2",
        ] {
            assert!(text.lines().any(|it| it == line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn what_never_occurred_is_announced_and_has_no_line() {
        let mut page = Page::default();
        page.counter(&THINGS, &["good".into(), "x".into()], &Counter::default());
        page.histogram(&TIMES, &[], &Histogram::default());
        assert_eq!(page.render().lines().filter(|line| !line.starts_with('#')).count(), 0);
        assert_eq!(page.metrics().count(), 2);
    }

    #[test]
    fn bounds_rise_and_are_written_as_they_are_meant() {
        assert!(BUCKETS.is_sorted_by(|(one, _), (next, _)| one < next));
        for (bound, text) in BUCKETS {
            assert_eq!(bound.as_secs_f64().to_string(), text);
        }
    }
}
