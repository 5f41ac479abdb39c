//! Second people of a switchover: asked for before anybody is demoted, since nobody writes from then on.

use std::io::{self, Write as _};
use std::time::{Duration, Instant};

use kms_client::{Approval, CallError, KmsClient, PromoteOptions};
use kms_core::two_people::LIFE_MS;

use crate::failure::Failure;

/// Between two questions whether somebody has approved it.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// The time for the steps themselves, beside what is waited for between them.
const MARGIN: Duration = Duration::from_secs(60);
/// What becomes of a switchover for which nobody came.
const NOBODY_CAME: &str = "nothing was changed. Run the same command again: the calls that were approved stay so for their \
    time, the others are asked anew";

/// The same, of one that came as far as the demotion.
const NOBODY_WRITES: &str = "nobody writes. Run the same command again: what was approved stays so for its time, else it is \
    asked anew";

/// How far the switchover is.
#[derive(Clone, Copy)]
pub(crate) enum Phase {
    /// Nothing is changed, and each step that comes waits for its site for so long at most.
    Ahead(Duration),
    /// The other site was demoted.
    NobodyWrites,
}

impl Phase {
    /// What has to be left of an approval's life: before the demotion enough to be promoted under it, and after that what
    /// there is, since to wait for another one takes longer.
    fn left_min(self) -> Duration {
        match self {
            Self::Ahead(patience) => 2 * patience + MARGIN,
            Self::NobodyWrites => Duration::ZERO,
        }
    }

    const fn nobody_came(self) -> &'static str {
        match self {
            Self::Ahead(_) => NOBODY_CAME,
            Self::NobodyWrites => NOBODY_WRITES,
        }
    }
}

/// A step that is taken later.
pub(crate) enum Later<'a> {
    Promote(&'a KmsClient, PromoteOptions),
    Demote(&'a KmsClient, u64),
}

impl Later<'_> {
    async fn ask(&self) -> Result<Option<Approval>, CallError> {
        match self {
            Self::Promote(site, options) => site.ask_to_promote(*options).await,
            Self::Demote(site, epoch) => site.ask_to_demote(*epoch).await,
        }
    }

    const fn verb(&self) -> &'static str {
        match self {
            Self::Promote(..) => "Site/Promote",
            Self::Demote(..) => "Site/Demote",
        }
    }

    /// Waits until the step would pass, for as long as its approval may come.
    async fn wait(&self, phase: Phase) -> Result<(), Failure> {
        let mut waits: Option<(String, Instant)> = None;
        loop {
            let error = match self.ask().await {
                Ok(approval) => return check_left(approval.as_ref(), phase.left_min()),
                Err(error) => error,
            };
            let CallError::SecondPersonNeeded { site, approval_id, .. } = &error else {
                return passed_over(error);
            };
            let until = match &waits {
                Some((id, until)) if id == approval_id => *until,
                _ => {
                    let left = self.left(approval_id).await.saturating_sub(phase.left_min());
                    self.tell((site, approval_id), left, phase);
                    let until = Instant::now() + left;
                    waits = Some((approval_id.clone(), until));
                    until
                }
            };
            if Instant::now() >= until {
                return Err(Failure::from(error).with_next(phase.nobody_came()));
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    /// The rest of a call's life by the clock of its site: ours may be another one.
    async fn left(&self, approval_id: &str) -> Duration {
        let (Self::Promote(site, _) | Self::Demote(site, _)) = self;
        let waiting = site.approvals().await.unwrap_or_default();
        let found = waiting.into_iter().find(|one| one.approval_id == approval_id);
        Duration::from_millis(found.map_or(LIFE_MS, |one| one.expires_in_ms))
    }

    fn tell(&self, (site, approval_id): (&str, &str), left: Duration, phase: Phase) {
        let (verb, seconds) = (self.verb(), left.as_secs());
        let state = match phase {
            Phase::Ahead(_) => "nothing is changed yet",
            Phase::NobodyWrites => "nobody writes until then",
        };
        // A closed standard error is no reason to stop.
        let _ = writeln!(
            io::stderr(),
            "waiting {seconds} s at most for a second person, and {state}: {verb} at site {site} \
             (ami-tool approvals approve {approval_id})"
        );
    }
}

/// Asks for the second people of all of these, then waits for each: they may come in any order.
pub(crate) async fn wait_for(steps: &[Later<'_>], phase: Phase) -> Result<(), Failure> {
    let begun = Instant::now();
    for step in steps {
        // Waited for below; whatever else it says is said there, too.
        let _ = step.ask().await;
    }
    for step in steps {
        step.wait(phase).await?;
    }
    if begun.elapsed() < ASK_AGAIN {
        return Ok(());
    }
    // What was approved first may be over by now.
    for step in steps {
        step.wait(phase).await?;
    }
    Ok(())
}

/// An approval that ends soon is none for what takes longer.
fn check_left(approval: Option<&Approval>, left_min: Duration) -> Result<(), Failure> {
    let Some(Approval { approval_id, verb, expires_in_ms, .. }) = approval else { return Ok(()) };
    if Duration::from_millis(*expires_in_ms) >= left_min {
        return Ok(());
    }
    let seconds = expires_in_ms / 1_000;
    let reason = format!(
        "the approval {approval_id} of {verb} ends in {seconds} s, too soon for a switchover: nothing was changed"
    );
    let next = "run the same command again once it is over: it is asked anew";
    Err(Failure::refused("SECOND_PERSON_NEEDED", reason).with_next(next))
}

/// A server that can't be asked ahead asks when the step is taken.
fn passed_over(error: CallError) -> Result<(), Failure> {
    let is_older = match &error {
        CallError::Refused { code, .. } => {
            matches!(code.as_str(), "UNKNOWN_METHOD" | "UNIMPLEMENTED")
        }
        // Who may not take the step itself is told so before anybody is demoted.
        CallError::PermissionDenied { reason, .. } => reason.contains("Approvals/AskAhead"),
        _ => false,
    };
    if !is_older {
        return Err(error.into());
    }
    let _ = writeln!(
        io::stderr(),
        "a second person that is needed will be asked for when the step is taken, and nobody may write until then: {error}"
    );
    Ok(())
}
