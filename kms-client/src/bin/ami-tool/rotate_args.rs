//! The arguments of `rotate`.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use kms_client::{
    CampaignMemberState, CampaignPolicy, CampaignWindow, KeyCarrier, MembersOf, MeterId,
    MeterSelection,
};

use crate::key_args::Form;
use crate::rotate_words::{Kinds, kinds, seconds, selection, window};

pub(crate) const ROTATE_EXIT_CODES: &str = "\
Exit codes:
  0  all good; of `start`: no meter was left out; of `watch`: the campaign is finished, and no meter failed or was skipped
  1  it was refused, meters were left out, or a campaign that was watched ended otherwise
  2  the command line is wrong
  3  the configuration or a file cannot be used
  4  the service is unreachable, busy, late or failing
  5  the certificate does not grant the call
  6  the certificate, or the server's, is not accepted
  141  whoever read the output went away before its end (`| head`)";

#[derive(Subcommand)]
pub(crate) enum RotateCommand {
    /// Start a campaign: the HES then takes its meters and reports what came of each
    Start(Box<Start>),
    /// List the campaigns that are remembered, the newest first
    List,
    /// Show how far a campaign is, label by label, and its orphans
    Status(Named),
    /// List members of a campaign
    Members(Members),
    /// Follow a campaign to its end
    Watch(Watch),
    /// Have no more meters begun; what is under way comes to its end
    Pause(Because),
    /// Go on with a campaign that is paused
    Resume(Resume),
    /// End a campaign. What was sent stays staged, and is named as an orphan until its meter shows it
    Cancel(Cancel),
    /// Show what stands of one meter whose keys are being changed, and what may be done next
    Meter(OfMeter),
}

#[derive(Args)]
pub(crate) struct Named {
    /// The campaign
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
}

#[derive(Args)]
#[command(group = ArgGroup::new("which").required(true))]
pub(crate) struct Start {
    /// 1 to 64 letters, digits, dots, dashes and underscores. Cut off, the same command goes on
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// All meters
    #[arg(long, group = "which")]
    all: bool,
    /// Meters of which all of this is so: profile=NAME, id=PREFIX, title=HEX (its beginning), older-than=365d (the first of
    /// the kinds), compromised
    #[arg(long = "where", group = "which", value_name = "WORD,…", value_parser = selection)]
    selected: Option<MeterSelection>,
    /// The meters in this file, one id a line; `-`: standard input
    #[arg(long, group = "which", value_name = "FILE")]
    pub(crate) meters: Option<PathBuf>,
    #[command(flatten)]
    policy: Policy,
    /// Say how many meters would come in, and who would be left out and why; begin nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Args)]
struct Policy {
    /// What is rotated, in this order: guek, gak or both
    #[arg(long, value_name = "KIND,…", value_parser = kinds)]
    kinds: Kinds,
    /// e in 0.0.43.0.e.255
    #[arg(long, value_name = "N", default_value_t = 0)]
    security_setup: u8,
    /// Of COSEM class 64 in the meters, 0 or 1
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u8).range(..=1))]
    class_version: u8,
    /// The security setup of the association that carries the keys; their own otherwise
    #[arg(long, value_name = "N")]
    carrier_setup: Option<u8>,
    /// The client (its address) of that association; each meter's default otherwise
    #[arg(long, value_name = "N")]
    carrier_client: Option<u16>,
    /// The form of that association's messages; general-glo otherwise
    #[arg(long, value_enum, value_name = "FORM")]
    carrier_form: Option<Form>,
    /// Meters that are begun in an hour, at most; as many as the HES asks for otherwise
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    rate_per_hour: u32,
    /// Begin meters only at this time of the day, in UTC: 22:00-05:00, or 22:00-05:00/mon,tue. May be said several times
    #[arg(long, value_name = "HH:MM-HH:MM", value_parser = window)]
    window: Vec<CampaignWindow>,
    /// Meters of one label between sent and proved, at most; 100 otherwise
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    exposure_cap: Option<u32>,
    /// So many meters of each label go first, are restarted and show the new key again before the others are begun; 1
    /// otherwise, 0: none
    #[arg(long, value_name = "N")]
    canaries: Option<u32>,
    /// Pause by itself when more than so many among 1,000 have failed; 20 otherwise
    #[arg(long, value_name = "PERMILLE", value_parser = clap::value_parser!(u32).range(..=1_000))]
    error_budget: Option<u32>,
    /// Failed tries of one meter, at most; 5 otherwise
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..))]
    tries: Option<u8>,
    /// Before a meter is tried again; 15m otherwise
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    retry: Option<u32>,
    /// How long the HES may keep a meter without a word of it; 10m otherwise
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    lease: Option<u32>,
    /// Failed authentications in a row at which a meter locks; 3 otherwise
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..))]
    hls_failures: Option<u8>,
    /// How long it stays locked; 15m otherwise
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    hls_lock: Option<u32>,
}

