//! The file of rules, and what they say of a call.

use std::{
    cell::Cell,
    collections::HashMap,
    env,
    ffi::OsString,
    fs,
    io::Write as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    thread,
    time::Duration,
};

use super::Faults;

/// How often a call that hangs looks whether it is let go.
const LOOK: Duration = Duration::from_millis(10);

/// One line of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rule {
    function: String,
    mechanism: Option<u64>,
    after: u64,
    times: Option<u64>,
    code: Option<u64>,
    answer: Option<u64>,
    garble: Option<Garble>,
    gives: Option<Vec<u8>>,
    delay_ms: u64,
    hang: bool,
    inside: Option<u64>,
    alone: bool,
    exit: Option<u64>,
}

/// How what a call gave is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Garble {
    Flip,
    Zero,
    Repeat,
    Cut,
    Clock,
}

/// What is to be done with a call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Not made; this is the answer.
    pub(super) instead: Option<u64>,
    /// Made; this is the answer.
    pub(super) answer: Option<u64>,
    pub(super) garble: Option<Garble>,
    /// These bytes are what it gives.
    pub(super) gives: Option<Vec<u8>>,
    /// Held in its middle, after so many places.
    inside: Option<u64>,
    /// Made on the thread that is the library's alone.
    pub(super) alone: bool,
    stamp: Stamp,
}

/// Device, inode and time of the file as it was read.
type Stamp = Option<(u64, u64, i64, i64)>;

/// A line that says nothing that we know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: `{word}` is no rule")]
pub(super) struct BadRule {
    line: usize,
    word: String,
}

/// Rules, and whether calls are to be written down.
pub(super) fn parse(text: &str) -> Result<(Vec<Rule>, bool), BadRule> {
    let (mut rules, mut log) = (Vec::new(), false);
    for (at, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let bad = |word: &str| BadRule { line: at + 1, word: word.to_owned() };
        match words.next() {
            None => {}
            Some("log") => log = true,
            Some(name) if name == "*" || name.starts_with("C_") => {
                let mut rule = Rule { function: name.to_owned(), ..Rule::default() };
                for word in words {
                    rule.read(word).ok_or_else(|| bad(word))?;
                }
                rules.push(rule);
            }
            Some(word) => return Err(bad(word)),
        }
    }
    Ok((rules, log))
}

impl Rule {
    fn read(&mut self, word: &str) -> Option<()> {
        match word {
            "hang" => self.hang = true,
            "alone" => self.alone = true,
            _ => return self.read_value(word),
        }
        Some(())
    }

    fn read_value(&mut self, word: &str) -> Option<()> {
        let (name, value) = word.split_once('=')?;
        if name == "garble" {
            self.garble = Some(match value {
                "flip" => Garble::Flip,
                "zero" => Garble::Zero,
                "repeat" => Garble::Repeat,
                "cut" => Garble::Cut,
                "clock" => Garble::Clock,
                _ => return None,
            });
            return Some(());
        }
        if name == "gives" {
            self.gives = Some(bytes_of(value)?);
            return Some(());
        }
        let value = match value.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).ok()?,
            None => value.parse().ok()?,
        };
        match name {
            "mechanism" => self.mechanism = Some(value),
            "after" => self.after = value,
            "times" => self.times = Some(value),
            "return" => self.code = Some(value),
            "answer" => self.answer = Some(value),
            "delay_ms" => self.delay_ms = value,
            "exit" => self.exit = Some(value),
            "inside" => self.inside = Some(value),
            _ => return None,
        }
        Some(())
    }

    fn is_about(&self, function: &str, mechanism: Option<u64>) -> bool {
        (self.function == "*" || self.function == function)
            && self.mechanism.is_none_or(|wanted| mechanism == Some(wanted))
    }

    /// Whether the call of this number, from 0, is met.
    fn meets(&self, number: u64) -> bool {
        number >= self.after && self.times.is_none_or(|times| number - self.after < times)
    }
}

