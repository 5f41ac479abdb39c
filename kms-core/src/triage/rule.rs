//! From what was found of each frame to causes.

use std::collections::BTreeMap;

use super::{Cause, Confidence, Fit, Found, Frame, Plausible, Standing};
use crate::SystemTitle;

/// Frames of different counters that the structure of a decipherment is judged over, at least. Of random bytes one
/// in fifty passes: under one key, three of three do by chance once in 125,000 times, three of four once in 31,000.
pub const STRUCTURE_MIN: usize = 3;

/// Of so many frames one may be unlike the others: a wrong key that looks right once, or a frame that was changed.
const ONE_ODD_IN: usize = 4;

/// One cause, and the frames that it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The cause.
    pub cause: Cause,
    /// Its worth.
    pub confidence: Confidence,
    /// The frames that were judged for it, by their places. Where structure was judged these are all of them: nothing
    /// is said of a single one.
    pub frames: Vec<u32>,
    /// The keys that fit, or seem to.
    pub fit: Option<Fit>,
    /// Another title than the meter's.
    pub title: Option<SystemTitle>,
    /// One more sentence.
    pub detail: Box<str>,
}

/// Beside the cause: frames of which all this is the same are one finding.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
struct About {
    fit: Option<Fit>,
    title: Option<SystemTitle>,
    detail: Box<str>,
}

impl About {
    fn fit(fit: Fit) -> Self {
        Self { fit: Some(fit), ..Self::default() }
    }

    fn title(title: SystemTitle) -> Self {
        Self { title: Some(title), ..Self::default() }
    }

    fn detail(detail: impl Into<Box<str>>) -> Self {
        Self { detail: detail.into(), ..Self::default() }
    }
}

#[derive(Default)]
struct Gathered(BTreeMap<(Cause, Confidence, About), Vec<u32>>);

impl Gathered {
    fn put(&mut self, frame: u32, cause: Cause, confidence: Confidence, about: About) {
        self.0.entry((cause, confidence, about)).or_default().push(frame);
    }

    fn put_all(&mut self, frames: &[u32], cause: Cause, confidence: Confidence, about: About) {
        self.0.entry((cause, confidence, about)).or_default().extend(frames);
    }

    fn has(&self, cause: Cause) -> bool {
        self.0.keys().any(|(known, ..)| *known == cause)
    }

    fn into_findings(self) -> Vec<Finding> {
        let finding = |((cause, confidence, about), frames)| {
            let About { fit, title, detail } = about;
            Finding { cause, confidence, frames, fit, title, detail }
        };
        let mut findings: Vec<Finding> = self.0.into_iter().map(finding).collect();
        // A frame around an APDU is seldom why its tag fails, so it is said last.
        findings.sort_by_key(|finding| {
            let is_frame = finding.cause == Cause::Framed;
            (is_frame, finding.confidence, std::cmp::Reverse(finding.frames.len()), finding.cause)
        });
        findings
    }
}

/// The causes, most likely first. `keys`: those that [`Plausible`] has a bit for, in this order.
pub fn conclude(frames: &[Frame], keys: &[Fit]) -> Vec<Finding> {
    let mut gathered = Gathered::default();
    for (number, frame) in (0..).zip(frames) {
        if !frame.layers.is_empty() {
            let names: Vec<&str> = frame.layers.iter().map(|kind| kind.name()).collect();
            let about = About::detail(names.join(", "));
            gathered.put(number, Cause::Framed, Confidence::Certain, about);
        }
        by_itself(number, frame, &mut gathered);
    }
    together(frames, keys, &mut gathered);
    gathered.into_findings()
}