impl Start {
    /// Which meters, beside those of a file.
    pub(crate) fn selection(&self) -> MeterSelection {
        self.selected.clone().unwrap_or_default()
    }

    pub(crate) fn policy(&self) -> CampaignPolicy {
        let it = &self.policy;
        CampaignPolicy {
            kinds: it.kinds.0.clone(),
            security_setup: it.security_setup,
            class_version: it.class_version,
            carrier: it.carrier(),
            rate_per_hour: it.rate_per_hour,
            windows: it.window.clone(),
            exposure_cap: it.exposure_cap.unwrap_or_default(),
            canaries: it.canaries,
            error_budget_permille: it.error_budget,
            tries_max: it.tries.unwrap_or_default(),
            retry_s: it.retry.unwrap_or_default(),
            lease_s: it.lease.unwrap_or_default(),
            hls_failures_max: it.hls_failures.unwrap_or_default(),
            hls_lock_s: it.hls_lock.unwrap_or_default(),
        }
    }
}

impl Policy {
    /// A carrier of which one thing is said is of the keys' own setup.
    fn carrier(&self) -> Option<KeyCarrier> {
        let Self { security_setup, carrier_setup, carrier_client, carrier_form, .. } = self;
        let is_said = carrier_setup.is_some() || carrier_client.is_some() || carrier_form.is_some();
        is_said.then(|| KeyCarrier {
            security_setup: carrier_setup.unwrap_or(*security_setup),
            client: carrier_client.unwrap_or_default(),
            form: carrier_form.map(Form::wanted).unwrap_or_default(),
        })
    }
}

#[derive(Args)]
pub(crate) struct Members {
    /// The campaign
    #[arg(value_name = "NAME")]
    name: String,
    /// Only those in this state
    #[arg(long, value_enum, value_name = "STATE")]
    state: Option<State>,
    /// Only those that may hold a key that they have not shown
    #[arg(long)]
    exposed: bool,
    /// Show at most so many
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

impl Members {
    pub(crate) fn wanted(self) -> MembersOf {
        let Self { name, state, exposed, limit } = self;
        MembersOf { name, state: state.map(State::wanted), exposed, limit }
    }
}

/// How far a member is.
#[derive(Clone, Copy, ValueEnum)]
enum State {
    /// Not begun
    Waiting,
    /// Its key is staged and was not handed out
    Staged,
    /// It may hold the key
    Sent,
    /// A canary that is to be restarted
    Proved,
    /// It has shown all its keys
    Done,
    /// Its tries are used up
    Failed,
    /// It can't be done, and nothing was sent
    Skipped,
    /// Cancelled before it was begun
    Left,
}

impl State {
    fn wanted(self) -> CampaignMemberState {
        match self {
            Self::Waiting => CampaignMemberState::Waiting,
            Self::Staged => CampaignMemberState::Staged,
            Self::Sent => CampaignMemberState::Sent,
            Self::Proved => CampaignMemberState::Proved,
            Self::Done => CampaignMemberState::Done,
            Self::Failed => CampaignMemberState::Failed,
            Self::Skipped => CampaignMemberState::Skipped,
            Self::Left => CampaignMemberState::Left,
        }
    }
}

#[derive(Args)]
pub(crate) struct Watch {
    /// The campaign
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// Seconds between two looks
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=3_600))]
    pub(crate) every: u32,
}