/// Bytes in hexadecimal.
fn bytes_of(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> =
        text.chars().map(|it| it.to_digit(16).map(|it| it as u8)).collect::<Option<_>>()?;
    let (pairs, rest) = digits.as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

/// What the file said when it was last read.
#[derive(Default)]
struct State {
    stamp: Stamp,
    rules: Vec<Rule>,
    seen: Vec<u64>,
    log: bool,
    last: HashMap<&'static str, Vec<u8>>,
}

fn state() -> MutexGuard<'static, State> {
    static STATE: OnceLock<Mutex<State>> = OnceLock::new();
    STATE.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

fn control() -> Option<PathBuf> {
    env::var_os(Faults::CONTROL).map(PathBuf::from)
}

/// Where a `log` goes.
pub(super) fn log_of(control: &Path) -> PathBuf {
    control.with_added_extension("calls")
}

fn stamp_of(path: &Path) -> Stamp {
    let data = fs::metadata(path).ok()?;
    Some((data.dev(), data.ino(), data.mtime(), data.mtime_nsec()))
}

impl State {
    fn look(&mut self, path: &Path) {
        let stamp = stamp_of(path);
        if stamp == self.stamp {
            return;
        }
        self.stamp = stamp;
        let text = fs::read_to_string(path).unwrap_or_default();
        let (rules, log) = parse(&text).unwrap_or_else(|bad| {
            // A test with a fault that is not there would pass for a wrong reason.
            let _ = writeln!(std::io::stderr(), "fault module: {}: {bad}", path.display());
            std::process::abort()
        });
        self.seen = vec![0; rules.len()];
        (self.rules, self.log) = (rules, log);
    }
}

/// Waits, hangs or ends the process as the rules say; tells what to do with the call.
pub(super) fn meet(function: &'static str, mechanism: Option<u64>) -> Verdict {
    let Some(path) = control() else { return Verdict::default() };
    let mut verdict = Verdict::default();
    let mut wait = Duration::ZERO;
    let mut hang = false;
    let stamp = {
        let mut state = state();
        state.look(&path);
        let State { rules, seen, stamp, .. } = &mut *state;
        for (rule, seen) in rules.iter().zip(seen) {
            if !rule.is_about(function, mechanism) {
                continue;
            }
            *seen += 1;
            if !rule.meets(*seen - 1) {
                continue;
            }
            if let Some(code) = rule.exit {
                std::process::exit(code as i32);
            }
            wait += Duration::from_millis(rule.delay_ms);
            hang |= rule.hang;
            verdict.inside = verdict.inside.or(rule.inside);
            verdict.alone |= rule.alone;
            verdict.instead = verdict.instead.or(rule.code);
            verdict.answer = verdict.answer.or(rule.answer);
            verdict.garble = verdict.garble.or(rule.garble);
            verdict.gives = verdict.gives.or_else(|| rule.gives.clone());
        }
        *stamp
    };
    verdict.stamp = stamp;
    thread::sleep(wait);
    while hang && stamp_of(&path) == stamp {
        thread::sleep(LOOK);
    }
    verdict
}

/// What a library does in the middle of a call.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// It wraps or unwraps.
    Ciphers,
    /// It takes random bytes: a place in the making of keys alone, elsewhere they mask what it keeps.
    Random,
}

/// A call that is to be held in its middle.
#[derive(Clone, Copy)]
struct Hold {
    function: &'static str,
    /// Places to pass before.
    places: u64,
    stamp: Stamp,
    /// An address of this thread's stack, and one of what it allocates.
    addresses: [usize; 2],
}

thread_local! {
    static HOLD: Cell<Option<Hold>> = const { Cell::new(None) };
}

/// Makes a call, which [`pass`] may hold.
pub(super) fn within<T>(verdict: &Verdict, function: &'static str, call: impl FnOnce() -> T) -> T {
    if let Some(places) = verdict.inside {
        let (stack, heap) = (0_u8, Box::new(0_u8));
        let addresses = [&raw const stack as usize, &raw const *heap as usize];
        HOLD.set(Some(Hold { function, places, stamp: verdict.stamp, addresses }));
    }
    let made = call();
    HOLD.set(None);
    made
}

/// Passes a place, and stops behind it if that is asked for: what a generator ciphers within is no place.
pub(super) fn pass<T>(kind: Place, work: impl FnOnce() -> T) -> T {
    let aside = if kind == Place::Random { HOLD.take() } else { None };
    let done = work();
    if aside.is_some() {
        HOLD.set(aside);
    }
    place(kind);
    done
}

/// In the middle of a call, of this kind: waits there until the file changes, if that is asked for.
fn place(kind: Place) {
    let Some(hold) = HOLD.get() else { return };
    let makes = hold.function.starts_with("C_GenerateKey");
    let (true, Some(path)) = (makes == (kind == Place::Random), control()) else { return };
    HOLD.set(None);
    if let Some(places) = hold.places.checked_sub(1) {
        return HOLD.set(Some(Hold { places, ..hold }));
    }
    let [stack, heap] = hold.addresses;
    let (told, new) = (held_of(&path), held_of(&path).with_added_extension("new"));
    let text = format!("{} {stack} {heap}", hold.function);
    if fs::write(&new, text).and_then(|()| fs::rename(&new, &told)).is_err() {
        // Whoever waits for it would wait in vain.
        std::process::abort();
    }
    while stamp_of(&path) == hold.stamp {
        thread::sleep(LOOK);
    }
}