/// What one frame says without the others.
fn by_itself(number: u32, frame: &Frame, gathered: &mut Gathered) {
    use Confidence::{Certain, Likely, Possible};
    let (cause, confidence, about) = match &frame.found {
        Found::Bad(bad) => (bad.cause, Certain, About::detail(bad.reason.clone())),
        Found::Opens(fit, standing) => return opened(number, frame, *fit, *standing, gathered),
        Found::OtherSetup(fit) => (Cause::OtherSetupFits, Certain, About::fit(*fit)),
        Found::OtherSite(fit) => (Cause::OtherSiteFits, Certain, About::fit(*fit)),
        Found::Compromised(fit) => (Cause::CompromisedFits, Certain, About::fit(*fit)),
        Found::Exchanged(fit) => (Cause::KeysExchanged, Certain, About::fit(*fit)),
        Found::OtherHeaderRule(fit) => (Cause::HeaderRule, Certain, About::fit(*fit)),
        Found::OtherTitle(title) => (Cause::WrongTitle, Certain, About::title(*title)),
        Found::OtherMeter { title, opens: true } => {
            (Cause::OtherMetersFrame, Certain, About::title(*title))
        }
        Found::OtherMeter { title, opens: false } => {
            (Cause::OtherMetersFrame, Likely, About::title(*title))
        }
        Found::StrangeTitle(title) => {
            let detail = "no meter that is known here has it".into();
            (Cause::OtherMetersFrame, Possible, About { title: Some(*title), detail, fit: None })
        }
        Found::NoGak(_) => (Cause::GakMissing, Certain, About::default()),
        Found::NoKey(kind) => (Cause::NoKey, Certain, About::detail(kind.word())),
        Found::OtherSuite(kind) => (Cause::SuiteMismatch, Certain, About::detail(kind.word())),
        Found::Policy => (Cause::PolicyRefuses, Certain, About::default()),
        Found::Unavailable(why) => (Cause::Unavailable, Certain, About::detail(why.clone())),
        // Judged beside the others.
        Found::Unauthenticated(_) | Found::Fails(_) | Found::FailsWithoutClientTitle => return,
    };
    gathered.put(number, cause, confidence, about);
}

/// A frame that is authentic as it should be: its version, and its place among those before.
fn opened(number: u32, frame: &Frame, fit: Fit, standing: Standing, gathered: &mut Gathered) {
    use Confidence::{Certain, Likely, Possible};
    let mut put = |cause, confidence, about| gathered.put(number, cause, confidence, about);
    if !fit.is_current {
        put(Cause::OtherVersionFits, Certain, About::fit(fit));
    }
    match standing {
        Standing::NoFloor | Standing::New if fit.is_current && frame.layers.is_empty() => {
            put(Cause::NothingWrong, Certain, About::fit(fit));
        }
        Standing::NoFloor | Standing::New => {}
        Standing::Taken => put(Cause::Replay, Certain, About::default()),
        Standing::OtherTaken => put(
            Cause::CounterReset,
            Certain,
            About::detail("its counter was used for another message under this key"),
        ),
        Standing::Below { seen: Some(true), .. } => put(Cause::Replay, Likely, About::default()),
        Standing::Below { floor, seen: Some(false) } => {
            put(Cause::Overtaken, Likely, About::detail(format!("the receive floor is {floor}")));
        }
        Standing::Below { floor, seen: None } => {
            let about = About::detail(format!("the receive floor is {floor}"));
            put(Cause::Replay, Possible, about.clone());
            put(Cause::CounterReset, Possible, about);
        }
        Standing::Unknown => {
            put(Cause::Unavailable, Certain, About::detail("its receive floor can't be read now"));
        }
    }
}

/// Whether a tag verified that only the meter can have made.
fn is_genuine(found: &Found) -> bool {
    matches!(
        found,
        Found::Opens(..)
            | Found::OtherSetup(_)
            | Found::OtherSite(_)
            | Found::Compromised(_)
            | Found::Exchanged(_)
            | Found::OtherHeaderRule(_)
            | Found::OtherTitle(_)
    )
}