#[derive(Args)]
pub(crate) struct Because {
    /// The campaign
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// Why, for whoever looks at it
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub(crate) reason: String,
}

#[derive(Args)]
pub(crate) struct Resume {
    /// The campaign
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// Try meters anew that failed; of a campaign that is finished, too
    #[arg(long)]
    pub(crate) retry_failed: bool,
}

#[derive(Args)]
pub(crate) struct Cancel {
    #[command(flatten)]
    pub(crate) because: Because,
    /// Do not ask
    #[arg(long)]
    pub(crate) yes: bool,
}

#[derive(Args)]
pub(crate) struct OfMeter {
    /// The operator's name of the meter
    #[arg(value_name = "ID")]
    pub(crate) meter_id: MeterId,
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use kms_client::{AssociationForm, KeyKind};

    use super::*;

    #[derive(Parser)]
    struct Only {
        #[command(subcommand)]
        command: RotateCommand,
    }

    fn parse(line: &str) -> Result<RotateCommand, clap::Error> {
        let words = ["rotate"].into_iter().chain(line.split(' '));
        Only::try_parse_from(words).map(|only| only.command)
    }

    fn starting(line: &str) -> Start {
        match parse(line) {
            Ok(RotateCommand::Start(start)) => *start,
            Ok(_) => panic!("{line}"),
            Err(error) => panic!("{line}: {error}"),
        }
    }

    #[test]
    fn nobody_rotates_a_fleet_by_leaving_a_flag_out() {
        for bad in [
            "start spring --kinds guek",
            "start spring --all",
            "start spring --kinds guek --all --where compromised",
            "start spring --kinds guek --all --meters ids",
            "start spring --kinds guek --where",
            "start --kinds guek --all",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        let all = starting("start spring --kinds guek --all");
        assert_eq!(all.selection(), MeterSelection::default());
        let policy = CampaignPolicy { kinds: vec![KeyKind::Guek], ..CampaignPolicy::default() };
        assert_eq!((all.policy(), all.dry_run, all.meters), (policy, false, None));
    }

    #[test]
    fn a_policy_is_what_the_flags_say() {
        let line = "start spring --where profile=acme,compromised --kinds GAK,guek --security-setup 3 --class-version 1 \
            --carrier-client 16 --rate-per-hour 100 --window 22:00-05:00/mon --window 12:00-13:00 --exposure-cap 5 \
            --canaries 0 --error-budget 7 --tries 2 --retry 1m --lease 30s --hls-failures 4 --hls-lock 1h --dry-run";
        let start = starting(line);
        let form = AssociationForm::GeneralGlo;
        let window =
            |from_minute, to_minute, weekdays| CampaignWindow { from_minute, to_minute, weekdays };
        let policy = CampaignPolicy {
            kinds: vec![KeyKind::Gak, KeyKind::Guek],
            security_setup: 3,
            class_version: 1,
            carrier: Some(KeyCarrier { security_setup: 3, client: 16, form }),
            rate_per_hour: 100,
            windows: vec![window(1_320, 300, 1), window(720, 780, 0)],
            exposure_cap: 5,
            canaries: Some(0),
            error_budget_permille: Some(7),
            tries_max: 2,
            retry_s: 60,
            lease_s: 30,
            hls_failures_max: 4,
            hls_lock_s: 3_600,
        };
        assert_eq!(start.policy(), policy);
        assert!(start.dry_run && start.selection().compromised);
    }

    #[test]
    fn numbers_out_of_their_bounds_are_refused() {
        for bad in [
            "--kinds kek",
            "--kinds guek,guek",
            "--kinds guek --class-version 2",
            "--kinds guek --exposure-cap 0",
            "--kinds guek --error-budget 1001",
            "--kinds guek --tries 0",
            "--kinds guek --retry 15",
            "--kinds guek --window 22:00",
        ] {
            assert!(parse(&format!("start spring --all {bad}")).is_err(), "{bad}");
        }
        assert!(parse("members spring --state failed --exposed --limit 3").is_ok());
        assert!(parse("watch spring --every 0").is_err());
        assert!(parse("resume spring --retry-failed").is_ok());
    }
}
