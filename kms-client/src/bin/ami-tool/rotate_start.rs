//! `rotate start`: one call, or one for each 10,000 meters of a file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use kms_client::{
    CallError, Campaign, CampaignStart, CampaignStarted, KmsClient, LeftOut, MeterId,
    MeterSelection, Replicated, Rotation,
};
use serde::Serialize;

use crate::failure::{Exit, Failure};
use crate::rotate_args::Start;
use crate::rotate_text::summary;
use crate::text::{say_unreplicated, show};

/// Meters that are named one by one; with `--json` all that the service names.
const SHOWN_MAX: usize = 50;
/// After the answer was lost.
const START_LOST: &str = "`rotate status NAME` says whether it runs; where it is FILLING or unknown, run the same command again";

/// What all calls of one start came to.
#[derive(Debug, Serialize)]
struct Begun {
    dry_run: bool,
    /// As it stands behind the last call; of a dry run, of that call alone.
    campaign: Campaign,
    /// Meters that came in, or would, by label; known of a dry run alone.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    by_label: BTreeMap<String, u64>,
    added: u64,
    already: u64,
    left_out: Vec<LeftOut>,
    left_out_total: u64,
    replicated: Replicated,
}

pub(crate) async fn start(client: &KmsClient, what: Start, json: bool) -> Result<Exit, Failure> {
    let selections = selections(&what)?;
    let rotation = client.rotation();
    let before = members_before(&rotation, &what).await?;
    let calls = selections.len();
    let mut begun: Option<Begun> = None;
    for (number, selection) in (1..).zip(selections) {
        let start = call_of(&what, selection, number < calls);
        let done = begun.as_ref().map_or(0, Begun::members);
        let started = rotation.start_campaign(&start).await.map_err(|error| lost(error, done))?;
        begun = Some(with(begun, started, what.dry_run, &before));
    }
    let begun = begun.ok_or_else(|| Failure::usage("no meter was named"))?;
    show(json, &begun, || lines(&begun).join("\n"))?;
    if !json {
        say_unreplicated(begun.replicated)?;
    }
    Ok(Exit::good_if(begun.left_out_total == 0))
}

/// One for each call.
fn selections(what: &Start) -> Result<Vec<MeterSelection>, Failure> {
    match &what.meters {
        Some(file) => in_lots(&read_ids(file)?),
        None => Ok(vec![what.selection()]),
    }
}

fn call_of(what: &Start, selection: MeterSelection, more: bool) -> CampaignStart {
    let (name, policy, dry_run) = (what.name.clone(), what.policy(), what.dry_run);
    CampaignStart { name, policy, selection, dry_run, more }
}

fn lost(error: CallError, done: u64) -> Failure {
    let is_unknown = matches!(error, CallError::OutcomeUnknown { .. });
    let failure = Failure::from(error);
    let failure = if is_unknown { failure.with_next(START_LOST) } else { failure };
    if done == 0 {
        return failure;
    }
    failure.after(format!("{done} meters are in; the same command goes on"))
}

/// Of a dry run the members of the campaign that is filling already, by label: it counts them with those that would come in.
async fn members_before(
    rotation: &Rotation,
    what: &Start,
) -> Result<BTreeMap<String, u64>, Failure> {
    if !what.dry_run {
        return Ok(BTreeMap::new());
    }
    match rotation.campaign(&what.name).await {
        Ok(campaign) => Ok(by_label(&campaign)),
        Err(CallError::Refused { code, .. }) if code == "NO_SUCH_CAMPAIGN" => Ok(BTreeMap::new()),
        Err(error) => Err(error.into()),
    }
}

fn by_label(campaign: &Campaign) -> BTreeMap<String, u64> {
    campaign.labels.iter().map(|it| (it.label.clone(), it.progress.members)).collect()
}

/// What all calls came to, with one more of them.
fn with(
    sum: Option<Begun>,
    started: CampaignStarted,
    dry_run: bool,
    before: &BTreeMap<String, u64>,
) -> Begun {
    let mut sum = sum.unwrap_or_else(|| Begun::none(dry_run, started.campaign.clone()));
    if dry_run {
        sum.add_labels(&started.campaign, before);
    }
    sum.add(started);
    sum
}

impl Begun {
    fn none(dry_run: bool, campaign: Campaign) -> Self {
        Self {
            dry_run,
            campaign,
            by_label: BTreeMap::new(),
            added: 0,
            already: 0,
            left_out: Vec::new(),
            left_out_total: 0,
            replicated: Replicated::NotApplicable,
        }
    }

    fn members(&self) -> u64 {
        self.added + self.already
    }

    fn add(&mut self, started: CampaignStarted) {
        self.campaign = started.campaign;
        self.added += started.added;
        self.already += started.already;
        self.left_out.extend(started.left_out);
        self.left_out_total += started.left_out_total;
        if self.replicated != Replicated::Unreplicated {
            self.replicated = started.replicated;
        }
    }

    fn add_labels(&mut self, campaign: &Campaign, before: &BTreeMap<String, u64>) {
        for (label, members) in by_label(campaign) {
            let new = members.saturating_sub(before.get(&label).copied().unwrap_or_default());
            if new > 0 {
                *self.by_label.entry(label).or_default() += new;
            }
        }
    }
}

fn lines(begun: &Begun) -> Vec<String> {
    let mut lines = vec![head(begun)];
    lines.extend(begun.by_label.iter().map(|(label, count)| format!("label {label}  {count}")));
    lines.extend(codes(&begun.left_out));
    lines.extend(left_out(begun));
    lines.extend(end(begun));
    lines
}

fn head(begun: &Begun) -> String {
    let Begun { dry_run, added, already, left_out_total, .. } = begun;
    let would = if *dry_run { "would come in" } else { "came in" };
    let already = if *already > 0 { format!(", {already} were in before") } else { String::new() };
    format!("{added} meters {would}{already}, {left_out_total} are left out")
}

