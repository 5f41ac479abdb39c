//! Every dialect, and every single cut at every step: exhaustively, whoever drives.
//!
//! The number of steps is not told but counted: a case without a cut is run first, and each of its steps is then cut in
//! each way. A cut may make a case longer; what comes behind it is left alone, since one cut is all that a case has.

use crate::{chance::Chance, dialect::Dialect};

/// What befalls one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cut {
    /// The request does not reach the meter.
    RequestLost,
    /// The meter did what was asked, and its answer is lost.
    AnswerLost,
    /// The head-end is killed behind its request, and starts anew.
    HeadEndKilled,
    /// The service is killed where the step uses it, and starts anew.
    ServerKilled,
    /// The site that writes is lost, and the other one takes over.
    Failover,
    /// The meter loses power behind its answer.
    PowerLost,
    /// The meter restarts in order behind its answer.
    Rebooted,
}

impl Cut {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::RequestLost,
        Self::AnswerLost,
        Self::HeadEndKilled,
        Self::ServerKilled,
        Self::Failover,
        Self::PowerLost,
        Self::Rebooted,
    ];
}

/// One dialect, and where it is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// The meter's ways.
    pub dialect: Dialect,
    /// The step, from 0, and what befalls it.
    pub cut: Option<(u32, Cut)>,
}

/// Whether there is more to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// There is.
    More,
    /// The rotation says that it is at its end, whatever that is.
    Done,
}

/// Whatever changes a meter's keys: the service by its calls, or a small head-end of a test.
pub trait Drive {
    /// What keeps a case from being run at all; ends everything.
    type Trouble;

    /// A new meter of that dialect, and a rotation begun for it.
    fn begin(&mut self, dialect: &Dialect) -> Result<(), Self::Trouble>;

    /// One exchange with the meter, with what befalls it. After a cut the driver starts anew by itself whatever was
    /// killed, with nothing but what that had stored.
    fn step(&mut self, cut: Option<Cut>) -> Result<Step, Self::Trouble>;

    /// All is well again: what is wrong with the meter and what is believed of it? Reachable by keys that are held,
    /// none that is not held, no nonce twice.
    fn judge(&mut self) -> Result<Vec<String>, Self::Trouble>;
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Cases that were run.
    pub cases: u64,
    /// Steps that they took together.
    pub steps: u64,
    /// How often each way of [`Cut::ALL`] was used: one that is 0 shows nothing.
    pub cuts: [u64; Cut::ALL.len()],
    /// What was wrong, and in which case. The first [`COMPLAINTS`] of them.
    pub complaints: Vec<(Case, String)>,
    /// How many cases had something wrong.
    pub wrong: u64,
}

/// How many complaints are kept word by word.
pub const COMPLAINTS: usize = 100;

/// Runs every dialect whole, and once for each cut of each of its steps. A case that takes more than `steps_max` steps
/// has something wrong with it.
pub fn exhaust<D: Drive>(
    drive: &mut D,
    dialects: impl IntoIterator<Item = Dialect>,
    steps_max: u32,
) -> Result<Outcome, D::Trouble> {
    let mut outcome = Outcome::default();
    for dialect in dialects {
        let steps = run(drive, Case { dialect, cut: None }, steps_max, &mut outcome)?;
        for step in 0..steps {
            for cut in Cut::ALL {
                let case = Case { dialect, cut: Some((step, cut)) };
                run(drive, case, steps_max, &mut outcome)?;
            }
        }
    }
    Ok(outcome)
}

/// Runs one case; the number of its steps.
pub fn run<D: Drive>(
    drive: &mut D,
    case: Case,
    steps_max: u32,
    outcome: &mut Outcome,
) -> Result<u32, D::Trouble> {
    let at = |step| case.cut.filter(|(at, _)| *at == step).map(|(_, cut)| cut);
    let ran = carried_out(drive, &case.dialect, steps_max, at)?;
    let steps = ran.steps;
    outcome.add(case, ran);
    Ok(steps)
}

/// Many cuts in one case, for fleets: each step is cut in so many of a thousand cases, in a way that is drawn. A complaint
/// names the seed that brings its case back.
pub fn storm<D: Drive>(
    drive: &mut D,
    dialects: impl IntoIterator<Item = Dialect>,
    (seed, permille): (u64, u16),
    steps_max: u32,
) -> Result<Outcome, D::Trouble> {
    let mut outcome = Outcome::default();
    for (dialect, seed) in dialects.into_iter().zip(seed..) {
        let mut chance = Chance::new(seed);
        let mut ran = carried_out(drive, &dialect, steps_max, |_| {
            let way = chance.below(Cut::ALL.len() as u64) as usize;
            chance.permille(permille).then_some(Cut::ALL[way])
        })?;
        ran.complaints.iter_mut().for_each(|it| it.push_str(&format!(" (seed {seed})")));
        outcome.add(Case { dialect, cut: None }, ran);
    }
    Ok(outcome)
}

/// What came of one meter.
#[derive(Default)]
struct Ran {
    steps: u32,
    /// By the place of each in [`Cut::ALL`]: those that really befell a step.
    cuts: [u64; Cut::ALL.len()],
    complaints: Vec<String>,
}

/// One meter from its beginning to the judgement.
fn carried_out<D: Drive>(
    drive: &mut D,
    dialect: &Dialect,
    steps_max: u32,
    mut cut: impl FnMut(u32) -> Option<Cut>,
) -> Result<Ran, D::Trouble> {
    drive.begin(dialect)?;
    let (mut ran, mut ended) = (Ran::default(), false);
    while !ended && ran.steps < steps_max {
        let cut = cut(ran.steps);
        for (sum, way) in ran.cuts.iter_mut().zip(Cut::ALL) {
            *sum += u64::from(cut == Some(way));
        }
        ended = drive.step(cut)? == Step::Done;
        ran.steps += 1;
    }
    ran.complaints = drive.judge()?;
    if !ended {
        ran.complaints.push(format!("has not ended after {} steps", ran.steps));
    }
    Ok(ran)
}

impl Outcome {
    fn add(&mut self, case: Case, ran: Ran) {
        self.cases += 1;
        self.steps += u64::from(ran.steps);
        self.wrong += u64::from(!ran.complaints.is_empty());
        self.cuts.iter_mut().zip(ran.cuts).for_each(|(sum, it)| *sum += it);
        let room = COMPLAINTS.saturating_sub(self.complaints.len());
        self.complaints.extend(ran.complaints.into_iter().take(room).map(|it| (case, it)));
    }
}