/// Where it is told which call is held.
pub(super) fn held_of(control: &Path) -> PathBuf {
    control.with_added_extension("held")
}

/// Writes a call down, if that is asked for.
pub(super) fn note(function: &'static str, answer: u64) {
    let Some(path) = control() else { return };
    if !state().log {
        return;
    }
    let file = fs::OpenOptions::new().append(true).create(true).open(log_of(&path));
    if let Ok(mut file) = file {
        let _ = file.write_all(format!("{function} {answer:#x}\n").as_bytes());
    }
}

/// Changes what a call gave, as the rules said; says how long it now is.
pub(super) fn change(verdict: &Verdict, function: &'static str, given: &mut [u8]) -> usize {
    let Some(gives) = &verdict.gives else { return garble(verdict.garble, function, given) };
    for (to, from) in given.iter_mut().zip(gives) {
        *to = *from;
    }
    given.len()
}

fn garble(how: Option<Garble>, function: &'static str, given: &mut [u8]) -> usize {
    let before = match how {
        Some(Garble::Repeat) => state().last.get(function).cloned(),
        _ => None,
    };
    // What is repeated is the first that was given: else a second call would be told its own.
    if how != Some(Garble::Repeat) {
        state().last.insert(function, given.to_vec());
    }
    match how {
        None | Some(Garble::Clock) => {}
        Some(Garble::Flip) => {
            let middle = given.len() / 2;
            if let Some(byte) = given.get_mut(middle) {
                *byte ^= 1;
            }
        }
        Some(Garble::Zero) => given.fill(0),
        Some(Garble::Cut) => return given.len().saturating_sub(1),
        Some(Garble::Repeat) => {
            for (to, from) in given.iter_mut().zip(before.unwrap_or_default()) {
                *to = from;
            }
        }
    }
    given.len()
}

/// The real module's path.
pub(super) fn real() -> Option<OsString> {
    env::var_os(Faults::REAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_read_word_by_word() {
        let text =
            "# nothing\n\nC_UnwrapKey return=0x30 after=100 times=1 # once\nlog\n* delay_ms=5 hang";
        let (rules, log) = parse(text).unwrap();
        assert!(log);
        assert_eq!(
            rules[0],
            Rule {
                function: "C_UnwrapKey".into(),
                code: Some(0x30),
                after: 100,
                times: Some(1),
                ..Rule::default()
            }
        );
        assert_eq!((rules[1].delay_ms, rules[1].hang), (5, true));
    }

    #[test]
    fn bytes_that_a_call_gives_are_read_in_pairs() {
        let (rules, _) = parse("C_WrapKey gives=00fFa5").unwrap();
        assert_eq!(rules[0].gives.as_deref(), Some(&[0, 0xFF, 0xA5][..]));
        let verdict = Verdict { gives: Some(vec![7, 8]), ..Verdict::default() };
        let mut given = [1, 2, 3];
        assert_eq!(change(&verdict, "C_G", &mut given), 3);
        assert_eq!(given, [7, 8, 3]);
    }

    #[test]
    fn a_word_that_is_no_rule_is_named() {
        for (text, word) in [
            ("C_Sign garbel=flip", "garbel=flip"),
            ("C_Sign garble=up", "garble=up"),
            ("C_Sign gives=abc", "gives=abc"),
            ("C_Sign gives=xy", "gives=xy"),
            ("Sign return=1", "Sign"),
            ("C_Sign return=x", "return=x"),
        ] {
            assert_eq!(parse(text), Err(BadRule { line: 1, word: word.into() }), "{text}");
        }
    }

    #[test]
    fn after_and_times_say_which_calls_are_met() {
        let (rules, _) = parse("C_Sign return=1 after=2 times=3").unwrap();
        let met: Vec<u64> = (0..8).filter(|number| rules[0].meets(*number)).collect();
        assert_eq!(met, [2, 3, 4]);
    }

    #[test]
    fn each_form_of_garbling_changes_what_was_given() {
        let mut given = [1, 2, 3, 4];
        assert_eq!(garble(None, "C_A", &mut given), 4);
        assert_eq!(garble(Some(Garble::Flip), "C_B", &mut given), 4);
        assert_eq!(given, [1, 2, 2, 4]);
        assert_eq!(garble(Some(Garble::Cut), "C_B", &mut given), 3);
        assert_eq!(garble(Some(Garble::Zero), "C_B", &mut given), 4);
        assert_eq!(given, [0; 4]);
        assert_eq!(garble(Some(Garble::Repeat), "C_A", &mut given), 4);
        assert_eq!(given, [1, 2, 3, 4]);
    }
}