/// How many are left out for each reason, where there are several reasons.
fn codes(left_out: &[LeftOut]) -> Vec<String> {
    let mut by_code: BTreeMap<&str, u64> = BTreeMap::new();
    left_out.iter().for_each(|it| *by_code.entry(&it.code).or_default() += 1);
    let several = if by_code.len() > 1 { by_code } else { BTreeMap::new() };
    several.iter().map(|(code, count)| format!("left out  {code}  {count}")).collect()
}

fn left_out(begun: &Begun) -> Vec<String> {
    let named = begun.left_out.iter().take(SHOWN_MAX);
    let mut lines: Vec<String> = named.map(left_out_line).collect();
    let unnamed = begun.left_out_total.saturating_sub(lines.len() as u64);
    if unnamed > 0 {
        lines.push(format!("… and {unnamed} more are left out"));
    }
    lines
}

fn left_out_line(it: &LeftOut) -> String {
    format!("left out  {}  {}: {}", it.meter_id, it.code, it.reason)
}

fn end(begun: &Begun) -> Vec<String> {
    if begun.dry_run {
        return vec!["nothing was begun".to_owned()];
    }
    let name = &begun.campaign.name;
    let next = format!(
        "next: the HES takes its meters (TakeWork); `rotate watch {name}` shows how far it is"
    );
    vec![summary(&begun.campaign), next]
}

/// The ids of a file, each once, in its order.
fn read_ids(path: &Path) -> Result<Vec<MeterId>, Failure> {
    let (mut ids, mut known) = (Vec::new(), BTreeSet::new());
    for (number, line) in (1_u64..).zip(opened(path)?.lines()) {
        let line = line.map_err(|error| failed(path, &error))?;
        let word = line.trim_start_matches('\u{FEFF}').trim();
        if word.is_empty() {
            continue;
        }
        let id =
            MeterId::new(word).map_err(|error| failed(path, &format!("line {number}: {error}")))?;
        if known.insert(id.clone()) {
            ids.push(id);
        }
    }
    Ok(ids)
}

fn opened(path: &Path) -> Result<Box<dyn BufRead>, Failure> {
    if path == Path::new("-") {
        return Ok(Box::new(io::stdin().lock()));
    }
    let file = File::open(path).map_err(|error| failed(path, &error))?;
    Ok(Box::new(BufReader::new(file)))
}

fn failed(path: &Path, why: &dyn std::fmt::Display) -> Failure {
    Failure::files(format!("{}: {why}", path.display()))
}

/// As many in each as one call may name. No ids are no selection: that would be all meters.
fn in_lots(ids: &[MeterId]) -> Result<Vec<MeterSelection>, Failure> {
    if ids.is_empty() {
        return Err(Failure::files("the file names no meter"));
    }
    Ok(ids.chunks(MeterSelection::IDS_MAX).map(lot).collect())
}

fn lot(ids: &[MeterId]) -> MeterSelection {
    MeterSelection { meter_ids: ids.to_vec(), ..MeterSelection::default() }
}

#[cfg(test)]
mod tests {
    use kms_client::{CampaignLabel, CampaignStatus};

    use super::*;
    use crate::rotate_samples_tests::spring;

    fn started(members: u64) -> CampaignStarted {
        let mut campaign = spring(CampaignStatus::Filling);
        let CampaignLabel { progress, .. } = &mut campaign.labels[0];
        progress.members = members;
        let left = |id: &str| LeftOut {
            meter_id: id.into(),
            code: format!("CODE_{id}"),
            reason: "why".into(),
        };
        let left_out = vec![left("a"), left("b")];
        CampaignStarted {
            campaign,
            added: members,
            already: 0,
            left_out_total: left_out.len() as u64,
            left_out,
            replicated: Replicated::NotApplicable,
        }
    }

    #[test]
    fn a_dry_run_of_several_calls_is_told_as_one() {
        let before = BTreeMap::from([("MMM".to_owned(), 2)]);
        let sum = with(None, started(10), true, &before);
        let sum = with(Some(sum), started(5), true, &before);
        assert_eq!(sum.by_label, BTreeMap::from([("MMM".to_owned(), 11)]));
        assert_eq!((sum.added, sum.left_out_total), (15, 4));
        let lines = lines(&sum);
        assert_eq!(lines[0], "15 meters would come in, 4 are left out");
        assert!(lines.contains(&"label MMM  11".to_owned()), "{lines:?}");
        assert!(lines.contains(&"left out  CODE_a  2".to_owned()), "{lines:?}");
        assert!(lines.contains(&"left out  b  CODE_b: why".to_owned()), "{lines:?}");
        assert_eq!(lines.last().unwrap(), "nothing was begun");
    }

    #[test]
    fn a_file_is_cut_into_calls_and_an_empty_one_is_no_selection() {
        let id = |number: usize| MeterId::new(&format!("m-{number}")).unwrap();
        let ids: Vec<MeterId> = (0..20_001).map(id).collect();
        let lots = in_lots(&ids).unwrap();
        let lens: Vec<usize> = lots.iter().map(|lot| lot.meter_ids.len()).collect();
        assert_eq!(lens, [10_000, 10_000, 1]);
        assert!(in_lots(&[]).is_err());
    }

    #[test]
    fn ids_stand_one_a_line_and_count_once() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "\u{FEFF}m-2\r\n\n m-1 \nm-2\n").unwrap();
        let ids: Vec<String> =
            read_ids(file.path()).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(ids, ["m-2", "m-1"]);
        std::fs::write(file.path(), "m-1\nm 2\n").unwrap();
        assert!(read_ids(file.path()).is_err());
    }
}