/// What the frames say beside each other.
fn together(frames: &[Frame], keys: &[Fit], gathered: &mut Gathered) {
    let genuine = frames.iter().any(|frame| is_genuine(&frame.found));
    for (number, frame) in (0..).zip(frames) {
        match &frame.found {
            Found::FailsWithoutClientTitle => {
                let confidence = if genuine { Confidence::Likely } else { Confidence::Possible };
                gathered.put(number, Cause::ClientTitleMissing, confidence, About::default());
            }
            // The right keys are known, and this frame is not as it was sent.
            Found::Fails(_) if genuine => {
                let (checked, detail) = if frame.was_checked() {
                    (Confidence::Likely, "the checksum of its line held")
                } else {
                    (
                        Confidence::Possible,
                        "no checksum of its line shows whether the line damaged it",
                    )
                };
                gathered.put(number, Cause::SuspectedTamper, checked, About::detail(detail));
            }
            _ => {}
        }
    }
    if !genuine {
        structure(frames, keys, gathered);
    }
}

/// The frames whose decipherments may be judged: one of each counter, since a counter that is given twice is one
/// nonce, and could be tried again and again with other bytes.
fn judged(frames: &[Frame]) -> Vec<(u32, Plausible)> {
    let mut seen = Vec::new();
    let mut judged = Vec::new();
    for (number, frame) in (0..).zip(frames) {
        let (Found::Fails(Some(plausible))
        | Found::NoGak(plausible)
        | Found::Unauthenticated(plausible)) = &frame.found
        else {
            continue;
        };
        if !seen.contains(&frame.counter) {
            seen.push(frame.counter);
            judged.push((number, *plausible));
        }
    }
    judged
}

/// The key under which most frames look right, and how many do.
fn best_key(judged: &[(u32, Plausible)]) -> (usize, usize) {
    let right =
        |key: usize| judged.iter().filter(|(_, Plausible(under))| under >> key & 1 == 1).count();
    let counts = (0..Plausible::KEYS_MAX).map(|key| (key, right(key)));
    // The first of equals: keys stand in the order in which they are tried.
    counts.rev().max_by_key(|(_, right)| *right).unwrap_or_default()
}

/// No tag has verified: what can be told by how decipherments begin, over all of them and of none alone.
fn structure(frames: &[Frame], keys: &[Fit], gathered: &mut Gathered) {
    let judged = judged(frames);
    let numbers: Vec<u32> = judged.iter().map(|(number, _)| *number).collect();
    let of = |wanted: fn(&Found) -> bool| -> Vec<u32> {
        let wanted = (0..).zip(frames).filter(|(_, frame)| wanted(&frame.found));
        wanted.map(|(number, _)| number).collect()
    };
    let failing = of(|found| matches!(found, Found::Fails(_)));
    let unauthenticated = of(|found| matches!(found, Found::Unauthenticated(_)));
    let enough = judged.len() >= STRUCTURE_MIN;
    let (best, right) = best_key(&judged);
    let odd = judged.len() / ONE_ODD_IN;
    if enough && right <= odd {
        gathered.put_all(&numbers, Cause::GuekWrong, Confidence::Likely, About::default());
    } else if enough && right >= judged.len() - odd && !failing.is_empty() {
        let fit = keys.get(best).map(|fit| Fit { authentication_key_version: 0, ..*fit });
        let about = About { fit, ..About::default() };
        gathered.put_all(&numbers, Cause::GakWrong, Confidence::Likely, about);
    }
    let told = gathered.has(Cause::GuekWrong) || gathered.has(Cause::GakWrong);
    if !told && !failing.is_empty() {
        let about = About::detail(match (enough, judged.is_empty()) {
            (_, true) => "nothing in these frames can be judged without their tags",
            (false, false) => "too few frames of different counters to tell which key is wrong",
            (true, false) => "the frames do not agree with each other",
        });
        gathered.put_all(&failing, Cause::Unexplained, Confidence::Possible, about);
    }
    if !told && !unauthenticated.is_empty() {
        let about = About::detail("nothing authenticates them, as the meter's policy allows");
        gathered.put_all(&unauthenticated, Cause::NothingWrong, Confidence::Possible, about);
    }
}
