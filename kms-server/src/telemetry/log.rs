//! The way of a log line to standard error: through a queue with a bound, and a thread of its own.
//!
//! No writer of an event waits for the reader of the log. A pipe that nobody empties blocks the one
//! thread; a line that finds no room, or that standard error does not take, is dropped and counted, and
//! when lines pass again, one of them says how many are missing.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, ErrorKind, Write},
    os::fd::AsFd as _,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use tracing_subscriber::fmt::MakeWriter;

use super::{
    catalogue,
    metrics::{Counter, Page, Source},
};

/// Lines that wait to be written.
const LINES_MAX: usize = 4_096;
/// Their bytes.
const BYTES_MAX: usize = 1 << 20;
/// Between two tries where standard error is not to be waited for (somebody set O_NONBLOCK).
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// The log of this process. Clones are the same one.
#[derive(Clone)]
pub struct Log(Arc<Shared>);

struct Shared {
    queue: Mutex<Queue>,
    /// Something was queued.
    more: Condvar,
    /// Everything was written.
    drained: Condvar,
    dropped: Counter,
}

#[derive(Default)]
struct Queue {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// A line is with the operating system.
    writing: bool,
    /// Dropped, and not yet told.
    untold: u64,
}

impl Log {
    /// Begins to write to standard error.
    pub fn to_stderr() -> io::Result<Self> {
        // A handle of its own: nobody else's line is waited for under the library's lock.
        let stderr = File::from(io::stderr().as_fd().try_clone_to_owned()?);
        Self::to(stderr)
    }

    fn to(sink: impl Write + Send + 'static) -> io::Result<Self> {
        let log = Self(Arc::new(Shared {
            queue: Mutex::default(),
            more: Condvar::new(),
            drained: Condvar::new(),
            dropped: Counter::default(),
        }));
        let shared = Arc::clone(&log.0);
        thread::Builder::new().name("log".into()).spawn(move || shared.carry(sink))?;
        Ok(log)
    }

    /// Says `line`, or drops it. Never waits.
    pub fn say(&self, line: &[u8]) {
        let mut queue = self.0.lock();
        let bytes = queue.bytes + line.len();
        if queue.lines.len() >= LINES_MAX || bytes > BYTES_MAX {
            queue.untold += 1;
            self.0.dropped.add(1);
            return;
        }
        queue.bytes = bytes;
        queue.lines.push_back(line.to_vec());
        self.0.more.notify_one();
    }

    /// Waits until everything is written, at most `patience`.
    pub fn drain(&self, patience: Duration) {
        let until = Instant::now() + patience;
        let mut queue = self.0.lock();
        while queue.writing || !queue.lines.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.0.drained.wait_timeout(queue, left);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Lines that were dropped since the start.
    pub fn dropped(&self) -> u64 {
        self.0.dropped.get()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries lines to `sink`, for as long as the process lives.
    fn carry(&self, mut sink: impl Write) {
        loop {
            let line = self.next();
            let written = write_whole(&mut sink, &line);
            let mut queue = self.lock();
            queue.writing = false;
            if written.is_err() {
                queue.untold += 1;
                self.dropped.add(1);
            }
            // Said once there is room for it and somebody reads.
            let has_room = queue.lines.len() < LINES_MAX / 2 && queue.bytes < BYTES_MAX / 2;
            let untold =
                if written.is_ok() && has_room { std::mem::take(&mut queue.untold) } else { 0 };
            let is_drained = queue.lines.is_empty() && untold == 0;
            drop(queue);
            if untold > 0 {
                tracing::error!(lines = untold, "log lines were dropped: nobody read the log");
            }
            if is_drained {
                self.drained.notify_all();
            }
        }
    }

    fn next(&self) -> Vec<u8> {
        let mut queue = self.lock();
        loop {
            if let Some(line) = queue.lines.pop_front() {
                queue.bytes -= line.len();
                queue.writing = true;
                return line;
            }
            queue = self.more.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn write_whole(sink: &mut impl Write, mut line: &[u8]) -> io::Result<()> {
    while !line.is_empty() {
        match sink.write(line) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => line = line.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(RETRY_PAUSE),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The writer of one event: takes its line in one piece.
pub struct Line(Log);

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.say(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line(self.clone())
    }
}

impl Source for Log {
    fn tell(&self, page: &mut Page) {
        page.sample(&catalogue::LOG_LINES_DROPPED, &[], self.dropped());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Takes a line when the test says so.
    struct Gate(mpsc::Receiver<()>, mpsc::Sender<Vec<u8>>);

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.recv().map_err(|_| io::Error::from(ErrorKind::BrokenPipe))?;
            self.1.send(bytes.to_vec()).unwrap();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_finds_no_room_is_dropped_and_counted_and_the_rest_comes_in_order() {
        let (open, gate) = mpsc::channel();
        let (sink, written) = mpsc::channel();
        let log = Log::to(Gate(gate, sink)).unwrap();
        log.say(b"first");
        // The thread has it now, and the queue is empty.
        while !log.0.lock().writing {
            thread::yield_now();
        }
        for number in 0..LINES_MAX + 7 {
            log.say(number.to_string().as_bytes());
        }
        assert_eq!(log.dropped(), 7);
        log.drain(Duration::from_millis(10)); // Comes back although nothing was written.
        for _ in 0..=LINES_MAX {
            open.send(()).unwrap();
        }
        log.drain(Duration::from_secs(20));
        let lines: Vec<_> = written.try_iter().collect();
        assert_eq!(lines.len(), LINES_MAX + 1);
        assert_eq!((&lines[0][..], &lines[1][..]), (&b"first"[..], &b"0"[..]));
        assert_eq!(lines[LINES_MAX], (LINES_MAX - 1).to_string().into_bytes());
    }

    #[test]
    fn the_queue_is_bounded_by_bytes_too() {
        let (_open, gate) = mpsc::channel();
        let (sink, _written) = mpsc::channel();
        let log = Log::to(Gate(gate, sink)).unwrap();
        let line = vec![b'x'; BYTES_MAX / 4];
        for _ in 0..10 {
            log.say(&line);
        }
        assert!(log.dropped() >= 5, "{}", log.dropped());
    }

    #[test]
    fn a_sink_that_fails_costs_its_lines() {
        let (open, gate) = mpsc::channel();
        drop(open);
        let log = Log::to(Gate(gate, mpsc::channel().0)).unwrap();
        log.say(b"a");
        log.say(b"b");
        log.drain(Duration::from_secs(20));
        assert_eq!(log.dropped(), 2);
    }
}
